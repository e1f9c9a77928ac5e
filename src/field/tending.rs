//! Runs lines, each in a task of its own: starts one that panicked again after a growing pause, and ends one whose
//! configuration has changed between two exchanges, while its neighbours go on.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use log::{error, warn};
use tokio::sync::{RwLock, mpsc};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::device::Desk;
use super::pause::Pauses;

/// Pauses of a line that panicked.
const RESTART: Pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(60));
/// A line that ran this long before it panicked is forgiven its former ones.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);
/// How long a stop waits for a write that is under way to end, and to be read back.
const WRITE_GRACE: Duration = Duration::from_secs(2);
/// How long a line that is to end may go on with what it has begun: a request that is not answered, and a write with what
/// is read back of it.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// What kind of line it is, and its name.
pub(super) type Key = (&'static str, Arc<str>);

/// What is run, and run again when it fails.
pub(super) trait Tended: Clone + Send + 'static {
    fn key(&self) -> Key;

    /// Whether it is configured as `other` is, so that it may go on in its place.
    fn is_same(&self, other: &Self) -> bool;

    /// Takes over what a line of its name has left.
    fn succeed(&mut self, former: &Self);

    /// What it holds while it must not be dropped at once.
    fn busy(&self) -> Option<Arc<RwLock<()>>> {
        None
    }

    /// Runs until it is dropped, or a little longer than until `leave`.
    fn run(self, desk: Desk, leave: CancellationToken) -> impl Future<Output = ()> + Send;
}

/// The lines that run.
pub(super) struct Tending<L> {
    pub(super) desk: Desk,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// Whose task it is, and since when it runs.
    running: HashMap<Id, (Key, Instant)>,
    lines: BTreeMap<Key, Held<L>>,
}

struct Held<L> {
    line: L,
    leave: CancellationToken,
    /// Ends in a row that nobody had asked for.
    failures: u32,
}

impl<L: Tended> Tending<L> {
    pub(super) fn new(desk: Desk, stop: CancellationToken) -> Tending<L> {
        Tending { desk, stop, tasks: JoinSet::new(), running: HashMap::new(), lines: BTreeMap::new() }
    }

    pub(super) fn line(&self, key: &Key) -> Option<&L> {
        self.lines.get(key).map(|held| &held.line)
    }

    /// Runs a line from now on.
    pub(super) fn add(&mut self, line: L) {
        let key = line.key();
        let held = Held { line, leave: CancellationToken::new(), failures: 0 };
        self.lines.insert(key.clone(), held);
        self.start(&key, Duration::ZERO);
    }

