//! A model store and a model cloud that drive the real machine of the uplink; the world ends between every two steps.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::clock::Timing;
use tidegate::config::clouds::GENERIC;
use tidegate::config::{BatchLimits, DrainOrder, Pace, Payload, ReceiveRule, TopicTemplate};
use tidegate::message::{
    Body, Filter, Message, MessageId, Origin, Properties, Qos, Quality, Reading, Sequence, Stamp, Topic, Value,
};
use tidegate::mqtt::{Ack, Connack, Disconnect, Packet, PacketId, Publish, ReasonCode, Suback, Subscription, Version};
use tidegate::queue::{Batching, Change, Encoding, InFlight, Once, Queued, Restored, SessionNumber, Verdict, Wanted};
use tidegate::uplink::machine::{Action, CloseReason, Event, Machine, Moment, Note, Settings};

// --- the model store --------------------------------------------------------------------------------------------

#[derive(Default)]
pub struct Store {
    pub rows: BTreeMap<Sequence, Queued>,
    pub settled: BTreeMap<Sequence, Verdict>,
    /// By packet id: order, rows, released.
    pub in_flight: BTreeMap<u16, (u64, Vec<Sequence>, bool)>,
    pub session_key: Option<u64>,
    pub session: u64,
    pub cursor: Sequence,
    /// Where the live lane has been read to, once it has begun.
    pub head: Option<Sequence>,
}

impl Store {
    pub fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Admit { packet_id, rows, order, .. } => {
                    for sequence in &rows {
                        assert!(!self.settled.contains_key(sequence), "a settled row is admitted");
                        let is_busy = self.in_flight.values().any(|(_, others, _)| others.contains(sequence));
                        assert!(!is_busy, "a row is admitted twice");
                    }
                    let old = self.in_flight.insert(packet_id, (order, rows, false));
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
                Change::Pace(topic) => panic!("an uplink writes nothing to the field: {topic}"),
            }
        }
        for sequence in self.in_flight.values().flat_map(|(_, rows, _)| rows) {
            assert!(!self.settled.contains_key(sequence), "a settled row keeps its packet id");
        }
    }

    pub fn restore(&mut self) -> Restored {
        self.cursor = Sequence(0);
        let mut in_flight: Vec<InFlight> = self
            .in_flight
            .iter()
            .map(|(id, (order, rows, released))| InFlight {
                packet_id: *id,
                released: *released,
                order: *order,
                rows: rows.iter().map(|sequence| self.rows[sequence].clone()).collect(),
            })
            .collect();
        in_flight.sort_by_key(|one| one.order);
        Restored { session_key: self.session_key, session: SessionNumber(self.session), in_flight, paced: Vec::new() }
    }

    pub fn next(&mut self, count: usize) -> Vec<Queued> {
        let rows = self.between(self.cursor, self.head.unwrap_or(Sequence(u64::MAX)), count);
        if let Some(last) = rows.last() {
            self.cursor = last.sequence;
        }
        rows
    }

    pub fn next_live(&mut self, count: usize) -> Vec<Queued> {
        let head = self.head.expect("a live lane that has not begun");
        let rows = self.between(head, Sequence(u64::MAX), count);
        if let Some(last) = rows.last() {
            if self.cursor >= head {
                self.cursor = last.sequence;
            }
            self.head = Some(last.sequence);
        }
        rows
    }

    pub fn between(&self, after: Sequence, to: Sequence, count: usize) -> Vec<Queued> {
        let busy: BTreeSet<Sequence> = self.in_flight.values().flat_map(|(_, rows, _)| rows.iter().copied()).collect();
        self.rows
            .range((std::ops::Bound::Excluded(after), std::ops::Bound::Included(to.max(after))))
            .filter(|(place, _)| !self.settled.contains_key(place) && !busy.contains(place))
            .map(|(_, row)| row.clone())
            .take(count)
            .collect()
    }
}

