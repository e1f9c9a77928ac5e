//! Does a reload change what is different and nothing else, whatever comes one after the other, and is nothing lost by it?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;
#[path = "torture/random.rs"]
mod random;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::certificates::Certificates;
use common::cloud::Mosquitto;
use common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use common::peers::{ModbusServer, Publisher, Subscriber};
use common::process::{Process, signal_to};
use common::raw::{Heard, RawClient, Version};
use common::{PATIENCE, port, turn, wait_for};
use random::Random;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Differences in a row.
const DIFFERENCES: u64 = 50;

/// What `tidegate reload` said and how it ended.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    text: String,
}

/// The configuration with these tables in the place of those it was started with, and a reload of it.
fn reload(gateway: &Gateway, tables: &str) -> Told {
    let text = fs::read_to_string(gateway.config_path()).unwrap();
    let head = text.split("#tables\n").next().unwrap();
    fs::write(gateway.config_path(), format!("{head}#tables\n{tables}")).unwrap();
    let path = gateway.config_path();
    let mut process = Process::start("reload", PROGRAM, &["reload", "--config", path.to_str().unwrap()]);
    let code = process.wait(PATIENCE).code();
    Told { code, text: [process.stdout(), process.stderr()].concat().join("\n") }
}

#[track_caller]
fn expect(told: &Told, code: i32, parts: &[&str]) {
    assert_eq!(told.code, Some(code), "{}", told.text);
    parts.iter().for_each(|part| assert!(told.text.contains(part), "{part:?} is missing in: {}", told.text));
}

fn started(folder: &Path, tables: &str) -> Gateway {
    Gateway::started(folder, &format!("#tables\n{tables}"))
}

fn meter(name: &str, server: &ModbusServer, unit: u8, more: &str) -> String {
    format!(
        "[modbus.{name}]\nline = \"tcp://127.0.0.1:{}\"\nunit_id = {unit}\npoll = \"100ms\"\n{more}\n[modbus.{name}.point]\n\
         level = {{ address = \"holding:0\", type = \"u16\" }}\n",
        server.port
    )
}

fn server() -> ModbusServer {
    let cells = json!([{"table": "holding", "address": 0, "type": "u16", "value": 7}]);
    ModbusServer::on_tcp(&json!({"1": {"cells": cells}, "2": {"cells": cells}}))
}

/// The local ports of connections to `port` that are open on this machine: what has been made anew has another one.
fn connections_to(port: u16) -> BTreeSet<u16> {
    let of = |address: &str| u16::from_str_radix(address.split(':').nth(1).unwrap(), 16).unwrap();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[3] == "01" && of(row[2]) == port).map(|row| of(row[1])).collect()
}

/// What may be in a configuration beside what never changes.
#[derive(Debug, Clone, Default, PartialEq)]
struct Extras {
    neighbour: Option<u64>,
    own_line: bool,
    second_uplink: Option<u64>,
    rule: bool,
    listener: Option<bool>,
    page: bool,
    max_age: Option<u64>,
}

impl Extras {
    /// With one thing changed.
    fn changed(&self, random: &mut Random) -> Extras {
        let mut extras = self.clone();
        match random.within(0..7) {
            0 => extras.neighbour = toggled(self.neighbour, random),
            1 => extras.own_line = !self.own_line,
            2 => extras.second_uplink = toggled(self.second_uplink, random),
            3 => extras.rule = !self.rule,
            4 => extras.listener = *random.pick(&[None, Some(false), Some(true)]),
            5 => extras.page = !self.page,
            _ => extras.max_age = toggled(self.max_age, random),
        }
        extras
    }

