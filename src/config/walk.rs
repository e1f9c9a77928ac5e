//! Reads one leaf at a time out of a table, and notes what is wrong with it instead of stopping.
//!
//! A leaf that is missing or wrong is `None`; what depends on it is then not checked, so that one fault is one
//! problem. A key that has a default is read from there as if it had been written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::keys::{self, KeyTable, Presence};
use super::report::clip;
use super::tree::{self, Findings, Node, Spot, Tree, Written};
use super::units::{self, Wrong};

/// Names of devices, points, lines and uplinks become parts of topics; longer ones are mistakes.
const NAME_CHARACTERS_MAX: usize = 64;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) spot: Spot,
    /// Nobody wrote it.
    pub(super) is_default: bool,
}

/// What the whole walk shares.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub(super) findings: Findings,
    /// A file could not be read: what is missing may stand there, so nothing is called missing or unknown by name.
    pub(super) is_partial: bool,
    /// What `${CREDENTIALS_DIRECTORY}` stands for.
    pub(super) credentials_dir: Option<PathBuf>,
}

impl Walk {
    /// Notes what is wrong with a key.
    pub(super) fn wrong(&mut self, spot: Spot, key: &str, wrong: Wrong) {
        self.findings.problem(spot, format!("`{}`: {}", clip(key), wrong.what), wrong.help);
    }

    /// A name that the owner chose: it becomes a level of a topic.
    pub(super) fn check_name(&mut self, kind: &str, name: &str, spot: Spot) {
        if let Err(wrong) = name_fault(name) {
            self.findings.problem(spot, format!("{kind} {:?}: {}", clip(name), wrong.what), wrong.help);
        }
    }

    /// A path as written: `${CREDENTIALS_DIRECTORY}` filled in, a relative one taken from the file that names it.
    pub(super) fn path(&mut self, key: &str, text: &At<String>) -> Option<At<PathBuf>> {
        const VARIABLE: &str = "${CREDENTIALS_DIRECTORY}";
        let path = match text.value.split_once(VARIABLE) {
            Some(("", rest)) => match &self.credentials_dir {
                Some(directory) => directory.join(rest.trim_start_matches('/')),
                None => {
                    let wrong = Wrong::new("${CREDENTIALS_DIRECTORY} is not set here")
                        .help("systemd sets it where the unit has LoadCredential=; by hand, set it in the environment");
                    self.wrong(text.spot, key, wrong);
                    return None;
                }
            },
            Some(_) => {
                self.wrong(text.spot, key, Wrong::new("${CREDENTIALS_DIRECTORY} can only be the start of a path"));
                return None;
            }
            None if text.value.contains("${") => {
                let wrong = Wrong::new("of all variables only ${CREDENTIALS_DIRECTORY} is known here");
                self.wrong(text.spot, key, wrong);
                return None;
            }
            None => PathBuf::from(&text.value),
        };
        if text.value.is_empty() || text.value.contains('\0') {
            self.wrong(text.spot, key, Wrong::new("this is not a path"));
            return None;
        }
        let base = self.findings.sources.get(text.spot.source).and_then(|source| source.path.parent());
        let path = base.unwrap_or(Path::new("")).join(path);
        Some(At { value: path, spot: text.spot, is_default: text.is_default })
    }
}

/// Why `name` cannot be a name: it must be fit for a level of a topic.
pub(super) fn name_fault(name: &str) -> Result<(), Wrong> {
    if name.is_empty() {
        return Err(Wrong::new("a name must not be empty"));
    }
    if name.chars().count() > NAME_CHARACTERS_MAX {
        return Err(Wrong::new(format!("a name has at most {NAME_CHARACTERS_MAX} characters")));
    }
    match name.chars().find(|c| c.is_control() || matches!(c, '/' | '+' | '#' | '{' | '}')) {
        Some(bad) => Err(Wrong::new(format!("a name must not contain {bad:?}"))
            .help("names become levels of topics: / + # { } and control characters are not allowed")),
        None => Ok(()),
    }
}

/// A table being read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'t> {
    tree: &'t Tree,
    spec: &'static KeyTable,
    /// Where the table itself stands.
    pub(super) spot: Spot,
}

