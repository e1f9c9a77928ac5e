//! Does the schema that editors read take what `check` takes, and refuse what nobody can mean?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use tidegate::config;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

/// The faults of each text by the schema, as PyPI's jsonschema finds them.
fn judged(texts: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let printed = Command::new(PROGRAM).args(["example", "--schema"]).output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let schema = folder.path().join("schema.json");
    fs::write(&schema, &printed.stdout).unwrap();
    let mut files = Vec::new();
    for (number, text) in texts.values().enumerate() {
        let file = folder.path().join(format!("{number}.toml"));
        fs::write(&file, text).unwrap();
        files.push(file);
    }
    files.insert(0, schema);
    let mut judge = common::peers::script("schema", &files);
    let status = judge.wait(common::PATIENCE);
    assert!(status.success(), "{}", judge.transcript());
    let said = judge.stdout();
    assert_eq!(said.len(), texts.len());
    let faults = said.iter().map(|line| serde_json::from_str(line.split_once('\t').unwrap().1).unwrap());
    texts.keys().cloned().zip(faults).collect()
}

#[test]
fn every_example_and_the_whole_reference_fit_the_schema() {
    let mut texts: BTreeMap<String, String> = config::examples()
        .iter()
        .filter(|(name, _)| !name.ends_with(".csv"))
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    texts.insert("reference".to_owned(), config::describe::uncommented());
    for page in
        fs::read_dir("docs").unwrap().flatten().filter(|page| page.path().extension().is_some_and(|end| end == "md"))
    {
        let text = fs::read_to_string(page.path()).unwrap();
        let blocks = text.split("\n```toml\n").skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned());
        texts.extend(blocks.enumerate().map(|(number, block)| (format!("{} {number}", page.path().display()), block)));
    }
    assert!(texts.len() > 15, "{}", texts.len());
    for (name, faults) in judged(&texts) {
        assert_eq!(faults, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn what_is_misspelt_of_a_wrong_kind_or_no_choice_does_not_fit_and_is_named() {
    let wrong = |name: &str| fs::read_to_string(Path::new("tests/config_errors").join(name)).unwrap();
    let texts: BTreeMap<String, String> = [
        ("misspelt", wrong("unknown_keys.toml")),
        ("kinds", wrong("wrong_kinds.toml")),
        ("renamed", wrong("renamed_keys.toml")),
        ("choices", "[queue]\nwhen_full = \"explode\"\nflash = \"never\"\n[uplink.c]\ndrain = \"fast\"\n".to_owned()),
        ("deep", "[modbus.m.point]\np = { address = \"holding:1\", adress = 1, write = { mim = 1 } }\n".to_owned()),
        ("missing", "[uplink.c]\nurl = \"mqtt://h\"\n[[uplink.c.forward]]\ntopic = \"x\"\n".to_owned()),
    ]
    .map(|(name, text)| (name.to_owned(), text))
    .into();
    let judged = judged(&texts);
    for (name, words) in [
        ("misspelt", &["stat_dir", "queu"][..]),
        ("kinds", &["is not of type"]),
        ("renamed", &["were unexpected"]),
        ("choices", &["'explode' is not one of", "'never'", "'fast'"]),
        ("deep", &["adress", "p.write"]),
        ("missing", &["'filter' is a required property"]),
    ] {
        let faults = judged[name].join("\n");
        for word in words {
            assert!(faults.contains(word), "{name}: {word:?} is not in {faults:?}");
        }
    }
}
