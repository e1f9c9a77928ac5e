//! Does what is acknowledged arrive by HTTP: at a webhook that answers with every kind of failure, at InfluxDB, at `/topics` of
//! AWS; over outages and kills, within what the server asks for?
//!
//! The webhook and `/topics` are a server of Python's standard library (`peers/http_server.py`), which checks signatures,
//! client certificates and repeats; InfluxDB is Debian's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use common::certificates::Certificates;
use common::faketime::WallClock;
use common::gateway::{Gateway, ID, folder};
use common::peers::{ModbusServer, Publisher, script};
use common::process::Process;
use common::{PATIENCE, port, turn, wait_for, wait_until};
use serde_json::{Value, json};

/// Four points of one meter, ten times a second: values 100 to 103.
fn meter() -> ModbusServer {
    let cells: Vec<Value> = (0..4)
        .map(|place| json!({"table": "holding", "address": place, "type": "u16", "value": 100 + place}))
        .collect();
    ModbusServer::on_tcp(&json!({"1": {"cells": cells}}))
}

fn device(meter: u16) -> String {
    let points: String =
        (0..4).map(|place| format!("level_{place} = {{ address = \"holding:{place}\", type = \"u16\" }}\n")).collect();
    format!(
        "[modbus.meter]\nline = \"tcp://127.0.0.1:{meter}\"\nunit_id = 1\npoll = \"100ms\"\n[modbus.meter.point]\n{points}"
    )
}

fn secret(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, format!("{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

struct Server(Process);

impl Server {
    fn started(port: u16, words: &[&str]) -> Server {
        let port = port.to_string();
        let words = [&["--port", port.as_str()], words].concat();
        let mut process = script("http_server", &words);
        process.wait_for_line(PATIENCE, "the server serves", |line| line.contains("serving"));
        Server(process)
    }

    fn requests(&self) -> Vec<Value> {
        let lines: Vec<Value> = self.0.stdout().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().all(|line| line.get("fault").is_none()), "{lines:?}");
        lines.into_iter().filter(|line| line.get("status").is_some()).collect()
    }

    /// What it answered with 200.
    fn taken(&self) -> Vec<Value> {
        self.requests().into_iter().filter(|request| request["status"] == 200).collect()
    }

    fn wait_for_taken(&self, count: usize) {
        wait_for(PATIENCE, "requests are taken", || self.taken().len() >= count);
    }
}

/// Each reading that came, by its number, with the key it came under; one that came twice came under one key.
fn readings(requests: &[Value]) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    for request in requests {
        let body: Value = serde_json::from_str(request["body"].as_str().unwrap()).unwrap();
        let key = request["key"].as_str().unwrap();
        let readings = body.as_array().unwrap();
        assert!(key.ends_with(&format!("+{}", readings.len())), "{key}");
        for reading in readings {
            let before = found.insert(reading["seq"].as_u64().unwrap(), key.to_owned());
            assert!(before.is_none_or(|before| before == key), "in two batches: {reading}");
        }
    }
    found
}

fn assert_no_hole(numbers: impl Iterator<Item = u64>) {
    let numbers: Vec<u64> = numbers.collect();
    let holes: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(holes.is_empty(), "missing between {holes:?}");
    assert_eq!(numbers[0], 1);
}

