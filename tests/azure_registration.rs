//! Does a board that knows its id scope and a key get a hub, one and the same whatever comes between, and another one when that
//! refuses it?
//!
//! The other side is a stand-in for Azure's provisioning service and its hubs (`azure_support`); what is on the wire is held
//! against what Azure's own library says to the same stand-in. Injected: throttling, refusals, ended connections, kills.
//! Survivable, because a registration asked for again is the same one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod aws_support;
mod azure_support;
mod common;
mod scripted;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_support::acceptor;
use azure_support::{Azure, ID_SCOPE, Turn};
use common::certificates::Certificates;
use common::faketime::WallClock;
use common::gateway::{Gateway, ID, PROGRAM, folder};
use common::peers::{Publisher, script_in};
use common::{PATIENCE, turn, wait_until};
use rcgen::{CertificateParams, date_time_ymd};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use scripted::Scripted;
use serde_json::{Value, json};
use tidegate::mqtt::ReasonCode;
use tidegate::transport::sas;

const KEY: &str = "c2VjcmV0IG9mIHRoZSBkZXZpY2U=";

struct Place {
    folder: tempfile::TempDir,
    certificates: Certificates,
    azure: Scripted<Azure>,
}

/// A service that gives `device` to the hub `localhost`.
fn place(device: &str) -> Place {
    place_with(device, |_| {})
}

/// The same with something changed in the certificate of its server.
fn place_with(device: &str, change_server: impl Fn(&mut CertificateParams)) -> Place {
    let folder = folder();
    let certificates = Certificates::make_with(&folder.path().join("cloud"), ID, change_server, |_| {});
    let mut azure = Azure::default();
    azure.keys = [ID, device].map(|name| (name.to_owned(), KEY.to_owned())).into();
    azure.assigns = ("localhost".to_owned(), device.to_owned());
    // With "mqtt" it asks for a certificate and takes none as well.
    let azure = Scripted::started(azure, Some(acceptor(&certificates, &["mqtt"])));
    Place { folder, certificates, azure }
}

impl Place {
    fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, format!("{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn tables(&self, login: &str) -> String {
        format!(
            "[uplink.hub]\nprofile = \"azure-iot-hub\"\nurl = \"mqtts://localhost:{}\"\nca = \"{}\"\nown_topic = \"\"\n\
             reconnect = {{ first = \"100ms\", max = \"500ms\" }}\ndps = {{ id_scope = \"{ID_SCOPE}\" }}\n{login}\n\
             [[uplink.hub.forward]]\nfilter = \"plant/#\"\nqos = 1\n",
            self.azure.port,
            self.certificates.ca.display(),
        )
    }

    fn with_key(&self) -> String {
        self.tables(&format!("sas = {{ key = \"{}\" }}", self.secret("device.key", KEY).display()))
    }

    #[track_caller]
    fn wait_for(&self, count: usize) {
        wait_until(PATIENCE, &format!("{count} messages are at the hub"), || {
            let script = self.azure.script();
            assert_eq!(script.violations, Vec::<String>::new());
            let there = script.numbers().len();
            if there >= count { Ok(()) } else { Err(format!("{there}; {:?}", script.asked)) }
        });
    }

    /// Ids under which the service and the hub were spoken to, one after the other.
    fn callers(&self) -> Vec<String> {
        let script = self.azure.script();
        let shown = script.connects.iter().map(|connect| match connect.username.as_deref().unwrap() {
            name if name.starts_with(ID_SCOPE) => format!("service as {}", connect.client_id),
            name => format!("{} as {}", name.split('/').next().unwrap(), connect.client_id),
        });
        shown.collect()
    }
}

fn publish(gateway: &Gateway, name: &str, count: u64) {
    Publisher::started(gateway.port, name, "plant/press", count, &[]).wait_until_done();
}

fn kept(gateway: &Gateway) -> PathBuf {
    gateway.state_dir().join("provisioned/hub/hub.json")
}

