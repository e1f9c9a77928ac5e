//! Does the profile of ClearBlade IoT Core keep to what that takes, come back before its token ends, and lose nothing?
//!
//! The other side is a stand-in that goes by ClearBlade's documents and is strict: it ends the connection on a will, a retained
//! message, QoS 2, a kept session, a topic of another, and a token that has ended. Injected: an outage, a kill, refusals of
//! each kind, messages thrown away without a word. Survivable, because a message stays in the queue until its PUBACK.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod aws_support;
mod common;
mod scripted;
mod uplink_support;
mod writes_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aws_support::acceptor;
use base64ct::{Base64UrlUnpadded, Encoding as _};
use common::account::assert_whole_in_order_and_once;
use common::certificates::Certificates;
use common::faketime::WallClock;
use common::gateway::{Gateway, ID, PROGRAM, folder};
use common::peers::Publisher;
use common::{PATIENCE, turn, wait_until};
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm};
use scripted::{Act, Peer, Script, Scripted};
use serde_json::{Value, json};
use tidegate::clock::{Clock, ClockSource};
use tidegate::config::clouds::CLEARBLADE;
use tidegate::config::{JwtConfig, Protocol, UplinkConfig};
use tidegate::message::{Properties, Qos, Topic};
use tidegate::mqtt::{Ack, Connack, Connect, Packet, PacketId, Publish, ReasonCode, Suback, Version};
use tokio::time::Instant;
use uplink_support::gateway as within;
use writes_support::{Device, Manner};

const CLIENT_ID: &str = "projects/plant-7/locations/us-central1/registries/halls/devices/press-7";
const DEVICE: &str = "/devices/press-7";

/// What CONNECT is answered with instead.
#[derive(Debug, Clone, Copy)]
enum No {
    Code(ReasonCode),
    /// One that MQTT keeps for later.
    Thirteen,
    Closes,
}

struct ClearBlade {
    algorithm: &'static str,
    public_key: Vec<u8>,
    is_away: bool,
    refuses: Option<No>,
    /// So many numbered messages are thrown away without a word.
    drops: usize,
    say: Vec<(String, String)>,
    connects: Vec<Connect>,
    tokens: Vec<(i64, i64)>,
    got: Vec<Publish>,
    /// When each of them came.
    came: Vec<Instant>,
    subscribed: Vec<(String, Qos)>,
    violations: Vec<String>,
    /// Connections that ended because their token did.
    expired: usize,
    /// Connections and when their tokens end.
    devices: BTreeMap<usize, i64>,
    has_subscriber: bool,
}

fn now_s() -> i64 {
    Clock::new(ClockSource::Trusted).now().wall_ms / 1000
}

fn message(topic: &str, payload: &str) -> Act {
    Act::Say(Packet::Publish(Publish {
        dup: false,
        retain: false,
        qos: Qos::AtLeastOnce,
        packet_id: PacketId::new(9),
        topic: Some(Topic::new(topic).unwrap()),
        payload: payload.to_owned().into(),
        properties: Properties::default(),
        topic_alias: None,
        subscription_id: None,
    }))
}

impl ClearBlade {
    fn new(algorithm: &'static str, public_key: Vec<u8>) -> ClearBlade {
        ClearBlade {
            algorithm,
            public_key,
            is_away: false,
            refuses: None,
            drops: 0,
            say: Vec::new(),
            connects: Vec::new(),
            tokens: Vec::new(),
            got: Vec::new(),
            came: Vec::new(),
            subscribed: Vec::new(),
            violations: Vec::new(),
            expired: 0,
            devices: BTreeMap::new(),
            has_subscriber: false,
        }
    }

    /// The numbers that came under a topic, in order.
    fn numbers(&self, topic: &str) -> Vec<u64> {
        let ours = self.got.iter().filter(|publish| publish.topic.as_ref().unwrap().as_str() == topic);
        ours.filter_map(|publish| std::str::from_utf8(&publish.payload).ok()?.trim().parse().ok()).collect()
    }

    fn payloads(&self, topic: &str) -> Vec<Value> {
        let ours = self.got.iter().filter(|publish| publish.topic.as_ref().unwrap().as_str() == topic);
        ours.map(|publish| serde_json::from_slice(&publish.payload).unwrap()).collect()
    }

