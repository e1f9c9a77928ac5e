//! A stand-in for AWS IoT Core, by its documents: mTLS, quotas, no QoS 2, policies that close connections, silence where it
//! throws something away. It notes whatever a client does that AWS would not take.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::Value;
use tidegate::config::clouds::aws_policy::allows;
use tidegate::message::{Qos, Topic};
use tidegate::mqtt::{
    Ack, Connack, Decoder, Disconnect, Encoder, Packet, PacketId, Publish, ReasonCode, Suback, Version,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;

use super::common::certificates::Certificates;

/// An acknowledgement takes this long, as over a long line.
const PUBACK_AFTER: Duration = Duration::from_millis(30);

/// What the cloud goes by.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Publishes a second, and as many at once.
    pub publishes_per_s: f64,
    /// Bytes a second, and as many at once.
    pub bytes_per_s: f64,
    /// What is allowed; `None` = everything.
    pub policy: Option<Value>,
    /// Nobody is let in.
    pub is_away: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { publishes_per_s: 100.0, bytes_per_s: 512.0 * 1024.0, policy: None, is_away: false }
    }
}

/// What it does once, whatever its rules say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Answers the next CONNECT by this.
    Connack(ReasonCode),
    /// Answers the next PUBLISH by this.
    Puback(ReasonCode),
    /// Ends the connection on the next PUBLISH; says so in version 5.
    Ends(ReasonCode),
}

/// What it has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// What it does next.
    pub turns: VecDeque<Turn>,
    /// Every PUBLISH that it took.
    pub got: Vec<Publish>,
    /// When each CONNECT came.
    pub connects: Vec<Instant>,
    /// User names of CONNECT.
    pub usernames: Vec<String>,
    /// Server names and protocol names of the handshakes.
    pub handshakes: Vec<(Option<String>, Option<String>)>,
    /// Publishes beyond the quota, thrown away.
    pub thrown: usize,
    /// Most messages without an acknowledgement.
    pub in_flight_max: usize,
    /// What AWS would not take, or not answer.
    pub violations: Vec<String>,
    /// Acknowledgements of what it sent.
    pub answers: Vec<Packet>,
    introduced: Option<Instant>,
    has_session: bool,
}

/// The cloud. Ends with its owner.
pub struct Aws {
    /// Where it listens, on every loopback address of the name localhost that IPv4 knows.
    pub port: u16,
    seen: Arc<Mutex<Seen>>,
    rules: Arc<Mutex<Rules>>,
    say: mpsc::Sender<Packet>,
    _runtime: Runtime,
}

impl Aws {
    /// One that shows this certificate. Clients need one of the same authority, unless custom authorisers let them in.
    pub fn started(certificates: &Certificates, alpn: &[&str], rules: Rules) -> Aws {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let acceptor = acceptor(certificates, alpn);
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let rules = Arc::new(Mutex::new(rules));
        let (say, mut sayings) = mpsc::channel(64);
        let (shared, rule) = (seen.clone(), rules.clone());
        runtime.spawn(async move {
            let mut bucket = Buckets::new(&rule.lock().unwrap());
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                if rule.lock().unwrap().is_away {
                    continue;
                }
                // One client, one connection at a time.
                connection(stream, &acceptor, &shared, &rule, &mut bucket, &mut sayings).await;
            }
        });
        Aws { port, seen, rules, say, _runtime: runtime }
    }

    /// What it has seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// What it goes by from now on.
    pub fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap()
    }

    /// The client is another process from now on, which cannot know when the last one came.
    pub fn expect_another_process(&self) {
        self.seen().introduced = None;
    }

    /// Sends a packet to the client.
    pub fn say(&self, packet: Packet) {
        self.say.blocking_send(packet).unwrap();
    }

    /// The numbers that came under a topic.
    pub fn numbers_on(&self, topic: &str) -> Vec<u64> {
        let seen = self.seen();
        let ours = seen.got.iter().filter(|publish| publish.topic.as_ref().map(Topic::as_str) == Some(topic));
        ours.filter_map(|publish| std::str::from_utf8(&publish.payload).ok()?.trim().parse().ok()).collect()
    }
}

