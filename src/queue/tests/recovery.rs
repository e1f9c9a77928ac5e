//! What goes on when the store fails or is replaced while the process runs.

use super::*;

/// Writes over the files of a queue that runs. What is in SQLite's page cache of 2 MiB is still believed.
pub(super) fn write_over(dir: &Path) {
    // Both are opened first: the scrub may have the store moved aside as soon as the first one is spoilt.
    let open = |name| fs::File::options().write(true).open(dir.join(name)).unwrap();
    for mut file in ["queue.db", "queue.db-wal"].map(open) {
        let length = file.metadata().unwrap().len();
        std::io::Write::write_all(&mut file, &vec![0xa5; usize::try_from(length).unwrap()]).unwrap();
    }
}

impl Rig {
    /// Fills the store beyond the page cache, spoils it and waits until it has been moved aside.
    pub(super) async fn lose_the_store(&mut self, dir: &Path) {
        self.append_all((0..60).map(|number| numbered(number, 100_000))).await;
        write_over(dir);
        // It fails, unless the scrub has found the damage before.
        drop(self.outlet("cloud").restore().await);
        // That answer comes before the store is opened again; this one comes after.
        self.inlet.stats().await.unwrap();
        assert!(dir.join("quarantine").exists());
    }
}

#[tokio::test]
async fn q1_two_clients_never_share_a_session_number_over_a_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    let cloud = rig.outlet("cloud").restore().await.unwrap().session;
    let early = rig.inlet.open_session().await.unwrap();
    rig.lose_the_store(dir.path()).await;
    let cut = copy_dir(dir.path());
    let late = rig.inlet.open_session().await.unwrap();
    assert!(late > early && late > cloud, "{late:?} after {early:?} and {cloud:?}");
    for session in [late, early, cloud] {
        let once = Some(Once::Packet { session, packet_id: 77 });
        let appended = rig.inlet.append(Submission { message: numbered(1, 20), once }).await.unwrap();
        assert!(matches!(appended.fate, Fate::Stored { .. }), "{session:?}: {:?}", appended.fate);
    }
    rig.stop().await;

    // The uplink went on under the number that it had: what came to it is known after a restart.
    let mut rig = Rig::start(settings(dir.path()));
    assert_eq!(rig.outlet("cloud").restore().await.unwrap().session, cloud);
    let once = Some(Once::Packet { session: cloud, packet_id: 77 });
    let repeat = rig.inlet.append(Submission { message: numbered(1, 20), once }).await.unwrap();
    assert_eq!(repeat.fate, Fate::Duplicate);
    assert!(rig.inlet.open_session().await.unwrap() > late);
    rig.stop().await;

    let rig = Rig::start(settings(cut.path()));
    assert!(rig.inlet.open_session().await.unwrap() > early, "also when the power fails before one is given");
    rig.stop().await;
}

#[tokio::test]
async fn there_is_no_shared_memory_file_neither_at_first_nor_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for start in 0..3 {
        let rig = Rig::start(settings(dir.path()));
        rig.append(numbered(1, 20)).await;
        assert!(!dir.path().join("queue.db-shm").exists(), "start {start}");
        // As a crash leaves it: the log is there when the next start opens the file.
        let cut = copy_dir(dir.path());
        rig.stop().await;
        let rig = Rig::start(settings(cut.path()));
        rig.append(numbered(2, 20)).await;
        assert!(!cut.path().join("queue.db-shm").exists(), "after a crash in start {start}");
        rig.stop().await;
    }
    let connection = rusqlite::Connection::open(dir.path().join("queue.db")).unwrap();
    let page_size: i64 = connection.query_row("PRAGMA page_size", (), |row| row.get(0)).unwrap();
    assert_eq!(page_size.cast_unsigned(), store::PAGE_BYTES);
}

#[tokio::test]
async fn q1_what_is_committed_is_answered_even_if_the_gauges_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    let outcomes = rig.append_all((0..60).map(|number| numbered(number, 100_000))).await;
    let place = |index: usize| delivered(stored(outcomes[index].as_ref().unwrap()));
    let rows = rig.outlet("cloud").next(2, 1 << 20).await.unwrap();
    assert_eq!(rows.len(), 2);
    // What settling needs is in the page cache then.
    rig.outlet("cloud").commit(vec![place(0)]).await.unwrap();
    write_over(dir.path());
    // The age of the message that is the oldest now is on a spoilt page.
    rig.outlet("cloud").commit(vec![place(1)]).await.unwrap();
    // The damage was seen all the same: the next message is not put into a store that is lost.
    rig.append(numbered(99, 20)).await;
    assert_eq!(rig.drain("cloud").await.len(), 1);
    assert!(dir.path().join("quarantine").exists());
    rig.stop().await;
}
