//! Counters and states of every stage: the one source for the journal, the watchdog, `status`, page and metrics.
//!
//! Writing to it never waits for anything and never fails; reading it takes a snapshot.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::message::{ClockState, Stamp};
use drain::{Drain, DrainSnapshot, Level};

mod drain;
pub mod live;
pub mod status;

/// How many clients are counted by name; what comes after them is counted together under `(others)`.
const NAMED_CLIENTS_MAX: usize = 256;

/// Over how long the filling of the store is measured, in milliseconds.
const TREND_MS: u64 = 60_000;

/// Problems that are shown; the store keeps as many.
pub const PROBLEMS_MAX: usize = 200;

/// An error with all its causes, for the log: "act: cause: cause of that".
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Why a message was given up. Each is a counter, a gap and a line in the journal, never silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossReason {
    /// The store was full and the rule says that the oldest go.
    DroppedOldest,
    /// The store was full and the rule says that the newest goes.
    DroppedNewest,
    /// Older than `max_age`.
    Expired,
    /// The cloud refused it for good; it is kept as a dead letter.
    Rejected,
    /// Its row on disk did not match its checksum.
    Damaged,
    /// A dead letter gave way to a newer one.
    DeadLetterDropped,
    /// Its own MQTT 5 message expiry ended while it waited.
    MessageExpired,
    /// The store was moved aside because it was damaged, with what waited in it.
    Quarantined,
    /// The owner dropped the stream it waited in.
    StreamDropped,
    /// It waited for a local client whose session, or all of them together, held too much.
    SessionFull,
}

impl LossReason {
    /// All of them, in the order of their codes.
    pub const ALL: [LossReason; 10] = [
        LossReason::DroppedOldest,
        LossReason::DroppedNewest,
        LossReason::Expired,
        LossReason::Rejected,
        LossReason::Damaged,
        LossReason::DeadLetterDropped,
        LossReason::MessageExpired,
        LossReason::Quarantined,
        LossReason::StreamDropped,
        LossReason::SessionFull,
    ];

    /// The word in status, metrics and gap records.
    pub fn name(self) -> &'static str {
        match self {
            LossReason::DroppedOldest => "dropped-oldest",
            LossReason::DroppedNewest => "dropped-newest",
            LossReason::Expired => "expired",
            LossReason::Rejected => "rejected",
            LossReason::Damaged => "damaged",
            LossReason::DeadLetterDropped => "dead-letter-dropped",
            LossReason::MessageExpired => "message-expired",
            LossReason::Quarantined => "quarantined",
            LossReason::StreamDropped => "stream-dropped",
            LossReason::SessionFull => "session-full",
        }
    }

    /// Its number in the ledger: never another one's.
    pub fn code(self) -> u64 {
        LossReason::ALL.iter().position(|reason| *reason == self).unwrap_or_default() as u64
    }

    /// The reason of a number.
    pub fn from_code(code: u64) -> Option<LossReason> {
        LossReason::ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// The reason of a name, as the store keeps it.
    pub fn from_name(name: &str) -> Option<LossReason> {
        LossReason::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// A state that a person should know of while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alarm {
    /// The store fails again and again: nothing is acknowledged meanwhile.
    StoreFails,
    /// The store is filled to four fifths.
    StoreFills,
    /// The queue's thread has not answered for long: a sync that does not come back.
    StoreStalls,
    /// A store that a newer program wrote is put aside: what waits in it is not delivered by this one.
    StoreAside,
    /// The configuration on the disk is wrong, and the former one is in force.
    ConfigurationRefused,
    /// Some of the configuration on the disk is in force after a restart only.
    RestartNeeded,
}

impl Alarm {
    /// All of them.
    pub const ALL: [Alarm; 6] = [
        Alarm::StoreFails,
        Alarm::StoreFills,
        Alarm::StoreStalls,
        Alarm::StoreAside,
        Alarm::ConfigurationRefused,
        Alarm::RestartNeeded,
    ];

    /// The word in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Alarm::StoreFails => "store-fails",
            Alarm::StoreFills => "store-fills",
            Alarm::StoreStalls => "store-stalls",
            Alarm::StoreAside => "store-aside",
            Alarm::ConfigurationRefused => "configuration-refused",
            Alarm::RestartNeeded => "restart-needed",
        }
    }

    /// Whether a gateway with it is not healthy: it does not keep its promise for now.
    pub fn is_failure(name: &str) -> bool {
        name == Alarm::StoreFails.name()
    }
}

