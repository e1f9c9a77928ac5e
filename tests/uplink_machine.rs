//! Does the session deliver each row exactly once, whatever dies and whenever? A model store and a model cloud drive
//! the real machine; the world ends between every two steps.
//!
//! Injected faults and why each is survivable: the process dies (the store keeps what was committed; the cloud keeps
//! its session), the connection dies (the same, and memory too), packets under way are lost or arrive with either. A
//! cloud that loses its session is not survivable exactly once, and is tested for what is promised then.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tidegate::clock::Timing;
use tidegate::config::{Pace, ReceiveRule, TopicTemplate};
use tidegate::intake::LiveForward;
use tidegate::message::{Body, Filter, Message, MessageId, Origin, Properties, Qos, Sequence, Stamp, Topic};
use tidegate::mqtt::{Ack, Connack, Disconnect, Packet, PacketId, Publish, ReasonCode, Suback, Version};
use tidegate::queue::{Change, Encoding, Format, InFlight, Queued, Restored, SessionNumber, Verdict};
use tidegate::uplink::machine::{Action, CloseReason, Event, Machine, Moment, Note, Settings};

// --- the model store --------------------------------------------------------------------------------------------

#[derive(Default)]
struct Store {
    rows: BTreeMap<Sequence, Queued>,
    settled: BTreeMap<Sequence, Verdict>,
    in_flight: BTreeMap<u16, (u64, Sequence, bool)>,
    session_key: Option<u64>,
    session: u64,
    cursor: Sequence,
}

impl Store {
    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Admit { packet_id, rows, order, .. } => {
                    let sequence = rows[0];
                    assert!(!self.settled.contains_key(&sequence), "a settled row is admitted");
                    assert!(self.in_flight.values().all(|(_, other, _)| *other != sequence), "a row is admitted twice");
                    let old = self.in_flight.insert(packet_id, (order, sequence, false));
                    assert!(old.is_none(), "packet id {packet_id} is used twice");
                }
                Change::Release { packet_id } => self.in_flight.get_mut(&packet_id).expect("an unknown id").2 = true,
                Change::Forget { packet_id } => {
                    self.in_flight.remove(&packet_id).expect("an unknown id is forgotten");
                }
                Change::Settle { sequence, verdict } => {
                    assert!(self.settled.insert(sequence, verdict).is_none(), "row {sequence} is settled twice");
                }
                Change::SessionKey(key) => self.session_key = Some(key),
                Change::NewSession => self.session += 1,
            }
        }
        for (_, sequence, _) in self.in_flight.values() {
            assert!(!self.settled.contains_key(sequence), "a settled row keeps its packet id");
        }
    }

    fn restore(&mut self) -> Restored {
        self.cursor = Sequence(0);
        let mut in_flight: Vec<InFlight> = self
            .in_flight
            .iter()
            .map(|(id, (order, sequence, released))| InFlight {
                packet_id: *id,
                released: *released,
                order: *order,
                rows: vec![self.rows[sequence].clone()],
            })
            .collect();
        in_flight.sort_by_key(|one| one.order);
        Restored { session_key: self.session_key, session: SessionNumber(self.session), in_flight }
    }

    fn next(&mut self, count: usize) -> Vec<Queued> {
        let busy: BTreeSet<Sequence> = self.in_flight.values().map(|(_, sequence, _)| *sequence).collect();
        let rows: Vec<Queued> = self
            .rows
            .range((std::ops::Bound::Excluded(self.cursor), std::ops::Bound::Unbounded))
            .filter(|(place, _)| !self.settled.contains_key(place) && !busy.contains(place))
            .map(|(_, row)| row.clone())
            .take(count)
            .collect();
        if let Some(last) = rows.last() {
            self.cursor = last.sequence;
        }
        rows
    }
}

// --- the model cloud --------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Default)]
struct Temper {
    version_311: bool,
    receive_max: Option<u16>,
    qos_max: Option<Qos>,
    packet_bytes_max: Option<u32>,
    reverses: bool,
    quota_each_third: bool,
    says_no_subscribers: bool,
    forbids_each_third: bool,
    sends_strays: bool,
    /// Closes without a word on a body that starts with this.
    closes_on: Option<u8>,
    /// Closes without a word on every PUBLISH: a balancer before a dead broker.
    closes_on_all: bool,
    /// Closes on this topic, as a cloud does in 3.1.1 whose policy lacks it.
    closes_on_topic: Option<&'static str>,
    /// Answers a body that starts with this with that reason.
    refuses: Option<(u8, u8)>,
    forgets_sessions: bool,
    closes_beyond: Option<usize>,
    answers_pings_only: bool,
    is_cut_off: bool,
    has_no_retain: bool,
}

#[derive(Default)]
struct Cloud {
    temper: Temper,
    has_session: bool,
    taken: BTreeSet<u16>,
    got: Vec<Publish>,
    connected: bool,
    out: usize,
    out_max: usize,
    published: usize,
    forbidden: usize,
    back: VecDeque<Packet>,
    withheld: Vec<Packet>,
    strays: Vec<Packet>,
    closes: bool,
    dups_without_flag: usize,
    subscribed: usize,
    connects: usize,
}

