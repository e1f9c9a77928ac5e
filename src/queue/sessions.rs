//! Sessions of local clients that outlive their sockets.
//!
//! Promises: what a session is told, that it is there, that a subscription holds, that one is gone, is on disk before it
//! is told; a session that has ended is never found again, nor are its packet ids; a number is never used twice.
//!
//! A session is a stream of the queue: what waits for it is in waiting.rs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::warn;
use tokio::sync::{mpsc, watch};

use super::books::Books;
use super::worker::{Job, Reply};
use super::{AppendError, Inlet, RetainedFound, RetainedPage, SessionNumber, ask};
use crate::health::LossReason;
use crate::message::tree::Tree;
use crate::message::{Filter, Message, Ordinal, Origin, Qos, Sequence, Stamp};
use tables::{FlightRow, SessionRow, SubscriptionRow};
use waiting::Lane;

pub(super) use salvaged::OldSessions;
pub(super) use tables::LaneKey;
pub(super) use waiting::{Cover, Match};

mod salvaged;
mod tables;
mod waiting;

/// Filters of one SUBSCRIBE whose retained messages are looked for in the same job; those of more follow it.
const RETAINED_FILTERS_MAX: usize = 16;
/// Subscriptions of one session, those included that are gone and for which something still waits.
const LANES_MAX: usize = 1024;
/// Retained messages that one job finds before the rest follows it.
const RETAINED_FOUND_MAX: usize = 256;

/// Bounds of the sessions that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sessions that are kept at once.
    pub count: usize,
    /// Messages that wait for one of them; the oldest give way.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// All of them together may take the store divided by this.
    pub store_share: u64,
}

impl Default for SessionLimits {
    fn default() -> SessionLimits {
        SessionLimits { count: 990, messages: 100_000, bytes: 16 * 1024 * 1024, store_share: 4 }
    }
}

/// A client at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// Whose session it is; empty for nobody in particular.
    pub user: Arc<str>,
    /// Its client id.
    pub client: Arc<str>,
    /// A user that is no more: a session of his passes to this one.
    pub heir_of: Option<Arc<str>>,
    /// What there was before is forgotten.
    pub is_clean: bool,
    /// How long the session outlives its socket, in seconds; 0 = it does not, and a new one is not kept.
    pub expiry_s: u32,
}

/// What becomes of a client at the door.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// There is a session for it, kept.
    Kept(Kept),
    /// Nothing is kept for it, and nothing is left of what was.
    Passing,
    /// The session of this client id belongs to another user, who is named.
    Foreign(Arc<str>),
    /// There are too many sessions.
    Full,
}

/// A session as it was when the last transaction ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Its name in the table of received ids; another one whenever a session begins anew.
    pub number: SessionNumber,
    /// It was there before.
    pub is_present: bool,
    /// QoS 2 packet ids of the client between PUBLISH and PUBREL.
    pub received: Vec<u16>,
    /// What it subscribes to.
    pub subscriptions: Vec<Subscribed>,
    /// QoS 2 packet ids that are in use towards the client, in the order in which they were first used.
    pub flights: Vec<Flight>,
}

/// A QoS 2 packet id between PUBLISH and PUBCOMP.
#[derive(Debug, Clone, PartialEq)]
pub struct Flight {
    /// The id.
    pub packet_id: u16,
    /// What it carries; `None`: PUBREL is next.
    pub parcel: Option<Parcel>,
}

/// A message for one subscription of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Parcel {
    /// The subscription, by its number in the session.
    pub lane: u32,
    /// The message's place.
    pub sequence: Sequence,
    /// What it counts for in the bounds.
    pub bytes: u64,
    /// The lower of publisher's and subscription's.
    pub qos: Qos,
    /// The flag that it bears.
    pub retain: bool,
    /// Subscription identifier.
    pub identifier: Option<u32>,
    /// The message.
    pub message: Message,
    /// At QoS 2: on disk.
    pub packet_id: Option<u16>,
    /// When its own expiry passes, in milliseconds since this boot.
    pub expires_mono_ms: Option<u64>,
}

