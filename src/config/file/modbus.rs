//! `[model.<name>]` and `[modbus.<name>]`, with their points from the file and from CSV.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use super::super::keys;
use super::super::load;
use super::super::tree::{self, Entry, Node, Spot, Tree, Written};
use super::super::units::{self, Wrong};
use super::super::walk::{self, At, Reader, Walk};
use super::super::{
    Deadband, ModbusConfig, ModbusPoint, PointKind, PointTopic, Report, RequestLimits, Table, WordOrder,
};
use super::{LineDraft, ModbusDraft, PUT_IT_THERE, Words, line_name, line_url, point_topic, qos};

pub(super) mod meaning;
mod write;

/// More points than this on one device are a mistake of a script.
const POINTS_MAX: usize = 20_000;

/// The longest text of one read: a response carries 125 registers (Modbus Application Protocol 1.1b3, 6.3).
const REGISTERS_MAX: u16 = 125;

/// The most bytes of a table of points.
const CSV_BYTES_MAX: u64 = 4 << 20;

const REPORT_KEYS: &[&str] = &["deadband", "min_interval", "heartbeat"];
const NUMBER_KEYS: &[&str] = &["scale", "offset", "deadband", "registers", "count", "bit", "clamp_min", "clamp_max"];

/// The most values that follow each other under one name.
const COUNT_MAX: i64 = 1000;

/// `[model.<name>]`: what devices of one make share, still as a tree.
#[derive(Debug)]
pub(in crate::config) struct Model {
    pub(super) name: String,
    pub(super) spot: Spot,
    /// The keys that a device can have too, without the points.
    own: Tree,
    points: Tree,
    /// Points are written; where there are none all the same, that was noted.
    has_points: bool,
}

/// Reads the models, each by itself: a model that no device uses is checked as well.
pub(in crate::config) fn read_models(walk: &mut Walk, top: &Reader<'_>, words: &Words) -> Vec<Model> {
    let mut models = Vec::new();
    for (name, tree, spot) in top.named(walk, "model") {
        let reader = Reader::open(walk, tree, &keys::MODEL, spot);
        let points = points(walk, &reader, None);
        let has_points = reader.has("points") || reader.has("point");
        let mut own = Tree::default();
        for (key, entry) in tree.in_order() {
            let is_shared = keys::MODEL.keys.iter().any(|known| known.name == key);
            if is_shared && !matches!(key, "points" | "point") {
                own.insert(key.to_owned(), entry.clone());
            }
        }
        // What a model leaves out its devices may bring: nothing is called missing here.
        let is_partial = std::mem::replace(&mut walk.is_partial, true);
        let own_reader = Reader::open(walk, &own, &keys::MODEL, spot);
        let settings = Settings::read(walk, &own_reader, words);
        settings.read_points(walk, &points);
        walk.is_partial = is_partial;
        models.push(Model { name: name.to_owned(), spot, own, points, has_points });
    }
    models
}

/// What a device and its model may both say.
struct Settings {
    order: Option<WordOrder>,
    base: Option<u16>,
    poll: Option<Duration>,
    timeout: Option<Duration>,
    has_timeout: bool,
    topic: Option<At<String>>,
    qos: Option<crate::message::Qos>,
    report: Option<Tree>,
    report_fine: bool,
    /// `None` in a model that does not say all of them.
    limits: Option<RequestLimits>,
}

impl Settings {
    fn read(walk: &mut Walk, reader: &Reader<'_>, words: &Words) -> Settings {
        let report = reader.table(walk, "report");
        let is_fine = match report {
            Some((tree, spot)) => read_report(walk, tree, spot).is_some(),
            None => !reader.has("report"),
        };
        let base = reader.integer(walk, "address_base", 0, 1).and_then(|at| u16::try_from(at.value).ok());
        Settings {
            order: order(walk, reader).map(|at| at.value),
            limits: limits(walk, reader, base.unwrap_or(0)),
            base,
            poll: poll(walk, reader),
            timeout: reader
                .duration(walk, "timeout", Duration::from_millis(10), Duration::from_secs(60))
                .map(|at| at.value),
            has_timeout: reader.has("timeout"),
            topic: point_topic(walk, reader, words),
            qos: qos(walk, reader).map(|at| at.value),
            report: report.map(|(tree, _)| tree.clone()),
            report_fine: is_fine,
        }
    }

