//! Does what was acknowledged while the cloud was away arrive when it is back?
//!
//! Mosquitto is the cloud, paho publishes here and counts there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use common::account::assert_whole_in_order_and_once;
use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::peers::{Publisher, Subscriber, script};
use common::{PATIENCE, raw, turn, wait_until};

const COUNT: u64 = 100;

/// Each version and QoS that a local client can choose, with a topic of its own.
const PUBLISHERS: [(&str, &str, &str); 4] =
    [("3.1.1", "1", "plant/a"), ("3.1.1", "2", "plant/b"), ("5", "1", "plant/c"), ("5", "2", "plant/d")];

fn publish_during_an_outage(uplink_protocol: &str) {
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), &format!("protocol = \"{uplink_protocol}\""))
        + FORWARD_PLANT;
    let gateway = Gateway::started(folder.path(), &tables);
    gateway.wait_until_connected();

    cloud.stop();
    let publishers = PUBLISHERS.map(|(version, qos, topic)| {
        Publisher::started(
            gateway.port,
            &format!("client-{version}-{qos}"),
            topic,
            COUNT,
            &["--version", version, "--qos", qos],
        )
    });
    for mut publisher in publishers {
        publisher.wait_until_done();
        assert_eq!(publisher.refused(), Vec::<String>::new());
    }
    let waiting = gateway.wait_for_status("all of it waits for the cloud", |status| {
        status["uplinks"]["cloud"]["waiting"].as_u64().filter(|waiting| *waiting >= 4 * COUNT)
    });
    assert_eq!(waiting, 4 * COUNT);

    cloud.start();
    gateway.wait_until_drained();
    for (_, _, topic) in PUBLISHERS {
        application.wait_for_count(&format!("factory7/{topic}"), usize::try_from(COUNT).unwrap());
    }
    // Whatever is sent twice comes before this one.
    let mut last = raw::RawClient::connected(gateway.port, raw::Version::V311, "last");
    last.publish(b"plant/last", 2, 1, b"0");
    assert!(matches!(last.hear(PATIENCE), raw::Heard::Packet(0x50, _)));
    last.release(1);
    application.wait_for_count("factory7/plant/last", 1);
    for (version, qos, topic) in PUBLISHERS {
        let what = format!("published by MQTT {version} at QoS {qos}");
        let arrived = application.numbers_on(&format!("factory7/{topic}"));
        assert_whole_in_order_and_once(&what, &arrived, 0..COUNT);
        for message in application.received_on(&format!("factory7/{topic}")) {
            assert_eq!(message.qos.to_string(), qos, "{what}: QoS as published");
        }
    }
}

#[test]
fn what_paho_publishes_during_an_outage_arrives_in_order_and_once_over_mqtt_5() {
    let _turn = turn();
    publish_during_an_outage("5");
}

#[test]
fn what_paho_publishes_during_an_outage_arrives_in_order_and_once_over_mqtt_3_1_1() {
    let _turn = turn();
    publish_during_an_outage("3.1.1");
}

#[test]
fn a_gateway_that_starts_without_a_cloud_keeps_everything_for_it() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let gateway =
        Gateway::started(folder.path(), &(uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT));
    let mut publisher = Publisher::started(gateway.port, "early", "plant/early", COUNT, &["--qos", "2"]);
    publisher.wait_until_done();
    let reason = gateway.wait_for_status("the uplink says why it is not connected", |status| {
        status["uplinks"]["cloud"]["reason"].as_str().map(str::to_owned)
    });
    assert!(reason.contains("refused"), "{reason:?}");

    // The cloud comes into being with nobody subscribed: the application must be there before the gateway drains,
    // so the gateway is stopped for that moment. Its state must outlive that too.
    let mut gateway = gateway;
    gateway.stop();
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    gateway.start();
    gateway.wait_until_drained();
    application.wait_for_count("factory7/plant/early", COUNT as usize);
    assert_whole_in_order_and_once(
        "published before the cloud",
        &application.numbers_on("factory7/plant/early"),
        0..COUNT,
    );
}

