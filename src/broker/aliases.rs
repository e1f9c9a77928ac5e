//! Topic aliases towards one client (MQTT 5.0, 3.3.2.3.4): which topics are said by a number on this connection. Pure.
//!
//! Promises: no number above what the client has allowed; a number alone is sent only when the client has been told its topic
//! on this connection; the memory is that of as many topics as there are numbers.

use std::num::NonZeroU16;

use crate::message::Topic;

/// An alias takes three bytes: below this it saves nothing worth the while.
const TOPIC_BYTES_MIN: usize = 8;

/// One of `n` aliases gives way to a new topic when it was not used for this many times `n` messages. So topics in turn, of
/// which there are more than numbers, do not chase each other out before their second time.
const IDLE_ROUNDS: u64 = 4;

/// The aliases of one connection.
#[derive(Debug)]
pub(super) struct Aliases {
    max: u16,
    /// Messages so far.
    count: u64,
    /// The topic of alias 1, 2, …, and when it was used last.
    topics: Vec<(Topic, u64)>,
}

/// How a topic is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// In full.
    Whole,
    /// In full, with a number that stands for it from then on.
    With(NonZeroU16),
    /// By its number.
    By(NonZeroU16),
}

impl Aliases {
    /// For a client that allows `max` of them.
    pub(super) fn new(max: u16) -> Aliases {
        Aliases { max, count: 0, topics: Vec::new() }
    }

    /// How the next message's topic is to be said. Nothing is noted yet: the message may turn out to be too long.
    pub(super) fn say(&self, topic: &Topic) -> Said {
        if topic.as_str().len() < TOPIC_BYTES_MIN {
            return Said::Whole;
        }
        let number = |place: usize| u16::try_from(place + 1).ok().and_then(NonZeroU16::new);
        if let Some(place) = self.topics.iter().position(|(known, _)| known == topic) {
            return number(place).map_or(Said::Whole, Said::By);
        }
        if self.topics.len() < usize::from(self.max) {
            return number(self.topics.len()).map_or(Said::Whole, Said::With);
        }
        let oldest = self.topics.iter().enumerate().min_by_key(|(_, (_, used))| *used);
        match oldest {
            Some((place, (_, used))) if self.count - used > IDLE_ROUNDS * u64::from(self.max) => {
                number(place).map_or(Said::Whole, Said::With)
            }
            _ => Said::Whole,
        }
    }

    /// A message has gone out so.
    pub(super) fn note(&mut self, topic: &Topic, said: Said) {
        self.count += 1;
        let (Said::With(alias) | Said::By(alias)) = said else { return };
        let place = usize::from(alias.get()) - 1;
        match self.topics.get_mut(place) {
            Some(entry) if said == Said::By(alias) => entry.1 = self.count,
            Some(entry) => *entry = (topic.clone(), self.count),
            None => self.topics.push((topic.clone(), self.count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use proptest::prelude::*;

    fn topic(number: usize) -> Topic {
        Topic::new(&format!("plant/press/{number}")).unwrap()
    }

    /// What the client makes of it.
    fn run(max: u16, topics: &[usize]) -> Vec<Said> {
        let (mut aliases, mut client) = (Aliases::new(max), HashMap::new());
        let each = topics.iter().map(|number| {
            let topic = topic(*number);
            let said = aliases.say(&topic);
            aliases.note(&topic, said);
            match said {
                Said::Whole => {}
                Said::With(alias) => {
                    assert!(alias.get() <= max);
                    client.insert(alias, topic);
                }
                Said::By(alias) => assert_eq!(client.get(&alias), Some(&topic), "another topic"),
            }
            said
        });
        each.collect()
    }

    #[test]
    fn a_topic_is_told_once_and_then_said_by_its_number() {
        let number = |n| NonZeroU16::new(n).unwrap();
        let said = run(2, &[1, 1, 2, 3, 2, 1]);
        let expected = [
            Said::With(number(1)),
            Said::By(number(1)),
            Said::With(number(2)),
            Said::Whole,
            Said::By(number(2)),
            Said::By(number(1)),
        ];
        assert_eq!(said, expected);
        assert!(run(0, &[1, 1, 1]).iter().all(|said| *said == Said::Whole), "none is allowed");
        let short = Topic::new("a/b").unwrap();
        assert_eq!(Aliases::new(9).say(&short), Said::Whole);
    }

    #[test]
    fn what_is_not_heard_of_any_more_gives_way_and_what_is_in_turn_does_not() {
        let moved_on: Vec<usize> = [vec![1], vec![2; 20]].concat();
        assert!(matches!(run(1, &moved_on).last(), Some(Said::By(_))));
        let in_turn: Vec<usize> = (0..300).map(|number| number % 6).collect();
        let by_number = run(4, &in_turn).iter().filter(|said| matches!(said, Said::By(_))).count();
        assert!(by_number > 190, "{by_number} of 200");
    }

    proptest! {
        #[test]
        fn a_number_alone_always_stands_for_what_the_client_was_told(
            max in 0_u16..5, topics in prop::collection::vec(0_usize..8, 0..200)
        ) {
            run(max, &topics);
        }
    }
}
