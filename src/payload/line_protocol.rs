//! Lines as InfluxDB and Telegraf take them: `device,gateway=g supply=6.5,return=12 1795425600123000000`. Pure.
//!
//! The measurement is the device, the fields are its points of one moment, the time is in nanoseconds. A point that is not
//! good has `<point>_quality` and `<point>_reason` beside it, or in its place where it has no value. A line that comes
//! again writes the same fields at the same time: the place of an id.

use std::collections::HashSet;
use std::fmt::Write as _;

use bytes::Bytes;

use super::Outgoing;
use super::time::Time;
use crate::message::{Quality, Value};

pub(super) fn encode(readings: &[Outgoing<'_>]) -> Bytes {
    let mut text = String::new();
    let mut rest = readings;
    while let [first, later @ ..] = rest {
        let time = Time::new(first.reading.stamp, first.timing);
        let mut points = HashSet::from([&*first.reading.point]);
        let more = later.iter().take_while(|next| {
            next.reading.device == first.reading.device
                && next.id.gateway == first.id.gateway
                && Time::new(next.reading.stamp, next.timing) == time
                && points.insert(&next.reading.point)
        });
        let (now, then) = rest.split_at(1 + more.count());
        line(&mut text, time, now);
        rest = then;
    }
    Bytes::from(text)
}

fn line(text: &mut String, time: Time, readings: &[Outgoing<'_>]) {
    let Some(first) = readings.first() else { return };
    escape(text, &first.reading.device, &[',', ' ']);
    text.push_str(",gateway=");
    escape(text, &first.id.gateway, &[',', '=', ' ']);
    let mut separator = ' ';
    for one in readings {
        let reading = one.reading;
        // A field may not be called as the column of the time is.
        let point = if &*reading.point == "time" { "time_" } else { &*reading.point };
        let mut field = |suffix: &str, value: &str| {
            text.push(separator);
            separator = ',';
            escape(text, point, &[',', '=', ' ']);
            text.push_str(suffix);
            text.push('=');
            text.push_str(value);
        };
        let value = value(&reading.value);
        if let Some(value) = &value {
            field("", value);
        }
        if reading.quality != Quality::Good || value.is_none() {
            field("_quality", &quoted(reading.quality.name()));
        }
        if let Some(reason) = &reading.reason {
            field("_reason", &quoted(reason));
        }
    }
    if let Some(clock) = time.clock_name() {
        text.push_str(",clock=");
        text.push_str(&quoted(clock));
    }
    // Writing to a String cannot fail.
    let _ok = writeln!(text, " {}", time.wall_ms.saturating_mul(1_000_000));
}

/// `None` where there is no value: a null is no field.
fn value(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(value) => Some(format!("{value}i")),
        // Unsigned numbers are unknown to InfluxDB 1: what fits is signed, what does not is a float.
        Value::Uint(value) => {
            Some(i64::try_from(*value).map_or_else(|_| value.to_string(), |value| format!("{value}i")))
        }
        Value::Float(value) if !value.is_finite() => None,
        Value::Float(value) => serde_json::to_string(value).ok(),
        Value::Text(value) => Some(quoted(value)),
    }
}

fn quoted(text: &str) -> String {
    let mut result = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => result.extend(['\\', character]),
            // A line is a line: those that are judged one by one must be.
            '\n' | '\r' => result.push(' '),
            other => result.push(other),
        }
    }
    result.push('"');
    result
}

/// Names have no control characters, and no slash: it stands for the backslash, which cannot be escaped here.
fn escape(into: &mut String, name: &str, special: &[char]) {
    for character in name.chars() {
        if special.contains(&character) {
            into.push('\\');
        }
        into.push(if character == '\\' { '/' } else { character });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::samples::{NOON, bad, outgoing, sample};

    fn lines(samples: &[crate::payload::samples::Sample]) -> String {
        String::from_utf8(encode(&outgoing(samples)).to_vec()).unwrap()
    }

    #[test]
    fn points_of_one_moment_share_a_line() {
        let samples = [
            sample("chiller", "supply", Value::Float(6.5), 1, NOON),
            sample("chiller", "count", Value::Uint(7), 2, NOON),
            bad(sample("chiller", "flow", Value::Null, 3, NOON)),
            sample("chiller", "supply", Value::Float(6.0), 4, NOON),
            sample("chiller", "supply", Value::Float(1e300), 5, NOON + 1),
        ];
        assert_eq!(
            lines(&samples),
            "chiller,gateway=g7 supply=6.5,count=7i,flow_quality=\"bad\",flow_reason=\"no answer within 1 s\" 1795425600123000000\n\
             chiller,gateway=g7 supply=6.0 1795425600123000000\n\
             chiller,gateway=g7 supply=1e+300 1795425600124000000\n"
        );
    }

    #[test]
    fn odd_names_and_texts_stay_within_their_line() {
        let samples = [
            sample("hall 3,a=b", "a b=c,d\\", Value::Text("say \"hi\"\\\nthere".to_owned()), 1, NOON),
            sample("x", "time", Value::Uint(u64::MAX), 2, NOON),
        ];
        assert_eq!(
            lines(&samples),
            "hall\\ 3\\,a=b,gateway=g7 a\\ b\\=c\\,d/=\"say \\\"hi\\\"\\\\ there\" 1795425600123000000\n\
             x,gateway=g7 time_=18446744073709551615 1795425600123000000\n"
        );
    }
}
