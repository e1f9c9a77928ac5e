//! Time as the rest of the house may use it: wall time with its trust, monotonic time, the boot id.
//!
//! The one room that reads a clock of the system. Timers elsewhere are tokio's.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

use crate::message::{ClockState, Stamp};

/// Present while systemd-timesyncd holds the clock (systemd-timesyncd.service(8)).
const TIMESYNC_MARK: &str = "/run/systemd/timesync/synchronized";

/// A wall time before this (2025-01-01) was never set: no build of this program is older.
const FLOOR_MS: i64 = 1_735_689_600_000;

/// How long a look at the mark holds, in milliseconds: every message asks for the time.
const LOOK_HOLDS_MS: u64 = 1000;

/// Whom to believe about the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockSource {
    /// timesyncd's mark says so.
    #[default]
    Timesyncd,
    /// The owner says that the clock is right.
    Trusted,
}

/// Reads the clocks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock {
    source: ClockSource,
    boot_id: Arc<str>,
    /// The last look at the mark: when, in milliseconds since boot, times two, plus one if it was there.
    look: Arc<AtomicU64>,
}

impl Clock {
    /// A clock that is believed as `source` says.
    pub fn new(source: ClockSource) -> Clock {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Clock { source, boot_id: Arc::from(boot_id.trim()), look: Arc::default() }
    }

    /// The kernel's id of this boot; empty where there is none.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// This moment.
    pub fn now(&self) -> Stamp {
        let wall_ms = milliseconds(ClockId::Realtime);
        let mono_ms = mono_ms();
        Stamp { wall_ms, mono_ms, clock: self.state_at(wall_ms, mono_ms) }
    }

    /// Whether the wall clock can be trusted at the moment.
    pub fn state(&self) -> ClockState {
        self.state_at(milliseconds(ClockId::Realtime), mono_ms())
    }

    fn state_at(&self, wall_ms: i64, mono_ms: u64) -> ClockState {
        match self.source {
            _ if wall_ms < FLOOR_MS => ClockState::Unset,
            ClockSource::Trusted => ClockState::Synced,
            ClockSource::Timesyncd if self.is_marked(mono_ms) => ClockState::Synced,
            ClockSource::Timesyncd => ClockState::Unset,
        }
    }

    fn is_marked(&self, mono_ms: u64) -> bool {
        let last = self.look.load(Ordering::Relaxed);
        if last != 0 && mono_ms.saturating_sub(last / 2) < LOOK_HOLDS_MS {
            return last % 2 == 1;
        }
        let is_marked = Path::new(TIMESYNC_MARK).exists();
        self.look.store(mono_ms * 2 + u64::from(is_marked), Ordering::Relaxed);
        is_marked
    }
}

fn mono_ms() -> u64 {
    u64::try_from(milliseconds(ClockId::Boottime)).unwrap_or(0)
}

fn milliseconds(id: ClockId) -> i64 {
    let time = clock_gettime(id);
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}

/// `wall_ms` as RFC 3339 in UTC with milliseconds: `2026-11-23T09:20:00.123Z`.
pub fn rfc3339(wall_ms: i64) -> String {
    let seconds = wall_ms.div_euclid(1000);
    let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let milli = wall_ms.rem_euclid(1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Days since 1970-01-01 to year, month, day of the Gregorian calendar (eras of 400 years that start on 1 March).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_written_as_rfc3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(rfc3339(1_795_425_600_000), "2026-11-23T09:20:00.000Z");
        assert_eq!(rfc3339(4_107_542_399_999), "2100-02-28T23:59:59.999Z");
    }

    #[test]
    fn a_clock_before_the_floor_is_unset_whatever_the_owner_says() {
        let clock = Clock::new(ClockSource::Trusted);
        assert_eq!(clock.state_at(FLOOR_MS - 1, 0), ClockState::Unset);
        assert_eq!(clock.state_at(FLOOR_MS, 0), ClockState::Synced);
    }

    #[test]
    fn a_look_at_the_mark_holds_for_a_second() {
        let clock = Clock::new(ClockSource::Timesyncd);
        let is_there = clock.is_marked(5000);
        clock.look.store(5000 * 2 + u64::from(!is_there), Ordering::Relaxed);
        assert_eq!(clock.is_marked(5999), !is_there, "the old look still holds");
        assert_eq!(clock.is_marked(6000), is_there, "it is looked again");
    }

    #[test]
    fn monotonic_time_moves_forward() {
        let clock = Clock::new(ClockSource::Trusted);
        let (first, second) = (clock.now(), clock.now());
        assert!(second.mono_ms >= first.mono_ms);
    }
}
