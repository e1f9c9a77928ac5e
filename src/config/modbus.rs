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
    /// The number of the first register in `holding:…`, as its points are written.
    pub address_base: u16,
    /// What one request may be like.
    pub limits: RequestLimits,
    /// Points in the order they were written.
    pub points: Vec<ModbusPoint>,
}

/// `max_registers`, `max_bits`, `gap`, `forbidden`: what one request to a device may be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLimits {
    /// Registers in one request, 1 to 125 (Modbus Application Protocol 1.1b3, 6.3).
    pub registers_max: u16,
    /// Coils or discrete inputs in one request, 1 to 2000 (Modbus Application Protocol 1.1b3, 6.1).
    pub bits_max: u16,
    /// Registers between two points that are read and thrown away rather than asked around; 16 times as many bits.
    pub gap: u16,
    /// Never part of a request.
    pub forbidden: Vec<AddressRange>,
}

impl Default for RequestLimits {
    fn default() -> RequestLimits {
        RequestLimits { registers_max: 125, bits_max: 2000, gap: 16, forbidden: Vec::new() }
    }
}

impl RequestLimits {
    /// Registers, or bits, in one request to a table.
    pub fn quantity_max(&self, table: Table) -> u16 {
        if table.is_bits() { self.bits_max } else { self.registers_max }
    }

    /// The widest gap that is read over.
    pub fn gap_max(&self, table: Table) -> u16 {
        if table.is_bits() { self.gap.saturating_mul(16) } else { self.gap }
    }

    /// Whether a request from `first` to `last` touches what is forbidden.
    pub fn forbids(&self, table: Table, first: u32, last: u32) -> bool {
        let mut ranges = self.forbidden.iter().filter(|range| range.table == table);
        ranges.any(|range| u32::from(range.first) <= last && first <= u32::from(range.last))
    }
}

/// Addresses of one table on the wire, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// Which table.
    pub table: Table,
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// `topic = "plant/chiller/{point}"`: a local topic with `{device}` and `{point}` to fill in; valid for any names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointTopic(pub String);

/// What the bits of a point mean. The default takes all of them as they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Meaning {
    /// The bits that are the value, where it is not all of them.
    pub bits: Option<BitRange>,
    /// `value = raw × scale + offset`; 1 where nothing is written.
    pub scale: f64,
    /// Added after scaling.
    pub offset: f64,
    /// What is less becomes this.
    pub clamp_min: Option<f64>,
    /// What is more becomes this.
    pub clamp_max: Option<f64>,
    /// What whole numbers mean, in the order they were written; empty = the number itself is the value.
    pub names: Arc<[(i128, Arc<str>)]>,
    /// Raw values by which the device says that it has none.
    pub not_available: Arc<[i128]>,
}

impl Default for Meaning {
    fn default() -> Meaning {
        Meaning {
            bits: None,
            scale: 1.0,
            offset: 0.0,
            clamp_min: None,
            clamp_max: None,
            names: Arc::from([]),
            not_available: Arc::from([]),
        }
    }
}

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
    /// What the bits mean.
    pub meaning: Meaning,
    /// Unit of measure.
    pub unit: Option<Arc<str>>,
    /// Instead of the device's `poll`.
    pub poll: Option<Duration>,
    /// When to publish.
    pub report: Report,
    /// How it may be written; `None` = not at all.
    pub write: Option<Write>,
}

impl ModbusPoint {
    /// Whether it is read: a point that can only be written is not.
    pub fn is_readable(&self) -> bool {
        self.write.is_none_or(|write| write.is_readable)
    }

    /// Whether it is part of a register whose other bits must stay as they are when it is written.
    pub fn shares_register(&self) -> bool {
        !self.table.is_bits() && (self.meaning.bits.is_some() || matches!(self.kind, PointKind::U8 | PointKind::I8))
    }
}

/// `write = { min = 5, max = 30 }`: that a point may be written, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Write {
    /// What is less is refused.
    pub min: Option<f64>,
    /// What is more is refused.
    pub max: Option<f64>,
    /// What comes more often is refused.
    pub per_minute: NonZeroU16,
    /// What could not be written for so long is not written any more.
    pub expiry: Duration,
    /// By which functions.
    pub function: WriteFunction,
    /// It can be read too: it is polled, and what was written is read back.
    pub is_readable: bool,
    /// How long after the write it is read back.
    pub settle: Duration,
    /// Writing the same twice does what writing it once does.
    pub is_idempotent: bool,
}

impl Default for Write {
    fn default() -> Write {
        Write {
            min: None,
            max: None,
            per_minute: NonZeroU16::MIN.saturating_add(59),
            expiry: Duration::from_secs(60),
            function: WriteFunction::Fitting,
            is_readable: true,
            settle: Duration::ZERO,
            is_idempotent: false,
        }
    }
}

