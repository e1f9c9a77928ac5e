//! Writes to points, and commands to serial devices: from a message on `<topic>/set` to one answer on `<topic>/result`.
//!
//! Promises:
//! - Every write that was acknowledged to whoever asked ends in one answer, also over a crash: carried out, refused,
//!   expired, failed, or unknown. The answer is durable in the transaction that forgets the request.
//! - A write is carried out at most once: before a bit of it leaves, it is on disk that it begins. One that had begun when
//!   the gateway ended is answered as unknown, and not done again, unless its point says that doing it twice is no
//!   different (`idempotent`).
//! - Nothing is written more often than its `per_minute`, also over restarts: what begins is on disk. After another boot it
//!   counts as if it had been right before that.
//! - Nothing is written that is older than it may be. How old a write is after the board was off, only a clock that was
//!   right on both sides of that can tell; without one it is too old.
//! - A point that does not say `write` is never written, and whoever tries is told so.
//!
//! ```text
//!  client ─► broker ─┐                            ┌─ Write, Begin ─► line task: its lane (lane.rs),
//!  cloud ──► uplink ─┴► intake ─► queue ─► clerk ─┤                  between polls
//!                          ▲      (field)    │    └◄─ Ask, Done ──┘
//!                          └──── results ────┘
//! ```
//!
//! The clerk is one task: it judges requests, gives each line those that it may carry out, and is the only one who
//! answers. Lines never wait for it, and it never waits for lines.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use log::{debug, warn};
use serde_json::Value as Json;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::device::point_topic;
use super::lane::{LANE_MAX, Ticket};
use super::modbus::encode::Unwritable;
use super::pause::Pauses;
use super::{Line, board_points, serial_points};
use crate::clock::rfc3339;
use crate::config::{Config, answers};
use crate::health::{DeviceHealth, chain};
use crate::intake::{AcceptError, Intake};
use crate::message::{Body, Message, Origin, Properties, Qos, Topic, Value, is_reserved};
use crate::queue::{AppendError, Change, Outlet, Queued, SetTopics, Verdict};

use rate::Rate;
use request::{About, Kind, Request};
use target::{Target, Targets};

pub(super) use line::{LineEnd, LineWrites};
pub(super) use request::End;
pub(super) use target::Act;

mod line;
mod rate;
mod request;
mod target;
#[cfg(test)]
mod tests;

/// Requests that are taken from the queue at a time.
const REQUESTS: usize = 64;
const REQUEST_BYTES: usize = 256 * 1024;
/// Messages to one line that it has not looked at; more than its open writes ever make.
const INBOX: usize = LANE_MAX * 4;
/// There is room for the words of so many lines at least: a reload may bring them.
const LINES_MIN: usize = 256;
/// Pauses before what the queue did not take is offered again.
const REFUSED: Pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(5));
/// Names the session of the stream: what was begun is taken over from a damaged store only with one.
const SESSION_KEY: u64 = 1;

/// What a line is told.
#[derive(Debug)]
pub(super) enum ToLine {
    /// Carry this out when it is its turn.
    Write(Box<Order>),
    /// It is written down that this begins.
    Begin(Ticket),
    /// Nobody wants this any more.
    Drop(Ticket),
}

/// One write, ready for the wire.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) ticket: Ticket,
    pub(super) unit: usize,
    pub(super) act: Act,
    pub(super) expires: Instant,
}

/// What a line tells.
#[derive(Debug)]
pub(super) enum FromLine {
    /// It has started, and knows of no write.
    Started { line: usize },
    /// May it begin?
    Ask { line: usize, ticket: Ticket },
    /// It has ended.
    Done { line: usize, ticket: Ticket, end: End },
    /// Other lines run from here on; what those that are gone have told comes before this.
    Lines(Box<Layout>),
}

/// Where the points are, and how the lines are reached.
#[derive(Debug, Default)]
pub(super) struct Layout {
    targets: Targets,
    /// By the number of the line.
    inboxes: BTreeMap<usize, mpsc::Sender<ToLine>>,
}

/// Connects lines with the clerk.
#[derive(Debug)]
pub(super) struct Switchboard {
    events: mpsc::Sender<FromLine>,
    /// The number of the next line; none is used again.
    next: AtomicUsize,
}

