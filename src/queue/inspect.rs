//! What a person may ask of a store: how much is in it, what waits, whether all of it is whole.
//!
//! Promises: an answer is one job's share, read in one turn of the queue's thread and gone with it: nothing is held open
//! between two questions, neither a statement nor a snapshot, so that the log is cut as ever. Whoever asks goes on from
//! the place that the last answer named, and holds one answer in memory at a time, whatever the size of the store.
//! Nothing here changes a store.
//!
//! The same answers come from the store of a gateway that runs (`Inlet::ask`) and from the files of one that does not
//! (files.rs).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64ct::{Base64, Encoding as _};
use serde::{Deserialize, Serialize};

use super::books::{Books, JOB_ROWS_MAX};
use super::boots::{self, Boots};
use super::copying::{CopyAsk, CopyPages};
use super::kept::{ResendAsk, ResendPage};
use super::row::{self, Starts, Words};
use super::sessions::LaneKey;
use super::spans::Span;
use super::store::{PAGE_BYTES, Store};
use crate::clock::rfc3339;
use crate::message::{Body, Filter, Message, MessageId, Origin, Properties};
use crate::payload::json;

mod files;

pub use files::{Files, LookError, quarantines};

/// Bytes of rows that one answer carries, unless a single one is larger.
const JOB_BYTES_MAX: usize = 256 * 1024;
/// Dead letters and retained messages that one answer looks at; each may be as large as a packet.
const LETTERS_MAX: i64 = 16;
/// Sessions that are named.
const SESSIONS_NAMED: usize = 64;
/// Subscriptions of one client that an answer looks at.
const LANES_MAX: usize = 1024;
/// Places that one answer names as damaged or missing; the others are counted.
const FAULTS_NAMED: usize = 64;

/// What is asked of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "about")]
pub enum Question {
    /// How much is in it.
    Stats,
    /// What waits.
    Messages(MessagesAsk),
    /// Whether it is whole, from a place on.
    Check {
        /// Where the last answer ended; where to begin at first.
        place: CheckPlace,
    },
    /// What of the messages that were delivered and are kept would be sent again.
    Kept(ResendAsk),
    /// Which pages to copy.
    Copy(CopyAsk),
    /// What was refused for good.
    DeadLetters {
        /// Behind the one of this number.
        after: i64,
        /// At most so many.
        count: u32,
        /// Of each body at most so many bytes.
        body_bytes: u32,
    },
}

/// Which messages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MessagesAsk {
    /// Behind this place.
    pub after: u64,
    /// Up to this place; `None`: up to the newest.
    pub to: Option<u64>,
    /// Only what waits for this uplink, or for `field`.
    pub stream: Option<String>,
    /// Only what waits for this local client.
    pub client: Option<String>,
    /// What was delivered and is kept, instead of what waits.
    pub kept: bool,
    /// Only topics that this filter matches.
    pub topic: Option<String>,
    /// Not what came in before, in milliseconds since 1970.
    pub from_ms: Option<i64>,
    /// Nor what came in at this time or later.
    pub to_ms: Option<i64>,
    /// At most so many; 0: as many as an answer takes.
    pub count: u32,
    /// Of each body at most so many bytes; 0: all of them.
    pub body_bytes: u32,
}

/// How far a check has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckPlace {
    /// At the messages behind this place.
    Messages(u64),
    /// At the retained messages behind this topic.
    Retained(String),
    /// At the dead letters behind this number.
    DeadLetters(i64),
}

impl Default for CheckPlace {
    fn default() -> CheckPlace {
        CheckPlace::Messages(0)
    }
}

/// What a store answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Answer {
    /// To `Question::Stats`.
    Stats(Box<StoreStats>),
    /// To `Question::Messages`.
    Messages(MessagesPage),
    /// To `Question::Check`.
    Check(CheckPage),
    /// To `Question::DeadLetters`.
    DeadLetters(DeadLettersPage),
    /// To `Question::Kept`, and to the order.
    Resend(ResendPage),
    /// To `Question::Copy`.
    Copy(CopyPages),
    /// To an order: it is done, as far as one transaction goes.
    Done {
        /// Messages that it was done to.
        count: u64,
        /// Those that are left for the next one.
        left: u64,
    },
    /// It cannot be answered or done, and nothing was changed.
    Refused {
        /// For a person.
        reason: String,
    },
}

