//! Does a board that has nothing but the claim of its lot get a certificate of its own, whatever comes between?
//!
//! The other side is a stand-in for AWS IoT Core that goes by the developer guide; its certificates are signed by openssl,
//! which so judges our request, and what is on the wire is held against what AWS' own library (`awsiotsdk`) says. Injected:
//! refusals, throttling, connections that end between two steps, kills. Survivable, because each step is a file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod aws_support;
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use aws_support::acceptor;
use bytes::{Bytes, BytesMut};
use common::certificates::Certificates;
use common::gateway::{Gateway, ID, folder};
use common::peers::{Publisher, script_in};
use common::{PATIENCE, turn, wait_until};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tidegate::message::{Properties, Qos, Topic};
use tidegate::mqtt::{Ack, Connack, Decoder, Encoder, Packet, PacketId, Publish, ReasonCode, Suback, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// What the cloud makes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Accepts,
    Rejects(i64, &'static str),
    /// It does it, and the connection ends before it has said so.
    DoesAndCloses,
    /// It does nothing and says nothing.
    Silent,
    Closes,
}

#[derive(Default)]
struct State {
    /// For the requests to come; then it accepts.
    certificate_turns: Vec<Turn>,
    thing_turns: Vec<Turn>,
    /// Client id, and whether it came with the claim.
    connects: Vec<(String, bool)>,
    /// Filters and QoS of each SUBSCRIBE.
    subscribed: Vec<(String, Qos)>,
    /// Topic, payload and QoS of what is asked.
    asked: Vec<(String, Bytes, Qos)>,
    /// Token and certificate; true = registered.
    made: Vec<(String, String, bool)>,
    /// Payloads that the registered device has delivered.
    delivered: Vec<String>,
}

struct Cloud {
    port: u16,
    state: Arc<Mutex<State>>,
    _runtime: Runtime,
}

impl Cloud {
    fn started(folder: &Path, certificates: &Certificates) -> Cloud {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let acceptor = acceptor(certificates, &[]);
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let service = Service {
            state: state.clone(),
            folder: folder.to_owned(),
            ca: certificates.ca.clone(),
            ca_key: certificates.ca_key.clone(),
            claim: CertificateDer::from_pem_file(&certificates.client_cert).unwrap(),
        };
        let service = Arc::new(service);
        runtime.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, service) = (acceptor.clone(), service.clone());
                connections.spawn(async move { service.serve(stream, &acceptor).await });
            }
        });
        Cloud { port, state, _runtime: runtime }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    #[track_caller]
    fn wait_for_delivered(&self, count: usize) {
        wait_until(PATIENCE, &format!("{count} messages are delivered"), || {
            let state = self.state();
            let count_there = state.delivered.len();
            if count_there >= count { Ok(()) } else { Err(format!("{count_there}, after {:?}", state.connects)) }
        });
    }
}

struct Service {
    state: Arc<Mutex<State>>,
    folder: PathBuf,
    ca: PathBuf,
    ca_key: PathBuf,
    claim: CertificateDer<'static>,
}

impl Service {
    async fn serve(&self, stream: TcpStream, acceptor: &tokio_rustls::TlsAcceptor) {
        let Ok(mut stream) = acceptor.accept(stream).await else { return };
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
        let mut decoder = Decoder::from_client(1 << 20);
        let mut encoder = Encoder::new(Version::V5);
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        loop {
            if stream.read_buf(&mut input).await.unwrap_or(0) == 0 {
                return;
            }
            let mut is_over = false;
            while let Ok(Some(packet)) = decoder.decode(&mut input) {
                if let Packet::Connect(connect) = &packet {
                    encoder = Encoder::new(connect.version);
                }
                match self.handle(packet, &leaf) {
                    Some(answers) => answers.iter().for_each(|one| encoder.encode(one, &mut output).unwrap()),
                    None => is_over = true,
                }
            }
            if stream.write_all_buf(&mut output).await.is_err() || stream.flush().await.is_err() || is_over {
                stream.shutdown().await.ok();
                return;
            }
        }
    }

