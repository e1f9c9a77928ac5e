//! Writes from a local client to devices: exactly the right registers, one answer each, whatever the device does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;
mod writes_support;

use std::process::Command;
use std::time::Duration;

use common::cloud::Mosquitto;
use common::gateway::{Gateway, PROGRAM, folder, uplink};
use common::peers::{Cable, ModbusServer};
use common::{PATIENCE, turn, wait_until};
use serde_json::{Value, json};
use writes_support::{Asker, Device, Manner, is_write};

/// A point, what is asked for, the request in hex, and what is read back.
struct Case {
    config: &'static str,
    asked: Value,
    pdu: &'static str,
    read: Value,
}

/// Every kind of point, in orders that make a difference. Before them the registers hold what `fill` says: 0xA5A5 at 100.
fn cases() -> Vec<Case> {
    let case = |config, asked, pdu, read| Case { config, asked, pdu, read };
    vec![
        case("coil = { address = \"coil:3\", write = true }", json!(true), "050003ff00", json!(true)),
        case(
            "coils = { address = \"coil:4\", names = \"0=off; 1=on\", write = { function = 15 } }",
            json!("on"),
            "0f000400010101",
            json!("on"),
        ),
        case(
            "u16 = { address = \"holding:10\", type = \"u16\", write = true }",
            json!(65_534),
            "06000afffe",
            json!(65_534),
        ),
        case(
            "u16_by_16 = { address = \"holding:11\", type = \"u16\", write = { function = 16 } }",
            json!(513),
            "10000b0001020201",
            json!(513),
        ),
        case(
            "i16 = { address = \"holding:12\", type = \"i16\", order = \"badc\", write = true }",
            json!(-2),
            "06000cfeff",
            json!(-2),
        ),
        case(
            "u32 = { address = \"holding:13\", type = \"u32\", order = \"cdab\", write = true }",
            json!(0x0102_0304),
            "10000d00020403040102",
            json!(0x0102_0304),
        ),
        case(
            "i64 = { address = \"holding:15\", type = \"i64\", order = \"dcba\", write = true }",
            json!(-2),
            "10000f000408feffffffffffffff",
            json!(-2),
        ),
        case(
            "f32 = { address = \"holding:19\", type = \"f32\", write = true }",
            json!(21.5),
            "10001300020441ac0000",
            json!(21.5),
        ),
        case(
            "f64 = { address = \"holding:21\", type = \"f64\", write = true }",
            json!(-2.5),
            "100015000408c004000000000000",
            json!(-2.5),
        ),
        case(
            "setpoint = { address = \"holding:25\", type = \"i16\", scale = 0.1, offset = -40, write = { min = -20, max = 30 } }",
            json!(21.5),
            "0600190267",
            json!(21.5),
        ),
        case(
            "mode = { address = \"holding:26\", type = \"u16\", names = \"0=off; 2=auto\", write = true }",
            json!("auto"),
            "06001a0002",
            json!("auto"),
        ),
        case(
            "plate = { address = \"holding:27\", type = \"string\", registers = 3, write = true }",
            json!("Tide"),
            "10001b000306546964650000",
            json!("Tide"),
        ),
        case("bit = { address = \"holding:100\", bit = 3, write = true }", json!(true), "060064a5ad", json!(true)),
        case(
            "part = { address = \"holding:101\", type = \"u16\", bits = \"4-7\", write = true }",
            json!(0),
            "060065a505",
            json!(0),
        ),
        case("byte = { address = \"holding:102\", type = \"u8\", write = true }", json!(17), "060066a511", json!(17)),
        case(
            "masked = { address = \"holding:103\", bit = 3, write = { function = 22 } }",
            json!(true),
            "160067fff70008",
            json!(true),
        ),
        case(
            "masked_off = { address = \"holding:100\", type = \"u16\", bits = \"8-15\", write = { function = 22 } }",
            json!(0x5A),
            "16006400ff5a00",
            json!(0x5A),
        ),
        case(
            "both = { address = \"holding:104\", type = \"u32\", order = \"cdab\", write = { function = 23 } }",
            json!(0x0102_0304),
            "1700680002006800020403040102",
            json!(0x0102_0304),
        ),
        case(
            "bcd = { address = \"holding:106\", type = \"bcd16\", write = true }",
            json!(1234),
            "06006a1234",
            json!(1234),
        ),
        case(
            "half = { address = \"holding:107\", type = \"f16\", write = true }",
            json!(21.3),
            "06006b4d53",
            json!(21.3),
        ),
        case(
            "row = { address = \"holding:110\", type = \"u16\", count = 3, write = true }",
            json!(7),
            "06006f0007",
            json!(7),
        ),
    ]
}

