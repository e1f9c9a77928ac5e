//! The means of these tests, tested without the gateway: a test that cannot fail proves nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::panic::catch_unwind;
use std::process::Command;
use std::time::Duration;

use common::account::{assert_none_lost, assert_whole_in_order_and_once};
use common::certificates::Certificates;
use common::cloud::{Access, Mosquitto};
use common::gateway::folder;
use common::peers::{Cable, Publisher, Subscriber};
use common::process::Process;
use common::{port, turn, wait_until};

#[test]
fn the_account_finds_what_is_lost_repeated_and_out_of_order() {
    assert_whole_in_order_and_once("all", &[0, 1, 2], 0..3);
    for wrong in [&[0, 2][..], &[0, 1, 1, 2], &[0, 2, 1], &[0, 1, 2, 3], &[]] {
        let caught = catch_unwind(|| assert_whole_in_order_and_once("wrong", wrong, 0..3));
        assert!(caught.is_err(), "{wrong:?} must not pass");
    }
    assert_none_lost("with a repeat", &[2, 0, 1, 1, 9], &[0, 1, 2]);
    assert!(catch_unwind(|| assert_none_lost("lost", &[0, 1], &[0, 1, 2])).is_err());
}

#[test]
fn waiting_ends_with_what_was_seen_instead() {
    let patience = Duration::from_millis(50);
    let caught = catch_unwind(|| wait_until(patience, "it is day", || Err::<(), _>("it is night".to_owned())));
    let said = caught.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("until it is day; at last: it is night"), "{said}");
}

#[test]
fn a_port_tells_which_process_serves_it() {
    let port = port::free();
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert!(port::is_served_by(port, std::process::id()));
    assert!(!port::is_served_by(port, 1), "another process must not be taken for it");
    drop(listener);
    assert!(!port::is_served_by(port, std::process::id()));
}

#[test]
fn a_process_is_gone_when_its_owner_is() {
    let process = Process::start("sleep", "sleep", &["600"]);
    let id = process.id();
    assert!(std::path::Path::new(&format!("/proc/{id}")).exists());
    drop(process);
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
}

#[test]
fn the_cloud_keeps_the_session_of_the_application_over_a_stop() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["plant/#"]);
    cloud.stop();
    cloud.start();
    // At once, before the application is back: what comes meanwhile is kept for it.
    let mut publisher = Publisher::started(cloud.port, "client", "plant/press", 500, &["--qos", "2"]);
    publisher.wait_until_done();
    application.wait_for_count("plant/press", 500);
    assert_whole_in_order_and_once("over a stop", &application.numbers_on("plant/press"), 0..500);
}

#[test]
fn the_cloud_asks_for_what_a_test_tells_it_to_ask_for() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), "hall-3");
    let other = Certificates::make(&folder.path().join("other"), "hall-3");
    let knock = |port: u16, arguments: &[&std::ffi::OsStr]| {
        let port = port.to_string();
        let base = ["-h", "localhost", "-p", &port, "-t", "x", "-m", "y", "-q", "1"];
        Command::new("mosquitto_pub").args(base).args(arguments).output().unwrap().status.success()
    };
    let Certificates { ca, client_cert, client_key, .. } = &certificates;
    let ca = ["--cafile".as_ref(), ca.as_os_str()].to_vec();
    let me = ["--cert".as_ref(), client_cert.as_os_str(), "--key".as_ref(), client_key.as_os_str()].to_vec();
    let wrong_ca = ["--cafile".as_ref(), other.ca.as_os_str()].to_vec();
    let arguments = [[ca.clone(), me.clone()].concat(), ca, [wrong_ca, me].concat()];
    let arguments: Vec<Vec<std::ffi::OsString>> =
        arguments.into_iter().map(|words| words.into_iter().map(ToOwned::to_owned).collect()).collect();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: true });
    cloud.start();
    let let_in: Vec<bool> = arguments
        .iter()
        .map(|words| knock(cloud.tls_port.unwrap(), &words.iter().map(AsRef::as_ref).collect::<Vec<_>>()))
        .collect();
    assert_eq!(let_in, [true, false, false], "with a certificate, without one, with the wrong authority");

    let mut closed =
        Mosquitto::prepared(&folder.path().join("other"), Access::Password { user: "hall", password: "correct horse" });
    closed.start();
    let with = |password: &str| knock(closed.port, &["-u".as_ref(), "hall".as_ref(), "-P".as_ref(), password.as_ref()]);
    assert_eq!((with("correct horse"), with("wrong"), knock(closed.port, &[])), (true, false, false));
}

#[test]
fn a_cable_carries_bytes_as_they_are_both_ways() {
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let open = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (mut near, mut far) = (open(&cable.near), open(&cable.far));
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut heard = vec![0; 256];
    near.write_all(&every_byte).unwrap();
    far.read_exact(&mut heard).unwrap();
    assert_eq!(heard, every_byte);
    far.write_all(&every_byte).unwrap();
    near.read_exact(&mut heard).unwrap();
    assert_eq!(heard, every_byte);
}