impl Cloud {
    fn handle(&mut self, packet: Packet) {
        if self.temper.is_cut_off {
            return;
        }
        let answer = match packet {
            Packet::Connect(connect) => {
                self.connected = true;
                self.connects += 1;
                self.out = 0;
                if connect.clean_start || self.temper.forgets_sessions {
                    self.has_session = false;
                    self.taken.clear();
                }
                let mut connack = Connack::new(ReasonCode::SUCCESS);
                connack.session_present = self.has_session;
                connack.receive_max = self.temper.receive_max.and_then(NonZeroU16::new);
                connack.qos_max = self.temper.qos_max;
                connack.packet_bytes_max = self.temper.packet_bytes_max;
                connack.retain_available = !self.temper.has_no_retain;
                self.has_session = !(self.temper.version_311 && connect.clean_start);
                self.back.push_back(Packet::Connack(Box::new(connack)));
                if self.temper.sends_strays {
                    let id = |id| PacketId::new(id).unwrap();
                    self.back.push_back(Packet::Pubrel(Ack::new(id(7), ReasonCode::SUCCESS)));
                    self.back.push_back(Packet::Puback(Ack::new(id(99), ReasonCode::SUCCESS)));
                    self.back.push_back(Packet::Pubcomp(Ack::new(id(98), ReasonCode::SUCCESS)));
                    self.back.push_back(Packet::Pubrec(Ack::new(id(97), ReasonCode::SUCCESS)));
                }
                return;
            }
            Packet::Publish(publish) => match self.publish(publish) {
                Some(answer) => answer,
                None => return,
            },
            Packet::Pubrel(ack) if ack.reason == ReasonCode::PACKET_IDENTIFIER_NOT_FOUND => {
                return self.strays.push(Packet::Pubrel(ack));
            }
            Packet::Pubrel(ack) => {
                let known = self.taken.remove(&ack.packet_id.get());
                let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_IDENTIFIER_NOT_FOUND };
                Packet::Pubcomp(Ack::new(ack.packet_id, reason))
            }
            Packet::Subscribe(subscribe) => {
                self.subscribed += 1;
                let reasons = vec![ReasonCode::GRANTED_QOS_1; subscribe.subscriptions.len()];
                Packet::Suback(Suback { packet_id: subscribe.packet_id, reasons })
            }
            Packet::Pingreq => Packet::Pingresp,
            Packet::Disconnect(_) => return,
            stray => return self.strays.push(stray),
        };
        if self.temper.answers_pings_only && !matches!(answer, Packet::Pingresp) {
            return;
        }
        if self.temper.reverses && !matches!(answer, Packet::Pingresp) {
            self.withheld.push(answer);
            // A whole window, or nothing more to come: see `flush`.
            if self.withheld.len() >= 5 {
                self.flush();
            }
        } else {
            self.back.push_back(answer);
        }
    }

    fn flush(&mut self) {
        self.back.extend(self.withheld.drain(..).rev());
    }

    fn publish(&mut self, publish: Publish) -> Option<Packet> {
        if let Some(max) = self.temper.packet_bytes_max {
            assert!(publish.payload.len() < max as usize, "longer than Maximum Packet Size");
        }
        assert!(publish.qos <= self.temper.qos_max.unwrap_or(Qos::ExactlyOnce), "a QoS that the cloud does not have");
        assert!(!(publish.retain && self.temper.has_no_retain), "retained, though the cloud has none");
        let first = publish.payload.first().copied();
        let topic = publish.topic.as_ref().map(Topic::as_str);
        if self.temper.closes_on_all || (self.temper.closes_on_topic.is_some() && topic == self.temper.closes_on_topic)
        {
            self.closes = true;
            return None;
        }
        if self.temper.closes_on.is_some() && first == self.temper.closes_on {
            self.closes = true;
            return None;
        }
        let Some(id) = publish.packet_id else {
            self.got.push(publish);
            return None;
        };
        self.published += 1;
        self.out += 1;
        self.out_max = self.out_max.max(self.out);
        if self.temper.closes_beyond.is_some_and(|limit| self.out > limit) {
            self.closes = true;
            return None;
        }
        let mut reason =
            if self.temper.says_no_subscribers { ReasonCode::NO_MATCHING_SUBSCRIBERS } else { ReasonCode::SUCCESS };
        if self.temper.quota_each_third && self.published.is_multiple_of(3) {
            reason = ReasonCode::QUOTA_EXCEEDED;
        }
        if self.temper.forbids_each_third && self.published.is_multiple_of(3) && self.forbidden < 4 {
            self.forbidden += 1;
            reason = ReasonCode::NOT_AUTHORIZED;
        }
        if let Some((body, code)) = self.temper.refuses
            && first == Some(body)
        {
            reason = ReasonCode(code);
        }
        if publish.qos == Qos::AtLeastOnce {
            if !reason.is_failure() {
                self.got.push(publish);
            }
            return Some(Packet::Puback(Ack::new(id, reason)));
        }
        if self.taken.contains(&id.get()) {
            self.dups_without_flag += usize::from(!publish.dup);
        } else if !reason.is_failure() {
            self.taken.insert(id.get());
            self.got.push(publish);
        }
        Some(Packet::Pubrec(Ack::new(id, reason)))
    }

    fn hang_up(&mut self) {
        self.connected = false;
        self.closes = false;
        self.back.clear();
        self.withheld.clear();
    }

    /// How often each message arrived, by the id it bears.
    fn arrivals(&self) -> HashMap<String, usize> {
        let mut arrivals = HashMap::new();
        for publish in self.got.iter().filter(|publish| !publish.topic.as_ref().unwrap().as_str().starts_with("own/")) {
            let id = publish.properties.user.iter().filter(|(name, _)| name == "tidegate-id").map(|(_, id)| id);
            let ids: Vec<&String> = id.collect();
            assert_eq!(ids.len(), 1, "each message bears exactly one id");
            *arrivals.entry(ids[0].clone()).or_default() += 1;
        }
        arrivals
    }
}

// --- the world --------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq)]
enum Death {
    Process,
    Link,
    PeerCloses,
}

struct World {
    settings: Settings,
    machine: Machine,
    store: Store,
    cloud: Cloud,
    actions: VecDeque<Action>,
    to_cloud: VecDeque<Packet>,
    committed: bool,
    restored: Option<Restored>,
    fetch: Option<usize>,
    round: u64,
    opened: bool,
    now: Duration,
    steps: usize,
    seed: u64,
    notes: Vec<Note>,
    closed: Vec<CloseReason>,
    submitted: Vec<(Message, Option<u16>)>,
    /// Received ids that the store knows, and what was asked to be released.
    received: BTreeSet<(u64, u16)>,
    released: Vec<u16>,
    answers: VecDeque<Event>,
    key: u64,
}

fn settings(version: Version, window: u16) -> Settings {
    let filter = Filter::new("cmd/#").unwrap();
    Settings {
        name: Arc::from("cloud"),
        version,
        client_id: "g".to_owned(),
        username: None,
        window: NonZeroU16::new(window).unwrap(),
        keep_alive: Duration::from_secs(60),
        session_expiry: Duration::from_secs(86_400),
        pace: Pace::default(),
        own_topic: None,
        receive: vec![ReceiveRule {
            topic: TopicTemplate::parse("plant/{rest}", &filter, "g").unwrap(),
            filter,
            qos: Qos::ExactlyOnce,
        }],
    }
}

fn row(number: u64, qos: Qos, topic: &str, body: &[u8]) -> Queued {
    Queued {
        sequence: Sequence(number),
        id: MessageId { gateway: Arc::from("g"), store: 1, start: 1, counter: number },
        message: Message {
            topic: Topic::new(topic).unwrap(),
            qos,
            retain: true,
            properties: Some(Box::new(Properties {
                user: vec![("tidegate-id".to_owned(), "forged".to_owned()), ("k".to_owned(), "v".to_owned())],
                ..Properties::default()
            })),
            body: Body::Bytes(Bytes::copy_from_slice(body)),
            origin: Origin::Field,
            received: Stamp::default(),
        },
        qos,
        encoding: Encoding { topic: Topic::new(topic).unwrap(), format: Format::Json, timing: Timing::Stamped },
        strict_order: false,
        expires_mono_ms: None,
    }
}

