//! A live message as one run of bytes, for the way through rumqttd. Pure.
//!
//! Topic, QoS, retain flag, publisher, ordinal and properties stand in front of the body. They are in the payload, not in
//! rumqttd's own properties, because rumqttd counts only topic and payload against the size of its logs: properties
//! beside them would be memory that no bound covers. A short message is filled up for the same reason: rumqttd holds some
//! 300 bytes for it that it does not count.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Live;
use crate::message::{Ordinal, Properties, Qos, Topic};

const QOS_MASK: u8 = 0b0000_0011;
const RETAIN: u8 = 0b0000_0100;
const PUBLISHER: u8 = 0b0000_1000;
const PROPERTIES: u8 = 0b0001_0000;
const UTF8: u8 = 0b0010_0000;
const ORDINAL: u8 = 0b0100_0000;

/// The shortest frame.
pub(super) const FRAME_BYTES_MIN: usize = 240;

/// Writes `live`.
pub(super) fn encode(live: &Live) -> Bytes {
    let text_bytes = live.topic.as_str().len() + live.payload.len();
    let mut frame = BytesMut::with_capacity(FRAME_BYTES_MIN.max(64 + text_bytes));
    let mut flags = live.qos.level();
    flags |= if live.retain { RETAIN } else { 0 };
    flags |= if live.publisher.is_some() { PUBLISHER } else { 0 };
    flags |= if live.ordinal.is_some() { ORDINAL } else { 0 };
    if let Some(properties) = &live.properties {
        flags |= PROPERTIES | if properties.is_utf8 { UTF8 } else { 0 };
    }
    frame.put_u8(flags);
    put(&mut frame, live.topic.as_str().as_bytes());
    if let Some(publisher) = &live.publisher {
        put(&mut frame, publisher.as_bytes());
    }
    if let Some(Ordinal { store, start, counter }) = live.ordinal {
        frame.put_u64(store);
        frame.put_u32(start);
        frame.put_u64(counter);
    }
    if let Some(properties) = &live.properties {
        // Expiry has 32 bits; 2^32 and above stand for none.
        frame.put_u64(properties.expiry_s.map_or(u64::MAX, u64::from));
        put_option(&mut frame, properties.content_type.as_deref().map(str::as_bytes));
        put_option(&mut frame, properties.response_topic.as_ref().map(|topic| topic.as_str().as_bytes()));
        put_option(&mut frame, properties.correlation_data.as_deref());
        frame.put_u32(u32::try_from(properties.user.len()).unwrap_or(u32::MAX));
        for (name, value) in &properties.user {
            put(&mut frame, name.as_bytes());
            put(&mut frame, value.as_bytes());
        }
    }
    put(&mut frame, &live.payload);
    if frame.len() < FRAME_BYTES_MIN {
        frame.resize(FRAME_BYTES_MIN, 0);
    }
    frame.freeze()
}

/// Reads what `encode` wrote; `None` for anything else.
pub(super) fn decode(mut frame: Bytes) -> Option<Live> {
    let flags = frame.try_get_u8().ok()?;
    let qos = Qos::from_level(flags & QOS_MASK)?;
    let topic = Topic::new(&text(&mut frame)?).ok()?;
    let publisher = if flags & PUBLISHER == 0 { None } else { Some(Arc::from(text(&mut frame)?)) };
    let ordinal = if flags & ORDINAL == 0 {
        None
    } else {
        let (store, start) = (frame.try_get_u64().ok()?, frame.try_get_u32().ok()?);
        Some(Ordinal { store, start, counter: frame.try_get_u64().ok()? })
    };
    let properties = if flags & PROPERTIES == 0 {
        None
    } else {
        let expiry_s = u32::try_from(frame.try_get_u64().ok()?).ok();
        let content_type = match take_option(&mut frame)? {
            Some(bytes) => Some(String::from_utf8(bytes.into()).ok()?),
            None => None,
        };
        let response_topic = match take_option(&mut frame)? {
            Some(bytes) => Some(Topic::new(std::str::from_utf8(&bytes).ok()?).ok()?),
            None => None,
        };
        let correlation_data = take_option(&mut frame)?;
        let count = frame.try_get_u32().ok()?;
        let mut user = Vec::new();
        for _ in 0..count {
            user.push((text(&mut frame)?, text(&mut frame)?));
        }
        Some(Box::new(Properties {
            is_utf8: flags & UTF8 != 0,
            expiry_s,
            content_type,
            response_topic,
            correlation_data,
            user,
        }))
    };
    let payload = take(&mut frame)?;
    Some(Live { topic, qos, retain: flags & RETAIN != 0, payload, properties, publisher, ordinal })
}

fn put(frame: &mut BytesMut, bytes: &[u8]) {
    frame.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    frame.put_slice(bytes);
}

fn put_option(frame: &mut BytesMut, bytes: Option<&[u8]>) {
    frame.put_u8(u8::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        put(frame, bytes);
    }
}

fn take(frame: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(frame.try_get_u32().ok()?).ok()?;
    (length <= frame.len()).then(|| frame.split_to(length))
}

#[expect(
    clippy::option_option,
    reason = "the outer one says that the frame is broken, the inner one that the field is absent"
)]
fn take_option(frame: &mut Bytes) -> Option<Option<Bytes>> {
    match frame.try_get_u8().ok()? {
        0 => Some(None),
        _ => take(frame).map(Some),
    }
}

fn text(frame: &mut Bytes) -> Option<String> {
    String::from_utf8(take(frame)?.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Live {
        Live {
            topic: Topic::new("温度/1").unwrap(),
            qos: Qos::ExactlyOnce,
            retain: true,
            payload: Bytes::from_static(b"\x00\xff"),
            properties: Some(Box::new(Properties {
                is_utf8: true,
                expiry_s: Some(u32::MAX),
                content_type: Some("text/plain".to_owned()),
                response_topic: Some(Topic::new("answer").unwrap()),
                correlation_data: Some(Bytes::new()),
                user: vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), String::new())],
            })),
            publisher: Some(Arc::from("plc/7")),
            ordinal: Some(Ordinal { store: (1 << 48) - 1, start: 3, counter: u64::MAX }),
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        assert_eq!(decode(encode(&live())), Some(live()));
        let plain =
            Live { properties: None, publisher: None, ordinal: None, retain: false, payload: Bytes::new(), ..live() };
        assert_eq!(encode(&plain).len(), FRAME_BYTES_MIN);
        assert_eq!(decode(encode(&plain)), Some(plain));
    }

    #[test]
    fn a_frame_that_is_cut_short_is_refused_and_never_a_panic() {
        let frame = encode(&Live { payload: Bytes::from_static(&[b'x'; FRAME_BYTES_MIN]), ..live() });
        for length in 0..frame.len() {
            assert_eq!(decode(frame.slice(..length)), None, "{length}");
        }
    }
}
