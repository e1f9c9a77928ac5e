//! SenML in CBOR (RFC 8428, 6), with as little as its base values allow. Pure.
//!
//! A record's name is `<gateway>/<device>/<point>`; the part before the point is a base name, the time a base time. What
//! SenML has no word for stands under labels of our own, which a receiver that does not know them passes over (RFC 8428,
//! 4.4): `id`, `seq`, and `q` where the quality is not good, `clock` where the clock is not synced. Of `id` and `seq` only
//! what does not follow is written: a record without them has those of the one before, plus one; an `id` that is a number
//! is the last part of the id, its first parts are those of the one before. A reading without a value has its reason as
//! `vs`, or the quality where there is none, because a record must have a value.

use bytes::Bytes;

use super::Outgoing;
use super::cbor;
use super::time::Time;
use crate::message::{MessageId, Quality, Value};

/// Labels (RFC 8428, table 6).
const BASE_NAME: i64 = -2;
const BASE_TIME: i64 = -3;
const NAME: i64 = 0;
const UNIT: i64 = 1;
const VALUE: i64 = 2;
const STRING_VALUE: i64 = 3;
const BOOLEAN_VALUE: i64 = 4;

/// What the records so far have said.
#[derive(Default)]
struct Said<'a> {
    device: Option<(&'a str, &'a str)>,
    wall_ms: Option<i64>,
    id: Option<&'a MessageId>,
    seq: Option<u64>,
}

pub(super) fn encode(readings: &[Outgoing<'_>]) -> Bytes {
    let mut bytes = Vec::new();
    cbor::array(&mut bytes, readings.len());
    let mut said = Said::default();
    for one in readings {
        record(&mut bytes, *one, &mut said);
    }
    Bytes::from(bytes)
}

fn record<'a>(into: &mut Vec<u8>, one: Outgoing<'a>, said: &mut Said<'a>) {
    let Outgoing { reading, id, .. } = one;
    let time = Time::new(reading.stamp, one.timing);
    let mut fields = Fields::default();
    let device = (&*id.gateway, &*reading.device);
    if said.device != Some(device) {
        fields.label(BASE_NAME, |into| cbor::text(into, &format!("{}/{}/", word(device.0), word(device.1))));
        // Numbers of another device.
        said.seq = None;
    }
    if said.wall_ms != Some(time.wall_ms) {
        fields.label(BASE_TIME, |into| seconds(into, time.wall_ms));
    }
    fields.label(NAME, |into| cbor::text(into, &word(&reading.point)));
    if let Some(unit) = &reading.unit {
        fields.label(UNIT, |into| cbor::text(into, registered(unit)));
    }
    value(&mut fields, one);
    let is_same_start =
        |last: &&MessageId| (&last.gateway, last.store, last.start) == (&id.gateway, id.store, id.start);
    match said.id.filter(is_same_start) {
        Some(last) if last.counter.checked_add(1) == Some(id.counter) => {}
        Some(_) => fields.word("id", |into| cbor::unsigned(into, id.counter)),
        None => fields.word("id", |into| cbor::text(into, &id.to_string())),
    }
    if said.seq.and_then(|last| last.checked_add(1)) != Some(reading.seq) {
        fields.word("seq", |into| cbor::unsigned(into, reading.seq));
    }
    if reading.quality != Quality::Good {
        fields.word("q", |into| cbor::text(into, reading.quality.name()));
    }
    if let Some(clock) = time.clock_name() {
        fields.word("clock", |into| cbor::text(into, clock));
    }
    cbor::map(into, fields.count);
    into.extend(fields.bytes);
    *said = Said { device: Some(device), wall_ms: Some(time.wall_ms), id: Some(id), seq: Some(reading.seq) };
}

fn value(fields: &mut Fields, one: Outgoing<'_>) {
    let text = |fields: &mut Fields, text: &str| fields.label(STRING_VALUE, |into| cbor::text(into, text));
    match &one.reading.value {
        Value::Bool(value) => fields.label(BOOLEAN_VALUE, |into| cbor::truth(into, *value)),
        Value::Int(value) => fields.label(VALUE, |into| cbor::integer(into, *value)),
        Value::Uint(value) => fields.label(VALUE, |into| cbor::unsigned(into, *value)),
        Value::Float(value) if value.is_finite() => fields.label(VALUE, |into| cbor::number(into, *value)),
        Value::Text(value) => text(fields, value),
        Value::Float(_) | Value::Null => {
            text(fields, one.reading.reason.as_deref().unwrap_or(one.reading.quality.name()));
        }
    }
}

/// Seconds since 1970, to the millisecond: a double names each until the year 287,396.
fn seconds(into: &mut Vec<u8>, wall_ms: i64) {
    #[expect(clippy::cast_precision_loss, reason = "see above")]
    cbor::number(into, wall_ms as f64 / 1000.0);
}

/// The units' own name in the registry, where ours is the usual one; others go as they are.
fn registered(unit: &str) -> &str {
    match unit {
        "°C" => "Cel",
        "°" => "deg",
        "Ω" => "Ohm",
        "Ah" => "Ah",
        "%" => "%",
        other => other,
    }
}

/// A name has letters, digits and `- : . / _` (RFC 8428, 4.5.1).
fn word(name: &str) -> String {
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | ':' | '.' | '_');
    name.chars().map(|character| if is_allowed(character) { character } else { '_' }).collect()
}

/// The fields of one record.
#[derive(Default)]
struct Fields {
    count: usize,
    bytes: Vec<u8>,
}

impl Fields {
    fn label(&mut self, label: i64, write: impl FnOnce(&mut Vec<u8>)) {
        cbor::integer(&mut self.bytes, label);
        self.end(write);
    }

    fn word(&mut self, label: &str, write: impl FnOnce(&mut Vec<u8>)) {
        cbor::text(&mut self.bytes, label);
        self.end(write);
    }

    fn end(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::samples::{NOON, outgoing, sample};

    #[test]
    fn what_records_share_is_written_once() {
        let samples: Vec<_> =
            (0..100).map(|number| sample("chiller", "supply", Value::Float(6.5), 1000 + number, NOON)).collect();
        let all = outgoing(&samples);
        let (one, hundred) = (encode(&all[..1]).len(), encode(&all).len());
        assert_eq!((hundred - one - 1) / 99, 20, "{one} alone");
        assert!(one > 60);
    }

    #[test]
    fn the_literal_bytes_of_two_records() {
        let samples = [sample("c", "a", Value::Int(5), 7, 2000), sample("c", "b", Value::Bool(true), 9, 2000)];
        let expected = [
            &b"\x82\xa6\x21\x65g7/c/\x22\x02\x00\x61a\x01\x63Cel\x02\x05\x62id\x73g7.000000000001.2.7"[..],
            &b"\x63seq\x07"[..],
            &b"\xa5\x00\x61b\x01\x63Cel\x04\xf5\x62id\x09\x63seq\x09"[..],
        ];
        let mut expected = expected.concat();
        // The map of the first record has seven fields: bn, bt, n, u, v, id, seq.
        expected[1] = 0xa7;
        assert_eq!(encode(&outgoing(&samples)), expected);
    }
}
