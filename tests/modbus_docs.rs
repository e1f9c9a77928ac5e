//! Is what `docs/modbus.md` and `docs/serial.md` say a configuration, and are its commands commands?

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by a panic")]

use std::fs;

use tidegate::config::{self, LoadRequest};

const MODBUS: &str = include_str!("../docs/modbus.md");
const SERIAL: &str = include_str!("../docs/serial.md");

/// The blocks of one language in a cookbook, with the line where each begins.
fn blocks(cookbook: &str, language: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut is_inside = false;
    for (number, line) in cookbook.lines().enumerate() {
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

#[test]
fn every_block_of_configuration_is_one() {
    let (modbus, serial) = (blocks(MODBUS, "toml"), blocks(SERIAL, "toml"));
    assert!(modbus.len() >= 6 && serial.len() >= 2, "{} and {}", modbus.len(), serial.len());
    for (number, text) in [modbus, serial].concat() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("etc")).unwrap();
        fs::write(folder.path().join("etc/machine-id"), "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n").unwrap();
        let table = config::examples().iter().find(|(name, _)| *name == "em24.csv").unwrap().1;
        fs::write(folder.path().join("em24.csv"), table).unwrap();
        let file = folder.path().join("tidegate.toml");
        fs::write(&file, text).unwrap();
        let request =
            LoadRequest { root: folder.path().to_owned(), config: Some(file), credentials_dir: None, kept_id: None };
        match config::load(&request) {
            Ok(loaded) => {
                let config = loaded.config;
                assert!(!config.modbus.is_empty() || !config.serial.is_empty(), "line {number} has no device");
            }
            Err(problems) => panic!("the block at line {number}:\n{}", config::render(&problems, &[])),
        }
    }
}

#[test]
fn every_command_is_understood() {
    let commands: Vec<String> = blocks(MODBUS, "sh")
        .into_iter()
        .flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert!(commands.len() >= 12, "{commands:?}");
    for line in commands {
        let command = line.split(" #").next().unwrap();
        let words = command.split_whitespace();
        if let Err(error) = tidegate::cli::command().try_get_matches_from(words) {
            panic!("{line}\n{error}");
        }
    }
}