/// The health of the whole gateway. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    queue: QueueHealth,
    uplinks: Mutex<BTreeMap<Arc<str>, Arc<UplinkHealth>>>,
    devices: Mutex<BTreeMap<Arc<str>, Arc<DeviceHealth>>>,
    losses: Mutex<BTreeMap<LossReason, u64>>,
    unkept: Mutex<BTreeMap<Arc<str>, u64>>,
    sessions: SessionHealth,
    alarms: Mutex<BTreeMap<Alarm, ProblemSnapshot>>,
    problems: Mutex<VecDeque<ProblemSnapshot>>,
    kept_streams: Mutex<BTreeMap<Arc<str>, u64>>,
    certificates: Mutex<Vec<CertificateEnd>>,
    salvage: Mutex<Option<SalvageSnapshot>>,
    last_stop: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A counter map is whole after every statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Health {
    /// The queue's gauges.
    pub fn queue(&self) -> &QueueHealth {
        &self.0.queue
    }

    /// The broker's gauges.
    pub fn sessions(&self) -> &SessionHealth {
        &self.0.sessions
    }

    /// The state of one uplink, made when first asked for.
    pub fn uplink(&self, name: &Arc<str>) -> Arc<UplinkHealth> {
        lock(&self.0.uplinks).entry(name.clone()).or_default().clone()
    }

    /// The state of one device, made when first asked for.
    pub fn device(&self, name: &Arc<str>) -> Arc<DeviceHealth> {
        lock(&self.0.devices).entry(name.clone()).or_default().clone()
    }

    /// All devices, by name.
    pub fn devices(&self) -> Vec<(Arc<str>, Arc<DeviceHealth>)> {
        lock(&self.0.devices).iter().map(|(name, device)| (name.clone(), device.clone())).collect()
    }

    /// Counts `count` lost messages.
    pub fn add_losses(&self, reason: LossReason, count: u64) {
        if reason == LossReason::SessionFull {
            self.sessions().dropped.fetch_add(count, Ordering::Relaxed);
        }
        *lock(&self.0.losses).entry(reason).or_default() += count;
    }

    /// Sets a loss counter to what the store kept from earlier starts.
    pub fn restore_losses(&self, reason: LossReason, count: u64) {
        lock(&self.0.losses).insert(reason, count);
    }

    /// Counts a QoS 0 publish of `client` that a forward rule wanted and that was not kept, because the uplink was
    /// away and no rule raised it.
    pub fn add_unkept(&self, client: &Arc<str>) {
        let mut unkept = lock(&self.0.unkept);
        let others: Arc<str> = Arc::from("(others)");
        let name = if unkept.len() < NAMED_CLIENTS_MAX || unkept.contains_key(client) { client } else { &others };
        *unkept.entry(name.clone()).or_default() += 1;
    }

    /// Raises an alarm, or changes its text; says whether it was not raised before.
    pub fn raise(&self, alarm: Alarm, wall_ms: i64, text: &str) -> bool {
        let mut alarms = lock(&self.0.alarms);
        let time = alarms.get(&alarm).map_or_else(|| crate::clock::rfc3339(wall_ms), |known| known.time.clone());
        alarms.insert(alarm, ProblemSnapshot { time, text: text.to_owned() }).is_none()
    }

    /// Takes an alarm back; says whether it was raised.
    pub fn clear(&self, alarm: Alarm) -> bool {
        lock(&self.0.alarms).remove(&alarm).is_some()
    }

    /// Whether an alarm is raised.
    pub fn is_raised(&self, alarm: Alarm) -> bool {
        lock(&self.0.alarms).contains_key(&alarm)
    }

    /// Shows a problem; the oldest of too many goes.
    pub fn add_problem(&self, wall_ms: i64, text: &str) {
        let mut problems = lock(&self.0.problems);
        if problems.len() >= PROBLEMS_MAX {
            problems.pop_front();
        }
        problems.push_back(ProblemSnapshot { time: crate::clock::rfc3339(wall_ms), text: text.to_owned() });
    }

    /// Forgets the problems: the store is about to say which there are.
    pub fn clear_problems(&self) {
        lock(&self.0.problems).clear();
    }

    /// What waits in streams that no uplink of the configuration delivers. Nearly always there are none.
    pub fn set_kept_streams(&self, streams: impl Iterator<Item = (Arc<str>, u64)>) {
        let mut kept = lock(&self.0.kept_streams);
        kept.clear();
        kept.extend(streams);
    }

    /// When the certificates end that the configuration names.
    pub fn set_certificates(&self, certificates: Vec<CertificateEnd>) {
        *lock(&self.0.certificates) = certificates;
    }

    /// An uplink is not configured any more.
    pub fn forget_uplink(&self, name: &str) {
        lock(&self.0.uplinks).remove(name);
    }

    /// A device is not configured any more.
    pub fn forget_device(&self, name: &str) {
        lock(&self.0.devices).remove(name);
    }

    /// How the program ended before this start.
    pub fn set_last_stop(&self, reason: &str) {
        *lock(&self.0.last_stop) = Some(reason.to_owned());
    }

    /// How far the salvage of a damaged store has come; `None` = there is none.
    pub fn set_salvage(&self, salvage: Option<SalvageSnapshot>) {
        *lock(&self.0.salvage) = salvage;
    }

    /// All uplinks, by name.
    pub fn uplinks(&self) -> Vec<(Arc<str>, Arc<UplinkHealth>)> {
        lock(&self.0.uplinks).iter().map(|(name, uplink)| (name.clone(), uplink.clone())).collect()
    }

    /// All of it at the moment `now`.
    pub fn snapshot(&self, now: Stamp) -> Snapshot {
        Snapshot {
            queue: self.0.queue.snapshot(now),
            uplinks: lock(&self.0.uplinks)
                .iter()
                .map(|(name, uplink)| (name.to_string(), uplink.snapshot(now)))
                .collect(),
            devices: lock(&self.0.devices).iter().map(|(name, device)| (name.to_string(), device.snapshot())).collect(),
            sessions: self.0.sessions.snapshot(),
            losses: lock(&self.0.losses).iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
            unkept_qos0: lock(&self.0.unkept).iter().map(|(client, count)| (client.to_string(), *count)).collect(),
            alarms: lock(&self.0.alarms).iter().map(|(alarm, text)| (alarm.name().to_owned(), text.clone())).collect(),
            problems: lock(&self.0.problems).iter().cloned().collect(),
            kept_streams: lock(&self.0.kept_streams).iter().map(|(name, count)| (name.to_string(), *count)).collect(),
            certificates: lock(&self.0.certificates).iter().map(|end| end.snapshot(now)).collect(),
            salvage: lock(&self.0.salvage).clone(),
            last_stop: lock(&self.0.last_stop).clone(),
        }
    }
}

