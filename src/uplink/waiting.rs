//! Rows that are not in flight: which of them goes next, and which must wait for what. Pure.
//!
//! Promises: first attempts leave in the order of the queue; a refused row waits without holding up others, except
//! where `order = "strict"` asks for just that; a route that the cloud does not allow is probed with one message and
//! growing pauses, and its messages are never given up; a batch is of one topic, rule and QoS, within the rule's bounds of
//! readings, bytes and time, and is a unit from then on. What is stuck is kept here by the handful only: the rest is let
//! go of, stays in the queue, and is asked for again when it may leave, so that no backlog of one topic stops another.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::compose::{bytes_in_batch, fix_time, is_kin, weight, written};
use crate::config::Compression;
use crate::message::{Sequence, Stamp, Topic};
use crate::payload::{COMPRESSION_BYTES_MAX, is_additive};
use crate::queue::{Batching, Queued};

/// First and longest pause of a row that the cloud refused for the moment.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(5 * 60);

/// First and longest pause of everything after "quota exceeded".
const QUOTA_FIRST: Duration = Duration::from_millis(100);
const QUOTA_MAX: Duration = Duration::from_secs(30);

/// First and longest pause of a topic that the cloud does not allow.
const HOLD_FIRST: Duration = Duration::from_secs(10);
const HOLD_MAX: Duration = Duration::from_secs(5 * 60);

/// Rows that are stuck for one reason, over all topics: as many and as large ones stay in memory.
const STUCK: Load = Load { count: 256, bytes: 512 * 1024 };

/// Of one held topic, and behind one row of a strict topic.
const HELD_EACH_MAX: usize = 8;
const BEHIND_EACH_MAX: usize = 64;

/// First pause after which refused rows that were let go of are asked for again.
const REWIND_FIRST: Duration = Duration::from_secs(30);

/// Live first, after so many rows of the live lane one of the backlog goes.
const LIVE_IN_A_ROW: u32 = 4;

/// Readings that wait for others to travel with them, over all topics; beyond it batches leave before their time.
const FORMING: Load = Load { count: 4096, bytes: 4 * 1024 * 1024 };

/// The brackets of an array are one byte more than its joints.
const FRAME_BYTES: usize = 1;

/// By how much worse than those before the next ones of a compressed batch may be.
const RATE_MARGIN: f64 = 1.25;

/// What travels as one message: a row or a batch, and how often the cloud refused it for the moment. A batch has the
/// place of its first row.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// The row; of a batch the first.
    pub row: Queued,
    /// The others of a batch, in order.
    pub others: Vec<Queued>,
    /// Refusals so far.
    pub refusals: u32,
}

impl Attempt {
    /// A row that was never tried.
    pub fn first(row: Queued) -> Attempt {
        Attempt { row, others: Vec::new(), refusals: 0 }
    }

    /// What was admitted together; `None` = nothing of it is left.
    pub fn batch(rows: Vec<Queued>) -> Option<Attempt> {
        let mut rows = rows.into_iter();
        let row = rows.next()?;
        Some(Attempt { row, others: rows.collect(), refusals: 0 })
    }

    /// All rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = &Queued> {
        std::iter::once(&self.row).chain(&self.others)
    }

    /// How many there are, and how many of them had been delivered before.
    pub fn counts(&self) -> (u64, u64) {
        self.rows().fold((0, 0), |(count, again), row| (count + 1, again + u64::from(row.is_again)))
    }

    /// Their places.
    pub fn sequences(&self) -> impl Iterator<Item = Sequence> {
        self.rows().map(|row| row.sequence)
    }

    /// The memory that they hold, roughly.
    pub fn weight(&self) -> usize {
        self.rows().map(weight).sum()
    }

    /// A batch as two; a single row has no second half.
    pub fn halved(mut self) -> (Attempt, Option<Attempt>) {
        if self.others.is_empty() {
            return (self, None);
        }
        // Of three the first goes alone.
        let mut second = self.others.split_off(self.others.len() / 2);
        let row = second.remove(0);
        (Attempt { refusals: 0, ..self }, Some(Attempt { row, others: second, refusals: 0 }))
    }
}

