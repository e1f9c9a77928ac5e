//! The MQTT session with the cloud as a pure machine: an event and the moment in, actions out.
//!
//! Promises (facts: the exactly-once table):
//! - QoS 2: a packet id is on disk before its PUBLISH, a PUBREC before its PUBREL; ids are not reused before that.
//! - A row is settled only by the cloud's acknowledgement, or given up for a reason that is named.
//! - All that one turn brought is one transaction; at most one is under way; what must follow it is held until it is
//!   on disk. New QoS 1 messages need no row of their own and do not wait for it.
//! - Resends come before fresh rows and count against the cloud's Receive Maximum like them. But after a restart, where
//!   the QoS 1 rows that were in flight are fresh again, each PUBLISH that is resent lets older rows pass first, so that
//!   the first attempts of a topic leave in the order of the queue. (The standard asks for less: the order of a topic and
//!   a QoS, MQTT 5.0, 4.6.)
//! - What a process that dies has to send again though the cloud has it, is never more than the window: what is
//!   acknowledged leaves the window when that is on disk.
//! - A batch is admitted, acknowledged and resent as one message. Refused as one it is halved; only a single message
//!   becomes a dead letter.
//! - No packet of the cloud, however odd, ends in a loop of reconnections by itself: what is unknown is answered as
//!   the standard says, and counted.
//!
//! It never touches a socket, a clock or the store, and never decides how long to wait before the next attempt.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use super::commands;
use super::compose::{self, Terms};
use super::inbound::{Inbound, Receipt, UNANSWERED_MAX};
use super::overtaken::Overtaken;
use super::own::{self, OwnTopic};
use super::reason::{is_quota, meaning, quoted, remedy};
use super::services::{Number, Services};
use super::twin;
use super::waiting::{Attempt, Waiting};
use crate::config::answers::{self, Way};
use crate::config::clouds::services::{JobTopics, TwinTopics};
use crate::config::clouds::{MissingPuback, Profile};
use crate::config::{DrainOrder, Pace, Protocol, ReceiveRule, UplinkConfig};
use crate::health::LossReason;
use crate::intake::LiveForward;
use crate::message::{Body, Message, Origin, Properties, Qos, Sequence, Stamp, Topic};
use crate::mqtt::{
    Ack, Auth, Connack, Connect, Disconnect, Packet, PacketId, Publish, ReasonCode, Suback, Subscribe, Subscription,
    Version, Will,
};
use crate::queue::numbers::ByNumber;
use crate::queue::{Change, Once, Queued, Restored, SessionNumber, Verdict, Wanted};
use crate::transport::Pacing;

mod services;

pub(super) use services::job_topic;

/// The longest packet that is taken from the cloud.
pub const INBOUND_BYTES_MAX: u32 = 1 << 20;

/// CONNACK must come within this.
pub const CONNACK_WITHIN: Duration = Duration::from_secs(10);

/// In flight without any acknowledgement for this long, or two keep-alives: the link only looks open. The same for one
/// message from when a later one was acknowledged.
const PROGRESS_WITHIN: Duration = Duration::from_secs(30);

/// After PINGREQ, half a keep-alive without any byte ends the connection, but not less than this.
const PING_WITHIN_MIN: Duration = Duration::from_secs(2);

/// The same where there is no keep-alive.
const PING_WITHIN: Duration = Duration::from_secs(30);

/// At stop, what is in flight may take this long.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Bytes in flight beyond which no further message is sent, however wide the window.
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;

/// Rows read ahead: their bytes. And those that are stuck, above what `Waiting` lets go of by itself: what remains are
/// rows of strict topics, one of each.
const AHEAD_BYTES_MAX: usize = 4 << 20;
const STUCK_ROWS_MAX: usize = 10_000;

/// One fetch asks for at most this.
const FETCH_ROWS_MAX: usize = 2048;
const FETCH_BYTES_MAX: usize = 1 << 20;

/// Connections that died with the same row first in flight, after which it is sent alone.
const SHARED_DEATHS_MAX: u32 = 3;

/// Connections that died of one row alone, each after others had been acknowledged, after which it is convicted.
const TRIALS_MAX: u32 = 3;

/// Rows that are accused at the same time; a cloud that closes on each of so many is itself at fault.
const ACCUSED_MAX: usize = 64;

/// Rows of a held topic that may wait for their trials before no further one is tried.
const PROBES_MAX: usize = 8;

/// First and longest pause of an accused row that no other has given an alibi.
const TRIAL_FIRST: Duration = Duration::from_secs(10);
const TRIAL_MAX: Duration = Duration::from_secs(5 * 60);

/// A connection that dies this long after the last PUBLISH died of something else.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A window that a cloud closed connections over is doubled again after this.
const WINDOW_GROWS_AFTER: Duration = Duration::from_secs(10 * 60);

/// The same in version 5, whose clouds say how much they take: there the window was hardly ever the reason, and a narrow
/// one makes a drain crawl.
const WINDOW_GROWS_AFTER_V5: Duration = Duration::from_secs(30);

/// In 3.1.1 a command that the store has no room for is handed in again after this: it cannot be refused there.
const SUBMIT_AGAIN: Duration = Duration::from_millis(250);

/// A refused subscription is tried again after this.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(5 * 60);

/// Connections that died with a SUBSCRIBE unanswered, after which subscribing pauses.
const SUBSCRIBE_DEATHS_MAX: u32 = 3;

/// What the machine needs of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The uplink's name.
    pub name: Arc<str>,
    /// The gateway's, by which a message that comes back is known.
    pub gateway: Arc<str>,
    /// What is known of the cloud.
    pub profile: &'static Profile,
    /// Protocol version.
    pub version: Version,
    /// Client id, placeholders filled.
    pub client_id: String,
    /// User name of CONNECT.
    pub username: Option<String>,
    /// Messages in flight at most.
    pub window: NonZeroU16,
    /// Zero = off.
    pub keep_alive: Duration,
    /// How long the cloud keeps the session.
    pub session_expiry: Duration,
    /// What goes first when much waits.
    pub drain: DrainOrder,
    /// At most this fast.
    pub pace: Pace,
    /// Own topic at the cloud.
    pub own_topic: Option<String>,
    /// What to take in.
    pub receive: Vec<ReceiveRule>,
    /// The copy of the gateway's state that the cloud keeps.
    pub twin: Option<TwinTopics>,
    /// The cloud has jobs for the gateway.
    pub jobs: Option<JobTopics>,
}

impl Settings {
    /// From the configuration of the uplink `name`.
    pub fn new(name: Arc<str>, gateway: Arc<str>, client_id: String, config: &UplinkConfig) -> Settings {
        Settings {
            name,
            gateway,
            profile: config.profile,
            version: match config.protocol {
                Protocol::V311 => Version::V311,
                Protocol::V5 => Version::V5,
            },
            client_id,
            username: config.username.clone(),
            window: config.profile.window(config.window),
            keep_alive: config.keep_alive,
            session_expiry: config
                .profile
                .session_expiry
                .map_or(config.session_expiry, |max| config.session_expiry.min(max)),
            drain: config.drain,
            pace: config.pace,
            own_topic: config.own_topic.clone(),
            receive: config.receive.clone(),
            twin: config.twin.clone(),
            jobs: config.jobs.clone(),
        }
    }
}

/// When something happens, by both clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment {
    /// Since any fixed moment; only grows.
    pub now: Duration,
    /// For ages and stamps.
    pub stamp: Stamp,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The store told the session's durable state.
    Restored(Restored),
    /// A packet came from the cloud.
    Packet(Packet),
    /// What `Fetch` asked for.
    Rows {
        /// Of the `Fetch`.
        round: u64,
        /// In order.
        rows: Vec<Queued>,
    },
    /// What `FetchLive` asked for, in order.
    LiveRows(Vec<Queued>),
    /// The commit under way is on disk.
    Committed,
    /// The commit under way failed; what is on disk is not known.
    CommitFailed,
    /// The intake has the message of `Submit`.
    Accepted(Receipt),
    /// The intake has not.
    Refused {
        /// Of the `Submit` or `Release`.
        receipt: Receipt,
        /// Why, for a person.
        reason: String,
        /// Only for want of room: it may be handed in again.
        is_full: bool,
    },
    /// `Release` is on disk.
    Released {
        /// Of the `Release`.
        receipt: Receipt,
        /// Whether the id was known.
        was_known: bool,
    },
    /// A QoS 0 message that a forward rule wants.
    Live(LiveForward),
    /// The packet with this id could not be written.
    Unsendable {
        /// Of the PUBLISH.
        packet_id: PacketId,
        /// Why.
        reason: String,
    },
    /// The connection is gone.
    Lost {
        /// The other side closed it, as a broker does that takes offence.
        by_peer: bool,
    },
    /// The cloud asks something before CONNACK. To answer may be much work.
    Asked,
    /// It has the answer.
    Answered,
    /// What the gateway logged in with ends soon.
    Renew,
    /// The token ends soon, and there is no other one yet: an end of the connection may be about that.
    TokenEnds,
    /// Another token, to be shown on the connection that there is (MQTT 5.0, 4.12.1).
    Reauthenticate {
        /// As in CONNECT.
        method: String,
        /// The token.
        data: Bytes,
    },
    /// What the twin is to say from now on.
    Reported(twin::Properties),
    /// Whether somebody here takes jobs.
    JobsHeard(bool),
    /// The gateway stops.
    Stop,
}

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write this packet.
    Send(Packet),
    /// One transaction; answered by `Committed` or `CommitFailed`.
    Commit(Vec<Change>),
    /// Read the durable state; answered by `Restored`.
    Restore,
    /// Get more rows; answered by `Rows`.
    Fetch {
        /// Another one than before: from the oldest row again, not from where the last answer ended.
        round: u64,
        /// How many.
        wanted: Wanted,
    },
    /// Get more rows of the live lane; answered by `LiveRows`. Takes the place of one that was not answered.
    FetchLive {
        /// What is in the queue now is backlog, and the lane is what comes after it.
        begins: bool,
        /// How many.
        wanted: Wanted,
    },
    /// Tell the store whether what it holds in memory would be taken by the cloud now, at QoS 1.
    Live(bool),
    /// Hand this to the intake; answered by `Accepted` or `Refused`.
    Submit {
        /// To be given back.
        receipt: Receipt,
        /// The message.
        message: Box<Message>,
        /// For QoS 2.
        once: Option<Once>,
    },
    /// Forget a received id; answered by `Released` or `Refused`.
    Release {
        /// To be given back.
        receipt: Receipt,
        /// Which id.
        once: Once,
    },
    /// Write what is to be written, close, and say `Lost`.
    Close(CloseReason),
    /// Tell local clients what is desired of the gateway now, all of it.
    Desired(Bytes),
    /// Tell a person.
    Note(Note),
}

