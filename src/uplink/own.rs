//! The gateway's own status at the cloud: the will, and "online" and "offline" as retained messages. Pure.
//!
//! Promise: a cloud that does not allow it costs the status, one alarm, and a try a day, never a loop of connections. A broker
//! that closes on a will or a topic it does not allow would otherwise be tried for ever; one that only restarted twice at the wrong
//! moment has the status back within the hour.

use std::time::Duration;

use bytes::Bytes;

use crate::clock::rfc3339;
use crate::message::{ClockState, Properties, Qos, Stamp, Topic};
use crate::mqtt::{ReasonCode, Will};

/// What the status is written in.
pub const CONTENT_TYPE: &str = "application/json";

/// Connections that ended with the own status unanswered, after which it is not sent for a while.
const DEATHS_MAX: u32 = 2;

/// So long at first, and longer each time that it was in vain.
const AGAIN_FIRST: Duration = Duration::from_secs(3600);
const AGAIN_MAX: Duration = Duration::from_secs(86_400);

/// Connections that were closed on CONNECT with the will and accepted without, one after the other, after which the
/// will is left out. More than two, because a broker that restarts looks the same.
const WILL_DEATHS_MAX: u32 = 3;

/// An explicit "not authorised" that goes away without the will counts for so many of them. Not for all: it goes away as
/// well when a token is renewed or a policy is put in place between two attempts.
const WILL_REFUSAL_COUNTS: u32 = 2;

/// The status message and what is known about the cloud's liking of it.
#[derive(Debug)]
pub struct OwnTopic {
    status: Option<Topic>,
    publishes: bool,
    /// When it may be tried again, and after what pause that is.
    again_at: Option<Duration>,
    pause: Duration,
    /// The cloud has taken it once.
    was_accepted: bool,
    will: WillUse,
    will_qos: Qos,
    will_retain: bool,
    deaths: u32,
    will_deaths: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WillUse {
    /// CONNECT has it.
    With,
    /// One attempt without it, to learn whether it is at fault.
    Without,
    /// It was at fault.
    Off,
}

impl OwnTopic {
    /// The status below `own_topic`; off when there is none. With the will as well, where the cloud has wills.
    pub fn new(own_topic: Option<&str>, has_wills: bool) -> OwnTopic {
        let status = own_topic.and_then(|topic| Topic::new(&format!("{topic}/status")).ok());
        OwnTopic {
            publishes: status.is_some(),
            again_at: None,
            pause: Duration::ZERO,
            was_accepted: false,
            will: if status.is_some() && has_wills { WillUse::With } else { WillUse::Off },
            status,
            will_qos: Qos::AtLeastOnce,
            will_retain: true,
            deaths: 0,
            will_deaths: 0,
        }
    }

    /// Where the status is published, unless it is off.
    pub fn topic(&self) -> Option<&Topic> {
        self.status.as_ref().filter(|_| self.publishes)
    }

    /// The will for the next CONNECT.
    pub fn will(&self) -> Option<Will> {
        let topic = self.status.clone().filter(|_| self.will == WillUse::With)?;
        Some(Will {
            topic,
            payload: offline(),
            qos: self.will_qos,
            retain: self.will_retain,
            delay_s: 0,
            properties: Properties::default(),
        })
    }

    /// CONNECT was answered with `reason`, or with a closed connection (`None`).
    pub fn connect_failed(&mut self, reason: Option<ReasonCode>) {
        match (reason, self.will) {
            (Some(ReasonCode::RETAIN_NOT_SUPPORTED), _) => self.will_retain = false,
            (Some(ReasonCode::QOS_NOT_SUPPORTED), _) => self.will_qos = Qos::AtMostOnce,
            (Some(ReasonCode::NOT_AUTHORIZED), WillUse::With) => {
                self.will_deaths += WILL_REFUSAL_COUNTS;
                self.will = WillUse::Without;
            }
            (None | Some(ReasonCode::UNSPECIFIED_ERROR | ReasonCode::TOPIC_NAME_INVALID), WillUse::With) => {
                self.will_deaths += 1;
                self.will = WillUse::Without;
            }
            // Refused without it as well: it was not the will.
            (_, WillUse::Without) => {
                self.will_deaths = 0;
                self.will = WillUse::With;
            }
            _ => {}
        }
    }

    /// CONNECT was accepted. True when that shows the will to have been at fault.
    pub fn connect_accepted(&mut self) -> bool {
        match self.will {
            WillUse::Without if self.will_deaths >= WILL_DEATHS_MAX => {
                self.will = WillUse::Off;
                true
            }
            // Accidents happen at the moment of CONNECT too: once more with the will before it is blamed.
            WillUse::Without => {
                self.will = WillUse::With;
                false
            }
            WillUse::With => {
                self.will_deaths = 0;
                false
            }
            WillUse::Off => false,
        }
    }

    /// The cloud took the status message.
    pub fn accepted(&mut self) {
        self.deaths = 0;
        self.pause = Duration::ZERO;
        self.was_accepted = true;
    }

    /// The cloud answered the status message with a failure at `now`. True when this turned it off for the first time.
    pub fn refused(&mut self, now: Duration) -> bool {
        let is_first = self.pause.is_zero();
        self.pause = (self.pause * 2).clamp(AGAIN_FIRST, AGAIN_MAX);
        self.again_at = Some(now + self.pause);
        std::mem::replace(&mut self.publishes, false) && is_first
    }

