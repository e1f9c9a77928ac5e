//! What is sent for a command, and what an answer says of it. Pure.
//!
//! Promises: only what the owner has written is ever sent, with a number or one of the owner's words in its place: no text of
//! a request reaches the device, so that none can bring a second command along. No number is rounded.

use serde_json::Value as Json;

use crate::config::{CommandValue, SerialCommand};
use crate::field::modbus::encode::Unwritable;
use crate::message::Value;

use super::parse::{Reader, decoded};

/// Whole numbers up to here stand exactly in a double; devices take fewer digits than this.
const NUMBER_MAX: f64 = 9_007_199_254_740_992.0;
/// Of an answer that is told.
const ANSWER_CHARACTERS_MAX: usize = 256;

/// What an answer says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// It was done; what the device said of it.
    Good(Value),
    /// It was not.
    Bad(String),
}

fn unwritable<T>(kind: &'static str, reason: String) -> Result<T, Unwritable> {
    Err(Unwritable { kind, reason })
}

/// What is sent for a request with this value, and the value as it is understood.
pub(in crate::field) fn bytes(
    command: &SerialCommand,
    decimal: u8,
    value: Option<&Json>,
) -> Result<(Vec<u8>, Option<Value>), Unwritable> {
    let Some(wanted) = &command.value else {
        return match value {
            None | Some(Json::Null | Json::Bool(true)) => Ok((command.send.clone(), None)),
            Some(other) => {
                let reason = format!("`{}` takes no value: {} says neither true nor null", command.name, shown(other));
                unwritable("value", reason)
            }
        };
    };
    let Some(value) = value else {
        return unwritable("request", format!("`{}` needs a value", command.name));
    };
    let (text, value) = match wanted {
        CommandValue::Words(words) => {
            let found = value.as_str().and_then(|text| words.iter().find(|word| *word == text));
            let Some(word) = found else {
                return unwritable("value", format!("{} is none of {}", shown(value), words.join(", ")));
            };
            (word.clone(), Value::Text(word.clone()))
        }
        CommandValue::Number { min, max, decimals } => {
            let text = number(value, *min, *max, *decimals)?;
            let value = text.parse().map_or_else(|_| Value::Float(value.as_f64().unwrap_or_default()), Value::Int);
            (if decimal == b',' { text.replace('.', ",") } else { text }, value)
        }
    };
    Ok(([&command.send, text.as_bytes(), &command.rest].concat(), Some(value)))
}

/// A number within its edges, as it is sent: digits, a sign, a point.
fn number(value: &Json, min: Option<f64>, max: Option<f64>, decimals: Option<u8>) -> Result<String, Unwritable> {
    let Some(number) = value.as_f64().filter(|_| value.is_number()) else {
        return unwritable("value", format!("{} is not a number", shown(value)));
    };
    if let Some(min) = min.filter(|min| number < *min) {
        return unwritable("range", format!("{value} is less than {min} (`min`)"));
    }
    if let Some(max) = max.filter(|max| number > *max) {
        return unwritable("range", format!("{value} is more than {max} (`max`)"));
    }
    if number.abs() > NUMBER_MAX {
        return unwritable("range", format!("{value} is out of range"));
    }
    let number = if number == 0.0 { 0.0 } else { number };
    let Some(decimals) = decimals else { return Ok(number.to_string()) };
    let text = format!("{number:.*}", usize::from(decimals));
    // What sums in binary leave behind is no other value: 0.1 + 0.2 is meant as 0.3.
    let noise = 1e-9 * 10_f64.powi(-i32::from(decimals)) + number.abs() * 1e-15;
    let is_same = text.parse::<f64>().is_ok_and(|sent| (sent - number).abs() <= noise);
    if is_same {
        Ok(text)
    } else {
        unwritable("value", format!("{value} has more than {decimals} digits (`decimals`)"))
    }
}

fn shown(value: &Json) -> String {
    value.to_string().chars().take(40).collect()
}

/// What a frame says of a command that was sent; `None`: nothing.
pub(super) fn judged(command: &SerialCommand, reader: &Reader, frame: &[u8]) -> Option<Answer> {
    let text = decoded(frame);
    if command.bad.as_ref().is_some_and(|bad| bad.is_match(&text)) {
        return Some(Answer::Bad(shortened(&text)));
    }
    let captures = command.good.as_ref()?.captures(&text)?;
    let told = match captures.name("value") {
        Some(value) => reader.guessed(value.as_str()),
        None => Value::Text(shortened(&text)),
    };
    Some(Answer::Good(told))
}

