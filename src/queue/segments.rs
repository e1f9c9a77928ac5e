//! Which table holds which messages. Pure.
//!
//! Messages lie in tables of about a mebibyte each, a *segment*: the one that begins last takes what comes. When no
//! stream wants anything of a segment any more, its table is emptied whole, which SQLite does without writing the pages
//! that it frees; row by row it writes nearly every second leaf once more before that leaf goes. An emptied table takes
//! a later segment. Tables are never dropped: each change of the schema makes SQLite compile all statements again.
//!
//! The number of tables is bounded, because segments grow with what is in the store, and a small store has small ones.
//! What is still wanted of a segment does not hold up the space of the rest: near the ceiling, or when too much of it
//! is unwanted, rows are removed one by one as from any table.

use std::collections::BTreeSet;

use super::spans::{OPEN, Span};

/// A segment takes about so many bytes, or this share of what is in the store, if that is more: so the number of
/// tables grows with the logarithm of a large backlog only.
const SEGMENT_BYTES: u64 = 1024 * 1024;
const USED_SHARE: u64 = 128;
/// But not more than this share of a small store, where space must come back in small pieces.
const STORE_SHARE: u64 = 16;
/// A table for so many bytes of the store, within these bounds.
const TABLE_BYTES: u64 = 32 * 1024;
const TABLES_MIN: u32 = 8;
const TABLES_MAX: u32 = 1024;
/// What a row takes beside its body, about.
const ROW_BYTES: u64 = 14;

/// The messages of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub table: u32,
    /// Places that are in it or would be; the newest segment is open.
    pub span: Span,
}

/// All segments, in order.
#[derive(Debug, Default)]
pub(super) struct Segments {
    /// First place and table.
    begins: Vec<(u64, u32)>,
    /// Tables that there are.
    tables: u32,
    /// What was put into the newest segment by this process: after a start it may grow by as much again.
    bytes: u64,
}

impl Segments {
    /// As a store has them; `None` when that cannot be.
    pub fn new(tables: u32, mut begins: Vec<(u64, u32)>) -> Option<Segments> {
        begins.sort_unstable();
        let is_known = tables > 0 && begins.iter().all(|(first, table)| *table < tables && *first < OPEN);
        let mut used: Vec<u32> = begins.iter().map(|(_, table)| *table).collect();
        used.sort_unstable();
        let is_clear = begins.windows(2).all(|pair| matches!(pair, [(one, _), (other, _)] if one < other))
            && used.windows(2).all(|pair| matches!(pair, [one, other] if one != other));
        (is_known && is_clear).then_some(Segments { begins, tables, bytes: 0 })
    }

    /// Tables that there are.
    pub fn tables(&self) -> u32 {
        self.tables
    }

    /// How many more tables to make at once: twice as many as there are, within the bound for a store of so many
    /// bytes.
    pub fn tables_missing(&self, store_bytes: u64) -> u32 {
        let most = u32::try_from(store_bytes / TABLE_BYTES).unwrap_or(TABLES_MAX).clamp(TABLES_MIN, TABLES_MAX);
        self.tables.max(1).min(most.saturating_sub(self.tables))
    }

    /// Notes that `count` tables were made.
    pub fn add_tables(&mut self, count: u32) {
        self.tables = self.tables.saturating_add(count);
    }

    /// A table that holds no segment.
    pub fn free_table(&self) -> Option<u32> {
        let used: BTreeSet<u32> = self.begins.iter().map(|(_, table)| *table).collect();
        (0..self.tables).find(|table| !used.contains(table))
    }

    /// Whether the next message begins a new segment, in a store of `store_bytes` with `used_bytes` in use.
    pub fn is_full(&self, store_bytes: u64, used_bytes: u64) -> bool {
        let bytes = (used_bytes / USED_SHARE).max(SEGMENT_BYTES).min(store_bytes / STORE_SHARE);
        self.begins.is_empty() || self.bytes >= bytes
    }

    /// Begins a segment in an empty table.
    pub fn begin(&mut self, first: u64, table: u32) {
        self.begins.push((first, table));
        self.bytes = 0;
    }

    /// The newest segment goes on although it is full: there is no table for another one.
    pub fn go_on(&mut self) {
        self.bytes = 0;
    }

    /// Notes a message that was put into the newest segment.
    pub fn add(&mut self, body_bytes: usize) {
        self.bytes = self.bytes.saturating_add(body_bytes as u64 + ROW_BYTES);
    }

