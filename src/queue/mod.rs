//! The queue: what is acknowledged is in here, synced, until the cloud has it.
//!
//! Promises, each with tests of its name:
//! - **Q1** `append` returned ⇒ the message survives `kill -9` and power loss (`synchronous=FULL` in WAL mode).
//! - **Q2** a `Sequence` only grows, also over restart and quarantine; a hole proves nothing, a loss is a gap record.
//! - **Q3** a message is forgotten only when delivered or by a rule that the owner wrote; a rejected one becomes a
//!   dead letter.
//! - **Q4** the store stays under its ceiling; what that costs is counted, logged at ERROR and told as a gap.
//! - **Q5** one consumer for each stream: `Outlet` is not `Clone`.
//!
//! ```text
//!  Inlet ──┐  jobs, one ordered     ┌──────────────────────────┐        ┌───────────┐
//!  Inlet ──┼─ bounded channel ────► │ worker: one thread, the  │ ─────► │ store.rs  │ SQLite, WAL,
//!  Outlet ─┘                        │ one connection; all that │        │ (SQL)     │ FULL, EXCLUSIVE
//!     ▲                             │ waits is one transaction │        └───────────┘
//!     └──── replies after COMMIT ── │                          │
//!                                   └──────────────────────────┘
//! ```
//!
//! A store that is damaged is moved aside and salvaged (salvage.rs). The gap record at its end says how many messages
//! were lost where that is known: while the store was open, after an orderly stop (`start` keeps it, identity.rs), or
//! from its spans. Where it is not known the record has `"count": null` and the counter `quarantined` is there but counts
//! nothing: a number that nobody has counted is not told.
//!
//! A store that fails because of its disk is closed and opened again for as long as that takes; meanwhile whoever asks
//! hears at once that it failed. Nothing is acknowledged then, and nothing that was acknowledged is touched.
//!
//! What a stream wants is kept as *spans* of sequences, not as a row for each message: a span is extended in place
//! while messages arrive and trimmed at its front while they are settled, so that a backlog of a million messages
//! costs one row in `delivery`. Settling is by (stream, sequence) all the same: out of order, a span is split.
//!
//! The messages themselves lie in *segments*, a table for about each mebibyte of them (segments.rs). A segment that
//! nobody wants any more is emptied whole, which writes none of its pages; rows leave one by one only where their room
//! is needed before that (removal.rs).

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::{Clock, Timing};
use crate::config::{BatchLimits, ForwardRule, Payload, TopicTemplate, WRITES_STREAM, WhenFull};
use crate::health::{self, Health, LossReason};
use crate::message::{Filter, Message, MessageId, Ordinal, Origin, Qos, Sequence, Topic};

use inspect::{Answer, Question};
use opening::Past;
use outward::Fetched;
use upkeep::Order;
use worker::{Away, JOBS_MAX, Job, Reply};

pub use worker::Worker;

mod worker;

mod books;

mod commands;

pub mod copying;

mod outward;

mod removal;

mod opening;

pub mod inspect;
pub mod kept;
pub mod ledger;
mod newer;

mod rules;

mod routes;

mod retention;

mod spans;

mod spare;

pub mod sessions;

mod segments;

mod identity;

mod boots;

mod row;

mod headroom;

mod mark;

mod files;

pub(crate) mod numbers;

mod pages;

mod quarantine;

mod remains;

pub mod restored;

mod salvage;

mod scrub;

pub mod upkeep;

mod store;

#[cfg(test)]
mod tests;

/// Everything the queue needs to open.
#[derive(Debug, Clone)]
pub struct QueueSettings {
    /// The state directory; the store is `queue.db` in it, the start file `start`.
    pub dir: PathBuf,
    /// First part of every `MessageId`.
    pub gateway: Arc<str>,
    /// Soft ceiling (DESIGN.md 6.1).
    pub bytes_max: NonZeroU64,
    /// What is older is dropped and declared.
    pub age_max: Option<Duration>,
    /// For so long what was delivered is kept, while there is room.
    pub keep: Option<Duration>,
    /// What gives way at the ceiling, unless a rule says otherwise.
    pub when_full: WhenFull,
    /// How long a message may wait in memory for the cloud's acknowledgement before it is written; `None` = it is
    /// written first (DESIGN.md 6.3).
    pub hold: Option<Duration>,
    /// One for each uplink, and `WRITES` where devices may be written to.
    pub streams: Vec<StreamSpec>,
    /// What `WRITES` wants.
    pub set_topics: SetTopics,
    /// For ages and stamps of gap records.
    pub clock: Clock,
    /// Where counters go.
    pub health: Health,
}

