//! Filters as a tree: what wants a topic is found in one walk along its levels, however many filters there are. Pure.

use std::collections::HashMap;

use super::{Filter, Topic};

/// Filters, each with a number of its owner's choice. Shared ones lie where their patterns do.
#[derive(Debug, Default)]
pub struct Tree {
    root: Node,
}

impl Tree {
    /// Whether there is no filter in it.
    pub fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    /// The place of a filter's number; it is to be filled.
    pub fn place(&mut self, filter: &Filter) -> &mut Option<u32> {
        place(&mut self.root, filter.pattern())
    }

    /// The number of a filter.
    pub fn find(&self, filter: &Filter) -> Option<u32> {
        find(&self.root, filter.pattern())
    }

    /// Takes a filter out.
    pub fn remove(&mut self, filter: &Filter) {
        prune(&mut self.root, filter.pattern());
    }

    /// The numbers of all filters that match a topic.
    pub fn matching(&self, topic: &Topic) -> Vec<u32> {
        let mut found = Vec::new();
        walk(&self.root, Some(topic.as_str()), topic.is_dollar(), &mut found);
        found
    }
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node>,
    plus: Option<Box<Node>>,
    here: Option<u32>,
    hash: Option<u32>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.plus.is_none() && self.here.is_none() && self.hash.is_none()
    }
}

/// The mark that a filter's last level leaves in its node.
fn place<'n>(root: &'n mut Node, pattern: &str) -> &'n mut Option<u32> {
    let mut node = root;
    for level in pattern.split('/') {
        match level {
            "#" => return &mut node.hash,
            "+" => node = node.plus.get_or_insert_default(),
            name => node = node.children.entry(Box::from(name)).or_default(),
        }
    }
    &mut node.here
}

fn find(root: &Node, pattern: &str) -> Option<u32> {
    let mut node = root;
    for level in pattern.split('/') {
        match level {
            "#" => return node.hash,
            "+" => node = node.plus.as_deref()?,
            name => node = node.children.get(name)?,
        }
    }
    node.here
}

fn prune(node: &mut Node, pattern: &str) {
    let (level, rest) = match pattern.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (pattern, None),
    };
    if level == "#" {
        node.hash = None;
        return;
    }
    let next = match level {
        "+" => node.plus.as_deref_mut(),
        name => node.children.get_mut(name),
    };
    let Some(next) = next else { return };
    match rest {
        Some(rest) => prune(next, rest),
        None => next.here = None,
    }
    if next.is_empty() {
        match level {
            "+" => node.plus = None,
            name => {
                node.children.remove(name);
            }
        }
    }
}

fn walk(node: &Node, rest: Option<&str>, is_dollar: bool, found: &mut Vec<u32>) {
    let Some(rest) = rest else {
        // `a/#` also wants `a` itself (MQTT 5.0, 4.7.1.2).
        found.extend(node.here);
        found.extend(node.hash);
        return;
    };
    let (level, rest) = match rest.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (rest, None),
    };
    if !is_dollar {
        found.extend(node.hash);
        if let Some(plus) = &node.plus {
            walk(plus, rest, false, found);
        }
    }
    if let Some(child) = node.children.get(level) {
        walk(child, rest, false, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "", "+", "$x"]), 1..4)
            .prop_flat_map(|levels| {
                any::<bool>().prop_map(move |has_hash| match (levels.join("/"), has_hash) {
                    (text, true) => format!("{text}/#"),
                    (text, false) => text,
                })
            })
            .prop_filter("a filter", |text| Filter::new(text).is_ok())
    }

    fn topic() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "", "$x"]), 1..5)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("a topic", |text| Topic::new(text).is_ok())
    }

    proptest! {
        #[test]
        fn it_finds_what_the_filters_themselves_match_and_forgets_what_is_taken_out(
            filters in prop::collection::btree_set(filter(), 0..12),
            topics in prop::collection::vec(topic(), 1..6),
            gone in any::<u16>(),
        ) {
            let filters: Vec<Filter> = filters.iter().map(|text| Filter::new(text).unwrap()).collect();
            let mut tree = Tree::default();
            for (number, filter) in filters.iter().enumerate() {
                *tree.place(filter) = Some(number as u32);
            }
            let is_gone = |number: usize| gone & (1 << number) != 0;
            for (_, filter) in filters.iter().enumerate().filter(|(number, _)| is_gone(*number)) {
                tree.remove(filter);
            }
            for topic in topics.iter().map(|text| Topic::new(text).unwrap()) {
                let mut found = tree.matching(&topic);
                found.sort_unstable();
                let matching = filters.iter().enumerate().filter(|(number, filter)| !is_gone(*number) && filter.matches(&topic));
                prop_assert_eq!(found, matching.map(|(number, _)| number as u32).collect::<Vec<_>>());
            }
            for filter in &filters {
                tree.remove(filter);
            }
            prop_assert!(tree.is_empty());
        }
    }
}
