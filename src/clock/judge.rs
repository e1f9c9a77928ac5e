//! Whether the wall clock is to be believed, from what was seen of it and of its time service. Pure.
//!
//! Promises: a wall time is believed only on the word of a time service of this boot (or of the owner); when somebody
//! sets the clock against that word, stamps go on from the word; a clock that nobody vouches for never shows a time
//! before one that has certainly passed.

use super::reckoning::{Reference, passed_ms};
use crate::message::{ClockState, Stamp};

/// A wall time before this (2025-01-01) was never set: no build of this program is older.
pub const FLOOR_MS: i64 = 1_735_689_600_000;

/// The wall clock moves against the time since boot only when it is set, or by a leap second. What is less than this is
/// nobody's hand.
const STEP_MS: i64 = 1500;

/// How far apart two accounts of one moment may lie: a mark is looked for once a second.
const SLACK_MS: i64 = 2000;

/// Whom to believe about the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockSource {
    /// The system's time service: the mark of systemd-timesyncd, or chrony's answer.
    #[default]
    TimeService,
    /// The owner says that the clock is right.
    Trusted,
}

/// What the system's clocks show at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The wall clock.
    pub wall_ms: i64,
    /// Milliseconds since boot.
    pub mono_ms: u64,
}

/// Who vouched for the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voucher {
    /// The mark of systemd-timesyncd, or of another service that the owner named.
    Mark,
    /// chrony.
    Chrony,
    /// The owner.
    Owner,
    /// What an earlier process of this boot has written down.
    Kept,
}

impl Voucher {
    /// The word in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Voucher::Mark => "mark",
            Voucher::Chrony => "chrony",
            Voucher::Owner => "owner",
            Voucher::Kept => "kept",
        }
    }
}

/// Keeps in mind what the clock was.
#[derive(Debug, Clone)]
pub struct Judge {
    source: ClockSource,
    /// The last moment that is known, and by whom.
    known: Option<(Reference, Voucher)>,
    /// This board did not boot before this.
    boot_ms_min: i64,
    /// The wall clock less the time since boot, at the last look.
    set_at_ms: Option<i64>,
    /// Its owner's clock was behind a time that had certainly passed, and was not set since.
    is_behind: bool,
    /// What each of the time services said last: a synchronisation is told once.
    told: [Option<i64>; 2],
    /// The last look at them.
    asked_ms: Option<u64>,
}

impl Judge {
    /// One that knows only that no build of this program is older than the floor.
    pub fn new(source: ClockSource) -> Judge {
        Judge {
            source,
            known: None,
            boot_ms_min: FLOOR_MS,
            set_at_ms: None,
            is_behind: false,
            told: [None; 2],
            asked_ms: None,
        }
    }

    /// Takes over what was kept: `reference`, of this boot, or a time that had passed before this boot began.
    pub fn remember(&mut self, boot_ms_min: i64, reference: Option<Reference>) {
        self.boot_ms_min = self.boot_ms_min.max(boot_ms_min);
        if self.source == ClockSource::TimeService {
            self.known = reference.map(|reference| (reference, Voucher::Kept)).or(self.known);
        }
    }

    /// Takes over a moment of this boot that was written down when it was known. Where what was heard since this program
    /// started says otherwise, somebody set the clock in between.
    pub fn remind(&mut self, reference: Reference) {
        let is_agreed = self.known.is_some_and(|(known, _)| {
            let apart = reference.wall_at(known.mono_ms).abs_diff(known.wall_ms);
            apart <= u64::from(reference.error_at(known.mono_ms)) + SLACK_MS.unsigned_abs()
        });
        if self.source == ClockSource::TimeService && !is_agreed {
            self.known = Some((reference, Voucher::Kept));
        }
    }

