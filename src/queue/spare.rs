//! Sparing the flash: what is held in memory while the cloud answers (DESIGN.md 6.3).
//!
//! Promises: the sender of what is held here has no acknowledgement; it gets one when the cloud has the message, or when
//! the message is on disk. It is written when the cloud has not answered within `hold`, when the uplink is down, when
//! there is too much of it, when anything else is written, and at the stop. So all that is held has its place behind all
//! that is on disk, and a stream reads first the one and then the other.
//!
//! A reading was promised to nobody: its adapter is answered at once, and a power cut within `hold` loses it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::books::Books;
use super::retention::{self, Refusal};
use super::row;
use super::spans::Span;
use super::store::PAGE_BYTES;
use super::worker::Reply;
use super::{AppendError, Appended, Fate, Submission};
use crate::config::WhenFull;
use crate::health::LossReason;
use crate::message::{Body, Message, MessageId, Qos, Sequence};

/// What may be held; beyond it everything is written.
const HELD_BYTES_MAX: usize = 1024 * 1024;
const HELD_ROWS_MAX: usize = 4096;
/// What a held message takes beside its topic and body, roughly.
const HELD_OVERHEAD: usize = 256;

/// A message that is in memory only.
#[derive(Debug)]
pub(super) struct HeldRow {
    /// The one that wants it.
    pub stream: Arc<str>,
    pub id: MessageId,
    pub message: Message,
    way: WhenFull,
    /// By the monotonic clock.
    due_ms: u64,
    bytes: usize,
    /// Its sender's, who waits; `None` for a reading.
    reply: Option<Reply<Appended>>,
}

impl HeldRow {
    fn stored(&self, sequence: u64) -> Appended {
        let reading_seq = match &self.message.body {
            Body::Reading(reading) => reading.seq,
            Body::Bytes(_) => 0,
        };
        Appended { id: self.id.clone(), reading_seq, fate: Fate::Stored { sequence: Sequence(sequence), streams: 1 } }
    }

    fn answer(self, answer: Result<Appended, AppendError>) {
        if let Some(reply) = self.reply {
            // The sender may be gone.
            drop(reply.send(answer));
        }
    }
}

/// All that is in memory only, by place.
#[derive(Debug, Default)]
pub(super) struct Held {
    rows: BTreeMap<u64, HeldRow>,
    bytes: usize,
    /// Written in the open transaction; answered when it is on disk.
    leaving: Vec<(u64, HeldRow, Result<Appended, AppendError>)>,
}

impl Held {
    pub fn is_full(&self, bytes: usize) -> bool {
        self.rows.len() >= HELD_ROWS_MAX || self.bytes.saturating_add(bytes) > HELD_BYTES_MAX
    }

    /// When the oldest one is to be written.
    pub fn due_ms(&self) -> Option<u64> {
        self.rows.values().next().map(|row| row.due_ms)
    }

    /// The place of the oldest one.
    pub fn first(&self) -> Option<u64> {
        self.rows.keys().next().copied()
    }

    pub fn contains(&self, sequence: u64) -> bool {
        self.rows.contains_key(&sequence)
    }

    /// Of a stream, after a place, in order.
    pub fn after<'s>(&'s self, stream: &'s Arc<str>, place: u64) -> impl Iterator<Item = (u64, &'s HeldRow)> {
        self.rows
            .range(place.saturating_add(1)..)
            .filter(move |(_, row)| row.stream == *stream)
            .map(|(sequence, row)| (*sequence, row))
    }

    pub fn count_of(&self, stream: &Arc<str>) -> u64 {
        self.rows.values().filter(|row| row.stream == *stream).count() as u64
    }

    fn push(&mut self, sequence: u64, row: HeldRow) {
        self.bytes += row.bytes;
        self.rows.insert(sequence, row);
    }

    fn take(&mut self, sequence: u64) -> Option<HeldRow> {
        let row = self.rows.remove(&sequence)?;
        self.bytes = self.bytes.saturating_sub(row.bytes);
        Some(row)
    }

    /// The last place that is to be written by now: all before it go with it.
    fn last_due(&self, now_ms: u64) -> Option<u64> {
        self.rows.iter().take_while(|(_, row)| row.due_ms <= now_ms).last().map(|(sequence, _)| *sequence)
    }

    /// The transaction is on disk.
    pub fn committed(&mut self) {
        for (_, row, answer) in self.leaving.drain(..) {
            row.answer(answer);
        }
    }

    /// The store has failed: who waits hears so and keeps the message; readings stay, also those that were being written.
    pub fn failed(mut self, failure: &AppendError) -> Held {
        let leaving = self.leaving.drain(..).map(|(sequence, row, _)| (sequence, row));
        let mut kept = Held::default();
        for (sequence, row) in leaving.chain(std::mem::take(&mut self.rows)) {
            match row.reply {
                Some(_) => row.answer(Err(failure.clone())),
                None => kept.push(sequence, row),
            }
        }
        kept
    }

    /// Without what turns out to be on disk, whose last place is `last`: a commit that failed may have come there.
    pub fn beyond(mut self, last: u64) -> Held {
        while let Some(sequence) = self.first().filter(|sequence| *sequence <= last) {
            self.take(sequence);
        }
        self
    }
}