    fn violation(&mut self, what: String) -> Vec<Act> {
        self.violations.push(what);
        vec![Act::Close]
    }

    fn connect(&mut self, peer: &Peer, connect: Connect) -> Vec<Act> {
        self.connects.push(connect.clone());
        match self.refuses {
            _ if self.is_away => return vec![Act::Close],
            Some(No::Closes) => return vec![Act::Close],
            Some(No::Code(reason)) => {
                return vec![Act::Say(Packet::Connack(Box::new(Connack::new(reason)))), Act::Close];
            }
            Some(No::Thirteen) => return vec![Act::Bytes(vec![0x20, 2, 0, 13]), Act::Close],
            None => {}
        }
        if connect.version != Version::V311 || !connect.clean_start || connect.will.is_some() {
            return self.violation(format!("{connect:?}"));
        }
        if connect.username.is_none() || connect.client_id != CLIENT_ID {
            return self.violation(format!("{:?} as {:?}", connect.username, connect.client_id));
        }
        let token = String::from_utf8(connect.password.unwrap_or_default().to_vec()).unwrap();
        let Some((issued, expires)) = self.judged(&token) else {
            let no = Connack::new(ReasonCode::BAD_USER_NAME_OR_PASSWORD);
            return vec![Act::Say(Packet::Connack(Box::new(no))), Act::Close];
        };
        self.tokens.push((issued, expires));
        // One connection a device.
        self.devices.clear();
        self.devices.insert(peer.number, expires);
        self.has_subscriber = false;
        vec![Act::Say(Packet::Connack(Box::new(Connack::new(ReasonCode::SUCCESS))))]
    }

    /// Issued and expires, of a token that is good.
    fn judged(&self, token: &str) -> Option<(i64, i64)> {
        let (signed, signature) = token.rsplit_once('.')?;
        let signature = Base64UrlUnpadded::decode_vec(signature).ok()?;
        let algorithm: &dyn VerificationAlgorithm = match self.algorithm {
            "ES256" => &ECDSA_P256_SHA256_FIXED,
            _ => &RSA_PKCS1_2048_8192_SHA256,
        };
        UnparsedPublicKey::new(algorithm, &self.public_key).verify(signed.as_bytes(), &signature).ok()?;
        let (header, body) = signed.split_once('.')?;
        let json = |part: &str| serde_json::from_slice::<Value>(&Base64UrlUnpadded::decode_vec(part).unwrap()).unwrap();
        let (header, body) = (json(header), json(body));
        let (issued, expires) = (body["iat"].as_i64()?, body["exp"].as_i64()?);
        let is_good = header["alg"] == self.algorithm
            && body["aud"] == "plant-7"
            && expires > now_s()
            && issued <= now_s() + 600
            && expires - issued <= 86_400;
        is_good.then_some((issued, expires))
    }

    fn publish(&mut self, publish: Publish) -> Vec<Act> {
        let topic = publish.topic.as_ref().unwrap().as_str().to_owned();
        let rest = topic.strip_prefix(DEVICE).unwrap_or_default();
        let max = if rest == "/state" { 64 } else { 256 } * 1024;
        let is_known = rest == "/state" || rest == "/events" || rest.starts_with("/events/");
        if !is_known || publish.retain || publish.qos == Qos::ExactlyOnce || publish.payload.len() > max {
            return self.violation(format!("{topic} at {:?}, retain {}", publish.qos, publish.retain));
        }
        if self.drops > 0 && publish.payload.first().is_some_and(u8::is_ascii_digit) {
            self.drops -= 1;
            return Vec::new();
        }
        let id = publish.packet_id;
        self.got.push(publish);
        self.came.push(Instant::now());
        id.map(|id| Act::Say(Packet::Puback(Ack::new(id, ReasonCode::SUCCESS)))).into_iter().collect()
    }
}

