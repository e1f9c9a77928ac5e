//! Does a connection that fails say which thing is to be mended? Real handshakes on loopback, certificates made here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tidegate::clock::{Clock, ClockSource};
use tidegate::config::Endpoint;
use tidegate::message::{ClockState, Stamp};
use tidegate::transport::{self, ConnectError, Refusal, Stream, TlsError, TlsFiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

const WITHIN: Duration = Duration::from_secs(20);

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

struct Leaf {
    chain_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key_pem: String,
    key: Vec<u8>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn issue(&self, name: &str, change: impl Fn(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            chain_pem: cert.pem(),
            chain: vec![cert.der().clone()],
            key_pem: key.serialize_pem(),
            key: key.serialize_der(),
        }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }
}

struct Server {
    port: u16,
    _tasks: JoinSet<()>,
}

/// Accepts TLS, says `hello`, echoes what comes.
async fn serve(leaf: &Leaf, clients: Option<&Authority>, alpn: &[&str]) -> Server {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let roots = Arc::new(authority.roots());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key.clone()));
    let mut config = builder.with_single_cert(leaf.chain.clone(), key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = acceptor.accept(tcp).await {
                let mut byte = [0; 5];
                if stream.read_exact(&mut byte).await.is_ok() {
                    stream.write_all(&byte).await.ok();
                    stream.shutdown().await.ok();
                }
            }
        }
    });
    Server { port, _tasks: tasks }
}

struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Files {
        Files { dir: tempfile::tempdir().unwrap() }
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    }
}

fn endpoint(host: &str, port: u16, tls: bool) -> Endpoint {
    Endpoint { host: host.to_owned(), port, tls, path: None }
}

/// The true time, of a clock in this state.
fn now(clock: ClockState) -> Stamp {
    Stamp { clock, ..Clock::new(ClockSource::Trusted).now() }
}

async fn connect(endpoint: &Endpoint, files: &TlsFiles) -> Result<Stream, ConnectError> {
    transport::connect(endpoint, files, now(ClockState::Synced), WITHIN).await
}

async fn refusal(endpoint: &Endpoint, files: &TlsFiles, clock: ClockState) -> Refusal {
    let error = transport::connect(endpoint, files, now(clock), WITHIN).await.unwrap_err();
    error.refusal().unwrap_or_else(|| panic!("{error:?}"))
}

