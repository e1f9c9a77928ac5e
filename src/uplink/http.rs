//! The uplink by HTTP: what waits in the queue is posted to a server, a message or a batch at a time.
//!
//! Promises, as by MQTT: a row is settled only after a 2xx, or given up with a reason that is kept; first attempts of a topic
//! leave in order; what a server refuses as a batch is halved down to the message at fault; no answer of a server makes a
//! loop of attempts without pauses. A batch is sent again under the same idempotency key as long as the process lives, and at
//! QoS 2, where it is on disk before it is sent, also after that: with a server that heeds the key each batch counts once.
//!
//! One request is under way at a time. What is decided is in `verdict` and `waiting`, which are pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64ct::{Base64, Encoding as _};
use log::{debug, error, info, warn};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::compose::{fix_time, has_expired};
use super::hour;
use super::link::{UplinkError, UplinkSettings, chance};
use super::waiting::{Attempt, Waiting};
use crate::clock::Clock;
use crate::config::{Endpoint, HttpConfig, HttpKind, UplinkConfig};
use crate::health::{LossReason, UplinkHealth, UplinkState, chain};
use crate::message::{ClockState, Qos, Sequence};
use crate::queue::{AppendError, Change, Outlet, Restored, Verdict};
use crate::transport::{Login, Pacing, Way, first_line};

use exchange::{ExchangeError, Line};
use request::{Request, request};
use verdict::{Judgement, judge};

mod exchange;
mod request;
mod verdict;

/// Rows that are read ahead.
const AHEAD_ROWS_MAX: usize = 2048;
const AHEAD_BYTES_MAX: usize = 4 << 20;

/// One fetch asks for at most this.
const FETCH_ROWS_MAX: usize = 1024;
const FETCH_BYTES_MAX: usize = 256 * 1024;

/// A server that answers one batch with failures and takes others may have its trouble with one message in it.
const TROUBLES_MAX: u32 = 3;

/// At stop, what is under way may take this long.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Pause before the store is asked again after it failed.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// Dead letters are named in the journal at most this often; the count goes on.
const REJECTED_EVERY: Duration = Duration::from_secs(10);

/// The longest wait for nothing.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// Delivers until `stop`: then what is under way may take two seconds.
pub async fn run(settings: UplinkSettings, http: HttpConfig, stop: CancellationToken) -> Result<(), UplinkError> {
    let UplinkSettings { name, config, outlet, clock, health, .. } = settings;
    let mut courier = Courier {
        uplink: health.uplink(&name),
        backoff: Backoff::new(config.reconnect),
        pacing: Pacing::new(config.pace),
        waiting: Waiting::default(),
        owned: HashSet::new(),
        admitted: HashMap::new(),
        line: None,
        endpoint: 0,
        started: Instant::now(),
        paused_until: Duration::ZERO,
        is_clock_unset: false,
        may_hurry: true,
        has_greeted: false,
        is_outage: false,
        is_held: false,
        rejected: 0,
        rejected_at: None,
        name,
        config,
        http,
        outlet,
        clock,
        stop,
    };
    courier.set_state(UplinkState::Connecting, None);
    let result = courier.deliver().await;
    courier.set_state(UplinkState::Stopped, result.as_ref().err().map(|error| chain(error)));
    result
}

struct Courier {
    name: Arc<str>,
    config: UplinkConfig,
    http: HttpConfig,
    outlet: Outlet,
    clock: Clock,
    uplink: Arc<UplinkHealth>,
    stop: CancellationToken,
    waiting: Waiting,
    /// Every row that is in memory, so that none is sent twice should the store hand it out again.
    owned: HashSet<Sequence>,
    /// By the first row of a batch: the number under which it is on disk.
    admitted: HashMap<Sequence, u16>,
    line: Option<Line>,
    endpoint: usize,
    backoff: Backoff,
    pacing: Pacing,
    started: Instant,
    paused_until: Duration,
    /// Nobody had vouched for the time when the pause began.
    is_clock_unset: bool,
    /// The pause is one of this side, and may end when the time is known.
    may_hurry: bool,
    /// The server has been reached once.
    has_greeted: bool,
    /// The outage has been logged.
    is_outage: bool,
    /// That a person is needed has been logged.
    is_held: bool,
    rejected: u64,
    rejected_at: Option<Instant>,
}

