//! What was written, as one tree of nodes that remember where they stand: the layers merged, CSV tables included.
//!
//! Nothing is interpreted here. A key that stands twice in one layer is a problem that names both places; of two
//! layers the later wins.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Mark, Place, Problem};

/// Problems beyond this are only counted: a file of random bytes must not fill the journal.
const PROBLEMS_MAX: usize = 500;

/// Of so many keys written twice in one file the first place is looked for.
const TWICE_MAX: usize = 50;

/// A place in one of the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Spot {
    pub(super) source: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// One file, as it was read.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) layer: u8,
}

/// All files, and all that is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) sources: Vec<Source>,
    problems: Vec<(Option<Spot>, Problem)>,
    warnings: Vec<(Option<Spot>, Problem)>,
    seen: HashSet<(Option<Spot>, String)>,
    more: usize,
}

impl Findings {
    /// Adds a file; its number is what spots refer to.
    pub(super) fn add(&mut self, source: Source) -> usize {
        self.sources.push(source);
        self.sources.len() - 1
    }

    pub(super) fn place(&self, spot: Spot) -> Option<Place> {
        let source = self.sources.get(spot.source)?;
        Some(Place { file: source.path.clone(), mark: Some(Mark::new(&source.text, spot.start, spot.end)) })
    }

    /// `file:line:column`, to name a second place inside a sentence.
    pub(super) fn name(&self, spot: Spot) -> String {
        // To find a line costs a walk through its file; a sentence that nobody will see is not worth it.
        if self.is_full() {
            return String::new();
        }
        self.place(spot).map_or_else(|| "an unknown place".to_owned(), |place| place.to_string())
    }

    fn accept(&mut self, spot: Option<Spot>, what: &str) -> bool {
        // A model is read once for each of its devices: what is wrong with it is told once.
        if self.is_full() {
            self.more += 1;
            return false;
        }
        self.seen.insert((spot, what.to_owned()))
    }

    /// Whether nothing more will be told, so that nothing more need be looked for.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() + self.warnings.len() >= PROBLEMS_MAX
    }

    pub(super) fn problem(&mut self, spot: Spot, what: impl Into<String>, help: Option<String>) {
        let what = bounded(what.into());
        let help = help.map(bounded);
        if self.accept(Some(spot), &what) {
            let place = self.place(spot);
            self.problems.push((Some(spot), Problem { place, what, help }));
        }
    }

    pub(super) fn warning(&mut self, spot: Spot, what: impl Into<String>, help: Option<String>) {
        let what = bounded(what.into());
        if self.accept(Some(spot), &what) {
            let place = self.place(spot);
            self.warnings.push((Some(spot), Problem { place, what, help }));
        }
    }

    /// About a file as a whole, or about nothing that was written.
    pub(super) fn general(&mut self, file: Option<PathBuf>, what: impl Into<String>, help: Option<String>) {
        let place = file.map(|file| Place { file, mark: None });
        let what = what.into();
        self.problems.push((None, Problem { place, what, help }));
    }

    pub(super) fn general_warning(&mut self, what: impl Into<String>, help: Option<String>) {
        self.warnings.push((None, Problem { place: None, what: what.into(), help }));
    }

    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Problems and warnings in the order of their places.
    pub(super) fn finish(mut self) -> (Vec<Problem>, Vec<Problem>) {
        self.problems.sort_by_key(|(spot, _)| *spot);
        self.warnings.sort_by_key(|(spot, _)| *spot);
        if self.more > 0 {
            let what = format!("{} more are not shown", self.more);
            self.problems.push((None, Problem { place: None, what, help: None }));
        }
        let strip = |list: Vec<(Option<Spot>, Problem)>| list.into_iter().map(|(_, problem)| problem).collect();
        (strip(self.problems), strip(self.warnings))
    }
}

/// A sentence with a long text in it, cut in the middle: its start and its end say what is meant.
fn bounded(text: String) -> String {
    const CHARACTERS_MAX: usize = 400;
    let count = text.chars().count();
    if count <= CHARACTERS_MAX {
        return text;
    }
    let start: String = text.chars().take(CHARACTERS_MAX / 2).collect();
    let end: String = text.chars().skip(count - CHARACTERS_MAX / 2).collect();
    format!("{start}…{end}")
}

/// A table: keys in the order of the alphabet; `in_order` gives the written one.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    entries: BTreeMap<String, Entry>,
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: Spot,
    pub(super) node: Node,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) spot: Spot,
    pub(super) value: Written,
}

