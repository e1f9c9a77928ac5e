//! What SQLite would pass over: logs that are gone, cut, foreign or flipped, and pages in each other's place.

use std::os::unix::fs::FileExt as _;

use super::salvage::salvaged;
use super::*;

const FRAME: u64 = 1048;

fn log(dir: &Path) -> PathBuf {
    dir.join("queue.db-wal")
}

/// A store with 200 messages as a power cut leaves it.
async fn cut_store() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(two_that_are_told(dir.path()));
    for group in 0..20_u64 {
        rig.append_all((0..10).map(|number| numbered(group * 10 + number, 100))).await;
    }
    let cut = copy_dir(dir.path());
    rig.stop().await;
    cut
}

/// Starts on it, takes all there is, and says what was lost: `None` for a number that nobody knows.
async fn opened(dir: &Path) -> (BTreeSet<u64>, Option<Option<u64>>) {
    let mut rig = Rig::start(two_that_are_told(dir));
    salvaged(&rig, dir).await;
    let rows = rig.drain("cloud").await;
    let found = rows.iter().filter(|row| row.message.origin != Origin::Gateway);
    let found = found.map(|row| number_of(&row.message)).collect();
    let problems = rig.health.snapshot(Stamp::default()).problems;
    let is_unknown = problems.iter().any(|problem| problem.text.contains("lost an unknown number"));
    let counted = losses(&rig).get("quarantined").copied();
    assert!(!is_unknown || problems.iter().any(|problem| problem.text.contains("look at the disk")), "{problems:?}");
    rig.stop().await;
    (found, counted.map(|count| (!is_unknown).then_some(count)))
}

fn all() -> BTreeSet<u64> {
    (0..200).collect()
}

#[tokio::test]
async fn a_log_that_is_gone_empty_cut_or_anothers_is_declared_and_not_taken_for_the_end() {
    let other = cut_store().await;
    type Spoil = Box<dyn Fn(&Path)>;
    let length = |dir: &Path, length| fs::File::options().write(true).open(log(dir)).unwrap().set_len(length).unwrap();
    let cases: Vec<(&str, Spoil)> = vec![
        ("gone", Box::new(|dir| fs::remove_file(log(dir)).unwrap())),
        ("empty", Box::new(move |dir| length(dir, 0))),
        ("of its head only", Box::new(move |dir| length(dir, 32))),
        ("cut at a commit's end", Box::new(move |dir| length(dir, log_bytes(dir) - 3 * FRAME))),
        ("cut in its unused part", Box::new(move |dir| length(dir, log_bytes(dir) + 7777))),
        ("another store's", Box::new(move |dir| assert!(fs::copy(log(other.path()), log(dir)).unwrap() > 0))),
        (
            "wiped at its head",
            Box::new(|dir| {
                fs::File::options().write(true).open(log(dir)).unwrap().write_all_at(&[0; 512], 0).unwrap();
            }),
        ),
    ];
    for (what, spoil) in cases {
        let dir = cut_store().await;
        spoil(dir.path());
        let (_, lost) = opened(dir.path()).await;
        assert_eq!(lost, Some(None), "a log that is {what}");
        assert_eq!(fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 1, "a log that is {what}");
    }
}

#[tokio::test]
async fn any_bit_that_flips_in_the_last_commit_is_found_and_the_rest_is_salvaged() {
    let original = cut_store().await;
    let (all_bytes, end) = (fs::read(log(original.path())).unwrap(), log_bytes(original.path()));
    // Each field of the last frame's head but the size, and places all over its page and the one before.
    let last = end - FRAME;
    let places = [0, 3, 5, 9, 15, 17, 23, 24, 100, 777, 1047].map(|at| last + at);
    for (round, at) in places.into_iter().chain([last - 500]).enumerate() {
        let dir = copy_dir(original.path());
        let mut bytes = all_bytes.clone();
        bytes[usize::try_from(at).unwrap()] ^= 1 << (round % 8);
        fs::write(log(dir.path()), bytes).unwrap();
        let (found, lost) = opened(dir.path()).await;
        assert_eq!(lost, Some(None), "byte {at} of {end}");
        assert!(found.len() >= 190, "{} of 200 salvaged, byte {at} of {end}", found.len());
    }
}

