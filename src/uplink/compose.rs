//! From a row of the queue to a PUBLISH, within what the cloud said it takes. Pure.
//!
//! A reading whose encoding says so travels in an array with others, or alone in one: `<first id>+<count>` names it.
//!
//! Promises: the same row gives the same body, whenever it is sent (its encoding was recorded); every message that can
//! carry it bears its `MessageId`; what the cloud has no room for is found out before it is sent.

use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;

use super::commands;
use super::waiting::Attempt;
use crate::clock::Timing;
use crate::config::clouds::Profile;
use crate::config::{Compression, Form, Payload};
use crate::message::{Body, Message, MessageId, Properties, Qos, Stamp, Topic};
use crate::mqtt::{Connack, Publish, Version};
use crate::payload::{self, Outgoing, json, json_device};
use crate::queue::Queued;

/// The user property that names a message for its receiver (DESIGN.md 6.8).
pub const ID_PROPERTY: &str = "tidegate-id";

/// The user property that says how a payload is compressed: MQTT has no word of its own for it.
pub const ENCODING_PROPERTY: &str = "content-encoding";

/// The longest packet that MQTT can write (MQTT 5.0, 2.1.4): fixed header, four bytes of length, 268,435,455 bytes.
const PACKET_BYTES_MAX: usize = 268_435_455 + 5;

/// What the cloud takes on this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Protocol version.
    pub version: Version,
    /// What is known of the cloud without its saying so: at 3.1.1 it says nothing.
    pub profile: &'static Profile,
    /// Highest QoS.
    pub qos_max: Qos,
    /// Whether it keeps retained messages.
    pub retain_available: bool,
    /// Longest packet.
    pub packet_bytes_max: usize,
    /// Unacknowledged messages: the smaller of its Receive Maximum and ours.
    pub window: usize,
    /// The keep-alive in force; zero = off.
    pub keep_alive: Duration,
    /// For clouds that have it in their topics.
    pub client_id: String,
}

impl Terms {
    /// What `connack` grants to a client that would like `window` and `keep_alive` of a cloud of this kind.
    pub fn new(
        version: Version,
        profile: &'static Profile,
        connack: &Connack,
        window: NonZeroU16,
        keep_alive: Duration,
    ) -> Terms {
        let packet_bytes_max = connack.packet_bytes_max.and_then(|bytes| usize::try_from(bytes).ok());
        let server_keep_alive = connack.server_keep_alive_s.map(|seconds| Duration::from_secs(u64::from(seconds)));
        let window = profile.window(window);
        Terms {
            version,
            profile,
            qos_max: connack.qos_max.unwrap_or(Qos::ExactlyOnce).min(profile.qos_max),
            retain_available: connack.retain_available,
            // What the cloud itself says holds over what is written about it.
            packet_bytes_max: packet_bytes_max
                .or(profile.packet_bytes)
                .unwrap_or(PACKET_BYTES_MAX)
                .min(PACKET_BYTES_MAX),
            window: usize::from(connack.receive_max.map_or(window, |server| server.min(window)).get()),
            keep_alive: server_keep_alive.unwrap_or_else(|| profile.kept_alive(keep_alive)),
            client_id: String::new(),
        }
    }

    /// The same for this client.
    pub fn of(self, client_id: &str) -> Terms {
        Terms { client_id: client_id.to_owned(), ..self }
    }

    /// The topic under which the cloud takes a message.
    pub fn enveloped(&self, topic: &Topic, payload: &[u8], name: Option<&str>, content_type: Option<&str>) -> Topic {
        self.profile.enveloped(&self.client_id, topic, payload, name, content_type)
    }

    /// Why the cloud would not take a message, whenever it is sent; for a person.
    pub fn fault(&self, publish: &Publish, bytes: usize) -> Option<String> {
        if bytes > self.packet_bytes_max {
            let max = self.packet_bytes_max;
            return Some(format!("the message takes {bytes} bytes, and the cloud's Maximum Packet Size is {max}"));
        }
        let payload = publish.payload.len();
        let topic = publish.topic.as_ref().map_or("", Topic::as_str);
        if let Some(max) = self.profile.payload_bytes_at(topic).filter(|max| payload > *max) {
            return Some(format!("the payload has {payload} bytes, and {} takes {max}", self.profile.title));
        }
        publish.topic.as_ref().and_then(|topic| self.profile.topic_fault(topic.as_str()))
    }
}

