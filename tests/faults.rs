//! Is the cause of what people do wrong named, by `check`, `status` or `doctor`, in the words of `tests/faults.md`?
//!
//! Each row of the table is set up here, or names the test that sets it up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::cloud::Mosquitto;
use common::gateway::{Gateway, PROGRAM, folder, uplink};
use common::peers::Cable;
use common::process::Process;
use common::raw::{Heard, RawClient, Version};
use common::{PATIENCE, port, turn, wait_until};

const TABLE: &str = include_str!("faults.md");

/// A row of the table.
struct Row {
    number: usize,
    words: Vec<String>,
    test: String,
}

fn rows() -> Vec<Row> {
    let rows = TABLE.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let number = cells.get(1)?.parse().ok()?;
        let words = cells[5].split('`').skip(1).step_by(2).map(str::to_lowercase).collect();
        Some(Row { number, words, test: cells[6].trim_matches('`').to_owned() })
    });
    rows.collect()
}

/// As the table has it: no marks of code, no large letters.
fn plain(text: &str) -> String {
    text.replace('`', "").to_lowercase()
}

/// What was said names the cause of fault `number`.
#[track_caller]
fn named(number: usize, said: &str) {
    let row = rows().into_iter().find(|row| row.number == number).expect("it stands in the table");
    let said = plain(said);
    for word in &row.words {
        assert!(said.contains(word.as_str()), "fault {number}: {word:?} is not in\n{said}");
    }
}

fn said(words: &[&str], config: &Path) -> String {
    said_by(&[], words, config)
}