/// Those of `QueueSettings` that may change while the queue runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// As there.
    pub age_max: Option<Duration>,
    /// As there.
    pub keep: Option<Duration>,
    /// As there.
    pub when_full: WhenFull,
}

/// The stream of writes to field devices. No uplink may have its name. It wants what comes to one of `SetTopics` and nothing
/// that it holds gives way to anything or is dropped for its age: each is answered, and is gone then.
pub const WRITES: &str = WRITES_STREAM;

/// The topics on which points are written, of all points.
#[derive(Debug, Clone, Default)]
pub struct SetTopics(Arc<HashSet<Topic>>);

impl SetTopics {
    /// Of these topics.
    pub fn new(topics: HashSet<Topic>) -> SetTopics {
        SetTopics(Arc::new(topics))
    }

    /// Whether a message asks for a write: what the gateway says itself asks for none.
    pub fn want(&self, message: &Message) -> bool {
        matches!(message.origin, Origin::Client(_) | Origin::Uplink(_)) && self.0.contains(&message.topic)
    }
}

impl StreamSpec {
    /// The stream of writes.
    pub fn writes() -> StreamSpec {
        let rule = |filter| ForwardRule {
            filter,
            topic: TopicTemplate::identity(),
            // Whoever asks without waiting for an answer is answered all the same.
            qos: Some(Qos::AtLeastOnce),
            when_full: Some(WhenFull::Refuse),
            strict_order: false,
            payload: crate::config::Payload::JSON,
            batch: None,
        };
        let rules = Filter::new("#").map(rule).into_iter().collect();
        StreamSpec { name: Arc::from(WRITES), rules, own_topic: None }
    }
}

/// A stream: an ordered consumer of the queue.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    /// The uplink's name; what came from the uplink of this name is never matched.
    pub name: Arc<str>,
    /// The first rule that matches a message decides.
    pub rules: Vec<ForwardRule>,
    /// Gap records go to `<own_topic>/gap` at the cloud; `None` = they are kept and counted only.
    pub own_topic: Option<String>,
}

/// Why the store cannot be opened. A damaged store is not among them: it is moved aside.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has the state directory.
    #[error("another tidegate uses the state directory {}", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be made, read or written.
    #[error("cannot use the state directory {}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// SQLite failed in a way that a fresh store would not mend.
    #[error("cannot open the queue at {}", path.display())]
    Store {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AppendError {
    /// The store is full and the rule is `refuse`: the publisher keeps its message and tries again.
    #[error("the queue is full")]
    Full,
    /// The commit failed; whether the message is on disk is not known. Acknowledge nothing; try again.
    #[error("the queue could not commit: {reason}")]
    Failed {
        /// What SQLite said.
        reason: String,
    },
    /// The queue has stopped.
    #[error("the queue has stopped")]
    Stopped,
}

/// A message on its way in.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The message. A reading's `seq` is given by the queue.
    pub message: Message,
    /// How a repeat of it is known. Stored in the message's transaction; a repeat is a duplicate.
    pub once: Option<Once>,
}

/// By what a message is known again when its sender repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Once {
    /// At QoS 2, until its PUBREL (DESIGN.md 6.9.2).
    Packet {
        /// The session it came in.
        session: SessionNumber,
        /// Its packet id there.
        packet_id: u16,
    },
    /// A command of a cloud at QoS 1, where a packet id says nothing about a repeat.
    Command {
        /// What it is made of, as a number.
        key: u64,
        /// It may be one that was taken before; one that cannot be is taken whatever is known.
        may_be_repeat: bool,
    },
}

/// Names a session in the table of received ids; a number is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionNumber(pub u64);

/// What became of a submission, after the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The name it was given.
    pub id: MessageId,
    /// A reading's number; 0 for other bodies.
    pub reading_seq: u64,
    /// Its fate.
    pub fate: Fate,
}

/// The fate of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// On disk and synced, for this many streams (0 when it was only retained).
    Stored {
        /// Its place.
        sequence: Sequence,
        /// How many streams want it.
        streams: usize,
    },
    /// No stream wants it and it is not retained: nothing was written. It goes to live subscribers all the same.
    Unwanted,
    /// The same packet id of the same session is stored already: answer again, fan out nothing.
    Duplicate,
    /// Dropped by a rule at the ceiling and declared as a gap. It goes to live subscribers all the same.
    Dropped(LossReason),
}

