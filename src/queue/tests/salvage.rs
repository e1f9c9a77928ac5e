//! What a damaged store gives back, and what is said of the rest.

use std::os::unix::fs::FileExt as _;

use super::*;

/// Waits until nothing is left to be salvaged.
pub(super) async fn salvaged(rig: &Rig, dir: &Path) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !crate::queue::salvage::places(&dir.join("quarantine")).is_empty() {
        // An answer, so that the worker has had its turn.
        rig.inlet.stats().await.unwrap();
        assert!(tokio::time::Instant::now() < deadline, "{:?}", rig.health.snapshot(Stamp::default()).salvage);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn numbers(rows: &[Queued]) -> Vec<u64> {
    rows.iter().filter(|row| row.message.origin != Origin::Gateway).map(|row| number_of(&row.message)).collect()
}

/// Writes over the beginning of the database: SQLite cannot open it any more.
pub(super) fn behead(dir: &Path) {
    let file = fs::File::options().write(true).open(dir.join("queue.db")).unwrap();
    file.write_all_at(&[0x5a; 1024], 0).unwrap();
}

#[tokio::test]
async fn a_store_that_lost_its_head_gives_all_its_messages_back_with_their_names_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(two_that_are_told(dir.path()));
    let mut names = Vec::new();
    // Short ones, and some that go on to pages of their own.
    for number in 0..2000 {
        names.push(numbered(number, if number % 50 == 0 { 5000 } else { 120 }));
    }
    let outcomes = rig.append_all(names).await;
    let settled = rig.outlet("cloud").next(300, 1 << 20).await.unwrap();
    let count = settled.len();
    rig.outlet("cloud").commit(settled.iter().map(|row| delivered(row.sequence)).collect()).await.unwrap();
    rig.stop().await;
    behead(dir.path());

    let mut rig = Rig::start(two_that_are_told(dir.path()));
    // It takes new ones at once.
    rig.append(numbered(9000, 20)).await;
    salvaged(&rig, dir.path()).await;
    let mut rows = rig.drain("cloud").await;
    rows.sort_by_key(|row| row.id.counter);
    let found: HashSet<u64> = numbers(&rows).into_iter().collect();
    assert_eq!(found, (count as u64..2000).chain([9000]).collect());
    for row in rows.iter().filter(|row| number_of(&row.message) < 2000) {
        let number = usize::try_from(number_of(&row.message)).unwrap();
        assert_eq!(row.id, outcomes[number].as_ref().unwrap().id, "the name is the same");
    }
    assert_eq!(losses(&rig).get("quarantined"), None, "nothing was lost");
    let status = rig.health.snapshot(Stamp::default());
    let last = status.problems.last().unwrap();
    assert!(last.text.starts_with(&format!("salvaged {} messages", 2000 - count)), "{last:?}");
    assert!(last.text.contains("lost 0"), "{last:?}");
    rig.stop().await;

    // Neither is it told again, nor salvaged again.
    let mut rig = Rig::start(two_that_are_told(dir.path()));
    assert_eq!(rig.all("cloud").await.len(), 0);
    rig.stop().await;
}

#[tokio::test]
async fn messages_that_two_streams_want_go_to_those_who_had_not_got_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(two_that_are_told(dir.path()));
    rig.append_all((0..40).map(|number| numbered(number, 50))).await;
    let both = (100..120_u64).map(|number| message("only/this", &number.to_le_bytes()));
    rig.append_all(both).await;
    let sent = rig.drain("cloud").await;
    assert_eq!(sent.len(), 60);
    rig.stop().await;
    behead(dir.path());
    let mut rig = Rig::start(two_that_are_told(dir.path()));
    salvaged(&rig, dir.path()).await;
    assert_eq!(numbers(&rig.all("cloud").await), Vec::<u64>::new(), "what was delivered is not sent again");
    assert_eq!(numbers(&rig.drain("other").await), (100..120).collect::<Vec<_>>());
    rig.stop().await;
}

