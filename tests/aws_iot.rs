//! Does the profile of AWS IoT Core keep the gateway within what AWS takes, whatever waits, and lose nothing?
//!
//! The other side is a stand-in that goes by AWS' documents (`aws_support`), and Debian's Mosquitto with mTLS and the limits
//! that AWS announces. Injected: an outage, quotas below the documented ones, a policy that lacks something. Survivable,
//! because a message stays in the queue until its PUBACK. `TIDEGATE_TORTURE_MINUTES` makes the drain one of 20,000.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod aws_support;
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aws_support::{Aws, Rules};
use common::account::assert_whole_in_order_and_once;
use common::certificates::Certificates;
use common::cloud::{Access, Mosquitto};
use common::gateway::{Gateway, ID, PROGRAM, folder};
use common::peers::{Publisher, Subscriber};
use common::relay::Relay;
use common::{PATIENCE, turn, wait_until};
use serde_json::{Value, json};
use tidegate::message::{Qos, Topic};
use tidegate::mqtt::{Packet, PacketId, Publish};

const TOPIC: &str = "factory7/plant/press";

fn files(certificates: &Certificates) -> String {
    let Certificates { ca, client_cert, client_key, .. } = certificates;
    format!("ca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n", ca.display(), client_cert.display(), client_key.display())
}

fn uplink(port: u16, more: &str) -> String {
    format!(
        "[uplink.cloud]\nprofile = \"aws-iot\"\nurl = \"mqtts://localhost:{port}\"\n\
         reconnect = {{ first = \"200ms\", max = \"2s\" }}\n{more}\n\
         [[uplink.cloud.forward]]\nfilter = \"plant/#\"\ntopic = \"factory7/{{topic}}\"\n\
         [[uplink.cloud.receive]]\nfilter = \"commands/+/set\"\ntopic = \"local/{{1}}\"\nqos = 1\n"
    )
}

#[track_caller]
fn wait_for_numbers(aws: &Aws, count: usize, patience: Duration) {
    wait_until(patience, &format!("{count} messages are at the cloud"), || {
        let seen = aws.seen();
        assert_eq!(seen.violations, Vec::<String>::new());
        drop(seen);
        let there: BTreeSet<u64> = aws.numbers_on(TOPIC).into_iter().collect();
        if there.len() >= count { Ok(()) } else { Err(format!("{} are", there.len())) }
    });
}

#[test]
fn a_drain_never_exceeds_the_profile_and_loses_nothing() {
    let _turn = turn();
    let is_long = std::env::var_os("TIDEGATE_TORTURE_MINUTES").is_some();
    let (count, patience) = if is_long { (20_000, Duration::from_secs(600)) } else { (500, PATIENCE) };
    for protocol in ["5", "3.1.1"] {
        let folder = folder();
        let certificates = Certificates::make(&folder.path().join("cloud"), ID);
        let aws = Aws::started(&certificates, &[], Rules { is_away: true, ..Rules::default() });
        let more = format!("{}protocol = \"{protocol}\"\nwindow = 1000", files(&certificates));
        let mut gateway = Gateway::started(folder.path(), &uplink(aws.port, &more));
        // At QoS 2 locally: AWS has none, and would not even answer.
        let mut publisher = Publisher::started(gateway.port, "plc", "plant/press", count, &["--qos", "2"]);
        publisher.wait_until_done();
        assert_eq!(aws.numbers_on(TOPIC), Vec::<u64>::new());
        aws.rules().is_away = false;
        wait_for_numbers(&aws, usize::try_from(count).unwrap(), patience);
        gateway.wait_until_drained();
        assert_whole_in_order_and_once("stored during the outage", &aws.numbers_on(TOPIC), 0..count);
        {
            let seen = aws.seen();
            assert_eq!(seen.thrown, 0, "{protocol}: faster than the quota");
            assert!(seen.in_flight_max <= 100, "{protocol}: {} in flight", seen.in_flight_max);
            assert_eq!(seen.handshakes.last().unwrap().0.as_deref(), Some("localhost"), "the server's name");
            assert!(seen.got.iter().all(|publish| publish.qos <= Qos::AtLeastOnce));
        }
        gateway.wait_for_status("the lower QoS is counted", |status| {
            (status["uplinks"]["cloud"]["downgraded"] == count).then_some(())
        });
        gateway.stop();
    }
}

