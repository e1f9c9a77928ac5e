//! The one thread: takes what waits, makes one transaction of it, commits, then replies.
//!
//! Promises: no reply before the commit that it stands for; when a commit fails, everybody in it hears so, and the
//! store is opened again from the disk before anything else is done. The group is what arrived while the last sync
//! ran: no timer makes anybody wait. Reads take their turn after each commit, and none is longer than one job.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error as _;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::{error, info, warn};
use tokio::sync::{mpsc, oneshot, watch};

use super::books::Books;
use super::opening;
use super::outward::Fetched;
use super::store::is_damage;
use super::{
    AppendError, Appended, Change, Once, OpenError, QueueSettings, Restored, SessionNumber, Stats, StreamSpec,
    Submission, WorkerError,
};
use crate::message::{Body, Filter, Message};

/// Jobs that wait at most; then senders wait.
pub(super) const JOBS_MAX: usize = 2048;
/// What one transaction takes in at most.
const GROUP_JOBS_MAX: usize = 1024;
const GROUP_BYTES_MAX: usize = 256 * 1024;
/// While there is always something to do, one job's share of old work is done every so many turns.
const CHORES_EVERY: u64 = 8;
/// What is too old is looked for at most so often.
const EXPIRE_EVERY_MS: u64 = 1000;
/// How often the store is opened again after a failure, with pauses that grow to the longest.
const REOPEN_ATTEMPTS: u32 = 20;
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(2);

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
    Commit(Arc<str>, Vec<Change>, Reply<()>),
    Next { stream: Arc<str>, after: u64, count_max: usize, bytes_max: usize, reply: Reply<Fetched> },
    Restore(Arc<str>, Reply<Restored>),
    Retained { filter: Filter, after: Option<String>, reply: Reply<(Vec<Message>, Option<String>)> },
    Stats(Reply<Stats>),
    Stop(oneshot::Sender<()>),
}

