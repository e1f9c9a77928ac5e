//! Sessions of local clients: who they belong to, what they keep over a crash, and what gives way.

use super::*;
use crate::queue::sessions::{
    Entrance, Entry, Kept, Parcel, Parcels, Retained, SessionLimits, SessionOutlet, Settling, Subscribed,
};

mod salvaged;

const HOUR: u32 = 3600;

fn entrance(client: &str) -> Entrance {
    Entrance { user: Arc::from("anna"), client: Arc::from(client), heir_of: None, is_clean: false, expiry_s: HOUR }
}

fn to(filter: &str, qos: Qos) -> Subscribed {
    let filter = Filter::new(filter).unwrap();
    Subscribed { filter, qos, no_local: false, retain_as_published: false, identifier: None }
}

/// A queue that forwards nothing, unless it is told otherwise.
fn local(dir: &Path) -> QueueSettings {
    QueueSettings { streams: Vec::new(), ..settings(dir) }
}

fn at(topic: &str, qos: Qos, number: u64, length: usize) -> Message {
    Message { topic: Topic::new(topic).unwrap(), qos, ..numbered(number, length) }
}

impl Rig {
    async fn enter(&self, client: &str) -> Kept {
        match self.inlet.enter_session(entrance(client)).await.unwrap() {
            Entry::Kept(kept) => kept,
            other => panic!("{client} is {other:?}"),
        }
    }

    async fn subscribed(&self, client: &str, filter: &str, qos: Qos) -> (Kept, SessionOutlet) {
        let kept = self.enter(client).await;
        let asked = vec![(to(filter, qos), Retained::Never)];
        self.inlet.subscribe_session(kept.number, &Arc::from("c"), asked, 100).await.unwrap();
        let outlet = self.inlet.session_outlet(kept.number);
        (kept, outlet)
    }

    /// What waits in all sessions, as `status` says it.
    async fn waits(&self) -> (u64, u64) {
        // Behind all that was asked for.
        self.inlet.stats().await.unwrap();
        let sessions = self.health.snapshot(Stamp::default()).sessions;
        (sessions.waiting, sessions.waiting_bytes)
    }
}

async fn fetched(outlet: &mut SessionOutlet, after: (u64, u32), count: usize) -> Parcels {
    let ids = (1..=200).collect();
    outlet.fetch(after, ids, count, 1 << 20).await.unwrap()
}

fn numbers(parcels: &Parcels) -> Vec<u64> {
    parcels.rows.iter().map(|parcel| number_of(&parcel.message)).collect()
}

fn delivered(parcel: &Parcel) -> Settling {
    Settling::Delivered { lane: parcel.lane, sequence: parcel.sequence, bytes: parcel.bytes }
}

