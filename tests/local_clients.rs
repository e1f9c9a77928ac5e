//! Local clients that everybody has: mosquitto_sub and mosquitto_pub; and commands that come from the cloud.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::process::Command;

use common::cloud::Mosquitto;
use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::peers::{Publisher, Subscriber, mosquitto_sub};
use common::process::Process;
use common::raw::{Heard, RawClient, Version};
use common::{PATIENCE, turn, wait_until};

/// mosquitto_sub, ready: it has heard a message on `probe`, so its subscription is in force.
fn listening(gateway: &Gateway, version: &str, qos: &str, filter: &str, more: &[&str]) -> Process {
    let port = gateway.port.to_string();
    let mut arguments = vec!["-h", "127.0.0.1", "-p", &port, "-V", version, "-q", qos, "-t", filter];
    arguments.extend(["-F", "%t %q %r %p"]);
    arguments.extend(more);
    mosquitto_sub(gateway.port, &arguments)
}

fn heard(listener: &Process) -> Vec<String> {
    listener.stdout().into_iter().filter(|line| !line.starts_with("probe ")).collect()
}

#[track_caller]
fn expect(listener: &Process, expected: &[&str]) {
    wait_until(PATIENCE, &format!("mosquitto_sub hears {expected:?}"), || {
        let heard = heard(listener);
        if heard.len() >= expected.len() { Ok(()) } else { Err(format!("{heard:?}")) }
    });
    assert_eq!(heard(listener), expected);
}