/// What `status --json` shows of the stages (DESIGN.md 6.11).
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// The store.
    pub queue: QueueSnapshot,
    /// By name.
    pub uplinks: BTreeMap<String, UplinkSnapshot>,
    /// By name.
    pub devices: BTreeMap<String, DeviceSnapshot>,
    /// The local broker.
    pub sessions: SessionSnapshot,
    /// Messages given up, by reason, since the store was made.
    pub losses: BTreeMap<String, u64>,
    /// QoS 0 publishes that were not kept, by client, since start.
    pub unkept_qos0: BTreeMap<String, u64>,
    /// What should not be as it is, by name, since when.
    pub alarms: BTreeMap<String, ProblemSnapshot>,
    /// The last problems, oldest first, also those of earlier starts.
    pub problems: Vec<ProblemSnapshot>,
    /// Messages that wait in streams without an uplink of their name, by name.
    pub kept_streams: BTreeMap<String, u64>,
    /// Those that the configuration names.
    pub certificates: Vec<CertificateSnapshot>,
    /// The damaged store that is being salvaged.
    pub salvage: Option<SalvageSnapshot>,
    /// How the program ended before this start; null = this is the first.
    pub last_stop: Option<String>,
}

/// A problem and when it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProblemSnapshot {
    /// RFC 3339.
    pub time: String,
    /// For a person.
    pub text: String,
}

/// A certificate that the configuration names, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateEnd {
    /// The table that names it: `uplink.cloud`.
    pub of: String,
    /// By which key: `cert`, `ca` or `client_ca`.
    pub key: &'static str,
    /// Its file.
    pub path: PathBuf,
    /// Milliseconds since 1970.
    pub until_ms: i64,
}

