//! The board itself as a device: temperature, supply, flash, load, memory, disk.
//!
//! Promises: what the owner has written down and this board does not have is told as bad, with the reason; where he has
//! written nothing down, what the board has is told, and what it gets later, when a driver is loaded. A sensor that hangs
//! in the kernel delays nobody but the board's own readings, which are then bad.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::device::{Desk, Device, DeviceSpec, Seen};
use crate::config::{BoardConfig, BoardPoint};
use crate::health::DeviceState;
use crate::message::Value;

use gauges::Fault;

pub mod gauges;

/// How long the kernel has to say everything.
const PATIENCE: Duration = Duration::from_secs(5);

/// The board as configured.
#[derive(Debug, Clone)]
pub(super) struct BoardSpec {
    pub(super) device: DeviceSpec,
    pub(super) config: BoardConfig,
}

/// What each gauge said, in the order of the points.
type Looked = Vec<Result<Value, Fault>>;

/// Looks at each point once. Blocks.
pub fn look(board: &BoardConfig, points: &[BoardPoint]) -> Vec<Result<Value, Fault>> {
    points.iter().map(|point| gauges::read(board, point)).collect()
}

/// Reads the board until it is dropped, or until `leave`.
pub(super) async fn run(spec: BoardSpec, desk: Desk, leave: CancellationToken) {
    let points: Arc<[BoardPoint]> = spec.config.all_points().into();
    let mut board = Board {
        is_shown: vec![!spec.config.points.is_empty(); points.len()],
        device: Device::new(spec.device, desk.clone()),
        config: Arc::new(spec.config),
        points,
        desk,
        start: Instant::now(),
        read_at: None,
        looking: None,
    };
    let asked_ms = u64::try_from(board.config.poll.as_millis()).unwrap_or(u64::MAX);
    board.device.health().asked_ms.store(asked_ms, Ordering::Relaxed);
    let mut due = Duration::ZERO;
    loop {
        let now = board.start.elapsed();
        let wake = board.device.next_heartbeat().map_or(due, |beat| beat.min(due));
        tokio::select! {
            () = sleep(wake.saturating_sub(now)) => {}
            () = leave.cancelled() => return,
        }
        if board.start.elapsed() >= due {
            tokio::select! {
                () = board.read() => {}
                () = leave.cancelled() => return,
            }
            // One that comes too late skips turns.
            due = (due + board.config.poll).max(board.start.elapsed());
        }
        board.device.tell_again(board.start.elapsed());
        board.device.send().await;
    }
}

struct Board {
    config: Arc<BoardConfig>,
    points: Arc<[BoardPoint]>,
    /// Whether a point is told also when there is nothing to read: it is written, or was there before.
    is_shown: Vec<bool>,
    device: Device,
    desk: Desk,
    start: Instant,
    read_at: Option<Duration>,
    /// The look that the kernel has not answered yet: a second one would hang beside it.
    looking: Option<JoinHandle<Looked>>,
}

impl Board {
    async fn read(&mut self) {
        let (config, points) = (self.config.clone(), self.points.clone());
        let looking = self.looking.get_or_insert_with(|| tokio::task::spawn_blocking(move || look(&config, &points)));
        let looked = timeout(PATIENCE, looking).await;
        if looked.is_ok() {
            self.looking = None;
        }
        let silent = || Fault::Failed(format!("no answer from the kernel within {} s", PATIENCE.as_secs()));
        let looked = match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err(_)) | Err(_) => vec![Err(silent()); self.points.len()],
        };
        self.note(looked);
    }

    fn note(&mut self, looked: Looked) {
        let (stamp, now) = (self.desk.clock.now(), self.start.elapsed());
        let mut is_any_good = false;
        for (number, (read, is_shown)) in looked.into_iter().zip(&mut self.is_shown).enumerate() {
            let seen = match read {
                Ok(value) => {
                    *is_shown = true;
                    is_any_good = true;
                    Seen::good(value)
                }
                // A gauge that is there and fails is worth a word, whoever has written it down.
                Err(fault @ Fault::Failed(_)) => {
                    *is_shown = true;
                    Seen::bad(fault.reason())
                }
                Err(Fault::Absent(_)) if !*is_shown => continue,
                Err(Fault::Absent(reason)) => Seen::bad(reason),
            };
            self.device.see(number, seen, stamp, now);
        }
        self.device.count((!is_any_good).then_some("read"), false);
        let failing = self.device.failing();
        if is_any_good {
            let health = self.device.health();
            health.last_good_ms.store(stamp.wall_ms, Ordering::Relaxed);
            if let Some(before) = self.read_at.replace(now) {
                let ms = u64::try_from(now.saturating_sub(before).as_millis()).unwrap_or(u64::MAX);
                health.interval_ms.store(ms, Ordering::Relaxed);
            }
        }
        let state = match (is_any_good, &failing) {
            (true, None) => DeviceState::Good,
            (true, Some(_)) => DeviceState::Degraded,
            (false, _) => DeviceState::Dead,
        };
        self.device.set_state(state, failing);
    }
}
