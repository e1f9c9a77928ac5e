//! Does `tidegate doctor` name what is wrong between a gateway and its cloud, and what to change?
//!
//! Thirty-four mistakes as people make them, against Debian's Mosquitto, a stand-in for AWS IoT Core, a proxy and servers that
//! are no brokers; and the same set up rightly, where nothing may be wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod aws_support;
mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_support::{Aws, Rules};
use base64ct::{Base64UrlUnpadded, Encoding as _};
use common::certificates::Certificates;
use common::cloud::{Access, Mosquitto};
use common::enhanced::{Mqtt5, ScramStandIn};
use common::faketime::WallClock;
use common::gateway::{Gateway, ID, PROGRAM, folder};
use common::proxy::Proxy;
use common::{port, turn};
use rcgen::{SanType, date_time_ymd};
use serde_json::{Value, json};

/// What was said, and the exit status.
struct Told {
    text: String,
    code: i32,
}

struct Place {
    folder: tempfile::TempDir,
    certificates: Certificates,
    environment: Vec<(String, String)>,
    state_dir: Option<PathBuf>,
}

impl Place {
    fn new() -> Place {
        Place::with(|folder| Certificates::make(&folder.join("cloud"), ID))
    }

    fn with(make: impl Fn(&Path) -> Certificates) -> Place {
        let folder = folder();
        let certificates = make(folder.path());
        Place { folder, certificates, environment: Vec::new(), state_dir: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn secret(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        self.path(name).display().to_string()
    }

    /// The keys that make Mosquitto and the stand-in content.
    fn files(&self) -> String {
        let Certificates { ca, client_cert, client_key, .. } = &self.certificates;
        format!("ca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n", ca.display(), client_cert.display(), client_key.display())
    }

    fn ca(&self) -> String {
        format!("ca = \"{}\"\n", self.certificates.ca.display())
    }

    fn config(&self, keys: &str) -> PathBuf {
        let state_dir = self.state_dir.clone().unwrap_or_else(|| self.path("state"));
        fs::create_dir_all(&state_dir).unwrap();
        let file = self.path("tidegate.toml");
        let gateway = format!(
            "[gateway]\nid = \"{ID}\"\nclock = \"trust\"\nstate_dir = \"{}\"\n[broker.listener.local]\nbind = \"127.0.0.1:{}\"\n",
            state_dir.display(),
            port::free()
        );
        fs::write(&file, format!("{gateway}[uplink.cloud]\n{keys}\n")).unwrap();
        file
    }

    fn doctor(&self, keys: &str) -> Told {
        let mut command = Command::new(PROGRAM);
        command.args(["doctor", "--config"]).arg(self.config(keys));
        let output = command.envs(self.environment.iter().cloned()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
            .to_lowercase();
        Told { text, code: output.status.code().unwrap() }
    }

    /// Mosquitto with a port for TLS that asks for a certificate, and a plain one.
    fn mosquitto(&self, asks_for_client: bool) -> Mosquitto {
        let access = Access::Tls { certificates: self.certificates.clone(), asks_for_client };
        let mut cloud = Mosquitto::prepared(self.folder.path(), access);
        cloud.start();
        cloud
    }
}

fn tls(cloud: &Mosquitto) -> String {
    format!("url = \"mqtts://localhost:{}\"\n", cloud.tls_port.unwrap())
}

/// A server that says this to whoever comes, for the life of the test process.
fn babbler(says: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            client.write_all(says).ok();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).ok();
        }
    });
    port
}

/// The policy that `check` prints, with what `change` takes away.
fn policy(place: &Place, keys: &str, change: impl Fn(&str) -> bool) -> Value {
    let output =
        Command::new(PROGRAM).args(["check", "--aws-policy", "--config"]).arg(place.config(keys)).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut policy: Value = serde_json::from_slice(&output.stdout).unwrap();
    for statement in policy["Statement"].as_array_mut().unwrap() {
        statement["Resource"].as_array_mut().unwrap().retain(|arn| change(arn.as_str().unwrap()));
    }
    policy
}

