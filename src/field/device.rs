//! One device as the gateway tells of it: its points, what was told of them last, its health.
//!
//! Promises: a point that fails is told once, then at its heartbeat, then when it is good again; a change of the
//! device's state is one line in the journal, and a retained message for local clients. Never talks to the device: lines do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::{info, warn};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock::{Clock, rfc3339};
use crate::config::{PointTopic, Report};
use crate::field::FieldError;
use crate::field::report::Reporter;
use crate::health::{DeviceHealth, DeviceState, Silence};
use crate::message::{Body, Message, Origin, Qos, Quality, Reading, Stamp, Topic, Value};

/// How the reason begins when a device was asked and said nothing.
const NO_ANSWER: &str = "no answer";

/// Least time between two messages about one device's state.
const STATE_PAUSE: Duration = Duration::from_secs(1);

/// What is told of a device's state.
#[derive(Debug, Serialize)]
struct StateMessage<'d> {
    ts: String,
    state: DeviceState,
    reason: Option<&'d str>,
    last_good: Option<String>,
}

/// What all devices share: where readings go, and the clock that stamps them.
#[derive(Debug, Clone)]
pub(super) struct Desk {
    pub(super) outbox: mpsc::Sender<Vec<Message>>,
    pub(super) clock: Clock,
}

/// A device as configured.
#[derive(Debug, Clone)]
pub(super) struct DeviceSpec {
    pub(super) name: Arc<str>,
    pub(super) qos: Qos,
    pub(super) topic: PointTopic,
    /// Where its state is told.
    pub(super) state_topic: Topic,
    pub(super) points: Vec<PointSpec>,
    pub(super) health: Arc<DeviceHealth>,
}

impl DeviceSpec {
    /// The device is not there any more: its retained state goes.
    pub(super) fn farewell(&self, desk: &Desk) -> Message {
        Message {
            topic: self.state_topic.clone(),
            qos: Qos::AtLeastOnce,
            retain: true,
            properties: None,
            body: Body::Bytes(bytes::Bytes::new()),
            origin: Origin::Gateway,
            received: desk.clock.now(),
        }
    }
}

/// A point as configured, with its topic.
#[derive(Debug, Clone)]
pub(super) struct PointSpec {
    pub(super) name: Arc<str>,
    pub(super) topic: Topic,
    pub(super) unit: Option<Arc<str>>,
    pub(super) report: Report,
    /// Nothing is ever read of it: it can only be written.
    pub(super) is_write_only: bool,
}

/// What was seen of one point.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) value: Value,
    pub(super) quality: Quality,
    pub(super) reason: Option<Arc<str>>,
}

impl Seen {
    pub(super) fn good(value: Value) -> Seen {
        Seen { value, quality: Quality::Good, reason: None }
    }

    pub(super) fn bad(reason: impl Into<Arc<str>>) -> Seen {
        Seen { value: Value::Null, quality: Quality::Bad, reason: Some(reason.into()) }
    }
}

/// Where the gateway tells local clients of a device's state.
pub(super) fn state_topic(gateway: &str, device: &Arc<str>) -> Result<Topic, FieldError> {
    let text = format!("tidegate/{gateway}/device/{device}");
    Topic::new(&text).map_err(|source| FieldError::StateTopic { device: device.clone(), source })
}

/// A device while its line runs.
#[derive(Debug)]
pub(super) struct Device {
    spec: DeviceSpec,
    desk: Desk,
    /// One for each point, in the same order.
    told: Vec<Told>,
    batch: Vec<Message>,
    state: DeviceState,
    state_reason: Option<Arc<str>>,
    /// What of it was told last, and when.
    state_told: Option<(DeviceState, Instant)>,
    /// When the line was started.
    began: Stamp,
}

#[derive(Debug)]
struct Told {
    reporter: Reporter,
    failing: Option<Arc<str>>,
}