#[test]
fn a_quota_below_the_documented_one_slows_the_drain_and_loses_nothing() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), ID);
    let aws = Aws::started(&certificates, &[], Rules { publishes_per_s: 70.0, is_away: true, ..Rules::default() });
    let gateway = Gateway::started(folder.path(), &uplink(aws.port, &files(&certificates)));
    let mut publisher = Publisher::started(gateway.port, "plc", "plant/press", 450, &[]);
    publisher.wait_until_done();
    aws.rules().is_away = false;
    wait_for_numbers(&aws, 450, PATIENCE * 2);
    gateway.wait_until_drained();
    assert!(aws.seen().thrown > 0, "the quota was never reached: the test shows nothing");
    // Thrown away is not a reason to connect anew, and what came twice bears the same id.
    assert_eq!(aws.seen().connects.len(), 1);
    assert_eq!(aws.numbers_on(TOPIC).len(), 450, "what was thrown away came once");
    let throttled = gateway.status().unwrap()["uplinks"]["cloud"]["throttled"].as_u64().unwrap();
    assert!(throttled > 0);
    assert!(gateway.log().iter().any(|line| line.contains("takes less than it is sent")));
}

fn policy(config: &Path) -> Value {
    let output = Command::new(PROGRAM).args(["check", "--aws-policy", "--config"]).arg(config).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("account"), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_policy_that_check_prints_lets_the_gateway_do_everything_and_without_the_own_topic_it_turns_that_off() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), ID);
    let aws = Aws::started(&certificates, &[], Rules::default());
    let mut gateway = Gateway::prepared(folder.path(), &uplink(aws.port, &files(&certificates)));
    gateway.start();
    let policy = policy(&gateway.config_path());
    let resources = |action: &str| -> BTreeSet<String> {
        let statements = policy["Statement"].as_array().unwrap();
        let ours = statements.iter().filter(|statement| statement["Action"] == action);
        ours.flat_map(|one| one["Resource"].as_array().unwrap().clone())
            .map(|arn| arn.as_str().unwrap().rsplit_once("ACCOUNT:").unwrap().1.to_owned())
            .collect()
    };
    assert_eq!(resources("iot:Connect"), [format!("client/{ID}")].into());
    let topics = ["topic/factory7/plant", "topic/factory7/plant/*"].map(str::to_owned);
    let own = [format!("topic/tidegate/{ID}/gap"), format!("topic/tidegate/{ID}/status")];
    assert_eq!(resources("iot:Publish"), topics.iter().chain(&own).cloned().collect());
    assert_eq!(resources("iot:RetainPublish"), topics.iter().chain(&own[1..]).cloned().collect());
    assert_eq!(resources("iot:Subscribe"), ["topicfilter/commands/+/set".to_owned()].into());
    assert_eq!(resources("iot:Receive"), ["topic/commands/*/set".to_owned()].into());

    gateway.stop();
    aws.expect_another_process();
    let before = aws.seen().connects.len();
    aws.rules().policy = Some(policy.clone());
    gateway.start();
    gateway.wait_until_connected();
    Publisher::started(gateway.port, "plc", "plant/press", 20, &[]).wait_until_done();
    Publisher::started(gateway.port, "plc-2", "plant/door", 1, &["--retain"]).wait_until_done();
    let mut local = Subscriber::started(gateway.port, "panel", &["local/#"]);
    aws.say(command(7, "commands/press/set", "42"));
    local.wait_for_message("local/press", |_| true);
    wait_for_numbers(&aws, 20, PATIENCE);
    gateway.wait_until_drained();
    wait_until(PATIENCE, "the retained message and the status are there", || {
        let seen = aws.seen();
        let retained: BTreeSet<&str> =
            seen.got.iter().filter(|one| one.retain).filter_map(|one| Some(one.topic.as_ref()?.as_str())).collect();
        let wanted = ["factory7/plant/door".to_owned(), format!("tidegate/{ID}/status")];
        if wanted.iter().all(|topic| retained.contains(topic.as_str())) { Ok(()) } else { Err(format!("{retained:?}")) }
    });
    assert_eq!(aws.seen().connects.len(), before + 1, "nothing was missing in the policy");
    gateway.stop();

    // Without its own topic: the will, then the status, cost connections; then both are off, and the data flows.
    let mut without = policy;
    for statement in without["Statement"].as_array_mut().unwrap() {
        let resources = statement["Resource"].as_array_mut().unwrap();
        resources.retain(|arn| !arn.as_str().unwrap().contains("tidegate/"));
    }
    aws.rules().policy = Some(without);
    aws.expect_another_process();
    let before = aws.seen().connects.len();
    gateway.start();
    Publisher::started(gateway.port, "plc-3", "plant/own", 20, &[]).wait_until_done();
    gateway.wait_until_drained();
    let arrived = aws.numbers_on("factory7/plant/own");
    // At QoS 1 what was under way when a connection was ended goes again, each at its place.
    let mut firsts: Vec<u64> = Vec::new();
    for number in arrived.iter().filter(|number| **number < 20) {
        if !firsts.contains(number) {
            firsts.push(*number);
        }
    }
    assert_eq!(firsts, (0..20).collect::<Vec<u64>>(), "without the own topic: {arrived:?}");
    let connects = aws.seen().connects.len() - before;
    assert!((2..=12).contains(&connects), "{connects} connections");
    wait_until(PATIENCE, "the alarm is raised", || {
        let log = gateway.log();
        let is_there = log.iter().any(|line| line.contains("does not allow the own topic"));
        if is_there { Ok(()) } else { Err(log.join("\n")) }
    });
    gateway.wait_until_connected();
    assert_eq!(aws.seen().violations, Vec::<String>::new());
}

