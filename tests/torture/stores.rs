//! What becomes of a store that was changed behind the gateway's back: bits flipped, pages zeroed, files cut, swapped or
//! replaced?
//!
//! Each case takes a copy of a store with numbered messages, spoils it by a seeded recipe and opens it. The messages wait
//! for a cloud and for the session of a local client. It must open within 5 s, send nothing that was never put in, send
//! twice only what it says may come twice, and account for every copy: it is sent, or declared as lost with a number or
//! with "unknown". What is whole in the files must be sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::clock::{Clock, ClockSource};
use tidegate::config::{ForwardRule, TopicTemplate, WhenFull};
use tidegate::health::Health;
use tidegate::message::{Body, Filter, Message, Origin, Qos, Topic};
use tidegate::queue::sessions::{Entrance, Entry, Kept, Retained, Settling, Subscribed};
use tidegate::queue::{
    self, AppendError, Change, Inlet, Opened, Outlet, QueueSettings, StreamSpec, Submission, Verdict,
};
use tokio::time::{Instant, timeout};

use super::budget::{Budget, Cases};
use super::common::cloud::{Access, Mosquitto};
use super::common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use super::common::peers::{Publisher, Subscriber};
use super::common::turn;
use super::random::Random;

const CASES: Cases = Cases { short: 300, long: 10_000 };
const MESSAGES: u64 = 160;
const DELIVERED: u64 = 30;
const START_MAX: Duration = Duration::from_secs(5);

fn settings(dir: &Path, health: &Health) -> QueueSettings {
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
        bytes_max: NonZeroU64::new(64 << 20).unwrap(),
        age_max: None,
        keep: None,
        when_full: WhenFull::Refuse,
        hold: None,
        streams: vec![StreamSpec { name: Arc::from("cloud"), rules: vec![rule], own_topic: None }],
        clock: Clock::new(ClockSource::Trusted),
        health: health.clone(),
    }
}

/// The payload says what it is, so that none can be mistaken for another: its number, again and again, and a sum.
fn payload(owner: &str, number: u64) -> Vec<u8> {
    let length = if number.is_multiple_of(23) { 3000 } else { 90 };
    let mut text = String::new();
    while text.len() < length {
        text.push_str(&format!("{owner} {number}, "));
    }
    text.truncate(length);
    format!("{text}{:08x}", crc32c::crc32c(text.as_bytes())).into_bytes()
}

fn submission(owner: &str, number: u64, clock: &Clock) -> Submission {
    let message = Message {
        topic: Topic::new("plant/press").unwrap(),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: None,
        body: Body::Bytes(Bytes::from(payload(owner, number))),
        origin: Origin::Field,
        received: clock.now(),
    };
    Submission { message, once: None }
}

fn number_of(owner: &str, body: &Body) -> Option<u64> {
    let Body::Bytes(bytes) = body else { return None };
    let number = std::str::from_utf8(bytes).ok()?.strip_prefix(owner)?.trim_start().split(',').next()?.parse().ok()?;
    (*bytes == payload(owner, number)).then_some(number)
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
    }
    to
}

async fn settle(outlet: &mut Outlet, count: usize) -> Vec<queue::Queued> {
    let rows = timeout(Duration::from_secs(20), outlet.next(count, 1 << 20)).await.unwrap().unwrap();
    let settled = rows.iter().map(|row| Change::Settle { sequence: row.sequence, verdict: Verdict::Delivered });
    outlet.commit(settled.collect()).await.unwrap();
    rows
}

/// The session of a local client that wants all messages.
async fn enter(inlet: &Inlet) -> Result<Kept, AppendError> {
    let (user, client) = (Arc::from(""), Arc::from("panel"));
    let entrance = Entrance { user, client, heir_of: None, is_clean: false, expiry_s: 3600 };
    match inlet.enter_session(entrance).await? {
        Entry::Kept(kept) => Ok(kept),
        other => panic!("{other:?}"),
    }
}

