//! A recorded serial device, or a simulated scale: it answers `SI\r\n` like scales that speak MT-SICS, or speaks by itself.
//!
//! `S S     12.50 kg\r\n` when it stands still, `S D     12.50 kg\r\n` when it moves; `ES\r\n` to what it does not
//! know. The weight of the n-th line is (n mod 1000) / 100 − 1 kg, and every tenth line moves.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::script::Script;
use super::{Place, Seat, SimulateError, sit};
use crate::field::record::Recording;

/// What the scale knows.
const QUESTION: &[u8] = b"SI";
/// Longer questions are none.
const QUESTION_BYTES_MAX: usize = 64;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A pty or a port.
    pub place: Place,
    /// Speaks by itself this often; `None` = only when asked.
    pub every: Option<Duration>,
    /// `.` or `,`
    pub decimal: char,
}

impl Settings {
    /// A scale that answers when asked, with a decimal point.
    pub fn at(place: Place) -> Settings {
        Settings { place, every: None, decimal: '.' }
    }
}

/// A device on its line.
#[derive(Debug)]
pub struct Server {
    seat: Seat,
    manner: Manner,
}

#[derive(Debug)]
enum Manner {
    /// A scale that speaks by itself this often.
    Speaks(Duration, char),
    /// A scale that answers.
    Answers(char),
    /// What was recorded.
    Repeats(Script),
}

impl Server {
    /// Sits down on the line. `async` like its Modbus sister: a port is registered with the runtime.
    pub async fn bind(settings: Settings) -> Result<Server, SimulateError> {
        let manner = match settings.every {
            Some(every) => Manner::Speaks(every, settings.decimal),
            None => Manner::Answers(settings.decimal),
        };
        Ok(Server { seat: sit(&settings.place)?, manner })
    }

    /// The same for a device that was recorded.
    pub async fn bind_recorded(place: &Place, recording: &Recording) -> Result<Server, SimulateError> {
        Ok(Server { seat: sit(place)?, manner: Manner::Repeats(Script::new(recording)) })
    }

    /// Its device file.
    pub fn path(&self) -> PathBuf {
        self.seat.path.clone()
    }

    /// Answers or speaks until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SimulateError> {
        let place = self.seat.path.display().to_string();
        let worked = async {
            match self.manner {
                Manner::Speaks(every, decimal) => speak(self.seat, every, decimal).await,
                Manner::Answers(decimal) => answer(self.seat, decimal).await,
                Manner::Repeats(script) => repeat(self.seat, script).await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = worked => ended.map_err(|source| SimulateError::Line { place, source }),
        }
    }
}

/// The n-th line of a scale.
pub fn line(number: u64, decimal: char) -> String {
    let hundredths = i64::try_from(number % 1000).unwrap_or(0) - 100;
    let status = if number % 10 == 9 { 'D' } else { 'S' };
    let sign = if hundredths < 0 { "-" } else { "" };
    let mut weight = String::new();
    // Writing to a String cannot fail.
    write!(weight, "{sign}{:>5}{decimal}{:02}", hundredths.abs() / 100, hundredths.abs() % 100).unwrap_or_default();
    format!("S {status} {weight:>9} kg\r\n")
}

async fn speak(mut seat: Seat, every: Duration, decimal: char) -> std::io::Result<()> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut number = 0;
    loop {
        ticks.tick().await;
        seat.stream.write_all(line(number, decimal).as_bytes()).await?;
        number += 1;
    }
}

async fn answer(mut seat: Seat, decimal: char) -> std::io::Result<()> {
    let mut asked = Vec::new();
    let mut bytes = [0; 64];
    let mut number = 0;
    loop {
        let count = seat.stream.read(&mut bytes).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        for byte in bytes.iter().take(count) {
            asked.push(*byte);
            if asked.len() > QUESTION_BYTES_MAX {
                asked.clear();
            }
            if let Some(question) = asked.strip_suffix(b"\r\n") {
                let reply = if question == QUESTION { line(number, decimal) } else { "ES\r\n".to_owned() };
                number += u64::from(question == QUESTION);
                asked.clear();
                seat.stream.write_all(reply.as_bytes()).await?;
            }
        }
    }
}

/// Says again what was said, at its times.
async fn repeat(mut seat: Seat, mut script: Script) -> std::io::Result<()> {
    let mut bytes = [0; 64];
    let due = |pieces: &[(Duration, Vec<u8>)]| -> VecDeque<(Instant, Vec<u8>)> {
        let now = Instant::now();
        pieces.iter().map(|(after, bytes)| (now + *after, bytes.clone())).collect()
    };
    let mut waiting = due(script.prelude());
    loop {
        if waiting.is_empty() && script.is_never_asked() && !script.prelude().is_empty() {
            waiting = due(script.prelude());
        }
        let next = waiting.front().map(|(at, _)| *at);
        tokio::select! {
            // Without anything to say there is nothing to wait for but a question.
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                if let Some((_, piece)) = waiting.pop_front() {
                    seat.stream.write_all(&piece).await?;
                }
            }
            count = seat.stream.read(&mut bytes) => {
                let count = count?;
                if count == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                for byte in bytes.iter().take(count) {
                    if let Some(pieces) = script.hear(*byte) {
                        waiting.extend(due(pieces));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn lines_are_those_of_a_scale() {
        assert_eq!(line(0, '.'), "S S -    1.00 kg\r\n");
        assert_eq!(line(99, ','), "S D -    0,01 kg\r\n");
        assert_eq!(line(350, '.'), "S S      2.50 kg\r\n");
    }
}
