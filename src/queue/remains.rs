//! What a damaged store still says: its small tables, as far as they hold together, and who wanted which message.
//!
//! Promises: a message that may be wanted counts as wanted. Too little said means a repeat under the same id; too much
//! believed would mean a loss that nobody notices.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::boots::{Boot, Boots};
use super::files;
use super::identity::{SESSIONS, Waiting};
use super::kept::span_sum;
use super::pages::{Pages, Spot, Value};
use super::row::{self, Start, Starts, Words};
use super::salvage::{self, Ticket};
use super::sessions::OldSessions;
use super::spans::{OPEN, Span};
use super::store::{InFlightRow, Store, TimingRow, name_sum, timing};
use crate::clock::Reference;
use crate::message::{ClockState, Message, MessageId, Stamp};

/// How much the spans of a damaged store are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knowledge {
    /// They are those of the last commit.
    Whole,
    /// They may be those of an earlier one: what came later is not in them.
    Older,
    /// They cannot be read, or contradict what else is known.
    Nothing,
}

/// A stream of a damaged store.
#[derive(Debug)]
pub(super) struct OldStream {
    pub name: Arc<str>,
    pub session_key: Option<u64>,
    pub session: u64,
}

/// The damaged store, read.
#[derive(Debug)]
pub(super) struct Remains {
    pub pages: Pages,
    roots: BTreeMap<String, u32>,
    pub starts: Starts,
    words: Words,
    pub streams: BTreeMap<i64, OldStream>,
    rules: HashMap<i64, String>,
    spans: BTreeMap<(i64, u64), (u64, i64)>,
    pub knowledge: Knowledge,
    /// By its beginning: what was delivered and kept. Once true it stays true.
    kept: BTreeMap<u64, u64>,
    /// The greatest sequence that the spans name, not counting open ends.
    known_to: u64,
    /// Nothing up to here is wanted.
    settled: u64,
    /// The newest message; `None` = not known.
    pub last: Option<u64>,
    /// By stream; `None`: cannot be read.
    pub in_flight: Option<BTreeMap<i64, Vec<InFlightRow>>>,
    /// Sent at QoS 2, and the cloud has said that it has them.
    pub released: HashSet<(i64, u64)>,
    /// Sent at QoS 2, and nobody knows whether they have arrived.
    pub sent: HashSet<(i64, u64)>,
    free: Option<HashSet<u32>>,
    /// Sessions of local clients; `None`: not all that belongs to them can be read.
    pub local: Option<OldSessions>,
}

impl Remains {
    /// Reads what there is in `place`. Looks at small tables and at the log; never at all of the messages.
    pub fn read(place: &Path, ticket: &Ticket) -> Remains {
        let mut pages = Pages::open(place, !ticket.is_log_foreign);
        pages.is_torn |= ticket.is_log_foreign || ticket.is_log_wanting;
        let mut remains = Remains {
            roots: roots(&pages),
            pages,
            starts: Starts::new(),
            words: Words::default(),
            streams: BTreeMap::new(),
            rules: HashMap::new(),
            spans: BTreeMap::new(),
            kept: BTreeMap::new(),
            knowledge: Knowledge::Nothing,
            known_to: 0,
            settled: ticket.settled,
            last: None,
            in_flight: None,
            released: HashSet::new(),
            sent: HashSet::new(),
            free: None,
            local: None,
        };
        remains.read_names();
        remains.last = remains.last_sequence();
        remains.read_spans(ticket);
        remains.read_kept();
        remains.read_in_flight();
        let counted = ticket.waiting.as_ref().filter(|_| !ticket.was_open);
        remains.local = OldSessions::read(&remains, counted.and_then(|counted| counted.get(SESSIONS)).copied());
        if remains.knowledge == Knowledge::Nothing {
            remains.free = remains.pages.free();
        }
        remains
    }

    /// Shows a table as far as it can be read. False: not all of it.
    pub fn table(&self, name: &str, mut see: impl FnMut(Option<u64>, &[Value])) -> bool {
        self.root(name).is_some_and(|root| self.pages.walk(root, &mut see))
    }

    pub fn root(&self, name: &str) -> Option<u32> {
        self.roots.get(name).copied()
    }

