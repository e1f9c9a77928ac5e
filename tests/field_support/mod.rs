//! What the field tests share: a configuration made by hand, a field stage that runs, and a list of what it told.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(missing_docs, reason = "test support")]

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::clock::{Clock, ClockSource};
use tidegate::config::{
    BrokerConfig, Config, FrameConfig, GatewayConfig, LineConfig, LineKind, Meaning, ModbusConfig, ModbusPoint, Parity,
    PointKind, PointTopic, PortConfig, QueueConfig, Report, RequestLimits, SerialConfig, SerialMode, Table, WhenFull,
    WordOrder,
};
use tidegate::field::{Field, FieldError, Readings, Refused};
use tidegate::health::{DeviceSnapshot, Health};
use tidegate::message::{Body, Message, Origin, Qos, Quality, Reading, Value};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Every wait of a test ends here at the latest.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A state of a device, by its topic.
type State = (String, serde_json::Value);

/// Takes readings in and remembers them, and what was told of the devices' states.
#[derive(Clone, Default)]
pub struct Collector(Arc<Collected>);

#[derive(Default)]
struct Collected {
    readings: Mutex<Vec<Reading>>,
    states: Mutex<Vec<State>>,
    told: Notify,
}

impl Readings for Collector {
    async fn deliver(&self, messages: Vec<Message>) -> Result<(), Refused> {
        let mut readings = self.0.readings.lock().unwrap();
        for message in messages {
            if message.origin == Origin::Gateway {
                assert!(message.retain && message.topic.as_str().starts_with("tidegate/test/device/"));
                let Body::Bytes(body) = message.body else { panic!("a state is no reading") };
                let state: serde_json::Value = serde_json::from_slice(&body).unwrap();
                self.0.states.lock().unwrap().push((message.topic.as_str().to_owned(), state));
                continue;
            }
            assert_eq!(message.origin, Origin::Field);
            assert!(!message.retain);
            let Body::Reading(reading) = message.body else { panic!("the field tells readings only") };
            let expected = format!("field/{}/{}", reading.device, reading.point);
            assert_eq!(message.topic.as_str(), expected);
            assert_eq!(reading.quality == Quality::Bad, reading.value == Value::Null, "{reading:?}");
            assert_eq!(reading.quality == Quality::Good, reading.reason.is_none(), "{reading:?}");
            readings.push(reading);
        }
        self.0.told.notify_waiters();
        Ok(())
    }
}

/// A field stage that runs.
pub struct Running {
    pub readings: Collector,
    pub health: Health,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), FieldError>>,
}

impl Running {
    pub fn start(config: &Config) -> Running {
        Running::start_recording(config, None)
    }

    /// The same with what goes over the lines taken down in a directory.
    pub fn start_recording(config: &Config, record: Option<&Path>) -> Running {
        let (readings, health, stop) = (Collector::default(), Health::default(), CancellationToken::new());
        let field = Field::new(config, readings.clone(), Clock::new(ClockSource::Trusted), &health).unwrap();
        let field = match record {
            Some(dir) => field.recording(dir).unwrap(),
            None => field,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(field.run(stop.clone()));
        Running { readings, health, stop, tasks }
    }

    pub fn has_ended(&mut self) -> bool {
        self.tasks.try_join_next().is_some()
    }

    pub async fn stop(mut self) -> Vec<Reading> {
        self.stop.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.tasks.join_next()).await.expect("the stage stops");
        ended.unwrap().expect("it does not panic").expect("it ends in order");
        self.all()
    }

    pub fn all(&self) -> Vec<Reading> {
        self.readings.0.readings.lock().unwrap().clone()
    }

    /// The states of a device, in the order in which they were told.
    pub fn states(&self, device: &str) -> Vec<String> {
        let topic = format!("tidegate/test/device/{device}");
        let states = self.readings.0.states.lock().unwrap();
        let of_device = states.iter().filter(|(told, _)| *told == topic);
        of_device.map(|(_, state)| state["state"].as_str().unwrap().to_owned()).collect()
    }

    pub fn of(&self, device: &str, point: &str) -> Vec<Reading> {
        self.all().into_iter().filter(|r| &*r.device == device && &*r.point == point).collect()
    }