#[test]
fn mosquitto_keeps_the_session_over_its_restart_from_the_first_connection_on() {
    let _turn = turn();
    for protocol in ["3.1.1", "5"] {
        let folder = folder();
        let mut cloud = Mosquitto::started(folder.path());
        let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), &format!("protocol = \"{protocol}\""));
        let mut gateway = Gateway::started(folder.path(), &(tables + FORWARD_PLANT));
        gateway.wait_until_connected();
        cloud.stop();
        gateway.wait_for_status("the gateway has noticed", |status| {
            (status["uplinks"]["cloud"]["state"] != "connected").then_some(())
        });
        cloud.start();
        gateway.wait_until_connected();
        gateway.stop();
        // It would take what it had received, but had not heard released, a second time.
        let lost: Vec<String> =
            gateway.log().into_iter().filter(|line| line.contains("not kept the session")).collect();
        assert!(lost.is_empty(), "over MQTT {protocol}: {lost:?}");
    }
}

#[test]
fn a_line_that_falls_silent_without_being_closed_loses_and_repeats_nothing() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "keep_alive = \"5s\"") + FORWARD_PLANT;
    let gateway = Gateway::started(folder.path(), &tables);
    gateway.wait_until_connected();

    cloud.freeze();
    let mut publisher = Publisher::started(gateway.port, "client", "plant/press", COUNT, &["--qos", "2"]);
    publisher.wait_until_done();
    gateway.wait_for_status("the gateway has noticed that nobody answers", |status| {
        (status["uplinks"]["cloud"]["state"] != "connected").then_some(())
    });
    cloud.thaw();
    gateway.wait_until_drained();
    application.wait_for_count("factory7/plant/press", COUNT as usize);
    assert_whole_in_order_and_once("over a silent line", &application.numbers_on("factory7/plant/press"), 0..COUNT);
}

#[test]
fn the_publisher_and_the_subscriber_of_any_primer_work_unchanged_also_during_an_outage() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let gateway =
        Gateway::started(folder.path(), &(uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT));
    gateway.wait_until_connected();
    cloud.stop();
    let port = gateway.port.to_string();
    let dashboard = script("primer_subscriber", &[&port]);
    // The primer's subscriber does not say when it has subscribed.
    gateway
        .wait_for_status("the dashboard is connected", |status| (status["sessions"]["connected"] == 1).then_some(()));
    let mut probe = raw::RawClient::connected(gateway.port, raw::Version::V311, "probe");
    wait_until(PATIENCE, "the dashboard hears", || {
        probe.publish(b"plant/probe", 0, 0, b"there?");
        if dashboard.stdout().is_empty() { Err("nothing".to_owned()) } else { Ok(()) }
    });

    let mut publisher = script("primer_publisher", &[&port]);
    assert!(publisher.wait(PATIENCE).success());
    let heard = || dashboard.stdout().into_iter().filter(|line| line.starts_with("plant/primer ")).collect::<Vec<_>>();
    wait_until(PATIENCE, "the dashboard has all five", || {
        let heard = heard();
        if heard.len() >= 5 { Ok(()) } else { Err(format!("{heard:?}")) }
    });
    assert_eq!(heard(), (0..5).map(|number| format!("plant/primer {number}")).collect::<Vec<_>>());

    cloud.start();
    application.wait_for_count("factory7/plant/primer", 5);
    assert_whole_in_order_and_once("the primer's", &application.numbers_on("factory7/plant/primer"), 0..5);
}

#[test]
fn a_qos_0_publish_is_kept_over_an_outage_where_a_rule_raises_it_and_counted_where_none_does() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let raised = "[[uplink.cloud.forward]]\nfilter = \"flow/#\"\ntopic = \"factory7/{topic}\"\nqos = 1\n";
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + raised + FORWARD_PLANT;
    let gateway = Gateway::started(folder.path(), &tables);
    gateway.wait_until_connected();
    cloud.stop();
    gateway.wait_for_status("the gateway has noticed", |status| {
        (status["uplinks"]["cloud"]["state"] != "connected").then_some(())
    });

    let mut flow = raw::RawClient::connected(gateway.port, raw::Version::V311, "node-red");
    for number in 0..20 {
        flow.publish(b"flow/level", 0, 0, number.to_string().as_bytes());
        flow.publish(b"plant/level", 0, 0, number.to_string().as_bytes());
    }
    gateway.wait_for_status("the raised ones wait, and the others are counted by client", |status| {
        let is_so = status["uplinks"]["cloud"]["waiting"] == 20 && status["unkept_qos0"]["node-red"] == 20;
        is_so.then_some(())
    });
    cloud.start();
    application.wait_for_count("factory7/flow/level", 20);
    assert_whole_in_order_and_once("raised to QoS 1", &application.numbers_on("factory7/flow/level"), 0..20);
    assert!(application.received_on("factory7/flow/level").iter().all(|message| message.qos == 1));
}
