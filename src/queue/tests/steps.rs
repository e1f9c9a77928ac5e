//! Stores of older and of newer programs: what may be opened is drained, what may not is kept as it is.

use super::*;

/// The store as a later program would leave it, with `oldest_program` that may still open it.
fn make_newer(dir: &Path, oldest_program: u64) {
    sql(dir, "CREATE TABLE novelty(id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT");
    sql(dir, "INSERT INTO novelty VALUES (1, 'of tomorrow')");
    for (table, column) in [
        ("message_0", "lane INTEGER"),
        ("inflight", "novelty TEXT NOT NULL DEFAULT 'x'"),
        ("delivery", "novelty INTEGER"),
        ("stream", "novelty INTEGER NOT NULL DEFAULT 0"),
        ("start", "novelty INTEGER"),
        ("gap", "novelty INTEGER"),
        ("meta", "novelty INTEGER"),
    ] {
        sql(dir, &format!("ALTER TABLE {table} ADD COLUMN {column}"));
    }
    sql(dir, "UPDATE inflight SET format = 7, timing = 9");
    sql(dir, "PRAGMA user_version = 99");
    sql(dir, &format!("UPDATE meta SET value = {oldest_program} WHERE key = 'oldest_program'"));
}

fn number_in(dir: &Path, query: &str) -> i64 {
    let database = rusqlite::Connection::open(dir.join("queue.db")).unwrap();
    database.query_row(query, (), |row| row.get(0)).unwrap()
}

fn numbers(rows: &[Queued]) -> Vec<u64> {
    rows.iter().map(|row| number_of(&row.message)).collect()
}

/// Ten messages, of which the first is in flight at QoS 2.
async fn ten(dir: &Path) -> Vec<Queued> {
    let mut rig = Rig::start(settings(dir));
    rig.append_all((0..10).map(|number| numbered(number, 30))).await;
    let rows = rig.all("cloud").await;
    let (rows_in, encoding) = (vec![rows[0].sequence], rows[0].encoding.clone());
    let admit = Change::Admit { packet_id: 5, rows: rows_in, order: 1, encoding };
    rig.outlet("cloud").commit(vec![admit]).await.unwrap();
    rig.stop().await;
    rows
}

#[tokio::test]
async fn what_a_newer_program_stored_is_drained_by_an_older_one_that_may_open_it() {
    let dir = tempfile::tempdir().unwrap();
    let before = ten(dir.path()).await;
    make_newer(dir.path(), 1);
    let mut rig = Rig::start(settings(dir.path()));
    let restored = rig.outlet("cloud").restore().await.unwrap();
    assert_eq!((restored.in_flight.len(), restored.in_flight[0].packet_id), (1, 5));
    let row = &restored.in_flight[0].rows[0];
    assert_eq!((&row.id, &row.message), (&before[0].id, &before[0].message));
    let changes = vec![delivered(row.sequence), Change::Forget { packet_id: 5 }];
    rig.outlet("cloud").commit(changes).await.unwrap();
    // It goes on working with it: new messages, packet ids, sessions, losses.
    rig.append_all((10..15).map(|number| numbered(number, 30))).await;
    let next = rig.all("cloud").await;
    let admit =
        Change::Admit { packet_id: 6, rows: vec![next[0].sequence], order: 2, encoding: next[0].encoding.clone() };
    let changes = vec![admit, Change::Release { packet_id: 6 }, Change::Forget { packet_id: 6 }, Change::NewSession];
    rig.outlet("cloud").commit(changes).await.unwrap();
    assert_eq!(numbers(&rig.drain("cloud").await), (1..15).collect::<Vec<_>>());
    rig.stop().await;
    assert_eq!(number_in(dir.path(), "PRAGMA user_version"), 99, "the newer program finds its step");
    assert_eq!(number_in(dir.path(), "SELECT count(*) FROM novelty"), 1, "and its table");
    assert!(!dir.path().join("quarantine").exists());
}

