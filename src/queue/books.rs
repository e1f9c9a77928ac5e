//! What the worker knows: streams, open spans, counters, ceilings; and the way in, from match to row.
//!
//! Promises: the books never run ahead of the store. Every change is made in both within one transaction, and when
//! that fails the books are thrown away and read again. Nothing here waits or replies; the worker does.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use log::{error, info, warn};

use super::boots::{self, Boot, Boots};
use super::commands::Commands;
use super::copying::Copying;
use super::headroom::Headroom;
use super::identity::{Kept as KeptStart, SEQUENCE_BLOCK, SESSIONS, StartFile, Waiting};
use super::kept::Kept;
use super::ledger::Ledger;
use super::retention::{self, Ceilings, Refusal, Way};
use super::routes::Routes;
use super::row::{self, Start, Starts, Words};
use super::rules::{self, RuleList};
use super::salvage::Salvage;
use super::scrub::Scrub;
use super::sessions::{Match, Sessions};
use super::spans::{self, OPEN, Ranges, Span};
use super::spare::Held;
use super::store::{GapRow, PAGE_BYTES, Store, is_damage};
use super::{AppendError, Appended, Fate, Once, QueueSettings, SessionNumber, Stats, StreamStats, Submission, WRITES};
use crate::clock::Timing;
use crate::config::WhenFull;
use crate::health::{Alarm as Raised, LossReason};
use crate::message::{Body, ClockState, Message, MessageId, Ordinal, Origin, Qos, Sequence, Stamp, Topic};

/// Rows of one job: so long may others have to wait.
pub(super) const JOB_ROWS_MAX: u64 = 256;
/// Names that rows bear as numbers; what comes after them is written out.
const WORDS_MAX: usize = 1024;
/// Session numbers that are reserved at a time.
const SESSION_BLOCK: u64 = 1024;
/// Numbers of a device's readings that are reserved at a time where the flash is spared: after a power cut so many may
/// be passed over, and none is given twice.
const DEVICE_BLOCK: u64 = 4096;
/// Rows that one transaction may look at in vain to find some that may be evicted.
pub(super) const EVICT_LOOK_MAX: u64 = 512;
/// Of the store, this share stays free for sessions of local clients where there are any.
const SESSION_SHARE: u64 = 16;
/// And in a small one so much, but no more than an eighth: the alarm at four fifths is to be heard.
const SESSION_BYTES_MIN: u64 = 256 * 1024;
/// Each reason is logged at most so often.
const ALARM_PAUSE_MS: u64 = 60_000;

/// The span of a stream that grows with each message it wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub first: u64,
    /// The place after its last row. Places from here on that were given meanwhile are not in the store.
    pub next: u64,
    pub rule: i64,
}

/// A loss that the cloud was not told yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gap {
    pub span: Span,
    /// `None`: nobody knows. It stays so, whatever is added.
    pub count: Option<u64>,
    pub from_ms: i64,
    pub to_ms: i64,
    /// One of them is of a clock that was not set.
    pub is_unset: bool,
    pub is_dirty: bool,
}

/// One consumer.
#[derive(Debug)]
pub(super) struct Stream {
    pub id: i64,
    pub name: Arc<str>,
    /// False: no uplink of this name is configured; what it holds is kept and ages.
    pub is_active: bool,
    pub rules: Arc<RuleList>,
    /// How its gap records leave; `None` = they stay.
    pub own: Option<Arc<RuleList>>,
    pub open: Option<Open>,
    pub waiting: u64,
    /// As it was after the last commit.
    pub committed: u64,
    /// At QoS 2: neither sent twice nor evicted.
    pub in_flight: HashSet<u64>,
    /// What was handed out may be under way to the cloud: evicted last.
    pub taken_to: u64,
    pub session_key: Option<u64>,
    pub session: u64,
    pub gaps: BTreeMap<LossReason, Gap>,
    /// When a gap of a reason was told last, by the monotonic clock.
    pub told: BTreeMap<LossReason, u64>,
    /// Something new waits since the consumer was last woken.
    pub is_stirred: bool,
    /// Its uplink is connected and takes messages at QoS 1.
    pub is_live: bool,
    /// Of what is kept, what it is to send once more.
    pub again: Ranges,
    /// Counts the orders for that.
    pub again_round: u64,
}

/// What must go on when a store is opened again: counted in this process, whatever the disk says.
#[derive(Debug)]
pub(super) struct Identity {
    pub file: StartFile,
    pub start: Start,
    /// Of the last `MessageId`.
    pub counter: u64,
    /// The next place.
    pub sequence_next: u64,
    /// No place above this one may be given without reserving more.
    pub reserved: u64,
    /// The next session number. Clients hold theirs over a quarantine: one that was given twice would make a message
    /// of the one a repeat of the other's.
    pub session_next: u64,
    /// Sessions of the streams, as their uplinks hold them: a store that begins anew gives them no others.
    pub sessions: BTreeMap<Arc<str>, u64>,
    /// Up to here nothing was wanted when it was looked at last; never more than is true.
    pub settled: u64,
}

#[derive(Debug, Default)]
pub(super) struct Device {
    /// Of its last reading.
    seq: u64,
    /// What the store says: the next one is given only after that.
    kept: u64,
}

#[derive(Debug, Default)]
pub(super) struct Alarm {
    logged_ms: Option<u64>,
    count: u64,
}

