//! Is what the documents about payloads and clouds by HTTP say a configuration, without a problem and without a warning?

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by a panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tidegate::config::{self, LoadRequest};

/// The blocks of configuration, with the line where each begins.
fn blocks(document: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut is_inside = false;
    for (number, line) in document.lines().enumerate() {
        match line.strip_prefix("```") {
            Some("toml") if !is_inside => {
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

fn expect_configurations(document: &str, at_least: usize) {
    let found = blocks(document);
    assert!(found.len() >= at_least, "{}", found.len());
    for (number, text) in found {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/machine-id"), "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n").unwrap();
        // The files that it names.
        for word in text.split('"').filter(|word| word.starts_with("/etc/tidegate/")) {
            let path = root.join(word.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "x\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let file = root.join("tidegate.toml");
        fs::write(&file, text.replace("/etc/tidegate", root.join("etc/tidegate").to_str().unwrap())).unwrap();
        let request = LoadRequest { root: root.to_owned(), config: Some(file), credentials_dir: None, kept_id: None };
        match config::load(&request) {
            Ok(loaded) => {
                assert_eq!(loaded.config.uplinks.len(), 1, "line {number}");
                let warnings = config::render(&[], &loaded.warnings);
                assert_eq!(warnings, "", "the block at line {number}");
            }
            Err(problems) => panic!("the block at line {number}:\n{}", config::render(&problems, &[])),
        }
    }
}

#[test]
fn every_block_about_payloads_is_a_configuration() {
    expect_configurations(include_str!("../docs/payloads.md"), 4);
}
