//! The SQL of the tables of what is kept; decides nothing.

use rusqlite::params;

use super::{Period, Run};
use crate::message::{ClockState, Stamp};
use crate::queue::spans::Span;
use crate::queue::store::{Store, unsigned};

/// What guards a span against a flipped bit, never 0.
pub(in crate::queue) fn span_sum(first: u64, last: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&first.to_le_bytes()), &last.to_le_bytes()).max(1)
}

impl Store {
    /// What is kept, in order, as far as it is what was written.
    pub fn kept_runs(&self) -> rusqlite::Result<Vec<Run>> {
        let sql = "SELECT first, last, period, bytes, sum FROM kept ORDER BY first";
        let runs = self.all(sql, (), |row| {
            let (first, last, sum) = (unsigned(row, 0)?, unsigned(row, 1)?, row.get::<_, i64>(4)?);
            let run = Run { span: Span::new(first, last), period: row.get(2)?, bytes: unsigned(row, 3)? };
            Ok((run, sum == i64::from(span_sum(first, last))))
        })?;
        let mut to = 0;
        let is_next = |run: &Run| {
            let is_next = run.span.first > to && run.span.first <= run.span.last;
            to = to.max(run.span.last);
            is_next
        };
        Ok(runs.into_iter().filter(|(_, is_ours)| *is_ours).map(|(run, _)| run).filter(is_next).collect())
    }

    /// The span of what is kept that begins last at or before a place, as far as it is what was written.
    pub fn kept_at(&self, place: u64) -> rusqlite::Result<Option<Span>> {
        let found = self.kept_span("first <= ? ORDER BY first DESC", place)?;
        Ok(found.filter(|(_, is_ours)| *is_ours).map(|(span, _)| span))
    }

    /// The first one that begins after a place.
    pub fn kept_after(&self, mut place: u64) -> rusqlite::Result<Option<Span>> {
        loop {
            match self.kept_span("first > ? ORDER BY first", place)? {
                Some((span, false)) => place = span.first,
                found => return Ok(found.map(|(span, _)| span)),
            }
        }
    }

    fn kept_span(&self, which: &str, place: u64) -> rusqlite::Result<Option<(Span, bool)>> {
        let sql = format!("SELECT first, last, sum FROM kept WHERE {which} LIMIT 1");
        self.one(&sql, [place.cast_signed()], |row| {
            let (first, last, sum) = (unsigned(row, 0)?, unsigned(row, 1)?, row.get::<_, i64>(2)?);
            let is_ours = first <= last && sum == i64::from(span_sum(first, last));
            Ok((Span { first, last }, is_ours))
        })
    }

    pub fn set_kept_run(&self, run: &Run) -> rusqlite::Result<()> {
        let Run { span: Span { first, last }, period, bytes } = *run;
        let sum = span_sum(first, last);
        let sql = "INSERT OR REPLACE INTO kept(first, last, period, bytes, sum) VALUES (?, ?, ?, ?, ?)";
        self.run(sql, params![first.cast_signed(), last.cast_signed(), period, bytes.cast_signed(), sum]).map(drop)
    }

    pub fn delete_kept_run(&self, first: u64) -> rusqlite::Result<()> {
        self.run("DELETE FROM kept WHERE first = ?", [first.cast_signed()]).map(drop)
    }

    pub fn kept_periods(&self) -> rusqlite::Result<Vec<(i64, Period)>> {
        self.all("SELECT id, start, wall_ms, mono_ms, is_unset FROM kept_period ORDER BY id", (), |row| {
            let clock = if row.get(4)? { ClockState::Unset } else { ClockState::Synced };
            let began = Stamp { wall_ms: row.get(2)?, mono_ms: unsigned(row, 3)?, clock };
            Ok((row.get(0)?, Period { start: row.get(1)?, began }))
        })
    }

    pub fn insert_kept_period(&self, number: i64, period: &Period) -> rusqlite::Result<()> {
        let Period { start, began: Stamp { wall_ms, mono_ms, clock } } = *period;
        let is_unset = clock == ClockState::Unset;
        let sql = "INSERT OR REPLACE INTO kept_period(id, start, wall_ms, mono_ms, is_unset) VALUES (?, ?, ?, ?, ?)";
        self.run(sql, params![number, start, wall_ms, mono_ms.cast_signed(), is_unset]).map(drop)
    }

    pub fn delete_kept_period(&self, number: i64) -> rusqlite::Result<()> {
        self.run("DELETE FROM kept_period WHERE id = ?", [number]).map(drop)
    }

    /// What is to be sent again, by stream.
    pub fn again_spans(&self) -> rusqlite::Result<Vec<(i64, Span)>> {
        let sql = "SELECT stream, first, last FROM kept_again WHERE first <= last ORDER BY stream, first";
        self.all(sql, (), |row| Ok((row.get(0)?, Span::new(unsigned(row, 1)?, unsigned(row, 2)?))))
    }

    /// Forgets the spans of a stream that begin within `over`.
    pub fn delete_again(&self, stream: i64, over: Span) -> rusqlite::Result<()> {
        let sql = "DELETE FROM kept_again WHERE stream = ? AND first BETWEEN ? AND ?";
        self.run(sql, params![stream, over.first.cast_signed(), over.last.cast_signed()]).map(drop)
    }

    pub fn insert_again(&self, stream: i64, span: Span) -> rusqlite::Result<()> {
        let sql = "INSERT OR REPLACE INTO kept_again(stream, first, last) VALUES (?, ?, ?)";
        self.run(sql, params![stream, span.first.cast_signed(), span.last.cast_signed()]).map(drop)
    }

    /// Number and bytes of the messages of a span.
    pub fn weigh(&self, span: Span) -> rusqlite::Result<(u64, u64)> {
        let (mut count, mut bytes) = (0, 0);
        let found: Vec<u32> = self.segments().over(span).map(|segment| segment.table).collect();
        for table in found {
            let sql = format!(
                "SELECT count(*), coalesce(sum(length(body)), 0) FROM message_{table} WHERE sequence BETWEEN ? AND ?"
            );
            let params = params![span.first.cast_signed(), span.last.cast_signed()];
            let weighed = self.one(&sql, params, |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?;
            let (more, of_bytes) = weighed.unwrap_or_default();
            (count, bytes) = (count + more, bytes + of_bytes);
        }
        Ok((count, bytes))
    }
}