/// What is retained, as it was at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct RetainedFound {
    /// By topic.
    pub messages: Vec<Message>,
    /// That moment: what was retained later is not among them.
    pub as_of: Ordinal,
}

/// What one job finds of it.
#[derive(Debug)]
struct RetainedPage {
    rows: Vec<(Ordinal, Message)>,
    /// The topic after which to go on.
    next: Option<String>,
    as_of: Ordinal,
}

/// The way in. Clones share one channel, so what one task submits in order is stored in order.
#[derive(Debug, Clone)]
pub struct Inlet {
    jobs: mpsc::Sender<Job>,
    hall: sessions::Hall,
}

/// A submission under way.
#[derive(Debug)]
pub struct Pending {
    reply: oneshot::Receiver<Result<Appended, AppendError>>,
}

impl Pending {
    /// Waits for the commit.
    pub async fn outcome(self) -> Result<Appended, AppendError> {
        self.reply.await.unwrap_or(Err(AppendError::Stopped))
    }

    /// What came of it, if that is known by now; to be asked no more after it was told.
    pub fn outcome_now(&mut self) -> Option<Result<Appended, AppendError>> {
        match self.reply.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(AppendError::Stopped)),
        }
    }
}

impl Inlet {
    /// Hands a submission over and comes back as soon as it has its place in the order; waits while the channel is
    /// full.
    pub async fn begin_append(&self, submission: Submission) -> Result<Pending, AppendError> {
        let (to, reply) = oneshot::channel();
        self.jobs.send(Job::Append(submission, to)).await.map_err(|_| AppendError::Stopped)?;
        Ok(Pending { reply })
    }

    /// As `begin_append`, if the channel has room at the moment; `None`: it has to be handed over by that.
    pub fn begin_append_now(&self, submission: Submission) -> Option<Pending> {
        let (to, reply) = oneshot::channel();
        self.jobs.try_send(Job::Append(submission, to)).ok()?;
        Some(Pending { reply })
    }

    /// Hands a submission over and waits for the commit.
    pub async fn append(&self, submission: Submission) -> Result<Appended, AppendError> {
        self.begin_append(submission).await?.outcome().await
    }

    /// Forgets a received packet id, synced, before PUBCOMP is sent. False when it was not known.
    pub async fn release(&self, once: Once) -> Result<bool, AppendError> {
        ask(&self.jobs, |reply| Job::Release(once, reply)).await
    }

    /// A session number that was never used before (durable: numbers are taken in blocks), for a session that is not
    /// kept: its received ids live until `close_session` or the next start.
    pub async fn open_session(&self) -> Result<SessionNumber, AppendError> {
        ask(&self.jobs, Job::OpenSession).await
    }

    /// Forgets all received ids of a session.
    pub async fn close_session(&self, session: SessionNumber) -> Result<(), AppendError> {
        ask(&self.jobs, |reply| Job::CloseSession(session, reply)).await
    }

    /// Retained messages that `filter` matches, by topic, at most `count_max`, not those whose expiry has passed.
    pub async fn retained(&self, filter: &Filter, count_max: usize) -> Result<RetainedFound, AppendError> {
        let filter_asked = filter.clone();
        let page = ask(&self.jobs, |reply| Job::Retained { filter: filter_asked, after: None, reply }).await?;
        let as_of = page.as_of;
        let rows = self.retained_from(filter, page, count_max).await?;
        Ok(RetainedFound { messages: rows.into_iter().map(|(_, message)| message).collect(), as_of })
    }

    /// The same, whose first page is there. What has come since that page is left out: whoever subscribed before it hears
    /// of that as of any other message.
    async fn retained_from(
        &self,
        filter: &Filter,
        first: RetainedPage,
        count_max: usize,
    ) -> Result<Vec<(Ordinal, Message)>, AppendError> {
        let RetainedPage { rows: mut found, mut next, as_of } = first;
        // Page by page, so that a large table does not hold up those who append.
        while let Some(after) = next.take().filter(|_| found.len() < count_max) {
            let (filter, after) = (filter.clone(), Some(after));
            let page = ask(&self.jobs, |reply| Job::Retained { filter, after, reply }).await?;
            found.extend(page.rows.into_iter().filter(|(ordinal, _)| !ordinal.is_after(as_of)));
            next = page.next;
        }
        found.truncate(count_max);
        Ok(found)
    }

