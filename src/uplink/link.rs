//! Carries the machine's actions to the socket, the store and the intake, and what they say back to the machine.
//!
//! Promises: it decides nothing about the session; only when to connect again, and where. All packets of one turn
//! leave in one write; buffers are bounded by the window and by the longest packet; one outage is one line in the
//! journal, however many attempts it takes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use log::{debug, error, info, warn};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::feed::{Feed, hear_of_takers};
use super::hour;
use super::http;
use super::machine::{self, Action, CloseReason, Event, INBOUND_BYTES_MAX, Machine, Moment, Note, Settings};
use super::proof::Proof;
use super::provision::Claimant;
use super::registration::{Registrar, RegistrationError};
use super::tasks::{Errand, Order, Report, Unaccepted, keep_store, run_errands};
use crate::clock::Clock;
use crate::config::{Endpoint, Protocol, UplinkConfig};
use crate::health::{Health, UplinkHealth, UplinkState, chain};
use crate::intake::{Intake, LiveForward};
use crate::message::{ClockState, Stamp};
use crate::mqtt::{Decoder, Encoder, Packet, ReasonCode};
use crate::queue::{Inlet, Outlet};
use crate::transport::scram::ScramError;
use crate::transport::{self, ConnectError, Login, LoginError, Refusal, Stream, Way};

/// TCP and TLS each must be done within this.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// What is still to be written when a connection is closed may take this.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// At the end, the last commit may take this.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

/// Room for one read.
const READ_BYTES: usize = 64 * 1024;

/// With more than this to write, no live messages are added.
const WRITE_BYTES_MAX: usize = 256 * 1024;

/// Packets that are handed over before what they set free is written. A window of acknowledgements comes at once; were
/// it answered by a window of messages at once, we and the cloud would take turns instead of working side by side.
const PACKETS_AT_ONCE: usize = 128;

/// Reports and live messages of one turn.
const TURN_MAX: usize = 64;

/// How often another token is looked for where there is none.
const TOKEN_LOOK_EVERY: Duration = Duration::from_secs(2);

/// A token is replaced this long before its end, and before a tenth of what is left of it.
const RENEW_BEFORE_MAX: Duration = Duration::from_secs(300);

/// Dead letters are named in the journal at most this often; the count goes on.
const REJECTED_EVERY: Duration = Duration::from_secs(10);

/// A backlog that is too old is told at most this often.
const LATE_EVERY: Duration = Duration::from_secs(3600);

/// An assigned hub that has refused the gateway three times in a row, or could not be spoken to twelve times, may not be its
/// hub any more: then the provisioning service is asked again.
const DOUBTS_MAX: u32 = 12;
const DOUBTS_OF_REFUSAL: u32 = 4;

/// A stamp may be this old: it serves expiry in seconds.
const STAMP_AGE_MAX: Duration = Duration::from_millis(200);

/// Everything an uplink needs.
#[derive(Debug)]
pub struct UplinkSettings {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The gateway's name.
    pub gateway: Arc<str>,
    /// `[uplink.<name>]`
    pub config: UplinkConfig,
    /// The client id, placeholders filled.
    pub client_id: String,
    /// The stream of this name.
    pub outlet: Outlet,
    /// For received QoS 2 ids.
    pub inlet: Inlet,
    /// For what the cloud sends, and for live QoS 0 messages.
    pub intake: Intake,
    /// For stamps and ages.
    pub clock: Clock,
    /// Where states and counters go.
    pub health: Health,
}

