//! Does `cross` itself, version 0.2.5, read `Cross.toml` and start the right container for each target?
//!
//! No container is run: a program that records what it is asked for stands in for the engine. `cross` 0.2.5 misreads
//! what today's rustup prints and would then update the machine's toolchain; so it sees a `rustup` that lists what it
//! wants to see and refuses to change anything, the compiler by its own path, and an empty RUSTUP_HOME.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::common::gateway::folder;
use super::given;

const TARGETS: &[&str] = &[
    "aarch64-unknown-linux-gnu",
    "armv7-unknown-linux-gnueabihf",
    "arm-unknown-linux-gnueabihf",
    "x86_64-unknown-linux-gnu",
];

/// Words of each call in a file of its own, one a line; then the environment that `-e NAME` would hand in.
const ENGINE: &str = r#"#!/bin/sh
case "$1" in
--help) echo "a docker that records"; exit 0 ;;
esac
call=$(ls "$TIDEGATE_RECORD" | wc -l)
for word in "$@"; do printf '%s\n' "$word"; done > "$TIDEGATE_RECORD/$call"
printf '%s\n' "$SOURCE_DATE_EPOCH" > "$TIDEGATE_RECORD/../time-$call"
"#;

const RUSTUP: &str = r#"#!/bin/sh
printf '%s\n' "$*" >> "$TIDEGATE_RECORD/../rustup"
case "$*" in
"toolchain list") echo "$TIDEGATE_TOOLCHAIN" ;;
"target list --toolchain "*) for target in $TIDEGATE_TARGETS; do echo "$target (installed)"; done ;;
"component list --toolchain "*) echo "rust-src (installed)" ;;
*) echo "rustup $*: refused, this is a test" >&2; exit 1 ;;
esac
"#;

/// `cross` with its engine and its `rustup`, in a folder of their own.
struct Cross {
    folder: TempDir,
    sysroot: PathBuf,
}

impl Cross {
    fn prepared() -> Cross {
        let folder = folder();
        for name in ["bin", "calls", "rustup-home"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for (name, text) in [("engine", ENGINE), ("rustup", RUSTUP)] {
            let path = folder.path().join("bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let said = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
        assert!(said.status.success());
        let sysroot = PathBuf::from(String::from_utf8(said.stdout).unwrap().trim());
        Cross { folder, sysroot }
    }

    fn target_dir(&self) -> PathBuf {
        self.folder.path().join("target")
    }

    /// `cross build --release --locked --target <target>` in `project`.
    fn build(&self, project: &Path, target: &str) -> Output {
        let here = self.folder.path();
        let bin = here.join("bin");
        let path = format!("{}:{}/bin:/usr/bin:/bin", bin.display(), self.sysroot.display());
        Command::new(given("TIDEGATE_CROSS"))
            .args(["build", "--release", "--locked", "--target", target])
            .current_dir(project)
            .env("PATH", path)
            .env("CARGO_HOME", cargo_home())
            .env("RUSTUP_HOME", here.join("rustup-home"))
            .env("XARGO_HOME", here.join("xargo"))
            .env("CARGO_TARGET_DIR", self.target_dir())
            .env("CROSS_CONTAINER_ENGINE", bin.join("engine"))
            .env("SOURCE_DATE_EPOCH", "1764115200")
            .env("TIDEGATE_RECORD", here.join("calls"))
            .env("TIDEGATE_TOOLCHAIN", self.sysroot.file_name().unwrap())
            .env("TIDEGATE_TARGETS", TARGETS.join(" "))
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CROSS_CONFIG")
            .output()
            .unwrap()
    }

    /// What the engine was asked for, call by call.
    fn calls(&self) -> Vec<Vec<String>> {
        let mut names: Vec<_> = fs::read_dir(self.folder.path().join("calls")).unwrap().map(Result::unwrap).collect();
        names.sort_by_key(|entry| entry.file_name());
        let words = |path: PathBuf| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
        names.into_iter().map(|entry| words(entry.path())).collect()
    }

    /// That nobody tried to change the machine's toolchain.
    fn expect_only_questions_to_rustup(&self) {
        let asked = fs::read_to_string(self.folder.path().join("rustup")).unwrap();
        let is_question = |line: &str| line.split_whitespace().nth(1) == Some("list");
        assert!(asked.lines().all(is_question), "rustup was asked for more than lists:\n{asked}");
    }
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// What follows each `flag`.
fn values<'a>(call: &'a [String], flag: &str) -> Vec<&'a str> {
    call.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].as_str()).collect()
}

