//! How a message lies in a row: compact, versioned, checksummed. Pure.
//!
//! ```text
//! byte 0   version (high half), origin kind (low half)
//! byte 1   qos 0–1, retain 2, properties 3, reading 4, clock of the stamp 5–6, absolute 7
//! …        start, counter, stamp (with its error in holdover) │ topic │ origin │ properties │ body (to the end) │ CRC32C (4)
//! ```
//!
//! A row in the queue is *relative*: gateway, store and boot are those of its start, and its stamp counts from that
//! start's, which spares some 30 bytes a message. Rows that may outlive their start (retained, dead letters) are
//! *absolute*. The checksum covers the sequence as well, so that a row in the wrong place is noticed; SQLite notices
//! neither that nor a flipped bit of a body. No length is believed before the checksum was right, and none after it
//! either: every read is bounded.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::message::{
    Body, ClockState, Message, MessageId, Origin, Properties, Qos, Quality, Reading, Stamp, Topic, Value,
};

const VERSION: u8 = 1;
const ABSOLUTE: u8 = 0x80;

const ORIGIN_FIELD: u8 = 0;
const ORIGIN_GATEWAY: u8 = 1;
const ORIGIN_CLIENT: u8 = 2;
const ORIGIN_UPLINK: u8 = 3;
/// Added to the two above when a word follows instead of a text.
const ORIGIN_WORD: u8 = 2;

/// One opening of the store: what its rows refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    /// From 1, and never used again.
    pub number: u32,
    /// 48 random bits.
    pub store: u64,
    pub gateway: Arc<str>,
    pub boot_id: Arc<str>,
    /// When it was.
    pub stamp: Stamp,
}

/// Starts by number.
pub(super) type Starts = BTreeMap<u32, Start>;

/// Names that rows refer to by number.
#[derive(Debug, Default)]
pub(super) struct Words {
    texts: BTreeMap<u32, Arc<str>>,
    numbers: std::collections::HashMap<Arc<str>, u32>,
    /// The one that was asked for last: a client's messages come in a row, and bear the very same text.
    recent: Option<(Arc<str>, u32)>,
}

impl Words {
    pub fn insert(&mut self, number: u32, text: Arc<str>) {
        self.numbers.insert(text.clone(), number);
        self.texts.insert(number, text);
    }

    pub fn number(&self, text: &Arc<str>) -> Option<u32> {
        match &self.recent {
            Some((recent, number)) if Arc::ptr_eq(recent, text) => Some(*number),
            _ => self.numbers.get(text).copied(),
        }
    }

    /// As `number`, and remembers it.
    pub fn find(&mut self, text: &Arc<str>) -> Option<u32> {
        let number = self.number(text)?;
        if !self.recent.as_ref().is_some_and(|(recent, _)| Arc::ptr_eq(recent, text)) {
            self.recent = Some((text.clone(), number));
        }
        Some(number)
    }

    pub fn len(&self) -> usize {
        self.texts.len()
    }

    pub fn number_next(&self) -> u32 {
        self.texts.last_key_value().map_or(1, |(number, _)| number.saturating_add(1))
    }
}

/// A row that says what it should not: damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

/// Writes `message` to `out`, which is emptied first, relative to `start`.
pub(super) fn encode(out: &mut Vec<u8>, sequence: u64, start: &Start, counter: u64, message: &Message, words: &Words) {
    out.clear();
    put_head(out, message, 0, Some(words));
    put_u64(out, u64::from(start.number));
    put_u64(out, counter);
    let mono = delta(message.received.mono_ms, start.stamp.mono_ms);
    put_i64(out, mono);
    put_i64(out, message.received.wall_ms.wrapping_sub(start.stamp.wall_ms).wrapping_sub(mono));
    put_error(out, message.received.clock);
    put_rest(out, message, Some(words));
    seal(out, sequence);
}

/// Writes `message` to `out`, which is emptied first, so that it needs nothing else to be read.
pub(super) fn encode_absolute(out: &mut Vec<u8>, sequence: u64, id: &MessageId, message: &Message) {
    out.clear();
    put_head(out, message, ABSOLUTE, None);
    put_text(out, &id.gateway);
    put_u64(out, id.store);
    put_u64(out, u64::from(id.start));
    put_u64(out, id.counter);
    put_u64(out, message.received.mono_ms);
    put_i64(out, message.received.wall_ms);
    put_error(out, message.received.clock);
    put_rest(out, message, None);
    seal(out, sequence);
}

