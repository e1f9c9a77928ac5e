//! Certificates made for one test: an authority, a server's and a client's.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// An authority with a server certificate for localhost, 127.0.0.1 and cloud.example, and a client certificate, as PEM files.
#[derive(Clone)]
pub struct Certificates {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// Its key.
    pub ca_key: PathBuf,
    /// The server's certificate.
    pub server_cert: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// The client's certificate, CN as given.
    pub client_cert: PathBuf,
    /// The client's key.
    pub client_key: PathBuf,
}

impl Certificates {
    /// Makes them under `folder`, whose name tells authorities apart.
    pub fn make(folder: &Path, client_name: &str) -> Certificates {
        Certificates::make_with(folder, client_name, |_| {}, |_| {})
    }

    /// The same with something changed in the server's and the client's certificate.
    pub fn make_with(
        folder: &Path,
        client_name: &str,
        change_server: impl Fn(&mut CertificateParams),
        change_client: impl Fn(&mut CertificateParams),
    ) -> Certificates {
        fs::create_dir_all(folder).unwrap();
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        let name = format!("Test authority {}", folder.file_name().unwrap().to_string_lossy());
        authority.distinguished_name.push(DnType::CommonName, name);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_cert = authority.self_signed(&authority_key).unwrap();
        let ca_key = authority_key.serialize_pem();
        let issuer = Issuer::new(authority, authority_key);

        let server_key = KeyPair::generate().unwrap();
        let mut server = CertificateParams::new(["localhost", "cloud.example"].map(str::to_owned)).unwrap();
        server.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        server.distinguished_name.push(DnType::CommonName, "localhost");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change_server(&mut server);
        let server_cert = server.signed_by(&server_key, &issuer).unwrap();

        let client_key = KeyPair::generate().unwrap();
        let mut client = CertificateParams::new(Vec::new()).unwrap();
        client.distinguished_name.push(DnType::CommonName, client_name);
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change_client(&mut client);
        let client_cert = client.signed_by(&client_key, &issuer).unwrap();

        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            // The gateway refuses keys that others can read.
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            path
        };
        Certificates {
            ca: write("ca.pem", authority_cert.pem()),
            ca_key: write("ca.key", ca_key),
            server_cert: write("server.pem", server_cert.pem()),
            server_key: write("server.key", server_key.serialize_pem()),
            client_cert: write("client.pem", client_cert.pem()),
            client_key: write("client.key", client_key.serialize_pem()),
        }
    }
}
