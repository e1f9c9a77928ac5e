//! One uplink with a real queue, in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU16, NonZeroU64};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::clock::{Clock, ClockSource};
use tidegate::config::clouds::GENERIC;
use tidegate::config::{
    DrainOrder, Endpoint, ForwardRule, Pace, Protocol, ReceiveRule, Reconnect, TopicTemplate, UplinkConfig, WhenFull,
};
use tidegate::health::{Health, UplinkState};
use tidegate::intake::Intake;
use tidegate::message::{Body, Filter, Message, Origin, Qos, Topic};
use tidegate::queue::{self, Inlet, Outlet, QueueSettings, StreamSpec, Submission};
use tidegate::router::{Router, RouterLimits};
use tidegate::uplink::{Uplink, UplinkError, UplinkSettings};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::FakeCloud;

pub const WITHIN: Duration = Duration::from_secs(30);

pub struct Gateway {
    pub inlet: Inlet,
    pub intake: Intake,
    pub health: Health,
    pub clock: Clock,
    /// Another stream, which shows what came in from the cloud.
    pub other: Outlet,
    pub stop: CancellationToken,
    pub tasks: JoinSet<Result<(), UplinkError>>,
    pub worker: Option<JoinHandle<()>>,
    pub dir: TempDir,
}

pub fn forward(filter: &str, template: &str, qos: Option<Qos>) -> ForwardRule {
    let filter = Filter::new(filter).unwrap();
    let topic = TopicTemplate::parse(template, &filter, "g7").unwrap();
    ForwardRule {
        filter,
        topic,
        qos,
        when_full: None,
        strict_order: false,
        payload: tidegate::config::Payload::JSON,
        batch: None,
    }
}

pub fn config(port: u16, protocol: Protocol, qos: Option<Qos>) -> UplinkConfig {
    let filter = Filter::new("cmd/#").unwrap();
    UplinkConfig {
        profile: &GENERIC,
        endpoints: vec![Endpoint { host: "127.0.0.1".to_owned(), port, tls: false, path: None }],
        protocol,
        client_id: "g7".to_owned(),
        ca: None,
        cert: None,
        key: None,
        alpn: Vec::new(),
        username: None,
        password_file: None,
        jwt: None,
        auth_method: None,
        authorizer: None,
        provision: None,
        http: None,
        sas: None,
        dps: None,
        proxy: None,
        keep_alive: Duration::from_secs(60),
        session_expiry: Duration::from_secs(86_400),
        window: NonZeroU16::new(100).unwrap(),
        reconnect: Reconnect { first: Duration::from_millis(20), max: Duration::from_millis(100) },
        drain: DrainOrder::default(),
        pace: Pace::default(),
        own_topic: Some("own/g7".to_owned()),
        forward: vec![forward("plant/#", "f/{topic}", qos)],
        receive: vec![ReceiveRule {
            topic: TopicTemplate::parse("local/{rest}", &filter, "g7").unwrap(),
            filter,
            qos: Qos::ExactlyOnce,
            answer: None,
            answers: Vec::new(),
        }],
        twin: None,
        jobs: None,
    }
}

impl Gateway {
    pub fn start(config: UplinkConfig) -> Gateway {
        Gateway::start_in(tempfile::tempdir().unwrap(), config)
    }

    pub fn start_in(dir: TempDir, config: UplinkConfig) -> Gateway {
        Gateway::start_by(Clock::new(ClockSource::Trusted), dir, config)
    }

    /// By another clock than the system's.
    pub fn start_by(clock: Clock, dir: TempDir, config: UplinkConfig) -> Gateway {
        let health = Health::default();
        let (name, other): (Arc<str>, Arc<str>) = (Arc::from("cloud"), Arc::from("other"));
        let local = vec![forward("local/#", "{topic}", None)];
        let mut opened = queue::open(QueueSettings {
            set_topics: queue::SetTopics::default(),
            dir: dir.path().to_owned(),
            gateway: Arc::from("g7"),
            bytes_max: NonZeroU64::new(256 << 20).unwrap(),
            age_max: None,
            keep: None,
            when_full: WhenFull::DropOldest,
            hold: None,
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
            gateway: Arc::from("g7"),
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

    pub fn message(&self, number: usize, qos: Qos) -> Message {
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

    pub async fn publish(&self, numbers: std::ops::Range<usize>, qos: Qos) {
        let mut pending = Vec::new();
        for number in numbers {
            let submission = Submission { message: self.message(number, qos), once: None };
            pending.push(self.inlet.begin_append(submission).await.unwrap());
        }
        for one in pending {
            one.outcome().await.unwrap();
        }
    }

    pub fn state(&self) -> UplinkState {
        self.health.uplink(&Arc::from("cloud")).state()
    }

    pub fn delivered(&self) -> u64 {
        self.health.uplink(&Arc::from("cloud")).delivered.load(Ordering::Relaxed)
    }

    pub fn in_flight(&self) -> u64 {
        self.health.uplink(&Arc::from("cloud")).in_flight.load(Ordering::Relaxed)
    }

    pub fn drain(&self) -> Option<serde_json::Value> {
        let drain = self.health.snapshot(self.clock.now()).uplinks["cloud"].drain?;
        Some(serde_json::to_value(drain).unwrap())
    }

    pub fn reason(&self) -> String {
        self.health.snapshot(self.clock.now()).uplinks["cloud"].reason.clone().unwrap_or_default()
    }

    pub async fn stop(mut self) -> TempDir {
        self.stop.cancel();
        timeout(WITHIN, self.tasks.join_next()).await.unwrap().unwrap().unwrap().unwrap();
        self.inlet.stop().await;
        drop(self.other);
        self.worker.take().unwrap().join().unwrap();
        self.dir
    }
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let by = Instant::now() + WITHIN;
    while !condition() {
        assert!(Instant::now() < by, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The numbers that arrived, in order, and the ids they bore.
pub fn arrived(cloud: &FakeCloud) -> Vec<(usize, String)> {
    let seen = cloud.seen.lock().unwrap();
    let ours = seen.got.iter().filter(|publish| publish.topic.as_ref().unwrap().as_str().starts_with("f/plant/"));
    ours.map(|publish| {
        let number = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
        let id = publish.properties.user.iter().find(|(name, _)| name == "tidegate-id");
        (number, id.map(|(_, id)| id.clone()).unwrap_or_default())
    })
    .collect()
}

pub fn distinct(cloud: &FakeCloud) -> usize {
    arrived(cloud).into_iter().map(|(number, _)| number).collect::<BTreeSet<_>>().len()
}

pub async fn free_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}
