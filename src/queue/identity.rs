//! What must outlive the database: the number of the start, the high-water of sequences, and how much waited.
//!
//! The first two must not repeat. They are kept twice, in the database and in the file `start` beside it (written,
//! synced, renamed, directory synced), and the greater of the two holds. So a quarantined database does not set them
//! back.
//!
//! `settled` says up to where nothing was wanted any more when the file was written: rows that are salvaged from a
//! store whose spans are lost are not sent again below it.
//!
//! How much waited in each stream is written at an orderly stop, and taken out again by the next start before anything
//! changes: the file says the exact number or none, never one of yesterday. A store that is found damaged after a
//! crash took an unknown number with it, and that is what is said of it.
//!
//! The 48 random bits of a `MessageId` are drawn anew at each start. A card that is cloned has the same database *and*
//! the same file as its twin: nothing in them can tell the two apart, and both would count on from the same start.
//! Bits that were drawn once would then repeat ids; bits drawn at each start do not. `start` still says how often.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;

/// How many sequences are reserved at a time: as many may be skipped by a crash, and so often the file is written.
pub(super) const SEQUENCE_BLOCK: u64 = 1 << 18;

/// Longer files were not written by us.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// All sessions of local clients, as if they were one stream. No uplink can have this name.
pub(super) const SESSIONS: &str = "$sessions";

/// Messages that wait, by the name of their stream. One that is not there has none.
pub(super) type Waiting = BTreeMap<Arc<str>, u64>;

/// What the file keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Kept {
    /// The number of the last start.
    pub start: u32,
    /// Its random bits; 0 = not known. A database that says something else of the same start is another one's.
    pub store: u64,
    /// No sequence above this one was used.
    pub sequence: u64,
    /// No stream wants anything up to here any more: what a damaged store still has of it was delivered or declared.
    pub settled: u64,
    /// What waited at the last stop; `None` while the store is open and after a crash.
    pub waiting: Option<Waiting>,
}

/// The file `start` in the state directory.
#[derive(Debug, Clone)]
pub(super) struct StartFile {
    dir: PathBuf,
}

impl StartFile {
    pub fn new(dir: &Path) -> StartFile {
        StartFile { dir: dir.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("start")
    }

    /// Whether there is one, readable or not: then there was a store.
    pub fn exists(&self) -> bool {
        fs::symlink_metadata(self.path()).is_ok()
    }

    /// As `read`, and says so where there is one that says nothing.
    pub fn read_or_warn(&self) -> Option<Kept> {
        let kept = self.read();
        if kept.is_none() && self.exists() {
            warn!(path:% = self.path().display(); "The start file is damaged; what the store says is taken");
        }
        kept
    }

    /// What it says; `None` when it is not there or damaged.
    pub fn read(&self) -> Option<Kept> {
        let metadata = fs::metadata(self.path()).ok()?;
        if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
            return None;
        }
        parse(&fs::read_to_string(self.path()).ok()?)
    }

    /// Replaces it: after this returned, a power cut leaves the new one; before, the old or the new one, whole.
    pub fn write(&self, kept: &Kept) -> io::Result<()> {
        let path = self.path();
        if path.is_dir() {
            // A rename over a directory fails for ever; what lies there is not ours.
            fs::remove_dir_all(&path)?;
        }
        let new = self.dir.join("start.new");
        let mut file = File::create(&new)?;
        file.write_all(print(kept).as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_dir(&self.dir)
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn print(kept: &Kept) -> String {
    let mut body = format!("tidegate start 1\nstart {}\nsequence {}\n", kept.start, kept.sequence);
    if kept.store > 0 {
        body.push_str(&format!("store {}\n", kept.store));
    }
    if kept.settled > 0 {
        body.push_str(&format!("settled {}\n", kept.settled));
    }
    if let Some(waiting) = &kept.waiting {
        body.push_str(&format!("streams {}\n", waiting.keys().filter(|name| &***name != SESSIONS).count()));
        for (name, count) in waiting.iter().filter(|(name, _)| &***name != SESSIONS) {
            // A name as JSON: it has no line end, whatever is in it.
            body.push_str(&format!("waiting {count} {}\n", serde_json::Value::from(&**name)));
        }
    }
    if let Some(copies) = kept.waiting.as_ref().and_then(|waiting| waiting.get(SESSIONS)) {
        body.push_str(&format!("sessions {copies}\n"));
    }
    format!("{body}sum {:08x}\n", crc32c::crc32c(body.as_bytes()))
}

fn parse(text: &str) -> Option<Kept> {
    let mut lines = text.lines().peekable();
    let mut next = |prefix: &str| lines.next_if(|line| line.starts_with(prefix))?.strip_prefix(prefix);
    next("tidegate start 1")?;
    let (start, sequence) = (next("start ")?.parse().ok()?, next("sequence ")?.parse().ok()?);
    let store = next("store ").map_or(Some(0), |text| text.parse().ok())?;
    let settled = next("settled ").map_or(Some(0), |text| text.parse().ok())?;
    let waiting = match next("streams ") {
        None => None,
        Some(_) => {
            let mut waiting = Waiting::new();
            while let Some(line) = next("waiting ") {
                let (count, name) = line.split_once(' ')?;
                let name: String = serde_json::from_str(name).ok()?;
                waiting.insert(Arc::from(name), count.parse().ok()?);
            }
            if let Some(copies) = next("sessions ") {
                waiting.insert(Arc::from(SESSIONS), copies.parse().ok()?);
            }
            Some(waiting)
        }
    };
    next("sum ")?;
    let kept = Kept { start, store, sequence, settled, waiting };
    // Printing is the only way to write one, so reading is printing and comparing.
    (print(&kept) == text).then_some(kept)
}

/// 48 bits that nobody else has drawn.
pub(super) fn draw_store() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_le_bytes(bytes) & ((1 << 48) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_file_reads_back_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = StartFile::new(dir.path());
        assert_eq!((file.exists(), file.read()), (false, None));
        let waiting = Waiting::from([(Arc::from("cloud"), 12), (Arc::from("a \"name\"\nof two lines"), 0)]);
        let with_sessions = Waiting::from([(Arc::from("cloud"), 12), (Arc::from(SESSIONS), 5)]);
        for waiting in [None, Some(Waiting::new()), Some(with_sessions), Some(waiting)] {
            let kept = Kept { start: 7, store: 1 << 47, sequence: 262_144, settled: 9, waiting };
            file.write(&kept).unwrap();
            assert_eq!(file.read(), Some(kept));
        }
        let good = fs::read(file.path()).unwrap();
        for cut in 0..good.len() {
            fs::write(file.path(), &good[..cut]).unwrap();
            assert_eq!(file.read(), None, "cut at {cut}");
        }
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            fs::write(file.path(), &bad).unwrap();
            assert_eq!(file.read(), None, "flipped at {place}");
        }
    }

    #[test]
    fn a_directory_in_its_place_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = StartFile::new(dir.path());
        fs::create_dir(file.path()).unwrap();
        assert_eq!((file.exists(), file.read()), (true, None));
        let kept = Kept { start: 1, store: 0, sequence: 1, settled: 0, waiting: None };
        file.write(&kept).unwrap();
        assert_eq!(file.read(), Some(kept));
    }
}
