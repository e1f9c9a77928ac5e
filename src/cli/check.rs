//! `tidegate check`: the configuration as `run` would read it.

use std::path::PathBuf;

use super::Exit;

/// `tidegate check`
#[derive(Debug, clap::Args)]
pub(super) struct CheckArguments {
    /// Configuration file, instead of /etc/tidegate/tidegate.toml
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the merged configuration and the file each value came from; secrets are masked
    #[arg(long)]
    effective: bool,
}

pub(super) fn main(arguments: &CheckArguments) -> Exit {
    match super::load(arguments.config.clone()) {
        Ok(loaded) => {
            if arguments.effective {
                print!("{}", loaded.effective);
            } else {
                println!("The configuration is valid.");
            }
            Exit::Done
        }
        Err(exit) => exit,
    }
}