#[test]
fn a_board_gets_its_hub_once_and_keeps_it_where_nobody_else_reads() {
    let _turn = turn();
    let place = place("press-7");
    place.azure.script().turns = vec![Turn::Throttled(1), Turn::Assigning(1), Turn::Assigning(1)];
    let mut gateway = Gateway::started(place.folder.path(), &place.with_key());
    publish(&gateway, "plc", 3);
    place.wait_for(3);
    assert_eq!(place.callers(), [format!("service as {ID}"), "localhost as press-7".to_owned()]);
    assert_eq!(place.azure.script().asked.len(), 4, "what was throttled, the request, and two looks");
    let file = kept(&gateway);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    let said: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        said,
        json!({"id_scope": ID_SCOPE, "registration_id": ID, "hub": "localhost", "device": "press-7"}),
        "no secret in it"
    );
    assert!(gateway.log().join("\n").contains("has given the gateway a hub"));

    // From then on the service is not needed.
    gateway.stop();
    place.azure.script().turns = vec![Turn::Closes; 100];
    gateway.start();
    publish(&gateway, "plc-2", 1);
    place.wait_for(4);
    assert_eq!(place.callers().len(), 3);
    assert_eq!(place.callers()[2], "localhost as press-7");

    // A file that a bad disk has eaten is as good as none.
    gateway.stop();
    place.azure.script().turns.clear();
    fs::write(kept(&gateway), b"{\"hub\": \xff").unwrap();
    gateway.start();
    publish(&gateway, "plc-3", 1);
    place.wait_for(5);
    assert_eq!(place.callers()[3..], [format!("service as {ID}"), "localhost as press-7".to_owned()]);
}

#[test]
fn the_key_of_a_group_and_a_certificate_let_a_board_register_as_well() {
    let _turn = turn();
    let group = place(ID);
    let group_key = "Z3JvdXAga2V5IG9mIGxvdCA3";
    let derived = sas::derived(group_key.as_bytes(), ID).unwrap();
    group.azure.script().keys = BTreeMap::from([(ID.to_owned(), derived)]);
    let file = group.secret("group.key", group_key);
    let gateway = Gateway::started(
        group.folder.path(),
        &group.tables(&format!("sas = {{ group_key = \"{}\" }}", file.display())),
    );
    publish(&gateway, "plc", 2);
    group.wait_for(2);
    drop(gateway);

    let place = place(ID);
    {
        let mut script = place.azure.script();
        script.keys.clear();
        script.certificate = Some(CertificateDer::from_pem_file(&place.certificates.client_cert).unwrap());
    }
    let Certificates { client_cert, client_key, .. } = &place.certificates;
    let login = format!("cert = \"{}\"\nkey = \"{}\"", client_cert.display(), client_key.display());
    let gateway = Gateway::started(place.folder.path(), &place.tables(&login));
    publish(&gateway, "plc", 2);
    place.wait_for(2);
    assert!(place.azure.script().connects.iter().all(|connect| connect.password.is_none()));
}

