//! Does `tidegate drill` keep its numbers when the plug is pulled, find a loss, and say when it cannot read back?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use common::certificates::Certificates;
use common::cloud::Mosquitto;
use common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use common::process::Process;
use common::relay::Relay;
use common::{PATIENCE, port, turn, wait_for};

const MORE: &str = "keep_alive = \"5s\"";

fn drill(gateway: &Gateway, more: &[&str]) -> Process {
    let config = gateway.config_path();
    let mut words = vec!["drill", "--config", config.to_str().unwrap(), "--rate", "100"];
    words.extend(more);
    Process::start("drill", PROGRAM, &words)
}

fn wait_for_prompt(drill: &mut Process, prompt: &str) {
    drill.wait_for_line(PATIENCE, prompt, |line| line.starts_with(prompt));
}

/// acknowledged, received, lost, repeated of one row of the table.
fn row(drill: &Process, name: &str) -> [u64; 4] {
    let lines = drill.stdout();
    let found = lines.iter().rev().find(|line| line.starts_with(name) && line.len() > name.len() + 20);
    let row = found.unwrap_or_else(|| panic!("no row {name}:\n{}", drill.transcript()));
    let numbers: Vec<u64> =
        row[name.len()..].split_whitespace().take(4).map(|word| word.replace(',', "").parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

#[test]
fn a_cable_and_a_plug_that_are_pulled_cost_nothing_and_the_drill_goes_on_after_the_reboot() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let line = Relay::started("127.0.0.1", cloud.port);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", line.port), MORE) + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    let mut first = drill(&gateway, &["--time", "2s"]);

    wait_for_prompt(&mut first, "Pull the cable");
    line.cut();
    gateway.kill();
    gateway.start();
    first.tell("");
    wait_for_prompt(&mut first, "Plug the cable in again");
    line.restore();
    first.tell("");

    wait_for_prompt(&mut first, "Pull the plug");
    // It runs on the gateway: both lose their power.
    first.kill();
    gateway.kill();
    gateway.start();
    let mut second = drill(&gateway, &["--time", "2s", "--resume"]);
    let status = second.wait(PATIENCE * 2);
    assert_eq!(status.code(), Some(0), "{}", second.transcript());
    let transcript = second.transcript();
    for (name, least) in [("all is well", 150), ("the cable is pulled", 150), ("the plug is pulled", 150)] {
        let [acknowledged, received, lost, _repeated] = row(&second, name);
        assert!(acknowledged >= least && received == acknowledged && lost == 0, "{name}:\n{transcript}");
    }
    assert!(transcript.contains("Nothing that was acknowledged is lost."), "{transcript}");

    let again = drill(&gateway, &["--resume"]).wait(PATIENCE);
    assert_eq!(again.code(), Some(64), "a drill that is over cannot be resumed");
}

#[test]
fn a_loss_is_seen_and_ends_with_70() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let line = Relay::started("127.0.0.1", cloud.port);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", line.port), MORE) + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    let mut drill = drill(&gateway, &["--time", "2s", "--steps", "cable", "--patience", "10s"]);
    wait_for_prompt(&mut drill, "Pull the cable");
    line.cut();
    drill.tell("");
    wait_for_prompt(&mut drill, "Plug the cable in again");
    gateway.kill();
    // Somebody takes the card with the queue on it away.
    for name in ["queue.db", "queue.db-wal", "start"] {
        std::fs::remove_file(gateway.state_dir().join(name)).ok();
    }
    gateway.start();
    line.restore();
    drill.tell("");
    let status = drill.wait(PATIENCE * 2);
    assert_eq!(status.code(), Some(70), "{}", drill.transcript());
    let [acknowledged, received, lost, _repeated] = row(&drill, "the cable is pulled");
    assert!(lost >= 50 && acknowledged == received + lost, "{}", drill.transcript());
}

