//! What the encoder writes, byte for byte, and what it refuses to write.

use std::num::NonZeroU16;

use bytes::{Bytes, BytesMut};
use tidegate::message::{Filter, Properties, Qos, Topic};
use tidegate::mqtt::{
    Ack, Auth, Connack, Connect, Decoder, Direction, Disconnect, EncodeError, Encoder, Packet, PacketId, Publish,
    ReasonCode, Suback, Subscribe, Subscription, Unsuback, Unsubscribe, Version, Will,
};

use super::random::Random;
use super::{ENDS, Feed, encoded, feed_of};

const ID: PacketId = PacketId::new(0x0102).unwrap();

fn publish(qos: Qos) -> Publish {
    Publish {
        dup: false,
        retain: false,
        qos,
        packet_id: (qos != Qos::AtMostOnce).then_some(ID),
        topic: Some(Topic::new("t").unwrap()),
        payload: Bytes::from_static(b"x"),
        properties: Properties::default(),
        topic_alias: None,
        subscription_id: None,
    }
}

fn connect(version: Version) -> Connect {
    Connect { keep_alive_s: 60, ..Connect::new(version, "c") }
}

fn will() -> Will {
    Will {
        topic: Topic::new("w").unwrap(),
        payload: Bytes::from_static(b"bye"),
        qos: Qos::AtLeastOnce,
        retain: true,
        delay_s: 0,
        properties: Properties::default(),
    }
}

fn subscription(filter: &str) -> Subscription {
    Subscription {
        filter: Filter::new(filter).unwrap(),
        qos: Qos::AtLeastOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: 2,
    }
}

fn unwritable(version: Version, packet: Packet) {
    let mut output = BytesMut::from(&b"before"[..]);
    let result = Encoder::new(version).encode(&packet, &mut output);
    assert!(matches!(result, Err(EncodeError::Unwritable(_))), "{result:?}: {packet:?}");
    assert_eq!(output, &b"before"[..]);
}