#[test]
fn what_is_on_the_wire_is_what_the_library_of_azure_says() {
    let _turn = turn();
    let ours = place(ID);
    ours.azure.script().turns = vec![Turn::Assigning(1), Turn::Assigning(1)];
    let gateway = Gateway::started(ours.folder.path(), &ours.with_key());
    publish(&gateway, "plc", 1);
    ours.wait_for(1);

    let theirs = place(ID);
    theirs.azure.script().turns = vec![Turn::Assigning(1), Turn::Assigning(1)];
    let port = theirs.azure.port.to_string();
    let words = [port.as_str(), theirs.certificates.ca.to_str().unwrap(), ID_SCOPE, ID, KEY];
    assert_eq!(script_in("venv-azure", "azure_registration", &words), ["assigned localhost hall-3"]);
    let said = |place: &Place| {
        let script = place.azure.script();
        // The number of a question is anybody's, and so is how often it was looked.
        let without_number = |topic: &str| {
            let (path, query) = topic.split_once("/?").unwrap();
            let others: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("$rid=")).collect();
            format!("{path}/?{}", others.join("&"))
        };
        // The library says that it has nothing to add ("payload": null), and the gateway does not speak of it.
        let body = |text: &str| match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(map)) => map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
            _ => json!(text),
        };
        let asked: Vec<_> =
            script.asked.iter().map(|(topic, text, qos)| (without_number(topic), body(text), *qos)).collect();
        let connect = &script.connects[0];
        let username = connect.username.clone().unwrap();
        let facts = (
            connect.client_id.clone(),
            connect.clean_start,
            connect.will.is_some(),
            username.split('&').next().unwrap().to_owned(),
        );
        (facts, script.subscribed[0].clone(), asked)
    };
    let (mut ours, mut theirs) = (said(&ours), said(&theirs));
    // The library asks for a kept session and never comes back to it; the service's page says that none should be asked for.
    (ours.0.1, theirs.0.1) = (true, true);
    assert_eq!(ours, theirs);
}

#[test]
fn a_gateway_that_is_restored_on_another_board_goes_to_its_hub_without_registering_again() {
    let _turn = turn();
    let place = place("press-7");
    let mut first = Gateway::started(place.folder.path(), &place.with_key());
    publish(&first, "plc", 2);
    place.wait_for(2);
    first.stop();
    place.azure.script().turns = vec![Turn::Closes; 1000];
    let mut second = Gateway::named("second", place.folder.path(), &place.with_key());
    first.restored_as(&second);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&kept(&second)), mode(kept(&second).parent().unwrap())), (0o600, 0o700));
    second.start();
    publish(&second, "plc", 1);
    place.wait_for(3);
    // The session that is still there is not its own: it begins another one, and all of that at the hub.
    let callers = place.callers();
    assert_eq!(callers[0], format!("service as {ID}"));
    assert!(callers.len() > 2 && callers[1..].iter().all(|caller| caller == "localhost as press-7"), "{callers:?}");
}

#[test]
fn every_refusal_is_told_and_none_makes_a_second_device() {
    let _turn = turn();
    let place = place(ID);
    place.azure.script().turns = vec![
        Turn::Closes,
        Turn::Status(401, 401_002, "Unauthorized"),
        Turn::Nonsense,
        Turn::Assigning(1),
        Turn::Failed(400_207, "Custom allocation failed"),
        Turn::AssignsAndCloses,
    ];
    place.azure.script().assigns.1 = ID.to_owned();
    let gateway = Gateway::started(place.folder.path(), &place.with_key());
    gateway.wait_for_status("the refusal is shown", |status| {
        status["uplinks"]["hub"]["reason"].as_str().filter(|reason| reason.contains("401002")).map(str::to_owned)
    });
    publish(&gateway, "plc", 2);
    place.wait_for(2);
    assert_eq!(place.azure.script().registered.len(), 1);
    assert_eq!(place.azure.script().numbers(), [0, 1]);
    assert_eq!(gateway.log().iter().filter(|line| line.contains("cannot connect")).count(), 1, "one outage, one line");
}

