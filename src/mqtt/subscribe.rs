//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5.0, 3.8 and 3.10), of both versions. Pure.
//!
//! Promises: a list of filters is counted before it is held, and `message::Filter` alone judges them.

use bytes::{BufMut, BytesMut};
use mqtt_proto::v5::{PacketType, SubscribeProperties, UnsubscribeProperties};

use super::codec::EncodeError;
use super::cursor::Cursor;
use super::frame::{self, Kind};
use super::guard;
use super::packet::{ReasonCode, Subscribe, Subscription, Unsubscribe, Version};
use super::publish::SUBSCRIPTION_ID_MAX;
use super::reason::Fault;
use crate::message::{Filter, Qos};

const NO_LOCAL: u8 = 0b0000_0100;
const RETAIN_AS_PUBLISHED: u8 = 0b0000_1000;

pub(super) fn decode_subscribe(version: Version, body: &[u8]) -> Result<Subscribe, Fault> {
    let mut cursor = Cursor::new(body);
    let packet_id = cursor.packet_id()?;
    let mut subscription_id = None;
    if version == Version::V5 {
        let section = guard::section(&mut cursor)?;
        let properties = SubscribeProperties::decode(&section.plain, &mut 0, PacketType::Subscribe)?;
        subscription_id = guard::positive(properties.subscription_id.map(|id| id.value()))?;
    }
    let mut subscriptions = Vec::with_capacity(count_filters(&cursor, 1)?);
    while !cursor.is_empty() {
        let filter = Filter::new(cursor.string()?)?;
        subscriptions.push(decode_options(version, filter, cursor.u8()?)?);
    }
    Ok(Subscribe { packet_id, subscriptions, subscription_id })
}

fn decode_options(version: Version, filter: Filter, options: u8) -> Result<Subscription, Fault> {
    let reserved = match version {
        Version::V311 => 0b1111_1100,
        Version::V5 => 0b1100_0000,
    };
    if options & reserved != 0 {
        return Err(Fault::malformed("the reserved bits of a subscription are not 0"));
    }
    // Malformed in 3.1.1 (MQTT-3-8.3-4), a protocol error in version 5 (3.8.3.1).
    let qos = Qos::from_level(options & 0b11).ok_or(match version {
        Version::V311 => Fault::malformed("the QoS of a subscription is 3"),
        Version::V5 => Fault::protocol("the QoS of a subscription is 3"),
    })?;
    let no_local = options & NO_LOCAL != 0;
    if no_local && filter.share_group().is_some() {
        // MQTT-3.8.3-4
        return Err(Fault::protocol("a shared subscription asks for No Local"));
    }
    let retain_handling = options >> 4 & 0b11;
    if retain_handling > 2 {
        return Err(Fault::protocol("the retain handling of a subscription is 3"));
    }
    let retain_as_published = options & RETAIN_AS_PUBLISHED != 0;
    Ok(Subscription { filter, qos, no_local, retain_as_published, retain_handling })
}

pub(super) fn decode_unsubscribe(version: Version, body: &[u8]) -> Result<Unsubscribe, Fault> {
    let mut cursor = Cursor::new(body);
    let packet_id = cursor.packet_id()?;
    if version == Version::V5 {
        let section = guard::section(&mut cursor)?;
        UnsubscribeProperties::decode(&section.plain, &mut 0, PacketType::Unsubscribe)?;
    }
    let mut filters = Vec::with_capacity(count_filters(&cursor, 0)?);
    while !cursor.is_empty() {
        filters.push(Filter::new(cursor.string()?)?);
    }
    Ok(Unsubscribe { packet_id, filters })
}

