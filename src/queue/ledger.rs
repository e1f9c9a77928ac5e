//! The ledger: the durable daily account of each device and uplink, and the times when nothing was measured.
//!
//! Promises:
//! - **accepted, delivered and dropped are exact**, also over `kill -9`: what was accepted is counted in the transaction
//!   of the row or again from the row (see below), what was settled in the transaction of the settlement. For each
//!   uplink *accepted = delivered + dropped + waiting*, on every day.
//! - `read` and `held back` are counted in memory and reach the disk with the next write of the ledger; what was counted
//!   since is lost by a crash: a minute at most.
//! - It costs no commit of its own, but for one a minute at most while devices are read and nothing else is written.
//!
//! A message is accounted under the day on which it was *accepted*, whenever it is delivered: so a day's sum can be
//! compared with the cloud's of that day. Days are UTC by the gateway's clock. What entered while the clock was not set
//! has a line of its own and keeps it.
//!
//! Lines are written with every settlement, because the rows go with it. While messages only come in, the lines stay
//! behind: a *mark* says up to which row they are right, and a start counts the few rows after it again. So taking a
//! message in costs the flash nothing.
//!
//! Bounds: 400 days, then the oldest go (never a line of which something waits); 1024 devices, those after them are
//! accounted together as "(others)"; a share of the store, beyond which the oldest days go earlier; 4096 gaps.

use std::collections::HashMap;
use std::sync::Arc;

use log::warn;
use serde::{Deserialize, Serialize};

use super::AppendError;
use super::books::Books;
use super::numbers::ByNumber;
use super::row::{self, Entry, Source, Starts};
use super::spans::{self, Span};
use super::store::{PAGE_BYTES, Store};
use crate::clock::Clock;
use crate::health::{DeviceHealth, Health, LossReason, Silence, Unaccounted};
use crate::message::{Body, ClockState, Message, MessageId, Origin, Stamp};

use line::{DAY_UNSET, Key, Line, Mark, day};
use tables::SilenceRow;

mod files;
pub(super) mod line;
mod tables;

pub use files::{ReadError, read};

/// Days that are kept.
pub const DAYS_KEPT: i64 = 400;
/// Devices that are accounted by name.
const DEVICES_MAX: i64 = 1024;
/// Times without measuring that are kept.
const SILENCES_MAX: i64 = 4096;
/// Rows after the mark, which a start has to count again.
const ROWS_AFTER_MARK_MAX: u64 = 1024;
/// While messages only come in, the lines are written so often.
const WRITE_EVERY_MS: u64 = 60_000;
/// What was read and held back is taken in so often.
const FIELD_EVERY_MS: u64 = 30_000;
/// A gateway in which nothing happens says so often that it is alive.
const ALIVE_EVERY_MS: u64 = 600_000;
/// Lines in memory; those beyond are read again when they are needed.
const LINES_IN_MEMORY: usize = 4096;
/// What the ledger may take of the store: one part in so many. A line takes some 64 bytes.
const SHARE: u64 = 16;
const LINE_BYTES: u64 = 64;
/// Messages that were handed out and are remembered; of the others the rows are read again.
const HANDED_MAX: usize = 16 * 1024;
/// Lines that one job carries.
const PAGE_LINES: u64 = 256;
/// Shorter absences are a restart that nobody wants to read of.
const ABSENCE_MS_MIN: i64 = 1000;

const CLIENTS: i64 = 1;
const UPLINKS: i64 = 2;
const GATEWAY: i64 = 3;
const OTHERS: i64 = 4;
/// Rows that cannot be read any more: of which device they were, nobody can say.
const UNREADABLE: i64 = 5;
const DEVICE_FIRST: i64 = 16;

/// The stream that stands for the field.
const FIELD: i64 = 0;