/// Why a connection is closed from this side.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CloseReason {
    /// No CONNACK.
    #[error("the cloud did not answer CONNECT")]
    NoConnack,
    /// CONNACK said no.
    #[error("the cloud refused the connection: {} ({reason}){}{}", meaning(*.reason), quoted(text), remedy(*.reason))]
    Refused {
        /// The code.
        reason: ReasonCode,
        /// What the server added.
        text: String,
    },
    /// DISCONNECT came.
    #[error("the cloud ended the connection: {} ({reason}){}", meaning(*.reason), quoted(text))]
    Disconnected {
        /// The code.
        reason: ReasonCode,
        /// What the server added.
        text: String,
    },
    /// PINGREQ was not answered.
    #[error("the cloud does not answer")]
    Silent,
    /// Acknowledgements do not come.
    #[error("the cloud acknowledges nothing")]
    NoProgress,
    /// The acknowledgement of one message does not come.
    #[error("the cloud does not acknowledge a message, though it did later ones")]
    Overtaken,
    /// The cloud broke the protocol.
    #[error("the cloud broke the protocol: {what}")]
    Protocol {
        /// What it did.
        what: &'static str,
    },
    /// The queue could not commit.
    #[error("the queue could not commit")]
    Store,
    /// The intake did not take a message.
    #[error("a message from the cloud was not accepted: {reason}")]
    NotAccepted {
        /// What the intake said.
        reason: String,
    },
    /// A clean session has been had; now the one that is kept.
    #[error("the session starts afresh")]
    Afresh,
    /// The token ends soon, and another one waits.
    #[error("the token is replaced")]
    Renewed,
    /// The gateway stops.
    #[error("the gateway stops")]
    Stopped,
}

/// What a person should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The session is set up.
    Connected {
        /// The cloud had kept it.
        session_present: bool,
    },
    /// The cloud had forgotten the session, or it is another one; this many messages go again under new ids.
    SessionLost {
        /// Messages.
        in_flight: usize,
    },
    /// The cloud has taken another token.
    Reauthenticated,
    /// The cloud does not allow a topic; its messages wait.
    Held {
        /// The topic.
        topic: Topic,
    },
    /// A message became a dead letter.
    Rejected {
        /// Its place.
        sequence: Sequence,
        /// Its topic at the cloud.
        topic: Topic,
        /// Why.
        reason: String,
    },
    /// The cloud closes the connection over messages, and it is not known yet whether they are at fault.
    Accused {
        /// The first of them.
        sequence: Sequence,
        /// Its topic at the cloud.
        topic: Topic,
    },
    /// The store has no room for what the cloud sends.
    NoRoom,
    /// The cloud has forgotten a message that it had taken, before its release was answered.
    Uncertain {
        /// Its place.
        sequence: Sequence,
        /// Its topic at the cloud.
        topic: Topic,
    },
    /// The cloud has thrown messages away because they were too many; they go again, slower.
    Throttled {
        /// How many.
        messages: usize,
    },
    /// The cloud does not allow the own topic; it is off until the next start.
    OwnTopicOff,
    /// A command asks for an answer at a topic of the cloud that no rule allows.
    AnswerNotAllowed {
        /// The topic.
        topic: Topic,
    },
    /// What is sent is older than some services of the cloud take.
    Late {
        /// Milliseconds.
        age_ms: u64,
    },
    /// A message has come back that went from here to another cloud.
    Loop {
        /// Its topic at this cloud.
        topic: Topic,
    },
    /// A service of the cloud does not do as asked.
    Service {
        /// Which.
        service: &'static str,
        /// Why.
        reason: String,
    },
    /// The cloud does not allow a subscription.
    SubscriptionRefused {
        /// The filter; `None` = it closed the connection on all of them.
        filter: Option<String>,
    },
}

/// What is counted, since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Acknowledged by the cloud.
    pub delivered: u64,
    /// The same of what it had been sent before, and was to be sent once more.
    pub delivered_again: u64,
    /// Sent again.
    pub resent: u64,
    /// Thrown away by the cloud because they were too many, and sent again.
    pub throttled: u64,
    /// Sent at a lower QoS than asked for.
    pub downgraded: u64,
    /// Sessions that the cloud forgot.
    pub sessions_lost: u64,
    /// Taken in from the cloud.
    pub received: u64,
    /// From the cloud, but no receive rule made a local topic of it.
    pub unmatched: u64,
    /// From the cloud, but it had come from here to another one.
    pub loops: u64,
    /// Acknowledgements of nothing.
    pub strays: u64,
    /// Times that a message from the cloud found no room in the store.
    pub refused: u64,
    /// QoS 0 messages that were too long for the cloud, or too old.
    pub live_dropped: u64,
    /// Released at the cloud, which did not know them any more: whether it had handed them on is not known.
    pub uncertain: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down,
    /// Since when the cloud's answer is waited for; `None` = it has asked, and has not been answered.
    Opening {
        since: Option<Duration>,
    },
    /// CONNACK has come; the store must come to rest before the session is taken up.
    Settling {
        session_present: bool,
    },
    /// The new session is being written down, then read back for its number.
    Renewing,
    Up,
    /// `Close` was said, `Lost` has not come.
    Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// QoS 1, waits for PUBACK.
    Sent,
    /// QoS 2, waits for PUBREC.
    Admitted,
    /// QoS 2, waits for PUBCOMP.
    Released,
}

#[derive(Debug)]
struct Slot {
    /// Of those with the same order the older row is first.
    order: u64,
    stage: Stage,
    /// `None` when the store kept the id but not its message.
    attempt: Option<Attempt>,
    /// Has been on the wire, as far as is known.
    is_sent: bool,
    /// Counts against the window of this connection.
    is_out: bool,
    /// Among the messages of this connection.
    number: u64,
}

#[derive(Debug)]
enum Holder {
    Row(Box<Slot>),
    OwnStatus,
    Subscribe(Vec<String>),
    /// SUBSCRIBE of a service.
    Subscription(Number),
    /// PUBLISH of a service.
    Question(Number),
    /// The cloud has thrown away what bore it, and counts it as long as this connection lasts.
    Thrown,
}

/// Changes of one transaction and the packets that must follow it.
#[derive(Debug, Default)]
struct Gathering {
    changes: Vec<Change>,
    after: Vec<Packet>,
    /// Rows that it settles. Until it is on disk the queue may hand them out again.
    ended: Vec<Sequence>,
    /// How many of these the cloud has and would be sent again were the process to die now.
    exposed: usize,
    /// It admits rows: later messages must not overtake them.
    admits: bool,
    /// It begins a new session: the store must be read back, whatever becomes of the connection meanwhile.
    renews: bool,
}

#[derive(Debug, Default)]
struct Ping {
    at: Duration,
    /// Rows that went at QoS 0 for want of better: the answer shows that the cloud has read them.
    proves: Vec<Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Suspect {
    sequence: Sequence,
    deaths: u32,
}

/// A row that was alone in flight when the cloud closed the connection. A balancer before a dead broker does that to
/// every row, so that only rows which the cloud takes meanwhile can prove this one to be at fault.
#[derive(Debug)]
struct Accused {
    topic: Topic,
    /// Deaths after another row was acknowledged.
    trials: u32,
    has_alibi: bool,
    /// And one of the same topic: else the cloud may not allow the topic, which is no fault of the message.
    has_topic_alibi: bool,
    pause: Duration,
    trial_at: Duration,
}

impl Accused {
    fn new(topic: Topic, trials: u32, trial_at: Duration) -> Accused {
        Accused { topic, trials, has_alibi: false, has_topic_alibi: false, pause: Duration::ZERO, trial_at }
    }
}

/// The machine of one uplink.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    phase: Phase,
    terms: Terms,
    // The durable state, as far as it is known here.
    is_restored: bool,
    is_restoring: bool,
    must_restore: bool,
    session_key: Option<u64>,
    session: SessionNumber,
    gathering: Gathering,
    committing: Option<Gathering>,
    is_fetching: bool,
    is_fetching_live: bool,
    /// The live lane is to begin anew.
    begins_live: bool,
    /// The fetch under way began at the oldest row.
    is_rewinding: bool,
    round: u64,
    // Rows.
    ids: HashMap<PacketId, Holder, ByNumber>,
    next_id: u16,
    next_order: u64,
    waiting: Waiting,
    /// Every row that is in memory, so that none is sent twice should the store hand it out again.
    owned: HashSet<Sequence, ByNumber>,
    rows_out: usize,
    /// Rows under a packet id at QoS 1, but for those that wait for their trial: what went before may be at the cloud.
    at_least_once: usize,
    bytes_out: usize,
    resend: VecDeque<PacketId>,
    /// The newest row to be resent, as long as the queue may hold older ones that have not been read.
    older_than: Option<Sequence>,
    unproven: Vec<Attempt>,
    suspect: Option<Suspect>,
    accused: BTreeMap<Sequence, Accused>,
    /// Accused rows that wait for their trial: with a packet id, and without.
    dock: VecDeque<PacketId>,
    bench: VecDeque<Attempt>,
    /// The accused row that is in flight, alone.
    trial: Option<Sequence>,
    /// The cloud has acknowledged a row on this connection.
    has_acked: bool,
    /// 3.1.1 knows no Receive Maximum: a broker that has one closes the connection (mosquitto at QoS 2 does), and
    /// would do so for ever if all that is in flight were sent at once again.
    window_max: usize,
    window_grows_at: Duration,
    // The connection.
    key_wanted: u64,
    /// The server of this key keeps a session of our name that is not ours.
    foreign: Option<u64>,
    is_clean_start: bool,
    expects_session: bool,
    ping: Option<Ping>,
    sent_at: Duration,
    heard_at: Duration,
    progress_at: Duration,
    overtaken: Overtaken,
    /// Packet ids whose messages the cloud has thrown away on this connection.
    thrown: usize,
    published_at: Duration,
    pacing: Pacing,
    pace_until: Option<Duration>,
    own: OwnTopic,
    own_next: Option<Bytes>,
    is_subscribed: bool,
    subscribe_at: Option<Duration>,
    subscribe_deaths: u32,
    services: Services,
    inbound: Inbound,
    submit_at: Option<Duration>,
    /// Until then what is in flight may be answered, before a connection with another token takes the place of this one.
    renew_by: Option<Duration>,
    /// When another token was shown that the cloud has not answered.
    reauth_at: Option<Duration>,
    /// The token may have ended.
    token_ends: bool,
    stop_by: Option<Duration>,
    counts: Counts,
    actions: Vec<Action>,
}

impl Machine {
    /// A machine before its first connection; it asks for the durable state in its first turn.
    pub fn new(settings: Settings) -> Machine {
        let connack = Connack::new(ReasonCode::SUCCESS);
        let Settings { version, profile, window, keep_alive, .. } = settings;
        let terms = Terms::new(version, profile, &connack, window, keep_alive).of(&settings.client_id);
        Machine {
            phase: Phase::Down,
            terms,
            is_restored: false,
            is_restoring: false,
            must_restore: true,
            session_key: None,
            session: SessionNumber(0),
            gathering: Gathering::default(),
            committing: None,
            is_fetching: false,
            is_fetching_live: false,
            begins_live: false,
            is_rewinding: false,
            round: 0,
            ids: HashMap::default(),
            next_id: 0,
            next_order: 0,
            waiting: Waiting::default(),
            owned: HashSet::default(),
            rows_out: 0,
            at_least_once: 0,
            bytes_out: 0,
            resend: VecDeque::new(),
            older_than: None,
            unproven: Vec::new(),
            suspect: None,
            accused: BTreeMap::new(),
            dock: VecDeque::new(),
            bench: VecDeque::new(),
            trial: None,
            has_acked: false,
            window_max: usize::from(settings.window.get()),
            window_grows_at: Duration::ZERO,
            key_wanted: 0,
            foreign: None,
            is_clean_start: false,
            expects_session: true,
            ping: None,
            sent_at: Duration::ZERO,
            heard_at: Duration::ZERO,
            progress_at: Duration::ZERO,
            overtaken: Overtaken::default(),
            thrown: 0,
            published_at: Duration::ZERO,
            pacing: Pacing::new(settings.pace),
            pace_until: None,
            own: OwnTopic::new(settings.own_topic.as_deref(), profile.has_wills),
            own_next: None,
            is_subscribed: false,
            subscribe_at: None,
            subscribe_deaths: 0,
            services: services::of(&settings),
            inbound: Inbound::default(),
            submit_at: None,
            renew_by: None,
            reauth_at: None,
            token_ends: false,
            stop_by: None,
            counts: Counts::default(),
            actions: Vec::new(),
            settings,
        }
    }

