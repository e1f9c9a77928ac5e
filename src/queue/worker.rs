//! The one thread: takes what waits, makes one transaction of it, commits, then replies.
//!
//! Promises: no reply before the commit that it stands for; when a commit fails, everybody in it hears so, and the
//! store is opened again from the disk before anything else is done. The group is what arrived while the last sync
//! ran: no timer makes anybody wait. Reads take their turn after each commit, and none is longer than one job.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use log::{error, info, warn};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::books::Books;
use super::inspect::{self, Question};
use super::ledger::{Page, PageAsk};
use super::opening::{self, Past};
use super::outward::Fetched;
use super::sessions::{Later, SessionJob};
use super::store::{is_damage, is_unreadable};
use super::upkeep::Order;
use super::{
    AppendError, Appended, Bounds, Change, Once, OpenError, QueueSettings, Restored, RetainedPage, SessionNumber,
    SetTopics, Stats, StreamSpec, Submission, WorkerError,
};
use crate::health::{Alarm, chain};
use crate::message::{Body, Filter, Topic};

/// Jobs that wait at most; then senders wait.
pub(super) const JOBS_MAX: usize = 2048;
/// What one transaction takes in at most.
const GROUP_JOBS_MAX: usize = 1024;
const GROUP_BYTES_MAX: usize = 256 * 1024;
/// While there is always something to do, one job's share of old work is done every so many turns.
const CHORES_EVERY: u64 = 8;
/// What is too old is looked for at most so often.
const EXPIRE_EVERY_MS: u64 = 1000;
/// The store is opened again after a failure with pauses that grow from the one to the other.
const REOPEN_PAUSE_MIN: Duration = Duration::from_millis(50);
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(2);
/// While the store is away, so often somebody who asks is told.
const AWAY_LOOK: Duration = Duration::from_millis(10);
/// While the store is away or fails again and again, so often it is said.
const AWAY_LOG_MS: u64 = 60_000;
/// Nobody waits longer without a look at the clock.
const REST_MS_MAX: u64 = 3_600_000;
/// A store whose pages cannot be read so many times, over so long, is damaged. Less may be a bus that comes back.
const UNREADABLE_MAX: u32 = 5;
const UNREADABLE_MS: u64 = 30_000;

/// So many failures in a row are an alarm.
const FAILURES_MAX: u64 = 3;

/// An answer's way back.
pub(super) type Reply<T> = oneshot::Sender<Result<T, AppendError>>;

/// What the ends of the queue ask for.
#[derive(Debug)]
pub(super) enum Job {
    Append(Submission, Reply<Appended>),
    Release(Once, Reply<bool>),
    OpenSession(Reply<SessionNumber>),
    CloseSession(SessionNumber, Reply<()>),
    SetRules(StreamSpec, Reply<()>),
    OpenStream(StreamSpec, watch::Sender<u64>, Reply<()>),
    CloseStream(Arc<str>, Reply<()>),
    SetWrites(SetTopics, Reply<()>),
    SetBounds(Bounds, Reply<()>),
    NoteProblem(String, Reply<()>),
    DeclareStop(String, Reply<()>),
    Commit(Arc<str>, Vec<Change>, Reply<()>),
    AppendWith {
        stream: Arc<str>,
        changes: Vec<Change>,
        submissions: Vec<(Submission, Reply<Appended>)>,
    },
    Live(Arc<str>, bool),
    Next {
        stream: Arc<str>,
        after: u64,
        count_max: usize,
        bytes_max: usize,
        is_again: bool,
        reply: Reply<Fetched>,
    },
    Restore(Arc<str>, Reply<Restored>),
    Retained {
        filter: Filter,
        after: Option<String>,
        reply: Reply<RetainedPage>,
    },
    Stats(Reply<Stats>),
    /// Whether a session that is kept has subscribed to a topic.
    IsSubscribed(Topic, Reply<bool>),
    Ledger(PageAsk, Reply<Page>),
    Ask(Question, Reply<inspect::Answer>),
    Order(Order, Reply<inspect::Answer>),
    Tick(Reply<()>),
    Session(SessionJob),
    Ping(Reply<()>),
    Stop(oneshot::Sender<()>),
}

impl Job {
    /// What it adds to a transaction.
    fn bytes(&self) -> usize {
        match self {
            Job::Append(submission, _) => submission.bytes(),
            Job::AppendWith { submissions, .. } => submissions.iter().map(|(submission, _)| submission.bytes()).sum(),
            Job::Session(job) => job.bytes(),
            _ => 0,
        }
    }
}