    fn start(&mut self, key: &Key, pause: Duration) {
        let Some(Held { line, leave, .. }) = self.lines.get(key) else { return };
        let (desk, stop, busy) = (self.desk.clone(), self.stop.clone(), line.busy());
        let (line, leave) = (line.clone(), leave.clone());
        let is_leaving = leave.clone();
        let over = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = async {
                    is_leaving.cancelled().await;
                    sleep(LEAVE_PATIENCE).await;
                } => {}
            }
            if let Some(busy) = busy {
                // What is not over by then is told as unknown.
                drop(timeout(WRITE_GRACE, busy.write()).await);
            }
        };
        let task = self.tasks.spawn(async move {
            tokio::select! {
                () = over => {}
                () = async {
                    tokio::select! {
                        () = sleep(pause) => line.run(desk, leave).await,
                        () = leave.cancelled() => {}
                    }
                } => {}
            }
        });
        self.running.insert(task.id(), (key.clone(), Instant::now() + pause));
    }

    /// Runs the lines until there is a change to be made, or the stop has come and all have ended.
    pub(super) async fn run<C>(&mut self, changes: &mut mpsc::Receiver<C>) -> Option<C> {
        loop {
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                Some(change) = changes.recv(), if !self.stop.is_cancelled() => return Some(change),
                // A gateway without field devices has nothing to tend, which is no reason to end.
                () = self.stop.cancelled(), if self.tasks.is_empty() => return None,
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let (id, panicked) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error)),
        };
        let Some((key, since)) = self.running.remove(&id) else { return };
        let Some(held) = self.lines.get_mut(&key).filter(|held| !held.leave.is_cancelled()) else { return };
        if self.stop.is_cancelled() {
            return;
        }
        held.failures = if since.elapsed() > FORGIVEN_AFTER { 1 } else { held.failures.saturating_add(1) };
        let (line, pause) = (&*key.1, RESTART.after(held.failures));
        if let Some(panic) = panicked {
            error!(line, error:% = panic; "A line failed and is started again");
        } else {
            warn!(line; "A line ended by itself and is started again");
        }
        self.start(&key, pause);
    }

    /// Ends the lines that are not among `wanted`, or are configured otherwise there, and gives them back.
    pub(super) async fn end_others(&mut self, wanted: &[L]) -> BTreeMap<Key, L> {
        let is_wanted = |line: &L| wanted.iter().any(|other| other.key() == line.key() && other.is_same(line));
        let others: Vec<Key> =
            self.lines.iter().filter(|(_, held)| !is_wanted(&held.line)).map(|(key, _)| key.clone()).collect();
        for key in &others {
            if let Some(held) = self.lines.get(key) {
                held.leave.cancel();
            }
        }
        while self.running.values().any(|(key, _)| others.contains(key)) {
            match self.tasks.join_next_with_id().await {
                Some(ended) => self.ended(ended),
                None => break,
            }
        }
        others.into_iter().filter_map(|key| Some((key.clone(), self.lines.remove(&key)?.line))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::clock::{Clock, ClockSource};

    /// Panics at its first three starts, or never.
    #[derive(Clone)]
    struct Faulty {
        name: &'static str,
        starts: Arc<AtomicU32>,
        panics: u32,
    }

    impl Tended for Faulty {
        fn key(&self) -> Key {
            ("line", self.name.into())
        }

        fn is_same(&self, other: &Faulty) -> bool {
            self.panics == other.panics
        }

        fn succeed(&mut self, _former: &Faulty) {}

        async fn run(self, desk: Desk, leave: CancellationToken) {
            let start = self.starts.fetch_add(1, Ordering::SeqCst);
            assert!(start >= self.panics, "a library failed");
            desk.outbox.send(Vec::new()).await.unwrap();
            leave.cancelled().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_panics_is_started_again_and_its_neighbour_is_not_touched() {
        let (outbox, mut inbox) = mpsc::channel(8);
        let desk = Desk { outbox, clock: Clock::new(ClockSource::Trusted) };
        let stop = CancellationToken::new();
        let starts = [Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0))];
        let line = |number: usize, panics| {
            let name = ["faulty", "neighbour"][number];
            Faulty { name, starts: starts[number].clone(), panics }
        };
        let mut tasks = JoinSet::new();
        let mut tending = Tending::new(desk, stop.clone());
        tending.add(line(0, 3));
        tending.add(line(1, 0));
        let (_changes, mut no_changes) = mpsc::channel::<()>(1);
        tasks.spawn(async move { tending.run(&mut no_changes).await });
        let began = Instant::now();
        inbox.recv().await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO, "the neighbour starts at once");
        inbox.recv().await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 1 + 2 + 4, "growing pauses");
        assert_eq!(starts.map(|count| count.load(Ordering::SeqCst)), [4, 1]);
        stop.cancel();
        tasks.join_next().await.unwrap().unwrap();
        assert!(inbox.recv().await.is_none(), "the lines' ends are closed");
    }

    #[tokio::test(start_paused = true)]
    async fn only_lines_that_are_different_end_and_a_stubborn_one_is_given_up() {
        let (outbox, mut inbox) = mpsc::channel(8);
        let desk = Desk { outbox, clock: Clock::new(ClockSource::Trusted) };
        let line = |name, panics| Faulty { name, starts: Arc::default(), panics };
        let (stays, changes, goes) = (line("stays", 0), line("changes", 0), line("goes", 0));
        let mut tending = Tending::new(desk, CancellationToken::new());
        [&stays, &changes, &goes].into_iter().for_each(|line| tending.add(line.clone()));
        for _ in 0..3 {
            inbox.recv().await.unwrap();
        }
        let other = Faulty { panics: 1, ..line("changes", 0) };
        let ended = tending.end_others(&[stays.clone(), other]).await;
        assert_eq!(ended.keys().map(|(_, name)| &**name).collect::<Vec<_>>(), ["changes", "goes"]);
        assert!(tending.line(&stays.key()).is_some() && tending.line(&changes.key()).is_none());
        assert_eq!(stays.starts.load(Ordering::SeqCst), 1);
        assert_eq!(tending.tasks.len(), 1);
        // The outbox is full: it hangs in what it does, and is dropped after its time.
        let stubborn = line("stubborn", 0);
        for _ in 0..8 {
            tending.desk.outbox.send(Vec::new()).await.unwrap();
        }
        tending.add(stubborn.clone());
        while stubborn.starts.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        let ended = tending.end_others(&[stays]).await;
        assert_eq!((ended.len(), began.elapsed()), (1, LEAVE_PATIENCE));
    }
}
