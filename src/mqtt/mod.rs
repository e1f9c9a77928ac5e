//! MQTT on the wire, for both ends: our own packet types over the codec `mqtt-proto`, which no other room sees.
//!
//! `frame` finds where a packet ends and refuses lengths that lie; `guard` refuses what the codec lets through
//! (facts/codec.md: with it 157 of 160 specification cases are judged right); `reason` maps faults to reason codes.
//! Nothing here reserves memory for a length that has not arrived.

pub use codec::{DecodeError, Decoder, Direction, EncodeError, Encoder};
pub use packet::{
    Ack, Auth, Connack, Connect, Disconnect, Packet, PacketId, Publish, ReasonCode, Suback, Subscribe, Subscription,
    Unsuback, Unsubscribe, Version, Will,
};

mod codec;
mod packet;
