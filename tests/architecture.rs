//! The house rules that a machine can keep: who may import whom, which library lives where, what "pure" means.
//!
//! It reads the text of `src/`, so a macro that writes paths could hide an import: write none.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in the order of the flow; one stage imports only what stands in an earlier one. Rooms of the same stage
/// never import each other.
const ORDER: &[&[&str]] = &[
    &["message"],
    &["clock"],
    &["config"],
    &["health"],
    &["payload"],
    &["mqtt"],
    &["transport"],
    &["queue"],
    &["router"],
    &["intake"],
    &["field", "broker", "uplink"],
    &["web"],
    &["control"],
    &["service"],
    &["supervise"],
    &["gateway"],
    &["cli"],
    &["main"],
];

/// Libraries that are named in one room only: the crate's name in code, and the paths under `src/` that may.
const RESIDENTS: &[(&str, &[&str])] = &[
    ("rumqttd", &["router.rs"]),
    ("rusqlite", &["queue/"]),
    ("tokio_modbus", &["field/modbus/", "field/simulate/"]),
    ("tokio_serial", &["field/"]),
    ("serial2", &["field/"]),
    ("mqtt_proto", &["mqtt/"]),
    ("sd_notify", &["service.rs"]),
];

/// Words that say nothing about what a type is (STYLE.md A9).
const EMPTY_WORDS: &[&str] = &["Manager", "Handler", "Helper", "Util", "Utils", "Processor"];

struct Source {
    /// Relative to `src/`.
    path: String,
    /// As it stands.
    text: String,
    /// Without comments and without the contents of string literals.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned(), code: strip(text) }
    }

    fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The code before the file's tests: what the rules are about.
    fn production(&self) -> &str {
        self.code.split("#[cfg(test)]\nmod tests").next().unwrap()
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut pending = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source::new(path.strip_prefix(&root).unwrap().to_str().unwrap(), &text));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 20, "only {} files found: is this the right folder?", found.len());
    found
}

/// Removes comments and the insides of string literals.
fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            out.push_str("\"\"");
            raw.find("\"#").map_or(rest.len(), |end| end + 5)
        } else if rest.starts_with('"') {
            out.push_str("\"\"");
            string_length(rest)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\''") {
            rest.find('\'').map_or(1, |_| if rest.starts_with("'\\''") { 4 } else { 3 })
        } else {
            out.push(character);
            character.len_utf8()
        };
        rest = &rest[skipped..];
    }
    out
}

/// Bytes of the string literal that `text` starts with, its quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn rank(room: &str) -> Option<usize> {
    ORDER.iter().position(|stage| stage.contains(&room))
}

/// Every room that `code` names as `crate::room` or within `crate::{…}`, and from the binary as `tidegate::room`.
fn imports(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for root in ["crate::", "tidegate::"] {
        for (at, _) in code.match_indices(root) {
            if code[..at].chars().next_back().is_some_and(joins) {
                continue;
            }
            let after = &code[at + root.len()..];
            match after.strip_prefix('{') {
                Some(group) => rooms.extend(group_heads(group)),
                None => rooms.push(head(after)),
            }
        }
    }
    rooms.retain(|room| room.starts_with(|first: char| first.is_ascii_lowercase()));
    rooms
}

fn joins(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn head(path: &str) -> String {
    path.chars().take_while(|character| joins(*character)).collect()
}

/// The first names of each member of a `{a::B, c, d::{E, F}}` group, given the text after its opening brace.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                heads.push(head(group[start..at].trim()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                heads.push(head(group[start..at].trim()));
                start = at + 1;
            }
            _ => {}
        }
    }
    heads
}

fn layering_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| source.room() != "lib") {
        let Some(own) = rank(source.room()) else {
            faults.push(format!("{}: the room {} has no place in ORDER", source.path, source.room()));
            continue;
        };
        for room in imports(source.production()) {
            match rank(&room) {
                None => faults.push(format!("{}: imports crate::{room}, which has no place in ORDER", source.path)),
                Some(other) if room != source.room() && other >= own => {
                    faults.push(format!("{}: must not import crate::{room}", source.path));
                }
                Some(_) => {}
            }
        }
    }
    faults
}