/// The functions that write (Modbus Application Protocol 1.1b3, 6.5, 6.6, 6.11, 6.12, 6.16, 6.17).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFunction {
    /// 5 or 6 for what stands in one place, 16 for more.
    Fitting,
    /// 5 or 6.
    Single,
    /// 15 or 16, also for one.
    Multiple,
    /// 22: the unit itself changes some bits of a register.
    Masked,
    /// 23: what was written is read back in the same request.
    AndRead,
}

impl ModbusPoint {
    /// A point without anything that need not be said.
    pub fn plain(name: &str, table: Table, address: u16, kind: PointKind, order: WordOrder) -> ModbusPoint {
        ModbusPoint {
            name: Arc::from(name),
            table,
            address,
            kind,
            order,
            meaning: Meaning::default(),
            unit: None,
            poll: None,
            report: Report::default(),
            write: None,
        }
    }
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

impl Table {
    /// Coils and discrete inputs.
    pub fn is_bits(self) -> bool {
        matches!(self, Table::Coil | Table::Discrete)
    }

    /// As in `address`.
    pub fn word(self) -> &'static str {
        match self {
            Table::Coil => "coil",
            Table::Discrete => "discrete",
            Table::Input => "input",
            Table::Holding => "holding",
        }
    }

    /// The function that reads it (Modbus Application Protocol 1.1b3, 5.1).
    pub fn read_function(self) -> u8 {
        match self {
            Table::Coil => 1,
            Table::Discrete => 2,
            Table::Holding => 3,
            Table::Input => 4,
        }
    }
}

/// Bits of a whole number, both ends included; 0 is the least significant one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitRange {
    /// The lowest.
    pub low: u8,
    /// The highest.
    pub high: u8,
}

/// How a point's registers are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointKind {
    /// A coil or a discrete input; of a register: not zero.
    Bool,
    /// The low byte of a register; with an order that swaps bytes, the high one.
    U8,
    /// The same, two's complement.
    I8,
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
    /// One register, four decimal digits of four bits each.
    Bcd16,
    /// Two registers, eight decimal digits.
    Bcd32,
    /// Four registers, sixteen decimal digits.
    Bcd64,
    /// One register, IEEE 754 binary16.
    F16,
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
            PointKind::Bool | PointKind::U8 | PointKind::I8 | PointKind::U16 | PointKind::I16 => 1,
            PointKind::Bcd16 | PointKind::F16 => 1,
            PointKind::U32 | PointKind::I32 | PointKind::F32 | PointKind::Bcd32 => 2,
            PointKind::U64 | PointKind::I64 | PointKind::F64 | PointKind::Bcd64 => 4,
            PointKind::String { registers } => registers.get(),
        }
    }

    /// How many bits a whole number of this kind has; `None` for what is none.
    pub fn whole_bits(self) -> Option<u8> {
        match self {
            PointKind::U8 | PointKind::I8 => Some(8),
            PointKind::U16 | PointKind::I16 => Some(16),
            PointKind::U32 | PointKind::I32 => Some(32),
            PointKind::U64 | PointKind::I64 => Some(64),
            PointKind::Bool | PointKind::F16 | PointKind::F32 | PointKind::F64 | PointKind::String { .. } => None,
            PointKind::Bcd16 | PointKind::Bcd32 | PointKind::Bcd64 => None,
        }
    }

    /// How many decimal digits of four bits it has; `None` for what has none.
    pub fn bcd_digits(self) -> Option<u32> {
        matches!(self, PointKind::Bcd16 | PointKind::Bcd32 | PointKind::Bcd64).then(|| u32::from(self.width()) * 4)
    }

    /// As in `type`.
    pub fn word(self) -> &'static str {
        match self {
            PointKind::Bool => "bool",
            PointKind::U8 => "u8",
            PointKind::I8 => "i8",
            PointKind::U16 => "u16",
            PointKind::I16 => "i16",
            PointKind::U32 => "u32",
            PointKind::I32 => "i32",
            PointKind::U64 => "u64",
            PointKind::I64 => "i64",
            PointKind::Bcd16 => "bcd16",
            PointKind::Bcd32 => "bcd32",
            PointKind::Bcd64 => "bcd64",
            PointKind::F16 => "f16",
            PointKind::F32 => "f32",
            PointKind::F64 => "f64",
            PointKind::String { .. } => "string",
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

impl WordOrder {
    /// As in `order`.
    pub fn word(self) -> &'static str {
        match self {
            WordOrder::Abcd => "abcd",
            WordOrder::Cdab => "cdab",
            WordOrder::Badc => "badc",
            WordOrder::Dcba => "dcba",
        }
    }
}

/// `report = { deadband = 0.1, min_interval = "1s", heartbeat = "60s" }`; the default publishes every read.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Report {
    /// Publish when the value moved by more than this; `None` = publish each read.
    pub deadband: Option<Deadband>,
    /// Never more often than this.
    pub min_interval: Option<Duration>,
    /// At least this often, changed or not. Also how often a bad point is told again; 60 s where nothing is written.
    pub heartbeat: Option<Duration>,
}

/// How far a value moves before it is published; nothing = each change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Deadband {
    /// By more than this.
    Absolute(f64),
    /// By more than this many percent of what was published last.
    Percent(f64),
}