/// Takes what waits for the session, and acknowledges it: `count_max` at most.
async fn taken_by_session(inlet: &Inlet, count_max: usize) -> Result<Vec<Message>, AppendError> {
    let mut outlet = inlet.session_outlet(enter(inlet).await?.number);
    let (mut taken, mut place) = (Vec::new(), (0, 0));
    loop {
        let parcels = outlet.fetch(place, Vec::new(), count_max - taken.len(), 1 << 20).await?;
        let settled = parcels.rows.iter().map(|row| Settling::Delivered {
            lane: row.lane,
            sequence: row.sequence,
            bytes: row.bytes,
        });
        outlet.settle(settled.collect()).await?;
        if parcels.is_gone {
            // Its store was moved aside in between.
            return Err(AppendError::Stopped);
        }
        place = parcels.place;
        taken.extend(parcels.rows.into_iter().map(|row| row.message));
        if !parcels.is_more || taken.len() >= count_max {
            return Ok(taken);
        }
    }
}

/// A store as an orderly stop leaves it, and as a power cut leaves it: its log not emptied.
async fn made(owner: &str) -> (TempDir, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let health = Health::default();
    let settings = settings(dir.path(), &health);
    let clock = settings.clock.clone();
    let Opened { inlet, worker, mut outlets } = queue::open(settings).unwrap();
    let thread = std::thread::spawn(|| worker.run());
    let panel = enter(&inlet).await.unwrap();
    let all = Subscribed {
        filter: Filter::new("#").unwrap(),
        qos: Qos::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        identifier: None,
    };
    inlet.subscribe_session(panel.number, &Arc::from("panel"), vec![(all, Retained::Never)], 10).await.unwrap();
    for number in 0..MESSAGES {
        inlet.append(submission(owner, number, &clock)).await.unwrap();
        if number == DELIVERED + 20 {
            let rows = settle(outlets.get_mut("cloud").unwrap(), usize::try_from(DELIVERED).unwrap()).await;
            assert_eq!(rows.len() as u64, DELIVERED);
            let rows = taken_by_session(&inlet, rows.len()).await.unwrap();
            assert_eq!(rows.len() as u64, DELIVERED);
        }
    }
    let cut = copy(dir.path());
    inlet.stop().await;
    thread.join().unwrap().unwrap();
    (dir, cut)
}

/// What a recipe did, and what may be asked of the result.
struct Spoilt {
    what: String,
    /// All messages must be there.
    is_harmless: bool,
    /// Commits at the end may be gone without a trace: nobody can tell that from a power cut.
    loses_its_end: bool,
}

