//! What a session still has to deliver: the messages that wait, and those on the wire that are not acknowledged. It
//! computes and never acts; the time is given to it.
//!
//! Promises: messages leave in the order they came; a packet id is never used twice at once; what was on the wire and
//! is not acknowledged comes again with DUP on the next connection; nothing is counted twice, and every message that
//! is given up is reported to the caller, who counts it.
//!
//! What comes from the store says where it lies there (`Stored`); what becomes of it is collected for the queue.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;

use crate::health::LossReason;
use crate::message::{Properties, Qos, Sequence, Topic};
use crate::mqtt::{PacketId, Publish};
use crate::queue::sessions::Settling;

/// Where a copy lies in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub lane: u32,
    pub sequence: Sequence,
    pub bytes: u64,
    /// At QoS 2: on disk already.
    pub packet_id: Option<PacketId>,
}

impl Stored {
    fn delivered(self) -> Settling {
        let Stored { lane, sequence, bytes, .. } = self;
        Settling::Delivered { lane, sequence, bytes }
    }

    fn lost(self, reason: LossReason) -> Settling {
        let Stored { lane, sequence, bytes, .. } = self;
        Settling::Lost { lane, sequence, bytes, reason }
    }
}

/// One copy of a message, for one subscription.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Delivery {
    pub topic: Topic,
    /// The lower of publisher's and subscription's.
    pub qos: Qos,
    pub retain: bool,
    pub payload: Bytes,
    pub properties: Option<Box<Properties>>,
    pub subscription_id: Option<u32>,
    /// When its expiry ends.
    pub expires: Option<Instant>,
    /// `None`: in memory only.
    pub stored: Option<Stored>,
}

impl Delivery {
    /// What it counts for in memory: its own bytes and about what the bookkeeping takes.
    fn bytes(&self) -> usize {
        let properties = self.properties.as_ref().map_or(0, |properties| {
            let user: usize = properties.user.iter().map(|(name, value)| 48 + name.len() + value.len()).sum();
            128 + user + properties.correlation_data.as_ref().map_or(0, Bytes::len)
        });
        192 + self.topic.as_str().len() + self.payload.len() + properties
    }

    fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    fn publish(&self, packet_id: Option<PacketId>, dup: bool, now: Instant) -> Publish {
        let mut properties = self.properties.as_deref().cloned().unwrap_or_default();
        if let Some(expires) = self.expires {
            // What is left of it, never 0: it is on its way.
            let left = u32::try_from(expires.saturating_duration_since(now).as_secs()).unwrap_or(u32::MAX);
            properties.expiry_s = Some(left.max(1));
        }
        Publish {
            dup,
            retain: self.retain,
            qos: self.qos,
            packet_id,
            topic: Some(self.topic.clone()),
            payload: self.payload.clone(),
            properties,
            topic_alias: None,
            subscription_id: self.subscription_id,
        }
    }
}

/// What to write next.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    Publish(Publish),
    Release(PacketId),
}

/// How an acknowledgement of a client fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// As expected.
    Good,
    /// As expected; the queue has to hear of it before it is answered.
    Kept,
    /// That packet id is not in use: a late answer of an earlier connection.
    Unknown,
    /// That packet id is in use at the other QoS.
    Wrong,
}

#[derive(Debug)]
struct Flight {
    packet_id: PacketId,
    /// `None` once PUBREC has come: only PUBREL is left to send.
    delivery: Option<Delivery>,
    qos: Qos,
    /// The packet id is on disk.
    is_kept: bool,
    /// It was on the wire of some connection: a repeat bears DUP.
    was_sent: bool,
    /// It is on the wire of this one.
    on_wire: bool,
}

/// The deliveries of one session.
#[derive(Debug)]
pub(super) struct Outbound {
    waiting: VecDeque<Delivery>,
    waiting_bytes: usize,
    flights: VecDeque<Flight>,
    last_id: u16,
    /// Packet ids that are spoken for and not in flight.
    reserved: HashSet<PacketId>,
    /// What became of stored ones.
    settled: Vec<Settling>,
}