impl Submission {
    /// What it adds to a transaction.
    fn bytes(&self) -> usize {
        match &self.message.body {
            Body::Bytes(bytes) => bytes.len() + self.message.topic.as_str().len(),
            Body::Reading(_) => 100,
        }
    }
}

/// What a write came to, held back until the commit.
#[derive(Debug)]
enum Answer {
    Append(Reply<Appended>, Result<Appended, AppendError>),
    Release(Reply<bool>, bool),
    Session(Reply<SessionNumber>, SessionNumber),
    Done(Reply<()>),
    Later(Later),
}

/// The caller may have given up: then nobody wants the answer.
fn send<T>(reply: Reply<T>, answer: Result<T, AppendError>) {
    drop(reply.send(answer));
}

impl Answer {
    fn give(self, failure: Option<&AppendError>) {
        match (self, failure.cloned()) {
            (Answer::Later(later), failure) => later.give(failure.as_ref()),
            (Answer::Append(reply, answer), None) => send(reply, answer),
            (Answer::Append(reply, _), Some(failure)) => send(reply, Err(failure)),
            (Answer::Release(reply, answer), failure) => send(reply, failure.map_or(Ok(answer), Err)),
            (Answer::Session(reply, answer), failure) => send(reply, failure.map_or(Ok(answer), Err)),
            (Answer::Done(reply), failure) => send(reply, failure.map_or(Ok(()), Err)),
        }
    }
}

/// Owns the connection and the state directory's lock.
#[derive(Debug)]
pub struct Worker {
    /// `Err`: the disk failed, so that the store is still to be opened.
    books: Result<Books, Away>,
    thread: Thread,
}

/// A store that cannot be had at the moment.
#[derive(Debug)]
pub(super) struct Away {
    pub past: Past,
    /// What was handed out, by stream: it may be under way.
    pub taken: BTreeMap<Arc<str>, u64>,
    /// Why.
    pub reason: String,
}

/// What outlives a store that is opened again.
#[derive(Debug)]
struct Thread {
    jobs: mpsc::Receiver<Job>,
    settings: QueueSettings,
    wakers: BTreeMap<Arc<str>, watch::Sender<u64>>,
    lock: File,
    /// Reads whose turn has not come.
    reads: VecDeque<Job>,
    /// Set when the last job was taken; with whom to tell, if somebody asked.
    stopping: Option<Option<oneshot::Sender<()>>>,
    turns: u64,
    expired_ms: Option<u64>,
    trouble: Trouble,
}

/// How it is with the failures of late. A disk that is full fails each commit and lets the store be opened in between.
#[derive(Debug)]
struct Trouble {
    failed_ms: Option<u64>,
    logged_ms: Option<u64>,
    /// Before the next attempt.
    pause: Duration,
    unreadable: Option<Unreadable>,
    /// A problem that is to be kept as soon as there is a store.
    to_keep: Option<String>,
}

/// Reads that failed, without a minute's pause between two of them.
#[derive(Debug, Clone, Copy)]
struct Unreadable {
    first_ms: u64,
    last_ms: u64,
    count: u32,
}

impl Trouble {
    /// Notes a failure; says whether it is to be logged.
    fn note(&mut self, now_ms: u64) -> bool {
        let is_old = |since: Option<u64>| since.is_none_or(|since| now_ms.saturating_sub(since) >= AWAY_LOG_MS);
        if is_old(self.failed_ms) {
            self.pause = Duration::ZERO;
        }
        self.failed_ms = Some(now_ms);
        let is_due = is_old(self.logged_ms);
        if is_due {
            self.logged_ms = Some(now_ms);
        }
        is_due
    }

    /// Notes an error that may be an unreadable page; says whether it has to be given up. Opening the store again does
    /// not read that page, so nothing else would ever end it: the same row fails the same read for ever.
    fn is_lost(&mut self, error: &rusqlite::Error, now_ms: u64) -> bool {
        if !is_unreadable(error) {
            return false;
        }
        let known = self.unreadable.filter(|known| now_ms.saturating_sub(known.last_ms) < AWAY_LOG_MS);
        let Unreadable { first_ms, count, .. } =
            known.unwrap_or(Unreadable { first_ms: now_ms, last_ms: now_ms, count: 0 });
        let noted = Unreadable { first_ms, last_ms: now_ms, count: count.saturating_add(1) };
        let is_lost = noted.count >= UNREADABLE_MAX && now_ms.saturating_sub(first_ms) >= UNREADABLE_MS;
        self.unreadable = (!is_lost).then_some(noted);
        is_lost
    }

