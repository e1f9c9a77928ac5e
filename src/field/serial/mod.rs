//! Serial devices with a protocol of their own: one task for each port.
//!
//! Promises: a value is told only from a whole frame that fits; what fits nothing is counted by its kind and shows as a
//! degraded device; a device that is asked and does not answer in time is told as quality bad; a port that is pulled out
//! is opened again within two seconds of its return. Never sends anything but the configured question, and the commands that
//! the clerk of writes has given to the port (`write`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::{info, warn};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_serial::SerialStream;
use tokio_util::sync::CancellationToken;

use crate::config::{Ask, Parse, SerialConfig};
use crate::health::{DeviceState, chain};
use crate::message::Quality;

use super::device::{Desk, Device, DeviceSpec, Seen};
use super::pause::Pauses;
use super::port;
use super::record::Recorder;
use super::writes::{LineEnd, LineWrites};

use frame::{Cut, Framer};
use parse::{Parsed, Reader};

pub mod checksum;
pub(super) mod command;
pub mod frame;
pub mod parse;
pub mod watch;
mod write;

/// Pauses between attempts to open a port.
const REOPEN: Pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(30));
/// A port that was silent this long after it was opened was not opened in the middle of a frame.
const JOIN_SILENCE: Duration = Duration::from_millis(200);
/// Silence that ends what a device was still saying before it is asked anew.
const ASK_SILENCE: Duration = Duration::from_millis(20);
/// A device that never falls silent is asked all the same after this long.
const ASK_SILENCE_LIMIT: Duration = Duration::from_secs(1);
/// A device stays degraded this long after a frame that fits nothing, so that its state does not flap with every line.
const UNFIT_SHOWN: Duration = Duration::from_secs(60);
/// Unanswered questions in a row that make a device dead.
const DEAD_AFTER: u32 = 2;
/// Points that JSON frames may name by themselves.
const NAMED_POINTS_MAX: usize = 256;
/// Bytes taken from the port at once.
const READ_BYTES: usize = 1024;

/// A port as configured, with its device.
#[derive(Debug, Clone)]
pub(super) struct PortSpec {
    pub(super) device: DeviceSpec,
    pub(super) config: SerialConfig,
    /// Where commands come from, if it has any.
    pub(super) writes: Option<LineEnd>,
    /// Takes down what goes over the port.
    pub(super) recorder: Option<Recorder>,
}

impl PortSpec {
    /// Whether this is the port that `other` is, to the last key.
    pub(super) fn is_same(&self, other: &PortSpec) -> bool {
        self.device.name == other.device.name && format!("{:?}", self.config) == format!("{:?}", other.config)
    }
}

/// The points of a device for which none are written: the named groups or columns; those of JSON are met later.
pub(super) fn named_points(parse: &Parse) -> Vec<&str> {
    match parse {
        Parse::Regex(regex) => regex.capture_names().flatten().collect(),
        Parse::Csv { columns, .. } => columns.iter().map(String::as_str).filter(|name| !name.is_empty()).collect(),
        Parse::Fixed(fields) => fields.iter().map(|(name, ..)| name.as_str()).collect(),
        Parse::Nmea(sentences) => {
            let names: BTreeSet<&str> = sentences.values().flatten().map(String::as_str).collect();
            names.into_iter().filter(|name| !name.is_empty()).collect()
        }
        Parse::Json | Parse::Bytes { .. } | Parse::Nothing => Vec::new(),
    }
}

/// Reads the port until it is dropped, or until `leave`: then it ends between two exchanges, as soon as no command is under
/// way.
pub(super) async fn run(spec: PortSpec, desk: Desk, leave: CancellationToken) {
    Port::new(spec, desk, leave).run().await;
}

