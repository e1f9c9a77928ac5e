//! The stream of writes to field devices: what it wants, that nothing of it gives way unanswered, and what is atomic.

use super::*;
use crate::queue::ledger::Days;

const SET: &str = "field/press/setpoint/set";

fn writing(dir: &Path) -> QueueSettings {
    let mut settings = settings(dir);
    settings.streams.push(StreamSpec::writes());
    settings.set_topics = SetTopics::new(HashSet::from([Topic::new(SET).unwrap()]));
    settings
}

fn write(body: &[u8]) -> Message {
    message(SET, body)
}

fn result(body: &[u8]) -> Message {
    Message { origin: Origin::Gateway, ..message("field/press/setpoint/result", body) }
}

#[tokio::test]
async fn writes_are_what_clients_and_clouds_say_on_set_topics_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = writing(dir.path());
    settings.streams.remove(0);
    let mut rig = Rig::start(settings);
    let said = |origin, qos| Message { origin, qos, ..write(b"1") };
    let cloud = || Origin::Uplink(Arc::from("cloud"));
    for (message, is_wanted) in [
        (write(b"1"), true),
        (said(Origin::Client(Arc::from("c1")), Qos::AtMostOnce), true),
        (said(cloud(), Qos::ExactlyOnce), true),
        (said(Origin::Gateway, Qos::AtLeastOnce), false),
        (said(Origin::Field, Qos::AtLeastOnce), false),
        (message("field/press/other/set", b"1"), false),
        (message("field/press/setpoint", b"1"), false),
    ] {
        let fate = rig.append(message.clone()).await.fate;
        assert_eq!(matches!(fate, Fate::Stored { .. }), is_wanted, "{message:?}");
    }
    assert_eq!(rig.drain(WRITES).await.len(), 3);
    let health = serde_json::to_value(rig.health.snapshot(Stamp::default())).unwrap();
    assert_eq!(health["uplinks"], serde_json::json!({}), "it is no uplink");
    rig.stop().await;
}

#[tokio::test]
async fn a_write_whose_time_is_over_is_handed_out_to_be_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(QueueSettings { age_max: Some(Duration::from_millis(1)), ..writing(dir.path()) });
    let old = Properties { expiry_s: Some(0), ..Properties::default() };
    rig.append(Message { properties: Some(Box::new(old)), ..write(b"1") }).await;
    // Longer than what is too old is looked for.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let rows = rig.all(WRITES).await;
    assert_eq!(rows.len(), 1);
    let now = Clock::new(ClockSource::Trusted).now().mono_ms;
    assert!(rows[0].expires_mono_ms.unwrap() <= now && rows[0].age_ms.unwrap() >= 1000, "{rows:?}");
    rig.stop().await;
}

#[tokio::test]
async fn q4_what_a_cloud_does_not_take_gives_way_to_a_write_and_no_write_gives_way_to_anything() {
    for (when_full, is_taken) in [(WhenFull::DropOldest, true), (WhenFull::Refuse, false)] {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = QueueSettings { when_full, ..writing(dir.path()) };
        settings.bytes_max = NonZeroU64::new(8 * MIB).unwrap();
        settings.streams[0] = stream("cloud", vec![rule("plant/#", "up/{topic}")]);
        let mut rig = Rig::start(settings);
        rig.append(write(b"first")).await;
        rig.append_all((0..200).map(|number| numbered(number, 100_000))).await;
        // Large ones, so that the room that is left beside the uplink's does not do.
        let large = vec![b' '; 90_000];
        let outcomes = rig.append_all((0..8).map(|_| write(&large))).await;
        let refused = outcomes.iter().filter(|outcome| **outcome == Err(AppendError::Full)).count();
        assert_eq!(refused == 0, is_taken, "{when_full:?}: {outcomes:?}");
        let taken = outcomes.len() - refused;
        rig.append_all((0..200).map(|number| numbered(number, 100_000))).await;
        let rows = rig.all(WRITES).await;
        assert_eq!(rows.len(), taken + 1, "{when_full:?}: what was acknowledged is there");
        assert_eq!(rows[0].message.body, Body::Bytes(Bytes::from_static(b"first")));
        rig.stop().await;
    }
}

