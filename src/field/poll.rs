//! What to read next on one line. Pure: told the time, asked for a turn, told what came of it.
//!
//! Promises:
//! - Points are merged into few requests (`modbus::plan`). One that a unit refuses for its addresses is cut in two, for
//!   good, until what is refused stands alone: few requests tell which part it was, and few are left. What is refused is
//!   asked for after growing pauses.
//! - Units take turns. A line that is late skips polls; it never sends a burst of those it missed.
//! - A unit that does not answer is asked again after growing pauses, and while others answer, fruitless requests
//!   take at most a tenth of the line's time: a dead unit delays its neighbours by one timeout for each probe.
//!
//! Times are durations since the line started.

use std::time::Duration;

use super::modbus::plan::{self, Block, PlanPoint};
use crate::config::RequestLimits;

/// The longest pause before a dead unit is probed again, unless its own interval is longer.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// First requests of a line are spread over at most this long.
const SPREAD_MAX: Duration = Duration::from_secs(1);
/// A fruitless request is followed by this many times its cost without another one, as long as others answer.
const PROBE_COST_FACTOR: u32 = 9;
/// How many fruitless exchanges in a row make a unit dead.
pub const DEAD_AFTER: u32 = 2;

/// A unit as the planner sees it.
#[derive(Debug, Clone)]
pub struct PlanUnit {
    /// Every point keeps the number of its place.
    pub points: Vec<PlanPoint>,
    /// What one request may be like.
    pub limits: RequestLimits,
    /// Least pause after a fruitless request.
    pub pause_min: Duration,
}

/// Whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Send this request.
    Ask {
        /// Number of the unit.
        unit: usize,
        /// Number of the block in it.
        block: usize,
    },
    /// Nothing is due before this.
    Wait(Duration),
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer.
    Answered,
    /// The unit answered that it will not; `address` = because of the addresses.
    Refused {
        /// Exception 2, illegal data address, or 3, which some devices say instead.
        address: bool,
    },
    /// No answer, or none that could be used: it cost time.
    Fruitless,
}

/// What the line does next, for all its units.
#[derive(Debug, Clone)]
pub struct Plan {
    units: Vec<UnitPlan>,
    /// The living unit that had the last turn.
    last: usize,
    /// Until then the line makes up for a fruitless request: no dead unit is asked, and units that are known to answer
    /// come first. When many units die at once, or were never there, the living do not wait for one after the other.
    wary_until: Duration,
    /// What the last fruitless request cost.
    last_cost: Duration,
}

#[derive(Debug, Clone)]
struct UnitPlan {
    points: Vec<PlanPoint>,
    blocks: Vec<Scheduled>,
    /// Least pause after a fruitless request.
    pause_min: Duration,
    fruitless_in_a_row: u32,
    not_before: Duration,
    answered_at: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Scheduled {
    block: Block,
    due: Duration,
    fruitless_in_a_row: u32,
    /// How often in a row the unit said that it has no such address.
    refused_in_a_row: u32,
    answered_at: Option<Duration>,
}

impl Plan {
    /// A plan for units, each of which keeps the number of its place.
    pub fn new(units: Vec<PlanUnit>) -> Plan {
        let mut plan = Plan {
            last: units.len().saturating_sub(1),
            units: units.into_iter().map(UnitPlan::new).collect(),
            wary_until: Duration::ZERO,
            last_cost: Duration::ZERO,
        };
        plan.spread();
        plan
    }

    /// The plan of a line whose units have changed: of each of them, where it was in `former`, if it stays as it was. Those
    /// go on as if nothing had happened; the others begin now.
    pub fn after(former: Plan, units: Vec<(PlanUnit, Option<usize>)>, now: Duration) -> Plan {
        let Plan { units: mut kept, wary_until, last_cost, .. } = former;
        let last = units.len().saturating_sub(1);
        let units = units.into_iter().map(|(unit, place)| match place.and_then(|place| kept.get_mut(place)) {
            Some(plan) => std::mem::replace(plan, UnitPlan::nothing()),
            None => UnitPlan::new(unit).from(now),
        });
        Plan { units: units.collect(), last, wary_until, last_cost }
    }

