//! MQTT 3.1.1 (and the CONNECT of 3.1) between `mqtt-proto`'s packets and ours. Pure.

use bytes::{BufMut, BytesMut};
use mqtt_proto::{PollHeader, Protocol, v3};

use super::codec::EncodeError;
use super::cursor::Cursor;
use super::frame::{self, Header, Kind};
use super::guard;
use super::packet::{Connack, Connect, Disconnect, Packet, PacketId, ReasonCode, Suback, Unsuback, Version, Will};
use super::reason::{self, Fault};
use super::v5::{own_packet_id, own_qos, shared_binary, shared_text, their_pid, their_qos, their_topic};
use crate::message::{Properties, Topic};

/// Reads the packets that have no file of their own.
pub(super) fn decode(header: &Header, body: &[u8]) -> Result<Packet, Fault> {
    // These three have no body, and `mqtt-proto` must not be asked for one: it would panic.
    let empty = match header.kind {
        Kind::Pingreq => Some(Packet::Pingreq),
        Kind::Pingresp => Some(Packet::Pingresp),
        Kind::Disconnect => Some(Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS))),
        _ => None,
    };
    if let Some(packet) = empty {
        Cursor::new(body).end()?;
        return Ok(packet);
    }
    let body_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let their_header = v3::Header::new_with(header.first, body_bytes, body_bytes)?;
    let mut read = 0;
    let packet = their_header.decode_buffer(body, &mut read)?;
    if read != body.len() {
        return Err(Fault::TRAILING);
    }
    Ok(match packet {
        v3::Packet::Connect(connect) => Packet::Connect(Box::new(own_connect(connect, body)?)),
        v3::Packet::Connack(connack) => Packet::Connack(Box::new(own_connack(connack)?)),
        v3::Packet::Suback(suback) => Packet::Suback(own_suback(suback)?),
        v3::Packet::Unsuback(pid) => Packet::Unsuback(Unsuback { packet_id: own_packet_id(pid)?, reasons: Vec::new() }),
        _ => return Err(Fault::malformed("the packet type is not valid")),
    })
}

fn own_connect(connect: v3::Connect, body: &[u8]) -> Result<Connect, Fault> {
    let mut cursor = Cursor::new(body);
    cursor.binary()?;
    cursor.take(1)?;
    guard::check_connect_flags(Version::V311, cursor.u8()?)?;
    if connect.client_id.is_empty() && !connect.clean_session {
        // MQTT-3.1.3-8: answered with return code 2.
        let what = "an empty client id asks for a session that lasts";
        return Err(Fault::new(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, what));
    }
    let will = match connect.last_will {
        None => None,
        Some(will) => Some(Will {
            topic: Topic::new(&will.topic_name)?,
            payload: will.message,
            qos: own_qos(will.qos),
            retain: will.retain,
            delay_s: 0,
            properties: Properties::default(),
        }),
    };
    Ok(Connect {
        clean_start: connect.clean_session,
        keep_alive_s: connect.keep_alive,
        will,
        username: connect.username.as_deref().map(guard::text).transpose()?,
        password: connect.password,
        ..Connect::new(Version::V311, guard::text(&connect.client_id)?)
    })
}

fn own_connack(connack: v3::Connack) -> Result<Connack, Fault> {
    let reason = reason::of_return_code(connack.code);
    if connack.session_present && reason.is_failure() {
        // MQTT-3.2.2-4
        return Err(Fault::protocol("a CONNACK that refuses says that there is a session"));
    }
    Ok(Connack { session_present: connack.session_present, ..Connack::new(reason) })
}

fn own_suback(suback: v3::Suback) -> Result<Suback, Fault> {
    if suback.topics.is_empty() {
        return Err(Fault::protocol("a SUBACK answers no filter"));
    }
    let own = |code: v3::SubscribeReturnCode| match code {
        v3::SubscribeReturnCode::MaxLevel0 => ReasonCode::SUCCESS,
        v3::SubscribeReturnCode::MaxLevel1 => ReasonCode::GRANTED_QOS_1,
        v3::SubscribeReturnCode::MaxLevel2 => ReasonCode::GRANTED_QOS_2,
        v3::SubscribeReturnCode::Failure => ReasonCode::UNSPECIFIED_ERROR,
    };
    let reasons = suback.topics.into_iter().map(own).collect();
    Ok(Suback { packet_id: own_packet_id(suback.pid)?, reasons })
}

