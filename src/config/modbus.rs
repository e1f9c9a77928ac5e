//! A Modbus device as configured, with its model merged in: valid by type. Pure.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crate::message::Qos;

/// `[modbus.<name>]`, with its model merged in.
#[derive(Debug, Clone)]
pub struct ModbusConfig {
    /// The name of its line in `Config::lines`.
    pub line: Arc<str>,
    /// Unit id (Modbus Messaging on TCP/IP 1.0b, 4.1; serial line 1.02, 2.2): 0 is broadcast and not allowed.
    pub unit_id: u8,
    /// How often to read, unless the point says otherwise.
    pub poll: Duration,
    /// Answer deadline; the line's where it has none of its own.
    pub timeout: Duration,
    /// The local topic of a point: `{device}` and `{point}` are replaced.
    pub topic: PointTopic,
    /// QoS of its readings.
    pub qos: Qos,
    /// Points in the order they were written.
    pub points: Vec<ModbusPoint>,
}

/// `topic = "plant/chiller/{point}"`: a local topic with `{device}` and `{point}` to fill in; valid for any names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointTopic(pub String);

/// One point of a Modbus device.
#[derive(Debug, Clone, PartialEq)]
pub struct ModbusPoint {
    /// Its name.
    pub name: Arc<str>,
    /// Which table.
    pub table: Table,
    /// Address on the wire, from 0.
    pub address: u16,
    /// How the bits are read.
    pub kind: PointKind,
    /// Order of bytes and words.
    pub order: WordOrder,
    /// `value = raw × scale + offset`; 1 where nothing is written.
    pub scale: f64,
    /// Added after scaling.
    pub offset: f64,
    /// Unit of measure.
    pub unit: Option<Arc<str>>,
    /// Instead of the device's `poll`.
    pub poll: Option<Duration>,
    /// When to publish.
    pub report: Report,
}

/// The four tables (Modbus Application Protocol 1.1b3, 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `coil:`, function 1.
    Coil,
    /// `discrete:`, function 2.
    Discrete,
    /// `input:`, function 4.
    Input,
    /// `holding:`, function 3.
    Holding,
}

/// How a point's registers are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointKind {
    /// A coil or a discrete input; of a register: not zero.
    Bool,
    /// One register.
    U16,
    /// One register, two's complement.
    I16,
    /// Two registers.
    U32,
    /// Two registers, two's complement.
    I32,
    /// Four registers.
    U64,
    /// Four registers, two's complement.
    I64,
    /// Two registers, IEEE 754.
    F32,
    /// Four registers, IEEE 754.
    F64,
    /// ASCII or UTF-8, two characters a register, to the first NUL.
    String {
        /// How many registers.
        registers: NonZeroU16,
    },
}

impl PointKind {
    /// How many registers (or coils) it takes: 1 to 125.
    pub fn width(self) -> u16 {
        match self {
            PointKind::Bool | PointKind::U16 | PointKind::I16 => 1,
            PointKind::U32 | PointKind::I32 | PointKind::F32 => 2,
            PointKind::U64 | PointKind::I64 | PointKind::F64 => 4,
            PointKind::String { registers } => registers.get(),
        }
    }
}

/// Order of bytes, as the four bytes A (most significant) to D of a 32-bit value arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WordOrder {
    /// Big-endian: the specification's own.
    #[default]
    Abcd,
    /// Words swapped.
    Cdab,
    /// Bytes swapped in each word.
    Badc,
    /// Little-endian.
    Dcba,
}

/// `report = { deadband = 0.1, min_interval = "1s", heartbeat = "60s" }`; the default publishes every read.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Report {
    /// Publish when the value moved by more than this; `None` = publish each read.
    pub deadband: Option<f64>,
    /// Never more often than this.
    pub min_interval: Option<Duration>,
    /// At least this often, changed or not. Also how often a bad point is told again; 60 s where nothing is written.
    pub heartbeat: Option<Duration>,
}
