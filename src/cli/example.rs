//! `tidegate example`: prints a starting configuration, or what editors need to know of one.

use std::io::Write as _;

use super::Exit;
use crate::config;

/// `tidegate example`
#[derive(Debug, clap::Args)]
pub(super) struct ExampleArguments {
    /// Which one; without a name, the list of them
    name: Option<String>,
    /// Print the JSON Schema of the configuration, for editors
    #[arg(long, conflicts_with = "name")]
    schema: bool,
}

pub(super) fn main(arguments: &ExampleArguments) -> Exit {
    let examples = config::examples();
    let mut out = std::io::stdout().lock();
    let written = match &arguments.name {
        None if arguments.schema => writeln!(out, "{:#}", config::schema::schema()),
        None => examples.iter().try_for_each(|(name, text)| {
            let about = text.lines().next().unwrap_or_default().trim_start_matches('#').trim();
            writeln!(out, "{name:24} {about}")
        }),
        Some(wanted) => match examples.iter().find(|(name, _)| name == wanted) {
            Some((_, text)) => out.write_all(text.as_bytes()),
            None => {
                let names: Vec<&str> = examples.iter().map(|(name, _)| *name).collect();
                eprintln!("tidegate: there is no example {wanted:?}; there are: {}", names.join(", "));
                return Exit::Usage;
            }
        },
    };
    if written.is_ok() { Exit::Done } else { Exit::Failed }
}