#[test]
fn every_packet_is_written_in_its_shortest_form() {
    let subscribe = |version_5: bool| {
        let subscription_id = version_5.then_some(300);
        Packet::Subscribe(Subscribe { packet_id: ID, subscriptions: vec![subscription("a/#")], subscription_id })
    };
    let ack = |reason| Ack::new(ID, reason);
    let suback = |codes: &[u8]| {
        let reasons = codes.iter().map(|code| ReasonCode(*code)).collect();
        Packet::Suback(Suback { packet_id: ID, reasons })
    };
    let unsubscribe = Packet::Unsubscribe(Unsubscribe { packet_id: ID, filters: vec![Filter::new("f").unwrap()] });
    let mut full = publish(Qos::ExactlyOnce);
    full.dup = true;
    full.retain = true;
    let disconnect = |reason| Packet::Disconnect(Disconnect::new(reason));
    use Version::{V5, V311};
    let cases: Vec<(Version, Packet, &[u8])> = vec![
        (V311, Packet::Connect(Box::new(connect(V311))), b"\x10\x0D\0\x04MQTT\x04\x02\0<\0\x01c"),
        (V5, Packet::Connect(Box::new(connect(V5))), b"\x10\x0E\0\x04MQTT\x05\x02\0<\0\0\x01c"),
        (
            V311,
            Packet::Connect(Box::new(Connect { will: Some(will()), ..connect(V311) })),
            b"\x10\x15\0\x04MQTT\x04\x2E\0<\0\x01c\0\x01w\0\x03bye",
        ),
        (V311, Packet::Connack(Box::new(Connack::new(ReasonCode::SUCCESS))), b"\x20\x02\0\0"),
        (V5, Packet::Connack(Box::new(Connack::new(ReasonCode::SUCCESS))), b"\x20\x03\0\0\0"),
        (V311, Packet::Publish(publish(Qos::AtMostOnce)), b"\x30\x04\0\x01tx"),
        (V5, Packet::Publish(publish(Qos::AtMostOnce)), b"\x30\x05\0\x01t\0x"),
        (V311, Packet::Publish(full.clone()), b"\x3D\x06\0\x01t\x01\x02x"),
        (V5, Packet::Publish(full), b"\x3D\x07\0\x01t\x01\x02\0x"),
        (V311, Packet::Puback(ack(ReasonCode::QUOTA_EXCEEDED)), b"\x40\x02\x01\x02"),
        (V5, Packet::Puback(ack(ReasonCode::SUCCESS)), b"\x40\x02\x01\x02"),
        (V5, Packet::Puback(ack(ReasonCode::QUOTA_EXCEEDED)), b"\x40\x03\x01\x02\x97"),
        (V5, Packet::Pubrec(ack(ReasonCode::NO_MATCHING_SUBSCRIBERS)), b"\x50\x03\x01\x02\x10"),
        (V5, Packet::Pubrel(ack(ReasonCode::SUCCESS)), b"\x62\x02\x01\x02"),
        (V5, Packet::Pubcomp(ack(ReasonCode::PACKET_IDENTIFIER_NOT_FOUND)), b"\x70\x03\x01\x02\x92"),
        (
            V5,
            Packet::Puback(Ack { reason_string: Some("why".to_owned()), ..ack(ReasonCode::SUCCESS) }),
            b"\x40\x0A\x01\x02\0\x06\x1F\0\x03why",
        ),
        (V311, subscribe(false), b"\x82\x08\x01\x02\0\x03a/#\x01"),
        (V5, subscribe(true), b"\x82\x0C\x01\x02\x03\x0B\xAC\x02\0\x03a/#\x2D"),
        (V311, suback(&[0, 1, 2, 0x80, 0x87]), b"\x90\x07\x01\x02\0\x01\x02\x80\x80"),
        (V5, suback(&[0, 1, 2, 0x80, 0x87]), b"\x90\x08\x01\x02\0\0\x01\x02\x80\x87"),
        (V311, unsubscribe.clone(), b"\xA2\x05\x01\x02\0\x01f"),
        (V5, unsubscribe, b"\xA2\x06\x01\x02\0\0\x01f"),
        (V311, Packet::Unsuback(Unsuback { packet_id: ID, reasons: vec![ReasonCode(0)] }), b"\xB0\x02\x01\x02"),
        (V5, Packet::Unsuback(Unsuback { packet_id: ID, reasons: vec![ReasonCode(0)] }), b"\xB0\x04\x01\x02\0\0"),
        (V311, Packet::Pingreq, b"\xC0\0"),
        (V5, Packet::Pingresp, b"\xD0\0"),
        (V311, disconnect(ReasonCode::SUCCESS), b"\xE0\0"),
        (V5, disconnect(ReasonCode::SUCCESS), b"\xE0\0"),
        (V5, disconnect(ReasonCode::DISCONNECT_WITH_WILL), b"\xE0\x01\x04"),
    ];
    for (version, packet, expected) in cases {
        assert_eq!(encoded(version, &packet), expected, "{version:?} {packet:?}");
    }
}

#[test]
fn the_return_codes_of_3_1_1_map_both_ways() {
    for (code, reason) in [(0, 0x00), (1, 0x84), (2, 0x85), (3, 0x88), (4, 0x86), (5, 0x87)] {
        let bytes = [0x20, 2, 0, code];
        let packet = Packet::Connack(Box::new(Connack::new(ReasonCode(reason))));
        assert_eq!(encoded(Version::V311, &packet), &bytes[..]);
        let read = Decoder::from_server(Version::V311, 100).decode(&mut BytesMut::from(&bytes[..]));
        assert_eq!(read, Ok(Some(packet)));
    }
    // What 3.1.1 has no word for makes the client try again, not give up.
    for reason in [0x80, 0x89, 0x97, 0x9C] {
        let packet = Packet::Connack(Box::new(Connack::new(ReasonCode(reason))));
        assert_eq!(encoded(Version::V311, &packet), &b"\x20\x02\0\x03"[..]);
    }
}

