//! Opening a serial port, and saying what to do when that fails.
//!
//! Promises: the port is held exclusively (TIOCEXCL and a lock), so that no second program talks into an exchange;
//! every error names the port and, where there is one, the way to mend it; who holds a port is named where the system
//! tells. A name under `/dev/serial/by-path` works like any other. Never keeps a port whose other end has gone: its
//! owner closes it and opens anew.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serial2::rs4xx::{Rs485Config, TransceiverMode};
use serial2::{KeepSettings, SerialPort as Terminal};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tokio_serial::{DataBits, ErrorKind, FlowControl, SerialPort as _, SerialStream, StopBits};

use crate::config::{Flow, Parity, PortConfig, Rs485};

pub mod ports;

/// How often a port that is not there is looked for: a second of an adapter's two is left for opening it.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A port that has come back is given this long until its rights are set: udev does that after the name appears.
const SETTLE: Duration = Duration::from_millis(100);

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
    #[error("cannot open the serial port {}: {}", path.display(), held(holder.as_deref()))]
    Busy {
        /// The device file.
        path: PathBuf,
        /// Who, where the system tells.
        holder: Option<String>,
    },
    /// The driver cannot do what is asked of it.
    #[error("the serial port {} cannot {what}: {help}", path.display())]
    Unable {
        /// The device file.
        path: PathBuf,
        /// What is asked.
        what: &'static str,
        /// What to do instead.
        help: &'static str,
        /// What the system said; none where it said yes, and did not do it.
        #[source]
        source: Option<io::Error>,
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

fn held(holder: Option<&str>) -> String {
    match holder {
        Some(holder) => format!("another program uses it: {holder}"),
        None => "another program uses it".to_owned(),
    }
}

/// Opens a port, raw and exclusive.
pub fn open(config: &PortConfig) -> Result<SerialStream, PortError> {
    // Before the port is held, because it cannot be opened a second time after that; used when it is ours.
    let terminal = match config.rs485 {
        Some(_) => Terminal::open(&config.path, KeepSettings).ok(),
        None => None,
    };
    let data_bits = if config.mode.data_bits == 7 { DataBits::Seven } else { DataBits::Eight };
    let stop_bits = if config.mode.stop_bits == 2 { StopBits::Two } else { StopBits::One };
    let parity = match config.mode.parity {
        Parity::None => tokio_serial::Parity::None,
        Parity::Even => tokio_serial::Parity::Even,
        Parity::Odd => tokio_serial::Parity::Odd,
    };
    let flow = match config.flow {
        Flow::None => FlowControl::None,
        Flow::RtsCts => FlowControl::Hardware,
        Flow::XonXoff => FlowControl::Software,
    };
    let builder = tokio_serial::new(config.path.to_string_lossy(), config.baud.get())
        .data_bits(data_bits)
        .parity(parity)
        .stop_bits(stop_bits)
        .flow_control(flow);
    let mut stream = SerialStream::open(&builder).map_err(|source| explain(&config.path, source))?;
    set_levels(&mut stream, config)?;
    if let (Some(rs485), Some(terminal)) = (&config.rs485, terminal) {
        set_rs485(&terminal, rs485, &config.path)?;
    }
    Ok(stream)
}

fn set_levels(stream: &mut SerialStream, config: &PortConfig) -> Result<(), PortError> {
    let unable = |what: &'static str| {
        let path = config.path.clone();
        move |error: tokio_serial::Error| PortError::Unable {
            path,
            what,
            help: "it has no such wire; leave the key out",
            source: Some(error.into()),
        }
    };
    if let Some(level) = config.dtr {
        stream.write_data_terminal_ready(level).map_err(unable("set DTR"))?;
    }
    if let Some(level) = config.rts {
        stream.write_request_to_send(level).map_err(unable("set RTS"))?;
    }
    Ok(())
}

