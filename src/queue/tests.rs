//! The queue's promises Q1–Q5, each by tests of its name, and the rules at its bounds.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::clock::{Clock, ClockSource};
use crate::config::TopicTemplate;
use crate::message::ClockState;
use crate::message::{Body, Origin, Properties, Quality, Reading, Stamp, Value};

mod ceiling;
mod copying;
mod files;
mod kept;
mod ledger;
mod recovery;
mod rot;
mod salvage;
mod segments;
mod sessions;
mod spare;
mod steps;
mod time;
mod writes;

const MIB: u64 = 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(30);

fn rule(filter: &str, topic: &str) -> ForwardRule {
    let filter = Filter::new(filter).unwrap();
    let topic = TopicTemplate::parse(topic, &filter, "g7").unwrap();
    ForwardRule {
        filter,
        topic,
        qos: None,
        when_full: None,
        strict_order: false,
        payload: crate::config::Payload::JSON,
        batch: None,
    }
}

fn stream(name: &str, rules: Vec<ForwardRule>) -> StreamSpec {
    StreamSpec { name: Arc::from(name), rules, own_topic: None }
}

pub(super) fn settings(dir: &Path) -> QueueSettings {
    QueueSettings {
        set_topics: SetTopics::default(),
        dir: dir.to_owned(),
        gateway: Arc::from("g7"),
        bytes_max: NonZeroU64::new(64 * MIB).unwrap(),
        age_max: None,
        keep: None,
        when_full: WhenFull::DropOldest,
        hold: None,
        streams: vec![stream("cloud", vec![rule("#", "up/{topic}")])],
        clock: Clock::new(ClockSource::Trusted),
        health: Health::default(),
    }
}

fn message(topic: &str, body: &[u8]) -> Message {
    Message {
        topic: Topic::new(topic).unwrap(),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: None,
        body: Body::Bytes(Bytes::copy_from_slice(body)),
        origin: Origin::Client(Arc::from("c1")),
        received: Clock::new(ClockSource::Trusted).now(),
    }
}

fn submission(message: Message) -> Submission {
    Submission { message, once: None }
}

fn numbered(number: u64, length: usize) -> Message {
    let mut body = vec![b'x'; length.max(8)];
    body[..8].copy_from_slice(&number.to_le_bytes());
    message("plant/press/3/sensor", &body)
}

fn number_of(message: &Message) -> u64 {
    let Body::Bytes(bytes) = &message.body else { panic!("not bytes") };
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

struct Rig {
    inlet: Inlet,
    outlets: BTreeMap<Arc<str>, Outlet>,
    thread: JoinHandle<Result<(), WorkerError>>,
    health: Health,
}

impl Rig {
    fn start(settings: QueueSettings) -> Rig {
        let health = settings.health.clone();
        let Opened { inlet, outlets, worker } = open(settings).unwrap();
        Rig { inlet, outlets, thread: std::thread::spawn(|| worker.run()), health }
    }

    async fn append(&self, message: Message) -> Appended {
        self.inlet.append(submission(message)).await.unwrap()
    }

    /// All at once, so that they share commits.
    async fn append_all(&self, messages: impl IntoIterator<Item = Message>) -> Vec<Result<Appended, AppendError>> {
        let mut pending = VecDeque::new();
        let mut outcomes = Vec::new();
        for message in messages {
            pending.push_back(self.inlet.begin_append(submission(message)).await.unwrap());
            if pending.len() > 500 {
                outcomes.push(pending.pop_front().unwrap().outcome().await);
            }
        }
        for one in pending {
            outcomes.push(one.outcome().await);
        }
        outcomes
    }

    fn outlet(&mut self, name: &str) -> &mut Outlet {
        self.outlets.get_mut(name).unwrap()
    }

    async fn waiting(&self, name: &str) -> u64 {
        self.inlet.stats().await.unwrap().streams[name].waiting
    }

    /// Everything that waits in a stream, without settling it.
    async fn all(&mut self, name: &str) -> Vec<Queued> {
        let outlet = self.outlet(name);
        outlet.restore().await.unwrap();
        let mut all = Vec::new();
        while let Ok(next) = tokio::time::timeout(Duration::from_millis(300), outlet.next(256, 1 << 20)).await {
            all.extend(next.unwrap());
        }
        all
    }

    /// Delivers everything that waits; gives back what it was.
    async fn drain(&mut self, name: &str) -> Vec<Queued> {
        self.outlet(name).restore().await.unwrap();
        let mut all = Vec::new();
        while self.waiting(name).await > 0 {
            let outlet = self.outlet(name);
            let next = tokio::time::timeout(DEADLINE, outlet.next(100, 1 << 20)).await.unwrap().unwrap();
            outlet.commit(next.iter().map(|row| delivered(row.sequence)).collect()).await.unwrap();
            all.extend(next);
        }
        all
    }

    async fn stop(self) {
        self.inlet.stop().await;
        self.thread.join().unwrap().unwrap();
    }
}

fn delivered(sequence: Sequence) -> Change {
    Change::Settle { sequence, verdict: Verdict::Delivered }
}

fn stored(appended: &Appended) -> Sequence {
    match appended.fate {
        Fate::Stored { sequence, .. } => sequence,
        other => panic!("{other:?}"),
    }
}

/// How far the log is written in its present round. It has its full length from the start, and is written over.
fn log_bytes(dir: &Path) -> u64 {
    let bytes = fs::read(dir.join("queue.db-wal")).unwrap();
    let frames = bytes[32..].chunks_exact(1048).take_while(|frame| frame[8..16] == bytes[16..24]);
    32 + frames.count() as u64 * 1048
}

/// Leaves of the log what a power cut leaves when nothing from here on was written.
fn cut_log(dir: &Path, from: u64) {
    let file = fs::File::options().write(true).open(dir.join("queue.db-wal")).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(from).unwrap();
    file.set_len(length).unwrap();
}

fn copy_dir(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
    }
    to
}

/// Opens the database of a stopped queue beside it.
fn sql(dir: &Path, statement: &str) {
    rusqlite::Connection::open(dir.join("queue.db")).unwrap().execute_batch(statement).unwrap();
}

/// Rows of messages in the database of a stopped queue, wanted or not.
fn rows_on_disk(dir: &Path) -> u64 {
    let store = store::Store::open(&dir.join("queue.db")).unwrap();
    let mut count = 0;
    store
        .messages(spans::Span::new(1, spans::OPEN), |_, _| {
            count += 1;
            true
        })
        .unwrap();
    count
}

// Q1: what was acknowledged is there

#[tokio::test]
async fn q1_what_was_acknowledged_is_there_after_a_restart_in_order_and_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    let outcomes = rig.append_all((0..700).map(|number| numbered(number, 50))).await;
    let names: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap()).collect();
    rig.stop().await;

    let mut rig = Rig::start(settings(dir.path()));
    let found = rig.all("cloud").await;
    assert_eq!(found.len(), 700);
    for (number, (row, appended)) in found.iter().zip(&names).enumerate() {
        assert_eq!(number_of(&row.message), number as u64);
        assert_eq!((row.sequence, &row.id), (stored(appended), &appended.id));
        assert_eq!(row.encoding.topic.as_str(), "up/plant/press/3/sensor");
        assert_eq!(row.message.origin, Origin::Client(Arc::from("c1")));
    }
    rig.stop().await;
}

#[tokio::test]
async fn q1_a_queue_that_was_dropped_without_a_stop_has_everything() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    rig.append_all((0..100).map(|number| numbered(number, 50))).await;
    // What a power cut leaves: the files as they are, the log not emptied.
    let cut = copy_dir(dir.path());
    rig.stop().await;
    let mut rig = Rig::start(settings(cut.path()));
    assert_eq!(rig.drain("cloud").await.len(), 100);
    rig.stop().await;
}

/// What a store holds, read without a thread.
fn numbers_in(dir: &Path) -> Vec<u64> {
    let mut books = opening::open_books(&settings(dir), &mut Past::default()).unwrap();
    let mut numbers = Vec::new();
    let mut place = 0;
    loop {
        let fetched = books.next(0, place, 256, 1 << 20).unwrap();
        if fetched.rows.is_empty() {
            return numbers;
        }
        place = fetched.place;
        numbers.extend(fetched.rows.iter().map(|row| number_of(&row.message)));
    }
}

