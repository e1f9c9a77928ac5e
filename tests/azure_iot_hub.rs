//! Does the profile of Azure IoT Hub say on the wire what Azure's own library says?
//!
//! The hub is Debian's Mosquitto with TLS, which knows nothing of hubs and shows what arrives; the oracle is
//! `azure-iot-device`. That signatures are renewed in time is in `uplink_token.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;
mod writes_support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use common::certificates::Certificates;
use common::cloud::{Access, Mosquitto};
use common::gateway::{Gateway, ID, folder};
use common::peers::{Subscriber, start_script_in};
use common::{PATIENCE, turn, wait_until};
use serde_json::json;
use tidegate::transport::sas;
use writes_support::{Device, Manner};

const KEY: &str = "c2VjcmV0IG9mIHRoZSBkZXZpY2U=";

#[track_caller]
fn publish(port: u16, words: &[&str]) {
    let output = Command::new("mosquitto_pub").args(["-p", &port.to_string(), "-q", "1"]).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

#[test]
fn messages_methods_and_signatures_are_those_of_the_library_of_azure() {
    let _turn = turn();
    let folder = folder();
    let key = folder.path().join("device.key");
    fs::write(&key, format!("{KEY}\n")).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let certificates = Certificates::make(&folder.path().join("cloud"), ID);
    let ca = certificates.ca.clone();
    let mut hub = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: false });
    hub.start();
    let tls_port = hub.tls_port.unwrap();
    let mut application =
        Subscriber::started(hub.port, "application", &["devices/#", "$iothub/methods/res/#", "$iothub/twin/#"]);
    let counterpart = Device::started(Manner::Good);
    let tables = format!(
        "[uplink.hub]\nprofile = \"azure-iot-hub\"\nurl = \"mqtts://localhost:{tls_port}\"\nca = \"{}\"\n\
         sas = {{ key = \"{}\" }}\nreconnect = {{ first = \"200ms\", max = \"1s\" }}\n\
         [[uplink.hub.forward]]\nfilter = \"plant/reported\"\n\
         topic = \"$iothub/twin/PATCH/properties/reported/?$rid=1\"\n\
         [[uplink.hub.forward]]\nfilter = \"plant/#\"\n\
         [[uplink.hub.receive]]\nfilter = \"devices/{ID}/messages/devicebound/#\"\ntopic = \"plant-floor/message\"\n\
         [[uplink.hub.receive]]\nfilter = \"$iothub/twin/PATCH/properties/desired/#\"\ntopic = \"plant-floor/desired\"\n\
         [[uplink.hub.receive]]\nfilter = \"$iothub/methods/POST/+/+\"\ntopic = \"field/d/{{1}}/set\"\n\
         answer = \"$iothub/methods/res/200/{{2}}\"\n\
         [modbus.d]\nline = \"{}\"\nunit_id = 1\npoll = \"1s\"\n[modbus.d.point]\n\
         level = {{ address = \"holding:1\", type = \"u16\", write = {{ min = 0, max = 100 }} }}\n",
        ca.display(),
        key.display(),
        counterpart.url()
    );
    let mut gateway = Gateway::started(folder.path(), &tables);
    gateway
        .wait_for_status("it is connected", |status| (status["uplinks"]["hub"]["state"] == "connected").then_some(()));
    let text = "{\"a\": 1}";
    publish(
        gateway.port,
        &["-V", "5", "-t", "plant/press 1", "-m", text, "-D", "publish", "content-type", "application/json"],
    );
    let telemetry = |received: &[common::peers::Received]| {
        let ours = received.iter().filter(|message| message.payload == text);
        ours.map(|message| message.topic.clone()).collect::<Vec<_>>()
    };
    application.wait("the message", |received| telemetry(received).len() == 1);
    let ours = telemetry(application.received()).pop().unwrap();
    let id = ours.split("%24.mid=").nth(1).expect(&ours).split('&').next().unwrap().to_owned();
    assert!(id.starts_with(&format!("{ID}.")), "{id}");

    // A direct method writes a point, and is answered with its own number; one that may not be done with another status.
    publish(hub.port, &["-t", "$iothub/methods/POST/level/?$rid=7", "-m", "{\"value\": 5, \"id\": 1}"]);
    let answer = application.wait_for_message("$iothub/methods/res/200/?$rid=7", |_| true).json();
    assert_eq!((&answer["ok"], &answer["value"]), (&json!(true), &json!(5)));
    publish(hub.port, &["-t", "$iothub/methods/POST/level/?$rid=8", "-m", "{\"value\": 500, \"id\": 2}"]);
    let answer = application.wait_for_message("$iothub/methods/res/400/?$rid=8", |_| true).json();
    assert_eq!((&answer["ok"], &answer["reason"]), (&json!(false), &json!("refused")));

    // Messages for the device, with whatever properties, and the two halves of its twin, by rules.
    let mut floor = Subscriber::started(gateway.port, "floor", &["plant-floor/#"]);
    let bound = format!("devices/{ID}/messages/devicebound/%24.mid=7&%24.to=%2Fdevices%2F{ID}&shift=2");
    publish(hub.port, &["-t", &bound, "-m", "to the floor"]);
    floor.wait_for_message("plant-floor/message", |message| message.payload == "to the floor");
    let desired = "{\"interval\": 5, \"$version\": 4}";
    publish(hub.port, &["-t", "$iothub/twin/PATCH/properties/desired/?$version=4", "-m", desired]);
    floor.wait_for_message("plant-floor/desired", |message| message.payload == desired);
    publish(gateway.port, &["-t", "plant/reported", "-m", "{\"interval\": 5}"]);
    let reported = "$iothub/twin/PATCH/properties/reported/?$rid=1";
    application.wait_for_message(reported, |message| message.payload == "{\"interval\": 5}");
    gateway.stop();

    let port = tls_port.to_string();
    let words = [port.as_str(), ca.to_str().unwrap(), ID, KEY, &id, text, "plant/press 1"];
    let mut library = start_script_in("venv-azure", "azure_device", &words);
    library.wait_for_line(PATIENCE, "that it waits for a method", |line| line == "ready");
    application.wait("the library's message", |received| telemetry(received).len() == 2);
    let both = telemetry(application.received());
    assert_eq!(both[0], both[1], "the topic of a message with the same id, kind and property");
    publish(hub.port, &["-t", "$iothub/methods/POST/level/?$rid=9", "-m", "{}"]);
    application.wait_for_message("$iothub/methods/res/200/?$rid=9", |_| true);
    let said = library.stdout();
    let of = |name: &str| said.iter().find_map(|line| line.strip_prefix(name)).expect(name).trim().to_owned();
    assert!(of("username ").starts_with(&format!("localhost/{ID}/?api-version=")), "{said:?}");
    let password = of("password ");
    let expires = password.split("&se=").nth(1).unwrap().parse().unwrap();
    assert_eq!(sas::token(&format!("localhost/devices/{ID}"), KEY.as_bytes(), expires).unwrap(), password);
    library.tell("");
    wait_until(PATIENCE, "the library ends", || {
        if library.stdout().iter().any(|line| line == "done") { Ok(()) } else { Err(library.transcript()) }
    });
}
