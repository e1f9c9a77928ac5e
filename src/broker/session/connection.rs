//! The life of a session: connections come, take it up and end; it outlives them, expires, and leaves its will.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::{debug, info, warn};
use tokio::time::Instant;

use super::{Attachment, Connection, Options, Seldom, Session};
use crate::broker::access::{Deed, Identity, Term};
use crate::broker::aliases::Aliases;
use crate::broker::durable::{self, Durable};
use crate::broker::inbound::Work;
use crate::broker::listener;
use crate::broker::outbound::Outbound;
use crate::health::live::ClientSnapshot;
use crate::message::{Body, Filter, Message, Origin};
use crate::mqtt::{Connack, Disconnect, Packet, PacketId, ReasonCode, Version, Will};
use crate::queue::SessionNumber;
use crate::queue::sessions::{Entrance, Entry, Kept, Subscribed};
use crate::router::RouterError;

impl Session {
    pub(super) async fn attach(&mut self, attachment: Box<Attachment>) {
        let Attachment { mut socket, connect, identity, is_assigned } = *attachment;
        let is_too_late = !self.services.access.vouches_for(&identity);
        if socket.is_shut_out() {
            return listener::refuse(socket, connect.version, ReasonCode::SERVER_UNAVAILABLE, &self.services);
        }
        if is_too_late || self.is_alive && self.belongs_to_another(&self.identity.user, &identity.user) {
            return listener::refuse(socket, connect.version, ReasonCode::NOT_AUTHORIZED, &self.services);
        }
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
        let kept = match self.enter(&identity, version, connect.clean_start, expiry_s).await {
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
        self.rights = self.services.access.rights(&identity, &self.client);
        self.identity = identity;
        // At once: it may have ended while the session was entered.
        self.term = self.services.access.term(&self.identity).map(|_| Instant::now());
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
        let alias_max = connect.topic_alias_max.min(limits.topic_aliases);
        let mut connection = Connection {
            socket,
            version,
            signs: Arc::default(),
            keep_alive: (!keep_alive.is_zero()).then_some(keep_alive),
            heard_at: Instant::now(),
            expiry_s,
            will: connect.will,
            aliases: HashMap::new(),
            our_aliases: (alias_max > 0).then(|| Box::new(Aliases::new(alias_max))),
            unanswered: 0,
            window: usize::from(receive_max.min(limits.outbound)),
            collected: self.outbound.load(),
        };
        let written = connection.socket.send(&Packet::Connack(Box::new(connack)));
        // Its CONNECT and the answer to it.
        self.services.health.sessions().packets_received.fetch_add(1, Ordering::Relaxed);
        self.services.health.sessions().packets_sent.fetch_add(1, Ordering::Relaxed);
        debug!(client = self.client.as_ref(), peer:% = connection.socket.peer(); "A client is connected");
        let client = ClientSnapshot {
            user: self.identity.user.to_string(),
            peer: connection.socket.peer().to_string(),
            protocol: if version == Version::V5 { "5" } else { "3.1.1" },
            is_kept: number.is_some(),
        };
        self.services.health.sessions().clients.note(&self.client, client);
        self.connection = Some(connection);
        self.services.health.sessions().connected.fetch_add(1, Ordering::Relaxed);
        if written.is_err() {
            // It takes packets that are shorter than a CONNACK.
            self.end_connection(None, true).await;
        }
    }

    /// Whether a session of `owner` is not for `user`: a client id is its user's. Where there is no such user any more, or was
    /// none, it passes to whoever comes.
    fn belongs_to_another(&self, owner: &Arc<str>, user: &Arc<str>) -> bool {
        let is_anothers = owner != user && self.services.access.has_user(owner);
        if is_anothers {
            self.services.access.note_foreign(&self.client, user, owner);
        }
        is_anothers
    }

    /// The configuration has changed: whoever may not be here any more goes, the others go on with what they may do now.
    pub(super) async fn look_at_rights(&mut self) {
        self.rights = self.services.access.rights(&self.identity, &self.client);
        if self.connection.as_ref().is_some_and(|connection| connection.socket.is_shut_out()) {
            return self.part(ReasonCode::ADMINISTRATIVE_ACTION, true).await;
        }
        if self.connection.is_some() && !self.services.access.vouches_for(&self.identity) {
            info!(client = self.client.as_ref(), user = self.identity.user.as_ref();
                  "A client is disconnected: what it logged in with is no longer in the configuration");
            self.part(ReasonCode::NOT_AUTHORIZED, true).await;
        }
    }

    /// Whoever showed a token goes when it ends.
    pub(super) async fn look_at_term(&mut self) {
        let term = self.services.access.term(&self.identity).filter(|_| self.connection.is_some());
        self.term = match term {
            Some(Term::Stays(look)) => Some(Instant::now() + look),
            Some(Term::Over(reason)) => {
                debug!(client = self.client.as_ref(), user = self.identity.user.as_ref(); "The token of a client has ended");
                self.part(reason, true).await;
                None
            }
            None => None,
        };
    }

    /// Tells the queue of a client that is let in, where it has to know. `None`: nothing is kept for it.
    async fn enter(
        &mut self,
        identity: &Identity,
        version: Version,
        is_clean: bool,
        expiry_s: u32,
    ) -> Result<Option<Kept>, ReasonCode> {
        let inlet = &self.services.inlet;
        if expiry_s == 0 && !inlet.keeps_session(&self.client) {
            return Ok(None);
        }
        let (user, client) = (identity.user.clone(), self.client.clone());
        let mut entrance = Entrance { user, client, heir_of: None, is_clean, expiry_s };
        let mut entry = inlet.enter_session(entrance.clone()).await;
        if let Ok(Entry::Foreign(owner)) = &entry
            && !self.services.access.has_user(owner)
        {
            entrance.heir_of = Some(owner.clone());
            entry = inlet.enter_session(entrance).await;
        }
        match entry {
            Ok(Entry::Kept(kept)) => Ok(Some(kept)),
            Ok(Entry::Passing) => Ok(None),
            Ok(Entry::Foreign(owner)) => {
                self.services.access.note_foreign(&self.client, &identity.user, &owner);
                Err(ReasonCode::NOT_AUTHORIZED)
            }
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
                match self.link.subscribe(&filter, qos).await {
                    Ok(()) => {}
                    Err(RouterError::Dead) => self.services.fail(RouterError::Dead),
                    Err(error) => {
                        warn!(client = self.client.as_ref(), filter = filter.as_str(), error:% = error;
                              "A subscription that was kept brings nothing live");
                    }
                }
            }
            let since = self.subscriptions.get(&filter).and_then(|before| before.since);
            self.subscriptions.insert(filter, Options { qos, no_local, retain_as_published, id, since });
        }
    }

