//! Does another master reach the devices of a line through us, between our own polls, within bounds, and only as far as the
//! owner lets it?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;
mod writes_support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use common::gateway::{Gateway, PROGRAM, folder};
use common::peers::{Cable, ModbusServer};
use common::{PATIENCE, port, turn, wait_until};
use serde_json::json;
use writes_support::{Asker, Device, Manner};

/// Another master.
struct Master(TcpStream, u16);

impl Master {
    fn connected(port: u16) -> Master {
        let stream = wait_until(PATIENCE, "the line is shared", || {
            TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())
        });
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Master(stream, 0)
    }

    fn send(&mut self, unit: u8, pdu: &[u8]) {
        self.1 += 1;
        let length = u16::try_from(pdu.len() + 1).unwrap();
        let head = [&self.1.to_be_bytes()[..], &[0, 0], &length.to_be_bytes(), &[unit]].concat();
        self.0.write_all(&[&head[..], pdu].concat()).unwrap();
    }

    fn hear(&mut self, unit: u8) -> Vec<u8> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).unwrap();
        assert_eq!((&head[..4], head[6]), (&[&self.1.to_be_bytes()[..], &[0, 0]].concat()[..], unit));
        let mut pdu = vec![0; usize::from(u16::from_be_bytes([head[4], head[5]])) - 1];
        self.0.read_exact(&mut pdu).unwrap();
        pdu
    }

    fn asked(&mut self, unit: u8, pdu: &[u8]) -> Vec<u8> {
        self.send(unit, pdu);
        self.hear(unit)
    }
}

fn shared(device: &str, port: u16, more: &str) -> String {
    format!(
        "[line.bus]\n{device}\ntimeout = \"300ms\"\nshare = {{ bind = \"127.0.0.1:{port}\", {more} }}\n\
         [modbus.d]\nline = \"bus\"\nunit_id = 1\npoll = \"50ms\"\n[modbus.d.point]\n\
         level = {{ address = \"holding:1\", type = \"u16\", write = {{ per_minute = 1000 }} }}\n"
    )
}

#[test]
fn another_master_reads_and_writes_a_serial_bus_through_us_while_we_poll_it() {
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let units = json!({
        "1": {"fill": true, "cells": [{"table": "holding", "address": 9, "type": "u16", "value": 900}]},
        "7": {"fill": true, "cells": [{"table": "input", "address": 3, "type": "u16", "value": 77}]}
    });
    let server = ModbusServer::on_serial(&cable.far, &units);
    let port = port::free();
    let line = format!("port = \"{}\"\nbaud = 19200\nmode = \"8N1\"", cable.near.display());
    let gateway = Gateway::started(folder.path(), &shared(&line, port, "write = true"));
    let mut master = Master::connected(port);
    assert_eq!(master.asked(1, &[3, 0, 9, 0, 1]), [3, 2, 3, 0x84]);
    assert_eq!(master.asked(7, &[4, 0, 3, 0, 1]), [4, 2, 0, 77], "a unit that is not ours");
    assert_eq!(master.asked(1, &[6, 0, 9, 0, 5]), [6, 0, 9, 0, 5]);
    assert_eq!(master.asked(1, &[16, 0, 1, 0, 1, 2, 0, 42]), [16, 0, 1, 0, 1]);
    assert_eq!(master.asked(1, &[3, 3, 0xE8, 0, 1]), [0x83, 2], "what the device refuses is told as it is");
    assert_eq!(server.writes(), ["1 0600090005", "1 100001000102002a"]);
    gateway.wait_for_status("our own polls see it", |status| (status["devices"]["d"]["state"] == "good").then_some(()));
    // A unit that is not there costs one timeout, and is not asked at once again.
    assert_eq!(master.asked(9, &[3, 0, 0, 0, 1]), [0x83, 11]);
    assert_eq!(master.asked(9, &[3, 0, 0, 0, 1]), [0x83, 11]);
    assert_eq!(master.asked(1, &[3, 0, 9, 0, 1]), [3, 2, 0, 5]);
    // A broadcast, and what is no function of ours.
    assert_eq!((master.asked(0, &[6, 0, 9, 0, 5]), master.asked(1, &[8, 0, 0, 0, 0])), (vec![0x86, 10], vec![0x88, 1]));
}

