//! Field adapters: what a device says becomes a `Reading` and goes to `intake`.
//!
//! Promises: one task owns one line and does one exchange at a time; every exchange has a deadline; a device that is
//! dead, slow or talks nonsense gives readings with quality bad and a reason, never a wrong value, and never slows
//! another line. A line that fails, even by a panic in a library, is started again after a pause and touches no other.
//!
//! ```text
//!  line task ─┐                       ┌─ submit, in order ─► intake
//!  line task ─┼─ bounded channel ─► carrier
//!  port task ─┘                       └─ waits for the commits, tries again what was refused
//! ```
//!
//! The other way go writes: `writes`.
//!
//! Readings wait for their commit in the carrier, not in the lines: a disk that stalls delays no exchange until the
//! channel is full; then lines wait and skip polls.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use thiserror::Error;
use tokio::sync::{RwLock, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{BOARD, BoardConfig, BoardPoint, Config, ModbusConfig, Report, SerialConfig};
use crate::health::{Health, chain};
use crate::intake::{AcceptError, Intake};
use crate::message::{Message, TopicError};
use crate::queue::{AppendError, Outlet};

use device::{Desk, DeviceSpec, PointSpec, point_topic, state_topic};
use pause::Pauses;
use record::{Recorder, Wire};
use tending::{Key, Tended, Tending};
use writes::{Clerk, Switchboard};

mod device;
pub mod lane;
mod pause;
pub mod poll;
mod port;
pub mod record;
mod report;
mod tending;
mod writes;

pub mod board;
pub mod modbus;
pub mod serial;

pub mod simulate;

pub use port::{PortError, ports};
pub use writes::set_topics;

/// Batches of readings that wait for the carrier, of all lines together.
const OUTBOX_BATCHES: usize = 256;
/// Batches that the carrier submits before it waits for their commits.
const CARRIED_BATCHES: usize = 64;
/// Pauses before a reading that the queue refused is offered again.
const REFUSED: Pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(5));

/// Why the field stage cannot start or go on. A device or line that fails is none of these.
#[derive(Debug, Error)]
pub enum FieldError {
    /// The topic of a point is not one.
    #[error("cannot make the topic of point {point} of device {device}")]
    Topic {
        /// The device.
        device: Arc<str>,
        /// The point.
        point: Arc<str>,
        /// What is wrong with it.
        #[source]
        source: TopicError,
    },
    /// The topic of a device's state is not one.
    #[error("cannot make the topic of the state of device {device}")]
    StateTopic {
        /// The device.
        device: Arc<str>,
        /// What is wrong with it.
        #[source]
        source: TopicError,
    },
    /// A recording cannot be begun.
    #[error("cannot record to {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A device names a line that is not configured.
    #[error("device {device} is on the line {line}, which is not configured")]
    NoLine {
        /// The device.
        device: Arc<str>,
        /// The line.
        line: Arc<str>,
    },
    /// Readings can no longer be handed on: the queue or the router has ended.
    #[error("cannot hand on readings")]
    Intake(#[source] AcceptError),
    /// The task that hands on readings ended by a panic.
    #[error("the carrier of readings failed")]
    Carrier,
}

/// Where readings go: `Intake`, or a list in tests.
pub trait Readings: Clone + Send + Sync + 'static {
    /// Offers messages in order. Gives back those that were not taken, with the reason of the last refusal.
    fn deliver(&self, messages: Vec<Message>) -> impl Future<Output = Result<(), Refused>> + Send;
}

/// Messages that were not taken.
#[derive(Debug)]
pub struct Refused {
    /// They stay with their sender.
    pub messages: Vec<Message>,
    /// Why.
    pub error: AcceptError,
}

