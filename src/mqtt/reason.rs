//! Faults, and which reason code stands where (MQTT 5.0, 2.4 and 4.13). Pure.

use std::borrow::Cow;

use mqtt_proto::v3::ConnectReturnCode;
use mqtt_proto::v5::{
    AuthReasonCode, DisconnectReasonCode, ErrorV5, PubackReasonCode, PubcompReasonCode, PubrecReasonCode,
    PubrelReasonCode,
};

use super::codec::Direction;
use super::frame::Kind;
use super::packet::ReasonCode;
use crate::message::TopicError;

/// Why a packet is refused. `DecodeError` adds whom to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: ReasonCode,
    pub(super) what: Cow<'static, str>,
}

impl Fault {
    pub(super) const TRUNCATED: Fault = Fault::malformed("a field goes past the end of its packet");
    pub(super) const TRAILING: Fault = Fault::malformed("bytes follow the last field of the packet");
    pub(super) const NULL: Fault = Fault::malformed("a string contains the character U+0000");

    pub(super) const fn new(reason: ReasonCode, what: &'static str) -> Fault {
        Fault { reason, what: Cow::Borrowed(what) }
    }

    /// It cannot be parsed.
    pub(super) const fn malformed(what: &'static str) -> Fault {
        Fault::new(ReasonCode::MALFORMED_PACKET, what)
    }

    /// It can be parsed, and breaks a rule.
    pub(super) const fn protocol(what: &'static str) -> Fault {
        Fault::new(ReasonCode::PROTOCOL_ERROR, what)
    }
}

// 0x8F and 0x90 are for names that are well formed and not wanted; these are not well formed (MQTT 5.0, 4.13.1).
impl From<TopicError> for Fault {
    fn from(error: TopicError) -> Fault {
        Fault::malformed(match error {
            TopicError::Empty => "a topic or filter is empty",
            TopicError::TooLong => "a topic or filter is too long",
            TopicError::Null => "a topic or filter contains the character U+0000",
            TopicError::Wildcard => "a topic contains a wildcard",
            TopicError::MisplacedWildcard => "a wildcard does not stand alone in its level, or # is not the last level",
            TopicError::BadShare => "a shared subscription is not $share/<group>/<filter>",
        })
    }
}

// The texts of the peer are not repeated: an error line must not grow to the size of a packet.
impl From<mqtt_proto::Error> for Fault {
    fn from(error: mqtt_proto::Error) -> Fault {
        use mqtt_proto::Error;
        match error {
            Error::IoError(_) | Error::InvalidRemainingLength => Fault::TRUNCATED,
            Error::EmptySubscription => Fault::protocol("the packet names no filter"),
            Error::ZeroPid => Fault::protocol("the packet id is 0"),
            Error::InvalidQos(_) => Fault::malformed("the QoS is not 0, 1 or 2"),
            Error::InvalidConnectFlags(_) => Fault::malformed("the flags of CONNECT contradict each other"),
            Error::InvalidConnackFlags(_) => Fault::malformed("the reserved flags of CONNACK are not 0"),
            Error::InvalidConnectReturnCode(code) => Fault {
                reason: ReasonCode::PROTOCOL_ERROR,
                what: Cow::Owned(format!("CONNACK refuses with the return code {code}, which is reserved")),
            },
            Error::InvalidProtocol(..) | Error::UnexpectedProtocol(_) => {
                Fault::new(ReasonCode::UNSUPPORTED_PROTOCOL_VERSION, "the protocol version is not supported")
            }
            Error::InvalidHeader => Fault::malformed("the fixed header is not valid"),
            Error::InvalidVarByteInt => Fault::malformed("a variable byte integer has more than four bytes"),
            Error::InvalidTopicName(_) => Fault::malformed("a topic is not valid"),
            Error::InvalidTopicFilter(_) => Fault::malformed("a filter is not valid"),
            Error::InvalidString => Fault::malformed("a string is not UTF-8"),
        }
    }
}

