//! The two tasks beside the link: one has the queue's outlet, one waits for the intake.
//!
//! Promises: the link never waits for a disk, so acknowledgements are committed while further messages leave; orders
//! are carried out in the order they were given; commands enter the intake in the order they came. Nothing is decided.

use std::time::Duration;

use tokio::sync::mpsc;

use super::inbound::Receipt;
use super::twin::Properties;
use crate::health::chain;
use crate::intake::{AcceptError, Intake, Ticket};
use crate::message::Message;
use crate::queue::{AppendError, Change, Committing, Inlet, Lane, Once, Outlet, Queued, Restored, Wanted};

/// Pause before the store is asked again after it failed.
const RESTORE_AGAIN: Duration = Duration::from_secs(1);

/// After an answer of so many rows there are probably more: they are read while these are sent.
const READ_AHEAD_FROM: usize = 64;

/// Commands that have their place in the queue but not yet their commit.
const PLACED_MAX: usize = 256;

/// What the store is to do.
#[derive(Debug)]
pub enum Order {
    /// One transaction.
    Commit(Vec<Change>),
    /// Read the durable state.
    Restore,
    /// Whether messages may be held in memory for the cloud.
    Live(bool),
    /// Get rows.
    Fetch {
        /// Another one than before: from the oldest row again.
        round: u64,
        /// How many.
        wanted: Wanted,
    },
    /// Get rows of the live lane.
    FetchLive {
        /// It begins now: what is in the queue is backlog.
        begins: bool,
        /// How many.
        wanted: Wanted,
    },
}

/// What the intake is to do.
#[derive(Debug)]
pub enum Errand {
    /// Take a command in.
    Submit {
        /// To be given back.
        receipt: Receipt,
        /// The command.
        message: Box<Message>,
        /// For QoS 2.
        once: Option<Once>,
    },
    /// Forget a received id.
    Release {
        /// To be given back.
        receipt: Receipt,
        /// Which.
        once: Once,
    },
}

/// Why an errand failed.
#[derive(Debug)]
pub struct Unaccepted {
    /// For a person.
    pub reason: String,
    /// Only for want of room.
    pub is_full: bool,
}

impl From<AcceptError> for Unaccepted {
    fn from(error: AcceptError) -> Unaccepted {
        Unaccepted { reason: chain(&error), is_full: error.is_full() }
    }
}

/// What became of it.
#[derive(Debug)]
pub enum Report {
    /// The commit is on disk, or not.
    Committed(Result<(), AppendError>),
    /// The durable state.
    Restored(Restored),
    /// Rows of this round.
    Rows(u64, Vec<Queued>),
    /// Rows of the live lane.
    LiveRows(Vec<Queued>),
    /// The intake has the command, or not.
    Submitted(Receipt, Result<(), Unaccepted>),
    /// The id is forgotten; whether it was known.
    Released(Receipt, Result<bool, Unaccepted>),
    /// What the twin is to say.
    Reported(Properties),
    /// Whether somebody takes jobs.
    JobsHeard(bool),
    /// The queue has stopped for good.
    QueueStopped,
}

/// Carries out orders until there are no more to come. Rows are fetched while a commit is under way.
pub async fn keep_store(mut outlet: Outlet, mut orders: mpsc::Receiver<Order>, reports: mpsc::Sender<Report>) {
    let mut wanted: Option<Wanted> = None;
    let mut committing: Option<Committing> = None;
    let mut reading = 0;
    let mut live = Live::None;
    loop {
        let report = tokio::select! {
            // Commits first: they free the window, and rows are fetched ahead.
            biased;
            outcome = finished(&mut committing) => {
                committing = None;
                Report::Committed(outcome)
            },
            // What is ordered after a commit has its place behind it in the queue.
            order = orders.recv() => match order {
                None => {
                    if let Some(mut last) = committing {
                        // Whether it came to an end or the queue did, nobody is left to be told.
                        drop(last.outcome().await);
                    }
                    return;
                }
                Some(Order::Commit(changes)) => {
                    if let Some(mut before) = committing.take()
                        && reports.send(Report::Committed(before.outcome().await)).await.is_err()
                    {
                        return;
                    }
                    match outlet.begin_commit(changes).await {
                        Ok(begun) => {
                            committing = Some(begun);
                            continue;
                        }
                        Err(error) => Report::Committed(Err(error)),
                    }
                }
                Some(Order::Restore) => {
                    (wanted, live) = (None, live.forgotten());
                    match restore(&mut outlet).await {
                        Some(restored) => Report::Restored(restored),
                        None => Report::QueueStopped,
                    }
                }
                Some(Order::Live(is_live)) => match outlet.set_live(is_live).await {
                    Ok(()) => continue,
                    Err(_stopped) => Report::QueueStopped,
                },
                Some(Order::FetchLive { begins, wanted }) => {
                    live = if begins { Live::Begins(wanted) } else { Live::Wanted(wanted) };
                    continue;
                }
                Some(Order::Fetch { round, wanted: more }) => {
                    if std::mem::replace(&mut reading, round) != round {
                        outlet.rewind();
                    }
                    wanted = Some(more);
                    continue;
                }
            },
            rows = next(&mut outlet, wanted, &mut live) => match rows {
                Ok((Lane::Backlog, rows)) => {
                    let asked = wanted.take().filter(|_| matches!(live, Live::None) && rows.len() >= READ_AHEAD_FROM);
                    if let Some(Wanted { count, bytes, .. }) = asked {
                        outlet.read_ahead(count, bytes);
                    }
                    Report::Rows(reading, rows)
                }
                Ok((Lane::Live, rows)) => {
                    live = Live::Read;
                    Report::LiveRows(rows)
                }
                Err(AppendError::Stopped) => Report::QueueStopped,
                Err(_failed) => {
                    tokio::time::sleep(RESTORE_AGAIN).await;
                    continue;
                }
            },
        };
        let is_last = matches!(report, Report::QueueStopped | Report::Committed(Err(AppendError::Stopped)));
        if reports.send(report).await.is_err() || is_last {
            return;
        }
    }
}