    /// The tables of messages, whatever their number.
    fn message_roots(&self) -> impl Iterator<Item = u32> + '_ {
        self.roots.iter().filter(|(name, _)| name.starts_with("message")).map(|(_, root)| *root)
    }

    fn read_names(&mut self) {
        let mut starts = Starts::new();
        self.table("start", |number, values| starts.extend(start(number, values).map(|start| (start.number, start))));
        self.starts = starts;
        let mut words = Words::default();
        self.table("word", |number, values| {
            if let (Some(Ok(number)), Some(text)) = (number.map(u32::try_from), values.get(1).and_then(Value::text)) {
                words.insert(number, Arc::from(text));
            }
        });
        self.words = words;
        let mut rules = HashMap::new();
        self.table("rule", |id, values| {
            if let (Some(id), Some(text)) = (id, values.get(1).and_then(Value::text)) {
                rules.insert(id.cast_signed(), text.to_owned());
            }
        });
        self.rules = rules;
    }

    fn last_sequence(&self) -> Option<u64> {
        let lasts: Option<Vec<u64>> = self.message_roots().map(|root| self.pages.last_rowid(root)).collect();
        lasts?.into_iter().max().filter(|_| !self.pages.is_torn)
    }

    fn read_spans(&mut self, ticket: &Ticket) {
        let mut streams = BTreeMap::new();
        let mut is_named = true;
        let mut is_whole = self.table("stream", |id, values| {
            let name = values.get(1).and_then(Value::text);
            let sum = values.get(5).and_then(Value::unsigned).filter(|sum| *sum != 0);
            is_named &= name.zip(sum).is_none_or(|(name, sum)| u64::from(name_sum(name)) == sum);
            let session = values.get(4).and_then(Value::unsigned);
            if let (Some(id), Some(name), Some(session)) = (id, name, session) {
                let session_key = values.get(3).and_then(Value::unsigned);
                streams.insert(id.cast_signed(), OldStream { name: Arc::from(name), session_key, session });
            }
        });
        let mut spans = BTreeMap::new();
        // Else what was the cloud's would wait for one that nobody knows.
        let mut is_sane = is_named;
        is_whole &= self.table("delivery", |_, values| {
            let number = |index: usize| values.get(index).and_then(Value::int);
            let (Some(stream), Some(first), Some(last), Some(rule)) = (number(0), number(2), number(3), number(5))
            else {
                is_sane = false;
                return;
            };
            is_sane &= first > 0 && last >= first && streams.contains_key(&stream);
            spans.insert((stream, first.cast_unsigned()), (last.cast_unsigned(), rule));
        });
        // Spans of one stream do not overlap.
        let overlaps = spans
            .iter()
            .zip(spans.iter().skip(1))
            .any(|(((stream, _), (last, _)), ((other, first), _))| stream == other && last >= first);
        self.known_to = spans.values().map(|(last, _)| *last).filter(|last| *last != OPEN).max().unwrap_or(0);
        (self.streams, self.spans) = (streams, spans);
        // A page of another table in place of this one says that nobody waits for anything.
        if !is_whole || !is_sane || overlaps || files::misplaced(&self.pages, &self.roots).is_some() {
            self.spans.clear();
            return;
        }
        self.knowledge = if self.pages.is_torn { Knowledge::Older } else { Knowledge::Whole };
        // An orderly stop has counted what waited. Spans that say something else have been changed since.
        let counted = self.waiting_in_streams().map(|waiting| salvage::by_name(&waiting));
        let disagrees = !ticket.was_open
            && ticket.waiting.as_ref().zip(counted).is_some_and(|(waiting, counted)| {
                waiting.iter().filter(|(name, count)| **count > 0 && *name != SESSIONS).ne(counted.iter())
            });
        if disagrees {
            self.spans.clear();
            self.knowledge = Knowledge::Nothing;
        }
    }

    fn read_in_flight(&mut self) {
        let mut batches: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
        let mut is_whole = !self.pages.is_torn && self.knowledge == Knowledge::Whole;
        is_whole &= self.table("batch_row", |_, values| {
            let (batch, sequence) = (values.first().and_then(Value::int), values.get(2).and_then(Value::unsigned));
            if let (Some(batch), Some(sequence)) = (batch, sequence) {
                batches.entry(batch).or_default().push(sequence);
            }
        });
        let mut found: BTreeMap<i64, Vec<InFlightRow>> = BTreeMap::new();
        is_whole &= self.table("inflight", |_, values| {
            if let Some((stream, row)) = in_flight(values, &batches) {
                found.entry(stream).or_default().push(row);
            }
        });
        for (stream, rows) in &found {
            for row in rows {
                let sequences = row.rows.iter().map(|sequence| (*stream, *sequence));
                if row.released { self.released.extend(sequences) } else { self.sent.extend(sequences) }
            }
        }
        self.in_flight = is_whole.then_some(found);
    }

    /// How much waited in each stream, and in sessions, where that can be said. Where nothing waited is left out.
    pub fn waiting(&self) -> Option<Waiting> {
        let mut waiting = self.waiting_in_streams()?;
        let copies = self.local.as_ref()?.copies();
        waiting.extend((copies > 0).then(|| (Arc::from(SESSIONS), copies)));
        Some(waiting)
    }

    /// Only what its checksum guards: what is believed here without reason is lost.
    fn read_kept(&mut self) {
        let mut kept = BTreeMap::new();
        self.table("kept", |first, values| {
            let number = |index: usize| values.get(index).and_then(Value::unsigned);
            if let (Some(first), Some(last), Some(sum)) = (first, number(1), number(4))
                && first <= last
                && sum == u64::from(span_sum(first, last))
            {
                kept.insert(first, last);
            }
        });
        self.kept = kept;
    }

    /// Whether a message was delivered to all who wanted it, and was only kept.
    fn is_kept(&self, sequence: u64) -> bool {
        self.kept.range(..=sequence).next_back().is_some_and(|(_, last)| *last >= sequence)
    }

    fn waiting_in_streams(&self) -> Option<Waiting> {
        if self.knowledge != Knowledge::Whole {
            return None;
        }
        let mut waiting = Waiting::new();
        for ((stream, first), (last, _)) in &self.spans {
            let last = if *last == OPEN { self.last? } else { *last };
            let name = self.streams.get(stream)?.name.clone();
            let count = waiting.entry(name).or_default();
            *count += Span::new(*first, last).count();
        }
        waiting.retain(|_, count| *count > 0);
        Some(waiting)
    }

    /// The rule by which a stream wanted a message.
    pub fn covering(&self, stream: i64, sequence: u64) -> Option<i64> {
        let (_, (last, rule)) = self.spans.range((stream, 0)..=(stream, sequence)).next_back()?;
        (*last >= sequence).then_some(*rule)
    }

    /// Whether today's rules decide about a message, because the spans say nothing of it.
    pub fn is_beyond(&self, sequence: u64) -> bool {
        if self.is_kept(sequence) {
            return false;
        }
        match self.knowledge {
            Knowledge::Whole => false,
            Knowledge::Older => sequence > self.known_to,
            Knowledge::Nothing => sequence > self.settled,
        }
    }

    /// Whether anybody may want a message.
    pub fn may_be_wanted(&self, sequence: u64) -> bool {
        self.is_beyond(sequence)
            || self.streams.keys().any(|stream| self.covering(*stream, sequence).is_some())
            || self.local.as_ref().is_some_and(|local| local.may_want(sequence))
    }

    /// A list of rules as it was written down.
    pub fn rule(&self, id: i64) -> Option<&str> {
        self.rules.get(&id).map(String::as_str)
    }

    /// Whether a unit holds nothing but what was given up.
    pub fn is_free(&self, unit: u32) -> bool {
        self.free.as_ref().zip(self.pages.is_newest(unit)).is_some_and(|(free, page)| free.contains(&page))
    }

    /// A message that was found at a spot, proven.
    pub fn body(&self, sequence: u64, spot: Spot) -> Option<Vec<u8>> {
        self.pages.row(spot, |body| row::proven(body, sequence).is_some())
    }

    /// A message by its place, proven, if the way to it is whole.
    pub fn find(&self, sequence: u64) -> Option<(MessageId, Message)> {
        let found = self.message_roots().find_map(|root| self.pages.find(root, sequence))?;
        self.decode(sequence, found.get(1)?.blob()?, "").map(|(id, message, _)| (id, message))
    }

    /// A row as a message. Says also whether its start is known: where that is lost, the random part of its name is.
    pub fn decode(&self, sequence: u64, body: &[u8], gateway: &str) -> Option<(MessageId, Message, bool)> {
        if let Ok((id, message)) = row::decode(body, sequence, &self.starts, &self.words) {
            return Some((id, message, true));
        }
        let number = row::start_number(body, sequence).filter(|number| !self.starts.contains_key(number))?;
        if gateway.is_empty() {
            return None;
        }
        let stamp = Stamp { wall_ms: 0, mono_ms: 0, clock: ClockState::Unset };
        let unknown = Start { number, store: 0, gateway: Arc::from(gateway), boot_id: Arc::from(""), stamp };
        let (id, mut message) = row::decode(body, sequence, &Starts::from([(number, unknown)]), &self.words).ok()?;
        message.received.clock = ClockState::Unset;
        Some((id, message, false))
    }

    /// A number of the store as a whole.
    pub fn meta(&self, key: &str) -> Option<u64> {
        let mut found = None;
        self.table("meta", |_, values| {
            if values.first().and_then(Value::text) == Some(key) {
                found = values.get(1).and_then(Value::unsigned);
            }
        });
        found
    }

    /// What is known of each boot's time.
    pub fn boots(&self) -> Boots {
        let mut boots = Boots::new();
        self.table("boot", |_, values| {
            let int = |index: usize| values.get(index).and_then(Value::int);
            let known = int(2).zip(int(3)).zip(int(4).and_then(|error| u32::try_from(error).ok()));
            let known = known.map(|((wall_ms, mono_ms), error_ms)| Reference {
                wall_ms,
                mono_ms: mono_ms.cast_unsigned(),
                error_ms,
            });
            if let (Some(boot_id), Some(boot_ms_min)) = (values.first().and_then(Value::text), int(1)) {
                boots.insert(Arc::from(boot_id), Boot { boot_ms_min, known });
            }
        });
        boots
    }

    /// The last start.
    pub fn start(&self) -> u32 {
        self.starts.last_key_value().map_or(0, |(number, _)| *number)
    }
}

