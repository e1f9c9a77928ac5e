//! What the cloud sent and is not yet answered: acknowledgements leave in the order of what they answer. Pure.
//!
//! Promises: nothing is acknowledged before the intake has it; all acknowledgements leave through one FIFO (MQTT 5.0,
//! 4.6; DESIGN.md 6.9.3); an answer that belongs to a connection that is gone is dropped.

use std::collections::{HashSet, VecDeque};

use crate::message::{Message, Topic};
use crate::mqtt::{Packet, PacketId, ReasonCode};
use crate::queue::Once;

/// Unanswered packets after which nothing more is read; also the Receive Maximum that CONNECT grants.
pub const UNANSWERED_MAX: u16 = 256;

/// Names one thing that the intake or the queue is asked to do.
pub type Receipt = u64;

#[derive(Debug)]
struct Entry {
    receipt: Receipt,
    /// What leaves once the place is ready; nothing for QoS 0.
    answer: Option<Packet>,
    is_ready: bool,
    /// What was handed in, while it may have to be handed in again.
    command: Option<(Box<Message>, Option<Once>)>,
    /// There was no room for it.
    is_refused: bool,
}

/// The FIFO of answers of one connection.
#[derive(Debug, Default)]
pub struct Inbound {
    entries: VecDeque<Entry>,
    next_receipt: Receipt,
    /// QoS 2 ids that matched no rule: taken and thrown away, so the queue does not know them.
    ignored: HashSet<PacketId>,
}

impl Inbound {
    /// Whether another packet may be taken in.
    pub fn has_room(&self) -> bool {
        self.entries.len() < usize::from(UNANSWERED_MAX)
    }

    /// A place in the order; `answer` leaves when it is its turn and `ready` was said.
    pub fn open(&mut self, answer: Option<Packet>) -> Receipt {
        self.next_receipt += 1;
        self.entries.push_back(Entry {
            receipt: self.next_receipt,
            answer,
            is_ready: false,
            command: None,
            is_refused: false,
        });
        self.next_receipt
    }

    /// A place in the order whose answer waits for nothing but its turn.
    pub fn answered(&mut self, answer: Packet) {
        let receipt = self.open(Some(answer));
        self.ready(receipt);
    }

    /// What `receipt` stands for is done. Nothing happens when it belongs to a former connection.
    pub fn ready(&mut self, receipt: Receipt) {
        if let Some(entry) = self.entry(receipt) {
            entry.is_ready = true;
            entry.command = None;
        }
    }

    /// Like `ready`, with a failure in the answer.
    pub fn fail(&mut self, receipt: Receipt, reason: ReasonCode) {
        if let Some(Packet::Puback(ack) | Packet::Pubrec(ack)) =
            self.entry(receipt).and_then(|entry| entry.answer.as_mut())
        {
            ack.reason = reason;
        }
        self.ready(receipt);
    }

    /// Remembers what was handed in for `receipt`, until it is ready.
    pub fn keep(&mut self, receipt: Receipt, message: Box<Message>, once: Option<Once>) {
        if let Some(entry) = self.entry(receipt) {
            entry.command = Some((message, once));
        }
    }

    /// Whether what was handed in for `receipt` can be handed in again.
    pub fn keeps(&self, receipt: Receipt) -> bool {
        self.entries.iter().any(|entry| entry.receipt == receipt && entry.command.is_some())
    }

    /// There was no room for what was handed in for `receipt`.
    pub fn refuse(&mut self, receipt: Receipt) {
        if let Some(entry) = self.entry(receipt) {
            entry.is_refused = true;
        }
    }

    /// Whether a message of `topic` waits for room.
    pub fn has_refused_on(&self, topic: &Topic) -> bool {
        let is_on = |(message, _): &(Box<Message>, Option<Once>)| message.topic == *topic;
        self.entries.iter().any(|entry| entry.is_refused && entry.command.as_ref().is_some_and(is_on))
    }

    /// The first that waits for room, to be handed in again.
    pub fn take_refused(&mut self) -> Option<(Receipt, Box<Message>, Option<Once>)> {
        let entry = self.entries.iter_mut().find(|entry| entry.is_refused)?;
        entry.is_refused = false;
        let (message, once) = entry.command.clone()?;
        Some((entry.receipt, message, once))
    }

    /// Like `ready`, with another answer.
    pub fn ready_with(&mut self, receipt: Receipt, answer: Packet) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.receipt == receipt) {
            entry.answer = Some(answer);
            entry.is_ready = true;
        }
    }

    /// Whether `receipt` belongs to this connection.
    pub fn knows(&self, receipt: Receipt) -> bool {
        self.entries.iter().any(|entry| entry.receipt == receipt)
    }

    /// The packet id that the answer of `receipt` bears.
    pub fn answer_id(&self, receipt: Receipt) -> Option<PacketId> {
        let entry = self.entries.iter().find(|entry| entry.receipt == receipt)?;
        match entry.answer.as_ref()? {
            Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubcomp(ack) => Some(ack.packet_id),
            _ => None,
        }
    }

    /// What may leave now, in order.
    pub fn take(&mut self) -> Option<Packet> {
        while self.entries.front()?.is_ready {
            if let Some(answer) = self.entries.pop_front()?.answer {
                return Some(answer);
            }
        }
        None
    }

    /// Remembers a QoS 2 id that nothing is stored for.
    pub fn ignore(&mut self, packet_id: PacketId) {
        self.ignored.insert(packet_id);
    }

    /// The session of the ignored ids is over: in the next one they name other messages.
    pub fn forget_ignored(&mut self) {
        self.ignored.clear();
    }

    /// Whether `packet_id` was ignored; forgets it.
    pub fn take_ignored(&mut self, packet_id: PacketId) -> bool {
        self.ignored.remove(&packet_id)
    }

    /// The connection is gone: its answers are void. Receipts go on, so that a late one finds nothing.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    fn entry(&mut self, receipt: Receipt) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.receipt == receipt)
    }
}
