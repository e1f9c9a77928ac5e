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

use super::store::DATABASE;

/// What the uplink needs while it drains; the least that the ceilings leave it.
const HEADROOM_BYTES: u64 = 256 * 1024;

/// Held until SQLite has closed the file.
#[derive(Debug)]
pub(super) struct Headroom {
    database: Option<File>,
    /// Up to here the disk has given blocks.
    kept_to: u64,
}

impl Headroom {
    pub fn open(dir: &Path) -> Headroom {
        let database = File::options().write(true).open(dir.join(DATABASE)).ok();
        Headroom { database, kept_to: 0 }
    }

    /// Takes blocks for all `bytes` of the database, also those that are in the log only, and some more: then the log can
    /// be emptied into it whatever the disk says. A disk that has none, or cannot do it, does without.
    pub fn keep(&mut self, bytes: u64) {
        let Some(file) = &self.database else { return };
        if bytes.saturating_add(HEADROOM_BYTES / 2) <= self.kept_to {
            return;
        }
        let end = bytes.saturating_add(HEADROOM_BYTES);
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, end) {
            Ok(()) => self.kept_to = end,
            Err(error) => debug!(error:%; "The database has no room of its own behind its end"),
        }
    }
}

/// What the disk has given beyond the length of the database: it is not free any more, and is the store's to use.
pub(super) fn bytes(dir: &Path) -> u64 {
    fs::metadata(dir.join(DATABASE)).map_or(0, |found| (found.blocks() * 512).saturating_sub(found.len()))
}
