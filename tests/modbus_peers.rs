//! Readings from pymodbus, over TCP, RTU on a serial line and RTU over TCP, as the application in the cloud sees them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use common::cloud::Mosquitto;
use common::gateway::{Gateway, folder, uplink};
use common::peers::{Cable, ModbusServer, Received, Subscriber};
use common::{PATIENCE, turn, wait_for};
use serde_json::{Value, json};

/// One point: what the device holds, how the configuration describes it, what must arrive.
struct Case {
    name: String,
    cell: Value,
    config: String,
    expected: Value,
}

/// Every type in every order that makes a difference for it, at values whose bytes all differ.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut address = 10;
    let mut next = |width: u16| {
        let here = address;
        address += width;
        here
    };
    let mut add = |name: String, cell: Value, more: &str, expected: Value| {
        let (table, address) = (cell["table"].as_str().unwrap(), &cell["address"]);
        let config = format!("{name} = {{ address = \"{table}:{address}\", {more} }}");
        cases.push(Case { name, cell, config, expected });
    };
    let numbers = [
        ("u16", 1, vec!["abcd"], json!(0xfedc)),
        ("i16", 1, vec!["abcd"], json!(-12_345)),
        ("u32", 2, vec!["abcd", "cdab", "badc", "dcba"], json!(0xfedc_ba98_u32)),
        ("i32", 2, vec!["abcd", "cdab", "badc", "dcba"], json!(-123_456_789)),
        ("u64", 4, vec!["abcd", "cdab", "badc", "dcba"], json!(0xfedc_ba98_7654_3210_u64)),
        ("i64", 4, vec!["abcd", "cdab", "badc", "dcba"], json!(-1_234_567_890_123_456_789_i64)),
        ("f32", 2, vec!["abcd", "cdab", "badc", "dcba"], json!(-1234.5625)),
        ("f64", 4, vec!["abcd", "cdab", "badc", "dcba"], json!(1.234_567_890_123_456_7e-8)),
    ];
    for table in ["holding", "input"] {
        for (kind, width, orders, value) in &numbers {
            for order in orders {
                let cell =
                    json!({"table": table, "address": next(*width), "type": kind, "order": order, "value": value});
                let more = format!("type = \"{kind}\", order = \"{order}\"");
                add(format!("{table}_{kind}_{order}"), cell, &more, value.clone());
            }
        }
    }
    let text = json!({"table": "holding", "address": next(6), "type": "string", "registers": 6, "value": "Grüße 7"});
    add("text".to_owned(), text, "type = \"string\", registers = 6", json!("Grüße 7"));
    let scaled = json!({"table": "holding", "address": next(1), "type": "i16", "value": -215});
    add("scaled".to_owned(), scaled, "type = \"i16\", scale = 0.1, offset = 40, unit = \"°C\"", json!(18.5));
    for (table, address, value) in
        [("coil", 3, true), ("coil", 4, false), ("discrete", 17, true), ("discrete", 18, false)]
    {
        let cell = json!({"table": table, "address": address, "value": value});
        add(format!("{table}_{address}"), cell, "type = \"bool\"", json!(value));
    }
    let word =
        |value: u16, address: u16| json!({"table": "holding", "address": address, "type": "u16", "value": value});
    for (name, value, more, expected) in [
        ("bit_4", 0xa5f0, "bit = 4", json!(true)),
        ("bit_3", 0xa5f0, "bit = 3", json!(false)),
        ("field", 0xa5f0, "type = \"u16\", bits = \"8-11\"", json!(5)),
        ("low_byte", 0x12fe, "type = \"u8\"", json!(0xfe)),
        ("high_byte", 0xfe12, "type = \"i8\", order = \"badc\"", json!(-2)),
        ("mode", 2, "type = \"u16\", names = \"1=auto; 2=hand\"", json!("hand")),
        ("clamped", 1500, "type = \"u16\", scale = 0.1, clamp_max = 100", json!(100.0)),
        ("not_available", 0x8000, "type = \"i16\", not_available = 0x8000", Value::Null),
    ] {
        add(name.to_owned(), word(value, next(1)), more, expected);
    }
    // What no sensor means: 0x7fc00000 is "not a number".
    let nan = json!({"table": "holding", "address": next(2), "type": "raw", "value": [0x7fc0, 0]});
    add("nan".to_owned(), nan, "type = \"f32\"", Value::Null);
    cases
}

fn is_same(arrived: &Value, expected: &Value) -> bool {
    match (arrived.as_f64(), expected.as_f64()) {
        // Whole numbers to the last digit, real ones to what a sum in binary may cost.
        (Some(arrived), Some(wanted)) if expected.is_f64() => (arrived - wanted).abs() <= wanted.abs() * 1e-12,
        _ => arrived == expected,
    }
}

