//! Devices to test against: what `tidegate simulate` runs, and the demo and the tests use.
//!
//! Promises: values are deterministic functions of the time since the start, so that a reader can tell a right value
//! from a wrong one. Never part of the gateway's own work.

use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::termios::{ControlModes, InputModes, tcgetattr};
use thiserror::Error;
use tokio_serial::{SerialPort as _, SerialStream};

use crate::config::{Parity, PortConfig};

use super::port::{self, PortError};

pub mod modbus;
pub mod serial;

pub mod fault;

pub mod wave;

mod plant;
mod registers;
mod replay;
mod script;
mod units;
mod wire;

pub use plant::Waves;

/// Where a simulated device is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A TCP address; port 0 = any free one.
    Tcp(SocketAddr),
    /// A new pseudo terminal.
    Pty,
    /// An existing serial port.
    Port(PortConfig),
}

/// Where it is, once it is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// Listening here.
    Tcp(SocketAddr),
    /// To be opened under this name.
    Path(PathBuf),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Tcp(address) => write!(f, "tcp://{address}"),
            Bound::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why a simulated device cannot run.
#[derive(Debug, Error)]
pub enum SimulateError {
    /// Its address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Its serial port.
    #[error("{0}")]
    Port(PortError),
    /// The system gives no pseudo terminal.
    #[error("cannot make a pseudo terminal")]
    Pty(#[source] tokio_serial::Error),
    /// A kind of place that this device cannot be at.
    #[error("a simulated serial device is on a serial port, not on TCP")]
    NotSerial,
    /// It ended by a panic.
    #[error("the simulated device failed: {0}")]
    Failed(String),
    /// Its line failed while it ran.
    #[error("the simulated device at {place} failed")]
    Line {
        /// Where it was.
        place: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A serial line that a simulated device sits on.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) stream: SerialStream,
    pub(super) path: PathBuf,
    /// The far end of a pty is kept open: without it a read fails whenever no gateway has it open.
    pub(super) far_end: Option<SerialStream>,
    /// How whoever opens a pty has set it.
    pub(super) settings: Option<FarSettings>,
}

/// The settings of the far end of a pty. A pty carries bytes whatever they are; a simulated line can heed them.
#[derive(Debug)]
pub(super) struct FarSettings(File);

impl FarSettings {
    fn of(path: &Path) -> Option<FarSettings> {
        // It must not become the terminal of a program that has none.
        let flags = i32::try_from((OFlags::NOCTTY | OFlags::NONBLOCK).bits()).ok()?;
        File::options().read(true).custom_flags(flags).open(path).ok().map(FarSettings)
    }

    /// Whether they are these. The kernel keeps no parity on a pty: whether it is checked, and which, stands elsewhere.
    pub(super) fn are(&self, own: &PortConfig) -> bool {
        let Ok(theirs) = tcgetattr(&self.0) else { return true };
        let parity = match theirs.input_modes.contains(InputModes::INPCK) {
            false => Parity::None,
            true if theirs.control_modes.contains(ControlModes::PARODD) => Parity::Odd,
            true => Parity::Even,
        };
        let stop_bits = if theirs.control_modes.contains(ControlModes::CSTOPB) { 2 } else { 1 };
        theirs.output_speed() == own.baud.get() && parity == own.mode.parity && stop_bits == own.mode.stop_bits
    }
}

/// Sits down on a pty or port.
fn sit(place: &Place) -> Result<Seat, SimulateError> {
    match place {
        Place::Tcp(_) => Err(SimulateError::NotSerial),
        Place::Port(config) => {
            let stream = port::open(config).map_err(SimulateError::Port)?;
            Ok(Seat { stream, path: config.path.clone(), far_end: None, settings: None })
        }
        Place::Pty => {
            let (stream, far_end) = SerialStream::pair().map_err(SimulateError::Pty)?;
            let path = PathBuf::from(far_end.name().unwrap_or_default());
            let settings = FarSettings::of(&path);
            Ok(Seat { stream, path, far_end: Some(far_end), settings })
        }
    }
}