/// Where the tables and indexes begin: as the store says; where it does not say, as in every store of this program.
pub(super) fn roots(pages: &Pages) -> BTreeMap<String, u32> {
    let mut roots = Store::usual_roots().unwrap_or_default();
    let mut said = BTreeMap::new();
    pages.walk(1, |_, values| {
        let texts = [0, 1].map(|index| values.get(index).and_then(Value::text));
        let root = values.get(3).and_then(Value::int).and_then(|root| u32::try_from(root).ok());
        if let ([Some("table" | "index"), Some(name)], Some(root)) = (texts, root) {
            said.insert(name.to_owned(), root);
        }
    });
    roots.extend(said);
    roots
}

fn start(number: Option<u64>, values: &[Value]) -> Option<Start> {
    let clock = match values.get(6)?.int()? {
        0 => ClockState::Synced,
        // Not kept: what counts from this stamp has a clock of its own.
        1 => ClockState::Holdover { error_ms: u32::MAX },
        _ => ClockState::Unset,
    };
    let stamp = Stamp { wall_ms: values.get(4)?.int()?, mono_ms: values.get(5)?.unsigned()?, clock };
    let (gateway, boot_id) = (Arc::from(values.get(2)?.text()?), Arc::from(values.get(3)?.text()?));
    let store = values.get(1)?.unsigned()?;
    Some(Start { number: u32::try_from(number?).ok()?, store, gateway, boot_id, stamp })
}

fn in_flight(values: &[Value], batches: &BTreeMap<i64, Vec<u64>>) -> Option<(i64, InFlightRow)> {
    let int = |index: usize| values.get(index).and_then(Value::int);
    let rows = match (int(2), int(3)) {
        (Some(sequence), _) => vec![sequence.cast_unsigned()],
        (None, Some(batch)) => batches.get(&batch).cloned().unwrap_or_default(),
        (None, None) => Vec::new(),
    };
    let small = |index: usize| int(index).and_then(|value| u32::try_from(value).ok());
    let row = InFlightRow {
        packet_id: u16::try_from(int(1)?).ok()?,
        rows,
        released: int(4)? != 0,
        order: int(5)?.cast_unsigned(),
        topic: values.get(6)?.text()?.to_owned(),
        format: int(7)?,
        timing: timing(&TimingRow(int(9).unwrap_or(0), int(8)?, small(10), int(11), int(12))),
    };
    Some((int(0)?, row))
}