fn units() -> Value {
    let word =
        |address: u16, value: u16| json!({"table": "holding", "address": address, "type": "u16", "value": value});
    let mut cells = vec![word(100, 0xA5A5), word(101, 0xA5A5), word(102, 0xA5A5), word(120, 0)];
    cells.push(json!({"table": "coil", "address": 9, "value": false}));
    json!({"1": {"fill": true, "cells": cells}})
}

fn points(cases: &[Case]) -> String {
    cases.iter().map(|case| format!("{}\n", case.config)).collect()
}

fn writes_arrive_right(gateway: &Gateway, server: &ModbusServer, cases: &[Case]) {
    let mut asker = Asker::connected(gateway.port);
    for case in cases {
        // The second of three that follow each other.
        let name = case.config.split(' ').next().unwrap().replace("row", "row_1");
        let name = name.as_str();
        let answer = asker.asked(&format!("press/{name}"), &json!({"value": case.asked, "id": name}).to_string());
        assert_eq!(answer["ok"], true, "{name}: {answer}");
        assert_eq!((&answer["value"], &answer["written"]), (&case.read, &case.read), "{name}: {answer}");
        assert_eq!((&answer["id"], &answer["point"], &answer["device"]), (&json!(name), &json!(name), &json!("press")));
        assert!(answer.get("error").is_none() && answer["ts"].is_string() && answer["request"].is_string(), "{answer}");
    }
    let wanted: Vec<String> = cases.iter().map(|case| format!("1 {}", case.pdu)).collect();
    assert_eq!(server.writes(), wanted, "the device has got exactly this");
    assert_eq!(asker.rest(), 0, "one answer each");
    gateway.wait_for_status("all writes are counted", |status| {
        let writes = &status["devices"]["press"]["writes"];
        (writes["written"] == cases.len() && writes["failed"] == json!({})).then_some(())
    });
}

#[test]
fn writes_of_every_kind_reach_pymodbus_as_exactly_these_registers_over_tcp() {
    let _turn = turn();
    let (folder, cases) = (folder(), cases());
    let server = ModbusServer::on_tcp(&units());
    let tables = format!(
        "[modbus.press]\nline = \"tcp://127.0.0.1:{}\"\nunit_id = 1\npoll = \"500ms\"\n[modbus.press.point]\n{}",
        server.port,
        points(&cases)
    );
    let gateway = Gateway::started(folder.path(), &tables);
    writes_arrive_right(&gateway, &server, &cases);
}

#[test]
fn writes_of_every_kind_reach_pymodbus_as_exactly_these_registers_over_a_serial_line() {
    let _turn = turn();
    let (folder, cases) = (folder(), cases());
    let cable = Cable::laid(folder.path());
    let server = ModbusServer::on_serial(&cable.far, &units());
    let tables = format!(
        "[line.bus]\nport = \"{}\"\nbaud = 19200\nmode = \"8N1\"\n\
         [modbus.press]\nline = \"bus\"\nunit_id = 1\npoll = \"2s\"\n[modbus.press.point]\n{}",
        cable.near.display(),
        points(&cases)
    );
    let gateway = Gateway::started(folder.path(), &tables);
    writes_arrive_right(&gateway, &server, &cases);
}