fn spoil(dir: &Path, other: &Path, random: &mut Random) -> Spoilt {
    let (database, log) = (dir.join("queue.db"), dir.join("queue.db-wal"));
    let has_log = fs::metadata(&log).is_ok_and(|log| log.len() > 0);
    let spoilt = |what: String| Spoilt { what, is_harmless: false, loses_its_end: false };
    let target = if has_log && random.within(0..2) == 0 { &log } else { &database };
    let name = target.file_name().unwrap().to_string_lossy().into_owned();
    let mut bytes = fs::read(target).unwrap();
    let before = bytes.clone();
    let mut result = match random.within(0..if has_log { 17 } else { 12 }) {
        0..=2 => {
            let count = 1 + random.within(0..40);
            for _ in 0..count {
                let at = place(random, bytes.len());
                bytes[at] ^= 1 << random.within(0..8);
            }
            spoilt(format!("{count} bits flipped in {name}"))
        }
        3 | 4 => {
            let pages = bytes.len() / 1024;
            let count = 1 + random.within(0..6);
            for _ in 0..count {
                let at = place(random, pages) * 1024;
                let value = if random.within(0..2) == 0 { 0 } else { 0xff };
                bytes[at..at + 1024].fill(value);
            }
            spoilt(format!("{count} pages of {name} wiped"))
        }
        5 => {
            let length = place(random, bytes.len());
            bytes.truncate(length);
            spoilt(format!("{name} cut to {length} bytes"))
        }
        6 => {
            let pages = bytes.len() / 1024;
            let (one, two) = (place(random, pages) * 1024, place(random, pages) * 1024);
            let page = bytes[one..one + 1024].to_vec();
            bytes.copy_within(two..two + 1024, one);
            bytes[two..two + 1024].copy_from_slice(&page);
            spoilt(format!("pages at {one} and {two} of {name} swapped"))
        }
        7 => {
            let count = 64 + place(random, 4000);
            let at = place(random, bytes.len());
            for byte in bytes.iter_mut().skip(at).take(count) {
                *byte = u8::try_from(random.within(0..256)).unwrap();
            }
            spoilt(format!("{count} bytes of noise at {at} of {name}"))
        }
        8 => {
            bytes[60..64].copy_from_slice(&99_u32.to_be_bytes());
            bytes[68..72].copy_from_slice(b"ELSE");
            spoilt(format!("another version and owner at the head of {name}"))
        }
        9 => {
            bytes.clear();
            spoilt(format!("{name} emptied"))
        }
        10 => {
            let foreign = fs::read(other.join("queue.db-wal")).unwrap();
            fs::write(&log, foreign).unwrap();
            return spoilt("another store's log".to_owned());
        }
        12 => {
            fs::remove_file(&log).unwrap();
            return spoilt("no log".to_owned());
        }
        13 => {
            fs::write(&log, b"").unwrap();
            return spoilt("an empty log".to_owned());
        }
        14 => {
            let length = place(random, usize::try_from(fs::metadata(&log).unwrap().len()).unwrap());
            fs::File::options().write(true).open(&log).unwrap().set_len(length as u64).unwrap();
            return Spoilt { loses_its_end: length >= LOG_BYTES, ..spoilt(format!("the log cut to {length} bytes")) };
        }
        15 => {
            // What SQLite takes for the log's end.
            let mut bytes = fs::read(&log).unwrap();
            let commits = commits(&bytes);
            let (begin, end) = (commits[commits.len() - 2], commits[commits.len() - 1]);
            let at = begin + place(random, end - begin);
            bytes[at] ^= 1 << random.within(0..8);
            fs::write(&log, bytes).unwrap();
            return spoilt(format!("a bit flipped at {at} in the last commit, of {begin} to {end}"));
        }
        16 => {
            // Of the database, whose pages have no checksum: the log is put into it first, and begins anew.
            let pages = checkpointed(dir);
            let (one, two) = (place(random, pages) * 1024, place(random, pages) * 1024);
            let mut bytes = fs::read(&database).unwrap();
            let page = bytes[one..one + 1024].to_vec();
            bytes.copy_within(two..two + 1024, one);
            bytes[two..two + 1024].copy_from_slice(&page);
            fs::write(&database, bytes).unwrap();
            return spoilt(format!("pages at {one} and {two} swapped after a checkpoint"));
        }
        _ => match random.within(0..3) {
            0 => {
                fs::remove_file(&database).unwrap();
                fs::create_dir(&database).unwrap();
                return spoilt("a directory in place of queue.db".to_owned());
            }
            1 => {
                fs::write(dir.join("start"), b"garbage").unwrap();
                return Spoilt { is_harmless: true, ..spoilt("a start file of garbage".to_owned()) };
            }
            _ => {
                fs::remove_file(dir.join("start")).unwrap();
                return Spoilt { is_harmless: true, ..spoilt("no start file".to_owned()) };
            }
        },
    };
    // A tail that is torn as the power tears it says nothing of what was in it.
    result.loses_its_end = target == &log && is_in_the_tail(&before, &bytes);
    fs::write(target, bytes).unwrap();
    result
}

const FRAME: usize = 1048;
/// What a log has at least, as the database knows: where one that was longer ends later than here, it may have been so.
const LOG_BYTES: usize = 320 * FRAME;

