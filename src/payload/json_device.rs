//! What a device said in one poll as one JSON object: `{"ts", "device", "values": {point: value}, "units"?, "quality"?,
//! "reason"?, "late_ms"?, "seq": {…}, "id", "ids": {…}, "clock"?, …}`. Pure.
//!
//! `quality` and `reason` have the points that are not good, `late_ms` those that were read so much later than `ts`. The
//! id of a point's reading is `id`, a dot and the point's number in `ids`. Clock and times are those of `json`.

use std::collections::HashSet;

use bytes::Bytes;
use serde::{Serialize, Serializer};

use super::Outgoing;
use super::json::JsonValue;
use super::time::Time;
use crate::clock::rfc3339;
use crate::message::Quality;

#[derive(Serialize)]
struct Object<'a> {
    ts: String,
    device: &'a str,
    values: Points<'a, JsonValue<'a>>,
    #[serde(skip_serializing_if = "Points::is_empty")]
    units: Points<'a, &'a str>,
    #[serde(skip_serializing_if = "Points::is_empty")]
    quality: Points<'a, &'static str>,
    #[serde(skip_serializing_if = "Points::is_empty")]
    reason: Points<'a, &'a str>,
    #[serde(skip_serializing_if = "Points::is_empty")]
    late_ms: Points<'a, i64>,
    seq: Points<'a, u64>,
    id: String,
    ids: Points<'a, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts_error_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts_before: Option<String>,
}

/// Something of each point, in the order of the readings.
struct Points<'a, T>(Vec<(&'a str, T)>);

impl<T> Points<'_, T> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Serialize> Serialize for Points<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(point, value)| (point, value)))
    }
}

/// Whether `next` belongs into the object of `first`: of the same device and start, by a clock in the same state, within
/// `within_ms` of it. That its point is not in there yet is for the caller to see.
pub fn is_kin(first: Outgoing<'_>, next: Outgoing<'_>, within_ms: i64) -> bool {
    let (one, other) = (Time::new(first.reading.stamp, first.timing), Time::new(next.reading.stamp, next.timing));
    first.reading.device == next.reading.device
        && (first.id.gateway == next.id.gateway && first.id.store == next.id.store && first.id.start == next.id.start)
        && (one.clock.name(), one.after_ms, one.before_ms) == (other.clock.name(), other.after_ms, other.before_ms)
        && (0..=within_ms).contains(&(other.wall_ms - one.wall_ms))
}

/// One object. Readings that are not of one poll, which nobody sends together, would be an array of objects.
pub(super) fn encode(readings: &[Outgoing<'_>]) -> Bytes {
    let mut objects = Vec::new();
    let mut rest = readings;
    while let [first, later @ ..] = rest {
        let mut points = HashSet::from([&*first.reading.point]);
        let more =
            later.iter().take_while(|next| is_kin(*first, **next, i64::MAX) && points.insert(&next.reading.point));
        let (now, then) = rest.split_at(1 + more.count());
        objects.push(object(*first, now));
        rest = then;
    }
    if let [one] = objects.as_slice() {
        return one.clone();
    }
    super::json::array(objects.into_iter())
}

fn object(first: Outgoing<'_>, readings: &[Outgoing<'_>]) -> Bytes {
    fn points<'a, T>(readings: &[Outgoing<'a>], of: impl Fn(&Outgoing<'a>) -> Option<T>) -> Points<'a, T> {
        Points(readings.iter().filter_map(|one| Some((&*one.reading.point, of(one)?))).collect())
    }
    let time = Time::new(first.reading.stamp, first.timing);
    let later = |one: &Outgoing<'_>| Time::new(one.reading.stamp, one.timing).wall_ms - time.wall_ms;
    let error_ms = readings.iter().filter_map(|one| Time::new(one.reading.stamp, one.timing).error_ms()).max();
    let id = first.id;
    let object = Object {
        ts: rfc3339(time.wall_ms),
        device: &first.reading.device,
        values: points(readings, |one| Some(JsonValue::of(&one.reading.value))),
        units: points(readings, |one| one.reading.unit.as_deref()),
        quality: points(readings, |one| {
            Some(one.reading.quality.name()).filter(|_| one.reading.quality != Quality::Good)
        }),
        reason: points(readings, |one| one.reading.reason.as_deref()),
        late_ms: points(readings, |one| Some(later(one)).filter(|late| *late != 0)),
        seq: points(readings, |one| Some(one.reading.seq)),
        id: format!("{}.{:012x}.{}", id.gateway, id.store, id.start),
        ids: points(readings, |one| Some(one.id.counter)),
        clock: time.clock_name(),
        ts_error_ms: error_ms,
        ts_after: time.after_ms.map(rfc3339),
        ts_before: time.before_ms.map(rfc3339),
    };
    // Strings, numbers and maps of them: there is nothing in it that cannot be written.
    Bytes::from(serde_json::to_vec(&object).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Value;
    use crate::payload::samples::{NOON, bad, outgoing, sample};

    #[test]
    fn a_poll_is_one_object_and_each_reading_has_its_number_and_its_id() {
        let mut supply = sample("chiller", "supply", Value::Float(6.5), 7, NOON);
        supply.reading.unit = None;
        let samples = [
            supply,
            sample("chiller", "return", Value::Float(12.0), 8, NOON + 35),
            bad(sample("chiller", "flow", Value::Null, 10, NOON)),
        ];
        let expected = concat!(
            r#"{"ts":"2026-11-23T09:20:00.123Z","device":"chiller","values":{"supply":6.5,"return":12.0,"flow":null},"#,
            r#""units":{"return":"°C","flow":"°C"},"quality":{"flow":"bad"},"reason":{"flow":"no answer within 1 s"},"#,
            r#""late_ms":{"return":35},"seq":{"supply":7,"return":8,"flow":10},"#,
            r#""id":"g7.000000000001.2","ids":{"supply":7,"return":8,"flow":10}}"#,
        );
        assert_eq!(std::str::from_utf8(&encode(&outgoing(&samples))).unwrap(), expected);
    }

    #[test]
    fn what_is_not_of_one_poll_is_not_put_into_one_object() {
        let first = sample("a", "p", Value::Bool(true), 1, NOON);
        let is_kin_of_first =
            |other: &crate::payload::samples::Sample| is_kin(first.outgoing(), other.outgoing(), 1000);
        assert!(is_kin_of_first(&sample("a", "q", Value::Null, 2, NOON + 1000)));
        assert!(!is_kin_of_first(&sample("a", "q", Value::Null, 2, NOON + 1001)));
        assert!(!is_kin_of_first(&sample("a", "q", Value::Null, 2, NOON - 1)), "a clock that was set back");
        assert!(!is_kin_of_first(&sample("b", "q", Value::Null, 2, NOON)));
        let mut later_start = sample("a", "q", Value::Null, 2, NOON);
        later_start.id.start += 1;
        assert!(!is_kin_of_first(&later_start));
        let samples = [first, sample("b", "p", Value::Int(1), 2, NOON), sample("b", "p", Value::Int(2), 3, NOON)];
        let json: serde_json::Value = serde_json::from_slice(&encode(&outgoing(&samples))).unwrap();
        assert_eq!(json.as_array().map(Vec::len), Some(3));
    }
}
