//! Do tokens that PyJWT makes open the door to mosquitto's and paho's clients; do bad ones not; and does a session end with
//! its token, with its key, and when the clock says at last that it should have?
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::gateway::{Gateway, folder};
use common::peers::script;
use common::process::Process;
use common::{PATIENCE, turn, wait_until};
use serde_json::{Value, json};

/// `tests/peers/tokens.py`, to its end; what it prints.
fn tokens(folder: &Path, arguments: &[&str]) -> String {
    let folder = folder.display().to_string();
    let mut process = script("tokens", &[[folder.as_str()].as_slice(), arguments].concat());
    let status = process.wait(PATIENCE);
    assert!(status.success(), "{}", process.transcript());
    process.stdout().join("\n")
}

fn token(folder: &Path, key: &str, claims: &Value, more: &[&str]) -> String {
    let headers = if key == "rsa.key" { r#"{"kid":"r1"}"# } else { "{}" };
    tokens(folder, &[["sign", key, &claims.to_string(), headers].as_slice(), more].concat())
}

/// What a good token of `user` says.
fn claims(user: &str) -> Value {
    json!({"sub": user, "aud": "tidegate", "iss": "plant", "exp": {"in": 3600}, "nbf": {"in": -10}, "groups": ["writers"]})
}

fn with(name: &str, value: Value) -> Value {
    let mut changed = claims("hmi");
    changed.as_object_mut().unwrap().insert(name.to_owned(), value);
    changed
}

fn tables(folder: &Path, more: &str) -> String {
    let folder = folder.display();
    format!(
        "[broker.jwt]\nkeys = [\"{folder}/keys.json\", \"{folder}/ec.pem\"]\naudience = \"tidegate\"\nissuer = \"plant\"\n\
         leeway = \"0s\"\nsubscribe = [\"told/#\"]\n{more}\n[broker.group.writers]\npublish = [\"plant/{{username}}/#\"]\n\
         subscribe = [\"plant/#\"]\n[broker.user.plc7]\npassword_hash = \"$6$AAAAAAAAAAAAAAAA${}==\"\npublish = [\"#\"]\n",
        "A".repeat(86)
    )
}

/// mosquitto_pub at QoS 1; its exit status and what it says.
fn publish(gateway: &Gateway, version: &str, user: &str, token: &str, topic: &str) -> (bool, String) {
    let port = gateway.port.to_string();
    let output = Command::new("mosquitto_pub")
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-q",
            "1",
            "-m",
            "x",
            "-V",
            version,
            "-u",
            user,
            "-P",
            token,
            "-t",
            topic,
        ])
        .output()
        .expect("mosquitto_pub of Debian's mosquitto-clients is needed");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A paho client (`tests/peers/told.py`).
fn client(gateway: &Gateway, id: &str, token: &str, more: &[&str]) -> Process {
    let port = gateway.port.to_string();
    script("told", &[["--port", &port, "--client-id", id, "--password", token].as_slice(), more].concat())
}

/// One of mosquitto's that has subscribed: it says with which reason it is disconnected, which paho does not where nothing
/// follows the reason.
fn plain_reader(gateway: &Gateway, id: &str, token: &str) -> Process {
    let port = gateway.port.to_string();
    let login = ["-d", "-V", "mqttv5", "-i", id, "-u", "hmi", "-P", token, "-t", "told/x"];
    let arguments = [["-oL", "mosquitto_sub", "-h", "127.0.0.1", "-p", &port].as_slice(), &login].concat();
    // Its lines, one by one, although nobody is at a terminal.
    let mut process = Process::start("mosquitto_sub", "stdbuf", &arguments);
    process.wait_for_line(PATIENCE, "that it has subscribed", |line| line.contains("received SUBACK"));
    process
}

fn wait_for_reason(process: &mut Process, reason: u8) {
    let expected = format!("Received DISCONNECT ({reason})");
    process.wait_for_line(PATIENCE, &expected, |line| line.contains(&expected));
}

fn event(process: &mut Process, name: &str) -> Value {
    let line = process.wait_for_line(PATIENCE, name, |line| line.contains(&format!("\"event\": \"{name}\"")));
    serde_json::from_str(&line).unwrap()
}

