//! The wire of a simulated Modbus device: requests are cut out of what arrives, replies go out when they are due.
//!
//! Promises: what is no request is dropped, as a device on a bus does; several connections are served at once; memory is
//! bounded. The library's server cannot be late, spoil a checksum or answer as another unit, so this is not it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::SerialFraming;
use crate::field::modbus::ascii::{self, Ear};
use crate::field::modbus::crc;
use crate::field::record::Wire;

/// A request that does not go on for so long is none.
const CUT_OFF: Duration = Duration::from_millis(100);
/// The longest frame (Modbus Messaging on TCP/IP 1.0b, 4.1), and some of the next one.
const BUFFER_BYTES: usize = 1024;
/// Replies that wait to be sent.
const OWED_MAX: usize = 64;
/// Connections at once.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of a TCP header with the unit id.
const TCP_HEAD: usize = 7;

/// Who is at the other end of the wire.
pub(super) trait Counterpart: Send + Sync + 'static {
    /// What to send for a whole request, each after so long.
    fn replies(&self, request: &Request<'_>) -> Vec<(Duration, Vec<u8>)>;
}

/// A whole request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) wire: Wire,
    /// As it came.
    pub(super) frame: &'a [u8],
}

impl<'a> Request<'a> {
    pub(super) fn unit_id(&self) -> u8 {
        let place = if self.wire == Wire::Tcp { TCP_HEAD - 1 } else { 0 };
        self.frame.get(place).copied().unwrap_or(0)
    }

    pub(super) fn pdu(&self) -> &'a [u8] {
        let range = match self.wire {
            Wire::Tcp => TCP_HEAD..self.frame.len(),
            Wire::Rtu | Wire::Serial => 1..self.frame.len().saturating_sub(2),
        };
        self.frame.get(range).unwrap_or_default()
    }

    /// The frame of an answer to it.
    pub(super) fn reply(&self, unit_id: u8, pdu: &[u8]) -> Vec<u8> {
        match self.wire {
            Wire::Tcp => {
                let mut frame = self.frame.get(..4).unwrap_or_default().to_vec();
                frame.extend(u16::try_from(pdu.len() + 1).unwrap_or(u16::MAX).to_be_bytes());
                frame.push(unit_id);
                frame.extend(pdu);
                frame
            }
            Wire::Rtu | Wire::Serial => {
                let mut frame = vec![unit_id];
                frame.extend(pdu);
                let sum = crc(&frame);
                frame.extend(sum.to_le_bytes());
                frame
            }
        }
    }
}

/// What the head of a buffer is.
#[derive(Debug, PartialEq, Eq)]
enum Cut {
    Whole(usize),
    Incomplete,
    Noise,
}

fn cut(wire: Wire, buffer: &[u8]) -> Cut {
    match wire {
        Wire::Tcp => cut_tcp(buffer),
        Wire::Rtu | Wire::Serial => cut_rtu(buffer),
    }
}