/// A batch that has room.
///
/// How long a message gets is known of a plain array without writing it; of every other form only the most that each
/// reading adds. So it is written now and then to see, the oftener the fuller it gets. Compressed, what is yet to come
/// counts at the rate of what is in there already; where it turns out to need more, the last ones go with the next batch.
#[derive(Debug)]
struct Forming {
    attempt: Attempt,
    /// Rows of which it is known that they fit, and how long they are.
    checked: usize,
    checked_bytes: usize,
    /// What those after them add, not compressed.
    added_bytes: usize,
    /// What an added byte is likely to take.
    rate: f64,
    /// All of it, not compressed.
    plain_bytes: usize,
    /// It has been written.
    is_checked: bool,
    due: Duration,
}

impl Forming {
    fn new(attempt: Attempt, bytes: usize, due: Duration) -> Forming {
        Forming {
            attempt,
            checked: 1,
            checked_bytes: bytes + FRAME_BYTES,
            added_bytes: 0,
            rate: 1.0,
            plain_bytes: bytes,
            is_checked: false,
            due,
        }
    }

    fn limit(&self) -> usize {
        let limit = self.attempt.row.batching.map_or(0, |Batching { limits, .. }| limits.bytes.get());
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// Whether `row` may travel with these: of one rule and QoS, and told in the same way.
    fn is_kin(&self, row: &Queued) -> bool {
        let first = &self.attempt.row;
        first.batching.is_some_and(|Batching { limits, .. }| {
            self.attempt.others.len() + 1 < usize::from(limits.readings.get())
                && first.batching == row.batching
                && first.qos == row.qos
                && first.encoding == row.encoding
                && is_kin(&self.attempt, row, limits.within)
        })
    }

    /// Whether there is room for `bytes` more.
    fn has_room(&mut self, bytes: usize) -> bool {
        if self.is_likely_to_fit(bytes) {
            return true;
        }
        if (self.added_bytes == 0 && self.is_checked) || is_additive(&self.attempt.row.encoding.payload) {
            return false;
        }
        self.check();
        // The last hundredths are not worth a look each.
        self.is_likely_to_fit(bytes.max(self.limit() / 64))
    }

    fn is_likely_to_fit(&self, bytes: usize) -> bool {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "at most some MiB, and the rate lies between 0 and 1"
        )]
        let likely = ((self.added_bytes + bytes) as f64 * self.rate).ceil() as usize;
        self.checked_bytes + likely <= self.limit()
    }

    fn push(&mut self, row: Queued, bytes: usize) {
        self.attempt.others.push(row);
        self.added_bytes += bytes;
        self.plain_bytes += bytes;
    }

    /// Writes it to see.
    fn check(&mut self) {
        self.is_checked = true;
        let payload = &self.attempt.row.encoding.payload;
        let bytes = written(&self.attempt.row, &self.attempt.others).0.len();
        if bytes > self.limit() {
            // Full, but for the last ones.
            self.checked_bytes = self.checked_bytes.max(self.limit());
            return;
        }
        if payload.compression != Compression::None {
            #[expect(clippy::cast_precision_loss, reason = "at most some MiB")]
            let rate = bytes as f64 / self.plain_bytes.max(1) as f64;
            self.rate = (rate * RATE_MARGIN).min(1.0);
        }
        self.checked = 1 + self.attempt.others.len();
        self.checked_bytes = bytes;
        self.added_bytes = 0;
    }

    /// What fits, and what was too much.
    fn cut(mut self) -> (Attempt, Vec<Queued>) {
        // What counts in full cannot be too much.
        if self.added_bytes > 0 && self.rate < 1.0 {
            self.check();
        }
        if self.added_bytes == 0 || self.rate >= 1.0 {
            return (self.attempt, Vec::new());
        }
        let count = 1 + self.attempt.others.len();
        let (mut fits, mut too_many) = (self.checked, count);
        while too_many - fits > 1 + count / 32 {
            let middle = usize::midpoint(fits, too_many);
            let others = self.attempt.others.get(..middle - 1).unwrap_or_default();
            let is_short = written(&self.attempt.row, others).0.len() <= self.limit();
            if is_short { fits = middle } else { too_many = middle }
        }
        let surplus = self.attempt.others.split_off(fits.saturating_sub(1));
        (self.attempt, surplus)
    }
}

