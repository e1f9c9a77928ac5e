//! Does any acknowledgement leave before the sync of its row, over thousands of messages?
//!
//! `common/order.rs` reads a trace of the real program's system calls: four publishers with full windows (MQTT 3.1.1
//! and 5, QoS 1 and 2), the cloud there and taking what comes, so that commits of every kind lie between. The control is
//! a fifth publisher whose messages no stream wants: they are acknowledged without any sync, which must be seen.
//!
//! With `flash = "spare"` the cloud's acknowledgement of the same message is as good as the sync. Its control beside the
//! fifth publisher: who does not look at what the cloud says, must see acknowledgements that nothing stands behind.

use std::fs::File;
use std::io::BufReader;

use super::budget::{Budget, Cases};
use super::common::cloud::{Access, Mosquitto};
use super::common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use super::common::order::{PUBACK, PUBCOMP, PUBREC, Proof, Watched, mark, tracer};
use super::common::raw::{Heard, RawClient, Version};
use super::common::{PATIENCE, wait_until};

const PUBLISHERS: u64 = 4;
const BURST: u64 = 25;

#[test]
fn no_acknowledgement_leaves_before_the_sync_of_its_row() {
    trace("trace", Flash::Always);
}

#[test]
fn when_the_flash_is_spared_no_acknowledgement_leaves_before_the_sync_of_its_row_or_the_acknowledgement_of_the_cloud() {
    trace("trace_spare", Flash::Spare);
}

#[derive(Clone, Copy, PartialEq)]
enum Flash {
    Always,
    Spare,
}

fn trace(name: &'static str, flash: Flash) {
    let mut budget = Budget::begin(name, Cases { short: 1, long: 1 });
    let messages = if budget.share().is_none() { 2_000 } else { 10_000 };
    while let Some(case) = budget.next() {
        let mut random = case.random.clone();
        let folder = folder();
        let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
        cloud.start();
        let mode = if flash == Flash::Spare { "[queue]\nflash = \"spare\"\nhold = \"1s\"\n" } else { "" };
        let tables = mode.to_owned() + &uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT;
        let mut gateway = Gateway::prepared(folder.path(), &tables);
        let trace = folder.path().join("trace");
        // Some syncs are slow, so that a sync is nearly always under way when something comes.
        let delay = format!("inject=fdatasync:delay_enter={}:when=1+{}", 3000, random.within(2..6));
        gateway.set_tracer(&tracer(trace.to_str().unwrap(), &["-e", &delay]));
        gateway.start();
        gateway.wait_until_connected();

        let mut ports = Vec::new();
        std::thread::scope(|scope| {
            for (version, qos) in [(Version::V311, 1), (Version::V311, 2), (Version::V5, 1), (Version::V5, 2)] {
                let mut client = RawClient::connected(gateway.port, version, &format!("{version:?}-{qos}"));
                ports.push(client.local_port());
                let publish = move || publish(&mut client, "plant/traced", qos, messages / PUBLISHERS);
                // What is written at QoS 2 takes with it what is held: one after the other, so that some is only held.
                match flash {
                    Flash::Always => drop(scope.spawn(publish)),
                    Flash::Spare => scope.spawn(publish).join().unwrap(),
                }
            }
        });
        let mut control = RawClient::connected(gateway.port, Version::V311, "control");
        let control_port = control.local_port();
        publish(&mut control, "elsewhere/traced", 1, 100);
        wait_until(PATIENCE, "the cloud has all of it", || {
            let status = gateway.status()?;
            let is_so = status["uplinks"]["cloud"]["waiting"] == 0;
            if is_so { Ok(()) } else { Err(status["uplinks"].to_string()) }
        });
        gateway.stop();

        let judged = |cloud: Option<u16>| {
            let watched = Watched { clients: ports.iter().copied().chain([control_port]).collect(), cloud };
            Proof::of(BufReader::new(File::open(&trace).unwrap()), watched)
        };
        let proof = judged((flash == Flash::Spare).then_some(cloud.port));
        let shown: Vec<_> = ports.iter().map(|port| proof.shown(*port)).collect();
        let acknowledgements: usize = shown.iter().map(|shown| shown.acknowledgements).sum();
        let early: Vec<_> = shown.iter().flat_map(|shown| shown.early.clone()).collect();
        let control = proof.shown(control_port);
        budget.say(format!(
            "seed {}: {messages} messages, {acknowledgements} acknowledgements, {} of them before the sync of their \
             row; the control: {} of {}",
            case.seed,
            early.len(),
            control.early.len(),
            control.acknowledgements
        ));
        // PUBACK for one half; PUBREC and PUBCOMP for the other.
        assert_eq!(acknowledgements as u64, messages / 2 * 3, "not every acknowledgement is on record");
        assert_eq!(early, [], "acknowledged before the sync");
        assert_eq!((control.early.len(), control.acknowledgements), (100, 100), "the proof must bite");
        match flash {
            Flash::Always => assert!(proof.rows() as u64 >= messages, "{} rows were found in the log", proof.rows()),
            Flash::Spare => {
                let blind = judged(None);
                let early: usize = ports.iter().map(|port| blind.shown(*port).early.len()).sum();
                budget.say(format!("without a look at the cloud {early} would stand on nothing"));
                assert!(early as u64 > messages / 10, "hardly anything was spared, so that nothing is shown: {early}");
                assert!(proof.rows() as u64 >= messages / 2, "at QoS 2 all is written: {} rows", proof.rows());
            }
        }
    }
}

fn publish(client: &mut RawClient, topic: &str, qos: u8, count: u64) {
    let first_answer = if qos == 2 { PUBREC } else { PUBACK };
    for burst in 0..count / BURST {
        let ids: Vec<u16> = (1..=BURST).map(|place| u16::try_from(burst * BURST + place).unwrap()).collect();
        let name = format!("{}", client.local_port());
        let bytes = ids
            .iter()
            .flat_map(|id| client.publish_bytes(topic.as_bytes(), qos, *id, mark(&name, u64::from(*id)).as_bytes()))
            .collect::<Vec<u8>>();
        client.send(&bytes);
        expect(client, first_answer, &ids);
        if qos == 2 {
            ids.iter().for_each(|id| client.release(*id));
            expect(client, PUBCOMP, &ids);
        }
    }
}

fn expect(client: &mut RawClient, kind: u8, ids: &[u16]) {
    for id in ids {
        match client.hear(PATIENCE) {
            Heard::Packet(first, body) if first == kind && body[..2] == id.to_be_bytes() => {}
            other => panic!("{kind:#x} for {id}: {other:?}"),
        }
    }
}