#[track_caller]
fn publish(gateway: &Gateway, version: &str, arguments: &[&str]) {
    let output = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &gateway.port.to_string(), "-V", version])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "mosquitto_pub {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_subscriber_gets_the_lower_of_both_qos_on_both_versions() {
    let _turn = turn();
    let folder = folder();
    let gateway = Gateway::started(folder.path(), "");
    for version in ["311", "5"] {
        let listeners = ["0", "1", "2"].map(|qos| listening(&gateway, version, qos, "plant/#", &[]));
        for qos in ["0", "1", "2"] {
            publish(&gateway, version, &["-t", "plant/press", "-q", qos, "-m", qos]);
        }
        for (granted, listener) in listeners.iter().enumerate() {
            let expected: Vec<String> = (0..3)
                .map(|published: usize| format!("plant/press {} 0 {published}", published.min(granted)))
                .collect();
            expect(listener, &expected.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_retained_message_waits_for_whoever_comes_later_and_an_empty_one_removes_it() {
    let _turn = turn();
    let folder = folder();
    let gateway = Gateway::started(folder.path(), "");
    publish(&gateway, "311", &["-t", "plant/state", "-q", "1", "-r", "-m", "running"]);
    publish(&gateway, "311", &["-t", "plant/state/温度", "-q", "1", "-r", "-m", "21 °C"]);
    for version in ["311", "5"] {
        let listener = listening(&gateway, version, "1", "plant/state/#", &[]);
        wait_until(PATIENCE, "both retained messages are heard", || {
            let mut heard = heard(&listener);
            heard.sort();
            let both = ["plant/state 1 1 running", "plant/state/温度 1 1 21 °C"];
            if heard == both { Ok(()) } else { Err(format!("{heard:?}")) }
        });
    }
    publish(&gateway, "5", &["-t", "plant/state", "-q", "1", "-r", "-n"]);
    let listener = listening(&gateway, "5", "1", "plant/state/#", &[]);
    expect(&listener, &["plant/state/温度 1 1 21 °C"]);
}

#[test]
fn the_will_of_a_client_that_dies_is_heard_and_that_of_one_that_says_goodbye_is_not() {
    let _turn = turn();
    let folder = folder();
    let gateway = Gateway::started(folder.path(), "");
    for version in ["311", "5"] {
        let listener = listening(&gateway, "5", "1", "wills/#", &[]);
        let with_will = |topic: &str, more: &[&str]| {
            let will = ["--will-topic", topic, "--will-qos", "1", "--will-payload", "dead", "-i", topic];
            listening(&gateway, version, "0", "nothing", &[&will, more].concat())
        };
        // It leaves in order after the first message. (On a signal mosquitto_sub asks for its will at version 5.)
        let mut polite = with_will("wills/polite", &["-C", "1"]);
        polite.wait(PATIENCE);
        let mut doomed = with_will("wills/doomed", &[]);
        doomed.kill();
        expect(&listener, &["wills/doomed 1 0 dead"]);
    }
}

#[test]
fn a_goodbye_counts_also_when_the_client_has_not_read_everything() {
    let _turn = turn();
    let folder = folder();
    let gateway = Gateway::started(folder.path(), "");
    let listener = listening(&gateway, "5", "1", "wills/#", &[]);
    let mut speaker = RawClient::connected(gateway.port, Version::V311, "speaker");
    for version in [Version::V311, Version::V5] {
        for number in 0..200 {
            let noise = format!("noise/{version:?}/{number}");
            // An id of its own: one that comes again before the goodbye is read takes over, and that publishes the will.
            let mut client = RawClient::connected_with_will(gateway.port, version, &noise, "wills/polite");
            client.subscribe(&noise, 0);
            // A socket that is closed with bytes unread is reset: the gateway's next write fails.
            for _ in 0..20 {
                speaker.publish(noise.as_bytes(), 0, 0, &[b'x'; 200]);
            }
            if number % 2 == 0 {
                assert!(matches!(client.hear(PATIENCE), Heard::Packet(0x30, _)));
            }
            client.send(b"\xe0\0");
        }
    }
    let mut last = RawClient::connected_with_will(gateway.port, Version::V5, "last", "wills/last");
    // DISCONNECT with will message (MQTT 5.0, 3.14.2.1).
    last.send(b"\xe0\x01\x04");
    expect(&listener, &["wills/last 1 0 dead"]);
}

#[test]
fn commands_from_the_cloud_reach_local_subscribers_and_are_not_sent_back() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["#"]);
    let receive = "[[uplink.cloud.receive]]\nfilter = \"factory7/commands/#\"\ntopic = \"plant/{rest}\"\n";
    // Everything under plant/ goes up: also what came down, were it not for its origin.
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT + receive;
    let gateway = Gateway::started(folder.path(), &tables);
    gateway.wait_until_connected();
    let listener = listening(&gateway, "5", "2", "plant/#", &[]);

    for number in ["1", "2", "3"] {
        let arguments = ["-t", "factory7/commands/press/set", "-q", "1", "-m", number];
        let port = cloud.port.to_string();
        let status = Command::new("mosquitto_pub").args(["-h", "127.0.0.1", "-p", &port]).args(arguments).status();
        assert!(status.unwrap().success());
    }
    expect(&listener, &["plant/press/set 1 0 1", "plant/press/set 1 0 2", "plant/press/set 1 0 3"]);
    publish(&gateway, "5", &["-t", "plant/last", "-q", "1", "-m", "0"]);
    application.wait_for_count("factory7/plant/last", 1);
    assert_eq!(
        application.received_on("factory7/plant/press/set").len(),
        0,
        "a command must not come back as a report"
    );
}

#[test]
fn a_paho_client_with_a_long_backlog_comes_through_when_the_gateway_is_back() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    // paho keeps its own window until it has to connect again; then it sends everything at once, far beyond the
    // Receive Maximum of version 5.
    for (version, qos) in [("5", "2"), ("5", "1"), ("3.1.1", "2")] {
        let client_id = format!("client-{version}-{qos}");
        let more = ["--version", version, "--qos", qos];
        let mut publisher = Publisher::started(gateway.port, &client_id, "plant/backlog", 2000, &more);
        publisher.wait_for_acknowledged(50);
        gateway.kill();
        assert!(publisher.acknowledged().len() < 1500, "there is no backlog to speak of");
        gateway.start();
        publisher.wait_until_done();
        assert_eq!(publisher.refused(), Vec::<String>::new());
        let connections = publisher.connections();
        assert!(connections <= 3, "{client_id} had to connect {connections} times");
    }
}
