//! The doors: where clients come in, and what it takes until one of them can speak MQTT.
//!
//! Promises: a client that is slow, silent or strange at one door costs what its own connection costs and holds up
//! nobody else, at no door; a new certificate is shown to whoever comes next, and the connections that are there stay.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};

use super::BindError;
use super::peer::{Peer, PeerAddress};
use crate::clock::Clock;
use crate::config::{ListenerAddress, ListenerConfig, ListenerTls, ListenerTransport};
use crate::transport::{HandshakeFault, Stream, TlsError, TlsServer, UnixDoor, accept_websocket};

/// Waiting connections of a listener, in the kernel.
const BACKLOG: u32 = 1024;

/// What a listener is besides its socket.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) name: Arc<str>,
    tls: Option<TlsServer>,
    transport: ListenerTransport,
    /// It is not in the configuration any more, or is another there.
    is_shut: AtomicBool,
}

impl Door {
    fn new(name: &Arc<str>, config: &ListenerConfig, clock: &Clock) -> Result<Door, TlsError> {
        let tls = config.tls.as_ref().map(|files| TlsServer::new(files, clock.clone())).transpose()?;
        Ok(Door { name: name.clone(), tls, transport: config.transport, is_shut: AtomicBool::new(false) })
    }

    /// One without TLS.
    #[cfg(test)]
    pub(super) fn plain(name: &str) -> Arc<Door> {
        let transport = ListenerTransport::Mqtt;
        Arc::new(Door { name: Arc::from(name), tls: None, transport, is_shut: AtomicBool::new(false) })
    }

    /// Who came in by it has to go.
    pub(super) fn shut(&self) {
        self.is_shut.store(true, Ordering::Release);
    }

    pub(super) fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::Acquire)
    }
}

/// A listener that is open.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) door: Arc<Door>,
    address: ListenerAddress,
    /// Shared with the one that is to take its place at the same address.
    socket: Arc<Listening>,
}

#[derive(Debug)]
enum Listening {
    Network(TcpListener),
    Unix(UnixDoor),
}

/// The certificates of a broker that runs. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Certificates(Arc<Mutex<BTreeMap<Arc<str>, Arc<Door>>>>);

impl Certificates {
    /// Those of these doors and no others.
    pub(super) fn set(&self, doors: impl Iterator<Item = Arc<Door>>) {
        let doors = doors.filter(|door| door.tls.is_some()).map(|door| (door.name.clone(), door)).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = doors;
    }

    /// Reads a listener's files, which may be others than before, for whoever connects from now on.
    ///
    /// # Errors
    /// When they cannot be used: then the listener goes on with what it has.
    pub async fn renew(&self, listener: &str, files: &ListenerTls) -> Result<(), TlsError> {
        let door = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(listener).cloned();
        let Some(door) = door else { return Ok(()) };
        let files = files.clone();
        let read = tokio::task::spawn_blocking(move || door.tls.as_ref().map_or(Ok(()), |tls| tls.renew(&files)));
        // The task can only be lost with the runtime.
        read.await.unwrap_or(Ok(()))
    }
}

/// A connection that was accepted and has said nothing yet.
#[derive(Debug)]
pub(super) struct Caller {
    stream: Called,
    pub(super) address: PeerAddress,
    pub(super) door: Arc<Door>,
}

#[derive(Debug)]
enum Called {
    Network(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    pub(super) fn open(name: &Arc<str>, config: &ListenerConfig, clock: &Clock) -> Result<Listener, BindError> {
        let failed = |source| BindError { name: name.clone(), address: config.bind.clone(), source };
        let door = Door::new(name, config, clock).map_err(|error| failed(invalid(error)))?;
        Listener::reopen(Arc::new(door), config)
    }

    /// Whether a listener of this address may have the socket of this one.
    pub(super) fn is_at(&self, address: &ListenerAddress) -> bool {
        match (&self.address, address) {
            (ListenerAddress::Unix { path, .. }, ListenerAddress::Unix { path: other, .. }) => path == other,
            (one, other) => one == other,
        }
    }

    /// Another door before the same socket: who is about to connect waits in it meanwhile.
    pub(super) fn with(&self, name: &Arc<str>, config: &ListenerConfig, clock: &Clock) -> Result<Listener, BindError> {
        let failed = |source| BindError { name: name.clone(), address: config.bind.clone(), source };
        let door = Door::new(name, config, clock).map_err(|error| failed(invalid(error)))?;
        if let (Listening::Unix(socket), ListenerAddress::Unix { mode, .. }) = (&*self.socket, &config.bind) {
            socket.set_mode(*mode).map_err(failed)?;
        }
        Ok(Listener { door: Arc::new(door), address: config.bind.clone(), socket: self.socket.clone() })
    }

    /// Opens a listener once more that was closed.
    pub(super) fn reopen(door: Arc<Door>, config: &ListenerConfig) -> Result<Listener, BindError> {
        let socket = match &config.bind {
            ListenerAddress::Network(address) => listen(*address).map(Listening::Network),
            ListenerAddress::Unix { path, mode } => UnixDoor::open(path, *mode).map(Listening::Unix),
        };
        let failed = |source| BindError { name: door.name.clone(), address: config.bind.clone(), source };
        let socket = Arc::new(socket.map_err(failed)?);
        Ok(Listener { door, address: config.bind.clone(), socket })
    }

    /// Who may connect is as the configuration says.
    pub(super) fn reset(&self, config: &ListenerConfig) -> io::Result<()> {
        match (&*self.socket, &config.bind) {
            (Listening::Unix(socket), ListenerAddress::Unix { mode, .. }) => socket.set_mode(*mode),
            _ => Ok(()),
        }
    }

    /// Where it listens: with the port that was found where the configuration says 0.
    pub(super) fn address(&self) -> ListenerAddress {
        match &*self.socket {
            Listening::Network(socket) => socket.local_addr().map_or(self.address.clone(), ListenerAddress::Network),
            Listening::Unix(_) => self.address.clone(),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Caller> {
        let door = self.door.clone();
        match &*self.socket {
            Listening::Network(socket) => {
                let (stream, address) = socket.accept().await?;
                Ok(Caller { stream: Called::Network(stream), address: PeerAddress::Network(address), door })
            }
            Listening::Unix(socket) => {
                let (stream, uid) = socket.accept().await?;
                Ok(Caller { stream: Called::Unix(stream), address: PeerAddress::Unix { uid }, door })
            }
        }
    }
}

impl Caller {
    /// What stands before MQTT at this door. No message of a WebSocket may be longer than `message_bytes_max`.
    pub(super) async fn come_in(self, message_bytes_max: usize) -> Result<(Stream, Peer), HandshakeFault> {
        let Caller { stream, address, door } = self;
        let (stream, certificate) = match (stream, &door.tls) {
            (Called::Unix(stream), _) => (Stream::Unix(stream), None),
            (Called::Network(stream), tls) => {
                // Small answers must not wait for more of them; where that cannot be set they come all the same.
                let _slower = stream.set_nodelay(true);
                match tls {
                    Some(tls) => tls.accept(stream).await?,
                    None => (Stream::Tcp(stream), None),
                }
            }
        };
        let stream = match door.transport {
            ListenerTransport::Mqtt => stream,
            ListenerTransport::WebSocket => accept_websocket(stream, message_bytes_max).await?,
        };
        let peer = Peer {
            address,
            listener: door.name.clone(),
            is_encrypted: door.tls.is_some(),
            certificate: certificate.map(Arc::new),
        };
        Ok((stream, peer))
    }
}

fn invalid(error: TlsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for the sockets of the last run.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