/// An answer to `SessionOutlet::fetch`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parcels {
    /// In order.
    pub rows: Vec<Parcel>,
    /// After which to go on.
    pub place: (u64, u32),
    /// There is more now.
    pub is_more: bool,
    /// The session is not there any more: its store was damaged.
    pub is_gone: bool,
}

/// What a client has acknowledged, or what else became of a parcel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settling {
    /// QoS 1: PUBACK has come. Or it cannot be delivered to this client.
    Delivered {
        /// Of the parcel.
        lane: u32,
        /// Of the parcel.
        sequence: Sequence,
        /// Of the parcel.
        bytes: u64,
    },
    /// It was given up, counted.
    Lost {
        /// Of the parcel.
        lane: u32,
        /// Of the parcel.
        sequence: Sequence,
        /// Of the parcel.
        bytes: u64,
        /// Why.
        reason: LossReason,
    },
    /// QoS 2: PUBREC has come. Before PUBREL.
    Received {
        /// Of the PUBREC.
        packet_id: u16,
    },
    /// QoS 2: PUBCOMP has come, or the client has refused the message.
    Completed {
        /// Of the PUBCOMP.
        packet_id: u16,
    },
}

/// The only consumer of what waits for one session.
#[derive(Debug)]
pub struct SessionOutlet {
    number: SessionNumber,
    jobs: mpsc::Sender<Job>,
    /// Moves when something new waits.
    woken: watch::Receiver<u64>,
}

impl SessionOutlet {
    /// The session.
    pub fn number(&self) -> SessionNumber {
        self.number
    }

    /// Asks for what waits after `after`: at most so many messages and bytes, but at least one where there is any. Copies
    /// at QoS 2 take packet ids from `ids`, and are on disk with them when the answer comes.
    pub fn fetch(
        &mut self,
        after: (u64, u32),
        ids: Vec<u16>,
        count: usize,
        bytes: usize,
    ) -> impl Future<Output = Result<Parcels, AppendError>> + Send + 'static {
        // What comes from here on wakes whoever waits.
        self.woken.borrow_and_update();
        let (number, jobs) = (self.number, self.jobs.clone());
        async move { ask(&jobs, |reply| Job::Session(SessionJob::Fetch { number, after, ids, count, bytes, reply })).await }
    }

    /// Waits until something has come since the last `fetch`. Cancel safe.
    pub async fn wait(&mut self) {
        if self.woken.changed().await.is_err() {
            // Nothing comes any more.
            std::future::pending::<()>().await;
        }
    }

    /// Makes what has become of parcels durable.
    pub fn settle(&self, changes: Vec<Settling>) -> impl Future<Output = Result<(), AppendError>> + Send + 'static {
        let (number, jobs) = (self.number, self.jobs.clone());
        async move { ask(&jobs, |reply| Job::Session(SessionJob::Settle(number, changes, reply))).await }
    }
}

/// A subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    /// What for.
    pub filter: Filter,
    /// The highest QoS of deliveries.
    pub qos: Qos,
    /// Not what this client publishes.
    pub no_local: bool,
    /// With the retain flag as published.
    pub retain_as_published: bool,
    /// Subscription identifier.
    pub identifier: Option<u32>,
}

/// Which retained messages a subscription brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retained {
    /// All that match.
    Always,
    /// All that match if it is new.
    IfNew,
    /// None.
    Never,
}

/// What both ends know of the sessions without asking.
#[derive(Debug, Clone, Default)]
pub(super) struct Hall(Arc<HallParts>);

