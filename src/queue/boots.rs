//! What is known of each boot's time, and so of its readings. Pure.
//!
//! A board without a clock stamps with what it has. What its boot got to know later, before or after a restart of the
//! program, tells the time of all its readings; what no one told in that boot lies between the boots before and after.

use std::collections::HashMap;
use std::sync::Arc;

use super::row::Starts;
use crate::clock::{self, FLOOR_MS, Reference, SYNCED_ERROR_MS_MAX, Timing};
use crate::message::{ClockState, Stamp};

/// One boot of the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boot {
    /// It did not begin before this.
    pub boot_ms_min: i64,
    /// The first moment of it at which the wall time was known.
    pub known: Option<Reference>,
}

/// By the boot's id.
pub(super) type Boots = HashMap<Arc<str>, Boot>;

/// What is known of a reading that was stamped in `start`, when `boot_id` is the boot of today.
pub(super) fn timing(boots: &Boots, starts: &Starts, start: u32, stamp: Stamp, boot_id: &str) -> Timing {
    if stamp.clock != ClockState::Unset {
        return Timing::Stamped;
    }
    let then = starts.get(&start).map(|start| &start.boot_id);
    let boot = then.and_then(|then| boots.get(then));
    if let Some(known) = boot.and_then(|boot| boot.known) {
        return Timing::corrected(stamp, known);
    }
    let after_ms = clock::passed_ms(boot.map_or(FLOOR_MS, |boot| boot.boot_ms_min), stamp.mono_ms);
    if then.is_some_and(|then| **then == *boot_id) {
        return Timing::Open { after_ms };
    }
    let later = starts.range(start..).filter(|(_, start)| Some(&start.boot_id) != then);
    let before_ms = later.filter_map(|(_, start)| Some(boots.get(&start.boot_id)?.known?.boot_ms_max())).min();
    Timing::Between { after_ms, before_ms }
}

/// A stamp with the time that its boot got to know, for ages.
pub(super) fn mended(boots: &Boots, starts: &Starts, start: u32, stamp: Stamp) -> Stamp {
    let known = starts.get(&start).and_then(|start| boots.get(&start.boot_id)?.known);
    match known {
        Some(known) if stamp.clock == ClockState::Unset => {
            let (wall_ms, clock) = (known.wall_at(stamp.mono_ms), known.state_at(stamp.mono_ms));
            Stamp { wall_ms, clock, ..stamp }
        }
        _ => stamp,
    }
}

/// A time that had passed when the boot of today began, by a message of an earlier one.
pub(super) fn passed_ms(boots: &Boots, starts: &Starts, start: u32, stamp: Stamp, boot_id: &str) -> Option<i64> {
    let then = &starts.get(&start)?.boot_id;
    if **then == *boot_id {
        return None;
    }
    let mended = mended(boots, starts, start, stamp);
    match mended.clock {
        ClockState::Synced => Some(mended.wall_ms.saturating_sub(i64::from(SYNCED_ERROR_MS_MAX))),
        ClockState::Holdover { error_ms } => Some(mended.wall_ms.saturating_sub(i64::from(error_ms))),
        ClockState::Unset => Some(clock::passed_ms(boots.get(then)?.boot_ms_min, stamp.mono_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::row::Start;

    const NOON: i64 = 1_795_425_600_000;
    const HOUR: i64 = 3_600_000;

    fn starts(boots: &[&str]) -> Starts {
        let start = |(number, boot_id): (u32, &&str)| {
            let (gateway, boot_id) = (Arc::from("g"), Arc::from(*boot_id));
            (number, Start { number, store: 1, gateway, boot_id, stamp: Stamp::default() })
        };
        (1..).zip(boots).map(start).collect()
    }

    fn unset(wall_ms: i64, mono_ms: u64) -> Stamp {
        Stamp { wall_ms, mono_ms, clock: ClockState::Unset }
    }

    fn known(wall_ms: i64, mono_ms: u64) -> Option<Reference> {
        Some(Reference { wall_ms, mono_ms, error_ms: 0 })
    }

    #[test]
    fn a_reading_is_corrected_by_its_own_boot_and_by_no_other() {
        let starts = starts(&["a", "a", "b", "c"]);
        let boots = Boots::from([
            (Arc::from("a"), Boot { boot_ms_min: NOON - 48 * HOUR, known: known(NOON - 40 * HOUR, 600_000) }),
            (Arc::from("b"), Boot { boot_ms_min: NOON - 30 * HOUR, known: None }),
            (Arc::from("c"), Boot { boot_ms_min: NOON - 20 * HOUR, known: known(NOON, 1_800_000) }),
        ]);
        let at = |start, stamp| timing(&boots, &starts, start, stamp, "c");
        let (clock, stamp) = (ClockState::Synced, unset(1000, 60_000));
        let offset_ms = |wall_ms: i64| Timing::Corrected { offset_ms: wall_ms - 1000, clock };
        assert_eq!(at(1, stamp), offset_ms(NOON - 40 * HOUR - 540_000));
        assert_eq!(at(2, stamp), offset_ms(NOON - 40 * HOUR - 540_000), "another start of the same boot");
        assert_eq!(at(4, stamp), offset_ms(NOON - 1_740_000));
        let before_ms = Some(NOON - HOUR / 2 + 180);
        let between = Timing::Between { after_ms: NOON - 30 * HOUR + 60_000 - 6, before_ms };
        assert_eq!(at(3, stamp), between, "boot c began half an hour before noon, give or take its drift");
        let synced = Stamp { wall_ms: 5, mono_ms: 5, clock: ClockState::Synced };
        assert_eq!(at(3, synced), Timing::Stamped);
    }

    #[test]
    fn in_the_boot_of_today_it_is_open_and_without_a_later_boot_there_is_no_end() {
        let starts = starts(&["a", "b"]);
        let boot = Boot { boot_ms_min: NOON, known: None };
        let boots = Boots::from([(Arc::from("a"), boot), (Arc::from("b"), boot)]);
        let at = |start| timing(&boots, &starts, start, unset(0, 5000), "b");
        assert_eq!(at(2), Timing::Open { after_ms: NOON + 4999 });
        assert_eq!(at(1), Timing::Between { after_ms: NOON + 4999, before_ms: None });
        let nothing = timing(&Boots::new(), &starts, 1, unset(0, 5000), "b");
        assert_eq!(
            nothing,
            Timing::Between { after_ms: FLOOR_MS + 4999, before_ms: None },
            "a store of an older program"
        );
    }
}