    fn tables(&self, site: &Site) -> String {
        let cloud = format!("mqtt://127.0.0.1:{}", site.cloud.port);
        let mut tables = uplink(&cloud, "") + FORWARD_PLANT + "[[uplink.cloud.forward]]\nfilter = \"field/#\"\n";
        if self.rule {
            tables += "[[uplink.cloud.forward]]\nfilter = \"other/#\"\n";
        }
        tables += &meter("steady", &site.server, 1, "");
        if let Some(more) = self.neighbour {
            tables += &meter("neighbour", &site.server, 2, &format!("timeout = \"{}ms\"", 500 + more));
        }
        if self.own_line {
            tables += &meter("alone", &site.other_server, 1, "");
        }
        if let Some(more) = self.second_uplink {
            tables += &format!(
                "[uplink.second]\nurl = \"{cloud}\"\nclient_id = \"second\"\nkeep_alive = \"{}s\"\n\
                 [[uplink.second.forward]]\nfilter = \"plant/#\"\ntopic = \"second/{{topic}}\"\n",
                30 + more
            );
        }
        if let Some(is_websocket) = self.listener {
            let transport = if is_websocket { "websocket" } else { "mqtt" };
            let bind = site.spare_port;
            tables += &format!("[broker.listener.extra]\nbind = \"127.0.0.1:{bind}\"\ntransport = \"{transport}\"\n");
        }
        if self.page {
            tables += &format!("[web]\nbind = \"127.0.0.1:{}\"\n", site.page_port);
        }
        if let Some(more) = self.max_age {
            tables += &format!("[queue]\nmax_age = \"{} days\"\n", 7 + more);
        }
        tables
    }
}

fn toggled(now: Option<u64>, random: &mut Random) -> Option<u64> {
    if now.is_some() && random.happens(40) { None } else { Some(random.within(1..20)) }
}

struct Site {
    cloud: Mosquitto,
    server: ModbusServer,
    other_server: ModbusServer,
    spare_port: u16,
    page_port: u16,
}

