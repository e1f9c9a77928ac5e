//! `[board]`: what is read of the board itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Deadband, PointTopic, Report};
use crate::message::Qos;

/// What the board is called among the devices.
pub const BOARD: &str = "board";

/// How often a value is told that does not change, where nothing is written.
const HEARTBEAT: Duration = Duration::from_secs(600);

/// `[board]`
#[derive(Debug, Clone, PartialEq)]
pub struct BoardConfig {
    /// Put in front of the files of the kernel: `/`, but in tests.
    pub root: PathBuf,
    /// The directory whose disk is looked at.
    pub state_dir: PathBuf,
    /// How often everything is read.
    pub poll: Duration,
    /// Where readings are published.
    pub topic: PointTopic,
    /// QoS of the readings.
    pub qos: Qos,
    /// `[board.point]`; empty = whatever this board has.
    pub points: Vec<BoardPoint>,
}

/// One line of `[board.point]`
#[derive(Debug, Clone, PartialEq)]
pub struct BoardPoint {
    /// Its name.
    pub name: Arc<str>,
    /// What is read.
    pub gauge: Gauge,
    /// Which of several sensors; `None` = the processor's.
    pub sensor: Option<String>,
    /// When it is told.
    pub report: Report,
}

/// What can be read of a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// Of the processor, or of the sensor that is named.
    Temperature,
    /// The supply was too low within the last seconds.
    UnderVoltage,
    /// The processor is slowed down, because it is hot or its supply is low.
    Throttled,
    /// How much of its life the eMMC has used.
    FlashLifeUsed,
    /// How many of its spare blocks are left to the eMMC.
    FlashState,
    /// Processes that run or wait to run, over a minute.
    Load,
    /// What programs can still have.
    MemoryAvailable,
    /// Of the disk that the state directory is on.
    DiskFree,
}

impl Gauge {
    /// All there are, as they are written.
    pub const ALL: [(&str, Gauge); 8] = [
        ("temperature", Gauge::Temperature),
        ("under_voltage", Gauge::UnderVoltage),
        ("throttled", Gauge::Throttled),
        ("flash_life_used", Gauge::FlashLifeUsed),
        ("flash_state", Gauge::FlashState),
        ("load", Gauge::Load),
        ("memory_available", Gauge::MemoryAvailable),
        ("disk_free", Gauge::DiskFree),
    ];

    /// Its unit of measure.
    pub fn unit(self) -> Option<&'static str> {
        match self {
            Gauge::Temperature => Some("°C"),
            Gauge::FlashLifeUsed => Some("%"),
            Gauge::MemoryAvailable | Gauge::DiskFree => Some("B"),
            Gauge::UnderVoltage | Gauge::Throttled | Gauge::FlashState | Gauge::Load => None,
        }
    }

    /// When it is told where nothing is written: when it has changed in a way that somebody may care about.
    pub fn report(self) -> Report {
        let deadband = match self {
            Gauge::Temperature => Deadband::Absolute(1.0),
            Gauge::Load => Deadband::Absolute(0.5),
            Gauge::MemoryAvailable | Gauge::DiskFree => Deadband::Percent(10.0),
            Gauge::UnderVoltage | Gauge::Throttled | Gauge::FlashLifeUsed | Gauge::FlashState => {
                Deadband::Absolute(0.0)
            }
        };
        Report { deadband: Some(deadband), min_interval: None, heartbeat: Some(HEARTBEAT) }
    }
}

impl BoardConfig {
    /// What is read: the points that are written, or each there may be.
    pub fn all_points(&self) -> Vec<BoardPoint> {
        if !self.points.is_empty() {
            return self.points.clone();
        }
        let point = |(name, gauge): (&str, Gauge)| BoardPoint {
            name: Arc::from(name),
            gauge,
            sensor: None,
            report: gauge.report(),
        };
        Gauge::ALL.into_iter().map(point).collect()
    }
}
