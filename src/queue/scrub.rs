//! Reads what lies in the store for long, so that bit rot is found while it can still be told, not when the row is
//! wanted: row by row, only while nobody asks for anything, and slower than 1 MiB a second.
//!
//! A row whose checksum is wrong is counted, told as a gap and given up; its neighbours go on. A page that SQLite
//! cannot read ends in an error, and so in the salvage.

use log::warn;

use super::books::{Books, JOB_ROWS_MAX};
use super::row;
use super::spans::Span;
use crate::health::LossReason;

/// The pause between two steps, of at most 256 KiB each: 1 MiB a second at most.
pub(super) const STEP_MS: u64 = 250;
const STEP_BYTES_MAX: usize = 256 * 1024;
/// After the whole store was read, so long nothing is.
const REST_MS: u64 = 24 * 3600 * 1000;

/// How far it has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Scrub {
    stage: Stage,
    due_ms: u64,
    /// Passes over the whole store.
    pub passes: u64,
}

#[derive(Debug, Clone)]
enum Stage {
    Messages { from: u64 },
    Retained { after: Option<String> },
    DeadLetters { after: i64 },
    Tables,
}

impl Default for Stage {
    fn default() -> Stage {
        Stage::Messages { from: 1 }
    }
}

impl Books {
    /// In how many milliseconds the next step is due.
    pub fn scrub_due_ms(&self, now_ms: u64) -> u64 {
        self.scrub.due_ms.saturating_sub(now_ms)
    }

    /// Reads the next share.
    pub fn scrub_step(&mut self, now_ms: u64) -> rusqlite::Result<()> {
        self.scrub.due_ms = now_ms + STEP_MS;
        let next = match std::mem::take(&mut self.scrub.stage) {
            Stage::Messages { from } => self.scrub_messages(from)?,
            Stage::Retained { after } => self.scrub_retained(after)?,
            Stage::DeadLetters { after } => self.scrub_dead_letters(after)?,
            Stage::Tables => {
                // SQLite looks at each page that it reads.
                self.store.spans(|_, _, _| {})?;
                self.store.streams()?;
                self.store.starts()?;
                self.store.words()?;
                self.store.gaps()?;
                self.store.losses()?;
                self.scrub.due_ms = now_ms + REST_MS;
                self.scrub.passes += 1;
                Stage::default()
            }
        };
        self.scrub.stage = next;
        Ok(())
    }

    fn scrub_messages(&mut self, from: u64) -> rusqlite::Result<Stage> {
        let (mut damaged, mut rows, mut bytes, mut last) = (Vec::new(), 0, 0, from);
        let end = self.identity.sequence_next.saturating_sub(1);
        let mut is_cut = false;
        self.store.messages(Span::new(from, end), |sequence, body| {
            if row::proven(body, sequence).is_none() {
                damaged.push(sequence);
            }
            (rows, bytes, last) = (rows + 1, bytes + body.len(), sequence);
            is_cut = rows >= JOB_ROWS_MAX || bytes >= STEP_BYTES_MAX;
            !is_cut
        })?;
        for index in 0..self.streams.len() {
            let mut lost = Vec::new();
            for sequence in damaged.iter().copied() {
                let is_in_flight = self.streams.get(index).is_some_and(|stream| stream.in_flight.contains(&sequence));
                // What is under way is in the uplink's memory: it may still arrive.
                if !is_in_flight && self.covering(index, sequence)?.is_some() {
                    lost.push((sequence, LossReason::Damaged));
                }
            }
            self.settle_lost(index, &lost)?;
        }
        if self.is_removal_due() {
            self.remove_bodies()?;
        }
        Ok(if is_cut { Stage::Messages { from: last + 1 } } else { Stage::Retained { after: None } })
    }

    fn scrub_retained(&mut self, after: Option<String>) -> rusqlite::Result<Stage> {
        let from = after.as_deref().unwrap_or_default();
        let found = self.store.retained(from, after.is_some(), None, 16)?;
        let next = found.last().map(|(topic, _)| topic.clone());
        for (topic, body) in found {
            if row::proven(&body, 0).is_none() {
                warn!(topic = topic.as_str(); "A retained message is damaged and was removed");
                self.store.write()?;
                self.store.delete_retained(&topic)?;
                self.retained = (self.retained.0.saturating_sub(1), self.retained.1.saturating_sub(body.len() as u64));
                self.turn_losses.push((LossReason::Damaged, 1));
            }
        }
        Ok(if next.is_some() { Stage::Retained { after: next } } else { Stage::DeadLetters { after: 0 } })
    }

    fn scrub_dead_letters(&mut self, after: i64) -> rusqlite::Result<Stage> {
        let found = self.store.dead_letters(after, 16)?;
        let Some((next, _, _)) = found.last() else { return Ok(Stage::Tables) };
        let next = *next;
        for (id, sequence, body) in found {
            if row::proven(&body, sequence).is_none() {
                warn!(sequence; "A dead letter is damaged and was removed");
                self.store.write()?;
                self.store.remove_dead_letter(id)?;
                let (count, bytes) = self.dead_letters;
                self.dead_letters = (count.saturating_sub(1), bytes.saturating_sub(body.len() as u64));
                self.turn_losses.push((LossReason::DeadLetterDropped, 1));
            }
        }
        Ok(Stage::DeadLetters { after: next })
    }
}
