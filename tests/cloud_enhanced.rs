//! Enhanced authentication at programs that do not know us: SCRAM and tokens at the broker of the crate `mqtt5`, both kinds of
//! SCRAM at a stand-in on Python's hashlib, and what a server gets that does not prove itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;
mod uplink_support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::enhanced::{Mqtt5, ScramStandIn};
use common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use common::peers::{Publisher, Subscriber, script};
use common::{PATIENCE, turn, wait_for};
use serde_json::Value;
use tidegate::clock::{Clock, ClockSource};
use tidegate::config::{JwtConfig, Protocol, Reconnect, UplinkConfig};
use tidegate::message::Qos;
use uplink_support::gateway::{self as inner, config, until};

const USER: &str = ScramStandIn::USER;
const PASSWORD: &str = ScramStandIn::PASSWORD;

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn numbers(broker: &Mqtt5) -> BTreeSet<u64> {
    let told = broker.told("message").into_iter().filter(|told| told["topic"] == "factory7/plant/press");
    told.map(|told| told["payload"].as_str().unwrap().split_whitespace().next().unwrap().parse().unwrap()).collect()
}

#[test]
fn by_scram_the_gateway_gets_in_at_another_makers_broker_and_delivers_over_its_kill_and_a_wrong_password_is_named() {
    let _turn = turn();
    let folder = folder();
    // As many rounds as that broker takes by itself. It does not read `=2C` and `=3D` in names: the stand-in does.
    let user = "hall-3-west";
    let mut broker = Mqtt5::with_scram(folder.path(), user, PASSWORD, 310_000);
    broker.start();
    let mut application = Subscriber::started(broker.port, "application", &["factory7/#"]);
    let file = folder.path().join("password");
    secret(&file, "correct house\n");
    let login = |user: &str| {
        format!("auth_method = \"SCRAM-SHA-256\"\nusername = \"{user}\"\npassword_file = \"{}\"", file.display())
    };
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let mut gateway = Gateway::started(folder.path(), &(uplink(&url, &login("nobody")) + FORWARD_PLANT));
    let reason = |gateway: &Gateway| {
        gateway.wait_for_status("the uplink says why it is not connected", |status| {
            let cloud = &status["uplinks"]["cloud"];
            assert_ne!(cloud["state"], "connected");
            cloud["reason"].as_str().map(str::to_owned)
        })
    };
    let told = "not authorised (0x87): \"Authentication failed\"; check username, password_file, client_id";
    assert!(reason(&gateway).contains(told), "an unknown user: {}", reason(&gateway));
    gateway.stop();
    gateway.set_tables(&(uplink(&url, &login(user)) + FORWARD_PLANT));
    gateway.start();
    assert!(reason(&gateway).contains(told), "a wrong password: {}", reason(&gateway));

    let mut publisher = Publisher::started(gateway.port, "client", "plant/press", 50, &[]);
    publisher.wait_until_done();
    secret(&file, &format!("{PASSWORD}\n"));
    application.wait_for_count("factory7/plant/press", 50);
    let ups = broker.told("up");
    let up = ups.iter().find(|up| up["user"] == user).unwrap();
    assert_eq!(up["client"], "hall-3", "{ups:?}");

    // The broker dies in the middle of traffic, and knows nobody any more who has not logged in anew.
    let mut publisher = Publisher::started(gateway.port, "client", "plant/press", 400, &[]);
    wait_for(PATIENCE, "it is at it", || numbers(&broker).contains(&60));
    broker.kill();
    publisher.wait_until_done();
    broker.start();
    wait_for(PATIENCE, "all has arrived", || numbers(&broker).len() == 400);
    let ups = broker.told("up").into_iter().filter(|up| up["user"] == user).count();
    assert_eq!(ups, 2, "one login each");
    assert!(gateway.log().iter().all(|line| !line.contains("correct h")), "no secret is logged");

    let words = ["drill", "--yes", "--steps", "well", "--time", "500ms", "--topic", "plant/drill", "--config"];
    let drill = Command::new(PROGRAM).args(words).arg(gateway.config_path()).output().unwrap();
    assert!(drill.status.success(), "the drill reads back by the same login: {drill:?}");
}

