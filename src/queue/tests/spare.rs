//! Sparing the flash: nobody is answered before the cloud or the disk has the message, and the disk is not touched
//! while the cloud answers.

use super::*;
use books::Books;
use tokio::sync::oneshot;

const HOLD: Duration = Duration::from_secs(1);

fn sparing(dir: &Path) -> QueueSettings {
    QueueSettings { hold: Some(HOLD), ..settings(dir) }
}

fn opened(dir: &Path) -> Books {
    opening::open_books(&sparing(dir), &mut Past::default()).unwrap()
}

type Answer = oneshot::Receiver<Result<Appended, AppendError>>;

/// As the worker does it: held, or written with the next commit. The answer of what is written is given at once.
fn offer(books: &mut Books, submission: Submission) -> (Answer, bool) {
    let (reply, answer) = oneshot::channel();
    match books.hold(submission, reply).unwrap() {
        None => (answer, true),
        Some((submission, reply)) => {
            let appended = books.append(submission).unwrap();
            books.commit().unwrap();
            reply.send(appended).unwrap();
            (answer, false)
        }
    }
}

fn waiting(books: &mut Books) -> Vec<(u64, u64)> {
    let (mut found, mut place) = (Vec::new(), 0);
    loop {
        let fetched = books.next(0, place, 3, 1 << 20).unwrap();
        if fetched.rows.is_empty() {
            return found;
        }
        place = fetched.place;
        found.extend(fetched.rows.iter().map(|row| (row.sequence.0, number_of(&row.message))));
    }
}

fn settle(books: &mut Books, places: impl IntoIterator<Item = u64>) {
    books.change(0, places.into_iter().map(|place| delivered(Sequence(place))).collect()).unwrap();
}

fn in_the_future(books: &Books) -> u64 {
    books.settings.clock.now().mono_ms + 2 * u64::try_from(HOLD.as_millis()).unwrap()
}

#[test]
fn while_the_cloud_answers_the_disk_is_not_touched_and_the_sender_hears_of_the_cloud() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opened(dir.path());
    books.set_live(0, true).unwrap();
    let before = fs::read(dir.path().join("queue.db-wal")).unwrap();
    for number in 0..1000 {
        let (mut answer, is_held) = offer(&mut books, submission(numbered(number, 200)));
        assert!(is_held);
        assert!(answer.try_recv().is_err(), "nobody has it yet");
        let found = waiting(&mut books);
        assert_eq!(found.len(), 1);
        settle(&mut books, [found[0].0]);
        assert_eq!(stored(&answer.try_recv().unwrap().unwrap()).0, found[0].0);
        assert!(!books.store.is_writing());
    }
    assert!(fs::read(dir.path().join("queue.db-wal")).unwrap() == before);
    assert!(waiting(&mut books).is_empty());
}

#[test]
fn what_the_cloud_does_not_acknowledge_in_time_is_written_and_then_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opened(dir.path());
    books.set_live(0, true).unwrap();
    let (mut answer, _) = offer(&mut books, submission(numbered(1, 200)));
    let now_ms = books.settings.clock.now().mono_ms;
    books.write_due(now_ms).unwrap();
    assert!(!books.store.is_writing(), "not before its time");
    let later = in_the_future(&books);
    books.write_due(later).unwrap();
    assert!(answer.try_recv().is_err(), "not before the commit");
    books.commit().unwrap();
    let sequence = stored(&answer.try_recv().unwrap().unwrap()).0;
    let copy = copy_dir(dir.path());
    let mut after = opened(copy.path());
    assert_eq!(waiting(&mut after), [(sequence, 1)]);
    // The cloud's late acknowledgement settles the row on disk.
    settle(&mut books, [sequence]);
    books.commit().unwrap();
    assert!(waiting(&mut books).is_empty());
}

