//! The ledger of a gateway that does not run, from its files.
//!
//! Promises: never opens the files of a live gateway (DESIGN.md 6.1: held → control socket, free → files); changes
//! nothing that the gateway would miss: what is counted again here is thrown away.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use thiserror::Error;

use super::{Days, Ledger, Page, PageAsk, Place, Report, page, recount};
use crate::clock::Clock;
use crate::queue::store::Store;

/// Why the files give no ledger.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A gateway has them: ask it.
    #[error("a gateway uses the state directory {}", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// There is none, or it is another user's.
    #[error("cannot read the store in {}", dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is there and cannot be read.
    #[error("cannot read the ledger at {}", path.display())]
    Store {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Reads the ledger of these days from the files in `dir`.
pub fn read(dir: &Path, days: Days, clock: &Clock) -> Result<Report, ReadError> {
    let no_store = |source| ReadError::NoStore { dir: dir.to_owned(), source };
    // Opened as it is: a file of ours would be in the gateway's way.
    let lock = File::open(dir.join("lock")).map_err(no_store)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(ReadError::InUse { dir: dir.to_owned() }),
        Err(errno) => return Err(no_store(errno.into())),
    }
    let path = dir.join("queue.db");
    if std::fs::metadata(&path).map_err(no_store)?.len() == 0 {
        return Err(no_store(io::Error::new(io::ErrorKind::UnexpectedEof, "queue.db is empty")));
    }
    let mut store =
        Store::open(&path).map_err(|error| ReadError::Store { path: path.clone(), source: Box::new(error) })?;
    whole(&mut store, days, clock).map_err(|error| ReadError::Store { path, source: Box::new(error) })
}

fn whole(store: &mut Store, days: Days, clock: &Clock) -> rusqlite::Result<Report> {
    let starts = store.starts()?;
    let last = store.last_sequence()?;
    let mut ledger = Ledger::open(store, clock.now())?;
    // Never committed: it goes with the connection.
    store.write()?;
    recount(&mut ledger, store, &starts, last)?;
    let alive = ledger.mark.alive;
    ledger.write(store, last, alive)?;
    let mut report = Report::default();
    let mut place = Some(Place::Begin);
    while let Some(begin) = place {
        let piece: Page = page(store, PageAsk { days, place: begin }, ledger.mark)?;
        place = piece.add_to(&mut report);
    }
    Ok(report)
}
