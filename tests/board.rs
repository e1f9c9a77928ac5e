//! Is the board itself read like a device: what it has, what it gets later, what it loses, and what it never had?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;
mod field_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::gateway::{Gateway, PROGRAM, folder};
use common::peers::Subscriber;
use common::turn;
use field_support::{Running, empty};
use tidegate::config::{BoardConfig, BoardPoint, Config, Gauge, LoadRequest, PointTopic, load, render};
use tidegate::health::DeviceState;
use tidegate::message::{Qos, Quality, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio_serial::{SerialPort as _, SerialStream};

const TEMPERATURE: &str = "sys/class/thermal/thermal_zone0/temp";
const SUPPLY: &str = "sys/class/hwmon/hwmon0/in0_lcrit_alarm";

/// Replaced as a whole: a file that is half written is no answer of a kernel.
fn write(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(root.join("new"), format!("{text}\n")).unwrap();
    fs::rename(root.join("new"), path).unwrap();
}

fn configured(root: &Path, points: &[Gauge]) -> Config {
    let name = |gauge: &Gauge| Gauge::ALL.iter().find(|(_, known)| known == gauge).unwrap().0;
    let point = |gauge: &Gauge| BoardPoint {
        name: Arc::from(name(gauge)),
        gauge: *gauge,
        sensor: None,
        report: gauge.report(),
    };
    let mut config = empty();
    config.board = Some(BoardConfig {
        root: root.to_owned(),
        state_dir: root.to_owned(),
        poll: Duration::from_millis(20),
        topic: PointTopic("field/{device}/{point}".to_owned()),
        qos: Qos::AtLeastOnce,
        points: points.iter().map(point).collect(),
    });
    config
}

/// A board that has a temperature, and whose kernel is one.
fn board() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "proc/loadavg", "0.25 0.18 0.12 1/149 19140");
    write(dir.path(), "sys/class/thermal/thermal_zone0/type", "cpu-thermal");
    write(dir.path(), TEMPERATURE, "48000");
    dir
}

fn is_state(state: DeviceState) -> impl Fn(&Running) -> bool {
    move |running| running.device("board").state == state
}

#[tokio::test]
async fn a_board_tells_what_it_has_and_what_a_driver_brings_later() {
    let board = board();
    let running = Running::start(&configured(board.path(), &[]));
    let told = running.until_told("board", "temperature", Quality::Good, 1).await;
    assert_eq!((&told[0].value, told[0].unit.as_deref()), (&Value::Float(48.0), Some("°C")));
    running.until_told("board", "load", Quality::Good, 1).await;
    running.until("the board is well", |_| is_state(DeviceState::Good)(&running).then_some(())).await;
    assert!(running.all().iter().all(|reading| reading.quality == Quality::Good), "{:?}", running.all());

    write(board.path(), "sys/class/hwmon/hwmon0/name", "rpi_volt");
    write(board.path(), SUPPLY, "1");
    let told = running.until_told("board", "under_voltage", Quality::Good, 1).await;
    assert_eq!(told[0].value, Value::Bool(true));
    // A driver that was there and is gone is worth a word.
    fs::remove_file(board.path().join("sys/class/hwmon/hwmon0/name")).unwrap();
    running.until_told("board", "under_voltage", Quality::Bad, 1).await;
    running.until("part of it fails", |_| is_state(DeviceState::Degraded)(&running).then_some(())).await;
    running.stop().await;
}

#[tokio::test]
async fn a_point_that_is_written_down_and_not_there_is_bad_once_and_good_when_it_comes() {
    let board = board();
    let wanted = [Gauge::Temperature, Gauge::UnderVoltage, Gauge::FlashLifeUsed];
    let running = Running::start(&configured(board.path(), &wanted));
    let reason = running.until_told("board", "under_voltage", Quality::Bad, 1).await[0].reason.clone().unwrap();
    assert!(reason.contains("raspberrypi-hwmon"), "{reason}");
    let reason = running.until_told("board", "flash_life_used", Quality::Bad, 1).await[0].reason.clone().unwrap();
    assert!(reason.contains("eMMC"), "{reason}");
    running.until_told("board", "temperature", Quality::Good, 1).await;
    assert!(running.of("board", "load").is_empty(), "it was not asked for");
    // Nine more looks: what stays bad is not told with each.
    let looks = running.device("board").exchanges;
    running.until("nine looks", |_| (running.device("board").exchanges > looks + 9).then_some(())).await;
    assert_eq!(running.of("board", "under_voltage").len(), 1);

    write(board.path(), "sys/class/hwmon/hwmon0/name", "rpi_volt");
    write(board.path(), SUPPLY, "0");
    running.until_told("board", "under_voltage", Quality::Good, 1).await;
    write(board.path(), "sys/block/mmcblk0/device/life_time", "0x03 0x02");
    let told = running.until_told("board", "flash_life_used", Quality::Good, 1).await;
    assert_eq!((&told[0].value, told[0].unit.as_deref()), (&Value::Uint(30), Some("%")));
    running.until("all of it is well", |_| is_state(DeviceState::Good)(&running).then_some(())).await;
    running.stop().await;
}