impl CertificateEnd {
    fn snapshot(&self, now: Stamp) -> CertificateSnapshot {
        let left_ms = self.until_ms.saturating_sub(now.wall_ms);
        CertificateSnapshot {
            of: self.of.clone(),
            key: self.key,
            file: self.path.display().to_string(),
            until: crate::clock::rfc3339(self.until_ms),
            until_s: self.until_ms.div_euclid(1000),
            days_left: (now.clock != ClockState::Unset).then(|| left_ms.div_euclid(86_400_000)),
        }
    }
}

/// One of `certificates` in `status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateSnapshot {
    /// The table that names it: `uplink.cloud`.
    pub of: String,
    /// By which key: `cert`, `ca` or `client_ca`.
    pub key: &'static str,
    /// Its file.
    pub file: String,
    /// When it ends, RFC 3339.
    pub until: String,
    /// The same in seconds since 1970.
    pub until_s: i64,
    /// Whole days; negative: it has ended; null: the clock is not set.
    pub days_left: Option<i64>,
}

/// `salvage` in `status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SalvageSnapshot {
    /// Where the damaged store is.
    pub quarantine: String,
    /// Messages that were taken over so far.
    pub salvaged: u64,
    /// Messages that waited in it, counted once for each stream; null = not known.
    pub waiting: Option<u64>,
    /// The new store has too little room for now.
    pub waits_for_room: bool,
}

/// Gauges of the queue; its worker writes them after each commit.
#[derive(Debug, Default)]
pub struct QueueHealth {
    /// Messages that some stream still wants.
    pub messages: AtomicU64,
    /// Bytes of pages in use, but for what is kept.
    pub bytes: AtomicU64,
    /// Messages that were delivered and are kept for a while.
    pub kept: AtomicU64,
    /// Bytes that they take, about; they are not among the others.
    pub kept_bytes: AtomicU64,
    /// The soft ceiling in force.
    pub bytes_max: AtomicU64,
    /// When the oldest waiting message entered, milliseconds since boot; 0 = nothing waits.
    pub oldest_mono_ms: AtomicU64,
    /// Commits so far; the watchdog looks at its movement.
    pub commits: AtomicU64,
    /// Commits that failed in a row.
    pub failures_in_a_row: AtomicU64,
    trend: Mutex<Trend>,
}

/// How fast the store fills.
#[derive(Debug, Default)]
struct Trend {
    /// Milliseconds since boot, and bytes in use then.
    base: Option<(u64, u64)>,
    /// Bytes a second.
    rate: Option<u64>,
}

/// `queue` in `status --json`.
#[derive(Debug, Clone, Serialize)]
pub struct QueueSnapshot {
    /// Messages waiting.
    pub messages: u64,
    /// Bytes in use, but for those of what is kept.
    pub bytes: u64,
    /// Messages that were delivered and are kept for a while (`keep_delivered`); they give way to whatever comes.
    pub kept: u64,
    /// Bytes that they take, about.
    pub kept_bytes: u64,
    /// Soft ceiling.
    pub max_bytes: u64,
    /// Age of the oldest waiting message in seconds; null = nothing waits.
    pub oldest_age_s: Option<u64>,
    /// Seconds until full at the rate of late; null = not filling.
    pub full_in_s: Option<u64>,
}

impl QueueHealth {
    fn snapshot(&self, now: Stamp) -> QueueSnapshot {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let bytes_max = self.bytes_max.load(Ordering::Relaxed);
        let oldest = self.oldest_mono_ms.load(Ordering::Relaxed);
        QueueSnapshot {
            messages: self.messages.load(Ordering::Relaxed),
            bytes,
            kept: self.kept.load(Ordering::Relaxed),
            kept_bytes: self.kept_bytes.load(Ordering::Relaxed),
            max_bytes: bytes_max,
            oldest_age_s: (oldest != 0).then(|| now.mono_ms.saturating_sub(oldest) / 1000),
            full_in_s: self.full_in_s(now.mono_ms),
        }
    }

    /// Seconds until the ceiling at the rate since the last look that was at least a minute ago. The queue's thread
    /// looks after each commit, so that the rate is that of the last minutes whenever somebody asks.
    pub fn full_in_s(&self, mono_ms: u64) -> Option<u64> {
        let (bytes, bytes_max) = (self.bytes.load(Ordering::Relaxed), self.bytes_max.load(Ordering::Relaxed));
        let mut trend = lock(&self.trend);
        let (before_ms, before_bytes) = trend.base.unwrap_or((mono_ms, bytes));
        let elapsed_ms = mono_ms.saturating_sub(before_ms);
        if trend.base.is_none() || elapsed_ms >= TREND_MS {
            trend.rate = (elapsed_ms >= TREND_MS).then(|| bytes.saturating_sub(before_bytes) * 1000 / elapsed_ms);
            trend.base = Some((mono_ms, bytes));
        }
        let rate = trend.rate.filter(|rate| *rate > 0)?;
        Some(bytes_max.saturating_sub(bytes) / rate)
    }
}

