//! What happens when the store is full: the plant goes on, the drain goes on, and every loss is declared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::account::{lost, repeated};
use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, ID, folder, uplink};
use common::peers::{Publisher, Received, Subscriber};
use common::turn;

const COUNT: u64 = 6000;

/// What the gap records at the cloud declare, by reason: a record is sent again with the same id while it grows.
fn declared(gaps: &[Received]) -> BTreeMap<String, u64> {
    let mut newest = BTreeMap::<String, (String, u64)>::new();
    for gap in gaps {
        let gap = gap.json();
        let text = |key: &str| gap[key].as_str().unwrap_or_else(|| panic!("no {key} in {gap}")).to_owned();
        let count = gap["count"].as_u64().unwrap();
        assert!(gap["first"].as_u64().unwrap() <= gap["last"].as_u64().unwrap(), "{gap}");
        let known = newest.entry(text("id")).or_insert((text("reason"), count));
        known.1 = known.1.max(count);
    }
    let mut by_reason = BTreeMap::new();
    for (reason, count) in newest.into_values() {
        *by_reason.entry(reason).or_default() += count;
    }
    by_reason
}

fn fill_and_drain(when_full: &str) -> (Vec<u64>, Vec<u64>, BTreeMap<String, u64>, serde_json::Value) {
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let tables = format!("[queue]\nmax_bytes = \"2 MiB\"\nwhen_full = \"{when_full}\"\n")
        + &uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    let mut publisher = Publisher::started(
        gateway.port,
        "client",
        "plant/press",
        COUNT,
        &["--size", "1000", "--window", "100", "--version", "3.1.1"],
    );
    publisher.wait_until_done();
    let acknowledged = publisher.acknowledged();
    let status = gateway.status().unwrap();
    let bytes = status["queue"]["bytes"].as_u64().unwrap();
    assert!(bytes <= 2 * 1024 * 1024, "the store stays under its ceiling: {status}");
    // The full store must also be one that a new start can work with.
    gateway.stop();
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#", "tidegate/#"]);
    gateway.start();
    gateway.wait_until_drained();

    // There is room again: what comes now is taken and delivered.
    let mut later = Publisher::started(gateway.port, "later", "plant/later", 10, &["--qos", "2"]);
    later.wait_until_done();
    application.wait_for_count("factory7/plant/later", 10);
    let arrived = application.numbers_on("factory7/plant/press");
    let missing = lost(&arrived, &acknowledged).len() as u64;
    let gap_topic = format!("tidegate/{ID}/gap");
    application.wait("gap records that declare every lost message", |received| {
        let gaps: Vec<Received> = received.iter().filter(|message| message.topic == gap_topic).cloned().collect();
        declared(&gaps).values().sum::<u64>() >= missing
    });
    let gaps = application.received_on(&gap_topic);
    (acknowledged, arrived, declared(&gaps), gateway.status().unwrap())
}

#[test]
fn a_full_store_goes_on_draining_and_declares_exactly_what_is_missing() {
    let _turn = turn();
    let (acknowledged, arrived, declared, status) = fill_and_drain("drop-oldest");
    assert_eq!(acknowledged.len() as u64, COUNT, "a full store never stops the plant");
    let missing = lost(&arrived, &acknowledged);
    assert!(missing.len() > 1000, "the store was really full: {} are missing", missing.len());
    assert_eq!(declared, BTreeMap::from([("dropped-oldest".to_owned(), missing.len() as u64)]));
    assert_eq!(status["losses"]["dropped-oldest"], missing.len());
    assert_eq!(repeated(&arrived), Vec::<u64>::new());
    // The oldest are missing, and nothing else.
    let oldest: Vec<u64> = (0..missing.len() as u64).collect();
    assert_eq!(missing, oldest);
}

