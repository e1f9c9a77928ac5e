//! Modbus lines: one task for each, which owns the connection and does one exchange at a time for all its units.
//!
//! Promises: a value is told only from a whole answer to its own request; what fails is told as quality bad with its
//! reason; a unit that fails does not delay its neighbours by more than one timeout for each probe (`poll`); a lost
//! connection is made again with growing pauses. Writes only what the clerk of writes has given to the line (`write`).

use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::{info, warn};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::{LineConfig, LineKind, ModbusConfig, ModbusPoint};
use crate::health::{DeviceState, chain};
use crate::message::{Quality, Stamp};

use super::device::{Desk, Device, DeviceSpec, Seen};
use super::pause::Pauses;
use super::poll::{DEAD_AFTER, Outcome, Plan, PlanUnit, Turn};
use super::port;
use super::record::Recorder;
use super::writes::{LineEnd, LineWrites};

use decode::Decoded;
use fault::{exception_kind, exception_name};
use link::{Doubts, Exchange, Link, Question};
use plan::Block;
use share::Share;

pub mod plan;

pub mod forecast;

pub mod listing;

mod timing;

pub mod decode;

mod digits;

pub mod encode;

pub(super) mod ascii;
mod fault;

mod gate;
mod link;
mod reply;

pub mod probe;

pub mod advice;

pub mod guess;

pub mod wild;

pub mod scan;

pub mod server;
mod share;
mod write;

pub(super) use reply::crc;

/// Pauses between attempts to open a line.
const REOPEN: Pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(30));
/// After a fruitless request a unit rests at least this many timeouts, so that an answer that comes late comes into
/// nobody's turn.
const REST_TIMEOUTS: u32 = 2;

/// A line as configured, with its units.
#[derive(Debug, Clone)]
pub(super) struct LineSpec {
    pub(super) name: Arc<str>,
    pub(super) config: LineConfig,
    pub(super) units: Vec<UnitSpec>,
    /// Where writes come from, if any do.
    pub(super) writes: Option<LineEnd>,
    /// Takes down what goes over the line.
    pub(super) recorder: Option<Recorder>,
    /// What it leaves to the one that takes its place, and has from the one whose place it takes.
    pub(super) estate: Estate,
}

/// What a line leaves behind when it gives way to one with other units: a device that stays as it was is read on
/// without a gap, on the same connection.
#[derive(Clone, Default)]
pub(super) struct Estate(Arc<Mutex<Option<Box<Line>>>>);

impl fmt::Debug for Estate {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        into.write_str("Estate")
    }
}

impl Estate {
    fn leave(&self, line: Line) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(line));
    }

    fn take(&self) -> Option<Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map(|line| *line)
    }
}

impl LineSpec {
    /// Whether this is the line that `other` is, to the last key.
    pub(super) fn is_same(&self, other: &LineSpec) -> bool {
        self.config == other.config
            && self.units.len() == other.units.len()
            && self.units.iter().zip(&other.units).all(|(one, other)| one.is_same(other))
    }
}

impl UnitSpec {
    fn is_same(&self, other: &UnitSpec) -> bool {
        self.device.name == other.device.name && format!("{:?}", self.config) == format!("{:?}", other.config)
    }
}

/// A unit as configured.
#[derive(Debug, Clone)]
pub(super) struct UnitSpec {
    pub(super) config: ModbusConfig,
    pub(super) device: DeviceSpec,
}

/// Reads the line until it is dropped, or until `leave`: then it ends between two exchanges, as soon as no write is under
/// way, and leaves what it has.
pub(super) async fn run(spec: LineSpec, desk: Desk, leave: CancellationToken) {
    let estate = spec.estate.clone();
    let mut line = match estate.take() {
        Some(former) => former.with(spec, &desk, leave),
        None => Line::new(spec, &desk, leave),
    };
    line.run().await;
    estate.leave(line);
}

struct Line {
    name: Arc<str>,
    config: LineConfig,
    units: Vec<Unit>,
    plan: Plan,
    link: Option<Link>,
    doubts: Doubts,
    recorder: Option<Recorder>,
    /// Failed attempts to open the line in a row.
    failures: u32,
    open_not_before: Duration,
    /// The line's port was not there when it was last looked for.
    is_away: bool,
    writes: LineWrites,
    share: Option<Share>,
    desk: Desk,
    start: Instant,
}

struct Unit {
    spec: UnitSpec,
    device: Device,
}

