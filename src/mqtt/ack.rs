//! PUBACK, PUBREC, PUBREL, PUBCOMP (MQTT 5.0, 3.4 to 3.7), of both versions. Pure.

use bytes::{BufMut, BytesMut};
use mqtt_proto::v5::{PacketType, PubackProperties};

use super::codec::{Direction, EncodeError};
use super::cursor::Cursor;
use super::frame::{self, Kind};
use super::guard;
use super::packet::{Ack, ReasonCode, Version};
use super::reason::{self, Fault};

const REASON_STRING: u8 = 0x1F;

pub(super) fn decode(version: Version, kind: Kind, body: &[u8], sender: Direction) -> Result<Ack, Fault> {
    let mut cursor = Cursor::new(body);
    let mut ack = Ack::new(cursor.packet_id()?, ReasonCode::SUCCESS);
    if version == Version::V311 {
        cursor.end()?;
        return Ok(ack);
    }
    // Reason and properties may be left out (MQTT 5.0, 3.4.2.1 and 3.4.2.2.1).
    if cursor.is_empty() {
        return Ok(ack);
    }
    ack.reason = ReasonCode(cursor.u8()?);
    reason::check(kind, ack.reason, sender)?;
    if cursor.is_empty() {
        return Ok(ack);
    }
    let section = guard::section(&mut cursor)?;
    cursor.end()?;
    // All four have the same properties.
    let properties = PubackProperties::decode(&section.plain, &mut 0, packet_type(kind))?;
    ack.reason_string = properties.reason_string.map(|text| text.as_ref().to_owned());
    Ok(ack)
}

pub(super) fn encode(
    version: Version,
    kind: Kind,
    ack: &Ack,
    packet_bytes_max: usize,
    output: &mut BytesMut,
) -> Result<(), EncodeError> {
    let first = kind.first_byte();
    if version == Version::V311 {
        frame::begin(output, first, 2, packet_bytes_max)?;
        output.put_u16(ack.packet_id.get());
        return Ok(());
    }
    if !reason::belongs(kind, ack.reason, None) {
        return Err(EncodeError::Unwritable("the reason code does not belong to the acknowledgement"));
    }
    if let Some(text) = &ack.reason_string {
        let properties_bytes = 1 + frame::string_bytes(text)?;
        let body_bytes = 3 + frame::varint_bytes(properties_bytes) + properties_bytes;
        // The text must not stand where it makes the packet too long for its receiver (MQTT-3.4.2-2).
        if frame::begin(output, first, body_bytes, packet_bytes_max).is_ok() {
            output.put_u16(ack.packet_id.get());
            output.put_u8(ack.reason.0);
            frame::put_varint(output, properties_bytes);
            output.put_u8(REASON_STRING);
            frame::put_binary(output, text.as_bytes());
            return Ok(());
        }
    }
    let has_reason = ack.reason != ReasonCode::SUCCESS;
    frame::begin(output, first, if has_reason { 3 } else { 2 }, packet_bytes_max)?;
    output.put_u16(ack.packet_id.get());
    if has_reason {
        output.put_u8(ack.reason.0);
    }
    Ok(())
}

fn packet_type(kind: Kind) -> PacketType {
    match kind {
        Kind::Pubrec => PacketType::Pubrec,
        Kind::Pubrel => PacketType::Pubrel,
        Kind::Pubcomp => PacketType::Pubcomp,
        _ => PacketType::Puback,
    }
}