/// Reads a row and proves it. The number is that of the start the row was written in.
pub(super) fn decode(
    row: &[u8],
    sequence: u64,
    starts: &Starts,
    words: &Words,
) -> Result<(MessageId, Message), Damaged> {
    decode_with(row, sequence, starts, words, |text| Topic::new(text).ok())
}

/// As `decode`, with the topic from somewhere that may have it already.
pub(super) fn decode_with(
    row: &[u8],
    sequence: u64,
    starts: &Starts,
    words: &Words,
    topic: impl FnOnce(&str) -> Option<Topic>,
) -> Result<(MessageId, Message), Damaged> {
    let body = proven(row, sequence).ok_or(Damaged)?;
    read(body, starts, words, topic).ok_or(Damaged)
}

/// The start in which a row was written and the stamp it entered with, read without the rest.
pub(super) fn entered(row: &[u8], sequence: u64, starts: &Starts) -> Result<(u32, Stamp), Damaged> {
    let mut bytes = Reader(proven(row, sequence).ok_or(Damaged)?);
    read_name(&mut bytes, starts).map(|head| (head.id.start, head.received)).ok_or(Damaged)
}

/// The start that a row is relative to, whether it is known or not; `None` for an absolute or a damaged one.
pub(super) fn start_number(row: &[u8], sequence: u64) -> Option<u32> {
    let mut bytes = Reader(proven(row, sequence)?);
    let (version, flags) = (bytes.byte()?, bytes.byte()?);
    (version >> 4 == VERSION && flags & ABSOLUTE == 0).then_some(())?;
    u32::try_from(bytes.u64()?).ok()
}

/// Where a message came from, as far as its account wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source<'a> {
    /// A reading: the device and the reading's number.
    Device(&'a str, u64),
    Clients,
    Uplinks,
    Gateway,
}

/// What an account wants to know of a row.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub id: MessageId,
    pub received: Stamp,
    pub source: Source<'a>,
}

/// What an account wants to know of a row, proven first.
pub(super) fn entry<'a>(row: &'a [u8], sequence: u64, starts: &Starts) -> Option<Entry<'a>> {
    read_entry(proven(row, sequence)?, starts)
}

/// The same of a row that was just written.
pub(super) fn fresh_entry<'a>(row: &'a [u8], starts: &Starts) -> Option<Entry<'a>> {
    read_entry(row, starts)
}

fn read_entry<'a>(row: &'a [u8], starts: &Starts) -> Option<Entry<'a>> {
    let mut bytes = Reader(row);
    let Head { origin, flags, id, received } = read_name(&mut bytes, starts)?;
    let source = match origin {
        _ if flags & 16 != 0 => {
            bytes.bytes()?;
            match origin {
                ORIGIN_FIELD | ORIGIN_GATEWAY => {}
                ORIGIN_CLIENT | ORIGIN_UPLINK => {
                    bytes.bytes()?;
                }
                _ => {
                    bytes.u64()?;
                }
            }
            if flags & 8 != 0 {
                read_properties(&mut bytes)?;
            }
            let (device, seq) = read_device(&mut bytes)?;
            Source::Device(device, seq)
        }
        ORIGIN_FIELD | ORIGIN_GATEWAY => Source::Gateway,
        ORIGIN_CLIENT | 4 => Source::Clients,
        _ => Source::Uplinks,
    };
    Some(Entry { id, received, source })
}

/// A reading's device and number; the rest is passed over.
fn read_device<'a>(bytes: &mut Reader<'a>) -> Option<(&'a str, u64)> {
    let device = bytes.text()?;
    bytes.bytes()?;
    match bytes.byte()? {
        0..=2 => {}
        3 | 4 => {
            bytes.u64()?;
        }
        5 => {
            bytes.take(8)?;
        }
        6 => {
            bytes.bytes()?;
        }
        _ => return None,
    }
    let flags = bytes.byte()?;
    for bit in [16, 32] {
        if flags & bit != 0 {
            bytes.bytes()?;
        }
    }
    Some((device, bytes.u64()?))
}

/// Whether a row's checksum is right for its place.
pub(super) fn proven(row: &[u8], sequence: u64) -> Option<&[u8]> {
    let (body, sum) = row.split_last_chunk::<4>()?;
    (checksum(body, sequence) == u32::from_le_bytes(*sum)).then_some(body)
}