const AWS: &str = "profile = \"aws-iot\"\n[[uplink.cloud.forward]]\nfilter = \"plant/#\"\n\
                   [[uplink.cloud.receive]]\nfilter = \"commands/+/set\"\n";

fn aws_keys(place: &Place, port: u16) -> String {
    format!("url = \"mqtts://localhost:{port}\"\n{}{AWS}", place.files())
}

#[track_caller]
fn expect(number: usize, told: &Told, code: i32, words: &[&str]) {
    for word in words {
        assert!(told.text.contains(word), "mistake {number}: {word:?} is not in\n{}", told.text);
    }
    assert_eq!(told.code, code, "mistake {number}:\n{}", told.text);
    assert!(told.text.contains("help: "), "mistake {number}: nothing says what to change\n{}", told.text);
}

const CONFIG: i32 = 78;
const AGAIN: i32 = 75;

#[test]
fn mistakes_of_names_ports_and_tls_are_named() {
    let _turn = turn();
    let place = Place::new();
    let cloud = place.mosquitto(true);
    let keys = |url: &str, files: &str| format!("url = \"{url}\"\n{files}");

    let told = place.doctor(&keys("mqtts://broker.invalid", &place.files()));
    expect(1, &told, AGAIN, &["cannot find the address of broker.invalid", "name server"]);
    let told = place.doctor(&keys(&format!("mqtts://localhost:{}", port::free()), &place.files()));
    expect(2, &told, AGAIN, &["cannot connect to localhost", "is the port right"]);
    let told = place.doctor(&keys(&format!("mqtt://localhost:{}", cloud.tls_port.unwrap()), ""));
    expect(3, &told, CONFIG, &["closed the connection on connect", "write mqtts://"]);
    let told = place.doctor(&keys(&format!("mqtts://localhost:{}", cloud.port), &place.files()));
    expect(4, &told, CONFIG, &["write mqtt://"]);
    let other = Certificates::make(&place.path("other"), ID);
    let told = place.doctor(&(tls(&cloud) + &place.files().replace("/cloud/ca.pem", "/other/ca.pem")));
    expect(5, &told, CONFIG, &["not signed by a trusted root", "`ca` must be the file"]);
    let told = place.doctor(&(tls(&cloud) + &place.ca()));
    expect(6, &told, CONFIG, &["client certificate", "write `cert` and `key`"]);
    let foreign = format!("cert = \"{}\"\nkey = \"{}\"\n", other.client_cert.display(), other.client_key.display());
    let told = place.doctor(&(tls(&cloud) + &place.ca() + &foreign));
    expect(7, &told, CONFIG, &["refused the client certificate", "knows another authority"]);
    let halves =
        format!("cert = \"{}\"\nkey = \"{}\"\n", other.client_cert.display(), place.certificates.client_key.display());
    let told = place.doctor(&(tls(&cloud) + &place.ca() + &halves));
    expect(8, &told, CONFIG, &["the key does not belong to the certificate"]);
    fs::set_permissions(&other.client_key, fs::Permissions::from_mode(0o644)).unwrap();
    let told = place.doctor(&(tls(&cloud) + &place.ca() + &foreign));
    expect(9, &told, CONFIG, &["others can read or change", "chmod"]);

    let told = place.doctor(&(tls(&cloud) + &place.files()));
    assert_eq!(told.code, 0, "the control, where all is right:\n{}", told.text);
    assert!(told.text.contains("nothing is wrong."), "{}", told.text);
}

