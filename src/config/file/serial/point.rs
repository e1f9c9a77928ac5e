//! One line of `[serial.<name>.point]`: a field of a text, of a JSON object, or of a binary frame.

use std::num::NonZeroU16;
use std::sync::Arc;

use super::super::super::keys;
use super::super::super::tree::{Spot, Tree};
use super::super::super::units::Wrong;
use super::super::super::walk::{self, At, Reader, Walk};
use super::super::super::{BytesField, ModbusPoint, Parse, PointKind, Report, SerialPoint, Table, TextKind};
use super::super::modbus::{meaning, order, read_report};

/// Keys of binary frames only.
const OF_BYTES: [&str; 11] =
    ["at", "order", "chars", "bit", "bits", "scale", "offset", "clamp_min", "clamp_max", "names", "not_available"];

/// Types of the fields of a text.
const OF_TEXTS: [(&str, TextKind); 5] = [
    ("f64", TextKind::F64),
    ("i64", TextKind::I64),
    ("hex", TextKind::Hex),
    ("bool", TextKind::Bool),
    ("string", TextKind::String),
];

/// Types of the fields of a binary frame; a text has its length beside it.
const OF_FRAMES: [(&str, PointKind); 16] = [
    ("bool", PointKind::Bool),
    ("u8", PointKind::U8),
    ("i8", PointKind::I8),
    ("u16", PointKind::U16),
    ("i16", PointKind::I16),
    ("u32", PointKind::U32),
    ("i32", PointKind::I32),
    ("u64", PointKind::U64),
    ("i64", PointKind::I64),
    ("f16", PointKind::F16),
    ("f32", PointKind::F32),
    ("f64", PointKind::F64),
    ("bcd16", PointKind::Bcd16),
    ("bcd32", PointKind::Bcd32),
    ("bcd64", PointKind::Bcd64),
    ("string", PointKind::String { registers: NonZeroU16::MIN }),
];

pub(super) fn point(
    walk: &mut Walk,
    name: &str,
    tree: &Tree,
    spot: Spot,
    parse: Option<&Parse>,
) -> Option<SerialPoint> {
    let reader = Reader::open(walk, tree, &keys::SERIAL_POINT, spot);
    let is_bytes = matches!(parse, Some(Parse::Bytes { .. }));
    let kind = if is_bytes { Some(TextKind::F64) } else { text_kind(walk, &reader) };
    let bytes = if is_bytes { Some(field(walk, name, &reader)) } else { None };
    if parse.is_some() && !is_bytes {
        for key in OF_BYTES.into_iter().filter(|key| reader.has(key)) {
            let what = format!("`{key}` is for `parse = {{ bytes = true }}`");
            walk.findings.problem(reader.spot_of(key), what, None);
        }
    }
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
    if reader.has("pointer") && parse.is_some() && !matches!(parse, Some(Parse::Json)) {
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
        bytes: match bytes {
            Some(field) => Some(field?),
            None => None,
        },
        kind: kind?,
        unit: unit.map(|at| Arc::from(at.value)),
        report: report?,
    })
}

fn text_kind(walk: &mut Walk, reader: &Reader<'_>) -> Option<TextKind> {
    reader.choice(walk, "type", &OF_TEXTS, &[]).map(|at| at.value)
}

/// What stands in a binary frame, and where.
fn field(walk: &mut Walk, name: &str, reader: &Reader<'_>) -> Option<BytesField> {
    let at = reader.integer(walk, "at", 0, 65_535);
    let kind = kind(walk, reader);
    let order = order(walk, reader);
    // Of the tables only those of registers have what a byte has.
    let meaning = meaning::read(walk, reader, Some(Table::Holding), kind.as_ref().map(|(kind, _)| kind));
    if !reader.has("at") {
        let help = "the number of its first byte in the frame, the first being 0: `at = 4`";
        walk.findings.problem(reader.spot, "`at` is missing", Some(help.to_owned()));
    }
    let (kind, count) = kind?;
    let point = ModbusPoint {
        name: Arc::from(name),
        table: Table::Holding,
        address: 0,
        kind: kind.value,
        order: order?.value,
        meaning: meaning?,
        unit: None,
        poll: None,
        report: Report::default(),
        write: None,
    };
    Some(BytesField { at: usize::try_from(at?.value).ok()?, count, point })
}

/// The type and how many bytes it takes.
fn kind(walk: &mut Walk, reader: &Reader<'_>) -> Option<(At<PointKind>, usize)> {
    let chars = reader.integer(walk, "chars", 1, 250);
    if !reader.has("type") && !reader.has("bit") {
        let help = "the manual of the device says it: `type = \"u16\"`, \"i16\", \"u32\", \"f32\" …";
        walk.findings.problem(reader.spot, "`type` is missing", Some(help.to_owned()));
        return None;
    }
    let kind = match reader.has("type") {
        true => reader.choice(walk, "type", &OF_FRAMES, &[])?,
        // One bit is a truth.
        false => At { value: PointKind::Bool, spot: reader.spot, is_default: true },
    };
    if !matches!(kind.value, PointKind::String { .. }) {
        if reader.has("chars") {
            let what = format!("`chars` is for texts; a {} has its own width", kind.value.word());
            walk.findings.problem(reader.spot_of("chars"), what, None);
        }
        let bytes = match kind.value {
            // A truth is a bit of one byte.
            PointKind::Bool | PointKind::U8 | PointKind::I8 => 1,
            other => usize::from(other.width()) * 2,
        };
        return Some((kind, bytes));
    }
    if !reader.has("chars") {
        let help = "write how many characters it takes: `chars = 8`";
        walk.findings.problem(reader.spot, "`chars` is missing", Some(help.to_owned()));
        return None;
    }
    let chars = u16::try_from(chars?.value).ok()?;
    let registers = NonZeroU16::new(chars.div_ceil(2))?;
    let text = At { value: PointKind::String { registers }, ..kind };
    Some((text, usize::from(chars)))
}