impl Unit {
    fn new(spec: UnitSpec, desk: &Desk) -> Unit {
        let device = Device::new(spec.device.clone(), desk.clone());
        let fastest = plan::points(&spec.config).iter().map(|point| point.interval).min();
        device.health().asked_ms.store(fastest.map_or(0, milliseconds), Ordering::Relaxed);
        Unit { spec, device }
    }
}

impl Line {
    /// The line with other units, or the same in another order.
    fn with(self, spec: LineSpec, desk: &Desk, leave: CancellationToken) -> Line {
        if self.config != spec.config {
            // Its port is free before the new one opens it.
            drop(self);
            return Line::new(spec, desk, leave);
        }
        let now = self.start.elapsed();
        let mut former: Vec<Option<Unit>> = self.units.into_iter().map(Some).collect();
        let (mut planned_units, mut units) = (Vec::new(), Vec::new());
        for unit in spec.units {
            let place = former.iter().position(|old| old.as_ref().is_some_and(|old| old.spec.is_same(&unit)));
            planned_units.push((planned(&unit.config), place));
            let kept = place.and_then(|place| former.get_mut(place)?.take());
            units.push(kept.unwrap_or_else(|| Unit::new(unit, desk)));
        }
        let plan = Plan::after(self.plan, planned_units, now);
        Line { name: spec.name, units, plan, writes: LineWrites::new(spec.writes, leave), ..self }
    }

    fn new(spec: LineSpec, desk: &Desk, leave: CancellationToken) -> Line {
        let plan = Plan::new(spec.units.iter().map(|unit| planned(&unit.config)).collect());
        let units = spec.units.into_iter().map(|unit| Unit::new(unit, desk));
        let share = spec.config.share.map(|config| Share::start(&spec.name, config));
        Line {
            name: spec.name,
            config: spec.config,
            units: units.collect(),
            plan,
            link: None,
            doubts: Doubts::default(),
            recorder: spec.recorder,
            failures: 0,
            open_not_before: Duration::ZERO,
            is_away: false,
            writes: LineWrites::new(spec.writes, leave),
            share,
            desk: desk.clone(),
            start: Instant::now(),
        }
    }

    async fn run(&mut self) {
        self.writes.start().await;
        loop {
            if self.writes.may_close() {
                return;
            }
            self.writes.take_all(self.start);
            let now = self.start.elapsed();
            self.tell_again(now).await;
            let turn = self.plan.next(now);
            let is_due = matches!(turn, Turn::Ask { .. });
            if self.is_shared_turn(is_due) && self.pass_on(now, is_due).await {
                continue;
            }
            if self.carry_out(now, is_due).await {
                self.own_turn();
                continue;
            }
            if self.pass_on(now, is_due).await {
                continue;
            }
            let wake = match turn {
                Turn::Ask { unit, block } if self.is_open(now).await => {
                    self.ask(unit, block).await;
                    self.writes.lane.polled();
                    continue;
                }
                Turn::Ask { .. } => self.open_not_before,
                Turn::Wait(until) if self.opens_unasked(now).await => until.min(self.open_not_before),
                Turn::Wait(until) => until,
            };
            let heartbeat = self.units.iter().filter_map(|unit| unit.device.next_heartbeat()).min();
            let write = self.writes.lane.wake(now, |unit| self.write_at(unit));
            let wake = [heartbeat, write].into_iter().flatten().fold(wake, Duration::min);
            // A plan without points waits for ever; an hour is as good, and can be added to an instant.
            let rest = wake.saturating_sub(self.start.elapsed()).min(Duration::from_secs(3600));
            let path = match &self.config.kind {
                LineKind::Rtu(port) if self.link.is_none() && self.failures > 0 => Some(port.path.as_path()),
                _ => None,
            };
            tokio::select! {
                is_back = rested(rest, path, &mut self.is_away) => {
                    if is_back {
                        self.open_not_before = self.start.elapsed();
                        self.failures = 1;
                    }
                }
                () = self.writes.heed(self.start) => {}
                () = Line::shared(&mut self.share) => {}
            }
        }
    }

    /// Opens the line for units that are only written, so that it shows whether they can be; true while it has to be tried
    /// again.
    async fn opens_unasked(&mut self, now: Duration) -> bool {
        self.units.iter().any(Unit::is_write_only) && !self.is_open(now).await
    }

    async fn tell_again(&mut self, now: Duration) {
        for unit in &mut self.units {
            unit.device.tell_again(now);
            unit.device.send().await;
        }
    }