#[tokio::test]
async fn a_last_commit_that_the_power_tore_is_no_damage() {
    let original = cut_store().await;
    let (end, bytes) = (log_bytes(original.path()), fs::read(log(original.path())).unwrap());
    // The last commit, from its frames: one after the commit before.
    let is_end = |frame: u64| bytes[usize::try_from(32 + frame * FRAME + 4).unwrap()..][..4] != [0; 4];
    let frames = (end - 32) / FRAME;
    let begin = 32 + (0..frames - 1).rev().find(|frame| is_end(*frame)).unwrap() * FRAME + FRAME;
    let sectors: Vec<u64> = (begin.div_ceil(512)..=end / 512).collect();
    for mask in 1..(1_u64 << sectors.len()).min(400) {
        let dir = copy_dir(original.path());
        let mut torn = bytes.clone();
        for (index, sector) in sectors.iter().enumerate() {
            if mask.rotate_left(u32::try_from(mask % 7).unwrap()) >> (index % 64) & 1 == 1 {
                let from = usize::try_from(sector * 512).unwrap();
                torn[from..from + 512].fill(0);
            }
        }
        fs::write(log(dir.path()), torn).unwrap();
        let found = crate::queue::files::look(dir.path(), true, false).unwrap();
        assert_eq!(found.fault, None, "mask {mask:b}");
    }
    let dir = copy_dir(original.path());
    cut_log(dir.path(), begin + 700);
    let (found, lost) = opened(dir.path()).await;
    assert_eq!(lost, None, "nothing is alarming about it");
    assert!(found.len() >= 190);
}

#[tokio::test]
async fn an_orderly_stop_and_a_start_in_which_nothing_came_leave_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let rig = Rig::start(settings(dir.path()));
        let cut = copy_dir(dir.path());
        rig.append(numbered(round, 20)).await;
        let later = copy_dir(dir.path());
        rig.stop().await;
        assert!(!log(dir.path()).exists());
        for (copy, count) in [(cut, round), (later, round + 1)] {
            let mut rig = Rig::start(settings(copy.path()));
            assert_eq!(rig.drain("cloud").await.len() as u64, count);
            assert!(!copy.path().join("quarantine").exists());
            rig.stop().await;
        }
    }
}

#[tokio::test]
async fn anothers_log_beside_a_store_that_was_closed_in_order_costs_nothing() {
    let other = cut_store().await;
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(two_that_are_told(dir.path()));
    rig.append_all((0..50).map(|number| numbered(number, 100))).await;
    rig.stop().await;
    fs::copy(log(other.path()), log(dir.path())).unwrap();
    assert_eq!(opened(dir.path()).await, ((0..50).collect(), None));
}

#[tokio::test]
async fn a_log_that_the_closing_could_not_cut_is_the_stores_own() {
    for (change, is_own) in [("value = value", true), ("value = value + 1", false)] {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(two_that_are_told(dir.path()));
        rig.append_all((0..50).map(|number| numbered(number, 100))).await;
        rig.stop().await;
        let closed = copy_dir(dir.path());
        // The power goes after the database has all of the log, or before that: then it is not what the closing wrote.
        let connection = rusqlite::Connection::open(dir.path().join("queue.db")).unwrap();
        connection.execute(&format!("UPDATE meta SET {change} WHERE key = 'sequence'"), ()).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(())).unwrap();
        let left = copy_dir(dir.path());
        drop(connection);
        if !is_own {
            fs::copy(closed.path().join("queue.db"), left.path().join("queue.db")).unwrap();
        }
        assert_eq!(opened(left.path()).await, ((0..50).collect(), None));
        assert_eq!(left.path().join("quarantine").exists(), !is_own, "{change}");
    }
}

#[tokio::test]
async fn a_flipped_version_in_the_head_is_damage_and_not_a_read_only_disk() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(two_that_are_told(dir.path()));
    rig.append_all((0..50).map(|number| numbered(number, 100))).await;
    rig.stop().await;
    let file = fs::File::options().write(true).open(dir.path().join("queue.db")).unwrap();
    file.write_all_at(&[0x42], 18).unwrap();
    assert_eq!(opened(dir.path()).await, ((0..50).collect(), None));
}

