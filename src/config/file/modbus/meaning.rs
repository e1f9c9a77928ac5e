//! What the bits of a point mean: which of them count, scale, edges, names, and what is no value.

use std::sync::Arc;

use super::super::super::tree::Node;
use super::super::super::tree::Written;
use super::super::super::units::{self, Wrong};
use super::super::super::walk::{self, At, Reader, Walk};
use super::super::super::{BitRange, Meaning, PointKind, Table};

/// Keys that make a number of a number.
const OF_NUMBERS: [&str; 4] = ["scale", "offset", "clamp_min", "clamp_max"];

/// Reads it; `None` where something of it is wrong. What a kind of point cannot have is noted where the kind is known.
pub(in crate::config) fn read(
    walk: &mut Walk,
    reader: &Reader<'_>,
    table: Option<Table>,
    kind: Option<&At<PointKind>>,
) -> Option<Meaning> {
    let scale = reader.number(walk, "scale");
    let offset = reader.number(walk, "offset");
    let clamp_min = reader.number(walk, "clamp_min");
    let clamp_max = reader.number(walk, "clamp_max");
    let names = reader.leaf(walk, "names", names);
    let not_available = reader.leaf(walk, "not_available", codes);
    let bits = bits(walk, reader);
    if let Some(scale) = scale.as_ref().filter(|scale| scale.value == 0.0) {
        walk.wrong(scale.spot, "scale", Wrong::new("must not be 0: every value would be the same"));
    }
    if let (Some(min), Some(max)) = (&clamp_min, &clamp_max)
        && min.value > max.value
    {
        walk.wrong(max.spot, "clamp_max", Wrong::new("must not be less than `clamp_min`"));
    }
    if let Some(kind) = kind {
        let bits = bits.as_ref().and_then(Option::as_ref);
        fitting(walk, reader, table, kind.value, bits);
    }
    let is_hole = |key: &str, is_read: bool| reader.has(key) && !is_read;
    if is_hole("clamp_min", clamp_min.is_some())
        || is_hole("clamp_max", clamp_max.is_some())
        || is_hole("names", names.is_some())
        || is_hole("not_available", not_available.is_some())
    {
        return None;
    }
    Some(Meaning {
        bits: bits?.map(|at| at.value),
        scale: scale?.value,
        offset: offset?.value,
        clamp_min: clamp_min.map(|at| at.value),
        clamp_max: clamp_max.map(|at| at.value),
        names: names.map_or_else(|| Arc::from([]), |at| Arc::from(at.value)),
        not_available: not_available.map_or_else(|| Arc::from([]), |at| Arc::from(at.value)),
    })
}

/// `bit = 3` or `bits = "4-7"`; `None` where it is wrong.
#[expect(clippy::option_option, reason = "wrong, not written, and written are three answers")]
fn bits(walk: &mut Walk, reader: &Reader<'_>) -> Option<Option<At<BitRange>>> {
    let bit = reader.integer(walk, "bit", 0, 15);
    let range = reader.leaf(walk, "bits", |node| match &node.value {
        Written::Integer(Some(bit)) => units::bit_range(&bit.to_string()),
        _ => units::bit_range(walk::text(node)?),
    });
    match (reader.has("bit"), reader.has("bits")) {
        (true, true) => {
            let what = "this point has both `bit` and `bits`";
            let help = "`bit` is one bit as true or false, `bits` are some as a number: keep one of the two";
            walk.findings.problem(reader.spot_of("bits"), what, Some(help.to_owned()));
            None
        }
        (true, false) => {
            let bit = bit?;
            let number = u8::try_from(bit.value).ok()?;
            let value = BitRange { low: number, high: number };
            Some(Some(At { value, spot: bit.spot, is_default: false }))
        }
        (false, true) => Some(Some(range?)),
        (false, false) => Some(None),
    }
}

/// Notes what a point of this kind cannot have.
fn fitting(walk: &mut Walk, reader: &Reader<'_>, table: Option<Table>, kind: PointKind, bits: Option<&At<BitRange>>) {
    let mut refuse = |key: &'static str, what: String| {
        if reader.has(key) {
            walk.findings.problem(reader.spot_of(key), what, None);
        }
    };
    let is_number = !matches!(kind, PointKind::Bool | PointKind::String { .. });
    if !is_number {
        OF_NUMBERS.iter().for_each(|key| refuse(key, format!("`{key}` is for numbers, and this point is none")));
    }
    if reader.has("names") {
        for key in OF_NUMBERS {
            refuse(key, format!("`{key}` is for numbers, and the values of this point are names"));
        }
        if kind.whole_bits().is_none() && kind != PointKind::Bool {
            refuse("names", format!("`names` are for whole numbers, and this point is a {}", kind.word()));
        }
    }
    if matches!(kind, PointKind::String { .. }) {
        refuse("not_available", "`not_available` is for numbers, and this point is a text".to_owned());
    }
    if table.is_some_and(Table::is_bits) {
        for key in ["bit", "bits", "not_available"] {
            refuse(key, format!("`{key}` is for registers, and this is a single bit"));
        }
        return;
    }
    if kind != PointKind::Bool {
        refuse("bit", format!("`bit` is true or false, and this point is a {}", kind.word()));
    }
    match kind.whole_bits() {
        None => refuse("bits", "`bits` are part of a whole number, and this point is none".to_owned()),
        Some(width) => {
            if let Some(at) = bits.filter(|at| at.value.high >= width && !reader.has("bit")) {
                let wrong = Wrong::new(format!("a {} has no bit {}", kind.word(), at.value.high))
                    .help(format!("its bits are 0 to {}", width - 1));
                walk.wrong(at.spot, "bits", wrong);
            }
        }
    }
}

/// `{ 0 = "off", 1 = "auto" }`, or the same as a text: `"0=off; 1=auto"`.
fn names(node: &Node) -> Result<Vec<(i128, Arc<str>)>, Wrong> {
    let mut list: Vec<(i128, Arc<str>)> = Vec::new();
    let written = match &node.value {
        Written::Text(text) => units::names(text)?,
        Written::Table(tree) => {
            let entry = |(number, entry): (&str, &super::super::super::tree::Entry)| {
                Ok((units::whole(number)?, walk::text(&entry.node)?.to_owned()))
            };
            tree.in_order().into_iter().map(entry).collect::<Result<_, Wrong>>()?
        }
        other => return Err(walk::wrong_kind("names of numbers, such as \"0=off; 1=auto\"", other)),
    };
    for (number, name) in written {
        if name.is_empty() || name.contains([';', '=']) || name.trim() != name || name.chars().any(char::is_control) {
            return Err(Wrong::new(format!("{name:?} cannot be the name of a number"))
                .help("it must not be empty, and not contain = or ;"));
        }
        if list.iter().any(|(known, _)| *known == number) {
            return Err(Wrong::new(format!("{number} has two names")));
        }
        list.push((number, Arc::from(name)));
    }
    if list.is_empty() { Err(Wrong::new("there is no name")) } else { Ok(list) }
}

/// `0xFFFF`, `"0x8000; 0x7FFF"`, or a list of such.
fn codes(node: &Node) -> Result<Vec<i128>, Wrong> {
    match &node.value {
        Written::Integer(Some(code)) => Ok(vec![i128::from(*code)]),
        Written::Text(text) => text.split(';').map(units::whole).collect(),
        Written::List(nodes) => {
            let lists = nodes.iter().map(codes).collect::<Result<Vec<_>, Wrong>>()?;
            Ok(lists.into_iter().flatten().collect())
        }
        other => Err(walk::wrong_kind("a whole number, such as 0xFFFF", other)),
    }
}
