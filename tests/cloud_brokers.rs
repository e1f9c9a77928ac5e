//! Do other brokers get everything at MQTT 3.1.1, where none of them says what it takes?
//!
//! RabbitMQ with its MQTT plugin (Debian's package, as a process of this test's own), and Mosquitto with a second client of
//! the gateway's name. Injected: a broker that is not there yet, one that is stopped in the middle, connections that are
//! taken over. Survivable, because what is not acknowledged stays in the queue.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use common::cloud::Mosquitto;
use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::peers::{Publisher, Subscriber};
use common::process::Process;
use common::raw::{RawClient, Version};
use common::{PATIENCE, port, turn, wait_until};
use rustix::process::Signal;

/// One RabbitMQ with its MQTT plugin. It ends with its owner.
struct Rabbit {
    port: u16,
    broker: Process,
    _names: Process,
}

impl Rabbit {
    fn started(folder: &Path, port: u16) -> Rabbit {
        let (names, nodes) = (port::free().to_string(), port::free().to_string());
        let path = |name: &str| folder.join(name).display().to_string();
        let config = format!(
            "listeners.tcp = none\nmqtt.listeners.tcp.default = 127.0.0.1:{port}\nmqtt.allow_anonymous = false\n\
             log.console = true\nlog.console.level = warning\n"
        );
        fs::write(path("rabbitmq.conf"), config).unwrap();
        fs::write(path("plugins"), "[rabbitmq_mqtt].\n").unwrap();
        let home = folder.display().to_string();
        // Erlang's register of names, which a node would start for itself and leave behind.
        let register = Process::start("epmd", "epmd", &["-port", &names, "-address", "127.0.0.1"]);
        let files = [path("mnesia"), path("log"), path("plugins"), path("rabbitmq.conf")];
        let environment = [
            ("HOME", home.as_str()),
            ("ERL_EPMD_PORT", &names),
            ("RABBITMQ_NODENAME", "tidegate-test@localhost"),
            ("RABBITMQ_DIST_PORT", &nodes),
            ("RABBITMQ_MNESIA_BASE", &files[0]),
            ("RABBITMQ_LOG_BASE", &files[1]),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", &files[2]),
            ("RABBITMQ_CONFIG_FILE", &files[3]),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null"),
            ("RABBITMQ_LOGS", "-"),
            // Becomes the node itself, and needs no terminal.
            ("RUNNING_UNDER_SYSTEMD", "yes"),
        ];
        let program = "/usr/lib/rabbitmq/bin/rabbitmq-server";
        let mut broker = Process::start_with::<&str>("rabbitmq", program, &[], &environment);
        wait_until(PATIENCE, "RabbitMQ speaks MQTT", || {
            assert!(broker.status().is_none(), "RabbitMQ ended: {}", broker.transcript());
            let words = ["-p", &port.to_string(), "-u", "guest", "-P", "guest", "-V", "mqttv311", "-t", "t", "-m", "x"];
            let output = Command::new("mosquitto_pub").args(words).output().unwrap();
            if output.status.success() { Ok(()) } else { Err(broker.transcript()) }
        });
        Rabbit { port, broker, _names: register }
    }
}

