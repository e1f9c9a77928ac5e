//! One session: its subscriptions, what it still has to deliver and to answer, and the socket while there is one.
//!
//! Promises: the session owns its router link for as long as it lives, sockets come and go; acknowledgements leave
//! through one line in the order of what they answer; a client that breaks the protocol, reads too slowly or falls
//! silent is disconnected with the reason, its will is published, and nobody else notices.
//!
//! A session that outlives its socket is kept by the queue (durable.rs): that it is there, its subscriptions, the ids of
//! what it has received, and what waits at QoS 1 and 2. While no socket is there it needs no actor, except for what is in
//! memory only: a will that waits, QoS 1 copies whose acknowledgement is due, what shared subscriptions have brought.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::debug;
use tokio::sync::mpsc;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::Services;
use super::access::{Changes, Identity, Rights};
use super::aliases::Aliases;
use super::durable::{Durable, Progress};
use super::inbound::{Begun, Inbound, Mark, Running, Settled, Signs};
use super::outbound::Outbound;
use super::socket::{Socket, Turn};
use crate::message::{Filter, Message, Ordinal, Qos, Stamp, Topic};
use crate::mqtt::{Connect, ReasonCode, Version, Will};
use crate::router::{Link, RouterError, Taken};

mod connection;

mod arriving;

mod leaving;

/// A connection whose CONNECT is good, on its way to its session.
#[derive(Debug)]
pub(super) struct Attachment {
    pub socket: Socket,
    pub connect: Box<Connect>,
    /// Who it is.
    pub identity: Identity,
    /// The id was given by us.
    pub is_assigned: bool,
}

/// Options of a subscription.
#[derive(Debug, Clone, Copy)]
struct Options {
    qos: Qos,
    no_local: bool,
    retain_as_published: bool,
    id: Option<u32>,
    /// What was retained up to then came as such when the subscription was made, and comes no second time.
    since: Option<Ordinal>,
}

/// What is under way for subscriptions until their SUBACK and their retained messages are there.
#[derive(Default)]
struct Making {
    /// What the broker says of itself to them.
    told: Vec<(Filter, Vec<Message>)>,
    /// Those that wait for retained messages, and whether each is new.
    filters: HashMap<Filter, bool>,
    /// What came for them live meanwhile: behind what is older.
    early: Vec<Taken>,
    early_bytes: usize,
}

/// The socket of a session and what holds for as long as it is there.
struct Connection {
    socket: Socket,
    version: Version,
    signs: Arc<Signs>,
    /// 1.5 times what CONNECT said; `None` = off.
    keep_alive: Option<Duration>,
    heard_at: Instant,
    expiry_s: u32,
    will: Option<Will>,
    aliases: HashMap<u16, Topic>,
    /// Those that we set, where the client allows any.
    our_aliases: Option<Box<Aliases>>,
    /// QoS 1 and 2 messages of the client that are not answered yet.
    unanswered: u16,
    window: usize,
    /// Messages that waited for it when it came, and their bytes.
    collected: (usize, usize),
}

/// What a session seldom does.
type Seldom<'s> = Pin<Box<dyn Future<Output = ()> + Send + 's>>;

pub(super) struct Session {
    client: Arc<str>,
    services: Arc<Services>,
    attachments: mpsc::Receiver<Box<Attachment>>,
    /// Whose it is, what he may do, and when that may have changed.
    identity: Identity,
    rights: Rights,
    changes: Changes,
    /// When what he showed is to be looked at again, while there is a socket.
    term: Option<Instant>,
    link: Link,
    subscriptions: HashMap<Filter, Options>,
    /// Its end at the queue, where it is kept there.
    durable: Option<Durable>,
    /// It ends with its socket, and is counted as such.
    is_passing: bool,
    /// Its subscriptions that are counted, while it is.
    counted: u64,
    inbound: Inbound,
    /// Work that must end before the next packet is looked at, and whose connection it belongs to.
    begun: Option<(Mark, Running<Begun>)>,
    making: Making,
    outbound: Outbound,
    connection: Option<Connection>,
    /// Counts connections and lives, so that no answer reaches the wrong one.
    mark: Mark,
    /// There is something to resume.
    is_alive: bool,
    /// When it ends, while there is no socket.
    expires: Option<Instant>,
    /// A will that waits for its delay.
    will: Option<(Instant, Will)>,
    /// The gateway stops: what was begun may take until then.
    stopping: Option<Instant>,
    /// When what is being read was taken from the socket.
    arrived: Stamp,
}

