//! Does any acknowledgement leave before the sync of what it acknowledges?
//!
//! strace watches the real program and holds every sync back for a while, as a slow SD card does; what the program
//! writes to the client's socket meanwhile is on record. The control is the same program and the same proof on
//! messages that no stream wants: nothing is promised for those, no sync is due, and the proof must say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::order::{Event, PUBACK, PUBCOMP, PUBREC, PUBREL, Proof, Reader, Shown, Watched, mark, tracer};
use common::raw::{Heard, RawClient, Version, packet};
use common::{PATIENCE, port, turn};
use tokio::time::Instant;

const SYNC_DELAY: Duration = Duration::from_millis(100);

fn traced_gateway(folder: &Path) -> Gateway {
    // A cloud that is not there.
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", port::free()), "") + FORWARD_PLANT;
    let mut gateway = Gateway::prepared(folder, &tables);
    let delay = format!("inject=fdatasync,fsync:delay_enter={}", SYNC_DELAY.as_micros());
    gateway.set_tracer(&tracer(folder.join("trace").to_str().unwrap(), &["-e", &delay]));
    gateway.start();
    gateway
}

fn publish_once(client: &mut RawClient, topic: &str, qos: u8, id: u16) -> Duration {
    let sent = Instant::now();
    client.publish(topic.as_bytes(), qos, id, mark(topic, u64::from(id)).as_bytes());
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

    let trace = BufReader::new(File::open(folder.path().join("trace")).unwrap());
    let proof = Proof::of(trace, Watched { clients: vec![client_port, control_port], cloud: None });
    let shown = proof.shown(client_port);
    assert_eq!(shown.acknowledgements, 45, "15 PUBACK, 15 PUBREC and 15 PUBCOMP are on record");
    assert_eq!(shown.early, [], "acknowledged before the sync");
    let shown = proof.shown(control_port);
    let counts = (shown.early.len(), shown.acknowledgements);
    assert_eq!(counts, (15, 15), "the proof must see that these were acknowledged without a sync");
}

/// The client that the proofs below watch.
const CLIENT: u16 = 4000;
const CLOUD: u16 = 8883;

fn publish(id: u16, number: u64) -> Vec<u8> {
    let mut body = b"\x00\x01t".to_vec();
    body.extend(id.to_be_bytes());
    body.extend(mark("m", number).into_bytes());
    packet(0x32, &body)
}

fn answer(kind: u8, id: u16) -> Vec<u8> {
    packet(kind | if kind == PUBREL { 2 } else { 0 }, &id.to_be_bytes())
}

fn came(id: u16, number: u64) -> Event {
    Event::Came(CLIENT, publish(id, number))
}

fn leaves(kind: u8, id: u16) -> Event {
    Event::Leaves(CLIENT, answer(kind, id))
}

fn written(number: u64) -> Event {
    Event::LogWritten(format!("a page with {} and more", mark("m", number)).into_bytes())
}

fn shown_with(cloud: Option<u16>, events: impl IntoIterator<Item = Event>) -> Shown {
    let mut proof = Proof::new(Watched { clients: vec![CLIENT], cloud });
    events.into_iter().for_each(|event| proof.note(event));
    proof.shown(CLIENT)
}

fn early(events: impl IntoIterator<Item = Event>) -> Vec<(u8, u16)> {
    let shown = shown_with(None, events);
    assert_eq!(shown.acknowledgements, 1);
    shown.early
}