#[test]
fn q1_a_torn_log_never_yields_half_a_batch_nor_loses_an_earlier_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opening::open_books(&settings(dir.path()), &mut Past::default()).unwrap();
    let mut commits = Vec::new();
    let mut number = 0;
    for batch in 1..=20_u64 {
        for _ in 0..batch {
            books.append(submission(numbered(number, 200))).unwrap().unwrap();
            number += 1;
        }
        books.commit().unwrap();
        commits.push((number, log_bytes(dir.path())));
    }
    let cut_dir = copy_dir(dir.path());
    let end = commits.last().unwrap().1;
    let begin = commits.first().unwrap().1;
    for cut in (begin..=end).step_by(997) {
        let copy = copy_dir(cut_dir.path());
        cut_log(copy.path(), cut);
        let found = numbers_in(copy.path());
        assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>(), "cut at {cut}");
        let count = found.len() as u64;
        assert!(commits.iter().any(|(number, _)| *number == count), "half a batch: {count} rows, cut at {cut}");
        let promised = commits.iter().rev().find(|(_, length)| *length <= cut).unwrap().0;
        assert!(count >= promised, "{count} of {promised} acknowledged, cut at {cut}");
    }
}

// Q2: sequences only grow, names do not repeat

#[tokio::test]
async fn q2_sequences_grow_over_restart_crash_and_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = Sequence(0);
    for round in 0..4 {
        let mut rig = Rig::start(settings(dir.path()));
        for number in 0..5 {
            let sequence = stored(&rig.append(numbered(number, 20)).await);
            assert!(sequence > last, "{sequence} after {last} in round {round}");
            last = sequence;
        }
        if round == 1 {
            // Nothing is left that could say how far the numbers went.
            rig.drain("cloud").await;
        }
        rig.stop().await;
        if round == 2 {
            fs::write(dir.path().join("queue.db"), b"garbage").unwrap();
        }
    }
}

#[tokio::test]
async fn q2_two_cloned_stores_give_no_equal_name() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    rig.append(numbered(0, 20)).await;
    rig.stop().await;
    let clone = copy_dir(dir.path());
    let mut names = HashSet::new();
    for dir in [dir.path(), clone.path()] {
        let rig = Rig::start(settings(dir));
        for number in 0..50 {
            let appended = rig.append(numbered(number, 20)).await;
            assert_eq!(appended.id.start, 2);
            assert!(names.insert(appended.id.clone()), "{} was given twice", appended.id);
        }
        rig.stop().await;
    }
}

#[tokio::test]
async fn q2_damaged_stores_of_every_kind_are_moved_aside_and_the_queue_goes_on() {
    type Damage = fn(&Path);
    let kinds: [(&str, Damage); 8] = [
        ("garbage", |path| fs::write(path, b"this is not a database at all, but it is long enough").unwrap()),
        ("zeros", |path| fs::write(path, vec![0; 8192]).unwrap()),
        ("empty", |path| fs::write(path, b"").unwrap()),
        ("truncated", |path| {
            let length = fs::metadata(path).unwrap().len();
            fs::File::options().write(true).open(path).unwrap().set_len(length / 3).unwrap();
        }),
        ("a directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("another program's", |path| {
            sql(path.parent().unwrap(), "PRAGMA application_id = 7");
        }),
        ("a table is missing", |path| sql(path.parent().unwrap(), "DROP TABLE delivery")),
        ("a log without its database", |path| fs::rename(path, path.with_file_name("queue.db-wal")).unwrap()),
    ];
    for (kind, damage) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(settings(dir.path()));
        rig.append_all((0..50).map(|number| numbered(number, 200))).await;
        rig.stop().await;
        damage(&dir.path().join("queue.db"));
        let mut rig = Rig::start(settings(dir.path()));
        assert!(stored(&rig.append(numbered(777, 20)).await).0 > 50, "{kind}");
        salvage::salvaged(&rig, dir.path()).await;
        let rest: BTreeSet<u64> = rig.drain("cloud").await.iter().map(|row| number_of(&row.message)).collect();
        assert!(rest.contains(&777), "{kind}");
        let lost = losses(&rig).get("quarantined").copied().unwrap_or(0);
        assert_eq!(rest.len() as u64 - 1 + lost, 50, "{kind}: as many waited at the stop");
        let is_whole = ["another program's", "a newer program's", "a table is missing"].contains(&kind);
        assert!(!is_whole || lost == 0, "{kind}: {lost} lost");
        assert_eq!(fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 1, "{kind}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn q2_at_most_three_salvaged_stores_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        fs::write(dir.path().join("queue.db"), b"garbage, and more of it than a header would take").unwrap();
        let rig = Rig::start(settings(dir.path()));
        salvage::salvaged(&rig, dir.path()).await;
        rig.stop().await;
    }
    let kept: BTreeSet<PathBuf> =
        fs::read_dir(dir.path().join("quarantine")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 3);
    assert!(kept.iter().any(|path| path.to_str().unwrap().ends_with("-5")));
}

/// What the one gap record says that a stream has.
async fn told_gap(rig: &mut Rig, name: &str) -> serde_json::Value {
    let outlet = rig.outlet(name);
    let rows = tokio::time::timeout(DEADLINE, outlet.next(100, 1 << 20)).await.unwrap().unwrap();
    outlet.commit(rows.iter().map(|row| delivered(row.sequence)).collect()).await.unwrap();
    let [gap] = rows.as_slice() else { panic!("{rows:?}") };
    let Body::Bytes(body) = &gap.message.body else { panic!("not bytes") };
    serde_json::from_slice(body).unwrap()
}

fn two_that_are_told(dir: &Path) -> QueueSettings {
    let mut settings = settings(dir);
    settings.streams.push(stream("other", vec![rule("only/#", "{topic}")]));
    for stream in &mut settings.streams {
        stream.own_topic = Some("gw".to_owned());
    }
    settings
}

fn losses(rig: &Rig) -> BTreeMap<String, u64> {
    rig.health.snapshot(Stamp::default()).losses
}

#[tokio::test]
async fn q2_damage_after_an_orderly_stop_is_told_with_the_number_that_waited_in_each_stream() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(two_that_are_told(dir.path()));
    rig.append_all((0..9).map(|number| numbered(number, 20))).await;
    rig.append_all((0..3).map(|_| message("only/this", b"for both"))).await;
    rig.stop().await;
    fs::write(dir.path().join("queue.db"), b"garbage").unwrap();
    let mut rig = Rig::start(two_that_are_told(dir.path()));
    salvage::salvaged(&rig, dir.path()).await;
    assert_eq!(losses(&rig)["quarantined"], 15, "each stream has lost its own");
    let gap = told_gap(&mut rig, "cloud").await;
    assert_eq!((&gap["count"], &gap["reason"]), (&12.into(), &"quarantined".into()));
    assert_eq!(told_gap(&mut rig, "other").await["count"], 3);
    rig.stop().await;
    // What was told is not told again, and where nothing waited nothing is lost.
    fs::write(dir.path().join("queue.db"), b"garbage").unwrap();
    let mut rig = Rig::start(two_that_are_told(dir.path()));
    salvage::salvaged(&rig, dir.path()).await;
    assert_eq!(losses(&rig).get("quarantined"), None);
    assert!(rig.all("cloud").await.is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn q2_damage_after_a_crash_is_told_without_a_number_because_nobody_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(two_that_are_told(dir.path()));
    rig.append(numbered(1, 20)).await;
    rig.stop().await;
    let rig = Rig::start(two_that_are_told(dir.path()));
    rig.append_all((2..9).map(|number| numbered(number, 20))).await;
    // A power cut while it ran: the number of the stop before is not one of this store any more.
    let cut = copy_dir(dir.path());
    rig.stop().await;
    fs::write(cut.path().join("queue.db"), b"garbage").unwrap();
    fs::write(cut.path().join("queue.db-wal"), b"garbage").unwrap();
    for _ in 0..2 {
        let rig = Rig::start(two_that_are_told(cut.path()));
        salvage::salvaged(&rig, cut.path()).await;
        assert_eq!(losses(&rig)["quarantined"], 0, "the reason is there, and counts nothing");
        rig.stop().await;
    }
    let mut rig = Rig::start(two_that_are_told(cut.path()));
    let gap = told_gap(&mut rig, "cloud").await;
    assert!(gap["count"].is_null() && gap.get("count").is_some(), "{gap}");
    assert_eq!(gap["reason"], "quarantined");
    rig.stop().await;
}

