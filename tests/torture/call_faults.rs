//! Is any failing system call survived, whichever it is?
//!
//! strace fails, delays or kills at the Nth call of a kind, in the real gateway: `EIO` and `ENOSPC` on writes, syncs,
//! truncations and renames, a sync that takes long, and `kill -9` at exactly that call. Each is survivable, because
//! nothing is acknowledged before a sync that ended well, and because what follows a failure is read from the disk.
//!
//! Then, each time: no acknowledgement has left before a sync of its row, counting nothing that was written before a
//! failure (`common/order.rs`); the gateway does not end by itself; it takes messages again when the calls succeed; it
//! stops in order when told to; it starts again; nothing acknowledged is missing at the cloud, nothing is doubled at
//! QoS 2, and no store is moved aside.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::time::Instant;

use super::budget::{Budget, Case, Cases};
use super::common::PATIENCE;
use super::common::account::{lost, repeated};
use super::common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use super::common::order::{Proof, Watched, tracer};
use super::common::raw::{Heard, RawClient, Version};
use super::numbers::{Numbers, Said};
use super::random::Random;
use super::stand_in::{Memory, StandIn};

const TOPICS: [(u8, &str, &str); 2] = [(1, "plant/one", "factory7/plant/one"), (2, "plant/two", "factory7/plant/two")];
/// Of each topic in each round.
const MESSAGES: u64 = 30;
const KILLED: i32 = 9;

/// What happens to some calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Error(&'static str),
    Delay,
    Kill,
}

/// A fault: these calls, from one number to another, counted in each thread.
#[derive(Debug, Clone)]
struct Fault {
    calls: &'static str,
    effect: Effect,
    first: u64,
    last: u64,
}

impl Fault {
    fn drawn(random: &mut Random) -> Fault {
        // How often each is called in a run of this test, about.
        let (calls, often) = *random.pick(&[
            ("pwrite64", 300),
            ("pwrite64", 300),
            ("fdatasync,fsync", 60),
            ("fdatasync,fsync", 60),
            ("fdatasync,fsync", 10),
            ("ftruncate", 3),
            ("?rename,?renameat,?renameat2", 2),
        ]);
        let effect = *random.pick(&[Effect::Error("EIO"), Effect::Error("ENOSPC"), Effect::Delay, Effect::Kill]);
        let first = 1 + random.within(0..often);
        let count = match effect {
            Effect::Kill => 1,
            Effect::Delay => random.within(1..4),
            Effect::Error(_) => *random.pick(&[1, 1, 2, 4]),
        };
        Fault { calls, effect, first, last: first + count - 1 }
    }

    fn injection(&self) -> String {
        let effect = match self.effect {
            Effect::Error(name) => format!("error={name}"),
            Effect::Delay => "delay_enter=300000".to_owned(),
            Effect::Kill => "signal=KILL".to_owned(),
        };
        format!("inject={}:{effect}:when={}..{}", self.calls, self.first, self.last)
    }
}

/// Messages on both topics, on connections of their own.
fn round(gateway: &Gateway, first: u64, random: &mut Random) -> Vec<Said> {
    let port = gateway.port;
    std::thread::scope(|scope| {
        let publishers: Vec<_> = TOPICS
            .iter()
            .map(|(qos, topic, _)| {
                let version = *random.pick(&[Version::V311, Version::V5]);
                let window = usize::try_from(random.within(1..8)).unwrap();
                let patience = Duration::from_secs(10);
                let (qos, large_percent) = (*qos, 3);
                let numbers = Numbers { version, qos, topic, first, count: MESSAGES, window, large_percent, patience };
                let mut random = random.branch();
                scope.spawn(move || numbers.publish(port, &mut random, &AtomicU64::new(0), |_| {}))
            })
            .collect();
        publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
    })
}

/// What a case has shown.
#[derive(Debug, Default)]
struct Shown {
    acknowledged: usize,
    was_hit: bool,
}