impl Readings for Intake {
    async fn deliver(&self, messages: Vec<Message>) -> Result<(), Refused> {
        let mut refused = Vec::new();
        let mut last_error = None;
        let mut tickets = Vec::with_capacity(messages.len());
        for message in messages {
            match self.submit(message.clone(), None).await {
                Ok(ticket) => tickets.push((ticket, message)),
                Err(error) => {
                    refused.push(message);
                    last_error = Some(error);
                }
            }
        }
        for (ticket, message) in tickets {
            if let Err(error) = ticket.outcome().await {
                refused.push(message);
                last_error = Some(error);
            }
        }
        match last_error {
            None => Ok(()),
            Some(error) => Err(Refused { messages: refused, error }),
        }
    }
}

/// The field stage: all lines, ready to run.
#[derive(Debug)]
pub struct Field<R = Intake> {
    lines: Lines,
    readings: R,
    clock: Clock,
    /// Takes writes, if any are taken, and connects lines with whoever does.
    clerk: Option<(Clerk, Switchboard)>,
    hand: FieldHand,
    changes: mpsc::Receiver<NewLines>,
}

/// Lines and their devices as a configuration has them; nothing is open yet.
#[derive(Debug)]
pub struct Lines(Vec<Line>);

impl Line {
    /// Where the way to the clerk of writes belongs, if anything on this line can be written.
    fn write_end(&mut self) -> Option<&mut Option<writes::LineEnd>> {
        match self {
            Line::Modbus(line) => Some(&mut line.writes),
            Line::Serial(port) => (!port.config.commands.is_empty()).then_some(&mut port.writes),
            Line::Board(_) => None,
        }
    }
}

impl Lines {
    /// Takes them out of the configuration.
    pub fn new(config: &Config, health: &Health) -> Result<Lines, FieldError> {
        let mut lines = modbus_lines(config, health)?;
        for (name, serial) in &config.serial {
            let device = DeviceSpec {
                name: name.clone(),
                qos: serial.qos,
                topic: serial.topic.clone(),
                state_topic: state_topic(&config.gateway.id, name)?,
                points: serial_points(name, serial)?,
                health: health.device(name),
            };
            lines.push(Line::Serial(Box::new(serial::PortSpec {
                device,
                config: serial.clone(),
                writes: None,
                recorder: None,
            })));
        }
        if let Some(board) = &config.board {
            let name: Arc<str> = Arc::from(BOARD);
            let device = DeviceSpec {
                name: name.clone(),
                qos: board.qos,
                topic: board.topic.clone(),
                state_topic: state_topic(&config.gateway.id, &name)?,
                points: board_points(board)?,
                health: health.device(&name),
            };
            lines.push(Line::Board(Box::new(board::BoardSpec { device, config: board.clone() })));
        }
        Ok(Lines(lines))
    }
}

/// Lines that are to be run instead of those that are, and the way to say that they do.
#[derive(Debug)]
struct NewLines(Lines, oneshot::Sender<()>);

/// Changes the lines of a field stage that runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FieldHand(mpsc::Sender<NewLines>);

impl FieldHand {
    /// Runs these lines from now on. What is not different goes on as it is: a device on a line that stays is read without
    /// a gap, whatever comes and goes beside it. Comes back when all that is not wanted any more has ended.
    pub async fn change(&self, lines: Lines) {
        let (done, is_done) = oneshot::channel();
        if self.0.send(NewLines(lines, done)).await.is_ok() {
            // A stage that ends has no lines at all.
            let _ended = is_done.await;
        }
    }
}

#[derive(Debug, Clone)]
enum Line {
    Modbus(Box<modbus::LineSpec>),
    Serial(Box<serial::PortSpec>),
    Board(Box<board::BoardSpec>),
}

impl<R: Readings> Field<R> {
    /// Takes the lines and devices out of the configuration. Opens nothing yet.
    pub fn new(config: &Config, readings: R, clock: Clock, health: &Health) -> Result<Field<R>, FieldError> {
        let lines = Lines::new(config, health)?;
        let (hand, changes) = mpsc::channel(1);
        Ok(Field { lines, readings, clock, clerk: None, hand: FieldHand(hand), changes })
    }

    /// To change the lines while it runs.
    pub fn hand(&self) -> FieldHand {
        self.hand.clone()
    }

