//! As whom a gateway logs in: what its files say at this moment, read anew for each connection.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use thiserror::Error;
use tokio::io::AsyncReadExt as _;

use super::jwt::{self, Claims, JwtError, Signer};
use super::sas::{self, KeyError};
use super::scram::{Scram, ScramError};
use crate::config::clouds::{authorizer_username, azure_registration, azure_resource};
use crate::config::{AuthorizerConfig, DpsConfig, Endpoint, JwtConfig, SasConfig, ScramHash, UplinkConfig};
use crate::message::Stamp;

/// Longest file of a secret that is read.
const SECRET_BYTES_MAX: u64 = 65_535;

/// Why nobody can log in.
#[derive(Debug, Error)]
pub enum LoginError {
    /// A file is not there any more, or not to be read.
    #[error("cannot read {what} from {}", path.display())]
    File {
        /// "the password", "the key of the token".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key signs nothing.
    #[error("cannot make a token with the key in {}", path.display())]
    Token {
        /// The file of the key.
        path: PathBuf,
        /// Why.
        #[source]
        source: JwtError,
    },
    /// The key makes no signature.
    #[error("cannot sign with the key in {}", path.display())]
    Signature {
        /// The file of the key.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// Name and password are not for this.
    #[error("cannot log in by SCRAM")]
    Scram(#[source] ScramError),
}

/// What CONNECT says of the client.
#[derive(Debug, Default)]
pub struct Login {
    /// User name.
    pub username: Option<String>,
    /// Password, or a token in its place.
    pub password: Option<Bytes>,
    /// Enhanced authentication: its method and, instead of a password, its data.
    pub auth: Option<(String, Bytes)>,
    /// The rest of that, where the cloud asks and is to prove itself.
    pub scram: Option<Scram>,
    /// When the password ends, in milliseconds since 1970.
    pub expires_ms: Option<i64>,
}

impl Login {
    /// Reads the files of an uplink, and signs a token where it wants one.
    pub async fn read(config: &UplinkConfig, endpoint: &Endpoint, now: Stamp) -> Result<Login, LoginError> {
        if let Some(sas) = &config.sas {
            return signed(config, sas, endpoint, now).await;
        }
        let password = match (&config.jwt, &config.password_file) {
            (Some(jwt), _) => Some(Bytes::from(token(jwt, now).await?)),
            (None, Some(path)) => Some(first_line("the password", path).await?),
            (None, None) => None,
        };
        let mut expires_s = password.as_deref().and_then(expiry_s);
        let mut username = own_username(config, endpoint);
        if let Some(authorizer) = &config.authorizer {
            let (asking, token_expires_s) = asked(authorizer, username.as_deref()).await?;
            username = Some(asking);
            expires_s = expires_s.into_iter().chain(token_expires_s).min();
        }
        if let Some(method) = &config.auth_method
            && let Some(hash) = ScramHash::of(method)
        {
            let (name, password) = (username.as_deref().unwrap_or_default(), password.unwrap_or_default());
            let scram = Scram::new(hash, name, password).map_err(LoginError::Scram)?;
            let auth = Some((method.clone(), scram.first()));
            return Ok(Login { username, auth, scram: Some(scram), ..Login::default() });
        }
        let (password, auth) = match (&config.auth_method, password) {
            (Some(method), Some(token)) => (None, Some((method.clone(), token))),
            (_, password) => (password, None),
        };
        let expires_ms = expires_s.map(|s| s.saturating_mul(1000));
        Ok(Login { username, password, auth, expires_ms, ..Login::default() })
    }
}

/// As whom a device asks Azure's provisioning service for its hub.
pub async fn registering(config: &UplinkConfig, dps: &DpsConfig, now: Stamp) -> Result<Login, LoginError> {
    let (username, resource, policy) = azure_registration(&dps.id_scope, &config.client_id);
    let mut login = Login { username: Some(username), ..Login::default() };
    if let Some(sas) = &config.sas {
        let (token, expires_s) = signature(sas, &resource, now).await?;
        login.password = Some(Bytes::from(format!("{token}&skn={policy}")));
        login.expires_ms = Some(expires_s.saturating_mul(1000));
    }
    Ok(login)
}

fn own_username(config: &UplinkConfig, endpoint: &Endpoint) -> Option<String> {
    config.username.clone().or_else(|| Some((config.profile.username?)(&endpoint.host, &config.client_id)))
}

/// By a signature that is made now.
async fn signed(config: &UplinkConfig, sas: &SasConfig, endpoint: &Endpoint, now: Stamp) -> Result<Login, LoginError> {
    let (token, expires_s) = signature(sas, &azure_resource(&endpoint.host, &config.client_id), now).await?;
    let username = own_username(config, endpoint);
    let expires_ms = Some(expires_s.saturating_mul(1000));
    Ok(Login { username, password: Some(Bytes::from(token)), expires_ms, ..Login::default() })
}

/// A signature for a resource, and when it ends, in seconds since 1970.
async fn signature(sas: &SasConfig, resource: &str, now: Stamp) -> Result<(String, i64), LoginError> {
    let key = first_line("the device's key", &sas.key).await?;
    let lifetime_s = i64::try_from(sas.lifetime.as_secs()).unwrap_or(i64::MAX);
    let expires_s = now.wall_ms.div_euclid(1000).saturating_add(lifetime_s);
    let derived = |id: &String| sas::derived(&key, id).map(Bytes::from);
    let own = sas.derived_for.as_ref().map_or_else(|| Ok(key.clone()), derived);
    let token = own.and_then(|own| sas::token(resource, &own, expires_s));
    let token = token.map_err(|source| LoginError::Signature { path: sas.key.clone(), source })?;
    Ok((token, expires_s))
}

/// The user name that asks for an authoriser, and when its token ends.
async fn asked(config: &AuthorizerConfig, username: Option<&str>) -> Result<(String, Option<i64>), LoginError> {
    let mut texts = [None, None];
    let files = [("the token", &config.token_file), ("the token's signature", &config.signature_file)];
    for ((what, path), text) in files.into_iter().zip(&mut texts) {
        if let Some(path) = path {
            *text = Some(String::from_utf8_lossy(&first_line(what, path).await?).into_owned());
        }
    }
    let [token, signature] = texts;
    let expires_s = token.as_deref().and_then(|token| jwt::expiry_s(token.as_bytes()));
    let token = config.token_key.as_deref().zip(token.as_deref());
    Ok((authorizer_username(username, config.name.as_deref(), token, signature.as_deref()), expires_s))
}

async fn token(config: &JwtConfig, now: Stamp) -> Result<String, LoginError> {
    let pem = whole("the key of the token", &config.key).await?;
    let issued_at_s = now.wall_ms.div_euclid(1000);
    let lifetime_s = i64::try_from(config.lifetime.as_secs()).unwrap_or(i64::MAX);
    let claims = Claims {
        audience: config.audience.clone(),
        issuer: config.issuer.clone(),
        subject: config.subject.clone(),
        issued_at_s,
        expires_at_s: issued_at_s.saturating_add(lifetime_s),
    };
    let key_id = config.key_id.clone();
    // An RSA key of 4096 bits signs for a while on a small board.
    let signed = tokio::task::spawn_blocking(move || Signer::from_pem(&pem)?.sign(&claims, key_id.as_deref())).await;
    let fault = |source| LoginError::Token { path: config.key.clone(), source };
    signed.map_err(|_gone| fault(JwtError::Sign))?.map_err(fault)
}

/// When a password ends, in seconds since 1970, where it is a token or a signature that says so.
pub fn expiry_s(password: &[u8]) -> Option<i64> {
    jwt::expiry_s(password).or_else(|| sas::expiry_s(password))
}

/// The first line of a file with a secret: most editors put a line end behind it.
pub async fn first_line(what: &'static str, path: &Path) -> Result<Bytes, LoginError> {
    let bytes = whole(what, path).await?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(Bytes::copy_from_slice(line.strip_suffix(b"\r").unwrap_or(line)))
}

async fn whole(what: &'static str, path: &Path) -> Result<Vec<u8>, LoginError> {
    let read = async {
        let file = tokio::fs::File::open(path).await?;
        let mut bytes = Vec::new();
        file.take(SECRET_BYTES_MAX).read_to_end(&mut bytes).await?;
        Ok(bytes)
    };
    read.await.map_err(|source| LoginError::File { what, path: path.to_owned(), source })
}
