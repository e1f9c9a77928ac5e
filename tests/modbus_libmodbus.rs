//! Does the gateway read, and do its tools write, what libmodbus serves? All functions, over TCP and RTU, and every type
//! as libmodbus's own C functions put it into registers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;
mod field_support;
mod writes_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::gateway::{Gateway, folder};
use common::peers::{Cable, Subscriber};
use common::process::Process;
use common::{PATIENCE, port, turn};
use field_support::{Running, add_line, add_unit, empty, point, tcp};
use serde_json::json;
use tidegate::config::{Config, LineKind, Parity, PointKind, PortConfig, SerialMode, Table, WordOrder};
use tidegate::message::{Quality, Value};
use writes_support::Asker;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

/// 123.456 as libmodbus's `modbus_set_float_abcd` has it; u32 3,000,000,000; i16 −200; bits.
const CELLS: &str = "\
holding 10 0x42F6 0xE979
holding 20 0xB2D0 0x5E00
holding 30 0xFF38
holding 80 0xFFFF
input 10 0xE979 0x42F6
coil 3 1 0 1
discrete 17 0 1
";

/// Compiles a program of `tests/peers` once.
fn compiled() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/libmodbus_server.c");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libmodbus_server");
        let mut command = Command::new("cc");
        let built =
            command.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source).arg("-lmodbus");
        assert!(built.status().unwrap().success(), "libmodbus-dev is needed: ./test.sh installs it");
        program
    })
}

fn served(arguments: &[&str]) -> Process {
    let mut server = Process::start("libmodbus_server", compiled(), arguments);
    // An empty line ends what it holds.
    server.tell(CELLS);
    server.wait_for_line(PATIENCE, "that it serves", |line| line == "ready");
    server
}

fn on_tcp() -> (Process, u16) {
    let port = port::free();
    (served(&["tcp", &port.to_string()]), port)
}

fn on_serial(cable: &Cable) -> Process {
    served(&["rtu", cable.far.to_str().unwrap(), "19200", "E", "9"])
}

fn serial_line(cable: &Cable) -> LineKind {
    let mode = SerialMode { data_bits: 8, parity: Parity::Even, stop_bits: 1 };
    LineKind::Rtu(PortConfig::new(&cable.near, 19_200.try_into().unwrap(), mode))
}

fn configured(kind: LineKind, unit_id: u8) -> Config {
    let mut config = empty();
    add_line(&mut config, "line", kind);
    let mut swapped = point("swapped", Table::Input, 10, PointKind::F32);
    swapped.order = WordOrder::Cdab;
    let mut scaled = point("scaled", Table::Holding, 30, PointKind::I16);
    scaled.meaning.scale = 0.1;
    let points = vec![
        point("float", Table::Holding, 10, PointKind::F32),
        point("counter", Table::Holding, 20, PointKind::U32),
        scaled,
        swapped,
        point("on", Table::Coil, 3, PointKind::Bool),
        point("off", Table::Coil, 4, PointKind::Bool),
        point("open", Table::Discrete, 17, PointKind::Bool),
        point("shut", Table::Discrete, 18, PointKind::Bool),
    ];
    add_unit(&mut config, "d", "line", unit_id, 50, points);
    config.modbus.values_mut().for_each(|device| device.timeout = std::time::Duration::from_secs(5));
    config
}

