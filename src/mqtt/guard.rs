//! What `mqtt-proto` lets through and the specification does not (facts/codec.md, section 2). Pure.
//!
//! Promises: nothing reaches `mqtt-proto` but property sections whose lengths and strings are right and that hold no
//! user properties. Those are read here, because there they cost 64 bytes and two allocations each, so that a packet
//! of empty ones would take 30 times its own length.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

use super::codec::Direction;
use super::cursor::Cursor;
use super::frame::{self, Kind};
use super::packet::{ReasonCode, Version};
use super::reason::Fault;

const USER_PROPERTY: u8 = 0x26;

/// Refuses a packet by its type alone, before its body has arrived: the other end may not send it, or not now.
pub(super) fn check_sender(sender: Direction, version: Option<Version>, kind: Kind) -> Result<(), Fault> {
    let Some(version) = version else {
        // MQTT-3.1.0-1
        let is_connect = kind == Kind::Connect;
        return if is_connect { Ok(()) } else { Err(Fault::protocol("the first packet is not CONNECT")) };
    };
    if version == Version::V311 && kind == Kind::Auth {
        return Err(Fault::malformed("MQTT 3.1.1 has no AUTH"));
    }
    let fault = match (sender, kind) {
        (Direction::FromClient, Kind::Connect) => "a second CONNECT on one connection",
        (Direction::FromClient, Kind::Connack | Kind::Suback | Kind::Unsuback | Kind::Pingresp) => {
            "only a server sends this packet"
        }
        (Direction::FromServer, Kind::Connect | Kind::Subscribe | Kind::Unsubscribe | Kind::Pingreq) => {
            "only a client sends this packet"
        }
        (Direction::FromServer, Kind::Disconnect) if version == Version::V311 => {
            "a server of MQTT 3.1.1 sends no DISCONNECT"
        }
        _ => return Ok(()),
    };
    Err(Fault::protocol(fault))
}

/// A property section (MQTT 5.0, 2.2.2).
#[derive(Debug)]
pub(super) struct Section<'a> {
    /// As `mqtt-proto` may read it, its length in front.
    pub(super) plain: Cow<'a, [u8]>,
    /// What was taken out.
    pub(super) user: Vec<(String, String)>,
}

/// Reads the section at `cursor`: lengths, UTF-8 and U+0000. Which property may stand here, and how often, is
/// `mqtt-proto`'s to judge.
pub(super) fn section<'a>(cursor: &mut Cursor<'a>) -> Result<Section<'a>, Fault> {
    let whole = cursor.rest();
    let length = usize::try_from(cursor.varint()?).unwrap_or(frame::BODY_BYTES_MAX);
    let properties = cursor.take(length)?;
    let prefix_bytes = whole.len() - cursor.rest().len() - length;
    let section = whole.get(..prefix_bytes + length).unwrap_or_default();

    // Two passes, so that the list is allocated once and at its own size.
    let mut user_count = 0;
    let mut user_bytes = 0;
    let mut walk = Cursor::new(properties);
    while !walk.is_empty() {
        let (bytes, user) = property(&mut walk)?;
        if user.is_some() {
            user_count += 1;
            user_bytes += bytes.len();
        }
    }
    if user_count == 0 {
        return Ok(Section { plain: Cow::Borrowed(section), user: Vec::new() });
    }
    // A pair of empty strings is 5 bytes on the wire and 48 in memory: beyond this many they must carry something.
    if user_count > 256 && user_bytes < 8 * user_count {
        return Err(Fault::new(ReasonCode::QUOTA_EXCEEDED, "too many empty user properties"));
    }
    let mut user = Vec::with_capacity(user_count);
    let plain_bytes = length - user_bytes;
    let mut plain = BytesMut::with_capacity(frame::varint_bytes(plain_bytes) + plain_bytes);
    frame::put_varint(&mut plain, plain_bytes);
    let mut walk = Cursor::new(properties);
    while !walk.is_empty() {
        match property(&mut walk)? {
            (_, Some((name, value))) => user.push((name.to_owned(), value.to_owned())),
            (bytes, None) => plain.put_slice(bytes),
        }
    }
    Ok(Section { plain: Cow::Owned(plain.into()), user })
}

/// A body with its user properties taken out.
#[derive(Debug)]
pub(super) struct Stripped<'a> {
    pub(super) body: Cow<'a, [u8]>,
    pub(super) user: Vec<(String, String)>,
    /// Those of the will.
    pub(super) will_user: Vec<(String, String)>,
}