#[tokio::test]
async fn q2_a_start_file_of_garbage_costs_nothing_that_the_store_has() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    let last = stored(&rig.append(numbered(1, 20)).await);
    rig.stop().await;
    fs::write(dir.path().join("start"), b"garbage").unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    let appended = rig.append(numbered(2, 20)).await;
    assert!(stored(&appended) > last);
    assert_eq!(appended.id.start, 2);
    assert_eq!(rig.drain("cloud").await.len(), 2);
    rig.stop().await;
}

#[test]
fn a_state_directory_in_use_or_unusable_is_an_error_not_a_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(settings(dir.path())).unwrap();
    assert!(matches!(open(settings(dir.path())), Err(OpenError::InUse { .. })));
    drop(first);
    open(settings(dir.path())).unwrap();
    let file = dir.path().join("lock");
    assert!(matches!(open(settings(&file)), Err(OpenError::Directory { .. })));
}

// Q3: forgotten only when delivered

#[tokio::test]
async fn q3_a_row_that_two_streams_want_stays_until_both_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path());
    settings.streams.push(stream("other", vec![rule("plant/#", "o/{rest}")]));
    let mut rig = Rig::start(settings.clone());
    let appended = rig.append(numbered(1, 20)).await;
    assert!(matches!(appended.fate, Fate::Stored { streams: 2, .. }));
    rig.append(message("elsewhere", b"for the cloud only")).await;
    rig.append(numbered(2, 20)).await;
    assert_eq!(rig.drain("cloud").await.len(), 3);
    rig.stop().await;
    let mut rig = Rig::start(settings);
    let rows = rig.drain("other").await;
    assert_eq!(rows.iter().map(|row| number_of(&row.message)).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(rows[0].encoding.topic.as_str(), "o/press/3/sensor");
    assert_eq!(rig.inlet.stats().await.unwrap().messages, 0);
    rig.stop().await;
    assert_eq!(rows_on_disk(dir.path()), 0);
}

#[tokio::test]
async fn q3_what_was_taken_and_not_settled_comes_again_after_restore() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.append_all((0..10).map(|number| numbered(number, 20))).await;
    let outlet = rig.outlet("cloud");
    let first = outlet.next(4, 1 << 20).await.unwrap();
    let second = outlet.next(100, 1 << 20).await.unwrap();
    assert_eq!((first.len(), second.len()), (4, 6));
    // Out of order, as clouds acknowledge.
    outlet.commit([1, 3, 7].map(|place| delivered(Sequence(first[0].sequence.0 + place))).to_vec()).await.unwrap();
    assert!(outlet.next_now(100, 1 << 20).await.unwrap().is_empty(), "there is nothing, and nothing is waited for");
    let rest: Vec<u64> = rig.all("cloud").await.iter().map(|row| number_of(&row.message)).collect();
    assert_eq!(rest, [0, 2, 4, 5, 6, 8, 9]);
    rig.stop().await;
}

#[tokio::test]
async fn q3_a_rejected_message_becomes_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    let appended = rig.append(numbered(1, 20)).await;
    let verdict = Verdict::Rejected { reason: "0x99 payload format invalid".to_owned() };
    let change = Change::Settle { sequence: stored(&appended), verdict };
    rig.outlet("cloud").commit(vec![change.clone()]).await.unwrap();
    // A second time it is not there any more.
    rig.outlet("cloud").commit(vec![change]).await.unwrap();
    let stats = rig.inlet.stats().await.unwrap();
    assert_eq!((stats.dead_letters, stats.messages), (1, 0));
    assert_eq!(rig.health.snapshot(crate::message::Stamp::default()).losses["rejected"], 1);
    rig.stop().await;
}

#[tokio::test]
async fn q3_a_flipped_bit_is_noticed_counted_and_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    let middle = rig.append_all((0..9).map(|number| numbered(number, 100))).await[4].clone().unwrap();
    rig.stop().await;
    let sequence = stored(&middle);
    let flip = format!(
        "UPDATE message_0 SET body = CAST(substr(body, 1, 50) || x'ff' || substr(body, 52) AS BLOB) WHERE sequence = {sequence}"
    );
    sql(dir.path(), &flip);
    let mut rig = Rig::start(settings(dir.path()));
    let numbers: Vec<u64> = rig.drain("cloud").await.iter().map(|row| number_of(&row.message)).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(rig.health.snapshot(crate::message::Stamp::default()).losses["damaged"], 1);
    rig.stop().await;
    let rig = Rig::start(settings(dir.path()));
    assert_eq!(rig.health.snapshot(crate::message::Stamp::default()).losses["damaged"], 1, "the counter is durable");
    rig.stop().await;
}

#[tokio::test]
async fn q3_a_row_that_cannot_be_found_ends_in_a_salvage_because_it_may_be_whole_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    rig.append_all((0..60).map(|number| numbered(number, 100))).await;
    rig.stop().await;
    // What SQLite wrote is in the page still; only the way to it is gone.
    sql(dir.path(), "DELETE FROM message_0 WHERE sequence = 7");
    let mut rig = Rig::start(settings(dir.path()));
    rig.outlet("cloud").next(100, 1 << 20).await.unwrap_err();
    rig.inlet.stats().await.unwrap();
    salvage::salvaged(&rig, dir.path()).await;
    let numbers: BTreeSet<u64> = rig.drain("cloud").await.iter().map(|row| number_of(&row.message)).collect();
    let lost = losses(&rig).get("quarantined").copied().unwrap_or(0);
    assert_eq!(numbers.len() as u64 + lost, 60, "{numbers:?}");
    assert!(lost <= 1 && numbers.len() >= 59, "{numbers:?}");
    rig.stop().await;
}

#[tokio::test]
async fn q3_what_is_too_old_is_dropped_and_declared() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path());
    settings.age_max = Some(Duration::from_secs(3600));
    let mut rig = Rig::start(settings);
    let long_ago = |mut message: Message, seconds: u64| {
        // A test machine may have booted a minute ago: then only the wall clock reaches back.
        message.received.mono_ms = message.received.mono_ms.saturating_sub(seconds * 1000);
        message
    };
    let up_s = Clock::new(ClockSource::Trusted).now().mono_ms / 1000;
    let mut dying = long_ago(numbered(2, 20), 20);
    dying.properties = Some(Box::new(Properties { expiry_s: Some(10), ..Properties::default() }));
    let outcomes = rig.append_all([long_ago(numbered(1, 20), 4000), dying, numbered(3, 20)]).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let numbers: Vec<u64> = rig.drain("cloud").await.iter().map(|row| number_of(&row.message)).collect();
    let losses = rig.health.snapshot(crate::message::Stamp::default()).losses;
    if up_s > 4000 {
        assert_eq!((numbers, losses["expired"], losses["message-expired"]), (vec![3], 1, 1));
    } else {
        assert_eq!(numbers.last(), Some(&3));
    }
    rig.stop().await;
}

#[tokio::test]
async fn q3_messages_leave_by_todays_rules_at_the_qos_of_the_day_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = settings(dir.path());
    let raised = ForwardRule { qos: Some(Qos::ExactlyOnce), ..rule("plant/#", "old/{rest}") };
    old.streams = vec![stream("cloud", vec![raised, rule("#", "rest/{topic}")])];
    let rig = Rig::start(old.clone());
    rig.append(numbered(1, 20)).await;
    rig.append(message("a/b", b"12345678")).await;
    let mut quiet = message("a/c", b"qos 0");
    quiet.qos = Qos::AtMostOnce;
    assert_eq!(rig.append(quiet).await.fate, Fate::Unwanted);
    let mut raised = message("plant/c", b"qos 0 raised");
    raised.qos = Qos::AtMostOnce;
    assert!(matches!(rig.append(raised).await.fate, Fate::Stored { streams: 1, .. }));
    let mut echo = message("a/d", b"from the cloud");
    echo.origin = Origin::Uplink(Arc::from("cloud"));
    assert_eq!(rig.append(echo).await.fate, Fate::Unwanted);
    rig.stop().await;

    let mut new = settings(dir.path());
    new.streams = vec![stream("cloud", vec![rule("plant/#", "new/{rest}")])];
    let mut rig = Rig::start(new);
    let rows = rig.drain("cloud").await;
    let seen: Vec<_> = rows.iter().map(|row| (row.encoding.topic.as_str(), row.qos.level())).collect();
    assert_eq!(seen, [("new/press/3/sensor", 2), ("rest/a/b", 1), ("new/c", 2)]);
    rig.stop().await;
}

