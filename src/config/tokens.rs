//! Whose tokens (JWT, RFC 7519) local clients may show instead of a password: keys, and what a token must say. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use serde_json::Value;
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier, UintRef};
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::TopicRights;
use super::units::Wrong;

/// More keys than this are a mistake: a token without a key id is held against each.
const KEYS_MAX: usize = 32;

/// `rsaEncryption` (RFC 8017, A.1), `id-ecPublicKey` and `secp256r1` (RFC 5480, 2.1.1).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

/// What RFC 7518, 3.3 asks of RSA at least, and what the library takes at most.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// An uncompressed point on P-256.
const POINT_BYTES: usize = 65;

/// `[broker.jwt]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenConfig {
    /// Who may have signed it; never empty.
    pub keys: Vec<Arc<TokenKey>>,
    /// `aud`: the token is for one of these; never empty.
    pub audience: Vec<String>,
    /// `iss`; `None` = whoever has signed it is good enough.
    pub issuer: Option<String>,
    /// The claim that is the user's name.
    pub user_claim: String,
    /// The claim that names his groups.
    pub groups_claim: String,
    /// How far the clock of whoever makes the tokens may be off from ours.
    pub leeway: Duration,
    /// While this board does not know the time, a token is judged by the time that has certainly passed. Otherwise nobody
    /// comes in by one until then.
    pub without_clock: bool,
    /// What everybody may do who has shown one.
    pub rights: TopicRights,
    /// And what the groups may do that his token names: `[broker.group.<name>]`.
    pub groups: BTreeMap<Arc<str>, TopicRights>,
}

/// A key of whoever makes tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenKey {
    /// Its name in the tokens' header (`kid`).
    pub id: Option<String>,
    /// The public key.
    pub key: PublicKey,
}

/// The kinds of keys whose signatures are known here; the kind decides the algorithm, not the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// RS256
    Rsa {
        /// Big endian, without zeros in front.
        modulus: Vec<u8>,
        /// Likewise.
        exponent: Vec<u8>,
    },
    /// ES256
    P256 {
        /// 4, x, y.
        point: Vec<u8>,
    },
}

/// The keys in a file: a JWK set (RFC 7517), one JWK, or PEM with public keys and certificates.
pub(super) fn keys(bytes: &[u8]) -> Result<Vec<TokenKey>, Wrong> {
    const HELP: &str = "RS256 and ES256 are known: RSA keys of 2048 bits and more, and P-256";
    let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let keys = if is_json { jwks(bytes)? } else { pem(bytes)? };
    match keys.len() {
        0 => Err(Wrong::new("holds no public key that can be used").help(HELP)),
        1..=KEYS_MAX => Ok(keys),
        _ => Err(Wrong::new(format!("holds more than {KEYS_MAX} keys"))),
    }
}

fn jwks(bytes: &[u8]) -> Result<Vec<TokenKey>, Wrong> {
    let document: Value =
        serde_json::from_slice(bytes).map_err(|error| Wrong::new(format!("is not a JWK set: {error}")))?;
    let alone = std::slice::from_ref(&document);
    let keys = document.get("keys").and_then(Value::as_array).map_or(alone, Vec::as_slice);
    if keys.iter().any(|key| key.get("d").is_some() || key.get("k").is_some()) {
        return Err(
            Wrong::new("holds a secret key").help("give the gateway the public keys only: it signs nothing here")
        );
    }
    // Sets of identity providers hold keys of other kinds and for other ends beside those that sign.
    Ok(keys.iter().filter_map(jwk).collect())
}

fn jwk(key: &Value) -> Option<TokenKey> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let bytes = |name: &str| Base64UrlUnpadded::decode_vec(text(name)?).ok();
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    let public = match (text("kty")?, text("alg")) {
        ("RSA", None | Some("RS256")) => rsa(&bytes("n")?, &bytes("e")?)?,
        ("EC", None | Some("ES256")) if text("crv") == Some("P-256") => {
            p256(&[[4].as_slice(), &bytes("x")?, &bytes("y")?].concat())?
        }
        _ => return None,
    };
    Some(TokenKey { id: text("kid").map(str::to_owned), key: public })
}

fn pem(bytes: &[u8]) -> Result<Vec<TokenKey>, Wrong> {
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
        let (kind, der) = section.map_err(|_| Wrong::new("is neither a JWK set nor PEM"))?;
        let public = match kind {
            SectionKind::PublicKey => spki(&der),
            SectionKind::Certificate => Certificate::from_der(&der)
                .ok()
                .and_then(|certificate| certificate.tbs_certificate().subject_public_key_info().to_der().ok())
                .and_then(|der| spki(&der)),
            SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey => {
                return Err(Wrong::new("holds a private key")
                    .help("give the gateway the public part only: openssl pkey -in KEY -pubout"));
            }
            _ => None,
        };
        keys.extend(public.map(|key| TokenKey { id: None, key }));
    }
    Ok(keys)
}

