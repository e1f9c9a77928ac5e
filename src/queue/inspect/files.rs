//! The store of a gateway that does not run, for whoever only looks.
//!
//! Promises: never opens the files of a live gateway (DESIGN.md 6.1: held → control socket, free → files), and changes
//! nothing: no start is counted, no table is added, nothing is moved aside. While it is open no gateway starts on it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use thiserror::Error;

use super::{Answer, Question, SessionsLine, StoreStats, StreamLine, View, name_largest};
use crate::clock::Clock;
use crate::queue::boots::Boots;
use crate::queue::row::{Starts, Words};
use crate::queue::spans::Span;
use crate::queue::store::{DATABASE, PAGE_BYTES, Store, StoreError};
use crate::queue::{opening, salvage};

/// Why the files cannot be looked at.
#[derive(Debug, Error)]
pub enum LookError {
    /// A gateway has them: ask it.
    #[error("a gateway uses the state directory {}", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no store, or it is another user's.
    #[error("cannot read the store in {}", dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A start would move it aside.
    #[error("the store in {} is damaged: {reason}", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is there, whole as far as can be seen, and cannot be read.
    #[error("cannot read the store in {}", dir.display())]
    Store {
        /// The directory.
        dir: PathBuf,
        /// What SQLite said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The files, taken and open.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    boot_id: String,
    store: Store,
    starts: Starts,
    words: Words,
    boots: Boots,
    streams: Vec<(i64, Arc<str>)>,
    last: u64,
    /// Held until it is closed.
    _lock: File,
}

impl Files {
    /// Takes the state directory and looks at the store in it as a start would, without doing anything about it.
    pub fn open(dir: &Path, clock: &Clock) -> Result<Files, LookError> {
        let no_store = |source| LookError::NoStore { dir: dir.to_owned(), source };
        // Opened as it is: a file of ours would be in the gateway's way.
        let lock = File::open(dir.join("lock")).map_err(no_store)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LookError::InUse { dir: dir.to_owned() }),
            Err(errno) => return Err(no_store(errno.into())),
        }
        let fault = |error| match error {
            StoreError::Damaged(reason) => LookError::Damaged { dir: dir.to_owned(), reason },
            other => LookError::Store { dir: dir.to_owned(), source: Box::new(other) },
        };
        let Some(store) = opening::open_to_look(dir).map_err(fault)? else {
            return Err(no_store(io::ErrorKind::NotFound.into()));
        };
        let read = |error| fault(crate::queue::store::opening(error));
        let streams = store.streams().map_err(read)?.into_iter().map(|row| (row.id, row.name)).collect();
        Ok(Files {
            dir: dir.to_owned(),
            boot_id: clock.boot_id().to_owned(),
            starts: store.starts().map_err(read)?,
            words: store.words().map_err(read)?,
            boots: store.boots().map_err(read)?,
            last: store.last_sequence().map_err(read)?,
            streams,
            store,
            _lock: lock,
        })
    }

    /// Answers like the gateway.
    pub fn ask(&self, question: &Question) -> Result<Answer, LookError> {
        let answer = match question {
            Question::Stats => self.stats().map(|stats| Answer::Stats(Box::new(stats))),
            other => self.view().answer_to(other),
        };
        answer.map_err(|error| self.fault(error))
    }

    /// Lets SQLite look through the whole store: for a large one this takes minutes.
    pub fn look_through(&self) -> Result<Option<String>, LookError> {
        self.store.fault().map_err(|error| self.fault(error))
    }

    /// Bytes of the database file.
    pub fn bytes(&self) -> u64 {
        fs::metadata(self.dir.join(DATABASE)).map_or(0, |found| found.len())
    }

    fn fault(&self, error: rusqlite::Error) -> LookError {
        match crate::queue::store::opening(error) {
            StoreError::Damaged(reason) => LookError::Damaged { dir: self.dir.clone(), reason },
            other => LookError::Store { dir: self.dir.clone(), source: Box::new(other) },
        }
    }

    fn view(&self) -> View<'_> {
        View {
            store: &self.store,
            starts: &self.starts,
            words: &self.words,
            boots: &self.boots,
            boot_id: &self.boot_id,
            streams: self.streams.clone(),
            last: self.last,
        }
    }

    /// Counts from the spans, as a start does.
    fn stats(&self) -> rusqlite::Result<StoreStats> {
        let view = self.view();
        let mut waiting: BTreeMap<i64, u64> = BTreeMap::new();
        self.store.spans(|stream, span, _| {
            let count = waiting.entry(stream).or_default();
            *count = count.saturating_add(Span::new(span.first, span.last.min(self.last)).count());
        })?;
        let (again, kept) = (self.store.again_spans()?, self.store.kept_runs()?);
        let mut streams = BTreeMap::new();
        for (id, name) in &self.streams {
            let in_flight = self.store.in_flight(*id)?.iter().map(|entry| entry.rows.len() as u64).sum();
            let waiting = waiting.get(id).copied().unwrap_or(0);
            let again = again.iter().filter(|(stream, _)| stream == id).map(|(_, span)| span.count()).sum();
            let line = StreamLine { is_configured: None, waiting, in_flight, again, oldest: view.oldest(*id)? };
            streams.insert(name.to_string(), line);
        }
        let sessions = self.store.local_sessions()?;
        let mut by_number: BTreeMap<u64, u64> = BTreeMap::new();
        for lane in self.store.lanes()? {
            *by_number.entry(lane.key.session).or_default() += lane.count;
        }
        let count_of = |number: u64| by_number.get(&number).copied().unwrap_or(0);
        let mut clients: Vec<(String, u64)> =
            sessions.iter().map(|session| (session.client.to_string(), count_of(session.number))).collect();
        name_largest(&mut clients);
        Ok(StoreStats {
            messages: self.store.wanted_places(self.last)?,
            bytes: self.store.pages_used()? * PAGE_BYTES,
            kept: kept.iter().map(|run| run.span.count()).sum(),
            kept_bytes: kept.iter().map(|run| run.bytes).fold(0, u64::saturating_add),
            max_bytes: None,
            sequence_last: self.last,
            streams,
            sessions: SessionsLine {
                count: sessions.len() as u64,
                waiting: by_number.values().copied().fold(0, u64::saturating_add),
                clients,
            },
            retained: self.store.retained_total()?.0,
            dead_letters: self.store.dead_letter_total()?.0,
            losses: self.store.losses()?.into_iter().collect(),
            quarantines: quarantines(&self.dir),
        })
    }
}

/// The damaged stores beside a store, and whether they are still to be salvaged.
pub fn quarantines(dir: &Path) -> BTreeMap<String, bool> {
    let places = salvage::numbered(&dir.join(opening::QUARANTINE)).into_iter().map(|(_, place)| place);
    places.map(|place| (place.display().to_string(), salvage::is_wanting(&place))).collect()
}
