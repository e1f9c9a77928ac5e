//! Does what the queue acknowledged survive `kill -9`?
//!
//! This binary starts itself again as a child that appends without end and prints each number once it is
//! acknowledged; the child is killed at a random moment, again and again on the same store. Survivable, because a
//! number is printed after its commit only. The fault that it would show: a reply before the sync. (It does not show a
//! missing sync: the kernel outlives the process. That is the power cut's test.)

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroU64;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::clock::{Clock, ClockSource};
use tidegate::config::{ForwardRule, TopicTemplate, WhenFull};
use tidegate::health::Health;
use tidegate::message::{Body, Filter, Message, Origin, Qos, Topic};
use tidegate::queue::{self, Change, Opened, QueueSettings, StreamSpec, Submission, Verdict};

const KILLS: u64 = 12;
const DIR: &str = "TIDEGATE_TEST_QUEUE_DIR";
const FIRST: &str = "TIDEGATE_TEST_QUEUE_FIRST";

fn settings(dir: &Path) -> QueueSettings {
    let filter = Filter::new("#").unwrap();
    let rule = ForwardRule {
        filter,
        topic: TopicTemplate::identity(),
        qos: None,
        when_full: None,
        strict_order: false,
        payload: tidegate::config::Payload::JSON,
        batch: None,
    };
    QueueSettings {
        set_topics: queue::SetTopics::default(),
        dir: dir.to_owned(),
        gateway: Arc::from("g7"),
        bytes_max: NonZeroU64::new(256 << 20).unwrap(),
        age_max: None,
        keep: None,
        when_full: WhenFull::Refuse,
        hold: None,
        streams: vec![StreamSpec { name: Arc::from("cloud"), rules: vec![rule], own_topic: None }],
        clock: Clock::new(ClockSource::Trusted),
        health: Health::default(),
    }
}

fn numbered(number: u64, clock: &Clock) -> Submission {
    let message = Message {
        topic: Topic::new("plant/press/3/sensor").unwrap(),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: None,
        body: Body::Bytes(Bytes::from(number.to_string())),
        origin: Origin::Field,
        received: clock.now(),
    };
    Submission { message, once: None }
}

/// The child: does nothing in an ordinary run of the tests.
#[test]
fn child_that_appends_until_it_is_killed() {
    let (Ok(dir), Ok(first)) = (std::env::var(DIR), std::env::var(FIRST)) else { return };
    let settings = settings(Path::new(&dir));
    let clock = settings.clock.clone();
    let Opened { inlet, worker, outlets } = queue::open(settings).unwrap();
    std::thread::spawn(|| worker.run());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let _outlets = outlets;
        let mut pending = std::collections::VecDeque::new();
        for number in first.parse::<u64>().unwrap().. {
            pending.push_back((number, inlet.begin_append(numbered(number, &clock)).await.unwrap()));
            if pending.len() >= 20 {
                let (number, oldest) = pending.pop_front().unwrap();
                oldest.outcome().await.unwrap();
                // In one write, so that a line is whole or not there.
                std::io::stderr().write_all(format!("acknowledged {number}\n").as_bytes()).unwrap();
            }
        }
    });
}

#[test]
fn nothing_that_was_acknowledged_is_lost_over_many_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_appends_until_it_is_killed", "--nocapture"])
            .env(DIR, dir.path())
            .env(FIRST, (round * 1_000_000).to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Killed after a number of acknowledgements that differs from round to round.
        let wanted = 40 + round * 97 % 400;
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            let line = line.unwrap();
            let Some(number) = line.strip_prefix("acknowledged ") else { continue };
            acknowledged.insert(number.parse::<u64>().unwrap());
            seen += 1;
            if seen == wanted {
                // SIGKILL. What it has printed already is read to the end.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= wanted, "the child of round {round} ended by itself after {seen} acknowledgements");
    }

    let Opened { inlet, worker, mut outlets } = queue::open(settings(dir.path())).unwrap();
    let thread = std::thread::spawn(|| worker.run());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = runtime.block_on(async {
        let outlet = outlets.get_mut("cloud").unwrap();
        let mut found = Vec::new();
        while inlet.stats().await.unwrap().messages > 0 {
            let next = tokio::time::timeout(Duration::from_secs(30), outlet.next(256, 1 << 20)).await.unwrap().unwrap();
            let settled =
                next.iter().map(|row| Change::Settle { sequence: row.sequence, verdict: Verdict::Delivered }).collect();
            outlet.commit(settled).await.unwrap();
            found.extend(next);
        }
        inlet.stop().await;
        found
    });
    thread.join().unwrap().unwrap();
    let numbers: Vec<u64> = found
        .iter()
        .map(|row| {
            let Body::Bytes(bytes) = &row.message.body else { panic!("not bytes") };
            std::str::from_utf8(bytes).unwrap().parse().unwrap()
        })
        .collect();
    let stored: BTreeSet<u64> = numbers.iter().copied().collect();
    let lost: Vec<_> = acknowledged.difference(&stored).collect();
    println!("{KILLS} kills, {} acknowledged, {} stored, {} lost", acknowledged.len(), stored.len(), lost.len());
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(numbers.len(), stored.len(), "a message is there twice");
    assert!(numbers.is_sorted(), "the order of one sender is kept over restarts");
    assert!(found.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
}