    /// Whose turn it is at `now`.
    pub fn next(&self, now: Duration) -> Turn {
        let living = || self.living_turn(now, |_| true);
        let turn = if now < self.wary_until {
            let proven = self.living_turn(now, |unit| unit.is_proven(now, self.last_cost));
            proven.or_else(living).or_else(|| self.failing_turn(now))
        } else {
            self.failing_turn(now).or_else(living)
        };
        if let Some(turn) = turn {
            return turn;
        }
        let failing = self.units.iter().filter_map(|unit| self.retry_at(unit).map(|(at, _)| at));
        let living = self.units.iter().filter(|unit| !unit.is_failing()).filter_map(|unit| Some(unit.earliest()?.1));
        Turn::Wait(failing.chain(living).min().unwrap_or(Duration::MAX))
    }

    /// The next living unit in turn that is due and `fits`.
    fn living_turn(&self, now: Duration, fits: impl Fn(&UnitPlan) -> bool) -> Option<Turn> {
        let count = self.units.len();
        (1..=count).map(|step| (self.last + step) % count).find_map(|number| {
            let unit = self.units.get(number).filter(|unit| !unit.is_failing() && fits(unit))?;
            let (block, due) = unit.earliest()?;
            (due <= now).then_some(Turn::Ask { unit: number, block })
        })
    }

    /// Failing units stand in a line of their own, the longest waiting first: among the others they would be passed
    /// over by whoever comes after the last living one.
    fn failing_turn(&self, now: Duration) -> Option<Turn> {
        let waiting = self.units.iter().enumerate().filter_map(|(number, unit)| {
            let (at, waiting_since) = self.retry_at(unit)?;
            (at <= now).then_some((waiting_since, number, unit.earliest()?.0))
        });
        waiting.min().map(|(_, unit, block)| Turn::Ask { unit, block })
    }

    /// When a failing unit may be asked again, and since when it waits for that. A first failure may be a glitch, and
    /// waits for no budget.
    fn retry_at(&self, unit: &UnitPlan) -> Option<(Duration, Duration)> {
        let (_, due) = unit.earliest().filter(|_| unit.is_failing())?;
        let since = due.max(unit.not_before);
        Some((if unit.is_dead() { since.max(self.wary_until) } else { since }, since))
    }

    /// The block of a turn.
    pub fn block(&self, unit: usize, block: usize) -> Option<&Block> {
        Some(&self.units.get(unit)?.blocks.get(block)?.block)
    }

    /// Whether the block is cut in two when it is refused for its addresses.
    pub fn is_divisible(&self, unit: usize, block: usize) -> bool {
        let state = self.units.get(unit);
        let scheduled = state.and_then(|state| state.blocks.get(block).map(|scheduled| (state, scheduled)));
        scheduled.is_some_and(|(state, scheduled)| plan::is_divisible(&scheduled.block, &state.points))
    }

    /// Takes note of what came of a turn that began at `began` and ended at `now`. Gives back the achieved interval,
    /// for the fastest block of the unit.
    pub fn done(
        &mut self,
        unit: usize,
        block: usize,
        outcome: Outcome,
        began: Duration,
        now: Duration,
    ) -> Option<Duration> {
        if self.fruitless_in_a_row(unit) == 0 {
            self.last = unit;
        }
        let all_were_dead = self.units.iter().all(UnitPlan::is_dead);
        let state = self.units.get_mut(unit)?;
        if outcome == Outcome::Fruitless {
            state.fruitless(block, now);
            if self.units.iter().any(|unit| !unit.is_failing()) {
                self.last_cost = now.saturating_sub(began);
                self.wary_until = now.saturating_add(self.last_cost.saturating_mul(PROBE_COST_FACTOR));
            }
            return None;
        }
        let achieved = state.answered(block, outcome, began, now);
        if all_were_dead && self.units.len() > 1 {
            // The line itself was away: nobody has to sit out a pause for that.
            self.revive(now);
        }
        achieved
    }

    /// From when on a unit may be written to: one that is dead, not before it may be probed.
    pub fn ready_at(&self, unit: usize) -> Duration {
        let dead = self.units.get(unit).filter(|unit| unit.is_dead());
        dead.map_or(Duration::ZERO, |unit| unit.not_before.max(self.wary_until))
    }

