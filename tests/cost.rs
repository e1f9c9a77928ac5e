//! What does a reading cost on its way up: in units of 5 KB that a cloud bills, and in bytes of IP on a metered link?
//!
//! Eighteen of the demo's meters, each polled twice a second, make 72 readings a second. The gateway sends them by `link =
//! "metered"`; a Mosquitto that gets the same readings from its broker sends them by its bridge, one JSON object each, at
//! QoS 1. Both go over loopback in a network namespace of the test's own, with packets as long as Ethernet's and no longer,
//! where `nft` counts every byte of IP that belongs to either connection, both ways. What the gateway sent is then decoded
//! by Python and cbor2, and written again in every form.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::cloud::{Access, Mosquitto};
use common::gateway::{Gateway, ID, PROGRAM, folder, uplink};
use common::namespace::{self, run};
use common::peers::{mosquitto_sub, script};
use common::process::Process;
use common::{PATIENCE, port, turn, wait_for, wait_until};
use serde_json::{Value as Json, json};
use tidegate::clock::Timing;
use tidegate::config::{Compression, Form, Frame, Payload, PayloadTemplate};
use tidegate::message::{ClockState, MessageId, Quality, Reading, Stamp, Topic, Value};
use tidegate::payload::{self, Outgoing};

/// What AWS IoT Core bills as one message.
const UNIT_BYTES: usize = 5 * 1024;

const READINGS_PER_S: f64 = 72.0;

/// What is counted before it is taken for a month.
const COUNTED: Duration = Duration::from_secs(25);

/// In its namespace, where every byte is counted.
fn is_inside(name: &str) -> bool {
    let is_inside = namespace::is_inside(name);
    if is_inside {
        // Else loopback passes on five packets as one, and four headers are not counted.
        run("ip", &["link", "set", "lo", "mtu", "1500", "gso_max_segs", "1"]);
        run("nft", &["add", "table", "inet", "count"]);
        run("nft", &["add", "chain", "inet", "count", "out", "{ type filter hook output priority 0; }"]);
    }
    is_inside
}

/// Counts what goes from and to a port.
fn count(port: u16) {
    let rule = format!("add rule inet count out tcp dport {port} counter comment \"to{port}\"");
    run("nft", &[&rule]);
    run("nft", &[&format!("add rule inet count out tcp sport {port} counter comment \"from{port}\"")]);
}

/// Bytes of IP so far, both ways.
fn counted(port: u16) -> u64 {
    let listing: Json = serde_json::from_str(&run("nft", &["-j", "list", "chain", "inet", "count", "out"])).unwrap();
    let rules = listing["nftables"].as_array().unwrap().iter().filter_map(|one| one.get("rule"));
    let of_port = rules.filter(|rule| {
        let comment = rule["comment"].as_str().unwrap_or_default();
        comment == format!("to{port}") || comment == format!("from{port}")
    });
    of_port
        .map(|rule| rule["expr"].as_array().unwrap().iter().find_map(|one| one["counter"]["bytes"].as_u64()).unwrap())
        .sum()
}

/// One line in, one line out.
struct Decoder(Process, usize);

impl Decoder {
    fn started() -> Decoder {
        Decoder(script::<&str>("payloads", &[]), 0)
    }

