//! Bits that flip in rows that lie for long, and states that a person has to know of.

use std::os::unix::fs::FileExt as _;

use super::*;

/// Where the database has the bodies of these messages, not counting copies that a split of a page has left.
fn places(dir: &Path) -> BTreeSet<(u64, u64)> {
    let bytes = fs::read(dir.join("queue.db")).unwrap();
    let mut found = BTreeSet::new();
    for page in 0..bytes.len() / 1024 {
        let page_bytes = &bytes[page * 1024..(page + 1) * 1024];
        if page_bytes[0] != 0x0d {
            continue;
        }
        let count = usize::from(u16::from_be_bytes([page_bytes[3], page_bytes[4]]));
        for cell in 0..count {
            let pointer = usize::from(u16::from_be_bytes([page_bytes[8 + 2 * cell], page_bytes[9 + 2 * cell]]));
            let rest = &page_bytes[pointer..];
            if let Some(at) = rest.windows(8).take(120).position(|window| window == b"xxxxxxxx")
                && at >= 8
            {
                let number = u64::from_le_bytes(rest[at - 8..at].try_into().unwrap());
                // Once: a cell of another table may have this one behind it.
                found.insert((number, (page * 1024 + pointer + at) as u64));
            }
        }
    }
    found
}

/// Flips one bit in each of these rows.
fn flip(dir: &Path, is_victim: impl Fn(u64) -> bool) -> BTreeSet<u64> {
    let file = fs::File::options().read(true).write(true).open(dir.join("queue.db")).unwrap();
    let mut flipped = BTreeSet::new();
    for (number, at) in places(dir).into_iter().filter(|(number, _)| is_victim(*number)) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << (number % 8)], at).unwrap();
        flipped.insert(number);
    }
    flipped
}

async fn scrubbed(rig: &Rig, damaged: u64) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while losses(rig).get("damaged").copied().unwrap_or(0) < damaged {
        assert!(tokio::time::Instant::now() < deadline, "{:?} of {damaged}", losses(rig));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn r9_a_flipped_bit_in_each_of_a_thousand_rows_is_found_and_none_of_them_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(two_that_are_told(dir.path()));
    rig.append_all((0..2000).map(|number| numbered(number, 100))).await;
    rig.stop().await;
    let flipped = flip(dir.path(), |number| number % 2 == 1);
    assert_eq!(flipped.len(), 1000);
    let mut rig = Rig::start(two_that_are_told(dir.path()));
    let rows = rig.drain("cloud").await;
    let sent: BTreeSet<u64> =
        rows.iter().filter(|row| row.message.origin != Origin::Gateway).map(|row| number_of(&row.message)).collect();
    assert_eq!(sent, (0..2000).filter(|number| number % 2 == 0).collect(), "the neighbours go on");
    assert_eq!(losses(&rig)["damaged"], 1000);
    rig.stop().await;
}

#[tokio::test]
async fn the_scrub_finds_rot_while_nobody_asks_and_tells_it_as_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(two_that_are_told(dir.path()));
    rig.append_all((0..900).map(|number| numbered(number, 100))).await;
    rig.append(Message { retain: true, ..message("only/kept", b"kept, and not rotten") }).await;
    rig.stop().await;
    let flipped = flip(dir.path(), |number| number % 300 == 299);
    assert_eq!(flipped.len(), 3);
    // Only the age of the oldest message is looked at meanwhile: nobody takes a message, nobody appends one.
    let mut rig = Rig::start(two_that_are_told(dir.path()));
    scrubbed(&rig, 3).await;
    assert_eq!(rig.waiting("cloud").await, 898);
    let gap = rig.all("cloud").await.into_iter().find(|row| row.message.origin == Origin::Gateway).unwrap();
    let Body::Bytes(body) = &gap.message.body else { panic!("not bytes") };
    let told: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!((&told["count"], &told["reason"]), (&3.into(), &"damaged".into()));
    assert_eq!(rig.inlet.stats().await.unwrap().retained, 1);
    rig.stop().await;
}