fn survived(case: &mut Case, folder: &Path) -> Shown {
    let random = &mut case.random;
    let fault = Fault::drawn(random);
    let (is_cloud_there, is_stopped_in_order) = (random.happens(50), random.happens(50));
    let what = format!("{fault:?}, cloud there: {is_cloud_there}, stopped in order: {is_stopped_in_order}");
    let cloud = StandIn::prepared();
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT;
    let mut gateway = Gateway::prepared(folder, &tables);
    if is_cloud_there {
        cloud.begin(Memory::default(), None);
    }
    let trace = folder.join("trace");
    let calls = "trace=fdatasync,fsync,pwrite64,pwritev,write,writev,sendto,sendmsg,read,readv,recvfrom,recvmsg,\
                 ftruncate,?rename,?renameat,?renameat2";
    gateway.set_tracer(&tracer(trace.to_str().unwrap(), &["-e", calls, "-e", &fault.injection()]));
    gateway.spawn();

    let mut acknowledged: Vec<Vec<u64>> = vec![Vec::new(); TOPICS.len()];
    let mut ports = Vec::new();
    let began = Instant::now();
    let mut first = 0;
    let mut rounds_that_were_whole = 0;
    while rounds_that_were_whole < 2 && gateway.has_ended().is_none() {
        let said = round(&gateway, first, random);
        first += MESSAGES;
        let is_whole = said.iter().all(|said| !said.was_cut && said.refused.is_empty());
        rounds_that_were_whole += u64::from(is_whole);
        assert!(began.elapsed() < PATIENCE, "messages are taken when no call fails any more: {what}");
        for (said, all) in said.iter().zip(&mut acknowledged) {
            all.extend(&said.acknowledged);
            ports.push(said.port);
        }
        if !is_whole {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let status = match gateway.has_ended() {
        Some(_) => gateway.ended(),
        None if is_stopped_in_order => gateway.terminate(),
        None => {
            gateway.kill();
            std::process::ExitStatus::from_raw(KILLED)
        }
    };
    let may_be_killed = fault.effect == Effect::Kill || !is_stopped_in_order;
    let is_fine = status.code() == Some(0) || (may_be_killed && status.signal() == Some(KILLED));
    assert!(is_fine, "the gateway ended with {status}: {what}\n{}", gateway.log().join("\n"));

    let traced = std::fs::read_to_string(&trace).unwrap();
    let was_hit = ["(INJECTED)", "(DELAYED)", "killed by SIGKILL"].iter().any(|sign| traced.contains(sign));
    let watched = Watched { clients: ports.iter().copied().filter(|port| *port != 0).collect(), cloud: None };
    let proof = Proof::of(BufReader::new(File::open(&trace).unwrap()), watched.clone());
    let mut seen = 0;
    for port in watched.clients {
        let shown = proof.shown(port);
        assert_eq!(shown.early, [], "acknowledged before the sync: {what}");
        seen += shown.acknowledgements;
    }
    let heard: usize = acknowledged.iter().map(Vec::len).sum();
    assert!(seen >= heard, "the proof has seen {seen} acknowledgements, the publishers {heard}: {what}");

    gateway.set_tracer(&[]);
    if !is_cloud_there {
        cloud.begin(Memory::default(), None);
    }
    gateway.start();
    let mut last = RawClient::connected(gateway.port, Version::V311, "last");
    last.publish(b"plant/last", 2, 1, b"1");
    assert_eq!(last.hear(PATIENCE), Heard::Packet(0x50, vec![0, 1]), "a new message is taken: {what}");
    last.release(1);
    cloud.wait("the message of after the fault", |memory| !memory.numbers_on("factory7/plant/last").is_empty());
    let memory = cloud.memory();
    for ((qos, _, topic), acknowledged) in TOPICS.iter().zip(&acknowledged) {
        let arrived = memory.numbers_on(topic);
        let lost = lost(&arrived, acknowledged);
        assert!(lost.is_empty(), "{topic}: lost {lost:?}: {what}\n{}", gateway.log().join("\n"));
        if *qos == 2 {
            assert_eq!(repeated(&arrived), Vec::<u64>::new(), "{topic}: doubled: {what}");
        }
    }
    assert!(!gateway.state_dir().join("quarantine").exists(), "{what}\n{}", gateway.log().join("\n"));
    gateway.kill();
    Shown { acknowledged: heard, was_hit }
}

#[test]
fn whichever_call_fails_nothing_acknowledged_is_lost_and_the_gateway_goes_on() {
    // The first sync of a new store fails, and SQLite went on with a rollback journal.
    let mut budget = Budget::begin("call_faults", Cases { short: 60, long: 600 }).with_found(&[446438545, 1473343462]);
    let (mut cases, mut hit, mut acknowledged) = (0, 0, 0);
    for mut case in budget.by_ref() {
        let folder = folder();
        let shown = survived(&mut case, folder.path());
        cases += 1;
        hit += usize::from(shown.was_hit);
        acknowledged += shown.acknowledged;
    }
    budget.say(format!("{cases} faults, {hit} of them hit; 0 of {acknowledged} acknowledged lost, 0 early, 0 doubled"));
    assert!(cases < 20 || hit * 2 > cases, "most faults hit: {hit} of {cases}");
}