#[test]
fn what_cannot_be_reached_or_promised_is_said() {
    let _turn = turn();
    let folder = folder();
    let nobody = port::free();
    let tables = uplink(&format!("mqtt://127.0.0.1:{nobody}"), MORE) + FORWARD_PLANT;
    let gateway = Gateway::started(folder.path(), &tables);
    let mut away = drill(&gateway, &["--patience", "2s"]);
    assert_eq!(away.wait(PATIENCE).code(), Some(75), "{}", away.transcript());
    assert!(away.transcript().contains("the cloud cannot be read back"), "{}", away.transcript());

    let mut unwanted = drill(&gateway, &["--anew", "--topic", "elsewhere/x"]);
    assert_eq!(unwanted.wait(PATIENCE).code(), Some(64), "{}", unwanted.transcript());
    assert!(unwanted.transcript().contains("no forward rule"), "{}", unwanted.transcript());
}

#[test]
fn where_nothing_can_be_read_back_no_drill_begins_and_it_says_what_to_do() {
    let _turn = turn();
    let folder = folder();
    let nobody = port::free();
    let secret = folder.path().join("key");
    fs::write(&secret, "c2VjcmV0\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let Certificates { ca, client_cert, client_key, .. } = Certificates::make(&folder.path().join("lot"), "lot 7");
    let (secret, at) = (secret.display(), format!("localhost:{nobody}"));
    let dps = format!(
        "profile = \"azure-iot-hub\"\nurl = \"mqtts://{at}\"\nsas = {{ key = \"{secret}\" }}\ndps = {{ id_scope = \"0ne1\" }}"
    );
    let webhook = format!("url = \"http://{at}/in\"");
    let lot = format!(
        "profile = \"aws-iot\"\nurl = \"mqtts://{at}\"\nca = \"{}\"\nprovision = {{ template = \"lot\", claim_cert = \"{}\", claim_key = \"{}\" }}",
        ca.display(),
        client_cert.display(),
        client_key.display()
    );
    let back = "read back where the messages come out, with --read-back and --read-back-topic";
    let on_hub = ["--read-back-topic", "devices/hall-3/messages/devicebound/#"];
    for (table, more, said, help) in [
        (&dps, &[][..], "Azure IoT Hub gives a device nothing of what it has sent", back),
        // A topic that the hub does give out: not from the provisioning service.
        (&dps, &on_hub, "cloud has not registered at its cloud yet", "let the gateway run until it is connected"),
        (&webhook, &[], "cloud goes by HTTP, and by that nothing can be read back", back),
        (&lot, &[], "cloud has not registered at its cloud yet", "let the gateway run until it is connected"),
    ] {
        let gateway = Gateway::prepared(folder.path(), &format!("[uplink.cloud]\n{table}\n{FORWARD_PLANT}"));
        gateway.write_config();
        let mut drill = drill(&gateway, more);
        assert_eq!(drill.wait(PATIENCE).code(), Some(64), "{}", drill.transcript());
        let told = drill.transcript();
        assert!(told.contains(said) && told.contains(help), "{told}");
    }
}

#[test]
fn without_a_keyboard_it_runs_by_the_clock_and_reads_back_elsewhere() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::started(folder.path());
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "protocol = \"3.1.1\"") + FORWARD_PLANT;
    let gateway = Gateway::started(folder.path(), &tables);
    let url = format!("mqtt://127.0.0.1:{}", cloud.port);
    let more = ["--yes", "--time", "1s", "--topic", "plant/x", "--read-back", &url, "--read-back-topic", "factory7/#"];
    let mut drill = drill(&gateway, &more);
    assert_eq!(drill.wait(PATIENCE * 2).code(), Some(0), "{}", drill.transcript());
    let [acknowledged, received, lost, repeated] = row(&drill, "all is well");
    assert!(acknowledged >= 50, "{}", drill.transcript());
    assert_eq!((received, lost, repeated), (acknowledged, 0, 0));
    wait_for(PATIENCE, "the cloud was told to forget the drill's session", || cloud.log().contains("hall-3-drill"));
}
