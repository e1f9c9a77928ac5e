//! Modbus ASCII under the same gate: what goes over the wire are letters, what the gate sees are RTU frames.
//!
//! Modbus over Serial Line 1.02, 2.5.2: a colon, two hexadecimal digits for each byte, their LRC, CR and LF. Promises: a line
//! whose LRC is wrong, or that holds anything else, becomes a frame whose checksum is wrong, and so is counted and never a
//! value; what stands before a colon is nothing; what began before a request is no part of its answer; memory is bounded.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::reply::crc;

/// The longest line: a colon, 253 bytes of PDU, the unit and the LRC in two digits each, CR and LF.
const LINE_BYTES_MAX: usize = 1 + 2 * 255 + 2;

/// Hears lines.
#[derive(Debug, Default)]
pub(in crate::field) struct Ear {
    /// What arrived behind a colon, up to LF.
    line: Option<Vec<u8>>,
}

impl Ear {
    /// The RTU frames of the lines that end in these letters; wrong ones of lines that are none.
    pub(in crate::field) fn hear(&mut self, letters: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for byte in letters {
            match (byte, &mut self.line) {
                (b':', line) => *line = Some(Vec::new()),
                (b'\n', line) => frames.extend(line.take().map(|letters| frame(&letters))),
                (byte, Some(letters)) if letters.len() < LINE_BYTES_MAX => letters.push(*byte),
                _ => {}
            }
        }
        frames
    }
}

/// A wire that speaks ASCII.
pub(super) struct Ascii<W> {
    wire: W,
    ear: Ear,
    /// Frames that are not handed on yet.
    frames: Vec<u8>,
    /// What is being sent, as it was given and as it goes out.
    given: Vec<u8>,
    sending: Vec<u8>,
}

impl<W> Ascii<W> {
    pub(super) fn new(wire: W) -> Ascii<W> {
        Ascii { wire, ear: Ear::default(), frames: Vec::new(), given: Vec::new(), sending: Vec::new() }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.frames.extend(self.ear.hear(bytes).concat());
    }
}

/// The RTU frame of a line; a wrong one for a line that is none.
fn frame(letters: &[u8]) -> Vec<u8> {
    let letters = letters.strip_suffix(b"\r").unwrap_or(letters);
    let digit = |letter: &u8| char::from(*letter).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = letters.chunks(2).map(byte).collect();
    let is_right = bytes.as_ref().is_some_and(|bytes| bytes.len() >= 3 && sum(bytes) == 0);
    let mut bytes = bytes.unwrap_or_default();
    bytes.pop();
    let checksum = crc(&bytes);
    bytes.extend((if is_right { checksum } else { !checksum }).to_le_bytes());
    bytes
}

/// Over a line and its LRC this is 0.
fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The line of an RTU frame; a wrong one of a wrong one.
pub(in crate::field) fn letters(frame: &[u8]) -> Vec<u8> {
    let bytes = frame.get(..frame.len().saturating_sub(2)).unwrap_or_default();
    let check = sum(bytes).wrapping_neg().wrapping_add(u8::from(crc(frame) != 0));
    let digits: String = bytes.iter().chain([&check]).map(|byte| format!("{byte:02X}")).collect();
    format!(":{digits}\r\n").into_bytes()
}

impl<W: AsyncRead + Unpin> AsyncRead for Ascii<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.frames.is_empty() {
            let mut bytes = [0; 512];
            let mut arrived = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.wire).poll_read(context, &mut arrived))?;
            if arrived.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.take(arrived.filled());
        }
        let count = buffer.remaining().min(self.frames.len());
        buffer.put_slice(&self.frames.drain(..count).collect::<Vec<u8>>());
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Ascii<W> {
    /// Takes a whole frame, and is done when its whole line is out: one that was cut short is none to the device.
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.sending.is_empty() || self.given != bytes {
            if bytes.len() < 4 || crc(bytes) != 0 {
                return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
            }
            self.given = bytes.to_vec();
            self.sending = letters(bytes);
            // What comes from now on is the answer.
            self.ear = Ear::default();
            self.frames.clear();
        }
        while !self.sending.is_empty() {
            let Ascii { wire, sending, .. } = &mut *self;
            let count = ready!(Pin::new(wire).poll_write(context, sending))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            sending.drain(..count.min(sending.len()));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn rtu(bytes: &[u8]) -> Vec<u8> {
        let mut frame = bytes.to_vec();
        frame.extend(crc(bytes).to_le_bytes());
        frame
    }

    #[test]
    fn a_line_is_that_of_the_specification_and_a_wrong_one_fails_its_checksum() {
        // Unit 0xF7, function 3, registers 0x1389 and on: LRC 0x60.
        assert_eq!(letters(&rtu(&[0xF7, 3, 0x13, 0x89, 0, 0x0A])), b":F7031389000A60\r\n");
        assert_eq!(
            letters(&[0xF7, 3, 0x13, 0x89, 0, 0x0A, 0, 0]),
            b":F7031389000A61\r\n",
            "the simulator spoils frames"
        );
        assert_eq!(frame(b"F7031389000A60\r"), rtu(&[0xF7, 3, 0x13, 0x89, 0, 0x0A]));
        for wrong in [&b"F7031389000A61\r"[..], b"F7031389000A6\r", b"F7031389000A6G\r", b"\r", b"", b"00\r", b"01FF\r"]
        {
            assert_ne!(crc(&frame(wrong)), 0, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn frames_pass_both_ways_and_what_began_before_a_request_is_no_answer() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut ascii = Ascii::new(near);
        far.write_all(b"noise:0103020007").await.unwrap();
        let mut early = [0; 1];
        // The gate listens before it asks.
        tokio::select! {
            biased;
            _ = ascii.read(&mut early) => panic!("half a line is nothing"),
            () = std::future::ready(()) => {}
        }
        let request = rtu(&[1, 3, 0, 1, 0, 1]);
        ascii.write_all(&request).await.unwrap();
        let mut heard = [0; 17];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b":010300010001FA\r\n");
        far.write_all(b"F3\r\n:0103020").await.unwrap();
        far.write_all(b"008F2\r\n").await.unwrap();
        let mut answer = [0; 7];
        ascii.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, *rtu(&[1, 3, 2, 0, 8]));
    }
}
