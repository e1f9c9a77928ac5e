//! Does the broker keep what the specifications say a server must, where no other file asks? Which test shows which
//! statement stands in `mqtt_conformance.md`; that all of them exist is asked here too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod broker_support;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use broker_support::*;
use bytes::Bytes;
use tidegate::message::{Body, Filter, Message, Origin, Properties, Qos, Topic};
use tidegate::mqtt::{
    Ack, Auth, Connect, Disconnect, Packet, PacketId, Publish, ReasonCode, Subscribe, Subscription, Unsubscribe,
    Version,
};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};

fn resuming(version: Version, client_id: &str) -> Connect {
    let session_expiry_s = (version == Version::V5).then_some(3600);
    Connect { clean_start: false, session_expiry_s, ..connect(version, client_id) }
}

fn retained(topic: &str, qos: Qos, packet_id: u16, payload: &str) -> Publish {
    Publish { retain: true, ..publish(topic, qos, packet_id, payload) }
}

/// All that the broker says on a connection until it closes it, as it stands on the wire.
async fn last_words(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Closed or reset: what was said counts.
    let _end = timeout(PATIENCE, client.stream.read_to_end(&mut bytes)).await.expect("the connection stays open");
    bytes
}

/// Exactly these bytes come next.
async fn expect_bytes(client: &mut Client, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    timeout(PATIENCE, client.stream.read_exact(&mut bytes)).await.expect("nothing came").expect("it was closed");
    assert_eq!(bytes, expected);
}

