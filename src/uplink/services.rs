//! The services of a cloud that the gateway takes part in beside its messages, twin and jobs: when they are subscribed to,
//! what they ask, and when one that the cloud does not allow is left alone. Pure.
//!
//! Promises: a service that ends connections costs three of them, then itself for a while, then one each time it is tried
//! again; never the messages, and never another service: only one of them at a time waits for the cloud.

use std::time::Duration;

use bytes::Bytes;

use super::asking::ANSWER_WITHIN;
use super::jobs::{self, Job, Jobs};
use super::twin::{self, Properties, Twin};
use crate::health::ServiceState;

pub use super::twin::Request;

/// Connections that ended with a question of a service unanswered, after which it pauses.
const DEATHS_MAX: u32 = 3;

/// So long, also after a refused subscription.
const AGAIN_AFTER: Duration = Duration::from_secs(300);

/// Deaths of before this are forgotten. An answer says nothing against them: who may ask may still not be allowed to report.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// Which of them.
pub type Number = usize;

/// What the cloud's word comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Nothing for anybody.
    Nothing,
    /// What is desired of the gateway, all of it.
    Desired(Bytes),
    /// A job.
    Job(Job),
    /// A service does not do as asked.
    Refused {
        /// Which.
        service: &'static str,
        /// Why, for a person.
        reason: String,
    },
}

#[derive(Debug)]
enum Kind {
    Twin(Box<Twin>),
    Jobs(Jobs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not on this connection, or not any more.
    Off,
    Subscribing,
    Ready,
}

#[derive(Debug)]
struct Service {
    kind: Kind,
    state: State,
    /// When it is subscribed to on this connection.
    at: Duration,
    deaths: u32,
    died_at: Duration,
    /// SUBACK must come before this.
    until: Duration,
}

impl Service {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Twin(_) => "twin",
            Kind::Jobs(_) => "jobs",
        }
    }

    fn is_waiting(&self) -> bool {
        self.state == State::Subscribing
            || match &self.kind {
                Kind::Twin(twin) => twin.is_waiting(),
                Kind::Jobs(jobs) => jobs.is_waiting(),
            }
    }

    fn lost(&mut self) {
        self.state = State::Off;
        match &mut self.kind {
            Kind::Twin(twin) => twin.lost(),
            Kind::Jobs(jobs) => jobs.lost(),
        }
    }

    fn pause(&mut self, now: Duration) {
        self.lost();
        self.at = now + AGAIN_AFTER;
    }
}

/// All services of an uplink; there may be none.
#[derive(Debug, Default)]
pub struct Services {
    list: Vec<Service>,
}

impl Services {
    /// Those that the configuration asks for.
    pub fn new(twin: Option<Twin>, jobs: Option<Jobs>) -> Services {
        let twin = twin.map(|twin| Kind::Twin(Box::new(twin)));
        let kinds = twin.into_iter().chain(jobs.map(Kind::Jobs));
        let list = kinds.map(|kind| Service {
            kind,
            state: State::Off,
            at: Duration::ZERO,
            deaths: 0,
            died_at: Duration::ZERO,
            until: Duration::ZERO,
        });
        Services { list: list.collect() }
    }

    /// How each stands, by name.
    pub fn states(&self) -> impl Iterator<Item = (&'static str, ServiceState)> {
        self.list.iter().map(|service| {
            let state = match (service.state, &service.kind) {
                (State::Off, _) if !service.at.is_zero() => ServiceState::Refused,
                (State::Off, _) => ServiceState::Away,
                (State::Subscribing, _) => ServiceState::Asking,
                (State::Ready, Kind::Twin(twin)) => twin.state(),
                (State::Ready, Kind::Jobs(jobs)) => jobs.state(),
            };
            (service.name(), state)
        })
    }

    /// Whether a topic of the cloud belongs to one of them.
    pub fn owns(&self, topic: &str) -> bool {
        self.owner(topic).is_some()
    }

    fn owner(&self, topic: &str) -> Option<Number> {
        self.list.iter().position(|service| match &service.kind {
            Kind::Twin(twin) => twin.owns(topic),
            Kind::Jobs(jobs) => jobs.owns(topic),
        })
    }

    /// What the twin is to say from now on.
    pub fn want(&mut self, wanted: Properties) {
        if let Some(Kind::Twin(twin)) = self.list.iter_mut().map(|service| &mut service.kind).next() {
            twin.want(wanted);
        }
    }

    /// Whether somebody here takes jobs.
    pub fn set_heard(&mut self, is_heard: bool) {
        for service in &mut self.list {
            if let Kind::Jobs(jobs) = &mut service.kind {
                jobs.set_heard(is_heard);
            }
        }
    }

