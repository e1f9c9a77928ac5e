//! Does the gateway stay as it is, in memory, descriptors, threads and on the disk, through one fault after the other?
//!
//! Publishers that never stop, and a fault at regular times: kill, ordered restart, cloud away, a line that falls
//! silent, the cloud's restart, a storm of publishers, a full disk (as root: the store lies on a small tmpfs then). Each
//! fault is healed; when the gateway has caught up it is measured. Nothing acknowledged may be lost.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;

use super::balance::{balance, end_all, wait_for_arrivals, wait_for_the_last};
use super::budget::{Budget, Cases};
use super::common::cloud::{Access, Mosquitto};
use super::common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use super::common::peers::Subscriber;
use super::common::raw::{Heard, RawClient, Version};
use super::common::{PATIENCE, wait_until};
use super::line::{Line, Weather};
use super::publisher::{Habit, Publisher};
use super::random::Random;

/// Between two faults in the long form; less when its share is smaller.
const INTERVAL_MAX: Duration = Duration::from_secs(300);
/// Between two faults in the short form.
const INTERVAL_MIN: Duration = Duration::from_secs(8);
/// A fault is held at most so long.
const FAULT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Restart,
    CloudAway,
    SilentLine,
    CloudRestart,
    Storm,
    FullDisk,
}

const FAULTS: [Fault; 7] = [
    Fault::Kill,
    Fault::Restart,
    Fault::CloudAway,
    Fault::SilentLine,
    Fault::CloudRestart,
    Fault::Storm,
    Fault::FullDisk,
];

#[test]
fn one_fault_after_the_other_loses_nothing_and_the_gateway_grows_nowhere() {
    let mut budget = Budget::begin("soak", Cases { short: 1, long: 1 });
    let share = budget.share().unwrap_or(INTERVAL_MIN * 7);
    while let Some(case) = budget.next() {
        let mut random = case.random.clone();
        // Each fault comes three times at least, or, in a short time, once.
        let interval = (share / 21).clamp(INTERVAL_MIN, INTERVAL_MAX);
        let mut soak = Soak::begun(&mut random);
        let until = Instant::now() + share;
        let mut deck = Vec::new();
        let mut count = 0;
        while Instant::now() < until || count < FAULTS.len() {
            let fault = next_of(&mut deck, &mut random);
            let next_at = Instant::now() + interval;
            soak.suffer(fault, interval.min(FAULT_MAX * 4) / 4, &mut random);
            soak.measure(fault);
            count += 1;
            std::thread::sleep(next_at.saturating_duration_since(Instant::now()));
        }
        soak.end(&budget, case.seed, count);
    }
}

/// Faults come in random order, and none comes a second time before all have come.
fn next_of(deck: &mut Vec<Fault>, random: &mut Random) -> Fault {
    if deck.is_empty() {
        deck.extend(FAULTS);
    }
    deck.swap_remove(usize::try_from(random.within(0..deck.len() as u64)).unwrap())
}

/// What the process and its store take, in a quiet moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    after: Fault,
    rss_kib: u64,
    descriptors: u64,
    threads: u64,
    /// The files of the store.
    store_kib: u64,
    /// Of them, what is used.
    used_kib: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { after, rss_kib, descriptors, threads, store_kib, used_kib } = self;
        write!(
            f,
            "{after:?}: {rss_kib} KiB of memory, {descriptors} descriptors, {threads} threads, store {store_kib} KiB \
             with {used_kib} KiB used"
        )
    }
}

struct Soak {
    publishers: Vec<Publisher>,
    storm_acknowledged: u64,
    application: Subscriber,
    line: Line,
    gateway: Gateway,
    cloud: Mosquitto,
    disk: Option<SmallDisk>,
    first: Option<Sample>,
    samples: Vec<Sample>,
    _folder: tempfile::TempDir,
}

