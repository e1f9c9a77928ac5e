//! The front of the broker: which listeners are open, and others while it runs.
//!
//! Promises: a change is made as a whole or not at all; whoever is connected through a listener that stays notices nothing;
//! who connects in the moment of the change waits in the socket, where that stays; who came in by a listener that goes, or
//! that has other rules from now on, has to come again.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use log::{error, info, warn};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::door::{Caller, Certificates, Door, Listener};
use super::places::{Crowded, Place, Places};
use super::{BindError, Services};
use crate::config::ListenerConfig;

/// After an accept that failed, most often because there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// With its place; a spare one where it is crowded.
pub(super) type Accepted = (Caller, Place, Option<Crowded>);

/// Listeners that are to be open instead of those that are, and the way to say what came of it.
#[derive(Debug)]
pub(super) struct NewListeners {
    pub(super) listeners: BTreeMap<Arc<str>, ListenerConfig>,
    pub(super) done: oneshot::Sender<Result<(), BindError>>,
}

/// Changes the listeners of a broker that runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BrokerHand(mpsc::Sender<NewListeners>);

pub(super) fn hand() -> (BrokerHand, mpsc::Receiver<NewListeners>) {
    let (sender, receiver) = mpsc::channel(1);
    (BrokerHand(sender), receiver)
}

impl BrokerHand {
    /// Opens and closes listeners until there are these. One whose TLS files only are others counts as the same:
    /// `Certificates::renew` is for that.
    ///
    /// # Errors
    /// When one cannot be opened: then all are as they were.
    pub async fn change(&self, listeners: BTreeMap<Arc<str>, ListenerConfig>) -> Result<(), BindError> {
        let (done, is_done) = oneshot::channel();
        if self.0.send(NewListeners { listeners, done }).await.is_err() {
            // The broker ends, and all of its listeners with it.
            return Ok(());
        }
        is_done.await.unwrap_or(Ok(()))
    }
}

/// The listeners that are open.
pub(super) struct Front {
    places: [Places; 2],
    accepted: mpsc::Sender<Accepted>,
    services: Arc<Services>,
    certificates: Certificates,
    stop: CancellationToken,
    open: BTreeMap<Arc<str>, Open>,
    accepting: JoinSet<Listener>,
}

struct Open {
    config: ListenerConfig,
    door: Arc<Door>,
    close: CancellationToken,
}

impl Front {
    pub(super) fn new(
        places: [Places; 2],
        accepted: mpsc::Sender<Accepted>,
        services: Arc<Services>,
        certificates: Certificates,
        stop: CancellationToken,
    ) -> Front {
        Front { places, accepted, services, certificates, stop, open: BTreeMap::new(), accepting: JoinSet::new() }
    }

    /// Accepts clients from now on.
    pub(super) fn open(&mut self, name: &Arc<str>, config: ListenerConfig, listener: Listener) {
        info!(listener = name.as_ref(), address:% = listener.address(); "The broker listens");
        self.resume(name, config, listener);
    }

    fn resume(&mut self, name: &Arc<str>, config: ListenerConfig, listener: Listener) {
        let close = self.stop.child_token();
        self.open.insert(name.clone(), Open { config, door: listener.door.clone(), close: close.clone() });
        let (places, accepted) = (self.places.clone(), self.accepted.clone());
        self.accepting.spawn(accept(listener, places, accepted, self.services.clone(), close));
    }

    /// Nobody is accepted any more.
    pub(super) async fn close(mut self) {
        self.accepting.shutdown().await;
    }

    /// Opens and closes listeners until there are those that are `wanted`. Who is accepted meanwhile is in `early`.
    pub(super) async fn change(
        &mut self,
        wanted: &BTreeMap<Arc<str>, ListenerConfig>,
        sockets: &mut mpsc::Receiver<Accepted>,
        early: &mut Vec<Accepted>,
    ) -> Result<(), BindError> {
        let closing: Vec<Arc<str>> = self
            .open
            .iter()
            .filter(|(name, open)| !wanted.get(*name).is_some_and(|config| is_same(&open.config, config)))
            .map(|(name, _)| name.clone())
            .collect();
        let closed = self.interrupt(&closing, sockets, early).await;
        let new = wanted.iter().filter(|(name, _)| !self.open.contains_key(*name));
        let new: Vec<(&Arc<str>, &ListenerConfig)> = new.collect();
        match replaced(closed, &new, &self.services) {
            Ok((closed, listeners)) => {
                for ((name, config), listener) in new.into_iter().zip(listeners) {
                    self.open(name, config.clone(), listener);
                }
                for (_, door) in &closed {
                    if !wanted.contains_key(&door.name) {
                        info!(listener = door.name.as_ref(); "A listener is closed");
                    }
                    door.shut();
                }
                if !closed.is_empty() {
                    self.services.access.call_all();
                }
                self.certificates.set(self.open.values().map(|open| open.door.clone()));
                Ok(())
            }
            Err((closed, error)) => {
                for (config, listener) in closed {
                    let name = listener.door.name.clone();
                    self.resume(&name, config, listener);
                }
                Err(error)
            }
        }
    }

