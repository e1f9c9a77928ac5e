//! The services of a cloud that the gateway takes part in beside its messages, twin and jobs: when they are subscribed to,
//! what they ask, and when one that the cloud does not allow is left alone. Pure.
//!
//! Promise: a service that ends connections costs three of them, then itself for a while; never the messages.

use std::time::Duration;

use bytes::Bytes;

use super::jobs::{self, Job, Jobs};
use super::twin::{self, Properties, Twin};

pub use super::twin::Request;

/// Connections that ended with a question of a service unanswered, after which it pauses.
const DEATHS_MAX: u32 = 3;

/// So long, also after a refused subscription.
const AGAIN_AFTER: Duration = Duration::from_secs(300);

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
        self.deaths = 0;
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
        let list = kinds.map(|kind| Service { kind, state: State::Off, at: Duration::ZERO, deaths: 0 });
        Services { list: list.collect() }
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

    /// A service to subscribe to now, and its filters.
    pub fn subscription(&mut self, now: Duration) -> Option<(Number, Vec<String>)> {
        let mut due = self.list.iter_mut().enumerate().filter(|(_, one)| one.state == State::Off && one.at <= now);
        let (number, service) = due.next()?;
        service.state = State::Subscribing;
        let filters = match &service.kind {
            Kind::Twin(twin) => twin.filters(),
            Kind::Jobs(jobs) => jobs.filters(),
        };
        Some((number, filters))
    }

    /// SUBACK came for a service.
    pub fn subscribed(&mut self, now: Duration, number: Number, is_whole: bool) -> Heard {
        let Some(service) = self.list.get_mut(number) else { return Heard::Nothing };
        if is_whole {
            service.state = State::Ready;
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
        let ready = self.list.iter_mut().enumerate().filter(|(_, one)| one.state == State::Ready);
        ready
            .filter_map(|(number, service)| match &mut service.kind {
                Kind::Twin(twin) => Some((number, twin.next(now, wall_ms)?)),
                Kind::Jobs(jobs) => Some((number, jobs.next(now, wall_ms)?)),
            })
            .next()
    }

    /// When there may be something to do though nothing happens.
    pub fn deadline(&self) -> Option<Duration> {
        let at = self.list.iter().filter_map(|service| match (service.state, &service.kind) {
            (State::Off, _) => Some(service.at),
            (State::Subscribing, _) => None,
            (State::Ready, Kind::Twin(twin)) => twin.deadline(),
            (State::Ready, Kind::Jobs(jobs)) => jobs.deadline(),
        });
        at.min()
    }

    /// The cloud has said something at a topic of theirs.
    pub fn hear(&mut self, now: Duration, uplink: &str, topic: &str, payload: &[u8]) -> Heard {
        let number = self.owner(topic);
        let Some(service) = number.and_then(|number| self.list.get_mut(number)) else { return Heard::Nothing };
        service.deaths = 0;
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
        Services::new(Some(twin), Some(Jobs::new(JobTopics::new("g"))))
    }

    #[test]
    fn each_service_is_subscribed_to_by_itself_and_asks_when_that_is_granted() {
        let mut services = services();
        assert_eq!(services.subscription(NOW).unwrap().0, 0);
        assert_eq!(services.subscription(NOW).unwrap().0, 1);
        assert_eq!(services.subscription(NOW), None);
        assert_eq!(services.next(NOW, 0), None);
        services.subscribed(NOW, 1, true);
        assert_eq!(services.next(NOW, 0).unwrap().0, 1);
        let refused = services.subscribed(NOW, 0, false);
        assert!(matches!(refused, Heard::Refused { service: "twin", .. }));
        assert_eq!(services.subscription(NOW), None);
        assert_eq!(services.subscription(NOW + AGAIN_AFTER).unwrap().0, 0, "tried again later");
    }

    #[test]
    fn a_service_that_ends_connections_is_left_alone_for_a_while() {
        let mut services = services();
        assert_eq!(services.died(NOW), None, "it was never asked anything");
        for death in 1..=3 {
            services.subscription(NOW).unwrap();
            let heard = services.died(NOW).unwrap();
            assert_eq!(matches!(heard, Heard::Refused { service: "twin", .. }), death == 3, "{death}");
            services.lost();
        }
        // The other one goes on.
        assert_eq!(services.subscription(NOW).unwrap().0, 1);
        assert_eq!(services.subscription(NOW), None);
        assert_eq!(services.subscription(NOW + AGAIN_AFTER).unwrap().0, 0);
    }
}
