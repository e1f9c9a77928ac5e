//! What the rules make of a topic, kept for the topics of late. Pure.
//!
//! A gateway has few topics and a drain many messages: finding a topic's rule, checking it and writing its topic at the
//! cloud cost more than all else that reading a row takes. Bounded; what is not here is found anew.

use super::Batching;
use super::rules::{self, RuleList};
use crate::config::Payload;
use crate::message::{Message, Qos, Topic};

/// Topics that are kept; two that fall into one place take turns.
const PLACES: usize = 256;
/// Longer topics are not kept.
const TOPIC_BYTES_MAX: usize = 256;

/// How messages of a topic leave.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// At the cloud.
    pub topic: Topic,
    /// The rule's; `None` = the publisher's.
    pub qos: Option<Qos>,
    pub strict_order: bool,
    /// For readings, of today's rule.
    pub payload: Payload,
    /// The same.
    pub batching: Option<Batching>,
}

impl Route {
    /// By the rules of the day a message came and by today's.
    pub fn new(topic: &Topic, then: &RuleList, now: &RuleList) -> Route {
        let matched = then.first(topic);
        let (list, current) = match now.first(topic) {
            Some(rule) if !then.is_own && then.id != now.id => (now, Some(rule)),
            _ => (then, matched),
        };
        let batching = current.and_then(|rule| {
            let place = list.rules.iter().position(|other| std::ptr::eq(other, rule))?;
            Some(Batching { rule: place, limits: rule.batch? })
        });
        let today = current.and_then(|rule| rules::topic(rule, topic));
        let first = || matched.and_then(|rule| rules::topic(rule, topic));
        Route {
            topic: today.or_else(first).unwrap_or_else(|| topic.clone()),
            qos: matched.and_then(|rule| rule.qos),
            strict_order: current.is_some_and(|rule| rule.strict_order),
            payload: current.map_or(Payload::JSON, |rule| rule.payload.clone()),
            batching,
        }
    }

    /// At which QoS a message leaves. What was taken is never sent at QoS 0: that would be forgetting it without an
    /// answer.
    pub fn qos(&self, message: &Message) -> Qos {
        self.qos.unwrap_or(message.qos).max(Qos::AtLeastOnce)
    }
}

#[derive(Debug)]
struct Known {
    topic: Topic,
    /// Numbers of the two lists.
    lists: (i64, i64),
    route: Option<Route>,
}

/// Topics of late.
#[derive(Debug, Default)]
pub(super) struct Routes {
    places: Vec<Option<Known>>,
}

impl Routes {
    /// The topic of this text, checked; `None` when it is none.
    pub fn topic(&mut self, text: &str) -> Option<Topic> {
        match self.place(text) {
            Some(Some(known)) if known.topic.as_str() == text => Some(known.topic.clone()),
            place => {
                let topic = Topic::new(text).ok()?;
                if let Some(place) = place {
                    *place = Some(Known { topic: topic.clone(), lists: (0, 0), route: None });
                }
                Some(topic)
            }
        }
    }

    /// The way of a topic.
    pub fn route(&mut self, topic: &Topic, then: &RuleList, now: &RuleList) -> Route {
        let lists = (then.id, now.id);
        match self.place(topic.as_str()) {
            Some(Some(Known { topic: known, lists: of, route: Some(route) })) if known == topic && *of == lists => {
                route.clone()
            }
            place => {
                let route = Route::new(topic, then, now);
                if let Some(place) = place {
                    *place = Some(Known { topic: topic.clone(), lists, route: Some(route.clone()) });
                }
                route
            }
        }
    }

    fn place(&mut self, text: &str) -> Option<&mut Option<Known>> {
        if text.len() > TOPIC_BYTES_MAX {
            return None;
        }
        if self.places.is_empty() {
            self.places.resize_with(PLACES, || None);
        }
        let hash = crc32c::crc32c(text.as_bytes()) as usize;
        self.places.get_mut(hash % PLACES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ForwardRule, TopicTemplate};
    use crate::message::Filter;

    fn list(id: i64, prefix: &str) -> RuleList {
        let filter = Filter::new("#").unwrap();
        let topic = TopicTemplate::parse(&format!("{prefix}/{{topic}}"), &filter, "g").unwrap();
        let rule = ForwardRule {
            filter,
            topic,
            qos: None,
            when_full: None,
            strict_order: false,
            payload: crate::config::Payload::JSON,
            batch: None,
        };
        RuleList { id, is_own: false, rules: vec![rule] }
    }

    #[test]
    fn more_topics_than_places_and_two_pairs_of_lists_get_what_the_rules_say() {
        let (old, new) = (list(1, "old"), list(2, "new"));
        let mut routes = Routes::default();
        for round in 0..3 {
            for number in 0..2 * PLACES {
                let topic = routes.topic(&format!("a/{number}")).unwrap();
                assert_eq!(topic.as_str(), format!("a/{number}"));
                let (then, now) = if round == 1 { (&old, &old) } else { (&old, &new) };
                let expected = if round == 1 { format!("old/a/{number}") } else { format!("new/a/{number}") };
                assert_eq!(routes.route(&topic, then, now).topic.as_str(), expected);
                assert_eq!(routes.route(&topic, then, now).topic.as_str(), expected, "also from memory");
            }
        }
        let long = "x".repeat(TOPIC_BYTES_MAX + 1);
        assert_eq!(routes.topic(&long).unwrap().as_str(), long);
        assert!(routes.topic("a/#").is_none());
    }
}
