//! The one door: route → append → fan out.
//!
//! Promises: a message that a durable stream wants is committed before its sender hears of it; what a full queue
//! drops still goes to live subscribers; what came from an uplink never goes back to it.

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::mpsc;

use crate::message::Message;
use crate::queue::{AppendError, Once};
use crate::router::RouterError;

/// Why a message was not accepted: its sender must keep it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AcceptError {
    /// The queue did not take it.
    #[error("the message was not stored")]
    Queue(#[source] AppendError),
    /// The router is gone; the process is about to end.
    #[error("the message was not handed on")]
    Router(#[source] RouterError),
}

/// What became of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Whether any stream or live subscriber wanted it; false = reason 0x10 for a version 5 publisher.
    pub wanted: bool,
}

/// The door. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake {
    _todo: (),
}

/// A message on its way through the door.
#[derive(Debug)]
pub struct Ticket {
    _todo: (),
}

impl Intake {
    /// Takes a message in: comes back as soon as it has its place in the order of the queue (at once for a QoS 0
    /// message that no rule raises). One task's messages keep their order when it awaits the outcomes in order.
    pub async fn submit(&self, message: Message, once: Option<Once>) -> Result<Ticket, AcceptError> {
        let _ = (message, once);
        Ok(Ticket { _todo: () })
    }

    /// The QoS 0 messages that forward rules of `uplink` want as they come: bounded, dropped and counted per client
    /// while the uplink is not connected. Taken once.
    pub fn live_lane(&self, uplink: &Arc<str>) -> Option<mpsc::Receiver<LiveForward>> {
        let _ = uplink;
        None
    }
}

impl Ticket {
    /// Waits for the commit where there is one, then hands the message to live subscribers. From here on it may be
    /// acknowledged.
    pub async fn outcome(self) -> Result<Accepted, AcceptError> {
        Ok(Accepted { wanted: false })
    }
}

/// A QoS 0 message for an uplink.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveForward {
    /// As published locally.
    pub message: Message,
    /// Its topic at the cloud.
    pub topic: crate::message::Topic,
}