/// `row`, and those that travel with it, as a PUBLISH without packet id, at the QoS that the cloud takes; `None` when its
/// own expiry has passed.
pub fn publish(row: &Queued, others: &[Queued], terms: &Terms, now: Stamp) -> Option<Publish> {
    let message = &row.message;
    let expiry_s = remaining_expiry_s(message, row.expires_mono_ms, now)?;
    let qos = row.qos.min(terms.qos_max);
    let (body, marks) = written(row, others);
    let sender = Sender { gateway: &row.id.gateway, name: Some(name(row, others)) };
    Some(assemble(message, &row.encoding.topic, body, marks, qos, sender, expiry_s, terms))
}

/// What names `row` and those that travel with it: of a batch the first one's id and how many there are.
pub fn name(row: &Queued, others: &[Queued]) -> String {
    match &row.message.body {
        Body::Reading(_) if row.encoding.payload.is_batch() => format!("{}+{}", row.id, 1 + others.len()),
        _ => row.id.to_string(),
    }
}

/// Whether nobody wants `row` any more, by its own expiry.
pub fn has_expired(row: &Queued, now: Stamp) -> bool {
    remaining_expiry_s(&row.message, row.expires_mono_ms, now).is_none()
}

/// How a receiver knows what it has got, where that is not the plain JSON that a reading always was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// MIME type of the payload before it was compressed.
    pub content_type: Option<&'static str>,
    /// What was done to it, as HTTP names it (RFC 9110, 8.4).
    pub content_encoding: Option<&'static str>,
}

/// The body of `row` and those that travel with it.
pub fn written(row: &Queued, others: &[Queued]) -> (Bytes, Marks) {
    if let Body::Bytes(bytes) = &row.message.body {
        return (bytes.clone(), Marks::default());
    }
    let payload = &row.encoding.payload;
    let readings: Vec<Outgoing<'_>> = std::iter::once(row).chain(others).filter_map(outgoing).collect();
    let is_plain = [Payload::JSON, Payload::JSON_BATCH].contains(payload);
    let marks = Marks {
        content_type: Some(payload.content_type()).filter(|_| !is_plain),
        content_encoding: Some("gzip").filter(|_| payload.compression == Compression::Gzip),
    };
    (payload::encode(payload, &readings), marks)
}

fn outgoing(row: &Queued) -> Option<Outgoing<'_>> {
    let Body::Reading(reading) = &row.message.body else { return None };
    Some(Outgoing { reading, id: &row.id, timing: row.encoding.timing, topic: &row.message.topic })
}

/// The most bytes that `row` adds to a batch, before that is compressed.
pub fn bytes_in_batch(row: &Queued) -> usize {
    match outgoing(row) {
        Some(one) => payload::bytes_alone(&row.encoding.payload, one),
        None => 0,
    }
}

/// Whether `next` may stand in one message with `rows`, for the form's sake.
pub fn is_kin(rows: &Attempt, next: &Queued, within: Duration) -> bool {
    if rows.row.encoding.payload.form != Form::JsonDevice {
        return true;
    }
    let (Some(first), Some(other)) = (outgoing(&rows.row), outgoing(next)) else { return false };
    let within_ms = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
    json_device::is_kin(first, other, within_ms)
        && rows.rows().filter_map(outgoing).all(|one| one.reading.point != other.reading.point)
}

/// A QoS 0 message, which has no place in the queue and therefore no id of its own; `None` when it has expired.
pub fn live(message: &Message, topic: &Topic, gateway: &str, terms: &Terms, now: Stamp) -> Option<Publish> {
    let expiry_s = message.properties.as_ref().and_then(|properties| properties.expiry_s);
    let expires_mono_ms = expiry_s.map(|expiry_s| message.received.mono_ms.saturating_add(u64::from(expiry_s) * 1000));
    let expiry_s = remaining_expiry_s(message, expires_mono_ms, now)?;
    let payload = match &message.body {
        Body::Bytes(bytes) => bytes.clone(),
        // A reading is always stored; one that comes this way all the same has no name to bear.
        Body::Reading(reading) => json::encode(reading, &unnamed(), Timing::Stamped),
    };
    let sender = Sender { gateway, name: None };
    Some(assemble(message, topic, payload, Marks::default(), Qos::AtMostOnce, sender, expiry_s, terms))
}

