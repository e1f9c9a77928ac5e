//! Does any acknowledgement leave before the sync of what it acknowledges?
//!
//! strace watches the real program and holds every sync back for a while, as a slow SD card does; what the program
//! writes to the client's socket meanwhile is on record. The control is the same program and the same checker on
//! messages that no stream wants: nothing is promised for those, no sync is due, and the checker must say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::raw::{Heard, RawClient, Version};
use common::{PATIENCE, port, turn};
use tokio::time::Instant;

const SYNC_DELAY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A packet came from the client: its type and packet id.
    Came(u8, u16),
    /// The write-ahead log was written.
    LogWritten,
    /// A sync of the write-ahead log has ended well.
    LogSynced,
    /// A packet went to the client: its type and packet id.
    Left(u8, u16),
}

const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x60;
const PUBCOMP: u8 = 0x70;

/// The events of a trace, in the order of the kernel's answers.
fn events(trace: &str, client_port: u16) -> Vec<Event> {
    let mut unfinished = BTreeMap::<&str, String>::new();
    let mut events = Vec::new();
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(head) = call.strip_suffix("<unfinished ...>") {
            unfinished.insert(pid, head.to_owned());
            // A write counts from its beginning: the bytes may be on their way.
            events.extend(event(head, client_port).filter(|event| matches!(event, Event::Left(..))));
            continue;
        }
        if let Some(rest) = call.strip_prefix("<... ") {
            let Some((_, tail)) = rest.split_once("resumed>") else { continue };
            let whole = unfinished.remove(pid).unwrap_or_default() + tail;
            events.extend(event(&whole, client_port).filter(|event| !matches!(event, Event::Left(..))));
            continue;
        }
        events.extend(event(call, client_port));
    }
    events
}

fn event(call: &str, client_port: u16) -> Option<Event> {
    let (name, rest) = call.split_once('(')?;
    match name {
        "pwrite64" | "write" | "writev" | "pwritev" if file_of(rest).is_some_and(|file| file.ends_with("-wal")) => {
            Some(Event::LogWritten)
        }
        "fdatasync" | "fsync" if file_of(rest)?.ends_with("-wal") && rest.contains(" = 0") => Some(Event::LogSynced),
        "recvfrom" | "read" | "readv" | "recvmsg" if is_client(rest, client_port) => {
            packet(rest).map(|(first, body)| {
                let kind = first & 0xf0;
                // In PUBLISH the packet id stands behind the topic.
                let id_at = if kind == PUBLISH { 2 + usize::from(u16::from_be_bytes([body[0], body[1]])) } else { 0 };
                Event::Came(kind, u16::from_be_bytes([body[id_at], body[id_at + 1]]))
            })
        }
        "sendto" | "write" | "writev" | "sendmsg" if is_client(rest, client_port) => {
            packet(rest).map(|(first, body)| Event::Left(first & 0xf0, u16::from_be_bytes([body[0], body[1]])))
        }
        _ => None,
    }
}

fn file_of(arguments: &str) -> Option<String> {
    let (_, rest) = arguments.split_once('<')?;
    let (path, _) = rest.split_once('>')?;
    Some(String::from_utf8_lossy(&unescaped(path)).into_owned())
}

fn is_client(arguments: &str, client_port: u16) -> bool {
    arguments.split_once(">").is_some_and(|_| arguments.contains(&format!("->127.0.0.1:{client_port}]")))
}

/// First byte and body of the one packet in the quoted strings of a call that has a packet id.
fn packet(arguments: &str) -> Option<(u8, Vec<u8>)> {
    let bytes: Vec<u8> = arguments.split('"').skip(1).step_by(2).flat_map(unescaped).collect();
    let (first, length) = (*bytes.first()?, *bytes.get(1)?);
    let body = bytes.get(2..)?.to_vec();
    assert_eq!(usize::from(length), body.len(), "this test sends one small packet at a time: {arguments}");
    let has_id = matches!(first & 0xf0, PUBLISH | PUBACK | PUBREC | PUBREL | PUBCOMP);
    has_id.then_some((first, body))
}

/// `\x41\x42` as bytes; other characters stand for themselves.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hex = rest.strip_prefix("\\x").and_then(|hex| u8::from_str_radix(hex.get(..2)?, 16).ok());
        match hex {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.extend(first.to_string().bytes());
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    bytes
}

/// The acknowledgements before which nothing of their packet was synced, and how many there were in all.
fn early(events: &[Event]) -> (Vec<Event>, usize) {
    let mut early = Vec::new();
    let mut count = 0;
    for (place, left) in events.iter().enumerate() {
        let Event::Left(kind, id) = *left else { continue };
        let asked_by = if kind == PUBCOMP { PUBREL } else { PUBLISH };
        let before = &events[..place];
        let came = before.iter().rposition(|event| *event == Event::Came(asked_by, id));
        let since = came.map_or(&[][..], |came| &before[came..]);
        let written = since.iter().position(|event| *event == Event::LogWritten);
        let is_synced = written.is_some_and(|written| since[written..].contains(&Event::LogSynced));
        count += 1;
        if !is_synced {
            early.push(*left);
        }
    }
    (early, count)
}

fn traced_gateway(folder: &Path) -> Gateway {
    let trace = folder.join("trace");
    // A cloud that is not there.
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", port::free()), "") + FORWARD_PLANT;
    let mut gateway = Gateway::prepared(folder, &tables);
    let delay = format!("inject=fdatasync,fsync:delay_enter={}", SYNC_DELAY.as_micros());
    let calls = "trace=fdatasync,fsync,pwrite64,pwritev,write,writev,sendto,sendmsg,read,readv,recvfrom,recvmsg";
    gateway.set_tracer(&[
        "strace",
        "-f",
        "-yy",
        "-xx",
        "-s",
        "128",
        "-o",
        trace.to_str().unwrap(),
        "-e",
        calls,
        "-e",
        &delay,
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
    ]);
    gateway.start();
    gateway
}