enum Event {
    Attached(Box<Attachment>),
    Stop,
    Settled(Mark, Settled),
    Begun(Mark, Begun),
    Turn(Turn),
    Taken(Result<Taken, RouterError>),
    Progress(Progress),
    AccessChanged,
    Slow,
    Time,
}

impl Session {
    /// A session with nothing in it, for `client`; later connections come by `attachments`.
    pub(super) fn new(
        client: Arc<str>,
        services: Arc<Services>,
        attachments: mpsc::Receiver<Box<Attachment>>,
        identity: Identity,
        link: Link,
    ) -> Session {
        // Before the rights are looked up, so that no change is missed.
        let changes = services.access.changes();
        Session {
            rights: services.access.rights(&identity, &client),
            client,
            services,
            attachments,
            identity,
            changes,
            term: None,
            link,
            subscriptions: HashMap::new(),
            durable: None,
            is_passing: false,
            counted: 0,
            inbound: Inbound::new(),
            begun: None,
            making: Making::default(),
            outbound: Outbound::new(),
            connection: None,
            mark: Mark::default(),
            is_alive: false,
            expires: None,
            will: None,
            stopping: None,
            arrived: Stamp::default(),
        }
    }

    /// Serves `first` and all later connections of this client, until the session has ended and all that it had begun
    /// is done.
    pub(super) async fn run(mut self: Box<Self>, first: Box<Attachment>, stop: CancellationToken) {
        Box::pin(self.attach(first)).await;
        loop {
            // Before anything that comes in or goes out after the change.
            if self.changes.are_there() {
                self.look_at_rights().await;
            }
            self.read().await;
            self.inbound.start(&self.services);
            self.ask();
            self.write().await;
            if self.stopping.is_some() && self.is_settled() && self.bid_farewell().await {
                break;
            }
            self.count_subscriptions();
            if self.is_over() {
                match self.services.register.leave(&self.client, &mut self.attachments) {
                    Some(attachment) => Box::pin(self.attach(attachment)).await,
                    None => break,
                }
            }
            match self.wait(&stop).await {
                Event::Attached(attachment) => Box::pin(self.attach(attachment)).await,
                Event::Stop => self.stopping = Some(Instant::now() + self.services.limits.stop_patience),
                Event::Settled(mark, settled) => {
                    self.answer(mark, settled).await;
                    self.answer_more().await;
                }
                Event::Begun(mark, begun) => self.go_on(mark, begun).await,
                Event::Turn(Turn::Moved) => {}
                Event::Turn(Turn::Ended) => self.end_connection(None, true).await,
                Event::Taken(Ok(taken)) => {
                    self.take(taken).await;
                    self.take_more().await;
                }
                Event::Taken(Err(error)) => {
                    self.services.fail(error);
                    self.end_connection(Some(ReasonCode::SERVER_SHUTTING_DOWN), false).await;
                    break;
                }
                Event::Progress(progress) => self.progress(progress).await,
                Event::AccessChanged => self.look_at_rights().await,
                Event::Slow => {
                    if self.connection.is_some() {
                        self.services.health.sessions().slow.fetch_add(1, Ordering::Relaxed);
                        debug!(client = self.client.as_ref(); "A client that reads too slowly is disconnected");
                        self.part(ReasonCode::QUOTA_EXCEEDED, true).await;
                    }
                }
                Event::Time => self.look_at_clock().await,
            }
        }
        self.services.register.leave(&self.client, &mut self.attachments);
        self.count_passing(false);
        self.count_subscriptions();
        self.link.detach().await;
    }

    async fn wait(&mut self, stop: &CancellationToken) -> Event {
        let deadline = self.deadline();
        let may_read = self.may_read();
        let may_take = self.may_take();
        let slowed = self.link.slowed();
        let is_stopping = self.stopping.is_some();
        let Session { attachments, inbound, begun, connection, link, durable, changes, .. } = self;
        tokio::select! {
            Some(attachment) = attachments.recv() => Event::Attached(attachment),
            () = stop.cancelled(), if !is_stopping => Event::Stop,
            (mark, settled) = inbound.settled() => Event::Settled(mark, settled),
            (mark, result) = finished(begun) => Event::Begun(mark, result),
            turn = turn(connection, may_read) => Event::Turn(turn),
            taken = link.next(), if may_take => Event::Taken(taken),
            progress = progress_of(durable) => Event::Progress(progress),
            () = changes.next() => Event::AccessChanged,
            () = slowed => Event::Slow,
            () = sleep_until(deadline) => Event::Time,
        }
    }

