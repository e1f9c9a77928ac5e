//! Does the Yocto layer fit the program that it builds, and is it written as layers are?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use tidegate::config::{self, LoadRequest, render};

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn layer() -> PathBuf {
    project().join("yocto/meta-tidegate")
}

fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The recipe, whose name says the version that it builds.
fn recipe() -> String {
    text(layer().join(format!("recipes-core/tidegate/tidegate_{}.bb", env!("CARGO_PKG_VERSION"))))
}

/// A copy of the layer, with the list of crates generated into it as a user does.
fn copy_with_crates() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(project().join("yocto")).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    let crates = folder.path().join("yocto/meta-tidegate/recipes-core/tidegate/tidegate-crates.inc");
    let lock = project().join("Cargo.lock");
    let made =
        Command::new("python3").arg(project().join("yocto/update-crates")).args([&lock, &crates]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    folder
}

fn files_below(folder: &Path, is_wanted: impl Fn(&Path) -> bool + Copy) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path, is_wanted)),
            false if is_wanted(&path) => found.push(path),
            false => {}
        }
    }
    found
}

fn lint(yocto: &Path) -> Output {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project().join("target"), PathBuf::from);
    let linter = target.join("venv/bin/oelint-adv");
    assert!(linter.exists(), "{} is missing: ./test.sh installs it", linter.display());
    let files = files_below(yocto, |path| {
        path.extension().is_some_and(|kind| kind == "bb" || kind == "bbappend") || path.ends_with("conf/layer.conf")
    });
    assert!(files.len() >= 5, "{files:?}");
    // There is no public bug tracker, and nothing of this is a tool for the machine that builds.
    Command::new(linter)
        .args(["--release=wrynose", "--quiet", "--suppress", "oelint.var.suggestedvar.BUGTRACKER"])
        .args(["--suppress", "oelint.var.bbclassextend"])
        .arg(format!("--constantmods=+{}", project().join("yocto/oelint.json").display()))
        .args(files)
        .output()
        .unwrap()
}

#[test]
fn the_layer_is_without_a_finding_of_the_style_guide() {
    let folder = copy_with_crates();
    let yocto = folder.path().join("yocto");
    let output = lint(&yocto);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    // The control: a recipe that nobody should write is found.
    let bad = "SUMMARY = \"x\"\nSRCREV = \"${AUTOREV}\"\n";
    fs::write(yocto.join("meta-tidegate/recipes-core/tidegate/bad_1.0.bb"), bad).unwrap();
    let output = lint(&yocto);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("bad_1.0.bb"));
}

#[test]
fn the_generated_list_names_every_crate_of_the_lock_with_its_checksum() {
    let folder = copy_with_crates();
    let list = text(folder.path().join("yocto/meta-tidegate/recipes-core/tidegate/tidegate-crates.inc"));
    let lock: toml::Table = text(project().join("Cargo.lock")).parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let mut expected = BTreeMap::new();
    for package in packages.iter().filter(|package| package.get("source").is_some()) {
        let of = |key: &str| package[key].as_str().unwrap().to_owned();
        expected.insert(format!("{}/{}", of("name"), of("version")), of("checksum"));
    }
    assert!(expected.len() > 200);
    for (name, checksum) in &expected {
        assert!(list.contains(&format!("/{name} \\\n")), "{name} is not in the list");
        let sum = format!("SRC_URI[{}.sha256sum] = \"{checksum}\"\n", name.replace('/', "-"));
        assert!(list.contains(&sum), "{name} has not its checksum");
    }
    assert_eq!(list.matches("crate://").count(), expected.len());
}

#[test]
fn the_recipe_has_the_version_the_licences_and_the_user_of_the_program() {
    let recipe = recipe();
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let output = Command::new("md5sum").arg(project().join(licence)).output().unwrap();
        let sum = String::from_utf8(output.stdout).unwrap();
        let sum = sum.split_whitespace().next().unwrap();
        assert!(recipe.contains(&format!("file://{licence};md5={sum}")), "{licence} has the sum {sum}");
    }
    let unit = text(project().join("systemd/tidegate.service"));
    assert!(unit.contains("User=tidegate") && recipe.contains("--gid tidegate --groups dialout tidegate"));
    for line in recipe.lines().filter(|line| line.trim_start().starts_with("install ")) {
        for word in line.split_whitespace().filter_map(|word| word.strip_prefix("${S}/")) {
            assert!(project().join(word).exists(), "the recipe installs {word}, which is not there");
        }
    }
}