    fn read_points(&self, walk: &mut Walk, points: &Tree) -> Option<Vec<ModbusPoint>> {
        let mut list = Some(Vec::new());
        for (name, tree, spot) in walk::named(walk, "point", points) {
            match (self.read_point(walk, name, tree, spot), &mut list) {
                (Some((point, count)), Some(list)) => list.extend(in_a_row(point, count)),
                _ => list = None,
            }
        }
        list
    }

    fn read_point(&self, walk: &mut Walk, name: &str, tree: &Tree, spot: Spot) -> Option<(ModbusPoint, u16)> {
        let reader = Reader::open(walk, tree, &keys::MODBUS_POINT, spot);
        let base = self.base;
        let address = reader.leaf(walk, "address", |node| {
            let number;
            let text = match &node.value {
                Written::Text(text) => text,
                // 40101 without quotes means the same.
                Written::Integer(Some(reference)) if (10_001..=465_536).contains(reference) => {
                    number = reference.to_string();
                    &number
                }
                other => return Err(walk::wrong_kind("an address in quotes, such as \"holding:100\"", other)),
            };
            // A wrong base was noted; 0 stands in for it.
            units::address(text, base.unwrap_or(0))
        });
        let kind = point_kind(walk, &reader, address.as_ref().map(|at| at.value.0));
        let order = order(walk, &reader);
        let meaning = meaning::read(walk, &reader, address.as_ref().map(|at| at.value.0), kind.as_ref());
        let count = reader.integer(walk, "count", 1, COUNT_MAX).and_then(|at| u16::try_from(at.value).ok());
        let unit = reader.text(walk, "unit");
        let poll = poll(walk, &reader);
        let report = self.point_report(walk, &reader);
        let write = write::read(walk, &reader, address.as_ref().map(|at| at.value.0), kind.as_ref().map(|at| at.value));

        if let (Some(address), Some(kind)) = (&address, &kind) {
            let (table, first) = address.value;
            let width = u32::from(kind.value.width());
            let last = u32::from(first) + width * u32::from(count.unwrap_or(1)) - 1;
            if last > 65_535 {
                let taken = width * u32::from(count.unwrap_or(1));
                let what = Wrong::new(format!("takes {taken} registers and would end at {last}"))
                    .help("the last address of a table is 65535");
                walk.wrong(address.spot, "address", what);
            }
            if table.is_bits() && kind.value != PointKind::Bool {
                let table = if table == Table::Coil { "coil" } else { "discrete input" };
                let wrong = Wrong::new(format!("a {table} is a single bit, and can only be \"bool\""));
                walk.wrong(kind.spot, "type", wrong);
            }
            if let Some(limits) = &self.limits {
                within(walk, limits, address, kind.value.width(), last);
            }
            if reader.has("count") && (reader.has("bit") || reader.has("bits")) {
                let what = "`count` is for values that follow each other, and bits of one register do not";
                walk.findings.problem(reader.spot_of("count"), what, None);
            }
        }
        let has_hole = (reader.has("unit") && unit.is_none())
            || (reader.has("poll") && poll.is_none())
            || (reader.has("order") && order.is_none());
        if has_hole {
            return None;
        }
        let (table, address) = address?.value;
        let meaning = meaning?;
        let point = ModbusPoint {
            name: Arc::from(name),
            table,
            address,
            kind: kind?.value,
            order: order.map(|at| at.value).or(self.order).unwrap_or_default(),
            meaning,
            unit: unit.map(|at| Arc::from(at.value)),
            poll,
            report: report?,
            write: write?,
        };
        Some((point, count?))
    }

    /// The device's report rule with the point's own keys over it.
    fn point_report(&self, walk: &mut Walk, reader: &Reader<'_>) -> Option<Report> {
        let own = if reader.has("report") { Some(reader.table(walk, "report")?) } else { None };
        match (&self.report, own) {
            (None, None) => self.report_fine.then(Report::default),
            (None, Some((own, spot))) => read_report(walk, own, spot),
            (Some(shared), None) => read_report(walk, shared, reader.spot),
            (Some(shared), Some((own, spot))) => {
                let mut both = shared.clone();
                both.overlay(own);
                read_report(walk, &both, spot)
            }
        }
    }
}

