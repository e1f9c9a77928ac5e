//! Does `tidegate simulate` serve the very points of a configuration, and do its faults cost readings but never truth?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod field_support;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use field_support::Running;
use tidegate::config::{self, Config, LineKind, LoadRequest};
use tidegate::field::record::{self, Wire};
use tidegate::field::simulate::fault::Fault;
use tidegate::field::simulate::modbus::{Devices, Server};
use tidegate::field::simulate::wave::Wave;
use tidegate::field::simulate::{Bound, Place, Waves};
use tidegate::message::{Quality, Value};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Points of every kind, on three kinds of lines.
const CONFIG: &str = r#"
[line.bus]
port = "/dev/ttyS9"
baud = 115200
[line.letters]
port = "/dev/ttyS8"
baud = 115200
mode = "7E1"
framing = "ascii"
[line.converter]
url = "rtu-tcp://10.0.0.2:4001"
[model.plc]
poll = "100ms"
[model.plc.point]
temperature = { address = "holding:100", type = "i16", scale = 0.1, offset = -40, clamp_min = -40, clamp_max = 120.5, not_available = [0x8000, -1] }
flow = { address = "40103", type = "f32", order = "cdab" }
level = { address = "holding:104", type = "f64", order = "dcba" }
energy = { address = "input:0x10", type = "u64", order = "badc" }
phase = { address = "input:30", type = "u32", count = 3 }
running = { address = "holding:200", bit = 3 }
mode = { address = "holding:200", type = "u16", bits = "4-7", names = { 0 = "off", 1 = "auto", 0x0F = "fault" } }
small = { address = "holding:201", type = "u8" }
trim = { address = "holding:202", type = "i8", order = "dcba" }
plate = { address = "holding:300", type = "string", registers = 8 }
pump = { address = "coil:3", names = "0=stopped; 1=running" }
door = { address = "discrete:17", type = "bool" }
[modbus.b1]
line = "bus"
unit_id = 1
model = "plc"
[modbus.b2]
line = "bus"
unit_id = 2
model = "plc"
[modbus.l1]
line = "letters"
unit_id = 3
model = "plc"
[modbus.c1]
line = "converter"
unit_id = 9
model = "plc"
[modbus.t1]
line = "tcp://10.0.0.1"
unit_id = 255
model = "plc"
"#;

fn configured() -> Config {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("etc")).unwrap();
    fs::write(folder.path().join("etc/machine-id"), "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n").unwrap();
    let file = folder.path().join("tidegate.toml");
    fs::write(&file, CONFIG).unwrap();
    let request =
        LoadRequest { root: folder.path().to_owned(), config: Some(file), credentials_dir: None, kept_id: None };
    let mut config =
        config::load(&request).unwrap_or_else(|problems| panic!("{}", config::render(&problems, &[]))).config;
    config.gateway.id = Arc::from("test");
    config
}

/// Serves every line, and points the configuration to where it is served.
async fn simulated(config: &mut Config, waves: &Waves, faults: &[Fault], stop: &CancellationToken) -> JoinSet<()> {
    let mut servers = JoinSet::new();
    let served = config.clone();
    config.lines.retain(|name, _| served.modbus.values().any(|device| device.line == *name));
    for (name, line) in &mut config.lines {
        let place = match line.kind {
            LineKind::Rtu(_) => Place::Pty,
            LineKind::Tcp { .. } | LineKind::RtuOverTcp { .. } => Place::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))),
        };
        let wire = if matches!(line.kind, LineKind::Tcp { .. }) { Wire::Tcp } else { Wire::Rtu };
        let devices = Devices::Line { config: &served, line: name, waves, faults: faults.to_vec() };
        let server = Server::bind_devices(&place, wire, devices, None).await.unwrap().framed(line.framing);
        match (server.bound().clone(), &mut line.kind) {
            (Bound::Path(path), LineKind::Rtu(port)) => port.path = path,
            (Bound::Tcp(address), LineKind::Tcp { host, port } | LineKind::RtuOverTcp { host, port }) => {
                (*host, *port) = (address.ip().to_string(), address.port());
            }
            (bound, kind) => panic!("{kind:?} at {bound}"),
        }
        let stop = stop.clone();
        servers.spawn(async move { server.run(stop).await.unwrap() });
    }
    servers
}