    /// Lets points be written by what waits in `outlet`, which is that of `queue::WRITES`; answers leave by `intake`.
    pub fn writing(mut self, outlet: Outlet, intake: Intake) -> Field<R> {
        self.clerk = Some(Clerk::new(outlet, intake, &mut self.lines.0));
        self
    }

    /// Takes down what goes over each line and port, in a file of its own in this directory.
    pub fn recording(mut self, dir: &Path) -> Result<Field<R>, FieldError> {
        let create = |file: &str, wire: Wire| {
            let path = dir.join(record::file_name(file));
            Recorder::create(&path, wire).map_err(|source| FieldError::Record { path, source })
        };
        for line in &mut self.lines.0 {
            match line {
                Line::Modbus(spec) => {
                    spec.recorder = Some(create(&spec.name, modbus::probe::Probe::wire(&spec.config))?);
                }
                // A line may bear the same name.
                Line::Serial(port) => {
                    port.recorder = Some(create(&format!("{}.serial", port.device.name), Wire::Serial)?);
                }
                // There is no wire.
                Line::Board(_) => {}
            }
        }
        Ok(self)
    }

    /// Reads the devices until `stop`; then hands on what was read and ends.
    pub async fn run(self, stop: CancellationToken) -> Result<(), FieldError> {
        let stopping = stop.clone();
        let Field { lines, readings, clock, clerk, hand: _hand, mut changes } = self;
        let (outbox, inbox) = mpsc::channel(OUTBOX_BATCHES);
        let desk = Desk { outbox, clock };
        let mut carrier = JoinSet::new();
        carrier.spawn(carry(inbox, readings, stop.clone()));
        let switchboard = clerk.map(|(clerk, switchboard)| {
            carrier.spawn(clerk.run(stop.clone()));
            switchboard
        });
        // The lines and their tending hold the only senders: when they have ended, the carrier and the clerk end too.
        let tend = async move {
            let mut tending = Tending::new(desk, stop.clone());
            lines.0.into_iter().for_each(|line| tending.add(line));
            while let Some(NewLines(lines, done)) = tending.run(&mut changes).await {
                tending.change(lines.0, switchboard.as_ref()).await;
                // Whoever asked may be gone.
                let _unheard = done.send(());
            }
        };
        tokio::pin!(tend);
        loop {
            tokio::select! {
                () = &mut tend => break,
                Some(ended) = carrier.join_next() => match ended {
                    // The clerk has nothing to bring to an end.
                    Ok(Ok(())) if stopping.is_cancelled() => {}
                    Ok(Err(error)) => return Err(FieldError::Intake(error)),
                    Ok(Ok(())) | Err(_) => return Err(FieldError::Carrier),
                },
            }
        }
        while let Some(ended) = carrier.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(FieldError::Intake(error)),
                Err(_) => return Err(FieldError::Carrier),
            }
        }
        Ok(())
    }
}

fn modbus_lines(config: &Config, health: &Health) -> Result<Vec<Line>, FieldError> {
    let mut units: HashMap<Arc<str>, Vec<modbus::UnitSpec>> = HashMap::new();
    for (name, device) in &config.modbus {
        if !config.lines.contains_key(&device.line) {
            return Err(FieldError::NoLine { device: name.clone(), line: device.line.clone() });
        }
        units.entry(device.line.clone()).or_default().push(unit(&config.gateway.id, name, device, health)?);
    }
    let with_units = config.lines.iter().filter_map(|(name, line)| {
        let units = units.remove(name)?;
        Some(Line::Modbus(Box::new(modbus::LineSpec {
            name: name.clone(),
            config: line.clone(),
            units,
            writes: None,
            recorder: None,
            estate: modbus::Estate::default(),
        })))
    });
    Ok(with_units.collect())
}

fn board_points(board: &BoardConfig) -> Result<Vec<PointSpec>, FieldError> {
    let point = |point: BoardPoint| {
        let topic = point_topic(&board.topic, BOARD, &point.name)?;
        let unit = point.gauge.unit().map(Arc::from);
        Ok(PointSpec { name: point.name, topic, unit, report: point.report, is_write_only: false })
    };
    board.all_points().into_iter().map(point).collect()
}

