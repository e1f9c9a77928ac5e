//! What each key is for, in words: taken from `config/tidegate.toml`, which a test holds against the code. Pure.
//!
//! One source for the reference in `docs/` and for the schema that editors read (`schema`).

use std::collections::BTreeMap;

use super::examples::reference;
use super::keys::{Key, KeyTable, Presence, TABLES};

/// One kind of table with its keys.
#[derive(Debug)]
pub struct Described {
    /// As in `keys`.
    pub table: &'static KeyTable,
    /// What the table is for; may be empty.
    pub about: String,
    /// Each key, and what it is for; may be empty.
    pub keys: Vec<(&'static Key, String)>,
    /// Values that stand in the reference, by key, parsed.
    pub samples: BTreeMap<&'static str, Vec<toml::Value>>,
}

/// Every kind of table, in the order of the code.
pub fn described() -> Vec<Described> {
    let abouts = abouts();
    let mut samples: BTreeMap<String, Vec<toml::Value>> = BTreeMap::new();
    if let Ok(whole) = uncommented().parse::<toml::Table>() {
        gather(&[], &whole, &mut samples);
    }
    let about = |path: &str| abouts.get(path).cloned().unwrap_or_default();
    let tables = TABLES.iter().map(|table| {
        let path = |key: &Key| joined(table.title, key.name);
        Described {
            table,
            about: about(table.title),
            keys: table.keys.iter().map(|key| (key, about(&path(key)))).collect(),
            samples: table.keys.iter().filter_map(|key| Some((key.name, samples.get(&path(key))?.clone()))).collect(),
        }
    });
    tables.collect()
}

/// The reference as it would be with everything switched on: a line with a key starts with `#` right before it.
pub fn uncommented() -> String {
    let switched = reference().lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest,
        _ => line,
    });
    switched.flat_map(|line| [line, "\n"]).collect()
}

/// All keys with their defaults and what they are for, as a page.
pub fn markdown() -> String {
    let mut text =
        "# Reference of the configuration\n\nEach table and key, generated from `config/tidegate.toml` and the code \
                    (`TIDEGATE_WRITE_DOCS=1 cargo test --test docs` writes this page anew). How to write one: \
                    [configure](configure.md).\n"
            .to_owned();
    for Described { table, about, keys, .. } in described() {
        if table.title.is_empty() {
            continue;
        }
        text += &format!("\n## `{}`\n\n", heading(table.title));
        if !about.is_empty() {
            text += &format!("{}\n\n", cell(&about));
        }
        text += "| key | default | |\n|---|---|---|\n";
        for (key, about) in keys {
            let path = joined(table.title, key.name);
            let is_table = TABLES.iter().any(|table| table.title == path || table.title == format!("{path}.<name>"));
            let about = if about.is_empty() && is_table { "see below".to_owned() } else { about };
            let default = match key.presence {
                Presence::Required => "must be written".to_owned(),
                Presence::Optional => String::new(),
                Presence::Default(value) => format!("`{}`", cell(value)),
            };
            text += &format!("| `{}` | {default} | {} |\n", key.name, cell(&about));
        }
    }
    text
}

fn heading(title: &str) -> String {
    match title {
        "uplink.<name>.forward" | "uplink.<name>.receive" => format!("[[{title}]]"),
        "report" | "write" | "rs485" => format!("{title} = {{ … }}"),
        _ => format!("[{title}]"),
    }
}

/// Fit to stand in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

fn joined(title: &str, key: &str) -> String {
    if title.is_empty() { key.to_owned() } else { format!("{title}.{key}") }
}

