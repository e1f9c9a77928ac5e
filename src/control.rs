//! The unix socket that `tidegate status` and `tidegate ledger` talk to: one JSON request a line, one JSON answer a line.
//!
//! Only the gateway's own user and root can connect (the socket has mode 0600 in a directory of mode 0700). A caller
//! that dawdles is cut off; nothing it does can hold up the data path, which is only ever read: through `health`, and
//! page by page through the queue.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Standing, Voucher};
use crate::health::{Health, Snapshot};
use crate::queue::Inlet;
use crate::queue::ledger::Days;

/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "control.sock";

/// Longest request in bytes.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;

/// Longest answer that a client of the socket takes, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long one exchange may take.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(5);

/// Callers at one time; more wait in the socket's backlog.
const CALLERS_MAX: usize = 16;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Request {
    /// `Status`.
    Status,
    /// `queue::ledger::Report` of these days.
    Ledger {
        /// Which days.
        days: Days,
    },
}

/// The answer to `Request::Status`, as `status --json` prints it (DESIGN.md 6.11).
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Of the running program.
    pub version: &'static str,
    /// The gateway's id.
    pub gateway: String,
    /// Since start.
    pub uptime_s: u64,
    /// How far the time of day can be trusted.
    pub clock: ClockStatus,
    /// The process.
    pub pid: u32,
    /// What it costs the flash; null where the system does not count it.
    pub flash: Option<FlashStatus>,
    /// The stages.
    #[serde(flatten)]
    pub stages: Snapshot,
}

/// `flash` in `status --json`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FlashStatus {
    /// Bytes that the process has written to the disk since its start, as the system counts them.
    pub written: u64,
    /// At this rate; null in the first ten minutes, which say nothing.
    pub bytes_per_day: Option<u64>,
    /// Years until a card that takes 10 TB is worn out at this rate.
    pub years_of_10_tb: Option<u64>,
}

/// Before that a start's own writes are most of it.
const FLASH_AFTER_S: u64 = 600;
const CARD_BYTES: u64 = 10_000_000_000_000;

impl FlashStatus {
    fn new(written: u64, uptime_s: u64) -> FlashStatus {
        let per_day = (uptime_s >= FLASH_AFTER_S).then(|| written.saturating_mul(86_400) / uptime_s);
        let years = per_day.map(|bytes| CARD_BYTES / bytes.max(1) / 365);
        FlashStatus { written, bytes_per_day: per_day, years_of_10_tb: years }
    }
}

/// From proc(5), `/proc/pid/io`: `write_bytes`, what was sent to the block layer.
fn written_bytes(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("write_bytes:")?.trim().parse().ok())
}

/// `clock` in `status --json`.
#[derive(Debug, Clone, Serialize)]
pub struct ClockStatus {
    /// `synced`, `holdover` or `unset`.
    pub state: &'static str,
    /// How far off it may be, in milliseconds; null = not known.
    pub error_ms: Option<u32>,
    /// Who vouches for it: `mark`, `chrony`, `owner`, `kept`; null = nobody.
    pub source: Option<&'static str>,
}

/// Why the socket cannot be served.
#[derive(Debug, Error)]
pub enum ControlError {
    /// It cannot be made.
    #[error("cannot open the control socket {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why the running gateway gave no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens: it does not run, or it is another user's.
    #[error("no gateway answers at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the gateway's answer broke off")]
    Broken(#[source] io::Error),
    /// It took too long.
    #[error("the gateway did not answer within 5 s")]
    Late,
}

/// The control stage.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    answers: Arc<Answers>,
}

#[derive(Debug)]
struct Answers {
    gateway: String,
    started: Instant,
    clock: Clock,
    health: Health,
    inlet: Inlet,
}

impl Control {
    /// Makes the socket in the state directory, in place of one that an earlier process left: the directory's lock is
    /// ours by now, so nobody else serves it.
    pub fn bind(
        state_dir: &Path,
        gateway: &str,
        clock: Clock,
        health: Health,
        inlet: Inlet,
    ) -> Result<Control, ControlError> {
        let path = state_dir.join(SOCKET_NAME);
        let fault = |source| ControlError::Bind { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(fault)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fault)?;
        let answers = Answers { gateway: gateway.to_owned(), started: Instant::now(), clock, health, inlet };
        Ok(Control { listener, path, answers: Arc::new(answers) })
    }

    /// Answers until told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ControlError> {
        let mut callers = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ended = callers.join_next(), if !callers.is_empty() => {}
                accepted = self.listener.accept(), if callers.len() < CALLERS_MAX => {
                    if let Ok((socket, _)) = accepted {
                        let answers = self.answers.clone();
                        callers.spawn(async move { timeout(EXCHANGE_DEADLINE, answers.serve(socket)).await });
                    } else {
                        // Out of file descriptors, most likely: it passes, and a tight loop would not help it.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::debug!(error:% = error; "The control socket was gone already");
        }
        Ok(())
    }
}