    /// Whether the line is open; opens it if it is time to.
    async fn is_open(&mut self, now: Duration) -> bool {
        if self.link.is_some() {
            return true;
        }
        if now < self.open_not_before {
            return false;
        }
        let error = match Link::open(&self.config, &self.doubts).await {
            Ok(link) => {
                if let Some(recorder) = &self.recorder {
                    link.record(recorder);
                }
                self.link = Some(link);
                let was_down = self.failures > 0;
                if was_down {
                    info!(line = &*self.name; "The line is open again");
                    self.failures = 0;
                    self.plan.revive(self.start.elapsed());
                }
                // Of a unit that is only written nothing else will be heard before the first write.
                for unit in self.units.iter_mut().filter(|unit| unit.is_write_only()) {
                    if was_down || unit.device.state() == DeviceState::Starting {
                        unit.device.set_state(DeviceState::Good, None);
                        unit.device.send().await;
                    }
                }
                return true;
            }
            Err(error) => chain(&error),
        };
        if self.failures == 0 {
            warn!(line = &*self.name, error:% = error; "The line cannot be opened");
        }
        self.failures = self.failures.saturating_add(1);
        let now = self.start.elapsed();
        self.open_not_before = now.saturating_add(REOPEN.after(self.failures));
        let reason: Arc<str> = Arc::from(error);
        for unit in &mut self.units {
            unit.device.fail_all(&reason, now);
            unit.device.set_state(DeviceState::Dead, Some(reason.clone()));
            unit.device.send().await;
        }
        false
    }

    async fn ask(&mut self, number: usize, block_number: usize) {
        let (Some(unit), Some(block)) = (self.units.get(number), self.plan.block(number, block_number).cloned()) else {
            return;
        };
        let question = Question {
            unit_id: unit.spec.config.unit_id,
            table: block.table,
            address: block.address,
            quantity: block.quantity,
            timeout: unit.spec.config.timeout,
        };
        let began = self.start.elapsed();
        let Some(exchange) = self.exchanged(&question, began).await else { return };
        let stamp = self.desk.clock.now();
        let now = self.start.elapsed();
        if self.link.as_ref().is_some_and(|link| link.is_spent(&exchange)) {
            self.link = None;
        }
        let is_divisible = self.plan.is_divisible(number, block_number);
        let achieved = self.plan.done(number, block_number, outcome(&exchange), began, now);
        let row = self.plan.fruitless_in_a_row(number);
        let Some(unit) = self.units.get_mut(number) else { return };
        unit.device.count(fault_kind(&exchange), matches!(exchange, Exchange::Broken(_)));
        // The parts are asked for at once: which of them is refused is not known yet.
        if !(is_about_addresses(&exchange) && is_divisible) {
            unit.note(&block, &exchange, row, stamp, now);
        }
        if let Some(achieved) = achieved {
            unit.device.health().interval_ms.store(milliseconds(achieved), Ordering::Relaxed);
        }
        unit.device.send().await;
    }
}

impl Line {
    /// Asks a question, on a new connection if the old one turns out to be closed. `None`: it cannot be opened again.
    async fn exchanged(&mut self, question: &Question, began: Duration) -> Option<Exchange> {
        let link = self.link.as_mut()?;
        let was_used = link.has_answered();
        let exchange = link.exchange(question).await;
        if !was_used || !matches!(exchange, Exchange::Lost(_)) {
            return Some(exchange);
        }
        // A server that closes idle connections is well: the request is sent once more, on a new one.
        self.link = None;
        if !self.is_open(began).await {
            return None;
        }
        match self.link.as_mut() {
            Some(link) => Some(link.exchange(question).await),
            None => Some(exchange),
        }
    }
}

impl Unit {
    /// Nothing of it is ever read.
    fn is_write_only(&self) -> bool {
        !self.spec.config.points.iter().any(ModbusPoint::is_readable)
    }

