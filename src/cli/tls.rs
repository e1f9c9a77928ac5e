//! What is wrong inside the TLS files of a configuration, as problems at their places.
//!
//! The configuration says whether a file is there and who may read it; whether it can ever work is only known to the
//! code that connects, which is asked here before anything starts. A certificate that has merely expired is no
//! problem of the configuration: the gateway starts and keeps what it is given.

use std::path::Path;

use rustls::pki_types::pem;

use crate::clock::{Clock, ClockSource};
use crate::config::{Loaded, Place, Problem, TlsPlaces};
use crate::health::chain;
use crate::transport::jwt::Signer;
use crate::transport::{TlsError, check_server_tls, check_tls, ended_lists};

/// What keeps uplinks and listeners from ever speaking TLS; at most one for each.
pub(super) fn problems(loaded: &Loaded) -> Vec<Problem> {
    let nowhere = TlsPlaces::default();
    let mut problems = Vec::new();
    for (name, listener) in &loaded.config.broker.listeners {
        if let Some(Err(error)) = listener.tls.as_ref().map(check_server_tls) {
            let places = loaded.listener_places.get(name).unwrap_or(&nowhere);
            problems.push(problem(&format!("the listener `{name}`"), "client_ca", &error, places));
        }
    }
    if let Some(Err(error)) = loaded.config.web.as_ref().and_then(|web| web.tls.as_ref()).map(check_server_tls) {
        problems.push(problem("the status page", "client_ca", &error, &loaded.web_places));
    }
    for (name, uplink) in &loaded.config.uplinks {
        if let Err(error) = check_tls(uplink) {
            let places = places(loaded, name).unwrap_or(&nowhere);
            problems.push(problem(&format!("the uplink `{name}`"), "ca", &error, places));
        }
        problems.extend(uplink.jwt.as_ref().and_then(|jwt| token_problem(name, &jwt.key, places(loaded, name))));
    }
    problems
}

const LIST_WANTED: &str = "a PEM file of lists by the authorities themselves is wanted";

/// Lists of revoked certificates that have ended.
pub(super) fn warnings(loaded: &Loaded) -> Vec<Problem> {
    let nowhere = TlsPlaces::default();
    let mut warnings = Vec::new();
    for (name, listener) in &loaded.config.broker.listeners {
        let Some(client) = listener.tls.as_ref().and_then(|tls| tls.client.as_ref()) else { continue };
        let places = loaded.listener_places.get(name).unwrap_or(&nowhere);
        for (path, ended) in ended_lists(&client.revoked, &Clock::new(ClockSource::Trusted)) {
            warnings.push(Problem {
                place: places.crl.clone().or_else(|| places.table.clone()),
                what: format!("`client_crl`: a list in {} has ended at {ended}", path.display()),
                help: Some("it is used all the same; have the authority make a new one: openssl ca -gencrl".to_owned()),
            });
        }
    }
    warnings
}

fn places<'l>(loaded: &'l Loaded, uplink: &str) -> Option<&'l TlsPlaces> {
    loaded.uplink_places.get(uplink)
}

/// A key that signs no token.
fn token_problem(uplink: &str, key: &Path, places: Option<&TlsPlaces>) -> Option<Problem> {
    // Whether it can be read is known to the configuration.
    let text = std::fs::read(key).ok()?;
    let error = Signer::from_pem(&text).err()?;
    let what = format!("the uplink `{uplink}` cannot sign a token with {}: {error}", key.display());
    let help =
        "`jwt` wants a private key in PEM: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256".to_owned();
    Some(Problem { place: places.and_then(|places| places.table.clone()), what, help: Some(help) })
}

