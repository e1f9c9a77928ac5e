//! A broker with the real queue and router behind it, and a client that speaks packets.
#![allow(dead_code, reason = "each test file uses its own part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tempfile::TempDir;
use tidegate::broker::{Access, Broker, BrokerError, BrokerLimits};
use tidegate::clock::{Clock, ClockSource};
use tidegate::config::{
    self, AccessConfig, BrokerConfig, ForwardRule, ListenerConfig, LoadRequest, TopicTemplate, WhenFull,
};
use tidegate::health::Health;
use tidegate::intake::Intake;
use tidegate::message::{Filter, Properties, Qos, Topic};
use tidegate::mqtt::{
    Ack, Connack, Connect, Decoder, Disconnect, Encoder, Packet, PacketId, Publish, ReasonCode, Subscribe,
    Subscription, Unsubscribe, Version, Will,
};
use tidegate::queue::{self, Inlet, Outlet, QueueSettings, StreamSpec, Worker};
use tidegate::router::{Router, RouterLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

pub struct Options {
    pub bind: SocketAddr,
    pub limits: BrokerLimits,
    pub router: RouterLimits,
    /// Forward rules of the one uplink `cloud`.
    pub forward: Vec<ForwardRule>,
    pub when_full: WhenFull,
    pub bytes_max: u64,
    pub access: AccessConfig,
    /// How often `$SYS` is published; zero = never.
    pub sys_interval: Duration,
    /// The queue's thread starts with the gateway, rather than by hand.
    pub starts_worker: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            limits: BrokerLimits::default(),
            // Machines that run tests are slower than patience with slow readers allows.
            router: RouterLimits { hold: Duration::from_secs(5), ..RouterLimits::default() },
            forward: Vec::new(),
            when_full: WhenFull::DropOldest,
            bytes_max: 256 << 20,
            access: AccessConfig::default(),
            sys_interval: Duration::ZERO,
            starts_worker: true,
        }
    }
}

pub struct Gateway {
    pub address: SocketAddr,
    pub access: Access,
    pub intake: Intake,
    pub inlet: Inlet,
    pub router: Router,
    pub health: Health,
    pub outlets: BTreeMap<Arc<str>, Outlet>,
    worker: Option<Worker>,
    thread: Option<std::thread::JoinHandle<()>>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), BrokerError>>,
    _dir: TempDir,
}

pub fn rule(filter: &str, qos: Option<Qos>) -> ForwardRule {
    ForwardRule {
        filter: Filter::new(filter).unwrap(),
        topic: TopicTemplate::identity(),
        qos,
        when_full: None,
        strict_order: false,
        payload: tidegate::config::Payload::JSON,
        batch: None,
    }
}

impl Gateway {
    pub async fn start() -> Gateway {
        Gateway::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new(ClockSource::Trusted);
        let health = Health::default();
        let cloud: Arc<str> = Arc::from("cloud");
        let streams = match options.forward.is_empty() {
            true => Vec::new(),
            false => vec![StreamSpec { name: cloud.clone(), rules: options.forward.clone(), own_topic: None }],
        };
        let opened = queue::open(QueueSettings {
            set_topics: queue::SetTopics::default(),
            dir: dir.path().to_owned(),
            gateway: Arc::from("test"),
            bytes_max: NonZeroU64::new(options.bytes_max).unwrap(),
            age_max: None,
            keep: None,
            when_full: options.when_full,
            hold: None,
            streams,
            clock: clock.clone(),
            health: health.clone(),
        })
        .unwrap();
        let router = Router::start(options.router).unwrap();
        let forwards = match options.forward.is_empty() {
            true => BTreeMap::new(),
            false => BTreeMap::from([(cloud, options.forward)]),
        };
        let intake = Intake::new(opened.inlet.clone(), router.clone(), forwards, clock, health.clone());
        let listeners = BTreeMap::from([(Arc::from("test"), ListenerConfig::from(options.bind))]);
        let (access, sys_interval) = (options.access, options.sys_interval);
        let config = BrokerConfig { listeners, access, sys_interval, ..BrokerConfig::default() };
        let (inlet, limits) = (opened.inlet.clone(), options.limits);
        let broker =
            Broker::bind(&config, limits, intake.clone(), inlet, router.clone(), health.clone()).await.unwrap();
        let address = broker.local_addrs()["test"];
        let access = broker.access();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(broker.run(stop.clone()));
        let mut gateway = Gateway {
            address,
            access,
            intake,
            inlet: opened.inlet,
            router,
            health,
            outlets: opened.outlets,
            worker: Some(opened.worker),
            thread: None,
            stop,
            tasks,
            _dir: dir,
        };
        if options.starts_worker {
            gateway.start_worker();
        }
        gateway
    }