#[test]
fn writes_of_every_kind_reach_pymodbus_as_exactly_these_registers_in_letters() {
    let _turn = turn();
    let (folder, cases) = (folder(), cases());
    let cable = Cable::laid(folder.path());
    let server = ModbusServer::on_serial_ascii(&cable.far, &units());
    let tables = format!(
        "[line.bus]\nport = \"{}\"\nbaud = 19200\nmode = \"7E1\"\nframing = \"ascii\"\n\
         [modbus.press]\nline = \"bus\"\nunit_id = 1\npoll = \"2s\"\n[modbus.press.point]\n{}",
        cable.near.display(),
        points(&cases)
    );
    let gateway = Gateway::started(folder.path(), &tables);
    writes_arrive_right(&gateway, &server, &cases);
}

/// A device `d` with a register `level` that may hold 0 to 1000, and others.
fn device(device: &Device, more: &str) -> String {
    format!(
        "[modbus.d]\nline = \"{}\"\nunit_id = 1\npoll = \"100ms\"\ntimeout = \"300ms\"\n[modbus.d.point]\n\
         level = {{ address = \"holding:1\", type = \"u16\", write = {{ min = 0, max = 1000, per_minute = 1000 }} }}\n\
         locked = {{ address = \"holding:2\", type = \"u16\" }}\n{more}",
        device.url()
    )
}

#[test]
fn what_may_not_be_written_is_answered_and_never_sent() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::started(Manner::Good);
    let more = "rare = { address = \"holding:3\", type = \"u16\", write = { per_minute = 2 } }\n\
                tenths = { address = \"holding:4\", type = \"u16\", scale = 0.1, write = true }\n";
    let gateway = Gateway::started(folder.path(), &device(&counterpart, more));
    let mut asker = Asker::connected(gateway.port);
    for (point, body, part) in [
        ("locked", "5", "does not say `write`"),
        ("level", "1001", "more than 1000"),
        ("level", "-1", "less than 0"),
        ("level", "1.5", "not a whole number"),
        ("level", "null", "not a number"),
        ("level", "\"5\"", "not a number"),
        ("level", "auto", "not JSON"),
        ("level", "{\"value\": 1, \"at\": 5}", "`at`"),
        ("tenths", "2.55", "between"),
        ("tenths", "6553.6", "hold"),
    ] {
        let answer = asker.asked(&format!("d/{point}"), body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(answer["ok"] == false && answer["reason"] == "refused" && error.contains(part), "{body}: {answer}");
        assert_eq!((&answer["value"], &answer["written"]), (&Value::Null, &Value::Null), "{answer}");
    }
    assert_eq!(counterpart.writes(), Vec::<Vec<u8>>::new());
    assert_eq!(asker.asked("d/rare", "1")["ok"], true);
    assert_eq!(asker.asked("d/rare", "2")["ok"], true);
    let third = asker.asked("d/rare", "3");
    assert!(third["error"].as_str().unwrap().contains("more than 2 writes in a minute"), "{third}");
    asker.ask_at_once("d/level", "7");
    assert_eq!(asker.answer("d/level")["ok"], true, "who asks at QoS 0 is answered too");
    assert_eq!(counterpart.writes().len(), 3);
    gateway.wait_for_status("refusals are counted by kind", |status| {
        let writes = &status["devices"]["d"]["writes"];
        let refused = json!({"not-writable": 1, "range": 3, "value": 4, "request": 2, "too-many": 1});
        (writes["refused"] == refused && writes["written"] == 3).then_some(())
    });
}