/// State of an uplink as words for people and programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UplinkState {
    /// Not tried yet.
    #[default]
    Starting,
    /// An attempt is under way.
    Connecting,
    /// CONNACK has come and the session is set up.
    Connected,
    /// Pausing before the next attempt.
    Waiting,
    /// Stopped in order.
    Stopped,
}

/// One uplink. Its task writes it.
#[derive(Debug, Default)]
pub struct UplinkHealth {
    link: Mutex<LinkState>,
    /// Read by `intake` for live messages at QoS 0.
    pub connected: AtomicBool,
    /// Unacknowledged messages at the cloud.
    pub in_flight: AtomicU64,
    /// Acknowledged by the cloud since start.
    pub delivered: AtomicU64,
    /// Messages that the cloud had and that are to be sent once more, as a person has ordered.
    pub again: AtomicU64,
    /// Those of them that it has acknowledged again since start; they are not among `delivered`.
    pub delivered_again: AtomicU64,
    /// Waiting in its stream, in flight included.
    pub waiting: AtomicU64,
    /// Sent again with DUP or under a new id since start.
    pub resent: AtomicU64,
    /// Thrown away by the cloud because they were too many, and sent again.
    pub throttled: AtomicU64,
    /// Sent at a lower QoS than asked for, because the cloud has no higher.
    pub downgraded: AtomicU64,
    /// How often the cloud had forgotten the session.
    pub sessions_lost: AtomicU64,
    /// Taken in from the cloud since start.
    pub received: AtomicU64,
    /// From the cloud, but no receive rule made a local topic of it.
    pub unmatched: AtomicU64,
    /// From the cloud, but it had come from here to another one.
    pub loops: AtomicU64,
    /// Acknowledgements of nothing that the cloud sent.
    pub strays: AtomicU64,
    /// Times that a message from the cloud found no room in the store.
    pub refused: AtomicU64,
    /// QoS 0 messages that were too long for the cloud, or too old.
    pub live_dropped: AtomicU64,
    /// Counted as delivered, though the cloud did not know them any more when they were released.
    pub uncertain: AtomicU64,
    drain: Mutex<Drain>,
    services: Mutex<BTreeMap<&'static str, ServiceState>>,
}

/// How a service of the cloud stands that the gateway takes part in beside its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// There is no connection.
    Away,
    /// It was asked and has not answered.
    Asking,
    /// It does what it should; a twin is in step.
    Ready,
    /// A twin has not been told all.
    Behind,
    /// Nobody here takes jobs, so that none is begun.
    Unheard,
    /// The cloud does not allow it, or something of it.
    Refused,
}

#[derive(Debug, Default)]
struct LinkState {
    state: UplinkState,
    since_ms: i64,
    reason: Option<String>,
}

impl UplinkHealth {
    /// The uplink begins anew, perhaps without them.
    pub fn forget_services(&self) {
        lock(&self.services).clear();
    }

