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
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::{error, warn};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

pub use access::{Access, NotLetIn, hash_password};
pub use door::Certificates;
pub use front::BrokerHand;
pub use limits::BrokerLimits;
pub use peer::{CertificateNames, Peer, PeerAddress};

use crate::config::{BrokerConfig, ListenerAddress, ListenerConfig};
use crate::health::Health;
use crate::intake::Intake;
use crate::mqtt::ReasonCode;
use crate::queue::Inlet;
use crate::queue::sessions::SessionLimits;
use crate::router::{Router, RouterError};
use door::Listener;
use front::{Front, NewListeners};
use notes::Notes;
use places::{Doorway, Places, Register};
use session::Attachment;
use socket::Socket;
use sys::SysTree;

mod access;
mod aliases;
mod door;
mod durable;
mod files;
mod front;
mod inbound;
mod limits;
mod listener;
mod notes;
mod outbound;
mod peer;
mod places;
mod session;
mod socket;
mod sys;

/// Sockets whose last words are being written.
const PARTINGS_MAX: usize = 256;
/// Sockets for which there is no place, at once: they are told so.
const SPARE_PLACES: usize = 64;
/// What sessions get beyond their own patience, when the gateway stops.
const STOP_MARGIN: Duration = Duration::from_millis(500);

/// Why a listener cannot be opened.
#[derive(Debug, Error)]
#[error("cannot listen on {address} for broker.listener.{name}")]
pub struct BindError {
    /// The listener's name in the configuration.
    pub name: Arc<str>,
    /// Its address.
    pub address: ListenerAddress,
    /// What the system said, or what is wrong with its TLS files.
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
    listeners: BTreeMap<Arc<str>, (ListenerConfig, Listener)>,
    certificates: Certificates,
    hand: BrokerHand,
    changes: mpsc::Receiver<NewListeners>,
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
    /// Boxed: a channel keeps room for 32 of them, for each session.
    register: Register<Box<Attachment>>,
    sys: SysTree,
    partings: mpsc::Sender<Socket>,
    failures: mpsc::Sender<RouterError>,
    doorway: Doorway,
    notes: Notes,
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

    /// Counts a client that was not let in; the journal gets one a minute of each reason.
    fn note_refusal(&self, listener: &str, peer: &PeerAddress, reason: &'static str) {
        self.health.sessions().refused.fetch_add(1, Ordering::Relaxed);
        if let Some(more) = self.notes.note(reason) {
            warn!(listener = listener, peer:% = peer, reason = reason, more = more; "A client was not let in");
        }
    }

    /// Tells of a client that reached a limit, once a minute for each limit.
    fn note_limit(&self, client: &str, limit: &'static str) {
        if let Some(more) = self.notes.note(limit) {
            warn!(client = client, limit = limit, more = more; "A client has reached a limit");
        }
    }

    /// Counts a client that broke the protocol; the journal gets one a minute of each reason.
    fn note_protocol_error(&self, client: &str, reason: ReasonCode, what: &str) {
        self.health.sessions().protocol_errors.fetch_add(1, Ordering::Relaxed);
        if let Some(more) = self.notes.note_code("the protocol", reason.0) {
            // A client id may hold anything: the journal takes it as it is, and the log for people escapes it.
            warn!(
                client = client, reason:% = reason, what = what, more = more;
                "A client broke the protocol and is disconnected"
            );
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
            listeners.insert(name.clone(), (listener.clone(), Listener::open(name, listener, intake.clock())?));
        }
        let certificates = Certificates::default();
        certificates.set(listeners.values().map(|(_, listener)| listener.door.clone()));
        let (hand, changes) = front::hand();
        let limits = files::fit(limits);
        let (parting, partings) = mpsc::channel(PARTINGS_MAX);
        let (failing, failures) = mpsc::channel(1);
        inlet.bound_sessions(SessionLimits {
            count: limits.sessions,
            messages: limits.kept_messages,
            bytes: limits.kept_bytes,
            store_share: limits.kept_share,
        });
        let services = Services {
            access: Access::new(&config.access, health.clone(), intake.clock().clone()),
            intake,
            inlet,
            router,
            health,
            register: Register::new(limits.sessions),
            sys: SysTree::default(),
            doorway: Doorway::new(limits.handshakes),
            limits,
            partings: parting,
            failures: failing,
            notes: Notes::default(),
        };
        let (services, sys_interval) = (Arc::new(services), config.sys_interval);
        Ok(Broker { listeners, certificates, hand, changes, services, sys_interval, partings, failures })
    }

    /// Where the listeners on the network are, by name: the port that was found where the configuration says 0.
    pub fn local_addrs(&self) -> BTreeMap<Arc<str>, SocketAddr> {
        let found = |(name, (_, listener)): (&Arc<str>, &(ListenerConfig, Listener))| match listener.address() {
            ListenerAddress::Network(address) => Some((name.clone(), address)),
            ListenerAddress::Unix { .. } => None,
        };
        self.listeners.iter().filter_map(found).collect()
    }

    /// Who may do what: to change it while the broker runs.
    pub fn access(&self) -> Access {
        self.services.access.clone()
    }

    /// What can be renewed while it runs.
    pub fn certificates(&self) -> Certificates {
        self.certificates.clone()
    }

    /// To change the listeners while it runs.
    pub fn hand(&self) -> BrokerHand {
        self.hand.clone()
    }

    /// Serves clients until `stop`; then accepts nobody, lets sessions finish what they have begun, and says goodbye.
    ///
    /// # Errors
    /// When the router is gone.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BrokerError> {
        let Broker { listeners, certificates, hand: _hand, mut changes, services, sys_interval, .. } = self;
        let (mut partings, mut failures) = (self.partings, self.failures);
        let limits = services.limits.clone();
        // Of our own, so that a failure ends the sessions and leaves the other stages to the supervisor.
        let stop = stop.child_token();
        let places = Places::new(limits.connections, limits.connections_per_address);
        let spare = Places::new(SPARE_PLACES, SPARE_PLACES);
        let (accepted, mut sockets) = mpsc::channel(1);
        let mut front = Front::new([places, spare], accepted, services.clone(), certificates, stop.clone());
        for (name, (config, listener)) in listeners {
            front.open(&name, config, listener);
        }
        let mut publishing = JoinSet::new();
        if !sys_interval.is_zero() {
            publishing.spawn(sys::run(services.clone(), sys_interval, stop.clone()));
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
                Some((caller, place, crowded)) = sockets.recv() => {
                    sessions.spawn(listener::serve(caller, place, crowded, services.clone(), stop.clone()));
                }
                Some(NewListeners { listeners, done }) = changes.recv() => {
                    let mut early = Vec::new();
                    let changed = front.change(&listeners, &mut sockets, &mut early).await;
                    for (caller, place, crowded) in early {
                        sessions.spawn(listener::serve(caller, place, crowded, services.clone(), stop.clone()));
                    }
                    // Whoever asked may be gone.
                    let _unheard = done.send(changed);
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
        front.close().await;
        publishing.shutdown().await;
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

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(failure) = ended
        && failure.is_panic()
    {
        error!(error:% = failure; "A session has failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_named_with_its_listener() {
        let source = io::Error::from(io::ErrorKind::AddrInUse);
        let address = ListenerAddress::Network("127.0.0.1:1883".parse().unwrap());
        let error = BindError { name: Arc::from("local"), address, source };
        assert_eq!(error.to_string(), "cannot listen on 127.0.0.1:1883 for broker.listener.local");
        assert!(std::error::Error::source(&error).is_some());
    }
}
