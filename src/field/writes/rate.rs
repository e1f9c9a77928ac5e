//! How often a point is written. Pure.

use std::collections::VecDeque;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
/// Where the clock stands at the start: what was taken within the last minute before it has a place on it too.
const START: Duration = MINUTE;

/// The writes of one point within the last minute.
#[derive(Debug, Clone, Default)]
pub(super) struct Rate(VecDeque<Duration>);

impl Rate {
    /// One was taken before the clock began to run.
    pub fn note(&mut self, age: Duration) {
        self.0.push_back(START.saturating_sub(age));
    }

    /// Whether one more may be taken at `now`, by a clock that began to run at the start; counts it if so.
    pub fn take(&mut self, per_minute: u16, now: Duration) -> bool {
        self.forget(now);
        let is_free = self.0.len() < usize::from(per_minute);
        if is_free {
            self.0.push_back(START.saturating_add(now));
        }
        is_free
    }

    /// Whether none was taken within the last minute.
    pub fn is_unused(&mut self, now: Duration) -> bool {
        self.forget(now);
        self.0.is_empty()
    }

    fn forget(&mut self, now: Duration) {
        let now = START.saturating_add(now);
        while self.0.front().is_some_and(|first| now.saturating_sub(*first) >= MINUTE) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_taken_within_any_minute_and_no_more() {
        let mut rate = Rate::default();
        let seconds = Duration::from_secs;
        let taken: Vec<u64> = (0..200).filter(|second| rate.take(3, seconds(*second))).collect();
        assert_eq!(taken, [0, 1, 2, 60, 61, 62, 120, 121, 122, 180, 181, 182]);
    }

    #[test]
    fn what_was_taken_before_the_start_counts_for_the_rest_of_its_minute() {
        let mut rate = Rate::default();
        let seconds = Duration::from_secs;
        [300, 50, 20].map(seconds).into_iter().for_each(|age| rate.note(age));
        let taken: Vec<u64> = (0..70).filter(|second| rate.take(3, seconds(*second))).collect();
        assert_eq!(taken, [0, 10, 40, 60]);
    }
}
