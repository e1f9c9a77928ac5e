//! When a point is told: deadband, least interval, heartbeat. Pure.
//!
//! Promises: a change of quality is told at once; a point that stays bad is told again only at its heartbeat; a value
//! that moved is never forgotten, at most told later. Times are durations since the line started.

use std::time::Duration;

use crate::config::{Deadband, Report};
use crate::message::{Quality, Value};

/// How often a bad point is told again where nothing is written.
const BAD_HEARTBEAT: Duration = Duration::from_secs(60);
/// A heartbeat of nothing would tell a bad point without end.
const BAD_HEARTBEAT_MIN: Duration = Duration::from_secs(1);

/// Remembers what was told of one point last, and decides what is told next.
#[derive(Debug, Clone)]
pub struct Reporter {
    rule: Report,
    told: Option<Told>,
}

#[derive(Debug, Clone)]
struct Told {
    value: Value,
    quality: Quality,
    at: Duration,
}

impl Reporter {
    /// A point of which nothing was told yet.
    pub fn new(rule: Report) -> Reporter {
        Reporter { rule, told: None }
    }

    /// Whether this is to be told now; remembers it if so.
    pub fn tell(&mut self, value: &Value, quality: Quality, now: Duration) -> bool {
        let wanted = match &self.told {
            None => true,
            Some(told) if told.quality != quality => true,
            Some(told) if quality == Quality::Bad => now >= self.bad_again_at(told),
            Some(told) => self.is_worth_telling(told, value, now),
        };
        if wanted {
            self.told = Some(Told { value: value.clone(), quality, at: now });
        }
        wanted
    }

    /// When a point that stays bad is to be told again; `None` while it is not told as bad.
    pub fn bad_again(&self) -> Option<Duration> {
        let told = self.told.as_ref()?;
        (told.quality == Quality::Bad).then(|| self.bad_again_at(told))
    }

    fn bad_again_at(&self, told: &Told) -> Duration {
        told.at.saturating_add(self.rule.heartbeat.unwrap_or(BAD_HEARTBEAT).max(BAD_HEARTBEAT_MIN))
    }

    fn is_worth_telling(&self, told: &Told, value: &Value, now: Duration) -> bool {
        let age = now.saturating_sub(told.at);
        if self.rule.heartbeat.is_some_and(|heartbeat| age >= heartbeat) {
            return true;
        }
        if self.rule.min_interval.is_some_and(|least| age < least) {
            return false;
        }
        self.rule.deadband.is_none_or(|deadband| moved(&told.value, value, deadband))
    }
}

/// Whether `new` differs from `old` by more than `deadband`; values that are no numbers, whether they differ at all.
fn moved(old: &Value, new: &Value, deadband: Deadband) -> bool {
    let (step, base) = match (whole(old), whole(new), real(old), real(new)) {
        // Counters above 2^53 lose their last digits in a float: the difference is taken first.
        #[expect(clippy::cast_precision_loss, reason = "a difference that large is above any deadband")]
        (Some(old), Some(new), ..) => ((new - old).unsigned_abs() as f64, old.unsigned_abs() as f64),
        (.., Some(old), Some(new)) => ((new - old).abs(), old.abs()),
        _ => return old != new,
    };
    match deadband {
        Deadband::Absolute(least) => step > least,
        // Of 0, every step is more than any percentage.
        Deadband::Percent(percent) => step > base * percent / 100.0,
    }
}

fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Int(value) => Some(i128::from(*value)),
        Value::Uint(value) => Some(i128::from(*value)),
        _ => None,
    }
}