// Q4: the ceiling

fn small(dir: &Path, when_full: WhenFull) -> QueueSettings {
    let bytes_max = NonZeroU64::new(512 * 1024).unwrap();
    QueueSettings { bytes_max, when_full, ..settings(dir) }
}

#[tokio::test]
async fn q4_drop_oldest_declares_exactly_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = small(dir.path(), WhenFull::DropOldest);
    settings.streams[0].own_topic = Some("gw".to_owned());
    let rig = Rig::start(settings.clone());
    let outcomes = rig.append_all((0..4000).map(|number| numbered(number, 200))).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome.as_ref().unwrap().fate, Fate::Stored { streams: 1, .. })));
    let stats = rig.inlet.stats().await.unwrap();
    assert!(stats.bytes <= stats.bytes_max, "{} of {}", stats.bytes, stats.bytes_max);
    rig.stop().await;
    let mut rig = Rig::start(settings);
    let rows = rig.drain("cloud").await;
    let (gaps, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.message.origin == Origin::Gateway);
    let numbers: Vec<u64> = rest.iter().map(|row| number_of(&row.message)).collect();
    assert!(numbers.len() > 500, "{}", numbers.len());
    assert_eq!(numbers, (4000 - numbers.len() as u64..4000).collect::<Vec<_>>());
    let [gap] = gaps.as_slice() else { panic!("{gaps:?}") };
    assert_eq!((gap.encoding.topic.as_str(), gap.qos), ("gw/gap", Qos::AtLeastOnce));
    assert_eq!(gap.message.topic.as_str(), "tidegate/g7/gap");
    let Body::Bytes(body) = &gap.message.body else { panic!() };
    let told: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(told["count"], 4000 - numbers.len());
    assert_eq!(told["last"].as_u64().unwrap() + 1, rest[0].sequence.0);
    assert_eq!((&told["reason"], &told["stream"]), (&"dropped-oldest".into(), &"cloud".into()));
    assert_eq!(told["id"], gap.id.to_string());
    assert_eq!(
        rig.health.snapshot(crate::message::Stamp::default()).losses["dropped-oldest"],
        4000 - numbers.len() as u64
    );
    rig.stop().await;
}

#[tokio::test]
async fn q4_drop_newest_keeps_the_oldest_and_refuse_keeps_all_it_took() {
    for (when_full, refuses) in [(WhenFull::DropNewest, false), (WhenFull::Refuse, true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::start(small(dir.path(), when_full));
        let outcomes = rig.append_all((0..4000).map(|number| numbered(number, 200))).await;
        let mut kept = Vec::new();
        for (number, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(Appended { fate: Fate::Stored { .. }, .. }) => kept.push(number as u64),
                Ok(Appended { fate: Fate::Dropped(LossReason::DroppedNewest), .. }) => assert!(!refuses),
                Err(AppendError::Full) => assert!(refuses),
                other => panic!("{other:?}"),
            }
        }
        let stats = rig.inlet.stats().await.unwrap();
        assert!(stats.bytes <= stats.bytes_max);
        let numbers: Vec<u64> = rig.drain("cloud").await.iter().map(|row| number_of(&row.message)).collect();
        assert_eq!(numbers, kept);
        assert!((1000..4000).contains(&kept.len()), "{}", kept.len());
        let lost =
            rig.health.snapshot(crate::message::Stamp::default()).losses.get("dropped-newest").copied().unwrap_or(0);
        assert_eq!(lost, if refuses { 0 } else { 4000 - kept.len() as u64 });
        // There is room again.
        assert!(matches!(rig.append(numbered(1, 200)).await.fate, Fate::Stored { .. }));
        rig.stop().await;
    }
}

#[tokio::test]
async fn q4_a_refusal_costs_the_disk_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let streams = vec![stream("cloud", vec![rule("plant/#", "{topic}")])];
    let rig = Rig::start(QueueSettings { streams, ..small(dir.path(), WhenFull::Refuse) });
    while rig.inlet.append(submission(numbered(0, 200))).await.is_ok() {}
    let commits = || rig.health.queue().commits.load(std::sync::atomic::Ordering::Relaxed);
    // What is due once a second may be written; a refusal beside it is not.
    let before = commits();
    for _ in 0..500 {
        assert_eq!(rig.inlet.append(submission(numbered(0, 200))).await, Err(AppendError::Full));
        // And what nobody keeps passes beside it.
        let passing = rig.append(message("elsewhere/x", b"x")).await;
        assert_eq!(passing.fate, Fate::Unwanted);
    }
    assert!(commits() - before < 100, "{} commits for 500 refusals", commits() - before);
    rig.stop().await;
}

#[tokio::test]
async fn q4_a_rule_of_its_own_protects_its_messages_from_those_that_drop_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = small(dir.path(), WhenFull::DropOldest);
    let precious = ForwardRule { when_full: Some(WhenFull::Refuse), ..rule("precious", "p") };
    settings.streams = vec![stream("cloud", vec![precious, rule("#", "{topic}")])];
    let mut rig = Rig::start(settings);
    for _ in 0..20 {
        rig.append(message("precious", b"12345678")).await;
    }
    rig.append_all((0..3000).map(|number| numbered(number, 200))).await;
    let rows = rig.drain("cloud").await;
    let precious = rows.iter().filter(|row| row.encoding.topic.as_str() == "p").count();
    assert_eq!(precious, 20);
    let lost = rig.health.snapshot(crate::message::Stamp::default()).losses["dropped-oldest"];
    assert_eq!(rows.len() as u64 + lost, 20 + 3000);
    rig.stop().await;
}

#[tokio::test]
async fn q4_a_full_store_goes_on_draining_at_qos_2() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(small(dir.path(), WhenFull::Refuse));
    let mut took = 0;
    while rig.inlet.append(submission(numbered(took, 200))).await.is_ok() {
        took += 1;
    }
    let outlet = rig.outlet("cloud");
    let mut gone = 0;
    let mut order = 0;
    while gone < took {
        let rows = tokio::time::timeout(DEADLINE, outlet.next(50, 1 << 20)).await.unwrap().unwrap();
        let admit = rows.iter().enumerate().map(|(place, row)| {
            order += 1;
            let packet_id = u16::try_from(place).unwrap() + 1;
            Change::Admit { packet_id, rows: vec![row.sequence], order, encoding: row.encoding.clone() }
        });
        outlet.commit(admit.collect()).await.unwrap();
        let release = (1..=rows.len()).map(|id| Change::Release { packet_id: u16::try_from(id).unwrap() });
        outlet.commit(release.collect()).await.unwrap();
        let done = rows.iter().enumerate().flat_map(|(place, row)| {
            [delivered(row.sequence), Change::Forget { packet_id: u16::try_from(place).unwrap() + 1 }]
        });
        outlet.commit(done.collect()).await.unwrap();
        gone += rows.len() as u64;
    }
    assert_eq!(gone, took);
    assert!(rig.inlet.append(submission(numbered(0, 200))).await.is_ok());
    rig.stop().await;
}

#[tokio::test]
async fn q4_a_message_larger_than_the_store_costs_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(small(dir.path(), WhenFull::DropOldest));
    rig.append(numbered(1, 100)).await;
    let huge = rig.append(numbered(2, 700 * 1024)).await;
    assert_eq!(huge.fate, Fate::Dropped(LossReason::DroppedNewest));
    assert_eq!(rig.drain("cloud").await.len(), 1);
    rig.stop().await;
}

