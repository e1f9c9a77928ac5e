//! Does the promise survive a power cut, wherever it falls?
//!
//! The real gateway works on an ext4 file system on a disk that remembers (`log_disk.rs`): each write and each flush
//! that reaches the disk, each acknowledgement that reaches a publisher and each packet that reaches the cloud stand in
//! one order. From one run any number of cuts are made: what the last flush before the cut covers is on the disk, of
//! everything later any sectors, torn and in any order. The gateway starts on what is left, and the cloud goes on from
//! what it knew at that moment.
//!
//! Then, each time: the gateway starts; whatever was acknowledged before the cut reaches the cloud; nothing comes twice
//! at QoS 2, counting what came before the cut; each publisher's messages are in order; no store is moved aside; a new message is taken.
//!
//! An acknowledgement is noted when the publisher has it, which is a little after the gateway has sent it. So that one
//! which is sent too early is not noted too late, a flush takes 2 ms and has its place in the order when it ends, while
//! a packet over loopback takes some 0.1 ms. The control is a gateway whose syncs of the write-ahead log do nothing,
//! which is what SQLite's `synchronous=NORMAL` means.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::budget::{Budget, Cases, random_of};
use super::common::account::{lost, repeated};
use super::common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use super::common::raw::{Heard, RawClient, Version};
use super::common::{PATIENCE, wait_for};
use super::log_disk::{Log, LogDisk};
use super::mounts::{self, Mount};
use super::numbers::Numbers;
use super::random::Random;
use super::stand_in::{Memory, StandIn};

const DISK_BYTES: u64 = 32 << 20;
/// Cuts for each run.
const CUTS: usize = 25;
const MESSAGES: u64 = 350;
const FAILED_WRITES: u64 = 2;
const TOPICS: [(u8, &str, &str); 2] = [(1, "plant/one", "factory7/plant/one"), (2, "plant/two", "factory7/plant/two")];

/// What happens once enough is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Finish,
    Kill,
    FailWrites,
}

/// One place where a gateway can stand: its folder, and the cloud that it knows.
struct Site {
    folder: PathBuf,
    cloud: StandIn,
    tables: String,
}

impl Site {
    fn prepared(folder: &Path, random: &mut Random) -> Site {
        let cloud = StandIn::prepared();
        let more = format!("protocol = \"{}\"", random.pick(&["3.1.1", "5"]));
        // What was delivered is in the store as well, then, until its room is needed.
        let keeps = if random.happens(50) { "keep_delivered = \"1h\"\n" } else { "" };
        let tables = format!("[queue]\nmax_bytes = \"12 MiB\"\n{keeps}")
            + &uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), &more)
            + FORWARD_PLANT;
        Site { folder: folder.to_owned(), cloud, tables }
    }

    /// Publishes on both topics until all is answered, or until the connections end. Says whether all was acknowledged.
    fn round(
        &self,
        gateway: &mut Gateway,
        disk: &mut LogDisk,
        first: u64,
        then: (u64, Then),
        random: &mut Random,
    ) -> bool {
        let port = gateway.port;
        let so_far = AtomicU64::new(0);
        let (enough, then) = then;
        std::thread::scope(|scope| {
            for (qos, topic, _) in TOPICS {
                let version = *random.pick(&[Version::V311, Version::V5]);
                let window = usize::try_from(random.within(1..16)).unwrap();
                let numbers = Numbers {
                    version,
                    qos,
                    topic,
                    first,
                    count: MESSAGES,
                    window,
                    large_percent: 20,
                    patience: PATIENCE,
                };
                let (events, so_far, mut random) = (disk.events(), &so_far, random.branch());
                scope.spawn(move || {
                    let note = |number| events.note(&format!("acknowledged {qos} {number}"));
                    numbers.publish(port, &mut random, so_far, note);
                });
            }
            wait_for(PATIENCE, "enough is acknowledged", || so_far.load(Ordering::Relaxed) >= enough);
            match then {
                Then::Kill => gateway.kill(),
                Then::FailWrites => disk.fail(FAILED_WRITES, "xxxxxxxx"),
                Then::Finish => {}
            }
        });
        so_far.into_inner() == MESSAGES * TOPICS.len() as u64
    }

    /// Messages without a cloud, `kill -9`, messages with a cloud, an ordered stop: the record of all that.
    fn recorded(&self, is_honest: bool, random: &mut Random) -> Log {
        let mut gateway = Gateway::named("gateway", &self.folder, &self.tables);
        let mut disk = LogDisk::mounted(&self.folder, DISK_BYTES, &gateway.state_dir());
        if !is_honest {
            let log = gateway.state_dir().join("queue.db-wal").display().to_string();
            gateway.set_tracer(&[
                "strace",
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=fdatasync,fsync",
                "-P",
                &log,
                "-e",
                "inject=fdatasync,fsync:retval=0",
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
            ]);
        }
        self.cloud.leave();
        gateway.start();
        let enough = random.within(MESSAGES / 2..MESSAGES * 3 / 2);
        self.round(&mut gateway, &mut disk, 0, (enough, Then::Kill), random);
        gateway.start();
        let events = disk.events();
        self.cloud.begin(Memory::default(), Some(Box::new(move |event| events.note(event))));
        assert!(self.round(&mut gateway, &mut disk, MESSAGES, (0, Then::Finish), random), "all is acknowledged");
        gateway.stop();
        self.cloud.leave();
        disk.finish()
    }

    /// Messages while some writes fail, with or without a cloud: the record of that.
    fn recorded_with_failed_writes(&self, random: &mut Random) -> Log {
        let mut gateway = Gateway::named("gateway", &self.folder, &self.tables);
        let mut disk = LogDisk::mounted(&self.folder, DISK_BYTES, &gateway.state_dir());
        self.cloud.leave();
        if random.happens(50) {
            let events = disk.events();
            self.cloud.begin(Memory::default(), Some(Box::new(move |event| events.note(event))));
        }
        gateway.start();
        let enough = random.within(10..MESSAGES);
        self.round(&mut gateway, &mut disk, 0, (enough, Then::FailWrites), random);
        // What was refused or cut off has no claim; soon all is taken as if nothing had been.
        let is_well =
            (1..10).any(|round| self.round(&mut gateway, &mut disk, round * MESSAGES, (0, Then::Finish), random));
        assert!(is_well, "all is acknowledged, once no write fails any more");
        gateway.kill();
        self.cloud.leave();
        disk.finish()
    }
}