    /// Ends the connection with a reason, which a 3.1.1 client cannot be told.
    pub(super) async fn part(&mut self, reason: ReasonCode, with_will: bool) {
        self.end_connection(Some(reason), with_will).await;
    }

    pub(super) async fn break_off(&mut self, reason: ReasonCode, what: &str) {
        self.services.note_protocol_error(&self.client, reason, what);
        self.part(reason, true).await;
    }

    /// Boxed, as what is seldom: whatever may come to it would have to keep room for it in each session's task.
    pub(super) fn end_connection(&mut self, reason: Option<ReasonCode>, with_will: bool) -> Seldom<'_> {
        Box::pin(self.end_connection_now(reason, with_will))
    }

    async fn end_connection_now(&mut self, reason: Option<ReasonCode>, with_will: bool) {
        let Some(mut connection) = self.connection.take() else { return };
        self.mark.connection += 1;
        // First, so that whoever sees in the counter that the client is gone finds its session keeping no QoS 0.
        self.link.set_away(true);
        self.services.health.sessions().connected.fetch_sub(1, Ordering::Relaxed);
        self.services.health.sessions().clients.forget(&self.client);
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

    pub(super) fn number(&self) -> Option<SessionNumber> {
        self.durable.as_ref().map(Durable::number)
    }

    /// The gateway stops: its clients are cut off, so their wills are due, also those that wait for their delay, because
    /// nobody would know of them after the next start (MQTT 5.0, 3.1.2.5). Says whether nothing is left to do.
    pub(super) async fn bid_farewell(&mut self) -> bool {
        let is_late = self.stopping.is_some_and(|until| Instant::now() >= until);
        self.part(ReasonCode::SERVER_SHUTTING_DOWN, true).await;
        if let Some((_, will)) = self.will.take() {
            self.publish_will(will);
        }
        self.inbound.start(&self.services);
        is_late || self.inbound.is_empty()
    }

    /// Those of kept sessions are counted by the queue.
    pub(super) fn count_subscriptions(&mut self) {
        let count = if self.is_passing { self.subscriptions.len() as u64 } else { 0 };
        let gauge = &self.services.health.sessions().passing_subscriptions;
        gauge.fetch_add(count.wrapping_sub(self.counted), Ordering::Relaxed);
        self.counted = count;
    }

    pub(super) fn count_passing(&mut self, is_passing: bool) {
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
    pub(super) async fn end_session(&mut self) {
        if let Some(number) = self.number() {
            self.leave(number, 0).await;
        }
        self.forget().await;
        if let Some((_, will)) = self.will.take() {
            self.publish_will(will);
        }
    }

    /// Lets go of what is in memory of a session.
    pub(super) async fn forget(&mut self) {
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

    pub(super) fn publish_will(&mut self, will: Will) {
        // It was allowed when it was left; what counts is today.
        if !self.rights.may_publish(&will.topic) {
            self.services.access.note(&self.client, &self.identity.user, Deed::Will, will.topic.as_str());
            return;
        }
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

    pub(super) async fn send(&mut self, packet: Packet) {
        let Some(connection) = &mut self.connection else { return };
        self.services.health.sessions().packets_sent.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = connection.socket.send(&packet) {
            debug!(client = self.client.as_ref(), error:% = error; "An answer does not fit what the client takes");
            self.end_connection(None, true).await;
        }
    }
}