async fn echo(mut stream: Stream) -> std::io::Result<String> {
    stream.write_all(b"hello").await?;
    stream.flush().await?;
    let mut answer = vec![0; 5];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn the_right_root_connects_and_carries_bytes() {
    let authority = Authority::new("root");
    let server = serve(&authority.issue("localhost", |_| {}), None, &["mqtt"]).await;
    let files = Files::new();
    let tls =
        TlsFiles { ca: Some(files.put("ca.pem", &authority.pem())), alpn: vec!["mqtt".into()], ..TlsFiles::default() };
    let stream = connect(&endpoint("localhost", server.port, true), &tls).await.unwrap();
    assert_eq!(echo(stream).await.unwrap(), "hello");
}

#[tokio::test]
async fn a_wrong_root_is_named() {
    let server = serve(&Authority::new("root").issue("localhost", |_| {}), None, &[]).await;
    let files = Files::new();
    let tls = TlsFiles { ca: Some(files.put("ca.pem", &Authority::new("other").pem())), ..TlsFiles::default() };
    let at = endpoint("localhost", server.port, true);
    assert_eq!(refusal(&at, &tls, ClockState::Synced).await, Refusal::UnknownRoot);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_named() {
    let authority = Authority::new("root");
    let server = serve(&authority.issue("elsewhere.example", |_| {}), None, &[]).await;
    let files = Files::new();
    let tls = TlsFiles { ca: Some(files.put("ca.pem", &authority.pem())), ..TlsFiles::default() };
    let at = endpoint("localhost", server.port, true);
    assert_eq!(refusal(&at, &tls, ClockState::Synced).await, Refusal::WrongName);
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_named_or_the_clock_is() {
    let authority = Authority::new("root");
    let files = Files::new();
    let tls = TlsFiles { ca: Some(files.put("ca.pem", &authority.pem())), ..TlsFiles::default() };
    let old = authority.issue("localhost", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let server = serve(&old, None, &[]).await;
    let at = endpoint("localhost", server.port, true);
    assert_eq!(refusal(&at, &tls, ClockState::Synced).await, Refusal::Expired);
    assert_eq!(refusal(&at, &tls, ClockState::Unset).await, Refusal::Clock);
    let early = authority.issue("localhost", |params| params.not_before = rcgen::date_time_ymd(2090, 1, 1));
    let server = serve(&early, None, &[]).await;
    let at = endpoint("localhost", server.port, true);
    assert_eq!(refusal(&at, &tls, ClockState::Synced).await, Refusal::NotYetValid);
    assert_eq!(refusal(&at, &tls, ClockState::Unset).await, Refusal::Clock);
}

#[tokio::test]
async fn certificates_are_judged_at_the_time_that_is_given_and_not_by_the_systems_clock() {
    let authority = Authority::new("root");
    let files = Files::new();
    let tls = TlsFiles { ca: Some(files.put("ca.pem", &authority.pem())), ..TlsFiles::default() };
    let good = authority.issue("localhost", |params| params.not_after = rcgen::date_time_ymd(2090, 1, 1));
    let server = serve(&good, None, &[]).await;
    let at = endpoint("localhost", server.port, true);
    let connect = async |wall_ms, clock| {
        let now = Stamp { wall_ms, mono_ms: 0, clock };
        transport::connect(&at, &tls, now, WITHIN).await.map(drop).map_err(|error| error.refusal())
    };
    // A board that knows no more than that 2026 has begun, and one that shows 1970 and believes it.
    assert_eq!(connect(1_767_225_600_000, ClockState::Unset).await, Ok(()));
    assert_eq!(connect(0, ClockState::Unset).await, Err(Some(Refusal::Clock)));
    assert_eq!(connect(0, ClockState::Synced).await, Err(Some(Refusal::NotYetValid)));
    assert_eq!(connect(4_000_000_000_000, ClockState::Synced).await, Err(Some(Refusal::Expired)));
}

#[tokio::test]
async fn a_client_certificate_that_is_missing_or_foreign_is_named() {
    let (authority, clients) = (Authority::new("root"), Authority::new("clients"));
    let server = serve(&authority.issue("localhost", |_| {}), Some(&clients), &[]).await;
    let at = endpoint("localhost", server.port, true);
    let files = Files::new();
    let ca = Some(files.put("ca.pem", &authority.pem()));
    let with = |leaf: &Leaf, name: &str| TlsFiles {
        ca: ca.clone(),
        cert: Some(files.put(&format!("{name}.pem"), &leaf.chain_pem)),
        key: Some(files.put(&format!("{name}.key"), &leaf.key_pem)),
        alpn: Vec::new(),
    };

    let good = with(&clients.issue("gateway", |_| {}), "good");
    assert_eq!(echo(connect(&at, &good).await.unwrap()).await.unwrap(), "hello");

    // In TLS 1.3 the client is done before the server has judged it: the refusal comes with the first read.
    let missing = TlsFiles { ca: ca.clone(), ..TlsFiles::default() };
    let error = echo(connect(&at, &missing).await.unwrap()).await.unwrap_err();
    assert_eq!(transport::late_refusal(&error, ClockState::Synced), Some(Refusal::ClientCertificateMissing));

    let foreign = with(&Authority::new("strangers").issue("gateway", |_| {}), "foreign");
    let error = echo(connect(&at, &foreign).await.unwrap()).await.unwrap_err();
    assert_eq!(transport::late_refusal(&error, ClockState::Synced), Some(Refusal::ClientCertificateRefused));
}

#[tokio::test]
async fn no_protocol_in_common_is_named() {
    let authority = Authority::new("root");
    let server = serve(&authority.issue("localhost", |_| {}), None, &["http/1.1"]).await;
    let files = Files::new();
    let tls =
        TlsFiles { ca: Some(files.put("ca.pem", &authority.pem())), alpn: vec!["mqtt".into()], ..TlsFiles::default() };
    let at = endpoint("localhost", server.port, true);
    assert_eq!(refusal(&at, &tls, ClockState::Synced).await, Refusal::NoCommonProtocol);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_before_any_connection() {
    let authority = Authority::new("root");
    let files = Files::new();
    let ca = Some(files.put("ca.pem", &authority.pem()));
    let leaf = authority.issue("gateway", |_| {});
    let (cert, key) = (files.put("c.pem", &leaf.chain_pem), files.put("c.key", &leaf.key_pem));
    let other = files.put("o.key", &authority.issue("other", |_| {}).key_pem);
    let empty = files.put("empty.pem", "no certificate here\n");
    // Nothing listens on this port: a connection would say so instead.
    let at = endpoint("localhost", 1, true);
    let setup = async |tls: TlsFiles| match connect(&at, &tls).await {
        Err(ConnectError::Setup(error)) => error,
        other => panic!("{other:?}"),
    };
    let none = TlsFiles { ca: ca.clone(), ..TlsFiles::default() };
    assert!(matches!(
        setup(TlsFiles { ca: Some(empty), ..none.clone() }).await,
        TlsError::File { what: "the roots to trust", .. }
    ));
    assert!(matches!(setup(TlsFiles { cert: Some(cert.clone()), ..none.clone() }).await, TlsError::HalfIdentity));
    let mixed = TlsFiles { cert: Some(cert.clone()), key: Some(other), ..none.clone() };
    assert!(matches!(setup(mixed).await, TlsError::Identity(_)));
    let swapped = TlsFiles { cert: Some(key.clone()), key: Some(cert), ..none.clone() };
    assert!(matches!(setup(swapped).await, TlsError::File { what: "the certificate", .. }));
    let absent = TlsFiles { ca: Some(PathBuf::from("/nowhere/ca.pem")), ..none };
    assert!(setup(absent).await.to_string().contains("/nowhere/ca.pem"));
}

#[tokio::test]
async fn a_port_without_tls_a_closed_port_and_an_unknown_name_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"this is no TLS at all, whatever the client thinks").await.unwrap();
        let mut rest = Vec::new();
        tcp.read_to_end(&mut rest).await.ok();
    });
    let files = Files::new();
    let tls = TlsFiles { ca: Some(files.put("ca.pem", &Authority::new("root").pem())), ..TlsFiles::default() };
    assert_eq!(refusal(&endpoint("127.0.0.1", port, true), &tls, ClockState::Synced).await, Refusal::Handshake);

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = connect(&endpoint("127.0.0.1", closed, false), &tls).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tcp { .. }), "{error:?}");

    let error = connect(&endpoint("no-such-host.invalid", 1883, false), &tls).await.unwrap_err();
    assert!(matches!(error, ConnectError::Dns { .. }), "{error:?}");
}