    /// The pause before the next attempt; the one after it is longer.
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).clamp(REOPEN_PAUSE_MIN, REOPEN_PAUSE_MAX);
        pause
    }
}

/// It is time for something else.
struct Overdue;

/// Wakes the worker's thread.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Worker {
    pub(super) fn new(
        jobs: mpsc::Receiver<Job>,
        settings: QueueSettings,
        books: Result<Books, Away>,
        wakers: BTreeMap<Arc<str>, watch::Sender<u64>>,
        lock: File,
    ) -> Worker {
        let reads = VecDeque::new();
        let trouble =
            Trouble { failed_ms: None, logged_ms: None, pause: Duration::ZERO, unreadable: None, to_keep: None };
        let (stopping, expired_ms) = (None, None);
        let thread = Thread { jobs, settings, wakers, lock, reads, stopping, turns: 0, expired_ms, trouble };
        Worker { books, thread }
    }

    /// Works until `Inlet::stop`, or until all ends are dropped, whatever the disk does meanwhile. Blocks: it has a
    /// thread of its own.
    pub fn run(self) -> Result<(), WorkerError> {
        let Worker { books, mut thread } = self;
        let mut books = match books {
            Ok(books) => Some(books),
            Err(away) => thread.reopen(away),
        };
        while let Some(mut open) = books.take() {
            if thread.stopping.is_some() && thread.reads.is_empty() {
                if let Err(error) = open.close() {
                    // All that was acknowledged is in the WAL: the next start finds it.
                    warn!(error:%; "The store was not closed cleanly");
                }
                break;
            }
            books = match thread.turn(&mut open) {
                Ok(()) => Some(open),
                Err(error) => thread.recover(open, &error),
            };
            if let Some(open) = &mut books {
                thread.wake(open);
            }
        }
        let Thread { lock, jobs, stopping, .. } = thread;
        drop(lock);
        // Whoever still waits hears that there is nobody: the ways back of their answers go with the channel.
        drop(jobs);
        if let Some(Some(reply)) = stopping {
            // Who asked may be gone.
            reply.send(()).unwrap_or_default();
        }
        Ok(())
    }
}

impl Thread {
    /// One transaction of what waits, then the reads that came with it. An error has been told to those it concerns;
    /// the books are void.
    fn turn(&mut self, books: &mut Books) -> rusqlite::Result<()> {
        #[cfg(feature = "test-hooks")]
        hang_if_told(&self.settings.dir);
        if let Some(error) = books.fault.take() {
            return Err(error);
        }
        while let Some(job) = self.reads.pop_front() {
            read(books, job)?;
        }
        if self.stopping.is_some() {
            return Ok(());
        }
        if let Some(due_ms) = books.held.due_ms() {
            let now_ms = self.settings.clock.now().mono_ms;
            if due_ms <= now_ms {
                books.write_due(now_ms)?;
                books.commit()?;
            }
        }
        self.turns += 1;
        if self.turns.is_multiple_of(CHORES_EVERY) {
            // What nobody waits for must not starve while there is always a job.
            self.do_chores(books)?;
        }
        let first = match self.jobs.try_recv() {
            Ok(job) => Some(job),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
            Err(mpsc::error::TryRecvError::Empty) => {
                if self.do_chores(books)? {
                    return Ok(());
                }
                self.wake(books);
                let now_ms = self.settings.clock.now().mono_ms;
                if books.scrub_due_ms(now_ms) == 0 {
                    books.scrub_step(now_ms)?;
                    if books.is_changed() {
                        books.commit()?;
                    }
                    return Ok(());
                }
                match self.receive(self.rest(books, now_ms)) {
                    Ok(job) => job,
                    Err(Overdue) => return Ok(()),
                }
            }
        };
        let Some(first) = first else {
            self.stopping = Some(None);
            return Ok(());
        };
        let writes = self.gather(first);
        if !writes.is_empty() {
            // Of what was only looked at nothing is written: that is no sign of a disk that works.
            let is_proof = writes.iter().any(|job| !matches!(job, Job::Session(job) if job.is_fetch()));
            write(books, writes)?;
            if is_proof {
                self.note_success();
            }
        }
        Ok(())
    }

    /// How long nothing is to be done if nobody asks.
    fn rest(&self, books: &Books, now_ms: u64) -> Duration {
        let scrub_ms = books.scrub_due_ms(now_ms);
        let has_dates = self.settings.age_max.is_some()
            || books.ceilings.is_clamped
            || books.kept.count() > 0
            || books.is_salvage_due()
            || books.sessions.is_any_away();
        let is_troubled = self.settings.health.is_raised(Alarm::StoreFails);
        let most = if has_dates || is_troubled { EXPIRE_EVERY_MS } else { u64::MAX };
        let held_ms = books.held.due_ms().map_or(u64::MAX, |due_ms| due_ms.saturating_sub(now_ms));
        Duration::from_millis(scrub_ms.min(most).min(held_ms).clamp(1, REST_MS_MAX))
    }