#[test]
fn no_field_is_ever_cut_to_fit_its_length() {
    type Fill = fn(String) -> Packet;
    fn connected(change: impl FnOnce(&mut Connect)) -> Packet {
        let mut packet = connect(Version::V5);
        packet.username = Some(String::new());
        packet.auth_method = Some(String::new());
        packet.will = Some(will());
        change(&mut packet);
        Packet::Connect(Box::new(packet))
    }
    fn accepted(change: impl FnOnce(&mut Connack)) -> Packet {
        let mut packet = Connack::new(ReasonCode::SUCCESS);
        change(&mut packet);
        Packet::Connack(Box::new(packet))
    }
    fn published(change: impl FnOnce(&mut Properties)) -> Packet {
        let mut packet = publish(Qos::AtMostOnce);
        change(&mut packet.properties);
        Packet::Publish(packet)
    }
    let texts: [Fill; 17] = [
        |text| connected(|packet| packet.client_id = text),
        |text| connected(|packet| packet.username = Some(text)),
        |text| connected(|packet| packet.auth_method = Some(text)),
        |text| connected(|packet| packet.user = vec![(text, String::new())]),
        |text| connected(|packet| packet.will.as_mut().unwrap().properties.content_type = Some(text)),
        |text| connected(|packet| packet.will.as_mut().unwrap().properties.user = vec![(String::new(), text)]),
        |text| accepted(|packet| packet.assigned_client_id = Some(text)),
        |text| accepted(|packet| packet.reason_string = Some(text)),
        |text| accepted(|packet| packet.response_information = Some(text)),
        |text| accepted(|packet| packet.server_reference = Some(text)),
        |text| accepted(|packet| packet.auth_method = Some(text)),
        |text| published(|properties| properties.content_type = Some(text)),
        |text| published(|properties| properties.user = vec![(text, String::new())]),
        |text| published(|properties| properties.user = vec![(String::new(), text)]),
        |text| Packet::Pubrec(Ack { reason_string: Some(text), ..Ack::new(ID, ReasonCode::SUCCESS) }),
        |text| Packet::Disconnect(Disconnect { reason_string: Some(text), ..Disconnect::new(ReasonCode::SUCCESS) }),
        |text| {
            let reason = ReasonCode(0x18);
            Packet::Auth(Auth { reason, method: Some(text), data: None, reason_string: None })
        },
    ];
    for fill in texts {
        let longest = fill("é".repeat(32_767) + "a");
        let bytes = encoded(Version::V5, &longest);
        assert!(bytes.len() > 65_535);
        unwritable(Version::V5, fill("é".repeat(32_768)));
        unwritable(Version::V5, fill("a\0b".to_owned()));
    }
    type FillBinary = fn(Bytes) -> Packet;
    let binaries: [FillBinary; 4] = [
        |bytes| connected(|packet| packet.password = Some(bytes)),
        |bytes| connected(|packet| packet.auth_data = Some(bytes)),
        |bytes| connected(|packet| packet.will.as_mut().unwrap().payload = bytes),
        |bytes| published(|properties| properties.correlation_data = Some(bytes)),
    ];
    for fill in binaries {
        encoded(Version::V5, &fill(Bytes::from(vec![0; 65_535])));
        unwritable(Version::V5, fill(Bytes::from(vec![0; 65_536])));
    }
}