#[test]
fn the_configuration_of_a_fleet_makes_each_board_its_own_client_with_its_own_key() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let credentials = root.join("credentials");
    let fleet = layer().join("recipes-core/tidegate-fleet/tidegate-fleet/50-fleet.toml");
    let unit = text(layer().join("recipes-core/tidegate-appliance/tidegate-appliance/50-factory.conf"));
    assert!(unit.contains("LoadCredential=factory:/factory\n"), "systemd puts this name before each file's: {unit}");
    for folder in ["usr/lib/tidegate", "proc/device-tree", "var/lib/tidegate/conf.d", "credentials"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for name in ["factory_device.key", "factory_device.pem"] {
        fs::write(credentials.join(name), "x\n").unwrap();
        fs::set_permissions(credentials.join(name), fs::Permissions::from_mode(0o400)).unwrap();
    }
    fs::write(root.join("usr/lib/tidegate/50-fleet.toml"), text(fleet)).unwrap();
    fs::write(root.join("proc/device-tree/serial-number"), "10000000abcdef01\0").unwrap();
    let own = "[modbus.chiller]\nline = \"tcp://10.0.0.5:502\"\nunit_id = 1\npoint.flow = { address = \"holding:1\", type = \"u16\" }\n";
    fs::write(root.join("var/lib/tidegate/conf.d/meters.toml"), own).unwrap();
    let request = || LoadRequest {
        root: root.to_owned(),
        config: None,
        credentials_dir: Some(credentials.clone()),
        kept_id: None,
    };

    let loaded = config::load(&request()).unwrap_or_else(|problems| panic!("{}", render(&problems, &[])));
    assert_eq!(render(&[], &loaded.warnings), "");
    assert_eq!(loaded.config.uplinks["cloud"].client_id, "10000000abcdef01");
    assert!(loaded.config.modbus.contains_key("chiller"), "the board's own layer is read");

    // A board whose factory partition is empty starts nothing, and names what it misses.
    fs::remove_file(credentials.join("factory_device.key")).unwrap();
    let problems = config::load(&request()).expect_err("a key is missing");
    assert!(render(&problems, &[]).contains("factory_device.key"), "{}", render(&problems, &[]));
}

#[test]
fn the_units_of_the_appliance_are_understood_by_systemd() {
    let folder = tempfile::tempdir().unwrap();
    let files = layer().join("recipes-core/tidegate-appliance/tidegate-appliance");
    for unit in ["var-lib-tidegate.mount", "factory.mount"] {
        // The name of a mount unit is its place: systemd refuses another one.
        fs::copy(files.join(unit), folder.path().join(unit)).unwrap();
        let output =
            Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(folder.path().join(unit)).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains(unit), "{unit}: {said}");
    }
    // With the label misspelt the board would wait for a partition that never comes.
    let card = text(layer().join("files/wic/tidegate-sdcard.wks.in"));
    for (unit, label) in [("var-lib-tidegate.mount", "tidegate-data"), ("factory.mount", "factory")] {
        assert!(text(files.join(unit)).contains(&format!("What=/dev/disk/by-label/{label}\n")), "{unit}");
        assert!(card.contains(&format!("--label {label} ")), "{label}");
    }
}

#[test]
fn an_update_is_kept_by_a_question_that_the_program_understands() {
    let rauc = layer().join("dynamic-layers/rauc/recipes-core");
    let unit = text(rauc.join("tidegate-mark-good/tidegate-mark-good/tidegate-mark-good.service"));
    let commands: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("ExecStart=")).collect();
    assert_eq!(commands.len(), 2, "first the question, then the mark: {commands:?}");
    assert!(commands[1].starts_with("/usr/bin/rauc "), "{commands:?}");
    // Of a gateway that is not there: the answer is "try again", and not "wrong usage".
    let folder = tempfile::tempdir().unwrap();
    let words = commands[0].strip_prefix("/usr/bin/tidegate ").expect("the program's own question").split_whitespace();
    let words = words.map(|word| match word {
        "/var/lib/tidegate" => folder.path().display().to_string(),
        "10min" => "1s".to_owned(),
        word => word.to_owned(),
    });
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(words).output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", String::from_utf8_lossy(&output.stderr));

    // What RAUC writes over is a root file system, and neither boot nor data.
    let card = text(layer().join("files/wic/tidegate-ab.wks.in"));
    let parts: Vec<&str> = card.lines().filter(|line| line.starts_with("part ")).collect();
    let slots = text(rauc.join("tidegate-rauc-conf/tidegate-rauc-conf/system.conf"));
    for (number, label) in [(2, "root-a"), (3, "root-b")] {
        assert!(parts[number - 1].contains(&format!("--label {label} ")), "{parts:?}");
        assert!(slots.contains(&format!("device=/dev/mmcblk0p{number}\n")), "{slots}");
    }
    assert_eq!(slots.matches("device=").count(), 2, "{slots}");
}
