//! Do the tools that a person commissions with say what is wrong, and is what they print a configuration?
//!
//! The counterparts are `tidegate simulate`; libmodbus stands in `modbus_libmodbus.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::PATIENCE;
use common::process::Process;
use tempfile::TempDir;
use tidegate::config::{self, Config, LoadRequest, PointKind, Table, WordOrder};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

/// With `--wave constant` a real number is 50 and a whole one 500, before scaling. Nothing stands between the points, so
/// that a wrong address is refused.
const DEVICE: &str = r#"
[modbus.meter]
line = "tcp://10.0.0.1"
unit_id = 7
gap = 0
[modbus.meter.point]
plain = { address = "holding:100", type = "f32" }
words = { address = "holding:110", type = "f32", order = "cdab" }
bytes = { address = "holding:120", type = "f32", order = "badc" }
little = { address = "holding:130", type = "f32", order = "dcba" }
tenths = { address = "holding:140", type = "u16", scale = 0.1 }
serial = { address = "holding:150", type = "string", registers = 3 }
other = { address = "input:200", type = "f32" }
"#;

fn place(text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("etc")).unwrap();
    fs::write(folder.path().join("etc/machine-id"), "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n").unwrap();
    fs::write(folder.path().join("tidegate.toml"), text).unwrap();
    folder
}

fn load(folder: &Path) -> Config {
    let config = Some(folder.join("tidegate.toml"));
    let request = LoadRequest { root: folder.to_owned(), config, credentials_dir: None, kept_id: None };
    config::load(&request).unwrap_or_else(|problems| panic!("{}", config::render(&problems, &[]))).config
}

/// `tidegate simulate modbus`, and where it is.
struct Simulation {
    _process: Process,
    line: String,
    _folder: TempDir,
}

impl Simulation {
    fn start(words: &[&str]) -> Simulation {
        let folder = place(DEVICE);
        let file = folder.path().join("tidegate.toml");
        let device = ["--config", file.to_str().unwrap(), "--wave", "constant"];
        let own = if words.contains(&"--units") || words.contains(&"--replay") { &[][..] } else { &device };
        let link = folder.path().join("pty");
        let at = ["--pty", "--link", link.to_str().unwrap()];
        let place = if words.contains(&"--heed") { &at[..] } else { &["--listen", "127.0.0.1:0"] };
        let process = Process::start("simulate", PROGRAM, &[&["simulate", "modbus"], own, place, words].concat());
        process_ready(process, folder, &link, words.contains(&"--heed"))
    }

    fn tcp() -> Simulation {
        Simulation::start(&[])
    }

    /// The same line with serial frames.
    fn rtu_url(&self) -> String {
        self.line.replace("tcp://", "rtu-tcp://")
    }
}

fn process_ready(mut process: Process, folder: TempDir, link: &Path, is_pty: bool) -> Simulation {
    process.wait_for_line(PATIENCE, "that it serves", |line| line.contains("served"));
    let line = if is_pty {
        link.to_str().unwrap().to_owned()
    } else {
        let said = process.stdout().join("\n");
        let (_, rest) = said.split_once("tcp://").unwrap_or_else(|| panic!("{said}"));
        let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).unwrap_or(rest.len());
        format!("tcp://{}", &rest[..end])
    };
    Simulation { _process: process, line, _folder: folder }
}

fn tool(words: &[&str]) -> Output {
    Command::new(PROGRAM).arg("modbus").args(words).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn told(words: &[&str]) -> String {
    said(&tool(words))
}

/// What goes into the configuration.
fn block(output: &Output) -> Config {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, block) = text.split_once("For the configuration:\n").unwrap_or_else(|| panic!("{}", said(output)));
    load(place(block).path())
}