/// The topic of a point.
pub(super) fn point_topic(template: &PointTopic, device: &str, point: &str) -> Result<Topic, FieldError> {
    // One pass, so that a point whose name contains a placeholder is not filled in twice.
    let mut text = String::new();
    let mut rest = template.0.as_str();
    while let Some(place) = rest.find('{') {
        let (before, from) = rest.split_at(place);
        text.push_str(before);
        let filled = [("{device}", device), ("{point}", point)];
        match filled.iter().find_map(|(name, value)| Some((from.strip_prefix(name)?, value))) {
            Some((after, value)) => {
                text.push_str(value);
                rest = after;
            }
            None => {
                text.push('{');
                rest = from.strip_prefix('{').unwrap_or_default();
            }
        }
    }
    text.push_str(rest);
    Topic::new(&text).map_err(|source| FieldError::Topic { device: Arc::from(device), point: Arc::from(point), source })
}

impl Device {
    pub(super) fn new(spec: DeviceSpec, desk: Desk) -> Device {
        let told = spec.points.iter().map(Told::of).collect();
        let began = desk.clock.now();
        Device {
            spec,
            desk,
            told,
            batch: Vec::new(),
            state: DeviceState::Starting,
            state_reason: None,
            state_told: None,
            began,
        }
    }

    pub(super) fn health(&self) -> &DeviceHealth {
        &self.spec.health
    }

    pub(super) fn state(&self) -> DeviceState {
        self.state
    }

    pub(super) fn point_count(&self) -> usize {
        self.spec.points.len()
    }

    /// The number of the point of this name.
    pub(super) fn point(&self, name: &str) -> Option<usize> {
        self.spec.points.iter().position(|point| &*point.name == name)
    }

    /// Adds a point that the device itself named; `None` when its name cannot stand in a topic.
    pub(super) fn add_point(&mut self, name: &str) -> Option<usize> {
        let topic = point_topic(&self.spec.topic, &self.spec.name, name).ok()?;
        let point =
            PointSpec { name: Arc::from(name), topic, unit: None, report: Report::default(), is_write_only: false };
        self.told.push(Told::of(&point));
        self.spec.points.push(point);
        Some(self.spec.points.len() - 1)
    }

    /// Takes note of what was seen of a point; it goes out with the next `send` if it is to be told.
    pub(super) fn see(&mut self, point: usize, seen: Seen, stamp: Stamp, now: Duration) {
        let (Some(told), Some(spec)) = (self.told.get_mut(point), self.spec.points.get(point)) else { return };
        told.failing = (seen.quality == Quality::Bad).then(|| seen.reason.clone()).flatten();
        let is_told = told.reporter.tell(&seen.value, seen.quality, now);
        self.spec.health.count_read(!is_told);
        let reading = Reading {
            device: self.spec.name.clone(),
            point: spec.name.clone(),
            value: seen.value,
            unit: spec.unit.clone(),
            quality: seen.quality,
            reason: seen.reason,
            seq: 0,
            stamp,
        };
        self.spec.health.points.note(&reading);
        if !is_told {
            return;
        }
        self.batch.push(Message {
            topic: spec.topic.clone(),
            qos: self.spec.qos,
            retain: false,
            properties: None,
            body: Body::Reading(reading),
            origin: Origin::Field,
            received: stamp,
        });
    }

    /// None of the points could be read.
    pub(super) fn fail_all(&mut self, reason: &Arc<str>, now: Duration) {
        let stamp = self.desk.clock.now();
        for point in 0..self.told.len() {
            if self.spec.points.get(point).is_some_and(|spec| !spec.is_write_only) {
                self.see(point, Seen::bad(reason.clone()), stamp, now);
            }
        }
    }

    /// Tells failing points again whose heartbeat has come.
    pub(super) fn tell_again(&mut self, now: Duration) {
        if self.next_heartbeat().is_none_or(|at| at > now) {
            return;
        }
        let stamp = self.desk.clock.now();
        for point in 0..self.told.len() {
            if let Some(reason) = self.told.get(point).and_then(|told| told.failing.clone()) {
                self.see(point, Seen::bad(reason), stamp, now);
            }
        }
    }

    /// When the first failing point is to be told again.
    pub(super) fn next_heartbeat(&self) -> Option<Duration> {
        self.told.iter().filter(|told| told.failing.is_some()).filter_map(|told| told.reporter.bad_again()).min()
    }

    /// Why the first failing point fails.
    pub(super) fn failing(&self) -> Option<Arc<str>> {
        self.told.iter().find_map(|told| told.failing.clone())
    }

