//! The doors: where clients come in, and what it takes until one of them can speak MQTT.
//!
//! Promises: a client that is slow, silent or strange at one door costs what its own connection costs and holds up
//! nobody else, at no door; a new certificate is shown to whoever comes next, and the connections that are there stay.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::BindError;
use super::peer::{Peer, PeerAddress};
use crate::clock::Clock;
use crate::config::{ListenerAddress, ListenerConfig, ListenerTls};
use crate::transport::{HandshakeFault, Stream, TlsError, TlsServer};

/// Waiting connections of a listener, in the kernel.
const BACKLOG: u32 = 1024;

/// What a listener is besides its socket.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) name: Arc<str>,
    pub(super) tls: Option<TlsServer>,
}

/// A listener that is open.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) door: Arc<Door>,
    socket: TcpListener,
}

/// The certificates of a broker that runs.
#[derive(Debug, Clone)]
pub struct Certificates {
    doors: BTreeMap<Arc<str>, Arc<Door>>,
}

impl Certificates {
    pub(super) fn of<'l>(listeners: impl Iterator<Item = &'l Listener>) -> Certificates {
        let doors = listeners.filter(|listener| listener.door.tls.is_some());
        Certificates { doors: doors.map(|listener| (listener.door.name.clone(), listener.door.clone())).collect() }
    }

    /// Reads a listener's files, which may be others than before, for whoever connects from now on.
    ///
    /// # Errors
    /// When they cannot be used: then the listener goes on with what it has.
    pub async fn renew(&self, listener: &str, files: &ListenerTls) -> Result<(), TlsError> {
        let Some(door) = self.doors.get(listener).cloned() else { return Ok(()) };
        let files = files.clone();
        let read = tokio::task::spawn_blocking(move || door.tls.as_ref().map_or(Ok(()), |tls| tls.renew(&files)));
        // The task can only be lost with the runtime.
        read.await.unwrap_or(Ok(()))
    }
}

/// A connection that was accepted and has said nothing yet.
#[derive(Debug)]
pub(super) struct Caller {
    stream: TcpStream,
    pub(super) address: PeerAddress,
    pub(super) door: Arc<Door>,
}

impl Listener {
    pub(super) fn open(name: &Arc<str>, config: &ListenerConfig, clock: &Clock) -> Result<Listener, BindError> {
        let failed = |source| BindError { name: name.clone(), address: config.bind.clone(), source };
        let tls = config.tls.as_ref().map(|files| TlsServer::new(files, clock.clone())).transpose();
        let tls = tls.map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let socket = match &config.bind {
            ListenerAddress::Network(address) => listen(*address).map_err(failed)?,
            ListenerAddress::Unix { .. } => return Err(failed(io::ErrorKind::Unsupported.into())),
        };
        Ok(Listener { door: Arc::new(Door { name: name.clone(), tls }), socket })
    }

    /// Where it listens on the network.
    pub(super) fn local_addr(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    pub(super) async fn accept(&self) -> io::Result<Caller> {
        let (stream, address) = self.socket.accept().await?;
        Ok(Caller { stream, address: PeerAddress::Network(address), door: self.door.clone() })
    }
}

impl Caller {
    /// What stands before MQTT on this door.
    pub(super) async fn come_in(self) -> Result<(Stream, Peer), HandshakeFault> {
        let Caller { stream, address, door } = self;
        // Small answers must not wait for more of them; a socket where that cannot be set works all the same.
        let _slower = stream.set_nodelay(true);
        let (stream, certificate) = match &door.tls {
            Some(tls) => tls.accept(stream).await?,
            None => (Stream::Tcp(stream), None),
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
