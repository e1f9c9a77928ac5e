//! PUBLISH (MQTT 5.0, 3.3), of both versions: the hot path. Pure.
//!
//! Promises: the payload is copied once on the way in, out of the socket's buffer (a slice of it would keep the whole
//! buffer for as long as the message waits), and once on the way out, into the socket's buffer.

use std::num::NonZeroU16;

use bytes::{BufMut, Bytes, BytesMut};
use mqtt_proto::v5::{PacketType, PublishProperties};

use super::codec::{Direction, EncodeError};
use super::cursor::Cursor;
use super::frame::{self, Kind};
use super::guard;
use super::packet::{Publish, ReasonCode, Version};
use super::reason::Fault;
use crate::message::{Properties, Qos, Topic};

/// The largest subscription identifier (MQTT 5.0, 3.8.2.1.2).
pub(super) const SUBSCRIPTION_ID_MAX: u32 = 268_435_455;

const DUP: u8 = 0b1000;
const RETAIN: u8 = 0b0001;

pub(super) fn decode(version: Version, first: u8, body: &[u8], sender: Direction) -> Result<Publish, Fault> {
    let qos = Qos::from_level(first >> 1 & 0b11).ok_or(Fault::malformed("the QoS of a PUBLISH is 3"))?;
    let dup = first & DUP != 0;
    if dup && qos == Qos::AtMostOnce {
        return Err(Fault::protocol("a PUBLISH of QoS 0 is marked as a repeat"));
    }
    let mut cursor = Cursor::new(body);
    let name = cursor.string()?;
    let topic = if name.is_empty() { None } else { Some(Topic::new(name)?) };
    let packet_id = if qos == Qos::AtMostOnce { None } else { Some(cursor.packet_id()?) };
    let mut publish = Publish {
        dup,
        retain: first & RETAIN != 0,
        qos,
        packet_id,
        topic,
        payload: Bytes::new(),
        properties: Properties::default(),
        topic_alias: None,
        subscription_id: None,
    };
    if version == Version::V5 {
        decode_properties(&mut cursor, &mut publish, sender)?;
    }
    if publish.topic.is_none() && publish.topic_alias.is_none() {
        return Err(Fault::protocol("a PUBLISH has neither a topic nor an alias"));
    }
    publish.payload = Bytes::copy_from_slice(cursor.rest());
    Ok(publish)
}

fn decode_properties(cursor: &mut Cursor<'_>, publish: &mut Publish, sender: Direction) -> Result<(), Fault> {
    if cursor.rest().first() == Some(&0) {
        cursor.take(1)?;
        return Ok(());
    }
    let section = guard::section(cursor)?;
    let read = PublishProperties::decode(&section.plain, &mut 0, PacketType::Publish)?;
    if let Some(alias) = read.topic_alias {
        let alias = NonZeroU16::new(alias);
        let fault = Fault::new(ReasonCode::TOPIC_ALIAS_INVALID, "the topic alias is 0");
        publish.topic_alias = Some(alias.ok_or(fault)?);
    }
    if let Some(id) = read.subscription_id {
        if sender == Direction::FromClient {
            // MQTT-3.3.4-6
            return Err(Fault::protocol("a client put a subscription identifier on its PUBLISH"));
        }
        publish.subscription_id = guard::positive(Some(id.value()))?;
    }
    publish.properties = Properties {
        is_utf8: read.payload_is_utf8.unwrap_or(false),
        expiry_s: read.message_expiry_interval,
        content_type: read.content_type.map(|text| text.as_ref().to_owned()),
        response_topic: read.response_topic.map(|topic| Topic::new(&topic)).transpose()?,
        correlation_data: read.correlation_data,
        user: section.user,
    };
    Ok(())
}

