//! The ledger: its sums hold over kills and a full store, and it costs the flash little.

use super::*;
use crate::health::{DeviceState, Silence};
use crate::queue::ledger::{Days, ReadError, Report, ReportLine, read};

const ALL: Days = Days { from: -1_000_000, to: 1_000_000 };
const DAY_MS: i64 = 86_400_000;

fn two_streams(dir: &Path) -> QueueSettings {
    let mut settings = settings(dir);
    settings.streams = vec![
        StreamSpec { own_topic: Some("own".to_owned()), ..stream("cloud", vec![rule("#", "{topic}")]) },
        stream("second", vec![rule("field/#", "{topic}")]),
    ];
    settings
}

fn at(wall_ms: i64, clock: ClockState, message: Message) -> Message {
    Message { received: Stamp { wall_ms, mono_ms: 1000, clock }, ..message }
}

fn total(report: &Report, uplink: &str, of: impl Fn(&ReportLine) -> i64) -> i64 {
    report.lines.iter().filter(|line| line.uplink == uplink).map(of).sum()
}

fn accepted(report: &Report, uplink: &str) -> i64 {
    total(report, uplink, |line| line.accepted.cast_signed())
}

fn waiting(report: &Report, uplink: &str) -> i64 {
    total(report, uplink, |line| line.waiting)
}

fn dropped(report: &Report, reason: &str) -> u64 {
    report.lines.iter().filter_map(|line| line.dropped.get(reason)).sum()
}

/// Read from a copy of the files, as after a power cut at this moment.
fn after_a_crash(dir: &Path) -> (TempDir, Report) {
    let copy = copy_dir(dir);
    let report = read(copy.path(), ALL, &Clock::new(ClockSource::Trusted)).unwrap();
    (copy, report)
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Reading { device: u8, count: u8 },
    Message { count: u8, bytes: u16 },
    Deliver { uplink: bool, count: u8, skip: u8 },
    Reject,
    Crash,
    Restart,
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_u8, 1..40_u8).prop_map(|(device, count)| Step::Reading { device, count }),
        2 => (1..30_u8, 8..900_u16).prop_map(|(count, bytes)| Step::Message { count, bytes }),
        4 => (any::<bool>(), 1..60_u8, 0..4_u8).prop_map(|(uplink, count, skip)| Step::Deliver { uplink, count, skip }),
        1 => Just(Step::Reject),
        1 => Just(Step::Crash),
        1 => Just(Step::Restart),
        1 => Just(Step::Look),
    ];
    prop::collection::vec(step, 1..40)
}

/// What really happened, counted outside.
#[derive(Debug, Default)]
struct Model {
    accepted: BTreeMap<(String, &'static str), u64>,
    delivered: u64,
    rejected: u64,
}

async fn play(steps: Vec<Step>, bytes_max: u64, when_full: WhenFull) {
    let mut dir = tempfile::tempdir().unwrap();
    let made =
        |dir: &Path| QueueSettings { bytes_max: NonZeroU64::new(bytes_max).unwrap(), when_full, ..two_streams(dir) };
    let mut rig = Rig::start(made(dir.path()));
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Reading { device, count } => {
                let name = format!("d{device}");
                let taken =
                    rig.append_all((0..count).map(|_| reading(&name))).await.into_iter().flatten().count() as u64;
                for uplink in ["cloud", "second"] {
                    *model.accepted.entry((name.clone(), uplink)).or_default() += taken;
                }
            }
            Step::Message { count, bytes } => {
                let sent = (0..u64::from(count)).map(|number| numbered(number, usize::from(bytes)));
                let taken = rig.append_all(sent).await.into_iter().flatten().count() as u64;
                *model.accepted.entry(("(clients)".to_owned(), "cloud")).or_default() += taken;
            }
            Step::Deliver { uplink, count, skip } => {
                let name = if uplink { "cloud" } else { "second" };
                if rig.waiting(name).await == 0 {
                    continue;
                }
                let rows = next_rows(&mut rig, name, usize::from(count)).await;
                // Out of order too: what is skipped is delivered later or dropped.
                let settled: Vec<Change> =
                    rows.iter().skip(usize::from(skip)).map(|row| delivered(row.sequence)).collect();
                model.delivered += settled.len() as u64;
                rig.outlet(name).commit(settled).await.unwrap();
            }
            Step::Reject => {
                if rig.waiting("cloud").await == 0 {
                    continue;
                }
                let rows = next_rows(&mut rig, "cloud", 1).await;
                let verdict = Verdict::Rejected { reason: "no".to_owned() };
                let changes =
                    rows.iter().map(|row| Change::Settle { sequence: row.sequence, verdict: verdict.clone() });
                model.rejected += rows.len() as u64;
                rig.outlet("cloud").commit(changes.collect()).await.unwrap();
            }
            Step::Crash => {
                // An answer came, so all before it is on disk; the copy is what a power cut would leave.
                rig.inlet.stats().await.unwrap();
                let copy = copy_dir(dir.path());
                rig.stop().await;
                dir = copy;
                rig = Rig::start(made(dir.path()));
            }
            Step::Restart => {
                rig.stop().await;
                rig = Rig::start(made(dir.path()));
            }
            Step::Look => {}
        }
        // Looking writes the lines: after each step it would leave nothing for a crash to lose.
        if matches!(step, Step::Crash | Step::Restart | Step::Look) {
            let report = rig.inlet.ledger(ALL).await.unwrap();
            check(&report, &model, &rig).await;
        }
    }
    rig.inlet.stats().await.unwrap();
    let (_copy, read) = after_a_crash(dir.path());
    let told = rig.inlet.ledger(ALL).await.unwrap();
    check(&told, &model, &rig).await;
    assert_eq!((read.lines, read.ids, read.field), (told.lines, told.ids, told.field), "from the files");
    rig.stop().await;
}

