//! Does the unit hold what it promises: its score, the notifications, the watchdog, the reload, the main path under its
//! filter?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::account::assert_none_lost;
use common::certificates::Certificates;
use common::cloud::{Access, Mosquitto};
use common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use common::peers::{ModbusServer, Publisher, Subscriber};
use common::process::{Process, signal_to};
use common::{PATIENCE, turn, wait_until};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::time::Instant;

const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd");
const SANDBOX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/sandbox.py");
const JOURNAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/journal.py");

/// The unit with some drop-ins, as systemd would merge them, and with a program that this machine has.
fn unit(folder: &Path, drop_ins: &[&str]) -> PathBuf {
    let mut text = fs::read_to_string(format!("{UNITS}/tidegate.service")).unwrap();
    for drop_in in drop_ins {
        text += "\n";
        text += &fs::read_to_string(format!("{UNITS}/drop-ins/{drop_in}.conf")).unwrap();
    }
    let path = folder.join("tidegate.service");
    fs::write(&path, text.replace("/usr/bin/tidegate", PROGRAM)).unwrap();
    path
}

fn analyze(arguments: &[&str], unit: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), said)
}

#[test]
fn the_sandbox_is_as_tight_as_is_promised_with_serial_ports_and_without() {
    let folder = folder();
    for (drop_ins, threshold) in [(&[][..], "14"), (&["tcp-only"], "12")] {
        let path = unit(folder.path(), drop_ins);
        let score = |threshold: &str| {
            analyze(&["security", "--offline=yes", "--no-pager", &format!("--threshold={threshold}")], &path)
        };
        let (is_tight, said) = score(threshold);
        assert!(is_tight, "{drop_ins:?} is above {threshold}: {said}");
        assert!(!score("5").0, "the control: nothing with a network is at 0.5");
    }
}

#[test]
fn systemd_finds_no_fault_with_the_unit_and_its_drop_ins() {
    let folder = folder();
    for drop_ins in [&[][..], &["tcp-only"], &["credentials"]] {
        let (is_well, said) = analyze(&["verify"], &unit(folder.path(), drop_ins));
        assert!(is_well && said.trim().is_empty(), "{drop_ins:?}: {said}");
    }
    let path = unit(folder.path(), &[]);
    fs::write(&path, fs::read_to_string(&path).unwrap() + "\n[Service]\nProtectEverything=yes\n").unwrap();
    let (_, said) = analyze(&["verify"], &path);
    assert!(said.contains("ProtectEverything"), "the control: {said}");
}

#[test]
fn the_unit_starts_without_a_network_or_a_time_server_and_stays_down_when_its_configuration_is_wrong() {
    let text = fs::read_to_string(format!("{UNITS}/tidegate.service")).unwrap();
    let has = |line: &str| text.lines().any(|written| written == line);
    for line in [
        "Type=notify",
        "WatchdogSec=120",
        "RestartPreventExitStatus=78",
        "ExecReload=/bin/sh -c \"kill -HUP ${MAINPID}\"",
    ] {
        assert!(has(line), "{line}");
    }
    let orders: String = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    for word in ["ExecStartPre", "network-online", "time-sync.target", "IPAddressDeny", "Requires="] {
        assert!(!orders.contains(word), "{word}");
    }
}

/// Stands in for the service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
}

impl Manager {
    fn new(folder: &Path) -> Manager {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Manager { socket, path, heard: Vec::new() }
    }

