//! Carrying out writes on a line, between its polls.
//!
//! Promises: a write is sent once. Where its answer is missing or damaged, what the device reads back decides; where that
//! does not either, it is told as unknown. A point of which only some bits are the point's own is read, changed and written
//! in one turn of the line: what the device or another client changes in the register between these two requests is lost,
//! which no function but 22 could help, and few devices have that.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::OwnedRwLockReadGuard;
use tokio::time::Instant;

use super::encode::{Wire, merged};
use super::fault::{exception_kind, exception_name};
use super::link::{Exchange, Order as Sent, Places, Question};
use super::plan::Block;
use super::reply::Echo;
use super::{Line, fault_kind, outcome, seen};
use crate::config::{ModbusPoint, WriteFunction};
use crate::field::lane::{Lane, Move, Ticket};
use crate::field::poll::Outcome;
use crate::field::writes::{End, FromLine, LineEnd, Order, ToLine};
use crate::message::Quality;

/// Attempts to send a request that never left.
const ATTEMPTS: u32 = 3;

/// The writes of a line.
pub(super) struct Writes {
    pub(super) lane: Lane,
    end: Option<LineEnd>,
    orders: HashMap<Ticket, Under>,
    /// The line is about to end: nothing more begins.
    pub(super) is_closing: bool,
}

/// A write under way.
struct Under {
    order: Order,
    /// Requests that could not be sent.
    attempts: u32,
    /// Why it is not sure that the device has written.
    doubt: Option<String>,
    /// From before it is sent until it has ended.
    busy: Option<OwnedRwLockReadGuard<()>>,
}

impl Writes {
    pub(super) fn new(end: Option<LineEnd>) -> Writes {
        Writes { lane: Lane::default(), end, orders: HashMap::new(), is_closing: false }
    }

    /// Says that the line has started, and forgets what was told before that.
    pub(super) async fn start(&mut self) {
        let Some(end) = &self.end else { return };
        let mut inbox = end.inbox.lock().await;
        while inbox.try_recv().is_ok() {}
        drop(inbox);
        self.tell(|line| FromLine::Started { line });
    }

    /// Waits for a message; for ever where there can be none.
    pub(super) async fn message(&self) -> ToLine {
        let Some(end) = &self.end else { return std::future::pending().await };
        match end.inbox.lock().await.recv().await {
            Some(message) => message,
            None => std::future::pending().await,
        }
    }

    /// A message that is there already.
    pub(super) fn message_now(&self) -> Option<ToLine> {
        self.end.as_ref()?.inbox.try_lock().ok()?.try_recv().ok()
    }

    pub(super) fn take(&mut self, message: ToLine, start: Instant) {
        match message {
            ToLine::Write(order) => {
                self.lane.push(order.ticket, order.unit, order.expires.saturating_duration_since(start));
                let under = Under { order: *order, attempts: 0, doubt: None, busy: None };
                self.orders.entry(under.order.ticket).or_insert(under);
            }
            ToLine::Begin(ticket) => self.lane.may_begin(ticket),
            ToLine::Drop(ticket) => {
                self.lane.done(ticket);
                self.orders.remove(&ticket);
            }
        }
    }

    /// Lets a stop wait for this write. After a stop has come nothing is begun: this waits until the line is dropped.
    async fn hold(&mut self, ticket: Ticket) {
        let (Some(end), Some(under)) = (&self.end, self.orders.get_mut(&ticket)) else { return };
        if under.busy.is_none() {
            under.busy = Some(end.busy.clone().read_owned().await);
        }
    }

    fn tell(&self, event: impl FnOnce(usize) -> FromLine) -> bool {
        self.end.as_ref().is_some_and(|end| end.events.try_send(event(end.number)).is_ok())
    }

    fn end(&mut self, ticket: Ticket, end: End) {
        self.lane.done(ticket);
        // Held until the clerk has been told, so that a stop does not come in between.
        let _under = self.orders.remove(&ticket);
        if !self.tell(|line| FromLine::Done { line, ticket, end }) {
            log::warn!("What became of a write finds no reader");
        }
    }
}