#[tokio::test]
async fn a_store_that_only_a_newer_program_may_open_is_kept_as_it_is_and_taken_back_by_that_program() {
    let dir = tempfile::tempdir().unwrap();
    ten(dir.path()).await;
    make_newer(dir.path(), 99);
    let whole = fs::read(dir.path().join("queue.db")).unwrap();

    let mut rig = Rig::start(settings(dir.path()));
    rig.append_all((20..25).map(|number| numbered(number, 30))).await;
    assert_eq!(numbers(&rig.all("cloud").await), [20, 21, 22, 23, 24]);
    assert_eq!(losses(&rig), BTreeMap::new(), "nothing is lost, and nothing is declared so");
    let shown = rig.health.snapshot(Clock::new(ClockSource::Trusted).now());
    assert!(shown.alarms["store-aside"].text.contains("newer/1"), "{:?}", shown.alarms);
    assert!(shown.problems.iter().any(|problem| problem.text.contains("a newer program wrote the store")));
    rig.stop().await;
    let aside = dir.path().join("newer/1");
    assert_eq!(fs::read(aside.join("queue.db")).unwrap(), whole, "not a byte was touched");
    assert!(!dir.path().join("quarantine").exists());

    // A second start of the older program leaves it there.
    let mut rig = Rig::start(settings(dir.path()));
    assert_eq!(rig.drain("cloud").await.len(), 5);
    rig.append(numbered(25, 30)).await;
    rig.stop().await;
    assert_eq!(fs::read(aside.join("queue.db")).unwrap(), whole);

    // The newer program is played by this one: from here on it may open the store.
    let database = rusqlite::Connection::open(aside.join("queue.db")).unwrap();
    database.execute("UPDATE meta SET value = 1 WHERE key = 'oldest_program'", ()).unwrap();
    database.close().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    assert_eq!(numbers(&rig.drain("cloud").await), [25], "what waits in the present store goes first");
    rig.stop().await;
    assert!(aside.join("queue.db").exists());
    let mut rig = Rig::start(settings(dir.path()));
    let restored = rig.outlet("cloud").restore().await.unwrap();
    assert_eq!(restored.in_flight[0].packet_id, 5);
    rig.outlet("cloud").commit(vec![Change::Forget { packet_id: 5 }]).await.unwrap();
    let appended = rig.append(numbered(26, 30)).await;
    let rows = rig.drain("cloud").await;
    assert_eq!(numbers(&rows), (0..10).chain([26]).collect::<Vec<_>>(), "it is back, with all that waited");
    assert!(stored(&appended) > rows[9].sequence);
    let ids: BTreeSet<String> = rows.iter().map(|row| row.id.to_string()).collect();
    assert_eq!(ids.len(), 11);
    assert!(!aside.exists());
    rig.stop().await;
}

#[tokio::test]
async fn a_store_of_step_1_is_brought_to_todays_step_with_all_that_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let before = ten(dir.path()).await;
    let today = number_in(dir.path(), "PRAGMA user_version");
    for statement in [
        "DROP TABLE ledger; DROP TABLE ledger_source; DROP TABLE ledger_gap; DROP TABLE salvage; DROP TABLE note",
        "DROP TABLE boot",
        "ALTER TABLE inflight DROP COLUMN timing",
        "ALTER TABLE inflight DROP COLUMN error_ms",
        "ALTER TABLE inflight DROP COLUMN after_ms",
        "ALTER TABLE inflight DROP COLUMN before_ms",
        "ALTER TABLE gap DROP COLUMN is_unset",
        "PRAGMA user_version = 1",
    ] {
        sql(dir.path(), statement);
    }
    let mut rig = Rig::start(settings(dir.path()));
    let restored = rig.outlet("cloud").restore().await.unwrap();
    assert_eq!(restored.in_flight[0].rows[0].encoding, before[0].encoding);
    rig.outlet("cloud").commit(vec![Change::Forget { packet_id: 5 }]).await.unwrap();
    assert_eq!(rig.drain("cloud").await.len(), 10);
    rig.stop().await;
    assert_eq!(number_in(dir.path(), "PRAGMA user_version"), today);
}
