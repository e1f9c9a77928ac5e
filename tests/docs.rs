//! Is what the documents say so? Each block of configuration is one that `check` takes, each command is one, each link leads
//! somewhere, and the reference is what the code says.
//!
//! What is no block of its own (a command among words) is not looked at.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tidegate::clock::{Clock, ClockSource};
use tidegate::config::{self, LoadRequest};
use tidegate::health::Health;
use tidegate::health::status::Told;

/// README.md and all pages of `docs/`, and the others that people are sent to.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<PathBuf> =
        ["README.md", "SECURITY.md", "systemd/README.md"].iter().map(|name| root.join(name)).collect();
    let docs = fs::read_dir(root.join("docs")).unwrap().flatten().map(|entry| entry.path());
    paths.extend(docs.filter(|path| path.extension().is_some_and(|end| end == "md")));
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.strip_prefix(root).unwrap().to_owned(), fs::read_to_string(path).unwrap()))
        .collect()
}

/// The blocks of one language, with the page and the line where each begins.
fn blocks(language: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (page, text) in pages() {
        let mut is_inside = None;
        for (number, line) in text.lines().enumerate() {
            match (line.strip_prefix("```"), is_inside) {
                (Some(word), None) => {
                    is_inside = Some(word == language);
                    if word == language {
                        found.push((format!("{}:{}", page.display(), number + 1), String::new()));
                    }
                }
                (Some(_), Some(_)) => is_inside = None,
                (None, Some(true)) => found.last_mut().unwrap().1.extend([line, "\n"]),
                _ => {}
            }
        }
    }
    found
}

/// A folder with every file that a block names; it takes the place of `/etc/tidegate`.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/machine-id"), "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n").unwrap();
    let table = config::examples().iter().find(|(name, _)| *name == "em24.csv").unwrap().1;
    fs::write(root.join("em24.csv"), table).unwrap();
    folder
}

/// Makes the files below `root` that a block names, as far as they are not there.
fn make_files(block: &str, root: &Path) {
    let quoted = block.split('"').filter(|part| part.starts_with(root.to_str().unwrap()));
    for path in quoted.map(PathBuf::from).filter(|path| !path.exists()) {
        let text = match path.extension().and_then(|end| end.to_str()) {
            Some("json") => format!(r#"{{"kty":"EC","crv":"P-256","x":"{0}","y":"{0}"}}"#, "A".repeat(43)),
            Some("hash") => HASH.to_owned(),
            _ => "x\n".to_owned(),
        };
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$AAAAAAAAAAAAAAAAAAAAAA";

/// What a block leaves out because the words around it say so: whose rule, whose point, and what "…" stands for.
fn completed(block: &str, root: &Path) -> String {
    let mut text = block
        .replace("$argon2id$…", HASH)
        .replace("127.0.0.1:…", "127.0.0.1:1884")
        .replace("state_dir = \"…\"", "state_dir = \"/var/lib/tidegate\"")
        .replace("/etc/tidegate", root.to_str().unwrap());
    for (given, key, more) in [
        ("uplink.cloud", "url = ", "[uplink.cloud]\nurl = \"mqtts://broker.example.com:8883\"\n"),
        ("modbus.chiller", "unit_id = ", "[modbus.chiller]\nline = \"tcp://192.168.1.10:502\"\nunit_id = 1\n"),
        ("line = \"meters\"", "[line.meters]", "[line.meters]\nport = \"/dev/ttyS1\"\n"),
        ("groups = [\"machines\"]", "\n[broker.group.machines]", "[broker.group.machines]\npublish = [\"status\"]\n"),
        ("bind = \"0.0.0.0:", "[broker.user.", "[broker.user.plc7]\ncertificate = \"CN=plc7\"\n"),
    ] {
        if !text.contains(given) || text.lines().any(|line| line.starts_with(key.trim_start())) {
            continue;
        }
        let head = more.lines().next().unwrap();
        text = match text.lines().position(|line| line.starts_with(head)) {
            Some(number) => {
                let lines =
                    text.lines().enumerate().map(|(at, line)| if at == number { more.trim_end() } else { line });
                lines.flat_map(|line| [line, "\n"]).collect()
            }
            None => more.to_owned() + &text,
        };
    }
    text
}

#[test]
fn every_block_of_configuration_passes_check() {
    let blocks = blocks("toml");
    assert!(blocks.len() >= 20, "{}", blocks.len());
    for (at, block) in blocks {
        let folder = place();
        let root = folder.path();
        let file = root.join("tidegate.toml");
        let text = completed(&block, root);
        make_files(&text, root);
        fs::write(&file, &text).unwrap();
        let request = LoadRequest { root: root.to_owned(), config: Some(file), credentials_dir: None, kept_id: None };
        if let Err(problems) = config::load(&request) {
            panic!("the block at {at}:\n{}\n{text}", config::render(&problems, &[]));
        }
    }
}

/// Programs beside our own that a page may name, and that nobody has to write out.
const KNOWN: &[&str] = &[
    "apt",
    "cargo",
    "cp",
    "cross",
    "echo",
    "install",
    "journalctl",
    "mosquitto_pub",
    "mosquitto_sub",
    "ssh",
    "systemctl",
    "systemd-sysusers",
    "tee",
];

/// The commands of a line of a shell: what stands between `|`, `&&` and `;`, without comments, redirections and `sudo`.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut quote, mut is_word) = (String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (None, '#') if !is_word => break,
            (None, '\'' | '"') => (quote, is_word) = (Some(c), true),
            (Some(open), c) if c == open => quote = None,
            (None, ' ') => {
                if std::mem::take(&mut is_word) {
                    words.push(std::mem::take(&mut word));
                }
            }
            (_, c) => {
                word.push(c);
                is_word = true;
            }
        }
    }
    if is_word {
        words.push(word);
    }
    let commands = words.split(|word| matches!(word.as_str(), "|" | "&&" | "&" | ";"));
    let without = |command: &[String]| {
        let end = command.iter().position(|word| word.starts_with('>')).unwrap_or(command.len());
        command[..end]
            .iter()
            .skip_while(|word| *word == "sudo" || word.starts_with("CARGO_TARGET_DIR="))
            .cloned()
            .collect::<Vec<_>>()
    };
    commands.map(without).filter(|command| !command.is_empty()).collect()
}