/// A point, or as many as follow each other: `phase` with `count = 3` is `phase_0`, `phase_1` and `phase_2`.
fn in_a_row(point: ModbusPoint, count: u16) -> Vec<ModbusPoint> {
    if count == 1 {
        return vec![point];
    }
    let width = point.kind.width();
    let one = |number: u16| ModbusPoint {
        name: numbered(&point.name, number),
        address: point.address.saturating_add(width.saturating_mul(number)),
        ..point.clone()
    };
    (0..count).map(one).collect()
}

fn numbered(name: &str, number: u16) -> Arc<str> {
    Arc::from(format!("{name}_{number}"))
}

/// The names of a point as written: more than one where it stands for values that follow each other.
fn names_of(name: &str, node: &Node) -> Vec<Arc<str>> {
    let Written::Table(tree) = &node.value else { return Vec::new() };
    let count = match tree.get("count").map(|entry| &entry.node.value) {
        Some(Written::Integer(Some(count))) if (2..=COUNT_MAX).contains(count) => u16::try_from(*count).unwrap_or(1),
        _ => return vec![Arc::from(name)],
    };
    (0..count).map(|number| numbered(name, number)).collect()
}

/// A point that no request could read.
fn within(walk: &mut Walk, limits: &RequestLimits, address: &At<(Table, u16)>, width: u16, last: u32) {
    let (table, first) = address.value;
    let most = limits.quantity_max(table);
    if width > most {
        let what = Wrong::new(format!("takes {width} registers, and `max_registers` is {most}"))
            .help("a value that is read in two parts may be half of an old one");
        walk.wrong(address.spot, "address", what);
    }
    if limits.forbids(table, u32::from(first), last) {
        let wrong = Wrong::new("stands on an address that is `forbidden`");
        walk.wrong(address.spot, "address", wrong);
    }
}

/// What one request may be like. `None` where anything is wrong, or not said by a model.
fn limits(walk: &mut Walk, reader: &Reader<'_>, base: u16) -> Option<RequestLimits> {
    let standard = RequestLimits::default();
    let mut number = |key, min: i64, max: u16| {
        reader.integer(walk, key, min, i64::from(max)).and_then(|at| u16::try_from(at.value).ok())
    };
    let registers_max = number("max_registers", 1, standard.registers_max);
    let bits_max = number("max_bits", 1, standard.bits_max);
    let gap = number("gap", 0, standard.registers_max - 1);
    let mut forbidden = Some(Vec::new());
    for text in reader.texts(walk, "forbidden")? {
        match (units::address_range(&text.value, base), &mut forbidden) {
            (Ok(range), Some(forbidden)) => forbidden.push(range),
            (Ok(_), None) => {}
            (Err(wrong), _) => {
                walk.wrong(text.spot, "forbidden", wrong);
                forbidden = None;
            }
        }
    }
    Some(RequestLimits { registers_max: registers_max?, bits_max: bits_max?, gap: gap?, forbidden: forbidden? })
}

pub(super) fn order(walk: &mut Walk, reader: &Reader<'_>) -> Option<At<WordOrder>> {
    let choices =
        [("abcd", WordOrder::Abcd), ("cdab", WordOrder::Cdab), ("badc", WordOrder::Badc), ("dcba", WordOrder::Dcba)];
    reader.choice(walk, "order", &choices, &[])
}

fn poll(walk: &mut Walk, reader: &Reader<'_>) -> Option<Duration> {
    reader.duration(walk, "poll", Duration::from_millis(10), Duration::from_secs(7 * 86_400)).map(|at| at.value)
}