    /// All that has come, and how much of it is new.
    fn listen(&mut self) -> usize {
        let before = self.heard.len();
        let mut buffer = [0; 4096];
        while let Ok(count) = self.socket.recv(&mut buffer) {
            self.heard.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
        self.heard.len() - before
    }

    /// Waits for a line among what comes from the place `from` on; gives the place after it.
    #[track_caller]
    fn hear(&mut self, from: usize, what: &str, is_it: impl Fn(&str) -> bool) -> usize {
        wait_until(PATIENCE, &format!("the service manager hears {what}"), || {
            self.listen();
            let place = self.heard.iter().skip(from).position(|text| text.lines().any(&is_it));
            place.map(|place| from + place + 1).ok_or_else(|| format!("{:?}", self.heard))
        })
    }
}

fn start(gateway: &mut Gateway, manager: &Manager, more: &[(&str, &str)]) {
    let socket = [("NOTIFY_SOCKET", manager.path.to_str().unwrap())];
    gateway.start_with(&[&socket[..], more].concat());
}

/// The thread of this name.
fn thread(process: u32, name: &str) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let is_it = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let path = tasks.map(|task| task.unwrap().path()).find(is_it).expect("there is such a thread");
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn the_watchdog_is_fed_while_the_cloud_is_away_starves_when_the_queue_hangs_and_is_fed_when_it_goes_on() {
    let _turn = turn();
    let folder = folder();
    let mut manager = Manager::new(folder.path());
    let nobody = common::port::free();
    let mut gateway = Gateway::prepared(folder.path(), &uplink(&format!("mqtt://127.0.0.1:{nobody}"), ""));
    start(&mut gateway, &manager, &[("WATCHDOG_USEC", "1000000")]);
    let is_fed = |line: &str| line == "WATCHDOG=1";
    let mut place = manager.hear(0, "the status", |line| line.starts_with("STATUS=cloud: not connected"));
    for _ in 0..5 {
        place = manager.hear(place, "the watchdog is fed though the cloud is away", is_fed);
    }

    // Only this thread is traced, and rests in each call for longer than the test lasts.
    let queue = thread(gateway.id(), "queue").to_string();
    let hang = ["-p", &queue, "-e", "trace=all", "--inject=all:delay_enter=600000000"];
    let mut tracer = Process::start("strace", "strace", &hang);
    let mut silent_since = Instant::now();
    wait_until(PATIENCE, "the watchdog has not been fed for five times its limit", || {
        if manager.listen() > 0 {
            silent_since = Instant::now();
        }
        let silent = silent_since.elapsed();
        if silent > Duration::from_secs(5) { Ok(()) } else { Err(format!("silent for {silent:?}")) }
    });
    let place = manager.heard.len();
    tracer.signal(Signal::TERM);
    manager.hear(place, "the watchdog is fed again", is_fed);
    gateway.stop();
    manager.hear(place, "the stop", |line| line == "STOPPING=1");
}

fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1000).unwrap()
}

#[test]
fn a_reload_brings_forward_rules_into_force_names_what_waits_and_a_wrong_file_changes_nothing() {
    let _turn = turn();
    let folder = folder();
    let mut manager = Manager::new(folder.path());
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["#"]);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + FORWARD_PLANT;
    let mut gateway = Gateway::prepared(folder.path(), &tables);
    start(&mut gateway, &manager, &[]);
    gateway.wait_until_connected();
    let mut place = manager.hear(0, "ready", |line| line == "READY=1");
    let path = gateway.config_path();
    let first = fs::read_to_string(&path).unwrap();
    let reload = |manager: &mut Manager, text: String, place: usize| {
        fs::write(&path, text).unwrap();
        let asked = monotonic_us();
        signal_to(gateway.id(), Signal::HUP);
        let place = manager.hear(place, "the reload", |line| line == "RELOADING=1");
        // Type=notify-reload believes it only with a time in the same datagram that is not before its signal.
        let said = &manager.heard[place - 1];
        let time = said.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect(said);
        let time: u64 = time.parse().unwrap();
        assert!((asked..=monotonic_us()).contains(&time), "{asked} {said}");
        // `systemctl reload` comes back with READY=1, and then the line says already what came of it.
        let place = manager.hear(place, "the line as it is now", |line| line.starts_with("STATUS="));
        let line = manager.heard[place - 1].clone();
        (manager.hear(place, "ready again", |line| line == "READY=1"), line)
    };

    (place, _) = reload(&mut manager, first.replace("factory7/", "factory8/"), place);
    Publisher::started(gateway.port, "client", "plant/press", 10, &["--qos", "1"]).wait_until_done();
    application.wait_for_count("factory8/plant/press", 10);

    let wrong = first.replace("factory7/", "factory9/") + "\n[uplink.cloud]\nurl = 7\n";
    let (place, line) = reload(&mut manager, wrong, place);
    assert!(line.contains("the new configuration is refused"), "{line}");
    Publisher::started(gateway.port, "client", "plant/press", 10, &["--qos", "1"]).wait_until_done();
    application.wait_for_count("factory8/plant/press", 20);
    let log = gateway.log().join("\n");
    assert!(log.contains("The new configuration is refused: nothing was changed"), "{log}");

    let more = "\n[queue]\nmax_bytes = \"48 MiB\"\n";
    let (_, line) = reload(&mut manager, first.replace("factory7/", "factory8/") + more, place);
    assert!(line.contains("STATUS=a restart is needed for queue"), "{line}");
    gateway.stop();
}