impl Script for ClearBlade {
    fn handle(&mut self, peer: &Peer, packet: Packet) -> Vec<Act> {
        if !matches!(packet, Packet::Connect(_)) && !self.devices.contains_key(&peer.number) {
            return vec![Act::Close];
        }
        match packet {
            Packet::Connect(connect) => self.connect(peer, *connect),
            Packet::Publish(publish) => self.publish(publish),
            Packet::Subscribe(subscribe) => {
                let mut acts = Vec::new();
                for one in &subscribe.subscriptions {
                    let rest = one.filter.as_str().strip_prefix(DEVICE).unwrap_or_default();
                    if !matches!(rest, "/config" | "/errors") && !rest.starts_with("/commands") {
                        return self.violation(format!("the subscription {}", one.filter.as_str()));
                    }
                    self.subscribed.push((one.filter.as_str().to_owned(), one.qos));
                    if rest == "/config" {
                        acts.push(message(&format!("{DEVICE}/config"), "{\"id\": \"c-1\", \"value\": 7}"));
                    }
                }
                self.has_subscriber = true;
                let reasons = subscribe.subscriptions.iter();
                let reasons = reasons.map(|one| ReasonCode(one.qos.min(Qos::AtLeastOnce).level())).collect();
                let suback = Packet::Suback(Suback { packet_id: subscribe.packet_id, reasons });
                acts.insert(0, Act::Say(suback));
                acts
            }
            Packet::Pingreq => vec![Act::Say(Packet::Pingresp)],
            Packet::Disconnect(_) => vec![Act::Close],
            _ => Vec::new(),
        }
    }

    fn look(&mut self, peer: &Peer) -> Vec<Act> {
        let Some(expires) = self.devices.get(&peer.number) else { return Vec::new() };
        if self.is_away {
            return vec![Act::Close];
        }
        if *expires <= now_s() {
            self.expired += 1;
            return vec![Act::Close];
        }
        // Commands go to devices that are connected, and to nobody else.
        let said = if self.has_subscriber { std::mem::take(&mut self.say) } else { Vec::new() };
        said.iter().map(|(topic, payload)| message(topic, payload)).collect()
    }

    fn ended(&mut self, peer: &Peer) {
        self.devices.remove(&peer.number);
    }
}

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A key for ES256, and its public half as the cloud has it.
fn ecdsa(folder: &Path) -> (PathBuf, Vec<u8>) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let path = folder.join("device.pem");
    secret(&path, &pair.serialize_pem());
    (path, pair.public_key_raw().to_vec())
}

