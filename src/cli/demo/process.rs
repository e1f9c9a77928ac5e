//! Child processes and the temporary directory: both are gone when their owner is, however it ends.
//!
//! A child runs in a process group of its own, so that Ctrl-C in the terminal reaches only the demo, which then ends
//! everything in order.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a child may take to stop in order before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and how many times, a dying child is looked at.
const DEATH_LOOK: Duration = Duration::from_millis(5);
const DEATH_LOOKS: u32 = 400;

/// Bytes of a child's log that are looked at for its last words.
const LOG_TAIL_BYTES: usize = 4096;

/// Why a child could not be started or ended.
#[derive(Debug, Error)]
pub(super) enum ProcessError {
    /// The temporary directory.
    #[error("cannot make the temporary directory {}", path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file in it.
    #[error("cannot write {}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No port.
    #[error("cannot find a free loopback port")]
    Port(#[source] io::Error),
    /// No process.
    #[error("cannot start {name}")]
    Start {
        /// What was to be started.
        name: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process would not end.
    #[error("cannot end {name}")]
    End {
        /// What was to be ended.
        name: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A directory that is removed with all that is in it.
#[derive(Debug)]
pub(super) struct TemporaryDirectory {
    path: PathBuf,
}

impl TemporaryDirectory {
    /// Makes one that only this user can enter.
    pub(super) fn new() -> Result<TemporaryDirectory, ProcessError> {
        let random = getrandom::u32().unwrap_or_default();
        let path = std::env::temp_dir().join(format!("tidegate-demo-{}-{random:08x}", std::process::id()));
        // An existing one is somebody else's, or of a demo that was killed: it is not touched, and not used.
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| ProcessError::Directory { path: path.clone(), source })?;
        Ok(TemporaryDirectory { path })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file into it.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf, ProcessError> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(|source| ProcessError::File { path: path.clone(), source })?;
        Ok(path)
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("tidegate: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// A program that is started, killed and started again with the same arguments.
#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    path: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Program {
    /// A program that does not run yet; what it prints goes to `log`.
    pub(super) fn new(name: &'static str, path: PathBuf, arguments: Vec<String>, log: PathBuf) -> Program {
        Program { name, path, arguments, log, child: None }
    }

    /// How it is called on the screen.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Starts it.
    pub(super) fn start(&mut self) -> Result<(), ProcessError> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(|source| ProcessError::File { path: self.log.clone(), source })?;
        let copy = log.try_clone().map_err(|source| ProcessError::File { path: self.log.clone(), source })?;
        let child = Command::new(&self.path)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(log)
            // Under systemd or a colour terminal the child must not think that it is the service itself.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        self.child = Some(child.map_err(|source| ProcessError::Start { name: self.name, source })?);
        Ok(())
    }

    /// Its process id while it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// SIGKILL, and waits until it is dead: nothing of it runs when this returns.
    pub(super) async fn kill(&mut self) -> Result<(), ProcessError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().await.map_err(|source| ProcessError::End { name: self.name, source })
    }

    /// SIGTERM, and SIGKILL when that does not help.
    pub(super) async fn stop(&mut self) -> Result<(), ProcessError> {
        let process = self.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        if let (Some(process), Some(child)) = (process, self.child.as_mut())
            && rustix::process::kill_process(process, rustix::process::Signal::TERM).is_ok()
            && timeout(STOP_TIMEOUT, child.wait()).await.is_ok()
        {
            self.child = None;
        }
        self.kill().await
    }

    /// Its exit status, when it has ended by itself.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.child.as_mut()?.try_wait() {
            Ok(Some(status)) => Some(status.to_string()),
            Ok(None) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// The end of what it printed.
    pub(super) fn last_words(&self) -> String {
        let printed = fs::read(&self.log).unwrap_or_default();
        let tail = printed.get(printed.len().saturating_sub(LOG_TAIL_BYTES)..).unwrap_or_default();
        String::from_utf8_lossy(tail).into_owned()
    }
}

impl Drop for Program {
    /// Ends the child and waits for its death: a directory cannot be removed while somebody still writes into it.
    fn drop(&mut self) {
        let Some(child) = self.child.as_mut() else { return };
        if child.start_kill().is_ok() {
            for _ in 0..DEATH_LOOKS {
                if !matches!(child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(DEATH_LOOK);
            }
        }
    }
}

/// A loopback address that nothing listens on at the moment.
pub(super) fn free_address() -> Result<SocketAddr, ProcessError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(ProcessError::Port)?;
    listener.local_addr().map_err(ProcessError::Port)
}

/// Where an executable is, in PATH and in the directories of system programs, which a user's PATH often lacks.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_killed_program_is_dead_and_its_directory_goes_with_its_owner() {
        let directory = TemporaryDirectory::new().unwrap();
        let path = directory.path().to_owned();
        directory.write("x", "y").unwrap();
        let sleep = find_program("sleep").unwrap();
        let mut program = Program::new("sleep", sleep, vec!["600".into()], path.join("log"));
        program.start().unwrap();
        let id = program.id().unwrap();
        assert!(Path::new(&format!("/proc/{id}")).exists());
        program.kill().await.unwrap();
        assert!(!Path::new(&format!("/proc/{id}")).exists());
        program.start().unwrap();
        program.stop().await.unwrap();
        assert_eq!(program.id(), None);
        drop(directory);
        assert!(!path.exists());
    }
}
