//! Does the real link, over a real socket and the real queue, deliver what was acknowledged, whatever the line does?
//!
//! Injected: the cloud is away, refuses, hangs up every few packets, goes mute. Survivable because every row stays in
//! the queue until the cloud has acknowledged it, and the cloud keeps its session.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU16, NonZeroU64};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::clock::{Clock, ClockSource};
use tidegate::config::{
    Endpoint, ForwardRule, Pace, Protocol, ReceiveRule, Reconnect, TopicTemplate, UplinkConfig, WhenFull,
};
use tidegate::health::{Health, UplinkState};
use tidegate::intake::Intake;
use tidegate::message::{Body, Filter, Message, Origin, Properties, Qos, Topic};
use tidegate::mqtt::{Packet, PacketId, Publish, ReasonCode};
use tidegate::queue::{self, Inlet, Outlet, QueueSettings, StreamSpec, Submission};
use tidegate::router::{Router, RouterLimits};
use tidegate::uplink::{Uplink, UplinkError, UplinkSettings};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uplink_support::{FakeCloud, Temper};

mod uplink_support;

const WITHIN: Duration = Duration::from_secs(30);

struct Gateway {
    inlet: Inlet,
    intake: Intake,
    health: Health,
    clock: Clock,
    /// Another stream, which shows what came in from the cloud.
    other: Outlet,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), UplinkError>>,
    worker: Option<JoinHandle<()>>,
    dir: TempDir,
}

fn forward(filter: &str, template: &str, qos: Option<Qos>) -> ForwardRule {
    let filter = Filter::new(filter).unwrap();
    let topic = TopicTemplate::parse(template, &filter, "g7").unwrap();
    ForwardRule { filter, topic, qos, when_full: None, strict_order: false }
}

fn config(port: u16, protocol: Protocol, qos: Option<Qos>) -> UplinkConfig {
    let filter = Filter::new("cmd/#").unwrap();
    UplinkConfig {
        endpoints: vec![Endpoint { host: "127.0.0.1".to_owned(), port, tls: false }],
        protocol,
        client_id: "g7".to_owned(),
        ca: None,
        cert: None,
        key: None,
        alpn: Vec::new(),
        username: None,
        password_file: None,
        keep_alive: Duration::from_secs(60),
        session_expiry: Duration::from_secs(86_400),
        window: NonZeroU16::new(100).unwrap(),
        reconnect: Reconnect { first: Duration::from_millis(20), max: Duration::from_millis(100) },
        pace: Pace::default(),
        own_topic: Some("own/g7".to_owned()),
        forward: vec![forward("plant/#", "f/{topic}", qos)],
        receive: vec![ReceiveRule {
            topic: TopicTemplate::parse("local/{rest}", &filter, "g7").unwrap(),
            filter,
            qos: Qos::ExactlyOnce,
        }],
    }
}

impl Gateway {
    fn start(config: UplinkConfig) -> Gateway {
        Gateway::start_in(tempfile::tempdir().unwrap(), config)
    }