#[test]
fn certificates_out_of_their_time_and_a_clock_out_of_its_are_told_apart() {
    let _turn = turn();
    let ended = |parameters: &mut rcgen::CertificateParams| parameters.not_after = date_time_ymd(2020, 1, 1);
    let place = Place::with(|folder| Certificates::make_with(&folder.join("cloud"), ID, ended, |_| {}));
    let cloud = place.mosquitto(true);
    let told = place.doctor(&(tls(&cloud) + &place.files()));
    expect(10, &told, CONFIG, &["the server's certificate has expired", "must renew it"]);

    let renamed = |parameters: &mut rcgen::CertificateParams| {
        parameters.subject_alt_names = vec![SanType::DnsName("broker.example.com".try_into().unwrap())];
    };
    let place = Place::with(|folder| Certificates::make_with(&folder.join("cloud"), ID, renamed, |_| {}));
    let cloud = place.mosquitto(true);
    let told = place.doctor(&(tls(&cloud) + &place.files()));
    expect(11, &told, CONFIG, &["for another name", "must have the name that stands in the certificate"]);

    let place = Place::with(|folder| Certificates::make_with(&folder.join("cloud"), ID, |_| {}, ended));
    let cloud = place.mosquitto(true);
    let told = place.doctor(&(tls(&cloud) + &place.files()));
    expect(12, &told, CONFIG, &["`cert` (", "has expired on 2020-01-01", "renew it"]);

    let begun = |parameters: &mut rcgen::CertificateParams| parameters.not_before = date_time_ymd(2026, 2, 1);
    let mut place = Place::with(|folder| Certificates::make_with(&folder.join("cloud"), ID, begun, begun));
    let cloud = place.mosquitto(true);
    let clock = WallClock::right(place.folder.path());
    clock.set("@1970-01-01 00:10:00");
    place.environment =
        clock.environment().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let told = place.doctor(&(tls(&cloud) + &place.files()));
    expect(13, &told, CONFIG, &["this board's clock was never set", "time service", "not valid yet"]);
}