/// How much is in a store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoreStats {
    /// Messages that somebody wants.
    pub messages: u64,
    /// Bytes of pages in use.
    pub bytes: u64,
    /// Messages that were delivered and are kept (`keep_delivered`), and the bytes that they take of these, about.
    #[serde(default)]
    pub kept: u64,
    /// As said there.
    #[serde(default)]
    pub kept_bytes: u64,
    /// The ceiling in force; `None`: the gateway does not run.
    pub max_bytes: Option<u64>,
    /// The newest place.
    pub sequence_last: u64,
    /// By name: the uplinks, and `field`.
    pub streams: BTreeMap<String, StreamLine>,
    /// Sessions of local clients.
    pub sessions: SessionsLine,
    /// Retained messages.
    pub retained: u64,
    /// Messages that were refused for good.
    pub dead_letters: u64,
    /// By reason, since the store was made.
    pub losses: BTreeMap<String, u64>,
    /// Damaged stores that were moved aside, and whether something of them is still to be taken over.
    pub quarantines: BTreeMap<String, bool>,
}

/// A stream in `StoreStats`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamLine {
    /// An uplink of its name is configured; `None`: nobody here knows.
    pub is_configured: Option<bool>,
    /// Messages that it has to deliver.
    pub waiting: u64,
    /// Of these, under way at QoS 2.
    pub in_flight: u64,
    /// Messages that it had and is to be sent once more.
    #[serde(default)]
    pub again: u64,
    /// When the oldest came in.
    pub oldest: Option<String>,
}

/// The sessions in `StoreStats`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionsLine {
    /// How many are kept.
    pub count: u64,
    /// Messages that wait for them, each as often as it is to be delivered.
    pub waiting: u64,
    /// The clients for whom most waits.
    pub clients: Vec<(String, u64)>,
}

/// An answer to `Question::Messages`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MessagesPage {
    /// In order.
    pub rows: Vec<Entry>,
    /// Behind which place to go on; `None`: there are no more.
    pub next: Option<u64>,
    /// The newest place.
    pub last: u64,
    /// Rows that were looked at.
    pub looked: u64,
}

/// A message that waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place.
    pub sequence: u64,
    /// Who wants it.
    #[serde(rename = "for")]
    pub wanted_by: Vec<String>,
    /// What it says; `None`: it is damaged.
    #[serde(flatten)]
    pub told: Option<Told>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Its name.
    pub id: String,
    /// Its topic here.
    pub topic: String,
    /// As published.
    pub qos: u8,
    /// As published.
    #[serde(default, skip_serializing_if = "is_false")]
    pub retain: bool,
    /// When it came in.
    pub received: String,
    /// How good that time is.
    pub clock: String,
    /// From where.
    pub origin: String,
    /// Length of its body; of a reading, as the JSON that it is sent as.
    pub bytes: u64,
    /// A reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<serde_json::Value>,
    /// A body that is a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// Any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// The body is longer than what stands here.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_cut: bool,
    /// Of MQTT 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<ToldProperties>,
}

/// What a message says beside its body.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ToldProperties {
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry_s: Option<u32>,
    /// As published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// As published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_topic: Option<String>,
    /// As published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_data_base64: Option<String>,
    /// Names and values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user: Vec<(String, String)>,
}

/// An answer to `Question::Check`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckPage {
    /// Rows that were proven or found damaged.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that somebody wants and that cannot be read.
    pub damaged: u64,
    /// Messages that somebody wants and that are not there.
    pub missing: u64,
    /// Retained messages and dead letters that cannot be read.
    pub damaged_others: u64,
    /// What is wrong, for a person; not all of it where it is much.
    pub faults: Vec<String>,
    /// Where to go on; `None`: that was all.
    pub next: Option<CheckPlace>,
    /// The newest place.
    pub last: u64,
}