    /// How the services of the cloud stand.
    pub fn set_services(&self, states: impl Iterator<Item = (&'static str, ServiceState)>) {
        let mut states = states.peekable();
        if states.peek().is_some() {
            lock(&self.services).extend(states);
        }
    }

    /// Changes the state; `reason` says why not connected, as a chain of causes for a person.
    pub fn set(&self, state: UplinkState, wall_ms: i64, reason: Option<String>) {
        let mut link = lock(&self.link);
        self.connected.store(state == UplinkState::Connected, Ordering::Relaxed);
        if link.state != state {
            link.since_ms = wall_ms;
        }
        link.state = state;
        link.reason = reason;
    }

    /// The state at this moment.
    pub fn state(&self) -> UplinkState {
        lock(&self.link).state
    }

    /// Takes in how far a drain is; to be called now and then while there is one.
    pub fn note_drain(&self, now: Stamp) {
        lock(&self.drain).note(self.level(now));
    }

    fn level(&self, now: Stamp) -> Level {
        Level {
            now_ms: now.mono_ms,
            is_connected: self.connected.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
        }
    }

    fn snapshot(&self, now: Stamp) -> UplinkSnapshot {
        let drain = lock(&self.drain).snapshot(self.level(now));
        let link = lock(&self.link);
        UplinkSnapshot {
            state: link.state,
            since: crate::clock::rfc3339(link.since_ms),
            reason: link.reason.clone(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            again: self.again.load(Ordering::Relaxed),
            delivered_again: self.delivered_again.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            resent: self.resent.load(Ordering::Relaxed),
            throttled: self.throttled.load(Ordering::Relaxed),
            downgraded: self.downgraded.load(Ordering::Relaxed),
            sessions_lost: self.sessions_lost.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            unmatched: self.unmatched.load(Ordering::Relaxed),
            loops: self.loops.load(Ordering::Relaxed),
            strays: self.strays.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            live_dropped: self.live_dropped.load(Ordering::Relaxed),
            uncertain: self.uncertain.load(Ordering::Relaxed),
            services: lock(&self.services).clone(),
            drain,
        }
    }
}

/// One entry of `uplinks` in `status --json`.
#[derive(Debug, Clone, Serialize)]
pub struct UplinkSnapshot {
    /// Connected or not.
    pub state: UplinkState,
    /// Since when, RFC 3339.
    pub since: String,
    /// Why not connected.
    pub reason: Option<String>,
    /// Unacknowledged.
    pub in_flight: u64,
    /// Acknowledged since start.
    pub delivered: u64,
    /// Messages that it had and is to be sent once more (`tidegate queue resend`).
    pub again: u64,
    /// Those of them that it has acknowledged again since start; not among `delivered`.
    pub delivered_again: u64,
    /// Waiting.
    pub waiting: u64,
    /// Repeats since start.
    pub resent: u64,
    /// Thrown away by the cloud because they were too many, and sent again, since start.
    pub throttled: u64,
    /// Sent at a lower QoS since start.
    pub downgraded: u64,
    /// Sessions that the cloud forgot since start.
    pub sessions_lost: u64,
    /// From the cloud since start.
    pub received: u64,
    /// From the cloud, without a receive rule, since start.
    pub unmatched: u64,
    /// From the cloud, but it had come from here to another one.
    pub loops: u64,
    /// Acknowledgements of nothing since start.
    pub strays: u64,
    /// Times that a message from the cloud found no room in the store, since start.
    pub refused: u64,
    /// QoS 0 messages that were too long for the cloud, or too old, since start.
    pub live_dropped: u64,
    /// Counted as delivered, though the cloud did not know them any more when they were released, since start.
    pub uncertain: u64,
    /// How far the backlog is delivered; null = there is none, or no cloud to take it.
    pub drain: Option<DrainSnapshot>,
    /// `twin` and `jobs`, where they are configured.
    pub services: BTreeMap<&'static str, ServiceState>,
}

impl UplinkSnapshot {
    /// Whether the cloud is there.
    pub fn is_connected(&self) -> bool {
        self.state == UplinkState::Connected
    }
}

/// State of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Not read yet.
    #[default]
    Starting,
    /// The last exchange gave a whole answer.
    Good,
    /// It answers, but some points are bad.
    Degraded,
    /// It does not answer.
    Dead,
}

/// One field device. Its line's task writes it.
#[derive(Debug, Default)]
pub struct DeviceHealth {
    state: Mutex<DeviceState>,
    reason: Mutex<Option<String>>,
    /// Wall time of the last good answer; 0 = never.
    pub last_good_ms: AtomicI64,
    /// Achieved interval of the last two polls in milliseconds; 0 = unknown.
    pub interval_ms: AtomicU64,
    /// Its shortest interval as configured, in milliseconds; 0 = it speaks by itself.
    pub asked_ms: AtomicU64,
    /// Exchanges since start.
    pub exchanges: AtomicU64,
    /// Failed ones.
    pub failures: AtomicU64,
    /// Frames that fit nothing (serial), or replies that broke the protocol (Modbus).
    pub malformed: AtomicU64,
    /// What was seen last of each of its points.
    pub points: live::Points,
    faults: Mutex<BTreeMap<&'static str, u64>>,
    writes: Mutex<WriteCounts>,
    unaccounted: Mutex<Unaccounted>,
}

/// What became of writes to one device since start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WriteCounts {
    /// Carried out, and read back where that can be.
    pub written: u64,
    /// Not tried, by kind: `not-writable`, `range`, `too-many` …
    pub refused: BTreeMap<&'static str, u64>,
    /// Not begun in time.
    pub expired: u64,
    /// Tried in vain, by kind: `exception-2`, `differs` …
    pub failed: BTreeMap<&'static str, u64>,
    /// Nobody knows.
    pub unknown: u64,
}

