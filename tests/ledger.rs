//! Does the ledger hold over kills, does it agree with what the cloud has, and does it know when nothing was measured?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Output};

use common::cloud::Mosquitto;
use common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use common::peers::{ModbusServer, Publisher, Subscriber};
use common::{PATIENCE, turn, wait_until};
use serde_json::{Value, json};

const FORWARD_FIELD: &str = "[[uplink.cloud.forward]]\nfilter = \"field/#\"\nqos = 1\n";

fn meter(port: u16) -> String {
    format!(
        "[modbus.meter]\nline = \"tcp://127.0.0.1:{port}\"\nunit_id = 1\npoll = \"100ms\"\ntimeout = \"500ms\"\n\
         [modbus.meter.point]\nlevel = {{ address = \"holding:0\", type = \"u16\" }}\n\
         still = {{ address = \"holding:1\", type = \"u16\", report = {{ deadband = 1, heartbeat = \"1h\" }} }}\n"
    )
}

fn server() -> ModbusServer {
    let cell = |address: u16| json!({"table": "holding", "address": address, "type": "u16", "value": 7});
    ModbusServer::on_tcp(&json!({"1": {"cells": [cell(0), cell(1)]}}))
}

fn ledger(gateway: &Gateway, more: &[&str]) -> Output {
    Command::new(PROGRAM).args(["ledger", "--config"]).arg(gateway.config_path()).args(more).output().unwrap()
}

fn report(gateway: &Gateway) -> Value {
    let output = ledger(gateway, &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sum(report: &Value, source: &str, key: &str) -> u64 {
    let lines = report["lines"].as_array().unwrap().iter().filter(|line| line["source"] == source);
    lines.map(|line| line[key].as_u64().unwrap_or_else(|| panic!("{line}"))).sum()
}

#[test]
fn the_ledger_agrees_with_the_cloud_after_kills_running_and_stopped() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["#"]);
    let server = server();
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT + FORWARD_FIELD;
    let mut gateway = Gateway::started(folder.path(), &(tables + &meter(server.port)));
    let more = ["--qos", "1", "--pause", "0.005"];
    let mut publisher = Publisher::started(gateway.port, "client", "plant/one", 600, &more);
    for kills in 1..=3 {
        publisher.wait_for_acknowledged(150 * kills);
        gateway.kill();
        gateway.start();
        if kills == 2 {
            cloud.freeze();
        }
    }
    publisher.wait_until_done();
    cloud.thaw();
    gateway.wait_until_connected();
    gateway.kill();

    // From the files of a gateway that was killed, whatever waited then.
    let killed = report(&gateway);
    let [accepted, delivered, waiting] = ["accepted", "delivered", "waiting"].map(|key| sum(&killed, "(clients)", key));
    assert_eq!(accepted, delivered + waiting, "{killed}");
    assert!(accepted >= 600, "every number that was acknowledged: {killed}");

    gateway.start();
    wait_until(PATIENCE, "nothing of the clients waits", || {
        let report = report(&gateway);
        // What was read and held back before a kill may be lost: some of it has to come after the last one.
        let is_held_back = report["field"][0]["held_back"].as_u64().is_some_and(|count| count > 0);
        let is_drained = sum(&report, "(clients)", "waiting") == 0;
        if is_held_back && is_drained { Ok(()) } else { Err(report.to_string()) }
    });
    gateway.stop();
    let stopped = report(&gateway);
    assert_eq!(sum(&stopped, "(clients)", "accepted"), accepted, "nothing came since");
    assert_eq!(sum(&stopped, "(clients)", "delivered"), accepted);
    let numbers = stopped["lines"].as_array().unwrap().iter().find(|line| line["source"] == "meter").unwrap();
    assert!(numbers["accepted"].as_u64().unwrap() > 10, "{numbers}");
    assert!(stopped["field"][0]["held_back"].as_u64().unwrap() > 0, "{stopped}");

    let delivered = sum(&stopped, "meter", "delivered") + accepted;
    application.wait("all that was delivered", |received| {
        let ids: std::collections::BTreeSet<_> = received.iter().filter_map(|message| message.id.as_ref()).collect();
        ids.len() as u64 >= delivered
    });
    verify(&gateway, folder.path(), &mut application);
}

fn verify(gateway: &Gateway, folder: &std::path::Path, application: &mut Subscriber) {
    let (mut whole, mut lacking) = (String::from("id,device,seq\n"), String::from("device,seq\n"));
    let mut left_out = None;
    for message in application.received() {
        let body: Value = serde_json::from_str(&message.payload).unwrap_or_default();
        let id = message.id.clone().unwrap_or_default();
        let (device, seq) = (body["device"].as_str().unwrap_or_default(), body["seq"].as_u64());
        let seq = seq.map(|seq| seq.to_string()).unwrap_or_default();
        writeln!(whole, "{id},{device},{seq}").unwrap();
        if device.is_empty() || seq == "5" {
            left_out = Some(5).filter(|_| seq == "5").or(left_out);
        } else {
            writeln!(lacking, "{device},{seq}").unwrap();
        }
    }
    assert_eq!(left_out, Some(5));
    let path = folder.join("export.csv");
    fs::write(&path, whole).unwrap();
    let output = ledger(gateway, &["--verify", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("All that the ledger says is delivered is in the file."), "{said}");

    fs::write(&path, lacking).unwrap();
    let output = ledger(gateway, &["--verify", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(70), "{said}");
    assert!(said.contains("missing: 5\n") && said.contains("MISSING: 1."), "{said}");
    assert!(said.contains("are of no device"), "{said}");

    fs::write(&path, "time,value\n").unwrap();
    assert_eq!(ledger(gateway, &["--verify", path.to_str().unwrap()]).status.code(), Some(64));
}

#[test]
fn a_meter_that_does_not_answer_and_a_gateway_that_is_off_are_gaps() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut server = server();
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_FIELD;
    let mut gateway = Gateway::started(folder.path(), &(tables + &meter(server.port)));
    gateway
        .wait_for_status("the meter answers", |status| (status["devices"]["meter"]["state"] == "good").then_some(()));
    server.kill();
    wait_until(PATIENCE, "the meter's silence is in the ledger", || {
        let report = report(&gateway);
        let gaps = report["gaps"].as_array().unwrap();
        let is_it = |gap: &Value| gap["device"] == "meter" && gap["to"].is_null();
        if gaps.iter().any(is_it) { Ok(()) } else { Err(report.to_string()) }
    });
    gateway.stop();
    // A second is the shortest absence that is told of.
    let stopped = std::time::Duration::from_millis(1200);
    std::thread::sleep(stopped);
    gateway.start();
    let output = ledger(&gateway, &["--gaps"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("the gateway was stopped"), "{said}");
    assert!(said.contains("meter: "), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let said = String::from_utf8(ledger(&gateway, &[]).stdout).unwrap();
    assert!(said.contains("uplink cloud") && said.contains("meter"), "{said}");
}