fn real(value: &Value) -> Option<f64> {
    match value {
        Value::Float(value) => Some(*value),
        #[expect(clippy::cast_precision_loss, reason = "compared with a float, which has no more digits")]
        other => whole(other).map(|value| value as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn rule(deadband: Option<f64>, min_interval: Option<u64>, heartbeat: Option<u64>) -> Report {
        let deadband = deadband.map(Deadband::Absolute);
        Report { deadband, min_interval: min_interval.map(seconds), heartbeat: heartbeat.map(seconds) }
    }

    #[test]
    fn without_a_rule_every_read_is_told() {
        let mut reporter = Reporter::new(Report::default());
        for second in 0..5 {
            assert!(reporter.tell(&Value::Int(1), Quality::Good, seconds(second)));
        }
    }

    #[test]
    fn a_value_inside_the_deadband_waits_for_the_heartbeat() {
        let mut reporter = Reporter::new(rule(Some(0.5), None, Some(60)));
        assert!(reporter.tell(&Value::Float(20.0), Quality::Good, seconds(0)));
        assert!(!reporter.tell(&Value::Float(20.5), Quality::Good, seconds(1)));
        assert!(reporter.tell(&Value::Float(20.6), Quality::Good, seconds(2)));
        assert!(!reporter.tell(&Value::Float(20.6), Quality::Good, seconds(61)));
        assert!(reporter.tell(&Value::Float(20.6), Quality::Good, seconds(62)));
    }

    #[test]
    fn a_slow_drift_is_told_when_it_has_left_the_deadband_of_what_was_told() {
        let mut reporter = Reporter::new(rule(Some(1.0), None, None));
        let told: Vec<u64> = (0..10u64)
            .filter(|step| reporter.tell(&Value::Float(*step as f64 * 0.4), Quality::Good, seconds(*step)))
            .collect();
        assert_eq!(told, [0, 3, 6, 9]);
    }

    #[test]
    fn a_change_inside_the_least_interval_is_told_after_it() {
        let mut reporter = Reporter::new(rule(Some(0.0), Some(10), None));
        assert!(reporter.tell(&Value::Bool(false), Quality::Good, seconds(0)));
        assert!(!reporter.tell(&Value::Bool(true), Quality::Good, seconds(5)));
        assert!(reporter.tell(&Value::Bool(true), Quality::Good, seconds(10)));
        assert!(!reporter.tell(&Value::Bool(true), Quality::Good, seconds(30)));
    }

    #[test]
    fn a_bad_point_is_told_once_and_then_at_its_heartbeat_and_again_when_good() {
        let mut reporter = Reporter::new(Report::default());
        assert!(reporter.tell(&Value::Int(7), Quality::Good, seconds(0)));
        assert_eq!(reporter.bad_again(), None);
        assert!(reporter.tell(&Value::Null, Quality::Bad, seconds(1)));
        assert!(!reporter.tell(&Value::Null, Quality::Bad, seconds(60)));
        assert_eq!(reporter.bad_again(), Some(seconds(61)));
        assert!(reporter.tell(&Value::Null, Quality::Bad, seconds(61)));
        assert!(!reporter.tell(&Value::Null, Quality::Bad, seconds(62)));
        assert!(reporter.tell(&Value::Int(7), Quality::Good, seconds(63)));
        let mut short = Reporter::new(rule(None, Some(100), Some(5)));
        assert!(short.tell(&Value::Null, Quality::Bad, seconds(0)));
        assert!(!short.tell(&Value::Null, Quality::Bad, seconds(4)));
        assert!(short.tell(&Value::Null, Quality::Bad, seconds(5)));
        assert!(short.tell(&Value::Int(1), Quality::Good, seconds(6)), "a change of quality does not wait");
    }

    #[test]
    fn counters_beyond_the_digits_of_a_float_still_move() {
        let mut reporter = Reporter::new(rule(Some(0.0), None, None));
        assert!(reporter.tell(&Value::Uint(u64::MAX - 1), Quality::Good, seconds(0)));
        assert!(reporter.tell(&Value::Uint(u64::MAX), Quality::Good, seconds(1)));
        assert!(!reporter.tell(&Value::Uint(u64::MAX), Quality::Good, seconds(2)));
        assert!(reporter.tell(&Value::Float(0.5), Quality::Good, seconds(3)));
    }

    #[test]
    fn a_percentage_is_of_what_was_told_last() {
        let percent = Report { deadband: Some(Deadband::Percent(10.0)), ..Report::default() };
        let mut reporter = Reporter::new(percent);
        let mut told = |value: Value| reporter.tell(&value, Quality::Good, seconds(0));
        assert!(told(Value::Uint(100)));
        assert!(!told(Value::Uint(110)) && !told(Value::Uint(90)));
        assert!(told(Value::Uint(111)));
        assert!(!told(Value::Uint(122)) && told(Value::Uint(123)));
        assert!(told(Value::Float(-1.0)) && !told(Value::Float(-1.05)) && told(Value::Float(-1.2)));
        assert!(told(Value::Float(0.0)) && !told(Value::Float(0.0)), "nothing moved");
        assert!(told(Value::Float(0.001)), "of nothing, everything is more");
        assert!(
            told(Value::Text("auto".into())) && !told(Value::Text("auto".into())) && told(Value::Text("off".into()))
        );
    }
}