#[test]
fn a_hub_that_refuses_the_gateway_for_good_is_asked_about_and_the_new_one_takes_over() {
    let _turn = turn();
    let place = place(ID);
    let mut gateway = Gateway::started(place.folder.path(), &place.with_key());
    publish(&gateway, "plc", 2);
    place.wait_for(2);
    gateway.stop();
    // The device was moved: the old hub does not know it any more, and the service is busy at first.
    {
        let mut script = place.azure.script();
        script.refuses = BTreeMap::from([("localhost".to_owned(), ReasonCode::NOT_AUTHORIZED)]);
        script.turns = vec![Turn::Throttled(100)];
        script.assigns = ("127.0.0.1".to_owned(), "press-8".to_owned());
        script.keys.insert("press-8".to_owned(), KEY.to_owned());
        script.connects.clear();
    }
    let busy = "the provisioning service wants to be asked again in 100 s";
    gateway.start();
    publish(&gateway, "plc-2", 3);
    gateway.wait_for_status("it waits for the service", |status| {
        status["uplinks"]["hub"]["reason"].as_str().filter(|reason| reason.contains(busy)).map(str::to_owned)
    });
    let of_old_hub = format!("localhost as {ID}");
    let callers = [of_old_hub.clone(), of_old_hub.clone(), of_old_hub.clone(), format!("service as {ID}")];
    assert_eq!(place.callers(), callers, "three refusals, then the question");
    // A restart does not wait for the service's 100 s, and what was assigned is on the disk.
    gateway.kill();
    place.azure.script().connects.clear();
    gateway.start();
    place.wait_for(5);
    let after = [of_old_hub.clone(), of_old_hub.clone(), of_old_hub, format!("service as {ID}")];
    assert_eq!(place.callers()[..4], after);
    assert_eq!(place.callers()[4..], ["127.0.0.1 as press-8"]);
    let topics = place.azure.script().got.iter().map(|one| one.topic.clone().unwrap()).collect::<Vec<_>>();
    assert!(topics[4].as_str().starts_with("devices/press-8/messages/events/"), "{topics:?}");
    assert_eq!(place.azure.script().numbers(), [0, 1, 0, 1, 2]);
    let said: Value = serde_json::from_slice(&fs::read(kept(&gateway)).unwrap()).unwrap();
    assert_eq!((&said["hub"], &said["device"]), (&json!("127.0.0.1"), &json!("press-8")));
}

/// Kills the gateway when the service has been asked `asked` things, and starts it again.
fn killed_after(turns: &[Turn], asked: usize) {
    let place = place(ID);
    place.azure.script().turns = turns.to_vec();
    // The next attempt is that of the next process.
    let slow = place.with_key().replace("100ms", "300s").replace("\"500ms\"", "\"300s\"");
    let mut gateway = Gateway::started(place.folder.path(), &slow);
    publish(&gateway, "plc", 2);
    wait_until(PATIENCE, "the service is asked", || {
        let so_far = place.azure.script().asked.len();
        if so_far >= asked { Ok(()) } else { Err(format!("{so_far}")) }
    });
    gateway.kill();
    place.azure.script().turns.clear();
    gateway.start();
    place.wait_for(2);
    assert_eq!(place.azure.script().numbers(), [0, 1]);
    assert_eq!(place.azure.script().registered.iter().collect::<Vec<_>>(), [ID], "{turns:?}");
}

#[test]
fn a_kill_between_any_two_steps_ends_in_one_device() {
    let _turn = turn();
    killed_after(&[Turn::Silent], 1);
    killed_after(&[Turn::AssignsAndCloses], 1);
    killed_after(&[Turn::Assigning(1), Turn::Silent], 2);
    killed_after(&[Turn::Assigning(1), Turn::AssignsAndCloses], 2);
    // The answer is on its way: the file is there, or it is not.
    killed_after(&[], 1);
}

/// Boots a board whose clock shows `shown`, twice, and sets it right. It says what it waits for, nothing is lost, and once the
/// time is known no pause is waited for. Gives back how often somebody was asked before that.
fn booted(place: &Place, shown: &str, tables: &str, said: &str) -> usize {
    let wall = WallClock::right(place.folder.path());
    wall.set(shown);
    let slow = tables.replace("100ms", "300s").replace("\"500ms\"", "\"300s\"");
    let mut gateway = Gateway::prepared(place.folder.path(), &slow);
    wall.unconfirmed(&mut gateway);
    for name in ["plc", "plc-2"] {
        gateway.start_with(&wall.environment());
        publish(&gateway, name, 2);
        gateway.wait_for_status(said, |status| {
            status["uplinks"]["hub"]["reason"].as_str().filter(|reason| reason.contains(said)).map(drop)
        });
        if name == "plc" {
            gateway.kill();
        }
    }
    assert_eq!(place.azure.script().numbers(), [0; 0]);
    let asked = place.azure.script().connects.len();
    wall.come_right();
    place.wait_for(4);
    assert_eq!(place.azure.script().numbers(), [0, 1, 0, 1]);
    let log = gateway.log();
    assert_eq!(log.iter().filter(|line| line.contains("The uplink cannot connect")).count(), 2, "{log:?}");
    gateway.stop();
    asked
}

