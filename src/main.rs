//! The program `tidegate`: parses the command line, dispatches, and turns the end into an exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::cli::main()
}
