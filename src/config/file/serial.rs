//! `[serial.<name>]`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use regex::{Regex, RegexBuilder};

use super::super::keys;
use super::super::tree::{Node, Spot, Tree, Written};
use super::super::units::Wrong;
use super::super::walk::{self, At, Reader, Walk, name_fault, nearest};
use super::super::{
    Ask, Flow, FrameConfig, Parse, PointTopic, PortConfig, Report, Rs485, SerialConfig, SerialPoint, TextKind,
};
use super::{SerialDraft, Words, point_topic, port, qos};
use point::point;

mod command;
mod frame;
mod point;

/// The most memory that a compiled regular expression may take.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// Bytes of a question.
const SEND_BYTES_MAX: usize = 1024;

/// Letters of the name of an NMEA sentence that is a maker's own.
const SENTENCE_LETTERS_MAX: usize = 12;

/// Where a field of fixed columns may end.
const COLUMN_MAX: usize = 65_536;

/// What to write in place of a name that another adapter may bear tomorrow.
pub(super) const STABLE_HELP: &str =
    "take its name under /dev/serial/by-id, or under by-path for one of several equal ones: `tidegate serial list`";

/// The longest regular expression that is looked at.
const PATTERN_BYTES_MAX: usize = 4096;

pub(super) fn read(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot, words: &Words) -> SerialDraft {
    let reader = Reader::open(walk, tree, &keys::SERIAL, spot);
    let (path, port) = port(walk, &reader);
    let ask = ask(walk, &reader);
    let frame = frame::read(walk, &reader);
    let flow = flow(walk, &reader);
    let (parse, decimal) = parse(walk, &reader).unwrap_or_default();
    let columns = parse.as_ref().and_then(columns);
    let frame = match &parse {
        Some(Parse::Nmea(_)) if !reader.has("frame") => Some(FrameConfig::nmea()),
        _ => frame,
    };
    let good = good(walk, &reader, columns.as_deref());
    let topic = point_topic(walk, &reader, words);
    let level = qos(walk, &reader);
    let (points, point_names) = points(walk, &reader, parse.as_ref(), columns.as_deref(), good.as_ref());
    let (commands, command_names) = command::read(walk, &reader);
    if matches!(parse, Some(Parse::Bytes { .. })) && reader.has("good") {
        let what = "`good` is for frames of text; the quality of binary ones is that of their checksum";
        walk.findings.problem(reader.spot_of("good"), what, None);
    }
    if let (Some(Some(ask)), Some(frame)) = (&ask, &frame)
        && let Some(idle) = frame.idle.filter(|idle| frame.ending == super::super::Ending::Idle && *idle >= ask.timeout)
    {
        let what = format!("a silence of {} ms cannot end an answer within `timeout`", idle.as_millis());
        walk.findings.problem(reader.spot_of("ask"), what, Some("make `timeout` longer than `idle`".to_owned()));
    }
    if let (Some(frame), Some(flow)) = (&frame, &flow) {
        let is_binary = frame.checksum.is_some_and(|checksum| checksum.form == super::super::ChecksumForm::Binary);
        if flow.value == Flow::XonXoff && (is_binary || matches!(parse, Some(Parse::Bytes { .. }))) {
            let wrong = Wrong::new("binary frames hold bytes that would be taken for XON and XOFF");
            walk.wrong(flow.spot, "flow", wrong.help("write \"rtscts\", or leave it out"));
        }
    }
    let config = (|| {
        Some(SerialConfig {
            port: PortConfig { flow: flow?.value, ..port? },
            ask: ask?,
            frame: frame?,
            parse: parse?,
            decimal: decimal?,
            good: good?,
            topic: PointTopic(topic.as_ref()?.value.clone()),
            qos: level?.value,
            points: points?,
            commands: commands?,
        })
    })();
    SerialDraft { name: Arc::from(name), spot, port: path, topic, point_names, command_names, config }
}

