//! `write`: whether a point may be written, and how.

use std::num::NonZeroU16;
use std::time::Duration;

use super::super::super::keys;
use super::super::super::tree::{Entry, Node, Tree, Written};
use super::super::super::units::Wrong;
use super::super::super::walk::{self, Reader, Walk};
use super::super::super::{PointKind, Table, Write, WriteFunction};

/// More writes of one point in a minute are a control loop, and belong into the controller.
const PER_MINUTE_MAX: i64 = 6000;
/// What is written later than this after it was asked for surprises somebody.
const EXPIRY_MAX: Duration = Duration::from_secs(86_400);
/// A device that takes longer to follow is not read back.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// Registers that one request can write (Modbus Application Protocol 1.1b3, 6.12).
const REGISTERS_MAX: u16 = 123;

/// Reads it; the outer `None` where something of it is wrong.
#[expect(clippy::option_option, reason = "wrong, not to be written, and to be written are three answers")]
pub(super) fn read(
    walk: &mut Walk,
    reader: &Reader<'_>,
    table: Option<Table>,
    kind: Option<PointKind>,
) -> Option<Option<Write>> {
    if !reader.has("write") {
        return Some(None);
    }
    let written = reader.leaf(walk, "write", settings)?;
    let Some(tree) = written.value else { return Some(None) };
    let own = Reader::open(walk, &tree, &keys::WRITE, written.spot);
    let min = own.number(walk, "min");
    let max = own.number(walk, "max");
    let per_minute = own.integer(walk, "per_minute", 1, PER_MINUTE_MAX);
    let expiry = own.duration(walk, "expiry", Duration::from_secs(1), EXPIRY_MAX);
    let function = own.leaf(walk, "function", |node| match &node.value {
        Written::Integer(Some(number @ (5 | 6 | 15 | 16 | 22 | 23))) => Ok(*number),
        Written::Integer(_) => {
            Err(Wrong::new("is not a function that writes").help("5 or 15 for a coil; 6, 16, 22 or 23 for registers"))
        }
        other => Err(walk::wrong_kind("the number of a function, such as 16", other)),
    });
    let readable = own.truth(walk, "readable");
    let settle = own.duration(walk, "settle", Duration::ZERO, SETTLE_MAX);
    let idempotent = own.truth(walk, "idempotent");
    let is_hole = |key: &str, is_read: bool| own.has(key) && !is_read;
    if is_hole("min", min.is_some()) || is_hole("max", max.is_some()) || is_hole("function", function.is_some()) {
        return None;
    }
    if let (Some(min), Some(max)) = (&min, &max)
        && min.value > max.value
    {
        walk.wrong(max.spot, "max", Wrong::new("must not be less than `min`"));
    }
    let function = function.map(|at| at.value);
    let readable = readable?.value;
    if let Some(table) = table {
        fitting(walk, reader, &own, Fit { table, kind, function, readable });
    }
    Some(Some(Write {
        min: min.map(|at| at.value),
        max: max.map(|at| at.value),
        per_minute: NonZeroU16::new(u16::try_from(per_minute?.value).ok()?)?,
        expiry: expiry?.value,
        function: match function {
            None => WriteFunction::Fitting,
            Some(5 | 6) => WriteFunction::Single,
            Some(22) => WriteFunction::Masked,
            Some(23) => WriteFunction::AndRead,
            Some(_) => WriteFunction::Multiple,
        },
        is_readable: readable,
        settle: settle?.value,
        is_idempotent: idempotent?.value,
    }))
}

/// What a point is, for what can be written of it.
struct Fit {
    table: Table,
    kind: Option<PointKind>,
    function: Option<i64>,
    readable: bool,
}

