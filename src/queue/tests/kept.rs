//! What was delivered and is kept: it gives way to everything, goes when it is old, and comes again when it is ordered.

use super::*;
use crate::queue::inspect::{Answer, Question};
use crate::queue::kept::{ResendAsk, ResendPage};
use crate::queue::upkeep::Order;
use books::Books;

fn keeping(dir: &Path) -> QueueSettings {
    QueueSettings { keep: Some(Duration::from_secs(3600)), ..settings(dir) }
}

fn books_of(settings: &QueueSettings) -> Books {
    opening::open_books(settings, &mut Past::default()).unwrap()
}

fn everything(uplink: &str) -> ResendAsk {
    ResendAsk { uplink: uplink.to_owned(), from_ms: 0, to_ms: i64::MAX, ..ResendAsk::default() }
}

/// All pages of a question or of an order, added up.
fn resend(books: &mut Books, ask: ResendAsk, is_order: bool) -> ResendPage {
    let (mut sum, mut ask) = (ResendPage::default(), ask);
    loop {
        let answer = match is_order {
            true => books.carry_out(&Order::Resend(ask.clone())),
            false => books.answer_to(&Question::Kept(ask.clone())),
        };
        books.commit().unwrap();
        let Answer::Resend(page) = answer.unwrap() else { panic!("refused") };
        (sum.count, sum.bytes) = (sum.count + page.count, sum.bytes + page.bytes);
        (sum.marked, sum.looked) = (sum.marked + page.marked, sum.looked + page.looked);
        (sum.too_old, sum.undated, sum.kept) = (sum.too_old + page.too_old, sum.undated + page.undated, page.kept);
        match page.next {
            Some(next) => ask.after = next,
            None => return sum,
        }
    }
}

/// What is to be sent again: place and number.
fn again(books: &mut Books, index: usize) -> Vec<(u64, u64)> {
    let (mut found, mut place) = (Vec::new(), 0);
    loop {
        let fetched = books.next_again(index, place, 100, 1 << 20).unwrap();
        place = fetched.place;
        assert!(fetched.rows.iter().all(|row| row.is_again));
        found.extend(fetched.rows.iter().map(|row| (row.sequence.0, number_of(&row.message))));
        if fetched.rows.is_empty() && !fetched.is_partial {
            return found;
        }
    }
}

fn deliver(books: &mut Books, index: usize, places: impl IntoIterator<Item = u64>) {
    let changes = places.into_iter().map(|place| delivered(Sequence(place))).collect();
    books.change(index, changes).unwrap();
    books.commit().unwrap();
}

fn append(books: &mut Books, numbers: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut take = |number| stored(&books.append(submission(numbered(number, 200))).unwrap().unwrap()).0;
    let places = numbers.into_iter().map(&mut take).collect();
    books.commit().unwrap();
    places
}

/// As a kill leaves it.
fn crashed(books: Books, dir: TempDir, settings: impl Fn(&Path) -> QueueSettings) -> (Books, TempDir) {
    let copy = copy_dir(dir.path());
    books.close().unwrap();
    (books_of(&settings(copy.path())), copy)
}

#[tokio::test]
async fn what_was_delivered_comes_again_in_order_under_its_name_and_is_accounted_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(keeping(dir.path()));
    let names: Vec<MessageId> = rig
        .append_all((0..700).map(|number| numbered(number, 100)))
        .await
        .into_iter()
        .map(|outcome| outcome.unwrap().id)
        .collect();
    assert_eq!(rig.drain("cloud").await.len(), 700);
    let mut ask = everything("cloud");
    let mut ordered = 0;
    while let Answer::Resend(page) = rig.inlet.order(Order::Resend(ask.clone())).await.unwrap() {
        ordered += page.count;
        match page.next {
            Some(next) => ask.after = next,
            None => break,
        }
    }
    assert_eq!(ordered, 700);
    // What is new goes first: nothing that was never delivered waits for a repeat.
    rig.append(numbered(5000, 100)).await;
    let mut rows = Vec::new();
    while rows.len() < 701 {
        let outlet = rig.outlet("cloud");
        let next = tokio::time::timeout(DEADLINE, outlet.next(64, 1 << 20)).await.unwrap().unwrap();
        outlet.commit(next.iter().map(|row| delivered(row.sequence)).collect()).await.unwrap();
        rows.extend(next);
    }
    assert_eq!((number_of(&rows[0].message), rows[0].is_again), (5000, false));
    assert!(rows[1..].iter().all(|row| row.is_again));
    assert_eq!(rows[1..].iter().map(|row| row.id.clone()).collect::<Vec<_>>(), names);
    assert_eq!(rows[1].encoding.topic.as_str(), "up/plant/press/3/sensor");
    let nothing = tokio::time::timeout(Duration::from_millis(200), rig.outlet("cloud").next(64, 1 << 20)).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let stats = rig.inlet.stats().await.unwrap();
    assert_eq!((stats.messages, stats.streams["cloud"].waiting, stats.kept), (0, 0, 701));
    assert_eq!(losses(&rig), BTreeMap::new());
    let Answer::Stats(stats) = rig.inlet.ask(Question::Stats).await.unwrap() else { panic!() };
    assert_eq!((stats.kept, stats.streams["cloud"].again), (701, 0));
    rig.stop().await;
}

