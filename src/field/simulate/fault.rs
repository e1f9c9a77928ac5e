//! Faults of simulated devices: which, at which unit, how often. Pure.

use std::time::Duration;

use crate::config;

/// What is done to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It comes later, but mostly in time.
    Delay(Duration),
    /// An exception in its place.
    Exception(u8),
    /// Nothing comes.
    Silence,
    /// One bit of it is wrong: the checksum of RTU tells; over TCP the header is spoilt, because nothing guards data there.
    BadCrc,
    /// It bears the id of another unit.
    WrongUnit,
    /// It comes when the next request has come, just before the answer to that one.
    Late,
}

/// A fault as it is asked for: `[UNIT:]KIND[=VALUE][/EVERY]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// `None` = all units.
    pub unit_id: Option<u8>,
    /// What happens.
    pub trouble: Trouble,
    /// To each so-manieth request.
    pub every: u32,
}

impl Fault {
    /// Reads `3:exception=6/10`: each tenth request to unit 3 is answered with exception 6. The error is for a person.
    pub fn parse(text: &str) -> Result<Fault, String> {
        const HELP: &str = "write [UNIT:]KIND[=VALUE][/EVERY] with delay=200ms, exception=2, silence, bad-crc, wrong-unit \
                            or late: 3:exception=6/10";
        let (rest, every) = match text.rsplit_once('/') {
            Some((rest, every)) => (rest, every.parse().ok().filter(|every| *every > 0).ok_or(HELP)?),
            None => (text, 1),
        };
        let (unit_id, what) = match rest.split_once(':') {
            Some(("*", what)) => (None, what),
            Some((unit, what)) => (Some(unit.parse::<u8>().map_err(|_| HELP)?), what),
            None => (None, rest),
        };
        let trouble = match what.split_once('=') {
            Some(("delay", time)) => Trouble::Delay(duration(time)?),
            Some(("exception", code)) => Trouble::Exception(code.parse().ok().filter(|code| *code > 0).ok_or(HELP)?),
            None if what == "silence" => Trouble::Silence,
            None if what == "bad-crc" => Trouble::BadCrc,
            None if what == "late" => Trouble::Late,
            None if what == "wrong-unit" => Trouble::WrongUnit,
            _ => return Err(HELP.to_owned()),
        };
        Ok(Fault { unit_id, trouble, every })
    }

    /// Whether it strikes the `number`-th request (from 0) to a unit.
    pub fn strikes(&self, unit_id: u8, number: u64) -> bool {
        self.unit_id.is_none_or(|unit| unit == unit_id) && (number + 1).is_multiple_of(u64::from(self.every))
    }
}

/// More than an hour is no delay, but silence.
fn duration(text: &str) -> Result<Duration, String> {
    let time = config::parse_duration(text)?;
    if time <= Duration::from_secs(3600) { Ok(time) } else { Err("at most an hour; longer is `silence`".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_and_strike_when_they_say() {
        let fault = Fault::parse("3:exception=6/10").unwrap();
        assert_eq!(fault, Fault { unit_id: Some(3), trouble: Trouble::Exception(6), every: 10 });
        assert_eq!((0..30).filter(|number| fault.strikes(3, *number)).collect::<Vec<_>>(), [9, 19, 29]);
        assert!(!fault.strikes(4, 9));
        assert_eq!(Fault::parse("*:delay=2s").unwrap().trouble, Trouble::Delay(Duration::from_secs(2)));
        assert!(Fault::parse("silence").unwrap().strikes(200, 0));
        for wrong in [
            "",
            "x",
            "3:",
            "exception",
            "exception=0",
            "exception=300",
            "silence=1",
            "late=2s",
            "bad-crc/0",
            "delay=2h",
            "300:silence",
        ] {
            assert!(Fault::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
