//! What `tidegate check` says of Modbus: the requests, the points as a table, and lines that cannot do what is asked.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by a panic")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;
use tidegate::config::{self, Config, LoadRequest};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

fn place(text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("etc")).unwrap();
    fs::write(folder.path().join("etc/machine-id"), "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n").unwrap();
    let points = config::examples().iter().find(|(name, _)| *name == "em24.csv").unwrap().1;
    fs::write(folder.path().join("em24.csv"), points).unwrap();
    fs::write(folder.path().join("tidegate.toml"), text).unwrap();
    folder
}

fn check(folder: &Path, arguments: &[&str]) -> Output {
    let file = folder.join("tidegate.toml");
    Command::new(PROGRAM).args(["check", "--config"]).arg(file).args(arguments).output().unwrap()
}

fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = check(folder, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn load(folder: &Path) -> Config {
    let config = Some(folder.join("tidegate.toml"));
    let request = LoadRequest { root: folder.to_owned(), config, credentials_dir: None, kept_id: None };
    match config::load(&request) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{}", config::render(&problems, &[])),
    }
}

/// Points of every kind, with every key.
const POINTS: &str = r#"
temperature = { address = "holding:100", type = "i16", scale = 0.1, offset = -40, clamp_min = -40, clamp_max = 120.5, unit = "°C", not_available = [0x8000, -1] }
flow = { address = "40103", type = "f32", order = "cdab", poll = "2s", report = { deadband = "2.5 %", min_interval = "1s" } }
energy = { address = "input:0x10", type = "u64", order = "badc", report = { deadband = 0 } }
phase = { address = "input:30", type = "u32", count = 3, unit = "V, rms" }
running = { address = "holding:200", bit = 3 }
any = { address = "holding:200", type = "bool" }
mode = { address = "holding:200", type = "u16", bits = "4-7", names = { 0 = "off", 1 = "auto", 0x0F = "fault \"F\"" } }
level = { address = "holding:201", type = "u8" }
trim = { address = "holding:201", type = "i8", order = "dcba" }
plate = { address = "holding:300", type = "string", registers = 8 }
pump = { address = "coil:3", names = "0=stopped; 1=running" }
door = { address = "discrete:17", type = "bool" }
"#;

fn device(base: u8, points: &str) -> String {
    format!(
        "[uplink.cloud]\nurl = \"mqtt://localhost\"\n[modbus.plc]\nline = \"tcp://10.0.0.1\"\nunit_id = 9\naddress_base = {base}\n\
         order = \"cdab\"\nreport = {{ heartbeat = \"10min\" }}\n{points}"
    )
}

/// The example of twelve meters on one bus, without its cloud: that needs the root certificates of a machine.
fn meters() -> String {
    let (_, example) = config::examples().iter().find(|(name, _)| *name == "twelve-meters").unwrap();
    example.split("[line.").skip(1).map(|rest| format!("[line.{rest}")).collect()
}

#[test]
fn the_table_of_points_reads_back_to_the_same_points() {
    for base in [0, 1] {
        let written = place(&device(base, &format!("[modbus.plc.point]{POINTS}")));
        let points = load(written.path()).modbus["plc"].points.clone();
        assert_eq!(points.len(), 14);
        for arguments in [&["--points", "plc"][..], &["--points"]] {
            let table = printed(written.path(), arguments);
            let again = place(&device(base, "points = \"plc.csv\"\n"));
            fs::write(again.path().join("plc.csv"), &table).unwrap();
            assert_eq!(load(again.path()).modbus["plc"].points, points, "{table}");
            assert_eq!(printed(again.path(), arguments), table, "and prints the same again");
        }
    }
}

#[test]
fn the_points_of_twelve_meters_read_back() {
    let folder = place(&meters());
    let before = load(folder.path());
    let table = printed(folder.path(), &["--points", "m12"]);
    fs::write(folder.path().join("em24.csv"), &table).unwrap();
    let after = load(folder.path());
    assert_eq!(before.modbus.len(), 12);
    for (name, device) in &before.modbus {
        assert_eq!(device.points.len(), 30);
        assert_eq!(after.modbus[name].points, device.points, "{name}: {table}");
    }
}

