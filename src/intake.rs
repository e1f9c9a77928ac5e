//! The one door: route → append → fan out.
//!
//! Promises:
//! - a message that a durable stream wants, or that is retained, is committed before its sender hears of it;
//! - a repeat of a QoS 2 message is answered again and handed to nobody;
//! - what a full queue drops still goes to live subscribers: local traffic never stops because the cloud is away;
//! - what came from an uplink never goes back to it.
//!
//! A QoS 0 message that no rule raises takes no turn through the queue: it goes to live subscribers, and to the uplinks
//! that want it as it is while they are connected. What is not kept of those is counted by client.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use log::debug;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::ForwardRule;
use crate::health::{Health, UplinkHealth};
use crate::message::{Body, Message, Origin, Qos, Stamp};
use crate::payload::json;
use crate::queue::{AppendError, Appended, Fate, Inlet, Once, Pending, Submission};
use crate::router::{Live, Router, RouterError};

/// QoS 0 messages that wait for one uplink.
const LANE_MESSAGES: usize = 256;

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

impl AcceptError {
    /// Whether it was refused only because the store is full: the sender may keep it and try again.
    pub fn is_full(&self) -> bool {
        matches!(self, AcceptError::Queue(AppendError::Full))
    }
}

/// What became of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Whether any stream or live subscriber wanted it; false = reason 0x10 for a version 5 publisher.
    pub wanted: bool,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    shared: Arc<Shared>,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uplinks = self.shared.lanes.iter().map(|lane| &lane.uplink);
        f.debug_list().entries(uplinks).finish()
    }
}

struct Shared {
    inlet: Inlet,
    router: Router,
    lanes: Vec<Lane>,
    /// Taken once each.
    ends: Mutex<BTreeMap<Arc<str>, mpsc::Receiver<LiveForward>>>,
    clock: Clock,
    health: Health,
}

/// The way of QoS 0 messages to one uplink.
struct Lane {
    uplink: Arc<str>,
    rules: Vec<ForwardRule>,
    sender: mpsc::Sender<LiveForward>,
    health: Arc<UplinkHealth>,
}

/// A message on its way through the door.
#[derive(Debug)]
pub struct Ticket {
    intake: Intake,
    message: Message,
    /// `None`: it takes no turn through the queue.
    pending: Option<Pending>,
}

impl Intake {
    /// A door to `inlet` and `router`, with the forward rules of each uplink in the order in which they decide.
    pub fn new(
        inlet: Inlet,
        router: Router,
        forwards: BTreeMap<Arc<str>, Vec<ForwardRule>>,
        clock: Clock,
        health: Health,
    ) -> Intake {
        let mut lanes = Vec::new();
        let mut ends = BTreeMap::new();
        for (uplink, rules) in forwards {
            let (sender, end) = mpsc::channel(LANE_MESSAGES);
            ends.insert(uplink.clone(), end);
            lanes.push(Lane { health: health.uplink(&uplink), uplink, rules, sender });
        }
        Intake { shared: Arc::new(Shared { inlet, router, lanes, ends: Mutex::new(ends), clock, health }) }
    }

    /// The clock of the gateway, for stamps of what enters here.
    pub fn now(&self) -> Stamp {
        self.shared.clock.now()
    }

    /// Takes a message in: comes back as soon as it has its place in the order of the queue (at once for a QoS 0
    /// message that no rule raises). One task's messages keep their order when it awaits the outcomes in order.
    pub async fn submit(&self, message: Message, once: Option<Once>) -> Result<Ticket, AcceptError> {
        let pending = if once.is_some() || self.needs_queue(&message) {
            let submission = Submission { message: message.clone(), once };
            Some(self.shared.inlet.begin_append(submission).await.map_err(AcceptError::Queue)?)
        } else {
            None
        };
        Ok(Ticket { intake: self.clone(), message, pending })
    }

