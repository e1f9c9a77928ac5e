//! TLS settings from files, and what a failed handshake means for a person.
//!
//! Promises: `check` and the running gateway use the same code; the library's errors become one of a few words that
//! say what to mend; `ring` is named as the provider, so that no default of another crate is ever picked up.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use crate::config::UplinkConfig;
use crate::message::ClockState;

/// Where the client's side of TLS comes from. Read for each connection.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// PEM file of the roots to trust; `None` = the system's.
    pub ca: Option<PathBuf>,
    /// PEM file of our certificate chain.
    pub cert: Option<PathBuf>,
    /// PEM file of our private key.
    pub key: Option<PathBuf>,
    /// Protocol names to offer (RFC 7301), in order.
    pub alpn: Vec<String>,
}

impl From<&UplinkConfig> for TlsFiles {
    fn from(config: &UplinkConfig) -> TlsFiles {
        TlsFiles {
            ca: config.ca.clone(),
            cert: config.cert.clone(),
            key: config.key.clone(),
            alpn: config.alpn.clone(),
        }
    }
}

/// Why our own side of TLS cannot be used. Not fatal while running: a file may be put right, and is read again.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A PEM file cannot be read, or holds nothing of the kind.
    #[error("cannot read {what} from {}", path.display())]
    File {
        /// "the roots to trust", "the certificate", "the private key", "the revoked certificates".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// The roots file holds no certificate that can be used.
    #[error("{} holds no certificate that can be trusted", path.display())]
    NoRoots {
        /// The file.
        path: PathBuf,
    },
    /// A list of revoked certificates is none that can be used.
    #[error("cannot use {} as a list of revoked certificates: {why}", path.display())]
    Revocations {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system has no roots: a board without the package ca-certificates.
    #[error("the system has no root certificates; install ca-certificates or set `ca`")]
    NoSystemRoots,
    /// Only one of certificate and key is set.
    #[error("`cert` and `key` must be set together")]
    HalfIdentity,
    /// Certificate and key do not belong together, or the key is of no kind that is known.
    #[error("the certificate and the private key cannot be used together")]
    Identity(#[source] rustls::Error),
    /// Not a host name and not an address.
    #[error("{host:?} cannot be a server name in TLS")]
    ServerName {
        /// What was written.
        host: String,
    },
    /// The library does not start.
    #[error("cannot set up TLS")]
    Library(#[source] rustls::Error),
}

/// What TLS objected to, in the words that a person needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The server's certificate is signed by nobody we trust.
    #[error("the server's certificate is not signed by a trusted root (wrong `ca`?)")]
    UnknownRoot,
    /// The server's certificate has ended.
    #[error("the server's certificate has expired")]
    Expired,
    /// The server's certificate has not begun.
    #[error("the server's certificate is not valid yet")]
    NotYetValid,
    /// Validity cannot be judged: the wall clock of this board was never set.
    #[error("this board's clock is not set, so the server's certificate cannot be judged")]
    Clock,
    /// The certificate is for another name.
    #[error("the server's certificate is for another name")]
    WrongName,
    /// The server asked for a certificate and got none.
    #[error("the server wants a client certificate (`cert` and `key`)")]
    ClientCertificateMissing,
    /// The server did not take ours.
    #[error("the server refused the client certificate")]
    ClientCertificateRefused,
    /// Its time is over, by the server's clock.
    #[error("the server refused the client certificate: it has expired")]
    ClientCertificateExpired,
    /// No ALPN protocol in common.
    #[error("the server speaks none of the protocols in `alpn`")]
    NoCommonProtocol,
    /// Another fault of the server's certificate.
    #[error("the server's certificate is not good")]
    Certificate,
    /// Anything else: usually no TLS at all on that port.
    #[error("the handshake failed (is it a TLS port?)")]
    Handshake,
}

/// Whether the TLS files of `config` can be used, by the same code that connects. `Ok` when no endpoint uses TLS.
pub fn check_tls(config: &UplinkConfig) -> Result<(), TlsError> {
    for endpoint in config.endpoints.iter().filter(|endpoint| endpoint.tls) {
        server_name(&endpoint.host)?;
        // Nothing is judged yet, so the time is of no account.
        client_config(&TlsFiles::from(config), 0)?;
        if let Some(provision) = &config.provision {
            let (cert, key) = (Some(provision.claim_cert.clone()), Some(provision.claim_key.clone()));
            client_config(&TlsFiles { cert, key, ..TlsFiles::from(config) }, 0)?;
        }
    }
    Ok(())
}

impl TlsFiles {
    /// Reads the files; off the runtime's threads, because the system's roots are some hundred files.
    pub(super) async fn connector(&self, wall_ms: i64) -> Result<TlsConnector, TlsError> {
        let files = self.clone();
        let built = tokio::task::spawn_blocking(move || client_config(&files, wall_ms)).await;
        match built {
            Ok(config) => Ok(TlsConnector::from(Arc::new(config?))),
            Err(_gone) => Err(TlsError::Library(rustls::Error::General("the runtime is stopping".to_owned()))),
        }
    }
}

/// `host` without the brackets that an IPv6 address has in a URL.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

/// `host` as SNI and as the name to check.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(bare(host).to_owned()).map_err(|_| TlsError::ServerName { host: host.to_owned() })
}

/// What `error` of a TLS stream means, or `None` when it does not come from TLS.
pub(super) fn refusal(error: &io::Error, clock: ClockState) -> Option<Refusal> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let refusal = match error {
        rustls::Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer => Refusal::UnknownRoot,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                when_trusted(clock, Refusal::Expired)
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                when_trusted(clock, Refusal::NotYetValid)
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Refusal::WrongName,
            _ => Refusal::Certificate,
        },
        rustls::Error::NoApplicationProtocol
        | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Refusal::NoCommonProtocol,
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => Refusal::ClientCertificateMissing,
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => Refusal::ClientCertificateRefused,
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => Refusal::ClientCertificateExpired,
        _ => Refusal::Handshake,
    };
    Some(refusal)
}

