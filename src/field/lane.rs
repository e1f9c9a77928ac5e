//! The lane of writes beside the polls of one line. Pure: told the time, asked for a move, told what came of it.
//!
//! Promises:
//! - A write goes before the next poll, and after a write a poll that is due has one turn: polls delay a write by one request
//!   at most, and a flood of writes leaves polls every second turn.
//! - Writes to one unit are carried out in the order in which they came. A unit that does not answer, and so has to wait,
//!   holds up nobody else's.
//! - What is not begun when its time is over is never begun. What may be begun is asked first (`Move::Ask`), because it is
//!   written down before a bit of it leaves; only one at a time, so that a crash leaves one in doubt.
//!
//! Times are durations since the line started.

use std::collections::VecDeque;
use std::time::Duration;

/// Names a write; never used again.
pub type Ticket = u64;

/// Writes that wait for one line; what comes on top of them is refused.
pub const LANE_MAX: usize = 32;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Its time is over.
    Expire(Ticket),
    /// Ask whether it may begin.
    Ask(Ticket),
    /// Write.
    Write(Ticket),
    /// Read back what was written.
    Verify(Ticket),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Asked,
    Ready,
    /// Written; to be read back from then on.
    Settling(Duration),
}

#[derive(Debug, Clone, Copy)]
struct Item {
    ticket: Ticket,
    unit: usize,
    expires: Duration,
    stage: Stage,
}

impl Item {
    fn is_begun(&self) -> bool {
        matches!(self.stage, Stage::Settling(_))
    }
}

/// The writes of one line, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Lane {
    items: VecDeque<Item>,
    /// A poll has the next turn, if one is due.
    owes_poll: bool,
}

