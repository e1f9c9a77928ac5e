//! Time as the rest of the house may use it: wall time with its trust, monotonic time, the boot id.
//!
//! The one room that reads a clock of the system. Timers elsewhere are tokio's. What is believed is decided in `judge`;
//! the kernel's own word (adjtimex) is not asked: the service's sandbox forbids it, and it calls a good clock bad after
//! nine hours without a time service.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{info, warn};
use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

use crate::message::{ClockState, Stamp};

use chrony::Asker;
use judge::Judge;
use kept::Kept;

pub use judge::{ClockSource, FLOOR_MS, Reading, Voucher};
pub use reckoning::{Reference, SYNCED_ERROR_MS_MAX, Timing, passed_ms};

mod reckoning;

mod judge;

mod chrony;

mod kept;

/// Touched by systemd-timesyncd at each synchronisation (systemd-timesyncd.service(8)).
const TIMESYNC_MARK: &str = "/run/systemd/timesync/synchronized";

/// The kernel's id of this boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How long a look at the time services holds, in milliseconds: every message asks for the time.
const LOOK_HOLDS_MS: u64 = 1000;

/// How often the clock is looked at where nobody asks: soon, while it may become known at any moment, so that this is
/// written down before the next cut.
const WATCH_EVERY: Duration = Duration::from_secs(10);
const WAIT_EVERY: Duration = Duration::from_secs(1);

/// How often the time is written down: two dozen small writes a day.
const KEEP_EVERY_MS: u64 = 3_600_000;

/// No board that runs this program lives before this: 2026-01-01.
const EARLIEST_MS: i64 = 1_767_225_600_000;

/// A clock that its owner has just set is not written down: it may have been a mistake.
const STEADY_MS: u64 = 600_000;

/// The clocks of a system; another one in tests.
pub trait Dial: Debug + Send + Sync {
    /// What they show.
    fn read(&self) -> Reading;
    /// Which boot this is.
    fn boot_id(&self) -> Arc<str>;
}

#[derive(Debug)]
struct SystemDial {
    boot_id: Arc<str>,
}

impl Dial for SystemDial {
    fn read(&self) -> Reading {
        #[expect(clippy::disallowed_methods, reason = "this is the one room that reads the wall clock")]
        let now = SystemTime::now();
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let wall_ms = match now.duration_since(UNIX_EPOCH) {
            Ok(since) => milliseconds(since),
            Err(before) => -milliseconds(before.duration()),
        };
        let time = clock_gettime(ClockId::Boottime);
        let mono_ms = time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000);
        Reading { wall_ms, mono_ms: u64::try_from(mono_ms).unwrap_or(0) }
    }

    fn boot_id(&self) -> Arc<str> {
        self.boot_id.clone()
    }
}

/// The kernel's id of this boot. Where it cannot be read (a sandbox with `ProcSubset=pid`), one is drawn: then every
/// start counts as a boot of its own, and nothing of another boot is taken for this one's.
fn read_boot_id(path: &Path) -> Arc<str> {
    let read = fs::read_to_string(path).unwrap_or_default();
    if !read.trim().is_empty() {
        return Arc::from(read.trim());
    }
    let mut drawn = [0_u8; 16];
    // Without random numbers nothing else starts either.
    getrandom::fill(&mut drawn).unwrap_or_default();
    Arc::from(format!("drawn-{:032x}", u128::from_ne_bytes(drawn)))
}

/// Reads the clocks. Cheap to clone; all clones know the same.
#[derive(Debug, Clone)]
pub struct Clock {
    dial: Arc<dyn Dial>,
    boot_id: Arc<str>,
    source: ClockSource,
    mark: Arc<Path>,
    mind: Arc<Mutex<Mind>>,
}

#[derive(Debug)]
struct Mind {
    judge: Judge,
    chrony: Asker,
    looked_ms: Option<u64>,
    /// Where it is written down, and when it was.
    dir: Option<PathBuf>,
    kept_ms: Option<u64>,
    /// The state that was said last.
    told: Option<&'static str>,
}

/// What `status` shows of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// At the moment.
    pub state: ClockState,
    /// How far off the wall time may be; `None` where it is not known at all.
    pub error_ms: Option<u32>,
    /// Who vouched for it last.
    pub voucher: Option<Voucher>,
}

impl Clock {
    /// The system's clock, believed as `source` says.
    pub fn new(source: ClockSource) -> Clock {
        Clock::reading(source, Arc::new(SystemDial { boot_id: read_boot_id(Path::new(BOOT_ID)) }))
    }