#[derive(Debug, Default)]
struct HallParts {
    /// Clients for whom a session is kept.
    clients: Mutex<HashSet<Arc<str>>>,
    /// Sessions whose client is there. What the store says of that is told only once it can be written.
    present: Mutex<HashSet<u64>>,
    wakers: Mutex<HashMap<u64, watch::Sender<u64>>>,
    limits: Mutex<SessionLimits>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Sets and numbers that are whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is asked for on behalf of a session.
#[derive(Debug)]
pub(super) enum SessionJob {
    Enter(Entrance, Reply<Entry>),
    Leave { number: SessionNumber, expiry_s: u32 },
    Subscribe(SessionNumber, Vec<(Subscribed, Retained)>, Reply<Vec<Found>>),
    Unsubscribe(SessionNumber, Vec<Filter>, Reply<()>),
    KeepRetained(SessionNumber, Filter, Vec<(Ordinal, Message)>, Reply<()>),
    Fetch { number: SessionNumber, after: (u64, u32), ids: Vec<u16>, count: usize, bytes: usize, reply: Reply<Parcels> },
    Settle(SessionNumber, Vec<Settling>, Reply<()>),
}

/// What a subscription found: the first of the retained messages.
pub(super) type Found = RetainedPage;

type Give = dyn FnOnce(Option<&AppendError>) + Send;

/// An answer that waits for the commit.
pub(super) struct Later(Box<Give>);

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}

impl Later {
    pub fn new<T: Send + 'static>(reply: Reply<T>, answer: T) -> Later {
        Later(Box::new(move |failure| {
            // The caller may have given up.
            drop(reply.send(failure.cloned().map_or(Ok(answer), Err)));
        }))
    }

    fn nobody() -> Later {
        Later(Box::new(|_| {}))
    }

    pub fn never<T: Send + 'static>(reply: Reply<T>) -> Later {
        Later(Box::new(move |failure| {
            drop(reply.send(Err(failure.cloned().unwrap_or(AppendError::Stopped))));
        }))
    }

    pub fn give(self, failure: Option<&AppendError>) {
        (self.0)(failure);
    }
}

impl SessionJob {
    /// Whether it asks for what waits, and nothing else.
    pub fn is_fetch(&self) -> bool {
        matches!(self, SessionJob::Fetch { .. })
    }

    /// What it adds to a transaction.
    pub fn bytes(&self) -> usize {
        match self {
            SessionJob::Fetch { bytes, .. } => *bytes,
            _ => 0,
        }
    }

    /// The answer if it is not tried.
    pub fn unapplied(self) -> Option<Later> {
        match self {
            SessionJob::Enter(_, reply) => Some(Later::never(reply)),
            SessionJob::Leave { .. } => None,
            SessionJob::Subscribe(_, _, reply) => Some(Later::never(reply)),
            SessionJob::Unsubscribe(_, _, reply)
            | SessionJob::KeepRetained(_, _, _, reply)
            | SessionJob::Settle(_, _, reply) => Some(Later::never(reply)),
            SessionJob::Fetch { reply, .. } => Some(Later::never(reply)),
        }
    }
}

impl Inlet {
    /// Sets the bounds of the sessions.
    pub fn bound_sessions(&self, limits: SessionLimits) {
        *lock(&self.hall.0.limits) = limits;
    }

    /// Whether a session is kept for a client: then it has to be told of every connection.
    pub fn keeps_session(&self, client: &str) -> bool {
        lock(&self.hall.0.clients).contains(client)
    }

    /// Lets a client in, and finds its session or begins one.
    pub async fn enter_session(&self, entrance: Entrance) -> Result<Entry, AppendError> {
        let entry = ask(&self.jobs, |reply| Job::Session(SessionJob::Enter(entrance, reply))).await?;
        if let Entry::Kept(kept) = &entry {
            lock(&self.hall.0.present).insert(kept.number.0);
        }
        Ok(entry)
    }

    /// The client of a session is gone, and the session is kept for so long; with 0 it ends. Comes back as soon as it
    /// has its place in the order: whoever enters later finds it so.
    pub async fn leave_session(&self, number: SessionNumber, expiry_s: u32) -> Result<(), AppendError> {
        lock(&self.hall.0.present).remove(&number.0);
        if expiry_s == 0 {
            lock(&self.hall.0.wakers).remove(&number.0);
        }
        let job = Job::Session(SessionJob::Leave { number, expiry_s });
        self.jobs.send(job).await.map_err(|_| AppendError::Stopped)
    }

