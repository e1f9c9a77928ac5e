//! Growing pauses between attempts. Pure.
//!
//! Promises: never shorter than the first, never longer than the last; the same count gives the same pause. No
//! jitter: each line has its own device at its other end, so that nothing is stampeded.

use std::time::Duration;

/// Pauses that double from `first` to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    first: Duration,
    max: Duration,
}

impl Pauses {
    /// Pauses from `first` to `max`.
    pub const fn new(first: Duration, max: Duration) -> Pauses {
        Pauses { first, max }
    }

    /// The pause after the `count`-th failure in a row; none after no failure.
    pub fn after(self, count: u32) -> Duration {
        let Some(doublings) = count.checked_sub(1) else { return Duration::ZERO };
        self.first.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_their_maximum() {
        let pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(30));
        let seconds: Vec<u64> = [0, 1, 2, 3, 5, 6, 40, u32::MAX].map(|count| pauses.after(count).as_secs()).into();
        assert_eq!(seconds, [0, 1, 2, 4, 16, 30, 30, 30]);
    }
}