    pub fn start_worker(&mut self) {
        let worker = self.worker.take().unwrap();
        self.thread = Some(std::thread::spawn(move || worker.run().unwrap()));
    }

    /// Asks the broker to stop; `ended` tells when it has.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    pub async fn ended(mut self) {
        self.stop.cancel();
        timeout(PATIENCE, self.tasks.join_next()).await.expect("the broker did not stop").unwrap().unwrap().unwrap();
        if let Some(thread) = self.thread.take() {
            self.inlet.stop().await;
            thread.join().unwrap();
        }
    }

    pub fn session_counter(&self, name: &str) -> u64 {
        let sessions = serde_json::to_value(self.health.snapshot(self.intake.now()).sessions).unwrap();
        sessions[name].as_u64().unwrap()
    }
}

/// Waits until `is_so`, and fails with `what` when it does not become so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is_so() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

pub fn connect(version: Version, client_id: &str) -> Connect {
    Connect::new(version, client_id)
}

pub fn will(topic: &str, payload: &str) -> Will {
    Will {
        topic: Topic::new(topic).unwrap(),
        payload: Bytes::from(payload.to_owned()),
        qos: Qos::AtLeastOnce,
        retain: false,
        delay_s: 0,
        properties: Properties::default(),
    }
}

pub fn publish(topic: &str, qos: Qos, packet_id: u16, payload: &str) -> Publish {
    Publish {
        dup: false,
        retain: false,
        qos,
        packet_id: PacketId::new(packet_id),
        topic: Some(Topic::new(topic).unwrap()),
        payload: Bytes::from(payload.to_owned()),
        properties: Properties::default(),
        topic_alias: None,
        subscription_id: None,
    }
}

pub fn subscription(filter: &str, qos: Qos) -> Subscription {
    Subscription {
        filter: Filter::new(filter).unwrap(),
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: 0,
    }
}

pub fn ack(packet_id: u16) -> Ack {
    Ack::new(PacketId::new(packet_id).unwrap(), ReasonCode::SUCCESS)
}

pub fn text(publish: &Publish) -> &str {
    std::str::from_utf8(&publish.payload).unwrap()
}

pub struct Client {
    pub stream: TcpStream,
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
    /// What came while something else was waited for.
    kept: VecDeque<Packet>,
    next_id: u16,
}

impl Client {
    /// A client with a clean session.
    pub async fn new(gateway: &Gateway, version: Version, client_id: &str) -> Client {
        let (client, connack) = Client::with(gateway, connect(version, client_id)).await;
        assert_eq!(connack.reason, ReasonCode::SUCCESS);
        client
    }

    pub async fn with(gateway: &Gateway, connect: Connect) -> (Client, Connack) {
        let mut client = Client::raw(gateway, connect.version).await;
        client.send(Packet::Connect(Box::new(connect))).await;
        match client.next().await {
            Packet::Connack(connack) => (client, *connack),
            other => panic!("{other:?} instead of CONNACK"),
        }
    }

    /// A socket that has said nothing yet.
    pub async fn raw(gateway: &Gateway, version: Version) -> Client {
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client {
            stream,
            decoder: Decoder::from_server(version, 1 << 28),
            encoder: Encoder::new(version),
            input: BytesMut::new(),
            kept: VecDeque::new(),
            next_id: 0,
        }
    }

