//! What does a disk that is full, read-only, failing or slow cost? Nothing that was acknowledged, and no restart.
//!
//! Small file systems of the test's own: filled by the gateway's own messages and by somebody else's file, read-only
//! from the start, made read-only by the kernel because the disk failed, and with syncs that take 200 ms. A publisher
//! must always see that its message is not taken: by a reason code in MQTT 5, by silence or an end in 3.1.1.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::budget::{Budget, Cases, random_of};
use super::common::account::{lost, repeated};
use super::common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use super::common::raw::{Heard, RawClient, Version};
use super::common::{PATIENCE, turn};
use super::mounts::{self, Mount};
use super::numbers::{Numbers, Said};
use super::random::Random;
use super::stand_in::{Memory, StandIn};

/// So small that the store keeps itself to its least.
const DISK_BYTES: u64 = 8 << 20;
/// Has room for all messages of a test.
const LARGER_DISK_BYTES: u64 = 24 << 20;
const TOPICS: [(u8, &str, &str); 2] = [(1, "plant/one", "factory7/plant/one"), (2, "plant/two", "factory7/plant/two")];

/// A gateway on a disk, its cloud, and what its publishers have heard.
struct Site {
    cloud: StandIn,
    gateway: Gateway,
    next: u64,
    acknowledged: Vec<Vec<u64>>,
}

impl Site {
    /// Nothing is started; the cloud is away.
    fn prepared(folder: &Path) -> Site {
        Site::with(folder, "[queue]\nwhen_full = \"refuse\"\n")
    }

    fn with(folder: &Path, queue: &str) -> Site {
        let cloud = StandIn::prepared();
        let tables = queue.to_owned() + &uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT;
        let gateway = Gateway::prepared(folder, &tables);
        Site { cloud, gateway, next: 0, acknowledged: vec![Vec::new(); TOPICS.len()] }
    }

    /// Publishes so many at each QoS; gives back what both publishers heard.
    fn publish(
        &mut self,
        version: Version,
        count: u64,
        window: usize,
        patience: Duration,
        large_percent: u64,
        random: &mut Random,
    ) -> Vec<Said> {
        let (port, first) = (self.gateway.port, self.next);
        self.next += count;
        let said: Vec<Said> = std::thread::scope(|scope| {
            let publishers: Vec<_> = TOPICS
                .iter()
                .map(|(qos, topic, _)| {
                    let qos = *qos;
                    let numbers = Numbers { version, qos, topic, first, count, window, large_percent, patience };
                    let mut random = random.branch();
                    scope.spawn(move || numbers.publish(port, &mut random, &AtomicU64::new(0), |_| {}))
                })
                .collect();
            publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
        });
        for (said, all) in said.iter().zip(&mut self.acknowledged) {
            all.extend(&said.acknowledged);
        }
        said
    }

