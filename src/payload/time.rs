//! The time of a reading, and how good it is, as every form tells it. Pure.

use crate::clock::Timing;
use crate::message::{ClockState, Stamp};

/// When a reading was taken, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    pub wall_ms: i64,
    pub clock: ClockState,
    /// With a clock that was not set: not before.
    pub after_ms: Option<i64>,
    /// And not after, where a later boot knows it.
    pub before_ms: Option<i64>,
}

impl Time {
    pub fn new(stamp: Stamp, timing: Timing) -> Time {
        let Stamp { wall_ms, clock, .. } = stamp;
        let known = |wall_ms, clock| Time { wall_ms, clock, after_ms: None, before_ms: None };
        let unset = |after_ms: i64, before_ms: Option<i64>| {
            // Should the two cross, which only a clock that was set wrongly can do, the later word stands.
            let before_ms = before_ms.filter(|before_ms| *before_ms >= after_ms);
            let wall_ms = wall_ms.clamp(after_ms, before_ms.unwrap_or(i64::MAX));
            Time { wall_ms, clock: ClockState::Unset, after_ms: Some(after_ms), before_ms }
        };
        match timing {
            Timing::Stamped => known(wall_ms, clock),
            Timing::Corrected { offset_ms, clock } => known(wall_ms.saturating_add(offset_ms), clock),
            Timing::Between { after_ms, before_ms } => unset(after_ms, before_ms),
            Timing::Open { after_ms } => unset(after_ms, None),
        }
    }

    /// How far off `wall_ms` may be.
    pub fn error_ms(&self) -> Option<u32> {
        match self.clock {
            ClockState::Holdover { error_ms } => Some(error_ms),
            ClockState::Synced | ClockState::Unset => None,
        }
    }

    /// The word for the clock, where there is something to say.
    pub fn clock_name(&self) -> Option<&'static str> {
        (self.clock != ClockState::Synced).then(|| self.clock.name())
    }
}
