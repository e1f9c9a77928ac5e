//! Do commands come from the cloud once, and do answers find back to whoever asked?
//!
//! The cloud is Debian's Mosquitto, whoever asks there is `mosquitto_rr`, `mosquitto_pub` or paho. Injected: kills of the
//! gateway, and a line on which acknowledgements are lost. Survivable, because a command is stored before it is
//! acknowledged, and with what it is known by when the cloud repeats it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;
mod writes_support;

use std::collections::BTreeMap;
use std::process::Command;

use common::cloud::Mosquitto;
use common::gateway::{Gateway, folder, uplink};
use common::peers::{Subscriber, mosquitto_sub};
use common::process::Process;
use common::relay::Relay;
use common::{PATIENCE, turn, wait_until};
use serde_json::{Value, json};
use writes_support::{Device, Manner};

/// Commands for points, answered where they ask, or by the rule at `done/…`.
const RECEIVE: &str = "[[uplink.cloud.receive]]\nfilter = \"do/#\"\ntopic = \"field/{rest}/set\"\nqos = 1\n\
                       answer = \"done/{rest}\"\nanswers = [\"answers/+/x\"]\n";
/// Only the answers go up: no reading disturbs the counting.
const FORWARD: &str = "[[uplink.cloud.forward]]\nfilter = \"nothing\"\n";

fn device(device: &Device) -> String {
    format!(
        "[modbus.d]\nline = \"{}\"\nunit_id = 1\npoll = \"1s\"\ntimeout = \"300ms\"\n[modbus.d.point]\n\
         level = {{ address = \"holding:1\", type = \"u16\", write = {{ min = 0, max = 1000, per_minute = 1000 }} }}\n",
        device.url()
    )
}

fn tables(port: u16, more: &str, counterpart: &Device) -> String {
    uplink(&format!("mqtt://127.0.0.1:{port}"), more) + FORWARD + RECEIVE + &device(counterpart)
}

