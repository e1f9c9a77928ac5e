//! Boards without a clock: boots, cuts and restarts in front of a clock that is made here.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::*;
use crate::clock::{Dial, Reading as Shown};
use crate::payload::json;

const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;
/// 2026-11-23T09:20:00Z.
const NOON: i64 = 1_795_425_600_000;

/// A board: the true time, and what its clocks show.
#[derive(Debug)]
struct Board {
    true_ms: i64,
    /// Wall clock less true time.
    off_ms: i64,
    mono_ms: u64,
    boot: u32,
    /// How much too fast its crystal runs, in parts per million.
    drift_ppm: i64,
}

#[derive(Debug, Clone)]
pub(super) struct Bench(Arc<Mutex<Board>>);

impl Dial for Bench {
    fn read(&self) -> Shown {
        let board = self.board();
        Shown { wall_ms: board.true_ms + board.off_ms, mono_ms: board.mono_ms }
    }

    fn boot_id(&self) -> Arc<str> {
        Arc::from(format!("boot-{}", self.board().boot))
    }
}

impl Bench {
    /// A board that was switched on and shows the first seconds of 1970.
    pub(super) fn new(drift_ppm: i64) -> Bench {
        let board = Board { true_ms: NOON, off_ms: -NOON, mono_ms: 0, boot: 1, drift_ppm };
        Bench(Arc::new(Mutex::new(board)))
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So much time goes by, in truth and on its clocks.
    pub(super) fn pass(&self, milliseconds: u64) {
        let mut board = self.board();
        let drift = milliseconds.cast_signed() * board.drift_ppm / 1_000_000;
        board.true_ms += milliseconds.cast_signed();
        board.off_ms += drift;
        board.mono_ms += milliseconds.saturating_add_signed(drift);
    }

    /// The plug is pulled, and put back after a while.
    fn cut(&self, dark_ms: u64) {
        let mut board = self.board();
        board.true_ms += dark_ms.cast_signed();
        board.off_ms = -board.true_ms;
        board.mono_ms = 0;
        board.boot += 1;
    }

    /// The time service sets the clock and says so.
    fn synchronise(&self, mark: &Path) {
        self.board().off_ms = 0;
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(self.board().true_ms.unsigned_abs());
        fs::File::create(mark).unwrap().set_modified(now).unwrap();
    }

    fn clock(&self, dir: &Path) -> Clock {
        Clock::reading(ClockSource::TimeService, Arc::new(self.clone())).marked_by(&dir.join("mark")).kept_in(dir)
    }
}

/// What was measured when, in truth; its number is its value.
type Truth = Vec<i64>;

fn measured(clock: &Clock, number: u64) -> Message {
    let stamp = clock.now();
    let body = Body::Reading(Reading {
        device: Arc::from("meter"),
        point: Arc::from("energy"),
        value: Value::Uint(number),
        unit: None,
        quality: Quality::Good,
        reason: None,
        seq: 0,
        stamp,
    });
    let mut message = message("field/meter/energy", b"");
    (message.body, message.origin, message.received) = (body, Origin::Field, stamp);
    message
}

/// One boot of the program on the bench.
struct Boot {
    rig: Rig,
    clock: Clock,
}

impl Boot {
    fn start(bench: &Bench, dir: &Path) -> Boot {
        let clock = bench.clock(dir);
        let rig = Rig::start(QueueSettings { clock: clock.clone(), ..settings(dir) });
        Boot { rig, clock }
    }

    async fn measure(&self, bench: &Bench, truth: &mut Truth) {
        let message = measured(&self.clock, truth.len() as u64);
        truth.push(bench.board().true_ms);
        self.rig.append(message).await;
    }

