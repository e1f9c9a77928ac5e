//! The server's side of TLS: one listener's certificate, which may be renewed while it is used.
//!
//! Promises: a connection that is there keeps what it was made with; the next one gets what was read last; files that
//! cannot be used change nothing. Who shows no certificate where one is required, or one that nobody vouches for, gets
//! no further than the handshake.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, UnixTime};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{AlertDescription, CertificateError, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::Stream;
use super::names::CertificateNames;
use super::revocations;
use super::tls::{TlsError, certificates, roots};
use crate::clock::Clock;
use crate::config::ListenerTls;

/// Bytes that TLS keeps for a socket that does not take them.
const UNSENT_BYTES_MAX: usize = 16 * 1024;

/// Why a client has got no further than the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFault {
    /// It showed no certificate.
    NoCertificate,
    /// Nobody we trust has signed its certificate.
    UnknownAuthority,
    /// Its certificate has ended.
    Expired,
    /// Its certificate has not begun.
    NotYetValid,
    /// Its authority has revoked its certificate.
    Revoked,
    /// Nobody says whether its certificate is revoked.
    Unknown,
    /// Another fault of its certificate.
    Certificate,
    /// It does not like ours.
    Refused,
    /// Versions or ciphers.
    NothingInCommon,
    /// It does not speak TLS.
    NotTls,
    /// It does not speak HTTP.
    NotHttp,
    /// It speaks HTTP and wants something else than a WebSocket.
    NotWebSocket,
    /// It wants a WebSocket for something else than MQTT.
    NoSubprotocol,
    /// Something else that TLS objects to.
    Failed,
    /// It went away: whoever only looks whether the port is open does.
    BrokeOff,
}

impl HandshakeFault {
    /// In the words that a person needs.
    pub fn words(self) -> &'static str {
        match self {
            HandshakeFault::NoCertificate => "it shows no certificate, and this listener requires one",
            HandshakeFault::UnknownAuthority => "its certificate is not signed by the listener's `client_ca`",
            HandshakeFault::Expired => "its certificate has expired",
            HandshakeFault::NotYetValid => "its certificate is not valid yet, or this board's clock is not set",
            HandshakeFault::Revoked => "its certificate has been revoked (`client_crl`)",
            HandshakeFault::Unknown => "no list in `client_crl` is by the authority that has signed its certificate",
            HandshakeFault::Certificate => "its certificate is not good",
            HandshakeFault::Refused => "it refuses this listener's certificate: another authority, or another name",
            HandshakeFault::NothingInCommon => "it speaks no TLS version or cipher that this listener speaks",
            HandshakeFault::NotTls => "it does not speak TLS",
            HandshakeFault::NotHttp => "it does not speak HTTP, with which a WebSocket begins",
            HandshakeFault::NotWebSocket => "it speaks HTTP, but asks for no WebSocket",
            HandshakeFault::NoSubprotocol => "its WebSocket offers neither the subprotocol mqtt nor mqttv3.1",
            HandshakeFault::Failed => "the TLS handshake failed",
            HandshakeFault::BrokeOff => "the handshake broke off",
        }
    }
}

/// One listener's TLS.
#[derive(Debug)]
pub struct TlsServer {
    current: RwLock<Arc<ServerConfig>>,
    clock: Clock,
}

/// Whether the TLS files of a listener can be used, by the same code that serves.
pub fn check_server_tls(files: &ListenerTls) -> Result<(), TlsError> {
    // Nothing is judged yet, so any clock will do.
    server_config(files, &Clock::new(crate::clock::ClockSource::Trusted)).map(|_| ())
}

impl TlsServer {
    /// Reads the files.
    pub fn new(files: &ListenerTls, clock: Clock) -> Result<TlsServer, TlsError> {
        let config = server_config(files, &clock)?;
        revocations::tell_ended(files, &clock);
        Ok(TlsServer { current: RwLock::new(Arc::new(config)), clock })
    }