#[tokio::test]
async fn with_a_live_lane_what_is_sent_again_is_of_the_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(keeping(dir.path()));
    rig.append_all((0..20).map(|number| numbered(number, 100))).await;
    rig.drain("cloud").await;
    rig.inlet.order(Order::Resend(everything("cloud"))).await.unwrap();
    let wanted = Some(Wanted { count: 100, bytes: 1 << 20, waits: true });
    let outlet = rig.outlets.get_mut("cloud").unwrap();
    outlet.mark_live().await.unwrap();
    for is_live_asked in [true, false] {
        outlet.rewind();
        let next = outlet.next_of(wanted, wanted.filter(|_| is_live_asked));
        let (lane, rows) = tokio::time::timeout(DEADLINE, next).await.unwrap().unwrap();
        assert_eq!((lane, rows.len()), (Lane::Backlog, 20));
    }
    rig.inlet.append(submission(numbered(99, 10))).await.unwrap();
    let (lane, rows) = tokio::time::timeout(DEADLINE, outlet.next_of(wanted, wanted)).await.unwrap().unwrap();
    assert_eq!((lane, number_of(&rows[0].message)), (Lane::Live, 99));
    rig.stop().await;
}

#[test]
fn an_order_is_of_a_time_a_topic_and_an_uplink_and_to_repeat_it_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let two = |dir: &Path| QueueSettings {
        streams: vec![stream("a", vec![rule("a/#", "{topic}")]), stream("b", vec![rule("#", "{topic}")])],
        ..keeping(dir)
    };
    let mut books = books_of(&two(dir.path()));
    let mut take = |topic: &str, number: u64, wall_ms: i64| {
        let mut message = message(topic, &number.to_le_bytes());
        message.received.wall_ms = wall_ms;
        stored(&books.append(submission(message)).unwrap().unwrap()).0
    };
    let of_a: Vec<u64> = (0..100_u32).map(|number| take("a/x", u64::from(number), i64::from(number))).collect();
    let of_b: Vec<u64> = (100..200_u32).map(|number| take("b/y", u64::from(number), i64::from(number))).collect();
    books.commit().unwrap();
    deliver(&mut books, 0, of_a.clone());
    assert_eq!(books.kept.count(), 0, "b still wants them");
    deliver(&mut books, 1, of_a.iter().copied().chain(of_b));
    assert_eq!(books.kept.count(), 200);
    let ask = |uplink: &str, from_ms, to_ms, topic: Option<&str>| ResendAsk {
        uplink: uplink.to_owned(),
        from_ms,
        to_ms,
        topic: topic.map(str::to_owned),
        after: 0,
    };
    assert_eq!(resend(&mut books, ask("a", 0, 1000, None), false).count, 100);
    assert_eq!(resend(&mut books, ask("b", 50, 150, None), false).count, 100);
    assert_eq!(resend(&mut books, ask("b", 50, 150, Some("b/+")), false).count, 50);
    assert_eq!(again(&mut books, 0).len() + again(&mut books, 1).len(), 0, "a question changes nothing");
    let ordered = resend(&mut books, ask("b", 50, 150, Some("a/#")), true);
    assert_eq!((ordered.count, ordered.marked), (50, 0));
    let repeated = resend(&mut books, ask("b", 40, 150, Some("a/#")), true);
    assert_eq!((repeated.count, repeated.marked), (10, 50));
    let numbers: Vec<u64> = again(&mut books, 1).into_iter().map(|(_, number)| number).collect();
    assert_eq!(numbers, (40..100).collect::<Vec<_>>());
    assert_eq!(again(&mut books, 0).len(), 0);
    for (uplink, topic, word) in
        [("c", None, "there are: a, b"), ("a", Some("x/#/y"), "#"), (WRITES, None, "no uplink")]
    {
        let refused = books.carry_out(&Order::Resend(ask(uplink, 0, 1, topic))).unwrap();
        assert!(matches!(&refused, Answer::Refused { reason } if reason.contains(word)), "{refused:?}");
    }
}

