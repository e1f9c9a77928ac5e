//! Does every command end with its own exit status, and does it say what to do next?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;

use common::certificates::Certificates;
use common::gateway::{Gateway, PROGRAM, folder};
use common::process::Process;
use common::{PATIENCE, turn, wait_for};
use rustix::process::Signal;

/// What a command that ends by itself has said.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

#[track_caller]
fn ended(arguments: &[&str]) -> Ended {
    let mut process = Process::start("command", PROGRAM, arguments);
    let code = process.wait(PATIENCE).code();
    Ended { code, stdout: process.stdout().join("\n"), stderr: process.stderr().join("\n") }
}

#[track_caller]
fn expect(ended: &Ended, code: i32, said: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}\n{}", ended.stdout, ended.stderr);
    for part in said {
        assert!(ended.stderr.contains(part), "{part:?} is missing in:\n{}", ended.stderr);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn config(folder: &Path, state_dir: &Path, port: u16) -> String {
    let file = folder.join("second.toml");
    let body = format!(
        "[gateway]\nid = \"second\"\nstate_dir = \"{}\"\nclock = \"trust\"\n[broker.listener.local]\nbind = \"127.0.0.1:{port}\"\n",
        state_dir.display()
    );
    fs::write(&file, body).unwrap();
    text(&file).to_owned()
}

#[test]
fn a_second_gateway_on_one_state_directory_ends_with_75_and_names_the_first() {
    let _turn = turn();
    let folder = folder();
    let gateway = Gateway::started(folder.path(), "");
    let second = config(folder.path(), &gateway.state_dir(), common::port::free());
    let ended = ended(&["run", "--config", &second]);
    let help = format!("help: another tidegate runs: tidegate status --state-dir {}", gateway.state_dir().display());
    expect(&ended, 75, &["another tidegate uses the state directory", &help]);
}

#[test]
fn a_port_that_is_taken_ends_with_75_and_says_by_whom_it_often_is() {
    let _turn = turn();
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = config(folder.path(), &folder.path().join("state"), taken.local_addr().unwrap().port());
    let ended = ended(&["run", "--config", &second]);
    let help = "help: another program listens there, often mosquitto: stop it, or write another bind under [broker.listener.local]";
    expect(&ended, 75, &["in use", help]);
}

#[test]
fn tls_files_that_can_never_work_end_check_and_run_with_78() {
    let folder = folder();
    let (ours, others) = (folder.path().join("ours"), folder.path().join("others"));
    let (ours, others) = (Certificates::make(&ours, "hall-3"), Certificates::make(&others, "hall-4"));
    let file = config(folder.path(), &folder.path().join("state"), common::port::free());
    let rest = fs::read_to_string(&file).unwrap();
    for (ca, cert, key, said) in [
        (&ours.client_key, &ours.client_cert, &ours.client_key, "client.key holds no certificate"),
        (&ours.ca, &ours.client_key, &ours.client_key, "client.key holds no certificate"),
        (&ours.ca, &ours.client_cert, &others.client_key, "the key does not belong to the certificate"),
    ] {
        let uplink = format!(
            "[uplink.cloud]\nurl = \"mqtts://localhost\"\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
            ca.display(),
            cert.display(),
            key.display()
        );
        fs::write(&file, format!("{rest}{uplink}")).unwrap();
        for command in ["check", "run"] {
            expect(&ended(&[command, "--config", &file]), 78, &["second.toml:", said, "help: ", "1 problem"]);
        }
    }
    assert!(!folder.path().join("state").exists(), "nothing was started");
}

#[test]
fn a_machine_without_root_certificates_is_told_before_the_gateway_starts() {
    let folder = folder();
    let file = config(folder.path(), &folder.path().join("state"), common::port::free());
    let rest = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{rest}[uplink.cloud]\nurl = \"mqtts://localhost\"\n")).unwrap();
    let none = folder.path().join("no-roots.pem");
    fs::write(&none, "").unwrap();
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let environment = [("SSL_CERT_FILE", text(&none)), ("SSL_CERT_DIR", text(&empty))];
    let mut check = Process::start_with("check", PROGRAM, &["check", "--config", &file], &environment);
    assert_eq!(check.wait(PATIENCE).code(), Some(78));
    let said = check.stderr().join("\n");
    for part in
        ["second.toml:7:", "no root certificates on this machine", "help: apt-get install ca-certificates, or set"]
    {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
}

