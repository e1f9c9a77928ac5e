//! Segments: their tables are used again, they do not hold up space, and nothing is lost at their edges.

use super::*;
use books::Books;

fn books_of(dir: &Path, bytes_max: u64, when_full: WhenFull) -> Books {
    let bytes_max = NonZeroU64::new(bytes_max).unwrap();
    let settings = QueueSettings { bytes_max, when_full, ..settings(dir) };
    opening::open_books(&settings, &mut Past::default()).unwrap()
}

fn take(books: &mut Books, number: u64) -> Option<u64> {
    match books.append(submission(numbered(number, 200))).unwrap() {
        Ok(appended) => Some(stored(&appended).0),
        Err(error) => {
            assert_eq!(error, AppendError::Full);
            None
        }
    }
}

/// All that waits for the first stream: places and numbers.
fn waiting(books: &mut Books, index: usize) -> Vec<(u64, u64)> {
    let (mut found, mut place) = (Vec::new(), 0);
    loop {
        let fetched = books.next(index, place, 1024, 1 << 20).unwrap();
        if fetched.rows.is_empty() {
            return found;
        }
        place = fetched.place;
        found.extend(fetched.rows.iter().map(|row| (row.sequence.0, number_of(&row.message))));
    }
}

fn settle(books: &mut Books, index: usize, places: impl IntoIterator<Item = u64>) {
    let changes = places.into_iter().map(|place| delivered(Sequence(place))).collect();
    books.change(index, changes).unwrap();
    books.commit().unwrap();
}

#[test]
fn tables_are_used_again_over_restarts_and_kills_and_nothing_is_lost_at_the_edges() {
    const ROUND: u64 = 700;
    let mut dir = tempfile::tempdir().unwrap();
    let mut books = books_of(dir.path(), 2 * MIB, WhenFull::Refuse);
    let mut number = 0;
    for round in 0..14 {
        for _ in 0..ROUND {
            take(&mut books, number).unwrap();
            number += 1;
        }
        books.commit().unwrap();
        let found = waiting(&mut books, 0);
        let numbers: Vec<u64> = found.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers, (number - found.len() as u64..number).collect::<Vec<_>>(), "round {round}");
        // As many go as come, so that the backlog stays and moves on; some out of order, as clouds acknowledge.
        let gone = if round < 3 { 0 } else { ROUND };
        let mut places: Vec<u64> = found.iter().take(gone as usize).map(|(place, _)| *place).collect();
        places.chunks_mut(3).for_each(<[u64]>::reverse);
        places.chunks(50).for_each(|some| settle(&mut books, 0, some.iter().copied()));
        let segments = books.store.segments().newest_first().count();
        assert!((4..=8).contains(&segments) || round < 3, "{segments} segments in round {round}");
        assert!(books.store.segments().tables() <= 8, "{} tables", books.store.segments().tables());
        match round % 3 {
            0 => {}
            1 => {
                books.close().unwrap();
                books = books_of(dir.path(), 2 * MIB, WhenFull::Refuse);
            }
            _ => {
                let killed = copy_dir(dir.path());
                drop(books);
                dir = killed;
                books = books_of(dir.path(), 2 * MIB, WhenFull::Refuse);
            }
        }
    }
    let rest = waiting(&mut books, 0);
    assert_eq!(rest.len() as u64, 3 * ROUND);
    settle(&mut books, 0, rest.into_iter().map(|(place, _)| place));
    books.close().unwrap();
    assert_eq!(rows_on_disk(dir.path()), 0, "what a kill left was found by the sweep or went with its segment");
}