impl Line {
    /// Does what the lane asks for. False: it is the polls' turn, or nothing can be done at the moment.
    pub(super) async fn carry_out(&mut self, now: Duration, is_poll_due: bool) -> bool {
        let next = self.writes.lane.next(now, is_poll_due, |unit| self.write_at(unit));
        match next {
            None => false,
            Some(Move::Ask(_)) if self.writes.is_closing => false,
            Some(Move::Expire(ticket)) => {
                self.writes.end(ticket, End::Expired);
                true
            }
            // Whether it can be sent is known before it is written down that it begins.
            Some(Move::Ask(_) | Move::Write(_)) if !self.is_open(now).await => false,
            Some(Move::Verify(ticket)) if !self.is_open(now).await => self.give_up(ticket),
            Some(Move::Ask(ticket)) => {
                let is_told = self.writes.tell(|line| FromLine::Ask { line, ticket });
                if is_told {
                    self.writes.lane.asked(ticket);
                }
                is_told
            }
            Some(Move::Write(ticket)) => {
                self.writes.hold(ticket).await;
                self.write(ticket).await;
                true
            }
            Some(Move::Verify(ticket)) => {
                self.verify(ticket).await;
                true
            }
        }
    }

    /// From when on a unit may be written to.
    pub(super) fn write_at(&self, unit: usize) -> Duration {
        let line = if self.link.is_some() { Duration::ZERO } else { self.open_not_before };
        line.max(self.plan.ready_at(unit))
    }

    /// Ends a write that cannot be read back because the line stays closed, once its time is over.
    fn give_up(&mut self, ticket: Ticket) -> bool {
        let is_over = self.writes.orders.get(&ticket).is_none_or(|under| under.order.expires <= Instant::now());
        if is_over {
            let doubt = self.writes.orders.get(&ticket).and_then(|under| under.doubt.clone());
            let why = doubt.unwrap_or_else(|| "the device took it".to_owned());
            let reason = format!("{why}, and it could not be read back: the line cannot be opened");
            self.writes.end(ticket, End::Unknown { reason, read: None });
        }
        is_over
    }

    async fn write(&mut self, ticket: Ticket) {
        let Some((order, point)) = self.under(ticket) else {
            self.writes.lane.done(ticket);
            return;
        };
        self.writes.lane.took_turn();
        let Some(write) = point.write else {
            return self.writes.end(ticket, failed("not-writable", "the point may not be written"));
        };
        let is_multiple = write.function == WriteFunction::Multiple;
        let is_alike = !is_multiple && point.kind.width() == 1;
        let is_part = matches!(order.encoded.wire, Wire::Part { .. });
        // On a line that echoes, the answer to functions 5 and 6 looks like the echo: a read shows which of both it is.
        let is_echo_open = is_alike && self.link.as_ref().is_some_and(|link| link.echo() == Echo::Unknown);
        let mut held = Vec::new();
        if is_part || (is_echo_open && write.is_readable) {
            match self.read_point(&order, &point).await {
                Some(Exchange::Registers(words)) => held = words,
                Some(Exchange::Bits(_)) => {}
                Some(exchange) => {
                    let kind = fault_kind(&exchange).unwrap_or("mismatch");
                    let why = self.reason_of(order.unit, &exchange);
                    let end = failed(kind, &format!("it was not written, because it could not be read first: {why}"));
                    return self.writes.end(ticket, end);
                }
                None => return,
            }
        }
        let places = match &order.encoded.wire {
            Wire::Coil(is_on) => Places::Coil(*is_on),
            Wire::Registers(words) => Places::Registers(words.clone()),
            Wire::Part { words, masks } => Places::Registers(merged(&held, words, masks)),
        };
        let Some((unit_id, timeout)) =
            self.units.get(order.unit).map(|unit| (unit.spec.config.unit_id, unit.spec.config.timeout))
        else {
            return;
        };
        let sent = Sent { unit_id, address: point.address, places, by_multiple: is_multiple, timeout };
        let began = self.start.elapsed();
        let Some(link) = self.link.as_mut() else { return };
        let (exchange, has_sent) = link.write(&sent).await;
        self.heard(order.unit, &exchange, None, began).await;
        self.conclude(ticket, &exchange, has_sent);
    }

    /// What comes next for a write whose request was sent, or was not.
    fn conclude(&mut self, ticket: Ticket, exchange: &Exchange, has_sent: bool) {
        let Some((order, point)) = self.under(ticket) else { return };
        let Some(under) = self.writes.orders.get_mut(&ticket) else { return };
        let reason = |line: &Line| line.reason_of(order.unit, exchange);
        match exchange {
            Exchange::Written => {}
            // 5: it is being done; 10 and 11: a gateway speaks for a device that may have heard.
            Exchange::Refused(code) if !matches!(code, 5 | 10 | 11) => {
                let why = format!("the device refuses: {} (exception {code})", exception_name(*code));
                return self.writes.end(ticket, failed(exception_kind(*code), &why));
            }
            _ if !has_sent => {
                under.attempts += 1;
                if under.attempts >= ATTEMPTS {
                    let why = reason(self).to_string();
                    let kind = fault_kind(exchange).unwrap_or("lost");
                    self.writes.end(ticket, failed(kind, &format!("it was not sent: {why}")));
                }
                return;
            }
            _ => {
                let why = reason(self).to_string();
                if let Some(under) = self.writes.orders.get_mut(&ticket) {
                    under.doubt = Some(why);
                }
            }
        }
        let write = point.write.unwrap_or_default();
        if write.is_readable {
            let due = self.start.elapsed().saturating_add(write.settle);
            return self.writes.lane.settles(ticket, due);
        }
        let doubt = self.writes.orders.get(&ticket).and_then(|under| under.doubt.clone());
        let end = match doubt {
            None => End::Written { read: None },
            Some(why) => End::Unknown { reason: format!("whether it was carried out is not known: {why}"), read: None },
        };
        self.writes.end(ticket, end);
    }