/// What a cut has brought about.
#[derive(Debug, Default)]
struct Outcome {
    acknowledged: usize,
    lost: Vec<u64>,
    doubled: Vec<u64>,
    disordered: Vec<[u64; 2]>,
    was_moved_aside: bool,
    start_ms: u128,
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.lost.is_empty() && self.doubled.is_empty() && self.disordered.is_empty() && !self.was_moved_aside
    }
}

/// The gateway on the disk that the cut has left, and the cloud as it was then.
fn start_after(cut: usize, site: &Site, log: &Log, is_expected_whole: bool, random: &mut Random) -> Outcome {
    let image = site.folder.join("cut-disk");
    let disk = log.disk_after(cut, random);
    std::fs::write(&image, &disk).unwrap();
    let mut gateway = Gateway::named("after-the-cut", &site.folder, &site.tables);
    let mount = Mount::ext4_at_boot(&image, &gateway.state_dir());
    site.cloud.begin(Memory::after(log.events(cut)), None);

    let began = Instant::now();
    gateway.start();
    let start_ms = began.elapsed().as_millis();
    let mut client = RawClient::connected(gateway.port, Version::V311, "last");
    client.publish(b"plant/last", 2, 1, b"1");
    assert_eq!(client.hear(PATIENCE), Heard::Packet(0x50, vec![0, 1]), "a new message is taken");
    client.release(1);
    // What waits goes first, so that all of it was sent when this one comes.
    site.cloud.wait("the message of after the cut", |memory| !memory.numbers_on("factory7/plant/last").is_empty());
    assert_eq!(gateway.has_ended(), None, "the gateway goes on");
    let memory = site.cloud.memory();
    let was_moved_aside = gateway.state_dir().join("quarantine").exists();
    gateway.kill();
    site.cloud.leave();
    mount.unmount();

    let mut acknowledged = BTreeMap::<u8, Vec<u64>>::new();
    for event in log.events(cut).filter_map(|event| event.strip_prefix("acknowledged ")) {
        let (qos, number) = event.split_once(' ').unwrap();
        acknowledged.entry(qos.parse().unwrap()).or_default().push(number.parse().unwrap());
    }
    let mut outcome = Outcome { start_ms, was_moved_aside, ..Outcome::default() };
    for (qos, _, topic) in TOPICS {
        let arrived = memory.numbers_on(topic);
        let acknowledged = acknowledged.remove(&qos).unwrap_or_default();
        outcome.acknowledged += acknowledged.len();
        outcome.lost.extend(lost(&arrived, &acknowledged));
        let mut first_attempts = arrived.clone();
        match qos {
            2 => outcome.doubled.extend(repeated(&arrived)),
            _ => {
                let mut seen = BTreeSet::new();
                first_attempts.retain(|number| seen.insert(*number));
            }
        }
        // What a connection that has ended left behind may be taken after the first of the next: they are two clients.
        first_attempts.sort_by_key(|number| number / MESSAGES);
        let falls = first_attempts.windows(2).map(|pair| [pair[0], pair[1]]).filter(|[one, next]| one > next);
        outcome.disordered.extend(falls);
    }
    if is_expected_whole && !outcome.is_good() {
        // No two runs write the same, whatever the seed: what the cut has left is kept.
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("power-cut-{cut}.ext4"));
        std::fs::write(&kept, &disk).unwrap();
        eprintln!("the disk is kept in {}; the gateway said on it:\n{}", kept.display(), gateway.log().join("\n"));
    }
    outcome
}