    /// `None` = the connection ends.
    fn handle(&self, packet: Packet, leaf: &CertificateDer<'_>) -> Option<Vec<Packet>> {
        let is_claim = *leaf == self.claim;
        let mut state = self.state.lock().unwrap();
        match packet {
            Packet::Connect(connect) => {
                state.connects.push((connect.client_id.clone(), is_claim));
                let is_known = state.made.iter().any(|(_, pem, is_registered)| {
                    *is_registered && CertificateDer::from_pem_slice(pem.as_bytes()).unwrap() == *leaf
                });
                (is_claim || is_known).then(|| vec![Packet::Connack(Box::new(Connack::new(ReasonCode::SUCCESS)))])
            }
            Packet::Subscribe(subscribe) => {
                let filters = subscribe.subscriptions.iter().map(|one| (one.filter.as_str().to_owned(), one.qos));
                state.subscribed.extend(filters);
                let reasons = vec![ReasonCode(1); subscribe.subscriptions.len()];
                Some(vec![Packet::Suback(Suback { packet_id: subscribe.packet_id, reasons })])
            }
            Packet::Publish(publish) => {
                let puback =
                    publish.packet_id.map(|id| Packet::Puback(Ack::new(id, ReasonCode::SUCCESS))).into_iter().collect();
                let topic = publish.topic.unwrap().as_str().to_owned();
                if !is_claim {
                    state.delivered.push(String::from_utf8_lossy(&publish.payload).trim().to_owned());
                    return Some(puback);
                }
                state.asked.push((topic.clone(), publish.payload.clone(), publish.qos));
                self.asked(&mut state, &topic, &publish.payload, puback)
            }
            Packet::Pingreq => Some(vec![Packet::Pingresp]),
            Packet::Disconnect(_) => None,
            _ => Some(Vec::new()),
        }
    }

    fn asked(&self, state: &mut State, topic: &str, payload: &[u8], mut answers: Vec<Packet>) -> Option<Vec<Packet>> {
        let is_cbor = topic.ends_with("/cbor");
        let request: Value = if is_cbor { cbor_text_map(payload) } else { serde_json::from_slice(payload).unwrap() };
        let is_certificate = topic.starts_with("$aws/certificates/create-from-csr/");
        let turns = if is_certificate { &mut state.certificate_turns } else { &mut state.thing_turns };
        let turn = if turns.is_empty() { Turn::Accepts } else { turns.remove(0) };
        let accepted = match turn {
            Turn::Silent => return Some(answers),
            Turn::Closes => return None,
            Turn::Rejects(status, code) => {
                let body = json!({"statusCode": status, "errorCode": code, "errorMessage": "as it was told to"});
                answers.push(message(&format!("{topic}/rejected"), &body, is_cbor));
                return Some(answers);
            }
            Turn::Accepts | Turn::DoesAndCloses if is_certificate => {
                let pem = self.signed(request["certificateSigningRequest"].as_str().unwrap(), state.made.len());
                let token = format!("token-{}", state.made.len());
                state.made.push((token.clone(), pem.clone(), false));
                json!({"certificateOwnershipToken": token, "certificateId": "c0ffee", "certificatePem": pem})
            }
            Turn::Accepts | Turn::DoesAndCloses => {
                let token = request["certificateOwnershipToken"].as_str().unwrap();
                match state.made.iter_mut().find(|(other, _, is_registered)| other == token && !*is_registered) {
                    Some((_, _, is_registered)) => *is_registered = true,
                    None => {
                        let body = json!({"statusCode": 400, "errorCode": "InvalidCertificateOwnershipToken"});
                        answers.push(message(&format!("{topic}/rejected"), &body, is_cbor));
                        return Some(answers);
                    }
                }
                json!({"deviceConfiguration": {"line": "7"}, "thingName": ID})
            }
        };
        if turn == Turn::DoesAndCloses {
            return None;
        }
        answers.push(message(&format!("{topic}/accepted"), &accepted, is_cbor));
        Some(answers)
    }

