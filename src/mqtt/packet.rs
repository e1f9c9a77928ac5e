//! The packets as the rest of the house sees them, for MQTT 3.1.1 and 5 alike. Pure.
//!
//! What 3.1.1 does not have is empty there. Strings are checked (UTF-8, no U+0000), topics and filters are valid by
//! type, packet ids are never 0.

use std::fmt;
use std::num::NonZeroU16;

use bytes::Bytes;

use crate::message::{Filter, Properties, Qos, Topic};

/// Packet identifier (MQTT 5.0, 2.2.1): never 0.
pub type PacketId = NonZeroU16;

/// Protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1, and 3.1 (`MQIsdp`), which differs in CONNECT only.
    V311,
    /// MQTT 5.0
    V5,
}

/// Any packet of either version.
#[derive(Debug, Clone, PartialEq)]
pub enum Packet {
    /// 1
    Connect(Box<Connect>),
    /// 2
    Connack(Box<Connack>),
    /// 3
    Publish(Publish),
    /// 4
    Puback(Ack),
    /// 5
    Pubrec(Ack),
    /// 6
    Pubrel(Ack),
    /// 7
    Pubcomp(Ack),
    /// 8
    Subscribe(Subscribe),
    /// 9
    Suback(Suback),
    /// 10
    Unsubscribe(Unsubscribe),
    /// 11
    Unsuback(Unsuback),
    /// 12
    Pingreq,
    /// 13
    Pingresp,
    /// 14
    Disconnect(Disconnect),
    /// 15, version 5 only
    Auth(Auth),
}

/// CONNECT (MQTT 5.0, 3.1).
#[derive(Debug, Clone, PartialEq)]
pub struct Connect {
    /// The version it was written in; decides that of the whole connection.
    pub version: Version,
    /// Clean start (version 5) or clean session (3.1.1).
    pub clean_start: bool,
    /// Seconds; 0 = off.
    pub keep_alive_s: u16,
    /// May be empty: the server then assigns one.
    pub client_id: String,
    /// Published by the server when the client is gone without DISCONNECT.
    pub will: Option<Will>,
    /// User name.
    pub username: Option<String>,
    /// Password: any bytes.
    pub password: Option<Bytes>,
    /// Seconds the session outlives the connection; `None` = absent (0). `u32::MAX` = never ends.
    pub session_expiry_s: Option<u32>,
    /// How many QoS 1 and 2 messages the sender takes unacknowledged; `None` = absent (65,535).
    pub receive_max: Option<NonZeroU16>,
    /// Longest packet the sender takes; `None` = no limit.
    pub packet_bytes_max: Option<u32>,
    /// Topic aliases the sender takes; 0 = none.
    pub topic_alias_max: u16,
    /// Asks for response information.
    pub request_response_information: bool,
    /// Asks for reason strings and user properties on failures; true where absent.
    pub request_problem_information: bool,
    /// User properties.
    pub user: Vec<(String, String)>,
    /// Enhanced authentication.
    pub auth_method: Option<String>,
    /// Enhanced authentication.
    pub auth_data: Option<Bytes>,
}

impl Connect {
    /// A CONNECT with a clean start, no keep-alive, and nothing that a client need not say.
    pub fn new(version: Version, client_id: impl Into<String>) -> Connect {
        Connect {
            version,
            clean_start: true,
            keep_alive_s: 0,
            client_id: client_id.into(),
            will: None,
            username: None,
            password: None,
            session_expiry_s: None,
            receive_max: None,
            packet_bytes_max: None,
            topic_alias_max: 0,
            request_response_information: false,
            request_problem_information: true,
            user: Vec::new(),
            auth_method: None,
            auth_data: None,
        }
    }
}

/// The will of a CONNECT (MQTT 5.0, 3.1.3.2).
#[derive(Debug, Clone, PartialEq)]
pub struct Will {
    /// Where it is published.
    pub topic: Topic,
    /// What is published.
    pub payload: Bytes,
    /// At which QoS.
    pub qos: Qos,
    /// Whether it is retained.
    pub retain: bool,
    /// Seconds after the loss of the connection.
    pub delay_s: u32,
    /// Properties of the publish.
    pub properties: Properties,
}