    /// The cloud closed the connection while the status message was unanswered. True when this turned it off for the first time.
    pub fn died(&mut self, now: Duration) -> bool {
        self.deaths += 1;
        self.deaths >= DEATHS_MAX && self.refused(now)
    }

    /// Whether it was off and is to be tried from now on. A connection that works is risked for it only where the cloud has
    /// taken it before: else a new one is waited for.
    pub fn comes_back(&mut self, now: Duration, is_new_connection: bool) -> bool {
        let is_due = self.again_at.is_some_and(|again_at| again_at <= now) && (is_new_connection || self.was_accepted);
        if is_due {
            self.again_at = None;
            self.publishes = true;
            // It has had its chances.
            self.deaths = DEATHS_MAX - 1;
        }
        is_due
    }
}

/// What subscribers of the status see while the gateway is away.
pub fn offline() -> Bytes {
    Bytes::from_static(br#"{"state":"offline"}"#)
}

/// What they see while it is there.
pub fn online(since: Stamp) -> Bytes {
    let clock = if since.clock == ClockState::Unset { r#","clock":"unset""# } else { "" };
    let (since, version) = (rfc3339(since.wall_ms), env!("CARGO_PKG_VERSION"));
    Bytes::from(format!(r#"{{"state":"online","since":"{since}","version":"{version}"{clock}}}"#))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_will_that_is_not_authorised_is_left_out_after_two_proofs() {
        let mut own = OwnTopic::new(Some("own/g"), true);
        assert_eq!(own.will().unwrap().topic.as_str(), "own/g/status");
        for proof in 1..=2 {
            own.connect_failed(Some(ReasonCode::NOT_AUTHORIZED));
            assert_eq!(own.will(), None);
            assert_eq!(own.connect_accepted(), proof == 2, "accepted without it: the will was at fault");
        }
        assert_eq!(own.will(), None);
    }

    #[test]
    fn a_token_that_is_renewed_just_before_the_attempt_without_the_will_does_not_cost_it() {
        let mut own = OwnTopic::new(Some("own/g"), true);
        for _ in 0..3 {
            own.connect_failed(Some(ReasonCode::NOT_AUTHORIZED));
            assert!(!own.connect_accepted(), "this time it was the token");
            assert!(own.will().is_some() && !own.connect_accepted());
        }
    }

    #[test]
    fn a_client_that_is_not_authorised_keeps_its_will() {
        let mut own = OwnTopic::new(Some("own/g"), true);
        for _ in 0..10 {
            own.connect_failed(Some(ReasonCode::NOT_AUTHORIZED));
        }
        assert!(own.will().is_some());
        assert!(!own.connect_accepted());
    }

    #[test]
    fn a_broker_that_restarts_is_not_mistaken_for_one_that_refuses_the_will() {
        let mut own = OwnTopic::new(Some("own/g"), true);
        for _ in 0..5 {
            own.connect_failed(None);
            assert!(!own.connect_accepted());
            assert!(!own.connect_accepted());
        }
        for proof in 1..=3 {
            own.connect_failed(None);
            assert_eq!(own.connect_accepted(), proof == 3);
        }
        assert_eq!(own.will(), None);
    }

    #[test]
    fn a_status_that_two_closes_have_turned_off_comes_back_after_an_hour_and_a_third_costs_it_two() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let mut own = OwnTopic::new(Some("own/g"), true);
        own.accepted();
        assert!(!own.died(minutes(1)), "once is an accident");
        assert!(own.died(minutes(2)) && own.topic().is_none());
        assert!(!own.comes_back(minutes(61), false) && own.topic().is_none());
        assert!(
            own.comes_back(minutes(62), false) && own.topic().is_some(),
            "by itself, on the connection that there is"
        );
        assert!(!own.comes_back(minutes(63), false), "it is there");
        assert!(!own.died(minutes(63)), "the alarm was told");
        assert_eq!(own.topic(), None);
        assert!(!own.comes_back(minutes(63 + 119), true) && own.comes_back(minutes(63 + 120), true));
        own.accepted();
        assert!(!own.died(minutes(1000)) && own.died(minutes(1001)), "all is forgotten");
    }

    #[test]
    fn a_status_that_was_never_taken_waits_for_a_new_connection_and_is_tried_once_a_day_in_the_end() {
        let mut own = OwnTopic::new(Some("own/g"), true);
        assert!(own.refused(Duration::ZERO), "one alarm");
        let mut now = Duration::ZERO;
        for hours in [1, 2, 4, 8, 16, 24, 24] {
            now += Duration::from_secs(3600 * hours);
            assert!(!own.comes_back(now, false), "no connection that works is risked");
            assert!(!own.comes_back(now - Duration::from_secs(1), true), "not sooner than after {hours} h");
            assert!(own.comes_back(now, true));
            assert!(!own.died(now), "and no other alarm");
        }
    }

    #[test]
    fn a_cloud_without_retained_messages_gets_a_will_without() {
        let mut own = OwnTopic::new(Some("own/g"), true);
        own.connect_failed(Some(ReasonCode::RETAIN_NOT_SUPPORTED));
        own.connect_failed(Some(ReasonCode::QOS_NOT_SUPPORTED));
        let will = own.will().unwrap();
        assert_eq!((will.retain, will.qos), (false, Qos::AtMostOnce));
    }
}