    /// Publishes until a whole burst is taken.
    #[track_caller]
    fn publish_until_all_is_taken(&mut self, random: &mut Random) {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let said = self.publish(Version::V5, 5, 2, Duration::from_secs(5), 10, random);
            if said.iter().all(|said| said.acknowledged.len() == 5) {
                return;
            }
            assert!(tokio::time::Instant::now() < until, "messages are taken again: {said:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The cloud has whatever was acknowledged, at QoS 2 once.
    #[track_caller]
    fn expect_nothing_lost(&self) {
        let mut last = RawClient::connected(self.gateway.port, Version::V311, "last");
        last.publish(b"plant/last", 2, 1, b"1");
        assert_eq!(last.hear(PATIENCE), Heard::Packet(0x50, vec![0, 1]), "a new message is taken");
        last.release(1);
        self.cloud.wait("the last message", |memory| !memory.numbers_on("factory7/plant/last").is_empty());
        let memory = self.cloud.memory();
        for ((qos, _, topic), acknowledged) in TOPICS.iter().zip(&self.acknowledged) {
            let arrived = memory.numbers_on(topic);
            let lost = lost(&arrived, acknowledged);
            assert!(lost.is_empty(), "{topic}: {} of {} are lost: {lost:?}", lost.len(), acknowledged.len());
            if *qos == 2 {
                assert_eq!(repeated(&arrived), Vec::<u64>::new(), "{topic}");
            }
        }
        assert!(!self.gateway.state_dir().join("quarantine").exists(), "no store was moved aside");
    }
}

/// Fills the disk to the last byte.
fn fill(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("somebody-elses");
    let mut file = File::create(&path).unwrap();
    for size in [64 * 1024, 4096, 512, 1] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
    path
}

fn full_disk(random: &mut Random, folder: &Path) -> (usize, usize) {
    let mut site = Site::prepared(folder);
    let state = site.gateway.state_dir();
    let image = folder.join("image");
    let is_small = random.happens(50);
    let bytes = if is_small { DISK_BYTES } else { LARGER_DISK_BYTES };
    let mount = match random.happens(50) {
        true => {
            mounts::make_ext4(&image, bytes);
            Mount::ext4(&image, &state)
        }
        false => Mount::tmpfs(bytes, &state),
    };
    site.gateway.start();
    let pid = site.gateway.id();

    // By its own messages: MQTT 5 is told so.
    let said = site.publish(Version::V5, 2200, 20, PATIENCE, 60, random);
    for said in &said {
        assert!(!said.was_cut && said.refused.is_empty() != is_small, "full, and MQTT 5 is told so: {said:?}");
        assert!(said.refused.iter().all(|(_, reason)| *reason == 0x97), "{:?}", said.refused);
    }
    let mut unanswered = 0;
    if random.happens(70) {
        // By somebody else's file, to the last byte.
        let ballast = fill(&state);
        for version in [Version::V5, Version::V311] {
            for said in site.publish(version, 20, 5, Duration::from_secs(1), 10, random) {
                // Within the files that it has there may be room, whatever the disk says.
                unanswered += usize::from(said.was_cut);
            }
        }
        assert_eq!(site.gateway.has_ended(), None, "a full disk ends nothing");
        // The cloud is back before the room is: what goes up meanwhile is not lost for it, and not doubled by it.
        site.cloud.begin(Memory::default(), None);
        for said in site.publish(Version::V5, 5, 1, Duration::from_secs(1), 10, random) {
            unanswered += usize::from(said.was_cut);
        }
        assert_eq!(site.gateway.has_ended(), None, "a full disk ends nothing");
        fs::remove_file(ballast).unwrap();
    } else {
        // What waits makes room itself.
        site.cloud.begin(Memory::default(), None);
    }
    site.publish_until_all_is_taken(random);
    site.gateway.wait_until_drained();
    site.expect_nothing_lost();
    assert_eq!((site.gateway.id(), site.gateway.has_ended()), (pid, None), "all that without a restart");
    site.gateway.stop();
    mount.unmount();
    (site.acknowledged.iter().map(Vec::len).sum(), unanswered)
}

#[test]
fn a_full_disk_costs_nothing_that_was_acknowledged() {
    mounts::privately("disks::a_full_disk_costs_nothing_that_was_acknowledged", || {
        let mut budget = Budget::begin("disks", Cases { short: 4, long: 100 });
        let mut cases = 0;
        while let Some(mut case) = budget.next() {
            let folder = folder();
            let (acknowledged, unanswered) = full_disk(&mut case.random, folder.path());
            cases += 1;
            budget.say(format!(
                "disk {cases} full: 0 of {acknowledged} acknowledged lost, {unanswered} publishers cut off"
            ));
        }
    });
}

/// A disk for messages, one way or the other.
fn larger_disk(folder: &Path, state: &Path, is_ext4: bool) -> Mount {
    if !is_ext4 {
        return Mount::tmpfs(LARGER_DISK_BYTES, state);
    }
    let image = folder.join("image");
    mounts::make_ext4(&image, LARGER_DISK_BYTES);
    Mount::ext4(&image, state)
}

/// Somebody else's file takes the last byte while messages wait; the cloud comes, and the file stays.
fn drains_beside_ballast(random: &mut Random, is_ext4: bool) {
    let folder = folder();
    let mut site = Site::prepared(folder.path());
    let state = site.gateway.state_dir();
    let mount = larger_disk(folder.path(), &state, is_ext4);
    site.gateway.start();
    let pid = site.gateway.id();
    for said in site.publish(Version::V5, 300, 20, PATIENCE, 60, random) {
        assert_eq!(said.acknowledged.len(), 300, "there is room: {said:?}");
    }
    let ballast = fill(&state);
    site.cloud.begin(Memory::default(), None);
    site.gateway.wait_until_drained();
    fs::remove_file(ballast).unwrap();
    site.expect_nothing_lost();
    assert_eq!((site.gateway.id(), site.gateway.has_ended()), (pid, None), "all that without a restart");
    site.gateway.stop();
    mount.unmount();
}

#[test]
fn a_disk_that_somebody_else_has_filled_to_the_last_byte_does_not_stop_the_drain() {
    mounts::privately("disks::a_disk_that_somebody_else_has_filled_to_the_last_byte_does_not_stop_the_drain", || {
        let _turn = turn();
        let mut random = random_of("drains_beside_ballast");
        for is_ext4 in [true, false] {
            drains_beside_ballast(&mut random, is_ext4);
        }
    });
}

/// The owner's bound is far away, and by it the oldest would give way: that is no leave to throw away for somebody else's
/// file what was acknowledged.
fn keeps_all_beside_ballast(random: &mut Random, is_ext4: bool, before: u64) {
    let folder = folder();
    let mut site = Site::with(folder.path(), "");
    let state = site.gateway.state_dir();
    let mount = larger_disk(folder.path(), &state, is_ext4);
    site.gateway.start();
    for said in site.publish(Version::V5, before, 20, PATIENCE, 60, random) {
        assert_eq!(said.acknowledged.len() as u64, before, "there is room: {said:?}");
    }
    let ballast = fill(&state);
    let mut unanswered = 0;
    for version in [Version::V5, Version::V311] {
        let said = site.publish(version, 400, 20, Duration::from_secs(3), 60, random);
        unanswered += said.iter().filter(|said| said.acknowledged.len() < 400).count();
        // Where another start finds the disk so, it is the same.
        site.gateway.kill();
        site.gateway.start();
    }
    assert!(unanswered > 0, "the disk was full");
    site.cloud.begin(Memory::default(), None);
    site.gateway.wait_until_drained();
    fs::remove_file(ballast).unwrap();
    site.publish_until_all_is_taken(random);
    site.expect_nothing_lost();
    site.gateway.stop();
    mount.unmount();
}

#[test]
fn what_was_acknowledged_does_not_give_way_to_somebody_elses_file() {
    mounts::privately("disks::what_was_acknowledged_does_not_give_way_to_somebody_elses_file", || {
        let _turn = turn();
        let mut random = random_of("keeps_all_beside_ballast");
        for (is_ext4, before) in [(true, 300), (false, 300), (true, 20), (false, 20), (true, 80), (false, 80)] {
            keeps_all_beside_ballast(&mut random, is_ext4, before);
        }
    });
}

#[test]
fn a_disk_that_is_read_only_at_the_start_is_used_once_it_can_be_written() {
    mounts::privately("disks::a_disk_that_is_read_only_at_the_start_is_used_once_it_can_be_written", || {
        let _turn = turn();
        let mut random = random_of("read_only_at_the_start");
        let folder = folder();
        let mut site = Site::prepared(folder.path());
        let image = folder.path().join("image");
        mounts::make_ext4(&image, DISK_BYTES);
        let mount = Mount::ext4(&image, &site.gateway.state_dir());
        site.gateway.start();
        site.publish_until_all_is_taken(&mut random);
        site.gateway.kill();
        mount.set_read_only(true);

        site.gateway.start();
        let pid = site.gateway.id();
        for version in [Version::V5, Version::V311] {
            for said in site.publish(version, 3, 1, Duration::from_secs(1), 10, &mut random) {
                assert!(said.acknowledged.is_empty(), "nothing can be kept on it: {said:?}");
            }
        }
        mount.set_read_only(false);
        site.publish_until_all_is_taken(&mut random);
        site.cloud.begin(Memory::default(), None);
        site.expect_nothing_lost();
        assert_eq!((site.gateway.id(), site.gateway.has_ended()), (pid, None), "all that without a restart");
        site.gateway.kill();
        mount.unmount();
    });
}

#[test]
fn a_disk_that_turns_read_only_stops_acknowledgements_and_loses_none_of_those_before() {
    mounts::privately(
        "disks::a_disk_that_turns_read_only_stops_acknowledgements_and_loses_none_of_those_before",
        || {
            let _turn = turn();
            let mut random = random_of("turns_read_only");
            let folder = folder();
            let mut site = Site::prepared(folder.path());
            let image = folder.path().join("image");
            mounts::make_ext4(&image, LARGER_DISK_BYTES);
            let mount = Mount::ext4(&image, &site.gateway.state_dir());
            site.gateway.start();
            site.publish_until_all_is_taken(&mut random);
            mount.fail();
            for version in [Version::V5, Version::V311] {
                for said in site.publish(version, 10, 2, Duration::from_secs(1), 10, &mut random) {
                    assert!(said.acknowledged.is_empty(), "nothing can be kept on it: {said:?}");
                }
            }
            assert_eq!(site.gateway.has_ended(), None, "a failed disk ends nothing");
            // Somebody switches the board off, and on again.
            site.gateway.kill();
            mount.unmount();
            mounts::mend_ext4(&image);
            let mount = Mount::ext4(&image, &site.gateway.state_dir());
            site.cloud.begin(Memory::default(), None);
            site.gateway.start();
            site.publish_until_all_is_taken(&mut random);
            site.expect_nothing_lost();
            site.gateway.kill();
            mount.unmount();
        },
    );
}

#[test]
fn a_disk_that_takes_200_ms_for_each_sync_is_only_slow() {
    let _turn = turn();
    let mut random = random_of("slow_syncs");
    let folder = folder();
    let mut site = Site::prepared(folder.path());
    site.gateway.set_tracer(&[
        "strace",
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync,fsync",
        "-e",
        "inject=fdatasync,fsync:delay_enter=200000",
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
    ]);
    site.cloud.begin(Memory::default(), None);
    site.gateway.start();
    let count = 40;
    let said = site.publish(Version::V5, count, 40, PATIENCE, 10, &mut random);
    for said in said {
        assert_eq!((said.acknowledged.len() as u64, said.refused, said.was_cut), (count, vec![], false));
    }
    site.expect_nothing_lost();
    site.gateway.stop();
    let loud: Vec<String> = site.gateway.log().into_iter().filter(|line| line.contains(" ERROR ")).collect();
    assert_eq!(loud, Vec::<String>::new(), "a slow disk is nothing to be alarmed about");
}
