//! The Python peers (paho-mqtt, pymodbus), mosquitto's clients, and pairs of serial ports.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::process::Process;
use super::raw::{RawClient, Version};
use super::{PATIENCE, port, wait_until};

/// What `./test.sh` has installed for the peers.
pub fn installed(path: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"));
    let path = target.join(path);
    assert!(path.exists(), "{} is missing: ./test.sh makes it", path.display());
    path
}

/// Runs `tests/peers/javascript/<script>.js` with MQTT.js to its end; the lines that it said.
#[track_caller]
pub fn javascript(script: &str, argument: &Value) -> Vec<Value> {
    let mut process = start_javascript(script, argument);
    let status = process.wait(PATIENCE);
    assert!(status.success(), "{script}.js ended with {status}:\n{}", process.transcript());
    process.stdout().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Starts `tests/peers/javascript/<script>.js`.
pub fn start_javascript(script: &str, argument: &Value) -> Process {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/peers/javascript/{script}.js"));
    let modules = installed("node/node_modules").display().to_string();
    let words = [path.display().to_string(), argument.to_string()];
    Process::start_with(script, "node", &words, &[("NODE_PATH", &modules)])
}

/// Starts `tests/peers/<script>.py`.
pub fn script<S: AsRef<OsStr>>(script: &str, arguments: &[S]) -> Process {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/peers/{script}.py"));
    let mut words: Vec<&OsStr> = vec![OsStr::new("-B"), path.as_os_str()];
    words.extend(arguments.iter().map(AsRef::as_ref));
    Process::start(script, installed("venv/bin/python"), &words)
}

/// Runs `tests/peers/<script>.py` to its end in an environment of its own (`venv-aws`, `venv-azure`); the lines it said.
#[track_caller]
pub fn script_in<S: AsRef<OsStr>>(environment: &str, script: &str, arguments: &[S]) -> Vec<String> {
    let mut process = start_script_in(environment, script, arguments);
    let status = process.wait(PATIENCE);
    assert!(status.success(), "{script}.py ended with {status}:\n{}", process.transcript());
    process.stdout()
}

/// Starts `tests/peers/<script>.py` in an environment of its own.
pub fn start_script_in<S: AsRef<OsStr>>(environment: &str, script: &str, arguments: &[S]) -> Process {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/peers/{script}.py"));
    let mut words: Vec<&OsStr> = vec![OsStr::new("-B"), path.as_os_str()];
    words.extend(arguments.iter().map(AsRef::as_ref));
    Process::start(script, installed(&format!("{environment}/bin/python")), &words)
}

/// A message that a subscriber got.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its topic.
    pub topic: String,
    /// QoS of the delivery.
    pub qos: u64,
    /// Whether it was sent as a retained message.
    pub retain: bool,
    /// The payload as text.
    pub payload: String,
    /// The user property `tidegate-id`.
    pub id: Option<String>,
}

impl Received {
    /// The sender's own number, at the head of the payload.
    pub fn number(&self) -> u64 {
        let word = self.payload.split_whitespace().next().unwrap_or_default();
        word.parse().unwrap_or_else(|_| panic!("no number in {self:?}"))
    }

    /// The payload as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.payload).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// A paho client that subscribes and keeps what it gets; its session is kept over the broker's stops.
pub struct Subscriber {
    process: Process,
    lines_read: usize,
    received: Vec<Received>,
}

impl Subscriber {
    /// Subscribes at QoS 2 over MQTT 5 and waits for the SUBACK.
    pub fn started(port: u16, client_id: &str, filters: &[&str]) -> Subscriber {
        Subscriber::started_with(port, client_id, filters, &[])
    }

    /// The same with more arguments of `subscriber.py`.
    pub fn started_with(port: u16, client_id: &str, filters: &[&str], more: &[&str]) -> Subscriber {
        let port = port.to_string();
        let mut arguments = vec!["--port", port.as_str(), "--client-id", client_id];
        arguments.extend(more);
        arguments.push("--");
        arguments.extend(filters);
        let mut process = script("subscriber", &arguments);
        process.wait_for_line(PATIENCE, "that it has subscribed", |line| line.contains("subscribed"));
        Subscriber { process, lines_read: 0, received: Vec::new() }
    }