#[tokio::test]
async fn a_session_belongs_to_its_user_and_their_number_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    for is_again in [false, true] {
        let rig = Rig::start(local(dir.path()));
        rig.inlet.bound_sessions(SessionLimits { count: 2, ..SessionLimits::default() });
        assert_eq!(rig.enter("c").await.is_present, is_again);
        let stranger = Entrance { user: Arc::from("ben"), ..entrance("c") };
        for is_clean in [false, true] {
            let stranger = Entrance { is_clean, ..stranger.clone() };
            assert_eq!(rig.inlet.enter_session(stranger).await.unwrap(), Entry::Foreign(Arc::from("anna")));
        }
        assert_eq!(rig.enter("d").await.is_present, is_again);
        assert_eq!(rig.inlet.enter_session(entrance("e")).await.unwrap(), Entry::Full);
        let passing = Entrance { expiry_s: 0, ..entrance("e") };
        assert_eq!(rig.inlet.enter_session(passing).await.unwrap(), Entry::Passing);
        assert!(rig.inlet.keeps_session("c") && !rig.inlet.keeps_session("e"));
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_message_that_only_a_session_wants_is_stored_once_and_goes_with_the_last_who_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(local(dir.path()));
    let (_, mut one) = rig.subscribed("one", "plant/#", Qos::AtLeastOnce).await;
    let (other, _) = rig.subscribed("other", "plant/+/3/sensor", Qos::ExactlyOnce).await;
    assert_eq!(rig.append(at("elsewhere", Qos::AtLeastOnce, 1, 20)).await.fate, Fate::Unwanted);
    assert_eq!(rig.append(at("plant/press/3/sensor", Qos::AtMostOnce, 2, 20)).await.fate, Fate::Unwanted);
    for number in 10..20 {
        let appended = rig.append(numbered(number, 100)).await;
        assert!(matches!(appended.fate, Fate::Stored { streams: 2, .. }), "{:?}", appended.fate);
    }
    assert_eq!((rig.waits().await.0, rig.inlet.stats().await.unwrap().messages), (20, 10));
    let parcels = fetched(&mut one, (0, 0), 100).await;
    assert_eq!(numbers(&parcels), (10..20).collect::<Vec<_>>());
    let (first, second) = (fetched(&mut one, (0, 0), 7).await, fetched(&mut one, (7, 0), 7).await);
    assert!(first.is_more && !second.is_more && second.rows.len() == 3, "{first:?} {second:?}");
    one.settle(parcels.rows.iter().map(delivered).collect()).await.unwrap();
    assert_eq!((rig.waits().await.0, rig.inlet.stats().await.unwrap().messages), (10, 10));
    rig.inlet.leave_session(other.number, 0).await.unwrap();
    let cleared = async {
        while rig.waits().await != (0, 0) || rig.inlet.stats().await.unwrap().messages > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, cleared).await.expect("what waited for an ended session is still there");
    rig.stop().await;
    let count = |table: &str| {
        let database = rusqlite::Connection::open(dir.path().join("queue.db")).unwrap();
        database.query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!((count("message_0"), count("session_span"), count("session_flight")), (0, 0, 0));
    assert_eq!((count("session"), count("subscription")), (1, 1), "the one that is kept");
}

#[tokio::test]
async fn no_local_identifier_and_retain_as_published_are_those_of_the_moment_of_the_match() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(local(dir.path()));
    let (kept, mut outlet) = rig.subscribed("c1", "plant/#", Qos::AtLeastOnce).await;
    let again = |no_local, retain_as_published, identifier| Subscribed {
        no_local,
        retain_as_published,
        identifier,
        ..to("plant/#", Qos::ExactlyOnce)
    };
    let retained = |number| Message { retain: true, qos: Qos::ExactlyOnce, ..numbered(number, 20) };
    rig.append(retained(1)).await;
    let asked = vec![(again(false, true, Some(7)), Retained::Never)];
    rig.inlet.subscribe_session(kept.number, &Arc::from("c"), asked, 100).await.unwrap();
    rig.append(retained(2)).await;
    let asked = vec![(again(true, true, Some(8)), Retained::Never)];
    rig.inlet.subscribe_session(kept.number, &Arc::from("c"), asked, 100).await.unwrap();
    assert_eq!(
        rig.append(retained(3)).await.fate,
        Fate::Stored { sequence: Sequence(2), streams: 0 },
        "it is c1's own"
    );
    let parcels = fetched(&mut outlet, (0, 0), 100).await;
    let seen: Vec<_> = parcels.rows.iter().map(|row| (row.qos, row.retain, row.identifier)).collect();
    assert_eq!(seen, [(Qos::AtLeastOnce, false, None), (Qos::ExactlyOnce, true, Some(7))]);
    rig.stop().await;
}

#[tokio::test]
async fn the_oldest_of_a_full_session_give_way_and_nobody_else_loses_anything() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    rig.inlet.bound_sessions(SessionLimits { bytes: 100_000, ..SessionLimits::default() });
    let (_, mut small) = rig.subscribed("small", "plant/#", Qos::AtLeastOnce).await;
    let (_, mut other) = rig.subscribed("other", "plant/none/#", Qos::AtLeastOnce).await;
    rig.append(at("plant/none/1", Qos::AtLeastOnce, 1, 1000)).await;
    rig.append_all((0..300).map(|number| numbered(number, 1000))).await;
    let (waiting, bytes) = rig.waits().await;
    assert!((80..100).contains(&waiting) && bytes <= 102_000, "{waiting} messages with {bytes} bytes wait");
    let first = fetched(&mut small, (0, 0), 100).await;
    assert_eq!(numbers(&first), (301 - waiting..300).collect::<Vec<_>>(), "the newest are there, in order");
    assert_eq!(numbers(&fetched(&mut other, (0, 0), 100).await), [1]);
    assert_eq!(rig.waiting("cloud").await, 301);
    let snapshot = rig.health.snapshot(Stamp::default());
    assert_eq!((snapshot.losses["session-full"], snapshot.sessions.dropped), (302 - waiting, 302 - waiting));
    assert_eq!(rig.drain("cloud").await.len(), 301);
    rig.stop().await;
    // What was counted stays counted, also the bytes.
    let rig = Rig::start(settings(dir.path()));
    assert_eq!(rig.waits().await, (waiting, bytes));
    rig.stop().await;
}