impl World {
    fn new(settings: Settings, temper: Temper, rows: Vec<Queued>) -> World {
        let store = Store { rows: rows.into_iter().map(|row| (row.sequence, row)).collect(), ..Store::default() };
        let mut world = World {
            machine: Machine::new(settings.clone()),
            settings,
            store,
            cloud: Cloud { temper, ..Cloud::default() },
            actions: VecDeque::new(),
            to_cloud: VecDeque::new(),
            committed: false,
            restored: None,
            fetch: None,
            round: 0,
            opened: false,
            now: Duration::ZERO,
            steps: 0,
            seed: 1,
            notes: Vec::new(),
            closed: Vec::new(),
            submitted: Vec::new(),
            received: BTreeSet::new(),
            released: Vec::new(),
            answers: VecDeque::new(),
            key: 7,
        };
        world.end_turn();
        world
    }

    fn at(&self) -> Moment {
        Moment { now: self.now, stamp: Stamp::default() }
    }

    fn chance(&mut self, of: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % of as u64) as usize
    }

    fn event(&mut self, event: Event) {
        let at = self.at();
        self.machine.handle(at, event);
        self.end_turn();
    }

    fn end_turn(&mut self) {
        let at = self.at();
        self.machine.turn(at);
        self.actions.extend(self.machine.take_actions());
    }

    fn lose_link(&mut self, by_peer: bool) {
        self.cloud.hang_up();
        self.to_cloud.clear();
        self.opened = false;
        // What was to be sent is gone with the socket; what was for the store is not.
        self.actions.retain(|action| !matches!(action, Action::Send(_) | Action::Close(_)));
        self.event(Event::Lost { by_peer });
    }

    fn die(&mut self, death: Death) {
        // Half of the time what was written still arrives.
        if self.chance(2) == 0 {
            while let Some(packet) = self.to_cloud.pop_front() {
                self.cloud.handle(packet);
            }
        }
        match death {
            Death::Link => self.lose_link(false),
            Death::PeerCloses => self.lose_link(true),
            Death::Process => {
                self.cloud.hang_up();
                self.to_cloud.clear();
                self.actions.clear();
                self.committed = false;
                self.restored = None;
                self.fetch = None;
                self.round = 0;
                self.opened = false;
                self.answers.clear();
                self.machine = Machine::new(self.settings.clone());
                self.end_turn();
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send(packet) => self.to_cloud.push_back(packet),
            Action::Commit(changes) => {
                self.store.apply(changes);
                assert!(!self.committed, "two commits at once");
                self.committed = true;
            }
            Action::Restore => {
                assert!(!self.committed, "the store is read while a commit is under way");
                self.restored = Some(self.store.restore());
                self.fetch = None;
            }
            Action::Fetch { round, count, .. } => {
                if round != self.round {
                    self.store.cursor = Sequence(0);
                }
                self.round = round;
                self.fetch = Some(count);
            }
            Action::Submit { receipt, message, once } => {
                // A repeat is accepted and thrown away, as the queue does it.
                if once.is_none_or(|once| self.received.insert((once.session.0, once.packet_id))) {
                    self.submitted.push((*message, once.map(|once| once.packet_id)));
                }
                self.answers.push_back(Event::Accepted(receipt));
            }
            Action::Release { receipt, once } => {
                self.released.push(once.packet_id);
                let was_known = self.received.remove(&(once.session.0, once.packet_id));
                self.answers.push_back(Event::Released { receipt, was_known });
            }
            Action::Close(reason) => {
                while let Some(packet) = self.to_cloud.pop_front() {
                    self.cloud.handle(packet);
                }
                self.closed.push(reason);
                self.lose_link(false);
            }
            Action::Note(note) => self.notes.push(note),
        }
    }

    /// One step of the world; false when nothing is left to do but wait.
    fn step(&mut self) -> bool {
        self.steps += 1;
        let moves = 5;
        let first = self.chance(moves);
        for place in 0..moves {
            match (first + place) % moves {
                0 if !self.actions.is_empty() => {
                    let action = self.actions.pop_front().unwrap();
                    self.act(action);
                    return true;
                }
                1 if self.committed && self.actions.is_empty() => {
                    self.committed = false;
                    self.event(Event::Committed);
                    return true;
                }
                2 if !self.to_cloud.is_empty() => {
                    let packet = self.to_cloud.pop_front().unwrap();
                    self.cloud.handle(packet);
                    if self.cloud.closes {
                        self.lose_link(true);
                    }
                    return true;
                }
                3 if self.opened && !self.cloud.back.is_empty() && self.actions.is_empty() => {
                    let at = self.at();
                    let count = 1 + self.chance(4);
                    let mut any = false;
                    for _ in 0..count {
                        if self.machine.wants_packets()
                            && let Some(packet) = self.cloud.back.pop_front()
                        {
                            any = true;
                            let ends = match &packet {
                                Packet::Puback(_) | Packet::Pubcomp(_) => true,
                                Packet::Pubrec(ack) => ack.reason.is_failure(),
                                _ => false,
                            };
                            self.cloud.out = self.cloud.out.saturating_sub(usize::from(ends));
                            self.machine.heard(at);
                            self.machine.handle(at, Event::Packet(packet));
                        }
                    }
                    self.end_turn();
                    if any {
                        return true;
                    }
                }
                4 if self.actions.is_empty() => {
                    if let Some(restored) = self.restored.take() {
                        self.event(Event::Restored(restored));
                        return true;
                    }
                    if let Some(answer) = self.answers.pop_front() {
                        self.event(answer);
                        return true;
                    }
                    if let Some(count) = self.fetch {
                        let rows = self.store.next(count);
                        if !rows.is_empty() {
                            self.fetch = None;
                            self.event(Event::Rows { round: self.round, rows });
                            return true;
                        }
                    }
                    if !self.opened && self.machine.can_open() {
                        self.opened = true;
                        let connect = self.machine.open(self.at(), self.key, None);
                        self.to_cloud.push_back(connect);
                        return true;
                    }
                }
                _ => {}
            }
        }
        if !self.cloud.withheld.is_empty() {
            self.cloud.flush();
            return true;
        }
        false
    }

    fn is_done(&self) -> bool {
        self.store.settled.len() == self.store.rows.len() && self.store.in_flight.is_empty()
    }

    /// Runs until all rows are settled, dying at the steps that `deaths` says.
    fn run(&mut self, deaths: &[(usize, Death)]) {
        let mut deaths = deaths.iter().copied().peekable();
        for _ in 0..200_000 {
            while let Some((_, death)) = deaths.next_if(|(step, _)| *step <= self.steps) {
                self.die(death);
            }
            if self.step() {
                continue;
            }
            if self.is_done() {
                return;
            }
            self.now = self
                .machine
                .deadline(self.now)
                .unwrap_or(self.now + Duration::from_secs(1))
                .max(self.now + Duration::from_nanos(1));
            self.end_turn();
        }
        panic!(
            "the world did not come to its end: {:?} settled of {}",
            self.store.settled.len(),
            self.store.rows.len()
        );
    }
}

fn rows_of(count: u64, qos: impl Fn(u64) -> Qos) -> Vec<Queued> {
    (1..=count)
        .map(|number| row(number, qos(number), &format!("t/{}", number % 2), format!("{number}").as_bytes()))
        .collect()
}