    /// As a cut leaves it: nothing is closed in order. The time is written down once an hour.
    async fn end(self) {
        self.clock.keep().unwrap();
        self.rig.stop().await;
    }
}

#[derive(Debug)]
struct Sent {
    number: u64,
    seq: u64,
    ts: i64,
    clock: Option<String>,
    error_ms: Option<i64>,
    after: Option<i64>,
    before: Option<i64>,
}

fn ms(value: &serde_json::Value) -> Option<i64> {
    let text = value.as_str()?;
    // The calendar of the code under test is tested on its own; here it is read back by searching it.
    let (mut low, mut high) = (0_i64, 4_102_444_800_000);
    while low < high {
        let middle = low + (high - low) / 2;
        if *crate::clock::rfc3339(middle) < *text { low = middle + 1 } else { high = middle }
    }
    Some(low)
}

fn sent(rows: &[Queued], now: Stamp) -> Vec<Sent> {
    let rows = rows.iter().map(|row| {
        let Body::Reading(reading) = &row.message.body else { panic!("not a reading") };
        let timing = row.encoding.timing.at_admission(reading.stamp, now);
        let bytes = json::encode(reading, &row.id, timing);
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        Sent {
            number: json["value"].as_u64().unwrap(),
            seq: json["seq"].as_u64().unwrap(),
            ts: ms(&json["ts"]).unwrap(),
            clock: json["clock"].as_str().map(str::to_owned),
            error_ms: json["ts_error_ms"].as_i64(),
            after: ms(&json["ts_after"]),
            before: ms(&json["ts_before"]),
        }
    });
    rows.collect()
}

/// Fails at a wrong stamp that does not say so. Gives back how many were known and how many were not.
fn judge(sent: &[Sent], truth: &Truth) -> (usize, usize) {
    let mut count = (0, 0);
    for (place, row) in sent.iter().enumerate() {
        assert_eq!((row.number, row.seq), (place as u64, place as u64 + 1), "in order, none missing");
        let true_ms = truth[place];
        match row.clock.as_deref() {
            None | Some("holdover") => {
                let error_ms = row.error_ms.unwrap_or(500);
                let off_ms = (row.ts - true_ms).abs();
                assert!(off_ms <= error_ms, "{row:?} is {off_ms} ms off");
                assert_eq!(row.after, None);
                count.0 += 1;
            }
            Some("unset") => {
                assert!(row.after.is_some_and(|after| after <= true_ms), "{row:?} was at {true_ms}");
                assert!(row.before.is_none_or(|before| before >= true_ms), "{row:?} was at {true_ms}");
                assert!(row.after.is_some_and(|after| after <= row.ts), "{row:?}");
                assert!(row.before.is_none_or(|before| before >= row.ts), "{row:?}");
                count.1 += 1;
            }
            Some(other) => panic!("{other}"),
        }
    }
    count
}

#[tokio::test]
async fn three_days_offline_with_three_cuts_and_no_clock_give_no_wrong_stamp_that_does_not_say_so() {
    // A crystal that drifts 15 parts in a million is off by 4 s in three days; the last boot's readings are corrected
    // over a day at most.
    for drift_ppm in [0, 15, -15] {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench::new(drift_ppm);
        let mut truth = Truth::new();
        // Before all that the board had the time once, and it was written down.
        let boot = Boot::start(&bench, dir.path());
        bench.pass(60 * SECOND);
        bench.synchronise(&dir.path().join("mark"));
        bench.pass(SECOND);
        assert_eq!(boot.clock.state(), ClockState::Synced);
        boot.end().await;
        fs::remove_file(dir.path().join("mark")).unwrap();
        bench.cut(10 * 60 * SECOND);

        let mut last_boot_from = 0;
        for boot_hours in [17, 23, 8, 24] {
            last_boot_from = truth.len();
            let boot = Boot::start(&bench, dir.path());
            bench.pass(20 * SECOND);
            for quarter in 0..boot_hours * 4 {
                assert_eq!(boot.clock.state(), ClockState::Unset);
                boot.measure(&bench, &mut truth).await;
                bench.pass(HOUR / 4);
                if quarter % 4 == 0 {
                    boot.clock.keep().unwrap();
                }
            }
            if boot_hours == 24 {
                // Within the boot the program is started again once, which takes nothing from what is known.
                boot.rig.stop().await;
                let boot = Boot::start(&bench, dir.path());
                boot.measure(&bench, &mut truth).await;
                boot.rig.stop().await;
            } else {
                // A cut: nothing is closed, the time was written down up to an hour ago.
                boot.rig.stop().await;
                bench.cut(17 * 60 * SECOND);
            }
        }
        // The line is back, and with it the time.
        let mut boot = Boot::start(&bench, dir.path());
        bench.pass(SECOND);
        bench.synchronise(&dir.path().join("mark"));
        bench.pass(SECOND);
        assert_eq!(boot.clock.state(), ClockState::Synced);
        let rows = boot.rig.drain("cloud").await;
        let sent = sent(&rows, boot.clock.now());
        assert_eq!(sent.len(), truth.len(), "nothing is lost");
        let (known, unknown) = judge(&sent, &truth);
        let of_last_boot = truth.len() - last_boot_from;
        assert_eq!((known, unknown), (of_last_boot, last_boot_from), "with a drift of {drift_ppm} ppm");
        let worst = sent[last_boot_from..].iter().map(|row| (row.ts - truth[row.number as usize]).abs()).max();
        assert!(worst.unwrap() <= 2000, "corrected stamps are {worst:?} ms off with a drift of {drift_ppm} ppm");
        // The bounds are worth something: each boot's readings lie between two times that are three days apart at most.
        let widest = sent[..last_boot_from].iter().map(|row| row.before.unwrap() - row.after.unwrap()).max();
        assert!(widest.unwrap() <= 73 * 3_600_000, "{widest:?}");
        let order: Vec<i64> = sent.iter().map(|row| row.ts).collect();
        assert!(order.windows(2).all(|pair| pair[0] <= pair[1]), "times stand in the order of the readings");
        boot.rig.stop().await;
    }
}

/// What happens to a board.
#[derive(Debug, Clone)]
enum Event {
    Measure,
    Pass(u64),
    /// The plug is pulled for so long.
    Cut(u64),
    /// `kill -9`, and started again at once.
    Kill,
    /// The time service gets through.
    Synchronise,
    /// Somebody sets the clock so far from the truth.
    Set(i64),
    /// An hour is over: the time is written down.
    Keep,
    /// The line is there for a moment: some messages are delivered.
    Deliver,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => Just(Event::Measure),
        6 => (1..30 * HOUR).prop_map(Event::Pass),
        2 => (1..100 * HOUR).prop_map(Event::Cut),
        1 => Just(Event::Kill),
        2 => Just(Event::Synchronise),
        1 => (-400 * 24 * HOUR.cast_signed()..4000 * 24 * HOUR.cast_signed()).prop_map(Event::Set),
        2 => Just(Event::Keep),
        2 => Just(Event::Deliver),
    ];
    prop::collection::vec(event, 1..60)
}