    /// Adds subscriptions to a session of `client`, or replaces those of the same filters. Gives back the retained
    /// messages of each, at most `count_max` of one; those that are to be delivered at QoS 2 wait for the session instead.
    pub async fn subscribe_session(
        &self,
        number: SessionNumber,
        client: &Arc<str>,
        asked: Vec<(Subscribed, Retained)>,
        count_max: usize,
    ) -> Result<Vec<(Filter, RetainedFound)>, AppendError> {
        let filters: Vec<(Filter, Qos, bool)> =
            asked.iter().map(|(asked, _)| (asked.filter.clone(), asked.qos, asked.no_local)).collect();
        let found = ask(&self.jobs, |reply| Job::Session(SessionJob::Subscribe(number, asked, reply))).await?;
        let mut all = Vec::new();
        for ((filter, qos, no_local), page) in filters.into_iter().zip(found) {
            let as_of = page.as_of;
            let mut rows = self.retained_from(&filter, page, count_max).await?;
            if no_local {
                // Also what was retained is not sent back to whom it came from (MQTT-3.8.3-3).
                rows.retain(|(_, message)| !matches!(&message.origin, Origin::Client(from) if from == client));
            }
            let is_kept = |(_, message): &(Ordinal, Message)| qos.min(message.qos) == Qos::ExactlyOnce;
            let (kept, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_kept);
            if !kept.is_empty() {
                let filter = filter.clone();
                ask(&self.jobs, |reply| Job::Session(SessionJob::KeepRetained(number, filter, kept, reply))).await?;
            }
            let messages = rows.into_iter().map(|(_, message)| message).collect();
            all.push((filter, RetainedFound { messages, as_of }));
        }
        Ok(all)
    }

    /// The way out of a session, whose client has entered.
    pub fn session_outlet(&self, number: SessionNumber) -> SessionOutlet {
        let (waker, woken) = watch::channel(0);
        lock(&self.hall.0.wakers).insert(number.0, waker);
        SessionOutlet { number, jobs: self.jobs.clone(), woken }
    }

    /// Takes subscriptions from a session.
    pub async fn unsubscribe_session(&self, number: SessionNumber, filters: Vec<Filter>) -> Result<(), AppendError> {
        ask(&self.jobs, |reply| Job::Session(SessionJob::Unsubscribe(number, filters, reply))).await
    }
}

/// Since when the client of a session is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Away {
    /// The start of the store it was in.
    pub start: u32,
    pub stamp: Stamp,
}

/// The sessions, as the store has them.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_number: BTreeMap<u64, Session>,
    by_client: HashMap<Arc<str>, u64>,
    hall: Hall,
    /// Filters of subscriptions that bring what is stored.
    tree: Tree,
    /// Who has subscribed to a filter of the tree.
    entries: HashMap<u32, Vec<LaneKey>>,
    entry_next: u32,
    /// What waits for all of them.
    waiting: u64,
    /// As it is on the disk.
    committed: u64,
    bytes: u64,
    /// How many copies of a message are on their way at QoS 2.
    in_flight: HashMap<u64, u32>,
    /// Lanes that have grown in this transaction.
    dirty: Vec<LaneKey>,
    /// Sessions for which something new waits.
    stirred: Vec<u64>,
}

/// One session.
#[derive(Debug)]
struct Session {
    user: Arc<str>,
    client: Arc<str>,
    expiry_s: u32,
    away: Option<Away>,
    /// By lane.
    subscriptions: BTreeMap<u32, Subscribed>,
    /// Those with something in them.
    lanes: BTreeMap<u32, Lane>,
    count: u64,
    bytes: u64,
    flights: HashMap<u16, FlightRow>,
    order_next: u64,
    /// It is over; what waited for it goes by and by.
    is_ended: bool,
}