#[test]
fn cross_takes_the_pinned_image_the_environment_and_the_mounts_for_each_target() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    for target in TARGETS {
        let cross = Cross::prepared();
        let output = cross.build(project, target);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{target}: {said}");
        assert!(!said.contains("unused key") && !said.contains("cross.toml"), "{target}: {said}");
        cross.expect_only_questions_to_rustup();

        let calls = cross.calls();
        // No image is built: nothing is installed into the pinned one.
        let [call] = &calls[..] else { panic!("{target}: {calls:?}") };
        assert_eq!(call[0], "run", "{call:?}");
        let image = format!("ghcr.io/cross-rs/{target}:0.2.5");
        let place = call.iter().position(|word| *word == image).unwrap_or_else(|| panic!("no {image} in {call:?}"));
        let build = format!("PATH=$PATH:/rust/bin cargo build --release --locked --target {target}");
        assert_eq!(call[place + 1..], ["sh", "-c", &build], "{call:?}");

        let environment = values(call, "-e");
        for wanted in ["SOURCE_DATE_EPOCH", "CARGO_HOME=/cargo", "CARGO_TARGET_DIR=/target"] {
            assert!(environment.contains(&wanted), "{target}: no {wanted} in {environment:?}");
        }
        let time = fs::read_to_string(cross.folder.path().join("time-0")).unwrap();
        assert_eq!(time.trim(), "1764115200", "what is named is there to be handed in");
        let mounts = values(call, "-v");
        let wanted = [
            format!("{}:/project:z", project.display()),
            format!("{}:/cargo:z", cargo_home().display()),
            format!("{}:/rust:z,ro", cross.sysroot.display()),
            format!("{}:/target:z", cross.target_dir().display()),
        ];
        for wanted in wanted {
            assert!(mounts.contains(&wanted.as_str()), "{target}: no {wanted} in {mounts:?}");
        }
        assert_eq!(values(call, "-w"), ["/project"], "{call:?}");
        println!("{target}: {image}");
    }
}

/// A copy of what `cross` reads of the project, without its code.
fn copy_of_the_project(folder: &Path) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["Cargo.toml", "Cargo.lock", "Cross.toml"] {
        fs::copy(project.join(name), folder.join(name)).unwrap();
    }
    let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
    let paths = manifest.lines().filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'));
    for path in paths.chain(["benches/bridge.rs"]) {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
}

#[test]
fn a_file_called_cross_toml_in_small_letters_is_ignored() {
    let copy = folder();
    copy_of_the_project(copy.path());
    let passes_the_time = |cross: &Cross| {
        let output = cross.build(copy.path(), TARGETS[0]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let calls = cross.calls();
        (values(&calls[0], "-e").contains(&"SOURCE_DATE_EPOCH"), String::from_utf8(output.stderr).unwrap())
    };
    // The control: under its right name the copy is read.
    assert!(passes_the_time(&Cross::prepared()).0);
    fs::rename(copy.path().join("Cross.toml"), copy.path().join("cross.toml")).unwrap();
    let (is_passed, said) = passes_the_time(&Cross::prepared());
    assert!(!is_passed, "cross.toml was read");
    assert!(said.contains("You may want to rename it"), "{said}");
}

#[test]
fn a_cross_that_wants_to_change_the_toolchain_is_refused() {
    // The control of the stand-in for rustup: what `cross` would do to this machine is tried and does not happen.
    let cross = Cross::prepared();
    let list = fs::read_to_string(cross.folder.path().join("bin/rustup")).unwrap();
    let today = list.replace("echo \"$TIDEGATE_TOOLCHAIN\"", "echo \"$TIDEGATE_TOOLCHAIN (active, default)\"");
    fs::write(cross.folder.path().join("bin/rustup"), today).unwrap();
    let output = cross.build(Path::new(env!("CARGO_MANIFEST_DIR")), TARGETS[0]);
    assert!(!output.status.success());
    assert!(cross.calls().is_empty(), "no container was started");
    let asked = fs::read_to_string(cross.folder.path().join("rustup")).unwrap();
    assert!(asked.contains("toolchain add"), "{asked}");
    assert_eq!(fs::read_dir(cross.folder.path().join("rustup-home")).unwrap().count(), 0);
}