/// The explanations before tables and keys, by title and key; of several the first.
fn abouts() -> BTreeMap<String, String> {
    let mut abouts: BTreeMap<String, String> = BTreeMap::new();
    let mut place: Vec<String> = Vec::new();
    let mut about = String::new();
    let mut is_open = false;
    // The head of the file says how it is to be read.
    for line in reference().lines().skip_while(|line| !line.is_empty()) {
        let Some(rest) = line.strip_prefix('#') else {
            about.clear();
            continue;
        };
        if let Some(words) = rest.strip_prefix(' ') {
            // What follows keys explains the next ones.
            if !std::mem::replace(&mut is_open, true) {
                about.clear();
            }
            if !about.is_empty() {
                about.push(' ');
            }
            about.push_str(words.trim());
            continue;
        }
        is_open = false;
        let path = if let Some(table) = rest.strip_prefix('[') {
            place = table.trim_matches(['[', ']']).split('.').map(str::to_owned).collect();
            place.clone()
        } else {
            let key = rest.split(" = ").next().unwrap_or_default().trim();
            [place.clone(), vec![key.to_owned()]].concat()
        };
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        if !about.is_empty() {
            abouts.entry(title_of(&parts)).or_insert_with(|| about.clone());
        }
        if rest.starts_with('[') {
            about.clear();
        }
    }
    abouts
}

/// Every value of the reference, by title and key.
fn gather(path: &[&str], table: &toml::Table, samples: &mut BTreeMap<String, Vec<toml::Value>>) {
    for (key, value) in table {
        let path = [path, &[key.as_str()]].concat();
        samples.entry(title_of(&path)).or_default().push(value.clone());
        match value {
            toml::Value::Table(inner) => gather(&path, inner, samples),
            toml::Value::Array(list) => {
                list.iter().filter_map(toml::Value::as_table).for_each(|inner| gather(&path, inner, samples));
            }
            _ => {}
        }
    }
}

/// A place in a file as the tables of the code have it: names that the owner chooses are `<name>`, and what several kinds of
/// tables share has one title.
pub fn title_of(parts: &[&str]) -> String {
    let parts: Vec<&str> = match parts {
        ["modbus" | "serial" | "model" | "board", .., table @ ("report" | "write"), key] => vec![table, key],
        ["modbus" | "serial" | "model", _, .., table @ ("report" | "write")] => vec![table],
        ["line" | "serial", _, "rs485", key] => vec!["rs485", key],
        ["line" | "serial", _, "rs485"] => vec!["rs485"],
        ["model", _, "point", _, rest @ ..] => [&["modbus", "<name>", "point", "<name>"], rest].concat(),
        ["serial", _, "command", _, rest @ ..] => [&["serial", "<name>", "command", "<name>"], rest].concat(),
        [kind @ ("modbus" | "serial"), _, "point", _, rest @ ..] => {
            [&[*kind, "<name>", "point", "<name>"], rest].concat()
        }
        ["board", "point", _, rest @ ..] => [&["board", "point", "<name>"], rest].concat(),
        ["web", "user", _, rest @ ..] => [&["web", "user", "<name>"], rest].concat(),
        ["broker", kind @ ("listener" | "user" | "group"), _, rest @ ..] => {
            [&["broker", *kind, "<name>"], rest].concat()
        }
        [kind @ ("uplink" | "line" | "model" | "modbus" | "serial"), _, rest @ ..] => {
            [&[*kind, "<name>"], rest].concat()
        }
        other => other.to_vec(),
    };
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_key_is_for_is_found_and_shared_by_keys_that_stand_together() {
        let tables = described();
        let about = |title: &str, name: &str| {
            let table = tables.iter().find(|described| described.table.title == title).unwrap();
            table.keys.iter().find(|(key, _)| key.name == name).unwrap().1.clone()
        };
        assert!(about("gateway", "state_dir").starts_with("The one directory that is written to"));
        assert!(
            about("uplink.<name>", "cert").contains("both or none")
                && about("uplink.<name>", "key").contains("both or none")
        );
        assert!(about("write", "expiry").starts_with("What could not be written for so long"));
        let without: Vec<String> = tables
            .iter()
            .flat_map(|described| {
                described.keys.iter().map(move |(key, about)| (described.table.title, key.name, about))
            })
            .filter(|(title, _, about)| !title.is_empty() && about.is_empty())
            .map(|(title, name, _)| format!("{title}.{name}"))
            .collect();
        println!("{} keys have no words of their own: {without:?}", without.len());
    }
}
