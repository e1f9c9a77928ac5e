//! `frame = { … }`: where a frame begins and ends, and what proves it.

use super::super::super::keys;
use super::super::super::tree::{Node, Spot, Tree, Written};
use super::super::super::units::Wrong;
use super::super::super::walk::{self, At, Reader, Walk};
use super::super::super::{
    ByteOrder, Checksum, ChecksumForm, ChecksumKind, Counts, Ending, Escape, FrameConfig, LengthField,
};
use std::time::Duration;

/// Bytes of a delimiter, a start or an end.
const MARK_BYTES_MAX: usize = 16;

/// Where every byte may be a frame's first, each is tried: longer frames would cost a slow board its time.
const TRIED_BYTES_MAX: i64 = 4096;

/// Bytes as a text, as a number, or as a list of numbers: `"\r\n"`, `0x02`, `[0xAA, 0x55]`.
pub(super) fn bytes(node: &Node, bytes_max: usize) -> Result<Vec<u8>, Wrong> {
    let byte = |node: &Node| match &node.value {
        Written::Integer(Some(number)) => u8::try_from(*number).ok(),
        _ => None,
    };
    let bytes = match &node.value {
        Written::Text(text) => text.as_bytes().to_vec(),
        Written::Integer(_) => vec![byte(node).ok_or_else(|| Wrong::new("is not a byte").help("from 0 to 255"))?],
        Written::List(nodes) => {
            let bytes: Option<Vec<u8>> = nodes.iter().map(byte).collect();
            bytes.ok_or_else(|| Wrong::new("is not a list of bytes").help("numbers from 0 to 255: [0xAA, 0x55]"))?
        }
        other => return Err(walk::wrong_kind("text in quotes, or a list of bytes", other)),
    };
    match bytes.len() {
        0 => Err(Wrong::new("must not be empty")),
        length if length > bytes_max => Err(Wrong::new(format!("must not be longer than {bytes_max} bytes"))),
        _ => Ok(bytes),
    }
}

fn mark(walk: &mut Walk, reader: &Reader<'_>, key: &'static str) -> Option<At<Vec<u8>>> {
    reader.leaf(walk, key, |node| {
        bytes(node, MARK_BYTES_MAX).map_err(|wrong| match (&wrong.help, key) {
            (None, "delimiter" | "end") => {
                wrong.help("the characters at the end of a frame: \"\\r\\n\", \"\\r\", \"\\u0003\"")
            }
            _ => wrong,
        })
    })
}

pub(super) fn read(walk: &mut Walk, reader: &Reader<'_>) -> Option<FrameConfig> {
    let empty = Tree::default();
    let (tree, spot) = match reader.has("frame") {
        true => reader.table(walk, "frame")?,
        false => (&empty, reader.spot),
    };
    let reader = Reader::open(walk, tree, &keys::FRAME, spot);
    let delimiter = mark(walk, &reader, "delimiter");
    let start = mark(walk, &reader, "start");
    let end = mark(walk, &reader, "end");
    let length = length(walk, &reader);
    let idle = reader.duration(walk, "idle", Duration::from_millis(1), Duration::from_secs(60));
    let tail = reader.integer(walk, "tail", 0, 64);
    let escape = escape(walk, &reader);
    let checksum = checksum(walk, &reader);
    let max = reader.integer(walk, "max", 1, 65_536);
    let wrong_one = |key: &str, is_read: bool| reader.has(key) && !is_read;
    if wrong_one("start", start.is_some())
        || wrong_one("end", end.is_some())
        || wrong_one("length", length.is_some())
        || wrong_one("idle", idle.is_some())
    {
        return None;
    }
    let ways: Vec<&str> = ["delimiter", "end", "length"].into_iter().filter(|key| reader.has(key)).collect();
    if let [_, second, ..] = ways.as_slice() {
        let what = format!("a frame can end in one way, and {} are {}", ways.join(" and "), ways.len());
        let help = "take `delimiter`, `start` with `end`, or `length`; with none of them `idle`, a silence, ends it";
        walk.findings.problem(reader.spot_of(second), what, Some(help.to_owned()));
        return None;
    }
    let ending = match ways.first() {
        Some(&"end") => Ending::Mark(end?.value),
        Some(&"length") => length?,
        None if reader.has("idle") => Ending::Idle,
        _ => Ending::Mark(delimiter?.value),
    };
    let (tail, max) = (tail?, max?);
    let config = FrameConfig {
        start: start.map(|at| at.value).unwrap_or_default(),
        ending,
        tail: usize::try_from(tail.value).ok()?,
        escape: escape?,
        idle: idle.map(|at| at.value),
        checksum: checksum?,
        bytes_max: usize::try_from(max.value).ok()?,
    };
    fits(walk, &reader, &config, max.spot);
    Some(config)
}

