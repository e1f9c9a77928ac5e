//! Matching and fan-out to live local subscribers, by rumqttd's `Router`. The only file that names rumqttd.
//!
//! Promises:
//! - nothing durable is left to it, and no byte that a client chose reaches it: which slots want a message says `index`, the
//!   message waits there (`slot`), and what rumqttd carries is a call with the numbers of the links that sleep. A link of
//!   its own for each session would cost some 30 KB of memory each, and each filter some 7 KB;
//! - what waits for live subscribers, of all clients together, never takes more than `RouterLimits::bytes`;
//! - who has its subscription answered gets all that is published from then on; two threads of ours make every call to
//!   rumqttd that can block;
//! - a publisher is held while a subscriber is too far behind, at most `hold`, then that subscriber is told that it is
//!   slow; what is not kept for it from then on is a hole in the numbers, and reported as `lost`.
//!
//! It never acknowledges, retains or stores, and never lets rumqttd disconnect a link.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use log::error;
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::{Disconnect, DisconnectReasonCode, Packet};
use rumqttd::{Notification, RouterConfig};
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use crate::message::{Filter, Ordinal, Properties, Qos, Topic};
use index::{Index, LEVELS_MAX, Verdict};
use slot::{Bounds, Claim, LinkFlags, Lying, Shelf};

mod index;
mod slot;

/// How many bytes of one filter a link may be behind, and which part of all that may wait it may have waiting for itself.
const LAG_BYTES_MAX: u64 = 256 * 1024;
const LINK_SHARE: usize = 4;
/// rumqttd's log of calls. Should it ever forget some, that is seen, and all links are called.
const SEGMENT_BYTES: usize = 64 * 1024;
const SEGMENTS: usize = 2;
const CALLS: &str = "calls";
/// Packets that wait for rumqttd's thread before ours waits for it.
const PUSHED_MAX: usize = 64;
/// Links that are called with one packet.
const BATCH_MAX: usize = 256;
/// Calls that wait for our thread.
const JOBS_MAX: usize = 1024;
/// How long rumqttd's thread may take to look at what we gave it.
const STUCK: Duration = Duration::from_secs(5);
/// The link of the echo.
const OWN_LINKS: usize = 1;
const ECHO_TOPIC: &str = "$tidegate/echo";
const ECHO_EVERY: Duration = Duration::from_secs(2);
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of the router.
#[derive(Debug, Clone)]
pub struct RouterLimits {
    /// Links at once.
    pub links: usize,
    /// Filters of one link.
    pub filters_per_link: usize,
    /// Distinct filters of all links.
    pub filters: usize,
    /// What may wait for all links together, in bytes of memory.
    pub bytes: usize,
    /// How many messages of one filter a link may be behind before its publishers are held.
    pub lag_messages: u64,
    /// How long a publisher is held at most.
    pub hold: Duration,
}

impl Default for RouterLimits {
    fn default() -> RouterLimits {
        RouterLimits {
            links: 1000,
            filters_per_link: 256,
            filters: 4096,
            bytes: 32 * 1024 * 1024,
            lag_messages: 1000,
            hold: Duration::from_millis(100),
        }
    }
}

/// What live subscribers get.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// The topic.
    pub topic: Topic,
    /// As published; a subscriber gets the lower of this and its own.
    pub qos: Qos,
    /// As published, for retain-as-published.
    pub retain: bool,
    /// The body, encoded.
    pub payload: Bytes,
    /// MQTT 5 properties.
    pub properties: Option<Box<Properties>>,
    /// The client id of the publisher, for No Local; `None` when it was not a local client.
    pub publisher: Option<Arc<str>>,
    /// Of a message that is retained: by it a new subscriber knows what it got as such.
    pub ordinal: Option<Ordinal>,
}

/// A live message on a link.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// The filter that asked for it: a message comes once for each filter of the link that matches.
    pub filter: Filter,
    /// The message.
    pub live: Live,
    /// How many messages of this filter before it were lost, because the link was too far behind.
    pub lost: u64,
}

/// Why the router does not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RouterError {
    /// Its thread is gone or stuck. Ends the process: systemd starts it again, and the queue has all that was
    /// acknowledged.
    #[error("the router does not answer")]
    Dead,
    /// More links than the limits allow.
    #[error("the router has no room for another session")]
    Full,
    /// More filters than the limits allow, or one with too many levels.
    #[error("the router has no room for another filter")]
    TooManyFilters,
}

