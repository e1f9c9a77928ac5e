//! Bytes to packets and back.
//!
//! Promises: `decode` reserves nothing and holds nothing back, so what a connection costs is what its owner lets
//! `input` grow to; a fault comes with what the specification wants said about it; `encode` appends a whole packet or
//! nothing.

use bytes::{Buf, BytesMut};
use mqtt_proto::Protocol;
use thiserror::Error;

use super::frame::{Header, Kind};
use super::packet::{Connack, Disconnect, Packet, ReasonCode, Version};
use super::reason::Fault;
use super::{ack, guard, publish, subscribe, v3, v5};

/// Who reads: some packets, properties and reason codes are allowed one way only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// We are the server: the bytes come from a client.
    FromClient,
    /// We are the client: the bytes come from a server.
    FromServer,
}

/// Why bytes are no packet.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the peer broke the protocol ({reason}): {what}")]
pub struct DecodeError {
    /// The fault in the words of MQTT 5.
    pub reason: ReasonCode,
    /// The fault, for the log. Never holds text of the peer.
    pub what: String,
    answer: Option<Answer>,
}

impl DecodeError {
    /// What to send before the connection is closed, and in which version to write it; `None` = close without a word.
    ///
    /// The peer is told only what its version has a packet for, and only when it is known to speak MQTT:
    /// - a CONNECT whose protocol name is known and whose level is not: CONNACK, code 1 in 3.1.1 form for old levels
    ///   (also for 0x83 and 0x84, by which bridges of Mosquitto try whether the other end is Mosquitto, and go on to
    ///   plain 3 and 4 after code 1), 0x84 in version 5 form for levels above 5;
    /// - a CONNECT with another protocol name, or a first packet that is not CONNECT: nothing;
    /// - a faulty CONNECT of version 5: CONNACK with the reason; of 3.1.1: nothing, but code 2 for an empty client id
    ///   with clean session 0 (MQTT-3.1.3-8);
    /// - any later fault: DISCONNECT with the reason in version 5, nothing in 3.1.1. A server that has not sent its
    ///   CONNACK yet must send that instead (MQTT-3.14.0-1).
    pub fn answer(&self) -> Option<(Version, Packet)> {
        match self.answer? {
            Answer::Connack(version) => Some((version, Packet::Connack(Box::new(Connack::new(self.reason))))),
            Answer::Disconnect => Some((Version::V5, Packet::Disconnect(Disconnect::new(self.reason)))),
        }
    }

    fn new(fault: Fault, answer: Option<Answer>) -> DecodeError {
        DecodeError { reason: fault.reason, what: fault.what.into_owned(), answer }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Connack(Version),
    Disconnect,
}

/// Why a packet cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// Longer than the peer takes.
    #[error("the packet has {bytes} bytes, and the peer takes {bytes_max}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The peer's Maximum Packet Size.
        bytes_max: usize,
    },
    /// A string or binary field longer than 65,535 bytes, or something that the version does not have.
    #[error("the packet cannot be written: {0}")]
    Unwritable(&'static str),
}

/// Finds packets in what a socket delivered. Holds the version after CONNECT or CONNACK, and nothing else.
#[derive(Debug)]
pub struct Decoder {
    direction: Direction,
    version: Option<Version>,
    packet_bytes_max: usize,
}

impl Decoder {
    /// A decoder for a server's side: the first packet must be CONNECT, whose version holds from then on.
    pub fn from_client(packet_bytes_max: usize) -> Decoder {
        Decoder { direction: Direction::FromClient, version: None, packet_bytes_max }
    }

    /// A decoder for a client's side, whose version is known.
    pub fn from_server(version: Version, packet_bytes_max: usize) -> Decoder {
        Decoder { direction: Direction::FromServer, version: Some(version), packet_bytes_max }
    }

    /// The version, once it is known.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Changes the length limit, for after authentication. It counts the fixed header, as Maximum Packet Size does.
    pub fn set_packet_bytes_max(&mut self, packet_bytes_max: usize) {
        self.packet_bytes_max = packet_bytes_max;
    }

    /// Takes the next packet off the front of `input`; `None` when its end has not arrived yet.
    ///
    /// # Errors
    /// When the peer broke the protocol: send `DecodeError::answer`, where there is one, and close. The faulty packet
    /// stays in `input`, and the decoder must not be used again.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some(header) = Header::read(input).map_err(|fault| self.refuse(fault))? else {
            return Ok(None);
        };
        guard::check_sender(self.direction, self.version, header.kind).map_err(|fault| self.refuse(fault))?;
        if header.packet_bytes() > self.packet_bytes_max {
            return self.refuse_too_large(input.get(header.header_bytes..).unwrap_or_default());
        }
        let Some(body) = input.get(header.header_bytes..header.packet_bytes()) else {
            return Ok(None);
        };
        let version = match self.version {
            Some(version) => version,
            None => connect_version(body)?,
        };
        let packet = read_body(version, &header, body, self.direction).map_err(|fault| match self.version {
            Some(_) => self.refuse(fault),
            None => refuse_connect(version, fault),
        })?;
        self.version = Some(version);
        input.advance(header.packet_bytes());
        Ok(Some(packet))
    }

    fn refuse(&self, fault: Fault) -> DecodeError {
        let answer = (self.version == Some(Version::V5)).then_some(Answer::Disconnect);
        DecodeError::new(fault, answer)
    }

    fn refuse_too_large(&self, body: &[u8]) -> Result<Option<Packet>, DecodeError> {
        let fault = Fault::new(ReasonCode::PACKET_TOO_LARGE, "the packet is longer than is taken");
        if self.version.is_some() {
            return Err(self.refuse(fault));
        }
        // A CONNECT: whom to tell stands in its first seven bytes, which are waited for.
        let v5 = b"\0\x04MQTT\x05";
        let arrived = body.get(..v5.len()).unwrap_or(body);
        if arrived.len() < v5.len() && v5.starts_with(arrived) {
            return Ok(None);
        }
        let answer = (arrived == v5).then_some(Answer::Connack(Version::V5));
        Err(DecodeError::new(fault, answer))
    }
}