/// How many bytes `publish` takes on the wire, exactly (MQTT 5.0, 3.3).
pub fn publish_bytes(publish: &Publish, version: Version) -> usize {
    let topic = publish.topic.as_ref().map_or(0, |topic| topic.as_str().len());
    let id = if publish.qos == Qos::AtMostOnce { 0 } else { 2 };
    let properties = match version {
        Version::V311 => 0,
        Version::V5 => {
            let bytes = properties_bytes(&publish.properties) + if publish.topic_alias.is_some() { 3 } else { 0 };
            bytes + varint_bytes(bytes)
        }
    };
    let remaining = 2 + topic + id + properties + publish.payload.len();
    1 + varint_bytes(remaining) + remaining
}

/// Memory that `row` holds, roughly: for the bounds, not for accounts.
pub fn weight(row: &Queued) -> usize {
    let body = match &row.message.body {
        Body::Bytes(bytes) => bytes.len(),
        Body::Reading(_) => 256,
    };
    let properties = row.message.properties.as_deref().map_or(0, properties_bytes);
    256 + body + properties + row.message.topic.as_str().len() + row.encoding.topic.as_str().len()
}

/// Who says it, and under which name.
struct Sender<'a> {
    gateway: &'a str,
    name: Option<String>,
}

#[expect(clippy::too_many_arguments, reason = "each is another part of the packet")]
fn assemble(
    message: &Message,
    topic: &Topic,
    payload: Bytes,
    marks: Marks,
    qos: Qos,
    sender: Sender<'_>,
    expiry_s: Option<u32>,
    terms: &Terms,
) -> Publish {
    let content_type = match &message.body {
        // What is compressed nobody can look into.
        Body::Reading(_) if marks.content_encoding.is_some() => None,
        Body::Reading(_) => Some(marks.content_type.unwrap_or("application/json")),
        Body::Bytes(_) => message.properties.as_ref().and_then(|properties| properties.content_type.as_deref()),
    };
    let enveloped = terms.enveloped(topic, &payload, sender.name.as_deref(), content_type);
    let properties = match terms.version {
        Version::V311 => Properties::default(),
        Version::V5 => {
            let mut properties = message.properties.as_deref().cloned().unwrap_or_default();
            properties.expiry_s = expiry_s;
            commands::note_passage(sender.gateway, message, &mut properties.user);
            if let Some(content_type) = marks.content_type {
                properties.content_type = Some(content_type.to_owned());
            }
            if let Some(encoding) = marks.content_encoding {
                properties.user.push((ENCODING_PROPERTY.to_owned(), encoding.to_owned()));
            }
            if let Some(name) = sender.name {
                // A client's own property of this name would make two messages look like one, or one like two.
                properties.user.retain(|(name, _)| name != ID_PROPERTY);
                properties.user.push((ID_PROPERTY.to_owned(), name));
            }
            properties
        }
    };
    Publish {
        dup: false,
        retain: message.retain && terms.retain_available && terms.profile.may_retain(topic.as_str()),
        qos,
        packet_id: None,
        topic: Some(enveloped),
        payload,
        properties,
        topic_alias: None,
        subscription_id: None,
    }
}

fn unnamed() -> MessageId {
    MessageId { gateway: std::sync::Arc::from("-"), store: 0, start: 0, counter: 0 }
}

/// How the time of a reading is written from now on, when its row is sent for the first time.
pub fn fix_time(row: &mut Queued, now: Stamp) {
    if let Body::Reading(reading) = &row.message.body {
        row.encoding.timing = row.encoding.timing.at_admission(reading.stamp, now);
    }
}

/// `Some(None)` = never expires, `Some(Some(s))` = so many seconds are left, `None` = none is left. By the time since
/// boot, in which the queue has reckoned the end: a wall clock that is set makes nothing older.
#[expect(clippy::option_option, reason = "no limit, some seconds and none left are three answers")]
fn remaining_expiry_s(message: &Message, expires_mono_ms: Option<u64>, now: Stamp) -> Option<Option<u32>> {
    let expiry_s = message.properties.as_ref().and_then(|properties| properties.expiry_s);
    let (Some(expiry_s), Some(expires_mono_ms)) = (expiry_s, expires_mono_ms) else { return Some(expiry_s) };
    let left_s = expires_mono_ms.saturating_sub(now.mono_ms).div_ceil(1000);
    let left_s = u32::try_from(left_s).unwrap_or(u32::MAX).min(expiry_s);
    // Expiry 0 is legal and means "now or never"; the message has arrived, so it gets its try (MQTT 5.0, 3.3.2.3.3).
    if left_s == 0 && expiry_s > 0 { None } else { Some(Some(left_s)) }
}