struct Port {
    config: SerialConfig,
    reader: Reader,
    ear: Ear,
    writes: LineWrites,
    /// After a command that was not answered: from when on the next one may be sent.
    commands_rest: Duration,
    device: Device,
    desk: Desk,
    start: Instant,
    unanswered: u32,
    /// When a frame was dropped last, and why.
    unfit: Option<(Duration, &'static str)>,
    answered_at: Option<Duration>,
    /// The port was not there when it was last looked for.
    is_away: bool,
}

impl Reader {
    /// As a device is configured.
    pub fn of(config: &SerialConfig) -> Reader {
        Reader {
            parse: config.parse.clone(),
            decimal: config.decimal,
            good: config.good.clone(),
            points: config.points.clone(),
        }
    }
}

/// The port is gone.
struct Gone(Arc<str>);

/// What is heard, cut into frames.
struct Ear {
    framer: Framer,
    /// When something was heard last.
    heard_at: Instant,
    recorder: Option<Recorder>,
}

impl Ear {
    /// What the device says, or what a silence completes; `None` = neither until the deadline. Dropped in the middle it has
    /// taken nothing.
    async fn hear(&mut self, stream: &mut SerialStream, deadline: Instant) -> Result<Option<Vec<Cut>>, Gone> {
        let mut bytes = [0; READ_BYTES];
        let silence = self.framer.patience().map(|patience| self.heard_at + patience);
        let until = silence.map_or(deadline, |silence| silence.min(deadline));
        match timeout_at(until, stream.read(&mut bytes)).await {
            Ok(read) => Ok(Some(self.take(arrived(read, &bytes)?))),
            Err(_) if silence.is_some_and(|silence| silence <= deadline) => Ok(Some(self.framer.silence())),
            Err(_) => Ok(None),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<Cut> {
        self.heard_at = Instant::now();
        if let Some(recorder) = &self.recorder {
            recorder.heard(bytes);
        }
        self.framer.push(bytes)
    }
}

impl Port {
    fn new(spec: PortSpec, desk: Desk, leave: CancellationToken) -> Port {
        let PortSpec { device, config, writes, recorder } = spec;
        Port {
            ear: Ear { framer: Framer::new(config.frame.clone()), heard_at: Instant::now(), recorder },
            writes: LineWrites::new(writes, leave),
            commands_rest: Duration::ZERO,
            reader: Reader::of(&config),
            config,
            device: Device::new(device, desk.clone()),
            desk,
            start: Instant::now(),
            unanswered: 0,
            unfit: None,
            answered_at: None,
            is_away: false,
        }
    }

    async fn run(mut self) {
        let path = self.config.port.path.display().to_string();
        let mut failures = 0u32;
        self.writes.start().await;
        while !self.writes.may_close() {
            let reason = match port::open(&self.config.port) {
                Ok(mut stream) => {
                    if failures > 0 {
                        info!(port = path.as_str(); "The port is open again");
                    }
                    failures = 0;
                    self.ear.heard_at = Instant::now();
                    if let Some(recorder) = &self.ear.recorder {
                        recorder.opened();
                    }
                    self.opened();
                    let Gone(reason) = match self.config.ask.clone() {
                        Some(ask) => self.ask_for_ever(&mut stream, &ask).await,
                        None => self.listen(&mut stream).await,
                    };
                    reason
                }
                Err(error) => Arc::from(chain(&error)),
            };
            if self.writes.may_close() {
                return;
            }
            if failures == 0 {
                warn!(port = path.as_str(), error = &*reason; "The port cannot be used");
            }
            failures = failures.saturating_add(1);
            self.device.fail_all(&reason, self.start.elapsed());
            self.device.set_state(DeviceState::Dead, Some(reason));
            self.device.send().await;
            if self.is_back_before(self.start.elapsed() + REOPEN.after(failures)).await {
                // Its rights may be set a moment later: the next pause is short again.
                failures = 1;
            }
        }
    }

    /// A device of which nothing is read is well as long as its port is there, for all that anybody can know.
    fn opened(&mut self) {
        if matches!(self.config.parse, Parse::Nothing) {
            self.device.set_state(DeviceState::Good, None);
        }
    }

    /// Rests until the port is to be tried again, or until it is there again, whichever comes first.
    async fn is_back_before(&mut self, until: Duration) -> bool {
        loop {
            let wake = match self.tend(None, until).await {
                Ok(Some(wake)) => wake,
                Ok(None) => continue,
                Err(_) => return false,
            };
            let now = self.start.elapsed();
            if now >= until {
                return false;
            }
            let wake = Instant::now() + wake.saturating_sub(now);
            tokio::select! {
                is_back = port::is_back_before(&self.config.port.path, wake, &mut self.is_away) => {
                    if is_back {
                        return true;
                    }
                }
                () = self.writes.heed(self.start) => {}
            }
        }
    }

    /// Tells failing points again when their heartbeat comes, and carries out what the lane asks for. Gives when to look
    /// again, `until` at the latest; `None`: at once.
    async fn tend(&mut self, stream: Option<&mut SerialStream>, until: Duration) -> Result<Option<Duration>, Gone> {
        if self.writes.may_close() {
            return Err(Gone("the port is closed".into()));
        }
        self.writes.take_all(self.start);
        let now = self.start.elapsed();
        self.device.tell_again(now);
        self.device.send().await;
        if self.carry_out(stream, now, now >= until).await? {
            return Ok(None);
        }
        let ready = self.command_at();
        let wakes = [self.device.next_heartbeat(), self.writes.lane.wake(now, |_| ready)];
        Ok(Some(wakes.into_iter().flatten().fold(until, Duration::min)))
    }

    /// For devices that speak by themselves.
    async fn listen(&mut self, stream: &mut SerialStream) -> Gone {
        self.ear.framer.reset(true);
        let opened_at = self.ear.heard_at;
        let mut is_joining = true;
        loop {
            let now = self.start.elapsed();
            let patience = if is_joining { JOIN_SILENCE } else { Duration::from_secs(3600) };
            // What is said while the thread is looked for would not be heard as an answer.
            let wake = match self.tend(if is_joining { None } else { Some(&mut *stream) }, now + patience).await {
                Ok(Some(wake)) => wake,
                Ok(None) => continue,
                Err(gone) => return gone,
            };
            let deadline = if is_joining { opened_at + JOIN_SILENCE } else { self.start + wake };
            let heard = tokio::select! {
                heard = self.ear.hear(stream, deadline) => heard,
                () = self.writes.heed(self.start) => continue,
            };
            match heard {
                Err(gone) => return gone,
                Ok(cuts) => {
                    for cut in cuts.iter().flatten() {
                        self.take(cut);
                    }
                    if is_joining && cuts.is_none() {
                        self.ear.framer.reset(false);
                    }
                    is_joining &= cuts.is_some() && self.ear.heard_at == opened_at;
                }
            }
        }
    }

    /// For devices that speak when asked. A late asker skips questions.
    async fn ask_for_ever(&mut self, stream: &mut SerialStream, ask: &Ask) -> Gone {
        let mut due = self.start.elapsed();
        loop {
            let wake = match self.tend(Some(&mut *stream), due).await {
                Ok(Some(wake)) => wake,
                Ok(None) => continue,
                Err(gone) => return gone,
            };
            let now = self.start.elapsed();
            if now < due {
                tokio::select! {
                    () = sleep(wake.saturating_sub(now)) => {}
                    () = self.writes.heed(self.start) => {}
                }
                continue;
            }
            if let Err(gone) = self.ask(stream, ask).await {
                return gone;
            }
            self.writes.lane.polled();
            self.device.send().await;
            due = (due + ask.every).max(self.start.elapsed());
        }
    }

    async fn hear(&mut self, stream: &mut SerialStream, deadline: Instant) -> Result<Option<Vec<Cut>>, Gone> {
        self.ear.hear(stream, deadline).await
    }

    async fn ask(&mut self, stream: &mut SerialStream, ask: &Ask) -> Result<(), Gone> {
        self.hush(stream).await?;
        let deadline = Instant::now() + ask.timeout;
        self.note_sent(&ask.send);
        match timeout_at(deadline, stream.write_all(&ask.send)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Gone(format!("the port is gone: {error}").into())),
            Err(_) => {
                self.unanswered("the question could not be sent: the line is held".into());
                return Ok(());
            }
        }
        let mut unfit = 0u32;
        while let Some(cuts) = self.hear(stream, deadline).await? {
            for cut in cuts {
                if self.take(&cut) {
                    self.unanswered = 0;
                    return Ok(());
                }
                unfit += 1;
            }
        }
        let ms = ask.timeout.as_millis();
        let what = if unfit > 0 { "no answer that fits" } else { "no answer" };
        self.unanswered(format!("{what} within {ms} ms").into());
        Ok(())
    }

    /// Drops what the device still says, an answer that comes too late above all, until it is silent. An answer of
    /// which half was heard is dropped to its end, however late that comes: half a number is still a number.
    async fn hush(&mut self, stream: &mut SerialStream) -> Result<(), Gone> {
        let mut bytes = [0; READ_BYTES];
        let idle = self.config.frame.idle;
        let silence = ASK_SILENCE.max(port::character_time(&self.config.port) * 4).max(idle.unwrap_or_default());
        let limit = Instant::now() + ASK_SILENCE_LIMIT;
        let mut is_silent = false;
        while !is_silent && Instant::now() < limit {
            match timeout(silence, stream.read(&mut bytes)).await {
                Err(_) => is_silent = true,
                Ok(read) => {
                    self.ear.take(arrived(read, &bytes)?);
                }
            }
        }
        // Where a silence ends a frame, the silence that was just heard has ended this one.
        let goes_on = idle.is_none() && self.ear.framer.is_mid_frame();
        self.ear.framer.reset(!is_silent || goes_on);
        Ok(())
    }

    /// Whether a frame says something of the points.
    fn fits(&self, frame: &[u8]) -> bool {
        self.reader.read(frame).is_some()
    }

    /// Takes down what is sent.
    fn note_sent(&self, bytes: &[u8]) {
        if let Some(recorder) = &self.ear.recorder {
            recorder.sent(bytes);
        }
    }

    /// Takes note of what came out of the framer; whether it was a frame that fits.
    fn take(&mut self, cut: &Cut) -> bool {
        let now = self.start.elapsed();
        if matches!((&self.config.parse, cut), (Parse::Nothing, Cut::Frame(_))) {
            return false;
        }
        let parsed = match cut {
            Cut::Frame(frame) => self.reader.read(frame.body()).ok_or(("frame", "a frame fits nothing")),
            Cut::Dropped(flaw) => Err((flaw.kind(), flaw.reason())),
        };
        match parsed {
            Ok(parsed) => {
                self.device.count(None, false);
                self.note(parsed, now);
                true
            }
            Err((kind, reason)) => {
                self.device.count(Some(kind), true);
                self.unfit = Some((now, reason));
                self.device.set_state(DeviceState::Degraded, Some(Arc::from(reason)));
                false
            }
        }
    }

    fn note(&mut self, parsed: Parsed, now: Duration) {
        let stamp = self.desk.clock.now();
        let doubt: Option<Arc<str>> = parsed.doubt.map(Arc::from);
        for (name, value) in parsed.values {
            let own = parsed.doubts.iter().find(|(doubted, _)| *doubted == name).map(|(_, doubt)| Arc::from(*doubt));
            let seen = match (value, doubt.clone().or(own)) {
                (Err(reason), _) => Seen::bad(reason),
                (Ok(value), None) => Seen::good(value),
                (Ok(value), reason) => Seen { value, quality: Quality::Uncertain, reason },
            };
            let is_full = self.device.point_count() >= NAMED_POINTS_MAX;
            let known = self.device.point(&name);
            let point = known.or_else(|| if is_full { None } else { self.device.add_point(&name) });
            match point {
                Some(point) => self.device.see(point, seen, stamp, now),
                // A key that cannot stand in a topic, or one too many.
                None => self.unfit = Some((now, "a name cannot be a point's, or is one too many")),
            }
        }
        let health = self.device.health();
        health.last_good_ms.store(stamp.wall_ms, Ordering::Relaxed);
        if let Some(before) = self.answered_at.replace(now) {
            let ms = u64::try_from(now.saturating_sub(before).as_millis()).unwrap_or(u64::MAX);
            health.interval_ms.store(ms, Ordering::Relaxed);
        }
        let unfit = self.unfit.filter(|(at, _)| now.saturating_sub(*at) < UNFIT_SHOWN);
        match (self.device.failing(), unfit) {
            (Some(reason), _) => self.device.set_state(DeviceState::Degraded, Some(reason)),
            (None, Some((_, reason))) => self.device.set_state(DeviceState::Degraded, Some(Arc::from(reason))),
            (None, None) => self.device.set_state(DeviceState::Good, None),
        }
    }

    fn unanswered(&mut self, reason: Arc<str>) {
        self.device.count(Some("timeout"), false);
        self.unanswered = self.unanswered.saturating_add(1);
        self.device.fail_all(&reason, self.start.elapsed());
        let never_answered = matches!(self.device.state(), DeviceState::Starting | DeviceState::Dead);
        let is_dead = never_answered || self.unanswered >= DEAD_AFTER;
        self.device.set_state(if is_dead { DeviceState::Dead } else { DeviceState::Degraded }, Some(reason));
    }
}

/// What a read gave; nothing at all means that the other end is closed or the adapter was pulled out.
fn arrived(read: std::io::Result<usize>, bytes: &[u8]) -> Result<&[u8], Gone> {
    match read {
        Ok(0) => Err(Gone("the port is gone".into())),
        Ok(count) => Ok(bytes.get(..count).unwrap_or_default()),
        Err(error) => Err(Gone(format!("the port is gone: {error}").into())),
    }
}