impl<'t> Reader<'t> {
    /// Opens a table, and notes every key that it should not have.
    pub(super) fn open(walk: &mut Walk, tree: &'t Tree, spec: &'static KeyTable, spot: Spot) -> Reader<'t> {
        for (key, entry) in tree.in_order() {
            if spec.keys.iter().any(|known| known.name == key) || walk.findings.is_full() {
                continue;
            }
            let shown = clip(key);
            let table = if spec.title.is_empty() { "at the top".to_owned() } else { format!("in [{}]", spec.title) };
            if let Some((_, instead)) = spec.gone.iter().find(|(name, _)| *name == key) {
                walk.findings.problem(
                    entry.key,
                    format!("`{shown}` is not a key {table}"),
                    Some((*instead).to_owned()),
                );
            } else if spec.later.contains(&key) {
                walk.findings.problem(
                    entry.key,
                    format!("`{key}` {table} is not served by this version"),
                    Some("leave it out until a later version serves it".to_owned()),
                );
            } else {
                let help = match nearest(key, spec.keys.iter().map(|known| known.name)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => match elsewhere(key, spec.title) {
                        Some(title) => format!("there is a key `{key}` in [{title}]"),
                        None => {
                            let names: Vec<&str> = spec.keys.iter().map(|known| known.name).collect();
                            format!("the keys here are {}", names.join(", "))
                        }
                    },
                };
                walk.findings.problem(entry.key, format!("`{shown}` is not a key {table}"), Some(help));
            }
        }
        Reader { tree, spec, spot }
    }

    /// Where a key stands, or else the table.
    pub(super) fn spot_of(&self, key: &str) -> Spot {
        self.tree.get(key).map_or(self.spot, |entry| entry.key)
    }

    /// Whether a key was written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.tree.get(key).is_some()
    }

    /// Whether it was written as a table.
    pub(super) fn is_table(&self, key: &str) -> bool {
        self.tree.get(key).is_some_and(|entry| matches!(entry.node.value, Written::Table(_)))
    }

    /// A leaf, or its default.
    pub(super) fn leaf<T>(
        &self,
        walk: &mut Walk,
        key: &'static str,
        read: impl Fn(&Node) -> Result<T, Wrong>,
    ) -> Option<At<T>> {
        if let Some(entry) = self.tree.get(key) {
            return match read(&entry.node) {
                Ok(value) => Some(At { value, spot: entry.node.spot, is_default: false }),
                Err(wrong) => {
                    walk.wrong(entry.node.spot, key, wrong);
                    None
                }
            };
        }
        match self.spec.keys.iter().find(|known| known.name == key).map(|known| known.presence) {
            Some(Presence::Default(text)) => {
                let value = DeValue::parse(text).ok()?;
                let value = read(&tree::node(&value, usize::MAX)).ok()?;
                Some(At { value, spot: self.spot, is_default: true })
            }
            Some(Presence::Required) => {
                self.missing(walk, key);
                None
            }
            _ => None,
        }
    }

    /// Notes that a key is missing.
    pub(super) fn missing(&self, walk: &mut Walk, key: &str) {
        if !walk.is_partial {
            let title = self.spec.title;
            walk.findings.problem(self.spot, format!("`{key}` is missing"), Some(format!("[{title}] needs it")));
        }
    }

    pub(super) fn text(&self, walk: &mut Walk, key: &'static str) -> Option<At<String>> {
        self.leaf(walk, key, |node| text(node).map(str::to_owned))
    }

    pub(super) fn choice<T: Copy>(
        &self,
        walk: &mut Walk,
        key: &'static str,
        choices: &[(&'static str, T)],
        later: &[&str],
    ) -> Option<At<T>> {
        self.leaf(walk, key, |node| {
            let text = text(node)?;
            if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
                return Ok(*value);
            }
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            if later.contains(&text) {
                return Err(Wrong::new(format!("{text:?} is not served by this version"))
                    .help(format!("this version serves {}", names.join(", "))));
            }
            let help = match nearest(text, choices.iter().map(|(name, _)| *name)) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("write one of {}", names.join(", ")),
            };
            Err(Wrong::new(format!("{text:?} is not one of the choices")).help(help))
        })
    }

    pub(super) fn duration(
        &self,
        walk: &mut Walk,
        key: &'static str,
        min: Duration,
        max: Duration,
    ) -> Option<At<Duration>> {
        self.leaf(walk, key, |node| match &node.value {
            Written::Text(text) => {
                let duration = units::duration(text)?;
                if duration < min || duration > max {
                    let (min, max) = (units::duration_text(min), units::duration_text(max));
                    return Err(
                        Wrong::new(format!("{text:?} is out of range")).help(format!("from {min:?} to {max:?}"))
                    );
                }
                Ok(duration)
            }
            other => Err(wrong_kind("a duration in quotes, such as \"5s\"", other)),
        })
    }

    pub(super) fn size(&self, walk: &mut Walk, key: &'static str, min: u64, max: u64) -> Option<At<u64>> {
        self.leaf(walk, key, |node| match &node.value {
            Written::Text(text) => {
                let bytes = units::size(text)?;
                if bytes < min || bytes > max {
                    let (min, max) = (units::size_text(min), units::size_text(max));
                    return Err(
                        Wrong::new(format!("{text:?} is out of range")).help(format!("from {min:?} to {max:?}"))
                    );
                }
                Ok(bytes)
            }
            other => Err(wrong_kind("a size in quotes, such as \"64 MiB\"", other)),
        })
    }

    pub(super) fn integer(&self, walk: &mut Walk, key: &'static str, min: i64, max: i64) -> Option<At<i64>> {
        self.leaf(walk, key, |node| match &node.value {
            Written::Integer(Some(number)) if (min..=max).contains(number) => Ok(*number),
            Written::Integer(_) => Err(Wrong::new("out of range").help(format!("from {min} to {max}"))),
            other => Err(wrong_kind("a whole number", other)),
        })
    }

    pub(super) fn number(&self, walk: &mut Walk, key: &'static str) -> Option<At<f64>> {
        self.leaf(walk, key, |node| {
            let number = match &node.value {
                Written::Float(number) => *number,
                // A configuration writes small whole numbers here; none near 2^53 is meant exactly.
                Written::Integer(Some(number)) => *number as f64,
                other => return Err(wrong_kind("a number", other)),
            };
            if number.is_finite() { Ok(number) } else { Err(Wrong::new("must be a finite number")) }
        })
    }

    pub(super) fn truth(&self, walk: &mut Walk, key: &'static str) -> Option<At<bool>> {
        self.leaf(walk, key, |node| match &node.value {
            Written::Bool(value) => Ok(*value),
            other => Err(wrong_kind("true or false, without quotes", other)),
        })
    }

    /// One text, or a list of them.
    pub(super) fn texts(&self, walk: &mut Walk, key: &'static str) -> Option<Vec<At<String>>> {
        let nodes = match self.tree.get(key) {
            None => return self.leaf(walk, key, list).map(|_| Vec::new()),
            Some(entry) => match &entry.node.value {
                Written::List(nodes) => nodes.as_slice(),
                _ => std::slice::from_ref(&entry.node),
            },
        };
        let mut texts = Vec::new();
        let mut is_whole = true;
        for node in nodes {
            match text(node) {
                Ok(text) => texts.push(At { value: text.to_owned(), spot: node.spot, is_default: false }),
                Err(wrong) => {
                    walk.wrong(node.spot, key, wrong);
                    is_whole = false;
                }
            }
        }
        is_whole.then_some(texts)
    }

    /// A table inside this one.
    pub(super) fn table(&self, walk: &mut Walk, key: &'static str) -> Option<(&'t Tree, Spot)> {
        let entry = self.tree.get(key)?;
        match &entry.node.value {
            Written::Table(tree) => Some((tree, entry.key)),
            other => {
                let mut wrong = wrong_kind("a table", other);
                if self.spec.title.is_empty() && matches!(other, Written::List(_)) {
                    wrong = wrong.help(format!("write [{key}.<name>], with one bracket and a name"));
                }
                walk.wrong(entry.node.spot, key, wrong);
                None
            }
        }
    }

    /// The tables of a list of tables.
    pub(super) fn tables(&self, walk: &mut Walk, key: &'static str) -> Vec<(&'t Tree, Spot)> {
        let Some(entry) = self.tree.get(key) else { return Vec::new() };
        let nodes = match &entry.node.value {
            Written::List(nodes) => nodes,
            other => {
                let title = self.spec.title;
                let wrong = wrong_kind("a list of tables", other)
                    .help(format!("write [[{title}.{key}]] with two brackets, once for each"));
                walk.wrong(entry.key, key, wrong);
                return Vec::new();
            }
        };
        let mut tables = Vec::new();
        for node in nodes {
            match &node.value {
                Written::Table(tree) => tables.push((tree, node.spot)),
                other => walk.wrong(node.spot, key, wrong_kind("a table", other)),
            }
        }
        tables
    }

    /// Named tables below a key, as they were written: `[modbus.<name>]`.
    pub(super) fn named(&self, walk: &mut Walk, key: &'static str) -> Vec<(&'t str, &'t Tree, Spot)> {
        match self.table(walk, key) {
            Some((tree, _)) => named(walk, key, tree),
            None => Vec::new(),
        }
    }
}

