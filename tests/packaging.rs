//! Is what the package carries true to the code? Whether the package itself does what it should is tried by
//! `./test.sh --package`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by a panic")]

use std::fs;
use std::path::{Path, PathBuf};

use tidegate::config::keys::{Presence, TABLES};

#[path = "../packaging/pages/roff.rs"]
mod roff;

#[path = "../packaging/pages/commands.rs"]
mod commands;

#[path = "../packaging/pages/reference.rs"]
mod reference;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn manifest() -> toml::Table {
    fs::read_to_string(repository().join("Cargo.toml")).unwrap().parse().unwrap()
}

/// A page as it reads: without the marks of the typesetter.
fn plain(page: &str) -> String {
    page.replace("\\*(Aq", "'")
        .replace("\\-", "-")
        .replace("\\e", "\\")
        .replace("\\fB", "")
        .replace("\\fI", "")
        .replace("\\fR", "")
}

/// Every command below `command`, itself first, with the name of its page.
fn tree(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
    found.push((name.to_owned(), command.clone()));
    for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
        tree(child, &format!("{name}-{}", child.get_name()), found);
    }
}

#[test]
fn every_command_has_a_page_with_each_of_its_options() {
    let pages = commands::pages(tidegate::cli::command()).unwrap();
    let mut all = Vec::new();
    tree(&tidegate::cli::command(), "tidegate", &mut all);
    assert!(all.len() > 8, "only {} commands are looked at", all.len());
    assert_eq!(pages.len(), all.len());
    for (name, command) in all {
        let page = pages.iter().find(|(file, _)| *file == format!("{name}.1"));
        let page = plain(&page.unwrap_or_else(|| panic!("{name} has no page")).1);
        assert!(page.contains(&command.get_about().unwrap().to_string()), "{name}: what it does is missing");
        for option in command.get_arguments().filter_map(clap::Arg::get_long) {
            assert!(page.contains(&format!("--{option}")), "{name}: --{option} is missing");
        }
        assert!(page.contains(".SH SEE ALSO"), "{name}");
    }
}

#[test]
fn the_page_of_the_configuration_has_every_key_with_its_default() {
    let page = plain(&reference::page(tidegate::config::reference()));
    let lines: Vec<&str> = page.lines().collect();
    let mut keys = 0;
    for key in TABLES.iter().flat_map(|table| table.keys) {
        let start = format!("{} = ", key.name);
        let inline = [format!("{{ {start}"), format!(", {start}"), format!(".{}", key.name), format!("[{}", key.name)];
        let is_there =
            lines.iter().any(|line| line.starts_with(&start) || inline.iter().any(|form| line.contains(form)));
        assert!(is_there, "the key {} is not in the page", key.name);
        if let Presence::Default(default) = key.presence {
            assert!(page.contains(default), "{start}{default} is not in the page");
        }
        keys += 1;
    }
    assert!(keys > 60, "only {keys} keys are looked at");
}

#[test]
fn a_line_of_text_is_never_a_command_of_the_typesetter() {
    assert_eq!(roff::text(".SH x"), "\\&.SH x");
    assert_eq!(roff::text("'quoted' a-b `bold` \\n"), "\\&'quoted' a\\-b \\fBbold\\fR \\en");
    for (name, page) in commands::pages(tidegate::cli::command()).unwrap() {
        for line in page.lines().filter(|line| line.starts_with(['.', '\''])) {
            let known = [
                ".TH", ".SH", ".SS", ".TP", ".PP", ".RS", ".RE", ".nf", ".fi", ".nh", ".br", ".B", ".I", ".BR", ".ie",
                ".el", ".IP",
            ];
            let word = line.split(' ').next().unwrap();
            assert!(known.contains(&word), "{name}: {line}");
        }
    }
}

#[test]
fn the_package_takes_files_that_are_there_and_says_who_keeps_it() {
    let manifest = manifest();
    let deb = manifest["package"]["metadata"]["deb"].as_table().unwrap();
    for key in ["maintainer", "section", "depends", "recommends", "extended-description", "maintainer-scripts"] {
        assert!(deb.contains_key(key), "[package.metadata.deb] {key} is missing");
    }
    assert!(deb["depends"].as_str().unwrap().contains("libgcc-s1"));
    let mut installed = Vec::new();
    for asset in deb["assets"].as_array().unwrap() {
        let [source, place, mode] = [0, 1, 2].map(|at| asset[at].as_str().unwrap());
        installed.push((place, mode));
        // What is built stands under target/, and a pattern has at least its folder.
        if !source.starts_with("target/") {
            let path = repository().join(source.trim_end_matches('*'));
            assert!(path.exists(), "{source} is not there");
        }
    }
    for (place, mode) in installed.iter().filter(|(place, _)| place.starts_with("etc/")) {
        assert_eq!(*mode, "640", "{place} is readable by everybody");
    }
    assert!(installed.contains(&("usr/bin/", "755")));
}

#[test]
fn the_debian_changelog_begins_with_this_version() {
    let text = fs::read_to_string(repository().join("packaging/debian/changelog")).unwrap();
    let wanted = format!("tidegate ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(text.starts_with(&wanted), "{:?} does not begin with {wanted:?}", text.lines().next());
}

#[test]
fn the_shipped_configuration_changes_nothing_and_so_no_upgrade_ever_asks_about_it() {
    let text = fs::read_to_string(repository().join("packaging/debian/tidegate.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    assert!(table.is_empty(), "{table:?}");
}

#[test]
fn no_script_deletes_the_state_but_after_an_answer() {
    let folder = repository().join("packaging/debian");
    for name in ["config", "postinst", "prerm", "postrm"] {
        let text = fs::read_to_string(Path::new(&folder).join(name)).unwrap();
        assert!(text.starts_with("#!/bin/sh\n") && text.contains("\nset -e\n"), "{name} goes on after a failure");
        assert_eq!(text.matches("rm -rf").count(), usize::from(name == "postrm"), "{name}");
        // cargo-deb replaces the word wherever it stands, also in a comment.
        assert_eq!(text.matches("#DEBHELPER#").count(), usize::from(name != "config"), "{name}");
    }
    let templates = fs::read_to_string(folder.join("templates")).unwrap();
    assert!(templates.contains("Template: tidegate/delete-state\nType: boolean\nDefault: false\n"), "{templates}");
}