    fn readings(&mut self, form: &str, is_gzip: bool, hex: &str) -> Vec<Json> {
        self.0.tell(&json!({"form": form, "gzip": is_gzip, "hex": hex, "gateway": ID}).to_string());
        let (process, seen) = (&mut self.0, &mut self.1);
        wait_for(PATIENCE, "a payload is decoded", || {
            assert!(process.status().is_none(), "{form}: {}", process.stderr().join("\n"));
            process.stdout().len() > *seen
        });
        let line = process.stdout_from(*seen).swap_remove(0);
        *seen += 1;
        serde_json::from_str::<Json>(&line).unwrap()["readings"].as_array().unwrap().clone()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was decoded, as the gateway has it.
struct Kept {
    reading: Reading,
    id: MessageId,
    topic: Topic,
}

impl Kept {
    fn new(json: &Json) -> Kept {
        let mut words = json["name"].as_str().unwrap().rsplit('/');
        let (point, device) = (words.next().unwrap(), words.next().unwrap());
        let value = match &json["value"] {
            Json::Null => Value::Null,
            number if number.is_u64() => Value::Uint(number.as_u64().unwrap()),
            number => Value::Float(number.as_f64().unwrap()),
        };
        let stamp = Stamp { wall_ms: json["ms"].as_i64().unwrap(), mono_ms: 0, clock: ClockState::Synced };
        let reading = Reading {
            device: Arc::from(device),
            point: Arc::from(point),
            value,
            unit: json["unit"].as_str().map(Arc::from),
            quality: Quality::Good,
            reason: None,
            seq: json["seq"].as_u64().unwrap(),
            stamp,
        };
        let topic = Topic::new(&format!("field/{device}/{point}")).unwrap();
        Kept { reading, id: json["id"].as_str().unwrap().parse().unwrap(), topic }
    }

    fn outgoing(&self) -> Outgoing<'_> {
        Outgoing { reading: &self.reading, id: &self.id, timing: Timing::Stamped, topic: &self.topic }
    }
}

fn forms() -> [(&'static str, Form); 5] {
    let frame = Some(Frame { begin: "[".to_owned(), between: ",".to_owned(), end: "]".to_owned() });
    let template = r#"{"ts":{ts_ms},"values":{"{device}/{point}":{value}}}"#;
    let template = Form::Template(Arc::new(PayloadTemplate::parse(template, frame).unwrap()));
    [
        ("json-batch", Form::JsonBatch),
        ("json-device", Form::JsonDevice),
        ("line-protocol", Form::LineProtocol),
        ("senml-cbor", Form::SenmlCbor),
        ("template", template),
    ]
}

/// How many of the first readings fit into one unit.
fn in_a_unit(payload: &Payload, all: &[Outgoing<'_>]) -> usize {
    let (mut fits, mut too_many) = (1, all.len() + 1);
    while too_many - fits > 1 {
        let middle = usize::midpoint(fits, too_many);
        if payload::encode(payload, &all[..middle]).len() <= UNIT_BYTES { fits = middle } else { too_many = middle }
    }
    assert!(fits < all.len(), "{fits} readings are too few to fill a unit");
    fits
}

/// Every form says the same readings to a program that does not know ours.
fn decode_every_form(decoder: &mut Decoder, kept: &[Kept]) {
    let all: Vec<Outgoing<'_>> = kept.iter().map(Kept::outgoing).collect();
    for (name, form) in forms() {
        for compression in [Compression::None, Compression::Gzip] {
            let payload = Payload { form: form.clone(), compression };
            let polls: Vec<&[Outgoing<'_>]> = match form {
                Form::JsonDevice => all[..200].chunk_by(|a, b| payload::json_device::is_kin(*a, *b, 400)).collect(),
                _ => vec![&all[..200]],
            };
            let mut found: Vec<Json> = Vec::new();
            for poll in polls {
                let encoded = hex(&payload::encode(&payload, poll));
                found.extend(decoder.readings(name, compression == Compression::Gzip, &encoded));
            }
            assert_eq!(found.len(), 200, "{name}");
            // Lines have their points in the order of names.
            let key = |json: &Json| (json["ms"].as_i64().unwrap(), json["name"].as_str().unwrap().to_owned());
            found.sort_by_key(key);
            let mut expected: Vec<&Kept> = kept[..200].iter().collect();
            expected.sort_by_key(|kept| {
                (kept.reading.stamp.wall_ms, format!("{ID}/{}/{}", kept.reading.device, kept.reading.point))
            });
            for (json, kept) in found.iter().zip(expected) {
                let Reading { device, point, value, stamp, seq, unit, .. } = &kept.reading;
                assert_eq!(
                    (&json["name"], &json["ms"]),
                    (&json!(format!("{ID}/{device}/{point}")), &json!(stamp.wall_ms)),
                    "{name}"
                );
                match value {
                    Value::Uint(value) => assert_eq!(json["value"].as_f64(), Some(*value as f64), "{name}"),
                    Value::Float(value) => assert_eq!(json["value"].as_f64(), Some(*value), "{name}"),
                    other => panic!("{other:?}"),
                }
                if name == "line-protocol" || name == "template" {
                    continue;
                }
                assert_eq!((&json["id"], &json["seq"]), (&json!(kept.id.to_string()), &json!(seq)), "{name}");
                let unit = unit.as_deref().map(|unit| if name == "senml-cbor" && unit == "°C" { "Cel" } else { unit });
                assert_eq!(json["unit"].as_str(), unit, "{name}");
            }
        }
    }
}

#[test]
fn a_metered_link_costs_less_than_half_of_mosquittos_bridge_and_a_unit_holds_150_readings() {
    if !is_inside("a_metered_link_costs_less_than_half_of_mosquittos_bridge_and_a_unit_holds_150_readings") {
        return;
    }
    let _turn = turn();
    let folder = folder();
    let meters_port = port::free();
    let listen = format!("127.0.0.1:{meters_port}");
    let _meters = Process::start("meters", PROGRAM, &["simulate", "modbus", "--listen", &listen, "--units", "1-18"]);

    // Applications have a port of their own, so that they are not counted.
    let (ours, theirs) = (port::free(), port::free());
    let mut cloud = Mosquitto::prepared(&folder.path().join("a"), Access::Open);
    cloud.configure(&format!("listener {ours} 127.0.0.1"));
    cloud.start();
    let mut other_cloud = Mosquitto::prepared(&folder.path().join("b"), Access::Open);
    other_cloud.configure(&format!("listener {theirs} 127.0.0.1"));
    other_cloud.start();
    count(ours);
    count(theirs);
    let (batches_port, singles_port) = (cloud.port.to_string(), other_cloud.port.to_string());
    let topic = format!("field/{ID}");
    let batches = mosquitto_sub(cloud.port, &["-p", &batches_port, "-q", "1", "-t", &topic, "-F", "%t %x"]);
    let singles = mosquitto_sub(other_cloud.port, &["-p", &singles_port, "-q", "1", "-t", "field/#", "-F", "%t %l"]);
    let lines = |process: &Process| -> Vec<String> {
        process.stdout().into_iter().filter(|line| line.starts_with("field/")).collect()
    };

    let meters: String = (1..=18)
        .map(|unit| format!("[modbus.meter-{unit}]\nline = \"meters\"\nunit_id = {unit}\nmodel = \"meter\"\n"))
        .collect();
    let tables = uplink(&format!("mqtt://127.0.0.1:{ours}"), "link = \"metered\"\n")
        + &format!(
            "[line.meters]\nurl = \"tcp://{listen}\"\n[model.meter]\npoll = \"500ms\"\n[model.meter.point]\n\
             temperature = {{ address = \"holding:2\", type = \"f32\", unit = \"°C\" }}\n\
             energy = {{ address = \"holding:4\", type = \"u32\", unit = \"Wh\" }}\n{meters}"
        );
    let gateway = Gateway::started(folder.path(), &tables);
    let mut bridge = Mosquitto::prepared(&folder.path().join("c"), Access::Open);
    bridge.configure(&format!(
        "connection plant\naddress 127.0.0.1:{}\ntry_private false\nnotifications false\ntopic field/# in 1\nconnection cloud\naddress 127.0.0.1:{theirs}\ntopic field/# out 1",
        gateway.port
    ));
    bridge.start();

    let moment = || (lines(&batches).len(), lines(&singles).len(), counted(ours), counted(theirs));
    wait_for(PATIENCE, "both ways are in use", || lines(&batches).len() > 1 && lines(&singles).len() > 200);
    let seen = lines(&batches).len();
    wait_for(PATIENCE, "a batch comes", || lines(&batches).len() > seen);
    let began = tokio::time::Instant::now();
    let before = moment();
    let after = wait_until(PATIENCE, "enough is counted", || {
        let now = moment();
        let is_at_end = began.elapsed() >= COUNTED && now.0 > before.0;
        // The moment at which a batch has just come, as at the beginning.
        if is_at_end { Ok(now) } else { Err(format!("{now:?}")) }
    });

    let mut decoder = Decoder::started();
    let received = lines(&batches);
    let mut kept = Vec::new();
    let mut counted_readings = 0;
    for (place, line) in received.iter().enumerate() {
        let hex = line.split_once(' ').unwrap().1;
        let readings = decoder.readings("json-batch", true, hex);
        assert!(hex.len() / 2 <= UNIT_BYTES);
        if (before.0..after.0).contains(&place) {
            counted_readings += readings.len();
        }
        kept.extend(readings.iter().map(Kept::new));
    }
    let all: Vec<Outgoing<'_>> = kept.iter().map(Kept::outgoing).collect();
    let singles_counted = after.1 - before.1;
    let month = |bytes: u64, readings: usize| bytes as f64 / readings as f64 * READINGS_PER_S * 30.0 * 86_400.0 / 1e6;
    let (metered, bridged) = (month(after.2 - before.2, counted_readings), month(after.3 - before.3, singles_counted));
    println!("figure: {counted_readings} readings by a metered link: {metered:.0} MB of IP a month at 72 readings/s");
    println!(
        "figure: {singles_counted} readings by Mosquitto's bridge, one JSON each: {bridged:.0} MB a month, {:.3} of it",
        metered / bridged
    );

    decode_every_form(&mut decoder, &kept);

    let mut listed: Vec<Json> = Vec::new();
    for one in &kept {
        let value = match &one.reading.value {
            Value::Uint(value) => json!(value),
            Value::Float(value) => json!(value),
            _ => continue,
        };
        let name = format!("{ID}/{}/{}", one.reading.device, one.reading.point);
        listed.push(json!({"name": name, "value": value, "ms": one.reading.stamp.wall_ms}));
    }
    let mut sparkplug = script::<&str>("sparkplug", &[]);
    sparkplug.tell(&Json::from(listed).to_string());
    sparkplug.close_stdin();
    let line = sparkplug.wait_for_line(PATIENCE, "Sparkplug's size", |line| line.starts_with('{'));
    let sparkplug: Json = serde_json::from_str(&line).unwrap();

    println!("figure: form                  readings in 5 KB   bytes each");
    let say = |name: &str, count: usize, bytes: f64| println!("figure: {name:<24} {count:>12} {bytes:>12.1}");
    let single = payload::encode(&Payload::JSON, &all[..1]).len();
    say("json, one each", 1, single as f64);
    say(
        "Sparkplug B, each poll",
        sparkplug["of_a_poll"].as_f64().unwrap().round() as usize,
        sparkplug["poll"].as_f64().unwrap(),
    );
    let full = sparkplug["full_count"].as_u64().unwrap() as usize;
    say("Sparkplug B, filled up", full, UNIT_BYTES as f64 / full as f64);
    let mut best = 0;
    for (name, form) in forms().into_iter().filter(|(_, form)| *form != Form::JsonDevice) {
        for compression in [Compression::None, Compression::Gzip] {
            let payload = Payload { form: form.clone(), compression };
            let count = in_a_unit(&payload, &all);
            let label = if compression == Compression::Gzip { format!("{name} + gzip") } else { name.to_owned() };
            say(&label, count, UNIT_BYTES as f64 / count as f64);
            best = best.max(count);
            if compression == Compression::Gzip {
                assert!(count >= 150, "{label}: {count} readings in a unit");
            }
        }
    }
    assert!(best >= full, "Sparkplug B holds more");
    assert!(metered <= bridged / 2.0, "a metered link costs {metered:.0} MB, the bridge {bridged:.0} MB");
}