/// The books of an open store.
#[derive(Debug)]
pub(super) struct Books {
    pub settings: QueueSettings,
    pub store: Store,
    /// After the store: it is closed later.
    pub headroom: Headroom,
    pub identity: Identity,
    pub starts: Starts,
    pub boots: Boots,
    pub words: Words,
    pub lists: HashMap<i64, Arc<RuleList>>,
    pub routes: Routes,
    pub streams: Vec<Stream>,
    pub ceilings: Ceilings,
    /// Rows that some stream still wants.
    pub rows: u64,
    /// Rows that nobody wants any more and that are still there.
    pub removable: Ranges,
    /// Rows that were delivered and that nobody wants any more, but for a person who may have them sent again.
    pub kept: Kept,
    /// Since when the queue is empty, and the place that was next then.
    pub empty_since: Option<(u64, u64)>,
    /// After a crash: what has still to be looked through for rows that nobody wants.
    pub sweep: Option<Span>,
    pub session_reserved: u64,
    pub retained: (u64, u64),
    pub dead_letters: (u64, u64),
    pub losses: BTreeMap<LossReason, u64>,
    pub devices: HashMap<Arc<str>, Device>,
    /// Of clouds, at QoS 1.
    pub commands: Commands,
    /// What is in memory only.
    pub held: Held,
    pub ledger: Ledger,
    /// Of local clients.
    pub sessions: Sessions,
    /// Bytes of pages that intake may still fill, as far as known in this transaction.
    pub room: Option<u64>,
    /// Bytes of pages in use after the last commit.
    pub used_bytes: u64,
    /// Where the search for what may be evicted goes on.
    pub evict_from: u64,
    /// In a pass that does not spare what was handed out.
    pub evict_taken: bool,
    /// Looked at in vain in this transaction.
    pub evict_looked: u64,
    /// Lost in the open transaction.
    pub turn_losses: Vec<(LossReason, u64)>,
    pub alarms: BTreeMap<LossReason, Alarm>,
    /// The oldest waiting message and when it entered, as milliseconds since this boot.
    pub oldest: Option<(u64, u64)>,
    pub scratch: Vec<u8>,
    /// Quarantines that are to be salvaged, and the one that is being.
    pub salvages: VecDeque<PathBuf>,
    pub salvage: Option<Box<Salvage>>,
    pub scrub: Scrub,
    /// Whether the last start ended in order; `None` = there was none.
    pub was_stopped: Option<bool>,
    /// Why the program is about to stop, if not because it was asked to.
    pub stop_reason: Option<String>,
    /// Damage that was seen after a commit: the worker's next turn begins with it.
    pub fault: Option<rusqlite::Error>,
    /// The gauges could not be read, which was said.
    pub is_stale: bool,
    /// A copy under way, and the number of the next one.
    pub copying: Option<Copying>,
    pub copy_next: u64,
}

impl Stream {
    /// Whether this is the stream of writes to field devices.
    pub fn is_writes(&self) -> bool {
        *self.name == *WRITES
    }
}

impl Books {
    // The way in

    /// Takes a message: matches it, finds room, gives it its place and its name.
    pub fn append(&mut self, submission: Submission) -> rusqlite::Result<Result<Appended, AppendError>> {
        let Submission { mut message, once } = submission;
        if let Some(once) = once
            && self.is_repeat(once)?
        {
            return Ok(Ok(Appended { id: self.take_id(), reading_seq: 0, fate: Fate::Duplicate }));
        }
        let wanted = self.wanted(&message);
        let lanes = self.sessions.matching(&message);
        let seq = self.number(&mut message)?;
        let mut scratch = std::mem::take(&mut self.scratch);
        let taken = self.take(&mut scratch, &wanted, &lanes, &message);
        self.scratch = scratch;
        let fate = match taken? {
            Ok(fate) => fate,
            Err(error) => return Ok(Err(error)),
        };
        let id = self.name();
        if message.retain {
            self.retain(&id, &message)?;
        }
        match once {
            Some(Once::Packet { session, packet_id }) => {
                self.store.write()?;
                self.store.insert_received(session.0, packet_id)?;
            }
            Some(Once::Command { key, .. }) => {
                self.store.write()?;
                self.commands.note(&self.store, key)?;
            }
            None => {}
        }
        self.note_number(&message);
        Ok(Ok(Appended { id, reading_seq: seq.unwrap_or(0), fate }))
    }

    fn is_repeat(&self, once: Once) -> rusqlite::Result<bool> {
        match once {
            Once::Packet { session, packet_id } => self.store.is_received(session.0, packet_id),
            Once::Command { key, may_be_repeat } => Ok(may_be_repeat && self.commands.knows(key)),
        }
    }

    /// Which streams want a message, and what gives way for it there.
    pub fn wanted(&self, message: &Message) -> Vec<(usize, WhenFull)> {
        let default = self.settings.when_full;
        let mut wanted = Vec::new();
        for (index, stream) in self.streams.iter().enumerate().filter(|(_, stream)| stream.is_active) {
            if self.is_not_for(stream, message) {
                continue;
            }
            if let Some(rule) = stream.rules.first(&message.topic)
                && rules::qos(rule, message) != Qos::AtMostOnce
            {
                wanted.push((index, rule.when_full.unwrap_or(default)));
            }
        }
        wanted
    }

    /// Whether a stream has nothing to do with a message whatever its rules say: what came from an uplink never goes back to
    /// it, and of writes only these are wanted.
    pub fn is_not_for(&self, stream: &Stream, message: &Message) -> bool {
        match &message.origin {
            _ if stream.is_writes() => !self.settings.set_topics.want(message),
            Origin::Uplink(name) => *name == stream.name,
            _ => false,
        }
    }

    /// Gives a reading its number, which counts from the next submission on only if this one is taken.
    pub fn number(&mut self, message: &mut Message) -> rusqlite::Result<Option<u64>> {
        let Body::Reading(reading) = &mut message.body else { return Ok(None) };
        let last = match self.devices.get(&reading.device) {
            Some(device) => device.seq,
            None => {
                let seq = self.store.device(&reading.device)?.unwrap_or(0);
                self.devices.insert(reading.device.clone(), Device { seq, kept: seq });
                seq
            }
        };
        reading.seq = last + 1;
        Ok(Some(reading.seq))
    }

    /// A reading was taken: its number counts. Says whether the store has to be told before it leaves.
    pub fn note_number(&mut self, message: &Message) -> bool {
        let Body::Reading(reading) = &message.body else { return false };
        let Some(device) = self.devices.get_mut(&reading.device) else { return false };
        device.seq = reading.seq;
        device.seq > device.kept
    }

