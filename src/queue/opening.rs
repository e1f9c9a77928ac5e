//! How a store becomes books: opened and read, or moved aside and begun anew. Never refuses because of what is in it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::{error, info, warn};
use rustix::fs::FlockOperation;

use super::books::{Books, Gap, Identity, Stream, gap_topic};
use super::identity::{self, Kept, SEQUENCE_BLOCK, StartFile};
use super::retention::{self, Ceilings};
use super::row::Start;
use super::rules::{self, RuleList};
use super::spans::{OPEN, Ranges, Span};
use super::store::{PAGE_BYTES, Store, StoreError, WAL_BYTES_MAX, opening};
use super::{OpenError, QueueSettings, StreamSpec};
use crate::config::{ForwardRule, TopicTemplate};
use crate::health::LossReason;
use crate::message::{Filter, Qos};

const DATABASE: &str = "queue.db";
const QUARANTINE: &str = "quarantine";
/// Damaged stores that are kept for a look.
const QUARANTINES_MAX: usize = 3;

/// Makes the state directory where it is missing, and takes it for this process.
pub(super) fn take_dir(dir: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Directory { dir: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let lock = File::options().create(true).write(true).truncate(false).open(dir.join("lock")).map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { dir: dir.to_owned() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Opens the store in the state directory, which this process has taken. `identity` is that of this process if the
/// store was open before; `waiting` says how much waited then, should it have to be moved aside; `damage` says that it
/// has to be.
pub(super) fn open_books(
    settings: &QueueSettings,
    identity: &mut Option<Identity>,
    mut waiting: Option<u64>,
    damage: Option<String>,
) -> Result<Books, OpenError> {
    let path = settings.dir.join(DATABASE);
    let reason = match damage {
        Some(reason) => reason,
        None => match attach(settings, identity, &mut waiting, None) {
            Ok(books) => return Ok(books),
            Err(StoreError::Unusable(source)) => return Err(OpenError::Store { path, source: Box::new(source) }),
            Err(StoreError::Damaged(reason)) => reason,
        },
    };
    let place = move_aside(settings).map_err(|source| OpenError::Directory { dir: settings.dir.clone(), source })?;
    error!(
        reason = reason.as_str(), quarantine:% = place.display(), waiting:? = waiting;
        "The store is damaged and was moved aside; the queue starts empty"
    );
    let damage = Damage { reason, waiting, place };
    attach(settings, identity, &mut waiting, Some(&damage)).map_err(|error| match error {
        StoreError::Unusable(source) => OpenError::Store { path, source: Box::new(source) },
        damaged @ StoreError::Damaged(_) => OpenError::Store { path, source: Box::new(damaged) },
    })
}

struct Damage {
    reason: String,
    waiting: Option<u64>,
    place: PathBuf,
}

/// Moves all files of the database into a directory of their own: a WAL without its database is worth nothing.
fn move_aside(settings: &QueueSettings) -> io::Result<PathBuf> {
    let quarantine = settings.dir.join(QUARANTINE);
    DirBuilder::new().recursive(true).mode(0o700).create(&quarantine)?;
    let mut kept: Vec<(u64, PathBuf)> = fs::read_dir(&quarantine)?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.rsplit_once('-')?.1.parse().ok()?;
            Some((number, path))
        })
        .collect();
    kept.sort();
    let number = kept.last().map_or(1, |(number, _)| number + 1);
    while kept.len() >= QUARANTINES_MAX {
        let (_, oldest) = kept.remove(0);
        warn!(quarantine:% = oldest.display(); "The oldest damaged store was removed");
        fs::remove_dir_all(oldest)?;
    }
    let seconds = settings.clock.now().wall_ms / 1000;
    let place = quarantine.join(format!("{seconds}-{number}"));
    DirBuilder::new().mode(0o700).create(&place)?;
    for name in ["queue.db", "queue.db-wal", "queue.db-shm", "queue.db-journal"] {
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

/// What the directory says of itself before SQLite looks: an empty file is a fine database to it, and a WAL without its
/// database would be deleted.
fn look(dir: &Path, file: &StartFile) -> Result<bool, StoreError> {
    let damaged = |reason: &str| Err(StoreError::Damaged(reason.to_owned()));
    match fs::symlink_metadata(dir.join(DATABASE)) {
        Ok(metadata) if metadata.is_dir() => damaged("there is a directory in its place"),
        Ok(metadata) if metadata.len() == 0 && file.exists() => damaged("it is empty"),
        Ok(_) => Ok(false),
        Err(_) if fs::metadata(dir.join("queue.db-wal")).is_ok_and(|wal| wal.len() > 0) => {
            damaged("there is a write-ahead log without its database")
        }
        Err(_) => {
            if file.exists() {
                warn!("The store is gone; the queue starts empty");
            }
            Ok(true)
        }
    }
}

fn attach(
    settings: &QueueSettings,
    identity: &mut Option<Identity>,
    waiting: &mut Option<u64>,
    damage: Option<&Damage>,
) -> Result<Books, StoreError> {
    let is_first = identity.is_none();
    let file = StartFile::new(&settings.dir);
    let is_new = look(&settings.dir, &file)?;
    let store = Store::open(&settings.dir.join(DATABASE))?;
    if is_new {
        identity::sync_dir(&settings.dir).map_err(|error| io_error(&error))?;
    }
    let starts = store.starts().map_err(opening)?;
    let words = store.words().map_err(opening)?;
    let last = store.last_sequence().map_err(opening)?;
    let was_stopped = store.meta("stopped").map_err(opening)?.unwrap_or(0) == 1;
    let in_store = Kept {
        start: starts.last_key_value().map_or(0, |(number, _)| *number),
        sequence: store.meta("sequence").map_err(opening)?.unwrap_or(0).max(last).min(OPEN / 2),
    };
    let ceilings = ceilings(settings, &store).map_err(opening)?;
    store.limit_pages(ceilings.hard_pages).map_err(opening)?;
    let known = match identity.take() {
        Some(known) => {
            let sequence_next = known.sequence_next.max(last + 1);
            Identity { sequence_next, reserved: known.reserved.max(in_store.sequence), ..known }
        }
        None => begin(settings, file, in_store)?,
    };
    let mut books = Books {
        settings: settings.clone(),
        store,
        identity: known,
        starts,
        words,
        lists: HashMap::new(),
        streams: Vec::new(),
        ceilings,
        rows: 0,
        removable: Ranges::default(),
        sweep: (!was_stopped && last > 0).then(|| Span::new(1, last)),
        session_reserved: 0,
        retained: (0, 0),
        dead_letters: (0, 0),
        losses: BTreeMap::new(),
        devices: HashMap::new(),
        room: None,
        evict_from: 0,
        turn_losses: Vec::new(),
        alarms: BTreeMap::new(),
        oldest: None,
        scratch: Vec::new(),
    };
    match books.load(last, is_first, damage).map_err(opening) {
        Ok(()) => Ok(books),
        Err(error) => {
            // The next attempt goes on with the same start: its number is used up and its file is written.
            *waiting = waiting.or_else(|| books.store.deliveries());
            *identity = Some(books.identity);
            Err(error)
        }
    }
}

fn io_error(error: &io::Error) -> StoreError {
    StoreError::Unusable(rusqlite::Error::InvalidParameterName(error.to_string()))
}

/// A new start: its number and its first block of sequences are on disk before anything bears them.
fn begin(settings: &QueueSettings, file: StartFile, in_store: Kept) -> Result<Identity, StoreError> {
    let kept = file.read().unwrap_or_default().max(in_store);
    let number = kept.start.saturating_add(1);
    let sequence_next = kept.sequence.min(OPEN / 2) + 1;
    let reserved = sequence_next + SEQUENCE_BLOCK;
    if let Err(error) = file.write(Kept { start: number, sequence: reserved }) {
        error!(error:%; "The start file cannot be written");
    }
    let start = Start {
        number,
        store: identity::draw_store().map_err(|error| io_error(&error))?,
        gateway: settings.gateway.clone(),
        boot_id: Arc::from(settings.clock.boot_id()),
        stamp: settings.clock.now(),
    };
    let sessions = BTreeMap::new();
    Ok(Identity { file, start, counter: 0, sequence_next, reserved, session_next: 1, sessions })
}

fn ceilings(settings: &QueueSettings, store: &Store) -> rusqlite::Result<Ceilings> {
    let bytes_max = settings.bytes_max.get();
    let used = store.pages_used()? * PAGE_BYTES;
    let available = match rustix::fs::statvfs(&settings.dir) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => {
            warn!(error:%; "The free space of the disk is not known");
            u64::MAX
        }
    };
    let (ceilings, is_clamped) = retention::ceilings(bytes_max, available, used, WAL_BYTES_MAX, PAGE_BYTES);
    if is_clamped {
        let bytes = ceilings.soft_pages * PAGE_BYTES;
        warn!(bytes_max, bytes, available; "The disk has too little room for the queue; its ceiling is lower");
    }
    Ok(ceilings)
}

impl Books {
    fn load(&mut self, last: u64, is_first: bool, damage: Option<&Damage>) -> rusqlite::Result<()> {
        self.store.write()?;
        self.store.set_meta("stopped", 0)?;
        self.store.set_meta("sequence", self.identity.reserved)?;
        self.load_starts(last)?;
        let session = self.store.meta("session")?.unwrap_or(1).max(self.identity.session_next);
        self.store.set_meta("session", session)?;
        (self.identity.session_next, self.session_reserved) = (session, session);
        self.load_streams(last)?;
        if is_first {
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
        if let Some(Damage { reason, waiting, place }) = damage {
            let wall_ms = self.settings.clock.now().wall_ms;
            self.store.insert_problem(wall_ms, &format!("moved aside to {}: {reason}", place.display()))?;
            self.declare_quarantine(*waiting);
        }
        self.commit()
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
        self.store.delete_starts_before(oldest)
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
                in_flight,
                taken_to: 0,
                session_key: found.session_key,
                session: found.session,
                gaps: BTreeMap::new(),
                told: BTreeMap::new(),
                is_stirred: true,
            });
        }
        self.load_spans(last)?;
        for gap in self.store.gaps()? {
            let stream = self.streams.iter_mut().find(|stream| stream.id == gap.stream);
            if let (Some(stream), Some(reason)) = (stream, LossReason::from_name(&gap.reason)) {
                let (span, count, from_ms, to_ms) = (gap.span, gap.count, gap.from_ms, gap.to_ms);
                stream.gaps.insert(reason, Gap { span, count, from_ms, to_ms, is_dirty: false });
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
        let session = match self.identity.sessions.get(&spec.name) {
            Some(session) => *session,
            None => self.take_session()?,
        };
        let id = self.store.insert_stream(&spec.name, session)?;
        self.streams.push(Stream {
            id,
            name: spec.name.clone(),
            is_active: true,
            rules: list,
            own,
            open: None,
            waiting: 0,
            in_flight: HashSet::new(),
            taken_to: 0,
            session_key: None,
            session,
            gaps: BTreeMap::new(),
            told: BTreeMap::new(),
            is_stirred: false,
        });
        Ok(())
    }

    /// Says to every stream that its messages are in the quarantine. Where nobody knows how many: one event.
    fn declare_quarantine(&mut self, waiting: Option<u64>) {
        let last = self.identity.sequence_next.saturating_sub(1);
        for index in 0..self.streams.len() {
            // How the number divides among the streams is not known; it is said to each and counted once.
            let before = self.turn_losses.len();
            self.lose(index, LossReason::Quarantined, Span::new(0, last), waiting.unwrap_or(1));
            self.turn_losses.truncate(before);
        }
        if waiting != Some(0) {
            self.turn_losses.push((LossReason::Quarantined, waiting.unwrap_or(1)));
        }
    }

    /// Leaves nothing to be looked through, empties the WAL and closes the files.
    pub fn close(mut self) -> rusqlite::Result<()> {
        self.store.write()?;
        while self.removable.count() > 0 {
            self.remove_bodies()?;
        }
        let is_swept = self.sweep.is_none();
        let sequence = self.identity.sequence_next - 1;
        self.store.set_meta("sequence", sequence)?;
        self.store.set_meta("session", self.identity.session_next)?;
        self.store.set_meta("stopped", u64::from(is_swept))?;
        self.commit()?;
        // The file last: until then it says more than was used, which is safe.
        if let Err(error) = self.identity.file.write(Kept { start: self.identity.start.number, sequence }) {
            warn!(error:%; "The start file cannot be written");
        }
        self.store.close()
    }
}

fn own_rules(spec: &StreamSpec, gateway: &str) -> Option<ForwardRule> {
    let own_topic = spec.own_topic.as_deref()?;
    let filter = Filter::new(gap_topic(gateway)?.as_str()).ok()?;
    match TopicTemplate::parse(&format!("{own_topic}/gap"), &filter, gateway) {
        Ok(topic) => {
            Some(ForwardRule { filter, topic, qos: Some(Qos::AtLeastOnce), when_full: None, strict_order: false })
        }
        Err(error) => {
            warn!(uplink = &*spec.name, error:%; "Gap records cannot be sent to the uplink's own topic");
            None
        }
    }
}