// Q5: one consumer

#[tokio::test]
async fn q5_an_answer_that_nobody_took_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.append_all((0..20).map(|number| numbered(number, 20))).await;
    let outlet = rig.outlet("cloud");
    for _ in 0..10 {
        let taken = tokio::select! {
            biased;
            taken = outlet.next(5, 1 << 20) => Some(taken.unwrap()),
            // Asked, and given up before the answer has come.
            () = std::future::ready(()) => None,
        };
        if taken.is_some() {
            // The worker was quicker than one poll.
            outlet.restore().await.unwrap();
        }
    }
    let first = outlet.next(5, 1 << 20).await.unwrap();
    assert_eq!(number_of(&first[0].message), 0);
    rig.stop().await;
}

#[tokio::test]
async fn q5_what_was_read_ahead_comes_next_and_not_after_a_rewind() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.append_all((0..20).map(|number| numbered(number, 20))).await;
    let numbers = |rows: Vec<Queued>| rows.iter().map(|row| number_of(&row.message)).collect::<Vec<_>>();
    let outlet = rig.outlet("cloud");
    assert_eq!(numbers(outlet.next(5, 1 << 20).await.unwrap()), [0, 1, 2, 3, 4]);
    outlet.read_ahead(5, 1 << 20);
    // A commit passes by what was asked for.
    outlet.commit(vec![delivered(Sequence(1))]).await.unwrap();
    assert_eq!(numbers(outlet.next(5, 1 << 20).await.unwrap()), [5, 6, 7, 8, 9]);
    outlet.read_ahead(5, 1 << 20);
    assert_eq!(numbers(outlet.next(3, 1 << 20).await.unwrap()), [10, 11, 12], "another wish is asked for anew");
    outlet.read_ahead(3, 1 << 20);
    outlet.rewind();
    assert_eq!(numbers(outlet.next(3, 1 << 20).await.unwrap()), [1, 2, 3]);
    rig.stop().await;
}

#[tokio::test]
async fn q5_an_outlet_that_waits_is_woken_by_an_append() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    let inlet = rig.inlet.clone();
    let outlet = rig.outlet("cloud");
    let (next, appended) = tokio::join!(
        tokio::time::timeout(DEADLINE, outlet.next(5, 1 << 20)),
        inlet.append(submission(numbered(3, 20)))
    );
    assert_eq!(next.unwrap().unwrap()[0].sequence, stored(&appended.unwrap()));
    rig.inlet.stop().await;
    assert!(matches!(rig.outlet("cloud").next(5, 1 << 20).await, Err(AppendError::Stopped)));
}

// QoS 2 in and out

#[tokio::test]
async fn a_qos_2_message_is_stored_once_over_a_restart_for_the_sessions_of_uplinks() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path());
    settings.streams.push(stream("second", vec![rule("#", "{topic}")]));
    let mut rig = Rig::start(settings.clone());
    let cloud = rig.outlet("cloud").restore().await.unwrap().session;
    let local = rig.inlet.open_session().await.unwrap();
    assert_ne!(cloud, local);
    let (from_cloud, from_client) =
        (Once::Packet { session: cloud, packet_id: 9 }, Once::Packet { session: local, packet_id: 9 });
    for once in [from_cloud, from_client] {
        let submission = Submission { message: numbered(1, 20), once: Some(once) };
        // In one commit: the repeat is answered after the first one's.
        let first = rig.inlet.begin_append(submission.clone()).await.unwrap();
        let repeat = rig.inlet.begin_append(submission).await.unwrap();
        assert!(matches!(first.outcome().await.unwrap().fate, Fate::Stored { .. }));
        assert_eq!(repeat.outcome().await.unwrap().fate, Fate::Duplicate);
    }
    rig.stop().await;

    let mut rig = Rig::start(settings);
    assert_eq!(rig.outlet("cloud").restore().await.unwrap().session, cloud);
    let again = Submission { message: numbered(1, 20), once: Some(from_cloud) };
    assert_eq!(rig.inlet.append(again.clone()).await.unwrap().fate, Fate::Duplicate);
    assert!(!rig.inlet.release(from_client).await.unwrap(), "sessions in memory are void after a restart");
    assert!(rig.inlet.open_session().await.unwrap() > local, "session numbers do not repeat");
    assert!(rig.inlet.release(from_cloud).await.unwrap());
    assert!(!rig.inlet.release(from_cloud).await.unwrap());
    assert!(matches!(rig.inlet.append(again.clone()).await.unwrap().fate, Fate::Stored { .. }));
    // The cloud forgot the session: the id may bear a new message.
    rig.outlet("cloud").commit(vec![Change::NewSession]).await.unwrap();
    let session = rig.outlet("cloud").restore().await.unwrap().session;
    assert_ne!(session, cloud);
    assert!(!rig.inlet.release(from_cloud).await.unwrap());
    rig.stop().await;
}

#[tokio::test]
async fn admitted_rows_come_back_with_id_order_and_encoding() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path());
    let mut rig = Rig::start(settings.clone());
    rig.append_all((0..8).map(|number| numbered(number, 30))).await;
    let outlet = rig.outlet("cloud");
    assert_eq!(outlet.restore().await.unwrap().session_key, None);
    let rows = outlet.next(100, 1 << 20).await.unwrap();
    let timings = |packet_id: u16| match packet_id {
        3 => Timing::Corrected { offset_ms: -3, clock: ClockState::Holdover { error_ms: 1200 } },
        7 => Timing::Between { after_ms: 7, before_ms: Some(8) },
        _ => Timing::Stamped,
    };
    let formats = |packet_id: u16| if packet_id == 3 { Payload::JSON_BATCH } else { Payload::JSON };
    let encoding = |row: &Queued, packet_id| Encoding {
        timing: timings(packet_id),
        payload: formats(packet_id),
        ..row.encoding.clone()
    };
    let admit = |packet_id, places: &[usize], order| Change::Admit {
        packet_id,
        rows: places.iter().map(|place| rows[*place].sequence).collect(),
        order,
        encoding: encoding(&rows[places[0]], packet_id),
    };
    let key = Change::SessionKey(u64::MAX - 5);
    outlet.commit(vec![key, admit(7, &[1], 2), admit(3, &[2, 3, 5], 1), admit(9, &[0], 3)]).await.unwrap();
    outlet.commit(vec![Change::Release { packet_id: 7 }]).await.unwrap();
    outlet.commit(vec![delivered(rows[0].sequence), Change::Forget { packet_id: 9 }]).await.unwrap();
    rig.stop().await;

    settings.streams = vec![stream("cloud", vec![rule("#", "changed/{topic}")])];
    let mut rig = Rig::start(settings);
    let restored = rig.outlet("cloud").restore().await.unwrap();
    assert_eq!(restored.session_key, Some(u64::MAX - 5));
    let seen: Vec<_> = restored
        .in_flight
        .iter()
        .map(|entry| {
            let numbers: Vec<u64> = entry.rows.iter().map(|row| number_of(&row.message)).collect();
            (entry.packet_id, entry.released, entry.order, numbers)
        })
        .collect();
    assert_eq!(seen, [(3, false, 1, vec![2, 3, 5]), (7, true, 2, vec![1])]);
    for entry in &restored.in_flight {
        for row in &entry.rows {
            assert_eq!(row.encoding.topic.as_str(), "up/plant/press/3/sensor", "as recorded, not as configured now");
            assert_eq!(row.encoding.timing, timings(entry.packet_id));
            assert_eq!(row.encoding.payload, formats(entry.packet_id));
            assert_eq!(row.id, rows[usize::try_from(number_of(&row.message)).unwrap()].id);
        }
    }
    let rest = rig.outlet("cloud").next(100, 1 << 20).await.unwrap();
    assert_eq!(rest.iter().map(|row| number_of(&row.message)).collect::<Vec<_>>(), [4, 6, 7]);
    // A forgotten id's rows wait again.
    rig.outlet("cloud").commit(vec![Change::Forget { packet_id: 3 }]).await.unwrap();
    let numbers: Vec<u64> = rig.all("cloud").await.iter().map(|row| number_of(&row.message)).collect();
    assert_eq!(numbers, [2, 3, 4, 5, 6, 7]);
    rig.stop().await;
}

