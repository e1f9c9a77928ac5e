//! What is a reading's time worth on a board without a clock, and under the sandbox that the unit ships?
//!
//! Steps of the wall clock under load are item `clock` of `tests/torture`; boots and cuts in front of a made clock are
//! in `src/queue/tests/time.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use common::cloud::{Access, Mosquitto};
use common::faketime::WallClock;
use common::gateway::{Gateway, PROGRAM, folder, uplink};
use common::peers::Subscriber;
use common::process::Process;
use common::{PATIENCE, turn, wait_until};
use serde_json::Value;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/tidegate.service");
const SANDBOX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/sandbox.py");
const TOPIC: &str = "field/meter/seconds";

/// A simulated meter and a gateway that reads it, with this mark for its time service.
struct Bench {
    _meter: Process,
    cloud: Mosquitto,
    gateway: Gateway,
}

impl Bench {
    fn new(folder: &Path, mark: &Path) -> Bench {
        let meter = ["simulate", "modbus", "--listen", "127.0.0.1:0", "--units", "1"];
        let mut meter = Process::start("simulate", PROGRAM, &meter);
        let line = meter.wait_for_line(PATIENCE, "where it serves", |line| line.contains("tcp://"));
        let address = line.split("tcp://").nth(1).unwrap().split(';').next().unwrap().to_owned();
        let cloud = Mosquitto::prepared(folder, Access::Open);
        let tables = format!(
            "{}\n[modbus.meter]\nline = \"tcp://{address}\"\nunit_id = 1\npoll = \"100ms\"\ntimeout = \"10s\"\n\
             point.seconds = {{ address = \"holding:0\", type = \"u16\" }}\n[board]\n",
            uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        );
        let mut gateway = Gateway::prepared(folder, &tables);
        gateway.set_clock(&format!("clock = \"auto\"\nclock_mark = \"{}\"", mark.display()));
        Bench { _meter: meter, cloud, gateway }
    }

    fn wait_for_clock(&self, state: &str) -> Value {
        let what = format!("the clock is {state}");
        self.gateway
            .wait_for_status(&what, |status| (status["clock"]["state"] == *state).then(|| status["clock"].clone()))
    }
}

fn readings(subscriber: &mut Subscriber) -> Vec<Value> {
    subscriber.received_on(TOPIC).iter().map(common::peers::Received::json).collect()
}

