//! A healthy run logs nothing above INFO: whoever reads the journal finds only what matters.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use common::cloud::Mosquitto;
use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::peers::{ModbusServer, Publisher, Subscriber};
use common::turn;
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
    let mut gateway = Gateway::started(folder.path(), &tables);
    for qos in ["1", "2"] {
        let mut publisher = Publisher::started(gateway.port, "client", "plant/press", 200, &["--qos", qos]);
        publisher.wait_until_done();
    }
    application.wait_for_count("factory7/plant/press", 400);
    application.wait_for_count("field/meter/level", 20);
    gateway.wait_until_drained();
    gateway.stop();

    let log = gateway.log();
    assert!(!log.is_empty(), "it says at least that it has started and stopped");
    let loud: Vec<&String> = log.iter().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    assert!(loud.is_empty(), "{loud:#?}");
    assert!(log.len() < 60, "a line for each state, none for each message: {log:#?}");
}
