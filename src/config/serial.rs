//! A serial port and a device on it as configured: valid by type. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use super::{ModbusPoint, PointTopic, Report};
use crate::message::Qos;

/// A serial port and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Device file.
    pub path: PathBuf,
    /// Bits a second.
    pub baud: NonZeroU32,
    /// Data bits, parity, stop bits.
    pub mode: SerialMode,
    /// Who holds the sender back.
    pub flow: Flow,
    /// The level of DTR from the opening on; `None` = as the system sets it, which is on.
    pub dtr: Option<bool>,
    /// The level of RTS from the opening on; `None` = as the system sets it, which is on.
    pub rts: Option<bool>,
    /// The direction of an RS-485 transceiver is switched by the kernel.
    pub rs485: Option<Rs485>,
}

impl PortConfig {
    /// A port with three wires, whose lines the system sets.
    pub fn new(path: impl Into<PathBuf>, baud: NonZeroU32, mode: SerialMode) -> PortConfig {
        PortConfig { path: path.into(), baud, mode, flow: Flow::None, dtr: None, rts: None, rs485: None }
    }
}

/// `8E1`, `7E1`, `8N2` …
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialMode {
    /// 7 or 8.
    pub data_bits: u8,
    /// None, even or odd.
    pub parity: Parity,
    /// 1 or 2.
    pub stop_bits: u8,
}

impl fmt::Display for SerialMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parity = match self.parity {
            Parity::None => 'N',
            Parity::Even => 'E',
            Parity::Odd => 'O',
        };
        write!(f, "{}{parity}{}", self.data_bits, self.stop_bits)
    }
}

/// Parity of a serial character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parity {
    /// `N`
    None,
    /// `E`
    Even,
    /// `O`
    Odd,
}

/// `flow`: who holds the sender back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Nobody.
    None,
    /// Two wires, RTS and CTS.
    RtsCts,
    /// Two characters, XON and XOFF: never with binary frames.
    XonXoff,
}

/// `rs485`: what the kernel does with RTS around each transmission (its serial-rs485 documentation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rs485 {
    /// RTS is low while sending.
    pub invert_rts: bool,
    /// The receiver hears what is sent: four wires.
    pub full_duplex: bool,
    /// The bus is terminated by the port, where it can.
    pub terminate: bool,
    /// Between the switching and the first bit, whole milliseconds.
    pub delay_before: Duration,
    /// Between the last bit and the switching back, whole milliseconds.
    pub delay_after: Duration,
}

/// `[serial.<name>]`
#[derive(Debug, Clone)]
pub struct SerialConfig {
    /// The port.
    pub port: PortConfig,
    /// What to send, for devices that speak when asked.
    pub ask: Option<Ask>,
    /// How frames are cut out of the bytes.
    pub frame: FrameConfig,
    /// How a frame is taken apart.
    pub parse: Parse,
    /// `,` or `.`
    pub decimal: u8,
    /// Named groups whose text must be one of these; else quality is uncertain.
    pub good: BTreeMap<String, Vec<String>>,
    /// The local topic of a point.
    pub topic: PointTopic,
    /// QoS of its readings.
    pub qos: Qos,
    /// Points in the order they were written; where none is written, every named group or column.
    pub points: Vec<SerialPoint>,
    /// What may be sent to it when somebody asks for that.
    pub commands: Vec<SerialCommand>,
}

/// One line of `[serial.<name>.command]`.
#[derive(Debug, Clone)]
pub struct SerialCommand {
    /// Unique in its device, among points and commands.
    pub name: Arc<str>,
    /// What is sent before the value, or all of it.
    pub send: Vec<u8>,
    /// What is sent behind the value.
    pub rest: Vec<u8>,
    /// What a request says; `None`: it only says that it is to be done.
    pub value: Option<CommandValue>,
    /// The answer that says that it was done.
    pub good: Option<Regex>,
    /// The answer that says that it was not.
    pub bad: Option<Regex>,
    /// How long to wait for either.
    pub timeout: Duration,
    /// Requests within a minute; more are refused.
    pub per_minute: NonZeroU16,
    /// What is not begun within this time is never begun.
    pub expiry: Duration,
    /// To do it twice is no different.
    pub is_idempotent: bool,
}

/// What `{value}` stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum CommandValue {
    /// A number.
    Number {
        /// What is less is refused.
        min: Option<f64>,
        /// What is more is refused.
        max: Option<f64>,
        /// So many digits behind the decimal sign; `None`: as many as it has.
        decimals: Option<u8>,
    },
    /// One of these words.
    Words(Vec<String>),
}

