//! Serial devices that speak lines of text: one task for each port.
//!
//! Promises: a value is told only from a whole frame that fits; what fits nothing is counted and shows as a degraded
//! device; a device that is asked and does not answer in time is told as quality bad; a port that is pulled out is
//! opened again with growing pauses when it is back. Never sends anything but the configured question.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::{info, warn};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_serial::SerialStream;

use crate::config::{Ask, Parse, SerialConfig};
use crate::health::{DeviceState, chain};
use crate::message::Quality;

use super::device::{Desk, Device, DeviceSpec, Seen};
use super::pause::Pauses;
use super::port;

use frame::{Cut, Framer};
use parse::{Parsed, Reader};

pub mod frame;
pub mod parse;

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
}

/// The points of a device for which none are written: the named groups or columns; those of JSON are met later.
pub(super) fn named_points(parse: &Parse) -> Vec<&str> {
    match parse {
        Parse::Regex(regex) => regex.capture_names().flatten().collect(),
        Parse::Csv { columns, .. } => columns.iter().map(String::as_str).filter(|name| !name.is_empty()).collect(),
        Parse::Json => Vec::new(),
    }
}

/// Reads the port until it is dropped.
pub(super) async fn run(spec: PortSpec, desk: Desk) {
    Port::new(spec, desk).run().await;
}

struct Port {
    config: SerialConfig,
    reader: Reader,
    framer: Framer,
    device: Device,
    desk: Desk,
    start: Instant,
    unanswered: u32,
    unfit_at: Option<Duration>,
    answered_at: Option<Duration>,
}

/// The port is gone.
struct Gone(Arc<str>);

impl Port {
    fn new(spec: PortSpec, desk: Desk) -> Port {
        let PortSpec { device, config } = spec;
        let reader = Reader {
            parse: config.parse.clone(),
            decimal: config.decimal,
            good: config.good.clone(),
            points: config.points.clone(),
        };
        Port {
            framer: Framer::new(&config.delimiter, config.frame_bytes_max),
            reader,
            config,
            device: Device::new(device, desk.clone()),
            desk,
            start: Instant::now(),
            unanswered: 0,
            unfit_at: None,
            answered_at: None,
        }
    }

    async fn run(mut self) {
        let path = self.config.port.path.display().to_string();
        let mut failures = 0u32;
        loop {
            let reason = match port::open(&self.config.port) {
                Ok(mut stream) => {
                    if failures > 0 {
                        info!(port = path.as_str(); "The port is open again");
                    }
                    failures = 0;
                    let Gone(reason) = match self.config.ask.clone() {
                        Some(ask) => self.ask_for_ever(&mut stream, &ask).await,
                        None => self.listen(&mut stream).await,
                    };
                    reason
                }
                Err(error) => Arc::from(chain(&error)),
            };
            if failures == 0 {
                warn!(port = path.as_str(), error = &*reason; "The port cannot be used");
            }
            failures = failures.saturating_add(1);
            self.device.fail_all(&reason, self.start.elapsed());
            self.device.set_state(DeviceState::Dead, Some(reason));
            self.device.send().await;
            self.rest_until(self.start.elapsed() + REOPEN.after(failures)).await;
        }
    }

    /// Sleeps, and tells failing points again when their heartbeat comes.
    async fn rest_until(&mut self, until: Duration) {
        loop {
            let now = self.start.elapsed();
            self.device.tell_again(now);
            self.device.send().await;
            if now >= until {
                return;
            }
            let wake = self.device.next_heartbeat().map_or(until, |heartbeat| until.min(heartbeat));
            sleep(wake.saturating_sub(now)).await;
        }
    }

    /// For devices that speak by themselves.
    async fn listen(&mut self, stream: &mut SerialStream) -> Gone {
        let mut bytes = [0; READ_BYTES];
        self.framer.reset(true);
        let mut is_joining = true;
        loop {
            let now = self.start.elapsed();
            self.device.tell_again(now);
            self.device.send().await;
            let heartbeat = self.device.next_heartbeat().map(|heartbeat| heartbeat.saturating_sub(now));
            let patience = if is_joining { JOIN_SILENCE } else { heartbeat.unwrap_or(Duration::from_secs(3600)) };
            match timeout(patience, stream.read(&mut bytes)).await {
                Err(_) if is_joining => {
                    self.framer.reset(false);
                    is_joining = false;
                }
                Err(_) => {}
                Ok(read) => {
                    is_joining = false;
                    match arrived(read, &bytes) {
                        Ok(bytes) => {
                            for cut in self.framer.push(bytes) {
                                self.take(&cut);
                            }
                        }
                        Err(gone) => return gone,
                    }
                }
            }
        }
    }

