//! Devices to test against: what `tidegate simulate` runs, and the demo and the tests use.
//!
//! Promises: values are deterministic functions of the time since the start, so that a reader can tell a right value
//! from a wrong one. Never part of the gateway's own work.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;
use tokio_serial::{SerialPort as _, SerialStream};

use crate::config::PortConfig;

use super::port::{self, PortError};

pub mod modbus;
pub mod serial;

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
}

/// Sits down on a pty or port.
fn sit(place: &Place) -> Result<Seat, SimulateError> {
    match place {
        Place::Tcp(_) => Err(SimulateError::NotSerial),
        Place::Port(config) => {
            let stream = port::open(config).map_err(SimulateError::Port)?;
            Ok(Seat { stream, path: config.path.clone(), far_end: None })
        }
        Place::Pty => {
            let (stream, far_end) = SerialStream::pair().map_err(SimulateError::Pty)?;
            let path = PathBuf::from(far_end.name().unwrap_or_default());
            Ok(Seat { stream, path, far_end: Some(far_end) })
        }
    }
}
