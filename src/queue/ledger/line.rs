//! One line of the ledger and how it lies in its row: compact, versioned, checksummed. Pure.
//!
//! Compact, because lines are written again with every settlement: what a dozen devices did today fits one page.

use crate::health::LossReason;
use crate::message::{ClockState, Stamp};
use crate::queue::row::{self, Reader, put_i64, put_u64};
use crate::queue::spans::Span;

/// The day of what entered while the clock was not set. It stays there: a day that was corrected later would no longer
/// be the day under which it was accepted, and the sums would not hold.
pub(super) const DAY_UNSET: i64 = 1 << 40;
/// Where the mark lies: beside today's lines, so that it is written with their page.
pub(super) const DAY_MARK: i64 = 1 << 41;

const DAY_MS: i64 = 86_400_000;
const VERSION: u8 = 1;
/// Runs that one line keeps; then the two that are nearest to each other become one.
const RUNS_MAX: usize = 32;

/// Names a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::queue) struct Key {
    pub day: i64,
    pub stream: i64,
    pub source: i64,
}

/// The day of a stamp.
pub(super) fn day(stamp: Stamp) -> i64 {
    if stamp.clock == ClockState::Unset { DAY_UNSET } else { stamp.wall_ms.div_euclid(DAY_MS) }
}

/// What was accepted on one day from one source for one stream, and what has become of it since.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::queue) struct Line {
    pub accepted: u64,
    pub delivered: u64,
    /// By reason.
    pub dropped: Vec<(LossReason, u64)>,
    /// Field lines only: values seen, and those of them that the report rule held back.
    pub read: u64,
    pub held: u64,
    /// Numbers of what was accepted: the first and the last.
    pub numbers: Option<Span>,
    /// Numbers of what was delivered.
    pub runs: Runs,
    /// Id lines only: the random bits of the start.
    pub store: u64,
}

impl Line {
    pub fn accept(&mut self, number: Option<u64>) {
        self.accepted += 1;
        let Some(number) = number else { return };
        let known = self.numbers.get_or_insert(Span::new(number, number));
        *known = Span::new(known.first.min(number), known.last.max(number));
    }

    pub fn settle(&mut self, number: Option<u64>, lost: Option<LossReason>) {
        match lost {
            None => {
                self.delivered += 1;
                if let Some(number) = number {
                    self.runs.insert(number);
                }
            }
            Some(reason) => self.drop_some(reason, 1),
        }
    }

    pub fn drop_some(&mut self, reason: LossReason, count: u64) {
        match self.dropped.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, total)) => *total += count,
            None => self.dropped.push((reason, count)),
        }
    }

    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|(_, count)| count).sum()
    }

    /// Whether nothing of it waits any more.
    pub fn is_settled(&self) -> bool {
        self.accepted == self.delivered + self.dropped_total()
    }

    pub fn encode(&self, key: Key) -> Vec<u8> {
        let Line { accepted, delivered, dropped, read, held, numbers, runs, store } = self;
        let mut out = vec![VERSION];
        for value in [*accepted, *delivered, *read, *held, *store] {
            put_u64(&mut out, value);
        }
        put_u64(&mut out, dropped.len() as u64);
        for (reason, count) in dropped {
            put_u64(&mut out, reason.code());
            put_u64(&mut out, *count);
        }
        put_u64(&mut out, u64::from(numbers.is_some()));
        if let Some(Span { first, last }) = numbers {
            put_u64(&mut out, *first);
            put_u64(&mut out, last - first);
        }
        put_u64(&mut out, runs.runs.len() as u64 * 2 + u64::from(runs.is_loose));
        let mut before = 0;
        for Span { first, last } in &runs.runs {
            put_u64(&mut out, first - before);
            put_u64(&mut out, last - first);
            before = *last;
        }
        row::seal(&mut out, seal_of(key));
        out
    }

    pub fn decode(body: &[u8], key: Key) -> Option<Line> {
        let mut bytes = Reader(row::proven(body, seal_of(key))?);
        (bytes.byte()? == VERSION).then_some(())?;
        let mut line = Line {
            accepted: bytes.u64()?,
            delivered: bytes.u64()?,
            read: bytes.u64()?,
            held: bytes.u64()?,
            store: bytes.u64()?,
            ..Line::default()
        };
        for _ in 0..bytes.u64()? {
            // A reason of a newer program has no name here; its count must not be lost with it.
            let reason = LossReason::from_code(bytes.u64()?).unwrap_or(LossReason::Damaged);
            line.drop_some(reason, bytes.u64()?);
        }
        if bytes.u64()? != 0 {
            let first = bytes.u64()?;
            line.numbers = Some(Span::new(first, first.checked_add(bytes.u64()?)?));
        }
        let runs = bytes.u64()?;
        line.runs.is_loose = runs % 2 == 1;
        let mut before = 0_u64;
        for _ in 0..runs / 2 {
            let first = before.checked_add(bytes.u64()?)?;
            before = first.checked_add(bytes.u64()?)?;
            line.runs.runs.push(Span::new(first, before));
        }
        Some(line)
    }
}

/// A line in the wrong place is noticed as well.
fn seal_of(Key { day, stream, source }: Key) -> u64 {
    day.cast_unsigned().rotate_left(40) ^ stream.cast_unsigned().rotate_left(20) ^ source.cast_unsigned()
}

/// Numbers as runs, a bounded number of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::queue) struct Runs {
    pub runs: Vec<Span>,
    /// Runs were joined for want of room: between first and last there may be numbers that do not belong.
    pub is_loose: bool,
}