async fn next_rows(rig: &mut Rig, name: &str, count: usize) -> Vec<Queued> {
    let outlet = rig.outlet(name);
    outlet.rewind();
    tokio::time::timeout(DEADLINE, outlet.next(count, 1 << 20)).await.unwrap().unwrap()
}

async fn check(report: &Report, model: &Model, rig: &Rig) {
    for ((source, uplink), count) in &model.accepted {
        let lines = report.lines.iter().filter(|line| line.source == *source && line.uplink == *uplink);
        assert_eq!(lines.map(|line| line.accepted).sum::<u64>(), *count, "{source} for {uplink}: {report:?}");
    }
    for line in &report.lines {
        let settled = line.delivered + line.dropped.values().sum::<u64>();
        assert_eq!(line.accepted.cast_signed(), settled.cast_signed() + line.waiting, "{line:?}");
        assert!(line.waiting >= 0, "{line:?}");
        if line.is_device && !line.is_loose {
            let numbers: u64 = line.delivered_numbers.iter().map(|(first, last)| last - first + 1).sum();
            assert_eq!(numbers, line.delivered, "{line:?}");
        }
    }
    let losses = losses(rig);
    for reason in ["dropped-oldest", "dropped-newest", "rejected"] {
        assert_eq!(dropped(report, reason), losses.get(reason).copied().unwrap_or(0), "{reason}: {report:?}");
    }
    assert_eq!(dropped(report, "rejected"), model.rejected);
    let delivered: u64 = report.lines.iter().map(|line| line.delivered).sum();
    assert_eq!(delivered, model.delivered, "{report:?}");
    for uplink in ["cloud", "second"] {
        assert_eq!(waiting(report, uplink), rig.waiting(uplink).await.cast_signed(), "{uplink}: {report:?}");
        let ids = report.ids.iter().filter(|line| line.uplink == uplink);
        assert_eq!(ids.map(|line| line.accepted.cast_signed()).sum::<i64>(), accepted(report, uplink));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn accepted_is_delivered_and_dropped_and_waiting_over_kills_and_a_full_store(
        steps in steps(),
        bytes_max in prop_oneof![Just(64 * 1024_u64), Just(MIB)],
        when_full in prop_oneof![Just(WhenFull::DropOldest), Just(WhenFull::DropNewest), Just(WhenFull::Refuse)],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(play(steps, bytes_max, when_full));
    }
}

#[tokio::test]
async fn a_message_is_accounted_on_the_day_it_was_accepted_and_an_unset_clock_has_its_own_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(two_streams(dir.path()));
    let noon = 20_000 * DAY_MS + DAY_MS / 2;
    for wall_ms in [noon, noon, noon + DAY_MS] {
        rig.append(at(wall_ms, ClockState::Synced, reading("a"))).await;
    }
    rig.append(at(0, ClockState::Unset, reading("a"))).await;
    rig.drain("cloud").await;
    let report = rig.inlet.ledger(ALL).await.unwrap();
    let told: Vec<_> = report
        .lines
        .iter()
        .map(|line| (line.day.as_str(), line.uplink.as_str(), line.delivered, line.waiting, line.numbers))
        .collect();
    assert_eq!(
        told,
        [
            ("2024-10-04", "cloud", 2, 0, Some((1, 2))),
            ("2024-10-04", "second", 0, 2, Some((1, 2))),
            ("2024-10-05", "cloud", 1, 0, Some((3, 3))),
            ("2024-10-05", "second", 0, 1, Some((3, 3))),
            ("unset", "cloud", 1, 0, Some((4, 4))),
            ("unset", "second", 0, 1, Some((4, 4))),
        ]
    );
    let one = rig.inlet.ledger(Days { from: 20_001, to: 20_001 }).await.unwrap();
    let days: Vec<&str> = one.lines.iter().map(|line| line.day.as_str()).collect();
    assert_eq!(days, ["2024-10-05", "2024-10-05", "unset", "unset"]);
    // Days that there are none of, beyond those that stand for something else.
    for days in [Days { from: i64::MIN, to: i64::MAX }, Days { from: i64::MAX, to: i64::MAX }, Days { from: 9, to: 1 }]
    {
        let told = tokio::time::timeout(DEADLINE, rig.inlet.ledger(days)).await.expect("it comes to an end").unwrap();
        assert!(told.lines.len() <= 6, "{days:?}: {}", told.lines.len());
    }
    rig.stop().await;
}