    /// From this commit on a stream's messages are matched by `spec`, after a reload of the configuration. A stream that
    /// was not there when the queue was opened gets no outlet and is left alone.
    pub async fn set_rules(&self, spec: StreamSpec) -> Result<(), AppendError> {
        ask(&self.jobs, |reply| Job::SetRules(spec, reply)).await
    }

    /// Opens a stream while the queue runs: a new one, one that is kept since it was configured no more, or one whose
    /// outlet has ended, whose place and rules go on. An outlet that it still has gets nothing more (Q5).
    pub async fn open_stream(&self, spec: StreamSpec) -> Result<Outlet, AppendError> {
        let (name, (waker, woken)) = (spec.name.clone(), watch::channel(0));
        ask(&self.jobs, |reply| Job::OpenStream(spec, waker, reply)).await?;
        Ok(Outlet::new(name, self.jobs.clone(), woken))
    }

    /// From this commit on a stream takes nothing more in. What waits in it is kept, ages, and is delivered when it is
    /// opened again. Its outlet must have ended.
    pub async fn close_stream(&self, name: &Arc<str>) -> Result<(), AppendError> {
        ask(&self.jobs, |reply| Job::CloseStream(name.clone(), reply)).await
    }

    /// The topics on which points are written, from this commit on.
    pub async fn set_writes(&self, topics: SetTopics) -> Result<(), AppendError> {
        ask(&self.jobs, |reply| Job::SetWrites(topics, reply)).await
    }

    /// What gives way at the ceiling, and what is too old, from now on.
    pub async fn set_bounds(&self, bounds: Bounds) -> Result<(), AppendError> {
        ask(&self.jobs, |reply| Job::SetBounds(bounds, reply)).await
    }

    /// Keeps a problem in the store and shows it in `status`.
    pub async fn note_problem(&self, text: String) -> Result<(), AppendError> {
        ask(&self.jobs, |reply| Job::NoteProblem(text, reply)).await
    }

    /// What is in the store at the moment. The answer also proves that the worker is alive.
    pub async fn stats(&self) -> Result<Stats, AppendError> {
        ask(&self.jobs, Job::Stats).await
    }

    /// Whether a session that is kept has subscribed to a topic, so that a message there waits for it.
    pub async fn is_subscribed(&self, topic: &Topic) -> Result<bool, AppendError> {
        let topic = topic.clone();
        ask(&self.jobs, |reply| Job::IsSubscribed(topic, reply)).await
    }

    /// What a person asks of the store; one job's share.
    pub async fn ask(&self, question: Question) -> Result<Answer, AppendError> {
        ask(&self.jobs, |reply| Job::Ask(question, reply)).await
    }

    /// Does what a person orders; one job's share. The answer comes after the commit.
    pub async fn order(&self, order: Order) -> Result<Answer, AppendError> {
        ask(&self.jobs, |reply| Job::Order(order, reply)).await
    }

    /// Comes back when the queue's thread has taken note, whatever is with its disk: it is alive then.
    pub async fn ping(&self) {
        // That the store fails, or that the thread was stopped in order, is an answer too.
        drop(ask(&self.jobs, Job::Ping).await);
    }

    /// Keeps in the store why the program is about to stop, for `status` after the next start.
    pub async fn declare_stop(&self, reason: String) -> Result<(), AppendError> {
        ask(&self.jobs, |reply| Job::DeclareStop(reason, reply)).await
    }

    /// Asks the worker to commit what waits, checkpoint and close; returns when the files are closed.
    pub async fn stop(&self) {
        let (to, reply) = oneshot::channel();
        if self.jobs.send(Job::Stop(to)).await.is_ok() {
            // An error says that the worker is gone, which is what was asked for.
            drop(reply.await);
        }
    }
}

async fn ask<T>(jobs: &mpsc::Sender<Job>, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, AppendError> {
    let (to, reply) = oneshot::channel();
    jobs.send(job(to)).await.map_err(|_| AppendError::Stopped)?;
    reply.await.unwrap_or(Err(AppendError::Stopped))
}

/// What `Inlet::stats` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// By name, also those that are not configured any more.
    pub streams: BTreeMap<Arc<str>, StreamStats>,
    /// Messages that some stream wants.
    pub messages: u64,
    /// Bytes of pages in use.
    pub bytes: u64,
    /// Messages that were delivered and are kept.
    pub kept: u64,
    /// The soft ceiling in force.
    pub bytes_max: u64,
    /// The newest place that was given.
    pub sequence_last: Sequence,
    /// When the oldest waiting message entered, in milliseconds since this boot.
    pub oldest_mono_ms: Option<u64>,
    /// Retained messages.
    pub retained: u64,
    /// Dead letters.
    pub dead_letters: u64,
}