#[test]
fn an_order_survives_kills_and_ends_where_the_cloud_has_acknowledged() {
    let mut dir = tempfile::tempdir().unwrap();
    let mut books = books_of(&keeping(dir.path()));
    let places = append(&mut books, 0..600);
    deliver(&mut books, 0, places.clone());
    // One job's share of it, then the power goes.
    books.carry_out(&Order::Resend(everything("cloud"))).unwrap();
    books.commit().unwrap();
    (books, dir) = crashed(books, dir, keeping);
    assert_eq!(again(&mut books, 0).len(), 256);
    assert_eq!(resend(&mut books, everything("cloud"), true).marked, 256);
    // Out of order, some at QoS 2.
    deliver(&mut books, 0, places.iter().copied().filter(|place| place % 3 == 0));
    let in_flight: Vec<Sequence> = places[1..=1].iter().map(|place| Sequence(*place)).collect();
    let fetched = books.next_again(0, 0, 1, 1 << 20).unwrap();
    let encoding = fetched.rows[0].encoding.clone();
    assert_eq!(fetched.rows[0].sequence, Sequence(places[0]));
    books.change(0, vec![Change::Admit { packet_id: 7, rows: in_flight.clone(), order: 1, encoding }]).unwrap();
    books.commit().unwrap();
    (books, dir) = crashed(books, dir, keeping);
    let restored = books.restore(0).unwrap();
    assert_eq!(restored.in_flight.len(), 1);
    assert!(restored.in_flight[0].rows[0].is_again && restored.in_flight[0].rows[0].sequence == in_flight[0]);
    let left: Vec<u64> = again(&mut books, 0).into_iter().map(|(place, _)| place).collect();
    let expected: Vec<u64> =
        places.iter().copied().filter(|place| place % 3 != 0 && *place != in_flight[0].0).collect();
    assert_eq!(left, expected);
    books.change(0, vec![Change::Forget { packet_id: 7 }, delivered(in_flight[0])]).unwrap();
    books.commit().unwrap();
    // One that the cloud refuses this time was delivered: it is no dead letter and no loss.
    let reason = "0x97".to_owned();
    let verdict = Verdict::Rejected { reason };
    books.change(0, vec![Change::Settle { sequence: Sequence(left[0]), verdict }]).unwrap();
    deliver(&mut books, 0, left[1..].iter().copied());
    assert_eq!((again(&mut books, 0).len(), books.dead_letters.0, books.losses.len()), (0, 0, 0));
    (books, dir) = crashed(books, dir, keeping);
    assert_eq!((again(&mut books, 0).len(), books.kept.count(), books.messages()), (0, 600, 0));
    drop((books, dir));
}

