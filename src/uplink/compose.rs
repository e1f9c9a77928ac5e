//! From a row of the queue to a PUBLISH, within what the cloud said it takes. Pure.
//!
//! Promises: the same row gives the same body, whenever it is sent (its encoding was recorded); every message that can
//! carry it bears its `MessageId`; what the cloud has no room for is found out before it is sent.

use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;

use crate::message::{Body, ClockState, Message, MessageId, Properties, Qos, Stamp, Topic};
use crate::mqtt::{Connack, Publish, Version};
use crate::payload::json;
use crate::queue::{Encoding, Format, Queued};

/// The user property that names a message for its receiver (DESIGN.md 6.8).
pub const ID_PROPERTY: &str = "tidegate-id";

/// The longest packet that MQTT can write (MQTT 5.0, 2.1.4): fixed header, four bytes of length, 268,435,455 bytes.
const PACKET_BYTES_MAX: usize = 268_435_455 + 5;

/// What the cloud takes on this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Protocol version.
    pub version: Version,
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
}

impl Terms {
    /// What `connack` grants to a client that would like `window` and `keep_alive`.
    pub fn new(version: Version, connack: &Connack, window: NonZeroU16, keep_alive: Duration) -> Terms {
        let packet_bytes_max = connack.packet_bytes_max.and_then(|bytes| usize::try_from(bytes).ok());
        let server_keep_alive = connack.server_keep_alive_s.map(|seconds| Duration::from_secs(u64::from(seconds)));
        Terms {
            version,
            qos_max: connack.qos_max.unwrap_or(Qos::ExactlyOnce),
            retain_available: connack.retain_available,
            packet_bytes_max: packet_bytes_max.unwrap_or(PACKET_BYTES_MAX).min(PACKET_BYTES_MAX),
            window: usize::from(connack.receive_max.map_or(window, |server| server.min(window)).get()),
            keep_alive: server_keep_alive.unwrap_or(keep_alive),
        }
    }
}

/// `row` as a PUBLISH without packet id, at the QoS that the cloud takes; `None` when its own expiry has passed.
pub fn publish(row: &Queued, terms: &Terms, now: Stamp) -> Option<Publish> {
    let expiry_s = remaining_expiry_s(&row.message, now)?;
    let message = &row.message;
    let qos = row.qos.min(terms.qos_max);
    Some(assemble(
        message,
        &row.encoding.topic,
        body(message, &row.id, &row.encoding),
        qos,
        Some(&row.id),
        expiry_s,
        terms,
    ))
}

/// A QoS 0 message, which has no place in the queue and therefore no id of its own; `None` when it has expired.
pub fn live(message: &Message, topic: &Topic, terms: &Terms, now: Stamp) -> Option<Publish> {
    let expiry_s = remaining_expiry_s(message, now)?;
    let payload = match &message.body {
        Body::Bytes(bytes) => bytes.clone(),
        // A reading is always stored; one that comes this way all the same has no name to bear.
        Body::Reading(reading) => json::encode(reading, &unnamed(), 0),
    };
    Some(assemble(message, topic, payload, Qos::AtMostOnce, None, expiry_s, terms))
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

fn assemble(
    message: &Message,
    topic: &Topic,
    payload: Bytes,
    qos: Qos,
    id: Option<&MessageId>,
    expiry_s: Option<u32>,
    terms: &Terms,
) -> Publish {
    let properties = match terms.version {
        Version::V311 => Properties::default(),
        Version::V5 => {
            let mut properties = message.properties.as_deref().cloned().unwrap_or_default();
            properties.expiry_s = expiry_s;
            if let Some(id) = id {
                // A client's own property of this name would make two messages look like one, or one like two.
                properties.user.retain(|(name, _)| name != ID_PROPERTY);
                properties.user.push((ID_PROPERTY.to_owned(), id.to_string()));
            }
            properties
        }
    };
    Publish {
        dup: false,
        retain: message.retain && terms.retain_available,
        qos,
        packet_id: None,
        topic: Some(topic.clone()),
        payload,
        properties,
        topic_alias: None,
        subscription_id: None,
    }
}

fn body(message: &Message, id: &MessageId, encoding: &Encoding) -> Bytes {
    match (&message.body, encoding.format) {
        (Body::Bytes(bytes), _) => bytes.clone(),
        (Body::Reading(reading), Format::Json) => json::encode(reading, id, encoding.clock_offset_ms),
    }
}

fn unnamed() -> MessageId {
    MessageId { gateway: std::sync::Arc::from("-"), store: 0, start: 0, counter: 0 }
}

/// `Some(None)` = never expires, `Some(Some(s))` = so many seconds are left, `None` = none is left.
#[expect(clippy::option_option, reason = "no limit, some seconds and none left are three answers")]
fn remaining_expiry_s(message: &Message, now: Stamp) -> Option<Option<u32>> {
    let Some(expiry_s) = message.properties.as_ref().and_then(|properties| properties.expiry_s) else {
        return Some(None);
    };
    let waited_s = u32::try_from(waited_ms(message.received, now) / 1000).unwrap_or(u32::MAX);
    let left = expiry_s.saturating_sub(waited_s);
    // Expiry 0 is legal and means "now or never"; the message has arrived, so it gets its try (MQTT 5.0, 3.3.2.3.3).
    if left == 0 && waited_s > 0 { None } else { Some(Some(left)) }
}

/// By the wall clock when both ends were trusted, so that a restart of the board counts; else by the clock of this
/// boot, which says nothing about a former one: then nothing is taken off.
fn waited_ms(since: Stamp, now: Stamp) -> u64 {
    if since.clock == ClockState::Synced && now.clock == ClockState::Synced {
        return u64::try_from(now.wall_ms.saturating_sub(since.wall_ms)).unwrap_or(0);
    }
    now.mono_ms.saturating_sub(since.mono_ms)
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