/// Writes the packets that have no file of their own.
pub(super) fn encode(packet: &Packet, packet_bytes_max: usize, output: &mut BytesMut) -> Result<(), EncodeError> {
    let theirs = match packet {
        Packet::Connect(connect) => v3::Packet::Connect(their_connect(connect)?),
        Packet::Connack(connack) => {
            let session_present = connack.session_present && connack.reason == ReasonCode::SUCCESS;
            v3::Packet::Connack(v3::Connack::new(session_present, reason::return_code(connack.reason)))
        }
        Packet::Suback(Suback { packet_id, reasons }) => {
            return encode_suback(*packet_id, reasons, packet_bytes_max, output);
        }
        Packet::Unsuback(Unsuback { packet_id, .. }) => v3::Packet::Unsuback(their_pid(*packet_id)?),
        Packet::Pingreq => v3::Packet::Pingreq,
        Packet::Pingresp => v3::Packet::Pingresp,
        // Only a normal end can be said; for any other the connection is closed without a word, so that the will
        // of the client is published.
        Packet::Disconnect(disconnect) if disconnect.reason == ReasonCode::SUCCESS => v3::Packet::Disconnect,
        Packet::Disconnect(_) => return Err(EncodeError::Unwritable("MQTT 3.1.1 has no reason for DISCONNECT")),
        Packet::Auth(_) => return Err(EncodeError::Unwritable("MQTT 3.1.1 has no AUTH")),
        _ => return Err(EncodeError::Unwritable("the packet is written elsewhere")),
    };
    let bytes = theirs.encode_len().map_err(|_| EncodeError::Unwritable("the packet is too long"))?;
    if bytes > packet_bytes_max {
        return Err(EncodeError::TooLarge { bytes, bytes_max: packet_bytes_max });
    }
    let written = theirs.encode().map_err(|_| EncodeError::Unwritable("the packet is too long"))?;
    output.extend_from_slice(written.as_ref());
    Ok(())
}

fn their_connect(connect: &Connect) -> Result<v3::Connect, EncodeError> {
    if connect.client_id.is_empty() && !connect.clean_start {
        return Err(EncodeError::Unwritable("an empty client id needs a clean session in MQTT 3.1.1"));
    }
    if connect.password.is_some() && connect.username.is_none() {
        return Err(EncodeError::Unwritable("a password needs a user name in MQTT 3.1.1"));
    }
    let last_will = match &connect.will {
        None => None,
        Some(will) => Some(v3::LastWill {
            qos: their_qos(will.qos),
            retain: will.retain,
            topic_name: their_topic(&will.topic)?,
            message: shared_binary(&will.payload)?,
        }),
    };
    Ok(v3::Connect {
        protocol: Protocol::V311,
        clean_session: connect.clean_start,
        keep_alive: connect.keep_alive_s,
        client_id: shared_text(&connect.client_id)?,
        last_will,
        username: connect.username.as_deref().map(shared_text).transpose()?,
        password: connect.password.as_ref().map(shared_binary).transpose()?,
    })
}

/// By hand: `mqtt-proto` 0.4.0 writes the failure 0x80 as 0x03.
fn encode_suback(
    packet_id: PacketId,
    reasons: &[ReasonCode],
    packet_bytes_max: usize,
    output: &mut BytesMut,
) -> Result<(), EncodeError> {
    if reasons.is_empty() {
        return Err(EncodeError::Unwritable("a SUBACK answers no filter"));
    }
    if reasons.iter().any(|reason| *reason > ReasonCode::GRANTED_QOS_2 && !reason.is_failure()) {
        return Err(EncodeError::Unwritable("the reason code does not belong to SUBACK"));
    }
    frame::begin(output, Kind::Suback.first_byte(), 2 + reasons.len(), packet_bytes_max)?;
    output.put_u16(packet_id.get());
    for reason in reasons {
        output.put_u8(if reason.is_failure() { 0x80 } else { reason.0 });
    }
    Ok(())
}
