//! `tidegate reload`: the running gateway reads its configuration again.

use std::path::PathBuf;

use super::status::print_out;
use super::{Exit, block_on};
use crate::control::{self, Reloaded, Request};
use crate::health::chain;

/// What stands under the help.
pub(super) const EXAMPLES: &str = "\
Example: tidegate check && tidegate reload

Only what is different changes: a client of a listener that stays is not disconnected, a device that stays is read on, an \
uplink that stays keeps its session. What waits in the queue stays there, whatever changes.

Exit status: 0 it is in force (what waits for a restart is named), 75 no gateway answers or some of it failed, 78 the \
configuration is refused and nothing was changed";

/// `tidegate reload`
#[derive(Debug, clap::Args)]
pub(super) struct ReloadArguments {
    /// Configuration file of the gateway, for where its state directory is
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State directory, instead of the configuration's
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

pub(super) fn main(arguments: &ReloadArguments) -> Exit {
    let state_dir = match &arguments.state_dir {
        Some(state_dir) => state_dir.clone(),
        None => match super::state_dir(arguments.config.clone()) {
            Ok(state_dir) => state_dir,
            Err(exit) => return exit,
        },
    };
    block_on(async {
        match control::ask(&state_dir, Request::Reload).await {
            Ok(answer) => match serde_json::from_str::<Reloaded>(&answer) {
                Ok(reloaded) => tell(&reloaded),
                Err(_) => {
                    eprintln!("tidegate: the gateway did not reload: {}", answer.trim());
                    Exit::TryAgain
                }
            },
            Err(error) => {
                eprintln!("tidegate: {}", chain(&error));
                eprintln!("help: is the gateway running, and are you root or its user?");
                Exit::TryAgain
            }
        }
    })
}

fn tell(reloaded: &Reloaded) -> Exit {
    eprint!("{}", reloaded.problems);
    if let Some(why) = &reloaded.refused {
        eprintln!("tidegate: refused, nothing was changed: {why}");
        return Exit::Config;
    }
    if reloaded.changed.is_empty() {
        print_out("In force; nothing is different.\n");
    } else {
        print_out(&format!("In force; changed: {}\n", reloaded.changed.join(", ")));
    }
    if !reloaded.restart.is_empty() {
        eprintln!("tidegate: these wait for a restart: {}", reloaded.restart.join(", "));
    }
    if reloaded.failed.is_empty() {
        return Exit::Done;
    }
    eprintln!("tidegate: these failed, the next reload tries again: {}", reloaded.failed.join(", "));
    Exit::TryAgain
}
