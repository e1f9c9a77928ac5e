//! The one door: route → append → fan out.
//!
//! Promises:
//! - a message that a durable stream wants, or that is retained, is committed before its sender hears of it;
//! - a repeat of a QoS 2 message is answered again and handed to nobody;
//! - what a full queue drops still goes to live subscribers: local traffic never stops because the cloud is away;
//! - what came from an uplink never goes back to it.
//!
//! A QoS 0 message that no rule raises takes no turn through the queue: it goes to live subscribers, and to the uplinks
//! that want it as it is while they are connected. What is not kept of those is counted by client.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use log::debug;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::ForwardRule;
use crate::health::{Health, UplinkHealth};
use crate::message::{Body, Filter, Message, Ordinal, Origin, Qos, Stamp, Topic};
use crate::payload::json;
use crate::queue::{AppendError, Appended, Change, Fate, Inlet, Once, Outlet, Pending, SetTopics, Submission};
use crate::router::{Link, Live, Router, RouterError};

/// QoS 0 messages that wait for one uplink.
const LANE_MESSAGES: usize = 256;

/// Why a message was not accepted: its sender must keep it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AcceptError {
    /// The queue did not take it.
    #[error("the message was not stored")]
    Queue(#[source] AppendError),
    /// The router is gone; the process is about to end.
    #[error("the message was not handed on")]
    Router(#[source] RouterError),
}

impl AcceptError {
    /// Whether it was refused only because the store is full: the sender may keep it and try again.
    pub fn is_full(&self) -> bool {
        matches!(self, AcceptError::Queue(AppendError::Full))
    }
}

/// What became of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Whether any stream or live subscriber wanted it; false = reason 0x10 for a version 5 publisher.
    pub wanted: bool,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    shared: Arc<Shared>,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lanes = self.lanes();
        f.debug_list().entries(lanes.iter().map(|lane| &lane.uplink)).finish()
    }
}

struct Shared {
    inlet: Inlet,
    router: Router,
    /// Changed by a reload: looked at as a whole, replaced as a whole.
    lanes: RwLock<Arc<[Lane]>>,
    /// Taken once each.
    ends: Mutex<BTreeMap<Arc<str>, mpsc::Receiver<LiveForward>>>,
    /// Where writes to field devices come in.
    set_topics: RwLock<SetTopics>,
    clock: Clock,
    health: Health,
}

/// The way of QoS 0 messages to one uplink.
#[derive(Clone)]
struct Lane {
    uplink: Arc<str>,
    rules: Arc<[ForwardRule]>,
    sender: mpsc::Sender<LiveForward>,
    health: Arc<UplinkHealth>,
}

/// A message on its way through the door.
#[derive(Debug)]
pub struct Ticket {
    intake: Intake,
    message: Message,
    place: Place,
}

/// Where a message is in the queue.
#[derive(Debug)]
enum Place {
    /// Nowhere: it takes no turn through it.
    None,
    Pending(Pending),
    Settled(Result<Appended, AppendError>),
}

impl Intake {
    /// A door to `inlet` and `router`, with the forward rules of each uplink in the order in which they decide.
    pub fn new(
        inlet: Inlet,
        router: Router,
        forwards: BTreeMap<Arc<str>, Vec<ForwardRule>>,
        clock: Clock,
        health: Health,
    ) -> Intake {
        let (lanes, ends) = (RwLock::new(Arc::from([])), Mutex::default());
        let set_topics = RwLock::default();
        let intake = Intake { shared: Arc::new(Shared { inlet, router, lanes, ends, set_topics, clock, health }) };
        for (uplink, rules) in forwards {
            intake.open_lane(&uplink, &rules);
        }
        intake
    }

    /// Says which topics are for writes to field devices, from now on.
    pub fn take_writes(&self, topics: SetTopics) {
        *self.shared.set_topics.write().unwrap_or_else(PoisonError::into_inner) = topics;
    }