#[tokio::test]
async fn all_sessions_together_take_a_quarter_of_the_store_and_the_largest_gives_way() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(QueueSettings { bytes_max: NonZeroU64::new(4 * MIB).unwrap(), ..local(dir.path()) });
    let (_, mut large) = rig.subscribed("large", "large", Qos::AtLeastOnce).await;
    let (_, mut small) = rig.subscribed("small", "small", Qos::AtLeastOnce).await;
    rig.append_all((0..100).map(|number| at("small", Qos::AtLeastOnce, number, 1000))).await;
    rig.append_all((0..3000).map(|number| at("large", Qos::AtLeastOnce, number, 1000))).await;
    let (_, bytes) = rig.waits().await;
    assert!((900_000..=MIB + 2000).contains(&bytes), "{bytes} bytes wait");
    assert_eq!(fetched(&mut small, (0, 0), 200).await.rows.len(), 100);
    let last = fetched(&mut large, (0, 0), 200).await;
    assert!(number_of(&last.rows[0].message) > 1500);
    rig.stop().await;
}

#[tokio::test]
async fn a_store_that_is_full_and_refuses_never_does_so_for_a_sessions_sake() {
    let dir = tempfile::tempdir().unwrap();
    let full = QueueSettings {
        bytes_max: NonZeroU64::new(MIB).unwrap(),
        when_full: WhenFull::Refuse,
        streams: vec![stream("cloud", vec![rule("plant/#", "{topic}")])],
        ..settings(dir.path())
    };
    let rig = Rig::start(full);
    rig.inlet.bound_sessions(SessionLimits { store_share: 1, ..SessionLimits::default() });
    let (_, mut outlet) = rig.subscribed("c", "local", Qos::AtLeastOnce).await;
    rig.append_all((0..2000).map(|number| at("local", Qos::AtLeastOnce, number, 1000))).await;
    for number in 0..2000 {
        // Room for the cloud is made where a session has it.
        match rig.inlet.append(submission(numbered(number, 1000))).await {
            Ok(_) => {}
            Err(AppendError::Full) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(rig.waiting("cloud").await > 200);
    let appended = rig.inlet.append(submission(at("local", Qos::AtLeastOnce, 9999, 1000))).await.unwrap();
    assert!(!matches!(appended.fate, Fate::Unwanted), "{:?}", appended.fate);
    drop(fetched(&mut outlet, (0, 0), 10).await);
    rig.stop().await;
}

#[tokio::test]
async fn what_waits_for_a_client_stays_while_a_full_store_turns_over_for_the_uplinks() {
    let dir = tempfile::tempdir().unwrap();
    let full = QueueSettings {
        bytes_max: NonZeroU64::new(MIB).unwrap(),
        streams: vec![stream("cloud", vec![rule("plant/#", "{topic}")])],
        ..settings(dir.path())
    };
    let mut rig = Rig::start(full);
    let (_, mut reader) = rig.subscribed("reader", "local", Qos::AtLeastOnce).await;
    let (_, mut hoarder) = rig.subscribed("hoarder", "plant/#", Qos::AtLeastOnce).await;
    for number in 0..100 {
        rig.append(at("local", Qos::AtLeastOnce, number, 16)).await;
        rig.append(numbered(number, 1000)).await;
    }
    rig.append_all((100..3000).map(|number| numbered(number, 1000))).await;
    assert_eq!(numbers(&fetched(&mut reader, (0, 0), 200).await), (0..100).collect::<Vec<_>>());
    // Who has more than his part loses his oldest, as the uplink does.
    assert!(number_of(&fetched(&mut hoarder, (0, 0), 1).await.rows[0].message) > 1000);
    let rest = rig.drain("cloud").await;
    assert!((300..900).contains(&rest.len()) && number_of(&rest.last().unwrap().message) == 2999, "{}", rest.len());
    let losses = rig.health.snapshot(Stamp::default()).losses;
    assert_eq!(losses["dropped-oldest"] as usize, 3000 - rest.len());
    assert!(!losses.contains_key("dropped-newest"), "{losses:?}");
    rig.stop().await;
}

#[tokio::test]
async fn what_waits_for_a_client_stays_as_well_where_flash_is_spared_and_what_was_held_is_written_to_a_full_store() {
    let dir = tempfile::tempdir().unwrap();
    let full = QueueSettings {
        bytes_max: NonZeroU64::new(MIB).unwrap(),
        streams: vec![stream("cloud", vec![rule("plant/#", "{topic}")])],
        hold: Some(Duration::from_secs(600)),
        ..settings(dir.path())
    };
    let mut rig = Rig::start(full);
    let (_, mut reader) = rig.subscribed("reader", "local", Qos::AtLeastOnce).await;
    rig.append_all((0..100).map(|number| at("local", Qos::AtLeastOnce, number, 16))).await;
    for round in 0..40 {
        rig.outlet("cloud").set_live(true).await.unwrap();
        let mut pending = Vec::new();
        for number in 0..50 {
            pending.push(rig.inlet.begin_append(submission(numbered(round * 50 + number, 1000))).await.unwrap());
        }
        let mut taken = 0;
        while taken < 50 {
            let next = rig.outlet("cloud").next(100, 1 << 20);
            taken += tokio::time::timeout(DEADLINE, next).await.unwrap().unwrap().len();
        }
        assert_eq!(pending[0].outcome_now(), None, "it is in memory, and on its way to the cloud");
        // The line goes: what was held is written.
        rig.outlet("cloud").set_live(false).await.unwrap();
        for one in pending {
            one.outcome().await.unwrap();
        }
    }
    let losses = rig.health.snapshot(Stamp::default()).losses;
    assert!(losses["dropped-oldest"] > 1000, "the store did not turn over: {losses:?}");
    assert_eq!(numbers(&fetched(&mut reader, (0, 0), 200).await), (0..100).collect::<Vec<_>>());
    rig.stop().await;
}

#[tokio::test]
async fn a_session_whose_store_was_damaged_is_gone_and_its_client_hears_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(settings(dir.path()));
    let (kept, mut outlet) = rig.subscribed("c", "plant/#", Qos::ExactlyOnce).await;
    rig.lose_the_store(dir.path()).await;
    assert!(fetched(&mut outlet, (0, 0), 10).await.is_gone);
    assert!(!rig.inlet.keeps_session("c"));
    let again = vec![(to("plant/#", Qos::AtLeastOnce), Retained::Never)];
    assert!(rig.inlet.subscribe_session(kept.number, &Arc::from("c"), again, 10).await.is_err());
    let new = rig.enter("c").await;
    assert!(!new.is_present && new.number > kept.number);
    rig.stop().await;
}

#[tokio::test]
async fn a_reading_comes_as_the_object_that_it_is_at_the_cloud_and_is_written_first_where_flash_is_spared() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(QueueSettings { hold: Some(Duration::from_secs(600)), ..settings(dir.path()) });
    rig.outlet("cloud").set_live(true).await.unwrap();
    let (_, mut outlet) = rig.subscribed("c", "field/#", Qos::AtLeastOnce).await;
    let stamp = Clock::new(ClockSource::Trusted).now();
    let reading = Reading {
        device: Arc::from("chiller"),
        point: Arc::from("supply"),
        value: Value::Float(7.5),
        unit: None,
        quality: Quality::Good,
        reason: None,
        stamp,
        seq: 0,
    };
    let body = Body::Reading(reading);
    let appended = rig.append(Message { body, origin: Origin::Field, ..message("field/chiller/supply", b"") }).await;
    assert!(matches!(appended.fate, Fate::Stored { streams: 2, .. }), "{:?}", appended.fate);
    let parcels = fetched(&mut outlet, (0, 0), 10).await;
    let Body::Bytes(bytes) = &parcels.rows[0].message.body else { panic!("{parcels:?}") };
    let object: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    assert_eq!((object["value"].as_f64(), object["seq"].as_u64()), (Some(7.5), Some(1)));
    assert_eq!(object["id"], appended.id.to_string());
    rig.stop().await;
}