fn publish_once(client: &mut RawClient, topic: &str, qos: u8, id: u16) -> Duration {
    let sent = Instant::now();
    client.publish(topic.as_bytes(), qos, id, b"1");
    let expected = if qos == 2 { PUBREC } else { PUBACK };
    assert_eq!(client.hear(PATIENCE), Heard::Packet(expected, id.to_be_bytes().to_vec()));
    let took = sent.elapsed();
    if qos == 2 {
        client.release(id);
        assert_eq!(client.hear(PATIENCE), Heard::Packet(PUBCOMP, id.to_be_bytes().to_vec()));
    }
    took
}

#[test]
fn no_acknowledgement_leaves_before_the_sync_and_the_checker_knows_one_that_does() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = traced_gateway(folder.path());
    let mut client = RawClient::connected(gateway.port, Version::V311, "client");
    let client_port = client.local_port();
    for id in 1..=15 {
        let took = publish_once(&mut client, "plant/press", 1, id);
        assert!(took >= SYNC_DELAY, "PUBACK {id} came after {took:?}, the sync takes {SYNC_DELAY:?}");
        let took = publish_once(&mut client, "plant/press", 2, 100 + id);
        assert!(took >= SYNC_DELAY, "PUBREC {id} came after {took:?}, the sync takes {SYNC_DELAY:?}");
    }
    let mut control = RawClient::connected(gateway.port, Version::V311, "control");
    let control_port = control.local_port();
    for id in 1..=15 {
        publish_once(&mut control, "elsewhere/press", 1, id);
    }
    gateway.stop();

    let trace = std::fs::read_to_string(folder.path().join("trace")).unwrap();
    let (early_ones, count) = early(&events(&trace, client_port));
    assert_eq!(count, 45, "15 PUBACK, 15 PUBREC and 15 PUBCOMP are on record");
    assert_eq!(early_ones, [], "acknowledged before the sync");
    let (early_ones, count) = early(&events(&trace, control_port));
    assert_eq!((early_ones.len(), count), (15, 15), "the checker must see that these were acknowledged without a sync");
}

#[test]
fn the_checker_bites_when_a_sync_comes_late_or_not_at_all() {
    use Event::{Came, Left, LogSynced, LogWritten};
    let good = [Came(PUBLISH, 1), LogWritten, LogSynced, Left(PUBACK, 1)];
    assert_eq!(early(&good), (vec![], 1));
    let late = [Came(PUBLISH, 1), LogWritten, Left(PUBACK, 1), LogSynced];
    assert_eq!(early(&late), (vec![Left(PUBACK, 1)], 1));
    let of_another = [LogWritten, Came(PUBLISH, 1), LogSynced, Left(PUBACK, 1)];
    assert_eq!(early(&of_another), (vec![Left(PUBACK, 1)], 1));
    let before_it_was_written = [Came(PUBLISH, 1), LogSynced, LogWritten, Left(PUBACK, 1)];
    assert_eq!(early(&before_it_was_written), (vec![Left(PUBACK, 1)], 1));
    let release = [Came(PUBREL, 7), Left(PUBCOMP, 7), LogWritten, LogSynced];
    assert_eq!(early(&release), (vec![Left(PUBCOMP, 7)], 1));
}

#[test]
fn the_checker_reads_what_strace_writes() {
    let trace = r#"
10 recvfrom(9<TCP:[127.0.0.1:1883->127.0.0.1:4000]>, "\x32\x06\x00\x01\x61\x00\x07\x31", 4096, 0, NULL, NULL) = 8
11 pwrite64(5<\x2f\x71\x2e\x64\x62\x2d\x77\x61\x6c>, "\x00"..., 1024, 0) = 1024
11 fdatasync(5<\x2f\x71\x2e\x64\x62\x2d\x77\x61\x6c> <unfinished ...>
10 sendto(9<TCP:[127.0.0.1:1883->127.0.0.1:4000]>, "\x40\x02\x00\x07", 4, MSG_NOSIGNAL, NULL, 0 <unfinished ...>
11 <... fdatasync resumed>) = 0 (DELAYED)
10 <... sendto resumed>) = 4
10 sendto(9<TCP:[127.0.0.1:1883->127.0.0.1:4001]>, "\x40\x02\x00\x08", 4, MSG_NOSIGNAL, NULL, 0) = 4
"#;
    use Event::{Came, Left, LogSynced, LogWritten};
    assert_eq!(events(trace, 4000), [Came(PUBLISH, 7), LogWritten, Left(PUBACK, 7), LogSynced]);
}

#[test]
fn the_first_acknowledgement_of_a_burst_waits_for_a_sync_too() {
    let _turn = turn();
    let folder = folder();
    let gateway = traced_gateway(folder.path());
    // Version 3.1.1 has no Receive Maximum to keep.
    let mut client = RawClient::connected(gateway.port, Version::V311, "client");
    let burst: Vec<u8> =
        (1..=200).flat_map(|id| client.publish_bytes(b"plant/press", 1, id, id.to_string().as_bytes())).collect();
    let sent = Instant::now();
    client.send(&burst);
    for id in 1..=200_u16 {
        match client.hear(PATIENCE) {
            Heard::Packet(PUBACK, body) => assert_eq!(body[..2], id.to_be_bytes(), "in the order of the publishes"),
            other => panic!("PUBACK {id}: {other:?}"),
        }
        let took = sent.elapsed();
        assert!(took >= SYNC_DELAY, "PUBACK {id} came after {took:?}, the sync takes {SYNC_DELAY:?}");
    }
}
