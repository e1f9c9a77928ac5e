//! Do the commands that look into the store and mend it work on a live and on a stopped gateway, and say the same?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use common::peers::{Publisher, Subscriber};
use common::raw::{RawClient, Version};
use common::turn;
use serde_json::Value;

/// `tidegate queue …` about a gateway.
fn queue(gateway: &Gateway, words: &[&str]) -> Output {
    Command::new(PROGRAM).arg("queue").args(words).arg("--config").arg(gateway.config_path()).output().unwrap()
}

/// What it printed; it is expected to end with this status.
#[track_caller]
fn said(gateway: &Gateway, words: &[&str], code: i32) -> (String, String) {
    let output = queue(gateway, words);
    let texts = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(code), "{words:?}: {texts:?}");
    let [stdout, stderr] = texts;
    (stdout, stderr)
}

/// Lines of JSON.
#[track_caller]
fn lines(gateway: &Gateway, words: &[&str]) -> Vec<Value> {
    said(gateway, words, 0).0.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn stats(gateway: &Gateway) -> Value {
    lines(gateway, &["stats", "--json"]).remove(0)
}

fn numbers(lines: &[Value]) -> Vec<u64> {
    let number = |line: &Value| line["payload"].as_str()?.split_whitespace().next()?.parse().ok();
    lines.iter().map(|line| number(line).unwrap_or_else(|| panic!("no number in {line}"))).collect()
}

fn tables(cloud: u16) -> String {
    uplink(&format!("mqtt://127.0.0.1:{cloud}"), "") + FORWARD_PLANT
}

/// All files of a state directory, as they are.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    found.sort();
    found
}

fn looks_the_same(gateway: &Gateway) -> Vec<Value> {
    let exported = lines(gateway, &["export"]);
    assert_eq!(numbers(&exported), (0..700).chain(0..30).collect::<Vec<_>>());
    let ids: BTreeSet<&str> = exported.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 730);
    assert!(exported.iter().all(|line| line["for"] == serde_json::json!(["cloud"])), "{:?}", exported[0]);
    assert_eq!(exported[0]["topic"], "plant/one");
    assert_eq!(exported[0]["origin"], "client client");

    let some = lines(gateway, &["export", "--topic", "plant/two"]);
    assert_eq!(numbers(&some), (0..30).collect::<Vec<_>>());
    let (early, late) = (exported[0]["received"].as_str().unwrap(), "2999-01-01");
    assert_eq!(lines(gateway, &["export", "--from", late]).len(), 0);
    assert_eq!(lines(gateway, &["export", "--to", early]).len(), 0);
    assert_eq!(lines(gateway, &["export", "--from", early, "--to", late, "--stream", "cloud"]).len(), 730);

    let (csv, _) = said(gateway, &["export", "--format", "csv"], 0);
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    assert_eq!(reader.headers().unwrap().iter().take(3).collect::<Vec<_>>(), ["sequence", "for", "id"]);
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert!(rows.iter().zip(&exported).all(|(row, line)| row[2] == *line["id"].as_str().unwrap()));
    assert_eq!(rows.len(), 730);

    let (text, _) = said(gateway, &["peek", "--count", "3"], 0);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.lines().all(|line| line.contains("plant/one") && line.contains("for cloud")), "{text}");
    let next = exported[2]["sequence"].to_string();
    let two = lines(gateway, &["peek", "--json", "--count", "2", "--after", &next]);
    assert_eq!(numbers(&two), [3, 4]);
    let for_panel = lines(gateway, &["peek", "--json", "--client", "panel", "--count", "300"]);
    assert_eq!(numbers(&for_panel), (0..30).collect::<Vec<_>>());

    let (_, refused) = said(gateway, &["peek", "--stream", "clod"], 64);
    assert!(refused.contains("no stream \"clod\"; there are: cloud"), "{refused}");
    said(gateway, &["peek", "--topic", "a/#/b"], 64);
    said(gateway, &["peek", "--client", "nobody"], 64);
    let (whole, _) = said(gateway, &["check"], 0);
    assert!(whole.contains("all of them are whole"), "{whole}");
    exported
}

