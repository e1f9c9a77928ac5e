//! MQTT on the wire, for both ends: our own packet types over the codec `mqtt-proto`, which no other room sees.
//!
//! Promises: no byte from outside makes it panic, or hold more memory than eight times what has arrived and 4 KiB;
//! what it accepts is what the specification accepts; what the encoder writes, the decoder of the other end takes.
//!
//! `frame` finds where a packet ends and refuses lengths that lie; `guard` refuses what `mqtt-proto` lets through and
//! takes the user properties out of its sight; `reason` knows which reason code stands where and what to answer.
//! `publish`, `subscribe` and `ack` are read and written here, because the hot path needs one copy and long lists need
//! a bound; `v3` and `v5` give the other packets to `mqtt-proto`.

pub use codec::{DecodeError, Decoder, Direction, EncodeError, Encoder};
pub use packet::{
    Ack, Auth, Connack, Connect, Disconnect, Packet, PacketId, Publish, ReasonCode, Suback, Subscribe, Subscription,
    Unsuback, Unsubscribe, Version, Will,
};

mod ack;
mod codec;
mod cursor;
mod frame;
mod guard;
mod packet;
mod publish;
mod reason;
mod subscribe;
mod v3;
mod v5;
