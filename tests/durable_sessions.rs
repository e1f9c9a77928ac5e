//! Does a session of a local client outlive the gateway?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::account::assert_whole_in_order_and_once;
use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::peers::{Publisher, Subscriber};
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

/// The next packet but PUBREL: the PUBCOMP before a kill may be what was lost.
fn hear_beside_pubrel(client: &mut RawClient) -> Heard {
    loop {
        match client.hear(PATIENCE) {
            Heard::Packet(0x62, body) => client.send(&packet(0x70, &body[..2])),
            heard => return heard,
        }
    }
}

#[track_caller]
fn hears_nothing(client: &mut RawClient) {
    // An answer to what was asked last proves that nothing came before it.
    client.send(&packet(0xc0, &[]));
    assert_eq!(hear_beside_pubrel(client), Heard::Packet(0xd0, Vec::new()));
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
    match hear_beside_pubrel(client) {
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

/// Publishes the numbers 0 to `count` one by one at QoS 2, over as many connections as it takes: paho, which publishes anew
/// what was released when it has to try twice to connect, would double some by itself.
fn publish_all(port: u16, version: Version, topic: &str, count: u64, done: &AtomicU64) {
    let (mut number, mut is_received, mut is_first) = (0, false, true);
    'connections: while number < count {
        let Ok((mut client, was_there)) = RawClient::try_resuming(port, version, topic, HOUR) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        assert!(was_there || std::mem::take(&mut is_first), "the gateway has forgotten {topic}");
        let mut is_again = true;
        while number < count {
            let id = u16::try_from(number + 1).unwrap();
            if !is_received {
                let mut bytes = client.publish_bytes(topic.as_bytes(), 2, id, number.to_string().as_bytes());
                bytes[0] |= if is_again { 8 } else { 0 };
                client.send(&bytes);
                match client.hear(PATIENCE) {
                    Heard::Packet(0x50, _) => is_received = true,
                    Heard::Closed => continue 'connections,
                    other => panic!("PUBREC for {number} was expected, not {other:?}"),
                }
            }
            client.release(id);
            match client.hear(PATIENCE) {
                Heard::Packet(0x70, _) => {}
                Heard::Closed => continue 'connections,
                other => panic!("PUBCOMP for {number} was expected, not {other:?}"),
            }
            (number, is_received, is_again) = (number + 1, false, false);
            done.store(number, Ordering::Relaxed);
        }
    }
}

#[test]
fn kills_between_local_publishers_and_subscribers_lose_nothing_and_double_nothing_at_qos_2() {
    const COUNT: u64 = 300;
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    let mut subscribers = ["3.1.1", "5"].map(|version| {
        let client = format!("reader-{version}");
        Subscriber::started_with(gateway.port, &client, &["plant/#"], &["--version", version, "--qos", "2"])
    });
    let more = ["--qos", "1", "--persistent", "--pause", "0.004"];
    let mut at_least_once = Publisher::started(gateway.port, "writer", "plant/one", COUNT, &more);
    let done = [AtomicU64::new(0), AtomicU64::new(0)];
    let port = gateway.port;
    std::thread::scope(|threads| {
        for ((version, topic), done) in [(Version::V311, "plant/two"), (Version::V5, "plant/three")].iter().zip(&done) {
            threads.spawn(move || publish_all(port, *version, topic, COUNT, done));
        }
        for kills in 1..=4 {
            common::wait_for(PATIENCE, "enough is published", || {
                done.iter().all(|done| done.load(Ordering::Relaxed) >= 50 * kills)
            });
            gateway.kill();
            gateway.start();
            assert_eq!(gateway.port, port);
        }
    });
    at_least_once.wait_until_done();
    for subscriber in &mut subscribers {
        subscriber.wait("every number of each topic", |received| {
            let found: BTreeSet<(&str, u64)> =
                received.iter().map(|message| (message.topic.as_str(), message.number())).collect();
            found.len() as u64 == 3 * COUNT
        });
        for topic in ["plant/two", "plant/three"] {
            assert_whole_in_order_and_once(topic, &subscriber.numbers_on(topic), 0..COUNT);
        }
    }
    wait_until_nothing_waits(&gateway);
}

#[test]
fn a_connection_that_takes_a_session_over_goes_on_where_the_first_one_was_also_after_a_kill() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    for version in VERSIONS {
        let name = format!("{version:?}");
        let (mut first, _) = RawClient::resuming(gateway.port, version, &name, HOUR);
        first.subscribe("t/1", 1);
        first.subscribe("t/2", 2);
        let mut writer = RawClient::connected(gateway.port, version, "writer");
        publish(&mut writer, "t/1", 1, "a");
        let one = message(&mut first, version);
        publish(&mut writer, "t/2", 2, "b");
        let two = message(&mut first, version);
        let (mut second, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(was_there);
        for before in [&one, &two] {
            let again = message(&mut second, version);
            assert_eq!(again, (before.0 | 8, before.1.clone(), before.2, before.3.clone()), "the same with DUP");
        }
        take_whole(&mut second, two.2.unwrap());
        gateway.kill();
        gateway.start();
        let (mut third, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(was_there);
        let again = message(&mut third, version);
        assert_eq!((again.1.as_str(), again.3.as_str()), ("t/1", "a"), "what has no PUBACK comes again");
        third.send(&packet(0x40, &again.2.unwrap().to_be_bytes()));
        wait_until_nothing_waits(&gateway);
        hears_nothing(&mut third);
        drop(RawClient::connected(gateway.port, version, &name));
    }
}

#[test]
fn retained_messages_and_live_ones_at_qos_0_reach_a_kept_session_as_any_other() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    for version in VERSIONS {
        let name = format!("{version:?}");
        let mut writer = RawClient::connected(gateway.port, version, "writer");
        for qos in [1, 2] {
            let mut bytes = writer.publish_bytes(format!("state/{qos}").as_bytes(), qos, 1, b"on");
            bytes[0] |= 1;
            writer.send(&bytes);
            hear(&mut writer, if qos == 1 { 0x40 } else { 0x50 }, 1);
            if qos == 2 {
                writer.release(1);
                hear(&mut writer, 0x70, 1);
            }
        }
        let (mut reader, _) = RawClient::resuming(gateway.port, version, &name, HOUR);
        reader.subscribe("state/#", 2);
        let (one, two) = (message(&mut reader, version), message(&mut reader, version));
        let (one, two) = if one.1 == "state/1" { (one, two) } else { (two, one) };
        assert_eq!((one.0, one.1.as_str()), (3, "state/1"));
        assert_eq!((two.0, two.1.as_str()), (5, "state/2"), "with the flag, at the QoS that it was published at");
        writer.publish(b"state/0", 0, 0, b"live");
        let live = message(&mut reader, version);
        assert_eq!((live.0, live.1.as_str(), live.3.as_str()), (0, "state/0", "live"));
        // The QoS 2 id is on disk: after a kill it stands for the same message.
        gateway.kill();
        gateway.start();
        let (mut reader, was_there) = RawClient::resuming(gateway.port, version, &name, HOUR);
        assert!(was_there);
        let again = message(&mut reader, version);
        assert_eq!((again.0, again.1.as_str(), again.2), (13, "state/2", two.2));
        take_whole(&mut reader, again.2.unwrap());
        wait_until_nothing_waits(&gateway);
        drop(RawClient::connected(gateway.port, version, &name));
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_kept_session_whose_client_does_not_read_costs_bounded_space_and_disturbs_nobody() {
    let _turn = turn();
    let folder = folder();
    let gateway = Gateway::started(folder.path(), "");
    let (mut slow, _) = RawClient::resuming(gateway.port, Version::V5, "slow", HOUR);
    slow.subscribe("t/#", 1);
    let mut other = RawClient::connected(gateway.port, Version::V5, "other");
    other.subscribe("t/#", 1);
    let mut writer = RawClient::connected(gateway.port, Version::V311, "writer");
    let before = resident_kib(gateway.id());
    let payload = "x".repeat(16 * 1024);
    for number in 0..1300_u16 {
        writer.publish(b"t/1", 1, 1, format!("{number} {payload}").as_bytes());
        hear(&mut writer, 0x40, 1);
        let (_, _, id, text) = message(&mut other, Version::V5);
        assert!(text.starts_with(&format!("{number} ")), "in order for who reads");
        other.send(&packet(0x40, &id.unwrap().to_be_bytes()));
    }
    let grown = resident_kib(gateway.id()).saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB more are resident");
    let (bytes, dropped) = gateway.wait_for_status("what is too much has given way", |status| {
        let bytes = status["sessions"]["waiting_bytes"].as_u64()?;
        Some((bytes, status["losses"]["session-full"].as_u64()?))
    });
    assert!((15 << 20..=16 << 20).contains(&bytes), "{bytes} bytes wait");
    let arrived_or_waiting = 1300 - dropped;
    assert!((950..1200).contains(&arrived_or_waiting), "{dropped} have given way");
}
