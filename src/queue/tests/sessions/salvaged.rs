//! Sessions of local clients whose store is damaged: they go on, or their clients hear that they do not.

use super::*;
use crate::queue::tests::salvage::{behead, copy_quarantine, flip, salvage_some, salvaged};

/// Two sessions: `one` has a message at QoS 2 that it has not answered (id 7), one that is released (id 9) and one that
/// waits; `two` has what is at QoS 1. The client of `one` has an id of its own under way.
async fn with_sessions(dir: &Path) -> Rig {
    let rig = Rig::start(settings(dir));
    let (one, mut outlet) = rig.subscribed("one", "plant/#", Qos::ExactlyOnce).await;
    rig.subscribed("two", "plant/+/3/sensor", Qos::AtLeastOnce).await;
    let exact = |number| at("plant/press/3/sensor", Qos::ExactlyOnce, number, 60);
    for number in 0..3 {
        rig.append(exact(number)).await;
    }
    let sent = outlet.fetch((0, 0), vec![7, 9], 2, 1 << 20).await.unwrap();
    assert_eq!(numbers(&sent), [0, 1]);
    outlet.settle(vec![Settling::Received { packet_id: 9 }]).await.unwrap();
    let once = Some(Once::Packet { session: one.number, packet_id: 77 });
    let message = at("elsewhere", Qos::ExactlyOnce, 90, 20);
    rig.inlet.append(Submission { message, once }).await.unwrap();
    rig
}

fn ids(kept: &Kept) -> Vec<(u16, Option<u64>)> {
    let number = |flight: &crate::queue::sessions::Flight| {
        (flight.packet_id, flight.parcel.as_ref().map(|parcel| number_of(&parcel.message)))
    };
    kept.flights.iter().map(number).collect()
}

#[tokio::test]
async fn sessions_go_on_after_a_salvage_with_all_that_waits_and_their_packet_ids() {
    for is_cut in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let rig = with_sessions(dir.path()).await;
        let cut = copy_dir(dir.path());
        rig.stop().await;
        let dir = if is_cut { cut } else { dir };
        if is_cut {
            // The log heals the head: it is put into the database first, as it is at every checkpoint.
            let connection = rusqlite::Connection::open(dir.path().join("queue.db")).unwrap();
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(())).unwrap();
            connection.execute("DELETE FROM meta WHERE key = 'log'", ()).unwrap();
        }
        behead(dir.path());
        let rig = Rig::start(settings(dir.path()));
        // Who comes before the salvage is through finds his session, and what is published now is for him as well.
        let one = rig.enter("one").await;
        rig.append(at("plant/press/3/sensor", Qos::AtLeastOnce, 50, 20)).await;
        salvaged(&rig, dir.path()).await;
        assert!(one.is_present, "{one:?}");
        assert_eq!(ids(&one), [(7, Some(0)), (9, None)]);
        assert_eq!((one.received.as_slice(), one.subscriptions.len()), (&[77][..], 1));
        let mut outlet = rig.inlet.session_outlet(one.number);
        let waiting = fetched(&mut outlet, (0, 0), 100).await;
        assert_eq!(numbers(&waiting).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([2, 50]));
        let two = rig.enter("two").await;
        let mut outlet = rig.inlet.session_outlet(two.number);
        let waiting = fetched(&mut outlet, (0, 0), 100).await;
        assert_eq!(numbers(&waiting).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([0, 1, 2, 50]));
        let repeated = Submission {
            message: message("elsewhere", b"x"),
            once: Some(Once::Packet { session: one.number, packet_id: 77 }),
        };
        assert_eq!(rig.inlet.append(repeated).await.unwrap().fate, Fate::Duplicate);
        assert_eq!(losses(&rig).get("quarantined"), None, "nothing was lost");
        let problems = rig.health.snapshot(Stamp::default()).problems;
        assert!(problems.last().unwrap().text.contains("; 2 sessions of local clients go on"), "{problems:?}");
        rig.stop().await;
        // It is all in the new store.
        let rig = Rig::start(settings(dir.path()));
        let one = rig.enter("one").await;
        assert_eq!((one.is_present, ids(&one).len(), one.received.as_slice()), (true, 3, &[77][..]));
        rig.stop().await;
    }
}

#[tokio::test]
async fn what_a_session_loses_with_its_store_is_counted_and_its_packet_id_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    with_sessions(dir.path()).await.stop().await;
    flip(dir.path(), &[0]);
    behead(dir.path());
    let rig = Rig::start(settings(dir.path()));
    salvaged(&rig, dir.path()).await;
    // For `one`, `two` and the cloud.
    assert_eq!(losses(&rig)["quarantined"], 3);
    let one = rig.enter("one").await;
    assert_eq!(ids(&one), [(7, None), (9, None)], "PUBREL is next: the client forgets it");
    rig.stop().await;
}

#[tokio::test]
async fn sessions_that_cannot_be_read_begin_anew_and_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    with_sessions(dir.path()).await.stop().await;
    let root: u32 = rusqlite::Connection::open(dir.path().join("queue.db"))
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'session_flight'", (), |row| row.get(0))
        .unwrap();
    let file = fs::File::options().write(true).open(dir.path().join("queue.db")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 1024], u64::from(root - 1) * 1024).unwrap();
    behead(dir.path());
    let mut rig = Rig::start(settings(dir.path()));
    salvaged(&rig, dir.path()).await;
    let one = rig.enter("one").await;
    assert!(!one.is_present && one.flights.is_empty(), "{one:?}");
    assert_eq!(rig.drain("cloud").await.len(), 4, "what is for the cloud does not depend on it");
    assert_eq!(losses(&rig)["quarantined"], 5, "two waited for the one, three for the other");
    let problems = rig.health.snapshot(Stamp::default()).problems;
    let text = &problems.last().unwrap().text;
    assert!(text.contains("lost 5;") && text.contains("sessions of local clients are not readable"), "{text}");
    rig.stop().await;
}

#[test]
fn a_crash_in_the_middle_of_the_salvage_doubles_nothing_for_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let rig = Rig::start(settings(dir.path()));
        rig.subscribed("one", "plant/#", Qos::AtLeastOnce).await;
        rig.append_all((0..1500).map(|number| numbered(number, 150))).await;
        rig.stop().await;
    });
    behead(dir.path());
    let (mut crashed, mut crashes) = (copy_dir(dir.path()), 0);
    loop {
        let (books, is_due) = salvage_some(crashed.path(), 5 + crashes % 5);
        let next = copy_dir(crashed.path());
        copy_quarantine(crashed.path(), next.path());
        drop(books);
        crashed = next;
        if !is_due {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 3, "{crashes}");
    runtime.block_on(async {
        let rig = Rig::start(settings(crashed.path()));
        let one = rig.enter("one").await;
        let mut outlet = rig.inlet.session_outlet(one.number);
        let (mut found, mut place) = (Vec::new(), (0, 0));
        loop {
            let parcels = fetched(&mut outlet, place, 256).await;
            place = parcels.place;
            found.extend(numbers(&parcels));
            if !parcels.is_more {
                break;
            }
        }
        assert_eq!(found, (0..1500).collect::<Vec<_>>());
        rig.stop().await;
    });
}
