//! The last hours in samples, for the page's chart. In memory: a restart begins anew.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::health::status::Status;

/// How often a sample is taken.
pub const EVERY: Duration = Duration::from_secs(30);
/// Six hours.
const SAMPLES_MAX: usize = 720;

/// What is kept of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Seconds since the start of the program.
    pub uptime_s: u64,
    /// Messages that wait.
    pub messages: u64,
    /// Bytes in use.
    pub bytes: u64,
    /// Acknowledged by all clouds since start.
    pub delivered: u64,
    /// Uplinks that are connected.
    pub connected: u64,
}

/// The samples, oldest first.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Sample>>);

impl History {
    /// Takes a sample.
    pub fn note(&self, status: &Status) {
        let uplinks = status.stages.uplinks.values();
        let sample = Sample {
            uptime_s: status.uptime_s,
            messages: status.stages.queue.messages,
            bytes: status.stages.queue.bytes,
            delivered: uplinks.clone().map(|uplink| uplink.delivered).sum(),
            connected: uplinks.filter(|uplink| uplink.is_connected()).count() as u64,
        };
        let mut samples = self.lock();
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// All of them.
    pub fn samples(&self) -> Vec<Sample> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        // It is whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ClockSource};
    use crate::health::Health;
    use crate::health::status::Told;

    #[test]
    fn six_hours_are_kept() {
        let told = Told::new("g7", Clock::new(ClockSource::Trusted), Health::default());
        let (history, status) = (History::default(), told.status());
        for uptime_s in 0..1000 {
            history.note(&Status { uptime_s, ..status.clone() });
        }
        let samples = history.samples();
        assert_eq!((samples.len(), samples[0].uptime_s, samples[719].uptime_s), (720, 280, 999));
    }
}