#[test]
fn a_webhook_gets_every_reading_once_whatever_it_answers_and_whenever_the_gateway_is_killed() {
    let _turn = turn();
    let folder = folder();
    let meter = meter();
    let port = port::free();
    let token = secret(folder.path(), "token", "let-me-in");
    let key = secret(folder.path(), "hmac", "shared");
    let tables = format!(
        "[uplink.hook]\nurl = \"http://127.0.0.1:{port}/in?plant=7\"\npassword_file = \"{token}\"\n\
         http = {{ hmac_key_file = \"{key}\", headers = [\"X-Tenant: 7\"], timeout = \"2s\" }}\n\
         reconnect = {{ first = \"50ms\", max = \"200ms\" }}\nown_topic = \"\"\n\
         [[uplink.hook.forward]]\nfilter = \"field/#\"\nqos = 2\ncompress = \"gzip\"\nbatch = {{ readings = 20, within = \"200ms\" }}\n"
    ) + &device(meter.port);
    let plan = json!([
        [503, {"Retry-After": "1"}],
        [429, {"Retry-After": "1"}],
        "close",
        [500, {}],
        [502, {}],
        [408, {}],
        [200, {}],
        "close",
        [409, {}]
    ]);
    let server = Server::started(port, &["--hmac-key", "shared", "--plan", &plan.to_string()]);
    let mut gateway = Gateway::started(folder.path(), &tables);
    server.wait_for_taken(6);
    let requests = server.requests();
    let at = |place: usize| requests[place]["at"].as_f64().unwrap();
    assert!(
        at(1) - at(0) >= 1.0 && at(2) - at(1) >= 1.0,
        "Retry-After is a second: {} {}",
        at(1) - at(0),
        at(2) - at(1)
    );
    assert_eq!(requests[0]["key"], requests[1]["key"], "a repeat has its key");

    for round in 1..=4 {
        gateway.kill();
        gateway.start();
        server.wait_for_taken(6 + 4 * round);
    }
    // An outage: the server is gone, the readings wait.
    let mut all = server.requests();
    drop(server);
    gateway.wait_for_status("fifty wait", |status| {
        (status["uplinks"]["hook"]["waiting"].as_u64() >= Some(50)).then_some(())
    });
    gateway.kill();
    let server = Server::started(port, &["--hmac-key", "shared"]);
    gateway.start();
    server.wait_for_taken(8);
    gateway.stop();
    all.extend(server.requests());

    for request in &all {
        assert_eq!(request["authorization"], "Bearer let-me-in");
        assert_eq!((&request["path"], &request["tenant"]), (&json!("/in?plant=7"), &json!("7")));
        assert_eq!((&request["type"], &request["topic"]), (&json!("application/json"), &json!("readings")));
    }
    // A receiver that heeds the key counts each once, though some came twice.
    all.retain(|request| request["status"] == 200);
    assert_no_hole(readings(&all).into_keys());
}

#[test]
fn what_a_webhook_refuses_costs_the_one_reading_and_a_wrong_token_costs_nothing() {
    let _turn = turn();
    let folder = folder();
    let meter = meter();
    let port = port::free();
    let token = secret(folder.path(), "token", "wrong");
    let tables = format!(
        "[uplink.hook]\nurl = \"http://127.0.0.1:{port}/in\"\npassword_file = \"{token}\"\nown_topic = \"\"\n\
         reconnect = {{ first = \"50ms\", max = \"200ms\" }}\n\
         [[uplink.hook.forward]]\nfilter = \"field/#\"\nbatch = {{ readings = 40, within = \"200ms\" }}\n\
         [[uplink.hook.forward]]\nfilter = \"plant/#\"\ntopic = \"{{topic}}\"\n"
    ) + &device(meter.port);
    // The first answer is "not logged in": an alarm, and the messages wait.
    let server = Server::started(port, &["--plan", "[[401, {}]]", "--refuse", "\"seq\":7,"]);
    let gateway = Gateway::started(folder.path(), &tables);
    let reason = gateway.wait_for_status("it is said why", |status| {
        let reason = status["uplinks"]["hook"]["reason"].as_str()?;
        reason.contains("401").then(|| reason.to_owned())
    });
    assert!(reason.contains("password_file"), "{reason}");
    // Whoever renews tokens puts the next one there.
    secret(folder.path(), "token", "right");
    // Other routes go on: a client's own message, as it came.
    let mut publisher = Publisher::started(gateway.port, "press", "plant/press", 5, &[]);
    publisher.wait_until_done();
    wait_until(PATIENCE, "they are taken", || {
        let raw = server.taken().iter().filter(|request| request["topic"] == "plant/press").count();
        if raw == 5 { Ok(()) } else { Err(raw.to_string()) }
    });
    let is_array = |request: &Value| request["topic"] == "readings";
    wait_for(PATIENCE, "readings are taken", || server.taken().iter().filter(|one| is_array(one)).count() > 10);
    let status = gateway.status().unwrap();
    assert_eq!(status["losses"]["rejected"], 1, "{status}");
    let taken: Vec<Value> = server.taken().into_iter().filter(is_array).collect();
    let numbers: Vec<u64> = readings(&taken).into_keys().collect();
    let expected: Vec<u64> = (1..=numbers[numbers.len() - 1]).filter(|number| *number != 7).collect();
    assert_eq!(numbers, expected, "all but the one that was refused");
    let all = server.requests();
    let shown: Vec<&Value> = all.iter().map(|request| &request["authorization"]).collect();
    assert_eq!((shown[0], shown[shown.len() - 1]), (&json!("Bearer wrong"), &json!("Bearer right")));
}