// Retained messages, readings, rules

#[tokio::test]
async fn retained_messages_are_set_replaced_found_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path());
    settings.streams = vec![stream("cloud", vec![rule("nothing", "{topic}")])];
    let rig = Rig::start(settings.clone());
    let retain = |topic: &str, body: &[u8]| Message { retain: true, qos: Qos::AtMostOnce, ..message(topic, body) };
    for topic in ["a", "a/b", "a/b/c", "ab", "b", "a/x"] {
        let appended = rig.append(retain(topic, b"first")).await;
        assert!(matches!(appended.fate, Fate::Stored { streams: 0, .. }), "{topic}");
    }
    for number in 0..600 {
        rig.append(retain(&format!("many/{number:03}"), b"x")).await;
    }
    rig.append(retain("a/b", b"second")).await;
    rig.append(retain("a/x", b"")).await;
    rig.stop().await;
    let rig = Rig::start(settings);
    let topics = |filter: &'static str| {
        let rig = &rig;
        async move {
            let found = rig.inlet.retained(&Filter::new(filter).unwrap(), 1000).await.unwrap();
            found.messages.iter().map(|message| message.topic.as_str().to_owned()).collect::<Vec<_>>()
        }
    };
    assert_eq!(topics("a/#").await, ["a", "a/b", "a/b/c"]);
    assert_eq!(topics("a").await, ["a"]);
    assert_eq!(topics("+/b").await, ["a/b"]);
    assert_eq!(topics("#").await.len(), 605);
    assert_eq!(topics("many/+").await.len(), 600);
    let found = rig.inlet.retained(&Filter::new("a/b").unwrap(), 1).await.unwrap().messages;
    assert_eq!(found, [Message { received: found[0].received, ..retain("a/b", b"second") }]);
    assert_eq!(rig.inlet.stats().await.unwrap().retained, 605);
    rig.stop().await;
}

fn reading(device: &str) -> Message {
    let stamp = Stamp { wall_ms: 1_795_425_600_000, mono_ms: 1000, clock: ClockState::Synced };
    let body = Body::Reading(Reading {
        device: Arc::from(device),
        point: Arc::from("p"),
        value: Value::Float(6.5),
        unit: None,
        quality: Quality::Good,
        reason: None,
        seq: 0,
        stamp,
    });
    Message { body, origin: Origin::Field, ..message("field/a/p", b"") }
}

#[tokio::test]
async fn readings_are_numbered_for_each_device_without_holes_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    for start in 0..3_u64 {
        let mut rig = Rig::start(small(dir.path(), WhenFull::Refuse));
        for number in 1..=10 {
            assert_eq!(rig.append(reading("a")).await.reading_seq, start * 10 + number);
        }
        assert_eq!(rig.append(reading("b")).await.reading_seq, start + 1);
        assert_eq!(rig.append(numbered(1, 20)).await.reading_seq, 0);
        if start == 1 {
            // What is refused comes again, so it has taken no number.
            while rig.inlet.append(submission(numbered(0, 900))).await.is_ok() {}
            while rig.inlet.append(submission(numbered(0, 8))).await.is_ok() {}
            assert_eq!(rig.inlet.append(submission(reading("a"))).await, Err(AppendError::Full));
            rig.drain("cloud").await;
        }
        let rows = rig.all("cloud").await;
        for row in rows.iter().filter(|row| row.id.start == u32::try_from(start).unwrap() + 1) {
            if let Body::Reading(found) = &row.message.body {
                assert_eq!(found.stamp.wall_ms, 1_795_425_600_000);
                assert!(found.seq > 0);
            }
        }
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_not_configured_any_more_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    rig.append(numbered(1, 20)).await;
    rig.stop().await;
    let mut other = settings(dir.path());
    other.streams = vec![stream("other", vec![rule("#", "{topic}")])];
    let mut rig = Rig::start(other);
    rig.append(numbered(2, 20)).await;
    rig.drain("other").await;
    let stats = rig.inlet.stats().await.unwrap();
    assert_eq!((stats.streams["cloud"].is_active, stats.streams["cloud"].waiting), (false, 1));
    rig.stop().await;
    let mut rig = Rig::start(settings(dir.path()));
    assert_eq!(number_of(&rig.drain("cloud").await[0].message), 1);
    rig.stop().await;
}

#[tokio::test]
async fn new_rules_hold_from_their_commit_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.append(numbered(1, 20)).await;
    rig.inlet.set_rules(stream("cloud", vec![rule("none", "{topic}")])).await.unwrap();
    assert_eq!(rig.append(numbered(2, 20)).await.fate, Fate::Unwanted);
    rig.inlet.set_rules(stream("cloud", vec![rule("#", "new/{topic}")])).await.unwrap();
    rig.append(numbered(3, 20)).await;
    let rows = rig.drain("cloud").await;
    let seen: Vec<_> = rows.iter().map(|row| (number_of(&row.message), row.encoding.topic.as_str())).collect();
    assert_eq!(seen, [(1, "new/plant/press/3/sensor"), (3, "new/plant/press/3/sensor")]);
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_is_closed_and_opened_while_it_runs_and_what_waits_in_it_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.append(numbered(1, 20)).await;
    let (cloud, other): (Arc<str>, Arc<str>) = (Arc::from("cloud"), Arc::from("other"));
    let old = rig.outlets.remove(&cloud).unwrap();
    rig.inlet.close_stream(&cloud).await.unwrap();
    assert_eq!(rig.append(numbered(2, 20)).await.fate, Fate::Unwanted, "nobody wants it any more");
    let stats = rig.inlet.stats().await.unwrap();
    assert_eq!((stats.streams["cloud"].is_active, stats.streams["cloud"].waiting), (false, 1));
    assert_eq!(rig.health.snapshot(rig_now()).kept_streams, BTreeMap::from([("cloud".to_owned(), 1)]));

    let outlet = rig.inlet.open_stream(stream("other", vec![rule("#", "{topic}")])).await.unwrap();
    rig.outlets.insert(other, outlet);
    rig.append(numbered(3, 20)).await;
    assert_eq!(number_of(&rig.drain("other").await[0].message), 3);

    let again = rig.inlet.open_stream(stream("cloud", vec![rule("#", "again/{topic}")])).await.unwrap();
    rig.outlets.insert(cloud.clone(), again);
    rig.append(numbered(4, 20)).await;
    let mut old = old;
    let stirred = *old.woken.borrow();
    let late = tokio::time::timeout(DEADLINE, old.wait(stirred, None)).await.unwrap();
    assert_eq!(late, Err(AppendError::Stopped), "the outlet of before ends");
    let rows = rig.drain("cloud").await;
    let seen: Vec<_> = rows.iter().map(|row| (number_of(&row.message), row.encoding.topic.as_str())).collect();
    assert_eq!(seen, [(1, "again/plant/press/3/sensor"), (4, "again/plant/press/3/sensor")]);
    assert!(rig.health.snapshot(rig_now()).kept_streams.is_empty());

    // Waiting outlets are woken also after the store was opened anew.
    rig.stop().await;
    let rig = Rig::start(settings(dir.path()));
    assert_eq!(rig.waiting("cloud").await, 0);
    let mut outlet = rig.inlet.open_stream(stream("third", vec![rule("#", "{topic}")])).await.unwrap();
    let (next, _) = tokio::join!(tokio::time::timeout(DEADLINE, outlet.next(1, 1 << 20)), rig.append(numbered(5, 20)));
    assert_eq!(number_of(&next.unwrap().unwrap()[0].message), 5);
    rig.stop().await;
}