    /// For devices that speak when asked. A late asker skips questions.
    async fn ask_for_ever(&mut self, stream: &mut SerialStream, ask: &Ask) -> Gone {
        let mut due = self.start.elapsed();
        loop {
            self.rest_until(due).await;
            if let Err(gone) = self.ask(stream, ask).await {
                return gone;
            }
            self.device.send().await;
            due = (due + ask.every).max(self.start.elapsed());
        }
    }

    async fn ask(&mut self, stream: &mut SerialStream, ask: &Ask) -> Result<(), Gone> {
        self.hush(stream).await?;
        let deadline = Instant::now() + ask.timeout;
        match timeout_at(deadline, stream.write_all(&ask.send)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Gone(format!("the port is gone: {error}").into())),
            Err(_) => {
                self.unanswered("the question could not be sent: the line is held".into());
                return Ok(());
            }
        }
        let mut bytes = [0; READ_BYTES];
        let mut unfit = 0u32;
        while let Ok(read) = timeout_at(deadline, stream.read(&mut bytes)).await {
            for cut in self.framer.push(arrived(read, &bytes)?) {
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
        let silence = ASK_SILENCE.max(port::character_time(&self.config.port) * 4);
        let limit = Instant::now() + ASK_SILENCE_LIMIT;
        let mut is_silent = false;
        while !is_silent && Instant::now() < limit {
            match timeout(silence, stream.read(&mut bytes)).await {
                Err(_) => is_silent = true,
                Ok(read) => {
                    self.framer.push(arrived(read, &bytes)?);
                }
            }
        }
        self.framer.reset(!is_silent || self.framer.is_mid_frame());
        Ok(())
    }

    /// Takes note of what came out of the framer; whether it was a frame that fits.
    fn take(&mut self, cut: &Cut) -> bool {
        let now = self.start.elapsed();
        let parsed = match cut {
            Cut::Frame(frame) => self.reader.read(frame).ok_or("a frame fits nothing"),
            Cut::Overlong => Err("a frame is too long"),
        };
        match parsed {
            Ok(parsed) => {
                self.device.count(None, false);
                self.note(parsed, now);
                true
            }
            Err(reason) => {
                self.device.count(Some("frame"), true);
                self.unfit_at = Some(now);
                self.device.set_state(DeviceState::Degraded, Some(Arc::from(reason)));
                false
            }
        }
    }

    fn note(&mut self, parsed: Parsed, now: Duration) {
        let stamp = self.desk.clock.now();
        let doubt: Option<Arc<str>> = parsed.doubt.map(Arc::from);
        for (name, value) in parsed.values {
            let seen = match (value, &doubt) {
                (Err(reason), _) => Seen::bad(reason),
                (Ok(value), None) => Seen::good(value),
                (Ok(value), Some(_)) => Seen { value, quality: Quality::Uncertain, reason: doubt.clone() },
            };
            let is_full = self.device.point_count() >= NAMED_POINTS_MAX;
            let known = self.device.point(&name);
            let point = known.or_else(|| if is_full { None } else { self.device.add_point(&name) });
            match point {
                Some(point) => self.device.see(point, seen, stamp, now),
                // A key that cannot stand in a topic, or one too many.
                None => self.unfit_at = Some(now),
            }
        }
        let health = self.device.health();
        health.last_good_ms.store(stamp.wall_ms, Ordering::Relaxed);
        if let Some(before) = self.answered_at.replace(now) {
            let ms = u64::try_from(now.saturating_sub(before).as_millis()).unwrap_or(u64::MAX);
            health.interval_ms.store(ms, Ordering::Relaxed);
        }
        let is_unfit_shown = self.unfit_at.is_some_and(|at| now.saturating_sub(at) < UNFIT_SHOWN);
        match self.device.failing() {
            Some(reason) => self.device.set_state(DeviceState::Degraded, Some(reason)),
            None if is_unfit_shown => {
                self.device.set_state(DeviceState::Degraded, Some("some frames fit nothing".into()));
            }
            None => self.device.set_state(DeviceState::Good, None),
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