/// How many rows, and roughly the memory they hold.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    count: usize,
    bytes: usize,
}

impl Load {
    fn add(&mut self, attempt: &Attempt) {
        self.count += 1;
        self.bytes += attempt.weight();
    }

    fn subtract(&mut self, attempt: &Attempt) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(attempt.weight());
    }

    fn is_beyond(self, other: Load) -> bool {
        self.count > other.count || self.bytes > other.bytes
    }
}

#[derive(Debug)]
struct Hold {
    rows: BTreeMap<Sequence, Attempt>,
    /// From this place on its rows were let go of.
    gone_from: Option<Sequence>,
    /// They were asked for again, because a probe is due and none is here.
    is_asked: bool,
    pause: Duration,
    probe_at: Duration,
    /// The row that is trying.
    probe: Option<Sequence>,
}

impl Hold {
    fn new(now: Duration) -> Hold {
        Hold {
            rows: BTreeMap::new(),
            gone_from: None,
            is_asked: false,
            pause: HOLD_FIRST,
            probe_at: now + HOLD_FIRST,
            probe: None,
        }
    }

    /// Of a window full of refusals only the probe's own lengthens the pause.
    fn pause_probe(&mut self, now: Duration, sequence: Sequence) {
        if self.probe == Some(sequence) {
            self.probe = None;
            self.is_asked = false;
            self.pause = (self.pause * 2).min(HOLD_MAX);
            self.probe_at = now + self.pause;
        }
    }

    fn can_probe(&self) -> bool {
        self.probe.is_none() && (!self.rows.is_empty() || (self.gone_from.is_some() && !self.is_asked))
    }
}

/// The rows behind the one row of a strict topic that is under way.
#[derive(Debug, Default)]
struct Behind {
    rows: VecDeque<Attempt>,
    /// All that came after these was let go of.
    is_cut: bool,
}

/// The rows of one uplink that wait in memory.
#[derive(Debug, Default)]
pub struct Waiting {
    ready: VecDeque<Attempt>,
    /// The same of the live lane, which is only there where it goes first.
    live: VecDeque<Attempt>,
    /// How many of those have left since the last one of the backlog.
    live_in_a_row: u32,
    /// By when they may go, then by place.
    again: BTreeMap<(Duration, Sequence), Attempt>,
    held: HashMap<Topic, Hold>,
    /// Topics of strict rules with a row under way.
    strict: HashMap<Topic, Behind>,
    ready_load: Load,
    live_load: Load,
    again_load: Load,
    held_load: Load,
    behind_load: Load,
    /// By topic at the cloud: readings that have left `ready` and wait for others.
    forming: HashMap<Topic, Forming>,
    forming_due: BTreeMap<(Duration, Sequence), Topic>,
    forming_load: Load,
    /// Rows that are not here any more and are still in the queue.
    let_go: Vec<Sequence>,
    /// Some of them may leave now.
    must_rewind: bool,
    rewind_at: Option<Duration>,
    rewind_pause: Duration,
    paused_until: Duration,
    quota_pause: Duration,
}

impl Waiting {
    /// How many rows wait for nothing but room in the window.
    pub fn ahead(&self) -> usize {
        self.ready.len()
    }

    /// The memory that these hold, roughly.
    pub fn ahead_bytes(&self) -> usize {
        self.ready_load.bytes
    }

    /// The same of the live lane.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// The memory that these hold, roughly.
    pub fn live_bytes(&self) -> usize {
        self.live_load.bytes
    }

    /// Rows that wait for something else.
    pub fn stuck(&self) -> usize {
        self.again_load.count + self.held_load.count + self.behind_load.count
    }