// --- the model cloud --------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Default)]
pub struct Temper {
    pub version_311: bool,
    pub receive_max: Option<u16>,
    pub qos_max: Option<Qos>,
    pub packet_bytes_max: Option<u32>,
    pub reverses: bool,
    pub quota_each_third: bool,
    pub says_no_subscribers: bool,
    pub forbids_each_third: bool,
    pub sends_strays: bool,
    /// Closes without a word on a body that starts with this.
    pub closes_on: Option<u8>,
    /// Closes without a word on every PUBLISH: a balancer before a dead broker.
    pub closes_on_all: bool,
    /// Closes on this topic, as a cloud does in 3.1.1 whose policy lacks it.
    pub closes_on_topic: Option<&'static str>,
    /// The same for a subscription whose filter starts with this; or refuses it.
    pub closes_on_filter: Option<&'static str>,
    pub refuses_filter: Option<&'static str>,
    /// Answers a body that starts with this with that reason.
    pub refuses: Option<(u8, u8)>,
    /// Answers a batch that holds the reading of this number with that reason.
    pub refuses_reading: Option<(u64, u8)>,
    /// Closes without a word on a batch that holds the reading of this number.
    pub closes_on_reading: Option<u64>,
    /// Answers CONNECT with this.
    pub connack: Option<u8>,
    /// Ends the connection on a body that starts with this, with that reason.
    pub disconnects: Option<(u8, u8)>,
    /// Takes a body that is this and does not answer, on the first connection.
    pub swallows: Option<&'static [u8]>,
    /// Throws every message of this many away without a word, as a cloud whose quota is used up.
    pub throws_each: Option<usize>,
    pub forgets_sessions: bool,
    pub closes_beyond: Option<usize>,
    /// Says why, with this reason.
    pub says_beyond: Option<u8>,
    /// Closes on a new packet id beside so many QoS 2 ids that it holds, also from earlier connections: Mosquitto.
    pub holds_max: Option<usize>,
    pub answers_pings_only: bool,
    pub is_cut_off: bool,
    pub has_no_retain: bool,
}

#[derive(Default)]
pub struct Cloud {
    pub temper: Temper,
    pub has_session: bool,
    pub taken: BTreeSet<u16>,
    pub got: Vec<Publish>,
    pub connected: bool,
    pub out: usize,
    pub out_max: usize,
    /// The most QoS 2 ids that were held at once, with the new one.
    pub held_max: usize,
    pub published: usize,
    pub forbidden: usize,
    pub thrown: usize,
    pub back: VecDeque<Packet>,
    pub withheld: Vec<Packet>,
    pub strays: Vec<Packet>,
    pub closes: bool,
    pub dups_without_flag: usize,
    pub subscribed: usize,
    pub connects: usize,
    pub clean_starts: usize,
}

