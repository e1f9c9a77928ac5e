//! Does each limit of `[broker.limits]` hold, is whoever goes beyond told so in its own version, and is nobody else
//! disturbed?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod broker_support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use broker_support::*;
use tidegate::broker::BrokerLimits;
use tidegate::config::{BrokerConfig, LimitsConfig, Pace};
use tidegate::message::{Qos, Topic};
use tidegate::mqtt::{Packet, ReasonCode, Version};
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout};

/// Long enough that only the limit under test ends anything.
const LONG: Duration = Duration::from_secs(300);

async fn gateway(change: impl FnOnce(&mut LimitsConfig)) -> Gateway {
    let mut limits = LimitsConfig { handshake_time: LONG, connect_time: LONG, ..LimitsConfig::default() };
    change(&mut limits);
    let limits = BrokerLimits::of(&BrokerConfig { limits, ..BrokerConfig::default() });
    Gateway::start_with(Options { limits, ..Options::default() }).await
}

fn crowded(version: Version) -> ReasonCode {
    if version == Version::V5 { ReasonCode::QUOTA_EXCEEDED } else { ReasonCode::SERVER_UNAVAILABLE }
}

/// What a client hears that may have no more than it has: its CONNACK, and the end.
async fn refusal(gateway: &Gateway, version: Version, client_id: &str) -> ReasonCode {
    let (mut client, connack) = Client::with(gateway, connect(version, client_id)).await;
    client.closed().await;
    connack.reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_too_many_is_told_so_and_the_next_gets_in_when_one_has_left() {
    let gateway = gateway(|limits| limits.connections = 3).await;
    let mut there = Vec::new();
    for number in 0..3 {
        there.push(Client::new(&gateway, VERSIONS[number % 2], &format!("client-{number}")).await);
    }
    for version in VERSIONS {
        assert_eq!(refusal(&gateway, version, "late").await, crowded(version));
        // Also one that would only take over its own session: the socket is what there is none of.
        assert_eq!(refusal(&gateway, version, "client-0").await, crowded(version));
    }
    for client in &mut there {
        client.hears_nothing().await;
    }
    there.pop().unwrap().disconnect().await;
    until("its place is free", || gateway.session_counter("connected") == 2).await;
    // Its last words may still be on their way.
    let waited = timeout(PATIENCE, async {
        while Client::with(&gateway, connect(Version::V5, "late")).await.1.reason != ReasonCode::SUCCESS {}
    });
    assert!(waited.await.is_ok(), "nobody gets the place that is free");
    assert!(gateway.session_counter("refused") >= 4);
    gateway.ended().await;
}

/// An address of this machine that is not on loopback.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only looks for the way.
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_cannot_take_the_places_of_all() {
    let Some(address) = own_address() else {
        println!("NOT TRIED: connections per address (this machine has no address but loopback)");
        return;
    };
    let limits = BrokerLimits { connections_per_address: 2, ..BrokerLimits::default() };
    let bind = SocketAddr::from((address, 0));
    let gateway = Gateway::start_with(Options { bind, limits, ..Options::default() }).await;
    let mut there = [Client::new(&gateway, Version::V5, "a").await, Client::new(&gateway, Version::V311, "b").await];
    for version in VERSIONS {
        assert_eq!(refusal(&gateway, version, "late").await, crowded(version));
    }
    for client in &mut there {
        client.hears_nothing().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_that_have_not_said_who_they_are_the_oldest_give_way() {
    let gateway = gateway(|limits| limits.handshakes = 5).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(Client::raw(&gateway, Version::V311).await.stream);
    }
    until("fifteen have given way", || gateway.session_counter("refused") == 15).await;
    let mut honest = Client::new(&gateway, Version::V5, "honest").await;
    for stream in &mut silent[..15] {
        assert_eq!(timeout(PATIENCE, stream.read_u8()).await.unwrap().ok(), None);
    }
    honest.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_that_does_not_come_in_time_ends_its_socket() {
    let gateway = gateway(|limits| limits.connect_time = Duration::from_millis(300)).await;
    for said in [&b""[..], b"\x10", b"\x10\x0e\0\x04MQTT"] {
        let mut client = Client::raw(&gateway, Version::V311).await;
        client.write(said).await;
        assert_eq!(client.closed().await, None);
    }
    until("all are counted", || gateway.session_counter("refused") == 3).await;
    // Who is in may be silent for as long as its keep-alive allows.
    let mut client = Client::new(&gateway, Version::V5, "in").await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    client.hears_nothing().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packet_that_is_too_long_is_told_apart_from_one_that_is_just_not() {
    let gateway = gateway(|limits| limits.packet_bytes = 4096).await;
    for version in VERSIONS {
        let (mut client, connack) = Client::with(&gateway, connect(version, "a")).await;
        assert_eq!(connack.packet_bytes_max, (version == Version::V5).then_some(4096));
        // Fixed header of three bytes, topic, packet id, and in version 5 an empty set of properties.
        let rest = 3 + (2 + 1) + 2 + usize::from(version == Version::V5);
        client.subscribe("t", Qos::AtLeastOnce).await;
        let reason = client.publish("t", Qos::AtLeastOnce, &"x".repeat(4096 - rest)).await;
        assert!(!reason.is_failure());
        assert_eq!(client.take().await.payload.len(), 4096 - rest);
        client.send(Packet::Publish(publish("t", Qos::AtLeastOnce, 77, &"x".repeat(4096 - rest + 1)))).await;
        let expected = (version == Version::V5).then_some(ReasonCode::PACKET_TOO_LARGE);
        assert_eq!(client.closed().await, expected);
        // A CONNECT is a packet, too.
        let mut client = Client::raw(&gateway, version).await;
        client.send(Packet::Connect(Box::new(connect(version, &"x".repeat(5000))))).await;
        client.closed().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_limit_lets_longer_packets_through_the_store() {
    let gateway = gateway(|limits| limits.packet_bytes = 16 << 20).await;
    let payload = "x".repeat(10 << 20);
    for version in VERSIONS {
        let mut kept = connect(version, "kept");
        kept.clean_start = false;
        kept.session_expiry_s = (version == Version::V5).then_some(100);
        let (mut reader, _) = Client::with(&gateway, kept).await;
        let mut writer = Client::new(&gateway, version, "writer").await;
        for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
            reader.subscribe("long", qos).await;
            assert!(!writer.publish("long", qos, &payload).await.is_failure());
            assert_eq!(reader.take().await.payload.len(), payload.len());
        }
        reader.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_and_filters_are_bounded_in_length_and_in_levels() {
    let gateway = gateway(|limits| (limits.topic_bytes, limits.topic_levels) = (20, 4)).await;
    let (longest, deepest) = ("x".repeat(20), "a/b/c/d");
    for version in VERSIONS {
        let is_v5 = version == Version::V5;
        for beyond in ["x".repeat(21).as_str(), "a/b/c/d/e", "////"] {
            let mut client = Client::new(&gateway, version, "publisher").await;
            for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
                for topic in [&longest, deepest] {
                    assert!(!client.publish(topic, qos, "x").await.is_failure(), "{topic}");
                }
            }
            if is_v5 {
                for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
                    assert_eq!(client.publish(beyond, qos, "x").await, ReasonCode::TOPIC_NAME_INVALID);
                }
            }
            let reasons =
                [client.subscribe(&longest, Qos::AtLeastOnce).await, client.subscribe(beyond, Qos::AtLeastOnce).await];
            let refused = if is_v5 { ReasonCode::TOPIC_FILTER_INVALID } else { ReasonCode::UNSPECIFIED_ERROR };
            assert_eq!(reasons, [ReasonCode::GRANTED_QOS_1, refused]);
            client.send(Packet::Publish(publish(beyond, Qos::AtMostOnce, 0, "x"))).await;
            assert_eq!(client.closed().await, is_v5.then_some(ReasonCode::TOPIC_NAME_INVALID));
            let mut with_will = connect(version, "will");
            with_will.will = Some(will("w", "x"));
            with_will.will.as_mut().unwrap().topic = Topic::new(beyond).unwrap();
            let (_, connack) = Client::with(&gateway, with_will).await;
            assert_eq!(connack.reason, if is_v5 { ReasonCode::TOPIC_NAME_INVALID } else { ReasonCode::NOT_AUTHORIZED });
        }
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_too_many_is_refused_and_the_others_stay() {
    let gateway = gateway(|limits| limits.subscriptions = 3).await;
    for version in VERSIONS {
        let mut client = Client::new(&gateway, version, "a").await;
        let subscriptions = (0..5).map(|number| subscription(&format!("t/{number}"), Qos::AtMostOnce)).collect();
        let full = if version == Version::V5 { ReasonCode::QUOTA_EXCEEDED } else { ReasonCode::UNSPECIFIED_ERROR };
        let good = ReasonCode::SUCCESS;
        assert_eq!(client.subscribe_all(subscriptions, None).await, [good, good, good, full, full]);
        assert_eq!(client.subscribe("t/1", Qos::AtLeastOnce).await, ReasonCode::GRANTED_QOS_1, "it is not a new one");
        client.unsubscribe("t/0").await;
        assert_eq!(client.subscribe("t/4", Qos::AtMostOnce).await, good);
        client.publish("t/4", Qos::AtMostOnce, "heard").await;
        assert_eq!(text(&client.take().await), "heard");
        client.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_in_flight_is_told_and_kept_both_ways() {
    let gateway = gateway(|limits| (limits.receive_maximum, limits.in_flight) = (7, 2)).await;
    for version in VERSIONS {
        let (mut reader, connack) = Client::with(&gateway, connect(version, "reader")).await;
        assert_eq!(connack.receive_max.map(|max| max.get()), (version == Version::V5).then_some(7));
        reader.subscribe("t", Qos::AtLeastOnce).await;
        let mut writer = Client::new(&gateway, version, "writer").await;
        for number in 0..5 {
            writer.publish("t", Qos::AtLeastOnce, &number.to_string()).await;
        }
        let (first, second) = (reader.message().await, reader.message().await);
        reader.hears_nothing().await;
        reader.send(Packet::Puback(ack(first.packet_id.unwrap().get()))).await;
        assert_eq!(text(&reader.take().await), "2");
        reader.send(Packet::Puback(ack(second.packet_id.unwrap().get()))).await;
        assert_eq!([text(&reader.take().await), text(&reader.take().await)], ["3", "4"]);
        reader.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_publishes_too_fast_is_held_back_and_loses_neither_a_message_nor_its_connection() {
    /// For 60 messages, 20 a second; a tenth of a second's worth may go at once (pacing.rs).
    const LEAST: Duration = Duration::from_millis(2500);
    let paces = [
        Pace { messages_per_s: NonZeroU32::new(20), bytes_per_s: None },
        Pace { messages_per_s: None, bytes_per_s: NonZeroU64::new(20 * 10_000) },
    ];
    for rate in paces {
        let gateway = gateway(|limits| limits.rate = rate).await;
        let mut reader = Client::new(&gateway, Version::V5, "reader").await;
        reader.subscribe("t", Qos::AtMostOnce).await;
        // Held back for longer than its keep-alive: its silence is not its own.
        let mut hasty = connect(Version::V311, "hasty");
        hasty.keep_alive_s = 1;
        let (mut hasty, _) = Client::with(&gateway, hasty).await;
        let began = Instant::now();
        let payload = "x".repeat(10_000);
        for number in 0..60 {
            let (qos, id) = if number % 2 == 0 { (Qos::AtLeastOnce, number + 1) } else { (Qos::AtMostOnce, 0) };
            let payload = format!("{number} {payload}");
            hasty.send(Packet::Publish(publish("t", qos, id, &payload))).await;
        }
        // A neighbour's message is not behind them.
        let mut neighbour = Client::new(&gateway, Version::V5, "neighbour").await;
        neighbour.publish("n", Qos::AtLeastOnce, "x").await;
        let is_held = gateway.session_counter("received") < 61;
        assert!(is_held || began.elapsed() > LEAST, "a neighbour waited for the hasty one");
        for number in 0..60 {
            let message = reader.take().await;
            assert_eq!(text(&message).split_once(' ').unwrap().0, number.to_string());
        }
        assert!(began.elapsed() > LEAST, "{:?}", began.elapsed());
        hasty.send(Packet::Pingreq).await;
        hasty.wait_for(|packet| (*packet == Packet::Pingresp).then_some(())).await;
        gateway.ended().await;
    }
}
