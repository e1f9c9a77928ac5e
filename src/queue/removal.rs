//! What goes. Settled rows leave by whole segments where they can, and one by one where they must.
//!
//! Promises: a row goes only when no stream wants it, never by a watermark, since one slow stream would keep all; what
//! is settled and still there gives way as soon as its room is needed, and is bounded when it is not. What was delivered may
//! be kept (kept.rs) before it is removable.

use super::books::{Books, JOB_ROWS_MAX, Stream};
use super::segments::Segment;
use super::sessions::Cover;
use super::spans::{OPEN, Span, runs};
use crate::health::LossReason;

/// Settled rows that may wait for their segments; the places of two segments, where those are larger. What is more lies
/// in segments that a slow stream holds, and goes row by row.
const REMOVABLE_MAX: u64 = 4096;
/// Rows that leave one by one in one transaction, in jobs: a leaf of the tree is written for nearly every second leaf
/// that goes, and those around the cut each time.
const REMOVAL_JOBS: u64 = 4;
/// A queue that has been empty for so long gives its pages back.
const EMPTY_MS: u64 = 60_000;

impl Books {
    /// Settles sequences of a stream: durable with this transaction; the rows may go later.
    pub fn settle(&mut self, index: usize, hole: Span, lost: Option<LossReason>) -> rusqlite::Result<()> {
        let all_gone = self.remove_span(index, hole)?;
        let is_writes = self.streams.get(index).is_some_and(Stream::is_writes);
        for gone in all_gone.iter().copied() {
            // While their rows are there.
            self.account_settled(index, gone, lost)?;
            self.leave_bare(gone, lost, is_writes)?;
            if let Some(reason) = lost {
                self.lose(index, reason, gone, Some(gone.count()));
            }
        }
        // After all of them: the last one's segment may hold the first one too.
        for gone in all_gone {
            self.end_segments(gone)?;
        }
        self.end_again(index, hole)
    }

    /// Notes the rows of a span that somebody does not want any more, as far as nobody else does. They are kept or may go.
    /// `is_local`: whoever wanted them was no uplink.
    pub fn leave_bare(&mut self, gone: Span, lost: Option<LossReason>, is_local: bool) -> rusqlite::Result<()> {
        let mut place = gone.first;
        while place <= gone.last {
            match self.cover(place)? {
                Cover::Until(last) => place = last.saturating_add(1),
                Cover::NoneBefore(next) => {
                    let bare = Span::new(place, gone.last.min(next - 1));
                    self.rows = self.rows.saturating_sub(bare.count());
                    match self.is_kept_for(lost) {
                        false => self.removable.insert(bare),
                        true if is_local => self.keep_of_uplinks(bare)?,
                        true => self.keep(bare)?,
                    }
                    place = bare.last + 1;
                }
            }
        }
        Ok(())
    }

    /// Empties the tables of full segments that have places of `span` and of which nobody wants anything any more.
    pub fn end_segments(&mut self, span: Span) -> rusqlite::Result<()> {
        let found: Vec<Segment> = self.store.segments().over(span).filter(|found| found.span.last != OPEN).collect();
        for segment in found {
            if self.is_bare(segment.span)? {
                self.clear(segment)?;
            }
        }
        Ok(())
    }