    /// Rows that were let go of since the last call: they are in the queue only.
    pub fn take_let_go(&mut self) -> Vec<Sequence> {
        std::mem::take(&mut self.let_go)
    }

    /// Whether rows that were let go of may leave at `now`: the queue has to be read from its oldest row again.
    /// Forgets it. What was read ahead is let go of too, or it would leave before older rows of its topic.
    pub fn take_rewind(&mut self, now: Duration) -> bool {
        if self.rewind_at.is_some_and(|at| at <= now) {
            self.rewind_at = None;
            self.must_rewind = true;
        }
        for hold in self.held.values_mut().filter(|hold| hold.rows.is_empty() && hold.can_probe()) {
            if hold.probe_at <= now {
                hold.is_asked = true;
                self.must_rewind = true;
            }
        }
        if self.must_rewind {
            self.let_go.extend(self.ready.drain(..).map(|attempt| attempt.row.sequence));
            self.ready_load = Load::default();
            let forming = self.forming.drain().flat_map(|(_, batch)| batch.attempt.sequences().collect::<Vec<_>>());
            self.let_go.extend(forming);
            self.forming_due.clear();
            self.forming_load = Load::default();
        }
        std::mem::take(&mut self.must_rewind)
    }

    /// A row from the queue, behind all that came before.
    pub fn push(&mut self, row: Queued) {
        let attempt = Attempt::first(row);
        self.ready_load.add(&attempt);
        self.ready.push_back(attempt);
    }

    /// A row of the live lane, behind all of it that came before.
    pub fn push_live(&mut self, row: Queued) {
        let attempt = Attempt::first(row);
        self.live_load.add(&attempt);
        self.live.push_back(attempt);
    }

    /// A row that was taken and did not leave after all, or must go again without its being at fault.
    pub fn put_back(&mut self, attempt: Attempt) {
        self.insert_again(Duration::ZERO, attempt);
    }

    /// A batch was refused for good, and is not at fault as a whole: its halves go on their own.
    pub fn put_back_halves(&mut self, first: Attempt, second: Attempt) {
        let behind = self.strict.get_mut(&second.row.encoding.topic).filter(|_| second.row.strict_order);
        match behind {
            Some(behind) => {
                self.behind_load.add(&second);
                behind.rows.push_front(second);
            }
            None => self.put_back(second),
        }
        self.put_back(first);
    }

    /// A row of a strict topic is in flight already: others of the topic stay behind it.
    pub fn occupy(&mut self, row: &Queued) {
        self.strict.entry(row.encoding.topic.clone()).or_default();
    }

    /// Quota exceeded: everything pauses, this row goes again first.
    pub fn refuse_quota(&mut self, now: Duration, attempt: Attempt) {
        // Several refusals of one burst are one event: only the first of them lengthens the pause.
        if self.paused_until <= now {
            self.quota_pause = (self.quota_pause * 2).clamp(QUOTA_FIRST, QUOTA_MAX);
            self.paused_until = now + self.quota_pause;
        }
        self.put_back(attempt);
    }

    /// Refused for the moment: this row pauses, others pass.
    pub fn refuse_now(&mut self, now: Duration, mut attempt: Attempt) {
        let pause = AGAIN_FIRST.saturating_mul(1 << attempt.refusals.min(16)).min(AGAIN_MAX);
        attempt.refusals = attempt.refusals.saturating_add(1);
        let mut load = self.again_load;
        load.add(&attempt);
        // The row of a strict topic stays: those behind it wait for its end.
        if load.is_beyond(STUCK) && !attempt.row.strict_order {
            if self.rewind_at.is_none() {
                self.rewind_pause = (self.rewind_pause * 2).clamp(REWIND_FIRST, AGAIN_MAX);
                self.rewind_at = Some(now + self.rewind_pause);
            }
            return self.let_go.extend(attempt.sequences());
        }
        self.insert_again(now + pause, attempt);
    }

