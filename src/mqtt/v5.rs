//! MQTT 5.0 between `mqtt-proto`'s packets and ours. Pure.

use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mqtt_proto::{Pid, PollHeader, Protocol, QoS, TopicName, v5};

use super::codec::{Direction, EncodeError};
use super::cursor::Cursor;
use super::frame::{self, BODY_BYTES_MAX, Header, Kind};
use super::guard::{self, Stripped};
use super::packet::{
    Auth, Connack, Connect, Disconnect, Packet, PacketId, ReasonCode, Suback, Unsuback, Version, Will,
};
use super::reason::{self, Fault};
use crate::message::{Properties, Qos, Topic};

type User = Vec<(String, String)>;

/// Reads the packets that have no file of their own.
pub(super) fn decode(header: &Header, body: &[u8], sender: Direction) -> Result<Packet, Fault> {
    // These two have no body, and `mqtt-proto` must not be asked for one: it would panic.
    let empty = match header.kind {
        Kind::Pingreq => Some(Packet::Pingreq),
        Kind::Pingresp => Some(Packet::Pingresp),
        _ => None,
    };
    if let Some(packet) = empty {
        Cursor::new(body).end()?;
        return Ok(packet);
    }
    let Stripped { body, user, will_user } = guard::strip(header.kind, body)?;
    let body_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let their_header = v5::Header::new_with(header.first, body_bytes, body_bytes)?;
    let mut read = 0;
    let packet = their_header.decode_buffer(&body, &mut read)?;
    if read != body.len() {
        return Err(Fault::TRAILING);
    }
    Ok(match packet {
        v5::Packet::Connect(connect) => {
            // The flags stand behind the name and the level.
            guard::check_connect_flags(Version::V5, body.get(7).copied().unwrap_or_default())?;
            Packet::Connect(Box::new(own_connect(connect, user, will_user)?))
        }
        v5::Packet::Connack(connack) => Packet::Connack(Box::new(own_connack(connack, user)?)),
        v5::Packet::Suback(suback) => {
            let reasons = suback.topics.into_iter().map(|code| ReasonCode(code as u8)).collect();
            Packet::Suback(Suback { packet_id: own_packet_id(suback.pid)?, reasons: not_empty(reasons)? })
        }
        v5::Packet::Unsuback(unsuback) => {
            let reasons = unsuback.topics.into_iter().map(|code| ReasonCode(code as u8)).collect();
            Packet::Unsuback(Unsuback { packet_id: own_packet_id(unsuback.pid)?, reasons: not_empty(reasons)? })
        }
        v5::Packet::Disconnect(disconnect) => Packet::Disconnect(own_disconnect(disconnect, sender)?),
        v5::Packet::Auth(auth) => Packet::Auth(own_auth(auth, body.is_empty(), sender)?),
        _ => return Err(Fault::malformed("the packet type is not valid")),
    })
}

fn own_connect(connect: v5::Connect, user: User, will_user: User) -> Result<Connect, Fault> {
    let properties = connect.properties;
    guard::check_auth(properties.auth_method.is_some(), properties.auth_data.is_some())?;
    let will = connect.last_will.map(|will| own_will(will, will_user)).transpose()?;
    Ok(Connect {
        version: Version::V5,
        clean_start: connect.clean_start,
        keep_alive_s: connect.keep_alive,
        client_id: guard::text(&connect.client_id)?,
        will,
        username: connect.username.as_deref().map(guard::text).transpose()?,
        password: connect.password,
        session_expiry_s: properties.session_expiry_interval,
        receive_max: own_receive_max(properties.receive_max)?,
        packet_bytes_max: guard::positive(properties.max_packet_size)?,
        topic_alias_max: properties.topic_alias_max.unwrap_or(0),
        request_response_information: properties.request_response_info.unwrap_or(false),
        request_problem_information: properties.request_problem_info.unwrap_or(true),
        user,
        auth_method: properties.auth_method.map(own_text),
        auth_data: properties.auth_data,
    })
}

