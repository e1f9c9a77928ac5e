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
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::{debug, warn};
use tokio::sync::mpsc;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::durable::{Durable, Progress};
use super::inbound::{Arrival, Begun, Inbound, Mark, Running, Settled, Signs, Work, poll_now, retained, submit};
use super::outbound::{Delivery, Fit, Next, Outbound};
use super::socket::{Socket, Turn};
use super::{Services, durable, is_reserved, listener};
use crate::intake::AcceptError;
use crate::message::{Body, Filter, Message, Origin, Qos, Stamp, Topic};
use crate::mqtt::{
    Ack, Connack, Connect, DecodeError, Disconnect, EncodeError, Packet, PacketId, Publish, ReasonCode, Suback,
    Subscribe, Unsuback, Unsubscribe, Version, Will,
};
use crate::queue::sessions::{Entrance, Entry, Kept, Retained, Subscribed};
use crate::queue::{AppendError, SessionNumber};
use crate::router::{Link, RouterError, Taken};

/// Live messages that are taken before the socket has its turn again.
const TAKEN_AT_ONCE: usize = 64;

/// A connection whose CONNECT is good, on its way to its session.
#[derive(Debug)]
pub(super) struct Attachment {
    pub socket: Socket,
    pub connect: Box<Connect>,
    /// The id was given by us.
    pub is_assigned: bool,
}

/// Answers that are written before the socket has its turn again.
const ANSWERED_AT_ONCE: usize = 1024;

/// Options of a subscription.
#[derive(Debug, Clone, Copy)]
struct Options {
    qos: Qos,
    no_local: bool,
    retain_as_published: bool,
    id: Option<u32>,
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
    /// QoS 1 and 2 messages of the client that are not answered yet.
    unanswered: u16,
    window: usize,
}

pub(super) struct Session {
    client: Arc<str>,
    services: Arc<Services>,
    attachments: mpsc::Receiver<Attachment>,
    link: Link,
    subscriptions: HashMap<Filter, Options>,
    /// Its end at the queue, where it is kept there.
    durable: Option<Durable>,
    /// It ends with its socket, and is counted as such.
    is_passing: bool,
    inbound: Inbound,
    /// Work that must end before the next packet is looked at, and whose connection it belongs to.
    begun: Option<(Mark, Running<Begun>)>,
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
    Attached(Attachment),
    Stop,
    Settled(Mark, Settled),
    Begun(Mark, Begun),
    Turn(Turn),
    Taken(Result<Taken, RouterError>),
    Progress(Progress),
    Slow,
    Time,
}

