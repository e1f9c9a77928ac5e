//! What a peer is told about its fault, and what it may cost before it is refused.

use bytes::{BufMut, BytesMut};
use tidegate::mqtt::{DecodeError, Decoder, Encoder, ReasonCode, Version};

use super::cases::{CASES, Verdict};
use super::random::Random;
use super::{CONNECT_5, CONNECT_311, Feed, decode_and_check};

fn refusal(mut decoder: Decoder, bytes: &[u8]) -> DecodeError {
    decoder.decode(&mut BytesMut::from(bytes)).expect_err("these bytes are refused")
}

/// The answer as it goes to the socket; empty for none.
fn answer(error: &DecodeError) -> Vec<u8> {
    let Some((version, packet)) = error.answer() else {
        return Vec::new();
    };
    let mut output = BytesMut::new();
    Encoder::new(version).encode(&packet, &mut output).unwrap();
    output.to_vec()
}

#[test]
fn a_connect_of_an_unknown_level_is_told_so_in_a_form_it_can_read() {
    let with = |name: &[u8], level: u8| {
        let mut bytes = BytesMut::new();
        bytes.put_u8(0x10);
        bytes.put_u8((name.len() + 9) as u8);
        bytes.put_u16(name.len() as u16);
        bytes.put_slice(name);
        bytes.put_slice(&[level, 2, 0, 60, 0, 1, b'c']);
        let error = refusal(Feed::First.decoder(), &bytes);
        assert_eq!(error.reason, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION);
        answer(&error)
    };
    let v3 = b"\x20\x02\0\x01".to_vec();
    let v5 = b"\x20\x03\0\x84\0".to_vec();
    assert_eq!(with(b"MQTT", 3), v3);
    assert_eq!(with(b"MQTT", 0), v3);
    assert_eq!(with(b"MQIsdp", 4), v3);
    assert_eq!(with(b"MQTT", 0x84), v3, "a bridge of Mosquitto goes on only after code 1");
    assert_eq!(with(b"MQIsdp", 0x83), v3);
    assert_eq!(with(b"MQTT", 6), v5);
    assert_eq!(with(b"HTTP", 4), b"", "who speaks another protocol is told nothing");
    assert_eq!(with(b"mqtt", 5), b"");
}

#[test]
fn each_fault_is_answered_as_its_version_can() {
    let cases: [(Feed, &[u8], &[u8]); 9] = [
        (Feed::First, b"\xC0\0", b""),
        (Feed::First, b"\x16\x03\x01", b""),
        // Reserved flag in CONNECT.
        (Feed::First, b"\x10\x0D\0\x04MQTT\x04\x03\0<\0\x01c", b""),
        (Feed::First, b"\x10\x0E\0\x04MQTT\x05\x03\0<\0\0\x01c", b"\x20\x03\0\x81\0"),
        // Empty client id for a session that lasts.
        (Feed::First, b"\x10\x0C\0\x04MQTT\x04\0\0<\0\0", b"\x20\x02\0\x02"),
        (Feed::Client311, b"\x30\x03\0\x01#", b""),
        (Feed::Client5, b"\x30\x04\0\x01#\0", b"\xE0\x01\x81"),
        (Feed::Server311, b"\x30\x03\0\x01#", b""),
        (Feed::Server5, b"\xC0\0", b"\xE0\x01\x82"),
    ];
    for (feed, bytes, expected) in cases {
        assert_eq!(answer(&refusal(feed.decoder(), bytes)), expected, "{feed:?} {bytes:02X?}");
    }
}

#[test]
fn every_answer_is_a_packet_that_the_other_end_takes() {
    for case in CASES.iter().filter(|case| matches!(case.verdict, Verdict::Refused(_))) {
        let Err(error) = case.feed.decoder().decode(&mut BytesMut::from(case.bytes)) else {
            continue;
        };
        let Some((version, packet)) = error.answer() else {
            continue;
        };
        let mut other_end = match case.feed {
            Feed::Server311 | Feed::Server5 => Feed::Client5.decoder(),
            _ => Decoder::from_server(version, 1024),
        };
        let mut bytes = BytesMut::from(&answer(&error)[..]);
        assert_eq!(other_end.decode(&mut bytes), Ok(Some(packet)), "{}", case.name);
    }
}

#[test]
fn a_length_above_the_limit_is_refused_before_anything_is_held_for_it() {
    let announced = b"\x30\xFF\xFF\xFF\x7F";
    for feed in [Feed::Client311, Feed::Client5, Feed::Server311, Feed::Server5] {
        let mut decoder = feed.decoder();
        let mut input = BytesMut::from(&announced[..]);
        let capacity = input.capacity();
        let mut result = Ok(None);
        let used = allocation_counter::measure(|| result = decoder.decode(&mut input));
        assert_eq!(result.unwrap_err().reason, ReasonCode::PACKET_TOO_LARGE);
        assert!(used.bytes_max < 100, "{} bytes held", used.bytes_max);
        assert_eq!(input.capacity(), capacity);
    }
    // Below the limit the decoder waits, and still holds nothing.
    let mut decoder = Decoder::from_server(Version::V5, usize::MAX);
    let mut input = BytesMut::from(&announced[..]);
    let capacity = input.capacity();
    let used = allocation_counter::measure(|| assert_eq!(decoder.decode(&mut input), Ok(None)));
    assert_eq!((used.bytes_total, input.capacity()), (0, capacity));
}