    /// The stamp of this moment.
    pub fn stamp(&mut self, at: Reading) -> Stamp {
        let Reading { wall_ms, mono_ms } = at;
        let set_at_ms = wall_ms.saturating_sub(signed(mono_ms));
        let former = self.set_at_ms.replace(set_at_ms);
        if self.source == ClockSource::Trusted {
            let was_set = former.is_some_and(|former| former.abs_diff(set_at_ms) >= STEP_MS.unsigned_abs());
            match former {
                None => self.is_behind = wall_ms.saturating_add(SLACK_MS) < self.passed_ms(mono_ms),
                Some(_) if was_set => self.is_behind = false,
                Some(_) => {}
            }
            let is_right = !self.is_behind && wall_ms >= FLOOR_MS;
            if !is_right {
                self.known = None;
            } else if was_set || self.known.is_none() {
                self.known = Some((Reference { wall_ms, mono_ms, error_ms: 0 }, Voucher::Owner));
            }
            let clock = if is_right { ClockState::Synced } else { ClockState::Unset };
            let wall_ms = if is_right { wall_ms } else { wall_ms.max(self.passed_ms(mono_ms)) };
            return Stamp { wall_ms, mono_ms, clock };
        }
        let Some((known, _)) = self.known else {
            return Stamp { wall_ms: wall_ms.max(self.passed_ms(mono_ms)), mono_ms, clock: ClockState::Unset };
        };
        let expected_ms = known.wall_at(mono_ms);
        let is_as_left = expected_ms.abs_diff(wall_ms) < STEP_MS.unsigned_abs();
        let wall_ms = if is_as_left { wall_ms } else { expected_ms };
        Stamp { wall_ms, mono_ms, clock: known.state_at(mono_ms) }
    }

    /// A time that has certainly passed at `mono_ms` since boot.
    pub fn passed_ms(&self, mono_ms: u64) -> i64 {
        passed_ms(self.boot_ms_min, mono_ms)
    }

    /// The last moment of this boot that is known.
    pub fn known(&self) -> Option<(Reference, Voucher)> {
        self.known
    }

    /// What the time services say: when they last synchronised, by the wall clock of then, and how far off that was.
    pub fn hear(&mut self, at: Reading, mark_ms: Option<i64>, chrony: Option<(i64, u32)>) {
        if self.source == ClockSource::Trusted {
            return;
        }
        // From boot, or from the last look, to now: a synchronisation that was not seen then was after it.
        let since_ms = signed(at.mono_ms.saturating_sub(self.asked_ms.unwrap_or(0))).saturating_add(SLACK_MS);
        let is_first = self.asked_ms.is_none();
        self.asked_ms = Some(at.mono_ms);
        let heard = [(mark_ms.map(|mark_ms| (mark_ms, 0)), Voucher::Mark), (chrony, Voucher::Chrony)];
        for ((said, voucher), told) in heard.into_iter().zip(&mut self.told) {
            let Some((synced_ms, error_ms)) = said.filter(|(synced_ms, _)| *told != Some(*synced_ms)) else { continue };
            *told = Some(synced_ms);
            let age_ms = at.wall_ms.saturating_sub(synced_ms);
            // Another age than is possible: somebody else set the clock since. The next synchronisation will tell.
            if at.wall_ms < FLOOR_MS || age_ms < -SLACK_MS || age_ms > since_ms {
                continue;
            }
            let age_ms = age_ms.max(0);
            let mono_ms = at.mono_ms.saturating_sub(age_ms.unsigned_abs());
            let reference = Reference { wall_ms: at.wall_ms - age_ms, mono_ms, error_ms };
            // Of two accounts of the time before this process, the one that was written down at once is the better.
            let is_denied = self.known.is_some_and(|(known, _)| {
                let apart = known.wall_at(mono_ms).abs_diff(reference.wall_ms);
                is_first && apart > u64::from(known.error_at(mono_ms)) + SLACK_MS.unsigned_abs()
            });
            let is_newer = self.known.is_none_or(|(known, _)| known.mono_ms <= mono_ms);
            if !is_denied && is_newer {
                self.known = Some((reference, voucher));
            }
        }
    }
}