/// A mistake in the wiring or the configuration, what a person does about it, and the word that names it.
fn mistakes() -> Vec<(&'static str, String, &'static str)> {
    let tcp = Simulation::tcp();
    let best = |address: &str, shows: &str| {
        let text = told(&["guess", &tcp.line, "--unit", "7", address, "--shows", shows]);
        text.lines().find(|line| line.starts_with("best:")).unwrap_or("nothing").to_owned()
    };
    let searched = |settings: &str| {
        let bus = Simulation::start(&["--heed", settings]);
        told(&["scan", &bus.line, "--try", "--units", "7", "--timeout", "400ms"])
    };
    let wire = |address: &str| {
        let folder = place(&DEVICE.replace("holding:100", address));
        let file = folder.path().join("tidegate.toml");
        said(&Command::new(PROGRAM).args(["check", "--wire", "--config"]).arg(file).output().unwrap())
    };
    let dead = Simulation::start(&["--units", "1", "--dead", "2"]);
    vec![
        ("words swapped", best("holding:110", "50.00"), "f32 cdab"),
        ("bytes swapped", best("holding:120", "50.00"), "f32 badc"),
        ("all bytes swapped", best("holding:130", "50.00"), "f32 dcba"),
        ("a scale forgotten", best("holding:140", "50.0"), "u16 abcd, scale 0.1"),
        ("one register too high", best("holding:101", "50.00"), "holding:100"),
        (
            "an address base of 1",
            told(&["read", &tcp.line, "--unit", "7", "holding:101", "--type", "f32"]),
            "address_base = 1",
        ),
        (
            "the other table",
            told(&["read", &tcp.line, "--unit", "7", "holding:200", "--type", "f32"]),
            "input:200 is there",
        ),
        ("another unit id", told(&["scan", &tcp.line, "--units", "1-9", "--timeout", "300ms"]), "unit 7 answers"),
        (
            "serial frames on TCP",
            told(&["read", &tcp.rtu_url(), "--unit", "7", "holding:100", "--timeout", "500ms"]),
            "answers on tcp://",
        ),
        ("parity", searched("9600,8N1"), "at 9600 8N1"),
        ("stop bits", searched("9600,8N2"), "at 9600 8N2"),
        ("baud rate", searched("38400,8E1"), "at 38400 8E1"),
        ("a reference number", wire("40100"), "holding 99-100 (40100-40101)"),
        // Two wires that are swapped look like a device without power: nobody can tell them apart from here.
        (
            "A and B swapped",
            told(&["read", &dead.line, "--unit", "2", "holding:0", "--timeout", "300ms"]),
            "A and B are swapped",
        ),
    ]
}

#[test]
fn the_tools_name_nine_of_ten_mistakes() {
    let mistakes = mistakes();
    let is_named = |(_, text, word): &&(&str, String, &str)| text.contains(word);
    let unnamed: Vec<_> = mistakes.iter().filter(|mistake| !is_named(mistake)).collect();
    let named = mistakes.len() - unnamed.len();
    println!("{named} of {} mistakes are named", mistakes.len());
    assert!(named * 10 >= mistakes.len() * 9, "{named} of {} are named, these are not: {unnamed:#?}", mistakes.len());
}

#[test]
fn what_is_printed_is_a_configuration_that_reads_the_same() {
    let tcp = Simulation::tcp();
    let read =
        tool(&["read", &tcp.line, "--unit", "7", "holding:110", "--type", "f32", "--order", "cdab", "--scale", "2"]);
    assert!(String::from_utf8_lossy(&read.stdout).lines().next().unwrap().contains(" 100 "), "{}", said(&read));
    let config = block(&read);
    let device = &config.modbus["unit_7"];
    let point = &device.points[0];
    assert_eq!((&*device.line, device.unit_id), (tcp.line.as_str(), 7));
    assert_eq!(
        (point.table, point.address, point.kind, point.order),
        (Table::Holding, 110, PointKind::F32, WordOrder::Cdab)
    );
    assert_eq!(point.meaning.scale, 2.0);

    let guessed = block(&tool(&["guess", &tcp.line, "--unit", "7", "holding:140", "--shows", "50.0"]));
    let point = &guessed.modbus["unit_7"].points[0];
    assert_eq!((point.address, point.kind, point.meaning.scale), (140, PointKind::U16, 0.1));

    let words = tool(&["guess", &tcp.line, "--unit", "7", "holding:150", "--shows", "serial"]);
    assert_eq!(block(&words).modbus["unit_7"].points[0].kind, PointKind::String { registers: 3.try_into().unwrap() });

    let written = tool(&["write", &tcp.line, "--unit", "7", "holding:140", "12.5", "--scale", "0.1", "--yes"]);
    assert!(said(&written).contains("is 12.5 now"), "{}", said(&written));
    assert!(block(&written).modbus["unit_7"].points[0].write.is_some());

    let bus = Simulation::start(&["--heed", "19200,8N1", "--units", "3,5"]);
    let found = tool(&["scan", &bus.line, "--baud", "19200", "--mode", "8N1", "--units", "1-6", "--timeout", "500ms"]);
    let config = block(&found);
    assert_eq!(config.modbus.keys().map(|name| &**name).collect::<Vec<_>>(), ["unit_3", "unit_5"], "{}", said(&found));
    let many =
        tool(&["read", &bus.line, "--baud", "19200", "--mode", "8N1", "--unit", "5", "holding:100", "--count", "2"]);
    assert_eq!(block(&many).modbus["unit_5"].points.len(), 2, "{}", said(&many));
}