/// Why an uplink ended before it was told to. A cloud that is away is not among the reasons.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// Without the queue there is nothing to deliver and nowhere to put commands.
    #[error("the queue has stopped under the uplink {name}")]
    QueueStopped {
        /// The uplink.
        name: Arc<str>,
    },
    /// A task of the uplink is gone.
    #[error("a task of the uplink {name} has failed")]
    Task {
        /// The uplink.
        name: Arc<str>,
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// One uplink.
#[derive(Debug)]
pub struct Uplink {
    settings: UplinkSettings,
}

impl Uplink {
    /// An uplink that does nothing yet.
    pub fn new(settings: UplinkSettings) -> Uplink {
        Uplink { settings }
    }

    /// Delivers until `stop`: then what is in flight may take two seconds, the own status says offline, and the
    /// session stays at the cloud.
    pub async fn run(self, stop: CancellationToken) -> Result<(), UplinkError> {
        if let Some(http) = self.settings.config.http.clone() {
            return http::run(self.settings, http, stop).await;
        }
        let UplinkSettings { name, gateway, mut config, client_id, outlet, inlet, intake, clock, health } =
            self.settings;
        let mut introduced_at = None;
        if config.provision.is_some() {
            let claimant =
                Claimant { name: &name, client_id: &client_id, clock: &clock, health: &health.uplink(&name) };
            introduced_at = claimant.provision(&mut config, &stop).await;
        }
        let (orders, order_inbox) = mpsc::channel(16);
        let (errands, errand_inbox) = mpsc::channel(1024);
        let (report_outbox, reports) = mpsc::channel(1024);
        let lane = intake.live_lane(&name);
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_store(outlet, order_inbox, report_outbox.clone()));
        let (desired, desired_inbox) = watch::channel(None);
        if let Some(twin) = &config.twin {
            let feed = Feed {
                name: name.clone(),
                gateway: gateway.clone(),
                inlet: inlet.clone(),
                intake: intake.clone(),
                clock: clock.clone(),
                health: health.clone(),
                bytes_max: twin.kind().reported_bytes(),
                desired: desired_inbox,
                reports: report_outbox.clone(),
            };
            tasks.spawn(feed.run());
        }
        if config.jobs.is_some() {
            let topic = machine::job_topic(&gateway, &name);
            tasks.spawn(hear_of_takers(topic, intake.clone(), report_outbox.clone()));
        }
        tasks.spawn(run_errands(intake, inlet, errand_inbox, report_outbox));
        let started = Instant::now();
        let mut link = Link {
            machine: Machine::new(Settings::new(name.clone(), gateway, client_id.clone(), &config)),
            line: Line::Idle { until: started },
            backoff: Backoff::new(config.reconnect),
            health: health.uplink(&name),
            stamp: clock.now(),
            stamp_at: started,
            rejected_at: None,
            rejected: 0,
            no_room_at: None,
            complained_at: [None; 3],
            is_taken_over: false,
            endpoint: 0,
            reached: None,
            doubts: 0,
            not_before: Duration::ZERO,
            is_clock_unset: false,
            may_hurry: true,
            tried: 0,
            introduced_at,
            renew_at: None,
            token_ends_ms: [None; 2],
            reading: None,
            was_up: false,
            is_outage: false,
            is_stopping: false,
            is_stopped: false,
            name,
            config,
            client_id,
            clock,
            started,
            orders,
            errands,
            desired,
        };
        link.health.forget_services();
        let result = link.run(&stop, reports, lane, &mut tasks).await;
        link.set_state(UplinkState::Stopped, result.as_ref().err().map(|error| chain(error)));
        // Without the senders the tasks end by themselves, the store's after the commit under way.
        drop(link);
        while let Ok(Some(_ended)) = timeout(SETTLE_WITHIN, tasks.join_next()).await {}
        result
    }
}

type Reading = Pin<Box<dyn Future<Output = Result<Login, LoginError>> + Send>>;
type Connecting = Pin<Box<dyn Future<Output = Result<Reached, AttemptError>> + Send>>;

/// A connection on which nothing was said yet.
struct Reached {
    stream: Stream,
    login: Login,
    /// To whom it goes, and as whom.
    endpoint: Endpoint,
    client_id: String,
}

enum Line {
    Idle { until: Instant },
    Connecting(Connecting),
    Open(Box<Wire>),
}

struct Wire {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
    output: BytesMut,
    is_unflushed: bool,
    /// There may be whole packets in the input.
    has_more: bool,
    /// What the cloud owes before anything else is said to it.
    proof: Proof,
}

#[derive(Debug, Error)]
enum AttemptError {
    #[error(transparent)]
    Login(LoginError),
    #[error(transparent)]
    Connect(ConnectError),
    #[error(transparent)]
    Registration(RegistrationError),
}

/// So many connections that the cloud ended soon after it had accepted them are no chance.
const SHORT_LIVED_TOLD: u32 = 3;
/// What comes with each message, and is said now and then.
#[derive(Debug, Clone, Copy)]
enum Complaint {
    Answer,
    Loop,
    Late,
}

/// Why a connection ended that was not closed from here.
#[derive(Debug, Error)]
enum LostError {
    #[error("the cloud closed the connection")]
    Closed,
    #[error("the cloud closed the connection before it answered CONNECT")]
    Unanswered,
    #[error(
        "the cloud closed the connection before it answered CONNECT; if this is its port for TLS, write mqtts:// in `url`"
    )]
    UnansweredPlain,
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    #[error("TLS ended: {0}")]
    Refused(Refusal),
}

enum LineEvent {
    Due,
    Connected(Result<Box<Reached>, AttemptError>),
    Read,
    Written,
    /// What the cloud has asked before CONNACK.
    Answered(Result<Box<Packet>, ScramError>),
    Lost(io::Error),
    Closed,
}

impl Line {
    /// What happens next on the line. Cancel safe: nothing that was read or written is forgotten.
    async fn event(&mut self, may_open: bool, may_read: bool) -> LineEvent {
        match self {
            Line::Idle { until } if may_open => {
                sleep_until(*until).await;
                LineEvent::Due
            }
            Line::Idle { .. } => std::future::pending().await,
            Line::Connecting(attempt) => LineEvent::Connected(attempt.as_mut().await.map(Box::new)),
            Line::Open(wire) => wire.event(may_read).await,
        }
    }
}

impl Wire {
    async fn event(&mut self, may_read: bool) -> LineEvent {
        // What has come is looked at first: nothing is heaped up while a write does not move.
        let may_read = may_read && !self.has_more;
        let Wire { reader, writer, input, output, is_unflushed, proof, .. } = self;
        input.reserve(READ_BYTES);
        let has_output = !output.is_empty();
        let write = async {
            if has_output { writer.write_buf(output).await.map(|_| true) } else { writer.flush().await.map(|()| false) }
        };
        tokio::select! {
            // What is written first: it frees the window of the other side; but reading is polled in every turn.
            written = write, if has_output || *is_unflushed => match written {
                Ok(wrote) => {
                    *is_unflushed = wrote;
                    LineEvent::Written
                }
                Err(error) => LineEvent::Lost(error),
            },
            read = reader.read_buf(input), if may_read => match read {
                Ok(0) => LineEvent::Closed,
                Ok(_) => LineEvent::Read,
                Err(error) => LineEvent::Lost(error),
            },
            answer = proof.answer() => LineEvent::Answered(answer.map(Box::new)),
        }
    }
}