impl Session {
    /// A session with nothing in it, for `client`; later connections come by `attachments`.
    pub(super) fn new(
        client: Arc<str>,
        services: Arc<Services>,
        attachments: mpsc::Receiver<Attachment>,
        link: Link,
    ) -> Session {
        Session {
            client,
            services,
            attachments,
            link,
            subscriptions: HashMap::new(),
            durable: None,
            is_passing: false,
            inbound: Inbound::new(),
            begun: None,
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
    pub(super) async fn run(mut self, first: Attachment, stop: CancellationToken) {
        self.attach(first).await;
        loop {
            self.read().await;
            self.inbound.start(&self.services);
            self.ask();
            self.write().await;
            if self.stopping.is_some() && self.is_settled() {
                self.part(ReasonCode::SERVER_SHUTTING_DOWN, false).await;
                break;
            }
            if self.is_over() {
                match self.services.register.leave(&self.client, &mut self.attachments) {
                    Some(attachment) => self.attach(attachment).await,
                    None => break,
                }
            }
            match self.wait(&stop).await {
                Event::Attached(attachment) => self.attach(attachment).await,
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
        self.link.detach().await;
    }

    async fn wait(&mut self, stop: &CancellationToken) -> Event {
        let deadline = self.deadline();
        let may_read = self.may_read();
        let may_take = self.may_take();
        let slowed = self.link.slowed();
        let is_stopping = self.stopping.is_some();
        let Session { attachments, inbound, begun, connection, link, durable, .. } = self;
        tokio::select! {
            Some(attachment) = attachments.recv() => Event::Attached(attachment),
            () = stop.cancelled(), if !is_stopping => Event::Stop,
            (mark, settled) = inbound.settled() => Event::Settled(mark, settled),
            (mark, result) = finished(begun) => Event::Begun(mark, result),
            turn = turn(connection, may_read) => Event::Turn(turn),
            taken = link.next(), if may_take => Event::Taken(taken),
            progress = progress_of(durable) => Event::Progress(progress),
            () = slowed => Event::Slow,
            () = sleep_until(deadline) => Event::Time,
        }
    }

    fn may_read(&self) -> bool {
        let limits = &self.services.limits;
        self.stopping.is_none()
            && self.begun.is_none()
            && self.inbound.has_room(limits)
            && self.connection.as_ref().is_some_and(|connection| {
                !connection.signs.held.load(Ordering::Relaxed)
                    && connection.socket.waiting_bytes() < limits.output_bytes
            })
    }

    fn may_take(&self) -> bool {
        let limits = &self.services.limits;
        match &self.connection {
            // Without a client the oldest give way instead.
            None => true,
            Some(connection) if connection.expiry_s == 0 && self.durable.is_none() => {
                self.outbound.is_within(limits.waiting_messages, limits.waiting_bytes)
            }
            // What it had collected must not keep it from taking more at once.
            Some(_) => self
                .outbound
                .is_within(limits.away_messages + limits.waiting_messages, limits.away_bytes + limits.waiting_bytes),
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
        [connection, will, self.expires, self.stopping].into_iter().flatten().min()
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
        if self.expires.is_some_and(|at| at <= now) {
            self.end_session().await;
        }
        if let Some((_, will)) = self.will.take_if(|(at, _)| *at <= now) {
            self.publish_will(will);
        }
    }

    // Connections

    async fn attach(&mut self, attachment: Attachment) {
        let Attachment { mut socket, connect, is_assigned } = attachment;
        if self.connection.is_some() {
            self.part(ReasonCode::SESSION_TAKEN_OVER, true).await;
        }
        let version = connect.version;
        let limit_s = self.services.limits.session_expiry_s;
        let asked_s = match version {
            Version::V5 => connect.session_expiry_s.unwrap_or(0),
            Version::V311 if connect.clean_start => 0,
            Version::V311 => limit_s,
        };
        let expiry_s = asked_s.min(limit_s);
        let kept = match self.enter(version, connect.clean_start, expiry_s).await {
            Ok(kept) => kept,
            Err(reason) => return listener::refuse(socket, version, reason, &self.services),
        };
        let number = kept.as_ref().map(|kept| kept.number);
        if number.is_none() || number != self.number() {
            self.end_session().await;
        }
        self.count_passing(number.is_none());
        let session_present = kept.as_ref().is_some_and(|kept| kept.is_present);
        if let Some(kept) = kept {
            self.take_up(kept).await;
        }
        // A will that still waited for its delay is not published when its session is resumed.
        self.will = None;
        self.expires = None;
        self.is_alive = true;
        self.link.set_away(false);
        self.outbound.resume();

        let limits = &self.services.limits;
        socket.set_up(version, limits.packet_bytes, connect.packet_bytes_max);
        let connack = Connack {
            session_present,
            session_expiry_s: (expiry_s != asked_s).then_some(expiry_s),
            receive_max: std::num::NonZeroU16::new(limits.inbound),
            packet_bytes_max: u32::try_from(limits.packet_bytes).ok(),
            assigned_client_id: is_assigned.then(|| self.client.to_string()),
            topic_alias_max: limits.topic_aliases,
            ..Connack::new(ReasonCode::SUCCESS)
        };
        let receive_max = connect.receive_max.map_or(u16::MAX, |max| max.get());
        let keep_alive = Duration::from_secs(u64::from(connect.keep_alive_s)) * 3 / 2;
        let mut connection = Connection {
            socket,
            version,
            signs: Arc::default(),
            keep_alive: (!keep_alive.is_zero()).then_some(keep_alive),
            heard_at: Instant::now(),
            expiry_s,
            will: connect.will,
            aliases: HashMap::new(),
            unanswered: 0,
            window: usize::from(receive_max.min(limits.outbound)),
        };
        let written = connection.socket.send(&Packet::Connack(Box::new(connack)));
        debug!(client = self.client.as_ref(), peer:% = connection.socket.peer(); "A client is connected");
        self.connection = Some(connection);
        self.services.health.sessions().connected.fetch_add(1, Ordering::Relaxed);
        if written.is_err() {
            // It takes packets that are shorter than a CONNACK.
            self.end_connection(None, true).await;
        }
    }

    /// Tells the queue of a client that is let in, where it has to know. `None`: nothing is kept for it.
    async fn enter(&mut self, version: Version, is_clean: bool, expiry_s: u32) -> Result<Option<Kept>, ReasonCode> {
        let inlet = &self.services.inlet;
        if expiry_s == 0 && !inlet.keeps_session(&self.client) {
            return Ok(None);
        }
        // Nobody has a name here that was proven: all are the same user.
        let entrance = Entrance { user: Arc::from(""), client: self.client.clone(), is_clean, expiry_s };
        match inlet.enter_session(entrance).await {
            Ok(Entry::Kept(kept)) => Ok(Some(kept)),
            Ok(Entry::Passing) => Ok(None),
            Ok(Entry::Foreign) => Err(ReasonCode::NOT_AUTHORIZED),
            Ok(Entry::Full) => Err(listener::too_many(version)),
            Err(error) => {
                warn!(client = self.client.as_ref(), error:% = error; "A session could not be kept, its client is refused");
                Err(ReasonCode::SERVER_UNAVAILABLE)
            }
        }
    }

    /// Goes on with a session as the store has it, which is what the client was told.
    async fn take_up(&mut self, kept: Kept) {
        let Kept { number, received, subscriptions, flights, .. } = kept;
        if self.durable.is_none() {
            let now = self.services.intake.now();
            self.durable = Some(Durable::new(self.services.inlet.session_outlet(number)));
            for flight in flights {
                let delivery = flight.parcel.and_then(|parcel| durable::delivery(parcel, now));
                if let Some(packet_id) = PacketId::new(flight.packet_id) {
                    self.outbound.restore(packet_id, delivery);
                }
            }
        }
        self.inbound.number = Some(number);
        received.into_iter().filter_map(PacketId::new).for_each(|packet_id| self.inbound.receive(packet_id));
        let unkept = |filter: &&Filter| subscriptions.iter().all(|kept| kept.filter != **filter);
        let unkept: Vec<Filter> = self.subscriptions.keys().filter(unkept).cloned().collect();
        for filter in unkept {
            self.subscriptions.remove(&filter);
            if let Err(error) = self.link.unsubscribe(&filter).await {
                self.services.fail(error);
            }
        }
        for Subscribed { filter, qos, no_local, retain_as_published, identifier: id } in subscriptions {
            if !self.subscriptions.contains_key(&filter) {
                match self.link.subscribe(&filter).await {
                    Ok(()) => {}
                    Err(RouterError::Dead) => self.services.fail(RouterError::Dead),
                    Err(error) => {
                        warn!(client = self.client.as_ref(), filter = filter.as_str(), error:% = error;
                              "A subscription that was kept brings nothing live");
                    }
                }
            }
            self.subscriptions.insert(filter, Options { qos, no_local, retain_as_published, id });
        }
    }

    /// Ends the connection with a reason, which a 3.1.1 client cannot be told.
    async fn part(&mut self, reason: ReasonCode, with_will: bool) {
        self.end_connection(Some(reason), with_will).await;
    }

    async fn break_off(&mut self, reason: ReasonCode, what: &str) {
        self.services.note_protocol_error(&self.client, reason, what);
        self.part(reason, true).await;
    }

    async fn end_connection(&mut self, reason: Option<ReasonCode>, with_will: bool) {
        let Some(mut connection) = self.connection.take() else { return };
        self.mark.connection += 1;
        // First, so that whoever sees in the counter that the client is gone finds its session keeping no QoS 0.
        self.link.set_away(true);
        self.services.health.sessions().connected.fetch_sub(1, Ordering::Relaxed);
        connection.signs.gone.store(true, Ordering::Relaxed);
        debug!(client = self.client.as_ref(); "A connection has ended");
        if let Some(reason) = reason
            && connection.version == Version::V5
        {
            // A client that takes no packet of four bytes is not told.
            let _told = connection.socket.send(&Packet::Disconnect(Disconnect::new(reason)));
        }
        // Before the socket is closed: who sees that finds it so. Whoever takes the session over says so at once.
        if let Some(number) = self.number().filter(|_| reason != Some(ReasonCode::SESSION_TAKEN_OVER)) {
            self.leave(number, connection.expiry_s).await;
        }
        // Its last bytes are written elsewhere: nobody waits for a client that does not read them.
        self.services.see_off(connection.socket);
        if let Some(will) = connection.will.filter(|_| with_will) {
            match will.delay_s.min(connection.expiry_s) {
                0 => self.publish_will(will),
                delay_s => self.will = Some((Instant::now() + Duration::from_secs(u64::from(delay_s)), will)),
            }
        }
        if connection.expiry_s == 0 {
            self.end_session().await;
            return;
        }
        self.expires = Some(Instant::now() + Duration::from_secs(u64::from(connection.expiry_s)));
        self.outbound.forget_qos0();
        let limits = &self.services.limits;
        let share = limits.away_share(self.services.register.len());
        let dropped = self.outbound.shrink_to(limits.away_messages, share);
        self.services.count_dropped(dropped);
    }

    fn number(&self) -> Option<SessionNumber> {
        self.durable.as_ref().map(Durable::number)
    }

    fn count_passing(&mut self, is_passing: bool) {
        let gauge = &self.services.health.sessions().passing;
        match (std::mem::replace(&mut self.is_passing, is_passing), is_passing) {
            (false, true) => drop(gauge.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(gauge.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
    }

    async fn leave(&mut self, number: SessionNumber, expiry_s: u32) {
        if let Err(error) = self.services.inlet.leave_session(number, expiry_s).await {
            warn!(client = self.client.as_ref(), error:% = error; "The end of a connection was not kept");
        }
    }

    /// Forgets all that a later connection could resume.
    async fn end_session(&mut self) {
        if let Some(number) = self.number() {
            self.leave(number, 0).await;
        }
        self.forget().await;
        if let Some((_, will)) = self.will.take() {
            self.publish_will(will);
        }
    }

    /// Lets go of what is in memory of a session.
    async fn forget(&mut self) {
        self.is_alive = false;
        self.durable = None;
        self.count_passing(false);
        self.expires = None;
        for filter in std::mem::take(&mut self.subscriptions).into_keys() {
            if let Err(error) = self.link.unsubscribe(&filter).await {
                self.services.fail(error);
            }
        }
        self.outbound = Outbound::new();
        self.inbound.reset(self.mark);
        self.mark.life += 1;
    }

    fn publish_will(&mut self, will: Will) {
        let properties = (will.properties != Default::default()).then(|| Box::new(will.properties));
        let message = Message {
            topic: will.topic,
            qos: will.qos,
            retain: will.retain,
            properties,
            body: Body::Bytes(will.payload),
            origin: Origin::Client(self.client.clone()),
            received: self.services.intake.now(),
        };
        self.inbound.push(self.mark, Work::Will { message });
    }

    async fn send(&mut self, packet: Packet) {
        let Some(connection) = &mut self.connection else { return };
        if let Err(error) = connection.socket.send(&packet) {
            debug!(client = self.client.as_ref(), error:% = error; "An answer does not fit what the client takes");
            self.end_connection(None, true).await;
        }
    }

    // From the client

    async fn read(&mut self) {
        if !self.may_read() {
            // Its silence is ours.
            if let Some(connection) = &mut self.connection {
                connection.heard_at = Instant::now();
                connection.socket.excuse();
            }
        }
        // One look at the clocks for all that one read brought.
        let now = Instant::now();
        self.arrived = self.services.intake.now();
        while self.may_read() {
            let Some(connection) = &mut self.connection else { return };
            match connection.socket.decode() {
                Ok(Some(packet)) => {
                    connection.heard_at = now;
                    self.handle(packet).await;
                    self.hurry().await;
                }
                Ok(None) => return,
                Err(error) => return self.refuse(&error).await,
            }
        }
    }

    /// Work that can end at once does, without a turn of the whole loop.
    async fn hurry(&mut self) {
        if let Some((mark, future)) = &mut self.begun {
            let mark = *mark;
            if let Some(begun) = poll_now(future.as_mut()) {
                self.go_on(mark, begun).await;
            }
        }
    }

    async fn refuse(&mut self, error: &DecodeError) {
        self.services.note_protocol_error(&self.client, error.reason, &error.what);
        self.part(error.reason, true).await;
    }

    async fn handle(&mut self, packet: Packet) {
        match packet {
            Packet::Publish(publish) => self.publish(publish).await,
            Packet::Puback(ack) => {
                let fit = self.outbound.acknowledge(ack.packet_id);
                self.check(fit, "a PUBACK for a QoS 2 message").await;
            }
            Packet::Pubrec(ack) => self.received(ack).await,
            Packet::Pubrel(ack) => {
                // With the number that the message had: the session may have got one since.
                let number = self.inbound.number.filter(|_| self.inbound.has_received(ack.packet_id));
                let once = number.map(|session| crate::queue::Once { session, packet_id: ack.packet_id.get() });
                self.inbound.push(self.mark, Work::Release { packet_id: ack.packet_id, once });
            }
            Packet::Pubcomp(ack) => {
                let fit = self.outbound.complete(ack.packet_id);
                self.check(fit, "a PUBCOMP without a PUBREC").await;
            }
            Packet::Subscribe(subscribe) => self.subscribe(subscribe).await,
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe).await,
            Packet::Pingreq => self.send(Packet::Pingresp).await,
            Packet::Disconnect(disconnect) => self.disconnect(&disconnect).await,
            Packet::Connect(_) => self.break_off(ReasonCode::PROTOCOL_ERROR, "a second CONNECT").await,
            Packet::Auth(_) => self.break_off(ReasonCode::PROTOCOL_ERROR, "AUTH without a method").await,
            Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
                self.break_off(ReasonCode::PROTOCOL_ERROR, "a packet that only servers send").await;
            }
        }
    }

    async fn check(&mut self, fit: Fit, what: &str) {
        if fit == Fit::Wrong {
            self.break_off(ReasonCode::PROTOCOL_ERROR, what).await;
        }
    }

    async fn publish(&mut self, publish: Publish) {
        let limits = &self.services.limits;
        let Some(connection) = &mut self.connection else { return };
        let version = connection.version;
        let topic = match (publish.topic, publish.topic_alias) {
            (Some(topic), None) => topic,
            (_, Some(alias)) if alias.get() > limits.topic_aliases => {
                return self.break_off(ReasonCode::TOPIC_ALIAS_INVALID, "a topic alias above the maximum").await;
            }
            (Some(topic), Some(alias)) => {
                connection.aliases.insert(alias.get(), topic.clone());
                topic
            }
            (None, alias) => match alias.and_then(|alias| connection.aliases.get(&alias.get())) {
                Some(topic) => topic.clone(),
                None => return self.break_off(ReasonCode::PROTOCOL_ERROR, "a topic alias that was never set").await,
            },
        };
        self.services.health.sessions().received.fetch_add(1, Ordering::Relaxed);
        let (qos, packet_id) = (publish.qos, publish.packet_id);
        let is_repeat =
            qos == Qos::ExactlyOnce && packet_id.is_some_and(|packet_id| self.inbound.has_received(packet_id));
        if qos != Qos::AtMostOnce && !is_repeat {
            if version == Version::V5 && connection.unanswered >= limits.inbound_tolerated.max(limits.inbound) {
                let what = "more messages unanswered than Receive Maximum";
                return self.break_off(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED, what).await;
            }
            if version == Version::V311 && self.inbound.received() >= usize::from(limits.inbound_tolerated) {
                // Each of them is a row in the store until its PUBREL: a client that never sends one must not fill it.
                return self.break_off(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED, "too many messages without PUBREL").await;
            }
            connection.unanswered = connection.unanswered.saturating_add(1);
        }
        if is_reserved(&topic) {
            return match packet_id {
                Some(packet_id) if version == Version::V5 => {
                    let reason = ReasonCode::TOPIC_NAME_INVALID;
                    self.inbound.push(self.mark, Work::Refuse { qos, packet_id, reason });
                }
                _ => self.break_off(ReasonCode::TOPIC_NAME_INVALID, "a topic that clients may not publish to").await,
            };
        }
        if let (true, Some(packet_id)) = (is_repeat, packet_id) {
            self.inbound.push(self.mark, Work::Repeat { packet_id });
            return;
        }
        if let (Qos::ExactlyOnce, Some(packet_id)) = (qos, packet_id) {
            self.inbound.receive(packet_id);
        }
        let message = Message {
            topic,
            qos,
            retain: publish.retain,
            properties: (!publish.properties.is_empty()).then(|| Box::new(publish.properties)),
            body: Body::Bytes(publish.payload),
            origin: Origin::Client(self.client.clone()),
            received: self.arrived,
        };
        if qos != Qos::ExactlyOnce
            && let Some(ticket) = self.services.intake.submit_now(&message, None)
        {
            let signs = connection.signs.clone();
            let arrival = Box::new(Arrival { message, qos, packet_id, once: None });
            let work = Work::Publish { arrival, ticket: Ok(Box::new(ticket)), version, signs };
            return self.inbound.push(self.mark, work);
        }
        let arrival = Box::new(Arrival { message, qos, packet_id, once: None });
        let work = submit(self.services.clone(), self.inbound.number, arrival);
        self.begun = Some((self.mark, Box::pin(work)));
    }

    async fn received(&mut self, ack: Ack) {
        if ack.reason.is_failure() {
            self.outbound.forget(ack.packet_id);
            return;
        }
        let reason = match self.outbound.receive(ack.packet_id) {
            Fit::Good => ReasonCode::SUCCESS,
            // Answered when it is on disk.
            Fit::Kept => return,
            Fit::Unknown => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
            Fit::Wrong => return self.check(Fit::Wrong, "a PUBREC for a QoS 1 message").await,
        };
        self.send(Packet::Pubrel(Ack::new(ack.packet_id, reason))).await;
    }

    async fn subscribe(&mut self, subscribe: Subscribe) {
        let version = self.connection.as_ref().map(|connection| connection.version);
        let mut reasons = Vec::with_capacity(subscribe.subscriptions.len());
        let mut asking = Vec::new();
        let mut keeping = Vec::new();
        for mut subscription in subscribe.subscriptions {
            let filter = subscription.filter;
            if self.durable.is_some() && filter.share_group().is_some() {
                // What a group shares is in memory: a QoS 2 packet id of it would be lost with the process, and the next
                // message that bears it would be swallowed.
                subscription.qos = subscription.qos.min(Qos::AtLeastOnce);
            }
            let is_new = !self.subscriptions.contains_key(&filter);
            let has_room = !is_new || self.subscriptions.len() < self.services.limits.subscriptions;
            let taken = if has_room { self.link.subscribe(&filter).await } else { Err(RouterError::TooManyFilters) };
            match taken {
                Ok(()) => {
                    reasons.push(ReasonCode(subscription.qos.level()));
                    let is_asked = match subscription.retain_handling {
                        0 => true,
                        1 => is_new,
                        _ => false,
                    };
                    if is_asked && filter.share_group().is_none() {
                        asking.push(filter.clone());
                    }
                    let retained = match subscription.retain_handling {
                        _ if filter.share_group().is_some() => Retained::Never,
                        0 => Retained::Always,
                        1 => Retained::IfNew,
                        _ => Retained::Never,
                    };
                    let subscribed = Subscribed {
                        filter: filter.clone(),
                        qos: subscription.qos,
                        no_local: subscription.no_local,
                        retain_as_published: subscription.retain_as_published,
                        identifier: subscribe.subscription_id,
                    };
                    keeping.push((subscribed, retained));
                    let options = Options {
                        qos: subscription.qos,
                        no_local: subscription.no_local,
                        retain_as_published: subscription.retain_as_published,
                        id: subscribe.subscription_id,
                    };
                    self.subscriptions.insert(filter, options);
                }
                Err(RouterError::Dead) => {
                    self.services.fail(RouterError::Dead);
                    reasons.push(ReasonCode::UNSPECIFIED_ERROR);
                }
                Err(RouterError::Full | RouterError::TooManyFilters) => {
                    let is_v5 = version == Some(Version::V5);
                    reasons.push(if is_v5 { ReasonCode::QUOTA_EXCEEDED } else { ReasonCode::UNSPECIFIED_ERROR });
                }
            }
        }
        let suback = Suback { packet_id: subscribe.packet_id, reasons };
        if let Some(number) = self.number().filter(|_| !keeping.is_empty()) {
            let work = durable::subscribe(self.services.clone(), number, keeping, suback);
            self.begun = Some((self.mark, Box::pin(work)));
        } else if asking.is_empty() {
            self.send(Packet::Suback(suback)).await;
        } else {
            self.begun = Some((self.mark, Box::pin(retained(self.services.clone(), suback, asking))));
        }
    }

    async fn unsubscribe(&mut self, unsubscribe: Unsubscribe) {
        let is_v5 = self.connection.as_ref().is_some_and(|connection| connection.version == Version::V5);
        let mut reasons = Vec::new();
        let mut gone = Vec::new();
        for filter in unsubscribe.filters {
            if let Err(error) = self.link.unsubscribe(&filter).await {
                self.services.fail(error);
            }
            let reason = match self.subscriptions.remove(&filter) {
                Some(_) => ReasonCode::SUCCESS,
                None => ReasonCode::NO_SUBSCRIPTION_EXISTED,
            };
            reasons.extend(is_v5.then_some(reason));
            gone.push(filter);
        }
        let unsuback = Unsuback { packet_id: unsubscribe.packet_id, reasons };
        match self.number() {
            Some(number) => {
                let work = durable::unsubscribe(self.services.clone(), number, gone, unsuback);
                self.begun = Some((self.mark, Box::pin(work)));
            }
            None => self.send(Packet::Unsuback(unsuback)).await,
        }
    }

    async fn disconnect(&mut self, disconnect: &Disconnect) {
        let limit_s = self.services.limits.session_expiry_s;
        if let (Some(expiry_s), Some(connection)) = (disconnect.session_expiry_s, &mut self.connection) {
            if connection.expiry_s == 0 && expiry_s != 0 {
                let what = "DISCONNECT prolongs a session that CONNECT said would end";
                return self.break_off(ReasonCode::PROTOCOL_ERROR, what).await;
            }
            connection.expiry_s = expiry_s.min(limit_s);
        }
        // Anything but "normal" leaves the will in force (MQTT 5.0, 3.14.4).
        self.end_connection(None, disconnect.reason != ReasonCode::SUCCESS).await;
    }

    async fn go_on(&mut self, mark: Mark, begun: Begun) {
        self.begun = None;
        match begun {
            Begun::Submitted { number, arrival, ticket } => {
                let (version, signs) = match &self.connection {
                    Some(connection) if mark == self.mark => (connection.version, connection.signs.clone()),
                    // Nobody waits for the answer.
                    _ => (Version::V5, Arc::default()),
                };
                self.inbound.push(mark, Work::Publish { arrival, ticket, version, signs });
                if mark.life == self.mark.life {
                    self.inbound.number = number;
                } else if let Some(number) = number {
                    // The new life must not bear the number under which ids of the old one are known.
                    self.inbound.push(mark, Work::Forget { number });
                }
            }
            Begun::Retained { suback, found } => {
                if mark == self.mark {
                    self.send(Packet::Suback(suback)).await;
                    self.hand_out_retained(found);
                }
            }
            Begun::Unsubscribed { unsuback } => {
                if mark == self.mark {
                    self.send(Packet::Unsuback(unsuback)).await;
                }
            }
            // What the session subscribes to is what the store says: the client comes back and goes on from that.
            Begun::Failed => {
                if mark == self.mark {
                    self.lose_touch().await;
                }
            }
        }
    }

    fn hand_out_retained(&mut self, found: Vec<(Filter, Vec<Message>)>) {
        let now = self.services.intake.now();
        let mut bytes = 0_usize;
        for (filter, messages) in found {
            let Some(options) = self.subscriptions.get(&filter).copied() else { continue };
            for message in messages {
                let Body::Bytes(payload) = message.body else { continue };
                bytes = bytes.saturating_add(payload.len());
                if bytes > self.services.limits.retained_bytes {
                    self.services.count_dropped(1);
                    continue;
                }
                // The queue has left out what is expired; what is left of the rest is told (MQTT 5.0, 3.3.2.3.3).
                let age_ms = now.wall_ms.saturating_sub(message.received.wall_ms);
                let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
                let expiry_s = message.properties.as_ref().and_then(|properties| properties.expiry_s);
                let left = expiry_s.map(|expiry_s| Duration::from_secs(u64::from(expiry_s)).saturating_sub(age));
                self.outbound.push(Delivery {
                    topic: message.topic,
                    qos: message.qos.min(options.qos),
                    retain: true,
                    payload,
                    properties: message.properties,
                    subscription_id: options.id,
                    expires: left.map(|left| Instant::now() + left.max(Duration::from_secs(1))),
                    stored: None,
                });
            }
        }
    }

    // To the client

    async fn answer(&mut self, mark: Mark, settled: Settled) {
        let is_current = mark == self.mark;
        let Some(version) = self.connection.as_ref().map(|connection| connection.version).filter(|_| is_current) else {
            return self.settle_unanswered(mark, settled);
        };
        match settled {
            Settled::Publish { qos, packet_id, result } => match (result, packet_id) {
                (Ok(accepted), Some(packet_id)) => {
                    let is_told = version == Version::V5 && !accepted.wanted;
                    let reason = if is_told { ReasonCode::NO_MATCHING_SUBSCRIBERS } else { ReasonCode::SUCCESS };
                    self.acknowledge(qos, packet_id, reason).await;
                }
                (Ok(_), None) => {}
                (Err(error), packet_id) => self.not_accepted(version, qos, packet_id, error).await,
            },
            // The first one was not taken: this one is not either.
            Settled::Repeat { packet_id } if !self.inbound.has_received(packet_id) => {
                if version == Version::V5 {
                    self.acknowledge(Qos::ExactlyOnce, packet_id, ReasonCode::QUOTA_EXCEEDED).await;
                } else {
                    self.end_connection(None, true).await;
                }
            }
            Settled::Repeat { packet_id } => {
                self.acknowledge(Qos::ExactlyOnce, packet_id, ReasonCode::SUCCESS).await;
            }
            Settled::Refuse { qos, packet_id, reason } => self.acknowledge(qos, packet_id, reason).await,
            Settled::Release { packet_id, result } => match result {
                Ok(was_stored) => {
                    let was_known = self.inbound.forget(packet_id) || was_stored;
                    if let (true, Some(connection)) = (was_known, &mut self.connection) {
                        connection.unanswered = connection.unanswered.saturating_sub(1);
                    }
                    let reason = if was_known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_IDENTIFIER_NOT_FOUND };
                    self.send(Packet::Pubcomp(Ack::new(packet_id, reason))).await;
                }
                Err(error) => {
                    debug!(client = self.client.as_ref(), error:% = error; "A packet id could not be released");
                    self.part(ReasonCode::UNSPECIFIED_ERROR, true).await;
                }
            },
            Settled::Nothing => {}
        }
    }

    /// What else is done already.
    async fn answer_more(&mut self) {
        for _ in 1..ANSWERED_AT_ONCE {
            match self.inbound.settled_now(&self.services) {
                Some((mark, settled)) => self.answer(mark, settled).await,
                None => return,
            }
        }
    }

    /// The connection that waited for this is gone; the client will ask again.
    fn settle_unanswered(&mut self, mark: Mark, settled: Settled) {
        if mark.life != self.mark.life {
            return;
        }
        match settled {
            Settled::Publish { packet_id: Some(packet_id), result: Err(_), .. } => {
                self.inbound.forget(packet_id);
            }
            Settled::Release { packet_id, result: Ok(_) } => {
                self.inbound.forget(packet_id);
            }
            _ => {}
        }
    }

    async fn acknowledge(&mut self, qos: Qos, packet_id: PacketId, reason: ReasonCode) {
        let ack = Ack::new(packet_id, reason);
        let is_end = qos == Qos::AtLeastOnce || reason.is_failure();
        if let (true, Some(connection)) = (is_end, &mut self.connection) {
            connection.unanswered = connection.unanswered.saturating_sub(1);
        }
        match qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.send(Packet::Puback(ack)).await,
            Qos::ExactlyOnce => self.send(Packet::Pubrec(ack)).await,
        }
    }

    async fn not_accepted(&mut self, version: Version, qos: Qos, packet_id: Option<PacketId>, error: AcceptError) {
        if let AcceptError::Router(error) = &error {
            self.services.fail(error.clone());
        }
        let Some(packet_id) = packet_id else {
            // A rule wanted it kept, and nobody is there to be told.
            self.services.health.add_unkept(&self.client);
            return;
        };
        self.inbound.forget(packet_id);
        if error.is_full() && version == Version::V5 {
            return self.acknowledge(qos, packet_id, ReasonCode::QUOTA_EXCEEDED).await;
        }
        debug!(client = self.client.as_ref(), error:% = error; "A message was not taken, its connection is closed");
        self.part(ReasonCode::UNSPECIFIED_ERROR, true).await;
    }

    async fn take(&mut self, taken: Taken) {
        let Taken { filter, live, lost } = taken;
        let Some(options) = self.subscriptions.get(&filter).copied() else { return };
        // What of these is not for the live way is in the store.
        let is_stored = self.durable.is_some() && filter.share_group().is_none();
        if lost > 0 && !(is_stored && options.qos != Qos::AtMostOnce) {
            self.services.count_dropped(lost);
            if options.qos != Qos::AtMostOnce && self.connection.is_some() {
                self.services.health.sessions().slow.fetch_add(1, Ordering::Relaxed);
                self.part(ReasonCode::QUOTA_EXCEEDED, true).await;
            }
        }
        if options.no_local && live.publisher.as_ref() == Some(&self.client) {
            return;
        }
        let qos = live.qos.min(options.qos);
        if is_stored && qos != Qos::AtMostOnce {
            return;
        }
        if !self.is_alive || (self.connection.is_none() && qos == Qos::AtMostOnce) {
            return;
        }
        let expiry_s = live.properties.as_ref().and_then(|properties| properties.expiry_s);
        self.outbound.push(Delivery {
            topic: live.topic,
            qos,
            retain: live.retain && options.retain_as_published,
            payload: live.payload,
            properties: live.properties,
            subscription_id: options.id,
            expires: expiry_s.map(|expiry_s| Instant::now() + Duration::from_secs(u64::from(expiry_s))),
            stored: None,
        });
        if self.connection.is_none() {
            let limits = &self.services.limits;
            let share = limits.away_share(self.services.register.len());
            let dropped = self.outbound.shrink_to(limits.away_messages, share);
            self.services.count_dropped(dropped);
        }
    }

    /// What else is there at once.
    async fn take_more(&mut self) {
        for _ in 1..TAKEN_AT_ONCE {
            if !self.may_take() {
                return;
            }
            let taken = poll_now(std::pin::pin!(self.link.next()));
            match taken {
                Some(Ok(taken)) => self.take(taken).await,
                // An error comes again with the next call.
                Some(Err(_)) | None => return,
            }
        }
    }

    /// Goes on with what the session has to do with the queue.
    fn ask(&mut self) {
        let Some(durable) = &mut self.durable else { return };
        let window = self.connection.as_ref().filter(|_| self.stopping.is_none()).map(|connection| connection.window);
        durable.go_on(&mut self.outbound, window, self.services.limits.waiting_bytes / 4);
    }

    async fn progress(&mut self, progress: Progress) {
        match progress {
            Progress::Woken => {}
            Progress::Fetched(ids, Ok(parcels)) if !parcels.is_gone => {
                let now = self.services.intake.now();
                if let Some(durable) = &mut self.durable {
                    durable.take(&mut self.outbound, &ids, parcels, now);
                }
            }
            Progress::Settled(told, Ok(())) => {
                self.outbound.give_back(&told.completed);
                for packet_id in told.received {
                    if self.outbound.release(packet_id) {
                        self.send(Packet::Pubrel(Ack::new(packet_id, ReasonCode::SUCCESS))).await;
                    }
                }
            }
            Progress::Fetched(_, Ok(_)) => self.lose_touch().await,
            Progress::Fetched(_, Err(error)) | Progress::Settled(_, Err(error)) => self.note_failure(&error).await,
        }
    }

    async fn note_failure(&mut self, error: &AppendError) {
        debug!(client = self.client.as_ref(), error:% = error; "What waits for a client cannot be had");
        self.lose_touch().await;
    }

    /// What is in memory may not be what is in the store: the client comes back and goes on from that.
    async fn lose_touch(&mut self) {
        self.part(ReasonCode::UNSPECIFIED_ERROR, true).await;
        self.forget().await;
    }

    async fn write(&mut self) {
        let now = Instant::now();
        let mut expired = 0;
        while let Some(connection) = &mut self.connection {
            if connection.socket.waiting_bytes() >= self.services.limits.output_bytes {
                break;
            }
            let Some(next) = self.outbound.next(connection.window, now, &mut expired) else { break };
            let (packet, packet_id) = match next {
                Next::Publish(publish) => {
                    let packet_id = publish.packet_id;
                    (Packet::Publish(publish), packet_id)
                }
                Next::Release(packet_id) => (Packet::Pubrel(Ack::new(packet_id, ReasonCode::SUCCESS)), None),
            };
            match connection.socket.send(&packet) {
                Ok(()) => {
                    if matches!(packet, Packet::Publish(_)) {
                        self.services.health.sessions().sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // Longer than the client takes: it is as if it had been delivered (MQTT 5.0, 3.1.2.11.4), but counted.
                Err(EncodeError::TooLarge { .. } | EncodeError::Unwritable(_)) => {
                    if let Some(packet_id) = packet_id {
                        self.outbound.forget(packet_id);
                    }
                    self.services.count_dropped(1);
                }
            }
        }
        self.services.count_dropped(expired);
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