#[test]
fn without_a_connection_all_is_written_first_and_what_was_held_is_written_when_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opened(dir.path());
    assert!(!offer(&mut books, submission(numbered(1, 200))).1, "no cloud has been there yet");
    books.set_live(0, true).unwrap();
    assert!(!offer(&mut books, submission(numbered(2, 200))).1, "a backlog waits before it");
    assert_eq!(waiting(&mut books).len(), 2);
    let (mut answer, is_held) = offer(&mut books, submission(numbered(3, 200)));
    assert!(is_held, "all that waits is on its way");
    books.set_live(0, false).unwrap();
    books.commit().unwrap();
    assert!(answer.try_recv().unwrap().is_ok());
    assert!(!offer(&mut books, submission(numbered(4, 200))).1);
    assert_eq!(waiting(&mut books).iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn only_what_one_stream_wants_at_qos_1_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let two = vec![stream("cloud", vec![rule("#", "up/{topic}")]), stream("other", vec![rule("both", "{topic}")])];
    let settings = QueueSettings { streams: two, ..sparing(dir.path()) };
    let mut books = opening::open_books(&settings, &mut Past::default()).unwrap();
    for index in 0..2 {
        books.set_live(index, true).unwrap();
    }
    let mut is_held = |submission| offer(&mut books, submission).1;
    let plain = message("one", b"x");
    assert!(!is_held(submission(message("both", b"x"))), "two streams want it");
    assert!(!is_held(submission(Message { qos: Qos::ExactlyOnce, ..plain.clone() })), "it leaves at QoS 2");
    assert!(!is_held(submission(Message { retain: true, ..plain.clone() })), "it is retained");
    let once = Some(Once::Packet { session: SessionNumber(1), packet_id: 1 });
    assert!(!is_held(Submission { message: plain.clone(), once }), "it came at QoS 2");
    books.next(0, 0, 100, 1 << 20).unwrap();
    assert!(offer(&mut books, submission(plain)).1);
}

#[test]
fn what_is_held_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opened(dir.path());
    books.set_live(0, true).unwrap();
    let mut answers = Vec::new();
    for number in 0..100 {
        let (answer, is_held) = offer(&mut books, submission(numbered(number, 50_000)));
        answers.push(answer);
        if !is_held {
            break;
        }
    }
    assert!((10..30).contains(&answers.len()), "{}", answers.len());
    assert!(answers.iter_mut().all(|answer| answer.try_recv().unwrap().is_ok()), "all went to the disk");
    assert_eq!(waiting(&mut books).len(), answers.len());
}

#[test]
fn a_reading_is_answered_at_once_and_no_number_is_given_twice_over_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opened(dir.path());
    books.set_live(0, true).unwrap();
    let seqs = |books: &mut Books, count: usize| -> Vec<u64> {
        (0..count)
            .map(|_| {
                let (mut answer, _) = offer(books, submission(reading("chiller")));
                if books.store.is_writing() {
                    books.commit().unwrap();
                }
                answer.try_recv().unwrap().unwrap().reading_seq
            })
            .collect()
    };
    let before = seqs(&mut books, 10);
    assert_eq!(before, (1..=10).collect::<Vec<_>>());
    let places: Vec<u64> = books.next(0, 0, 100, 1 << 20).unwrap().rows.iter().map(|row| row.sequence.0).collect();
    settle(&mut books, places);
    let after_cut = copy_dir(dir.path());
    let mut cut = opened(after_cut.path());
    cut.set_live(0, true).unwrap();
    assert!(seqs(&mut cut, 1)[0] > 10);
    // In order, there is no hole.
    books.close().unwrap();
    let mut again = opened(dir.path());
    again.set_live(0, true).unwrap();
    assert_eq!(seqs(&mut again, 2), [11, 12]);
}

#[test]
fn a_reading_stays_when_the_commit_fails_that_was_to_write_it_and_is_not_there_twice_if_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let mut books = opened(dir.path());
    books.set_live(0, true).unwrap();
    // The first of a device is written: it brings its name into the ledger.
    offer(&mut books, submission(reading("chiller")));
    let places: Vec<u64> = books.next(0, 0, 100, 1 << 20).unwrap().rows.iter().map(|row| row.sequence.0).collect();
    settle(&mut books, places);
    let (_, is_held) = offer(&mut books, submission(reading("chiller")));
    books.commit().unwrap();
    let (mut waits, _) = offer(&mut books, submission(numbered(1, 20)));
    assert!(is_held);
    let first = books.held.first().unwrap();
    books.write_held(u64::MAX).unwrap();
    let failure = AppendError::Failed { reason: "test".to_owned() };
    let kept = std::mem::take(&mut books.held).failed(&failure);
    assert_eq!(waits.try_recv().unwrap(), Err(failure), "who waits keeps the message");
    let cloud: Arc<str> = Arc::from("cloud");
    assert_eq!((kept.first(), kept.count_of(&cloud)), (Some(first), 1), "the reading stays");
    assert_eq!(kept.beyond(first).count_of(&cloud), 0, "it is on disk");
}