/// Flips one bit in the body of each of these messages, wherever the file has it: a page that was split has still a copy
/// of what went to the other one.
pub(super) fn flip(dir: &Path, bodies: &[u64]) {
    let path = dir.join("queue.db");
    let mut bytes = fs::read(&path).unwrap();
    for number in bodies {
        let needle = [&number.to_le_bytes()[..], b"xxxxxxxx"].concat();
        let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&needle)).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| bytes[at + 10] ^= 4);
    }
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn what_is_not_salvaged_is_declared_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(two_that_are_told(dir.path()));
    rig.append_all((0..200).map(|number| numbered(number, 100))).await;
    rig.stop().await;
    flip(dir.path(), &[3, 77, 78, 190]);
    behead(dir.path());
    let mut rig = Rig::start(two_that_are_told(dir.path()));
    salvaged(&rig, dir.path()).await;
    assert_eq!(losses(&rig)["quarantined"], 4);
    let rows = rig.drain("cloud").await;
    let expected: Vec<u64> = (0..200).filter(|number| ![3, 77, 78, 190].contains(number)).collect();
    assert_eq!(numbers(&rows), expected);
    let gap = rows.iter().find(|row| row.message.origin == Origin::Gateway).unwrap();
    let Body::Bytes(body) = &gap.message.body else { panic!("not bytes") };
    let told: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!((&told["count"], &told["reason"]), (&4.into(), &"quarantined".into()));
    rig.stop().await;
}

#[tokio::test]
async fn after_a_crash_a_log_that_lost_its_head_gives_its_messages_back() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(two_that_are_told(dir.path()));
    rig.append_all((0..500).map(|number| numbered(number, 100))).await;
    let cut = copy_dir(dir.path());
    rig.stop().await;
    // The database itself has hardly anything yet: all is in the log.
    let file = fs::File::options().write(true).open(cut.path().join("queue.db")).unwrap();
    file.write_all_at(&[0x5a; 4096], 0).unwrap();
    sqlite_must_refuse(cut.path());
    let mut rig = Rig::start(two_that_are_told(cut.path()));
    salvaged(&rig, cut.path()).await;
    assert_eq!(numbers(&rig.drain("cloud").await), (0..500).collect::<Vec<_>>());
    assert_eq!(losses(&rig)["quarantined"], 0, "whether there were more nobody knows");
    rig.stop().await;
}

/// The log heals a database's head: then there is nothing to salvage, and the test would show nothing. So its first
/// frames are spoilt as well.
fn sqlite_must_refuse(dir: &Path) {
    let file = fs::File::options().write(true).open(dir.join("queue.db-wal")).unwrap();
    file.write_all_at(&[0x5a; 24], 0).unwrap();
}

/// Opens the books of a store that is to be salvaged, and does so many jobs of it.
pub(super) fn salvage_some(dir: &Path, jobs: u64) -> (books::Books, bool) {
    let mut books = opening::open_books(&settings(dir), &mut Past::default()).unwrap();
    for _ in 0..jobs {
        if !books.is_salvage_due() {
            break;
        }
        books.salvage_step().unwrap();
        if books.is_changed() {
            books.commit().unwrap();
        }
    }
    let is_due = books.is_salvage_due();
    (books, is_due)
}

#[test]
fn a_salvage_that_a_crash_interrupts_anywhere_goes_on_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opening::open_books(&settings(dir.path()), &mut Past::default()).unwrap();
    for number in 0..1500 {
        books.append(submission(numbered(number, 150))).unwrap().unwrap();
    }
    let retained = Message { retain: true, ..message("state/door", b"open, shut") };
    books.append(submission(retained)).unwrap().unwrap();
    books.commit().unwrap();
    books.close().unwrap();
    behead(dir.path());
    let mut crashed = copy_dir(dir.path());
    let mut crashes = 0;
    loop {
        let (books, is_due) = salvage_some(crashed.path(), 5 + crashes % 5);
        // What a power cut leaves.
        let next = copy_dir(crashed.path());
        copy_quarantine(crashed.path(), next.path());
        drop(books);
        crashed = next;
        if !is_due {
            break;
        }
        crashes += 1;
        assert!(crashes < 100);
    }
    assert!(crashes > 3, "{crashes}");
    let mut books = opening::open_books(&settings(crashed.path()), &mut Past::default()).unwrap();
    let mut found = Vec::new();
    let mut place = 0;
    loop {
        let fetched = books.next(0, place, 256, 1 << 20).unwrap();
        if fetched.rows.is_empty() {
            break;
        }
        place = fetched.place;
        found.extend(fetched.rows);
    }
    let sent: Vec<_> = found.iter().filter(|row| !row.message.retain).map(|row| number_of(&row.message)).collect();
    assert_eq!(sent, (0..1500).collect::<Vec<_>>());
    assert_eq!(books.retained.0, 1);
    let names: HashSet<_> = found.iter().map(|row| row.id.clone()).collect();
    assert_eq!(names.len(), found.len());
    assert_eq!(books.losses.get(&LossReason::Quarantined), None);
}

