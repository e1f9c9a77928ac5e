//! Another master on the same line, by Modbus TCP: what it asks goes out between our own requests.
//!
//! Promises: off unless the owner says `share`; a request takes the turn of a write, so that polls delay it by one request
//! and it never keeps a due poll from its turn; each request is answered once, within bounds: too many at a time are told that
//! the device is busy, a unit that did not answer is let rest before it is asked again, and nothing is passed on that is not
//! whole and one of the usual functions. Without `write` nothing that changes a device is passed on.
//!
//! ```text
//!  other master ─► connection task ─┐  bounded channel
//!  other master ─► connection task ─┴──────────────────► line task: one exchange, then the answer back
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::link::Passed;
use super::{Line, REST_TIMEOUTS};
use crate::config::{LineKind, ShareConfig};
use crate::field::pause::Pauses;

/// Masters at a time.
const CONNECTIONS_MAX: usize = 8;
/// Requests that wait for the line.
const WAITING_MAX: usize = 16;
/// A connection that says nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(600);
/// A request waits no longer than this for its turn and its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Before an address that cannot be had is tried again. Who had it may be about to go: the line itself, as it was configured
/// before.
const REBIND: Pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(10));
/// So often in vain, and it is told.
const REBIND_TOLD: u32 = 5;
/// A unit that does not answer rests at most so many timeouts.
const REST_MAX: u32 = 32;

/// Exceptions (Modbus Application Protocol 1.1b3, 7).
const ILLEGAL_FUNCTION: u8 = 1;
const ILLEGAL_VALUE: u8 = 3;
const BUSY: u8 = 6;
const NO_PATH: u8 = 10;
const NO_ANSWER: u8 = 11;

/// What another master asks.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) unit_id: u8,
    pub(super) pdu: Vec<u8>,
    /// The PDU of the answer.
    pub(super) reply: oneshot::Sender<Vec<u8>>,
}

/// The line's end of it.
pub(super) struct Share {
    requests: mpsc::Receiver<Asked>,
    waiting: Option<Asked>,
    /// Its own turn was the last one.
    had_turn: bool,
    /// Units that did not answer: from when on they are asked again, and how long they rested.
    resting: HashMap<u8, (Duration, u32)>,
    /// Ends with the line.
    _listener: JoinSet<()>,
}

impl Share {
    pub(super) fn start(line: &Arc<str>, config: ShareConfig) -> Share {
        let (sender, requests) = mpsc::channel(WAITING_MAX);
        let mut listener = JoinSet::new();
        listener.spawn(listen(line.clone(), config, sender));
        Share { requests, waiting: None, had_turn: false, resting: HashMap::new(), _listener: listener }
    }

    /// Waits until something is asked.
    pub(super) async fn asked(&mut self) {
        if self.waiting.is_some() {
            return;
        }
        match self.requests.recv().await {
            Some(asked) => self.waiting = Some(asked),
            None => std::future::pending().await,
        }
    }

    fn next(&mut self) -> Option<Asked> {
        self.waiting.take().or_else(|| self.requests.try_recv().ok())
    }

    fn has_one(&mut self) -> bool {
        if self.waiting.is_none() {
            self.waiting = self.requests.try_recv().ok();
        }
        self.waiting.is_some()
    }
}

impl Line {
    /// Waits until another master asks; for ever where none may.
    pub(super) async fn shared(share: &mut Option<Share>) {
        match share {
            Some(share) => share.asked().await,
            None => std::future::pending().await,
        }
    }

    /// Whether another master has the next turn before our own writes: it had not the last one.
    pub(super) fn is_shared_turn(&mut self, is_poll_due: bool) -> bool {
        let owes = self.writes.lane.owes(is_poll_due);
        self.share.as_mut().is_some_and(|share| !owes && share.has_one() && !share.had_turn)
    }

    /// Passes one request on. False: there is none, or a poll has its turn first.
    pub(super) async fn pass_on(&mut self, now: Duration, is_poll_due: bool) -> bool {
        if self.writes.lane.owes(is_poll_due) {
            return false;
        }
        let Some(asked) = self.share.as_mut().and_then(Share::next) else { return false };
        // Whoever asked may be gone: it waits no longer.
        if asked.reply.is_closed() {
            return true;
        }
        let answer = self.answered(&asked, now).await;
        if let Some(share) = &mut self.share {
            share.had_turn = true;
        }
        self.writes.lane.took_turn();
        let _gone = asked.reply.send(answer);
        true
    }

