//! The merged configuration as a text, with the file that each value comes from; secrets masked. Pure.

use std::fmt::Write as _;

use super::report::visible;
use super::tree::{Findings, Node, Spot, Tree, Written};

/// The tree as TOML; each value bears its place as a comment.
pub(super) fn render(tree: &Tree, findings: &Findings) -> String {
    let mut text = String::new();
    table(&mut text, "", tree, findings);
    text.trim_start().to_owned()
}

fn table(text: &mut String, path: &str, tree: &Tree, findings: &Findings) {
    for (key, entry) in tree.in_order() {
        if is_leaf(&entry.node) {
            let value = if is_secret(key) { "\"…\"".to_owned() } else { value(&entry.node) };
            line(text, &format!("{} = {value}", name(key)), entry.node.spot, findings);
        }
    }
    for (key, entry) in tree.in_order() {
        let path = if path.is_empty() { name(key) } else { format!("{path}.{}", name(key)) };
        match &entry.node.value {
            Written::Table(inner) if !is_leaf(&entry.node) => {
                // A table that holds only tables needs no header of its own.
                if inner.in_order().iter().any(|(_, entry)| is_leaf(&entry.node)) || inner.keys().next().is_none() {
                    header(text, &format!("[{path}]"));
                }
                table(text, &path, inner, findings);
            }
            Written::List(nodes) if !is_leaf(&entry.node) => {
                for node in nodes {
                    if let Written::Table(inner) = &node.value {
                        header(text, &format!("[[{path}]]"));
                        table(text, &path, inner, findings);
                    }
                }
            }
            _ => {}
        }
    }
}

fn header(text: &mut String, header: &str) {
    // Writing to a String cannot fail.
    let _ok = writeln!(text, "\n{header}");
}

fn line(text: &mut String, line: &str, spot: Spot, findings: &Findings) {
    let _ok = writeln!(text, "{line:<48}  # {}", findings.name(spot));
}

/// A table with nothing but plain values in it stands on one line, as a point does.
fn is_leaf(node: &Node) -> bool {
    match &node.value {
        Written::Table(_) => false,
        Written::List(nodes) => nodes.is_empty() || !nodes.iter().all(|node| matches!(node.value, Written::Table(_))),
        _ => true,
    }
}

fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    let is_named = ["password", "secret", "token"].iter().any(|word| key.contains(word));
    is_named && !key.ends_with("_file")
}

/// A key as TOML writes it.
pub fn name(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if is_bare { key.to_owned() } else { quoted(key) }
}

/// A text as TOML writes it.
pub fn quoted(text: &str) -> String {
    let mut result = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => result.push_str("\\\""),
            '\\' => result.push_str("\\\\"),
            '\n' => result.push_str("\\n"),
            '\r' => result.push_str("\\r"),
            '\t' => result.push_str("\\t"),
            c if c.is_control() => {
                let _ok = write!(result, "\\u{:04X}", u32::from(c));
            }
            c => result.push(c),
        }
    }
    result.push('"');
    visible(&result)
}

fn value(node: &Node) -> String {
    match &node.value {
        Written::Text(text) => quoted(text),
        Written::Integer(Some(number)) => number.to_string(),
        Written::Float(number) => format!("{number:?}"),
        Written::Bool(value) => value.to_string(),
        Written::List(nodes) => {
            let items: Vec<String> = nodes.iter().map(value).collect();
            format!("[{}]", items.join(", "))
        }
        Written::Table(tree) => {
            let items: Vec<String> = tree
                .in_order()
                .into_iter()
                .map(|(key, entry)| format!("{} = {}", name(key), value(&entry.node)))
                .collect();
            format!("{{ {} }}", items.join(", "))
        }
        // Neither can stand in a configuration that was accepted.
        Written::Integer(None) | Written::Date => "?".to_owned(),
    }
}