impl Answers {
    async fn serve(&self, mut socket: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = socket.split();
        let mut line = String::new();
        BufReader::new(reader.take(REQUEST_BYTES_MAX)).read_line(&mut line).await?;
        let mut answer = match serde_json::from_str(&line) {
            Ok(Request::Status) => serde_json::to_vec(&self.status()),
            Ok(Request::Ledger { days }) => match self.inlet.ledger(days).await {
                Ok(report) => serde_json::to_vec(&report),
                Err(error) => serde_json::to_vec(&serde_json::json!({ "error": error.to_string() })),
            },
            Err(error) => serde_json::to_vec(&serde_json::json!({ "error": error.to_string() })),
        }
        .map_err(io::Error::other)?;
        answer.push(b'\n');
        writer.write_all(&answer).await?;
        writer.shutdown().await
    }

    fn status(&self) -> Status {
        let Standing { state, error_ms, voucher } = self.clock.standing();
        let clock = ClockStatus { state: state.name(), error_ms, source: voucher.map(Voucher::name) };
        let uptime_s = self.started.elapsed().as_secs();
        let written = std::fs::read_to_string("/proc/self/io").ok().and_then(|io| written_bytes(&io));
        Status {
            version: env!("CARGO_PKG_VERSION"),
            gateway: self.gateway.clone(),
            uptime_s,
            clock,
            pid: std::process::id(),
            flash: written.map(|written| FlashStatus::new(written, uptime_s)),
            stages: self.health.snapshot(self.clock.now()),
        }
    }
}

/// Asks the gateway that uses `state_dir`, and gives back its answer as it stands.
pub async fn ask(state_dir: &Path, request: Request) -> Result<String, AskError> {
    let path = state_dir.join(SOCKET_NAME);
    let exchange = async {
        let mut socket =
            UnixStream::connect(&path).await.map_err(|source| AskError::Connect { path: path.clone(), source })?;
        let mut line = serde_json::to_vec(&request).map_err(|error| AskError::Broken(error.into()))?;
        line.push(b'\n');
        socket.write_all(&line).await.map_err(AskError::Broken)?;
        let mut answer = String::new();
        socket.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await.map_err(AskError::Broken)?;
        if answer.ends_with('\n') { Ok(answer) } else { Err(AskError::Broken(io::ErrorKind::UnexpectedEof.into())) }
    };
    timeout(EXCHANGE_DEADLINE, exchange).await.unwrap_or(Err(AskError::Late))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ClockSource;

    #[test]
    fn what_the_flash_bears_is_told_by_the_day_and_not_before_it_can_be_known() {
        let io = "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n";
        assert_eq!(written_bytes(io), Some(4096));
        assert_eq!(written_bytes("wchar: 2\n"), None);
        let early = FlashStatus::new(1_000_000, 599);
        assert_eq!((early.bytes_per_day, early.years_of_10_tb), (None, None));
        let later = FlashStatus::new(10_000_000, 3600);
        assert_eq!((later.bytes_per_day, later.years_of_10_tb), (Some(240_000_000), Some(114)));
        let idle = FlashStatus::new(0, 86_400);
        assert_eq!(idle.bytes_per_day, Some(0));
    }

    #[tokio::test]
    async fn a_status_has_the_pinned_keys_and_nonsense_gets_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (clock, health) = (Clock::new(ClockSource::Trusted), Health::default());
        let queue = crate::queue::open(crate::queue::QueueSettings {
            set_topics: crate::queue::SetTopics::default(),
            dir: dir.path().to_owned(),
            gateway: Arc::from("g7"),
            bytes_max: std::num::NonZeroU64::new(1 << 20).unwrap(),
            age_max: None,
            when_full: crate::config::WhenFull::DropOldest,
            hold: None,
            streams: Vec::new(),
            clock: clock.clone(),
            health: health.clone(),
        })
        .unwrap();
        let thread = std::thread::spawn(move || queue.worker.run());
        let control = Control::bind(dir.path(), "g7", clock, health, queue.inlet.clone()).unwrap();
        let stop = CancellationToken::new();
        let mut stage = JoinSet::new();
        stage.spawn(control.run(stop.clone()));
        let answer = ask(dir.path(), Request::Status).await.unwrap();
        let status: serde_json::Value = serde_json::from_str(&answer).unwrap();
        for key in ["version", "gateway", "uptime_s", "clock", "queue", "uplinks", "devices", "sessions", "losses"] {
            assert!(status.get(key).is_some(), "{key} is missing in {answer}");
        }
        for key in ["messages", "bytes", "max_bytes", "oldest_age_s", "full_in_s"] {
            assert!(status["queue"].get(key).is_some(), "queue.{key} is missing in {answer}");
        }
        let answer = ask(dir.path(), Request::Ledger { days: Days { from: 20_000, to: 20_030 } }).await.unwrap();
        let report: crate::queue::ledger::Report = serde_json::from_str(&answer).unwrap();
        assert_eq!((report.gateway.as_str(), report.lines.len()), ("g7", 0));
        let mut socket = UnixStream::connect(dir.path().join(SOCKET_NAME)).await.unwrap();
        socket.write_all(b"{\"ask\":\"the moon\"}\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("error"), "{answer}");
        stop.cancel();
        while stage.join_next().await.is_some() {}
        queue.inlet.stop().await;
        thread.join().unwrap().unwrap();
        assert!(!dir.path().join(SOCKET_NAME).exists());
    }
}