/// What a device did that the ledger does not have on disk yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unaccounted {
    /// Values that were seen, failed ones included.
    pub read: u64,
    /// Those of them that the report rule held back.
    pub held: u64,
    /// When it fell silent or spoke again, in order.
    pub silences: Vec<Silence>,
}

impl Unaccounted {
    /// Whether there is nothing to account.
    pub fn is_empty(&self) -> bool {
        *self == Unaccounted::default()
    }
}

/// A device fell silent, or spoke again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silence {
    /// Nothing was measured since then.
    Began {
        /// The last good answer, or the start.
        from: Stamp,
        /// For a person.
        reason: String,
    },
    /// It answers.
    Ended {
        /// Since when.
        at: Stamp,
    },
}

/// Changes that wait for the ledger; a device that comes and goes more often within a minute loses some in between.
const SILENCES_MAX: usize = 64;

impl DeviceHealth {
    /// Counts a value that was seen, for the ledger.
    pub fn count_read(&self, is_held_back: bool) {
        let mut unaccounted = lock(&self.unaccounted);
        unaccounted.read += 1;
        unaccounted.held += u64::from(is_held_back);
    }

    /// Counts a failed exchange by the name of its fault, of which there are a few dozen.
    pub fn count_fault(&self, kind: &'static str) {
        *lock(&self.faults).entry(kind).or_default() += 1;
    }

    /// Counts how a write ended.
    pub fn count_write(&self, count: impl FnOnce(&mut WriteCounts)) {
        count(&mut lock(&self.writes));
    }

    /// Notes that the device fell silent or spoke again, for the ledger.
    pub fn note_silence(&self, silence: Silence) {
        let mut unaccounted = lock(&self.unaccounted);
        if unaccounted.silences.len() >= SILENCES_MAX {
            // The last one is kept: with it the account is right again.
            unaccounted.silences.pop();
        }
        unaccounted.silences.push(silence);
    }

    /// What the ledger does not have yet.
    pub fn unaccounted(&self) -> Unaccounted {
        lock(&self.unaccounted).clone()
    }

    /// The ledger has this on disk.
    pub fn accounted(&self, done: &Unaccounted) {
        let mut unaccounted = lock(&self.unaccounted);
        unaccounted.read = unaccounted.read.saturating_sub(done.read);
        unaccounted.held = unaccounted.held.saturating_sub(done.held);
        let taken = done.silences.len().min(unaccounted.silences.len());
        unaccounted.silences.drain(..taken);
    }

    /// Changes the state; gives back the former one, so that the caller can tell a change from a repeat.
    pub fn set(&self, state: DeviceState, reason: Option<String>) -> DeviceState {
        *lock(&self.reason) = reason;
        std::mem::replace(&mut *lock(&self.state), state)
    }

    fn snapshot(&self) -> DeviceSnapshot {
        let last_good = self.last_good_ms.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "an interval of 2^53 ms is 285,000 years")]
        let seconds = |ms: u64| (ms != 0).then_some(ms as f64 / 1000.0);
        DeviceSnapshot {
            state: *lock(&self.state),
            reason: lock(&self.reason).clone(),
            last_good: (last_good != 0).then(|| crate::clock::rfc3339(last_good)),
            interval_s: seconds(self.interval_ms.load(Ordering::Relaxed)),
            asked_s: seconds(self.asked_ms.load(Ordering::Relaxed)),
            exchanges: self.exchanges.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            malformed: self.malformed.load(Ordering::Relaxed),
            faults: lock(&self.faults).clone(),
            writes: lock(&self.writes).clone(),
        }
    }
}

/// One entry of `devices` in `status --json`.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceSnapshot {
    /// Answers or not.
    pub state: DeviceState,
    /// Why not.
    pub reason: Option<String>,
    /// RFC 3339; null = never.
    pub last_good: Option<String>,
    /// Achieved, in seconds.
    pub interval_s: Option<f64>,
    /// As configured, in seconds; null = it speaks by itself.
    pub asked_s: Option<f64>,
    /// Since start.
    pub exchanges: u64,
    /// Since start.
    pub failures: u64,
    /// Since start.
    pub malformed: u64,
    /// What failed since start, by kind: `timeout`, `checksum`, `exception-2` …
    pub faults: BTreeMap<&'static str, u64>,
    /// What became of writes to it.
    pub writes: WriteCounts,
}