    /// Takes note of a request beside the plan, from `began` to `now`: it shows as well as a poll whether the unit answers,
    /// and costs as much if it does not.
    pub fn spoke(&mut self, unit: usize, is_fruitless: bool, began: Duration, now: Duration) {
        let Some(state) = self.units.get_mut(unit) else { return };
        if !is_fruitless {
            if state.is_failing() {
                state.recover(now);
            }
            state.answered_at = Some(now);
            return;
        }
        state.fruitless_in_a_row = state.fruitless_in_a_row.saturating_add(1);
        let fastest = state.fastest().unwrap_or_default();
        state.not_before = now.saturating_add(probe_pause(fastest, state.pause_min, state.fruitless_in_a_row));
        if self.units.iter().any(|unit| !unit.is_failing()) {
            self.last_cost = now.saturating_sub(began);
            self.wary_until = now.saturating_add(self.last_cost.saturating_mul(PROBE_COST_FACTOR));
        }
    }

    /// How many requests to this unit were fruitless in a row.
    pub fn fruitless_in_a_row(&self, unit: usize) -> u32 {
        self.units.get(unit).map_or(0, |unit| unit.fruitless_in_a_row)
    }

    /// The line is back: every unit may be asked at once.
    pub fn revive(&mut self, now: Duration) {
        self.wary_until = now;
        for unit in &mut self.units {
            unit.not_before = now;
            unit.recover(now);
        }
    }

    /// The earliest requests start one after the other, not all at once.
    fn spread(&mut self) {
        let count: usize = self.units.iter().map(|unit| unit.blocks.len()).sum();
        let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        for (number, scheduled) in (0u32..).zip(self.units.iter_mut().flat_map(|unit| &mut unit.blocks)) {
            scheduled.due = scheduled.block.interval.min(SPREAD_MAX).saturating_mul(number) / count;
        }
    }
}

impl UnitPlan {
    fn new(unit: PlanUnit) -> UnitPlan {
        let blocks = plan::requests(&unit.points, &unit.limits);
        UnitPlan {
            points: unit.points,
            blocks: blocks.into_iter().map(|block| Scheduled::due_at(block, Duration::ZERO)).collect(),
            pause_min: unit.pause_min,
            fruitless_in_a_row: 0,
            not_before: Duration::ZERO,
            answered_at: None,
        }
    }

    fn nothing() -> UnitPlan {
        let (points, blocks) = (Vec::new(), Vec::new());
        let (pause_min, not_before) = (Duration::ZERO, Duration::ZERO);
        UnitPlan { points, blocks, pause_min, fruitless_in_a_row: 0, not_before, answered_at: None }
    }

    /// Its first requests one after the other, not all at once.
    fn from(mut self, now: Duration) -> UnitPlan {
        let count = u32::try_from(self.blocks.len().max(1)).unwrap_or(u32::MAX);
        for (number, scheduled) in (0u32..).zip(&mut self.blocks) {
            scheduled.due = now + scheduled.block.interval.min(SPREAD_MAX).saturating_mul(number) / count;
        }
        self
    }

    fn is_failing(&self) -> bool {
        self.fruitless_in_a_row > 0
    }

    /// Whether it has answered of late, as far as it was asked.
    fn is_proven(&self, now: Duration, last_cost: Duration) -> bool {
        let recent = self.fastest().unwrap_or_default().saturating_mul(2).saturating_add(last_cost.saturating_mul(3));
        self.answered_at.is_some_and(|at| at.saturating_add(recent) >= now)
    }

    fn is_dead(&self) -> bool {
        self.fruitless_in_a_row >= DEAD_AFTER
    }

    fn earliest(&self) -> Option<(usize, Duration)> {
        self.blocks.iter().map(|scheduled| scheduled.due).enumerate().min_by_key(|(_, due)| *due)
    }

    fn fastest(&self) -> Option<Duration> {
        self.blocks.iter().map(|scheduled| scheduled.block.interval).min()
    }

    fn fruitless(&mut self, block: usize, now: Duration) {
        self.fruitless_in_a_row = self.fruitless_in_a_row.saturating_add(1);
        let fastest = self.fastest().unwrap_or_default();
        self.not_before = now.saturating_add(probe_pause(fastest, self.pause_min, self.fruitless_in_a_row));
        if let Some(scheduled) = self.blocks.get_mut(block) {
            scheduled.fruitless_in_a_row = scheduled.fruitless_in_a_row.saturating_add(1);
            let pause = probe_pause(scheduled.block.interval, self.pause_min, scheduled.fruitless_in_a_row);
            scheduled.due = now.saturating_add(pause);
        }
    }

