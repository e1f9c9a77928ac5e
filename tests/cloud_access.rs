//! Getting in at the cloud: names, roots, passwords, client certificates. What is wrong is said, and costs no message.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::account::assert_whole_in_order_and_once;
use common::certificates::Certificates;
use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::peers::{Publisher, Subscriber};
use common::proxy::Proxy;
use common::relay::Relay;
use common::{PATIENCE, namespace, turn, wait_for};

const COUNT: u64 = 50;

fn publish(gateway: &Gateway) {
    let mut publisher = Publisher::started(gateway.port, "client", "plant/press", COUNT, &[]);
    publisher.wait_until_done();
}

#[track_caller]
fn expect_all(application: &mut Subscriber) {
    application.wait_for_count("factory7/plant/press", usize::try_from(COUNT).unwrap());
    let arrived = application.numbers_on("factory7/plant/press");
    assert_whole_in_order_and_once("published before the uplink was let in", &arrived, 0..COUNT);
}

#[track_caller]
fn reason_of(gateway: &Gateway) -> String {
    gateway.wait_for_status("the uplink says why it is not connected", |status| {
        let cloud = &status["uplinks"]["cloud"];
        assert_ne!(cloud["state"], "connected");
        cloud["reason"].as_str().map(str::to_lowercase)
    })
}

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_cloud_with_a_certificate_of_another_authority_is_refused_with_the_reason_and_nothing_is_lost() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), "unused");
    let right_ca = certificates.ca.clone();
    let other = Certificates::make(&folder.path().join("other"), "unused");
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: false });
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let url = format!("mqtts://127.0.0.1:{}", cloud.tls_port.unwrap());
    let tables = |ca: &Path| uplink(&url, &format!("ca = \"{}\"", ca.display())) + FORWARD_PLANT;

    let mut gateway = Gateway::started(folder.path(), &tables(&other.ca));
    publish(&gateway);
    let reason = reason_of(&gateway);
    assert!(reason.contains("certificate"), "{reason}");
    assert_eq!(application.received().len(), 0, "nothing goes to a cloud that cannot prove its name");

    gateway.stop();
    gateway.set_tables(&tables(&right_ca));
    gateway.start();
    expect_all(&mut application);
}

#[test]
fn without_a_ca_of_its_own_the_uplink_trusts_the_roots_of_the_system_and_no_other() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), "unused");
    let system = certificates.ca.clone();
    let other = Certificates::make(&folder.path().join("other"), "unused");
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: false });
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let url = format!("mqtts://127.0.0.1:{}", cloud.tls_port.unwrap());
    let mut gateway = Gateway::prepared(folder.path(), &(uplink(&url, "") + FORWARD_PLANT));
    // What OpenSSL's variable names stands in for the system's store, here and for every program that uses that store.
    gateway.start_with(&[("SSL_CERT_FILE", other.ca.to_str().unwrap())]);
    publish(&gateway);
    let reason = reason_of(&gateway);
    assert!(reason.contains("certificate"), "{reason}");

    gateway.stop();
    gateway.start_with(&[("SSL_CERT_FILE", system.to_str().unwrap())]);
    expect_all(&mut application);
}

#[test]
fn a_cloud_whose_certificate_bears_another_name_is_refused() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), "unused");
    let ca = certificates.ca.clone();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: false });
    cloud.start();
    // 127.0.0.1 and localhost are in the certificate, 127.0.0.2 is not; both reach the same Mosquitto only by a proxy,
    // so a relay stands at the other address.
    let relay = common::relay::Relay::started("127.0.0.2", cloud.tls_port.unwrap());
    let tables = uplink(&format!("mqtts://127.0.0.2:{}", relay.port), &format!("ca = \"{}\"", ca.display()));
    let gateway = Gateway::started(folder.path(), &(tables + FORWARD_PLANT));
    let reason = reason_of(&gateway);
    assert!(reason.contains("name") || reason.contains("127.0.0.2"), "{reason}");
}

#[test]
fn a_plain_address_of_a_tls_port_is_told_with_what_to_write() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), "unused");
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: false });
    cloud.start();
    let url = format!("mqtt://127.0.0.1:{}", cloud.tls_port.unwrap());
    let gateway = Gateway::started(folder.path(), &(uplink(&url, "") + FORWARD_PLANT));
    let reason = reason_of(&gateway);
    assert!(reason.contains("write mqtts://"), "{reason}");
}

#[test]
fn a_wrong_password_is_told_and_the_right_one_delivers_what_waited() {
    let _turn = turn();
    let folder = folder();
    let access = Access::Password { user: "hall", password: "correct horse" };
    let mut cloud = Mosquitto::prepared(folder.path(), access);
    cloud.start();
    let mut application = Subscriber::started_with(
        cloud.port,
        "application",
        &["factory7/#"],
        &["--user", "hall", "--password", "correct horse"],
    );
    let password_file = folder.path().join("password");
    secret(&password_file, "wrong\n");
    let more = format!("username = \"hall\"\npassword_file = \"{}\"", password_file.display());
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), &more) + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    publish(&gateway);
    let reason = reason_of(&gateway);
    assert!(reason.contains("authori") || reason.contains("password"), "{reason}");
    assert!(!reason.contains("wrong\n") && gateway.log().iter().all(|line| !line.contains("correct horse")));

    gateway.stop();
    secret(&password_file, "correct horse\n");
    gateway.start();
    expect_all(&mut application);
}