    /// openssl looks at the request's own signature and signs what is in it.
    fn signed(&self, csr: &str, number: usize) -> String {
        let path = |name: &str| self.folder.join(format!("{name}-{number}"));
        let (request, certificate, extensions) = (path("request"), path("certificate"), path("extensions"));
        fs::write(&extensions, "basicConstraints = CA:FALSE\nextendedKeyUsage = clientAuth\n").unwrap();
        fs::write(&request, csr).unwrap();
        let verified = openssl(&["req", "-in", text(&request), "-noout", "-verify", "-subject"]);
        assert!(verified.contains(ID), "{verified}");
        let words = ["x509", "-req", "-in", text(&request), "-CA", text(&self.ca), "-CAkey", text(&self.ca_key)];
        openssl(
            &[
                &words[..],
                &["-set_serial", "77", "-days", "30", "-extfile", text(&extensions), "-out", text(&certificate)],
            ]
            .concat(),
        );
        fs::read_to_string(certificate).unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn openssl(words: &[&str]) -> String {
    let output = Command::new("openssl").args(words).output().unwrap();
    assert!(output.status.success(), "openssl {words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn message(topic: &str, body: &Value, is_cbor: bool) -> Packet {
    let payload = if is_cbor { cbor(body) } else { body.to_string().into_bytes() };
    Packet::Publish(Publish {
        dup: false,
        retain: false,
        qos: Qos::AtLeastOnce,
        packet_id: PacketId::new(7),
        topic: Some(Topic::new(topic).unwrap()),
        payload: payload.into(),
        properties: Properties::default(),
        topic_alias: None,
        subscription_id: None,
    })
}

/// CBOR with long heads, as some libraries write it: another writer than the gateway's.
fn cbor(value: &Value) -> Vec<u8> {
    let head = |major: u8, count: usize| {
        [vec![major << 5 | 26], u32::try_from(count).unwrap().to_be_bytes().to_vec()].concat()
    };
    match value {
        Value::String(text) => [head(3, text.len()), text.as_bytes().to_vec()].concat(),
        Value::Number(number) => head(0, usize::try_from(number.as_u64().unwrap()).unwrap()),
        Value::Object(map) => {
            let entries = map.iter().flat_map(|(key, value)| [cbor(&json!(key)), cbor(value)].concat());
            [head(5, map.len()), entries.collect()].concat()
        }
        other => panic!("{other}"),
    }
}

/// Reads a map of texts and of maps of texts, by the standard and not by the gateway's code.
fn cbor_text_map(bytes: &[u8]) -> Value {
    fn read(bytes: &[u8], at: &mut usize) -> Value {
        let (major, low) = (bytes[*at] >> 5, bytes[*at] & 31);
        *at += 1;
        let width = match low {
            0..24 => 0,
            24 => 1,
            25 => 2,
            26 => 4,
            other => panic!("{other}"),
        };
        let count = bytes[*at..*at + width].iter().fold(0, |count, byte| count << 8 | usize::from(*byte));
        let count = if width == 0 { usize::from(low) } else { count };
        *at += width;
        match major {
            3 => {
                *at += count;
                json!(std::str::from_utf8(&bytes[*at - count..*at]).unwrap())
            }
            5 => {
                let entries = (0..count).map(|_| {
                    let key = read(bytes, at).as_str().unwrap().to_owned();
                    (key, read(bytes, at))
                });
                Value::Object(entries.collect())
            }
            other => panic!("major type {other}"),
        }
    }
    let mut at = 0;
    let value = read(bytes, &mut at);
    assert_eq!(at, bytes.len());
    value
}

fn tables(cloud: &Cloud, certificates: &Certificates, more: &str, format: &str) -> String {
    format!(
        "[uplink.aws]\nprofile = \"aws-iot\"\nurl = \"mqtts://localhost:{}\"\nca = \"{}\"\nown_topic = \"\"\n\
         reconnect = {{ first = \"200ms\", max = \"1s\" }}\n{more}\n\
         [uplink.aws.provision]\ntemplate = \"lot-7\"\nclaim_cert = \"{}\"\nclaim_key = \"{}\"\nformat = \"{format}\"\n\
         parameters = {{ SerialNumber = \"{{gateway}}\" }}\n\
         [[uplink.aws.forward]]\nfilter = \"plant/#\"\nqos = 1\n",
        cloud.port,
        certificates.ca.display(),
        certificates.client_cert.display(),
        certificates.client_key.display()
    )
}

/// A claim certificate that never is one of a device.
fn claim(folder: &Path) -> Certificates {
    Certificates::make(&folder.join("cloud"), "claim of lot 7")
}

fn kept(gateway: &Gateway) -> PathBuf {
    gateway.state_dir().join("provisioned/aws")
}

fn publish(gateway: &Gateway, name: &str, count: u64) {
    Publisher::started(gateway.port, name, "plant/press", count, &[]).wait_until_done();
}

#[test]
fn a_board_with_the_claim_of_its_lot_gets_a_certificate_of_its_own_and_its_key_stays_at_home() {
    let _turn = turn();
    for (format, protocol) in [("json", "5"), ("cbor", "3.1.1")] {
        let folder = folder();
        let certificates = claim(folder.path());
        let cloud = Cloud::started(folder.path(), &certificates);
        let more = format!("protocol = \"{protocol}\"");
        let mut gateway = Gateway::started(folder.path(), &tables(&cloud, &certificates, &more, format));
        publish(&gateway, "plc", 5);
        cloud.wait_for_delivered(5);
        assert_eq!(cloud.state().delivered, ["0", "1", "2", "3", "4"]);
        assert_eq!(cloud.state().connects, [(ID.to_owned(), true), (ID.to_owned(), false)]);

        let place = kept(&gateway);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&place), 0o700);
        let mut names: Vec<String> = fs::read_dir(&place)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                assert_eq!(mode(&entry.path()), 0o600, "{entry:?}");
                entry.file_name().into_string().unwrap()
            })
            .collect();
        names.sort();
        assert_eq!(names, ["cert.pem", "key.pem", "thing.json"]);
        let thing: Value = serde_json::from_slice(&fs::read(place.join("thing.json")).unwrap()).unwrap();
        assert_eq!(thing, json!({"thingName": ID, "certificateId": "c0ffee", "deviceConfiguration": {"line": "7"}}));
        // The request is for the key that stayed, and says nothing of it but its public half.
        let public = |words: &[&str]| openssl(&[words, &["-pubkey", "-noout"]].concat());
        let of_request = public(&["req", "-in", text(&folder.path().join("request-0"))]);
        assert_eq!(openssl(&["pkey", "-in", text(&place.join("key.pem")), "-pubout"]), of_request);
        for (_, payload, _) in &cloud.state().asked {
            assert!(!String::from_utf8_lossy(payload).contains("PRIVATE"));
        }
        let log = gateway.log().join("\n");
        assert!(log.contains("has got a certificate of its own") && !log.contains("PRIVATE"), "{log}");

