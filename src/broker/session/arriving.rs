//! What comes from the client, packet by packet, and the work that must end before the next one is looked at.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Making, Options, Session};
use crate::broker::access::{Deed, Reach, Rights};
use crate::broker::durable;
use crate::broker::inbound::{Arrival, Begun, Mark, Work, poll_now, retained, submit};
use crate::broker::outbound::{Delivery, Fit};
use crate::intake::Intake;
use crate::message::{Body, Filter, Message, Origin, Qos, Topic, is_reserved};
use crate::mqtt::{
    Ack, DecodeError, Disconnect, Packet, PacketId, Publish, ReasonCode, Suback, Subscribe, Unsuback, Unsubscribe,
    Version,
};
use crate::queue::sessions::{Retained, Subscribed};
use crate::router::RouterError;

const LONG_TOPIC: &str = "a topic longer or deeper than is taken (broker.limits.topic_bytes, topic_levels)";

impl Session {
    pub(super) async fn read(&mut self) {
        if self.connection.as_ref().is_some_and(|connection| connection.socket.is_paced()) {
            self.services.note_limit(&self.client, "it publishes too fast and is held back (broker.limits.rate)");
        }
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
                    self.services.health.sessions().packets_received.fetch_add(1, Ordering::Relaxed);
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
                let once = number.map(|session| crate::queue::Once::Packet { session, packet_id: ack.packet_id.get() });
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
        let fault = match &topic {
            topic if is_reserved(topic.as_str()) => Some("a topic that clients may not publish to"),
            topic if !limits.takes_topic(topic.as_str()) => Some(LONG_TOPIC),
            _ => None,
        };
        if let Some(fault) = fault {
            return match packet_id {
                Some(packet_id) if version == Version::V5 => {
                    let reason = ReasonCode::TOPIC_NAME_INVALID;
                    self.inbound.push(self.mark, Work::Refuse { qos, packet_id, reason });
                }
                _ => self.break_off(ReasonCode::TOPIC_NAME_INVALID, fault).await,
            };
        }
        if let (true, Some(packet_id)) = (is_repeat, packet_id) {
            self.inbound.push(self.mark, Work::Repeat { packet_id });
            return;
        }
        if !self.rights.may_publish(&topic) {
            return self.deny(version, qos, packet_id, &topic).await;
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
        if !may_have_answered(&self.services.intake, &self.rights, &message) {
            return self.deny(version, qos, packet_id, &message.topic).await;
        }
        if let (Qos::ExactlyOnce, Some(packet_id)) = (qos, packet_id) {
            self.inbound.receive(packet_id);
        }
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

    /// Answers a message that its client may not publish. Version 3.1.1 has no word for that but to close the connection, and
    /// an acknowledgement would be a lie (MQTT 3.1.1, 3.3.5: either is allowed).
    async fn deny(&mut self, version: Version, qos: Qos, packet_id: Option<PacketId>, topic: &Topic) {
        self.services.access.note(&self.client, &self.identity.user, Deed::Publish, topic.as_str());
        match (packet_id, version) {
            (None, _) => {}
            (Some(packet_id), Version::V5) => {
                let reason = ReasonCode::NOT_AUTHORIZED;
                self.inbound.push(self.mark, Work::Refuse { qos, packet_id, reason });
            }
            (Some(_), Version::V311) => self.part(ReasonCode::NOT_AUTHORIZED, true).await,
        }
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
        let mut making = Making::default();
        let mut keeping = Vec::new();
        for mut subscription in subscribe.subscriptions {
            let filter = subscription.filter;
            if !self.may_subscribe(&filter) {
                self.services.access.note(&self.client, &self.identity.user, Deed::Subscribe, filter.as_str());
                let is_v5 = version == Some(Version::V5);
                reasons.push(if is_v5 { ReasonCode::NOT_AUTHORIZED } else { ReasonCode::UNSPECIFIED_ERROR });
                continue;
            }
            if self.durable.is_some() && filter.share_group().is_some() {
                // What a group shares is in memory: a QoS 2 packet id of it would be lost with the process, and the next
                // message that bears it would be swallowed.
                subscription.qos = subscription.qos.min(Qos::AtLeastOnce);
            }
            let is_new = !self.subscriptions.contains_key(&filter);
            let has_room = !is_new || self.has_room_for(&filter);
            if !self.services.limits.takes_topic(filter.as_str()) {
                self.services.note_limit(&self.client, LONG_TOPIC);
                let is_v5 = version == Some(Version::V5);
                reasons.push(if is_v5 { ReasonCode::TOPIC_FILTER_INVALID } else { ReasonCode::UNSPECIFIED_ERROR });
                continue;
            }
            if !has_room {
                self.services.note_limit(&self.client, "it has too many subscriptions (broker.limits.subscriptions)");
            }
            let taken = if has_room {
                self.link.subscribe(&filter, subscription.qos).await
            } else {
                Err(RouterError::TooManyFilters)
            };
            match taken {
                Ok(()) => {
                    reasons.push(ReasonCode(subscription.qos.level()));
                    let is_asked = match subscription.retain_handling {
                        0 => true,
                        1 => is_new,
                        _ => false,
                    };
                    if is_asked && filter.share_group().is_none() {
                        making.told.extend(self.of_the_broker(&filter));
                        making.filters.insert(filter.clone(), is_new);
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
                        since: self.subscriptions.get(&filter).and_then(|before| before.since),
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
            let work = durable::subscribe(self.services.clone(), number, self.client.clone(), keeping, suback);
            self.making = making;
            self.begun = Some((self.mark, Box::pin(work)));
        } else if asking.is_empty() {
            self.send(Packet::Suback(suback)).await;
        } else {
            self.making = making;
            self.begun = Some((self.mark, Box::pin(retained(self.services.clone(), suback, asking))));
        }
    }

    /// Whether a subscription is for something that its client may hear. Of a wider one he hears that part; but not of what a
    /// group shares: what this member may not hear would be lost to the others.
    fn may_subscribe(&self, filter: &Filter) -> bool {
        match self.rights.reach(filter) {
            Reach::Whole => true,
            Reach::Part => filter.share_group().is_none(),
            Reach::Nothing => false,
        }
    }

    fn has_room_for(&self, filter: &Filter) -> bool {
        let limits = &self.services.limits;
        let is_shared = |filter: &&Filter| filter.share_group().is_some();
        self.subscriptions.len() < limits.subscriptions
            && (filter.share_group().is_none()
                || self.subscriptions.keys().filter(is_shared).count() < limits.shared_subscriptions)
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

    pub(super) async fn go_on(&mut self, mark: Mark, begun: Begun) {
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
                let Making { told, filters, early, .. } = std::mem::take(&mut self.making);
                if mark == self.mark {
                    self.send(Packet::Suback(suback)).await;
                    for (filter, found) in &found {
                        let is_new = filters.get(filter).is_some_and(|is_new| *is_new);
                        if let Some(options) = self.subscriptions.get_mut(filter).filter(|_| is_new) {
                            options.since = Some(found.as_of);
                        }
                    }
                    self.hand_out_retained(found.into_iter().map(|(filter, found)| (filter, found.messages)).collect());
                    self.hand_out_retained(told);
                }
                for taken in early {
                    self.take(taken).await;
                }
            }
            Begun::Unsubscribed { unsuback } => {
                if mark == self.mark {
                    self.send(Packet::Unsuback(unsuback)).await;
                }
            }
            // What the session subscribes to is what the store says: the client comes back and goes on from that.
            Begun::Failed => {
                self.making = Making::default();
                if mark == self.mark {
                    self.lose_touch().await;
                }
            }
        }
    }

    /// What of the `$SYS` tree belongs to a new subscription.
    fn of_the_broker(&self, filter: &Filter) -> Option<(Filter, Vec<Message>)> {
        let messages = self.services.sys.retained(filter, self.services.intake.now());
        (!messages.is_empty()).then(|| (filter.clone(), messages))
    }

    fn hand_out_retained(&mut self, found: Vec<(Filter, Vec<Message>)>) {
        let now = self.services.intake.now();
        let mut bytes = 0_usize;
        for (filter, messages) in found {
            let Some(options) = self.subscriptions.get(&filter).copied() else { continue };
            for message in messages {
                let Body::Bytes(payload) = message.body else { continue };
                if options.no_local && matches!(&message.origin, Origin::Client(from) if *from == self.client) {
                    continue;
                }
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
}

/// Whether the answer to a write may go where its client wants it: the gateway, which may publish everything, is not to be
/// made to do so where the client may not even hear.
fn may_have_answered(intake: &Intake, rights: &Rights, message: &Message) -> bool {
    let response = message.properties.as_ref().and_then(|properties| properties.response_topic.as_ref());
    response.is_none_or(|topic| !intake.is_write(message) || rights.may_hear(topic))
}