impl Cloud {
    pub fn handle(&mut self, packet: Packet) {
        if self.temper.is_cut_off {
            return;
        }
        let answer = match packet {
            Packet::Connect(connect) => {
                self.connected = true;
                self.connects += 1;
                self.clean_starts += usize::from(connect.clean_start);
                self.out = 0;
                if connect.clean_start || self.temper.forgets_sessions {
                    self.has_session = false;
                    self.taken.clear();
                }
                if let Some(code) = self.temper.connack {
                    return self.back.push_back(Packet::Connack(Box::new(Connack::new(ReasonCode(code)))));
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
                let is_in = |start: Option<&str>, one: &Subscription| {
                    start.is_some_and(|start| one.filter.as_str().starts_with(start))
                };
                if subscribe.subscriptions.iter().any(|one| is_in(self.temper.closes_on_filter, one)) {
                    self.closes = true;
                    return;
                }
                let reasons = subscribe.subscriptions.iter().map(|one| {
                    if is_in(self.temper.refuses_filter, one) {
                        ReasonCode::NOT_AUTHORIZED
                    } else {
                        ReasonCode::GRANTED_QOS_1
                    }
                });
                let reasons = reasons.collect();
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

    pub fn flush(&mut self) {
        self.back.extend(self.withheld.drain(..).rev());
    }

    pub fn publish(&mut self, publish: Publish) -> Option<Packet> {
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
        let holds = |number: u64| numbers_in(&publish.payload).is_some_and(|numbers| numbers.contains(&number));
        if self.temper.closes_on_reading.is_some_and(holds) {
            self.closes = true;
            return None;
        }
        let is_refused = self.temper.refuses_reading.filter(|(number, _)| holds(*number));
        if let Some((body, code)) = self.temper.disconnects
            && first == Some(body)
        {
            return Some(Packet::Disconnect(Disconnect::new(ReasonCode(code))));
        }
        let Some(id) = publish.packet_id else {
            self.got.push(publish);
            return None;
        };
        self.published += 1;
        self.out += 1;
        self.out_max = self.out_max.max(self.out);
        if self.temper.closes_beyond.is_some_and(|limit| self.out > limit) {
            if let Some(code) = self.temper.says_beyond {
                return Some(Packet::Disconnect(Disconnect::new(ReasonCode(code))));
            }
            self.closes = true;
            return None;
        }
        if !self.taken.contains(&id.get()) {
            self.held_max = self.held_max.max(self.taken.len() + 1);
            if self.temper.holds_max.is_some_and(|limit| self.taken.len() >= limit) {
                self.closes = true;
                return None;
            }
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
        if let Some((_, code)) = is_refused {
            reason = ReasonCode(code);
        }
        if self.temper.throws_each.is_some_and(|each| self.published.is_multiple_of(each)) {
            self.thrown += 1;
            return None;
        }
        let is_swallowed = self.connects == 1 && self.temper.swallows == Some(&publish.payload[..]);
        if publish.qos == Qos::AtLeastOnce {
            if !reason.is_failure() {
                self.got.push(publish);
            }
            if is_swallowed {
                return None;
            }
            return Some(Packet::Puback(Ack::new(id, reason)));
        }
        if self.taken.contains(&id.get()) {
            self.dups_without_flag += usize::from(!publish.dup);
        } else if !reason.is_failure() {
            self.taken.insert(id.get());
            self.got.push(publish);
        }
        if is_swallowed {
            return None;
        }
        Some(Packet::Pubrec(Ack::new(id, reason)))
    }

    pub fn hang_up(&mut self) {
        self.connected = false;
        self.closes = false;
        self.back.clear();
        self.withheld.clear();
    }

    /// How often each message arrived, by the id it bears.
    pub fn arrivals(&self) -> HashMap<String, usize> {
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
pub enum Death {
    Process,
    Link,
    PeerCloses,
    /// The commit under way fails, and is on disk all the same or is not; with none, nothing happens.
    Commit,
}

pub struct World {
    pub settings: Settings,
    pub machine: Machine,
    pub store: Store,
    pub cloud: Cloud,
    pub actions: VecDeque<Action>,
    pub to_cloud: VecDeque<Packet>,
    pub committed: bool,
    pub restored: Option<Restored>,
    pub fetch: Option<Wanted>,
    pub fetch_live: Option<Wanted>,
    pub round: u64,
    pub opened: bool,
    pub now: Duration,
    pub steps: usize,
    pub seed: u64,
    pub notes: Vec<Note>,
    pub closed: Vec<CloseReason>,
    pub submitted: Vec<(Message, Option<u16>)>,
    /// Received ids that the store knows, and what was asked to be released.
    pub received: BTreeSet<(u64, u16)>,
    pub released: Vec<u16>,
    pub answers: VecDeque<Event>,
    /// Places of rows in the order in which each was first handed to a socket.
    pub first_sent: Vec<(Topic, Sequence)>,
    pub ever_sent: BTreeSet<Sequence>,
    /// Rows that come while the world turns, and at which step.
    pub later: VecDeque<(usize, Queued)>,
    pub key: u64,
    /// What the store was told of the connection.
    pub is_live: bool,
}

pub fn settings(version: Version, window: u16) -> Settings {
    let filter = Filter::new("cmd/#").unwrap();
    Settings {
        name: Arc::from("cloud"),
        gateway: Arc::from("g"),
        profile: &GENERIC,
        version,
        client_id: "g".to_owned(),
        username: None,
        window: NonZeroU16::new(window).unwrap(),
        keep_alive: Duration::from_secs(60),
        session_expiry: Duration::from_secs(86_400),
        drain: DrainOrder::default(),
        pace: Pace::default(),
        own_topic: None,
        receive: vec![ReceiveRule {
            topic: TopicTemplate::parse("plant/{rest}", &filter, "g").unwrap(),
            filter,
            qos: Qos::ExactlyOnce,
            answer: None,
            answers: Vec::new(),
        }],
        twin: None,
        jobs: None,
    }
}

pub fn row(number: u64, qos: Qos, topic: &str, body: &[u8]) -> Queued {
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
        encoding: Encoding { topic: Topic::new(topic).unwrap(), payload: Payload::JSON, timing: Timing::Stamped },
        strict_order: false,
        batching: None,
        expires_mono_ms: None,
        age_ms: None,
        is_again: false,
    }
}

/// One that may travel with others.
pub fn reading(number: u64, qos: Qos, topic: &str, limits: BatchLimits) -> Queued {
    let mut row = row(number, qos, topic, b"");
    row.message.retain = false;
    row.message.properties = None;
    row.message.body = Body::Reading(Reading {
        device: Arc::from("d"),
        point: Arc::from("p"),
        value: Value::Uint(number),
        unit: None,
        quality: Quality::Good,
        reason: None,
        seq: number,
        stamp: Stamp::default(),
    });
    row.encoding.payload = Payload::JSON_BATCH;
    row.batching = Some(Batching { rule: 0, limits });
    row
}

/// The number in a `MessageId` of the model.
pub fn number_of(id: &str) -> u64 {
    id.rsplit('.').next().unwrap().parse().unwrap()
}

/// The numbers of the readings in a batch, by the ids that they bear.
pub fn numbers_of(payload: &[u8]) -> Vec<u64> {
    numbers_in(payload).expect("an array of objects, each with its id")
}

/// The same; `None` for another form than the plain array.
fn numbers_in(payload: &[u8]) -> Option<Vec<u64>> {
    let objects: Vec<serde_json::Value> = serde_json::from_slice(payload).ok()?;
    objects.iter().map(|object| Some(number_of(object["id"].as_str()?))).collect()
}

impl World {
    pub fn new(settings: Settings, temper: Temper, rows: Vec<Queued>) -> World {
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
            fetch_live: None,
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
            first_sent: Vec::new(),
            ever_sent: BTreeSet::new(),
            later: VecDeque::new(),
            key: 7,
            is_live: false,
        };
        world.end_turn();
        world
    }

    pub fn at(&self) -> Moment {
        Moment { now: self.now, stamp: Stamp::default() }
    }

    pub fn chance(&mut self, of: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % of as u64) as usize
    }

    pub fn event(&mut self, event: Event) {
        let at = self.at();
        self.machine.handle(at, event);
        self.end_turn();
    }

    pub fn end_turn(&mut self) {
        let at = self.at();
        self.machine.turn(at);
        self.actions.extend(self.machine.take_actions());
    }

    pub fn lose_link(&mut self, by_peer: bool) {
        self.cloud.hang_up();
        self.to_cloud.clear();
        self.opened = false;
        // What was to be sent is gone with the socket; what was for the store is not.
        self.actions.retain(|action| !matches!(action, Action::Send(_) | Action::Close(_)));
        self.event(Event::Lost { by_peer });
    }

    pub fn die(&mut self, death: Death) {
        // Half of the time what was written still arrives.
        if self.chance(2) == 0 {
            while let Some(packet) = self.to_cloud.pop_front() {
                self.cloud.handle(packet);
            }
        }
        match death {
            Death::Link => self.lose_link(false),
            Death::PeerCloses => self.lose_link(true),
            Death::Commit => {
                let next = self.actions.iter().position(|action| matches!(action, Action::Commit(_)));
                if std::mem::take(&mut self.committed) || next.and_then(|at| self.actions.remove(at)).is_some() {
                    self.event(Event::CommitFailed);
                }
            }
            Death::Process => {
                self.cloud.hang_up();
                self.to_cloud.clear();
                self.actions.clear();
                self.committed = false;
                self.restored = None;
                (self.fetch, self.fetch_live) = (None, None);
                self.store.head = None;
                self.round = 0;
                self.opened = false;
                self.answers.clear();
                self.machine = Machine::new(self.settings.clone());
                self.end_turn();
            }
        }
    }

    pub fn note_sent(&mut self, packet: &Packet) {
        let Packet::Publish(publish) = packet else { return };
        let user = publish.properties.user.iter();
        let Some(id) = user.filter(|(name, _)| name == "tidegate-id").map(|(_, id)| id).next_back() else { return };
        let numbers = match id.contains('+') {
            // In another form they are those that follow the first one.
            true => numbers_in(&publish.payload).unwrap_or_else(|| {
                let (first, count) = id.split_once('+').unwrap();
                (0..count.parse().unwrap()).map(|next| number_of(first) + next).collect()
            }),
            false => vec![number_of(id)],
        };
        for number in numbers.into_iter().map(Sequence) {
            if self.ever_sent.insert(number) {
                self.first_sent.push((self.store.rows[&number].encoding.topic.clone(), number));
            }
        }
    }

    pub fn act(&mut self, action: Action) {
        match action {
            Action::Send(packet) => {
                self.note_sent(&packet);
                self.to_cloud.push_back(packet);
            }
            Action::Commit(changes) => {
                self.store.apply(changes);
                assert!(!self.committed, "two commits at once");
                self.committed = true;
            }
            Action::Restore => {
                assert!(!self.committed, "the store is read while a commit is under way");
                self.restored = Some(self.store.restore());
                (self.fetch, self.fetch_live) = (None, None);
            }
            Action::Fetch { round, wanted } => {
                if round != self.round {
                    self.store.cursor = Sequence(0);
                }
                self.round = round;
                self.fetch = Some(wanted);
            }
            Action::FetchLive { begins, wanted } => {
                if begins {
                    let newest = self.store.rows.keys().next_back().copied().unwrap_or_default();
                    self.store.head = Some(newest.max(self.store.head.unwrap_or_default()));
                }
                self.fetch_live = Some(wanted);
            }
            Action::Submit { receipt, message, once } => {
                // A repeat is accepted and thrown away, as the queue does it.
                let packet = once.and_then(in_session);
                if packet.is_none_or(|packet| self.received.insert(packet)) {
                    self.submitted.push((*message, packet.map(|(_, packet_id)| packet_id)));
                }
                self.answers.push_back(Event::Accepted(receipt));
            }
            Action::Release { receipt, once } => {
                let packet = in_session(once).expect("only ids of QoS 2 are released");
                self.released.push(packet.1);
                let was_known = self.received.remove(&packet);
                self.answers.push_back(Event::Released { receipt, was_known });
            }
            Action::Live(is_live) => self.is_live = is_live,
            Action::Close(reason) => {
                while let Some(packet) = self.to_cloud.pop_front() {
                    self.cloud.handle(packet);
                }
                self.closed.push(reason);
                self.lose_link(false);
            }
            Action::Desired(_) => {}
            Action::Note(note) => self.notes.push(note),
        }
    }

    /// One step of the world; false when nothing is left to do but wait.
    pub fn step(&mut self) -> bool {
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
                    if let Some(Wanted { count, .. }) = self.fetch_live {
                        let rows = self.store.next_live(count);
                        if !rows.is_empty() {
                            self.fetch_live = None;
                            self.event(Event::LiveRows(rows));
                            return true;
                        }
                    }
                    if let Some(Wanted { count, waits, .. }) = self.fetch {
                        let rows = self.store.next(count);
                        if !rows.is_empty() || !waits {
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

    pub fn let_come(&mut self) {
        while self.later.front().is_some_and(|(step, _)| *step <= self.steps) {
            let (_, row) = self.later.pop_front().unwrap();
            self.store.rows.insert(row.sequence, row);
        }
    }

    pub fn is_done(&self) -> bool {
        self.store.settled.len() == self.store.rows.len() && self.store.in_flight.is_empty()
    }

    /// Runs until all rows are settled, dying at the steps that `deaths` says.
    pub fn run(&mut self, deaths: &[(usize, Death)]) {
        let mut deaths = deaths.iter().copied().peekable();
        for _ in 0..200_000 {
            self.let_come();
            while let Some((_, death)) = deaths.next_if(|(step, _)| *step <= self.steps) {
                self.die(death);
            }
            if self.step() {
                continue;
            }
            if let Some((step, _)) = self.later.front() {
                self.steps = self.steps.max(*step);
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

pub fn rows_of(count: u64, qos: impl Fn(u64) -> Qos) -> Vec<Queued> {
    (1..=count)
        .map(|number| row(number, qos(number), &format!("t/{}", number % 2), format!("{number}").as_bytes()))
        .collect()
}

pub fn assert_order(cloud: &Cloud) {
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

/// First attempts leave in the order of the queue, topic by topic.
pub fn assert_first_attempts_in_order(world: &World) {
    let mut last: HashMap<&Topic, Sequence> = HashMap::new();
    for (topic, sequence) in &world.first_sent {
        let before = last.insert(topic, *sequence).unwrap_or(Sequence(0));
        assert!(before < *sequence, "row {sequence} was first sent after {before}");
    }
}

/// What holds whatever the QoS of the rows, the windows and the deaths are.
pub fn assert_any_mix(seed: u64, window: u16, receive_max: Option<u16>, qos: &[u8], deaths: &[(usize, Death)]) {
    let rows: Vec<Queued> = (1..)
        .zip(qos)
        .map(|(number, qos)| {
            row(number, Qos::from_level(*qos).unwrap(), &format!("t/{}", number % 3), number.to_string().as_bytes())
        })
        .collect();
    let temper = Temper { receive_max, ..Temper::default() };
    let mut world = World::new(settings(Version::V5, window), temper, rows);
    world.seed = seed;
    world.run(deaths);
    let arrivals = world.cloud.arrivals();
    assert_eq!(arrivals.len(), qos.len(), "lost");
    for (place, _) in qos.iter().enumerate().filter(|(_, qos)| **qos == 2) {
        assert_eq!(arrivals[&format!("g.000000000001.1.{}", place + 1)], 1, "row {} was doubled", place + 1);
    }
    assert!(world.cloud.out_max <= usize::from(window.min(receive_max.unwrap_or(window))), "beyond Receive Maximum");
    assert!(world.cloud.held_max <= usize::from(window), "beyond what a cloud takes that counts what it holds");
    assert_first_attempts_in_order(&world);
    assert_order(&world.cloud);
}

impl World {
    pub fn run_for(&mut self, duration: Duration) {
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
}

pub fn assert_all_delivered(world: &World) {
    for (sequence, verdict) in &world.store.settled {
        assert_eq!(*verdict, Verdict::Delivered, "row {sequence}");
    }
    assert!(world.cloud.arrivals().values().all(|count| *count == 1));
    assert_eq!(world.cloud.arrivals().len(), world.store.rows.len());
}

/// What a QoS 2 message is known by.
fn in_session(once: Once) -> Option<(u64, u16)> {
    match once {
        Once::Packet { session, packet_id } => Some((session.0, packet_id)),
        Once::Command { .. } => None,
    }
}