fn when_trusted(clock: ClockState, refusal: Refusal) -> Refusal {
    if clock == ClockState::Unset { Refusal::Clock } else { refusal }
}

/// The moment at which certificates are judged. Not the system's clock: on a board without one that shows a time before
/// every certificate, where ours shows at least one that has certainly passed.
#[derive(Debug)]
struct JudgedAt(UnixTime);

impl TimeProvider for JudgedAt {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

fn client_config(files: &TlsFiles, wall_ms: i64) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let now = UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(wall_ms).unwrap_or(0)));
    let builder = ClientConfig::builder_with_details(provider, Arc::new(JudgedAt(now)))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Library)?
        .with_root_certificates(roots(files.ca.as_deref())?);
    let mut config = match (&files.cert, &files.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let chain = certificates("the certificate", cert)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::File {
                what: "the private key",
                path: key.clone(),
                source,
            })?;
            builder.with_client_auth_cert(chain, key).map_err(TlsError::Identity)?
        }
        _ => return Err(TlsError::HalfIdentity),
    };
    config.alpn_protocols = files.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(config)
}

/// Whether a private key, as PEM, is the one of a certificate.
pub fn keys_match(certificate: &CertificateDer<'_>, key_pem: &str) -> bool {
    let Ok(key) = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()) else { return false };
    let Ok(key) = rustls::crypto::ring::sign::any_supported_type(&key) else { return false };
    CertifiedKey::new(vec![certificate.clone().into_owned()], key).keys_match().is_ok()
}

pub(super) fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let (added, _unusable) = roots.add_parsable_certificates(certificates("the roots to trust", path)?);
            if added == 0 {
                return Err(TlsError::NoRoots { path: path.to_owned() });
            }
        }
        None => {
            let (added, _unusable) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if added == 0 {
                return Err(TlsError::NoSystemRoots);
            }
        }
    }
    Ok(roots)
}

pub(super) fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fault = |source| TlsError::File { what, path: path.to_owned(), source };
    let found = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(fault)?;
    if found.is_empty() {
        return Err(fault(pem::Error::NoItemsFound));
    }
    Ok(found)
}