#[test]
fn what_a_device_makes_of_a_write_is_what_the_answer_says() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::started(Manner::Good);
    let more = "blind = { address = \"holding:300\", type = \"u16\", write = { readable = false } }\n";
    let gateway = Gateway::started(folder.path(), &device(&counterpart, more));
    let mut asker = Asker::connected(gateway.port);
    let mut value = 100;
    let mut ask = |manner: Manner, point: &str| {
        value += 1;
        counterpart.set(|state| {
            state.manner = manner;
            state.registers[1] = 0;
        });
        let answer = asker.asked(&format!("d/{point}"), &value.to_string());
        counterpart.set(|state| state.manner = Manner::Good);
        (answer, value)
    };
    let (answer, _) = ask(Manner::Refuses(3), "level");
    assert_eq!((&answer["ok"], &answer["reason"]), (&json!(false), &json!("failed")), "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("illegal data value (exception 3)"), "{answer}");
    let (answer, _) = ask(Manner::Clamps(50), "level");
    assert_eq!((&answer["ok"], &answer["reason"], &answer["value"]), (&json!(false), &json!("failed"), &json!(50)));
    for manner in [Manner::Silent(true), Manner::Late, Manner::Closes] {
        let (answer, value) = ask(manner, "level");
        assert_eq!((&answer["ok"], &answer["value"]), (&json!(true), &json!(value)), "{manner:?}: {answer}");
    }
    let (answer, _) = ask(Manner::Silent(false), "level");
    assert_eq!((&answer["ok"], &answer["reason"], &answer["value"]), (&json!(false), &json!("unknown"), &json!(0)));
    let (answer, _) = ask(Manner::Refuses(2), "blind");
    assert_eq!((&answer["ok"], &answer["reason"]), (&json!(false), &json!("failed")), "{answer}");
    let (answer, _) = ask(Manner::Silent(false), "blind");
    assert_eq!((&answer["ok"], &answer["reason"], &answer["value"]), (&json!(false), &json!("unknown"), &Value::Null));
    assert_eq!(counterpart.writes().len(), 8, "nothing is sent twice");
    let is_read_blind = |pdu: &Vec<u8>| !is_write(pdu) && pdu[1..3] == [1, 44];
    assert!(!counterpart.set(|state| state.requests.iter().any(is_read_blind)), "what cannot be read is not");
    gateway.wait_for_status("failures are counted by kind", |status| {
        let writes = &status["devices"]["d"]["writes"];
        let failed = json!({"exception-3": 1, "differs": 1, "exception-2": 1});
        (writes["failed"] == failed && writes["unknown"] == 2 && writes["written"] == 3).then_some(())
    });
}

#[test]
fn an_acknowledged_write_survives_a_kill_until_it_is_carried_out_once() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::prepared();
    let mut gateway = Gateway::started(folder.path(), &device(&counterpart, ""));
    // Nobody listens where the device should be.
    let mut asker = Asker::connected(gateway.port);
    asker.ask("d/level", "{\"value\": 41, \"id\": \"first\"}");
    asker.ask("d/level", "{\"value\": 42, \"id\": \"second\"}");
    gateway.kill();
    drop(asker);
    gateway.start();
    let mut asker = Asker::connected(gateway.port);
    counterpart.listen();
    let answers = [asker.answer("d/level"), asker.answer("d/level")];
    assert_eq!(answers.each_ref().map(|answer| answer["id"].clone()), [json!("first"), json!("second")]);
    assert_eq!(answers.each_ref().map(|answer| answer["ok"].clone()), [json!(true), json!(true)]);
    assert_eq!(counterpart.writes(), [vec![6, 0, 1, 0, 41], vec![6, 0, 1, 0, 42]]);
    gateway.kill();
    gateway.start();
    assert_eq!(Asker::connected(gateway.port).rest(), 0, "what was answered is forgotten");
    assert_eq!(counterpart.writes().len(), 2);
}

#[test]
fn a_gateway_that_is_stopped_in_order_carries_out_after_its_start_what_waits() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::prepared();
    let mut gateway = Gateway::started(folder.path(), &device(&counterpart, ""));
    Asker::connected(gateway.port).ask("d/level", "8");
    gateway.stop();
    counterpart.listen();
    gateway.start();
    gateway.wait_for_status("it is written", |status| (status["devices"]["d"]["writes"]["written"] == 1).then_some(()));
    assert_eq!(counterpart.writes(), [vec![6, 0, 1, 0, 8]]);
    gateway.stop();
}

