//! `tidegate queue`: looks into the store and mends it, through the gateway while it runs, on its files when it does not.

use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::Subcommand;

use self::export::ExportArguments;
use self::letters::LettersArguments;
use self::peek::PeekArguments;
use self::source::Place;
use self::stats::StatsArguments;
use super::Exit;

pub(super) mod source;

mod stats;

mod peek;

mod export;

mod check;

mod letters;

pub(super) mod orders;

mod repair;

mod resend;

/// Examples under the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  tidegate queue stats
  tidegate queue peek --stream cloud
  tidegate queue export --output waiting.ndjson
  tidegate queue dead-letters list

Exit status: 0 done, 64 wrong usage or refused, 70 the store is damaged or the work failed, 75 the gateway or the
store does not answer now, 78 wrong configuration.";

/// `tidegate queue`
#[derive(Debug, clap::Args)]
pub(super) struct QueueArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell how much is in the store, and for whom
    #[command(after_help = "Example: tidegate queue stats --json")]
    Stats(StatsArguments),
    /// Show what waits, the oldest first
    #[command(after_help = "Example: tidegate queue peek --stream cloud --count 5")]
    Peek(PeekArguments),
    /// Write down all that waits, as NDJSON or CSV; changes nothing
    #[command(after_help = export::EXAMPLES)]
    Export(ExportArguments),
    /// Prove every row of the store; changes nothing
    #[command(
        after_help = "Example: tidegate queue check\nExit status: 0 it is whole, 70 something is damaged or missing"
    )]
    Check(Place),
    /// Mend the store of a stopped gateway: what a start would do about a damaged one, and what rows have rotted
    #[command(after_help = "Example: tidegate queue repair --yes")]
    Repair(repair::RepairArguments),
    /// List, show, send again or drop what a cloud has refused for good
    #[command(after_help = letters::EXAMPLES)]
    DeadLetters(LettersArguments),
    /// Send to an uplink once more what was delivered and is kept ([queue] keep_delivered)
    #[command(after_help = resend::EXAMPLES)]
    Resend(resend::ResendArguments),
    /// Drop what waits for an uplink that is not in the configuration any more
    #[command(after_help = "Example: tidegate queue drop-stream old-cloud --yes")]
    DropStream(orders::DropStreamArguments),
}

pub(super) fn main(arguments: &QueueArguments) -> Exit {
    let done = match &arguments.command {
        Command::Stats(arguments) => stats::main(arguments),
        Command::Peek(arguments) => peek::main(arguments),
        Command::Export(arguments) => export::main(arguments),
        Command::Check(place) => check::main(place),
        Command::Repair(arguments) => repair::main(arguments),
        Command::DeadLetters(arguments) => letters::main(arguments),
        Command::Resend(arguments) => resend::main(arguments),
        Command::DropStream(arguments) => orders::drop_stream(arguments),
    };
    done.unwrap_or_else(|exit| exit)
}

/// Says what is about to be changed and lets a person say no. Elsewhere than at a terminal nobody could answer.
pub(super) fn confirm(what: &str, is_yes: bool) -> Result<(), Exit> {
    eprintln!("{what}");
    if is_yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        eprintln!("tidegate: nothing was changed: there is no terminal to ask at, --yes does it without asking");
        return Err(Exit::Usage);
    }
    let mut stderr = std::io::stderr();
    // Where the terminal is gone there is nobody to say yes.
    let _closed = write!(stderr, "Go on? [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    eprintln!("nothing was changed");
    Err(Exit::Usage)
}

/// A text of somebody else's for a terminal: nothing in it moves the cursor.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            // Writing to a String cannot fail.
            let _written = write!(out, "{}", character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// An answer of another kind than was asked for: a gateway of another version.
pub(super) fn strange() -> Exit {
    eprintln!("tidegate: the answer is of another version of tidegate");
    Exit::Failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_topic_moves_the_cursor() {
        assert_eq!(printable("plant/ü/1"), "plant/ü/1");
        assert_eq!(printable("a\x1b[2Jb\r\n\u{9b}c"), "a\\u{1b}[2Jb\\r\\n\\u{9b}c");
    }
}