fn command(id: u16, topic: &str, payload: &str) -> Packet {
    Packet::Publish(Publish {
        dup: false,
        retain: false,
        qos: Qos::AtLeastOnce,
        packet_id: PacketId::new(id),
        topic: Some(Topic::new(topic).unwrap()),
        payload: payload.to_owned().into(),
        properties: tidegate::message::Properties::default(),
        topic_alias: None,
        subscription_id: None,
    })
}

#[test]
fn a_custom_authoriser_is_asked_for_in_the_user_name_with_the_token_of_the_moment() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), ID);
    let aws = Aws::started(&certificates, &["mqtt"], Rules::default());
    let (token, signature) = (folder.path().join("token"), folder.path().join("signature"));
    for (path, text) in [(&token, "first token\n"), (&signature, "c2ln/+==\n")] {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let more = format!(
        "ca = \"{}\"\nalpn = \"mqtt\"\nusername = \"hall\"\nauthorizer = {{ name = \"gate\", token_key = \"t\", token_file = \
         \"{}\", signature_file = \"{}\" }}",
        certificates.ca.display(),
        token.display(),
        signature.display()
    );
    let mut gateway = Gateway::started(folder.path(), &uplink(aws.port, &more));
    gateway.wait_until_connected();
    let expected = |token: &str| {
        format!("hall?x-amz-customauthorizer-name=gate&x-amz-customauthorizer-signature=c2ln%2F%2B%3D%3D&t={token}")
    };
    assert_eq!(aws.seen().usernames, [expected("first%20token")]);
    assert_eq!(aws.seen().handshakes[0].1.as_deref(), Some("mqtt"), "the protocol name of the handshake");
    fs::write(&token, "second\n").unwrap();
    aws.rules().is_away = true;
    gateway.wait_for_status("the cloud is away", |status| {
        (status["uplinks"]["cloud"]["state"] != "connected").then_some(())
    });
    aws.rules().is_away = false;
    gateway.wait_until_connected();
    assert_eq!(aws.seen().usernames.last(), Some(&expected("second")));
    gateway.stop();
}

#[test]
fn mosquitto_with_mtls_and_the_limits_that_aws_announces_is_drained_whole() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), ID);
    let more = files(&certificates);
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: true });
    for line in ["max_inflight_messages 100", "max_packet_size 149504", "max_keepalive 1200"] {
        cloud.configure(line);
    }
    for line in ["max_qos 1", "max_topic_alias 8"] {
        cloud.configure_tls(line);
    }
    cloud.start();
    // Somebody listens before the first message can come.
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let line = Relay::started("127.0.0.1", cloud.tls_port.unwrap());
    line.cut();
    let mut gateway = Gateway::started(folder.path(), &uplink(line.port, &more));
    let mut publisher = Publisher::started(gateway.port, "plc", "plant/press", 300, &["--qos", "2"]);
    publisher.wait_until_done();
    line.restore();
    application.wait_for_count(TOPIC, 300);
    assert_whole_in_order_and_once("stored before Mosquitto could be reached", &application.numbers_on(TOPIC), 0..300);
    gateway.wait_for_status("QoS 2 went at QoS 1", |status| {
        (status["uplinks"]["cloud"]["downgraded"] == json!(300)).then_some(())
    });
    gateway.stop();
}