    /// Whether a connection may be opened: the durable state is known, and nothing is on its way to the store that
    /// a resumed session would have to know.
    pub fn can_open(&self) -> bool {
        self.phase == Phase::Down && self.is_restored && !self.must_restore && self.is_at_rest()
    }

    /// CONNECT for a server that `session_key` names (host, port, client id, user). Under a key other than that of the
    /// last session no session may be there; the clean start that removes one is asked for only when there is: Mosquitto
    /// 2.0 writes no session down whose last CONNECT was a clean start, and would forget at its next restart what it has
    /// received.
    pub fn open(&mut self, at: Moment, session_key: u64, password: Option<Bytes>) -> Packet {
        self.phase = Phase::Opening { since: Some(at.now) };
        self.key_wanted = session_key;
        let is_kept = self.settings.profile.has_sessions;
        self.is_clean_start = !is_kept || (self.is_new_session() && self.foreign == Some(session_key));
        self.sent_at = at.now;
        self.heard_at = at.now;
        let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        let is_v5 = self.settings.version == Version::V5;
        Packet::Connect(Box::new(Connect {
            clean_start: self.is_clean_start,
            keep_alive_s: u16::try_from(self.settings.keep_alive.as_secs()).unwrap_or(u16::MAX),
            will: self.own.will().map(|will| self.will(will)),
            username: self.settings.username.clone(),
            password,
            session_expiry_s: is_v5.then(|| seconds(self.settings.session_expiry)),
            receive_max: NonZeroU16::new(UNANSWERED_MAX).filter(|_| is_v5),
            packet_bytes_max: is_v5.then_some(INBOUND_BYTES_MAX),
            ..Connect::new(self.settings.version, self.settings.client_id.clone())
        }))
    }

    /// Another name for the next connection, where the cloud gives it. Not while there is one.
    pub fn set_client_id(&mut self, client_id: &str) {
        if self.settings.client_id != client_id {
            client_id.clone_into(&mut self.settings.client_id);
            self.terms = self.terms.clone().of(client_id);
        }
    }

    /// As the cloud takes it.
    fn will(&self, will: Will) -> Will {
        let topic = self.terms.enveloped(&will.topic, &will.payload, None, Some(own::CONTENT_TYPE));
        let retain = will.retain && self.settings.profile.may_retain(topic.as_str());
        Will { qos: will.qos.min(self.settings.profile.qos_max), topic, retain, ..will }
    }

    /// Takes in what happened. Nothing is complete before `turn`.
    pub fn handle(&mut self, at: Moment, event: Event) {
        match event {
            Event::Restored(restored) => self.restored(at, restored),
            Event::Packet(packet) => self.packet(at, packet),
            // What was read before a rewind comes again, in order.
            Event::Rows { round, .. } if round != self.round => {}
            Event::Rows { rows, .. } => {
                self.is_fetching = false;
                self.is_rewinding = false;
                let last = rows.last().map(|row| row.sequence);
                if last.is_none_or(|last| self.older_than.is_some_and(|newest| newest < last)) {
                    self.older_than = None;
                }
                for row in rows {
                    if self.owned.insert(row.sequence) {
                        self.waiting.push(row);
                    }
                }
            }
            Event::LiveRows(rows) => {
                self.is_fetching_live = false;
                for row in rows {
                    if self.owned.insert(row.sequence) {
                        self.waiting.push_live(row);
                    }
                }
            }
            Event::Committed => self.committed(at),
            Event::CommitFailed => self.commit_failed(),
            Event::Accepted(receipt) => {
                self.inbound.ready(receipt);
                self.submit_again();
            }
            Event::Refused { receipt, .. } if !self.inbound.knows(receipt) => {}
            Event::Refused { receipt, is_full: true, .. } => self.no_room(at, receipt),
            Event::Refused { reason, .. } => self.close(CloseReason::NotAccepted { reason }),
            Event::Released { receipt, was_known } => self.pubcomp_for(receipt, was_known),
            Event::Live(live) => self.live(at, &live),
            Event::Unsendable { packet_id, reason } => self.unsendable(at, packet_id, reason),
            Event::Lost { by_peer } => self.lost(at, by_peer),
            Event::Asked | Event::Answered => {
                if let Phase::Opening { since } = &mut self.phase {
                    *since = (event == Event::Answered).then_some(at.now);
                }
            }
            Event::Renew => {
                if matches!(self.phase, Phase::Opening { .. } | Phase::Settling { .. } | Phase::Renewing | Phase::Up) {
                    self.renew_by = Some(at.now + STOP_WITHIN);
                }
            }
            Event::TokenEnds => self.token_ends = true,
            Event::Reauthenticate { method, data } => {
                if self.is_connected() && !self.is_ending() {
                    self.reauth_at = Some(at.now);
                    let (reason, method, data) = (ReasonCode::RE_AUTHENTICATE, Some(method), Some(data));
                    self.send(at, Packet::Auth(Auth { reason, method, data, reason_string: None }));
                }
            }
            Event::Reported(wanted) => self.services.want(wanted),
            Event::JobsHeard(is_heard) => self.services.set_heard(is_heard),
            Event::Stop => {
                if self.stop_by.is_none() {
                    self.stop_by = Some(at.now + STOP_WITHIN);
                    self.own_next = self.own.topic().map(|_| own::offline());
                }
            }
        }
    }

    /// Bytes have come from the cloud.
    pub fn heard(&mut self, at: Moment) {
        self.heard_at = at.now;
    }

    /// Ends a turn: deadlines, what may be sent, one commit, one fetch.
    pub fn turn(&mut self, at: Moment) {
        if self.must_restore && !self.is_restoring && self.committing.is_none() {
            self.is_restoring = true;
            self.must_restore = false;
            self.actions.push(Action::Restore);
        }
        self.watch(at);
        if let Phase::Settling { session_present } = self.phase
            && self.is_at_rest()
        {
            self.take_up(at, session_present);
        }
        if self.submit_at.is_some_and(|when| when <= at.now) {
            self.submit_at = None;
            self.submit_again();
        }
        if self.phase == Phase::Up {
            if self.own.comes_back(at.now, false) {
                self.tell_own_status(at);
            }
            self.fill(at);
        }
        if self.is_connected() {
            while let Some(answer) = self.inbound.take() {
                self.send(at, answer);
            }
        }
        self.commit(at);
        self.prove(at);
        self.renew(at);
        self.stop(at);
        self.fetch(at);
    }

    /// What is to be done, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether packets from the cloud may be handed in. While a new session is written down they must wait: their
    /// ids belong to a session whose number is not known yet.
    pub fn wants_packets(&self) -> bool {
        matches!(self.phase, Phase::Opening { .. } | Phase::Up) && self.inbound.has_room()
    }

    /// Whether a live QoS 0 message may be handed in.
    pub fn wants_live(&mut self, at: Moment) -> bool {
        if self.phase != Phase::Up || self.is_ending() {
            return false;
        }
        let ready_at = self.pacing.ready_at(at.now);
        if ready_at > at.now {
            self.pace_until = Some(ready_at);
        }
        ready_at <= at.now
    }

    /// The longest packet that the cloud takes.
    pub fn packet_bytes_max(&self) -> usize {
        self.terms.packet_bytes_max
    }

    /// Whether CONNECT has been sent and CONNACK has not come.
    pub fn is_opening(&self) -> bool {
        matches!(self.phase, Phase::Opening { .. })
    }

