//! How a store becomes books: opened and read, or moved aside and begun anew. Never refuses because of what is in it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::{error, info, warn};
use rustix::fs::{Advice, FlockOperation};

use super::books::{Books, Gap, Identity, Stream, gap_topic};
use super::boots;
use super::commands::Commands;
use super::headroom::{self, Headroom};
use super::identity::{self, Kept, SEQUENCE_BLOCK, SESSIONS, StartFile, Waiting};
use super::ledger::Ledger;
use super::quarantine::{self, Quarantine};
use super::remains::Remains;
use super::retention::{self, Ceilings, Disk};
use super::routes::Routes;
use super::row::{Start, Starts};
use super::rules::{self, RuleList};
use super::salvage::{self, Ticket};
use super::scrub::Scrub;
use super::sessions::{Hall, Sessions};
use super::spans::{OPEN, Ranges, Span};
use super::spare::Held;
use super::store::{DATABASE, GapRow, LOG, PAGE_BYTES, Store, StoreError, miscounted, opening};
use super::{OpenError, QueueSettings, StreamSpec};
use super::{files, mark, newer};
use crate::config::{ForwardRule, TopicTemplate};
use crate::health::LossReason;
use crate::message::{Filter, Qos};

pub(super) const QUARANTINE: &str = "quarantine";
/// The key in `meta` of the bytes that intake might use when the disk was not crowded.
const HAD: &str = "had";
/// Why the program stopped, where nothing else is known.
const STOPPED: &str = "in order, as it was told to";

/// Makes the state directory where it is missing, and takes it for this process.
pub(super) fn take_dir(dir: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Directory { dir: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let path = dir.join("lock");
    let lock = match File::options().create(true).write(true).truncate(false).open(&path) {
        // A disk that is full or read-only may be mended while we run: one that is there can be locked all the same.
        Err(error) if matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull) => {
            File::open(&path).map_err(|_not_there| error)
        }
        opened => opened,
    };
    let lock = lock.map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            warn_of_memory(dir);
            Ok(lock)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { dir: dir.to_owned() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// A sync there is no promise. The gateway runs all the same: somebody may be trying it out.
fn warn_of_memory(dir: &Path) {
    /// From linux/magic.h: tmpfs and ramfs.
    const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    let is_in_memory = rustix::fs::statfs(dir)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| IN_MEMORY.contains(&kind)));
    if is_in_memory {
        warn!(
            dir:% = dir.display(), help = "set [gateway] state_dir to a directory on a disk";
            "The state directory is in memory: what waits for the cloud is lost with the power"
        );
    }
}

/// What an opening goes on from, and what it leaves to the next one when it fails.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// That of this process, once it has one.
    pub identity: Option<Identity>,
    /// The store was open in this process before.
    pub was_open: bool,
    /// How much waited in it; `None` = not known.
    pub waiting: Option<Waiting>,
    /// Up to where nothing was wanted in it any more.
    pub settled: u64,
    /// What was in memory of the numbers of devices and of losses.
    pub devices: BTreeMap<Arc<str>, u64>,
    pub losses: BTreeMap<LossReason, u64>,
    /// The log beside it is not its own.
    pub is_log_foreign: bool,
    /// Its end is lost.
    pub is_log_wanting: bool,
    /// Why it has to be moved aside.
    pub damage: Option<String>,
    /// It was moved aside: that there is none is no surprise.
    pub is_moved: bool,
    /// It was put aside for a newer program.
    pub is_put_aside: bool,
    /// What the file `start` said before this start.
    pub kept: Option<Kept>,
    /// Readings that were in memory only.
    pub held: Option<Held>,
    /// What both ends know of the sessions of local clients.
    pub hall: Hall,
}

