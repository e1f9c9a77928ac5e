//! A store that comes out of a backup: what of it must not go on where it was.
//!
//! Promises: all that waited in it waits again, under the same ids; no id is given again, since each start draws its own
//! bits (identity.rs), and no sequence either, where the directory says how far its numbers were; no packet id of the
//! backup's day is used as if its peer had not gone on: a cloud or a client would take a new message for an old one.

use std::fs;
use std::io;
use std::path::Path;

use thiserror::Error;

use super::WRITES;
use super::identity::{Kept, StartFile};
use super::store::{DATABASE, Store};

/// Why a store out of a backup cannot be used.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// It does not open, or cannot be written.
    #[error("the store of the backup cannot be opened")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The file that keeps the numbers cannot be written.
    #[error("cannot write in {dir}")]
    Directory {
        /// The directory.
        dir: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Makes the store in `dir` ready for a start; `before` is the state directory that it is to lie in, which may have had
/// another one. `when`: the time of the backup, for a person.
pub fn prepare(dir: &Path, before: &Path, when: &str) -> Result<(), RestoreError> {
    let store = |error| RestoreError::Store(Box::new(error));
    let mut open = Store::open(&dir.join(DATABASE)).map_err(|error| RestoreError::Store(Box::new(error)))?;
    let last = open.last_sequence().map_err(store)?;
    open.forget_peers(WRITES).map_err(store)?;
    open.write().map_err(store)?;
    open.set_meta("stopped", 1).map_err(store)?;
    // Rows that nobody wants may be there, as after a crash.
    open.set_meta("swept", 0).map_err(store)?;
    open.set_note("stop", &format!("with a backup of {when}, which was restored")).map_err(store)?;
    open.commit().map_err(store)?;
    open.close().map_err(store)?;
    let (backed, known) = (StartFile::new(dir).read().unwrap_or_default(), StartFile::new(before).read());
    let known = known.unwrap_or_default();
    let kept = Kept {
        start: backed.start.max(known.start),
        // Of which start the random bits are is not asked: the log, which they tell apart, is empty.
        store: 0,
        sequence: backed.sequence.max(known.sequence).max(last),
        settled: backed.settled,
        waiting: None,
    };
    let failed = |source| RestoreError::Directory { dir: dir.display().to_string(), source };
    StartFile::new(dir).write(&kept).map_err(failed)?;
    fs::File::open(dir.join(DATABASE)).and_then(|file| file.sync_all()).map_err(failed)
}