#[test]
fn what_a_version_cannot_say_is_not_written() {
    use Version::{V5, V311};
    let publish = |change: fn(&mut Publish)| {
        let mut packet = publish(Qos::AtLeastOnce);
        change(&mut packet);
        Packet::Publish(packet)
    };
    let connect = |version, change: fn(&mut Connect)| {
        let mut packet = connect(version);
        change(&mut packet);
        Packet::Connect(Box::new(packet))
    };
    let ack = |code| Ack::new(ID, ReasonCode(code));
    let subscribe =
        |subscriptions| Packet::Subscribe(Subscribe { packet_id: ID, subscriptions, subscription_id: None });
    for version in [V311, V5] {
        unwritable(version, publish(|packet| packet.packet_id = None));
        unwritable(version, publish(|packet| packet.qos = Qos::AtMostOnce));
        unwritable(version, publish(|packet| packet.topic = None));
        unwritable(version, publish(|packet| packet.subscription_id = Some(0)));
        unwritable(version, publish(|packet| packet.subscription_id = Some(268_435_456)));
        unwritable(version, subscribe(Vec::new()));
        unwritable(version, Packet::Unsubscribe(Unsubscribe { packet_id: ID, filters: Vec::new() }));
        unwritable(version, Packet::Suback(Suback { packet_id: ID, reasons: Vec::new() }));
        unwritable(version, Packet::Suback(Suback { packet_id: ID, reasons: vec![ReasonCode(3)] }));
        unwritable(version, Packet::Publish(Publish { dup: true, ..self::publish(Qos::AtMostOnce) }));
    }
    unwritable(V5, connect(V311, |_| {}));
    unwritable(V311, connect(V5, |_| {}));
    unwritable(V311, connect(V311, |packet| packet.password = Some(Bytes::new())));
    unwritable(V311, connect(V311, |packet| (packet.client_id, packet.clean_start) = (String::new(), false)));
    unwritable(V311, publish(|packet| (packet.topic, packet.topic_alias) = (None, NonZeroU16::new(1))));
    unwritable(V311, Packet::Disconnect(Disconnect::new(ReasonCode::SERVER_SHUTTING_DOWN)));
    unwritable(V311, Packet::Disconnect(Disconnect::new(ReasonCode::DISCONNECT_WITH_WILL)));
    let auth = |method: Option<&str>, code| {
        let method = method.map(str::to_owned);
        Packet::Auth(Auth { reason: ReasonCode(code), method, data: None, reason_string: None })
    };
    unwritable(V311, auth(Some("m"), 0x18));
    unwritable(V5, auth(None, 0x18));
    unwritable(V5, auth(Some("m"), 0x01));
    unwritable(V5, connect(V5, |packet| packet.packet_bytes_max = Some(0)));
    unwritable(V5, connect(V5, |packet| packet.auth_data = Some(Bytes::new())));
    unwritable(V5, Packet::Connack(Box::new(Connack::new(ReasonCode(0x01)))));
    unwritable(V5, Packet::Disconnect(Disconnect::new(ReasonCode::BAD_USER_NAME_OR_PASSWORD)));
    unwritable(V5, Packet::Puback(ack(0x92)));
    unwritable(V5, Packet::Pubrec(ack(0x01)));
    unwritable(V5, Packet::Pubrel(ack(0x10)));
    unwritable(V5, Packet::Pubcomp(ack(0x80)));
    unwritable(V5, Packet::Unsuback(Unsuback { packet_id: ID, reasons: Vec::new() }));
    unwritable(V5, subscribe(vec![subscription("$share/g/a")]));
    unwritable(V5, subscribe(vec![Subscription { retain_handling: 3, ..subscription("a") }]));
    unwritable(
        V5,
        connect(V5, |packet| {
            let properties = Properties { is_utf8: true, ..Properties::default() };
            packet.will = Some(Will { payload: Bytes::from_static(b"\xFF"), properties, ..will() });
        }),
    );
}

