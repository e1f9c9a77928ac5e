//! The command line: one file a subcommand. Nothing is decided here that a stage should decide.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::{self, LoadRequest, Loaded, Problem};

mod backup;
mod check;
mod demo;
mod doctor;
mod drill;
mod example;
mod forecast;
mod import;
mod ledger;
mod modbus;
mod passwd;
mod queue;
mod reload;
mod run;
mod serial;
mod simulate;
mod status;

mod progress;

mod publisher;

mod secret;

mod tally;

mod tls;

mod words;

/// How the program ends (DESIGN.md 5); systemd's unit relies on 78.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Drained and stopped, or done.
    Done = 0,
    /// Wrong usage.
    Usage = 64,
    /// A failed stage, or a bug of ours.
    Failed = 70,
    /// Try again.
    TryAgain = 75,
    /// Wrong configuration.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Firmware for IoT gateways: an acknowledged message is never lost.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, arg_required_else_help = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway in the foreground
    #[command(after_help = "Example: tidegate run --config ./tidegate.toml")]
    Run(RunArguments),
    /// See the promise kept on this machine: three drills with nothing installed
    #[command(after_help = "Example: tidegate demo --beside mosquitto")]
    Demo(demo::DemoArguments),
    /// Check the configuration: every problem at its place; exit status 0 or 78
    #[command(after_help = "Example: tidegate check --config ./tidegate.toml --effective")]
    Check(check::CheckArguments),
    /// Ask the running gateway how it is
    #[command(after_help = "Example: tidegate status --wait healthy --timeout 60s")]
    Status(status::StatusArguments),
    /// Let the running gateway read its configuration again: only what is different changes
    #[command(after_help = reload::EXAMPLES)]
    Reload(reload::ReloadArguments),
    /// Account for each day, device and uplink; compare with the cloud's export
    #[command(after_help = ledger::EXAMPLES, after_long_help = format!("{}\n\n{}", ledger::LONG_HELP, ledger::EXAMPLES))]
    Ledger(ledger::LedgerArguments),
    /// Look into the store, write down what waits, mend it; while the gateway runs and while it does not
    #[command(after_help = queue::EXAMPLES)]
    Queue(queue::QueueArguments),
    /// Put configuration, queue and identity into one file, while the gateway runs or not
    #[command(after_help = backup::EXAMPLES)]
    Backup(backup::BackupArguments),
    /// Make a gateway of a backup
    #[command(after_help = backup::restore::EXAMPLES)]
    Restore(backup::restore::RestoreArguments),
    /// The acceptance test at your site: pull the cable, pull the plug, and see that nothing is lost
    #[command(after_help = drill::EXAMPLES, after_long_help = format!("{}\n\n{}", drill::LONG_HELP, drill::EXAMPLES))]
    Drill(drill::DrillArguments),
    /// Go the way to the cloud step by step, and say what is wrong and what to change
    #[command(
        after_help = "Example: tidegate doctor --uplink cloud\nExit status: 0 nothing is wrong, 75 not reached now, 78 \
                            something must be changed"
    )]
    Doctor(doctor::DoctorArguments),
    /// Make the hash of a password, and print the lines of the configuration that it goes into
    #[command(after_help = passwd::EXAMPLES)]
    Passwd(passwd::PasswdArguments),
    /// Carry over what Mosquitto has: its configuration, its retained messages
    #[command(after_help = "Example: tidegate import mosquitto /etc/mosquitto/mosquitto.conf > tidegate.toml")]
    Import(import::ImportArguments),
    /// Print a starting configuration
    #[command(after_help = "Example: tidegate example rs485-aws > tidegate.toml")]
    Example(example::ExampleArguments),
    /// Look at serial ports and at what devices say on them, before any configuration exists
    #[command(after_help = "Example: tidegate serial watch /dev/ttyUSB0 --baud 9600")]
    Serial(serial::SerialArguments),
    /// Commission Modbus devices before there is a configuration: read, write, scan, guess
    #[command(after_help = modbus::EXAMPLES)]
    Modbus(modbus::ModbusArguments),
    /// Simulate a field device to test against
    #[command(after_help = "Example: tidegate simulate modbus --listen 127.0.0.1:5020 --units 1-3")]
    Simulate(simulate::SimulateArguments),
}

/// `tidegate run`
#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Configuration file, instead of /etc/tidegate/tidegate.toml
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take down what goes over each line and serial port, in this directory, for `tidegate simulate … --replay`
    #[arg(long, value_name = "DIRECTORY")]
    record: Option<PathBuf>,
}

