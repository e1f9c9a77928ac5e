//! How far a drain is, and how long it takes. Pure: the caller brings the clock and the counters.
//!
//! A drain begins when the cloud is there and twice as much waits as is in flight at one time; it ends when no more than
//! that waits. Its pace is that of the last half minute, what comes in meanwhile taken off: so the time that is left is that
//! until the backlog is gone, not until what waited at first is.

use std::collections::VecDeque;

use serde::Serialize;

/// A sample at most so often, and the pace over so many of them.
const SAMPLE_MS: u64 = 1000;
const SAMPLES_MAX: usize = 30;

/// Fewer messages than this are no backlog.
const BACKLOG_MIN: u64 = 100;

/// What is counted of one uplink at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Level {
    /// Milliseconds, by a clock that only grows.
    pub now_ms: u64,
    /// The cloud is there.
    pub is_connected: bool,
    /// In the queue for this uplink.
    pub waiting: u64,
    /// Of these on their way.
    pub in_flight: u64,
    /// Acknowledged so far.
    pub delivered: u64,
}

/// One uplink's drain, if there is one.
#[derive(Debug, Default)]
pub struct Drain {
    /// How much had been delivered when it began.
    from: Option<u64>,
    samples: VecDeque<Level>,
}

/// `drain` of an uplink in `status --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DrainSnapshot {
    /// Messages delivered since it began.
    pub delivered: u64,
    /// Messages that wait.
    pub left: u64,
    /// Hundredths of both together that are delivered.
    pub percent: u64,
    /// Messages delivered a second of late.
    pub per_s: u64,
    /// Seconds until nothing is left; null = not known yet, or more comes in than goes out.
    pub left_s: Option<u64>,
}

impl Drain {
    /// Takes in how things stand.
    pub fn note(&mut self, level: Level) {
        let common = level.in_flight.max(BACKLOG_MIN);
        let (is_backlog, is_over) = (level.waiting > common.saturating_mul(2), level.waiting <= common);
        if !level.is_connected || (is_over && self.from.is_some()) {
            *self = Drain::default();
            return;
        }
        if self.from.is_none() {
            if !is_backlog {
                return;
            }
            self.from = Some(level.delivered);
        }
        let is_due = self.samples.back().is_none_or(|last| level.now_ms >= last.now_ms.saturating_add(SAMPLE_MS));
        if is_due {
            if self.samples.len() >= SAMPLES_MAX {
                self.samples.pop_front();
            }
            self.samples.push_back(level);
        }
    }

    /// Where it stands; `None` = there is no backlog, or no cloud to take it.
    pub fn snapshot(&mut self, level: Level) -> Option<DrainSnapshot> {
        self.note(level);
        let delivered = level.delivered.saturating_sub(self.from?);
        let (mut per_s, mut left_s) = (0, None);
        if let Some(first) = self.samples.front().filter(|first| level.now_ms > first.now_ms) {
            let elapsed_ms = level.now_ms - first.now_ms;
            per_s = level.delivered.saturating_sub(first.delivered).saturating_mul(1000) / elapsed_ms;
            let shrunk = first.waiting.saturating_sub(level.waiting);
            let left_ms = u128::from(level.waiting) * u128::from(elapsed_ms) / u128::from(shrunk.max(1));
            left_s = u64::try_from(left_ms.div_ceil(1000)).ok().filter(|_| shrunk > 0);
        }
        let percent = delivered.saturating_mul(100) / delivered.saturating_add(level.waiting).max(1);
        Some(DrainSnapshot { delivered, left: level.waiting, percent, per_s, left_s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(now_s: u64, waiting: u64, delivered: u64) -> Level {
        Level { now_ms: now_s * 1000, is_connected: true, waiting, in_flight: 20, delivered }
    }

    #[test]
    fn a_backlog_that_shrinks_says_how_far_it_is_and_how_long_it_takes() {
        let mut drain = Drain::default();
        for second in 0..100 {
            drain.note(level(second, 10_000 - second * 50, 7 + second * 60));
        }
        let expected = DrainSnapshot { delivered: 6000, left: 5000, percent: 54, per_s: 60, left_s: Some(100) };
        assert_eq!(drain.snapshot(level(100, 5000, 6007)), Some(expected));
    }

    #[test]
    fn the_pace_is_that_of_late() {
        let mut drain = Drain::default();
        for second in 0..100 {
            drain.note(level(second, 100_000 - second * 500, second * 500));
        }
        for second in 100..140 {
            drain.note(level(second, 50_000 - (second - 100) * 10, 50_000 + (second - 100) * 10));
        }
        let snapshot = drain.snapshot(level(140, 49_600, 50_400)).unwrap();
        assert_eq!((snapshot.per_s, snapshot.left_s), (10, Some(4960)));
    }

    #[test]
    fn a_backlog_that_grows_has_no_end() {
        let mut drain = Drain::default();
        for second in 0..10 {
            drain.note(level(second, 10_000 + second * 50, second * 10));
        }
        let snapshot = drain.snapshot(level(10, 10_500, 100)).unwrap();
        assert_eq!((snapshot.per_s, snapshot.left_s, snapshot.delivered), (10, None, 100));
    }

    #[test]
    fn what_is_in_flight_is_no_backlog_and_a_drain_ends() {
        let mut drain = Drain::default();
        assert_eq!(drain.snapshot(level(0, 90, 0)), None);
        assert!(drain.snapshot(level(1, 1000, 0)).is_some());
        assert!(drain.snapshot(level(2, 101, 900)).is_some(), "it does not flicker at the border");
        assert_eq!(drain.snapshot(level(3, 100, 901)), None);
        assert_eq!(drain.snapshot(level(4, 101, 901)), None);
    }

    #[test]
    fn an_outage_ends_it_and_the_next_drain_begins_anew() {
        let mut drain = Drain::default();
        assert!(drain.snapshot(level(0, 1000, 50)).is_some());
        assert_eq!(drain.snapshot(Level { is_connected: false, ..level(1, 900, 150) }), None);
        let snapshot = drain.snapshot(level(2, 5000, 150)).unwrap();
        assert_eq!((snapshot.delivered, snapshot.left_s), (0, None));
    }
}