impl Soak {
    fn begun(random: &mut Random) -> Soak {
        let folder = folder();
        let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
        cloud.start();
        let application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
        let line = Line::laid_for_long(cloud.port);
        let protocol = random.pick::<&str>(&["3.1.1", "5"]);
        let tables = "[queue]\nmax_bytes = \"16 MiB\"\n".to_owned()
            + &uplink(
                &format!("mqtt://127.0.0.1:{}", line.port),
                &format!("protocol = \"{protocol}\"\nkeep_alive = \"5s\""),
            )
            + FORWARD_PLANT;
        let mut gateway = Gateway::prepared(folder.path(), &tables);
        let disk = SmallDisk::mounted(&gateway.state_dir());
        gateway.start();
        let habits = Habit::of_each_kind(|_| (10, Duration::from_millis(random.within(40..120)), 200));
        let publishers =
            habits.into_iter().map(|habit| Publisher::started(gateway.port, habit, random.branch())).collect();
        let mut soak = Soak {
            publishers,
            storm_acknowledged: 0,
            application,
            line,
            gateway,
            cloud,
            disk,
            first: None,
            samples: Vec::new(),
            _folder: folder,
        };
        soak.gateway.wait_until_connected();
        let sample = soak.sample(Fault::Restart);
        soak.first = Some(sample);
        soak
    }

    fn suffer(&mut self, fault: Fault, held: Duration, random: &mut Random) {
        let hold = || std::thread::sleep(held);
        match fault {
            Fault::Kill => {
                self.assert_alive();
                self.gateway.kill();
                self.gateway.start();
            }
            Fault::Restart => {
                self.gateway.stop();
                self.gateway.start();
            }
            Fault::CloudAway => {
                self.line.set(Weather::Cut);
                hold();
                self.line.set(Weather::Fair);
            }
            Fault::SilentLine => {
                self.line.set(Weather::Silent);
                hold();
                self.line.set(Weather::Cut);
                self.line.set(Weather::Fair);
            }
            Fault::CloudRestart => {
                self.cloud.stop();
                hold();
                self.cloud.start();
            }
            Fault::Storm => self.storm(random),
            Fault::FullDisk => {
                if let Some(disk) = &self.disk {
                    disk.fill();
                    hold();
                    disk.empty();
                }
            }
        }
        self.assert_alive();
    }

    /// Clients that come, publish as fast as they can and go, many at once.
    fn storm(&mut self, random: &mut Random) {
        let port = self.gateway.port;
        let (clients, messages) = (random.within(10..40), random.within(20..100));
        std::thread::scope(|scope| {
            for client in 0..clients {
                scope.spawn(move || {
                    let mut client = RawClient::connected(port, Version::V311, &format!("storm-{client}"));
                    for id in 1..=messages {
                        client.publish(b"plant/storm", 1, u16::try_from(id).unwrap(), &[b's'; 300]);
                    }
                    for id in 1..=messages {
                        match client.hear(PATIENCE) {
                            Heard::Packet(0x40, _) => {}
                            other => panic!("message {id} of a storm was answered by {other:?}"),
                        }
                    }
                });
            }
        });
        self.storm_acknowledged += clients * messages;
    }

    fn assert_alive(&mut self) {
        if let Some(status) = self.gateway.has_ended() {
            panic!("the gateway ended by itself: {status}");
        }
    }

    /// Waits until the gateway has caught up and has let go of what the fault made it take.
    fn measure(&mut self, after: Fault) {
        let first = self.first.expect("taken at the beginning");
        let sample = wait_until(PATIENCE, "the gateway has caught up and holds no more than at first", || {
            let sample = self.try_sample(after)?;
            // Threads that tokio keeps for blocking calls come and go.
            let is_flat = sample.descriptors <= first.descriptors && sample.threads <= first.threads + 4;
            if is_flat { Ok(sample) } else { Err(format!("{sample}; at first {first}")) }
        });
        self.samples.push(sample);
    }

    fn sample(&self, after: Fault) -> Sample {
        wait_until(PATIENCE, "the gateway has caught up", || self.try_sample(after))
    }

