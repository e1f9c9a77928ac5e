//! What a serial device did once, to be done again: what it said to each question, and what it said by itself. Pure.
//!
//! Promises: a question gets the answers of its next occurrence in the recording, with their times, from the beginning again
//! after the last; one that was never asked gets none. A device that was never asked says all again, without an end.

use std::time::Duration;

use crate::field::record::{Event, Recording};

/// A longer pause in a recording is shortened to this.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Of what is heard at most so much is looked at.
const HEARD_BYTES_MAX: usize = 4096;

/// Pieces, and when each is said after what it belongs to.
type Pieces = Vec<(Duration, Vec<u8>)>;

/// What is to be done.
#[derive(Debug)]
pub(super) struct Script {
    /// Before anything was asked.
    prelude: Pieces,
    exchanges: Vec<(Vec<u8>, Pieces)>,
    /// From where the next question is looked for.
    cursor: usize,
    heard: Vec<u8>,
}

impl Script {
    pub(super) fn new(recording: &Recording) -> Script {
        let mut script = Script { prelude: Vec::new(), exchanges: Vec::new(), cursor: 0, heard: Vec::new() };
        let mut since = Duration::ZERO;
        let mut is_going_on = true;
        for (at, event) in &recording.events {
            let after = at.saturating_sub(since).min(PAUSE_MAX);
            match (event, script.exchanges.last_mut()) {
                (Event::Opened, None) => since = *at,
                // What comes then is no answer to what was asked before.
                (Event::Opened, Some(_)) => is_going_on = false,
                (Event::Sent(bytes), _) => {
                    (since, is_going_on) = (*at, true);
                    script.exchanges.push((bytes.clone(), Vec::new()));
                }
                (Event::Heard(bytes), Some((_, pieces))) if is_going_on => pieces.push((after, bytes.clone())),
                (Event::Heard(bytes), None) => script.prelude.push((after, bytes.clone())),
                (Event::Heard(_), Some(_)) => {}
            }
        }
        script
    }

    /// What is said by itself, from the beginning.
    pub(super) fn prelude(&self) -> &[(Duration, Vec<u8>)] {
        &self.prelude
    }

    /// Whether all is said by itself.
    pub(super) fn is_never_asked(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// Takes a byte in; what is to be said if a question ends with it.
    pub(super) fn hear(&mut self, byte: u8) -> Option<&[(Duration, Vec<u8>)]> {
        if self.heard.len() >= HEARD_BYTES_MAX {
            self.heard.clear();
        }
        self.heard.push(byte);
        let count = self.exchanges.len();
        let is_it = |place: &usize| {
            self.exchanges.get(*place).is_some_and(|(request, _)| !request.is_empty() && self.heard.ends_with(request))
        };
        let place = (0..count).map(|step| (self.cursor + step) % count).find(is_it)?;
        self.cursor = place + 1;
        self.heard.clear();
        self.exchanges.get(place).map(|(_, pieces)| pieces.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::record;

    fn script(events: &str) -> Script {
        Script::new(&record::parse(&format!("# tidegate record 1 serial\n{events}")).unwrap())
    }

    fn said(script: &mut Script, question: &[u8]) -> Vec<(u128, Vec<u8>)> {
        let mut pieces = Vec::new();
        for byte in question {
            pieces.extend_from_slice(script.hear(*byte).unwrap_or_default());
        }
        pieces.into_iter().map(|(after, bytes)| (after.as_millis(), bytes)).collect()
    }

    #[test]
    fn the_same_question_gets_its_answers_in_turn_and_another_one_none() {
        let mut script =
            script("0.0 open\n0.5 < 41\n1.0 > 53 0D\n1.1 < 31\n1.2 < 32\n2.0 > 53 0D\n2.3 < 33\n3 > 54 0D\n");
        assert_eq!(script.prelude(), [(Duration::from_millis(500), vec![0x41])]);
        assert!(!script.is_never_asked());
        assert_eq!(said(&mut script, b"S\r"), [(100, b"1".to_vec()), (200, b"2".to_vec())]);
        assert_eq!(said(&mut script, b"xS\r"), [(300, b"3".to_vec())]);
        assert_eq!(said(&mut script, b"T\r"), []);
        assert_eq!(said(&mut script, b"U\r"), []);
        assert_eq!(said(&mut script, b"S\r").len(), 2);
    }

    #[test]
    fn a_device_that_was_never_asked_speaks_by_itself() {
        let script = script("5 open\n5.5 < 41\n6 < 42\n");
        assert!(script.is_never_asked());
        assert_eq!(script.prelude().iter().map(|(at, _)| at.as_millis()).collect::<Vec<_>>(), [500, 1000]);
    }
}