    fn take(
        &mut self,
        scratch: &mut Vec<u8>,
        wanted: &[(usize, WhenFull)],
        lanes: &[Match],
        message: &Message,
    ) -> rusqlite::Result<Result<Fate, AppendError>> {
        // The name is given whatever comes of it: a number that is skipped harms nobody.
        self.identity.counter += 1;
        if wanted.is_empty() && lanes.is_empty() {
            // What is only retained has no place of its own: a hole would break the spans of those that wait.
            let sequence = Sequence(self.identity.sequence_next - 1);
            return Ok(Ok(if message.retain { Fate::Stored { sequence, streams: 0 } } else { Fate::Unwanted }));
        }
        self.learn_word(&message.origin)?;
        let sequence = self.sequence()?;
        row::encode(scratch, sequence, &self.identity.start, self.identity.counter, message, &self.words);
        let room = retention::row_bytes(scratch.len(), PAGE_BYTES);
        let is_write = wanted.iter().any(|(index, _)| self.streams.get(*index).is_some_and(Stream::is_writes));
        let refusal = match wanted {
            [] => None,
            // The plant goes on while the store is full of what a cloud does not take: the oldest of that go for a write, and
            // where none may, whoever asks for it hears so.
            _ if is_write => {
                let rules = [(usize::MAX, WhenFull::DropOldest), (usize::MAX, WhenFull::Refuse)];
                self.find_room_beside(room, self.session_room(), &rules)?
            }
            _ => self.find_room_beside(room, self.session_room(), wanted)?,
        };
        // A session never refuses: for what it wants the oldest go that may.
        let is_for_lanes = !lanes.is_empty()
            && (refusal == Some(Refusal::Drop) || wanted.is_empty())
            && self.find_room(room, &[(usize::MAX, WhenFull::DropOldest)])?.is_none();
        if refusal.is_some() || (wanted.is_empty() && !is_for_lanes) {
            match refusal {
                Some(Refusal::Refuse) => return Ok(Err(AppendError::Full)),
                _ => {
                    let entry = row::fresh_entry(scratch, &self.starts);
                    for (index, _) in wanted {
                        if let (Some(entry), Some(stream)) = (&entry, self.streams.get(*index)) {
                            self.store.write()?;
                            self.ledger.turn_away(&self.store, stream.id, entry, LossReason::DroppedNewest)?;
                        }
                        self.lose(*index, LossReason::DroppedNewest, Span::new(sequence, sequence), Some(1));
                    }
                }
            }
            if !is_for_lanes {
                self.turn_losses.extend(lanes.iter().map(|_| (LossReason::SessionFull, 1)));
                return Ok(Ok(Fate::Dropped(LossReason::DroppedNewest)));
            }
        }
        // What the uplinks have lost may still wait for sessions.
        let wanted = if refusal.is_some() { &[] } else { wanted };
        self.place(sequence, scratch, |index| wanted.iter().any(|(other, _)| *other == index), false)?;
        self.extend_lanes(lanes, sequence, scratch.len())?;
        Ok(Ok(Fate::Stored { sequence: Sequence(sequence), streams: wanted.len() + lanes.len() }))
    }

    /// Puts a row in its place and extends the spans of those that want it. What is held goes first: it has its place
    /// before this one.
    pub fn place(
        &mut self,
        sequence: u64,
        body: &[u8],
        is_wanted: impl Fn(usize) -> bool,
        is_own: bool,
    ) -> rusqlite::Result<()> {
        self.write_held(sequence)?;
        self.put(sequence, body, |index, stream| {
            is_wanted(index).then(|| match &stream.own {
                Some(own) if is_own => own.id,
                _ => stream.rules.id,
            })
        })
    }

    /// As `place`, for streams that want it by a list of rules of another day.
    pub fn place_as(&mut self, sequence: u64, body: &[u8], wanted: &[(usize, i64)]) -> rusqlite::Result<()> {
        self.write_held(sequence)?;
        self.put(sequence, body, |index, _| wanted.iter().find(|(other, _)| *other == index).map(|(_, rule)| *rule))
    }

    /// As `place`, for the oldest row that is held.
    pub fn put(
        &mut self,
        sequence: u64,
        body: &[u8],
        rule_of: impl Fn(usize, &Stream) -> Option<i64>,
    ) -> rusqlite::Result<()> {
        self.store.write()?;
        self.prepare_segment(sequence, body.len())?;
        self.store.insert_message(sequence, body)?;
        let entry = row::fresh_entry(body, &self.starts);
        for index in 0..self.streams.len() {
            let Some(stream) = self.streams.get_mut(index) else { continue };
            let wanted = rule_of(index, stream);
            match stream.open {
                Some(open) if wanted == Some(open.rule) && open.next == sequence => {}
                Some(open) => {
                    if open.first < open.next {
                        self.store.set_span_last(stream.id, Span::new(open.first, open.next - 1))?;
                    } else {
                        self.store.delete_span(stream.id, open.first)?;
                    }
                    stream.open = None;
                }
                None => {}
            }
            if let Some(rule) = wanted {
                if stream.open.is_none() {
                    self.store.insert_span(stream.id, Span::new(sequence, OPEN), rule)?;
                    stream.open = Some(Open { first: sequence, next: sequence, rule });
                }
                if let Some(open) = &mut stream.open {
                    open.next = sequence + 1;
                }
                stream.waiting += 1;
                stream.is_stirred = true;
                if let Some(entry) = entry.as_ref().filter(|_| !stream.is_writes()) {
                    self.ledger.accept(&self.store, stream.id, entry)?;
                }
            }
        }
        self.rows += 1;
        self.identity.sequence_next = self.identity.sequence_next.max(sequence + 1);
        Ok(())
    }