pub fn acceptor(certificates: &Certificates, alpn: &[&str]) -> TlsAcceptor {
    let read = |path: &Path| CertificateDer::pem_file_iter(path).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read(&certificates.ca));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = match alpn.contains(&"mqtt") {
        true => verifier.allow_unauthenticated().build().unwrap(),
        false => verifier.build().unwrap(),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            read(&certificates.server_cert),
            PrivateKeyDer::from_pem_file(&certificates.server_key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A token bucket for each quota: what AWS says of its limits, and what its own client library reckons by.
struct Buckets {
    messages: f64,
    bytes: f64,
    filled_at: Instant,
}

impl Buckets {
    fn new(rules: &Rules) -> Buckets {
        Buckets { messages: rules.publishes_per_s, bytes: rules.bytes_per_s, filled_at: Instant::now() }
    }

    fn takes(&mut self, rules: &Rules, bytes: usize) -> bool {
        let now = Instant::now();
        let passed = (now - self.filled_at).as_secs_f64();
        self.filled_at = now;
        self.messages = (self.messages + passed * rules.publishes_per_s).min(rules.publishes_per_s);
        self.bytes = (self.bytes + passed * rules.bytes_per_s).min(rules.bytes_per_s);
        if self.messages < 1.0 {
            return false;
        }
        self.messages -= 1.0;
        self.bytes -= bytes as f64;
        true
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    seen: &Mutex<Seen>,
    rules: &Mutex<Rules>,
    buckets: &mut Buckets,
    sayings: &mut mpsc::Receiver<Packet>,
) {
    stream.set_nodelay(true).unwrap();
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    {
        let (_, tls) = stream.get_ref();
        let alpn = tls.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        seen.lock().unwrap().handshakes.push((tls.server_name().map(str::to_owned), alpn));
    }
    let mut decoder = Decoder::from_client(1 << 20);
    let mut encoder = Encoder::new(Version::V5);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut due: VecDeque<(Instant, PacketId)> = VecDeque::new();
    let mut version = Version::V5;
    loop {
        let next = due.front().map(|(when, _)| *when);
        tokio::select! {
            read = stream.read_buf(&mut input) => {
                if read.unwrap_or(0) == 0 {
                    return;
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                while due.front().is_some_and(|(when, _)| *when <= Instant::now()) {
                    let Some((_, id)) = due.pop_front() else { break };
                    encoder.encode(&Packet::Puback(Ack::new(id, ReasonCode::SUCCESS)), &mut output).unwrap();
                }
            }
            Some(packet) = sayings.recv() => encoder.encode(&packet, &mut output).unwrap(),
            // An outage cuts what is there.
            () = tokio::time::sleep(Duration::from_millis(50)), if rules.lock().unwrap().is_away => return,
        }
        let mut is_over = false;
        while let Ok(Some(packet)) = decoder.decode(&mut input) {
            if let Packet::Connect(connect) = &packet {
                version = connect.version;
                encoder = Encoder::new(version);
            }
            let rules = rules.lock().unwrap().clone();
            let answer = seen.lock().unwrap().handle(packet, &rules, buckets, &mut due);
            match answer {
                Answer::Nothing => {}
                Answer::Packet(packet) => encoder.encode(&packet, &mut output).unwrap(),
                Answer::Close(reason) => {
                    if version == Version::V5 && reason != ReasonCode::SUCCESS {
                        encoder.encode(&Packet::Disconnect(Disconnect::new(reason)), &mut output).unwrap();
                    }
                    is_over = true;
                }
            }
            if is_over {
                break;
            }
        }
        if stream.write_all_buf(&mut output).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if is_over {
            stream.shutdown().await.ok();
            return;
        }
    }
}

enum Answer {
    Nothing,
    Packet(Packet),
    Close(ReasonCode),
}

impl Seen {
    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    fn handle(
        &mut self,
        packet: Packet,
        rules: &Rules,
        buckets: &mut Buckets,
        due: &mut VecDeque<(Instant, PacketId)>,
    ) -> Answer {
        let is_allowed = |action: &str, kind: &str, name: &str| {
            let resource = format!("arn:aws:iot:REGION:ACCOUNT:{kind}/{name}");
            rules.policy.as_ref().is_none_or(|policy| allows(policy, action, &resource))
        };
        match packet {
            Packet::Connect(connect) => {
                let now = Instant::now();
                // A fifth of a second for what a busy machine adds and takes away on the way.
                if self.introduced.is_some_and(|last| now - last < Duration::from_millis(800)) {
                    self.violation("two CONNECT packets within a second".to_owned());
                }
                self.introduced = Some(now);
                self.connects.push(now);
                self.usernames.push(connect.username.clone().unwrap_or_default());
                let keeps = u64::from(connect.keep_alive_s);
                if !(30..=1200).contains(&keeps) {
                    self.violation(format!("keep-alive of {keeps} s"));
                }
                if connect.client_id.len() > 128 {
                    self.violation("a long client id".to_owned());
                }
                let may_will = connect.will.as_ref().is_none_or(|will| {
                    is_allowed("iot:Publish", "topic", will.topic.as_str())
                        && (!will.retain || is_allowed("iot:RetainPublish", "topic", will.topic.as_str()))
                });
                if !is_allowed("iot:Connect", "client", &connect.client_id) || !may_will {
                    return Answer::Close(ReasonCode::SUCCESS);
                }
                if let Some(Turn::Connack(reason)) = self.turns.front().copied() {
                    self.turns.pop_front();
                    return Answer::Packet(Packet::Connack(Box::new(Connack::new(reason))));
                }
                let mut connack = Connack::new(ReasonCode::SUCCESS);
                connack.session_present = self.has_session && !connect.clean_start;
                if connect.version == Version::V5 {
                    connack.receive_max = std::num::NonZeroU16::new(100);
                    connack.packet_bytes_max = Some(149_504);
                    connack.qos_max = Some(Qos::AtLeastOnce);
                }
                self.has_session = true;
                Answer::Packet(Packet::Connack(Box::new(connack)))
            }
            Packet::Publish(publish) => self.publish(publish, rules, buckets, due, &is_allowed),
            Packet::Subscribe(subscribe) => {
                if subscribe.subscriptions.len() > 8 {
                    self.violation(format!("{} filters in a SUBSCRIBE", subscribe.subscriptions.len()));
                    return Answer::Close(ReasonCode::SUCCESS);
                }
                if subscribe.subscriptions.iter().any(|one| one.qos == Qos::ExactlyOnce) {
                    self.violation("a subscription at QoS 2, which is never answered".to_owned());
                    return Answer::Nothing;
                }
                let reasons = subscribe.subscriptions.iter();
                let reasons =
                    reasons.map(|one| match is_allowed("iot:Subscribe", "topicfilter", one.filter.as_str()) {
                        true => ReasonCode(one.qos.level()),
                        false => ReasonCode(0x80),
                    });
                Answer::Packet(Packet::Suback(Suback { packet_id: subscribe.packet_id, reasons: reasons.collect() }))
            }
            Packet::Pingreq => Answer::Packet(Packet::Pingresp),
            Packet::Disconnect(_) => Answer::Close(ReasonCode::SUCCESS),
            other => {
                self.answers.push(other);
                Answer::Nothing
            }
        }
    }

    fn publish(
        &mut self,
        publish: Publish,
        rules: &Rules,
        buckets: &mut Buckets,
        due: &mut VecDeque<(Instant, PacketId)>,
        is_allowed: &dyn Fn(&str, &str, &str) -> bool,
    ) -> Answer {
        let topic = publish.topic.as_ref().unwrap().as_str().to_owned();
        let counted = topic.strip_prefix("$aws/rules/").and_then(|rest| rest.split_once('/')).map(|(_, rest)| rest);
        let counted = counted.unwrap_or(&topic);
        if counted.len() > 256 || counted.matches('/').count() > 7 {
            self.violation(format!("the topic {topic}"));
            return Answer::Close(ReasonCode::TOPIC_NAME_INVALID);
        }
        if publish.payload.len() > 128 * 1024 {
            self.violation(format!("a payload of {} bytes", publish.payload.len()));
            return Answer::Close(ReasonCode::PACKET_TOO_LARGE);
        }
        if publish.retain && topic.starts_with('$') {
            self.violation(format!("retained: {topic}"));
        }
        let may = is_allowed("iot:Publish", "topic", &topic)
            && (!publish.retain || is_allowed("iot:RetainPublish", "topic", &topic));
        if !may {
            return Answer::Close(ReasonCode::NOT_AUTHORIZED);
        }
        if publish.qos == Qos::ExactlyOnce {
            self.violation("QoS 2, which is never answered".to_owned());
            return Answer::Nothing;
        }
        match self.turns.front().copied() {
            Some(Turn::Ends(reason)) => {
                self.turns.pop_front();
                return Answer::Close(reason);
            }
            Some(Turn::Puback(reason)) if publish.packet_id.is_some() => {
                self.turns.pop_front();
                let id = publish.packet_id.unwrap();
                return Answer::Packet(Packet::Puback(Ack::new(id, reason)));
            }
            _ => {}
        }
        if !buckets.takes(rules, publish.payload.len() + topic.len() + 10) {
            self.thrown += 1;
            return Answer::Nothing;
        }
        if let Some(id) = publish.packet_id {
            due.push_back((Instant::now() + PUBACK_AFTER, id));
            self.in_flight_max = self.in_flight_max.max(due.len());
            if due.len() > 100 {
                self.violation(format!("{} messages in flight", due.len()));
                return Answer::Close(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
            }
        }
        self.got.push(publish);
        Answer::Nothing
    }
}
