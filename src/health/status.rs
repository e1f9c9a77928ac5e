//! The whole of a gateway as it is at one moment: what `status --json` prints and the page shows.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::time::Instant;

use super::live::{ClientSnapshot, PointSnapshot};
use super::{Alarm, Health, Snapshot};
use crate::clock::{Clock, Standing, Voucher};

/// What `status --json` prints and the status page shows (DESIGN.md 6.11).
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

/// Whoever can tell how the gateway is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Told {
    gateway: String,
    started: Instant,
    clock: Clock,
    health: Health,
}

impl Told {
    /// From now on the gateway runs.
    pub fn new(gateway: &str, clock: Clock, health: Health) -> Told {
        Told { gateway: gateway.to_owned(), started: Instant::now(), clock, health }
    }

    /// Whether an alarm is raised.
    pub fn is_raised(&self, alarm: Alarm) -> bool {
        self.health.is_raised(alarm)
    }

    /// The points of each device that were seen after `after_ms`, in milliseconds since boot (0: all), and what to ask with
    /// the next time.
    pub fn points(&self, after_ms: u64) -> (BTreeMap<String, BTreeMap<String, PointSnapshot>>, u64) {
        let now_ms = self.clock.now().mono_ms;
        let seen = self.health.devices().into_iter().filter_map(|(name, device)| {
            let points = device.points.snapshot(now_ms, after_ms);
            (!points.is_empty()).then(|| (name.to_string(), points))
        });
        (seen.collect(), now_ms)
    }

    /// Who is connected, at most `count_max` of them.
    pub fn clients(&self, count_max: usize) -> BTreeMap<String, ClientSnapshot> {
        self.health.sessions().clients.snapshot(count_max)
    }

    /// As it is now.
    pub fn status(&self) -> Status {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