pub(super) fn copy_quarantine(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("quarantine")).unwrap();
    for entry in fs::read_dir(from.join("quarantine")).into_iter().flatten() {
        let entry = entry.unwrap();
        let place = to.join("quarantine").join(entry.file_name());
        fs::create_dir_all(&place).unwrap();
        for file in fs::read_dir(entry.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), place.join(file.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_crash_between_the_move_and_the_new_store_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(settings(dir.path()));
    rig.append_all((0..50).map(|number| numbered(number, 100))).await;
    rig.stop().await;
    behead(dir.path());
    let (books, _) = salvage_some(dir.path(), 0);
    drop(books);
    // The new store has not come to its first commit.
    for name in ["queue.db", "queue.db-wal"] {
        // The log goes with the last connection.
        drop(fs::remove_file(dir.path().join(name)));
    }
    let mut rig = Rig::start(settings(dir.path()));
    salvaged(&rig, dir.path()).await;
    assert_eq!(numbers(&rig.drain("cloud").await), (0..50).collect::<Vec<_>>());
    rig.stop().await;
}

#[tokio::test]
async fn numbers_of_devices_counters_and_retained_messages_do_not_begin_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = small(dir.path(), WhenFull::DropNewest);
    settings.streams = vec![stream("cloud", vec![rule("plant/#", "{topic}"), rule("field/#", "{topic}")])];
    let rig = Rig::start(settings.clone());
    for _ in 0..7 {
        rig.append(reading("chiller", 1.0)).await;
    }
    rig.append(Message { retain: true, ..message("state/door", b"open") }).await;
    let change = Change::Settle { sequence: stored(&rig.append(numbered(1, 20)).await), verdict: rejected() };
    let mut rig = rig;
    rig.outlet("cloud").commit(vec![change]).await.unwrap();
    rig.append_all((0..4000).map(|number| numbered(number, 200))).await;
    let before = losses(&rig);
    assert!(before["dropped-newest"] > 100 && before["rejected"] == 1, "{before:?}");
    rig.drain("cloud").await;
    rig.stop().await;
    behead(dir.path());

    let rig = Rig::start(settings);
    assert_eq!(rig.append(reading("chiller", 2.0)).await.reading_seq, 8);
    salvaged(&rig, dir.path()).await;
    assert_eq!(losses(&rig), before);
    let found = rig.inlet.retained(&Filter::new("state/#").unwrap(), 9).await.unwrap().messages;
    assert_eq!(found.len(), 1);
    assert_eq!(rig.inlet.stats().await.unwrap().dead_letters, 1);
    rig.stop().await;
}

fn rejected() -> Verdict {
    Verdict::Rejected { reason: "0x99 payload format invalid".to_owned() }
}

fn reading(device: &str, value: f64) -> Message {
    let stamp = Clock::new(ClockSource::Trusted).now();
    let reading = Reading {
        device: Arc::from(device),
        point: Arc::from("t"),
        value: Value::Float(value),
        unit: None,
        quality: Quality::Good,
        reason: None,
        seq: 0,
        stamp,
    };
    Message { body: Body::Reading(reading), origin: Origin::Field, ..message("field/chiller/t", b"") }
}