    /// Waits for a job, but not longer than `pause`. `None`: all ends are dropped.
    fn receive(&mut self, pause: Duration) -> Result<Option<Job>, Overdue> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let until = Instant::now() + pause;
        loop {
            if let Poll::Ready(job) = self.jobs.poll_recv(&mut context) {
                return Ok(job);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Overdue);
            }
            std::thread::park_timeout(left);
        }
    }

    /// What waits, as much as one transaction takes; reads are put aside until after it.
    fn gather(&mut self, first: Job) -> Vec<Job> {
        let mut writes = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(job) = next.take() {
            bytes += job.bytes();
            match job {
                Job::Stop(reply) => {
                    self.stopping = Some(Some(reply));
                    break;
                }
                Job::OpenStream(spec, waker, reply) => {
                    // Before anything can wait for it. Whoever had the stream before hears that it is over.
                    self.wakers.insert(spec.name.clone(), waker.clone());
                    writes.push(Job::OpenStream(spec, waker, reply));
                }
                Job::SetBounds(bounds, reply) => {
                    (self.settings.age_max, self.settings.keep) = (bounds.age_max, bounds.keep);
                    self.settings.when_full = bounds.when_full;
                    // What is too old by the new one is looked for at once.
                    self.expired_ms = None;
                    writes.push(Job::SetBounds(bounds, reply));
                }
                // Not written: an idle disk is left alone.
                Job::Ping(reply) => send(reply, Ok(())),
                Job::Next { .. }
                | Job::Restore(..)
                | Job::Retained { .. }
                | Job::Stats(_)
                | Job::IsSubscribed(..)
                | Job::Ledger(..)
                | Job::Ask(..) => self.reads.push_back(job),
                _ => writes.push(job),
            }
            if writes.len() + self.reads.len() < GROUP_JOBS_MAX && bytes < GROUP_BYTES_MAX {
                next = self.jobs.try_recv().ok();
            }
        }
        writes
    }

    /// One job's share of what nobody waits for. Says whether there is more.
    fn do_chores(&mut self, books: &mut Books) -> rusqlite::Result<bool> {
        let now_ms = self.settings.clock.now().mono_ms;
        let is_expiry_due = self.expired_ms.is_none_or(|last| now_ms.saturating_sub(last) >= EXPIRE_EVERY_MS);
        let is_salvage_due = books.is_salvage_due() && (is_expiry_due || !books.is_salvage_held());
        let is_any_ended = books.sessions.is_any_ended();
        if books.sweep.is_none() && !is_expiry_due && !is_salvage_due && !is_any_ended && !books.is_removal_due() {
            return Ok(false);
        }
        books.sweep_step()?;
        let is_salvaging = is_salvage_due && books.salvage_step()?;
        if is_expiry_due {
            books.lift_ceiling()?;
            books.expire_sessions()?;
            books.expire_lanes()?;
            let failed_ms = self.trouble.failed_ms.unwrap_or(0);
            if now_ms.saturating_sub(failed_ms) >= AWAY_LOG_MS {
                // Nobody has asked for a minute, and nothing has failed.
                self.note_success();
            }
        }
        let mut is_more = is_expiry_due && books.expire()?;
        is_more |= is_expiry_due && books.expire_kept()?;
        let is_clearing = books.clear_ended()?;
        if books.is_removal_due() {
            books.remove_bodies()?;
        }
        if is_expiry_due {
            books.clear_if_empty(now_ms)?;
        }
        if books.store.is_writing() {
            books.commit()?;
        }
        if is_expiry_due && !is_more {
            self.expired_ms = Some(now_ms);
        }
        Ok(is_more || is_salvaging || is_clearing || books.sweep.is_some() || books.is_removal_due())
    }

    /// Tells the outlets for whom something new waits.
    fn wake(&mut self, books: &mut Books) {
        books.sessions.wake();
        for stream in books.streams.iter_mut().filter(|stream| stream.is_stirred) {
            stream.is_stirred = false;
            if let Some(waker) = self.wakers.get(&stream.name) {
                waker.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }

    /// After a failed transaction nothing in memory is believed: a failed sync may have dropped pages that SQLite
    /// thinks are written. The store is closed and read again; a damaged one is moved aside. `None`: stopped meanwhile.
    fn recover(&mut self, books: Books, error: &rusqlite::Error) -> Option<Books> {
        let waiting = Some(books.waiting());
        let settled = books.identity.settled;
        let (devices, losses) = (books.device_numbers(), books.losses.clone());
        let taken = books.streams.iter().map(|stream| (stream.name.clone(), stream.taken_to)).collect();
        let is_lost = self.trouble.is_lost(error, self.settings.clock.now().mono_ms);
        let damage = (is_lost || is_damage(error)).then(|| error.to_string());
        let Books { mut identity, store, settings, streams, held, sessions, .. } = books;
        let held = held.failed(&AppendError::Failed { reason: error.to_string() });
        identity.sessions = streams.into_iter().map(|stream| (stream.name, stream.session)).collect();
        drop(store);
        // Rules, streams and points may have come since the start.
        (self.settings.streams, self.settings.set_topics) = (settings.streams, settings.set_topics);
        let past = Past {
            identity: Some(identity),
            was_open: true,
            waiting,
            settled,
            devices,
            losses,
            damage,
            held: Some(held),
            hall: sessions.hall(),
            ..Past::default()
        };
        self.reopen(Away { past, taken, reason: error.to_string() })
    }

    /// Opens the store again, for as long as it takes: a disk that is full or read-only may be mended while we run, and
    /// ending would only make the supervisor start us again on the same disk. Whoever asks meanwhile is told at once
    /// that it failed, so that nothing is acknowledged. `None`: stopped meanwhile.
    fn reopen(&mut self, away: Away) -> Option<Books> {
        let Away { mut past, taken, mut reason } = away;
        let mut is_told = false;
        for attempt in 1_u64.. {
            let failures = self.settings.health.queue().failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
            if failures == FAILURES_MAX {
                self.raise_alarm(&reason);
            }
            if self.trouble.note(self.settings.clock.now().mono_ms) {
                is_told = true;
                error!(
                    error = reason.as_str(), help = help(&reason), attempt;
                    "The store fails; nothing is acknowledged until it is open again"
                );
            }
            let pause = self.trouble.next_pause();
            // At first it is tried at once: who has asked already may still get a better answer.
            if !pause.is_zero() && !self.refuse_for(pause, &reason) {
                warn!(error = reason.as_str(); "The queue was stopped while its store failed");
                return None;
            }
            match opening::open_books(&self.settings, &mut past) {
                Ok(mut books) => {
                    for stream in &mut books.streams {
                        stream.taken_to = taken.get(&stream.name).copied().unwrap_or(0);
                    }
                    if is_told {
                        info!(attempt; "The store is open again");
                    }
                    if let Some(text) = self.trouble.to_keep.take() {
                        // With the next commit. Where that fails, it is in `status` all the same.
                        books.add_problem(&text).unwrap_or_default();
                    }
                    return Some(books);
                }
                Err(error) => {
                    reason = chain(&error);
                    if let OpenError::Store { source, .. } = &error
                        && let Some(source) = source.downcast_ref()
                        && self.trouble.is_lost(source, self.settings.clock.now().mono_ms)
                    {
                        past.damage = Some(reason.clone());
                    }
                }
            }
        }
        None
    }

    /// A person is needed: the store has failed again and again.
    fn raise_alarm(&mut self, reason: &str) {
        let wall_ms = self.settings.clock.now().wall_ms;
        let text = format!("the store has failed {FAILURES_MAX} times in a row: {reason}");
        if self.settings.health.raise(Alarm::StoreFails, wall_ms, &text) {
            error!(error = reason; "The store has failed three times in a row: look at its disk");
            self.trouble.to_keep = Some(text);
        }
    }

    /// After a commit of something that was asked for: a store that is opened again has committed too, on a disk that
    /// is full for everything else.
    fn note_success(&self) {
        if self.settings.health.queue().failures_in_a_row.swap(0, Ordering::Relaxed) > 0
            && self.settings.health.clear(Alarm::StoreFails)
        {
            info!("The store takes messages again");
        }
    }

    /// Answers whoever asks that the store has failed, for so long. Says whether to go on.
    fn refuse_for(&mut self, pause: Duration, reason: &str) -> bool {
        let failure = AppendError::Failed { reason: reason.to_owned() };
        let mut left = pause;
        loop {
            self.reads.drain(..).for_each(|job| refuse(job, &failure));
            loop {
                match self.jobs.try_recv() {
                    Ok(Job::Stop(reply)) => {
                        self.stopping = Some(Some(reply));
                        return false;
                    }
                    Ok(job) => refuse(job, &failure),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        self.stopping = Some(None);
                        return false;
                    }
                }
            }
            if left.is_zero() {
                return self.stopping.is_none();
            }
            let step = left.min(AWAY_LOOK);
            std::thread::sleep(step);
            left -= step;
        }
    }
}