#[test]
fn a_live_and_a_stopped_gateway_show_and_export_the_same_and_looking_changes_nothing() {
    let _turn = turn();
    let folder = folder();
    // Nobody is there yet.
    let cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let mut gateway = Gateway::started(folder.path(), &tables(cloud.port));
    let (mut panel, _) = RawClient::resuming(gateway.port, Version::V5, "panel", 3600);
    panel.subscribe("plant/two", 1);
    panel.disconnect(None);
    for (topic, count) in [("plant/one", 700), ("plant/two", 30)] {
        Publisher::started(gateway.port, "client", topic, count, &["--size", "100"]).wait_until_done();
    }
    let live = looks_the_same(&gateway);
    let before = stats(&gateway);
    assert_eq!((&before["messages"], &before["streams"]["cloud"]["waiting"]), (&730.into(), &730.into()), "{before}");
    assert_eq!(before["streams"]["cloud"]["is_configured"], true);
    assert_eq!(before["sessions"]["clients"], serde_json::json!([["panel", 30]]));
    let to_file = folder.path().join("waiting.ndjson");
    let path = to_file.to_str().unwrap();
    said(&gateway, &["export", "--output", path], 0);
    assert_eq!(fs::metadata(&to_file).unwrap().permissions().mode() & 0o777, 0o600);
    let (_, refused) = said(&gateway, &["export", "--output", path], 64);
    assert!(refused.contains("exists"), "what is there is never written over: {refused}");

    // As a crash leaves it, with all in the log, and as a stop leaves it.
    for is_killed in [true, false] {
        if is_killed {
            gateway.kill();
        } else {
            gateway.start();
            gateway.stop();
        }
        let files_before = files(&gateway.state_dir());
        assert_eq!(looks_the_same(&gateway), live);
        let after = stats(&gateway);
        assert_eq!((&after["messages"], &after["sessions"]), (&before["messages"], &before["sessions"]));
        assert_eq!(after["streams"], before["streams"], "the configuration says that cloud is there");
        assert!(files(&gateway.state_dir()) == files_before, "looking changes no file");
    }
}

#[test]
fn what_the_cloud_refuses_is_listed_shown_sent_again_under_its_id_and_dropped() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    cloud.configure("max_packet_size 400");
    cloud.start();
    let mut gateway = Gateway::started(folder.path(), &tables(cloud.port));
    gateway.wait_until_connected();
    let long = ["--size", "1000"];
    Publisher::started(gateway.port, "client", "plant/long", 4, &long).wait_until_done();
    gateway.wait_until_drained();
    let list = lines(&gateway, &["dead-letters", "list", "--json"]);
    assert_eq!(numbers(&list), [0, 1, 2, 3]);
    assert!(list.iter().all(|letter| letter["stream"] == "cloud"), "{:?}", list[0]);
    let name = |place: usize| list[place]["number"].to_string();
    let id = |place: usize| list[place]["id"].as_str().unwrap().to_owned();
    let (one, _) = said(&gateway, &["dead-letters", "show", &name(2)], 0);
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!((one["id"].as_str(), one["payload"].as_str().unwrap().len()), (Some(&*id(2)), 1000));
    let (table, _) = said(&gateway, &["dead-letters", "list"], 0);
    assert!(table.lines().count() == 4 && table.contains("plant/long"), "{table}");
    said(&gateway, &["dead-letters", "show", "999"], 64);
    said(&gateway, &["dead-letters", "retry", "999", "--yes"], 64);

    // Nothing is done unasked.
    let (_, asked) = said(&gateway, &["dead-letters", "drop", "--all"], 64);
    assert!(asked.contains("This forgets 4 dead letters") && asked.contains("nothing was changed"), "{asked}");
    assert_eq!(lines(&gateway, &["dead-letters", "list", "--json"]).len(), 4);

    said(&gateway, &["dead-letters", "drop", &name(0), "--yes"], 0);
    assert_eq!(gateway.status().unwrap()["losses"]["dead-letter-dropped"], 1);
    // The reason is gone, and there is a receiver.
    cloud.stop();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
    gateway.stop();
    gateway.set_tables(&tables(cloud.port));
    gateway.start();
    gateway.wait_until_connected();
    said(&gateway, &["dead-letters", "retry", &name(1), "--yes"], 0);
    application.wait_for_count("factory7/plant/long", 1);
    // And on a stopped gateway.
    gateway.stop();
    said(&gateway, &["dead-letters", "retry", &name(2), "--yes"], 0);
    said(&gateway, &["dead-letters", "drop", &name(3), "--yes"], 0);
    assert_eq!(lines(&gateway, &["dead-letters", "list", "--json"]).len(), 0);
    assert_eq!(numbers(&lines(&gateway, &["export"])), [2]);
    gateway.start();
    application.wait_for_count("factory7/plant/long", 2);
    gateway.wait_until_drained();
    let arrived: Vec<String> =
        application.received().iter().map(|message| message.id.clone().unwrap_or_default()).collect();
    assert_eq!(arrived, [id(1), id(2)], "under the ids that they had");
    assert_eq!(gateway.status().unwrap()["losses"]["dead-letter-dropped"], 2);
}