/// Where each commit of a log's present round ends.
fn commits(log: &[u8]) -> Vec<usize> {
    let frames = log[32..].chunks_exact(FRAME).take_while(|frame| frame[8..16] == log[16..24]);
    let ends = frames.enumerate().filter(|(_, frame)| frame[4..8] != [0; 4]);
    ends.map(|(index, _)| 32 + (index + 1) * FRAME).collect()
}

/// Whether all commits but the last ones are as they were, and those are not merely short of a bit: nobody can tell
/// that from commits that the power tore, or that were not there yet.
fn is_in_the_tail(before: &[u8], after: &[u8]) -> bool {
    if after.len() < before.len() {
        return after.len() >= LOG_BYTES;
    }
    let ends = commits(before);
    let first = before.iter().zip(after).position(|(one, two)| one != two).unwrap_or(before.len());
    // The first commit that is not whole any more; what comes after it must be gone for SQLite and for us.
    let Some(hit) = ends.iter().position(|end| first < *end) else { return true };
    let is_last = hit + 1 == ends.len();
    is_last || commits_after(after, ends[hit]) < 2
}

/// Commits whose end can still be seen from here on.
fn commits_after(log: &[u8], from: usize) -> usize {
    let frames = log[from.min(log.len())..].chunks_exact(FRAME);
    frames.filter(|frame| frame[8..16] == log[16..24] && frame[4..8] != [0; 4]).count()
}

/// Puts the log into the database, as a gateway does, and leaves a log that begins anew with one more message that is
/// delivered. Says how many pages there are.
fn checkpointed(dir: &Path) -> usize {
    let log = dir.join("queue.db-wal");
    let length = fs::metadata(&log).unwrap().len();
    let connection = rusqlite::Connection::open(dir.join("queue.db")).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(RESTART)", (), |_| Ok(())).unwrap();
    connection.execute("INSERT INTO problem(wall_ms, text) VALUES (1, 'a commit after the checkpoint')", ()).unwrap();
    let kept = fs::read(&log).unwrap();
    connection.close().unwrap();
    drop(fs::remove_file(dir.join("queue.db-shm")));
    fs::write(&log, kept).unwrap();
    fs::File::options().write(true).open(&log).unwrap().set_len(length).unwrap();
    usize::try_from(fs::metadata(dir.join("queue.db")).unwrap().len() / 1024).unwrap()
}

/// Numbers whose row lies whole in the database: its payload in one piece, with room for what stands before it.
fn whole_in(dir: &Path, owner: &str) -> BTreeSet<u64> {
    let bytes = fs::read(dir.join("queue.db")).unwrap_or_default();
    let is_start = |at: &usize| bytes[*at..].starts_with(owner.as_bytes()) && !bytes[..*at].ends_with(b", ");
    let mut whole = BTreeSet::new();
    for at in (0..bytes.len()).filter(is_start) {
        // The sum of a short one is its end.
        let rest = &bytes[at..bytes.len().min(at + 98)];
        whole
            .extend(number_of(owner, &Body::Bytes(Bytes::copy_from_slice(rest))).filter(|number| *number >= DELIVERED));
    }
    whole
}

/// How often the store was moved aside.
fn moved_aside(dir: &Path) -> usize {
    fs::read_dir(dir.join("quarantine")).into_iter().flatten().count()
}

fn is_salvaging(dir: &Path) -> bool {
    let places = fs::read_dir(dir.join("quarantine")).into_iter().flatten();
    places.filter_map(Result::ok).any(|place| place.path().join("salvage.json").exists())
}

fn place(random: &mut Random, length: usize) -> usize {
    usize::try_from(random.within(0..length.max(1) as u64)).unwrap()
}