impl Outbound {
    pub(super) fn new() -> Outbound {
        Outbound {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            flights: VecDeque::new(),
            last_id: 0,
            reserved: HashSet::new(),
            settled: Vec::new(),
        }
    }

    /// A packet id that is on disk from an earlier process or connection; without a delivery PUBREL is next.
    pub(super) fn restore(&mut self, packet_id: PacketId, delivery: Option<Delivery>) {
        let (qos, was_sent) = (Qos::ExactlyOnce, true);
        self.flights.push_back(Flight { packet_id, delivery, qos, is_kept: true, was_sent, on_wire: false });
    }

    /// Packet ids for copies that are about to come from the store.
    pub(super) fn reserve(&mut self, count: usize) -> Vec<PacketId> {
        let ids: Vec<PacketId> = std::iter::from_fn(|| {
            let packet_id = self.free_id()?;
            self.reserved.insert(packet_id);
            Some(packet_id)
        })
        .take(count)
        .collect();
        ids
    }

    /// Packet ids that were not needed, or whose end the queue has heard of.
    pub(super) fn give_back(&mut self, ids: &[PacketId]) {
        for packet_id in ids {
            self.reserved.remove(packet_id);
        }
    }

    /// How many copies may come from the store, for a window of so many and within so many bytes.
    pub(super) fn room(&self, window: usize, bytes_max: usize) -> usize {
        let flying: usize =
            self.flights.iter().filter_map(|flight| flight.delivery.as_ref()).map(Delivery::bytes).sum();
        if self.waiting_bytes.saturating_add(flying) >= bytes_max {
            return 0;
        }
        window.saturating_sub(self.flights.len() + self.waiting.len())
    }

    /// What became of stored ones since it was asked last.
    pub(super) fn take_settled(&mut self) -> Vec<Settling> {
        std::mem::take(&mut self.settled)
    }

    /// Whether the store has all of it, packet ids included, so that nothing is lost with this.
    pub(super) fn is_all_kept(&self) -> bool {
        self.settled.is_empty()
            && self.waiting.iter().all(|delivery| delivery.stored.is_some())
            && self.flights.iter().all(|flight| flight.is_kept)
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        self.waiting_bytes = self.waiting_bytes.saturating_add(delivery.bytes());
        self.waiting.push_back(delivery);
    }

