//! What went over a line, in a text that a person can read and a simulated device can serve again.
//!
//! ```text
//! # tidegate record 1 rtu
//! 0.000 open
//! 0.012 > 01 03 00 64 00 02 85 D4
//! 0.041 < 01 03 04 41 AC 00 00 EF C3
//! ```
//!
//! Seconds since the recording began, the direction as the gateway sees it, the bytes. Promises: a recording ends at its
//! bound and says so; a disk that fails ends the recording and nothing else; whatever is in a file that is read, it is a
//! recording or an error with its line.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

/// The longest recording, and the longest file that is read as one.
pub const RECORD_BYTES_MAX: u64 = 64 << 20;
/// Pieces that wait for the disk.
const LINES_WAITING: usize = 1024;
const HEAD: &str = "# tidegate record 1 ";

/// How the frames on a line look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Modbus TCP.
    Tcp,
    /// Modbus RTU, on a serial line or over TCP.
    Rtu,
    /// A serial device's own.
    Serial,
}

impl Wire {
    fn word(self) -> &'static str {
        match self {
            Wire::Tcp => "tcp",
            Wire::Rtu => "rtu",
            Wire::Serial => "serial",
        }
    }
}

/// Takes down what goes over a line. Clones are one; with the last one the file is whole.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    began: Instant,
    /// A disk that stalls must not hold up the line: the file is written by a thread of its own.
    lines: Option<SyncSender<String>>,
    /// Lines that had no room to wait in.
    missing: AtomicU64,
    writer: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Begins a recording in a new file, or in place of an old one.
    pub fn create(path: &Path, wire: Wire) -> io::Result<Recorder> {
        let mut file = File::create(path)?;
        file.write_all(format!("{HEAD}{}\n", wire.word()).as_bytes())?;
        let (lines, waiting) = sync_channel(LINES_WAITING);
        let writer = std::thread::Builder::new().name("record".to_owned()).spawn(move || write(file, &waiting))?;
        let (lines, writer) = (Some(lines), Some(writer));
        Ok(Recorder(Arc::new(Taken { began: Instant::now(), lines, missing: AtomicU64::new(0), writer })))
    }

    /// The line was opened.
    pub fn opened(&self) {
        self.0.line("open", &[]);
    }

    /// These bytes were sent.
    pub fn sent(&self, bytes: &[u8]) {
        self.0.line(">", bytes);
    }

    /// These bytes were heard.
    pub fn heard(&self, bytes: &[u8]) {
        self.0.line("<", bytes);
    }
}

impl Taken {
    fn line(&self, word: &str, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!(" {byte:02X}")).collect();
        self.hand_on(format!("{:.3} {word}{hex}\n", self.began.elapsed().as_secs_f64()));
    }

    fn hand_on(&self, line: String) {
        let Some(lines) = &self.lines else { return };
        let missing = self.missing.swap(0, Ordering::Relaxed);
        let line = if missing == 0 {
            line
        } else {
            format!("# {missing} pieces are missing here: the disk was too slow\n{line}")
        };
        if let Err(TrySendError::Full(_)) = lines.try_send(line) {
            self.missing.fetch_add(missing + 1, Ordering::Relaxed);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            log::warn!("The writer of a recording failed");
        }
    }
}

fn write(mut file: File, waiting: &Receiver<String>) {
    let mut written = 0_u64;
    while let Ok(line) = waiting.recv() {
        written = written.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        let fits = written <= RECORD_BYTES_MAX;
        let text = if fits { line.as_str() } else { "# the recording ends here: it has reached its longest size\n" };
        let ended = file.write_all(text.as_bytes());
        if let Err(error) = &ended {
            log::warn!(error:%; "The recording of a line ends: it cannot be written");
        }
        if !fits || ended.is_err() {
            return;
        }
    }
}

/// The file of a line: its name without what does not belong into one.
pub fn file_name(line: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    format!("{}.rec", line.chars().map(kept).collect::<String>())
}

/// Whether a text says that it is a recording.
pub fn is_one(text: &str) -> bool {
    text.starts_with(HEAD)
}

/// What happened on a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It was opened.
    Opened,
    /// The gateway sent these bytes.
    Sent(Vec<u8>),
    /// The gateway heard these bytes.
    Heard(Vec<u8>),
}

/// A recording that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// How its frames look.
    pub wire: Wire,
    /// What happened, and when since its beginning.
    pub events: Vec<(Duration, Event)>,
}

/// Why a text is no recording.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RecordingError {
    /// Its first line.
    #[error("this is no recording: its first line is not `{HEAD}tcp`, `{HEAD}rtu` or `{HEAD}serial`")]
    Head,
    /// One of the others.
    #[error("line {number} of the recording is not understood")]
    Line {
        /// Counted from 1.
        number: usize,
    },
}

/// Reads a recording.
pub fn parse(text: &str) -> Result<Recording, RecordingError> {
    let mut lines = text.lines();
    let wire = match lines.next().and_then(|line| line.strip_prefix(HEAD)).map(str::trim) {
        Some("tcp") => Wire::Tcp,
        Some("rtu") => Wire::Rtu,
        Some("serial") => Wire::Serial,
        _ => return Err(RecordingError::Head),
    };
    let mut events = Vec::new();
    for (place, line) in lines.enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        events.push(event(line).ok_or(RecordingError::Line { number: place + 2 })?);
    }
    Ok(Recording { wire, events })
}

fn event(line: &str) -> Option<(Duration, Event)> {
    let mut words = line.split_ascii_whitespace();
    let at = Duration::try_from_secs_f64(words.next()?.parse().ok()?).ok()?;
    let word = words.next()?;
    let bytes: Option<Vec<u8>> = words.map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let event = match (word, bytes?) {
        ("open", none) if none.is_empty() => Event::Opened,
        (">", bytes) if !bytes.is_empty() => Event::Sent(bytes),
        ("<", bytes) if !bytes.is_empty() => Event::Heard(bytes),
        _ => return None,
    };
    Some((at, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_recorded_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("line.rec");
        let recorder = Recorder::create(&path, Wire::Rtu).unwrap();
        recorder.opened();
        recorder.sent(&[1, 3, 0, 0x64]);
        recorder.heard(&[0xFF, 0]);
        drop(recorder);
        let recording = parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let events: Vec<Event> = recording.events.into_iter().map(|(_, event)| event).collect();
        assert_eq!(recording.wire, Wire::Rtu);
        assert_eq!(events, [Event::Opened, Event::Sent(vec![1, 3, 0, 0x64]), Event::Heard(vec![0xFF, 0])]);
    }

    #[test]
    fn what_is_no_recording_is_refused_with_its_line() {
        assert_eq!(parse(""), Err(RecordingError::Head));
        assert_eq!(parse("# tidegate record 1 ascii\n"), Err(RecordingError::Head));
        for wrong in ["x > 01", "0.1 >", "0.1 > 1G", "0.1 > 100", "0.1 ! 01", "-1 > 01", "1e99 > 01", "nan > 01"] {
            let text = format!("# tidegate record 1 tcp\n\n{wrong}\n");
            assert_eq!(parse(&text), Err(RecordingError::Line { number: 3 }), "{wrong}");
        }
    }
}