/// The outer `None` is a fault.
fn ask(walk: &mut Walk, reader: &Reader<'_>) -> Option<Option<Ask>> {
    if !reader.has("ask") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "ask")?;
    let reader = Reader::open(walk, tree, &keys::ASK, spot);
    let send = reader.leaf(walk, "send", sent);
    let every = reader.duration(walk, "every", Duration::from_millis(10), Duration::from_secs(7 * 86_400));
    let timeout = reader.duration(walk, "timeout", Duration::from_millis(10), Duration::from_secs(60));
    Some(Some(Ask { send: send?.value, every: every?.value, timeout: timeout?.value }))
}

/// Bytes to send.
fn sent(node: &Node) -> Result<Vec<u8>, Wrong> {
    frame::bytes(node, SEND_BYTES_MAX)
}

fn flow(walk: &mut Walk, reader: &Reader<'_>) -> Option<At<Flow>> {
    let choices = [("none", Flow::None), ("rtscts", Flow::RtsCts), ("xonxoff", Flow::XonXoff)];
    let flow = reader.choice(walk, "flow", &choices, &[])?;
    if flow.value == Flow::RtsCts {
        for key in ["rts", "rs485"] {
            if reader.has(key) {
                let what = format!("`{key}` and `flow = \"rtscts\"` both need the wire RTS");
                walk.findings.problem(reader.spot_of(key), what, None);
            }
        }
    }
    Some(flow)
}

/// `rs485 = true` or `{ … }`, of a line or of a device. The outer `None` is a fault.
#[expect(clippy::option_option, reason = "wrong, not written, and written are three answers")]
pub(super) fn rs485(walk: &mut Walk, reader: &Reader<'_>) -> Option<Option<Rs485>> {
    if !reader.has("rs485") {
        return Some(None);
    }
    if reader.has("rts") {
        let what = "`rts` has no level of its own where `rs485` switches it";
        walk.findings.problem(reader.spot_of("rts"), what, None);
    }
    let flag = reader.leaf(walk, "rs485", |node| match &node.value {
        Written::Bool(is_on) => Ok(Some(*is_on)),
        Written::Table(_) => Ok(None),
        other => Err(walk::wrong_kind("true, or a table", other)),
    })?;
    match flag.value {
        Some(true) => return Some(Some(Rs485::default())),
        Some(false) => return Some(None),
        None => {}
    }
    let (tree, spot) = reader.table(walk, "rs485")?;
    let reader = Reader::open(walk, tree, &keys::RS485, spot);
    let second = Duration::from_secs(1);
    let invert_rts = reader.truth(walk, "invert_rts");
    let full_duplex = reader.truth(walk, "full_duplex");
    let terminate = reader.truth(walk, "terminate");
    let delay_before = reader.duration(walk, "delay_before", Duration::ZERO, second);
    let delay_after = reader.duration(walk, "delay_after", Duration::ZERO, second);
    Some(Some(Rs485 {
        invert_rts: invert_rts?.value,
        full_duplex: full_duplex?.value,
        terminate: terminate?.value,
        delay_before: delay_before?.value,
        delay_after: delay_after?.value,
    }))
}

/// Why the name of a port may be another adapter's after the next start. The ports of a board keep theirs.
pub(super) fn unstable(path: &std::path::Path) -> Option<String> {
    let text = path.to_str()?;
    let number = ["/dev/ttyUSB", "/dev/ttyACM"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| format!("{text} is whichever adapter was found first: after a start it may be another one"))
}

