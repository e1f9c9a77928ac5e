//! Reads the data types of MQTT (MQTT 5.0, 1.5) from a packet that has arrived whole. Pure.
//!
//! Never reads past the end and never copies: what a length announces must be there, or the packet is malformed.

use super::frame;
use super::packet::PacketId;
use super::reason::Fault;

/// A place in the body of a packet.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(body: &'a [u8]) -> Cursor<'a> {
        Cursor { rest: body }
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(Fault::TRUNCATED)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        let (byte, rest) = self.rest.split_first().ok_or(Fault::TRUNCATED)?;
        self.rest = rest;
        Ok(*byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(Fault::TRUNCATED)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    pub(super) fn packet_id(&mut self) -> Result<PacketId, Fault> {
        PacketId::new(self.u16()?).ok_or(Fault::protocol("the packet id is 0"))
    }

    pub(super) fn binary(&mut self) -> Result<&'a [u8], Fault> {
        let bytes = self.u16()?;
        self.take(usize::from(bytes))
    }

    /// A string: UTF-8 (MQTT-1.5.4-1) without U+0000 (MQTT-1.5.4-2).
    pub(super) fn string(&mut self) -> Result<&'a str, Fault> {
        let text = str::from_utf8(self.binary()?).map_err(|_| Fault::malformed("a string is not UTF-8"))?;
        if text.contains('\0') {
            return Err(Fault::NULL);
        }
        Ok(text)
    }

    /// A variable byte integer in its shortest form (MQTT-1.5.5-1).
    pub(super) fn varint(&mut self) -> Result<u32, Fault> {
        let (value, bytes) = frame::varint(self.rest)?.ok_or(Fault::TRUNCATED)?;
        self.take(bytes)?;
        Ok(value)
    }

    pub(super) fn end(&self) -> Result<(), Fault> {
        if self.is_empty() { Ok(()) } else { Err(Fault::TRAILING) }
    }
}