/// The ledger of an open store.
#[derive(Debug)]
pub(super) struct Ledger {
    mark: Mark,
    lines: HashMap<Key, Known, ByNumber>,
    devices: HashMap<Arc<str>, i64>,
    /// Something was settled in this transaction: its rows may go, so the lines must be written with it.
    is_due: bool,
    /// Somebody wants to see everything.
    is_asked: bool,
    written_ms: Option<u64>,
    /// When the field's counters were taken last.
    field_ms: Option<u64>,
    pruned_day: Option<i64>,
    /// Written in this transaction, to be taken off once it is durable.
    accounted: Vec<(Arc<DeviceHealth>, Unaccounted)>,
    /// What was handed out, by stream and sequence, so that settling it reads no row again.
    handed: HashMap<(i64, u64), Fact, ByNumber>,
}

/// Where a message is accounted.
#[derive(Debug, Clone, Copy)]
struct Fact {
    day: i64,
    source: i64,
    /// A reading's own number.
    number: Option<u64>,
    start: u32,
    store: u64,
    counter: u64,
}

#[derive(Debug, Default)]
struct Known {
    line: Line,
    is_dirty: bool,
    /// Not in the store yet.
    is_new: bool,
}

impl Ledger {
    /// Reads the mark and the names; lines are read when they are needed.
    pub fn open(store: &Store, now: Stamp) -> rusqlite::Result<Ledger> {
        let mut fresh = Mark { since_ms: now.wall_ms, alive: now, ..Mark::default() };
        let mark = store.ledger_mark()?;
        if mark.is_none() && store.ledger_line(Mark::KEY)?.is_some() {
            // The lines are there: counting all rows again would count them twice.
            warn!("The mark of the ledger is damaged; what came in the last minute is not in its lines");
            fresh.sequence = store.last_sequence()?;
            fresh.lines = store.count_ledger_lines()?;
        }
        let devices = store.ledger_sources()?.into_iter().map(|(id, name)| (Arc::from(name), id));
        Ok(Ledger {
            mark: mark.unwrap_or(fresh),
            lines: HashMap::default(),
            devices: devices.collect(),
            is_due: false,
            is_asked: false,
            written_ms: None,
            field_ms: None,
            pruned_day: None,
            accounted: Vec::new(),
            handed: HashMap::default(),
        })
    }

    /// Remembers where a message that is handed out is accounted.
    pub fn hand_out(&mut self, stream: i64, sequence: u64, id: &MessageId, message: &Message) {
        if self.handed.len() >= HANDED_MAX {
            self.handed.clear();
        }
        let fact = self.fact(id, message);
        self.handed.insert((stream, sequence), fact);
    }

    /// A message that never had a row has come and gone.
    pub fn pass(&mut self, store: &Store, stream: i64, id: &MessageId, message: &Message) -> rusqlite::Result<()> {
        let fact = self.fact(id, message);
        self.apply(store, stream, fact, |line, number| {
            line.accept(number);
            line.settle(number, None);
        })
    }

    /// Whether messages of this kind can be accounted without a write.
    pub fn knows(&self, message: &Message) -> bool {
        match &message.body {
            Body::Reading(reading) => self.devices.contains_key(&reading.device),
            Body::Bytes(_) => true,
        }
    }

    /// Where a message is accounted. The device of a reading is known.
    fn fact(&self, id: &MessageId, message: &Message) -> Fact {
        let (source, number) = match (&message.body, &message.origin) {
            (Body::Reading(reading), _) => match self.devices.get(&reading.device) {
                Some(id) => (*id, Some(reading.seq)),
                None => (OTHERS, None),
            },
            (_, Origin::Client(_)) => (CLIENTS, None),
            (_, Origin::Uplink(_)) => (UPLINKS, None),
            (_, Origin::Field | Origin::Gateway) => (GATEWAY, None),
        };
        let MessageId { start, store, counter, .. } = *id;
        Fact { day: day(message.received), source, number, start, store, counter }
    }

    /// A message was taken for a stream.
    pub fn accept(&mut self, store: &Store, stream: i64, entry: &Entry<'_>) -> rusqlite::Result<()> {
        self.both(store, stream, entry, |line, number| line.accept(number))
    }