    /// Empties the newest table if nobody wants anything of it any more. Says whether it did.
    pub fn end_newest(&mut self) -> rusqlite::Result<bool> {
        match self.store.segments().newest() {
            Some(newest) if self.is_bare(newest.span)? => {
                self.clear(newest)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn is_bare(&self, span: Span) -> rusqlite::Result<bool> {
        let last = span.last.min(self.identity.sequence_next.saturating_sub(1));
        if self.kept.overlaps(Span::new(span.first, last)) {
            return Ok(false);
        }
        Ok(matches!(self.cover(span.first)?, Cover::NoneBefore(next) if next > last))
    }

    fn clear(&mut self, segment: Segment) -> rusqlite::Result<()> {
        self.store.write()?;
        self.store.clear_segment(segment)?;
        self.removable.remove(segment.span);
        Ok(())
    }

    /// Whether more settled rows are there than ever wait for their segments.
    pub fn is_removal_due(&self) -> bool {
        self.removable.count() > REMOVABLE_MAX.max(2 * self.store.segments().places_max())
    }

    /// Removes what is due, within what one transaction may take.
    pub fn remove_due(&mut self) -> rusqlite::Result<()> {
        // A window of rows may have come with this transaction: then no less goes.
        for _ in 0..64 {
            if !self.is_removal_due() {
                break;
            }
            for _ in 0..REMOVAL_JOBS {
                self.remove_bodies()?;
            }
        }
        Ok(())
    }

    /// Removes some of what nobody wants: a whole segment, or else one job's share of rows.
    pub fn remove_bodies(&mut self) -> rusqlite::Result<()> {
        let Some(first) = self.removable.first() else { return Ok(()) };
        let segment = self.store.segments().over(Span::new(first, first)).next();
        if let Some(segment) = segment
            && self.is_bare(segment.span)?
        {
            return self.clear(segment);
        }
        if let Some(span) = self.removable.take_first(JOB_ROWS_MAX) {
            self.store.write()?;
            self.store.delete_messages(span)?;
        }
        Ok(())
    }

    /// Empties the table of each segment of which nobody wants anything, also the newest one's.
    pub fn clear_bare(&mut self) -> rusqlite::Result<()> {
        let all: Vec<Segment> = self.store.segments().newest_first().collect();
        for segment in all {
            if self.removable.first().is_some_and(|first| first <= segment.span.last) && self.is_bare(segment.span)? {
                self.clear(segment)?;
            }
        }
        Ok(())
    }

    /// Gives the pages of a queue back that has been empty for a while. Not at once: while messages come and go one by
    /// one, each would pay for it.
    pub fn clear_if_empty(&mut self, now_ms: u64) -> rusqlite::Result<()> {
        let next = self.identity.sequence_next;
        if self.removable.count() == 0 || self.messages() > 0 {
            self.empty_since = None;
            return Ok(());
        }
        match self.empty_since {
            Some((since_ms, place)) if place == next => {
                if now_ms.saturating_sub(since_ms) >= EMPTY_MS {
                    self.clear_bare()?;
                }
            }
            _ => self.empty_since = Some((now_ms, next)),
        }
        Ok(())
    }

    /// How far streams and sessions cover `place`, or where the next one begins.
    pub(super) fn cover(&self, place: u64) -> rusqlite::Result<Cover> {
        let mut next = match self.cover_by_lanes(place)? {
            Cover::NoneBefore(next) => next,
            covered => return Ok(covered),
        };
        let mut last = None;
        for stream in self.streams.iter().filter(|stream| stream.waiting > 0) {
            if let Some(open) = stream.open {
                if open.first <= place {
                    return Ok(Cover::Until(OPEN));
                }
                // All that it wants lies there.
                if open.next - open.first == stream.waiting {
                    next = next.min(open.first);
                    continue;
                }
            }
            match self.store.span_at(stream.id, place)? {
                Some((span, _)) if span.contains(place) => last = last.max(Some(span.last)),
                _ => next = next.min(self.store.span_after(stream.id, place)?.map_or(OPEN, |(span, _)| span.first)),
            }
        }
        Ok(last.map_or(Cover::NoneBefore(next), Cover::Until))
    }

    /// Looks through one job's share of what a crash may have left: rows that nobody wants and that are not known as
    /// such.
    pub fn sweep_step(&mut self) -> rusqlite::Result<()> {
        let Some(sweep) = self.sweep.take() else { return Ok(()) };
        let found = self.store.lengths_from(sweep.first, JOB_ROWS_MAX)?;
        let Some((place, _)) = found.first().copied().filter(|(place, _)| *place <= sweep.last) else { return Ok(()) };
        let done = match self.cover(place)? {
            Cover::Until(last) => last,
            Cover::NoneBefore(_) if self.kept.at(place).is_some() => {
                self.kept.at(place).map_or(place, |run| run.span.last)
            }
            Cover::NoneBefore(next) => {
                let segment = self.store.segments().over(Span::new(place, place)).next();
                match segment {
                    Some(segment) if self.is_bare(segment.span)? => {
                        self.clear(segment)?;
                        segment.span.last
                    }
                    _ => {
                        let kept_from = self.kept.from(place).map_or(OPEN, |run| run.span.first);
                        let last = sweep.last.min(next.min(kept_from) - 1);
                        let bare: Vec<u64> = found.iter().map(|(place, _)| *place).filter(|it| *it <= last).collect();
                        // Row by row: over a crash places are passed over that were never given.
                        runs(&bare).into_iter().for_each(|run| self.removable.insert(run));
                        bare.last().copied().unwrap_or(place)
                    }
                }
            }
        };
        if done < sweep.last {
            self.sweep = Some(Span::new(done + 1, sweep.last));
        }
        Ok(())
    }
}