#[test]
fn the_scrub_reads_at_most_a_mebibyte_a_second_and_rests_for_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opening::open_books(&settings(dir.path()), &mut Past::default()).unwrap();
    for number in 0..20 {
        books.append(submission(numbered(number, 200_000))).unwrap().unwrap();
    }
    books.commit().unwrap();
    let mut now_ms = 1_000_000;
    let mut steps = 0;
    while books.scrub.passes == 0 {
        assert_eq!(books.scrub_due_ms(now_ms), 0);
        books.scrub_step(now_ms).unwrap();
        steps += 1;
        now_ms += books.scrub_due_ms(now_ms);
    }
    // 4 MB in steps of 256 KiB and at least one row, and one step for each kind of the rest.
    assert!((14..30).contains(&steps), "{steps}");
    assert!(now_ms > 1_000_000 + 24 * 3600 * 1000, "{now_ms}");
}

#[tokio::test]
async fn three_failures_in_a_row_raise_an_alarm_that_goes_when_messages_are_taken_again() {
    let Some(disk) = SmallDisk::new() else { return };
    let rig = Rig::start(settings(&disk.state()));
    rig.append(numbered(0, 200)).await;
    rig.stop().await;
    disk.set_writable(false);
    let rig = Rig::start(settings(&disk.state()));
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !rig.health.is_raised(crate::health::Alarm::StoreFails) {
        assert!(rig.inlet.append(submission(numbered(1, 200))).await.is_err());
        assert!(tokio::time::Instant::now() < deadline, "no alarm");
    }
    disk.set_writable(true);
    append_until_taken(&rig, 9000).await;
    // The answer comes a moment before.
    while rig.health.is_raised(crate::health::Alarm::StoreFails) {
        assert!(tokio::time::Instant::now() < deadline, "the alarm stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.stop().await;
    let rig = Rig::start(settings(&disk.state()));
    let status = rig.health.snapshot(Stamp::default());
    assert!(status.problems.iter().any(|problem| problem.text.contains("failed 3 times in a row")), "{status:?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_store_that_fills_warns_once_and_the_warning_goes_when_it_has_drained() {
    use crate::health::Alarm::StoreFills;
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(small(dir.path(), WhenFull::DropNewest));
    let mut number = 0;
    let raised_at = loop {
        rig.append(numbered(number, 1000)).await;
        number += 1;
        let status = rig.health.snapshot(Stamp::default());
        let (bytes, bytes_max) = (status.queue.bytes, status.queue.max_bytes);
        if rig.health.is_raised(StoreFills) {
            assert!(bytes * 10 >= bytes_max * 8, "{bytes} of {bytes_max}");
            let alarm = &status.alarms["store-fills"];
            assert!(alarm.text.starts_with("the store is filled to 8"), "{alarm:?}");
            break bytes;
        }
        assert!(bytes * 10 < bytes_max * 8 + 10 * 4096, "{bytes} of {bytes_max} and no alarm");
    };
    let mut cleared_at = raised_at;
    while rig.health.is_raised(StoreFills) {
        let rows = rig.outlets.get_mut("cloud").unwrap().next(20, 1 << 20).await.unwrap();
        let changes = rows.iter().map(|row| delivered(row.sequence)).collect();
        rig.outlets.get_mut("cloud").unwrap().commit(changes).await.unwrap();
        cleared_at = rig.inlet.stats().await.unwrap().bytes;
        if rows.is_empty() {
            break;
        }
    }
    assert!(cleared_at * 10 < 512 * 1024 * 7, "it is not taken back and raised again around one bound: {cleared_at}");
    rig.stop().await;
}

#[tokio::test]
async fn how_the_program_ended_is_known_after_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let last_stop = |rig: &Rig| rig.health.snapshot(Stamp::default()).last_stop;
    let rig = Rig::start(settings(dir.path()));
    assert_eq!(last_stop(&rig), None);
    rig.append(numbered(1, 20)).await;
    let cut = copy_dir(dir.path());
    rig.stop().await;
    let rig = Rig::start(settings(dir.path()));
    assert_eq!(last_stop(&rig).unwrap(), "in order, as it was told to");
    rig.inlet.declare_stop("because of a failure: the router".to_owned()).await.unwrap();
    rig.stop().await;
    let rig = Rig::start(settings(dir.path()));
    assert_eq!(last_stop(&rig).unwrap(), "because of a failure: the router");
    rig.stop().await;
    let rig = Rig::start(settings(cut.path()));
    assert!(last_stop(&rig).unwrap().contains("a crash, a kill or a power cut"));
    rig.stop().await;
}
