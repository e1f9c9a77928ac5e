//! `tidegate import`: what another broker has, carried over.

use std::path::PathBuf;

use super::Exit;
use super::status::print_out;

mod acl;
mod bridge;
mod conf;
mod listeners;
mod mosquitto;
mod retained;

/// `tidegate import`
#[derive(Debug, clap::Args)]
pub(super) struct ImportArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print a Tidegate configuration made of Mosquitto's; each line that is not carried is named, with the reason
    #[command(after_help = "\
Examples:
  tidegate import mosquitto /etc/mosquitto/mosquitto.conf > tidegate.toml && tidegate check --config tidegate.toml

Run it as a user who may read Mosquitto's password file. Passwords of bridges are written into files of DIR with --secrets; \
without it they are named.")]
    Mosquitto {
        /// Mosquitto's configuration; the files that it names are read too
        file: PathBuf,
        /// Directory for the passwords of bridges, one file each
        #[arg(long, value_name = "DIR")]
        secrets: Option<PathBuf>,
    },
    /// Take over the retained messages of a running broker into the running gateway
    #[command(after_help = "\
Example: tidegate import retained mqtt://192.168.1.5:1883 --username admin --password-file admin.password

Each message is published at QoS 1, and it is said how many the gateway has acknowledged; where a forward rule matches, it \
goes to the cloud too. What both brokers keep for \
themselves ($…, tidegate/…) is left out.")]
    Retained(retained::RetainedArguments),
}

pub(super) fn main(arguments: ImportArguments) -> Exit {
    match arguments.what {
        What::Mosquitto { file, secrets } => match mosquitto::import(&file, secrets.as_deref()) {
            Ok(imported) => {
                print_out(&imported.text);
                for note in &imported.notes {
                    eprintln!("{note}");
                }
                Exit::Done
            }
            Err(fault) => {
                eprintln!("tidegate: {fault}");
                Exit::Usage
            }
        },
        What::Retained(arguments) => retained::main(&arguments),
    }
}