/// One for RS256, made by openssl.
fn rsa(folder: &Path) -> (PathBuf, Vec<u8>) {
    let openssl = |words: &str| {
        let output = Command::new("openssl").args(words.split(' ')).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem");
    openssl("rsa -in rsa.pem -RSAPublicKey_out -outform DER -out rsa.pub");
    let path = folder.join("rsa.pem");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    (path, fs::read(folder.join("rsa.pub")).unwrap())
}

struct Place {
    folder: tempfile::TempDir,
    ca: PathBuf,
    key: PathBuf,
    cloud: Scripted<ClearBlade>,
}

impl Place {
    fn new(algorithm: &'static str) -> Place {
        let folder = folder();
        let certificates = Certificates::make(&folder.path().join("cloud"), ID);
        let (key, public_key) = if algorithm == "ES256" { ecdsa(folder.path()) } else { rsa(folder.path()) };
        let cloud = Scripted::started(ClearBlade::new(algorithm, public_key), Some(acceptor(&certificates, &["mqtt"])));
        Place { folder, ca: certificates.ca, key, cloud }
    }

    fn tables(&self, more: &str) -> String {
        format!(
            "[uplink.cloud]\nprofile = \"clearblade\"\nurl = \"mqtts://localhost:{}\"\nca = \"{}\"\n\
             client_id = \"{CLIENT_ID}\"\njwt = {{ key = \"{}\" }}\nreconnect = {{ first = \"100ms\", max = \"500ms\" }}\n{more}\n\
             [[uplink.cloud.forward]]\nfilter = \"plant/state\"\ntopic = \"{DEVICE}/state\"\n\
             [[uplink.cloud.forward]]\nfilter = \"plant/#\"\n",
            self.cloud.port,
            self.ca.display(),
            self.key.display()
        )
    }

    #[track_caller]
    fn wait_for(&self, count: usize) -> Vec<u64> {
        wait_until(PATIENCE, &format!("{count} messages are at the cloud"), || {
            let script = self.cloud.script();
            assert_eq!(script.violations, Vec::<String>::new());
            let numbers = script.numbers(&format!("{DEVICE}/events/plant/press"));
            let there = numbers.iter().collect::<BTreeSet<_>>().len();
            if there >= count { Ok(numbers) } else { Err(format!("{there} of {}", numbers.len())) }
        })
    }
}

fn publish(gateway: &Gateway, name: &str, topic: &str, count: u64) {
    Publisher::started(gateway.port, name, topic, count, &["--qos", "2"]).wait_until_done();
}

#[test]
fn a_device_of_clearblade_speaks_as_its_documents_want_it_and_its_commands_are_answered() {
    let _turn = turn();
    let place = Place::new("RS256");
    let counterpart = Device::started(Manner::Good);
    let more = format!(
        "[[uplink.cloud.receive]]\nfilter = \"{DEVICE}/commands/#\"\ntopic = \"field/d/{{rest}}/set\"\n\
         answer = \"{DEVICE}/events/answers\"\n\
         [[uplink.cloud.receive]]\nfilter = \"{DEVICE}/config\"\ntopic = \"field/d/limit/set\"\n\
         [modbus.d]\nline = \"{}\"\nunit_id = 1\npoll = \"1s\"\n[modbus.d.point]\n\
         level = {{ address = \"holding:1\", type = \"u16\", write = {{ min = 0, max = 100 }} }}\n\
         limit = {{ address = \"holding:2\", type = \"u16\", write = true }}\n",
        counterpart.url()
    );
    let mut gateway = Gateway::started(place.folder.path(), &(place.tables("") + &more));
    publish(&gateway, "plc", "plant/press", 5);
    publish(&gateway, "plc-2", "plant/state", 1);
    let arrived = place.wait_for(5);
    assert_whole_in_order_and_once("what went up", &arrived, 0..5);
    let answers = format!("{DEVICE}/events/answers");
    for (value, is_fine) in [(5, true), (500, false)] {
        let command = json!({"value": value, "id": value}).to_string();
        place.cloud.script().say.push((format!("{DEVICE}/commands/level"), command));
        let said = wait_until(PATIENCE, "the command is answered", || {
            let said = place.cloud.script().payloads(&answers);
            said.into_iter().find(|answer| answer["id"] == value).ok_or_else(|| "not yet".to_owned())
        });
        assert_eq!(said["ok"], is_fine, "{said}");
    }
    wait_until(PATIENCE, "the state has arrived", || {
        let there = place.cloud.script().numbers(&format!("{DEVICE}/state")).len();
        if there == 1 { Ok(()) } else { Err(format!("{there}")) }
    });
    // The configuration comes with each connection, and is carried out once.
    let is_limit = |pdu: &Vec<u8>| matches!(pdu[0], 6 | 16) && pdu[1..3] == [0, 2];
    let limits = || counterpart.set(|state| state.requests.iter().filter(|pdu| is_limit(pdu)).count());
    wait_until(PATIENCE, "the configuration is written", || if limits() == 1 { Ok(()) } else { Err("no".to_owned()) });
    let subscriptions = place.cloud.script().subscribed.len();
    place.cloud.script().is_away = true;
    gateway.wait_for_status("it is gone", |status| (status["uplinks"]["cloud"]["state"] != "connected").then_some(()));
    place.cloud.script().is_away = false;
    publish(&gateway, "plc-3", "plant/press", 8);
    place.wait_for(8);
    wait_until(PATIENCE, "it has subscribed again", || {
        let again = place.cloud.script().subscribed.len();
        if again == 2 * subscriptions { Ok(()) } else { Err(format!("{again}")) }
    });
    gateway.wait_until_drained();
    gateway.stop();
    assert_eq!(limits(), 1);
    let script = place.cloud.script();
    assert!(script.got.iter().all(|publish| publish.qos <= Qos::AtLeastOnce));
    let status = script.payloads(&format!("{DEVICE}/events/tidegate/{ID}/status"));
    assert!(status.first().unwrap()["state"] == "online" && status.last().unwrap()["state"] == "offline", "{status:?}");
    assert_eq!(script.tokens[0].1 - script.tokens[0].0, 3600);
    let log = gateway.log().join("\n");
    assert!(!log.contains("has not kept the session"), "nobody expected one: {log}");
}

#[test]
fn an_outage_a_kill_and_what_the_cloud_throws_away_lose_nothing() {
    let _turn = turn();
    let place = Place::new("ES256");
    place.cloud.script().is_away = true;
    let mut gateway = Gateway::started(place.folder.path(), &place.tables(""));
    publish(&gateway, "plc", "plant/press", 400);
    assert_eq!(place.cloud.script().got.len(), 0);
    {
        let mut script = place.cloud.script();
        (script.is_away, script.drops) = (false, 2);
    }
    place.wait_for(10);
    gateway.kill();
    gateway.start();
    let arrived = place.wait_for(400);
    gateway.wait_until_drained();
    let mut seen = BTreeSet::new();
    let first: Vec<u64> = arrived.iter().copied().filter(|number| seen.insert(*number)).collect();
    assert_eq!(seen.len(), 400);
    // What was thrown away comes later than its successors, and a kill repeats a window at most.
    assert!(arrived.len() - first.len() <= 20, "{} repeats", arrived.len() - first.len());
    gateway.stop();
}

#[test]
fn a_backlog_goes_up_no_faster_than_512_kib_a_second() {
    let _turn = turn();
    let place = Place::new("ES256");
    place.cloud.script().is_away = true;
    let mut gateway = Gateway::started(place.folder.path(), &place.tables("own_topic = \"\""));
    Publisher::started(gateway.port, "plc", "plant/press", 16, &["--size", "65536"]).wait_until_done();
    place.cloud.script().is_away = false;
    let arrived = place.wait_for(16);
    assert_whole_in_order_and_once("the backlog", &arrived, 0..16);
    {
        // Sent in two seconds; a busy machine makes it longer, and nothing makes it shorter. The first one is free, and what
        // may be saved up is less than another.
        let script = place.cloud.script();
        let took = script.came[15] - script.came[0];
        assert!(took >= Duration::from_millis(1750), "14 times 64 KiB within {took:?}");
    }
    gateway.stop();
}

#[test]
fn a_state_longer_than_64_kib_is_a_dead_letter_and_telemetry_of_that_length_is_none() {
    let _turn = turn();
    let place = Place::new("ES256");
    let mut gateway = Gateway::started(place.folder.path(), &place.tables("own_topic = \"\""));
    let long = |topic: &str, size: &str| {
        Publisher::started(gateway.port, "plc", topic, 1, &["--size", size]).wait_until_done();
    };
    long("plant/state", "65537");
    long("plant/state", "65536");
    long("plant/press", "65537");
    place.wait_for(1);
    gateway.wait_until_drained();
    assert_eq!(place.cloud.script().numbers(&format!("{DEVICE}/state")), [0], "the shorter one");
    assert_eq!(place.cloud.script().connects.len(), 1, "no connection was risked");
    let log = gateway.log().join("\n");
    assert!(log.contains("the payload has 65537 bytes, and ClearBlade IoT Core takes 65536"), "{log}");
    assert_eq!(gateway.status().unwrap()["losses"], json!({"rejected": 1}));
    gateway.stop();
}

#[test]
fn each_refusal_is_told_and_the_messages_go_up_when_it_is_over() {
    let _turn = turn();
    let place = Place::new("ES256");
    let refusals = [
        (No::Code(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID), "the client id is not allowed"),
        (No::Code(ReasonCode::BAD_USER_NAME_OR_PASSWORD), "bad user name or password"),
        (No::Code(ReasonCode::NOT_AUTHORIZED), "not authorised"),
        (No::Thirteen, "CONNACK refuses with the return code 13"),
        (No::Closes, "closed the connection before it answered CONNECT"),
    ];
    place.cloud.script().refuses = Some(refusals[0].0);
    let mut gateway = Gateway::started(place.folder.path(), &place.tables(""));
    publish(&gateway, "plc", "plant/press", 3);
    for (no, words) in refusals {
        place.cloud.script().refuses = Some(no);
        gateway.wait_for_status(words, |status| {
            status["uplinks"]["cloud"]["reason"].as_str().filter(|reason| reason.contains(words)).map(str::to_owned)
        });
    }
    place.cloud.script().refuses = None;
    place.wait_for(3);
    let log = gateway.log();
    assert!(
        !log.iter().any(|line| line.contains("does not allow the own topic")),
        "there is no will to blame: {log:?}"
    );
    assert_eq!(log.iter().filter(|line| line.contains("The uplink cannot connect")).count(), 1, "one outage, one line");
    gateway.stop();

    // A key that is not the one whose public half the cloud has.
    let (other, _) = ecdsa(&place.folder.path().join("cloud"));
    gateway.set_tables(&place.tables("").replace(place.key.to_str().unwrap(), other.to_str().unwrap()));
    gateway.start();
    gateway.wait_for_status("the token is refused", |status| {
        let reason = status["uplinks"]["cloud"]["reason"].as_str()?;
        reason.contains("bad user name or password").then_some(())
    });
    gateway.stop();
    let doctor = Command::new(PROGRAM).args(["doctor", "--config"]).arg(gateway.config_path()).output().unwrap();
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert!(said.contains("public half of the key") && said.contains("clock must be right"), "{said}");
    assert_eq!(place.cloud.script().violations, Vec::<String>::new());
}

#[test]
fn a_board_that_boots_in_1970_shows_no_token_and_comes_by_itself_when_the_time_is_known() {
    let _turn = turn();
    let place = Place::new("ES256");
    let wall = WallClock::right(place.folder.path());
    wall.set("@1970-01-01 00:00:10");
    let mut gateway = Gateway::prepared(place.folder.path(), &place.tables(""));
    wall.unconfirmed(&mut gateway);
    gateway.start_with(&wall.environment());
    publish(&gateway, "plc", "plant/press", 3);
    gateway.wait_for_status("it says what it waits for", |status| {
        let reason = status["uplinks"]["cloud"]["reason"].as_str()?;
        reason.contains("this board's clock was never set").then_some(())
    });
    assert_eq!(place.cloud.script().connects.len(), 0);
    wall.come_right();
    let arrived = place.wait_for(3);
    assert_whole_in_order_and_once("what went up", &arrived, 0..3);
    assert_eq!(place.cloud.script().connects.len(), 1);
    gateway.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_token_ends_the_device_comes_back_with_the_next_one_in_the_middle_of_traffic() {
    let folder = tempfile::tempdir().unwrap();
    let (key, public_key) = ecdsa(folder.path());
    let cloud = Scripted::started(ClearBlade::new("ES256", public_key), None);
    let (key_id, issuer, subject) = (None, None, None);
    let lifetime = Duration::from_secs(4);
    let jwt = Some(JwtConfig { key, key_id, audience: Some("plant-7".to_owned()), issuer, subject, lifetime });
    let gateway = within::Gateway::start(UplinkConfig {
        profile: &CLEARBLADE,
        client_id: CLIENT_ID.to_owned(),
        jwt,
        forward: vec![within::forward("plant/#", "numbers", Some(Qos::ExactlyOnce))],
        receive: Vec::new(),
        ..within::config(cloud.port, Protocol::V311, None)
    });
    let mut sent = 0;
    while cloud.script().tokens.len() < 3 {
        gateway.publish(sent..sent + 5, Qos::ExactlyOnce).await;
        sent += 5;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(sent < 20_000, "it never came back");
    }
    within::until("all settled", || gateway.delivered() >= u64::try_from(sent).unwrap()).await;
    gateway.stop().await;
    let script = cloud.script();
    assert_eq!(script.violations, Vec::<String>::new());
    let arrived: BTreeSet<u64> = script.numbers(&format!("{DEVICE}/events/numbers")).into_iter().collect();
    assert_eq!(arrived.len(), sent);
    // On a busy machine one may be late; that none is waited for shows that it comes by itself.
    assert!(script.expired + 1 < script.tokens.len(), "{} tokens ended of {}", script.expired, script.tokens.len());
    assert!(script.tokens.windows(2).all(|pair| pair[0].1 < pair[1].1), "each token is another: {:?}", script.tokens);
}
