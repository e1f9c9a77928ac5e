//! Is a backup of a gateway that runs one moment of it, does it come back as a gateway, and are no two messages of one name?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use common::cloud::{Access, Mosquitto};
use common::gateway::{Gateway, PROGRAM, folder, uplink};
use common::peers::{Publisher, Subscriber};
use common::turn;

/// Runs the program, expects this exit status, and gives back what it said.
#[track_caller]
fn said(words: &[&str], code: i32) -> String {
    let output = Command::new(PROGRAM).args(words).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
    text
}

fn tables(cloud: u16, under: &str) -> String {
    uplink(&format!("mqtt://127.0.0.1:{cloud}"), "")
        + &format!("[[uplink.cloud.forward]]\nfilter = \"plant/#\"\ntopic = \"{under}/{{topic}}\"\nqos = 2\n")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_backup_of_a_live_gateway_has_all_that_was_acknowledged_and_its_restore_repeats_no_id() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["first/#", "second/#"]);
    let mut gateway = Gateway::started(folder.path(), &tables(cloud.port, "first"));
    gateway.wait_until_connected();
    // What is in flight at QoS 2 is in the backup as such.
    cloud.freeze();
    let mut publisher =
        Publisher::started(gateway.port, "client", "plant/a", 6000, &["--size", "500", "--window", "50"]);
    publisher.wait_for_acknowledged(500);
    let backup = folder.path().join("backup.tar");
    let before: Vec<u64> = publisher.acknowledged();
    let told = said(&["backup", text(&backup), "--config", text(&gateway.config_path())], 0);
    assert!(told.contains("the gateway went on"), "{told}");
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    said(&["backup", text(&backup), "--config", text(&gateway.config_path())], 64);
    publisher.wait_until_done();
    let listed = Command::new("tar").arg("tf").arg(&backup).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        ["config/tidegate.toml", "state/start", "state/queue.db", "manifest.json", "manifest.sha256"]
    );

    // The board lives on for a while, and delivers: the cloud has used its packet ids on.
    cloud.thaw();
    gateway.wait_until_connected();
    gateway.wait_until_drained();
    // Before the board dies all that it was told has come out of the cloud: one that dies with a message half released at
    // QoS 2 leaves it in its session there, which the restored one does not go on with.
    application.wait_for_count("first/plant/a", 6000);
    gateway.kill();

    let mut second = Gateway::named("second", folder.path(), &tables(cloud.port, "second"));
    let state = second.state_dir();
    fs::create_dir_all(&state).unwrap();
    let restore = ["restore", text(&backup), "--no-config", "--state-dir", text(&state)];
    assert!(said(&restore, 64).contains("nothing was changed"), "nobody said yes");
    let restored = said(&[&restore[..], &["--yes"]].concat(), 0);
    assert!(restored.contains("is restored as it was at"), "{restored}");
    assert!(said(&["queue", "check", "--state-dir", text(&state)], 0).contains("all of them are whole"));
    let waiting = said(&["queue", "export", "--state-dir", text(&state)], 0);
    let waiting: BTreeSet<u64> = waiting
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| line["payload"].as_str().unwrap().split_whitespace().next().unwrap().parse().unwrap())
        .collect();
    assert!(before.iter().all(|number| waiting.contains(number)), "{} of {}", waiting.len(), before.len());
    // One moment: the first so many, and none beyond.
    assert_eq!(waiting.len() as u64, waiting.last().unwrap() + 1);

    second.start();
    assert!(said(&[&restore[..], &["--overwrite", "--yes"]].concat(), 75).contains("a gateway runs"));
    let mut later = Publisher::started(second.port, "client", "plant/b", 300, &["--qos", "2"]);
    later.wait_until_done();
    second.wait_until_connected();
    second.wait_until_drained();
    application.wait_for_count("second/plant/b", 300);
    application.wait_for_count("second/plant/a", waiting.len());
    let again: BTreeSet<u64> = application.numbers_on("second/plant/a").into_iter().collect();
    assert_eq!(again, waiting, "all that waited then came again");
    let mut by_id: BTreeMap<String, String> = BTreeMap::new();
    for message in application.received().to_vec() {
        let bare = message.topic.split_once('/').unwrap().1;
        let what = format!("{bare} {}", message.number());
        let id = message.id.expect("each message has an id");
        let known = by_id.entry(id.clone()).or_insert_with(|| what.clone());
        assert_eq!(*known, what, "{id} is the name of two messages");
    }
    assert_eq!(by_id.len(), 6000 + 300);
    second.stop();
}

