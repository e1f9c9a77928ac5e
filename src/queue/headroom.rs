//! Room behind the end of the database that is the store's own: blocks that the disk has given, and no length. With it,
//! and with a log whose blocks are its own (mark.rs), a disk that somebody else has filled does not stop the drain.
//!
//! The file is opened once beside SQLite and stays open until SQLite has closed it: to close it before would give up the
//! locks of the whole process.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use log::debug;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::store::{DATABASE, LOG};

/// What the uplink needs while it drains; the least that the ceilings leave it.
const HEADROOM_BYTES: u64 = 256 * 1024;

/// Held until SQLite has closed the file.
#[derive(Debug)]
pub(super) struct Headroom {
    /// `None`: it does without.
    database: Option<File>,
}

impl Headroom {
    pub fn open(dir: &Path) -> Headroom {
        Headroom { database: File::options().write(true).open(dir.join(DATABASE)).ok() }
    }

    /// Takes blocks for all `bytes` of the database, also those that are in the log only, and some more: then the log can
    /// be emptied into it whatever the disk says. To be asked for before each commit and after it: when SQLite empties the
    /// log, it cuts the file to its length and gives the rest back. False: the disk has none. One that cannot do it does
    /// without.
    pub fn keep(&mut self, bytes: u64) -> bool {
        let Some(file) = &self.database else { return true };
        let has = |more: u64| file.metadata().is_ok_and(|found| bytes.saturating_add(more) <= found.blocks() * 512);
        if has(HEADROOM_BYTES / 2) {
            return true;
        }
        // Some of it is better than none.
        for more in [HEADROOM_BYTES, HEADROOM_BYTES / 2, HEADROOM_BYTES / 4, HEADROOM_BYTES / 8] {
            match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes.saturating_add(more)) {
                Ok(()) => break,
                Err(Errno::NOSPC | Errno::DQUOT) => {}
                Err(error) => {
                    debug!(error:%; "The database can have no room of its own behind its end");
                    self.database = None;
                    return true;
                }
            }
        }
        has(HEADROOM_BYTES / 2)
    }
}

/// What the database and its log have of the disk.
pub(super) fn taken(dir: &Path) -> u64 {
    blocks(&dir.join(DATABASE)).saturating_add(blocks(&dir.join(LOG)))
}

/// What the database has blocks for, but for what the uplink needs.
pub(super) fn owned(dir: &Path) -> u64 {
    blocks(&dir.join(DATABASE)).saturating_sub(HEADROOM_BYTES)
}

fn blocks(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |found| found.blocks() * 512)
}