/// Hangs for as long as the state directory holds this file: for the test that sees the watchdog of the unit bite. Never
/// in a released binary.
#[cfg(feature = "test-hooks")]
fn hang_if_told(dir: &std::path::Path) {
    while dir.join("test-hook-hang-queue").exists() {
        std::thread::sleep(AWAY_LOOK);
    }
}

/// What a person can do about a store that fails, by what the system says.
fn help(reason: &str) -> &'static str {
    let reason = reason.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if says(&["disk is full", "no space", "disk full"]) {
        "free some room on the disk of the state directory; it goes on by itself then"
    } else if says(&["readonly", "read-only"]) {
        "mount the file system of the state directory writable; it goes on by itself then"
    } else if says(&["permission", "unable to open", "access"]) {
        "give the state directory and all in it to the user that this runs as: chown -R tidegate: on it"
    } else {
        "look at the disk of the state directory, for example with dmesg"
    }
}

/// The answer of a store that is not there.
fn refuse(job: Job, failure: &AppendError) {
    match job {
        Job::Next { reply, .. } => send(reply, Err(failure.clone())),
        Job::Restore(_, reply) => send(reply, Err(failure.clone())),
        Job::Retained { reply, .. } => send(reply, Err(failure.clone())),
        Job::Stats(reply) => send(reply, Err(failure.clone())),
        Job::IsSubscribed(_, reply) => send(reply, Err(failure.clone())),
        Job::Ledger(_, reply) => send(reply, Err(failure.clone())),
        Job::Ask(_, reply) => send(reply, Err(failure.clone())),
        Job::Ping(reply) => send(reply, Ok(())),
        job => unapplied(job).into_iter().for_each(|answer| answer.give(Some(failure))),
    }
}