/// Notes what does not go together.
fn fits(walk: &mut Walk, reader: &Reader<'_>, config: &FrameConfig, max_spot: Spot) {
    let mut problem = |key: &str, what: &str, help: Option<&str>| {
        walk.findings.problem(reader.spot_of(key), what.to_owned(), help.map(str::to_owned));
    };
    let has_start = !config.start.is_empty();
    let is_marked = matches!(config.ending, Ending::Mark(_));
    match &config.ending {
        Ending::Mark(_) if has_start && reader.has("delimiter") => {
            problem("delimiter", "with `start`, what ends a frame is called `end`", None);
        }
        Ending::Mark(_) if has_start && !reader.has("end") => {
            problem("start", "`end` is missing", Some("what ends a frame: `end = \"\\u0003\"`, `length` or `idle`"));
        }
        Ending::Mark(_) if !has_start && reader.has("end") => {
            problem("end", "`end` goes with `start`; alone it is called `delimiter`", None);
        }
        Ending::Mark(mark) if has_start && *mark == config.start => {
            let help = "frames between two equal bytes are delimited by them: `delimiter = 0x7e`";
            problem("end", "`start` and `end` are the same", Some(help));
        }
        Ending::Length(_) | Ending::Field(_) if !has_start && config.checksum.is_none() && config.idle.is_none() => {
            let help = "add `start` (the bytes that each frame begins with), `checksum`, or `idle` (a silence)";
            problem("length", "nothing shows where a frame begins, should a byte be lost", Some(help));
        }
        _ => {}
    }
    if config.tail > 0 && !is_marked {
        problem("tail", "`tail` is what stands behind `end` or the delimiter", None);
    }
    if let Some(escape) = config.escape {
        if !is_marked {
            problem("escape", "`escape` is for frames with `end` or a delimiter", None);
        } else if matches!(&config.ending, Ending::Mark(mark) if mark.as_slice() == [escape.byte])
            || config.start == [escape.byte]
        {
            problem("escape", "`escape` is the very byte that begins or ends a frame", None);
        }
    }
    let width = config.checksum.map_or(0, |checksum| checksum.width());
    let most = config.bytes_max;
    let length = match config.ending {
        Ending::Length(length) => Some(length),
        Ending::Field(_) => Some(config.start.len() + width + 1),
        Ending::Mark(_) | Ending::Idle => None,
    };
    if let Some(length) = length {
        if length > most {
            problem("length", "is longer than `max`", Some("`max` is 1024 unless you write another"));
        }
        if length <= config.start.len() + width {
            problem("length", "leaves no byte between `start` and `checksum`", None);
        }
    }
    if let Some(checksum) = &config.checksum {
        let is_tried = !is_marked && config.ending != Ending::Idle || has_start;
        if is_tried && i64::try_from(most).is_ok_and(|most| most > TRIED_BYTES_MAX) {
            let wrong = Wrong::new(format!("frames with a checksum have at most {TRIED_BYTES_MAX} bytes"));
            walk.wrong(max_spot, "max", wrong);
        }
        if is_marked && checksum.form == ChecksumForm::Binary && config.tail == 0 && config.escape.is_none() {
            let what = "a binary checksum may look like the end of its frame, and the frame is lost then";
            let help = "if it stands behind the end, write `tail = 1` (or 2); if the device escapes it, `escape`";
            walk.findings.warning(reader.spot_of("checksum"), what.to_owned(), Some(help.to_owned()));
        }
    }
}

