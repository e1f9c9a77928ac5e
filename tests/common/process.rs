//! A child process whose words are kept, and which never outlives its test.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::wait_until;

/// A running (or ended) child.
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    stdin: Option<ChildStdin>,
    readers: Vec<JoinHandle<()>>,
    stdout: Arc<Mutex<Vec<String>>>,
    stderr: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts `program`; `name` is for messages.
    pub fn start<S: AsRef<OsStr>>(name: &str, program: impl AsRef<OsStr>, arguments: &[S]) -> Process {
        Process::start_with(name, program, arguments, &[])
    }

    /// Starts `program` with some environment.
    pub fn start_with<S: AsRef<OsStr>>(
        name: &str,
        program: impl AsRef<OsStr>,
        arguments: &[S],
        environment: &[(&str, &str)],
    ) -> Process {
        // setpriv becomes the program itself (same pid); should the test be killed, the kernel kills its children.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref()).args(arguments);
        command.envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let stdout = Arc::default();
        let stderr = Arc::default();
        let readers = vec![
            keep_lines(child.stdout.take().unwrap(), Arc::clone(&stdout)),
            keep_lines(child.stderr.take().unwrap(), Arc::clone(&stderr)),
        ];
        let stdin = child.stdin.take();
        Process { name: name.to_owned(), child, ended: None, stdin, readers, stdout, stderr }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its first child: the traced program, when this one is strace.
    pub fn first_child_id(&self) -> Option<u32> {
        let id = self.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// The lines it has written to standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        lines_of(&self.stdout)
    }

    /// The lines from number `first` on.
    pub fn stdout_from(&self, first: usize) -> Vec<String> {
        let lines = self.stdout.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get(first..).unwrap_or_default().to_vec()
    }

    /// The lines it has written to standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        lines_of(&self.stderr)
    }

    /// Writes one line to its standard input.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(format!("{line}\n").as_bytes()).and_then(|()| stdin.flush()).unwrap();
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal; nothing happens when it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.status().is_none() {
            signal_to(self.id(), signal);
        }
    }

    /// Its exit status, once it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        // Stopped processes die of SIGKILL too, so this ends.
        self.ended = Some(self.child.wait().unwrap());
        self.finish_reading();
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("{} has ended", self.name);
        let status = wait_until(patience, &what, || self.status().ok_or_else(|| "it still runs".to_owned()));
        self.finish_reading();
        status
    }

    /// Waits for a line on standard output that `is_it` accepts.
    #[track_caller]
    pub fn wait_for_line(&mut self, patience: Duration, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let what = format!("{} says {what}", self.name);
        let mut has_ended = false;
        wait_until(patience, &what, || {
            let lines = self.stdout();
            if let Some(line) = lines.iter().find(|line| is_it(line)) {
                return Ok(line.clone());
            }
            match self.status() {
                // Its last words may have come since.
                Some(_) if !std::mem::replace(&mut has_ended, true) => {
                    self.finish_reading();
                    Err("it has ended".to_owned())
                }
                Some(status) => panic!("{} ended ({status}) before {what}: {:?}", self.name, self.stderr()),
                None => Err(format!("it has said {} lines, the last {:?}", lines.len(), lines.last())),
            }
        })
    }

    /// Everything it has said, for a person.
    pub fn transcript(&self) -> String {
        let mut text = format!("--- {} (pid {}) ---\n", self.name, self.id());
        for (kind, lines) in [("out", self.stdout()), ("err", self.stderr())] {
            let skipped = lines.len().saturating_sub(LINES_SHOWN);
            if skipped > 0 {
                text.push_str(&format!("{kind}| … {skipped} lines before\n"));
            }
            for line in lines.iter().skip(skipped) {
                text.push_str(&format!("{kind}| {line}\n"));
            }
        }
        text
    }

    /// Waits for the last words, but not for ever: a grandchild that was left behind may hold the pipe open.
    fn finish_reading(&mut self) {
        let until = Instant::now() + LAST_WORDS_WITHIN;
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

const LINES_SHOWN: usize = 60;
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(5);

impl Drop for Process {
    fn drop(&mut self) {
        let had_ended = self.status();
        if had_ended.is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        self.finish_reading();
        if std::thread::panicking() {
            let fate = had_ended.map_or("still running".to_owned(), |status| status.to_string());
            eprintln!("{}    ({fate})", self.transcript());
        }
    }
}

/// Sends `signal` to a process that we started.
pub fn signal_to(id: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    // It may just have ended: then there is nobody to tell.
    kill_process(pid, signal).ok();
}

fn keep_lines(source: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while source.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            line.clear();
        }
    })
}

fn lines_of(lines: &Mutex<Vec<String>>) -> Vec<String> {
    lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