/// An answer to `Question::DeadLetters`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DeadLettersPage {
    /// By number.
    pub rows: Vec<DeadLetter>,
    /// Behind which number to go on; `None`: there are no more.
    pub next: Option<i64>,
}

/// A message that was refused for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its number.
    pub number: i64,
    /// Who refused it; `None`: nobody knows any more.
    pub stream: Option<String>,
    /// When.
    pub time: String,
    /// Why.
    pub reason: String,
    /// What it says; `None`: it is damaged.
    #[serde(flatten)]
    pub told: Option<Told>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// What an answer is made from: the store as it is on the disk, and what makes its rows readable.
pub(super) struct View<'a> {
    pub store: &'a Store,
    pub starts: &'a Starts,
    pub words: &'a Words,
    pub boots: &'a Boots,
    /// Of today.
    pub boot_id: &'a str,
    pub streams: Vec<(i64, Arc<str>)>,
    /// The newest place that has a row.
    pub last: u64,
}

/// Somebody for whom messages wait, or nobody for whom they are kept.
enum Consumer {
    Stream(i64, Arc<str>),
    Lane(LaneKey, Arc<str>),
    Kept(Arc<str>),
}

impl Books {
    /// What an answer is made from.
    pub(super) fn view(&self) -> rusqlite::Result<View<'_>> {
        Ok(View {
            store: &self.store,
            starts: &self.starts,
            words: &self.words,
            boots: &self.boots,
            boot_id: self.settings.clock.boot_id(),
            streams: self.streams.iter().map(|stream| (stream.id, stream.name.clone())).collect(),
            // Places above it may be in memory only.
            last: self.store.last_sequence()?,
        })
    }

    /// Answers from the open store.
    pub(super) fn answer_to(&mut self, question: &Question) -> rusqlite::Result<Answer> {
        match question {
            Question::Stats => Ok(Answer::Stats(Box::new(self.store_stats()?))),
            Question::Copy(ask) => self.copy(ask),
            Question::Kept(ask) => self.resend(ask, false),
            other => self.view()?.answer_to(other),
        }
    }

    fn store_stats(&self) -> rusqlite::Result<StoreStats> {
        let view = self.view()?;
        let mut streams = BTreeMap::new();
        for stream in &self.streams {
            let held = self.held.count_of(&stream.name);
            let line = StreamLine {
                is_configured: Some(stream.is_active),
                waiting: stream.waiting + held,
                in_flight: stream.in_flight.len() as u64,
                again: stream.again.count(),
                oldest: view.oldest(stream.id)?,
            };
            streams.insert(stream.name.to_string(), line);
        }
        let mut clients: Vec<(String, u64)> =
            self.sessions.waiting_by_client().map(|(client, count)| (client.to_string(), count)).collect();
        name_largest(&mut clients);
        let sessions = SessionsLine { count: self.sessions.count(), waiting: self.sessions.waiting(), clients };
        Ok(StoreStats {
            messages: self.messages(),
            bytes: self.store.pages_used()? * PAGE_BYTES,
            kept: self.kept.count(),
            kept_bytes: self.kept.bytes(),
            max_bytes: Some(self.ceilings.soft_pages * PAGE_BYTES),
            sequence_last: self.identity.sequence_next.saturating_sub(1),
            streams,
            sessions,
            retained: self.retained.0,
            dead_letters: self.dead_letters.0,
            losses: self.losses.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
            quarantines: files::quarantines(&self.settings.dir),
        })
    }
}

fn name_largest(clients: &mut Vec<(String, u64)>) {
    clients.retain(|(_, count)| *count > 0);
    clients.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    clients.truncate(SESSIONS_NAMED);
}