/// One stream in `Stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamStats {
    /// An uplink of its name is configured; else it is kept, and ages.
    pub is_active: bool,
    /// Messages that it has to deliver, in flight included.
    pub waiting: u64,
    /// Of these, in flight at QoS 2.
    pub in_flight: u64,
}

/// The only consumer of one stream.
#[derive(Debug)]
pub struct Outlet {
    name: Arc<str>,
    jobs: mpsc::Sender<Job>,
    /// Moves when something new waits.
    woken: watch::Receiver<u64>,
    /// The last sequence that was looked at. It is kept here and moves when an answer is taken, so that an answer that
    /// nobody took comes again.
    place: u64,
    /// The same of the live lane: what is older is the backlog.
    head: u64,
    /// The same of what is sent again, and the round of orders that it belongs to.
    again: u64,
    again_round: u64,
    /// What was asked for and has not come: a caller that gave up and comes again with the same wish gets it.
    asked: Option<Asked>,
}

#[derive(Debug)]
struct Asked {
    after: u64,
    count_max: usize,
    bytes_max: usize,
    /// How often the stream had been stirred when it was asked: what came since has to wake whoever waits.
    stirred: u64,
    reply: oneshot::Receiver<Result<Fetched, AppendError>>,
}

/// Changes under way.
#[derive(Debug)]
pub struct Committing {
    reply: oneshot::Receiver<Result<(), AppendError>>,
}

impl Committing {
    /// Waits for the commit. Cancel safe.
    pub async fn outcome(&mut self) -> Result<(), AppendError> {
        (&mut self.reply).await.unwrap_or(Err(AppendError::Stopped))
    }
}

/// One of the two ways through a stream that is read live first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// From the oldest message on; without a live lane, to the newest.
    Backlog,
    /// What came after `Outlet::mark_live`.
    Live,
}

/// What is asked of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// At most so many messages.
    pub count: usize,
    /// At most so many bytes, but at least one message.
    pub bytes: usize,
    /// Answer only when there are messages.
    pub waits: bool,
}

/// How a message is written at its way out; recorded at admission so that a resend has the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The topic at the cloud.
    pub topic: Topic,
    /// How readings are written.
    pub payload: Payload,
    /// How a reading's time is written (DESIGN.md 6.4).
    pub timing: Timing,
}

/// With which others a reading may travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Those of this rule, by its place in the configuration.
    pub rule: usize,
    /// So many.
    pub limits: BatchLimits,
}

/// A message that a stream has to deliver.
#[derive(Debug, Clone, PartialEq)]
pub struct Queued {
    /// Its place; the handle for settling it.
    pub sequence: Sequence,
    /// Its name.
    pub id: MessageId,
    /// The message.
    pub message: Message,
    /// At which QoS: the rule's, else the publisher's.
    pub qos: Qos,
    /// Topic at the cloud and format.
    pub encoding: Encoding,
    /// The rule wants one message of a topic in flight.
    pub strict_order: bool,
    /// `None` = it travels alone.
    pub batching: Option<Batching>,
    /// When its own expiry passes, in milliseconds since this boot: no step of the wall clock moves it.
    pub expires_mono_ms: Option<u64>,
    /// How long ago it entered; `None` = nobody knows, since the board was off and its clock cannot tell for how long. Only
    /// for `WRITES`.
    pub age_ms: Option<u64>,
    /// It was delivered before, and a person has ordered it to be sent once more.
    pub is_again: bool,
}

/// A change of an uplink's durable state. One call of `Outlet::commit` is one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// QoS 2: this packet id is about to carry these rows (one, or a batch) for the first time. Before PUBLISH.
    Admit {
        /// Not in use by another row.
        packet_id: u16,
        /// The rows, in order.
        rows: Vec<Sequence>,
        /// Order of admission, for resends.
        order: u64,
        /// As `Queued` had it.
        encoding: Encoding,
    },
    /// QoS 2: PUBREC came. Before PUBREL.
    Release {
        /// Of the PUBREC.
        packet_id: u16,
    },
    /// QoS 2: the packet id is free again, its rows are settled by other changes or wait again.
    Forget {
        /// Of the PUBCOMP, or of a refused message.
        packet_id: u16,
    },
    /// The cloud has it, or has refused it for good.
    Settle {
        /// Which row.
        sequence: Sequence,
        /// How it ended.
        verdict: Verdict,
    },
    /// Which cloud session the in-flight rows belong to: hash of host, port, client id and user.
    SessionKey(u64),
    /// The cloud had no session: received ids of the old one are void. `Outlet::restore` gives the new number.
    NewSession,
    /// Something is written to the field on this topic: to be known for a minute.
    Pace(Topic),
}

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The cloud has it.
    Delivered,
    /// The cloud refused it for good: dead letter, counted, kept.
    Rejected {
        /// For a person: the reason code and text.
        reason: String,
    },
    /// Given up for another reason; counted and declared.
    Lost(LossReason),
}