fn said_by(launcher: &[&str], words: &[&str], config: &Path) -> String {
    let all = [launcher, &[PROGRAM], words, &["--config", config.to_str().unwrap()]].concat();
    let output = Command::new(all[0]).args(&all[1..]).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A simulated device, once it serves.
fn simulated(words: &[&str]) -> Process {
    let mut process = Process::start("simulate", PROGRAM, &[&["simulate"], words].concat());
    process.wait_for_line(PATIENCE, "that it serves", |line| {
        line.contains("served") || line.contains("tcp://") || line.contains("scale")
    });
    process
}

fn address_of(process: &Process) -> String {
    let said = process.stdout().join("\n");
    let (_, rest) = said.split_once("tcp://").unwrap_or_else(|| panic!("{said}"));
    rest.split(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).next().unwrap().to_owned()
}

/// Served with a constant wave: a float is 50 under its own order. Nothing stands between the points.
const METER: &str = r#"
[modbus.meter]
line = "tcp://10.0.0.1"
unit_id = 7
gap = 0
[modbus.meter.point]
plain = { address = "holding:100", type = "f32" }
words = { address = "holding:110", type = "f32", order = "cdab" }
turned = { address = "holding:120", type = "f32", order = "dcba" }
other = { address = "input:200", type = "f32" }
"#;

fn wait_until_all_were_asked(gateway: &Gateway, devices: &[&str]) {
    gateway.wait_for_status("each device was asked", |status| {
        let is_known = |name: &&&str| {
            let device = &status["devices"][**name];
            device["state"] != "starting" && (device["state"] != "good" || **name == "good")
        };
        (devices.iter().filter(is_known).count() == devices.len()).then_some(())
    });
}

#[test]
fn mistakes_at_devices_on_tcp_are_named_beside_the_running_gateway_and_without_one() {
    let _turn = turn();
    let folder = folder();
    let served = folder.path().join("meter.toml");
    fs::write(&served, METER).unwrap();
    let meter = ["modbus", "--config", served.to_str().unwrap(), "--wave", "constant", "--listen", "127.0.0.1:0"];
    let meter = simulated(&meter);
    let one = simulated(&["modbus", "--units", "1", "--listen", "127.0.0.1:0"]);
    let second = simulated(&["modbus", "--units", "7", "--listen", "127.0.0.1:0"]);
    let (meter_at, one_at, second_at) = (address_of(&meter), address_of(&one), address_of(&second));
    let device = |name: &str, line: &str, unit: u8, points: &str| {
        format!(
            "[modbus.{name}]\nline = \"{line}\"\nunit_id = {unit}\ngap = 0\npoll = \"200ms\"\ntimeout = \"500ms\"\n\
             [modbus.{name}.point]\n{points}\n"
        )
    };
    let plain = "plain = { address = \"holding:100\", type = \"f32\" }";
    let wrong = "words = { address = \"holding:110\", type = \"f32\" }\nturned = { address = \"holding:120\", type = \"f32\" }\n\
                 base = { address = \"holding:101\", type = \"f32\" }\nother = { address = \"holding:200\", type = \"f32\" }";
    let tables = [
        device("wrong", &format!("tcp://{meter_at}"), 7, wrong),
        device("unit", &format!("tcp://{one_at}"), 2, plain),
        device("good", &format!("tcp://{one_at}"), 1, "level = { address = \"holding:100\", type = \"u16\" }"),
        device("frames", &format!("rtu-tcp://{second_at}"), 7, plain),
        device("port", &format!("tcp://127.0.0.1:{}", port::free()), 1, plain),
        device("name", "tcp://meter.invalid:502", 1, plain),
    ]
    .concat();
    let mut gateway = Gateway::started(folder.path(), &tables);
    wait_until_all_were_asked(&gateway, &["wrong", "unit", "good", "frames", "port", "name"]);
    let config = gateway.config_path();
    let beside = said(&["doctor"], &config);
    let status = said(&["status"], &config);
    gateway.stop();
    let alone = said(&["doctor"], &config);
    for text in [&beside, &alone] {
        (28..=35).for_each(|number| named(number, text));
        let good = text.lines().find(|line| line.contains(" good ")).unwrap_or_else(|| panic!("{text}"));
        assert!(good.starts_with("  ok"), "the control: {good}");
    }
    assert!(status.contains("cannot connect to meter.invalid") && status.contains("`tidegate doctor`"), "{status}");
    assert!(!beside.contains("[broker.listener"), "the gateway's own port is no fault: {beside}");
}

#[test]
fn mistakes_on_serial_lines_are_named() {
    let _turn = turn();
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [parity, swapped, disturbed, end, pattern] = ["parity", "swapped", "disturbed", "end", "pattern"].map(path);
    let _devices = [
        simulated(&["modbus", "--pty", "--link", &parity, "--heed", "9600,8N1"]),
        simulated(&["modbus", "--pty", "--link", &swapped, "--dead", "1", "--units", "2"]),
        simulated(&["modbus", "--pty", "--link", &disturbed, "--fault", "bad-crc"]),
        simulated(&["serial", "--pty", "--link", &end, "--every", "50ms"]),
        simulated(&["serial", "--pty", "--link", &pattern, "--every", "50ms"]),
    ];
    let cable = Cable::laid(folder.path());
    let held = cable.near.display().to_string();
    let mut holder = Process::start("watch", PROGRAM, &["serial", "watch", &held]);
    let holder_id = holder.id();
    let holds = || {
        let files = fs::read_dir(format!("/proc/{holder_id}/fd")).ok();
        let tty = fs::canonicalize(&held).unwrap();
        files.into_iter().flatten().flatten().any(|file| fs::read_link(file.path()).is_ok_and(|to| to == tty))
    };
    wait_until(PATIENCE, "the other program has the port", || if holds() { Ok(()) } else { Err("not yet".to_owned()) });
    let modbus = |name: &str, at: &str| {
        format!(
            "[line.{name}]\nport = \"{at}\"\n[modbus.{name}]\nline = \"{name}\"\nunit_id = 1\npoll = \"200ms\"\n\
             timeout = \"200ms\"\n[modbus.{name}.point]\nlevel = {{ address = \"holding:0\", type = \"u16\" }}\n"
        )
    };
    let serial = |name: &str, at: &str, frame: &str, unit: &str| {
        format!(
            "[serial.{name}]\nport = \"{at}\"\nframe = {frame}\nparse = {{ regex = '(?<weight>[0-9.]+) {unit}' }}\n"
        )
    };
    let tables = [
        modbus("parity", &parity),
        modbus("swapped", &swapped),
        modbus("disturbed", &disturbed),
        modbus("missing", "/dev/not-there"),
        modbus("held", &held),
        serial("end", &end, "{ delimiter = \";\", max = 64 }", "kg"),
        serial("pattern", &pattern, "{ delimiter = \"\\r\\n\" }", "lb"),
    ]
    .concat();
    let mut gateway = Gateway::started(folder.path(), &tables);
    let all = ["parity", "swapped", "disturbed", "missing", "held", "end", "pattern"];
    wait_until_all_were_asked(&gateway, &all);
    let doctor = said(&["doctor"], &gateway.config_path());
    (36..=42).for_each(|number| named(number, &doctor));
    let status = said(&["status"], &gateway.config_path());
    [39, 40].into_iter().for_each(|number| named(number, &status));
    gateway.stop();
    holder.kill();
}

const NOBODY: [&str; 5] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];

