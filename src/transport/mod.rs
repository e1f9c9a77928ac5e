//! Byte streams to and from the network: TCP, Unix sockets, TLS and WebSocket over them, through a proxy; and as whom.
//!
//! Promises: every failure names its step (address, connection, certificate, clock), because "connection failed" sends
//! a person to the wrong cabinet; nothing here waits longer than it was told to; key and certificate files are read
//! for each connection that we open, and at each reload for those that come, so that a renewed certificate needs no
//! restart. It never speaks MQTT.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use crate::config::{Endpoint, ProxyConfig, UplinkConfig};
use crate::message::{ClockState, Stamp};

pub use dates::Validity;
pub use login::{Login, LoginError, expiry_s, first_line, registering};
pub use names::CertificateNames;
pub use pacing::Pacing;
pub use proxy::ProxyError;
pub use revocations::ended_lists;
pub use server::{HandshakeFault, TlsServer, check_server_tls};
pub use unix::UnixDoor;
pub use websocket::{WebSocket, accept as accept_websocket};

pub use tls::{Refusal, TlsError, TlsFiles, check_tls, keys_match};

mod tls;

mod server;

mod names;

mod revocations;

mod websocket;

mod unix;

mod pacing;

mod dates;

mod proxy;

mod login;

pub mod jwt;

pub mod sas;

pub mod scram;

/// The next address is tried this long after the one before it, answered or not (RFC 8305, 5): a dead IPv6 route
/// must not cost the whole attempt.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// More addresses of one name are not tried.
const ADDRESSES_MAX: usize = 8;

/// Sent bytes that the peer's TCP does not acknowledge for so long end the connection.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// Silence after which the kernel asks whether the peer still lives.
const PROBE_AFTER: Duration = Duration::from_secs(30);

/// Pause between those questions.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// A connection, for either end, with or without TLS.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// A WebSocket over any of the others.
    WebSocket(Box<WebSocket>),
    /// TLS over TCP, as client or as server.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why there is no connection. Each variant is a different thing to mend.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot find the address of {host}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// Nothing at any of the addresses took the connection.
    #[error("cannot connect to {host}:{port}")]
    Tcp {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// What the last address said.
        #[source]
        source: io::Error,
    },
    /// Too slow.
    #[error("{host}:{port} did not finish the {step} in time")]
    Timeout {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// What was waited for.
        step: &'static str,
    },
    /// The proxy that stands in between.
    #[error("cannot connect to {host}:{port} by the proxy {proxy}")]
    Proxy {
        /// Host name or address behind it.
        host: String,
        /// TCP port there.
        port: u16,
        /// The proxy, as host and port.
        proxy: String,
        /// What it said.
        #[source]
        source: ProxyError,
    },
    /// The password for the proxy.
    #[error("cannot log in at the proxy")]
    ProxyLogin(#[source] LoginError),
    /// The server speaks HTTP, but no WebSocket, or not of MQTT.
    #[error("{host}:{port} is no WebSocket of MQTT: {what}")]
    WebSocket {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// What it said instead.
        what: String,
    },
    /// Certificate, key or roots on this side cannot be used.
    #[error("cannot prepare TLS")]
    Setup(#[source] TlsError),
    /// TLS failed; `refusal` says which side objected to what.
    #[error("cannot establish TLS with {host}: {refusal}")]
    Tls {
        /// Host name or address.
        host: String,
        /// What is wrong.
        refusal: Refusal,
        /// What the library said.
        #[source]
        source: io::Error,
    },
}

impl ConnectError {
    /// What TLS objected to, when it was TLS.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            ConnectError::Tls { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }
}

/// How a server is reached.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// Certificates, and what TLS offers.
    pub tls: TlsFiles,
    /// The proxy in between.
    pub proxy: Option<ProxyConfig>,
}

impl Way {
    /// As an uplink goes to one of its endpoints.
    pub fn new(config: &UplinkConfig, endpoint: &Endpoint) -> Way {
        let mut tls = TlsFiles::from(config);
        // In a WebSocket the protocol below is HTTP, which needs no name.
        if tls.alpn.is_empty() && config.http.is_some() {
            let name = (config.profile.http_alpn)(endpoint.port);
            tls.alpn = name.into_iter().map(str::to_owned).collect();
        } else if tls.alpn.is_empty() && endpoint.path.is_none() {
            let name = (config.profile.alpn)(endpoint.port, config.cert.is_some());
            tls.alpn = name.into_iter().map(str::to_owned).collect();
        }
        Way { tls, proxy: config.proxy.clone() }
    }
}

/// Connects to `endpoint` within `limit`, with TLS when the endpoint says so. Certificates are judged at `now`: one that
/// is "expired" on a board whose clock was never set is the clock's fault.
pub async fn connect(
    endpoint: &Endpoint,
    files: &TlsFiles,
    now: Stamp,
    limit: Duration,
) -> Result<Stream, ConnectError> {
    connect_by(endpoint, &Way { tls: files.clone(), proxy: None }, now, limit).await
}