    /// Sees to it that there is a segment for a message, a new one when the newest is full.
    fn prepare_segment(&mut self, sequence: u64, body_bytes: usize) -> rusqlite::Result<()> {
        let store_bytes = self.ceilings.share_pages * PAGE_BYTES;
        if !self.store.segments().is_full(store_bytes, self.used_bytes) {
            return Ok(());
        }
        if self.end_newest()? {
            return Ok(());
        }
        if self.store.segments().free_table().is_none() {
            let missing = self.store.segments().tables_missing(store_bytes);
            // A root page for each table, and what the schema says of it. Near the ceiling the room is for messages.
            let pages = u64::from(missing + missing / 4 + 4);
            if self.measure()? >= pages * PAGE_BYTES + retention::row_bytes(body_bytes, PAGE_BYTES) {
                self.store.make_tables(missing)?;
            }
        }
        // Each has a page above its leaves.
        self.room = None;
        self.store.begin_segment(sequence).map(drop)
    }

    /// The next place, reserved on disk before it is used: neither a crash nor a quarantine gives it again.
    pub fn sequence(&mut self) -> rusqlite::Result<u64> {
        let next = self.identity.sequence_next;
        if next > self.identity.reserved {
            self.identity.reserved = next + SEQUENCE_BLOCK;
            self.identity.settled = self.settled_to()?.max(self.identity.settled);
            let Identity { reserved: sequence, settled, .. } = self.identity;
            let Start { number: start, store, .. } = self.identity.start;
            let kept = KeptStart { start, store, sequence, settled, waiting: None };
            if let Err(error) = self.identity.file.write(&kept) {
                // The database keeps it as well; only a quarantine before the next start would miss it.
                error!(error:%; "The start file cannot be written");
            }
            self.store.write()?;
            self.store.set_meta("sequence", self.identity.reserved)?;
        }
        Ok(next)
    }

    /// Up to where no stream wants anything any more.
    pub fn settled_to(&self) -> rusqlite::Result<u64> {
        let mut settled = self.identity.sequence_next.saturating_sub(1);
        for stream in self.streams.iter().filter(|stream| stream.waiting > 0) {
            let head = self.store.span_after(stream.id, 0)?;
            settled = settled.min(head.map_or(0, |(span, _)| span.first.saturating_sub(1)));
        }
        Ok(settled)
    }

    /// Keeps a problem in the store, because a journal is often gone after a power cut, and shows it in `status`.
    pub fn add_problem(&mut self, text: &str) -> rusqlite::Result<()> {
        let wall_ms = self.settings.clock.now().wall_ms;
        self.store.write()?;
        self.store.insert_problem(wall_ms, text)?;
        self.settings.health.add_problem(wall_ms, text);
        Ok(())
    }

    /// A device's readings are counted on from `seq` at least.
    pub fn inherit_device(&mut self, name: &Arc<str>, seq: u64) {
        let device = self.devices.entry(name.clone()).or_default();
        if seq > device.seq {
            *device = Device { seq, kept: 0 };
        }
    }

    /// The numbers of devices, as far as they were needed.
    pub fn device_numbers(&self) -> BTreeMap<Arc<str>, u64> {
        self.devices.iter().map(|(name, device)| (name.clone(), device.seq)).collect()
    }

    /// A name for a message that is not stored by `take`.
    pub fn take_id(&mut self) -> MessageId {
        self.identity.counter += 1;
        self.name()
    }

    /// The ordinal of the last message that came in.
    pub fn ordinal(&self) -> Ordinal {
        let Start { number: start, store, .. } = self.identity.start;
        Ordinal { store, start, counter: self.identity.counter }
    }

    fn name(&self) -> MessageId {
        let Start { number, store, gateway, .. } = &self.identity.start;
        MessageId { gateway: gateway.clone(), store: *store, start: *number, counter: self.identity.counter }
    }

    pub fn learn_word(&mut self, origin: &Origin) -> rusqlite::Result<()> {
        let (Origin::Client(name) | Origin::Uplink(name)) = origin else { return Ok(()) };
        if self.words.find(name).is_none() && self.words.len() < WORDS_MAX {
            let number = self.words.number_next();
            self.store.write()?;
            self.store.insert_word(number, name)?;
            self.words.insert(number, name.clone());
        }
        Ok(())
    }

    fn retain(&mut self, id: &MessageId, message: &Message) -> rusqlite::Result<()> {
        let topic = message.topic.as_str();
        let before = self.store.retained_bytes(topic)?;
        if matches!(&message.body, Body::Bytes(bytes) if bytes.is_empty()) {
            if let Some(bytes) = before {
                self.store.write()?;
                self.store.delete_retained(topic)?;
                self.retained = (self.retained.0.saturating_sub(1), self.retained.1.saturating_sub(bytes));
            }
            return Ok(());
        }
        row::encode_absolute(&mut self.scratch, 0, id, message);
        let bytes = self.scratch.len() as u64;
        let total = self.retained.1.saturating_sub(before.unwrap_or(0)) + bytes;
        // Retained messages are not drained by anybody: they must not fill the store that others wait for.
        let is_over = total > self.ceilings.share_pages * PAGE_BYTES / 4;
        let pages = |bytes: u64| retention::row_bytes(usize::try_from(bytes).unwrap_or(usize::MAX), PAGE_BYTES);
        let needed = pages(bytes).saturating_sub(before.map_or(0, pages));
        // Nor may they eat the reserve: without it every transaction fails, not only theirs.
        if bytes > before.unwrap_or(0)
            && (is_over || self.find_room(needed, &[(0, self.settings.when_full)])?.is_some())
        {
            self.turn_losses.push((LossReason::DroppedNewest, 1));
            return Ok(());
        }
        self.store.write()?;
        self.store.set_retained(topic, &self.scratch)?;
        self.retained = (self.retained.0 + u64::from(before.is_none()), total);
        Ok(())
    }

    // The ceiling

    /// Sees to it that `bytes` of pages may be filled, or says how the message is not taken. Of `wanted` only the rules
    /// are looked at.
    pub fn find_room(&mut self, bytes: u64, wanted: &[(usize, WhenFull)]) -> rusqlite::Result<Option<Refusal>> {
        self.find_room_beside(bytes, 0, wanted)
    }

