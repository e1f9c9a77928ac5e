//! Does a full queue leave the plant alone, however long the cloud is away and however hard its publishers press?
//!
//! The cloud is away, the store is small and stays full: under `drop-oldest` its oldest messages go, under `refuse` its
//! publishers are told so (in MQTT 3.1.1, which cannot say it, by silence or an end). Meanwhile local clients talk to each
//! other at QoS 0, 1 and 2 and must hear every message in order; the memory of the process stays as it is. In the end the
//! cloud comes, and has all that was acknowledged but for what was declared as dropped, of which the number must fit.
//! How much slower local clients are is `benches/full_store.py`'s question.

use std::collections::VecDeque;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::budget::{Budget, Cases};
use super::common::account::{lost, repeated};
use super::common::gateway::{FORWARD_PLANT, Gateway, ID, folder, uplink};
use super::common::raw::{Heard, RawClient, Version, packet};
use super::common::{PATIENCE, wait_until};
use super::numbers::{Numbers, Said};
use super::random::Random;
use super::stand_in::{Memory, StandIn};

/// How long the store is full in the short form, each way.
const HELD_MIN: Duration = Duration::from_secs(2);
const STORE_BYTES: u64 = 1 << 20;
/// The ceiling is one for messages; packet ids at QoS 2 come on top of it, out of the reserve of a mebibyte.
const IDS_BYTES: u64 = 64 << 10;
/// What a 3.1.1 publisher waits for an answer where there may be none.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    DropOldest,
    Refuse,
}

impl WhenFull {
    fn name(self) -> &'static str {
        match self {
            WhenFull::DropOldest => "drop-oldest",
            WhenFull::Refuse => "refuse",
        }
    }
}

#[test]
fn a_queue_that_stays_full_leaves_local_clients_alone_and_keeps_what_it_acknowledged() {
    let mut budget = Budget::begin("full_queue", Cases { short: 1, long: 1 });
    // Of the share something is left for filling and draining.
    let held = budget.share().map_or(HELD_MIN, |share| share.mul_f64(0.4).max(HELD_MIN));
    while let Some(mut case) = budget.next() {
        for when_full in [WhenFull::DropOldest, WhenFull::Refuse] {
            let told = stay_full(when_full, held, &mut case.random);
            budget.say(format!("seed {}, {}, full for {} s: {told}", case.seed, when_full.name(), held.as_secs()));
        }
    }
}

fn stay_full(when_full: WhenFull, held: Duration, random: &mut Random) -> String {
    let folder = folder();
    let cloud = StandIn::prepared();
    let tables = format!("[queue]\nmax_bytes = \"1 MiB\"\nwhen_full = \"{}\"\n", when_full.name())
        + &uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    let is_over = AtomicBool::new(false);
    let pressures = Pressure::of_each_kind(when_full);
    let talks = [(0, Version::V311), (1, Version::V5), (2, Version::V311)].map(|(qos, version)| Talk { qos, version });
    let port = gateway.port;
    let (pressed, talked) = std::thread::scope(|scope| {
        // Whatever fails here must let the others end.
        let _end = Raised(&is_over);
        let pressing: Vec<_> = pressures
            .iter()
            .map(|pressure| {
                let (mut random, is_over) = (random.branch(), &is_over);
                scope.spawn(move || pressure.press(port, &mut random, is_over))
            })
            .collect();
        wait_until(PATIENCE, "the store is full", || {
            let status = gateway.status()?;
            if is_full(when_full, &status, &pressures) { Ok(()) } else { Err(status["queue"].to_string()) }
        });
        let talking: Vec<_> = talks
            .iter()
            .map(|talk| {
                let is_over = &is_over;
                scope.spawn(move || talk.go_on(port, is_over))
            })
            .collect();
        watch(&gateway, when_full, held, &pressures);
        is_over.store(true, Ordering::Relaxed);
        let pressed: Vec<Pressed> = pressing.into_iter().map(|one| one.join().unwrap()).collect();
        let talked: Vec<Talked> = talking.into_iter().map(|one| one.join().unwrap()).collect();
        (pressed, talked)
    });
    assert_eq!(gateway.has_ended(), None, "a full store ends nothing");

    cloud.begin(Memory::default(), None);
    gateway.wait_until_drained();
    let mut last = RawClient::connected(port, Version::V311, "last");
    last.publish(b"plant/last", 1, 1, b"1");
    assert!(matches!(last.hear(PATIENCE), Heard::Packet(0x40, _)), "there is room again");
    cloud.wait("the last message", |memory| !memory.numbers_on("factory7/plant/last").is_empty());
    let declared = declared(&gateway.status().unwrap(), when_full);
    let (acknowledged, lost) = account(&cloud.memory(), &pressures, &pressed);
    let is_cut = pressed.iter().any(|one| one.cuts > 0);
    match when_full {
        WhenFull::Refuse => assert_eq!((lost, declared), (0, 0), "nothing is lost, and nothing is declared"),
        // What nobody heard an answer to may be in the store, and be dropped, as well.
        WhenFull::DropOldest if is_cut => assert!(lost <= declared, "{lost} are lost and {declared} declared"),
        WhenFull::DropOldest => assert_eq!(lost, declared, "every loss is declared, and nothing else"),
    }
    if when_full == WhenFull::DropOldest {
        let gap = format!("tidegate/{ID}/gap");
        cloud.wait("the gap record", |memory| memory.arrived.iter().any(|arrival| arrival.topic == gap));
    }
    let refused: u64 = pressures.iter().map(|pressure| pressure.refused.load(Ordering::Relaxed)).sum();
    let heard: u64 = talked.iter().map(|one| one.heard).sum();
    let slowest = talked.iter().map(|one| one.slowest).max().unwrap_or_default();
    gateway.stop();
    format!(
        "{acknowledged} acknowledged, {refused} refused, {declared} declared as dropped, {lost} of them acknowledged, 0 \
         missing beside; {heard} local messages heard, ten of them within {} ms at worst",
        slowest.as_millis()
    )
}