/// Durable state of an uplink's session, as it was when the last transaction returned.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// `None` before the first connection.
    pub session_key: Option<u64>,
    /// For `Once` of what comes from the cloud.
    pub session: SessionNumber,
    /// QoS 2 messages in flight, by order of admission.
    pub in_flight: Vec<InFlight>,
    /// Of `WRITES`: what was written within the last minute and how long ago at most, oldest first.
    pub paced: Vec<(Topic, Duration)>,
}

/// One QoS 2 packet id in flight.
#[derive(Debug, Clone, PartialEq)]
pub struct InFlight {
    /// The id at the cloud.
    pub packet_id: u16,
    /// PUBREC has come: PUBREL is next.
    pub released: bool,
    /// Order of admission.
    pub order: u64,
    /// The messages, with the encoding that was recorded.
    pub rows: Vec<Queued>,
}

impl Outlet {
    fn new(name: Arc<str>, jobs: mpsc::Sender<Job>, woken: watch::Receiver<u64>) -> Outlet {
        Outlet { name, jobs, woken, place: 0, head: 0, again: 0, again_round: 0, asked: None }
    }

    /// The stream's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The session's durable state. Also puts the outlet's place back to the oldest row that is neither settled nor
    /// in flight at QoS 2: what was taken by `next` and is not settled comes again.
    pub async fn restore(&mut self) -> Result<Restored, AppendError> {
        self.rewind();
        ask(&self.jobs, |reply| Job::Restore(self.name.clone(), reply)).await
    }

    /// Puts the outlet's place back to the oldest row: what was taken by `next` and is not settled comes again.
    pub fn rewind(&mut self) {
        (self.place, self.again) = (0, 0);
        self.asked = None;
    }

    /// The next messages in order, at least one: waits until there is one. Open gap records of the stream become
    /// messages of it here. Cancel safe: what was not returned comes with the next call.
    pub async fn next(&mut self, count_max: usize, bytes_max: usize) -> Result<Vec<Queued>, AppendError> {
        loop {
            let wanted = Wanted { count: count_max, bytes: bytes_max, waits: true };
            let (fetched, stirred) = self.fetch(self.place, wanted).await?;
            self.place = fetched.place;
            if !fetched.rows.is_empty() {
                return Ok(fetched.rows);
            }
            // Behind all that was never delivered.
            let again = self.fetch_again(fetched.again, wanted).await?;
            if !again.is_empty() {
                return Ok(again);
            }
            self.wait(stirred, fetched.again_ms).await?;
        }
    }

    /// What comes in from now on is the live lane's, all else is backlog.
    pub async fn mark_live(&mut self) -> Result<(), AppendError> {
        let (fetched, _) = self.ask(self.place, 1, 1).await?;
        self.head = self.head.max(fetched.newest);
        Ok(())
    }

    /// The next messages of either lane, those of the live one first. Cancel safe like `next`.
    pub async fn next_of(
        &mut self,
        backlog: Option<Wanted>,
        live: Option<Wanted>,
    ) -> Result<(Lane, Vec<Queued>), AppendError> {
        loop {
            let (mut again_ms, mut again) = (None, None);
            // Of the first question: what came after it may be the live lane's.
            let mut first_stirred = None;
            if let Some(wanted) = live {
                let (fetched, stirred) = self.fetch(self.head, wanted).await?;
                first_stirred = Some(stirred);
                (again_ms, again) = (fetched.again_ms, fetched.again);
                // With no backlog before it both are one.
                if self.place >= self.head {
                    self.place = fetched.place;
                }
                self.head = fetched.place;
                if !fetched.rows.is_empty() || !wanted.waits {
                    return Ok((Lane::Live, fetched.rows));
                }
            }
            if let Some(wanted) = backlog {
                let mut rows = Vec::new();
                if self.place < self.head {
                    let (fetched, stirred) = self.fetch(self.place, wanted).await?;
                    first_stirred.get_or_insert(stirred);
                    again = again.or(fetched.again);
                    self.place = fetched.place.min(self.head);
                    rows = fetched.rows;
                    rows.retain(|row| row.sequence.0 <= self.head);
                }
                if rows.is_empty() && wanted.waits {
                    if first_stirred.is_none() {
                        // Only to hear whether there is something to be sent again.
                        let (fetched, stirred) = self.ask(self.place, 1, 1).await?;
                        (first_stirred, again) = (Some(stirred), fetched.again);
                    }
                    rows = self.fetch_again(again, wanted).await?;
                }
                if !rows.is_empty() || !wanted.waits {
                    return Ok((Lane::Backlog, rows));
                }
            }
            let stirred = first_stirred.unwrap_or_else(|| *self.woken.borrow());
            self.wait(stirred, again_ms).await?;
        }
    }