    /// The same where `spared` bytes are to stay free beside them.
    pub fn find_room_beside(
        &mut self,
        bytes: u64,
        spared: u64,
        wanted: &[(usize, WhenFull)],
    ) -> rusqlite::Result<Option<Refusal>> {
        let needed = bytes + spared;
        if let Some(room) = self.room
            && room >= needed
        {
            self.room = Some(room - bytes);
            return Ok(None);
        }
        let mut room = self.measure()?;
        while room < needed {
            if self.removable.count() == 0 && self.sweep.is_none() && !self.give_way()? {
                break;
            }
            self.store.write()?;
            self.remove_bodies()?;
            self.sweep_step()?;
            room = self.measure()?;
        }
        if room < needed && self.ceilings.is_crowded {
            return Ok(Some(Refusal::Refuse));
        }
        if room < needed {
            let soft = self.ceilings.soft_pages * PAGE_BYTES;
            let refusal = match retention::way(wanted.iter().map(|(_, rule)| *rule)) {
                // What waits for sessions beyond their own room never keeps anything out.
                Way::Turn(refusal) => (!self.evict_sessions(needed)?).then_some(refusal),
                // For a message as large as the store all others would have to go.
                Way::Evict { otherwise } if bytes > soft / 2 => Some(otherwise),
                Way::Evict { otherwise } => {
                    let target = retention::evict_bytes(needed, soft);
                    (!self.evict(target, needed, spared > 0)?).then_some(otherwise)
                }
            };
            if refusal.is_some() {
                return Ok(refusal);
            }
            room = self.measure()?;
        }
        self.room = Some(room.saturating_sub(bytes));
        Ok(None)
    }

    /// What uplinks leave free where sessions are kept: however full the store is for them, local clients go on.
    pub fn session_room(&self) -> u64 {
        if !self.sessions.is_any_listening() {
            return 0;
        }
        let soft = self.ceilings.soft_pages * PAGE_BYTES;
        (soft / SESSION_SHARE).max(SESSION_BYTES_MIN.min(soft / 8))
    }

    /// Bytes of pages below the soft ceiling that rows may take. One page in 64 is for those above the leaves of the
    /// tree, and two are for a split of it and for the first row of a gap.
    pub fn measure(&mut self) -> rusqlite::Result<u64> {
        let free = self.ceilings.soft_pages.saturating_sub(self.store.pages_used()?);
        Ok(free.saturating_sub(free / 64 + 2) * PAGE_BYTES)
    }

    /// Drops the oldest messages that may go until `needed` bytes are really free; tries to free `target`. Spares what
    /// was handed out until nothing else is found. What a transaction looks at in vain is bounded; the next one goes on
    /// from there, so that a store full of what may not go neither holds up the thread nor hides what lies behind.
    /// `spares_sessions`: what waits for local clients within their room stays, however fast the rest of the store turns over.
    fn evict(&mut self, target: u64, needed: u64, spares_sessions: bool) -> rusqlite::Result<bool> {
        self.store.write()?;
        // The rest of this pass, the other pass, the beginning of this one: then all was looked at.
        let mut ends = 0;
        while ends < 3 && self.evict_looked < EVICT_LOOK_MAX {
            let from = if self.evict_taken { 0 } else { self.taken_by_all() + 1 };
            let found = self.store.lengths_from(self.evict_from.max(from), 64)?;
            let Some((last, _)) = found.last().copied() else {
                self.evict_from = 0;
                self.evict_taken = !self.evict_taken;
                ends += 1;
                if self.measure()? >= needed {
                    return Ok(true);
                }
                continue;
            };
            let mut victims = Vec::new();
            let mut freed = 0;
            let mut next = last + 1;
            let mut next_wanted = 0;
            for (sequence, bytes) in found {
                if sequence < next_wanted {
                    continue;
                }
                if spares_sessions && let Some(last) = self.spared_until(sequence)? {
                    self.evict_looked += 1;
                    next_wanted = last.saturating_add(1);
                    next = next.max(next_wanted);
                } else if self.may_go(sequence, !self.evict_taken)? {
                    victims.push(sequence);
                    freed += retention::row_bytes(usize::try_from(bytes).unwrap_or(usize::MAX), PAGE_BYTES);
                } else {
                    self.evict_looked += 1;
                }
                if freed >= target {
                    next = sequence + 1;
                    break;
                }
            }
            self.evict_from = next;
            for run in spans::runs(&victims) {
                for index in 0..self.streams.len() {
                    for gone in self.remove_span(index, run)? {
                        self.account_settled(index, gone, Some(LossReason::DroppedOldest))?;
                        self.lose(index, LossReason::DroppedOldest, gone, Some(gone.count()));
                    }
                }
                self.evict_from_lanes(run)?;
                self.rows = self.rows.saturating_sub(self.store.delete_messages(run)?);
                self.end_segments(run)?;
            }
            if self.measure()? >= target {
                return Ok(true);
            }
        }
        Ok(self.measure()? >= needed)
    }

    /// Up to here every message was handed out to whoever still wants it.
    fn taken_by_all(&self) -> u64 {
        if self.sessions.waiting() > 0 {
            return 0;
        }
        let waiting = self.streams.iter().filter(|stream| stream.waiting > 0);
        waiting.map(|stream| stream.taken_to).min().unwrap_or(0)
    }

