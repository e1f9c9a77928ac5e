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

use aws_support::{Aws, Rules, Turn};
use common::account::{assert_none_lost, assert_whole_in_order_and_once, firsts};
use common::certificates::Certificates;
use common::cloud::{Access, Mosquitto};
use common::gateway::{Gateway, ID, PROGRAM, folder};
use common::peers::{Publisher, Subscriber, mosquitto_sub};
use common::raw::{Heard, RawClient, Version};
use common::relay::Relay;
use common::{PATIENCE, turn, wait_until};
use serde_json::{Value, json};
use tidegate::message::{Qos, Topic};
use tidegate::mqtt::{Packet, PacketId, Publish, ReasonCode};

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
    assert_eq!(firsts(&arrived), (0..20).collect::<Vec<u64>>(), "without the own topic: {arrived:?}");
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

/// A local client that publishes numbers, each acknowledged.
struct Plc(RawClient, u16);

impl Plc {
    fn new(gateway: &Gateway) -> Plc {
        Plc(RawClient::connected(gateway.port, Version::V311, "plc"), 0)
    }

    #[track_caller]
    fn publish(&mut self, topic: &str, payload: &[u8]) {
        self.1 += 1;
        self.0.publish(topic.as_bytes(), 1, self.1, payload);
        let heard = self.0.hear(PATIENCE);
        assert!(matches!(heard, Heard::Packet(0x40, _)), "{heard:?}");
    }

    #[track_caller]
    fn count(&mut self, numbers: std::ops::Range<u64>) {
        numbers.for_each(|number| self.publish("plant/press", number.to_string().as_bytes()));
    }
}

#[test]
fn each_refusal_costs_time_and_no_message_and_what_aws_never_takes_is_not_sent() {
    let _turn = turn();
    // What AWS says by its documents; at 3.1.1 it can only close, or refuse CONNECT.
    let quota = ReasonCode::QUOTA_EXCEEDED;
    let (stops, by_hand) = (ReasonCode::SERVER_SHUTTING_DOWN, ReasonCode::ADMINISTRATIVE_ACTION);
    let rounds: [(&str, Vec<Vec<Turn>>); 2] = [
        (
            "5",
            vec![
                vec![Turn::Puback(quota)],
                vec![Turn::Puback(ReasonCode::UNSPECIFIED_ERROR)],
                vec![Turn::Ends(quota), Turn::Connack(quota)],
                vec![Turn::Ends(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED), Turn::Connack(ReasonCode::NOT_AUTHORIZED)],
                vec![Turn::Ends(stops), Turn::Ends(by_hand)],
            ],
        ),
        (
            "3.1.1",
            vec![
                vec![Turn::Ends(quota), Turn::Connack(ReasonCode::NOT_AUTHORIZED)],
                vec![Turn::Connack(ReasonCode::BAD_USER_NAME_OR_PASSWORD)],
            ],
        ),
    ];
    for (protocol, rounds) in rounds {
        let folder = folder();
        let certificates = Certificates::make(&folder.path().join("cloud"), ID);
        let aws = Aws::started(&certificates, &[], Rules::default());
        let more = format!("{}protocol = \"{protocol}\"", files(&certificates));
        let tables = uplink(aws.port, &more).replace("max = \"2s\"", "max = \"200ms\"");
        let mut gateway = Gateway::started(folder.path(), &tables);
        // Its status is taken before anything is refused.
        wait_until(PATIENCE, "it has said that it is there", || {
            let status = format!("tidegate/{ID}/status");
            let seen = aws.seen();
            let is_there = seen.got.iter().any(|one| one.topic.as_ref().is_some_and(|topic| topic.as_str() == status));
            if is_there { Ok(()) } else { Err("it has not".to_owned()) }
        });
        let mut plc = Plc::new(&gateway);
        // Longer and deeper than it takes, which it would answer by closing the connection; one beside them is taken.
        plc.publish("plant/picture", &[b'x'; 129 * 1024]);
        plc.publish("plant/1/2/3/4/5/6/7", b"deep");
        let mut sent = 0;
        for turns in rounds {
            if let Some(Turn::Connack(_)) = turns.first() {
                aws.seen().turns.push_back(Turn::Ends(ReasonCode::SUCCESS));
            }
            aws.seen().turns.extend(&turns);
            plc.count(sent..sent + 10);
            sent += 10;
            wait_for_numbers(&aws, usize::try_from(sent).unwrap(), PATIENCE);
            wait_until(PATIENCE, "it was refused", || {
                let left = aws.seen().turns.clone();
                // The second of two that end a connection needs a message of its own.
                if left.is_empty() { Ok(()) } else { Err(format!("{turns:?}: {left:?}")) }
            });
        }
        gateway.wait_until_drained();
        // One that is refused for now lets others pass.
        assert_none_lost(protocol, &aws.numbers_on(TOPIC), &(0..sent).collect::<Vec<u64>>());
        // At 3.1.1 a connection that is closed while its status is under way may be closed because of it.
        let log = gateway.log().join("\n");
        let is_off = log.contains("does not allow the own topic");
        assert!(protocol == "3.1.1" || !is_off, "no message of its own was refused: {log}");
        gateway.wait_for_status("what AWS never takes is a dead letter", |status| {
            (status["losses"]["rejected"] == json!(2)).then_some(())
        });
        assert_eq!(aws.seen().violations, Vec::<String>::new(), "{protocol}");

        if protocol == "5" {
            // Another client with this id: half a minute at least, and an alarm. What comes meanwhile waits.
            aws.seen().turns.push_back(Turn::Ends(ReasonCode::SESSION_TAKEN_OVER));
            plc.count(sent..sent + 10);
            gateway.wait_for_status("it is thrown out and says why", |status| {
                let cloud = &status["uplinks"]["cloud"];
                let is_told = cloud["reason"].as_str()?.contains("another connection uses the same client id");
                (is_told && cloud["state"] == "waiting").then_some(())
            });
            let log = gateway.log().join("\n");
            assert!(log.contains("Another client logs in with this client id") && log.contains("pause_s=30"), "{log}");
            gateway.stop();
            aws.expect_another_process();
            gateway.start();
            wait_for_numbers(&aws, usize::try_from(sent + 10).unwrap(), PATIENCE);
        }
        gateway.stop();
    }
}

