//! Opening a serial port, and saying what to do when that fails.
//!
//! Promises: the port is held exclusively (TIOCEXCL and a lock), so that no second program talks into an exchange;
//! every error names the port and, where there is one, the way to mend it. A name under `/dev/serial/by-path` works
//! like any other. Never keeps a port whose other end has gone: its owner closes it and opens anew.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio_serial::{DataBits, ErrorKind, FlowControl, SerialStream, StopBits};

use crate::config::{Parity, PortConfig};

/// Why a serial port cannot be used.
#[derive(Debug, Error)]
pub enum PortError {
    /// There is no such device file.
    #[error("cannot open the serial port {}: it is not there; is the adapter plugged in?", path.display())]
    Missing {
        /// The device file.
        path: PathBuf,
    },
    /// This user may not.
    #[error("cannot open the serial port {}: permission denied; add the user to the group dialout", path.display())]
    Denied {
        /// The device file.
        path: PathBuf,
    },
    /// Another program has it.
    #[error("cannot open the serial port {}: another program uses it", path.display())]
    Busy {
        /// The device file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot open the serial port {}", path.display())]
    Other {
        /// The device file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: tokio_serial::Error,
    },
}

/// Opens a port, raw and exclusive.
pub fn open(config: &PortConfig) -> Result<SerialStream, PortError> {
    let data_bits = if config.mode.data_bits == 7 { DataBits::Seven } else { DataBits::Eight };
    let stop_bits = if config.mode.stop_bits == 2 { StopBits::Two } else { StopBits::One };
    let parity = match config.mode.parity {
        Parity::None => tokio_serial::Parity::None,
        Parity::Even => tokio_serial::Parity::Even,
        Parity::Odd => tokio_serial::Parity::Odd,
    };
    let builder = tokio_serial::new(config.path.to_string_lossy(), config.baud.get())
        .data_bits(data_bits)
        .parity(parity)
        .stop_bits(stop_bits)
        .flow_control(FlowControl::None);
    SerialStream::open(&builder).map_err(|source| explain(&config.path, source))
}

/// How long one character takes on the wire: a start bit, the data, parity, stop bits.
pub fn character_time(config: &PortConfig) -> Duration {
    let parity_bits = u32::from(config.mode.parity != Parity::None);
    let bits = 1 + u32::from(config.mode.data_bits) + parity_bits + u32::from(config.mode.stop_bits);
    Duration::from_secs(1).saturating_mul(bits) / config.baud.get()
}

fn explain(path: &Path, source: tokio_serial::Error) -> PortError {
    let path = path.to_path_buf();
    let kind = match source.kind() {
        ErrorKind::Io(kind) => Some(kind),
        _ => None,
    };
    // The library keeps no errno; its description is the system's own text.
    let says = |text: &str| source.description.to_ascii_lowercase().contains(text);
    if !path.exists() || kind == Some(io::ErrorKind::NotFound) {
        PortError::Missing { path }
    } else if kind == Some(io::ErrorKind::PermissionDenied) || says("permission denied") {
        PortError::Denied { path }
    } else if matches!(kind, Some(io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock))
        || says("busy")
        || says("lock")
        || says("temporarily unavailable")
    {
        PortError::Busy { path }
    } else {
        PortError::Other { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SerialMode;
    use std::num::NonZeroU32;

    fn config(path: &str, baud: u32, data_bits: u8, parity: Parity, stop_bits: u8) -> PortConfig {
        let mode = SerialMode { data_bits, parity, stop_bits };
        PortConfig { path: path.into(), baud: NonZeroU32::new(baud).unwrap(), mode }
    }

    #[test]
    fn a_missing_port_is_named_with_what_to_look_at() {
        let error = open(&config("/dev/serial/by-path/none", 9600, 8, Parity::None, 1)).unwrap_err();
        assert!(matches!(error, PortError::Missing { .. }), "{error:?}");
        assert!(error.to_string().contains("/dev/serial/by-path/none"));
    }

    #[test]
    fn a_character_is_as_long_as_its_bits() {
        assert_eq!(character_time(&config("x", 9600, 8, Parity::Even, 1)), Duration::from_secs(11) / 9600);
        assert_eq!(character_time(&config("x", 1200, 7, Parity::None, 1)), Duration::from_secs(9) / 1200);
    }
}