#[test]
fn fifty_random_differences_under_load_lose_nothing_and_disturb_nobody_who_stays() {
    let _turn = turn();
    let seed = std::env::var("TIDEGATE_SEED").ok().map_or_else(Random::fresh_seed, |seed| seed.parse().unwrap());
    println!("TIDEGATE_SEED={seed}");
    let mut random = Random::from_seed(seed);
    let folder = folder();
    let site = Site {
        cloud: Mosquitto::started(folder.path()),
        server: server(),
        other_server: server(),
        spare_port: port::free(),
        page_port: port::free(),
    };
    let mut application = Subscriber::started(site.cloud.port, "application", &["factory7/#", "second/#", "field/#"]);
    let mut extras = Extras::default();
    let mut gateway = started(folder.path(), &extras.tables(&site));
    gateway.wait_until_connected();
    application.wait_for_count("field/steady/level", 2);
    let (sessions, lines) = (connections_to(site.cloud.port), connections_to(site.server.port));
    assert_eq!(lines.len(), 1);
    let mut resident = RawClient::connected(gateway.port, Version::V5, "resident");
    resident.subscribe("resident", 0);
    let count = 4000;
    let more = ["--qos", "2", "--window", "10", "--pause", "0.004"];
    let mut publisher = Publisher::started(gateway.port, "client", "plant/press", count, &more);

    for round in 0..DIFFERENCES {
        let next = extras.changed(&mut random);
        if random.happens(10) {
            // A bad one in between changes nothing.
            let told = reload(&gateway, &(next.tables(&site) + "[modbus.wrong]\nunit = 7\n"));
            expect(&told, 78, &["`unit` is not a key in [modbus.<name>]", "nothing was changed"]);
            assert!(gateway.status().unwrap()["alarms"]["configuration-refused"].is_object());
        }
        let told = reload(&gateway, &next.tables(&site));
        let what = format!("round {round}, {extras:?} -> {next:?}: {}", told.text);
        assert_eq!(told.code, Some(0), "{what}");
        assert_eq!(told.text.contains("nothing is different"), extras == next, "{what}");
        let status = gateway.status().unwrap();
        assert!(status["alarms"]["configuration-refused"].is_null());
        let is_there = |table: &str, name: &str| !status[table][name].is_null();
        assert_eq!(is_there("devices", "neighbour"), next.neighbour.is_some(), "{what}");
        assert_eq!(is_there("devices", "alone"), next.own_line, "{what}");
        assert_eq!(is_there("uplinks", "second"), next.second_uplink.is_some(), "{what}");
        assert_eq!(port::is_served_by(site.spare_port, gateway.id()), next.listener.is_some(), "{what}");
        assert_eq!(port::is_served_by(site.page_port, gateway.id()), next.page, "{what}");
        extras = next;
    }

    publisher.wait_until_done();
    let acknowledged: BTreeSet<u64> = publisher.acknowledged().into_iter().collect();
    assert_eq!(acknowledged.len(), usize::try_from(count).unwrap());
    application.wait_for_count("factory7/plant/press", acknowledged.len());
    let arrived = application.numbers_on("factory7/plant/press");
    assert_eq!(arrived, acknowledged.iter().copied().collect::<Vec<_>>(), "each once, in order: QoS 2");

    // Who stays has noticed nothing: the same connections, no bad value, no number left out.
    assert!(sessions.is_subset(&connections_to(site.cloud.port)), "the session of the first uplink");
    assert!(lines.is_subset(&connections_to(site.server.port)), "the line that is shared");
    assert_eq!(publisher_connections(&publisher), 1);
    resident.publish(b"resident", 0, 0, b"still here");
    wait_for(PATIENCE, "the resident hears itself", || matches!(resident.hear(PATIENCE), Heard::Packet(0x30, _)));
    let readings: Vec<Value> = application.received_on("field/steady/level").iter().map(|one| one.json()).collect();
    assert!(readings.iter().all(|reading| reading["quality"] == "good"), "{readings:?}");
    let numbers: Vec<u64> = readings.iter().map(|reading| reading["seq"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert_eq!(gateway.status().unwrap()["devices"]["steady"]["failures"], 0);
    gateway.wait_until_drained();
    gateway.stop();
}

fn publisher_connections(publisher: &Publisher) -> usize {
    publisher.said().iter().filter(|line| *line == "connected").count()
}

#[test]
fn what_waits_for_an_uplink_that_is_taken_out_is_kept_shown_and_delivered_when_it_is_back() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let away = uplink(&format!("mqtt://127.0.0.1:{}", port::free()), "") + FORWARD_PLANT;
    let mut gateway = started(folder.path(), &away);
    Publisher::started(gateway.port, "client", "plant/press", 20, &["--qos", "2"]).wait_until_done();
    let told = reload(&gateway, "");
    expect(&told, 0, &["changed: uplink.cloud"]);
    let status = gateway.status().unwrap();
    assert_eq!((&status["kept_streams"]["cloud"], &status["uplinks"]), (&json!(20), &json!({})));
    let shown = Process::start("status", PROGRAM, &["status", "--config", gateway.config_path().to_str().unwrap()]);
    let mut shown = shown;
    shown.wait(PATIENCE);
    assert!(shown.stdout().join("\n").contains("kept    20 messages for cloud"), "{:?}", shown.stdout());
    // Over a crash as well.
    gateway.kill();
    gateway.set_tables("#tables\n");
    gateway.start();
    assert_eq!(gateway.status().unwrap()["kept_streams"]["cloud"], 20);
    let back = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT;
    expect(&reload(&gateway, &back), 0, &["changed: uplink.cloud"]);
    application.wait_for_count("factory7/plant/press", 20);
    assert_eq!(application.numbers_on("factory7/plant/press"), (0..20).collect::<Vec<u64>>());
    gateway.wait_until_drained();
    assert_eq!(gateway.status().unwrap()["kept_streams"], json!({}));
    gateway.stop();
}

#[test]
fn a_listener_moves_and_who_came_in_by_the_old_one_has_to_come_again() {
    let _turn = turn();
    let folder = folder();
    let (first, second, page) = (port::free(), port::free(), port::free());
    let listener = |port: u16, more: &str| format!("[broker.listener.hall]\nbind = \"127.0.0.1:{port}\"\n{more}");
    let mut gateway = started(folder.path(), &listener(first, ""));
    let mut stays = RawClient::connected(gateway.port, Version::V5, "stays");
    stays.subscribe("stays", 0);
    let mut goes = RawClient::connected(first, Version::V5, "goes");

    // A port that somebody has refuses the whole: also the page is not there.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = listener(taken.local_addr().unwrap().port(), "") + &format!("[web]\nbind = \"127.0.0.1:{page}\"\n");
    expect(&reload(&gateway, &elsewhere), 78, &["cannot listen on", "broker.listener.hall", "nothing was changed"]);
    assert!(!port::is_served_by(page, gateway.id()) && port::is_served_by(first, gateway.id()));
    goes.publish(b"x", 1, 7, b"still served");
    assert!(matches!(goes.hear(PATIENCE), Heard::Packet(0x40, _)));

    expect(&reload(&gateway, &listener(second, "")), 0, &["changed: broker.listener.hall"]);
    assert!(!port::is_served_by(first, gateway.id()) && port::is_served_by(second, gateway.id()));
    let heard = goes.hear(PATIENCE);
    assert!(matches!(&heard, Heard::Packet(0xe0, body) if body[0] == 0x98), "administrative action: {heard:?}");
    let mut again = RawClient::connected(second, Version::V5, "goes");

    // The same port with other rules: the socket stays, and nobody who came without them.
    let told = reload(&gateway, &listener(second, "transport = \"websocket\""));
    expect(&told, 0, &["changed: broker.listener.hall"]);
    assert!(matches!(again.hear(PATIENCE), Heard::Packet(0xe0, _)));
    // All addresses instead of one: the old socket is in the way of the new one until it is closed.
    let hash =
        "$6$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
    let open = format!(
        "[broker.listener.hall]\nbind = \"0.0.0.0:{second}\"\nplaintext = true\n[broker.anonymous]\npublish = [\"#\"]\n\
         subscribe = [\"#\"]\n[broker.user.u]\npassword_hash = \"{hash}\"\npublish = [\"#\"]\n"
    );
    expect(&reload(&gateway, &open), 0, &["changed: broker.listener.hall, broker.user"]);
    RawClient::connected(second, Version::V5, "third");
    stays.publish(b"stays", 0, 0, b"x");
    assert!(matches!(stays.hear(PATIENCE), Heard::Packet(0x30, _)), "who came by another door was never disturbed");
    gateway.stop();
}

#[test]
fn what_needs_a_restart_is_named_and_a_renewed_certificate_is_shown_to_who_comes_next() {
    let _turn = turn();
    let folder = folder();
    let (old, new) =
        (Certificates::make(&folder.path().join("a"), "x"), Certificates::make(&folder.path().join("b"), "x"));
    let page = port::free();
    let tables = |bytes: &str| {
        let (cert, key) = (old.server_cert.display(), old.server_key.display());
        format!(
            "[queue]\nmax_bytes = \"{bytes} MiB\"\n[web]\nbind = \"127.0.0.1:{page}\"\ntls = {{ cert = \"{cert}\", key = \
             \"{key}\" }}\n"
        )
    };
    let mut gateway = started(folder.path(), &tables("64"));
    let days = |gateway: &Gateway| {
        gateway.wait_for_status("the certificate is known", |status| {
            let all = status["certificates"].as_array()?.clone();
            (all.len() == 1 && all[0]["of"] == "web" && all[0]["key"] == "cert")
                .then(|| all[0]["days_left"].as_i64().unwrap())
        })
    };
    assert!(days(&gateway) > 365);
    let pem = |path: &Path| fs::read(path).unwrap();
    fs::write(&old.server_cert, pem(&new.server_cert)).unwrap();
    // A pair that does not fit is refused, with its place.
    let told = reload(&gateway, &tables("96"));
    expect(&told, 78, &["the key does not belong to the certificate", "tidegate.toml:"]);
    fs::write(&old.server_key, pem(&new.server_key)).unwrap();
    let told = reload(&gateway, &tables("96"));
    expect(&told, 0, &["nothing is different", "these wait for a restart: queue.max_bytes"]);
    assert_eq!(
        gateway.status().unwrap()["alarms"]["restart-needed"]["text"],
        "a restart is needed for queue.max_bytes"
    );
    let asked = format!("https://localhost:{page}/healthz");
    let answer = Process::start("curl", "curl", &["-sS", "--cacert", new.ca.to_str().unwrap(), &asked]);
    let mut answer = answer;
    assert!(answer.wait(PATIENCE).success(), "the new certificate is shown: {}", answer.transcript());
    // By SIGHUP as well; and taken back, nothing waits any more.
    let text = fs::read_to_string(gateway.config_path()).unwrap().replace("96 MiB", "64 MiB");
    fs::write(gateway.config_path(), text).unwrap();
    signal_to(gateway.id(), Signal::HUP);
    gateway.wait_for_status("nothing waits for a restart", |status| {
        status["alarms"]["restart-needed"].is_null().then_some(())
    });
    gateway.stop();
}
