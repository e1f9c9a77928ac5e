//! Does a batch reach an application behind a real broker as the README says, also over an outage and a kill?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::cloud::{Access, Mosquitto};
use common::gateway::{Gateway, ID, folder, uplink};
use common::peers::{ModbusServer, Subscriber};
use common::turn;
use serde_json::{Value, json};

/// Four points of one meter, ten times a second, go to one topic.
fn tables(cloud: u16, meter: u16, qos: u8) -> String {
    let points: String =
        (0..4).map(|place| format!("level_{place} = {{ address = \"holding:{place}\", type = \"u16\" }}\n")).collect();
    let rule = format!(
        "[[uplink.cloud.forward]]\nfilter = \"field/#\"\ntopic = \"{{gateway}}/readings\"\nqos = {qos}\n\
         payload = \"json-batch\"\nbatch = {{ readings = 10, bytes = \"5 KiB\", within = \"300ms\" }}\n"
    );
    uplink(&format!("mqtt://127.0.0.1:{cloud}"), "")
        + &rule
        + &format!(
            "[modbus.meter]\nline = \"tcp://127.0.0.1:{meter}\"\nunit_id = 1\npoll = \"100ms\"\n[modbus.meter.point]\n{points}"
        )
}

/// The readings of each batch by its name; a batch that came again is the same.
fn batches(application: &mut Subscriber) -> BTreeMap<String, Vec<Value>> {
    let mut batches = BTreeMap::new();
    for message in application.received_on(&format!("{ID}/readings")) {
        let name = message.id.clone().expect("an MQTT 5 uplink names its messages");
        let readings = message.json().as_array().expect("a batch is an array").clone();
        let (first, count) = name.split_once('+').expect("<first id>+<count>");
        assert_eq!(readings[0]["id"], first);
        assert_eq!(count, readings.len().to_string());
        assert!(readings.len() <= 10 && message.payload.len() <= 5 * 1024);
        let before = batches.insert(name, readings.clone());
        assert!(before.is_none_or(|before| before == readings), "a repeat is what it repeats");
    }
    batches
}

#[test]
fn readings_of_one_topic_travel_together_and_none_is_missing_after_an_outage_and_a_kill() {
    let _turn = turn();
    for qos in [1, 2] {
        let folder = folder();
        let cells: Vec<Value> = (0..4)
            .map(|place| json!({"table": "holding", "address": place, "type": "u16", "value": 100 + place}))
            .collect();
        let meter = ModbusServer::on_tcp(&json!({"1": {"cells": cells}}));
        let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
        cloud.start();
        let topic = format!("{ID}/readings");
        let mut application = Subscriber::started(cloud.port, "application", &[topic.as_str()]);
        let mut gateway = Gateway::started(folder.path(), &tables(cloud.port, meter.port, qos));
        application.wait_for_count(&topic, 5);
        cloud.stop();
        gateway.wait_for_status("a hundred wait", |status| {
            (status["uplinks"]["cloud"]["waiting"].as_u64() >= Some(100)).then_some(())
        });
        gateway.kill();
        cloud.start();
        gateway.start();
        application.wait("two hundred readings", |messages| {
            messages.iter().map(|message| message.json().as_array().map_or(0, Vec::len)).sum::<usize>() >= 200
        });

        let batches = batches(&mut application);
        assert!(batches.values().any(|readings| readings.len() == 10), "a backlog fills its batches");
        let mut numbers: Vec<u64> = Vec::new();
        for reading in batches.values().flatten() {
            assert_eq!((&reading["device"], &reading["quality"]), (&json!("meter"), &json!("good")), "{reading}");
            let point = reading["point"].as_str().unwrap();
            let place: u64 = point.strip_prefix("level_").unwrap().parse().unwrap();
            assert_eq!(reading["value"], 100 + place);
            numbers.push(reading["seq"].as_u64().unwrap());
        }
        numbers.sort_unstable();
        if qos == 2 {
            let count = numbers.len();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "a reading came in two batches");
        }
        numbers.dedup();
        let holes: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
        assert!(holes.is_empty(), "QoS {qos}: readings are missing between {holes:?}");
    }
}
