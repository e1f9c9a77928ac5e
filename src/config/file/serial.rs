//! `[serial.<name>]`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use regex::{Regex, RegexBuilder};

use super::super::keys;
use super::super::tree::{Spot, Tree, Written};
use super::super::units::Wrong;
use super::super::walk::{self, At, Reader, Walk, name_fault, nearest};
use super::super::{Ask, Parse, PointTopic, Report, SerialConfig, SerialPoint, TextKind};
use super::modbus::read_report;
use super::{SerialDraft, Words, point_topic, port, qos};

/// The most memory that a compiled regular expression may take.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// The longest regular expression that is looked at.
const PATTERN_BYTES_MAX: usize = 4096;

pub(super) fn read(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot, words: &Words) -> SerialDraft {
    let reader = Reader::open(walk, tree, &keys::SERIAL, spot);
    let (path, port) = port(walk, &reader);
    let ask = ask(walk, &reader);
    let frame = frame(walk, &reader);
    let (parse, decimal) = parse(walk, &reader).unwrap_or_default();
    let columns = parse.as_ref().and_then(columns);
    let good = good(walk, &reader, columns.as_deref());
    let topic = point_topic(walk, &reader, words);
    let level = qos(walk, &reader);
    let is_json = matches!(parse, Some(Parse::Json));
    let (points, point_names) =
        points(walk, &reader, parse.as_ref().map(|_| is_json), columns.as_deref(), good.as_ref());
    let config = (|| {
        let (delimiter, frame_bytes_max) = frame?;
        Some(SerialConfig {
            port: port?,
            ask: ask?,
            delimiter,
            frame_bytes_max,
            parse: parse?,
            decimal: decimal?,
            good: good?,
            topic: PointTopic(topic.as_ref()?.value.clone()),
            qos: level?.value,
            points: points?,
        })
    })();
    SerialDraft { name: Arc::from(name), spot, port: path, topic, point_names, config }
}

/// The outer `None` is a fault.
fn ask(walk: &mut Walk, reader: &Reader<'_>) -> Option<Option<Ask>> {
    if !reader.has("ask") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "ask")?;
    let reader = Reader::open(walk, tree, &keys::ASK, spot);
    let send = reader.leaf(walk, "send", |node| match walk::text(node)? {
        "" => Err(Wrong::new("must not be empty")),
        text if text.len() > 1024 => Err(Wrong::new("must not be longer than 1024 bytes")),
        text => Ok(text.as_bytes().to_vec()),
    });
    let every = reader.duration(walk, "every", Duration::from_millis(10), Duration::from_secs(7 * 86_400));
    let timeout = reader.duration(walk, "timeout", Duration::from_millis(10), Duration::from_secs(60));
    Some(Some(Ask { send: send?.value, every: every?.value, timeout: timeout?.value }))
}

fn frame(walk: &mut Walk, reader: &Reader<'_>) -> Option<(Vec<u8>, usize)> {
    let empty = Tree::default();
    let (tree, spot) = match reader.has("frame") {
        true => reader.table(walk, "frame")?,
        false => (&empty, reader.spot),
    };
    let reader = Reader::open(walk, tree, &keys::FRAME, spot);
    let delimiter = reader.leaf(walk, "delimiter", |node| match walk::text(node)? {
        "" => Err(Wrong::new("must not be empty")
            .help("the characters at the end of a frame: \"\\r\\n\", \"\\r\", \"\\u0003\"")),
        text if text.len() > 16 => Err(Wrong::new("must not be longer than 16 bytes")),
        text => Ok(text.as_bytes().to_vec()),
    });
    let max = reader.integer(walk, "max", 1, 65_536);
    Some((delimiter?.value, usize::try_from(max?.value).ok()?))
}

