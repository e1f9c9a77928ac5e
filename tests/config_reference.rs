//! Is `config/tidegate.toml` what the code says? Every key stands in it, with the default of the code; and every
//! example is a configuration without a problem.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidegate::config::keys::{Presence, TABLES};
use tidegate::config::{self, LoadRequest, Loaded, Problem, render};

/// A directory with every file that a configuration names; `/etc/tidegate` is replaced by it.
fn place() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("tls")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/machine-id"), "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n").unwrap();
    fs::write(root.join("etc/hostname"), "press-hall\n").unwrap();
    for file in [
        "tls/ca.pem",
        "tls/cert.pem",
        "tls/key.pem",
        "tls/server.pem",
        "tls/server.key",
        "tls/clients.pem",
        "tls/revoked.pem",
        "tls/AmazonRootCA1.pem",
        "tls/aws.pem",
        "tls/aws.key",
        "tls/claim.pem",
        "tls/azure-roots.pem",
        "tls/claim.key",
        "password",
        "proxy-password",
        "jwt.key",
        "device.key",
        "group.key",
        "device.pem",
        "token",
        "hmac.key",
        "token.sig",
        "azure.jwt",
    ] {
        fs::write(root.join(file), "x\n").unwrap();
        fs::set_permissions(root.join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let hash = root.join("node-red.hash");
    fs::write(&hash, "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$AAAAAAAAAAAAAAAAAAAAAA\n").unwrap();
    fs::set_permissions(hash, fs::Permissions::from_mode(0o600)).unwrap();
    let keys = format!(r#"{{"kty":"EC","crv":"P-256","x":"{0}","y":"{0}"}}"#, "A".repeat(43));
    fs::write(root.join("tokens.json"), keys).unwrap();
    let points = config::examples().iter().find(|(name, _)| *name == "em24.csv").unwrap().1;
    fs::write(root.join("em24.csv"), points).unwrap();
    fs::write(root.join("chiller.csv"), "name,address,type\nflow,holding:400,u16\n").unwrap();
    directory
}

fn load(root: &Path, text: &str) -> Result<Loaded, Vec<Problem>> {
    let text = text.replace("/etc/tidegate", root.to_str().unwrap());
    let file: PathBuf = root.join("tidegate.toml");
    fs::write(&file, text).unwrap();
    config::load(&LoadRequest { root: root.to_owned(), config: Some(file), credentials_dir: None, kept_id: None })
}

fn expect_clean(root: &Path, text: &str) -> Loaded {
    match load(root, text) {
        Ok(loaded) => loaded,
        Err(problems) => panic!("{}", render(&problems, &[])),
    }
}

/// A line with a key starts with "#" right before it, an explanation with "# ".
fn uncommented() -> String {
    let mut text = String::new();
    for line in config::reference().lines() {
        let line = match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest,
            _ => line,
        };
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Every leaf and table with the title that the code's tables give it.
fn written(prefix: &str, table: &toml::Table, found: &mut Vec<(String, toml::Value)>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        found.push((path.clone(), value.clone()));
        match value {
            toml::Value::Table(inner) => written(&path, inner, found),
            toml::Value::Array(list) => {
                for item in list {
                    if let toml::Value::Table(inner) = item {
                        written(&path, inner, found);
                    }
                }
            }
            _ => {}
        }
    }
}

/// `modbus.chiller.point.level.report.deadband` is the key `deadband` of `report`, wherever that stands; the same goes for `write`.
fn key_of(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let parts = match parts.as_slice() {
        ["modbus" | "serial" | "model" | "board", .., table @ ("report" | "write"), key] => vec![*table, key],
        ["board", "point", _, rest @ ..] => [vec!["board", "point", "<name>"], rest.to_vec()].concat(),
        ["line" | "serial", _, "rs485", key] => vec!["rs485", key],
        ["line", _, "share", key] => vec!["line", "<name>", "share", key],
        ["model", _, "point", _, key] => vec!["modbus", "<name>", "point", "<name>", key],
        ["serial", _, "command", _, key] => vec!["serial", "<name>", "command", "<name>", key],
        [kind @ ("modbus" | "serial"), _, "point", _, key] => vec![kind, "<name>", "point", "<name>", key],
        ["broker", kind @ ("listener" | "user" | "group"), _, rest @ ..] => {
            [vec!["broker", kind, "<name>"], rest.to_vec()].concat()
        }
        ["web", "user", _, rest @ ..] => [vec!["web", "user", "<name>"], rest.to_vec()].concat(),
        [kind @ ("uplink" | "line" | "model" | "modbus" | "serial"), _, rest @ ..] => {
            [vec![*kind, "<name>"], rest.to_vec()].concat()
        }
        other => other.to_vec(),
    };
    parts.join(".")
}

#[test]
fn the_reference_is_a_configuration_without_a_problem() {
    let root = place();
    let loaded = expect_clean(root.path(), &uncommented());
    assert_eq!(loaded.config.uplinks.len(), 9);
    assert_eq!(loaded.config.modbus.len(), 1);
    assert_eq!(loaded.config.serial.len(), 9);
    assert_eq!(loaded.config.board.unwrap().points.len(), 2);
    assert!(loaded.effective.contains("unit_id = 1"));
}

#[test]
fn the_reference_as_it_stands_switches_nothing_on() {
    let root = place();
    let nothing = expect_clean(root.path(), "");
    let shipped = expect_clean(root.path(), config::reference());
    assert_eq!(format!("{:?}", nothing.config), format!("{:?}", shipped.config));
    assert_eq!(nothing.config.broker.listeners.len(), 1);
    assert!(nothing.config.uplinks.is_empty());
}

#[test]
fn every_key_of_the_code_stands_in_the_reference_and_the_reverse() {
    let table: toml::Table = uncommented().parse().unwrap();
    let mut found = Vec::new();
    written("", &table, &mut found);
    let in_file: BTreeSet<String> = found.iter().map(|(path, _)| key_of(path)).collect();
    let mut in_code = BTreeSet::new();
    for table in TABLES {
        for key in table.keys {
            let path =
                if table.title.is_empty() { key.name.to_owned() } else { format!("{}.{}", table.title, key.name) };
            assert!(in_file.contains(&path), "config/tidegate.toml has no {path}");
            in_code.insert(path);
        }
    }
    // Names that the owner chooses, texts in [good] and what a template wants to know are no keys.
    let is_chosen = |path: &str| {
        path.ends_with("<name>")
            || path.contains(".good.")
            || path.contains(".nmea.")
            || path.contains(".parameters.")
            || path.split('.').next_back() == Some("<name>")
    };
    for path in &in_file {
        let is_named = path.contains(".point.") || path.contains(".command.");
        let is_name = is_named && path.split('.').count() == 4;
        let is_listener = path.starts_with("broker.listener.");
        assert!(in_code.contains(path) || is_chosen(path) || is_name || is_listener, "the code has no {path}");
    }
}

#[test]
fn the_defaults_in_the_reference_are_those_of_the_code() {
    let table: toml::Table = uncommented().parse().unwrap();
    let mut found = Vec::new();
    written("", &table, &mut found);
    for table in TABLES {
        for key in table.keys {
            let Presence::Default(text) = key.presence else { continue };
            let path = format!("{}.{}", table.title, key.name);
            let expected: toml::Table = format!("x = {text}").parse().unwrap();
            let values: Vec<_> =
                found.iter().filter(|(found, _)| key_of(found) == path).map(|(_, value)| value).collect();
            assert!(values.contains(&&expected["x"]), "{path}: the code says {text}, the reference {values:?}");
        }
    }
}

/// A key that the walker did not read would be accepted in silence whatever it says.
#[test]
fn every_key_of_the_code_is_really_read() {
    let root = place();
    let text = uncommented();
    for table in TABLES {
        for key in table.keys {
            let path =
                if table.title.is_empty() { key.name.to_owned() } else { format!("{}.{}", table.title, key.name) };
            // A date is never right.
            let mut whole: toml::Table = text.parse().unwrap();
            let Some(changed) = spoil(&mut whole, "", &path) else { panic!("{path} was not found") };
            let Err(problems) = load(root.path(), &toml_text(&whole)) else { panic!("{changed} was not read") };
            let shown = render(&problems, &[]);
            assert!(shown.contains("but is a date"), "{changed}: {shown}");
        }
    }
}

fn spoil(table: &mut toml::Table, prefix: &str, wanted: &str) -> Option<String> {
    for (key, value) in table.iter_mut() {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if key_of(&path) == wanted {
            *value = toml::Value::Datetime("1979-05-27".parse().unwrap());
            return Some(path);
        }
        let found = match value {
            toml::Value::Table(inner) => spoil(inner, &path, wanted),
            toml::Value::Array(list) => list.iter_mut().find_map(|item| spoil(item.as_table_mut()?, &path, wanted)),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// `toml` is used without its writer; inline values are all that is needed here.
fn toml_text(table: &toml::Table) -> String {
    let lines: Vec<String> = table.iter().map(|(key, value)| format!("{key:?} = {}", value_text(value))).collect();
    lines.join("\n")
}

fn value_text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => {
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\r', "\\r").replace('\n', "\\n"))
        }
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => format!("{number:?}"),
        toml::Value::Boolean(value) => value.to_string(),
        toml::Value::Datetime(date) => date.to_string(),
        toml::Value::Array(list) => format!("[{}]", list.iter().map(value_text).collect::<Vec<_>>().join(", ")),
        toml::Value::Table(table) => {
            let items: Vec<String> =
                table.iter().map(|(key, value)| format!("{key:?} = {}", value_text(value))).collect();
            format!("{{ {} }}", items.join(", "))
        }
    }
}

#[test]
fn every_example_is_a_configuration_without_a_problem_or_a_warning() {
    for (name, text) in config::examples().iter().filter(|(name, _)| !name.ends_with(".csv")) {
        let root = place();
        let loaded = expect_clean(root.path(), text);
        assert_eq!(render(&[], &loaded.warnings), "", "{name}");
        assert_eq!(loaded.config.uplinks.len(), 1, "{name}");
    }
}

#[test]
fn twelve_meters_of_thirty_points_need_thirty_lines() {
    let (_, text) = config::examples().iter().find(|(name, _)| *name == "twelve-meters").unwrap();
    assert!(text.lines().count() <= 30);
    let root = place();
    let config = expect_clean(root.path(), text).config;
    assert_eq!(config.modbus.len(), 12);
    for device in config.modbus.values() {
        assert_eq!(device.points.len(), 30);
    }
    let main = &config.modbus["m12"];
    assert_eq!(main.poll.as_secs(), 5);
    assert_eq!(config.modbus["m01"].poll.as_secs(), 30);
    let energy = main.points.iter().find(|point| point.name.as_ref() == "energy").unwrap();
    assert_eq!((energy.address, energy.meaning.scale, energy.poll.map(|poll| poll.as_secs())), (0x34, 0.1, Some(60)));
    assert_eq!(energy.order, tidegate::config::WordOrder::Cdab);
}