/// `report = { … }`, of a Modbus or of a serial point.
pub(super) fn read_report(walk: &mut Walk, tree: &Tree, spot: Spot) -> Option<Report> {
    let reader = Reader::open(walk, tree, &keys::REPORT, spot);
    let range = (Duration::from_millis(10), Duration::from_secs(31 * 86_400));
    let deadband = reader.leaf(walk, "deadband", deadband);
    let min_interval = reader.duration(walk, "min_interval", Duration::ZERO, range.1);
    let heartbeat = reader.duration(walk, "heartbeat", range.0, range.1);
    if let (Some(min), Some(beat)) = (&min_interval, &heartbeat)
        && min.value > beat.value
    {
        walk.wrong(beat.spot, "heartbeat", Wrong::new("must not be shorter than `min_interval`"));
        return None;
    }
    let is_hole = |key: &str, is_read: bool| reader.has(key) && !is_read;
    if is_hole("deadband", deadband.is_some())
        || is_hole("min_interval", min_interval.is_some())
        || is_hole("heartbeat", heartbeat.is_some())
    {
        return None;
    }
    Some(Report {
        deadband: deadband.map(|at| at.value),
        min_interval: min_interval.map(|at| at.value),
        heartbeat: heartbeat.map(|at| at.value),
    })
}

fn deadband(node: &Node) -> Result<Deadband, Wrong> {
    let (number, deadband): (f64, fn(f64) -> Deadband) = match &node.value {
        Written::Float(number) => (*number, Deadband::Absolute),
        // A configuration writes small whole numbers here; none near 2^53 is meant exactly.
        Written::Integer(Some(number)) => (*number as f64, Deadband::Absolute),
        Written::Text(text) => match text.trim().strip_suffix('%').map(|number| number.trim().parse::<f64>()) {
            Some(Ok(percent)) => (percent, Deadband::Percent),
            _ => return Err(Wrong::new(format!("{text:?} is not a percentage")).help("write 0.5, or \"2 %\"")),
        },
        other => return Err(walk::wrong_kind("a number, or a percentage such as \"2 %\"", other)),
    };
    if !number.is_finite() {
        return Err(Wrong::new("must be a finite number"));
    }
    if number < 0.0 {
        return Err(Wrong::new("must not be negative").help("0 publishes each change, however small"));
    }
    Ok(deadband(number))
}

fn point_kind(walk: &mut Walk, reader: &Reader<'_>, table: Option<Table>) -> Option<At<PointKind>> {
    /// What other programs call these types.
    const FOREIGN: &[(&str, &str)] = &[
        ("float", "f32"),
        ("float32", "f32"),
        ("real", "f32"),
        ("double", "f64"),
        ("float64", "f64"),
        ("byte", "u8"),
        ("uint8", "u8"),
        ("int8", "i8"),
        ("int", "i16"),
        ("int16", "i16"),
        ("uint", "u16"),
        ("uint16", "u16"),
        ("word", "u16"),
        ("int32", "i32"),
        ("uint32", "u32"),
        ("dword", "u32"),
        ("int64", "i64"),
        ("uint64", "u64"),
        ("boolean", "bool"),
        ("bit", "bool"),
        ("str", "string"),
        ("text", "string"),
    ];
    const KNOWN: [&str; 16] = [
        "bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f16", "f32", "f64", "bcd16", "bcd32", "bcd64",
        "string",
    ];

    let registers = reader.integer(walk, "registers", 1, i64::from(REGISTERS_MAX));
    if !reader.has("type") {
        if reader.has("registers") {
            let what = "`registers` is how long a text is, and needs `type = \"string\"`";
            walk.findings.problem(reader.spot_of("registers"), what, None);
            return None;
        }
        if reader.has("bit") {
            return Some(At { value: PointKind::Bool, spot: reader.spot, is_default: true });
        }
        return match table {
            Some(Table::Coil | Table::Discrete) => {
                Some(At { value: PointKind::Bool, spot: reader.spot, is_default: true })
            }
            // How wide a register's value is cannot be guessed: a wrong guess is a wrong number that looks right.
            Some(Table::Input | Table::Holding) => {
                if !walk.is_partial {
                    let help = "the manual of the device says it: `type = \"u16\"`, \"i16\", \"u32\", \"f32\" …";
                    walk.findings.problem(reader.spot, "`type` is missing", Some(help.to_owned()));
                }
                None
            }
            None => None,
        };
    }
    let name = reader.leaf(walk, "type", |node| {
        let text = walk::text(node)?;
        if let Some(known) = KNOWN.iter().find(|known| **known == text) {
            return Ok(*known);
        }
        let lower = text.to_lowercase();
        let meant = FOREIGN.iter().find(|(foreign, _)| *foreign == lower).map(|(_, name)| *name);
        let help = match meant.or_else(|| walk::nearest(text, KNOWN)) {
            Some(name) => format!("did you mean {name:?}?"),
            None => format!("the types are {}", KNOWN.join(", ")),
        };
        Err(Wrong::new(format!("{text:?} is not a type")).help(help))
    })?;
    let value = match name.value {
        "bool" => PointKind::Bool,
        "u8" => PointKind::U8,
        "i8" => PointKind::I8,
        "u16" => PointKind::U16,
        "i16" => PointKind::I16,
        "u32" => PointKind::U32,
        "i32" => PointKind::I32,
        "u64" => PointKind::U64,
        "i64" => PointKind::I64,
        "bcd16" => PointKind::Bcd16,
        "bcd32" => PointKind::Bcd32,
        "bcd64" => PointKind::Bcd64,
        "f16" => PointKind::F16,
        "f32" => PointKind::F32,
        "f64" => PointKind::F64,
        _ if !reader.has("registers") => {
            if !walk.is_partial {
                let help = "write how many registers it takes, two characters each: `registers = 8`";
                walk.findings.problem(reader.spot, "`registers` is missing", Some(help.to_owned()));
            }
            return None;
        }
        _ => PointKind::String { registers: NonZeroU16::new(u16::try_from(registers?.value).ok()?)? },
    };
    if name.value != "string" && reader.has("registers") {
        let what = format!("`registers` is for texts; a {} has its own width", name.value);
        walk.findings.problem(reader.spot_of("registers"), what, None);
    }
    Some(At { value, spot: name.spot, is_default: false })
}