#[test]
fn a_gateway_that_trusts_nobody_about_the_time_says_so_once() {
    let _turn = turn();
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return;
    }
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = config(folder.path(), &folder.path().join("state"), taken.local_addr().unwrap().port());
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("\"trust\"", "\"auto\"")).unwrap();
    let ended = ended(&["run", "--config", &file]);
    expect(&ended, 75, &["The time of day is not confirmed by a time service; readings say clock \"unset\""]);
    assert_eq!(ended.stderr.matches("The time of day").count(), 1, "{}", ended.stderr);
}

#[test]
fn examples_are_printed_and_an_unknown_one_is_wrong_usage() {
    let list = ended(&["example"]);
    expect(&list, 0, &[]);
    let names: Vec<&str> = list.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() >= 5 && names[0] == "first-steps", "{names:?}");
    for name in &names {
        let one = ended(&["example", name]);
        expect(&one, 0, &[]);
        assert!(one.stdout.lines().count() > 10, "{name}: {}", one.stdout);
    }
    expect(&ended(&["example", "seven"]), 64, &["there is no example \"seven\"; there are: first-steps, "]);
}

#[test]
fn the_first_steps_pass_check() {
    let folder = folder();
    let file = folder.path().join("first-steps.toml");
    fs::write(&file, ended(&["example", "first-steps"]).stdout).unwrap();
    let checked = ended(&["check", "--config", text(&file)]);
    expect(&checked, 0, &[]);
    assert!(checked.stdout.starts_with("The configuration is valid.\nline      tcp://127.0.0.1:1502: 1 device, "));
    assert_eq!(checked.stderr, "");
}