#[tokio::test]
async fn the_worker_writes_in_time_by_itself_and_at_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(QueueSettings { hold: Some(Duration::from_millis(200)), ..settings(dir.path()) });
    rig.outlet("cloud").set_live(true).await.unwrap();
    // Nobody takes it: the hold ends.
    let appended = tokio::time::timeout(DEADLINE, rig.append(numbered(1, 50))).await.unwrap();
    let on_disk = copy_dir(dir.path());
    assert_eq!(waiting(&mut opened(on_disk.path())), [(stored(&appended).0, 1)]);
    let pending = rig.inlet.begin_append(submission(numbered(2, 50))).await.unwrap();
    rig.stop().await;
    pending.outcome().await.unwrap();
    assert_eq!(numbers_in(dir.path()), [1, 2]);
}

// A model: what was answered is with the cloud or on disk, whatever happens.

#[derive(Debug, Clone)]
enum Step {
    Offer { count: u8, is_once: bool },
    Settle(Vec<prop::sample::Index>),
    Commit,
    Due,
    Live(bool),
    Crash,
    Stop,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_u8..12, prop::bool::weighted(0.1)).prop_map(|(count, is_once)| Step::Offer { count, is_once }),
        4 => prop::collection::vec(any::<prop::sample::Index>(), 1..12).prop_map(Step::Settle),
        2 => Just(Step::Commit),
        1 => Just(Step::Due),
        2 => prop::bool::weighted(0.7).prop_map(Step::Live),
        1 => Just(Step::Crash),
        1 => Just(Step::Stop),
    ];
    prop::collection::vec(step, 1..40)
}

struct World {
    dir: TempDir,
    books: Books,
    /// Not settled, in order.
    unsettled: VecDeque<u64>,
    unanswered: BTreeMap<u64, Answer>,
    number: u64,
    packet_id: u16,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Offer { count, is_once } => {
                for _ in 0..count {
                    self.number += 1;
                    self.packet_id += 1;
                    let once = is_once.then_some(Once::Packet { session: SessionNumber(1), packet_id: self.packet_id });
                    let submission = Submission { message: numbered(self.number, 100), once };
                    let (answer, _) = offer(&mut self.books, submission);
                    self.unsettled.push_back(self.number);
                    self.unanswered.insert(self.number, answer);
                }
            }
            Step::Settle(picks) => {
                let mut there = waiting(&mut self.books);
                let mut places = Vec::new();
                for pick in picks {
                    if !there.is_empty() {
                        let (place, number) = there.remove(pick.index(there.len()));
                        places.push(place);
                        self.unsettled.retain(|other| *other != number);
                    }
                }
                settle(&mut self.books, places);
                if self.books.is_changed() {
                    self.books.commit().unwrap();
                }
            }
            Step::Commit => self.books.commit().unwrap(),
            Step::Due => {
                let later = in_the_future(&self.books);
                self.books.write_due(later).unwrap();
                self.books.commit().unwrap();
            }
            Step::Live(is_live) => {
                self.books.set_live(0, is_live).unwrap();
                self.books.commit().unwrap();
            }
            Step::Crash => {
                let crashed = copy_dir(self.dir.path());
                self.take_answers();
                self.books = opened(crashed.path());
                self.dir = crashed;
                let unanswered = std::mem::take(&mut self.unanswered);
                self.unsettled.retain(|number| !unanswered.contains_key(number));
            }
            Step::Stop => {
                let fresh = tempfile::tempdir().unwrap();
                std::mem::replace(&mut self.books, opened(fresh.path())).close().unwrap();
                self.books = opened(self.dir.path());
                self.take_answers();
                assert!(self.unanswered.is_empty(), "the stop answers everybody");
            }
        }
        self.take_answers();
        let found: Vec<u64> = waiting(&mut self.books).into_iter().map(|(_, number)| number).collect();
        assert_eq!(found, self.unsettled.iter().copied().collect::<Vec<_>>());
        let stream = &self.books.streams[0];
        assert_eq!(stream.waiting + self.books.held.count_of(&stream.name), found.len() as u64);
        assert_eq!(self.books.rows, stream.waiting);
    }

    fn take_answers(&mut self) {
        self.unanswered.retain(|_, answer| match answer.try_recv() {
            Ok(answer) => {
                answer.unwrap();
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => panic!("a sender was left without an answer"),
        });
        // Who is settled has heard so.
        assert!(self.unanswered.keys().all(|number| self.unsettled.contains(number)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_was_answered_is_with_the_cloud_or_on_disk_whatever_happens(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let books = opened(dir.path());
        let (unsettled, unanswered) = (VecDeque::new(), BTreeMap::new());
        let mut world = World { dir, books, unsettled, unanswered, number: 0, packet_id: 0 };
        for step in steps {
            world.step(step);
        }
    }
}