/// CONNACK (MQTT 5.0, 3.2).
#[derive(Debug, Clone, PartialEq)]
pub struct Connack {
    /// The server still had the session.
    pub session_present: bool,
    /// Success, or why not. For 3.1.1 the return codes 1–5 are mapped to 0x84, 0x85, 0x88, 0x86, 0x87.
    pub reason: ReasonCode,
    /// Seconds, when the server changed what was asked for.
    pub session_expiry_s: Option<u32>,
    /// `None` = absent (65,535).
    pub receive_max: Option<NonZeroU16>,
    /// `None` = absent (QoS 2).
    pub qos_max: Option<Qos>,
    /// False when the server has no retained messages; true where absent.
    pub retain_available: bool,
    /// Longest packet the server takes; `None` = no limit.
    pub packet_bytes_max: Option<u32>,
    /// The id the server gave.
    pub assigned_client_id: Option<String>,
    /// Topic aliases the server takes.
    pub topic_alias_max: u16,
    /// For a person.
    pub reason_string: Option<String>,
    /// User properties.
    pub user: Vec<(String, String)>,
    /// True where absent.
    pub wildcard_available: bool,
    /// True where absent.
    pub subscription_ids_available: bool,
    /// True where absent.
    pub shared_available: bool,
    /// The keep-alive the client must use instead of its own.
    pub server_keep_alive_s: Option<u16>,
    /// Basis for response topics.
    pub response_information: Option<String>,
    /// Another server to use.
    pub server_reference: Option<String>,
    /// Enhanced authentication.
    pub auth_method: Option<String>,
    /// Enhanced authentication.
    pub auth_data: Option<Bytes>,
}

impl Connack {
    /// A CONNACK with `reason` and nothing else.
    pub fn new(reason: ReasonCode) -> Connack {
        Connack {
            session_present: false,
            reason,
            session_expiry_s: None,
            receive_max: None,
            qos_max: None,
            retain_available: true,
            packet_bytes_max: None,
            assigned_client_id: None,
            topic_alias_max: 0,
            reason_string: None,
            user: Vec::new(),
            wildcard_available: true,
            subscription_ids_available: true,
            shared_available: true,
            server_keep_alive_s: None,
            response_information: None,
            server_reference: None,
            auth_method: None,
            auth_data: None,
        }
    }
}

/// PUBLISH (MQTT 5.0, 3.3).
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// A repeat of an earlier attempt.
    pub dup: bool,
    /// `retain` flag as on the wire.
    pub retain: bool,
    /// QoS; `packet_id` is there exactly when it is above 0.
    pub qos: Qos,
    /// Its packet id.
    pub packet_id: Option<PacketId>,
    /// Topic; `None` only with an alias (version 5).
    pub topic: Option<Topic>,
    /// The body.
    pub payload: Bytes,
    /// Properties that travel on.
    pub properties: Properties,
    /// Stands for a topic of this connection (MQTT 5.0, 3.3.2.3.4).
    pub topic_alias: Option<NonZeroU16>,
    /// The subscription that this copy answers; server to client only. At most one: one copy is sent for each
    /// matching subscription (MQTT 5.0, 3.3.4).
    pub subscription_id: Option<u32>,
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP (MQTT 5.0, 3.4–3.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The packet id that is answered.
    pub packet_id: PacketId,
    /// Success in version 3.1.1, always.
    pub reason: ReasonCode,
    /// For a person.
    pub reason_string: Option<String>,
}

impl Ack {
    /// An acknowledgement with `reason` and no text.
    pub fn new(packet_id: PacketId, reason: ReasonCode) -> Ack {
        Ack { packet_id, reason, reason_string: None }
    }
}

/// SUBSCRIBE (MQTT 5.0, 3.8): at least one subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscribe {
    /// Its packet id.
    pub packet_id: PacketId,
    /// In the order they stand in.
    pub subscriptions: Vec<Subscription>,
    /// Subscription identifier for all of them.
    pub subscription_id: Option<u32>,
}

