//! Do readings of real exchanges, over TCP and over a serial line, arrive with the right value, whatever the neighbours
//! on the line do?
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use field_support::{Running, add_line, add_unit, empty, point, port, tcp};
use tidegate::config::{Config, LineKind, ModbusPoint, PointKind, Table, WordOrder};
use tidegate::field::simulate::modbus::{Server, Settings};
use tidegate::field::simulate::{Bound, Place, SimulateError};
use tidegate::message::{Quality, Value};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod field_support;

/// A simulated device that runs, and stops when dropped.
struct Device {
    bound: Bound,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), SimulateError>>,
}

impl Device {
    async fn start(place: Place, units: &[u8], dead: &[u8]) -> Device {
        let settings = Settings {
            units: units.iter().copied().collect(),
            dead: dead.iter().copied().collect::<BTreeSet<u8>>(),
            ..Settings::at(place)
        };
        let server = Server::bind(settings).await.unwrap();
        let (bound, stop) = (server.bound().clone(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(stop.clone()));
        Device { bound, stop, tasks }
    }

    fn line(&self) -> LineKind {
        match &self.bound {
            Bound::Tcp(address) => tcp(*address),
            Bound::Path(path) => LineKind::Rtu(port(path)),
        }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn loopback() -> Place {
    Place::Tcp("127.0.0.1:0".parse().unwrap())
}

fn text(registers: u16) -> PointKind {
    PointKind::String { registers: NonZeroU16::new(registers).unwrap() }
}

/// The simulator's constants, with the value that each must give.
fn constants(table: Table) -> Vec<(ModbusPoint, Option<Value>)> {
    let cases = [
        ("u16", 100, PointKind::U16, Some(Value::Uint(54_321))),
        ("i16", 101, PointKind::I16, Some(Value::Int(-12_345))),
        ("u32", 102, PointKind::U32, Some(Value::Uint(3_000_000_000))),
        ("i32", 104, PointKind::I32, Some(Value::Int(-2_000_000_000))),
        ("f32", 106, PointKind::F32, Some(Value::Float(21.5))),
        ("nan", 108, PointKind::F32, None),
        ("u64", 110, PointKind::U64, Some(Value::Uint(1 << 63))),
        ("i64", 114, PointKind::I64, Some(Value::Int(-(1 << 62)))),
        ("f64", 118, PointKind::F64, Some(Value::Float(1.1))),
        ("text", 122, text(6), Some(Value::Text("Tide gate 7".into()))),
        ("off", 128, PointKind::Bool, Some(Value::Bool(false))),
        ("on", 129, PointKind::Bool, Some(Value::Bool(true))),
    ];
    cases.map(|(name, address, kind, value)| (point(name, table, address, kind), value)).into()
}

async fn reads_everything_right(place: Place) {
    let device = Device::start(place, &[1, 7], &[]).await;
    let mut config = empty();
    add_line(&mut config, "line", device.line());
    let mut expected = Vec::new();
    for (name, unit, table) in [("holding", 1, Table::Holding), ("input", 7, Table::Input)] {
        let cases = constants(table);
        add_unit(&mut config, name, "line", unit, 50, cases.iter().map(|(point, _)| point.clone()).collect());
        expected.extend(cases.into_iter().map(|(point, value)| (name, point.name, value)));
    }
    let mut scaled = point("scaled", Table::Holding, 101, PointKind::I16);
    (scaled.meaning.scale, scaled.meaning.offset, scaled.unit) = (0.1, 4.5, Some(Arc::from("°C")));
    let mut swapped = point("swapped", Table::Input, 102, PointKind::U32);
    swapped.order = WordOrder::Cdab;
    let bits = |table| [8u16, 9].map(|address| point(&format!("{table:?}{address}"), table, address, PointKind::Bool));
    let mut mixed = vec![scaled, swapped];
    mixed.extend(bits(Table::Coil));
    mixed.extend(bits(Table::Discrete));
    add_unit(&mut config, "mixed", "line", 1, 50, mixed);
    expected.push(("mixed", Arc::from("scaled"), Some(Value::Float(-1230.0))));
    expected.push(("mixed", Arc::from("swapped"), Some(Value::Uint(0x5E00_B2D0))));
    for name in ["Coil8", "Discrete8"] {
        expected.push(("mixed", Arc::from(name), Some(Value::Bool(false))));
    }
    for name in ["Coil9", "Discrete9"] {
        expected.push(("mixed", Arc::from(name), Some(Value::Bool(true))));
    }
    let running = Running::start(&config);
    for (device, name, value) in &expected {
        let quality = if value.is_some() { Quality::Good } else { Quality::Bad };
        let told = running.until_told(device, name, quality, 1).await;
        assert_eq!(told[0].value, value.clone().unwrap_or(Value::Null), "{device}/{name}");
    }
    let nan = &running.of("holding", "nan")[0];
    assert_eq!(nan.reason.as_deref(), Some("the device says that this is not a number"));
    assert_eq!(running.of("mixed", "scaled")[0].unit.as_deref(), Some("°C"));
    running.until_told("mixed", "scaled", Quality::Good, 5).await;
    assert_eq!(running.of("holding", "nan").len(), 1, "a bad point is told once, not with every read");
    let health = serde_json::to_value(running.device("mixed")).unwrap();
    assert_eq!((&health["state"], &health["failures"]), (&"good".into(), &0.into()), "{health}");
    assert!(health["last_good"].is_string() && health["interval_s"].is_number(), "{health}");
    assert_eq!(serde_json::to_value(running.device("holding")).unwrap()["state"], "degraded");
    running.stop().await;
    device.stop().await;
}

#[tokio::test]
async fn readings_of_every_type_arrive_with_the_right_value_over_tcp() {
    reads_everything_right(loopback()).await;
}

#[tokio::test]
async fn readings_of_every_type_arrive_with_the_right_value_over_a_serial_line() {
    reads_everything_right(Place::Pty).await;
}

/// Two living units, and on one of two equal lines a dead one between them.
async fn is_not_delayed(place: Place) {
    let (beside, alone) = (Device::start(place.clone(), &[1, 3], &[2]).await, Device::start(place, &[1, 3], &[]).await);
    let mut config = empty();
    add_line(&mut config, "beside", beside.line());
    add_line(&mut config, "alone", alone.line());
    let register = || vec![point("p", Table::Holding, 100, PointKind::U16)];
    for line in ["beside", "alone"] {
        for unit in [1, 3] {
            add_unit(&mut config, &format!("{line}{unit}"), line, unit, 50, register());
        }
    }
    add_unit(&mut config, "dead", "beside", 2, 50, register());
    let running = Running::start(&config);
    running.until_told("alone1", "p", Quality::Good, 200).await;
    let count = |device: &str| running.of(device, "p").len();
    for unit in [1, 3] {
        let (with, without) = (count(&format!("beside{unit}")), count(&format!("alone{unit}")));
        // At first two timeouts of 300 ms, six polls each; then a tenth of the time at most.
        assert!(with * 4 >= without * 3, "unit {unit}: {with} polls beside a dead unit, {without} without");
    }
    let told = running.of("dead", "p");
    assert_eq!((told.len(), told[0].quality), (1, Quality::Bad), "{told:?}");
    assert!(told[0].reason.as_deref().unwrap().starts_with("no answer within 300 ms"), "{told:?}");
    let health = serde_json::to_value(running.device("dead")).unwrap();
    assert_eq!(health["state"], "dead");
    assert!(health["exchanges"].as_u64().unwrap() >= 2, "it is probed: {health}");
    let everything = running.stop().await;
    assert!(everything.iter().all(|r| &*r.device == "dead" || r.quality == Quality::Good));
    beside.stop().await;
    alone.stop().await;
}

#[tokio::test]
async fn a_dead_unit_does_not_delay_the_others_on_a_serial_line() {
    is_not_delayed(Place::Pty).await;
}

#[tokio::test]
async fn a_dead_unit_does_not_delay_the_others_on_a_tcp_gateway() {
    is_not_delayed(loopback()).await;
}

#[tokio::test]
async fn an_address_that_the_device_does_not_have_costs_only_its_own_point() {
    let device = Device::start(loopback(), &[1], &[]).await;
    let mut config = empty();
    add_line(&mut config, "line", device.line());
    let points = vec![
        point("there", Table::Holding, 997, PointKind::U16),
        point("not_there", Table::Holding, 1002, PointKind::U16),
    ];
    add_unit(&mut config, "d", "line", 1, 50, points);
    let running = Running::start(&config);
    let good = running.until_told("d", "there", Quality::Good, 10).await;
    assert!(good.iter().all(|reading| reading.value == Value::Uint(997)));
    let bad = running.until_told("d", "not_there", Quality::Bad, 1).await;
    assert_eq!(bad[0].reason.as_deref(), Some("the device refuses: illegal data address (exception 2)"));
    let everything = running.stop().await;
    assert!(everything.iter().all(|r| (r.quality == Quality::Good) == (&*r.point == "there")), "{everything:?}");
    device.stop().await;
}

fn one_unit(kind: LineKind) -> Config {
    let mut config = empty();
    add_line(&mut config, "line", kind);
    add_unit(&mut config, "d", "line", 1, 50, vec![point("p", Table::Holding, 100, PointKind::U16)]);
    config
}

#[tokio::test]
async fn a_server_that_goes_away_is_told_as_bad_once_and_read_again_when_it_is_back() {
    let first = Device::start(loopback(), &[1], &[]).await;
    let Bound::Tcp(address) = first.bound else { panic!("it listens on TCP") };
    let running = Running::start(&one_unit(tcp(address)));
    let before = running.until_told("d", "p", Quality::Good, 3).await.len();
    first.stop().await;
    let bad = running.until_told("d", "p", Quality::Bad, 1).await;
    assert!(bad[0].reason.as_deref().unwrap().contains("connect"), "{bad:?}");
    let second = Device::start(Place::Tcp(address), &[1], &[]).await;
    running.until_told("d", "p", Quality::Good, before + 5).await;
    assert!(running.of("d", "p").iter().all(|r| matches!(r.value, Value::Null | Value::Uint(54_321))));
    running.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn an_adapter_that_is_pulled_out_and_put_back_under_its_stable_name_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let stable = directory.path().join("by-path");
    let first = Device::start(Place::Pty, &[1], &[]).await;
    let Bound::Path(path) = first.bound.clone() else { panic!("it is on a pty") };
    symlink(&path, &stable).unwrap();
    let running = Running::start(&one_unit(LineKind::Rtu(port(&stable))));
    let before = running.until_told("d", "p", Quality::Good, 3).await.len();
    std::fs::remove_file(&stable).unwrap();
    first.stop().await;
    let bad = running.until_told("d", "p", Quality::Bad, 1).await;
    assert!(bad[0].reason.as_deref().unwrap().contains("by-path"), "{bad:?}");
    let second = Device::start(Place::Pty, &[1], &[]).await;
    let Bound::Path(path) = second.bound.clone() else { panic!("it is on a pty") };
    symlink(&path, &stable).unwrap();
    running.until_told("d", "p", Quality::Good, before + 5).await;
    running.stop().await;
    second.stop().await;
}

/// The pauses between attempts have grown to four seconds by then.
#[tokio::test]
async fn an_adapter_that_was_away_for_long_is_asked_within_two_seconds_of_its_return() {
    let directory = tempfile::tempdir().unwrap();
    let stable = directory.path().join("by-path");
    let running = Running::start(&one_unit(LineKind::Rtu(port(&stable))));
    // Attempts are made at 0, 1, 3 and 7 seconds.
    tokio::time::sleep(std::time::Duration::from_millis(3300)).await;
    let device = Device::start(Place::Pty, &[1], &[]).await;
    let Bound::Path(path) = device.bound.clone() else { panic!("it is on a pty") };
    symlink(&path, &stable).unwrap();
    let back = tokio::time::Instant::now();
    running.until_told("d", "p", Quality::Good, 1).await;
    assert!(back.elapsed() < std::time::Duration::from_secs(2), "{:?}", back.elapsed());
    running.stop().await;
    device.stop().await;
}

#[tokio::test]
async fn a_line_that_cannot_be_opened_tells_why_and_leaves_the_others_alone() {
    let device = Device::start(loopback(), &[1], &[]).await;
    let mut config = one_unit(device.line());
    add_line(&mut config, "gone", LineKind::Rtu(port("/dev/serial/by-path/nothing".as_ref())));
    add_unit(&mut config, "unreachable", "gone", 1, 50, vec![point("p", Table::Coil, 0, PointKind::Bool)]);
    let running = Running::start(&config);
    let bad = running.until_told("unreachable", "p", Quality::Bad, 1).await;
    let reason = bad[0].reason.as_deref().unwrap();
    assert!(reason.contains("/dev/serial/by-path/nothing") && reason.contains("plugged in"), "{reason}");
    running.until_told("d", "p", Quality::Good, 20).await;
    let everything = running.stop().await;
    assert!(everything.iter().all(|r| &*r.device == "unreachable" || r.quality == Quality::Good));
    device.stop().await;
}

#[tokio::test]
async fn a_stage_without_lines_waits_to_be_stopped() {
    let mut running = Running::start(&empty());
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert!(!running.has_ended(), "a gateway without field devices goes on");
    }
    assert!(running.stop().await.is_empty());
}

#[tokio::test]
async fn a_bus_of_thirty_units_with_three_dead_keeps_every_interval() {
    const POLL_MS: u64 = 1000;
    let dead = [4, 17, 30];
    let living: Vec<u8> = (1..=30).filter(|unit| !dead.contains(unit)).collect();
    let device = Device::start(Place::Pty, &living, &dead).await;
    let mut config = empty();
    add_line(&mut config, "bus", device.line());
    for unit in 1..=30 {
        add_unit(
            &mut config,
            &format!("u{unit}"),
            "bus",
            unit,
            POLL_MS,
            vec![point("p", Table::Holding, 100, PointKind::U16)],
        );
    }
    let running = Running::start(&config);
    for unit in &living {
        running.until_told(&format!("u{unit}"), "p", Quality::Good, 8).await;
    }
    running
        .until("the dead are known to be dead", |_| {
            let is_dead = |unit: &u8| running.states(&format!("u{unit}")).last().is_some_and(|state| state == "dead");
            dead.iter().all(is_dead).then_some(())
        })
        .await;
    let mut gaps: Vec<u64> = Vec::new();
    for unit in &living {
        let name = format!("u{unit}");
        assert_eq!(running.states(&name).last().map(String::as_str), Some("good"), "{name}");
        let times: Vec<u64> = running.of(&name, "p").iter().map(|reading| reading.stamp.mono_ms).collect();
        gaps.extend(times.windows(2).map(|pair| pair[1] - pair[0]));
    }
    gaps.sort_unstable();
    // A probe of a dead unit puts a poll off by its timeout of 300 ms; a poll that is skipped is one of two intervals.
    let kept = gaps.iter().filter(|gap| **gap < POLL_MS * 3 / 2).count();
    assert!(kept * 100 >= gaps.len() * 97, "{kept} of {} intervals were kept: {gaps:?}", gaps.len());
    let median = gaps[gaps.len() / 2];
    assert!((900..1100).contains(&median), "median {median} ms");
    for unit in dead {
        assert_eq!(running.of(&format!("u{unit}"), "p").len(), 1, "a dead unit is told once");
    }
    running.stop().await;
    device.stop().await;
}

#[tokio::test]
async fn what_a_device_refuses_is_found_in_a_few_requests_and_the_rest_is_read_together() {
    let device = Device::start(loopback(), &[1], &[]).await;
    let mut config = empty();
    add_line(&mut config, "line", device.line());
    // The device has 1000 registers: of 40 in one request the last one is refused, and so are all with it.
    let points = (961..=1000).map(|address| point(&format!("p{address}"), Table::Holding, address, PointKind::U16));
    add_unit(&mut config, "d", "line", 1, 100, points.collect());
    let running = Running::start(&config);
    running.until_told("d", "p1000", Quality::Bad, 1).await;
    for address in [961, 980, 999] {
        let good = running.until_told("d", &format!("p{address}"), Quality::Good, 3).await;
        assert!(good.iter().all(|reading| reading.value == Value::Uint(address)), "{good:?}");
    }
    let before = running.device("d");
    let rounds = running.of("d", "p999").len();
    running.until_told("d", "p999", Quality::Good, rounds + 5).await;
    let after = running.device("d");
    let asked = after.exchanges - before.exchanges;
    assert!(asked <= 7 * 8, "{asked} requests for five polls of 40 points");
    assert_eq!(after.faults.keys().copied().collect::<Vec<_>>(), ["exception-2"]);
    running.stop().await;
    device.stop().await;
}