/// Ends the gateway while the device has a write and has not answered it; the answer, before or after the next start, and
/// how often the device was asked to write.
fn ended_while_it_writes(point: &str, manner: Manner, end: fn(&mut Gateway)) -> (Value, usize) {
    let folder = folder();
    let counterpart = Device::started(manner);
    counterpart.set(|state| state.pause = Duration::from_millis(300));
    let more = "again = { address = \"holding:5\", type = \"u16\", write = { idempotent = true } }\n";
    // Whoever listens before the gateway has anything to say hears all of it.
    let cloud = Mosquitto::started(folder.path());
    let mut application = common::peers::Subscriber::started(cloud.port, "application", &["field/d/+/result"]);
    let tables =
        uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + &device(&counterpart, more).replace("300ms", "20s");
    let mut gateway = Gateway::started(folder.path(), &tables);
    let mut asker = Asker::connected(gateway.port);
    asker.ask(&format!("d/{point}"), "{\"value\": 77, \"id\": 5}");
    wait_until(PATIENCE, "the device is asked to write", || {
        if counterpart.writes().is_empty() { Err("it is not".to_owned()) } else { Ok(()) }
    });
    end(&mut gateway);
    drop(asker);
    counterpart.set(|state| state.manner = Manner::Good);
    gateway.start();
    application.wait_for_count(&format!("field/d/{point}/result"), 1);
    gateway.wait_until_drained();
    let received = application.received_on(&format!("field/d/{point}/result"));
    assert_eq!(received.len(), 1, "one answer, not {received:?}");
    (received[0].json(), counterpart.writes().len())
}

#[test]
fn a_write_that_had_begun_when_the_gateway_was_killed_is_told_as_unknown_and_not_repeated() {
    let _turn = turn();
    let (answer, writes) = ended_while_it_writes("level", Manner::Silent(false), Gateway::kill);
    assert_eq!((&answer["ok"], &answer["reason"], &answer["id"]), (&json!(false), &json!("unknown"), &json!(5)));
    assert_eq!((&answer["written"], writes), (&json!(77), 1));
}

#[test]
fn a_write_that_does_no_harm_twice_is_repeated_after_a_kill() {
    let _turn = turn();
    let (answer, writes) = ended_while_it_writes("again", Manner::Silent(false), Gateway::kill);
    assert_eq!((&answer["ok"], &answer["value"], writes), (&json!(true), &json!(77), 2), "{answer}");
}

#[test]
fn a_stop_in_order_lets_a_write_that_is_under_way_come_to_its_end() {
    let _turn = turn();
    let (answer, writes) = ended_while_it_writes("level", Manner::Good, Gateway::stop);
    assert_eq!((&answer["ok"], &answer["value"], writes), (&json!(true), &json!(77), 1), "{answer}");
}

#[test]
fn a_write_that_is_too_old_is_answered_and_never_carried_out_also_after_a_kill() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::prepared();
    let mut gateway = Gateway::started(folder.path(), &device(&counterpart, ""));
    let mut asker = Asker::connected(gateway.port);
    let answer = asker.asked("d/level", "{\"value\": 1, \"expires\": \"1s\"}");
    assert_eq!((&answer["ok"], &answer["reason"]), (&json!(false), &json!("expired")), "{answer}");
    asker.ask("d/level", "{\"value\": 2, \"expires\": 1.5}");
    gateway.kill();
    drop(asker);
    std::thread::sleep(Duration::from_millis(1600));
    counterpart.listen();
    gateway.start();
    gateway.wait_for_status("the old write has expired", |status| {
        (status["devices"]["d"]["writes"]["expired"] == 1).then_some(())
    });
    let mut asker = Asker::connected(gateway.port);
    assert_eq!(asker.asked("d/level", "3")["ok"], true);
    assert_eq!(counterpart.writes(), [vec![6, 0, 1, 0, 3]]);
}

