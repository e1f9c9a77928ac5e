//! Is what the pages about clouds say a configuration, and is the record that they show the one that is sent?

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by a panic")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use tidegate::clock::Timing;
use tidegate::config::{self, LoadRequest};
use tidegate::message::{ClockState, MessageId, Quality, Reading, Stamp, Value};
use tidegate::payload::json;

const PAGES: [(&str, &str, usize); 5] = [
    ("clouds-aws.md", include_str!("../docs/clouds-aws.md"), 5),
    ("clouds-generic.md", include_str!("../docs/clouds-generic.md"), 5),
    ("clouds-kafka.md", include_str!("../docs/clouds-kafka.md"), 1),
    ("clouds-clearblade.md", include_str!("../docs/clouds-clearblade.md"), 2),
    ("clouds-azure.md", include_str!("../docs/clouds-azure.md"), 5),
];

/// The blocks of one language, with the line where each begins.
fn blocks(page: &str, language: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut is_inside = false;
    for (number, line) in page.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(word) if !is_inside && word == language => {
                is_inside = true;
                found.push((number + 1, String::new()));
            }
            Some(_) => is_inside = false,
            None if is_inside => found.last_mut().unwrap().1.extend([line, "\n"]),
            None => {}
        }
    }
    found
}

/// Every file that `text` names below `/etc/tidegate`, in `root`.
fn with_files(root: &Path, text: &str) -> String {
    for part in text.split('"').filter(|part| part.starts_with("/etc/tidegate/")) {
        let file = root.join(part.trim_start_matches("/etc/tidegate/"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "x\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    text.replace("/etc/tidegate", root.to_str().unwrap())
}

#[test]
fn every_block_of_configuration_is_one_without_a_warning() {
    for (name, page, least) in PAGES {
        let found = blocks(page, "toml");
        assert!(found.len() >= least, "{name} has {} blocks", found.len());
        for (number, text) in found {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("etc")).unwrap();
            fs::write(folder.path().join("etc/machine-id"), "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n").unwrap();
            let file = folder.path().join("tidegate.toml");
            fs::write(&file, with_files(folder.path(), &text)).unwrap();
            let root = folder.path().to_owned();
            match config::load(&LoadRequest { root, config: Some(file), credentials_dir: None, kept_id: None }) {
                Ok(loaded) => {
                    assert_eq!(config::render(&[], &loaded.warnings), "", "{name}, line {number}");
                    assert_eq!(loaded.config.uplinks.len(), 1, "{name}, line {number}");
                }
                Err(problems) => panic!("{name}, the block at line {number}:\n{}", config::render(&problems, &[])),
            }
        }
    }
}

#[test]
fn the_record_that_is_shown_has_the_fields_that_are_sent() {
    let (_, shown) = blocks(PAGES[2].1, "json").pop().unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let reading = Reading {
        device: Arc::from("chiller"),
        point: Arc::from("supply"),
        value: Value::Float(6.5),
        unit: Some(Arc::from("°C")),
        quality: Quality::Good,
        reason: None,
        seq: 7,
        stamp: Stamp { wall_ms: 1_795_680_000_000, mono_ms: 0, clock: ClockState::Synced },
    };
    let id = MessageId { gateway: Arc::from("press-hall-3"), store: 0xc0_ffee_0001, start: 3, counter: 912 };
    let sent: serde_json::Value = serde_json::from_slice(&json::encode(&reading, &id, Timing::Stamped)).unwrap();
    let fields = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(fields(&shown), fields(&sent));
    assert_eq!((&shown["id"], &shown["ts"], &shown["value"]), (&sent["id"], &sent["ts"], &sent["value"]));
}

#[test]
fn every_test_that_the_page_of_all_clouds_names_exists_and_every_number_in_its_table_is_one_of_them() {
    let (mut wrong, _) = common::named::missing("clouds.md");
    let page = include_str!("clouds.md");
    let entries = page.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit()));
    let told: Vec<&str> = entries.filter_map(|line| line.split_once(". `").map(|(number, _)| number)).collect();
    let expected: Vec<String> = (1..=told.len()).map(|number| number.to_string()).collect();
    assert_eq!(told, expected, "the numbers follow one another");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .map(|row| row.trim_end_matches('|').split('|').map(str::trim).collect())
        .collect();
    let mut used = BTreeSet::new();
    for row in &rows[1..] {
        assert_eq!(row.len(), rows[0].len(), "{row:?}");
        assert!(row[1..].iter().any(|cell| *cell != "–"), "nothing shows: {}", row[0]);
        used.extend(row[1..].iter().filter(|cell| **cell != "–").flat_map(|cell| cell.split(", ")));
    }
    let listed: BTreeSet<&str> = told.iter().copied().collect();
    wrong.extend(used.difference(&listed).map(|number| format!("there is no {number}")));
    wrong.extend(listed.difference(&used).map(|number| format!("{number} stands nowhere in the table")));
    assert!(rows.len() > 20 && wrong.is_empty(), "{}", wrong.join("\n"));
}