    /// A message was given up before it had a place.
    pub fn turn_away(
        &mut self,
        store: &Store,
        stream: i64,
        entry: &Entry<'_>,
        reason: LossReason,
    ) -> rusqlite::Result<()> {
        self.is_due = true;
        self.both(store, stream, entry, |line, number| {
            line.accept(number);
            line.settle(number, Some(reason));
        })
    }

    fn settle(
        &mut self,
        store: &Store,
        stream: i64,
        entry: &Entry<'_>,
        lost: Option<LossReason>,
    ) -> rusqlite::Result<()> {
        self.both(store, stream, entry, |line, number| line.settle(number, lost))
    }

    /// Changes the line of the source, and that of the start, which keeps the ids.
    fn both(
        &mut self,
        store: &Store,
        stream: i64,
        entry: &Entry<'_>,
        change: impl FnMut(&mut Line, Option<u64>),
    ) -> rusqlite::Result<()> {
        let (source, number) = match entry.source {
            Source::Device(name, seq) => match self.device(store, name)? {
                OTHERS => (OTHERS, None),
                id => (id, Some(seq)),
            },
            Source::Clients => (CLIENTS, None),
            Source::Uplinks => (UPLINKS, None),
            Source::Gateway => (GATEWAY, None),
        };
        let MessageId { start, store: bits, counter, .. } = entry.id;
        let fact = Fact { day: day(entry.received), source, number, start, store: bits, counter };
        self.apply(store, stream, fact, change)
    }

    fn apply(
        &mut self,
        store: &Store,
        stream: i64,
        fact: Fact,
        mut change: impl FnMut(&mut Line, Option<u64>),
    ) -> rusqlite::Result<()> {
        let Fact { day, source, number, .. } = fact;
        change(self.line(store, Key { day, stream, source })?, number);
        let ids = self.line(store, Key { day, stream, source: -i64::from(fact.start) })?;
        ids.store = fact.store;
        change(ids, Some(fact.counter));
        Ok(())
    }

    fn device(&mut self, store: &Store, name: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.devices.get(name) {
            return Ok(*id);
        }
        let count = i64::try_from(self.devices.len()).unwrap_or(i64::MAX);
        if count >= DEVICES_MAX {
            return Ok(OTHERS);
        }
        let id = DEVICE_FIRST + count;
        store.insert_ledger_source(id, name)?;
        self.devices.insert(Arc::from(name), id);
        Ok(id)
    }