#[test]
fn a_flood_of_writes_and_polls_that_are_always_due_take_turns() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::started(Manner::Good);
    counterpart.set(|state| state.pause = Duration::from_millis(15));
    // Two blocks, each due again before the other was read.
    let more = "far = { address = \"holding:150\", type = \"u16\" }\n";
    let tables = device(&counterpart, more).replace("100ms", "10ms");
    let gateway = Gateway::started(folder.path(), &tables);
    let mut asker = Asker::connected(gateway.port);
    let count = 40;
    for number in 0..count {
        asker.ask_at_once("d/level", &number.to_string());
    }
    let answers: Vec<Value> = (0..count).map(|_| asker.answer("d/level")).collect();
    let carried_out = answers.iter().filter(|answer| answer["ok"] == true).count();
    let refused = answers.iter().filter(|answer| answer["reason"] == "refused").count();
    assert_eq!(carried_out + refused, count, "{answers:?}");
    assert!(carried_out >= 20, "{carried_out} of {count}");
    // A write, reading it back, and a poll: nothing else in between, and never two writes without a poll.
    let turns: String = counterpart.set(|state| {
        let turn = |pdu: &Vec<u8>| match (is_write(pdu), &pdu[1..5]) {
            (true, _) => 'W',
            (false, [0, 1, 0, 1]) => 'V',
            _ => 'p',
        };
        state.requests.iter().map(turn).collect()
    });
    let (first, last) = (turns.find('W').unwrap(), turns.rfind('W').unwrap());
    let between: Vec<&str> = turns[first..=last].split('W').skip(1).collect();
    for gap in &between[..between.len() - 1] {
        assert!(gap.starts_with("Vp"), "what was written is read back, and a poll follows: {turns}");
    }
}

fn mosquitto(program: &str, port: u16, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(["-p", &port.to_string()]).args(arguments).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success() && !said.contains("ot authorized"), said)
}

#[test]
fn who_asks_by_version_5_is_answered_where_it_wants_and_who_may_not_ask_moves_nothing() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::started(Manner::Good);
    let rights =
        "[broker.anonymous]\npublish = [\"field/d/level/set\"]\nsubscribe = [\"answers/#\", \"field/+/+/result\"]\n";
    let more = "other = { address = \"holding:6\", type = \"u16\", write = true }\n";
    let gateway = Gateway::started(folder.path(), &(rights.to_owned() + &device(&counterpart, more)));
    let mut asker = Asker::connected(gateway.port);
    let request = ["-V", "5", "-q", "1", "-t", "field/d/level/set", "-m", "{\"value\": 12}", "-W", "30"];
    let (is_good, said) = mosquitto(
        "mosquitto_rr",
        gateway.port,
        &[&request[..], &["-e", "answers/rr", "-D", "publish", "correlation-data", "c7", "-F", "%D %p"]].concat(),
    );
    assert!(is_good && said.starts_with("c7 {"), "{said}");
    let response: Value = serde_json::from_str(said.trim_start_matches("c7 ").trim()).unwrap();
    assert_eq!((&response["ok"], &response["value"]), (&json!(true), &json!(12)));
    assert_eq!(asker.answer("d/level"), response, "the same answer stands on its usual topic");

    let publish = |topic: &str, more: &[&str]| {
        let words = [&["-V", "5", "-q", "1", "-t", topic, "-m", "13"], more].concat();
        mosquitto("mosquitto_pub", gateway.port, &words)
    };
    let (is_good, said) = publish("field/d/other/set", &[]);
    assert!(!is_good, "it may not publish there: {said}");
    let (is_good, said) = publish("field/d/level/set", &["-D", "publish", "response-topic", "plc/command"]);
    assert!(!is_good, "the gateway is not made to publish where the client may not even hear: {said}");
    assert_eq!(asker.rest(), 0);
    assert_eq!(counterpart.writes(), [vec![6, 0, 1, 0, 12]]);
}