/// Lets the kernel switch the transceiver (TIOCSRS485). A driver that does not do all of it says yes all the same, so
/// what it made of the wish is read back.
fn set_rs485(terminal: &Terminal, wanted: &Rs485, path: &Path) -> Result<(), PortError> {
    const HELP: &str = "its driver does not switch RS-485; most USB adapters do that by themselves: leave `rs485` out";
    let unable = |what, help, source| PortError::Unable { path: path.to_path_buf(), what, help, source };
    let mut mode = Rs485Config::new();
    mode.set_invert_rts(wanted.invert_rts);
    mode.set_full_duplex(wanted.full_duplex);
    mode.set_bus_termination(wanted.terminate);
    mode.set_delay_before_send(wanted.delay_before);
    mode.set_delay_after_send(wanted.delay_after);
    let what = "switch an RS-485 transceiver";
    terminal.set_rs4xx_mode(TransceiverMode::Rs485(mode)).map_err(|error| unable(what, HELP, Some(error)))?;
    let made = terminal.get_rs4xx_mode().map_err(|error| unable(what, HELP, Some(error)))?;
    let TransceiverMode::Rs485(made) = made else { return Err(unable(what, HELP, None)) };
    let ignored = [
        (made.get_invert_rts() != wanted.invert_rts, "invert RTS", "leave `invert_rts` out of `rs485`"),
        (made.get_full_duplex() != wanted.full_duplex, "set the duplex asked for", "change `full_duplex` in `rs485`"),
        (
            made.get_bus_termination() != wanted.terminate,
            "terminate the bus",
            "set a resistor, and leave `terminate` out",
        ),
        (
            made.get_delay_before_send() != wanted.delay_before || made.get_delay_after_send() != wanted.delay_after,
            "wait before or after sending",
            "leave `delay_before` and `delay_after` out of `rs485`",
        ),
    ];
    match ignored.into_iter().find(|(is_ignored, ..)| *is_ignored) {
        Some((_, what, help)) => Err(unable(what, help, None)),
        None => Ok(()),
    }
}

/// How long one character takes on the wire: a start bit, the data, parity, stop bits.
pub fn character_time(config: &PortConfig) -> Duration {
    let parity_bits = u32::from(config.mode.parity != Parity::None);
    let bits = 1 + u32::from(config.mode.data_bits) + parity_bits + u32::from(config.mode.stop_bits);
    Duration::from_secs(1).saturating_mul(bits) / config.baud.get()
}

/// Waits until `until`; comes back before that, with `true`, when the port was away and is there again: an adapter that
/// is plugged in must not wait for a pause that has grown. `is_away` keeps what was seen last, from one call to the next.
pub async fn is_back_before(path: &Path, until: Instant, is_away: &mut bool) -> bool {
    loop {
        let is_there = path.exists();
        if *is_away && is_there {
            sleep(SETTLE).await;
            // Not before that: whoever is called away in the middle comes back to a port that has just returned.
            *is_away = false;
            return true;
        }
        *is_away = !is_there;
        let now = Instant::now();
        if now >= until {
            return false;
        }
        sleep(LOOK_EVERY.min(until.saturating_duration_since(now))).await;
    }
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
        let holder = ports::holders(&path).into_iter().next();
        PortError::Busy { path, holder }
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
        PortConfig::new(path, NonZeroU32::new(baud).unwrap(), SerialMode { data_bits, parity, stop_bits })
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

    /// A pty is a driver without RS-485 and without wires.
    #[tokio::test]
    async fn what_a_driver_cannot_do_is_named_with_what_to_do_instead() {
        let (_ours, far_end) = SerialStream::pair().unwrap();
        let path = far_end.name().unwrap();
        drop(far_end);
        let port = config(&path, 9600, 8, Parity::None, 1);
        let error = open(&PortConfig { rs485: Some(Rs485::default()), ..port.clone() }).unwrap_err().to_string();
        assert!(
            error.contains("cannot switch an RS-485 transceiver") && error.contains("leave `rs485` out"),
            "{error}"
        );
        for (port, wire) in [
            (PortConfig { dtr: Some(false), ..port.clone() }, "DTR"),
            (PortConfig { rts: Some(true), ..port.clone() }, "RTS"),
        ] {
            let error = open(&port).unwrap_err().to_string();
            assert!(error.contains(&format!("cannot set {wire}")), "{error}");
        }
        open(&port).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_back_ends_the_longest_pause() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("by-path");
        let (began, mut is_away) = (Instant::now(), false);
        assert!(!is_back_before(&path, began + Duration::from_secs(3), &mut is_away).await);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        let plugged_in = async {
            sleep(Duration::from_secs(7)).await;
            std::fs::write(&path, "").unwrap();
        };
        let (is_back, ()) =
            tokio::join!(is_back_before(&path, began + Duration::from_secs(60), &mut is_away), plugged_in);
        assert!(is_back && began.elapsed() < Duration::from_millis(10_500), "{:?}", began.elapsed());
        // One that was there all the time waits for its pause, whatever keeps it from being opened.
        assert!(!is_back_before(&path, Instant::now() + Duration::from_secs(30), &mut is_away).await);
        assert!(began.elapsed() >= Duration::from_secs(40));
        // Seen away by one call, and back by the next.
        is_away = true;
        assert!(is_back_before(&path, Instant::now(), &mut is_away).await);
    }

    #[tokio::test]
    async fn who_holds_a_port_is_named() {
        let (_ours, far_end) = SerialStream::pair().unwrap();
        let path = far_end.name().unwrap();
        drop(far_end);
        let port = config(&path, 9600, 8, Parity::None, 1);
        let _first = open(&port).unwrap();
        let error = open(&port).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }
}