/// One filter of a SUBSCRIBE with its options (MQTT 5.0, 3.8.3.1).
#[derive(Debug, Clone, PartialEq)]
pub struct Subscription {
    /// The filter.
    pub filter: Filter,
    /// Highest QoS of deliveries.
    pub qos: Qos,
    /// Do not send back what this client publishes.
    pub no_local: bool,
    /// Keep the retain flag as published.
    pub retain_as_published: bool,
    /// 0 send retained messages, 1 only for a new subscription, 2 never.
    pub retain_handling: u8,
}

/// SUBACK (MQTT 5.0, 3.9). For 3.1.1: granted QoS 0–2 or 0x80.
#[derive(Debug, Clone, PartialEq)]
pub struct Suback {
    /// Of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// One for each subscription: 0x00, 0x01, 0x02 or a failure.
    pub reasons: Vec<ReasonCode>,
}

/// UNSUBSCRIBE (MQTT 5.0, 3.10).
#[derive(Debug, Clone, PartialEq)]
pub struct Unsubscribe {
    /// Its packet id.
    pub packet_id: PacketId,
    /// At least one.
    pub filters: Vec<Filter>,
}

/// UNSUBACK (MQTT 5.0, 3.11). `reasons` is empty in 3.1.1.
#[derive(Debug, Clone, PartialEq)]
pub struct Unsuback {
    /// Of the UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// One for each filter.
    pub reasons: Vec<ReasonCode>,
}

/// DISCONNECT (MQTT 5.0, 3.14).
#[derive(Debug, Clone, PartialEq)]
pub struct Disconnect {
    /// Normal in version 3.1.1, always.
    pub reason: ReasonCode,
    /// Changes the session expiry of CONNECT; client to server only.
    pub session_expiry_s: Option<u32>,
    /// For a person.
    pub reason_string: Option<String>,
    /// Another server to use.
    pub server_reference: Option<String>,
}

impl Disconnect {
    /// A DISCONNECT with `reason` and nothing else.
    pub fn new(reason: ReasonCode) -> Disconnect {
        Disconnect { reason, session_expiry_s: None, reason_string: None, server_reference: None }
    }
}

/// AUTH (MQTT 5.0, 3.15).
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    /// 0x00, 0x18 or 0x19.
    pub reason: ReasonCode,
    /// The method of CONNECT.
    pub method: Option<String>,
    /// The method's own data.
    pub data: Option<Bytes>,
    /// For a person.
    pub reason_string: Option<String>,
}

/// A reason code (MQTT 5.0, 2.4): 0x80 and above are failures.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReasonCode(pub u8);