/// How a frame is taken apart, and the decimal sign: each by itself, so that a fault of one does not hide the names.
fn parse(walk: &mut Walk, reader: &Reader<'_>) -> Option<(Option<Parse>, Option<u8>)> {
    if !reader.has("parse") {
        reader.missing(walk, "parse");
        return None;
    }
    let (tree, spot) = reader.table(walk, "parse")?;
    let reader = Reader::open(walk, tree, &keys::PARSE, spot);
    let regex = read_regex(walk, &reader);
    let csv = read_columns(walk, &reader);
    let json = reader.truth(walk, "json");
    let separator = one_byte(walk, &reader, "separator");
    let decimal = one_byte(walk, &reader, "decimal").and_then(|decimal| match decimal.value {
        b'.' | b',' => Some(decimal),
        _ => {
            walk.wrong(decimal.spot, "decimal", Wrong::new("must be \".\" or \",\""));
            None
        }
    });
    let written: Vec<&str> = ["regex", "csv", "json"].into_iter().filter(|key| reader.has(key)).collect();
    let help = "take `regex = '…'` with named groups, `csv = [\"weight\", \"unit\"]`, or `json = true`";
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
    let parse = if reader.has("regex") {
        regex.map(Parse::Regex)
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
        if let Some(json) = json.as_ref().filter(|json| !json.value) {
            walk.wrong(json.spot, "json", Wrong::new("can only be true; leave it out otherwise"));
        }
        json.map(|_| Parse::Json)
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
    let pattern = reader.text(walk, "regex")?;
    if pattern.value.len() > PATTERN_BYTES_MAX {
        let wrong = Wrong::new(format!("a pattern of more than {PATTERN_BYTES_MAX} bytes is not looked at"));
        walk.wrong(pattern.spot, "regex", wrong);
        return None;
    }
    let built = RegexBuilder::new(&pattern.value).size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_BYTES_MAX).build();
    let regex = match built {
        Ok(regex) => regex,
        Err(regex::Error::CompiledTooBig(_)) => {
            let wrong = Wrong::new("this pattern needs more than 1 MiB").help("a repetition such as {1000} multiplies");
            walk.wrong(pattern.spot, "regex", wrong);
            return None;
        }
        Err(error) => {
            let (offset, message) = regex_fault(&error.to_string());
            let spot = offset.and_then(|offset| inside(walk, &pattern, offset)).unwrap_or(pattern.spot);
            let is_escape = message.contains("escape");
            let mut wrong = Wrong::new(message);
            if is_escape {
                wrong = wrong.help("in a TOML text in 'single quotes' a backslash is a backslash");
            }
            walk.wrong(spot, "regex", wrong);
            return None;
        }
    };
    let mut count = 0;
    for name in regex.capture_names().flatten() {
        count += 1;
        if let Err(wrong) = name_fault(name) {
            walk.wrong(pattern.spot, "regex", wrong);
            return None;
        }
    }
    if count == 0 {
        let wrong = Wrong::new("has no named group, so nothing would be read")
            .help("name what is a value: '(?<weight>[0-9.]+)'");
        walk.wrong(pattern.spot, "regex", wrong);
        return None;
    }
    Some(regex)
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

/// What a frame gives, by name; `None` for JSON, where any key may come.
fn columns(parse: &Parse) -> Option<Vec<String>> {
    match parse {
        Parse::Regex(regex) => Some(regex.capture_names().flatten().map(str::to_owned).collect()),
        Parse::Csv { columns, .. } => Some(columns.iter().filter(|name| !name.is_empty()).cloned().collect()),
        Parse::Json => None,
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
    is_json: Option<bool>,
    columns: Option<&[String]>,
    good: Option<&BTreeMap<String, Vec<String>>>,
) -> Points {
    if !reader.has("point") {
        if is_json == Some(true) {
            let help = "write [serial.<name>.point] with a line for each value to take";
            walk.findings.problem(reader.spot, "JSON frames need points", Some(help.to_owned()));
        }
        let names = columns.unwrap_or_default();
        let points = names.iter().map(|name| SerialPoint {
            name: Arc::from(name.as_str()),
            pointer: None,
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
        match (point(walk, name, tree, spot, is_json), &mut list) {
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

fn point(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot, is_json: Option<bool>) -> Option<SerialPoint> {
    let reader = Reader::open(walk, tree, &keys::SERIAL_POINT, spot);
    let choices =
        [("f64", TextKind::F64), ("i64", TextKind::I64), ("bool", TextKind::Bool), ("string", TextKind::String)];
    let kind = reader.choice(walk, "type", &choices, &[]);
    let unit = reader.text(walk, "unit");
    let pointer = reader.leaf(walk, "pointer", |node| {
        let text = walk::text(node)?;
        // RFC 6901, 3: empty, or each part after a slash.
        if !text.is_empty() && !text.starts_with('/') {
            let help = format!("write \"/{}\"", text.replace('.', "/"));
            return Err(Wrong::new("a JSON pointer starts with a slash").help(help));
        }
        Ok(text.to_owned())
    });
    if reader.has("pointer") && is_json == Some(false) {
        walk.findings.problem(reader.spot_of("pointer"), "`pointer` is for `parse = { json = true }`", None);
    }
    let report = match reader.has("report") {
        true => {
            let (tree, spot) = reader.table(walk, "report")?;
            read_report(walk, tree, spot)
        }
        false => Some(Report::default()),
    };
    if (reader.has("unit") && unit.is_none()) || (reader.has("pointer") && pointer.is_none()) {
        return None;
    }
    Some(SerialPoint {
        name: Arc::from(name),
        pointer: pointer.map(|at| at.value),
        kind: kind?.value,
        unit: unit.map(|at| Arc::from(at.value)),
        report: report?,
    })
}