#[test]
fn a_full_store_that_keeps_the_oldest_declares_the_newest_as_lost() {
    let _turn = turn();
    let (acknowledged, arrived, declared, status) = fill_and_drain("drop-newest");
    assert_eq!(acknowledged.len() as u64, COUNT, "a full store never stops the plant");
    let missing = lost(&arrived, &acknowledged);
    assert!(missing.len() > 1000, "the store was really full: {} are missing", missing.len());
    assert_eq!(declared, BTreeMap::from([("dropped-newest".to_owned(), missing.len() as u64)]));
    assert_eq!(status["losses"]["dropped-newest"], missing.len());
    assert!(arrived.starts_with(&(0..500).collect::<Vec<_>>()), "the oldest are kept");
}

#[test]
fn a_full_store_that_refuses_tells_the_publisher_and_loses_nothing_that_it_acknowledged() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let tables = "[queue]\nmax_bytes = \"2 MiB\"\nwhen_full = \"refuse\"\n".to_owned()
        + &uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    let mut publisher = Publisher::started(gateway.port, "client", "plant/press", COUNT, &["--size", "1000"]);
    publisher.wait_until_done();
    let (acknowledged, refused) = (publisher.acknowledged(), publisher.refused());
    assert!(refused.len() > 1000, "{} were refused", refused.len());
    assert!(refused.iter().all(|line| line.to_lowercase().contains("quota")), "reason 0x97: {:?}", refused.first());
    gateway.stop();
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#", "tidegate/#"]);
    gateway.start();
    application.wait_for_count("factory7/plant/press", acknowledged.len());
    gateway.wait_until_drained();
    assert_eq!(application.numbers_on("factory7/plant/press"), acknowledged);
    assert_eq!(
        application.received_on(&format!("tidegate/{ID}/gap")).len(),
        0,
        "nothing is lost, so nothing is declared"
    );
}

/// How long so many messages take from one local client to another, every one acknowledged.
fn local_round(gateway: &Gateway, name: &str) -> std::time::Duration {
    let topic = format!("local/{name}");
    let mut listener = Subscriber::started(gateway.port, &format!("hears-{name}"), &[&topic]);
    let started = tokio::time::Instant::now();
    let mut talker = Publisher::started(gateway.port, &format!("talks-{name}"), &topic, 2000, &["--window", "50"]);
    talker.wait_until_done();
    listener.wait_for_count(&topic, 2000);
    assert_eq!(listener.numbers_on(&topic), talker.acknowledged(), "every one, in order");
    started.elapsed()
}

#[test]
fn a_full_store_leaves_local_clients_alone_whatever_gives_way_in_it() {
    let _turn = turn();
    for when_full in ["drop-oldest", "drop-newest", "refuse"] {
        let folder = folder();
        let tables = format!("[queue]\nmax_bytes = \"1 MiB\"\nwhen_full = \"{when_full}\"\n")
            + &uplink("mqtt://127.0.0.1:1", "")
            + FORWARD_PLANT;
        let gateway = Gateway::started(folder.path(), &tables);
        let empty = local_round(&gateway, "empty");
        // A publisher of the plant that goes on for the whole time; under `refuse` it is told so, or waits.
        let plant = Publisher::started(gateway.port, "plant", "plant/press", 1_000_000, &["--size", "1000"]);
        gateway.wait_for_status("the store is filled to four fifths", |status| {
            status["alarms"].get("store-fills").map(|_| ())
        });
        match when_full {
            "refuse" => common::wait_for(common::PATIENCE, "it refuses", || plant.refused().len() > 10),
            reason => gateway.wait_for_status("it drops", |status| {
                let lost = if reason == "drop-oldest" { "dropped-oldest" } else { "dropped-newest" };
                status["losses"][lost].as_u64().filter(|count| *count > 10).map(|_| ())
            }),
        }
        let full = local_round(&gateway, "full");
        // The rate is `benches/full_store.py`'s business; here it must not come to a stop.
        println!("{when_full}: {empty:?} with an empty store, {full:?} with a full one and a publisher that fills it");
        let before = plant.acknowledged().len() + plant.refused().len();
        common::wait_for(common::PATIENCE, "the plant goes on as well", || {
            plant.acknowledged().len() + plant.refused().len() > before
        });
        let status = gateway.status().unwrap();
        let bytes = status["queue"]["bytes"].as_u64().unwrap();
        assert!(bytes <= 1024 * 1024, "the store stays under its ceiling: {status}");
        drop(plant);
    }
}