#[test]
fn a_write_comes_from_the_cloud_through_the_same_topic_and_its_answer_goes_up() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::started(Manner::Good);
    let cloud = Mosquitto::started(folder.path());
    let mut application = common::peers::Subscriber::started(cloud.port, "application", &["up/field/d/+/result"]);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + "[[uplink.cloud.forward]]\nfilter = \"field/#\"\ntopic = \"up/{topic}\"\n"
        + "[[uplink.cloud.receive]]\nfilter = \"down/#\"\ntopic = \"{rest}\"\n"
        + &device(&counterpart, "");
    let gateway = Gateway::started(folder.path(), &tables);
    gateway.wait_until_connected();
    let (is_good, said) = mosquitto(
        "mosquitto_pub",
        cloud.port,
        &["-q", "1", "-t", "down/field/d/level/set", "-m", "{\"value\": 9, \"id\": \"c\"}"],
    );
    assert!(is_good, "{said}");
    let answer = application.wait_for_message("up/field/d/level/result", |_| true).json();
    assert_eq!((&answer["ok"], &answer["value"], &answer["id"]), (&json!(true), &json!(9), &json!("c")));
    assert_eq!(counterpart.writes(), [vec![6, 0, 1, 0, 9]]);
}

#[test]
fn a_table_of_points_that_may_be_written_reads_back_and_check_says_what_is_wrong_with_others() {
    let folder = folder();
    let path = folder.path().join("tidegate.toml");
    let state = folder.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    let head = format!("[gateway]\nid = \"g\"\nstate_dir = \"{}\"\n", state.display());
    let check = |text: &str, more: &[&str]| {
        std::fs::write(&path, format!("{head}{text}")).unwrap();
        let output = Command::new(PROGRAM).args(["check", "--config"]).arg(&path).args(more).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr))
    };
    let device = "[modbus.d]\nline = \"tcp://127.0.0.1:1502\"\nunit_id = 1\n";
    let table = "name,address,type,write\na,holding:1,u16,min=5; max=30; function=16; idempotent=true\n\
                 b,holding:2,i16,true\nc,holding:3,u16,\nd,holding:4,u16,per_minute=6; expiry=5s; readable=false; settle=500ms\n";
    std::fs::write(folder.path().join("points.csv"), table).unwrap();
    let (code, listed) = check(&format!("{device}points = \"points.csv\"\n"), &["--points"]);
    assert_eq!(code, Some(0), "{listed}");
    for row in
        ["min=5; max=30; function=16; idempotent=true", "b,holding:2,i16,abcd,true", "readable=false; settle=500ms"]
    {
        assert!(listed.contains(row), "{row} in {listed}");
    }
    for (point, problem) in [
        ("p = { address = \"input:1\", type = \"u16\", write = true }", "an input register cannot be written"),
        ("p = { address = \"discrete:1\", write = true }", "a discrete input cannot be written"),
        (
            "p = { address = \"holding:1\", type = \"u16\", write = { min = 5, max = 4 } }",
            "must not be less than `min`",
        ),
        ("p = { address = \"holding:1\", type = \"u32\", write = { function = 6 } }", "function 6 writes one register"),
        ("p = { address = \"coil:1\", write = { function = 16 } }", "a coil is written by function 5 or 15"),
        ("p = { address = \"holding:1\", type = \"u16\", write = { function = 22 } }", "function 22 changes some bits"),
        (
            "p = { address = \"holding:1\", type = \"u16\", write = { function = 23, readable = false } }",
            "function 23 reads what it has written",
        ),
        ("p = { address = \"holding:1\", bit = 1, write = { readable = false } }", "a part of a register"),
        (
            "p = { address = \"holding:1\", type = \"string\", registers = 124, write = true }",
            "124 registers are too many",
        ),
        ("p = { address = \"holding:1\", type = \"u16\", write = { mni = 5 } }", "did you mean `min`?"),
        ("p = { address = \"holding:1\", type = \"u16\", write = { expiry = \"0s\" } }", "out of range"),
        ("p = { address = \"holding:1\", type = \"bool\", write = { min = 0 } }", "`min` is for numbers"),
        ("p = { address = \"holding:1\", type = \"u16\", write = \"yes\" }", "is not how a point is written"),
    ] {
        let (code, said) = check(&format!("{device}[modbus.d.point]\n{point}\n"), &[]);
        assert!(code == Some(78) && said.contains(problem), "{point}: {said}");
    }
    let (code, said) = check(
        &format!(
            "{device}[modbus.d.point]\np = {{ address = \"holding:1\", type = \"u16\", write = \"readable=false\" }}\n"
        ),
        &[],
    );
    assert!(code == Some(0) && said.contains("nothing of `d` can be read"), "{said}");
    let twins = "topic = \"a/{point}\"\n[modbus.d.point]\np = { address = \"holding:1\", type = \"u16\", write = true }\n\
                 [modbus.e]\nline = \"tcp://127.0.0.1:1502\"\nunit_id = 2\ntopic = \"a/{point}\"\n[modbus.e.point]\n\
                 p = { address = \"holding:1\", type = \"u16\", write = true }\n";
    let (code, said) = check(&format!("{device}{twins}"), &[]);
    assert!(code == Some(78) && said.contains("both written on \"a/p/set\""), "{said}");
    let (code, said) = check(
        &format!(
            "{device}[modbus.d.point]\np = {{ address = \"holding:1\", type = \"u16\" }}\n[uplink.field]\nurl = \"mqtt://127.0.0.1\"\n"
        ),
        &[],
    );
    assert!(code == Some(78) && said.contains("cannot be called `field`"), "{said}");
}