#[test]
fn mistakes_of_users_tokens_paths_and_proxies_are_named() {
    let _turn = turn();
    let place = Place::new();
    let access = Access::Password { user: "hall", password: "correct horse" };
    let mut cloud = Mosquitto::prepared(place.folder.path(), access);
    cloud.start();
    let url = format!("url = \"mqtt://127.0.0.1:{}\"\nusername = \"hall\"\n", cloud.port);
    let wrong = place.secret("wrong", "correct house\n");
    let told = place.doctor(&format!("{url}password_file = \"{wrong}\""));
    expect(14, &told, CONFIG, &["the cloud refused the connection"]);
    let body = Base64UrlUnpadded::encode_string(br#"{"exp":1700000000}"#);
    let token = place.secret("token", &format!("e30.{body}.c2ln\n"));
    let told = place.doctor(&format!("{url}password_file = \"{token}\""));
    expect(15, &told, CONFIG, &["has ended on 2023-11-14", "sign"]);
    let told = place.doctor(&format!("url = \"ws://127.0.0.1:{}/mqtt\"", cloud.port));
    expect(16, &told, CONFIG, &["is no websocket of mqtt", "is the path in `url` right"]);
    let web = babbler(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let told = place.doctor(&format!("url = \"mqtt://127.0.0.1:{web}\""));
    expect(17, &told, CONFIG, &["what answers is not mqtt", "is the port right"]);
    let proxy = Proxy::started(Some(("hall", "correct horse")), Some(cloud.port));
    let told = place.doctor(&format!("{url}proxy = {{ url = \"http://127.0.0.1:{}\" }}", proxy.port));
    expect(18, &told, CONFIG, &["the proxy wants a user name and a password"]);
    let proxy = Proxy::started(None, None);
    let told = place.doctor(&format!("{url}proxy = {{ url = \"http://127.0.0.1:{}\" }}", proxy.port));
    expect(19, &told, CONFIG, &["the proxy refused the connection: 403", "port 443 often may"]);

    let right = place.secret("right", "correct horse\n");
    let told = place.doctor(&format!("{url}password_file = \"{right}\""));
    assert_eq!(told.code, 0, "the control:\n{}", told.text);
}

#[test]
fn mistakes_of_a_login_by_scram_are_named_and_a_server_that_proves_nothing_is() {
    let _turn = turn();
    let place = Place::new();
    let mut cloud = Mqtt5::with_scram(place.folder.path(), "hall", "correct horse", 4096);
    cloud.start();
    let right = place.secret("right", "correct horse\n");
    let wrong = place.secret("wrong", "correct house\n");
    let login = |port: u16, method: &str, user: &str, file: &str| {
        format!(
            "url = \"mqtt://127.0.0.1:{port}\"\nauth_method = \"{method}\"\nusername = \"{user}\"\npassword_file = \"{file}\""
        )
    };
    let look_at = "look at `username` and the first line of `password_file`";
    let told = place.doctor(&login(cloud.port, "SCRAM-SHA-256", "hall", &wrong));
    expect(28, &told, CONFIG, &["not authorised (0x87)", look_at]);
    let told = place.doctor(&login(cloud.port, "SCRAM-SHA-256", "hell", &right));
    expect(29, &told, CONFIG, &["not authorised (0x87)", look_at]);
    let told = place.doctor(&login(cloud.port, "SCRAM-SHA-512", "hall", &right));
    expect(30, &told, CONFIG, &["it knows no such method of logging in (0x8c)", "write another one"]);
    let told = place.doctor(&login(cloud.port, "SCRAM-SHA-256", "hall", &right));
    assert_eq!(told.code, 0, "the control:\n{}", told.text);

    let stranger = ScramStandIn::started("sha256", "stranger");
    let right = place.secret("other", &format!("{}\n", ScramStandIn::PASSWORD));
    let told = place.doctor(&login(stranger.port, "SCRAM-SHA-256", ScramStandIn::USER, &right));
    expect(31, &told, CONFIG, &["has not proved that it knows the password", "may be another than your broker"]);
    assert_eq!(stranger.packets(), ["CONNECT", "AUTH"], "and is told nothing more");
}

#[test]
fn mistakes_at_aws_are_named_by_the_rule_that_is_broken() {
    let _turn = turn();
    let place = Place::new();
    let aws = Aws::started(&place.certificates, &["x-amzn-mqtt-ca"], Rules::default());
    let keys = aws_keys(&place, aws.port);
    let told = place.doctor(&keys.replace("profile =", "alpn = \"x-amzn-mqtt\"\nprofile ="));
    expect(20, &told, CONFIG, &["none of the protocols in `alpn`", "leave it out"]);
    let told = place
        .doctor(&keys.replace("filter = \"plant/#\"", "filter = \"plant/#\"\ntopic = \"1/2/3/4/5/6/7/8/9/{rest}\""));
    expect(21, &told, CONFIG, &["slashes, and aws iot core takes 7"]);
    let batch = "filter = \"plant/#\"\npayload = \"json-batch\"\nbatch = { bytes = \"200 KiB\" }";
    let told = place.doctor(&keys.replace("filter = \"plant/#\"", batch));
    expect(22, &told, CONFIG, &["200 kib", "128 kib"]);

    // From here on the policy lacks something. A client comes once a second at most.
    let judged = |keep: &dyn Fn(&str) -> bool| {
        aws.rules().policy = Some(policy(&place, &keys, keep));
        aws.expect_another_process();
        let told = place.doctor(&keys);
        assert_eq!(aws.seen().violations, Vec::<String>::new());
        told
    };
    let told = judged(&|arn| !arn.contains(":client/"));
    expect(23, &told, CONFIG, &["closed the connection on connect", "iot:connect", "--aws-policy"]);
    let told = judged(&|arn| !arn.contains(":topicfilter/"));
    expect(24, &told, CONFIG, &["does not allow \"commands/+/set\"", "iot:subscribe"]);
    let told = judged(&|arn| !arn.contains("/status"));
    expect(25, &told, CONFIG, &["does not take the will for tidegate/hall-3/status", "--aws-policy"]);
    let told = judged(&|arn| !arn.contains("/gap"));
    expect(26, &told, CONFIG, &["closed the connection on tidegate/hall-3/gap", "--aws-policy"]);

    let told = judged(&|_| true);
    assert_eq!(told.code, 0, "the control:\n{}", told.text);
    for word in
        ["it announces 100 in flight, packets of 149504 bytes, qos 1", "tls 1.3", "tidegate/hall-3/gap at qos 1"]
    {
        assert!(told.text.contains(word), "{word}:\n{}", told.text);
    }
}

#[test]
fn tokens_of_azure_that_are_over_are_named_before_the_cloud_refuses_them_and_a_way_that_it_does_not_take() {
    let _turn = turn();
    let place = Place::new();
    let cloud = place.mosquitto(false);
    let jwt = |exp: u64| {
        format!("e30.{}.c2ln\n", Base64UrlUnpadded::encode_string(json!({ "exp": exp }).to_string().as_bytes()))
    };
    let keys = |profile: &str, token: &str| {
        let file = place.secret("azure", token);
        format!("{}{}profile = \"{profile}\"\npassword_file = \"{file}\"\n", tls(&cloud), place.ca())
    };
    let told = place.doctor(&(keys("azure-event-grid", &jwt(1_700_000_000)) + "auth_method = \"CUSTOM-JWT\""));
    expect(32, &told, CONFIG, &["has ended on 2023-11-14", "must put a new one there"]);
    let told = place.doctor(&(keys("azure-event-grid", &jwt(4_000_000_000)) + "auth_method = \"CUSTOM-JWT\""));
    expect(
        33,
        &told,
        CONFIG,
        &["it knows no such method of logging in", "who has signed it, for whom, and until when"],
    );
    let signature = "SharedAccessSignature sr=localhost%2Fdevices%2Fhall-3&sig=c2ln&se=1700000000\n";
    let told = place.doctor(&keys("azure-iot-hub", signature));
    expect(34, &told, CONFIG, &["has ended on 2023-11-14", "must put a new one there"]);
}

#[test]
fn a_store_in_memory_is_named_because_it_keeps_no_promise() {
    let _turn = turn();
    let mut place = Place::new();
    let cloud = place.mosquitto(true);
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    place.state_dir = Some(memory.path().to_owned());
    let told = place.doctor(&(tls(&cloud) + &place.files()));
    expect(27, &told, CONFIG, &["stands in memory", "set `state_dir`"]);
}

#[test]
fn beside_a_gateway_that_is_connected_the_doctor_does_not_throw_it_out() {
    let _turn = turn();
    let place = Place::new();
    let aws = Aws::started(&place.certificates, &[], Rules::default());
    let mut gateway = Gateway::started(place.folder.path(), &format!("[uplink.cloud]\n{}", aws_keys(&place, aws.port)));
    gateway.wait_until_connected();
    // The stand-in serves one connection at a time, so that a second handshake waits: the doctor is asked about another port
    // that leads to a server of the same certificate.
    let second = Aws::started(&place.certificates, &[], Rules::default());
    let text = fs::read_to_string(gateway.config_path()).unwrap();
    let beside = place.path("beside.toml");
    fs::write(&beside, text.replace(&aws.port.to_string(), &second.port.to_string())).unwrap();
    let output = Command::new(PROGRAM).args(["doctor", "--config"]).arg(&beside).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("the running gateway is connected with this client id"), "{said}");
    assert_eq!(output.status.code(), Some(0), "{said}");
    {
        let seen = second.seen();
        assert_eq!((seen.handshakes.len(), seen.connects.len()), (1, 0), "{said}");
    }
    let status = gateway.status().unwrap();
    assert_eq!(status["uplinks"]["cloud"]["state"], json!("connected"));
    assert_eq!(aws.seen().connects.len(), 1);
    gateway.stop();
}