// A model

#[derive(Debug, Clone)]
enum Step {
    Append {
        topic: usize,
        qos: Qos,
    },
    Subscribe(usize),
    Unsubscribe(usize),
    Fetch(usize),
    /// The client acknowledges so many of what it has.
    Acknowledge(usize),
    Resume,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let qos = prop::sample::select(vec![Qos::AtLeastOnce, Qos::ExactlyOnce]);
    prop_oneof![
        6 => (0..3_usize, qos).prop_map(|(topic, qos)| Step::Append { topic, qos }),
        2 => (0..3_usize).prop_map(Step::Subscribe),
        1 => (0..3_usize).prop_map(Step::Unsubscribe),
        4 => (1..6_usize).prop_map(Step::Fetch),
        4 => (1..6_usize).prop_map(Step::Acknowledge),
        1 => Just(Step::Resume),
        1 => Just(Step::Crash),
    ]
}

const TOPICS: [&str; 3] = ["a/x", "a/y", "b/x"];
const FILTERS: [(&str, Qos); 3] = [("a/#", Qos::AtLeastOnce), ("+/x", Qos::ExactlyOnce), ("b/x", Qos::ExactlyOnce)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Flying(u16),
    Released(u16),
}

/// A copy of a message, as the model has it.
#[derive(Debug, Clone, Copy)]
struct Copy {
    number: u64,
    lane: u32,
    qos: Qos,
    state: State,
    order: u64,
}