#[test]
fn a_full_store_lets_go_of_what_is_kept_before_anything_that_waits_and_then_of_orders() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest, WhenFull::DropNewest] {
        let dir = tempfile::tempdir().unwrap();
        let small = QueueSettings { bytes_max: NonZeroU64::new(MIB).unwrap(), when_full, ..keeping(dir.path()) };
        let mut books = books_of(&small);
        let mut number = 0;
        // Four times as much as the store holds, delivered as it comes.
        for _ in 0..160 {
            let places = append(&mut books, number..number + 100);
            number += 100;
            deliver(&mut books, 0, places);
        }
        let kept = books.kept.count();
        assert!((2000..4500).contains(&kept), "{kept} of about 3,900 are kept");
        let stats = books.stats().unwrap();
        assert!(stats.bytes <= stats.bytes_max + 16 * 1024, "{stats:?}");
        let health = &books.settings.health;
        let bytes = health.queue().bytes.load(std::sync::atomic::Ordering::Relaxed);
        assert!(bytes < MIB / 3, "{bytes} are said to be in use, though nothing waits");
        assert!(!health.is_raised(crate::health::Alarm::StoreFills));
        resend(&mut books, everything("cloud"), true);
        assert!(again(&mut books, 0).len() as u64 == kept, "all that is kept");
        // Nobody drains: what waits takes all of the room, and nothing of it is lost while anything is kept.
        let mut waits = 0;
        while books.kept.count() > 0 {
            let outcome = books.append(submission(numbered(number, 200))).unwrap().unwrap();
            assert!(matches!(outcome.fate, Fate::Stored { .. }), "{outcome:?}");
            (number, waits) = (number + 1, waits + 1);
            books.commit().unwrap();
            assert_eq!((books.streams[0].waiting, books.losses.len()), (waits, 0));
        }
        assert!(waits > 2500, "{waits} have found room");
        assert_eq!(again(&mut books, 0).len(), 0);
        let problems = books.settings.health.snapshot(Stamp::default()).problems;
        let told =
            problems.iter().filter(|problem| problem.text.contains("were to be sent again to cloud are not")).count();
        assert_eq!(told, 1, "{problems:?}");
    }
}

#[test]
fn what_is_kept_goes_when_its_time_is_over_and_an_order_holds_it() {
    let bench = time::Bench::new(0);
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::reading(ClockSource::Trusted, Arc::new(bench.clone()));
    let settings = QueueSettings { clock, ..keeping(dir.path()) };
    let mut books = books_of(&settings);
    let expire = |books: &mut Books| {
        while books.expire_kept().unwrap() {}
        books.commit().unwrap();
    };
    let first = append(&mut books, 0..50);
    deliver(&mut books, 0, first.clone());
    bench.pass(1_800_000);
    let second = append(&mut books, 50..80);
    deliver(&mut books, 0, second);
    // The row of a period that grows: two for two.
    assert_eq!((books.kept.count(), books.store.kept_runs().unwrap().len()), (80, 2));
    resend(&mut books, everything("cloud"), true);
    deliver(&mut books, 0, first[10..].iter().copied());
    expire(&mut books);
    assert_eq!(books.kept.count(), 80, "none is old enough");
    bench.pass(1_800_000 + 2 * 112_500);
    expire(&mut books);
    assert_eq!((books.kept.count(), again(&mut books, 0).len()), (40, 40), "what is ordered stays until it is sent");
    deliver(&mut books, 0, first);
    expire(&mut books);
    assert_eq!((books.kept.count(), books.store.kept_periods().unwrap().len()), (30, 1));
    // What is ordered for an uplink that is gone holds nothing.
    resend(&mut books, everything("cloud"), true);
    books.close_stream(&Arc::from("cloud")).unwrap();
    bench.pass(1_800_000 + 2 * 112_500);
    expire(&mut books);
    assert_eq!((books.kept.count(), again(&mut books, 0).len()), (0, 0));
    books.open_stream(settings.streams[0].clone()).unwrap();
    let third = append(&mut books, 80..110);
    deliver(&mut books, 0, third);
    resend(&mut books, everything("cloud"), true);
    // Without the key nothing stays.
    books.settings.keep = None;
    expire(&mut books);
    assert_eq!((books.kept.count(), again(&mut books, 0).len()), (30, 30));
    let places: Vec<u64> = again(&mut books, 0).into_iter().map(|(place, _)| place).collect();
    deliver(&mut books, 0, places);
    expire(&mut books);
    assert_eq!((books.kept.count(), books.store.kept_periods().unwrap().len()), (0, 0));
    let refused = books.answer_to(&Question::Kept(everything("cloud"))).unwrap();
    assert!(matches!(&refused, Answer::Refused { reason } if reason.contains("keep_delivered")), "{refused:?}");
}

