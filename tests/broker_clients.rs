//! Do the clients that people have work with the broker? `mosquitto_pub` and `mosquitto_sub`, both versions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod broker_support;

use std::process::Stdio;

use broker_support::*;
use tidegate::message::Topic;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const PROTOCOLS: [&str; 2] = ["mqttv311", "mqttv5"];

struct Reader {
    child: Child,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Reader {
    fn start(gateway: &Gateway, arguments: &[&str]) -> Reader {
        let mut child = command("mosquitto_sub", gateway, arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("mosquitto_sub of Debian's mosquitto-clients is needed");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Reader { child, lines }
    }

    async fn line(&mut self) -> String {
        timeout(PATIENCE, self.lines.next_line()).await.expect("nothing came").unwrap().expect("it has ended")
    }

    async fn end(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn command(program: &str, gateway: &Gateway, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &gateway.address.port().to_string()]).args(arguments).kill_on_drop(true);
    command
}

async fn publish_by_mosquitto(gateway: &Gateway, arguments: &[&str]) {
    let mut child = command("mosquitto_pub", gateway, arguments).spawn().expect("mosquitto_pub is needed");
    let status = timeout(PATIENCE, child.wait()).await.expect("mosquitto_pub hangs").unwrap();
    assert!(status.success(), "{arguments:?}: {status}");
}

async fn subscribed(gateway: &Gateway, topic: &str) {
    let topic = Topic::new(topic).unwrap();
    until("mosquitto_sub has not subscribed", || gateway.router.is_wanted(&topic)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_clients_exchange_messages_at_every_qos_and_in_both_versions() {
    let gateway = Gateway::start_with(Options { forward: vec![rule("#", None)], ..Options::default() }).await;
    for reading in PROTOCOLS {
        for qos in ["0", "1", "2"] {
            let mut reader = Reader::start(&gateway, &["-V", reading, "-q", qos, "-t", "plant/#", "-F", "%q %t %p"]);
            subscribed(&gateway, "plant/x").await;
            for writing in PROTOCOLS {
                let arguments = ["-V", writing, "-q", qos, "-t", "plant/温度", "-m", "21.5"];
                publish_by_mosquitto(&gateway, &arguments).await;
                assert_eq!(reader.line().await, format!("{qos} plant/温度 21.5"));
            }
            reader.end().await;
            until("the session stays", || gateway.session_counter("sessions") == 0).await;
        }
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paho_gets_and_sets_topic_aliases() {
    let gateway = Gateway::start().await;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), std::path::PathBuf::from);
    let paho = |arguments: &[&str]| {
        let mut command = Command::new(target.join("venv/bin/python"));
        command.arg("-B").arg(root.join("tests/peers/told.py")).args(arguments);
        command.args(["--port", &gateway.address.port().to_string()]).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("./test.sh makes the Python environment");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Reader { child, lines }
    };
    let mut reader = paho(&["--client-id", "reader", "--alias-maximum", "3", "plant/#"]);
    subscribed(&gateway, "plant/x").await;
    let writer = paho(&["--client-id", "writer", "--publish", "plant/press/1"]);
    let mut messages = Vec::new();
    while messages.len() < 2 {
        let line: serde_json::Value = serde_json::from_str(&reader.line().await).unwrap();
        if line["event"] == "message" {
            messages.push((line["topic"].clone(), line["alias"].clone(), line["payload"].clone()));
        }
    }
    // paho shows what was on the wire: it leaves it to the application to look the number up.
    assert_eq!(messages[0], ("plant/press/1".into(), 1.into(), "by 'plant/press/1'".into()));
    assert_eq!(messages[1], ("".into(), 1.into(), "by ''".into()));
    writer.end().await;
    reader.end().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_lines_piped_through_mosquitto_pub_arrive_in_order() {
    let gateway = Gateway::start_with(Options { forward: vec![rule("#", None)], ..Options::default() }).await;
    for protocol in PROTOCOLS {
        let mut reader = Reader::start(&gateway, &["-V", protocol, "-q", "2", "-t", "lines"]);
        subscribed(&gateway, "lines").await;
        let text: String = (0..1000).map(|number| format!("{number}\n")).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut writer = command("mosquitto_pub", &gateway, &["-V", protocol, "-q", "2", "-t", "lines", "-l"])
            .stdin(std::fs::File::open(file.path()).unwrap())
            .spawn()
            .unwrap();
        for number in 0..1000 {
            assert_eq!(reader.line().await, number.to_string());
        }
        assert!(timeout(PATIENCE, writer.wait()).await.unwrap().unwrap().success());
        reader.end().await;
        until("the session stays", || gateway.session_counter("sessions") == 0).await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_clients_get_retained_messages_wills_and_properties() {
    let gateway = Gateway::start().await;
    for protocol in PROTOCOLS {
        publish_by_mosquitto(&gateway, &["-V", protocol, "-q", "1", "-r", "-t", "state", "-m", "on"]).await;
        let mut reader = Reader::start(&gateway, &["-V", protocol, "-q", "1", "-t", "#", "-F", "%r %t %p"]);
        assert_eq!(reader.line().await, "1 state on");
        let will = ["--will-topic", "will", "--will-payload", "gone", "--will-qos", "1"];
        let mut dying = Reader::start(&gateway, &[&["-V", protocol, "-t", "dying"], &will[..]].concat());
        subscribed(&gateway, "dying").await;
        until("it is not there", || gateway.session_counter("connected") == 2).await;
        dying.child.kill().await.unwrap();
        assert_eq!(reader.line().await, "0 will gone");
        reader.end().await;
        publish_by_mosquitto(&gateway, &["-V", protocol, "-q", "1", "-r", "-t", "state", "-n"]).await;
        until("the session stays", || gateway.session_counter("sessions") == 0).await;
    }
    let mut reader = Reader::start(&gateway, &["-V", "mqttv5", "-t", "p", "-F", "%C %P %R %D %p"]);
    subscribed(&gateway, "p").await;
    let property = |name: &'static str, value: &'static str| ["-D", "publish", name, value];
    let mut arguments = vec!["-V", "mqttv5", "-t", "p", "-m", "x"];
    arguments.extend(property("content-type", "text/plain"));
    arguments.extend(property("response-topic", "answers"));
    arguments.extend(property("correlation-data", "42"));
    arguments.extend(["-D", "publish", "user-property", "name", "value"]);
    publish_by_mosquitto(&gateway, &arguments).await;
    assert_eq!(reader.line().await, "text/plain name:value answers 42 x");
    reader.end().await;
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persistent_session_of_mosquitto_sub_gets_what_came_while_it_was_away() {
    let gateway = Gateway::start().await;
    for protocol in PROTOCOLS {
        // A topic each: the session of the one before is still there and would be taken for this one's subscription.
        let topic = format!("kept/{protocol}");
        let session = ["-V", protocol, "-c", "-x", "3600", "-i", protocol, "-q", "1", "-t", &topic];
        let session = if protocol == "mqttv5" { session.to_vec() } else { [&session[..3], &session[5..]].concat() };
        let first = Reader::start(&gateway, &session);
        subscribed(&gateway, &topic).await;
        until("it is not there", || gateway.session_counter("connected") == 1).await;
        first.end().await;
        until("it is still there", || gateway.session_counter("connected") == 0).await;
        for number in ["1", "2", "3"] {
            publish_by_mosquitto(&gateway, &["-V", protocol, "-q", "1", "-t", &topic, "-m", number]).await;
        }
        let mut second = Reader::start(&gateway, &session);
        for number in ["1", "2", "3"] {
            assert_eq!(second.line().await, number);
        }
        second.end().await;
    }
    gateway.ended().await;
}
