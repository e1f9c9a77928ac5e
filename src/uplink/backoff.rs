//! How long to wait before the next attempt to connect: full jitter. Pure: the caller brings clock and chance.
//!
//! Promises: a thousand gateways whose cloud comes back do not come back in the same second; a cloud that takes the
//! connection and drops it at once is not hammered, because only a stable connection sets the pauses back.

use std::time::Duration;

use crate::config::Reconnect;

/// A connection that lasted this long was a good one: the next pause is short again.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// The first pause after another client has thrown this one out, and the longest.
const TAKEN_OVER_FIRST: Duration = Duration::from_secs(30);
const TAKEN_OVER_MAX: Duration = Duration::from_secs(600);

/// Connections that were closed soon and with nothing under way, one after the other, after which it is taken for that
/// where the cloud does not say why it closes (MQTT 3.1.1).
const IDLE_DROPS_MAX: u32 = 3;

/// Without another one for this long, it is over.
const TAKEN_OVER_FORGOTTEN: Duration = Duration::from_secs(3600);

/// No pause is shorter: chance may say zero, and a busy loop is no attempt.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Nor longer, whatever the configuration says: a gateway that tries less than daily looks dead.
const PAUSE_MAX: Duration = Duration::from_secs(86_400);

/// Doublings after which the ceiling does not grow further, whatever the configuration says.
const DOUBLINGS_MAX: u32 = 20;

/// The pauses of one uplink.
#[derive(Debug, Clone)]
pub struct Backoff {
    reconnect: Reconnect,
    failures: u32,
    connected_at: Option<Duration>,
    takeovers: u32,
    taken_over_at: Duration,
    /// Connections in a row that the cloud had accepted and that ended before they were stable.
    short_lived: u32,
    idle_drops: u32,
}

impl Backoff {
    /// Pauses as `reconnect` says.
    pub fn new(reconnect: Reconnect) -> Backoff {
        Backoff {
            reconnect,
            failures: 0,
            connected_at: None,
            takeovers: 0,
            taken_over_at: Duration::ZERO,
            short_lived: 0,
            idle_drops: 0,
        }
    }

    /// The cloud has accepted the connection at `now`.
    pub fn connected(&mut self, now: Duration) {
        self.connected_at = Some(now);
    }

    /// An attempt failed or the connection ended at `now`. The pause before the next attempt; `chance` is any
    /// number, evenly spread.
    pub fn pause(&mut self, now: Duration, chance: u32) -> Duration {
        let lasted = self.connected_at.take().map(|since| now.saturating_sub(since));
        match lasted {
            Some(lasted) if lasted >= STABLE_AFTER => (self.failures, self.short_lived, self.idle_drops) = (0, 0, 0),
            Some(_) => self.short_lived = self.short_lived.saturating_add(1),
            None => {}
        }
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        let pause = ceiling.mul_f64(f64::from(chance) / f64::from(u32::MAX));
        pause.clamp(PAUSE_MIN.min(ceiling), ceiling)
    }

    /// Another client has logged in with our id at `now`. The least pause before the next attempt: who comes back at once
    /// throws that one out, and is thrown out again, for ever.
    pub fn taken_over(&mut self, now: Duration) -> Duration {
        if now.saturating_sub(self.taken_over_at) >= TAKEN_OVER_FORGOTTEN {
            self.takeovers = 0;
        }
        self.taken_over_at = now;
        let pause = TAKEN_OVER_FIRST.saturating_mul(1 << self.takeovers.min(DOUBLINGS_MAX)).min(TAKEN_OVER_MAX);
        self.takeovers = self.takeovers.saturating_add(1);
        pause
    }

    /// How many connections in a row the cloud has accepted and ended soon.
    pub fn short_lived(&self) -> u32 {
        self.short_lived
    }