fn expect_cases(cases: &[Case], application: &mut Subscriber, device: &str) {
    let mut ids = BTreeSet::new();
    for case in cases {
        let message = application.wait_for_message(&format!("field/{device}/{}", case.name), |_| true);
        let reading = message.json();
        let name = &case.name;
        assert!(is_same(&reading["value"], &case.expected), "{name}: {reading}, expected {}", case.expected);
        let quality = if case.expected.is_null() { "bad" } else { "good" };
        assert_eq!(reading["quality"], quality, "{name}: {reading}");
        assert_eq!(reading["device"], device, "{name}: {reading}");
        assert_eq!(reading["point"], name.as_str(), "{name}: {reading}");
        assert_eq!(reading["unit"], if name == "scaled" { json!("°C") } else { Value::Null }, "{name}: {reading}");
        let id = reading["id"].as_str().unwrap();
        assert_eq!(message.id.as_deref(), Some(id), "one message, one id");
        assert!(ids.insert(id.to_owned()), "{name}: an id was given twice");
        assert!(milliseconds(&reading) > 0);
    }
}

/// The time of a reading, from `2026-11-23T09:20:00.123Z`, in milliseconds of its day.
fn milliseconds(reading: &Value) -> i64 {
    let text = reading["ts"].as_str().unwrap();
    let clock = text.split_once('T').and_then(|(_, clock)| clock.strip_suffix('Z'));
    let clock = clock.unwrap_or_else(|| panic!("no RFC 3339 time in UTC: {text}"));
    let parts: Vec<&str> = clock.split([':', '.']).collect();
    let [hours, minutes, seconds, fraction] = parts[..] else { panic!("{text}") };
    assert_eq!(fraction.len(), 3, "{text}");
    let number = |part: &str| part.parse::<i64>().unwrap();
    ((number(hours) * 60 + number(minutes)) * 60 + number(seconds)) * 1000 + number(fraction)
}

fn device(name: &str, line: &str, more: &str, cases: &[Case]) -> String {
    let mut text =
        format!("[modbus.{name}]\nline = \"{line}\"\nunit_id = 1\npoll = \"1s\"\n{more}\n[modbus.{name}.point]\n");
    for case in cases {
        writeln!(text, "{}", case.config).unwrap();
    }
    text
}

fn units(cases: &[Case]) -> Value {
    let cells: Vec<&Value> = cases.iter().map(|case| &case.cell).collect();
    json!({"1": {"fill": true, "cells": cells}})
}

#[test]
fn readings_of_every_type_and_order_arrive_with_the_right_value_over_tcp() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    let cases = cases();
    let server = ModbusServer::on_tcp(&units(&cases));
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + &device("chiller", &format!("tcp://127.0.0.1:{}", server.port), "", &cases);
    let gateway = Gateway::started(folder.path(), &tables);
    expect_cases(&cases, &mut application, "chiller");
    gateway.wait_for_status("the device is degraded by its one bad point", |status| {
        let device = &status["devices"]["chiller"];
        (device["state"] == "degraded" && device["last_good"].is_string()).then_some(())
    });
}

#[test]
fn readings_of_every_type_and_order_arrive_with_the_right_value_over_a_serial_line() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    let cases = cases();
    let cable = Cable::laid(folder.path());
    let _server = ModbusServer::on_serial(&cable.far, &units(&cases));
    let line = format!("[line.bus]\nport = \"{}\"\nbaud = 19200\nmode = \"8N1\"\n", cable.near.display());
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + &line + &device("meter", "bus", "", &cases);
    let _gateway = Gateway::started(folder.path(), &tables);
    expect_cases(&cases, &mut application, "meter");
}

#[test]
fn readings_arrive_with_the_right_value_over_rtu_in_tcp() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    let cases = cases();
    let server = ModbusServer::on_rtu_over_tcp(&units(&cases));
    let line = format!("rtu-tcp://127.0.0.1:{}", server.port);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + &device("converter", &line, "", &cases);
    let _gateway = Gateway::started(folder.path(), &tables);
    expect_cases(&cases, &mut application, "converter");
}