/// Debian's InfluxDB on ports of its own.
struct Influx {
    folder: std::path::PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Influx {
    fn prepared(folder: &Path) -> Influx {
        Influx { folder: folder.join("influx"), port: port::free(), process: None }
    }

    fn start(&mut self) {
        let folder = self.folder.display();
        fs::create_dir_all(&self.folder).unwrap();
        let text = format!(
            "reporting-disabled = true\nbind-address = \"127.0.0.1:{}\"\n[meta]\ndir = \"{folder}/meta\"\n\
             [data]\ndir = \"{folder}/data\"\nwal-dir = \"{folder}/wal\"\nquery-log-enabled = false\n\
             [monitor]\nstore-enabled = false\n[http]\nbind-address = \"127.0.0.1:{}\"\nlog-enabled = false\n",
            port::free(),
            self.port
        );
        let path = self.folder.join("influxdb.conf");
        fs::write(&path, text).unwrap();
        let words = [std::ffi::OsStr::new("-config"), path.as_os_str()];
        self.process = Some(Process::start("influxd", "influxd", &words));
        wait_until(PATIENCE, "InfluxDB answers", || self.ask("GET", "/ping", "").map(drop));
    }

    fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(rustix::process::Signal::TERM);
        process.wait(PATIENCE);
    }