/// How many filters follow, each with `option_bytes` behind it.
fn count_filters(cursor: &Cursor<'_>, option_bytes: usize) -> Result<usize, Fault> {
    let mut walk = cursor.clone();
    let mut count = 0;
    let mut text_bytes = 0;
    while !walk.is_empty() {
        text_bytes += walk.binary()?.len();
        walk.take(option_bytes)?;
        count += 1;
    }
    if count == 0 {
        // MQTT-3.8.3-2, MQTT-3.10.3-2
        return Err(Fault::protocol("the packet names no filter"));
    }
    // A filter of one letter is 4 bytes on the wire and 56 in memory: beyond this many they must be longer.
    if count > 128 && text_bytes < 5 * count {
        return Err(Fault::new(ReasonCode::QUOTA_EXCEEDED, "too many short filters in one packet"));
    }
    Ok(count)
}

/// Writes a SUBSCRIBE. For 3.1.1 only the QoS goes with a filter: it has no place for the rest.
pub(super) fn encode_subscribe(
    version: Version,
    subscribe: &Subscribe,
    packet_bytes_max: usize,
    output: &mut BytesMut,
) -> Result<(), EncodeError> {
    let Subscribe { packet_id, subscriptions, subscription_id } = subscribe;
    if subscriptions.is_empty() {
        return Err(EncodeError::Unwritable("a SUBSCRIBE names no filter"));
    }
    if subscription_id.is_some_and(|id| id == 0 || id > SUBSCRIPTION_ID_MAX) {
        return Err(EncodeError::Unwritable("a subscription identifier is out of range"));
    }
    let is_v5 = version == Version::V5;
    let id_bytes = subscription_id.map_or(0, |id| 1 + frame::varint_bytes(id as usize));
    let mut body_bytes: usize = 2 + if is_v5 { 1 + id_bytes } else { 0 };
    for Subscription { filter, no_local, retain_handling, .. } in subscriptions {
        if is_v5 && *retain_handling > 2 {
            return Err(EncodeError::Unwritable("the retain handling of a subscription is out of range"));
        }
        if is_v5 && *no_local && filter.share_group().is_some() {
            return Err(EncodeError::Unwritable("a shared subscription cannot be without local messages"));
        }
        body_bytes = body_bytes.saturating_add(1 + frame::binary_bytes(filter.as_str().as_bytes())?);
    }
    frame::begin(output, Kind::Subscribe.first_byte(), body_bytes, packet_bytes_max)?;
    output.put_u16(packet_id.get());
    if is_v5 {
        frame::put_varint(output, id_bytes);
        if let Some(id) = subscription_id {
            output.put_u8(0x0B);
            frame::put_varint(output, *id as usize);
        }
    }
    for Subscription { filter, qos, no_local, retain_as_published, retain_handling } in subscriptions {
        frame::put_binary(output, filter.as_str().as_bytes());
        let mut options = qos.level();
        if is_v5 {
            options |= if *no_local { NO_LOCAL } else { 0 };
            options |= if *retain_as_published { RETAIN_AS_PUBLISHED } else { 0 };
            options |= *retain_handling << 4;
        }
        output.put_u8(options);
    }
    Ok(())
}

pub(super) fn encode_unsubscribe(
    version: Version,
    unsubscribe: &Unsubscribe,
    packet_bytes_max: usize,
    output: &mut BytesMut,
) -> Result<(), EncodeError> {
    let Unsubscribe { packet_id, filters } = unsubscribe;
    if filters.is_empty() {
        return Err(EncodeError::Unwritable("an UNSUBSCRIBE names no filter"));
    }
    let is_v5 = version == Version::V5;
    let mut body_bytes: usize = 2 + usize::from(is_v5);
    for filter in filters {
        body_bytes = body_bytes.saturating_add(frame::binary_bytes(filter.as_str().as_bytes())?);
    }
    frame::begin(output, Kind::Unsubscribe.first_byte(), body_bytes, packet_bytes_max)?;
    output.put_u16(packet_id.get());
    if is_v5 {
        output.put_u8(0);
    }
    for filter in filters {
        frame::put_binary(output, filter.as_str().as_bytes());
    }
    Ok(())
}
