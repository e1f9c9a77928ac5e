//! How fast messages may go, or come: one bucket of messages, one of bytes. Pure: the caller brings the clock.
//!
//! Promises: over any second no more than the configured rate leaves, but for a message that is larger than a bucket: that
//! is not stuck for ever, it goes when the bucket has anything, and the debt is waited for after it. Who is told that it
//! was too much all the same halves the rate, and comes back to it within minutes.

use std::time::Duration;

use crate::config::Pace;

/// How much may be saved up, as a share of a second.
const BURST_SECONDS: f64 = 0.1;

/// The least share of the rate that is left, however often it was too much.
const SHARE_MIN: f64 = 1.0 / 16.0;

/// What comes back of the rate in a second.
const SHARE_PER_S: f64 = 1.0 / 160.0;

/// Both limits of one connection.
#[derive(Debug, Clone)]
pub struct Pacing {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    share: f64,
    shared_at: Duration,
}

impl Pacing {
    /// Limits as `pace` says; none where it says nothing.
    pub fn new(pace: Pace) -> Pacing {
        Pacing {
            messages: pace.messages_per_s.map(|rate| Bucket::new(f64::from(rate.get()))),
            #[expect(clippy::cast_precision_loss, reason = "a rate above 2^53 bytes a second is no limit")]
            bytes: pace.bytes_per_s.map(|rate| Bucket::new(rate.get() as f64)),
            share: 1.0,
            shared_at: Duration::ZERO,
        }
    }

    /// It was too much: from now on half of it, for a while.
    pub fn slow(&mut self, now: Duration) {
        self.settle(now);
        self.share = (self.share / 2.0).max(SHARE_MIN);
        self.settle(now);
    }

    /// The share of the rate that is allowed at `now`; 1 = all of it.
    pub fn share(&self, now: Duration) -> f64 {
        (self.share + now.saturating_sub(self.shared_at).as_secs_f64() * SHARE_PER_S).min(1.0)
    }

    fn settle(&mut self, now: Duration) {
        self.share = self.share(now);
        self.shared_at = self.shared_at.max(now);
        for bucket in self.messages.iter_mut().chain(&mut self.bytes) {
            bucket.share = self.share;
        }
    }

    /// When the next message may leave: `now` or later.
    pub fn ready_at(&mut self, now: Duration) -> Duration {
        self.settle(now);
        let at = |bucket: &mut Option<Bucket>| bucket.as_mut().map_or(now, |bucket| bucket.ready_at(now));
        at(&mut self.messages).max(at(&mut self.bytes))
    }

    /// A message of `bytes` leaves at `now`.
    pub fn spend(&mut self, now: Duration, bytes: usize) {
        if let Some(bucket) = &mut self.messages {
            bucket.spend(now, 1.0);
        }
        if let Some(bucket) = &mut self.bytes {
            #[expect(clippy::cast_precision_loss, reason = "a packet has at most 2^28 bytes")]
            bucket.spend(now, bytes as f64);
        }
    }
}

#[derive(Debug, Clone)]
struct Bucket {
    rate_per_s: f64,
    share: f64,
    full: f64,
    level: f64,
    filled_at: Duration,
}