#[test]
fn a_stream_whose_uplink_is_gone_is_dropped_and_one_that_is_there_is_not() {
    let _turn = turn();
    let folder = folder();
    let cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let both = tables(cloud.port)
        + &tables(cloud.port)
            .replace("[uplink.cloud]", "[uplink.old]\nclient_id = \"old\"")
            .replace("uplink.cloud.", "uplink.old.");
    let mut gateway = Gateway::started(folder.path(), &both);
    Publisher::started(gateway.port, "client", "plant/one", 600, &[]).wait_until_done();
    let (_, refused) = said(&gateway, &["drop-stream", "old", "--yes"], 64);
    assert!(refused.contains("is configured"), "{refused}");
    let restart = |gateway: &mut Gateway| {
        gateway.stop();
        gateway.set_tables(&tables(cloud.port));
        gateway.start();
    };
    restart(&mut gateway);
    let (text, _) = said(&gateway, &["stats"], 0);
    assert!(text.contains("tidegate queue drop-stream old"), "{text}");
    let (_, asked) = said(&gateway, &["drop-stream", "old"], 64);
    assert!(asked.contains("drops 600 messages"), "{asked}");
    said(&gateway, &["drop-stream", "old", "--yes"], 0);
    let after = stats(&gateway);
    assert_eq!((&after["streams"]["old"]["waiting"], &after["messages"]), (&0.into(), &600.into()), "{after}");
    assert_eq!(after["losses"]["stream-dropped"], 600);
    said(&gateway, &["drop-stream", "nobody", "--yes"], 64);

    // The same stopped, and the uplink comes back to an empty stream.
    gateway.stop();
    gateway.set_tables(&both);
    gateway.start();
    assert_eq!(stats(&gateway)["streams"]["old"]["waiting"], 0);
    Publisher::started(gateway.port, "client", "plant/one", 30, &[]).wait_until_done();
    restart(&mut gateway);
    gateway.stop();
    let (_, dropped) = said(&gateway, &["drop-stream", "old", "--yes"], 0);
    assert!(dropped.contains("30 messages of old were dropped"), "{dropped}");
    let after = stats(&gateway);
    assert_eq!((&after["streams"]["old"]["waiting"], &after["streams"]["cloud"]["waiting"]), (&0.into(), &630.into()));
    gateway.start();
    assert_eq!(gateway.status().unwrap()["losses"]["stream-dropped"], 630);
}

/// Writes over the bodies of some messages on the disk.
fn rot(state_dir: &Path, count: usize) -> usize {
    let mut file = File::options().read(true).write(true).open(state_dir.join("queue.db")).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    let needle = b"plant/one";
    let places: Vec<usize> = bytes
        .windows(needle.len())
        .enumerate()
        .filter(|(_, window)| window == needle)
        .map(|(place, _)| place)
        .collect();
    let spoilt = places.iter().step_by(places.len() / count).take(count);
    for place in spoilt.clone() {
        file.seek(SeekFrom::Start(*place as u64)).unwrap();
        file.write_all(b"P").unwrap();
    }
    spoilt.count()
}

#[test]
fn a_stopped_store_is_checked_and_repaired_as_a_start_would_and_never_unasked() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let mut gateway = Gateway::started(folder.path(), &tables(cloud.port));
    Publisher::started(gateway.port, "client", "plant/one", 500, &["--size", "200"]).wait_until_done();
    let (_, told) = said(&gateway, &["repair", "--yes"], 75);
    assert!(told.contains("the gateway runs"), "{told}");
    gateway.stop();
    let (_, told) = said(&gateway, &["repair"], 0);
    assert!(told.contains("nothing to repair"), "{told}");

    assert_eq!(rot(&gateway.state_dir(), 5), 5);
    let before = files(&gateway.state_dir());
    let (found, help) = said(&gateway, &["check"], 70);
    assert!(found.contains("5 damaged, 0 missing") && help.contains("queue repair"), "{found}{help}");
    let exported = lines(&gateway, &["export"]);
    assert_eq!(exported.iter().filter(|line| line.get("id").is_none()).count(), 5);
    let (_, asked) = said(&gateway, &["repair"], 64);
    assert!(asked.contains("5 rows of the store have rotted") && asked.contains("nothing was changed"), "{asked}");
    assert!(files(&gateway.state_dir()) == before, "nothing was changed");
    let (_, told) = said(&gateway, &["repair", "--yes"], 0);
    assert!(told.contains("5 rows had rotted"), "{told}");
    said(&gateway, &["check"], 0);
    assert_eq!(stats(&gateway)["losses"]["damaged"], 5);

    // The head of the database is gone.
    let mut file = File::options().write(true).open(gateway.state_dir().join("queue.db")).unwrap();
    file.write_all(&[0x55; 700]).unwrap();
    drop(file);
    let (_, told) = said(&gateway, &["stats"], 70);
    assert!(told.contains("is damaged") && told.contains("queue repair"), "{told}");
    let (_, asked) = said(&gateway, &["repair"], 64);
    assert!(asked.contains("The store is damaged") && !gateway.state_dir().join("quarantine").exists(), "{asked}");
    let (_, told) = said(&gateway, &["repair", "--yes"], 0);
    assert!(told.contains("salvaged 495 messages") && told.contains("the store is in order"), "{told}");
    assert_eq!(lines(&gateway, &["export"]).len(), 495);
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#", "tidegate/#"]);
    gateway.start();
    gateway.wait_until_drained();
    application.wait_for_count("factory7/plant/one", 495);
    let arrived: BTreeSet<u64> = application.numbers_on("factory7/plant/one").into_iter().collect();
    assert_eq!(arrived.len(), 495);
    let gap = application
        .wait_for_message(&format!("tidegate/{}/gap", common::gateway::ID), |gap| gap.json()["reason"] == "damaged");
    assert_eq!(gap.json()["count"], 5);
}
