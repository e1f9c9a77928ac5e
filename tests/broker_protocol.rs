//! Does the broker speak MQTT 3.1.1 and 5 as the specifications say, with the real queue and router behind it?
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod broker_support;

use std::num::NonZeroU16;
use std::time::Duration;

use broker_support::*;
use bytes::Bytes;
use tidegate::broker::BrokerLimits;
use tidegate::config::WhenFull;
use tidegate::message::{Properties, Qos, Topic};
use tidegate::mqtt::{Connect, Disconnect, Packet, Publish, ReasonCode, Subscription, Version};
use tidegate::queue::{Change, Verdict};
use tokio::time::{Instant, timeout};

const QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];

fn resuming(version: Version, client_id: &str) -> Connect {
    let session_expiry_s = (version == Version::V5).then_some(3600);
    Connect { clean_start: false, session_expiry_s, ..connect(version, client_id) }
}

// QoS

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_arrives_at_the_lower_of_both_qos_in_either_version() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        for wanted in QOS {
            let mut reader = Client::new(&gateway, version, "reader").await;
            assert_eq!(reader.subscribe("a/+", wanted).await, ReasonCode(wanted.level()));
            for writing in VERSIONS {
                let mut writer = Client::new(&gateway, writing, "writer").await;
                for qos in QOS {
                    assert_eq!(writer.publish("a/b", qos, "x").await, ReasonCode::SUCCESS);
                    let came = reader.take().await;
                    assert_eq!((came.qos, text(&came), came.retain, came.dup), (qos.min(wanted), "x", false, false));
                }
                writer.disconnect().await;
            }
            reader.disconnect().await;
        }
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_5_publisher_hears_that_nobody_wants_a_message_and_a_rule_that_somebody_does() {
    let options = Options { forward: vec![rule("cloud/#", None)], ..Options::default() };
    let gateway = Gateway::start_with(options).await;
    let mut client = Client::new(&gateway, Version::V5, "c").await;
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        assert_eq!(client.publish("nobody", qos, "x").await, ReasonCode::NO_MATCHING_SUBSCRIBERS);
        assert_eq!(client.publish("cloud/x", qos, "x").await, ReasonCode::SUCCESS);
    }
    let mut old = Client::new(&gateway, Version::V311, "old").await;
    assert_eq!(old.publish("nobody", Qos::AtLeastOnce, "x").await, ReasonCode::SUCCESS);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qos_2_message_that_is_repeated_before_its_pubrel_is_delivered_once() {
    // Once with a stream that wants it, so that the queue knows it, and once without.
    for forward in [vec![rule("#", None)], Vec::new()] {
        let gateway = Gateway::start_with(Options { forward, ..Options::default() }).await;
        for version in VERSIONS {
            let mut reader = Client::new(&gateway, version, "reader").await;
            reader.subscribe("t", Qos::ExactlyOnce).await;
            let mut writer = Client::new(&gateway, version, "writer").await;
            writer.send(Packet::Publish(publish("t", Qos::ExactlyOnce, 7, "x"))).await;
            let repeat = Publish { dup: true, ..publish("t", Qos::ExactlyOnce, 7, "x") };
            writer.send(Packet::Publish(repeat.clone())).await;
            assert_eq!(writer.next().await, Packet::Pubrec(ack(7)));
            assert_eq!(writer.next().await, Packet::Pubrec(ack(7)));
            writer.send(Packet::Publish(repeat)).await;
            assert_eq!(writer.next().await, Packet::Pubrec(ack(7)));
            writer.send(Packet::Pubrel(ack(7))).await;
            assert_eq!(writer.next().await, Packet::Pubcomp(ack(7)));
            writer.send(Packet::Pubrel(ack(7))).await;
            let Packet::Pubcomp(again) = writer.next().await else { panic!() };
            let expected = match version {
                Version::V311 => ReasonCode::SUCCESS,
                Version::V5 => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
            };
            assert_eq!(again.reason, expected);
            // The id is free: this is another message.
            writer.send(Packet::Publish(publish("t", Qos::ExactlyOnce, 7, "y"))).await;
            assert_eq!(writer.next().await, Packet::Pubrec(ack(7)));
            assert_eq!(text(&reader.take().await), "x");
            assert_eq!(text(&reader.take().await), "y");
            reader.hears_nothing().await;
            reader.disconnect().await;
            writer.disconnect().await;
        }
        gateway.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_leave_in_the_order_of_what_they_answer() {
    let gateway = Gateway::start_with(Options { forward: vec![rule("kept/#", None)], ..Options::default() }).await;
    let mut client = Client::new(&gateway, Version::V5, "c").await;
    for number in 1..=60 {
        let (topic, qos) = match number % 3 {
            0 => ("kept/a", Qos::AtLeastOnce),
            1 => ("unkept", Qos::AtLeastOnce),
            _ => ("kept/b", Qos::ExactlyOnce),
        };
        client.send(Packet::Publish(publish(topic, qos, number, "x"))).await;
    }
    for number in 1..=60 {
        let id = match client.next().await {
            Packet::Puback(ack) | Packet::Pubrec(ack) => ack.packet_id.get(),
            other => panic!("{other:?}"),
        };
        assert_eq!(id, number);
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_puback_and_no_pubrec_leave_before_the_queue_has_committed() {
    let options = Options { forward: vec![rule("kept/#", None)], starts_worker: false, ..Options::default() };
    let mut gateway = Gateway::start_with(options).await;
    for version in VERSIONS {
        let mut client = Client::new(&gateway, version, &format!("{version:?}")).await;
        client.send(Packet::Publish(publish("kept/a", Qos::AtLeastOnce, 1, "x"))).await;
        // Other packets are answered while the commit is awaited: only the acknowledgement waits.
        client.hears_nothing().await;
        let early = timeout(Duration::from_millis(300), client.next()).await;
        assert!(early.is_err(), "{early:?} came before the commit");
    }
    let mut client = Client::new(&gateway, Version::V5, "c").await;
    client.send(Packet::Publish(publish("kept/a", Qos::AtLeastOnce, 1, "x"))).await;
    client.hears_nothing().await;
    gateway.start_worker();
    assert_eq!(client.next().await, Packet::Puback(ack(1)));
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qos_0_message_that_a_rule_raises_is_stored_and_one_that_nobody_keeps_is_counted() {
    let forward = vec![rule("raised/#", Some(Qos::AtLeastOnce)), rule("plain/#", None)];
    let mut gateway = Gateway::start_with(Options { forward, ..Options::default() }).await;
    let mut client = Client::new(&gateway, Version::V311, "node-red").await;
    client.publish("plain/x", Qos::AtMostOnce, "1").await;
    client.publish("raised/x", Qos::AtMostOnce, "2").await;
    client.hears_nothing().await;
    let mut outlet = gateway.outlets.remove("cloud").unwrap();
    outlet.restore().await.unwrap();
    let queued = timeout(PATIENCE, outlet.next(10, 1 << 20)).await.unwrap().unwrap();
    assert_eq!(queued.len(), 1);
    assert_eq!((queued[0].message.topic.as_str(), queued[0].qos), ("raised/x", Qos::AtLeastOnce));
    assert_eq!(gateway.health.snapshot(gateway.intake.now()).unkept_qos0["node-red"], 1);
    let cloud = std::sync::Arc::from("cloud");
    let mut lane = gateway.intake.live_lane(&cloud).unwrap();
    assert!(gateway.intake.live_lane(&cloud).is_none(), "taken once");
    gateway.health.uplink(&cloud).connected.store(true, std::sync::atomic::Ordering::Relaxed);
    client.publish("plain/y", Qos::AtMostOnce, "3").await;
    assert_eq!(timeout(PATIENCE, lane.recv()).await.unwrap().unwrap().topic.as_str(), "plain/y");
    assert_eq!(gateway.health.snapshot(gateway.intake.now()).unkept_qos0["node-red"], 1);
    drop(outlet);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_that_refuses_says_so_in_version_5_and_makes_version_3_wait() {
    let limits = BrokerLimits {
        full_patience: Duration::from_millis(800),
        full_retry: Duration::from_millis(50),
        ..BrokerLimits::default()
    };
    let options = Options {
        limits,
        forward: vec![rule("#", None)],
        when_full: WhenFull::Refuse,
        bytes_max: 1 << 20,
        ..Options::default()
    };
    let gateway = Gateway::start_with(options).await;
    let mut modern = Client::new(&gateway, Version::V5, "modern").await;
    let body = "x".repeat(100_000);
    let mut refused = None;
    for _ in 0..60 {
        let reason = modern.publish("a", Qos::AtLeastOnce, &body).await;
        if reason.is_failure() {
            refused = Some(reason);
            break;
        }
    }
    assert_eq!(refused, Some(ReasonCode::QUOTA_EXCEEDED));
    assert_eq!(modern.publish("a", Qos::ExactlyOnce, &body).await, ReasonCode::QUOTA_EXCEEDED);
    modern.hears_nothing().await;
    let mut old = Client::new(&gateway, Version::V311, "old").await;
    let started = Instant::now();
    old.send(Packet::Publish(publish("a", Qos::AtLeastOnce, 1, &body))).await;
    assert_eq!(old.closed().await, None, "closed without a word, so that the client repeats");
    assert!(started.elapsed() >= Duration::from_millis(800));
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_3_message_that_waited_for_space_is_acknowledged_when_there_is_some() {
    let options = Options {
        forward: vec![rule("#", None)],
        when_full: WhenFull::Refuse,
        bytes_max: 1 << 20,
        ..Options::default()
    };
    let mut gateway = Gateway::start_with(options).await;
    let mut outlet = gateway.outlets.remove("cloud").unwrap();
    outlet.restore().await.unwrap();
    let mut modern = Client::new(&gateway, Version::V5, "modern").await;
    let body = "x".repeat(50_000);
    while !modern.publish("a", Qos::AtLeastOnce, &body).await.is_failure() {}
    let mut old = Client::new(&gateway, Version::V311, "old").await;
    old.send(Packet::Publish(publish("a", Qos::AtLeastOnce, 1, &body))).await;
    let early = timeout(Duration::from_secs(1), old.next()).await;
    assert!(early.is_err(), "{early:?} came although there is no space");
    old.send(Packet::Pingreq).await;
    assert!(timeout(Duration::from_millis(300), old.next()).await.is_err(), "nothing more is read meanwhile");
    for queued in timeout(PATIENCE, outlet.next(8, 1 << 20)).await.unwrap().unwrap() {
        let settled = Change::Settle { sequence: queued.sequence, verdict: Verdict::Delivered };
        outlet.commit(vec![settled]).await.unwrap();
    }
    assert_eq!(old.next().await, Packet::Puback(ack(1)));
    assert_eq!(old.next().await, Packet::Pingresp);
    drop(outlet);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_start_while_a_qos_2_message_enters_the_queue_begins_with_fresh_packet_ids() {
    let options = Options { forward: vec![rule("#", None)], starts_worker: false, ..Options::default() };
    let mut gateway = Gateway::start_with(options).await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    let silent = Subscription { retain_handling: 2, ..subscription("t", Qos::AtMostOnce) };
    reader.subscribe_all(vec![silent], None).await;
    let mut first = Client::new(&gateway, Version::V5, "c").await;
    first.send(Packet::Publish(publish("t", Qos::ExactlyOnce, 1, "first"))).await;
    until("not read", || gateway.session_counter("received") == 1).await;
    let mut second = Client::new(&gateway, Version::V5, "c").await;
    assert_eq!(first.closed().await, Some(ReasonCode::SESSION_TAKEN_OVER));
    gateway.start_worker();
    assert_eq!(text(&reader.take().await), "first");
    assert_eq!(second.publish("t", Qos::ExactlyOnce, "second").await, ReasonCode::SUCCESS);
    assert_eq!(text(&reader.take().await), "second");
    gateway.ended().await;
}

// Outbound

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_receive_maximum_is_kept() {
    let gateway = Gateway::start().await;
    let connect = Connect { receive_max: NonZeroU16::new(2), ..connect(Version::V5, "reader") };
    let (mut reader, _) = Client::with(&gateway, connect).await;
    reader.subscribe("t", Qos::ExactlyOnce).await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    for number in 0..5 {
        writer.publish("t", Qos::AtLeastOnce, &number.to_string()).await;
    }
    let first = reader.message().await;
    let second = reader.message().await;
    reader.hears_nothing().await;
    assert_eq!((text(&first), text(&second)), ("0", "1"));
    reader.send(Packet::Puback(ack(first.packet_id.unwrap().get()))).await;
    assert_eq!(text(&reader.message().await), "2");
    reader.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_longer_than_the_client_takes_is_left_out_and_counted() {
    let gateway = Gateway::start().await;
    let connect = Connect { packet_bytes_max: Some(100), ..connect(Version::V5, "reader") };
    let (mut reader, _) = Client::with(&gateway, connect).await;
    reader.subscribe("t", Qos::AtLeastOnce).await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    writer.publish("t", Qos::AtLeastOnce, &"x".repeat(200)).await;
    writer.publish("t", Qos::AtLeastOnce, "short").await;
    assert_eq!(text(&reader.take().await), "short");
    assert_eq!(gateway.session_counter("dropped"), 1);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_travel_from_end_to_end_and_are_stripped_for_version_3() {
    let gateway = Gateway::start().await;
    let mut modern = Client::new(&gateway, Version::V5, "modern").await;
    modern.subscribe_all(vec![subscription("t", Qos::AtLeastOnce)], Some(268_435_455)).await;
    let mut old = Client::new(&gateway, Version::V311, "old").await;
    old.subscribe("t", Qos::AtLeastOnce).await;
    let properties = Properties {
        is_utf8: true,
        expiry_s: Some(100),
        content_type: Some("text/plain".to_owned()),
        response_topic: Some(Topic::new("answers").unwrap()),
        correlation_data: Some(Bytes::from_static(b"\0\x01")),
        user: vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())],
    };
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    let sent = Publish { properties: properties.clone(), ..publish("t", Qos::AtLeastOnce, 1, "x") };
    writer.publish_packet(sent).await;
    let came = modern.take().await;
    let left = came.properties.expiry_s.unwrap();
    assert!((90..=100).contains(&left), "{left}");
    assert_eq!(came.properties, Properties { expiry_s: Some(left), ..properties });
    assert_eq!(came.subscription_id, Some(268_435_455));
    assert_eq!(old.take().await.properties, Properties::default());
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_subscriptions_bring_a_copy_each_with_its_own_identifier_and_qos() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe_all(vec![subscription("a/#", Qos::ExactlyOnce)], Some(1)).await;
    reader.subscribe_all(vec![subscription("a/+", Qos::AtMostOnce)], Some(2)).await;
    reader.subscribe_all(vec![subscription("a/+", Qos::AtLeastOnce)], Some(3)).await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    writer.publish("a/b", Qos::ExactlyOnce, "x").await;
    let mut copies = Vec::new();
    for _ in 0..2 {
        let came = reader.take().await;
        copies.push((came.subscription_id, came.qos));
    }
    copies.sort_unstable();
    assert_eq!(copies, [(Some(1), Qos::ExactlyOnce), (Some(3), Qos::AtLeastOnce)]);
    reader.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_local_keeps_a_clients_own_messages_away_from_it() {
    let gateway = Gateway::start().await;
    let mut client = Client::new(&gateway, Version::V5, "c/+").await;
    let quiet = Subscription { no_local: true, ..subscription("t", Qos::AtLeastOnce) };
    client.subscribe_all(vec![quiet], None).await;
    client.publish("t", Qos::AtLeastOnce, "mine").await;
    let mut other = Client::new(&gateway, Version::V5, "other").await;
    other.publish("t", Qos::AtLeastOnce, "theirs").await;
    assert_eq!(text(&client.take().await), "theirs");
    client.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_shared_subscription_share_and_others_get_all() {
    let gateway = Gateway::start().await;
    let mut first = Client::new(&gateway, Version::V5, "first").await;
    let mut second = Client::new(&gateway, Version::V311, "second").await;
    let mut all = Client::new(&gateway, Version::V5, "all").await;
    first.subscribe("$share/g/work/#", Qos::AtLeastOnce).await;
    first.subscribe("elsewhere", Qos::AtLeastOnce).await;
    second.subscribe("$share/g/work/#", Qos::AtLeastOnce).await;
    all.subscribe("work/#", Qos::AtMostOnce).await;
    // In a bare rumqttd this takes the client out of all its shared subscriptions.
    first.unsubscribe("elsewhere").await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    for number in 0..10 {
        writer.publish("work/a", Qos::AtLeastOnce, &number.to_string()).await;
    }
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(text(&first.take().await).to_owned());
        seen.push(text(&second.take().await).to_owned());
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
    for number in 0..10 {
        assert_eq!(text(&all.take().await), number.to_string());
    }
    first.disconnect().await;
    writer.publish("work/a", Qos::AtLeastOnce, "alone").await;
    assert_eq!(text(&second.take().await), "alone");
    gateway.ended().await;
}

// Retained

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_messages_come_at_subscribe_with_the_flag_and_an_empty_one_deletes() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        let mut writer = Client::new(&gateway, version, "writer").await;
        let state = |payload: &str, id| Publish { retain: true, ..publish("state/1", Qos::AtLeastOnce, id, payload) };
        writer.publish_packet(state("on", 1)).await;
        let mut reader = Client::new(&gateway, version, "reader").await;
        reader.subscribe("state/#", Qos::ExactlyOnce).await;
        let came = reader.take().await;
        assert_eq!((text(&came), came.retain, came.qos), ("on", true, Qos::AtLeastOnce));
        // Live copies bear no flag; an empty message without the flag deletes nothing.
        writer.publish("state/1", Qos::AtLeastOnce, "").await;
        assert!(!reader.take().await.retain);
        writer.publish_packet(state("off", 2)).await;
        assert!(!reader.take().await.retain);
        reader.subscribe("state/#", Qos::AtMostOnce).await;
        assert_eq!(text(&reader.take().await), "off", "a repeated SUBSCRIBE brings them again");
        writer.publish_packet(state("", 3)).await;
        assert_eq!(text(&reader.take().await), "");
        reader.subscribe("state/#", Qos::AtMostOnce).await;
        reader.hears_nothing().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retain_handling_retain_as_published_and_shared_subscriptions() {
    let gateway = Gateway::start().await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    writer.publish_packet(Publish { retain: true, ..publish("state", Qos::AtLeastOnce, 1, "on") }).await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    let with = |retain_handling| Subscription { retain_handling, ..subscription("state", Qos::AtLeastOnce) };
    reader.subscribe_all(vec![with(2)], None).await;
    reader.hears_nothing().await;
    reader.subscribe_all(vec![with(1)], None).await;
    reader.hears_nothing().await;
    reader.unsubscribe("state").await;
    reader.subscribe_all(vec![with(1)], None).await;
    assert_eq!(text(&reader.take().await), "on");
    reader.subscribe("$share/g/state", Qos::AtLeastOnce).await;
    reader.hears_nothing().await;
    reader.unsubscribe("$share/g/state").await;
    reader.unsubscribe("state").await;
    let kept = Subscription { retain_as_published: true, ..subscription("state", Qos::AtLeastOnce) };
    reader.subscribe_all(vec![kept], None).await;
    reader.take().await;
    writer.publish_packet(Publish { retain: true, ..publish("state", Qos::AtLeastOnce, 2, "live") }).await;
    assert!(reader.take().await.retain);
    gateway.ended().await;
}

// Sessions

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_resumed_with_what_was_not_acknowledged_and_what_came_meanwhile() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        let name = format!("{version:?}");
        let (mut reader, connack) = Client::with(&gateway, resuming(version, &name)).await;
        assert!(!connack.session_present);
        reader.subscribe("t", Qos::ExactlyOnce).await;
        let mut writer = Client::new(&gateway, version, "writer").await;
        writer.publish("t", Qos::AtLeastOnce, "1").await;
        writer.publish("t", Qos::ExactlyOnce, "2").await;
        let first = reader.message().await;
        let second = reader.message().await;
        reader.send(Packet::Pubrec(ack(second.packet_id.unwrap().get()))).await;
        assert!(matches!(reader.next().await, Packet::Pubrel(_)));
        drop(reader);
        let connected = gateway.session_counter("connected");
        until("the broker has not noticed", || gateway.session_counter("connected") <= connected.min(1)).await;
        writer.publish("t", Qos::AtMostOnce, "lost").await;
        writer.publish("t", Qos::AtLeastOnce, "3").await;
        writer.publish("t", Qos::AtLeastOnce, "4").await;
        let (mut reader, connack) = Client::with(&gateway, resuming(version, &name)).await;
        assert!(connack.session_present);
        let again = reader.message().await;
        assert_eq!(again, Publish { dup: true, ..first });
        assert_eq!(reader.next().await, Packet::Pubrel(ack(second.packet_id.unwrap().get())));
        reader.send(Packet::Puback(ack(again.packet_id.unwrap().get()))).await;
        reader.send(Packet::Pubcomp(ack(second.packet_id.unwrap().get()))).await;
        for expected in ["3", "4"] {
            let came = reader.take().await;
            assert_eq!((text(&came), came.dup), (expected, false));
        }
        reader.disconnect().await;
        writer.disconnect().await;
        // A clean start forgets it.
        let (mut reader, connack) = Client::with(&gateway, connect(version, &name)).await;
        assert!(!connack.session_present);
        let mut writer = Client::new(&gateway, version, "writer").await;
        writer.publish("t", Qos::AtLeastOnce, "5").await;
        reader.hears_nothing().await;
        reader.disconnect().await;
        writer.disconnect().await;
        let (reader, connack) = Client::with(&gateway, resuming(version, &name)).await;
        assert!(!connack.session_present, "the clean session ended with its connection");
        reader.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inbound_qos_2_goes_on_in_a_resumed_session() {
    let gateway = Gateway::start_with(Options { forward: vec![rule("#", None)], ..Options::default() }).await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("t", Qos::ExactlyOnce).await;
    for version in VERSIONS {
        let name = format!("{version:?}");
        let (mut writer, _) = Client::with(&gateway, resuming(version, &name)).await;
        writer.send(Packet::Publish(publish("t", Qos::ExactlyOnce, 9, "x"))).await;
        assert!(matches!(writer.next().await, Packet::Pubrec(_)));
        drop(writer);
        let (mut writer, connack) = Client::with(&gateway, resuming(version, &name)).await;
        assert!(connack.session_present);
        writer.send(Packet::Publish(Publish { dup: true, ..publish("t", Qos::ExactlyOnce, 9, "x") })).await;
        assert!(matches!(writer.next().await, Packet::Pubrec(_)));
        writer.send(Packet::Pubrel(ack(9))).await;
        assert_eq!(writer.next().await, Packet::Pubcomp(ack(9)));
        assert_eq!(text(&reader.take().await), "x");
        reader.hears_nothing().await;
        // A clean start is another session: the same id is another message.
        let (mut writer, _) = Client::with(&gateway, connect(version, &name)).await;
        writer.send(Packet::Publish(publish("t", Qos::ExactlyOnce, 9, "y"))).await;
        assert!(matches!(writer.next().await, Packet::Pubrec(_)));
        assert_eq!(text(&reader.take().await), "y");
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_an_absent_client_is_bounded_and_the_oldest_give_way() {
    let limits = BrokerLimits { kept_messages: 10, ..BrokerLimits::default() };
    let gateway = Gateway::start_with(Options { limits, ..Options::default() }).await;
    let (mut reader, _) = Client::with(&gateway, resuming(Version::V5, "reader")).await;
    reader.subscribe("t", Qos::AtLeastOnce).await;
    reader.disconnect().await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    for number in 0..15 {
        writer.publish("t", Qos::AtLeastOnce, &number.to_string()).await;
    }
    until("not counted", || gateway.session_counter("dropped") == 5).await;
    let (mut reader, connack) = Client::with(&gateway, resuming(Version::V5, "reader")).await;
    assert!(connack.session_present);
    for number in 5..15 {
        assert_eq!(text(&reader.take().await), number.to_string());
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_connection_takes_the_session_over_and_the_first_is_told() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        let mut reader = Client::new(&gateway, Version::V5, "wills").await;
        reader.subscribe("will", Qos::AtLeastOnce).await;
        let mut first = Connect { will: Some(will("will", "gone")), ..resuming(version, "c") };
        first.clean_start = true;
        first.session_expiry_s = (version == Version::V5).then_some(3600);
        if version == Version::V311 {
            first.clean_start = false;
        }
        let (mut first, _) = Client::with(&gateway, first).await;
        first.subscribe("t", Qos::AtLeastOnce).await;
        let (mut second, connack) = Client::with(&gateway, resuming(version, "c")).await;
        assert!(connack.session_present);
        let expected = (version == Version::V5).then_some(ReasonCode::SESSION_TAKEN_OVER);
        assert_eq!(first.closed().await, expected);
        assert_eq!(text(&reader.take().await), "gone", "the will of the closed connection");
        second.publish("t", Qos::AtLeastOnce, "mine").await;
        assert_eq!(text(&second.take().await), "mine", "the subscription is still there");
        let (_third, connack) = Client::with(&gateway, connect(version, "c")).await;
        assert!(!connack.session_present);
        second.closed().await;
        reader.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_after_its_expiry_and_a_longer_one_is_cut_to_the_bound() {
    let limits = BrokerLimits { session_expiry_s: 1, ..BrokerLimits::default() };
    let gateway = Gateway::start_with(Options { limits, ..Options::default() }).await;
    let (client, connack) = Client::with(&gateway, resuming(Version::V5, "c")).await;
    assert_eq!(connack.session_expiry_s, Some(1));
    client.disconnect().await;
    until("the session stays", || gateway.session_counter("sessions") == 0).await;
    let (_client, connack) = Client::with(&gateway, resuming(Version::V5, "c")).await;
    assert!(!connack.session_present);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_without_an_id_get_one() {
    let gateway = Gateway::start().await;
    let (mut first, connack) = Client::with(&gateway, connect(Version::V5, "")).await;
    let name = connack.assigned_client_id.unwrap();
    assert!(!name.is_empty());
    let (_second, connack) = Client::with(&gateway, connect(Version::V5, "")).await;
    assert_ne!(connack.assigned_client_id.unwrap(), name);
    let (_third, connack) = Client::with(&gateway, connect(Version::V311, "")).await;
    assert_eq!(connack.reason, ReasonCode::SUCCESS);
    first.hears_nothing().await;
    gateway.ended().await;
}

// Wills and keep-alive

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_is_published_unless_the_client_says_goodbye() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        let mut reader = Client::new(&gateway, Version::V5, "reader").await;
        reader.subscribe("will/#", Qos::AtLeastOnce).await;
        let with = |topic: &str| Connect { will: Some(will(topic, "gone")), ..connect(version, topic) };
        let (polite, _) = Client::with(&gateway, with("will/polite")).await;
        polite.disconnect().await;
        let (abrupt, _) = Client::with(&gateway, with("will/abrupt")).await;
        drop(abrupt);
        assert_eq!(reader.take().await.topic.unwrap().as_str(), "will/abrupt");
        if version == Version::V5 {
            let (mut client, _) = Client::with(&gateway, with("will/wanted")).await;
            client.send(Packet::Disconnect(Disconnect::new(ReasonCode::DISCONNECT_WITH_WILL))).await;
            assert_eq!(reader.take().await.topic.unwrap().as_str(), "will/wanted");
        }
        let (mut wrong, _) = Client::with(&gateway, with("will/wrong")).await;
        wrong.write(&[0xF7, 0x00]).await;
        assert_eq!(reader.take().await.topic.unwrap().as_str(), "will/wrong");
        reader.hears_nothing().await;
        reader.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retained_will_stays_for_later_subscribers() {
    let gateway = Gateway::start().await;
    let mut last = will("state/c", "offline");
    last.retain = true;
    let (client, _) = Client::with(&gateway, Connect { will: Some(last), ..connect(Version::V311, "c") }).await;
    drop(client);
    until("the session stays", || gateway.session_counter("sessions") == 0).await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("state/#", Qos::AtLeastOnce).await;
    let came = reader.take().await;
    assert_eq!((text(&came), came.retain), ("offline", true));
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_will_is_not_published_when_the_client_comes_back() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("will", Qos::AtLeastOnce).await;
    let delayed = |delay_s| {
        let mut last = will("will", "gone");
        last.delay_s = delay_s;
        Connect { will: Some(last), ..resuming(Version::V5, "c") }
    };
    let (client, _) = Client::with(&gateway, delayed(2)).await;
    drop(client);
    until("not noticed", || gateway.session_counter("connected") == 1).await;
    let (client, connack) = Client::with(&gateway, delayed(1)).await;
    assert!(connack.session_present);
    reader.hears_nothing().await;
    let started = Instant::now();
    drop(client);
    assert_eq!(text(&reader.take().await), "gone");
    assert!(started.elapsed() >= Duration::from_secs(1));
    // A clean start ends the session, and with it the delay.
    let (client, _) = Client::with(&gateway, delayed(3600)).await;
    drop(client);
    until("not noticed", || gateway.session_counter("connected") == 1).await;
    let _client = Client::new(&gateway, Version::V5, "c").await;
    assert_eq!(text(&reader.take().await), "gone");
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_falls_silent_is_disconnected_and_one_without_keep_alive_never() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("will/#", Qos::AtLeastOnce).await;
    for version in VERSIONS {
        let silent =
            |topic: &str| Connect { keep_alive_s: 1, will: Some(will(topic, "silent")), ..connect(version, topic) };
        let mut forever = Client::new(&gateway, version, "forever").await;
        let (mut talking, _) = Client::with(&gateway, silent("will/talking")).await;
        let (mut client, _) = Client::with(&gateway, silent("will/silent")).await;
        let started = Instant::now();
        let talk = async {
            loop {
                talking.send(Packet::Pingreq).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        let reason = tokio::select! {
            reason = client.closed() => reason,
            () = talk => None,
        };
        assert_eq!(reason, (version == Version::V5).then_some(ReasonCode::KEEP_ALIVE_TIMEOUT));
        assert!(started.elapsed() >= Duration::from_millis(1400), "{:?}", started.elapsed());
        assert_eq!(reader.take().await.topic.unwrap().as_str(), "will/silent");
        forever.hears_nothing().await;
        talking.disconnect().await;
    }
    gateway.ended().await;
}

// Rules that clients break

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_of_the_gateway_and_of_servers_are_not_for_clients() {
    let gateway = Gateway::start().await;
    for topic in ["tidegate/gw/status", "tidegate", "$SYS/x", "$"] {
        let mut modern = Client::new(&gateway, Version::V5, "modern").await;
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            assert_eq!(modern.publish(topic, qos, "x").await, ReasonCode::TOPIC_NAME_INVALID);
        }
        modern.send(Packet::Publish(publish(topic, Qos::AtMostOnce, 0, "x"))).await;
        assert_eq!(modern.closed().await, Some(ReasonCode::TOPIC_NAME_INVALID));
        let mut old = Client::new(&gateway, Version::V311, "old").await;
        old.send(Packet::Publish(publish(topic, Qos::AtLeastOnce, 1, "x"))).await;
        assert_eq!(old.closed().await, None);
        let wanted = Connect { will: Some(will(topic, "x")), ..connect(Version::V5, "c") };
        let (_client, connack) = Client::with(&gateway, wanted).await;
        assert_eq!(connack.reason, ReasonCode::TOPIC_NAME_INVALID);
    }
    let mut reader = Client::new(&gateway, Version::V311, "reader").await;
    assert_eq!(reader.subscribe("$SYS/#", Qos::AtMostOnce).await, ReasonCode::SUCCESS);
    assert_eq!(reader.subscribe("tidegate/#", Qos::AtLeastOnce).await, ReasonCode::GRANTED_QOS_1);
    reader.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topic_aliases_stand_for_topics_of_this_connection_within_the_announced_maximum() {
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V5, "reader").await;
    reader.subscribe("#", Qos::AtMostOnce).await;
    let (mut writer, connack) = Client::with(&gateway, connect(Version::V5, "writer")).await;
    let alias = |topic: Option<&str>, number: u16| Publish {
        topic: topic.map(|topic| Topic::new(topic).unwrap()),
        topic_alias: NonZeroU16::new(number),
        ..publish("x", Qos::AtMostOnce, 0, "x")
    };
    for (topic, number) in [(Some("a"), 1), (None, 1), (Some("b"), 1), (None, 1), (Some("c"), connack.topic_alias_max)]
    {
        writer.send(Packet::Publish(alias(topic, number))).await;
    }
    for expected in ["a", "a", "b", "b", "c"] {
        let came = reader.take().await;
        assert_eq!((came.topic.unwrap().as_str(), came.topic_alias), (expected, None));
    }
    writer.send(Packet::Publish(alias(None, 2))).await;
    assert_eq!(writer.closed().await, Some(ReasonCode::PROTOCOL_ERROR));
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    writer.send(Packet::Publish(alias(None, 1))).await;
    assert_eq!(writer.closed().await, Some(ReasonCode::PROTOCOL_ERROR), "an alias of another connection");
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    writer.send(Packet::Publish(alias(Some("d"), connack.topic_alias_max + 1))).await;
    assert_eq!(writer.closed().await, Some(ReasonCode::TOPIC_ALIAS_INVALID));
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_allows_topic_aliases_is_told_a_topic_once_a_connection_and_then_its_number() {
    let gateway = Gateway::start().await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    let reader = |maximum: u16, packet_bytes_max: Option<u32>| Connect {
        topic_alias_max: maximum,
        packet_bytes_max,
        session_expiry_s: Some(60),
        clean_start: false,
        ..connect(Version::V5, "reader")
    };
    let (mut first, _) = Client::with(&gateway, reader(1, None)).await;
    first.subscribe("plant/#", Qos::AtLeastOnce).await;
    let said = |publish: &Publish| {
        (publish.topic.as_ref().map(|topic| topic.as_str().to_owned()), publish.topic_alias.map(NonZeroU16::get))
    };
    let whole = |topic: &str, alias: Option<u16>| (Some(topic.to_owned()), alias);
    for (topic, expected) in [
        ("plant/press/1", whole("plant/press/1", Some(1))),
        ("plant/press/1", (None, Some(1))),
        ("plant/press/2", whole("plant/press/2", None)),
        ("plant/press/1", (None, Some(1))),
    ] {
        writer.publish(topic, Qos::AtLeastOnce, "x").await;
        assert_eq!(said(&first.take().await), expected);
    }
    // What was said by its number and not acknowledged comes again in full: the number was of that connection.
    writer.publish("plant/press/1", Qos::AtLeastOnce, "unacknowledged").await;
    assert_eq!(said(&first.message().await), (None, Some(1)));
    let (mut second, connack) = Client::with(&gateway, reader(1, None)).await;
    assert!(connack.session_present);
    let again = second.take().await;
    assert!(again.dup && text(&again) == "unacknowledged");
    assert_eq!(said(&again), whole("plant/press/1", Some(1)));
    // None is allowed; and where an alias would make the packet too long, it goes without: 2 + 2 + 13 + 2 + 1 + 1.
    for (maximum, packet_bytes_max) in [(0, None), (1, Some(21))] {
        let (mut client, _) = Client::with(&gateway, reader(maximum, packet_bytes_max)).await;
        for _ in 0..2 {
            writer.publish("plant/press/1", Qos::AtLeastOnce, "x").await;
            assert_eq!(said(&client.take().await), whole("plant/press/1", None), "{maximum}");
        }
        client.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_messages_than_receive_maximum_are_refused() {
    let limits = BrokerLimits { inbound: 3, inbound_tolerated: 3, ..BrokerLimits::default() };
    let gateway = Gateway::start_with(Options { limits, ..Options::default() }).await;
    let (mut client, connack) = Client::with(&gateway, connect(Version::V5, "c")).await;
    assert_eq!(connack.receive_max, NonZeroU16::new(3));
    for round in 0..2 {
        for number in 1..=3 {
            client.send(Packet::Publish(publish("t", Qos::ExactlyOnce, number, "x"))).await;
            assert!(matches!(client.next().await, Packet::Pubrec(_)), "round {round}");
        }
        if round == 0 {
            for number in 1..=3 {
                client.send(Packet::Pubrel(ack(number))).await;
                assert!(matches!(client.next().await, Packet::Pubcomp(_)));
            }
        }
    }
    client.send(Packet::Publish(publish("t", Qos::ExactlyOnce, 4, "x"))).await;
    assert_eq!(client.closed().await, Some(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED));
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_are_bounded_and_unsubscribe_says_what_there_was() {
    let limits = BrokerLimits { subscriptions: 2, ..BrokerLimits::default() };
    let gateway = Gateway::start_with(Options { limits, ..Options::default() }).await;
    for version in VERSIONS {
        let mut client = Client::new(&gateway, version, "c").await;
        let three = ["a", "b", "c"].map(|filter| subscription(filter, Qos::AtLeastOnce)).to_vec();
        let failure = if version == Version::V5 { ReasonCode::QUOTA_EXCEEDED } else { ReasonCode(0x80) };
        let granted = ReasonCode::GRANTED_QOS_1;
        assert_eq!(client.subscribe_all(three, None).await, [granted, granted, failure]);
        let is_v5 = version == Version::V5;
        assert_eq!(client.unsubscribe("a").await, if is_v5 { vec![ReasonCode::SUCCESS] } else { vec![] });
        let none = ReasonCode::NO_SUBSCRIPTION_EXISTED;
        assert_eq!(client.unsubscribe("a").await, if is_v5 { vec![none] } else { vec![] });
        assert_eq!(client.subscribe("c", Qos::AtLeastOnce).await, granted);
        client.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_at_the_wrong_time_end_the_connection_with_a_reason() {
    let gateway = Gateway::start().await;
    let second = Packet::Connect(Box::new(connect(Version::V5, "c")));
    let prolonging = Disconnect { session_expiry_s: Some(10), ..Disconnect::new(ReasonCode::SUCCESS) };
    for packet in [second, Packet::Pingresp, Packet::Disconnect(prolonging)] {
        let mut client = Client::new(&gateway, Version::V5, "c").await;
        client.send(packet).await;
        assert_eq!(client.closed().await, Some(ReasonCode::PROTOCOL_ERROR));
    }
    assert!(gateway.session_counter("protocol_errors") >= 3);
    let mut client = Client::new(&gateway, Version::V5, "c").await;
    client.send(Packet::Pubrec(ack(5))).await;
    let Packet::Pubrel(answer) = client.next().await else { panic!() };
    assert_eq!(answer.reason, ReasonCode::PACKET_IDENTIFIER_NOT_FOUND);
    client.send(Packet::Puback(ack(5))).await;
    client.send(Packet::Pubcomp(ack(5))).await;
    client.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connect_is_told_why_in_its_own_version() {
    let limits = BrokerLimits { sessions: 1, client_id_bytes: 10, ..BrokerLimits::default() };
    let gateway = Gateway::start_with(Options { limits, ..Options::default() }).await;
    let cases = [
        (
            Connect { auth_method: Some("x".to_owned()), ..connect(Version::V5, "c") },
            ReasonCode::BAD_AUTHENTICATION_METHOD,
        ),
        (connect(Version::V5, "eleven-long"), ReasonCode::CLIENT_IDENTIFIER_NOT_VALID),
        (connect(Version::V311, "eleven-long"), ReasonCode::CLIENT_IDENTIFIER_NOT_VALID),
    ];
    for (connect, reason) in cases {
        let (mut client, connack) = Client::with(&gateway, connect).await;
        assert_eq!(connack.reason, reason);
        assert_eq!(client.closed().await, None);
    }
    let mut unknown = Client::raw(&gateway, Version::V311).await;
    unknown.write(b"\x10\x0e\0\x04MQTT\x02\x02\0\0\0\x02ab").await;
    let Packet::Connack(connack) = unknown.next().await else { panic!() };
    assert_eq!(connack.reason, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION);
    let _first = Client::new(&gateway, Version::V5, "first").await;
    let (_client, connack) = Client::with(&gateway, connect(Version::V5, "c")).await;
    assert_eq!(connack.reason, ReasonCode::QUOTA_EXCEEDED);
    let (_client, connack) = Client::with(&gateway, connect(Version::V311, "c")).await;
    assert_eq!(connack.reason, ReasonCode::SERVER_UNAVAILABLE);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_broker_answers_what_it_has_taken_and_says_goodbye() {
    let options = Options { forward: vec![rule("#", None)], starts_worker: false, ..Options::default() };
    let mut gateway = Gateway::start_with(options).await;
    let mut client = Client::new(&gateway, Version::V5, "c").await;
    client.send(Packet::Publish(publish("t", Qos::AtLeastOnce, 1, "x"))).await;
    client.hears_nothing().await;
    gateway.begin_stop();
    gateway.start_worker();
    assert_eq!(client.next().await, Packet::Puback(ack(1)));
    assert_eq!(client.closed().await, Some(ReasonCode::SERVER_SHUTTING_DOWN));
    gateway.ended().await;
}
