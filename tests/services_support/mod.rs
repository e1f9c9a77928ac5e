//! The other side of twin, shadow and jobs: `cloud_services.py` beside Mosquitto, and the gate before them, which ends TLS,
//! goes by a policy as AWS does, and can be shut.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Value, json};
use tidegate::config::clouds::aws_policy::allows;
use tidegate::message::Topic;
use tidegate::mqtt::{Decoder, Encoder, Packet, ReasonCode, Suback, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::common::cloud::{Access, Mosquitto};
use super::common::gateway::ID;
use super::common::peers::script;
use super::common::process::Process;
use super::common::{PATIENCE, wait_for, wait_until};

const PACKET_BYTES_MAX: usize = 1 << 20;

/// Mosquitto with the services beside it.
pub struct Services {
    /// The broker.
    pub mosquitto: Mosquitto,
    process: Process,
    lines_read: usize,
    states: BTreeMap<String, Value>,
    requests: Vec<Value>,
    done: usize,
    violations: Vec<String>,
}

impl Services {
    pub fn started(folder: &Path) -> Services {
        let mut mosquitto = Mosquitto::prepared(folder, Access::Open);
        mosquitto.configure("log_dest topic\nlog_type subscribe");
        mosquitto.start();
        let mut process = script("cloud_services", &[mosquitto.port.to_string().as_str(), ID]);
        process.wait_for_line(PATIENCE, "that it serves", |line| line.contains("ready"));
        let (states, requests, violations) = (BTreeMap::new(), Vec::new(), Vec::new());
        Services { mosquitto, process, lines_read: 0, states, requests, done: 0, violations }
    }

    fn read(&mut self) {
        for line in self.process.stdout_from(self.lines_read) {
            self.lines_read += 1;
            let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
            if let Some(violation) = said["violation"].as_str() {
                self.violations.push(violation.to_owned());
            } else if let Some(name) = said["state"].as_str() {
                self.states.insert(name.to_owned(), said);
            } else if said.get("request").is_some() {
                self.requests.push(said);
            } else if said.get("done").is_some() {
                self.done += 1;
            }
        }
    }

    /// Gives an order and waits until it is carried out.
    #[track_caller]
    pub fn order(&mut self, order: &Value) {
        let before = self.done;
        self.process.tell(&order.to_string());
        wait_until(PATIENCE, "an order is carried out", || {
            self.read();
            if self.done > before { Ok(()) } else { Err(format!("{order}: {}", self.process.transcript())) }
        });
    }

    /// Waits until a service is in a state that `look` wants.
    #[track_caller]
    pub fn wait<T>(&mut self, service: &str, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        wait_until(PATIENCE, what, || {
            self.read();
            let state = self.states.get(service).unwrap_or(&Value::Null);
            look(state).ok_or_else(|| format!("{state}, after {:?}", self.requests.last()))
        })
    }

    /// Waits until what is reported to `service` is `expected`, but for what the gateway says of itself.
    #[track_caller]
    pub fn wait_for_reported(&mut self, service: &str, expected: &Value) {
        self.wait(service, &format!("{expected} is reported"), |state| {
            let mut reported = state["reported"].clone();
            let own = reported.as_object_mut()?.remove("tidegate")?;
            let names: Vec<&str> = own["names"].as_array()?.iter().filter_map(Value::as_str).collect();
            let is_named = expected.as_object()?.keys().all(|name| names.contains(&name.as_str()));
            (reported == *expected && is_named).then_some(())
        });
    }

    /// What was asked of a service, of this kind, so far.
    pub fn requests(&mut self, service: &str, request: &str) -> Vec<Value> {
        self.read();
        let ours = self.requests.iter().filter(|one| one["service"] == service);
        ours.filter(|one| one["request"].as_str().unwrap().starts_with(request)).cloned().collect()
    }

    /// An execution of a job, the last one of this name.
    #[track_caller]
    pub fn wait_for_job(&mut self, id: &str, status: &str) -> Value {
        self.wait("jobs", &format!("the job {id} is {status}"), |state| {
            let last = state["jobs"].as_array()?.iter().rev().find(|one| one["jobId"] == id)?;
            (last["status"] == status).then(|| last.clone())
        })
    }

    /// Queues a job.
    #[track_caller]
    pub fn queue(&mut self, id: &str, document: &Value) {
        self.order(&json!({"order": "queue", "service": "jobs", "id": id, "document": document}));
    }

    /// What the services would not take.
    pub fn violations(&mut self) -> Vec<String> {
        self.read();
        self.violations.clone()
    }
}

/// What the gate forbids, beside what a policy does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// SUBACK 0x80.
    Refuses,
    /// The connection ends.
    Closes,
}

