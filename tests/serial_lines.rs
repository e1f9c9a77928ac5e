//! Do serial devices that speak lines of text give readings, and only right ones, whether they are asked or speak by
//! themselves, and whatever happens to the port?
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use field_support::{Running, add_serial, empty, point};
use regex::Regex;
use tidegate::config::{
    Ask, ByteOrder, BytesField, Checksum, ChecksumForm, ChecksumKind, Config, Counts, Ending, LengthField, Parse,
    PointKind, Report, SerialConfig, SerialPoint, Table, TextKind,
};
use tidegate::field::serial::checksum;
use tidegate::field::simulate::serial::{Server, Settings};
use tidegate::field::simulate::{Place, SimulateError};
use tidegate::message::{Quality, Reading, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_serial::{SerialPort as _, SerialStream};
use tokio_util::sync::CancellationToken;

mod field_support;

struct Scale {
    path: PathBuf,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), SimulateError>>,
}

impl Scale {
    async fn start(every: Option<Duration>, decimal: char) -> Scale {
        let server = Server::bind(Settings { every, decimal, ..Settings::at(Place::Pty) }).await.unwrap();
        let (path, stop) = (server.path(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(stop.clone()));
        Scale { path, stop, tasks }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn weights() -> Parse {
    Parse::Regex(Regex::new(r"^S (?<status>[SD])\s+(?<weight>-?\s*[0-9.,]+)\s*kg$").unwrap())
}

fn device(config: &mut Config, path: &Path, decimal: u8) {
    add_serial(config, "scale", path, weights());
    let scale = the_scale(config);
    scale.decimal = decimal;
    scale.good.insert("status".into(), vec!["S".into()]);
    let report = Report::default();
    scale.points = vec![SerialPoint {
        name: Arc::from("weight"),
        pointer: None,
        bytes: None,
        kind: TextKind::F64,
        unit: Some(Arc::from("kg")),
        report,
    }];
}

fn the_scale(config: &mut Config) -> &mut SerialConfig {
    config.serial.get_mut("scale").unwrap()
}

fn asks(config: &mut Config, every_ms: u64, timeout_ms: u64) {
    the_scale(config).ask = Some(Ask {
        send: b"SI\r\n".to_vec(),
        every: Duration::from_millis(every_ms),
        timeout: Duration::from_millis(timeout_ms),
    });
}

fn pty() -> (SerialStream, SerialStream, PathBuf) {
    let (ours, far_end) = SerialStream::pair().unwrap();
    let path = PathBuf::from(far_end.name().unwrap());
    (ours, far_end, path)
}

fn weight(reading: &Reading) -> f64 {
    match reading.value {
        Value::Float(value) => value,
        _ => panic!("not a weight: {reading:?}"),
    }
}

/// The simulator's weights rise by 10 g from −1 kg; every tenth is of a moving scale.
fn is_in_step(readings: &[Reading]) {
    for (number, reading) in readings.iter().enumerate() {
        let first = (weight(&readings[0]) * 100.0).round() as i64;
        let hundredths = first + i64::try_from(number).unwrap();
        assert_eq!((weight(reading) * 100.0).round() as i64, hundredths, "{reading:?}");
        let moves = (hundredths + 100) % 10 == 9;
        assert_eq!(reading.quality, if moves { Quality::Uncertain } else { Quality::Good }, "{reading:?}");
        assert_eq!(reading.reason.as_deref(), moves.then_some("status is \"D\""));
        assert_eq!(reading.unit.as_deref(), Some("kg"));
    }
}

#[tokio::test]
async fn a_scale_that_is_asked_gives_each_weight_once_and_in_order() {
    for (decimal, byte) in [('.', b'.'), (',', b',')] {
        let scale = Scale::start(None, decimal).await;
        let mut config = empty();
        device(&mut config, &scale.path, byte);
        asks(&mut config, 10, 2000);
        let running = Running::start(&config);
        running.until_told("scale", "weight", Quality::Good, 20).await;
        let health = serde_json::to_value(running.device("scale")).unwrap();
        assert_eq!((&health["state"], &health["malformed"]), (&"good".into(), &0.into()), "{health}");
        let told = running.stop().await;
        assert_eq!(weight(&told[0]), -1.0);
        is_in_step(&told);
        scale.stop().await;
    }
}

#[tokio::test]
async fn a_scale_that_speaks_by_itself_is_heard() {
    let scale = Scale::start(Some(Duration::from_millis(20)), '.').await;
    let mut config = empty();
    device(&mut config, &scale.path, b'.');
    let running = Running::start(&config);
    running.until_told("scale", "weight", Quality::Good, 20).await;
    is_in_step(&running.stop().await);
    scale.stop().await;
}

#[tokio::test]
async fn without_points_every_named_group_is_a_point() {
    let scale = Scale::start(None, '.').await;
    let mut config = empty();
    device(&mut config, &scale.path, b'.');
    asks(&mut config, 10, 2000);
    the_scale(&mut config).points.clear();
    let running = Running::start(&config);
    let status = running.until_told("scale", "status", Quality::Good, 1).await;
    assert_eq!(status[0].value, Value::Text("S".into()));
    running.until_told("scale", "weight", Quality::Good, 3).await;
    running.stop().await;
    scale.stop().await;
}

#[tokio::test]
async fn a_device_that_does_not_answer_is_told_as_bad_once_and_is_good_again_when_it_does() {
    let (mut ours, _far_end, path) = pty();
    let mut config = empty();
    device(&mut config, &path, b'.');
    asks(&mut config, 10, 50);
    let running = Running::start(&config);
    let mut question = [0; 4];
    for _ in 0..5 {
        ours.read_exact(&mut question).await.unwrap();
        assert_eq!(&question, b"SI\r\n");
    }
    let bad = running.of("scale", "weight");
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!(bad[0].reason.as_deref(), Some("no answer within 50 ms"));
    assert_eq!(serde_json::to_value(running.device("scale")).unwrap()["state"], "dead");
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        while ours.read_exact(&mut question).await.is_ok() {
            ours.write_all(b"S S      1.00 kg\r\n").await.unwrap();
        }
    });
    let good = running.until_told("scale", "weight", Quality::Good, 5).await;
    assert!(good.iter().all(|reading| weight(reading) == 1.0));
    running.stop().await;
}

/// The second half of each answer comes after the next question, as if it were the answer to that.
#[tokio::test]
async fn half_of_a_late_answer_is_never_taken_for_an_answer() {
    let (mut ours, _far_end, path) = pty();
    let mut config = empty();
    add_serial(&mut config, "scale", &path, Parse::Regex(Regex::new(r"(?<weight>[0-9.]+) kg$").unwrap()));
    asks(&mut config, 30, 60);
    let running = Running::start(&config);
    let mut question = [0; 4];
    for number in 0..10 {
        ours.read_exact(&mut question).await.unwrap();
        if number > 0 {
            ours.write_all(b"6.00 kg\r\n").await.unwrap();
        }
        ours.write_all(b"S S      66").await.unwrap();
    }
    let told = running.stop().await;
    assert!(!told.is_empty() && told.iter().all(|reading| reading.value == Value::Null), "{told:?}");
}

#[tokio::test]
async fn frames_that_fit_nothing_are_counted_and_the_next_right_one_is_read() {
    let (mut ours, _far_end, path) = pty();
    let mut config = empty();
    device(&mut config, &path, b'.');
    let running = Running::start(&config);
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        // Begins in the middle of a frame, so that the tail alone would look like another weight.
        loop {
            let stream: [&[u8]; 6] = [
                b"S S 2.50 kg\r\n",
                b"\xff\xfe\x00garbage\r\n",
                &[b'x'; 500],
                b"\r\n",
                b"S S 6.66 kg S S 6.66 kg\r\n",
                b"S I\r\n\r\n\r\n",
            ];
            for bytes in stream {
                ours.write_all(bytes).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let told = running.until_told("scale", "weight", Quality::Good, 10).await;
    assert!(told.iter().all(|reading| weight(reading) == 2.5), "{told:?}");
    let health = serde_json::to_value(running.device("scale")).unwrap();
    assert_eq!(health["state"], "degraded", "{health}");
    assert!(health["malformed"].as_u64().unwrap() >= 30, "{health}");
    running.stop().await;
}

#[tokio::test]
async fn the_rest_of_a_frame_that_began_before_the_port_was_opened_is_dropped() {
    let (mut ours, _far_end, path) = pty();
    // Half of "S S 123.45 kg" has gone by; a lenient expression would read 3.45 out of the rest.
    ours.write_all(b"3.45 kg\r\nS S 1.00 kg\r\n").await.unwrap();
    let mut config = empty();
    add_serial(&mut config, "scale", &path, Parse::Regex(Regex::new(r"(?<weight>[0-9.]+) kg$").unwrap()));
    let running = Running::start(&config);
    let told = running.until_told("scale", "weight", Quality::Good, 1).await;
    assert_eq!(weight(&told[0]), 1.0);
    running.stop().await;
}

#[tokio::test]
async fn columns_and_json_are_read() {
    let ((mut csv, _far_csv, csv_path), (mut json, _far_json, json_path)) = (pty(), pty());
    let mut config = empty();
    let columns = ["t", "", "name"].map(str::to_owned).to_vec();
    add_serial(&mut config, "csv", &csv_path, Parse::Csv { separator: b';', columns });
    config.serial.get_mut("csv").unwrap().decimal = b',';
    add_serial(&mut config, "json", &json_path, Parse::Json);
    let running = Running::start(&config);
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        loop {
            csv.write_all(b"-  21,5;x;hall 3\r\n").await.unwrap();
            json.write_all(b"{\"p\": 1.25, \"on\": true, \"a+b\": 1}\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(running.until_told("csv", "t", Quality::Good, 1).await[0].value, Value::Float(-21.5));
    assert_eq!(running.until_told("csv", "name", Quality::Good, 1).await[0].value, Value::Text("hall 3".into()));
    assert_eq!(running.until_told("json", "p", Quality::Good, 1).await[0].value, Value::Float(1.25));
    assert_eq!(running.until_told("json", "on", Quality::Good, 1).await[0].value, Value::Bool(true));
    let told = running.stop().await;
    assert!(told.iter().all(|reading| &*reading.point != "a+b"), "a key that cannot stand in a topic is no point");
}

#[tokio::test]
async fn a_port_that_is_pulled_out_is_told_as_bad_and_read_again_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let stable = directory.path().join("by-id");
    let first = Scale::start(None, '.').await;
    symlink(&first.path, &stable).unwrap();
    let mut config = empty();
    device(&mut config, &stable, b'.');
    asks(&mut config, 20, 2000);
    let running = Running::start(&config);
    let before = running.until_told("scale", "weight", Quality::Good, 3).await.len();
    std::fs::remove_file(&stable).unwrap();
    first.stop().await;
    let bad = running.until_told("scale", "weight", Quality::Bad, 1).await;
    assert_eq!(bad.len(), 1, "{bad:?}");
    let second = Scale::start(None, '.').await;
    symlink(&second.path, &stable).unwrap();
    running.until_told("scale", "weight", Quality::Good, before + 3).await;
    running.stop().await;
    second.stop().await;
}

/// The pauses between attempts have grown to four seconds by then.
#[tokio::test]
async fn an_adapter_that_was_away_for_long_is_read_within_two_seconds_of_its_return() {
    let directory = tempfile::tempdir().unwrap();
    let stable = directory.path().join("by-path");
    let mut config = empty();
    device(&mut config, &stable, b'.');
    asks(&mut config, 20, 2000);
    let running = Running::start(&config);
    // Attempts are made at 0, 1, 3 and 7 seconds.
    tokio::time::sleep(Duration::from_millis(3300)).await;
    let scale = Scale::start(None, '.').await;
    symlink(&scale.path, &stable).unwrap();
    let back = tokio::time::Instant::now();
    running.until_told("scale", "weight", Quality::Good, 1).await;
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
    running.stop().await;
    scale.stop().await;
}

/// They have the same name by id, and change places in the order in which the system finds them.
#[tokio::test]
async fn two_equal_sticks_are_told_apart_by_their_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = [directory.path().join("usb-0:1"), directory.path().join("usb-0:2")];
    let mut config = empty();
    let whole = Regex::new(r"^(?<weight>[0-9]+)$").unwrap();
    for (name, socket) in ["left", "right"].iter().zip(&sockets) {
        add_serial(&mut config, name, socket, Parse::Regex(whole.clone()));
    }
    let running = Running::start(&config);
    for round in [[0, 1], [1, 0]] {
        let before = ["left", "right"].map(|name| running.of(name, "weight").len());
        let mut ends = Vec::new();
        for socket in round {
            let (mut ours, far_end, path) = pty();
            drop(far_end);
            let _absent = std::fs::remove_file(&sockets[socket]);
            symlink(&path, &sockets[socket]).unwrap();
            let mut speaking = JoinSet::new();
            speaking.spawn(async move {
                // A write fails while nobody has the other end open.
                loop {
                    let _nobody = ours.write_all(format!("{}\r\n", socket + 1).as_bytes()).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            ends.push(speaking);
        }
        for (name, before, value) in [("left", before[0], 1.0), ("right", before[1], 2.0)] {
            let what = format!("{name} is read after {round:?}");
            running
                .until(&what, |told| {
                    let own: Vec<&Reading> = told.iter().filter(|reading| &*reading.device == name).collect();
                    let good = own.iter().skip(before).any(|reading| reading.value == Value::Float(value));
                    good.then_some(())
                })
                .await;
        }
        // Both are pulled out.
        drop(ends);
        sockets.iter().for_each(|socket| std::fs::remove_file(socket).unwrap());
        for name in ["left", "right"] {
            running
                .until("it is told as bad", |told| {
                    let last = told.iter().rfind(|reading| &*reading.device == name)?;
                    (last.quality == Quality::Bad).then_some(())
                })
                .await;
        }
    }
    let told = running.stop().await;
    let is_own = |reading: &Reading| match (&*reading.device, &reading.value) {
        (_, Value::Null) => true,
        (name, value) => *value == Value::Float(if name == "left" { 1.0 } else { 2.0 }),
    };
    assert!(told.iter().all(is_own), "{told:?}");
}

fn bytes_field(name: &str, at: usize, count: usize, kind: PointKind) -> SerialPoint {
    let point = point(name, Table::Holding, 0, kind);
    let bytes = Some(BytesField { at, count, point });
    SerialPoint {
        name: Arc::from(name),
        pointer: None,
        bytes,
        kind: TextKind::F64,
        unit: None,
        report: Report::default(),
    }
}

#[tokio::test]
async fn binary_frames_with_a_length_and_a_checksum_are_read_and_damaged_ones_counted_by_kind() {
    let (mut ours, _far_end, path) = pty();
    let mut config = empty();
    add_serial(&mut config, "drive", &path, Parse::Bytes { is_hex: false });
    let drive = config.serial.get_mut("drive").unwrap();
    let checksum = Checksum::at_end(ChecksumKind::Crc16Modbus, ChecksumForm::Binary);
    let length = LengthField { offset: 2, width: 1, order: ByteOrder::Big, counts: Counts::Rest, plus: 2 };
    drive.frame.start = vec![0xAA, 0x55];
    drive.frame.ending = Ending::Field(length);
    drive.frame.checksum = Some(checksum);
    drive.points = vec![bytes_field("speed", 3, 2, PointKind::I16), bytes_field("state", 5, 1, PointKind::U8)];
    let running = Running::start(&config);
    let frame = move |speed: i16| {
        let mut frame = vec![0xAA, 0x55, 3];
        frame.extend(speed.to_be_bytes());
        frame.push(7);
        frame.extend(checksum::written(&checksum, &frame));
        frame
    };
    let mut speaking = JoinSet::new();
    speaking.spawn(async move {
        loop {
            let mut damaged = frame(-1500);
            damaged[4] ^= 1;
            for bytes in [frame(-1500), damaged, b"noise".to_vec(), frame(1500)] {
                ours.write_all(&bytes).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let told = running.until_told("drive", "speed", Quality::Good, 10).await;
    assert!(told.iter().all(|reading| matches!(reading.value, Value::Int(-1500 | 1500))), "{told:?}");
    let health = serde_json::to_value(running.device("drive")).unwrap();
    assert_eq!(health["state"], "degraded", "{health}");
    assert!(health["faults"]["checksum"].as_u64().unwrap() >= 3, "{health}");
    assert_eq!(running.of("drive", "state")[0].value, Value::Uint(7));
    running.stop().await;
}

#[tokio::test]
async fn a_silence_ends_the_answer_of_a_device_that_marks_no_end() {
    let (mut ours, _far_end, path) = pty();
    let mut config = empty();
    add_serial(&mut config, "scale", &path, Parse::Regex(Regex::new(r"^(?<weight>[0-9.]+)$").unwrap()));
    asks(&mut config, 20, 5000);
    let scale = the_scale(&mut config);
    scale.frame.ending = Ending::Idle;
    scale.frame.idle = Some(Duration::from_millis(200));
    let running = Running::start(&config);
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        let mut question = [0; 4];
        while ours.read_exact(&mut question).await.is_ok() {
            // In two parts, as an adapter hands them on.
            ours.write_all(b"12").await.unwrap();
            tokio::task::yield_now().await;
            ours.write_all(b".5").await.unwrap();
        }
    });
    let told = running.until_told("scale", "weight", Quality::Good, 3).await;
    assert!(told.iter().all(|reading| weight(reading) == 12.5), "{told:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_port_that_another_program_holds_is_named_as_that() {
    let scale = Scale::start(None, '.').await;
    let mut config = empty();
    device(&mut config, &scale.path, b'.');
    asks(&mut config, 20, 2000);
    let running = Running::start(&config);
    running.until_told("scale", "weight", Quality::Good, 1).await;
    let second = Running::start(&config);
    let bad = second.until_told("scale", "weight", Quality::Bad, 1).await;
    assert!(bad[0].reason.as_deref().unwrap().contains("another program uses it"), "{bad:?}");
    second.stop().await;
    running.stop().await;
    scale.stop().await;
}

#[tokio::test]
async fn what_the_gateway_has_recorded_of_a_port_is_said_to_it_again() {
    for every in [None, Some(Duration::from_millis(20))] {
        let folder = tempfile::tempdir().unwrap();
        let scale = Scale::start(every, '.').await;
        let mut config = empty();
        device(&mut config, &scale.path, b'.');
        if every.is_none() {
            asks(&mut config, 10, 2000);
        }
        let running = Running::start_recording(&config, Some(folder.path()));
        let said = running.until_told("scale", "weight", Quality::Good, 12).await;
        running.stop().await;
        scale.stop().await;
        let text = std::fs::read_to_string(folder.path().join("scale.serial.rec")).unwrap();
        let recording = tidegate::field::record::parse(&text).unwrap();

        let server = Server::bind_recorded(&Place::Pty, &recording).await.unwrap();
        the_scale(&mut config).port.path = server.path();
        let stop = CancellationToken::new();
        let mut servers = JoinSet::new();
        servers.spawn(server.run(stop.clone()));
        let running = Running::start(&config);
        let again = running.until_told("scale", "weight", Quality::Good, 10).await;
        running.stop().await;
        stop.cancel();
        let weights = |readings: &[Reading]| readings.iter().map(weight).collect::<Vec<f64>>();
        let (said, again) = (weights(&said), weights(&again));
        // One that speaks by itself is met somewhere; one that is asked begins at the beginning.
        let from = said.iter().position(|weight| *weight == again[0]).unwrap();
        assert!(every.is_some() || from == 0, "{again:?} after {said:?}");
        let count = again.len().min(said.len() - from);
        assert_eq!(again[..count], said[from..from + count]);
    }
}