#[test]
fn the_peers_maximum_packet_size_is_kept_to_the_byte() {
    let mut random = Random::announced("maximum packet size");
    for turn in 0..4000 {
        let (version, sender) = ENDS[turn % ENDS.len()];
        let packet = random.packet(version, sender);
        let bytes = encoded(version, &packet);
        let mut encoder = Encoder::new(version);
        encoder.set_packet_bytes_max(bytes.len());
        let mut output = BytesMut::new();
        encoder.encode(&packet, &mut output).unwrap();
        assert_eq!(output, bytes);

        encoder.set_packet_bytes_max(bytes.len() - 1);
        let mut output = BytesMut::new();
        match encoder.encode(&packet, &mut output) {
            // Only what is for people may stay behind.
            Ok(()) => {
                assert!(output.len() < bytes.len());
                let read = feed_of(&packet, version, sender).decoder().decode(&mut output).unwrap().unwrap();
                assert_eq!(std::mem::discriminant(&read), std::mem::discriminant(&packet));
                assert_eq!(without_texts(read), without_texts(packet));
            }
            Err(EncodeError::TooLarge { bytes_max, .. }) => {
                assert_eq!(bytes_max, bytes.len() - 1);
                assert!(output.is_empty());
            }
            Err(error) => panic!("{error}: {packet:?}"),
        }
    }
}

fn without_texts(mut packet: Packet) -> Packet {
    match &mut packet {
        Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => {
            ack.reason_string = None;
        }
        Packet::Connack(connack) => (connack.reason_string, connack.user) = (None, Vec::new()),
        Packet::Disconnect(disconnect) => disconnect.reason_string = None,
        _ => {}
    }
    packet
}

#[test]
fn a_packet_longer_than_any_packet_can_be_is_too_large() {
    // The system gives these zeros without touching them, and the encoder must not touch them either.
    let payload = Bytes::from(vec![0; 268_435_456]);
    let packet = Packet::Publish(Publish { payload, ..publish(Qos::AtMostOnce) });
    for version in [Version::V311, Version::V5] {
        let result = Encoder::new(version).encode(&packet, &mut BytesMut::new());
        assert!(matches!(result, Err(EncodeError::TooLarge { .. })), "{result:?}");
    }
    let user = vec![("n".repeat(65_535), "v".repeat(65_535)); 1030];
    let packet = Packet::Connect(Box::new(Connect { user, ..connect(Version::V5) }));
    let result = Encoder::new(Version::V5).encode(&packet, &mut BytesMut::new());
    assert!(matches!(result, Err(EncodeError::TooLarge { .. })), "{result:?}");
}

#[test]
fn what_3_1_1_has_no_place_for_stays_behind() {
    let mut random = Random::announced("3.1.1");
    for turn in 0..8000 {
        let sender = [Direction::FromClient, Direction::FromServer][turn % 2];
        let mut packet = random.packet(Version::V5, sender);
        if let Packet::Connect(connect) = &mut packet {
            connect.version = Version::V311;
        }
        let mut output = BytesMut::new();
        let Ok(()) = Encoder::new(Version::V311).encode(&packet, &mut output) else {
            continue;
        };
        // The one packet whose sender 3.1.1 narrows.
        let feed = match packet {
            Packet::Disconnect(_) => Feed::Client311,
            _ => feed_of(&packet, Version::V311, sender),
        };
        let read = feed.decoder().decode(&mut output);
        assert!(matches!(read, Ok(Some(_))), "{read:?}: {packet:?}");
        assert!(output.is_empty());
    }
}

#[test]
fn a_publish_costs_two_allocations_in_and_none_out() {
    let mut packet = publish(Qos::AtLeastOnce);
    packet.payload = Bytes::from(vec![7; 4000]);
    let packet = Packet::Publish(packet);
    for (version, feed) in [(Version::V311, Feed::Client311), (Version::V5, Feed::Client5)] {
        let mut bytes = encoded(version, &packet);
        let mut decoder = feed.decoder();
        let mut read = Ok(None);
        let used = allocation_counter::measure(|| read = decoder.decode(&mut bytes));
        // The topic and the payload.
        assert_eq!(used.count_total, 2, "{version:?}");
        assert_eq!(read, Ok(Some(packet.clone())));

        let mut output = BytesMut::with_capacity(8192);
        let encoder = Encoder::new(version);
        let used = allocation_counter::measure(|| encoder.encode(&packet, &mut output).unwrap());
        assert_eq!(used.count_total, 0, "{version:?}");
    }
}
