//! What is there at this moment: the last value of each point, and the clients of the local broker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::lock;
use crate::clock::rfc3339;
use crate::message::{Quality, Reading, Value};

/// Points of one device that are kept; devices that name their own points could name ever more.
const POINTS_MAX: usize = 4096;

/// The points of one device, by name.
#[derive(Debug, Default)]
pub struct Points(Mutex<BTreeMap<Arc<str>, Seen>>);

#[derive(Debug, Clone)]
struct Seen {
    value: Value,
    unit: Option<Arc<str>>,
    quality: Quality,
    reason: Option<Arc<str>>,
    wall_ms: i64,
    /// When it was seen, in milliseconds since boot.
    mono_ms: u64,
}

/// One point in `/api/v1/points`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointSnapshot {
    /// As it is published; null = none.
    pub value: serde_json::Value,
    /// Of the value.
    pub unit: Option<String>,
    /// `good`, `uncertain` or `bad`.
    pub quality: &'static str,
    /// Why it is not good.
    pub reason: Option<String>,
    /// When it was read, RFC 3339.
    pub time: String,
    /// How long ago, in milliseconds.
    pub age_ms: u64,
}

impl Points {
    /// A value was seen, whether it is told or not.
    pub fn note(&self, reading: &Reading) {
        let mut points = lock(&self.0);
        if points.len() >= POINTS_MAX && !points.contains_key(&reading.point) {
            return;
        }
        let Reading { point, value, unit, quality, reason, stamp, .. } = reading;
        let seen = Seen {
            value: value.clone(),
            unit: unit.clone(),
            quality: *quality,
            reason: reason.clone(),
            wall_ms: stamp.wall_ms,
            mono_ms: stamp.mono_ms,
        };
        points.insert(point.clone(), seen);
    }

    /// Those that were seen after `after_ms`, in milliseconds since boot.
    pub fn snapshot(&self, now_ms: u64, after_ms: u64) -> BTreeMap<String, PointSnapshot> {
        let points = lock(&self.0);
        let later = points.iter().filter(|(_, seen)| after_ms == 0 || seen.mono_ms > after_ms);
        later.map(|(name, seen)| (name.to_string(), seen.snapshot(now_ms))).collect()
    }
}

impl Seen {
    fn snapshot(&self, now_ms: u64) -> PointSnapshot {
        let value = match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Uint(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(value) => value.as_str().into(),
        };
        PointSnapshot {
            value,
            unit: self.unit.as_deref().map(str::to_owned),
            quality: self.quality.name(),
            reason: self.reason.as_deref().map(str::to_owned),
            time: rfc3339(self.wall_ms),
            age_ms: now_ms.saturating_sub(self.mono_ms),
        }
    }
}

/// The clients that are connected, by client id. The broker bounds their number.
#[derive(Debug, Default)]
pub struct Clients(Mutex<BTreeMap<Arc<str>, ClientSnapshot>>);

/// One client in `/api/v1/clients`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientSnapshot {
    /// Whose session it is; empty = nobody in particular.
    pub user: String,
    /// Where it comes from.
    pub peer: String,
    /// `3.1.1` or `5`.
    pub protocol: &'static str,
    /// Its session is kept while it is away.
    pub is_kept: bool,
}

impl Clients {
    /// It is there.
    pub fn note(&self, client: &Arc<str>, snapshot: ClientSnapshot) {
        lock(&self.0).insert(client.clone(), snapshot);
    }

    /// It is gone.
    pub fn forget(&self, client: &Arc<str>) {
        lock(&self.0).remove(client);
    }

    /// All of them, at most `count_max`.
    pub fn snapshot(&self, count_max: usize) -> BTreeMap<String, ClientSnapshot> {
        lock(&self.0).iter().take(count_max).map(|(client, snapshot)| (client.to_string(), snapshot.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ClockState, Stamp};

    fn reading(point: &str, value: Value, mono_ms: u64) -> Reading {
        let stamp = Stamp { wall_ms: 0, mono_ms, clock: ClockState::Synced };
        let (device, point) = (Arc::from("press"), Arc::from(point));
        Reading { device, point, value, unit: None, quality: Quality::Good, reason: None, stamp, seq: 0 }
    }

    #[test]
    fn the_last_value_of_each_point_is_there_and_their_number_is_bounded() {
        let points = Points::default();
        points.note(&reading("a", Value::Int(1), 100));
        points.note(&reading("a", Value::Float(2.5), 200));
        points.note(&reading("b", Value::Text("on".to_owned()), 300));
        let all = points.snapshot(1000, 0);
        assert_eq!((&all["a"].value, all["a"].age_ms), (&serde_json::json!(2.5), 800));
        let later = points.snapshot(1000, 200);
        assert_eq!(later.keys().collect::<Vec<_>>(), ["b"]);
        for number in 0..5000 {
            points.note(&reading(&number.to_string(), Value::Null, 400));
        }
        assert_eq!(points.snapshot(1000, 0).len(), POINTS_MAX);
        points.note(&reading("a", Value::Int(7), 500));
        assert_eq!(points.snapshot(1000, 0)["a"].value, 7);
    }
}