/// Makes one transaction of all of them; answers all of them.
fn write(books: &mut Books, writes: Vec<Job>) -> rusqlite::Result<()> {
    let mut answers = Vec::with_capacity(writes.len());
    let mut outcome = Ok(());
    for job in writes {
        match outcome {
            Ok(()) => outcome = apply(books, job, &mut answers),
            // It shares the fate of the transaction that it would have been in.
            Err(_) => answers.extend(unapplied(job)),
        }
    }
    let outcome = outcome.and_then(|()| books.commit());
    let failure = outcome.as_ref().err().map(|error| AppendError::Failed { reason: error.to_string() });
    answers.into_iter().for_each(|answer| answer.give(failure.as_ref()));
    outcome
}

/// Does a job within the open transaction. Its answer is there even if it fails.
fn apply(books: &mut Books, job: Job, answers: &mut Vec<Answer>) -> rusqlite::Result<()> {
    match job {
        Job::Append(submission, reply) => {
            // Held in memory, it is answered later.
            let Some((submission, reply)) = books.hold(submission, reply)? else { return Ok(()) };
            let appended = books.append(submission);
            let (answer, outcome) = match appended {
                Ok(answer) => (answer, Ok(())),
                Err(error) => (Err(AppendError::Stopped), Err(error)),
            };
            answers.push(Answer::Append(reply, answer));
            outcome
        }
        Job::Release(once, reply) => {
            let released = books.release(once);
            answers.push(Answer::Release(reply, matches!(released, Ok(true))));
            released.map(drop)
        }
        Job::OpenSession(reply) => {
            let session = books.take_session();
            answers.push(Answer::Session(reply, SessionNumber(*session.as_ref().unwrap_or(&0))));
            session.map(drop)
        }
        Job::CloseSession(session, reply) => {
            answers.push(Answer::Done(reply));
            books.close_session(session)
        }
        Job::SetRules(spec, reply) => {
            answers.push(Answer::Done(reply));
            books.change_rules(spec)
        }
        Job::OpenStream(spec, _, reply) => {
            answers.push(Answer::Done(reply));
            books.open_stream(spec)
        }
        Job::CloseStream(name, reply) => {
            answers.push(Answer::Done(reply));
            books.close_stream(&name)
        }
        Job::SetWrites(topics, reply) => {
            answers.push(Answer::Done(reply));
            books.settings.set_topics = topics;
            Ok(())
        }
        Job::SetBounds(bounds, reply) => {
            answers.push(Answer::Done(reply));
            let settings = &mut books.settings;
            (settings.age_max, settings.when_full, settings.keep) = (bounds.age_max, bounds.when_full, bounds.keep);
            Ok(())
        }
        Job::NoteProblem(text, reply) => {
            answers.push(Answer::Done(reply));
            books.add_problem(&text)
        }
        Job::DeclareStop(reason, reply) => {
            answers.push(Answer::Done(reply));
            let kept = books.add_problem(&format!("the program stopped {reason}"));
            books.stop_reason = Some(reason);
            kept
        }
        Job::Commit(stream, changes, reply) => {
            answers.push(Answer::Done(reply));
            match index(books, &stream) {
                Some(index) => books.change(index, changes),
                None => Ok(()),
            }
        }
        Job::AppendWith { stream, changes, submissions } => {
            let (submissions, replies): (Vec<_>, Vec<_>) = submissions.into_iter().unzip();
            let appended = append_with(books, &stream, changes, submissions);
            let (given, outcome) = match appended {
                Ok(given) => (given, Ok(())),
                Err(error) => (Vec::new(), Err(error)),
            };
            let given = given.into_iter().chain(std::iter::repeat(Err(AppendError::Stopped)));
            answers.extend(replies.into_iter().zip(given).map(|(reply, given)| Answer::Append(reply, given)));
            outcome
        }
        Job::Live(stream, is_live) => match index(books, &stream) {
            Some(index) => books.set_live(index, is_live),
            None => Ok(()),
        },
        Job::Tick(reply) => {
            answers.push(Answer::Done(reply));
            books.tick_ledger()
        }
        Job::Order(order, reply) => {
            let done = books.carry_out(&order);
            let (later, outcome) = match done {
                Ok(answer) => (Later::new(reply, answer), Ok(())),
                Err(error) => (Later::never(reply), Err(error)),
            };
            answers.push(Answer::Later(later));
            outcome
        }
        Job::Session(job) => {
            let (later, outcome) = books.apply_session(job);
            answers.push(Answer::Later(later));
            outcome
        }
        Job::Next { .. }
        | Job::Restore(..)
        | Job::Retained { .. }
        | Job::Stats(_)
        | Job::IsSubscribed(..)
        | Job::Ledger(..)
        | Job::Ask(..)
        | Job::Ping(_)
        | Job::Stop(_) => Ok(()),
    }
}