fn wait_for_messages(process: &mut Process, count: usize) {
    wait_until(PATIENCE, "the messages are there", || {
        let lines = process.stdout();
        let found = lines.iter().filter(|line| line.contains("\"event\": \"message\"")).count();
        if found == count { Ok(()) } else { Err(lines.join("\n")) }
    });
}

#[test]
fn tokens_of_both_kinds_open_the_door_to_mosquittos_and_pahos_clients_and_bad_ones_do_not() {
    let _turn = turn();
    let folder = folder();
    tokens(folder.path(), &["make"]);
    let mut gateway = Gateway::started(folder.path(), &tables(folder.path(), ""));
    for key in ["rsa.key", "ec.key"] {
        let good = token(folder.path(), key, &claims("hmi"), &[]);
        for version in ["mqttv311", "mqttv5"] {
            let (is_taken, said) = publish(&gateway, version, "hmi", &good, "plant/hmi/x");
            assert!(is_taken, "{key} {version}: {said}");
        }
        // By the token alone; and the group says what the bearer may hear.
        let mut paho = client(&gateway, key, &good, &["told/#", "plant/#", "other/#"]);
        assert_eq!(event(&mut paho, "connected")["reason"], 0);
        assert_eq!(event(&mut paho, "subscribed")["reasons"], json!([1, 1, 0x87]));
        paho.kill();
        let (_, said) = publish(&gateway, "mqttv5", "hmi", &good, "plant/other/x");
        assert!(said.to_lowercase().contains("not authorized"), "{said}");
    }
    let bad = [
        token(folder.path(), "ec.key", &with("exp", json!({"in": -1})), &[]),
        token(folder.path(), "ec.key", &with("nbf", json!({"in": 3600})), &[]),
        token(folder.path(), "ec.key", &with("aud", json!("another")), &[]),
        token(folder.path(), "ec.key", &with("iss", json!("another")), &[]),
        token(folder.path(), "stranger.key", &claims("hmi"), &[]),
        token(folder.path(), "ec.pem", &claims("hmi"), &["HS256"]),
        token(folder.path(), "ec.key", &claims("hmi"), &["none"]),
        token(folder.path(), "ec.key", &claims("plc7"), &[]),
    ];
    for bad in &bad {
        let mut paho = client(&gateway, "bad", bad, &["told/#"]);
        let told = event(&mut paho, "connected")["reason"].clone();
        assert!(told == 0x86 || told == 0x9F, "{told} for {bad}");
        paho.kill();
    }
    let good = token(folder.path(), "ec.key", &claims("hmi"), &[]);
    for name in ["another", "plc7"] {
        let (is_taken, said) = publish(&gateway, "mqttv311", name, &good, "plant/hmi/x");
        assert!(!is_taken, "{name}: {said}");
    }
    gateway.stop();
    let log = gateway.log().join("\n");
    for words in
        ["has ended", "not good yet", "(`aud`", "(`iss`", "signature of its token is wrong", "not taken (RS256"]
    {
        assert!(log.contains(words), "{words} in {log}");
    }
    assert!(!log.contains(&good), "a token stands in the log");
}

#[test]
fn a_session_ends_with_its_token_and_the_next_token_takes_it_up_with_all_that_came_meanwhile() {
    let _turn = turn();
    let folder = folder();
    tokens(folder.path(), &["make"]);
    let gateway = Gateway::started(folder.path(), &tables(folder.path(), "publish = [\"told/#\"]"));
    let good = token(folder.path(), "ec.key", &claims("writer"), &[]);
    let mut witness = client(&gateway, "witness", &good, &["told/will"]);
    event(&mut witness, "subscribed");
    for (version, wills) in [("5", 2), ("3.1.1", 4)] {
        let arguments = ["--version", version, "--user", "hmi", "--will", "told/will", "plant/#"];
        let brief = token(folder.path(), "rsa.key", &with("exp", json!({"in": 4})), &[]);
        let mut paho = client(&gateway, version, &brief, &arguments);
        let mut plain = plain_reader(&gateway, "plain", &brief);
        event(&mut paho, "subscribed");
        assert_eq!(event(&mut paho, "disconnected")["by_server"], version == "5");
        wait_for_reason(&mut plain, 0xA0);
        wait_for_messages(&mut witness, wills - 1);
        let mut late = client(&gateway, version, &brief, &arguments);
        assert!(event(&mut late, "connected")["reason"].as_u64().unwrap() > 0, "the old token");
        let (is_taken, said) = publish(&gateway, "mqttv5", "writer", &good, "plant/writer/meanwhile");
        assert!(is_taken, "{said}");
        let next = token(folder.path(), "rsa.key", &claims("hmi"), &[]);
        let mut paho = client(&gateway, version, &next, &arguments);
        assert_eq!(event(&mut paho, "connected")["present"], true);
        assert_eq!(event(&mut paho, "message")["topic"], "plant/writer/meanwhile");
        paho.kill();
        // That of the one that was killed.
        wait_for_messages(&mut witness, wills);
    }
}

