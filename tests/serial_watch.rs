//! `tidegate serial`: what is seen before any configuration exists, and whether the table that it prints is one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::cloud::Mosquitto;
use common::gateway::{Gateway, folder, uplink};
use common::peers::{Cable, Subscriber, script};
use common::turn;

fn serial(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("serial").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The table at the end of what `watch` prints.
fn table(output: &Output) -> String {
    let shown = text(&output.stdout);
    let at = shown.find("[serial.device]").unwrap_or_else(|| panic!("no table in {shown}"));
    shown[at..].to_owned()
}

#[track_caller]
fn ends_with(status: i32, arguments: &[&str], what: &str) {
    let output = serial(arguments);
    let told = text(&output.stderr);
    assert_eq!((output.status.code(), told.contains(what)), (Some(status), true), "{arguments:?}: {told}");
}

#[test]
fn wrong_usage_is_named_with_its_exit_status() {
    let folder = folder();
    let absent = folder.path().join("absent").display().to_string();
    ends_with(64, &["watch"], "PORT");
    ends_with(64, &["watch", "/dev/ttyS1", "--mode", "9X9"], "serial mode");
    ends_with(64, &["watch", "/dev/ttyS1", "--frame", "{ lenght = 12 }"], "did you mean `length`?");
    ends_with(64, &["watch", "/dev/ttyS1", "--frame", "{ length = 12 }"], "nothing shows where a frame begins");
    ends_with(64, &["watch", "/dev/ttyS1", "--parse", "(weight"], "unclosed group");
    ends_with(64, &["watch", "/dev/ttyS1", "--parse", "{ bytes = true }"], "binary frames need points");
    ends_with(64, &["watch", "--replay", &absent], "cannot play");
    ends_with(64, &["watch", "not-a-path"], "is not the path of a serial port");
    ends_with(75, &["watch", &absent], "is the adapter plugged in?");
    let listed = serial(&["list"]);
    assert!(listed.status.success() && !listed.stdout.is_empty(), "{listed:?}");
}

#[test]
fn what_pyserial_says_is_shown_recorded_played_back_and_the_printed_table_reads_it() {
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let device = script("serial_device", &[Path::new("telegrams"), &cable.far]);
    let (near, kept) = (cable.near.display().to_string(), folder.path().join("kept").display().to_string());
    let frame = r#"{ start = 0x02, end = 0x03, tail = 1, checksum = { kind = "xor", from = 1 } }"#;
    let parse = r#"{ fixed = ["weight 1-8"], decimal = "," }"#;
    let how = ["--frame", frame, "--parse", parse];
    let watched = serial(&[&["watch", &near, "--count", "12", "--record", &kept][..], &how].concat());
    let shown = text(&watched.stdout);
    assert!(watched.status.success(), "{watched:?}");
    assert!(
        shown.contains("=  weight = ") && shown.contains("12 frames, 12 of which fit --parse; 0 dropped"),
        "{shown}"
    );
    assert!(shown.lines().any(|line| line.contains("  <  \"\\x0200")), "{shown}");

    let replayed = serial(&[&["watch", "--replay", &kept, "--count", "12"][..], &how].concat());
    let frames = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.contains("  <  ") || line.contains("  =  ")).map(str::to_owned).collect()
    };
    // The time of a frame is that of the bytes that completed it, now as then.
    assert_eq!(frames(&text(&replayed.stdout)), frames(&shown));
    // Nothing is written over.
    ends_with(64, &[&["watch", &near, "--record", &kept][..], &how].concat(), "cannot record");

    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + &table(&watched);
    let gateway = Gateway::started(folder.path(), &tables);
    let reading = application.wait_for_message("field/device/weight", |message| message.json()["quality"] == "good");
    assert!(reading.json()["value"].as_f64().unwrap() > 0.0);
    drop(gateway);
    drop(device);
}

#[test]
fn without_a_frame_bursts_are_shown_and_a_table_is_proposed() {
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let device = script("serial_device", &[Path::new("asked"), &cable.far]);
    let near = cable.near.display().to_string();
    let watched = serial(&["watch", &near, "--send", r"W\r", "--every", "200ms", "--count", "3"]);
    let shown = text(&watched.stdout);
    assert!(watched.status.success(), "{watched:?}");
    assert!(shown.contains(r#"  >  "W\r"  57 0D"#), "{shown}");
    assert!(shown.contains(r#"kg\r""#), "{shown}");
    let table = table(&watched);
    assert!(table.contains(r#"frame = { delimiter = "\r" }"#) && table.contains("(?<value>"), "{table}");
    assert!(table.contains(r#"ask = { send = "W\r", every = "200ms""#), "{table}");
    drop(device);
}

#[test]
fn an_interrupt_ends_it_clean_and_prints_the_table() {
    use std::io::{BufRead as _, BufReader, Read as _};
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let device = script("serial_device", &[Path::new("telegrams"), &cable.far]);
    let mut watch = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["serial", "watch", &cable.near.display().to_string(), "--frame", "0x03"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(watch.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains("  <  "), "{line}");
    let pid = rustix::process::Pid::from_raw(watch.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(watch.wait().unwrap().success());
    assert!(rest.contains("[serial.device]"), "{rest}");
    drop(device);
}

#[test]
fn the_gateway_reads_a_drive_through_damage_and_counts_it() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    let cable = Cable::laid(folder.path());
    let device = script("serial_device", &[Path::new("drive"), &cable.far]);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + &format!(
            "[serial.drive]\nport = \"{}\"\nparse = {{ bytes = true }}\n\
             frame = {{ start = [0xAA, 0x55], length = {{ offset = 2, plus = 2 }}, checksum = {{ kind = \"crc16-modbus\" }} }}\n\
             [serial.drive.point]\nspeed = {{ at = 3, type = \"i16\", scale = 0.1 }}\nstate = {{ at = 5, type = \"u8\" }}\n",
            cable.near.display()
        );
    let gateway = Gateway::started(folder.path(), &tables);
    application.wait("a hundred speeds", |received| {
        received.iter().filter(|message| message.topic == "field/drive/speed").count() >= 100
    });
    for message in application.received_on("field/drive/speed") {
        let value = message.json()["value"].as_f64().unwrap();
        assert!((-150.0..=150.0).contains(&value), "{message:?}");
    }
    gateway.wait_for_status("damage is counted by its kind", |status| {
        status["devices"]["drive"]["faults"]["checksum"].as_u64().filter(|count| *count >= 10)
    });
    drop(device);
}