impl Books {
    /// Holds a message where that is allowed, and answers later; else gives it back to be written.
    pub fn hold(
        &mut self,
        submission: Submission,
        reply: Reply<Appended>,
    ) -> rusqlite::Result<Option<(Submission, Reply<Appended>)>> {
        let Some(hold) = self.settings.hold else { return Ok(Some((submission, reply))) };
        let wanted = self.wanted(&submission.message);
        let bytes = weight(&submission.message);
        let one = match wanted.as_slice() {
            [one]
                if submission.once.is_none()
                    && !submission.message.retain
                    && !self.sessions.wants(&submission.message) =>
            {
                *one
            }
            _ => return Ok(Some((submission, reply))),
        };
        if !self.may_hold(one.0, &submission.message) || self.held.is_full(bytes) {
            return Ok(Some((submission, reply)));
        }
        let Submission { mut message, .. } = submission;
        self.number(&mut message)?;
        if self.note_number(&message) {
            // A new block of numbers is on disk before one of them leaves, so that none is given twice.
            self.store.write()?;
        }
        let id = self.take_id();
        let sequence = self.sequence()?;
        self.identity.sequence_next = sequence + 1;
        let Some(stream) = self.streams.get_mut(one.0) else { return Ok(None) };
        stream.is_stirred = true;
        let due_ms = self.settings.clock.now().mono_ms.saturating_add(hold_ms(hold));
        let mut row =
            HeldRow { stream: stream.name.clone(), id, message, way: one.1, due_ms, bytes, reply: Some(reply) };
        if matches!(row.message.body, Body::Reading(_))
            && let Some(reply) = row.reply.take()
        {
            // Its adapter may be gone.
            drop(reply.send(Ok(row.stored(sequence))));
        }
        self.held.push(sequence, row);
        Ok(None)
    }

    /// Whether the cloud takes this message at QoS 1 at once: it is connected, and nothing on disk waits before it.
    fn may_hold(&self, index: usize, message: &Message) -> bool {
        let Some(stream) = self.streams.get(index) else { return false };
        let is_at_least_once =
            stream.rules.first(&message.topic).is_some_and(|rule| super::rules::qos(rule, message) == Qos::AtLeastOnce);
        let is_caught_up = stream.waiting == 0 || stream.open.is_some_and(|open| stream.taken_to + 1 >= open.next);
        stream.is_live && is_at_least_once && is_caught_up && self.ledger.knows(message)
    }

    /// An uplink says whether it is connected and takes messages at QoS 1.
    pub fn set_live(&mut self, index: usize, is_live: bool) -> rusqlite::Result<()> {
        if let Some(stream) = self.streams.get_mut(index) {
            stream.is_live = is_live;
        }
        if is_live { Ok(()) } else { self.write_held(u64::MAX) }
    }

    /// Writes what has been held for long enough.
    pub fn write_due(&mut self, now_ms: u64) -> rusqlite::Result<()> {
        match self.held.last_due(now_ms) {
            Some(last) => self.write_held(last),
            None => Ok(()),
        }
    }

    /// Writes what is held up to a place; answered after the commit.
    pub fn write_held(&mut self, last: u64) -> rusqlite::Result<()> {
        while let Some(sequence) = self.held.first().filter(|sequence| *sequence <= last) {
            let Some(row) = self.held.take(sequence) else { break };
            let answer = self.write_row(sequence, &row);
            let (answer, outcome) = match answer {
                Ok(answer) => (answer, Ok(())),
                Err(error) => (Err(AppendError::Stopped), Err(error)),
            };
            self.held.leaving.push((sequence, row, answer));
            outcome?;
        }
        Ok(())
    }

    fn write_row(&mut self, sequence: u64, row: &HeldRow) -> rusqlite::Result<Result<Appended, AppendError>> {
        let found = self.streams.iter().position(|stream| stream.name == row.stream);
        let Some(index) = found else { return Ok(Ok(row.stored(sequence))) };
        self.learn_word(&row.message.origin)?;
        let mut body = std::mem::take(&mut self.scratch);
        row::encode(&mut body, sequence, &self.identity.start, row.id.counter, &row.message, &self.words);
        let room = retention::row_bytes(body.len(), PAGE_BYTES);
        let refusal = self.find_room_beside(room, self.session_room(), &[(index, row.way)]);
        let outcome = match refusal {
            Err(error) => Err(error),
            Ok(None) => self
                .put(sequence, &body, |other, stream| (other == index).then_some(stream.rules.id))
                .map(|()| Ok(row.stored(sequence))),
            Ok(Some(Refusal::Refuse)) => Ok(Err(AppendError::Full)),
            Ok(Some(Refusal::Drop)) => {
                self.lose(index, LossReason::DroppedNewest, Span::new(sequence, sequence), Some(1));
                Ok(Ok(Appended { fate: Fate::Dropped(LossReason::DroppedNewest), ..row.stored(sequence) }))
            }
        };
        self.scratch = body;
        outcome
    }

    /// The cloud has a message that is in memory only: its sender may hear so at once. Says whether it was one.
    pub fn settle_held(&mut self, index: usize, sequence: u64) -> rusqlite::Result<bool> {
        let Some(row) = self.held.take(sequence) else { return Ok(false) };
        if let Some(stream) = self.streams.get(index) {
            self.ledger.pass(&self.store, stream.id, &row.id, &row.message)?;
        }
        let stored = row.stored(sequence);
        row.answer(Ok(stored));
        Ok(true)
    }
}

fn hold_ms(hold: Duration) -> u64 {
    u64::try_from(hold.as_millis()).unwrap_or(u64::MAX)
}

fn weight(message: &Message) -> usize {
    let body = match &message.body {
        Body::Bytes(bytes) => bytes.len(),
        Body::Reading(_) => 128,
    };
    let user = message.properties.as_ref().map_or(0, |properties| {
        properties.user.iter().map(|(name, value)| name.len() + value.len() + 48).sum::<usize>()
    });
    HELD_OVERHEAD + message.topic.as_str().len() + body + user
}