async fn live(events: Vec<Event>, drift_ppm: i64) {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let bench = Bench::new(drift_ppm);
    let (mut truth, mut all) = (Truth::new(), Vec::new());
    let mut boot = Boot::start(&bench, dir.path());
    for event in events {
        match event {
            Event::Measure => boot.measure(&bench, &mut truth).await,
            Event::Pass(milliseconds) => bench.pass(milliseconds),
            Event::Cut(milliseconds) => {
                boot.rig.stop().await;
                // It lies in a file system that is in memory.
                fs::remove_file(&mark).unwrap_or_default();
                bench.cut(milliseconds);
                boot = Boot::start(&bench, dir.path());
            }
            Event::Kill => {
                boot.rig.stop().await;
                boot = Boot::start(&bench, dir.path());
            }
            Event::Synchronise => {
                bench.pass(SECOND);
                bench.synchronise(&mark);
                bench.pass(SECOND);
                // As `watch` does when it sees that the time is known.
                boot.clock.keep().unwrap();
            }
            Event::Set(off_ms) => bench.board().off_ms = off_ms,
            Event::Keep => boot.clock.keep().unwrap(),
            Event::Deliver => {
                let rows = boot.rig.drain("cloud").await;
                all.extend(sent(&rows, boot.clock.now()));
            }
        }
    }
    let rows = boot.rig.drain("cloud").await;
    all.extend(sent(&rows, boot.clock.now()));
    assert_eq!(all.len(), truth.len(), "nothing is lost");
    judge(&all, &truth);
    boot.rig.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_happens_to_a_board_no_stamp_is_wrong_without_saying_so(events in events(), drift_ppm in -50..50_i64) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(live(events, drift_ppm));
    }
}

