//! The mark by which a database says that it is nothing without its log, and which log that is.
//!
//! SQLite takes a log that is missing, empty, cut or another store's for one in which nothing more was said, and goes on
//! without what was acknowledged. So the database itself says, from before the first message until an orderly close:
//! there is a log, it is at least so long, and its salt has counted on from this one. The log gets its length and the
//! mark is in the database file before anything is acknowledged; both cost a few syncs at a start after an orderly stop
//! and none per commit.
//!
//! What it cannot show: a log that ends earlier than it did, at a whole commit, with zeros or an earlier round after
//! it. That is what it looked like before those commits were written.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::FallocateFlags;

use super::pages::{Pages, Value};
use super::remains;
use super::store::{LOG, LOG_BYTES, Store};

/// Its key in `meta`.
pub(super) const MARK: &str = "log";
/// So often a log begins anew at most between two orderly stops: some 16 TB.
const ROUNDS_MAX: u32 = 1 << 22;

/// Marks the database where it is not marked. After this the log may be needed.
pub(super) fn make(dir: &Path, store: &mut Store) -> rusqlite::Result<()> {
    if store.meta(MARK)?.is_some() {
        return Ok(());
    }
    // Without it all works as well, and some damages are not noticed.
    let Ok(Some(salt)) = lengthen(dir) else { return Ok(()) };
    store.write()?;
    store.set_meta(MARK, sealed(salt))?;
    store.commit()?;
    store.checkpoint()
}

/// Gives the log its length, durably. Says the salt in its head.
fn lengthen(dir: &Path) -> io::Result<Option<u32>> {
    let mut log = File::options().read(true).write(true).open(dir.join(LOG))?;
    let mut head = [0; 20];
    log.read_exact(&mut head)?;
    if log.metadata()?.len() < LOG_BYTES {
        // Blocks of its own, so that a disk that somebody else fills does not stop the drain; where it cannot give any, a
        // hole.
        if rustix::fs::fallocate(&log, FallocateFlags::empty(), 0, LOG_BYTES).is_err() {
            log.set_len(LOG_BYTES)?;
        }
        log.sync_all()?;
    }
    Ok(head.last_chunk().map(|salt| u32::from_be_bytes(*salt)))
}

/// With a sum, since it is read from a page that a power cut may have torn.
fn sealed(salt: u32) -> u64 {
    u64::from(crc32c::crc32c(&salt.to_le_bytes()) >> 1) << 32 | u64::from(salt)
}

/// What the database file says by itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Said {
    /// The salt from which the log counts on. `None`: it does without a log.
    pub salt: Option<u32>,
    /// It was closed in order, and nothing has reached it since.
    pub is_closed: bool,
}

pub(super) fn read(dir: &Path) -> Said {
    let database = Pages::open(dir, false);
    let Some(root) = remains::roots(&database).get("meta").copied() else { return Said::default() };
    let (mut sealed_salt, mut stopped) = (None, None);
    database.walk(root, |_, values| {
        let value = values.get(1).and_then(Value::unsigned);
        match values.first().and_then(Value::text) {
            Some(MARK) => sealed_salt = value,
            Some("stopped") => stopped = value,
            _ => {}
        }
    });
    let salt = sealed_salt.and_then(|value| {
        let salt = u32::try_from(value & u64::from(u32::MAX)).ok()?;
        (sealed(salt) == value && stopped == Some(0)).then_some(salt)
    });
    Said { salt, is_closed: stopped == Some(1) && sealed_salt.is_none() }
}

/// Whether the log is the one that was emptied into the database when it was closed: the power went, or the disk refused,
/// before it was cut. Then it says by itself what the database says.
pub(super) fn is_of_closing(dir: &Path, with_log: &Pages) -> bool {
    let rows = |pages: &Pages, root: u32| {
        let mut rows = Vec::new();
        pages.walk(root, |_, values| rows.push(values.to_vec())).then_some(rows)
    };
    let database = Pages::open(dir, false);
    let Some(root) = remains::roots(&database).get("meta").copied() else { return false };
    let said = rows(&database, root);
    with_log.is_in_log(root) && said.is_some() && said == rows(with_log, root)
}

/// Whether a log with this salt in its head comes from the one with that.
pub(super) fn is_own(salt: u32, marked: u32) -> bool {
    salt.wrapping_sub(marked) < ROUNDS_MAX
}