    /// A service to subscribe to now, and its filters.
    pub fn subscription(&mut self, now: Duration) -> Option<(Number, Vec<String>)> {
        if self.list.iter().any(Service::is_waiting) {
            return None;
        }
        let mut due = self.list.iter_mut().enumerate().filter(|(_, one)| one.state == State::Off && one.at <= now);
        let (number, service) = due.next()?;
        (service.state, service.until) = (State::Subscribing, now + ANSWER_WITHIN);
        let filters = match &service.kind {
            Kind::Twin(twin) => twin.filters(),
            Kind::Jobs(jobs) => jobs.filters(),
        };
        Some((number, filters))
    }

    /// A subscription was not answered in time.
    pub fn late(&mut self, now: Duration) -> Option<Heard> {
        let is_late = |one: &&mut Service| one.state == State::Subscribing && one.until <= now;
        let service = self.list.iter_mut().find(is_late)?;
        service.pause(now);
        let reason = "the cloud does not answer to the subscription".to_owned();
        Some(Heard::Refused { service: service.name(), reason })
    }

    /// SUBACK came for a service.
    pub fn subscribed(&mut self, now: Duration, number: Number, is_whole: bool) -> Heard {
        let Some(service) = self.list.get_mut(number) else { return Heard::Nothing };
        if is_whole {
            (service.state, service.at) = (State::Ready, Duration::ZERO);
            return Heard::Nothing;
        }
        service.pause(now);
        Heard::Refused { service: service.name(), reason: "the cloud does not allow a subscription to it".to_owned() }
    }

    /// PUBACK with a failure came for a question of a service.
    pub fn refused(&mut self, now: Duration, number: Number, reason: String) -> Heard {
        let Some(service) = self.list.get_mut(number) else { return Heard::Nothing };
        service.pause(now);
        Heard::Refused { service: service.name(), reason }
    }

    /// What one of them asks now.
    pub fn next(&mut self, now: Duration, wall_ms: i64) -> Option<(Number, Request)> {
        let mut numbers: Vec<Number> = (0..self.list.len()).collect();
        // Whoever waits comes first: its time may be over, and then it is another one's turn.
        numbers.sort_by_key(|number| !self.list.get(*number).is_some_and(Service::is_waiting));
        for number in numbers {
            let others = self.list.iter().enumerate().filter(|(other, _)| *other != number);
            if others.map(|(_, other)| other).any(Service::is_waiting) {
                continue;
            }
            let Some(service) = self.list.get_mut(number).filter(|one| one.state == State::Ready) else { continue };
            let request = match &mut service.kind {
                Kind::Twin(twin) => twin.next(now, wall_ms),
                Kind::Jobs(jobs) => jobs.next(now, wall_ms),
            };
            if let Some(request) = request {
                return Some((number, request));
            }
        }
        None
    }

    /// When there may be something to do though nothing happens.
    pub fn deadline(&self) -> Option<Duration> {
        // While one waits for the cloud the others wait for it.
        let waiting = self.list.iter().find(|service| service.is_waiting());
        let which = waiting.map_or(self.list.as_slice(), std::slice::from_ref);
        let at = which.iter().filter_map(|service| match (service.state, &service.kind) {
            (State::Off, _) => Some(service.at),
            (State::Subscribing, _) => Some(service.until),
            (State::Ready, Kind::Twin(twin)) => twin.deadline(),
            (State::Ready, Kind::Jobs(jobs)) => jobs.deadline(),
        });
        at.min()
    }

    /// The cloud has said something at a topic of theirs.
    pub fn hear(&mut self, now: Duration, uplink: &str, topic: &str, payload: &[u8]) -> Heard {
        let number = self.owner(topic);
        let Some(service) = number.and_then(|number| self.list.get_mut(number)) else { return Heard::Nothing };
        let name = service.name();
        let heard = match &mut service.kind {
            Kind::Twin(twin) => match twin.hear(now, topic, payload) {
                twin::Heard::Nothing => return Heard::Nothing,
                twin::Heard::Desired(desired) => return Heard::Desired(desired),
                twin::Heard::Refused(reason) => reason,
            },
            Kind::Jobs(jobs) => match jobs.hear(now, uplink, topic, payload) {
                jobs::Heard::Nothing => return Heard::Nothing,
                jobs::Heard::Job(job) => return Heard::Job(job),
                jobs::Heard::Refused(reason) => reason,
            },
        };
        Heard::Refused { service: name, reason: heard }
    }

    /// The connection is gone.
    pub fn lost(&mut self) {
        self.list.iter_mut().for_each(Service::lost);
    }