#[test]
fn what_another_user_may_not_is_named() {
    if std::env::var_os("TIDEGATE_TEST_WITHOUT_ROOT").is_some() {
        eprintln!("left out: it needs root");
        return;
    }
    let _turn = turn();
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let cable = Cable::laid(folder.path());
    let tty = fs::canonicalize(&cable.near).unwrap();
    fs::set_permissions(&tty, fs::Permissions::from_mode(0o600)).unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    let config = written(
        folder.path(),
        &format!(
            "[broker.listener.local]\nbind = \"127.0.0.1:{}\"\n[line.bus]\nport = \"{}\"\n[modbus.meter]\nline = \"bus\"\n\
             unit_id = 1\n[modbus.meter.point]\nlevel = {{ address = \"holding:0\", type = \"u16\" }}\n",
            port::free(),
            tty.display()
        ),
    );
    let doctor = said_by(&NOBODY, &["doctor"], &config);
    [43, 44].into_iter().for_each(|number| named(number, &doctor));
}

fn written(folder: &Path, tables: &str) -> PathBuf {
    let config = folder.join("tidegate.toml");
    let state = folder.join("state");
    fs::create_dir_all(&state).unwrap();
    let gateway = format!("[gateway]\nid = \"hall-3\"\nclock = \"trust\"\nstate_dir = {state:?}\n{tables}");
    fs::write(&config, gateway).unwrap();
    config
}

#[test]
fn a_listener_whose_place_is_taken_or_not_there_is_named() {
    let _turn = turn();
    let folder = folder();
    let mosquitto = Mosquitto::started(folder.path());
    let tables = format!(
        "[broker.listener.local]\nbind = \"127.0.0.1:{}\"\n[broker.listener.plant]\nbind = \"192.0.2.1:1883\"\nplaintext = true\n\
         [broker.user.plc7]\ncertificate = \"CN=plc7\"\n",
        mosquitto.port
    );
    let doctor = said(&["doctor"], &written(folder.path(), &tables));
    [45, 46].into_iter().for_each(|number| named(number, &doctor));
}