/// `length = 12` or `length = { offset = 2, … }`.
fn length(walk: &mut Walk, reader: &Reader<'_>) -> Option<Ending> {
    if !reader.has("length") {
        return None;
    }
    let fixed = reader.leaf(walk, "length", |node| match &node.value {
        Written::Integer(Some(length)) if (1..=TRIED_BYTES_MAX).contains(length) => Ok(Some(*length)),
        Written::Integer(_) => Err(Wrong::new("out of range").help(format!("from 1 to {TRIED_BYTES_MAX}"))),
        Written::Table(_) => Ok(None),
        other => Err(walk::wrong_kind("a whole number, or a table that says where the length stands", other)),
    })?;
    if let Some(length) = fixed.value {
        return Some(Ending::Length(usize::try_from(length).ok()?));
    }
    let (tree, spot) = reader.table(walk, "length")?;
    let reader = Reader::open(walk, tree, &keys::LENGTH, spot);
    let offset = reader.integer(walk, "offset", 0, 255);
    let width = reader.leaf(walk, "width", |node| match &node.value {
        Written::Integer(Some(width @ (1 | 2 | 4))) => u8::try_from(*width).map_err(|_| Wrong::new("out of range")),
        Written::Integer(_) => Err(Wrong::new("out of range").help("1, 2 or 4 bytes")),
        other => Err(walk::wrong_kind("a whole number", other)),
    });
    let order = reader.choice(walk, "order", &ORDERS, &[]);
    let counts = reader.choice(walk, "counts", &[("rest", Counts::Rest), ("frame", Counts::Frame)], &[]);
    let plus = reader.integer(walk, "plus", -1024, 1024);
    Some(Ending::Field(LengthField {
        offset: usize::try_from(offset?.value).ok()?,
        width: width?.value,
        order: order?.value,
        counts: counts?.value,
        plus: i32::try_from(plus?.value).ok()?,
    }))
}

const ORDERS: [(&str, ByteOrder); 2] = [("big", ByteOrder::Big), ("little", ByteOrder::Little)];

/// The outer `None` is a fault.
#[expect(clippy::option_option, reason = "wrong, not written, and written are three answers")]
fn escape(walk: &mut Walk, reader: &Reader<'_>) -> Option<Option<Escape>> {
    let byte = reader.leaf(walk, "escape", |node| bytes(node, 1));
    let xor = reader.leaf(walk, "escape_xor", |node| match &node.value {
        Written::Integer(Some(0)) => Ok(vec![0]),
        _ => bytes(node, 1),
    });
    if reader.has("escape_xor") && !reader.has("escape") {
        let what = "`escape_xor` is what a byte behind `escape` is changed by, which is missing";
        walk.findings.problem(reader.spot_of("escape_xor"), what, None);
    }
    if !reader.has("escape") {
        return xor.map(|_| None);
    }
    let (byte, xor) = (*byte?.value.first()?, *xor?.value.first()?);
    Some(Some(Escape { byte, xor }))
}

/// The outer `None` is a fault.
#[expect(clippy::option_option, reason = "wrong, not written, and written are three answers")]
fn checksum(walk: &mut Walk, reader: &Reader<'_>) -> Option<Option<Checksum>> {
    if !reader.has("checksum") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "checksum")?;
    let reader = Reader::open(walk, tree, &keys::CHECKSUM, spot);
    let kind = reader.choice(walk, "kind", &ChecksumKind::ALL, &[]);
    let form = reader.choice(walk, "form", &[("binary", ChecksumForm::Binary), ("hex", ChecksumForm::Hex)], &[]);
    let order = reader.choice(walk, "order", &ORDERS, &[]);
    let at = reader.integer(walk, "at", 0, 4096);
    let from = reader.integer(walk, "from", 0, 4096);
    let skip = reader.integer(walk, "skip", 0, 64);
    if (reader.has("order") && order.is_none()) || (reader.has("at") && at.is_none()) {
        return None;
    }
    let usual = Checksum::at_end(kind?.value, form?.value);
    let number = |at: At<i64>| usize::try_from(at.value).ok();
    Some(Some(Checksum {
        order: order.map_or(usual.order, |at| at.value),
        at: match at {
            Some(at) => Some(number(at)?),
            None => None,
        },
        from: number(from?)?,
        skip: number(skip?)?,
        ..usual
    }))
}
