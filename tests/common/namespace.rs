//! A network namespace of one test's own, where `nft` may count and drop what it likes and nobody else is concerned.
//!
//! The test runs itself once more in it, by `unshare -n`: as root, or in a user namespace.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Set where the test runs in its namespace.
const INSIDE: &str = "TIDEGATE_TEST_NAMESPACE";

/// Runs the test `name` in a namespace, within its time. True there, where the loopback is up and nothing else is.
#[track_caller]
pub fn is_inside(name: &str) -> bool {
    enter(name, "n")
}

/// The same in a mount namespace as well, where other files may stand in the places of the system's.
#[track_caller]
pub fn is_inside_with_files(name: &str) -> bool {
    enter(name, "nm")
}

/// Puts a text in the place of a file of the system, if that is there; seen in this namespace only.
#[track_caller]
pub fn put(folder: &Path, path: &str, text: &str) {
    if let Ok(path) = fs::canonicalize(path) {
        let file = folder.join(path.file_name().unwrap());
        fs::write(&file, text).unwrap();
        run("mount", &["--bind", file.to_str().unwrap(), path.to_str().unwrap()]);
    }
}

#[track_caller]
fn enter(name: &str, kinds: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return true;
    }
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let status = Command::new("unshare")
        .arg(if is_root { format!("-{kinds}") } else { format!("-r{kinds}") })
        .args(["timeout", "-s", "KILL", "170"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "in its namespace: {status}");
    false
}

/// Runs a program to its end; what it said.
#[track_caller]
pub fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