#[tokio::test]
async fn an_answer_and_the_end_of_its_write_are_one_and_a_begun_write_is_known_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(writing(dir.path()));
    for body in [b"1", b"2"] {
        rig.append(write(body)).await;
    }
    let rows = rig.all(WRITES).await;
    let admit = |row: &Queued, packet_id| {
        let (rows, encoding) = (vec![row.sequence], row.encoding.clone());
        Change::Admit { packet_id, rows, order: 1, encoding }
    };
    let outlet = rig.outlets.get_mut(WRITES).unwrap();
    outlet.commit(vec![admit(&rows[0], 1), admit(&rows[1], 2)]).await.unwrap();
    let before = copy_dir(dir.path());
    let changes = vec![delivered(rows[0].sequence), Change::Forget { packet_id: 1 }];
    let pending = outlet.begin_append_with(changes, vec![result(b"a"), result(b"b")]).await.unwrap();
    for one in pending {
        assert!(matches!(one.outcome().await.unwrap().fate, Fate::Stored { .. }));
    }
    let after = copy_dir(dir.path());
    rig.stop().await;
    for (dir, begun, answers) in [(before, vec![1, 2], 0), (after, vec![2], 2)] {
        let mut rig = Rig::start(writing(dir.path()));
        let restored = rig.outlet(WRITES).restore().await.unwrap();
        assert_eq!(restored.in_flight.iter().map(|one| one.packet_id).collect::<Vec<_>>(), begun);
        assert!(restored.in_flight.iter().all(|one| one.rows.len() == 1 && one.rows[0].age_ms.is_some()));
        // Beside the answers the cloud gets what was asked for: its rule wants everything.
        assert_eq!(rig.drain("cloud").await.len(), 2 + answers);
        rig.stop().await;
    }
}

#[tokio::test]
async fn an_answer_that_finds_no_room_ends_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = QueueSettings { when_full: WhenFull::Refuse, ..writing(dir.path()) };
    settings.bytes_max = NonZeroU64::new(8 * MIB).unwrap();
    let mut rig = Rig::start(settings);
    let row = {
        rig.append(write(b"1")).await;
        rig.all(WRITES).await.remove(0)
    };
    rig.append_all((0..100).map(|number| numbered(number, 100_000))).await;
    let outlet = rig.outlets.get_mut(WRITES).unwrap();
    let large = result(&[b' '; 200_000]);
    let pending = outlet.begin_append_with(vec![delivered(row.sequence)], vec![large, result(b"b")]).await.unwrap();
    for one in pending {
        assert_eq!(one.outcome().await, Err(AppendError::Full));
    }
    assert_eq!(rig.waiting(WRITES).await, 1, "it is answered later");
    rig.stop().await;
}

#[tokio::test]
async fn the_account_of_what_goes_to_clouds_knows_no_writes_also_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(writing(dir.path()));
    rig.append_all((0..5).map(|_| write(b"1"))).await;
    let crashed = copy_dir(dir.path());
    rig.drain(WRITES).await;
    let days = Days { from: -1_000_000, to: 1_000_000 };
    let uplinks = |report: &crate::queue::ledger::Report| {
        report.lines.iter().map(|line| line.uplink.clone()).collect::<BTreeSet<_>>()
    };
    assert_eq!(uplinks(&rig.inlet.ledger(days).await.unwrap()), BTreeSet::from(["cloud".to_owned()]));
    rig.stop().await;
    let rig = Rig::start(writing(crashed.path()));
    assert_eq!(uplinks(&rig.inlet.ledger(days).await.unwrap()), BTreeSet::from(["cloud".to_owned()]));
    rig.stop().await;
}

#[tokio::test]
async fn writes_of_a_damaged_store_are_taken_over_but_none_that_may_have_begun() {
    for has_session in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::start(writing(dir.path()));
        for body in [b"1", b"2", b"3"] {
            rig.append(write(body)).await;
        }
        let rows = rig.all(WRITES).await;
        let outlet = rig.outlets.get_mut(WRITES).unwrap();
        let encoding = rows[1].encoding.clone();
        let mut changes = vec![Change::Admit { packet_id: 7, rows: vec![rows[1].sequence], order: 1, encoding }];
        changes.extend(has_session.then_some(Change::SessionKey(1)));
        outlet.commit(changes).await.unwrap();
        rig.stop().await;
        // The header of the database, so that all of it is moved aside and looked through.
        let path = dir.path().join("queue.db");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..16].fill(0);
        fs::write(&path, bytes).unwrap();
        let mut rig = Rig::start(writing(dir.path()));
        let begun = rig.outlet(WRITES).restore().await.unwrap().in_flight;
        let body = |row: &Queued| match &row.message.body {
            Body::Bytes(body) => String::from_utf8(body.to_vec()).unwrap(),
            Body::Reading(_) => panic!("no reading"),
        };
        let begun: Vec<String> = begun.iter().flat_map(|one| one.rows.iter().map(body)).collect();
        assert_eq!(begun, if has_session { vec!["2"] } else { Vec::new() });
        let found = tokio::time::timeout(DEADLINE, async {
            let mut found = Vec::new();
            while found.last().is_none_or(|last| last != "3") {
                found.extend(rig.outlet(WRITES).next(10, 1 << 20).await.unwrap().iter().map(body));
            }
            found
        });
        assert_eq!(found.await.unwrap(), ["1", "3"], "{has_session}");
        rig.stop().await;
    }
}