#[track_caller]
fn mosquitto(program: &str, port: u16, arguments: &[&str]) -> String {
    let output = Command::new(program).args(["-p", &port.to_string()]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Asks for a write at the cloud as a program does that knows nothing of the gateway.
#[track_caller]
fn ask(port: u16, value: u16, id: &str) {
    let body = json!({"value": value, "id": id}).to_string();
    mosquitto("mosquitto_pub", port, &["-q", "1", "-t", "do/d/level", "-m", &body]);
}

fn written(device: &Device) -> Vec<u16> {
    device.writes().iter().map(|pdu| u16::from_be_bytes([pdu[3], pdu[4]])).collect()
}

#[test]
fn whoever_asks_at_the_cloud_is_answered_where_it_wants_and_else_where_the_rule_says() {
    let _turn = turn();
    for protocol in ["5", "3.1.1"] {
        let folder = folder();
        let counterpart = Device::started(Manner::Good);
        let cloud = Mosquitto::started(folder.path());
        let mut application = Subscriber::started(cloud.port, "application", &["done/#", "answers/#", "elsewhere/#"]);
        let mut gateway =
            Gateway::started(folder.path(), &tables(cloud.port, &format!("protocol = \"{protocol}\""), &counterpart));
        gateway.wait_until_connected();
        ask(cloud.port, 5, "first");
        let answer = application.wait_for_message("done/d/level", |_| true).json();
        assert_eq!((&answer["ok"], &answer["value"], &answer["id"]), (&json!(true), &json!(5), &json!("first")));
        if protocol == "5" {
            let request = ["-V", "5", "-q", "1", "-t", "do/d/level", "-m", "7", "-W", "60", "-e", "answers/7/x"];
            let data = ["-D", "publish", "correlation-data", "c7", "-F", "%D %p"];
            let said = mosquitto("mosquitto_rr", cloud.port, &[&request[..], &data].concat());
            let answer: Value = serde_json::from_str(said.trim().strip_prefix("c7 ").expect(&said)).unwrap();
            assert_eq!((&answer["ok"], &answer["value"]), (&json!(true), &json!(7)));
            // Where no rule allows it nothing goes, and no command is refused for that.
            let request = ["-V", "5", "-q", "1", "-t", "do/d/level", "-m", "8"];
            for asked in ["elsewhere/x", "do/d/level", "$SYS/x"] {
                let data = ["-D", "publish", "response-topic", asked];
                mosquitto("mosquitto_pub", cloud.port, &[&request[..], &data].concat());
            }
            wait_until(PATIENCE, "the device was written", || {
                let written = written(&counterpart);
                if written == [5, 7, 8, 8, 8] { Ok(()) } else { Err(format!("{written:?}")) }
            });
            gateway.wait_for_status("all is answered", |status| {
                (status["uplinks"]["cloud"]["waiting"] == 0).then_some(())
            });
            let said = gateway.log().join("\n");
            assert!(said.contains("asks for an answer where none may go"), "{said}");
        }
        // The last word, so that nothing else is on its way.
        ask(cloud.port, 9, "last");
        application.wait_for_message("done/d/level", |message| message.json()["id"] == "last");
        let topics: Vec<&str> = application.received().iter().map(|message| message.topic.as_str()).collect();
        let expected: &[&str] =
            if protocol == "5" { &["done/d/level", "answers/7/x", "done/d/level"] } else { &["done/d/level"; 2] };
        assert_eq!(topics, expected);
        gateway.stop();
    }
}

#[test]
fn a_local_client_answers_a_command_at_the_topic_that_it_is_shown() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let rules = "[[uplink.cloud.receive]]\nfilter = \"do/#\"\ntopic = \"plant/{rest}\"\nanswers = [\"answers/#\"]\n";
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD + rules;
    let gateway = Gateway::started(folder.path(), &tables);
    gateway.wait_until_connected();
    let local_port = gateway.port.to_string();
    let local = mosquitto_sub(gateway.port, &["-p", &local_port, "-V", "5", "-F", "%t %R %D %p", "-t", "plant/#"]);
    let words = ["-p", &cloud.port.to_string(), "-V", "5", "-q", "1", "-t", "do/pump", "-m", "on", "-W", "60"];
    let data = ["-e", "answers/77", "-D", "publish", "correlation-data", "c1", "-F", "%D %p"];
    let mut asker = Process::start("mosquitto_rr", "mosquitto_rr", &[&words[..], &data].concat());
    let line = wait_until(PATIENCE, "the command is here", || {
        local.stdout().into_iter().find(|line| line.starts_with("plant/pump")).ok_or_else(|| asker.transcript())
    });
    assert_eq!(line, "plant/pump answer/cloud/answers/77 c1 on");
    let answer = [
        "-V",
        "5",
        "-q",
        "0",
        "-t",
        "answer/cloud/answers/77",
        "-m",
        "done",
        "-D",
        "publish",
        "correlation-data",
        "c1",
    ];
    mosquitto("mosquitto_pub", gateway.port, &answer);
    assert!(asker.wait(PATIENCE).success());
    assert_eq!(asker.stdout(), ["c1 done"]);
}

#[test]
fn a_command_whose_acknowledgement_was_lost_comes_again_and_is_not_carried_out_again_also_after_a_kill() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::started(Manner::Good);
    let cloud = Mosquitto::started(folder.path());
    let line = Relay::started("127.0.0.1", cloud.port);
    let mut application = Subscriber::started(cloud.port, "application", &["done/#"]);
    let mut gateway = Gateway::started(folder.path(), &tables(line.port, "", &counterpart));
    gateway.wait_until_connected();
    ask(cloud.port, 1, "warm");
    application.wait_for_message("done/d/level", |message| message.json()["id"] == "warm");
    for (round, is_killed) in [(2, false), (3, true)] {
        line.mute();
        ask(cloud.port, round, "again");
        wait_until(PATIENCE, "the command is carried out", || {
            let written = written(&counterpart);
            if written.last() == Some(&round) { Ok(()) } else { Err(format!("{written:?}")) }
        });
        let before = cloud.log().matches("hall-3").count();
        if is_killed {
            gateway.kill();
            line.restore();
            gateway.start();
        } else {
            // Mosquitto hears nothing more of the gateway, and sends to whoever comes under its name.
            line.restore();
            gateway.stop();
            gateway.start();
        }
        gateway.wait_until_connected();
        assert!(cloud.log().matches("hall-3").count() > before, "a new connection");
        application.wait_for_message("done/d/level", |message| message.json()["value"] == round);
    }
    // The same words once more, as a new command: that one counts.
    ask(cloud.port, 3, "again");
    wait_until(PATIENCE, "the new command is carried out", || {
        let written = written(&counterpart);
        if written == [1, 2, 3, 3] { Ok(()) } else { Err(format!("{written:?}")) }
    });
    gateway.wait_until_drained();
    wait_until(PATIENCE, "each command has its one answer", || {
        let values: Vec<Value> =
            application.received_on("done/d/level").iter().map(|message| message.json()["value"].clone()).collect();
        if values == [json!(1), json!(2), json!(3), json!(3)] { Ok(()) } else { Err(format!("{values:?}")) }
    });
}

