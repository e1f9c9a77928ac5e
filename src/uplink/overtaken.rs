//! Which message on its way was passed over: later ones are answered and it is not. Pure.
//!
//! A cloud answers in the order in which it was sent to, or nearly so. Being slow is no fault, so that the oldest message
//! may wait for as long as nothing behind it is answered; from then on its own time runs.

use std::collections::VecDeque;
use std::time::Duration;

/// Messages on their way and those answered behind the oldest of them; beyond it that one has waited for long enough.
const ENTRIES_MAX: usize = 1 << 20;

/// The messages of one connection, in the order in which they were sent.
#[derive(Debug, Default)]
pub struct Overtaken {
    /// Whether each is still unanswered; the first always is.
    open: VecDeque<bool>,
    /// The number of the first.
    base: u64,
    /// One more than the last number that was answered.
    answered_to: u64,
    since: Option<Duration>,
}

impl Overtaken {
    /// A message was sent; gives back its number.
    pub fn sent(&mut self) -> u64 {
        if self.open.len() >= ENTRIES_MAX {
            self.since = Some(Duration::ZERO);
        }
        let number = self.base + u64::try_from(self.open.len()).unwrap_or(u64::MAX);
        self.open.push_back(true);
        number
    }

    /// The message of this number is on its way no more.
    pub fn answered(&mut self, now: Duration, number: u64) {
        let place = number.checked_sub(self.base).and_then(|place| usize::try_from(place).ok());
        let Some(is_open) = place.and_then(|place| self.open.get_mut(place)) else { return };
        *is_open = false;
        self.answered_to = self.answered_to.max(number + 1);
        while self.open.front() == Some(&false) {
            self.open.pop_front();
            self.base += 1;
            self.since = None;
        }
        if self.since.is_none() && self.answered_to > self.base {
            self.since = Some(now);
        }
    }

    /// Since when a later message than the oldest is answered; `None` = the oldest is the next to be.
    pub fn since(&self) -> Option<Duration> {
        self.since
    }

    /// Whether a message that was sent after this one is answered.
    pub fn is_behind(&self, number: u64) -> bool {
        number + 1 < self.answered_to
    }

    /// The connection is gone.
    pub fn clear(&mut self) {
        *self = Overtaken::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn answers_in_order_overtake_nothing_however_slow() {
        let mut overtaken = Overtaken::default();
        for number in 0..100 {
            assert_eq!(overtaken.sent(), number);
        }
        for number in 0..100 {
            overtaken.answered(at(number * 1000), number);
            assert_eq!(overtaken.since(), None);
        }
    }

    #[test]
    fn the_time_of_one_that_is_passed_over_runs_until_it_is_answered() {
        let mut overtaken = Overtaken::default();
        (0..5).for_each(|_| {
            overtaken.sent();
        });
        overtaken.answered(at(1), 0);
        overtaken.answered(at(2), 2);
        overtaken.answered(at(3), 3);
        assert_eq!(overtaken.since(), Some(at(2)));
        overtaken.answered(at(4), 1);
        assert_eq!(overtaken.since(), None, "4 is the next");
        assert_eq!(overtaken.sent(), 5);
        overtaken.answered(at(5), 5);
        assert_eq!(overtaken.since(), Some(at(5)));
        overtaken.clear();
        assert_eq!((overtaken.since(), overtaken.sent()), (None, 0));
    }

    #[test]
    fn the_next_one_that_was_passed_over_has_a_time_of_its_own() {
        let mut overtaken = Overtaken::default();
        (0..4).for_each(|_| {
            overtaken.sent();
        });
        overtaken.answered(at(1), 3);
        overtaken.answered(at(9), 0);
        assert_eq!(overtaken.since(), Some(at(9)));
        // A second answer, or one for a number that never was, changes nothing.
        overtaken.answered(at(10), 0);
        overtaken.answered(at(10), 77);
        assert_eq!(overtaken.since(), Some(at(9)));
    }

    #[test]
    fn the_memory_of_what_passed_is_bounded() {
        let mut overtaken = Overtaken::default();
        overtaken.sent();
        for _ in 1..=ENTRIES_MAX {
            let number = overtaken.sent();
            overtaken.answered(at(5), number);
        }
        assert_eq!(overtaken.since(), Some(Duration::ZERO), "its time is over");
    }
}