    /// Whether every stream that wants a message lets its oldest go, and none has it under way.
    fn may_go(&mut self, sequence: u64, spare_taken: bool) -> rusqlite::Result<bool> {
        if self.sessions.is_in_flight(sequence) {
            return Ok(false);
        }
        for index in 0..self.streams.len() {
            let Some(rule) = self.covering(index, sequence)? else { continue };
            let Some(stream) = self.streams.get(index) else { continue };
            if stream.in_flight.contains(&sequence) || (spare_taken && sequence <= stream.taken_to) {
                return Ok(false);
            }
            let list = self.list(rule)?;
            let when_full = match list.when_full(self.settings.when_full) {
                _ if list.is_own => WhenFull::Refuse,
                Some(uniform) => uniform,
                None => self.when_full_of(sequence, &list)?,
            };
            if when_full != WhenFull::DropOldest {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn when_full_of(&self, sequence: u64, list: &RuleList) -> rusqlite::Result<WhenFull> {
        let topic = self.read(sequence)?.map(|(_, message)| message.topic);
        let rule = topic.and_then(|topic| list.first(&topic)?.when_full);
        Ok(rule.unwrap_or(self.settings.when_full))
    }

    /// The list by which a stream wants a message, or is to send it again; `None` when it does not.
    pub fn covering(&self, index: usize, sequence: u64) -> rusqlite::Result<Option<i64>> {
        let wanting = self.wanting(index, sequence)?;
        let again = || self.streams.get(index).filter(|stream| stream.again.at(sequence).is_some());
        Ok(wanting.or_else(|| again().map(|stream| stream.rules.id)))
    }

    fn wanting(&self, index: usize, sequence: u64) -> rusqlite::Result<Option<i64>> {
        let Some(stream) = self.streams.get(index).filter(|stream| stream.waiting > 0) else { return Ok(None) };
        if let Some(open) = stream.open.filter(|open| open.first <= sequence) {
            return Ok((sequence < open.next).then_some(open.rule));
        }
        let found = self.store.span_at(stream.id, sequence)?;
        Ok(found.filter(|(span, _)| span.contains(sequence)).map(|(_, rule)| rule))
    }

    /// A list of rules by its number. One that cannot be read matches nothing.
    pub fn list(&mut self, id: i64) -> rusqlite::Result<Arc<RuleList>> {
        if let Some(list) = self.lists.get(&id) {
            return Ok(list.clone());
        }
        let definition = self.store.rule(id)?.unwrap_or_default();
        let list = rules::read(id, &definition).unwrap_or(RuleList { id, is_own: false, rules: Vec::new() });
        let list = Arc::new(list);
        self.lists.insert(id, list.clone());
        Ok(list)
    }

    /// A message by its place; `None` when its row is gone or damaged.
    pub fn read(&self, sequence: u64) -> rusqlite::Result<Option<(MessageId, Message)>> {
        let mut found = None;
        self.store.messages(Span::new(sequence, sequence), |sequence, body| {
            found = row::decode(body, sequence, &self.starts, &self.words).ok();
            false
        })?;
        Ok(found)
    }

    /// Takes sequences out of a stream's spans; gives back those that it had. Their rows stay for now.
    pub fn remove_span(&mut self, index: usize, hole: Span) -> rusqlite::Result<Vec<Span>> {
        let sequence_next = self.identity.sequence_next;
        let mut removed = Vec::new();
        let Some(stream) = self.streams.get_mut(index) else { return Ok(removed) };
        let open_next = stream.open.map_or(sequence_next, |open| open.next);
        let hole = Span::new(hole.first, hole.last.min(open_next.saturating_sub(1)));
        let mut from = hole.last;
        while let Some((span, rule)) = self.store.span_at(stream.id, from)? {
            let Some(cut) = spans::cut(span, hole) else { break };
            self.store.write()?;
            // An open span that has become empty is kept only where it costs no row more.
            let right = cut.right.filter(|right| cut.left.is_none() || right.first < open_next);
            match (cut.left, right) {
                (None, None) => self.store.delete_span(stream.id, span.first)?,
                (Some(left), None) => self.store.set_span_last(stream.id, left)?,
                (None, Some(right)) => self.store.set_span_first(stream.id, span.first, right.first)?,
                (Some(left), Some(right)) => {
                    self.store.set_span_last(stream.id, left)?;
                    self.store.insert_span(stream.id, right, rule)?;
                }
            }
            if span.last == OPEN {
                stream.open = right.map(|right| Open { first: right.first, next: open_next, rule });
            }
            stream.waiting = stream.waiting.saturating_sub(cut.removed.count());
            removed.push(cut.removed);
            if cut.removed.first <= hole.first {
                break;
            }
            from = cut.removed.first - 1;
        }
        Ok(removed)
    }

    /// Counts a loss, as far as its number is known, and opens or widens its gap.
    pub fn lose(&mut self, index: usize, reason: LossReason, span: Span, count: Option<u64>) {
        let now = self.settings.clock.now();
        let Some(stream) = self.streams.get_mut(index) else { return };
        let (from_ms, is_unset) = (now.wall_ms, now.clock == ClockState::Unset);
        let fresh = Gap { span, count: Some(0), from_ms, to_ms: from_ms, is_unset, is_dirty: true };
        let gap = stream.gaps.entry(reason).or_insert(fresh);
        gap.span = Span::new(gap.span.first.min(span.first), gap.span.last.max(span.last));
        gap.count = gap.count.zip(count).map(|(before, more)| before.saturating_add(more));
        gap.to_ms = now.wall_ms;
        gap.is_unset |= is_unset;
        gap.is_dirty = true;
        stream.is_stirred |= stream.own.is_some();
        self.turn_losses.extend(count.map(|count| (reason, count)));
    }

    // The end of a transaction

    /// Makes all of this transaction durable. After an error the books are to be thrown away.
    pub fn commit(&mut self) -> rusqlite::Result<()> {
        self.room = None;
        self.evict_looked = 0;
        for (reason, count) in &self.turn_losses {
            let total = self.losses.entry(*reason).or_default();
            *total += count;
            self.store.write()?;
            self.store.set_loss(reason.name(), *total)?;
        }
        for stream in &mut self.streams {
            for (reason, gap) in stream.gaps.iter_mut().filter(|(_, gap)| gap.is_dirty) {
                gap.is_dirty = false;
                let Gap { span, count, from_ms, to_ms, is_unset, .. } = *gap;
                let (reason, count) = (reason.name().to_owned(), count.unwrap_or(0));
                let row = GapRow { stream: stream.id, reason, span, count, from_ms, to_ms, is_unset };
                self.store.write()?;
                self.store.set_gap(&row)?;
            }
        }
        self.write_ledger()?;
        self.write_tails()?;
        if self.store.is_writing() {
            self.learn_time()?;
            self.write_numbers(self.settings.hold.map_or(0, |_| DEVICE_BLOCK))?;
            self.keep_headroom()?;
            self.store.commit()?;
            self.note_copying()?;
            self.keep_headroom()?;
            self.settings.health.queue().commits.fetch_add(1, Ordering::Relaxed);
            self.ledger_committed();
        }
        for stream in &mut self.streams {
            stream.committed = stream.waiting;
        }
        self.held.committed();
        self.sessions.note_committed();
        let losses = std::mem::take(&mut self.turn_losses);
        for (reason, count) in losses {
            self.settings.health.add_losses(reason, count);
            if count > 0 {
                self.alarm(reason, count);
            }
        }
        // What is on disk is answered and fanned out: a gauge that cannot be read does not make a failure of it.
        match self.show() {
            Ok(()) => self.is_stale = false,
            Err(error) if is_damage(&error) => self.fault = Some(error),
            Err(error) if !self.is_stale => {
                warn!(error:%; "The gauges of the queue could not be read");
                self.is_stale = true;
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// Keeps the numbers of readings. Those of readings that nobody wanted wait for the next commit: they are promised
    /// to nobody. Where the flash is spared, a block of them is reserved instead.
    pub fn write_numbers(&mut self, block: u64) -> rusqlite::Result<()> {
        for (name, device) in &mut self.devices {
            if device.seq > device.kept || (block == 0 && device.seq < device.kept) {
                device.kept = device.seq + block;
                self.store.set_device(name, device.kept)?;
            }
        }
        Ok(())
    }

    fn alarm(&mut self, reason: LossReason, count: u64) {
        let now_ms = self.settings.clock.now().mono_ms;
        let alarm = self.alarms.entry(reason).or_default();
        alarm.count += count;
        if alarm.logged_ms.is_none_or(|logged| now_ms.saturating_sub(logged) >= ALARM_PAUSE_MS) {
            error!(reason = reason.name(), count = alarm.count; "Messages were lost");
            *alarm = Alarm { logged_ms: Some(now_ms), count: 0 };
        }
    }

    /// Writes the gauges.
    fn show(&mut self) -> rusqlite::Result<()> {
        self.find_oldest()?;
        self.used_bytes = self.store.pages_used()? * PAGE_BYTES;
        let waiting_bytes = self.waiting_bytes();
        let health = &self.settings.health;
        let queue = health.queue();
        queue.messages.store(self.messages(), Ordering::Relaxed);
        queue.bytes.store(waiting_bytes, Ordering::Relaxed);
        queue.kept.store(self.kept.count(), Ordering::Relaxed);
        queue.kept_bytes.store(self.kept.bytes(), Ordering::Relaxed);
        queue.bytes_max.store(self.ceilings.soft_pages * PAGE_BYTES, Ordering::Relaxed);
        queue.oldest_mono_ms.store(self.oldest.map_or(0, |(_, mono_ms)| mono_ms.max(1)), Ordering::Relaxed);
        health.sessions().kept.store(self.sessions.count(), Ordering::Relaxed);
        health.sessions().kept_subscriptions.store(self.sessions.subscriptions(), Ordering::Relaxed);
        health.sessions().retained.store(self.retained.0, Ordering::Relaxed);
        health.sessions().waiting.store(self.sessions.waiting(), Ordering::Relaxed);
        health.sessions().waiting_bytes.store(self.sessions.bytes(), Ordering::Relaxed);
        self.watch_filling();
        for stream in self.streams.iter().filter(|stream| stream.is_active && !stream.is_writes()) {
            let waiting = stream.waiting + self.held.count_of(&stream.name);
            health.uplink(&stream.name).waiting.store(waiting, Ordering::Relaxed);
            health.uplink(&stream.name).again.store(stream.again.count(), Ordering::Relaxed);
        }
        let kept = self.streams.iter().filter(|stream| !stream.is_active && stream.waiting > 0);
        health.set_kept_streams(kept.map(|stream| (stream.name.clone(), stream.waiting)));
        Ok(())
    }

    /// Warns once when the store is filled to four fifths, and takes the alarm back below seven tenths. A person is to
    /// have time before something has to give way.
    fn watch_filling(&self) {
        let health = &self.settings.health;
        let now = self.settings.clock.now();
        let full_in_s = health.queue().full_in_s(now.mono_ms);
        let bytes = health.queue().bytes.load(Ordering::Relaxed);
        let bytes_max = health.queue().bytes_max.load(Ordering::Relaxed);
        let is_raised = health.is_raised(Raised::StoreFills);
        if bytes * 10 < bytes_max * 7 {
            if is_raised && health.clear(Raised::StoreFills) {
                info!(bytes, bytes_max; "The store has room again");
            }
        } else if is_raised || bytes * 10 >= bytes_max * 8 {
            let left = match full_in_s {
                Some(seconds) => format!("full in {:.1} days at this rate", seconds as f64 / 86_400.0),
                None => "not filling at the moment".to_owned(),
            };
            let percent = bytes.saturating_mul(100) / bytes_max.max(1);
            let text = format!("the store is filled to {percent} %, {left}");
            if health.raise(Raised::StoreFills, now.wall_ms, &text) {
                warn!(bytes, bytes_max, left = left.as_str(); "The store is filled to four fifths");
            }
        }
    }

    /// What is in use, but for what is kept: that gives way to whatever comes.
    fn waiting_bytes(&self) -> u64 {
        self.used_bytes.saturating_sub(self.kept.bytes())
    }

    /// One row may be wanted by several.
    pub fn messages(&self) -> u64 {
        let waiting =
            self.streams.iter().map(|stream| stream.waiting).fold(self.sessions.waiting(), u64::saturating_add);
        self.rows.min(waiting)
    }

    /// What waits in each stream and in sessions, as it is on the disk.
    pub fn waiting(&self) -> Waiting {
        let streams = self.streams.iter().map(|stream| (stream.name.clone(), stream.committed));
        let copies = self.sessions.committed();
        streams.chain((copies > 0).then(|| (Arc::from(SESSIONS), copies))).collect()
    }

    fn find_oldest(&mut self) -> rusqlite::Result<()> {
        let mut oldest = None;
        for stream in self.streams.iter().filter(|stream| stream.waiting > 0) {
            let head = match stream.open {
                // Nothing stands before the open span.
                Some(open) if open.next - open.first == stream.waiting => Some(open.first),
                _ => self.store.span_after(stream.id, 0)?.map(|(span, _)| span.first),
            };
            oldest = match (oldest, head) {
                (Some(one), Some(other)) => Some(u64::min(one, other)),
                (one, other) => one.or(other),
            };
        }
        // Known before anything else is read, which may be damaged.
        let settled = oldest.unwrap_or(self.identity.sequence_next).saturating_sub(1);
        self.identity.settled = self.identity.settled.max(settled);
        let Some(sequence) = oldest else {
            self.oldest = None;
            return Ok(());
        };
        if self.oldest.is_none_or(|(known, _)| known != sequence) {
            let now = self.settings.clock.now();
            let mut entered = None;
            self.store.messages(Span::new(sequence, sequence), |sequence, body| {
                entered = row::entered(body, sequence, &self.starts).ok();
                false
            })?;
            let age = entered.map_or(0, |(start, stamp)| self.age_ms(start, stamp, now));
            self.oldest = Some((sequence, now.mono_ms.saturating_sub(age)));
        }
        Ok(())
    }

    /// How long ago something entered: powered-on time of this boot; over a boot the wall clock where both ends were
    /// trusted, else the time since this boot. Too little rather than too much: what is young is kept.
    pub fn age_ms(&self, start: u32, entered: Stamp, now: Stamp) -> u64 {
        let boot_id = self.settings.clock.boot_id();
        let is_this_boot = self.starts.get(&start).is_some_and(|start| *start.boot_id == *boot_id);
        if is_this_boot {
            return now.mono_ms.saturating_sub(entered.mono_ms);
        }
        let entered = boots::mended(&self.boots, &self.starts, start, entered);
        if entered.clock != ClockState::Unset && now.clock != ClockState::Unset {
            return u64::try_from(now.wall_ms.saturating_sub(entered.wall_ms)).unwrap_or(0);
        }
        now.mono_ms
    }

    /// Whether `age_ms` is the age and not only the least that it can be.
    pub fn is_age_known(&self, start: u32, entered: Stamp, now: Stamp) -> bool {
        let boot_id = self.settings.clock.boot_id();
        let is_this_boot = self.starts.get(&start).is_some_and(|start| *start.boot_id == *boot_id);
        let entered = boots::mended(&self.boots, &self.starts, start, entered);
        is_this_boot || (entered.clock != ClockState::Unset && now.clock != ClockState::Unset)
    }

    /// Writes down the first moment of this boot at which the wall time is known: it tells the time of all that was
    /// stamped in this boot before.
    pub fn learn_time(&mut self) -> rusqlite::Result<()> {
        let boot_id = self.identity.start.boot_id.clone();
        if self.boots.get(&boot_id).is_some_and(|boot| boot.known.is_some()) {
            return Ok(());
        }
        let clock = &self.settings.clock;
        let boot = Boot { boot_ms_min: clock.passed_ms(0), known: clock.known() };
        if boot.known.is_some() || !self.boots.contains_key(&boot_id) {
            self.store.write()?;
            self.store.set_boot(&boot_id, &boot)?;
            self.boots.insert(boot_id, boot);
        }
        Ok(())
    }

    /// What is known of a reading's time.
    pub fn timing(&self, start: u32, message: &Message) -> Timing {
        match &message.body {
            Body::Bytes(_) => Timing::Stamped,
            Body::Reading(reading) => {
                boots::timing(&self.boots, &self.starts, start, reading.stamp, self.settings.clock.boot_id())
            }
        }
    }

    /// Numbers for people.
    pub fn stats(&self) -> rusqlite::Result<Stats> {
        let streams = self.streams.iter().map(|stream| {
            let Stream { is_active, waiting, in_flight, .. } = stream;
            let in_flight = in_flight.len() as u64;
            (stream.name.clone(), StreamStats { is_active: *is_active, waiting: *waiting, in_flight })
        });
        Ok(Stats {
            streams: streams.collect(),
            messages: self.messages(),
            bytes: self.store.pages_used()? * PAGE_BYTES,
            kept: self.kept.count(),
            bytes_max: self.ceilings.soft_pages * PAGE_BYTES,
            sequence_last: Sequence(self.identity.sequence_next - 1),
            oldest_mono_ms: self.oldest.map(|(_, mono_ms)| mono_ms),
            retained: self.retained.0,
            dead_letters: self.dead_letters.0,
        })
    }

    /// Whether there is something to commit.
    pub fn is_changed(&self) -> bool {
        self.store.is_writing() || !self.turn_losses.is_empty()
    }

    /// Forgets a received packet id; says whether it was known.
    pub fn release(&mut self, once: Once) -> rusqlite::Result<bool> {
        let Once::Packet { session, packet_id } = once else { return Ok(false) };
        let is_known = self.store.is_received(session.0, packet_id)?;
        if is_known {
            self.store.write()?;
            self.store.delete_received(session.0, packet_id)?;
        }
        Ok(is_known)
    }

    /// Forgets all received ids of a session that is not kept, or not any more.
    pub fn close_session(&mut self, session: SessionNumber) -> rusqlite::Result<()> {
        if self.sessions.is_live(session.0) {
            return Ok(());
        }
        self.store.write()?;
        self.store.delete_session(session.0).map(drop)
    }

    /// A session number that was never given before.
    pub fn take_session(&mut self) -> rusqlite::Result<u64> {
        if self.identity.session_next >= self.session_reserved {
            self.session_reserved = self.identity.session_next + SESSION_BLOCK;
            self.store.write()?;
            self.store.set_meta("session", self.session_reserved)?;
        }
        self.identity.session_next += 1;
        Ok(self.identity.session_next - 1)
    }
}

/// Where gap records are published locally.
pub(super) fn gap_topic(gateway: &str) -> Option<Topic> {
    Topic::new(&format!("tidegate/{gateway}/gap")).ok()
}