#[test]
fn no_power_cut_loses_what_was_acknowledged_or_doubles_what_was_sent() {
    mounts::privately("power_cuts::no_power_cut_loses_what_was_acknowledged_or_doubles_what_was_sent", || {
        let mut budget = Budget::begin("power_cuts", Cases { short: 2, long: 200 });
        let (mut cuts, mut acknowledged, mut longest_ms) = (0, 0, 0);
        while let Some(mut case) = budget.next() {
            let folder = folder();
            let site = Site::prepared(folder.path(), &mut case.random);
            let log = site.recorded(true, &mut case.random);
            let (writes, flushes, bytes) = log.figures();
            for number in 0..CUTS {
                let mut random = case.random.branch();
                let cut = log.choose_cut(0, &mut random);
                let outcome = start_after(cut, &site, &log, true, &mut random);
                assert!(
                    outcome.is_good(),
                    "cut {number} of seed {}, before record {cut} of {}: {outcome:?}",
                    case.seed,
                    log.records.len()
                );
                cuts += 1;
                acknowledged += outcome.acknowledged;
                longest_ms = longest_ms.max(outcome.start_ms);
            }
            budget.say(format!(
                "seed {}: {cuts} cuts so far, 0 of {acknowledged} acknowledged lost, 0 doubled, longest start {longest_ms} ms \
                 (this run: {writes} writes, {flushes} flushes, {} KiB)",
                case.seed,
                bytes >> 10
            ));
        }
    });
}

/// After a failed write the kernel calls its pages clean: what was in them can be read, and is not on the disk, and no
/// sync will bring it there. Whoever reads his log again after such a failure, finds it whole and goes on behind it,
/// loses everything that follows when the power goes.
#[test]
fn what_is_acknowledged_after_a_failed_write_survives_a_power_cut_too() {
    mounts::privately("power_cuts::what_is_acknowledged_after_a_failed_write_survives_a_power_cut_too", || {
        let mut budget = Budget::begin("failed_writes", Cases { short: 1, long: 40 });
        let mut cuts = 0;
        while let Some(mut case) = budget.next() {
            let folder = folder();
            let site = Site::prepared(folder.path(), &mut case.random);
            let log = site.recorded_with_failed_writes(&mut case.random);
            let first = log.first("failed");
            for number in 0..CUTS / 2 {
                let mut random = case.random.branch();
                let cut = log.choose_cut(first, &mut random);
                let outcome = start_after(cut, &site, &log, true, &mut random);
                let of = log.records.len();
                assert!(
                    outcome.is_good(),
                    "cut {number} of seed {}, before record {cut} of {of}: {outcome:?}",
                    case.seed
                );
                cuts += 1;
            }
            budget.say(format!("seed {}: {cuts} cuts after failed writes so far, 0 lost", case.seed));
        }
    });
}

#[test]
fn the_rig_sees_what_syncs_that_do_nothing_lose() {
    mounts::privately("power_cuts::the_rig_sees_what_syncs_that_do_nothing_lose", || {
        let mut random = random_of("power_cuts_control");
        let folder = folder();
        let site = Site::prepared(folder.path(), &mut random);
        let log = site.recorded(false, &mut random);
        let first = log.first("acknowledged");
        let cuts = 8;
        let mut losing = 0;
        let mut lost = 0;
        for _ in 0..cuts {
            let mut random = random.branch();
            let cut = log.choose_cut(first, &mut random);
            let outcome = start_after(cut, &site, &log, false, &mut random);
            losing += usize::from(!outcome.lost.is_empty());
            lost += outcome.lost.len();
        }
        println!("without syncs of the write-ahead log {losing} of {cuts} cuts lost {lost} acknowledged messages");
        assert!(losing > 0, "a rig that sees no loss without syncs proves nothing");
    });
}