impl Switchboard {
    /// Tells the clerk of these lines. Those that have an end of the way to him keep it, the others get one.
    pub(super) async fn connect(&self, lines: &mut [Line]) {
        let layout = Box::new(self.lay_out(lines));
        if self.events.send(FromLine::Lines(layout)).await.is_err() {
            debug!("Other lines found no clerk: the stage is ending");
        }
    }

    fn lay_out(&self, lines: &mut [Line]) -> Layout {
        let mut layout = Layout::default();
        for line in lines {
            // Nobody looks at the number of a line on which nothing is written.
            let mut number = usize::MAX;
            if let Some(slot) = line.write_end() {
                let end = slot.get_or_insert_with(|| {
                    let (sender, inbox) = mpsc::channel(INBOX);
                    let (number, inbox) = (self.next.fetch_add(1, Ordering::Relaxed), Arc::new(Mutex::new(inbox)));
                    LineEnd { number, sender, inbox, events: self.events.clone(), busy: Arc::default() }
                });
                layout.inboxes.insert(end.number, end.sender.clone());
                number = end.number;
            }
            layout.targets.add_line(number, line);
        }
        layout
    }
}

/// The topic on which a point is written.
pub(super) fn set_topic(point: &Topic) -> Option<Topic> {
    Topic::new(&format!("{point}/set")).ok()
}

fn result_topic(set_topic: &Topic) -> Option<Topic> {
    Topic::new(&format!("{}/result", set_topic.as_str().strip_suffix("/set")?)).ok()
}

/// The topics on which points are written, of all points: also those that may not be written are answered for.
pub fn set_topics(config: &Config) -> SetTopics {
    let modbus = config.modbus.iter().flat_map(|(name, device)| {
        device.points.iter().filter_map(|point| set_topic(&point_topic(&device.topic, name, &point.name).ok()?))
    });
    let serial = config.serial.iter().flat_map(|(name, device)| {
        let points = serial_points(name, device).unwrap_or_default();
        let commands =
            device.commands.iter().filter_map(|command| point_topic(&device.topic, name, &command.name).ok());
        let topics = points.into_iter().map(|point| point.topic).chain(commands);
        topics.filter_map(|topic| set_topic(&topic)).collect::<Vec<_>>()
    });
    let board = config.board.iter().flat_map(|board| {
        let points = board_points(board).unwrap_or_default();
        points.into_iter().filter_map(|point| set_topic(&point.topic)).collect::<Vec<_>>()
    });
    SetTopics::new(modbus.chain(serial).chain(board).collect::<HashSet<Topic>>())
}

/// A write that was given to a line.
#[derive(Debug)]
struct Open {
    line: usize,
    row: Queued,
    id: Json,
    order: Order,
    /// Under which number it is written down that it begins.
    packet_id: Option<u16>,
}

/// An answer that is to be given.
#[derive(Debug, Clone)]
struct Ending {
    changes: Vec<Change>,
    messages: Vec<Message>,
}

/// Takes writes from the queue and answers them.
#[derive(Debug)]
pub(super) struct Clerk {
    outlet: Outlet,
    intake: Intake,
    layout: Layout,
    events: mpsc::Receiver<FromLine>,
    open: BTreeMap<Ticket, Open>,
    last_ticket: Ticket,
    /// By the topic on which is asked.
    rates: HashMap<Topic, Rate>,
    started: Instant,
}

/// Whether a line has what it was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Heard,
    /// It does not listen fast enough.
    Full,
    /// It has ended.
    Gone,
}

/// Why the clerk stops doing what it does: the gateway stops, or the queue is gone.
enum Over {
    Stop,
    Failed(AcceptError),
}

