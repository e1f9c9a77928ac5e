//! From one moment at which the wall time was known to every other moment of the same boot, and how far it may be off.
//! Pure.

use crate::message::{ClockState, Stamp};

/// What a board's crystal drifts at most without a time service, in parts per million.
const DRIFT_PPM: u64 = 100;

/// A stamp that may be off by more than this says so. It is what the drift comes to in 5000 s, while a time service
/// asks at least every 2048 s: so one that is missed is no news.
pub const SYNCED_ERROR_MS_MAX: u32 = 500;

/// A moment of this boot at which the wall time was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The wall time then.
    pub wall_ms: i64,
    /// Milliseconds since boot then.
    pub mono_ms: u64,
    /// How far off `wall_ms` may be.
    pub error_ms: u32,
}

impl Reference {
    /// The wall time at another moment of the same boot, before or after.
    pub fn wall_at(&self, mono_ms: u64) -> i64 {
        self.wall_ms.saturating_add(signed(mono_ms)).saturating_sub(signed(self.mono_ms))
    }

    /// How far off that may be.
    pub fn error_at(&self, mono_ms: u64) -> u32 {
        let drift_ms = drift_ms(self.mono_ms.abs_diff(mono_ms));
        self.error_ms.saturating_add(u32::try_from(drift_ms).unwrap_or(u32::MAX))
    }

    /// What a stamp of that moment says of itself.
    pub fn state_at(&self, mono_ms: u64) -> ClockState {
        match self.error_at(mono_ms) {
            0..=SYNCED_ERROR_MS_MAX => ClockState::Synced,
            error_ms => ClockState::Holdover { error_ms },
        }
    }

    /// The board cannot have booted later than this.
    pub fn boot_ms_max(&self) -> i64 {
        self.wall_at(0).saturating_add(i64::from(self.error_at(0)))
    }
}

/// A time that has certainly passed `mono_ms` after a boot that was not before `boot_ms_min`.
pub fn passed_ms(boot_ms_min: i64, mono_ms: u64) -> i64 {
    boot_ms_min.saturating_add(signed(mono_ms.saturating_sub(drift_ms(mono_ms))))
}

fn drift_ms(mono_ms: u64) -> u64 {
    mono_ms.saturating_mul(DRIFT_PPM).div_ceil(1_000_000)
}

/// What is known of when a reading was taken. Fixed when it is first sent: from then on it gives the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timing {
    /// The stamp holds, and says itself how far.
    #[default]
    Stamped,
    /// The clock was not set then. It was set later in that boot, which tells the time of then.
    Corrected {
        /// To be added to the stamp's wall time.
        offset_ms: i64,
        /// How good the sum is.
        clock: ClockState,
    },
    /// The clock was not set then, nor later in that boot.
    Between {
        /// It was not earlier.
        after_ms: i64,
        /// It was not later, where a later boot says so.
        before_ms: Option<i64>,
    },
    /// As `Between`, in this boot: the clock may still be set before it is sent.
    Open {
        /// It was not earlier.
        after_ms: i64,
    },
}

impl Timing {
    /// That of `stamp`, whose boot got to know the time at `reference`.
    pub fn corrected(stamp: Stamp, reference: Reference) -> Timing {
        let offset_ms = reference.wall_at(stamp.mono_ms).saturating_sub(stamp.wall_ms);
        Timing::Corrected { offset_ms, clock: reference.state_at(stamp.mono_ms) }
    }

    /// What holds for `stamp` when it is first sent at `now`.
    pub fn at_admission(self, stamp: Stamp, now: Stamp) -> Timing {
        let error_ms = match now.clock {
            ClockState::Synced => 0,
            ClockState::Holdover { error_ms } => error_ms,
            ClockState::Unset => return self.closed(),
        };
        match self {
            Timing::Open { .. } => {
                Timing::corrected(stamp, Reference { wall_ms: now.wall_ms, mono_ms: now.mono_ms, error_ms })
            }
            other => other,
        }
    }

