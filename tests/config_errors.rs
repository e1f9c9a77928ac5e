//! Is every fault of a configuration told at its place, all of them at once, and in words that help?
//!
//! `tests/config_errors/` holds pairs: a bad file and the text that it must give. `TIDEGATE_BLESS=1` writes the texts
//! anew; read the difference before it is committed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by a panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use tempfile::TempDir;
use tidegate::config::{self, LoadRequest, Loaded, Problem, WhenFull, render};

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config_errors")
}

/// A machine with a host name and a machine id, and without any configuration.
fn machine() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "etc/hostname", "press-hall\n");
    write(root.path(), "etc/machine-id", "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n");
    for (name, text) in [("credentials/password", "secret\n"), ("credentials/umlaut", "gehe\u{ed}m\n")] {
        write(root.path(), name, text);
        fs::set_permissions(root.path().join(name), fs::Permissions::from_mode(0o400)).unwrap();
    }
    root
}

fn write(root: &Path, file: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

fn load(root: &Path, config: Option<PathBuf>) -> Result<Loaded, Vec<Problem>> {
    let credentials_dir = Some(root.join("credentials"));
    config::load(&LoadRequest { root: root.to_owned(), config, credentials_dir, kept_id: None })
}

/// The problems as they are printed, with the paths of this run shortened.
fn shown(root: &Path, config: Option<PathBuf>) -> String {
    let text = match load(root, config) {
        Ok(loaded) => render(&[], &loaded.warnings),
        Err(problems) => render(&problems, &[]),
    };
    text.replace(&format!("{}/", cases().display()), "").replace(&format!("{}/", root.display()), "/")
}

#[test]
fn each_bad_file_gives_the_text_beside_it() {
    let root = machine();
    let bless = std::env::var_os("TIDEGATE_BLESS").is_some();
    let mut files: Vec<PathBuf> = fs::read_dir(cases()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(files.len() > 30);
    let mut wrong = Vec::new();
    for file in files {
        let text = shown(root.path(), Some(file.clone()));
        let expected = file.with_extension("txt");
        if bless {
            fs::write(&expected, &text).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != text {
            wrong.push(format!("{}:\n{text}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_with_many_faults_reports_them_all_at_once() {
    let root = machine();
    let problems = load(root.path(), Some(cases().join("many_at_once.toml"))).unwrap_err();
    assert!(problems.len() >= 10, "{}", render(&problems, &[]));
    let mut lines: Vec<usize> = problems.iter().map(|p| p.place.clone().unwrap().mark.unwrap().line).collect();
    let in_order = lines.clone();
    lines.sort_unstable();
    assert_eq!(lines, in_order);
    lines.dedup();
    assert!(lines.len() >= 10);
}

#[test]
fn every_problem_can_be_mended_by_its_help_or_says_all() {
    for entry in fs::read_dir(cases()).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "txt") {
            let text = fs::read_to_string(&file).unwrap();
            // The last line counts; control characters never reach a terminal.
            let last = text.lines().last().unwrap();
            assert!(last.contains("problem") || last.contains("warning"), "{}", file.display());
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{}", file.display());
        }
    }
}

#[test]
fn a_later_layer_wins_and_tables_of_rules_are_appended() {
    let root = machine();
    let root = root.path();
    write(root, "usr/lib/tidegate/10-vendor.toml", "[queue]\nmax_bytes = \"64 MiB\"\nwhen_full = \"refuse\"\n");
    write(
        root,
        "etc/tidegate/tidegate.toml",
        "[gateway]\nid = \"g7\"\n[queue]\nmax_bytes = \"128 MiB\"\n[uplink.a]\nurl = \"mqtt://h\"\n[[uplink.a.forward]]\nfilter = \"a/#\"\n",
    );
    write(root, "etc/tidegate/conf.d/20-b.toml", "[[uplink.a.forward]]\nfilter = \"b/#\"\n");
    write(root, "etc/tidegate/conf.d/10-a.toml", "[[uplink.a.forward]]\nfilter = \"c/#\"\n");
    write(root, "etc/tidegate/conf.d/.hidden.toml", "nonsense");
    write(root, "etc/tidegate/conf.d/readme.txt", "nonsense");
    write(root, "var/lib/tidegate/conf.d/board.toml", "[queue]\nmax_bytes = \"32 MiB\"\n");
    let loaded = load(root, None).unwrap();
    assert_eq!(loaded.config.queue.bytes_max.get(), 32 << 20);
    assert_eq!(loaded.config.queue.when_full, WhenFull::Refuse);
    assert_eq!(loaded.config.gateway.id.as_ref(), "g7");
    assert_eq!(loaded.config.gateway.id_source, "the configuration");
    let filters: Vec<&str> = loaded.config.uplinks["a"].forward.iter().map(|rule| rule.filter.as_str()).collect();
    assert_eq!(filters, ["a/#", "c/#", "b/#"]);
    assert_eq!(loaded.files.len(), 5);

    let effective = loaded.effective.replace(root.to_str().unwrap(), "");
    for line in [
        "[queue]",
        "max_bytes = \"32 MiB\"",
        "# /var/lib/tidegate/conf.d/board.toml:2:13",
        "when_full = \"refuse\"",
        "# /usr/lib/tidegate/10-vendor.toml:3:13",
        "[[uplink.a.forward]]",
    ] {
        assert!(effective.contains(line), "{line} is missing in\n{effective}");
    }
    // What is printed is a configuration again, and the same one.
    let again = write(root, "again.toml", &loaded.effective);
    let other = tempfile::tempdir().unwrap();
    let again = load(other.path(), Some(again)).unwrap();
    assert_eq!(format!("{:?}", again.config), format!("{:?}", loaded.config));
}

#[test]
fn the_same_key_twice_in_one_layer_names_both_places() {
    let root = machine();
    write(root.path(), "etc/tidegate/tidegate.toml", "[queue]\nmax_bytes = \"64 MiB\"\n");
    write(root.path(), "etc/tidegate/conf.d/a.toml", "# more\n[queue]\nmax_bytes = \"65 MiB\"\n");
    assert_eq!(
        shown(root.path(), None),
        "/etc/tidegate/conf.d/a.toml:3:1: `max_bytes` is written twice, here and at /etc/tidegate/tidegate.toml:2:1\n    \
         max_bytes = \"65 MiB\"\n    ^^^^^^^^^\n    help: keep one of the two\n\n1 problem\n"
    );
}

#[test]
fn a_file_that_is_tried_out_takes_the_place_of_the_owners_and_brings_no_directory() {
    let root = machine();
    let root = root.path();
    write(root, "etc/tidegate/tidegate.toml", "[gateway]\nid = \"installed\"\n");
    write(root, "etc/tidegate/conf.d/a.toml", "[queue]\nmax_bytes = \"64 MiB\"\n");
    let tried = write(root, "home/tidegate.toml", "[gateway]\nid = \"tried\"\n");
    write(root, "home/conf.d/a.toml", "nonsense");
    let config = load(root, Some(tried)).unwrap().config;
    assert_eq!((config.gateway.id.as_ref(), config.queue.bytes_max.get()), ("tried", 1 << 30));
    let other = write(root, "etc/tidegate/other.toml", "[gateway]\nid = \"other\"\n");
    let config = load(root, Some(other)).unwrap().config;
    assert_eq!((config.gateway.id.as_ref(), config.queue.bytes_max.get()), ("other", 64 << 20));
}

#[test]
fn files_that_cannot_be_read_are_problems_and_hide_no_other() {
    let root = machine();
    let root = root.path();
    let missing = shown(root, Some(root.join("nowhere.toml")));
    assert!(missing.contains("/nowhere.toml: this file cannot be read: it does not exist"), "{missing}");

    write(root, "etc/tidegate/conf.d/10-good.toml", "[queue]\nmax_byte = \"1 MiB\"\n");
    write(root, "etc/tidegate/conf.d/20-huge.toml", vec![b'#'; (1 << 20) + 1]);
    fs::create_dir_all(root.join("etc/tidegate/conf.d/30-directory.toml")).unwrap();
    write(root, "etc/tidegate/conf.d/40-latin1.toml", b"# gr\xfc\xdf\n");
    write(root, "etc/tidegate/conf.d/50-broken.toml", "[gateway\n");
    let text = shown(root, None);
    for part in [
        "20-huge.toml: this file is larger than 1 MiB",
        "30-directory.toml: this file is a directory",
        "40-latin1.toml:1:5: this character is not UTF-8",
        "50-broken.toml:1:9: this is not valid TOML",
        "10-good.toml:2:1: `max_byte` is not a key in [queue]",
        "did you mean `max_bytes`?",
        "5 problems",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn a_mark_at_the_start_and_windows_line_ends_change_nothing() {
    let root = machine();
    let file = write(root.path(), "c.toml", "\u{feff}[gateway]\r\nid = \"g\"\r\n[queue]\r\nmax_bytes = \"2 MiB\"\r\n");
    assert_eq!(load(root.path(), Some(file)).unwrap().config.queue.bytes_max.get(), 2 << 20);
    let file = write(root.path(), "c.toml", "\u{feff}idd = 1\r\n");
    assert!(
        shown(root.path(), Some(file))
            .starts_with("/c.toml:1:1: `idd` is not a key at the top\n    idd = 1\n    ^^^\n")
    );
}

#[test]
fn a_secret_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let root = machine();
    let root = root.path();
    let key = write(root, "key.pem", "x");
    write(root, "cert.pem", "x");
    let config = "[uplink.a]\nurl = \"mqtts://h\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";
    let file = write(root, "c.toml", config);
    for (mode, is_fine) in [(0o644, false), (0o604, false), (0o660, false), (0o600, true), (0o640, true), (0o400, true)]
    {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let text = shown(root, Some(file.clone()));
        assert_eq!(text.is_empty(), is_fine, "{mode:o}: {text}");
        if !is_fine {
            assert!(text.contains("c.toml:4:7: `key`: others can read or change"), "{text}");
            assert!(text.contains("help: chmod u=rw,g=r,o= /key.pem"), "{text}");
        }
    }
}

#[test]
fn credentials_of_systemd_are_found_by_their_variable() {
    let root = machine();
    let root = root.path();
    let config =
        "[uplink.a]\nurl = \"mqtts://h\"\nusername = \"u\"\npassword_file = \"${CREDENTIALS_DIRECTORY}/password\"\n";
    let file = write(root, "c.toml", config);
    let loaded = load(root, Some(file.clone())).unwrap();
    assert_eq!(loaded.config.uplinks["a"].password_file, Some(root.join("credentials/password")));
    let request = LoadRequest { root: root.to_owned(), config: Some(file), credentials_dir: None, kept_id: None };
    let text = render(&config::load(&request).unwrap_err(), &[]);
    assert!(text.contains("${CREDENTIALS_DIRECTORY} is not set here"), "{text}");
}

#[test]
fn the_state_directory_is_known_whatever_else_is_wrong_but_not_when_it_may_stand_in_what_cannot_be_read() {
    let root = machine();
    let root = root.path();
    let asked = |text: &str| {
        let config = Some(write(root, "c.toml", text));
        let request = LoadRequest { root: root.to_owned(), config, credentials_dir: None, kept_id: None };
        assert!(config::load(&request).is_err(), "the control: a gateway would not start with {text}");
        config::state_dir(&request).map_err(|problems| render(&problems, &[]))
    };
    let wrong = "id = 7\n[uplink.a]\nurl = \"mqtts://h\"\nkey = \"${CREDENTIALS_DIRECTORY}/key\"\nno = 1\n";
    assert_eq!(asked(&format!("[gateway]\nstate_dir = \"/data\"\n{wrong}")).unwrap(), Path::new("/data"));
    assert_eq!(asked(&format!("[gateway]\n{wrong}")).unwrap(), Path::new("/var/lib/tidegate"));
    let said = asked("[gateway]\nstate_dir = \"/data\"\nid = \n").unwrap_err();
    assert!(said.contains("c.toml:3:"), "{said}");
    let said = asked("[gateway]\nstate_dir = \"data\"\n").unwrap_err();
    assert!(said.contains("`state_dir`: must be a path from the root"), "{said}");
}

#[test]
fn the_id_comes_from_the_configuration_then_the_state_directory_then_the_board() {
    let root = machine();
    let root = root.path();
    let file = write(root, "c.toml", "[uplink.a]\nurl = \"mqtts://h\"\n");
    let with = |kept: Option<&'static str>| {
        let mut request =
            LoadRequest { root: root.to_owned(), config: Some(file.clone()), credentials_dir: None, kept_id: None };
        if let Some(kept) = kept {
            request.kept_id =
                Some(Box::new(move |directory| (directory == Path::new("/var/lib/tidegate")).then(|| kept.to_owned())));
        }
        config::load(&request).unwrap().config
    };
    let config = with(None);
    assert_eq!(config.gateway.id.as_ref(), "3f9ac0ffee3f9ac0ffee3f9ac0ffee12");
    assert_eq!(config.gateway.id_source, "the machine id");
    assert_eq!(config.uplinks["a"].own_topic.as_deref(), Some("tidegate/3f9ac0ffee3f9ac0ffee3f9ac0ffee12"));
    let config = with(Some("kept"));
    assert_eq!((config.gateway.id.as_ref(), config.gateway.id_source), ("kept", "the state directory"));
    assert_eq!(config.uplinks["a"].client_id, "kept");

    fs::remove_file(root.join("etc/machine-id")).unwrap();
    let text = shown(root, Some(file.clone()));
    assert!(text.contains("this gateway has no id"), "{text}");
}

#[test]
fn what_a_device_says_wins_over_its_model_key_by_key() {
    let root = machine();
    let file = write(
        root.path(),
        "c.toml",
        r#"
[model.em24]
order = "cdab"
poll = "30s"
timeout = "2s"
address_base = 1
report = { heartbeat = "1h", deadband = 1.0 }
points = "em24.csv"
[model.em24.point]
power = { unit = "kW" }
[line.meters]
port = "/dev/ttyS1"
timeout = "3s"
[modbus.a]
line = "meters"
unit_id = 1
model = "em24"
poll = "5s"
[modbus.a.point]
power = { scale = 0.001, report = { deadband = 5 } }
[modbus.b]
line = "meters"
unit_id = 2
point.p = { address = "40101", type = "u16" }
[modbus.c]
line = "tcp://10.0.0.1"
unit_id = 255
point.p = { address = "coil:3" }
[modbus.d]
line = "tcp://10.0.0.1:502"
unit_id = 1
point.p = { address = "coil:3" }
[uplink.cloud]
url = "mqtt://h"
"#,
    );
    write(
        root.path(),
        "em24.csv",
        "name,address,type,scale,unit,heartbeat\npower,holding:1,i32,0.1,W,2h\nenergy,holding:0x10,u64,,kWh,\n",
    );
    let loaded = load(root.path(), Some(file)).unwrap();
    assert!(loaded.warnings.is_empty(), "{}", render(&[], &loaded.warnings));
    let config = loaded.config;
    let a = &config.modbus["a"];
    assert_eq!((a.poll.as_secs(), a.timeout.as_secs()), (5, 2));
    let power = a.points.iter().find(|point| point.name.as_ref() == "power").unwrap();
    assert_eq!((power.address, power.meaning.scale, power.unit.as_deref()), (0, 0.001, Some("kW")));
    assert_eq!(power.report.deadband, Some(config::Deadband::Absolute(5.0)));
    assert_eq!(power.report.heartbeat.map(|beat| beat.as_secs()), Some(7200));
    let energy = a.points.iter().find(|point| point.name.as_ref() == "energy").unwrap();
    assert_eq!((energy.address, energy.meaning.scale, energy.report.heartbeat.unwrap().as_secs()), (15, 1.0, 3600));
    assert_eq!(energy.order, config::WordOrder::Cdab);

    let b = &config.modbus["b"];
    assert_eq!((b.points[0].table, b.points[0].address, b.timeout.as_secs()), (config::Table::Holding, 100, 3));
    // Two urls that mean one connection are one line.
    assert_eq!(config.modbus["c"].line.as_ref(), "tcp://10.0.0.1:502");
    assert_eq!(config.modbus["c"].line, config.modbus["d"].line);
    assert_eq!(config.lines.len(), 2);
    assert_eq!(config.modbus["c"].points[0].kind, config::PointKind::Bool);
}

#[test]
fn without_a_table_of_points_every_group_is_one() {
    let root = machine();
    let text = "[serial.s]\nport = \"/dev/ttyS1\"\nparse = { regex = '(?<status>[SD]) (?<weight>\\d+)' }\ngood = { status = \"S\" }\n";
    let file = write(root.path(), "c.toml", text);
    let config = load(root.path(), Some(file)).unwrap().config;
    let scale = &config.serial["s"];
    let kinds: Vec<_> = scale.points.iter().map(|point| (point.name.as_ref(), point.kind)).collect();
    assert_eq!(kinds, [("status", config::TextKind::String), ("weight", config::TextKind::F64)]);
    assert_eq!((&scale.frame, scale.decimal), (&config::FrameConfig::delimited(b"\r\n", 1024), b'.'));
}

#[test]
fn deep_and_wide_files_end_in_a_problem() {
    let root = machine();
    let deep = format!("a = {}{}", "[".repeat(50_000), "]".repeat(50_000));
    let deep_tables = format!("a = {}1{}", "{a=".repeat(50_000), "}".repeat(50_000));
    let dotted = format!("{}a = 1", "a.".repeat(50_000));
    let header = format!("[{}a]", "a.".repeat(50_000));
    let wide: String = (0..50_000).map(|index| format!("k{index} = 1\n")).collect();
    let twice = "poll = 1\n".repeat(100_000);
    let headers = "[queue]\n".repeat(100_000);
    let lines = (0..20_000).map(|i| format!("[line.l{i}]\nport=\"/p\"\n")).collect::<String>();
    let devices =
        (0..8_000).map(|i| format!("[modbus.m{i}]\nline=\"x{i}\"\nunit_id=1\npoint.p={{address=\"coil:1\"}}\n"));
    let devices = (0..8_000).map(|i| format!("[line.l{i}]\nport=\"/p{i}\"\n")).chain(devices).collect::<String>();
    let places =
        (0..8_000).map(|i| format!("[modbus.m{i}]\nline=\"tcp://h{i}\"\nunit_id=1\npoint.p={{address=\"coil:1\"}}\n"));
    let places = places.chain(["x = 1".to_owned()]).collect::<String>();
    for text in [deep, deep_tables, dotted, header, wide, twice, headers, lines, devices, places] {
        let file = write(root.path(), "c.toml", text);
        let problems = load(root.path(), Some(file)).unwrap_err();
        assert!(!problems.is_empty() && problems.len() < 1000);
    }
}

/// All good and bad files, to be mutated.
fn corpus() -> Vec<Vec<u8>> {
    let mut texts: Vec<Vec<u8>> = config::examples().iter().map(|(_, text)| text.as_bytes().to_vec()).collect();
    let reference = config::reference().lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') => rest,
        _ => line,
    });
    texts.push(reference.collect::<Vec<_>>().join("\n").into_bytes());
    let mut files: Vec<PathBuf> = fs::read_dir(cases()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    texts.extend(
        files.iter().filter(|path| path.extension().is_some_and(|e| e != "txt")).map(|path| fs::read(path).unwrap()),
    );
    texts
}

static CORPUS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

/// One change to a file: where, how many bytes go, and what comes.
type Change = (prop::sample::Index, usize, Vec<u8>);

fn change() -> impl Strategy<Value = Change> {
    let pieces = prop::sample::select(vec![
        &b""[..],
        b"\"",
        b"'",
        b"[",
        b"]",
        b"{",
        b"}",
        b"=",
        b".",
        b",",
        b"#",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"0",
        b"-1",
        b"1e999",
        b"99999999999999999999",
        b"nan",
        b"true",
        b"1979-05-27",
        b"[[",
        b"]]",
        b"\"\"\"",
        b"{}",
        b"[]",
        b"\xf0\x9f\x92\xa7",
        b"\xc2\xad",
        b"modbus",
        b"point",
        b"\"{gateway}\"",
        b"address = ",
        b"report = { deadband = 1 }",
    ]);
    (any::<prop::sample::Index>(), 0_usize..12, pieces.prop_map(<[u8]>::to_vec))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_file_never_panics(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..6),
        as_csv in any::<bool>(),
    ) {
        let corpus = CORPUS.get_or_init(corpus);
        let mut text = corpus[which.index(corpus.len())].clone();
        for (at, gone, come) in changes {
            let start = at.index(text.len() + 1);
            let end = (start + gone).min(text.len());
            text.splice(start..end, come);
        }
        let root = machine();
        let file = if as_csv {
            write(root.path(), "points.csv", &text);
            write(root.path(), "c.toml", "[modbus.m]\nline = \"tcp://h\"\nunit_id = 1\npoints = \"points.csv\"\n")
        } else {
            write(root.path(), "c.toml", &text)
        };
        match load(root.path(), Some(file)) {
            Ok(loaded) => prop_assert!(!loaded.effective.contains('\0')),
            Err(problems) => {
                let shown = render(&problems, &[]);
                prop_assert!(!problems.is_empty());
                prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{:?}", shown);
            }
        }
    }
}