    /// All messages so far, in the order of arrival.
    pub fn received(&mut self) -> &[Received] {
        for line in self.process.stdout_from(self.lines_read) {
            self.lines_read += 1;
            let message: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
            if message.get("event").is_some() {
                continue;
            }
            self.received.push(Received {
                topic: message["topic"].as_str().unwrap().to_owned(),
                qos: message["qos"].as_u64().unwrap(),
                retain: message["retain"].as_bool().unwrap(),
                payload: message["payload"].as_str().unwrap().to_owned(),
                id: message["id"].as_str().map(str::to_owned),
            });
        }
        &self.received
    }

    /// The messages of one topic.
    pub fn received_on(&mut self, topic: &str) -> Vec<Received> {
        self.received().iter().filter(|message| message.topic == topic).cloned().collect()
    }

    /// The sender's numbers that arrived on a topic, in the order of arrival.
    pub fn numbers_on(&mut self, topic: &str) -> Vec<u64> {
        self.received_on(topic).iter().map(Received::number).collect()
    }

    /// Waits until `is_enough` of the messages so far.
    #[track_caller]
    pub fn wait(&mut self, what: &str, mut is_enough: impl FnMut(&[Received]) -> bool) {
        let what = format!("the subscriber has {what}");
        wait_until(PATIENCE, &what, || {
            let received = self.received();
            if is_enough(received) {
                return Ok(());
            }
            let mut by_topic = BTreeMap::<&str, usize>::new();
            received.iter().for_each(|message| *by_topic.entry(&message.topic).or_default() += 1);
            Err(format!("it has {by_topic:?}, the last {:?}", received.last()))
        });
    }

    /// Waits until `count` messages came on `topic`.
    #[track_caller]
    pub fn wait_for_count(&mut self, topic: &str, count: usize) {
        self.wait(&format!("{count} messages on {topic}"), |received| {
            received.iter().filter(|message| message.topic == topic).count() >= count
        });
    }

    /// Waits for a message on `topic` that `is_it`, and gives it back.
    #[track_caller]
    pub fn wait_for_message(&mut self, topic: &str, is_it: impl Fn(&Received) -> bool) -> Received {
        let found =
            |received: &[Received]| received.iter().find(|message| message.topic == topic && is_it(message)).cloned();
        self.wait(&format!("that message on {topic}"), |received| found(received).is_some());
        found(&self.received).unwrap()
    }
}

/// A paho client that publishes numbers and reports each acknowledgement.
pub struct Publisher {
    process: Process,
}

impl Publisher {
    /// Starts it; `more` are arguments of `publisher.py`.
    pub fn started(port: u16, client_id: &str, topic: &str, count: u64, more: &[&str]) -> Publisher {
        let (port, count) = (port.to_string(), count.to_string());
        let mut arguments = vec!["--port", &port, "--client-id", client_id, "--topic", topic, "--count", &count];
        arguments.extend(more);
        Publisher { process: script("publisher", &arguments) }
    }

    /// All that it has said.
    pub fn said(&self) -> Vec<String> {
        self.process.stdout()
    }

    /// The numbers that were acknowledged so far.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.process.stdout().iter().filter_map(|line| line.strip_prefix("ack ")?.parse().ok()).collect()
    }

    /// The lines about numbers that were refused.
    pub fn refused(&self) -> Vec<String> {
        self.process.stdout().into_iter().filter(|line| line.starts_with("refused ")).collect()
    }

    /// How often it has connected.
    pub fn connections(&self) -> usize {
        self.process.stdout().iter().filter(|line| *line == "connected").count()
    }