/// Eight messages at QoS 2: the first two in flight, the next two released, one more delivered.
async fn in_flight(dir: &Path) -> Vec<Queued> {
    let mut rig = Rig::start(settings(dir));
    rig.append_all((0..8).map(|number| Message { qos: Qos::ExactlyOnce, ..numbered(number, 60) })).await;
    let outlet = rig.outlet("cloud");
    outlet.restore().await.unwrap();
    let rows = outlet.next(100, 1 << 20).await.unwrap();
    let admit = |place: usize| Change::Admit {
        packet_id: u16::try_from(place).unwrap() + 40,
        rows: vec![rows[place].sequence],
        order: place as u64 + 1,
        encoding: rows[place].encoding.clone(),
    };
    let mut changes = vec![Change::SessionKey(4711)];
    changes.extend((0..5).map(admit));
    outlet.commit(changes).await.unwrap();
    outlet.commit((42..45).map(|packet_id| Change::Release { packet_id }).collect()).await.unwrap();
    outlet.commit(vec![delivered(rows[4].sequence), Change::Forget { packet_id: 44 }]).await.unwrap();
    rig.stop().await;
    rows
}

#[tokio::test]
async fn a_qos_2_session_goes_on_with_the_same_packet_ids_so_that_nothing_arrives_twice() {
    let dir = tempfile::tempdir().unwrap();
    let before = in_flight(dir.path()).await;
    behead(dir.path());
    let mut rig = Rig::start(settings(dir.path()));
    let restored = rig.outlet("cloud").restore().await.unwrap();
    assert_eq!(restored.session_key, Some(4711));
    let seen: Vec<_> =
        restored.in_flight.iter().map(|entry| (entry.packet_id, entry.released, numbers(&entry.rows))).collect();
    assert_eq!(seen, [(40, false, vec![0]), (41, false, vec![1]), (42, true, vec![]), (43, true, vec![])]);
    assert_eq!(restored.in_flight[0].rows[0].id, before[0].id);
    assert_eq!(restored.in_flight[0].rows[0].encoding, before[0].encoding);
    salvaged(&rig, dir.path()).await;
    // What is released is the cloud's; what is in flight is not handed out besides.
    let next = rig.outlet("cloud").next(100, 1 << 20).await.unwrap();
    assert_eq!(numbers(&next), [5, 6, 7]);
    assert_eq!(losses(&rig).get("quarantined"), None);
    rig.stop().await;
}

#[tokio::test]
async fn a_qos_2_message_in_flight_that_cannot_be_read_ends_the_session_and_the_doubt_is_told() {
    let dir = tempfile::tempdir().unwrap();
    in_flight(dir.path()).await;
    flip(dir.path(), &[0]);
    behead(dir.path());
    let mut rig = Rig::start(settings(dir.path()));
    let restored = rig.outlet("cloud").restore().await.unwrap();
    assert_eq!((restored.session_key, restored.in_flight.len()), (None, 0), "it begins anew, without old packet ids");
    salvaged(&rig, dir.path()).await;
    assert_eq!(numbers(&rig.drain("cloud").await), [1, 5, 6, 7]);
    assert_eq!(losses(&rig)["quarantined"], 1);
    let problems = rig.health.snapshot(Stamp::default()).problems;
    assert!(problems.last().unwrap().text.contains("1 were under way at QoS 2 and may arrive twice"), "{problems:?}");
    rig.stop().await;
}

/// A store that fails while it runs, after a client has published at QoS 2; as it is opened again.
fn failed_while_open(dir: &Path, spoil: impl FnOnce(&Path)) -> books::Books {
    let mut books = opening::open_books(&settings(dir), &mut Past::default()).unwrap();
    let once = Some(Once::Packet { session: SessionNumber(900), packet_id: 77 });
    books.append(Submission { message: numbered(1, 20), once }).unwrap().unwrap();
    books.commit().unwrap();
    let books::Books { identity, store, .. } = books;
    drop(store);
    spoil(dir);
    let damage = Some("a page is damaged".to_owned());
    let mut past = Past { identity: Some(identity), was_open: true, damage, ..Past::default() };
    opening::open_books(&settings(dir), &mut past).unwrap()
}