#[test]
fn a_stopped_gateway_comes_back_with_its_configuration_and_nothing_is_written_over() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let secret = folder.path().join("gateway/secret");
    fs::create_dir_all(secret.parent().unwrap()).unwrap();
    fs::write(&secret, "s3cret\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let login = format!("username = \"u\"\npassword_file = \"{}\"\n", secret.display());
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), &login);
    let mut gateway = Gateway::started(folder.path(), &(tables + "[[uplink.cloud.forward]]\nfilter = \"plant/#\"\n"));
    Publisher::started(gateway.port, "client", "plant/a", 300, &[]).wait_until_done();
    // With all in its log.
    gateway.kill();
    // As a cloud that registers gateways leaves it.
    let key = gateway.state_dir().join("provisioned/cloud/key.pem");
    fs::create_dir_all(key.parent().unwrap()).unwrap();
    fs::write(&key, "pr1vate key").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let (backup, config) = (folder.path().join("backup.tar"), gateway.config_path());
    said(&["backup", text(&backup), "--config", text(&config)], 0);
    let public = folder.path().join("public.tar");
    let left_out = said(&["backup", text(&public), "--config", text(&config), "--without-secrets"], 0);
    assert!(left_out.contains(&format!("not in the backup: {}", secret.display())), "{left_out}");
    assert!(left_out.contains(&format!("not in the backup: {}", key.display())), "{left_out}");
    let has = |file: &Path, secret: &[u8]| fs::read(file).unwrap().windows(6).any(|window| window == secret);
    for secret in [b"s3cret", b"pr1vat"] {
        assert!(has(&backup, secret) && !has(&public, secret));
    }
    fs::remove_file(&secret).unwrap();
    fs::write(&key, "the key of another day").unwrap();
    let written = fs::read(&config).unwrap();
    let in_the_way = said(&["restore", text(&backup), "--yes"], 64);
    assert!(in_the_way.contains("queue.db") && in_the_way.contains("tidegate.toml"), "{in_the_way}");

    // What is damaged is not restored, wherever that is, and changes nothing.
    let good = fs::read(&backup).unwrap();
    let bad = folder.path().join("bad.tar");
    let in_manifest = good.windows(9).rposition(|window| window == b"state_dir").unwrap() + 20;
    for place in [514, good.len() / 2, in_manifest] {
        let mut bytes = good.clone();
        bytes[place] ^= 4;
        fs::write(&bad, bytes).unwrap();
        said(&["restore", text(&bad), "--overwrite", "--yes"], 70);
    }
    fs::write(&bad, &good[..good.len() / 2]).unwrap();
    said(&["restore", text(&bad), "--overwrite", "--yes"], 70);
    assert_eq!(fs::read(&config).unwrap(), written);

    fs::write(&config, "nonsense").unwrap();
    fs::write(gateway.state_dir().join("queue.db"), "nonsense").unwrap();
    said(&["restore", text(&backup), "--overwrite", "--yes"], 0);
    assert_eq!(fs::read(&config).unwrap(), written);
    assert_eq!(fs::read_to_string(&key).unwrap(), "pr1vate key");
    for file in [&secret, &key] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let names = |dir: &Path| -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert!(names(config.parent().unwrap()).iter().any(|name| name.starts_with("tidegate.toml.replaced-")));
    let aside = names(&gateway.state_dir()).into_iter().find(|name| name.starts_with("replaced-")).unwrap();
    assert_eq!(fs::read(gateway.state_dir().join(aside).join("queue.db")).unwrap(), b"nonsense");
    gateway.start();
    assert_eq!(gateway.status().unwrap()["uplinks"]["cloud"]["waiting"], 300);
    let before = gateway.status().unwrap()["last_stop"].clone();
    assert!(before.as_str().unwrap().contains("with a backup of"), "{before}");
    gateway.stop();
}