/// Takes messages, and the changes with the first of them; if that is not taken, nothing is.
fn append_with(
    books: &mut Books,
    stream: &Arc<str>,
    changes: Vec<Change>,
    submissions: Vec<Submission>,
) -> rusqlite::Result<Vec<Result<Appended, AppendError>>> {
    let mut given = Vec::with_capacity(submissions.len());
    for submission in submissions {
        let appended = match given.first() {
            Some(Err(error)) => Err(AppendError::clone(error)),
            _ => books.append(submission)?,
        };
        given.push(appended);
    }
    if !matches!(given.first(), Some(Err(_)))
        && let Some(index) = index(books, stream)
    {
        books.change(index, changes)?;
    }
    Ok(given)
}

/// The answers to a write that was not tried.
fn unapplied(job: Job) -> Vec<Answer> {
    match job {
        Job::AppendWith { submissions, .. } => {
            submissions.into_iter().map(|(_, reply)| Answer::Append(reply, Err(AppendError::Stopped))).collect()
        }
        job => unapplied_one(job).into_iter().collect(),
    }
}

/// The answer to a write that has one.
fn unapplied_one(job: Job) -> Option<Answer> {
    match job {
        Job::Append(_, reply) => Some(Answer::Append(reply, Err(AppendError::Stopped))),
        Job::Release(_, reply) => Some(Answer::Release(reply, false)),
        Job::OpenSession(reply) => Some(Answer::Session(reply, SessionNumber(0))),
        Job::CloseSession(_, reply)
        | Job::SetRules(_, reply)
        | Job::OpenStream(_, _, reply)
        | Job::CloseStream(_, reply)
        | Job::SetWrites(_, reply)
        | Job::SetBounds(_, reply)
        | Job::NoteProblem(_, reply)
        | Job::DeclareStop(_, reply)
        | Job::Commit(_, _, reply)
        | Job::Tick(reply) => Some(Answer::Done(reply)),
        Job::Order(_, reply) => Some(Answer::Later(Later::never(reply))),
        Job::Session(job) => job.unapplied().map(Answer::Later),
        Job::Next { .. }
        | Job::Restore(..)
        | Job::Retained { .. }
        | Job::Stats(_)
        | Job::IsSubscribed(..)
        | Job::Ledger(..)
        | Job::Ask(..)
        | Job::AppendWith { .. }
        | Job::Live(..)
        | Job::Ping(_)
        | Job::Stop(_) => None,
    }
}

