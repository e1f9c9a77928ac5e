//! One question at a time to a service of the cloud: its name, its time, and the pause after a refusal. Pure.

use std::time::Duration;

/// An answer must come within this.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// First and longest pause after a refusal.
pub const PAUSE_FIRST: Duration = Duration::from_secs(10);
pub const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What was asked, and when something may be asked again.
#[derive(Debug)]
pub struct Asking<T> {
    asked: Option<(String, T, Duration)>,
    count: u32,
    not_before: Duration,
    pause: Duration,
}

impl<T> Asking<T> {
    /// Nothing was asked yet.
    pub fn new() -> Asking<T> {
        Asking { asked: None, count: 0, not_before: Duration::ZERO, pause: Duration::ZERO }
    }

    /// What waits for its answer.
    pub fn pending(&self) -> Option<&T> {
        self.asked.as_ref().map(|(_, what, _)| what)
    }

    /// Nobody will answer any more, or the answer is of no use.
    pub fn forget(&mut self) {
        self.asked = None;
    }

    /// Gives up what was not answered in time. True when there was such.
    pub fn give_up(&mut self, now: Duration) -> bool {
        let is_late = self.asked.take_if(|(_, _, until)| *until <= now).is_some();
        if is_late {
            self.put_off(now);
        }
        is_late
    }

    /// Whether something may be asked.
    pub fn may_ask(&self, now: Duration) -> bool {
        self.asked.is_none() && now >= self.not_before
    }

    /// Asks, under the name that comes back. It has the time in it, because after a restart the answer to a question of before may
    /// still come.
    pub fn ask(&mut self, now: Duration, wall_ms: i64, what: T) -> String {
        self.count = self.count.wrapping_add(1);
        let token = format!("{wall_ms:x}-{}", self.count);
        self.asked = Some((token.clone(), what, now + ANSWER_WITHIN));
        token
    }

    /// The answer to the question of this name has come: what was asked, if that is it.
    pub fn answered(&mut self, token: &str) -> Option<T> {
        self.asked.take_if(|(asked, ..)| asked == token).map(|(_, what, _)| what)
    }

    /// It was a good one.
    pub fn was_well(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// It was none: longer each time.
    pub fn put_off(&mut self, now: Duration) {
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_MAX);
        self.not_before = now + self.pause;
    }

    /// Nothing is asked before this.
    pub fn wait_until(&mut self, when: Duration) {
        self.not_before = when;
    }

    /// When there may be something to do though nothing happens, where there is something to ask.
    pub fn deadline(&self, has_question: bool) -> Option<Duration> {
        let until = self.asked.as_ref().map(|(_, _, until)| *until);
        until.or_else(|| has_question.then_some(self.not_before))
    }
}