/// What the gate goes by, and what it has seen.
#[derive(Debug, Default)]
pub struct State {
    /// Nobody comes in, and who is in is thrown out.
    pub is_shut: bool,
    /// A document of AWS; over whatever it does not allow the connection ends.
    pub policy: Option<Value>,
    /// Topics and filters with this end are forbidden so.
    pub forbidden: Option<(&'static str, Manner)>,
    /// Connections that are there.
    pub open: usize,
    /// Connections so far.
    pub connects: usize,
    /// Filters and QoS of each SUBSCRIBE, by client id.
    pub subscribed: Vec<(String, BTreeMap<String, u8>)>,
    /// Topics and QoS of what was published on `$…`.
    pub published: Vec<(String, u8)>,
    /// Actions and resources that were used.
    pub used: BTreeSet<(String, String)>,
    /// The same, and not allowed.
    pub not_allowed: Vec<(String, String)>,
}

/// The gate. Ends with its owner.
pub struct Gate {
    pub port: u16,
    state: Arc<Mutex<State>>,
    _runtime: Runtime,
}

impl Gate {
    /// Before the broker at `target`.
    pub fn started(acceptor: TlsAcceptor, target: u16, is_shut: bool) -> Gate {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { is_shut, ..State::default() }));
        let shared = state.clone();
        runtime.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                if state.lock().unwrap().is_shut {
                    continue;
                }
                state.lock().unwrap().open += 1;
                connections.spawn(async move {
                    pass(stream, &acceptor, target, &state).await;
                    state.lock().unwrap().open -= 1;
                });
            }
        });
        Gate { port, state, _runtime: runtime }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Throws out who is in.
    #[track_caller]
    pub fn shut(&self) {
        self.state().is_shut = true;
        wait_for(PATIENCE, "nobody is in", || self.state().open == 0);
    }

    pub fn open(&self) {
        self.state().is_shut = false;
    }
}

async fn pass(stream: TcpStream, acceptor: &TlsAcceptor, target: u16, state: &Mutex<State>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut near = acceptor.accept(stream).await.ok()?;
    let mut far = TcpStream::connect(("127.0.0.1", target)).await.ok()?;
    far.set_nodelay(true).ok()?;
    let mut from_client = Decoder::from_client(PACKET_BYTES_MAX);
    let mut from_server = Decoder::from_server(Version::V5, PACKET_BYTES_MAX);
    let mut encoder = Encoder::new(Version::V5);
    let mut client_id = String::new();
    let [mut near_in, mut near_out, mut far_in, mut far_out] = [(); 4].map(|()| BytesMut::new());
    loop {
        tokio::select! {
            read = near.read_buf(&mut near_in) => { read.ok().filter(|count| *count > 0)?; }
            read = far.read_buf(&mut far_in) => { read.ok().filter(|count| *count > 0)?; }
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        let mut is_over;
        {
            let mut state = state.lock().unwrap();
            is_over = state.is_shut;
            while !is_over && let Ok(Some(packet)) = from_client.decode(&mut near_in) {
                if let Packet::Connect(connect) = &packet {
                    encoder = Encoder::new(connect.version);
                    from_server = Decoder::from_server(connect.version, PACKET_BYTES_MAX);
                    client_id.clone_from(&connect.client_id);
                }
                match (state.judge(&client_id, &packet), &packet) {
                    (None, _) => encoder.encode(&packet, &mut far_out).unwrap(),
                    (Some(Manner::Refuses), Packet::Subscribe(subscribe)) => {
                        let reasons = vec![ReasonCode(0x80); subscribe.subscriptions.len()];
                        let suback = Suback { packet_id: subscribe.packet_id, reasons };
                        encoder.encode(&Packet::Suback(suback), &mut near_out).unwrap();
                    }
                    (Some(_), _) => is_over = true,
                }
            }
            while let Ok(Some(packet)) = from_server.decode(&mut far_in) {
                encoder.encode(&packet, &mut near_out).unwrap();
            }
        }
        far.write_all_buf(&mut far_out).await.ok()?;
        near.write_all_buf(&mut near_out).await.ok()?;
        near.flush().await.ok()?;
        if is_over {
            near.shutdown().await.ok();
            return None;
        }
    }
}

impl State {
    /// How a packet is forbidden, if it is.
    fn judge(&mut self, client_id: &str, packet: &Packet) -> Option<Manner> {
        let mut used = Vec::new();
        let mut topics = Vec::new();
        match packet {
            Packet::Connect(connect) => {
                self.connects += 1;
                used.push(("iot:Connect", format!("client/{client_id}")));
                used.extend(connect.will.iter().map(|will| ("iot:Publish", format!("topic/{}", will.topic.as_str()))));
            }
            Packet::Subscribe(subscribe) => {
                let filters =
                    subscribe.subscriptions.iter().map(|one| (one.filter.as_str().to_owned(), one.qos.level()));
                let filters: BTreeMap<String, u8> = filters.collect();
                topics.extend(filters.keys().cloned());
                used.extend(filters.keys().map(|filter| ("iot:Subscribe", format!("topicfilter/{filter}"))));
                self.subscribed.push((client_id.to_owned(), filters));
            }
            Packet::Publish(publish) => {
                let topic = publish.topic.as_ref().map_or("", Topic::as_str);
                topics.push(topic.to_owned());
                used.push(("iot:Publish", format!("topic/{topic}")));
                if publish.retain {
                    used.push(("iot:RetainPublish", format!("topic/{topic}")));
                }
                if topic.starts_with('$') {
                    self.published.push((topic.to_owned(), publish.qos.level()));
                }
            }
            _ => return None,
        }
        let mut manner = None;
        for (action, resource) in used {
            let arn = format!("arn:aws:iot:REGION:ACCOUNT:{resource}");
            if self.policy.as_ref().is_some_and(|policy| !allows(policy, action, &arn)) {
                self.not_allowed.push((action.to_owned(), resource.clone()));
                manner = Some(Manner::Closes);
            }
            self.used.insert((action.to_owned(), resource));
        }
        let forbidden = self.forbidden.filter(|(part, _)| topics.iter().any(|topic| topic.ends_with(part)));
        manner.or(forbidden.map(|(_, manner)| manner))
    }
}

/// mosquitto_pub at QoS 1.
#[track_caller]
pub fn publish(port: u16, words: &[&str]) {
    let output = Command::new("mosquitto_pub").args(["-p", &port.to_string(), "-q", "1"]).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}