fn properties_bytes(properties: &Properties) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, |text| 3 + text.len());
    let user: usize = properties.user.iter().map(|(name, value)| 5 + name.len() + value.len()).sum();
    let response = properties.response_topic.as_ref().map_or(0, |topic| 3 + topic.as_str().len());
    let correlation = properties.correlation_data.as_ref().map_or(0, |bytes| 3 + bytes.len());
    let flag = if properties.is_utf8 { 2 } else { 0 };
    let expiry = if properties.expiry_s.is_some() { 5 } else { 0 };
    flag + expiry + text(&properties.content_type) + response + correlation + user
}

fn varint_bytes(value: usize) -> usize {
    match value {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::config::clouds::{AWS_IOT, GENERIC};

    use bytes::BytesMut;

    use super::*;
    use crate::message::{ClockState, Origin, Quality, Reading, Sequence, Value};
    use crate::mqtt::{Encoder, Packet, PacketId, ReasonCode};
    use crate::queue::Encoding;

    fn terms(version: Version) -> Terms {
        let window = NonZeroU16::new(10).unwrap();
        Terms::new(version, &GENERIC, &Connack::new(ReasonCode::SUCCESS), window, Duration::ZERO)
    }

    fn row(body: Body, properties: Option<Properties>) -> Queued {
        let topic = Topic::new("plant/a").unwrap();
        Queued {
            sequence: Sequence(1),
            id: MessageId { gateway: Arc::from("g"), store: 1, start: 1, counter: 9 },
            message: Message {
                topic: topic.clone(),
                qos: Qos::ExactlyOnce,
                retain: true,
                properties: properties.map(Box::new),
                body,
                origin: Origin::Field,
                received: Stamp { wall_ms: 2_000_000, mono_ms: 10_000, clock: ClockState::Synced },
            },
            qos: Qos::ExactlyOnce,
            encoding: Encoding { topic, payload: Payload::JSON, timing: Timing::Stamped },
            strict_order: false,
            batching: None,
            expires_mono_ms: None,
            age_ms: None,
            is_again: false,
        }
    }

    fn after(seconds: i64) -> Stamp {
        Stamp { wall_ms: 2_000_000 + seconds * 1000, mono_ms: 0, clock: ClockState::Synced }
    }

    #[test]
    fn the_computed_length_is_that_of_the_wire() {
        let rich = Properties {
            is_utf8: true,
            expiry_s: Some(60),
            content_type: Some("text/plain".to_owned()),
            response_topic: Some(Topic::new("answer").unwrap()),
            correlation_data: Some(Bytes::from_static(b"1234")),
            user: vec![("a".to_owned(), "b".to_owned()), ("a".to_owned(), String::new())],
        };
        for version in [Version::V311, Version::V5] {
            for length in [0, 1, 90, 100, 127, 128, 300, 16_200, 16_384, 70_000, 2_097_152] {
                for properties in [None, Some(rich.clone())] {
                    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
                        let row = row(Body::Bytes(Bytes::from(vec![7; length])), properties.clone());
                        let mut publish = publish(&row, &[], &terms(version), after(0)).unwrap();
                        publish.qos = qos;
                        publish.packet_id = PacketId::new(5).filter(|_| qos != Qos::AtMostOnce);
                        let computed = publish_bytes(&publish, version);
                        let mut output = BytesMut::new();
                        // A body that says it is text must be text, or the codec refuses it.
                        publish.properties.is_utf8 = false;
                        let flag = if version == Version::V5 && properties.is_some() { 2 } else { 0 };
                        Encoder::new(version).encode(&Packet::Publish(publish), &mut output).unwrap();
                        let varint_slack = 2;
                        let difference = computed - output.len();
                        assert!((flag..=flag + varint_slack).contains(&difference), "{length} bytes: {difference}");
                        assert!(properties.is_some() || difference == 0, "{length} bytes: {difference}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_id_is_ours_and_other_properties_pass() {
        let user = vec![(ID_PROPERTY.to_owned(), "forged".to_owned()), ("k".to_owned(), "v".to_owned())];
        let row = row(Body::Bytes(Bytes::new()), Some(Properties { user, ..Properties::default() }));
        let sent = publish(&row, &[], &terms(Version::V5), after(0)).unwrap();
        let expected = [("k", "v"), (ID_PROPERTY, "g.000000000001.1.9")];
        let got: Vec<(&str, &str)> = sent.properties.user.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(got, expected);
        assert!(publish(&row, &[], &terms(Version::V311), after(0)).unwrap().properties.is_empty());
    }

    #[test]
    fn the_time_that_a_message_waited_is_taken_off_its_expiry() {
        let properties = Properties { expiry_s: Some(60), ..Properties::default() };
        let mut row = row(Body::Bytes(Bytes::new()), Some(properties));
        row.expires_mono_ms = Some(70_000);
        let terms = terms(Version::V5);
        let left = |wall_ms, mono_ms| {
            let now = Stamp { wall_ms, mono_ms, clock: ClockState::Synced };
            publish(&row, &[], &terms, now).map(|publish| publish.properties.expiry_s)
        };
        assert_eq!(left(2_000_000, 10_000), Some(Some(60)));
        assert_eq!(left(2_000_000, 55_000), Some(Some(15)));
        for stepped in [0, -86_400_000, 34_560_000_000, 2_147_483_647_000] {
            assert_eq!(left(stepped, 55_000), Some(Some(15)), "a clock that is set takes nothing off");
        }
        assert_eq!(left(2_000_000, 70_000), None);
    }

    #[test]
    fn a_reading_is_encoded_with_its_id_and_always_the_same() {
        let reading = Reading {
            device: Arc::from("chiller"),
            point: Arc::from("supply"),
            value: Value::Float(6.5),
            unit: None,
            quality: Quality::Good,
            reason: None,
            seq: 7,
            stamp: after(0),
        };
        let row = row(Body::Reading(reading), None);
        let first = publish(&row, &[], &terms(Version::V311), after(0)).unwrap();
        let later = publish(&row, &[], &terms(Version::V311), after(500)).unwrap();
        assert_eq!(first.payload, later.payload);
        let json: serde_json::Value = serde_json::from_slice(&first.payload).unwrap();
        assert_eq!(json["id"], "g.000000000001.1.9");
    }

    #[test]
    fn the_cloud_decides_over_qos_retain_and_window() {
        let mut connack = Connack::new(ReasonCode::SUCCESS);
        connack.qos_max = Some(Qos::AtLeastOnce);
        connack.retain_available = false;
        connack.receive_max = NonZeroU16::new(5);
        connack.server_keep_alive_s = Some(7);
        let terms = Terms::new(Version::V5, &GENERIC, &connack, NonZeroU16::new(10).unwrap(), Duration::from_secs(60));
        assert_eq!((terms.window, terms.keep_alive), (5, Duration::from_secs(7)));
        let sent = publish(&row(Body::Bytes(Bytes::new()), None), &[], &terms, after(0)).unwrap();
        assert_eq!((sent.qos, sent.retain), (Qos::AtLeastOnce, false));
    }
    #[test]
    fn what_a_cloud_does_not_announce_its_profile_says() {
        let connack = Connack::new(ReasonCode::SUCCESS);
        let window = NonZeroU16::new(1000).unwrap();
        let mut terms = Terms::new(Version::V311, &AWS_IOT, &connack, window, Duration::from_secs(5));
        assert_eq!((terms.window, terms.qos_max, terms.packet_bytes_max), (100, Qos::AtLeastOnce, 149_504));
        assert_eq!(terms.keep_alive, Duration::from_secs(30), "the cloud's shortest");
        let sent = |topic: &str, length: usize, terms: &Terms| {
            let mut row = row(Body::Bytes(Bytes::from(vec![b'x'; length])), None);
            row.encoding.topic = Topic::new(topic).unwrap();
            publish(&row, &[], terms, after(0)).unwrap()
        };
        let retained = sent("$aws/rules/store/a", 1, &terms);
        assert!(!retained.retain && sent("a", 1, &terms).retain, "Basic Ingest retains nothing");
        let fault = |topic: &str, length: usize, terms: &Terms| {
            let publish = sent(topic, length, terms);
            terms.fault(&publish, publish_bytes(&publish, Version::V311))
        };
        assert_eq!(fault("a/b/c/d/e/f/g/h", 128 * 1024, &terms), None);
        assert!(fault("a/b/c/d/e/f/g/h/i", 1, &terms).unwrap().contains("slashes"));
        assert!(fault("a", 128 * 1024 + 1, &terms).unwrap().contains("payload has 131073 bytes"));
        assert!(fault("a", 200 * 1024, &terms).unwrap().contains("Maximum Packet Size is 149504"));
        terms.packet_bytes_max = 100;
        assert!(fault("a", 200, &terms).unwrap().contains("is 100"));
    }
}