    /// Forgets a segment whose table is empty now. The newest one stays and is filled again.
    pub fn end(&mut self, segment: Segment) {
        if segment.span.last == OPEN {
            self.bytes = 0;
        } else {
            self.begins.retain(|(first, _)| *first != segment.span.first);
        }
    }

    /// The newest segment.
    pub fn newest(&self) -> Option<Segment> {
        self.begins.len().checked_sub(1).and_then(|index| self.at(index))
    }

    /// Those that may hold places of `span`, in order.
    pub fn over(&self, span: Span) -> impl Iterator<Item = Segment> {
        let from = self.begins.partition_point(|(first, _)| *first <= span.first).saturating_sub(1);
        let to = self.begins.partition_point(|(first, _)| *first <= span.last);
        (from..to).filter_map(|index| self.at(index)).filter(move |segment| segment.span.overlap(span).is_some())
    }

    /// All of them, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = Segment> {
        (0..self.begins.len()).rev().filter_map(|index| self.at(index))
    }

    /// Places of the longest segment but the newest.
    pub fn places_max(&self) -> u64 {
        let lengths = self.begins.windows(2).map(|pair| match pair {
            [(first, _), (next, _)] => next - first,
            _ => 0,
        });
        lengths.max().unwrap_or(0)
    }

    fn at(&self, index: usize) -> Option<Segment> {
        let (first, table) = *self.begins.get(index)?;
        let last = self.begins.get(index + 1).map_or(OPEN, |(next, _)| next - 1);
        Some(Segment { table, span: Span::new(first, last) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn spans(segments: &Segments, span: Span) -> Vec<(u32, u64, u64)> {
        segments.over(span).map(|found| (found.table, found.span.first, found.span.last)).collect()
    }

    #[test]
    fn a_place_is_found_in_the_segment_that_begins_at_or_before_it() {
        let segments = Segments::new(4, vec![(100, 0), (10, 3), (50, 1)]).unwrap();
        assert_eq!(spans(&segments, Span::new(10, 10)), [(3, 10, 49)]);
        assert_eq!(spans(&segments, Span::new(1, 50)), [(3, 10, 49), (1, 50, 99)]);
        assert_eq!(spans(&segments, Span::new(1, 9)), []);
        assert_eq!(spans(&segments, Span::new(99, OPEN)), [(1, 50, 99), (0, 100, OPEN)]);
        assert_eq!((segments.free_table(), segments.places_max()), (Some(2), 50));
    }

    #[test]
    fn what_no_store_of_ours_says_is_refused() {
        assert!(Segments::new(2, vec![(1, 0), (2, 2)]).is_none(), "a table that is not there");
        assert!(Segments::new(2, vec![(1, 0), (2, 0)]).is_none(), "a table with two segments");
        assert!(Segments::new(2, vec![(1, 0), (1, 1)]).is_none(), "two segments at one place");
    }

    #[test]
    fn an_emptied_table_takes_a_later_segment_and_the_newest_is_filled_again() {
        let mut segments = Segments::new(2, vec![(1, 0), (10, 1)]).unwrap();
        assert_eq!(segments.free_table(), None);
        let oldest = segments.over(Span::new(1, 1)).next().unwrap();
        segments.end(oldest);
        assert_eq!(segments.free_table(), Some(0));
        segments.add(5000);
        segments.end(segments.newest().unwrap());
        assert_eq!(segments.newest().unwrap(), Segment { table: 1, span: Span::new(10, OPEN) });
        assert!(!segments.is_full(16 * MIB, 0));
        segments.begin(20, 0);
        assert_eq!(spans(&segments, Span::new(10, 20)), [(1, 10, 19), (0, 20, OPEN)]);
    }

    #[test]
    fn the_tables_of_the_largest_store_are_bounded_and_a_small_store_has_small_segments() {
        for store in [64 * 1024, MIB, 64 * MIB, 1024 * MIB, 64 * 1024 * MIB] {
            let mut segments = Segments::default();
            let (mut used, mut table_count) = (0, 0);
            while used < store {
                while !segments.is_full(store, used) {
                    segments.add(100_000.min(store as usize / 100));
                    used += 100_000.min(store / 100) + ROW_BYTES;
                }
                if segments.free_table().is_none() {
                    segments.add_tables(segments.tables_missing(store));
                }
                match segments.free_table() {
                    Some(table) => {
                        segments.begin(used, table);
                        table_count += 1;
                    }
                    None => segments.go_on(),
                }
            }
            assert!((8..=1024).contains(&table_count), "{table_count} tables of a store of {store}");
            assert!(segments.places_max() <= store / 7, "{} of {store}", segments.places_max());
        }
    }
}
