//! A recording served back: what a line's devices said once, they say again to the same questions.
//!
//! Promises: a question gets the answers of its next occurrence in the recording, with their times, from the beginning
//! again after the last; one that was never asked gets none.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::wire::{Counterpart, Request};
use crate::field::record::{Event, Recording, Wire};

/// A longer pause in a recording is shortened to this.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The transaction id of Modbus TCP: another one each time.
const TRANSACTION: std::ops::Range<usize> = 0..2;

/// What was asked and answered.
#[derive(Debug)]
pub(super) struct Replay {
    exchanges: Vec<Exchange>,
    /// From where the next question is looked for.
    cursor: Mutex<usize>,
}

#[derive(Debug)]
struct Exchange {
    request: Vec<u8>,
    replies: Vec<(Duration, Vec<u8>)>,
}

impl Replay {
    pub(super) fn new(recording: &Recording) -> Replay {
        let mut exchanges: Vec<Exchange> = Vec::new();
        let mut sent_at = Duration::ZERO;
        let mut is_going_on = false;
        for (at, event) in &recording.events {
            match (event, exchanges.last_mut()) {
                (Event::Opened, _) => is_going_on = false,
                // A request in several pieces, before anything was heard, is one.
                (Event::Sent(bytes), Some(last))
                    if is_going_on && last.replies.is_empty() && !is_whole(recording.wire, &last.request) =>
                {
                    last.request.extend(bytes);
                }
                (Event::Sent(bytes), _) => {
                    (sent_at, is_going_on) = (*at, true);
                    exchanges.push(Exchange { request: bytes.clone(), replies: Vec::new() });
                }
                (Event::Heard(bytes), Some(last)) if is_going_on => {
                    last.replies.push((at.saturating_sub(sent_at).min(PAUSE_MAX), bytes.clone()));
                }
                (Event::Heard(_), _) => {}
            }
        }
        Replay { exchanges, cursor: Mutex::new(0) }
    }
}

fn is_whole(wire: Wire, request: &[u8]) -> bool {
    match wire {
        Wire::Tcp => request.len() >= 12,
        Wire::Rtu | Wire::Serial => request.len() >= 8,
    }
}

impl Counterpart for Replay {
    fn replies(&self, request: &Request<'_>) -> Vec<(Duration, Vec<u8>)> {
        let cursor = &mut *self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let head = if request.wire == Wire::Tcp { TRANSACTION.end } else { 0 };
        let is_it = |exchange: &Exchange| exchange.request.get(head..) == request.frame.get(head..);
        let count = self.exchanges.len();
        let places = (0..count).map(|step| (*cursor + step) % count);
        let found =
            places.filter_map(|place| Some((place, self.exchanges.get(place)?))).find(|(_, exchange)| is_it(exchange));
        let Some((place, exchange)) = found else { return Vec::new() };
        *cursor = place + 1;
        let asked = request.frame.get(TRANSACTION).unwrap_or_default();
        let recorded = exchange.request.get(TRANSACTION).unwrap_or_default();
        let reply = |(position, (after, bytes)): (usize, &(Duration, Vec<u8>))| {
            let mut bytes = bytes.clone();
            // The answer to its own request bears this one's id; a wrong one stays wrong.
            if request.wire == Wire::Tcp && position == 0 && bytes.get(TRANSACTION) == Some(recorded) {
                bytes.iter_mut().zip(asked).for_each(|(byte, asked)| *byte = *asked);
            }
            (*after, bytes)
        };
        exchange.replies.iter().enumerate().map(reply).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_question_gets_its_answers_in_turn_with_its_own_transaction() {
        let text = "# tidegate record 1 tcp\n\
                    0.0 open\n\
                    0.0 > 00 01 00 00 00 06 01 03 00 64 00 01\n\
                    0.1 < 00 01 00 00 00 05 01 03 02 00 07\n\
                    1.0 > 00 02 00 00 00 06 01 03 00 64 00 01\n\
                    1.2 < 00 02 00 00 00 05 01 03 02 00 08\n\
                    2.0 > 00 03 00 00 00 06 02 03 00 64 00 01\n";
        let replay = Replay::new(&crate::field::record::parse(text).unwrap());
        let ask = |unit: u8| {
            let frame = [0xAB, 0xCD, 0, 0, 0, 6, unit, 3, 0, 0x64, 0, 1];
            replay.replies(&Request { wire: Wire::Tcp, frame: &frame })
        };
        let value = |replies: Vec<(Duration, Vec<u8>)>| {
            let (after, bytes) = replies.into_iter().next().unwrap();
            assert_eq!(bytes[..2], [0xAB, 0xCD]);
            (after.as_millis(), bytes[10])
        };
        assert_eq!([value(ask(1)), value(ask(1)), value(ask(1))], [(100, 7), (200, 8), (100, 7)]);
        assert!(ask(2).is_empty() && ask(3).is_empty());
        assert_eq!(replay.exchanges.len(), 3);
    }
}