fn checksum(body: &[u8], sequence: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&sequence.to_le_bytes()), body)
}

pub(super) fn seal(out: &mut Vec<u8>, sequence: u64) {
    let sum = checksum(out, sequence);
    out.extend_from_slice(&sum.to_le_bytes());
}

fn delta(later: u64, earlier: u64) -> i64 {
    later.wrapping_sub(earlier).cast_signed()
}

fn put_head(out: &mut Vec<u8>, message: &Message, absolute: u8, words: Option<&Words>) {
    let word = |name| words.and_then(|words| words.number(name)).map_or(0, |_| ORIGIN_WORD);
    let origin = match &message.origin {
        Origin::Field => ORIGIN_FIELD,
        Origin::Gateway => ORIGIN_GATEWAY,
        Origin::Client(name) => ORIGIN_CLIENT + word(name),
        Origin::Uplink(name) => ORIGIN_UPLINK + word(name),
    };
    out.push(VERSION << 4 | origin);
    let flags = message.qos.level()
        | u8::from(message.retain) << 2
        | u8::from(message.properties.is_some()) << 3
        | u8::from(matches!(message.body, Body::Reading(_))) << 4
        | clock_code(message.received.clock) << 5
        | absolute;
    out.push(flags);
}

fn put_rest(out: &mut Vec<u8>, message: &Message, words: Option<&Words>) {
    put_text(out, message.topic.as_str());
    if let Origin::Client(name) | Origin::Uplink(name) = &message.origin {
        match words.and_then(|words| words.number(name)) {
            Some(number) => put_u64(out, u64::from(number)),
            None => put_text(out, name),
        }
    }
    if let Some(properties) = &message.properties {
        put_properties(out, properties);
    }
    match &message.body {
        Body::Bytes(bytes) => out.extend_from_slice(bytes),
        Body::Reading(reading) => put_reading(out, reading, message.received),
    }
}

fn put_properties(out: &mut Vec<u8>, properties: &Properties) {
    let Properties { is_utf8, expiry_s, content_type, response_topic, correlation_data, user } = properties;
    out.push(
        u8::from(*is_utf8)
            | u8::from(expiry_s.is_some()) << 1
            | u8::from(content_type.is_some()) << 2
            | u8::from(response_topic.is_some()) << 3
            | u8::from(correlation_data.is_some()) << 4,
    );
    if let Some(seconds) = expiry_s {
        put_u64(out, u64::from(*seconds));
    }
    if let Some(text) = content_type {
        put_text(out, text);
    }
    if let Some(topic) = response_topic {
        put_text(out, topic.as_str());
    }
    if let Some(bytes) = correlation_data {
        put_bytes(out, bytes);
    }
    put_u64(out, user.len() as u64);
    for (name, value) in user {
        put_text(out, name);
        put_text(out, value);
    }
}

fn put_reading(out: &mut Vec<u8>, reading: &Reading, received: Stamp) {
    put_text(out, &reading.device);
    put_text(out, &reading.point);
    match &reading.value {
        Value::Null => out.push(0),
        Value::Bool(value) => out.push(1 + u8::from(*value)),
        Value::Int(value) => {
            out.push(3);
            put_i64(out, *value);
        }
        Value::Uint(value) => {
            out.push(4);
            put_u64(out, *value);
        }
        Value::Float(value) => {
            out.push(5);
            out.extend_from_slice(&value.to_bits().to_le_bytes());
        }
        Value::Text(value) => {
            out.push(6);
            put_text(out, value);
        }
    }
    let quality = match reading.quality {
        Quality::Good => 0,
        Quality::Uncertain => 1,
        Quality::Bad => 2,
    };
    out.push(
        quality
            | clock_code(reading.stamp.clock) << 2
            | u8::from(reading.unit.is_some()) << 4
            | u8::from(reading.reason.is_some()) << 5,
    );
    if let Some(unit) = &reading.unit {
        put_text(out, unit);
    }
    if let Some(reason) = &reading.reason {
        put_text(out, reason);
    }
    put_u64(out, reading.seq);
    put_i64(out, delta(reading.stamp.mono_ms, received.mono_ms));
    put_i64(out, reading.stamp.wall_ms.wrapping_sub(received.wall_ms));
    put_error(out, reading.stamp.clock);
}