/// How a frame is taken apart, and the decimal sign: each by itself, so that a fault of one does not hide the names.
fn parse(walk: &mut Walk, reader: &Reader<'_>) -> Option<(Option<Parse>, Option<u8>)> {
    if !reader.has("parse") {
        if !reader.has("command") {
            reader.missing(walk, "parse");
            return None;
        }
        // Only spoken to: what it says are answers to commands.
        for key in ["ask", "good", "point"].into_iter().filter(|key| reader.has(key)) {
            let what = format!("`{key}` needs `parse`, which says how a frame is taken apart");
            walk.findings.problem(reader.spot_of(key), what, None);
        }
        return Some((Some(Parse::Nothing), Some(b'.')));
    }
    let (tree, spot) = reader.table(walk, "parse")?;
    let reader = Reader::open(walk, tree, &keys::PARSE, spot);
    let regex = read_regex(walk, &reader);
    let csv = read_columns(walk, &reader);
    let fixed = fixed(walk, &reader);
    let json = reader.truth(walk, "json");
    let bytes = reader.truth(walk, "bytes");
    let hex = reader.truth(walk, "hex");
    let nmea = sentences(walk, &reader);
    let separator = one_byte(walk, &reader, "separator");
    let decimal = one_byte(walk, &reader, "decimal").and_then(|decimal| match decimal.value {
        b'.' | b',' => Some(decimal),
        _ => {
            walk.wrong(decimal.spot, "decimal", Wrong::new("must be \".\" or \",\""));
            None
        }
    });
    let written: Vec<&str> =
        ["regex", "csv", "fixed", "json", "bytes", "hex", "nmea"].into_iter().filter(|key| reader.has(key)).collect();
    let help = "take `regex = '…'` with named groups, `csv = [\"weight\", \"unit\"]`, `fixed = [\"weight 5-13\"]`, \
                `json = true`, `bytes = true`, `hex = true` or `nmea = { … }`";
    match written.as_slice() {
        [] => {
            walk.findings.problem(spot, "`parse` does not say how to take a frame apart", Some(help.to_owned()));
            return None;
        }
        [_] => {}
        many => {
            let what = format!("`parse` can do one thing: {} are {}", many.join(" and "), many.len());
            walk.findings.problem(spot, what, Some(help.to_owned()));
            return None;
        }
    }
    if reader.has("separator") && !reader.has("csv") {
        walk.findings.problem(reader.spot_of("separator"), "`separator` is for `csv`", None);
    }
    if reader.has("json") && reader.has("decimal") {
        walk.findings.problem(reader.spot_of("decimal"), "`decimal` is not for JSON, whose numbers have a point", None);
    }
    for key in ["bytes", "hex", "nmea"] {
        if reader.has(key) && reader.has("decimal") {
            let what = format!("`decimal` is for numbers in texts that may have another sign, and `{key}` has none");
            walk.findings.problem(reader.spot_of("decimal"), what, None);
        }
    }
    let parse = if reader.has("regex") {
        regex.map(Parse::Regex)
    } else if reader.has("fixed") {
        fixed.map(Parse::Fixed)
    } else if reader.has("nmea") {
        nmea.map(Parse::Nmea)
    } else if reader.has("csv") {
        let separator = match reader.has("separator") {
            true => separator.map(|at| at.value),
            false => Some(b','),
        };
        if separator.is_some() && separator == decimal.as_ref().map(|at| at.value) {
            let help = "devices with a decimal comma mostly separate by \";\"";
            let place = reader.spot_of(if reader.has("separator") { "separator" } else { "decimal" });
            walk.findings.problem(place, "the separator and the decimal sign are the same", Some(help.to_owned()));
        }
        separator.zip(csv).map(|(separator, columns)| Parse::Csv { separator, columns })
    } else {
        let mut only_true = |key: &str, truth: Option<At<bool>>, parse: Parse| {
            let truth = truth?;
            if !truth.value {
                walk.wrong(truth.spot, key, Wrong::new("can only be true; leave it out otherwise"));
            }
            Some(parse)
        };
        only_true("json", json, Parse::Json)
            .or_else(|| only_true("bytes", bytes, Parse::Bytes { is_hex: false }))
            .or_else(|| only_true("hex", hex, Parse::Bytes { is_hex: true }))
    };
    Some((parse, decimal.map(|at| at.value)))
}

fn one_byte(walk: &mut Walk, reader: &Reader<'_>, key: &'static str) -> Option<At<u8>> {
    reader.leaf(walk, key, |node| match walk::text(node)?.as_bytes() {
        [byte @ (b'\t' | b' '..=b'~')] if !byte.is_ascii_alphanumeric() && *byte != b'"' => Ok(*byte),
        _ => Err(Wrong::new("must be one character: no letter, digit or quote")),
    })
}

fn read_regex(walk: &mut Walk, reader: &Reader<'_>) -> Option<Regex> {
    let At { value: regex, spot, .. } = compiled(walk, reader, "regex")?;
    let mut count = 0;
    for name in regex.capture_names().flatten() {
        count += 1;
        if let Err(wrong) = name_fault(name) {
            walk.wrong(spot, "regex", wrong);
            return None;
        }
    }
    if count == 0 {
        let wrong = Wrong::new("has no named group, so nothing would be read")
            .help("name what is a value: '(?<weight>[0-9.]+)'");
        walk.wrong(spot, "regex", wrong);
        return None;
    }
    Some(regex)
}