/// The first sync of each thread takes longer than the program stays silent while it opens a store.
const STALLING_DISK: [&str; 12] = [
    "strace",
    "-f",
    "--seccomp-bpf",
    "-qq",
    "-o",
    "/dev/null",
    "-e",
    "trace=fdatasync",
    "-e",
    "inject=fdatasync:delay_enter=6000000:when=1",
    "setpriv",
    "--pdeathsig=KILL",
];

#[test]
fn a_start_that_looks_through_a_damaged_store_on_a_slow_disk_asks_for_more_time_until_it_is_ready() {
    let _turn = turn();
    let folder = folder();
    let mut manager = Manager::new(folder.path());
    let nobody = common::port::free();
    let tables = uplink(&format!("mqtt://127.0.0.1:{nobody}"), "") + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    Publisher::started(gateway.port, "client", "plant/press", 50, &["--qos", "1"]).wait_until_done();
    gateway.kill();
    let database = fs::read_dir(gateway.state_dir()).unwrap().map(|entry| entry.unwrap().path());
    let database = database.into_iter().find(|path| path.extension().is_some_and(|end| end == "db")).unwrap();
    let mut bytes = fs::read(&database).unwrap();
    bytes[..1024].fill(0x5a);
    fs::write(&database, bytes).unwrap();

    gateway.set_tracer(&STALLING_DISK);
    start(&mut gateway, &manager, &[]);
    let ready = manager.hear(0, "ready", |line| line == "READY=1");
    let asks = |text: &str| text.lines().any(|line| line == "EXTEND_TIMEOUT_USEC=60000000");
    let until_ready = &manager.heard[..ready];
    assert!(until_ready.iter().any(|text| asks(text)), "{until_ready:?}");
    let says = |text: &str| text.starts_with("STATUS=the store is opened: it has to be looked through");
    assert!(until_ready.iter().any(|text| says(text)), "{until_ready:?}");
    gateway.wait_for_status("the messages are salvaged", |status| {
        (status["queue"]["messages"].as_u64()? == 50).then_some(())
    });
    assert!(fs::read_dir(gateway.state_dir().join("quarantine")).unwrap().next().is_some(), "it was damaged");
    manager.listen();
    assert!(!manager.heard[ready..].iter().any(|text| asks(text)), "{:?}", manager.heard);
    gateway.kill();
}

#[test]
fn a_key_that_systemd_hands_over_opens_the_cloud_and_without_it_the_place_in_the_file_is_named() {
    let _turn = turn();
    let folder = folder();
    let certificates = Certificates::make(&folder.path().join("cloud"), "hall-3");
    let handed_over = folder.path().join("credentials");
    fs::create_dir(&handed_over).unwrap();
    // As LoadCredential of the drop-in names it, and nowhere else.
    fs::rename(&certificates.client_key, handed_over.join("cloud.key")).unwrap();
    let more = format!(
        "ca = \"{}\"\ncert = \"{}\"\nkey = \"${{CREDENTIALS_DIRECTORY}}/cloud.key\"",
        certificates.ca.display(),
        certificates.client_cert.display()
    );
    let drop_in = fs::read_to_string(format!("{UNITS}/drop-ins/credentials.conf")).unwrap();
    assert!(drop_in.contains("\nLoadCredential=cloud.key:"), "{drop_in}");
    assert!(drop_in.contains("key = \"${CREDENTIALS_DIRECTORY}/cloud.key\""), "{drop_in}");
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Tls { certificates, asks_for_client: true });
    cloud.start();
    let url = format!("mqtts://localhost:{}", cloud.tls_port.unwrap());
    let mut gateway = Gateway::prepared(folder.path(), &uplink(&url, &more));

    gateway.spawn();
    assert_eq!(gateway.ended().code(), Some(78));
    let said = gateway.log().join("\n");
    assert!(said.contains("${CREDENTIALS_DIRECTORY} is not set here") && said.contains("tidegate.toml:"), "{said}");

    gateway.start_with(&[("CREDENTIALS_DIRECTORY", handed_over.to_str().unwrap())]);
    gateway.wait_until_connected();
    assert!(cloud.log().contains("u'hall-3'"), "{}", cloud.log());
    gateway.stop();
}