    /// As `next`, but waits for nothing: without any rows when the queue holds none.
    pub async fn next_now(&mut self, count_max: usize, bytes_max: usize) -> Result<Vec<Queued>, AppendError> {
        let wanted = Wanted { count: count_max, bytes: bytes_max, waits: false };
        let (fetched, _) = self.fetch(self.place, wanted).await?;
        self.place = fetched.place;
        Ok(fetched.rows)
    }

    /// Has the answer to the following `next` of the same wish made while the last one is worked on.
    pub fn read_ahead(&mut self, count_max: usize, bytes_max: usize) {
        if self.asked.is_none() {
            let (job, asked) = self.question(self.place, count_max, bytes_max);
            // Without room in the channel `next` asks.
            self.asked = self.jobs.try_send(job).is_ok().then_some(asked);
        }
    }

    /// What one question after another finds, and how often the stream had been stirred at the last one.
    async fn fetch(&mut self, mut after: u64, wanted: Wanted) -> Result<(Fetched, u64), AppendError> {
        loop {
            let (fetched, stirred) = self.ask(after, wanted.count, wanted.bytes).await?;
            after = fetched.place;
            if !fetched.is_partial {
                return Ok((fetched, stirred));
            }
        }
    }

    /// What is to be sent again; `round` says that there is something, and of which order the last of it is.
    async fn fetch_again(&mut self, round: Option<u64>, wanted: Wanted) -> Result<Vec<Queued>, AppendError> {
        let Some(round) = round else { return Ok(Vec::new()) };
        if std::mem::replace(&mut self.again_round, round) != round {
            // A new order may be of older ones. Who has some of them already leaves those out.
            self.again = 0;
        }
        loop {
            let (to, reply) = oneshot::channel();
            let Wanted { count: count_max, bytes: bytes_max, .. } = wanted;
            let (stream, after) = (self.name.clone(), self.again);
            let job = Job::Next { stream, after, count_max, bytes_max, is_again: true, reply: to };
            self.jobs.send(job).await.map_err(|_| AppendError::Stopped)?;
            let fetched = reply.await.unwrap_or(Err(AppendError::Stopped))?;
            self.again = fetched.place;
            if !fetched.is_partial {
                return Ok(fetched.rows);
            }
        }
    }

    /// Asks, or waits for what was asked for before.
    async fn ask(&mut self, after: u64, count_max: usize, bytes_max: usize) -> Result<(Fetched, u64), AppendError> {
        let wish = (after, count_max, bytes_max);
        if self.asked.as_ref().is_none_or(|asked| (asked.after, asked.count_max, asked.bytes_max) != wish) {
            let (job, asked) = self.question(after, count_max, bytes_max);
            self.jobs.send(job).await.map_err(|_| AppendError::Stopped)?;
            self.asked = Some(asked);
        }
        let Some(asked) = &mut self.asked else { return Err(AppendError::Stopped) };
        let (answer, stirred) = ((&mut asked.reply).await, asked.stirred);
        self.asked = None;
        Ok((answer.unwrap_or(Err(AppendError::Stopped))?, stirred))
    }

    fn question(&self, after: u64, count_max: usize, bytes_max: usize) -> (Job, Asked) {
        // Before asking: what is stored after the answer was made must wake us.
        let stirred = *self.woken.borrow();
        let (to, reply) = oneshot::channel();
        let stream = self.name.clone();
        let job = Job::Next { stream, after, count_max, bytes_max, is_again: false, reply: to };
        (job, Asked { after, count_max, bytes_max, stirred, reply })
    }