    /// Waits until `count` numbers were acknowledged.
    #[track_caller]
    pub fn wait_for_acknowledged(&mut self, count: usize) {
        wait_until(PATIENCE, &format!("{count} messages are acknowledged"), || {
            let so_far = self.acknowledged().len();
            if so_far >= count { Ok(()) } else { Err(format!("{so_far} are")) }
        });
    }

    /// Waits until every number was answered.
    #[track_caller]
    pub fn wait_until_done(&mut self) {
        self.process.wait_for_line(PATIENCE, "that all is acknowledged", |line| line == "done");
    }
}

/// A pymodbus server.
pub struct ModbusServer {
    process: Process,
    /// Its TCP port; 0 on a serial line.
    pub port: u16,
}

impl ModbusServer {
    /// On TCP; `units` is what `modbus_server.py` reads.
    pub fn on_tcp(units: &Value) -> ModbusServer {
        ModbusServer::on_tcp_with(units, "socket")
    }

    /// On TCP with RTU frames, as serial servers speak.
    pub fn on_rtu_over_tcp(units: &Value) -> ModbusServer {
        ModbusServer::on_tcp_with(units, "rtu")
    }

    fn on_tcp_with(units: &Value, framer: &str) -> ModbusServer {
        let port = port::free();
        let process = serving(&["--tcp", &port.to_string(), "--framer", framer], units);
        assert!(port::is_served_by(port, process.id()), "another process answers on the port of the Modbus server");
        ModbusServer { process, port }
    }

    /// On a serial port, in letters.
    pub fn on_serial_ascii(path: &Path, units: &Value) -> ModbusServer {
        let arguments = ["--serial", &path.display().to_string(), "--framer", "ascii"];
        ModbusServer { process: serving(&arguments, units), port: 0 }
    }

    /// On a serial port.
    pub fn on_serial(path: &Path, units: &Value) -> ModbusServer {
        ModbusServer { process: serving(&["--serial", &path.display().to_string()], units), port: 0 }
    }

    /// Ends it, as a plug that is pulled.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// The requests to write that arrived, as unit and PDU in hex.
    pub fn writes(&self) -> Vec<String> {
        self.process.stdout().iter().filter_map(|line| Some(line.strip_prefix("wrote ")?.to_owned())).collect()
    }
}

fn serving(arguments: &[&str], units: &Value) -> Process {
    let mut process = script("modbus_server", arguments);
    process.tell(&units.to_string());
    process.wait_for_line(PATIENCE, "that it serves", |line| line == "ready");
    process
}

/// Two serial ports joined by a cable.
pub struct Cable {
    _process: Process,
    /// The gateway's end.
    pub near: PathBuf,
    /// The device's end.
    pub far: PathBuf,
}

impl Cable {
    /// Lays one in `folder`.
    pub fn laid(folder: &Path) -> Cable {
        let (near, far) = (folder.join("near"), folder.join("far"));
        let end = |path: &Path| format!("pty,raw,echo=0,link={}", path.display());
        let process = Process::start("socat", "socat", &[end(&near), end(&far)]);
        wait_until(Duration::from_secs(20), "both ends of the cable are there", || {
            if near.exists() && far.exists() { Ok(()) } else { Err("they are not".to_owned()) }
        });
        Cable { _process: process, near, far }
    }
}

/// mosquitto_sub with `arguments`, once it hears at the gateway's `port` what is said on `probe`: so its subscriptions are
/// in force. They must print the topic first.
pub fn mosquitto_sub(port: u16, arguments: &[&str]) -> Process {
    let arguments = [arguments, &["-t", "probe"]].concat();
    let listener = Process::start("mosquitto_sub", "mosquitto_sub", &arguments);
    let mut probe = RawClient::connected(port, Version::V311, "probe");
    wait_until(PATIENCE, "mosquitto_sub hears", || {
        probe.publish(b"probe", 0, 0, b"there?");
        if listener.stdout().iter().any(|line| line.starts_with("probe ")) { Ok(()) } else { Err("nothing".to_owned()) }
    });
    listener
}