/// `ask = { send = "SI\r\n", every = "1s", timeout = "500ms" }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The bytes to send.
    pub send: Vec<u8>,
    /// How often.
    pub every: Duration,
    /// How long to wait for a frame.
    pub timeout: Duration,
}

/// `frame = { … }`: where a frame begins and ends, and how it is known to be whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameConfig {
    /// The bytes at its beginning; empty = none.
    pub start: Vec<u8>,
    /// What ends it.
    pub ending: Ending,
    /// Bytes behind `end` or the delimiter that belong to it: a checksum, mostly.
    pub tail: usize,
    /// How a byte that looks like `start` or the end is written inside of a frame.
    pub escape: Option<Escape>,
    /// A silence of this length is a frame's end, or what a frame that is not whole is dropped after.
    pub idle: Option<Duration>,
    /// What proves that it is whole.
    pub checksum: Option<Checksum>,
    /// Longer frames are dropped and counted, in bytes between `start` and the end; with a length, of the whole frame.
    pub bytes_max: usize,
}

impl FrameConfig {
    /// Frames that end with `delimiter`.
    pub fn delimited(delimiter: &[u8], bytes_max: usize) -> FrameConfig {
        FrameConfig {
            start: Vec::new(),
            ending: Ending::Mark(delimiter.to_vec()),
            tail: 0,
            escape: None,
            idle: None,
            checksum: None,
            bytes_max,
        }
    }
}

impl FrameConfig {
    /// Sentences of NMEA 0183: between a dollar sign and CR LF, with a star and two digits that prove them.
    pub fn nmea() -> FrameConfig {
        let (kind, form) = (ChecksumKind::Xor, ChecksumForm::Hex);
        // 82 characters by the standard; makers' own are longer.
        FrameConfig {
            start: b"$".to_vec(),
            checksum: Some(Checksum { kind, form, order: ByteOrder::Big, at: None, from: 1, skip: 1 }),
            ..FrameConfig::delimited(b"\r\n", 1024)
        }
    }
}

/// What ends a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// These bytes, which are not empty: `delimiter`, or `end` where there is a `start`.
    Mark(Vec<u8>),
    /// So many bytes, `start` included.
    Length(usize),
    /// As many bytes as it says itself.
    Field(LengthField),
    /// Silence: `idle`.
    Idle,
}

/// `length = { offset = 2, width = 1 }`: where a frame says how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthField {
    /// Of its first byte, from the beginning of the frame.
    pub offset: usize,
    /// 1, 2 or 4 bytes.
    pub width: u8,
    /// Which of them comes first.
    pub order: ByteOrder,
    /// What it counts.
    pub counts: Counts,
    /// Bytes that it does not count though they belong to the frame; negative where it counts too many.
    pub plus: i32,
}

/// What a length counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// The bytes behind the length itself.
    Rest,
    /// All bytes of the frame.
    Frame,
}

/// Which byte comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// The most significant.
    Big,
    /// The least significant.
    Little,
}

/// `escape = 0x7d, escape_xor = 0x20`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Escape {
    /// The byte that says that the next one is meant as it is.
    pub byte: u8,
    /// And what the next one was changed by.
    pub xor: u8,
}

/// `checksum = { … }`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// How it is calculated.
    pub kind: ChecksumKind,
    /// How it is written.
    pub form: ChecksumForm,
    /// Which of its bytes comes first, where it is binary.
    pub order: ByteOrder,
    /// Where it stands, from the beginning of the frame; `None` = at its end.
    pub at: Option<usize>,
    /// The first byte that it covers, from the beginning of the frame.
    pub from: usize,
    /// Bytes right before it that it does not cover.
    pub skip: usize,
}

/// How a checksum is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumForm {
    /// As bytes.
    Binary,
    /// As hexadecimal digits, two for each byte.
    Hex,
}

/// How a checksum is calculated; the names are those of the catalogue of parametrised CRC algorithms, or better known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumKind {
    /// All bytes, exclusive or.
    Xor,
    /// The sum of all bytes, its lowest 8 bits.
    Sum8,
    /// The sum of all bytes, its lowest 16 bits.
    Sum16,
    /// What makes the sum of all bytes 0: the two's complement of `Sum8`.
    Lrc,
    /// CRC-8/SMBUS.
    Crc8,
    /// CRC-8/MAXIM-DOW.
    Crc8Maxim,
    /// CRC-16/MODBUS.
    Crc16Modbus,
    /// CRC-16/IBM-3740, known as CCITT-FALSE.
    Crc16CcittFalse,
    /// CRC-16/XMODEM.
    Crc16Xmodem,
    /// CRC-16/KERMIT, known as CCITT.
    Crc16Kermit,
    /// CRC-16/ARC.
    Crc16Arc,
    /// CRC-16/IBM-SDLC, known as X-25 and as the frame check of HDLC.
    Crc16X25,
    /// CRC-32/ISO-HDLC.
    Crc32,
}