async fn one_case(seed: u64, random: &mut Random, original: &Path, other: &Path) {
    let dir = copy(original);
    let Spoilt { what, is_harmless, loses_its_end } = spoil(dir.path(), other, random);
    let said = format!("seed {seed}: {what}");
    let whole = whole_in(dir.path(), "mine");

    let health = Health::default();
    let settings = settings(dir.path(), &health);
    let clock = settings.clock.clone();
    let started = Instant::now();
    let Opened { inlet, worker, mut outlets } = queue::open(settings).unwrap_or_else(|error| panic!("{said}: {error}"));
    let thread = std::thread::spawn(|| worker.run());
    // Damage may show only now: then the store is moved aside while it runs, and the publisher repeats.
    while let Err(error) = inlet.append(submission("fresh", 1, &clock)).await {
        assert!(started.elapsed() < START_MAX, "{said}: {error}");
    }
    assert!(started.elapsed() < START_MAX, "{said}: it took {:?} until a message was taken", started.elapsed());

    let outlet = outlets.get_mut("cloud").unwrap();
    let mut seen = BTreeMap::<u64, String>::new();
    let mut repeated = Vec::new();
    let mut heard = BTreeSet::new();
    let mut fresh = 0;
    let mut failures = 0;
    loop {
        // Before and after the answer: what a salvage brings in may be in it or not.
        let was_salvaging = is_salvaging(dir.path());
        let stats = match inlet.stats().await {
            Ok(stats) => stats,
            // Damage that shows only now: the store is moved aside while it runs.
            Err(_) if failures < 20 => {
                failures += 1;
                continue;
            }
            Err(error) => panic!("{said}: {error}"),
        };
        if stats.streams["cloud"].waiting == 0 && !was_salvaging && !is_salvaging(dir.path()) {
            // Last, and again where its damage shows only now.
            let moved = moved_aside(dir.path());
            match taken_by_session(&inlet, 1000).await {
                Ok(messages) if messages.is_empty() && moved == moved_aside(dir.path()) => break,
                Ok(messages) => {
                    for message in messages.iter().filter(|message| number_of("fresh", &message.body).is_none()) {
                        let number = number_of("mine", &message.body);
                        let number =
                            number.unwrap_or_else(|| panic!("{said}: a payload that nobody has put in: {message:?}"));
                        if !heard.insert(number) {
                            repeated.push(number);
                        }
                    }
                }
                Err(_) if failures < 20 => failures += 1,
                Err(error) => panic!("{said}: {error}"),
            }
            continue;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{said}: {stats:?} {:?}", health.snapshot(clock.now()));
        let Ok(next) = timeout(Duration::from_millis(20), outlet.next(50, 1 << 20)).await else { continue };
        let Ok(rows) = next else {
            outlet.rewind();
            continue;
        };
        let settled = rows.iter().map(|row| Change::Settle { sequence: row.sequence, verdict: Verdict::Delivered });
        if outlet.commit(settled.collect()).await.is_err() {
            // As an uplink does: what was not settled comes again.
            outlet.rewind();
            continue;
        }
        for row in rows {
            if number_of("fresh", &row.message.body) == Some(1) {
                fresh += 1;
                continue;
            }
            let number = number_of("mine", &row.message.body);
            let number = number.unwrap_or_else(|| panic!("{said}: a payload that nobody has put in: {row:?}"));
            if let Some(before) = seen.insert(number, row.id.to_string()) {
                assert_eq!(before, row.id.to_string(), "{said}: {number} is there twice under different names");
                repeated.push(number);
            }
        }
    }
    inlet.stop().await;
    thread.join().unwrap().unwrap();
    let status = health.snapshot(clock.now());
    assert_eq!(fresh, 1, "{said}: the new message is sent once: {status:?}");

    let status = health.snapshot(clock.now());
    let is_told = status.problems.iter().any(|problem| problem.text.contains("may arrive again under the same id"));
    assert!(repeated.is_empty() || is_told, "{said}: {repeated:?} are there twice and nobody says so: {status:?}");
    let missing: Vec<u64> = (DELIVERED..MESSAGES).filter(|number| !seen.contains_key(number)).collect();
    let declared: u64 = status.losses.values().sum();
    let is_unknown = status.losses.get("quarantined") == Some(&0)
        || status.problems.iter().any(|problem| problem.text.contains("unknown number"));
    let unheard: Vec<u64> = (DELIVERED..MESSAGES).filter(|number| !heard.contains(number)).collect();
    let is_declared = declared >= (missing.len() + unheard.len()) as u64 || is_unknown || loses_its_end;
    assert!(
        is_declared,
        "{said}: {missing:?} are missing at the cloud and {unheard:?} at the session, and {declared} declared: {status:?}"
    );
    let is_all_there = missing.is_empty() && unheard.is_empty();
    assert!(
        !is_harmless || is_all_there,
        "{said}: {missing:?} are missing at the cloud and {unheard:?} at the session"
    );
    if !loses_its_end {
        let gone: Vec<u64> = missing.iter().copied().filter(|number| whole.contains(number)).collect();
        // A row whose own head was hit has its payload and is not whole all the same: it is declared.
        assert!(gone.len() as u64 <= declared || is_unknown, "{said}: {gone:?} are whole in the file and not sent");
        let most = u64::from(what.contains("bits")) * 40 + u64::from(what.contains("bytes of noise")) * 8;
        let is_small = what.contains("bits") || what.contains("noise");
        assert!(!is_small || gone.len() as u64 <= most, "{said}: {gone:?} are whole in the file and not sent");
    }
}

#[test]
fn a_store_that_was_spoilt_in_any_way_opens_and_accounts_for_every_message() {
    let mut budget = Budget::begin("stores", CASES);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (stopped, cut) = runtime.block_on(made("mine"));
    let (_, other) = runtime.block_on(made("not mine"));
    // The control: the look at the bytes finds what is there.
    let short = (DELIVERED..MESSAGES).filter(|number| payload("mine", *number).len() < 200).count();
    assert_eq!(whole_in(stopped.path(), "mine").len(), short);
    let mut cases = 0;
    for mut case in budget.by_ref() {
        // What a power cut leaves has a log as well; an orderly stop leaves none, and its count.
        let original = if case.random.happens(33) { cut.path() } else { stopped.path() };
        runtime.block_on(one_case(case.seed, &mut case.random, original, other.path()));
        cases += 1;
        if cases % 250 == 0 {
            println!("stores: {cases} so far");
        }
    }
    budget.say(format!("{cases} spoilt stores opened, each copy in each was sent or declared, none was made up"));
}

#[test]
fn the_real_program_salvages_a_damaged_store_beside_its_work_and_sends_what_is_whole() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    let mut gateway =
        Gateway::started(folder.path(), &(uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT));
    let mut publisher = Publisher::started(gateway.port, "client", "plant/press", 1000, &["--window", "100"]);
    publisher.wait_until_done();
    let acknowledged = publisher.acknowledged();
    gateway.stop();
    let mut database = fs::File::options().write(true).open(gateway.state_dir().join("queue.db")).unwrap();
    database.write_all(&[0xff; 1024]).unwrap();
    drop(database);

    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#", "tidegate/#"]);
    gateway.start();
    let mut later = Publisher::started(gateway.port, "later", "plant/later", 10, &[]);
    later.wait_until_done();
    application.wait_for_count("factory7/plant/press", acknowledged.len());
    application.wait_for_count("factory7/plant/later", 10);
    gateway.wait_until_drained();
    let mut arrived = application.numbers_on("factory7/plant/press");
    arrived.sort_unstable();
    assert_eq!(arrived, acknowledged, "all of them, and none twice");
    let status = gateway.status().unwrap();
    let problems: Vec<&str> =
        status["problems"].as_array().unwrap().iter().map(|problem| problem["text"].as_str().unwrap()).collect();
    assert!(problems.iter().any(|text| text.starts_with("moved aside to ")), "{problems:?}");
    assert!(problems.iter().any(|text| text.starts_with("salvaged 1000 messages ")), "{problems:?}");
    assert_eq!(status["losses"].get("quarantined"), None, "{status}");
}