fn by_scram(port: u16, method: &str, password_file: PathBuf) -> UplinkConfig {
    let (username, auth_method) = (Some(USER.to_owned()), Some(method.to_owned()));
    let qos = Some(Qos::AtLeastOnce);
    UplinkConfig { username, auth_method, password_file: Some(password_file), ..config(port, Protocol::V5, qos) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_hashes_get_in_at_a_strict_server_wherever_its_proof_stands() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    secret(&file, &format!("{PASSWORD}\n"));
    for (hash, method, mode) in [("sha256", "SCRAM-SHA-256", "early"), ("sha512", "SCRAM-SHA-512", "honest")] {
        let server = ScramStandIn::started(hash, mode);
        let gateway = inner::Gateway::start(by_scram(server.port, method, file.clone()));
        gateway.publish(0..20, Qos::AtLeastOnce).await;
        until("delivered", || gateway.delivered() >= 20).await;
        let packets = server.packets();
        let auths = packets.iter().filter(|packet| *packet == "AUTH").count();
        assert_eq!((packets[0].as_str(), auths), ("CONNECT", if mode == "early" { 2 } else { 1 }), "{packets:?}");
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_prove_itself_is_told_nothing_and_comes_up_in_the_status() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    secret(&file, &format!("{PASSWORD}\n"));
    for (mode, told) in [
        ("open", "without proving that it knows the password"),
        ("silent", "without proving that it knows the password"),
        ("stranger", "its proof is wrong"),
        ("echo", "its proof is wrong"),
        ("denies", "\"invalid-proof\""),
        ("weak", "asks for 1 rounds"),
        ("heavy", "asks for 4000000000 rounds"),
        ("extension", "an extension that is not known here"),
        ("other", "it answers another login"),
        ("long", "its message is too long"),
        ("babble", "where it is not its turn"),
    ] {
        let server = ScramStandIn::started("sha256", mode);
        // Far apart, so that a second attempt would be one without a pause.
        let month = Duration::from_secs(30 * 86_400);
        let reconnect = Reconnect { first: month, max: month };
        let gateway =
            inner::Gateway::start(UplinkConfig { reconnect, ..by_scram(server.port, "SCRAM-SHA-256", file.clone()) });
        gateway.publish(0..5, Qos::AtLeastOnce).await;
        until("it is told", || gateway.reason().contains(told)).await;
        until("it has hung up", || server.told().iter().any(|told| told["gone"] == true)).await;
        let packets = server.packets();
        let is_answered = ["silent", "stranger", "echo", "denies", "babble"].contains(&mode);
        let most: &[&str] = if is_answered { &["CONNECT", "AUTH"] } else { &["CONNECT"] };
        let is_within = packets.len() <= most.len() && packets.iter().zip(most).all(|(got, one)| got == one);
        assert!(is_within, "{mode}: {packets:?}");
        assert_eq!(gateway.delivered(), 0);
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_makers_broker_takes_the_next_token_on_the_same_connection_and_refuses_one_that_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    script("tokens", &[path.to_str().unwrap(), "make"]).wait(PATIENCE);
    let mut broker = Mqtt5::with_tokens(path, &path.join("ec.pem"));
    broker.start();
    let client = |told: Vec<Value>| told.into_iter().filter(|told| told["client"] == "g7").collect::<Vec<_>>();
    let qos = Some(Qos::AtLeastOnce);
    let token = UplinkConfig { auth_method: Some("JWT".to_owned()), ..config(broker.port, Protocol::V5, qos) };

    // One that has ended: told, and no loop. Whoever renews it then gets the gateway in.
    let file = path.join("token");
    let sign = |left_s: i64| {
        // Whole seconds: a fraction is allowed (RFC 7519, 2), and that broker takes none.
        let exp = Clock::new(ClockSource::Trusted).now().wall_ms / 1000 + left_s;
        let claims = serde_json::json!({"sub": "hall-3", "exp": exp}).to_string();
        let mut signing = script("tokens", &[path.to_str().unwrap(), "sign", "ec.key", &claims, "{}"]);
        assert!(signing.wait(PATIENCE).success(), "{}", signing.transcript());
        secret(&file, &format!("{}\n", signing.stdout()[0]));
    };
    sign(-30);
    let gateway = inner::Gateway::start(UplinkConfig { password_file: Some(file.clone()), ..token.clone() });
    gateway.publish(0..20, Qos::AtLeastOnce).await;
    until("it is told", || gateway.reason().contains("not authorised (0x87): \"token expired\"")).await;
    sign(3600);
    until("delivered", || gateway.delivered() >= 20).await;
    let state = gateway.stop().await;
    let before = client(broker.told("up")).len();

    // One that is signed here, and shown again by AUTH before it ends, in the middle of traffic.
    let (key, subject) = (path.join("ec.key"), Some("hall-3".to_owned()));
    let lifetime = Duration::from_secs(5);
    let jwt = JwtConfig { key, key_id: None, audience: None, issuer: None, subject, lifetime };
    let gateway = inner::Gateway::start_in(state, UplinkConfig { jwt: Some(jwt), ..token });
    let mut sent = 0;
    while client(broker.told("again")).is_empty() {
        gateway.publish(sent..sent + 10, Qos::AtLeastOnce).await;
        sent += 10;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(sent < 40_000, "it is not shown: {}", gateway.reason());
    }
    until("all settled", || gateway.delivered() >= u64::try_from(sent).unwrap()).await;
    gateway.stop().await;
    let again = client(broker.told("again"));
    assert!(again.iter().all(|told| told["status"] == "Success" && told["user"] == "hall-3"), "{again:?}");
    assert_eq!(client(broker.told("up")).len(), before + 1, "one connection for all tokens");
    let messages = broker.told("message").into_iter().filter(|told| told["topic"].as_str().unwrap().starts_with("f/"));
    assert_eq!(messages.count(), 20 + sent, "each once");
}
