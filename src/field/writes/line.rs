//! A line's end of the way to the clerk: what it was given to do, and what it says of that.
//!
//! Promises: what was told twice is there once; a stop waits for what is being sent; whoever drops it has told nothing; a
//! line that is to end begins nothing more, and ends when nothing is under way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedRwLockReadGuard, RwLock, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{End, FromLine, Order, ToLine};
use crate::field::lane::{Lane, Move, Ticket};

/// The way to the clerk.
#[derive(Debug, Clone)]
pub(in crate::field) struct LineEnd {
    pub(in crate::field) number: usize,
    /// The clerk's side of it.
    pub(super) sender: mpsc::Sender<ToLine>,
    /// A line that is started again goes on reading it.
    pub(in crate::field) inbox: Arc<Mutex<mpsc::Receiver<ToLine>>>,
    pub(in crate::field) events: mpsc::Sender<FromLine>,
    /// Held for reading from before a write is sent until it has ended: a stop waits for that a little.
    pub(in crate::field) busy: Arc<RwLock<()>>,
}

/// The writes of a line.
pub(in crate::field) struct LineWrites {
    pub(in crate::field) lane: Lane,
    end: Option<LineEnd>,
    orders: HashMap<Ticket, Under>,
    /// Asks the line to end.
    leave: CancellationToken,
    /// The line is about to end: nothing more begins.
    is_closing: bool,
}

/// A write under way.
pub(in crate::field) struct Under {
    pub(in crate::field) order: Order,
    /// Requests that could not be sent.
    pub(in crate::field) attempts: u32,
    /// Why it is not sure that the device has written.
    pub(in crate::field) doubt: Option<String>,
    /// From before it is sent until it has ended.
    busy: Option<OwnedRwLockReadGuard<()>>,
}

impl LineWrites {
    pub(in crate::field) fn new(end: Option<LineEnd>, leave: CancellationToken) -> LineWrites {
        LineWrites { lane: Lane::default(), end, orders: HashMap::new(), leave, is_closing: false }
    }

    /// Says that the line has started, and forgets what was told before that.
    pub(in crate::field) async fn start(&mut self) {
        let Some(end) = &self.end else { return };
        let mut inbox = end.inbox.lock().await;
        while inbox.try_recv().is_ok() {}
        drop(inbox);
        self.tell(|line| FromLine::Started { line });
    }

    /// Whether the line is to end, and no write is under way. From when it is to end nothing more begins.
    pub(in crate::field) fn may_close(&mut self) -> bool {
        self.is_closing = self.leave.is_cancelled();
        self.is_closing && !self.lane.is_any_begun()
    }

    /// Waits for a message, and takes it, or until the line is to end. Dropped in the middle it has taken nothing.
    pub(in crate::field) async fn heed(&mut self, start: Instant) {
        let message = tokio::select! {
            message = self.message() => message,
            () = self.leave.cancelled(), if !self.is_closing => return,
        };
        self.take(message, start);
    }

    /// Waits for a message; for ever where there can be none.
    async fn message(&self) -> ToLine {
        let Some(end) = &self.end else { return std::future::pending().await };
        match end.inbox.lock().await.recv().await {
            Some(message) => message,
            None => std::future::pending().await,
        }
    }

    /// Takes the messages that are there already.
    pub(in crate::field) fn take_all(&mut self, start: Instant) {
        while let Some(message) = self.message_now() {
            self.take(message, start);
        }
    }

    fn message_now(&self) -> Option<ToLine> {
        self.end.as_ref()?.inbox.try_lock().ok()?.try_recv().ok()
    }

    fn take(&mut self, message: ToLine, start: Instant) {
        match message {
            ToLine::Write(order) => {
                self.lane.push(order.ticket, order.unit, order.expires.saturating_duration_since(start));
                let under = Under { order: *order, attempts: 0, doubt: None, busy: None };
                self.orders.entry(under.order.ticket).or_insert(under);
            }
            ToLine::Begin(ticket) => self.lane.may_begin(ticket),
            ToLine::Drop(ticket) => {
                self.lane.done(ticket);
                self.orders.remove(&ticket);
            }
        }
    }

    /// What the lane asks for; nothing that would begin where the line is about to end.
    pub(in crate::field) fn next(
        &self,
        now: Duration,
        is_poll_due: bool,
        ready_at: impl Fn(usize) -> Duration,
    ) -> Option<Move> {
        let next = self.lane.next(now, is_poll_due, ready_at);
        next.filter(|next| !(self.is_closing && matches!(next, Move::Ask(_))))
    }

    pub(in crate::field) fn under(&self, ticket: Ticket) -> Option<&Under> {
        self.orders.get(&ticket)
    }

    pub(in crate::field) fn under_mut(&mut self, ticket: Ticket) -> Option<&mut Under> {
        self.orders.get_mut(&ticket)
    }

    /// Lets a stop wait for this write. After a stop has come nothing is begun: this waits until the line is dropped.
    pub(in crate::field) async fn hold(&mut self, ticket: Ticket) {
        let (Some(end), Some(under)) = (&self.end, self.orders.get_mut(&ticket)) else { return };
        if under.busy.is_none() {
            under.busy = Some(end.busy.clone().read_owned().await);
        }
    }

    /// Asks whether a write may begin; false where nobody hears that.
    pub(in crate::field) fn ask(&mut self, ticket: Ticket) -> bool {
        let is_told = self.tell(|line| FromLine::Ask { line, ticket });
        if is_told {
            self.lane.asked(ticket);
        }
        is_told
    }

    fn tell(&self, event: impl FnOnce(usize) -> FromLine) -> bool {
        self.end.as_ref().is_some_and(|end| end.events.try_send(event(end.number)).is_ok())
    }

    pub(in crate::field) fn end(&mut self, ticket: Ticket, end: End) {
        self.lane.done(ticket);
        // Held until the clerk has been told, so that a stop does not come in between.
        let _under = self.orders.remove(&ticket);
        if !self.tell(|line| FromLine::Done { line, ticket, end }) {
            log::warn!("What became of a write finds no reader");
        }
    }
}