struct Link {
    name: Arc<str>,
    config: UplinkConfig,
    client_id: String,
    clock: Clock,
    health: Arc<UplinkHealth>,
    machine: Machine,
    line: Line,
    backoff: Backoff,
    orders: mpsc::Sender<Order>,
    errands: mpsc::Sender<Errand>,
    desired: watch::Sender<Option<Bytes>>,
    started: Instant,
    stamp: Stamp,
    stamp_at: Instant,
    /// Index of the endpoint to try.
    endpoint: usize,
    /// Where the last connection went to.
    reached: Option<Endpoint>,
    /// How much speaks against the hub that the gateway was given to.
    doubts: u32,
    /// The cloud does not want another attempt sooner.
    not_before: Duration,
    /// Nobody had vouched for the time when the last attempt was made.
    is_clock_unset: bool,
    /// The pause is one of this side, and may end when the time is known.
    may_hurry: bool,
    /// Endpoints tried since the last pause.
    tried: usize,
    /// When this connection's token is to be replaced.
    renew_at: Option<Instant>,
    /// When it ends, in milliseconds since 1970; and when the one does that was shown after it.
    token_ends_ms: [Option<i64>; 2],
    /// Another one that is being read, for the connection that there is.
    reading: Option<Reading>,
    /// When CONNECT was sent last.
    introduced_at: Option<Instant>,
    /// The session was set up on this connection.
    was_up: bool,
    /// The outage has been logged.
    is_outage: bool,
    is_stopping: bool,
    is_stopped: bool,
    rejected_at: Option<Instant>,
    rejected: u64,
    no_room_at: Option<Instant>,
    complained_at: [Option<Instant>; 3],
    /// The connection that just ended was closed as if another client had come.
    is_taken_over: bool,
}

impl Link {
    async fn run(
        &mut self,
        stop: &CancellationToken,
        mut reports: mpsc::Receiver<Report>,
        mut lane: Option<mpsc::Receiver<LiveForward>>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), UplinkError> {
        self.set_state(UplinkState::Connecting, None);
        let mut settle_by = None;
        loop {
            if self.renew_at.is_some_and(|renew_at| renew_at <= Instant::now()) {
                self.renew_at = None;
                self.renew();
            }
            if self.is_clock_unset && self.clock.state() != ClockState::Unset {
                self.is_clock_unset = false;
                self.time_is_known();
            }
            self.turn().await;
            if self.is_stopping && !matches!(self.line, Line::Open(_)) {
                self.is_stopped = true;
            }
            if self.is_stopped {
                let by = *settle_by.get_or_insert(Instant::now() + SETTLE_WITHIN);
                if self.machine.is_quiet() || Instant::now() >= by {
                    return Ok(());
                }
            }
            let at = self.at();
            // Before the deadline, which depends on whether the pace held something back.
            let may_live = self.machine.wants_live(at) && self.output_bytes() < WRITE_BYTES_MAX;
            let deadline = self.machine.deadline(at.now).map_or_else(far, |at| self.started + at);
            let deadline = self.renew_at.map_or(deadline, |renew_at| renew_at.min(deadline));
            let deadline = settle_by.unwrap_or(deadline);
            let may_open = self.machine.can_open() && !self.is_stopping;
            let may_read = self.machine.wants_packets();
            let event = tokio::select! {
                () = stop.cancelled(), if !self.is_stopping => {
                    self.is_stopping = true;
                    if !matches!(self.line, Line::Open(_)) {
                        self.line = Line::Idle { until: far() };
                    }
                    self.machine.handle(at, Event::Stop);
                    continue;
                }
                Some(report) = reports.recv() => {
                    self.report(report)?;
                    for _ in 0..TURN_MAX {
                        let Ok(report) = reports.try_recv() else { break };
                        self.report(report)?;
                    }
                    continue;
                }
                Some(live) = receive(&mut lane), if may_live => {
                    self.live(live, &mut lane);
                    continue;
                }
                Some(ended) = tasks.join_next() => {
                    return Err(match ended {
                        Ok(()) => UplinkError::QueueStopped { name: self.name.clone() },
                        Err(source) => UplinkError::Task { name: self.name.clone(), source },
                    });
                }
                () = sleep_until(deadline) => continue,
                () = self.clock.wait_until_known(), if self.is_clock_unset => continue,
                read = read(&mut self.reading) => {
                    self.reading = None;
                    self.reauthenticate(read);
                    continue;
                }
                event = self.line.event(may_open, may_read) => event,
            };
            self.line_event(event);
        }
    }

    /// What the gateway logged in with ends soon. Where the cloud takes another token on the connection that there is, it gets
    /// one; else it gets another connection.
    fn renew(&mut self) {
        let at = self.at();
        if self.config.auth_method.is_none() {
            return self.machine.handle(at, Event::Renew);
        }
        let Some(endpoint) = self.endpoint().cloned() else { return };
        let (config, now) = (self.config.clone(), self.clock.now());
        self.reading = Some(Box::pin(async move { Login::read(&config, &endpoint, now).await }));
    }

