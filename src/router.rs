//! Matching and fan-out to live local subscribers, by rumqttd's `Router`. The only file that names rumqttd.
//!
//! Promises:
//! - nothing durable is left to it, and no byte that a client chose reaches it: a filter is a slot number to it (`index`), a
//!   link a number, and what it carries to the links of a slot is a call to look what waits there (`slot`). So UTF-8 topics
//!   and `$` topics are legal, and its logs and caches, which are never freed, stay small;
//! - what waits for live subscribers, of all clients together, never takes more than `RouterLimits::bytes`;
//! - one thread of ours makes every call that can block, in the order in which publishers and subscribers came: who has
//!   its subscription answered gets all that is published from then on;
//! - a publisher is held while a subscriber is too far behind, at most `hold`, then that subscriber is told that it is
//!   slow; what is not kept for it from then on is a hole in the numbers, and reported as `lost`.
//!
//! It never acknowledges, retains or stores, and never lets rumqttd disconnect a link.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use log::{error, info};
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::{Disconnect, DisconnectReasonCode, Packet, Publish};
use rumqttd::{Notification, RouterConfig};
use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot};
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
/// rumqttd's log of a filter: the least that it takes, filled by some sixteen calls. It may forget calls: the last one is
/// always there, and one is as good as many.
const SEGMENT_BYTES: usize = 1024;
const SEGMENTS: usize = 1;
const CALL: &[u8] = &[b'.'; 56];
/// Packets that wait for rumqttd's thread before ours waits for it.
const PUSHED_MAX: usize = 1024;
/// Messages that our thread hands over at once.
const BATCH_MAX: usize = 256;
/// Calls that wait for our thread.
const JOBS_MAX: usize = 1024;
/// How long rumqttd's thread may take to look at what we gave it.
const STUCK: Duration = Duration::from_secs(5);
/// Links of our own: the one that publishes, and the echo.
const OWN_LINKS: usize = 2;
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
    jobs: mpsc::Sender<Job>,
    index: Mutex<Index>,
    shelf: Shelf,
    limits: RouterLimits,
    /// Told when a link takes something, while a publisher is held.
    progress: Notify,
    held: AtomicUsize,
    /// Who is told when a link is slow.
    links: Mutex<HashMap<u32, Arc<Notify>>>,
    /// Links that were dropped, not detached: to be ended by the thread.
    orphans: Arc<Mutex<Vec<u32>>>,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    fn tell_slow(&self, slow: &[u32]) {
        let links = lock(&self.links);
        slow.iter().filter_map(|link| links.get(link)).for_each(|told| told.notify_one());
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

enum Job {
    Call { slots: Vec<u32> },
    Attach { reply: oneshot::Sender<Result<(u32, LinkRx), RouterError>> },
    Subscribe { link: u32, slot: u32, reply: oneshot::Sender<()> },
    Unsubscribe { link: u32, slot: u32, reply: oneshot::Sender<()> },
    Wake { receiver: LinkRx, reply: oneshot::Sender<LinkRx> },
    Detach { link: u32, reply: oneshot::Sender<()> },
}

impl Router {
    /// Starts rumqttd's router and the thread that speaks to it.
    pub fn start(limits: RouterLimits) -> Result<Router, RouterError> {
        let (jobs, waiting) = mpsc::channel(JOBS_MAX);
        let orphans = Arc::new(Mutex::new(Vec::new()));
        let worker_orphans = orphans.clone();
        let links_max = limits.links + OWN_LINKS;
        std::thread::Builder::new()
            .name("router".to_owned())
            .spawn(move || {
                let end = Worker::start(links_max, worker_orphans).and_then(|worker| worker.run(waiting));
                match end {
                    Ok(()) => info!("The router has stopped"),
                    Err(()) => error!("The router has failed"),
                }
            })
            .map_err(|_| RouterError::Dead)?;
        let shared = Shared {
            jobs,
            index: Mutex::new(Index::default()),
            shelf: Shelf::default(),
            limits,
            progress: Notify::new(),
            held: AtomicUsize::new(0),
            links: Mutex::new(HashMap::new()),
            orphans,
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
                    Verdict::Claimed(slots) => {
                        if !slots.is_empty() {
                            // Under the lock: a link that subscribes after this is in the channel behind it.
                            permit.send(Job::Call { slots });
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
        let (reply, answer) = oneshot::channel();
        self.shared.jobs.send(Job::Attach { reply }).await.map_err(|_| RouterError::Dead)?;
        let (number, receiver) = answer.await.map_err(|_| RouterError::Dead)??;
        let slowed = Arc::new(Notify::new());
        lock(&self.shared.links).insert(number, slowed.clone());
        Ok(Link {
            shared: self.shared.clone(),
            number,
            receiver: Receiver::Here(receiver),
            must_wake: false,
            flags: Arc::new(LinkFlags::default()),
            slowed,
            slots: HashMap::new(),
            filters: HashMap::new(),
            called: VecDeque::new(),
            fetched: VecDeque::new(),
        })
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

/// One session's link. To be ended by `detach`; one that is only dropped is ended a little later.
pub struct Link {
    shared: Arc<Shared>,
    number: u32,
    receiver: Receiver,
    /// rumqttd has paused the link and waits to hear that it has been read.
    must_wake: bool,
    flags: Arc<LinkFlags>,
    slowed: Arc<Notify>,
    slots: HashMap<u32, (Filter, Arc<Claim>)>,
    filters: HashMap<Filter, u32>,
    /// Slots in which something may wait.
    called: VecDeque<u32>,
    /// What was taken from them, and how many were lost before each.
    fetched: VecDeque<(u32, Arc<Lying>, u64)>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filters = self.filters.keys();
        f.debug_struct("Link").field("number", &self.number).field("filters", &filters).finish_non_exhaustive()
    }
}

/// Where the receiving end is: with us, or with the thread that wakes rumqttd for us.
enum Receiver {
    Here(LinkRx),
    Waking(oneshot::Receiver<LinkRx>),
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
        let permit = self.shared.jobs.reserve().await.map_err(|_| RouterError::Dead)?;
        let (reply, answer) = oneshot::channel();
        {
            let mut index = lock(&self.shared.index);
            if index.needs_slot(filter) && index.slots_in_use() >= limits.filters {
                return Err(RouterError::TooManyFilters);
            }
            let (slot, claim) = index.insert(filter, self.number, qos, self.flags.clone());
            self.slots.insert(slot, (filter.clone(), claim));
            self.filters.insert(filter.clone(), slot);
            permit.send(Job::Subscribe { link: self.number, slot, reply });
        }
        answer.await.map_err(|_| RouterError::Dead)
    }

    /// Asks for `filter` no longer. False when it was not asked for.
    pub async fn unsubscribe(&mut self, filter: &Filter) -> Result<bool, RouterError> {
        if !self.filters.contains_key(filter) {
            return Ok(false);
        }
        let permit = self.shared.jobs.reserve().await.map_err(|_| RouterError::Dead)?;
        let (reply, answer) = oneshot::channel();
        {
            let mut index = lock(&self.shared.index);
            let Some(slot) = self.filters.remove(filter) else { return Ok(false) };
            self.slots.remove(&slot);
            // The next filter in this slot is another one.
            self.called.retain(|called| *called != slot);
            self.fetched.retain(|(from, _, _)| *from != slot);
            index.remove(filter, self.number, slot);
            permit.send(Job::Unsubscribe { link: self.number, slot, reply });
        }
        answer.await.map_err(|_| RouterError::Dead)?;
        Ok(true)
    }

    /// The next message. Cancel safe: what was not returned comes with the next call.
    pub async fn next(&mut self) -> Result<Taken, RouterError> {
        loop {
            if let Some(taken) = self.take() {
                return Ok(taken);
            }
            if let Receiver::Waking(answer) = &mut self.receiver {
                let receiver = answer.await.map_err(|_| RouterError::Dead)?;
                self.receiver = Receiver::Here(receiver);
            }
            if self.must_wake {
                let permit = self.shared.jobs.reserve().await.map_err(|_| RouterError::Dead)?;
                let (reply, answer) = oneshot::channel();
                if let Receiver::Here(receiver) = std::mem::replace(&mut self.receiver, Receiver::Waking(answer)) {
                    permit.send(Job::Wake { receiver, reply });
                }
                self.must_wake = false;
                continue;
            }
            let Receiver::Here(receiver) = &mut self.receiver else { continue };
            match receiver.next().await.map_err(|_| RouterError::Dead)? {
                Some(Notification::Forward(forward)) => self.hear(slot_of(&forward.publish.topic)),
                Some(Notification::Unschedule) => self.must_wake = true,
                // It would mean that rumqttd has ended the link: nothing that we send lets it.
                Some(Notification::Disconnect(..)) => return Err(RouterError::Dead),
                Some(_) | None => {}
            }
        }
    }

    /// Waits until publishers were held by this link for too long: whoever is behind it should be disconnected. From
    /// then on nobody waits for it, and it may lose messages, until it has caught up. Cancel safe.
    pub fn slowed(&self) -> impl Future<Output = ()> + Send + use<> {
        let slowed = self.slowed.clone();
        async move { slowed.notified().await }
    }

    /// Says whether nobody is behind the link: shared subscriptions then choose other members while there are any.
    pub fn set_away(&self, away: bool) {
        self.flags.away.store(away, Ordering::SeqCst);
    }

    /// Ends the link.
    pub async fn detach(mut self) {
        self.forget();
        let (reply, answer) = oneshot::channel();
        let job = Job::Detach { link: self.number, reply };
        if self.shared.jobs.send(job).await.is_ok() {
            // A thread that is gone has no links either.
            let _gone = answer.await;
        }
        self.number = u32::MAX;
    }

    fn forget(&mut self) {
        let mut index = lock(&self.shared.index);
        for (filter, slot) in self.filters.drain() {
            index.remove(&filter, self.number, slot);
        }
        self.slots.clear();
        self.called.clear();
        self.fetched.clear();
        lock(&self.shared.links).remove(&self.number);
    }

    fn hear(&mut self, slot: Option<u32>) {
        // Else a filter that was given up.
        if let Some(slot) = slot
            && let Some((_, claim)) = self.slots.get(&slot)
        {
            claim.hear();
            if !self.called.contains(&slot) {
                self.called.push_back(slot);
            }
        }
    }

    /// The next message that is there.
    fn take(&mut self) -> Option<Taken> {
        loop {
            if let Some((slot, lying, lost)) = self.fetched.pop_front() {
                let Some((filter, _)) = self.slots.get(&slot) else { continue };
                return Some(Taken { filter: filter.clone(), live: lying.live.clone(), lost });
            }
            let slot = self.called.pop_front()?;
            self.fetch(slot);
        }
    }

    fn fetch(&mut self, slot: u32) {
        let Some((_, claim)) = self.slots.get(&slot) else { return };
        let mut index = lock(&self.shared.index);
        let fetched = index.fetch(slot, claim);
        if self.flags.slow.load(Ordering::SeqCst) {
            let bounds = self.shared.bounds();
            let is_within = self.flags.unread.load(Ordering::SeqCst) <= bounds.link_bytes / 2;
            if is_within && self.slots.iter().all(|(slot, (_, claim))| index.has_caught_up(*slot, claim, &bounds)) {
                self.flags.slow.store(false, Ordering::SeqCst);
            }
        }
        drop(index);
        let mut lost = fetched.lost;
        for lying in fetched.messages {
            self.fetched.push_back((slot, lying, std::mem::take(&mut lost)));
        }
        if fetched.is_more {
            self.called.push_back(slot);
        }
        if self.shared.held.load(Ordering::SeqCst) > 0 {
            self.shared.progress.notify_waiters();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.number == u32::MAX {
            return;
        }
        // A task that ended without a word: publishers must not wait for it, and its link must not stay for ever.
        self.forget();
        lock(&self.shared.orphans).push(self.number);
    }
}

fn slot_filter(slot: u32) -> String {
    format!("t/{slot}")
}

fn slot_of(topic: &[u8]) -> Option<u32> {
    std::str::from_utf8(topic).ok()?.strip_prefix("t/")?.parse().ok()
}

type Build = Box<dyn Fn(&str) -> Result<(LinkTx, LinkRx), ()>>;

/// The one thread that calls rumqttd's blocking sends. Its errors have no detail: rumqttd gives none.
struct Worker {
    build: Build,
    publisher: LinkTx,
    /// Kept so that rumqttd has somebody to notify; nothing is ever sent to it.
    _publisher_receiver: LinkRx,
    links: HashMap<u32, LinkTx>,
    /// Numbers are names in rumqttd, which keeps a note about every name it ever saw: they are used again.
    free: Vec<u32>,
    orphans: Arc<Mutex<Vec<u32>>>,
}

impl Worker {
    fn start(links_max: usize, orphans: Arc<Mutex<Vec<u32>>>) -> Result<Worker, ()> {
        let config = RouterConfig {
            max_connections: links_max + 1,
            max_outgoing_packet_count: 64,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        };
        let events = rumqttd::Router::new(0, config).spawn();
        let build: Build = Box::new(move |name| {
            let (sender, receiver, _connack) = LinkBuilder::new(name, events.clone()).build().map_err(drop)?;
            Ok((sender, receiver))
        });
        let (publisher, receiver) = build("publisher")?;
        let free = (0..u32::try_from(links_max).unwrap_or(u32::MAX - 1)).rev().collect();
        Ok(Worker { build, publisher, _publisher_receiver: receiver, links: HashMap::new(), free, orphans })
    }

    fn run(mut self, mut jobs: mpsc::Receiver<Job>) -> Result<(), ()> {
        let mut batch: Vec<u32> = Vec::with_capacity(BATCH_MAX);
        while let Some(job) = jobs.blocking_recv() {
            self.bury()?;
            let mut next = Some(job);
            while let Some(job) = next.take() {
                match job {
                    Job::Call { slots } => {
                        batch.extend(slots);
                        if batch.len() < BATCH_MAX {
                            next = jobs.try_recv().ok();
                        }
                    }
                    other => {
                        self.call(&mut batch)?;
                        self.execute(other)?;
                    }
                }
            }
            self.call(&mut batch)?;
        }
        Ok(())
    }

    fn call(&mut self, batch: &mut Vec<u32>) -> Result<(), ()> {
        let last = batch.pop();
        if last.is_none() {
            return Ok(());
        }
        wait_until(|| self.publisher.buffer().len() < PUSHED_MAX)?;
        {
            let mut buffer = self.publisher.buffer();
            for slot in batch.drain(..) {
                let publish = Publish::new(Bytes::from(slot_filter(slot)), Bytes::from_static(CALL), false);
                buffer.push_back(Packet::Publish(publish, None));
            }
        }
        if let Some(slot) = last {
            self.publisher.publish(slot_filter(slot), Bytes::from_static(CALL)).map_err(drop)?;
        }
        Ok(())
    }

    fn execute(&mut self, job: Job) -> Result<(), ()> {
        match job {
            Job::Call { .. } => {}
            Job::Attach { reply } => self.attach(reply)?,
            Job::Subscribe { link, slot, reply } => {
                if let Some(sender) = self.links.get_mut(&link) {
                    sender.subscribe(slot_filter(slot)).map_err(drop)?;
                    // rumqttd takes all packets of a link at once: a publish that comes after this could be taken
                    // with an earlier one, before it has seen the subscription.
                    wait_until(|| sender.buffer().is_empty())?;
                }
                let _left = reply.send(());
            }
            Job::Unsubscribe { link, slot, reply } => {
                if let Some(sender) = self.links.get_mut(&link) {
                    sender.unsubscribe(slot_filter(slot)).map_err(drop)?;
                }
                let _left = reply.send(());
            }
            Job::Wake { receiver, reply } => {
                receiver.ready().map_err(drop)?;
                let _left = reply.send(receiver);
            }
            Job::Detach { link, reply } => {
                self.detach(link)?;
                let _left = reply.send(());
            }
        }
        Ok(())
    }

    fn attach(&mut self, reply: oneshot::Sender<Result<(u32, LinkRx), RouterError>>) -> Result<(), ()> {
        let Some(number) = self.free.pop() else {
            let _left = reply.send(Err(RouterError::Full));
            return Ok(());
        };
        let (sender, receiver) = (self.build)(&number.to_string())?;
        self.links.insert(number, sender);
        if reply.send(Ok((number, receiver))).is_err() {
            // Whoever asked is gone.
            self.detach(number)?;
        }
        Ok(())
    }

    fn detach(&mut self, link: u32) -> Result<(), ()> {
        let Some(mut sender) = self.links.remove(&link) else { return Ok(()) };
        let disconnect = Disconnect { reason_code: DisconnectReasonCode::NormalDisconnection };
        poll_once(sender.send(Packet::Disconnect(disconnect, None)))?;
        self.free.push(link);
        Ok(())
    }

    fn bury(&mut self) -> Result<(), ()> {
        let orphans = std::mem::take(&mut *lock(&self.orphans));
        orphans.into_iter().try_for_each(|link| self.detach(link))
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
