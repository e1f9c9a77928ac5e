//! What is wrong inside the TLS files of a configuration, as problems at their places.
//!
//! The configuration says whether a file is there and who may read it; whether it can ever work is only known to the
//! code that connects, which is asked here before anything starts. A certificate that has merely expired is no
//! problem of the configuration: the gateway starts and keeps what it is given.

use rustls::pki_types::pem;

use crate::config::{Loaded, Place, Problem, UplinkConfig, UplinkPlaces};
use crate::health::chain;
use crate::transport::{TlsError, check_tls};

/// What keeps the uplinks from ever speaking TLS; at most one for each.
pub(super) fn problems(loaded: &Loaded) -> Vec<Problem> {
    let nowhere = UplinkPlaces::default();
    let of_uplink = |(name, uplink): (&std::sync::Arc<str>, &UplinkConfig)| {
        let error = check_tls(uplink).err()?;
        Some(problem(name, &error, loaded.uplink_places.get(name).unwrap_or(&nowhere)))
    };
    loaded.config.uplinks.iter().filter_map(of_uplink).collect()
}

fn problem(uplink: &str, error: &TlsError, places: &UplinkPlaces) -> Problem {
    let at = |place: &Option<Place>| place.clone().or_else(|| places.table.clone());
    let (place, what, help) = match error {
        TlsError::File { what, path, source } => {
            let (key, place, content) = match *what {
                "the private key" => ("key", &places.key, "private key"),
                "the certificate" => ("cert", &places.cert, "certificate"),
                _ => ("ca", &places.ca, "certificate"),
            };
            let what = match source {
                pem::Error::NoItemsFound => format!("`{key}`: {} holds no {content}", path.display()),
                other => format!("`{key}`: cannot read {}: {other}", path.display()),
            };
            let heading = if key == "key" { "-----BEGIN PRIVATE KEY-----" } else { "-----BEGIN CERTIFICATE-----" };
            (at(place), what, format!("a PEM file is wanted, with a line {heading}"))
        }
        TlsError::NoRoots { path } => {
            let what = format!("`ca`: {} holds no certificate that can be trusted", path.display());
            (at(&places.ca), what, "write the file of the authority that signs the server's certificate".to_owned())
        }
        TlsError::NoSystemRoots => {
            let what = format!("the uplink `{uplink}` uses TLS, and there are no root certificates on this machine");
            (at(&None), what, "apt-get install ca-certificates, or set `ca`".to_owned())
        }
        TlsError::Identity(rustls::Error::InconsistentKeys(_)) => {
            let what = "the key does not belong to the certificate".to_owned();
            (
                at(&places.key),
                what,
                "`cert` and `key` must be made together: one of the two files is another's".to_owned(),
            )
        }
        TlsError::Identity(_) => {
            let help = "both must be PEM files, the key of a kind that TLS knows: RSA, ECDSA or Ed25519".to_owned();
            (at(&places.cert), chain(error), help)
        }
        TlsError::HalfIdentity | TlsError::ServerName { .. } | TlsError::Library(_) => {
            return Problem { place: at(&None), what: format!("the uplink `{uplink}`: {}", chain(error)), help: None };
        }
    };
    Problem { place, what, help: Some(help) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    use crate::config::{LoadRequest, load, render};

    /// A self-signed certificate and its key, as PEM files with the names `name.pem` and `name.key`.
    fn identity(folder: &Path, name: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        // Long over: that is for the handshake to judge, by a clock that is set.
        parameters.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let certificate = parameters.self_signed(&key).unwrap();
        fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        let key_path = folder.join(format!("{name}.key"));
        fs::write(&key_path, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn shown(keys: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        identity(folder.path(), "a");
        identity(folder.path(), "b");
        let file = folder.path().join("c.toml");
        fs::write(&file, format!("[gateway]\nid = \"g\"\n[uplink.x]\nurl = \"mqtts://localhost\"\n{keys}")).unwrap();
        let request =
            LoadRequest { root: folder.path().to_owned(), config: Some(file), credentials_dir: None, kept_id: None };
        let problems = match load(&request) {
            Ok(loaded) => problems(&loaded),
            Err(problems) => problems,
        };
        render(&problems, &[]).replace(&folder.path().display().to_string(), "")
    }

    #[test]
    fn files_that_can_never_work_are_problems_at_their_places() {
        for (keys, expected) in [
            ("ca = \"a.key\"", "/c.toml:5:1: `ca`: /a.key holds no certificate\n"),
            ("ca = \"a.pem\"\ncert = \"a.key\"\nkey = \"a.key\"", "/c.toml:6:1: `cert`: /a.key holds no certificate\n"),
            (
                "ca = \"a.pem\"\ncert = \"a.pem\"\nkey = \"b.key\"",
                "/c.toml:7:1: the key does not belong to the certificate\n",
            ),
            ("ca = \"gone.pem\"", "`ca`: cannot read /gone.pem: it does not exist\n"),
        ] {
            let text = shown(keys);
            assert!(text.contains(expected), "{keys}:\n{text}");
            assert!(text.contains("    help: ") && text.contains("\n1 problem"), "{keys}:\n{text}");
        }
    }

    #[test]
    fn a_certificate_that_has_merely_expired_is_no_problem() {
        assert_eq!(shown("ca = \"a.pem\"\ncert = \"a.pem\"\nkey = \"a.key\""), "");
    }
}