#[test]
fn twelve_meters_of_thirty_points_take_thirty_lines_and_a_table() {
    let (_, example) = config::examples().iter().find(|(name, _)| *name == "twelve-meters").unwrap();
    let lines = example.lines().filter(|line| !line.trim().is_empty()).count();
    let folder = place(&meters());
    let points: Vec<usize> = load(folder.path()).modbus.values().map(|device| device.points.len()).collect();
    assert_eq!(points, [30; 12]);
    assert!(lines <= 30, "{lines} lines");
}

#[test]
fn a_device_that_is_not_there_is_wrong_usage() {
    let folder = place(&device(0, &format!("[modbus.plc.point]{POINTS}")));
    let output = check(folder.path(), &["--points", "plcs"]);
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("there is no Modbus device \"plcs\"; there are: plc"), "{said}");
}

#[test]
fn each_request_is_printed_with_its_bytes_and_points() {
    let folder = place(
        &device(0, &format!("forbidden = [\"holding:102\"]\n[modbus.plc.point]{POINTS}")).replace("40103", "40104"),
    );
    let expected = "\
line tcp://10.0.0.1:502: 1 device, 9 requests, 1 % busy
  plc, unit 9
    .. .. 00 00 00 06 09 01 00 03 00 01
        coil 3 (00004) every 10s: pump
    .. .. 00 00 00 06 09 02 00 11 00 01
        discrete 17 (10018) every 10s: door
    .. .. 00 00 00 06 09 04 00 10 00 14
        input 16-35 (30017-30036) every 10s: energy, phase_0, phase_1, phase_2
";
    let text = printed(folder.path(), &["--wire"]);
    let (head, rest) = text.split_once("    .. .. 00 00 00 06 09 03").unwrap();
    let strip = |text: &str| text.lines().filter(|line| !line.starts_with("line ")).collect::<Vec<_>>().join("\n");
    assert_eq!(strip(head), strip(expected), "{text}");
    assert!(rest.contains("holding 103-104 (40104-40105) every 2s: flow"), "{text}");
    assert!(rest.contains("holding 200-201 (40201-40202) every 10s: running, any, mode, level, trim"), "{text}");

    // Modbus over Serial Line 1.02 and its checksum: unit 1, holding registers 107 to 109.
    let serial = "[line.bus]\nport = \"/dev/ttyS9\"\n[modbus.m]\nline = \"bus\"\nunit_id = 1\n[modbus.m.point]\n\
                  a = { address = \"holding:107\", type = \"u16\" }\nb = { address = \"holding:108\", type = \"u32\" }\n";
    let folder = place(serial);
    let text = printed(folder.path(), &["--wire"]);
    assert!(
        text.contains("    01 03 00 6B 00 03 74 17\n        holding 107-109 (40108-40110) every 10s: a, b\n"),
        "{text}"
    );
}

#[test]
fn a_line_that_cannot_do_what_is_asked_is_told_with_what_is_possible() {
    let without_cloud = meters();
    let folder = place(&without_cloud);
    let quiet = check(folder.path(), &[]);
    let said = String::from_utf8_lossy(&quiet.stderr).into_owned();
    assert!(quiet.status.success() && !said.contains("possible"), "{said}");
    assert!(said.is_empty() || said.contains("no [uplink]"), "{said}");

    let fast = without_cloud.replace("poll = \"30s\"", "poll = \"1s\"").replace("poll = \"5s\"", "poll = \"1s\"");
    let folder = place(&fast);
    let output = check(folder.path(), &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "it is a warning: {said}");
    assert!(said.contains("line meters: asked 1 s, possible ") && said.contains("tidegate.toml:2:"), "{said}");
    assert!(said.contains("help: its "), "{said}");
}