    fn try_sample(&self, after: Fault) -> Result<Sample, String> {
        let status = self.gateway.status()?;
        let cloud = &status["uplinks"]["cloud"];
        let has_caught_up = cloud["state"] == "connected" && cloud["waiting"].as_u64().is_some_and(|count| count < 20);
        let is_complete = status["sessions"]["connected"] == self.publishers.len();
        if !has_caught_up || !is_complete {
            return Err(format!("{cloud}, {}", status["sessions"]));
        }
        let process = format!("/proc/{}", self.gateway.id());
        let text = fs::read_to_string(format!("{process}/status")).map_err(|error| error.to_string())?;
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        };
        let descriptors = fs::read_dir(format!("{process}/fd")).map_err(|error| error.to_string())?.count() as u64;
        let files = fs::read_dir(self.gateway.state_dir()).map_err(|error| error.to_string())?;
        let bytes = files
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name() != BALLAST)
            .filter_map(|entry| entry.metadata().ok())
            .filter(fs::Metadata::is_file)
            .map(|about| about.len());
        Ok(Sample {
            after,
            rss_kib: field("VmRSS:").ok_or("no VmRSS")?,
            threads: field("Threads:").ok_or("no Threads")?,
            descriptors,
            store_kib: bytes.sum::<u64>() / 1024,
            used_kib: status["queue"]["bytes"].as_u64().ok_or("no bytes")? / 1024,
        })
    }

    fn end(mut self, budget: &Budget, seed: u64, count: usize) {
        end_all(&self.publishers);
        wait_for_arrivals(&mut self.application, &self.publishers, PATIENCE);
        wait_for_the_last(&mut self.application, self.gateway.port);
        let mut verdict = balance(&mut self.application, &self.publishers);
        let wire = self.line.wire();
        verdict.attribute(|topic, key| wire.cycles(topic, key));
        let storm = self.application.received_on("factory7/plant/storm").len() as u64;
        let first = self.first.expect("taken at the beginning");
        budget.say(format!("at first {first}"));
        self.samples.iter().for_each(|sample| budget.say(format!("after {sample}")));
        let disk = if self.disk.is_some() { "" } else { " (no full disk: that needs root)" };
        budget.say(format!(
            "seed {seed}: {count} faults{disk}; {verdict}; of storms {} acknowledged, {storm} arrived",
            self.storm_acknowledged
        ));
        assert!(verdict.is_clean(), "{verdict}\n{}", verdict.examples.join("\n"));
        assert!(wire.doubled().is_empty(), "given to the cloud as new more than once: {:?}", wire.doubled().first());
        assert!(storm >= self.storm_acknowledged, "a storm's messages are lost");
        let losses = self.gateway.status().unwrap()["losses"].clone();
        assert!(losses.as_object().is_some_and(|losses| losses.values().all(|count| *count == 0)), "{losses}");
        self.assert_flat("memory", |sample| sample.rss_kib, 6 * 1024);
        self.assert_flat("the store's files", |sample| sample.store_kib, 4 * 1024);
        // Settled rows stay until their segment is emptied whole, or the queue has been empty for a minute.
        self.assert_flat("the used part of the store", |sample| sample.used_kib, 2 * 1024);
        self.gateway.stop();
    }

    /// The last third is no more than the first by a fifth and `slack`.
    fn assert_flat(&self, what: &str, of: impl Fn(&Sample) -> u64, slack: u64) {
        let third = self.samples.len().div_ceil(3);
        let median = |samples: &[Sample]| {
            let mut values: Vec<u64> = samples.iter().map(&of).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        let (early, late) = (median(&self.samples[..third]), median(&self.samples[self.samples.len() - third..]));
        assert!(late <= early + early / 5 + slack, "{what} grew from {early} KiB to {late} KiB");
    }
}

const BALLAST: &str = "ballast";

/// A file system of its own for the store, small enough to be filled.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Nothing when this is not allowed: mounting needs root.
    fn mounted(on: &Path) -> Option<SmallDisk> {
        fs::create_dir_all(on).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs"]).arg(on);
        let is_mounted = mount.output().is_ok_and(|output| output.status.success());
        is_mounted.then(|| SmallDisk(on.to_owned()))
    }

    fn fill(&self) {
        let mut ballast = File::create(self.0.join(BALLAST)).unwrap();
        let mut block = 1 << 20;
        while block > 0 {
            // Full for this size: try a smaller one.
            if ballast.write_all(&vec![0; block]).is_err() {
                block /= 2;
            }
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.join(BALLAST)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The gateway may still have files open on it when a test has failed.
        Command::new("umount").arg("-l").arg(&self.0).output().ok();
    }
}
