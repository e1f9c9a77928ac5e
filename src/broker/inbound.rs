//! What a client has sent and is not answered yet: one line, answered in the order in which it came.
//!
//! Promises: nothing is acknowledged before `intake` says so; a repeat of a QoS 2 message is answered only after the
//! first one; work that was begun is finished although its connection is gone, only the answer is left out then.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::warn;
use tokio::time::{self, Instant};

use super::{BrokerLimits, Services};
use crate::intake::{AcceptError, Accepted, Ticket};
use crate::message::{Body, Filter, Message, Qos};
use crate::mqtt::{PacketId, ReasonCode, Suback, Unsuback, Version};
use crate::queue::{AppendError, Once, RetainedFound, SessionNumber};

/// A future that the session polls beside its other work.
pub(super) type Running<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a connection and the work that it has begun know of each other.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// A 3.1.1 message waits for space in the store: nothing more is read meanwhile.
    pub held: AtomicBool,
    /// The connection is gone: nobody waits for the answer.
    pub gone: AtomicBool,
}

/// Which connection and which life of the session a piece of work belongs to: a clean start is a new life, whose packet
/// ids have nothing to do with those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    pub connection: u64,
    pub life: u64,
}

/// A PUBLISH that has passed the checks.
#[derive(Debug)]
pub(super) struct Arrival {
    pub message: Message,
    pub qos: Qos,
    /// There exactly when `qos` is above 0.
    pub packet_id: Option<PacketId>,
    pub once: Option<Once>,
}

/// A piece of work whose answer has its place in the line.
#[derive(Debug)]
pub(super) enum Work {
    Publish {
        arrival: Box<Arrival>,
        ticket: Result<Box<Ticket>, AcceptError>,
        version: Version,
        signs: Arc<Signs>,
    },
    /// A QoS 2 message that came before.
    Repeat {
        packet_id: PacketId,
    },
    /// A message that is not taken, and why.
    Refuse {
        qos: Qos,
        packet_id: PacketId,
        reason: ReasonCode,
    },
    Release {
        packet_id: PacketId,
        once: Option<Once>,
    },
    /// The session ends, or starts anew: its received packet ids are void.
    Forget {
        number: SessionNumber,
    },
    Will {
        message: Message,
    },
}

impl Arrival {
    fn bytes(&self) -> usize {
        match &self.message.body {
            Body::Bytes(bytes) => bytes.len(),
            Body::Reading(_) => 0,
        }
    }
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Work::Publish { arrival, .. } => arrival.bytes(),
            _ => 0,
        }
    }
}

/// Work that is done.
#[derive(Debug)]
pub(super) enum Settled {
    Publish { qos: Qos, packet_id: Option<PacketId>, result: Result<Accepted, AcceptError> },
    Repeat { packet_id: PacketId },
    Refuse { qos: Qos, packet_id: PacketId, reason: ReasonCode },
    Release { packet_id: PacketId, result: Result<bool, AppendError> },
    Nothing,
}

/// The line of one session.
pub(super) struct Inbound {
    line: VecDeque<(Mark, Work)>,
    /// Of the messages in it.
    line_bytes: usize,
    head: Option<(Mark, Running<Settled>)>,
    /// QoS 2 packet ids between PUBLISH and PUBREL.
    received: HashSet<PacketId>,
    /// The session's name in the table of received ids; asked for with the first QoS 2 message.
    pub number: Option<SessionNumber>,
}

impl Inbound {
    pub(super) fn new() -> Inbound {
        Inbound { line: VecDeque::new(), line_bytes: 0, head: None, received: HashSet::new(), number: None }
    }