fn serial_points(device: &Arc<str>, serial: &SerialConfig) -> Result<Vec<PointSpec>, FieldError> {
    let point = |name: &str, unit, report| {
        let topic = point_topic(&serial.topic, device, name)?;
        Ok(PointSpec { name: Arc::from(name), topic, unit, report, is_write_only: false })
    };
    if serial.points.is_empty() {
        let named = serial::named_points(&serial.parse).into_iter();
        return named.map(|name| point(name, None, Report::default())).collect();
    }
    serial.points.iter().map(|written| point(&written.name, written.unit.clone(), written.report)).collect()
}

fn unit(
    gateway: &str,
    name: &Arc<str>,
    device: &ModbusConfig,
    health: &Health,
) -> Result<modbus::UnitSpec, FieldError> {
    let points = device.points.iter().map(|point| {
        Ok(PointSpec {
            name: point.name.clone(),
            topic: point_topic(&device.topic, name, &point.name)?,
            unit: point.unit.clone(),
            report: point.report,
            is_write_only: !point.is_readable(),
        })
    });
    let spec = DeviceSpec {
        name: name.clone(),
        qos: device.qos,
        topic: device.topic.clone(),
        state_topic: state_topic(gateway, name)?,
        points: points.collect::<Result<_, FieldError>>()?,
        health: health.device(name),
    };
    Ok(modbus::UnitSpec { config: device.clone(), device: spec })
}

/// Hands on readings in order and keeps them until they are taken.
async fn carry<R: Readings>(
    mut inbox: mpsc::Receiver<Vec<Message>>,
    readings: R,
    stop: CancellationToken,
) -> Result<(), AcceptError> {
    let mut batches = Vec::with_capacity(CARRIED_BATCHES);
    while inbox.recv_many(&mut batches, CARRIED_BATCHES).await > 0 {
        let mut messages: Vec<Message> = batches.drain(..).flatten().collect();
        let mut refusals = 0u32;
        while let Err(refused) = readings.deliver(messages).await {
            let is_over = matches!(refused.error, AcceptError::Queue(AppendError::Stopped) | AcceptError::Router(_));
            if is_over || stop.is_cancelled() {
                return if stop.is_cancelled() { Ok(()) } else { Err(refused.error) };
            }
            if refusals == 0 {
                let count = refused.messages.len();
                warn!(count, error:% = chain(&refused.error); "Readings were not taken and are offered again");
            }
            refusals = refusals.saturating_add(1);
            messages = refused.messages;
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(REFUSED.after(refusals)) => {}
            }
        }
    }
    Ok(())
}

impl Tended for Line {
    fn key(&self) -> Key {
        match self {
            Line::Modbus(line) => ("line", line.name.clone()),
            Line::Serial(port) => ("serial", port.device.name.clone()),
            Line::Board(board) => ("board", board.device.name.clone()),
        }
    }

    fn is_same(&self, other: &Line) -> bool {
        match (self, other) {
            (Line::Modbus(one), Line::Modbus(other)) => one.is_same(other),
            (Line::Serial(one), Line::Serial(other)) => one.is_same(other),
            (Line::Board(one), Line::Board(other)) => one.config == other.config,
            _ => false,
        }
    }

    fn succeed(&mut self, former: &Line) {
        match (self, former) {
            (Line::Modbus(one), Line::Modbus(former)) => {
                one.estate = former.estate.clone();
                one.recorder.clone_from(&former.recorder);
            }
            (Line::Serial(one), Line::Serial(former)) => one.recorder.clone_from(&former.recorder),
            _ => {}
        }
    }

    fn busy(&self) -> Option<Arc<RwLock<()>>> {
        match self {
            Line::Modbus(line) => Some(line.writes.as_ref()?.busy.clone()),
            Line::Serial(port) => Some(port.writes.as_ref()?.busy.clone()),
            Line::Board(_) => None,
        }
    }

