//! What goes to the client: answers to what it sent, and the messages of its subscriptions.

use std::sync::atomic::Ordering;
use std::time::Duration;

use log::debug;
use tokio::time::Instant;

use super::{Connection, Session};
use crate::broker::aliases::Said;
use crate::broker::durable::Progress;
use crate::broker::inbound::{Mark, Settled, poll_now};
use crate::broker::outbound::{Delivery, Next};
use crate::intake::AcceptError;
use crate::message::Qos;
use crate::mqtt::{Ack, EncodeError, Packet, PacketId, ReasonCode, Version};
use crate::queue::AppendError;
use crate::router::Taken;

/// Live messages that are taken before the socket has its turn again.
const TAKEN_AT_ONCE: usize = 64;
/// Answers that are written before the socket has its turn again.
const ANSWERED_AT_ONCE: usize = 1024;

impl Session {
    pub(super) async fn answer(&mut self, mark: Mark, settled: Settled) {
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
    pub(super) async fn answer_more(&mut self) {
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

    pub(super) async fn take(&mut self, taken: Taken) {
        if self.making.filters.contains_key(&taken.filter) {
            self.making.early_bytes += taken.live.payload.len();
            return self.making.early.push(taken);
        }
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
        if let (Some(ordinal), Some(since)) = (live.ordinal, options.since)
            && ordinal.is_up_to(since)
        {
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
    pub(super) async fn take_more(&mut self) {
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
    pub(super) fn ask(&mut self) {
        let share = self.services.limits.waiting_share(self.connected());
        let Some(durable) = &mut self.durable else { return };
        // Nothing new overtakes the retained messages of a subscription.
        let may_fetch = self.stopping.is_none() && self.making.filters.is_empty();
        let window = self.connection.as_ref().filter(|_| may_fetch).map(|connection| connection.window);
        durable.go_on(&mut self.outbound, window, share / 4);
    }

    pub(super) async fn progress(&mut self, progress: Progress) {
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
    pub(super) async fn lose_touch(&mut self) {
        self.part(ReasonCode::UNSPECIFIED_ERROR, true).await;
        self.forget().await;
    }

    pub(super) async fn write(&mut self) {
        let now = Instant::now();
        let share = self.services.limits.waiting_share(self.connected());
        let mut expired = 0;
        while let Some(connection) = &mut self.connection {
            if connection.socket.waiting_bytes() >= self.services.limits.output_bytes {
                break;
            }
            let Some(next) = self.outbound.next(connection.window, share, now, &mut expired) else { break };
            let (packet, packet_id) = match next {
                Next::Publish(publish) => {
                    let packet_id = publish.packet_id;
                    if publish.topic.as_ref().is_some_and(|topic| !self.rights.may_hear(topic)) {
                        // A subscription that asks for more, or rights that were others when it came.
                        if let Some(packet_id) = packet_id {
                            self.outbound.forget(packet_id);
                        }
                        self.services.health.sessions().denied.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    (Packet::Publish(publish), packet_id)
                }
                Next::Release(packet_id) => (Packet::Pubrel(Ack::new(packet_id, ReasonCode::SUCCESS)), None),
            };
            match send(connection, packet) {
                Ok(is_publish) => {
                    let sessions = self.services.health.sessions();
                    sessions.packets_sent.fetch_add(1, Ordering::Relaxed);
                    if is_publish {
                        sessions.sent.fetch_add(1, Ordering::Relaxed);
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

/// Puts a packet behind what waits for the socket, a topic by its alias where the client allows that. Says whether it was a
/// PUBLISH.
fn send(connection: &mut Connection, packet: Packet) -> Result<bool, EncodeError> {
    let Packet::Publish(mut publish) = packet else { return connection.socket.send(&packet).map(|()| false) };
    let (Some(aliases), Some(topic)) = (&mut connection.our_aliases, publish.topic.clone()) else {
        return connection.socket.send(&Packet::Publish(publish)).map(|()| true);
    };
    let mut said = aliases.say(&topic);
    match said {
        Said::Whole => {}
        Said::With(alias) => publish.topic_alias = Some(alias),
        Said::By(alias) => (publish.topic, publish.topic_alias) = (None, Some(alias)),
    }
    let mut packet = Packet::Publish(publish);
    let mut sent = connection.socket.send(&packet);
    if let (Err(EncodeError::TooLarge { .. }), Said::With(_), Packet::Publish(publish)) = (&sent, said, &mut packet) {
        // The alias itself may be what is too much.
        (publish.topic_alias, said) = (None, Said::Whole);
        sent = connection.socket.send(&packet);
    }
    if sent.is_ok() {
        aliases.note(&topic, said);
    }
    sent.map(|()| true)
}
