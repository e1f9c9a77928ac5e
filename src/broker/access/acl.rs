//! What one client may do: its lists of topics, with its own names filled in. Pure.

use crate::config::TopicRights;
use crate::message::{Filter, Topic};

/// How much of what a subscription asks for its client may hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::broker) enum Reach {
    /// All of it.
    Whole,
    /// Some of it: each message is looked at.
    Part,
    /// Not one topic.
    Nothing,
}

/// What one client may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::broker) struct Rights {
    /// `None`: everything.
    lists: Option<Lists>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lists {
    publish: Vec<Filter>,
    subscribe: Vec<Filter>,
    deny: Vec<Filter>,
}

impl Rights {
    /// Those of a gateway that knows no users.
    pub(in crate::broker) fn everything() -> Rights {
        Rights { lists: None }
    }

    pub(in crate::broker) fn nothing() -> Rights {
        Rights { lists: Some(Lists::default()) }
    }

    /// Those of a client of this name.
    pub(super) fn of(rights: &TopicRights, client_id: &str, username: &str) -> Rights {
        let Some(deny) = rights.deny.iter().map(|pattern| pattern.filter(client_id, username)).collect() else {
            // What is denied to it cannot be said: then everything is.
            return Rights::nothing();
        };
        let allow = |patterns: &[crate::config::TopicPattern]| {
            patterns.iter().filter_map(|pattern| pattern.filter(client_id, username)).collect()
        };
        Rights { lists: Some(Lists { publish: allow(&rights.publish), subscribe: allow(&rights.subscribe), deny }) }
    }

    pub(in crate::broker) fn may_publish(&self, topic: &Topic) -> bool {
        self.lists.as_ref().is_none_or(|lists| lists.allow(&lists.publish, topic))
    }

    pub(in crate::broker) fn may_hear(&self, topic: &Topic) -> bool {
        self.lists.as_ref().is_none_or(|lists| lists.allow(&lists.subscribe, topic))
    }

    pub(in crate::broker) fn reach(&self, filter: &Filter) -> Reach {
        let Some(Lists { subscribe, deny, .. }) = &self.lists else { return Reach::Whole };
        let is_denied = deny.iter().any(|denied| denied.covers(filter));
        if is_denied || !subscribe.iter().any(|allowed| allowed.meets(filter)) {
            Reach::Nothing
        } else if subscribe.iter().any(|allowed| allowed.covers(filter))
            && !deny.iter().any(|denied| denied.meets(filter))
        {
            Reach::Whole
        } else {
            Reach::Part
        }
    }
}

impl Lists {
    fn allow(&self, list: &[Filter], topic: &Topic) -> bool {
        list.iter().any(|allowed| allowed.matches(topic)) && !self.deny.iter().any(|denied| denied.matches(topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_topic_pattern;
    use proptest::prelude::*;

    fn rights(publish: &[&str], subscribe: &[&str], deny: &[&str]) -> Rights {
        let patterns = |texts: &[&str]| texts.iter().map(|text| parse_topic_pattern(text).unwrap()).collect();
        let rights = TopicRights { publish: patterns(publish), subscribe: patterns(subscribe), deny: patterns(deny) };
        Rights::of(&rights, "plc7", "press")
    }

    fn topic(text: &str) -> Topic {
        Topic::new(text).unwrap()
    }

    fn filter(text: &str) -> Filter {
        Filter::new(text).unwrap()
    }

    #[test]
    fn what_is_in_no_list_is_refused_and_publish_and_subscribe_are_apart() {
        let rights = rights(&["plant/{client_id}/#"], &["plant/+/set", "{username}"], &["plant/plc7/secret"]);
        for (text, may_publish, may_hear) in [
            ("plant/plc7/level", true, false),
            ("plant/plc7", true, false),
            ("plant/plc8/level", false, false),
            ("plant/plc7/set", true, true),
            ("plant/plc8/set", false, true),
            ("plant/plc7/secret", false, false),
            ("press", false, true),
            ("other", false, false),
        ] {
            assert_eq!(rights.may_publish(&topic(text)), may_publish, "{text}");
            assert_eq!(rights.may_hear(&topic(text)), may_hear, "{text}");
        }
        assert!(Rights::everything().may_publish(&topic("$SYS/x")) && Rights::everything().may_hear(&topic("a")));
        assert!(!Rights::nothing().may_publish(&topic("a")) && !Rights::nothing().may_hear(&topic("a")));
    }

    #[test]
    fn wildcards_of_a_list_do_not_reach_topics_of_the_server() {
        let all = rights(&["#"], &["#"], &[]);
        assert!(!all.may_publish(&topic("$SYS/x")) && !all.may_hear(&topic("$SYS/x")));
        assert_eq!(all.reach(&filter("$SYS/#")), Reach::Nothing);
        assert_eq!(all.reach(&filter("#")), Reach::Whole);
        assert!(rights(&[], &["$SYS/#"], &[]).may_hear(&topic("$SYS/x")));
    }

    #[test]
    fn a_subscription_is_allowed_wholly_in_part_or_not_at_all() {
        let rights = rights(&[], &["plant/press/#", "time"], &["plant/press/secret/#"]);
        for (text, expected) in [
            ("plant/press/secret/#", Reach::Nothing),
            ("plant/press/secret/a", Reach::Nothing),
            ("plant/press/level", Reach::Whole),
            ("plant/press/#", Reach::Part),
            ("#", Reach::Part),
            ("+", Reach::Part),
            ("time", Reach::Whole),
            ("$share/g/time", Reach::Whole),
            ("plant/lathe/#", Reach::Nothing),
            ("$SYS/#", Reach::Nothing),
        ] {
            assert_eq!(rights.reach(&filter(text)), expected, "{text}");
        }
    }

    #[test]
    fn a_client_whose_name_does_not_fit_what_is_denied_gets_nothing() {
        let pattern = |text| vec![parse_topic_pattern(text).unwrap()];
        let rights = TopicRights { publish: pattern("#"), subscribe: pattern("#"), deny: pattern("x/{client_id}") };
        assert!(Rights::of(&rights, "a", "").may_publish(&topic("b")));
        assert_eq!(Rights::of(&rights, "a/b", ""), Rights::nothing());
    }

    fn name() -> impl Strategy<Value = String> {
        let level = prop::sample::select(vec!["a", "b", "+", "$x"]);
        (prop::collection::vec(level, 1..4), any::<bool>()).prop_map(|(levels, has_hash)| match has_hash {
            true => format!("{}/#", levels.join("/")),
            false => levels.join("/"),
        })
    }

    proptest! {
        #[test]
        fn the_reach_of_a_subscription_agrees_with_what_is_heard(
            allowed in prop::collection::vec(name(), 0..3), denied in prop::collection::vec(name(), 0..3),
            asked in name(), said in prop::collection::vec(prop::sample::select(vec!["a", "b", "$x"]), 1..4)
        ) {
            let lists: Vec<&str> = allowed.iter().map(String::as_str).collect();
            let denies: Vec<&str> = denied.iter().map(String::as_str).collect();
            let rights = rights(&[], &lists, &denies);
            let (asked, said) = (filter(&asked), topic(&said.join("/")));
            if asked.matches(&said) {
                match rights.reach(&asked) {
                    Reach::Whole => prop_assert!(rights.may_hear(&said)),
                    Reach::Nothing => prop_assert!(!rights.may_hear(&said)),
                    Reach::Part => {}
                }
            }
        }
    }
}