fn signed(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-23T09:20:00Z.
    const NOON: i64 = 1_795_425_600_000;
    const DAY: i64 = 86_400_000;

    fn at(wall_ms: i64, mono_ms: u64) -> Reading {
        Reading { wall_ms, mono_ms }
    }

    fn stamp(judge: &mut Judge, wall_ms: i64, mono_ms: u64) -> (i64, ClockState) {
        let stamp = judge.stamp(at(wall_ms, mono_ms));
        (stamp.wall_ms, stamp.clock)
    }

    #[test]
    fn a_clock_before_the_floor_is_unset_whatever_the_owner_says() {
        let mut judge = Judge::new(ClockSource::Trusted);
        assert_eq!(stamp(&mut judge, 1_000, 1_000), (FLOOR_MS + 999, ClockState::Unset));
        assert_eq!(judge.known(), None);
        assert_eq!(stamp(&mut judge, FLOOR_MS, 2_000), (FLOOR_MS, ClockState::Synced));
    }

    #[test]
    fn a_trusted_clock_that_is_behind_the_kept_time_is_unset_until_it_is_set() {
        let mut judge = Judge::new(ClockSource::Trusted);
        judge.remember(NOON, None);
        let epoch_of_systemd = NOON - 300 * DAY;
        assert_eq!(stamp(&mut judge, epoch_of_systemd, 5_000), (NOON + 4_999, ClockState::Unset));
        assert_eq!(stamp(&mut judge, epoch_of_systemd + 1_000, 6_000), (NOON + 5_999, ClockState::Unset));
        assert_eq!(stamp(&mut judge, NOON + DAY, 7_000), (NOON + DAY, ClockState::Synced));
        assert_eq!(judge.known().map(|(known, _)| known.wall_at(0)), Some(NOON + DAY - 7_000));
        // Whatever its owner does with it from then on is right.
        for wall_ms in [NOON - DAY, NOON + 400 * DAY, 2_147_483_648_000] {
            assert_eq!(stamp(&mut judge, wall_ms, 8_000), (wall_ms, ClockState::Synced));
        }
    }

    #[test]
    fn without_a_word_of_a_time_service_the_clock_is_unset_and_never_before_what_has_passed() {
        let mut judge = Judge::new(ClockSource::TimeService);
        assert_eq!(stamp(&mut judge, NOON, 1_000), (NOON, ClockState::Unset), "a battery clock, perhaps");
        judge.remember(NOON + DAY, None);
        assert_eq!(stamp(&mut judge, NOON, 1_000), (NOON + DAY + 999, ClockState::Unset));
    }

    fn synced_at_five_minutes() -> Judge {
        let mut judge = Judge::new(ClockSource::TimeService);
        judge.hear(at(1_000, 1_000), None, None);
        judge.hear(at(NOON, 300_000), Some(NOON - 700), None);
        judge
    }

    #[test]
    fn a_synchronisation_vouches_for_the_hours_after_it() {
        let mut judge = synced_at_five_minutes();
        assert_eq!(stamp(&mut judge, NOON, 300_000), (NOON, ClockState::Synced));
        assert_eq!(stamp(&mut judge, NOON + 4_900_000, 5_200_000).1, ClockState::Synced);
        let day_later = ClockState::Holdover { error_ms: 8_641 };
        assert_eq!(stamp(&mut judge, NOON + DAY, 86_700_000), (NOON + DAY, day_later));
        // The same mark says nothing new; a new one does.
        judge.hear(at(NOON + DAY, 86_700_000), Some(NOON - 700), None);
        assert_eq!(stamp(&mut judge, NOON + DAY, 86_700_000).1, day_later);
        judge.hear(at(NOON + DAY, 86_700_000), Some(NOON + DAY - 10), None);
        assert_eq!(stamp(&mut judge, NOON + DAY, 86_700_000).1, ClockState::Synced);
    }

    #[test]
    fn a_clock_that_somebody_sets_is_not_followed() {
        for wall_ms in [0, NOON - DAY, NOON + 400 * DAY, 2_147_483_648_000] {
            let mut judge = synced_at_five_minutes();
            judge.hear(at(wall_ms, 301_000), Some(NOON - 700), None);
            assert_eq!(stamp(&mut judge, wall_ms, 301_000), (NOON + 1_000, ClockState::Synced), "set to {wall_ms}");
            // Should the service agree with it by and by, it is right.
            judge.hear(at(wall_ms, 302_000), Some(wall_ms), None);
            let agreed = if wall_ms == 0 { NOON + 2_000 } else { wall_ms };
            assert_eq!(stamp(&mut judge, wall_ms, 302_000), (agreed, ClockState::Synced), "set to {wall_ms}");
        }
    }

    #[test]
    fn a_leap_second_is_nobodys_hand() {
        let mut judge = synced_at_five_minutes();
        assert_eq!(stamp(&mut judge, NOON + 99_000, 400_000), (NOON + 99_000, ClockState::Synced));
    }

    #[test]
    fn a_mark_whose_age_cannot_be_is_not_believed() {
        // The board is on for five minutes: a mark of an hour ago, or of tomorrow, is of another clock.
        for mark_ms in [NOON - 3_600_000, NOON + DAY] {
            let mut judge = Judge::new(ClockSource::TimeService);
            judge.hear(at(NOON, 300_000), Some(mark_ms), None);
            assert_eq!(stamp(&mut judge, NOON, 300_000).1, ClockState::Unset);
        }
    }

    #[test]
    fn a_program_that_starts_again_finds_the_mark_and_what_was_kept() {
        let mut judge = Judge::new(ClockSource::TimeService);
        judge.hear(at(NOON, 7_200_000), Some(NOON - 7_000_000), None);
        assert_eq!(stamp(&mut judge, NOON, 7_200_000).1, ClockState::Holdover { error_ms: 700 });
        assert_eq!(judge.known().map(|(_, voucher)| voucher), Some(Voucher::Mark));

        // Somebody set the clock between the mark and this start; the kept time knows better.
        let kept = Reference { wall_ms: NOON, mono_ms: 1_000_000, error_ms: 0 };
        let mut judge = Judge::new(ClockSource::TimeService);
        judge.remember(FLOOR_MS, Some(kept));
        judge.hear(at(NOON + 3_700_000, 1_100_000), Some(NOON + 3_600_000), None);
        assert_eq!(stamp(&mut judge, NOON + 3_700_000, 1_100_000), (NOON + 100_000, ClockState::Synced));
        assert_eq!(judge.known().map(|(_, voucher)| voucher), Some(Voucher::Kept));
    }

    #[test]
    fn what_was_written_down_overrules_a_mark_that_was_misread_at_the_start() {
        let kept = Reference { wall_ms: NOON, mono_ms: 1_000_000, error_ms: 0 };
        let mut judge = Judge::new(ClockSource::TimeService);
        // Set an hour ahead after the mark was touched, which looks like a mark of an hour ago.
        judge.hear(at(NOON + 3_700_000, 5_000_000), Some(NOON), None);
        assert_eq!(stamp(&mut judge, NOON + 3_700_000, 5_000_000).0, NOON + 3_700_000);
        judge.remind(kept);
        assert_eq!(stamp(&mut judge, NOON + 3_700_000, 5_000_000).0, NOON + 3_700_000 + 300_000);
        let mut agreed = synced_at_five_minutes();
        let known = agreed.known();
        agreed.remind(Reference { wall_ms: NOON + 1_000, mono_ms: 301_000, error_ms: 0 });
        assert_eq!(agreed.known(), known);
    }

    #[test]
    fn chrony_says_how_good_its_word_is() {
        let mut judge = Judge::new(ClockSource::TimeService);
        judge.hear(at(NOON, 300_000), None, Some((NOON - 10_000, 740)));
        assert_eq!(stamp(&mut judge, NOON, 300_000), (NOON, ClockState::Holdover { error_ms: 741 }));
        judge.hear(at(NOON + 1_000, 301_000), Some(NOON + 500), Some((NOON - 10_000, 740)));
        assert_eq!(stamp(&mut judge, NOON + 1_000, 301_000).1, ClockState::Synced, "the later word holds");
    }
}