#[test]
fn without_write_nothing_changes_and_polls_writes_and_others_take_turns() {
    let _turn = turn();
    let folder = folder();
    let device = Device::started(Manner::Good);
    let port = port::free();
    let gateway =
        Gateway::started(folder.path(), &shared(&format!("url = \"{}\"", device.url()), port, "write = false"));
    let mut master = Master::connected(port);
    assert_eq!(master.asked(1, &[6, 0, 1, 0, 5]), [0x86, 1]);
    assert_eq!(master.asked(1, &[23, 0, 1, 0, 1, 0, 1, 0, 1, 2, 0, 5]), [0x97, 1]);
    assert_eq!(device.writes().len(), 0);
    // Floods from both sides; polls go on.
    device.set(|state| state.pause = Duration::from_millis(5));
    let mut asker = Asker::connected(gateway.port);
    let asking = std::thread::spawn(move || {
        for _ in 0..60 {
            assert_eq!(master.asked(1, &[3, 0, 150, 0, 2]), [3, 4, 0, 0, 0, 0]);
        }
    });
    for value in 0..20 {
        assert_eq!(asker.asked("d/level", &value.to_string())["ok"], true);
    }
    asking.join().unwrap();
    let polls = device.set(|state| state.requests.iter().filter(|pdu| pdu[..] == [3, 0, 1, 0, 1]).count());
    assert!(polls > 20, "our own reads go on: {polls}");
    assert_eq!(device.writes().len(), 20);
    gateway.wait_for_status("nothing failed", |status| {
        let d = &status["devices"]["d"];
        (d["failures"] == 0 && d["state"] == "good" && d["writes"]["written"] == 20).then_some(())
    });
}

#[test]
fn a_flood_of_masters_is_bounded_and_a_line_that_is_down_is_said_to_be() {
    let _turn = turn();
    let folder = folder();
    let device = Device::prepared();
    let port = port::free();
    let _gateway =
        Gateway::started(folder.path(), &shared(&format!("url = \"{}\"", device.url()), port, "write = false"));
    let mut master = Master::connected(port);
    assert_eq!(master.asked(1, &[3, 0, 1, 0, 1]), [0x83, 10], "nobody is there");
    device.listen();
    wait_until(PATIENCE, "it is read", || match master.asked(1, &[3, 0, 1, 0, 1]) {
        pdu if pdu == [3, 2, 0, 0] => Ok(()),
        pdu => Err(format!("{pdu:?}")),
    });
    // Whoever speaks something else is thrown out, and harms nobody.
    let mut odd = TcpStream::connect(("127.0.0.1", port)).unwrap();
    odd.set_read_timeout(Some(PATIENCE)).unwrap();
    odd.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(odd.read(&mut [0; 16]), Ok(0) | Err(_)));
    // More than there is room for: they wait at the door, and the first is served.
    let others: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!(master.asked(1, &[3, 0, 1, 0, 1]), [3, 2, 0, 0]);
    drop(others);
    assert_eq!(Master::connected(port).asked(1, &[3, 0, 1, 0, 1]), [3, 2, 0, 0]);
}

#[test]
fn a_line_is_shared_on_loopback_unless_the_owner_says_otherwise() {
    let folder = folder();
    let path = folder.path().join("tidegate.toml");
    let check = |share: &str| {
        let text = format!(
            "[gateway]\nid = \"g\"\nstate_dir = \"{}\"\n[line.l]\nurl = \"tcp://127.0.0.1:1502\"\nshare = {share}\n\
             [modbus.d]\nline = \"l\"\nunit_id = 1\n[modbus.d.point]\np = {{ address = \"holding:1\", type = \"u16\" }}\n",
            folder.path().display()
        );
        std::fs::write(&path, text).unwrap();
        let output = Command::new(PROGRAM).args(["check", "--config"]).arg(&path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr))
    };
    for share in [
        "\"127.0.0.1:1503\"",
        "{ bind = \"[::1]:1503\", write = true }",
        "{ bind = \"10.0.0.1:1503\", plaintext = true }",
    ] {
        let (code, said) = check(share);
        assert_eq!(code, Some(0), "{said}");
    }
    for share in ["\"0.0.0.0:1503\"", "{ bind = \"10.0.0.1:1503\" }", "\"127.0.0.1:0\"", "\"unix:/run/x\"", "true"] {
        let (code, said) = check(share);
        assert!(code == Some(78), "{share}: {said}");
    }
}