impl Lane {
    /// Takes a write in. One that is here already stays as it is.
    pub fn push(&mut self, ticket: Ticket, unit: usize, expires: Duration) {
        if !self.items.iter().any(|item| item.ticket == ticket) {
            self.items.push_back(Item { ticket, unit, expires, stage: Stage::Waiting });
        }
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What is to be done before the next poll; `None`: nothing, it is the polls' turn. `ready_at` says from when on a unit
    /// may be written to.
    pub fn next(&self, now: Duration, is_poll_due: bool, ready_at: impl Fn(usize) -> Duration) -> Option<Move> {
        let rests = |item: &Item| ready_at(item.unit) > now;
        if let Some(item) = self.items.iter().find(|item| !item.is_begun() && item.expires <= now) {
            return Some(Move::Expire(item.ticket));
        }
        let settled = |item: &&Item| matches!(item.stage, Stage::Settling(due) if due <= now);
        if let Some(item) = self.items.iter().find(settled) {
            return Some(Move::Verify(item.ticket));
        }
        if self.owes(is_poll_due) {
            return None;
        }
        let is_asking = |item: &Item| matches!(item.stage, Stage::Asked | Stage::Ready) && !rests(item);
        let is_any_asking = self.items.iter().any(is_asking);
        self.items.iter().enumerate().find_map(|(place, item)| {
            let is_first_of_unit = !self.items.iter().take(place).any(|earlier| earlier.unit == item.unit);
            match item.stage {
                _ if !is_first_of_unit || rests(item) => None,
                Stage::Ready => Some(Move::Write(item.ticket)),
                Stage::Waiting if !is_any_asking => Some(Move::Ask(item.ticket)),
                Stage::Waiting | Stage::Asked | Stage::Settling(_) => None,
            }
        })
    }

    /// Whether one may have begun: it is asked for, or sent.
    pub fn is_any_begun(&self) -> bool {
        self.items.iter().any(|item| item.stage != Stage::Waiting)
    }

    /// When there is something to be done next, if nothing comes in between.
    pub fn wake(&self, now: Duration, ready_at: impl Fn(usize) -> Duration) -> Option<Duration> {
        let times = self.items.iter().flat_map(|item| match item.stage {
            Stage::Settling(due) => [due, item.expires, ready_at(item.unit)],
            // What waits for an answer is woken by it.
            Stage::Waiting | Stage::Asked | Stage::Ready => [item.expires, item.expires, ready_at(item.unit)],
        });
        times.filter(|time| *time > now).min()
    }

    /// Whether it may begin is asked.
    pub fn asked(&mut self, ticket: Ticket) {
        self.set(ticket, Stage::Asked);
    }

    /// It may begin.
    pub fn may_begin(&mut self, ticket: Ticket) {
        self.set(ticket, Stage::Ready);
    }

    /// It was written, or may have been: to be read back from `due` on.
    pub fn settles(&mut self, ticket: Ticket, due: Duration) {
        self.set(ticket, Stage::Settling(due));
        self.owes_poll = true;
    }

    /// It has ended.
    pub fn done(&mut self, ticket: Ticket) {
        self.items.retain(|item| item.ticket != ticket);
    }

    /// Whether a poll that is due has its turn first.
    pub fn owes(&self, is_poll_due: bool) -> bool {
        self.owes_poll && is_poll_due
    }

    /// A write has taken a turn.
    pub fn took_turn(&mut self) {
        self.owes_poll = true;
    }

    /// A poll had its turn.
    pub fn polled(&mut self) {
        self.owes_poll = false;
    }

    fn set(&mut self, ticket: Ticket, stage: Stage) {
        if let Some(item) = self.items.iter_mut().find(|item| item.ticket == ticket) {
            item.stage = stage;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn at_once(_: usize) -> Duration {
        Duration::ZERO
    }

    /// Lets a lane run with polls that are always due, each turn taking 10 ms, until it is empty.
    fn turns(lane: &mut Lane, settle: Duration) -> String {
        let (mut now, mut turns) = (S, String::new());
        while !lane.is_empty() && turns.len() < 1000 {
            match lane.next(now, true, at_once) {
                Some(Move::Ask(ticket)) => lane.may_begin(ticket),
                Some(Move::Write(ticket)) => {
                    now += Duration::from_millis(10);
                    turns.push('W');
                    lane.settles(ticket, now + settle);
                }
                Some(Move::Verify(ticket)) => {
                    now += Duration::from_millis(10);
                    turns.push('V');
                    lane.done(ticket);
                    lane.took_turn();
                }
                Some(Move::Expire(ticket)) => lane.done(ticket),
                None => {
                    now += Duration::from_millis(10);
                    turns.push('p');
                    lane.polled();
                }
            }
        }
        turns
    }

    #[test]
    fn a_flood_of_writes_leaves_polls_every_second_turn() {
        let mut lane = Lane::default();
        (0..LANE_MAX as u64).for_each(|ticket| lane.push(ticket, 0, S * 60));
        assert_eq!(turns(&mut lane, Duration::ZERO), "WVp".repeat(LANE_MAX).trim_end_matches('p'));
    }

    #[test]
    fn a_write_waits_for_no_poll_but_the_one_that_is_under_way() {
        let mut lane = Lane::default();
        lane.polled();
        lane.push(7, 0, S * 60);
        assert_eq!(lane.next(S, true, at_once), Some(Move::Ask(7)));
        lane.asked(7);
        assert_eq!(lane.next(S, true, at_once), None, "polls go on while it is written down");
        lane.polled();
        lane.may_begin(7);
        assert_eq!(lane.next(S, true, at_once), Some(Move::Write(7)));
    }

    #[test]
    fn a_slow_device_is_read_back_later_and_others_go_on_meanwhile() {
        let mut lane = Lane::default();
        for ticket in 0..4 {
            lane.push(ticket, (ticket % 2) as usize, S * 60);
        }
        let turns = turns(&mut lane, Duration::from_millis(35));
        assert_eq!(turns.matches('W').count(), 4);
        assert!(turns.starts_with("WpW"), "the other unit does not wait: {turns}");
        assert!(!turns.contains("WpWpW"), "the same unit waits until the first is read back: {turns}");
    }

    #[test]
    fn writes_to_one_unit_keep_their_order_and_one_that_rests_holds_up_nobody_else() {
        let mut lane = Lane::default();
        lane.push(1, 0, S * 60);
        lane.push(2, 0, S * 60);
        lane.push(3, 1, S * 60);
        let resting = |unit: usize| if unit == 0 { S * 10 } else { Duration::ZERO };
        assert_eq!(lane.next(S, false, resting), Some(Move::Ask(3)));
        assert_eq!(lane.wake(S, resting), Some(S * 10));
        lane.done(3);
        assert_eq!(lane.next(S, false, resting), None);
        assert_eq!(lane.next(S * 10, false, resting), Some(Move::Ask(1)));
        lane.asked(1);
        assert_eq!(lane.next(S * 10, false, resting), None, "2 waits for 1");
    }

    #[test]
    fn only_one_write_is_begun_at_a_time() {
        let mut lane = Lane::default();
        lane.push(1, 0, S * 60);
        lane.push(2, 1, S * 60);
        lane.asked(1);
        assert_eq!(lane.next(S, false, at_once), None);
        lane.may_begin(1);
        let died = |unit: usize| if unit == 0 { S * 10 } else { Duration::ZERO };
        assert_eq!(lane.next(S, false, died), Some(Move::Ask(2)), "one whose unit has died meanwhile blocks nobody");
    }

    #[test]
    fn what_is_too_old_is_never_begun_and_what_was_begun_is_read_back_all_the_same() {
        let mut lane = Lane::default();
        lane.push(1, 0, S * 60);
        lane.push(2, 1, S * 60);
        lane.settles(1, S * 61);
        lane.may_begin(2);
        assert_eq!(lane.next(S * 60, true, at_once), Some(Move::Expire(2)), "also when it might have begun");
        lane.done(2);
        lane.polled();
        assert_eq!(lane.next(S * 60, true, at_once), None);
        assert_eq!(lane.next(S * 61, true, at_once), Some(Move::Verify(1)));
    }

    #[test]
    fn a_write_that_comes_twice_is_there_once() {
        let mut lane = Lane::default();
        lane.push(1, 0, S);
        lane.asked(1);
        lane.push(1, 0, S * 9);
        lane.done(1);
        assert!(lane.is_empty());
    }
}