    /// Reads back what was written; the device's word decides.
    async fn verify(&mut self, ticket: Ticket) {
        let Some((order, point)) = self.under(ticket) else {
            self.writes.lane.done(ticket);
            return;
        };
        self.writes.lane.took_turn();
        let Some(exchange) = self.read_point(&order, &point).await else { return };
        let doubt = self.writes.orders.get(&ticket).and_then(|under| under.doubt.clone());
        let is_answer = matches!(exchange, Exchange::Registers(_) | Exchange::Bits(_));
        let found = is_answer.then(|| seen(&point, point.address, &exchange));
        let end = match (found, doubt) {
            (Some(found), _) if found.quality != Quality::Bad && found.value == order.encoded.value => {
                End::Written { read: Some(found.value) }
            }
            (Some(found), None) => {
                let reason = "the device took it and holds something else".to_owned();
                End::Failed { kind: "differs", reason, read: Some(found.value) }
            }
            (Some(found), Some(why)) => {
                let reason = format!("whether it is carried out is not known: {why}; the device holds something else");
                End::Unknown { reason, read: Some(found.value) }
            }
            (None, doubt) => {
                let why = doubt.unwrap_or_else(|| "the device took it".to_owned());
                let back = self.reason_of(order.unit, &exchange);
                End::Unknown { reason: format!("{why}, and it could not be read back: {back}"), read: None }
            }
        };
        self.writes.end(ticket, end);
    }

    /// Reads a point out of turn. `None`: the line could not be opened again.
    async fn read_point(&mut self, order: &Order, point: &ModbusPoint) -> Option<Exchange> {
        let unit = self.units.get(order.unit)?;
        let question = Question {
            unit_id: unit.spec.config.unit_id,
            table: point.table,
            address: point.address,
            quantity: point.kind.width(),
            timeout: unit.spec.config.timeout,
        };
        let began = self.start.elapsed();
        let exchange = self.exchanged(&question, began).await?;
        self.heard(order.unit, &exchange, Some((order.point, point)), began).await;
        Some(exchange)
    }

    /// Takes note of an exchange out of turn: what it says of the unit, and of the point that was read.
    async fn heard(&mut self, unit: usize, exchange: &Exchange, read: Option<(usize, &ModbusPoint)>, began: Duration) {
        let stamp = self.desk.clock.now();
        let now = self.start.elapsed();
        if self.link.as_ref().is_some_and(|link| link.is_spent(exchange)) {
            self.link = None;
        }
        self.plan.spoke(unit, outcome(exchange) == Outcome::Fruitless, began, now);
        let row = self.plan.fruitless_in_a_row(unit);
        let Some(unit) = self.units.get_mut(unit) else { return };
        unit.device.count(fault_kind(exchange), matches!(exchange, Exchange::Broken(_)));
        let is_answer = matches!(exchange, Exchange::Registers(_) | Exchange::Bits(_));
        // A point that cannot be read out of turn is told by its next poll.
        let points = read.filter(|_| is_answer).map(|(number, _)| number).into_iter().collect();
        let (table, address, quantity) = match read {
            Some((_, point)) => (point.table, point.address, point.kind.width()),
            None => (crate::config::Table::Holding, 0, 0),
        };
        let block = Block { table, address, quantity, points, interval: Duration::ZERO };
        unit.note(&block, exchange, row, stamp, now);
        unit.device.send().await;
    }

    fn under(&self, ticket: Ticket) -> Option<(Order, ModbusPoint)> {
        let order = self.writes.orders.get(&ticket)?.order.clone();
        let point = self.units.get(order.unit)?.spec.config.points.get(order.point)?.clone();
        Some((order, point))
    }

    fn reason_of(&self, unit: usize, exchange: &Exchange) -> std::sync::Arc<str> {
        self.units.get(unit).map_or_else(|| "".into(), |unit| unit.reason(exchange))
    }
}

fn failed(kind: &'static str, reason: &str) -> End {
    End::Failed { kind, reason: reason.to_owned(), read: None }
}