/// The tables in `tree`, by the names that the owner chose.
pub(super) fn named<'t>(walk: &mut Walk, kind: &str, tree: &'t Tree) -> Vec<(&'t str, &'t Tree, Spot)> {
    let mut tables = Vec::new();
    for (name, entry) in tree.in_order() {
        match &entry.node.value {
            Written::Table(tree) => {
                walk.check_name(kind, name, entry.key);
                tables.push((name, tree, entry.key));
            }
            other => {
                let mut wrong = wrong_kind("a table", other);
                if kind != "point" {
                    wrong =
                        wrong.help(format!("write [{kind}.<name>], with one bracket, above the keys of one {kind}"));
                }
                walk.wrong(entry.key, name, wrong);
            }
        }
    }
    tables
}

/// "must be …, but is …".
pub(super) fn wrong_kind(expected: &str, written: &Written) -> Wrong {
    Wrong::new(format!("must be {expected}, but is {}", written.kind()))
}

/// The text of a node.
pub(super) fn text(node: &Node) -> Result<&str, Wrong> {
    match &node.value {
        Written::Text(text) => Ok(text),
        other => Err(wrong_kind("text in quotes", other)),
    }
}

fn list(node: &Node) -> Result<(), Wrong> {
    match &node.value {
        Written::List(_) => Ok(()),
        other => Err(wrong_kind("a list", other)),
    }
}