impl From<ErrorV5> for Fault {
    fn from(error: ErrorV5) -> Fault {
        let named = |reason, what: String| Fault { reason, what: Cow::Owned(what) };
        match error {
            ErrorV5::Common(error) => Fault::from(error),
            ErrorV5::InvalidReasonCode(packet, code) => {
                let what = format!("the reason code 0x{code:02X} does not belong to {packet}");
                named(ReasonCode::PROTOCOL_ERROR, what)
            }
            ErrorV5::InvalidSubscriptionOption(_) => Fault::protocol("the options of a subscription are not valid"),
            ErrorV5::InvalidPayloadFormat => {
                Fault::new(ReasonCode::PAYLOAD_FORMAT_INVALID, "the will is not the UTF-8 text that it says")
            }
            ErrorV5::InvalidResponseTopic => Fault::malformed("the response topic is not valid"),
            ErrorV5::InvalidPropertyId(id) => {
                named(ReasonCode::MALFORMED_PACKET, format!("there is no property 0x{id:02X}"))
            }
            ErrorV5::InvalidPropertyLength(_) => Fault::malformed("the length of the properties is wrong"),
            ErrorV5::InvalidByteProperty(property, value) => {
                named(ReasonCode::PROTOCOL_ERROR, format!("the property {property} must not be {value}"))
            }
            ErrorV5::DuplicatedProperty(property) => {
                named(ReasonCode::PROTOCOL_ERROR, format!("the property {property} stands twice"))
            }
            // Malformed and not a protocol error: 2.2.2.2 says so.
            ErrorV5::InvalidProperty(packet, property) => {
                named(ReasonCode::MALFORMED_PACKET, format!("the property {property} does not belong to {packet}"))
            }
            ErrorV5::InvalidWillProperty(property) => {
                named(ReasonCode::MALFORMED_PACKET, format!("the property {property} does not belong to a will"))
            }
        }
    }
}

/// Whether the peer may send `code` in a version 5 packet of this type; `None` = some sender may.
pub(super) fn belongs(kind: Kind, code: ReasonCode, sender: Option<Direction>) -> bool {
    let from_client = sender == Some(Direction::FromClient);
    let from_server = sender == Some(Direction::FromServer);
    match kind {
        // 0x10: only the server knows its subscribers (MQTT 5.0, 3.4.2.1).
        Kind::Puback => PubackReasonCode::from_u8(code.0).is_some() && !(from_client && code.0 == 0x10),
        Kind::Pubrec => PubrecReasonCode::from_u8(code.0).is_some() && !(from_client && code.0 == 0x10),
        Kind::Pubrel => PubrelReasonCode::from_u8(code.0).is_some(),
        Kind::Pubcomp => PubcompReasonCode::from_u8(code.0).is_some(),
        Kind::Disconnect => {
            let by_server_only = matches!(code.0, 0x87 | 0x89 | 0x8B | 0x8D | 0x8E | 0x8F | 0x9A..=0x9F | 0xA0..=0xA2);
            let by_client_only = code == ReasonCode::DISCONNECT_WITH_WILL;
            DisconnectReasonCode::from_u8(code.0).is_some()
                && !(from_client && by_server_only)
                && !(from_server && by_client_only)
        }
        // 0x00 only the server, 0x19 only the client (MQTT 5.0, 3.15.2.1).
        Kind::Auth => {
            AuthReasonCode::from_u8(code.0).is_some()
                && !(from_client && code.0 == 0x00)
                && !(from_server && code.0 == 0x19)
        }
        _ => true,
    }
}

/// As `belongs`, for a packet that was read.
pub(super) fn check(kind: Kind, code: ReasonCode, sender: Direction) -> Result<(), Fault> {
    if belongs(kind, code, Some(sender)) {
        return Ok(());
    }
    let what = format!("the peer must not send the reason code {code} in {kind:?}");
    Err(Fault { reason: ReasonCode::PROTOCOL_ERROR, what: Cow::Owned(what) })
}

/// The reason code of a 3.1.1 return code.
pub(super) fn of_return_code(code: ConnectReturnCode) -> ReasonCode {
    match code {
        ConnectReturnCode::Accepted => ReasonCode::SUCCESS,
        ConnectReturnCode::UnacceptableProtocolVersion => ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
        ConnectReturnCode::IdentifierRejected => ReasonCode::CLIENT_IDENTIFIER_NOT_VALID,
        ConnectReturnCode::ServerUnavailable => ReasonCode::SERVER_UNAVAILABLE,
        ConnectReturnCode::BadUserNameOrPassword => ReasonCode::BAD_USER_NAME_OR_PASSWORD,
        ConnectReturnCode::NotAuthorized => ReasonCode::NOT_AUTHORIZED,
    }
}

/// The 3.1.1 return code for a reason. What 3.1.1 has no word for is "unavailable", after which clients try again:
/// a busy or full server is not the client's fault.
pub(super) fn return_code(reason: ReasonCode) -> ConnectReturnCode {
    match reason {
        ReasonCode::SUCCESS => ConnectReturnCode::Accepted,
        ReasonCode::UNSUPPORTED_PROTOCOL_VERSION => ConnectReturnCode::UnacceptableProtocolVersion,
        ReasonCode::CLIENT_IDENTIFIER_NOT_VALID => ConnectReturnCode::IdentifierRejected,
        ReasonCode::BAD_USER_NAME_OR_PASSWORD => ConnectReturnCode::BadUserNameOrPassword,
        ReasonCode::NOT_AUTHORIZED => ConnectReturnCode::NotAuthorized,
        _ => ConnectReturnCode::ServerUnavailable,
    }
}