#[tokio::test]
async fn a_store_whose_making_ended_before_its_first_commit_is_made_and_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let made = rusqlite::Connection::open(dir.path().join("queue.db")).unwrap();
    made.execute_batch("PRAGMA page_size = 1024; PRAGMA journal_mode = WAL").unwrap();
    drop(made);
    fs::write(log(dir.path()), [0; 32]).unwrap();
    assert_eq!(opened(dir.path()).await, (BTreeSet::new(), None));
    assert!(!dir.path().join("quarantine").exists());
}

#[tokio::test]
async fn a_store_that_is_gone_with_its_log_is_declared() {
    let dir = cut_store().await;
    fs::remove_file(dir.path().join("queue.db")).unwrap();
    fs::remove_file(log(dir.path())).unwrap();
    let (found, lost) = opened(dir.path()).await;
    assert_eq!((found.len(), lost), (0, Some(None)));
}

/// Swaps two pages where they were written last.
fn swap(dir: &Path, one: u32, two: u32) {
    let mut log_file = fs::read(log(dir)).unwrap();
    // All into the database: there is no checksum that would tell.
    let connection = rusqlite::Connection::open(dir.join("queue.db")).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(())).unwrap();
    let mut database = fs::read(dir.join("queue.db")).unwrap();
    drop(connection);
    let place = |page: u32| usize::try_from(page - 1).unwrap() * 1024;
    let page = database[place(one)..][..1024].to_vec();
    database.copy_within(place(two)..place(two) + 1024, place(one));
    database[place(two)..][..1024].copy_from_slice(&page);
    fs::write(dir.join("queue.db"), database).unwrap();
    // The log as one that was put into the database and begins anew: a new salt, and no frame of its own.
    let salt = u32::from_be_bytes(log_file[16..20].try_into().unwrap()) + 1;
    log_file[16..20].copy_from_slice(&salt.to_be_bytes());
    log_file[20..24].iter_mut().for_each(|byte| *byte ^= 0x5a);
    let sum = crate::queue::pages::head_sum(&log_file[..24]);
    log_file[24..28].copy_from_slice(&sum.0.to_be_bytes());
    log_file[28..32].copy_from_slice(&sum.1.to_be_bytes());
    fs::write(log(dir), log_file).unwrap();
}

fn root_of(dir: &Path, table: &str) -> u32 {
    let copy = copy_dir(dir);
    let connection = rusqlite::Connection::open(copy.path().join("queue.db")).unwrap();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?";
    connection.query_row(sql, [table], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn pages_in_each_others_place_are_found_after_a_crash() {
    let original = cut_store().await;
    let root = |table: &str| root_of(original.path(), table);
    // The control: the way in which it is done is none.
    let dir = copy_dir(original.path());
    swap(dir.path(), root("rx"), root("rx"));
    assert_eq!(opened(dir.path()).await, (all(), None));

    for (one, two) in [("delivery", "rx"), ("delivery", "batch_row"), ("delivery", "gap"), ("stream", "rule")] {
        let dir = copy_dir(original.path());
        swap(dir.path(), root(one), root(two));
        let (found, _) = opened(dir.path()).await;
        assert_eq!(found, all(), "{one} and {two}");
        assert_eq!(fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 1, "{one} and {two}");
    }
    // Two leaves of messages, the last and an earlier one: the end seems to be elsewhere.
    let dir = copy_dir(original.path());
    swap(dir.path(), page_of(original.path(), 200), page_of(original.path(), 90));
    let (found, lost) = opened(dir.path()).await;
    assert_eq!((found, lost), (all(), Some(None)), "where it ended nobody knows for sure");
    assert_eq!(fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 1);
}

/// The page that has a message.
fn page_of(dir: &Path, sequence: u64) -> u32 {
    let copy = copy_dir(dir);
    swap(copy.path(), 1, 1);
    let pages = crate::queue::pages::Pages::open(copy.path(), false);
    let leaf = (0..pages.units()).rev().find(|unit| pages.carve(*unit).iter().any(|(found, _)| *found == sequence));
    leaf.unwrap() + 1
}