    fn reauthenticate(&mut self, read: Result<Login, LoginError>) {
        if !matches!(self.line, Line::Open(_)) {
            return;
        }
        let at = self.at();
        let [ends_ms, next_ends_ms] = &mut self.token_ends_ms;
        match read {
            Ok(Login { auth: Some((method, data)), expires_ms, .. }) if expires_ms > *ends_ms => {
                *next_ends_ms = expires_ms;
                return self.machine.handle(at, Event::Reauthenticate { method, data });
            }
            Ok(_) => debug!(uplink = self.name.as_ref(); "There is no other token yet"),
            Err(error) => debug!(uplink = self.name.as_ref(), error:% = error; "There is no other token"),
        }
        // Whoever renews it may be late. When it has ended the cloud says so, and the next attempt reads it again.
        self.machine.handle(at, Event::TokenEnds);
        self.renew_at = Some(Instant::now() + TOKEN_LOOK_EVERY);
    }

    fn at(&mut self) -> Moment {
        let now = Instant::now();
        if now - self.stamp_at > STAMP_AGE_MAX {
            self.stamp = self.clock.now();
            self.stamp_at = now;
        }
        Moment { now: now - self.started, stamp: self.stamp }
    }

    fn output_bytes(&self) -> usize {
        match &self.line {
            Line::Open(wire) => wire.output.len(),
            _ => 0,
        }
    }

    /// Hands what has arrived to the machine and carries out what it wants, until neither has anything left.
    async fn turn(&mut self) {
        loop {
            let at = self.at();
            let had_input = self.decode(at);
            self.machine.turn(at);
            let actions = self.machine.take_actions();
            if actions.is_empty() && !had_input {
                break;
            }
            for action in actions {
                match action {
                    // Nearly all are of this kind, and need no future.
                    Action::Send(packet) => self.send(at, &packet),
                    other => self.act(at, other).await,
                }
            }
            if matches!(&self.line, Line::Open(wire) if wire.has_more && !wire.output.is_empty()) {
                break;
            }
        }
        self.count();
    }

    /// Whether any packet was handed over.
    fn decode(&mut self, at: Moment) -> bool {
        let Line::Open(wire) = &mut self.line else { return false };
        let mut any = false;
        wire.has_more = false;
        for count in 0.. {
            if !self.machine.wants_packets() {
                break;
            }
            if count == PACKETS_AT_ONCE {
                wire.has_more = true;
                break;
            }
            match wire.decoder.decode(&mut wire.input) {
                Ok(Some(packet)) => {
                    any = true;
                    let packet = match wire.proof.hear(packet) {
                        Ok(Some(packet)) => packet,
                        Ok(None) => {
                            self.machine.handle(at, Event::Asked);
                            continue;
                        }
                        Err(error) => {
                            self.unproved(at, &error);
                            return true;
                        }
                    };
                    let is_connack = matches!(packet, Packet::Connack(_));
                    self.machine.handle(at, Event::Packet(packet));
                    if is_connack {
                        wire.encoder.set_packet_bytes_max(self.machine.packet_bytes_max());
                    }
                }
                Ok(None) => break,
                Err(fault) => {
                    // A cloud that answers each CONNECT so is one outage.
                    if !self.is_outage {
                        warn!(uplink = self.name.as_ref(), error:% = fault; "The cloud sent what is no packet");
                    }
                    let reason = chain(&fault);
                    self.machine.handle(at, Event::Lost { by_peer: false });
                    self.lost(reason, None);
                    return true;
                }
            }
        }
        any
    }

    fn send(&mut self, at: Moment, packet: &Packet) {
        let Line::Open(wire) = &mut self.line else { return };
        if let Err(error) = wire.encoder.encode(packet, &mut wire.output) {
            debug!(uplink = self.name.as_ref(), error:% = error; "A packet cannot be written");
            if let Packet::Publish(publish) = packet
                && let Some(packet_id) = publish.packet_id
            {
                self.machine.handle(at, Event::Unsendable { packet_id, reason: chain(&error) });
            }
        }
    }

    async fn act(&mut self, at: Moment, action: Action) {
        match action {
            Action::Send(packet) => self.send(at, &packet),
            Action::Commit(changes) => self.order(at, Order::Commit(changes)),
            Action::Restore => self.order(at, Order::Restore),
            Action::Live(is_live) => self.order(at, Order::Live(is_live)),
            Action::Fetch { round, wanted } => self.order(at, Order::Fetch { round, wanted }),
            Action::FetchLive { begins, wanted } => self.order(at, Order::FetchLive { begins, wanted }),
            Action::Submit { receipt, message, once } => {
                let errand = Errand::Submit { receipt, message, once };
                if self.errands.try_send(errand).is_err() {
                    let reason = "the intake is behind".to_owned();
                    self.machine.handle(at, Event::Refused { receipt, reason, is_full: false });
                }
            }
            Action::Release { receipt, once } => {
                if self.errands.try_send(Errand::Release { receipt, once }).is_err() {
                    let reason = "the queue is behind".to_owned();
                    self.machine.handle(at, Event::Refused { receipt, reason, is_full: false });
                }
            }
            Action::Desired(desired) => drop(self.desired.send_replace(Some(desired))),
            Action::Close(reason) => self.close(reason).await,
            Action::Note(note) => self.note(note),
        }
    }

