//! The configuration as a JSON Schema, for editors: which keys there are, of what kind, and what each is for. Pure.
//!
//! It says less than `check`, which knows what fits together; it must never call wrong what `check` takes.

use serde_json::{Map, Value, json};

use super::describe::{Described, described};
use super::keys::{Presence, TABLES};

/// Words that are taken in the place of any text. What else `check` says of a value it says at its place.
const CHOICES: &[(&str, &str, &[&str])] = &[
    ("gateway", "clock", &["auto", "trust"]),
    ("queue", "when_full", &["drop-oldest", "drop-newest", "refuse"]),
    ("queue", "flash", &["always", "spare"]),
    ("broker.listener.<name>", "transport", &["mqtt", "websocket"]),
    ("broker.listener.<name>.tls", "client_auth", &["required", "optional"]),
    ("uplink.<name>", "drain", &["oldest-first", "live-first"]),
    ("uplink.<name>.forward", "when_full", &["drop-oldest", "drop-newest", "refuse"]),
    ("uplink.<name>.forward", "order", &["normal", "strict"]),
    ("line.<name>", "framing", &["rtu", "ascii"]),
    ("model.<name>", "order", &["abcd", "cdab", "badc", "dcba"]),
    ("modbus.<name>", "order", &["abcd", "cdab", "badc", "dcba"]),
    ("modbus.<name>.point.<name>", "order", &["abcd", "cdab", "badc", "dcba"]),
    (
        "board.point.<name>",
        "reads",
        &[
            "temperature",
            "under_voltage",
            "throttled",
            "flash_life_used",
            "flash_state",
            "load",
            "memory_available",
            "disk_free",
        ],
    ),
    ("serial.<name>", "flow", &["none", "rtscts", "xonxoff"]),
    ("serial.<name>.frame.length", "order", &["big", "little"]),
    ("serial.<name>.frame.length", "counts", &["rest", "frame"]),
    ("serial.<name>.frame.checksum", "form", &["binary", "hex"]),
    ("serial.<name>.point.<name>", "order", &["abcd", "cdab", "badc", "dcba"]),
];

/// Kinds that are taken beside those of the values in the reference.
const ALSO: &[(&str, &str, &[&str])] = &[
    ("uplink.<name>", "protocol", &["integer"]),
    ("uplink.<name>", "url", &["array"]),
    ("uplink.<name>", "alpn", &["string"]),
    ("broker.listener.<name>.tls", "client_crl", &["array"]),
    ("model.<name>", "forbidden", &["string"]),
    ("modbus.<name>", "forbidden", &["string"]),
    ("broker.user.<name>", "groups", &["string"]),
    ("broker.user.<name>", "publish", &["string"]),
    ("broker.user.<name>", "subscribe", &["string"]),
    ("broker.user.<name>", "deny", &["string"]),
    ("broker.group.<name>", "publish", &["string"]),
    ("broker.group.<name>", "subscribe", &["string"]),
    ("broker.group.<name>", "deny", &["string"]),
    ("uplink.<name>.forward", "template", &["string"]),
    ("line.<name>", "share", &["string"]),
    ("uplink.<name>.http", "headers", &["string"]),
    ("serial.<name>.command.<name>", "send", &["array", "integer"]),
    ("serial.<name>.command.<name>", "min", &["number"]),
    ("serial.<name>.command.<name>", "max", &["number"]),
    ("serial.<name>.command.<name>", "values", &["string"]),
    ("broker.jwt", "keys", &["array"]),
    ("broker.jwt", "audience", &["array"]),
    ("broker.jwt", "publish", &["string"]),
    ("broker.jwt", "subscribe", &["string"]),
    ("broker.jwt", "deny", &["string"]),
    ("broker.anonymous", "publish", &["string"]),
    ("broker.anonymous", "subscribe", &["string"]),
    ("broker.anonymous", "deny", &["string"]),
    ("modbus.<name>.point.<name>", "address", &["integer"]),
    ("modbus.<name>.point.<name>", "names", &["object"]),
    ("modbus.<name>.point.<name>", "not_available", &["integer", "number", "string", "array"]),
    ("serial.<name>.point.<name>", "names", &["object"]),
    ("serial.<name>.point.<name>", "not_available", &["integer", "number", "string", "array"]),
    ("report", "deadband", &["number", "string"]),
    ("write", "function", &["integer"]),
    ("serial.<name>.ask", "send", &["string", "array", "integer"]),
    ("serial.<name>.frame", "delimiter", &["string", "array", "integer"]),
    ("serial.<name>.frame", "start", &["string", "array", "integer"]),
    ("serial.<name>.frame", "end", &["string", "array", "integer"]),
    ("serial.<name>.frame", "escape", &["string", "array", "integer"]),
    ("serial.<name>.frame", "escape_xor", &["integer"]),
    ("serial.<name>.frame", "length", &["integer"]),
    ("serial.<name>.parse", "csv", &["string"]),
    ("serial.<name>.parse", "fixed", &["string"]),
    ("modbus.<name>.point.<name>", "clamp_min", &["number"]),
    ("modbus.<name>.point.<name>", "clamp_max", &["number"]),
    ("serial.<name>.point.<name>", "clamp_min", &["number"]),
    ("serial.<name>.point.<name>", "clamp_max", &["number"]),
    ("write", "min", &["number"]),
    ("write", "max", &["number"]),
    ("serial.<name>.command.<name>", "send", &["string", "array", "integer"]),
    ("serial.<name>.command.<name>", "min", &["number"]),
    ("serial.<name>.command.<name>", "max", &["number"]),
    ("serial.<name>.command.<name>", "values", &["string"]),
    ("line.<name>", "share", &["string"]),
    ("line.<name>", "rs485", &["boolean"]),
    ("serial.<name>", "rs485", &["boolean"]),
    ("modbus.<name>.point.<name>", "write", &["boolean"]),
];