/// RFC 3339 to seconds, by `date`, which the gateway has no part in.
fn seconds(text: &Value) -> f64 {
    let output = Command::new("date").args(["-u", "+%s.%3N", "-d", text.as_str().unwrap()]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or_else(|_| panic!("{text}"))
}

fn now_s() -> f64 {
    let output = Command::new("date").args(["-u", "+%s.%3N"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
}

#[test]
fn readings_of_a_board_that_booted_in_1970_say_so_and_are_right_once_the_time_is_known() {
    let _turn = turn();
    let folder = folder();
    let mark = folder.path().join("synchronized");
    let wall = WallClock::right(folder.path());
    let mut bench = Bench::new(folder.path(), &mark);
    wall.set("@1970-01-01 00:00:10");
    let begun_s = now_s();
    // The application has subscribed before the line goes down, so that nothing passes it by when it is back.
    bench.cloud.start();
    let mut application = Subscriber::started(bench.cloud.port, "application", &["field/#"]);
    bench.cloud.stop();
    bench.gateway.start_with(&wall.environment());
    assert_eq!(bench.wait_for_clock("unset")["source"], Value::Null);
    let mut local = Subscriber::started(bench.gateway.port, "local", &["field/#"]);
    local.wait_for_count(TOPIC, 5);
    // The program is killed and started again, which tells it nothing about the time.
    bench.gateway.kill();
    bench.gateway.start_with(&wall.environment());
    local.wait_for_count(TOPIC, 10);
    for reading in readings(&mut local) {
        assert_eq!(reading["clock"], "unset", "{reading}");
        let (ts, after) = (seconds(&reading["ts"]), seconds(&reading["ts_after"]));
        assert!(after >= 1_735_689_600.0 && ts >= after, "a time before the program was made is no time: {reading}");
        assert_eq!(reading.get("ts_before"), None);
    }

    // The time service sets the clock, and then touches its mark.
    wall.set("+0");
    File::create(&mark).unwrap();
    assert_eq!(bench.wait_for_clock("synced")["source"], "mark");
    let so_far = readings(&mut local).len();
    bench.cloud.start();
    application.wait_for_count(TOPIC, so_far + 5);
    let ended_s = now_s();
    let at_cloud = readings(&mut application);
    let numbers: Vec<u64> = at_cloud.iter().map(|reading| reading["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "in order, none missing");
    let times: Vec<f64> = at_cloud.iter().map(|reading| seconds(&reading["ts"])).collect();
    assert!(times.iter().all(|time| (begun_s - 2.0..ended_s + 2.0).contains(time)), "{begun_s} {times:?} {ended_s}");
    assert!(times.is_sorted(), "{times:?}");
    assert!(at_cloud.iter().all(|reading| reading.get("clock").is_none()), "{at_cloud:?}");
    wait_until(PATIENCE, "the time is written down without waiting for the hour", || {
        let kept = fs::read_to_string(bench.gateway.state_dir().join("clock")).map_err(|error| error.to_string())?;
        if kept.contains("\nknown ") { Ok(()) } else { Err(kept) }
    });
    bench.gateway.stop();
}

#[test]
fn under_the_sandbox_of_the_unit_the_time_is_known_without_asking_the_kernel_for_it() {
    let _turn = turn();
    let folder = folder();
    let probe = Command::new("python3").args([SANDBOX, UNIT, "--probe"]).output().unwrap();
    let said = String::from_utf8_lossy(&probe.stdout).into_owned();
    let errors = String::from_utf8_lossy(&probe.stderr).into_owned();
    assert_eq!(said, "adjtimex EPERM\nclock_adjtime EPERM\n", "the control: the filter is in force; {errors}");
    // What cannot be set without systemd as the first process: this one hides the id of the boot (tried), and is left
    // out of the unit for that.
    let unit = fs::read_to_string(UNIT).unwrap();
    assert!(!unit.lines().any(|line| line.starts_with("ProcSubset=pid")));

    let mark = folder.path().join("synchronized");
    let mut bench = Bench::new(folder.path(), &mark);
    bench.gateway.set_launcher(&["python3", SANDBOX, UNIT]);
    bench.cloud.start();
    let mut application = Subscriber::started(bench.cloud.port, "application", &["field/#"]);
    bench.gateway.start();
    bench.wait_for_clock("unset");
    application.wait("readings of an unset clock", |messages| {
        messages.iter().filter(|message| message.topic == TOPIC && message.json()["clock"] == "unset").count() >= 3
    });
    File::create(&mark).unwrap();
    bench.wait_for_clock("synced");
    application.wait("readings of a clock that is right", |messages| {
        messages.iter().filter(|message| message.topic == TOPIC && message.json().get("clock").is_none()).count() >= 3
    });
    let filter = fs::read_to_string(format!("/proc/{}/status", bench.gateway.id())).unwrap();
    assert!(filter.contains("Seccomp:\t2"), "the gateway itself runs under the filter: {filter}");
    for point in ["load", "memory_available", "disk_free"] {
        application.wait(&format!("{point} of the board itself, which the filter lets be read"), |messages| {
            let topic = format!("field/board/{point}");
            messages.iter().any(|message| message.topic == topic && message.json()["quality"] == "good")
        });
    }
    bench.gateway.kill();
    bench.gateway.start();
    wait_until(PATIENCE, "the killed gateway has the time at once", || {
        let state = bench.gateway.status()?["clock"]["state"].clone();
        if state == "synced" { Ok(()) } else { Err(state.to_string()) }
    });
    bench.gateway.stop();
}
