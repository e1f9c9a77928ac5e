//! Does one client, whatever it sends or does not read, leave the broker alive, small, and fair to all others?
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod broker_support;

use std::time::Duration;

use broker_support::*;
use bytes::{BufMut, BytesMut};
use tidegate::broker::BrokerLimits;
use tidegate::message::{Qos, Topic};
use tidegate::mqtt::{Packet, Publish, ReasonCode, Version};
use tidegate::router::RouterLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The memory of the process is measured by one test at a time, while no other runs.
static MEMORY: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A PUBLISH at QoS 0 as bytes, whatever its topic.
fn raw_publish(version: Version, topic: &[u8]) -> BytesMut {
    let mut packet = BytesMut::new();
    let properties = usize::from(version == Version::V5);
    packet.put_u8(0x30);
    let mut length = 2 + topic.len() + properties + 1;
    loop {
        let byte = u8::try_from(length & 0x7F).unwrap();
        length >>= 7;
        packet.put_u8(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    packet.put_u16(u16::try_from(topic.len()).unwrap());
    packet.put_slice(topic);
    packet.put_slice(if version == Version::V5 { b"\0x" } else { b"x" });
    packet
}

/// Two clients that exchange a message, so that whatever else goes on is seen to disturb nobody.
struct Neighbours {
    reader: Client,
    writer: Client,
    count: u32,
}

impl Neighbours {
    async fn new(gateway: &Gateway) -> Neighbours {
        let mut reader = Client::new(gateway, Version::V311, "good-reader").await;
        reader.subscribe("good/#", Qos::AtLeastOnce).await;
        let writer = Client::new(gateway, Version::V5, "good-writer").await;
        Neighbours { reader, writer, count: 0 }
    }

    async fn exchange(&mut self) {
        self.count += 1;
        let text_sent = self.count.to_string();
        assert_eq!(self.writer.publish("good/a", Qos::AtLeastOnce, &text_sent).await, ReasonCode::SUCCESS);
        assert_eq!(text(&self.reader.take().await), text_sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_topics_end_their_own_connection_and_nothing_else() {
    let _memory = MEMORY.read().await;
    let gateway = Gateway::start().await;
    let mut neighbours = Neighbours::new(&gateway).await;
    let mut all = Client::new(&gateway, Version::V5, "all").await;
    all.subscribe("#", Qos::AtMostOnce).await;
    let hostile: [&[u8]; 12] = [
        b"",
        b"\0",
        b"a\0b",
        b"a/+/b",
        b"#",
        b"a/#",
        b"+",
        b"$SYS/x",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"tidegate/gw/status",
        b"\xc0\x80",
    ];
    for version in VERSIONS {
        for topic in hostile {
            let mut client = Client::new(&gateway, version, "hostile").await;
            client.write(&raw_publish(version, topic)).await;
            let reason = client.closed().await;
            assert_eq!(reason.is_some(), version == Version::V5, "{topic:?}");
            neighbours.exchange().await;
            all.take().await;
        }
        let mut client = Client::new(&gateway, version, "unusual").await;
        let long = "x".repeat(BrokerLimits::default().topic_bytes);
        for topic in ["温度/1", "\u{FFFE}", "..", "//", " leading", "a/../b", "\r\n", &long] {
            if Topic::new(topic).is_err() {
                continue;
            }
            client.write(&raw_publish(version, topic.as_bytes())).await;
            client.hears_nothing().await;
            assert_eq!(all.take().await.topic.unwrap().as_str(), topic);
        }
        client.disconnect().await;
    }
    assert!(gateway.router.watch(cancelled()).await.is_ok());
    gateway.ended().await;
}

fn cancelled() -> CancellationToken {
    let stop = CancellationToken::new();
    stop.cancel();
    stop
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_is_disconnected_and_costs_bounded_memory() {
    let _memory = MEMORY.write().await;
    let options = Options { router: RouterLimits::default(), ..Options::default() };
    let gateway = Gateway::start_with(options).await;
    for (wanted, version) in [(Qos::AtMostOnce, Version::V5), (Qos::AtLeastOnce, Version::V311)] {
        let mut stuck = Client::new(&gateway, version, "stuck").await;
        stuck.subscribe("#", wanted).await;
        let before = resident_bytes();
        let slow = gateway.session_counter("slow");
        let mut reader = Client::new(&gateway, Version::V311, "reader").await;
        reader.subscribe("bulk", Qos::AtMostOnce).await;
        let mut writer = Client::new(&gateway, Version::V311, "writer").await;
        let body = "x".repeat(2000);
        let mut most = before;
        for number in 1..=10_000_u16 {
            let packet = Packet::Publish(publish("bulk", Qos::AtLeastOnce, number, &body));
            writer.send(packet).await;
            assert!(matches!(writer.next().await, Packet::Puback(_)));
            assert_eq!(reader.take().await.payload.len(), body.len());
            most = most.max(resident_bytes());
        }
        assert!(gateway.session_counter("slow") > slow, "20 MB fit nowhere on the way");
        assert!(most - before < 24 << 20, "{} bytes more than before", most - before);
        stuck.closed().await;
        reader.disconnect().await;
        writer.disconnect().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sockets_that_announce_256_megabytes_cost_next_to_nothing() {
    let _memory = MEMORY.write().await;
    let wanted = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: wanted.maximum, maximum: wanted.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let gateway = Gateway::start().await;
    let mut neighbours = Neighbours::new(&gateway).await;
    let before = resident_bytes();
    let mut sockets = Vec::new();
    for number in 0..1000 {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        let header: &[u8] = if number % 2 == 0 { b"\x10\xff\xff\xff\x7f" } else { b"\x30\xff\xff\xff\x7f" };
        // The broker may have closed it already: too many at once.
        drop(socket.write_all(header).await);
        sockets.push(socket);
    }
    neighbours.exchange().await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 20 << 20, "{grown} bytes more than before");
    for mut socket in sockets {
        let mut rest = Vec::new();
        // Refused with a word, or closed, or reset: never kept.
        let _end = timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("the broker keeps the socket");
    }
    let mut client = Client::new(&gateway, Version::V5, "late").await;
    client.write(b"\x30\xff\xff\xff\x7f").await;
    assert_eq!(client.closed().await, Some(ReasonCode::PACKET_TOO_LARGE));
    neighbours.exchange().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_say_nothing_are_closed_and_give_their_places_back() {
    let _memory = MEMORY.read().await;
    let limits = BrokerLimits {
        connect_timeout: Duration::from_millis(500),
        connections: 10,
        packet_timeout: Duration::from_millis(500),
        ..BrokerLimits::default()
    };
    let gateway = Gateway::start_with(Options { limits, ..Options::default() }).await;
    let mut half = Client::new(&gateway, Version::V5, "half").await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        drop(socket.write_all(b"\x10\x20\0\x04MQ").await);
        silent.push(socket);
    }
    for mut socket in silent {
        let mut rest = Vec::new();
        let _end = timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("the socket stays open");
    }
    half.write(&[0x30, 0x10, 0x00]).await;
    half.closed().await;
    let mut neighbours = Neighbours::new(&gateway).await;
    neighbours.exchange().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_misbehaving_connections_disturb_nobody() {
    let _memory = MEMORY.read().await;
    let gateway = Gateway::start().await;
    let mut neighbours = Neighbours::new(&gateway).await;
    let address = gateway.address;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for seed in 1..=5_u64 {
        let stop = stop.clone();
        tasks.spawn(async move {
            let mut state = seed;
            let mut random = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state >> 33
            };
            let mut count = 0_u32;
            while !stop.is_cancelled() {
                let Ok(mut socket) = TcpStream::connect(address).await else { continue };
                // A good CONNECT of either version, all under one client id, then packets with bytes turned.
                let connect: &[u8] = match random() % 2 {
                    0 => b"\x10\x0f\0\x04MQTT\x04\x02\0\0\0\x03bad",
                    _ => b"\x10\x10\0\x04MQTT\x05\x02\0\0\0\0\x03bad",
                };
                let mut bytes = connect.to_vec();
                for _ in 0..random() % 20 {
                    let packet: &[u8] = match random() % 8 {
                        0 => b"\x32\x08\0\x01a\0\x07bad",
                        1 => b"\x34\x08\0\x01a\0\x07bad",
                        2 => b"\x82\x06\0\x01\0\x01#\x01",
                        3 => b"\x62\x02\0\x07",
                        4 => b"\xa2\x05\0\x02\0\x01#",
                        5 => b"\x40\x02\0\x01",
                        6 => b"\xc0\0",
                        _ => b"\x30\x05\0\x01axy",
                    };
                    bytes.extend_from_slice(packet);
                }
                for _ in 0..random() % 3 {
                    let place = usize::try_from(random()).unwrap() % bytes.len();
                    bytes[place] = u8::try_from(random() % 256).unwrap();
                }
                drop(socket.write_all(&bytes).await);
                if random() % 2 == 0 {
                    let mut answer = [0; 64];
                    drop(timeout(Duration::from_millis(20), socket.read(&mut answer)).await);
                }
                count += 1;
            }
            count
        });
    }
    for _ in 0..300 {
        neighbours.exchange().await;
    }
    stop.cancel();
    let mut total = 0;
    while let Some(count) = tasks.join_next().await {
        total += count.unwrap();
    }
    assert!(total > 50, "{total}");
    assert!(gateway.router.watch(cancelled()).await.is_ok());
    neighbours.exchange().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_under_one_client_id_leave_one_session() {
    let _memory = MEMORY.read().await;
    let gateway = Gateway::start().await;
    let mut tasks = JoinSet::new();
    let address = gateway.address;
    for _ in 0..50 {
        tasks.spawn(async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            drop(socket.write_all(b"\x10\x0f\0\x04MQTT\x04\x02\0\0\0\x03one").await);
            let mut rest = Vec::new();
            let _end = timeout(Duration::from_secs(2), socket.read_to_end(&mut rest)).await;
        });
    }
    while let Some(end) = tasks.join_next().await {
        end.unwrap();
    }
    let mut client = Client::new(&gateway, Version::V5, "one").await;
    client.hears_nothing().await;
    until("sessions are left", || gateway.session_counter("sessions") == 1).await;
    until("sockets are counted wrongly", || gateway.session_counter("connected") == 1).await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_at_qos_0_is_paced_for_a_reading_subscriber_and_nothing_is_lost() {
    let _memory = MEMORY.read().await;
    let gateway = Gateway::start().await;
    let mut reader = Client::new(&gateway, Version::V311, "reader").await;
    reader.subscribe("burst", Qos::AtMostOnce).await;
    let mut writer = Client::new(&gateway, Version::V311, "writer").await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for number in 0..20_000_u32 {
            let packet = Publish { packet_id: None, ..publish("burst", Qos::AtMostOnce, 0, &number.to_string()) };
            writer.send(Packet::Publish(packet)).await;
        }
        writer
    });
    for number in 0..20_000_u32 {
        assert_eq!(text(&reader.take().await), number.to_string());
    }
    tasks.join_next().await.unwrap().unwrap().disconnect().await;
    assert_eq!(gateway.session_counter("dropped"), 0);
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_releases_is_disconnected_before_it_fills_the_store() {
    let _others = MEMORY.read().await;
    let limits = BrokerLimits { inbound_tolerated: 1024, ..BrokerLimits::default() };
    let gateway = Gateway::start_with(Options { limits, ..Options::default() }).await;
    let mut neighbours = Neighbours::new(&gateway).await;
    let mut hoarder = Client::new(&gateway, Version::V311, "hoarder").await;
    for packet_id in 1..=1025 {
        hoarder.send(Packet::Publish(publish("hoard/x", Qos::ExactlyOnce, packet_id, "x"))).await;
        if packet_id <= 1024 {
            let is_received = |packet: &Packet| matches!(packet, Packet::Pubrec(_)).then_some(());
            hoarder.wait_for(is_received).await;
        }
    }
    hoarder.closed().await;
    neighbours.exchange().await;
    gateway.ended().await;
}