/// How far off a stamp may be, where it says so.
fn put_error(out: &mut Vec<u8>, clock: ClockState) {
    if let ClockState::Holdover { error_ms } = clock {
        put_u64(out, u64::from(error_ms));
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Seven bits a byte, low ones first (LEB128).
#[expect(clippy::cast_possible_truncation, reason = "the low seven bits are what is wanted")]
pub(super) fn put_u64(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small numbers of either sign stay short (zigzag).
pub(super) fn put_i64(out: &mut Vec<u8>, value: i64) {
    put_u64(out, (value.wrapping_shl(1) ^ (value >> 63)).cast_unsigned());
}

fn clock_code(clock: ClockState) -> u8 {
    match clock {
        ClockState::Synced => 0,
        ClockState::Holdover { .. } => 1,
        ClockState::Unset => 2,
    }
}

/// The clock of a stamp whose times have just been read.
fn read_clock(code: u8, bytes: &mut Reader<'_>) -> Option<ClockState> {
    match code & 3 {
        0 => Some(ClockState::Synced),
        1 => Some(ClockState::Holdover { error_ms: u32::try_from(bytes.u64()?).ok()? }),
        2 => Some(ClockState::Unset),
        _ => None,
    }
}

struct Head {
    origin: u8,
    flags: u8,
    id: MessageId,
    received: Stamp,
}

fn read_name(bytes: &mut Reader<'_>, starts: &Starts) -> Option<Head> {
    let first = bytes.byte()?;
    if first >> 4 != VERSION {
        return None;
    }
    let flags = bytes.byte()?;
    if flags & ABSOLUTE != 0 {
        let gateway = Arc::from(bytes.text()?);
        let (store, start, counter) = (bytes.u64()?, u32::try_from(bytes.u64()?).ok()?, bytes.u64()?);
        let (mono_ms, wall_ms) = (bytes.u64()?, bytes.i64()?);
        let clock = read_clock(flags >> 5, bytes)?;
        let id = MessageId { gateway, store, start, counter };
        return Some(Head { origin: first & 15, flags, id, received: Stamp { wall_ms, mono_ms, clock } });
    }
    let start = starts.get(&u32::try_from(bytes.u64()?).ok()?)?;
    let counter = bytes.u64()?;
    let (mono, wall) = (bytes.i64()?, bytes.i64()?);
    let clock = read_clock(flags >> 5, bytes)?;
    let received = Stamp {
        wall_ms: wall.wrapping_add(start.stamp.wall_ms).wrapping_add(mono),
        mono_ms: start.stamp.mono_ms.wrapping_add_signed(mono),
        clock,
    };
    let id = MessageId { gateway: start.gateway.clone(), store: start.store, start: start.number, counter };
    Some(Head { origin: first & 15, flags, id, received })
}

fn read(
    row: &[u8],
    starts: &Starts,
    words: &Words,
    topic: impl FnOnce(&str) -> Option<Topic>,
) -> Option<(MessageId, Message)> {
    let mut bytes = Reader(row);
    let Head { origin, flags, id, received } = read_name(&mut bytes, starts)?;
    let topic = topic(bytes.text()?)?;
    let origin = match origin {
        ORIGIN_FIELD => Origin::Field,
        ORIGIN_GATEWAY => Origin::Gateway,
        ORIGIN_CLIENT => Origin::Client(Arc::from(bytes.text()?)),
        ORIGIN_UPLINK => Origin::Uplink(Arc::from(bytes.text()?)),
        4 => Origin::Client(bytes.word(words)?),
        5 => Origin::Uplink(bytes.word(words)?),
        _ => return None,
    };
    let properties = if flags & 8 != 0 { Some(Box::new(read_properties(&mut bytes)?)) } else { None };
    let body = if flags & 16 != 0 {
        Body::Reading(read_reading(&mut bytes, received)?)
    } else {
        Body::Bytes(Bytes::copy_from_slice(bytes.0))
    };
    let qos = Qos::from_level(flags & 3)?;
    Some((id, Message { topic, qos, retain: flags & 4 != 0, properties, body, origin, received }))
}

fn read_properties(bytes: &mut Reader<'_>) -> Option<Properties> {
    let flags = bytes.byte()?;
    let mut properties = Properties { is_utf8: flags & 1 != 0, ..Properties::default() };
    if flags & 2 != 0 {
        properties.expiry_s = Some(u32::try_from(bytes.u64()?).ok()?);
    }
    if flags & 4 != 0 {
        properties.content_type = Some(bytes.text()?.to_owned());
    }
    if flags & 8 != 0 {
        properties.response_topic = Some(Topic::new(bytes.text()?).ok()?);
    }
    if flags & 16 != 0 {
        properties.correlation_data = Some(Bytes::copy_from_slice(bytes.bytes()?));
    }
    for _ in 0..bytes.u64()? {
        properties.user.push((bytes.text()?.to_owned(), bytes.text()?.to_owned()));
    }
    Some(properties)
}

fn read_reading(bytes: &mut Reader<'_>, received: Stamp) -> Option<Reading> {
    let device = Arc::from(bytes.text()?);
    let point = Arc::from(bytes.text()?);
    let value = match bytes.byte()? {
        0 => Value::Null,
        1 => Value::Bool(false),
        2 => Value::Bool(true),
        3 => Value::Int(bytes.i64()?),
        4 => Value::Uint(bytes.u64()?),
        5 => Value::Float(f64::from_bits(u64::from_le_bytes(*bytes.take(8)?.first_chunk()?))),
        6 => Value::Text(bytes.text()?.to_owned()),
        _ => return None,
    };
    let flags = bytes.byte()?;
    let quality = [Quality::Good, Quality::Uncertain, Quality::Bad].get(usize::from(flags & 3)).copied()?;
    let unit = if flags & 16 != 0 { Some(Arc::from(bytes.text()?)) } else { None };
    let reason = if flags & 32 != 0 { Some(Arc::from(bytes.text()?)) } else { None };
    let seq = bytes.u64()?;
    let mono_ms = received.mono_ms.wrapping_add_signed(bytes.i64()?);
    let wall_ms = received.wall_ms.wrapping_add(bytes.i64()?);
    let clock = read_clock(flags >> 2, bytes)?;
    Some(Reading { device, point, value, unit, quality, reason, seq, stamp: Stamp { wall_ms, mono_ms, clock } })
}

/// Takes bytes off the front; `None` when there are too few.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        let value = self.u64()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = usize::try_from(self.u64()?).ok()?;
        self.take(count)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// A word that is gone costs its name only, not the message.
    fn word(&mut self, words: &Words) -> Option<Arc<str>> {
        let number = u32::try_from(self.u64()?).ok()?;
        Some(words.texts.get(&number).cloned().unwrap_or_else(|| Arc::from("?")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start() -> Start {
        Start {
            number: 3,
            store: 0xabc_def0_1234,
            gateway: Arc::from("press.hall-3"),
            boot_id: Arc::from("b"),
            stamp: Stamp { wall_ms: 1_795_425_600_000, mono_ms: 90_000, clock: ClockState::Synced },
        }
    }

    fn starts() -> Starts {
        Starts::from([(3, start())])
    }

    fn words() -> Words {
        let mut words = Words::default();
        words.insert(1, Arc::from("known"));
        words
    }

    fn stamps() -> impl Strategy<Value = Stamp> {
        let holdover = any::<u32>().prop_map(|error_ms| ClockState::Holdover { error_ms });
        let clock = prop_oneof![Just(ClockState::Synced), holdover, Just(ClockState::Unset)];
        (any::<i64>(), any::<u64>(), clock).prop_map(|(wall_ms, mono_ms, clock)| Stamp { wall_ms, mono_ms, clock })
    }

    fn values() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(Value::Uint),
            (-1e300..1e300).prop_map(Value::Float),
            ".{0,20}".prop_map(Value::Text),
        ]
    }

    fn readings() -> impl Strategy<Value = Body> {
        let names = ("[a-z]{1,9}", ".{1,9}", prop::option::of(".{0,4}"), prop::option::of(".{0,30}"));
        let quality = prop_oneof![Just(Quality::Good), Just(Quality::Uncertain), Just(Quality::Bad)];
        (names, values(), quality, any::<u64>(), stamps()).prop_map(|(names, value, quality, seq, stamp)| {
            let (device, point, unit, reason) = names;
            Body::Reading(Reading {
                device: Arc::from(device),
                point: Arc::from(point),
                value,
                unit: unit.map(Arc::from),
                quality,
                reason: reason.map(Arc::from),
                seq,
                stamp,
            })
        })
    }

    fn properties() -> impl Strategy<Value = Properties> {
        let user = prop::collection::vec((".{0,5}".prop_map(String::from), ".{0,5}".prop_map(String::from)), 0..3);
        let data = prop::option::of(prop::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from));
        let fields = (any::<bool>(), any::<Option<u32>>(), prop::option::of("[a-z/]{0,9}"), data, user);
        (fields, prop::option::of("[a-z]{1,4}")).prop_map(|(fields, response)| {
            let (is_utf8, expiry_s, content_type, correlation_data, user) = fields;
            let response_topic = response.map(|text| Topic::new(&text).unwrap());
            Properties { is_utf8, expiry_s, content_type, response_topic, correlation_data, user }
        })
    }

    fn messages() -> impl Strategy<Value = Message> {
        let origin = prop_oneof![
            Just(Origin::Field),
            Just(Origin::Gateway),
            Just(Origin::Client(Arc::from("known"))),
            Just(Origin::Uplink(Arc::from("known"))),
            ".{0,9}".prop_map(|name| Origin::Client(Arc::from(name))),
            ".{0,9}".prop_map(|name| Origin::Uplink(Arc::from(name))),
        ];
        let body =
            prop_oneof![prop::collection::vec(any::<u8>(), 0..300).prop_map(|b| Body::Bytes(b.into())), readings()];
        let qos = prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)];
        let rest = (prop::option::of(properties()), body, origin, stamps());
        ("[a-z/]{1,20}", qos, any::<bool>(), rest).prop_map(|(topic, qos, retain, rest)| {
            let (properties, body, origin, received) = rest;
            let topic = Topic::new(&topic).unwrap();
            Message { topic, qos, retain, properties: properties.map(Box::new), body, origin, received }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_message_reads_back_as_it_was_written(message in messages(), sequence: u64, counter: u64) {
            let mut row = Vec::new();
            encode(&mut row, sequence, &start(), counter, &message, &words());
            let (id, read) = decode(&row, sequence, &starts(), &words()).unwrap();
            prop_assert_eq!(&read, &message);
            let expected = MessageId { gateway: start().gateway, store: start().store, start: 3, counter };
            prop_assert_eq!(&id, &expected);
            prop_assert_eq!(entered(&row, sequence, &starts()), Ok((3, message.received)));
            let entry = entry(&row, sequence, &starts()).unwrap();
            prop_assert_eq!((&entry.id, entry.received), (&expected, message.received));
            let source = match (&message.body, &message.origin) {
                (Body::Reading(reading), _) => Source::Device(&reading.device, reading.seq),
                (_, Origin::Client(_)) => Source::Clients,
                (_, Origin::Uplink(_)) => Source::Uplinks,
                _ => Source::Gateway,
            };
            prop_assert_eq!(entry.source, source);

            encode_absolute(&mut row, sequence, &id, &message);
            let alone = decode(&row, sequence, &Starts::new(), &Words::default());
            prop_assert_eq!(alone, Ok((id, message)));
        }

        #[test]
        fn a_flipped_bit_or_another_place_is_noticed(message in messages(), sequence: u64, bit: prop::sample::Index) {
            let mut row = Vec::new();
            encode(&mut row, sequence, &start(), 1, &message, &words());
            prop_assert_eq!(decode(&row, sequence ^ 1, &starts(), &words()), Err(Damaged));
            let bit = bit.index(row.len() * 8);
            row[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&row, sequence, &starts(), &words()), Err(Damaged));
        }

        #[test]
        fn any_bytes_with_a_right_checksum_are_read_or_refused(mut row in prop::collection::vec(any::<u8>(), 0..80)) {
            // Steered past the first checks: version 1, start 3.
            if let [first, _, third, ..] = row.as_mut_slice() {
                *first = 0x10 | (*first & 15);
                *third = 3;
            }
            seal(&mut row, 9);
            let _read_or_damaged = decode(&row, 9, &starts(), &words());
            let _read_or_none = entry(&row, 9, &starts());
        }
    }

    #[test]
    fn four_messages_of_220_bytes_fit_a_page() {
        // 1024 − 8 bytes of page header, four cells: 254 each; 2 for the cell pointer, 2 + 4 for lengths and rowid,
        // 4 for the record's header.
        let message = Message {
            topic: Topic::new("plant/press/3/sensor").unwrap(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: None,
            body: Body::Bytes(Bytes::from(vec![7; 200])),
            origin: Origin::Client(Arc::from("known")),
            received: Stamp { wall_ms: 1_795_525_600_000, mono_ms: 100_090_002, clock: ClockState::Synced },
        };
        let mut row = Vec::new();
        encode(&mut row, 1 << 27, &start(), 200_000_000, &message, &words());
        assert!(row.len() <= 242, "{}", row.len());
    }
}
