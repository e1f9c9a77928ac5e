//! The points of a device as a table in CSV: what `points = "file.csv"` of the same device reads back to the same
//! points. Pure.

use super::units::duration_text;
use super::{Deadband, ModbusConfig, ModbusPoint, PointKind, Table, Write, WriteFunction};

/// A column: its key, and what stands in it for a point.
type Column = (&'static str, fn(&ModbusConfig, &ModbusPoint) -> String);

const COLUMNS: [Column; 19] = [
    ("name", |_, point| point.name.to_string()),
    ("address", |device, point| {
        // As the device counts: a table that counted otherwise would be read one register off.
        format!("{}:{}", point.table.word(), u32::from(point.address) + u32::from(device.address_base))
    }),
    ("type", |_, point| point.kind.word().to_owned()),
    ("registers", |_, point| match point.kind {
        PointKind::String { registers } => registers.to_string(),
        _ => String::new(),
    }),
    ("order", |_, point| if point.table.is_bits() { String::new() } else { point.order.word().to_owned() }),
    ("bit", |_, point| match point.meaning.bits {
        Some(bits) if point.kind == PointKind::Bool => bits.low.to_string(),
        _ => String::new(),
    }),
    ("bits", |_, point| match point.meaning.bits {
        Some(bits) if point.kind != PointKind::Bool => format!("{}-{}", bits.low, bits.high),
        _ => String::new(),
    }),
    ("scale", |_, point| unless(1.0, point.meaning.scale)),
    ("offset", |_, point| unless(0.0, point.meaning.offset)),
    ("clamp_min", |_, point| written(point.meaning.clamp_min)),
    ("clamp_max", |_, point| written(point.meaning.clamp_max)),
    ("names", |_, point| {
        let names: Vec<String> = point.meaning.names.iter().map(|(number, name)| format!("{number}={name}")).collect();
        names.join("; ")
    }),
    ("not_available", |_, point| {
        let codes: Vec<String> = point.meaning.not_available.iter().map(i128::to_string).collect();
        codes.join("; ")
    }),
    ("unit", |_, point| point.unit.as_deref().unwrap_or_default().to_owned()),
    ("poll", |_, point| written(point.poll.map(duration_text))),
    ("deadband", |_, point| match point.report.deadband {
        None => String::new(),
        Some(Deadband::Absolute(step)) => step.to_string(),
        Some(Deadband::Percent(percent)) => format!("{percent} %"),
    }),
    ("min_interval", |_, point| written(point.report.min_interval.map(duration_text))),
    ("heartbeat", |_, point| written(point.report.heartbeat.map(duration_text))),
    ("write", |_, point| point.write.as_ref().map_or_else(String::new, |write| write_text(point, write))),
];

/// These stand in every table, however empty.
const ALWAYS: [&str; 3] = ["name", "address", "type"];

fn written<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// `true`, or what differs from that: `min=5; max=30`.
fn write_text(point: &ModbusPoint, write: &Write) -> String {
    let usual = Write::default();
    let function = match (write.function, point.table) {
        (WriteFunction::Fitting, _) => None,
        (WriteFunction::Single, Table::Coil) => Some(5),
        (WriteFunction::Single, _) => Some(6),
        (WriteFunction::Multiple, Table::Coil) => Some(15),
        (WriteFunction::Multiple, _) => Some(16),
        (WriteFunction::Masked, _) => Some(22),
        (WriteFunction::AndRead, _) => Some(23),
    };
    let pairs = [
        ("min", write.min.map(|min| min.to_string())),
        ("max", write.max.map(|max| max.to_string())),
        ("per_minute", (write.per_minute != usual.per_minute).then(|| write.per_minute.to_string())),
        ("expiry", (write.expiry != usual.expiry).then(|| duration_text(write.expiry))),
        ("function", function.map(|function: u8| function.to_string())),
        ("readable", (!write.is_readable).then(|| "false".to_owned())),
        ("settle", (write.settle != usual.settle).then(|| duration_text(write.settle))),
        ("idempotent", write.is_idempotent.then(|| "true".to_owned())),
    ];
    let text: Vec<String> = pairs.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?))).collect();
    if text.is_empty() { "true".to_owned() } else { text.join("; ") }
}

fn unless(default: f64, value: f64) -> String {
    if value == default { String::new() } else { value.to_string() }
}

/// The table, without the columns that would be empty.
pub fn points_table(device: &ModbusConfig) -> String {
    let columns = COLUMNS.iter().filter(|(key, cell)| {
        ALWAYS.contains(key) || device.points.iter().any(|point| !cell(device, point).is_empty())
    });
    let columns: Vec<&Column> = columns.collect();
    let header = columns.iter().map(|(key, _)| (*key).to_owned());
    let mut text = line(header);
    for point in &device.points {
        text.push_str(&line(columns.iter().map(|(_, cell)| quoted(&cell(device, point)))));
    }
    text
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let mut text = cells.collect::<Vec<_>>().join(",");
    text.push('\n');
    text
}

/// RFC 4180, 2: what holds a separator stands in quotes, and quotes inside are doubled.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}