/// Opens the store in the state directory, which this process has taken.
pub(super) fn open_books(settings: &QueueSettings, past: &mut Past) -> Result<Books, OpenError> {
    if past.identity.is_none() && past.kept.is_none() {
        // Before anything is written: a start takes the numbers of what waited out of it.
        let kept = StartFile::new(&settings.dir).read_or_warn().unwrap_or_default();
        past.waiting.clone_from(&kept.waiting);
        past.settled = kept.settled;
        past.kept = Some(kept);
        match newer::take_back(&settings.dir, DATABASE, || move_aside(settings, None)) {
            Ok(false) => {}
            // What was counted at the stop waited in the other store.
            Ok(true) => past.waiting = None,
            Err(error) => error!(error:%; "The store of a newer program cannot be taken back"),
        }
    }
    newer::show(settings);
    if past.damage.is_none() {
        match attach(settings, past) {
            Ok(books) => return Ok(books),
            Err(error @ StoreError::Unusable(_)) => return Err(failure(settings, error)),
            Err(StoreError::Damaged(reason)) => past.damage = Some(reason),
            Err(StoreError::Newer(step)) => {
                let failed = |source| OpenError::Directory { dir: settings.dir.clone(), source };
                let place = newer::set_aside(&settings.dir, DATABASE, step).map_err(failed)?;
                newer::show(settings);
                // What waits in it is not lost.
                (past.waiting, past.is_put_aside) = (Some(Waiting::new()), true);
                let mut books = attach(settings, past).map_err(|error| failure(settings, error))?;
                let text = format!(
                    "a newer program wrote the store and this one may not open it: it was put aside in {}",
                    place.display()
                );
                // With the next commit; it is among the alarms in any case.
                books.add_problem(&text).unwrap_or_default();
                return Ok(books);
            }
        }
    }
    let reason = past.damage.clone().unwrap_or_default();
    let ticket = ticket(settings, past, reason.clone());
    let place = move_aside(settings, Some(&ticket))
        .map_err(|source| OpenError::Directory { dir: settings.dir.clone(), source })?;
    past.damage = None;
    past.is_moved = true;
    let total = ticket.waiting.as_ref().map(|waiting| waiting.values().copied().fold(0, u64::saturating_add));
    let told = total.map_or_else(|| "unknown".to_owned(), |total| total.to_string());
    error!(
        reason = reason.as_str(), quarantine:% = place.display(), waiting = told.as_str();
        "The store is damaged and was moved aside; what can be read of it is salvaged"
    );
    // They belong to the store that is gone.
    (past.waiting, past.settled) = (None, 0);
    attach(settings, past).map_err(|error| {
        if let StoreError::Damaged(reason) = &error {
            past.damage = Some(reason.clone());
        }
        failure(settings, error)
    })
}

fn failure(settings: &QueueSettings, error: StoreError) -> OpenError {
    let source: Box<dyn std::error::Error + Send + Sync> = match error {
        StoreError::Unusable(source) => Box::new(source),
        other => Box::new(other),
    };
    OpenError::Store { path: settings.dir.join(DATABASE), source }
}

/// What is known of a store that is to be moved aside.
fn ticket(settings: &QueueSettings, past: &mut Past, reason: String) -> Ticket {
    let kept = past.kept.as_ref().map_or(0, |kept| kept.sequence);
    Ticket {
        reason,
        wall_ms: settings.clock.now().wall_ms,
        waiting: past.waiting.as_ref().map(salvage::by_name),
        settled: past.settled,
        was_open: past.was_open,
        is_log_foreign: std::mem::take(&mut past.is_log_foreign),
        is_log_wanting: std::mem::take(&mut past.is_log_wanting),
        last: past.identity.as_ref().map_or(kept, |identity| identity.sequence_next.saturating_sub(1)),
        devices: salvage::by_name(&past.devices),
        losses: past.losses.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
    }
}

/// Moves all files of the database into a directory of their own: a WAL without its database is worth nothing. The
/// ticket is there before them, so that a crash in between is no loss.
fn move_aside(settings: &QueueSettings, ticket: Option<&Ticket>) -> io::Result<PathBuf> {
    let quarantine = settings.dir.join(QUARANTINE);
    DirBuilder::new().recursive(true).mode(0o700).create(&quarantine)?;
    let number = salvage::numbered(&quarantine).last().map_or(1, |(number, _)| number + 1);
    let mut kept = quarantines(&settings.dir);
    let bytes = [DATABASE, LOG].map(|name| bytes_of(&settings.dir.join(name)));
    kept.push(Quarantine { place: settings.dir.clone(), bytes: bytes.iter().sum(), is_wanting: ticket.is_some() });
    for place in quarantine::excess(&kept, available(&settings.dir)) {
        // The new store declares first what is lost with one that is not salvaged.
        if !salvage::is_wanting(place) {
            info!(quarantine:% = place.display(); "A salvaged store was removed");
            fs::remove_dir_all(place)?;
        }
    }
    let seconds = settings.clock.now().wall_ms / 1000;
    let place = quarantine.join(format!("{seconds}-{number}"));
    DirBuilder::new().mode(0o700).create(&place)?;
    // Without one nobody salvages it.
    if let Some(ticket) = ticket {
        ticket.write(&place)?;
    }
    identity::sync_dir(&place)?;
    identity::sync_dir(&quarantine)?;
    for name in [DATABASE, LOG, "queue.db-shm", "queue.db-journal"] {
        match fs::rename(settings.dir.join(name), place.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    identity::sync_dir(&place)?;
    identity::sync_dir(&quarantine)?;
    identity::sync_dir(&settings.dir)?;
    Ok(place)
}

/// The damaged stores that are there, oldest first.
fn quarantines(dir: &Path) -> Vec<Quarantine> {
    let places = salvage::numbered(&dir.join(QUARANTINE)).into_iter().map(|(_, place)| place);
    let files = |place: &Path| fs::read_dir(place).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let known = places.map(|place| Quarantine {
        bytes: files(&place).map(|file| bytes_of(&file)).sum(),
        is_wanting: salvage::is_wanting(&place),
        place,
    });
    known.collect()
}

fn bytes_of(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |found| found.len())
}

/// What the disk has free; where that is not known, no end of it.
fn available(dir: &Path) -> u64 {
    match rustix::fs::statvfs(dir) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => {
            warn!(error:%; "The free space of the disk is not known");
            u64::MAX
        }
    }
}