impl Bucket {
    fn new(rate_per_s: f64) -> Bucket {
        let full = (rate_per_s * BURST_SECONDS).max(1.0);
        // What was saved up may leave within the same second as what comes in: both together are the rate. One message is
        // not saved up, it is the one whose turn it is.
        let rate_per_s = if full > 1.0 { rate_per_s - full } else { rate_per_s };
        Bucket { rate_per_s, share: 1.0, full, level: full, filled_at: Duration::ZERO }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled_at);
        self.level = (self.level + passed.as_secs_f64() * self.rate_per_s * self.share).min(self.full);
        self.filled_at = self.filled_at.max(now);
    }

    fn ready_at(&mut self, now: Duration) -> Duration {
        self.fill(now);
        // One unit, not "more than nothing": else a rate of 1 a second would let a second message go at once.
        if self.level >= 1.0 {
            return now;
        }
        // A nanosecond more than computed, so that rounding never makes a timer fire just too early.
        now + Duration::from_secs_f64((1.0 - self.level) / (self.rate_per_s * self.share)) + Duration::from_nanos(1)
    }

    fn spend(&mut self, now: Duration, amount: f64) {
        self.fill(now);
        self.level -= amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::{NonZeroU32, NonZeroU64};

    fn sent_within(pace: Pace, bytes: usize, seconds: u64) -> usize {
        let mut pacing = Pacing::new(pace);
        let mut now = Duration::ZERO;
        let mut count = 0;
        loop {
            now = pacing.ready_at(now);
            if now >= Duration::from_secs(seconds) {
                return count;
            }
            pacing.spend(now, bytes);
            count += 1;
            assert!(count < 1_000_000, "not limited at all");
        }
    }

    #[test]
    fn messages_keep_their_rate() {
        let pace = Pace { messages_per_s: NonZeroU32::new(100), bytes_per_s: None };
        let count = sent_within(pace, 10, 10);
        assert!((900..=910).contains(&count), "{count}");
    }

    #[test]
    fn no_second_sees_more_than_the_rate_wherever_it_begins() {
        for rate in [1, 3, 9, 10, 11, 100, 5000] {
            let mut pacing = Pacing::new(Pace { messages_per_s: NonZeroU32::new(rate), bytes_per_s: None });
            let mut now = Duration::ZERO;
            let mut sent: Vec<Duration> = Vec::new();
            for round in 0..20_000_u32 {
                // Idle for a while now and then, so that the bucket fills.
                if round % 1000 == 0 {
                    now += Duration::from_secs(3);
                }
                now = pacing.ready_at(now);
                pacing.spend(now, 1);
                sent.push(now);
            }
            let rate = usize::try_from(rate).unwrap();
            for pair in sent.windows(rate + 1) {
                let took = pair[rate] - pair[0];
                assert!(took >= Duration::from_millis(999), "{rate} a second: {} within {took:?}", rate + 1);
            }
        }
    }

    #[test]
    fn who_was_told_that_it_was_too_much_goes_slower_and_comes_back() {
        let mut pacing = Pacing::new(Pace { messages_per_s: NonZeroU32::new(100), bytes_per_s: None });
        let second = |pacing: &mut Pacing, from: u64| {
            let (mut now, end) = (Duration::from_secs(from), Duration::from_secs(from + 1));
            let mut count = 0;
            loop {
                now = pacing.ready_at(now);
                if now >= end {
                    return count;
                }
                pacing.spend(now, 1);
                count += 1;
            }
        };
        second(&mut pacing, 0);
        pacing.slow(Duration::from_secs(1));
        let slow = second(&mut pacing, 1);
        assert!((40..=56).contains(&slow), "{slow}");
        for _ in 0..20 {
            pacing.slow(Duration::from_secs(2));
        }
        let slowest = second(&mut pacing, 2);
        assert!((4..=8).contains(&slowest), "{slowest}");
        assert!(second(&mut pacing, 400) >= 90);
    }

    #[test]
    fn bytes_keep_their_rate() {
        let pace = Pace { messages_per_s: None, bytes_per_s: NonZeroU64::new(10_000) };
        let count = sent_within(pace, 100, 10);
        assert!((900..=911).contains(&count), "{count}");
    }

    #[test]
    fn the_tighter_of_both_limits_holds() {
        let pace = Pace { messages_per_s: NonZeroU32::new(5), bytes_per_s: NonZeroU64::new(1_000_000) };
        assert_eq!(sent_within(pace, 100, 10), 50);
    }

    #[test]
    fn a_message_larger_than_the_bucket_goes_and_is_waited_for() {
        let pace = Pace { messages_per_s: None, bytes_per_s: NonZeroU64::new(1000) };
        let mut pacing = Pacing::new(pace);
        assert_eq!(pacing.ready_at(Duration::ZERO), Duration::ZERO);
        pacing.spend(Duration::ZERO, 10_000);
        let next = pacing.ready_at(Duration::ZERO);
        assert!((10.9..11.1).contains(&next.as_secs_f64()), "{next:?}");
        assert_eq!(pacing.ready_at(next), next);
    }

    #[test]
    fn without_a_pace_nothing_waits() {
        let mut pacing = Pacing::new(Pace::default());
        pacing.spend(Duration::ZERO, usize::MAX);
        assert_eq!(pacing.ready_at(Duration::from_secs(1)), Duration::from_secs(1));
    }
}