#[tokio::test]
async fn a_boot_that_got_the_time_before_the_cut_tells_it_of_all_its_readings() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(0);
    let mut truth = Truth::new();
    let boot = Boot::start(&bench, dir.path());
    for minute in 0..20 {
        boot.measure(&bench, &mut truth).await;
        bench.pass(60 * SECOND);
        if minute == 9 {
            bench.synchronise(&dir.path().join("mark"));
        }
    }
    boot.rig.stop().await;
    fs::remove_file(dir.path().join("mark")).unwrap();
    bench.cut(HOUR);
    // Still no time service in this boot: what is known of the former one is enough.
    let mut boot = Boot::start(&bench, dir.path());
    let rows = boot.rig.drain("cloud").await;
    assert_eq!(boot.clock.state(), ClockState::Unset);
    let sent = sent(&rows, boot.clock.now());
    assert_eq!(judge(&sent, &truth), (20, 0));
    assert!(sent.iter().all(|row| row.ts == truth[row.number as usize] && row.clock.is_none()), "{sent:?}");
    boot.rig.stop().await;
}

#[tokio::test]
async fn what_a_salvage_brings_back_is_corrected_by_what_its_boot_knew_also_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(0);
    let mut truth = Truth::new();
    let boot = Boot::start(&bench, dir.path());
    for minute in 0..20 {
        boot.measure(&bench, &mut truth).await;
        bench.pass(60 * SECOND);
        if minute == 9 {
            bench.synchronise(&dir.path().join("mark"));
        }
    }
    boot.rig.stop().await;
    fs::remove_file(dir.path().join("mark")).unwrap();
    bench.cut(HOUR);
    // Its head is gone: all of it has to be salvaged, beside what comes meanwhile.
    let file = fs::File::options().write(true).open(dir.path().join("queue.db")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 64], 0).unwrap();
    for round in 0..3 {
        let boot = Boot::start(&bench, dir.path());
        if round == 0 {
            boot.measure(&bench, &mut truth).await;
        }
        salvage::salvaged(&boot.rig, dir.path()).await;
        boot.rig.stop().await;
    }
    let mut boot = Boot::start(&bench, dir.path());
    let rows = boot.rig.drain("cloud").await;
    assert_eq!(boot.clock.state(), ClockState::Unset);
    let sent = sent(&rows, boot.clock.now());
    let salvaged: Vec<&Sent> = sent.iter().filter(|row| row.number < 20).collect();
    assert_eq!(salvaged.len(), 20);
    assert!(salvaged.iter().all(|row| row.ts == truth[row.number as usize] && row.clock.is_none()), "{sent:?}");
    boot.rig.stop().await;
}

#[tokio::test]
async fn rows_that_were_taken_before_the_time_was_known_are_corrected_when_they_are_first_sent() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(0);
    let mut truth = Truth::new();
    let mut boot = Boot::start(&bench, dir.path());
    for _ in 0..5 {
        boot.measure(&bench, &mut truth).await;
        bench.pass(10 * SECOND);
    }
    let rows = boot.rig.outlet("cloud").next(100, 1 << 20).await.unwrap();
    assert!(rows.iter().all(|row| matches!(row.encoding.timing, Timing::Open { .. })));
    assert_eq!(judge(&sent(&rows, boot.clock.now()), &truth), (0, 5));
    bench.synchronise(&dir.path().join("mark"));
    bench.pass(SECOND);
    assert_eq!(judge(&sent(&rows, boot.clock.now()), &truth), (5, 0));
    boot.rig.stop().await;
}

