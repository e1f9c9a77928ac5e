//! What 10,000 points a second cost from the wire to the queue: the gateway reads simulated units over Modbus TCP, and its
//! processor time is what is measured.
//!
//! ```text
//! cargo bench --bench points                 10 s for each way
//! cargo bench --bench points -- --seconds 30
//! ```
//!
//! Eight lines with one unit each, 125 holding registers of a unit, ten times a second. *stored*: each value is a reading that
//! goes to the queue, on disk, for a cloud that is away. *on change*: values that stay the same, of which none is told. The
//! units are a process of their own (`tidegate simulate modbus`), whose time is not counted; loopback only.
#![allow(clippy::disallowed_methods, reason = "a harness measures by the system's clock")]

mod program;

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use program::{Running, START_TIMEOUT, as_f64, free_address, gateway, other};

const LINES: u16 = 8;
const REGISTERS: u16 = 125;
const POLLS_PER_S: u16 = 10;

fn main() -> ExitCode {
    match harness() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("points: {error}");
            ExitCode::FAILURE
        }
    }
}

fn harness() -> io::Result<()> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let seconds = match (words.next().as_deref(), words.next().and_then(|word| word.parse::<u64>().ok())) {
        (None, _) => 10,
        (Some("--seconds"), Some(seconds)) => seconds.max(1),
        _ => return Err(other("there is only --seconds N".to_owned())),
    };
    if cfg!(debug_assertions) {
        println!("Built without optimisation: these figures show that the harness works, no more.");
    }
    for (name, report) in [("stored", ""), ("on change", "report = { deadband = 0.5, heartbeat = \"1 day\" }\n")] {
        measure(name, report, Duration::from_secs(seconds))?;
    }
    Ok(())
}

fn measure(name: &str, report: &str, span: Duration) -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let broker = free_address()?;
    let mut units = Vec::new();
    let mut text = format!(
        "[gateway]\nid = \"bench\"\nstate_dir = \"{}\"\nclock = \"trust\"\n[broker.listener.local]\nbind = \"{broker}\"\n\
         [uplink.cloud]\nurl = \"mqtt://{}\"\n[model.m]\npoll = \"{} ms\"\n{report}",
        folder.path().join("state").display(),
        free_address()?,
        1000 / POLLS_PER_S
    );
    text.push_str("[model.m.point]\n");
    for register in 0..REGISTERS {
        text.push_str(&format!("p{register} = {{ address = \"holding:{register}\", type = \"u16\" }}\n"));
    }
    for line in 0..LINES {
        let address = free_address()?;
        units.push(simulated(address, folder.path())?);
        text.push_str(&format!("[modbus.d{line}]\nline = \"tcp://{address}\"\nunit_id = 1\nmodel = \"m\"\n"));
    }
    fs::create_dir_all(folder.path().join("state"))?;
    let running = Running::start(gateway(), &text, folder.path(), broker)?;
    let exchanges = |what: &str| -> io::Result<u64> {
        let status = status(folder.path())?;
        let devices = status["devices"].as_object().cloned().unwrap_or_default();
        Ok(devices.values().filter_map(|device| device[what].as_u64()).sum())
    };
    let deadline = Instant::now() + START_TIMEOUT;
    while exchanges("exchanges")? < u64::from(LINES * 20) {
        if Instant::now() > deadline {
            return Err(other("the units are not read".to_owned()));
        }
        sleep(Duration::from_millis(200));
    }
    let (before, read, failed, stored) =
        (running.usage()?, exchanges("exchanges")?, exchanges("failures")?, messages(folder.path())?);
    let began = Instant::now();
    sleep(span);
    let (after, read_after, failed_after, stored_after) =
        (running.usage()?, exchanges("exchanges")?, exchanges("failures")?, messages(folder.path())?);
    let seconds = began.elapsed().as_secs_f64();
    let cpu_s = after.cpu_s - before.cpu_s;
    let points = as_f64((read_after - read) * u64::from(REGISTERS));
    println!(
        "{name}: {:.0} points/s, {:.0} readings/s to the queue, {:.1} % of a core, {:.2} µs a point; {} failed; {} MB",
        points / seconds,
        as_f64(stored_after.saturating_sub(stored)) / seconds,
        cpu_s / seconds * 100.0,
        cpu_s * 1e6 / points.max(1.0),
        failed_after - failed,
        after.rss_bytes / 1_000_000
    );
    running.stop()
}

/// A unit that is ended with its owner.
struct Unit(Child);

impl Drop for Unit {
    fn drop(&mut self) {
        // Dead already is as good.
        let _dead = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn simulated(address: SocketAddr, folder: &Path) -> io::Result<Unit> {
    let log = File::create(folder.join(format!("unit-{}", address.port())))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["simulate", "modbus", "--units", "1", "--listen", &address.to_string()]);
    Ok(Unit(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?))
}

fn status(folder: &Path) -> io::Result<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = command.args(["status", "--json", "--config"]).arg(folder.join("configuration")).output()?;
    serde_json::from_slice(&output.stdout)
        .map_err(|error| other(format!("status: {error}; {}", String::from_utf8_lossy(&output.stderr))))
}

fn messages(folder: &Path) -> io::Result<u64> {
    Ok(status(folder)?["queue"]["messages"].as_u64().unwrap_or_default())
}
