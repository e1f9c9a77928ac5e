//! `tidegate simulate`: a field device to test against, until interrupted.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Exit, block_on};
use crate::config::{self, PortConfig, SerialMode};
use crate::field::record::{self, RECORD_BYTES_MAX, Recording, Wire};
use crate::field::simulate::{Place, SimulateError, serial};
use crate::health::chain;

mod modbus;

/// `tidegate simulate`
#[derive(Debug, clap::Args)]
pub(super) struct SimulateArguments {
    #[command(subcommand)]
    device: Device,
}

#[derive(Debug, Subcommand)]
enum Device {
    /// Modbus units, the devices of a configuration, or what was recorded; over TCP or RTU
    #[command(after_help = modbus::EXAMPLES)]
    Modbus(Box<modbus::ModbusArguments>),
    /// A scale on a serial line, or what was recorded
    #[command(after_help = "Examples:
  tidegate simulate serial --pty --link /tmp/scale --every 1s --decimal ,
  tidegate simulate serial --pty --link /tmp/scale --replay scale.serial.rec")]
    Serial(SerialArguments),
}

/// `tidegate simulate serial`
#[derive(Debug, clap::Args)]
struct SerialArguments {
    /// On a pty whose path is printed; the default
    #[arg(long, conflicts_with = "port")]
    pty: bool,
    /// Name the pty by a link, so that a configuration can name it; removed at the end
    #[arg(long, value_name = "PATH", conflicts_with = "port")]
    link: Option<PathBuf>,
    /// On this serial port
    #[arg(long, value_name = "DEVICE")]
    port: Option<PathBuf>,
    #[command(flatten)]
    settings: PortArguments,
    /// Speak by itself this often; without it, answer SI only
    #[arg(long, value_name = "TIME", value_parser = super::parse_duration)]
    every: Option<Duration>,
    /// Decimal sign
    #[arg(long, value_name = "SIGN", default_value_t = '.', value_parser = parse_decimal)]
    decimal: char,
    /// Do what was recorded with `tidegate run --record`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["every", "decimal"])]
    replay: Option<PathBuf>,
}

/// Why a simulated device ended.
#[derive(Debug, Error)]
enum ServeError {
    /// The device itself.
    #[error(transparent)]
    Device(SimulateError),
    /// The configuration cannot be used.
    #[error("the configuration cannot be used")]
    Config(Exit),
    /// What was said on the command line, or stands in a file that it names.
    #[error("{0}")]
    Usage(String),
    /// The link to its pty.
    #[error("cannot make the link {}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A link to a pty. A pty has another name each time; a configuration wants one that stays.
#[derive(Debug)]
struct Link {
    path: PathBuf,
    target: PathBuf,
}

impl Link {
    /// Makes it, in place of one that a killed simulation left; never in place of anything but a link.
    fn lay(path: PathBuf, target: PathBuf) -> Result<Link, ServeError> {
        let is_link = std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
        let removed = if is_link { std::fs::remove_file(&path) } else { Ok(()) };
        match removed.and_then(|()| std::os::unix::fs::symlink(&target, &path)) {
            Ok(()) => Ok(Link { path, target }),
            Err(source) => Err(ServeError::Link { path, source }),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Another simulation may have taken the name over: its link stays.
        if std::fs::read_link(&self.path).is_ok_and(|target| target == self.target) {
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}

/// Settings of a serial port.
#[derive(Debug, clap::Args)]
struct PortArguments {
    /// Bits a second
    #[arg(long, default_value = "9600", requires = "port")]
    baud: NonZeroU32,
    /// Data bits, parity, stop bits
    #[arg(long, default_value = "8N1", requires = "port", value_parser = config::parse_serial_mode)]
    mode: SerialMode,
}

impl PortArguments {
    fn at(&self, path: PathBuf) -> Place {
        Place::Port(PortConfig::new(path, self.baud, self.mode))
    }
}

#[derive(Debug, Clone)]
pub(super) struct Units(pub(super) BTreeSet<u8>);

pub(super) fn parse_units(text: &str) -> Result<Units, String> {
    let mut units = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<u8>(), last.trim().parse::<u8>()) {
            (Ok(first @ 1..=247), Ok(last @ 1..=247)) if first <= last => units.extend(first..=last),
            _ => return Err(format!("{part:?} is not a unit from 1 to 247 or a range of them, such as 7-9")),
        }
    }
    Ok(Units(units))
}

fn parse_decimal(text: &str) -> Result<char, String> {
    match text {
        "." => Ok('.'),
        "," => Ok(','),
        _ => Err("the decimal sign is . or ,".to_owned()),
    }
}

pub(super) fn main(arguments: SimulateArguments) -> Exit {
    block_on(async {
        let stop = CancellationToken::new();
        let serve = async {
            match arguments.device {
                Device::Modbus(arguments) => modbus::serve(&arguments, stop.clone()).await,
                Device::Serial(arguments) => serve_serial(arguments, stop.clone()).await,
            }
        };
        tokio::pin!(serve);
        let ended = tokio::select! {
            ended = &mut serve => ended,
            () = told_to_stop() => {
                stop.cancel();
                serve.await
            }
        };
        match ended {
            Ok(()) => Exit::Done,
            // It was told already, each problem at its place.
            Err(ServeError::Config(exit)) => exit,
            Err(error) => {
                eprintln!("tidegate: {}", chain(&error));
                if matches!(error, ServeError::Usage(_)) { Exit::Usage } else { Exit::Failed }
            }
        }
    })
}

/// Comes back at SIGINT or SIGTERM.
async fn told_to_stop() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _interrupted = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// How the printed place goes on where there is a link to it.
fn also(link: Option<&Link>) -> String {
    link.map(|link| format!(", linked from {}", link.path.display())).unwrap_or_default()
}

async fn serve_serial(arguments: SerialArguments, stop: CancellationToken) -> Result<(), ServeError> {
    let place = arguments.port.map_or(Place::Pty, |port| arguments.settings.at(port));
    let (what, bound) = match &arguments.replay {
        Some(file) => {
            let recording = recording(file)?;
            if recording.wire != Wire::Serial {
                let why = format!("{} is of a Modbus line: tidegate simulate modbus --replay", file.display());
                return Err(ServeError::Usage(why));
            }
            ("What was recorded", serial::Server::bind_recorded(&place, &recording).await)
        }
        None => {
            let settings = serial::Settings { place, every: arguments.every, decimal: arguments.decimal };
            ("A scale", serial::Server::bind(settings).await)
        }
    };
    let server = bound.map_err(ServeError::Device)?;
    let link = match arguments.link {
        Some(link) => Some(Link::lay(link, server.path())?),
        None => None,
    };
    println!("{what} is on {}{}; Ctrl-C ends it", server.path().display(), also(link.as_ref()));
    server.run(stop).await.map_err(ServeError::Device)
}

fn recording(file: &Path) -> Result<Recording, ServeError> {
    let usage = |why: String| ServeError::Usage(format!("cannot replay {}: {why}", file.display()));
    let opened = std::fs::File::open(file).map_err(|error| usage(error.to_string()))?;
    let mut text = String::new();
    opened.take(RECORD_BYTES_MAX + 1024).read_to_string(&mut text).map_err(|error| usage(error.to_string()))?;
    record::parse(&text).map_err(|error| usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_written_as_lists_and_ranges() {
        assert_eq!(parse_units("1,3,7-9").unwrap().0, BTreeSet::from([1, 3, 7, 8, 9]));
        for bad in ["", "0", "248", "9-7", "x", "1-"] {
            assert!(parse_units(bad).is_err(), "{bad:?}");
        }
    }
}