fn assert_order(cloud: &Cloud) {
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut seen = BTreeSet::new();
    for publish in &cloud.got {
        let number: u64 = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
        if seen.insert(number) {
            let before = last.insert(publish.topic.as_ref().unwrap().to_string(), number).unwrap_or(0);
            assert!(before < number, "row {number} came after {before}");
        }
    }
}

#[test]
fn exactly_once_at_qos_2_whatever_dies_between_any_two_steps() {
    let run = |seed: u64, deaths: &[(usize, Death)]| {
        let mut world = World::new(settings(Version::V5, 3), Temper::default(), rows_of(5, |_| Qos::ExactlyOnce));
        world.seed = seed;
        world.run(deaths);
        assert_eq!(world.cloud.dups_without_flag, 0, "a repeat without DUP: seed {seed}, {deaths:?}");
        let arrivals = world.cloud.arrivals();
        assert_eq!(arrivals.len(), 5, "lost: seed {seed}, {deaths:?}");
        assert!(arrivals.values().all(|count| *count == 1), "doubled: seed {seed}, {deaths:?}: {arrivals:?}");
        assert_order(&world.cloud);
        world.steps
    };
    for seed in 1..=8 {
        let steps = run(seed, &[]);
        for first in 0..=steps {
            for death in [Death::Process, Death::Link] {
                run(seed, &[(first, death)]);
                for second in (first + 1..=steps + 20).step_by(3) {
                    run(seed, &[(first, death), (second, Death::Process)]);
                }
            }
        }
    }
}

#[test]
fn at_least_once_at_qos_1_and_repeats_stay_within_the_window() {
    for seed in 1..=8 {
        for first in 0..120 {
            for death in [Death::Process, Death::Link, Death::PeerCloses] {
                let mut world =
                    World::new(settings(Version::V5, 3), Temper::default(), rows_of(8, |_| Qos::AtLeastOnce));
                world.seed = seed;
                world.run(&[(first, death)]);
                let arrivals = world.cloud.arrivals();
                assert_eq!(arrivals.len(), 8);
                let repeats: usize = arrivals.values().map(|count| count - 1).sum();
                // Acknowledged but not yet settled on disk counts as in flight for a process that dies.
                let bound = if death == Death::Process { 8 } else { 3 };
                assert!(repeats <= bound, "{repeats} repeats: seed {seed}, step {first}, {death:?}");
                assert_order(&world.cloud);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_qos_window_and_deaths_loses_nothing_and_doubles_no_qos_2(
        seed in 1u64..u64::MAX,
        window in 1u16..6,
        receive_max in proptest::option::of(1u16..6),
        qos in proptest::collection::vec(1u8..3, 1..14),
        mut deaths in proptest::collection::vec((0usize..300, 0u8..2), 0..6),
    ) {
        let rows: Vec<Queued> = qos.iter().enumerate().map(|(place, qos)| {
            let number = place as u64 + 1;
            row(number, Qos::from_level(*qos).unwrap(), &format!("t/{}", number % 3), number.to_string().as_bytes())
        }).collect();
        deaths.sort_unstable();
        let deaths: Vec<_> = deaths.into_iter()
            .map(|(step, kind)| (step, if kind == 0 { Death::Process } else { Death::Link }))
            .collect();
        let temper = Temper { receive_max, ..Temper::default() };
        let mut world = World::new(settings(Version::V5, window), temper, rows);
        world.seed = seed;
        world.run(&deaths);
        let arrivals = world.cloud.arrivals();
        prop_assert_eq!(arrivals.len(), qos.len());
        for (place, qos) in qos.iter().enumerate() {
            let id = format!("g.000000000001.1.{}", place + 1);
            if *qos == 2 {
                prop_assert_eq!(arrivals[&id], 1, "row {} was doubled", place + 1);
            }
        }
        prop_assert!(world.cloud.out_max <= usize::from(window.min(receive_max.unwrap_or(window))), "beyond Receive Maximum");
        assert_order(&world.cloud);
    }
}

// --- odd packets (the list of the facts) ---------------------------------------------------------------------------

fn finish(temper: Temper, settings: Settings, rows: Vec<Queued>) -> World {
    let mut world = World::new(settings, temper, rows);
    world.run(&[]);
    world
}

fn assert_all_delivered(world: &World) {
    for (sequence, verdict) in &world.store.settled {
        assert_eq!(*verdict, Verdict::Delivered, "row {sequence}");
    }
    assert!(world.cloud.arrivals().values().all(|count| *count == 1));
    assert_eq!(world.cloud.arrivals().len(), world.store.rows.len());
}

#[test]
fn acknowledgements_in_reverse_order_settle_the_right_rows() {
    let temper = Temper { reverses: true, receive_max: Some(5), ..Temper::default() };
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let world = finish(temper, settings(Version::V5, 100), rows_of(23, |_| qos));
        assert_all_delivered(&world);
        assert_eq!(world.cloud.out_max, 5);
    }
}

#[test]
fn a_quota_that_is_used_up_costs_time_and_nothing_else() {
    let temper = Temper { quota_each_third: true, ..Temper::default() };
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let world = finish(temper, settings(Version::V5, 5), rows_of(20, |_| qos));
        assert_all_delivered(&world);
        assert!(world.machine.counts().resent >= 5);
    }
}

#[test]
fn pubrec_without_subscribers_is_a_success() {
    let temper = Temper { says_no_subscribers: true, ..Temper::default() };
    assert_all_delivered(&finish(temper, settings(Version::V5, 5), rows_of(10, |_| Qos::ExactlyOnce)));
}

#[test]
fn what_is_not_allowed_waits_with_one_alarm_and_arrives_when_it_is_allowed() {
    let temper = Temper { forbids_each_third: true, ..Temper::default() };
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let world = finish(temper, settings(Version::V5, 5), rows_of(12, |_| qos));
        assert_all_delivered(&world);
        let alarms = world.notes.iter().filter(|note| matches!(note, Note::Held { .. })).count();
        assert!((1..=4).contains(&alarms), "{alarms}");
        assert!(world.now >= Duration::from_secs(10), "the route is held for a while");
    }
}

#[test]
fn a_held_topic_does_not_hold_up_others() {
    let temper = Temper { refuses: Some((b'x', 0x87)), ..Temper::default() };
    let mut rows = rows_of(30, |_| Qos::AtLeastOnce);
    rows.push(row(31, Qos::AtLeastOnce, "secret", b"x"));
    rows.push(row(32, Qos::ExactlyOnce, "secret", b"x"));
    rows.extend((33..60).map(|number| row(number, Qos::AtLeastOnce, "t/9", number.to_string().as_bytes())));
    let mut world = World::new(settings(Version::V5, 3), temper, rows);
    while world.step() {}
    assert_eq!(world.store.settled.len(), 57);
    // The policy is mended: the probe finds out.
    world.cloud.temper.refuses = None;
    world.run(&[]);
    assert_all_delivered(&world);
    assert_eq!(world.notes.iter().filter(|note| matches!(note, Note::Held { .. })).count(), 1);
}