    /// A line to be changed.
    fn line(&mut self, store: &Store, key: Key) -> rusqlite::Result<&mut Line> {
        let known = match self.lines.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(room) => {
                let body = store.ledger_line(key)?;
                let found = body.as_deref().and_then(|body| Line::decode(body, key));
                if body.is_some() && found.is_none() {
                    warn!(day = key.day; "A line of the ledger is damaged and begins anew");
                }
                room.insert(Known { is_new: body.is_none(), line: found.unwrap_or_default(), is_dirty: false })
            }
        };
        known.is_dirty = true;
        Ok(&mut known.line)
    }

    /// Counts what came after the mark, from the rows. `spans` are those that the stream still wants.
    fn count_again(
        &mut self,
        store: &Store,
        starts: &Starts,
        stream: i64,
        spans: &[Span],
    ) -> rusqlite::Result<Option<Stamp>> {
        let mut last = None;
        for span in spans {
            self.each(store, starts, *span, |ledger, entry| match entry {
                Some(entry) => {
                    last = Some(entry.received);
                    ledger.accept(store, stream, &entry)
                }
                None => {
                    let key = Key { day: DAY_UNSET, stream, source: UNREADABLE };
                    ledger.line(store, key)?.accept(None);
                    Ok(())
                }
            })?;
        }
        Ok(last)
    }

    /// Shows what each row of a span is to the ledger; `None` for one that is missing or damaged.
    fn each(
        &mut self,
        store: &Store,
        starts: &Starts,
        span: Span,
        mut see: impl FnMut(&mut Ledger, Option<Entry<'_>>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut expected = span.first;
        let mut outcome = Ok(());
        store.messages(span, |sequence, body| {
            while expected < sequence && outcome.is_ok() {
                outcome = see(self, None);
                expected += 1;
            }
            if outcome.is_ok() {
                outcome = see(self, row::entry(body, sequence, starts));
            }
            expected = sequence + 1;
            outcome.is_ok()
        })?;
        while expected <= span.last && outcome.is_ok() {
            outcome = see(self, None);
            expected += 1;
        }
        outcome
    }

    /// Takes in what the devices did since.
    fn take_field(&mut self, store: &Store, health: &Health, now: Stamp) -> rusqlite::Result<()> {
        self.accounted.clear();
        (self.is_asked, self.field_ms) = (false, Some(now.mono_ms));
        for (name, device) in health.devices() {
            let done = device.unaccounted();
            if done.is_empty() {
                continue;
            }
            let source = self.device(store, &name)?;
            if done.read > 0 {
                let line = self.line(store, Key { day: day(now), stream: FIELD, source })?;
                line.read += done.read;
                line.held += done.held;
            }
            for silence in &done.silences {
                match silence {
                    Silence::Began { from, reason } => {
                        store.begin_silence(&name, from.wall_ms, from.clock != ClockState::Unset, reason)?;
                    }
                    Silence::Ended { at } => {
                        store.end_silence(Some(&name), at.wall_ms, at.clock != ClockState::Unset)?;
                    }
                }
            }
            self.accounted.push((device, done));
        }
        Ok(())
    }

    fn write(&mut self, store: &Store, sequence: u64, now: Stamp) -> rusqlite::Result<()> {
        for (key, known) in self.lines.iter_mut().filter(|(_, known)| known.is_dirty) {
            store.set_ledger_line(*key, &known.line.encode(*key))?;
            self.mark.lines += u64::from(known.is_new);
            (known.is_dirty, known.is_new) = (false, false);
        }
        if self.lines.len() > LINES_IN_MEMORY {
            self.lines.clear();
        }
        self.mark = Mark { sequence, alive: now, ..self.mark };
        store.set_ledger_line(Mark::KEY, &self.mark.encode())?;
        self.written_ms = Some(now.mono_ms);
        self.is_due = false;
        Ok(())
    }

    /// Once a day and after a start: what is too old goes, and more where the ledger takes more than its share.
    fn prune(&mut self, store: &Store, lines_max: u64, now: Stamp) -> rusqlite::Result<()> {
        let today = day(now);
        if today == DAY_UNSET || self.pruned_day == Some(today) {
            return Ok(());
        }
        let mut after = Key { day: i64::MIN, stream: 0, source: 0 };
        let mut is_whole = false;
        // Bounded; what is left goes tomorrow or with the next start.
        for _ in 0..64 {
            let found = store.ledger_lines(after, today - 1, PAGE_LINES)?;
            let Some((last, _)) = found.last() else {
                is_whole = true;
                break;
            };
            after = *last;
            for (key, body) in &found {
                let is_old = key.day < today - DAYS_KEPT || self.mark.lines > lines_max;
                if !is_old {
                    is_whole = true;
                    break;
                }
                // One of which something waits must stay: its settlement would find no line.
                if Line::decode(body, *key).is_none_or(|line| line.is_settled()) && !self.is_dirty(*key) {
                    store.delete_ledger_line(*key)?;
                    self.lines.remove(key);
                    self.mark.lines = self.mark.lines.saturating_sub(1);
                }
            }
            if is_whole {
                break;
            }
        }
        if is_whole && self.mark.lines > lines_max {
            // The count may be wrong after damage: it is taken anew once, rather than losing all lines to it.
            self.mark.lines = store.count_ledger_lines()?;
        }
        store.prune_silences(SILENCES_MAX, now.wall_ms - DAYS_KEPT * 86_400_000)?;
        self.pruned_day = Some(today);
        Ok(())
    }

    fn is_dirty(&self, key: Key) -> bool {
        self.lines.get(&key).is_some_and(|known| known.is_dirty)
    }
}