async fn is_read(config: &Config) {
    let running = Running::start(config);
    for (name, value) in [
        ("float", Value::Float(123.456)),
        ("counter", Value::Uint(3_000_000_000)),
        ("scaled", Value::Float(-20.0)),
        ("swapped", Value::Float(123.456)),
        ("on", Value::Bool(true)),
        ("off", Value::Bool(false)),
        ("open", Value::Bool(false)),
        ("shut", Value::Bool(true)),
    ] {
        let good = running.until_told("d", name, Quality::Good, 3).await;
        assert!(good.iter().all(|reading| reading.value == value), "{name}: {good:?}");
    }
    let device = running.device("d");
    assert_eq!(device.failures, 0, "{:?}", device.faults);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_one_to_four_are_read_over_tcp() {
    let (_server, port) = on_tcp();
    is_read(&configured(tcp(([127, 0, 0, 1], port).into()), 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_one_to_four_are_read_over_a_serial_line() {
    let folder = tempfile::tempdir().unwrap();
    let cable = Cable::laid(folder.path());
    let _server = on_serial(&cable);
    is_read(&configured(serial_line(&cable), 9)).await;
}

fn tool(words: &[&str]) -> Output {
    Command::new(PROGRAM).arg("modbus").args(words).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Functions 5, 6, 15 and 16, each read back, and read once more by a process of its own.
fn is_written(line: &[&str], unit: &str) {
    let run = |words: &[&str]| tool(&[&words[..1], line, &["--unit", unit, "--timeout", "5s"], &words[1..]].concat());
    for (address, value, more, read_more) in [
        ("coil:7", "true", &[][..], &[][..]),
        ("coil:7", "false", &["--multiple"], &[]),
        ("coil:8", "on", &["--multiple"], &[]),
        ("holding:40", "54321", &[], &[]),
        ("holding:41", "-200", &["--type", "i16", "--multiple"], &["--type", "i16"]),
        ("holding:42", "21.5", &["--scale", "0.1"], &["--scale", "0.1"]),
        ("holding:50", "123.456", &["--type", "f32", "--order", "cdab"], &["--type", "f32", "--order", "cdab"]),
        ("holding:60", "18446744073709551615", &["--type", "u64"], &["--type", "u64"]),
        ("holding:70", "Tide gate", &["--type", "string:6"], &["--type", "string:6"]),
    ] {
        let written = run(&[&["write", address, value, "--yes"], more].concat());
        assert!(written.status.success(), "{address} {value}: {}", text(&written));
        let read = run(&[&["read", address], read_more].concat());
        let shown = String::from_utf8_lossy(&read.stdout).lines().next().unwrap().to_owned();
        let expected = if value == "on" { "true" } else { value };
        assert!(read.status.success() && shown.contains(expected), "{address} {value}: {shown}");
    }
    let refused = run(&["write", "holding:1000", "1", "--yes"]);
    assert_eq!(refused.status.code(), Some(70), "{}", text(&refused));
    assert!(text(&refused).contains("exception 2"), "{}", text(&refused));
}

#[test]
fn functions_five_six_fifteen_and_sixteen_write_over_tcp() {
    let (_server, port) = on_tcp();
    is_written(&[&format!("tcp://127.0.0.1:{port}")], "1");
}

#[test]
fn functions_five_six_fifteen_and_sixteen_write_over_a_serial_line() {
    let folder = tempfile::tempdir().unwrap();
    let cable = Cable::laid(folder.path());
    let _server = on_serial(&cable);
    is_written(&[cable.near.to_str().unwrap(), "--baud", "19200", "--mode", "8E1"], "9");
}

/// Functions 22 and 23 of the gateway, each read back, and read once more by function 3.
fn masked_and_read_back(server: &Process, line: &str, unit: u8) {
    let folder = folder();
    let tables = format!(
        "{line}\n[modbus.press]\nline = \"bus\"\nunit_id = {unit}\npoll = \"200ms\"\ntimeout = \"5s\"\n[modbus.press.point]\n\
         brake = {{ address = \"holding:80\", bit = 3, write = {{ function = 22 }} }}\n\
         mode = {{ address = \"holding:80\", type = \"u16\", bits = \"8-15\", write = {{ function = 22 }} }}\n\
         whole = {{ address = \"holding:80\", type = \"u16\" }}\n\
         target = {{ address = \"holding:81\", type = \"f32\", order = \"cdab\", write = {{ function = 23 }} }}\n\
         words = {{ address = \"holding:81\", type = \"u32\", order = \"abcd\" }}\n"
    );
    let gateway = Gateway::started(folder.path(), &tables);
    let mut asker = Asker::connected(gateway.port);
    for (point, value) in
        [("brake", json!(false)), ("mode", json!(0x5A)), ("brake", json!(true)), ("target", json!(123.456))]
    {
        let answer = asker.asked(&format!("press/{point}"), &json!({ "value": value }).to_string());
        assert_eq!((&answer["ok"], &answer["value"]), (&json!(true), &value), "{point}: {answer}");
    }
    assert_eq!(asker.rest(), 0, "one answer each");
    let functions: Vec<String> = server.stdout().into_iter().filter(|line| line.starts_with("function")).collect();
    assert_eq!(functions, ["function 22", "function 22", "function 22", "function 23"]);
    // 0xFFFF with the upper byte 0x5A; 123.456 with its words swapped.
    let mut local = Subscriber::started(gateway.port, "local", &["field/press/#"]);
    for (point, value) in [("whole", json!(0x5AFF)), ("words", json!(0xE979_42F6_u32))] {
        let topic = format!("field/press/{point}");
        local.wait_for_count(&topic, 1);
        assert_eq!(local.received_on(&topic)[0].json()["value"], value, "{point}");
    }
}

#[test]
fn functions_twenty_two_and_twenty_three_change_what_they_name_and_nothing_else_over_tcp() {
    let _turn = turn();
    let (server, port) = on_tcp();
    masked_and_read_back(&server, &format!("[line.bus]\nurl = \"tcp://127.0.0.1:{port}\""), 1);
}

#[test]
fn functions_twenty_two_and_twenty_three_change_what_they_name_and_nothing_else_over_a_serial_line() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let cable = Cable::laid(folder.path());
    let server = on_serial(&cable);
    let port = cable.near.display();
    masked_and_read_back(&server, &format!("[line.bus]\nport = \"{port}\"\nbaud = 19200\nmode = \"8E1\""), 9);
}

#[test]
fn without_a_yes_nothing_is_written() {
    let (_server, port) = on_tcp();
    let line = format!("tcp://127.0.0.1:{port}");
    let asked = tool(&["write", &line, "holding:30", "7", "--type", "i16"]);
    assert_eq!(asked.status.code(), Some(64), "{}", text(&asked));
    assert!(text(&asked).contains("nothing was written") && text(&asked).contains("--yes"), "{}", text(&asked));
    let read = tool(&["read", &line, "holding:30", "--type", "i16"]);
    assert!(text(&read).contains("-200"), "{}", text(&read));
}
