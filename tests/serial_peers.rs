//! A scale on a serial line: frames, decimal comma, what it says of itself, and what makes no sense.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use common::cloud::Mosquitto;
use common::gateway::{Gateway, folder, uplink};
use common::peers::{Cable, Subscriber};
use common::turn;
use serde_json::json;

fn far_end(cable: &Cable) -> File {
    OpenOptions::new().read(true).write(true).open(&cable.far).unwrap()
}

fn scale(port: &Path, more: &str) -> String {
    format!(
        "[serial.scale]\nport = \"{}\"\nbaud = 9600\nmode = \"8N1\"\nframe = {{ delimiter = \"\\r\\n\" }}\n\
         parse = {{ regex = '^S (?<status>[SD])\\s+(?<weight>-?\\s*[0-9.,]+)\\s*kg', decimal = \",\" }}\n\
         good = {{ status = [\"S\"] }}\n{more}\n[serial.scale.point]\nweight = {{ type = \"f64\", unit = \"kg\" }}\n",
        port.display()
    )
}

#[test]
fn a_scale_with_decimal_comma_that_speaks_by_itself() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    let cable = Cable::laid(folder.path());
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + &scale(&cable.near, "");
    let gateway = Gateway::started(folder.path(), &tables);
    let mut device = far_end(&cable);

    // The port may be opened after the listeners are bound: the first frame is repeated until it is heard.
    let topic = "field/scale/weight";
    application.wait("the first weight", |received| {
        let is_heard = received.iter().any(|message| message.topic == topic);
        if !is_heard {
            device.write_all(b"S S   12,50 kg\r\n").unwrap();
        }
        is_heard
    });
    let first = application.received_on(topic)[0].json();
    assert_eq!((&first["value"], &first["quality"], &first["unit"]), (&json!(12.5), &json!("good"), &json!("kg")));

    // In two parts, with noise before it, moving, negative, and with nonsense in between.
    device.write_all(b"S D   -  3,2").unwrap();
    device.flush().unwrap();
    device.write_all(b"5 kg\r\n").unwrap();
    let moving = application.wait_for_message(topic, |message| message.json()["value"] == json!(-3.25)).json();
    assert_eq!(moving["quality"], "uncertain", "{moving}");
    assert!(moving["reason"].as_str().is_some_and(|reason| reason.contains("status")), "{moving}");
    device.write_all(b"\xff\x00garbage\r\nS S 1.234,5 kg\r\nS S   99,75 kg\r\n").unwrap();
    let settled = application.wait_for_message(topic, |message| message.json()["value"] == json!(99.75)).json();
    assert_eq!(settled["quality"], "good");
    gateway.wait_for_status("nonsense is counted", |status| {
        status["devices"]["scale"]["malformed"].as_u64().filter(|count| *count >= 1)
    });
    let values = application.received_on(topic);
    assert!(
        values.iter().all(|message| message.json()["value"] != json!(1.234)),
        "a thousands separator is never taken for a decimal point: {values:?}"
    );
}

#[test]
fn a_scale_that_speaks_when_asked() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["field/#"]);
    let cable = Cable::laid(folder.path());
    let mut device = far_end(&cable);
    let questions = BufReader::new(far_end(&cable));
    // Answers three times and then falls silent; ends when the cable is taken away.
    let answering = std::thread::spawn(move || {
        for (number, question) in questions.lines().enumerate() {
            let Ok(question) = question else { return };
            assert_eq!(question.trim_end(), "SI");
            if number < 3 {
                device.write_all(format!("S S   {number},5 kg\r\n").as_bytes()).unwrap();
            }
        }
    });
    let ask = "ask = { send = \"SI\\r\\n\", every = \"300ms\", timeout = \"200ms\" }";
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + &scale(&cable.near, ask);
    let gateway = Gateway::started(folder.path(), &tables);
    for value in [0.5, 1.5, 2.5] {
        application.wait_for_message("field/scale/weight", |message| message.json()["value"] == json!(value));
    }
    let silent = application.wait_for_message("field/scale/weight", |message| message.json()["quality"] == "bad");
    assert!(silent.json()["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    gateway
        .wait_for_status("the scale is dead", |status| (status["devices"]["scale"]["state"] == "dead").then_some(()));
    drop(gateway);
    drop(cable);
    answering.join().unwrap();
}