    /// The machine has one order of each kind under way at most, so there is always room for one. But a store that does
    /// not answer may see many connections come and go: that one of them is not told costs the flash a write.
    fn order(&mut self, at: Moment, order: Order) {
        let is_commit = matches!(order, Order::Commit(_));
        if self.orders.try_send(order).is_err() && is_commit {
            self.machine.handle(at, Event::CommitFailed);
        }
    }

    fn report(&mut self, report: Report) -> Result<(), UplinkError> {
        let at = self.at();
        let event = match report {
            Report::Committed(Ok(())) => Event::Committed,
            Report::Committed(Err(error)) => {
                warn!(uplink = self.name.as_ref(), error:% = error; "The uplink's state was not committed");
                Event::CommitFailed
            }
            Report::Restored(restored) => Event::Restored(restored),
            Report::Rows(round, rows) => Event::Rows { round, rows },
            Report::LiveRows(rows) => Event::LiveRows(rows),
            Report::Submitted(receipt, Ok(())) => Event::Accepted(receipt),
            Report::Released(receipt, Ok(was_known)) => Event::Released { receipt, was_known },
            Report::Submitted(receipt, Err(Unaccepted { reason, is_full })) => {
                Event::Refused { receipt, reason, is_full }
            }
            Report::Released(receipt, Err(Unaccepted { reason, .. })) => {
                Event::Refused { receipt, reason, is_full: false }
            }
            Report::Reported(wanted) => Event::Reported(wanted),
            Report::JobsHeard(is_heard) => Event::JobsHeard(is_heard),
            Report::QueueStopped => return Err(UplinkError::QueueStopped { name: self.name.clone() }),
        };
        self.machine.handle(at, event);
        Ok(())
    }

    fn live(&mut self, first: LiveForward, lane: &mut Option<mpsc::Receiver<LiveForward>>) {
        let at = self.at();
        self.machine.handle(at, Event::Live(first));
        for _ in 0..TURN_MAX {
            if !self.machine.wants_live(at) {
                break;
            }
            let Some(Ok(live)) = lane.as_mut().map(mpsc::Receiver::try_recv) else { break };
            self.machine.handle(at, Event::Live(live));
        }
    }

