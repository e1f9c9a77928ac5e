//! How the machine serves the cloud's own services beside the messages. Pure.

use super::super::jobs::{Job, Jobs};
use super::super::services::{Heard, Number, Services};
use super::super::twin::Twin;
use super::{Action, Holder, Machine, Moment, Note, Settings};
use crate::health::ServiceState;
use crate::message::Filter;
use crate::message::{Body, Message, Origin, Properties, Qos, Topic};
use crate::mqtt::{Ack, Packet, Publish, Suback, Subscribe, Subscription};
use crate::queue::Once;
use crate::uplink::inbound::Receipt;
use crate::uplink::reason::{is_quota, meaning, quoted};

/// What jobs are written in.
const CONTENT_TYPE: &str = "application/json";

/// The services that the configuration asks for.
pub(super) fn of(settings: &Settings) -> Services {
    let twin = settings.twin.clone().map(Twin::new);
    Services::new(twin, settings.jobs.clone().map(Jobs::new))
}

/// Where jobs are handed to local clients.
pub(in crate::uplink) fn job_topic(gateway: &str, uplink: &str) -> Option<Topic> {
    Topic::new(&format!("tidegate/{gateway}/job/{uplink}")).ok()
}

impl Machine {
    /// How the services of the cloud stand, by name.
    pub fn services(&self) -> impl Iterator<Item = (&'static str, ServiceState)> {
        self.services.states()
    }

    /// Subscriptions and questions that are due.
    pub(super) fn serve(&mut self, at: Moment, window: usize) {
        let is_due = self.services.deadline().is_some_and(|when| when <= at.now);
        // They follow what is resent, and what else a cloud may end the connection over: each is judged on its own.
        let is_judged = |holder: &Holder| matches!(holder, Holder::Subscribe(_) | Holder::OwnStatus);
        if !is_due
            || self.is_ending()
            || !self.resend.is_empty()
            || !self.is_subscribed
            || self.own_next.is_some()
            || self.ids.values().any(is_judged)
        {
            return;
        }
        while let Some(heard) = self.services.late(at.now) {
            self.heard_of(at, heard, None);
        }
        let has_ids = |machine: &Machine| machine.ids.len() < usize::from(u16::MAX);
        while has_ids(self)
            && self.has_room_at_cloud(window)
            && let Some((number, request)) = self.services.next(at.now, at.stamp.wall_ms)
        {
            let (topic, payload) = request;
            // One that is no topic gets no answer, and that has its time.
            if let Ok(topic) = Topic::new(&topic) {
                self.say(at, topic, payload, false, Holder::Question(number));
            }
        }
        while has_ids(self)
            && let Some((number, filters)) = self.services.subscription(at.now)
        {
            let id = self.free_id();
            let wanted = filters.iter().filter_map(|filter| Filter::new(filter).ok()).map(|filter| Subscription {
                filter,
                qos: Qos::AtLeastOnce.min(self.settings.profile.qos_max),
                no_local: false,
                retain_as_published: false,
                retain_handling: 0,
            });
            let subscribe = Subscribe { packet_id: id, subscriptions: wanted.collect(), subscription_id: None };
            self.ids.insert(id, Holder::Subscription(number));
            self.send(at, Packet::Subscribe(subscribe));
        }
    }

    /// PUBACK for a question.
    pub(super) fn question_taken(&mut self, at: Moment, number: Number, ack: &Ack) {
        if is_quota(ack.reason) {
            // The answer does not come, and it is asked again.
            self.pacing.slow(at.now);
        } else if ack.reason.is_failure() {
            let text = quoted(ack.reason_string.as_deref().unwrap_or_default());
            let reason = format!("{} ({}){text}", meaning(ack.reason), ack.reason);
            let heard = self.services.refused(at.now, number, reason);
            self.heard_of(at, heard, None);
        }
    }

    /// SUBACK for a service.
    pub(super) fn service_subscribed(&mut self, at: Moment, number: Number, suback: &Suback) {
        let is_whole = !suback.reasons.iter().any(|reason| reason.is_failure());
        let heard = self.services.subscribed(at.now, number, is_whole);
        self.heard_of(at, heard, None);
    }

    /// The cloud has closed the connection. True when a service may be why.
    pub(super) fn died_of_service(&mut self, at: Moment) -> bool {
        let Some(heard) = self.services.died(at.now) else { return false };
        self.heard_of(at, heard, None);
        true
    }

    /// A PUBLISH at a topic of a service. Its acknowledgement waits for the store only where something is handed on that the
    /// cloud would not say again by itself.
    pub(super) fn service_publish(&mut self, at: Moment, topic: &Topic, publish: &Publish, answer: Option<Packet>) {
        let name = self.settings.name.clone();
        let heard = self.services.hear(at.now, &name, topic.as_str(), &publish.payload);
        let receipt = self.inbound.open(answer);
        self.heard_of(at, heard, Some(receipt));
    }

    fn heard_of(&mut self, at: Moment, heard: Heard, receipt: Option<Receipt>) {
        match heard {
            Heard::Nothing => {}
            Heard::Desired(desired) => self.actions.push(Action::Desired(desired)),
            Heard::Refused { service, reason } => self.actions.push(Action::Note(Note::Service { service, reason })),
            Heard::Job(job) => {
                if let Some(receipt) = receipt {
                    return self.hand_on(at, job, receipt);
                }
            }
        }
        if let Some(receipt) = receipt {
            self.inbound.ready(receipt);
        }
    }

    fn hand_on(&mut self, at: Moment, job: Job, receipt: Receipt) {
        let name = self.settings.name.clone();
        let Some(topic) = job_topic(&self.settings.gateway, &name) else { return self.inbound.ready(receipt) };
        self.counts.received += 1;
        let properties = Properties {
            is_utf8: true,
            content_type: Some(CONTENT_TYPE.to_owned()),
            response_topic: Topic::new(&job.answer).ok(),
            ..Properties::default()
        };
        let message = Box::new(Message {
            topic,
            // A local client that asks for it at QoS 2 gets it once, whatever dies; at QoS 1 it may come again.
            qos: Qos::ExactlyOnce,
            retain: false,
            properties: Some(Box::new(properties)),
            body: Body::Bytes(job.payload),
            origin: Origin::Uplink(name),
            received: at.stamp,
        });
        let once = Some(Once::Command { key: job.key, may_be_repeat: true });
        // A refusal would not bring it back: the cloud takes it for started.
        self.inbound.keep(receipt, message.clone(), once);
        self.actions.push(Action::Submit { receipt, message, once });
    }
}