    /// Reads the files again, or others, for the connections that come from now on.
    pub fn renew(&self, files: &ListenerTls) -> Result<(), TlsError> {
        let config = Arc::new(server_config(files, &self.clock)?);
        revocations::tell_ended(files, &self.clock);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// The handshake. Waits for as long as the client takes: whoever calls it bounds that.
    pub async fn accept(&self, tcp: TcpStream) -> Result<(Stream, Option<CertificateNames>), HandshakeFault> {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut stream = TlsAcceptor::from(config).accept(tcp).await.map_err(|error| fault(&error))?;
        // What is written and not sent yet: a client that does not read must show in how much we have to say.
        stream.get_mut().1.set_buffer_limit(Some(UNSENT_BYTES_MAX));
        // That there is one says that it was verified: without `client_ca` none is asked for.
        let certificates = stream.get_ref().1.peer_certificates();
        let names = certificates.and_then(<[_]>::first).map(|leaf| CertificateNames::of(leaf));
        Ok((Stream::Tls(Box::new(TlsStream::Server(stream))), names))
    }
}

/// Judges clients' certificates by the gateway's clock: on a board without one the system's shows a time before every
/// certificate, where ours shows at least one that has certainly passed.
#[derive(Debug)]
struct Judge(Clock);

impl TimeProvider for Judge {
    fn current_time(&self) -> Option<UnixTime> {
        let wall_ms = u64::try_from(self.0.now().wall_ms).unwrap_or(0);
        Some(UnixTime::since_unix_epoch(Duration::from_millis(wall_ms)))
    }
}

fn server_config(files: &ListenerTls, clock: &Clock) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_details(provider.clone(), Arc::new(Judge(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Library)?;
    let builder = match &files.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let roots = Arc::new(roots(Some(&client.ca))?);
            // By the code that looks into them at each handshake.
            let lists = revocations::lists(&client.revoked, |list| {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
                match verifier.with_crls([list.clone()]).build() {
                    Err(error @ VerifierBuilderError::InvalidCrl(_)) => Err(error.to_string()),
                    Err(_) | Ok(_) => Ok(()),
                }
            })?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = if client.is_required { verifier } else { verifier.allow_unauthenticated() };
            // One that has ended is used all the same: who is on it stays out, and nobody else is shut out because a person
            // has forgotten to renew it, or because this board's clock is wrong. It is told instead.
            let verifier = verifier.with_crls(lists);
            let unusable = |_| TlsError::NoRoots { path: client.ca.clone() };
            builder.with_client_cert_verifier(verifier.build().map_err(unusable)?)
        }
    };
    let chain = certificates("the certificate", &files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::File {
        what: "the private key",
        path: files.key.clone(),
        source,
    })?;
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Identity)?;
    // Who takes a session up again uses one ticket, and is given the next with it; each is kept in memory here.
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn fault(error: &io::Error) -> HandshakeFault {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return HandshakeFault::BrokeOff;
    };
    match error {
        rustls::Error::NoCertificatesPresented => HandshakeFault::NoCertificate,
        rustls::Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer => HandshakeFault::UnknownAuthority,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => HandshakeFault::Expired,
            CertificateError::Revoked => HandshakeFault::Revoked,
            CertificateError::UnknownRevocationStatus => HandshakeFault::Unknown,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => HandshakeFault::NotYetValid,
            _ => HandshakeFault::Certificate,
        },
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA,
        ) => HandshakeFault::Refused,
        rustls::Error::PeerIncompatible(_) => HandshakeFault::NothingInCommon,
        rustls::Error::InvalidMessage(_) => HandshakeFault::NotTls,
        _ => HandshakeFault::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::tls::server_name;
    use super::super::{Refusal, TlsFiles, late_refusal};
    use crate::clock::ClockSource;
    use crate::config::ClientCertificates;
    use crate::message::ClockState;

    /// Files `<name>-ca.pem`, `<name>.pem` and `<name>.key`: an authority and one certificate, for localhost.
    fn identity(folder: &Path, name: &str) -> (ListenerTls, TlsFiles) {
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.distinguished_name.push(DnType::CommonName, format!("authority of {name}"));
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_pem = authority.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(authority, key);
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        let write = |file: &str, text: String| {
            let path = folder.join(format!("{name}{file}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca = write("-ca.pem", authority_pem);
        let (cert, key) = (write(".pem", certificate.pem()), write(".key", key.serialize_pem()));
        let client = TlsFiles { ca: Some(ca), cert: Some(cert.clone()), key: Some(key.clone()), alpn: Vec::new() };
        (ListenerTls { cert, key, client: None }, client)
    }

    fn clock() -> Clock {
        Clock::new(ClockSource::Trusted)
    }

    /// Both ends of one handshake, and one byte each way: the server's answer, and what the client makes of it.
    async fn meet(
        server: &TlsServer,
        client: &TlsFiles,
    ) -> (Result<Option<CertificateNames>, HandshakeFault>, Result<(), Option<Refusal>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wall_ms = clock().now().wall_ms;
        let coming = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let (mut stream, names) = server.accept(tcp).await?;
            stream.write_all(b"x").await.unwrap();
            stream.flush().await.unwrap();
            Ok(names)
        };
        let going = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            let refusal = |error: io::Error| late_refusal(&error, ClockState::Synced);
            let name = server_name("localhost").unwrap();
            let mut stream = client.connector(wall_ms).await.unwrap().connect(name, tcp).await.map_err(refusal)?;
            stream.read_exact(&mut [0]).await.map_err(refusal)?;
            Ok(())
        };
        tokio::join!(coming, going)
    }

    #[tokio::test]
    async fn the_names_of_a_verified_certificate_are_known_and_an_unasked_one_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let (files, client) = identity(folder.path(), "plc7");
        let server = TlsServer::new(&files, clock()).unwrap();
        assert_eq!(meet(&server, &client).await, (Ok(None), Ok(())));
        let asking = ClientCertificates { ca: client.ca.clone().unwrap(), revoked: Vec::new(), is_required: true };
        server.renew(&ListenerTls { client: Some(asking), ..files }).unwrap();
        let names = CertificateNames { common_name: Some("plc7".to_owned()), sans: vec!["localhost".to_owned()] };
        assert_eq!(meet(&server, &client).await, (Ok(Some(names)), Ok(())));
    }

    #[tokio::test]
    async fn who_shows_no_certificate_or_a_strangers_is_refused_unless_it_is_optional() {
        let folder = tempfile::tempdir().unwrap();
        let (files, client) = identity(folder.path(), "plc7");
        let (_, stranger) = identity(folder.path(), "stranger");
        let stranger = TlsFiles { ca: client.ca.clone(), ..stranger };
        let nobody = TlsFiles { cert: None, key: None, ..client.clone() };
        for is_required in [true, false] {
            let asking = ClientCertificates { ca: client.ca.clone().unwrap(), revoked: Vec::new(), is_required };
            let server = TlsServer::new(&ListenerTls { client: Some(asking), ..files.clone() }, clock()).unwrap();
            let (seen, told) = meet(&server, &stranger).await;
            assert_eq!(seen, Err(HandshakeFault::UnknownAuthority), "optional does not mean that any will do");
            assert_eq!(told, Err(Some(Refusal::ClientCertificateRefused)));
            let expected = if is_required {
                (Err(HandshakeFault::NoCertificate), Err(Some(Refusal::ClientCertificateMissing)))
            } else {
                (Ok(None), Ok(()))
            };
            assert_eq!(meet(&server, &nobody).await, expected);
        }
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_to_the_next_client_and_one_that_cannot_be_used_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (files, old) = identity(folder.path(), "old");
        let (renewed, new) = identity(folder.path(), "new");
        let [old, new] = [old, new].map(|client| TlsFiles { cert: None, key: None, ..client });
        let server = TlsServer::new(&files, clock()).unwrap();
        assert_eq!(meet(&server, &old).await.1, Ok(()));
        let torn = ListenerTls { key: renewed.key.clone(), ..files.clone() };
        assert!(matches!(server.renew(&torn), Err(TlsError::Identity(rustls::Error::InconsistentKeys(_)))));
        std::fs::write(&files.cert, "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
        assert!(matches!(server.renew(&files), Err(TlsError::File { what: "the certificate", .. })));
        assert_eq!(meet(&server, &old).await.1, Ok(()));
        server.renew(&renewed).unwrap();
        assert_eq!(meet(&server, &new).await.1, Ok(()));
        let (seen, told) = meet(&server, &old).await;
        assert_eq!((seen, told), (Err(HandshakeFault::Refused), Err(Some(Refusal::UnknownRoot))));
    }

    #[tokio::test]
    async fn a_client_that_speaks_plain_mqtt_is_told_apart_from_one_that_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let server = TlsServer::new(&identity(folder.path(), "plc7").0, clock()).unwrap();
        for (said, expected) in [
            (&b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01a"[..], HandshakeFault::NotTls),
            (b"GET / HTTP/1.1\r\n\r\n", HandshakeFault::NotTls),
            (b"\x16\x03\x01", HandshakeFault::BrokeOff),
            (b"", HandshakeFault::BrokeOff),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (tcp, _) = listener.accept().await.unwrap();
            client.write_all(said).await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(server.accept(tcp).await.map(|_| ()), Err(expected), "{said:?}");
        }
    }
}