    fn ask(&self, method: &str, target: &str, body: &str) -> Result<String, String> {
        let mut tcp = TcpStream::connect(("127.0.0.1", self.port)).map_err(|error| error.to_string())?;
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let length = body.len();
        let request =
            format!("{method} {target} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
        tcp.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        if head.contains(" 200 ") || head.contains(" 204 ") { Ok(body.to_owned()) } else { Err(answer) }
    }

    /// The rows of a query.
    fn rows(&self, query: &str) -> Vec<Vec<Value>> {
        let query = query.replace(' ', "%20").replace('"', "%22");
        let answer = self.ask("GET", &format!("/query?db=plant&epoch=ms&q={query}"), "").unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let rows = answer["results"][0]["series"][0]["values"].as_array().cloned().unwrap_or_default();
        rows.into_iter().map(|row| row.as_array().unwrap().clone()).collect()
    }

    fn count(&self, field: &str) -> u64 {
        let rows = self.rows(&format!("SELECT COUNT(\"{field}\") FROM \"meter\""));
        rows.first().map_or(0, |row| row[1].as_u64().unwrap())
    }
}

#[test]
fn influxdb_has_every_reading_after_an_outage_and_a_kill_and_a_line_that_it_refuses_takes_no_other_with_it() {
    let _turn = turn();
    let folder = folder();
    let meter = meter();
    let mut influx = Influx::prepared(folder.path());
    influx.start();
    influx.ask("POST", "/query?q=CREATE%20DATABASE%20plant", "").unwrap();
    // A field of this name that is a text already: the meter's numbers are refused, with a partial 400.
    influx.ask("POST", "/write?db=plant", "meter,gateway=other level_3=\"a text\" 1795425600123000000").unwrap();
    let tables = format!(
        "[uplink.influx]\nurl = \"http://127.0.0.1:{}/write?db=plant\"\nprofile = \"influxdb\"\n\
         reconnect = {{ first = \"50ms\", max = \"200ms\" }}\n\
         [[uplink.influx.forward]]\nfilter = \"field/#\"\nbatch = {{ readings = 40, within = \"200ms\" }}\n",
        influx.port
    ) + &device(meter.port);
    let mut gateway = Gateway::started(folder.path(), &tables);
    wait_for(PATIENCE, "points are there", || influx.count("level_0") > 20);
    influx.stop();
    gateway.wait_for_status("a hundred wait", |status| {
        (status["uplinks"]["influx"]["waiting"].as_u64() >= Some(100)).then_some(())
    });
    gateway.kill();
    influx.start();
    gateway.start();
    let before = influx.count("level_0");
    wait_for(PATIENCE, "more points are there", || influx.count("level_0") > before + 60);
    drop(meter);
    gateway.wait_for_status("all is there", |status| {
        (status["uplinks"]["influx"]["waiting"] == 0 && status["devices"]["meter"]["state"] != "good").then_some(())
    });

    let status = gateway.status().unwrap();
    let refused = status["losses"]["rejected"].as_u64().unwrap_or(0);
    let counts: Vec<u64> = (0..3).map(|place| influx.count(&format!("level_{place}"))).collect();
    assert!(counts.iter().all(|count| *count > 80), "{counts:?}");
    // Every poll has four points; of each that came in, three are at the database and the fourth was refused.
    assert!(counts.iter().all(|count| count.abs_diff(refused) <= 2), "{counts:?}, {refused} refused");
    let rows = influx.rows("SELECT \"level_0\" FROM \"meter\" WHERE gateway = 'hall-3'".replace('\'', "%27").as_str());
    assert_eq!(ID, "hall-3");
    assert!(rows.iter().all(|row| row[1].is_null() || row[1] == 100), "{rows:?}");
    let gaps: Vec<u64> =
        rows.windows(2).map(|pair| pair[1][0].as_u64().unwrap() - pair[0][0].as_u64().unwrap()).collect();
    // While the gateway was dead nothing was read; everything else is there.
    assert!(gaps.iter().filter(|gap| **gap > 3000).count() <= 1, "{gaps:?}");
    assert!(
        !influx.rows("SELECT \"count\" FROM \"tidegate_gap\" WHERE reason = %27rejected%27").is_empty(),
        "the loss is told"
    );
}

#[test]
fn topics_of_aws_are_posted_one_by_one_with_the_clients_certificate() {
    let _turn = turn();
    let folder = folder();
    let meter = meter();
    let port = port::free();
    let Certificates { ca, server_cert, server_key, client_cert, client_key, .. } =
        Certificates::make(&folder.path().join("authority"), "hall-3");
    let texts = [&server_cert, &server_key, &ca].map(|path| path.display().to_string());
    let server = Server::started(port, &["--plan", "[[429, {}]]", "--tls", &texts[0], &texts[1], &texts[2]]);
    let tables = format!(
        "[uplink.aws]\nurl = \"https://localhost:{port}\"\nprofile = \"aws-iot\"\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n\
         reconnect = {{ first = \"50ms\", max = \"200ms\" }}\nown_topic = \"\"\n\
         [[uplink.aws.forward]]\nfilter = \"field/#\"\ntopic = \"dt/{{rest}}\"\n",
        ca.display(),
        client_cert.display(),
        client_key.display()
    ) + &device(meter.port);
    let gateway = Gateway::started(folder.path(), &tables);
    server.wait_for_taken(20);
    gateway.wait_for_status("the uplink is connected", |status| {
        (status["uplinks"]["aws"]["state"] == "connected").then_some(())
    });
    for request in server.requests() {
        assert!(request["path"].as_str().unwrap().starts_with("/topics/dt%2Fmeter%2Flevel_"), "{request}");
        assert!(request["path"].as_str().unwrap().ends_with("?qos=1"));
        assert_eq!(request["peer"]["commonName"], "hall-3");
        let body: Value = serde_json::from_str(request["body"].as_str().unwrap()).unwrap();
        assert_eq!(body["device"], "meter");
    }
}

#[test]
fn a_board_that_boots_in_1970_judges_no_certificate_and_posts_by_itself_when_the_time_is_known() {
    let _turn = turn();
    let folder = folder();
    let port = port::free();
    let begun = |parameters: &mut rcgen::CertificateParams| parameters.not_before = rcgen::date_time_ymd(2026, 2, 1);
    let Certificates { ca, server_cert, server_key, client_cert, client_key, .. } =
        Certificates::make_with(&folder.path().join("authority"), ID, begun, |_| {});
    let texts = [&server_cert, &server_key, &ca].map(|path| path.display().to_string());
    let server = Server::started(port, &["--tls", &texts[0], &texts[1], &texts[2]]);
    let wall = WallClock::right(folder.path());
    wall.set("@1970-01-01 00:00:10");
    // Of the pauses none is short enough to be waited for.
    let tables = format!(
        "[uplink.hook]\nurl = \"https://localhost:{port}/in\"\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n\
         reconnect = {{ first = \"300s\", max = \"300s\" }}\nown_topic = \"\"\n\
         [[uplink.hook.forward]]\nfilter = \"plant/#\"\n",
        ca.display(),
        client_cert.display(),
        client_key.display()
    );
    let mut gateway = Gateway::prepared(folder.path(), &tables);
    wall.unconfirmed(&mut gateway);
    gateway.start_with(&wall.environment());
    Publisher::started(gateway.port, "press", "plant/press", 5, &[]).wait_until_done();
    gateway.wait_for_status("it says what is wrong", |status| {
        let reason = status["uplinks"]["hook"]["reason"].as_str()?;
        reason.contains("clock is not set, so the server's certificate cannot be judged").then_some(())
    });
    assert_eq!(server.requests(), Vec::<Value>::new());
    wall.come_right();
    server.wait_for_taken(5);
    let numbers: Vec<Value> = server.taken().iter().map(|request| request["body"].clone()).collect();
    assert_eq!(numbers.iter().map(|body| body.as_str().unwrap().trim()).collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    gateway.stop();
}