impl DeviceSnapshot {
    /// 1: it answers, 0.5: in part, 0: it does not.
    pub fn level(&self) -> f64 {
        match self.state {
            DeviceState::Good => 1.0,
            DeviceState::Degraded => 0.5,
            DeviceState::Starting | DeviceState::Dead => 0.0,
        }
    }
}

/// Gauges of the local broker.
#[derive(Debug, Default)]
pub struct SessionHealth {
    /// Who is there.
    pub clients: live::Clients,
    /// Sockets that are attached to a session.
    pub connected: AtomicU64,
    /// Sessions that end with their sockets.
    pub passing: AtomicU64,
    /// Sessions that are kept in the store.
    pub kept: AtomicU64,
    /// Messages that wait in those, each as often as it is to be delivered.
    pub waiting: AtomicU64,
    /// Their bytes.
    pub waiting_bytes: AtomicU64,
    /// Subscriptions of sessions that end with their sockets.
    pub passing_subscriptions: AtomicU64,
    /// Subscriptions of sessions that are kept.
    pub kept_subscriptions: AtomicU64,
    /// Retained messages.
    pub retained: AtomicU64,
    /// Packets of any kind taken in.
    pub packets_received: AtomicU64,
    /// Packets of any kind sent out.
    pub packets_sent: AtomicU64,
    /// PUBLISH packets taken in.
    pub received: AtomicU64,
    /// PUBLISH packets sent out.
    pub sent: AtomicU64,
    /// Connections ended because the client broke the protocol.
    pub protocol_errors: AtomicU64,
    /// Connections refused because nobody knew who it was.
    pub refused_logins: AtomicU64,
    /// Messages and subscriptions of clients that may not do that, and messages that their subscribers may not hear.
    pub denied: AtomicU64,
    /// Connections that were not let in: too many, too slow, without TLS or a certificate that is good.
    pub refused: AtomicU64,
    /// Slow sessions that were disconnected.
    pub slow: AtomicU64,
    /// Messages to local subscribers that were given up: too many waited, too long for the client, expired.
    pub dropped: AtomicU64,
    refusals: Mutex<VecDeque<String>>,
}

/// Refusals that are shown: the last ones.
const REFUSALS_MAX: usize = 20;

impl SessionHealth {
    /// Shows whom the broker has refused what, and why. What a client called itself must not act on a terminal.
    pub fn note_refusal(&self, text: &str) {
        let shown: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let mut refusals = lock(&self.refusals);
        refusals.retain(|known| *known != shown);
        if refusals.len() >= REFUSALS_MAX {
            refusals.pop_front();
        }
        refusals.push_back(shown);
    }

    fn snapshot(&self) -> SessionSnapshot {
        SessionSnapshot {
            connected: self.connected.load(Ordering::Relaxed),
            sessions: self.passing.load(Ordering::Relaxed) + self.kept.load(Ordering::Relaxed),
            kept: self.kept.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            waiting_bytes: self.waiting_bytes.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            protocol_errors: self.protocol_errors.load(Ordering::Relaxed),
            refused_logins: self.refused_logins.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            slow: self.slow.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            refusals: lock(&self.refusals).iter().cloned().collect(),
        }
    }
}

/// `sessions` in `status --json`.
#[derive(Debug, Clone, Serialize)]
pub struct SessionSnapshot {
    /// With a socket.
    pub connected: u64,
    /// All.
    pub sessions: u64,
    /// Those that are kept over a restart.
    pub kept: u64,
    /// Messages that wait in those.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Since start.
    pub received: u64,
    /// Since start.
    pub sent: u64,
    /// Since start.
    pub protocol_errors: u64,
    /// Connections that were not let in, since start.
    pub refused: u64,
    /// Since start.
    pub refused_logins: u64,
    /// Since start.
    pub denied: u64,
    /// Since start.
    pub slow: u64,
    /// Since start.
    pub dropped: u64,
    /// Whom the broker has refused what, and why: the last ones, oldest first, each told once.
    pub refusals: Vec<String>,
}