impl Session {
    fn new(user: Arc<str>, client: Arc<str>, expiry_s: u32, away: Option<Away>) -> Session {
        Session {
            user,
            client,
            expiry_s,
            away,
            subscriptions: BTreeMap::new(),
            lanes: BTreeMap::new(),
            count: 0,
            bytes: 0,
            flights: HashMap::new(),
            order_next: 1,
            is_ended: false,
        }
    }

    fn ended() -> Session {
        Session { is_ended: true, ..Session::new(Arc::from(""), Arc::from(""), 0, None) }
    }

    fn row(&self, number: u64) -> SessionRow {
        let Session { user, client, expiry_s, away, .. } = self;
        let sum = self.sum(number);
        SessionRow { number, user: user.clone(), client: client.clone(), expiry_s: *expiry_s, away: *away, sum }
    }

    fn sum(&self, number: u64) -> u32 {
        let rows: Vec<SubscriptionRow> =
            self.subscriptions.iter().map(|(lane, asked)| row(number, *lane, asked)).collect();
        tables::session_sum((number, &self.user, &self.client), rows.iter())
    }

    fn lane_of(&self, filter: &Filter) -> Option<u32> {
        self.subscriptions.iter().find(|(_, asked)| asked.filter == *filter).map(|(lane, _)| *lane)
    }

    fn lane_next(&self) -> u32 {
        let last = |key: Option<u32>| key.map_or(0, |lane| lane.saturating_add(1));
        let subscribed = last(self.subscriptions.last_key_value().map(|(lane, _)| *lane));
        subscribed.max(last(self.lanes.last_key_value().map(|(lane, _)| *lane)))
    }
}

impl Sessions {
    pub fn new(hall: &Hall) -> Sessions {
        Sessions { hall: hall.clone(), ..Sessions::default() }
    }

    /// What both ends know.
    pub fn hall(&self) -> Hall {
        self.hall.clone()
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.by_client.len() as u64
    }

    /// How many subscriptions they have.
    pub fn subscriptions(&self) -> u64 {
        self.by_number.values().map(|session| session.subscriptions.len() as u64).sum()
    }

    /// How much waits for each client.
    pub fn waiting_by_client(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        let live = self.by_number.values().filter(|session| !session.is_ended);
        live.map(|session| (&session.client, session.count))
    }

    /// What waits is on the disk.
    pub fn note_committed(&mut self) {
        self.committed = self.waiting;
    }

    /// What waits and is on the disk.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Bytes of what waits.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether what waited for an ended session is still there.
    pub fn is_any_ended(&self) -> bool {
        self.by_number.len() > self.by_client.len()
    }