impl Clerk {
    /// A clerk for these lines, each of which gets its end of the way to it, and whoever connects others.
    pub fn new(outlet: Outlet, intake: Intake, lines: &mut [Line]) -> (Clerk, Switchboard) {
        let (sender, events) = mpsc::channel(lines.len().max(LINES_MIN) * (LANE_MAX * 2 + 2) + 1);
        let switchboard = Switchboard { events: sender, next: AtomicUsize::new(0) };
        let clerk = Clerk {
            outlet,
            intake,
            layout: switchboard.lay_out(lines),
            events,
            open: BTreeMap::new(),
            last_ticket: 0,
            rates: HashMap::new(),
            started: Instant::now(),
        };
        (clerk, switchboard)
    }

    /// Works until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), AcceptError> {
        let over = match self.resume(&stop).await {
            Ok(()) => loop {
                if let Err(over) = self.step(&stop).await {
                    break over;
                }
            },
            Err(over) => over,
        };
        match over {
            Over::Stop => Ok(()),
            Over::Failed(_) if stop.is_cancelled() => Ok(()),
            Over::Failed(error) => Err(error),
        }
    }

    /// What had begun when the gateway ended: nobody knows how far it came.
    async fn resume(&mut self, stop: &CancellationToken) -> Result<(), Over> {
        let restored = loop {
            let restored = async {
                self.outlet.commit(vec![Change::SessionKey(SESSION_KEY)]).await?;
                self.outlet.restore().await
            };
            match restored.await {
                Ok(restored) => break restored,
                Err(error) => pause(stop, error, 1).await?,
            }
        };
        for (topic, age) in restored.paced {
            self.rates.entry(topic).or_default().note(age);
        }
        let mut endings = Vec::new();
        for begun in restored.in_flight {
            let packet_id = Some(begun.packet_id);
            for row in &begun.rows {
                let reason = "the gateway ended while it wrote: whether it was carried out is not known".to_owned();
                let (id, asked) = self.reread(row);
                endings.push(self.ending(row, &id, asked.as_ref(), packet_id, &End::Unknown { reason, read: None }));
            }
        }
        self.give_all(endings, stop).await
    }

    /// The id of a request that was judged before, and the value.
    fn reread(&self, row: &Queued) -> (Json, Option<Value>) {
        let Body::Bytes(body) = &row.message.body else { return (Json::Null, None) };
        let Ok(Request { value, id, .. }) = request::parse(body) else { return (Json::Null, None) };
        let act = self.layout.targets.get(&row.message.topic).and_then(|target| target.act(value.as_ref()).ok());
        (id, act.and_then(|act| act.value().cloned()))
    }

    async fn step(&mut self, stop: &CancellationToken) -> Result<(), Over> {
        tokio::select! {
            biased;
            () = stop.cancelled() => self.finish(stop).await,
            event = self.events.recv() => match event {
                Some(event) => self.note(event, stop).await,
                // The lines hold the senders: they have ended.
                None => {
                    stop.cancelled().await;
                    Err(Over::Stop)
                }
            },
            rows = self.outlet.next(REQUESTS, REQUEST_BYTES) => match rows {
                Ok(rows) => self.judge(rows, stop).await,
                Err(error) => pause(stop, error, 1).await,
            },
        }
    }

    /// Answers what lines still bring to an end; what has not begun waits for the next start.
    async fn finish(&mut self, stop: &CancellationToken) -> Result<(), Over> {
        while let Some(event) = self.events.recv().await {
            if matches!(event, FromLine::Done { .. }) {
                self.note(event, stop).await?;
            }
        }
        Err(Over::Stop)
    }

    /// Gives requests to their lines; answers those that are not carried out.
    async fn judge(&mut self, rows: Vec<Queued>, stop: &CancellationToken) -> Result<(), Over> {
        let mut endings = Vec::new();
        for row in rows {
            if let Err((id, asked, end)) = self.take(&row, false) {
                endings.push(self.ending(&row, &id, asked.as_ref(), None, &end));
            }
        }
        self.give_all(endings, stop).await
    }

    /// Gives a request to its line, or says how it ends at once. One that was given to another line before is counted
    /// against `per_minute` already.
    fn take(&mut self, row: &Queued, is_counted: bool) -> Result<(), (Json, Option<Value>, End)> {
        let refused =
            |id: Json, kind: &'static str, reason: String| Err((id, None, End::Refused(Unwritable { kind, reason })));
        let Body::Bytes(body) = &row.message.body else {
            return refused(Json::Null, "request", "a reading asks for nothing".to_owned());
        };
        let parsed = request::parse(body);
        let Some(target) = self.layout.targets.get(&row.message.topic) else {
            let id = parsed.map_or_else(|(id, _)| id, |request| request.id);
            return refused(id, "no-point", "there is no such point any more".to_owned());
        };
        let Some(bounds) = target.bounds() else {
            let id = parsed.map_or_else(|(id, _)| id, |request| request.id);
            return Err((id, None, End::Refused(target.not_writable())));
        };
        let Request { value, id, expires } = match parsed {
            Ok(request) => request,
            Err((id, why)) => return Err((id, None, End::Refused(why))),
        };
        let act = match target.act(value.as_ref()) {
            Ok(act) => act,
            Err(why) => return Err((id, None, End::Refused(why))),
        };
        let expiry = expires.map_or(bounds.expiry, |expires| expires.min(bounds.expiry));
        let Some(left) = left(row, expiry, self.intake.now().mono_ms) else {
            return Err((id, act.value().cloned(), End::Expired));
        };
        let (line, unit) = (target.line, target.unit);
        if self.open.values().filter(|open| open.line == line).count() >= LANE_MAX {
            return refused(id, "too-many", format!("{LANE_MAX} writes wait for this line already"));
        }
        let rate = self.rates.entry(row.message.topic.clone()).or_default();
        if !is_counted && !rate.take(bounds.per_minute.get(), self.started.elapsed()) {
            let reason = format!("more than {} writes in a minute (`per_minute`)", bounds.per_minute);
            return refused(id, "too-many", reason);
        }
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let order = Order { ticket, unit, act, expires: Instant::now() + left };
        match self.told(line, ToLine::Write(Box::new(order.clone()))) {
            Told::Heard => {}
            // It has ended: at a stop this waits for the next start, at a change for the line that has the point then.
            Told::Gone => debug!(line; "A write finds its line ended, and waits for the next"),
            Told::Full => {
                return refused(id, "too-many", "too many writes wait for this line already".to_owned());
            }
        }
        self.open.insert(ticket, Open { line, row: row.clone(), id, order, packet_id: None });
        Ok(())
    }

    /// Tells a line something; false when it does not listen, or not fast enough.
    fn tell(&self, line: usize, what: ToLine) -> bool {
        self.told(line, what) == Told::Heard
    }

    fn told(&self, line: usize, what: ToLine) -> Told {
        match self.layout.inboxes.get(&line).map(|inbox| inbox.try_send(what)) {
            Some(Ok(())) => Told::Heard,
            Some(Err(TrySendError::Full(_))) => Told::Full,
            Some(Err(TrySendError::Closed(_))) | None => Told::Gone,
        }
    }

    async fn note(&mut self, event: FromLine, stop: &CancellationToken) -> Result<(), Over> {
        match event {
            FromLine::Ask { line, ticket } => {
                let answer = if self.begin(ticket, stop).await? { ToLine::Begin(ticket) } else { ToLine::Drop(ticket) };
                if !self.tell(line, answer) {
                    warn!(line; "A line does not hear what it may write");
                }
                Ok(())
            }
            FromLine::Done { line, ticket, end } => match self.open.remove(&ticket) {
                Some(open) => {
                    let ending = self.ending(&open.row, &open.id, open.order.act.value(), open.packet_id, &end);
                    self.give_all(vec![ending], stop).await
                }
                None => {
                    debug!(line, ticket; "A write ended that nobody waits for");
                    Ok(())
                }
            },
            FromLine::Started { line } => self.restart(line, stop).await,
            FromLine::Lines(layout) => self.move_to(*layout, stop).await,
        }
    }

    /// Other lines run: what was given to one that is gone, and has not begun, is judged anew; the rest is in doubt.
    async fn move_to(&mut self, layout: Layout, stop: &CancellationToken) -> Result<(), Over> {
        self.layout = layout;
        let now = self.started.elapsed();
        self.rates.retain(|_, rate| !rate.is_unused(now));
        let is_gone = |open: &Open| !self.layout.inboxes.contains_key(&open.line);
        let gone: Vec<Ticket> = self.open.iter().filter(|(_, open)| is_gone(open)).map(|(ticket, _)| *ticket).collect();
        let mut endings = Vec::new();
        for ticket in gone {
            let Some(Open { row, id, order, packet_id, .. }) = self.open.remove(&ticket) else { continue };
            let ended = match packet_id {
                Some(_) => {
                    let reason =
                        "its line was changed while it wrote: whether it was carried out is not known".to_owned();
                    Err((id, order.act.value().cloned(), End::Unknown { reason, read: None }))
                }
                None => self.take(&row, true),
            };
            if let Err((id, asked, end)) = ended {
                endings.push(self.ending(&row, &id, asked.as_ref(), packet_id, &end));
            }
        }
        self.give_all(endings, stop).await
    }

    /// Writes down that a write begins; false when nobody waits for it any more.
    async fn begin(&mut self, ticket: Ticket, stop: &CancellationToken) -> Result<bool, Over> {
        let Some(open) = self.open.get(&ticket) else { return Ok(false) };
        let bounds = self.layout.targets.get(&open.row.message.topic).and_then(Target::bounds);
        if open.packet_id.is_some() || bounds.is_some_and(|bounds| bounds.is_idempotent) {
            return Ok(true);
        }
        let is_used = |id: &u16| self.open.values().any(|open| open.packet_id == Some(*id));
        let Some(packet_id) = (1..=u16::MAX).find(|id| !is_used(id)) else { return Ok(false) };
        let (rows, encoding) = (vec![open.row.sequence], open.row.encoding.clone());
        let admit = Change::Admit { packet_id, rows, order: ticket, encoding };
        let changes = vec![admit, Change::Pace(open.row.message.topic.clone())];
        let mut attempts = 0;
        while let Err(error) = self.outlet.commit(changes.clone()).await {
            attempts += 1;
            pause(stop, error, attempts).await?;
        }
        if let Some(open) = self.open.get_mut(&ticket) {
            open.packet_id = Some(packet_id);
        }
        Ok(true)
    }

    /// A line was started again after a fault of ours: what it had begun is in doubt, the rest is given to it anew.
    async fn restart(&mut self, line: usize, stop: &CancellationToken) -> Result<(), Over> {
        let of_line: Vec<Ticket> =
            self.open.iter().filter(|(_, open)| open.line == line).map(|(ticket, _)| *ticket).collect();
        let mut endings = Vec::new();
        for ticket in of_line {
            let Some(open) = self.open.get(&ticket) else { continue };
            let has_begun = open.packet_id.is_some();
            if !has_begun && self.told(line, ToLine::Write(Box::new(open.order.clone()))) != Told::Full {
                continue;
            }
            let Some(open) = self.open.remove(&ticket) else { continue };
            let reason = "the line failed while it wrote: whether it was carried out is not known".to_owned();
            let end = End::Unknown { reason, read: None };
            endings.push(self.ending(&open.row, &open.id, open.order.act.value(), open.packet_id, &end));
        }
        self.give_all(endings, stop).await
    }

    /// What is to be said of a request and to be forgotten with that; counts it.
    fn ending(&self, row: &Queued, id: &Json, asked: Option<&Value>, packet_id: Option<u16>, end: &End) -> Ending {
        let mut changes = vec![Change::Settle { sequence: row.sequence, verdict: Verdict::Delivered }];
        changes.extend(packet_id.map(|packet_id| Change::Forget { packet_id }));
        let was_tried = matches!(end, End::Written { .. } | End::Failed { .. } | End::Unknown { .. });
        if was_tried && packet_id.is_none() {
            changes.push(Change::Pace(row.message.topic.clone()));
        }
        let target = self.layout.targets.get(&row.message.topic);
        if let Some(target) = target {
            count(&target.health, end);
        }
        let now = self.intake.now();
        let about = About {
            device: target.map_or("", |target| &target.device),
            name: target.map_or("", |target| &target.name),
            kind: target.map_or(Kind::Point, Target::kind),
            request: &row.id.to_string(),
            id,
            asked,
            ts: &rfc3339(now.wall_ms),
        };
        let body = request::answer(about, end);
        let asked_for = row.message.properties.as_ref();
        let correlation_data = asked_for.and_then(|properties| properties.correlation_data.clone());
        let properties =
            correlation_data.map(|data| Box::new(Properties { correlation_data: Some(data), ..Properties::default() }));
        let message = |topic: Topic| Message {
            topic,
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: properties.clone(),
            body: Body::Bytes(body.clone()),
            origin: Origin::Gateway,
            received: now,
        };
        let result = result_topic(&row.message.topic);
        // A cloud's response topic is one of its own, unless a rule takes answers from a local one to there.
        let is_here = |topic: &Topic| match &row.message.origin {
            Origin::Client(_) => true,
            Origin::Uplink(uplink) => answers::is_local(uplink, topic.as_str()),
            Origin::Field | Origin::Gateway => false,
        };
        let response = asked_for.and_then(|properties| properties.response_topic.clone());
        let response =
            response.filter(is_here).filter(|topic| !is_reserved(topic.as_str()) && Some(topic) != result.as_ref());
        Ending { changes, messages: result.into_iter().chain(response).map(message).collect() }
    }

    /// Gives answers, however long that takes. What an answer says is on disk with the end of its request, or neither is.
    async fn give_all(&mut self, mut endings: Vec<Ending>, stop: &CancellationToken) -> Result<(), Over> {
        let mut attempts = 0;
        while !endings.is_empty() {
            let (left, error) = self.give(endings).await;
            endings = left;
            if let Some(error) = error {
                attempts += 1;
                match error {
                    AcceptError::Queue(error) => pause(stop, error, attempts).await?,
                    AcceptError::Router(_) => return Err(Over::Failed(error)),
                }
            }
        }
        Ok(())
    }

    /// Gives back those that were not taken.
    async fn give(&self, endings: Vec<Ending>) -> (Vec<Ending>, Option<AcceptError>) {
        let (mut given, mut left, mut failure) = (Vec::new(), Vec::new(), None);
        for ending in endings {
            match self.intake.submit_with(&self.outlet, ending.changes.clone(), ending.messages.clone()).await {
                Ok(tickets) => given.push((ending, tickets)),
                Err(error) => {
                    left.push(ending);
                    failure = Some(error);
                }
            }
        }
        for (ending, tickets) in given {
            for (place, ticket) in tickets.into_iter().enumerate() {
                match ticket.outcome().await {
                    Ok(_) => {}
                    // The first stands for the end of the request; the other is a courtesy.
                    Err(error) if place == 0 => {
                        left.push(ending.clone());
                        failure = Some(error);
                    }
                    Err(error) => debug!(error:% = chain(&error); "A response was not taken"),
                }
            }
        }
        (left, failure)
    }
}