    fn answered(&mut self, number: usize, outcome: Outcome, began: Duration, now: Duration) -> Option<Duration> {
        if self.is_dead() {
            self.recover(now);
        }
        self.fruitless_in_a_row = 0;
        self.answered_at = Some(now);
        let fastest = self.fastest();
        let scheduled = self.blocks.get_mut(number)?;
        scheduled.fruitless_in_a_row = 0;
        scheduled.due = after(scheduled.due, scheduled.block.interval, now);
        if outcome == (Outcome::Refused { address: true }) && self.split(number, now) {
            return None;
        }
        let scheduled = self.blocks.get_mut(number)?;
        if outcome == (Outcome::Refused { address: true }) {
            // What a device does not have it will hardly have soon: it is asked for ever more seldom.
            scheduled.refused_in_a_row = scheduled.refused_in_a_row.saturating_add(1);
            let pause = probe_pause(scheduled.block.interval, Duration::ZERO, scheduled.refused_in_a_row);
            scheduled.due = now.saturating_add(pause);
            return None;
        }
        scheduled.refused_in_a_row = 0;
        let before = scheduled.answered_at.replace(began);
        let achieved = began.saturating_sub(before?);
        (fastest == Some(scheduled.block.interval)).then_some(achieved)
    }

    /// Blocks that were put off because the unit was dead are due again.
    fn recover(&mut self, now: Duration) {
        self.fruitless_in_a_row = 0;
        for scheduled in &mut self.blocks {
            if scheduled.fruitless_in_a_row > 0 {
                scheduled.fruitless_in_a_row = 0;
                scheduled.due = scheduled.due.min(now);
            }
        }
    }

    /// Some devices refuse a request that touches an address they do not have, or that is longer than they like, though
    /// every point is legal alone. The parts are due at once: which of them is refused is not known yet.
    fn split(&mut self, number: usize, now: Duration) -> bool {
        let refused = self.blocks.get(number).map(|scheduled| &scheduled.block);
        let Some(parts) = refused.and_then(|block| plan::halves(block, &self.points)) else { return false };
        self.blocks.splice(number..=number, parts.map(|part| Scheduled::due_at(part, now)));
        true
    }
}

impl Scheduled {
    fn due_at(block: Block, due: Duration) -> Scheduled {
        Scheduled { block, due, fruitless_in_a_row: 0, refused_in_a_row: 0, answered_at: None }
    }
}

/// The next time on the grid of `interval` through `due` that lies behind `now`: what was missed is skipped.
fn after(due: Duration, interval: Duration, now: Duration) -> Duration {
    let interval = interval.max(Duration::from_millis(1));
    let late = now.saturating_sub(due);
    let periods = late.as_nanos() / interval.as_nanos() + 1;
    due.saturating_add(interval.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX))).max(now)
}

