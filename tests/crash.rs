//! Does what was acknowledged survive `kill -9`, and is nothing sent twice at QoS 2?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use common::account::{assert_none_lost, assert_whole_in_order_and_once};
use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, ID, folder, uplink};
use common::peers::{Publisher, Received, Subscriber};
use common::raw::{Heard, RawClient, Version};
use common::{PATIENCE, turn, wait_until};

#[test]
fn kills_during_the_outage_lose_no_acknowledged_message() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let mut gateway =
        Gateway::started(folder.path(), &(uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT));
    // Publishers that never pause, killed in the middle of their flow; they connect again and repeat by themselves.
    let mut publishers = [("1", "plant/one"), ("2", "plant/two")].map(|(qos, topic)| {
        Publisher::started(gateway.port, &format!("client-{qos}"), topic, 800, &["--qos", qos, "--pause", "0.002"])
    });
    for kills in 1..=4 {
        for publisher in &mut publishers {
            publisher.wait_for_acknowledged(150 * kills);
        }
        gateway.kill();
        gateway.start();
    }
    for publisher in &mut publishers {
        publisher.wait_until_done();
    }
    gateway.kill();

    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    gateway.start();
    gateway.wait_until_drained();
    for (publisher, topic) in publishers.iter().zip(["factory7/plant/one", "factory7/plant/two"]) {
        let acknowledged = publisher.acknowledged();
        assert_eq!(acknowledged.len(), 800, "{:?}", publisher.refused());
        application.wait_for_count(topic, 800);
        assert_none_lost(topic, &application.numbers_on(topic), &acknowledged);
    }
}

fn kill_in_the_drain(uplink_protocol: &str, count: u64, kills: u64) {
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    // Slow enough that every kill falls into the middle.
    let more = format!("protocol = \"{uplink_protocol}\"\npace = {{ messages_per_s = 400 }}");
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), &more) + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    let mut publisher = Publisher::started(
        gateway.port,
        "client",
        "plant/press",
        count,
        &["--qos", "2", "--window", "100", "--version", "3.1.1"],
    );
    publisher.wait_until_done();
    gateway.kill();

    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let mut arrived_at_kills = Vec::new();
    for kill in 0..kills {
        gateway.start();
        let enough = count * (kill + 1) / (kills + 2);
        application.wait_for_count("factory7/plant/press", usize::try_from(enough).unwrap());
        gateway.kill();
        arrived_at_kills.push(application.received().len() as u64);
    }
    assert!(
        arrived_at_kills.iter().all(|arrived| *arrived < count),
        "the kills came too late to prove anything: {arrived_at_kills:?} of {count}"
    );
    gateway.start();
    gateway.wait_until_drained();
    let mut last = RawClient::connected(gateway.port, Version::V311, "last");
    last.publish(b"plant/last", 2, 1, b"0");
    assert!(matches!(last.hear(PATIENCE), Heard::Packet(0x50, _)));
    last.release(1);
    application.wait_for_count("factory7/plant/last", 1);
    let what = format!("killed after {arrived_at_kills:?}");
    assert_whole_in_order_and_once(&what, &application.numbers_on("factory7/plant/press"), 0..count);
}

#[test]
fn kills_in_the_middle_of_the_drain_lose_and_double_nothing_at_qos_2_over_mqtt_5() {
    let _turn = turn();
    kill_in_the_drain("5", 2400, 6);
}

#[test]
fn kills_in_the_middle_of_the_drain_lose_and_double_nothing_at_qos_2_over_mqtt_3_1_1() {
    let _turn = turn();
    kill_in_the_drain("3.1.1", 1600, 5);
}

/// Every sync takes a while, so that the cloud has acknowledged much when a commit ends.
const SLOW_SYNCS: [&str; 11] = [
    "strace",
    "-f",
    "--seccomp-bpf",
    "-o",
    "/dev/null",
    "-e",
    "trace=fdatasync",
    "-e",
    "inject=fdatasync:delay_enter=30000",
    "setpriv",
    "--pdeathsig=KILL",
];