    /// Takes note of what an exchange says of this unit's points.
    fn note(&mut self, block: &Block, exchange: &Exchange, fruitless_in_a_row: u32, stamp: Stamp, now: Duration) {
        match exchange {
            Exchange::Registers(_) | Exchange::Bits(_) | Exchange::Written => {
                for number in &block.points {
                    if let Some(point) = self.spec.config.points.get(*number) {
                        self.device.see(*number, seen(point, block.address, exchange), stamp, now);
                    }
                }
                self.device.health().last_good_ms.store(stamp.wall_ms, Ordering::Relaxed);
            }
            Exchange::Refused(_) | Exchange::Silent { .. } | Exchange::Broken(_) | Exchange::Lost(_) => {
                let reason = self.reason(exchange);
                if outcome(exchange) == Outcome::Fruitless {
                    let never_answered = matches!(self.device.state(), DeviceState::Starting | DeviceState::Dead);
                    if never_answered || fruitless_in_a_row >= DEAD_AFTER {
                        self.device.fail_all(&reason, now);
                        self.device.set_state(DeviceState::Dead, Some(reason));
                        return;
                    }
                }
                for number in &block.points {
                    self.device.see(*number, Seen::bad(reason.clone()), stamp, now);
                }
            }
        }
        match self.device.failing() {
            None => self.device.set_state(DeviceState::Good, None),
            Some(reason) => self.device.set_state(DeviceState::Degraded, Some(reason)),
        }
    }

    fn reason(&self, exchange: &Exchange) -> Arc<str> {
        let ms = self.spec.config.timeout.as_millis();
        match exchange {
            Exchange::Refused(code) => {
                format!("the device refuses: {} (exception {code})", exception_name(*code)).into()
            }
            Exchange::Silent { heard: false } => format!("no answer within {ms} ms").into(),
            Exchange::Silent { heard: true } => format!("no whole answer within {ms} ms").into(),
            Exchange::Broken(fault) => Arc::from(fault.reason()),
            Exchange::Lost(error) => format!("the connection was lost: {error}").into(),
            Exchange::Registers(_) | Exchange::Bits(_) | Exchange::Written => Arc::from(""),
        }
    }
}

/// Sleeps; a serial port that was away and is back ends that, and gives true.
async fn rested(rest: Duration, path: Option<&Path>, is_away: &mut bool) -> bool {
    match path {
        Some(path) => port::is_back_before(path, Instant::now() + rest, is_away).await,
        None => {
            sleep(rest).await;
            false
        }
    }
}

fn planned(device: &ModbusConfig) -> PlanUnit {
    PlanUnit {
        points: plan::points(device),
        limits: device.limits.clone(),
        pause_min: device.timeout.saturating_mul(REST_TIMEOUTS),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a whole answer says of one point.
fn seen(point: &ModbusPoint, block_address: u16, answer: &Exchange) -> Seen {
    let start = usize::from(point.address.saturating_sub(block_address));
    let end = start + usize::from(point.kind.width());
    let decoded = match answer {
        Exchange::Registers(words) => words.get(start..end).map(|words| decode::registers(point, words)),
        Exchange::Bits(bits) => bits.get(start).map(|bit| decode::bit(&point.meaning, *bit)),
        _ => None,
    };
    match decoded {
        Some(Ok(Decoded { value, doubt: None })) => Seen::good(value),
        Some(Ok(Decoded { value, doubt: Some(doubt) })) => {
            Seen { value, quality: Quality::Uncertain, reason: Some(Arc::from(doubt)) }
        }
        Some(Err(reason)) => Seen::bad(reason),
        None => Seen::bad("the answer does not hold the whole point"),
    }
}

fn is_about_addresses(exchange: &Exchange) -> bool {
    matches!(exchange, Exchange::Refused(2 | 3))
}

fn outcome(exchange: &Exchange) -> Outcome {
    match exchange {
        Exchange::Registers(_) | Exchange::Bits(_) | Exchange::Written => Outcome::Answered,
        // A gateway speaks for a unit that is not there; waiting for that cost it a timeout of its own.
        Exchange::Refused(10 | 11) => Outcome::Fruitless,
        Exchange::Refused(_) => Outcome::Refused { address: is_about_addresses(exchange) },
        Exchange::Silent { .. } | Exchange::Broken(_) | Exchange::Lost(_) => Outcome::Fruitless,
    }
}

/// By what name a failed exchange is counted.
fn fault_kind(exchange: &Exchange) -> Option<&'static str> {
    match exchange {
        Exchange::Registers(_) | Exchange::Bits(_) | Exchange::Written => None,
        Exchange::Refused(code) => Some(exception_kind(*code)),
        Exchange::Silent { heard: false } => Some("timeout"),
        Exchange::Silent { heard: true } => Some("incomplete"),
        Exchange::Broken(fault) => Some(fault.kind()),
        Exchange::Lost(_) => Some("lost"),
    }
}