#[tokio::test]
async fn what_is_only_in_memory_for_a_stream_is_on_disk_when_that_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let hold = Some(Duration::from_secs(3600));
    let mut rig = Rig::start(QueueSettings { hold, ..settings(dir.path()) });
    let cloud: Arc<str> = Arc::from("cloud");
    let mut outlet = rig.outlets.remove(&cloud).unwrap();
    // The ledger knows the client from its first message on.
    rig.append(numbered(0, 20)).await;
    let first = outlet.next(10, 1 << 20).await.unwrap();
    outlet.commit(vec![delivered(first[0].sequence)]).await.unwrap();
    outlet.set_live(true).await.unwrap();
    let held = rig.inlet.begin_append(submission(numbered(1, 20))).await.unwrap();
    assert_eq!(number_of(&outlet.next(10, 1 << 20).await.unwrap()[0].message), 1);
    drop(outlet);
    rig.inlet.close_stream(&cloud).await.unwrap();
    assert!(matches!(held.outcome().await.unwrap().fate, Fate::Stored { .. }), "acknowledged, so on disk");
    rig.stop().await;
    let mut rig = Rig::start(settings(dir.path()));
    assert_eq!(number_of(&rig.drain("cloud").await[0].message), 1);
    rig.stop().await;
}

fn rig_now() -> crate::message::Stamp {
    Clock::new(ClockSource::Trusted).now()
}

#[tokio::test]
async fn a_store_that_fails_while_it_runs_is_moved_aside_and_the_queue_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.append_all((0..12_000).map(|number| numbered(number, 400))).await;
    // Someone writes over the files of a running gateway. (The page cache of SQLite is 2 MiB; head and tail differ.)
    recovery::write_over(dir.path());
    // It shows when somebody reads, be it the scrub.
    let outlet = rig.outlet("cloud");
    let found = async {
        while !dir.path().join("quarantine").exists() {
            drop(tokio::time::timeout(Duration::from_millis(50), outlet.next(256, 1 << 20)).await);
        }
    };
    tokio::time::timeout(DEADLINE, found).await.unwrap();
    assert!(stored(&rig.append(numbered(9, 20)).await).0 > 12_000);
    salvage::salvaged(&rig, dir.path()).await;
    assert_eq!(rig.drain("cloud").await.len(), 1, "every byte of it was written over");
    assert_eq!(rig.health.snapshot(crate::message::Stamp::default()).losses["quarantined"], 12_000);
    rig.stop().await;
}

// A disk that fails

/// A file system of a few MiB that can be filled; it goes with the value.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// `None` where we may not mount one.
    fn new() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m", "tidegate-test"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(SmallDisk { dir });
        }
        println!("skipped: only root may mount a small disk to fill");
        None
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Leaves not one byte.
    fn fill(&self) {
        use std::io::Write as _;
        let mut ballast = fs::File::options().create(true).append(true).open(self.dir.path().join("ballast")).unwrap();
        while ballast.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    }

    fn clear(&self) {
        fs::remove_file(self.dir.path().join("ballast")).unwrap();
    }

    fn set_writable(&self, is_writable: bool) {
        let option = if is_writable { "remount,rw" } else { "remount,ro" };
        let status = std::process::Command::new("mount").args(["-o", option]).arg(self.dir.path()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: what has failed may still have a file open.
        drop(std::process::Command::new("umount").arg("-l").arg(self.dir.path()).status());
    }
}