impl Books {
    /// The opening: counts what came after the mark, and notes how long the gateway was away.
    pub fn load_ledger(&mut self, last: u64, was_open: bool, was_stopped: bool) -> rusqlite::Result<()> {
        let now = self.settings.clock.now();
        let is_kept = self.store.ledger_mark()?.is_some();
        let newest = recount(&mut self.ledger, &self.store, &self.starts, last)?;
        self.ledger.is_due = true;
        if was_open || !is_kept {
            return Ok(());
        }
        // A row that came after the last write of the ledger says that the gateway was alive then.
        let mut alive = self.ledger.mark.alive;
        if let Some(newest) = newest.filter(|newest| newest.clock != ClockState::Unset) {
            alive.wall_ms = alive.wall_ms.max(newest.wall_ms);
        }
        let is_sure = alive.clock != ClockState::Unset && now.clock != ClockState::Unset;
        self.store.end_silence(None, alive.wall_ms, is_sure)?;
        if !is_sure || now.wall_ms - alive.wall_ms >= ABSENCE_MS_MIN {
            let reason = if was_stopped { "the gateway was stopped" } else { "the gateway was off or killed" };
            self.store.insert_silence(&SilenceRow {
                id: 0,
                device: String::new(),
                from_ms: alive.wall_ms,
                to_ms: Some(now.wall_ms),
                is_sure,
                reason: reason.to_owned(),
            })?;
        }
        Ok(())
    }

    /// A stream's messages ended; their rows are still there. What was handed out is known, so that a page that cannot be
    /// read any more keeps no message from being settled; other rows are read.
    pub fn account_settled(&mut self, index: usize, gone: Span, lost: Option<LossReason>) -> rusqlite::Result<()> {
        // What was asked of a device is answered to whoever asked; the account is of what goes to clouds.
        let Some(stream) = self.streams.get(index).filter(|stream| !stream.is_writes()) else { return Ok(()) };
        let stream = stream.id;
        self.ledger.is_due = true;
        let mut unknown = Vec::new();
        for sequence in gone.first..=gone.last {
            match self.ledger.handed.remove(&(stream, sequence)) {
                Some(fact) => {
                    self.ledger.apply(&self.store, stream, fact, |line, number| line.settle(number, lost))?;
                }
                None => unknown.push(sequence),
            }
        }
        let store = &self.store;
        for run in spans::runs(&unknown) {
            self.ledger.each(store, &self.starts, run, |ledger, entry| match entry {
                Some(entry) => ledger.settle(store, stream, &entry, lost),
                None => {
                    ledger.line(store, Key { day: DAY_UNSET, stream, source: UNREADABLE })?.settle(None, lost);
                    Ok(())
                }
            })?;
        }
        Ok(())
    }

    /// Before each commit: writes the lines where they must be in it, or where it is time and the disk is written anyway.
    pub fn write_ledger(&mut self) -> rusqlite::Result<()> {
        if !self.store.is_writing() {
            return Ok(());
        }
        let now = self.settings.clock.now();
        // What is held in memory may still become a row, and is accounted then.
        let last = self.held.first().unwrap_or(self.identity.sequence_next) - 1;
        let ledger = &mut self.ledger;
        let is_time = ledger.written_ms.is_none_or(|written| now.mono_ms.saturating_sub(written) >= WRITE_EVERY_MS)
            || last.saturating_sub(ledger.mark.sequence) >= ROWS_AFTER_MARK_MAX;
        if !ledger.is_due && !is_time {
            return Ok(());
        }
        // Not with each settlement: their lines would be written every second, on pages of their own.
        if ledger.is_asked || ledger.field_ms.is_none_or(|taken| now.mono_ms.saturating_sub(taken) >= FIELD_EVERY_MS) {
            ledger.take_field(&self.store, &self.settings.health, now)?;
        }
        ledger.prune(&self.store, self.ceilings.share_pages * PAGE_BYTES / SHARE / LINE_BYTES, now)?;
        ledger.write(&self.store, last, now)
    }