fn user(name: &str, password: &str) -> String {
    let mut child =
        Command::new(PROGRAM).args(["passwd", name]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn what_the_local_broker_refuses_is_named_with_whom() {
    let _turn = turn();
    let folder = folder();
    let tables = user("plc7", "open sesame") + "publish = [\"plant/press/#\"]\n";
    let mut gateway = Gateway::started(folder.path(), &tables);
    let port = gateway.port.to_string();
    let publishes = |words: &[&str]| {
        let at = ["-h", "127.0.0.1", "-p", &port, "-V", "mqttv5", "-q", "1", "-m", "1"];
        // Whether it is told so is another test's question.
        let _output = Command::new("mosquitto_pub").args([&at, words].concat()).output().unwrap();
    };
    publishes(&["-u", "plc7", "-P", "open sesame", "-t", "plant/press/level"]);
    let before = said(&["status"], &gateway.config_path());
    assert!(!before.contains("refused"), "the control: {before}");
    publishes(&["-u", "plc7", "-P", "open says me", "-t", "plant/press/level"]);
    publishes(&["-i", "nodered", "-t", "plant/press/level"]);
    publishes(&["-i", "\u{1b}[31m", "-t", "plant/press/level"]);
    publishes(&["-u", "plc7", "-P", "open sesame", "-t", "plant/other"]);
    let status = said(&["status"], &gateway.config_path());
    (47..=49).for_each(|number| named(number, &status));
    assert!(!status.contains('\u{1b}'), "a client's name acts on no terminal: {status:?}");
    gateway.stop();
}

#[test]
fn what_goes_wrong_at_the_uplink_while_it_runs_is_named() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let rule = "[[uplink.cloud.forward]]\nfilter = \"plant/#\"\n[queue]\nmax_bytes = \"1 MiB\"\n";
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + rule;
    let mut gateway = Gateway::prepared(folder.path(), &tables);
    let mark = folder.path().join("no-mark");
    gateway.set_clock(&format!("clock = \"auto\"\nclock_mark = {mark:?}"));
    gateway.start();
    gateway.wait_until_connected();
    let second = Process::start(
        "second",
        "mosquitto_sub",
        &["-h", "127.0.0.1", "-p", &cloud.port.to_string(), "-V", "mqttv5", "-i", "hall-3", "-t", "x"],
    );
    let thrown_out = gateway.wait_for_status("why it is thrown out again and again", |status| {
        let reason = status["uplinks"]["cloud"]["reason"].as_str()?;
        reason.contains("client id").then(|| reason.to_owned())
    });
    named(50, &thrown_out);
    drop(second);
    cloud.stop();
    gateway.wait_for_status("it is away", |status| (status["uplinks"]["cloud"]["state"] != "connected").then_some(()));
    let mut script = RawClient::connected(gateway.port, Version::V5, "script");
    for number in 0..3 {
        script.publish(b"plant/level", 0, 0, format!("{number}").as_bytes());
    }
    let payload = vec![b'x'; 100_000];
    for packet_id in 1..=9 {
        script.publish(b"plant/picture", 1, packet_id, &payload);
        let heard = script.hear(PATIENCE);
        assert!(matches!(heard, Heard::Packet(0x40, _)), "{heard:?}");
    }
    gateway.wait_for_status("the store fills", |status| status["alarms"].get("store-fills").map(|_| ()));
    let status = said(&["status"], &gateway.config_path());
    (51..=53).for_each(|number| named(number, &status));
    gateway.stop();
}

/// Rows that this file does not set up stand in the test that they name, with the same words.
#[test]
fn each_row_of_the_table_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let own = fs::read_to_string(root.join("faults.rs")).unwrap();
    let doctor = fs::read_to_string(root.join("doctor.rs")).unwrap();
    let rows = rows();
    for (place, row) in rows.iter().enumerate() {
        let (number, words) = (row.number, &row.words);
        assert!(number == place + 1 && !words.is_empty(), "row {number} stands at place {}", place + 1);
        let shown = match row.test.split_once(": ") {
            _ if row.test == "doctor.rs" => {
                let (_, rest) = doctor.split_once(&format!("expect({number}, &told")).expect("doctor.rs sets it up");
                rest.split(");").next().unwrap().to_owned()
            }
            Some((file, name)) => function(&fs::read_to_string(root.join(file)).unwrap(), name),
            None if row.test.starts_with("config_errors/") => fs::read_to_string(root.join(&row.test)).unwrap(),
            None => {
                let text = function(&own, &row.test);
                let is_in = |range: &str| {
                    let (_, rest) = text.split_once(range)?;
                    let (first, rest) = rest.split_once("..=")?;
                    let last = rest.split(')').next()?;
                    Some((first.parse::<usize>().ok()?..=last.parse().ok()?).contains(&number))
                };
                let listed = text.contains(&format!("{number}, ")) || text.contains(&format!(" {number}]"));
                assert!(is_in("\n    (").or_else(|| is_in("        (")) == Some(true) || listed, "{number}: {text}");
                continue;
            }
        };
        let shown = plain(&shown.replace("\\\"", "\""));
        for word in words {
            assert!(shown.contains(word.as_str()), "row {number}: {word:?} is not looked for in\n{shown}");
        }
    }
    assert!(rows.len() >= 40, "{} faults", rows.len());
}

fn function(source: &str, name: &str) -> String {
    let (_, rest) = source.split_once(&format!("fn {name}(")).unwrap_or_else(|| panic!("there is no test {name}"));
    rest.split("\n}\n").next().unwrap().to_owned()
}