#[tokio::test]
async fn every_point_of_a_configuration_is_served_and_good() {
    let mut config = configured();
    let stop = CancellationToken::new();
    let _servers = simulated(&mut config, &Waves::default(), &[], &stop).await;
    let running = Running::start(&config);
    for (device, modbus) in &config.modbus {
        assert_eq!(modbus.points.len(), 14);
        for point in &modbus.points {
            running.until_told(device, &point.name, Quality::Good, 2).await;
        }
    }
    // Things move, each in its own way.
    running
        .until("another temperature", |readings| {
            let of = |device: &str| -> Vec<Value> {
                let matching = readings.iter().filter(|r| &*r.device == device && &*r.point == "temperature");
                matching.map(|r| r.value.clone()).collect()
            };
            let (one, other) = (of("b1"), of("t1"));
            (one.iter().any(|value| value != &one[0]) && one.first() != other.first()).then_some(())
        })
        .await;
    let everything = running.stop().await;
    let bad: Vec<_> = everything.iter().filter(|reading| reading.quality == Quality::Bad).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    stop.cancel();
}

#[tokio::test]
async fn faults_cost_readings_and_never_give_a_wrong_value() {
    let mut config = configured();
    let stop = CancellationToken::new();
    let waves = Waves { all: Wave::Constant, named: BTreeMap::new() };
    let faults = ["delay=20ms/3", "exception=4/7", "silence/11", "bad-crc/5", "wrong-unit/13", "late/17"]
        .map(|text| Fault::parse(text).unwrap());
    for line in config.lines.values_mut() {
        line.timeout = Duration::from_millis(120);
    }
    for device in config.modbus.values_mut() {
        device.timeout = Duration::from_millis(120);
    }
    let _servers = simulated(&mut config, &waves, &faults, &stop).await;
    let running = Running::start(&config);
    for device in config.modbus.keys() {
        running
            .until(&format!("faults of {device}"), |_| {
                let faults = running.device(device).faults;
                (faults.len() >= 3 && running.device(device).exchanges >= 30).then_some(())
            })
            .await;
        running.until_told(device, "temperature", Quality::Good, 5).await;
    }
    running
        .until("a line of letters with a wrong sum is counted", |_| {
            running.device("l1").faults.get("checksum").copied()
        })
        .await;
    let everything = running.stop().await;
    stop.cancel();
    let mut known: BTreeMap<(Arc<str>, Arc<str>), Value> = BTreeMap::new();
    for reading in everything.iter().filter(|reading| reading.quality == Quality::Good) {
        let of = (reading.device.clone(), reading.point.clone());
        let value = known.entry(of).or_insert_with(|| reading.value.clone());
        assert_eq!(*value, reading.value, "a constant changed: {reading:?}");
    }
    assert_eq!(known[&(Arc::from("b1"), Arc::from("flow"))], Value::Float(50.0));
    assert!(everything.iter().any(|reading| reading.quality == Quality::Bad));
}

#[tokio::test]
async fn what_the_gateway_has_recorded_of_a_line_is_served_to_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = configured();
    config.modbus.retain(|name, _| ["t1", "b1", "l1"].contains(&&**name));
    let stop = CancellationToken::new();
    let waves = Waves { all: Wave::Constant, named: BTreeMap::new() };
    let servers = simulated(&mut config, &waves, &[], &stop).await;
    let recorded = read_all(&config, Some(folder.path())).await;
    stop.cancel();
    servers.join_all().await;

    let mut again = JoinSet::new();
    let stop = CancellationToken::new();
    for (name, line) in &mut config.lines {
        let text = fs::read_to_string(folder.path().join(record::file_name(name))).unwrap();
        let recording = record::parse(&text).unwrap();
        let place = match line.kind {
            LineKind::Rtu(_) => Place::Pty,
            LineKind::Tcp { .. } | LineKind::RtuOverTcp { .. } => Place::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))),
        };
        let server = Server::bind_devices(&place, recording.wire, Devices::Recorded(&recording), None).await.unwrap();
        let server = server.framed(line.framing);
        match (server.bound().clone(), &mut line.kind) {
            (Bound::Path(path), LineKind::Rtu(port)) => port.path = path,
            (Bound::Tcp(address), LineKind::Tcp { port, .. } | LineKind::RtuOverTcp { port, .. }) => {
                *port = address.port();
            }
            (bound, kind) => panic!("{kind:?} at {bound}"),
        }
        let stop = stop.clone();
        again.spawn(async move { server.run(stop).await.unwrap() });
    }
    assert_eq!(read_all(&config, None).await, recorded);
    stop.cancel();
}

/// Reads until every point of every device was good once, and gives back what each was.
async fn read_all(config: &Config, record: Option<&std::path::Path>) -> BTreeMap<(String, String), String> {
    let running = Running::start_recording(config, record);
    let mut known = BTreeMap::new();
    for (device, modbus) in &config.modbus {
        for point in &modbus.points {
            let good = running.until_told(device, &point.name, Quality::Good, 1).await;
            known.insert((device.to_string(), point.name.to_string()), format!("{:?}", good[0].value));
        }
    }
    running.stop().await;
    known
}
