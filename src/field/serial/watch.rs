//! A port that is listened to by a person: what comes in as it comes, and the frames that are cut out of it.
//!
//! Promises: holds the port like the gateway does, and gives back each byte once; sends only what it is told to.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};
use tokio_serial::SerialStream;

use crate::config::{FrameConfig, PortConfig};
use crate::field::port::{self, PortError};

use super::frame::{Cut, Framer};

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Bytes, and what they complete.
    Bytes(Vec<u8>, Vec<Cut>),
    /// A silence, and what it completes.
    Silence(Vec<Cut>),
    /// Nothing until the time was over.
    Nothing,
}

/// An open port with a framer.
pub struct Listener {
    stream: SerialStream,
    framer: Framer,
    heard_at: Instant,
}

impl Listener {
    /// Opens the port. What comes first may be the rest of a frame.
    ///
    /// # Errors
    /// The port cannot be used.
    pub fn open(config: &PortConfig, frame: FrameConfig) -> Result<Listener, PortError> {
        let stream = port::open(config)?;
        let mut framer = Framer::new(frame);
        framer.reset(true);
        Ok(Listener { stream, framer, heard_at: Instant::now() })
    }

    /// What is heard next, until `until` at the latest. Dropped in the middle it has taken nothing.
    ///
    /// # Errors
    /// The port is gone.
    pub async fn next(&mut self, until: Instant) -> io::Result<Heard> {
        let mut bytes = [0; 1024];
        let silence = self.framer.patience().map(|patience| self.heard_at + patience);
        let wake = silence.map_or(until, |silence| silence.min(until));
        match timeout_at(wake, self.stream.read(&mut bytes)).await {
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(count)) => {
                self.heard_at = Instant::now();
                let bytes = bytes.get(..count).unwrap_or_default().to_vec();
                let cuts = self.framer.push(&bytes);
                Ok(Heard::Bytes(bytes, cuts))
            }
            Ok(Err(error)) => Err(error),
            Err(_) if silence.is_some_and(|silence| silence <= until) => Ok(Heard::Silence(self.framer.silence())),
            Err(_) => Ok(Heard::Nothing),
        }
    }

    /// Sends bytes. What the device said before is no part of an answer.
    ///
    /// # Errors
    /// The port is gone, or the line is held by the other side.
    pub async fn send(&mut self, bytes: &[u8], until: Instant) -> io::Result<()> {
        self.framer.reset(false);
        match timeout_at(until, self.stream.write_all(bytes)).await {
            Ok(written) => written,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the other side holds the line")),
        }
    }
}
