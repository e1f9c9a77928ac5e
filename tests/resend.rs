//! Is what was delivered and kept sent again as ordered, under its ids, over kills, and never at the cost of what waits?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::cloud::Mosquitto;
use common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use common::peers::{Publisher, Received, Subscriber};
use common::turn;
use serde_json::Value;
use tidegate::clock::{Clock, ClockSource, rfc3339};

const ONE: &str = "factory7/plant/one";
const TWO: &str = "factory7/plant/two";

fn now() -> String {
    rfc3339(Clock::new(ClockSource::Trusted).now().wall_ms)
}

/// `tidegate queue resend`; what it said.
#[track_caller]
fn resend(gateway: &Gateway, from: &str, more: &[&str], code: i32) -> String {
    let output = Command::new(PROGRAM)
        .args(["queue", "resend", "--uplink", "cloud", "--from", from])
        .args(more)
        .arg("--config")
        .arg(gateway.config_path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

fn ids(messages: &[Received]) -> Vec<String> {
    messages.iter().map(|message| message.id.clone().unwrap()).collect()
}

fn cloud_of(status: &Value, key: &str) -> u64 {
    status["uplinks"]["cloud"][key].as_u64().unwrap_or_else(|| panic!("{key}: {status}"))
}

/// Of all days and sources: what the ledger says was delivered.
fn delivered(gateway: &Gateway) -> u64 {
    let output =
        Command::new(PROGRAM).args(["ledger", "--json", "--config"]).arg(gateway.config_path()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["lines"].as_array().unwrap().iter().filter_map(|line| line["delivered"].as_u64()).sum()
}

#[test]
fn what_the_cloud_has_lost_is_sent_again_by_time_and_topic_under_its_ids_also_over_kills() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let url = format!("mqtt://127.0.0.1:{}", cloud.port);
    let tables =
        "[queue]\nkeep_delivered = \"7 days\"\n".to_owned() + &uplink(&url, "own_topic = \"\"") + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    let begun = now();
    Publisher::started(gateway.port, "client", "plant/one", 100, &["--qos", "1"]).wait_until_done();
    let between = now();
    Publisher::started(gateway.port, "client", "plant/two", 100, &["--qos", "2"]).wait_until_done();
    let ended = now();
    application.wait_for_count(ONE, 100);
    application.wait_for_count(TWO, 100);
    gateway.wait_until_drained();
    let (ones, twos) = (ids(&application.received_on(ONE)), ids(&application.received_on(TWO)));
    let accounted = delivered(&gateway);
    assert_eq!(exported(&gateway, &[]), [&ones[..], &twos].concat(), "what is kept can be had without sending it");
    assert_eq!(exported(&gateway, &["--topic", "plant/two", "--from", &between, "--to", &ended]), twos);

    // It says first what it will do.
    let asked = resend(&gateway, &between, &["--to", &ended], 64);
    assert!(asked.contains("This sends 100 messages to cloud once more"), "{asked}");
    assert!(asked.contains("nothing was changed"), "{asked}");
    assert!(resend(&gateway, &ended, &["--yes"], 0).contains("nothing of the 200 messages"));
    resend(&gateway, &ended, &["--to", &begun], 64);

    let said = resend(&gateway, &between, &["--to", &ended, "--yes"], 0);
    assert!(said.contains("100 messages are sent to cloud again"), "{said}");
    application.wait_for_count(TWO, 200);
    gateway.wait_for_status("all is sent again", |status| (cloud_of(status, "again") == 0).then_some(()));
    assert_eq!(ids(&application.received_on(TWO))[100..], twos, "the same ones in the same order");
    assert_eq!(application.received_on(ONE).len(), 100, "and no others");
    let status = gateway.status().unwrap();
    assert_eq!((cloud_of(&status, "delivered"), cloud_of(&status, "delivered_again")), (200, 100));
    assert_eq!((&status["queue"]["messages"], &status["queue"]["kept"]), (&0.into(), &200.into()), "{status}");
    assert_eq!(status["losses"], serde_json::json!({}));

    // The cloud does not answer; the order is on disk before it is said to be done. Then kills, also while it is carried out.
    cloud.freeze();
    resend(&gateway, &begun, &["--yes"], 0);
    gateway.kill();
    gateway.start();
    gateway.wait_for_status("the order is there", |status| (cloud_of(status, "again") == 200).then_some(()));
    assert!(resend(&gateway, &begun, &["--yes"], 0).contains("200 messages are to be sent again already"));
    cloud.thaw();
    application.wait_for_count(ONE, 150);
    gateway.kill();
    gateway.start();
    gateway.wait_for_status("all is sent again", |status| (cloud_of(status, "again") == 0).then_some(()));
    for (topic, first, before) in [(ONE, &ones, 100), (TWO, &twos, 200)] {
        application.wait(topic, |received| {
            let again = received.iter().filter(|message| message.topic == topic).skip(before);
            let again: BTreeSet<&str> = again.map(|message| message.id.as_deref().unwrap()).collect();
            first.iter().all(|id| again.contains(id.as_str()))
        });
    }
    assert_eq!(application.received_on(TWO).len(), 300, "at QoS 2 each has come once more, kills or not");

    // On a stopped gateway.
    gateway.stop();
    assert_eq!(exported(&gateway, &["--topic", "plant/one"]), ones);
    let count = application.received_on(ONE).len();
    assert!(resend(&gateway, &begun, &["--topic", "plant/one", "--yes"], 0).contains("100 messages"));
    gateway.start();
    application.wait_for_count(ONE, count + 100);
    gateway.wait_for_status("all is sent again", |status| (cloud_of(status, "again") == 0).then_some(()));
    assert_eq!(ids(&application.received_on(ONE))[count..], ones);
    assert_eq!(application.received_on(TWO).len(), 300);
    assert_eq!(delivered(&gateway), accounted, "the ledger has each of them once");
}

/// The ids of what `queue export --kept` writes.
fn exported(gateway: &Gateway, more: &[&str]) -> Vec<String> {
    let output = Command::new(PROGRAM)
        .args(["queue", "export", "--kept", "--config"])
        .arg(gateway.config_path())
        .args(more)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let entries = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.map(|entry| entry["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_store_full_of_what_is_kept_refuses_nothing_and_loses_nothing() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let url = format!("mqtt://127.0.0.1:{}", cloud.port);
    let queue = "[queue]\nkeep_delivered = \"7 days\"\nmax_bytes = \"1 MiB\"\nwhen_full = \"refuse\"\n".to_owned();
    let tables = queue + &uplink(&url, "") + FORWARD_PLANT;
    let gateway = Gateway::started(folder.path(), &tables);
    let long = ["--size", "1000"];
    Publisher::started(gateway.port, "client", "plant/one", 1500, &long).wait_until_done();
    gateway.wait_until_drained();
    let status = gateway.status().unwrap();
    let kept = status["queue"]["kept"].as_u64().unwrap();
    assert!((300..1000).contains(&kept), "{kept} are kept of 1500, of which the store has no room for 1000");
    cloud.freeze();
    Publisher::started(gateway.port, "other", "plant/two", 400, &long).wait_until_done();
    let status = gateway.status().unwrap();
    assert_eq!(status["losses"], serde_json::json!({}), "{status}");
    assert!(status["queue"]["kept"].as_u64().unwrap() < kept, "{status}");
    cloud.thaw();
    application.wait_for_count(TWO, 400);
    gateway.wait_until_drained();
}
