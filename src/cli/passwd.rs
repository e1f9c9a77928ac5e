//! `tidegate passwd`: the hash of a password.

use super::status::print_out;
use super::{Exit, secret};
use crate::broker::hash_password;
use crate::config;

/// What stands under the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  tidegate passwd plc7
  tidegate passwd --web anna
  pwgen 20 1 | tee /dev/stderr | tidegate passwd plc7 >> /etc/tidegate/conf.d/users.toml

The hash is argon2id with 19 MiB of memory, 2 passes and 1 lane: on a small board that is some tenths of a second, once for \
each user after a start of the gateway.";

/// `tidegate passwd`
#[derive(Debug, clap::Args)]
pub(super) struct PasswdArguments {
    /// Name of the user
    user: String,
    /// Print the hash only, for a file that `password_hash_file` names
    #[arg(long)]
    hash_only: bool,
    /// For the status page, not for the broker
    #[arg(long)]
    web: bool,
}

pub(super) fn main(arguments: &PasswdArguments) -> Exit {
    let user = &arguments.user;
    if let Err(fault) = config::check_name(user) {
        eprintln!("tidegate: {user:?} cannot be the name of a user: {fault}");
        return Exit::Usage;
    }
    let password = match asked(user) {
        Ok(password) => password,
        Err(fault) => {
            eprintln!("tidegate: {fault}");
            return Exit::Usage;
        }
    };
    let Some(hash) = hash_password(password.as_bytes()) else {
        eprintln!("tidegate: the hash could not be made: there are no random numbers");
        return Exit::Failed;
    };
    if arguments.hash_only {
        print_out(&format!("{hash}\n"));
        return Exit::Done;
    }
    let table = if arguments.web { "web.user" } else { "broker.user" };
    let text = format!("[{table}.{}]\npassword_hash = \"{hash}\"\n", config::toml_key(user));
    print_out(&text);
    if secret::is_typed() && !arguments.web {
        eprintln!("Add publish = [\"…\"] and subscribe = [\"…\"]: without them this user may do nothing.");
    }
    Exit::Done
}

fn asked(user: &str) -> Result<String, String> {
    let ask = |question: &str| secret::ask(question).map_err(|error| format!("cannot read the password: {error}"));
    let password = ask(&format!("Password of {user}: "))?;
    if password.is_empty() {
        return Err("a password must not be empty".to_owned());
    }
    if secret::is_typed() && ask("Again: ")? != password {
        return Err("the two are not the same".to_owned());
    }
    Ok(password)
}