        // After a restart it is what it is.
        gateway.stop();
        gateway.start();
        publish(&gateway, "plc-2", 1);
        cloud.wait_for_delivered(6);
        // And on another board that takes its place.
        gateway.stop();
        let mut second = Gateway::named("second", folder.path(), &tables(&cloud, &certificates, &more, format));
        gateway.restored_as(&second);
        assert_eq!((mode(&kept(&second).join("key.pem")), mode(&kept(&second))), (0o600, 0o700));
        second.start();
        publish(&second, "plc-3", 1);
        cloud.wait_for_delivered(7);
        let state = cloud.state();
        assert_eq!((state.made.len(), state.connects.iter().filter(|(_, is_claim)| *is_claim).count()), (1, 1));
    }
}

#[test]
fn what_is_on_the_wire_is_what_the_library_of_aws_says() {
    let _turn = turn();
    let folder = folder();
    let certificates = claim(folder.path());
    let cloud = Cloud::started(folder.path(), &certificates);
    let gateway = Gateway::started(folder.path(), &tables(&cloud, &certificates, "", "json"));
    publish(&gateway, "plc", 1);
    cloud.wait_for_delivered(1);
    let of = |state: &State| {
        let subscribed: BTreeMap<String, Qos> = state.subscribed.iter().cloned().collect();
        let asked: Vec<(String, Value, Qos)> = state
            .asked
            .iter()
            .map(|(topic, payload, qos)| (topic.clone(), serde_json::from_slice(payload).unwrap(), *qos))
            .collect();
        (subscribed, asked)
    };
    let ours = of(&cloud.state());
    assert_eq!((ours.0.len(), ours.1.len()), (4, 2));

    // The library says it to a cloud of its own, with the same request and the same token.
    let other = Cloud::started(folder.path(), &certificates);
    let (port, request) = (other.port.to_string(), folder.path().join("request-0"));
    let files = [&certificates.ca, &certificates.client_cert, &certificates.client_key].map(|path| text(path));
    let words = [&[port.as_str()][..], &files, &[ID, "lot-7", text(&request), "token-0", ID]].concat();
    assert_eq!(script_in("venv-aws", "aws_provisioning", &words), ["done"]);
    assert_eq!(of(&other.state()), ours);
}

