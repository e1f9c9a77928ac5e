//! Which refusals were told already: each is told once, and of very many only the first. Pure.

use std::collections::HashSet;

/// Refusals that are told between two changes of the configuration, of one client and in all.
const OF_ONE_MAX: usize = 16;
const ALL_MAX: usize = 1024;

/// What becomes of a refusal in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    /// It is new.
    Tell,
    /// It is new, and the last one that is told.
    TellLast,
    /// It was told, or is one of too many.
    Not,
}

/// The refusals that were told.
#[derive(Debug, Default)]
pub(super) struct Told {
    told: HashSet<(Box<str>, Box<str>)>,
    /// How many of each, so that one does not take the room of all.
    counts: std::collections::HashMap<Box<str>, usize>,
}

impl Told {
    /// Notes a refusal of `whom`; `what` tells it from his others.
    pub(super) fn note(&mut self, whom: &str, what: &str) -> Telling {
        let count = self.counts.get(whom).copied().unwrap_or(0);
        if self.told.len() >= ALL_MAX || count >= OF_ONE_MAX || !self.told.insert((Box::from(whom), Box::from(what))) {
            return Telling::Not;
        }
        self.counts.insert(Box::from(whom), count + 1);
        match count + 1 == OF_ONE_MAX || self.told.len() == ALL_MAX {
            true => Telling::TellLast,
            false => Telling::Tell,
        }
    }

    /// The configuration has changed: what is refused now is told anew.
    pub(super) fn forget(&mut self) {
        *self = Told::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_and_of_very_many_only_the_first() {
        let mut told = Told::default();
        assert_eq!(told.note("plc7", "publish a"), Telling::Tell);
        assert_eq!(told.note("plc7", "publish a"), Telling::Not);
        let more: Vec<Telling> = (0..1000).map(|topic| told.note("plc7", &topic.to_string())).collect();
        assert_eq!(more.iter().filter(|telling| **telling != Telling::Not).count(), OF_ONE_MAX - 1);
        assert!(more.contains(&Telling::TellLast));
        assert_eq!(told.note("plc8", "publish a"), Telling::Tell, "another has his own");
        let many = (0..5000).filter(|client| told.note(&client.to_string(), "x") != Telling::Not).count();
        assert_eq!(many, ALL_MAX - OF_ONE_MAX - 1);
        told.forget();
        assert_eq!(told.note("plc7", "publish a"), Telling::Tell);
    }
}
