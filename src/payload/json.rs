//! A reading as one JSON object:
//! `{"ts", "value", "unit", "quality", "reason"?, "device", "point", "seq", "id", "clock"?}`. Pure.
//!
//! `ts` is RFC 3339 in UTC with milliseconds. `unit` is absent where none is configured, `reason` where the quality
//! is good, `clock` where the clock is synced.

use bytes::Bytes;
use serde::Serialize;

use crate::clock::rfc3339;
use crate::message::{ClockState, MessageId, Reading, Value};

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
}

#[derive(Serialize)]
#[serde(untagged)]
enum JsonValue<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(&'a str),
}

/// `reading` as JSON, with its wall time moved by `clock_offset_ms`.
pub fn encode(reading: &Reading, id: &MessageId, clock_offset_ms: i64) -> Bytes {
    let value = match &reading.value {
        Value::Null => JsonValue::Null,
        Value::Bool(value) => JsonValue::Bool(*value),
        Value::Int(value) => JsonValue::Int(*value),
        Value::Uint(value) => JsonValue::Uint(*value),
        // JSON has no NaN and no infinity (RFC 8259, 6).
        Value::Float(value) if !value.is_finite() => JsonValue::Null,
        Value::Float(value) => JsonValue::Float(*value),
        Value::Text(value) => JsonValue::Text(value),
    };
    let clock = reading.stamp.clock;
    let object = Object {
        ts: rfc3339(reading.stamp.wall_ms.saturating_add(clock_offset_ms)),
        value,
        unit: reading.unit.as_deref(),
        quality: reading.quality.name(),
        reason: reading.reason.as_deref(),
        device: &reading.device,
        point: &reading.point,
        seq: reading.seq,
        id: id.to_string(),
        clock: (clock != ClockState::Synced).then(|| clock.name()),
    };
    // Strings, numbers and options only: there is nothing in it that cannot be written.
    Bytes::from(serde_json::to_vec(&object).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Quality, Stamp};
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
        let bytes = encode(&reading(Value::Float(6.5)), &id(), 0);
        let expected = r#"{"ts":"2026-11-23T09:20:00.123Z","value":6.5,"unit":"°C","quality":"good","device":"chiller","point":"supply","seq":7,"id":"g7.000000000001.2.3"}"#;
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
    }

    #[test]
    fn a_bad_reading_says_why_and_nan_is_null() {
        let mut bad = reading(Value::Float(f64::NAN));
        bad.quality = Quality::Bad;
        bad.reason = Some(Arc::from("no answer within 1 s"));
        bad.stamp.clock = ClockState::Unset;
        let json: serde_json::Value = serde_json::from_slice(&encode(&bad, &id(), 1000)).unwrap();
        assert_eq!(json["value"], serde_json::Value::Null);
        assert_eq!(json["reason"], "no answer within 1 s");
        assert_eq!(json["clock"], "unset");
        assert_eq!(json["ts"], "2026-11-23T09:20:01.123Z");
    }

    #[test]
    fn large_whole_numbers_keep_every_digit() {
        let text = encode(&reading(Value::Uint(u64::MAX)), &id(), 0);
        assert!(std::str::from_utf8(&text).unwrap().contains("18446744073709551615"));
    }
}