/// A pattern, bounded.
fn compiled(walk: &mut Walk, reader: &Reader<'_>, key: &'static str) -> Option<At<Regex>> {
    let pattern = reader.text(walk, key)?;
    if pattern.value.len() > PATTERN_BYTES_MAX {
        let wrong = Wrong::new(format!("a pattern of more than {PATTERN_BYTES_MAX} bytes is not looked at"));
        walk.wrong(pattern.spot, key, wrong);
        return None;
    }
    let built = RegexBuilder::new(&pattern.value).size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_BYTES_MAX).build();
    match built {
        Ok(regex) => Some(At { value: regex, spot: pattern.spot, is_default: pattern.is_default }),
        Err(regex::Error::CompiledTooBig(_)) => {
            let wrong = Wrong::new("this pattern needs more than 1 MiB").help("a repetition such as {1000} multiplies");
            walk.wrong(pattern.spot, key, wrong);
            None
        }
        Err(error) => {
            let (offset, message) = regex_fault(&error.to_string());
            let spot = offset.and_then(|offset| inside(walk, &pattern, offset)).unwrap_or(pattern.spot);
            let is_escape = message.contains("escape");
            let mut wrong = Wrong::new(message);
            if is_escape {
                wrong = wrong.help("in a TOML text in 'single quotes' a backslash is a backslash");
            }
            walk.wrong(spot, key, wrong);
            None
        }
    }
}

/// The place and the sentence out of what the regex library prints: pattern, caret line, `error: …`.
fn regex_fault(text: &str) -> (Option<usize>, String) {
    let lines: Vec<&str> = text.lines().collect();
    let message = lines.iter().find_map(|line| line.strip_prefix("error: ")).unwrap_or("this is no regular expression");
    // Patterns of one line are shown indented by four, with the caret line under them.
    let offset = match lines.as_slice() {
        [_, _, carets, _] => carets.find('^').and_then(|column| column.checked_sub(4)),
        _ => None,
    };
    (offset, message.to_owned())
}

/// The character `offset` of a text, when its source is the text itself between quotes.
fn inside(walk: &Walk, pattern: &At<String>, offset: usize) -> Option<Spot> {
    let source = walk.findings.sources.get(pattern.spot.source)?;
    let written = source.text.get(pattern.spot.start..pattern.spot.end)?;
    let quotes = (written.len().checked_sub(pattern.value.len())?) / 2;
    if written.get(quotes..quotes + pattern.value.len())? != pattern.value {
        return None;
    }
    let before: usize = pattern.value.chars().take(offset).map(char::len_utf8).sum();
    let width = pattern.value.get(before..)?.chars().next().map_or(1, char::len_utf8);
    let start = pattern.spot.start + quotes + before;
    Some(Spot { source: pattern.spot.source, start, end: start + width })
}

fn read_columns(walk: &mut Walk, reader: &Reader<'_>) -> Option<Vec<String>> {
    let columns = reader.texts(walk, "csv")?;
    let mut names: Vec<String> = Vec::new();
    let mut is_whole = true;
    for column in &columns {
        let wrong = if column.value.is_empty() {
            None
        } else if names.contains(&column.value) {
            Some(Wrong::new(format!("the column {:?} stands twice", column.value)))
        } else {
            name_fault(&column.value).err()
        };
        if let Some(wrong) = wrong {
            walk.wrong(column.spot, "csv", wrong);
            is_whole = false;
        }
        names.push(column.value.clone());
    }
    if names.iter().all(String::is_empty) {
        let wrong =
            Wrong::new("names no column").help("names in order; \"\" skips a column: [\"\", \"weight\", \"unit\"]");
        walk.wrong(reader.spot_of("csv"), "csv", wrong);
        return None;
    }
    is_whole.then_some(names)
}