fn own_will(will: v5::LastWill, user: User) -> Result<Will, Fault> {
    let properties = will.properties;
    Ok(Will {
        topic: Topic::new(&will.topic_name)?,
        payload: will.payload,
        qos: own_qos(will.qos),
        retain: will.retain,
        delay_s: properties.delay_interval.unwrap_or(0),
        properties: Properties {
            is_utf8: properties.payload_is_utf8.unwrap_or(false),
            expiry_s: properties.message_expiry_interval,
            content_type: properties.content_type.map(own_text),
            response_topic: properties.response_topic.map(|topic| Topic::new(&topic)).transpose()?,
            correlation_data: properties.correlation_data,
            user,
        },
    })
}

fn own_connack(connack: v5::Connack, user: User) -> Result<Connack, Fault> {
    let reason = ReasonCode(connack.reason_code as u8);
    if connack.session_present && reason != ReasonCode::SUCCESS {
        // MQTT-3.2.2-6
        return Err(Fault::protocol("a CONNACK that refuses says that there is a session"));
    }
    let properties = connack.properties;
    guard::check_auth(properties.auth_method.is_some(), properties.auth_data.is_some())?;
    Ok(Connack {
        session_present: connack.session_present,
        reason,
        session_expiry_s: properties.session_expiry_interval,
        receive_max: own_receive_max(properties.receive_max)?,
        qos_max: properties.max_qos.map(own_qos),
        retain_available: properties.retain_available.unwrap_or(true),
        packet_bytes_max: guard::positive(properties.max_packet_size)?,
        assigned_client_id: properties.assigned_client_id.map(own_text),
        topic_alias_max: properties.topic_alias_max.unwrap_or(0),
        reason_string: properties.reason_string.map(own_text),
        user,
        wildcard_available: properties.wildcard_subscription_available.unwrap_or(true),
        subscription_ids_available: properties.subscription_id_available.unwrap_or(true),
        shared_available: properties.shared_subscription_available.unwrap_or(true),
        server_keep_alive_s: properties.server_keep_alive,
        response_information: properties.response_info.map(own_text),
        server_reference: properties.server_reference.map(own_text),
        auth_method: properties.auth_method.map(own_text),
        auth_data: properties.auth_data,
    })
}

fn own_disconnect(disconnect: v5::Disconnect, sender: Direction) -> Result<Disconnect, Fault> {
    let reason = ReasonCode(disconnect.reason_code as u8);
    reason::check(Kind::Disconnect, reason, sender)?;
    let properties = disconnect.properties;
    // MQTT-3.14.2-2, and 3.14.2.2.5 for the reference.
    if sender == Direction::FromServer && properties.session_expiry_interval.is_some() {
        return Err(Fault::protocol("a server changes the session expiry in DISCONNECT"));
    }
    if sender == Direction::FromClient && properties.server_reference.is_some() {
        return Err(Fault::protocol("a client names another server in DISCONNECT"));
    }
    Ok(Disconnect {
        reason,
        session_expiry_s: properties.session_expiry_interval,
        reason_string: properties.reason_string.map(own_text),
        server_reference: properties.server_reference.map(own_text),
    })
}

fn own_auth(auth: v5::Auth, is_short: bool, sender: Direction) -> Result<Auth, Fault> {
    let reason = ReasonCode(auth.reason_code as u8);
    reason::check(Kind::Auth, reason, sender)?;
    let properties = auth.properties;
    // 3.15.2.2.2; the form without a body has no place for it (3.15.2.1).
    if properties.auth_method.is_none() && !is_short {
        return Err(Fault::protocol("an AUTH has no authentication method"));
    }
    Ok(Auth {
        reason,
        method: properties.auth_method.map(own_text),
        data: properties.auth_data,
        reason_string: properties.reason_string.map(own_text),
    })
}

fn not_empty(reasons: Vec<ReasonCode>) -> Result<Vec<ReasonCode>, Fault> {
    if reasons.is_empty() { Err(Fault::protocol("the packet answers no filter")) } else { Ok(reasons) }
}