#[test]
fn the_main_path_works_under_the_filter_of_the_unit_over_an_outage_and_a_kill() {
    let _turn = turn();
    let folder = folder();
    let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
    cloud.start();
    let mut application = Subscriber::started(cloud.port, "application", &["#"]);
    let cells = json!([{"table": "holding", "address": 0, "type": "u16", "value": 7}]);
    let server = ModbusServer::on_tcp(&json!({"1": {"cells": cells}}));
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
        + FORWARD_PLANT
        + "[[uplink.cloud.forward]]\nfilter = \"field/#\"\n"
        + &format!(
            "[modbus.meter]\nline = \"tcp://127.0.0.1:{}\"\nunit_id = 1\npoll = \"100ms\"\n[modbus.meter.point]\nlevel = {{ address = \"holding:0\", type = \"u16\" }}\n",
            server.port
        );
    let mut gateway = Gateway::prepared(folder.path(), &tables);
    let path = unit(folder.path(), &[]);
    gateway.set_launcher(&["python3", SANDBOX, path.to_str().unwrap()]);
    gateway.start();
    gateway.wait_until_connected();
    application.wait_for_count("field/meter/level", 5);
    cloud.stop();
    let mut publisher = Publisher::started(gateway.port, "client", "plant/press", 2000, &["--qos", "1"]);
    publisher.wait_for_acknowledged(300);
    gateway.kill();
    let acknowledged = publisher.acknowledged();
    drop(publisher);
    gateway.start();
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
    assert!(status.contains("Seccomp:\t2"), "the gateway itself runs under the filter: {status}");
    cloud.start();
    gateway.wait_until_drained();
    application.wait_for_count("factory7/plant/press", acknowledged.len());
    assert_none_lost("under the filter", &application.numbers_on("factory7/plant/press"), &acknowledged);
    gateway.stop();
}

#[test]
fn a_wrong_configuration_is_told_to_the_service_manager_with_its_place_in_one_line() {
    let folder = folder();
    let mut manager = Manager::new(folder.path());
    let path = folder.path().join("wrong.toml");
    fs::write(&path, "[gateway]\nstate_dri = \"/x\"\n[queue]\nmax_bytes = \"1 GiBB\"\n").unwrap();
    let run = Command::new(PROGRAM)
        .args(["run", "--config"])
        .arg(&path)
        .env("NOTIFY_SOCKET", &manager.path)
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(78));
    manager.hear(0, "why", |line| {
        line.starts_with("STATUS=wrong configuration")
            && line.contains("wrong.toml:2:1: ")
            && line.contains("and 1 more")
    });
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    let last = said.lines().last().unwrap();
    assert!(last.contains("stays down until it is mended") && last.contains("wrong.toml:2:1"), "{said}");
}

#[test]
fn the_journal_can_be_asked_for_the_lines_of_one_uplink() {
    if std::env::var_os("TIDEGATE_TEST_WITHOUT_ROOT").is_some() {
        eprintln!("left out: it needs root");
        return;
    }
    let _turn = turn();
    let folder = folder();
    let out = folder.path().join("journal");
    let config = folder.path().join("tidegate.toml");
    let (state, port, nobody) = (folder.path().join("state"), common::port::free(), common::port::free());
    let text = format!(
        "[gateway]\nid = \"g\"\nclock = \"trust\"\nstate_dir = {state:?}\n\
         [broker.listener.local]\nbind = \"127.0.0.1:{port}\"\n{}",
        uplink(&format!("mqtt://127.0.0.1:{nobody}"), "")
    );
    fs::write(&config, text).unwrap();
    let words = [out.to_str().unwrap(), PROGRAM, "run", "--config", config.to_str().unwrap()];
    let arguments = [&["--mount", "python3", JOURNAL][..], &words].concat();
    let mut gateway = Process::start("gateway", "unshare", &arguments);
    wait_until(PATIENCE, "the journal has a line of the uplink with its fields", || {
        assert!(gateway.status().is_none(), "it ended");
        let records = fs::read_to_string(&out).unwrap_or_default();
        let is_it = |record: &Value| {
            record["UPLINK"] == "cloud" && record["ERROR"].is_string() && record["SYSLOG_IDENTIFIER"] == "tidegate"
        };
        let found = records.lines().filter_map(|line| serde_json::from_str(line).ok()).any(|record| is_it(&record));
        if found { Ok(()) } else { Err(records) }
    });
}