    /// Sets the state; a change is one line in the journal.
    pub(super) fn set_state(&mut self, state: DeviceState, reason: Option<Arc<str>>) {
        self.spec.health.set(state, reason.as_deref().map(str::to_owned));
        let former = std::mem::replace(&mut self.state, state);
        self.state_reason.clone_from(&reason);
        if former == state {
            return;
        }
        self.note_silence(former, reason.as_deref());
        let device = &*self.spec.name;
        let reason = reason.as_deref().unwrap_or_default();
        match state {
            DeviceState::Good if former == DeviceState::Starting => info!(device; "The device answers"),
            DeviceState::Good => info!(device; "The device is well again"),
            DeviceState::Degraded if reason.starts_with(NO_ANSWER) => {
                warn!(device, reason; "The device missed an answer")
            }
            DeviceState::Degraded => warn!(device, reason; "The device answers only in part"),
            DeviceState::Dead => warn!(device, reason; "The device does not answer"),
            DeviceState::Starting => {}
        }
    }

    /// Tells the ledger when nothing was measured: from the last good answer on, or from the start.
    fn note_silence(&self, former: DeviceState, reason: Option<&str>) {
        let health = &self.spec.health;
        let now = self.desk.clock.now();
        if self.state == DeviceState::Dead {
            let from = match health.last_good_ms.load(Ordering::Relaxed) {
                0 => self.began,
                wall_ms => Stamp { wall_ms, ..now },
            };
            health.note_silence(Silence::Began { from, reason: reason.unwrap_or("no answer").to_owned() });
        } else if former == DeviceState::Dead {
            health.note_silence(Silence::Ended { at: now });
        }
    }

    /// Counts an exchange; `fault` = by what name it failed.
    pub(super) fn count(&self, fault: Option<&'static str>, malformed: bool) {
        let health = &self.spec.health;
        health.exchanges.fetch_add(1, Ordering::Relaxed);
        if let Some(fault) = fault {
            health.failures.fetch_add(1, Ordering::Relaxed);
            health.count_fault(fault);
        }
        health.malformed.fetch_add(u64::from(malformed), Ordering::Relaxed);
    }

    /// Hands over what is to be told; waits while the outbox is full. What it waits for is bounded by the queue, and
    /// a line that waits skips polls. An outbox without a reader ends with its stage.
    pub(super) async fn send(&mut self) {
        self.tell_state();
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        if self.desk.outbox.send(batch).await.is_err() {
            log::debug!("Readings found no reader: the stage is ending");
        }
    }
}

impl Device {
    /// Tells a changed state to local clients, retained. A device that changes with every poll is told once in
    /// `STATE_PAUSE`, with what it is by then: each retained message is a write to the disk.
    fn tell_state(&mut self) {
        let (state, now) = (self.state, Instant::now());
        let is_due = match self.state_told {
            None => state != DeviceState::Starting,
            Some((told, at)) => told != state && now.saturating_duration_since(at) >= STATE_PAUSE,
        };
        if !is_due {
            return;
        }
        self.state_told = Some((state, now));
        let stamp = self.desk.clock.now();
        let last_good = match self.spec.health.last_good_ms.load(Ordering::Relaxed) {
            0 => None,
            wall_ms => Some(rfc3339(wall_ms)),
        };
        let told = StateMessage { ts: rfc3339(stamp.wall_ms), state, reason: self.state_reason.as_deref(), last_good };
        let Ok(body) = serde_json::to_vec(&told) else { return };
        self.batch.push(Message {
            topic: self.spec.state_topic.clone(),
            qos: Qos::AtLeastOnce,
            retain: true,
            properties: None,
            body: Body::Bytes(body.into()),
            origin: Origin::Gateway,
            received: stamp,
        });
    }
}

impl Told {
    fn of(point: &PointSpec) -> Told {
        Told { reporter: Reporter::new(point.report), failing: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_filled_in_once() {
        let topic = |template: &str, device, point| {
            point_topic(&PointTopic(template.into()), device, point).map(|topic| topic.as_str().to_owned())
        };
        assert_eq!(topic("field/{device}/{point}", "chiller", "t1").unwrap(), "field/chiller/t1");
        assert_eq!(topic("{point}{point}/{x}{", "d", "{device}").unwrap(), "{device}{device}/{x}{");
        assert!(matches!(topic("{point}", "d", "a+b"), Err(FieldError::Topic { .. })));
    }
}