/// Points of a model or a device: from CSV, with those of the file over them.
fn points(walk: &mut Walk, reader: &Reader<'_>, model: Option<&Tree>) -> Tree {
    let mut points = model.cloned().unwrap_or_default();
    if let Some(text) = reader.text(walk, "points")
        && let Some(path) = walk.path("points", &text)
        && let Some(from_csv) = read_csv(walk, &path)
    {
        points.overlay(&from_csv);
    }
    if let Some((tree, _)) = reader.table(walk, "point") {
        points.overlay(tree);
    }
    points
}

fn read_csv(walk: &mut Walk, path: &At<std::path::PathBuf>) -> Option<Tree> {
    let layer = walk.findings.sources.get(path.spot.source).map_or(0, |source| source.layer);
    let known = walk.findings.sources.iter().position(|source| source.path == path.value);
    let source = match known {
        Some(source) => source,
        None => match load::read_bounded(&path.value, CSV_BYTES_MAX) {
            Ok(bytes) => load::add(walk, &path.value, bytes, layer)?,
            Err(reason) => {
                let wrong = Wrong::new(format!("{} {reason}", path.value.display()));
                let is_example = path.value.file_name().is_some_and(|name| name == "em24.csv");
                let wrong = match path.value.try_exists() {
                    Ok(false) if is_example => wrong.help("tidegate example em24.csv > em24.csv"),
                    Ok(false) => wrong.help(PUT_IT_THERE),
                    _ => wrong,
                };
                walk.wrong(path.spot, "points", wrong);
                return None;
            }
        },
    };
    tree::points_from_csv(source, REPORT_KEYS, NUMBER_KEYS, &mut walk.findings)
}

