//! Where answers to a cloud's commands may go, and by which local topics they get there. Pure.
//!
//! A command that comes in is shown a local topic for its answer: `answer/<uplink>/<topic at the cloud>`. Whoever answers
//! publishes there, and a forward rule made here takes it to the cloud, through the queue like any other message. Nothing
//! has to be remembered between command and answer, so a kill between them costs nothing. What no receive rule allows has
//! no such rule, and goes nowhere.

use super::{ForwardRule, Payload, ReceiveRule, TopicTemplate};
use crate::message::{Filter, Qos, Topic};

/// The first level of every local topic of an answer.
pub const ANSWER: &str = "answer";

/// Where an answer to a command should go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The command is handed on as it is.
    AsItIs,
    /// To this local topic, and from there to the cloud.
    Local(Topic),
    /// To this topic at the cloud, which is not allowed: nobody is asked for an answer.
    NotAllowed(Topic),
}

/// The local topic of answers that go to `cloud`, a topic or a filter there.
pub fn local(uplink: &str, cloud: &str) -> String {
    format!("{ANSWER}/{uplink}/{cloud}")
}

/// Whether `topic` is a local one for answers to the cloud of this uplink.
pub fn is_local(uplink: &str, topic: &str) -> bool {
    let rest = topic.strip_prefix(ANSWER).and_then(|rest| rest.strip_prefix('/'));
    rest.and_then(|rest| rest.strip_prefix(uplink)).is_some_and(|rest| rest.starts_with('/'))
}

/// Where the answer to a command goes that `rules[place]` has taken in under `topic`, and that asks for one at `asked`.
pub fn way(uplink: &str, rules: &[ReceiveRule], place: usize, topic: &Topic, asked: Option<&Topic>) -> Way {
    let Some(rule) = rules.get(place).filter(|rule| rule.answer.is_some() || !rule.answers.is_empty()) else {
        return Way::AsItIs;
    };
    let cloud = match (asked, &rule.answer) {
        (Some(asked), _) => {
            // What would come back as a command is no place for an answer, whatever else is allowed.
            let is_command = rules.iter().any(|rule| rule.filter.matches(asked));
            if is_command || !allowed(rule).iter().any(|filter| filter.matches(asked)) {
                return Way::NotAllowed(asked.clone());
            }
            asked.clone()
        }
        (None, Some(answer)) => match answer.apply(&rule.filter, topic) {
            Some(Ok(answer)) => answer,
            _ => return Way::AsItIs,
        },
        (None, None) => return Way::AsItIs,
    };
    Topic::new(&local(uplink, cloud.as_str())).map_or(Way::NotAllowed(cloud), Way::Local)
}

/// The forward rules that take answers to the cloud, also those to `others`. They stand before the owner's own.
pub(super) fn forwards(uplink: &str, rules: &[ReceiveRule], others: Option<Filter>) -> Vec<ForwardRule> {
    let mut result: Vec<ForwardRule> = Vec::new();
    for filter in rules.iter().flat_map(allowed).chain(others) {
        let rule = Filter::new(&local(uplink, filter.as_str())).ok().and_then(|local| {
            let topic = TopicTemplate::parse(&template(&filter), &local, "").ok()?;
            // An answer is worth keeping also where its sender did not think so.
            let qos = Some(Qos::AtLeastOnce);
            Some(ForwardRule {
                filter: local,
                topic,
                qos,
                when_full: None,
                strict_order: false,
                payload: Payload::JSON,
                batch: None,
            })
        });
        if let Some(rule) = rule.filter(|rule| result.iter().all(|other| other.filter != rule.filter)) {
            result.push(rule);
        }
    }
    result
}

/// Where answers to commands of this rule may go.
pub(super) fn allowed(rule: &ReceiveRule) -> Vec<Filter> {
    rule.answers.iter().cloned().chain(rule.answer.as_ref().and_then(reach)).collect()
}