/// `nmea = { RMC = ["utc", "status"], GGA = ["", "latitude"] }`
fn sentences(walk: &mut Walk, reader: &Reader<'_>) -> Option<BTreeMap<String, Vec<String>>> {
    if !reader.has("nmea") {
        return None;
    }
    let (tree, spot) = reader.table(walk, "nmea")?;
    let mut sentences = BTreeMap::new();
    let mut is_whole = true;
    for (name, entry) in tree.in_order() {
        let mut wrong = |walk: &mut Walk, spot: Spot, wrong: Wrong| {
            walk.wrong(spot, name, wrong);
            is_whole = false;
        };
        let is_name = (3..=SENTENCE_LETTERS_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        if !is_name {
            let what = Wrong::new("is not the name of a sentence");
            wrong(
                walk,
                entry.key,
                what.help("its letters without those of the talker: \"RMC\"; of one's own all: \"PGRME\""),
            );
        }
        let Written::List(nodes) = &entry.node.value else {
            wrong(walk, entry.node.spot, walk::wrong_kind("a list of names, \"\" to skip one", &entry.node.value));
            continue;
        };
        let mut columns: Vec<String> = Vec::new();
        for node in nodes {
            match walk::text(node) {
                Ok(text) if !text.is_empty() && columns.iter().any(|known| known == text) => {
                    wrong(walk, node.spot, Wrong::new(format!("the field {text:?} stands twice")));
                }
                Ok(text) => {
                    if let Some(fault) =
                        Some(text).filter(|text| !text.is_empty()).and_then(|text| name_fault(text).err())
                    {
                        wrong(walk, node.spot, fault);
                    }
                    columns.push(text.to_owned());
                }
                Err(fault) => wrong(walk, node.spot, fault),
            }
        }
        if columns.iter().all(String::is_empty) {
            wrong(walk, entry.node.spot, Wrong::new("names no field"));
        }
        sentences.insert(name.to_owned(), columns);
    }
    if sentences.is_empty() {
        let help = "nmea = { RMC = [\"utc\", \"status\", \"latitude\", \"ns\", \"longitude\", \"ew\"] }";
        walk.findings.problem(spot, "`nmea` names no sentence", Some(help.to_owned()));
        return None;
    }
    is_whole.then_some(sentences)
}

/// `fixed = ["status 3", "weight 5-13"]`: names and places, the first character being 1.
fn fixed(walk: &mut Walk, reader: &Reader<'_>) -> Option<Vec<(String, usize, usize)>> {
    let mut fields: Vec<(String, usize, usize)> = Vec::new();
    let mut is_whole = true;
    for text in reader.texts(walk, "fixed")? {
        let field = match place(&text.value) {
            Ok((name, ..)) if fields.iter().any(|(known, ..)| *known == name) => {
                Err(Wrong::new(format!("the field {name:?} stands twice")))
            }
            Ok(field) => name_fault(&field.0).map(|()| field),
            Err(wrong) => Err(wrong),
        };
        match field {
            Ok(field) => fields.push(field),
            Err(wrong) => {
                walk.wrong(text.spot, "fixed", wrong);
                is_whole = false;
            }
        }
    }
    if fields.is_empty() && is_whole && reader.has("fixed") {
        let wrong = Wrong::new("names no field").help("names and places: [\"status 3\", \"weight 5-13\"]");
        walk.wrong(reader.spot_of("fixed"), "fixed", wrong);
        return None;
    }
    is_whole.then_some(fields)
}

/// `weight 5-13`
fn place(text: &str) -> Result<(String, usize, usize), Wrong> {
    let wrong = || {
        Wrong::new(format!("{text:?} is not a name and its place"))
            .help("the first and the last character, counted from 1: \"weight 5-13\"")
    };
    let (name, place) = text.trim().rsplit_once(' ').ok_or_else(wrong)?;
    let (first, last) = place.split_once('-').unwrap_or((place, place));
    let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
    let (first, last) = (number(first)?, number(last)?);
    if first == 0 || first > last || last > COLUMN_MAX {
        return Err(wrong());
    }
    Ok((name.trim().to_owned(), first, last))
}

/// What a frame gives, by name; `None` for JSON, where any key may come, and for bytes, which have no
/// names.
fn columns(parse: &Parse) -> Option<Vec<String>> {
    match parse {
        Parse::Regex(regex) => Some(regex.capture_names().flatten().map(str::to_owned).collect()),
        Parse::Csv { columns, .. } => Some(columns.iter().filter(|name| !name.is_empty()).cloned().collect()),
        Parse::Fixed(fields) => Some(fields.iter().map(|(name, ..)| name.clone()).collect()),
        Parse::Nmea(sentences) => {
            let names: BTreeSet<&String> = sentences.values().flatten().filter(|name| !name.is_empty()).collect();
            Some(names.into_iter().cloned().collect())
        }
        Parse::Json | Parse::Bytes { .. } | Parse::Nothing => None,
    }
}

/// Notes a name that no group or column bears.
fn check_column(walk: &mut Walk, name: &str, spot: Spot, columns: Option<&[String]>) {
    let Some(columns) = columns else { return };
    if columns.iter().any(|column| column == name) {
        return;
    }
    let help = match nearest(name, columns.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("a frame gives {}", columns.join(", ")),
    };
    walk.findings.problem(spot, format!("no group or column of `parse` is called `{name}`"), Some(help));
}

fn good(walk: &mut Walk, reader: &Reader<'_>, columns: Option<&[String]>) -> Option<BTreeMap<String, Vec<String>>> {
    let mut good = BTreeMap::new();
    if !reader.has("good") {
        return Some(good);
    }
    let (tree, _) = reader.table(walk, "good")?;
    let mut is_whole = true;
    for (name, entry) in tree.in_order() {
        check_column(walk, name, entry.key, columns);
        let nodes = match &entry.node.value {
            Written::List(nodes) => nodes.as_slice(),
            _ => std::slice::from_ref(&entry.node),
        };
        let mut texts = Vec::new();
        for node in nodes {
            match walk::text(node) {
                Ok(text) => texts.push(text.to_owned()),
                Err(wrong) => {
                    walk.wrong(node.spot, name, wrong);
                    is_whole = false;
                }
            }
        }
        if nodes.is_empty() {
            walk.wrong(entry.node.spot, name, Wrong::new("names no text: nothing would ever be good"));
            is_whole = false;
        }
        good.insert(name.to_owned(), texts);
    }
    is_whole.then_some(good)
}

type Points = (Option<Vec<SerialPoint>>, Vec<(Arc<str>, Spot)>);

fn points(
    walk: &mut Walk,
    reader: &Reader<'_>,
    parse: Option<&Parse>,
    columns: Option<&[String]>,
    good: Option<&BTreeMap<String, Vec<String>>>,
) -> Points {
    if matches!(parse, Some(Parse::Nothing)) {
        return (Some(Vec::new()), Vec::new());
    }
    if !reader.has("point") {
        let of_what = match parse {
            Some(Parse::Json) => Some("JSON frames need points"),
            Some(Parse::Bytes { .. }) => Some("binary frames need points"),
            _ => None,
        };
        if let Some(what) = of_what {
            let help = "write [serial.<name>.point] with a line for each value to take";
            walk.findings.problem(reader.spot, what, Some(help.to_owned()));
        }
        let names = columns.unwrap_or_default();
        let points = names.iter().map(|name| SerialPoint {
            name: Arc::from(name.as_str()),
            pointer: None,
            bytes: None,
            // A group with words for good is a word; of all others a device says numbers.
            kind: if good.is_some_and(|good| good.contains_key(name)) { TextKind::String } else { TextKind::F64 },
            unit: None,
            report: Report::default(),
        });
        let spots = names.iter().map(|name| (Arc::from(name.as_str()), reader.spot)).collect();
        return (Some(points.collect()), spots);
    }
    let mut list = Some(Vec::new());
    let mut spots = Vec::new();
    let Some((tree, table_spot)) = reader.table(walk, "point") else { return (None, spots) };
    for (name, tree, spot) in walk::named(walk, "point", tree) {
        check_column(walk, name, spot, columns);
        spots.push((Arc::from(name), spot));
        match (point(walk, name, tree, spot, parse), &mut list) {
            (Some(point), Some(list)) => list.push(point),
            _ => list = None,
        }
    }
    if spots.is_empty() && tree.keys().next().is_none() {
        let help = "leave the table out: then every group or column is a point";
        walk.findings.problem(table_spot, "this device has no points", Some(help.to_owned()));
    }
    (list, spots)
}
