//! Does the real link, over a real socket and the real queue, deliver what was acknowledged, whatever the line does?
//!
//! Injected: the cloud is away, refuses, hangs up every few packets, goes mute. Survivable because every row stays in
//! the queue until the cloud has acknowledged it, and the cloud keeps its session.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::config::clouds::{AZURE_EVENT_GRID, GENERIC};
use tidegate::config::{DrainOrder, Endpoint, Pace, Protocol, UplinkConfig};
use tidegate::health::UplinkState;
use tidegate::message::{Origin, Properties, Qos, Topic};
use tidegate::mqtt::{Disconnect, Packet, PacketId, Publish, ReasonCode};
use tokio::time::{Instant, timeout};
use uplink_support::gateway::{Gateway, WITHIN, arrived, config, distinct, free_port, until};
use uplink_support::{FakeCloud, Temper};

mod uplink_support;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_while_the_cloud_was_away_arrives_in_order_once() {
    for (profile, protocol, qos) in [
        (&GENERIC, Protocol::V5, Qos::AtLeastOnce),
        (&GENERIC, Protocol::V5, Qos::ExactlyOnce),
        (&GENERIC, Protocol::V311, Qos::AtLeastOnce),
        (&GENERIC, Protocol::V311, Qos::ExactlyOnce),
        (&AZURE_EVENT_GRID, Protocol::V5, Qos::AtLeastOnce),
    ] {
        let port = free_port().await;
        let gateway = Gateway::start(UplinkConfig { profile, ..config(port, protocol, Some(qos)) });
        gateway.publish(0..500, Qos::AtLeastOnce).await;
        until("waiting", || gateway.state() == UplinkState::Waiting).await;
        assert!(gateway.reason().contains("cannot connect to 127.0.0.1"), "{}", gateway.reason());
        let cloud = FakeCloud::start(port, Temper { receive_max: Some(20), ..Temper::default() }).await;
        until("all arrived", || arrived(&cloud).len() >= 500).await;
        until("all settled", || gateway.delivered() >= 500).await;
        let numbers: Vec<usize> = arrived(&cloud).into_iter().map(|(number, _)| number).collect();
        let in_order: Vec<usize> = (0..500).collect();
        assert_eq!(numbers, in_order, "{} {protocol:?} {qos:?}", profile.name);
        if protocol == Protocol::V5 {
            let ids: BTreeSet<String> = arrived(&cloud).into_iter().map(|(_, id)| id).collect();
            assert_eq!(ids.len(), 500);
            assert!(ids.iter().all(|id| id.starts_with("g7.")));
        }
        gateway.stop().await;
        assert_eq!(cloud.seen.lock().unwrap().farewells, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_first_new_data_passes_a_paced_backlog_and_the_status_tells_how_long_that_takes() {
    let port = free_port().await;
    let gateway = Gateway::start(UplinkConfig {
        drain: DrainOrder::LiveFirst,
        pace: Pace { messages_per_s: NonZeroU32::new(200), bytes_per_s: None },
        window: NonZeroU16::new(10).unwrap(),
        ..config(port, Protocol::V5, None)
    });
    gateway.publish(0..1000, Qos::AtLeastOnce).await;
    until("waiting", || gateway.state() == UplinkState::Waiting).await;
    assert_eq!(gateway.drain(), None, "nothing drains while the cloud is away");
    let cloud = FakeCloud::start(port, Temper::default()).await;
    until("the drain has begun", || gateway.delivered() >= 20).await;
    gateway.publish(5000..5010, Qos::AtLeastOnce).await;
    let (mut passed, mut left) = (0, None);
    until("the time left is told", || {
        left = gateway.drain().and_then(|drain| drain["left_s"].as_u64());
        left.is_some() || gateway.delivered() >= 1010
    })
    .await;
    // At 200 a second; the machine may be slow, never faster.
    assert!(left.is_some_and(|left| left >= 2), "{left:?}");
    until("all settled", || gateway.delivered() >= 1010).await;
    for (number, _) in arrived(&cloud) {
        passed += usize::from(number < 1000);
        assert!(number < 5000 || passed < 900, "the new data came behind {passed} of the backlog");
    }
    assert_eq!(arrived(&cloud).len(), 1010);
    until("the drain is over", || gateway.drain().is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_window_of_acknowledgements_at_once_is_worked_off_though_nothing_more_comes() {
    let port = free_port().await;
    let mut config = config(port, Protocol::V5, Some(Qos::AtLeastOnce));
    config.window = NonZeroU16::new(1000).unwrap();
    config.own_topic = None;
    let gateway = Gateway::start(config);
    gateway.publish(0..4000, Qos::AtLeastOnce).await;
    let cloud = FakeCloud::start(port, Temper { pubacks_at_once: Some(1000), ..Temper::default() }).await;
    until("all arrived", || arrived(&cloud).len() >= 4000).await;
    until("all settled", || gateway.delivered() >= 4000).await;
    let numbers: Vec<usize> = arrived(&cloud).into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, (0..4000).collect::<Vec<_>>());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_breaks_every_few_packets_doubles_nothing_at_qos_2() {
    let cloud = FakeCloud::start(0, Temper { closes_after: Some(45), ..Temper::default() }).await;
    let gateway = Gateway::start(config(cloud.port, Protocol::V5, Some(Qos::ExactlyOnce)));
    gateway.publish(0..300, Qos::AtLeastOnce).await;
    until("all settled", || gateway.delivered() >= 300).await;
    assert_eq!(arrived(&cloud).len(), 300, "each exactly once");
    assert_eq!(distinct(&cloud), 300);
    assert!(cloud.seen.lock().unwrap().connects > 3);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_stopped_and_started_goes_on_where_it_was() {
    let cloud = FakeCloud::start(0, Temper { is_mute: true, ..Temper::default() }).await;
    let settings = config(cloud.port, Protocol::V5, Some(Qos::ExactlyOnce));
    let gateway = Gateway::start(settings.clone());
    gateway.publish(0..200, Qos::AtLeastOnce).await;
    until("in flight", || gateway.in_flight() >= 100).await;
    let started = Instant::now();
    let dir = gateway.stop().await;
    assert!(started.elapsed() < Duration::from_secs(10), "a mute cloud must not hold up a stop");
    cloud.seen.lock().unwrap().temper.is_mute = false;
    let gateway = Gateway::start_in(dir, settings);
    until("all settled", || gateway.delivered() >= 200).await;
    assert_eq!(arrived(&cloud).len(), 200);
    assert_eq!(distinct(&cloud), 200);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_come_in_through_the_intake_and_are_acknowledged_after_it() {
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let mut gateway = Gateway::start(config(cloud.port, Protocol::V5, None));
    until("subscribed", || cloud.seen.lock().unwrap().filters == ["cmd/#"]).await;
    for (number, qos) in [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce), (2, Qos::ExactlyOnce)] {
        cloud
            .say(Packet::Publish(Publish {
                dup: false,
                retain: false,
                qos,
                packet_id: PacketId::new(number),
                topic: Some(Topic::new(&format!("cmd/pump/{number}")).unwrap()),
                payload: Bytes::from_static(b"on"),
                properties: Properties::default(),
                topic_alias: None,
                subscription_id: None,
            }))
            .await;
    }
    until("answered", || cloud.seen.lock().unwrap().answers.len() >= 3).await;
    let kinds: Vec<u8> = cloud
        .seen
        .lock()
        .unwrap()
        .answers
        .iter()
        .map(|packet| match packet {
            Packet::Puback(_) => 1,
            Packet::Pubrec(_) => 2,
            _ => 3,
        })
        .collect();
    assert_eq!(kinds[..3], [1, 2, 2]);
    let mut got = Vec::new();
    while got.len() < 2 {
        got.extend(timeout(WITHIN, gateway.other.next(10, 1 << 20)).await.unwrap().unwrap());
    }
    let topics: Vec<&str> = got.iter().map(|row| row.message.topic.as_str()).collect();
    assert_eq!(topics, ["local/pump/1", "local/pump/2"], "the repeat of a QoS 2 id is stored once");
    assert_eq!(got[0].message.origin, Origin::Uplink(Arc::from("cloud")));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_messages_at_qos_0_pass_while_connected() {
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let gateway = Gateway::start(config(cloud.port, Protocol::V5, None));
    until("connected", || gateway.state() == UplinkState::Connected).await;
    let ticket = gateway.intake.submit(gateway.message(7, Qos::AtMostOnce), None).await.unwrap();
    assert!(ticket.outcome().await.unwrap().wanted);
    until("arrived", || arrived(&cloud).len() == 1).await;
    assert_eq!(cloud.seen.lock().unwrap().got.last().unwrap().qos, Qos::AtMostOnce);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_at_the_cloud_follows_the_gateway() {
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let gateway = Gateway::start(config(cloud.port, Protocol::V5, None));
    until("connected", || gateway.state() == UplinkState::Connected).await;
    until("online", || !cloud.seen.lock().unwrap().got.is_empty()).await;
    gateway.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.wills, ["own/g7/status"]);
    let states: Vec<&[u8]> = seen.got.iter().map(|publish| publish.payload.get(..17).unwrap()).collect();
    assert_eq!(states, [br#"{"state":"online""#.as_slice(), br#"{"state":"offline"#.as_slice()]);
    assert!(seen.got.iter().all(|publish| publish.retain));
    assert_eq!(seen.farewells, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_named_and_mended_without_a_restart() {
    let refuses_with = Some(ReasonCode::BAD_USER_NAME_OR_PASSWORD);
    let cloud = FakeCloud::start(0, Temper { refuses_with, ..Temper::default() }).await;
    let gateway = Gateway::start(config(cloud.port, Protocol::V5, None));
    until("named", || gateway.reason().contains("bad user name or password (0x86)")).await;
    cloud.seen.lock().unwrap().temper.refuses_with = None;
    until("connected", || gateway.state() == UplinkState::Connected).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_is_tried_when_the_first_is_dead() {
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let mut settings = config(free_port().await, Protocol::V5, None);
    settings.endpoints.push(Endpoint { host: "127.0.0.1".to_owned(), port: cloud.port, tls: false, path: None });
    let gateway = Gateway::start(settings);
    until("connected", || gateway.state() == UplinkState::Connected).await;
    gateway.publish(0..10, Qos::AtLeastOnce).await;
    until("arrived", || arrived(&cloud).len() == 10).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_drains_at_the_pace_that_was_set() {
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let mut settings = config(cloud.port, Protocol::V5, None);
    settings.own_topic = None;
    settings.pace.messages_per_s = std::num::NonZeroU32::new(100);
    let gateway = Gateway::start(settings);
    let started = Instant::now();
    gateway.publish(0..110, Qos::AtLeastOnce).await;
    until("all settled", || gateway.delivered() >= 110).await;
    // Ten may go at once, the others one each hundredth of a second.
    assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());
    gateway.stop().await;
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing else to do about it in a test that ends.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn mosquitto(dir: &TempDir, port: u16) -> Option<Killed> {
    let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n");
    let path = dir.path().join("mosquitto.conf");
    std::fs::write(&path, text).unwrap();
    // Debian keeps it where only root looks.
    let found = ["mosquitto", "/usr/sbin/mosquitto"].into_iter().find_map(|program| {
        let mut command = std::process::Command::new(program);
        command.arg("-c").arg(&path).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.spawn().ok()
    });
    found.map(Killed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_gets_each_message_once_in_order_on_both_versions() {
    for protocol in [Protocol::V5, Protocol::V311] {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port().await;
        let Some(_broker) = mosquitto(&dir, port) else {
            println!("skipped: no mosquitto on this machine; ./test.sh installs it");
            return;
        };
        let output = dir.path().join("received");
        let file = std::fs::File::create(&output).unwrap();
        let is_open = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        until("mosquitto listens", is_open).await;
        let mut subscriber = std::process::Command::new("mosquitto_sub");
        subscriber.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "2", "-F", "%t %p"]);
        subscriber.args(["-t", "f/plant/#", "-t", "own/#", "-t", "ready"]).stdout(file);
        let Ok(_subscriber) = subscriber.spawn().map(Killed) else {
            println!("skipped: no mosquitto_sub on this machine; ./test.sh installs it");
            return;
        };
        let received = || std::fs::read_to_string(&output).unwrap_or_default();
        // Subscribed once a message comes through.
        until("subscribed", || {
            let mut publisher = std::process::Command::new("mosquitto_pub");
            publisher.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", "ready", "-m", "yes"]);
            publisher.status().unwrap();
            received().contains("ready")
        })
        .await;
        let gateway = Gateway::start(config(port, protocol, Some(Qos::ExactlyOnce)));
        gateway.publish(0..1000, Qos::AtLeastOnce).await;
        until("all settled", || gateway.delivered() >= 1000).await;
        gateway.stop().await;
        until("all received", || received().contains("own/g7/status {\"state\":\"offline\"}")).await;
        let text = received();
        let ours = text.lines().filter_map(|line| line.strip_prefix("f/plant/")?.split_once(' '));
        let numbers: Vec<usize> = ours.map(|(_, number)| number.parse().unwrap()).collect();
        let in_order: Vec<usize> = (0..1000).collect();
        assert_eq!(numbers, in_order, "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_id_that_somebody_else_uses_too_is_told_and_not_fought_over() {
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let gateway = Gateway::start(config(cloud.port, Protocol::V5, None));
    until("connected", || gateway.state() == UplinkState::Connected).await;
    cloud.say(Packet::Disconnect(Disconnect::new(ReasonCode::SESSION_TAKEN_OVER))).await;
    until("thrown out", || gateway.state() == UplinkState::Waiting).await;
    assert!(gateway.reason().contains("another connection uses the same client id"), "{}", gateway.reason());
    // Its other pauses are a tenth of a second at most here.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cloud.seen.lock().unwrap().connects, 1, "it came back at once");
    gateway.stop().await;
}