#[tokio::test]
async fn no_step_of_the_wall_clock_ages_a_message_of_this_boot() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(0);
    bench.board().off_ms = 0;
    // The owner trusts the clock: what it shows is right by definition, and ages are none of its business.
    let clock = Clock::reading(ClockSource::Trusted, Arc::new(bench.clone()));
    let settings =
        QueueSettings { clock: clock.clone(), age_max: Some(Duration::from_secs(3600)), ..settings(dir.path()) };
    let mut rig = Rig::start(settings);
    let mut expiring = measured(&clock, 0);
    expiring.properties = Some(Box::new(Properties { expiry_s: Some(600), ..Properties::default() }));
    for off_ms in [0, -NOON, -86_400_000, 400 * 86_400_000, 2_147_483_648_000 - NOON] {
        bench.board().off_ms = off_ms;
        expiring.received = clock.now();
        rig.append(expiring.clone()).await;
    }
    bench.board().off_ms = 2_147_483_648_000 - NOON;
    bench.pass(599 * SECOND);
    assert_eq!(rig.all("cloud").await.len(), 5, "none is too old");
    bench.pass(2 * SECOND);
    bench.board().off_ms = -NOON;
    assert_eq!(rig.all("cloud").await.len(), 0, "all are, by the time that the board was on");
    assert_eq!(losses(&rig), BTreeMap::from([("message-expired".to_owned(), 5)]));
    rig.stop().await;
}

#[tokio::test]
async fn a_loss_that_was_noted_without_a_clock_says_so_when_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(0);
    let mut settings = two_that_are_told(dir.path());
    settings.clock = bench.clock(dir.path());
    settings.age_max = Some(Duration::from_secs(60));
    let mut rig = Rig::start(settings.clone());
    rig.append(measured(&settings.clock, 1)).await;
    bench.pass(61 * SECOND);
    let name = settings.streams[0].name.clone();
    let told = told_gap(&mut rig, &name).await;
    assert_eq!((&told["reason"], &told["clock"]), (&"expired".into(), &"unset".into()), "{told}");
    rig.stop().await;
}

#[tokio::test]
async fn how_old_a_write_of_another_boot_is_nobody_says_who_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(0);
    let set = "field/press/setpoint/set";
    let start = |clock: &Clock| {
        let mut settings = QueueSettings { clock: clock.clone(), ..settings(dir.path()) };
        settings.streams.push(StreamSpec::writes());
        settings.set_topics = SetTopics::new(HashSet::from([Topic::new(set).unwrap()]));
        Rig::start(settings)
    };
    let clock = bench.clock(dir.path());
    let mut rig = start(&clock);
    rig.append(Message { received: clock.now(), ..message(set, b"1") }).await;
    bench.pass(5 * SECOND);
    assert_eq!(rig.all(WRITES).await[0].age_ms, Some(5000), "within a boot every clock does");
    rig.stop().await;
    bench.cut(3 * 24 * HOUR);
    bench.pass(SECOND);
    let clock = bench.clock(dir.path());
    let mut rig = start(&clock);
    assert_eq!(rig.all(WRITES).await[0].age_ms, None, "one second old, or three days");
    // In this boot the time becomes known, and is written down.
    bench.synchronise(&dir.path().join("mark"));
    bench.pass(SECOND);
    assert_eq!(clock.state(), ClockState::Synced);
    rig.append(Message { received: clock.now(), ..message(set, b"2") }).await;
    rig.stop().await;
    bench.cut(HOUR);
    bench.pass(SECOND);
    bench.synchronise(&dir.path().join("mark"));
    bench.pass(SECOND);
    let clock = bench.clock(dir.path());
    assert_eq!(clock.state(), ClockState::Synced);
    let mut rig = start(&clock);
    let ages: Vec<Option<u64>> = rig.all(WRITES).await.iter().map(|row| row.age_ms).collect();
    assert_eq!(ages[0], None);
    assert!(ages[1].is_some_and(|age| age.abs_diff(HOUR + 2 * SECOND) <= 2 * SECOND), "{ages:?}");
    rig.stop().await;
}