    /// The lines are on disk.
    pub fn ledger_committed(&mut self) {
        for (device, done) in self.ledger.accounted.drain(..) {
            device.accounted(&done);
        }
    }

    /// Sees to it that the next commit has the lines, if there is anything to say.
    pub fn tick_ledger(&mut self) -> rusqlite::Result<()> {
        let now_ms = self.settings.clock.now().mono_ms;
        let since = self.ledger.written_ms.map(|written| now_ms.saturating_sub(written));
        let is_busy = self.settings.health.devices().iter().any(|(_, device)| !device.unaccounted().is_empty());
        let pause = if is_busy { FIELD_EVERY_MS } else { ALIVE_EVERY_MS };
        if since.is_none_or(|since| since >= pause) { self.flush_ledger() } else { Ok(()) }
    }

    /// Sees to it that this transaction has the lines.
    pub fn flush_ledger(&mut self) -> rusqlite::Result<()> {
        self.store.write()?;
        (self.ledger.is_due, self.ledger.is_asked) = (true, true);
        Ok(())
    }

    /// One job's share of the ledger. The first one brings the lines up to date.
    pub fn ledger_page(&mut self, ask: PageAsk) -> rusqlite::Result<Page> {
        if ask.place == Place::Begin {
            // Written by the commit that goes before the answer; the next page sees it.
            self.flush_ledger()?;
            let next = Some(Place::Lines(Key { day: i64::MIN, stream: 0, source: 0 }));
            return Ok(Page { next, ..Page::default() });
        }
        page(&self.store, ask, self.ledger.mark)
    }
}

/// Counts the rows after the mark again; gives back when the newest of them came.
fn recount(ledger: &mut Ledger, store: &Store, starts: &Starts, last: u64) -> rusqlite::Result<Option<Stamp>> {
    let mut wanted: HashMap<i64, Vec<Span>> = HashMap::new();
    let after = Span::new(ledger.mark.sequence + 1, last);
    store.spans(|stream, span, _| wanted.entry(stream).or_default().extend(span.overlap(after)))?;
    let mut newest: Option<Stamp> = None;
    if let Some(writes) = store.streams()?.into_iter().find(|row| *row.name == *super::WRITES) {
        wanted.remove(&writes.id);
    }
    for (stream, spans) in wanted {
        let last = ledger.count_again(store, starts, stream, &spans)?;
        newest = newest.into_iter().chain(last).max_by_key(|stamp| stamp.wall_ms);
    }
    Ok(newest)
}

// The answer

/// Which days; both included, as days since 1970-01-01. What has no day is always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Days {
    /// The first.
    pub from: i64,
    /// The last.
    pub to: i64,
}

/// What the ledger says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The gateway's id.
    pub gateway: String,
    /// Since when it is kept, RFC 3339.
    pub since: String,
    /// For each day, uplink and source.
    pub lines: Vec<ReportLine>,
    /// For each day and device.
    pub field: Vec<FieldLine>,
    /// For each day, uplink and start of the gateway: the message ids.
    pub ids: Vec<IdLine>,
    /// When nothing was measured.
    pub gaps: Vec<GapLine>,
    /// Lines that were damaged and are left out.
    pub damaged_lines: u64,
}

/// What was accepted of one source on one day for one uplink, and what has become of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportLine {
    /// `2026-11-25`, or `unset`.
    pub day: String,
    /// The uplink.
    pub uplink: String,
    /// A device; or `(clients)`, `(uplinks)`, `(gateway)`, `(others)`, `(unreadable)`.
    pub source: String,
    /// It is a device.
    pub is_device: bool,
    /// Taken and acknowledged.
    pub accepted: u64,
    /// Acknowledged by the cloud.
    pub delivered: u64,
    /// By reason.
    pub dropped: std::collections::BTreeMap<String, u64>,
    /// Neither.
    pub waiting: i64,
    /// First and last number of a device's readings that were accepted.
    pub numbers: Option<(u64, u64)>,
    /// Runs of the numbers that were delivered.
    pub delivered_numbers: Vec<(u64, u64)>,
    /// The runs have holes that are not known: only their sum can be compared.
    pub is_loose: bool,
}