    /// Not allowed: the topic is held. True when nothing was held before, so that the alarm is raised once.
    pub fn hold(&mut self, now: Duration, attempt: Attempt) -> bool {
        let is_new = self.held.is_empty();
        let topic = attempt.row.encoding.topic.clone();
        let hold = self.held.entry(topic).or_insert_with(|| Hold::new(now));
        hold.pause_probe(now, attempt.row.sequence);
        self.keep_held(attempt);
        is_new
    }

    /// The topic is held over a row that stays in flight and is no probe any more. True as for `hold`.
    pub fn hold_topic(&mut self, now: Duration, row: &Queued) -> bool {
        let is_new = self.held.is_empty();
        let hold = self.held.entry(row.encoding.topic.clone()).or_insert_with(|| Hold::new(now));
        hold.pause_probe(now, row.sequence);
        is_new
    }

    /// Whether messages of the topic wait because the cloud does not allow them.
    pub fn is_held(&self, topic: &Topic) -> bool {
        self.held.contains_key(topic)
    }

    /// The oldest of the rows that wait for nothing but room in the window, if `take` would come to it.
    pub fn first_ready(&self, now: Duration) -> Option<Sequence> {
        if now < self.paused_until || self.must_rewind {
            return None;
        }
        let forming = self.forming.values().map(|batch| batch.attempt.row.sequence);
        self.ready.front().map(|attempt| attempt.row.sequence).into_iter().chain(forming).min()
    }

    /// What may leave next at `now`. With `before`, of fresh rows only those older than it, and their batches wait for no
    /// others.
    pub fn take(&mut self, now: Duration, stamp: Stamp, before: Option<Sequence>) -> Option<Attempt> {
        if now < self.paused_until {
            return None;
        }
        loop {
            let attempt = self
                .take_again(now)
                .or_else(|| self.take_probe(now))
                .or_else(|| self.take_ready(now, stamp, before))?;
            let Some(hold) = self.held.get_mut(&attempt.row.encoding.topic) else { return Some(attempt) };
            // The oldest one that was asked for is as good a probe as one that was kept.
            if hold.probe.is_none() && hold.probe_at <= now && hold.rows.is_empty() {
                hold.probe = Some(attempt.row.sequence);
            }
            if hold.probe == Some(attempt.row.sequence) {
                return Some(attempt);
            }
            self.keep_held(attempt);
        }
    }

    /// A row of `topic` has ended: the cloud has it, or it was given up.
    pub fn ended(&mut self, row: &Queued, is_delivered: bool) {
        let topic = &row.encoding.topic;
        if is_delivered {
            self.quota_pause = Duration::ZERO;
            if let Some(hold) = self.held.remove(topic) {
                self.must_rewind |= hold.gone_from.is_some();
                for attempt in hold.rows.into_values() {
                    self.held_load.subtract(&attempt);
                    self.insert_again(Duration::ZERO, attempt);
                }
            }
        } else if let Some(hold) = self.held.get_mut(topic).filter(|hold| hold.probe == Some(row.sequence)) {
            // The probe itself was given up (expired, too large): another one has to find out.
            hold.probe = None;
            hold.is_asked = false;
            if hold.rows.is_empty() && hold.gone_from.is_none() {
                self.held.remove(topic);
            }
        }
        if !row.strict_order {
            return;
        }
        let Some(behind) = self.strict.get_mut(topic) else { return };
        if let Some(next) = behind.rows.pop_front() {
            self.behind_load.subtract(&next);
            self.insert_again(Duration::ZERO, next);
        } else {
            self.must_rewind |= behind.is_cut;
            self.strict.remove(topic);
        }
    }

    /// When something that waits for time may go; `None` when nothing does.
    pub fn next_at(&self, now: Duration) -> Option<Duration> {
        if now < self.paused_until {
            return Some(self.paused_until);
        }
        let again = self.again.keys().next().map(|(at, _)| *at);
        let forming = self.forming_due.keys().next().map(|(at, _)| *at);
        let probe = self.held.values().filter(|hold| hold.can_probe()).map(|hold| hold.probe_at).min();
        again.into_iter().chain(probe).chain(self.rewind_at).chain(forming).filter(|at| *at > now).min()
    }

