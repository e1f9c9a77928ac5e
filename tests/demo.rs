//! Does `tidegate demo` keep the promise on this machine, and does it clean up after itself?
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "a plain test thread measures by the system's clock")]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Three times what it takes on a quiet machine.
const DEADLINE: Duration = Duration::from_secs(120);

struct Ended {
    status: Option<i32>,
    printed: String,
    complained: String,
}

/// Runs the demo with `arguments` in a temporary directory of its own; `meddle` is called until it ends.
fn demo(arguments: &[&str], folder: &Path, mut meddle: impl FnMut(u32)) -> Ended {
    let (out, err) = (folder.join("out"), folder.join("err"));
    let temporary = folder.join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("not done in {DEADLINE:?}:\n{}", read(&out));
        }
        meddle(child.id());
        sleep(Duration::from_millis(50));
    };
    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    let leftover = processes_naming(&temporary);
    assert!(leftover.is_empty(), "still running: {leftover:?}");
    Ended { status: status.code(), printed: read(&out), complained: read(&err) }
}

fn read(path: &Path) -> String {
    let mut text = String::new();
    std::fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
    text
}

/// Command lines of the processes that name `path`.
fn processes_naming(path: &Path) -> Vec<String> {
    let path = path.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(path)).collect()
}

#[test]
fn the_demo_loses_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let ended = demo(&[], folder.path(), |_| {});
    let Ended { status, printed, complained } = &ended;
    assert_eq!(*status, Some(0), "{printed}\n{complained}");
    for expected in [
        "1 line cut without a word",
        "2 killed while the line is down",
        "3 killed while catching up",
        "4 readings, with one unit dead",
        "Counted by the cloud from message ids, not by the gateway.",
        "Nothing that the gateway acknowledged was lost.",
        "tidegate example rs485-aws > tidegate.toml",
    ] {
        assert!(printed.contains(expected), "{expected:?} is missing:\n{printed}");
    }
    let rows: Vec<Vec<&str>> = printed
        .lines()
        .filter(|line| ["1 line", "2 killed", "3 killed"].iter().any(|name| line.starts_with(name)))
        .map(|line| line.split_whitespace().rev().collect())
        .collect();
    assert_eq!(rows.len(), 3, "{printed}");
    for row in rows {
        // From the right: seconds, repeated, lost, received, acknowledged.
        let (lost, received, acknowledged) = (row[2], row[3], row[4]);
        assert_eq!((lost, received), ("0", acknowledged), "{printed}");
        assert_ne!(acknowledged, "0", "{printed}");
    }
    assert_eq!(printed.matches("kill -9").count(), 2, "{printed}");
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut interrupted = false;
    let ended = demo(&[], folder.path(), |process| {
        // As soon as the gateway runs: it is the child that names the temporary directory.
        if !interrupted && !processes_naming(folder.path()).is_empty() {
            let process = rustix::process::Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
            rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
            interrupted = true;
        }
    });
    assert_eq!(ended.status, Some(75), "{}\n{}", ended.printed, ended.complained);
}
