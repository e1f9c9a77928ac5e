//! Is a line noticed that looks open and carries nothing? The kernel drops packets, as a modem or a firewall does that has
//! lost its table: no reset, no end, no error.
//!
//! Each test runs in a network namespace of its own (`common/namespace.rs`). It needs root, or user namespaces; and Debian's
//! nftables.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use common::namespace::{self, run};
use tidegate::config::{Protocol, UplinkConfig};
use tidegate::health::UplinkState;
use tidegate::message::Qos;
use tokio::time::Instant;
use uplink_support::gateway::{Gateway, arrived, config, distinct, until};
use uplink_support::{FakeCloud, Temper};

mod common;
mod uplink_support;

const KEEP_ALIVE: Duration = Duration::from_secs(8);

/// One and a half keep-alives, and a second for a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_millis(8000 * 3 / 2 + 1000);

/// In its namespace, where holes can be dug.
fn is_inside(name: &str) -> bool {
    let is_inside = namespace::is_inside(name);
    if is_inside {
        run("nft", &["add", "table", "inet", "hole"]);
    }
    is_inside
}

/// What is dropped.
#[derive(Debug, Clone, Copy)]
enum Hole {
    Both,
    /// What the cloud sends: the gateway's own packets arrive.
    Answers,
}

impl Hole {
    fn dig(self, port: u16) {
        let (chain, port) = (format!("at{port}"), port.to_string());
        run("nft", &["add", "chain", "inet", "hole", &chain, "{ type filter hook input priority 0; }"]);
        let sides: &[&str] = match self {
            Hole::Both => &["sport", "dport"],
            Hole::Answers => &["sport"],
        };
        for side in sides {
            run("nft", &["add", "rule", "inet", "hole", &chain, "tcp", side, &port, "drop"]);
        }
    }

    fn fill(port: u16) {
        run("nft", &["flush", "chain", "inet", "hole", &format!("at{port}")]);
    }
}

async fn notice(hole: Hole, is_idle: bool, qos: Qos) {
    let cloud = FakeCloud::start(0, Temper::default()).await;
    let keep_alive = KEEP_ALIVE;
    let gateway = Gateway::start(UplinkConfig { keep_alive, ..config(cloud.port, Protocol::V5, Some(qos)) });
    gateway.publish(0..50, Qos::AtLeastOnce).await;
    until("the first have arrived", || gateway.delivered() == 50).await;
    until("all is quiet", || gateway.in_flight() == 0).await;
    hole.dig(cloud.port);
    let dug = Instant::now();
    if !is_idle {
        gateway.publish(50..100, Qos::AtLeastOnce).await;
    }
    until("it is noticed", || gateway.state() != UplinkState::Connected).await;
    let took = dug.elapsed();
    println!("{hole:?}, idle: {is_idle}, QoS {}: noticed after {took:?}", qos.level());
    assert!(took <= NOTICED_WITHIN, "{hole:?}, idle: {is_idle}: noticed after {took:?} only");
    assert!(gateway.reason().contains("does not answer"), "{}", gateway.reason());
    if is_idle {
        gateway.publish(50..100, Qos::AtLeastOnce).await;
    }
    assert!(gateway.delivered() == 50, "nothing can have been acknowledged");
    Hole::fill(cloud.port);
    until("all is settled", || gateway.delivered() == 100).await;
    assert_eq!(distinct(&cloud), 100);
    if qos == Qos::ExactlyOnce {
        assert_eq!(arrived(&cloud).len(), 100, "each exactly once");
    }
    let ids: BTreeSet<String> = arrived(&cloud).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 100, "a repeat bears the id of the first");
    gateway.stop().await;
}

#[test]
fn a_black_hole_is_noticed_within_one_and_a_half_keep_alives_and_loses_and_doubles_nothing() {
    if !is_inside("a_black_hole_is_noticed_within_one_and_a_half_keep_alives_and_loses_and_doubles_nothing") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::join!(
            notice(Hole::Both, true, Qos::AtLeastOnce),
            notice(Hole::Both, false, Qos::ExactlyOnce),
            notice(Hole::Answers, false, Qos::ExactlyOnce),
            notice(Hole::Answers, false, Qos::AtLeastOnce),
        );
    });
}

/// The control: with no keep-alive nobody asks, and the idle hole stays unnoticed for as long as it was noticed before.
#[test]
fn without_a_keep_alive_an_idle_black_hole_is_not_noticed() {
    if !is_inside("without_a_keep_alive_an_idle_black_hole_is_not_noticed") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let cloud = FakeCloud::start(0, Temper::default()).await;
        let keep_alive = Duration::ZERO;
        let gateway = Gateway::start(UplinkConfig { keep_alive, ..config(cloud.port, Protocol::V5, None) });
        until("connected", || gateway.state() == UplinkState::Connected).await;
        Hole::Both.dig(cloud.port);
        tokio::time::sleep(NOTICED_WITHIN).await;
        assert_eq!(gateway.state(), UplinkState::Connected, "then the hole is no hole");
        Hole::fill(cloud.port);
        gateway.stop().await;
    });
}
