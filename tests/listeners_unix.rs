//! Is a Unix socket a way in like any other, also after a kill, and is nobody else's socket harmed?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use common::gateway::{Gateway, folder};
use common::peers::{Publisher, Subscriber};
use common::turn;

fn listener(path: &Path, more: &str) -> String {
    format!("[broker.listener.socket]\nbind = \"unix:{}\"\n{more}\n", path.display())
}

#[test]
fn clients_come_in_by_the_socket_and_find_it_again_after_a_kill() {
    let _turn = turn();
    let folder = folder();
    let path = folder.path().join("mqtt.sock");
    let shown = path.display().to_string();
    let mut gateway = Gateway::started(folder.path(), &listener(&path, "mode = \"0666\""));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    let way = ["--unix", &shown];
    let mut subscriber = Subscriber::started_with(0, "dashboard", &["plant/#"], &way);
    let more = [&way[..], &["--qos", "2", "--persistent", "--pause", "0.002"]].concat();
    let mut publisher = Publisher::started(0, "machine", "plant/press", 400, &more);
    publisher.wait_for_acknowledged(50);
    gateway.kill();
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket(), "a kill leaves it behind");
    gateway.start();
    publisher.wait_until_done();
    subscriber.wait_for_count("plant/press", 400);
    let mut numbers = subscriber.numbers_on("plant/press");
    numbers.sort_unstable();
    assert_eq!(numbers, (0..400).collect::<Vec<_>>(), "each once");
    for version in ["311", "5"] {
        let arguments = ["--unix", &shown, "-V", version, "-q", "1", "-t", "plant/last", "-m", version];
        assert!(Command::new("mosquitto_pub").args(arguments).status().unwrap().success());
    }
    subscriber.wait_for_count("plant/last", 2);
    gateway.stop();
    assert!(!path.exists(), "an ordered stop takes it away");
}

#[test]
fn a_websocket_over_a_unix_socket_serves_a_proxy() {
    let _turn = turn();
    let folder = folder();
    let path = folder.path().join("web.sock");
    let _gateway = Gateway::started(folder.path(), &listener(&path, "transport = \"websocket\""));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660, "the default");
    let port = common::port::free();
    let arguments =
        [format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"), format!("UNIX-CONNECT:{}", path.display())];
    let _proxy = common::process::Process::start("socat", "socat", &arguments);
    Publisher::started(port, "browser", "plant/press", 20, &["--websocket"]).wait_until_done();
}

#[test]
fn what_is_there_and_not_dead_is_left_alone_and_named() {
    let _turn = turn();
    let folder = folder();
    let path = folder.path().join("mqtt.sock");
    let mut living = Gateway::named("living", folder.path(), &listener(&path, ""));
    living.start();
    let refused = |name: &str, what: &str| {
        let mut gateway = Gateway::named(name, folder.path(), &listener(&path, ""));
        gateway.spawn();
        let status = gateway.ended();
        assert_eq!(status.code(), Some(75), "it may help to try again");
        let log = gateway.log().join("\n");
        let told = format!("cannot listen on unix:{} for broker.listener.socket: {what}", path.display());
        assert!(log.contains(&told), "{log}");
        assert!(log.contains("help: "), "{log}");
    };
    refused("second", "another process listens there");
    let shown = path.display().to_string();
    let arguments = ["--unix", &shown, "-q", "1", "-t", "plant/a", "-m", "x"];
    assert!(Command::new("mosquitto_pub").args(arguments).status().unwrap().success(), "the first goes on");
    living.stop();
    let strange = UnixListener::bind(&path).unwrap();
    refused("third", "another process listens there");
    drop(strange);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "notes of the owner").unwrap();
    refused("fourth", "something that is no socket is there");
    assert_eq!(fs::read_to_string(&path).unwrap(), "notes of the owner");
    fs::remove_file(&path).unwrap();
    let nowhere = folder.path().join("no/such/mqtt.sock");
    let mut gateway = Gateway::named("fifth", folder.path(), &listener(&nowhere, ""));
    gateway.spawn();
    gateway.ended();
    assert!(gateway.log().join("\n").contains("help: make the directory"), "{}", gateway.log().join("\n"));
}