    /// Whether the session is set up.
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// When `turn` is wanted though nothing happens.
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        let mut earliest: Option<Duration> = None;
        let mut at = |when: Duration| earliest = Some(earliest.map_or(when, |first| first.min(when)));
        match self.phase {
            Phase::Opening { since } => since.map(|since| since + CONNACK_WITHIN).into_iter().for_each(&mut at),
            Phase::Up => {
                self.watched().into_iter().flatten().for_each(&mut at);
                self.waiting.next_at(now).into_iter().chain(self.pace_until).for_each(&mut at);
                // A row on trial is alone: what else is due waits, and must not be waited for.
                self.subscribe_at.filter(|_| !self.is_alone()).into_iter().for_each(&mut at);
                // What is due already waits for room, which something else makes.
                let service_at = self.services.deadline().filter(|when| *when > now);
                service_at.filter(|_| !self.is_alone()).into_iter().for_each(&mut at);
                self.trial_at().filter(|when| *when > now).into_iter().for_each(&mut at);
            }
            _ => {}
        }
        self.reauth_at.map(|since| since + CONNACK_WITHIN).into_iter().for_each(&mut at);
        self.stop_by.into_iter().chain(self.renew_by).chain(self.submit_at).for_each(&mut at);
        earliest
    }

    /// Whether nothing is on its way to the store, nor waits to be.
    pub fn is_quiet(&self) -> bool {
        self.committing.is_none() && self.gathering.changes.is_empty()
    }

    /// The counters so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Messages that the cloud has not acknowledged.
    pub fn in_flight(&self) -> usize {
        if self.phase == Phase::Up && self.resend.is_empty() && self.dock.is_empty() {
            return self.rows_out;
        }
        let rows = self.ids.values().filter(|holder| matches!(holder, Holder::Row(_))).count();
        rows + self.unproven.len() + self.ping.as_ref().map_or(0, |ping| ping.proves.len())
    }

    // --- the connection -------------------------------------------------------------------------------------------

    fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Settling { .. } | Phase::Renewing | Phase::Up)
    }

    fn packet(&mut self, at: Moment, packet: Packet) {
        match (self.phase, packet) {
            (Phase::Down | Phase::Closing, _) => {}
            (Phase::Opening { .. }, Packet::Connack(connack)) => self.connack(&connack),
            (_, Packet::Disconnect(disconnect)) => self.disconnected(at, disconnect),
            (Phase::Opening { .. }, _) => self.close(CloseReason::Protocol { what: "a packet before CONNACK" }),
            // What there is to show was shown at once.
            (_, Packet::Auth(auth)) if self.reauth_at.is_none() || auth.reason != ReasonCode::SUCCESS => {
                self.close(CloseReason::Protocol {
                    what: "an AUTH that was not asked for, or asks for more than the token",
                });
            }
            (_, Packet::Auth(_)) => {
                self.reauth_at = None;
                self.token_ends = false;
                self.actions.push(Action::Note(Note::Reauthenticated));
            }
            (_, Packet::Publish(publish)) => self.publish_in(at, publish),
            (_, Packet::Puback(ack)) => self.puback(at, &ack),
            (_, Packet::Pubrec(ack)) => self.pubrec(at, &ack),
            (_, Packet::Pubcomp(ack)) => self.pubcomp(at, &ack),
            (_, Packet::Pubrel(ack)) => self.pubrel_in(&ack),
            (_, Packet::Suback(suback)) => self.suback(at, &suback),
            (_, Packet::Unsuback(_)) => self.counts.strays += 1,
            (_, Packet::Pingresp) => {
                if let Some(ping) = self.ping.take() {
                    for attempt in ping.proves {
                        self.progress_at = at.now;
                        self.rows_out = self.rows_out.saturating_sub(1);
                        self.delivered(attempt);
                    }
                }
            }
            _ => self.close(CloseReason::Protocol { what: "a packet that only clients send" }),
        }
    }

    fn connack(&mut self, connack: &Connack) {
        let text = connack.reason_string.clone().unwrap_or_default();
        if connack.reason.is_failure() {
            self.own.connect_failed(Some(connack.reason));
            return self.close(CloseReason::Refused { reason: connack.reason, text });
        }
        if connack.session_present && self.is_clean_start {
            return self.close(CloseReason::Protocol { what: "a session where a clean one was asked for" });
        }
        if connack.session_present && self.is_new_session() {
            self.foreign = Some(self.key_wanted);
            return self.close(CloseReason::Afresh);
        }
        if self.own.connect_accepted() {
            self.actions.push(Action::Note(Note::OwnTopicOff));
        }
        let Settings { version, profile, window, keep_alive, .. } = self.settings;
        self.terms = Terms::new(version, profile, connack, window, keep_alive).of(&self.settings.client_id);
        self.phase = Phase::Settling { session_present: connack.session_present };
    }

    /// Whether this connection is for another session than the last one.
    fn is_new_session(&self) -> bool {
        self.session_key != Some(self.key_wanted)
    }

    /// The cloud's own end of the connection, with a reason (version 5 only).
    fn disconnected(&mut self, at: Moment, disconnect: Disconnect) {
        let is_about_a_message = matches!(
            disconnect.reason,
            ReasonCode::MALFORMED_PACKET
                | ReasonCode::PROTOCOL_ERROR
                | ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR
                | ReasonCode::NOT_AUTHORIZED
                | ReasonCode::TOPIC_NAME_INVALID
                | ReasonCode::PACKET_TOO_LARGE
                | ReasonCode::PAYLOAD_FORMAT_INVALID
                | ReasonCode::RETAIN_NOT_SUPPORTED
                | ReasonCode::QOS_NOT_SUPPORTED
        );
        // A token that is refused is no message's fault.
        let is_about_the_token = self.reauth_at.is_some() || self.token_ends;
        if is_about_a_message && !is_about_the_token {
            self.died(at, Some(disconnect.reason));
        }
        match disconnect.reason {
            // It counts otherwise than we do: the same window would end the next connection too.
            ReasonCode::RECEIVE_MAXIMUM_EXCEEDED => self.narrow(at, WINDOW_GROWS_AFTER),
            reason if is_quota(reason) => self.pacing.slow(at.now),
            _ => {}
        }
        let text = disconnect.reason_string.unwrap_or_default();
        self.close(CloseReason::Disconnected { reason: disconnect.reason, text });
    }

    fn close(&mut self, reason: CloseReason) {
        if matches!(self.phase, Phase::Down | Phase::Closing) {
            return;
        }
        // DISCONNECT with a reason is version 5; before CONNACK the server expects none (MQTT 5.0, 4.13).
        let code = match &reason {
            CloseReason::Stopped | CloseReason::Afresh | CloseReason::Renewed => Some(ReasonCode::SUCCESS),
            CloseReason::Protocol { .. } => Some(ReasonCode::PROTOCOL_ERROR),
            CloseReason::NotAccepted { .. } => Some(ReasonCode::UNSPECIFIED_ERROR),
            _ => None,
        };
        let may_say = self.terms.version == Version::V5 || code == Some(ReasonCode::SUCCESS);
        if let Some(code) = code.filter(|_| may_say && self.is_connected()) {
            self.actions.push(Action::Send(Packet::Disconnect(Disconnect::new(code))));
        }
        self.phase = Phase::Closing;
        self.actions.push(Action::Close(reason));
    }

    fn lost(&mut self, at: Moment, by_peer: bool) {
        match self.phase {
            Phase::Down => return,
            Phase::Opening { .. } if by_peer => self.own.connect_failed(None),
            Phase::Up if by_peer => self.died(at, None),
            _ => {}
        }
        self.phase = Phase::Down;
        self.actions.push(Action::Live(false));
        self.inbound.clear();
        self.submit_at = None;
        self.gathering.after.clear();
        if let Some(committing) = &mut self.committing {
            committing.after.clear();
        }
        self.ids.retain(|_, holder| match holder {
            Holder::Row(slot) => {
                slot.is_out = false;
                true
            }
            Holder::OwnStatus
            | Holder::Subscribe(_)
            | Holder::Subscription(_)
            | Holder::Question(_)
            | Holder::Thrown => false,
        });
        self.thrown = 0;
        let unproven = std::mem::take(&mut self.unproven);
        let proving = self.ping.take().map(|ping| ping.proves).unwrap_or_default();
        for attempt in unproven.into_iter().chain(proving) {
            self.bytes_out = self.bytes_out.saturating_sub(attempt.weight());
            self.counts.resent += 1;
            self.waiting.put_back(attempt);
        }
        self.rows_out = 0;
        self.overtaken.clear();
        self.resend.clear();
        self.dock.clear();
        self.bench.drain(..).for_each(|attempt| self.waiting.put_back(attempt));
        self.trial = None;
        self.has_acked = false;
        self.own_next = None;
        self.pace_until = None;
        self.renew_by = None;
        self.reauth_at = None;
        self.token_ends = false;
        self.services.lost();
    }

    /// The cloud closed the connection, as a broker does that has no other way to refuse what it was sent. Whatever
    /// was first and unanswered is suspected: the same one three times is sent alone. If that ends the connection too, it
    /// is accused: it waits until the cloud has taken others, and is tried again, alone.
    fn died(&mut self, at: Moment, reason: Option<ReasonCode>) {
        if self.ids.values().any(|holder| matches!(holder, Holder::OwnStatus)) {
            if self.own.died(at.now) {
                self.actions.push(Action::Note(Note::OwnTopicOff));
            }
            return;
        }
        if self.ids.values().any(|holder| matches!(holder, Holder::Subscribe(_))) {
            self.is_subscribed = false;
            self.subscribe_deaths += 1;
            if self.subscribe_deaths >= SUBSCRIBE_DEATHS_MAX {
                self.subscribe_deaths = 0;
                self.is_subscribed = true;
                self.subscribe_at = Some(at.now + SUBSCRIBE_AGAIN);
                self.actions.push(Action::Note(Note::SubscriptionRefused { filter: None }));
            }
            return;
        }
        if self.died_of_service(at) {
            return;
        }
        if at.now.saturating_sub(self.published_at) > ANSWER_WITHIN {
            return;
        }
        self.narrow(at, self.window_grows_after());
        let first = self.ids.iter().filter_map(|(id, holder)| match holder {
            Holder::Row(slot) if slot.is_out && slot.stage != Stage::Released => {
                Some((slot.order, slot.attempt.as_ref()?.row.sequence, *id))
            }
            _ => None,
        });
        let Some((_, sequence, id)) = first.min() else { return };
        let deaths = self.suspect.filter(|suspect| suspect.sequence == sequence).map_or(0, |suspect| suspect.deaths);
        let is_found = deaths >= SHARED_DEATHS_MAX || self.trial == Some(sequence) || self.is_exploring();
        if !is_found || self.rows_out > 1 {
            self.suspect = Some(Suspect { sequence, deaths: deaths + 1 });
            return;
        }
        self.suspect = None;
        self.accuse(at, id, sequence, reason);
    }

    /// A connection has ended with more than one message under way: fewer from now on.
    fn narrow(&mut self, at: Moment, grows_after: Duration) {
        if self.rows_out > 1 {
            self.window_max = (self.rows_out / 4).max(1);
            self.window_grows_at = at.now + grows_after;
        }
    }

    fn window_grows_after(&self) -> Duration {
        match self.settings.version {
            Version::V5 => WINDOW_GROWS_AFTER_V5,
            Version::V311 => WINDOW_GROWS_AFTER,
        }
    }

    /// A connection has died with this row alone in flight.
    fn accuse(&mut self, at: Moment, id: PacketId, sequence: Sequence, reason: Option<ReasonCode>) {
        let Some(Holder::Row(slot)) = self.ids.get(&id) else { return };
        let Some(row) = slot.attempt.as_ref().map(|attempt| &attempt.row) else { return };
        // A cloud that dies of one row and then of another may well die of none of them.
        // Rows of one topic are no such proof: it may be the topic.
        let mut of_topic = 0;
        for other in self.accused.iter_mut().filter(|(other, _)| **other != sequence).map(|(_, accused)| accused) {
            other.has_topic_alibi = false;
            if other.topic == row.encoding.topic {
                of_topic += 1;
            } else {
                (other.trials, other.has_alibi) = (0, false);
            }
        }
        if self.accused.is_empty() {
            let topic = row.encoding.topic.clone();
            self.actions.push(Action::Note(Note::Accused { sequence, topic }));
        }
        let accused =
            self.accused.entry(sequence).or_insert_with(|| Accused::new(row.encoding.topic.clone(), 0, at.now));
        accused.trials += u32::from(accused.has_alibi);
        accused.pause = (accused.pause * 2).clamp(TRIAL_FIRST, TRIAL_MAX);
        accused.trial_at = at.now + accused.pause;
        let (is_convicted, has_topic_alibi) = (accused.trials >= TRIALS_MAX, accused.has_topic_alibi);
        // A code that speaks of the message needs no further proof.
        let is_named = reason.is_some_and(|reason| {
            [ReasonCode::TOPIC_NAME_INVALID, ReasonCode::PACKET_TOO_LARGE, ReasonCode::PAYLOAD_FORMAT_INVALID]
                .contains(&reason)
        });
        if reason == Some(ReasonCode::NOT_AUTHORIZED) {
            self.refused(at, id, ReasonCode::NOT_AUTHORIZED, "");
        } else if is_named || (is_convicted && has_topic_alibi) {
            let code = reason.map_or_else(String::new, |reason| format!(" with {reason}"));
            let text = format!("the cloud closed the connection{code} whenever it was sent, and took others");
            self.reject_slot(at, id, text);
        } else if of_topic >= PROBES_MAX {
            // Enough of the topic wait for their trials; no further one is sent to find out.
        } else if (is_convicted || self.waiting.is_held(&row.encoding.topic)) && self.waiting.hold_topic(at.now, row) {
            self.actions.push(Action::Note(Note::Held { topic: row.encoding.topic.clone() }));
        }
        if self.accused.len() > ACCUSED_MAX
            && let Some(oldest) = self.accused.keys().find(|other| **other != sequence).copied()
        {
            self.accused.remove(&oldest);
        }
    }

    /// The cloud has answered this row, or it is gone.
    fn acquit(&mut self, sequence: Sequence) {
        self.accused.remove(&sequence);
        if self.trial == Some(sequence) {
            self.trial = None;
        }
    }

    /// Rows are accused and the cloud has taken none on this connection: the next ones go one by one.
    fn is_exploring(&self) -> bool {
        !self.accused.is_empty() && !self.has_acked
    }

    /// The accused row whose turn it is.
    fn defendant(&self) -> Option<Sequence> {
        let docked = self.dock.front().and_then(|id| match self.ids.get(id) {
            Some(Holder::Row(slot)) => slot.attempt.as_ref().map(|attempt| attempt.row.sequence),
            _ => None,
        });
        docked.or_else(|| self.bench.front().map(|attempt| attempt.row.sequence))
    }

    /// When the next trial is due, whether or not others can give an alibi.
    fn trial_at(&self) -> Option<Duration> {
        let sequence = self.defendant()?;
        Some(self.accused.get(&sequence).map_or(Duration::ZERO, |accused| accused.trial_at))
    }

    /// Whether the next trial would prove something now.
    fn has_evidence(&self) -> bool {
        self.has_acked
            && self.defendant().is_some_and(|sequence| {
                let accused = self.accused.get(&sequence);
                accused.is_none_or(|accused| accused.trials < TRIALS_MAX || accused.has_topic_alibi)
            })
    }

    fn try_accused(&mut self, at: Moment) {
        self.trial = self.defendant();
        if let Some(id) = self.dock.pop_front() {
            self.at_least_once += usize::from(self.is_at_least_once(id));
            self.resend_row(at, id);
        } else if let Some(attempt) = self.bench.pop_front() {
            self.send_row(at, attempt, None);
        }
        if self.rows_out == 0 {
            self.trial = None;
        }
    }

    /// Whether a single row is on trial.
    fn is_alone(&self) -> bool {
        self.trial.is_some() || self.suspect.is_some_and(|suspect| suspect.deaths >= SHARED_DEATHS_MAX)
    }

    fn take_up(&mut self, at: Moment, session_present: bool) {
        if session_present {
            return self.up(at, true);
        }
        let in_flight = self.in_flight();
        let was_expected = if self.is_new_session() { self.session_key.is_some() } else { self.expects_session };
        let may_be_kept = self.settings.profile.has_sessions && !self.settings.session_expiry.is_zero();
        if was_expected && may_be_kept {
            self.counts.sessions_lost += 1;
            self.actions.push(Action::Note(Note::SessionLost { in_flight }));
        }
        self.counts.resent += u64::try_from(in_flight).unwrap_or(0);
        // All rows wait again in the store, from where they come back in order: the reading back follows. But a batch
        // stays what it was, or whoever got it could not tell that it is a repeat; in the new session its id is as good
        // as another.
        let mut forgotten: Vec<(u64, PacketId, Option<&Attempt>)> = self
            .ids
            .iter()
            .filter_map(|(id, holder)| match holder {
                Holder::Row(slot) if slot.stage != Stage::Sent => Some((slot.order, *id, slot.attempt.as_ref())),
                _ => None,
            })
            .collect();
        forgotten.sort_unstable_by_key(|(order, id, _)| (*order, *id));
        for (order, id, attempt) in forgotten {
            self.gathering.changes.push(Change::Forget { packet_id: id.get() });
            let may_grow = |attempt: &&Attempt| !attempt.others.is_empty() || attempt.row.batching.is_some();
            if let Some(batch) = attempt.filter(may_grow) {
                self.gathering.changes.push(admit(id, order, batch));
            }
        }
        self.gathering.changes.extend([Change::NewSession, Change::SessionKey(self.key_wanted)]);
        self.gathering.renews = true;
        self.phase = Phase::Renewing;
    }

    fn restored(&mut self, at: Moment, restored: Restored) {
        self.is_restored = true;
        self.is_restoring = false;
        self.is_fetching = false;
        self.is_fetching_live = false;
        self.is_rewinding = false;
        self.session_key = restored.session_key;
        self.session = restored.session;
        self.waiting = Waiting::default();
        self.owned.clear();
        self.ids.retain(|_, holder| !matches!(holder, Holder::Row(_)));
        self.resend.clear();
        self.dock.clear();
        self.bench.clear();
        self.trial = None;
        self.unproven.clear();
        if let Some(ping) = &mut self.ping {
            ping.proves.clear();
        }
        self.bytes_out = 0;
        self.rows_out = 0;
        self.at_least_once = 0;
        self.overtaken.clear();
        for in_flight in restored.in_flight {
            let Some(id) = PacketId::new(in_flight.packet_id) else { continue };
            self.next_order = self.next_order.max(in_flight.order.saturating_add(1));
            self.owned.extend(in_flight.rows.iter().map(|row| row.sequence));
            in_flight.rows.iter().filter(|row| row.strict_order).for_each(|row| self.waiting.occupy(row));
            let attempt = Attempt::batch(in_flight.rows);
            self.bytes_out += attempt.as_ref().map_or(0, Attempt::weight);
            let stage = if in_flight.released { Stage::Released } else { Stage::Admitted };
            // In a new session nothing was sent yet.
            let is_sent = self.phase != Phase::Renewing;
            let slot = Slot { order: in_flight.order, stage, attempt, is_sent, is_out: false, number: 0 };
            self.ids.insert(id, Holder::Row(Box::new(slot)));
        }
        self.older_than = self.newest_unreleased();
        if self.phase == Phase::Renewing {
            self.inbound.forget_ignored();
            let is_v311 = self.settings.version == Version::V311;
            let is_kept = self.settings.profile.has_sessions && (is_v311 || !self.settings.session_expiry.is_zero());
            if self.is_clean_start && is_kept {
                // In 3.1.1 a clean session is never kept (MQTT 3.1.1, 3.1.2.4): the next one is. In version 5 it is
                // kept, but not by every server (see `open`).
                self.expects_session = false;
                self.close(CloseReason::Afresh);
            } else {
                self.up(at, false);
            }
        }
    }

    fn is_live_first(&self) -> bool {
        self.settings.drain == DrainOrder::LiveFirst
    }

    /// The newest row in flight whose PUBLISH may have to be sent again, after older ones. Live first, there is no such
    /// order.
    fn newest_unreleased(&self) -> Option<Sequence> {
        if self.is_live_first() {
            return None;
        }
        let rows = self.ids.values().filter_map(|holder| match holder {
            Holder::Row(slot) if slot.stage != Stage::Released => Some(slot.attempt.as_ref()?.row.sequence),
            _ => None,
        });
        rows.max()
    }

    fn up(&mut self, at: Moment, session_present: bool) {
        self.phase = Phase::Up;
        self.begins_live = self.is_live_first();
        self.expects_session = true;
        self.progress_at = at.now;
        self.published_at = at.now;
        if !session_present {
            self.is_subscribed = false;
        }
        self.own.comes_back(at.now, true);
        self.tell_own_status(at);
        let mut order: Vec<(u64, Option<Sequence>, PacketId)> = self
            .ids
            .iter()
            .filter_map(|(id, holder)| match holder {
                Holder::Row(slot) => Some((slot.order, slot.attempt.as_ref().map(|attempt| attempt.row.sequence), *id)),
                _ => None,
            })
            .collect();
        order.sort_unstable();
        // Those of a topic that is held wait with the row that it is held over, or each would have to be found alone.
        for (_, _, id) in &order {
            if let Some(Holder::Row(slot)) = self.ids.get(id)
                && let Some(row) = slot.attempt.as_ref().map(|attempt| &attempt.row)
                && self.accused.values().any(|accused| accused.topic == row.encoding.topic)
                && self.waiting.is_held(&row.encoding.topic)
            {
                let accused = Accused::new(row.encoding.topic.clone(), TRIALS_MAX, at.now + TRIAL_MAX);
                self.accused.entry(row.sequence).or_insert(accused);
            }
        }
        let (dock, resend) = order.into_iter().map(|(_, _, id)| id).partition(|id| match self.ids.get(id) {
            Some(Holder::Row(slot)) if slot.stage != Stage::Released => {
                slot.attempt.as_ref().is_some_and(|attempt| self.accused.contains_key(&attempt.row.sequence))
            }
            _ => false,
        });
        (self.dock, self.resend) = (dock, resend);
        self.at_least_once = self.resend.iter().filter(|id| self.is_at_least_once(**id)).count();
        self.actions.push(Action::Live(self.terms.qos_max != Qos::AtMostOnce));
        self.actions.push(Action::Note(Note::Connected { session_present }));
    }

    // --- deadlines ------------------------------------------------------------------------------------------------

    /// When a ping is due, its answer, and the progress of acknowledgements.
    fn watched(&self) -> [Option<Duration>; 4] {
        let keep_alive = self.terms.keep_alive;
        let is_waiting = self.rows_out > 0;
        let silent_at = self.ping.as_ref().map(|ping| ping.at.max(self.heard_at) + self.ping_within());
        let ping_at = (self.ping.is_none() && !keep_alive.is_zero()).then(|| {
            let idle_at = self.sent_at.min(self.heard_at) + keep_alive * 3 / 4;
            let unanswered_at = self.heard_at.max(self.progress_at) + keep_alive / 2;
            if is_waiting { idle_at.min(unanswered_at) } else { idle_at }
        });
        let progress_within = PROGRESS_WITHIN.max(keep_alive * 2);
        let progress_at = is_waiting.then(|| self.progress_at + progress_within);
        let overtaken_within = match self.settings.profile.missing_puback {
            MissingPuback::Fault => progress_within,
            MissingPuback::Throttle(within) => within,
        };
        let overtaken_at = self.overtaken.since().map(|since| since + overtaken_within);
        [silent_at, ping_at, progress_at, overtaken_at]
    }

    fn ping_within(&self) -> Duration {
        match self.terms.keep_alive {
            Duration::ZERO => PING_WITHIN,
            keep_alive => (keep_alive / 2).max(PING_WITHIN_MIN),
        }
    }

    fn watch(&mut self, at: Moment) {
        if self.reauth_at.is_some_and(|since| at.now >= since + CONNACK_WITHIN) {
            // Another connection shows it again.
            self.reauth_at = None;
            self.renew_by = self.renew_by.or(Some(at.now + STOP_WITHIN));
        }
        match self.phase {
            Phase::Opening { since: Some(since) } if at.now >= since + CONNACK_WITHIN => {
                self.own.connect_failed(None);
                self.close(CloseReason::NoConnack);
            }
            Phase::Up => {
                let is_due = |when: Option<Duration>| when.is_some_and(|when| when <= at.now);
                let [silent_at, ping_at, progress_at, overtaken_at] = self.watched();
                if is_due(silent_at) {
                    self.close(CloseReason::Silent);
                } else if is_due(progress_at) {
                    self.close(CloseReason::NoProgress);
                } else if is_due(overtaken_at) {
                    match self.settings.profile.missing_puback {
                        MissingPuback::Fault => self.close(CloseReason::Overtaken),
                        MissingPuback::Throttle(_) => self.throttled(at),
                    }
                } else if is_due(ping_at) {
                    self.ping(at);
                }
            }
            _ => {}
        }
    }

    /// Messages were passed over: the cloud has thrown them away because they were too many. They go again, slower, each
    /// as a new packet: a PUBLISH must not be repeated on one connection (MQTT 5.0, 4.4).
    fn throttled(&mut self, at: Moment) {
        let passed: Vec<PacketId> = self
            .ids
            .iter()
            .filter_map(|(id, holder)| match holder {
                Holder::Row(slot) if slot.is_out && self.overtaken.is_behind(slot.number) => {
                    (slot.stage == Stage::Sent).then_some(*id)
                }
                _ => None,
            })
            .collect();
        // At QoS 2, or where the account is full, there is no other way than a new connection.
        if passed.is_empty() {
            return self.close(CloseReason::Overtaken);
        }
        self.pacing.slow(at.now);
        let messages = passed.len();
        for id in passed {
            if let Some(attempt) = self.remove_row(at, id) {
                self.counts.resent += 1;
                self.waiting.refuse_quota(at.now, attempt);
            }
            self.ids.insert(id, Holder::Thrown);
            self.thrown += 1;
        }
        self.counts.throttled += u64::try_from(messages).unwrap_or(u64::MAX);
        self.actions.push(Action::Note(Note::Throttled { messages }));
        // The cloud counts them as unacknowledged; in a new connection it begins anew.
        if self.thrown * 2 >= self.terms.window.max(2) {
            self.close(CloseReason::Overtaken);
        }
    }

    fn ping(&mut self, at: Moment) {
        self.ping = Some(Ping { at: at.now, proves: std::mem::take(&mut self.unproven) });
        self.send(at, Packet::Pingreq);
    }

    /// What went at QoS 0 is proved by the answer to a ping that follows it: the cloud reads in order.
    fn prove(&mut self, at: Moment) {
        if self.phase == Phase::Up && !self.unproven.is_empty() && self.ping.is_none() {
            self.ping(at);
        }
    }

    /// Nothing new is sent on this connection.
    fn is_ending(&self) -> bool {
        self.stop_by.is_some() || self.renew_by.is_some()
    }

    /// The session goes on in the next connection, so that what stays unanswered is only sent again.
    fn renew(&mut self, at: Moment) {
        let Some(renew_by) = self.renew_by.filter(|_| self.stop_by.is_none()) else { return };
        let is_settled = self.phase == Phase::Up && self.rows_out == 0 && self.is_at_rest();
        if is_settled || at.now >= renew_by {
            self.close(CloseReason::Renewed);
        }
    }

    fn stop(&mut self, at: Moment) {
        let Some(stop_by) = self.stop_by else { return };
        let is_settled = self.own_next.is_none()
            && self.rows_out == 0
            && !self.ids.values().any(|holder| matches!(holder, Holder::OwnStatus))
            && self.is_at_rest();
        match self.phase {
            Phase::Up if !is_settled && at.now < stop_by => {}
            Phase::Down | Phase::Closing => {}
            _ => self.close(CloseReason::Stopped),
        }
    }

    // --- the store ------------------------------------------------------------------------------------------------

    fn is_at_rest(&self) -> bool {
        self.committing.is_none() && self.gathering.changes.is_empty() && !self.is_restoring && !self.must_restore
    }

    fn commit(&mut self, at: Moment) {
        if self.committing.is_some() {
            return;
        }
        if self.gathering.changes.is_empty() {
            let after = std::mem::take(&mut self.gathering.after);
            return self.send_after(at, after);
        }
        let mut gathered = std::mem::take(&mut self.gathering);
        self.actions.push(Action::Commit(std::mem::take(&mut gathered.changes)));
        self.committing = Some(gathered);
    }

    fn committed(&mut self, at: Moment) {
        let Some(mut committed) = self.committing.take() else { return };
        for sequence in &committed.ended {
            self.owned.remove(sequence);
        }
        // Rows whose packet ids it forgot were passed over by a reading that came before it.
        self.is_rewinding = false;
        self.send_after(at, std::mem::take(&mut committed.after));
        if !self.gathering.admits {
            // Messages that only had to follow this commit: were they to wait for the next one too, later messages,
            // which have nothing to follow any more, would overtake them.
            let (publishes, others) = std::mem::take(&mut self.gathering.after)
                .into_iter()
                .partition(|packet| matches!(packet, Packet::Publish(_)));
            self.gathering.after = others;
            self.send_after(at, publishes);
        }
        if committed.renews {
            self.must_restore = true;
        }
    }

    /// What is on disk is not known: everything in memory is doubted, the store is asked.
    fn commit_failed(&mut self) {
        self.committing = None;
        self.gathering = Gathering::default();
        self.must_restore = true;
        self.close(CloseReason::Store);
    }

    fn send_after(&mut self, at: Moment, packets: Vec<Packet>) {
        if !self.is_connected() {
            return;
        }
        for packet in packets {
            if let Packet::Publish(Publish { packet_id: Some(id), .. }) = &packet
                && let Some(Holder::Row(slot)) = self.ids.get_mut(id)
            {
                slot.is_sent = true;
            }
            self.send(at, packet);
        }
    }

    fn fetch(&mut self, at: Moment) {
        let may_ask = self.phase == Phase::Up && !self.is_restoring && !self.must_restore && self.stop_by.is_none();
        // A rewind follows all changes so far to the store: it would pass over rows whose packet id is to be forgotten.
        let may_rewind = may_ask && !self.is_rewinding && self.gathering.changes.is_empty();
        let rewinds = may_rewind && self.waiting.take_rewind(at.now);
        for sequence in self.waiting.take_let_go() {
            self.owned.remove(&sequence);
        }
        if rewinds {
            self.is_rewinding = true;
            self.round += 1;
            // What was read ahead is read again, and may be older than what is to be resent.
            self.older_than = self.newest_unreleased().filter(|_| !self.resend.is_empty());
        }
        let window = usize::from(self.settings.window.get());
        let count = (2 * window).clamp(16, FETCH_ROWS_MAX);
        let has_room = self.waiting.ahead() < window
            && self.waiting.ahead_bytes() < AHEAD_BYTES_MAX
            && self.waiting.stuck() < STUCK_ROWS_MAX.max(2 * window);
        if !has_room && self.waiting.ahead() == 0 {
            // Nothing can be read, so nothing is waited for.
            self.older_than = None;
        }
        if may_ask && (rewinds || (has_room && !self.is_fetching)) {
            self.is_fetching = true;

            let wanted = Wanted { count, bytes: FETCH_BYTES_MAX, waits: self.older_than.is_none() };
            self.actions.push(Action::Fetch { round: self.round, wanted });
        }
        let has_live_room = self.waiting.live() < window && self.waiting.live_bytes() < AHEAD_BYTES_MAX;
        if may_ask && self.is_live_first() && (self.begins_live || (has_live_room && !self.is_fetching_live)) {
            let begins = std::mem::take(&mut self.begins_live);
            self.is_fetching_live = true;
            let wanted = Wanted { count, bytes: FETCH_BYTES_MAX, waits: true };
            self.actions.push(Action::FetchLive { begins, wanted });
        }
    }

    fn send(&mut self, at: Moment, packet: Packet) {
        self.sent_at = at.now;
        self.actions.push(Action::Send(packet));
    }

    // --- outbound -------------------------------------------------------------------------------------------------

    fn fill(&mut self, at: Moment) {
        if self.window_max < self.terms.window && at.now >= self.window_grows_at {
            self.window_max *= 2;
            self.window_grows_at = at.now + self.window_grows_after();
        }
        let is_single = self.is_alone() || self.is_exploring();
        let window = if is_single { 1 } else { self.terms.window.min(self.window_max) };
        // Before the rows, so that a broker that closes on a row has answered these: each is judged on its own.
        if !self.is_alone() {
            self.subscribe(at);
            self.send_own_status(at, window);
            self.serve(at, window);
        }
        if self.trial.is_some() {
            return;
        }
        if !self.has_evidence() {
            self.fill_rows(at, window);
        }
        let is_due = self.has_evidence() || self.trial_at().is_some_and(|when| when <= at.now);
        if is_due && self.rows_out == 0 && self.stop_by.is_none() {
            self.try_accused(at);
        }
    }

    fn fill_rows(&mut self, at: Moment, window: usize) {
        self.pace_until = None;
        while self.rows_out < window
            && let Some(id) = self.resend.front().copied()
        {
            // What is resent makes room itself where nothing else is under way that would.
            let may_wait = self.has_room_at_cloud(window) || self.rows_out > 0;
            let first = self.waiting.first_ready(at.now);
            match self.resent_place(id) {
                Some((order, sequence))
                    if may_wait
                        && first.is_some_and(|older| older < sequence)
                        && (self.exposed() < self.exposed_max() || self.rows_out > 0 || !self.is_quiet()) =>
                {
                    if !self.may_send_fresh(at, window) {
                        return;
                    }
                    // Before that one also when the connection ends again.
                    self.send_fresh(at, Some((order, sequence)));
                }
                // Older ones may still come, unless younger ones have: they come in order.
                Some((_, sequence))
                    if may_wait && self.older_than.is_some() && first.is_none_or(|first| first < sequence) =>
                {
                    return;
                }
                _ => {
                    self.resend.pop_front();
                    self.resend_row(at, id);
                }
            }
        }
        if !self.resend.is_empty() {
            return;
        }
        while self.may_send_fresh(at, window) && self.send_fresh(at, None) {}
    }

    /// The place of the row whose PUBLISH is resent under this id; nothing for a PUBREL, which waits for no row.
    fn resent_place(&self, id: PacketId) -> Option<(u64, Sequence)> {
        match self.ids.get(&id) {
            Some(Holder::Row(slot)) if slot.stage != Stage::Released && !self.is_live_first() => {
                slot.attempt.as_ref().map(|attempt| (slot.order, attempt.row.sequence))
            }
            _ => None,
        }
    }

    /// Whether a new packet id fits beside all that the cloud may still hold of this session, also what has not been
    /// resent yet: Mosquitto counts what it holds from earlier connections, and throws out whoever goes beyond.
    fn has_room_at_cloud(&self, window: usize) -> bool {
        let kept = self.rows_out + self.resend.len() + self.thrown;
        // One goes beside those that are suspected, however many: the others must not wait for their trial.
        kept == 0 || (kept < window && kept + self.dock.len() < self.terms.window)
    }

    fn may_send_fresh(&mut self, at: Moment, window: usize) -> bool {
        let may = !self.is_ending()
            && self.has_room_at_cloud(window)
            && self.exposed() < self.exposed_max()
            && (self.bytes_out < IN_FLIGHT_BYTES_MAX || self.rows_out == 0)
            && self.ids.len() < usize::from(u16::MAX);
        if may {
            let ready_at = self.pacing.ready_at(at.now);
            self.pace_until = Some(ready_at).filter(|ready_at| *ready_at > at.now);
        }
        may && self.pace_until.is_none()
    }

    /// Rows that a process which dies now would make the next one send again, though the cloud has them or may have: at
    /// QoS 1, and what went at QoS 0 for want of better. At QoS 2 the store knows how far each is.
    fn exposed(&self) -> usize {
        let unproven = self.unproven.len() + self.ping.as_ref().map_or(0, |ping| ping.proves.len());
        let uncommitted = self.gathering.exposed + self.committing.as_ref().map_or(0, |commit| commit.exposed);
        self.at_least_once + unproven + uncommitted
    }

    /// An acknowledgement makes room in the cloud's window at once, but in this one only when it is on disk: so no kill
    /// costs more repeats than the window that the owner has set.
    fn exposed_max(&self) -> usize {
        usize::from(self.settings.window.get())
    }

    fn is_at_least_once(&self, id: PacketId) -> bool {
        matches!(self.ids.get(&id), Some(Holder::Row(slot)) if slot.stage == Stage::Sent)
    }

    /// Whether there was one.
    fn send_fresh(&mut self, at: Moment, before: Option<(u64, Sequence)>) -> bool {
        let order = before.map(|(order, _)| order);
        let sequence = before.map(|(_, sequence)| sequence);
        let Some(attempt) = self.waiting.take(at.now, at.stamp, sequence) else { return false };
        if self.accused.contains_key(&attempt.row.sequence) {
            self.bench.push_back(attempt);
        } else {
            self.send_row(at, attempt, order);
        }
        true
    }

    /// Takes the place `order` among those in flight, else the last one.
    fn send_row(&mut self, at: Moment, mut attempt: Attempt, order: Option<u64>) {
        if attempt.others.is_empty() {
            compose::fix_time(&mut attempt.row, at.stamp);
        }
        let Some(mut publish) = compose::publish(&attempt.row, &attempt.others, &self.terms, at.stamp) else {
            let verdict = Verdict::Lost(LossReason::MessageExpired);
            return self.give_up(&attempt, verdict);
        };
        let bytes = compose::publish_bytes(&publish, self.terms.version);
        if let Some(fault) = self.terms.fault(&publish, bytes) {
            return self.reject(attempt, fault);
        }
        let age = attempt.row.age_ms;
        if let (Some(late), Some(age_ms)) = (self.settings.profile.late, age)
            && Duration::from_millis(age_ms) > late.after
        {
            self.actions.push(Action::Note(Note::Late { age_ms }));
        }
        if publish.qos < attempt.row.qos {
            self.counts.downgraded += 1;
        }
        self.pacing.spend(at.now, bytes);
        self.count_out(at, &attempt);
        let stage = match publish.qos {
            Qos::AtMostOnce => {
                self.unproven.push(attempt);
                return self.send(at, Packet::Publish(publish));
            }
            Qos::AtLeastOnce => Stage::Sent,
            Qos::ExactlyOnce => Stage::Admitted,
        };
        let id = self.free_id();
        publish.packet_id = Some(id);
        let order = order.unwrap_or(self.next_order);
        self.next_order = self.next_order.max(order.saturating_add(1));
        let must_follow = self.must_follow();
        if stage == Stage::Admitted {
            self.gathering.admits = true;
            self.gathering.changes.push(admit(id, order, &attempt));
        }
        let is_held = must_follow || stage == Stage::Admitted;
        let number = self.overtaken.sent();
        self.at_least_once += usize::from(stage == Stage::Sent);
        let slot = Slot { order, stage, attempt: Some(attempt), is_sent: !is_held, is_out: true, number };
        self.ids.insert(id, Holder::Row(Box::new(slot)));
        if is_held {
            self.gathering.after.push(Packet::Publish(publish));
        } else {
            self.send(at, Packet::Publish(publish));
        }
    }

    /// Whether rows wait for a commit, which later ones must not overtake.
    fn must_follow(&self) -> bool {
        self.gathering.admits || self.committing.as_ref().is_some_and(|commit| commit.admits)
    }

    /// A row that was in flight when the connection ended, in the order of admission.
    fn resend_row(&mut self, at: Moment, id: PacketId) {
        let must_follow = self.must_follow();
        let Some(Holder::Row(slot)) = self.ids.get_mut(&id) else { return };
        let qos = match slot.stage {
            Stage::Released => {
                slot.number = self.overtaken.sent();
                slot.is_out = true;
                self.rows_out += 1;
                return self.send(at, Packet::Pubrel(Ack::new(id, ReasonCode::SUCCESS)));
            }
            Stage::Sent => Qos::AtLeastOnce,
            Stage::Admitted => Qos::ExactlyOnce,
        };
        let Some(attempt) = &slot.attempt else {
            // The store kept the id but not the message, so there is nothing to send and nobody waits for it.
            self.ids.remove(&id);
            self.gathering.changes.push(Change::Forget { packet_id: id.get() });
            return;
        };
        let Attempt { row, others, .. } = attempt;
        // Its expiry may have passed meanwhile; but the cloud may have it already, and an id once used must be ended.
        let publish = compose::publish(row, others, &self.terms, at.stamp)
            .or_else(|| compose::publish(row, others, &self.terms, Stamp { mono_ms: 0, ..at.stamp }));
        let Some(mut publish) = publish else { return };
        self.counts.resent += 1;
        if qos > self.terms.qos_max {
            if let Some(attempt) = self.remove_row(at, id) {
                self.waiting.put_back(attempt);
            }
            return;
        }
        publish.qos = qos;
        let bytes = compose::publish_bytes(&publish, self.terms.version);
        if let Some(fault) = self.terms.fault(&publish, bytes) {
            return self.reject_slot(at, id, fault);
        }
        publish.packet_id = Some(id);
        publish.dup = slot.is_sent;
        slot.is_sent |= !must_follow;
        slot.is_out = true;
        slot.number = self.overtaken.sent();
        self.pacing.spend(at.now, bytes);
        if self.rows_out == 0 {
            self.progress_at = at.now;
        }
        self.rows_out += 1;
        self.published_at = at.now;
        if must_follow {
            self.gathering.after.push(Packet::Publish(publish));
        } else {
            self.send(at, Packet::Publish(publish));
        }
    }

    fn count_out(&mut self, at: Moment, attempt: &Attempt) {
        if self.rows_out == 0 {
            self.progress_at = at.now;
        }
        self.rows_out += 1;
        self.bytes_out += attempt.weight();
        self.published_at = at.now;
    }

    fn free_id(&mut self) -> PacketId {
        // Callers keep at least one id free, so this ends.
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            if let Some(id) = PacketId::new(self.next_id)
                && !self.ids.contains_key(&id)
            {
                return id;
            }
        }
    }

    /// Takes a row out of flight; at QoS 2 its id is forgotten in the next transaction.
    fn remove_row(&mut self, at: Moment, id: PacketId) -> Option<Attempt> {
        if !matches!(self.ids.get(&id), Some(Holder::Row(_))) {
            return None;
        }
        let Some(Holder::Row(slot)) = self.ids.remove(&id) else { return None };
        if slot.is_out {
            self.rows_out = self.rows_out.saturating_sub(1);
            self.overtaken.answered(at.now, slot.number);
        }
        if slot.stage == Stage::Sent {
            self.at_least_once = self.at_least_once.saturating_sub(1);
        } else {
            self.gathering.changes.push(Change::Forget { packet_id: id.get() });
        }
        if let Some(attempt) = &slot.attempt {
            self.bytes_out = self.bytes_out.saturating_sub(attempt.weight());
            let sequence = attempt.row.sequence;
            if self.suspect.is_some_and(|suspect| suspect.sequence == sequence) {
                self.suspect = None;
            }
            self.acquit(sequence);
        }
        slot.attempt
    }

    fn stage(&self, id: PacketId) -> Option<Stage> {
        match self.ids.get(&id) {
            Some(Holder::Row(slot)) if slot.is_out => Some(slot.stage),
            _ => None,
        }
    }

    fn puback(&mut self, at: Moment, ack: &Ack) {
        let id = ack.packet_id;
        if let Some(Holder::OwnStatus) = self.ids.get(&id) {
            self.ids.remove(&id);
            self.rows_out = self.rows_out.saturating_sub(1);
            self.progress_at = at.now;
            if !ack.reason.is_failure() {
                self.own.accepted();
            } else if is_quota(ack.reason) {
                // That says nothing of the topic: it comes again with the next connection.
                self.pacing.slow(at.now);
            } else if self.own.refused(at.now) {
                self.actions.push(Action::Note(Note::OwnTopicOff));
            }
            return;
        }
        if let Some(Holder::Question(number)) = self.ids.get(&id) {
            let number = *number;
            self.ids.remove(&id);
            self.rows_out = self.rows_out.saturating_sub(1);
            self.progress_at = at.now;
            return self.question_taken(at, number, ack);
        }
        if let Some(Holder::Thrown) = self.ids.get(&id) {
            // It was only late; the message is on its way a second time, with the same MessageId.
            self.ids.remove(&id);
            self.thrown = self.thrown.saturating_sub(1);
        }
        if self.stage(id) != Some(Stage::Sent) {
            self.counts.strays += 1;
            return;
        }
        self.progress_at = at.now;
        if ack.reason.is_failure() {
            return self.refused(at, id, ack.reason, ack.reason_string.as_deref().unwrap_or_default());
        }
        if let Some(attempt) = self.remove_row(at, id) {
            self.gathering.exposed += 1;
            self.settled(attempt);
        }
    }

    fn pubrec(&mut self, at: Moment, ack: &Ack) {
        let id = ack.packet_id;
        match self.stage(id) {
            Some(Stage::Admitted) if ack.reason.is_failure() => {
                self.progress_at = at.now;
                self.refused(at, id, ack.reason, ack.reason_string.as_deref().unwrap_or_default());
            }
            Some(Stage::Admitted) => {
                self.progress_at = at.now;
                if let Some(Holder::Row(slot)) = self.ids.get_mut(&id) {
                    slot.stage = Stage::Released;
                }
                self.gathering.changes.push(Change::Release { packet_id: id.get() });
                self.gathering.after.push(Packet::Pubrel(Ack::new(id, ReasonCode::SUCCESS)));
            }
            // A repeat. Behind the transaction under way, since that may be the one that keeps the first.
            Some(Stage::Released) => self.gathering.after.push(Packet::Pubrel(Ack::new(id, ReasonCode::SUCCESS))),
            Some(Stage::Sent) | None => {
                self.counts.strays += 1;
                if !ack.reason.is_failure() {
                    self.send(at, Packet::Pubrel(Ack::new(id, self.not_found())));
                }
            }
        }
    }

    fn pubcomp(&mut self, at: Moment, ack: &Ack) {
        let id = ack.packet_id;
        if self.stage(id) != Some(Stage::Released) {
            self.counts.strays += 1;
            return;
        }
        self.progress_at = at.now;
        if let Some(attempt) = self.remove_row(at, id) {
            // 0x92: the cloud has ended the exchange before, and its PUBCOMP was lost. Or it has lost its session in
            // between, and who knows when; sending it again could double it. It had answered PUBREC, so it had it.
            if ack.reason == ReasonCode::PACKET_IDENTIFIER_NOT_FOUND {
                self.counts.uncertain += 1;
                let (sequence, topic) = (attempt.row.sequence, attempt.row.encoding.topic.clone());
                self.actions.push(Action::Note(Note::Uncertain { sequence, topic }));
            }
            self.settled(attempt);
        }
    }

    fn settled(&mut self, attempt: Attempt) {
        let (count, again) = attempt.counts();
        self.counts.delivered += count - again;
        self.counts.delivered_again += again;
        self.acquit(attempt.row.sequence);
        self.has_acked = true;
        for accused in self.accused.values_mut() {
            accused.has_alibi = true;
            accused.has_topic_alibi |= accused.topic == attempt.row.encoding.topic;
        }
        self.end(&attempt, &Verdict::Delivered);
        self.waiting.ended(&attempt.row, true);
    }

    /// A row that went at QoS 0 and is proved to have been read.
    fn delivered(&mut self, attempt: Attempt) {
        self.bytes_out = self.bytes_out.saturating_sub(attempt.weight());
        self.gathering.exposed += 1;
        self.settled(attempt);
    }

    /// The cloud answered a message with a failure.
    fn refused(&mut self, at: Moment, id: PacketId, reason: ReasonCode, text: &str) {
        match reason {
            ReasonCode::TOPIC_NAME_INVALID | ReasonCode::PAYLOAD_FORMAT_INVALID | ReasonCode::PACKET_TOO_LARGE => {
                self.reject_slot(at, id, format!("{} ({reason}) {text}", meaning(reason)).trim_end().to_owned());
            }
            _ => {
                let Some(attempt) = self.remove_row(at, id) else { return };
                self.counts.resent += 1;
                match reason {
                    reason if is_quota(reason) => {
                        self.pacing.slow(at.now);
                        self.waiting.refuse_quota(at.now, attempt);
                    }
                    ReasonCode::NOT_AUTHORIZED => {
                        let topic = attempt.row.encoding.topic.clone();
                        if self.waiting.hold(at.now, attempt) {
                            self.actions.push(Action::Note(Note::Held { topic }));
                        }
                    }
                    _ => self.waiting.refuse_now(at.now, attempt),
                }
            }
        }
    }

    fn unsendable(&mut self, at: Moment, id: PacketId, reason: String) {
        if matches!(self.ids.get(&id), Some(Holder::Row(_))) {
            self.reject_slot(at, id, reason);
        } else if self.ids.remove(&id).is_some() {
            self.rows_out = self.rows_out.saturating_sub(1);
        }
    }

    fn reject_slot(&mut self, at: Moment, id: PacketId, reason: String) {
        if let Some(attempt) = self.remove_row(at, id) {
            self.reject(attempt, reason);
        }
    }

    /// Of a batch nobody knows which message is at fault: it is halved until it is one.
    fn reject(&mut self, attempt: Attempt, reason: String) {
        let attempt = match attempt.halved() {
            (first, Some(second)) => return self.waiting.put_back_halves(first, second),
            (single, None) => single,
        };
        let (sequence, topic) = (attempt.row.sequence, attempt.row.encoding.topic.clone());
        self.actions.push(Action::Note(Note::Rejected { sequence, topic, reason: reason.clone() }));
        self.give_up(&attempt, Verdict::Rejected { reason });
    }

    fn give_up(&mut self, attempt: &Attempt, verdict: Verdict) {
        self.acquit(attempt.row.sequence);
        self.end(attempt, &verdict);
        self.waiting.ended(&attempt.row, false);
    }

    fn end(&mut self, attempt: &Attempt, verdict: &Verdict) {
        for sequence in attempt.sequences() {
            self.gathering.ended.push(sequence);
            self.gathering.changes.push(Change::Settle { sequence, verdict: verdict.clone() });
        }
    }

    fn live(&mut self, at: Moment, live: &LiveForward) {
        if self.phase != Phase::Up {
            return;
        }
        let publish = compose::live(&live.message, &live.topic, &self.settings.gateway, &self.terms, at.stamp);
        let publish = publish.map(|publish| (compose::publish_bytes(&publish, self.terms.version), publish));
        let Some((bytes, publish)) = publish.filter(|(bytes, publish)| self.terms.fault(publish, *bytes).is_none())
        else {
            self.counts.live_dropped += 1;
            return;
        };
        self.pacing.spend(at.now, bytes);
        self.send(at, Packet::Publish(publish));
    }

    fn tell_own_status(&mut self, at: Moment) {
        if self.stop_by.is_none() {
            self.own_next = self.own.topic().map(|_| own::online(at.stamp));
        }
    }

    fn send_own_status(&mut self, at: Moment, window: usize) {
        // What is resent goes first: older rows pass with it, and need the room.
        if !self.resend.is_empty() || !self.has_room_at_cloud(window) || self.ids.len() >= usize::from(u16::MAX) {
            return;
        }
        let Some(payload) = self.own_next.take() else { return };
        let Some(topic) = self.own.topic().cloned() else { return };
        let topic = self.terms.enveloped(&topic, &payload, None, Some(own::CONTENT_TYPE));
        let qos = Qos::AtLeastOnce.min(self.terms.qos_max);
        let mut publish = Publish {
            dup: false,
            retain: self.terms.retain_available && self.settings.profile.may_retain(topic.as_str()),
            qos,
            packet_id: None,
            topic: Some(topic),
            payload,
            properties: Properties::default(),
            topic_alias: None,
            subscription_id: None,
        };
        if qos == Qos::AtLeastOnce {
            let id = self.free_id();
            publish.packet_id = Some(id);
            self.ids.insert(id, Holder::OwnStatus);
            self.counts_out(at);
        }
        self.send(at, Packet::Publish(publish));
    }

    /// One more PUBLISH of the gateway's own waits for its PUBACK.
    fn counts_out(&mut self, at: Moment) {
        if self.rows_out == 0 {
            self.progress_at = at.now;
        }
        self.rows_out += 1;
    }

    fn not_found(&self) -> ReasonCode {
        match self.settings.version {
            Version::V5 => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
            Version::V311 => ReasonCode::SUCCESS,
        }
    }

    // --- inbound --------------------------------------------------------------------------------------------------

    fn subscribe(&mut self, at: Moment) {
        if self.subscribe_at.is_some_and(|when| when <= at.now) {
            self.subscribe_at = None;
            self.is_subscribed = false;
        }
        if self.is_subscribed || self.stop_by.is_some() {
            return;
        }
        self.is_subscribed = true;
        let is_v5 = self.settings.version == Version::V5;
        let wanted: Vec<Subscription> = self
            .settings
            .receive
            .iter()
            .map(|rule| Subscription {
                filter: rule.filter.clone(),
                // AWS does not answer a SUBSCRIBE above its highest.
                qos: rule.qos.min(self.settings.profile.qos_max),
                // Forbidden on a shared subscription (MQTT 5.0, 3.8.3.1).
                no_local: is_v5 && rule.filter.share_group().is_none(),
                retain_as_published: false,
                // Retained commands only when the cloud did not know the subscription: not again at each start.
                retain_handling: u8::from(is_v5),
            })
            .collect();
        for some in wanted.chunks(self.settings.profile.filters_per_subscribe.max(1)) {
            if self.ids.len() >= usize::from(u16::MAX) {
                return;
            }
            let id = self.free_id();
            let filters = some.iter().map(|one| one.filter.as_str().to_owned()).collect();
            self.ids.insert(id, Holder::Subscribe(filters));
            let subscribe = Subscribe { packet_id: id, subscriptions: some.to_vec(), subscription_id: None };
            self.send(at, Packet::Subscribe(subscribe));
        }
    }

    fn suback(&mut self, at: Moment, suback: &Suback) {
        if let Some(Holder::Subscription(number)) = self.ids.get(&suback.packet_id) {
            let number = *number;
            self.ids.remove(&suback.packet_id);
            return self.service_subscribed(at, number, suback);
        }
        if !matches!(self.ids.get(&suback.packet_id), Some(Holder::Subscribe(_))) {
            self.counts.strays += 1;
            return;
        }
        let Some(Holder::Subscribe(filters)) = self.ids.remove(&suback.packet_id) else { return };
        self.subscribe_deaths = 0;
        for (filter, _) in filters.into_iter().zip(&suback.reasons).filter(|(_, reason)| reason.is_failure()) {
            self.subscribe_at = Some(at.now + SUBSCRIBE_AGAIN);
            self.actions.push(Action::Note(Note::SubscriptionRefused { filter: Some(filter) }));
        }
    }

    fn publish_in(&mut self, at: Moment, publish: Publish) {
        // No alias was granted in CONNECT, so there is always a topic.
        let Some(cloud_topic) = &publish.topic else {
            return self.close(CloseReason::Protocol { what: "a topic alias that was not granted" });
        };
        let answer = match (publish.qos, publish.packet_id) {
            (Qos::AtMostOnce, _) => None,
            (_, None) => return self.close(CloseReason::Protocol { what: "a PUBLISH without its packet id" }),
            (Qos::AtLeastOnce, Some(id)) => Some(Packet::Puback(Ack::new(id, ReasonCode::SUCCESS))),
            (Qos::ExactlyOnce, Some(id)) => Some(Packet::Pubrec(Ack::new(id, ReasonCode::SUCCESS))),
        };
        if self.services.owns(cloud_topic.as_str()) {
            let topic = cloud_topic.clone();
            return self.service_publish(at, &topic, &publish, answer);
        }
        let rules = self.settings.receive.iter().enumerate();
        let local =
            rules.filter_map(|(place, rule)| Some((place, rule.topic.apply(&rule.filter, cloud_topic)?))).next();
        let Some((place, Ok(topic))) = local else {
            self.counts.unmatched += 1;
            return self.take_and_ignore(publish.qos, publish.packet_id, answer);
        };
        let mut properties = publish.properties;
        if commands::has_passed(&self.settings.gateway, &properties) {
            // It came from here, and another cloud has brought it back.
            self.counts.loops += 1;
            self.actions.push(Action::Note(Note::Loop { topic: cloud_topic.clone() }));
            return self.take_and_ignore(publish.qos, publish.packet_id, answer);
        }
        self.counts.received += 1;
        let key = commands::key(&self.settings.name, cloud_topic, &publish.payload, &properties);
        let asked = properties.response_topic.take();
        match answers::way(&self.settings.name, &self.settings.receive, place, cloud_topic, asked.as_ref()) {
            Way::AsItIs => properties.response_topic = asked,
            Way::Local(local) => properties.response_topic = Some(local),
            Way::NotAllowed(topic) => self.actions.push(Action::Note(Note::AnswerNotAllowed { topic })),
        }
        let once = match (publish.qos, publish.packet_id) {
            (Qos::ExactlyOnce, Some(id)) => Some(Once::Packet { session: self.session, packet_id: id.get() }),
            (Qos::AtLeastOnce, _) => key.map(|key| {
                let may_be_repeat = publish.dup || !self.settings.profile.marks_repeats;
                Once::Command { key, may_be_repeat }
            }),
            _ => None,
        };
        let message = Message {
            topic,
            qos: publish.qos,
            retain: publish.retain,
            properties: Some(properties).filter(|properties| !properties.is_empty()).map(Box::new),
            body: Body::Bytes(publish.payload),
            origin: Origin::Uplink(self.settings.name.clone()),
            received: at.stamp,
        };
        let message = Box::new(message);
        let receipt = self.inbound.open(answer);
        if self.settings.version == Version::V311 && message.qos != Qos::AtMostOnce {
            let is_behind = self.inbound.has_refused_on(&message.topic);
            self.inbound.keep(receipt, message.clone(), once);
            // Behind an earlier one of its topic that there was no room for.
            if is_behind {
                return self.inbound.refuse(receipt);
            }
        }
        self.actions.push(Action::Submit { receipt, message, once });
    }

    /// What nobody here wants is answered all the same, or it would come again.
    fn take_and_ignore(&mut self, qos: Qos, packet_id: Option<PacketId>, answer: Option<Packet>) {
        if let (Qos::ExactlyOnce, Some(id)) = (qos, packet_id) {
            self.inbound.ignore(id);
        }
        if let Some(answer) = answer {
            self.inbound.answered(answer);
        }
    }

    /// The store has no room for a command. Closing would only make the cloud send it again at once.
    fn no_room(&mut self, at: Moment, receipt: Receipt) {
        self.counts.refused += 1;
        self.actions.push(Action::Note(Note::NoRoom));
        if self.inbound.keeps(receipt) {
            self.inbound.refuse(receipt);
            self.submit_at = Some(at.now + SUBMIT_AGAIN);
        } else if self.inbound.answer_id(receipt).is_some() {
            self.inbound.fail(receipt, ReasonCode::QUOTA_EXCEEDED);
        } else {
            self.inbound.ready(receipt);
        }
    }

    /// One at a time: what has room for the first may have none for the second, and they keep their order.
    fn submit_again(&mut self) {
        if self.submit_at.is_none()
            && let Some((receipt, message, once)) = self.inbound.take_refused()
        {
            self.actions.push(Action::Submit { receipt, message, once });
        }
    }

    fn pubrel_in(&mut self, ack: &Ack) {
        let id = ack.packet_id;
        // Released also when its message was ignored: before a restart with other rules it may have been stored, and a
        // received id that stays makes the next message that bears it a repeat, which is answered and thrown away.
        let receipt = self.inbound.open(Some(Packet::Pubcomp(Ack::new(id, ReasonCode::SUCCESS))));
        let once = Once::Packet { session: self.session, packet_id: id.get() };
        self.actions.push(Action::Release { receipt, once });
    }

    fn pubcomp_for(&mut self, receipt: Receipt, was_known: bool) {
        let Some(id) = self.inbound.answer_id(receipt) else { return };
        let was_ignored = self.inbound.take_ignored(id);
        if was_known || was_ignored {
            return self.inbound.ready(receipt);
        }
        // Answered, not refused: else the cloud would repeat it on every connection.
        self.counts.strays += 1;
        let answer = Packet::Pubcomp(Ack::new(id, self.not_found()));
        self.inbound.ready_with(receipt, answer);
    }
}

fn admit(id: PacketId, order: u64, attempt: &Attempt) -> Change {
    let encoding = attempt.row.encoding.clone();
    Change::Admit { packet_id: id.get(), rows: attempt.sequences().collect(), order, encoding }
}