// CONNECT and CONNACK

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connect_gets_the_answer_of_its_version_and_nothing_behind_it_is_done() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("#", Qos::AtLeastOnce).await;
    let cases: [(&str, &[u8], &[u8]); 8] = [
        ("level 6", b"\x10\x0D\0\x04MQTT\x06\x02\0\0\0\0\0", b"\x20\x03\0\x84\0"),
        ("level 3 of MQTT", b"\x10\x0D\0\x04MQTT\x03\x02\0\0\0\x01c", b"\x20\x02\0\x01"),
        ("level 2", b"\x10\x0D\0\x04MQTT\x02\x02\0\0\0\x01c", b"\x20\x02\0\x01"),
        ("another protocol", b"\x10\x0D\0\x04TTQM\x04\x02\0\0\0\x01c", b""),
        ("no id for a session that lasts", b"\x10\x0C\0\x04MQTT\x04\0\0\0\0\0", b"\x20\x02\0\x02"),
        ("reserved bit of 3.1.1", b"\x10\x0D\0\x04MQTT\x04\x03\0\0\0\x01c", b""),
        ("reserved bit of 5", b"\x10\x0E\0\x04MQTT\x05\x03\0\0\0\0\x01c", b"\x20\x03\0\x81\0"),
        ("an unknown method", b"\x10\x12\0\x04MQTT\x05\x02\0\0\x04\x15\0\x01m\0\x01c", b"\x20\x03\0\x8C\0"),
    ];
    for (what, connect, answer) in cases {
        let mut client = Client::raw(&gateway, Version::V5).await;
        // A PUBLISH in the same write.
        client.write(&[connect, b"\x30\x04\0\x01tx", b"\x30\x05\0\x01t\0x"].concat()).await;
        assert_eq!(last_words(&mut client).await, answer, "{what}");
    }
    reader.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_words_of_the_server_are_one_connack_with_its_reserved_bits_clear() {
    let gateway = Gateway::start().await;
    for present in [0, 1] {
        let mut client = Client::raw(&gateway, Version::V311).await;
        // PINGREQ does not wait for the CONNACK (3.1.4), and is answered behind it.
        client.write(b"\x10\x0D\0\x04MQTT\x04\0\0\0\0\x01c\xC0\0").await;
        expect_bytes(&mut client, &[0x20, 2, present, 0, 0xD0, 0]).await;
        client.write(b"\xE0\0").await;
        assert_eq!(last_words(&mut client).await, b"");
    }
    // A clean session says that it is new, whatever was there; version 5 the same.
    let mut client = Client::raw(&gateway, Version::V311).await;
    client.write(b"\x10\x0D\0\x04MQTT\x04\x02\0\0\0\x01c\xC0\0").await;
    expect_bytes(&mut client, b"\x20\x02\0\0\xD0\0").await;
    let (mut client, connack) = Client::with(&gateway, connect(Version::V5, "c")).await;
    assert!(!connack.session_present);
    client.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_before_a_connect_closes_the_connection_without_a_word() {
    let gateway = Gateway::start().await;
    let cases: [&[u8]; 7] = [
        b"\xC0\0",
        b"\x30\x04\0\x01tx",
        b"\x82\x06\0\x01\0\x01t\0",
        b"\xE0\0",
        b"\xF0\0",
        b"\0\0",
        b"GET / HTTP/1.1\r\n",
    ];
    for bytes in cases {
        let mut client = Client::raw(&gateway, Version::V5).await;
        client.write(bytes).await;
        assert_eq!(last_words(&mut client).await, b"", "{bytes:?}");
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_ids_of_all_kinds_are_taken_and_name_the_session() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        for name in ["a", "0123456789abcdefghijklm", "NOPQRSTUVWXYZ", "Halle 3/+#$", "温度"] {
            let (client, connack) = Client::with(&gateway, resuming(version, name)).await;
            assert_eq!((connack.reason, connack.session_present), (ReasonCode::SUCCESS, false), "{name}");
            client.disconnect().await;
            let (client, connack) = Client::with(&gateway, resuming(version, name)).await;
            assert!(connack.session_present, "{name}");
            assert_eq!(connack.assigned_client_id, None);
            client.disconnect().await;
            let (client, connack) = Client::with(&gateway, connect(version, name)).await;
            assert!(!connack.session_present, "{name}");
            client.disconnect().await;
        }
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connack_announces_what_the_server_has_and_nothing_else() {
    let gateway = Gateway::start().await;
    let (_client, connack) = Client::with(&gateway, connect(Version::V5, "c")).await;
    let limits = Options::default().limits;
    assert_eq!(connack.receive_max.map(std::num::NonZeroU16::get), Some(limits.inbound));
    assert_eq!(connack.packet_bytes_max, u32::try_from(limits.packet_bytes).ok());
    assert_eq!(connack.topic_alias_max, limits.topic_aliases);
    assert_eq!((connack.qos_max, connack.retain_available), (None, true));
    assert!(connack.wildcard_available && connack.subscription_ids_available && connack.shared_available);
    // The client's own keep-alive holds; nothing about answers or other servers, asked for or not.
    assert_eq!((connack.server_keep_alive_s, connack.session_expiry_s), (None, None));
    let asking = Connect { request_response_information: true, ..connect(Version::V5, "d") };
    let (_client, connack) = Client::with(&gateway, asking).await;
    assert_eq!((connack.response_information, connack.server_reference), (None, None));
    assert_eq!((connack.auth_method, connack.auth_data), (None, None));
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_wants_no_explanations_gets_none() {
    let gateway = Gateway::start().await;
    let terse = Connect { request_problem_information: false, ..connect(Version::V5, "c") };
    let (mut client, _) = Client::with(&gateway, terse).await;
    client.send(Packet::Publish(publish("$SYS/x", Qos::AtLeastOnce, 1, "x"))).await;
    expect_bytes(&mut client, b"\x40\x03\0\x01\x90").await;
    client.send(Packet::Publish(publish("$SYS/x", Qos::ExactlyOnce, 2, "x"))).await;
    expect_bytes(&mut client, b"\x50\x03\0\x02\x90").await;
    client.send(Packet::Pubrel(ack(9))).await;
    expect_bytes(&mut client, b"\x70\x03\0\x09\x92").await;
    client.write(b"\x82\x07\0\x03\0\0\x01t\x01").await;
    expect_bytes(&mut client, b"\x90\x04\0\x03\0\x01").await;
    client.write(b"\xA2\x06\0\x04\0\0\x01u").await;
    expect_bytes(&mut client, b"\xB0\x04\0\x04\0\x11").await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enhanced_authentication_is_refused_at_connect_and_a_fault_after_it() {
    let gateway = Gateway::start().await;
    let (mut client, connack) =
        Client::with(&gateway, Connect { auth_method: Some("SCRAM-SHA-1".to_owned()), ..connect(Version::V5, "c") })
            .await;
    assert_eq!(connack.reason, ReasonCode::BAD_AUTHENTICATION_METHOD);
    assert_eq!(client.closed().await, None, "no DISCONNECT follows a CONNACK that refuses");
    let mut client = Client::new(&gateway, Version::V5, "c").await;
    let method = Some("SCRAM-SHA-1".to_owned());
    client.send(Packet::Auth(Auth { reason: ReasonCode(0x19), method, data: None, reason_string: None })).await;
    assert_eq!(client.closed().await, Some(ReasonCode::PROTOCOL_ERROR));
    gateway.ended().await;
}

// Packet ids and acknowledgements

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packet_ids_of_the_server_are_never_0_and_never_in_use_twice() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("t", Qos::ExactlyOnce).await;
    let mut writer = Client::new(&gateway, Version::V311, "writer").await;
    let mut open = BTreeMap::new();
    for round in 0..200_usize {
        let qos = if round % 2 == 0 { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
        writer.publish("t", qos, "x").await;
        let came = reader.message().await;
        assert_eq!((came.dup, came.qos), (false, qos));
        let id = came.packet_id.unwrap();
        assert_eq!(open.insert(id, qos), None, "{id} is in use");
        if open.len() < 60 {
            continue;
        }
        // Any of them, not the oldest, so that what is free has holes.
        let (id, qos) = open.iter().map(|(id, qos)| (*id, *qos)).nth(round % open.len()).unwrap();
        open.remove(&id);
        if qos == Qos::AtLeastOnce {
            reader.send(Packet::Puback(ack(id.get()))).await;
        } else {
            reader.send(Packet::Pubrec(ack(id.get()))).await;
            assert_eq!(reader.next().await, Packet::Pubrel(ack(id.get())));
            reader.send(Packet::Pubcomp(ack(id.get()))).await;
        }
    }
    // QoS 0 bears none: the packet has no place for it.
    writer.publish("t", Qos::AtMostOnce, "x").await;
    assert_eq!(reader.message().await.packet_id, None);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_at_qos_1_is_a_new_message_and_its_dup_is_not_passed_on() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V311, "reader").await;
    reader.subscribe("t", Qos::AtLeastOnce).await;
    for version in VERSIONS {
        let mut writer = Client::new(&gateway, version, "writer").await;
        for dup in [false, true, true] {
            let sent = Publish { dup, ..publish("t", Qos::AtLeastOnce, 7, "x") };
            assert_eq!(writer.publish_packet(sent).await, ReasonCode::SUCCESS);
            assert!(!reader.take().await.dup);
        }
        let sent = Publish { dup: true, ..publish("t", Qos::ExactlyOnce, 8, "x") };
        assert_eq!(writer.publish_packet(sent).await, ReasonCode::SUCCESS);
        assert!(!reader.take().await.dup);
        writer.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_that_does_not_fit_its_message_ends_the_connection() {
    let gateway = Gateway::start().await;
    let mut writer = Client::new(&gateway, Version::V311, "writer").await;
    type Answer = fn(Ack) -> Packet;
    let cases: [(Qos, Answer); 3] =
        [(Qos::ExactlyOnce, Packet::Puback), (Qos::AtLeastOnce, Packet::Pubrec), (Qos::ExactlyOnce, Packet::Pubcomp)];
    for version in VERSIONS {
        for (qos, answer) in cases {
            let mut reader = Client::new(&gateway, version, "reader").await;
            reader.subscribe("t", Qos::ExactlyOnce).await;
            writer.publish("t", qos, "x").await;
            let id = reader.message().await.packet_id.unwrap();
            reader.send(answer(Ack::new(id, ReasonCode::SUCCESS))).await;
            let expected = (version == Version::V5).then_some(ReasonCode::PROTOCOL_ERROR);
            assert_eq!(reader.closed().await, expected, "{:?}", answer(ack(1)));
        }
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_client_refuses_is_not_sent_again_nor_to_anybody_else() {
    let gateway = Gateway::start().await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let (mut reader, _) = Client::with(&gateway, resuming(Version::V5, "reader")).await;
        reader.subscribe("t", qos).await;
        let mut first = Client::new(&gateway, Version::V5, "first").await;
        let mut second = Client::new(&gateway, Version::V5, "second").await;
        first.subscribe("$share/g/t", qos).await;
        second.subscribe("$share/g/t", qos).await;
        writer.publish("t", qos, "x").await;
        let refuse = |id: PacketId| {
            let refusal = Ack::new(id, ReasonCode::QUOTA_EXCEEDED);
            if qos == Qos::AtLeastOnce { Packet::Puback(refusal) } else { Packet::Pubrec(refusal) }
        };
        let came = reader.message().await;
        reader.send(refuse(came.packet_id.unwrap())).await;
        reader.hears_nothing().await;
        // One of the group has it, refuses it, and leaves.
        let is_first = tokio::select! {
            came = first.message() => Some(came),
            came = second.message() => { second.send(refuse(came.packet_id.unwrap())).await; None }
        };
        let mut other = match is_first {
            Some(came) => {
                first.send(refuse(came.packet_id.unwrap())).await;
                first.disconnect().await;
                second
            }
            None => {
                second.disconnect().await;
                first
            }
        };
        other.hears_nothing().await;
        drop(reader);
        let (mut reader, connack) = Client::with(&gateway, resuming(Version::V5, "reader")).await;
        assert!(connack.session_present);
        reader.hears_nothing().await;
        reader.disconnect().await;
        other.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_new_connection_brings_a_message_again() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        let name = format!("{version:?}");
        let (mut reader, _) = Client::with(&gateway, resuming(version, &name)).await;
        reader.subscribe("t", Qos::ExactlyOnce).await;
        let mut writer = Client::new(&gateway, version, "writer").await;
        writer.publish("t", Qos::AtLeastOnce, "1").await;
        writer.publish("t", Qos::ExactlyOnce, "2").await;
        let first = reader.message().await;
        let second = reader.message().await;
        let waiting = timeout(Duration::from_millis(1500), reader.next()).await;
        assert!(waiting.is_err(), "{waiting:?} came though the connection is the same");
        drop(reader);
        let (mut reader, _) = Client::with(&gateway, resuming(version, &name)).await;
        // In the order in which they were sent first, marked, under the same ids.
        assert_eq!(reader.message().await, Publish { dup: true, ..first });
        assert_eq!(reader.message().await, Publish { dup: true, ..second });
        reader.disconnect().await;
        writer.disconnect().await;
    }
    gateway.ended().await;
}

// Expiry

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_old_is_not_sent_and_of_others_is_told_what_is_left() {
    let gateway = Gateway::start().await;
    let (mut reader, _) = Client::with(&gateway, resuming(Version::V5, "reader")).await;
    reader.subscribe("t/#", Qos::AtLeastOnce).await;
    reader.disconnect().await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    let with = |topic: &str, id, expiry_s, payload: &str, retain| Publish {
        properties: Properties { expiry_s: Some(expiry_s), ..Properties::default() },
        retain,
        ..publish(topic, Qos::AtLeastOnce, id, payload)
    };
    writer.publish_packet(with("t/a", 1, 1, "short", false)).await;
    writer.publish_packet(with("t/b", 2, 100, "long", false)).await;
    writer.publish_packet(with("r/a", 3, 1, "short", true)).await;
    writer.publish_packet(with("r/b", 4, 100, "long", true)).await;
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let (mut reader, connack) = Client::with(&gateway, resuming(Version::V5, "reader")).await;
    assert!(connack.session_present);
    let came = reader.take().await;
    let left = came.properties.expiry_s.unwrap();
    assert_eq!(text(&came), "long");
    assert!((60..=99).contains(&left), "{left} s left of 100");
    reader.hears_nothing().await;
    reader.subscribe("r/#", Qos::AtLeastOnce).await;
    let came = reader.take().await;
    let left = came.properties.expiry_s.unwrap();
    assert_eq!((text(&came), came.retain), ("long", true));
    assert!((60..=99).contains(&left), "{left} s left of 100");
    reader.hears_nothing().await;
    let is_counted = || gateway.health.snapshot(gateway.intake.now()).losses.get("message-expired") == Some(&1);
    until("the one that is too old is not counted", is_counted).await;
    // One that waits in memory, for a client that is there and takes no more for now.
    let narrow = Connect { receive_max: std::num::NonZeroU16::new(1), ..connect(Version::V5, "narrow") };
    let (mut reader, _) = Client::with(&gateway, narrow).await;
    reader.subscribe("n", Qos::AtLeastOnce).await;
    writer.publish_packet(with("n", 5, 100, "first", false)).await;
    writer.publish_packet(with("n", 6, 1, "short", false)).await;
    writer.publish_packet(with("n", 7, 100, "last", false)).await;
    let first = reader.message().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    reader.send(Packet::Puback(ack(first.packet_id.unwrap().get()))).await;
    assert_eq!(text(&reader.take().await), "last");
    reader.hears_nothing().await;
    assert_eq!(gateway.session_counter("dropped"), 1);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_on_its_way_is_delivered_to_the_end_whatever_its_age() {
    let gateway = Gateway::start().await;
    let (mut reader, _) = Client::with(&gateway, resuming(Version::V5, "reader")).await;
    reader.subscribe("t", Qos::ExactlyOnce).await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    let brief = |id, payload: &str| Publish {
        properties: Properties { expiry_s: Some(1), ..Properties::default() },
        ..publish("t", Qos::ExactlyOnce, id, payload)
    };
    writer.publish_packet(brief(1, "sent")).await;
    writer.publish_packet(brief(2, "received")).await;
    let sent = reader.message().await;
    let received = reader.message().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let id = received.packet_id.unwrap().get();
    reader.send(Packet::Pubrec(ack(id))).await;
    assert_eq!(reader.next().await, Packet::Pubrel(ack(id)));
    drop(reader);
    let (mut reader, _) = Client::with(&gateway, resuming(Version::V5, "reader")).await;
    let again = reader.message().await;
    assert_eq!((again.packet_id, again.dup, text(&again)), (sent.packet_id, true, "sent"));
    assert_eq!(reader.next().await, Packet::Pubrel(ack(id)));
    gateway.ended().await;
}

// Subscriptions

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_match_as_the_specification_says_and_nothing_is_normalised() {
    let gateway = Gateway::start().await;
    let topics = [
        "sport",
        "sport/",
        "sport/tennis",
        "sport/tennis/player1",
        "/finance",
        "Sport",
        "sport//x",
        "ACCOUNTS ",
        "é",
        "e\u{301}",
    ];
    let cases: [(&str, &[&str]); 12] = [
        ("sport/#", &["sport", "sport/", "sport/tennis", "sport/tennis/player1", "sport//x"]),
        ("sport/+", &["sport/", "sport/tennis"]),
        ("sport/+/player1", &["sport/tennis/player1"]),
        ("sport", &["sport"]),
        ("Sport", &["Sport"]),
        ("+", &["sport", "Sport", "ACCOUNTS ", "é", "e\u{301}"]),
        ("+/+", &["sport/", "sport/tennis", "/finance"]),
        ("/+", &["/finance"]),
        ("ACCOUNTS ", &["ACCOUNTS "]),
        ("é", &["é"]),
        ("sport/+/x", &["sport//x"]),
        ("#", &topics),
    ];
    let mut writer = Client::new(&gateway, Version::V311, "writer").await;
    for (filter, expected) in cases {
        for version in VERSIONS {
            let mut reader = Client::new(&gateway, version, "reader").await;
            reader.subscribe(filter, Qos::AtLeastOnce).await;
            for topic in topics {
                writer.publish(topic, Qos::AtLeastOnce, "x").await;
            }
            for topic in expected {
                assert_eq!(reader.take().await.topic.unwrap().as_str(), *topic, "{filter}");
            }
            reader.hears_nothing().await;
            reader.disconnect().await;
        }
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wildcards_at_the_front_never_match_topics_of_servers() {
    let gateway = Gateway::start().await;
    let mut all = Client::new(&gateway, Version::V5, "all").await;
    all.subscribe("#", Qos::AtLeastOnce).await;
    all.subscribe("+/load", Qos::AtLeastOnce).await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("$test/+", Qos::AtLeastOnce).await;
    for retain in [false, true] {
        let message = Message {
            topic: Topic::new("$test/load").unwrap(),
            qos: Qos::AtLeastOnce,
            retain,
            properties: None,
            body: Body::Bytes(Bytes::from_static(b"1")),
            origin: Origin::Gateway,
            received: gateway.intake.now(),
        };
        gateway.intake.submit(message, None).await.unwrap().outcome().await.unwrap();
        assert_eq!(reader.take().await.topic.unwrap().as_str(), "$test/load");
    }
    all.subscribe("#", Qos::AtLeastOnce).await;
    all.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suback_answers_each_filter_in_order_as_if_each_had_come_alone() {
    let gateway = Gateway::start().await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    writer.publish_packet(retained("a", Qos::ExactlyOnce, 1, "kept")).await;
    for version in VERSIONS {
        let mut reader = Client::new(&gateway, version, "reader").await;
        let filters =
            [("a", Qos::ExactlyOnce), ("b", Qos::AtMostOnce), ("a", Qos::AtMostOnce), ("c/+", Qos::AtLeastOnce)];
        let subscriptions = filters.map(|(filter, qos)| subscription(filter, qos)).to_vec();
        let packet_id = PacketId::new(4711).unwrap();
        reader.send(Packet::Subscribe(Subscribe { packet_id, subscriptions, subscription_id: None })).await;
        let suback = reader.wait_for(|packet| match packet {
            Packet::Suback(suback) => Some(suback.clone()),
            _ => None,
        });
        let suback = suback.await;
        assert_eq!(suback.packet_id, packet_id);
        assert_eq!(suback.reasons, [2, 0, 0, 1].map(ReasonCode));
        // The second subscription to `a` replaced the first.
        for _ in 0..2 {
            let came = reader.take().await;
            assert_eq!((text(&came), came.retain, came.qos), ("kept", true, Qos::AtMostOnce));
        }
        writer.publish("a", Qos::ExactlyOnce, "live").await;
        assert_eq!(reader.take().await.qos, Qos::AtMostOnce);
        reader.hears_nothing().await;
        reader.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_is_made_again_takes_the_place_of_the_first_and_loses_nothing() {
    let gateway = Gateway::start().await;
    for connect in [connect(Version::V5, "passing"), resuming(Version::V5, "kept"), resuming(Version::V311, "old")] {
        let version = connect.version;
        let (mut reader, _) = Client::with(&gateway, connect).await;
        reader.subscribe("t/+", Qos::AtLeastOnce).await;
        let mut writer = Client::new(&gateway, Version::V5, "writer").await;
        let mut expected = Vec::new();
        for number in 0..40 {
            writer.publish("t/x", Qos::AtLeastOnce, &number.to_string()).await;
            expected.push(number.to_string());
            if number % 10 == 5 {
                // With other options, while messages come.
                let again = Subscription {
                    retain_as_published: version == Version::V5,
                    ..subscription("t/+", Qos::AtLeastOnce)
                };
                reader.subscribe_all(vec![again], (version == Version::V5).then_some(number + 1)).await;
            }
        }
        for number in &expected {
            assert_eq!(text(&reader.take().await), number);
        }
        reader.hears_nothing().await;
        reader.disconnect().await;
        writer.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_overlapping_subscriptions_those_of_the_highest_qos_bring_copies() {
    let gateway = Gateway::start().await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    for connect in [connect(Version::V5, "passing"), resuming(Version::V5, "kept")] {
        let (mut reader, _) = Client::with(&gateway, connect).await;
        for bits in 0..32_u32 {
            let levels: Vec<&str> = (0..5).map(|place| if bits >> place & 1 == 1 { "+" } else { "a" }).collect();
            let qos = if bits == 31 { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
            reader.subscribe_all(vec![subscription(&levels.join("/"), qos)], Some(bits + 1)).await;
        }
        writer.publish("a/a/a/a/a", Qos::ExactlyOnce, "x").await;
        let mut identifiers = BTreeSet::new();
        for _ in 0..tidegate::message::COPIES_MAX {
            let came = reader.take().await;
            let expected = if came.subscription_id == Some(32) { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
            assert_eq!(came.qos, expected);
            assert!(identifiers.insert(came.subscription_id), "one for each subscription");
        }
        assert!(identifiers.contains(&Some(32)), "that of the highest QoS is among them");
        reader.hears_nothing().await;
        reader.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsubscribing_ends_what_was_begun_brings_nothing_new_and_answers_each_filter() {
    let gateway = Gateway::start().await;
    for connect in [connect(Version::V5, "passing"), resuming(Version::V5, "kept"), resuming(Version::V311, "old")] {
        let version = connect.version;
        let (mut reader, _) = Client::with(&gateway, connect).await;
        reader.subscribe("a/+", Qos::ExactlyOnce).await;
        reader.subscribe("b", Qos::ExactlyOnce).await;
        let mut writer = Client::new(&gateway, Version::V5, "writer").await;
        writer.publish("a/x", Qos::AtLeastOnce, "1").await;
        writer.publish("a/x", Qos::ExactlyOnce, "2").await;
        let first = reader.message().await.packet_id.unwrap();
        let second = reader.message().await.packet_id.unwrap();
        // `a/x` would match, but is another filter: compared by characters.
        let filters = ["a/x", "a/+", "b", "a/+"].map(|filter| Filter::new(filter).unwrap()).to_vec();
        let packet_id = PacketId::new(99).unwrap();
        reader.send(Packet::Unsubscribe(Unsubscribe { packet_id, filters })).await;
        let Packet::Unsuback(unsuback) = reader.next().await else { panic!("no UNSUBACK") };
        assert_eq!(unsuback.packet_id, packet_id);
        let reasons = [0x11, 0, 0, 0x11].map(ReasonCode).to_vec();
        assert_eq!(unsuback.reasons, if version == Version::V5 { reasons } else { Vec::new() });
        writer.publish("a/x", Qos::AtLeastOnce, "3").await;
        writer.publish("b", Qos::AtMostOnce, "4").await;
        reader.send(Packet::Puback(Ack::new(first, ReasonCode::SUCCESS))).await;
        reader.send(Packet::Pubrec(Ack::new(second, ReasonCode::SUCCESS))).await;
        assert_eq!(reader.next().await, Packet::Pubrel(Ack::new(second, ReasonCode::SUCCESS)));
        reader.send(Packet::Pubcomp(Ack::new(second, ReasonCode::SUCCESS))).await;
        reader.hears_nothing().await;
        reader.disconnect().await;
        writer.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_local_holds_for_retained_messages_and_for_kept_sessions_too() {
    let gateway = Gateway::start().await;
    for connect in [connect(Version::V5, "passing"), resuming(Version::V5, "kept")] {
        let (mut client, _) = Client::with(&gateway, connect).await;
        let mut other = Client::new(&gateway, Version::V5, "other").await;
        for (qos, id) in [(Qos::AtLeastOnce, 1), (Qos::ExactlyOnce, 2)] {
            client.publish_packet(retained(&format!("own/{id}"), qos, id, "mine")).await;
            other.publish_packet(retained(&format!("other/{id}"), qos, id, "theirs")).await;
        }
        let quiet = |filter: &str| Subscription { no_local: true, ..subscription(filter, Qos::ExactlyOnce) };
        client.subscribe_all(vec![quiet("own/+"), quiet("other/+")], None).await;
        for _ in 0..2 {
            assert_eq!(text(&client.take().await), "theirs");
        }
        client.publish("own/1", Qos::ExactlyOnce, "mine").await;
        client.publish("own/1", Qos::AtMostOnce, "mine").await;
        other.publish("own/1", Qos::ExactlyOnce, "theirs").await;
        assert_eq!(text(&client.take().await), "theirs");
        client.hears_nothing().await;
        client.disconnect().await;
        other.disconnect().await;
    }
    gateway.ended().await;
}

// Retained

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retained_message_gives_way_to_retained_ones_only_and_outlives_sessions() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        let topic = format!("state/{version:?}");
        let mut writer = Client::new(&gateway, version, "writer").await;
        let wanted = |expected: Option<(&'static str, Qos)>| {
            let (gateway, topic) = (&gateway, topic.clone());
            async move {
                let mut reader = Client::new(gateway, version, "reader").await;
                reader.subscribe(&topic, Qos::ExactlyOnce).await;
                if let Some((payload, qos)) = expected {
                    let came = reader.take().await;
                    assert_eq!((text(&came), came.qos, came.retain), (payload, qos, true));
                }
                reader.hears_nothing().await;
                reader.disconnect().await;
            }
        };
        writer.publish(&topic, Qos::AtLeastOnce, "live").await;
        wanted(None).await;
        writer.publish_packet(retained(&topic, Qos::ExactlyOnce, 10, "two")).await;
        writer.publish(&topic, Qos::AtLeastOnce, "live").await;
        writer.publish(&topic, Qos::AtLeastOnce, "").await;
        wanted(Some(("two", Qos::ExactlyOnce))).await;
        writer.publish_packet(retained(&topic, Qos::AtMostOnce, 0, "zero")).await;
        // Answered in order: what came before it is done.
        writer.publish("last", Qos::AtLeastOnce, "").await;
        writer.disconnect().await;
        wanted(Some(("zero", Qos::AtMostOnce))).await;
        let mut writer = Client::new(&gateway, version, "writer").await;
        writer.publish_packet(retained(&topic, Qos::AtMostOnce, 0, "")).await;
        writer.publish("last", Qos::AtLeastOnce, "").await;
        wanted(None).await;
        writer.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_packet_is_longer_than_the_client_takes_retained_or_waiting_or_live() {
    let gateway = Gateway::start().await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    let long = "x".repeat(200);
    for (id, qos) in [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce)] {
        writer.publish_packet(retained(&format!("long/{id}"), qos, id, &long)).await;
        writer.publish_packet(retained(&format!("short/{id}"), qos, id, "short")).await;
    }
    let narrow = |name: &str| Connect { packet_bytes_max: Some(100), ..resuming(Version::V5, name) };
    let (mut reader, _) = Client::with(&gateway, narrow("reader")).await;
    reader.subscribe("long/#", Qos::ExactlyOnce).await;
    reader.subscribe("short/#", Qos::ExactlyOnce).await;
    for _ in 0..2 {
        assert_eq!(text(&reader.take().await), "short");
    }
    reader.disconnect().await;
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        writer.publish("long/1", qos, &long).await;
        writer.publish("short/1", qos, "waited").await;
    }
    let (mut reader, connack) = Client::with(&gateway, narrow("reader")).await;
    assert!(connack.session_present);
    for _ in 0..2 {
        assert_eq!(text(&reader.take().await), "waited");
    }
    reader.disconnect().await;
    // It was as if they had been delivered: a wider connection does not bring them.
    let (mut reader, _) = Client::with(&gateway, resuming(Version::V5, "reader")).await;
    reader.hears_nothing().await;
    gateway.ended().await;
}

// Wills

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_bears_its_qos_its_flag_and_its_properties() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    let kept = Subscription { retain_as_published: true, ..subscription("will/#", Qos::ExactlyOnce) };
    reader.subscribe_all(vec![kept], None).await;
    let properties = Properties {
        is_utf8: true,
        expiry_s: Some(100),
        content_type: Some("text/plain".to_owned()),
        response_topic: Some(Topic::new("answers").unwrap()),
        correlation_data: Some(Bytes::from_static(b"\x01")),
        user: ["b", "a", "b"].map(|name| (name.to_owned(), "x".to_owned())).to_vec(),
    };
    for (qos, retain) in
        [(Qos::AtMostOnce, false), (Qos::AtLeastOnce, true), (Qos::ExactlyOnce, false), (Qos::ExactlyOnce, true)]
    {
        for version in VERSIONS {
            let mut last = will("will/c", "gone");
            (last.qos, last.retain) = (qos, retain);
            if version == Version::V5 {
                last.properties = properties.clone();
            }
            let (client, _) =
                Client::with(&gateway, Connect { will: Some(last.clone()), ..connect(version, "c") }).await;
            drop(client);
            let came = reader.take().await;
            assert_eq!((came.qos, came.retain, text(&came)), (qos, retain, "gone"));
            let expiry_s = came.properties.expiry_s;
            assert_eq!(came.properties, Properties { expiry_s, ..last.properties });
            assert!(expiry_s.is_none_or(|left| (60..=100).contains(&left)));
        }
    }
    // Published once, and gone.
    reader.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_that_waits_is_published_when_its_session_ends_first() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("will", Qos::AtLeastOnce).await;
    let delayed = |expiry_s| {
        let mut last = will("will", "gone");
        last.delay_s = 3600;
        Connect { will: Some(last), session_expiry_s: expiry_s, ..connect(Version::V5, "c") }
    };
    // With the connection, after a second, and at a DISCONNECT that wants it and ends the session.
    let (client, _) = Client::with(&gateway, delayed(None)).await;
    drop(client);
    assert_eq!(text(&reader.take().await), "gone");
    let (client, _) = Client::with(&gateway, delayed(Some(1))).await;
    let started = Instant::now();
    drop(client);
    assert_eq!(text(&reader.take().await), "gone");
    assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());
    let (mut client, _) = Client::with(&gateway, delayed(Some(3600))).await;
    let ending = Disconnect { session_expiry_s: Some(0), ..Disconnect::new(ReasonCode::DISCONNECT_WITH_WILL) };
    client.send(Packet::Disconnect(ending)).await;
    assert_eq!(text(&reader.take().await), "gone");
    // A normal goodbye takes it back, whatever its delay.
    let (client, _) = Client::with(&gateway, delayed(Some(1))).await;
    client.disconnect().await;
    until("the session stays", || gateway.session_counter("sessions") == 1).await;
    reader.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stops_publishes_the_wills_of_those_it_cuts_off() {
    let mut gateway = Gateway::start_with(Options { forward: vec![rule("will/#", None)], ..Options::default() }).await;
    let mut outlet = gateway.outlets.remove("cloud").unwrap();
    outlet.restore().await.unwrap();
    let mut clients = Vec::new();
    for (version, topic) in [(Version::V311, "will/old"), (Version::V5, "will/new")] {
        let wanted = Connect { will: Some(will(topic, "gone")), ..connect(version, topic) };
        clients.push(Client::with(&gateway, wanted).await.0);
    }
    let mut last = will("will/later", "gone");
    last.delay_s = 3600;
    let wanted = Connect { will: Some(last), ..resuming(Version::V5, "later") };
    drop(Client::with(&gateway, wanted).await);
    let polite = Connect { will: Some(will("will/polite", "gone")), ..connect(Version::V5, "polite") };
    Client::with(&gateway, polite).await.0.disconnect().await;
    until("not noticed", || gateway.session_counter("connected") == 2).await;
    gateway.begin_stop();
    assert_eq!(clients[0].closed().await, None);
    assert_eq!(clients[1].closed().await, Some(ReasonCode::SERVER_SHUTTING_DOWN));
    let mut topics = BTreeSet::new();
    while topics.len() < 3 {
        let from = topics.len();
        let queued = timeout(PATIENCE, outlet.next(10, 1 << 20)).await.expect("wills are missing").unwrap();
        topics.extend(queued.iter().map(|queued| queued.message.topic.as_str().to_owned()));
        assert!(topics.len() > from);
    }
    assert_eq!(topics.into_iter().collect::<Vec<_>>(), ["will/later", "will/new", "will/old"]);
    drop(outlet);
    gateway.ended().await;
}

// The end

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_behind_a_disconnect_is_done_and_nothing_is_said_after_it() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("#", Qos::AtMostOnce).await;
    for version in VERSIONS {
        let mut client = Client::new(&gateway, version, "c").await;
        let message: &[u8] = if version == Version::V5 { b"\x30\x05\0\x01t\0x" } else { b"\x30\x04\0\x01tx" };
        client.write(&[b"\xE0\0", message, b"\xC0\0"].concat()).await;
        assert_eq!(last_words(&mut client).await, b"");
    }
    // After a fault the DISCONNECT is the last word, though answers were due.
    let mut client = Client::new(&gateway, Version::V5, "c").await;
    client.write(b"\x00\0\xC0\0\x82\x07\0\x03\0\0\x01t\x01").await;
    assert_eq!(last_words(&mut client).await, b"\xE0\x01\x81");
    reader.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_with_another_expiry_decides_how_long_the_session_is_kept() {
    let gateway = Gateway::start().await;
    let (mut client, _) = Client::with(&gateway, resuming(Version::V5, "c")).await;
    let ending = Disconnect { session_expiry_s: Some(0), ..Disconnect::new(ReasonCode::SUCCESS) };
    client.send(Packet::Disconnect(ending)).await;
    client.closed().await;
    let (_client, connack) = Client::with(&gateway, resuming(Version::V5, "c")).await;
    assert!(!connack.session_present);
    gateway.ended().await;
}

// $SYS

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_says_how_it_is_under_the_names_of_mosquitto() {
    let sys_interval = Duration::from_millis(200);
    let gateway = Gateway::start_with(Options { sys_interval, ..Options::default() }).await;
    let cloud = std::sync::Arc::from("cloud");
    gateway.health.uplink(&cloud);
    let mut all = Client::new(&gateway, Version::V5, "all").await;
    all.subscribe("#", Qos::AtLeastOnce).await;
    let (mut kept, _) = Client::with(&gateway, resuming(Version::V5, "kept")).await;
    kept.subscribe("x", Qos::AtLeastOnce).await;
    kept.publish_packet(retained("kept", Qos::AtLeastOnce, 9, "x")).await;
    kept.disconnect().await;
    let mut reader = Client::new(&gateway, Version::V311, "reader").await;
    assert_eq!(reader.subscribe("$SYS/#", Qos::ExactlyOnce).await, ReasonCode::GRANTED_QOS_2);
    let mut expected = BTreeMap::from([
        ("$SYS/broker/clients/connected", "2"),
        ("$SYS/broker/clients/disconnected", "1"),
        ("$SYS/broker/clients/total", "3"),
        ("$SYS/broker/subscriptions/count", "3"),
        ("$SYS/broker/retained messages/count", "1"),
        ("$SYS/broker/publish/messages/received", "1"),
        ("$SYS/broker/publish/messages/dropped", "0"),
        ("$SYS/broker/connection/cloud/state", "0"),
    ]);
    while !expected.is_empty() {
        let came = reader.take().await;
        let topic = came.topic.clone().unwrap();
        if expected.get(topic.as_str()) == Some(&text(&came)) {
            expected.remove(topic.as_str());
        }
    }
    gateway.health.uplink(&cloud).connected.store(true, std::sync::atomic::Ordering::Relaxed);
    loop {
        let came = reader.take().await;
        if came.topic.as_ref().unwrap().as_str() == "$SYS/broker/connection/cloud/state" {
            assert_eq!((text(&came), came.retain), ("1", false));
            break;
        }
    }
    // Whoever comes later gets what is so, as retained messages.
    let mut late = Client::new(&gateway, Version::V5, "late").await;
    late.subscribe("$SYS/broker/connection/+/state", Qos::AtLeastOnce).await;
    let came = late.take().await;
    assert_eq!((text(&came), came.retain, came.qos), ("1", true, Qos::AtMostOnce));
    late.subscribe("$SYS/broker/version", Qos::AtLeastOnce).await;
    assert_eq!(text(&late.take().await), format!("tidegate version {}", env!("CARGO_PKG_VERSION")));
    let silent = Subscription { retain_handling: 2, ..subscription("$SYS/broker/version", Qos::AtLeastOnce) };
    late.subscribe_all(vec![silent], None).await;
    late.hears_nothing().await;
    for name in ["messages/received", "messages/sent", "uptime"] {
        late.subscribe(&format!("$SYS/broker/{name}"), Qos::AtMostOnce).await;
        let value = text(&late.take().await).split(' ').next().unwrap().to_owned();
        assert!(value.parse::<u64>().is_ok(), "{name} is {value}");
        late.unsubscribe(&format!("$SYS/broker/{name}")).await;
    }
    assert_eq!(text(&all.take().await), "x");
    all.hears_nothing().await;
    gateway.ended().await;
}

// The table

#[test]
fn every_test_that_the_table_names_exists_and_every_statement_stands_in_it_once() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let table = std::fs::read_to_string(root.join("mqtt_conformance.md")).unwrap();
    let (mut wrong, named) = common::named::missing("mqtt_conformance.md");
    assert!(named > 60, "the table names {named} tests only");
    let mut version = "";
    let mut numbers = BTreeSet::new();
    for line in table.lines() {
        if line.starts_with("## ") {
            version = line;
        }
        let Some(row) = line.strip_prefix("| ") else { continue };
        let cells: Vec<&str> = row.trim_end_matches('|').split('|').map(str::trim).collect();
        for number in cells[0].split(", ").filter(|cell| cell.starts_with(|first: char| first.is_ascii_digit())) {
            if !numbers.insert((version, number)) {
                wrong.push(format!("{version}: {number} stands twice"));
            }
            if cells.len() < 3 || !cells[2].contains('`') {
                wrong.push(format!("{version}: {number} names no test"));
            }
        }
    }
    // What of access has no number of its own.
    let access = [
        ("## MQTT 5.0", &["3.1.4", "3.2.2.2", "3.3.4", "3.9.3", "3.14.2.1", "4.12", "4.13.2", "5.4.1", "5.4.2"][..]),
        ("## MQTT 3.1.1", &["3.1.4", "3.2.2.3", "3.3.5", "3.9.3", "5.4.1", "5.4.2"]),
    ];
    for (version, section) in access.iter().flat_map(|(version, all)| all.iter().map(move |one| (*version, *one))) {
        if !numbers.iter().any(|(of, number)| *of == version && number.split(' ').next() == Some(section)) {
            wrong.push(format!("{version}: nothing is said of access in {section}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