#[test]
fn what_a_local_client_repeats_at_qos_2_is_known_after_a_salvage_or_the_doubt_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let books = failed_while_open(dir.path(), |_| {});
    assert!(books.store.is_received(900, 77).unwrap());

    // Of an earlier commit it would make the next message that bears the id a repeat.
    let dir = tempfile::tempdir().unwrap();
    let books = failed_while_open(dir.path(), |dir| {
        let end = log_bytes(dir);
        let file = fs::File::options().write(true).open(dir.join("queue.db-wal")).unwrap();
        file.write_all_at(&[0; 512], end - 512).unwrap();
    });
    assert!(!books.store.is_received(900, 77).unwrap());
    let problems = books.settings.health.snapshot(Stamp::default()).problems;
    assert!(problems.iter().any(|problem| problem.text.contains("may be taken twice")), "{problems:?}");
}

#[test]
fn no_job_of_a_salvage_reads_much_more_than_its_share_however_long_the_rows_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opening::open_books(&settings(dir.path()), &mut Past::default()).unwrap();
    for number in 0..12 {
        books.append(submission(numbered(number, 200_000))).unwrap().unwrap();
        let topic = format!("state/{number}");
        books.append(submission(Message { retain: true, ..message(&topic, &[7; 200_000]) })).unwrap().unwrap();
    }
    books.commit().unwrap();
    books.close().unwrap();
    behead(dir.path());
    let mut books = opening::open_books(&settings(dir.path()), &mut Past::default()).unwrap();
    let (mut jobs, mut most) = (0, 0);
    while books.is_salvage_due() {
        let before = (books.rows, books.retained.0);
        books.salvage_step().unwrap();
        most = most.max(books.rows - before.0).max(books.retained.0 - before.1);
        if books.is_changed() {
            books.commit().unwrap();
        }
        jobs += 1;
        assert!(jobs < 10_000);
    }
    assert_eq!((books.rows, books.retained.0, most), (24, 12, 1), "one of them is a job");
}

#[tokio::test]
async fn where_the_spans_are_lost_what_was_settled_at_the_last_stop_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.append_all((0..100).map(|number| numbered(number, 60))).await;
    rig.drain("cloud").await;
    rig.append_all((100..120).map(|number| numbered(number, 60))).await;
    rig.stop().await;
    let root: u32 = rusqlite::Connection::open(dir.path().join("queue.db"))
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'delivery'", (), |row| row.get(0))
        .unwrap();
    let file = fs::File::options().write(true).open(dir.path().join("queue.db")).unwrap();
    file.write_all_at(&[0xff; 1024], u64::from(root - 1) * 1024).unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    salvaged(&rig, dir.path()).await;
    assert_eq!(numbers(&rig.drain("cloud").await), (100..120).collect::<Vec<_>>());
    assert_eq!(losses(&rig).get("quarantined"), None, "20 waited, and 20 are there");
    rig.stop().await;
}