    /// The cloud has closed the connection. Whether it owed a service an answer, so that this may be why.
    pub fn died(&mut self, now: Duration) -> Option<Heard> {
        let service = self.list.iter_mut().find(|service| service.is_waiting())?;
        if now.saturating_sub(service.died_at) > FORGOTTEN_AFTER {
            service.deaths = 0;
        }
        service.died_at = now;
        service.deaths += 1;
        if service.deaths < DEATHS_MAX {
            return Some(Heard::Nothing);
        }
        service.pause(now);
        let reason = "the cloud closes the connection over it".to_owned();
        Some(Heard::Refused { service: service.name(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::clouds::services::{JobTopics, TwinKind, TwinTopics};

    const NOW: Duration = Duration::from_secs(100);

    fn services() -> Services {
        let twin = Twin::new(TwinTopics::new(TwinKind::Shadow, "g", None));
        let mut services = Services::new(Some(twin), Some(Jobs::new(JobTopics::new("g"))));
        services.set_heard(true);
        services
    }

    /// The twin's answer to its question; there is no shadow yet.
    fn answer(services: &mut Services, now: Duration, (_, payload): &Request) {
        let asked: serde_json::Value = serde_json::from_slice(payload).unwrap();
        let said = serde_json::json!({"code": 404, "message": "none", "clientToken": asked["clientToken"]});
        services.hear(now, "hub", "$aws/things/g/shadow/get/rejected", said.to_string().as_bytes());
    }

    #[test]
    fn each_service_is_subscribed_to_by_itself_and_only_one_waits_for_the_cloud() {
        let mut services = services();
        assert_eq!(services.subscription(NOW).unwrap().0, 0);
        assert_eq!((services.subscription(NOW), services.next(NOW, 0)), (None, None));
        services.subscribed(NOW, 0, true);
        let (number, question) = services.next(NOW, 0).unwrap();
        assert_eq!((number, services.subscription(NOW)), (0, None));
        answer(&mut services, NOW, &question);
        assert_eq!(services.subscription(NOW).unwrap().0, 1);
        services.want(serde_json::json!({"a": 1}).as_object().unwrap().clone());
        assert_eq!(services.next(NOW, 0), None, "the other one waits");
        services.subscribed(NOW, 1, true);
        assert_eq!(services.next(NOW, 0).unwrap().0, 0);
        assert_eq!(services.next(NOW, 0), None);
        // One that gets no answer is not waited for without end.
        let later = NOW + Duration::from_secs(30);
        assert_eq!(services.next(later, 0).unwrap().0, 1);
        assert_eq!(services.next(later + Duration::from_secs(30), 0).unwrap().0, 0);
    }

    #[test]
    fn a_subscription_that_is_not_answered_costs_the_service_only() {
        let mut services = services();
        services.subscription(NOW).unwrap();
        assert_eq!((services.late(NOW), services.deadline()), (None, Some(NOW + ANSWER_WITHIN)));
        let late = NOW + ANSWER_WITHIN;
        assert!(matches!(services.late(late), Some(Heard::Refused { service: "twin", .. })));
        assert_eq!((services.late(late), services.subscription(late).unwrap().0), (None, 1));
    }

    #[test]
    fn a_subscription_that_is_refused_costs_the_service_only() {
        let mut services = services();
        services.subscription(NOW);
        let refused = services.subscribed(NOW, 0, false);
        assert!(matches!(refused, Heard::Refused { service: "twin", .. }));
        assert_eq!(services.subscription(NOW).unwrap().0, 1);
        services.subscribed(NOW, 1, true);
        assert_eq!(services.subscription(NOW), None);
        assert_eq!(services.subscription(NOW + AGAIN_AFTER).unwrap().0, 0, "tried again later");
    }

    #[test]
    fn a_service_that_ends_connections_is_left_alone_for_a_while_also_when_it_may_ask_and_not_report() {
        let mut services = services();
        services.want(serde_json::json!({"a": 1}).as_object().unwrap().clone());
        assert_eq!(services.died(NOW), None, "it was never asked anything");
        let mut now = NOW;
        for death in 1..=3 {
            services.subscription(now).unwrap();
            services.subscribed(now, 0, true);
            let (_, question) = services.next(now, 0).unwrap();
            answer(&mut services, now, &question);
            assert!(services.next(now, 0).unwrap().1.0.ends_with("/update"));
            let heard = services.died(now).unwrap();
            assert_eq!(matches!(heard, Heard::Refused { service: "twin", .. }), death == 3, "{death}");
            services.lost();
            now += Duration::from_secs(20);
        }
        // The other one goes on.
        assert_eq!(services.subscription(now).unwrap().0, 1);
        services.subscribed(now, 1, true);
        now += AGAIN_AFTER;
        assert_eq!(services.subscription(now).unwrap().0, 0);
        assert!(matches!(services.died(now), Some(Heard::Refused { .. })), "from then on one is enough");
    }
}
