//! What is told once a minute and not for each client: refusals, limits, broken rules.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Between two lines in the journal with one reason.
const EVERY: Duration = Duration::from_secs(60);

/// Remembers when each reason was told last.
#[derive(Debug, Default)]
pub(super) struct Notes {
    told: Mutex<HashMap<(&'static str, u8), Told>>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    /// Cases since then.
    untold: u64,
}

impl Notes {
    /// Notes a case. `Some`: it is to be told, with the number of cases that were not since the last time.
    pub(super) fn note(&self, reason: &'static str) -> Option<u64> {
        self.note_code(reason, 0)
    }

    /// The same, where there are as many reasons as there are reason codes.
    pub(super) fn note_code(&self, kind: &'static str, code: u8) -> Option<u64> {
        let reason = (kind, code);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match told.get_mut(&reason) {
            Some(last) if now < last.at + EVERY => {
                last.untold += 1;
                None
            }
            Some(last) => {
                last.at = now;
                Some(std::mem::take(&mut last.untold))
            }
            None => {
                told.insert(reason, Told { at: now, untold: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_reason_is_told_once_a_minute_with_the_number_of_cases_between() {
        let notes = Notes::default();
        assert_eq!(notes.note("too many"), Some(0));
        assert_eq!((notes.note("too many"), notes.note("too many")), (None, None));
        assert_eq!(notes.note("too slow"), Some(0), "another reason has a minute of its own");
        tokio::time::advance(EVERY).await;
        assert_eq!(notes.note("too many"), Some(2));
        assert_eq!(notes.note("too many"), None);
        tokio::time::advance(EVERY).await;
        assert_eq!(notes.note("too many"), Some(1));
    }
}
