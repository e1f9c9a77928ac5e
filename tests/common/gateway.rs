//! The gateway itself: the built program with a configuration and a state directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::process::{Process, signal_to};
use super::{PATIENCE, port, wait_until};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

/// The id of every gateway under test, and so the middle of its own topics.
pub const ID: &str = "hall-3";

/// One gateway, which keeps its port and its state over stops and kills.
pub struct Gateway {
    folder: PathBuf,
    /// Where local clients connect.
    pub port: u16,
    tables: String,
    clock: String,
    tracer: Vec<String>,
    launcher: Vec<String>,
    program: PathBuf,
    process: Option<Process>,
    earlier_log: Vec<String>,
}

/// A folder for one test; its processes put their files there.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("tidegate-test-").tempdir().unwrap()
}

impl Gateway {
    /// A gateway that is not started yet; `tables` is added to its id, state directory and listener.
    pub fn prepared(folder: &Path, tables: &str) -> Gateway {
        Gateway::named("gateway", folder, tables)
    }

    /// One of several gateways in one folder.
    pub fn named(name: &str, folder: &Path, tables: &str) -> Gateway {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).unwrap();
        Gateway {
            folder,
            port: port::free(),
            tables: tables.to_owned(),
            clock: "clock = \"trust\"".to_owned(),
            tracer: Vec::new(),
            launcher: Vec::new(),
            program: PathBuf::from(PROGRAM),
            process: None,
            earlier_log: Vec::new(),
        }
    }

    /// A running gateway.
    pub fn started(folder: &Path, tables: &str) -> Gateway {
        let mut gateway = Gateway::prepared(folder, tables);
        gateway.start();
        gateway
    }

    /// Runs it under another program from the next start on, for example strace.
    pub fn set_tracer(&mut self, tracer: &[&str]) {
        self.tracer = tracer.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Starts it by a program that becomes it, as a sandbox does, from the next start on.
    pub fn set_launcher(&mut self, launcher: &[&str]) {
        self.launcher = launcher.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Runs another build of it from the next start on; what is asked of it is asked by the one under test.
    pub fn set_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// What it is told about its clock from the next start on: lines of `[gateway]`.
    pub fn set_clock(&mut self, lines: &str) {
        lines.clone_into(&mut self.clock);
    }

    /// Changes its configuration from the next start on.
    pub fn set_tables(&mut self, tables: &str) {
        self.tables = tables.to_owned();
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.folder.join("tidegate.toml")
    }

    /// Starts it and waits until this very process listens for local clients.
    pub fn start(&mut self) {
        for attempt in 1.. {
            match self.try_start(&[]) {
                Ok(()) => return,
                // Somebody took the port after we had looked.
                Err(said) if attempt < 4 && said.contains("in use") => self.port = port::free(),
                Err(said) => panic!("the gateway did not start:\n{said}"),
            }
        }
    }

    /// `start` with some environment; no second attempt.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        self.try_start(environment).unwrap_or_else(|said| panic!("the gateway did not start:\n{said}"));
    }

    /// Starts it and does not wait for anything: for a fault while it starts.
    pub fn spawn(&mut self) {
        self.process = Some(self.spawned(&[]));
    }

    fn try_start(&mut self, environment: &[(&str, &str)]) -> Result<(), String> {
        let mut process = self.spawned(environment);
        let is_traced = !self.tracer.is_empty();
        let port = self.port;
        let ready = wait_until(PATIENCE, "the gateway listens for local clients", || {
            if let Some(status) = process.status() {
                return Ok(Err(format!("it ended with {status}\n{}", process.transcript())));
            }
            let id = if is_traced { process.first_child_id() } else { Some(process.id()) };
            match id.is_some_and(|id| port::is_served_by(port, id)) {
                true => Ok(Ok(())),
                false => Err("it does not yet".to_owned()),
            }
        });
        ready?;
        self.process = Some(process);
        Ok(())
    }

    fn spawned(&self, environment: &[(&str, &str)]) -> Process {
        assert!(self.process.is_none(), "the gateway runs already");
        self.write_config();
        let mut words = [self.tracer.clone(), self.launcher.clone()].concat();
        words.push(self.program.display().to_string());
        words.extend(["run".to_owned(), "--config".to_owned(), self.config_path().display().to_string()]);
        let program = words.remove(0);
        Process::start_with("gateway", program, &words, environment)
    }

    /// Its configuration, for a command that is asked about a gateway that was never started.
    pub fn write_config(&self) {
        fs::create_dir_all(self.state_dir()).unwrap();
        let text = format!(
            "[gateway]\nid = \"{ID}\"\nstate_dir = \"{}\"\n{}\n\n[broker.listener.local]\nbind = \"127.0.0.1:{}\"\n\n{}",
            self.state_dir().display(),
            self.clock,
            self.port,
            self.tables
        );
        fs::write(self.config_path(), text).unwrap();
    }

    /// Makes a backup of it and lays that out as the state of `other`, which does not run yet.
    #[track_caller]
    pub fn restored_as(&self, other: &Gateway) {
        let text = |path: PathBuf| path.into_os_string().into_string().unwrap();
        let (backup, config) = (text(self.folder.join("backup.tar")), text(self.config_path()));
        let state_dir = text(other.state_dir());
        fs::create_dir_all(&state_dir).unwrap();
        let restore = ["restore", &backup, "--no-config", "--state-dir", &state_dir, "--yes"];
        for words in [&["backup", &backup, "--config", &config][..], &restore] {
            let output = Command::new(PROGRAM).args(words).output().unwrap();
            assert!(output.status.success(), "{words:?}: {output:?}");
        }
    }

    /// SIGKILL: no destructor, no checkpoint, no goodbye.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the gateway runs");
        match self.tracer.is_empty() {
            true => process.kill(),
            false => {
                signal_to(process.first_child_id().expect("the traced gateway runs"), Signal::KILL);
                process.wait(PATIENCE);
            }
        }
        self.keep_log(&process);
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the gateway runs");
        match self.tracer.is_empty() {
            true => process.signal(Signal::TERM),
            false => signal_to(process.first_child_id().expect("the traced gateway runs"), Signal::TERM),
        }
        let status = process.wait(PATIENCE);
        self.keep_log(&process);
        status
    }

    /// Stops it in order and expects it to say so.
    #[track_caller]
    pub fn stop(&mut self) {
        let status = self.terminate();
        assert_eq!(status.code(), Some(0), "an ordered stop exits 0, not {status}:\n{}", self.log().join("\n"));
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().expect("the gateway was started").status()
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the gateway was started");
        let status = process.wait(PATIENCE);
        self.keep_log(&process);
        status
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the gateway runs").id()
    }

    /// The process id of the program itself, also under a tracer; nothing while the tracer has not started it yet.
    pub fn program_id(&self) -> Option<u32> {
        let process = self.process.as_ref().expect("the gateway runs");
        if self.tracer.is_empty() { Some(process.id()) } else { process.first_child_id() }
    }

    /// What it wrote to standard error, over all its starts.
    pub fn log(&self) -> Vec<String> {
        let now = self.process.as_ref().map(Process::stderr).unwrap_or_default();
        self.earlier_log.iter().cloned().chain(now).collect()
    }

    /// `tidegate status --json`.
    pub fn status(&self) -> Result<Value, String> {
        let output = Command::new(PROGRAM)
            .args(["status", "--json", "--config"])
            .arg(self.config_path())
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("status ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("{error} in {:?}", output.stdout))
    }

    /// Waits until `tidegate status --json` shows what `look` wants.
    #[track_caller]
    pub fn wait_for_status<T>(&self, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        let what = format!("status shows that {what}");
        wait_until(PATIENCE, &what, || {
            let status = self.status()?;
            look(&status).ok_or_else(|| status.to_string())
        })
    }

    /// Waits until the uplink `cloud` is connected.
    #[track_caller]
    pub fn wait_until_connected(&self) {
        self.wait_for_status("the uplink is connected", |status| {
            (status["uplinks"]["cloud"]["state"] == "connected").then_some(())
        });
    }

    /// Waits until nothing waits for the uplink `cloud` any more.
    #[track_caller]
    pub fn wait_until_drained(&self) {
        self.wait_for_status("nothing waits for the cloud", |status| {
            (status["uplinks"]["cloud"]["waiting"] == 0).then_some(())
        });
    }

    fn keep_log(&mut self, process: &Process) {
        self.earlier_log.extend(process.stderr());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.earlier_log.is_empty() {
            let from = self.earlier_log.len().saturating_sub(100);
            eprintln!("--- gateway, earlier starts ---\n{}", self.earlier_log[from..].join("\n"));
        }
    }
}

/// An uplink `cloud` to `url` that tries again soon, so that tests are quick; `more` is added to its table.
pub fn uplink(url: &str, more: &str) -> String {
    format!("[uplink.cloud]\nurl = \"{url}\"\nreconnect = {{ first = \"200ms\", max = \"1s\" }}\n{more}\n")
}

/// Everything under `plant/` goes to the cloud under `factory7/`, at the QoS it was published with.
pub const FORWARD_PLANT: &str = "[[uplink.cloud.forward]]\nfilter = \"plant/#\"\ntopic = \"factory7/{topic}\"\n";

/// How long an ordered stop may take at most, deadlines of all steps together.
pub const STOP_PATIENCE: Duration = Duration::from_secs(30);