    fn start_in(dir: TempDir, config: UplinkConfig) -> Gateway {
        let clock = Clock::new(ClockSource::Trusted);
        let health = Health::default();
        let (name, other): (Arc<str>, Arc<str>) = (Arc::from("cloud"), Arc::from("other"));
        let local = vec![forward("local/#", "{topic}", None)];
        let mut opened = queue::open(QueueSettings {
            dir: dir.path().to_owned(),
            gateway: Arc::from("g7"),
            bytes_max: NonZeroU64::new(256 << 20).unwrap(),
            age_max: None,
            when_full: WhenFull::DropOldest,
            streams: vec![
                StreamSpec { name: name.clone(), rules: config.forward.clone(), own_topic: config.own_topic.clone() },
                StreamSpec { name: other.clone(), rules: local.clone(), own_topic: None },
            ],
            clock: clock.clone(),
            health: health.clone(),
        })
        .unwrap();
        let worker = opened.worker;
        let worker = std::thread::spawn(move || worker.run().unwrap());
        let router = Router::start(RouterLimits::default()).unwrap();
        let forwards = BTreeMap::from([(name.clone(), config.forward.clone()), (other.clone(), local)]);
        let intake = Intake::new(opened.inlet.clone(), router, forwards, clock.clone(), health.clone());
        let stop = CancellationToken::new();
        let uplink = Uplink::new(UplinkSettings {
            name: name.clone(),
            client_id: config.client_id.clone(),
            config,
            outlet: opened.outlets.remove(&name).unwrap(),
            inlet: opened.inlet.clone(),
            intake: intake.clone(),
            clock: clock.clone(),
            health: health.clone(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(uplink.run(stop.clone()));
        Gateway {
            inlet: opened.inlet,
            intake,
            health,
            clock,
            other: opened.outlets.remove(&other).unwrap(),
            stop,
            tasks,
            worker: Some(worker),
            dir,
        }
    }

    fn message(&self, number: usize, qos: Qos) -> Message {
        Message {
            topic: Topic::new(&format!("plant/{}", number % 3)).unwrap(),
            qos,
            retain: false,
            properties: None,
            body: Body::Bytes(Bytes::from(number.to_string())),
            origin: Origin::Client(Arc::from("plc")),
            received: self.clock.now(),
        }
    }

    async fn publish(&self, numbers: std::ops::Range<usize>, qos: Qos) {
        let mut pending = Vec::new();
        for number in numbers {
            let submission = Submission { message: self.message(number, qos), once: None };
            pending.push(self.inlet.begin_append(submission).await.unwrap());
        }
        for one in pending {
            one.outcome().await.unwrap();
        }
    }

    fn state(&self) -> UplinkState {
        self.health.uplink(&Arc::from("cloud")).state()
    }

    fn delivered(&self) -> u64 {
        self.health.uplink(&Arc::from("cloud")).delivered.load(Ordering::Relaxed)
    }

    fn in_flight(&self) -> u64 {
        self.health.uplink(&Arc::from("cloud")).in_flight.load(Ordering::Relaxed)
    }

    fn reason(&self) -> String {
        self.health.snapshot(self.clock.now()).uplinks["cloud"].reason.clone().unwrap_or_default()
    }

    async fn stop(mut self) -> TempDir {
        self.stop.cancel();
        timeout(WITHIN, self.tasks.join_next()).await.unwrap().unwrap().unwrap().unwrap();
        self.inlet.stop().await;
        drop(self.other);
        self.worker.take().unwrap().join().unwrap();
        self.dir
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let by = Instant::now() + WITHIN;
    while !condition() {
        assert!(Instant::now() < by, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The numbers that arrived, in order, and the ids they bore.
fn arrived(cloud: &FakeCloud) -> Vec<(usize, String)> {
    let seen = cloud.seen.lock().unwrap();
    let ours = seen.got.iter().filter(|publish| publish.topic.as_ref().unwrap().as_str().starts_with("f/plant/"));
    ours.map(|publish| {
        let number = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
        let id = publish.properties.user.iter().find(|(name, _)| name == "tidegate-id");
        (number, id.map(|(_, id)| id.clone()).unwrap_or_default())
    })
    .collect()
}

fn distinct(cloud: &FakeCloud) -> usize {
    arrived(cloud).into_iter().map(|(number, _)| number).collect::<BTreeSet<_>>().len()
}

async fn free_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_while_the_cloud_was_away_arrives_in_order_once() {
    for (protocol, qos) in [
        (Protocol::V5, Qos::AtLeastOnce),
        (Protocol::V5, Qos::ExactlyOnce),
        (Protocol::V311, Qos::AtLeastOnce),
        (Protocol::V311, Qos::ExactlyOnce),
    ] {
        let port = free_port().await;
        let gateway = Gateway::start(config(port, protocol, Some(qos)));
        gateway.publish(0..500, Qos::AtLeastOnce).await;
        until("waiting", || gateway.state() == UplinkState::Waiting).await;
        assert!(gateway.reason().contains("cannot connect to 127.0.0.1"), "{}", gateway.reason());
        let cloud = FakeCloud::start(port, Temper { receive_max: Some(20), ..Temper::default() }).await;
        until("all arrived", || arrived(&cloud).len() >= 500).await;
        until("all settled", || gateway.delivered() >= 500).await;
        let numbers: Vec<usize> = arrived(&cloud).into_iter().map(|(number, _)| number).collect();
        let in_order: Vec<usize> = (0..500).collect();
        assert_eq!(numbers, in_order, "{protocol:?} {qos:?}");
        if protocol == Protocol::V5 {
            let ids: BTreeSet<String> = arrived(&cloud).into_iter().map(|(_, id)| id).collect();
            assert_eq!(ids.len(), 500);
            assert!(ids.iter().all(|id| id.starts_with("g7.")));
        }
        gateway.stop().await;
        assert_eq!(cloud.seen.lock().unwrap().farewells, if protocol == Protocol::V311 { 2 } else { 1 });
    }
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
    settings.endpoints.push(Endpoint { host: "127.0.0.1".to_owned(), port: cloud.port, tls: false });
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