#[test]
fn a_board_that_boots_in_1970_shows_no_bad_token_and_comes_by_itself_when_the_time_is_known() {
    let _turn = turn();
    let never_set = "this board's clock was never set, and a token that is signed by it would be refused";
    let to_hub = |place: &Place| place.with_key().replace(&format!("dps = {{ id_scope = \"{ID_SCOPE}\" }}\n"), "");
    // By the provisioning service, and to a hub that is known.
    let registering = place("press-7");
    assert_eq!(booted(&registering, "@1970-01-01 00:00:10", &registering.with_key(), never_set), 0);
    assert_eq!(registering.callers(), [format!("service as {ID}"), "localhost as press-7".to_owned()]);
    let known = place(ID);
    assert_eq!(booted(&known, "@1970-01-01 00:00:10", &to_hub(&known), never_set), 0);
    // A clock that is only late may do, and is tried.
    let late = place(ID);
    let doubt = "signed by this board's clock, which no time service has confirmed";
    assert!((2..10).contains(&booted(&late, "-2d", &to_hub(&late), doubt)));
    // No token, but a certificate that nobody can judge in 1970: as it is at every cloud that has TLS.
    let judging = place_with(ID, |server| server.not_before = date_time_ymd(2026, 2, 1));
    {
        let mut script = judging.azure.script();
        script.keys.clear();
        script.certificate = Some(CertificateDer::from_pem_file(&judging.certificates.client_cert).unwrap());
    }
    let Certificates { client_cert, client_key, .. } = &judging.certificates;
    let login = format!("cert = \"{}\"\nkey = \"{}\"", client_cert.display(), client_key.display());
    let unjudged = "clock is not set, so the server's certificate cannot be judged";
    assert_eq!(booted(&judging, "@1970-01-01 00:00:10", &judging.tables(&login), unjudged), 0);
}

#[test]
fn the_doctor_names_a_key_that_the_service_does_not_take_and_says_which_hub_there_is() {
    let _turn = turn();
    let place = place("press-7");
    let mut gateway = Gateway::prepared(place.folder.path(), &place.with_key());
    gateway.start();
    publish(&gateway, "plc", 1);
    place.wait_for(1);
    gateway.stop();
    let doctor = || {
        let config = gateway.config_path();
        let output =
            Command::new(PROGRAM).args(["doctor", "--uplink", "hub", "--config"]).arg(config).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let said = doctor();
    assert!(said.contains("mqtts://localhost") && said.contains("as \"press-7\""), "{said}");
    fs::remove_file(kept(&gateway)).unwrap();
    let said = doctor();
    assert!(said.contains("lets this gateway register"), "{said}");
    assert!(!kept(&gateway).exists(), "the doctor writes nothing");
    place.secret("device.key", "YW5vdGhlciBrZXk=");
    let said = doctor();
    assert!(said.contains("the provisioning service refused") && said.contains("`id_scope`"), "{said}");
    place.secret("device.key", "not base64!");
    let said = doctor();
    assert!(said.contains("holds no key in base64"), "{said}");

    // A hub itself, and the key of another device.
    let hub = place.with_key().replace(&format!("dps = {{ id_scope = \"{ID_SCOPE}\" }}\n"), "");
    place.secret("device.key", "YW5vdGhlciBrZXk=");
    gateway.set_tables(&hub);
    gateway.write_config();
    let output = Command::new(PROGRAM).args(["doctor", "--config"]).arg(gateway.config_path()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("the hub must know the device (`client_id`)") && said.contains("must be its own"), "{said}");
}