    pub(super) fn len(&self) -> usize {
        self.line.len() + usize::from(self.head.is_some())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether more is read while this waits. Of short messages many are, so that they share a commit.
    pub(super) fn has_room(&self, limits: &BrokerLimits, share: usize) -> bool {
        let is_short = self.len() < limits.inbound_line && self.line_bytes < limits.inbound_bytes;
        self.line.is_empty() || self.line_bytes < share && (is_short || self.len() < 2 * usize::from(limits.inbound))
    }

    pub(super) fn push(&mut self, mark: Mark, work: Work) {
        self.line_bytes += work.bytes();
        self.line.push_back((mark, work));
    }

    /// Begins the work at the front, if none is begun.
    pub(super) fn start(&mut self, services: &Arc<Services>) {
        if self.head.is_none()
            && let Some((mark, work)) = self.line.pop_front()
        {
            self.line_bytes = self.line_bytes.saturating_sub(work.bytes());
            self.head = Some((mark, Box::pin(settle(work, services.clone()))));
        }
    }

    /// The next piece of work, if it is done or ends at once.
    pub(super) fn settled_now(&mut self, services: &Arc<Services>) -> Option<(Mark, Settled)> {
        if self.head.is_none()
            && let Some((mark, Work::Publish { arrival, ticket: Ok(ticket), .. })) = self.line.front_mut()
            && let Some(accepted) = ticket.outcome_now()
        {
            let settled = Settled::Publish { qos: arrival.qos, packet_id: arrival.packet_id, result: Ok(accepted) };
            self.line_bytes = self.line_bytes.saturating_sub(arrival.bytes());
            let mark = *mark;
            self.line.pop_front();
            return Some((mark, settled));
        }
        self.start(services);
        let (mark, future) = self.head.as_mut()?;
        let settled = (*mark, poll_now(future.as_mut())?);
        self.head = None;
        Some(settled)
    }

    /// Waits for the work at the front; for ever when there is none. Cancel safe.
    pub(super) async fn settled(&mut self) -> (Mark, Settled) {
        let Some((mark, future)) = &mut self.head else { return std::future::pending().await };
        let settled = (*mark, future.await);
        self.head = None;
        settled
    }

    pub(super) fn has_received(&self, packet_id: PacketId) -> bool {
        self.received.contains(&packet_id)
    }

    /// How many messages wait for their PUBREL.
    pub(super) fn received(&self) -> usize {
        self.received.len()
    }

    pub(super) fn receive(&mut self, packet_id: PacketId) {
        self.received.insert(packet_id);
    }

    /// Whether it was there.
    pub(super) fn forget(&mut self, packet_id: PacketId) -> bool {
        self.received.remove(&packet_id)
    }

    /// The session starts anew or ends.
    pub(super) fn reset(&mut self, mark: Mark) {
        self.received.clear();
        if let Some(number) = self.number.take() {
            self.push(mark, Work::Forget { number });
        }
    }
}

/// What `future` has to say at once; polled again later it goes on.
pub(super) fn poll_now<F: Future + ?Sized>(future: Pin<&mut F>) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

async fn settle(work: Work, services: Arc<Services>) -> Settled {
    match work {
        Work::Publish { arrival, ticket, version, signs } => {
            let (qos, packet_id) = (arrival.qos, arrival.packet_id);
            let result = publish(arrival, ticket, version, &signs, &services).await;
            signs.held.store(false, Ordering::Relaxed);
            Settled::Publish { qos, packet_id, result }
        }
        Work::Repeat { packet_id } => Settled::Repeat { packet_id },
        Work::Refuse { qos, packet_id, reason } => Settled::Refuse { qos, packet_id, reason },
        Work::Release { packet_id, once } => {
            let result = match once {
                Some(once) => services.inlet.release(once).await,
                None => Ok(false),
            };
            Settled::Release { packet_id, result }
        }
        Work::Forget { number } => {
            if let Err(error) = services.inlet.close_session(number).await {
                // They are void at the next start anyway.
                warn!(session = number.0, error:% = error; "Received packet ids of an ended session were kept");
            }
            Settled::Nothing
        }
        Work::Will { message } => {
            let topic = message.topic.clone();
            let end = match services.intake.submit(message, None).await {
                Ok(ticket) => ticket.outcome().await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = end {
                warn!(topic = topic.as_str(), error:% = error; "A will was not published");
            }
            Settled::Nothing
        }
    }
}

async fn publish(
    arrival: Box<Arrival>,
    ticket: Result<Box<Ticket>, AcceptError>,
    version: Version,
    signs: &Signs,
    services: &Services,
) -> Result<Accepted, AcceptError> {
    // Version 3.1.1 has no word for "not now": the message stays the head of its session until there is space.
    let waits = version == Version::V311 && arrival.qos != Qos::AtMostOnce;
    let Arrival { message, once, .. } = *arrival;
    let again = waits.then_some(message);
    let mut result = match ticket {
        Ok(ticket) => ticket.outcome().await,
        Err(error) => Err(error),
    };
    let until = Instant::now() + services.limits.full_patience;
    while let (Err(error), Some(message)) = (&result, &again) {
        let is_over = Instant::now() >= until || signs.gone.load(Ordering::Relaxed);
        if !error.is_full() || is_over {
            break;
        }
        signs.held.store(true, Ordering::Relaxed);
        time::sleep(services.limits.full_retry).await;
        result = match services.intake.submit(message.clone(), once).await {
            Ok(ticket) => ticket.outcome().await,
            Err(error) => Err(error),
        };
    }
    result
}

/// Work that must end before the next packet of the client is looked at.
#[derive(Debug)]
pub(super) enum Begun {
    /// A message has its place in the queue's order, or has not got one.
    Submitted { number: Option<SessionNumber>, arrival: Box<Arrival>, ticket: Result<Box<Ticket>, AcceptError> },
    /// Retained messages for new subscriptions, behind their SUBACK.
    Retained { suback: Suback, found: Vec<(Filter, RetainedFound)> },
    /// Subscriptions are gone.
    Unsubscribed { unsuback: Unsuback },
    /// What was asked for could not be kept.
    Failed,
}

/// Hands a message to `intake`; `number` is the session's, where it has one.
pub(super) async fn submit(services: Arc<Services>, number: Option<SessionNumber>, mut arrival: Box<Arrival>) -> Begun {
    let mut number = number;
    if arrival.qos == Qos::ExactlyOnce && number.is_none() {
        match services.inlet.open_session().await {
            Ok(opened) => number = Some(opened),
            Err(error) => return Begun::Submitted { number, arrival, ticket: Err(AcceptError::Queue(error)) },
        }
    }
    if let (Qos::ExactlyOnce, Some(session), Some(packet_id)) = (arrival.qos, number, arrival.packet_id) {
        arrival.once = Some(Once::Packet { session, packet_id: packet_id.get() });
    }
    let ticket = services.intake.submit(arrival.message.clone(), arrival.once).await.map(Box::new);
    Begun::Submitted { number, arrival, ticket }
}

/// Looks for the retained messages of `filters`.
pub(super) async fn retained(services: Arc<Services>, suback: Suback, filters: Vec<Filter>) -> Begun {
    let mut found = Vec::new();
    for filter in filters {
        match services.inlet.retained(&filter, services.limits.retained_messages).await {
            Ok(retained) => found.push((filter, retained)),
            Err(error) => {
                warn!(filter = filter.as_str(), error:% = error; "Retained messages could not be looked up");
            }
        }
    }
    Begun::Retained { suback, found }
}