/// Checks the property sections of a version 5 packet, and takes the user properties out of it.
pub(super) fn strip(kind: Kind, body: &[u8]) -> Result<Stripped<'_>, Fault> {
    let before = match kind {
        // Protocol name and level, flags, keep-alive.
        Kind::Connect => 10,
        Kind::Disconnect if body.len() <= 1 => return Ok(untouched(body)),
        Kind::Auth if body.is_empty() => return Ok(untouched(body)),
        Kind::Disconnect | Kind::Auth => 1,
        // Flags and reason, or the packet id.
        _ => 2,
    };
    let mut cursor = Cursor::new(body);
    let head = cursor.take(before)?;
    let first = section(&mut cursor)?;
    let middle = cursor.rest();
    let mut will = None;
    let has_will = kind == Kind::Connect && head.get(7).is_some_and(|flags| flags & 0b100 != 0);
    if has_will {
        cursor.string()?;
        let client_id_bytes = middle.len() - cursor.rest().len();
        will = Some((client_id_bytes, section(&mut cursor)?));
    }
    let is_untouched = matches!(first.plain, Cow::Borrowed(_))
        && will.as_ref().is_none_or(|(_, section)| matches!(section.plain, Cow::Borrowed(_)));
    if is_untouched {
        return Ok(untouched(body));
    }
    let mut rebuilt = Vec::with_capacity(body.len());
    rebuilt.extend_from_slice(head);
    rebuilt.extend_from_slice(&first.plain);
    let mut will_user = Vec::new();
    if let Some((client_id_bytes, section)) = will {
        rebuilt.extend_from_slice(middle.get(..client_id_bytes).unwrap_or_default());
        rebuilt.extend_from_slice(&section.plain);
        will_user = section.user;
    }
    rebuilt.extend_from_slice(cursor.rest());
    Ok(Stripped { body: Cow::Owned(rebuilt), user: first.user, will_user })
}

/// What has to hold for the flags of a CONNECT of either version (MQTT 5.0, 3.1.2.3).
pub(super) fn check_connect_flags(version: Version, flags: u8) -> Result<(), Fault> {
    let will = flags & 0b0000_0100 != 0;
    let will_retain = flags & 0b0010_0000 != 0;
    let password = flags & 0b0100_0000 != 0;
    let username = flags & 0b1000_0000 != 0;
    if will_retain && !will {
        return Err(Fault::malformed("CONNECT retains a will that it does not have"));
    }
    // MQTT-3.1.2-22 of 3.1.1; version 5 allows it, for tokens.
    if version == Version::V311 && password && !username {
        return Err(Fault::malformed("CONNECT has a password without a user name"));
    }
    Ok(())
}

/// A string of a fixed field, which `mqtt-proto` checked for UTF-8 only.
pub(super) fn text(text: &str) -> Result<String, Fault> {
    if text.contains('\0') { Err(Fault::NULL) } else { Ok(text.to_owned()) }
}

/// A number that the specification forbids to be 0.
pub(super) fn positive(value: Option<u32>) -> Result<Option<u32>, Fault> {
    match value {
        Some(0) => Err(Fault::protocol("a property that must not be 0 is 0")),
        value => Ok(value),
    }
}

/// Authentication data belongs to a method (MQTT 5.0, 3.1.2.11.10).
pub(super) fn check_auth(has_method: bool, has_data: bool) -> Result<(), Fault> {
    if has_data && !has_method {
        return Err(Fault::protocol("authentication data without a method"));
    }
    Ok(())
}

fn untouched(body: &[u8]) -> Stripped<'_> {
    Stripped { body: Cow::Borrowed(body), user: Vec::new(), will_user: Vec::new() }
}

type Property<'a> = (&'a [u8], Option<(&'a str, &'a str)>);

/// The property at `cursor`: its bytes, and the pair where it is a user property (MQTT 5.0, 2.2.2.2).
fn property<'a>(cursor: &mut Cursor<'a>) -> Result<Property<'a>, Fault> {
    let whole = cursor.rest();
    let id = cursor.u8()?;
    let mut user = None;
    match id {
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => {
            cursor.take(1)?;
        }
        0x13 | 0x21 | 0x22 | 0x23 => {
            cursor.take(2)?;
        }
        0x02 | 0x11 | 0x18 | 0x27 => {
            cursor.take(4)?;
        }
        0x0B => {
            cursor.varint()?;
        }
        0x03 | 0x08 | 0x12 | 0x15 | 0x1A | 0x1C | 0x1F => {
            cursor.string()?;
        }
        0x09 | 0x16 => {
            cursor.binary()?;
        }
        USER_PROPERTY => user = Some((cursor.string()?, cursor.string()?)),
        _ => return Err(Fault::malformed("there is no property with this identifier")),
    }
    let bytes = whole.get(..whole.len() - cursor.rest().len()).unwrap_or_default();
    Ok((bytes, user))
}