    /// Tells the outlets for which something new waits.
    pub fn wake(&mut self) {
        if self.stirred.is_empty() {
            return;
        }
        let wakers = lock(&self.hall.0.wakers);
        for number in self.stirred.drain(..) {
            if let Some(waker) = wakers.get(&number) {
                waker.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }

    fn limits(&self) -> SessionLimits {
        *lock(&self.hall.0.limits)
    }

    /// Whether a session is kept.
    pub fn is_live(&self, number: u64) -> bool {
        self.live(number).is_some()
    }

    fn live(&self, number: u64) -> Option<&Session> {
        self.by_number.get(&number).filter(|session| !session.is_ended)
    }

    /// From now on the subscription of a lane matches, or no longer does.
    fn index(&mut self, key: LaneKey, asked: &Subscribed, is_in: bool) {
        // What members of a group share is with them while they are there, not in the store.
        if asked.qos == Qos::AtMostOnce || asked.filter.share_group().is_some() {
            return;
        }
        if is_in {
            let place = self.tree.place(&asked.filter);
            let entry = *place.get_or_insert(self.entry_next);
            if entry == self.entry_next {
                self.entry_next = self.entry_next.wrapping_add(1);
            }
            self.entries.entry(entry).or_default().push(key);
        } else if let Some(entry) = self.tree.find(&asked.filter)
            && let Some(keys) = self.entries.get_mut(&entry)
        {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.entries.remove(&entry);
                self.tree.remove(&asked.filter);
            }
        }
    }

    /// Whether any subscription brings what is stored.
    pub fn is_any_listening(&self) -> bool {
        !self.tree.is_empty()
    }

    /// Whether any session waits for its client, and so may end by and by.
    pub fn is_any_away(&self) -> bool {
        self.by_number.values().any(|session| session.away.is_some())
    }

    fn insert(&mut self, number: u64, session: Session) {
        lock(&self.hall.0.clients).insert(session.client.clone());
        self.by_client.insert(session.client.clone(), number);
        self.by_number.insert(number, session);
    }

    /// Lets a session be over. What waits for it is no longer its own, and goes by and by.
    fn end(&mut self, number: u64) -> bool {
        self.forget_flights(number);
        let Some(session) = self.by_number.get_mut(&number).filter(|session| !session.is_ended) else { return false };
        session.is_ended = true;
        let (client, subscriptions) = (session.client.clone(), std::mem::take(&mut session.subscriptions));
        let is_empty = session.lanes.is_empty();
        for (lane, asked) in subscriptions {
            self.index(LaneKey { session: number, lane }, &asked, false);
        }
        self.by_client.remove(&client);
        lock(&self.hall.0.clients).remove(&client);
        // Also of one that ends by its expiry or by another's clean start: nobody else would take it away.
        lock(&self.hall.0.wakers).remove(&number);
        if is_empty {
            self.by_number.remove(&number);
        }
        true
    }
}

impl Books {
    /// Reads the sessions. Those that had a client when the gateway ended wait for it from now on.
    pub fn load_sessions(&mut self, last: u64, was_open: bool) -> rusqlite::Result<()> {
        lock(&self.sessions.hall.0.clients).clear();
        for row in self.store.local_sessions()? {
            if row.expiry_s == 0 && !was_open {
                self.store.delete_local_session(row.number)?;
                continue;
            }
            let SessionRow { number, user, client, expiry_s, away, .. } = row;
            self.sessions.insert(number, Session::new(user, client, expiry_s, away));
            let is_present = was_open && lock(&self.sessions.hall.0.present).contains(&number);
            if away.is_none() && !is_present {
                self.note_away(number, expiry_s)?;
            }
        }
        for row in self.store.subscriptions()? {
            let Some(asked) = asked(&row) else {
                warn!(filter = row.filter.as_str(); "A subscription in the store cannot be read");
                continue;
            };
            if let Some(session) = self.sessions.by_number.get_mut(&row.session) {
                session.subscriptions.insert(row.lane, asked.clone());
                self.sessions.index(LaneKey { session: row.session, lane: row.lane }, &asked, true);
            }
        }
        self.load_lanes(last)
    }

    /// Does a job of a session within the open transaction. Its answer is there even if it fails.
    pub fn apply_session(&mut self, job: SessionJob) -> (Later, rusqlite::Result<()>) {
        fn later<T: Send + 'static>(reply: Reply<T>, done: rusqlite::Result<T>) -> (Later, rusqlite::Result<()>) {
            match done {
                Ok(answer) => (Later::new(reply, answer), Ok(())),
                Err(error) => (Later::never(reply), Err(error)),
            }
        }
        match job {
            SessionJob::Enter(entrance, reply) => later(reply, self.enter(&entrance)),
            SessionJob::Leave { number, expiry_s } => (Later::nobody(), self.leave(number.0, expiry_s)),
            SessionJob::Subscribe(number, asked, reply) => match self.subscribe(number.0, asked) {
                Ok(None) => (gone(reply), Ok(())),
                Ok(Some(found)) => later(reply, Ok(found)),
                Err(error) => later(reply, Err(error)),
            },
            SessionJob::Unsubscribe(number, filters, reply) => later(reply, self.unsubscribe(number.0, &filters)),
            SessionJob::KeepRetained(number, filter, messages, reply) => {
                later(reply, self.keep_retained(number.0, &filter, messages))
            }
            SessionJob::Fetch { number, after, ids, count, bytes, reply } => {
                later(reply, self.fetch(number.0, after, &ids, count, bytes))
            }
            SessionJob::Settle(number, changes, reply) => later(reply, self.settle_parcels(number.0, changes)),
        }
    }