#[test]
fn a_device_of_which_nothing_is_read_is_well_while_its_line_is_open() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::prepared();
    let tables = format!(
        "[modbus.d]\nline = \"{}\"\nunit_id = 1\ntimeout = \"300ms\"\n[modbus.d.point]\n\
         level = {{ address = \"holding:1\", type = \"u16\", write = {{ readable = false }} }}\n",
        counterpart.url()
    );
    let gateway = Gateway::started(folder.path(), &tables);
    let is = |state: &str| {
        gateway.wait_for_status(&format!("the device is {state}"), |status| {
            (status["devices"]["d"]["state"] == state).then_some(())
        });
    };
    is("dead");
    counterpart.listen();
    is("good");
    let mut asker = Asker::connected(gateway.port);
    assert_eq!(asker.asked("d/level", "5")["ok"], true);
    counterpart.set(|state| state.manner = Manner::Silent(false));
    assert_eq!(asker.asked("d/level", "6")["reason"], "unknown");
    assert_eq!(asker.asked("d/level", "7")["reason"], "unknown");
    is("dead");
    counterpart.set(|state| state.manner = Manner::Good);
    assert_eq!(asker.asked("d/level", "8")["ok"], true);
    is("good");
}

#[test]
fn a_restart_lets_nobody_write_more_often_than_the_owner_allows() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::started(Manner::Good);
    let more = "rare = { address = \"holding:3\", type = \"u16\", write = { per_minute = 2 } }\n\
                calm = { address = \"holding:4\", type = \"u16\", write = { per_minute = 2, idempotent = true } }\n";
    let mut gateway = Gateway::started(folder.path(), &device(&counterpart, more));
    for end in [Gateway::kill, Gateway::stop] {
        let mut asker = Asker::connected(gateway.port);
        assert_eq!(asker.asked("d/rare", "1")["ok"], true);
        assert_eq!(asker.asked("d/calm", "2")["ok"], true);
        end(&mut gateway);
        gateway.start();
    }
    let mut asker = Asker::connected(gateway.port);
    for point in ["d/rare", "d/calm"] {
        let third = asker.asked(point, "9");
        assert!(third["error"].as_str().unwrap_or_default().contains("more than 2 writes in a minute"), "{third}");
    }
    assert_eq!(asker.asked("d/level", "1")["ok"], true, "that of another point is another");
    assert_eq!(counterpart.writes().len(), 5);
}