/// Pause after the `count`-th fruitless request in a row: the interval, doubled each time, to a minute.
fn probe_pause(interval: Duration, pause_min: Duration, count: u32) -> Duration {
    let doubled = interval.saturating_mul(1u32.checked_shl(count.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(PROBE_PAUSE_MAX.max(interval)).max(pause_min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Table;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn point(table: Table, address: u16, width: u16) -> PlanPoint {
        PlanPoint { table, address, width, interval: SECOND }
    }

    fn unit_of(points: Vec<PlanPoint>, pause_min: Duration) -> PlanUnit {
        PlanUnit { points, limits: RequestLimits::default(), pause_min }
    }

    /// Runs a plan against units of which `dead` never answer; counts requests by unit until `end`.
    fn run(plan: &mut Plan, units: usize, dead: &[usize], timeout: Duration, end: Duration) -> Vec<u32> {
        run_from(plan, units, dead, timeout, (Duration::ZERO, end)).0
    }

    /// Also gives the longest time between two turns of unit 0.
    fn run_from(
        plan: &mut Plan,
        units: usize,
        dead: &[usize],
        timeout: Duration,
        (mut now, end): (Duration, Duration),
    ) -> (Vec<u32>, Duration) {
        let mut counts = vec![0; units];
        let (mut before, mut longest) = (now, Duration::ZERO);
        while now < end {
            match plan.next(now) {
                Turn::Wait(until) => now = until,
                Turn::Ask { unit, block } => {
                    counts[unit] += 1;
                    if unit == 0 {
                        longest = longest.max(now - before);
                        before = now;
                    }
                    let is_dead = dead.contains(&unit);
                    let began = now;
                    now += if is_dead { timeout } else { ms(10) };
                    let outcome = if is_dead { Outcome::Fruitless } else { Outcome::Answered };
                    plan.done(unit, block, outcome, began, now);
                }
            }
        }
        (counts, longest)
    }

    #[test]
    fn a_unit_that_stays_keeps_its_turns_when_another_comes_and_goes() {
        let unit = || unit_of(vec![point(Table::Holding, 0, 1)], ms(0));
        let mut plan = Plan::new(vec![unit(), unit()]);
        // The second one answers at 500 ms, and is due again a second later.
        assert_eq!(plan.next(ms(500)), Turn::Ask { unit: 0, block: 0 });
        plan.done(0, 0, Outcome::Answered, ms(500), ms(510));
        assert_eq!(plan.next(ms(510)), Turn::Ask { unit: 1, block: 0 });
        plan.done(1, 0, Outcome::Answered, ms(510), ms(520));
        let before = plan.next(ms(520));
        let mut plan = Plan::after(plan, vec![(unit(), Some(1))], ms(700));
        assert_eq!((before, plan.next(ms(700))), (Turn::Wait(ms(1000)), Turn::Wait(ms(1500))));
        plan = Plan::after(plan, vec![(unit(), None), (unit(), Some(0))], ms(800));
        assert_eq!(plan.next(ms(800)), Turn::Ask { unit: 0, block: 0 }, "who is new has its turn at once");
        plan.done(0, 0, Outcome::Answered, ms(800), ms(810));
        assert_eq!(plan.next(ms(810)), Turn::Wait(ms(1500)));
        assert_eq!(plan.done(1, 0, Outcome::Answered, ms(1500), ms(1510)), Some(ms(990)), "and is measured on");
    }

    #[test]
    fn units_take_turns() {
        let unit = unit_of(vec![point(Table::Holding, 0, 1)], SECOND);
        let mut plan = Plan::new(vec![unit.clone(), unit.clone(), unit]);
        let mut turns = Vec::new();
        let mut now = SECOND * 5;
        for _ in 0..3 {
            let Turn::Ask { unit, block } = plan.next(now) else { panic!("all of them are due") };
            turns.push(unit);
            let began = now;
            now += ms(10);
            plan.done(unit, block, Outcome::Answered, began, now);
        }
        assert_eq!(turns, [0, 1, 2]);
        assert!(matches!(plan.next(now), Turn::Wait(_)));
    }

    #[test]
    fn a_late_line_skips_and_does_not_send_a_burst() {
        let mut plan = Plan::new(vec![unit_of(vec![point(Table::Holding, 0, 1)], SECOND)]);
        plan.done(0, 0, Outcome::Answered, ms(0), ms(10));
        assert_eq!(plan.next(ms(10)), Turn::Wait(SECOND));
        plan.done(0, 0, Outcome::Answered, ms(9_700), ms(9_710));
        assert_eq!(plan.next(ms(9_710)), Turn::Wait(SECOND * 10));
    }

    #[test]
    fn the_first_requests_are_spread_and_keep_their_phase() {
        let unit = unit_of(vec![point(Table::Holding, 0, 1)], SECOND);
        let plan = Plan::new(vec![unit.clone(), unit]);
        assert_eq!(plan.next(ms(0)), Turn::Ask { unit: 0, block: 0 });
        let mut plan = plan;
        plan.done(0, 0, Outcome::Answered, ms(0), ms(10));
        assert_eq!(plan.next(ms(10)), Turn::Wait(ms(500)));
    }

    #[test]
    fn a_dead_unit_is_probed_ever_more_seldom_and_not_more_than_a_minute_apart() {
        let mut plan = Plan::new(vec![unit_of(vec![point(Table::Holding, 0, 1)], ms(400))]);
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            plan.done(0, 0, Outcome::Fruitless, now, now);
            let Turn::Wait(until) = plan.next(now) else { panic!("it pauses") };
            pauses.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(plan.fruitless_in_a_row(0), 9);
    }

    #[test]
    fn a_dead_unit_costs_its_neighbours_at_most_a_tenth_of_their_polls() {
        let unit = unit_of(vec![point(Table::Holding, 0, 1)], SECOND);
        let alone = run(&mut Plan::new(vec![unit.clone(), unit.clone()]), 2, &[], SECOND, SECOND * 600);
        let mut plan = Plan::new(vec![unit.clone(), unit.clone(), unit]);
        let beside = run(&mut plan, 3, &[2], SECOND, SECOND * 600);
        assert!(beside[0] * 10 >= alone[0] * 9, "{beside:?} against {alone:?}");
        assert!(beside[2] >= 10, "it is still probed: {beside:?}");
    }

    #[test]
    fn thirty_dead_units_leave_nine_tenths_of_the_line_to_the_living() {
        let unit = unit_of(vec![point(Table::Holding, 0, 1)], SECOND * 2);
        let mut plan = Plan::new(vec![unit; 31]);
        let dead: Vec<usize> = (1..31).collect();
        let counts = run(&mut plan, 31, &dead, SECOND, SECOND * 1000);
        assert!(counts[0] >= 850, "{counts:?}");
        assert!(dead.iter().all(|unit| counts[*unit] >= 2), "each is still probed: {counts:?}");
    }

    #[test]
    fn thirty_units_that_were_never_there_do_not_make_the_living_one_wait_for_one_after_the_other() {
        let unit = unit_of(vec![point(Table::Holding, 0, 1)], SECOND * 2);
        let mut plan = Plan::new(vec![unit; 31]);
        let dead: Vec<usize> = (1..31).collect();
        let (_, longest) = run_from(&mut plan, 31, &dead, SECOND, (Duration::ZERO, SECOND * 300));
        assert!(longest <= SECOND * 3, "it waited for {longest:?}");
    }

    #[test]
    fn thirty_units_that_die_at_once_are_told_from_the_living_soon() {
        let unit = unit_of(vec![point(Table::Holding, 0, 1)], SECOND * 2);
        let mut plan = Plan::new(vec![unit; 31]);
        run_from(&mut plan, 31, &[], SECOND, (Duration::ZERO, SECOND * 20));
        let dead: Vec<usize> = (1..31).collect();
        // Nothing tells them apart before each was asked once, which costs one timeout each.
        let (_, longest) = run_from(&mut plan, 31, &dead, SECOND, (SECOND * 20, SECOND * 55));
        assert!(longest <= SECOND * 31, "it waited for {longest:?}");
        let (_, longest) = run_from(&mut plan, 31, &dead, SECOND, (SECOND * 55, SECOND * 300));
        assert!(longest <= SECOND * 3, "it waited for {longest:?}");
    }

    #[test]
    fn a_saturated_line_still_probes_its_dead_units() {
        let mut busy = point(Table::Holding, 0, 1);
        busy.interval = ms(5);
        let unit = unit_of(vec![busy], SECOND);
        let counts = run(&mut Plan::new(vec![unit; 4]), 4, &[3], SECOND, SECOND * 300);
        assert!(counts[3] >= 5, "{counts:?}");
        assert!(counts[0].abs_diff(counts[1]) <= 2 && counts[0] > 7000, "{counts:?}");
    }

    #[test]
    fn a_block_that_is_never_answered_does_not_stop_the_unit_s_other_blocks() {
        let mut plan = Plan::new(vec![unit_of(vec![point(Table::Holding, 0, 1), point(Table::Input, 0, 1)], ms(200))]);
        let (mut now, mut good, mut bad) = (Duration::ZERO, 0, 0);
        while now < SECOND * 300 {
            match plan.next(now) {
                Turn::Wait(until) => now = until,
                Turn::Ask { unit, block } => {
                    let began = now;
                    let is_input = plan.block(unit, block).unwrap().table == Table::Input;
                    now += if is_input { ms(100) } else { ms(10) };
                    let outcome = if is_input { Outcome::Fruitless } else { Outcome::Answered };
                    *(if is_input { &mut bad } else { &mut good }) += 1;
                    plan.done(unit, block, outcome, began, now);
                }
            }
        }
        assert!(good > 250 && bad < 20, "good {good}, bad {bad}");
    }

    /// Asks a unit that has no addresses from 40 on but those of `there` until nothing is refused that can be cut.
    #[test]
    fn a_refused_request_is_cut_until_what_is_refused_stands_alone_and_that_is_remembered() {
        let h = Table::Holding;
        let points: Vec<PlanPoint> = (0..60).map(|address| point(h, address, 1)).collect();
        let mut plan = Plan::new(vec![unit_of(points, SECOND)]);
        let (mut now, mut asked) = (ms(0), 0);
        let ask = |plan: &mut Plan, now: &mut Duration| -> Option<(u16, bool)> {
            let Turn::Ask { unit, block } = plan.next(*now) else { return None };
            let Block { address, quantity, .. } = *plan.block(unit, block).unwrap();
            let is_refused = (address..address + quantity).contains(&40);
            let outcome = if is_refused { Outcome::Refused { address: true } } else { Outcome::Answered };
            let began = *now;
            *now += ms(1);
            plan.done(unit, block, outcome, began, *now);
            Some((quantity, is_refused))
        };
        while ask(&mut plan, &mut now).is_some() {
            asked += 1;
        }
        assert!(asked <= 14, "halving finds it: {asked} requests");
        now = ms(1_900);
        let mut round = Vec::new();
        while let Some(answer) = ask(&mut plan, &mut now) {
            round.push(answer);
        }
        assert_eq!(round.iter().map(|(quantity, _)| quantity).sum::<u16>(), 60, "every point is asked for: {round:?}");
        assert_eq!(round.iter().filter(|(_, is_refused)| *is_refused).collect::<Vec<_>>(), [&(1, true)]);
        assert!(round.len() <= 7, "what is refused is alone, and the others are not: {round:?}");
    }

    #[test]
    fn a_bus_of_thirty_units_with_three_dead_skips_no_poll_of_the_others() {
        let unit = unit_of(vec![point(Table::Holding, 0, 1)], ms(600));
        let mut plan = Plan::new(vec![unit; 30]);
        let dead = [4, 11, 29];
        let (counts, longest) = run_from(&mut plan, 30, &dead, ms(300), (Duration::ZERO, SECOND * 600));
        for (number, count) in counts.iter().enumerate().filter(|(number, _)| !dead.contains(number)) {
            assert!((599..=601).contains(count), "unit {number} was asked {count} times in 600 s");
        }
        assert!(dead.iter().all(|unit| counts[*unit] >= 10), "the dead are still probed: {counts:?}");
        assert!(longest <= SECOND + ms(310), "no poll is later than one probe: {longest:?}");
    }

    #[test]
    fn when_the_whole_line_was_away_the_first_answer_revives_all_units() {
        let unit = unit_of(vec![point(Table::Holding, 0, 1)], ms(100));
        let mut plan = Plan::new(vec![unit.clone(), unit.clone(), unit]);
        let mut now = Duration::ZERO;
        for _ in 0..8 {
            for unit in 0..3 {
                plan.done(unit, 0, Outcome::Fruitless, now, now + ms(100));
                now += ms(100);
            }
        }
        plan.done(0, 0, Outcome::Answered, now, now + ms(10));
        now += ms(10);
        assert_eq!(plan.next(now), Turn::Ask { unit: 1, block: 0 });
    }

    #[test]
    fn the_achieved_interval_is_that_of_the_fastest_block() {
        let mut slow = point(Table::Input, 0, 1);
        slow.interval = SECOND * 10;
        let mut plan = Plan::new(vec![unit_of(vec![point(Table::Holding, 0, 1), slow], SECOND)]);
        let number = |plan: &Plan, table| (0..2).find(|n| plan.block(0, *n).unwrap().table == table).unwrap();
        let (fast, slow) = (number(&plan, Table::Holding), number(&plan, Table::Input));
        assert_eq!(plan.done(0, fast, Outcome::Answered, ms(0), ms(10)), None);
        assert_eq!(plan.done(0, slow, Outcome::Answered, ms(20), ms(30)), None);
        assert_eq!(plan.done(0, fast, Outcome::Answered, ms(1_200), ms(1_210)), Some(ms(1_200)));
        assert_eq!(plan.done(0, slow, Outcome::Answered, ms(10_000), ms(10_010)), None);
    }

    #[test]
    fn a_plan_without_units_waits() {
        assert_eq!(Plan::new(Vec::new()).next(SECOND), Turn::Wait(Duration::MAX));
        assert_eq!(Plan::new(vec![unit_of(vec![], SECOND)]).next(SECOND), Turn::Wait(Duration::MAX));
    }
}