fn spki(der: &[u8]) -> Option<PublicKey> {
    let info = SubjectPublicKeyInfoRef::from_der(der).ok()?;
    let key = info.subject_public_key.as_bytes()?;
    match info.algorithm.oid {
        RSA => {
            // RSAPublicKey (RFC 8017, A.1.1).
            let numbers = SliceReader::new(key).ok()?.sequence(|reader| {
                let (modulus, exponent) = (UintRef::decode(reader)?, UintRef::decode(reader)?);
                Ok::<_, x509_cert::der::Error>((modulus.as_bytes().to_vec(), exponent.as_bytes().to_vec()))
            });
            let (modulus, exponent) = numbers.ok()?;
            rsa(&modulus, &exponent)
        }
        EC => {
            let curve = info.algorithm.parameters.and_then(|any: AnyRef<'_>| ObjectIdentifier::try_from(any).ok())?;
            if curve == P256 { p256(key) } else { None }
        }
        _ => None,
    }
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<PublicKey> {
    let trimmed = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
    let (modulus, exponent) = (trimmed(modulus), trimmed(exponent));
    let is_fit = RSA_BYTES.contains(&modulus.len()) && (1..=4).contains(&exponent.len());
    is_fit.then_some(PublicKey::Rsa { modulus, exponent })
}

fn p256(point: &[u8]) -> Option<PublicKey> {
    // Whether it lies on the curve the library says with each signature.
    let is_fit = point.len() == POINT_BYTES && point.first() == Some(&4);
    is_fit.then(|| PublicKey::P256 { point: point.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p256_jwk(more: &str) -> String {
        format!(r#"{{"kty":"EC","crv":"P-256","x":"{}","y":"{}"{more}}}"#, "A".repeat(43), "B".repeat(42) + "A")
    }

    #[test]
    fn a_set_gives_the_keys_that_sign_with_their_ids_and_passes_over_the_others() {
        let rsa = format!(r#"{{"kty":"RSA","kid":"r","n":"{}","e":"AQAB"}}"#, "B".repeat(341) + "A");
        let short = r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#;
        let others = r#"{"kty":"EC","crv":"P-521","x":"AA","y":"AA"},{"kty":"OKP","crv":"Ed25519","x":"AA"}"#;
        let encrypts = p256_jwk(r#","use":"enc""#);
        let ours = p256_jwk(r#","kid":"e","use":"sig","alg":"ES256""#);
        let set = format!(r#"{{"keys":[{rsa},{short},{others},{encrypts},{ours}]}}"#);
        let found = keys(set.as_bytes()).unwrap();
        let ids: Vec<Option<&str>> = found.iter().map(|key| key.id.as_deref()).collect();
        assert_eq!(ids, [Some("r"), Some("e")]);
        assert!(
            matches!(&found[0].key, PublicKey::Rsa { modulus, exponent } if modulus.len() == 256 && exponent.len() == 3)
        );
        assert_eq!(keys(format!(" {}", p256_jwk("")).as_bytes()).unwrap().len(), 1, "one alone");
    }

    #[test]
    fn a_certificate_and_a_public_key_are_the_same_key() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap().pem();
        let found = keys(format!("a comment\n{}\n{certificate}", pair.public_key_pem()).as_bytes()).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], found[1]);
        assert!(matches!(&found[0].key, PublicKey::P256 { point } if point.len() == POINT_BYTES));
    }

    #[test]
    fn secrets_and_what_is_no_key_are_refused() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().public_key_pem();
        let many = format!(r#"{{"keys":[{}]}}"#, vec![p256_jwk(""); KEYS_MAX + 1].join(","));
        for (text, expected) in [
            (pair.serialize_pem().as_str(), "holds a private key"),
            (&p256_jwk(r#","d":"AA""#), "holds a secret key"),
            (r#"{"keys":[{"kty":"oct","k":"AA"}]}"#, "holds a secret key"),
            (r#"{"keys":[]}"#, "holds no public key"),
            ("{", "is not a JWK set"),
            ("nothing", "holds no public key"),
            ("", "holds no public key"),
            (&ed25519, "holds no public key"),
            (&many, "holds more than"),
        ] {
            let wrong = keys(text.as_bytes()).unwrap_err();
            assert!(wrong.what.contains(expected), "{text}: {}", wrong.what);
        }
    }
}
