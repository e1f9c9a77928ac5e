//! `[serial.<name>.command]`: what may be sent to a device when somebody asks for that.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use super::super::super::keys;
use super::super::super::tree::{Node, Spot, Tree, Written};
use super::super::super::units::Wrong;
use super::super::super::walk::{self, At, Reader, Walk};
use super::super::super::{CommandValue, SerialCommand};
use super::{SEND_BYTES_MAX, compiled, frame};

/// Where the value of a request stands in `send`.
const VALUE: &str = "{value}";
/// More of one command in a minute are a control loop, and belong into the controller.
const PER_MINUTE_MAX: i64 = 6000;
/// What is sent later than this after it was asked for surprises somebody.
const EXPIRY_MAX: Duration = Duration::from_secs(86_400);
/// An answer that takes longer keeps the line from everybody else.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// A double has no more.
const DECIMALS_MAX: i64 = 15;
/// Words that a command may have.
const WORDS_MAX: usize = 256;

type Commands = (Option<Vec<SerialCommand>>, Vec<(Arc<str>, Spot)>);

/// The commands, and where their names stand.
pub(super) fn read(walk: &mut Walk, reader: &Reader<'_>) -> Commands {
    let mut list = Some(Vec::new());
    let mut spots = Vec::new();
    if !reader.has("command") {
        return (list, spots);
    }
    let Some((tree, _)) = reader.table(walk, "command") else { return (None, spots) };
    for (name, tree, spot) in walk::named(walk, "command", tree) {
        spots.push((Arc::from(name), spot));
        match (command(walk, name, tree, spot), &mut list) {
            (Some(command), Some(list)) => list.push(command),
            _ => list = None,
        }
    }
    (list, spots)
}

fn command(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot) -> Option<SerialCommand> {
    let reader = Reader::open(walk, tree, &keys::SERIAL_COMMAND, spot);
    let send = reader.leaf(walk, "send", parts);
    let value = value(walk, &reader, send.as_ref());
    let patterns = ["good", "bad"].map(|key| (reader.has(key), compiled(walk, &reader, key)));
    let timeout = reader.duration(walk, "timeout", Duration::from_millis(10), TIMEOUT_MAX);
    let per_minute = reader.integer(walk, "per_minute", 1, PER_MINUTE_MAX);
    let expiry = reader.duration(walk, "expiry", Duration::from_secs(1), EXPIRY_MAX);
    let idempotent = reader.truth(walk, "idempotent");
    if patterns.iter().any(|(is_written, pattern)| *is_written && pattern.is_none()) {
        return None;
    }
    let [(_, good), (_, bad)] = patterns;
    if good.is_none() && bad.is_none() && reader.has("timeout") {
        let help = "the answer that is waited for: good = '^OK'";
        walk.findings.problem(reader.spot_of("timeout"), "nothing is waited for", Some(help.to_owned()));
    }
    let (send, rest) = send?.value;
    Some(SerialCommand {
        name: Arc::from(name),
        send,
        rest: rest.unwrap_or_default(),
        value: value?,
        good: good.map(|at| at.value),
        bad: bad.map(|at| at.value),
        timeout: timeout?.value,
        per_minute: NonZeroU16::new(u16::try_from(per_minute?.value).ok()?)?,
        expiry: expiry?.value,
        is_idempotent: idempotent?.value,
    })
}

/// What stands before the value, and behind it.
type Parts = (Vec<u8>, Option<Vec<u8>>);

fn parts(node: &Node) -> Result<Parts, Wrong> {
    let whole = frame::bytes(node, SEND_BYTES_MAX)?;
    let Written::Text(text) = &node.value else { return Ok((whole, None)) };
    match text.split_once(VALUE) {
        None => Ok((whole, None)),
        Some((_, rest)) if rest.contains(VALUE) => Err(Wrong::new("{value} can stand in it once")),
        Some((before, rest)) => Ok((before.as_bytes().to_vec(), Some(rest.as_bytes().to_vec()))),
    }
}

/// The outer `None` is a fault.
#[expect(clippy::option_option, reason = "wrong, without a value, and with one are three answers")]
fn value(walk: &mut Walk, reader: &Reader<'_>, send: Option<&At<Parts>>) -> Option<Option<CommandValue>> {
    let min = reader.number(walk, "min");
    let max = reader.number(walk, "max");
    let decimals = reader.integer(walk, "decimals", 0, DECIMALS_MAX);
    let words = reader.texts(walk, "values");
    let holes = [("min", min.is_none()), ("max", max.is_none()), ("decimals", decimals.is_none())];
    if holes.iter().any(|(key, is_missing)| reader.has(key) && *is_missing) || (reader.has("values") && words.is_none())
    {
        return None;
    }
    let has_value = send?.value.1.is_some();
    let of_value: Vec<&str> = ["min", "max", "decimals", "values"].into_iter().filter(|key| reader.has(key)).collect();
    if !has_value {
        for key in &of_value {
            let what = format!("`{key}` is for a value, and `send` has no place for one");
            walk.findings.problem(reader.spot_of(key), what, Some("write {value} where it is to stand".to_owned()));
        }
        return of_value.is_empty().then_some(None);
    }
    if let (Some(min), Some(max)) = (&min, &max)
        && min.value > max.value
    {
        walk.wrong(max.spot, "max", Wrong::new("must not be less than `min`"));
    }
    let Some(words) = words.filter(|_| reader.has("values")) else {
        let decimals = decimals.and_then(|at| u8::try_from(at.value).ok());
        return Some(Some(CommandValue::Number { min: min.map(|at| at.value), max: max.map(|at| at.value), decimals }));
    };
    for key in of_value.iter().filter(|key| **key != "values") {
        let what = format!("`{key}` is for numbers, and the values of this command are words");
        walk.findings.problem(reader.spot_of(key), what, None);
    }
    if words.is_empty() || words.len() > WORDS_MAX {
        let wrong = Wrong::new(format!("has {} words", words.len())).help(format!("from 1 to {WORDS_MAX}"));
        walk.wrong(reader.spot_of("values"), "values", wrong);
        return None;
    }
    Some(Some(CommandValue::Words(words.into_iter().map(|word| word.value).collect())))
}