    fn insert_again(&mut self, at: Duration, attempt: Attempt) {
        self.again_load.add(&attempt);
        self.again.insert((at, attempt.row.sequence), attempt);
    }

    /// Keeps a row of a held topic, or lets go of the newest ones.
    fn keep_held(&mut self, attempt: Attempt) {
        let (sequence, is_strict) = (attempt.row.sequence, attempt.row.strict_order);
        let Some(hold) = self.held.get_mut(&attempt.row.encoding.topic) else { return self.put_back(attempt) };
        if !is_strict && hold.gone_from.is_some_and(|from| sequence >= from) {
            return self.let_go.extend(attempt.sequences());
        }
        self.held_load.add(&attempt);
        hold.rows.insert(sequence, attempt);
        while (hold.rows.len() > HELD_EACH_MAX || self.held_load.is_beyond(STUCK))
            && let Some(last) = hold.rows.last_entry().filter(|last| !last.get().row.strict_order)
        {
            let (sequence, attempt) = last.remove_entry();
            self.held_load.subtract(&attempt);
            self.let_go.extend(attempt.sequences());
            hold.gone_from = Some(sequence);
        }
    }

    fn take_again(&mut self, now: Duration) -> Option<Attempt> {
        let entry = self.again.first_entry().filter(|entry| entry.key().0 <= now)?;
        let attempt = entry.remove();
        self.again_load.subtract(&attempt);
        if self.again.is_empty() && self.rewind_at.is_none() {
            self.rewind_pause = Duration::ZERO;
        }
        Some(attempt)
    }

    fn take_probe(&mut self, now: Duration) -> Option<Attempt> {
        let is_due = |hold: &&mut Hold| hold.probe.is_none() && hold.probe_at <= now && !hold.rows.is_empty();
        let due = self.held.values_mut().find(is_due)?;
        let (place, attempt) = due.rows.pop_first()?;
        self.held_load.subtract(&attempt);
        due.probe = Some(place);
        Some(attempt)
    }

    /// The next of both lanes: the live one first, but so that the backlog never stands still.
    fn next_ready(&mut self) -> Option<Attempt> {
        let is_live = self.ready.is_empty() || self.live_in_a_row < LIVE_IN_A_ROW;
        if is_live && let Some(attempt) = self.live.pop_front() {
            self.live_load.subtract(&attempt);
            self.live_in_a_row += u32::from(!self.ready.is_empty());
            return Some(attempt);
        }
        self.live_in_a_row = 0;
        let attempt = self.ready.pop_front()?;
        self.ready_load.subtract(&attempt);
        Some(attempt)
    }

    /// The next row that travels alone, or the next batch that is full or has waited for long enough.
    fn next_whole(&mut self, now: Duration, stamp: Stamp, before: Option<Sequence>) -> Option<Attempt> {
        loop {
            // What is here by now travels with it, also where nothing is waited for.
            let is_due = self.forming_due.keys().next().is_some_and(|(due, _)| {
                if self.ready.is_empty() && self.live.is_empty() { *due <= now } else { *due < now }
            });
            if is_due || self.forming_load.is_beyond(FORMING) {
                return self.take_first_forming();
            }
            let is_older = |attempt: &Attempt| before.is_none_or(|before| attempt.row.sequence < before);
            let next = match self.ready.front() {
                Some(first) if !is_older(first) => None,
                _ => self.next_ready(),
            };
            let Some(next) = next else {
                let hurried = self.forming.values().filter(|batch| before.is_some() && is_older(&batch.attempt));
                let topic = hurried.min_by_key(|batch| batch.attempt.row.sequence)?.attempt.row.encoding.topic.clone();
                return self.take_forming(&topic);
            };
            if let Some(whole) = self.gather(next, now, stamp) {
                return Some(whole);
            }
        }
    }