#[tokio::test]
async fn days_that_are_too_old_go_and_one_of_which_something_waits_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    let now = Clock::new(ClockSource::Trusted).now().wall_ms;
    for days in [500, 401, 399] {
        rig.append(at(now - days * DAY_MS, ClockState::Synced, reading("a"))).await;
    }
    let rows = next_rows(&mut rig, "cloud", 3).await;
    rig.outlet("cloud").commit(rows[1..].iter().map(|row| delivered(row.sequence)).collect()).await.unwrap();
    rig.stop().await;
    let rig = Rig::start(settings(dir.path()));
    let report = rig.inlet.ledger(ALL).await.unwrap();
    let waiting: Vec<i64> = report.lines.iter().map(|line| line.waiting).collect();
    assert_eq!(waiting, [1, 0], "{report:?}");
    rig.stop().await;
}

#[tokio::test]
async fn devices_beyond_the_bound_are_accounted_together() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.append_all((0..1100).map(|number| reading(&format!("d{number}")))).await;
    rig.drain("cloud").await;
    let report = rig.inlet.ledger(ALL).await.unwrap();
    assert_eq!(report.lines.iter().filter(|line| line.is_device).count(), 1024);
    let others: Vec<_> = report.lines.iter().filter(|line| line.source == "(others)").collect();
    assert_eq!((others.len(), others[0].delivered, waiting(&report, "cloud")), (1, 76, 0));
    rig.stop().await;
}

#[tokio::test]
async fn what_was_read_and_when_nothing_was_measured_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    let device = rig.health.device(&Arc::from("meter"));
    (0..10).for_each(|number| device.count_read(number % 2 == 0));
    let now = Clock::new(ClockSource::Trusted).now();
    let ago = |minutes: i64| Stamp { wall_ms: now.wall_ms - minutes * 60_000, ..now };
    device.set(DeviceState::Dead, None);
    device.note_silence(Silence::Began { from: ago(10), reason: "no answer within 1 s".to_owned() });
    device.note_silence(Silence::Ended { at: ago(4) });
    device.note_silence(Silence::Began { from: ago(2), reason: "no answer within 1 s".to_owned() });
    let report = rig.inlet.ledger(ALL).await.unwrap();
    assert_eq!((report.field[0].read, report.field[0].held_back), (10, 5));
    assert_eq!(report.gaps.len(), 2, "{:?}", report.gaps);
    assert_eq!((report.gaps[0].seconds, report.gaps[1].to.as_deref()), (Some(360), None));
    let again = rig.inlet.ledger(ALL).await.unwrap();
    assert_eq!(again.field, report.field, "nothing is counted twice");
    rig.stop().await;

    // As if it had been off for an hour.
    let connection = rusqlite::Connection::open(dir.path().join("queue.db")).unwrap();
    let key = super::super::ledger::line::Mark::KEY;
    let body: Vec<u8> =
        connection.query_row("SELECT body FROM ledger WHERE day = ?", [key.day], |row| row.get(0)).unwrap();
    let mut mark = super::super::ledger::line::Mark::decode(&body).unwrap();
    mark.alive.wall_ms -= 3_600_000;
    connection.execute("UPDATE ledger SET body = ? WHERE day = ?", rusqlite::params![mark.encode(), key.day]).unwrap();
    drop(connection);
    let rig = Rig::start(settings(dir.path()));
    let report = rig.inlet.ledger(ALL).await.unwrap();
    let off = report.gaps.iter().find(|gap| gap.device.is_none()).unwrap();
    assert!((3600..3700).contains(&off.seconds.unwrap()) && off.is_sure, "{off:?}");
    assert_eq!(off.reason, "the gateway was stopped");
    assert!(report.gaps.iter().all(|gap| gap.to.is_some()), "who was silent before is not silent after: {report:?}");
    rig.stop().await;
}