/// The router. Cheap to clone; its threads end with the last clone and the last link.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("filters", &self.shared.index().slots_in_use()).finish_non_exhaustive()
    }
}

struct Shared {
    /// Links that are to be called.
    jobs: mpsc::Sender<Vec<u32>>,
    index: Mutex<Index>,
    shelf: Shelf,
    limits: RouterLimits,
    /// Told when a link takes something, while a publisher is held.
    progress: Notify,
    held: AtomicUsize,
    links: Arc<Mutex<Links>>,
}

#[derive(Default)]
struct Links {
    readers: HashMap<u32, Arc<Reader>>,
    free: Vec<u32>,
    /// A thread of the router is gone.
    is_dead: bool,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    fn tell_slow(&self, slow: &[u32]) {
        let links = lock(&self.links);
        slow.iter().filter_map(|link| links.readers.get(link)).for_each(|reader| reader.slowed.notify_one());
    }

    fn bounds(&self) -> Bounds {
        let shelf_bytes = self.limits.bytes;
        let link_bytes = u64::try_from(shelf_bytes / LINK_SHARE).unwrap_or(u64::MAX);
        Bounds { messages: self.limits.lag_messages, bytes: LAG_BYTES_MAX, link_bytes, shelf_bytes }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept under these locks is whole after every statement that can fail.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A link as publishers and our threads see it.
struct Reader {
    flags: Arc<LinkFlags>,
    /// Something waits for it.
    called: Notify,
    /// Publishers were held by it for too long.
    slowed: Notify,
}

impl Router {
    /// Starts rumqttd's router and the threads that speak to it.
    pub fn start(limits: RouterLimits) -> Result<Router, RouterError> {
        let (jobs, waiting) = mpsc::channel(JOBS_MAX);
        let links = Links {
            free: (0..u32::try_from(limits.links + OWN_LINKS).unwrap_or(u32::MAX)).rev().collect(),
            ..Links::default()
        };
        let links = Arc::new(Mutex::new(links));
        let pipe = Pipe::open().map_err(|()| RouterError::Dead)?;
        let Pipe { publisher, caller, receiver, .. } = pipe;
        for (name, work) in [
            (
                "router",
                Box::new(move || Worker { publisher, caller }.run(waiting))
                    as Box<dyn FnOnce() -> Result<(), ()> + Send>,
            ),
            ("router-calls", {
                let links = links.clone();
                Box::new(move || call(receiver, &links))
            }),
        ] {
            let links = links.clone();
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || {
                    if work().is_err() {
                        error!("The router has failed");
                    }
                    // Whoever waits for a message sees that none comes any more.
                    let mut links = lock(&links);
                    links.is_dead = true;
                    links.readers.values().for_each(|reader| reader.called.notify_one());
                })
                .map_err(|_| RouterError::Dead)?;
        }
        let shared = Shared {
            jobs,
            index: Mutex::new(Index::default()),
            shelf: Shelf::default(),
            limits,
            progress: Notify::new(),
            held: AtomicUsize::new(0),
            links,
        };
        Ok(Router { shared: Arc::new(shared) })
    }

    /// Hands a message to all live subscribers; waits while the router or one of those subscribers is behind.
    pub async fn publish(&self, live: Live) -> Result<(), RouterError> {
        let shared = &self.shared;
        if !self.is_wanted(&live.topic) {
            return Ok(());
        }
        let mut holding: Option<Holding<'_>> = None;
        loop {
            // Before the look at the index, so that no progress after it goes unnoticed.
            let progress = shared.progress.notified();
            let permit = shared.jobs.reserve().await.map_err(|_| RouterError::Dead)?;
            let overdue = holding.as_ref().is_some_and(|holding| Instant::now() >= holding.until);
            let lagging = {
                let mut index = shared.index();
                match index.claim(&live, &shared.shelf, &shared.bounds(), overdue) {
                    Verdict::Nobody => return Ok(()),
                    Verdict::Claimed(calls) => {
                        if !calls.is_empty() {
                            permit.send(calls);
                        }
                        return Ok(());
                    }
                    Verdict::Lagging(links) => links,
                    Verdict::Lost(links) => {
                        drop(index);
                        shared.tell_slow(&links);
                        return Ok(());
                    }
                }
            };
            drop(permit);
            if overdue {
                shared.tell_slow(&lagging);
                continue;
            }
            let until = match &holding {
                Some(holding) => holding.until,
                None => {
                    // The next turn looks again with this count visible to the links.
                    let until = Instant::now() + shared.limits.hold;
                    holding = Some(Holding::new(&shared.held, until));
                    continue;
                }
            };
            // Ending late is the other branch of the next turn.
            let _late = time::timeout_at(until, progress).await;
        }
    }

    /// Whether any live session subscribes to `topic` (for reason 0x10).
    pub fn is_wanted(&self, topic: &Topic) -> bool {
        self.shared.index().is_wanted(topic)
    }

    /// A link for one session.
    pub async fn attach(&self) -> Result<Link, RouterError> {
        let mut links = lock(&self.shared.links);
        if links.is_dead {
            return Err(RouterError::Dead);
        }
        let number = links.free.pop().ok_or(RouterError::Full)?;
        let reader = Reader { flags: Arc::default(), called: Notify::new(), slowed: Notify::new() };
        let reader = Arc::new(reader);
        links.readers.insert(number, reader.clone());
        let (slots, filters) = (HashMap::new(), HashMap::new());
        Ok(Link { shared: self.shared.clone(), number, reader, slots, filters, fetched: VecDeque::new() })
    }

    /// Sends itself a message every two seconds, until `stop` or until one does not come back within 5 s.
    ///
    /// # Errors
    /// `Dead`: nothing else tells that rumqttd's thread has panicked or hangs.
    pub async fn watch(&self, stop: CancellationToken) -> Result<(), RouterError> {
        let echo = Echo::new()?;
        let mut link = self.attach().await?;
        link.subscribe(&echo.filter, Qos::AtMostOnce).await?;
        let end = loop {
            let round = async {
                self.publish(echo.live.clone()).await?;
                link.next().await.map(drop)
            };
            match time::timeout(ECHO_TIMEOUT, round).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(error),
                Err(_) => break Err(RouterError::Dead),
            }
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                () = time::sleep(ECHO_EVERY) => {}
            }
        };
        link.detach().await;
        end
    }
}