fn numbers(listener: &Process) -> Vec<u64> {
    listener.stdout().iter().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

#[test]
fn rabbitmq_gets_everything_after_a_wrong_password_an_outage_and_after_it_stood_still_and_its_commands_are_answered() {
    let _turn = turn();
    let folder = folder();
    let password = folder.path().join("password");
    fs::write(&password, "wrong\n").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let port = port::free();
    let more = format!(
        "protocol = \"3.1.1\"\nusername = \"guest\"\npassword_file = \"{}\"\nkeep_alive = \"4s\"",
        password.display()
    );
    let receive = "[[uplink.cloud.receive]]\nfilter = \"do/#\"\ntopic = \"local/{rest}\"\nqos = 1\n";
    let tables = uplink(&format!("mqtt://127.0.0.1:{port}"), &more) + FORWARD_PLANT + receive;
    let mut gateway = Gateway::started(folder.path(), &tables);
    // Stored before RabbitMQ is there.
    Publisher::started(gateway.port, "before", "plant/press", 200, &["--qos", "1"]).wait_until_done();
    let mut rabbit = Rabbit::started(folder.path(), port);
    let words = ["-p", &rabbit.port.to_string(), "-u", "guest", "-P", "guest", "-V", "mqttv311", "-q", "1"];
    let listener =
        Process::start("mosquitto_sub", "mosquitto_sub", &[&words[..], &["-t", "factory7/plant/#"]].concat());
    gateway.wait_for_status("the wrong password is told", |status| {
        status["uplinks"]["cloud"]["reason"].as_str().filter(|reason| reason.contains("password_file")).map(|_| ())
    });
    fs::write(&password, "guest\n").unwrap();
    // What came before somebody listened is gone at a broker: what comes after is counted whole.
    gateway.wait_until_connected();
    gateway.wait_until_drained();
    wait_until(PATIENCE, "somebody listens", || {
        let probe = [&words[..8], &["-t", "factory7/plant/probe", "-m", "probe"]].concat();
        assert!(Command::new("mosquitto_pub").args(probe).status().unwrap().success());
        if listener.stdout().iter().any(|line| line == "probe") { Ok(()) } else { Err(listener.transcript()) }
    });
    rabbit.broker.signal(Signal::STOP);
    let mut publisher =
        Publisher::started(gateway.port, "during", "plant/press", 300, &["--qos", "1", "--first", "1000"]);
    publisher.wait_until_done();
    gateway.wait_for_status("the gateway notices", |status| {
        (status["uplinks"]["cloud"]["state"] != "connected").then_some(())
    });
    rabbit.broker.signal(Signal::CONT);
    gateway.wait_until_drained();
    wait_until(PATIENCE, "all of them are there", || {
        let mut times = BTreeMap::<u64, usize>::new();
        numbers(&listener).into_iter().for_each(|number| *times.entry(number).or_default() += 1);
        let missing: Vec<u64> = (1000..1300).filter(|number| !times.contains_key(number)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{} are missing", missing.len())) }
    });
    let delivered = gateway.status().unwrap()["uplinks"]["cloud"]["delivered"].as_u64().unwrap();
    assert!(delivered >= 500, "{delivered}");

    let mut local = Subscriber::started(gateway.port, "panel", &["local/#"]);
    let command = [&words[..8], &["-q", "1", "-t", "do/pump", "-m", "on"]].concat();
    assert!(Command::new("mosquitto_pub").args(command).status().unwrap().success());
    local.wait_for_message("local/pump", |message| message.payload == "on");
    Publisher::started(gateway.port, "answer", "plant/done", 1, &["--first", "7000"]).wait_until_done();
    wait_until(PATIENCE, "the answer is there", || {
        if numbers(&listener).contains(&7000) { Ok(()) } else { Err(listener.transcript()) }
    });
    gateway.stop();
    rabbit.broker.signal(Signal::TERM);
    rabbit.broker.wait(PATIENCE);
}

#[test]
fn a_client_id_that_another_uses_at_3_1_1_is_told_after_three_times_and_not_fought_over() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let more = "protocol = \"3.1.1\"\nclient_id = \"both\"\nown_topic = \"\"";
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), more) + FORWARD_PLANT;
    let gateway = Gateway::started(folder.path(), &tables);
    let said = "does another client log in with this client id";
    for times in 1..=3 {
        gateway.wait_until_connected();
        assert!(!gateway.log().iter().any(|line| line.contains(said)), "told after {times} times only");
        drop(RawClient::connected(cloud.port, Version::V311, "both"));
        gateway.wait_for_status("it is thrown out", |status| {
            (status["uplinks"]["cloud"]["state"] != "connected").then_some(())
        });
    }
    wait_until(PATIENCE, "the alarm is raised", || {
        let log = gateway.log().join("\n");
        if log.contains(said) { Ok(()) } else { Err(log) }
    });
    // Its other pauses are a second at most here.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(gateway.status().unwrap()["uplinks"]["cloud"]["state"], "waiting");
}