#[tokio::test]
async fn taking_messages_in_writes_no_line_and_no_commit_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.append(reading("a")).await;
    let commits = || rig.health.queue().commits.load(std::sync::atomic::Ordering::Relaxed);
    let wal = || log_bytes(dir.path());
    let (commits_before, wal_before) = (commits(), wal());
    for _ in 0..100 {
        rig.append(reading("a")).await;
    }
    let (accepting, bytes) = (commits() - commits_before, wal() - wal_before);
    assert_eq!(accepting, 100);
    // A page of messages, one of numbers; a ledger that wrote would add a third.
    assert!(bytes <= 100 * 2 * (1024 + 24) + 60 * (1024 + 24), "{bytes} bytes for 100 readings");
    rig.inlet.tick().await.unwrap();
    assert_eq!(commits() - commits_before, 100, "a tick within the minute writes nothing");
    let wal_before = wal();
    for row in next_rows(&mut rig, "cloud", 100).await {
        rig.outlet("cloud").commit(vec![delivered(row.sequence)]).await.unwrap();
    }
    eprintln!("100 readings: taken in {bytes} bytes, settled one by one {} bytes", wal() - wal_before);
    rig.stop().await;
}

#[tokio::test]
async fn a_live_gateways_files_are_left_alone_and_a_missing_store_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new(ClockSource::Trusted);
    assert!(matches!(read(dir.path(), ALL, &clock), Err(ReadError::NoStore { .. })));
    let rig = Rig::start(settings(dir.path()));
    assert!(matches!(read(dir.path(), ALL, &clock), Err(ReadError::InUse { .. })));
    rig.append(reading("a")).await;
    rig.stop().await;
    let before = fs::read(dir.path().join("queue.db")).unwrap();
    let report = read(dir.path(), ALL, &clock).unwrap();
    assert_eq!((report.gateway.as_str(), accepted(&report, "cloud")), ("g7", 1));
    assert_eq!(fs::read(dir.path().join("queue.db")).unwrap(), before, "reading changes nothing");
}

#[tokio::test]
async fn a_damaged_line_costs_its_own_account_only() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    rig.append(reading("a")).await;
    rig.append(numbered(1, 20)).await;
    rig.stop().await;
    sql(dir.path(), "UPDATE ledger SET body = x'01020304050607' WHERE source = 16");
    let mut rig = Rig::start(settings(dir.path()));
    let report = rig.inlet.ledger(ALL).await.unwrap();
    assert_eq!((report.damaged_lines, accepted(&report, "cloud")), (1, 1));
    assert_eq!(rig.drain("cloud").await.len(), 2, "the messages are not touched");
    sql_while_stopped(rig, dir.path(), "UPDATE ledger SET body = x'01' WHERE day > 1099511627776").await;
    let rig = Rig::start(settings(dir.path()));
    rig.append(reading("a")).await;
    let report = rig.inlet.ledger(ALL).await.unwrap();
    assert_eq!(waiting(&report, "cloud"), 0, "one of which nobody knows that it was accepted, and one that waits");
    rig.stop().await;
}

#[tokio::test]
async fn a_store_of_a_program_without_a_ledger_gets_one_with_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    rig.append_all((0..2000).map(|_| reading("a"))).await;
    rig.stop().await;
    sql(
        dir.path(),
        "DROP TABLE ledger; DROP TABLE ledger_source; DROP TABLE ledger_gap; DROP TABLE salvage; DROP TABLE note; PRAGMA user_version = 2",
    );
    let mut rig = Rig::start(settings(dir.path()));
    let report = rig.inlet.ledger(ALL).await.unwrap();
    assert_eq!((accepted(&report, "cloud"), waiting(&report, "cloud")), (2000, 2000));
    rig.drain("cloud").await;
    let report = rig.inlet.ledger(ALL).await.unwrap();
    assert_eq!((report.lines[0].delivered_numbers.clone(), report.gaps.len()), (vec![(1, 2000)], 0));
    rig.stop().await;
}

async fn sql_while_stopped(rig: Rig, dir: &Path, statement: &str) {
    rig.stop().await;
    sql(dir, statement);
}
