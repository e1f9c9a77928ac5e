//! What a person has done to a store: dead letters sent again or dropped, a stream dropped whose uplink is gone.
//!
//! Promises: each order is one transaction and one job's share; what it drops is counted with its reason; a message that
//! is sent again keeps its name, so that whoever has it already can tell.

use serde::{Deserialize, Serialize};

use super::books::{Books, JOB_ROWS_MAX, gap_topic};
use super::inspect::{Answer, refused};
use super::kept::ResendAsk;
use super::retention;
use super::row;
use super::salvage::SALVAGED_TO;
use super::spans::{OPEN, Span};
use super::store::PAGE_BYTES;
use crate::config::WhenFull;
use crate::health::LossReason;
use crate::message::{Message, MessageId, Origin};

/// What is to be done to a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub enum Order {
    /// A dead letter waits for its uplink again.
    RetryDeadLetter {
        /// Its number.
        number: i64,
    },
    /// A dead letter is forgotten.
    DropDeadLetter {
        /// Its number.
        number: i64,
    },
    /// What waits for an uplink that is not configured any more is dropped, a share of it.
    DropStream {
        /// The uplink's name.
        name: String,
    },
    /// What was delivered to an uplink is sent to it again, a share of what is kept.
    Resend(ResendAsk),
    /// A share of all rows is proven, and what has rotted is given up and declared; nothing is left when all were.
    Scrub,
}

impl Books {
    /// Does what was ordered, in the open transaction.
    pub(super) fn carry_out(&mut self, order: &Order) -> rusqlite::Result<Answer> {
        match order {
            Order::RetryDeadLetter { number } => self.retry_dead_letter(*number),
            Order::DropDeadLetter { number } => self.drop_dead_letter(*number),
            Order::DropStream { name } => self.drop_stream(name),
            Order::Resend(ask) => self.resend(ask, true),
            Order::Scrub => {
                let (passes, before) = (self.scrub.passes, self.turn_losses.len());
                self.scrub_step(self.settings.clock.now().mono_ms)?;
                let given_up = self.turn_losses.iter().skip(before).map(|(_, count)| count).sum();
                Ok(Answer::Done { count: given_up, left: u64::from(self.scrub.passes == passes) })
            }
        }
    }

    fn retry_dead_letter(&mut self, number: i64) -> rusqlite::Result<Answer> {
        let Some(found) =
            self.store.dead_letter_rows(number.saturating_sub(1), 1)?.pop().filter(|row| row.number == number)
        else {
            return Ok(refused(&format!("there is no dead letter {number}")));
        };
        let index = self.streams.iter().position(|stream| stream.id == found.stream && stream.is_active);
        let Some(index) = index else {
            let name = self.streams.iter().find(|stream| stream.id == found.stream).map_or("?", |stream| &stream.name);
            return Ok(refused(&format!("no uplink {name} is configured that could send it")));
        };
        let Ok((id, message)) = row::decode(&found.body, found.sequence, &self.starts, &self.words) else {
            return Ok(refused(&format!("dead letter {number} is damaged")));
        };
        if let Some(reason) = self.expired(&id, &message, self.settings.clock.now()) {
            return Ok(refused(&format!("it would be dropped at once: it is too old ({})", reason.name())));
        }
        if !self.place_again(index, &id, &message)? {
            return Ok(refused("the store is full"));
        }
        self.forget_dead_letter(number, found.body.len())?;
        Ok(Answer::Done { count: 1, left: 0 })
    }

    /// Lets a message that is known by its name wait for a stream, behind all that waits. False: there is no room.
    pub(super) fn place_again(&mut self, index: usize, id: &MessageId, message: &Message) -> rusqlite::Result<bool> {
        let Some(stream) = self.streams.get(index) else { return Ok(false) };
        let is_gap =
            message.origin == Origin::Gateway && Some(&message.topic) == gap_topic(&self.settings.gateway).as_ref();
        let rule = stream.own.as_ref().filter(|_| is_gap).map_or(stream.rules.id, |own| own.id);
        let sequence = self.sequence()?;
        let mut body = Vec::new();
        row::encode_absolute(&mut body, sequence, id, message);
        // Nothing that waits gives way for it.
        if self.find_room(retention::row_bytes(body.len(), PAGE_BYTES), &[(index, WhenFull::Refuse)])?.is_some() {
            return Ok(false);
        }
        self.place_as(sequence, &body, &[(index, rule)])?;
        // Rows up to here do not lie in the order of their starts.
        let salvaged_to = self.store.meta(SALVAGED_TO)?.unwrap_or(0).max(sequence);
        self.store.set_meta(SALVAGED_TO, salvaged_to)?;
        Ok(true)
    }

    fn drop_dead_letter(&mut self, number: i64) -> rusqlite::Result<Answer> {
        let found = self.store.dead_letter_rows(number.saturating_sub(1), 1)?.pop().filter(|row| row.number == number);
        let Some(found) = found else { return Ok(refused(&format!("there is no dead letter {number}"))) };
        self.forget_dead_letter(number, found.body.len())?;
        self.turn_losses.push((LossReason::DeadLetterDropped, 1));
        Ok(Answer::Done { count: 1, left: 0 })
    }

    fn forget_dead_letter(&mut self, number: i64, bytes: usize) -> rusqlite::Result<()> {
        self.store.write()?;
        self.store.remove_dead_letter(number)?;
        let (count, total) = self.dead_letters;
        self.dead_letters = (count.saturating_sub(1), total.saturating_sub(bytes as u64));
        Ok(())
    }

    /// Its row stays, empty: the ledger knows it by that.
    fn drop_stream(&mut self, name: &str) -> rusqlite::Result<Answer> {
        let Some(index) = self.streams.iter().position(|stream| *stream.name == *name) else {
            return Ok(refused(&format!("the store has no stream {name:?}")));
        };
        let Some(stream) = self.streams.get(index).filter(|stream| !stream.is_active) else {
            return Ok(refused(&format!("{name:?} is configured: take it out of the configuration and restart first")));
        };
        let stream_id = stream.id;
        self.store.write()?;
        let mut packet_ids = self.store.in_flight(stream_id)?.into_iter().map(|entry| entry.packet_id);
        for packet_id in packet_ids.by_ref().take(usize::try_from(JOB_ROWS_MAX).unwrap_or(usize::MAX)) {
            self.forget(index, packet_id)?;
        }
        if packet_ids.next().is_some() {
            let left = self.streams.get(index).map_or(0, |stream| stream.waiting);
            return Ok(Answer::Done { count: 0, left: left.max(1) });
        }
        self.end_again(index, Span::new(0, OPEN))?;
        let before = self.streams.get(index).map_or(0, |stream| stream.waiting);
        if let Some((span, _)) = self.store.span_after(stream_id, 0)? {
            let hole = Span::new(span.first, span.last.min(span.first.saturating_add(JOB_ROWS_MAX - 1)));
            self.settle(index, hole, Some(LossReason::StreamDropped))?;
        }
        self.remove_due()?;
        let Some(stream) = self.streams.get_mut(index) else { return Ok(refused("it is gone")) };
        let left = stream.waiting;
        // Who would be told of it is gone, and its session with it.
        let session = stream.session;
        let gaps: Vec<LossReason> = std::mem::take(&mut stream.gaps).into_keys().collect();
        for reason in gaps {
            self.store.delete_gap(stream_id, reason.name())?;
        }
        if left == 0 {
            self.store.delete_session(session)?;
        }
        Ok(Answer::Done { count: before.saturating_sub(left), left })
    }
}