/// What was written.
#[derive(Debug, Clone)]
pub(super) enum Written {
    Text(String),
    /// `None` when it does not fit in 64 bits.
    Integer(Option<i64>),
    Float(f64),
    Bool(bool),
    Date,
    List(Vec<Node>),
    Table(Tree),
}

impl Written {
    /// The kind of value, as a person would say it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Written::Text(_) => "text",
            Written::Integer(_) => "a whole number",
            Written::Float(_) => "a number with a fraction",
            Written::Bool(_) => "true or false",
            Written::Date => "a date",
            Written::List(_) => "a list",
            Written::Table(_) => "a table",
        }
    }
}

impl Tree {
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Entries as they were written: by layer, file and place.
    pub(super) fn in_order(&self) -> Vec<(&str, &Entry)> {
        let mut entries: Vec<(&str, &Entry)> = self.entries.iter().map(|(key, entry)| (key.as_str(), entry)).collect();
        entries.sort_by_key(|(_, entry)| entry.key);
        entries
    }

    pub(super) fn insert(&mut self, key: String, entry: Entry) {
        self.entries.insert(key, entry);
    }

    /// Puts `other` over this one, key by key, tables inside too: what a device says wins over its model.
    pub(super) fn overlay(&mut self, other: &Tree) {
        for (key, entry) in &other.entries {
            match (self.entries.get_mut(key), &entry.node.value) {
                (Some(Entry { node: Node { value: Written::Table(mine), .. }, .. }), Written::Table(theirs)) => {
                    mine.overlay(theirs);
                }
                _ => self.insert(key.clone(), entry.clone()),
            }
        }
    }

    /// Merges a later file: tables merge, lists of tables are appended, of anything else the later layer wins, and
    /// twice in one layer is a problem.
    pub(super) fn merge(&mut self, other: Tree, findings: &mut Findings) {
        for (key, entry) in other.entries {
            let Some(mine) = self.entries.get_mut(&key) else {
                self.entries.insert(key, entry);
                continue;
            };
            let layer = |spot: Spot| findings.sources.get(spot.source).map(|source| source.layer);
            let is_same_layer = layer(mine.key) == layer(entry.key);
            match (&mut mine.node.value, entry.node.value) {
                (Written::Table(mine), Written::Table(theirs)) => mine.merge(theirs, findings),
                (Written::List(mine), Written::List(theirs)) if are_tables(mine) && are_tables(&theirs) => {
                    mine.extend(theirs);
                }
                _ if is_same_layer => {
                    let first = findings.name(mine.key);
                    let what = format!("`{key}` is written twice, here and at {first}");
                    findings.problem(entry.key, what, Some(String::from("keep one of the two")));
                }
                (_, value) => *mine = Entry { key: entry.key, node: Node { spot: entry.node.spot, value } },
            }
        }
    }
}

fn are_tables(list: &[Node]) -> bool {
    !list.is_empty() && list.iter().all(|node| matches!(node.value, Written::Table(_)))
}

/// Reads one TOML file. A syntax error is reported as the first of its file, and `None` returned: what follows it
/// could mean anything. Keys written twice are all reported, since everything else still means what it says.
pub(super) fn parse(source: usize, findings: &mut Findings) -> Option<Tree> {
    let text = std::mem::take(&mut findings.sources.get_mut(source)?.text);
    let (table, errors) = DeTable::parse_recoverable(&text);
    let mut faults = Vec::new();
    let mut syntax: Option<(usize, usize, String)> = None;
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        if error.message() == "duplicate key" {
            // Each search walks the file: a file of repetitions only must not take minutes.
            let is_searched = faults.len() < TWICE_MAX;
            let first = is_searched.then(|| first_of(&text, table.get_ref(), span.start, span.end)).flatten();
            faults.push((span.start, span.end, first));
        } else if syntax.as_ref().is_none_or(|(start, _, _)| span.start < *start) {
            syntax = Some((span.start, span.end, error.message().to_owned()));
        }
    }
    let tree = if syntax.is_none() { Some(tree(table.get_ref(), source)) } else { None };
    drop(table);
    let spot = |start: usize, end: usize| Spot { source, start, end };
    let name = |start: usize, end: usize| text.get(start..end).unwrap_or_default().to_owned();
    let twice: Vec<(Spot, String, Option<Spot>)> = faults
        .into_iter()
        .map(|(start, end, first)| (spot(start, end), name(start, end), first.map(|(start, end)| spot(start, end))))
        .collect();
    if let Some(slot) = findings.sources.get_mut(source) {
        slot.text = text;
    }
    match syntax {
        Some((start, end, message)) => {
            let what = format!("this is not valid TOML: {message}");
            let help = "until this is mended, the rest of the file cannot be checked";
            findings.problem(spot(start, end), what, Some(help.to_owned()));
        }
        None => {
            for (spot, key, first) in twice {
                let what = match first {
                    Some(first) => format!("`{key}` is written twice, here and at {}", findings.name(first)),
                    None => format!("`{key}` is written twice"),
                };
                findings.problem(spot, what, Some("keep one of the two".to_owned()));
            }
        }
    }
    tree
}