impl ChecksumKind {
    /// All of them, as the configuration calls them.
    pub const ALL: [(&'static str, ChecksumKind); 13] = [
        ("xor", ChecksumKind::Xor),
        ("sum8", ChecksumKind::Sum8),
        ("sum16", ChecksumKind::Sum16),
        ("lrc", ChecksumKind::Lrc),
        ("crc8", ChecksumKind::Crc8),
        ("crc8-maxim", ChecksumKind::Crc8Maxim),
        ("crc16-modbus", ChecksumKind::Crc16Modbus),
        ("crc16-ccitt-false", ChecksumKind::Crc16CcittFalse),
        ("crc16-xmodem", ChecksumKind::Crc16Xmodem),
        ("crc16-kermit", ChecksumKind::Crc16Kermit),
        ("crc16-arc", ChecksumKind::Crc16Arc),
        ("crc16-x25", ChecksumKind::Crc16X25),
        ("crc32", ChecksumKind::Crc32),
    ];

    /// How many bytes it has.
    pub fn bytes(self) -> usize {
        match self {
            ChecksumKind::Xor
            | ChecksumKind::Sum8
            | ChecksumKind::Lrc
            | ChecksumKind::Crc8
            | ChecksumKind::Crc8Maxim => 1,
            ChecksumKind::Crc32 => 4,
            _ => 2,
        }
    }

    /// The order in which its bytes are mostly sent: a CRC that runs from the least bit on sends its low byte first.
    pub fn usual_order(self) -> ByteOrder {
        match self {
            ChecksumKind::Crc16Modbus
            | ChecksumKind::Crc16Kermit
            | ChecksumKind::Crc16Arc
            | ChecksumKind::Crc16X25
            | ChecksumKind::Crc32 => ByteOrder::Little,
            _ => ByteOrder::Big,
        }
    }
}

impl Checksum {
    /// A checksum at the end of a frame, over all of it.
    pub fn at_end(kind: ChecksumKind, form: ChecksumForm) -> Checksum {
        let order = match form {
            ChecksumForm::Binary => kind.usual_order(),
            // Digits are written as a number is read.
            ChecksumForm::Hex => ByteOrder::Big,
        };
        Checksum { kind, form, order, at: None, from: 0, skip: 0 }
    }

    /// How many bytes of the frame it takes.
    pub fn width(&self) -> usize {
        match self.form {
            ChecksumForm::Binary => self.kind.bytes(),
            ChecksumForm::Hex => self.kind.bytes() * 2,
        }
    }
}

/// How a frame is taken apart.
#[derive(Debug, Clone)]
pub enum Parse {
    /// Named groups of a regular expression.
    Regex(Regex),
    /// Columns, in order; an empty name skips one.
    Csv {
        /// One byte.
        separator: u8,
        /// Point names by column.
        columns: Vec<String>,
    },
    /// Characters by their places: name, first and last, counted from 1 as manuals do.
    Fixed(Vec<(String, usize, usize)>),
    /// One JSON object a frame.
    Json,
    /// Binary fields: each point says where it stands.
    Bytes {
        /// The frame writes its bytes as hexadecimal digits.
        is_hex: bool,
    },
    /// NMEA 0183: the fields behind the name of each sentence, by that name without its talker; an empty one skips one.
    Nmea(BTreeMap<String, Vec<String>>),
    /// Not at all: what it says are answers to commands.
    Nothing,
}

/// One point of a serial device.
#[derive(Debug, Clone, PartialEq)]
pub struct SerialPoint {
    /// Its name: a named group, a column, or a key.
    pub name: Arc<str>,
    /// For JSON: where the value is (RFC 6901); by default `/<name>`.
    pub pointer: Option<String>,
    /// For binary frames: where it stands and what it is.
    pub bytes: Option<BytesField>,
    /// What the text is, in frames of text.
    pub kind: TextKind,
    /// Unit of measure.
    pub unit: Option<Arc<str>>,
    /// When to publish.
    pub report: Report,
}

/// A value in a binary frame, read like that of a Modbus point whose registers begin at this byte.
#[derive(Debug, Clone, PartialEq)]
pub struct BytesField {
    /// Of its first byte, from the beginning of the frame.
    pub at: usize,
    /// How many bytes it has.
    pub count: usize,
    /// Type, order and meaning; table and address say nothing here.
    pub point: ModbusPoint,
}

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    /// A real number.
    F64,
    /// A whole number.
    I64,
    /// A whole number of hexadecimal digits.
    Hex,
    /// true, false, 1, 0, on, off.
    Bool,
    /// As it stands.
    String,
}