/// What was read of one device on one day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldLine {
    /// `2026-11-25`, or `unset`.
    pub day: String,
    /// The device.
    pub device: String,
    /// Values that were seen, failed ones included.
    pub read: u64,
    /// Those of them that the report rule held back.
    pub held_back: u64,
}

/// The ids of what was accepted on one day for one uplink since one start of the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdLine {
    /// `2026-11-25`, or `unset`.
    pub day: String,
    /// The uplink.
    pub uplink: String,
    /// The second part of the ids.
    pub store: u64,
    /// The third part of the ids.
    pub start: u32,
    /// How many were accepted.
    pub accepted: u64,
    /// How many were delivered.
    pub delivered: u64,
    /// First and last counter that was accepted.
    pub counters: Option<(u64, u64)>,
    /// Runs of the counters that were delivered.
    pub delivered_counters: Vec<(u64, u64)>,
    /// As in `ReportLine`.
    pub is_loose: bool,
}

/// A time in which nothing was measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapLine {
    /// The device; null = all, the gateway was off.
    pub device: Option<String>,
    /// RFC 3339.
    pub from: String,
    /// RFC 3339; null = it lasts.
    pub to: Option<String>,
    /// How long it lasted.
    pub seconds: Option<i64>,
    /// Both ends were taken by a clock that was set.
    pub is_sure: bool,
    /// For a person.
    pub reason: String,
}

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Begin,
    Lines(Key),
    Gaps(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageAsk {
    pub days: Days,
    pub place: Place,
}

/// A piece of the report and where the next one begins.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub report: Report,
    pub next: Option<Place>,
}

impl Page {
    /// Adds this piece to what is there.
    pub fn add_to(self, whole: &mut Report) -> Option<Place> {
        let Report { gateway, since, lines, field, ids, gaps, damaged_lines } = self.report;
        if !gateway.is_empty() {
            (whole.gateway, whole.since) = (gateway, since);
        }
        whole.lines.extend(lines);
        whole.field.extend(field);
        whole.ids.extend(ids);
        whole.gaps.extend(gaps);
        whole.damaged_lines += damaged_lines;
        self.next
    }
}

fn page(store: &Store, PageAsk { days, place }: PageAsk, mark: Mark) -> rusqlite::Result<Page> {
    // What has no day lies behind all days: whoever asks for days up to there would never come to its end.
    let days = Days { to: days.to.min(DAY_UNSET - 2), ..days };
    let mut report = Report {
        gateway: store.last_gateway()?.unwrap_or_default(),
        since: crate::clock::rfc3339(mark.since_ms),
        ..Report::default()
    };
    let next = match place {
        Place::Begin => Some(Place::Lines(Key { day: i64::MIN, stream: 0, source: 0 })),
        Place::Lines(after) => {
            // Days up to the last one wanted, then what has no day.
            let is_dayless = after.day > days.to;
            let from = Key { day: days.from.saturating_sub(1), stream: i64::MAX, source: i64::MAX }.max(after);
            let to = if is_dayless { DAY_UNSET } else { days.to };
            let found = store.ledger_lines(from, to, PAGE_LINES)?;
            let names = Names::read(store)?;
            found.iter().for_each(|(key, body)| names.tell(*key, body, &mut report));
            match found.last() {
                Some((last, _)) => Some(Place::Lines(*last)),
                None if is_dayless => Some(Place::Gaps(0)),
                None => Some(Place::Lines(Key { day: DAY_UNSET - 1, stream: i64::MAX, source: i64::MAX })),
            }
        }
        Place::Gaps(after) => {
            let (from_ms, to_ms) =
                (days.from.saturating_mul(86_400_000), days.to.saturating_add(1).saturating_mul(86_400_000));
            let found = store.silences(after, from_ms, to_ms, PAGE_LINES)?;
            report.gaps.extend(found.iter().map(told));
            found.last().map(|last| Place::Gaps(last.id))
        }
    };
    Ok(Page { report, next })
}