    /// Says whether the uplink is connected and takes messages at QoS 1: only then may messages be held in memory for
    /// it. In order with the other calls.
    pub async fn set_live(&mut self, is_live: bool) -> Result<(), AppendError> {
        self.jobs.send(Job::Live(self.name.clone(), is_live)).await.map_err(|_| AppendError::Stopped)
    }

    /// Until something has come since the stream had been stirred so often, or a gap may be told.
    async fn wait(&mut self, stirred: u64, again_ms: Option<u64>) -> Result<(), AppendError> {
        let moved = self.woken.wait_for(|count| *count != stirred);
        let moved = match again_ms {
            None => moved.await.map(drop),
            Some(pause_ms) => match tokio::time::timeout(Duration::from_millis(pause_ms), moved).await {
                Ok(moved) => moved.map(drop),
                Err(_elapsed) => return Ok(()),
            },
        };
        moved.map_err(|_| AppendError::Stopped)
    }

    /// Makes `changes` durable, all or none.
    pub async fn commit(&mut self, changes: Vec<Change>) -> Result<(), AppendError> {
        self.begin_commit(changes).await?.outcome().await
    }

    /// Hands in messages of the gateway's own, and `changes` that hold only if the first of these is taken: both are durable in
    /// one transaction, or neither is.
    pub async fn begin_append_with(
        &self,
        changes: Vec<Change>,
        messages: Vec<Message>,
    ) -> Result<Vec<Pending>, AppendError> {
        let (submissions, pending) = messages
            .into_iter()
            .map(|message| {
                let (to, reply) = oneshot::channel();
                ((Submission { message, once: None }, to), Pending { reply })
            })
            .unzip();
        let job = Job::AppendWith { stream: self.name.clone(), changes, submissions };
        self.jobs.send(job).await.map_err(|_| AppendError::Stopped)?;
        Ok(pending)
    }

    /// Hands `changes` over and comes back as soon as they have their place in the order: what is asked for from then
    /// on follows them. Fetching goes on meanwhile.
    pub async fn begin_commit(&self, changes: Vec<Change>) -> Result<Committing, AppendError> {
        let (to, reply) = oneshot::channel();
        self.jobs.send(Job::Commit(self.name.clone(), changes, to)).await.map_err(|_| AppendError::Stopped)?;
        Ok(Committing { reply })
    }
}

/// A queue that is open, before its thread runs.
#[derive(Debug)]
pub struct Opened {
    /// The way in.
    pub inlet: Inlet,
    /// One for each stream that was asked for, by name.
    pub outlets: BTreeMap<Arc<str>, Outlet>,
    /// To be run on a thread of its own.
    pub worker: Worker,
}

/// Why the worker ended before it was told to: there is no such reason. A store that fails is opened again for as long
/// as that takes.
#[derive(Debug, Error)]
pub enum WorkerError {}

/// Takes the state directory, opens the store in it or makes one; a damaged one is moved aside and said loudly. Where
/// the directory can be had and the disk fails (full, read-only, I/O error), the queue opens all the same: the worker
/// goes on trying, and whoever asks meanwhile hears `AppendError::Failed`.
pub fn open(settings: QueueSettings) -> Result<Opened, OpenError> {
    open_after(settings, Past::default())
}

/// As `open`, of a store that is known to be damaged where a start does not look: it is moved aside and salvaged.
pub fn open_as_damaged(settings: QueueSettings, reason: String) -> Result<Opened, OpenError> {
    open_after(settings, Past { damage: Some(reason), ..Past::default() })
}

fn open_after(settings: QueueSettings, mut past: Past) -> Result<Opened, OpenError> {
    let lock = opening::take_dir(&settings.dir)?;
    let hall = past.hall.clone();
    let books = opening::open_books(&settings, &mut past).map_err(|error| {
        let reason = health::chain(&error);
        Away { past, taken: BTreeMap::new(), reason }
    });
    let (to, jobs) = mpsc::channel(JOBS_MAX);
    let mut outlets = BTreeMap::new();
    let mut wakers = BTreeMap::new();
    for StreamSpec { name, .. } in &settings.streams {
        let (waker, woken) = watch::channel(0);
        wakers.insert(name.clone(), waker);
        outlets.insert(name.clone(), Outlet::new(name.clone(), to.clone(), woken));
    }
    let worker = Worker::new(jobs, settings, books, wakers, lock);
    Ok(Opened { inlet: Inlet { jobs: to, hall }, outlets, worker })
}