#[test]
fn the_proof_bites_when_a_sync_comes_late_or_not_at_all() {
    use Event::{SyncBegins, SyncEnds};
    let is_early = vec![(PUBACK, 1)];
    assert_eq!(early([came(1, 7), written(7), SyncBegins(9), SyncEnds(9), leaves(PUBACK, 1)]), []);
    assert_eq!(early([came(1, 7), written(7), leaves(PUBACK, 1), SyncBegins(9), SyncEnds(9)]), is_early);
    assert_eq!(early([came(1, 7), written(7), SyncBegins(9), leaves(PUBACK, 1), SyncEnds(9)]), is_early);
    assert_eq!(early([came(1, 7), written(8), SyncBegins(9), SyncEnds(9), leaves(PUBACK, 1)]), is_early, "another row");
    assert_eq!(
        early([came(1, 7), SyncBegins(9), written(7), SyncEnds(9), leaves(PUBACK, 1)]),
        is_early,
        "another sync"
    );
    // The sync of another thread that began before the row was written.
    let events = [came(1, 7), SyncBegins(8), written(7), SyncBegins(9), SyncEnds(8), leaves(PUBACK, 1)];
    assert_eq!(early(events), is_early);
    // What was written before a failed sync may be lost although the next sync ends well.
    let events = [came(1, 7), written(7), SyncBegins(9), Event::Fails, SyncBegins(9), SyncEnds(9), leaves(PUBACK, 1)];
    assert_eq!(early(events), is_early);
    let release = Event::Came(CLIENT, answer(PUBREL, 1));
    assert_eq!(early([release.clone(), leaves(PUBCOMP, 1), written(8), SyncBegins(9), SyncEnds(9)]), [(PUBCOMP, 1)]);
    assert_eq!(early([release, written(8), SyncBegins(9), SyncEnds(9), leaves(PUBCOMP, 1)]), []);
}

#[test]
fn the_clouds_acknowledgement_is_as_good_as_the_disk_where_the_proof_is_told_so() {
    let up = Event::Leaves(CLOUD, publish(50, 7));
    let accepted = Event::Came(CLOUD, answer(PUBACK, 50));
    let good = [came(1, 7), up.clone(), accepted.clone(), leaves(PUBACK, 1)];
    let early = |cloud, events: [Event; 4]| shown_with(cloud, events).early;
    assert_eq!(early(Some(CLOUD), good.clone()), []);
    assert_eq!(early(None, good), [(PUBACK, 1)], "not where only the disk counts");
    let before = [came(1, 7), up.clone(), leaves(PUBACK, 1), accepted];
    assert_eq!(early(Some(CLOUD), before), [(PUBACK, 1)]);
    let refused = Event::Came(CLOUD, packet(PUBACK, &[0, 50, 0x97]));
    assert_eq!(early(Some(CLOUD), [came(1, 7), up, refused, leaves(PUBACK, 1)]), [(PUBACK, 1)]);
}

#[test]
fn the_proof_reads_what_strace_writes() {
    let trace = r#"
10 recvfrom(9<TCP:[127.0.0.1:1883->127.0.0.1:4000]>, "\x32\x06\x00\x01\x61\x00\x07\x31", 4096, 0, NULL, NULL) = 8
10 recvfrom(9<TCP:[127.0.0.1:1883->127.0.0.1:4000]>, 0x7ffd, 4096, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)
11 pwrite64(5<\x2f\x71\x2e\x64\x62\x2d\x77\x61\x6c>, "\x00", 1, 0) = 1
11 fdatasync(5<\x2f\x71\x2e\x64\x62\x2d\x77\x61\x6c> <unfinished ...>
10 sendto(9<TCP:[127.0.0.1:1883->127.0.0.1:4000]>, "\x40\x02\x00\x07", 4, MSG_NOSIGNAL, NULL, 0 <unfinished ...>
11 <... fdatasync resumed>) = 0 (DELAYED)
10 <... sendto resumed>) = 4
10 sendto(9<TCP:[127.0.0.1:1883->127.0.0.1:4001]>, "\x40\x02\x00\x08", 4, MSG_NOSIGNAL, NULL, 0) = 4
11 fdatasync(6<\x2f\x71\x2e\x64\x62>) = 0
"#;
    let mut reader = Reader::default();
    let events: Vec<Event> = trace.lines().skip(1).flat_map(|line| reader.events(line)).collect();
    let came = |bytes: &[u8]| Event::Came(4000, bytes.to_vec());
    let expected = [
        came(b"\x32\x06\x00\x01\x61\x00\x07\x31"),
        came(b""),
        Event::LogWritten(vec![0]),
        Event::SyncBegins(11),
        Event::Leaves(4000, vec![0x40, 2, 0, 7]),
        Event::SyncEnds(11),
        Event::Leaves(4001, vec![0x40, 2, 0, 8]),
    ];
    assert_eq!(events, expected);
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
