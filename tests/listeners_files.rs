//! Does the gateway go on where the system lets it open few files and many clients come?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::net::TcpStream;

use common::gateway::{Gateway, folder};
use common::raw::{Heard, RawClient, Version};
use common::{PATIENCE, turn, wait_until};

#[test]
fn clients_never_take_the_files_that_the_store_needs() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::prepared(folder.path(), "");
    gateway.set_launcher(&["prlimit", "--nofile=300:300", "--"]);
    gateway.start();
    let mut there = Vec::new();
    let refused = loop {
        match RawClient::try_connected(gateway.port, Version::V5, &format!("client-{}", there.len()), None) {
            Ok(client) => there.push(client),
            Err(refused) => break refused,
        }
        assert!(there.len() < 300, "there are more clients than files");
    };
    // CONNACK with "quota exceeded".
    assert!(matches!(&refused, Heard::Packet(0x20, body) if body[1] == 0x97), "{refused:?}");
    // And as many that say nothing.
    let _silent: Vec<TcpStream> =
        (0..300).filter_map(|_| TcpStream::connect(("127.0.0.1", gateway.port)).ok()).collect();
    let first = &mut there[0];
    first.publish(b"plant/a", 1, 7, b"x");
    wait_until(PATIENCE, "a message is acknowledged", || match first.hear(PATIENCE) {
        Heard::Packet(0x40, body) if body.starts_with(&[0, 7]) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    gateway.wait_for_status("it is asked and answers", |status| {
        (status["sessions"]["connected"].as_u64()? == there.len() as u64).then_some(())
    });
    let log = gateway.log().join("\n");
    assert!(log.contains("may open too few files"), "{log}");
    assert!(!log.contains("could not be accepted"), "{log}");
}
