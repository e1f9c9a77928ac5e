//! What the cloud sent and is not yet answered: acknowledgements leave in the order of what they answer. Pure.
//!
//! Promises: nothing is acknowledged before the intake has it; all acknowledgements leave through one FIFO (MQTT 5.0,
//! 4.6; DESIGN.md 6.9.3); an answer that belongs to a connection that is gone is dropped.

use std::collections::{HashSet, VecDeque};

use crate::mqtt::{Packet, PacketId};

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
        self.entries.push_back(Entry { receipt: self.next_receipt, answer, is_ready: false });
        self.next_receipt
    }

    /// A place in the order whose answer waits for nothing but its turn.
    pub fn answered(&mut self, answer: Packet) {
        let receipt = self.open(Some(answer));
        self.ready(receipt);
    }

    /// What `receipt` stands for is done. Nothing happens when it belongs to a former connection.
    pub fn ready(&mut self, receipt: Receipt) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.receipt == receipt) {
            entry.is_ready = true;
        }
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
}