fn own_receive_max(value: Option<u16>) -> Result<Option<NonZeroU16>, Fault> {
    let value = guard::positive(value.map(u32::from))?;
    Ok(value.and_then(|value| u16::try_from(value).ok()).and_then(NonZeroU16::new))
}

// Properties have been checked by `guard::section`.
fn own_text(text: Arc<str>) -> String {
    text.as_ref().to_owned()
}

pub(super) fn own_packet_id(pid: Pid) -> Result<PacketId, Fault> {
    PacketId::new(pid.value()).ok_or(Fault::protocol("the packet id is 0"))
}

pub(super) fn own_qos(qos: QoS) -> Qos {
    match qos {
        QoS::Level0 => Qos::AtMostOnce,
        QoS::Level1 => Qos::AtLeastOnce,
        QoS::Level2 => Qos::ExactlyOnce,
    }
}

/// Writes the packets that have no file of their own.
pub(super) fn encode(packet: &Packet, packet_bytes_max: usize, output: &mut BytesMut) -> Result<(), EncodeError> {
    let mut theirs = match packet {
        Packet::Connect(connect) => v5::Packet::Connect(their_connect(connect)?),
        Packet::Connack(connack) => v5::Packet::Connack(their_connack(connack)?),
        Packet::Suback(suback) => v5::Packet::Suback(v5::Suback::new(
            their_pid(suback.packet_id)?,
            their_codes(&suback.reasons, v5::SubscribeReasonCode::from_u8)?,
        )),
        Packet::Unsuback(unsuback) => v5::Packet::Unsuback(v5::Unsuback::new(
            their_pid(unsuback.packet_id)?,
            their_codes(&unsuback.reasons, v5::UnsubscribeReasonCode::from_u8)?,
        )),
        Packet::Pingreq => v5::Packet::Pingreq,
        Packet::Pingresp => v5::Packet::Pingresp,
        Packet::Disconnect(disconnect) => v5::Packet::Disconnect(their_disconnect(disconnect)?),
        Packet::Auth(auth) => v5::Packet::Auth(their_auth(auth)?),
        _ => return Err(EncodeError::Unwritable("the packet is written elsewhere")),
    };
    let too_long = |_| EncodeError::TooLarge { bytes: BODY_BYTES_MAX, bytes_max: packet_bytes_max };
    let mut bytes = theirs.encode_len().map_err(too_long)?;
    if bytes > packet_bytes_max {
        // What is only for people must not make the packet too long for its receiver (MQTT-3.2.2-19, MQTT-3.2.2-20,
        // MQTT-3.14.2-3).
        match &mut theirs {
            v5::Packet::Connack(connack) => {
                connack.properties.reason_string = None;
                connack.properties.user_properties.clear();
            }
            v5::Packet::Disconnect(disconnect) => disconnect.properties.reason_string = None,
            _ => {}
        }
        bytes = theirs.encode_len().map_err(too_long)?;
    }
    if bytes > packet_bytes_max {
        return Err(EncodeError::TooLarge { bytes, bytes_max: packet_bytes_max });
    }
    let written = theirs.encode().map_err(|_| EncodeError::Unwritable("the packet is too long"))?;
    output.extend_from_slice(written.as_ref());
    Ok(())
}

fn their_connect(connect: &Connect) -> Result<v5::Connect, EncodeError> {
    check_auth(connect.auth_method.is_some(), connect.auth_data.is_some())?;
    Ok(v5::Connect {
        protocol: Protocol::V500,
        clean_start: connect.clean_start,
        keep_alive: connect.keep_alive_s,
        properties: v5::ConnectProperties {
            session_expiry_interval: connect.session_expiry_s,
            receive_max: connect.receive_max.map(NonZeroU16::get),
            max_packet_size: their_packet_bytes_max(connect.packet_bytes_max)?,
            topic_alias_max: their_alias_max(connect.topic_alias_max),
            request_response_info: connect.request_response_information.then_some(true),
            request_problem_info: (!connect.request_problem_information).then_some(false),
            user_properties: their_user(&connect.user)?,
            auth_method: optional_text(&connect.auth_method)?,
            auth_data: connect.auth_data.as_ref().map(shared_binary).transpose()?,
        },
        client_id: shared_text(&connect.client_id)?,
        last_will: connect.will.as_ref().map(their_will).transpose()?,
        username: optional_text(&connect.username)?,
        password: connect.password.as_ref().map(shared_binary).transpose()?,
    })
}