    fn line_event(&mut self, event: LineEvent) {
        let at = self.at();
        match event {
            LineEvent::Due => self.connect(),
            LineEvent::Connected(Ok(reached)) => self.connected(*reached),
            LineEvent::Connected(Err(error)) => {
                let mut reason = chain(&error);
                if let AttemptError::Registration(error) = &error {
                    self.not_before = error.not_before();
                    reason += self.doubt();
                }
                self.lost(reason, None);
            }
            LineEvent::Read => self.machine.heard(at),
            LineEvent::Written => {}
            LineEvent::Answered(Ok(packet)) => {
                self.machine.handle(at, Event::Answered);
                self.send(at, &packet);
            }
            LineEvent::Answered(Err(error)) => self.unproved(at, &error),
            LineEvent::Closed => {
                let reason = self.closed();
                self.looks_taken_over(at);
                self.machine.handle(at, Event::Lost { by_peer: true });
                self.lost(chain(&reason), None);
            }
            LineEvent::Lost(error) => {
                let by_peer = matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
                );
                let closed = self.closed();
                if by_peer {
                    self.looks_taken_over(at);
                }
                self.machine.handle(at, Event::Lost { by_peer });
                let reason = match transport::late_refusal(&error, self.clock.state()) {
                    Some(refusal) => LostError::Refused(refusal),
                    None if by_peer => closed,
                    None => LostError::Broken(error),
                };
                self.lost(chain(&reason), None);
            }
        }
    }

    /// The cloud may be another than the one that is meant: it hears nothing more, not even a farewell.
    fn unproved(&mut self, at: Moment, error: &ScramError) {
        self.machine.handle(at, Event::Lost { by_peer: false });
        self.lost(chain(error), None);
    }

    /// How to tell that the cloud has closed the connection, before the machine hears of it.
    fn closed(&self) -> LostError {
        match self.endpoint() {
            Some(endpoint) if self.machine.is_opening() && !endpoint.tls => LostError::UnansweredPlain,
            _ if self.machine.is_opening() => LostError::Unanswered,
            _ => LostError::Closed,
        }
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        self.config.endpoints.get(self.endpoint % self.config.endpoints.len().max(1))
    }

    fn connect(&mut self) {
        let Some(endpoint) = self.endpoint().cloned() else { return };
        // Some clouds count the connections of a client id, whatever the reason for another one.
        let may_at = self.introduced_at.map(|at| at + self.config.profile.connect_every);
        if let Some(until) = may_at.filter(|until| *until > Instant::now()) {
            self.line = Line::Idle { until };
            return;
        }
        let now = self.clock.now();
        self.is_clock_unset = now.clock == ClockState::Unset;
        if let Err(never_set) = hour::may_sign(&self.config, now) {
            return self.wait_for_time(chain(&never_set));
        }
        if !self.is_outage {
            self.set_state(UplinkState::Connecting, None);
        }
        self.tried += 1;
        let mut config = self.config.clone();
        let is_doubted = self.doubts >= DOUBTS_MAX;
        if is_doubted {
            self.doubts = 0;
        }
        let name = self.name.clone();
        self.line = Line::Connecting(Box::pin(async move {
            let mut endpoint = endpoint;
            if let Some(dps) = config.dps.clone() {
                let registrar = Registrar { name, config: config.clone(), service: endpoint, now, is_doubted };
                let assigned = registrar.assigned(&dps).await;
                (endpoint, config.client_id) = assigned.map_err(AttemptError::Registration)?;
            }
            let way = Way::new(&config, &endpoint);
            // First, because it may be slow and a broker does not wait for CONNECT.
            let login = Login::read(&config, &endpoint, now).await.map_err(AttemptError::Login)?;
            let stream = transport::connect_by(&endpoint, &way, now, CONNECT_WITHIN).await;
            let stream = stream.map_err(AttemptError::Connect)?;
            Ok(Reached { stream, login, endpoint, client_id: config.client_id })
        }));
    }

    /// What would be said to the cloud now is wrong.
    fn wait_for_time(&mut self, reason: String) {
        self.line = Line::Idle { until: Instant::now() + hour::LOOK_EVERY };
        if !std::mem::replace(&mut self.is_outage, true) {
            warn!(uplink = self.name.as_ref(), error = reason.as_str(); "The uplink cannot connect");
        }
        self.set_state(UplinkState::Waiting, Some(reason));
    }

    /// What was judged by the wrong time is judged anew.
    fn time_is_known(&mut self) {
        match &mut self.line {
            Line::Idle { until } if self.may_hurry => {
                *until = Instant::now();
                // What keeps the cloud away from now on is something else.
                self.is_outage = false;
            }
            Line::Open(_) => {
                let [ends_ms, _] = self.token_ends_ms;
                let wall_ms = self.clock.now().wall_ms;
                self.renew_at = ends_ms.map(|ends_ms| renewal(wall_ms, ends_ms).unwrap_or_else(Instant::now));
            }
            Line::Idle { .. } | Line::Connecting(_) => {}
        }
    }

    /// What is to be added where a cloud refuses the gateway.
    fn doubt(&self) -> &'static str {
        hour::doubt(&self.config, self.clock.state())
    }

    fn connected(&mut self, reached: Reached) {
        let at = self.at();
        let Reached { stream, login, endpoint, client_id } = reached;
        if self.config.dps.is_some() {
            // As which device, the provisioning service says.
            self.machine.set_client_id(&client_id);
            self.client_id = client_id;
        }
        let key = session_key(&endpoint, &self.client_id, self.config.username.as_deref());
        self.reached = Some(endpoint);
        self.reading = None;
        self.token_ends_ms = [login.expires_ms, None];
        self.renew_at = login.expires_ms.and_then(|expires_ms| renewal(self.clock.now().wall_ms, expires_ms));
        let mut connect = self.machine.open(at, key, login.password);
        let proof = Proof::new(login.scram, self.config.auth_method.as_deref());
        if let Packet::Connect(connect) = &mut connect {
            connect.username = login.username;
            (connect.auth_method, connect.auth_data) = login.auth.unzip();
        }
        let (reader, writer) = tokio::io::split(stream);
        let version = match &connect {
            Packet::Connect(connect) => connect.version,
            _ => return,
        };
        let mut wire = Box::new(Wire {
            reader,
            writer,
            decoder: Decoder::from_server(version, INBOUND_BYTES_MAX as usize),
            encoder: Encoder::new(version),
            input: BytesMut::new(),
            output: BytesMut::new(),
            is_unflushed: false,
            has_more: false,
            proof,
        });
        match wire.encoder.encode(&connect, &mut wire.output) {
            Ok(()) => {
                self.introduced_at = Some(Instant::now());
                self.line = Line::Open(wire);
            }
            Err(error) => {
                self.machine.handle(at, Event::Lost { by_peer: false });
                self.lost(chain(&error), None);
            }
        }
    }

    /// Closes from this side: what is to be written is written, within a bound.
    async fn close(&mut self, reason: CloseReason) {
        if let Line::Open(wire) = &mut self.line {
            let farewell = async {
                wire.writer.write_all_buf(&mut wire.output).await?;
                wire.writer.shutdown().await
            };
            match timeout(CLOSE_WITHIN, farewell).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(uplink = self.name.as_ref(), error:% = error; "The farewell was not written"),
                Err(_elapsed) => debug!(uplink = self.name.as_ref(); "The farewell took too long"),
            }
        }
        let at = self.at();
        self.machine.handle(at, Event::Lost { by_peer: false });
        match reason {
            CloseReason::Stopped => {
                self.line = Line::Idle { until: far() };
                self.is_stopped = true;
            }
            CloseReason::Afresh | CloseReason::Renewed => {
                self.line = Line::Idle { until: Instant::now() };
            }
            other => self.lost(chain(&other), Some(other)),
        }
    }

    /// The cloud has closed the connection. In version 5 it says when another client has come under our id; in 3.1.1 that can
    /// only be guessed, where no message was under way that it could take offence at.
    fn looks_taken_over(&mut self, at: Moment) {
        let is_idle = self.machine.is_up() && self.machine.in_flight() == 0;
        self.is_taken_over = self.config.protocol == Protocol::V311 && is_idle && self.backoff.closed_idle(at.now);
    }

    /// Plans the next attempt after a failure or a loss, and says so once an outage.
    fn lost(&mut self, mut reason: String, closed: Option<CloseReason>) {
        let at = self.at();
        let code = match closed {
            Some(CloseReason::Disconnected { reason, .. } | CloseReason::Refused { reason, .. }) => Some(reason),
            _ => None,
        };
        let must_move = matches!(code, Some(ReasonCode::USE_ANOTHER_SERVER | ReasonCode::SERVER_MOVED));
        // A server that had accepted us is tried again first: it has the session.
        if !self.was_up || must_move {
            self.endpoint = (self.endpoint + 1) % self.config.endpoints.len().max(1);
        }
        let mut pause = if self.tried < self.config.endpoints.len() && !self.was_up {
            Duration::ZERO
        } else {
            self.tried = 0;
            self.backoff.pause(at.now, chance())
        };
        self.may_hurry = self.not_before.is_zero();
        pause = pause.max(std::mem::take(&mut self.not_before));
        if let Some(ReasonCode::NOT_AUTHORIZED | ReasonCode::BAD_USER_NAME_OR_PASSWORD) = code {
            reason += self.doubt();
        }
        if !self.was_up {
            self.doubts += match code {
                Some(
                    ReasonCode::NOT_AUTHORIZED
                    | ReasonCode::BAD_USER_NAME_OR_PASSWORD
                    | ReasonCode::CLIENT_IDENTIFIER_NOT_VALID,
                ) => DOUBTS_OF_REFUSAL,
                _ => 1,
            };
        }
        let is_guess = std::mem::take(&mut self.is_taken_over);
        if is_guess || code == Some(ReasonCode::SESSION_TAKEN_OVER) {
            self.may_hurry = false;
            pause = pause.max(self.backoff.taken_over(at.now));
            let (uplink, client_id, pause_s) = (self.name.as_ref(), self.client_id.as_str(), pause.as_secs());
            match is_guess {
                true => {
                    error!(uplink, client_id, pause_s; "The cloud closes one idle connection after the other; does another client log in with this client id?")
                }
                false => {
                    error!(uplink, client_id, pause_s; "Another client logs in with this client id; each throws the other out")
                }
            }
        }
        // Mosquitto 2.0 throws the older of two out without a word.
        let again = self.backoff.short_lived();
        if self.was_up && code.is_none() && again >= SHORT_LIVED_TOLD {
            reason += &format!(
                ", {again} times now soon after it had let the gateway in: another client with the client id {:?} may be there, or a \
                 message that the cloud does not take",
                self.client_id
            );
        }
        self.line = Line::Idle { until: Instant::now() + pause };
        if !self.is_outage {
            self.is_outage = true;
            if self.was_up {
                warn!(uplink = self.name.as_ref(), error = reason.as_str(); "The uplink was lost");
            } else {
                warn!(uplink = self.name.as_ref(), error = reason.as_str(); "The uplink cannot connect");
            }
        } else {
            debug!(uplink = self.name.as_ref(), error = reason.as_str(); "The uplink still cannot connect");
        }
        self.was_up = false;
        self.set_state(UplinkState::Waiting, Some(reason));
    }

    fn note(&mut self, note: Note) {
        let name = self.name.clone();
        let uplink = name.as_ref();
        match note {
            Note::Connected { session_present } => {
                let at = self.at();
                self.backoff.connected(at.now);
                self.was_up = true;
                self.is_outage = false;
                self.tried = 0;
                self.doubts = 0;
                self.set_state(UplinkState::Connected, None);
                let server = self.reached.as_ref().map(|endpoint| format!("{}:{}", endpoint.host, endpoint.port));
                info!(uplink, server = server.unwrap_or_default().as_str(), session_present; "The uplink is connected");
            }
            Note::Reauthenticated => {
                let [ends_ms, next_ends_ms] = &mut self.token_ends_ms;
                *ends_ms = next_ends_ms.take();
                self.renew_at = ends_ms.and_then(|ends_ms| renewal(self.clock.now().wall_ms, ends_ms));
                debug!(uplink; "The cloud has taken the next token");
            }
            Note::SessionLost { in_flight } => {
                warn!(uplink, in_flight; "The cloud has not kept the session; what was in flight is sent again");
            }
            Note::Held { topic } => {
                error!(uplink, topic:%; "The cloud does not allow this topic; its messages wait until it does");
            }
            Note::Rejected { sequence, topic, reason } => {
                self.rejected += 1;
                let now = Instant::now();
                if self.rejected_at.is_none_or(|last| now - last >= REJECTED_EVERY) {
                    self.rejected_at = Some(now);
                    let (count, reason) = (self.rejected, reason.as_str());
                    error!(uplink, sequence:%, topic:%, reason, count; "A message was refused for good; it is a dead letter");
                }
            }
            Note::Accused { sequence, topic } => {
                error!(uplink, sequence:%, topic:%; "The cloud closes the connection on a message; it waits until others have been taken");
            }
            Note::NoRoom => {
                let now = Instant::now();
                if self.no_room_at.is_none_or(|last| now - last >= REJECTED_EVERY) {
                    self.no_room_at = Some(now);
                    let count = self.machine.counts().refused;
                    error!(uplink, count; "The store has no room for what the cloud sends");
                }
            }
            Note::Uncertain { sequence, topic } => {
                warn!(uplink, sequence:%, topic:%; "The cloud did not know a message it had taken; it counts as delivered");
            }
            Note::Throttled { messages } => {
                warn!(uplink, messages; "The cloud takes less than it is sent; what it threw away goes again, slower");
            }
            Note::OwnTopicOff => {
                error!(uplink; "The cloud does not allow the own topic; status messages are off, and tried again in an hour at the earliest");
            }
            Note::AnswerNotAllowed { topic } => {
                let help = "allow it with `answers` in [[uplink.<name>.receive]]";
                if self.is_due(Complaint::Answer) {
                    warn!(uplink, topic:%, help; "A command asks for an answer where none may go; it is carried out without");
                }
            }
            Note::Late { age_ms } => {
                if self.is_due(Complaint::Late) {
                    let (age_days, what) = (age_ms / 86_400_000, self.config.profile.late.map_or("", |late| late.what));
                    warn!(uplink, age_days, what; "What is delivered now is older than some of the cloud's services take");
                }
            }
            Note::Loop { topic } => {
                if self.is_due(Complaint::Loop) {
                    let count = self.machine.counts().loops;
                    error!(uplink, topic:%, count; "Messages go in a circle over another cloud; what comes back is not taken in");
                }
            }
            Note::Service { service, reason } => {
                let reason = reason.as_str();
                error!(uplink, service, reason; "The cloud does not do what one of its services was asked");
            }
            Note::SubscriptionRefused { filter } => {
                let filter = filter.unwrap_or_else(|| "all".to_owned());
                error!(uplink, filter = filter.as_str(); "The cloud does not allow a subscription; it is tried again later");
            }
        }
    }

    /// Whether this may be complained about again.
    fn is_due(&mut self, complaint: Complaint) -> bool {
        let now = Instant::now();
        let [answer, around, late] = &mut self.complained_at;
        let last = match complaint {
            Complaint::Answer => answer,
            Complaint::Loop => around,
            Complaint::Late => late,
        };
        let pause = if matches!(complaint, Complaint::Late) { LATE_EVERY } else { REJECTED_EVERY };
        let is_due = last.is_none_or(|last| now - last >= pause);
        if is_due {
            *last = Some(now);
        }
        is_due
    }

    fn set_state(&mut self, state: UplinkState, reason: Option<String>) {
        let stamp = self.clock.now();
        self.health.set(state, stamp.wall_ms, reason);
    }

    fn count(&mut self) {
        let counts = self.machine.counts();
        let health = &self.health;
        health.in_flight.store(u64::try_from(self.machine.in_flight()).unwrap_or(0), Ordering::Relaxed);
        health.delivered.store(counts.delivered, Ordering::Relaxed);
        health.delivered_again.store(counts.delivered_again, Ordering::Relaxed);
        health.resent.store(counts.resent, Ordering::Relaxed);
        health.throttled.store(counts.throttled, Ordering::Relaxed);
        health.downgraded.store(counts.downgraded, Ordering::Relaxed);
        health.sessions_lost.store(counts.sessions_lost, Ordering::Relaxed);
        health.received.store(counts.received, Ordering::Relaxed);
        health.unmatched.store(counts.unmatched, Ordering::Relaxed);
        health.loops.store(counts.loops, Ordering::Relaxed);
        health.strays.store(counts.strays, Ordering::Relaxed);
        health.refused.store(counts.refused, Ordering::Relaxed);
        health.live_dropped.store(counts.live_dropped, Ordering::Relaxed);
        health.uncertain.store(counts.uncertain, Ordering::Relaxed);
        health.note_drain(self.stamp);
        health.set_services(self.machine.services());
    }
}