/// Kills in a drain at QoS 1; how many messages came a second time.
fn repeats_of_kills(window: usize, count: u64, kills: u64) -> usize {
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    // Else its own limit of 20 would be the window.
    cloud.configure("max_inflight_messages 0");
    let more = format!("protocol = \"5\"\nwindow = {window}");
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), &more) + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    let mut publisher = Publisher::started(gateway.port, "client", "plant/press", count, &["--window", "100"]);
    publisher.wait_until_done();
    gateway.stop();

    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    gateway.set_tracer(&SLOW_SYNCS);
    for kill in 0..kills {
        gateway.start();
        let enough = count * (kill + 1) / (kills + 2);
        application.wait_for_count("factory7/plant/press", usize::try_from(enough).unwrap());
        gateway.kill();
    }
    gateway.start();
    gateway.wait_until_drained();
    // Arrivals cannot be counted, some come twice: what is published now comes behind them all.
    let mut last = RawClient::connected(gateway.port, Version::V311, "last");
    last.publish(b"plant/last", 1, 1, b"0");
    assert!(matches!(last.hear(PATIENCE), Heard::Packet(0x40, _)));
    application.wait_for_count("factory7/plant/last", 1);
    let arrived = application.received_on("factory7/plant/press");
    let numbers: BTreeSet<u64> = arrived.iter().map(Received::number).collect();
    assert_eq!(numbers.len() as u64, count, "nothing is lost");
    let ids: BTreeSet<&String> = arrived.iter().map(|message| message.id.as_ref().unwrap()).collect();
    assert_eq!(ids.len() as u64, count, "a repeat bears the same id");
    arrived.len() - numbers.len()
}

#[test]
fn a_kill_in_a_drain_at_qos_1_repeats_no_more_than_the_window() {
    let _turn = turn();
    for (window, count, kills) in [(5, 300, 6), (100, 4000, 6)] {
        let repeats = repeats_of_kills(window, count, kills);
        println!("window {window}: {repeats} repeats of {kills} kills");
        assert!(repeats <= window * usize::try_from(kills).unwrap(), "{repeats} repeats at window {window}");
        assert!(repeats > 0, "the kills have proven nothing");
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp failed");
}

fn publish_and_hear_the_acknowledgements(gateway: &Gateway, topic: &str, numbers: std::ops::Range<u16>) {
    let mut client = RawClient::connected(gateway.port, Version::V311, "client");
    for number in numbers {
        client.publish(topic.as_bytes(), 1, number + 1, number.to_string().as_bytes());
        let id = (number + 1).to_be_bytes();
        assert_eq!(client.hear(PATIENCE), Heard::Packet(0x40, id.to_vec()));
    }
}

#[test]
fn two_gateways_on_clones_of_one_store_give_no_equal_id() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let tables = |name: &str| {
        uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), &format!("client_id = \"{name}\"")) + FORWARD_PLANT
    };
    let mut first = Gateway::named("first", folder.path(), &tables("first"));
    let mut second = Gateway::named("second", folder.path(), &tables("second"));
    first.start();
    publish_and_hear_the_acknowledgements(&first, "plant/before", 0..5);
    first.stop();
    // As a card is copied while the board is off.
    copy(&first.state_dir(), &second.state_dir());
    // The control: both really have the same messages, so the ids of before are the same.
    first.start();
    second.start();
    publish_and_hear_the_acknowledgements(&first, "plant/first", 0..20);
    publish_and_hear_the_acknowledgements(&second, "plant/second", 0..20);
    first.stop();
    second.stop();

    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    first.start();
    second.start();
    application.wait_for_count("factory7/plant/before", 10);
    application.wait_for_count("factory7/plant/first", 20);
    application.wait_for_count("factory7/plant/second", 20);
    let mut ids = |topic: &str| -> Vec<String> {
        let messages = application.received_on(topic);
        messages.into_iter().map(|message| message.id.expect("an MQTT 5 uplink sends tidegate-id")).collect()
    };
    let before: BTreeSet<String> = ids("factory7/plant/before").into_iter().collect();
    assert_eq!(before.len(), 5, "the clones carry the same five messages: {before:?}");
    assert!(before.iter().all(|id| id.starts_with(&format!("{ID}."))), "{before:?}");
    let after: Vec<String> = [ids("factory7/plant/first"), ids("factory7/plant/second")].concat();
    let different: BTreeSet<&String> = after.iter().chain(&before).collect();
    assert_eq!(different.len(), 45, "no id is given twice: {after:?}");
}

