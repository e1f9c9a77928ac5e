//! What the benches share: a program that is measured, as a process that is killed with its owner, and small things.

#![allow(dead_code, reason = "each bench uses its own part of this")]

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A start, a stop, and a connection of the bridge or gateway to the cloud.
pub const START_TIMEOUT: Duration = Duration::from_secs(20);

/// `USER_HZ`: 100 on every Linux.
const TICKS_PER_S: f64 = 100.0;

/// The gateway, to be given its configuration file.
pub fn gateway() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["run", "--config"]);
    command
}

/// Mosquitto, to be given its configuration file.
pub fn mosquitto(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("-c");
    command
}

/// A process that is killed with its owner.
pub struct Running {
    child: Child,
}

/// What the kernel says of a process.
#[derive(Clone, Copy, Default)]
pub struct Use {
    pub cpu_s: f64,
    pub written_bytes: u64,
    pub rss_bytes: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Dead already is as good.
        let _dead = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Running {
    /// Starts it with this configuration in `dir`, and waits until it listens.
    pub fn start(mut command: Command, configuration: &str, dir: &Path, broker: SocketAddr) -> io::Result<Running> {
        let file = dir.join("configuration");
        fs::write(&file, configuration)?;
        let log = File::create(dir.join("log"))?;
        let child = command.arg(&file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut running = Running { child };
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(broker).is_err() {
            if running.child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
                return Err(other(format!("{:?} does not listen; it said:\n{log}", command.get_program())));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(running)
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) -> io::Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let id = id.ok_or_else(|| other("a process without an id".to_owned()))?;
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + START_TIMEOUT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(other(format!("it did not stop in {START_TIMEOUT:?}")));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn usage(&self) -> io::Result<Use> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let stat = fs::read_to_string(process.join("stat"))?;
        // The name in brackets may contain spaces; utime and stime are fields 14 and 15 of all (proc_pid_stat(5)).
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        let ticks: u32 = fields.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<u32>().ok()).sum();
        let field = |file: &str, name: &str| -> io::Result<u64> {
            let text = fs::read_to_string(process.join(file))?;
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
            line.ok_or_else(|| other(format!("/proc/…/{file} has no {name}")))
        };
        Ok(Use {
            cpu_s: f64::from(ticks) / TICKS_PER_S,
            written_bytes: field("io", "write_bytes:")?,
            rss_bytes: field("status", "VmRSS:")? * 1024,
        })
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    if values.len().is_multiple_of(2) && middle > 0 { (at(middle - 1) + at(middle)) / 2.0 } else { at(middle) }
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// An address that nothing listens on at the moment.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(loopback(0))?.local_addr()
}

pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

pub fn other(text: String) -> io::Error {
    io::Error::other(text)
}

#[expect(clippy::cast_precision_loss, reason = "figures of a few digits are printed")]
pub fn as_f64(number: u64) -> f64 {
    number as f64
}