/// Debian's Mosquitto with mTLS and what AWS announces.
fn mosquitto(folder: &Path, certificates: &Certificates) -> Mosquitto {
    let access = Access::Tls { certificates: certificates.clone(), asks_for_client: true };
    let mut cloud = Mosquitto::prepared(folder, access);
    for line in ["max_inflight_messages 100", "max_packet_size 149504", "max_keepalive 1200"] {
        cloud.configure(line);
    }
    for line in ["max_qos 1", "max_topic_alias 8"] {
        cloud.configure_tls(line);
    }
    cloud
}

#[track_caller]
fn say(port: u16, words: &[&str]) {
    let output = Command::new("mosquitto_pub").args(["-q", "1", "-p", &port.to_string()]).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

#[test]
fn commands_and_their_answers_pass_also_when_an_outage_lies_between_them() {
    let _turn = turn();
    for protocol in ["5", "3.1.1"] {
        let folder = folder();
        let certificates = Certificates::make(&folder.path().join("cloud"), ID);
        let mut cloud = mosquitto(folder.path(), &certificates);
        cloud.start();
        let mut application = Subscriber::started(cloud.port, "application", &["factory7/#", "answers/#"]);
        let more = format!("{}protocol = \"{protocol}\"", files(&certificates));
        let tables = uplink(cloud.tls_port.unwrap(), &more) + "answers = [\"answers/#\"]\n";
        let mut gateway = Gateway::started(folder.path(), &tables);
        gateway.wait_until_connected();
        let local_port = gateway.port.to_string();
        let panel = mosquitto_sub(gateway.port, &["-p", &local_port, "-V", "5", "-F", "%t %R %p", "-t", "local/#"]);
        let shown = |value: &str| {
            wait_until(PATIENCE, "the command is here", || {
                let line = panel.stdout().into_iter().find(|line| line.ends_with(value));
                line.ok_or_else(|| gateway.log().join("\n"))
            })
        };
        // By version 5 it says where it wants its answer, at 3.1.1 both sides know.
        let (asks, answers_at, arrives_at): (&[&str], _, _) = match protocol {
            "5" => {
                (&["-V", "5", "-D", "publish", "response-topic", "answers/7"], "answer/cloud/answers/7", "answers/7")
            }
            _ => (&[], "plant/answers/7", "factory7/plant/answers/7"),
        };
        let ask = |value: &str| say(cloud.port, &[&["-t", "commands/press/set", "-m", value], asks].concat());
        ask("41");
        let line = shown("41");
        let expected = if protocol == "5" { "local/press answer/cloud/answers/7 41" } else { "local/press  41" };
        assert_eq!(line, expected);

        cloud.stop();
        gateway.wait_for_status("the outage is noticed", |status| {
            (status["uplinks"]["cloud"]["state"] != "connected").then_some(())
        });
        say(gateway.port, &["-t", answers_at, "-m", "1 done 41"]);
        let mut plc = Plc::new(&gateway);
        plc.count(0..50);
        cloud.start();
        application.wait_for_count(TOPIC, 50);
        application.wait_for_count(arrives_at, 1);
        assert_whole_in_order_and_once("published during the outage", &application.numbers_on(TOPIC), 0..50);

        let ask = |value: &str| say(cloud.port, &[&["-t", "commands/press/set", "-m", value], asks].concat());
        ask("42");
        shown("42");
        say(gateway.port, &["-t", answers_at, "-m", "2 done 42"]);
        application.wait_for_count(arrives_at, 2);
        assert_eq!(application.numbers_on(arrives_at), [1, 2], "each answer once");
        assert_eq!(panel.stdout().iter().filter(|line| line.starts_with("local/")).count(), 2, "each command once");
        gateway.stop();
    }
}

#[test]
fn a_certificate_that_ends_under_load_is_told_and_the_renewed_one_needs_no_restart_and_nothing_is_lost() {
    let _turn = turn();
    let folder = folder();
    let first = Certificates::make(&folder.path().join("cloud"), ID);
    let ended = |client: &mut rcgen::CertificateParams| client.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let past = Certificates::make_with(&folder.path().join("past"), "past", |_| {}, ended);
    let renewed = Certificates::make(&folder.path().join("renewed"), "renewed");
    // One file for the authorities of all three.
    let authorities = [&first, &past, &renewed].map(|one| fs::read_to_string(&one.ca).unwrap()).concat();
    fs::write(&first.ca, authorities).unwrap();
    let mut cloud = mosquitto(folder.path(), &first);
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let mut gateway = Gateway::started(folder.path(), &uplink(cloud.tls_port.unwrap(), &files(&first)));
    gateway.wait_until_connected();
    let process = gateway.id();
    let put = |other: &Certificates| {
        fs::copy(&other.client_cert, &first.client_cert).unwrap();
        fs::copy(&other.client_key, &first.client_key).unwrap();
    };
    let mut plc = Plc::new(&gateway);
    plc.count(0..50);
    // Its time is over when the next connection is made.
    put(&past);
    cloud.stop();
    plc.count(50..100);
    cloud.start();
    plc.count(100..150);
    gateway.wait_for_status("the certificate is at fault", |status| {
        status["uplinks"]["cloud"]["reason"].as_str().filter(|reason| reason.contains("it has expired")).map(|_| ())
    });
    put(&renewed);
    plc.count(150..200);
    gateway.wait_until_drained();
    application.wait_for_message(TOPIC, |message| message.number() == 199);
    assert_eq!(firsts(&application.numbers_on(TOPIC)), (0..200).collect::<Vec<u64>>());
    assert!(cloud.log().contains("u'renewed'"), "Mosquitto sees the renewed certificate: {}", cloud.log());
    assert_eq!(gateway.id(), process);
    gateway.stop();
}

#[test]
fn mosquitto_with_mtls_and_the_limits_that_aws_announces_is_drained_whole() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), ID);
    let more = files(&certificates);
    let mut cloud = mosquitto(folder.path(), &certificates);
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