/// Whether `name` is a column of a table of points; if not, it is noted.
pub(super) fn is_column(name: &str, spot: Spot, report_keys: &[&str], findings: &mut Findings) -> bool {
    let keys = || keys::MODBUS_POINT.keys.iter().map(|key| key.name).filter(|key| *key != "report");
    let columns = || keys().chain(report_keys.iter().copied()).chain(["name"]);
    // A column without a name carries notes.
    if name.is_empty() || columns().any(|column| column == name) {
        return true;
    }
    let instead = keys::MODBUS_POINT.gone.iter().find(|(gone, _)| *gone == name).map(|(_, instead)| *instead);
    let help = match (instead, nearest(name, columns())) {
        (Some(instead), _) => instead.to_owned(),
        (None, Some(near)) => format!("did you mean `{near}`?"),
        (None, None) => format!("the columns are {}", columns().collect::<Vec<_>>().join(", ")),
    };
    let what = if keys::MODBUS_POINT.later.contains(&name) {
        format!("the column `{name}` is not served by this version")
    } else {
        format!("`{name}` is not a column of a table of points")
    };
    findings.problem(spot, what, Some(help));
    false
}

/// A table that has a key of this name, for a key that stands in the wrong table.
fn elsewhere(key: &str, title: &str) -> Option<&'static str> {
    let section = title.split('.').next().unwrap_or_default();
    let has_it = |table: &&&keys::KeyTable| table.keys.iter().any(|known| known.name == key);
    let of_section = |table: &&&keys::KeyTable| table.title.split('.').next() == Some(section);
    let all: Vec<_> = keys::TABLES.iter().filter(has_it).collect();
    let near: Vec<_> = keys::TABLES.iter().filter(has_it).filter(of_section).collect();
    // A name that many tables have says nothing.
    match (near.as_slice(), all.as_slice()) {
        ([one], _) | (_, [one]) if !one.title.is_empty() => Some(one.title),
        _ => None,
    }
}

/// The known name that `written` is a slip of: at most one error in three characters.
pub(super) fn nearest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let length = written.chars().count();
    // A very long name is no slip, and would make the search slow.
    if length > 48 {
        return None;
    }
    let lower = written.to_lowercase().replace('-', "_");
    // Of very many names (lines, models) only the first are held against it: a suggestion is not worth a minute.
    let candidates =
        known.into_iter().take(256).map(|name| (distance(&lower, &name.to_lowercase().replace('-', "_")), name));
    let (errors, name) = candidates.min_by_key(|(errors, _)| *errors)?;
    (errors <= (length / 3).max(1)).then_some(name)
}

/// Edit distance with transposed neighbours counted once (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (row, l) in left.iter().enumerate() {
        let mut current = Vec::with_capacity(right.len() + 1);
        current.push(row + 1);
        for (column, r) in right.iter().enumerate() {
            let at = |list: &[usize], index: usize| list.get(index).copied().unwrap_or(usize::MAX - 1);
            let mut best = (at(&last, column) + usize::from(l != r)).min(at(&last, column + 1) + 1);
            best = best.min(at(&current, column) + 1);
            let is_swapped = row > 0 && column > 0 && left.get(row - 1) == Some(r) && right.get(column - 1) == Some(l);
            if is_swapped {
                best = best.min(at(&before_last, column - 1) + 1);
            }
            current.push(best);
        }
        before_last = std::mem::replace(&mut last, current);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_key_that_was_meant() {
        let known = ["unit_id", "poll", "topic", "timeout", "keep_alive"];
        for (written, expected) in [
            ("unitid", Some("unit_id")),
            ("unit-id", Some("unit_id")),
            ("UNIT_ID", Some("unit_id")),
            ("pol", Some("poll")),
            ("opll", Some("poll")),
            ("tiemout", Some("timeout")),
            ("keepalive", Some("keep_alive")),
            ("frequency", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, known), expected, "{written}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), known), None);
    }

    #[test]
    fn every_default_can_be_read() {
        for table in keys::TABLES {
            for key in table.keys {
                if let Presence::Default(text) = key.presence {
                    assert!(DeValue::parse(text).is_ok(), "{}.{}", table.title, key.name);
                }
            }
        }
    }
}