#[test]
fn a_dead_unit_is_told_once_and_does_not_delay_its_neighbours_on_the_line() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    let cell = json!([{"table": "holding", "address": 0, "type": "u16", "value": 7}]);
    let cable = Cable::laid(folder.path());
    let _server = ModbusServer::on_serial(&cable.far, &json!({"1": {"cells": cell}, "3": {"cells": cell}}));
    let mut tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + &format!(
            "[line.bus]\nport = \"{}\"\nbaud = 19200\nmode = \"8N1\"\ntimeout = \"400ms\"\n",
            cable.near.display()
        );
    for unit in 1..=3 {
        write!(
            tables,
            "[modbus.m{unit}]\nline = \"bus\"\nunit_id = {unit}\npoll = \"500ms\"\n[modbus.m{unit}.point]\nlevel = {{ address = \"holding:0\", type = \"u16\" }}\n"
        )
        .unwrap();
    }
    let gateway = Gateway::started(folder.path(), &tables);
    application.wait_for_count("field/m1/level", 30);
    application.wait_for_count("field/m3/level", 28);

    for neighbour in ["field/m1/level", "field/m3/level"] {
        let times: Vec<i64> =
            application.received_on(neighbour).iter().map(|message| milliseconds(&message.json())).collect();
        let mut gaps: Vec<i64> = times.windows(2).map(|pair| (pair[1] - pair[0]).rem_euclid(86_400_000)).collect();
        let total: i64 = gaps.iter().sum();
        let mean = total / i64::try_from(gaps.len()).unwrap();
        gaps.sort_unstable();
        let median = gaps[gaps.len() / 2];
        // A probe of the dead unit costs its timeout once in a while: one late reading, never a lower rate.
        assert!((450..=560).contains(&median), "{neighbour}: median interval {median} ms, all {gaps:?}");
        assert!(mean <= 650, "{neighbour}: mean interval {mean} ms, all {gaps:?}");
        assert!(*gaps.last().unwrap() <= 3000, "{neighbour}: longest interval, all {gaps:?}");
    }
    let of_dead = application.received_on("field/m2/level");
    let told: Vec<Value> = of_dead.iter().map(Received::json).collect();
    assert_eq!(told.len(), 1, "a dead point is told once, then at its heartbeat: {told:?}");
    assert_eq!(told[0]["quality"], "bad");
    assert_eq!(told[0]["value"], Value::Null);
    assert!(told[0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{}", told[0]);
    let state = gateway.wait_for_status("the states of the devices are known", |status| {
        let state = |name: &str| status["devices"][name]["state"].as_str().map(str::to_owned);
        Some([state("m1")?, state("m2")?, state("m3")?])
    });
    assert_eq!(state, ["good", "dead", "good"]);
}

#[test]
fn a_point_that_the_device_refuses_is_bad_alone_and_gaps_between_points_are_not_read_by_force() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    // Addresses between the cells do not exist: a request over them is refused as a whole.
    let cells = json!([
        {"table": "holding", "address": 0, "type": "u16", "value": 1},
        {"table": "holding", "address": 2, "type": "u16", "value": 2},
        {"table": "holding", "address": 9, "type": "u16", "value": 3},
    ]);
    let server = ModbusServer::on_tcp(&json!({"1": {"cells": cells}}));
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + &format!(
            "[modbus.plc]\nline = \"tcp://127.0.0.1:{}\"\nunit_id = 1\npoll = \"300ms\"\n[modbus.plc.point]\n",
            server.port
        )
        + "a = { address = \"holding:0\", type = \"u16\" }\nb = { address = \"holding:2\", type = \"u16\" }\n"
        + "absent = { address = \"holding:5\", type = \"u16\" }\nc = { address = \"holding:9\", type = \"u16\" }\n";
    let gateway = Gateway::started(folder.path(), &tables);
    for (point, value) in [("a", 1), ("b", 2), ("c", 3)] {
        application.wait_for_message(&format!("field/plc/{point}"), |message| message.json()["value"] == json!(value));
    }
    let bad = application.wait_for_message("field/plc/absent", |message| message.json()["quality"] == "bad");
    assert!(bad.json()["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    gateway.wait_for_status("the device answers, but not for all", |status| {
        (status["devices"]["plc"]["state"] == "degraded").then_some(())
    });
}

#[test]
fn a_device_that_comes_back_is_read_again() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    let cable = Cable::laid(folder.path());
    let cells = |value: u16| json!({"1": {"cells": [{"table": "input", "address": 0, "type": "u16", "value": value}]}});
    let mut server = ModbusServer::on_serial(&cable.far, &cells(1));
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + &format!(
            "[line.bus]\nport = \"{}\"\nbaud = 19200\nmode = \"8N1\"\ntimeout = \"200ms\"\n",
            cable.near.display()
        )
        + "[modbus.meter]\nline = \"bus\"\nunit_id = 1\npoll = \"200ms\"\n[modbus.meter.point]\nlevel = { address = \"input:0\", type = \"u16\" }\n";
    let gateway = Gateway::started(folder.path(), &tables);
    application.wait_for_message("field/meter/level", |message| message.json()["value"] == 1);
    server.kill();
    application.wait_for_message("field/meter/level", |message| message.json()["quality"] == "bad");
    wait_for(PATIENCE, "the device is called dead", || {
        gateway.status().is_ok_and(|status| status["devices"]["meter"]["state"] == "dead")
    });
    let _server = ModbusServer::on_serial(&cable.far, &cells(2));
    application.wait_for_message("field/meter/level", |message| message.json()["value"] == 2);
    let numbers: Vec<u64> = application
        .received_on("field/meter/level")
        .iter()
        .map(|message| message.json()["seq"].as_u64().unwrap())
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "seq counts without holes: {numbers:?}");
}