    /// Makes the way of QoS 0 messages to an uplink, in the place of one that it had.
    pub fn open_lane(&self, uplink: &Arc<str>, rules: &[ForwardRule]) {
        let (sender, end) = mpsc::channel(LANE_MESSAGES);
        let health = self.shared.health.uplink(uplink);
        let lane = Lane { uplink: uplink.clone(), rules: rules.into(), sender, health };
        self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner).insert(uplink.clone(), end);
        self.change_lanes(|lanes| {
            lanes.retain(|other| other.uplink != lane.uplink);
            lanes.push(lane);
        });
    }

    /// There is no uplink of this name any more.
    pub fn close_lane(&self, uplink: &str) {
        self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner).remove(uplink);
        self.change_lanes(|lanes| lanes.retain(|lane| *lane.uplink != *uplink));
    }

    fn change_lanes(&self, change: impl FnOnce(&mut Vec<Lane>)) {
        let mut lanes = self.shared.lanes.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = lanes.to_vec();
        change(&mut changed);
        *lanes = changed.into();
    }

    fn lanes(&self) -> Arc<[Lane]> {
        self.shared.lanes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a message asks for a write to a field device.
    pub fn is_write(&self, message: &Message) -> bool {
        self.shared.set_topics.read().unwrap_or_else(PoisonError::into_inner).want(message)
    }

    /// The clock of the gateway.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// The clock of the gateway, for stamps of what enters here.
    pub fn now(&self) -> Stamp {
        self.shared.clock.now()
    }

    /// Takes a message in: comes back as soon as it has its place in the order of the queue (at once for a QoS 0
    /// message that no rule raises). One task's messages keep their order when it awaits the outcomes in order.
    pub async fn submit(&self, message: Message, once: Option<Once>) -> Result<Ticket, AcceptError> {
        let place = if once.is_some() || self.needs_queue(&message) {
            let submission = Submission { message: message.clone(), once };
            Place::Pending(self.shared.inlet.begin_append(submission).await.map_err(AcceptError::Queue)?)
        } else {
            Place::None
        };
        Ok(Ticket { intake: self.clone(), message, place })
    }

    /// Takes messages of the gateway's own in, with `changes` of a stream that are durable if the first message is.
    pub async fn submit_with(
        &self,
        outlet: &Outlet,
        changes: Vec<Change>,
        messages: Vec<Message>,
    ) -> Result<Vec<Ticket>, AcceptError> {
        let pending = outlet.begin_append_with(changes, messages.clone()).await.map_err(AcceptError::Queue)?;
        let ticket = |(message, pending)| Ticket { intake: self.clone(), message, place: Place::Pending(pending) };
        Ok(messages.into_iter().zip(pending).map(ticket).collect())
    }

    /// As `submit`, if the queue has room for it at once. `None`: it has to be submitted.
    pub fn submit_now(&self, message: &Message, once: Option<Once>) -> Option<Ticket> {
        let place = if once.is_some() || self.needs_queue(message) {
            let submission = Submission { message: message.clone(), once };
            Place::Pending(self.shared.inlet.begin_append_now(submission)?)
        } else {
            Place::None
        };
        Some(Ticket { intake: self.clone(), message: message.clone(), place })
    }

    /// Whether somebody hears a topic, or will: a live subscriber, or a session that is kept.
    pub async fn is_heard(&self, topic: &Topic) -> Result<bool, AppendError> {
        Ok(self.shared.router.is_wanted(topic) || self.shared.inlet.is_subscribed(topic).await?)
    }

    /// Hears what is published from now on, as a local subscriber does.
    pub async fn listen(&self, filter: &Filter) -> Result<Link, RouterError> {
        let mut link = self.shared.router.attach().await?;
        link.subscribe(filter, Qos::AtMostOnce).await?;
        Ok(link)
    }

    /// The QoS 0 messages that forward rules of `uplink` want as they come: bounded, dropped and counted per client
    /// while the uplink is not connected. Taken once.
    pub fn live_lane(&self, uplink: &Arc<str>) -> Option<mpsc::Receiver<LiveForward>> {
        self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner).remove(uplink)
    }

    fn needs_queue(&self, message: &Message) -> bool {
        // A reading gets its number and its name from the queue, whoever wants it.
        let is_reading = matches!(message.body, Body::Reading(_));
        if message.qos != Qos::AtMostOnce || message.retain || is_reading || self.is_write(message) {
            return true;
        }
        let mut is_raised = false;
        self.each_wanting(message, |_, rule| is_raised |= rule.qos.is_some_and(|qos| qos != Qos::AtMostOnce));
        is_raised
    }

    /// The forward rules of `uplink` from now on, for messages that the queue leaves out.
    pub fn set_rules(&self, uplink: &str, rules: &[ForwardRule]) {
        self.change_lanes(|lanes| {
            if let Some(lane) = lanes.iter_mut().find(|lane| *lane.uplink == *uplink) {
                lane.rules = rules.into();
            }
        });
    }

    /// Shows the uplinks that want `message`, each with the rule that decides.
    fn each_wanting(&self, message: &Message, mut show: impl FnMut(&Lane, &ForwardRule)) {
        for lane in self.lanes().iter().filter(|lane| !is_from(message, &lane.uplink)) {
            if let Some(rule) = lane.rules.iter().find(|rule| rule.filter.matches(&message.topic)) {
                show(lane, rule);
            }
        }
    }

    /// Hands a message to the uplinks that want it at QoS 0, which the queue leaves out; true when any does.
    fn forward_live(&self, message: &Message) -> bool {
        let mut is_wanted = false;
        self.each_wanting(message, |lane, rule| {
            if rule.qos.unwrap_or(message.qos) != Qos::AtMostOnce {
                return;
            }
            is_wanted = true;
            let topic = match rule.topic.apply(&rule.filter, &message.topic) {
                Some(Ok(topic)) => topic,
                Some(Err(error)) => {
                    debug!(uplink = lane.uplink.as_ref(), error:% = error; "A rule made no topic of a message");
                    return;
                }
                None => return,
            };
            let is_connected = lane.health.connected.load(std::sync::atomic::Ordering::Relaxed);
            if !is_connected || lane.sender.try_send(LiveForward { message: message.clone(), topic }).is_err() {
                self.shared.health.add_unkept(&source_name(&message.origin));
            }
        });
        is_wanted
    }

    async fn fan_out(&self, message: Message, ordinal: Option<Ordinal>) -> Result<bool, AcceptError> {
        let router = &self.shared.router;
        if !router.is_wanted(&message.topic) {
            return Ok(false);
        }
        let publisher = match message.origin {
            Origin::Client(client) => Some(client),
            Origin::Field | Origin::Uplink(_) | Origin::Gateway => None,
        };
        let payload = match message.body {
            Body::Bytes(bytes) => bytes,
            // Readings are encoded before they come here.
            Body::Reading(_) => return Ok(false),
        };
        let (topic, qos, retain) = (message.topic, message.qos, message.retain);
        let live = Live { topic, qos, retain, payload, properties: message.properties, publisher, ordinal };
        router.publish(live).await.map_err(AcceptError::Router)?;
        Ok(true)
    }
}