    /// One that reads `dial`.
    pub fn reading(source: ClockSource, dial: Arc<dyn Dial>) -> Clock {
        let (judge, chrony) = (Judge::new(source), Asker::default());
        let mind = Mind { judge, chrony, looked_ms: None, dir: None, kept_ms: None, told: None };
        let boot_id = dial.boot_id();
        Clock { dial, boot_id, source, mark: Arc::from(Path::new(TIMESYNC_MARK)), mind: Arc::new(Mutex::new(mind)) }
    }

    /// As it is, with another file that a time service touches at each synchronisation.
    pub fn marked_by(mut self, mark: &Path) -> Clock {
        self.mark = Arc::from(mark);
        self
    }

    /// As it is, going on from what was written down in `dir`, where it will be written down from now on.
    pub fn kept_in(self, dir: &Path) -> Clock {
        let kept = Kept::read(dir);
        let mut mind = self.mind();
        mind.dir = Some(dir.to_owned());
        match kept {
            Some(kept) if *kept.boot_id == *self.boot_id => mind.judge.remember(kept.boot_ms_min, kept.known),
            Some(kept) => mind.judge.remember(kept.passed_ms(), None),
            None => {}
        }
        drop(mind);
        self
    }

    /// The id of this boot.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// This moment.
    pub fn now(&self) -> Stamp {
        self.look(&mut self.mind())
    }

    /// Whether the wall clock can be trusted at the moment.
    pub fn state(&self) -> ClockState {
        self.now().clock
    }

    /// Ends as soon as somebody vouches for the wall clock.
    pub async fn wait_until_known(&self) {
        while self.state() == ClockState::Unset {
            tokio::time::sleep(WAIT_EVERY).await;
        }
    }

    /// The last moment of this boot at which the wall time was known.
    pub fn known(&self) -> Option<Reference> {
        let mut mind = self.mind();
        self.look(&mut mind);
        mind.judge.known().map(|(reference, _)| reference)
    }

    /// A time that has certainly passed at `mono_ms` since boot.
    pub fn passed_ms(&self, mono_ms: u64) -> i64 {
        self.mind().judge.passed_ms(mono_ms)
    }

    /// Takes note of a moment of this boot that was written down when it was known.
    pub fn learn_known(&self, reference: Reference) {
        self.mind().judge.remind(reference);
    }

    /// Takes note of a time that had passed when this boot began. Of an owner's clock only what was kept with care is
    /// believed: it may have been set to anything for a moment.
    pub fn learn_passed(&self, passed_ms: i64) {
        if self.source == ClockSource::TimeService {
            self.mind().judge.remember(passed_ms, None);
        }
    }

    /// How the time of a stamp of this boot is written for whoever gets it now.
    pub fn timing(&self, stamp: Stamp) -> Timing {
        match stamp.clock {
            ClockState::Unset => Timing::Between { after_ms: self.passed_ms(stamp.mono_ms), before_ms: None },
            ClockState::Synced | ClockState::Holdover { .. } => Timing::Stamped,
        }
    }

    /// What `status` shows.
    pub fn standing(&self) -> Standing {
        let mut mind = self.mind();
        let stamp = self.look(&mut mind);
        let known = mind.judge.known();
        let error_ms = known.map(|(reference, voucher)| match voucher {
            Voucher::Owner => 0,
            _ => reference.error_at(stamp.mono_ms),
        });
        Standing { state: stamp.clock, error_ms, voucher: known.map(|(_, voucher)| voucher) }
    }

