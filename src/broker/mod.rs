//! The network edge of the local broker: terminates MQTT 3.1.1 and 5, owns sessions, wills and QoS state.
//!
//! Promises:
//! - a message is acknowledged when `intake` says so, and not before; acknowledgements leave in the order of what they
//!   answer;
//! - one client, whatever it sends or does not read, disturbs no other: every count, length and wait has a bound;
//! - who breaks the protocol is told the reason, where its version has a word for it, and counted.
//!
//! ```text
//!  socket ──► listener: CONNECT ──► register by client id ──► session (owns the router link; sockets come and go)
//!                                                               │ inbound: one line of work and its answers ──► intake
//!                                                               │ outbound: packet ids, window, repeats ◄── router
//! ```
//!
//! It never stores: what must outlive the process is the queue's.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::{error, info, warn};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

pub use access::{Access, hash_password};
pub use limits::BrokerLimits;
pub use peer::{CertificateNames, Peer, PeerAddress};

use crate::config::BrokerConfig;
use crate::health::Health;
use crate::intake::Intake;
use crate::message::Topic;
use crate::mqtt::ReasonCode;
use crate::queue::Inlet;
use crate::queue::sessions::SessionLimits;
use crate::router::{Router, RouterError};
use places::{Places, Register};
use session::Attachment;
use socket::Socket;
use sys::SysTree;

mod access;
mod durable;
mod inbound;
mod limits;
mod listener;
mod outbound;
mod peer;
mod places;
mod session;
mod socket;
mod sys;

/// Sockets whose last words are being written.
const PARTINGS_MAX: usize = 256;
/// After an accept that failed, most often because there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two lines in the journal about clients that break the protocol.
const WARNING_EVERY: Duration = Duration::from_secs(10);
/// What sessions get beyond their own patience, when the gateway stops.
const STOP_MARGIN: Duration = Duration::from_millis(500);
/// Waiting connections of a listener, in the kernel.
const BACKLOG: u32 = 1024;

/// Why a listener cannot be opened.
#[derive(Debug, Error)]
#[error("cannot listen on {address} for broker.listener.{name}")]
pub struct BindError {
    /// The listener's name in the configuration.
    pub name: Arc<str>,
    /// Its address.
    pub address: SocketAddr,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Why the broker ended before it was told to.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// Live messages cannot be delivered any more.
    #[error("the broker has lost the router")]
    Router(#[source] RouterError),
}

/// The broker, with its listeners open and nobody served yet.
#[derive(Debug)]
pub struct Broker {
    listeners: BTreeMap<Arc<str>, TcpListener>,
    services: Arc<Services>,
    /// Zero: there is no `$SYS` tree.
    sys_interval: Duration,
    partings: mpsc::Receiver<Socket>,
    failures: mpsc::Receiver<RouterError>,
}

/// What every session uses.
#[derive(Debug)]
struct Services {
    intake: Intake,
    inlet: Inlet,
    router: Router,
    health: Health,
    access: Access,
    limits: BrokerLimits,
    register: Register<Attachment>,
    sys: SysTree,
    partings: mpsc::Sender<Socket>,
    failures: mpsc::Sender<RouterError>,
    warned_at: Mutex<Option<Instant>>,
}

impl Services {
    /// Lets a socket's last words be written by somebody else.
    fn see_off(&self, socket: Socket) {
        // Too many at once: this one is closed without them.
        drop(self.partings.try_send(socket));
    }

    /// Tells the broker that the router is gone.
    fn fail(&self, error: RouterError) {
        // One word is enough, and it may have been said.
        drop(self.failures.try_send(error));
    }

