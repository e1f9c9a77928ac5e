//! A healthy run logs nothing above INFO: whoever reads the journal finds only what matters.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use common::cloud::Mosquitto;
use common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use common::peers::{ModbusServer, Publisher, Subscriber};
use common::process::Process;
use common::{PATIENCE, port, turn, wait_for};
use serde_json::json;

#[test]
fn a_healthy_run_logs_nothing_above_info_and_nothing_for_each_message() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["#"]);
    let cells = json!([{"table": "holding", "address": 0, "type": "u16", "value": 7}]);
    let server = ModbusServer::on_tcp(&json!({"1": {"cells": cells}}));
    let readings = "[[uplink.cloud.forward]]\nfilter = \"field/#\"\n";
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + FORWARD_PLANT
        + readings
        + &format!(
            "[modbus.meter]\nline = \"tcp://127.0.0.1:{}\"\nunit_id = 1\npoll = \"100ms\"\n[modbus.meter.point]\nlevel = {{ address = \"holding:0\", type = \"u16\" }}\n",
            server.port
        );
    let page = port::free();
    let tables = tables + &format!("[web]\nbind = \"127.0.0.1:{page}\"\n");
    let mut gateway = Gateway::started(folder.path(), &tables);
    let mut kept = Subscriber::started(gateway.port, "kept", &["plant/#", "tidegate/#"]);
    let viewer = Process::start("curl", "curl", &["-sN", &format!("http://127.0.0.1:{page}/api/v1/events")]);
    for qos in ["1", "2"] {
        let mut publisher = Publisher::started(gateway.port, "client", "plant/press", 200, &["--qos", qos]);
        publisher.wait_until_done();
    }
    application.wait_for_count("factory7/plant/press", 400);
    application.wait_for_count("field/meter/level", 20);
    kept.wait_for_count("plant/press", 400);
    let own = kept.wait_for_message("tidegate/hall-3/uplink/cloud", |told| told.json()["state"] == "connected");
    assert_eq!(own.json()["reason"], serde_json::Value::Null);
    kept.wait_for_message("tidegate/hall-3/device/meter", |told| told.json()["state"] == "good");
    wait_for(PATIENCE, "the page follows", || {
        viewer.stdout().iter().filter(|line| line.starts_with("data:")).count() > 2
    });
    // A reload that changes nothing, and one that takes nothing away from anybody.
    let path = gateway.config_path();
    for _ in 0..2 {
        let mut reload = Process::start("reload", PROGRAM, &["reload", "--config", path.to_str().unwrap()]);
        assert!(reload.wait(PATIENCE).success(), "{}", reload.transcript());
        let rule = "\n[[uplink.cloud.forward]]\nfilter = \"later/#\"\n";
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen(FORWARD_PLANT, &format!("{FORWARD_PLANT}{rule}"), 1)).unwrap();
    }
    gateway.wait_until_drained();
    drop(kept);
    gateway.stop();

    let log = gateway.log();
    assert!(!log.is_empty(), "it says at least that it has started and stopped");
    let loud: Vec<&String> = log.iter().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    assert!(loud.is_empty(), "{loud:#?}");
    assert!(log.len() < 60, "a line for each state, none for each message: {log:#?}");
}