/// Appends until one is taken; each answer comes at once.
async fn append_until_taken(rig: &Rig, number: u64) {
    tokio::time::timeout(DEADLINE, async {
        while rig.inlet.append(submission(numbered(number, 200))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_disk_that_fills_up_fails_those_who_ask_and_the_queue_goes_on_when_there_is_room_again() {
    let Some(disk) = SmallDisk::new() else { return };
    let refusing = || QueueSettings { when_full: WhenFull::Refuse, ..settings(&disk.state()) };
    let mut rig = Rig::start(refusing());
    rig.append_all((0..100).map(|number| numbered(number, 200))).await;
    disk.fill();
    let mut taken: Vec<u64> = (0..100).collect();
    let mut refused = 0;
    for number in 100..8000 {
        let outcome = tokio::time::timeout(DEADLINE, rig.inlet.append(submission(numbered(number, 2000)))).await;
        match outcome.unwrap() {
            Ok(_) => taken.push(number),
            Err(AppendError::Failed { .. } | AppendError::Full) => refused += 1,
            Err(AppendError::Stopped) => panic!("the worker has ended"),
        }
        if refused > 200 {
            break;
        }
    }
    assert!(refused > 200, "the disk is full");
    disk.clear();
    append_until_taken(&rig, 9000).await;
    taken.push(9000);
    // The ceiling, which the full disk had lowered, is lifted as well.
    let room = append_room(&rig).await;
    assert!(room > 6 * MIB, "{room}");
    let found: HashSet<u64> = rig.drain("cloud").await.iter().map(|row| number_of(&row.message)).collect();
    let lost: Vec<_> = taken.iter().filter(|number| !found.contains(number)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    rig.stop().await;
}

async fn append_room(rig: &Rig) -> u64 {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let bytes_max = rig.inlet.stats().await.unwrap().bytes_max;
        if bytes_max > 6 * MIB || tokio::time::Instant::now() > deadline {
            return bytes_max;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_disk_that_is_read_only_at_the_start_is_awaited_and_costs_nothing_that_was_acknowledged() {
    let Some(disk) = SmallDisk::new() else { return };
    let mut rig = Rig::start(settings(&disk.state()));
    rig.append_all((0..100).map(|number| numbered(number, 200))).await;
    rig.stop().await;
    disk.set_writable(false);
    // The lock is there, the store cannot be written.
    rig = Rig::start(settings(&disk.state()));
    for number in 200..210 {
        let outcome = tokio::time::timeout(DEADLINE, rig.inlet.append(submission(numbered(number, 200)))).await;
        assert!(matches!(outcome.unwrap(), Err(AppendError::Failed { .. })));
    }
    disk.set_writable(true);
    append_until_taken(&rig, 300).await;
    assert_eq!(rig.drain("cloud").await.len(), 101);
    rig.stop().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_at_the_start_is_awaited_and_a_stop_is_heard_meanwhile() {
    let Some(disk) = SmallDisk::new() else { return };
    fs::create_dir(disk.state()).unwrap();
    disk.fill();
    let rig = Rig::start(settings(&disk.state()));
    let outcome = tokio::time::timeout(DEADLINE, rig.inlet.append(submission(numbered(1, 200)))).await.unwrap();
    assert!(matches!(outcome, Err(AppendError::Failed { .. })), "{outcome:?}");
    tokio::time::timeout(DEADLINE, rig.stop()).await.unwrap();
    let mut rig = Rig::start(settings(&disk.state()));
    disk.clear();
    append_until_taken(&rig, 2).await;
    assert_eq!(rig.drain("cloud").await.len(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_message_of_220_bytes_takes_little_more_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    let before = rig.inlet.stats().await.unwrap().bytes;
    rig.append_all((0..5000).map(|number| numbered(number, 200))).await;
    let bytes = rig.inlet.stats().await.unwrap().bytes - before;
    println!("{} bytes of pages for each message of 200 bytes with a topic of 20", bytes / 5000);
    assert!(bytes / 5000 < 300, "{}", bytes / 5000);
    rig.stop().await;
}

// The model

#[derive(Debug, Clone)]
enum Step {
    Append {
        to_a: bool,
        to_b: bool,
        count: u8,
    },
    Settle {
        stream: bool,
        picks: Vec<prop::sample::Index>,
    },
    /// From the front, as a drain does.
    Drain {
        stream: bool,
        count: u8,
    },
    Restart {
        clean: bool,
    },
    /// All that is kept is ordered again for one stream.
    Resend {
        stream: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (any::<bool>(), any::<bool>(), 1_u8..40)
            .prop_map(|(to_a, to_b, count)| Step::Append { to_a, to_b, count }),
        4 => (any::<bool>(), prop::collection::vec(any::<prop::sample::Index>(), 1..30))
            .prop_map(|(stream, picks)| Step::Settle { stream, picks }),
        2 => (any::<bool>(), any::<u8>()).prop_map(|(stream, count)| Step::Drain { stream, count }),
        1 => any::<bool>().prop_map(|clean| Step::Restart { clean }),
        1 => any::<bool>().prop_map(|stream| Step::Resend { stream }),
    ];
    prop::collection::vec(step, 1..25)
}

/// Two streams by topic, on the books themselves: a case costs no thread.
struct Modelled {
    dir: TempDir,
    books: books::Books,
    model: [VecDeque<(u64, u64)>; 2],
    /// What may be sent again, to each.
    delivered: [BTreeMap<u64, u64>; 2],
    keep: Option<Duration>,
    number: u64,
}

impl Modelled {
    fn settings(dir: &Path, keep: Option<Duration>) -> QueueSettings {
        let mut settings = QueueSettings { keep, ..small(dir, WhenFull::DropOldest) };
        settings.bytes_max = NonZeroU64::new(128 * 1024).unwrap();
        settings.streams = vec![
            stream("a", vec![rule("a", "{topic}"), rule("ab", "{topic}")]),
            stream("b", vec![rule("b", "{topic}"), rule("ab", "{topic}")]),
        ];
        settings
    }

    fn new(keep: Option<Duration>) -> Modelled {
        let dir = tempfile::tempdir().unwrap();
        let books = opening::open_books(&Self::settings(dir.path(), keep), &mut Past::default()).unwrap();
        Modelled { dir, books, model: Default::default(), delivered: Default::default(), keep, number: 0 }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append { to_a, to_b, count } => {
                let topic = match (to_a, to_b) {
                    (true, true) => "ab",
                    (true, false) => "a",
                    (false, true) => "b",
                    (false, false) => "nobody",
                };
                for _ in 0..count {
                    self.number += 1;
                    let body = [&self.number.to_le_bytes()[..], &[0; 200]].concat();
                    let appended = self.books.append(submission(message(topic, &body))).unwrap().unwrap();
                    if let Fate::Stored { sequence, streams } = appended.fate {
                        assert_eq!(streams, usize::from(to_a) + usize::from(to_b));
                        for (wanted, queue) in [to_a, to_b].into_iter().zip(&mut self.model) {
                            queue.extend(wanted.then_some((sequence.0, self.number)));
                        }
                    }
                }
                self.books.commit().unwrap();
                self.evicted();
            }
            Step::Settle { stream, picks } => {
                let queue = &mut self.model[usize::from(stream)];
                let mut changes = Vec::new();
                for pick in picks {
                    if !queue.is_empty() {
                        let (sequence, number) = queue.remove(pick.index(queue.len())).unwrap();
                        self.delivered[usize::from(stream)].insert(sequence, number);
                        changes.push(delivered(Sequence(sequence)));
                    }
                }
                self.books.change(usize::from(stream), changes).unwrap();
                self.books.commit().unwrap();
            }
            Step::Drain { stream, count } => {
                let queue = &mut self.model[usize::from(stream)];
                let count = usize::from(count).min(queue.len());
                let taken: Vec<(u64, u64)> = queue.drain(..count).collect();
                let changes = taken.iter().map(|(sequence, _)| delivered(Sequence(*sequence))).collect();
                self.delivered[usize::from(stream)].extend(taken);
                self.books.change(usize::from(stream), changes).unwrap();
                self.books.commit().unwrap();
            }
            Step::Restart { clean } => {
                let crashed = copy_dir(self.dir.path());
                let fresh = tempfile::tempdir().unwrap();
                let books =
                    opening::open_books(&Self::settings(fresh.path(), self.keep), &mut Past::default()).unwrap();
                std::mem::replace(&mut self.books, books).close().unwrap();
                if !clean {
                    self.dir = crashed;
                }
                self.books =
                    opening::open_books(&Self::settings(self.dir.path(), self.keep), &mut Past::default()).unwrap();
                while self.books.sweep.is_some() {
                    self.books.sweep_step().unwrap();
                }
                self.books.commit().unwrap();
            }
            Step::Resend { .. } if self.keep.is_none() => {}
            Step::Resend { stream } => self.resend(usize::from(stream)),
        }
        self.compare();
    }

    /// What comes again is what was delivered to this stream, in order, each as it was; once it is delivered again, all is as before.
    fn resend(&mut self, index: usize) {
        let uplink = self.books.streams[index].name.to_string();
        let mut ask = super::kept::ResendAsk { uplink, to_ms: i64::MAX, ..Default::default() };
        while let inspect::Answer::Resend(page) = self.books.resend(&ask, true).unwrap() {
            self.books.commit().unwrap();
            match page.next {
                Some(next) => ask.after = next,
                None => break,
            }
        }
        let mut found = Vec::new();
        let mut place = 0;
        loop {
            let fetched = self.books.next_again(index, place, 256, 1 << 20).unwrap();
            place = fetched.place;
            found.extend(fetched.rows.iter().map(|row| (row.sequence.0, number_of(&row.message))));
            if fetched.rows.is_empty() && !fetched.is_partial {
                break;
            }
        }
        let kept = |sequence: &u64| self.books.kept.at(*sequence).is_some();
        let model: Vec<(u64, u64)> =
            self.delivered[index].iter().map(|(s, n)| (*s, *n)).filter(|(sequence, _)| kept(sequence)).collect();
        assert_eq!(found, model, "stream {index}");
        // Half of it is delivered again, out of order; of the rest the next order is no other.
        let some = found.iter().rev().step_by(2).map(|(sequence, _)| delivered(Sequence(*sequence))).collect();
        self.books.change(index, some).unwrap();
        self.books.commit().unwrap();
        assert_eq!(self.books.streams[index].again.count(), (found.len() / 2) as u64);
        let rest = found.iter().rev().skip(1).step_by(2).map(|(sequence, _)| delivered(Sequence(*sequence))).collect();
        if found.len() % 4 > 1 {
            self.books.change(index, rest).unwrap();
            self.books.commit().unwrap();
        }
    }

    /// What was evicted is declared: the model forgets as much from the front.
    fn evicted(&mut self) {
        for (stream, queue) in self.books.streams.iter().zip(&mut self.model) {
            let missing = queue.len() as u64 - stream.waiting;
            queue.drain(..usize::try_from(missing).unwrap());
        }
    }

    fn compare(&mut self) {
        for index in 0..2 {
            let mut found = Vec::new();
            let mut place = 0;
            loop {
                let fetched = self.books.next(index, place, 256, 1 << 20).unwrap();
                if fetched.rows.is_empty() {
                    break;
                }
                place = fetched.place;
                found.extend(fetched.rows.iter().map(|row| (row.sequence.0, number_of(&row.message))));
            }
            assert_eq!(found, self.model[index].iter().copied().collect::<Vec<_>>(), "stream {index}");
            assert_eq!(self.books.streams[index].waiting, found.len() as u64);
            // What is only compared is not under way.
            self.books.streams[index].taken_to = 0;
        }
        let union: BTreeSet<u64> = self.model.iter().flatten().map(|(sequence, _)| *sequence).collect();
        assert_eq!(self.books.rows, union.len() as u64);
        let mut on_disk = BTreeSet::new();
        let all = |sequence, _: &[u8]| {
            on_disk.insert(sequence);
            true
        };
        self.books.store.messages(spans::Span::new(1, spans::OPEN), all).unwrap();
        assert!(on_disk.is_superset(&union));
        let known = self.books.removable.count() + self.books.kept.count();
        assert_eq!(known, (on_disk.len() - union.len()) as u64, "each unwanted row is known");
        assert!(on_disk.iter().all(|sequence| self.books.kept.at(*sequence).is_none() || !union.contains(sequence)));
        let on_record: u64 = self.books.store.kept_runs().unwrap().iter().map(|run| run.span.count()).sum();
        assert_eq!(self.books.kept.count(), on_record);
        let segments: Vec<_> = self.books.store.segments().newest_first().collect();
        assert!(segments.len() <= 8);
        for full in segments.iter().skip(1) {
            let is_wanted = union.iter().any(|sequence| full.span.contains(*sequence));
            assert!(is_wanted || self.books.kept.overlaps(full.span), "{full:?} holds a table for nothing");
        }
        let stats = self.books.stats().unwrap();
        assert!(stats.bytes <= stats.bytes_max + 16 * 1024, "{stats:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_is_what_a_vecdeque_for_each_stream_would_be(steps in steps(), keeps: bool) {
        let mut modelled = Modelled::new(keeps.then_some(Duration::from_secs(3600)));
        for step in steps {
            modelled.step(step);
        }
        let declared: u64 = modelled.books.losses.values().sum();
        let gaps: u64 = modelled.books.streams.iter().flat_map(|s| s.gaps.values()).filter_map(|gap| gap.count).sum();
        prop_assert_eq!(declared, gaps);
    }
}