    fn closed(self) -> Timing {
        match self {
            Timing::Open { after_ms } => Timing::Between { after_ms, before_ms: None },
            other => other,
        }
    }
}

fn signed(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-23T09:20:00Z, five minutes after boot.
    const NOON: Reference = Reference { wall_ms: 1_795_425_600_000, mono_ms: 300_000, error_ms: 20 };

    fn unset(wall_ms: i64, mono_ms: u64) -> Stamp {
        Stamp { wall_ms, mono_ms, clock: ClockState::Unset }
    }

    #[test]
    fn a_moment_before_or_after_is_reckoned_by_the_time_since_boot() {
        assert_eq!(NOON.wall_at(300_000), 1_795_425_600_000);
        assert_eq!(NOON.wall_at(1_000), 1_795_425_301_000);
        assert_eq!(NOON.wall_at(3_900_000), 1_795_429_200_000);
        assert_eq!(Reference { wall_ms: i64::MAX, ..NOON }.wall_at(u64::MAX), i64::MAX - 300_000);
    }

    #[test]
    fn the_error_grows_by_a_hundred_parts_in_a_million() {
        let errors = [300_000, 300_001, 1_300_000, 5_100_000, 5_100_001, 260_000_000].map(|at| NOON.error_at(at));
        assert_eq!(errors, [20, 21, 120, 500, 501, 25_990]);
        assert_eq!(NOON.state_at(5_100_000), ClockState::Synced);
        assert_eq!(NOON.state_at(5_100_001), ClockState::Holdover { error_ms: 501 });
        assert_eq!(NOON.error_at(u64::MAX), u32::MAX);
    }

    #[test]
    fn what_has_passed_leaves_room_for_a_crystal_that_runs_fast() {
        assert_eq!(passed_ms(1_000, 0), 1_000);
        assert_eq!(passed_ms(1_000, 1), 1_000);
        assert_eq!(passed_ms(1_795_425_600_000, 86_400_000), 1_795_425_600_000 + 86_400_000 - 8_640);
        assert_eq!(passed_ms(1_000, u64::MAX), i64::MAX);
    }

    #[test]
    fn an_unset_stamp_of_1970_is_moved_to_the_time_that_the_boot_got_to_know() {
        let stamp = unset(61_000, 60_000);
        let offset_ms = 1_795_425_600_000 - 240_000 - 61_000;
        assert_eq!(Timing::corrected(stamp, NOON), Timing::Corrected { offset_ms, clock: ClockState::Synced });
        // Three days before: the crystal may have drifted meanwhile, and the reading says so.
        let late = Reference { mono_ms: 259_200_000, ..NOON };
        let Timing::Corrected { clock, .. } = Timing::corrected(unset(0, 0), late) else { panic!() };
        assert_eq!(clock, ClockState::Holdover { error_ms: 25_940 });
    }

    #[test]
    fn what_is_open_is_decided_when_it_is_first_sent_and_nothing_else_is_touched() {
        let stamp = unset(1_000, 1_000);
        let open = Timing::Open { after_ms: 7 };
        let later = Stamp { wall_ms: 1_795_425_600_000, mono_ms: 5_000, clock: ClockState::Holdover { error_ms: 600 } };
        let offset_ms = 1_795_425_600_000 - 4_000 - 1_000;
        let clock = ClockState::Holdover { error_ms: 601 };
        assert_eq!(open.at_admission(stamp, later), Timing::Corrected { offset_ms, clock });
        assert_eq!(open.at_admission(stamp, unset(9_000, 9_000)), Timing::Between { after_ms: 7, before_ms: None });
        for settled in [Timing::Stamped, Timing::Between { after_ms: 7, before_ms: Some(9) }] {
            assert_eq!(settled.at_admission(stamp, later), settled);
        }
    }
}