/// The schema (JSON Schema 2020-12).
pub fn schema() -> Value {
    let tables = described();
    let mut definitions = Map::new();
    for described in &tables {
        definitions.insert(described.table.title.to_owned(), table(described));
    }
    let mut whole = definitions.remove("").unwrap_or_default();
    if let Some(object) = whole.as_object_mut() {
        object.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        object.insert("title".to_owned(), json!("Configuration of Tidegate"));
        object.insert("$defs".to_owned(), Value::Object(definitions));
    }
    whole
}

fn table(described: &Described) -> Value {
    let title = described.table.title;
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (key, about) in &described.keys {
        let mut shape = shape(described, key.name);
        if let Some(object) = shape.as_object_mut() {
            if !about.is_empty() {
                object.insert("description".to_owned(), json!(about));
            }
            if let Presence::Default(text) = key.presence
                && let Some(default) = format!("x = {text}").parse::<toml::Table>().ok().and_then(|mut x| x.remove("x"))
                && let Ok(default) = serde_json::to_value(default)
            {
                object.insert("default".to_owned(), default);
            }
        }
        // A file may be a part of several, and a model gives its devices what they do not say; what a table of a list needs
        // stands in itself.
        if key.presence == Presence::Required && matches!(title, "uplink.<name>.forward" | "uplink.<name>.receive") {
            required.push(json!(key.name));
        }
        properties.insert(key.name.to_owned(), shape);
    }
    let mut object = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if let Some(object) = object.as_object_mut() {
        if !required.is_empty() {
            object.insert("required".to_owned(), Value::Array(required));
        }
        if !described.about.is_empty() {
            object.insert("description".to_owned(), json!(described.about));
        }
    }
    object
}

fn shape(described: &Described, key: &str) -> Value {
    let title = described.table.title;
    let path = if title.is_empty() { key.to_owned() } else { format!("{title}.{key}") };
    let also: Vec<&str> = find(ALSO, title, key).to_vec();
    if let Some(inner) = inner(&path, key) {
        return match also.as_slice() {
            [] => inner,
            kinds => json!({ "anyOf": [inner, { "type": kinds }] }),
        };
    }
    // Words of the owner's choice as keys.
    if path == "serial.<name>.good" {
        return json!({ "type": "object", "additionalProperties": { "type": ["array", "string"] } });
    }
    let choices = find(CHOICES, title, key);
    if !choices.is_empty() {
        return json!({ "enum": choices });
    }
    let samples = described.samples.get(key).map(Vec::as_slice).unwrap_or_default();
    let mut kinds: Vec<&str> = samples.iter().map(kind).chain(also).collect();
    kinds.sort_unstable();
    kinds.dedup();
    match kinds.as_slice() {
        [] => json!({}),
        [kind] => json!({ "type": kind }),
        kinds => json!({ "type": kinds }),
    }
}

fn find(list: &'static [(&str, &str, &[&str])], title: &str, key: &str) -> &'static [&'static str] {
    list.iter().find(|(of, name, _)| *of == title && *name == key).map_or(&[], |(_, _, words)| *words)
}

/// A table, tables by name, or a list of tables, where the key is one.
fn inner(path: &str, key: &str) -> Option<Value> {
    let is_table = |title: &str| TABLES.iter().any(|table| table.title == title);
    let reference = |title: &str| json!({ "$ref": format!("#/$defs/{}", title.replace('~', "~0").replace('/', "~1")) });
    let named = format!("{path}.<name>");
    if is_table(&named) {
        return Some(json!({ "type": "object", "additionalProperties": reference(&named) }));
    }
    if path == "model.<name>.point" {
        return Some(json!({ "type": "object", "additionalProperties": reference("modbus.<name>.point.<name>") }));
    }
    if matches!(key, "report" | "rs485") || path.ends_with(".point.<name>.write") {
        return Some(reference(key));
    }
    if matches!(path, "uplink.<name>.forward" | "uplink.<name>.receive") {
        return Some(json!({ "type": "array", "items": reference(path) }));
    }
    is_table(path).then(|| reference(path))
}

fn kind(value: &toml::Value) -> &'static str {
    match value {
        toml::Value::String(_) => "string",
        // Every number is one to JSON.
        toml::Value::Integer(_) => "integer",
        toml::Value::Float(_) => "number",
        toml::Value::Boolean(_) => "boolean",
        toml::Value::Array(_) => "array",
        toml::Value::Table(_) => "object",
        toml::Value::Datetime(_) => "null",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_single_keys_is_said_of_keys_that_there_are() {
        for (title, key, _) in CHOICES.iter().chain(ALSO) {
            let table = TABLES.iter().find(|table| table.title == *title);
            assert!(table.is_some_and(|table| table.keys.iter().any(|known| known.name == *key)), "{title}.{key}");
        }
        let schema = schema();
        for described in described() {
            for (key, _) in &described.keys {
                let shape = match described.table.title {
                    "" => &schema["properties"][key.name],
                    title => &schema["$defs"][title]["properties"][key.name],
                };
                assert!(
                    shape.as_object().is_some_and(|shape| !shape.is_empty()),
                    "{}.{}",
                    described.table.title,
                    key.name
                );
            }
        }
    }
}