/// How an attempt ended without an answer.
enum Failed {
    /// On the way.
    Way(String),
    /// The gateway stops.
    Stopped,
}

impl Courier {
    async fn deliver(&mut self) -> Result<(), UplinkError> {
        if !self.begin().await? {
            return Ok(());
        }
        loop {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            for sequence in self.waiting.take_let_go() {
                self.owned.remove(&sequence);
            }
            let now = self.now();
            if self.waiting.take_rewind(now) {
                for sequence in self.waiting.take_let_go() {
                    self.owned.remove(&sequence);
                }
                self.outlet.rewind();
            }
            if self.is_clock_unset && self.clock.state() != ClockState::Unset {
                self.is_clock_unset = false;
                if self.may_hurry {
                    self.paused_until = now;
                }
            }
            if self.paused_until <= now {
                self.paused_until = self.paused_until.max(self.pacing.ready_at(now));
            }
            if self.paused_until <= now {
                if !self.has_greeted {
                    self.greet().await;
                    continue;
                }
                if let Some(attempt) = self.waiting.take(now, self.clock.now(), None) {
                    self.attempt(attempt).await?;
                    continue;
                }
            }
            self.wait(now).await?;
        }
    }

    /// Takes up what is on disk. False when the gateway stops meanwhile.
    async fn begin(&mut self) -> Result<bool, UplinkError> {
        let Restored { in_flight, .. } = loop {
            match self.outlet.restore().await {
                Ok(restored) => break restored,
                Err(AppendError::Stopped) => return Err(self.queue_stopped()),
                Err(_failed) => {
                    tokio::select! {
                        () = self.stop.cancelled() => return Ok(false),
                        () = sleep(STORE_AGAIN) => {}
                    }
                }
            }
        };
        self.waiting = Waiting::default();
        self.owned.clear();
        self.admitted.clear();
        for entry in in_flight {
            let Some(attempt) = Attempt::batch(entry.rows) else {
                // What a broker had released, when this uplink still went to one.
                self.commit(vec![Change::Forget { packet_id: entry.packet_id }]).await?;
                continue;
            };
            self.owned.extend(attempt.sequences());
            self.admitted.insert(attempt.row.sequence, entry.packet_id);
            if attempt.row.strict_order {
                self.waiting.occupy(&attempt.row);
            }
            self.waiting.put_back(attempt);
        }
        Ok(true)
    }

