//! An ordered stop: under load, without a cloud, and as the service manager sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use common::account::assert_none_lost;
use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, STOP_PATIENCE, folder, uplink};
use common::peers::{Publisher, Subscriber};
use common::{PATIENCE, turn, wait_until};
use tokio::time::Instant;

fn stop_under_load(is_cloud_up: bool) {
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT;
    let mut application = None;
    if is_cloud_up {
        cloud.start();
        application = Some(Subscriber::started(cloud.port, "application", &["factory7/#"]));
    }
    let mut gateway = Gateway::started(folder.path(), &tables);
    // They cannot end within the test: the stop always comes into their flow.
    let load = ["1", "2"].map(|qos| {
        let topic = format!("plant/qos{qos}");
        let mut publisher = Publisher::started(gateway.port, &format!("client-{qos}"), &topic, 60_000, &["--qos", qos]);
        publisher.wait_for_acknowledged(500);
        (publisher, format!("factory7/{topic}"))
    });
    let asked = Instant::now();
    gateway.stop();
    assert!(asked.elapsed() < STOP_PATIENCE, "the stop took {:?}", asked.elapsed());
    let acknowledged = load.each_ref().map(|(publisher, topic)| (publisher.acknowledged(), topic.clone()));
    drop(load);

    if !is_cloud_up {
        cloud.start();
    }
    let mut application =
        application.unwrap_or_else(|| Subscriber::started(cloud.port, "application", &["factory7/#"]));
    gateway.start();
    gateway.wait_until_drained();
    for (acknowledged, topic) in acknowledged {
        application.wait_for_count(&topic, acknowledged.len());
        assert_none_lost(&topic, &application.numbers_on(&topic), &acknowledged);
    }
}

#[test]
fn a_stop_under_load_exits_0_and_loses_no_acknowledged_message() {
    let _turn = turn();
    stop_under_load(true);
}

#[test]
fn a_stop_under_load_during_an_outage_exits_0_and_loses_no_acknowledged_message() {
    let _turn = turn();
    stop_under_load(false);
}

#[test]
fn the_service_manager_hears_ready_once_clients_can_connect_and_stopping_before_the_end() {
    let _turn = turn();
    let folder = folder();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    let mut hear = |what: &str| {
        wait_until(PATIENCE, &format!("the service manager hears {what}"), || {
            let mut buffer = [0; 4096];
            while let Ok(count) = manager.recv(&mut buffer) {
                heard.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
            }
            let is_heard = heard.iter().any(|text| text.lines().any(|line| line == what));
            if is_heard { Ok(()) } else { Err(format!("{heard:?}")) }
        });
    };
    let mut gateway = Gateway::prepared(folder.path(), "");
    gateway.start_with(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    hear("READY=1");
    gateway.stop();
    hear("STOPPING=1");
}

#[test]
fn an_idle_gateway_stops_at_once() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    let asked = Instant::now();
    gateway.stop();
    assert!(asked.elapsed() < Duration::from_secs(10), "the stop took {:?}", asked.elapsed());
}
