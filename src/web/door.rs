//! Where the page is served, and to whom: its socket, TLS before it, and the question who somebody is.
//!
//! Who is asked is asked by HTTP Basic (RFC 7617), over TLS elsewhere than on loopback. The page only shows, so that there
//! is nothing that another page could make a browser do in somebody's name; and a program that reads `/metrics` needs no
//! session, no cookie and no page to log in. A password is worked out once in the life of the process, beside everything else.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64ct::{Base64, Encoding as _};
use tokio::net::{TcpListener, TcpStream};

use super::WebError;
use crate::broker::{Access, NotLetIn};
use crate::clock::Clock;
use crate::config::{AccessConfig, TopicRights, UserConfig, WebConfig};
use crate::health::Health;
use crate::transport::{HandshakeFault, Stream, TlsServer};

/// Longest name and password together, in base64.
const CREDENTIALS_BYTES_MAX: usize = 2048;

/// A page that is open.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) config: WebConfig,
    pub(super) keeper: Keeper,
}

/// What stands between a socket and the page. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    pub(super) tls: Option<Arc<TlsServer>>,
    /// `None`: whoever is on this machine is let in.
    access: Option<Access>,
}

impl Keeper {
    pub(super) fn new(config: &WebConfig, clock: &Clock) -> Result<Keeper, WebError> {
        let failed = |error| WebError::new(config.bind, io::Error::new(io::ErrorKind::InvalidData, error));
        let tls = config.tls.as_ref().map(|files| TlsServer::new(files, clock.clone())).transpose();
        let rights = TopicRights::default();
        let user = |hash: &_| UserConfig {
            password: Some(Clone::clone(hash)),
            certificate: None,
            by_token: false,
            rights: rights.clone(),
        };
        let users: BTreeMap<Arc<str>, UserConfig> =
            config.users.iter().map(|(name, hash)| (name.clone(), user(hash))).collect();
        // With counters of its own: those of the broker are about its clients.
        let access = || {
            let access = AccessConfig { users: users.clone(), anonymous: None, tokens: None };
            Access::new(&access, Health::default(), clock.clone())
        };
        Ok(Keeper { tls: tls.map_err(failed)?.map(Arc::new), access: (!users.is_empty()).then(access) })
    }

    /// What comes before HTTP.
    pub(super) async fn accept(&self, socket: TcpStream) -> Result<Stream, HandshakeFault> {
        match &self.tls {
            None => Ok(Stream::Tcp(socket)),
            Some(tls) => Ok(tls.accept(socket).await?.0),
        }
    }

    /// Whether this request is from somebody who may see the page; else the answer to it.
    async fn admit(&self, headers: &HeaderMap, from: SocketAddr) -> Result<(), Response> {
        let Some(access) = &self.access else {
            // A page of somebody else that has its own name point here (DNS rebinding) asks by that name.
            return match is_for_us(headers) {
                true => Ok(()),
                false => Err((StatusCode::FORBIDDEN, "ask for this page by its address: http://127.0.0.1:9080\n")
                    .into_response()),
            };
        };
        let Some((name, password)) = credentials(headers) else { return Err(asked_for()) };
        match access.log_in("web", from, &name, &password).await {
            Ok(()) => Ok(()),
            Err(NotLetIn::Wrong) => Err(asked_for()),
            Err(NotLetIn::ForNow) => {
                let again = [(header::RETRY_AFTER, HeaderValue::from_static("10"))];
                Err((StatusCode::TOO_MANY_REQUESTS, again, "too many wrong passwords: wait a little\n").into_response())
            }
        }
    }
}

fn asked_for() -> Response {
    let how = HeaderValue::from_static("Basic realm=\"Tidegate\", charset=\"UTF-8\"");
    let what = "a name and a password of [web.user.<name>] are needed\n";
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, how)], what).into_response()
}

/// Name and password of a request.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let written = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = written.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > CREDENTIALS_BYTES_MAX {
        return None;
    }
    let decoded = Base64::decode_vec(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let (name, password) = decoded.split_at(colon);
    Some((String::from_utf8(name.to_vec()).ok()?, password.get(1..)?.to_vec()))
}

/// Lets in who may see the page, and tells the browser what this page may do.
pub(super) async fn guard(
    State(keeper): State<Keeper>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let mut answer = match keeper.admit(request.headers(), from).await {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal,
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn is_for_us(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(name, _)| name),
        None => host.split(':').next(),
    };
    name.is_some_and(|name| name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Option<(String, Vec<u8>)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        credentials(&headers)
    }

    #[test]
    fn name_and_password_are_what_stands_before_and_behind_the_first_colon() {
        // RFC 7617, section 2.
        let found = of("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==").unwrap();
        assert_eq!((found.0.as_str(), found.1.as_slice()), ("Aladdin", "open sesame".as_bytes()));
        assert_eq!(of("basic YTpiOmM=").unwrap(), ("a".to_owned(), b"b:c".to_vec()));
        for wrong in ["Basic", "Basic !", "Basic YQ==", "Bearer YTpi", "", "Basic /zo="] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!(of(&format!("Basic {}", "QUFB".repeat(1000))), None, "bounded");
    }
}
