//! `tidegate serial`: ports, and what devices say on them, before any configuration exists.

use clap::Subcommand;

use super::Exit;

mod guess;
mod list;
mod recording;
mod watch;

/// `tidegate serial`
#[derive(Debug, clap::Args)]
pub(super) struct SerialArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The serial ports of this machine, the name to write for each, and who holds it
    #[command(after_help = "Example: tidegate serial list")]
    List,
    /// Print what a device says, frame by frame, and the table to write for it
    #[command(after_help = watch::EXAMPLES)]
    Watch(Box<watch::WatchArguments>),
}

pub(super) fn main(arguments: SerialArguments) -> Exit {
    match arguments.what {
        What::List => list::main(),
        What::Watch(arguments) => watch::main(&arguments),
    }
}