#[test]
fn every_command_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let blocks = blocks("sh");
    let mut ours = 0;
    for (at, block) in &blocks {
        for words in block.lines().flat_map(commands) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let words = match words.as_slice() {
                ["cargo", "run", "--release", "--", rest @ ..] => [&["tidegate"], rest].concat(),
                _ => words,
            };
            match words[0] {
                "tidegate" => {
                    ours += 1;
                    if let Err(error) = tidegate::cli::command().try_get_matches_from(&words) {
                        panic!("{at}: {words:?}\n{error}");
                    }
                }
                path if path.contains('/') => assert!(root.join(path).is_file(), "{at}: there is no {path}"),
                other => assert!(KNOWN.contains(&other), "{at}: what is {other}?"),
            }
        }
    }
    assert!(ours >= 50, "{ours} commands of ours in {} blocks", blocks.len());
}

#[test]
fn every_link_and_every_file_that_is_named_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut links = 0;
    for (page, text) in pages() {
        let beside = root.join(page.parent().unwrap());
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            links += 1;
            let file = target.split('#').next().unwrap();
            assert!(beside.join(file).exists(), "{}: {target} is not there", page.display());
        }
        // `docs/modbus.md` among the words: from the root, whatever page names it.
        for word in text.split('`').skip(1).step_by(2) {
            let is_path = ["docs/", "tests/", "config/", "systemd/", "packaging/", "benches/", "yocto/"];
            let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if is_plain && is_path.iter().any(|start| word.starts_with(start)) && !word.ends_with('/') {
                assert!(root.join(word).exists(), "{}: `{word}` is not there", page.display());
            }
        }
    }
    assert!(links >= 20, "{links}");
}

#[test]
fn every_page_is_named_by_another() {
    let pages = pages();
    for (page, _) in pages.iter().filter(|(page, _)| page != Path::new("README.md")) {
        let name = page.display().to_string();
        let beside = format!("]({}", page.file_name().unwrap().display());
        let names = |text: &str| text.contains(&name) || text.contains(&beside);
        assert!(pages.iter().any(|(other, text)| other != page && names(text)), "{name}: no page leads there");
    }
}

#[test]
fn the_reference_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let expected = config::describe::markdown();
    if std::env::var_os("TIDEGATE_WRITE_DOCS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let is = fs::read_to_string(path).unwrap_or_default();
    let different = is.lines().zip(expected.lines()).find(|(is, expected)| is != expected);
    assert!(is == expected, "docs/reference.md is old: TIDEGATE_WRITE_DOCS=1 cargo test --test docs; {different:?}");
}

/// What `/metrics` can tell, as Prometheus names it.
fn metrics() -> Vec<String> {
    let told = Told::new("g7", Clock::new(ClockSource::Trusted), Health::default());
    let text = tidegate::web::metrics::text(&told.status()).unwrap();
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = families.map(|family| match family.split_once(' ').unwrap() {
        (name, "counter") => format!("{name}_total"),
        (name, _) => name.to_owned(),
    });
    names.collect()
}

#[test]
fn every_metric_and_label_of_the_grafana_dashboard_is_there() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/grafana/tidegate.json");
    let dashboard: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let known = metrics();
    let mut named = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            for word in target["expr"].as_str().unwrap().split(|c| !is_of_name(c)) {
                if word.starts_with("tidegate_") {
                    named += 1;
                    assert!(known.iter().any(|name| name == word), "{}: there is no {word}", panel["title"]);
                }
            }
            let labels = target["legendFormat"].as_str().unwrap().split("{{").skip(1);
            for label in labels.map(|rest| rest.split("}}").next().unwrap()) {
                let ours = ["uplink", "device", "kind", "reason", "alarm"];
                assert!(label == "instance" || ours.contains(&label), "{}: there is no label {label}", panel["title"]);
            }
        }
    }
    assert!(named >= 20, "{named}");
}

/// All our sources as one text: no marks of code, no line ends inside of a sentence, no large letters.
fn sources() -> String {
    fn gather(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => gather(&path, text),
                path if path.extension().is_some_and(|end| end == "rs") => *text += &fs::read_to_string(path).unwrap(),
                _ => {}
            }
        }
    }
    let mut text = String::new();
    gather(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let lines = text.split("\\\n").enumerate().map(|(number, part)| if number == 0 { part } else { part.trim_start() });
    lines.collect::<String>().replace("\\\"", "\"").replace('`', "").to_lowercase()
}

#[test]
fn the_words_to_look_for_in_troubleshooting_are_words_of_the_program() {
    let sources = sources();
    let (_, page) = pages().into_iter().find(|(page, _)| page.ends_with("troubleshooting.md")).unwrap();
    let cells = page.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let mut looked = 0;
    for said in cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        // What differs from case to case stands between the words.
        for part in said.to_lowercase().split(|c: char| c == '…' || c.is_ascii_digit()) {
            let part = part.trim_matches(|c: char| !c.is_alphabetic() && c != '\'');
            if part.len() >= 8 {
                looked += 1;
                assert!(sources.contains(part), "{said:?}: the program does not say {part:?}");
            }
        }
    }
    assert!(looked >= 40, "{looked}");
}