#[test]
fn a_backup_that_is_put_back_gives_no_id_again() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    publish_and_hear_the_acknowledgements(&gateway, "plant/before", 0..5);
    gateway.stop();
    let backup = folder.path().join("backup");
    copy(&gateway.state_dir(), &backup);
    // What is given in between is known to the cloud before it is forgotten here.
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    gateway.start();
    publish_and_hear_the_acknowledgements(&gateway, "plant/between", 0..20);
    application.wait_for_count("factory7/plant/between", 20);
    gateway.stop();
    std::fs::remove_dir_all(gateway.state_dir()).unwrap();
    copy(&backup, &gateway.state_dir());

    gateway.start();
    publish_and_hear_the_acknowledgements(&gateway, "plant/after", 0..20);
    application.wait_for_count("factory7/plant/after", 20);
    gateway.wait_until_drained();
    let mut ids = |topic: &str| -> BTreeSet<String> {
        let messages = application.received_on(topic);
        messages.into_iter().map(|message| message.id.expect("an MQTT 5 uplink sends tidegate-id")).collect()
    };
    let (before, between) = (ids("factory7/plant/before"), ids("factory7/plant/between"));
    let after = ids("factory7/plant/after");
    assert_eq!(
        (before.len(), between.len(), after.len()),
        (5, 20, 20),
        "the five of the backup bear the same ids again"
    );
    let different: BTreeSet<&String> = before.iter().chain(&between).chain(&after).collect();
    assert_eq!(different.len(), 45, "no id is given twice: {between:?} {after:?}");
}

#[test]
fn a_damaged_store_is_moved_aside_and_the_gateway_starts() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let mut gateway =
        Gateway::started(folder.path(), &(uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT));
    publish_and_hear_the_acknowledgements(&gateway, "plant/before", 0..50);
    gateway.stop();
    let database = std::fs::read_dir(gateway.state_dir())
        .unwrap()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.is_file() && std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3\0")))
        .expect("the store is an SQLite database");
    let mut bytes = std::fs::read(&database).unwrap();
    for byte in bytes.iter_mut().take(4096) {
        *byte = 0x5a;
    }
    std::fs::write(&database, bytes).unwrap();

    gateway.start();
    publish_and_hear_the_acknowledgements(&gateway, "plant/after", 0..5);
    gateway.stop();
    assert!(gateway.log().iter().any(|line| line.contains(" ERROR ")), "it is said loudly");
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#", "tidegate/#"]);
    gateway.start();
    application.wait_for_count("factory7/plant/after", 5);
    let kept_aside = wait_until(PATIENCE, "the damaged store is still there", || {
        find_damaged(&gateway.state_dir()).ok_or_else(|| format!("not under {}", gateway.state_dir().display()))
    });
    assert_ne!(kept_aside, database);
}

fn find_damaged(folder: &Path) -> Option<std::path::PathBuf> {
    std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path()).find_map(|path| {
        match path.is_dir() {
            true => find_damaged(&path),
            false => std::fs::read(&path).is_ok_and(|bytes| bytes.starts_with(b"ZZZZ")).then_some(path),
        }
    })
}