/// Sets its flag when it goes, also while a test fails.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Something has had to go, or was turned away.
fn is_full(when_full: WhenFull, status: &Value, pressures: &[Pressure]) -> bool {
    match when_full {
        WhenFull::DropOldest => status["losses"]["dropped-oldest"].as_u64().is_some_and(|count| count > 0),
        WhenFull::Refuse => pressures.iter().any(|pressure| pressure.refused.load(Ordering::Relaxed) > 0),
    }
}

/// Looks at the process for so long: its store is and stays full and under its ceiling, and its memory does not grow.
fn watch(gateway: &Gateway, when_full: WhenFull, held: Duration, pressures: &[Pressure]) {
    let until = Instant::now() + held;
    let first = rss_kib(gateway);
    let given_way = |status: &Value| match when_full {
        WhenFull::DropOldest => status["losses"]["dropped-oldest"].as_u64().unwrap_or(0),
        WhenFull::Refuse => pressures.iter().map(|pressure| pressure.refused.load(Ordering::Relaxed)).sum(),
    };
    let mut before = given_way(&gateway.status().unwrap());
    while Instant::now() < until {
        before = wait_until(PATIENCE, "more gives way: the store is still full", || {
            let status = gateway.status()?;
            let bytes = status["queue"]["bytes"].as_u64().ok_or("no bytes")?;
            assert!(bytes <= STORE_BYTES + IDS_BYTES, "the store stays under its ceiling: {status}");
            assert!(bytes >= STORE_BYTES / 2, "the store stays full: {status}");
            let now = given_way(&status);
            if now > before { Ok(now) } else { Err(format!("{now} have given way")) }
        });
        let rss = rss_kib(gateway);
        assert!(rss <= first + first / 5 + 8 * 1024, "memory grew from {first} KiB to {rss} KiB");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn rss_kib(gateway: &Gateway) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// What `status` says was dropped for want of room; nothing else may be lost.
fn declared(status: &Value, when_full: WhenFull) -> u64 {
    let losses = status["losses"].as_object().unwrap();
    let count = |reason: &str| losses.get(reason).and_then(Value::as_u64).unwrap_or(0);
    let total: u64 = losses.values().filter_map(Value::as_u64).sum();
    assert_eq!(total, count("dropped-oldest"), "{}: {losses:?}", when_full.name());
    total
}

/// How many were acknowledged, and how many of them the cloud has not got.
fn account(memory: &Memory, pressures: &[Pressure], pressed: &[Pressed]) -> (u64, u64) {
    let (mut acknowledged, mut missing) = (0, 0);
    for (pressure, pressed) in pressures.iter().zip(pressed) {
        let arrived = memory.numbers_on(&format!("factory7/{}", pressure.topic));
        acknowledged += pressed.acknowledged.len() as u64;
        missing += lost(&arrived, &pressed.acknowledged).len() as u64;
        if pressure.qos == 2 {
            assert_eq!(repeated(&arrived), Vec::<u64>::new(), "{}", pressure.topic);
        }
    }
    (acknowledged, missing)
}

/// A publisher of the plant that never lets the store have room.
struct Pressure {
    topic: &'static str,
    qos: u8,
    version: Version,
    patience: Duration,
    first: u64,
    refused: AtomicU64,
}

#[derive(Default)]
struct Pressed {
    acknowledged: Vec<u64>,
    /// Connections that ended before all was answered.
    cuts: u64,
}

impl Pressure {
    fn of_each_kind(when_full: WhenFull) -> Vec<Pressure> {
        let silence = if when_full == WhenFull::Refuse { SILENCE } else { PATIENCE };
        let kinds = [
            ("plant/one", 1, Version::V5, PATIENCE, 0),
            ("plant/two", 2, Version::V5, PATIENCE, 0),
            // Its client id comes of QoS and number.
            ("plant/old", 1, Version::V311, silence, 1_000_000_000),
        ];
        let pressures = kinds.map(|(topic, qos, version, patience, first)| Pressure {
            topic,
            qos,
            version,
            patience,
            first,
            refused: AtomicU64::new(0),
        });
        pressures.into()
    }

    fn press(&self, port: u16, random: &mut Random, is_over: &AtomicBool) -> Pressed {
        const BURST: u64 = 100;
        let mut pressed = Pressed::default();
        let mut first = self.first;
        while !is_over.load(Ordering::Relaxed) {
            let Pressure { topic, qos, version, patience, .. } = *self;
            let numbers = Numbers { version, qos, topic, first, count: BURST, window: 10, large_percent: 20, patience };
            let Said { acknowledged, refused, was_cut, .. } = numbers.publish(port, random, &AtomicU64::new(0), |_| {});
            assert!(!was_cut || patience == SILENCE, "{topic}: a publisher that can be told is answered");
            pressed.acknowledged.extend(acknowledged);
            pressed.cuts += u64::from(was_cut);
            self.refused.fetch_add(refused.len() as u64, Ordering::Relaxed);
            first += BURST;
        }
        pressed
    }
}

/// Two local clients, one of which tells the other something.
struct Talk {
    qos: u8,
    version: Version,
}

#[derive(Debug, Default)]
struct Talked {
    heard: u64,
    /// The longest time in which ten messages were heard and acknowledged.
    slowest: Duration,
}

impl Talk {
    fn go_on(&self, port: u16, is_over: &AtomicBool) -> Talked {
        const BURST: u16 = 10;
        let topic = format!("local/{}", self.qos);
        let mut listener = RawClient::connected(port, self.version, &format!("hears-{}", self.qos));
        listener.subscribe(&topic, self.qos);
        let mut talker = RawClient::connected(port, self.version, &format!("talks-{}", self.qos));
        let mut talked = Talked::default();
        while !is_over.load(Ordering::Relaxed) {
            let started = Instant::now();
            for packet_id in 1..=BURST {
                let number = talked.heard + u64::from(packet_id);
                talker.publish(topic.as_bytes(), self.qos, packet_id, &number.to_be_bytes());
            }
            self.hear_answers(&mut talker, BURST);
            self.hear_messages(&mut listener, talked.heard + 1..=talked.heard + u64::from(BURST));
            talked.heard += u64::from(BURST);
            talked.slowest = talked.slowest.max(started.elapsed());
            // As a plant does, and so that the cores are not all theirs.
            std::thread::sleep(Duration::from_millis(5));
        }
        talked
    }

    /// Until every message of a burst is acknowledged to its end.
    fn hear_answers(&self, talker: &mut RawClient, count: u16) {
        let mut open = if self.qos == 0 { 0 } else { count };
        while open > 0 {
            match (talker.hear(PATIENCE), self.qos) {
                (Heard::Packet(0x40, _), 1) | (Heard::Packet(0x70, _), 2) => open -= 1,
                (Heard::Packet(0x50, body), 2) => talker.release(u16::from_be_bytes([body[0], body[1]])),
                (other, qos) => panic!("a publisher at QoS {qos} heard {other:?}"),
            }
        }
    }

    /// Until all of them were heard, in order, and are acknowledged to their end.
    fn hear_messages(&self, listener: &mut RawClient, numbers: impl Iterator<Item = u64>) {
        let mut expected: VecDeque<u64> = numbers.collect();
        let mut unreleased = 0;
        // Who only listens must say now and then that it is there.
        listener.send(&packet(0xc0, &[]));
        let mut is_answered = false;
        while !(expected.is_empty() && unreleased == 0 && is_answered) {
            match listener.hear(PATIENCE) {
                Heard::Packet(0xd0, _) => is_answered = true,
                Heard::Packet(0x62, body) => {
                    listener.send(&packet(0x70, &body[..2]));
                    unreleased -= 1;
                }
                Heard::Packet(first, body) if first & 0xf0 == 0x30 => {
                    // The number ends every message, whatever version and properties stand before it.
                    let number = u64::from_be_bytes(*body.last_chunk().unwrap());
                    assert_eq!(Some(number), expected.pop_front(), "QoS {}: every message, in order", self.qos);
                    let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
                    let packet_id = body.get(2 + topic..4 + topic).unwrap_or(&[]);
                    match self.qos {
                        1 => listener.send(&packet(0x40, packet_id)),
                        2 => {
                            listener.send(&packet(0x50, packet_id));
                            unreleased += 1;
                        }
                        _ => {}
                    }
                }
                other => panic!("a subscriber at QoS {} heard {other:?}", self.qos),
            }
        }
    }
}