/// Notes what a point of this kind cannot have.
fn fitting(walk: &mut Walk, point: &Reader<'_>, own: &Reader<'_>, fit: Fit) {
    let Fit { table, kind, function, readable } = fit;
    let mut problem = |reader: &Reader<'_>, key: &str, what: String, help: Option<&str>| {
        walk.findings.problem(reader.spot_of(key), what, help.map(str::to_owned));
    };
    let is_coil = match table {
        Table::Input | Table::Discrete => {
            let (what, instead) =
                if table == Table::Input { ("an input register", "holding") } else { ("a discrete input", "coil") };
            let help = format!("what can be written stands in \"{instead}:…\"");
            problem(point, "write", format!("{what} cannot be written"), Some(&help));
            return;
        }
        Table::Coil => true,
        Table::Holding => false,
    };
    if let Some(function) = function
        && is_coil != matches!(function, 5 | 15)
    {
        let what = if is_coil {
            "a coil is written by function 5 or 15"
        } else {
            "registers are written by function 6, 16, 22 or 23"
        };
        problem(own, "function", what.to_owned(), None);
    }
    let Some(kind) = kind else { return };
    let is_number = !matches!(kind, PointKind::Bool | PointKind::String { .. });
    for key in ["min", "max"].into_iter().filter(|key| own.has(key)) {
        if point.has("names") {
            problem(own, key, format!("`{key}` is for numbers, and the values of this point are names"), None);
        } else if !is_number {
            problem(own, key, format!("`{key}` is for numbers, and this point is none"), None);
        }
    }
    if function == Some(6) && kind.width() > 1 {
        let what = format!("function 6 writes one register, and a {} takes {}", kind.word(), kind.width());
        problem(own, "function", what, Some("written one by one, the device would act on half a value: 16 writes all"));
    }
    // Modbus Application Protocol 1.1b3, 6.17: 121 with function 23.
    let most = if function == Some(23) { REGISTERS_MAX - 2 } else { REGISTERS_MAX };
    if kind.width() > most {
        let what = format!("{} registers are too many to be written", kind.width());
        problem(point, "write", what, Some(&format!("one request writes at most {most}")));
    }
    if function == Some(23) && !readable {
        problem(
            own,
            "function",
            "function 23 reads what it has written, and the point cannot be read".to_owned(),
            None,
        );
    }
    let is_part = point.has("bit") || point.has("bits") || matches!(kind, PointKind::U8 | PointKind::I8);
    if function == Some(22) && (!is_part || kind.width() > 1) {
        let what = "function 22 changes some bits of one register, and this point is another".to_owned();
        problem(own, "function", what, Some("it is for `bit`, `bits`, u8 and i8"));
    }
    if !readable && is_part && function != Some(22) {
        let what = "a part of a register cannot be written where the register cannot be read";
        problem(own, "readable", what.to_owned(), Some("its other bits have to be read to be left as they are"));
    }
}

/// `true`, `{ min = 5, max = 30 }`, or the same in a table of points: `min=5; max=30`. `None` = not to be written.
fn settings(node: &Node) -> Result<Option<Tree>, Wrong> {
    match &node.value {
        Written::Bool(true) => Ok(Some(Tree::default())),
        Written::Bool(false) => Ok(None),
        Written::Table(tree) => Ok(Some(tree.clone())),
        Written::Text(text) => from_text(text, node),
        other => Err(walk::wrong_kind("true, or a table such as { min = 5, max = 30 }", other)),
    }
}

fn from_text(text: &str, node: &Node) -> Result<Option<Tree>, Wrong> {
    match text.trim() {
        "true" => return Ok(Some(Tree::default())),
        "false" => return Ok(None),
        _ => {}
    }
    let mut tree = Tree::default();
    for pair in text.split(';') {
        let (key, value) = pair.split_once('=').map(|(key, value)| (key.trim(), value.trim())).ok_or_else(|| {
            Wrong::new(format!("{text:?} is not how a point is written")).help("true, or \"min=5; max=30\"")
        })?;
        let value = match value {
            "true" => Written::Bool(true),
            "false" => Written::Bool(false),
            _ => match (value.parse::<i64>(), value.parse::<f64>()) {
                (Ok(whole), _) => Written::Integer(Some(whole)),
                (_, Ok(real)) => Written::Float(real),
                _ => Written::Text(value.to_owned()),
            },
        };
        let node = Node { spot: node.spot, value };
        tree.insert(key.to_owned(), Entry { key: node.spot, node });
    }
    Ok(Some(tree))
}
