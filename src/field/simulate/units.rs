//! Simulated units behind a wire: what they answer, and which faults they have.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::fault::{Fault, Trouble};
use super::wire::{Counterpart, Request};
use crate::config::Table;
use crate::field::modbus::server::{Bank, Reply};
use crate::field::record::Wire;

/// What a unit says to a request; `None` = nothing.
pub(super) trait Answering: Send + Sync + 'static {
    fn answer(&self, unit_id: u8, pdu: &[u8]) -> Option<Vec<u8>>;
}

/// Units with their faults.
pub(super) struct Units {
    answering: Box<dyn Answering>,
    faults: Vec<Fault>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Requests to each unit so far.
    asked: HashMap<u8, u64>,
    /// Answers that wait for the next request.
    held: Vec<Vec<u8>>,
}

impl Units {
    pub(super) fn new(answering: Box<dyn Answering>, faults: Vec<Fault>) -> Units {
        Units { answering, faults, state: Mutex::default() }
    }
}

impl Counterpart for Units {
    fn replies(&self, request: &Request<'_>) -> Vec<(Duration, Vec<u8>)> {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let unit_id = request.unit_id();
        let count = state.asked.entry(unit_id).or_default();
        let number = *count;
        *count += 1;
        let mut replies: Vec<(Duration, Vec<u8>)> =
            std::mem::take(&mut state.held).into_iter().map(|held| (Duration::ZERO, held)).collect();
        let Some(pdu) = self.answering.answer(unit_id, request.pdu()) else { return replies };
        let mut frame = request.reply(unit_id, &pdu);
        let mut after = Duration::ZERO;
        for fault in self.faults.iter().filter(|fault| fault.strikes(unit_id, number)) {
            match fault.trouble {
                Trouble::Delay(time) => after += time,
                Trouble::Exception(code) => {
                    let function = request.pdu().first().copied().unwrap_or(0);
                    frame = request.reply(unit_id, &[function | 0x80, code]);
                }
                Trouble::Silence => return replies,
                Trouble::BadCrc => {
                    let place = if request.wire == Wire::Tcp { 1 } else { frame.len().saturating_sub(1) };
                    frame.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= 0x10);
                }
                Trouble::WrongUnit => frame = request.reply(unit_id.wrapping_add(1), &pdu),
                Trouble::Late => {
                    state.held.push(frame);
                    return replies;
                }
            }
        }
        replies.push((after, frame));
        replies
    }
}

/// A bank of registers that are only read.
pub(super) struct Banked<B>(pub(super) B);

impl<B: Bank> Answering for Banked<B> {
    fn answer(&self, unit_id: u8, pdu: &[u8]) -> Option<Vec<u8>> {
        let [function, high, low, count_high, count_low] = pdu else { return Some(refusal(pdu, 1)) };
        let Some(table) = read_table(*function) else { return Some(refusal(pdu, 1)) };
        let (address, quantity) = (u16::from_be_bytes([*high, *low]), u16::from_be_bytes([*count_high, *count_low]));
        match self.0.read(unit_id, table, address, quantity) {
            Reply::Words(words) => Some(registers(*function, &words)),
            Reply::Bits(bits) => Some(coils(*function, &bits)),
            Reply::Refuse(code) => Some(refusal(pdu, code)),
            Reply::Silence => None,
        }
    }
}

/// Which table a function reads.
pub(super) fn read_table(function: u8) -> Option<Table> {
    [Table::Coil, Table::Discrete, Table::Input, Table::Holding]
        .into_iter()
        .find(|table| table.read_function() == function)
}

pub(super) fn refusal(pdu: &[u8], code: u8) -> Vec<u8> {
    vec![pdu.first().copied().unwrap_or(0) | 0x80, code]
}

pub(super) fn registers(function: u8, words: &[u16]) -> Vec<u8> {
    let mut pdu = vec![function, u8::try_from(words.len() * 2).unwrap_or(u8::MAX)];
    pdu.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    pdu
}

/// Modbus Application Protocol 1.1b3, 6.1: the first bit is the lowest of the first byte.
pub(super) fn coils(function: u8, bits: &[bool]) -> Vec<u8> {
    let bytes = bits.chunks(8).map(|byte| byte.iter().rev().fold(0_u8, |sum, bit| sum << 1 | u8::from(*bit)));
    let mut pdu = vec![function, u8::try_from(bits.len().div_ceil(8)).unwrap_or(u8::MAX)];
    pdu.extend(bytes);
    pdu
}