struct Echo {
    filter: Filter,
    live: Live,
}

impl Echo {
    fn new() -> Result<Echo, RouterError> {
        // Both are constants that are valid.
        let filter = Filter::new(ECHO_TOPIC).map_err(|_| RouterError::Dead)?;
        let topic = Topic::new(ECHO_TOPIC).map_err(|_| RouterError::Dead)?;
        let live = Live {
            topic,
            qos: Qos::AtMostOnce,
            retain: false,
            payload: Bytes::from_static(b"echo"),
            properties: None,
            publisher: None,
            ordinal: None,
        };
        Ok(Echo { filter, live })
    }
}

/// A publisher that is held, and until when.
struct Holding<'s> {
    held: &'s AtomicUsize,
    until: Instant,
}

impl<'s> Holding<'s> {
    fn new(held: &'s AtomicUsize, until: Instant) -> Holding<'s> {
        held.fetch_add(1, Ordering::SeqCst);
        Holding { held, until }
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One session's link. Ends when it is dropped.
pub struct Link {
    shared: Arc<Shared>,
    number: u32,
    reader: Arc<Reader>,
    slots: HashMap<u32, (Filter, Arc<Claim>)>,
    filters: HashMap<Filter, u32>,
    /// What was taken from the slots, and how many were lost before each.
    fetched: VecDeque<(u32, Arc<Lying>, u64)>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filters = self.filters.keys();
        f.debug_struct("Link").field("number", &self.number).field("filters", &filters).finish_non_exhaustive()
    }
}

impl Link {
    /// Asks for `filter` from now on: what is published after this has returned comes, each message for `COPIES_MAX` of
    /// the filters of this link at most, those of the highest `qos`. Asking again changes nothing but that.
    pub async fn subscribe(&mut self, filter: &Filter, qos: Qos) -> Result<(), RouterError> {
        if let Some((_, claim)) = self.filters.get(filter).and_then(|slot| self.slots.get(slot)) {
            claim.set_qos(qos);
            return Ok(());
        }
        let limits = &self.shared.limits;
        if self.filters.len() >= limits.filters_per_link || filter.pattern().split('/').count() > LEVELS_MAX {
            return Err(RouterError::TooManyFilters);
        }
        let mut index = lock(&self.shared.index);
        if index.needs_slot(filter) && index.slots_in_use() >= limits.filters {
            return Err(RouterError::TooManyFilters);
        }
        let (slot, claim) = index.insert(filter, self.number, qos, self.reader.flags.clone());
        self.slots.insert(slot, (filter.clone(), claim));
        self.filters.insert(filter.clone(), slot);
        Ok(())
    }

    /// Asks for `filter` no longer. False when it was not asked for.
    pub async fn unsubscribe(&mut self, filter: &Filter) -> Result<bool, RouterError> {
        let Some(slot) = self.filters.remove(filter) else { return Ok(false) };
        // The next filter in this slot is another one.
        self.slots.remove(&slot);
        self.reader.flags.forget(slot);
        self.fetched.retain(|(from, _, _)| *from != slot);
        lock(&self.shared.index).remove(filter, self.number, slot);
        Ok(true)
    }

    /// The next message. Cancel safe: what was not returned comes with the next call.
    pub async fn next(&mut self) -> Result<Taken, RouterError> {
        loop {
            if let Some(taken) = self.take() {
                return Ok(taken);
            }
            // From here on it is called again; what came before is looked for once more.
            self.reader.flags.listen();
            if let Some(taken) = self.take() {
                return Ok(taken);
            }
            if lock(&self.shared.links).is_dead {
                return Err(RouterError::Dead);
            }
            self.reader.called.notified().await;
        }
    }

    /// Waits until publishers were held by this link for too long: whoever is behind it should be disconnected. From
    /// then on nobody waits for it, and it may lose messages, until it has caught up. Cancel safe.
    pub fn slowed(&self) -> impl Future<Output = ()> + Send + use<> {
        let reader = self.reader.clone();
        async move { reader.slowed.notified().await }
    }

    /// Says whether nobody is behind the link: shared subscriptions then choose other members while there are any.
    pub fn set_away(&self, away: bool) {
        self.reader.flags.away.store(away, Ordering::SeqCst);
    }

    /// Ends the link.
    pub async fn detach(self) {
        drop(self);
    }

    /// The next message that is there.
    fn take(&mut self) -> Option<Taken> {
        loop {
            if let Some((slot, lying, lost)) = self.fetched.pop_front() {
                let Some((filter, _)) = self.slots.get(&slot) else { continue };
                return Some(Taken { filter: filter.clone(), live: lying.live.clone(), lost });
            }
            let slot = self.reader.flags.pending()?;
            self.fetch(slot);
        }
    }

    fn fetch(&mut self, slot: u32) {
        let Some((_, claim)) = self.slots.get(&slot) else { return };
        claim.hear();
        let mut index = lock(&self.shared.index);
        let fetched = index.fetch(slot, claim);
        if self.reader.flags.slow.load(Ordering::SeqCst) {
            let bounds = self.shared.bounds();
            let is_within = self.reader.flags.unread.load(Ordering::SeqCst) <= bounds.link_bytes / 2;
            if is_within && self.slots.iter().all(|(slot, (_, claim))| index.has_caught_up(*slot, claim, &bounds)) {
                self.reader.flags.slow.store(false, Ordering::SeqCst);
            }
        }
        drop(index);
        let mut lost = fetched.lost;
        for lying in fetched.messages {
            self.fetched.push_back((slot, lying, std::mem::take(&mut lost)));
        }
        if fetched.is_more {
            claim.call(slot);
        }
        if self.shared.held.load(Ordering::SeqCst) > 0 {
            self.shared.progress.notify_waiters();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut index = lock(&self.shared.index);
        for (filter, slot) in self.filters.drain() {
            index.remove(&filter, self.number, slot);
        }
        drop(index);
        let mut links = lock(&self.shared.links);
        links.readers.remove(&self.number);
        links.free.push(self.number);
    }
}

/// What we have of rumqttd: a router with two links, calls from the one to the other.
struct Pipe {
    publisher: Publisher,
    /// The other link: what it says, and what it hears.
    caller: LinkTx,
    receiver: LinkRx,
}

struct Publisher {
    sender: LinkTx,
    /// Kept so that rumqttd has somebody to notify; nothing is ever sent to it.
    _receiver: LinkRx,
}

impl Pipe {
    /// Errors have no detail here: rumqttd gives none.
    fn open() -> Result<Pipe, ()> {
        let config = RouterConfig {
            max_connections: 3,
            max_outgoing_packet_count: 64,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        };
        let events = rumqttd::Router::new(0, config).spawn();
        let build = |name: &str| LinkBuilder::new(name, events.clone()).build().map_err(drop);
        let (sender, receiver, _connack) = build("publisher")?;
        let publisher = Publisher { sender, _receiver: receiver };
        let (mut caller, receiver, _connack) = build("caller")?;
        caller.subscribe(CALLS).map_err(drop)?;
        // rumqttd takes all packets of a link at once: a call that comes after this could be taken with an earlier one,
        // before it has seen the subscription.
        wait_until(|| caller.buffer().is_empty())?;
        Ok(Pipe { publisher, caller, receiver })
    }
}

/// The one thread that makes rumqttd's blocking sends.
struct Worker {
    publisher: Publisher,
    caller: LinkTx,
}

impl Worker {
    fn run(mut self, mut jobs: mpsc::Receiver<Vec<u32>>) -> Result<(), ()> {
        let mut links: Vec<u32> = Vec::with_capacity(BATCH_MAX);
        while let Some(first) = jobs.blocking_recv() {
            links.extend(first);
            while links.len() < BATCH_MAX
                && let Ok(more) = jobs.try_recv()
            {
                links.extend(more);
            }
            let mut call = BytesMut::with_capacity(4 * links.len());
            links.drain(..).for_each(|link| call.put_u32(link));
            wait_until(|| self.publisher.sender.buffer().len() < PUSHED_MAX)?;
            self.publisher.sender.publish(CALLS, call.freeze()).map_err(drop)?;
        }
        // The other thread ends with its link.
        let disconnect = Disconnect { reason_code: DisconnectReasonCode::NormalDisconnection };
        poll_once(self.caller.send(Packet::Disconnect(disconnect, None)))
    }
}

/// The thread that hears the calls and wakes whoever is called; ends with its link.
fn call(mut receiver: LinkRx, links: &Mutex<Links>) -> Result<(), ()> {
    let mut expected = None;
    loop {
        match receiver.recv() {
            Ok(Some(Notification::Forward(forward))) => {
                let offset = forward.cursor.map(|(_, offset)| offset);
                let links = lock(links);
                if offset.is_none() || expected.is_some_and(|expected| offset != Some(expected)) {
                    // Calls were lost, and it is not known whose.
                    links.readers.values().for_each(|reader| reader.called.notify_one());
                }
                expected = offset.map(|offset| offset + 1);
                let mut call = forward.publish.payload;
                while let Ok(link) = call.try_get_u32() {
                    if let Some(reader) = links.readers.get(&link) {
                        reader.called.notify_one();
                    }
                }
            }
            Ok(Some(Notification::Unschedule)) => receiver.ready().map_err(drop)?,
            // It was told to, or rumqttd's thread is gone: in either case there is nothing more to hear.
            Ok(Some(Notification::Disconnect(..))) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
    }
}

/// `LinkTx::send` is asynchronous in name only: it blocks in its first poll.
fn poll_once<T, E>(future: impl Future<Output = Result<T, E>>) -> Result<(), ()> {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(Ok(_)) => Ok(()),
        std::task::Poll::Ready(Err(_)) | std::task::Poll::Pending => Err(()),
    }
}

/// Waits for rumqttd's thread, which is quick or dead.
fn wait_until(mut is_done: impl FnMut() -> bool) -> Result<(), ()> {
    let started = Instant::now();
    let mut turns = 0_u32;
    while !is_done() {
        turns = turns.saturating_add(1);
        if turns < 64 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(100));
            if started.elapsed() > STUCK {
                return Err(());
            }
        }
    }
    Ok(())
}