    fn mind(&self) -> MutexGuard<'_, Mind> {
        // Whole after every statement, so a panic elsewhere does not spoil it.
        self.mind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, mind: &mut Mind) -> Stamp {
        let at = self.dial.read();
        let is_due = mind.looked_ms.is_none_or(|looked| at.mono_ms.saturating_sub(looked) >= LOOK_HOLDS_MS);
        if self.source == ClockSource::TimeService && is_due {
            mind.looked_ms = Some(at.mono_ms);
            let chrony = mind.chrony.look(at.mono_ms);
            mind.judge.hear(at, touched_ms(&self.mark), chrony);
        }
        mind.judge.stamp(at)
    }

    // What is written down

    /// Writes down what is known, where that serves anybody.
    pub fn keep(&self) -> io::Result<()> {
        let mut mind = self.mind();
        let Stamp { mono_ms, .. } = self.look(&mut mind);
        let known = match mind.judge.known() {
            Some((known, Voucher::Owner)) if mono_ms.saturating_sub(known.mono_ms) < STEADY_MS => return Ok(()),
            known => known.map(|(reference, _)| reference),
        };
        let (Some(dir), boot_ms_min) = (mind.dir.clone(), mind.judge.passed_ms(0)) else { return Ok(()) };
        mind.kept_ms = Some(mono_ms);
        drop(mind);
        Kept { boot_id: self.boot_id.to_string(), boot_ms_min, mono_ms, known }.write(&dir)
    }

    fn is_keeping_due(&self) -> bool {
        let mut mind = self.mind();
        let Stamp { mono_ms, .. } = self.look(&mut mind);
        mind.kept_ms.is_none_or(|kept| mono_ms.saturating_sub(kept) >= KEEP_EVERY_MS)
    }

    /// Says when the clock changes its state, and writes the time down, until told to stop.
    pub async fn watch(self, stop: CancellationToken) -> Result<(), ClockError> {
        loop {
            // What is known for the first time is worth a write at once.
            let is_news = self.tell();
            let is_unset = self.state() == ClockState::Unset;
            if self.is_keeping_due() || (is_news && !is_unset) {
                self.keep_aside().await;
            }
            let pause = if is_unset { WAIT_EVERY } else { WATCH_EVERY };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.keep_aside().await;
        Ok(())
    }

    /// Says in what state the clock is where that was not said. Gives back whether it was not.
    pub fn tell(&self) -> bool {
        let standing = self.standing();
        let former = self.mind().told.replace(standing.state.name());
        let is_news = former != Some(standing.state.name());
        if is_news {
            say(standing, former.is_some());
        }
        is_news
    }

    /// `keep`, on a thread where a card that stalls holds up nobody.
    async fn keep_aside(&self) {
        let clock = self.clone();
        match tokio::task::spawn_blocking(move || clock.keep()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error:%; "The time could not be written down"),
            Err(error) => warn!(error:%; "The time could not be written down"),
        }
    }
}

fn say(Standing { state, error_ms, voucher }: Standing, is_change: bool) {
    let source = voucher.map_or("nobody", Voucher::name);
    match state {
        ClockState::Unset => {
            warn!("The time of day is not confirmed by a time service; readings say clock \"unset\"");
        }
        ClockState::Holdover { .. } => {
            let error_ms = error_ms.unwrap_or_default();
            warn!(source, error_ms; "The time service was not heard for long; readings say clock \"holdover\"");
        }
        ClockState::Synced if is_change => info!(source; "The time of day is known"),
        ClockState::Synced => {}
    }
}

/// Why the clock's stage ended before it was told to: there is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {}

/// When a file was last touched, by the wall clock.
fn touched_ms(path: &Path) -> Option<i64> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    i64::try_from(modified.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// Whether a moment shows that nobody has set this board's clock, nor is any earlier time kept: then it is certainly wrong.
pub fn was_never_set(now: Stamp) -> bool {
    now.clock == ClockState::Unset && now.wall_ms < EARLIEST_MS
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
    fn a_clock_is_certainly_wrong_only_where_no_time_is_known_and_it_shows_one_that_is_over() {
        let at = |wall_ms, clock| was_never_set(Stamp { wall_ms, mono_ms: 0, clock });
        assert!(at(FLOOR_MS, ClockState::Unset) && at(EARLIEST_MS - 1, ClockState::Unset));
        assert!(!at(EARLIEST_MS, ClockState::Unset), "a battery clock, or a time that was kept");
        assert!(!at(FLOOR_MS, ClockState::Synced), "somebody vouches for it");
    }

    #[test]
    fn monotonic_time_moves_forward() {
        let clock = Clock::new(ClockSource::Trusted);
        let (first, second) = (clock.now(), clock.now());
        assert!(second.mono_ms >= first.mono_ms && second.clock == ClockState::Synced);
        assert_eq!(clock.boot_id(), fs::read_to_string(BOOT_ID).unwrap().trim());
    }

    #[test]
    fn without_the_kernels_word_no_two_starts_are_of_one_boot() {
        let [one, other] = [(); 2].map(|()| read_boot_id(Path::new("/nonexistent")));
        assert!(one.len() > 32 && one != other, "{one} {other}");
    }

    #[test]
    fn a_mark_that_is_touched_makes_a_clock_synced_within_a_second_and_what_is_known_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("synchronized");
        let clock = || Clock::new(ClockSource::TimeService).marked_by(&mark).kept_in(dir.path());
        let first = clock();
        assert_eq!(first.standing(), Standing { state: ClockState::Unset, error_ms: None, voucher: None });
        fs::write(&mark, "").unwrap();
        assert_eq!(first.state(), ClockState::Unset, "the old look still holds");
        let by_mark = Standing { state: ClockState::Synced, error_ms: Some(0), voucher: Some(Voucher::Mark) };
        let second = clock();
        let standing = second.standing();
        assert_eq!(Standing { error_ms: Some(0), ..standing }, by_mark, "another process looks at once");
        second.keep().unwrap();
        fs::remove_file(&mark).unwrap();
        assert_eq!(clock().standing().voucher, Some(Voucher::Kept), "of this boot, so it serves a process that starts");
    }
}