    /// Waits for rows, for the end of a pause, or for the stop.
    async fn wait(&mut self, now: Duration) -> Result<(), UplinkError> {
        let has_room = self.waiting.ahead() < AHEAD_ROWS_MAX && self.waiting.ahead_bytes() < AHEAD_BYTES_MAX;
        let pause = Some(self.paused_until).filter(|until| *until > now);
        let next = pause.or_else(|| self.waiting.next_at(now));
        let until = self.started + next.unwrap_or(now + IDLE_MAX).min(now + IDLE_MAX);
        // While nothing may be sent nothing is read: the queue knows better what gives way.
        let may_fetch = has_room && pause.is_none();
        tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            () = sleep_until(until) => Ok(()),
            () = self.clock.wait_until_known(), if self.is_clock_unset => Ok(()),
            rows = self.outlet.next(FETCH_ROWS_MAX, FETCH_BYTES_MAX), if may_fetch => match rows {
                Ok(rows) => {
                    for row in rows {
                        if self.owned.insert(row.sequence) {
                            self.waiting.push(row);
                        }
                    }
                    Ok(())
                }
                Err(AppendError::Stopped) => Err(self.queue_stopped()),
                Err(_failed) => {
                    sleep(STORE_AGAIN).await;
                    Ok(())
                }
            },
        }
    }

    /// Connects before there is anything to send, so that a person sees at once whether the way is right.
    async fn greet(&mut self) {
        match self.connected().await {
            Ok(()) => {
                self.has_greeted = true;
                self.reached();
            }
            Err(Failed::Way(reason)) => self.lost(reason),
            Err(Failed::Stopped) => {}
        }
    }

    /// Sends a message or a batch, and does what the answer says.
    async fn attempt(&mut self, mut attempt: Attempt) -> Result<(), UplinkError> {
        let stamp = self.clock.now();
        if attempt.others.is_empty() && !self.admitted.contains_key(&attempt.row.sequence) {
            fix_time(&mut attempt.row, stamp);
        }
        if has_expired(&attempt.row, stamp) {
            return self.give_up(attempt, Verdict::Lost(LossReason::MessageExpired)).await;
        }
        if let Some(fault) = self.fault(&attempt) {
            return self.refuse(attempt, fault).await;
        }
        if attempt.row.qos == Qos::ExactlyOnce && !self.admit(&attempt).await? {
            return Ok(());
        }
        let key = match self.key().await {
            Ok(key) => key,
            Err(reason) => return self.put_back_lost(attempt, reason),
        };
        let Some(endpoint) = self.endpoint() else { return Ok(()) };
        let path = endpoint.path.as_deref().unwrap_or("/");
        let request = request(&self.http, path, &attempt, key.as_deref());
        self.pacing.spend(self.now(), request.body.len());
        self.uplink.in_flight.store(1, Ordering::Relaxed);
        let answer = self.exchange(&request).await;
        self.uplink.in_flight.store(0, Ordering::Relaxed);
        match answer {
            Err(Failed::Stopped) => {
                self.waiting.put_back(attempt);
                Ok(())
            }
            Err(Failed::Way(reason)) => self.put_back_lost(attempt, reason),
            Ok(answer) => {
                let judgement = judge(&answer, self.clock.now().wall_ms);
                self.judged(attempt, judgement).await
            }
        }
    }

    fn put_back_lost(&mut self, attempt: Attempt, reason: String) -> Result<(), UplinkError> {
        self.uplink.resent.fetch_add(1, Ordering::Relaxed);
        self.waiting.put_back(attempt);
        self.lost(reason);
        Ok(())
    }

    async fn judged(&mut self, attempt: Attempt, judgement: Judgement) -> Result<(), UplinkError> {
        let now = self.now();
        match judgement {
            Judgement::Delivered => {
                self.reached();
                self.is_held = false;
                let (count, again) = attempt.counts();
                if self.settle(&attempt, Verdict::Delivered).await? {
                    self.uplink.delivered.fetch_add(count - again, Ordering::Relaxed);
                    self.uplink.delivered_again.fetch_add(again, Ordering::Relaxed);
                    self.waiting.ended(&attempt.row, true);
                }
                self.uplink.note_drain(self.clock.now());
                Ok(())
            }
            Judgement::Later { after, reason } => {
                self.uplink.throttled.fetch_add(1, Ordering::Relaxed);
                self.waiting.put_back(attempt);
                self.later(reason, after);
                Ok(())
            }
            Judgement::Trouble { reason } => {
                self.say_outage(&reason);
                if attempt.refusals >= TROUBLES_MAX && !attempt.others.is_empty() {
                    return self.halve(attempt).await;
                }
                self.waiting.refuse_now(now, attempt);
                Ok(())
            }
            Judgement::Held { reason } => {
                if !std::mem::replace(&mut self.is_held, true) {
                    let (uplink, topic) = (self.name.as_ref(), &attempt.row.encoding.topic);
                    error!(uplink, topic:%, reason = reason.as_str(); "The server does not take messages as they are sent to it; they wait until it does");
                }
                self.set_state(UplinkState::Waiting, Some(reason));
                self.waiting.hold(now, attempt);
                Ok(())
            }
            Judgement::Refused { reason } => {
                self.reached();
                self.refuse(attempt, reason).await
            }
        }
    }

    /// A batch is halved, a single message becomes a dead letter.
    async fn refuse(&mut self, attempt: Attempt, reason: String) -> Result<(), UplinkError> {
        if !attempt.others.is_empty() {
            return self.halve(attempt).await;
        }
        self.rejected += 1;
        if self.rejected_at.is_none_or(|last| last.elapsed() >= REJECTED_EVERY) {
            self.rejected_at = Some(Instant::now());
            let (uplink, sequence, topic) = (self.name.as_ref(), attempt.row.sequence, &attempt.row.encoding.topic);
            let (count, reason) = (self.rejected, reason.as_str());
            error!(uplink, sequence:%, topic:%, reason, count; "A message was refused for good; it is a dead letter");
        }
        self.give_up(attempt, Verdict::Rejected { reason }).await
    }

    async fn halve(&mut self, attempt: Attempt) -> Result<(), UplinkError> {
        // What is on disk as one batch is two from now on.
        if let Some(packet_id) = self.admitted.remove(&attempt.row.sequence)
            && !self.commit(vec![Change::Forget { packet_id }]).await?
        {
            return Ok(());
        }
        match attempt.halved() {
            (first, Some(second)) => self.waiting.put_back_halves(first, second),
            (whole, None) => self.waiting.put_back(whole),
        }
        Ok(())
    }

    async fn give_up(&mut self, attempt: Attempt, verdict: Verdict) -> Result<(), UplinkError> {
        if self.settle(&attempt, verdict).await? {
            self.waiting.ended(&attempt.row, false);
        }
        Ok(())
    }

    /// Whether it is on disk that these are settled.
    async fn settle(&mut self, attempt: &Attempt, verdict: Verdict) -> Result<bool, UplinkError> {
        let mut changes: Vec<Change> =
            attempt.sequences().map(|sequence| Change::Settle { sequence, verdict: verdict.clone() }).collect();
        let admitted = self.admitted.remove(&attempt.row.sequence);
        changes.extend(admitted.map(|packet_id| Change::Forget { packet_id }));
        let is_done = self.commit(changes).await?;
        if is_done {
            attempt.sequences().for_each(|sequence| {
                self.owned.remove(&sequence);
            });
        }
        Ok(is_done)
    }

    /// Writes down which rows a batch has, so that it stays the same after a restart.
    async fn admit(&mut self, attempt: &Attempt) -> Result<bool, UplinkError> {
        if self.admitted.contains_key(&attempt.row.sequence) {
            return Ok(true);
        }
        let used: HashSet<u16> = self.admitted.values().copied().collect();
        let Some(packet_id) = (1..=u16::MAX).find(|id| !used.contains(id)) else { return Ok(true) };
        let change = Change::Admit {
            packet_id,
            rows: attempt.sequences().collect(),
            order: attempt.row.sequence.0,
            encoding: attempt.row.encoding.clone(),
        };
        let is_done = self.commit(vec![change]).await?;
        if is_done {
            self.admitted.insert(attempt.row.sequence, packet_id);
        }
        Ok(is_done)
    }

    /// False when it failed: then all begins anew with what is on disk.
    async fn commit(&mut self, changes: Vec<Change>) -> Result<bool, UplinkError> {
        match self.outlet.commit(changes).await {
            Ok(()) => Ok(true),
            Err(AppendError::Stopped) => Err(self.queue_stopped()),
            Err(error) => {
                warn!(uplink = self.name.as_ref(), error:% = chain(&error); "The uplink's state was not committed");
                sleep(STORE_AGAIN).await;
                Box::pin(self.begin()).await?;
                Ok(false)
            }
        }
    }

    fn queue_stopped(&self) -> UplinkError {
        UplinkError::QueueStopped { name: self.name.clone() }
    }

    /// Why the server would not take it, whenever it is sent.
    fn fault(&self, attempt: &Attempt) -> Option<String> {
        if self.http.kind != HttpKind::AwsTopics {
            return None;
        }
        let profile = self.config.profile;
        let bytes = super::compose::written(&attempt.row, &attempt.others).0.len();
        match profile.payload_bytes.filter(|max| bytes > *max) {
            Some(max) => Some(format!("the payload has {bytes} bytes, and {} takes {max}", profile.title)),
            None => profile.topic_fault(attempt.row.encoding.topic.as_str()),
        }
    }

    async fn key(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(hmac) = &self.http.hmac else { return Ok(None) };
        let key = first_line("the key of the signature", &hmac.key_file).await.map_err(|error| chain(&error))?;
        Ok(Some(key.to_vec()))
    }

    // --- the connection -------------------------------------------------------------------------------------------

    async fn connected(&mut self) -> Result<(), Failed> {
        if self.line.as_ref().is_some_and(Line::is_open) {
            return Ok(());
        }
        let Some(endpoint) = self.endpoint() else { return Ok(()) };
        let way = Way::new(&self.config, &endpoint);
        let opened = tokio::select! {
            () = self.stop.cancelled() => return Err(Failed::Stopped),
            opened = Line::open(&endpoint, &way, self.clock.now()) => opened,
        };
        self.line = Some(opened.map_err(|error| Failed::Way(chain(&error)))?);
        Ok(())
    }

    /// Sends a request, once more where the connection had been closed behind our back.
    async fn exchange(&mut self, request: &Request) -> Result<verdict::Answer, Failed> {
        let Some(endpoint) = self.endpoint() else { return Err(Failed::Way("there is no address".to_owned())) };
        let now = self.clock.now();
        hour::may_sign(&self.config, now).map_err(|never_set| Failed::Way(chain(&never_set)))?;
        let login = Login::read(&self.config, &endpoint, now).await;
        let login = login.map_err(|error| Failed::Way(chain(&error)))?;
        let login = authorization(self.http.kind, &login);
        loop {
            self.connected().await?;
            let (Some(endpoint), Some(line)) = (self.endpoint(), &mut self.line) else {
                return Err(Failed::Way("there is no address".to_owned()));
            };
            let may_be_stale = line.may_be_stale();
            let exchange = line.exchange(&endpoint, request, login.as_deref(), self.http.timeout);
            let stop = self.stop.clone();
            let stopped = async {
                stop.cancelled().await;
                sleep(STOP_WITHIN).await;
            };
            let answer = tokio::select! {
                answer = exchange => answer,
                () = stopped => return Err(Failed::Stopped),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(ExchangeError::Broken(_)) if may_be_stale => self.line = None,
                Err(error) => {
                    self.line = None;
                    return Err(Failed::Way(chain(&error)));
                }
            }
        }
    }

    fn endpoint(&self) -> Option<Endpoint> {
        self.config.endpoints.get(self.endpoint % self.config.endpoints.len().max(1)).cloned()
    }

    /// The server has answered as one that works.
    fn reached(&mut self) {
        if self.is_outage || self.uplink.state() != UplinkState::Connected {
            self.is_outage = false;
            // From the first answer on, not from the last one: else no outage under load would follow on a good time.
            self.backoff.connected(self.now());
            let server = self.endpoint().map(|endpoint| format!("{}:{}", endpoint.host, endpoint.port));
            info!(uplink = self.name.as_ref(), server = server.unwrap_or_default().as_str(); "The uplink is connected");
            self.set_state(UplinkState::Connected, None);
        }
    }

    /// There was no answer: the next address, after a pause.
    fn lost(&mut self, reason: String) {
        self.endpoint = (self.endpoint + 1) % self.config.endpoints.len().max(1);
        self.later(reason, None);
    }

    /// Nothing is sent for a while.
    fn later(&mut self, reason: String, after: Option<Duration>) {
        let now = self.now();
        let pause = self.backoff.pause(now, chance());
        self.paused_until = now + after.unwrap_or(pause);
        self.is_clock_unset = self.clock.state() == ClockState::Unset;
        self.may_hurry = after.is_none();
        self.say_outage(&reason);
    }

    fn say_outage(&mut self, reason: &str) {
        if std::mem::replace(&mut self.is_outage, true) {
            debug!(uplink = self.name.as_ref(), error = reason; "The uplink still cannot deliver");
        } else {
            warn!(uplink = self.name.as_ref(), error = reason; "The uplink cannot deliver");
        }
        self.set_state(UplinkState::Waiting, Some(reason.to_owned()));
    }

    fn set_state(&self, state: UplinkState, reason: Option<String>) {
        self.uplink.set(state, self.clock.now().wall_ms, reason);
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// How a request says who sends it: user name and password, or a token alone.
fn authorization(kind: HttpKind, login: &Login) -> Option<String> {
    let password = String::from_utf8_lossy(login.password.as_deref()?).into_owned();
    Some(match (&login.username, kind) {
        (Some(user), _) => format!("Basic {}", Base64::encode_string(format!("{user}:{password}").as_bytes())),
        (None, HttpKind::InfluxDb) => format!("Token {password}"),
        (None, HttpKind::Webhook | HttpKind::AwsTopics) => format!("Bearer {password}"),
    })
}
