//! Does the program, built for a board and run by an emulator of its processor, keep what it acknowledged?
//!
//! The statically linked build of the same code is run: qemu's user mode hangs at the first thread of a dynamically
//! linked arm64 program on some kernels.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::build;
use super::common::account::assert_none_lost;
use super::common::cloud::{Access, Mosquitto};
use super::common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use super::common::peers::{ModbusServer, Publisher, Subscriber};
use super::common::turn;

const MESSAGES: u64 = 600;

const DEVICE: &str = "[[uplink.cloud.forward]]\nfilter = \"field/#\"\n
[modbus.chiller]\nline = \"tcp://127.0.0.1:PORT\"\nunit_id = 1\npoll = \"200ms\"\n
[modbus.chiller.point]
supply_temperature = { address = \"holding:100\", type = \"f32\", order = \"cdab\", report = { heartbeat = \"200ms\" } }
";

fn expect_nothing_acknowledged_is_lost(name: &str, emulator: &str) {
    let Some(program) = build(name) else { return };
    let _turn = turn();
    let folder = folder();
    let version = Command::new(emulator).arg(&program).arg("--version").output().unwrap();
    assert!(version.status.success(), "{}", String::from_utf8_lossy(&version.stderr));

    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#", "field/#"]);
    let temperature = json!({"table": "holding", "address": 100, "type": "f32", "order": "cdab", "value": -1234.5625});
    let server = ModbusServer::on_tcp(&json!({"1": {"cells": [temperature]}}));
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + FORWARD_PLANT
        + &DEVICE.replace("PORT", &server.port.to_string());
    let mut gateway = Gateway::prepared(folder.path(), &tables);
    gateway.set_program(&program);
    gateway.set_launcher(&[emulator]);
    gateway.start();
    expect_it_runs_emulated(gateway.id(), emulator);

    // From a device to the cloud while the line is there.
    let reading = application.wait_for_message("field/chiller/supply_temperature", |_| true).json();
    assert_eq!((&reading["value"], &reading["quality"]), (&json!(-1234.5625), &json!("good")), "{reading}");

    // An outage, and kills in it, while publishers never pause.
    let mut publishers = [("1", "plant/one"), ("2", "plant/two")].map(|(qos, topic)| {
        let arguments = ["--qos", qos, "--pause", "0.005"];
        Publisher::started(gateway.port, &format!("client-{qos}"), topic, MESSAGES, &arguments)
    });
    for publisher in &mut publishers {
        publisher.wait_for_acknowledged(100);
    }
    cloud.stop();
    for enough in [250, 400] {
        for publisher in &mut publishers {
            publisher.wait_for_acknowledged(enough);
        }
        gateway.kill();
        gateway.start();
    }
    for publisher in &mut publishers {
        publisher.wait_until_done();
    }
    let waiting = gateway.wait_for_status("messages wait for the cloud", |status| {
        status["uplinks"]["cloud"]["waiting"].as_u64().filter(|waiting| *waiting > 0)
    });
    gateway.kill();

    cloud.start();
    gateway.start();
    gateway.wait_until_drained();
    for (publisher, topic) in publishers.iter().zip(["factory7/plant/one", "factory7/plant/two"]) {
        let acknowledged = publisher.acknowledged();
        assert_eq!(acknowledged.len() as u64, MESSAGES, "{:?}", publisher.refused());
        application.wait_for_count(topic, acknowledged.len());
        assert_none_lost(topic, &application.numbers_on(topic), &acknowledged);
    }
    gateway.stop();
    let readings = expect_readings_without_a_hole(&mut application);
    println!(
        "{name}: {MESSAGES} at QoS 1 and {MESSAGES} at QoS 2 acknowledged, 0 lost; {waiting} waited; {readings} readings, no hole; 3 kills"
    );
}

/// A reading that was being stored at a kill may be gone, but then its number was never given.
fn expect_readings_without_a_hole(application: &mut Subscriber) -> usize {
    let readings = application.received_on("field/chiller/supply_temperature");
    let numbers: BTreeSet<u64> = readings.iter().filter_map(|message| message.json()["seq"].as_u64()).collect();
    let first = *numbers.first().expect("readings have come");
    let expected: BTreeSet<u64> = (first..).take(numbers.len()).collect();
    assert_eq!(numbers, expected, "readings are missing between others");
    let bad = readings.iter().find(|message| message.json()["quality"] != "good");
    assert!(bad.is_none(), "the device was well all the time: {bad:?}");
    numbers.len()
}

/// That not the build for this machine was started by mistake.
fn expect_it_runs_emulated(id: u32, emulator: &str) {
    let executable = std::fs::read_link(format!("/proc/{id}/exe")).unwrap();
    let emulator = Path::new(emulator).file_name().unwrap();
    assert!(executable.file_name() == Some(emulator), "{} runs, not {emulator:?}", executable.display());
}

#[test]
fn nothing_acknowledged_is_lost_by_the_arm64_build_through_an_outage_and_kills() {
    expect_nothing_acknowledged_is_lost("arm64-static", "qemu-aarch64-static");
}

#[test]
fn nothing_acknowledged_is_lost_by_the_armhf_build_through_an_outage_and_kills() {
    expect_nothing_acknowledged_is_lost("armhf-static", "qemu-arm-static");
}