#[test]
fn a_slow_stream_that_wants_little_of_each_segment_holds_no_space_of_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = small(dir.path(), WhenFull::Refuse);
    settings.bytes_max = NonZeroU64::new(2 * MIB).unwrap();
    settings.streams.push(stream("slow", vec![rule("seldom", "{topic}")]));
    let mut books = opening::open_books(&settings, &mut Past::default()).unwrap();
    let mut seldom = Vec::new();
    // More than twice what the store holds.
    for batch in 0..200_u64 {
        for number in batch * 100..(batch + 1) * 100 {
            let mut message = numbered(number, 200);
            if number % 150 == 7 {
                message.topic = Topic::new("seldom").unwrap();
                seldom.push(number);
            }
            let appended = books.append(submission(message)).unwrap();
            assert!(appended.is_ok(), "message {number} found no room");
        }
        books.commit().unwrap();
        let places: Vec<u64> = waiting(&mut books, 0).into_iter().map(|(place, _)| place).collect();
        settle(&mut books, 0, places);
        let stats = books.stats().unwrap();
        assert!(stats.bytes <= stats.bytes_max, "{stats:?}");
        assert_eq!(stats.messages, seldom.len() as u64);
        let removable_max = 4096.max(2 * books.store.segments().places_max());
        assert!(books.removable.count() <= removable_max + 100, "{} rows wait", books.removable.count());
    }
    assert_eq!(waiting(&mut books, 1).iter().map(|(_, number)| *number).collect::<Vec<_>>(), seldom);
    assert!(books.store.segments().tables() <= 64);
}

#[test]
fn q4_a_full_store_takes_as_much_again_as_was_settled_though_no_segment_is_empty() {
    for when_full in [WhenFull::Refuse, WhenFull::DropNewest] {
        let dir = tempfile::tempdir().unwrap();
        let mut books = books_of(dir.path(), 2 * MIB, when_full);
        let full = |books: &mut Books| {
            let before = books.streams[0].waiting;
            while books
                .append(submission(numbered(0, 200)))
                .unwrap()
                .is_ok_and(|it| matches!(it.fate, Fate::Stored { .. }))
            {}
            books.commit().unwrap();
            let stats = books.stats().unwrap();
            assert!(stats.bytes <= stats.bytes_max, "{stats:?}");
            books.streams[0].waiting - before
        };
        assert!(full(&mut books) > 6000);
        for round in 0..12 {
            // A quarter of a segment.
            let places: Vec<u64> = waiting(&mut books, 0).into_iter().take(120).map(|(place, _)| place).collect();
            settle(&mut books, 0, places);
            assert!(full(&mut books) >= 100, "round {round}");
        }
    }
}

#[test]
fn q1_a_log_that_is_torn_where_segments_begin_and_end_yields_whole_commits_and_no_earlier_one_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = books_of(dir.path(), MIB, WhenFull::Refuse);
    let first_length = log_bytes(dir.path());
    // Which numbers waited after each commit, and how long the log was then.
    let mut commits = Vec::new();
    let mut number = 0;
    for batch in 0..40 {
        if batch % 3 < 2 {
            for _ in 0..130 {
                take(&mut books, number).unwrap();
                number += 1;
            }
            books.commit().unwrap();
        } else {
            let places: Vec<u64> = waiting(&mut books, 0).into_iter().take(200).map(|(place, _)| place).collect();
            settle(&mut books, 0, places);
        }
        let numbers: Vec<u64> = waiting(&mut books, 0).into_iter().map(|(_, number)| number).collect();
        commits.push((numbers, log_bytes(dir.path())));
    }
    assert!(books.store.segments().tables() > 4 && books.store.segments().newest().unwrap().span.first > 2000);
    let whole = copy_dir(dir.path());
    for cut in (first_length..=commits.last().unwrap().1).step_by(9973) {
        let copy = copy_dir(whole.path());
        cut_log(copy.path(), cut);
        let mut books = books_of(copy.path(), MIB, WhenFull::Refuse);
        let found: Vec<u64> = waiting(&mut books, 0).into_iter().map(|(_, number)| number).collect();
        let promised = commits.iter().take_while(|(_, length)| *length <= cut).count();
        let is_whole = commits.iter().skip(promised.saturating_sub(1)).any(|(numbers, _)| *numbers == found);
        assert!(is_whole || (promised == 0 && found.is_empty()), "cut at {cut}: {promised} commits were promised");
        while books.sweep.is_some() {
            books.sweep_step().unwrap();
        }
        books.commit().unwrap();
        assert_eq!(waiting(&mut books, 0).len(), found.len(), "the sweep took what was wanted, cut at {cut}");
    }
}
