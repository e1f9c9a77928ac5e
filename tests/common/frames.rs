//! MQTT as it passes by: a stream of bytes cut into packets, and what a watcher wants to know of them. Written apart
//! from the gateway's own codec, so that a fault of that one is not believed here.

/// Cuts a stream into packets.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    taken: usize,
}

impl Frames {
    /// More of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole packet: its first byte, and what follows its length.
    pub fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let rest = &self.bytes[self.taken..];
        let (first, mut length, mut place) = (*rest.first()?, 0_usize, 1);
        loop {
            let byte = *rest.get(place)?;
            length |= usize::from(byte & 0x7f) << (7 * (place - 1));
            place += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let body = rest.get(place..place + length)?.to_vec();
        self.taken += place + length;
        Some((first, body))
    }
}

/// A PUBLISH on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Sent again, as its sender says.
    pub dup: bool,
    /// 0, 1 or 2.
    pub qos: u8,
    /// 0 at QoS 0.
    pub packet_id: u16,
    /// Its topic.
    pub topic: String,
    /// The user property `tidegate-id`.
    pub id: Option<String>,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Published {
    /// Reads what `Frames` has cut out, in version 5 or 3.1.1.
    pub fn read(first: u8, body: &[u8], is_v5: bool) -> Published {
        let topic_end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8_lossy(&body[2..topic_end]).into_owned();
        let qos = (first >> 1) & 3;
        let (packet_id, mut place) = match qos {
            0 => (0, topic_end),
            _ => (u16::from_be_bytes([body[topic_end], body[topic_end + 1]]), topic_end + 2),
        };
        let mut id = None;
        if is_v5 {
            let (length, start) = variable(body, place);
            place = start + length;
            id = tidegate_id(&body[start..place]);
        }
        Published { dup: first & 8 != 0, qos, packet_id, topic, id, payload: body[place..].to_vec() }
    }
}

fn variable(bytes: &[u8], mut place: usize) -> (usize, usize) {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[place];
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        place += 1;
        if byte & 0x80 == 0 {
            return (value, place);
        }
    }
}

/// Walks the properties of a PUBLISH (MQTT 5.0, 3.3.2.3).
fn tidegate_id(mut properties: &[u8]) -> Option<String> {
    const USER_PROPERTY: u8 = 0x26;
    let text = |bytes: &[u8]| -> (String, usize) {
        let end = 2 + usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
        (String::from_utf8_lossy(&bytes[2..end]).into_owned(), end)
    };
    while let Some((kind, rest)) = properties.split_first() {
        let length = match *kind {
            0x01 => 1,
            0x02 => 4,
            0x23 => 2,
            0x03 | 0x08 | 0x09 => text(rest).1,
            0x0b => variable(rest, 0).1,
            USER_PROPERTY => {
                let (name, value_at) = text(rest);
                let (value, length) = text(&rest[value_at..]);
                if name == "tidegate-id" {
                    return Some(value);
                }
                value_at + length
            }
            other => panic!("property {other:#x} has no place in a PUBLISH"),
        };
        properties = &rest[length..];
    }
    None
}