#[test]
fn a_client_certificate_lets_the_gateway_in_and_none_does_not() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), "hall-3");
    let Certificates { ca, client_cert, client_key, .. } = &certificates;
    let without = format!("ca = \"{}\"", ca.display());
    let with = format!("{without}\ncert = \"{}\"\nkey = \"{}\"", client_cert.display(), client_key.display());
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: true });
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    // By name: it may stand for ::1 too, where nobody listens.
    let url = format!("mqtts://localhost:{}", cloud.tls_port.unwrap());

    let mut gateway = Gateway::started(folder.path(), &(uplink(&url, &without) + FORWARD_PLANT));
    publish(&gateway);
    let reason = reason_of(&gateway);
    assert!(!reason.is_empty());

    gateway.stop();
    gateway.set_tables(&(uplink(&url, &with) + FORWARD_PLANT));
    gateway.start();
    expect_all(&mut application);
    assert!(cloud.log().contains("u'hall-3'"), "Mosquitto knows it by its certificate: {}", cloud.log());
}

#[test]
fn a_list_of_addresses_is_tried_in_turn() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let nobody = common::port::free();
    let tables = format!(
        "[uplink.cloud]\nurl = [\"mqtt://127.0.0.1:{nobody}\", \"mqtt://127.0.0.1:{}\"]\nreconnect = {{ first = \"200ms\", max = \"1s\" }}\n",
        cloud.port
    );
    let gateway = Gateway::started(folder.path(), &(tables + FORWARD_PLANT));
    publish(&gateway);
    expect_all(&mut application);
}

#[test]
fn a_websocket_with_tls_is_a_way_to_mosquitto() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), "unused");
    let ca = format!("ca = \"{}\"", certificates.ca.display());
    let port = common::port::free();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let (cert, key) = (certificates.server_cert.display(), certificates.server_key.display());
    for line in
        [&format!("listener {port}"), "protocol websockets", &format!("certfile {cert}"), &format!("keyfile {key}")]
    {
        cloud.configure(line);
    }
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let tables = uplink(&format!("wss://localhost:{port}/mqtt"), &ca) + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    publish(&gateway);
    expect_all(&mut application);

    // Mosquitto's plain port answers no HTTP: that is said, and nothing is lost.
    gateway.stop();
    gateway.set_tables(&(uplink(&format!("ws://127.0.0.1:{}/mqtt", cloud.port), "") + FORWARD_PLANT));
    gateway.start();
    let reason = reason_of(&gateway);
    assert!(reason.contains("no websocket of mqtt"), "{reason}");
}

#[test]
fn through_a_proxy_the_cloud_is_reached_by_a_name_that_only_the_proxy_knows() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), "unused");
    let ca = format!("ca = \"{}\"", certificates.ca.display());
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: false });
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let proxy = Proxy::started(Some(("hall", "correct horse")), cloud.tls_port);
    let password_file = folder.path().join("proxy-password");
    secret(&password_file, "wrong\n");
    let more = format!(
        "{ca}\nproxy = {{ url = \"http://127.0.0.1:{}\", username = \"hall\", password_file = \"{}\" }}",
        proxy.port,
        password_file.display()
    );
    // The certificate is for cloud.example, which no resolver knows.
    let tables = uplink("mqtts://cloud.example", &more) + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    publish(&gateway);
    let reason = reason_of(&gateway);
    assert!(reason.contains("the proxy wants a user name and a password"), "{reason}");
    assert_eq!(proxy.asked(), Vec::<String>::new());

    secret(&password_file, "correct horse\n");
    expect_all(&mut application);
    assert_eq!(proxy.asked().first().map(String::as_str), Some("CONNECT cloud.example:8883 HTTP/1.1"));

    gateway.stop();
    let refusing = Proxy::started(None, None);
    let more = format!("{ca}\nproxy = {{ url = \"http://127.0.0.1:{}\" }}", refusing.port);
    gateway.set_tables(&(uplink("mqtts://cloud.example", &more) + FORWARD_PLANT));
    gateway.start();
    let reason = reason_of(&gateway);
    assert!(reason.contains("the proxy refused the connection: 403 forbidden"), "{reason}");
}