impl Runs {
    pub fn insert(&mut self, number: u64) {
        // Nearly always it goes on where the last one ended.
        if let Some(last) = self.runs.last_mut()
            && (last.contains(number) || last.last + 1 == number)
        {
            last.last = number.max(last.last);
            return;
        }
        let place = self.runs.partition_point(|run| run.last < number);
        if self.runs.get(place).is_some_and(|run| run.contains(number)) {
            return;
        }
        self.runs.insert(place, Span::new(number, number));
        self.join(place);
        self.join(place.wrapping_sub(1));
        if self.runs.len() > RUNS_MAX {
            let hole = |pair: &[Span]| match pair {
                [before, after] => after.first - before.last,
                _ => u64::MAX,
            };
            let nearest = self.runs.windows(2).enumerate().min_by_key(|(_, pair)| hole(pair)).map(|(at, _)| at);
            if let Some(at) = nearest {
                self.is_loose = true;
                self.merge(at);
            }
        }
    }

    /// Makes one of the runs at `place` and after it, where they touch.
    fn join(&mut self, place: usize) {
        let touch = match (self.runs.get(place), self.runs.get(place.wrapping_add(1))) {
            (Some(run), Some(next)) => run.last + 1 == next.first,
            _ => false,
        };
        if touch {
            self.merge(place);
        }
    }

    fn merge(&mut self, place: usize) {
        let next = self.runs.remove(place + 1);
        if let Some(run) = self.runs.get_mut(place) {
            run.last = next.last;
        }
    }
}

/// What the ledger knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::queue) struct Mark {
    /// Rows up to this one are in the lines; those after it are counted again at the next start, from the rows.
    pub sequence: u64,
    /// When it was written last: then the gateway ran.
    pub alive: Stamp,
    /// Since when it is kept.
    pub since_ms: i64,
    /// How many lines there are.
    pub lines: u64,
}

impl Mark {
    pub const KEY: Key = Key { day: DAY_MARK, stream: 0, source: 0 };

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_u64(&mut out, self.sequence);
        put_i64(&mut out, self.alive.wall_ms);
        put_u64(&mut out, u64::from(self.alive.clock != ClockState::Unset));
        put_i64(&mut out, self.since_ms);
        put_u64(&mut out, self.lines);
        row::seal(&mut out, seal_of(Mark::KEY));
        out
    }

    pub fn decode(body: &[u8]) -> Option<Mark> {
        let mut bytes = Reader(row::proven(body, seal_of(Mark::KEY))?);
        (bytes.byte()? == VERSION).then_some(())?;
        let (sequence, wall_ms) = (bytes.u64()?, bytes.i64()?);
        let clock = if bytes.u64()? == 0 { ClockState::Unset } else { ClockState::Synced };
        let alive = Stamp { wall_ms, mono_ms: 0, clock };
        Some(Mark { sequence, alive, since_ms: bytes.i64()?, lines: bytes.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const KEY: Key = Key { day: 20_782, stream: 1, source: 17 };

    proptest! {
        #[test]
        fn runs_hold_exactly_their_numbers_until_there_are_too_many(numbers in prop::collection::vec(0_u64..90, 0..200)) {
            let mut runs = Runs::default();
            let mut model = BTreeSet::new();
            for number in numbers {
                runs.insert(number);
                model.insert(number);
                let held: Vec<u64> = runs.runs.iter().flat_map(|run| run.first..=run.last).collect();
                prop_assert!(held.is_sorted_by(|a, b| a < b), "{runs:?}");
                prop_assert!(runs.runs.len() <= RUNS_MAX);
                let held: BTreeSet<u64> = held.into_iter().collect();
                prop_assert!(held.is_superset(&model), "{runs:?}");
                prop_assert!(runs.is_loose || held == model, "{runs:?}");
            }
        }

        #[test]
        fn a_line_reads_back_and_a_flipped_bit_or_another_place_is_noticed(
            accepted: u32, delivered in prop::collection::vec(0_u64..1_000_000, 0..60), lost: u16,
            bit: prop::sample::Index
        ) {
            let mut line = Line { accepted: u64::from(accepted), read: 7, held: 3, store: 1 << 47, ..Line::default() };
            line.accept(Some(5));
            delivered.iter().for_each(|number| line.settle(Some(*number), None));
            line.drop_some(LossReason::Expired, u64::from(lost));
            let mut body = line.encode(KEY);
            prop_assert_eq!(Line::decode(&body, KEY), Some(line));
            prop_assert_eq!(Line::decode(&body, Key { source: 18, ..KEY }), None);
            let bit = bit.index(body.len() * 8);
            body[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Line::decode(&body, KEY), None);
        }

        #[test]
        fn any_bytes_with_a_right_checksum_are_a_line_or_none(mut body in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(first) = body.first_mut() {
                *first = VERSION;
            }
            row::seal(&mut body, seal_of(KEY));
            let _line_or_none = Line::decode(&body, KEY);
        }
    }

    #[test]
    fn the_lines_of_a_day_with_a_dozen_devices_fit_one_page() {
        let mut line = Line::default();
        for number in 4_000_000..4_086_400 {
            line.accept(Some(number));
            line.settle(Some(number), None);
        }
        let bytes = line.encode(KEY).len();
        assert!(bytes <= 40, "{bytes}");
        let mark = Mark { sequence: 1 << 40, alive: Stamp::default(), since_ms: 1_795_425_600_000, lines: 9000 };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
    }
}