/// The same by a way that may lead through a proxy. Each step may take `limit`.
pub async fn connect_by(endpoint: &Endpoint, way: &Way, now: Stamp, limit: Duration) -> Result<Stream, ConnectError> {
    let (host, port) = (endpoint.host.as_str(), endpoint.port);
    let too_slow = |step| ConnectError::Timeout { host: host.to_owned(), port, step };
    // Before the network: files that cannot be read need no connection to be found out.
    let connector =
        if endpoint.tls { Some(way.tls.connector(now.wall_ms).await.map_err(ConnectError::Setup)?) } else { None };
    let login = match &way.proxy {
        Some(proxy) => proxy_login(proxy).await.map_err(ConnectError::ProxyLogin)?,
        None => None,
    };
    let (first_host, first_port) = match &way.proxy {
        Some(proxy) => (proxy.host.as_str(), proxy.port),
        None => (host, port),
    };
    let tcp = timeout(limit, connect_tcp(first_host, first_port)).await;
    let mut tcp = tcp.map_err(|_| ConnectError::Timeout {
        host: first_host.to_owned(),
        port: first_port,
        step: "TCP handshake",
    })??;
    prepare(&tcp).map_err(|source| ConnectError::Tcp { host: host.to_owned(), port, source })?;
    if let Some(proxy) = &way.proxy {
        let login = login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
        let tunnel = timeout(limit, proxy::tunnel(&mut tcp, host, port, login)).await;
        let proxy = format!("{}:{}", proxy.host, proxy.port);
        tunnel.map_err(|_| too_slow("handshake with the proxy"))?.map_err(|source| ConnectError::Proxy {
            host: host.to_owned(),
            port,
            proxy,
            source,
        })?;
    }
    let stream = match connector {
        None => Stream::Tcp(tcp),
        Some(connector) => {
            let name = tls::server_name(host).map_err(ConnectError::Setup)?;
            let handshake =
                timeout(limit, connector.connect(name, tcp)).await.map_err(|_| too_slow("TLS handshake"))?;
            match handshake {
                Ok(stream) => Stream::Tls(Box::new(TlsStream::Client(stream))),
                Err(source) => {
                    let refusal = tls::refusal(&source, now.clock).unwrap_or(Refusal::Handshake);
                    return Err(ConnectError::Tls { host: host.to_owned(), refusal, source });
                }
            }
        }
    };
    let Some(path) = &endpoint.path else { return Ok(stream) };
    let handshake = timeout(limit, websocket::open(stream, host, port, path)).await;
    handshake.map_err(|_| too_slow("WebSocket handshake"))?.map_err(|what| ConnectError::WebSocket {
        host: host.to_owned(),
        port,
        what,
    })
}

async fn proxy_login(proxy: &ProxyConfig) -> Result<Option<(String, String)>, LoginError> {
    let Some(user) = &proxy.username else { return Ok(None) };
    let password = match &proxy.password_file {
        Some(path) => login::first_line("the password for the proxy", path).await?,
        None => bytes::Bytes::new(),
    };
    Ok(Some((user.clone(), String::from_utf8_lossy(&password).into_owned())))
}

/// The TLS meaning of an error that a stream gave *after* its handshake, `None` when it was not TLS. In TLS 1.3 the
/// client is done before the server has looked at the client's certificate (RFC 8446, 2), so a refusal of that
/// arrives with the first read.
pub fn late_refusal(error: &io::Error, clock: ClockState) -> Option<Refusal> {
    tls::refusal(error, clock)
}

/// Sets what every connection of this program needs: no delay for small packets, and an end when the peer is gone.
pub fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY))
}

async fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let dns = |source| ConnectError::Dns { host: host.to_owned(), source };
    let mut addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((tls::bare(host), port)).await.map_err(dns)?.take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        return Err(dns(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    }
    addresses.reverse();
    let mut attempts = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotConnected, "no address answered");
    loop {
        if let Some(address) = addresses.pop() {
            attempts.spawn(TcpStream::connect(address));
        }
        let next = if addresses.is_empty() {
            attempts.join_next().await
        } else {
            match timeout(NEXT_ADDRESS_AFTER, attempts.join_next()).await {
                Ok(next) => next,
                Err(_elapsed) => continue,
            }
        };
        match next {
            Some(Ok(Ok(tcp))) => return Ok(tcp),
            Some(Ok(Err(error))) => last = error,
            Some(Err(_panicked)) => {}
            None if addresses.is_empty() => {
                return Err(ConnectError::Tcp { host: host.to_owned(), port, source: last });
            }
            None => {}
        }
    }
}

/// What both ends of TLS have agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFacts {
    /// "TLS 1.3", "TLS 1.2".
    pub version: &'static str,
    /// The protocol name that the server chose.
    pub alpn: Option<String>,
    /// The other end's certificates in DER, its own first.
    pub chain: Vec<Vec<u8>>,
}

impl Stream {
    /// What TLS has agreed on; `None` where there is none.
    pub fn tls_facts(&self) -> Option<TlsFacts> {
        let stream = match self {
            Stream::Tcp(_) | Stream::Unix(_) => return None,
            Stream::WebSocket(socket) => return socket.carrier().tls_facts(),
            Stream::Tls(stream) => stream,
        };
        let (_, state) = stream.get_ref();
        let version = match state.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS",
        };
        let alpn = state.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        let chain = state.peer_certificates().unwrap_or_default().iter().map(|der| der.to_vec()).collect();
        Some(TlsFacts { version, alpn, chain })
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, into),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, into),
            Stream::WebSocket(stream) => Pin::new(stream.as_mut()).poll_read(context, into),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::WebSocket(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
            Stream::WebSocket(stream) => Pin::new(stream.as_mut()).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::WebSocket(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