    fn enter(&mut self, entrance: &Entrance) -> rusqlite::Result<Entry> {
        // The clock is not always looked at before the first client comes.
        self.expire_sessions()?;
        let known = self.sessions.by_client.get(&entrance.client).copied();
        let owner = known.and_then(|number| self.sessions.by_number.get(&number)).map(|session| session.user.clone());
        if let Some(owner) = owner.filter(|owner| *owner != entrance.user && Some(owner) != entrance.heir_of.as_ref()) {
            return Ok(Entry::Foreign(owner));
        }
        if let Some(number) = known {
            if !entrance.is_clean {
                return self.resume(number, &entrance.user, entrance.expiry_s).map(Entry::Kept);
            }
            self.end_session(number)?;
        }
        if entrance.expiry_s == 0 {
            return Ok(Entry::Passing);
        }
        if self.sessions.by_client.len() >= self.sessions.limits().count {
            return Ok(Entry::Full);
        }
        let number = self.take_session()?;
        let Entrance { user, client, expiry_s, .. } = entrance;
        let session = Session::new(user.clone(), client.clone(), *expiry_s, None);
        self.store.write()?;
        self.store.set_local_session(&session.row(number))?;
        self.sessions.insert(number, session);
        Ok(Entry::Kept(Kept {
            number: SessionNumber(number),
            is_present: false,
            received: Vec::new(),
            subscriptions: Vec::new(),
            flights: Vec::new(),
        }))
    }

    fn resume(&mut self, number: u64, user: &Arc<str>, expiry_s: u32) -> rusqlite::Result<Kept> {
        let mut subscriptions = Vec::new();
        if let Some(session) = self.sessions.by_number.get_mut(&number) {
            if session.away.take().is_some() || session.expiry_s != expiry_s || session.user != *user {
                session.expiry_s = expiry_s;
                session.user = user.clone();
                self.store.write()?;
                self.store.set_local_session(&session.row(number))?;
            }
            subscriptions.extend(session.subscriptions.values().cloned());
        }
        let received = self.store.received(number)?;
        let flights = self.restore_flights(number)?;
        Ok(Kept { number: SessionNumber(number), is_present: true, received, subscriptions, flights })
    }

    fn leave(&mut self, number: u64, expiry_s: u32) -> rusqlite::Result<()> {
        if expiry_s == 0 { self.end_session(number) } else { self.note_away(number, expiry_s) }
    }

    fn note_away(&mut self, number: u64, expiry_s: u32) -> rusqlite::Result<()> {
        let away = Away { start: self.identity.start.number, stamp: self.settings.clock.now() };
        let live = self.sessions.by_number.get_mut(&number).filter(|session| !session.is_ended);
        let Some(session) = live else { return Ok(()) };
        (session.away, session.expiry_s) = (Some(away), expiry_s);
        self.store.write()?;
        self.store.set_local_session(&session.row(number))
    }

    fn end_session(&mut self, number: u64) -> rusqlite::Result<()> {
        if self.sessions.end(number) {
            self.store.write()?;
            self.store.delete_local_session(number)?;
        }
        Ok(())
    }

    /// Ends the sessions whose clients have been away for too long.
    pub fn expire_sessions(&mut self) -> rusqlite::Result<()> {
        let now = self.settings.clock.now();
        let is_over = |session: &Session| {
            session.away.is_some_and(|away| {
                self.age_ms(away.start, away.stamp, now) >= u64::from(session.expiry_s).saturating_mul(1000)
            })
        };
        let over: Vec<u64> =
            self.sessions.by_number.iter().filter(|(_, session)| is_over(session)).map(|(number, _)| *number).collect();
        over.into_iter().try_for_each(|number| self.end_session(number))
    }