/// Whether the last start in the store is not the one of the same number that this directory has seen. SQLite takes any
/// log that is whole in itself.
fn is_foreign(starts: &Starts, past: &Past) -> bool {
    let known = past.kept.as_ref().filter(|kept| kept.store != 0 && past.identity.is_none());
    let last = starts.last_key_value().map(|(number, start)| (*number, start.store));
    known.zip(last).is_some_and(|(kept, (number, store))| kept.start == number && kept.store != store)
}

/// What the directory says of itself before SQLite looks. Says whether there is no store yet.
fn look(settings: &QueueSettings, file: &StartFile, past: &mut Past) -> Result<bool, StoreError> {
    let dir = &settings.dir;
    // A crash may have come between a move and the first commit of the next store.
    let is_no_surprise = || {
        past.is_moved || past.is_put_aside || newer::is_any(dir) || !salvage::places(&dir.join(QUARANTINE)).is_empty()
    };
    let is_counted = past.identity.is_none() && past.kept.as_ref().is_some_and(|kept| kept.waiting.is_some());
    let found = files::look(dir, file.exists() && !is_no_surprise(), is_counted)?;
    let Some(fault) = found.fault else { return Ok(found.is_new) };
    past.is_log_foreign = fault == files::LogFault::Foreign;
    past.is_log_wanting = true;
    Err(StoreError::Damaged(fault.to_string()))
}

fn attach(settings: &QueueSettings, past: &mut Past) -> Result<Books, StoreError> {
    let file = StartFile::new(&settings.dir);
    // First, since what follows reads the files.
    forget_cached(&settings.dir).map_err(|error| io_error(&error))?;
    let is_new = look(settings, &file, past)?;
    let store = Store::open(&settings.dir.join(DATABASE))?;
    if is_new {
        identity::sync_dir(&settings.dir).map_err(|error| io_error(&error))?;
    }
    // After a crash: a table whose root is another of its pages is a fine table to SQLite, and a short one.
    if files::has_log(&settings.dir) && !store.is_in_order().map_err(opening)? {
        return Err(StoreError::Damaged("its pages do not belong together".to_owned()));
    }
    let starts = store.starts().map_err(opening)?;
    if is_foreign(&starts, past) && files::has_log(&settings.dir) {
        past.is_log_foreign = true;
        return Err(StoreError::Damaged("its write-ahead log is another store's".to_owned()));
    }
    let boots = store.boots().map_err(opening)?;
    let words = store.words().map_err(opening)?;
    let last = store.last_sequence().map_err(opening)?;
    let is_swept = store.meta("stopped").map_err(opening)? == Some(1)
        // A store of before has no such number: it said that it was stopped only when it was swept.
        && store.meta("swept").map_err(opening)?.unwrap_or(1) == 1;
    let start = starts.last_key_value().map_or(0, |(number, _)| *number);
    let sequence = store.meta("sequence").map_err(opening)?.unwrap_or(0).max(last).min(OPEN / 2);
    let was_stopped = store.meta("stopped").map_err(opening)? == Some(1);
    let salvages: VecDeque<PathBuf> = salvage::places(&settings.dir.join(QUARANTINE)).into();
    let ceilings = ceilings(settings, &store, past.identity.is_none()).map_err(opening)?;
    let ledger = Ledger::open(&store, settings.clock.now()).map_err(opening)?;
    store.keep_within(ceilings).map_err(opening)?;
    let known = match past.identity.take() {
        Some(known) => {
            let sequence_next = known.sequence_next.max(last + 1);
            Identity { sequence_next, reserved: known.reserved.max(sequence), ..known }
        }
        None => {
            let kept = past.kept.clone().unwrap_or_default();
            // Those of a quarantine were used as well.
            let (mut start, mut sequence) = (start.max(kept.start), sequence.max(kept.sequence));
            for place in &salvages {
                let remains = Remains::read(place, &Ticket::read(place));
                start = start.max(remains.start());
                sequence = sequence.max(remains.last.unwrap_or(0)).max(remains.meta("sequence").unwrap_or(0));
            }
            begin(settings, file, start, sequence.min(OPEN / 2), kept.settled)?
        }
    };
    let mut books = Books {
        settings: settings.clone(),
        store,
        headroom: Headroom::open(&settings.dir),
        identity: known,
        starts,
        boots,
        words,
        lists: HashMap::new(),
        routes: Routes::default(),
        streams: Vec::new(),
        ceilings,
        rows: 0,
        removable: Ranges::default(),
        kept: super::kept::Kept::default(),
        empty_since: None,
        sweep: (!is_swept && last > 0).then(|| Span::new(1, last)),
        session_reserved: 0,
        retained: (0, 0),
        dead_letters: (0, 0),
        losses: BTreeMap::new(),
        devices: HashMap::new(),
        commands: Commands::default(),
        held: past.held.take().unwrap_or_default().beyond(last),
        ledger,
        sessions: Sessions::new(&past.hall),
        room: None,
        used_bytes: 0,
        evict_from: 0,
        evict_taken: false,
        evict_looked: 0,
        turn_losses: Vec::new(),
        alarms: BTreeMap::new(),
        oldest: None,
        scratch: Vec::new(),
        salvages,
        salvage: None,
        scrub: Scrub::default(),
        stop_reason: None,
        was_stopped: None,
        fault: None,
        is_stale: false,
        copying: None,
        // Another one after the store was opened anew.
        copy_next: settings.clock.now().mono_ms << 16,
    };
    // A disk that is full may have no room for more log, and the database has for what is in it.
    let emptied = books.store.checkpoint();
    let loaded = emptied
        .and_then(|()| books.load(last, past, was_stopped))
        .and_then(|()| mark::make(&settings.dir, &mut books.store))
        .and_then(|()| books.keep_headroom());
    match loaded.map_err(opening) {
        Ok(()) => {
            past.is_moved = false;
            Ok(books)
        }
        Err(error) => {
            // The next attempt goes on with the same start: its number is used up and its file is written.
            past.waiting = past.waiting.take().or_else(|| books.store.deliveries());
            past.identity = Some(books.identity);
            Err(error)
        }
    }
}