fn told(row: &SilenceRow) -> GapLine {
    let SilenceRow { device, from_ms, to_ms, is_sure, reason, .. } = row;
    GapLine {
        device: (!device.is_empty()).then(|| device.clone()),
        from: crate::clock::rfc3339(*from_ms),
        to: to_ms.map(crate::clock::rfc3339),
        seconds: to_ms.map(|to| (to - from_ms) / 1000),
        is_sure: *is_sure,
        reason: reason.clone(),
    }
}

/// Names of streams and sources.
struct Names {
    streams: HashMap<i64, Arc<str>>,
    sources: HashMap<i64, String>,
}

impl Names {
    fn read(store: &Store) -> rusqlite::Result<Names> {
        let streams = store.streams()?.into_iter().map(|row| (row.id, row.name)).collect();
        let named = [(CLIENTS, "(clients)"), (UPLINKS, "(uplinks)"), (GATEWAY, "(gateway)"), (OTHERS, "(others)")];
        let mut sources: HashMap<i64, String> = named.map(|(id, name)| (id, name.to_owned())).into();
        sources.insert(UNREADABLE, "(unreadable)".to_owned());
        sources.extend(store.ledger_sources()?);
        Ok(Names { streams, sources })
    }

    fn tell(&self, key: Key, body: &[u8], report: &mut Report) {
        let Some(line) = Line::decode(body, key) else {
            report.damaged_lines += 1;
            return;
        };
        let day = if key.day == DAY_UNSET { "unset".to_owned() } else { day_name(key.day) };
        let source = self.sources.get(&key.source).cloned().unwrap_or_else(|| "(unknown)".to_owned());
        if key.stream == FIELD {
            report.field.push(FieldLine { day, device: source, read: line.read, held_back: line.held });
            return;
        }
        let uplink = self.streams.get(&key.stream).map_or("(gone)", |name| &**name).to_owned();
        let numbers = line.numbers.map(|span| (span.first, span.last));
        let runs = line.runs.runs.iter().map(|run| (run.first, run.last)).collect();
        if key.source < 0 {
            report.ids.push(IdLine {
                day,
                uplink,
                store: line.store,
                start: u32::try_from(-key.source).unwrap_or(u32::MAX),
                accepted: line.accepted,
                delivered: line.delivered,
                counters: numbers,
                delivered_counters: runs,
                is_loose: line.runs.is_loose,
            });
            return;
        }
        let settled = line.delivered + line.dropped_total();
        report.lines.push(ReportLine {
            day,
            uplink,
            source,
            is_device: key.source >= DEVICE_FIRST,
            accepted: line.accepted,
            delivered: line.delivered,
            dropped: line.dropped.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
            waiting: line.accepted.cast_signed().saturating_sub(settled.cast_signed()),
            numbers,
            delivered_numbers: runs,
            is_loose: line.runs.is_loose,
        });
    }
}

fn day_name(day: i64) -> String {
    let time = crate::clock::rfc3339(day.saturating_mul(86_400_000));
    time.split('T').next().unwrap_or_default().to_owned()
}

impl super::Inlet {
    /// What the ledger says of these days.
    pub async fn ledger(&self, days: Days) -> Result<Report, AppendError> {
        let mut report = Report::default();
        let mut place = Some(Place::Begin);
        // Page by page, so that a long account does not hold up those who append.
        while let Some(begin) = place {
            let page_ask = PageAsk { days, place: begin };
            let page = super::ask(&self.jobs, |reply| super::Job::Ledger(page_ask, reply)).await?;
            place = page.add_to(&mut report);
        }
        Ok(report)
    }

    /// Lets the ledger say that the gateway is alive and what it has read; to be called every half minute or so.
    pub async fn tick(&self) -> Result<(), AppendError> {
        super::ask(&self.jobs, super::Job::Tick).await
    }
}

/// Today by this clock, as a number of days.
pub fn today(clock: &Clock) -> i64 {
    clock.now().wall_ms.div_euclid(86_400_000)
}