/// Where the key at `start..end` was written before: for a header an equal line, else the key in the innermost table.
fn first_of(text: &str, table: &DeTable<'_>, start: usize, end: usize) -> Option<(usize, usize)> {
    let key = text.get(start..end)?;
    let line_start = text.get(..start)?.rfind('\n').map_or(0, |newline| newline + 1);
    let header = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    let line = header(text.get(line_start..)?.lines().next()?);
    if line.starts_with('[') {
        let mut offset = 0;
        for earlier in text.get(..line_start)?.split_inclusive('\n') {
            if header(earlier) == line {
                let within = earlier.find(key)?;
                return Some((offset + within, offset + within + key.len()));
            }
            offset += earlier.len();
        }
        return None;
    }
    let mut best: Option<(usize, std::ops::Range<usize>)> = None;
    let mut open: Vec<(usize, &DeTable<'_>)> = vec![(0, table)];
    while let Some((table_start, table)) = open.pop() {
        for (name, value) in table {
            if name.get_ref() == key.trim_matches(['"', '\'']) && name.span().start < start {
                let better = best.as_ref().is_none_or(|(best_start, _)| table_start >= *best_start);
                if better && table_start <= start {
                    best = Some((table_start, name.span()));
                }
            }
            let mut values = vec![value];
            while let Some(value) = values.pop() {
                match value.get_ref() {
                    DeValue::Table(table) => open.push((value.span().start, table)),
                    DeValue::Array(list) => values.extend(list.iter()),
                    _ => {}
                }
            }
        }
    }
    best.map(|(_, span)| (span.start, span.end))
}

fn tree(table: &DeTable<'_>, source: usize) -> Tree {
    let mut tree = Tree::default();
    for (key, value) in table {
        let span = key.span();
        let entry = Entry { key: Spot { source, start: span.start, end: span.end }, node: node(value, source) };
        tree.insert(key.get_ref().to_string(), entry);
    }
    tree
}

// The depth is bounded by the parser, which refuses more than 80 levels.
pub(super) fn node(value: &Spanned<DeValue<'_>>, source: usize) -> Node {
    let span = value.span();
    let written = match value.get_ref() {
        DeValue::String(text) => Written::Text(text.to_string()),
        DeValue::Integer(integer) => Written::Integer(i64::from_str_radix(integer.as_str(), integer.radix()).ok()),
        DeValue::Float(float) => Written::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Written::Bool(*value),
        DeValue::Datetime(_) => Written::Date,
        DeValue::Array(list) => Written::List(list.iter().map(|value| node(value, source)).collect()),
        DeValue::Table(table) => Written::Table(tree(table, source)),
    };
    Node { spot: Spot { source, start: span.start, end: span.end }, value: written }
}

/// Reads a table of points from CSV: a header with the keys of a point, then a line for each. A cell that is empty
/// says nothing. `report_keys` go into the table `report`, `number_keys` are numbers.
pub(super) fn points_from_csv(
    source: usize,
    report_keys: &[&str],
    number_keys: &[&str],
    findings: &mut Findings,
) -> Option<Tree> {
    let text = findings.sources.get(source)?.text.clone();
    let whole = Spot { source, start: 0, end: 0 };
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).trim(csv::Trim::None).from_reader(text.as_bytes());
    let mut header: Vec<String> = Vec::new();
    let mut points = Tree::default();
    let mut record = csv::StringRecord::new();
    loop {
        let record_start = usize::try_from(reader.position().byte()).unwrap_or(usize::MAX);
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                findings.problem(Spot { source, start: record_start, end: record_start }, csv_error(&error), None);
                return None;
            }
        }
        let cells = cells(&text, record_start, &record, source);
        if cells.iter().all(|(_, cell)| cell.is_empty() || cell.starts_with('#')) || is_comment(&cells) {
            continue;
        }
        if header.is_empty() {
            for (spot, name) in &cells {
                if header.contains(name) && !name.is_empty() {
                    findings.problem(*spot, format!("the column `{name}` stands twice in the header"), None);
                }
                header.push(name.clone());
            }
            if !header.iter().any(|name| name == "name") {
                let spot = cells.first().map_or(whole, |(spot, _)| *spot);
                let help = match text.get(spot.start..spot.end) {
                    Some(line) if line.contains(';') || line.contains('\t') => "separate the columns with commas",
                    _ => "the first line names the columns: name,address,type,…",
                };
                findings.problem(spot, "the header has no column `name`", Some(help.to_owned()));
                return None;
            }
            // An unknown column would be reported again on every line below it.
            let mut is_known = true;
            for (spot, name) in &cells {
                is_known &= super::walk::is_column(name, *spot, report_keys, findings);
            }
            if !is_known {
                return None;
            }
            continue;
        }
        add_point(&mut points, &header, &cells, report_keys, number_keys, findings);
    }
    if header.is_empty() {
        findings.problem(whole, "this table of points is empty", None);
        return None;
    }
    Some(points)
}