/// All that a template can become.
fn reach(template: &TopicTemplate) -> Option<Filter> {
    let mut levels = Vec::new();
    for level in template.as_str().split('/') {
        if level.contains("{topic}") || level.contains("{rest}") {
            levels.push("#");
            break;
        }
        levels.push(if level.contains('{') { "+" } else { level });
    }
    Filter::new(&levels.join("/")).ok()
}

/// The template that gives back what a filter matched.
fn template(filter: &Filter) -> String {
    let mut number = 0;
    let levels = filter.as_str().split('/').map(|level| match level {
        "#" => "{rest}".to_owned(),
        "+" => {
            number += 1;
            format!("{{{number}}}")
        }
        level => level.to_owned(),
    });
    levels.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(filter: &str, answer: Option<&str>, answers: &[&str]) -> ReceiveRule {
        let filter = Filter::new(filter).unwrap();
        let template = |text: &str| TopicTemplate::parse(text, &filter, "g").unwrap();
        ReceiveRule {
            topic: template("{topic}"),
            qos: Qos::AtLeastOnce,
            answer: answer.map(template),
            answers: answers.iter().map(|text| Filter::new(text).unwrap()).collect(),
            filter,
        }
    }

    fn topic(text: &str) -> Topic {
        Topic::new(text).unwrap()
    }

    /// Where an answer ends that is published at the local topic of `way`.
    fn end(rules: &[ReceiveRule], way: Way) -> Option<String> {
        let Way::Local(local) = way else { return None };
        assert!(is_local("hub", local.as_str()));
        let forwards = forwards("hub", rules, None);
        let rule = forwards.iter().find(|rule| rule.filter.matches(&local))?;
        Some(rule.topic.apply(&rule.filter, &local)?.unwrap().as_str().to_owned())
    }

    #[test]
    fn an_answer_goes_where_the_command_asks_if_that_is_allowed_and_else_where_the_rule_says() {
        let rules = [rule("do/#", Some("done/{rest}"), &["answers/+/x", "all/#"]), rule("more/#", None, &[])];
        for (asked, expected) in [
            (Some("answers/7/x"), Some("answers/7/x")),
            (Some("all/a/b"), Some("all/a/b")),
            (Some("done/z"), Some("done/z")),
            (None, Some("done/a/b")),
            (Some("answers/7/y"), None),
            (Some("elsewhere"), None),
        ] {
            let asked = asked.map(topic);
            let way = way("hub", &rules, 0, &topic("do/a/b"), asked.as_ref());
            assert_eq!(end(&rules, way.clone()).as_deref(), expected, "{asked:?}");
            if expected.is_none() {
                assert_eq!(way, Way::NotAllowed(asked.unwrap()));
            }
        }
        assert_eq!(way("hub", &rules, 1, &topic("more/a"), Some(&topic("x"))), Way::AsItIs);
    }

    #[test]
    fn no_answer_goes_where_commands_come_from() {
        let rules = [rule("do/#", None, &["#"]), rule("more/+", None, &[])];
        for asked in ["do/a", "do", "more/b"] {
            let way = way("hub", &rules, 0, &topic("do/x"), Some(&topic(asked)));
            assert_eq!(way, Way::NotAllowed(topic(asked)));
        }
        let other = way("hub", &rules, 0, &topic("do/x"), Some(&topic("more")));
        assert_eq!(end(&rules, other).as_deref(), Some("more"));
    }

    #[test]
    fn a_topic_of_a_server_can_be_answered_at() {
        let rules = [rule("$iothub/methods/POST/+/+", Some("$iothub/methods/res/200/{2}"), &[])];
        let way = way("hub", &rules, 0, &topic("$iothub/methods/POST/reboot/?$rid=1"), None);
        assert_eq!(end(&rules, way).as_deref(), Some("$iothub/methods/res/200/?$rid=1"));
    }

    #[test]
    fn only_topics_below_the_uplinks_own_are_for_its_answers() {
        for (text, expected) in [("answer/hub/a", true), ("answer/hub", false), ("answer/hubs/a", false), ("a", false)]
        {
            assert_eq!(is_local("hub", text), expected, "{text}");
        }
    }
}
