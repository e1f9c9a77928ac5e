//! Takes over what a damaged store still has, beside the work.
//!
//! A damaged store is moved into `quarantine/`, with a *ticket* (what was known of it) that is on disk before the move
//! and goes when all was taken over: a crash at any point finds it again. What must not begin anew (numbers of devices,
//! counters, the uplink's QoS 2 session) is taken over in the first transaction of the new store; messages follow in
//! jobs of the queue's thread, in the order of their sequences, each job in one transaction with its progress. So
//! nothing is taken over twice: what a crash interrupts goes on after the last sequence that is in.
//!
//! A message keeps its `MessageId` and gets a new place. Who wanted it is known from the spans; where they are lost,
//! today's rules decide, and what was delivered since they were last known may be sent again, under the same id. What
//! nobody can know is counted and told: it is never passed over.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::{error, info, warn};
use serde::{Deserialize, Serialize};

use super::WRITES;
use super::books::{Books, JOB_ROWS_MAX, gap_topic};
use super::identity::{self, SESSIONS, Waiting};
use super::outward::DEAD_LETTERS_MAX;
use super::pages::{Spot, Value, Walk};
use super::remains::{Knowledge, Remains};
use super::retention;
use super::row;
use super::rules;
use super::sessions::OldSessions;
use super::spans::Span;
use super::store::{InFlightRow, PAGE_BYTES};
use crate::config::WhenFull;
use crate::health::{LossReason, SalvageSnapshot};
use crate::message::{Body, Message, Origin, Qos};

const TICKET: &str = "salvage.json";
/// In `meta`: rows up to here do not lie in the order of their starts.
pub(super) const SALVAGED_TO: &str = "salvaged_to";
/// Units that one job reads.
const JOB_UNITS: u32 = 256;
const JOB_BYTES_MAX: usize = 256 * 1024;
/// Spots that are kept at a time, some 4 MiB: more messages than that take another pass over the files.
const SPOTS_MAX: usize = 1 << 18;

/// What was known of a store when it was moved aside.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Ticket {
    pub reason: String,
    pub wall_ms: i64,
    /// How much waited in each stream; `None` = not known.
    pub waiting: Option<BTreeMap<String, u64>>,
    /// Nothing up to here was wanted any more.
    pub settled: u64,
    /// It failed while it was in use, rather than being found damaged.
    pub was_open: bool,
    /// The log beside it is another store's: nothing in it is ours.
    pub is_log_foreign: bool,
    /// The end of its log is lost, or all of it: nobody knows what was in it.
    #[serde(default)]
    pub is_log_wanting: bool,
    /// No sequence above this one was used in it.
    pub last: u64,
    /// The numbers of devices, as far as they were in memory.
    pub devices: BTreeMap<String, u64>,
    /// The counters of losses, as they were in memory.
    pub losses: BTreeMap<String, u64>,
}

impl Ticket {
    /// Written before the store is moved to `place`.
    pub fn write(&self, place: &Path) -> io::Result<()> {
        let mut file = File::create(place.join(TICKET))?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()
    }

    pub fn read(place: &Path) -> Ticket {
        let text = fs::read(place.join(TICKET)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

/// Whether not everything was taken over from a quarantine.
pub(super) fn is_wanting(place: &Path) -> bool {
    place.join(TICKET).is_file()
}

/// How far a salvage has come; kept in the store, in the transaction of what it counts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Progress {
    /// Everything up to this sequence is in.
    after: u64,
    /// All messages are in: retained messages are next, then dead letters.
    messages_done: bool,
    done: bool,
    /// Messages that were taken over.
    rows: u64,
    /// By stream.
    taken: BTreeMap<String, u64>,
    /// The cloud had said that it has them.
    confirmed: BTreeMap<String, u64>,
    /// QoS 2 messages that were under way: the cloud may have them already.
    uncertain: u64,
    /// Whole, and wanted by nobody any more.
    unwanted: u64,
    /// Their start is lost: they bear another name than before.
    renamed: u64,
    /// Whole, and written by a newer program perhaps: they cannot be read.
    unreadable: u64,
    /// Streams whose session goes on: what was in flight is in.
    resumed: BTreeSet<String>,
    retained: u64,
    dead_letters: u64,
    /// The numbers that sessions of local clients have now, by those that they had.
    #[serde(default)]
    sessions: BTreeMap<u64, u64>,
}

/// A quarantine that is being salvaged.
#[derive(Debug)]
pub(super) struct Salvage {
    place: PathBuf,
    name: String,
    ticket: Ticket,
    remains: Remains,
    progress: Progress,
    stage: Stage,
    /// The numbers that old lists of rules have in the new store.
    rules: HashMap<i64, i64>,
    is_waiting_for_room: bool,
}

#[derive(Debug)]
enum Stage {
    /// Looks for the next messages; the heap has the first of them.
    Search {
        unit: u32,
        /// Rows of that unit that were looked at.
        seen: usize,
        found: BinaryHeap<(u64, Spot)>,
        is_cut: bool,
    },
    /// Takes over what was found, last of these first.
    Take {
        rest: Vec<(u64, Spot)>,
        is_cut: bool,
    },
    Retained(Option<Walk>),
    DeadLetters(Option<Walk>),
}

impl Stage {
    fn search() -> Stage {
        Stage::Search { unit: 0, seen: 0, found: BinaryHeap::new(), is_cut: false }
    }
}

/// The quarantines that are to be salvaged, oldest first.
pub(super) fn places(quarantine: &Path) -> Vec<PathBuf> {
    numbered(quarantine).into_iter().map(|(_, place)| place).filter(|place| is_wanting(place)).collect()
}

/// All quarantines with their numbers, oldest first.
pub(super) fn numbered(quarantine: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(quarantine).into_iter().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.rsplit_once('-')?.1.parse().ok()?;
            Some((number, path))
        })
        .collect();
    found.sort();
    found
}