    async fn run(self, desk: Desk, leave: CancellationToken) {
        match self {
            Line::Modbus(line) => modbus::run(*line, desk, leave).await,
            Line::Serial(port) => serial::run(*port, desk, leave).await,
            Line::Board(board) => board::run(*board, desk, leave).await,
        }
    }
}

impl Tending<Line> {
    /// Runs these lines and no others. Old ones end first: the new ones may need their ports.
    async fn change(&mut self, mut lines: Vec<Line>, switchboard: Option<&Switchboard>) {
        let former = self.end_others(&lines).await;
        for line in &mut lines {
            match (self.line(&line.key()), line) {
                (Some(Line::Modbus(same)), Line::Modbus(line)) => line.writes.clone_from(&same.writes),
                (Some(Line::Serial(same)), Line::Serial(port)) => port.writes.clone_from(&same.writes),
                _ => {}
            }
        }
        if let Some(switchboard) = switchboard {
            switchboard.connect(&mut lines).await;
        }
        let devices: HashSet<Arc<str>> =
            lines.iter().flat_map(Line::devices).map(|device| device.name.clone()).collect();
        let gone = former.values().flat_map(Line::devices).filter(|device| !devices.contains(&device.name));
        let gone: Vec<Message> = gone.map(|device| device.farewell(&self.desk)).collect();
        if !gone.is_empty() && self.desk.outbox.send(gone).await.is_err() {
            log::debug!("The end of devices found no reader: the stage is ending");
        }
        for mut line in lines {
            if self.line(&line.key()).is_some() {
                continue;
            }
            if let Some(former) = former.get(&line.key()) {
                line.succeed(former);
            }
            self.add(line);
        }
    }
}

impl Line {
    fn devices(&self) -> Vec<&DeviceSpec> {
        match self {
            Line::Modbus(line) => line.units.iter().map(|unit| &unit.device).collect(),
            Line::Serial(port) => vec![&port.device],
            Line::Board(board) => vec![&board.device],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::clock::ClockSource;
    use crate::message::{Body, Origin, Qos, Topic};

    fn message(topic: &str) -> Message {
        Message {
            topic: Topic::new(topic).unwrap(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: None,
            body: Body::Bytes(bytes::Bytes::new()),
            origin: Origin::Field,
            received: Clock::new(ClockSource::Trusted).now(),
        }
    }

    /// Refuses the first offers, then takes all.
    #[derive(Clone, Default)]
    struct Reluctant {
        offers: Arc<AtomicU32>,
        taken: Arc<Mutex<Vec<String>>>,
        error: Option<AppendError>,
    }

    impl Readings for Reluctant {
        async fn deliver(&self, messages: Vec<Message>) -> Result<(), Refused> {
            let offer = self.offers.fetch_add(1, Ordering::SeqCst);
            match &self.error {
                Some(error) if offer < 3 => Err(Refused { messages, error: AcceptError::Queue(error.clone()) }),
                _ => {
                    self.taken.lock().unwrap().extend(messages.iter().map(|message| message.topic.to_string()));
                    Ok(())
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readings_that_a_full_queue_refuses_are_offered_again_in_order() {
        let readings = Reluctant { error: Some(AppendError::Full), ..Reluctant::default() };
        let (outbox, inbox) = mpsc::channel(8);
        for topic in ["a", "b", "c"] {
            outbox.send(vec![message(topic)]).await.unwrap();
        }
        drop(outbox);
        carry(inbox, readings.clone(), CancellationToken::new()).await.unwrap();
        assert_eq!(*readings.taken.lock().unwrap(), ["a", "b", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_has_stopped_ends_the_stage_with_the_reason() {
        let readings = Reluctant { error: Some(AppendError::Stopped), ..Reluctant::default() };
        let (outbox, inbox) = mpsc::channel(8);
        outbox.send(vec![message("a")]).await.unwrap();
        let error = carry(inbox, readings, CancellationToken::new()).await.unwrap_err();
        assert_eq!(
            chain(&FieldError::Intake(error)),
            "cannot hand on readings: the message was not stored: the queue has stopped"
        );
    }
}