impl Ticket {
    /// Waits for the commit where there is one, then hands the message to live subscribers. From here on it may be
    /// acknowledged.
    pub async fn outcome(self) -> Result<Accepted, AcceptError> {
        let Ticket { intake, mut message, place } = self;
        let outcome = match place {
            Place::None => None,
            Place::Pending(pending) => Some(pending.outcome().await),
            Place::Settled(outcome) => Some(outcome),
        };
        let (mut is_kept, mut ordinal) = (false, None);
        if let Some(outcome) = outcome {
            let appended = outcome.map_err(AcceptError::Queue)?;
            match is_wanted(&appended) {
                // Answered again; who wanted it has it.
                None => return Ok(Accepted { wanted: true }),
                Some(is_wanted) => is_kept = is_wanted,
            }
            ordinal = message.retain.then(|| appended.id.ordinal());
            encode(&mut message, &appended, &intake.shared.clock);
        }
        let is_forwarded = intake.forward_live(&message);
        let is_live = intake.fan_out(message, ordinal).await?;
        Ok(Accepted { wanted: is_kept || is_forwarded || is_live })
    }

    /// As `outcome`, if it can be had without waiting and is good: the commit is done, and no live subscriber wants the
    /// message. A burst of messages is answered so, at a fraction of the cost. To be asked no more after it was told.
    pub fn outcome_now(&mut self) -> Option<Accepted> {
        if let Place::Pending(pending) = &mut self.place {
            self.place = Place::Settled(pending.outcome_now()?);
        }
        let is_kept = match &self.place {
            Place::Settled(Ok(appended)) => is_wanted(appended)?,
            _ => return None,
        };
        // A reading gets its number first.
        let is_reading = matches!(self.message.body, Body::Reading(_));
        if is_reading || self.intake.shared.router.is_wanted(&self.message.topic) {
            return None;
        }
        let is_forwarded = self.intake.forward_live(&self.message);
        Some(Accepted { wanted: is_kept || is_forwarded })
    }
}