    pub fn device(&self, name: &str) -> DeviceSnapshot {
        self.health
            .snapshot(tidegate::message::Stamp::default())
            .devices
            .get(name)
            .expect("the device is known")
            .clone()
    }

    /// Waits until `found` finds something in what was told.
    pub async fn until<T>(&self, what: &str, found: impl Fn(&[Reading]) -> Option<T>) -> T {
        let waited = tokio::time::timeout(DEADLINE, async {
            loop {
                let notified = self.readings.0.told.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if let Some(found) = found(&self.all()) {
                    return found;
                }
                // Health has no bell: what is looked for there is looked for again after a moment.
                tokio::time::timeout(Duration::from_millis(50), notified).await.unwrap_or_default();
            }
        });
        match waited.await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}; told so far: {:#?}", self.all()),
        }
    }

    /// Waits until `device`'s `point` was told `count` times at this quality.
    pub async fn until_told(&self, device: &str, point: &str, quality: Quality, count: usize) -> Vec<Reading> {
        self.until(&format!("{count} readings of {device}/{point} at quality {quality:?}"), |readings| {
            let matching =
                readings.iter().filter(|r| &*r.device == device && &*r.point == point && r.quality == quality);
            let matching: Vec<Reading> = matching.cloned().collect();
            (matching.len() >= count).then_some(matching)
        })
        .await
    }
}

pub fn empty() -> Config {
    Config {
        web: None,
        gateway: GatewayConfig {
            id: Arc::from("test"),
            id_source: "the test",
            state_dir: "/nonexistent".into(),
            clock: ClockSource::Trusted,
            clock_mark: None,
        },
        queue: QueueConfig {
            bytes_max: NonZeroU64::new(1 << 20).unwrap(),
            age_max: None,
            keep: None,
            when_full: WhenFull::DropOldest,
            hold: None,
        },
        broker: BrokerConfig::default(),
        uplinks: BTreeMap::new(),
        lines: BTreeMap::new(),
        modbus: BTreeMap::new(),
        serial: BTreeMap::new(),
        board: None,
    }
}

pub fn port(path: &Path) -> PortConfig {
    let mode = SerialMode { data_bits: 8, parity: Parity::None, stop_bits: 1 };
    PortConfig::new(path, NonZeroU32::new(115_200).unwrap(), mode)
}

pub fn tcp(address: std::net::SocketAddr) -> LineKind {
    LineKind::Tcp { host: address.ip().to_string(), port: address.port() }
}

pub fn add_line(config: &mut Config, name: &str, kind: LineKind) {
    let line = LineConfig::new(kind, Duration::from_millis(300));
    config.lines.insert(Arc::from(name), line);
}

pub fn add_unit(config: &mut Config, name: &str, line: &str, unit_id: u8, poll_ms: u64, points: Vec<ModbusPoint>) {
    let unit = ModbusConfig {
        line: Arc::from(line),
        unit_id,
        poll: Duration::from_millis(poll_ms),
        timeout: Duration::from_millis(300),
        topic: PointTopic("field/{device}/{point}".to_owned()),
        qos: Qos::AtLeastOnce,
        address_base: 0,
        limits: RequestLimits::default(),
        points,
    };
    config.modbus.insert(Arc::from(name), unit);
}

pub fn point(name: &str, table: Table, address: u16, kind: PointKind) -> ModbusPoint {
    ModbusPoint {
        name: Arc::from(name),
        table,
        address,
        kind,
        order: WordOrder::Abcd,
        meaning: Meaning::default(),
        unit: None,
        poll: None,
        report: Report::default(),
        write: None,
    }
}

pub fn add_serial(config: &mut Config, name: &str, path: &Path, parse: tidegate::config::Parse) {
    let serial = SerialConfig {
        port: port(path),
        ask: None,
        frame: FrameConfig::delimited(b"\r\n", 64),
        parse,
        decimal: b'.',
        good: BTreeMap::new(),
        topic: PointTopic("field/{device}/{point}".to_owned()),
        qos: Qos::AtLeastOnce,
        points: Vec::new(),
        commands: Vec::new(),
    };
    config.serial.insert(Arc::from(name), serial);
}