pub(super) fn read(
    walk: &mut Walk,
    name: &str,
    tree: &Tree,
    spot: Spot,
    models: &[Model],
    lines: &mut Vec<LineDraft>,
    words: &Words,
) -> ModbusDraft {
    let own = Reader::open(walk, tree, &keys::MODBUS, spot);
    let model_name = own.text(walk, "model");
    let model = model_name.as_ref().and_then(|name| models.iter().find(|model| model.name == name.value));
    let points = points(walk, &own, model.map(|model| &model.points));
    let mut merged = model.map(|model| model.own.clone()).unwrap_or_default();
    merged.overlay(tree);
    let reader = Reader::open(walk, &merged, &keys::MODBUS, spot);

    let line = line(walk, &reader, lines);
    let unit_id = reader.leaf(walk, "unit_id", unit_id);
    let settings = Settings::read(walk, &reader, words);
    let list = settings.read_points(walk, &points);
    let named = |(name, Entry { key, node }): (&str, &Entry)| -> Vec<(Arc<str>, Spot)> {
        names_of(name, node).into_iter().map(|name| (name, *key)).collect()
    };
    let point_names: Vec<(Arc<str>, Spot)> = points.in_order().into_iter().flat_map(named).collect();
    twice(walk, &point_names);
    // A model that could not be found may hold the points.
    let is_model_known = !reader.has("model") || model.is_some_and(|model| !model.has_points);
    if point_names.is_empty() && is_model_known && !walk.is_partial && !reader.has("points") {
        let help = match model.is_some() {
            true => "its model has none either",
            false => "write [modbus.<name>.point] with a line for each, or `points = \"file.csv\"`",
        };
        walk.findings.problem(spot, "this device has no points", Some(help.to_owned()));
    }
    if point_names.len() > POINTS_MAX {
        let what = format!("{} points are too many; {POINTS_MAX} are the most", point_names.len());
        walk.findings.problem(spot, what, None);
    }
    let config = (|| {
        if settings.has_timeout && settings.timeout.is_none() || !settings.report_fine {
            return None;
        }
        settings.order?;
        Some(ModbusConfig {
            line: line.as_ref()?.value.clone(),
            unit_id: unit_id.as_ref()?.value,
            poll: settings.poll?,
            timeout: Duration::ZERO,
            topic: PointTopic(settings.topic.as_ref()?.value.clone()),
            qos: settings.qos?,
            address_base: settings.base?,
            limits: settings.limits?,
            points: list?,
        })
    })();
    ModbusDraft {
        name: Arc::from(name),
        spot,
        line,
        unit_id,
        model: model_name,
        topic: settings.topic,
        point_names,
        timeout: settings.timeout,
        config,
    }
}

/// A name that a point of several values made, and that another one bears already.
fn twice(walk: &mut Walk, names: &[(Arc<str>, Spot)]) {
    let mut seen: HashMap<&Arc<str>, Spot> = HashMap::new();
    for (name, spot) in names {
        if let Some(first) = seen.insert(name, *spot) {
            let what = format!("the point `{name}` stands twice, here and at {}", walk.findings.name(first));
            let help = "`count` makes points with numbers behind their names".to_owned();
            walk.findings.problem(*spot, what, Some(help));
        }
    }
}

fn unit_id(node: &Node) -> Result<u8, Wrong> {
    match &node.value {
        Written::Integer(Some(0)) => Err(Wrong::new("unit 0 is the broadcast, which no device answers")
            .help("from 1 to 247; 255 for a TCP device itself")),
        Written::Integer(Some(number)) => u8::try_from(*number)
            .map_err(|_| Wrong::new("out of range").help("from 1 to 247; 255 for a TCP device itself")),
        Written::Integer(None) => Err(Wrong::new("out of range").help("from 1 to 247; 255 for a TCP device itself")),
        other => Err(walk::wrong_kind("a whole number", other)),
    }
}

/// The line of a device: a name, or a url in its place. Whether a name is known is seen by `check`.
fn line(walk: &mut Walk, reader: &Reader<'_>, lines: &mut Vec<LineDraft>) -> Option<At<Arc<str>>> {
    let text = reader.text(walk, "line")?;
    if text.value.starts_with('/') {
        let wrong = Wrong::new("a serial port has settings, and cannot stand here")
            .help(format!("write [line.bus] with port = {:?}, and line = \"bus\" here", text.value));
        walk.wrong(text.spot, "line", wrong);
        return None;
    }
    if !text.value.contains("://") {
        return Some(At { value: Arc::from(text.value), spot: text.spot, is_default: false });
    }
    let kind = match line_url(&text.value) {
        Ok(kind) => kind,
        Err(wrong) => {
            walk.wrong(text.spot, "line", wrong);
            return None;
        }
    };
    let name: Arc<str> = Arc::from(line_name(&kind)?);
    if !lines.iter().any(|line| line.name == name) {
        // The defaults of a line, as if it had been written.
        let empty = Tree::default();
        let defaults = Reader::open(walk, &empty, &keys::LINE, text.spot);
        let config = super::pacing(walk, &defaults).map(|pacing| pacing.line(kind));
        lines.push(LineDraft { name: name.clone(), spot: text.spot, is_in_place: true, config });
    }
    Some(At { value: name, spot: text.spot, is_default: false })
}