/// The version that a CONNECT asks for (MQTT 5.0, 3.1.2.1 and 3.1.2.2).
fn connect_version(body: &[u8]) -> Result<Version, DecodeError> {
    let error = match Protocol::decode(body, &mut 0) {
        Ok(Protocol::V310 | Protocol::V311) => return Ok(Version::V311),
        Ok(Protocol::V500) => return Ok(Version::V5),
        Err(error) => error,
    };
    let answer = match &error {
        mqtt_proto::Error::InvalidProtocol(name, level) if matches!(&**name, "MQTT" | "MQIsdp") => {
            Some(Answer::Connack(if level & 0x7F > 5 { Version::V5 } else { Version::V311 }))
        }
        _ => None,
    };
    Err(DecodeError::new(Fault::from(error), answer))
}

fn refuse_connect(version: Version, fault: Fault) -> DecodeError {
    let is_told = version == Version::V5 || fault.reason == ReasonCode::CLIENT_IDENTIFIER_NOT_VALID;
    DecodeError::new(fault, is_told.then_some(Answer::Connack(version)))
}

fn read_body(version: Version, header: &Header, body: &[u8], sender: Direction) -> Result<Packet, Fault> {
    let kind = header.kind;
    Ok(match kind {
        Kind::Publish => Packet::Publish(publish::decode(version, header.first, body, sender)?),
        Kind::Puback => Packet::Puback(ack::decode(version, kind, body, sender)?),
        Kind::Pubrec => Packet::Pubrec(ack::decode(version, kind, body, sender)?),
        Kind::Pubrel => Packet::Pubrel(ack::decode(version, kind, body, sender)?),
        Kind::Pubcomp => Packet::Pubcomp(ack::decode(version, kind, body, sender)?),
        Kind::Subscribe => Packet::Subscribe(subscribe::decode_subscribe(version, body)?),
        Kind::Unsubscribe => Packet::Unsubscribe(subscribe::decode_unsubscribe(version, body)?),
        _ if version == Version::V311 => v3::decode(header, body)?,
        _ => v5::decode(header, body, sender)?,
    })
}

/// Writes packets for one peer.
#[derive(Debug, Clone)]
pub struct Encoder {
    version: Version,
    packet_bytes_max: usize,
}

impl Encoder {
    /// An encoder for a peer that takes packets of any length.
    pub fn new(version: Version) -> Encoder {
        Encoder { version, packet_bytes_max: usize::MAX }
    }

    /// The version it writes.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Keeps to the peer's Maximum Packet Size from now on.
    pub fn set_packet_bytes_max(&mut self, packet_bytes_max: usize) {
        self.packet_bytes_max = packet_bytes_max;
    }

    /// Appends `packet` to `output`; nothing is appended on error.
    ///
    /// What 3.1.1 has no place for stays behind (properties, subscription options but the QoS, reasons of
    /// acknowledgements and UNSUBACK, what stands in CONNECT and CONNACK beside the rest); what it cannot say at all is
    /// unwritable (AUTH, DISCONNECT with a reason, PUBLISH with an alias alone). A reason string, and the user
    /// properties of CONNACK, stay behind where they would make the packet longer than the peer takes.
    ///
    /// # Errors
    /// When the packet is longer than the peer takes, or cannot be written at all.
    pub fn encode(&self, packet: &Packet, output: &mut BytesMut) -> Result<(), EncodeError> {
        let Encoder { version, packet_bytes_max } = *self;
        match packet {
            Packet::Publish(publish) => publish::encode(version, publish, packet_bytes_max, output),
            Packet::Puback(ack) => ack::encode(version, Kind::Puback, ack, packet_bytes_max, output),
            Packet::Pubrec(ack) => ack::encode(version, Kind::Pubrec, ack, packet_bytes_max, output),
            Packet::Pubrel(ack) => ack::encode(version, Kind::Pubrel, ack, packet_bytes_max, output),
            Packet::Pubcomp(ack) => ack::encode(version, Kind::Pubcomp, ack, packet_bytes_max, output),
            Packet::Subscribe(subscribe) => subscribe::encode_subscribe(version, subscribe, packet_bytes_max, output),
            Packet::Unsubscribe(unsubscribe) => {
                subscribe::encode_unsubscribe(version, unsubscribe, packet_bytes_max, output)
            }
            // The version of a CONNECT is its own, so that one encoder cannot write another than was asked for.
            Packet::Connect(connect) if connect.version != version => {
                Err(EncodeError::Unwritable("the CONNECT is of another version than its encoder"))
            }
            _ if version == Version::V311 => v3::encode(packet, packet_bytes_max, output),
            _ => v5::encode(packet, packet_bytes_max, output),
        }
    }
}