fn is_comment(cells: &[(Spot, String)]) -> bool {
    cells.first().is_some_and(|(_, cell)| cell.starts_with('#'))
}

fn csv_error(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "this line is not UTF-8".to_owned(),
        _ => "this line is not CSV".to_owned(),
    }
}

/// Each cell with its place. The reader does not tell where a cell stands, so the line is walked once more.
fn cells(text: &str, start: usize, record: &csv::StringRecord, source: usize) -> Vec<(Spot, String)> {
    let mut result = Vec::with_capacity(record.len());
    let bytes = text.as_bytes();
    // The position of the reader is where the last record ended: newlines and empty lines may stand in between.
    let mut at = start;
    while bytes.get(at).is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        at += 1;
    }
    for cell in record {
        let cell_start = at;
        let mut is_quoted = false;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => is_quoted = !is_quoted,
                b',' | b'\n' | b'\r' if !is_quoted => break,
                _ => {}
            }
            at += 1;
        }
        let raw = text.get(cell_start..at).unwrap_or_default();
        let lead = raw.len() - raw.trim_start().len();
        let spot = Spot { source, start: cell_start + lead, end: cell_start + lead + raw.trim().len() };
        result.push((spot, cell.trim().to_owned()));
        at += 1;
    }
    result
}

fn add_point(
    points: &mut Tree,
    header: &[String],
    cells: &[(Spot, String)],
    report_keys: &[&str],
    number_keys: &[&str],
    findings: &mut Findings,
) {
    let mut point = Tree::default();
    let mut report = Tree::default();
    let mut name: Option<(Spot, String)> = None;
    let mut line = cells.first().map_or(Spot { source: 0, start: 0, end: 0 }, |(spot, _)| *spot);
    line.end = cells.last().map_or(line.end, |(spot, _)| spot.end);
    for (index, (spot, cell)) in cells.iter().enumerate() {
        let Some(key) = header.get(index) else {
            if !cell.is_empty() {
                let what = format!("this line has more columns than the header, which has {}", header.len());
                findings.problem(*spot, what, Some("a text with a comma stands in quotes".to_owned()));
            }
            continue;
        };
        if cell.is_empty() || key.is_empty() {
            continue;
        }
        if key == "name" {
            name = Some((*spot, cell.clone()));
            continue;
        }
        let value = if number_keys.contains(&key.as_str()) { number(cell) } else { Written::Text(cell.clone()) };
        let entry = Entry { key: *spot, node: Node { spot: *spot, value } };
        if report_keys.contains(&key.as_str()) {
            report.insert(key.clone(), entry);
        } else {
            point.insert(key.clone(), entry);
        }
    }
    if report.keys().next().is_some() {
        let entry = Entry { key: line, node: Node { spot: line, value: Written::Table(report) } };
        point.insert("report".to_owned(), entry);
    }
    let Some((spot, name)) = name else {
        findings.problem(line, "this point has no name", None);
        return;
    };
    if let Some(first) = points.get(&name) {
        let what = format!("the point `{name}` stands twice, here and at {}", findings.name(first.key));
        findings.problem(spot, what, None);
        return;
    }
    points.insert(name, Entry { key: spot, node: Node { spot: line, value: Written::Table(point) } });
}

fn number(cell: &str) -> Written {
    if let Ok(integer) = cell.parse::<i64>() {
        return Written::Integer(Some(integer));
    }
    match cell.parse::<f64>() {
        Ok(float) => Written::Float(float),
        Err(_) => Written::Text(cell.to_owned()),
    }
}