/// `ca` is what the key of the authorities is called for `whose`.
fn problem(whose: &str, ca: &str, error: &TlsError, places: &TlsPlaces) -> Problem {
    let at = |place: &Option<Place>| place.clone().or_else(|| places.table.clone());
    let (place, what, help) = match error {
        TlsError::File { what, path, source } => {
            let (key, place, content) = match *what {
                "the private key" => ("key", &places.key, "private key"),
                "the certificate" => ("cert", &places.cert, "certificate"),
                "the revoked certificates" => ("client_crl", &places.crl, "list of revoked certificates"),
                _ => (ca, &places.ca, "certificate"),
            };
            let what = match source {
                pem::Error::NoItemsFound => format!("`{key}`: {} holds no {content}", path.display()),
                other => format!("`{key}`: cannot read {}: {other}", path.display()),
            };
            let heading = match key {
                "key" => "-----BEGIN PRIVATE KEY-----",
                "client_crl" => "-----BEGIN X509 CRL-----",
                _ => "-----BEGIN CERTIFICATE-----",
            };
            (at(place), what, format!("a PEM file is wanted, with a line {heading}"))
        }
        TlsError::NoRoots { path } => {
            let what = format!("`{ca}`: {} holds no certificate that can be trusted", path.display());
            let signs = if ca == "ca" { "the server's certificate" } else { "the clients' certificates" };
            (at(&places.ca), what, format!("write the file of the authority that signs {signs}"))
        }
        TlsError::Revocations { path, why } => {
            let what = format!("`client_crl`: {} is no list of revoked certificates: {why}", path.display());
            (at(&places.crl), what, format!("{LIST_WANTED}: openssl crl -in {} -noout -text", path.display()))
        }
        TlsError::NoSystemRoots => {
            let what = format!("{whose} uses TLS, and there are no root certificates on this machine");
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
            return Problem { place: at(&None), what: format!("{whose}: {}", chain(error)), help: None };
        }
    };
    Problem { place, what, help: Some(help) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
        shown_of(&format!("[uplink.x]\nurl = \"mqtts://localhost\"\n{keys}"))
    }

    fn shown_of(tables: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        identity(folder.path(), "a");
        identity(folder.path(), "b");
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        fs::write(folder.path().join("ed25519.key"), ed25519).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(folder.path().join("ed25519.key"), mode).unwrap();
        let file = folder.path().join("c.toml");
        fs::write(&file, format!("[gateway]\nid = \"g\"\n{tables}")).unwrap();
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
            (
                "ca = \"a.pem\"\njwt = { key = \"ed25519.key\" }",
                "/c.toml:3:9: the uplink `x` cannot sign a token with /ed25519.key: the key is neither RSA",
            ),
            ("ca = \"gone.pem\"", "`ca`: cannot read /gone.pem: it does not exist\n"),
        ] {
            let text = shown(keys);
            assert!(text.contains(expected), "{keys}:\n{text}");
            assert!(text.contains("    help: ") && text.contains("\n1 problem"), "{keys}:\n{text}");
        }
    }

    #[test]
    fn the_files_of_a_listener_are_held_against_each_other_too() {
        for (tls, expected) in [
            ("cert = \"a.key\", key = \"a.key\"", "/c.toml:5:9: `cert`: /a.key holds no certificate\n"),
            ("cert = \"a.pem\", key = \"b.key\"", "/c.toml:5:25: the key does not belong to the certificate\n"),
            (
                "cert = \"a.pem\", key = \"a.key\", client_ca = \"b.key\"",
                "/c.toml:5:40: `client_ca`: /b.key holds no certificate\n",
            ),
        ] {
            let text = shown_of(&format!("[broker.listener.plant]\nbind = \"127.0.0.1:8883\"\ntls = {{ {tls} }}"));
            assert!(text.contains(expected) && text.contains("    help: "), "{tls}:\n{text}");
        }
        let good = "[broker.listener.plant]\nbind = \"127.0.0.1:8883\"\ntls = { cert = \"a.pem\", key = \"a.key\" }";
        assert_eq!(shown_of(good), "");
    }

    #[test]
    fn a_certificate_that_has_merely_expired_is_no_problem() {
        assert_eq!(shown("ca = \"a.pem\"\ncert = \"a.pem\"\nkey = \"a.key\""), "");
    }
}