#[tokio::test]
async fn a_store_without_room_salvages_as_it_drains_and_nothing_has_to_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = small(dir.path(), WhenFull::DropOldest);
    let rig = Rig::start(settings.clone());
    rig.append_all((0..1500).map(|number| numbered(number, 200))).await;
    rig.stop().await;
    behead(dir.path());
    settings.bytes_max = NonZeroU64::new(256 * 1024).unwrap();
    let mut rig = Rig::start(settings);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !rig.health.snapshot(Stamp::default()).salvage.is_some_and(|salvage| salvage.waits_for_room) {
        rig.inlet.stats().await.unwrap();
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.append(numbered(9000, 20)).await;
    let mut found = HashSet::new();
    while found.len() < 1501 {
        let rows = rig.drain("cloud").await;
        found.extend(numbers(&rows));
        assert!(tokio::time::Instant::now() < deadline, "{}", found.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    salvaged(&rig, dir.path()).await;
    assert_eq!(losses(&rig).values().sum::<u64>(), 0, "{:?}", losses(&rig));
    rig.stop().await;
}

/// Breaks stores one after the other, each with messages of its own, before any of them is salvaged. `before` has the
/// place of the last one.
fn broken_in_a_row(dir: &Path, counts: &[u64], before: impl Fn(usize, &Path)) -> crate::queue::books::Books {
    let mut books = opening::open_books(&two_that_are_told(dir), &mut Past::default()).unwrap();
    for (round, count) in counts.iter().enumerate() {
        for number in 0..*count {
            books.append(submission(numbered(number, 50))).unwrap().unwrap();
        }
        books.commit().unwrap();
        books.close().unwrap();
        before(round, dir);
        behead(dir);
        books = opening::open_books(&two_that_are_told(dir), &mut Past::default()).unwrap();
    }
    books
}

fn quarantines(dir: &Path) -> Vec<u64> {
    crate::queue::salvage::numbered(&dir.join("quarantine")).into_iter().map(|(number, _)| number).collect()
}

/// Makes a quarantine look as large as all that the disk has free.
fn swell(dir: &Path, number: u64) {
    let (_, place) = crate::queue::salvage::numbered(&dir.join("quarantine"))
        .into_iter()
        .find(|(other, _)| *other == number)
        .unwrap();
    let disk = rustix::fs::statvfs(dir).unwrap();
    fs::File::create(place.join("ballast")).unwrap().set_len(disk.f_bavail * disk.f_frsize).unwrap();
}

#[test]
fn damaged_stores_that_wait_for_their_salvage_stay_however_many_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = broken_in_a_row(dir.path(), &[1, 2, 4, 8, 16, 32], |_, _| {});
    assert_eq!(quarantines(dir.path()), [1, 2, 3, 4, 5, 6]);
    while books.is_salvage_due() {
        books.salvage_step().unwrap();
        books.commit().unwrap();
    }
    assert_eq!(books.streams[0].waiting, 63);
    assert_eq!(books.losses.get(&LossReason::Quarantined), None, "nothing is lost");
    // Now they are there for a look only.
    books.close().unwrap();
    behead(dir.path());
    opening::open_books(&two_that_are_told(dir.path()), &mut Past::default()).unwrap();
    assert_eq!(quarantines(dir.path()), [5, 6, 7]);
}

#[test]
fn a_damaged_store_that_goes_before_it_is_salvaged_is_declared_lost_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = broken_in_a_row(dir.path(), &[5, 20, 3, 4], |round, dir| {
        if round == 3 {
            swell(dir, 1);
        }
    });
    assert_eq!(quarantines(dir.path()), [2, 3, 4], "the oldest had to go");
    assert_eq!(books.losses[&LossReason::Quarantined], 5);
    let gap = &books.streams[0].gaps[&LossReason::Quarantined];
    assert_eq!(gap.count, Some(5));
    let problems = books.settings.health.snapshot(Stamp::default()).problems;
    let told = problems.iter().filter(|problem| problem.text.contains("lost 5 messages")).count();
    assert_eq!(told, 1, "{problems:?}");
    while books.is_salvage_due() {
        books.salvage_step().unwrap();
        books.commit().unwrap();
    }
    assert_eq!(books.losses[&LossReason::Quarantined], 5, "the others gave all they had");
}

#[test]
fn where_nobody_knows_how_far_its_salvage_was_the_loss_is_declared_without_a_number() {
    let dir = tempfile::tempdir().unwrap();
    let books = broken_in_a_row(dir.path(), &[5, 20, 3, 4], |round, dir| {
        if round == 3 {
            swell(dir, 1);
            fs::write(dir.join("queue.db"), [0x5a; 65536]).unwrap();
        }
    });
    assert_eq!(quarantines(dir.path()), [2, 3, 4]);
    assert_eq!(books.losses[&LossReason::Quarantined], 0, "the reason is there, and counts nothing");
    assert_eq!(books.streams[0].gaps[&LossReason::Quarantined].count, None);
    let problems = books.settings.health.snapshot(Stamp::default()).problems;
    assert!(problems.iter().any(|problem| problem.text.contains("lost an unknown number of messages")), "{problems:?}");
}