#[test]
fn without_a_value_a_register_is_shown_under_every_type_and_order() {
    let tcp = Simulation::tcp();
    let text = told(&["guess", &tcp.line, "--unit", "7", "holding:110"]);
    for kind in ["u16", "i16", "u32", "i32", "u64", "i64", "f16", "f32", "f64", "bcd16", "bcd32", "bcd64"] {
        assert!(text.lines().any(|line| line.starts_with(kind)), "{kind}: {text}");
    }
    let row = text.lines().find(|line| line.starts_with("f32")).unwrap();
    assert_eq!(row.split_whitespace().nth(2), Some("50"), "the second order is cdab: {text}");
}

#[test]
fn how_a_tool_ends_says_who_has_to_do_something() {
    let tcp = Simulation::start(&["--units", "1,5", "--fault", "5:exception=6"]);
    let line = tcp.line.as_str();
    let port = common::port::free();
    let nobody = format!("tcp://127.0.0.1:{port}");
    for (words, code, word) in [
        (&["read", line, "holding:100"][..], 0, "54321"),
        (&["read", line, "holding:100", "--type", "f33"], 64, "f32"),
        (&["read", line, "hold:100"], 64, "holding"),
        (&["read", line, "holding:0", "--count", "200"], 64, "--count"),
        (&["read", line, "coil:1", "--type", "u16"], 64, "bool"),
        (&["read", "meter", "holding:0"], 64, "/dev/ttyUSB0"),
        (&["write", line, "input:0", "1", "--yes"], 64, "holding registers and coils"),
        (&["write", line, "holding:0", "70000", "--yes"], 64, "cannot be written"),
        (&["scan", line, "--try"], 64, "serial"),
        (&["read", line, "holding:5000"], 70, "illegal data address"),
        (&["guess", line, "holding:100", "--shows", "987654321.5"], 70, "fits"),
        (&["read", line, "--unit", "9", "holding:100", "--timeout", "100ms"], 75, "unit 1 answers"),
        (&["read", line, "--unit", "5", "holding:100"], 75, "busy"),
        (&["read", &nobody, "holding:0"], 75, "cannot connect"),
        (&["scan", line, "--units", "6-8", "--timeout", "50ms"], 75, "nobody answers"),
        (&["read", "/dev/not-there", "holding:0"], 75, "plugged in"),
    ] {
        let output = tool(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
        assert!(said(&output).contains(word), "{words:?}: {word} in {}", said(&output));
    }
}

#[test]
fn a_scan_ends_in_its_time() {
    let tcp = Simulation::start(&["--units", "200"]);
    let output = tool(&["scan", &tcp.line, "--timeout", "200ms", "--within", "1s"]);
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    assert!(said(&output).contains("--within"), "{}", said(&output));
}

#[test]
fn what_was_recorded_is_served_again() {
    let tcp = Simulation::tcp();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("meter.rec");
    let file = file.to_str().unwrap();
    let words = |line: &str| -> Vec<String> {
        ["guess", line, "--unit", "7", "holding:110", "--shows", "50.00"].map(str::to_owned).into()
    };
    let run = |line: &str, more: &[&str]| {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let output = tool(&words);
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8_lossy(&output.stdout).lines().filter(|text| !text.starts_with("line = ")).collect::<String>()
    };
    let first = run(&tcp.line, &["--record", file]);
    let recorded = fs::read_to_string(file).unwrap();
    assert!(recorded.starts_with("# tidegate record 1 tcp\n") && recorded.contains(" > ") && recorded.contains(" < "));
    let replayed = Simulation::start(&["--replay", file]);
    assert_eq!(run(&replayed.line, &[]), first);
    let never_asked = tool(&["read", &replayed.line, "--unit", "7", "holding:900", "--timeout", "100ms"]);
    assert_eq!(never_asked.status.code(), Some(75), "{}", said(&never_asked));

    fs::write(file, "# tidegate record 1 tcp\n0.1 nonsense\n").unwrap();
    let output = Command::new(PROGRAM).args(["simulate", "modbus", "--replay", file]).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    assert!(said(&output).contains("line 2"), "{}", said(&output));
}
