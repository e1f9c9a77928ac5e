//! `flash = "spare"`: does the promise hold when messages are not written first, and is the flash really spared?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;

use common::account::{assert_none_lost, assert_whole_in_order_and_once};
use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::peers::{Publisher, Subscriber};
use common::raw::{Heard, RawClient, Version};
use common::{PATIENCE, turn};

fn tables(port: u16, flash: &str, hold: &str) -> String {
    format!("[queue]\nflash = \"{flash}\"\nhold = \"{hold}\"\n")
        + &uplink(&format!("mqtt://127.0.0.1:{port}"), "")
        + FORWARD_PLANT
}

/// What is on the disk, log and database.
fn on_disk(gateway: &Gateway) -> Vec<u8> {
    let read = |name: &str| fs::read(gateway.state_dir().join(name)).unwrap();
    [read("queue.db"), read("queue.db-wal")].concat()
}

fn publish(gateway: &Gateway, topic: &str, count: u64) {
    let mut publisher = Publisher::started(gateway.port, "client", topic, count, &["--window", "20"]);
    publisher.wait_until_done();
    assert_eq!(publisher.acknowledged().len() as u64, count);
}

/// Publishes while the cloud answers; whether the disk was left alone.
fn leaves_the_disk_alone(folder: &Path, flash: &str) -> bool {
    let cloud = Mosquitto::started(folder);
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    // No message waits so long for this cloud, however slow the machine is.
    let gateway = Gateway::started(folder, &tables(cloud.port, flash, "60s"));
    gateway.wait_until_connected();
    // The first of a client brings its name into the store.
    publish(&gateway, "plant/press", 5);
    gateway.wait_until_drained();
    let before = on_disk(&gateway);
    publish(&gateway, "plant/press", 400);
    application.wait_for_count("factory7/plant/press", 405);
    before == on_disk(&gateway)
}

#[test]
fn while_the_cloud_answers_not_one_byte_is_written_and_without_sparing_many_are() {
    let _turn = turn();
    let (spared, written) = (folder(), folder());
    assert!(leaves_the_disk_alone(spared.path(), "spare"));
    assert!(!leaves_the_disk_alone(written.path(), "always"));
}

#[test]
fn the_acknowledgement_waits_for_the_cloud_or_for_the_disk() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut gateway = Gateway::started(folder.path(), &tables(cloud.port, "spare", "1s"));
    gateway.wait_until_connected();
    cloud.freeze();
    let before = on_disk(&gateway);
    let mut client = RawClient::connected(gateway.port, Version::V311, "client");
    for number in 1..=30u16 {
        client.publish(b"plant/press", 1, number, (number - 1).to_string().as_bytes());
    }
    assert_eq!(client.hear(PATIENCE), Heard::Packet(0x40, vec![0, 1]));
    assert!(before != on_disk(&gateway), "acknowledged without the cloud, so it is on the disk");
    for number in 2..=30u16 {
        assert_eq!(client.hear(PATIENCE), Heard::Packet(0x40, number.to_be_bytes().to_vec()));
    }
    gateway.kill();
    cloud.thaw();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    gateway.start();
    gateway.wait_until_drained();
    application.wait("all thirty", |received| received.len() >= 30);
    assert_none_lost(
        "held over the hold",
        &application.numbers_on("factory7/plant/press"),
        &(0..30).collect::<Vec<_>>(),
    );
}

#[test]
fn kills_at_any_moment_and_outages_lose_no_acknowledged_message() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let mut gateway = Gateway::started(folder.path(), &tables(cloud.port, "spare", "1s"));
    let topics = ["plant/one", "plant/two"];
    let mut publishers = topics.map(|topic| {
        Publisher::started(gateway.port, &format!("client-{}", &topic[6..]), topic, 900, &["--pause", "0.002"])
    });
    for kills in 1..=5 {
        for publisher in &mut publishers {
            publisher.wait_for_acknowledged(140 * kills);
        }
        match kills {
            // The cloud is silent when the gateway dies.
            2 | 4 => cloud.freeze(),
            _ => {}
        }
        gateway.kill();
        cloud.thaw();
        gateway.start();
    }
    for publisher in &mut publishers {
        publisher.wait_until_done();
    }
    gateway.wait_until_drained();
    for (publisher, topic) in publishers.iter().zip(["factory7/plant/one", "factory7/plant/two"]) {
        let acknowledged = publisher.acknowledged();
        assert_eq!(acknowledged.len(), 900, "{:?}", publisher.refused());
        application.wait_for_count(topic, 900);
        assert_none_lost(topic, &application.numbers_on(topic), &acknowledged);
    }
}

#[test]
fn a_stop_in_order_loses_and_doubles_nothing() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let mut gateway = Gateway::started(folder.path(), &tables(cloud.port, "spare", "60s"));
    gateway.wait_until_connected();
    publish(&gateway, "plant/before", 50);
    application.wait_for_count("factory7/plant/before", 50);
    cloud.stop();
    gateway.wait_for_status("the cloud is away", |status| {
        (status["uplinks"]["cloud"]["state"] != "connected").then_some(())
    });
    publish(&gateway, "plant/after", 25);
    gateway.stop();
    cloud.start();
    gateway.start();
    gateway.wait_until_drained();
    application.wait_for_count("factory7/plant/after", 25);
    // What the application had not acknowledged when the cloud stopped, the cloud gives it again: not of this topic.
    assert_whole_in_order_and_once("after it", &application.numbers_on("factory7/plant/after"), 0..25);
    assert_none_lost("before it", &application.numbers_on("factory7/plant/before"), &(0..50).collect::<Vec<_>>());
}