/// The session as it should be.
#[derive(Debug, Default)]
struct Model {
    subscriptions: BTreeMap<u32, usize>,
    copies: Vec<Copy>,
    /// Handed out since the client came.
    handed: Vec<(u64, u32, Settling)>,
    order: u64,
    next_id: u16,
}

impl Model {
    fn lane_next(&self) -> u32 {
        let waiting = self.copies.iter().filter(|copy| !matches!(copy.state, State::Released(_))).map(|copy| copy.lane);
        self.subscriptions.keys().copied().chain(waiting).max().map_or(0, |lane| lane + 1)
    }

    fn flights(&self) -> Vec<(u16, Option<u64>)> {
        let mut flying: Vec<&Copy> = self.copies.iter().filter(|copy| copy.state != State::Waiting).collect();
        flying.sort_by_key(|copy| copy.order);
        flying
            .into_iter()
            .map(|copy| match copy.state {
                State::Flying(id) => (id, Some(copy.number)),
                State::Released(id) => (id, None),
                State::Waiting => unreachable!(),
            })
            .collect()
    }
}

struct Play {
    dir: TempDir,
    rig: Rig,
    model: Model,
    outlet: SessionOutlet,
    place: (u64, u32),
    number: u64,
}

impl Play {
    async fn begin() -> Play {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(local(dir.path()));
        let kept = rig.enter("c").await;
        let outlet = rig.inlet.session_outlet(kept.number);
        Play { dir, rig, model: Model::default(), outlet, place: (0, 0), number: 0 }
    }

    async fn resume(&mut self) {
        let kept = self.rig.enter("c").await;
        assert!(kept.is_present);
        let mut subscribed: Vec<&str> = kept.subscriptions.iter().map(|asked| asked.filter.as_str()).collect();
        let mut expected: Vec<&str> = self.model.subscriptions.values().map(|index| FILTERS[*index].0).collect();
        subscribed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(subscribed, expected);
        let number = |parcel: &Parcel| number_of(&parcel.message);
        let flights: Vec<_> = kept.flights.iter().map(|it| (it.packet_id, it.parcel.as_ref().map(number))).collect();
        assert_eq!(flights, self.model.flights());
        self.outlet = self.rig.inlet.session_outlet(kept.number);
        self.place = (0, 0);
        self.model.handed.clear();
        for flight in kept.flights {
            if let Some(parcel) = flight.parcel {
                let settling = Settling::Received { packet_id: flight.packet_id };
                self.model.handed.push((number_of(&parcel.message), parcel.lane, settling));
            }
        }
    }