    fn count_dropped(&self, count: u64) {
        if count > 0 {
            self.health.sessions().dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Counts a client that broke the protocol; the journal gets one of many.
    fn note_protocol_error(&self, client: &str, reason: ReasonCode, what: &str) {
        self.health.sessions().protocol_errors.fetch_add(1, Ordering::Relaxed);
        let mut warned_at = self.warned_at.lock().unwrap_or_else(PoisonError::into_inner);
        if warned_at.is_none_or(|at| at.elapsed() >= WARNING_EVERY) {
            *warned_at = Some(Instant::now());
            // A client id may hold anything: the journal takes it as it is, and the log for people escapes it.
            warn!(client = client, reason:% = reason, what = what; "A client broke the protocol and is disconnected");
        }
    }
}

impl Broker {
    /// Opens the listeners. Nobody is served before `run`.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn bind(
        config: &BrokerConfig,
        limits: BrokerLimits,
        intake: Intake,
        inlet: Inlet,
        router: Router,
        health: Health,
    ) -> Result<Broker, BindError> {
        let mut listeners = BTreeMap::new();
        for (name, listener) in &config.listeners {
            let failed = |source| BindError { name: name.clone(), address: listener.bind, source };
            let opened = open(listener.bind).map_err(failed)?;
            listeners.insert(name.clone(), opened);
        }
        let (parting, partings) = mpsc::channel(PARTINGS_MAX);
        let (failing, failures) = mpsc::channel(1);
        inlet.bound_sessions(SessionLimits {
            count: limits.sessions,
            messages: limits.kept_messages,
            bytes: limits.kept_bytes,
            store_share: limits.kept_share,
        });
        let services = Services {
            access: Access::new(&config.access, health.clone()),
            intake,
            inlet,
            router,
            health,
            register: Register::new(limits.sessions),
            sys: SysTree::default(),
            limits,
            partings: parting,
            failures: failing,
            warned_at: Mutex::new(None),
        };
        let (services, sys_interval) = (Arc::new(services), config.sys_interval);
        Ok(Broker { listeners, services, sys_interval, partings, failures })
    }

    /// Where the listeners are, by name: the port that was found where the configuration says 0.
    pub fn local_addrs(&self) -> BTreeMap<Arc<str>, SocketAddr> {
        let found = |(name, listener): (&Arc<str>, &TcpListener)| Some((name.clone(), listener.local_addr().ok()?));
        self.listeners.iter().filter_map(found).collect()
    }

    /// Who may do what: to change it while the broker runs.
    pub fn access(&self) -> Access {
        self.services.access.clone()
    }

    /// Serves clients until `stop`; then accepts nobody, lets sessions finish what they have begun, and says goodbye.
    ///
    /// # Errors
    /// When the router is gone.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BrokerError> {
        let Broker { listeners, services, sys_interval, mut partings, mut failures } = self;
        let limits = services.limits.clone();
        // Of our own, so that a failure ends the sessions and leaves the other stages to the supervisor.
        let stop = stop.child_token();
        let places = Places::new(limits.connections, limits.connections_per_address);
        for (name, listener) in &listeners {
            if let Ok(address) = listener.local_addr() {
                info!(listener = name.as_ref(), address:% = address; "The broker listens");
            }
        }
        let mut accepting = JoinSet::new();
        let (accepted, mut sockets) = mpsc::channel(1);
        for listener in listeners.into_values() {
            accepting.spawn(accept(listener, places.clone(), accepted.clone(), stop.clone()));
        }
        drop(accepted);
        if !sys_interval.is_zero() {
            accepting.spawn(sys::run(services.clone(), sys_interval, stop.clone()));
        }

        let mut sessions = JoinSet::new();
        let mut farewells = JoinSet::new();
        let mut end = Ok(());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(error) = failures.recv() => {
                    end = Err(BrokerError::Router(error));
                    break;
                }
                Some((stream, peer, place)) = sockets.recv() => {
                    sessions.spawn(listener::serve(stream, peer, place, services.clone(), stop.clone()));
                }
                Some(socket) = partings.recv(), if farewells.len() < PARTINGS_MAX => {
                    farewells.spawn(socket.part(limits.farewell));
                }
                Some(ended) = sessions.join_next() => note_end(ended),
                Some(ended) = farewells.join_next() => note_end(ended),
            }
        }
        // Also after a failure: the sessions must not go on alone.
        stop.cancel();
        drop(sockets);
        accepting.shutdown().await;
        let until = Instant::now() + limits.stop_patience + STOP_MARGIN;
        let settle = async {
            while let Some(ended) = sessions.join_next().await {
                note_end(ended);
                while let Ok(socket) = partings.try_recv() {
                    farewells.spawn(socket.part(limits.farewell));
                }
            }
        };
        if time::timeout_at(until, settle).await.is_err() {
            warn!("Some sessions did not end in time");
            sessions.shutdown().await;
        }
        while let Ok(socket) = partings.try_recv() {
            farewells.spawn(socket.part(limits.farewell));
        }
        // Each has a deadline of its own.
        while let Some(ended) = farewells.join_next().await {
            note_end(ended);
        }
        end
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // A restart must not wait for the sockets of the last run.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

type Accepted = (tokio::net::TcpStream, SocketAddr, places::Place);

async fn accept(listener: TcpListener, places: Places, accepted: mpsc::Sender<Accepted>, stop: CancellationToken) {
    loop {
        let socket = tokio::select! {
            () = stop.cancelled() => return,
            socket = listener.accept() => socket,
        };
        match socket {
            Ok((stream, peer)) => {
                // Without a place it is closed at once.
                if let Some(place) = places.take(peer.ip())
                    && accepted.send((stream, peer, place)).await.is_err()
                {
                    return;
                }
            }
            Err(_) => time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(failure) = ended
        && failure.is_panic()
    {
        error!(error:% = failure; "A session has failed");
    }
}

/// Whether clients may not publish to `topic`: it is the gateway's own, or a server's.
fn is_reserved(topic: &Topic) -> bool {
    let text = topic.as_str();
    topic.is_dollar() || text == "tidegate" || text.starts_with("tidegate/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_named_with_its_listener() {
        let source = io::Error::from(io::ErrorKind::AddrInUse);
        let address = "127.0.0.1:1883".parse().unwrap();
        let error = BindError { name: Arc::from("local"), address, source };
        assert_eq!(error.to_string(), "cannot listen on 127.0.0.1:1883 for broker.listener.local");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn the_gateways_own_topics_and_servers_topics_are_reserved() {
        for (text, expected) in [
            ("tidegate", true),
            ("tidegate/gw/gap", true),
            ("$SYS/x", true),
            ("$", true),
            ("tidegates", false),
            ("plant/tidegate/x", false),
            ("/tidegate", false),
        ] {
            assert_eq!(is_reserved(&Topic::new(text).unwrap()), expected, "{text}");
        }
    }
}