#[test]
fn a_refusal_is_told_and_tried_again_and_does_not_make_certificates_without_end() {
    let _turn = turn();
    let folder = folder();
    let certificates = claim(folder.path());
    let cloud = Cloud::started(folder.path(), &certificates);
    cloud.state().certificate_turns =
        vec![Turn::Closes, Turn::Rejects(429, "Throttled"), Turn::Rejects(500, "InternalError")];
    cloud.state().thing_turns =
        vec![Turn::Rejects(429, "Throttled"), Turn::Closes, Turn::Rejects(400, "InvalidParameters")];
    let gateway = Gateway::started(folder.path(), &tables(&cloud, &certificates, "", "json"));
    gateway.wait_for_status("the refusal is shown", |status| {
        let uplink = &status["uplinks"]["aws"];
        uplink["reason"].as_str().filter(|reason| reason.contains("not provisioned yet")).map(str::to_owned)
    });
    publish(&gateway, "plc", 3);
    cloud.wait_for_delivered(3);
    let log = gateway.log().join("\n");
    for said in [
        "rejects the certificate: Throttled (429)",
        "rejects the certificate: InternalError (500)",
        "rejects the thing: Throttled (429)",
        "rejects the thing: InvalidParameters (400): \\\"as it was told to",
        "closed the connection while the answer about the certificate",
        "closed the connection while the answer about the thing",
    ] {
        assert!(log.contains(said), "{said:?} is missing in\n{log}");
    }
    let state = cloud.state();
    // One for which the thing was refused for good, and the one that it has.
    assert_eq!(state.made.iter().map(|(_, _, is_registered)| *is_registered).collect::<Vec<_>>(), [false, true]);
    let tries = state.asked.iter().filter(|(topic, ..)| topic.contains("create-from-csr")).count();
    assert_eq!((tries, state.asked.len() - tries), (5, 4));
}

/// Kills the gateway when the cloud has been asked `asked` things, and starts it again.
fn killed_after(certificate_turns: &[Turn], thing_turns: &[Turn], asked: usize) -> (usize, usize) {
    let folder = folder();
    let certificates = claim(folder.path());
    let cloud = Cloud::started(folder.path(), &certificates);
    cloud.state().certificate_turns = certificate_turns.to_vec();
    cloud.state().thing_turns = thing_turns.to_vec();
    // The next attempt is that of the next process.
    let slow = tables(&cloud, &certificates, "", "json").replace("200ms", "300s").replace("\"1s\"", "\"300s\"");
    let mut gateway = Gateway::started(folder.path(), &slow);
    publish(&gateway, "plc", 2);
    wait_until(PATIENCE, "the cloud is asked", || {
        let so_far = cloud.state().asked.len();
        if so_far >= asked { Ok(()) } else { Err(format!("{so_far}")) }
    });
    gateway.kill();
    let key = fs::read(kept(&gateway).join("key.pem")).unwrap();
    gateway.start();
    cloud.wait_for_delivered(2);
    assert_eq!(fs::read(kept(&gateway).join("key.pem")).unwrap(), key, "the key is made once");
    assert_eq!(cloud.state().delivered, ["0", "1"]);
    let state = cloud.state();
    let registered = state.made.iter().filter(|(_, _, is_registered)| *is_registered).count();
    (state.made.len(), registered)
}

#[test]
fn a_kill_between_any_two_steps_ends_in_one_identity() {
    let _turn = turn();
    use Turn::{Accepts, DoesAndCloses, Silent};
    // Asked for a certificate and heard nothing: it was not made, or it was and is forgotten.
    assert_eq!(killed_after(&[Silent], &[], 1), (1, 1));
    assert_eq!(killed_after(&[DoesAndCloses], &[], 1), (2, 1));
    // The certificate is kept, and the thing was not made: with the same certificate.
    assert_eq!(killed_after(&[Accepts], &[Silent], 2), (1, 1));
    // The thing was made and nobody heard: its certificate is found to be good.
    assert_eq!(killed_after(&[Accepts], &[DoesAndCloses], 2), (1, 1));
}