fn word_stands_in(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(joins) && !after.is_some_and(joins)
    })
}

fn resident_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        for (library, homes) in RESIDENTS {
            let at_home = homes.iter().any(|home| source.path.starts_with(home));
            if !at_home && word_stands_in(source.production(), library) {
                faults.push(format!("{}: names {library}, which lives in {homes:?}", source.path));
            }
        }
    }
    faults
}

fn purity_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        let heading: Vec<&str> = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        let heading = heading.join(" ");
        let says_pure = heading.contains("Pure:") || heading.contains(" Pure.");
        if (says_pure || source.path == "queue/store.rs") && word_stands_in(source.production(), "tokio") {
            faults.push(format!("{}: is pure, and names tokio", source.path));
        }
        if heading.is_empty() {
            faults.push(format!("{}: does not open with //! that says what it is", source.path));
        }
    }
    faults
}

fn leftover_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        for word in ["TODO", "FIXME", "XXX"] {
            if word_stands_in(&source.text, word) {
                faults.push(format!("{}: has a {word}", source.path));
            }
        }
        for (number, line) in source.text.lines().enumerate() {
            let comment = line.trim_start().strip_prefix("// ").unwrap_or_default();
            if comment.ends_with(';') && (comment.contains('=') || comment.contains('(')) {
                faults.push(format!("{}:{}: commented-out code", source.path, number + 1));
            }
        }
        for keyword in ["struct ", "enum ", "trait "] {
            for (at, _) in source.code.match_indices(keyword) {
                let name = head(&source.code[at + keyword.len()..]);
                if EMPTY_WORDS.iter().any(|word| name.ends_with(word)) {
                    faults.push(format!("{}: the name {name} says nothing", source.path));
                }
            }
        }
    }
    faults
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn no_room_imports_what_stands_below_it() {
    assert_none(&layering_faults(&sources()));
}

#[test]
fn libraries_with_a_room_stay_in_it() {
    assert_none(&resident_faults(&sources()));
}

#[test]
fn pure_files_name_no_runtime_and_every_file_says_what_it_is() {
    assert_none(&purity_faults(&sources()));
}

#[test]
fn nothing_is_left_over() {
    assert_none(&leftover_faults(&sources()));
}

#[test]
fn these_rules_bite() {
    let layering = |path, text| layering_faults(&[Source::new(path, text)]).len();
    assert_eq!(layering("queue/a.rs", "use crate::uplink::X;"), 1);
    assert_eq!(layering("queue/a.rs", "use crate::{message::{A, B}, broker};"), 1);
    assert_eq!(layering("broker/a.rs", "use crate::uplink::X;"), 1);
    assert_eq!(layering("cellar.rs", ""), 1);
    assert_eq!(layering("uplink/a.rs", "// crate::cli\nuse crate::queue::Outlet;"), 0);
    let residents = |path, text| resident_faults(&[Source::new(path, text)]).len();
    assert_eq!(residents("intake.rs", "use rumqttd::Router;"), 1);
    assert_eq!(residents("intake.rs", "let text = \"rumqttd\"; // rumqttd"), 0);
    let purity = |text| purity_faults(&[Source::new("a.rs", text)]).len();
    assert_eq!(purity("//! Sums. Pure.\nuse tokio::net;"), 1);
    assert_eq!(purity("use std::net;"), 1);
    let leftovers = |text: &str| leftover_faults(&[Source::new("a.rs", text)]).len();
    assert_eq!(leftovers(&format!("// {}", "TO".to_owned() + "DO")), 1);
    assert_eq!(leftovers("// let x = 1;"), 1);
    assert_eq!(leftovers("struct LinkManager;"), 1);
}
