//! `tidegate modbus`: commissioning. Works before there is a configuration, and prints the block that goes into one.
//!
//! Exit status: 0 what was asked for was read, found or written; 64 wrong usage, also a question that no device could
//! answer; 70 the device refuses, or nothing fits; 75 no answer, or the line cannot be opened: mend it and try again.

use clap::Subcommand;

use super::{Exit, block_on};
use crate::field::modbus::advice;
use crate::field::modbus::probe::{Ask, OpenError, Probe, Said};

use target::Target;

mod target;

mod block;

mod guess;
mod read;
mod scan;
mod write;

pub(super) const EXAMPLES: &str = "Examples:
  tidegate modbus scan /dev/ttyUSB0 --try
  tidegate modbus read /dev/ttyUSB0 --unit 3 holding:100 --type f32
  tidegate modbus guess tcp://192.168.1.10 holding:100 --shows 21.5";

/// `tidegate modbus`
#[derive(Debug, clap::Args)]
pub(super) struct ModbusArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read registers, coils or discrete inputs
    #[command(
        after_help = "Example: tidegate modbus read tcp://192.168.1.10 --unit 1 holding:100 --type f32 --count 4"
    )]
    Read(read::ReadArguments),
    /// Write a holding register, a value of several, or a coil; asks first, and reads back
    #[command(after_help = "Example: tidegate modbus write tcp://192.168.1.10 holding:210 21.5 --scale 0.1")]
    Write(write::WriteArguments),
    /// Find the units on a line, and the settings of a serial line
    #[command(after_help = "Example: tidegate modbus scan /dev/ttyUSB0 --try --within 5min")]
    Scan(scan::ScanArguments),
    /// Find type, order, scale and address from what the device's display shows
    #[command(after_help = "Example: tidegate modbus guess /dev/ttyUSB0 --unit 3 holding:100 --shows 230.4")]
    Guess(guess::GuessArguments),
}

pub(super) fn main(arguments: &ModbusArguments) -> Exit {
    block_on(async {
        match &arguments.command {
            Command::Read(arguments) => read::run(arguments).await,
            Command::Write(arguments) => write::run(arguments).await,
            Command::Scan(arguments) => scan::run(arguments).await,
            Command::Guess(arguments) => guess::run(arguments).await,
        }
    })
}

/// Wrong usage that clap cannot see.
fn misuse(what: &str) -> Exit {
    eprintln!("tidegate: {what}");
    Exit::Usage
}

/// The line cannot be opened.
fn unopened(error: &OpenError, target: &Target) -> Exit {
    eprintln!("tidegate: {error}");
    if !error.is_port {
        eprintln!("  help: is it plugged in and switched on, and is {target} its address? `ping` and its display tell");
        eprintln!("  help: many devices serve one or two connections only: end other clients");
    }
    Exit::TryAgain
}

/// Tells a failure with what to do, after asking what else would be answered.
async fn failed(said: &Said, ask: &Ask, target: &Target, probe: &mut Probe) -> Exit {
    let Some(verdict) = advice::verdict(said, ask) else { return Exit::Done };
    eprintln!("tidegate: {verdict}");
    let line = target.line();
    let mut is_named = false;
    for look in advice::second_looks(said, ask, &line.kind) {
        let answer = match look.line {
            None => probe.ask(&look.ask).await,
            Some(kind) => {
                let other = crate::config::LineConfig { kind, ..target.line() };
                Probe::new(other, None).ask(&look.ask).await
            }
        };
        if let Ok(Said::Registers(_) | Said::Bits(_)) = answer {
            eprintln!("  found: {}", look.meaning);
            is_named = true;
        }
    }
    if !is_named {
        for help in advice::advice(said, ask, &line.kind, &target.to_string()) {
            eprintln!("  help: {help}");
        }
    }
    exit(said)
}

fn exit(said: &Said) -> Exit {
    match said {
        Said::Registers(_) | Said::Bits(_) | Said::Written => Exit::Done,
        // What passes by itself, or once somebody has mended the line.
        Said::Refused(5 | 6 | 10 | 11) | Said::Silent { .. } | Said::Broken { .. } | Said::Lost(_) => Exit::TryAgain,
        Said::Refused(_) => Exit::Failed,
    }
}