fn read(books: &mut Books, job: Job) -> rusqlite::Result<()> {
    match job {
        Job::Next { stream, after, count_max, bytes_max, is_again, reply } => match index(books, &stream) {
            Some(index) => {
                let found = match is_again {
                    false => books.next(index, after, count_max, bytes_max),
                    true => books.next_again(index, after, count_max, bytes_max),
                };
                answer(books, found, reply)
            }
            None => {
                send(reply, Err(AppendError::Stopped));
                Ok(())
            }
        },
        Job::Restore(stream, reply) => match index(books, &stream) {
            Some(index) => {
                let found = books.restore(index);
                answer(books, found, reply)
            }
            None => {
                send(reply, Err(AppendError::Stopped));
                Ok(())
            }
        },
        Job::Retained { filter, after, reply } => {
            let found = books.retained_page(&filter, after.as_deref());
            answer(books, found, reply)
        }
        Job::Stats(reply) => {
            let found = books.stats();
            answer(books, found, reply)
        }
        Job::IsSubscribed(topic, reply) => {
            let found = books.sessions.is_subscribed(&topic);
            answer(books, Ok(found), reply)
        }
        Job::Ledger(page, reply) => {
            let found = books.ledger_page(page);
            answer(books, found, reply)
        }
        Job::Ask(question, reply) => {
            let found = books.answer_to(&question);
            answer(books, found, reply)
        }
        _ => Ok(()),
    }
}

/// Commits what a read had to write, that a row was damaged for example, and replies.
fn answer<T>(books: &mut Books, found: rusqlite::Result<T>, reply: Reply<T>) -> rusqlite::Result<()> {
    let committed = found.and_then(|found| {
        if books.is_changed() {
            books.commit()?;
        }
        Ok(found)
    });
    match committed {
        Ok(found) => {
            send(reply, Ok(found));
            Ok(())
        }
        Err(error) => {
            send(reply, Err(AppendError::Failed { reason: error.to_string() }));
            Err(error)
        }
    }
}

fn index(books: &Books, name: &Arc<str>) -> Option<usize> {
    books.streams.iter().position(|stream| stream.name == *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::tests::settings;

    fn unreadable() -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_READ), None)
    }

    fn trouble() -> Trouble {
        Trouble { failed_ms: None, logged_ms: None, pause: Duration::ZERO, unreadable: None, to_keep: None }
    }

    #[test]
    fn whoever_reads_of_a_store_that_fails_reads_what_to_do() {
        assert!(help("cannot open the store: database or disk is full").contains("free some room"));
        assert!(help("attempt to write a readonly database").contains("writable"));
        assert!(help("Read-only file system (os error 30)").contains("writable"));
        assert!(help("unable to open database file").contains("chown"));
        assert!(help("disk I/O error").contains("dmesg"));
    }

    #[test]
    fn a_page_that_is_never_read_is_given_up_and_a_passing_fault_is_not() {
        let mut trouble = trouble();
        let full = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None);
        assert!((0..100).all(|second| !trouble.is_lost(&full, second * 1000)), "a full disk is mended");
        assert!((0..100).all(|_| !trouble.is_lost(&unreadable(), 7)), "many at once may be one fault");
        assert!((1..9).all(|minute| !trouble.is_lost(&unreadable(), minute * 100_000)), "few and far between");
        let lost = (1000..1100).find(|second| trouble.is_lost(&unreadable(), second * 1000));
        assert_eq!(lost, Some(1000 + UNREADABLE_MS / 1000));
    }

    #[test]
    fn a_store_with_an_unreadable_page_is_moved_aside_at_last() {
        let dir = tempfile::tempdir().unwrap();
        // The inlet is kept: without it the worker would stop.
        let crate::queue::Opened { inlet: _inlet, worker, .. } = crate::queue::open(settings(dir.path())).unwrap();
        let Worker { books, mut thread } = worker;
        let mut books = books.unwrap();
        for _ in 1..UNREADABLE_MAX {
            books = thread.recover(books, &unreadable()).unwrap();
            assert!(!dir.path().join("quarantine").exists());
        }
        // As if it had gone on for long.
        if let Some(unreadable) = &mut thread.trouble.unreadable {
            unreadable.first_ms = unreadable.first_ms.saturating_sub(UNREADABLE_MS);
        }
        thread.recover(books, &unreadable()).unwrap();
        assert!(dir.path().join("quarantine").exists());
    }
}
