//! A wrong configuration ends `run` and `check` with 78, with every problem at its place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::process::{Command, Output};

use common::gateway::{Gateway, PROGRAM, folder};
use common::turn;
use tidegate::config::{LoadRequest, load};

/// Eight faults of different kinds, each marked by what must be named and the place of the mark in its line.
const WRONG: &str = r#"[gateway]
id = "hall-3"
state_dri = "/nonexistent"

[queue]
max_bytes = "1 GiBB"
when_full = "explode"

[uplink.cloud]
url = "ftp://broker.example.com"
protocol = "4"
[[uplink.cloud.forward]]
filter = "plant/#/x"

[modbus.chiller]
line = "tcp://127.0.0.1:5020"
unit_id = 300
[modbus.chiller.point]
level = { address = "holding:70000", type = "u16" }
"#;

/// Line and column of each fault, both from 1, and a word of it.
const FAULTS: [(usize, &str); 8] = [
    (3, "state_dri"),
    (6, "\"1 GiBB\""),
    (7, "\"explode\""),
    (10, "\"ftp://broker.example.com\""),
    (11, "\"4\""),
    (13, "\"plant/#/x\""),
    (17, "300"),
    (19, "\"holding:70000\""),
];

fn run(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(PROGRAM).args(arguments).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, said)
}

#[test]
fn a_wrong_configuration_exits_78_with_every_problem_at_its_place() {
    let _turn = turn();
    let folder = folder();
    let path = folder.path().join("wrong.toml");
    std::fs::write(&path, WRONG).unwrap();
    let path = path.to_str().unwrap();
    let mut said_by_both = Vec::new();
    for command in ["check", "run"] {
        let (output, said) = run(&[command, "--config", path]);
        assert_eq!(output.status.code(), Some(78), "{command} ended with {}:\n{said}", output.status);
        for (line, fault) in FAULTS {
            let text = WRONG.lines().nth(line - 1).unwrap();
            let column = text.find(fault).unwrap() + 1;
            let place = format!("wrong.toml:{line}:{column}");
            assert!(said.contains(&place), "{command} does not say {place} ({fault}):\n{said}");
        }
        assert!(said.contains("state_dir"), "{command} says what was meant:\n{said}");
        said_by_both.push(said);
    }
}

#[test]
fn a_file_that_is_no_toml_and_one_that_is_not_there_exit_78() {
    let _turn = turn();
    let folder = folder();
    let broken = folder.path().join("broken.toml");
    std::fs::write(&broken, "[gateway]\nid = \"hall-3\nstate_dir = 7\n").unwrap();
    let (output, said) = run(&["run", "--config", broken.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("broken.toml:2:"), "{said}");
    let absent = folder.path().join("absent.toml");
    let (output, said) = run(&["run", "--config", absent.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("absent.toml"), "{said}");
}

#[test]
fn a_right_configuration_passes_the_check_and_wrong_usage_exits_64() {
    let _turn = turn();
    let folder = folder();
    let gateway = Gateway::started(folder.path(), "");
    let (output, said) = run(&["check", "--config", gateway.config_path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let (output, said) = run(&["run", "--no-such-flag"]);
    assert_eq!(output.status.code(), Some(64), "{said}");
    let (output, _) = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let (output, said) = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
}

#[test]
fn status_without_a_running_gateway_says_so() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    let status = gateway.status().unwrap();
    for key in ["version", "gateway", "uptime_s", "clock", "queue", "uplinks", "devices", "sessions", "losses"] {
        assert!(status.get(key).is_some(), "{key} is pinned: {status}");
    }
    gateway.stop();
    assert!(gateway.status().is_err());
}

#[test]
fn the_default_window_at_3_1_1_is_one_that_a_broker_without_a_word_for_its_limit_takes() {
    let folder = folder();
    let path = folder.path().join("window.toml");
    let window = |table: &str| {
        let text = format!("[gateway]\nid = \"hall-3\"\n[uplink.cloud]\nurl = \"mqtt://127.0.0.1\"\n{table}");
        std::fs::write(&path, text).unwrap();
        let loaded = load(&LoadRequest::standard(Some(path.clone()))).unwrap();
        loaded.config.uplinks["cloud"].window.get()
    };
    assert_eq!(window(""), 100);
    assert_eq!(window("protocol = \"3.1.1\"\n"), 20);
    assert_eq!(window("protocol = \"3.1.1\"\nwindow = 500\n"), 500);
}
