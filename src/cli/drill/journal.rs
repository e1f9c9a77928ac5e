//! What a drill must not forget when the plug is pulled: which numbers were acknowledged, and which came back.
//!
//! Promises: a line that was synced is there after a power cut; a torn or overwritten end is cut off, not believed. What
//! came back is synced before the cloud hears that it was taken.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longer files were not written by us.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Numbers of one drill.
pub(super) const NUMBERS_MAX: u64 = 1_000_000;

/// What is pulled in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Step {
    /// Nothing.
    Well,
    /// The line to the cloud.
    Cable,
    /// The power of the gateway.
    Plug,
}

/// What stays the same over a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Tells its messages from those of another drill.
    pub drill: String,
    /// The uplink.
    pub uplink: String,
    /// Local topic.
    pub topic: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Header(Header),
    Step(Step, u64),
    Sent(u64, u32),
    Acknowledged(u64),
    Received(u64, Option<String>),
    /// The step is over: seconds from its last number to the last that came.
    Done(Step, Option<f64>),
    End,
}

/// What an earlier process has written.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub header: Option<Header>,
    /// Steps that were begun, and their first numbers.
    pub steps: Vec<(Step, u64)>,
    pub done: BTreeMap<Step, Option<f64>>,
    /// By number: how often it was sent, and whether it was acknowledged.
    pub numbers: Vec<(u32, bool)>,
    pub received: Vec<(u64, Option<String>)>,
    pub is_over: bool,
}

impl Past {
    fn entry(&mut self, number: u64) -> Option<&mut (u32, bool)> {
        let place = usize::try_from(number).ok().filter(|_| number < NUMBERS_MAX)?;
        if self.numbers.len() <= place {
            self.numbers.resize(place + 1, (0, false));
        }
        self.numbers.get_mut(place)
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Header(header) => self.header = Some(header),
            Line::Step(step, first) => self.steps.push((step, first)),
            Line::Sent(number, sends) => {
                if let Some(entry) = self.entry(number) {
                    entry.0 = sends;
                }
            }
            Line::Acknowledged(number) => {
                if let Some(entry) = self.entry(number) {
                    entry.1 = true;
                }
            }
            Line::Received(number, id) => self.received.push((number, id)),
            Line::Done(step, seconds) => drop(self.done.insert(step, seconds)),
            Line::End => self.is_over = true,
        }
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// Written, not yet handed to the system.
    pending: Vec<u8>,
}

impl Journal {
    /// Reads what is there and goes on behind its last whole line.
    pub fn open(path: &Path) -> io::Result<(Journal, Past)> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut text = Vec::new();
        (&mut file).take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        let (past, whole) = parse(&text);
        file.set_len(whole)?;
        file.seek(SeekFrom::Start(whole))?;
        file.sync_all()?;
        let dir =
            path.parent().filter(|dir| !dir.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_owned);
        File::open(dir)?.sync_all()?;
        Ok((Journal { file, pending: Vec::new() }, past))
    }

    /// Forgets all of it.
    pub fn begin(&mut self, header: &Header) -> io::Result<()> {
        self.pending.clear();
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.write(&Line::Header(header.clone()));
        self.sync()
    }

    pub fn step(&mut self, step: Step, first: u64) -> io::Result<()> {
        self.write(&Line::Step(step, first));
        self.sync()
    }

    pub fn sent(&mut self, number: u64, sends: u32) {
        self.write(&Line::Sent(number, sends));
    }

    pub fn acknowledged(&mut self, number: u64) {
        self.write(&Line::Acknowledged(number));
    }

    pub fn received(&mut self, number: u64, id: Option<&str>) {
        self.write(&Line::Received(number, id.map(str::to_owned)));
    }

    pub fn done(&mut self, step: Step, seconds: Option<f64>) -> io::Result<()> {
        self.write(&Line::Done(step, seconds));
        self.sync()
    }

    pub fn end(&mut self) -> io::Result<()> {
        self.write(&Line::End);
        self.sync()
    }

    fn write(&mut self, line: &Line) {
        // Texts and numbers only: there is nothing in it that cannot be written.
        let json = serde_json::to_string(line).unwrap_or_default();
        self.pending.extend(format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())).bytes());
    }

    /// Makes all that was written durable.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.pending)?;
        self.pending.clear();
        self.file.sync_data()
    }
}

/// Reads whole lines with a right checksum; the first that is not one ends it. Also says where they end.
fn parse(text: &[u8]) -> (Past, u64) {
    let mut past = Past::default();
    let mut whole = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let Some(read) = line.strip_suffix(b"\n").and_then(parse_line) else { break };
        past.take(read);
        whole += line.len() as u64;
    }
    (past, whole)
}

fn parse_line(line: &[u8]) -> Option<Line> {
    let (sum, json) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    (u32::from_str_radix(sum, 16).ok()? == crc32c::crc32c(json.as_bytes())).then_some(())?;
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_is_cut_anywhere_reads_back_to_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drill");
        let header = Header {
            drill: "d1".to_owned(),
            uplink: "cloud".to_owned(),
            topic: "plant/d".to_owned(),
            steps: vec![Step::Well, Step::Plug],
        };
        let (mut journal, past) = Journal::open(&path).unwrap();
        assert!(past.header.is_none());
        journal.begin(&header).unwrap();
        journal.step(Step::Well, 0).unwrap();
        for number in 0..20 {
            journal.sent(number, 1);
            journal.acknowledged(number);
            journal.received(number, Some("g.0.1.2"));
        }
        journal.done(Step::Well, Some(0.5)).unwrap();
        journal.end().unwrap();
        let text = std::fs::read(&path).unwrap();
        let mut numbers = 0;
        for cut in 0..=text.len() {
            let (past, whole) = parse(&text[..cut]);
            let acknowledged = past.numbers.iter().filter(|(_, acknowledged)| *acknowledged).count();
            assert!(acknowledged >= numbers && whole <= cut as u64);
            assert!(past.received.len() <= acknowledged);
            assert_eq!(past.is_over, cut == text.len());
            numbers = acknowledged;
        }
        assert_eq!(numbers, 20);
        // As a file system leaves the end of a file that was not synced.
        let mut torn = text.clone();
        torn.extend([0; 100]);
        std::fs::write(&path, &torn).unwrap();
        let (_journal, past) = Journal::open(&path).unwrap();
        assert_eq!((past.header, past.steps, past.numbers.len()), (Some(header), vec![(Step::Well, 0)], 20));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), text.len() as u64);
    }
}