fn their_will(will: &Will) -> Result<v5::LastWill, EncodeError> {
    let Properties { is_utf8, expiry_s, content_type, response_topic, correlation_data, user } = &will.properties;
    if *is_utf8 && str::from_utf8(&will.payload).is_err() {
        return Err(EncodeError::Unwritable("the will is not the UTF-8 text that it says"));
    }
    Ok(v5::LastWill {
        qos: their_qos(will.qos),
        retain: will.retain,
        topic_name: their_topic(&will.topic)?,
        payload: shared_binary(&will.payload)?,
        properties: v5::WillProperties {
            delay_interval: (will.delay_s > 0).then_some(will.delay_s),
            payload_is_utf8: is_utf8.then_some(true),
            message_expiry_interval: *expiry_s,
            content_type: optional_text(content_type)?,
            response_topic: response_topic.as_ref().map(their_topic).transpose()?,
            correlation_data: correlation_data.as_ref().map(shared_binary).transpose()?,
            user_properties: their_user(user)?,
        },
    })
}

fn their_connack(connack: &Connack) -> Result<v5::Connack, EncodeError> {
    check_auth(connack.auth_method.is_some(), connack.auth_data.is_some())?;
    let unknown = EncodeError::Unwritable("the reason code does not belong to CONNACK");
    let unavailable = |is_available: bool| (!is_available).then_some(false);
    Ok(v5::Connack {
        session_present: connack.session_present && connack.reason == ReasonCode::SUCCESS,
        reason_code: v5::ConnectReasonCode::from_u8(connack.reason.0).ok_or(unknown)?,
        properties: v5::ConnackProperties {
            session_expiry_interval: connack.session_expiry_s,
            receive_max: connack.receive_max.map(NonZeroU16::get),
            // QoS 2 is said by saying nothing (MQTT 5.0, 3.2.2.3.4).
            max_qos: connack.qos_max.filter(|qos| *qos < Qos::ExactlyOnce).map(their_qos),
            retain_available: unavailable(connack.retain_available),
            max_packet_size: their_packet_bytes_max(connack.packet_bytes_max)?,
            assigned_client_id: optional_text(&connack.assigned_client_id)?,
            topic_alias_max: their_alias_max(connack.topic_alias_max),
            reason_string: optional_text(&connack.reason_string)?,
            user_properties: their_user(&connack.user)?,
            wildcard_subscription_available: unavailable(connack.wildcard_available),
            subscription_id_available: unavailable(connack.subscription_ids_available),
            shared_subscription_available: unavailable(connack.shared_available),
            server_keep_alive: connack.server_keep_alive_s,
            response_info: optional_text(&connack.response_information)?,
            server_reference: optional_text(&connack.server_reference)?,
            auth_method: optional_text(&connack.auth_method)?,
            auth_data: connack.auth_data.as_ref().map(shared_binary).transpose()?,
        },
    })
}

fn their_disconnect(disconnect: &Disconnect) -> Result<v5::Disconnect, EncodeError> {
    let Disconnect { reason, session_expiry_s, reason_string, server_reference } = disconnect;
    let unknown = EncodeError::Unwritable("the reason code does not belong to DISCONNECT");
    Ok(v5::Disconnect {
        reason_code: v5::DisconnectReasonCode::from_u8(reason.0).ok_or(unknown)?,
        properties: v5::DisconnectProperties {
            session_expiry_interval: *session_expiry_s,
            reason_string: optional_text(reason_string)?,
            user_properties: Vec::new(),
            server_reference: optional_text(server_reference)?,
        },
    })
}