    /// `None`: the session is gone.
    fn subscribe(&mut self, number: u64, asked: Vec<(Subscribed, Retained)>) -> rusqlite::Result<Option<Vec<Found>>> {
        let mut found = Vec::new();
        let (mut filters, mut messages) = (0, 0);
        for (asked, retained) in asked {
            let live = self.sessions.by_number.get_mut(&number).filter(|session| !session.is_ended);
            let Some(session) = live.filter(|session| session.lanes.len() < LANES_MAX) else { return Ok(None) };
            let known = session.lane_of(&asked.filter);
            let lane = known.unwrap_or_else(|| session.lane_next());
            let is_wanted = match retained {
                Retained::Always => true,
                Retained::IfNew => known.is_none(),
                Retained::Never => false,
            };
            if session.subscriptions.get(&lane) != Some(&asked) {
                self.store.write()?;
                self.store.set_subscription(&row(number, lane, &asked))?;
            }
            let (filter, key) = (asked.filter.clone(), LaneKey { session: number, lane });
            if let Some(before) = session.subscriptions.insert(lane, asked.clone()) {
                self.sessions.index(key, &before, false);
            }
            self.sessions.index(key, &asked, true);
            if !is_wanted {
                found.push(Found { rows: Vec::new(), next: None, as_of: self.ordinal() });
            } else if filters >= RETAINED_FILTERS_MAX || messages >= RETAINED_FOUND_MAX {
                // From the first one on: no topic is empty.
                found.push(Found { rows: Vec::new(), next: Some(String::new()), as_of: self.ordinal() });
            } else {
                let page = self.retained_page(&filter, None)?;
                (filters, messages) = (filters + 1, messages + page.rows.len());
                found.push(page);
            }
        }
        self.note_sum(number)?;
        Ok(Some(found))
    }

    /// After a change of subscriptions.
    fn note_sum(&mut self, number: u64) -> rusqlite::Result<()> {
        let Some(session) = self.sessions.live(number) else { return Ok(()) };
        self.store.write()?;
        self.store.set_session_sum(number, session.sum(number))
    }

    fn unsubscribe(&mut self, number: u64, filters: &[Filter]) -> rusqlite::Result<()> {
        for filter in filters {
            let Some(session) = self.sessions.by_number.get_mut(&number) else { return Ok(()) };
            if let Some(lane) = session.lane_of(filter) {
                if let Some(asked) = session.subscriptions.remove(&lane) {
                    self.sessions.index(LaneKey { session: number, lane }, &asked, false);
                }
                self.store.write()?;
                self.store.delete_subscription(number, lane)?;
            }
        }
        self.note_sum(number)
    }
}

/// The answer to whoever asks for a session that is not there any more: its store was damaged.
fn gone<T: Send + 'static>(reply: Reply<T>) -> Later {
    Later(Box::new(move |failure| {
        let gone = || AppendError::Failed { reason: "the session is gone".to_owned() };
        drop(reply.send(Err(failure.cloned().unwrap_or_else(gone))));
    }))
}

const NO_LOCAL: u8 = 1;
const RETAIN_AS_PUBLISHED: u8 = 2;
/// Of what waits: it was retained when the subscription was made.
const RETAINED: u8 = 4;

fn options(asked: &Subscribed) -> u8 {
    let no_local = if asked.no_local { NO_LOCAL } else { 0 };
    no_local | if asked.retain_as_published { RETAIN_AS_PUBLISHED } else { 0 }
}

fn row(session: u64, lane: u32, asked: &Subscribed) -> SubscriptionRow {
    let options = options(asked);
    let filter = asked.filter.as_str().to_owned();
    SubscriptionRow { session, lane, filter, qos: asked.qos, options, identifier: asked.identifier }
}

fn asked(row: &SubscriptionRow) -> Option<Subscribed> {
    Some(Subscribed {
        filter: Filter::new(&row.filter).ok()?,
        qos: row.qos,
        no_local: row.options & NO_LOCAL != 0,
        retain_as_published: row.options & RETAIN_AS_PUBLISHED != 0,
        identifier: row.identifier,
    })
}