#[test]
fn a_large_backlog_of_refused_messages_stops_no_other_topic_and_arrives_in_order_when_it_may() {
    let number = |count: u64| format!("x{count}").into_bytes();
    for (code, length, refused, qos) in [
        (0x87, 0, 1500, Qos::AtLeastOnce),
        (0x87, 0, 1500, Qos::ExactlyOnce),
        (0x87, 240_000, 30, Qos::AtLeastOnce),
        (0x83, 0, 1500, Qos::AtLeastOnce),
        (0x80, 240_000, 30, Qos::ExactlyOnce),
    ] {
        for is_strict in [false, true] {
            let temper = Temper { refuses: Some((b'x', code)), ..Temper::default() };
            let mut rows: Vec<Queued> = (1..=refused)
                .map(|count| {
                    let mut body = number(count);
                    body.resize(body.len().max(length), b' ');
                    Queued { strict_order: is_strict, ..row(count, qos, "secret", &body) }
                })
                .collect();
            rows.extend((refused + 1..=refused + 100).map(|count| row(count, Qos::AtLeastOnce, "t/9", b"good")));
            let mut world = World::new(settings(Version::V5, 10), temper, rows);
            while world.step() {}
            assert_eq!(world.store.settled.len(), 100, "{code:x}, {length} bytes, {qos:?}, strict: {is_strict}");
            // The cloud allows it: everything comes, and what was never refused comes in order.
            world.cloud.temper.refuses = None;
            world.run(&[]);
            assert_all_delivered(&world);
            if code == 0x87 || is_strict {
                let got: Vec<&Publish> = world.cloud.got.iter().filter(|publish| publish.payload[0] == b'x').collect();
                let texts = got.iter().map(|publish| std::str::from_utf8(&publish.payload[1..]).unwrap().trim());
                let numbers: Vec<u64> = texts.map(|text| text.parse().unwrap()).skip(20).collect();
                assert!(numbers.is_sorted(), "{code:x}, {length} bytes, {qos:?}, strict: {is_strict}");
            }
        }
    }
}

#[test]
fn a_message_that_the_cloud_refuses_for_good_is_a_dead_letter_and_the_rest_goes_on() {
    for code in [0x90, 0x99, 0x95] {
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let temper = Temper { refuses: Some((b'3', code)), ..Temper::default() };
            let world = finish(temper, settings(Version::V5, 4), rows_of(9, |_| qos));
            assert!(matches!(world.store.settled[&Sequence(3)], Verdict::Rejected { .. }));
            assert_eq!(world.cloud.arrivals().len(), 8);
        }
    }
}

#[test]
fn unknown_acknowledgements_and_releases_are_answered_and_counted_not_looped_on() {
    let temper = Temper { sends_strays: true, ..Temper::default() };
    let world = finish(temper, settings(Version::V5, 5), rows_of(6, |_| Qos::ExactlyOnce));
    assert_all_delivered(&world);
    assert!(world.closed.is_empty());
    let not_found = |packet: &Packet, number: u16| match packet {
        Packet::Pubcomp(ack) | Packet::Pubrel(ack) => {
            ack.packet_id.get() == number && ack.reason == ReasonCode::PACKET_IDENTIFIER_NOT_FOUND
        }
        _ => false,
    };
    assert!(world.cloud.strays.iter().any(|packet| not_found(packet, 7)), "PUBREL 7 gets PUBCOMP 0x92");
    assert!(world.cloud.strays.iter().any(|packet| not_found(packet, 97)), "PUBREC 97 gets PUBREL 0x92");
    assert_eq!(world.machine.counts().strays, 4);
}

