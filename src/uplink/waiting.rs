//! Rows that are not in flight: which of them goes next, and which must wait for what. Pure.
//!
//! Promises: first attempts leave in the order of the queue; a refused row waits without holding up others, except
//! where `order = "strict"` asks for just that; a route that the cloud does not allow is probed with one message and
//! growing pauses, and its messages are never given up.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::compose::weight;
use crate::message::{Sequence, Topic};
use crate::queue::Queued;

/// First and longest pause of a row that the cloud refused for the moment.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(5 * 60);

/// First and longest pause of everything after "quota exceeded".
const QUOTA_FIRST: Duration = Duration::from_millis(100);
const QUOTA_MAX: Duration = Duration::from_secs(30);

/// First and longest pause of a topic that the cloud does not allow.
const HOLD_FIRST: Duration = Duration::from_secs(10);
const HOLD_MAX: Duration = Duration::from_secs(5 * 60);

/// A row on its way: the row, and how often the cloud refused it for the moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// The row.
    pub row: Queued,
    /// Refusals so far.
    pub refusals: u32,
}

impl Attempt {
    /// A row that was never tried.
    pub fn first(row: Queued) -> Attempt {
        Attempt { row, refusals: 0 }
    }
}

#[derive(Debug)]
struct Hold {
    rows: BTreeMap<Sequence, Attempt>,
    pause: Duration,
    probe_at: Duration,
    /// The row that is trying.
    probe: Option<Sequence>,
}

/// The rows of one uplink that wait in memory.
#[derive(Debug, Default)]
pub struct Waiting {
    ready: VecDeque<Attempt>,
    /// By when they may go, then by place.
    again: BTreeMap<(Duration, Sequence), Attempt>,
    held: HashMap<Topic, Hold>,
    /// Topics of strict rules with a row under way, and the rows behind it.
    strict: HashMap<Topic, VecDeque<Attempt>>,
    paused_until: Duration,
    quota_pause: Duration,
    count: usize,
    bytes: usize,
}

impl Waiting {
    /// How many rows wait here.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The memory they hold, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Rows that wait for something else than room in the window.
    pub fn stuck(&self) -> usize {
        self.count.saturating_sub(self.ready.len())
    }

    /// A row from the queue, behind all that came before.
    pub fn push(&mut self, row: Queued) {
        self.add(&row);
        self.ready.push_back(Attempt::first(row));
    }

    /// A row that was taken and did not leave after all, or must go again without its being at fault.
    pub fn put_back(&mut self, attempt: Attempt) {
        self.add(&attempt.row);
        self.again.insert((Duration::ZERO, attempt.row.sequence), attempt);
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
        self.add(&attempt.row);
        self.again.insert((now + pause, attempt.row.sequence), attempt);
    }

    /// Not allowed: the topic is held. True when nothing was held before, so that the alarm is raised once.
    pub fn hold(&mut self, now: Duration, attempt: Attempt) -> bool {
        let is_new = self.held.is_empty();
        self.add(&attempt.row);
        let topic = attempt.row.encoding.topic.clone();
        let hold = self.held.entry(topic).or_insert_with(|| Hold {
            rows: BTreeMap::new(),
            pause: HOLD_FIRST,
            probe_at: now + HOLD_FIRST,
            probe: None,
        });
        // Of a window full of refusals only the probe's own lengthens the pause.
        if hold.probe == Some(attempt.row.sequence) {
            hold.probe = None;
            hold.pause = (hold.pause * 2).min(HOLD_MAX);
            hold.probe_at = now + hold.pause;
        }
        hold.rows.insert(attempt.row.sequence, attempt);
        is_new
    }

    /// The next row that may leave at `now`.
    pub fn take(&mut self, now: Duration) -> Option<Attempt> {
        if now < self.paused_until {
            return None;
        }
        let attempt = loop {
            let attempt = self.take_again(now).or_else(|| self.take_probe(now)).or_else(|| self.take_ready())?;
            match self.held.get_mut(&attempt.row.encoding.topic) {
                Some(hold) if hold.probe != Some(attempt.row.sequence) => {
                    hold.rows.insert(attempt.row.sequence, attempt);
                }
                _ => break attempt,
            }
        };
        self.subtract(&attempt.row);
        Some(attempt)
    }

    /// A row of `topic` has ended: the cloud has it, or it was given up.
    pub fn ended(&mut self, row: &Queued, is_delivered: bool) {
        let topic = &row.encoding.topic;
        if is_delivered {
            self.quota_pause = Duration::ZERO;
            if let Some(hold) = self.held.remove(topic) {
                self.again.extend(hold.rows.into_iter().map(|(place, attempt)| ((Duration::ZERO, place), attempt)));
            }
        } else if let Some(hold) = self.held.get_mut(topic).filter(|hold| hold.probe == Some(row.sequence)) {
            // The probe itself was given up (expired, too large): another one has to find out.
            hold.probe = None;
            if hold.rows.is_empty() {
                self.held.remove(topic);
            }
        }
        if row.strict_order
            && let Some(behind) = self.strict.get_mut(topic)
        {
            match behind.pop_front() {
                Some(next) => {
                    self.again.insert((Duration::ZERO, next.row.sequence), next);
                }
                None => {
                    self.strict.remove(topic);
                }
            }
        }
    }

    /// When something that waits for time may go; `None` when nothing does.
    pub fn next_at(&self, now: Duration) -> Option<Duration> {
        if now < self.paused_until {
            return Some(self.paused_until);
        }
        let again = self.again.keys().next().map(|(at, _)| *at);
        let probe = self.held.values().filter(|hold| hold.probe.is_none()).map(|hold| hold.probe_at).min();
        again.into_iter().chain(probe).min().filter(|at| *at > now)
    }

    fn take_again(&mut self, now: Duration) -> Option<Attempt> {
        let entry = self.again.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    fn take_probe(&mut self, now: Duration) -> Option<Attempt> {
        let due = self.held.values_mut().find(|hold| hold.probe.is_none() && hold.probe_at <= now)?;
        let (_place, attempt) = due.rows.pop_first()?;
        due.probe = Some(attempt.row.sequence);
        Some(attempt)
    }

    /// The next fresh row that no strict topic holds up.
    fn take_ready(&mut self) -> Option<Attempt> {
        loop {
            let attempt = self.ready.pop_front()?;
            if !attempt.row.strict_order {
                return Some(attempt);
            }
            match self.strict.get_mut(&attempt.row.encoding.topic) {
                Some(behind) => behind.push_back(attempt),
                None => {
                    self.strict.insert(attempt.row.encoding.topic.clone(), VecDeque::new());
                    return Some(attempt);
                }
            }
        }
    }

    fn add(&mut self, row: &Queued) {
        self.count += 1;
        self.bytes += weight(row);
    }

    fn subtract(&mut self, row: &Queued) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(weight(row));
    }
}