    fn may_read(&self) -> bool {
        let limits = &self.services.limits;
        self.stopping.is_none()
            && self.begun.is_none()
            && self.inbound.has_room(limits, limits.inbound_share(self.connected()))
            && self.connection.as_ref().is_some_and(|connection| {
                !connection.signs.held.load(Ordering::Relaxed)
                    && !connection.socket.is_paced()
                    && connection.socket.waiting_bytes() < limits.output_bytes
            })
    }

    /// How many clients there are.
    fn connected(&self) -> usize {
        usize::try_from(self.services.health.sessions().connected.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    fn may_take(&self) -> bool {
        let limits = &self.services.limits;
        let share = limits.waiting_share(self.connected());
        if self.making.early.len() >= limits.waiting_messages || self.making.early_bytes >= share {
            return false;
        }
        match &self.connection {
            // Without a client the oldest give way instead.
            None => true,
            // What was collected while it was away must not keep it from taking more at once.
            Some(connection) => {
                let (messages, bytes) = connection.collected;
                self.outbound.is_within(messages + limits.waiting_messages, bytes + share)
            }
        }
    }

    fn is_settled(&self) -> bool {
        let is_late = self.stopping.is_some_and(|until| Instant::now() >= until);
        let is_told = self.durable.as_ref().is_none_or(Durable::is_idle);
        is_late || (self.inbound.is_empty() && self.begun.is_none() && is_told)
    }

    fn is_over(&self) -> bool {
        self.connection.is_none()
            && (!self.is_alive || self.may_rest())
            && self.will.is_none()
            && self.inbound.is_empty()
            && self.begun.is_none()
    }

    /// Whether all of it is in the store, so that whoever comes back finds it there.
    fn may_rest(&self) -> bool {
        self.durable.as_ref().is_some_and(Durable::is_idle)
            && self.outbound.is_all_kept()
            && self.subscriptions.keys().all(|filter| filter.share_group().is_none())
    }

    fn deadline(&self) -> Option<Instant> {
        let limits = &self.services.limits;
        let connection = self.connection.as_ref().and_then(|connection| {
            let keep_alive = connection.keep_alive.map(|limit| connection.heard_at + limit);
            let socket = connection.socket.deadline(limits.write_timeout, limits.packet_timeout);
            [keep_alive, socket].into_iter().flatten().min()
        });
        let will = self.will.as_ref().map(|(at, _)| *at);
        [connection, self.term, will, self.expires, self.stopping].into_iter().flatten().min()
    }

    async fn look_at_clock(&mut self) {
        let now = Instant::now();
        let limits = &self.services.limits;
        if let Some(connection) = &self.connection {
            let is_silent = connection.keep_alive.is_some_and(|limit| connection.heard_at + limit <= now);
            let socket = connection.socket.deadline(limits.write_timeout, limits.packet_timeout);
            if is_silent {
                self.part(ReasonCode::KEEP_ALIVE_TIMEOUT, true).await;
            } else if socket.is_some_and(|at| at <= now) {
                self.end_connection(None, true).await;
            }
        }
        if self.term.is_some_and(|at| at <= now) {
            self.look_at_term().await;
        }
        if self.expires.is_some_and(|at| at <= now) {
            self.end_session().await;
        }
        if let Some((_, will)) = self.will.take_if(|(at, _)| *at <= now) {
            self.publish_will(will);
        }
    }
}

async fn turn(connection: &mut Option<Connection>, may_read: bool) -> Turn {
    match connection {
        Some(connection) => connection.socket.turn(may_read).await,
        None => std::future::pending().await,
    }
}

async fn progress_of(durable: &mut Option<Durable>) -> Progress {
    match durable {
        Some(durable) => durable.progress().await,
        None => std::future::pending().await,
    }
}

async fn finished(begun: &mut Option<(Mark, Running<Begun>)>) -> (Mark, Begun) {
    match begun {
        Some((mark, future)) => (*mark, future.await),
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