#[test]
fn what_an_older_program_has_taken_away_is_not_missed() {
    let mut dir = tempfile::tempdir().unwrap();
    let mut books = books_of(&keeping(dir.path()));
    let places = append(&mut books, 0..300);
    deliver(&mut books, 0, places.clone());
    resend(&mut books, everything("cloud"), true);
    books.close().unwrap();
    // It finds rows that nobody wants, and says nothing to tables that it does not know.
    let database = rusqlite::Connection::open(dir.path().join("queue.db")).unwrap();
    let gone = (places[10], places[290]);
    let bounds = [gone.0, gone.1].map(u64::cast_signed);
    database.execute("DELETE FROM message_0 WHERE sequence BETWEEN ? AND ?", bounds).unwrap();
    drop(database);
    let mut books = books_of(&keeping(dir.path()));
    let found: Vec<u64> = again(&mut books, 0).into_iter().map(|(place, _)| place).collect();
    books.commit().unwrap();
    assert_eq!(found, places.iter().copied().filter(|place| *place < gone.0 || *place > gone.1).collect::<Vec<_>>());
    assert_eq!(books.streams[0].again.count(), found.len() as u64, "what is not there is not waited for");
    let new = append(&mut books, 300..400);
    (books, dir) = crashed(books, dir, keeping);
    let fetched = books.next(0, 0, 1000, 1 << 20).unwrap();
    assert_eq!(fetched.rows.iter().map(|row| row.sequence.0).collect::<Vec<_>>(), new);
    drop((books, dir));
}

#[tokio::test]
async fn where_the_spans_are_lost_what_is_kept_does_not_come_back_as_undelivered() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(keeping(dir.path()));
    rig.append_all((0..900).map(|number| numbered(number, 120))).await;
    let rows = rig.outlet("cloud").next(900, 1 << 20).await.unwrap();
    // The first is stuck, so that no watermark tells of the others.
    rig.outlet("cloud").commit(rows[1..].iter().map(|row| delivered(row.sequence)).collect()).await.unwrap();
    let settled = rows.len() as u64;
    rig.stop().await;
    let database = rusqlite::Connection::open(dir.path().join("queue.db")).unwrap();
    let page: i64 =
        database.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'delivery'", (), |row| row.get(0)).unwrap();
    drop(database);
    let file = fs::File::options().write(true).open(dir.path().join("queue.db")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 1024], (page.cast_unsigned() - 1) * 1024).unwrap();
    let mut rig = Rig::start(keeping(dir.path()));
    salvage::salvaged(&rig, dir.path()).await;
    let found: BTreeSet<u64> = rig.drain("cloud").await.iter().map(|row| number_of(&row.message)).collect();
    assert_eq!(found, (0..1).chain(settled..900).collect());
    rig.stop().await;
}

#[test]
fn what_only_a_local_session_or_a_device_wanted_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let set = "field/press/setpoint/set";
    let mut settings =
        QueueSettings { streams: vec![stream("cloud", vec![rule("plant/#", "{topic}")])], ..keeping(dir.path()) };
    settings.streams.push(StreamSpec::writes());
    settings.set_topics = SetTopics::new(HashSet::from([Topic::new(set).unwrap()]));
    let mut books = books_of(&settings);
    let write = stored(&books.append(submission(message(set, b"1"))).unwrap().unwrap());
    books.commit().unwrap();
    let index = books.streams.iter().position(books::Stream::is_writes).unwrap();
    deliver(&mut books, index, [write.0]);
    assert_eq!((books.kept.count(), books.removable.count()), (0, 1));
    let place = append(&mut books, [5])[0];
    deliver(&mut books, 0, [place]);
    assert_eq!(books.kept.count(), 1);
}

/// Bytes that this thread has written so far.
fn written() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn to_keep_what_was_delivered_costs_the_flash_about_a_sixth_as_the_documents_say() {
    for group in [1, 32, 256] {
        let cost = |keep: Option<Duration>| {
            let dir = tempfile::tempdir_in(".").unwrap();
            let mut books = books_of(&QueueSettings { keep, ..settings(dir.path()) });
            let before = written();
            for round in 0..(6400 / group).min(1600) {
                let places = append(&mut books, round * group..(round + 1) * group);
                deliver(&mut books, 0, places);
            }
            let count = (6400 / group).min(1600) * group;
            books.close().unwrap();
            (written() - before) / count
        };
        let (without, with) = (cost(None), cost(Some(Duration::from_secs(3600))));
        println!("{group} in a commit: {without} bytes written a message, {with} where it is kept");
        assert!(with < without * 4 / 3 + 200, "{group} in a commit: {without} and {with}");
    }
}