    /// Messages that wait, and their bytes.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting_bytes)
    }

    pub(super) fn is_within(&self, messages: usize, bytes: usize) -> bool {
        self.waiting.len() < messages && self.waiting_bytes < bytes
    }

    /// Gives up the oldest of those in memory only until the rest is within the bounds; says how many.
    pub(super) fn shrink_to(&mut self, messages: usize, bytes: usize) -> u64 {
        let passing = || self.waiting.iter().filter(|delivery| delivery.stored.is_none());
        let (mut count, mut sum) = (passing().count(), passing().map(Delivery::bytes).sum::<usize>());
        let mut dropped = 0;
        let waiting_bytes = &mut self.waiting_bytes;
        self.waiting.retain(|delivery| {
            let stays = delivery.stored.is_some() || (count <= messages && sum <= bytes);
            if !stays {
                count -= 1;
                sum = sum.saturating_sub(delivery.bytes());
                *waiting_bytes = waiting_bytes.saturating_sub(delivery.bytes());
                dropped += 1;
            }
            stays
        });
        dropped
    }

    /// A new connection: everything that is not acknowledged is to be sent again.
    pub(super) fn resume(&mut self) {
        for flight in &mut self.flights {
            flight.on_wire = false;
        }
    }

    /// The client is away: what was to be sent at most once is not kept for it.
    pub(super) fn forget_qos0(&mut self) {
        self.waiting.retain(|delivery| delivery.qos != Qos::AtMostOnce);
        self.waiting_bytes = self.waiting.iter().map(Delivery::bytes).sum();
    }

    /// The next packet for the wire, with at most `window` messages unacknowledged, of `bytes_max` but for the last of them;
    /// adds to `expired` what is given up on the way.
    pub(super) fn next(&mut self, window: usize, bytes_max: usize, now: Instant, expired: &mut u64) -> Option<Next> {
        let (mut on_wire, mut flying) = (0, 0_usize);
        for flight in &self.flights {
            on_wire += usize::from(flight.on_wire);
            flying = flying.saturating_add(flight.delivery.as_ref().map_or(0, Delivery::bytes));
        }
        if on_wire < self.flights.len() {
            if on_wire >= window {
                return None;
            }
            let flight = self.flights.iter_mut().find(|flight| !flight.on_wire)?;
            flight.on_wire = true;
            return Some(match &flight.delivery {
                Some(delivery) => {
                    let dup = std::mem::replace(&mut flight.was_sent, true);
                    Next::Publish(delivery.publish(Some(flight.packet_id), dup, now))
                }
                None => Next::Release(flight.packet_id),
            });
        }
        loop {
            let head = self.waiting.front()?;
            let is_full = self.flights.len() >= window || flying >= bytes_max;
            if !head.is_expired(now) && head.qos != Qos::AtMostOnce && is_full {
                return None;
            }
            let delivery = self.waiting.pop_front()?;
            self.waiting_bytes = self.waiting_bytes.saturating_sub(delivery.bytes());
            if delivery.is_expired(now) {
                *expired += 1;
                if let Some(stored) = delivery.stored {
                    self.settled.push(stored.lost(LossReason::MessageExpired));
                    // Its id stays reserved until then.
                    self.settled.extend(stored.packet_id.map(completed));
                }
                continue;
            }
            if delivery.qos == Qos::AtMostOnce {
                return Some(Next::Publish(delivery.publish(None, false, now)));
            }
            let given = delivery.stored.and_then(|stored| stored.packet_id);
            let packet_id = match given {
                Some(packet_id) => packet_id,
                None => self.free_id()?,
            };
            self.reserved.remove(&packet_id);
            let publish = delivery.publish(Some(packet_id), false, now);
            let (qos, is_kept) = (delivery.qos, given.is_some());
            let delivery = Some(delivery);
            self.flights.push_back(Flight { packet_id, delivery, qos, is_kept, was_sent: true, on_wire: true });
            return Some(Next::Publish(publish));
        }
    }

    /// PUBACK.
    pub(super) fn acknowledge(&mut self, packet_id: PacketId) -> Fit {
        match self.find(packet_id) {
            None => Fit::Unknown,
            Some(flight) if flight.qos != Qos::AtLeastOnce => Fit::Wrong,
            Some(_) => {
                self.forget(packet_id);
                Fit::Good
            }
        }
    }

    /// PUBREC: PUBREL is to be answered, by the caller and at once, or when the queue has heard of it.
    pub(super) fn receive(&mut self, packet_id: PacketId) -> Fit {
        match self.find(packet_id) {
            None => Fit::Unknown,
            Some(flight) if flight.qos != Qos::ExactlyOnce => Fit::Wrong,
            Some(flight) if flight.is_kept && flight.delivery.is_some() => {
                self.settled.push(Settling::Received { packet_id: packet_id.get() });
                Fit::Kept
            }
            Some(flight) => {
                flight.delivery = None;
                flight.on_wire = true;
                Fit::Good
            }
        }
    }

    /// The queue has heard of a PUBREC. Says whether PUBREL is to be sent now; else it comes by `next`.
    pub(super) fn release(&mut self, packet_id: PacketId) -> bool {
        let Some(flight) = self.find(packet_id).filter(|flight| flight.is_kept) else { return false };
        flight.delivery = None;
        flight.on_wire
    }

    /// PUBCOMP.
    pub(super) fn complete(&mut self, packet_id: PacketId) -> Fit {
        match self.find(packet_id) {
            None => Fit::Unknown,
            Some(flight) if flight.qos != Qos::ExactlyOnce || flight.delivery.is_some() => Fit::Wrong,
            Some(_) => {
                self.forget(packet_id);
                Fit::Good
            }
        }
    }

    /// The message cannot be delivered to this client, or it refused it.
    pub(super) fn forget(&mut self, packet_id: PacketId) {
        let Some(place) = self.flights.iter().position(|flight| flight.packet_id == packet_id) else { return };
        let Some(flight) = self.flights.remove(place) else { return };
        let stored = flight.delivery.and_then(|delivery| delivery.stored);
        self.settled.extend(stored.map(Stored::delivered));
        if flight.is_kept {
            // Not free before the queue has heard of it: it would take the next message under this id for the one that is
            // done with.
            self.reserved.insert(packet_id);
            self.settled.push(completed(packet_id));
        }
    }

    fn find(&mut self, packet_id: PacketId) -> Option<&mut Flight> {
        self.flights.iter_mut().find(|flight| flight.packet_id == packet_id)
    }

    fn free_id(&mut self) -> Option<PacketId> {
        for _ in 0..=u16::MAX {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let packet_id = PacketId::new(self.last_id)?;
            if self.find(packet_id).is_none() && !self.reserved.contains(&packet_id) {
                return Some(packet_id);
            }
        }
        None
    }
}

