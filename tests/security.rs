//! What an attacker finds: open ports, keys, the binary itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use common::cloud::{Access, Mosquitto};
use common::gateway::{Gateway, PROGRAM, folder, uplink};
use common::process::Process;
use common::{PATIENCE, turn, wait_until};

/// Local addresses, in the kernel's own writing, on which sockets of this process listen.
fn listening(process: u32) -> Vec<String> {
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut found = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap();
        for words in text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>()) {
            // State 0A: LISTEN; UDP has no such state.
            let is_open = words[3] == "0A" || table.starts_with("udp");
            if is_open && sockets.iter().any(|inode| *inode == words[9]) {
                found.push(format!("{table} {}", words[1]));
            }
        }
    }
    found
}

#[test]
fn no_port_is_open_off_loopback() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    cloud.start();
    let mut gateway = Gateway::started(folder.path(), &uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), ""));
    gateway.wait_until_connected();
    let open = listening(gateway.id());
    // 127.0.0.1 in the byte order of the machine.
    assert_eq!(open, [format!("tcp 0100007F:{:04X}", gateway.port)]);
    gateway.stop();
}

#[test]
fn a_plain_listener_off_loopback_and_a_key_that_others_can_read_are_refused() {
    let folder = folder();
    let key = folder.path().join("cloud.key");
    fs::write(&key, "secret").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let path = folder.path().join("tidegate.toml");
    let text = format!(
        "[gateway]\nid = \"g\"\n[broker.listener.plant]\nbind = \"0.0.0.0:1883\"\n\
         [uplink.cloud]\nurl = \"mqtts://localhost\"\nkey = {key:?}\n"
    );
    fs::write(&path, text).unwrap();
    let output = Command::new(PROGRAM).args(["check", "--config"]).arg(&path).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("tidegate.toml:4:"), "{said}");
    assert!(said.contains("others can read or change") && said.contains("chmod"), "{said}");
}

#[test]
fn the_binary_is_position_independent_with_its_relocations_read_only_and_no_executable_stack() {
    let read = |option: &str| {
        let output = Command::new("readelf").args(["--wide", option, PROGRAM]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(read("-h").lines().any(|line| line.contains("Type:") && line.contains("DYN")), "no PIE");
    let segments = read("-l");
    assert!(segments.contains("GNU_RELRO"), "{segments}");
    let stack = segments.lines().find(|line| line.contains("GNU_STACK")).unwrap();
    assert!(stack.contains("RW ") && !stack.contains("RWE"), "{stack}");
    let dynamic = read("-d");
    assert!(dynamic.contains("BIND_NOW") || dynamic.contains("NOW"), "RELRO is not full: {dynamic}");
    assert!(!dynamic.contains("RPATH") && !dynamic.contains("RUNPATH"), "{dynamic}");
}

#[test]
fn unsafe_code_is_forbidden_and_no_hook_of_a_test_is_in_the_program() {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    assert!(manifest.lines().any(|line| line == "unsafe_code = \"forbid\""));
    let program = fs::read(PROGRAM).unwrap();
    let holds = |text: &[u8]| program.windows(text.len()).any(|window| window == text);
    assert!(holds(b"control.sock"), "the control: texts are found");
    assert_eq!(holds(b"test-hook-hang-queue"), cfg!(feature = "test-hooks"));
}

/// Runs the gateway until it has said `what`, and gives its exit status if it has ended.
#[track_caller]
fn says(launcher: &[&str], config: &std::path::Path, what: &[&str]) -> Option<i32> {
    let mut words: Vec<&str> = launcher.to_vec();
    words.extend([PROGRAM, "run", "--config", config.to_str().unwrap()]);
    let mut process = Process::start("gateway", words[0], &words[1..]);
    wait_until(PATIENCE, "the gateway says what to do", || {
        let ended = process.status();
        let said = process.stderr().join("\n");
        match what.iter().all(|word| said.contains(word)) {
            true => Ok(()),
            false if ended.is_some() => panic!("it ended with {ended:?} and said {said}"),
            false => Err(said),
        }
    });
    process.status().and_then(|status| status.code())
}

fn is_root() -> bool {
    let without = std::env::var_os("TIDEGATE_TEST_WITHOUT_ROOT").is_some();
    if without {
        eprintln!("left out: it needs root");
    }
    !without
}

const NOBODY: [&str; 5] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];

#[test]
fn a_state_directory_of_somebody_else_in_memory_or_read_only_is_told_with_what_to_do() {
    if !is_root() {
        return;
    }
    let _turn = turn();
    let folder = folder();
    // Others must be able to reach what they may not use.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let config = folder.path().join("tidegate.toml");
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let port = common::port::free();
    let text = format!(
        "[gateway]\nid = \"g\"\nclock = \"trust\"\nstate_dir = {state:?}\n[broker.listener.local]\nbind = \"127.0.0.1:{port}\"\n"
    );
    fs::write(&config, text).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    says(&NOBODY, &config, &["state/conf.d: cannot list this directory", "chown -R tidegate:"]);
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    says(&NOBODY, &config, &["belongs to user 0 and this is user 65534", "chown -R tidegate:"]);
    // A name space of its own: what is mounted goes with it.
    let mounted = |options: &str| format!("mount -t tmpfs {options} none {} && exec \"$@\"", state.display());
    let unshare = |script: &str, what: &[&str]| {
        says(&["unshare", "--mount", "sh", "-c", script, "sh"], &config, what);
    };
    unshare(&mounted("-o mode=700"), &["The state directory is in memory", "set [gateway] state_dir"]);
    unshare(&mounted("-o ro"), &["is read-only: mount it writable"]);
}

#[test]
fn a_serial_port_without_permission_is_told_with_the_group_to_join() {
    if !is_root() {
        return;
    }
    let _turn = turn();
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let cable = common::peers::Cable::laid(folder.path());
    let tty = fs::canonicalize(&cable.near).unwrap();
    fs::set_permissions(&tty, fs::Permissions::from_mode(0o600)).unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(65534), Some(65534)).unwrap();
    let config = folder.path().join("tidegate.toml");
    let port = common::port::free();
    let text = format!(
        "[gateway]\nid = \"g\"\nclock = \"trust\"\nstate_dir = {state:?}\n[broker.listener.local]\nbind = \"127.0.0.1:{port}\"\n\
         [line.bus]\nport = \"{}\"\n[modbus.meter]\nline = \"bus\"\nunit_id = 1\n\
         [modbus.meter.point]\nlevel = {{ address = \"holding:0\", type = \"u16\" }}\n",
        tty.display()
    );
    fs::write(&config, text).unwrap();
    says(&NOBODY, &config, &["permission denied", "dialout"]);
}
