//! Tests that a table names: does each of them exist?

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What `tests/<table>` names by `file::test` and is not there; and how many it names.
pub fn missing(table: &str) -> (Vec<String>, usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let text = fs::read_to_string(root.join(table)).unwrap();
    let named: BTreeSet<(&str, &str)> =
        text.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.split_once("::")).collect();
    let is_there = |file: &str, test: &str| {
        let holds = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("fn {test}(")));
        let mut of_folder = fs::read_dir(root.join(file)).into_iter().flatten().flatten();
        holds(&root.join(format!("{file}.rs"))) || of_folder.any(|entry| holds(&entry.path()))
    };
    let missing = named.iter().filter(|(file, test)| !is_there(file, test));
    (missing.map(|(file, test)| format!("{table}: there is no test {file}::{test}")).collect(), named.len())
}
