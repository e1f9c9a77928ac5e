//! Writes the manual pages and the completions of this version into a directory:
//! `cargo run --example pages -- DIRECTORY`. The program itself carries none of this.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use clap_complete::Shell;

mod commands;
mod reference;
mod roff;

fn main() -> ExitCode {
    let Some(directory) = env::args_os().nth(1) else {
        eprintln!("usage: pages DIRECTORY");
        return ExitCode::from(64);
    };
    match write(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pages: cannot write into {}: {error}", Path::new(&directory).display());
            ExitCode::from(70)
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    // Afresh: the page of a command that is gone must not stay.
    for part in ["man", "completions"] {
        let part = directory.join(part);
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part)?;
    }
    for (name, page) in commands::pages(tidegate::cli::command())? {
        fs::write(directory.join("man").join(name), page)?;
    }
    fs::write(directory.join("man/tidegate.toml.5"), reference::page(tidegate::config::reference()))?;
    for (shell, name) in [(Shell::Bash, "tidegate"), (Shell::Zsh, "_tidegate"), (Shell::Fish, "tidegate.fish")] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut tidegate::cli::command(), "tidegate", &mut script);
        fs::write(directory.join("completions").join(name), script)?;
    }
    Ok(())
}