/// Writes a PUBLISH. For 3.1.1 the properties stay behind: it has no place for them.
pub(super) fn encode(
    version: Version,
    publish: &Publish,
    packet_bytes_max: usize,
    output: &mut BytesMut,
) -> Result<(), EncodeError> {
    let Publish { dup, retain, qos, packet_id, topic, payload, properties, topic_alias, subscription_id } = publish;
    if (*qos == Qos::AtMostOnce) != packet_id.is_none() {
        return Err(EncodeError::Unwritable("a PUBLISH has a packet id exactly when its QoS is above 0"));
    }
    if *dup && *qos == Qos::AtMostOnce {
        return Err(EncodeError::Unwritable("a PUBLISH of QoS 0 is never a repeat"));
    }
    if topic.is_none() && (version == Version::V311 || topic_alias.is_none()) {
        return Err(EncodeError::Unwritable("a PUBLISH has neither a topic nor an alias"));
    }
    if subscription_id.is_some_and(|id| id == 0 || id > SUBSCRIPTION_ID_MAX) {
        return Err(EncodeError::Unwritable("a subscription identifier is out of range"));
    }
    let name = topic.as_ref().map(Topic::as_str).unwrap_or_default().as_bytes();
    let mut body_bytes = frame::binary_bytes(name)? + 2 * usize::from(packet_id.is_some());
    let mut section_bytes = 0;
    if version == Version::V5 {
        section_bytes = properties_bytes(properties)?;
        section_bytes += topic_alias.map_or(0, |_| 3);
        section_bytes += subscription_id.map_or(0, |id| 1 + frame::varint_bytes(id as usize));
        body_bytes += frame::varint_bytes(section_bytes) + section_bytes;
    }
    body_bytes = body_bytes.saturating_add(payload.len());

    let flags = u8::from(*dup) << 3 | qos.level() << 1 | u8::from(*retain);
    frame::begin(output, Kind::Publish.first_byte() | flags, body_bytes, packet_bytes_max)?;
    frame::put_binary(output, name);
    if let Some(id) = packet_id {
        output.put_u16(id.get());
    }
    if version == Version::V5 {
        frame::put_varint(output, section_bytes);
        put_properties(properties, output);
        if let Some(alias) = topic_alias {
            output.put_u8(0x23);
            output.put_u16(alias.get());
        }
        if let Some(id) = subscription_id {
            output.put_u8(0x0B);
            frame::put_varint(output, *id as usize);
        }
    }
    output.put_slice(payload);
    Ok(())
}

fn properties_bytes(properties: &Properties) -> Result<usize, EncodeError> {
    let Properties { is_utf8, expiry_s, content_type, response_topic, correlation_data, user } = properties;
    let mut bytes = 2 * usize::from(*is_utf8) + 5 * usize::from(expiry_s.is_some());
    if let Some(text) = content_type {
        bytes += 1 + frame::string_bytes(text)?;
    }
    if let Some(topic) = response_topic {
        bytes += 1 + frame::binary_bytes(topic.as_str().as_bytes())?;
    }
    if let Some(data) = correlation_data {
        bytes += 1 + frame::binary_bytes(data)?;
    }
    for (name, value) in user {
        bytes += 1 + frame::string_bytes(name)? + frame::string_bytes(value)?;
    }
    Ok(bytes)
}

fn put_properties(properties: &Properties, output: &mut BytesMut) {
    let Properties { is_utf8, expiry_s, content_type, response_topic, correlation_data, user } = properties;
    if *is_utf8 {
        output.put_slice(&[0x01, 1]);
    }
    if let Some(seconds) = expiry_s {
        output.put_u8(0x02);
        output.put_u32(*seconds);
    }
    if let Some(text) = content_type {
        output.put_u8(0x03);
        frame::put_binary(output, text.as_bytes());
    }
    if let Some(topic) = response_topic {
        output.put_u8(0x08);
        frame::put_binary(output, topic.as_str().as_bytes());
    }
    if let Some(data) = correlation_data {
        output.put_u8(0x09);
        frame::put_binary(output, data);
    }
    for (name, value) in user {
        output.put_u8(0x26);
        frame::put_binary(output, name.as_bytes());
        frame::put_binary(output, value.as_bytes());
    }
}