impl ReasonCode {
    /// Success, normal disconnection, granted QoS 0.
    pub const SUCCESS: ReasonCode = ReasonCode(0x00);
    /// Granted QoS 1.
    pub const GRANTED_QOS_1: ReasonCode = ReasonCode(0x01);
    /// Granted QoS 2.
    pub const GRANTED_QOS_2: ReasonCode = ReasonCode(0x02);
    /// The login goes on.
    pub const CONTINUE_AUTHENTICATION: ReasonCode = ReasonCode(0x18);
    /// A client shows who it is once more.
    pub const RE_AUTHENTICATE: ReasonCode = ReasonCode(0x19);
    /// The client leaves but wants its will published.
    pub const DISCONNECT_WITH_WILL: ReasonCode = ReasonCode(0x04);
    /// Taken, though nobody subscribes: a success.
    pub const NO_MATCHING_SUBSCRIBERS: ReasonCode = ReasonCode(0x10);
    /// UNSUBACK: there was none.
    pub const NO_SUBSCRIPTION_EXISTED: ReasonCode = ReasonCode(0x11);
    /// No reason given.
    pub const UNSPECIFIED_ERROR: ReasonCode = ReasonCode(0x80);
    /// The packet breaks the format.
    pub const MALFORMED_PACKET: ReasonCode = ReasonCode(0x81);
    /// The packet breaks a rule.
    pub const PROTOCOL_ERROR: ReasonCode = ReasonCode(0x82);
    /// Valid, but not taken by this server.
    pub const IMPLEMENTATION_SPECIFIC_ERROR: ReasonCode = ReasonCode(0x83);
    /// This server does not speak that version.
    pub const UNSUPPORTED_PROTOCOL_VERSION: ReasonCode = ReasonCode(0x84);
    /// The client id is not allowed.
    pub const CLIENT_IDENTIFIER_NOT_VALID: ReasonCode = ReasonCode(0x85);
    /// Wrong user or password.
    pub const BAD_USER_NAME_OR_PASSWORD: ReasonCode = ReasonCode(0x86);
    /// Known, but not allowed.
    pub const NOT_AUTHORIZED: ReasonCode = ReasonCode(0x87);
    /// The server cannot serve now.
    pub const SERVER_UNAVAILABLE: ReasonCode = ReasonCode(0x88);
    /// The server is busy.
    pub const SERVER_BUSY: ReasonCode = ReasonCode(0x89);
    /// The client is banned.
    pub const BANNED: ReasonCode = ReasonCode(0x8A);
    /// The server stops.
    pub const SERVER_SHUTTING_DOWN: ReasonCode = ReasonCode(0x8B);
    /// The authentication method is not supported.
    pub const BAD_AUTHENTICATION_METHOD: ReasonCode = ReasonCode(0x8C);
    /// Nothing was heard for 1.5 keep-alives.
    pub const KEEP_ALIVE_TIMEOUT: ReasonCode = ReasonCode(0x8D);
    /// Another connection uses the same client id.
    pub const SESSION_TAKEN_OVER: ReasonCode = ReasonCode(0x8E);
    /// The filter is well formed but not taken.
    pub const TOPIC_FILTER_INVALID: ReasonCode = ReasonCode(0x8F);
    /// The topic is well formed but not taken.
    pub const TOPIC_NAME_INVALID: ReasonCode = ReasonCode(0x90);
    /// The packet id is already in use.
    pub const PACKET_IDENTIFIER_IN_USE: ReasonCode = ReasonCode(0x91);
    /// The packet id is not known.
    pub const PACKET_IDENTIFIER_NOT_FOUND: ReasonCode = ReasonCode(0x92);
    /// More than Receive Maximum messages in flight.
    pub const RECEIVE_MAXIMUM_EXCEEDED: ReasonCode = ReasonCode(0x93);
    /// The alias is 0, or above the maximum, or not yet set.
    pub const TOPIC_ALIAS_INVALID: ReasonCode = ReasonCode(0x94);
    /// Longer than Maximum Packet Size.
    pub const PACKET_TOO_LARGE: ReasonCode = ReasonCode(0x95);
    /// Too many messages a second.
    pub const MESSAGE_RATE_TOO_HIGH: ReasonCode = ReasonCode(0x96);
    /// A quota is used up.
    pub const QUOTA_EXCEEDED: ReasonCode = ReasonCode(0x97);
    /// A person closed the connection.
    pub const ADMINISTRATIVE_ACTION: ReasonCode = ReasonCode(0x98);
    /// The body is not what its format indicator says.
    pub const PAYLOAD_FORMAT_INVALID: ReasonCode = ReasonCode(0x99);
    /// The server has no retained messages.
    pub const RETAIN_NOT_SUPPORTED: ReasonCode = ReasonCode(0x9A);
    /// The server does not take that QoS.
    pub const QOS_NOT_SUPPORTED: ReasonCode = ReasonCode(0x9B);
    /// Use another server for now.
    pub const USE_ANOTHER_SERVER: ReasonCode = ReasonCode(0x9C);
    /// Use another server from now on.
    pub const SERVER_MOVED: ReasonCode = ReasonCode(0x9D);
    /// The server has no shared subscriptions.
    pub const SHARED_NOT_SUPPORTED: ReasonCode = ReasonCode(0x9E);
    /// Too many connections a second.
    pub const CONNECTION_RATE_EXCEEDED: ReasonCode = ReasonCode(0x9F);
    /// The longest time that was allowed.
    pub const MAXIMUM_CONNECT_TIME: ReasonCode = ReasonCode(0xA0);
    /// The server has no subscription identifiers.
    pub const SUBSCRIPTION_IDS_NOT_SUPPORTED: ReasonCode = ReasonCode(0xA1);
    /// The server has no wildcards.
    pub const WILDCARDS_NOT_SUPPORTED: ReasonCode = ReasonCode(0xA2);

    /// Whether it says no.
    pub fn is_failure(self) -> bool {
        self.0 >= 0x80
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:02X}", self.0)
    }
}

impl fmt::Debug for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