#[test]
fn over_kills_every_command_is_answered_and_none_is_carried_out_twice() {
    let _turn = turn();
    let folder = folder();
    let counterpart = Device::started(Manner::Good);
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["done/#"]);
    let mut gateway = Gateway::started(folder.path(), &tables(cloud.port, "", &counterpart));
    gateway.wait_until_connected();
    const COUNT: u16 = 60;
    for value in 1..=COUNT {
        ask(cloud.port, value, &value.to_string());
        if value % 12 == 0 {
            gateway.kill();
            gateway.start();
        }
    }
    let mut answers = BTreeMap::<u64, Value>::new();
    wait_until(PATIENCE, "every command is answered", || {
        for message in application.received_on("done/d/level") {
            let answer = message.json();
            answers.entry(answer["id"].as_str().unwrap().parse().unwrap()).or_insert(answer);
        }
        if answers.len() == usize::from(COUNT) { Ok(()) } else { Err(format!("{} are", answers.len())) }
    });
    let written = written(&counterpart);
    for value in 1..=COUNT {
        let times = written.iter().filter(|other| **other == value).count();
        let answer = &answers[&u64::from(value)];
        match answer["reason"].as_str() {
            None => assert_eq!((times, &answer["ok"]), (1, &json!(true)), "{value}: {answer}"),
            Some("unknown") => assert!(times <= 1, "{value} was written {times} times"),
            Some(other) => panic!("{value}: {other}: {answer}"),
        }
    }
    let unknown = answers.values().filter(|answer| answer["reason"] == "unknown").count();
    assert!(unknown <= usize::from(COUNT / 12), "one at most for each kill: {unknown}");
}

#[test]
fn a_message_that_goes_in_a_circle_over_two_clouds_is_stopped_and_told() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    // Both uplinks lead to one broker, as two that are bridged: what comes by one goes up by the other, and round.
    let url = format!("url = \"mqtt://127.0.0.1:{}\"\n", cloud.port);
    let one = |name: &str, from: &str, to: &str| {
        format!(
            "[uplink.{name}]\n{url}client_id = \"{name}\"\nown_topic = \"\"\n\
             [[uplink.{name}.forward]]\nfilter = \"around/#\"\ntopic = \"{to}/{{rest}}\"\n\
             [[uplink.{name}.receive]]\nfilter = \"{from}/#\"\ntopic = \"around/{{rest}}\"\n"
        )
    };
    let gateway = Gateway::started(folder.path(), &(one("east", "a", "b") + &one("west", "b", "a")));
    for name in ["east", "west"] {
        gateway.wait_for_status("it is connected", |status| {
            (status["uplinks"][name]["state"] == "connected").then_some(())
        });
    }
    let mut witness = Subscriber::started(cloud.port, "witness", &["a/#", "b/#"]);
    mosquitto("mosquitto_pub", cloud.port, &["-q", "1", "-t", "a/x", "-m", "1 first"]);
    gateway.wait_for_status("what came back is counted", |status| {
        (status["uplinks"]["east"]["loops"] == 1 || status["uplinks"]["west"]["loops"] == 1).then_some(())
    });
    mosquitto("mosquitto_pub", cloud.port, &["-q", "1", "-t", "a/x", "-m", "2 second"]);
    gateway.wait_for_status("that too", |status| {
        let loops = |name: &str| status["uplinks"][name]["loops"].as_u64().unwrap();
        (loops("east") + loops("west") == 2).then_some(())
    });
    assert!(witness.received().len() <= 4, "{:?}", witness.received());
    assert!(gateway.log().iter().any(|line| line.contains("Messages go in a circle")));
}
