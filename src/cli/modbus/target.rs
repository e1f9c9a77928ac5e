//! Which line, which unit: what all Modbus tools are told first.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::super::Exit;
use crate::config::{self, LineConfig, LineKind, PointKind, PortConfig, SerialFraming, SerialMode, Table, WordOrder};
use crate::field::modbus::probe::Probe;
use crate::field::record::Recorder;

/// A line as it is written on the command line.
#[derive(Debug, Clone)]
enum Written {
    Url { text: String, kind: LineKind },
    Port(PathBuf),
}

/// The line, and how to speak on it.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Target {
    /// tcp://host[:port], rtu-tcp://host:port, or a serial port such as /dev/ttyUSB0
    #[arg(value_name = "LINE", value_parser = parse_line)]
    line: Written,
    /// Bits a second of a serial port
    #[arg(long, default_value = "9600")]
    baud: NonZeroU32,
    /// Data bits, parity and stop bits of a serial port
    #[arg(long, default_value = "8E1", value_parser = config::parse_serial_mode)]
    mode: SerialMode,
    /// Modbus ASCII, where frames are letters
    #[arg(long)]
    ascii: bool,
    /// Longest wait for an answer [default: 1s; 300ms when scanning a serial port]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    /// Take down what goes over the line, for `tidegate simulate modbus --replay`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.line {
            Written::Url { text, .. } => f.write_str(text),
            Written::Port(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Target {
    /// As the configuration would have it.
    pub(super) fn line(&self) -> LineConfig {
        let kind = match &self.line {
            Written::Url { kind, .. } => kind.clone(),
            Written::Port(path) => LineKind::Rtu(PortConfig::new(path, self.baud, self.mode)),
        };
        let framing = if self.ascii { SerialFraming::Ascii } else { SerialFraming::Rtu };
        LineConfig { framing, ..LineConfig::new(kind, self.timeout()) }
    }

    pub(super) fn is_port(&self) -> bool {
        matches!(self.line, Written::Port(_))
    }

    /// How long to wait for an answer.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(1))
    }

    /// The same, where many are asked that are not there. A gateway waits for its own units before it says so.
    pub(super) fn scan_timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_millis(if self.is_port() { 300 } else { 1000 }))
    }

    /// The recorder that was asked for.
    pub(super) fn recorder(&self) -> Result<Option<Recorder>, Exit> {
        let Some(path) = &self.record else { return Ok(None) };
        Recorder::create(path, Probe::wire(&self.line())).map(Some).map_err(|error| {
            eprintln!("tidegate: cannot record to {}: {error}", path.display());
            Exit::Usage
        })
    }

    /// The line, to be opened with the first request.
    pub(super) fn probe(&self) -> Result<Probe, Exit> {
        Ok(Probe::new(self.line(), self.recorder()?))
    }
}

fn parse_line(text: &str) -> Result<Written, String> {
    if text.contains("://") {
        return config::parse_line_url(text).map(|kind| Written::Url { text: text.to_owned(), kind });
    }
    if text.starts_with('/') || text.starts_with('.') {
        return Ok(Written::Port(PathBuf::from(text)));
    }
    Err("write tcp://host, rtu-tcp://host:port, or a serial port such as /dev/ttyUSB0".to_owned())
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = config::parse_duration(text)?;
    let range = Duration::from_millis(10)..=Duration::from_secs(60);
    if range.contains(&timeout) { Ok(timeout) } else { Err("from 10ms to 60s".to_owned()) }
}

/// A unit id of the command line.
pub(super) fn parse_unit(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(unit @ 1..=255) => Ok(unit),
        _ => Err("from 1 to 247; 255 for a TCP device itself".to_owned()),
    }
}

/// An address of the command line: as on the wire, or a reference number.
pub(super) fn parse_address(text: &str) -> Result<(Table, u16), String> {
    config::parse_address(text, 0)
}

pub(super) fn parse_order(text: &str) -> Result<WordOrder, String> {
    let orders = [WordOrder::Abcd, WordOrder::Cdab, WordOrder::Badc, WordOrder::Dcba];
    let known = orders.into_iter().find(|order| order.word() == text.to_ascii_lowercase());
    known.ok_or_else(|| "abcd, cdab (words swapped), badc (bytes swapped) or dcba".to_owned())
}

/// A type of the command line; a text with its length in registers: `string:8`.
pub(super) fn parse_kind(text: &str) -> Result<PointKind, String> {
    use PointKind::{Bool, F32, F64, I8, I16, I32, I64, String as Text, U8, U16, U32, U64};
    if let Some(registers) = text.strip_prefix("string:") {
        let registers = registers.parse().ok().filter(|registers: &std::num::NonZeroU16| registers.get() <= 125);
        return registers.map(|registers| Text { registers }).ok_or_else(|| "a text has 1 to 125 registers".to_owned());
    }
    let kinds = [Bool, U8, I8, U16, I16, U32, I32, U64, I64, F32, F64];
    let known = kinds.into_iter().find(|kind| kind.word() == text);
    known.ok_or_else(|| "bool, u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, or string:8 (8 registers)".to_owned())
}
