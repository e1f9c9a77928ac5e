//! The way through an HTTP proxy: `CONNECT host:port` (RFC 9110, 9.3.6), with basic authentication (RFC 7617).
//!
//! Promises: nothing of what follows the proxy's answer is swallowed; an answer has a bound; the proxy looks the name up,
//! because behind one a plant often has no names of the outside at all.

use std::io;

use base64ct::{Base64, Encoding as _};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest head of an answer.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Longest status line that is shown.
const SHOWN_MAX: usize = 100;

/// Why the proxy did not connect.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// 407
    #[error("the proxy wants a user name and a password, or others (407): see `proxy = {{ username, password_file }}`")]
    Login,
    /// Another refusal.
    #[error("the proxy refused the connection: {status}")]
    Refused {
        /// What it said, in one line.
        status: String,
    },
    /// No HTTP.
    #[error("what answers there is no HTTP proxy")]
    NotProxy,
    /// The connection to it.
    #[error("the proxy broke off")]
    Broken(#[source] io::Error),
}

/// Asks the proxy at the other end of `tcp` for `host:port`.
pub(super) async fn tunnel(
    tcp: &mut TcpStream,
    host: &str,
    port: u16,
    login: Option<(&str, &str)>,
) -> Result<(), ProxyError> {
    let host = if host.contains(':') { format!("[{}]", super::tls::bare(host)) } else { host.to_owned() };
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some((user, password)) = login {
        let encoded = Base64::encode_string(format!("{user}:{password}").as_bytes());
        request.push_str("Proxy-Authorization: Basic ");
        request.push_str(&encoded);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    tcp.write_all(request.as_bytes()).await.map_err(ProxyError::Broken)?;
    let mut answer = Vec::new();
    // Byte for byte: what stands behind the empty line belongs to the server, and this happens once a connection.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= ANSWER_BYTES_MAX {
            return Err(ProxyError::NotProxy);
        }
        answer.push(tcp.read_u8().await.map_err(ProxyError::Broken)?);
        if answer.len() == 5 && !answer.starts_with(b"HTTP/") {
            return Err(ProxyError::NotProxy);
        }
    }
    judge(&answer)
}

fn judge(answer: &[u8]) -> Result<(), ProxyError> {
    let text = String::from_utf8_lossy(answer);
    let line = text.lines().next().unwrap_or_default();
    let mut words = line.splitn(3, ' ');
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    let code: Option<u16> = words.next().and_then(|code| code.parse().ok());
    match code {
        Some(200..=299) if is_http => Ok(()),
        Some(407) if is_http => Err(ProxyError::Login),
        Some(code) if is_http => {
            let words: String =
                words.next().unwrap_or_default().chars().take(SHOWN_MAX).filter(|c| !c.is_control()).collect();
            Err(ProxyError::Refused { status: format!("{code} {words}").trim_end().to_owned() })
        }
        _ => Err(ProxyError::NotProxy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_proxy_says_becomes_what_is_to_be_mended() {
        assert!(judge(b"HTTP/1.1 200 Connection established\r\n\r\n").is_ok());
        assert!(judge(b"HTTP/1.0 200 \r\n\r\n").is_ok());
        assert!(matches!(judge(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), Err(ProxyError::Login)));
        let refused = judge(b"HTTP/1.1 403 Port 8883 is\x1b not allowed\r\n\r\n").unwrap_err().to_string();
        assert_eq!(refused, "the proxy refused the connection: 403 Port 8883 is not allowed");
        for bad in [&b"SSH-2.0-OpenSSH_9\r\n\r\n"[..], b"HTTP/1.1 two\r\n\r\n", b"\r\n\r\n", b"HTTP/2 200 ok\r\n\r\n"] {
            assert!(matches!(judge(bad), Err(ProxyError::NotProxy)), "{bad:?}");
        }
    }
}
