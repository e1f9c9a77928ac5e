//! Carrying out writes on a line, between its polls.
//!
//! Promises: a write is sent once. Where its answer is missing or damaged, what the device reads back decides; where that
//! does not either, it is told as unknown. A point of which only some bits are the point's own is read, changed and written
//! in one turn of the line: what the device or another client changes in the register between these two requests is lost,
//! which no function but 22 could help: few devices have that, and the owner says so (`function = 22`).

use std::time::Duration;

use tokio::time::Instant;

use super::encode::{Encoded, Wire, merged};
use super::fault::{exception_kind, exception_name};
use super::link::{Exchange, Order as Sent, Places, Question};
use super::plan::Block;
use super::reply::Echo;
use super::{Line, fault_kind, outcome, seen};
use crate::config::{ModbusPoint, WriteFunction};
use crate::field::device::Seen;
use crate::field::lane::{Move, Ticket};
use crate::field::poll::Outcome;
use crate::field::writes::{Act, End};
use crate::message::Quality;

/// Attempts to send a request that never left.
const ATTEMPTS: u32 = 3;

/// A write that is to be carried out.
struct Wanted {
    unit: usize,
    /// The point, and its number in the unit.
    point: ModbusPoint,
    number: usize,
    encoded: Encoded,
}

impl Line {
    /// Does what the lane asks for. False: it is the polls' turn, or nothing can be done at the moment.
    pub(super) async fn carry_out(&mut self, now: Duration, is_poll_due: bool) -> bool {
        let next = self.writes.next(now, is_poll_due, |unit| self.write_at(unit));
        match next {
            None => false,
            Some(Move::Expire(ticket)) => {
                self.writes.end(ticket, End::Expired);
                true
            }
            // Whether it can be sent is known before it is written down that it begins.
            Some(Move::Ask(_) | Move::Write(_)) if !self.is_open(now).await => false,
            Some(Move::Verify(ticket)) if !self.is_open(now).await => self.give_up(ticket),
            Some(Move::Ask(ticket)) => self.writes.ask(ticket),
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
        let is_over = self.writes.under(ticket).is_none_or(|under| under.order.expires <= Instant::now());
        if is_over {
            let doubt = self.doubt(ticket);
            let why = doubt.unwrap_or_else(|| "the device took it".to_owned());
            let reason = format!("{why}, and it could not be read back: the line cannot be opened");
            self.writes.end(ticket, End::Unknown { reason, read: None });
        }
        is_over
    }

    async fn write(&mut self, ticket: Ticket) {
        let Some(wanted) = self.wanted(ticket) else {
            self.writes.lane.done(ticket);
            return;
        };
        self.writes.lane.took_turn();
        let Wanted { unit, point, encoded, .. } = &wanted;
        let Some(write) = point.write else {
            return self.writes.end(ticket, failed("not-writable", "the point may not be written"));
        };
        let is_multiple = write.function == WriteFunction::Multiple;
        let is_masked = write.function == WriteFunction::Masked;
        let is_both = write.function == WriteFunction::AndRead;
        let is_alike = !is_multiple && !is_both && point.kind.width() == 1;
        let is_part = !is_masked && matches!(encoded.wire, Wire::Part { .. });
        // On a line that echoes, the answer to functions 5, 6 and 22 looks like the echo: a read shows which of both it is.
        let is_echo_open = is_alike && self.link.as_ref().is_some_and(|link| link.echo() == Echo::Unknown);
        let mut held = Vec::new();
        if is_part || (is_echo_open && write.is_readable) {
            match self.read_point(&wanted).await {
                Some(Exchange::Registers(words)) => held = words,
                Some(Exchange::Bits(_)) => {}
                Some(exchange) => {
                    let kind = fault_kind(&exchange).unwrap_or("mismatch");
                    let why = self.reason_of(*unit, &exchange);
                    let end = failed(kind, &format!("it was not written, because it could not be read first: {why}"));
                    return self.writes.end(ticket, end);
                }
                None => return,
            }
        }
        let places = match &encoded.wire {
            Wire::Coil(is_on) => Places::Coil(*is_on),
            Wire::Registers(words) => Places::Registers(words.clone()),
            Wire::Part { words, masks } => match (words.as_slice(), masks.as_slice()) {
                ([word], [mask]) if is_masked => Places::Masked { word: *word, mask: *mask },
                _ => Places::Registers(merged(&held, words, masks)),
            },
        };
        let places = match places {
            Places::Registers(words) if is_both => Places::AndRead(words),
            other => other,
        };
        let Some((unit_id, timeout)) =
            self.units.get(*unit).map(|unit| (unit.spec.config.unit_id, unit.spec.config.timeout))
        else {
            return;
        };
        let sent = Sent { unit_id, address: point.address, places, by_multiple: is_multiple, timeout };
        let began = self.start.elapsed();
        let Some(link) = self.link.as_mut() else { return };
        let (exchange, has_sent) = link.write(&sent).await;
        let read = matches!(exchange, Exchange::Registers(_)).then_some((wanted.number, point));
        self.heard(*unit, &exchange, read, began).await;
        // What is given time to settle is read once more after that.
        if matches!(exchange, Exchange::Registers(_)) && write.settle.is_zero() {
            let end = judged(&wanted, seen(point, point.address, &exchange), None);
            return self.writes.end(ticket, end);
        }
        self.conclude(ticket, &exchange, has_sent);
    }

    /// What comes next for a write whose request was sent, or was not.
    fn conclude(&mut self, ticket: Ticket, exchange: &Exchange, has_sent: bool) {
        let Some(Wanted { unit, point, .. }) = self.wanted(ticket) else { return };
        let reason = self.reason_of(unit, exchange);
        let Some(under) = self.writes.under_mut(ticket) else { return };
        match exchange {
            Exchange::Written | Exchange::Registers(_) => {}
            // 5: it is being done; 10 and 11: a gateway speaks for a device that may have heard.
            Exchange::Refused(code) if !matches!(code, 5 | 10 | 11) => {
                let why = format!("the device refuses: {} (exception {code})", exception_name(*code));
                return self.writes.end(ticket, failed(exception_kind(*code), &why));
            }
            _ if !has_sent => {
                under.attempts += 1;
                if under.attempts >= ATTEMPTS {
                    let kind = fault_kind(exchange).unwrap_or("lost");
                    self.writes.end(ticket, failed(kind, &format!("it was not sent: {reason}")));
                }
                return;
            }
            _ => under.doubt = Some(reason.to_string()),
        }
        let write = point.write.unwrap_or_default();
        if write.is_readable {
            let due = self.start.elapsed().saturating_add(write.settle);
            return self.writes.lane.settles(ticket, due);
        }
        let doubt = self.doubt(ticket);
        let end = match doubt {
            None => End::Written { read: None },
            Some(why) => End::Unknown { reason: format!("whether it was carried out is not known: {why}"), read: None },
        };
        self.writes.end(ticket, end);
    }

    /// Reads back what was written; the device's word decides.
    async fn verify(&mut self, ticket: Ticket) {
        let Some(wanted) = self.wanted(ticket) else {
            self.writes.lane.done(ticket);
            return;
        };
        self.writes.lane.took_turn();
        let Wanted { unit, point, .. } = &wanted;
        let Some(exchange) = self.read_point(&wanted).await else { return };
        let doubt = self.doubt(ticket);
        let is_answer = matches!(exchange, Exchange::Registers(_) | Exchange::Bits(_));
        let found = is_answer.then(|| seen(point, point.address, &exchange));
        let end = match (found, doubt) {
            (Some(found), doubt) => judged(&wanted, found, doubt),
            (None, doubt) => {
                let why = doubt.unwrap_or_else(|| "the device took it".to_owned());
                let back = self.reason_of(*unit, &exchange);
                End::Unknown { reason: format!("{why}, and it could not be read back: {back}"), read: None }
            }
        };
        self.writes.end(ticket, end);
    }

    /// Reads a point out of turn. `None`: the line could not be opened again.
    async fn read_point(&mut self, wanted: &Wanted) -> Option<Exchange> {
        let Wanted { unit: number, point, .. } = wanted;
        let unit = self.units.get(*number)?;
        let question = Question {
            unit_id: unit.spec.config.unit_id,
            table: point.table,
            address: point.address,
            quantity: point.kind.width(),
            timeout: unit.spec.config.timeout,
        };
        let began = self.start.elapsed();
        let exchange = self.exchanged(&question, began).await?;
        self.heard(*number, &exchange, Some((wanted.number, point)), began).await;
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

    fn wanted(&self, ticket: Ticket) -> Option<Wanted> {
        let order = &self.writes.under(ticket)?.order;
        let Act::Point { number, encoded } = &order.act else { return None };
        let point = self.units.get(order.unit)?.spec.config.points.get(*number)?.clone();
        Some(Wanted { unit: order.unit, point, number: *number, encoded: encoded.clone() })
    }

    /// Why it is not sure that the device has written.
    fn doubt(&self, ticket: Ticket) -> Option<String> {
        self.writes.under(ticket)?.doubt.clone()
    }

    fn reason_of(&self, unit: usize, exchange: &Exchange) -> std::sync::Arc<str> {
        self.units.get(unit).map_or_else(|| "".into(), |unit| unit.reason(exchange))
    }
}

/// How a write ended whose point was read back.
fn judged(wanted: &Wanted, found: Seen, doubt: Option<String>) -> End {
    match doubt {
        _ if found.quality != Quality::Bad && found.value == wanted.encoded.value => {
            End::Written { read: Some(found.value) }
        }
        None => {
            let reason = "the device took it and holds something else".to_owned();
            End::Failed { kind: "differs", reason, read: Some(found.value) }
        }
        Some(why) => {
            let reason = format!("whether it is carried out is not known: {why}; the device holds something else");
            End::Unknown { reason, read: Some(found.value) }
        }
    }
}

fn failed(kind: &'static str, reason: &str) -> End {
    End::Failed { kind, reason: reason.to_owned(), read: None }
}
