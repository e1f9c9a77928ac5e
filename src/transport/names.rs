//! The names in a certificate that was verified. Pure.

use std::net::IpAddr;

use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// The names in a client's certificate, as they are written there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// Common name of the subject (RFC 5280, 4.1.2.6), the first one.
    pub common_name: Option<String>,
    /// Subject alternative names (RFC 5280, 4.2.1.6): DNS names, mail addresses, URIs, and IP addresses as text.
    pub sans: Vec<String>,
}

impl CertificateNames {
    /// Reads them out of a certificate in DER. What cannot be read is no name: whoever has none is nobody.
    pub(super) fn of(certificate: &[u8]) -> CertificateNames {
        let Ok(certificate) = Certificate::from_der(certificate) else { return CertificateNames::default() };
        let certificate = certificate.tbs_certificate();
        let common_name = certificate.subject().common_name().ok().flatten().map(|name| name.value().into_owned());
        let sans = match certificate.get_extension::<SubjectAltName>() {
            Ok(Some((_, SubjectAltName(names)))) => names.iter().filter_map(text).collect(),
            _ => Vec::new(),
        };
        CertificateNames { common_name, sans }
    }
}

fn text(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) | GeneralName::Rfc822Name(name) | GeneralName::UniformResourceIdentifier(name) => {
            Some(name.as_str().to_owned())
        }
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    fn certificate(names: &[DnValue], sans: Vec<SanType>) -> Vec<u8> {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            parameters.distinguished_name.push(DnType::CommonName, name.clone());
        }
        parameters.distinguished_name.push(DnType::OrganizationName, "Plant 7");
        parameters.subject_alt_names = sans;
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_is_read_in_each_of_its_spellings_and_the_other_names_as_text() {
        let kinds = [
            DnValue::Utf8String("Presse Größe 7".to_owned()),
            DnValue::PrintableString("press 7".try_into().unwrap()),
            DnValue::TeletexString("press 7".try_into().unwrap()),
            DnValue::BmpString("Größe".try_into().unwrap()),
        ];
        let expected = ["Presse Größe 7", "press 7", "press 7", "Größe"];
        for (kind, expected) in kinds.into_iter().zip(expected) {
            assert_eq!(CertificateNames::of(&certificate(&[kind], Vec::new())).common_name.as_deref(), Some(expected));
        }
        let sans = vec![
            SanType::DnsName("plc7.plant".try_into().unwrap()),
            SanType::Rfc822Name("plc7@plant".try_into().unwrap()),
            SanType::URI("urn:dev:plc7".try_into().unwrap()),
            SanType::IpAddress("192.0.2.7".parse().unwrap()),
            SanType::IpAddress("2001:db8::7".parse().unwrap()),
        ];
        let names = CertificateNames::of(&certificate(&[], sans));
        assert_eq!(names.common_name, None);
        assert_eq!(names.sans, ["plc7.plant", "plc7@plant", "urn:dev:plc7", "192.0.2.7", "2001:db8::7"]);
    }

    #[test]
    fn what_is_no_certificate_has_no_names() {
        let whole = certificate(&[DnValue::from("plc7")], Vec::new());
        for length in [0, 1, 20, whole.len() / 2, whole.len() - 1] {
            assert_eq!(CertificateNames::of(&whole[..length]), CertificateNames::default());
        }
        for at in (0..whole.len()).step_by(3) {
            let mut bent = whole.clone();
            bent[at] ^= 0x55;
            // Whatever comes out, nothing panics.
            let _names = CertificateNames::of(&bent);
        }
    }
}