/// An answer as it is told.
pub(super) fn shortened(text: &str) -> String {
    text.trim().chars().take(ANSWER_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use regex::Regex;
    use serde_json::json;

    use super::*;
    use crate::config::Parse;

    fn command(value: Option<CommandValue>) -> SerialCommand {
        let rest = if value.is_some() { b"\r".to_vec() } else { Vec::new() };
        SerialCommand {
            name: Arc::from("c"),
            send: b"V".to_vec(),
            rest,
            value,
            good: None,
            bad: None,
            timeout: Duration::from_secs(1),
            per_minute: std::num::NonZeroU16::MIN,
            expiry: Duration::from_secs(1),
            is_idempotent: false,
        }
    }

    fn sent(command: &SerialCommand, decimal: u8, value: &Json) -> Result<String, &'static str> {
        bytes(command, decimal, Some(value))
            .map(|(bytes, _)| String::from_utf8(bytes).unwrap())
            .map_err(|unwritable| unwritable.kind)
    }

    #[test]
    fn a_command_without_a_value_is_sent_as_it_is_written_and_takes_none() {
        let command = command(None);
        for value in [None, Some(json!(null)), Some(json!(true))] {
            assert_eq!(bytes(&command, b'.', value.as_ref()).unwrap(), (b"V".to_vec(), None));
        }
        for value in [json!(false), json!(1), json!("x"), json!([true])] {
            assert_eq!(sent(&command, b'.', &value), Err("value"), "{value}");
        }
    }

    #[test]
    fn a_number_is_sent_whole_or_not_at_all() {
        let number = |min, max, decimals| command(Some(CommandValue::Number { min, max, decimals }));
        let free = number(None, None, None);
        for (value, text) in
            [(json!(5), "V5\r"), (json!(-2.5), "V-2.5\r"), (json!(-0.0), "V0\r"), (json!(1e3), "V1000\r")]
        {
            assert_eq!(sent(&free, b'.', &value).unwrap(), text);
        }
        assert_eq!(sent(&free, b',', &json!(2.5)).unwrap(), "V2,5\r");
        for value in [json!("5"), json!(null), json!(true), json!({})] {
            assert_eq!(sent(&free, b'.', &value), Err("value"), "{value}");
        }
        assert_eq!(sent(&free, b'.', &json!(1e300)), Err("range"));
        let bounded = number(Some(0.0), Some(30.0), Some(2));
        assert_eq!(sent(&bounded, b'.', &json!(12.5)).unwrap(), "V12.50\r");
        assert_eq!(sent(&bounded, b'.', &json!(0.1 + 0.2)).unwrap(), "V0.30\r");
        assert_eq!([json!(-1), json!(31)].map(|value| sent(&bounded, b'.', &value)), [Err("range"), Err("range")]);
        assert_eq!(sent(&bounded, b'.', &json!(2.555)), Err("value"));
        assert_eq!(bytes(&bounded, b'.', None).unwrap_err().kind, "request");
    }

    #[test]
    fn no_text_of_a_request_reaches_the_device() {
        let words = command(Some(CommandValue::Words(vec!["ON".to_owned(), "OFF".to_owned()])));
        assert_eq!(sent(&words, b'.', &json!("ON")).unwrap(), "VON\r");
        for value in [json!("ON\rRESET"), json!("on"), json!(""), json!(1)] {
            assert_eq!(sent(&words, b'.', &value), Err("value"), "{value}");
        }
    }

    #[test]
    fn an_answer_is_good_bad_or_about_something_else() {
        let mut command = command(None);
        let reader = Reader { parse: Parse::Nothing, decimal: b',', good: BTreeMap::new(), points: Vec::new() };
        assert_eq!(judged(&command, &reader, b"OK"), None);
        command.good = Some(Regex::new("^OK( (?<value>.*))?$").unwrap());
        command.bad = Some(Regex::new("^(ES|OK !)").unwrap());
        assert_eq!(judged(&command, &reader, b"OK 1,5"), Some(Answer::Good(Value::Float(1.5))));
        assert_eq!(judged(&command, &reader, b"OK"), Some(Answer::Good(Value::Text("OK".to_owned()))));
        assert_eq!(judged(&command, &reader, b"OK !"), Some(Answer::Bad("OK !".to_owned())), "bad goes before good");
        assert_eq!(judged(&command, &reader, b"S S 1,00 kg"), None);
        command.good = Some(Regex::new("^\u{6}").unwrap());
        assert!(matches!(judged(&command, &reader, b"\x06\xFF"), Some(Answer::Good(_))), "bytes are characters");
    }
}
