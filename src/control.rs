//! The unix socket that `tidegate status`, `doctor`, `ledger`, `queue` and `reload` talk to: one JSON request a line, one JSON
//! answer a line.
//!
//! Only the gateway's own user and root can connect (the socket has mode 0600 in a directory of mode 0700). A caller
//! that dawdles is cut off; nothing it does can hold up the data path: status is read from `health`, and whatever is asked
//! of the queue is one job's share of it, in its turn. What is asked never changes anything; an order does, in one
//! transaction.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::health::status::Told;
use crate::queue::Inlet;
use crate::queue::inspect::Question;
use crate::queue::ledger::Days;
use crate::queue::upkeep::Order;

/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "control.sock";

/// Longest request in bytes.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;

/// Longest answer that a client of the socket takes, in bytes.
/// A packet of 16 MiB takes a third more as base64, or twice as much as a text of quotes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long one exchange may take.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(5);

/// How long its caller has to say it.
const REQUEST_DEADLINE: Duration = Duration::from_secs(2);
/// How long a reload may take: uplinks end what is in flight, lines the exchange that they are in.
const RELOAD_DEADLINE: Duration = Duration::from_secs(60);

/// Callers at one time; more wait in the socket's backlog.
const CALLERS_MAX: usize = 16;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Request {
    /// `health::status::Status`.
    Status,
    /// The last value of each point of each device.
    Points,
    /// `queue::ledger::Report` of these days.
    Ledger {
        /// Which days.
        days: Days,
    },
    /// `queue::inspect::Answer`.
    Queue {
        /// Of the store.
        question: Question,
    },
    /// `queue::inspect::Answer`.
    Order {
        /// To the store.
        order: Order,
    },
    /// Read the configuration again; answered by `Reloaded`.
    Reload,
}

impl Request {
    /// How long an answer may take.
    fn patience(&self) -> Duration {
        match self {
            Request::Reload => RELOAD_DEADLINE,
            _ => EXCHANGE_DEADLINE,
        }
    }
}

/// What came of reading the configuration again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Why nothing was changed; none: it is in force.
    pub refused: Option<String>,
    /// Every problem and warning, at its place in the files, for a person.
    pub problems: String,
    /// What is different now, as it is written in the files.
    pub changed: Vec<String>,
    /// What waits for a restart.
    pub restart: Vec<String>,
    /// What could not be changed, though nothing is wrong with it: the store failed in that moment.
    pub failed: Vec<String>,
}

/// Who asks for a reload, and is answered.
pub type ReloadAsk = oneshot::Sender<Reloaded>;

/// Nobody reads the configuration any more.
#[derive(Debug, Error)]
#[error("the gateway is stopping")]
struct Stopping;

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
    #[error("the gateway did not answer in time")]
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
    told: Told,
    inlet: Inlet,
    reloads: mpsc::Sender<ReloadAsk>,
}

impl Control {
    /// Makes the socket in the state directory, in place of one that an earlier process left: the directory's lock is
    /// ours by now, so nobody else serves it.
    pub fn bind(
        state_dir: &Path,
        told: Told,
        inlet: Inlet,
        reloads: mpsc::Sender<ReloadAsk>,
    ) -> Result<Control, ControlError> {
        let path = state_dir.join(SOCKET_NAME);
        let fault = |source| ControlError::Bind { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(fault)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fault)?;
        let answers = Answers { told, inlet, reloads };
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
                        callers.spawn(async move { answers.serve(socket).await });
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
        let mut line = Vec::new();
        let mut reader = BufReader::new(reader.take(REQUEST_BYTES_MAX));
        timeout(REQUEST_DEADLINE, reader.read_until(b'\n', &mut line)).await.unwrap_or(Ok(0))?;
        let answer = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => {
                let patience = request.patience();
                let answered = timeout(patience, self.answer(request)).await;
                answered.map_err(|_late| io::ErrorKind::TimedOut)?
            }
            Err(error) => refusal(&error),
        };
        let mut answer = answer.map_err(io::Error::other)?;
        answer.push(b'\n');
        let write = async {
            writer.write_all(&answer).await?;
            writer.shutdown().await
        };
        timeout(EXCHANGE_DEADLINE, write).await.map_err(|_late| io::ErrorKind::TimedOut)?
    }

    async fn answer(&self, request: Request) -> serde_json::Result<Vec<u8>> {
        match request {
            Request::Status => serde_json::to_vec(&self.told.status()),
            Request::Points => serde_json::to_vec(&self.told.points(0).0),
            Request::Ledger { days } => told(self.inlet.ledger(days).await),
            Request::Queue { question } => told(self.inlet.ask(question).await),
            Request::Order { order } => told(self.inlet.order(order).await),
            Request::Reload => {
                let (asker, reloaded) = oneshot::channel();
                // Where nobody takes the question nobody answers it either.
                let _taken = self.reloads.send(asker).await;
                told(reloaded.await.map_err(|_ended| Stopping))
            }
        }
    }
}

fn told<T: Serialize, E: std::error::Error>(answer: Result<T, E>) -> serde_json::Result<Vec<u8>> {
    answer.map_or_else(|error| refusal(&error), |answer| serde_json::to_vec(&answer))
}

fn refusal(error: &dyn std::error::Error) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&serde_json::json!({ "error": error.to_string() }))
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
    timeout(request.patience(), exchange).await.unwrap_or(Err(AskError::Late))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ClockSource};
    use crate::health::Health;

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
            keep: None,
            when_full: crate::config::WhenFull::DropOldest,
            hold: None,
            streams: Vec::new(),
            clock: clock.clone(),
            health: health.clone(),
        })
        .unwrap();
        let thread = std::thread::spawn(move || queue.worker.run());
        let control =
            Control::bind(dir.path(), Told::new("g7", clock, health), queue.inlet.clone(), mpsc::channel(1).0).unwrap();
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
