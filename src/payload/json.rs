//! A reading as one JSON object:
//! `{"ts", "value", "unit"?, "quality", "reason"?, "device", "point", "seq", "id", "clock"?, …}`. Pure.
//!
//! `ts` is RFC 3339 in UTC with milliseconds. `unit` is absent where none is configured, `reason` where the quality
//! is good, `clock` where the clock is synced. With `"clock":"holdover"` stands `ts_error_ms`, how far off `ts` may be;
//! with `"clock":"unset"` stand `ts_after` and, where a later boot knows it, `ts_before`: `ts` is a guess between them.
//!
//! A batch is an array of such objects, each with its own `id`.

use bytes::Bytes;
use serde::Serialize;

use super::time::Time;
use crate::clock::{Timing, rfc3339};
use crate::message::{MessageId, Reading, Value};

#[derive(Serialize)]
struct Object<'a> {
    ts: String,
    value: JsonValue<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    quality: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    device: &'a str,
    point: &'a str,
    seq: u64,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts_error_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts_before: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum JsonValue<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(&'a str),
}

impl JsonValue<'_> {
    pub(super) fn of(value: &Value) -> JsonValue<'_> {
        match value {
            Value::Null => JsonValue::Null,
            Value::Bool(value) => JsonValue::Bool(*value),
            Value::Int(value) => JsonValue::Int(*value),
            Value::Uint(value) => JsonValue::Uint(*value),
            // JSON has no NaN and no infinity (RFC 8259, 6).
            Value::Float(value) if !value.is_finite() => JsonValue::Null,
            Value::Float(value) => JsonValue::Float(*value),
            Value::Text(value) => JsonValue::Text(value),
        }
    }
}

/// `reading` as JSON, with its time as `timing` says.
pub fn encode(reading: &Reading, id: &MessageId, timing: Timing) -> Bytes {
    let time = Time::new(reading.stamp, timing);
    let object = Object {
        ts: rfc3339(time.wall_ms),
        value: JsonValue::of(&reading.value),
        unit: reading.unit.as_deref(),
        quality: reading.quality.name(),
        reason: reading.reason.as_deref(),
        device: &reading.device,
        point: &reading.point,
        seq: reading.seq,
        id: id.to_string(),
        clock: time.clock_name(),
        ts_error_ms: time.error_ms(),
        ts_after: time.after_ms.map(rfc3339),
        ts_before: time.before_ms.map(rfc3339),
    };
    // Strings, numbers and options only: there is nothing in it that cannot be written.
    Bytes::from(serde_json::to_vec(&object).unwrap_or_default())
}

/// What joins an object to the next one in an array, or ends it.
pub const JOINT_BYTES: usize = 1;

/// Objects as one array.
pub fn array(objects: impl Iterator<Item = Bytes>) -> Bytes {
    let mut all = vec![b'['];
    for (place, object) in objects.enumerate() {
        if place > 0 {
            all.push(b',');
        }
        all.extend_from_slice(&object);
    }
    all.push(b']');
    Bytes::from(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ClockState, Quality, Stamp};
    use std::sync::Arc;

    fn reading(value: Value) -> Reading {
        Reading {
            device: Arc::from("chiller"),
            point: Arc::from("supply"),
            value,
            unit: Some(Arc::from("°C")),
            quality: Quality::Good,
            reason: None,
            seq: 7,
            stamp: Stamp { wall_ms: 1_795_425_600_123, mono_ms: 5, clock: ClockState::Synced },
        }
    }

    fn id() -> MessageId {
        MessageId { gateway: Arc::from("g7"), store: 1, start: 2, counter: 3 }
    }

    #[test]
    fn a_good_reading_has_no_reason_and_no_clock() {
        let bytes = encode(&reading(Value::Float(6.5)), &id(), Timing::Stamped);
        let expected = r#"{"ts":"2026-11-23T09:20:00.123Z","value":6.5,"unit":"°C","quality":"good","device":"chiller","point":"supply","seq":7,"id":"g7.000000000001.2.3"}"#;
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
    }

    #[test]
    fn a_bad_reading_says_why_and_nan_is_null() {
        let mut bad = reading(Value::Float(f64::NAN));
        bad.quality = Quality::Bad;
        bad.reason = Some(Arc::from("no answer within 1 s"));
        bad.stamp.clock = ClockState::Unset;
        let json: serde_json::Value = serde_json::from_slice(&encode(&bad, &id(), Timing::Stamped)).unwrap();
        assert_eq!(json["value"], serde_json::Value::Null);
        assert_eq!(json["reason"], "no answer within 1 s");
        assert_eq!(json["clock"], "unset");
        assert_eq!(json["ts"], "2026-11-23T09:20:00.123Z");
    }

    fn timed(clock: ClockState, timing: Timing) -> String {
        let mut reading = reading(Value::Null);
        reading.stamp.clock = clock;
        let json: serde_json::Value = serde_json::from_slice(&encode(&reading, &id(), timing)).unwrap();
        let keys = ["ts", "clock", "ts_error_ms", "ts_after", "ts_before"];
        keys.iter().filter_map(|key| json.get(key)).map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_time_says_how_good_it_is() {
        let (synced, unset) = (ClockState::Synced, ClockState::Unset);
        let holdover = ClockState::Holdover { error_ms: 812 };
        let noon = 1_795_425_600_000;
        assert_eq!(timed(synced, Timing::Stamped), r#""2026-11-23T09:20:00.123Z""#);
        assert_eq!(timed(holdover, Timing::Stamped), r#""2026-11-23T09:20:00.123Z" "holdover" 812"#);
        let moved = |clock| Timing::Corrected { offset_ms: 60_000, clock };
        assert_eq!(timed(unset, moved(synced)), r#""2026-11-23T09:21:00.123Z""#);
        assert_eq!(timed(unset, moved(holdover)), r#""2026-11-23T09:21:00.123Z" "holdover" 812"#);
        let between = |after_ms, before_ms| timed(unset, Timing::Between { after_ms, before_ms });
        assert_eq!(
            between(noon, Some(noon + 3_600_000)),
            r#""2026-11-23T09:20:00.123Z" "unset" "2026-11-23T09:20:00.000Z" "2026-11-23T10:20:00.000Z""#
        );
        assert_eq!(
            between(noon - 7_200_000, Some(noon - 3_600_000)),
            r#""2026-11-23T08:20:00.000Z" "unset" "2026-11-23T07:20:00.000Z" "2026-11-23T08:20:00.000Z""#,
            "a guess that cannot be is moved to where it can"
        );
        assert_eq!(between(noon + 1000, None), r#""2026-11-23T09:20:01.000Z" "unset" "2026-11-23T09:20:01.000Z""#);
        assert_eq!(timed(unset, Timing::Open { after_ms: noon }), between(noon, None));
        assert_eq!(between(noon, Some(noon - 1)), between(noon, None));
    }

    #[test]
    fn large_whole_numbers_keep_every_digit() {
        let text = encode(&reading(Value::Uint(u64::MAX)), &id(), Timing::Stamped);
        assert!(std::str::from_utf8(&text).unwrap().contains("18446744073709551615"));
    }
}