impl Job {
    /// What it adds to a transaction.
    fn bytes(&self) -> usize {
        match self {
            Job::Append(submission, _) => match &submission.message.body {
                Body::Bytes(bytes) => bytes.len() + submission.message.topic.as_str().len(),
                Body::Reading(_) => 100,
            },
            _ => 0,
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
}

/// The caller may have given up: then nobody wants the answer.
fn send<T>(reply: Reply<T>, answer: Result<T, AppendError>) {
    drop(reply.send(answer));
}

impl Answer {
    fn give(self, failure: Option<&AppendError>) {
        match (self, failure.cloned()) {
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
    books: Books,
    thread: Thread,
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
}

impl Worker {
    pub(super) fn new(
        jobs: mpsc::Receiver<Job>,
        settings: QueueSettings,
        books: Books,
        wakers: BTreeMap<Arc<str>, watch::Sender<u64>>,
        lock: File,
    ) -> Worker {
        let reads = VecDeque::new();
        let thread = Thread { jobs, settings, wakers, lock, reads, stopping: None, turns: 0, expired_ms: None };
        Worker { books, thread }
    }

    /// Works until `Inlet::stop`, or until all ends are dropped. Blocks: it has a thread of its own.
    pub fn run(self) -> Result<(), WorkerError> {
        let Worker { mut books, mut thread } = self;
        while thread.stopping.is_none() || !thread.reads.is_empty() {
            if let Err(error) = thread.turn(&mut books) {
                books = thread.recover(books, &error)?;
            }
            thread.wake(&mut books);
        }
        if let Err(error) = books.close() {
            // All that was acknowledged is in the WAL: the next start finds it.
            warn!(error:%; "The store was not closed cleanly");
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
        while let Some(job) = self.reads.pop_front() {
            read(books, job)?;
        }
        if self.stopping.is_some() {
            return Ok(());
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
                self.jobs.blocking_recv()
            }
        };
        let Some(first) = first else {
            self.stopping = Some(None);
            return Ok(());
        };
        let writes = self.gather(first);
        if writes.is_empty() { Ok(()) } else { write(books, writes) }
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
                Job::Next { .. } | Job::Restore(..) | Job::Retained { .. } | Job::Stats(_) => self.reads.push_back(job),
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
        if books.sweep.is_none() && !is_expiry_due {
            return Ok(false);
        }
        books.sweep_step()?;
        let is_more = is_expiry_due && books.expire()?;
        if is_more || books.is_removal_due() {
            books.remove_bodies()?;
        }
        if books.store.is_writing() {
            books.commit()?;
        }
        if is_expiry_due && !is_more {
            self.expired_ms = Some(now_ms);
        }
        Ok(is_more || books.sweep.is_some())
    }

    /// Tells the outlets for whom something new waits.
    fn wake(&mut self, books: &mut Books) {
        for stream in books.streams.iter_mut().filter(|stream| stream.is_stirred) {
            stream.is_stirred = false;
            if let Some(waker) = self.wakers.get(&stream.name) {
                waker.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }

    /// After a failed transaction nothing in memory is believed: a failed sync may have dropped pages that SQLite
    /// thinks are written. The store is closed and read again; a damaged one is moved aside.
    fn recover(&mut self, books: Books, error: &rusqlite::Error) -> Result<Books, WorkerError> {
        self.settings.health.queue().failures_in_a_row.fetch_add(1, Ordering::Relaxed);
        error!(error:%; "A transaction failed; the store is opened again");
        let waiting = books.streams.iter().map(|stream| stream.waiting).fold(0, u64::saturating_add);
        let taken: BTreeMap<Arc<str>, u64> =
            books.streams.iter().map(|stream| (stream.name.clone(), stream.taken_to)).collect();
        let mut damage = is_damage(error).then(|| error.to_string());
        let Books { mut identity, store, streams, .. } = books;
        identity.sessions = streams.into_iter().map(|stream| (stream.name, stream.session)).collect();
        drop(store);
        let mut identity = Some(identity);
        let mut pause = Duration::from_millis(50);
        for attempt in 1.. {
            match opening::open_books(&self.settings, &mut identity, Some(waiting), damage.take()) {
                Ok(mut books) => {
                    for stream in &mut books.streams {
                        stream.taken_to = taken.get(&stream.name).copied().unwrap_or(0);
                    }
                    info!(attempt; "The store is open again");
                    return Ok(books);
                }
                Err(error) if attempt >= REOPEN_ATTEMPTS => return Err(WorkerError::Lost(error)),
                Err(error) => warn!(attempt, error:% = error, cause:? = error.source(); "The store does not open"),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(REOPEN_PAUSE_MAX);
        }
        Err(WorkerError::Lost(OpenError::InUse { dir: self.settings.dir.clone() }))
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
        Job::Commit(stream, changes, reply) => {
            answers.push(Answer::Done(reply));
            match index(books, &stream) {
                Some(index) => books.change(index, changes),
                None => Ok(()),
            }
        }
        Job::Next { .. } | Job::Restore(..) | Job::Retained { .. } | Job::Stats(_) | Job::Stop(_) => Ok(()),
    }
}

/// The answer to a write that was not tried.
fn unapplied(job: Job) -> Option<Answer> {
    match job {
        Job::Append(_, reply) => Some(Answer::Append(reply, Err(AppendError::Stopped))),
        Job::Release(_, reply) => Some(Answer::Release(reply, false)),
        Job::OpenSession(reply) => Some(Answer::Session(reply, SessionNumber(0))),
        Job::CloseSession(_, reply) | Job::SetRules(_, reply) | Job::Commit(_, _, reply) => Some(Answer::Done(reply)),
        Job::Next { .. } | Job::Restore(..) | Job::Retained { .. } | Job::Stats(_) | Job::Stop(_) => None,
    }
}

fn read(books: &mut Books, job: Job) -> rusqlite::Result<()> {
    match job {
        Job::Next { stream, after, count_max, bytes_max, reply } => match index(books, &stream) {
            Some(index) => {
                let found = books.next(index, after, count_max, bytes_max);
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