#[test]
fn a_message_longer_than_the_cloud_takes_is_never_sent() {
    let temper = Temper { packet_bytes_max: Some(2000), ..Temper::default() };
    let mut rows = rows_of(3, |_| Qos::ExactlyOnce);
    rows.push(row(4, Qos::AtLeastOnce, "t/0", &[b'9'; 1999]));
    rows.push(row(5, Qos::ExactlyOnce, "t/0", &[b'9'; 3000]));
    let world = finish(temper, settings(Version::V5, 5), rows);
    for sequence in [4, 5] {
        match &world.store.settled[&Sequence(sequence)] {
            Verdict::Rejected { reason } => assert!(reason.contains("Maximum Packet Size is 2000"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.cloud.arrivals().len(), 3);
}

#[test]
fn a_cloud_with_a_lower_qos_gets_what_it_takes_and_the_downgrade_is_counted() {
    for (qos_max, downgraded) in [(Qos::AtLeastOnce, 4), (Qos::AtMostOnce, 8)] {
        let temper = Temper { qos_max: Some(qos_max), has_no_retain: true, ..Temper::default() };
        let qos = |number: u64| if number.is_multiple_of(2) { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
        let world = finish(temper, settings(Version::V5, 3), rows_of(8, qos));
        assert_all_delivered(&world);
        assert_eq!(world.machine.counts().downgraded, downgraded);
    }
}

#[test]
fn rows_in_flight_at_qos_2_go_on_at_qos_1_when_the_cloud_has_lost_qos_2() {
    for step in 0..80 {
        let mut world = World::new(settings(Version::V5, 3), Temper::default(), rows_of(6, |_| Qos::ExactlyOnce));
        while world.steps < step && world.step() {}
        world.die(Death::Link);
        world.cloud.temper.qos_max = Some(Qos::AtLeastOnce);
        world.run(&[]);
        assert_eq!(world.cloud.arrivals().len(), 6);
    }
}

#[test]
fn a_poisonous_message_is_found_alone_and_no_other_is_given_up() {
    for version in [Version::V311, Version::V5] {
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let temper = Temper { closes_on: Some(b'5'), version_311: version == Version::V311, ..Temper::default() };
            let mut world = World::new(settings(version, 4), temper, rows_of(9, |_| qos));
            world.run(&[]);
            for (sequence, verdict) in &world.store.settled {
                let is_rejected = matches!(verdict, Verdict::Rejected { .. });
                assert_eq!(is_rejected, *sequence == Sequence(5), "row {sequence} at {qos:?}, {version:?}");
            }
        }
    }
}

#[test]
fn a_cloud_that_closes_on_every_message_for_a_while_makes_no_dead_letter() {
    for version in [Version::V311, Version::V5] {
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            for forgets_sessions in [false, true] {
                let temper = Temper { version_311: version == Version::V311, forgets_sessions, ..Temper::default() };
                let mut world = World::new(settings(version, 10), temper, rows_of(100, |_| qos));
                while world.cloud.got.len() < 3 {
                    assert!(world.step());
                }
                // Twice, and it takes a few in between: that is no proof against those it does not take.
                for _ in 0..2 {
                    world.cloud.temper.closes_on_all = true;
                    world.run_for(Duration::from_secs(900));
                    world.cloud.temper.closes_on_all = false;
                    let got = world.cloud.got.len();
                    while world.cloud.got.len() < got + 3 {
                        assert!(
                            world.step() || {
                                world.run_for(Duration::from_millis(1));
                                true
                            }
                        );
                    }
                }
                world.run(&[]);
                for (sequence, verdict) in &world.store.settled {
                    assert_eq!(*verdict, Verdict::Delivered, "row {sequence}");
                }
                assert_eq!(world.store.settled.len(), 100);
                assert!(world.notes.iter().any(|note| matches!(note, Note::Accused { .. })), "no alarm");
                if qos == Qos::ExactlyOnce && !forgets_sessions && version == Version::V5 {
                    assert_all_delivered(&world);
                }
            }
        }
    }
}

#[test]
fn a_topic_that_a_cloud_closes_on_is_held_and_its_messages_are_no_dead_letters() {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let temper = Temper { version_311: true, closes_on_topic: Some("t/1"), ..Temper::default() };
        let mut world = World::new(settings(Version::V311, 10), temper, rows_of(200, |_| qos));
        world.run_for(Duration::from_secs(3 * 3600));
        assert_eq!(world.store.settled.len(), 100, "all of the other topic");
        assert!(world.notes.iter().any(|note| matches!(note, Note::Held { .. })));
        assert!(world.cloud.connects < 300, "{} connections in three hours", world.cloud.connects);
        world.cloud.temper.closes_on_topic = None;
        world.run(&[]);
        assert_eq!(world.cloud.got.len(), 200);
        assert!(world.store.settled.values().all(|verdict| *verdict == Verdict::Delivered));
    }
}

#[test]
fn a_poisonous_message_that_is_alone_in_the_queue_does_not_keep_the_connection_down() {
    let temper = Temper { closes_on: Some(b'x'), ..Temper::default() };
    let rows = vec![row(1, Qos::AtLeastOnce, "t/1", b"x")];
    let mut world = World::new(settings(Version::V5, 4), temper, rows);
    world.run_for(Duration::from_secs(3600));
    assert!(world.store.settled.is_empty());
    assert!(world.cloud.connects < 50, "{} connections in an hour", world.cloud.connects);
    // Others of its topic prove it.
    world.store.rows.extend((2..6).map(|number| (Sequence(number), row(number, Qos::AtLeastOnce, "t/1", b"1"))));
    world.run(&[]);
    assert!(matches!(world.store.settled[&Sequence(1)], Verdict::Rejected { .. }));
}

#[test]
fn a_broker_that_closes_on_a_wide_window_gets_a_narrow_one_and_nothing_is_given_up() {
    // Mosquitto with 3.1.1 at QoS 2: it has no way to say its limit.
    let temper = Temper { version_311: true, closes_beyond: Some(20), ..Temper::default() };
    let mut world = World::new(settings(Version::V311, 100), temper, rows_of(300, |_| Qos::ExactlyOnce));
    world.run(&[]);
    assert!(world.store.settled.values().all(|verdict| *verdict == Verdict::Delivered));
    assert_eq!(world.cloud.got.len(), 300);
    assert!(world.cloud.connects <= 8, "{} connections", world.cloud.connects);
}

#[test]
fn a_network_that_drops_connections_never_makes_a_dead_letter() {
    let mut world = World::new(settings(Version::V5, 4), Temper::default(), rows_of(9, |_| Qos::ExactlyOnce));
    let deaths: Vec<(usize, Death)> = (0..60).map(|count| (10 + count * 12, Death::Link)).collect();
    world.run(&deaths);
    assert_all_delivered(&world);
}

#[test]
fn a_cloud_that_forgets_its_sessions_gets_everything_and_the_loss_is_counted() {
    let temper = Temper { forgets_sessions: true, ..Temper::default() };
    for step in 0..100 {
        let mut world = World::new(settings(Version::V5, 3), temper, rows_of(6, |_| Qos::ExactlyOnce));
        world.run(&[(step, Death::Link), (step + 17, Death::Process)]);
        let arrivals = world.cloud.arrivals();
        assert_eq!(arrivals.len(), 6);
        assert!(arrivals.values().all(|count| *count <= 3), "repeats bear the same id: {arrivals:?}");
    }
}

#[test]
fn another_server_or_user_forces_one_clean_start() {
    let mut world = World::new(settings(Version::V5, 3), Temper::default(), rows_of(6, |_| Qos::ExactlyOnce));
    while world.steps < 40 && world.step() {}
    world.die(Death::Process);
    world.key = 8;
    world.run(&[]);
    assert_eq!(world.cloud.arrivals().len(), 6);
    assert_eq!(world.machine.counts().sessions_lost, 1);
    assert_eq!(world.store.session_key, Some(8));
}

#[test]
fn in_3_1_1_a_clean_session_is_followed_by_one_that_is_kept() {
    let temper = Temper { version_311: true, ..Temper::default() };
    let mut world = World::new(settings(Version::V311, 3), temper, Vec::new());
    while world.step() {}
    assert_eq!(world.closed, [CloseReason::Afresh]);
    assert!(world.machine.is_up());
    assert_eq!(world.machine.counts().sessions_lost, 0);
}

#[test]
fn strict_order_keeps_one_message_of_a_topic_in_flight() {
    let mut rows = rows_of(12, |_| Qos::AtLeastOnce);
    rows.iter_mut().for_each(|row| row.strict_order = true);
    let temper = Temper { quota_each_third: true, ..Temper::default() };
    let world = finish(temper, settings(Version::V5, 100), rows);
    assert_all_delivered(&world);
    // Two topics, so two at once; and in order, refusals or not.
    assert!(world.cloud.out_max <= 2);
    assert_order(&world.cloud);
}

// --- inbound ----------------------------------------------------------------------------------------------------

fn command(topic: &str, qos: Qos, id: u16) -> Packet {
    Packet::Publish(Publish {
        dup: false,
        retain: false,
        qos,
        packet_id: PacketId::new(id).filter(|_| qos != Qos::AtMostOnce),
        topic: Some(Topic::new(topic).unwrap()),
        payload: Bytes::from_static(b"on"),
        properties: Properties::default(),
        topic_alias: None,
        subscription_id: None,
    })
}

fn up(temper: Temper) -> World {
    let mut world = World::new(settings(Version::V5, 3), temper, Vec::new());
    while world.step() {}
    assert!(world.machine.is_up());
    assert_eq!(world.cloud.subscribed, 1);
    world
}

#[test]
fn commands_are_rewritten_and_acknowledged_in_order_only_when_accepted() {
    let mut world = up(Temper::default());
    for packet in [
        command("cmd/a", Qos::AtLeastOnce, 1),
        command("other/b", Qos::AtLeastOnce, 2),
        command("cmd/c", Qos::ExactlyOnce, 3),
        command("other/d", Qos::ExactlyOnce, 4),
        command("cmd/e", Qos::AtMostOnce, 0),
    ] {
        let at = world.at();
        world.machine.handle(at, Event::Packet(packet));
    }
    world.end_turn();
    // Nothing is accepted yet, so nothing is answered: not even 2, which matches no rule, since 1 stands before it.
    let actions = std::mem::take(&mut world.actions);
    assert!(!actions.iter().any(|action| matches!(action, Action::Send(_))), "{actions:?}");
    world.actions = actions;
    while world.step() {}
    let ids: Vec<(u8, u16)> = world
        .cloud
        .strays
        .iter()
        .map(|packet| match packet {
            Packet::Puback(ack) => (1, ack.packet_id.get()),
            Packet::Pubrec(ack) => (2, ack.packet_id.get()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [(1, 1), (1, 2), (2, 3), (2, 4)]);
    let topics: Vec<&str> = world.submitted.iter().map(|(message, _)| message.topic.as_str()).collect();
    assert_eq!(topics, ["plant/a", "plant/c", "plant/e"]);
    assert_eq!(world.submitted[1].1, Some(3));
    assert_eq!(world.submitted[0].0.origin, Origin::Uplink(Arc::from("cloud")));
    assert_eq!(world.machine.counts().unmatched, 2);
}

impl World {
    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            if !self.step() {
                let next = self.machine.deadline(self.now).unwrap_or(end);
                self.now = next.max(self.now + Duration::from_nanos(1)).min(end);
                self.end_turn();
            }
            // A pause before each connection, as the link makes it.
            if !self.opened {
                self.now += Duration::from_millis(200);
            }
        }
    }

    fn hear(&mut self, packet: Packet) {
        self.event(Event::Packet(packet));
        while self.step() {}
    }
}

fn pubrel(id: u16) -> Packet {
    Packet::Pubrel(Ack::new(PacketId::new(id).unwrap(), ReasonCode::SUCCESS))
}

#[test]
fn an_ignored_id_of_a_lost_session_swallows_no_command_of_the_next() {
    let mut world = up(Temper::default());
    world.hear(command("other/a", Qos::ExactlyOnce, 7));
    // The session is lost before PUBREL; in the new one the id names other messages.
    world.cloud.temper.forgets_sessions = true;
    world.lose_link(false);
    while world.step() {}
    assert!(world.machine.is_up());
    for count in 1..=3 {
        world.hear(command("cmd/a", Qos::ExactlyOnce, 7));
        world.hear(pubrel(7));
        assert_eq!(world.submitted.len(), count, "command {count} was thrown away");
    }
    assert!(world.received.is_empty());
}

#[test]
fn a_stored_command_that_no_rule_matches_after_a_restart_is_released_all_the_same() {
    let mut world = up(Temper::default());
    world.hear(command("cmd/a", Qos::ExactlyOnce, 7));
    let rules = std::mem::take(&mut world.settings.receive);
    world.die(Death::Process);
    while world.step() {}
    world.hear(command("cmd/a", Qos::ExactlyOnce, 7));
    world.hear(pubrel(7));
    assert_eq!(world.released, [7]);
    world.settings.receive = rules;
    world.die(Death::Process);
    while world.step() {}
    world.hear(command("cmd/a", Qos::ExactlyOnce, 7));
    assert_eq!(world.submitted.len(), 2, "the next message of this id is no repeat");
}

#[test]
fn a_command_that_is_not_accepted_is_not_acknowledged_and_the_connection_ends() {
    let mut world = up(Temper::default());
    let at = world.at();
    world.machine.handle(at, Event::Packet(command("cmd/a", Qos::AtLeastOnce, 1)));
    world.end_turn();
    let receipt = world.actions.iter().find_map(|action| match action {
        Action::Submit { receipt, .. } => Some(*receipt),
        _ => None,
    });
    world.actions.clear();
    world.event(Event::Refused { receipt: receipt.unwrap(), reason: "gone".to_owned(), is_full: false });
    assert!(matches!(world.actions.back(), Some(Action::Close(CloseReason::NotAccepted { .. }))));
    assert!(!world.actions.iter().any(|action| matches!(action, Action::Send(Packet::Puback(_)))));
}

impl World {
    /// Takes the receipts of what was handed in, unanswered.
    fn receipts(&mut self) -> Vec<(u64, String)> {
        let mut receipts = Vec::new();
        self.actions.retain(|action| match action {
            Action::Submit { receipt, message, .. } => {
                receipts.push((*receipt, message.topic.to_string()));
                false
            }
            _ => true,
        });
        receipts
    }

    fn refuse(&mut self, receipt: u64) {
        self.event(Event::Refused { receipt, reason: "the queue is full".to_owned(), is_full: true });
    }
}

#[test]
fn a_command_without_room_in_the_store_is_refused_in_version_5_and_the_connection_stays() {
    let mut world = up(Temper::default());
    for (qos, id) in [(Qos::AtLeastOnce, 1), (Qos::ExactlyOnce, 2), (Qos::AtMostOnce, 0)] {
        world.event(Event::Packet(command("cmd/a", qos, id)));
        let receipts = world.receipts();
        world.refuse(receipts[0].0);
        while world.step() {}
    }
    let refusals = world.cloud.strays.iter().filter(|packet| {
        matches!(packet, Packet::Puback(ack) | Packet::Pubrec(ack) if ack.reason == ReasonCode::QUOTA_EXCEEDED)
    });
    assert_eq!(refusals.count(), 2);
    assert!(world.closed.is_empty() && world.machine.is_up());
    assert_eq!(world.machine.counts().refused, 3);
}

#[test]
fn a_command_without_room_in_the_store_waits_in_3_1_1_and_keeps_its_place() {
    let temper = Temper { version_311: true, ..Temper::default() };
    let mut world = World::new(settings(Version::V311, 3), temper, Vec::new());
    while world.step() {}
    world.closed.clear();
    world.event(Event::Packet(command("cmd/a", Qos::ExactlyOnce, 1)));
    let first = world.receipts()[0].0;
    for _ in 0..20 {
        world.refuse(first);
        while world.step() {}
        world.now += Duration::from_millis(250);
        world.end_turn();
        assert_eq!(world.receipts(), [(first, "plant/a".to_owned())], "handed in again");
    }
    world.refuse(first);
    // One of the same topic stays behind it, others pass.
    world.event(Event::Packet(command("cmd/a", Qos::AtLeastOnce, 2)));
    world.event(Event::Packet(command("cmd/b", Qos::AtLeastOnce, 3)));
    let other = world.receipts();
    assert_eq!(other.len(), 1);
    assert_eq!(other[0].1, "plant/b");
    world.now += Duration::from_millis(250);
    world.end_turn();
    assert_eq!(world.receipts()[0].0, first);
    world.event(Event::Accepted(first));
    while world.step() {}
    world.event(Event::Accepted(other[0].0));
    while world.step() {}
    assert_eq!(world.submitted.len(), 1, "the second of the topic follows at once");
    assert_eq!(world.cloud.strays.len(), 3, "all are answered");
    assert!(world.closed.is_empty() && world.machine.is_up());
}

#[test]
fn live_messages_that_the_cloud_cannot_take_are_counted() {
    let temper = Temper { packet_bytes_max: Some(100), ..Temper::default() };
    let mut world = up(temper);
    for length in [10, 200] {
        let message = row(1, Qos::AtMostOnce, "t/1", &vec![b'1'; length]).message;
        let topic = message.topic.clone();
        world.event(Event::Live(LiveForward { message: Message { properties: None, ..message }, topic }));
    }
    while world.step() {}
    assert_eq!((world.cloud.got.len(), world.machine.counts().live_dropped), (1, 1));
}

#[test]
fn a_release_that_the_cloud_does_not_know_is_counted_and_said() {
    let mut world = World::new(settings(Version::V5, 3), Temper::default(), rows_of(1, |_| Qos::ExactlyOnce));
    while world.store.in_flight.values().all(|(_, _, is_released)| !is_released) {
        assert!(world.step());
    }
    world.lose_link(false);
    world.cloud.taken.clear();
    world.run(&[]);
    assert_eq!(world.machine.counts().uncertain, 1);
    assert!(world.notes.iter().any(|note| matches!(note, Note::Uncertain { .. })));
}

#[test]
fn an_answer_for_a_connection_that_is_gone_is_dropped() {
    let mut world = up(Temper::default());
    let at = world.at();
    world.machine.handle(at, Event::Packet(command("cmd/a", Qos::AtLeastOnce, 1)));
    world.end_turn();
    world.lose_link(false);
    while world.step() {}
    assert!(world.machine.is_up());
    assert!(world.cloud.strays.is_empty(), "a PUBACK on a connection that has not seen the PUBLISH");
}

// --- liveness, own topic, stop ------------------------------------------------------------------------------------

#[test]
fn silence_is_noticed_within_half_a_keep_alive_after_the_ping() {
    let mut world = up(Temper::default());
    world.store.rows.insert(Sequence(1), row(1, Qos::AtLeastOnce, "t/0", b"1"));
    let start = world.now;
    // The cable is cut: what is sent goes nowhere, nothing comes.
    world.cloud.temper.is_cut_off = true;
    while world.closed.is_empty() {
        while world.step() && world.closed.is_empty() {}
        world.now = world.machine.deadline(world.now).unwrap_or(world.now + Duration::from_millis(100)).max(world.now);
        world.end_turn();
        assert!(world.now < start + Duration::from_secs(300), "never noticed");
    }
    assert_eq!(world.closed, [CloseReason::Silent]);
    // Half a keep-alive until the ping, since an acknowledgement is outstanding; half a one for its answer.
    assert!(world.now <= start + Duration::from_secs(61), "{:?}", world.now);
}

#[test]
fn a_cloud_that_pings_but_acknowledges_nothing_is_left() {
    let mut world = up(Temper { answers_pings_only: true, ..Temper::default() });
    world.store.rows.insert(Sequence(1), row(1, Qos::AtLeastOnce, "t/0", b"1"));
    let start = world.now;
    while world.closed.is_empty() {
        while world.step() && world.closed.is_empty() {}
        world.now = world.machine.deadline(world.now).unwrap_or(world.now + Duration::from_millis(100)).max(world.now);
        world.end_turn();
        assert!(world.now < start + Duration::from_secs(300), "never noticed");
    }
    assert_eq!(world.closed, [CloseReason::NoProgress]);
    assert!(world.now <= start + Duration::from_secs(125));
}

fn with_own_topic(version: Version) -> Settings {
    Settings { own_topic: Some("own/g".to_owned()), receive: Vec::new(), ..settings(version, 4) }
}

#[test]
fn the_status_is_online_after_connect_and_offline_at_a_stop_in_order() {
    let mut world = World::new(with_own_topic(Version::V5), Temper::default(), rows_of(3, |_| Qos::ExactlyOnce));
    world.run(&[]);
    while world.step() {}
    world.event(Event::Stop);
    while world.step() {
        if !world.closed.is_empty() {
            break;
        }
    }
    assert_eq!(world.closed, [CloseReason::Stopped]);
    let states: Vec<String> = world
        .cloud
        .got
        .iter()
        .filter(|publish| publish.topic.as_ref().unwrap().as_str() == "own/g/status" && publish.retain)
        .map(|publish| serde_json::from_slice::<serde_json::Value>(&publish.payload).unwrap()["state"].to_string())
        .collect();
    assert_eq!(states, [r#""online""#, r#""offline""#]);
}

#[test]
fn a_stop_does_not_wait_longer_than_two_seconds_for_a_silent_cloud() {
    let mut world = up(Temper { answers_pings_only: true, ..Temper::default() });
    world.store.rows.insert(Sequence(1), row(1, Qos::AtLeastOnce, "t/0", b"1"));
    while world.step() {}
    world.event(Event::Stop);
    assert!(world.actions.is_empty());
    world.now += Duration::from_secs(2);
    world.end_turn();
    let last_two: Vec<Action> = world.actions.iter().rev().take(2).rev().cloned().collect();
    let bye = Action::Send(Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS)));
    assert_eq!(last_two, [bye, Action::Close(CloseReason::Stopped)]);
}

#[test]
fn a_cloud_that_closes_on_the_own_topic_costs_the_status_and_one_alarm() {
    let temper = Temper { closes_on: Some(b'{'), version_311: true, ..Temper::default() };
    let mut world = World::new(with_own_topic(Version::V311), temper, rows_of(5, |_| Qos::AtLeastOnce));
    world.run(&[]);
    assert!(world.store.settled.values().all(|verdict| *verdict == Verdict::Delivered));
    assert_eq!(world.notes.iter().filter(|note| **note == Note::OwnTopicOff).count(), 1);
}

#[test]
fn a_failed_commit_closes_asks_the_store_again_and_loses_nothing() {
    for fail_at in 1..12 {
        let mut world = World::new(settings(Version::V5, 3), Temper::default(), rows_of(6, |_| Qos::ExactlyOnce));
        let mut commits = 0;
        for _ in 0..100_000 {
            if let Some(Action::Commit(_)) = world.actions.front() {
                commits += 1;
                if commits == fail_at {
                    world.actions.pop_front();
                    world.event(Event::CommitFailed);
                }
            }
            if !world.step() && world.is_done() {
                break;
            }
        }
        assert!(world.is_done());
        assert!(world.closed.contains(&CloseReason::Store));
        assert_all_delivered(&world);
    }
}