impl Salvage {
    fn new(place: PathBuf, progress: Option<String>) -> Salvage {
        let ticket = Ticket::read(&place);
        let remains = Remains::read(&place, &ticket);
        let progress: Progress = progress.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let stage = if progress.messages_done { Stage::Retained(None) } else { Stage::search() };
        let name = name(&place);
        let rules = HashMap::new();
        Salvage { place, name, ticket, remains, progress, stage, rules, is_waiting_for_room: false }
    }

    fn snapshot(&self) -> SalvageSnapshot {
        let counted = || self.remains.waiting().map(|waiting| by_name(&waiting));
        let waiting = self.ticket.waiting.clone().or_else(counted);
        SalvageSnapshot {
            quarantine: self.place.display().to_string(),
            salvaged: self.progress.rows,
            waiting: waiting.map(|waiting| waiting.values().sum()),
            waits_for_room: self.is_waiting_for_room,
        }
    }
}

fn name(place: &Path) -> String {
    place.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Books {
    // The first transaction of the new store

    /// Takes over what must not begin anew.
    pub fn inherit(&mut self, place: &Path) -> rusqlite::Result<()> {
        let ticket = Ticket::read(place);
        let remains = Remains::read(place, &ticket);
        self.inherit_problems(&remains)?;
        self.store.insert_problem(ticket.wall_ms, &format!("moved aside to {}: {}", place.display(), ticket.reason))?;
        let mut devices: Vec<(String, u64)> = ticket.devices.into_iter().collect();
        remains.table("device", |_, values| devices.extend(named_number(values)));
        for (name, seq) in devices {
            self.inherit_device(&Arc::from(name), seq);
        }
        let mut losses: Vec<(String, u64)> = ticket.losses.into_iter().collect();
        remains.table("loss", |_, values| losses.extend(named_number(values)));
        for (name, count) in losses {
            if let Some(reason) = LossReason::from_name(&name) {
                let known = self.losses.entry(reason).or_default();
                *known = (*known).max(count);
                self.store.set_loss(&name, *known)?;
                self.settings.health.restore_losses(reason, *known);
            }
        }
        let mut salvages = Vec::new();
        remains.table("salvage", |_, values| {
            let texts = [0, 1].map(|index| values.get(index).and_then(Value::text).map(str::to_owned));
            if let [Some(place), Some(progress)] = texts {
                salvages.push((place, progress));
            }
        });
        for (place, progress) in salvages {
            self.store.set_salvage(&place, &progress)?;
        }
        self.inherit_gaps(&remains)?;
        self.inherit_starts(&remains)?;
        self.inherit_received(&remains, ticket.was_open)?;
        let mut progress = Progress::default();
        self.inherit_sessions(&remains, &mut progress)?;
        let (sessions, copies) = self.inherit_local_sessions(&remains)?;
        progress.sessions = sessions;
        progress.taken.insert(SESSIONS.to_owned(), copies);
        let unwanted = remains.local.as_ref().map_or(0, OldSessions::unwanted);
        progress.confirmed.insert(SESSIONS.to_owned(), unwanted);
        self.store.set_salvage(&name(place), &serde_json::to_string(&progress).unwrap_or_default())
    }

    fn inherit_problems(&mut self, remains: &Remains) -> rusqlite::Result<()> {
        let mut problems = Vec::new();
        remains.table("problem", |_, values| {
            problems
                .extend(values.get(1).and_then(Value::int).zip(values.get(2).and_then(Value::text).map(str::to_owned)));
        });
        for (wall_ms, text) in problems {
            self.store.insert_problem(wall_ms, &text)?;
        }
        Ok(())
    }

    /// What is known of the boots, so that the time of their readings can still be corrected.
    fn inherit_starts(&mut self, remains: &Remains) -> rusqlite::Result<()> {
        for (boot_id, boot) in remains.boots() {
            // What was learnt since is better.
            if self.boots.get(&boot_id).is_none_or(|known| known.known.is_none() && boot.known.is_some()) {
                self.store.set_boot(&boot_id, &boot)?;
                self.boots.insert(boot_id, boot);
            }
        }
        for (number, start) in remains.starts.range(..self.identity.start.number) {
            if !self.starts.contains_key(number) {
                self.store.insert_start(start)?;
                self.starts.insert(*number, start.clone());
            }
        }
        Ok(())
    }

    /// Packet ids at QoS 2 of local clients that go on: only where all of them can be read. One that was released since
    /// would make us take the next message that bears it for a repeat.
    fn inherit_received(&mut self, remains: &Remains, was_open: bool) -> rusqlite::Result<()> {
        if !was_open {
            // Sessions that were in memory only have ended with the program.
            return Ok(());
        }
        let uplinks: HashSet<u64> = remains.streams.values().map(|stream| stream.session).collect();
        let mut received = Vec::new();
        let is_whole = remains.knowledge == Knowledge::Whole
            && remains.table("rx", |_, values| {
                let session = values.first().and_then(Value::unsigned).filter(|session| !uplinks.contains(session));
                let packet_id = values.get(1).and_then(Value::int).and_then(|id| u16::try_from(id).ok());
                received.extend(session.zip(packet_id));
            });
        if !is_whole {
            return self.add_problem(
                "which QoS 2 messages of local clients were under way is not readable: one that a client repeats now may \
                 be taken twice",
            );
        }
        for (session, packet_id) in received {
            self.store.insert_received(session, packet_id)?;
        }
        Ok(())
    }

    /// Gaps that were not told yet.
    fn inherit_gaps(&mut self, remains: &Remains) -> rusqlite::Result<()> {
        let mut gaps = Vec::new();
        remains.table("gap", |_, values| {
            let number = |index: usize| values.get(index).and_then(Value::unsigned);
            let reason = values.get(1).and_then(Value::text).and_then(LossReason::from_name);
            let stream = values.first().and_then(Value::int).and_then(|stream| remains.streams.get(&stream));
            if let (Some(stream), Some(reason), Some(first), Some(last), Some(count)) =
                (stream, reason, number(2), number(3), number(4))
            {
                gaps.push((stream.name.clone(), reason, Span::new(first, last), count));
            }
        });
        for (name, reason, span, count) in gaps {
            if let Some(index) = self.streams.iter().position(|stream| stream.name == name) {
                // The loss is in the counter already; only the telling is due.
                let before = self.turn_losses.len();
                self.lose(index, reason, span, (count > 0).then_some(count));
                self.turn_losses.truncate(before);
            }
        }
        Ok(())
    }

    /// Lets QoS 2 go on where it was. Only with all that is in flight: a packet id that the cloud knows and we do not
    /// makes it swallow the next message that bears it. Where something of it is lost, the session begins anew, and what
    /// was under way may arrive twice, which is counted.
    fn inherit_sessions(&mut self, remains: &Remains, progress: &mut Progress) -> rusqlite::Result<()> {
        let Some(in_flight) = &remains.in_flight else { return Ok(()) };
        for (old_id, old) in &remains.streams {
            let Some(session_key) = old.session_key else { continue };
            let Some(index) = self.streams.iter().position(|stream| stream.name == old.name) else { continue };
            let none = Vec::new();
            let entries = in_flight.get(old_id).unwrap_or(&none);
            let Some(found) = self.whole_entries(remains, entries) else {
                warn!(uplink = &*old.name; "What was in flight at QoS 2 cannot be read: the session begins anew");
                continue;
            };
            let mut sequences: HashMap<u64, u64> = HashMap::new();
            for (sequence, id, message) in found {
                let place = self.sequence()?;
                let mut body = Vec::new();
                row::encode_absolute(&mut body, place, &id, &message);
                let rule = self.inherited_rule(remains, remains.covering(*old_id, sequence), index)?;
                self.place_as(place, &body, &[(index, rule)])?;
                sequences.insert(sequence, place);
            }
            let Some(stream) = self.streams.get_mut(index) else { continue };
            stream.in_flight.extend(sequences.values().copied());
            stream.session_key = Some(session_key);
            let (id, session) = (stream.id, stream.session);
            for entry in entries {
                // Of a released one the cloud has all: only its id is still open.
                let rows = entry.rows.iter().filter_map(|sequence| sequences.get(sequence).copied()).collect();
                self.store.insert_in_flight(id, &InFlightRow { rows, topic: entry.topic.clone(), ..*entry })?;
            }
            self.store.set_session_key(id, session_key)?;
            let mut received = Vec::new();
            remains.table("rx", |_, values| {
                let packet_id = values.get(1).and_then(Value::int).and_then(|id| u16::try_from(id).ok());
                received.extend(packet_id.filter(|_| values.first().and_then(Value::unsigned) == Some(old.session)));
            });
            for packet_id in received {
                self.store.insert_received(session, packet_id)?;
            }
            progress.resumed.insert(old.name.to_string());
            progress.rows += sequences.len() as u64;
            *progress.taken.entry(old.name.to_string()).or_default() += sequences.len() as u64;
        }
        Ok(())
    }

    /// The messages of all entries that are not released; `None` when one of them cannot be read.
    fn whole_entries(
        &self,
        remains: &Remains,
        entries: &[InFlightRow],
    ) -> Option<Vec<(u64, crate::message::MessageId, Message)>> {
        let sequences = entries.iter().filter(|entry| !entry.released).flat_map(|entry| &entry.rows);
        sequences.map(|sequence| remains.find(*sequence).map(|(id, message)| (*sequence, id, message))).collect()
    }

    fn inherited_rule(&mut self, remains: &Remains, old: Option<i64>, index: usize) -> rusqlite::Result<i64> {
        match old.and_then(|old| remains.rule(old)) {
            Some(definition) => self.store.rule_id(definition),
            None => Ok(self.streams.get(index).map_or(0, |stream| stream.rules.id)),
        }
    }

    // The jobs

    /// Whether something is to be salvaged.
    pub fn is_salvage_due(&self) -> bool {
        self.salvage.is_some() || !self.salvages.is_empty()
    }

    /// Whether the salvage waits for room, so that it is enough to look now and then.
    pub fn is_salvage_held(&self) -> bool {
        self.salvage.as_ref().is_some_and(|salvage| salvage.is_waiting_for_room)
    }

    /// One job's share of what is to be taken over from quarantines. Says whether there is more to do at once.
    pub fn salvage_step(&mut self) -> rusqlite::Result<bool> {
        let mut salvage = match self.salvage.take() {
            Some(salvage) => salvage,
            None => {
                let Some(place) = self.salvages.pop_front() else { return Ok(false) };
                let progress = self.store.salvage(&name(&place))?;
                Box::new(Salvage::new(place, progress))
            }
        };
        if salvage.progress.done {
            // A crash came between the last transaction and this.
            self.end_salvage(&salvage);
            return Ok(!self.salvages.is_empty());
        }
        let is_over = match std::mem::replace(&mut salvage.stage, Stage::search()) {
            Stage::Search { unit, seen, found, is_cut } => {
                salvage.stage = search(&salvage, (unit, seen), found, is_cut);
                false
            }
            Stage::Take { rest, is_cut } => {
                self.take_over(&mut salvage, rest, is_cut)?;
                false
            }
            Stage::Retained(walk) => {
                self.take_over_retained(&mut salvage, walk)?;
                false
            }
            Stage::DeadLetters(walk) => self.take_over_dead_letters(&mut salvage, walk)?,
        };
        self.settings.health.set_salvage(Some(salvage.snapshot()));
        if is_over {
            self.tell_salvage(&mut salvage)?;
            self.commit()?;
            self.end_salvage(&salvage);
            return Ok(!self.salvages.is_empty());
        }
        let is_waiting = salvage.is_waiting_for_room;
        self.salvage = Some(salvage);
        Ok(!is_waiting)
    }

    /// Takes over one job's share of what was found.
    fn take_over(&mut self, salvage: &mut Salvage, mut rest: Vec<(u64, Spot)>, is_cut: bool) -> rusqlite::Result<()> {
        let (mut bytes, mut count, mut looked) = (0, 0, 0);
        salvage.is_waiting_for_room = false;
        while let Some((sequence, spot)) = rest.last().copied()
            && looked < JOB_ROWS_MAX
        {
            looked += 1;
            if sequence > salvage.progress.after
                && let Some(body) = salvage.remains.body(sequence, spot)
            {
                if count > 0 && bytes + body.len() > JOB_BYTES_MAX {
                    break;
                }
                if !self.has_room_beside(body.len())? {
                    salvage.is_waiting_for_room = true;
                    break;
                }
                self.take_over_row(salvage, sequence, &body)?;
                bytes += body.len();
                count += 1;
            }
            salvage.progress.after = salvage.progress.after.max(sequence);
            rest.pop();
        }
        if rest.is_empty() {
            salvage.progress.messages_done = !is_cut;
            salvage.stage = if is_cut { Stage::search() } else { Stage::Retained(None) };
        } else {
            salvage.stage = Stage::Take { rest, is_cut };
        }
        if count > 0 || salvage.progress.messages_done {
            self.keep_progress(salvage)?;
        }
        Ok(())
    }

    fn keep_progress(&mut self, salvage: &Salvage) -> rusqlite::Result<()> {
        self.store.write()?;
        self.store.set_salvage(&salvage.name, &serde_json::to_string(&salvage.progress).unwrap_or_default())
    }

    /// Whether a message may be put in without anybody's having to go, and with some room left for new ones: the
    /// quarantine keeps it as well.
    fn has_room_beside(&mut self, bytes: usize) -> rusqlite::Result<bool> {
        let margin = self.ceilings.soft_pages * PAGE_BYTES / 16;
        let bytes = retention::row_bytes(bytes + 64, PAGE_BYTES);
        let is_refused = self.find_room(bytes + margin, &[(0, WhenFull::Refuse)])?.is_some();
        self.room = self.room.map(|room| room + margin);
        Ok(!is_refused)
    }

    fn take_over_row(&mut self, salvage: &mut Salvage, old_sequence: u64, body: &[u8]) -> rusqlite::Result<()> {
        let gateway = self.settings.gateway.clone();
        let Some((id, message, is_named)) = salvage.remains.decode(old_sequence, body, &gateway) else {
            salvage.progress.unreadable += 1;
            return Ok(());
        };
        let wanted = self.wanted_of(salvage, old_sequence, &message)?;
        let (lanes, gone) = self.lanes_of_salvaged(&salvage.remains, &salvage.progress.sessions, old_sequence);
        *salvage.progress.confirmed.entry(SESSIONS.to_owned()).or_default() += gone;
        if wanted.is_empty() && lanes.is_empty() {
            salvage.progress.unwanted += 1;
            return Ok(());
        }
        if let Body::Reading(reading) = &message.body {
            // Where the table of devices is lost, the readings say how far it was.
            self.inherit_device(&reading.device, reading.seq);
        }
        let sequence = self.sequence()?;
        let mut scratch = std::mem::take(&mut self.scratch);
        row::encode_absolute(&mut scratch, sequence, &id, &message);
        let placed = self
            .place_as(sequence, &scratch, &wanted)
            .and_then(|()| self.extend_lanes(&lanes, sequence, scratch.len()));
        self.scratch = scratch;
        placed?;
        *salvage.progress.taken.entry(SESSIONS.to_owned()).or_default() += lanes.len() as u64;
        salvage.progress.rows += 1;
        salvage.progress.renamed += u64::from(!is_named);
        for (index, _) in wanted {
            if let Some(stream) = self.streams.get(index) {
                *salvage.progress.taken.entry(stream.name.to_string()).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Which streams are to get a message, and by which list of rules.
    fn wanted_of(
        &mut self,
        salvage: &mut Salvage,
        sequence: u64,
        message: &Message,
    ) -> rusqlite::Result<Vec<(usize, i64)>> {
        let mut wanted = Vec::new();
        let mut decided = HashSet::new();
        let old: Vec<(i64, Arc<str>)> =
            salvage.remains.streams.iter().map(|(id, stream)| (*id, stream.name.clone())).collect();
        for (old_id, name) in old {
            let Some(old_rule) = salvage.remains.covering(old_id, sequence) else { continue };
            decided.insert(name.clone());
            if *name == *WRITES && salvage.remains.in_flight.is_none() {
                // Whether it was begun is lost: a write that is lost is declared, and one that is done twice is not.
                continue;
            }
            if salvage.remains.released.contains(&(old_id, sequence)) {
                *salvage.progress.confirmed.entry(name.to_string()).or_default() += 1;
                continue;
            }
            if salvage.remains.sent.contains(&(old_id, sequence)) {
                // A write that may have been begun is not begun again; that it is lost is declared.
                if salvage.progress.resumed.contains(&*name) || *name == *WRITES {
                    continue;
                }
                salvage.progress.uncertain += 1;
            }
            let index = self.stream_of(&name)?;
            let rule = match salvage.rules.get(&old_rule) {
                Some(rule) => *rule,
                None => {
                    self.store.write()?;
                    let rule = self.inherited_rule(&salvage.remains, Some(old_rule), index)?;
                    salvage.rules.insert(old_rule, rule);
                    rule
                }
            };
            wanted.push((index, rule));
        }
        if salvage.remains.is_beyond(sequence) {
            wanted.extend(
                self.wanted_today(message).into_iter().filter(|(index, _)| {
                    self.streams.get(*index).is_some_and(|stream| !decided.contains(&stream.name))
                }),
            );
        }
        Ok(wanted)
    }

    /// As the rules of today have it. A gap record goes to the stream whose it is.
    fn wanted_today(&self, message: &Message) -> Vec<(usize, i64)> {
        if message.origin == Origin::Gateway && Some(&message.topic) == gap_topic(&self.settings.gateway).as_ref() {
            let Body::Bytes(body) = &message.body else { return Vec::new() };
            let told: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
            let is_its = |name: &str| told.get("stream").and_then(serde_json::Value::as_str) == Some(name);
            let streams = self.streams.iter().enumerate().filter(|(_, stream)| is_its(&stream.name));
            return streams.filter_map(|(index, stream)| Some((index, stream.own.as_ref()?.id))).collect();
        }
        let streams = self.streams.iter().enumerate().filter(|(_, stream)| stream.is_active);
        let wanted = streams.filter(|(_, stream)| {
            let rule = stream.rules.first(&message.topic);
            !self.is_not_for(stream, message) && rule.is_some_and(|rule| rules::qos(rule, message) != Qos::AtMostOnce)
        });
        wanted.map(|(index, stream)| (index, stream.rules.id)).collect()
    }

    fn take_over_retained(&mut self, salvage: &mut Salvage, walk: Option<Walk>) -> rusqlite::Result<()> {
        let Some(mut walk) = walk.or_else(|| salvage.remains.root("retained").map(Walk::new)) else {
            salvage.stage = Stage::DeadLetters(None);
            return Ok(());
        };
        let mut found = Vec::new();
        let is_more = salvage.remains.pages.step(&mut walk, |_, values| {
            found.extend(
                values
                    .get(1)
                    .and_then(Value::text)
                    .zip(values.get(2).and_then(Value::blob))
                    .map(|(topic, body)| (topic.to_owned(), body.to_vec())),
            );
        });
        for (topic, body) in found {
            let is_whole = row::proven(&body, 0).is_some();
            // What was retained since is newer.
            if !is_whole || self.store.retained_bytes(&topic)?.is_some() {
                continue;
            }
            if self.has_room_beside(body.len())? {
                self.store.write()?;
                self.store.set_retained(&topic, &body)?;
                self.retained = (self.retained.0 + 1, self.retained.1 + body.len() as u64);
                salvage.progress.retained += 1;
            } else {
                self.turn_losses.push((LossReason::DroppedNewest, 1));
            }
        }
        salvage.stage = if is_more { Stage::Retained(Some(walk)) } else { Stage::DeadLetters(None) };
        Ok(())
    }

    /// Says whether that was all.
    fn take_over_dead_letters(&mut self, salvage: &mut Salvage, walk: Option<Walk>) -> rusqlite::Result<bool> {
        let Some(mut walk) = walk.or_else(|| salvage.remains.root("dead_letter").map(Walk::new)) else {
            return Ok(true);
        };
        let mut found = Vec::new();
        let is_more = salvage.remains.pages.step(&mut walk, |_, values| {
            let name = values.get(1).and_then(Value::int).and_then(|id| salvage.remains.streams.get(&id));
            let name = name.map(|stream| stream.name.clone());
            let (sequence, wall_ms) = (values.get(2).and_then(Value::unsigned), values.get(4).and_then(Value::int));
            let (reason, body) = (values.get(3).and_then(Value::text), values.get(5).and_then(Value::blob));
            if let (Some(sequence), Some(wall_ms), Some(reason), Some(body)) = (sequence, wall_ms, reason, body) {
                found.push((name, sequence, reason.to_owned(), wall_ms, body.to_vec()));
            }
        });
        for (name, sequence, reason, wall_ms, body) in found {
            let is_known = self.store.has_dead_letter(sequence, wall_ms)?;
            if is_known || row::proven(&body, sequence).is_none() {
                continue;
            }
            if self.dead_letters.0 >= DEAD_LETTERS_MAX || !self.has_room_beside(body.len())? {
                self.turn_losses.push((LossReason::DeadLetterDropped, 1));
                continue;
            }
            let stream = name.and_then(|name| self.streams.iter().find(|stream| stream.name == name));
            let stream = stream.map_or(0, |stream| stream.id);
            self.store.write()?;
            self.store.insert_dead_letter(stream, sequence, &reason, wall_ms, &body)?;
            self.dead_letters = (self.dead_letters.0 + 1, self.dead_letters.1 + body.len() as u64);
            salvage.progress.dead_letters += 1;
        }
        salvage.stage = Stage::DeadLetters(Some(walk));
        Ok(!is_more)
    }

    // The end

    /// Says what was salvaged, and declares what was not: with its number where that is known.
    fn tell_salvage(&mut self, salvage: &mut Salvage) -> rusqlite::Result<()> {
        let Salvage { ticket, remains, progress, .. } = salvage;
        progress.done = true;
        let total = self.lose_rest(ticket, remains, Some(progress));
        let lost = total.map_or_else(|| "an unknown number".to_owned(), |total| total.to_string());
        let mut text = format!("salvaged {} messages from {}, lost {lost}", progress.rows, salvage.place.display());
        if ticket.is_log_wanting || ticket.is_log_foreign {
            text.push_str(", because what was written last is not all there");
        }
        if total.is_none() {
            text.push_str(": acknowledged messages may be among them. Compare with the publishers or with the cloud (`tidegate ledger --verify`), and look at the disk");
        }
        let knows_spans = remains.knowledge == Knowledge::Whole;
        if !knows_spans && progress.rows > 0 {
            text.push_str("; who had got which was not readable, so that some may arrive again under the same id");
        } else if ticket.was_open && progress.rows > 0 {
            // What was handed out before the store failed is acknowledged to the new one, which does not know it.
            text.push_str("; what was under way when the store failed may arrive again under the same id");
        }
        let sessions = progress.sessions.len();
        if sessions > 0 {
            text.push_str(&format!("; {sessions} sessions of local clients go on"));
        }
        if remains.local.is_none() {
            text.push_str("; the sessions of local clients are not readable and begin anew");
        }
        for (count, what) in [
            (progress.uncertain, "were under way at QoS 2 and may arrive twice"),
            (progress.renamed, "have a new id, because their start was lost"),
            (progress.unreadable, "are whole and cannot be read by this version"),
        ] {
            if count > 0 {
                text.push_str(&format!("; {count} {what}"));
            }
        }
        let is_quiet = total == Some(0) && progress.uncertain + progress.renamed + progress.unreadable == 0;
        let place = salvage.place.display();
        let (salvaged, uncertain, lost) = (progress.rows, progress.uncertain, lost.as_str());
        if is_quiet && knows_spans {
            info!(quarantine:% = place, salvaged; "All messages of the damaged store were salvaged");
        } else {
            error!(quarantine:% = place, salvaged, lost, uncertain; "The damaged store was salvaged as far as possible");
        }
        self.add_problem(&text)?;
        // Rows up to here may be of older starts than those before them.
        self.store.set_meta(SALVAGED_TO, self.identity.sequence_next - 1)?;
        self.keep_progress(salvage)
    }

    /// Declares what is lost with a quarantine that goes before it is salvaged. How far its salvage has come stood in
    /// the `newest` one: where it cannot be read there, nobody knows how much is lost.
    pub fn give_up(&mut self, place: &Path, newest: &Path) -> rusqlite::Result<()> {
        let ticket = Ticket::read(place);
        let remains = Remains::read(place, &ticket);
        let name = name(place);
        let mut told: Option<Progress> = None;
        Remains::read(newest, &Ticket::read(newest)).table("salvage", |_, values| {
            let [of, text] = [0, 1].map(|index| values.get(index).and_then(Value::text));
            if of == Some(&name) {
                told = text.and_then(|text| serde_json::from_str(text).ok());
            }
        });
        if told.as_ref().is_some_and(|progress| progress.done) {
            return Ok(());
        }
        let total = self.lose_rest(&ticket, &remains, told.as_ref());
        let salvaged = told.as_ref().map_or(0, |progress| progress.rows);
        let lost = total.map_or_else(|| "an unknown number of".to_owned(), |total| total.to_string());
        let (lost, shown) = (lost.as_str(), place.display());
        error!(quarantine:% = shown, salvaged, lost; "A damaged store was removed before it was salvaged: there is no room for it");
        self.add_problem(&format!(
            "removed {shown} before it was salvaged, because there is no room for so many damaged stores: lost {lost} \
             messages. Look at the disk"
        ))?;
        let progress = Progress { done: true, ..told.unwrap_or_default() };
        self.store.set_salvage(&name, &serde_json::to_string(&progress).unwrap_or_default())
    }

    /// Declares what waited in a quarantine and was not taken over, to each stream. Gives back how much that is, where
    /// it is known; without `progress` it is not.
    fn lose_rest(&mut self, ticket: &Ticket, remains: &Remains, progress: Option<&Progress>) -> Option<u64> {
        let counted = || remains.waiting().map(|waiting| by_name(&waiting));
        let expected = progress.and_then(|_| ticket.waiting.clone().or_else(counted));
        let mut names: BTreeSet<Arc<str>> = remains.streams.values().map(|stream| stream.name.clone()).collect();
        names.extend(self.streams.iter().map(|stream| stream.name.clone()));
        names.extend(expected.iter().flat_map(|expected| expected.keys().map(|name| Arc::from(name.as_str()))));
        let mut total = Some(0_u64);
        let span = Span::new(0, ticket.last.max(remains.last.unwrap_or(0)));
        for name in names {
            let count = |map: &BTreeMap<String, u64>| map.get(&*name).copied().unwrap_or(0);
            let lost = expected.as_ref().zip(progress).map(|(expected, progress)| {
                count(expected).saturating_sub(count(&progress.taken) + count(&progress.confirmed))
            });
            total = total.zip(lost).map(|(total, lost)| total + lost);
            if lost == Some(0) {
                continue;
            }
            match self.streams.iter().position(|stream| stream.name == name) {
                Some(index) => self.lose(index, LossReason::Quarantined, span, lost),
                // A session's, or kept for a stream that is not configured any more: nobody is left to be told.
                None => self.turn_losses.extend(lost.map(|lost| (LossReason::Quarantined, lost))),
            }
        }
        if total.is_none() {
            // The reason is there, so that whoever looks sees that something may be lost.
            self.turn_losses.push((LossReason::Quarantined, 0));
        }
        total
    }

    /// After the last transaction: the ticket goes, so that no start begins again.
    fn end_salvage(&mut self, salvage: &Salvage) {
        let gone = fs::remove_file(salvage.place.join(TICKET)).and_then(|()| identity::sync_dir(&salvage.place));
        if let Err(error) = gone {
            warn!(error:%, quarantine:% = salvage.place.display(); "The salvage is over, and its ticket cannot be removed");
        }
        self.settings.health.set_salvage(None);
        if self.ceilings.is_clamped {
            info!(quarantine:% = salvage.place.display(); "The salvaged store is removed: the disk has too little room");
            if let Err(error) = fs::remove_dir_all(&salvage.place) {
                warn!(error:%; "The salvaged store cannot be removed");
            }
        }
    }
}

/// Looks through one job's share of the units for messages that may be wanted.
fn search(
    salvage: &Salvage,
    (first, seen): (u32, usize),
    mut found: BinaryHeap<(u64, Spot)>,
    mut is_cut: bool,
) -> Stage {
    let remains = &salvage.remains;
    let end = first.saturating_add(JOB_UNITS).min(remains.pages.units());
    let (mut rows, mut bytes) = (0, 0);
    for unit in (first..end).filter(|unit| !remains.is_free(*unit)) {
        let passed = if unit == first { seen } else { 0 };
        bytes += PAGE_BYTES;
        for (index, (sequence, spot)) in remains.pages.carve(unit).into_iter().enumerate().skip(passed) {
            if rows >= JOB_ROWS_MAX || bytes >= JOB_BYTES_MAX as u64 {
                // A page may begin several rows that go on over hundreds of others.
                return Stage::Search { unit, seen: index, found, is_cut };
            }
            let is_new = sequence > salvage.progress.after && remains.may_be_wanted(sequence);
            let Some(body) = is_new.then(|| remains.body(sequence, spot)).flatten() else { continue };
            (rows, bytes) = (rows + 1, bytes + body.len() as u64);
            found.push((sequence, spot));
            if found.len() > SPOTS_MAX {
                // The greatest goes: it comes in the next pass.
                found.pop();
                is_cut = true;
            }
        }
    }
    if end < remains.pages.units() {
        return Stage::Search { unit: end, seen: 0, found, is_cut };
    }
    let mut rest = found.into_sorted_vec();
    rest.dedup_by_key(|(sequence, _)| *sequence);
    rest.reverse();
    Stage::Take { rest, is_cut }
}

/// As texts, which can be written down.
pub(super) fn by_name(counts: &Waiting) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| (name.to_string(), *count)).collect()
}

fn named_number(values: &[Value]) -> Option<(String, u64)> {
    Some((values.first()?.text()?.to_owned(), values.get(1)?.unsigned()?))
}