impl View<'_> {
    /// Answers whatever needs no more than the store.
    pub fn answer_to(&self, question: &Question) -> rusqlite::Result<Answer> {
        match question {
            Question::Stats | Question::Copy(_) | Question::Kept(_) => Ok(refused("it is not known here")),
            Question::Messages(ask) => self.messages(ask),
            Question::Check { place } => Ok(Answer::Check(self.check(place)?)),
            Question::DeadLetters { after, count, body_bytes } => self.dead_letters(*after, *count, *body_bytes),
        }
    }

    /// When the oldest message that waits for a stream came in.
    pub fn oldest(&self, stream: i64) -> rusqlite::Result<Option<String>> {
        let Some((span, _)) = self.store.span_after(stream, 0)? else { return Ok(None) };
        let mut entered = None;
        self.store.messages(Span::new(span.first, span.first), |sequence, body| {
            entered = row::entered(body, sequence, self.starts).ok();
            false
        })?;
        let mended = entered.map(|(start, stamp)| boots::mended(self.boots, self.starts, start, stamp));
        Ok(mended.map(|stamp| rfc3339(stamp.wall_ms)))
    }

    // Messages

    fn messages(&self, ask: &MessagesAsk) -> rusqlite::Result<Answer> {
        let consumers = match self.consumers(ask)? {
            Ok(consumers) => consumers,
            Err(refusal) => return Ok(refusal),
        };
        let filter = match ask.topic.as_deref().map(Filter::new).transpose() {
            Ok(filter) => filter,
            Err(error) => return Ok(refused(&error.to_string())),
        };
        let last = self.last.min(ask.to.unwrap_or(u64::MAX));
        let count_max = if ask.count == 0 { usize::MAX } else { usize::try_from(ask.count).unwrap_or(usize::MAX) };
        let mut page = MessagesPage { last: self.last, ..MessagesPage::default() };
        let mut place = ask.after.saturating_add(1);
        let mut bytes = 0;
        let mut is_full = false;
        while !is_full && page.looked < JOB_ROWS_MAX {
            let Some(first) = self.next_wanted(&consumers, place)?.filter(|first| *first <= last) else {
                return Ok(Answer::Messages(page));
            };
            let end = last.min(first.saturating_add(JOB_ROWS_MAX - page.looked - 1));
            let wanted = self.wanted_over(&consumers, Span::new(first, end))?;
            // Also where there are no rows this ends.
            page.looked += 1;
            place = end.saturating_add(1);
            self.store.messages(Span::new(first, end), |sequence, body| {
                if page.rows.len() >= count_max || (!page.rows.is_empty() && bytes + body.len() > JOB_BYTES_MAX) {
                    (is_full, place) = (true, sequence);
                    return false;
                }
                page.looked += 1;
                bytes += body.len();
                let wanted_by: Vec<String> = wanted
                    .iter()
                    .filter(|(_, spans)| spans.iter().any(|span| span.contains(sequence)))
                    .map(|(name, _)| name.to_string())
                    .collect();
                if !wanted_by.is_empty() {
                    let decoded = row::decode(body, sequence, self.starts, self.words);
                    if let Some(entry) = self.entry(ask, filter.as_ref(), sequence, wanted_by, decoded.ok()) {
                        page.rows.push(entry);
                    }
                }
                true
            })?;
        }
        page.next = Some(place - 1);
        Ok(Answer::Messages(page))
    }

    /// A message as it is told; `None`: it was not asked for.
    fn entry(
        &self,
        ask: &MessagesAsk,
        filter: Option<&Filter>,
        sequence: u64,
        wanted_by: Vec<String>,
        decoded: Option<(MessageId, Message)>,
    ) -> Option<Entry> {
        let Some((id, message)) = decoded else { return Some(Entry { sequence, wanted_by, told: None }) };
        if filter.is_some_and(|filter| !filter.matches(&message.topic)) {
            return None;
        }
        let received_ms = self.received(&id, &message).wall_ms;
        let is_in_time =
            ask.from_ms.is_none_or(|from| received_ms >= from) && ask.to_ms.is_none_or(|to| received_ms < to);
        is_in_time.then(|| Entry { sequence, wanted_by, told: Some(self.told(&id, &message, ask.body_bytes)) })
    }

    fn received(&self, id: &MessageId, message: &Message) -> crate::message::Stamp {
        boots::mended(self.boots, self.starts, id.start, message.received)
    }

    fn consumers(&self, ask: &MessagesAsk) -> rusqlite::Result<Result<Vec<Consumer>, Answer>> {
        if ask.kept {
            return Ok(Ok(vec![Consumer::Kept(Arc::from("nobody"))]));
        }
        if let Some(client) = &ask.client {
            let sessions = self.store.local_sessions()?;
            let Some(session) = sessions.into_iter().find(|session| *session.client == **client) else {
                return Ok(Err(refused(&format!("no session is kept for a client {client:?}"))));
            };
            let name: Arc<str> = Arc::from(format!("client {client}"));
            let lanes = self.store.lanes_of(session.number, LANES_MAX)?;
            let consumers =
                lanes.into_iter().map(|lane| Consumer::Lane(LaneKey { session: session.number, lane }, name.clone()));
            return Ok(Ok(consumers.collect()));
        }
        let asked = |name: &Arc<str>| ask.stream.as_deref().is_none_or(|stream| stream == &**name);
        let streams = self.streams.iter().filter(|(_, name)| asked(name));
        let consumers: Vec<Consumer> = streams.map(|(id, name)| Consumer::Stream(*id, name.clone())).collect();
        match &ask.stream {
            Some(stream) if consumers.is_empty() => {
                let known: Vec<&str> = self.streams.iter().map(|(_, name)| &**name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Ok(Err(refused(&format!("the store has no stream {stream:?}; there are: {known}"))))
            }
            _ => Ok(Ok(consumers)),
        }
    }

    /// The first place from `place` on that one of them wants.
    fn next_wanted(&self, consumers: &[Consumer], place: u64) -> rusqlite::Result<Option<u64>> {
        let mut first: Option<u64> = None;
        for consumer in consumers {
            let found = match self.span_at(consumer, place)? {
                Some(span) if span.contains(place) => Some(place),
                _ => self.span_after(consumer, place)?.map(|span| span.first),
            };
            first = match (first, found) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        Ok(first)
    }

    /// What each of them wants of a span, by name.
    fn wanted_over(&self, consumers: &[Consumer], over: Span) -> rusqlite::Result<Vec<(Arc<str>, Vec<Span>)>> {
        let mut wanted: Vec<(Arc<str>, Vec<Span>)> = Vec::new();
        for consumer in consumers {
            let mut spans: Vec<Span> = self.span_at(consumer, over.first)?.into_iter().collect();
            let mut after = over.first;
            while let Some(span) = self.span_after(consumer, after)?.filter(|span| span.first <= over.last) {
                after = span.first;
                spans.push(span);
            }
            spans.retain(|span| span.overlap(over).is_some());
            let (Consumer::Stream(_, name) | Consumer::Lane(_, name) | Consumer::Kept(name)) = consumer;
            match wanted.iter_mut().find(|(other, _)| other == name) {
                Some((_, all)) => all.extend(spans),
                None => wanted.push((name.clone(), spans)),
            }
        }
        Ok(wanted)
    }

    fn span_at(&self, consumer: &Consumer, place: u64) -> rusqlite::Result<Option<Span>> {
        match consumer {
            Consumer::Stream(id, _) => Ok(self.store.span_at(*id, place)?.map(|(span, _)| span)),
            Consumer::Lane(key, _) => Ok(self.store.session_span_at(*key, place)?.map(|row| row.span)),
            Consumer::Kept(_) => self.store.kept_at(place),
        }
    }

    fn span_after(&self, consumer: &Consumer, place: u64) -> rusqlite::Result<Option<Span>> {
        match consumer {
            Consumer::Stream(id, _) => Ok(self.store.span_after(*id, place)?.map(|(span, _)| span)),
            Consumer::Lane(key, _) => Ok(self.store.session_span_after(*key, place)?.map(|row| row.span)),
            Consumer::Kept(_) => self.store.kept_after(place),
        }
    }

    /// A message for a person.
    pub fn told(&self, id: &MessageId, message: &Message, body_bytes: u32) -> Told {
        let received = self.received(id, message);
        let cut_at = if body_bytes == 0 { usize::MAX } else { usize::try_from(body_bytes).unwrap_or(usize::MAX) };
        let mut told = Told {
            id: id.to_string(),
            topic: message.topic.as_str().to_owned(),
            qos: message.qos.level(),
            retain: message.retain,
            received: rfc3339(received.wall_ms),
            clock: received.clock.name().to_owned(),
            origin: origin_words(&message.origin),
            bytes: 0,
            reading: None,
            payload: None,
            payload_base64: None,
            is_cut: false,
            properties: message.properties.as_deref().map(told_properties),
        };
        match &message.body {
            Body::Reading(reading) => {
                let timing = boots::timing(self.boots, self.starts, id.start, reading.stamp, self.boot_id);
                let text = json::encode(reading, id, timing);
                told.bytes = text.len() as u64;
                told.reading = serde_json::from_slice(&text).ok();
            }
            Body::Bytes(bytes) => {
                told.bytes = bytes.len() as u64;
                told.is_cut = bytes.len() > cut_at;
                match std::str::from_utf8(bytes) {
                    Ok(text) if !text.chars().any(is_unprintable) => {
                        let cut =
                            text.char_indices().map(|(place, _)| place).take_while(|place| *place <= cut_at).last();
                        let cut = if told.is_cut { cut.unwrap_or(0) } else { text.len() };
                        told.payload = text.get(..cut).map(str::to_owned);
                    }
                    _ => told.payload_base64 = bytes.get(..cut_at.min(bytes.len())).map(Base64::encode_string),
                }
            }
        }
        told
    }

    // Check

    fn check(&self, place: &CheckPlace) -> rusqlite::Result<CheckPage> {
        let mut page = CheckPage { last: self.last, ..CheckPage::default() };
        page.next = match place {
            CheckPlace::Messages(after) => Some(self.check_messages(&mut page, *after)?),
            CheckPlace::Retained(after) => Some(self.check_retained(&mut page, after)?),
            CheckPlace::DeadLetters(after) => self.check_dead_letters(&mut page, *after)?,
        };
        Ok(page)
    }

    /// Proves one job's share of the rows, and looks whether all are there that somebody wants.
    fn check_messages(&self, page: &mut CheckPage, after: u64) -> rusqlite::Result<CheckPlace> {
        let first = after.saturating_add(1);
        let (mut damaged, mut there) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut is_cut = false;
        self.store.messages(Span::new(first, self.last), |sequence, body| {
            if there.len() as u64 >= JOB_ROWS_MAX || bytes >= JOB_BYTES_MAX {
                is_cut = true;
                return false;
            }
            bytes += body.len();
            there.push(sequence);
            if row::proven(body, sequence).is_none() {
                damaged.push(sequence);
            }
            true
        })?;
        page.rows = there.len() as u64;
        page.bytes = bytes as u64;
        // From one row to the next nothing may be wanted that is not there.
        let end = if is_cut { there.last().copied().unwrap_or(first) } else { self.last };
        let streams: Vec<Consumer> =
            self.streams.iter().map(|(id, name)| Consumer::Stream(*id, name.clone())).collect();
        for (name, spans) in self.wanted_over(&streams, Span::new(first, end))? {
            for span in spans.into_iter().filter_map(|span| span.overlap(Span::new(first, end))) {
                let from = there.partition_point(|sequence| *sequence < span.first);
                let to = there.partition_point(|sequence| *sequence <= span.last);
                let missing = span.count().saturating_sub((to - from) as u64);
                if missing > 0 {
                    page.missing += missing;
                    let Span { first, last } = span;
                    page.fault(format!("{missing} messages from {first} to {last} that {name} wants are not there"));
                }
                for sequence in damaged.iter().filter(|sequence| span.contains(**sequence)) {
                    page.damaged += 1;
                    page.fault(format!("message {sequence}, which {name} wants, is damaged"));
                }
            }
        }
        Ok(if is_cut { CheckPlace::Messages(end) } else { CheckPlace::Retained(String::new()) })
    }

    fn check_retained(&self, page: &mut CheckPage, after: &str) -> rusqlite::Result<CheckPlace> {
        let found = self.store.retained(after, !after.is_empty(), None, LETTERS_MAX)?;
        let next = found.last().map(|(topic, _)| CheckPlace::Retained(topic.clone()));
        for (topic, body) in found {
            page.rows += 1;
            page.bytes += body.len() as u64;
            if row::proven(&body, 0).is_none() {
                page.damaged_others += 1;
                page.fault(format!("the retained message of {topic:?} is damaged"));
            }
        }
        Ok(next.unwrap_or(CheckPlace::DeadLetters(0)))
    }

    fn check_dead_letters(&self, page: &mut CheckPage, after: i64) -> rusqlite::Result<Option<CheckPlace>> {
        let found = self.store.dead_letters(after, LETTERS_MAX)?;
        let next = found.last().map(|(number, _, _)| CheckPlace::DeadLetters(*number));
        for (number, sequence, body) in found {
            page.rows += 1;
            page.bytes += body.len() as u64;
            if row::proven(&body, sequence).is_none() {
                page.damaged_others += 1;
                page.fault(format!("the dead letter {number} is damaged"));
            }
        }
        Ok(next)
    }

    // Dead letters

    fn dead_letters(&self, after: i64, count: u32, body_bytes: u32) -> rusqlite::Result<Answer> {
        let count = i64::from(count).clamp(1, LETTERS_MAX);
        let mut page = DeadLettersPage::default();
        let mut bytes = 0;
        for found in self.store.dead_letter_rows(after, count)? {
            if !page.rows.is_empty() && bytes + found.body.len() > JOB_BYTES_MAX {
                break;
            }
            bytes += found.body.len();
            page.next = Some(found.number);
            let stream = self.streams.iter().find(|(id, _)| *id == found.stream);
            let decoded = row::decode(&found.body, found.sequence, self.starts, self.words).ok();
            page.rows.push(DeadLetter {
                number: found.number,
                stream: stream.map(|(_, name)| name.to_string()),
                time: rfc3339(found.wall_ms),
                reason: found.reason,
                told: decoded.map(|(id, message)| self.told(&id, &message, body_bytes)),
            });
        }
        Ok(Answer::DeadLetters(page))
    }
}

impl CheckPage {
    fn fault(&mut self, text: String) {
        if self.faults.len() < FAULTS_NAMED {
            self.faults.push(text);
        }
    }
}

pub(super) fn refused(reason: &str) -> Answer {
    Answer::Refused { reason: reason.to_owned() }
}

/// What would move the cursor of a terminal, or take many bytes for one in JSON.
fn is_unprintable(character: char) -> bool {
    character.is_control() && !matches!(character, '\t' | '\n' | '\r')
}

fn origin_words(origin: &Origin) -> String {
    match origin {
        Origin::Field => "field".to_owned(),
        Origin::Gateway => "gateway".to_owned(),
        Origin::Client(name) => format!("client {name}"),
        Origin::Uplink(name) => format!("uplink {name}"),
    }
}

fn told_properties(properties: &Properties) -> ToldProperties {
    let Properties { expiry_s, content_type, response_topic, correlation_data, user, .. } = properties;
    ToldProperties {
        expiry_s: *expiry_s,
        content_type: content_type.clone(),
        response_topic: response_topic.as_ref().map(|topic| topic.as_str().to_owned()),
        correlation_data_base64: correlation_data.as_ref().map(|bytes| Base64::encode_string(bytes)),
        user: user.clone(),
    }
}
