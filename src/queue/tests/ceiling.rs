//! What must not break the ceiling, nor hold up the one thread while it is kept.

use super::*;

/// Large enough that a quarter of it is more than the reserve.
fn middling(dir: &Path, when_full: WhenFull) -> QueueSettings {
    let bytes_max = NonZeroU64::new(8 * MIB).unwrap();
    let mut settings = QueueSettings { bytes_max, when_full, ..settings(dir) };
    settings.streams = vec![stream("cloud", vec![rule("plant/#", "up/{topic}")])];
    settings
}

#[tokio::test]
async fn q4_retained_messages_never_fail_a_full_store() {
    for when_full in [WhenFull::Refuse, WhenFull::DropNewest, WhenFull::DropOldest] {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(middling(dir.path(), when_full));
        let retain = |number: u8, body: &[u8]| Message { retain: true, ..message(&format!("local/{number}"), body) };
        rig.append(retain(0, &[1; 100])).await;
        rig.append_all((0..100).map(|number| numbered(number, 100_000))).await;
        for outcome in rig.append_all((1..=40).map(|number| retain(number, &[7; 50_000]))).await {
            assert!(matches!(outcome.unwrap().fate, Fate::Stored { streams: 0, .. }));
        }
        // What takes no more room than before is replaced all the same.
        rig.append(retain(0, &[2; 100])).await;
        let found = rig.inlet.retained(&Filter::new("local/0").unwrap(), 1).await.unwrap().messages;
        assert_eq!(found[0].body, Body::Bytes(Bytes::from_static(&[2; 100])));
        let stats = rig.inlet.stats().await.unwrap();
        assert!(stats.bytes <= stats.bytes_max, "{when_full:?}: {stats:?}");
        let losses = rig.health.snapshot(Stamp::default()).losses;
        let not_kept = 41 - stats.retained;
        if when_full == WhenFull::DropOldest {
            assert_eq!(not_kept, 0, "the oldest messages gave way");
        } else {
            assert!(not_kept > 30 && losses["dropped-newest"] >= not_kept, "{when_full:?}: {stats:?}");
        }
        rig.stop().await;
    }
}

#[tokio::test]
async fn q4_a_full_store_of_messages_that_the_cloud_refuses_drains_without_a_failure() {
    for is_wanted_twice in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = middling(dir.path(), WhenFull::Refuse);
        // An eighth of it, which dead letters may take, is more than the reserve.
        settings.bytes_max = NonZeroU64::new(24 * MIB).unwrap();
        if is_wanted_twice {
            // Then the originals stay while the dead letters come.
            settings.streams.push(stream("other", vec![rule("plant/#", "{topic}")]));
        }
        let mut rig = Rig::start(settings);
        let outcomes = rig.append_all((0..150).map(|number| numbered(number, 200_000))).await;
        let stored = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
        assert!((100..150).contains(&stored), "{stored}");
        let outlet = rig.outlet("cloud");
        let mut sequences = Vec::new();
        while sequences.len() as u64 != stored {
            let rows = tokio::time::timeout(DEADLINE, outlet.next(100, 1 << 20)).await.unwrap().unwrap();
            sequences.extend(rows.iter().map(|row| row.sequence));
        }
        // Many in one transaction, as a window of refusals comes.
        for window in sequences.chunks(20) {
            let refuse = |sequence: &Sequence| Change::Settle {
                sequence: *sequence,
                verdict: Verdict::Rejected { reason: "0x95 packet too large".to_owned() },
            };
            outlet.commit(window.iter().map(refuse).collect()).await.unwrap();
        }
        let stats = rig.inlet.stats().await.unwrap();
        let losses = rig.health.snapshot(Stamp::default()).losses;
        let dropped = losses.get("dead-letter-dropped").copied().unwrap_or(0);
        assert_eq!((losses["rejected"], stats.dead_letters + dropped), (stored, stored));
        assert_eq!(stats.streams["cloud"].waiting, 0);
        assert!(stats.dead_letters >= 2, "{stats:?}");
        rig.stop().await;
    }
}

/// Books full to the soft ceiling: at first `kept` messages that may not go, then messages of `topic`.
fn protected(dir: &Path, kept: u64, topic: &str) -> books::Books {
    let mut settings = small(dir, WhenFull::DropOldest);
    let keep = ForwardRule { when_full: Some(WhenFull::DropNewest), ..rule("keep", "{topic}") };
    settings.streams = vec![stream("cloud", vec![keep, rule("#", "{topic}")])];
    let mut books = opening::open_books(&settings, &mut opening::Past::default()).unwrap();
    for _ in 0..kept {
        books.append(submission(message("keep", &[0; 150]))).unwrap().unwrap();
    }
    while books.losses.is_empty() && books.turn_losses.is_empty() {
        books.append(submission(message(topic, &[0; 150]))).unwrap().unwrap();
    }
    books.commit().unwrap();
    books
}

#[test]
fn q4_the_search_for_what_may_go_is_bounded_for_each_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = protected(dir.path(), 0, "keep");
    let kept = books.streams[0].waiting;
    for _ in 0..10 {
        for _ in 0..100 {
            books.append(submission(message("go", &[0; 150]))).unwrap().unwrap();
            assert!(books.evict_looked <= books::EVICT_LOOK_MAX + 64, "{}", books.evict_looked);
        }
        books.commit().unwrap();
    }
    assert!(kept > 1500 && books.streams[0].waiting == kept, "{kept}");
}

#[test]
fn q4_what_may_go_is_found_behind_much_that_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = protected(dir.path(), 1600, "go");
    // After a restart, say: the search begins at the front.
    (books.evict_from, books.evict_taken) = (0, false);
    let mut attempts = 0;
    loop {
        let appended = books.append(submission(message("go", &[0; 20_000]))).unwrap().unwrap();
        books.commit().unwrap();
        attempts += 1;
        if matches!(appended.fate, Fate::Stored { .. }) {
            break;
        }
        assert!(attempts < 10, "{:?}", appended.fate);
    }
    assert!(books.losses[&LossReason::DroppedOldest] > 50);
}