/// The command line as it is, for whoever writes manual pages and completions of it.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // Where the terminal is gone there is nobody to tell.
            let _closed = error.print();
            return exit.into();
        }
    };
    let exit = match arguments.command {
        Command::Run(arguments) => run::main(arguments.config, arguments.record),
        Command::Demo(arguments) => demo::main(&arguments),
        Command::Check(arguments) => check::main(&arguments),
        Command::Status(arguments) => status::main(&arguments),
        Command::Reload(arguments) => reload::main(&arguments),
        Command::Ledger(arguments) => ledger::main(&arguments),
        Command::Backup(arguments) => backup::main(&arguments),
        Command::Restore(arguments) => backup::restore::main(&arguments),
        Command::Queue(arguments) => queue::main(&arguments),
        Command::Drill(arguments) => drill::main(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Import(arguments) => import::main(arguments),
        Command::Passwd(arguments) => passwd::main(&arguments),
        Command::Example(arguments) => example::main(&arguments),
        Command::Serial(arguments) => serial::main(arguments),
        Command::Modbus(arguments) => modbus::main(&arguments),
        Command::Simulate(arguments) => simulate::main(arguments),
    };
    exit.into()
}

/// Runs `work` on a runtime of its own.
fn block_on(work: impl Future<Output = Exit>) -> Exit {
    // Two workers: the boards have one to four cores, and the queue and the router have threads of their own.
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(work);
            // A name that is still being resolved must not hold up the end.
            runtime.shutdown_background();
            exit
        }
        Err(error) => {
            eprintln!("tidegate: cannot start: {error}");
            Exit::Failed
        }
    }
}

/// Name of the file in the state directory that keeps the gateway's id from its first start on.
const ID_FILE: &str = "gateway-id";

/// Loads the configuration as `run` and `check` both read it; problems and warnings are printed.
fn load(config: Option<PathBuf>) -> Result<Loaded, Exit> {
    let loaded = read(config)?;
    let problems = tls::problems(&loaded);
    let warnings = [loaded.warnings.clone(), check::late_lines(&loaded), tls::warnings(&loaded)].concat();
    eprint!("{}", config::render(&problems, &warnings));
    if problems.is_empty() { Ok(loaded) } else { Err(Exit::Config) }
}

/// The same for whoever tells the problems himself.
fn load_quietly(config: Option<PathBuf>) -> Result<Loaded, (Vec<Problem>, Vec<Problem>)> {
    let loaded = tried(config).map_err(|problems| (problems, Vec::new()))?;
    let problems = tls::problems(&loaded);
    if problems.is_empty() { Ok(loaded) } else { Err((problems, loaded.warnings)) }
}

/// Loads the configuration and prints its problems, but no warnings.
fn read(config: Option<PathBuf>) -> Result<Loaded, Exit> {
    tried(config).map_err(|problems| {
        eprint!("{}", config::render(&problems, &[]));
        Exit::Config
    })
}

/// The state directory, for a command that asks the running gateway: it must answer also while a key is at hand for the
/// service only, or while somebody is writing the next configuration.
fn state_dir(config: Option<PathBuf>) -> Result<PathBuf, Exit> {
    config::state_dir(&LoadRequest::standard(config)).map_err(|problems| {
        eprint!("{}", config::render(&problems, &[]));
        Exit::Config
    })
}

fn tried(config: Option<PathBuf>) -> Result<Loaded, Vec<Problem>> {
    let request = LoadRequest {
        kept_id: Some(Box::new(|state_dir| {
            let id = std::fs::read_to_string(state_dir.join(ID_FILE)).ok()?;
            Some(id.trim().to_owned())
        })),
        ..LoadRequest::standard(config)
    };
    config::load(&request)
}

/// A duration of the command line, written as in the configuration.
fn parse_duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names from the program to a command, and its help.
    fn helps(mut command: clap::Command, path: &str, into: &mut Vec<(String, String)>) {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        into.push((path.clone(), command.render_help().to_string()));
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            helps(inner.clone(), &path, into);
        }
    }

    #[test]
    fn each_command_shows_an_example_of_itself_that_can_be_typed() {
        let mut all = Vec::new();
        helps(command(), "", &mut all);
        assert!(all.len() > 20, "{}", all.len());
        let is_without = |(path, help): &&(String, String)| {
            // Wrapped lines are one.
            let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
            let place = words.find("Example: ").or_else(|| words.find("Examples: "));
            place.and_then(|place| words.get(place..)).is_none_or(|examples| !examples.contains(path.as_str()))
        };
        let without: Vec<&String> = all.iter().skip(1).filter(is_without).map(|(path, _)| path).collect();
        assert_eq!(without, Vec::<&String>::new(), "these show no example of themselves");
    }

    #[test]
    fn a_slip_in_a_command_or_an_option_suggests_the_right_one() {
        for (typed, meant) in [
            (&["statsu"][..], "'status'"),
            (&["relaod"], "'reload'"),
            (&["check", "--efective"], "'--effective'"),
            (&["status", "--jsn"], "'--json'"),
            (&["modbus", "scann"], "'scan'"),
            (&["serial", "lst"], "'list'"),
            (&["import", "mosquito"], "'mosquitto'"),
            (&["status", "--wait", "healty"], "'healthy'"),
        ] {
            let words = std::iter::once("tidegate").chain(typed.iter().copied());
            let said = Arguments::try_parse_from(words).unwrap_err().to_string();
            assert!(said.contains("tip: ") && said.contains(meant), "{typed:?}: {said}");
        }
    }
}