    /// A write of ours had its turn.
    pub(super) fn own_turn(&mut self) {
        if let Some(share) = &mut self.share {
            share.had_turn = false;
        }
    }

    async fn answered(&mut self, asked: &Asked, now: Duration) -> Vec<u8> {
        let function = asked.pdu.first().copied().unwrap_or_default();
        let refused = |code: u8| vec![function | 0x80, code];
        let own = self.units.iter().position(|unit| unit.spec.config.unit_id == asked.unit_id);
        let is_bus = !matches!(self.config.kind, LineKind::Tcp { .. });
        // A broadcast has no answer, and the numbers behind 247 are nobody's.
        if is_bus && !(1..=247).contains(&asked.unit_id) {
            return refused(NO_PATH);
        }
        let rests = self.share.as_ref().and_then(|share| share.resting.get(&asked.unit_id)).copied();
        let until = own.map_or(Duration::ZERO, |unit| self.plan.ready_at(unit));
        if until.max(rests.map_or(Duration::ZERO, |(until, _)| until)) > now {
            return refused(NO_ANSWER);
        }
        if !self.is_open(now).await {
            return refused(NO_PATH);
        }
        let limit =
            own.and_then(|unit| self.units.get(unit)).map_or(self.config.timeout, |unit| unit.spec.config.timeout);
        let began = self.start.elapsed();
        let Some(link) = self.link.as_mut() else { return refused(NO_PATH) };
        let passed = link.pass(asked.unit_id, &asked.pdu, limit).await;
        if link.is_spent_by(&passed) {
            self.link = None;
        }
        let is_fruitless = !matches!(passed, Passed::Answer(_));
        let now = self.start.elapsed();
        if let Some(unit) = own {
            self.plan.spoke(unit, is_fruitless, began, now);
        }
        if let Some(share) = &mut self.share {
            match is_fruitless {
                false => drop(share.resting.remove(&asked.unit_id)),
                true => {
                    let times = rests.map_or(REST_TIMEOUTS, |(_, times)| (times * 2).min(REST_MAX));
                    share.resting.insert(asked.unit_id, (now + limit * times, times));
                }
            }
        }
        match passed {
            Passed::Answer(pdu) => pdu,
            Passed::None => refused(NO_ANSWER),
            Passed::Lost => refused(NO_PATH),
        }
    }
}

/// Serves the address until it is dropped, however long it takes to get it.
async fn listen(line: Arc<str>, config: ShareConfig, requests: mpsc::Sender<Asked>) {
    let address = config.bind.to_string();
    let mut failures = 0u32;
    let listener = loop {
        match TcpListener::bind(config.bind).await {
            Ok(listener) => break listener,
            Err(error) => {
                failures = failures.saturating_add(1);
                if failures == REBIND_TOLD {
                    warn!(line = &*line, address = address.as_str(), error:%; "The line cannot be shared");
                }
            }
        }
        sleep(REBIND.after(failures)).await;
    };
    info!(line = &*line, address = address.as_str(); "The line is shared");
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, requests.clone(), config.is_writable))),
                // Out of files, mostly.
                Err(_) => sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One master: a request, its answer, the next request. Whatever is no Modbus TCP ends the connection.
async fn serve(mut stream: TcpStream, requests: mpsc::Sender<Asked>, is_writable: bool) {
    while let Ok(Ok(true)) = timeout(IDLE, exchange(&mut stream, &requests, is_writable)).await {}
}

/// False: it is over.
async fn exchange(stream: &mut TcpStream, requests: &mpsc::Sender<Asked>, is_writable: bool) -> io::Result<bool> {
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let [_, _, protocol_high, protocol_low, high, low, unit_id] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if (protocol_high, protocol_low) != (0, 0) || !(2..=254).contains(&length) {
        return Ok(false);
    }
    let mut pdu = vec![0; length - 1];
    stream.read_exact(&mut pdu).await?;
    let function = pdu.first().copied().unwrap_or_default();
    let answer = match judged(&pdu, is_writable) {
        Err(code) => vec![function | 0x80, code],
        Ok(()) => {
            let (reply, answer) = oneshot::channel();
            match requests.try_send(Asked { unit_id, pdu, reply }) {
                Err(_) => vec![function | 0x80, BUSY],
                Ok(()) => match timeout(PATIENCE, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) | Err(_) => vec![function | 0x80, NO_ANSWER],
                },
            }
        }
    };
    let length = u16::try_from(answer.len() + 1).unwrap_or(u16::MAX).to_be_bytes();
    let head = head.iter().take(4).chain(&length).chain([&unit_id]);
    let frame: Vec<u8> = head.chain(&answer).copied().collect();
    stream.write_all(&frame).await?;
    Ok(true)
}