    /// Puts a row to those it travels with; gives back what is whole by that.
    fn gather(&mut self, mut next: Attempt, now: Duration, stamp: Stamp) -> Option<Attempt> {
        let topic = next.row.encoding.topic.clone();
        let Some(Batching { limits, .. }) = next.row.batching else {
            let Some((earlier, surplus)) = self.remove_forming(&topic) else { return Some(next) };
            self.ready_load.add(&next);
            self.ready.push_front(next);
            self.put_surplus_back(surplus);
            return Some(earlier);
        };
        // Batches are told apart by how their times are told; and these fix their lengths.
        fix_time(&mut next.row, stamp);
        let bytes = bytes_in_batch(&next.row);
        let added = next.weight();
        if let Some(batch) = self.forming.get_mut(&topic).filter(|batch| batch.is_kin(&next.row))
            && batch.has_room(bytes)
        {
            batch.push(next.row, bytes);
            self.forming_load.count += 1;
            self.forming_load.bytes += added;
            let is_full = batch.attempt.others.len() + 1 >= usize::from(limits.readings.get());
            return if is_full { self.take_forming(&topic) } else { None };
        }
        let (earlier, surplus) = self.remove_forming(&topic).unzip();
        if earlier.is_none() && limits.readings.get() == 1 {
            return Some(next);
        }
        if let Some(surplus) = surplus.filter(|surplus| !surplus.is_empty()) {
            // They are older: the next one waits behind them.
            self.ready_load.add(&next);
            self.ready.push_front(next);
            self.put_surplus_back(surplus);
            return earlier;
        }
        let due = now + limits.within;
        self.forming_due.insert((due, next.row.sequence), topic.clone());
        self.forming_load.count += 1;
        self.forming_load.bytes += added;
        let frame = if is_additive(&next.row.encoding.payload) { 0 } else { COMPRESSION_BYTES_MAX };
        self.forming.insert(topic, Forming::new(next, bytes + frame, due));
        earlier
    }

    fn take_first_forming(&mut self) -> Option<Attempt> {
        let topic = self.forming_due.values().next()?.clone();
        self.take_forming(&topic)
    }

    fn take_forming(&mut self, topic: &Topic) -> Option<Attempt> {
        let (attempt, surplus) = self.remove_forming(topic)?;
        self.put_surplus_back(surplus);
        Some(attempt)
    }

    /// A batch, and those of its rows that were too much.
    fn remove_forming(&mut self, topic: &Topic) -> Option<(Attempt, Vec<Queued>)> {
        let batch = self.forming.remove(topic)?;
        self.forming_due.remove(&(batch.due, batch.attempt.row.sequence));
        self.forming_load.count = self.forming_load.count.saturating_sub(1 + batch.attempt.others.len());
        self.forming_load.bytes = self.forming_load.bytes.saturating_sub(batch.attempt.weight());
        Some(batch.cut())
    }

    fn put_surplus_back(&mut self, surplus: Vec<Queued>) {
        for row in surplus.into_iter().rev() {
            let attempt = Attempt::first(row);
            self.ready_load.add(&attempt);
            self.ready.push_front(attempt);
        }
    }

    /// The next fresh row or batch that no strict topic holds up.
    fn take_ready(&mut self, now: Duration, stamp: Stamp, before: Option<Sequence>) -> Option<Attempt> {
        // Older rows of the same topics are on their way.
        if self.must_rewind {
            return None;
        }
        loop {
            let attempt = self.next_whole(now, stamp, before)?;
            if !attempt.row.strict_order {
                return Some(attempt);
            }
            let Some(behind) = self.strict.get_mut(&attempt.row.encoding.topic) else {
                self.strict.insert(attempt.row.encoding.topic.clone(), Behind::default());
                return Some(attempt);
            };
            let mut load = self.behind_load;
            load.add(&attempt);
            if behind.is_cut || behind.rows.len() >= BEHIND_EACH_MAX || load.is_beyond(STUCK) {
                behind.is_cut = true;
                self.let_go.extend(attempt.sequences());
            } else {
                self.behind_load = load;
                behind.rows.push_back(attempt);
            }
        }
    }
}