/// Before the queue is asked once more.
async fn pause(stop: &CancellationToken, error: AppendError, attempts: u32) -> Result<(), Over> {
    if error == AppendError::Stopped {
        return Err(Over::Failed(AcceptError::Queue(error)));
    }
    if attempts == 1 {
        debug!(error:% = error; "The queue did not take what became of a write, and is asked again");
    }
    tokio::select! {
        () = stop.cancelled() => Err(Over::Stop),
        () = sleep(REFUSED.after(attempts)) => Ok(()),
    }
}

/// How much of its time a request has left.
fn left(row: &Queued, expiry: Duration, now_mono_ms: u64) -> Option<Duration> {
    let left = expiry.checked_sub(Duration::from_millis(row.age_ms?))?;
    let own = row.expires_mono_ms.map(|at| Duration::from_millis(at.saturating_sub(now_mono_ms)));
    let left = own.map_or(left, |own| left.min(own));
    (!left.is_zero()).then_some(left)
}

fn count(health: &DeviceHealth, end: &End) {
    health.count_write(|counts| match end {
        End::Written { .. } => counts.written += 1,
        End::Refused(why) => *counts.refused.entry(why.kind).or_default() += 1,
        End::Expired => counts.expired += 1,
        End::Failed { kind, .. } => *counts.failed.entry(kind).or_default() += 1,
        End::Unknown { .. } => counts.unknown += 1,
    });
}