#[test]
fn who_came_by_a_key_that_is_gone_is_disconnected_at_the_reload() {
    let _turn = turn();
    let folder = folder();
    tokens(folder.path(), &["make"]);
    let gateway = Gateway::started(folder.path(), &tables(folder.path(), ""));
    let mut by_rsa = client(&gateway, "rsa", &token(folder.path(), "rsa.key", &claims("a"), &[]), &["plant/#"]);
    let mut by_ec = plain_reader(&gateway, "ec", &token(folder.path(), "ec.key", &claims("hmi"), &[]));
    event(&mut by_rsa, "subscribed");
    fs::copy(folder.path().join("stranger.pem"), folder.path().join("ec.pem")).unwrap();
    common::process::signal_to(gateway.id(), rustix::process::Signal::HUP);
    wait_for_reason(&mut by_ec, 0x87);
    let (is_taken, said) =
        publish(&gateway, "mqttv5", "a", &token(folder.path(), "stranger.key", &claims("a"), &[]), "plant/a/x");
    assert!(is_taken, "the new key: {said}");
    assert_eq!(event(&mut by_rsa, "message")["topic"], "plant/a/x", "the other stays");
}

#[test]
fn on_a_board_that_does_not_know_the_time_a_token_is_judged_by_what_has_passed_and_again_when_the_time_is_known() {
    let _turn = turn();
    let folder = folder();
    tokens(folder.path(), &["make"]);
    let mark = folder.path().join("mark");
    let mut gateway = Gateway::prepared(folder.path(), &tables(folder.path(), ""));
    gateway.set_clock(&format!("clock = \"auto\"\nclock_mark = \"{}\"", mark.display()));
    gateway.start();
    assert_eq!(gateway.status().unwrap()["clock"]["state"], "unset", "chrony must not run on the machine of the test");
    // 2024-01-01: before any build of this program.
    let long_ago = with("exp", json!(1_704_067_200));
    let mut past = client(&gateway, "past", &token(folder.path(), "ec.key", &long_ago, &[]), &[]);
    assert_eq!(event(&mut past, "connected")["reason"], 0x86);
    let of = |claims: Value| token(folder.path(), "ec.key", &claims, &[]);
    let mut ended = plain_reader(&gateway, "ended", &of(with("exp", json!({"in": -3600}))));
    let mut early = plain_reader(&gateway, "early", &of(with("nbf", json!({"in": 3600}))));
    let mut good = client(&gateway, "good", &token(folder.path(), "ec.key", &claims("hmi"), &[]), &["plant/#"]);
    event(&mut good, "subscribed");
    fs::write(&mark, "").unwrap();
    wait_until(PATIENCE, "the clock is known", || match &gateway.status().unwrap()["clock"]["state"] {
        state if *state == "synced" => Ok(()),
        state => Err(state.to_string()),
    });
    wait_for_reason(&mut ended, 0xA0);
    wait_for_reason(&mut early, 0x87);
    let now = token(folder.path(), "ec.key", &claims("hmi"), &[]);
    let (is_taken, said) = publish(&gateway, "mqttv5", "hmi", &now, "plant/hmi/x");
    assert!(is_taken, "{said}");
    assert_eq!(event(&mut good, "message")["topic"], "plant/hmi/x");
}
