//! How far filters reach: whether one asks for all, or for any, of what another asks for. Pure.

use super::Filter;

impl Filter {
    /// Whether this filter matches every topic that `narrow` matches (MQTT 5.0, 4.7). Share groups do not matter.
    pub fn covers(&self, narrow: &Filter) -> bool {
        let (wide, narrow) = (self.pattern(), narrow.pattern());
        if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
            return false;
        }
        let (mut wide, mut narrow) = (wide.split('/'), narrow.split('/'));
        loop {
            match (wide.next(), narrow.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(level)) if level != "#" => {}
                (Some(wanted), Some(level)) if wanted == level => {}
                _ => return false,
            }
        }
    }

    /// Whether there is a topic that both match.
    pub fn meets(&self, other: &Filter) -> bool {
        let (one, other) = (self.pattern(), other.pattern());
        let is_hidden = |hidden: &str, from: &str| hidden.starts_with('$') && from.starts_with(['+', '#']);
        if is_hidden(one, other) || is_hidden(other, one) {
            return false;
        }
        let (mut one, mut other) = (one.split('/'), other.split('/'));
        loop {
            match (one.next(), other.next()) {
                (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
                (Some(one), Some(other)) if one == other || one == "+" || other == "+" => {}
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Topic;
    use proptest::prelude::*;

    fn filter(text: &str) -> Filter {
        Filter::new(text).unwrap()
    }

    #[test]
    fn a_filter_covers_another_when_it_matches_all_that_the_other_matches() {
        for (wide, narrow, expected) in [
            ("#", "a/b", true),
            ("#", "$share", false),
            ("#", "$SYS/#", false),
            ("$SYS/#", "$SYS/a", true),
            ("#", "+/a", true),
            ("a/#", "a", true),
            ("a/#", "a/+/b", true),
            ("a/#", "a/#", true),
            ("a/#", "$share/g/a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a/#", false),
            ("a/+", "a", false),
            ("a/+/#", "a/#", false),
            ("a/b", "a/+", false),
            ("+/b", "a/b", true),
            ("a/#", "b/#", false),
            ("a", "a/b", false),
        ] {
            assert_eq!(filter(wide).covers(&filter(narrow)), expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn filters_meet_when_a_topic_matches_both() {
        for (one, other, expected) in [
            ("#", "a/b", true),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("$SYS/#", "$SYS/+", true),
            ("a/+", "+/b", true),
            ("a/+", "+/b/c", false),
            ("a/#", "a", true),
            ("a", "a/b", false),
            ("a/+/c", "a/b/#", true),
            ("a/b", "a/c", false),
        ] {
            assert_eq!(filter(one).meets(&filter(other)), expected, "{one} {other}");
            assert_eq!(filter(other).meets(&filter(one)), expected, "{other} {one}");
        }
    }

    fn levels(names: Vec<&'static str>) -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(names), 1..4).prop_map(|levels| levels.join("/"))
    }

    fn any_filter() -> impl Strategy<Value = Filter> {
        (levels(vec!["a", "b", "+", "$x"]), any::<bool>()).prop_map(|(text, has_hash)| match has_hash {
            true => filter(&format!("{text}/#")),
            false => filter(&text),
        })
    }

    proptest! {
        #[test]
        fn covering_and_meeting_agree_with_matching(
            one in any_filter(), other in any_filter(), topic in levels(vec!["a", "b", "c", "$x"])
        ) {
            let topic = Topic::new(&topic).unwrap();
            if one.covers(&other) && other.matches(&topic) {
                prop_assert!(one.matches(&topic), "{one:?} {other:?} {topic:?}");
            }
            if one.matches(&topic) && other.matches(&topic) {
                prop_assert!(one.meets(&other), "{one:?} {other:?} {topic:?}");
            }
        }
    }
}