/// Whether a request is whole and may be passed on; else the exception.
fn judged(pdu: &[u8], is_writable: bool) -> Result<(), u8> {
    let (function, rest) = pdu.split_first().ok_or(ILLEGAL_FUNCTION)?;
    let word = |place: usize| match (rest.get(place), rest.get(place + 1)) {
        (Some(high), Some(low)) => u16::from_be_bytes([*high, *low]),
        _ => 0,
    };
    // Modbus Application Protocol 1.1b3, 6: what stands behind the head, and how much may be asked for.
    let (is_write, is_whole) = match function {
        1 | 2 => (false, rest.len() == 4 && (1..=2000).contains(&word(2))),
        3 | 4 => (false, rest.len() == 4 && (1..=125).contains(&word(2))),
        5 | 6 => (true, rest.len() == 4),
        15 => (true, (1..=1968).contains(&word(2)) && has_data(rest, 4, usize::from(word(2)).div_ceil(8))),
        16 => (true, (1..=123).contains(&word(2)) && has_data(rest, 4, usize::from(word(2)) * 2)),
        22 => (true, rest.len() == 6),
        23 => {
            let is_right = (1..=125).contains(&word(2)) && (1..=121).contains(&word(6));
            (true, is_right && has_data(rest, 8, usize::from(word(6)) * 2))
        }
        _ => return Err(ILLEGAL_FUNCTION),
    };
    match (is_write && !is_writable, is_whole) {
        (true, _) => Err(ILLEGAL_FUNCTION),
        (false, false) => Err(ILLEGAL_VALUE),
        (false, true) => Ok(()),
    }
}

/// Whether a count of bytes stands at `place`, and exactly these bytes behind it.
fn has_data(rest: &[u8], place: usize, count: usize) -> bool {
    rest.get(place).is_some_and(|told| usize::from(*told) == count) && rest.len() == place + 1 + count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_requests_of_usual_functions_pass_and_writes_only_where_they_may() {
        let whole: [&[u8]; 9] = [
            &[1, 0, 0, 0x07, 0xD0],
            &[3, 0, 0, 0, 125],
            &[4, 0, 0, 0, 1],
            &[5, 0, 0, 0xFF, 0],
            &[6, 0, 0, 0, 0],
            &[15, 0, 0, 0, 9, 2, 1, 1],
            &[16, 0, 0, 0, 1, 2, 0, 7],
            &[22, 0, 0, 0, 1, 0, 1],
            &[23, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 7],
        ];
        for (place, pdu) in whole.into_iter().enumerate() {
            assert_eq!(judged(pdu, true), Ok(()), "{pdu:?}");
            assert_eq!(judged(pdu, false), if place < 3 { Ok(()) } else { Err(ILLEGAL_FUNCTION) }, "{pdu:?}");
            for end in 1..pdu.len() {
                assert_eq!(judged(&pdu[..end], true), Err(ILLEGAL_VALUE), "{:?}", &pdu[..end]);
            }
            assert_eq!(judged(&[pdu, &[0]].concat(), true), Err(ILLEGAL_VALUE));
        }
        for wrong in [&[1_u8, 0, 0, 0x07, 0xD1][..], &[3, 0, 0, 0, 126], &[3, 0, 0, 0, 0], &[16, 0, 0, 0, 124, 248]] {
            assert_eq!(judged(wrong, true), Err(ILLEGAL_VALUE), "{wrong:?}");
        }
        for function in [0, 7, 8, 11, 17, 20, 24, 43, 0x83] {
            assert_eq!(judged(&[function, 0, 0, 0, 1], true), Err(ILLEGAL_FUNCTION), "{function}");
        }
        assert_eq!(judged(&[], true), Err(ILLEGAL_FUNCTION));
    }
}