fn completed(packet_id: PacketId) -> Settling {
    Settling::Completed { packet_id: packet_id.get() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn delivery(qos: Qos, payload: &'static str) -> Delivery {
        Delivery {
            topic: Topic::new("t").unwrap(),
            qos,
            retain: false,
            payload: Bytes::from_static(payload.as_bytes()),
            properties: None,
            subscription_id: None,
            expires: None,
            stored: None,
        }
    }

    fn id(number: u16) -> PacketId {
        PacketId::new(number).unwrap()
    }

    fn sent(outbound: &mut Outbound, window: usize) -> Vec<(String, Option<u16>, bool)> {
        let mut expired = 0;
        let mut packets = Vec::new();
        while let Some(next) = outbound.next(window, usize::MAX, Instant::now(), &mut expired) {
            packets.push(match next {
                Next::Publish(publish) => {
                    let text = String::from_utf8(publish.payload.to_vec()).unwrap();
                    (text, publish.packet_id.map(PacketId::get), publish.dup)
                }
                Next::Release(packet_id) => ("PUBREL".to_owned(), Some(packet_id.get()), false),
            });
        }
        packets
    }

    #[test]
    fn the_window_holds_back_what_needs_an_acknowledgement_and_all_behind_it() {
        let mut outbound = Outbound::new();
        for (qos, text) in [(Qos::AtLeastOnce, "a"), (Qos::ExactlyOnce, "b"), (Qos::AtLeastOnce, "c")] {
            outbound.push(delivery(qos, text));
        }
        outbound.push(delivery(Qos::AtMostOnce, "d"));
        assert_eq!(sent(&mut outbound, 2), [("a".into(), Some(1), false), ("b".into(), Some(2), false)]);
        assert_eq!(outbound.receive(id(2)), Fit::Good);
        assert_eq!(sent(&mut outbound, 2), []);
        assert_eq!(outbound.acknowledge(id(1)), Fit::Good);
        assert_eq!(sent(&mut outbound, 2), [("c".into(), Some(3), false), ("d".into(), None, false)]);
        assert_eq!(outbound.complete(id(2)), Fit::Good);
        assert_eq!(outbound.acknowledge(id(3)), Fit::Good);
        assert_eq!(outbound.acknowledge(id(3)), Fit::Unknown);
    }

    #[test]
    fn a_new_connection_gets_the_unacknowledged_again_in_order_and_with_dup() {
        let mut outbound = Outbound::new();
        for (qos, text) in [(Qos::AtLeastOnce, "a"), (Qos::ExactlyOnce, "b"), (Qos::AtLeastOnce, "c")] {
            outbound.push(delivery(qos, text));
        }
        sent(&mut outbound, 3);
        outbound.receive(id(2));
        outbound.resume();
        outbound.push(delivery(Qos::AtLeastOnce, "d"));
        assert_eq!(sent(&mut outbound, 2), [("a".into(), Some(1), true), ("PUBREL".into(), Some(2), false)]);
        outbound.acknowledge(id(1));
        assert_eq!(sent(&mut outbound, 2), [("c".into(), Some(3), true)]);
        outbound.complete(id(2));
        assert_eq!(sent(&mut outbound, 2), [("d".into(), Some(4), false)]);
    }

    #[test]
    fn an_answer_that_fits_the_other_qos_is_told_apart() {
        let mut outbound = Outbound::new();
        outbound.push(delivery(Qos::AtLeastOnce, "a"));
        outbound.push(delivery(Qos::ExactlyOnce, "b"));
        sent(&mut outbound, 9);
        assert_eq!(outbound.receive(id(1)), Fit::Wrong);
        assert_eq!(outbound.acknowledge(id(2)), Fit::Wrong);
        assert_eq!(outbound.complete(id(2)), Fit::Wrong, "PUBCOMP before PUBREC");
    }

    #[test]
    fn the_oldest_give_way_and_the_expired_are_counted() {
        let mut outbound = Outbound::new();
        for text in ["a", "b", "c"] {
            outbound.push(delivery(Qos::AtLeastOnce, text));
        }
        assert_eq!(outbound.shrink_to(2, usize::MAX), 1);
        assert_eq!(outbound.shrink_to(2, 1), 2);
        assert!(outbound.is_within(1, 1));
        let now = Instant::now();
        outbound.push(Delivery { expires: Some(now), ..delivery(Qos::AtLeastOnce, "late") });
        let later = now + Duration::from_secs(10);
        outbound.push(Delivery { expires: Some(later), ..delivery(Qos::AtLeastOnce, "good") });
        let mut expired = 0;
        let Some(Next::Publish(publish)) = outbound.next(9, usize::MAX, now, &mut expired) else { panic!() };
        assert_eq!((expired, publish.properties.expiry_s, &publish.payload[..]), (1, Some(10), &b"good"[..]));
    }

    #[test]
    fn a_packet_id_of_the_store_is_free_when_the_queue_has_heard_of_its_end_and_not_before() {
        let mut outbound = Outbound::new();
        assert_eq!(outbound.reserve(2), [id(1), id(2)]);
        let stored = Stored { lane: 0, sequence: Sequence(7), bytes: 9, packet_id: Some(id(1)) };
        outbound.push(Delivery { stored: Some(stored), ..delivery(Qos::ExactlyOnce, "a") });
        outbound.give_back(&[id(2)]);
        assert_eq!(sent(&mut outbound, 9), [("a".into(), Some(1), false)]);
        assert_eq!(outbound.receive(id(1)), Fit::Kept, "PUBREL waits for the queue");
        assert_eq!(outbound.take_settled(), [Settling::Received { packet_id: 1 }]);
        assert!(outbound.release(id(1)));
        assert_eq!(outbound.complete(id(1)), Fit::Good);
        assert_eq!(outbound.take_settled(), [Settling::Completed { packet_id: 1 }]);
        outbound.last_id = 0;
        assert_eq!(outbound.reserve(1), [id(2)], "1 is still taken");
        outbound.give_back(&[id(1), id(2)]);
        outbound.last_id = 0;
        assert_eq!(outbound.reserve(1), [id(1)]);
    }

    #[test]
    fn packet_ids_wrap_around_and_pass_over_those_in_use() {
        let mut outbound = Outbound::new();
        outbound.push(delivery(Qos::AtLeastOnce, "first"));
        sent(&mut outbound, 2);
        outbound.last_id = u16::MAX;
        outbound.push(delivery(Qos::AtLeastOnce, "second"));
        assert_eq!(sent(&mut outbound, 2), [("second".into(), Some(2), false)]);
    }
}