fn their_auth(auth: &Auth) -> Result<v5::Auth, EncodeError> {
    let Auth { reason, method, data, reason_string } = auth;
    let is_short = *reason == ReasonCode::SUCCESS && data.is_none() && reason_string.is_none();
    if method.is_none() && !is_short {
        return Err(EncodeError::Unwritable("an AUTH has no authentication method"));
    }
    let unknown = EncodeError::Unwritable("the reason code does not belong to AUTH");
    Ok(v5::Auth {
        reason_code: v5::AuthReasonCode::from_u8(reason.0).ok_or(unknown)?,
        properties: v5::AuthProperties {
            auth_method: optional_text(method)?,
            auth_data: data.as_ref().map(shared_binary).transpose()?,
            reason_string: optional_text(reason_string)?,
            user_properties: Vec::new(),
        },
    })
}

fn their_codes<C>(reasons: &[ReasonCode], code: impl Fn(u8) -> Option<C>) -> Result<Vec<C>, EncodeError> {
    if reasons.is_empty() {
        return Err(EncodeError::Unwritable("the packet answers no filter"));
    }
    let unknown = EncodeError::Unwritable("a reason code does not belong to the packet");
    reasons.iter().map(|reason| code(reason.0).ok_or(unknown.clone())).collect()
}

fn check_auth(has_method: bool, has_data: bool) -> Result<(), EncodeError> {
    if has_data && !has_method {
        return Err(EncodeError::Unwritable("authentication data without a method"));
    }
    Ok(())
}

fn their_packet_bytes_max(value: Option<u32>) -> Result<Option<u32>, EncodeError> {
    match value {
        Some(0) => Err(EncodeError::Unwritable("the Maximum Packet Size is 0")),
        value => Ok(value),
    }
}

fn their_alias_max(value: u16) -> Option<u16> {
    (value > 0).then_some(value)
}

fn their_user(user: &[(String, String)]) -> Result<Vec<v5::UserProperty>, EncodeError> {
    let mut bytes = 0;
    for (name, value) in user {
        bytes += 1 + frame::string_bytes(name)? + frame::string_bytes(value)?;
    }
    // `mqtt-proto` panics when properties are longer than a packet can be; all others together are far below half.
    if bytes > BODY_BYTES_MAX / 2 {
        return Err(EncodeError::TooLarge { bytes, bytes_max: BODY_BYTES_MAX / 2 });
    }
    let pair = |(name, value): &(String, String)| v5::UserProperty {
        name: Arc::from(name.as_str()),
        value: Arc::from(value.as_str()),
    };
    Ok(user.iter().map(pair).collect())
}

pub(super) fn their_topic(topic: &Topic) -> Result<TopicName, EncodeError> {
    TopicName::try_from(topic.as_str()).map_err(|_| EncodeError::Unwritable("a topic is not valid"))
}

pub(super) fn their_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::Level0,
        Qos::AtLeastOnce => QoS::Level1,
        Qos::ExactlyOnce => QoS::Level2,
    }
}

pub(super) fn their_pid(packet_id: PacketId) -> Result<Pid, EncodeError> {
    Pid::try_from(packet_id.get()).map_err(|_| EncodeError::Unwritable("the packet id is 0"))
}

fn optional_text(text: &Option<String>) -> Result<Option<Arc<str>>, EncodeError> {
    text.as_deref().map(shared_text).transpose()
}

/// A string as `mqtt-proto` wants it: checked here, because it would write the length modulo 65,536.
pub(super) fn shared_text(text: &str) -> Result<Arc<str>, EncodeError> {
    frame::string_bytes(text)?;
    Ok(Arc::from(text))
}

/// A binary field, checked for the same reason.
pub(super) fn shared_binary(bytes: &Bytes) -> Result<Bytes, EncodeError> {
    frame::binary_bytes(bytes)?;
    Ok(bytes.clone())
}