    /// The cloud has closed the connection at `now` though nothing was under way that it could take offence at. Whether
    /// that looks like another client with our id; to be asked before `pause`.
    pub fn closed_idle(&mut self, now: Duration) -> bool {
        if self.connected_at.is_some_and(|since| now.saturating_sub(since) < STABLE_AFTER) {
            self.idle_drops = self.idle_drops.saturating_add(1);
        }
        self.idle_drops >= IDLE_DROPS_MAX
    }

    /// The longest that the next pause can be.
    pub fn ceiling(&self) -> Duration {
        let doubled = self.reconnect.first.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX));
        doubled.min(self.reconnect.max.max(self.reconnect.first)).min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Reconnect { first: Duration::from_secs(1), max: Duration::from_secs(30) })
    }

    #[test]
    fn three_connections_closed_soon_and_idle_look_like_another_client_and_a_stable_one_clears_that() {
        let mut backoff = backoff();
        let mut now = Duration::ZERO;
        let mut closed_after = |backoff: &mut Backoff, seconds: u64| {
            backoff.connected(now);
            now += Duration::from_secs(seconds);
            let looks_so = backoff.closed_idle(now);
            backoff.pause(now, 0);
            looks_so
        };
        assert_eq!([5, 59, 1, 1].map(|seconds| closed_after(&mut backoff, seconds)), [false, false, true, true]);
        closed_after(&mut backoff, 60);
        assert_eq!([1, 1, 1].map(|seconds| closed_after(&mut backoff, seconds)), [false, false, true]);
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let mut backoff = backoff();
        let pauses: Vec<u64> = (0..8).map(|_| backoff.pause(Duration::ZERO, u32::MAX).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn connections_that_end_soon_are_counted_until_one_lasts() {
        let mut backoff = backoff();
        let mut now = Duration::ZERO;
        for (lasts_s, counted) in [(1, 1), (59, 2), (60, 0), (5, 1)] {
            backoff.connected(now);
            now += Duration::from_secs(lasts_s);
            backoff.pause(now, 0);
            backoff.pause(now, 0);
            assert_eq!(backoff.short_lived(), counted, "after one of {lasts_s} s");
        }
    }

    #[test]
    fn chance_spreads_a_pause_from_almost_nothing_to_the_ceiling() {
        let mut backoff = backoff();
        for _ in 0..3 {
            backoff.pause(Duration::ZERO, 0);
        }
        let mut low = backoff.clone();
        let mut middle = backoff.clone();
        assert_eq!(low.pause(Duration::ZERO, 0), PAUSE_MIN);
        assert_eq!(middle.pause(Duration::ZERO, u32::MAX / 2).as_secs(), 3);
        assert_eq!(backoff.pause(Duration::ZERO, u32::MAX).as_secs(), 8);
    }

    #[test]
    fn only_a_stable_connection_sets_the_pauses_back() {
        let mut backoff = backoff();
        for _ in 0..6 {
            backoff.pause(Duration::ZERO, u32::MAX);
        }
        backoff.connected(Duration::from_secs(100));
        assert_eq!(backoff.pause(Duration::from_secs(159), u32::MAX).as_secs(), 30);
        backoff.connected(Duration::from_secs(200));
        assert_eq!(backoff.pause(Duration::from_secs(260), u32::MAX).as_secs(), 1);
    }

    #[test]
    fn who_is_thrown_out_by_its_own_name_comes_back_later_each_time() {
        let mut backoff = backoff();
        let mut now = Duration::from_secs(5);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = backoff.taken_over(now);
            pauses.push(pause.as_secs());
            now += pause + Duration::from_secs(90);
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        assert_eq!(backoff.taken_over(now + TAKEN_OVER_FORGOTTEN).as_secs(), 30, "a day later it is a new story");
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let mut backoff = Backoff::new(Reconnect { first: Duration::MAX, max: Duration::from_secs(1) });
        for _ in 0..100 {
            assert!(backoff.pause(Duration::ZERO, u32::MAX) > Duration::from_secs(1));
        }
    }
}
