//! Where a packet begins and ends (MQTT 5.0, 2.1). Pure.
//!
//! Promises: a length that lies is refused as soon as its last byte has arrived, before anything is held for it;
//! nothing is ever reserved for bytes that have not arrived.

use bytes::{BufMut, BytesMut};

use super::codec::EncodeError;
use super::reason::Fault;

/// The longest body that a variable byte integer can announce (MQTT 5.0, 2.1.4).
pub(super) const BODY_BYTES_MAX: usize = 268_435_455;

/// The type of a packet (MQTT 5.0, 2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connect = 1,
    Connack = 2,
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
    Suback = 9,
    Unsubscribe = 10,
    Unsuback = 11,
    Pingreq = 12,
    Pingresp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl Kind {
    fn of(first: u8) -> Option<Kind> {
        Some(match first >> 4 {
            1 => Kind::Connect,
            2 => Kind::Connack,
            3 => Kind::Publish,
            4 => Kind::Puback,
            5 => Kind::Pubrec,
            6 => Kind::Pubrel,
            7 => Kind::Pubcomp,
            8 => Kind::Subscribe,
            9 => Kind::Suback,
            10 => Kind::Unsubscribe,
            11 => Kind::Unsuback,
            12 => Kind::Pingreq,
            13 => Kind::Pingresp,
            14 => Kind::Disconnect,
            15 => Kind::Auth,
            _ => return None,
        })
    }

    /// The low half of the first byte, which is fixed for every type but PUBLISH (MQTT 5.0, 2.1.3).
    fn flags(self) -> u8 {
        match self {
            Kind::Pubrel | Kind::Subscribe | Kind::Unsubscribe => 0b0010,
            _ => 0,
        }
    }

    /// The first byte of a packet of this type; of a PUBLISH without its flags.
    pub(super) fn first_byte(self) -> u8 {
        (self as u8) << 4 | self.flags()
    }
}

/// A fixed header that has arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) first: u8,
    pub(super) header_bytes: usize,
    pub(super) body_bytes: usize,
}

impl Header {
    /// Reads the header at the front of `input`; `None` when its end has not arrived yet.
    pub(super) fn read(input: &[u8]) -> Result<Option<Header>, Fault> {
        let Some((&first, rest)) = input.split_first() else {
            return Ok(None);
        };
        // Checked before the length: a peer that speaks TLS or HTTP is recognised by its first byte.
        let kind = Kind::of(first).ok_or(Fault::malformed("the packet type 0 is reserved"))?;
        if kind == Kind::Publish {
            if first & 0b0110 == 0b0110 {
                return Err(Fault::malformed("the QoS of a PUBLISH is 3"));
            }
        } else if first & 0x0F != kind.flags() {
            return Err(Fault::malformed("the reserved flags of the fixed header are wrong"));
        }
        let Some((body_bytes, varint_bytes)) = varint(rest)? else {
            return Ok(None);
        };
        let body_bytes = usize::try_from(body_bytes).unwrap_or(BODY_BYTES_MAX);
        Ok(Some(Header { kind, first, header_bytes: 1 + varint_bytes, body_bytes }))
    }

    pub(super) fn packet_bytes(&self) -> usize {
        self.header_bytes + self.body_bytes
    }
}

/// A variable byte integer at the front of `input` and its own length; `None` when it is not there whole.
pub(super) fn varint(input: &[u8]) -> Result<Option<(u32, usize)>, Fault> {
    let mut value = 0;
    for (place, byte) in input.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            // A second way to write the same length is how one parser is made to see other packets than the next.
            if place > 0 && *byte == 0 {
                return Err(Fault::malformed("a variable byte integer is longer than needed"));
            }
            return Ok(Some((value, place + 1)));
        }
    }
    if input.len() >= 4 {
        return Err(Fault::malformed("a variable byte integer has more than four bytes"));
    }
    Ok(None)
}

/// How many bytes a variable byte integer takes.
pub(super) fn varint_bytes(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Writes a variable byte integer.
pub(super) fn put_varint(output: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        output.put_u8((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    output.put_u8(value as u8);
}

/// Begins a packet: checks its length against what the peer takes, then writes the fixed header.
pub(super) fn begin(
    output: &mut BytesMut,
    first: u8,
    body_bytes: usize,
    packet_bytes_max: usize,
) -> Result<(), EncodeError> {
    let bytes = body_bytes.saturating_add(1 + varint_bytes(body_bytes));
    let bytes_max = packet_bytes_max.min(BODY_BYTES_MAX + 5);
    if bytes > bytes_max {
        return Err(EncodeError::TooLarge { bytes, bytes_max });
    }
    output.reserve(bytes);
    output.put_u8(first);
    put_varint(output, body_bytes);
    Ok(())
}

/// Writes a string or binary field, whose length `string_bytes` has been checked.
pub(super) fn put_binary(output: &mut BytesMut, bytes: &[u8]) {
    output.put_u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    output.put_slice(bytes);
}

/// The bytes of a binary field on the wire.
pub(super) fn binary_bytes(bytes: &[u8]) -> Result<usize, EncodeError> {
    if bytes.len() > usize::from(u16::MAX) {
        return Err(EncodeError::Unwritable("a field is longer than 65535 bytes"));
    }
    Ok(2 + bytes.len())
}

/// The bytes of a string on the wire.
pub(super) fn string_bytes(text: &str) -> Result<usize, EncodeError> {
    if text.contains('\0') {
        return Err(EncodeError::Unwritable("a string contains the character U+0000"));
    }
    binary_bytes(text.as_bytes())
}