#[tokio::test]
async fn a_temperature_is_told_when_it_has_moved_and_a_sensor_that_fails_at_once() {
    let board = board();
    let running = Running::start(&configured(board.path(), &[Gauge::Temperature]));
    running.until_told("board", "temperature", Quality::Good, 1).await;
    for text in ["48900", "47100", "49200"] {
        let looks = running.device("board").exchanges;
        write(board.path(), TEMPERATURE, text);
        // The look that was under way may have read the value before.
        running.until("two looks", |_| (running.device("board").exchanges >= looks + 2).then_some(())).await;
    }
    running.until_told("board", "temperature", Quality::Good, 2).await;
    let values: Vec<Value> = running.of("board", "temperature").into_iter().map(|reading| reading.value).collect();
    assert_eq!(values, [Value::Float(48.0), Value::Float(49.2)]);
    write(board.path(), TEMPERATURE, "-274000");
    running.until_told("board", "temperature", Quality::Bad, 1).await;
    running.until("nothing can be read", |_| is_state(DeviceState::Dead)(&running).then_some(())).await;
    write(board.path(), TEMPERATURE, "49200");
    running.until_told("board", "temperature", Quality::Good, 3).await;
    running.stop().await;
}

#[test]
fn an_empty_table_is_enough_and_it_goes_and_comes_with_a_reload_and_is_seen_wherever_devices_are() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::prepared(folder.path(), "");
    gateway.start();
    let mut local = Subscriber::started(gateway.port, "local", &["field/#", "tidegate/+/device/board"]);
    let path = gateway.config_path();
    let run = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).args(arguments).arg("--config").arg(&path).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n[board]\n")).unwrap();
    assert_eq!(run(&["reload"]).0, Some(0));
    for topic in ["field/board/load", "field/board/memory_available", "field/board/disk_free"] {
        local.wait_for_count(topic, 1);
        let reading = local.received_on(topic)[0].json();
        assert_eq!((&reading["quality"], &reading["device"]), (&"good".into(), &"board".into()), "{reading}");
        assert!(reading["value"].is_number(), "{reading}");
    }
    gateway.wait_for_status("the board is a device", |status| {
        (status["devices"]["board"]["state"] == "good").then_some(())
    });
    let (code, checked) = run(&["check"]);
    assert_eq!(code, Some(0));
    let line = checked.lines().find(|line| line.starts_with("board ")).expect("a line for the board");
    assert!(line.contains("load, memory_available, disk_free"), "{checked}");
    let (_, examined) = run(&["doctor"]);
    assert!(examined.contains("board is read"), "{examined}");
    fs::write(&path, text).unwrap();
    assert_eq!(run(&["reload"]).0, Some(0));
    local.wait("its state is taken back", |messages| {
        messages.iter().any(|message| message.topic.ends_with("/device/board") && message.payload.is_empty())
    });
    assert!(gateway.status().unwrap()["devices"].get("board").is_none());
    gateway.stop();
}

/// The block for a modem of the documents, with this port and less patience.
fn modem(port: &Path) -> String {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/board.md")).unwrap();
    let blocks = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let block = blocks.into_iter().find(|block| block.contains("[serial.modem]")).expect("there is such a block");
    let mut lines: Vec<String> = block.lines().map(str::to_owned).collect();
    for line in &mut lines {
        if line.starts_with("port = ") {
            *line = format!("port = {:?}", port.to_str().unwrap());
        }
    }
    lines.join("\n").replace("\"60s\"", "\"300ms\"")
}

#[tokio::test]
async fn the_signal_of_a_modem_is_read_by_the_block_of_the_documents() {
    let (ours, far_end) = SerialStream::pair().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    let port = PathBuf::from(far_end.name().unwrap());
    fs::write(&file, format!("[gateway]\nid = \"test\"\n{}", modem(&port))).unwrap();
    let root = folder.path().to_owned();
    let request = LoadRequest { root, config: Some(file), credentials_dir: None, kept_id: None };
    let loaded = load(&request).unwrap_or_else(|problems| panic!("{}", render(&problems, &[])));
    drop(far_end);
    let mut modem = JoinSet::new();
    // Echo, empty lines and all, as a modem answers; the second time it has no network.
    modem.spawn(async move {
        let mut ours = ours;
        let (mut heard, mut bytes, mut answers) = (Vec::new(), [0; 64], 0);
        loop {
            let count = ours.read(&mut bytes).await.unwrap_or(0);
            heard.extend(&bytes[..count]);
            if count == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            } else if heard.ends_with(b"AT+CSQ\r") {
                heard.clear();
                answers += 1;
                let signal = ["17", "99", "5"][answers.min(3) - 1];
                ours.write_all(format!("AT+CSQ\r\r\n+CSQ: {signal},99\r\n").as_bytes()).await.unwrap();
                ours.write_all(b"\r\nOK\r\n").await.unwrap();
            }
        }
    });
    let running = Running::start(&loaded.config);
    let told = running.until_told("modem", "signal", Quality::Good, 1).await;
    assert_eq!(told[0].value, Value::Int(17));
    running.until_told("modem", "signal", Quality::Bad, 1).await;
    let told = running.until_told("modem", "signal", Quality::Good, 2).await;
    assert_eq!(told[1].value, Value::Int(5));
    running.stop().await;
    modem.shutdown().await;
}