#[test]
fn a_connect_above_the_limit_is_answered_once_its_version_has_arrived() {
    let long = |level: u8| [b"\x10\xFF\xFF\x7F\0\x04MQTT", &[level][..]].concat();
    for cut in 1..11 {
        let mut decoder = Decoder::from_client(1000);
        assert_eq!(decoder.decode(&mut BytesMut::from(&long(5)[..cut])), Ok(None), "{cut} bytes");
    }
    let error = refusal(Decoder::from_client(1000), &long(5));
    assert_eq!(error.reason, ReasonCode::PACKET_TOO_LARGE);
    assert_eq!(answer(&error), b"\x20\x03\0\x95\0");
    assert_eq!(answer(&refusal(Decoder::from_client(1000), &long(4))), b"");
    assert_eq!(answer(&refusal(Decoder::from_client(1000), b"\x10\xFF\xFF\x7F\0\x05")), b"");
}

#[test]
fn the_limit_counts_the_whole_packet_and_can_be_raised() {
    let mut input = BytesMut::from(CONNECT_5);
    let mut decoder = Decoder::from_client(CONNECT_5.len());
    assert!(decoder.decode(&mut input).unwrap().is_some());
    assert_eq!(refusal(Decoder::from_client(CONNECT_311.len() - 1), CONNECT_311).reason.0, 0x95);

    let publish = [&b"\x30\x20\0\x01a\0"[..], &[0; 28]].concat();
    let mut input = BytesMut::from(&publish[..]);
    assert!(decoder.decode(&mut input).is_err());
    decoder.set_packet_bytes_max(publish.len());
    assert!(decoder.decode(&mut input).unwrap().is_some());
}

#[test]
fn lists_of_nothing_cost_no_more_than_their_length_allows() {
    let mut random = Random::announced("lists");
    let (mut taken, mut refused) = (0, 0);
    for turn in 0..600 {
        let count = 1 + random.below([10, 300, 5000][turn % 3]);
        let text_bytes = random.below(12);
        let mut body = BytesMut::new();
        let mut list = BytesMut::new();
        // An UNSUBSCRIBE of short filters, then user properties on each kind of packet that can have them.
        let (feed, first) = [
            (Feed::Client311, 0xA2),
            (Feed::Client5, 0xA2),
            (Feed::Client311, 0x82),
            (Feed::Client5, 0x30),
            (Feed::Client5, 0x40),
            (Feed::Server5, 0x20),
            (Feed::Server5, 0x90),
            (Feed::First, 0x10),
            (Feed::Client5, 0xE0),
        ][turn % 9];
        let is_filters = matches!(first, 0xA2 | 0x82);
        for _ in 0..count {
            let bytes = if text_bytes == 0 { usize::from(is_filters) } else { 1 + random.below(text_bytes) };
            if is_filters {
                list.put_u16(bytes as u16);
                list.put_bytes(b'f', bytes);
                if first == 0x82 {
                    list.put_u8(1);
                }
            } else {
                list.put_u8(0x26);
                list.put_u16(bytes as u16);
                list.put_bytes(b'n', bytes);
                list.put_u16(0);
            }
        }
        match first {
            0xA2 | 0x82 => body.put_u16(1),
            0x30 => body.put_slice(b"\0\x01t"),
            0x40 => body.put_slice(b"\0\x01\0"),
            0x20 => body.put_slice(b"\0\0"),
            0x90 => body.put_slice(b"\0\x01"),
            0xE0 => body.put_u8(0),
            _ => body.put_slice(b"\0\x04MQTT\x05\x02\0<"),
        }
        if is_filters {
            if feed == Feed::Client5 {
                body.put_u8(0);
            }
        } else {
            put_varint(&mut body, list.len());
        }
        body.put_slice(&list);
        match first {
            0x90 => body.put_u8(0),
            0x10 => body.put_slice(b"\0\x01c"),
            _ => {}
        }
        let mut packet = BytesMut::new();
        packet.put_u8(first);
        put_varint(&mut packet, body.len());
        packet.put_slice(&body);
        if decode_and_check(feed, &packet) {
            taken += 1;
        } else {
            refused += 1;
            assert!(count > 128, "{count} entries are not too many: {feed:?} {first:02X}");
        }
    }
    assert!(taken > 200 && refused > 20, "{taken} taken, {refused} refused");
}

fn put_varint(output: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        output.put_u8((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    output.put_u8(value as u8);
}