    /// Lets listeners accept nobody for the moment, and gives them back.
    async fn interrupt(
        &mut self,
        names: &[Arc<str>],
        sockets: &mut mpsc::Receiver<Accepted>,
        early: &mut Vec<Accepted>,
    ) -> Vec<(ListenerConfig, Listener)> {
        let mut configs: BTreeMap<Arc<str>, ListenerConfig> = BTreeMap::new();
        for name in names {
            if let Some(open) = self.open.remove(name) {
                open.close.cancel();
                configs.insert(name.clone(), open.config);
            }
        }
        let mut interrupted = Vec::new();
        while !configs.is_empty() {
            tokio::select! {
                ended = self.accepting.join_next() => match ended {
                    Some(Ok(listener)) => {
                        if let Some(config) = configs.remove(&listener.door.name) {
                            interrupted.push((config, listener));
                        }
                    }
                    Some(Err(failure)) => error!(error:% = failure; "A listener has failed"),
                    None => break,
                },
                // One that has just been accepted is handed on first.
                Some(arrival) = sockets.recv() => early.push(arrival),
            }
        }
        interrupted
    }
}

/// Whether a listener stays open as it is: other files of certificates can be read without that.
fn is_same(one: &ListenerConfig, other: &ListenerConfig) -> bool {
    let files = one.tls.as_ref().and(other.tls.clone());
    let tls = files.or_else(|| one.tls.clone());
    ListenerConfig { tls, ..one.clone() } == *other
}

type Shut = (ListenerConfig, Arc<Door>);
type Interrupted = Vec<(ListenerConfig, Listener)>;

/// Opens `new` listeners in the place of those that were interrupted; gives back the doors of these, or in a failure
/// these themselves, as they were.
fn replaced(
    interrupted: Interrupted,
    new: &[(&Arc<str>, &ListenerConfig)],
    services: &Services,
) -> Result<(Vec<Shut>, Vec<Listener>), (Interrupted, BindError)> {
    let clock = services.intake.clock();
    let opened = |old: &Interrupted, name: &Arc<str>, config: &ListenerConfig| match old
        .iter()
        .find(|(_, listener)| listener.is_at(&config.bind))
    {
        Some((_, listener)) => listener.with(name, config, clock),
        None => Listener::open(name, config, clock),
    };
    let mut found = Vec::new();
    // One that stands where an old one is in the way, as 0.0.0.0 is in that of 127.0.0.1, has to wait for its end.
    let mut late = Vec::new();
    for (place, (name, config)) in new.iter().enumerate() {
        match opened(&interrupted, name, config) {
            Ok(listener) => found.push((place, listener)),
            Err(error) if error.source.kind() == io::ErrorKind::AddrInUse => late.push(place),
            Err(error) => return Err((undone(interrupted), error)),
        }
    }
    if late.is_empty() {
        let shut = interrupted.into_iter().map(|(config, listener)| (config, listener.door.clone())).collect();
        found.sort_by_key(|(place, _)| *place);
        return Ok((shut, found.into_iter().map(|(_, listener)| listener).collect()));
    }
    let shut: Vec<Shut> = interrupted.into_iter().map(|(config, listener)| (config, listener.door.clone())).collect();
    for place in late {
        let Some((name, config)) = new.get(place) else { continue };
        match Listener::open(name, config, clock) {
            Ok(listener) => found.push((place, listener)),
            Err(error) => {
                drop(found);
                return Err((reopened(shut, services), error));
            }
        }
    }
    found.sort_by_key(|(place, _)| *place);
    Ok((shut, found.into_iter().map(|(_, listener)| listener).collect()))
}

/// What was changed of the sockets themselves on the way is as it was.
fn undone(interrupted: Interrupted) -> Interrupted {
    for (config, listener) in &interrupted {
        if let Err(error) = listener.reset(config) {
            warn!(listener = listener.door.name.as_ref(), error:%; "The rights of a socket are not what they were");
        }
    }
    interrupted
}

/// Opens what was closed in vain.
fn reopened(shut: Vec<Shut>, services: &Services) -> Interrupted {
    let open = |(config, door): Shut| match Listener::reopen(door.clone(), &config) {
        Ok(listener) => Some((config, listener)),
        Err(failure) => {
            let error = crate::health::chain(&failure);
            error!(listener = door.name.as_ref(), error = error.as_str(); "A listener could not be opened again");
            door.shut();
            services.access.call_all();
            None
        }
    };
    shut.into_iter().filter_map(open).collect()
}

async fn accept(
    listener: Listener,
    [places, spare]: [Places; 2],
    accepted: mpsc::Sender<Accepted>,
    services: Arc<Services>,
    stop: CancellationToken,
) -> Listener {
    loop {
        let caller = tokio::select! {
            () = stop.cancelled() => return listener,
            caller = listener.accept() => caller,
        };
        match caller {
            Ok(caller) => {
                let arrival = match places.take(caller.address.ip()) {
                    Ok(place) => (caller, place, None),
                    Err(crowded) => match spare.take(None) {
                        Ok(place) => (caller, place, Some(crowded)),
                        Err(_) => {
                            services.note_refusal(&listener.door.name, &caller.address, crowded.words());
                            continue;
                        }
                    },
                };
                if accepted.send(arrival).await.is_err() {
                    return listener;
                }
            }
            Err(error) => {
                if let Some(more) = services.notes.note("accept") {
                    let listener = listener.door.name.as_ref();
                    warn!(listener = listener, error:% = error, more = more; "A connection could not be accepted");
                }
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
