//! How often a point is written. Pure.

use std::collections::VecDeque;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// The writes of one point within the last minute.
#[derive(Debug, Clone, Default)]
pub(super) struct Rate(VecDeque<Duration>);

impl Rate {
    /// Whether one more may be taken at `now`; counts it if so.
    pub fn take(&mut self, per_minute: u16, now: Duration) -> bool {
        while self.0.front().is_some_and(|first| now.saturating_sub(*first) >= MINUTE) {
            self.0.pop_front();
        }
        let is_free = self.0.len() < usize::from(per_minute);
        if is_free {
            self.0.push_back(now);
        }
        is_free
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
}