    async fn step(&mut self, step: &Step) {
        let number = self.outlet.number();
        match step {
            Step::Append { topic, qos } => {
                self.number += 1;
                let message = Message { qos: *qos, ..at(TOPICS[*topic], *qos, self.number, 30) };
                let topic = message.topic.clone();
                self.rig.append(message).await;
                for (lane, index) in &self.model.subscriptions {
                    let (filter, granted) = FILTERS[*index];
                    if Filter::new(filter).unwrap().matches(&topic) {
                        let qos = granted.min(*qos);
                        let (lane, number) = (*lane, self.number);
                        self.model.copies.push(Copy { number, lane, qos, state: State::Waiting, order: 0 });
                    }
                }
            }
            Step::Subscribe(index) => {
                let (filter, qos) = FILTERS[*index];
                let asked = vec![(to(filter, qos), Retained::Never)];
                self.rig.inlet.subscribe_session(number, &Arc::from("c"), asked, 10).await.unwrap();
                if !self.model.subscriptions.values().any(|other| other == index) {
                    let lane = self.model.lane_next();
                    self.model.subscriptions.insert(lane, *index);
                }
            }
            Step::Unsubscribe(index) => {
                let filter = Filter::new(FILTERS[*index].0).unwrap();
                self.rig.inlet.unsubscribe_session(number, vec![filter]).await.unwrap();
                self.model.subscriptions.retain(|_, other| other != index);
            }
            Step::Fetch(count) => self.fetch(*count).await,
            Step::Acknowledge(count) => self.acknowledge(*count).await,
            Step::Resume => self.resume().await,
            Step::Crash => {
                let image = copy_dir(self.dir.path());
                let rig = Rig::start(local(image.path()));
                std::mem::replace(&mut self.rig, rig).stop().await;
                self.dir = image;
                self.resume().await;
            }
        }
    }

    async fn fetch(&mut self, count: usize) {
        let ids: Vec<u16> = (0..count)
            .map(|_| {
                self.model.next_id += 1;
                self.model.next_id
            })
            .collect();
        let parcels = self.outlet.fetch(self.place, ids.clone(), count, 1 << 20).await.unwrap();
        self.place = parcels.place;
        let handed: Vec<(u64, u32)> = self.model.handed.iter().map(|(number, lane, _)| (*number, *lane)).collect();
        let mut ids = ids.into_iter();
        let mut expected = Vec::new();
        let fresh = |copy: &&mut Copy| copy.state == State::Waiting && !handed.contains(&(copy.number, copy.lane));
        for copy in self.model.copies.iter_mut().filter(fresh).take(count) {
            let mut packet_id = None;
            if copy.qos == Qos::ExactlyOnce {
                packet_id = ids.next();
                self.model.order += 1;
                (copy.state, copy.order) = (State::Flying(packet_id.unwrap()), self.model.order);
            }
            expected.push((copy.number, copy.lane, copy.qos, packet_id));
        }
        let came = parcels.rows.iter().map(|row| (number_of(&row.message), row.lane, row.qos, row.packet_id));
        assert_eq!(came.collect::<Vec<_>>(), expected);
        for row in &parcels.rows {
            let settling = match row.packet_id {
                Some(packet_id) => Settling::Received { packet_id },
                None => delivered(row),
            };
            self.model.handed.push((number_of(&row.message), row.lane, settling));
        }
    }

    async fn acknowledge(&mut self, count: usize) {
        let mut changes = Vec::new();
        // PUBCOMPs of what was released before.
        self.model.copies.retain(|copy| match copy.state {
            State::Released(packet_id) => {
                changes.push(Settling::Completed { packet_id });
                false
            }
            _ => true,
        });
        for (number, lane, settling) in self.model.handed.iter().take(count) {
            changes.push(*settling);
            let is_it = |copy: &Copy| (copy.number, copy.lane) == (*number, *lane);
            match settling {
                Settling::Received { packet_id } => {
                    for copy in self.model.copies.iter_mut().filter(|copy| is_it(copy)) {
                        copy.state = State::Released(*packet_id);
                    }
                }
                _ => self.model.copies.retain(|copy| !is_it(copy)),
            }
        }
        let count = count.min(self.model.handed.len());
        self.model.handed.drain(..count);
        self.outlet.settle(changes).await.unwrap();
    }

    async fn end(mut self) {
        self.resume().await;
        self.fetch(200).await;
        self.acknowledge(400).await;
        self.acknowledge(0).await;
        assert!(self.model.copies.is_empty(), "{:?}", self.model.copies);
        assert_eq!(self.rig.waits().await, (0, 0));
        assert_eq!(self.rig.inlet.stats().await.unwrap().messages, 0);
        assert!(self.rig.health.snapshot(Stamp::default()).losses.values().all(|count| *count == 0));
        self.rig.stop().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_session_is_what_its_model_says_over_crashes_between_any_two_steps(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut play = Play::begin().await;
            for step in &steps {
                play.step(step).await;
            }
            play.end().await;
        });
    }
}