/// What is known of the live lane.
#[derive(Clone, Copy)]
enum Live {
    /// There is none: what goes first is the oldest.
    None,
    /// It is to begin with this.
    Begins(Wanted),
    /// This is asked of it.
    Wanted(Wanted),
    /// Nothing is asked of it.
    Read,
}

impl Live {
    fn forgotten(self) -> Live {
        if matches!(self, Live::None) { Live::None } else { Live::Read }
    }
}

async fn finished(committing: &mut Option<Committing>) -> Result<(), AppendError> {
    match committing {
        Some(committing) => committing.outcome().await,
        None => std::future::pending().await,
    }
}

async fn next(
    outlet: &mut Outlet,
    wanted: Option<Wanted>,
    live: &mut Live,
) -> Result<(Lane, Vec<Queued>), AppendError> {
    if let Live::Begins(more) = *live {
        outlet.mark_live().await?;
        *live = Live::Wanted(more);
    }
    match (*live, wanted) {
        (Live::None, Some(Wanted { count, bytes, waits })) => {
            let rows = if waits { outlet.next(count, bytes).await } else { outlet.next_now(count, bytes).await };
            Ok((Lane::Backlog, rows?))
        }
        (Live::None | Live::Read, None) => std::future::pending().await,
        (Live::Wanted(more), wanted) => outlet.next_of(wanted, Some(more)).await,
        (_, wanted) => outlet.next_of(wanted, None).await,
    }
}

/// `None` when the queue has stopped. A store that fails is opened again by its own worker, so it is asked again.
async fn restore(outlet: &mut Outlet) -> Option<Restored> {
    loop {
        match outlet.restore().await {
            Ok(restored) => return Some(restored),
            Err(AppendError::Stopped) => return None,
            Err(_failed) => tokio::time::sleep(RESTORE_AGAIN).await,
        }
    }
}

enum Placed {
    Ticket(Receipt, Box<Ticket>),
    Refused(Receipt, Unaccepted),
    Release(Receipt, Once),
}

/// Carries out errands until there are no more to come: many may wait for one commit, answers keep their order.
pub async fn run_errands(
    intake: Intake,
    inlet: Inlet,
    mut errands: mpsc::Receiver<Errand>,
    reports: mpsc::Sender<Report>,
) {
    let (placed, mut waiting) = mpsc::channel(PLACED_MAX);
    let place = async move {
        while let Some(errand) = errands.recv().await {
            let outcome = match errand {
                Errand::Submit { receipt, message, once } => match intake.submit(*message, once).await {
                    Ok(ticket) => Placed::Ticket(receipt, Box::new(ticket)),
                    Err(error) => Placed::Refused(receipt, error.into()),
                },
                Errand::Release { receipt, once } => Placed::Release(receipt, once),
            };
            if placed.send(outcome).await.is_err() {
                return;
            }
        }
    };
    let finish = async move {
        while let Some(placed) = waiting.recv().await {
            let report = match placed {
                Placed::Ticket(receipt, ticket) => {
                    let outcome = ticket.outcome().await.map(|_accepted| ());
                    Report::Submitted(receipt, outcome.map_err(Unaccepted::from))
                }
                Placed::Refused(receipt, refusal) => Report::Submitted(receipt, Err(refusal)),
                Placed::Release(receipt, once) => {
                    let outcome = inlet.release(once).await;
                    Report::Released(receipt, outcome.map_err(|error| AcceptError::Queue(error).into()))
                }
            };
            if reports.send(report).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(place, finish);
}