#[test]
fn a_certificate_that_ends_soon_is_told_and_a_renewed_one_needs_no_restart() {
    let _turn = turn();
    let folder = folder();
    let soon = std::process::Command::new("date").args(["-u", "-d", "+5 days", "+%Y %m %d"]).output().unwrap().stdout;
    let soon = String::from_utf8(soon).unwrap();
    let soon: Vec<u16> = soon.split_whitespace().map(|part| part.parse().unwrap()).collect();
    let [year, month, day] = soon[..] else { panic!("{soon:?}") };
    let end = rcgen::date_time_ymd(year.into(), u8::try_from(month).unwrap(), u8::try_from(day).unwrap());
    let certificates =
        Certificates::make_with(&folder.path().join("cloud"), "hall-3", |_| {}, |client| client.not_after = end);
    let Certificates { ca, client_cert, client_key, .. } = certificates.clone();
    let more =
        format!("ca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"", ca.display(), client_cert.display(), client_key.display());
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: true });
    cloud.start();
    let url = format!("mqtts://localhost:{}", cloud.tls_port.unwrap());
    let gateway = Gateway::started(folder.path(), &(uplink(&url, &more) + FORWARD_PLANT));
    gateway.wait_until_connected();
    wait_for(PATIENCE, "it is told", || gateway.log().iter().any(|line| line.contains("ends soon")));

    // The cloud changes its authority, and whoever renews certificates puts all files in their places.
    cloud.stop();
    let renewed = Certificates::make(&folder.path().join("renewed"), "hall-3-renewed");
    for (from, to) in [
        (&renewed.ca, &ca),
        (&renewed.client_cert, &client_cert),
        (&renewed.client_key, &client_key),
        (&renewed.server_cert, &folder.path().join("cloud/server.pem")),
        (&renewed.server_key, &folder.path().join("cloud/server.key")),
    ] {
        fs::copy(from, to).unwrap();
    }
    cloud.start();
    gateway.wait_until_connected();
    assert!(cloud.log().contains("u'hall-3-renewed'"), "Mosquitto sees the renewed certificate: {}", cloud.log());
    gateway.wait_for_status("of the renewed one it is known when it ends", |status| {
        let mut all = status["certificates"].as_array()?.iter();
        let own = all.find(|one| one["of"] == "uplink.cloud" && one["key"] == "cert")?;
        (own["days_left"].as_i64()? > 365).then_some(())
    });
}

/// A name server on the port of name servers. What it says is good for a day, and may be another thing at the next question.
#[derive(Clone, Default)]
struct NameServer(Arc<Mutex<(Option<Ipv4Addr>, usize)>>);

impl NameServer {
    fn started() -> NameServer {
        let names = NameServer::default();
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        let shared = names.clone();
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut question) {
                socket.send_to(&shared.answer(&question[..length]), peer).unwrap();
            }
        });
        names
    }

    /// By RFC 1035, 4.1: one question, and the address for whoever asks for one of IPv4.
    fn answer(&self, question: &[u8]) -> Vec<u8> {
        let mut end = 12;
        while question[end] != 0 {
            end += 1 + usize::from(question[end]);
        }
        let is_address = question[end + 1..end + 3] == [0, 1];
        let mut state = self.0.lock().unwrap();
        state.1 += usize::from(is_address);
        let answer = state.0.filter(|_| is_address);
        let failure = if state.0.is_none() { 3 } else { 0 };
        let head = [&question[..2], &[0x81, 0x80 | failure, 0, 1, 0, u8::from(answer.is_some()), 0, 0, 0, 0]].concat();
        let told = answer.map(|address| {
            [&[0xc0, 12, 0, 1, 0, 1][..], &86_400_u32.to_be_bytes(), &[0, 4], &address.octets()].concat()
        });
        [&head, &question[12..end + 5], &told.unwrap_or_default()].concat()
    }

    fn say(&self, address: Ipv4Addr) {
        self.0.lock().unwrap().0 = Some(address);
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

#[test]
fn the_name_of_the_cloud_is_asked_about_at_each_attempt_and_a_cloud_that_has_moved_is_found() {
    let _turn = turn();
    if !namespace::is_inside_with_files(
        "the_name_of_the_cloud_is_asked_about_at_each_attempt_and_a_cloud_that_has_moved_is_found",
    ) {
        return;
    }
    let folder = folder();
    namespace::put(folder.path(), "/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
    namespace::put(folder.path(), "/etc/nsswitch.conf", "hosts: files dns\n");
    let names = NameServer::started();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    let before = Relay::started("127.0.0.2", cloud.port);
    let after = Relay::at(("127.0.0.3", before.port), cloud.port);
    let mut gateway = Gateway::prepared(
        folder.path(),
        &(uplink(&format!("mqtt://cloud.plant.test:{}", after.port), "") + FORWARD_PLANT),
    );
    gateway.start();
    publish(&gateway);
    assert!(reason_of(&gateway).contains("cannot find the address of cloud.plant.test"));
    let asked = names.asked();
    wait_for(PATIENCE, "each attempt asks", || names.asked() >= asked + 3);
    names.say(Ipv4Addr::new(127, 0, 0, 2));
    expect_all(&mut application);
    gateway.wait_until_connected();

    // The cloud moves: what is still at its old address answers nothing.
    cloud.stop();
    before.cut();
    names.say(Ipv4Addr::new(127, 0, 0, 3));
    cloud.start();
    Publisher::started(gateway.port, "client", "plant/later", COUNT, &[]).wait_until_done();
    application.wait_for_count("factory7/plant/later", usize::try_from(COUNT).unwrap());
    assert_whole_in_order_and_once("published after it", &application.numbers_on("factory7/plant/later"), 0..COUNT);
    gateway.stop();
}
