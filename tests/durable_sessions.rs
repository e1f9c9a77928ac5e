//! Does a session of a local client outlive the gateway?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::peers::Subscriber;
use common::raw::{Heard, RawClient, Version, packet};
use common::{PATIENCE, turn};

const VERSIONS: [Version; 2] = [Version::V311, Version::V5];
const HOUR: u32 = 3600;

/// The answer to something sent at QoS 2, whatever version 5 adds to it.
#[track_caller]
fn hear(client: &mut RawClient, first: u8, packet_id: u16) {
    match client.hear(PATIENCE) {
        Heard::Packet(heard, body) if heard == first && body[..2] == packet_id.to_be_bytes() => {}
        other => panic!("{first:#x} for {packet_id} was expected, not {other:?}"),
    }
}

#[track_caller]
fn hears_nothing(client: &mut RawClient) {
    // An answer to what was asked last proves that nothing came before it.
    client.send(&packet(0xc0, &[]));
    assert_eq!(client.hear(PATIENCE), Heard::Packet(0xd0, Vec::new()));
}

#[track_caller]
fn wait_until_none_is_kept(gateway: &Gateway) {
    gateway.wait_for_status("no session is kept", |status| (status["sessions"]["kept"] == 0).then_some(()));
}

#[test]
fn qos_2_messages_of_a_publisher_whose_session_survives_the_kill_reach_the_cloud_once() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let mut gateway =
        Gateway::started(folder.path(), &(uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT));
    for version in VERSIONS {
        let name = format!("{version:?}");
        let topic = format!("plant/{version:?}");
        let (mut client, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(!was_there);
        // 1: whole; 2: released, and nobody hears the answer; 3: taken; 4: nobody hears that it was taken.
        for (id, text) in [(1, "1"), (2, "2"), (3, "3")] {
            client.publish(topic.as_bytes(), 2, id, text.as_bytes());
            hear(&mut client, 0x50, id);
        }
        client.release(1);
        hear(&mut client, 0x70, 1);
        gateway.kill();
        gateway.start();
        let (mut client, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(was_there, "the session was acknowledged with the first CONNACK");
        // PUBREL of a message that the gateway has from before the kill.
        client.release(2);
        hear(&mut client, 0x70, 2);
        // The PUBREC of 3 was lost with the connection, as far as the client knows.
        for text in ["3", "3"] {
            let mut again = client.publish_bytes(topic.as_bytes(), 2, 3, text.as_bytes());
            again[0] |= 8;
            client.send(&again);
            hear(&mut client, 0x50, 3);
        }
        client.publish(topic.as_bytes(), 2, 4, b"4");
        hear(&mut client, 0x50, 4);
        gateway.kill();
        gateway.start();
        let (mut client, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(was_there);
        for id in [3, 4] {
            client.release(id);
            hear(&mut client, 0x70, id);
        }
        // Free again: the same id is another message.
        client.publish(topic.as_bytes(), 2, 3, b"5");
        hear(&mut client, 0x50, 3);
        client.release(3);
        hear(&mut client, 0x70, 3);
        gateway.wait_until_drained();
        application.wait_for_count(&format!("factory7/{topic}"), 5);
        let numbers = application.numbers_on(&format!("factory7/{topic}"));
        assert_eq!(numbers, [1, 2, 3, 4, 5], "once each, in order");
    }
}

#[test]
fn a_session_ends_durably_with_a_clean_start_its_expiry_or_a_goodbye_for_good() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    let restart = |gateway: &mut Gateway| {
        gateway.kill();
        gateway.start();
    };
    for version in VERSIONS {
        let enter = |gateway: &Gateway, expiry_s| RawClient::resuming(gateway.port, version, "c", expiry_s);
        let (mut client, was_there) = enter(&gateway, HOUR);
        assert!(!was_there);
        client.publish(b"t", 2, 7, b"x");
        hear(&mut client, 0x50, 7);
        drop(client);
        restart(&mut gateway);
        // A clean start: neither it nor the ids of the session before are there afterwards.
        drop(RawClient::connected(gateway.port, version, "c"));
        restart(&mut gateway);
        let (mut client, was_there) = enter(&gateway, HOUR);
        assert!(!was_there, "a clean start is for good");
        client.release(7);
        let unknown = if version == Version::V5 { vec![0, 7, 0x92] } else { vec![0, 7] };
        assert_eq!(client.hear(PATIENCE), Heard::Packet(0x70, unknown));
        drop(client);
        restart(&mut gateway);
        let (client, was_there) = enter(&gateway, HOUR);
        assert!(was_there, "a socket that breaks is no end of the session");
        client.disconnect(None);
        restart(&mut gateway);
        let (client, was_there) = enter(&gateway, HOUR);
        assert!(was_there, "nor is a goodbye");
        if version == Version::V5 {
            client.disconnect(Some(0));
            wait_until_none_is_kept(&gateway);
            restart(&mut gateway);
            let (client, was_there) = enter(&gateway, HOUR);
            assert!(!was_there, "a goodbye may say that it is for good");
            client.disconnect(Some(1));
            // What another one is told is committed after that.
            drop(RawClient::resuming(gateway.port, version, "other", HOUR));
            drop(RawClient::connected(gateway.port, version, "other"));
            // Its second passes while the gateway is not there to see it.
            gateway.kill();
            std::thread::sleep(Duration::from_millis(1500));
            gateway.start();
            let (client, was_there) = enter(&gateway, HOUR);
            assert!(!was_there, "it expires whether the gateway runs or not");
            client.disconnect(Some(1));
            wait_until_none_is_kept(&gateway);
        }
        drop(RawClient::connected(gateway.port, version, "c"));
    }
}

#[test]
fn what_a_client_subscribes_to_and_what_not_any_more_survives_a_kill() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    for version in VERSIONS {
        let name = format!("{version:?}");
        let (mut reader, _) = RawClient::resuming(gateway.port, version, &name, HOUR);
        reader.subscribe("kept/#", 1);
        reader.subscribe("gone/#", 1);
        reader.unsubscribe("gone/#");
        gateway.kill();
        gateway.start();
        let (mut reader, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(was_there);
        let mut writer = RawClient::connected(gateway.port, version, "writer");
        for topic in ["gone/1", "kept/1"] {
            writer.publish(topic.as_bytes(), 0, 0, b"x");
        }
        match reader.hear(PATIENCE) {
            Heard::Packet(0x30, body) => assert_eq!(&body[2..8], b"kept/1"),
            other => panic!("the subscription that was kept brings {other:?}"),
        }
        hears_nothing(&mut reader);
    }
}

type Message = (u8, String, Option<u16>, String);

/// A PUBLISH: its flags, topic, packet id and payload.
#[track_caller]
fn message(client: &mut RawClient, version: Version) -> Message {
    match client.hear(PATIENCE) {
        Heard::Packet(first, body) if first & 0xf0 == 0x30 => taken_apart(first, &body, version),
        other => panic!("a message was expected, not {other:?}"),
    }
}

fn taken_apart(first: u8, body: &[u8], version: Version) -> Message {
    let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
    let mut rest = &body[2 + length..];
    let mut packet_id = None;
    if first & 6 != 0 {
        packet_id = Some(u16::from_be_bytes([rest[0], rest[1]]));
        rest = &rest[2..];
    }
    if version == Version::V5 {
        rest = &rest[1 + usize::from(rest[0])..];
    }
    (first & 0xf, topic, packet_id, String::from_utf8(rest.to_vec()).unwrap())
}

/// Takes so many messages as a client should, and ends when each is acknowledged to the last.
#[track_caller]
fn take(client: &mut RawClient, version: Version, count: usize) -> Vec<Message> {
    let (mut messages, mut open) = (Vec::new(), 0);
    while messages.len() < count || open > 0 {
        match client.hear(PATIENCE) {
            Heard::Packet(first, body) if first & 0xf0 == 0x30 => {
                let message = taken_apart(first, &body, version);
                if let Some(packet_id) = message.2 {
                    open += usize::from(first & 4 != 0);
                    client.send(&packet(if first & 4 != 0 { 0x50 } else { 0x40 }, &packet_id.to_be_bytes()));
                }
                messages.push(message);
            }
            Heard::Packet(0x62, body) => {
                open -= 1;
                client.send(&packet(0x70, &body[..2]));
            }
            other => panic!("after {} of {count} messages came {other:?}", messages.len()),
        }
    }
    messages
}

fn texts_on(messages: &[Message], topic: &str) -> Vec<String> {
    messages.iter().filter(|message| message.1 == topic).map(|message| message.3.clone()).collect()
}

/// PUBREC, then PUBREL comes, then PUBCOMP.
#[track_caller]
fn take_whole(client: &mut RawClient, packet_id: u16) {
    client.send(&packet(0x50, &packet_id.to_be_bytes()));
    hear(client, 0x62, packet_id);
    client.send(&packet(0x70, &packet_id.to_be_bytes()));
}

#[track_caller]
fn publish(writer: &mut RawClient, topic: &str, qos: u8, text: &str) {
    writer.publish(topic.as_bytes(), qos, 1, text.as_bytes());
    match qos {
        1 => hear(writer, 0x40, 1),
        _ => {
            hear(writer, 0x50, 1);
            writer.release(1);
            hear(writer, 0x70, 1);
        }
    }
}

#[track_caller]
fn wait_until_nothing_waits(gateway: &Gateway) {
    gateway.wait_for_status("nothing waits for a client", |status| (status["sessions"]["waiting"] == 0).then_some(()));
}

#[test]
fn what_was_acknowledged_while_a_subscriber_was_away_arrives_after_a_kill_and_in_order() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    for version in VERSIONS {
        let name = format!("{version:?}");
        let (mut reader, _) = RawClient::resuming(gateway.port, version, &name, HOUR);
        reader.subscribe("one/#", 1);
        reader.subscribe("two/#", 2);
        drop(reader);
        let mut writer = RawClient::connected(gateway.port, version, "writer");
        for number in 0..30 {
            publish(&mut writer, "one/a", 1, &number.to_string());
            publish(&mut writer, "two/b", 2, &number.to_string());
            // At QoS 0 nobody is promised anything, and what nobody wants is not kept.
            writer.publish(b"one/a", 0, 0, b"lost");
            publish(&mut writer, "three", 1, "unwanted");
        }
        gateway.kill();
        gateway.start();
        let (mut reader, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(was_there);
        let messages = take(&mut reader, version, 60);
        let expected: Vec<String> = (0..30).map(|number| number.to_string()).collect();
        assert_eq!(texts_on(&messages, "one/a"), expected);
        assert_eq!(texts_on(&messages, "two/b"), expected);
        assert!(messages.iter().all(|message| message.0 == if message.1 == "one/a" { 2 } else { 4 }), "{messages:?}");
        wait_until_nothing_waits(&gateway);
        gateway.kill();
        gateway.start();
        let (mut reader, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(was_there);
        // The subscriptions still bring what comes now, and nothing comes twice.
        let mut writer = RawClient::connected(gateway.port, version, "writer");
        publish(&mut writer, "two/b", 2, "last");
        let (_, _, id, text) = message(&mut reader, version);
        assert_eq!(text, "last");
        take_whole(&mut reader, id.unwrap());
        hears_nothing(&mut reader);
        drop(RawClient::connected(gateway.port, version, &name));
    }
}

#[test]
fn a_subscriber_in_the_middle_of_a_qos_2_handshake_at_the_kill_gets_each_message_once() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    for version in VERSIONS {
        let name = format!("{version:?}");
        let (mut reader, _) = RawClient::resuming(gateway.port, version, &name, HOUR);
        reader.subscribe("t", 2);
        let mut writer = RawClient::connected(gateway.port, version, "writer");
        for text in ["1", "2", "3"] {
            publish(&mut writer, "t", 2, text);
        }
        let ids: Vec<u16> = (0..3).map(|_| message(&mut reader, version).2.unwrap()).collect();
        // 1: PUBREL has come, and PUBCOMP is on its way; 2: PUBREC has left, and nobody knows; 3: nothing.
        reader.send(&packet(0x50, &ids[0].to_be_bytes()));
        hear(&mut reader, 0x62, ids[0]);
        gateway.kill();
        gateway.start();
        let (mut reader, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(was_there);
        hear(&mut reader, 0x62, ids[0]);
        for (id, text) in [(ids[1], "2"), (ids[2], "3")] {
            let (flags, _, again, came) = message(&mut reader, version);
            assert_eq!((flags, again, came.as_str()), (12, Some(id), text), "under the same id, with DUP");
        }
        reader.send(&packet(0x70, &ids[0].to_be_bytes()));
        take_whole(&mut reader, ids[1]);
        // The next message must not bear an id that the reader still has.
        let mut writer = RawClient::connected(gateway.port, version, "writer");
        publish(&mut writer, "t", 2, "4");
        let (_, _, id, text) = message(&mut reader, version);
        assert_eq!(text, "4");
        assert_ne!(id, Some(ids[2]));
        take_whole(&mut reader, id.unwrap());
        take_whole(&mut reader, ids[2]);
        wait_until_nothing_waits(&gateway);
        gateway.kill();
        gateway.start();
        let (mut reader, _) = RawClient::resuming(gateway.port, version, &name, HOUR);
        hears_nothing(&mut reader);
        drop(RawClient::connected(gateway.port, version, &name));
    }
}