/// Whether any stream wants it; `None` for a repeat.
fn is_wanted(appended: &Appended) -> Option<bool> {
    match appended.fate {
        Fate::Duplicate => None,
        Fate::Stored { streams, .. } => Some(streams > 0),
        Fate::Unwanted => Some(false),
        // A stream wanted it, or there would have been nothing to drop.
        Fate::Dropped(_) => Some(true),
    }
}

/// For whoever gets a reading now: as the object that it is at the cloud, with the number and the name it was given.
fn encode(message: &mut Message, appended: &Appended, clock: &Clock) {
    if let Body::Reading(reading) = &mut message.body {
        reading.seq = appended.reading_seq;
        let timing = clock.timing(reading.stamp);
        message.body = Body::Bytes(json::encode(reading, &appended.id, timing));
    }
}

/// A QoS 0 message for an uplink.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveForward {
    /// As published locally; a reading is encoded already.
    pub message: Message,
    /// Its topic at the cloud.
    pub topic: crate::message::Topic,
}

fn is_from(message: &Message, uplink: &Arc<str>) -> bool {
    matches!(&message.origin, Origin::Uplink(name) if name == uplink)
}

fn source_name(origin: &Origin) -> Arc<str> {
    match origin {
        Origin::Client(client) => client.clone(),
        Origin::Uplink(uplink) => uplink.clone(),
        Origin::Field => Arc::from("(field)"),
        Origin::Gateway => Arc::from("(gateway)"),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::time::timeout;

    use super::*;
    use crate::clock::ClockSource;
    use crate::config::{TopicTemplate, WhenFull};
    use crate::message::{Filter, Quality, Reading, Topic, Value};
    use crate::queue::{self, QueueSettings, StreamSpec};
    use crate::router::{Link, RouterLimits};

    const PATIENCE: Duration = Duration::from_secs(30);

    struct House {
        intake: Intake,
        router: Router,
        health: Health,
        inlet: Inlet,
        thread: std::thread::JoinHandle<()>,
        _dir: tempfile::TempDir,
    }

    fn rule(filter: &str, qos: Option<Qos>) -> ForwardRule {
        ForwardRule {
            filter: Filter::new(filter).unwrap(),
            topic: TopicTemplate::identity(),
            qos,
            when_full: None,
            strict_order: false,
            payload: crate::config::Payload::JSON,
            batch: None,
        }
    }

    fn house(rules: Vec<ForwardRule>, when_full: WhenFull) -> House {
        let dir = tempfile::tempdir().unwrap();
        let (clock, health) = (Clock::new(ClockSource::Trusted), Health::default());
        let cloud: Arc<str> = Arc::from("cloud");
        let opened = queue::open(QueueSettings {
            set_topics: queue::SetTopics::default(),
            dir: dir.path().to_owned(),
            gateway: Arc::from("test"),
            bytes_max: NonZeroU64::new(1 << 20).unwrap(),
            age_max: None,
            keep: None,
            when_full,
            hold: None,
            streams: vec![StreamSpec { name: cloud.clone(), rules: rules.clone(), own_topic: None }],
            clock: clock.clone(),
            health: health.clone(),
        })
        .unwrap();
        let worker = opened.worker;
        let thread = std::thread::spawn(move || worker.run().unwrap());
        let router = Router::start(RouterLimits::default()).unwrap();
        let forwards = BTreeMap::from([(cloud, rules)]);
        let intake = Intake::new(opened.inlet.clone(), router.clone(), forwards, clock, health.clone());
        House { intake, router, health, inlet: opened.inlet, thread, _dir: dir }
    }

    impl House {
        async fn accept(&self, message: Message, once: Option<Once>) -> Accepted {
            self.intake.submit(message, once).await.unwrap().outcome().await.unwrap()
        }

        async fn link(&self, filter: &str) -> Link {
            let mut link = self.router.attach().await.unwrap();
            link.subscribe(&Filter::new(filter).unwrap(), Qos::AtMostOnce).await.unwrap();
            link
        }

        async fn end(self) {
            self.inlet.stop().await;
            self.thread.join().unwrap();
        }
    }

    async fn next(link: &mut Link) -> Live {
        timeout(PATIENCE, link.next()).await.expect("nothing came").unwrap().live
    }

    fn message(topic: &str, qos: Qos, origin: Origin, body: Body) -> Message {
        let received = Stamp::default();
        Message { topic: Topic::new(topic).unwrap(), qos, retain: false, properties: None, body, origin, received }
    }

    fn text(body: &'static str) -> Body {
        Body::Bytes(Bytes::from_static(body.as_bytes()))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn live_subscribers_get_a_reading_with_the_number_and_name_that_the_queue_gave() {
        let house = house(vec![rule("field/#", None)], WhenFull::DropOldest);
        let mut link = house.link("field/#").await;
        for (qos, seq) in [(Qos::AtMostOnce, 1), (Qos::AtLeastOnce, 2)] {
            let reading = Reading {
                device: Arc::from("chiller"),
                point: Arc::from("supply"),
                value: Value::Float(6.5),
                unit: None,
                quality: Quality::Good,
                reason: None,
                seq: 0,
                stamp: Stamp::default(),
            };
            house.accept(message("field/chiller/supply", qos, Origin::Field, Body::Reading(reading)), None).await;
            let live = next(&mut link).await;
            let json: serde_json::Value = serde_json::from_slice(&live.payload).unwrap();
            assert_eq!((json["seq"].as_u64(), live.publisher), (Some(seq), None));
            assert!(json["id"].as_str().unwrap().starts_with("test."));
        }
        house.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_answered_at_once_before_its_commit_nor_past_a_live_subscriber() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new(ClockSource::Trusted);
        let opened = queue::open(QueueSettings {
            set_topics: queue::SetTopics::default(),
            dir: dir.path().to_owned(),
            gateway: Arc::from("test"),
            bytes_max: NonZeroU64::new(1 << 24).unwrap(),
            age_max: None,
            keep: None,
            when_full: WhenFull::Refuse,
            hold: None,
            streams: vec![StreamSpec { name: Arc::from("cloud"), rules: vec![rule("#", None)], own_topic: None }],
            clock: clock.clone(),
            health: Health::default(),
        })
        .unwrap();
        let router = Router::start(RouterLimits::default()).unwrap();
        let intake = Intake::new(opened.inlet.clone(), router.clone(), BTreeMap::new(), clock, Health::default());
        let of = |topic| message(topic, Qos::AtLeastOnce, Origin::Client(Arc::from("c")), text("x"));
        let mut quiet = intake.submit_now(&of("quiet"), None).unwrap();
        let mut heard = intake.submit_now(&of("heard"), None).unwrap();
        // Nobody has begun to work on the queue: however often it is asked, there is no answer.
        for _ in 0..100 {
            assert!(quiet.outcome_now().is_none() && heard.outcome_now().is_none());
        }
        let mut taken = 2;
        while intake.submit_now(&of("quiet"), None).is_some() {
            taken += 1;
            assert!(taken < 100_000, "the channel is bounded");
        }
        let mut link = router.attach().await.unwrap();
        link.subscribe(&Filter::new("heard").unwrap(), Qos::AtMostOnce).await.unwrap();
        let worker = opened.worker;
        let thread = std::thread::spawn(move || worker.run().unwrap());
        let answered = timeout(PATIENCE, async {
            loop {
                match quiet.outcome_now() {
                    Some(accepted) => break accepted,
                    None => tokio::task::yield_now().await,
                }
            }
        });
        assert!(answered.await.unwrap().wanted);
        assert!(heard.outcome_now().is_none(), "it has to be handed on first");
        assert!(heard.outcome().await.unwrap().wanted);
        assert_eq!(next(&mut link).await.topic.as_str(), "heard");
        opened.inlet.stop().await;
        thread.join().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_came_from_an_uplink_never_goes_back_to_it() {
        let house = house(vec![rule("#", None)], WhenFull::DropOldest);
        let cloud: Arc<str> = Arc::from("cloud");
        let mut lane = house.intake.live_lane(&cloud).unwrap();
        house.health.uplink(&cloud).connected.store(true, Ordering::Relaxed);
        let from = |origin| message("t", Qos::AtMostOnce, origin, text("x"));
        assert!(!house.accept(from(Origin::Uplink(cloud.clone())), None).await.wanted);
        assert!(house.accept(from(Origin::Uplink(Arc::from("other"))), None).await.wanted);
        let forwarded = timeout(PATIENCE, lane.recv()).await.unwrap().unwrap();
        assert_eq!(forwarded.message.origin, Origin::Uplink(Arc::from("other")));
        assert!(lane.try_recv().is_err());
        house.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_rule_that_lowers_to_qos_0_sends_live_and_one_that_raises_stores() {
        let rules = vec![rule("low/#", Some(Qos::AtMostOnce)), rule("high/#", Some(Qos::AtLeastOnce))];
        let house = house(rules, WhenFull::DropOldest);
        let cloud: Arc<str> = Arc::from("cloud");
        let mut lane = house.intake.live_lane(&cloud).unwrap();
        house.health.uplink(&cloud).connected.store(true, Ordering::Relaxed);
        let client = Origin::Client(Arc::from("c"));
        house.accept(message("low/a", Qos::AtLeastOnce, client.clone(), text("x")), None).await;
        house.accept(message("high/a", Qos::AtMostOnce, client.clone(), text("x")), None).await;
        assert_eq!(lane.recv().await.unwrap().topic.as_str(), "low/a");
        assert!(lane.try_recv().is_err());
        assert_eq!(house.health.queue().messages.load(Ordering::Relaxed), 1);
        drop(lane);
        house.accept(message("low/a", Qos::AtMostOnce, client, text("x")), None).await;
        assert_eq!(
            house.health.snapshot(house.intake.now()).unkept_qos0["c"],
            1,
            "a lane without an end keeps nothing"
        );
        house.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_repeat_is_answered_and_handed_to_nobody() {
        let house = house(vec![rule("#", None)], WhenFull::DropOldest);
        let mut link = house.link("#").await;
        let session = house.inlet.open_session().await.unwrap();
        let once = Some(Once::Packet { session, packet_id: 7 });
        let from = |body| message("t", Qos::ExactlyOnce, Origin::Client(Arc::from("c")), text(body));
        for _ in 0..3 {
            assert!(house.accept(from("first"), once).await.wanted);
        }
        house.accept(from("second"), Some(Once::Packet { session, packet_id: 8 })).await;
        assert_eq!(next(&mut link).await.payload, "first");
        assert_eq!(next(&mut link).await.payload, "second");
        house.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_full_queue_drops_still_goes_to_live_subscribers_and_what_it_refuses_does_not() {
        for when_full in [WhenFull::DropNewest, WhenFull::Refuse] {
            let house = house(vec![rule("#", None)], when_full);
            let mut link = house.link("t").await;
            let body = Body::Bytes(Bytes::from(vec![b'x'; 50_000]));
            let mut refused = 0;
            for _ in 0..40 {
                let from = message("t", Qos::AtLeastOnce, Origin::Client(Arc::from("c")), body.clone());
                match house.intake.submit(from, None).await.unwrap().outcome().await {
                    Ok(accepted) => {
                        assert!(accepted.wanted);
                        next(&mut link).await;
                    }
                    Err(error) => {
                        assert!(error.is_full());
                        refused += 1;
                    }
                }
            }
            assert_eq!(refused > 0, when_full == WhenFull::Refuse);
            let snapshot = house.health.snapshot(house.intake.now());
            let dropped = snapshot.losses.get("dropped-newest").copied().unwrap_or(0);
            assert_eq!(dropped > 0, when_full == WhenFull::DropNewest);
            house.end().await;
        }
    }
}