fn cut_tcp(buffer: &[u8]) -> Cut {
    let Some([_, _, protocol_high, protocol_low, high, low]) = buffer.first_chunk::<6>() else {
        return Cut::Incomplete;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if (*protocol_high, *protocol_low) != (0, 0) || !(2..=254).contains(&length) {
        return Cut::Noise;
    }
    if buffer.len() < 6 + length { Cut::Incomplete } else { Cut::Whole(6 + length) }
}

fn cut_rtu(buffer: &[u8]) -> Cut {
    let Some(function) = buffer.get(1) else { return Cut::Incomplete };
    let length = match function {
        1..=6 => 8,
        15 | 16 => match buffer.get(6) {
            Some(bytes) => 9 + usize::from(*bytes),
            None => return Cut::Incomplete,
        },
        22 => 10,
        23 => match buffer.get(10) {
            Some(bytes) => 13 + usize::from(*bytes),
            None => return Cut::Incomplete,
        },
        _ => return Cut::Noise,
    };
    match buffer.get(..length) {
        None => Cut::Incomplete,
        Some(frame) if crc(frame) == 0 => Cut::Whole(length),
        Some(_) => Cut::Noise,
    }
}

/// Serves each connection until `stop`.
pub(super) async fn serve_listener<C: Counterpart>(
    listener: TcpListener,
    wire: Wire,
    framing: SerialFraming,
    counterpart: Arc<C>,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let counterpart = counterpart.clone();
                connections.spawn(async move {
                    if let Err(error) = serve(stream, wire, framing, &*counterpart, || true).await {
                        log::debug!(error:%; "A simulated connection ended");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection or port to its end. `framing` = how what is RTU otherwise goes over the wire; `hears` = whether the other end speaks in settings that are understood.
pub(super) async fn serve<C: Counterpart + ?Sized>(
    stream: impl AsyncRead + AsyncWrite,
    wire: Wire,
    framing: SerialFraming,
    counterpart: &C,
    hears: impl Fn() -> bool,
) -> io::Result<()> {
    let (mut input, mut output) = tokio::io::split(Box::pin(stream));
    let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER_BYTES);
    let mut chunk = [0; 512];
    let mut owed: Vec<(Instant, Vec<u8>)> = Vec::new();
    let mut heard_at = Instant::now();
    let mut ear = (framing == SerialFraming::Ascii && wire != Wire::Tcp).then(Ear::default);
    loop {
        let due = owed.first().map(|(at, _)| *at);
        tokio::select! {
            biased;
            () = sleep_until(due.unwrap_or(heard_at)), if due.is_some() => {
                let (_, reply) = owed.remove(0);
                let reply = if ear.is_some() { ascii::letters(&reply) } else { reply };
                output.write_all(&reply).await?;
                output.flush().await?;
            }
            read = input.read(&mut chunk) => {
                let count = read?;
                if count == 0 {
                    return Ok(());
                }
                if heard_at.elapsed() > CUT_OFF || buffer.len() > BUFFER_BYTES {
                    buffer.clear();
                }
                heard_at = Instant::now();
                if !hears() {
                    continue;
                }
                let heard = chunk.get(..count).unwrap_or_default();
                match &mut ear {
                    None => buffer.extend_from_slice(heard),
                    // A line is whole, or it is none.
                    Some(ear) => {
                        let frames = ear.hear(heard).into_iter().filter(|frame| crc(frame) == 0);
                        buffer.extend(frames.flatten());
                    }
                }
                let mut start = 0;
                loop {
                    let rest = buffer.get(start..).unwrap_or_default();
                    match cut(wire, rest) {
                        Cut::Incomplete => break,
                        // A device waits for silence; this one looks on at the next byte, which finds more.
                        Cut::Noise => start += 1,
                        Cut::Whole(length) => {
                            let request = Request { wire, frame: rest.get(..length).unwrap_or_default() };
                            let replies = counterpart.replies(&request);
                            owed.extend(replies.into_iter().map(|(after, reply)| (heard_at + after, reply)));
                            owed.sort_by_key(|(at, _)| *at);
                            owed.truncate(OWED_MAX);
                            start += length;
                        }
                    }
                }
                buffer.drain(..start.min(buffer.len()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_cut_out_of_noise() {
        let mut request = vec![1, 3, 0, 100, 0, 2];
        request.extend(crc(&request).to_le_bytes());
        for end in 0..request.len() {
            assert_eq!(cut(Wire::Rtu, &request[..end]), Cut::Incomplete, "{end}");
        }
        assert_eq!(cut(Wire::Rtu, &[&request[..], &[9, 9]].concat()), Cut::Whole(8));
        let mut both = vec![1, 23, 0, 12, 0, 2, 0, 13, 0, 1, 2, 0xAB, 0xCD];
        both.extend(crc(&both).to_le_bytes());
        assert_eq!((cut(Wire::Rtu, &both), cut(Wire::Rtu, &both[..14])), (Cut::Whole(15), Cut::Incomplete));
        request[3] ^= 1;
        assert_eq!(cut(Wire::Rtu, &request), Cut::Noise);
        assert_eq!(cut(Wire::Tcp, &[0, 7, 0, 0, 0, 6, 1, 3, 0, 100, 0, 2]), Cut::Whole(12));
        assert_eq!(cut(Wire::Tcp, &[0, 7, 0, 0, 0, 6, 1]), Cut::Incomplete);
        assert_eq!(cut(Wire::Tcp, &[0, 7, 0, 1, 0, 6, 1]), Cut::Noise);
        assert_eq!(cut(Wire::Tcp, b"GET / HTTP/1.1"), Cut::Noise);
    }
}