#[test]
fn wrong_usage_ends_with_64() {
    for arguments in [
        &["fly"][..],
        &[],
        &["run", "--fast"],
        &["status", "--timeout", "5s"],
        &["status", "--wait", "rich"],
        &["simulate", "modbus", "--units", "0"],
        &["simulate", "modbus", "--link", "/tmp/x"],
    ] {
        assert_eq!(ended(arguments).code, Some(64), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"]] {
        assert_eq!(ended(arguments).code, Some(0), "{arguments:?}");
    }
}

#[test]
fn status_without_a_gateway_ends_with_75_and_says_where_to_look() {
    let folder = folder();
    let ended = ended(&["status", "--state-dir", text(folder.path())]);
    expect(&ended, 75, &["no gateway answers at", "help: is the gateway running"]);
}

/// The address that a simulated Modbus server has printed.
fn line_of(server: &mut Process) -> String {
    let line = server.wait_for_line(PATIENCE, "where it serves", |line| line.contains("tcp://"));
    let address = line.split("tcp://").nth(1).unwrap().split(';').next().unwrap();
    format!("tcp://{address}")
}

fn modbus(name: &str, line: &str, unit_id: u8) -> String {
    format!(
        "[modbus.{name}]\nline = \"{line}\"\nunit_id = {unit_id}\npoll = \"100ms\"\ntimeout = \"200ms\"\n\
         point.seconds = {{ address = \"holding:0\", type = \"u16\" }}\n"
    )
}

#[test]
fn status_waits_until_the_gateway_is_healthy_and_names_a_dead_unit() {
    let _turn = turn();
    let folder = folder();
    let arguments = ["simulate", "modbus", "--listen", "127.0.0.1:0", "--units", "1-2", "--dead", "9"];
    let mut server = Process::start("simulate", PROGRAM, &arguments);
    let line = line_of(&mut server);
    let mut gateway = Gateway::started(folder.path(), &(modbus("one", &line, 1) + &modbus("two", &line, 2)));
    let path = gateway.config_path();
    let status = ["status", "--config", text(&path), "--wait", "healthy", "--timeout"];
    expect(&ended(&[&status[..], &["20s"]].concat()), 0, &[]);
    gateway.wait_for_status("the interval is known, which takes two polls", |status| {
        status["devices"]["one"]["interval_s"].as_f64()
    });
    let shown = ended(&["status", "--config", text(&path)]);
    expect(&shown, 0, &[]);
    assert!(shown.stdout.contains("device  one: good, every "), "{}", shown.stdout);
    assert!(!shown.stderr.contains("warning"), "status is not check: {}", shown.stderr);
    gateway.stop();

    gateway.set_tables(&(modbus("one", &line, 1) + &modbus("nine", &line, 9)));
    gateway.start();
    gateway.wait_for_status("the dead unit is known to be dead", |status| {
        (status["devices"]["nine"]["state"] == "dead" && status["devices"]["one"]["state"] == "good").then_some(())
    });
    expect(&ended(&[&status[..], &["2s"]].concat()), 75, &["not healthy within 2s", "device nine is dead"]);
    let shown = ended(&["status", "--config", text(&path)]);
    assert!(shown.stdout.contains("device  nine: never answered: no answer within 200 ms"), "{}", shown.stdout);
    gateway.stop();
    server.signal(Signal::INT);
    assert_eq!(server.wait(PATIENCE).code(), Some(0));
}

#[test]
fn a_simulated_scale_can_be_read_at_the_path_that_it_prints_and_at_its_link() {
    let _turn = turn();
    let folder = folder();
    let link = folder.path().join("scale");
    let arguments = ["simulate", "serial", "--pty", "--every", "50ms", "--link", text(&link)];
    let mut scale = Process::start("simulate", PROGRAM, &arguments);
    let said = scale.wait_for_line(PATIENCE, "where it is", |line| line.contains("/dev/pts/"));
    let pty = said.split_whitespace().find(|word| word.starts_with("/dev/")).unwrap().trim_end_matches([',', ';']);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new(pty));
    for path in [Path::new(pty), &link] {
        let lines = BufReader::new(File::open(path).unwrap()).lines();
        let weight = lines.map(|line| line.unwrap()).find(|line| line.starts_with("S ")).unwrap();
        assert!(weight.trim_end().ends_with("kg"), "{weight:?}");
    }
    scale.signal(Signal::TERM);
    assert_eq!(scale.wait(PATIENCE).code(), Some(0));
    assert!(fs::symlink_metadata(&link).is_err(), "the link is removed at the end");

    fs::write(&link, "a file of the owner").unwrap();
    let refused = ended(&arguments);
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("cannot make the link"), "{}", refused.stderr);
    assert_eq!(fs::read_to_string(&link).unwrap(), "a file of the owner");
}

#[test]
fn a_demo_without_end_is_ended_by_an_interrupt_and_leaves_no_child() {
    let _turn = turn();
    let folder = folder();
    let temporary = text(folder.path());
    let mut demo = Process::start_with("demo", PROGRAM, &["demo", "--forever"], &[("TMPDIR", temporary)]);
    wait_for(PATIENCE, "the demo has a child", || demo.first_child_id().is_some());
    demo.signal(Signal::INT);
    assert_eq!(demo.wait(PATIENCE).code(), Some(0));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "it cleans up after itself");
    let left: Vec<String> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|words| String::from_utf8_lossy(&words).replace('\0', " "))
        .filter(|words| words.contains(temporary))
        .collect();
    assert!(left.is_empty(), "still running: {left:?}");
}