/// Opens the store as a start does and changes nothing: what a start would move aside is only said. `None`: there is none.
pub(super) fn open_to_look(dir: &Path) -> Result<Option<Store>, StoreError> {
    let file = StartFile::new(dir);
    let kept = file.read().unwrap_or_default();
    forget_cached(dir).map_err(|error| io_error(&error))?;
    let is_no_surprise = newer::is_any(dir) || !salvage::places(&dir.join(QUARANTINE)).is_empty();
    let found = files::look(dir, file.exists() && !is_no_surprise, kept.waiting.is_some())?;
    if let Some(fault) = found.fault {
        return Err(StoreError::Damaged(fault.to_string()));
    }
    if found.is_new {
        return Ok(None);
    }
    let store = Store::open_to_look(&dir.join(DATABASE))?;
    let has_log = files::has_log(dir);
    if has_log && !store.is_in_order().map_err(opening)? {
        return Err(StoreError::Damaged("its pages do not belong together".to_owned()));
    }
    let past = Past { kept: Some(kept), ..Past::default() };
    if has_log && is_foreign(&store.starts().map_err(opening)?, &past) {
        return Err(StoreError::Damaged("its write-ahead log is another store's".to_owned()));
    }
    Ok(Some(store))
}

/// Makes the kernel read both files from the disk, before anything is built on what they say.
///
/// When a write fails, the kernel tells it once, at the sync, and then calls the pages clean: they read well, and no
/// later sync brings them to the disk. SQLite would find its log whole, here or in a process that comes after this one,
/// and go on behind a hole; all that follows would be acknowledged, and lost with the power. Writing the log over itself
/// does not help: on ext4 a block whose first write failed stays marked as unwritten while its page is in memory.
fn forget_cached(dir: &Path) -> io::Result<()> {
    for name in [DATABASE, LOG] {
        let file = match File::open(dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        // Only clean pages are given up.
        file.sync_data()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

fn io_error(error: &io::Error) -> StoreError {
    StoreError::Unusable(rusqlite::Error::InvalidParameterName(error.to_string()))
}

/// A new start: its number and its first block of sequences are on disk before anything bears them.
fn begin(
    settings: &QueueSettings,
    file: StartFile,
    start: u32,
    sequence: u64,
    settled: u64,
) -> Result<Identity, StoreError> {
    let number = start.saturating_add(1);
    let sequence_next = sequence.min(OPEN / 2) + 1;
    let reserved = sequence_next + SEQUENCE_BLOCK;
    let store = identity::draw_store().map_err(|error| io_error(&error))?;
    if let Err(error) = file.write(&Kept { start: number, store, sequence: reserved, settled, waiting: None }) {
        error!(error:%; "The start file cannot be written");
    }
    let start = Start {
        number,
        store,
        gateway: settings.gateway.clone(),
        boot_id: Arc::from(settings.clock.boot_id()),
        stamp: settings.clock.now(),
    };
    let sessions = BTreeMap::new();
    Ok(Identity { file, start, counter: 0, sequence_next, reserved, session_next: 1, sessions, settled })
}

/// `is_first`: at the start, and not each time that a full disk has made us open the store again.
fn ceilings(settings: &QueueSettings, store: &Store, is_first: bool) -> rusqlite::Result<Ceilings> {
    let bytes_max = settings.bytes_max.get();
    let disk = disk(&settings.dir, store)?;
    let ceilings = retention::ceilings(bytes_max, disk, PAGE_BYTES);
    if ceilings.is_clamped && is_first {
        let (bytes, room) = (ceilings.soft_pages * PAGE_BYTES, disk.room);
        warn!(bytes_max, bytes, room; "The disk has too little room for the queue; its ceiling is lower");
    }
    Ok(ceilings)
}

fn disk(dir: &Path, store: &Store) -> rusqlite::Result<Disk> {
    let room = available(dir).saturating_add(headroom::taken(dir));
    let (used, had) = (store.pages_used()? * PAGE_BYTES, store.meta(HAD)?.unwrap_or(0));
    Ok(Disk { room, used, owned: headroom::owned(dir), had })
}

impl Books {
    /// Lifts the ceiling where the disk has room again that it had not when the store was opened.
    pub fn lift_ceiling(&mut self) -> rusqlite::Result<()> {
        if !self.ceilings.is_clamped {
            return Ok(());
        }
        let ceilings =
            retention::ceilings(self.settings.bytes_max.get(), disk(&self.settings.dir, &self.store)?, PAGE_BYTES);
        // It is never lowered while the store is open, unless what was there is nobody's any more.
        let is_higher = ceilings.soft_pages > self.ceilings.soft_pages;
        let is_lifted = match self.ceilings.is_crowded {
            true => (is_higher || !ceilings.is_crowded) && self.headroom.keep(self.store.bytes()?),
            false => is_higher,
        };
        if !is_lifted {
            return Ok(());
        }
        self.end_stillness()?;
        self.store.keep_within(ceilings)?;
        let was_crowded = std::mem::replace(&mut self.ceilings, ceilings).is_crowded;
        self.room = None;
        self.note_room()?;
        if was_crowded && !ceilings.is_crowded || !ceilings.is_clamped {
            info!(bytes = ceilings.soft_pages * PAGE_BYTES; "The disk has room for the queue again");
        }
        Ok(())
    }

    /// Writes down what intake may use of a disk that is not crowded, so that another start knows that it was so.
    fn note_room(&mut self) -> rusqlite::Result<()> {
        let bytes = self.ceilings.soft_pages * PAGE_BYTES;
        if !self.ceilings.is_crowded && self.store.meta(HAD)?.is_none_or(|had| had < bytes) {
            self.store.write()?;
            self.store.set_meta(HAD, bytes)?;
        }
        Ok(())
    }

    /// Sees to it that the uplink has room of its own; where the disk has none, that intake leaves it what there is.
    pub(super) fn keep_headroom(&mut self) -> rusqlite::Result<()> {
        if self.headroom.keep(self.store.bytes()?) { Ok(()) } else { self.note_crowding() }
    }

    /// Others have taken the disk while the store is open: before what the uplink needs is used up, nothing new is taken.
    fn note_crowding(&mut self) -> rusqlite::Result<()> {
        if self.ceilings.is_crowded {
            return Ok(());
        }
        let Disk { used, owned, .. } = disk(&self.settings.dir, &self.store)?;
        let soft_pages = (used.max(owned) / PAGE_BYTES).min(self.ceilings.soft_pages);
        self.ceilings = Ceilings { soft_pages, is_clamped: true, is_crowded: true, ..self.ceilings };
        self.room = None;
        warn!(
            bytes = soft_pages * PAGE_BYTES, help = "free some room on the disk of the state directory, or set [queue] max_bytes to what is left of it";
            "The disk is full of what others have on it: new messages are refused, what is stored stays and is delivered"
        );
        Ok(())
    }

    fn load(&mut self, last: u64, past: &Past, was_stopped: bool) -> rusqlite::Result<()> {
        self.store.write()?;
        // Before it is set: `None` = the store is new.
        self.was_stopped = self.store.meta("stopped")?.map(|stopped| stopped == 1);
        self.store.set_meta("stopped", 0)?;
        self.store.set_meta("sequence", self.identity.reserved)?;
        self.note_room()?;
        self.load_starts(last)?;
        let session = self.store.meta("session")?.unwrap_or(1).max(self.identity.session_next);
        self.store.set_meta("session", session)?;
        (self.identity.session_next, self.session_reserved) = (session, session);
        self.load_streams(last)?;
        self.load_kept()?;
        if self.was_stopped == Some(true) && !past.was_open && !self.is_counted_right(past) {
            // Pages in each other's place: the end of the messages seems to be elsewhere.
            return Err(miscounted());
        }
        self.load_ledger(last, past.was_open, was_stopped)?;
        self.load_sessions(last, past.was_open)?;
        self.commands = Commands::read(&self.store)?;
        let copies = past.waiting.as_ref().and_then(|waiting| waiting.get(SESSIONS));
        if self.was_stopped == Some(true)
            && !past.was_open
            && copies.is_some_and(|copies| *copies != self.sessions.waiting())
        {
            return Err(miscounted());
        }
        if !past.was_open {
            self.store.delete_passing_sessions()?;
        }
        for (name, count) in self.store.losses()? {
            if let Some(reason) = LossReason::from_name(&name) {
                self.settings.health.restore_losses(reason, count);
                self.losses.insert(reason, count);
            }
        }
        self.retained = self.store.retained_total()?;
        self.dead_letters = self.store.dead_letter_total()?;
        for place in self.salvages.clone() {
            let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if self.store.salvage(&name)?.is_none() {
                self.inherit(&place)?;
            }
        }
        let given_up = if past.is_moved { self.give_up_excess()? } else { Vec::new() };
        if !past.was_open {
            self.load_last_stop(past)?;
        }
        self.settings.health.clear_problems();
        for (wall_ms, text) in self.store.problems()? {
            self.settings.health.add_problem(wall_ms, &text);
        }
        self.commit()?;
        // A crash before this leaves one whose salvage is over, and nothing is declared twice.
        for place in given_up {
            if let Err(error) = fs::remove_dir_all(&place) {
                warn!(error:%, quarantine:% = place.display(); "A damaged store cannot be removed");
            }
        }
        Ok(())
    }

    /// Declares what is lost with the damaged stores for which there is no room, though they are not salvaged. Gives
    /// back which they are: they go once that is on disk.
    fn give_up_excess(&mut self) -> rusqlite::Result<Vec<PathBuf>> {
        let kept = quarantines(&self.settings.dir);
        let Some(newest) = kept.last() else { return Ok(Vec::new()) };
        let places = quarantine::excess(&kept, available(&self.settings.dir)).into_iter();
        let given_up: Vec<PathBuf> =
            places.filter(|place| self.salvages.iter().any(|other| other == place)).map(Path::to_owned).collect();
        for place in &given_up {
            self.give_up(place, &newest.place)?;
        }
        self.salvages.retain(|place| !given_up.contains(place));
        Ok(given_up)
    }

    /// Whether as much waits as the last stop has counted, where it has.
    fn is_counted_right(&self, past: &Past) -> bool {
        let counted = self.streams.iter().filter(|stream| stream.waiting > 0);
        let counted: Waiting = counted.map(|stream| (stream.name.clone(), stream.waiting)).collect();
        let is_its = |(name, count): &(&Arc<str>, &u64)| **count > 0 && &***name != SESSIONS;
        past.waiting.as_ref().is_none_or(|waiting| waiting.iter().filter(is_its).eq(&counted))
    }

    /// Says how the program ended before this start.
    fn load_last_stop(&mut self, past: &Past) -> rusqlite::Result<()> {
        let reason = match self.was_stopped {
            // Nobody has stopped before, or nobody can say.
            None if past.is_moved => "unknown: the store was damaged".to_owned(),
            None => return Ok(()),
            Some(true) => self.store.note("stop")?.unwrap_or_else(|| STOPPED.to_owned()),
            Some(false) => {
                let reason = "without an ordered stop: a crash, a kill or a power cut";
                self.add_problem(&format!("the program ended {reason}"))?;
                reason.to_owned()
            }
        };
        self.settings.health.set_last_stop(&reason);
        Ok(())
    }

    fn load_starts(&mut self, last: u64) -> rusqlite::Result<()> {
        self.store.insert_start(&self.identity.start)?;
        self.starts.insert(self.identity.start.number, self.identity.start.clone());
        // Starts that no row refers to any more: rows lie in the order of their starts.
        let oldest = match self.store.message_from(0)? {
            Some(sequence) if sequence <= last => {
                let mut found = None;
                self.store.messages(Span::new(sequence, sequence), |sequence, body| {
                    found = super::row::entered(body, sequence, &self.starts).ok();
                    false
                })?;
                found.map_or(0, |(start, _)| start)
            }
            _ => self.identity.start.number,
        };
        let is_ordered = self.store.message_from(0)?.unwrap_or(u64::MAX)
            > self.store.meta(salvage::SALVAGED_TO)?.unwrap_or(0)
            && self.salvages.is_empty();
        if is_ordered {
            self.store.delete_starts_before(oldest)?;
        }
        self.store.delete_boots_without_starts()?;
        self.learn_what_has_passed(last)?;
        self.learn_time()
    }

    /// The newest message tells a clock that was not set that it is later than that.
    fn learn_what_has_passed(&mut self, last: u64) -> rusqlite::Result<()> {
        let mut entered = None;
        self.store.messages(Span::new(last, last), |sequence, body| {
            entered = super::row::entered(body, sequence, &self.starts).ok();
            false
        })?;
        let clock = &self.settings.clock;
        if let Some(known) = self.boots.get(clock.boot_id()).and_then(|boot| boot.known) {
            clock.learn_known(known);
        }
        let passed = entered
            .and_then(|(start, stamp)| boots::passed_ms(&self.boots, &self.starts, start, stamp, clock.boot_id()));
        if let Some(passed_ms) = passed {
            clock.learn_passed(passed_ms);
        }
        Ok(())
    }

    fn load_streams(&mut self, last: u64) -> rusqlite::Result<()> {
        let nothing = Arc::new(RuleList { id: 0, is_own: false, rules: Vec::new() });
        for found in self.store.streams()? {
            let in_flight = self.store.in_flight(found.id)?.into_iter().flat_map(|entry| entry.rows).collect();
            self.streams.push(Stream {
                id: found.id,
                name: found.name,
                is_active: false,
                rules: nothing.clone(),
                own: None,
                open: None,
                waiting: 0,
                committed: 0,
                in_flight,
                taken_to: 0,
                session_key: found.session_key,
                session: found.session,
                gaps: BTreeMap::new(),
                told: BTreeMap::new(),
                is_stirred: true,
                is_live: false,
                again: Ranges::default(),
                again_round: 0,
            });
        }
        self.load_spans(last)?;
        for gap in self.store.gaps()? {
            let stream = self.streams.iter_mut().find(|stream| stream.id == gap.stream);
            if let (Some(stream), Some(reason)) = (stream, LossReason::from_name(&gap.reason)) {
                let GapRow { span, from_ms, to_ms, is_unset, .. } = gap;
                let count = (gap.count > 0).then_some(gap.count);
                stream.gaps.insert(reason, Gap { span, count, from_ms, to_ms, is_unset, is_dirty: false });
            }
        }
        for spec in self.settings.streams.clone() {
            self.set_rules(&spec)?;
        }
        for stream in self.streams.iter().filter(|stream| !stream.is_active) {
            info!(stream = &*stream.name, waiting = stream.waiting; "A stream is not configured any more and is kept");
        }
        Ok(())
    }

    /// Counts what waits from the spans, not from the rows, and closes open spans: the sequences between the last row
    /// and the next one were perhaps never given.
    fn load_spans(&mut self, last: u64) -> rusqlite::Result<()> {
        let mut open = Vec::new();
        let mut covered_to = 0;
        self.store.spans(|stream, span, _| {
            let clipped = Span::new(span.first, span.last.min(last));
            if span.last == OPEN {
                open.push((stream, span));
            }
            if let Some(stream) = self.streams.iter_mut().find(|other| other.id == stream) {
                stream.waiting += clipped.count();
            }
            // Spans come by their beginning: what is covered already is not counted again.
            self.rows += Span::new(clipped.first.max(covered_to + 1), clipped.last).count();
            covered_to = covered_to.max(clipped.last);
        })?;
        for (stream, span) in open {
            if span.first <= last {
                self.store.set_span_last(stream, Span::new(span.first, last))?;
            } else {
                self.store.delete_span(stream, span.first)?;
            }
        }
        Ok(())
    }

    /// Changes the rules of a stream that is configured; what waits keeps the QoS of the rules it was matched by.
    pub fn change_rules(&mut self, spec: StreamSpec) -> rusqlite::Result<()> {
        let Some(known) = self.settings.streams.iter_mut().find(|known| known.name == spec.name) else {
            warn!(stream = &*spec.name; "Rules came for a stream that is not configured");
            return Ok(());
        };
        known.clone_from(&spec);
        self.set_rules(&spec)
    }

    /// A stream is configured from now on. What waits in one that was there keeps its place.
    pub fn open_stream(&mut self, spec: StreamSpec) -> rusqlite::Result<()> {
        match self.settings.streams.iter_mut().find(|known| known.name == spec.name) {
            Some(known) => known.clone_from(&spec),
            None => self.settings.streams.push(spec.clone()),
        }
        self.set_rules(&spec)?;
        self.rest_stream(&spec.name)
    }

    /// A stream is not configured any more: it takes nothing more in, and what waits in it is kept and ages.
    pub fn close_stream(&mut self, name: &Arc<str>) -> rusqlite::Result<()> {
        self.settings.streams.retain(|known| known.name != *name);
        self.rest_stream(name)?;
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.name == *name) {
            stream.is_active = false;
            info!(stream = &**name, waiting = stream.waiting; "A stream is not configured any more and is kept");
        }
        Ok(())
    }

    /// Nobody delivers what a stream holds at the moment: nothing of it may be in memory only.
    fn rest_stream(&mut self, name: &Arc<str>) -> rusqlite::Result<()> {
        match self.streams.iter().position(|stream| stream.name == *name) {
            Some(index) => self.set_live(index, false),
            None => Ok(()),
        }
    }

    /// Lets a stream match by these rules from now on; makes it where it is new.
    pub fn set_rules(&mut self, spec: &StreamSpec) -> rusqlite::Result<()> {
        self.store.write()?;
        let gateway = self.settings.gateway.clone();
        let id = self.store.rule_id(&rules::write(&spec.rules, false, &gateway))?;
        let list = Arc::new(RuleList { id, is_own: false, rules: spec.rules.clone() });
        self.lists.insert(id, list.clone());
        let own = match own_rules(spec, &gateway) {
            None => None,
            Some(rule) => {
                let rules = vec![rule];
                let id = self.store.rule_id(&rules::write(&rules, true, &gateway))?;
                let list = Arc::new(RuleList { id, is_own: true, rules });
                self.lists.insert(id, list.clone());
                Some(list)
            }
        };
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.name == spec.name) {
            (stream.rules, stream.own, stream.is_active) = (list, own, true);
            return Ok(());
        }
        let index = self.add_stream(&spec.name)?;
        if let Some(stream) = self.streams.get_mut(index) {
            (stream.rules, stream.own, stream.is_active) = (list, own, true);
        }
        Ok(())
    }

    /// The stream of a name; one that is not there is made, and is not configured for now.
    pub fn stream_of(&mut self, name: &Arc<str>) -> rusqlite::Result<usize> {
        match self.streams.iter().position(|stream| stream.name == *name) {
            Some(index) => Ok(index),
            None => self.add_stream(name),
        }
    }

    fn add_stream(&mut self, name: &Arc<str>) -> rusqlite::Result<usize> {
        self.store.write()?;
        let session = match self.identity.sessions.get(name) {
            Some(session) => *session,
            None => self.take_session()?,
        };
        let id = self.store.insert_stream(name, session)?;
        self.streams.push(Stream {
            id,
            name: name.clone(),
            is_active: false,
            rules: Arc::new(RuleList { id: 0, is_own: false, rules: Vec::new() }),
            own: None,
            open: None,
            waiting: 0,
            committed: 0,
            in_flight: HashSet::new(),
            taken_to: 0,
            session_key: None,
            session,
            gaps: BTreeMap::new(),
            told: BTreeMap::new(),
            is_stirred: false,
            is_live: false,
            again: Ranges::default(),
            again_round: 0,
        });
        Ok(self.streams.len() - 1)
    }

    /// Empties what can be emptied whole, then the WAL, and closes the files.
    pub fn close(mut self) -> rusqlite::Result<()> {
        self.store.write()?;
        self.write_held(u64::MAX)?;
        self.write_numbers(0)?;
        self.clear_bare()?;
        // Settled rows beside others that are wanted stay with them: the next start finds them, or their segment ends.
        let is_swept = self.sweep.is_none() && self.removable.count() == 0;
        let sequence = self.identity.sequence_next - 1;
        self.store.set_meta("sequence", sequence)?;
        self.store.set_meta("session", self.identity.session_next)?;
        self.store.set_meta("stopped", 1)?;
        self.store.set_meta("swept", u64::from(is_swept))?;
        let reason = self.stop_reason.clone().unwrap_or_else(|| STOPPED.to_owned());
        self.store.set_note("stop", &reason)?;
        self.flush_ledger()?;
        self.commit()?;
        // The file last: until then it says more than was used, which is safe.
        let settled = self.settled_to()?;
        let Start { number: start, store, .. } = self.identity.start;
        let kept = Kept { start, store, sequence, settled, waiting: Some(self.waiting()) };
        if let Err(error) = self.identity.file.write(&kept) {
            warn!(error:%; "The start file cannot be written");
        }
        self.store.close()
    }
}

fn own_rules(spec: &StreamSpec, gateway: &str) -> Option<ForwardRule> {
    let own_topic = spec.own_topic.as_deref()?;
    let filter = Filter::new(gap_topic(gateway)?.as_str()).ok()?;
    match TopicTemplate::parse(&format!("{own_topic}/gap"), &filter, gateway) {
        Ok(topic) => Some(ForwardRule {
            filter,
            topic,
            qos: Some(Qos::AtLeastOnce),
            when_full: None,
            strict_order: false,
            payload: crate::config::Payload::JSON,
            batch: None,
        }),
        Err(error) => {
            warn!(uplink = &*spec.name, error:%; "Gap records cannot be sent to the uplink's own topic");
            None
        }
    }
}