    /// The QoS 0 messages that forward rules of `uplink` want as they come: bounded, dropped and counted per client
    /// while the uplink is not connected. Taken once.
    pub fn live_lane(&self, uplink: &Arc<str>) -> Option<mpsc::Receiver<LiveForward>> {
        self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner).remove(uplink)
    }

    fn needs_queue(&self, message: &Message) -> bool {
        // A reading gets its number and its name from the queue, whoever wants it.
        let is_reading = matches!(message.body, Body::Reading(_));
        if message.qos != Qos::AtMostOnce || message.retain || is_reading {
            return true;
        }
        self.wanting(message).any(|(_, rule)| rule.qos.is_some_and(|qos| qos != Qos::AtMostOnce))
    }

    /// The uplinks that want `message`, each with the rule that decides.
    fn wanting<'s>(&'s self, message: &'s Message) -> impl Iterator<Item = (&'s Lane, &'s ForwardRule)> {
        let lanes = self.shared.lanes.iter().filter(|lane| !is_from(message, &lane.uplink));
        lanes.filter_map(|lane| Some((lane, lane.rules.iter().find(|rule| rule.filter.matches(&message.topic))?)))
    }

    /// Hands a QoS 0 message to the uplinks that want it as it is; true when any does.
    fn forward_live(&self, message: &Message) -> bool {
        let mut is_wanted = false;
        for (lane, rule) in self.wanting(message) {
            is_wanted = true;
            let topic = match rule.topic.apply(&rule.filter, &message.topic) {
                Some(Ok(topic)) => topic,
                Some(Err(error)) => {
                    debug!(uplink = lane.uplink.as_ref(), error:% = error; "A rule made no topic of a message");
                    continue;
                }
                None => continue,
            };
            let is_connected = lane.health.connected.load(std::sync::atomic::Ordering::Relaxed);
            if !is_connected || lane.sender.try_send(LiveForward { message: message.clone(), topic }).is_err() {
                self.shared.health.add_unkept(&source_name(&message.origin));
            }
        }
        is_wanted
    }

    async fn fan_out(&self, message: Message, appended: Option<&Appended>) -> Result<bool, AcceptError> {
        let router = &self.shared.router;
        if !router.is_wanted(&message.topic) {
            return Ok(false);
        }
        let payload = match message.body {
            Body::Bytes(bytes) => bytes,
            Body::Reading(mut reading) => match appended {
                Some(appended) => {
                    reading.seq = appended.reading_seq;
                    json::encode(&reading, &appended.id, 0)
                }
                // Readings always take their turn through the queue.
                None => Bytes::new(),
            },
        };
        let publisher = match message.origin {
            Origin::Client(client) => Some(client),
            Origin::Field | Origin::Uplink(_) | Origin::Gateway => None,
        };
        let (topic, qos, retain) = (message.topic, message.qos, message.retain);
        let live = Live { topic, qos, retain, payload, properties: message.properties, publisher };
        router.publish(live).await.map_err(AcceptError::Router)?;
        Ok(true)
    }
}

impl Ticket {
    /// Waits for the commit where there is one, then hands the message to live subscribers. From here on it may be
    /// acknowledged.
    pub async fn outcome(self) -> Result<Accepted, AcceptError> {
        let Ticket { intake, message, pending } = self;
        let Some(pending) = pending else {
            let is_forwarded = intake.forward_live(&message);
            let is_live = intake.fan_out(message, None).await?;
            return Ok(Accepted { wanted: is_forwarded || is_live });
        };
        let appended = pending.outcome().await.map_err(AcceptError::Queue)?;
        let is_kept = match appended.fate {
            // Answered again; who wanted it has it.
            Fate::Duplicate => return Ok(Accepted { wanted: true }),
            Fate::Stored { streams, .. } => streams > 0,
            Fate::Unwanted => false,
            // A stream wanted it, or there would have been nothing to drop.
            Fate::Dropped(_) => true,
        };
        let is_live = intake.fan_out(message, Some(&appended)).await?;
        Ok(Accepted { wanted: is_kept || is_live })
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

fn is_from(message: &Message, uplink: &Arc<str>) -> bool {
    matches!(&message.origin, Origin::Uplink(name) if name == uplink)
}

fn source_name(origin: &Origin) -> Arc<str> {
    match origin {
        Origin::Client(client) => client.clone(),
        Origin::Uplink(uplink) => uplink.clone(),
        Origin::Field => Arc::from("(field)"),
        Origin::Gateway => Arc::from("(gateway)"),
    }
}