    pub fn id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id
    }

    pub async fn send(&mut self, packet: Packet) {
        let mut output = BytesMut::new();
        self.encoder.encode(&packet, &mut output).unwrap();
        self.write(&output).await;
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the broker does not read").unwrap();
    }

    async fn read(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next packet.
    pub async fn next(&mut self) -> Packet {
        if let Some(packet) = self.kept.pop_front() {
            return packet;
        }
        self.fresh().await
    }

    async fn fresh(&mut self) -> Packet {
        timeout(PATIENCE, self.read()).await.expect("no packet came").expect("the connection was closed")
    }

    /// The first packet that `fits`; others are kept.
    pub async fn wait_for<T>(&mut self, mut fits: impl FnMut(&Packet) -> Option<T>) -> T {
        loop {
            let packet = self.fresh().await;
            match fits(&packet) {
                Some(found) => return found,
                None => self.kept.push_back(packet),
            }
        }
    }

    /// Waits until the broker closes; gives the reason of its DISCONNECT, if there was one.
    pub async fn closed(&mut self) -> Option<ReasonCode> {
        let mut reason = None;
        loop {
            match timeout(PATIENCE, self.read()).await.expect("the connection stays open") {
                Some(Packet::Disconnect(disconnect)) => reason = Some(disconnect.reason),
                Some(_) => {}
                None => return reason,
            }
        }
    }

    /// That nothing comes before the answer to a PINGREQ.
    pub async fn hears_nothing(&mut self) {
        self.send(Packet::Pingreq).await;
        assert_eq!(self.next().await, Packet::Pingresp);
    }

    /// Publishes with the whole handshake; the reason of PUBACK or PUBREC.
    pub async fn publish(&mut self, topic: &str, qos: Qos, payload: &str) -> ReasonCode {
        let id = if qos == Qos::AtMostOnce { 0 } else { self.id() };
        self.publish_packet(publish(topic, qos, id, payload)).await
    }

    pub async fn publish_packet(&mut self, publish: Publish) -> ReasonCode {
        let (qos, packet_id) = (publish.qos, publish.packet_id);
        self.send(Packet::Publish(publish)).await;
        let Some(packet_id) = packet_id else { return ReasonCode::SUCCESS };
        let reason = self
            .wait_for(|packet| match packet {
                Packet::Puback(ack) if qos == Qos::AtLeastOnce && ack.packet_id == packet_id => Some(ack.reason),
                Packet::Pubrec(ack) if qos == Qos::ExactlyOnce && ack.packet_id == packet_id => Some(ack.reason),
                _ => None,
            })
            .await;
        if qos == Qos::ExactlyOnce && !reason.is_failure() {
            self.send(Packet::Pubrel(ack(packet_id.get()))).await;
            self.wait_for(|packet| match packet {
                Packet::Pubcomp(ack) if ack.packet_id == packet_id => Some(()),
                _ => None,
            })
            .await;
        }
        reason
    }

    pub async fn subscribe(&mut self, filter: &str, qos: Qos) -> ReasonCode {
        self.subscribe_all(vec![subscription(filter, qos)], None).await[0]
    }

    pub async fn subscribe_all(
        &mut self,
        subscriptions: Vec<Subscription>,
        subscription_id: Option<u32>,
    ) -> Vec<ReasonCode> {
        let packet_id = PacketId::new(self.id()).unwrap();
        self.send(Packet::Subscribe(Subscribe { packet_id, subscriptions, subscription_id })).await;
        self.wait_for(|packet| match packet {
            Packet::Suback(suback) if suback.packet_id == packet_id => Some(suback.reasons.clone()),
            _ => None,
        })
        .await
    }

    pub async fn unsubscribe(&mut self, filter: &str) -> Vec<ReasonCode> {
        let packet_id = PacketId::new(self.id()).unwrap();
        let filters = vec![Filter::new(filter).unwrap()];
        self.send(Packet::Unsubscribe(Unsubscribe { packet_id, filters })).await;
        self.wait_for(|packet| match packet {
            Packet::Unsuback(unsuback) if unsuback.packet_id == packet_id => Some(unsuback.reasons.clone()),
            _ => None,
        })
        .await
    }

    /// The next message, as it came, not acknowledged.
    pub async fn message(&mut self) -> Publish {
        match self.next().await {
            Packet::Publish(publish) => publish,
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// The next message, with the whole handshake.
    pub async fn take(&mut self) -> Publish {
        let publish = self.message().await;
        let Some(packet_id) = publish.packet_id else { return publish };
        if publish.qos == Qos::AtLeastOnce {
            self.send(Packet::Puback(ack(packet_id.get()))).await;
            return publish;
        }
        self.send(Packet::Pubrec(ack(packet_id.get()))).await;
        self.wait_for(|packet| match packet {
            Packet::Pubrel(ack) if ack.packet_id == packet_id => Some(()),
            _ => None,
        })
        .await;
        self.send(Packet::Pubcomp(ack(packet_id.get()))).await;
        publish
    }

    pub async fn disconnect(mut self) {
        self.send(Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS))).await;
        self.closed().await;
    }
}

/// What `[broker.user.…]` and the like say, read as the gateway reads it.
pub fn access(text: &str) -> AccessConfig {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("tidegate.toml");
    std::fs::write(&file, format!("[gateway]\nid = \"test\"\n{text}")).unwrap();
    let request =
        LoadRequest { root: root.path().to_owned(), config: Some(file), credentials_dir: None, kept_id: None };
    match config::load(&request) {
        Ok(loaded) => loaded.config.broker.access,
        Err(problems) => panic!("{}", config::render(&problems, &[])),
    }
}