async fn read(reading: &mut Option<Reading>) -> Result<Login, LoginError> {
    match reading {
        Some(reading) => reading.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn receive(lane: &mut Option<mpsc::Receiver<LiveForward>>) -> Option<LiveForward> {
    match lane {
        Some(lane) => lane.recv().await,
        None => std::future::pending().await,
    }
}

/// When to come back with a new token; `None` = it has ended already, which the cloud may say.
fn renewal(wall_ms: i64, expires_ms: i64) -> Option<Instant> {
    let left = u64::try_from(expires_ms.saturating_sub(wall_ms)).ok().filter(|left| *left > 0)?;
    let left = Duration::from_millis(left);
    Instant::now().checked_add(left - RENEW_BEFORE_MAX.min(left / 10))
}

/// Names a session of a cloud: FNV-1a (64 bits), because it is kept on disk and must not change with a library.
fn session_key(endpoint: &Endpoint, client_id: &str, username: Option<&str>) -> u64 {
    let port = endpoint.port.to_string();
    let parts = [endpoint.host.as_str(), &port, client_id, username.unwrap_or_default()];
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// A number from the system's generator; without one, the longest pause.
pub(super) fn chance() -> u32 {
    let mut bytes = [0; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u32::from_le_bytes(bytes),
        Err(_none) => u32::MAX,
    }
}

/// Later than anything that is waited for.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}
