//! `tidegate check`: the configuration as `run` would read it.

use std::path::PathBuf;

use super::Exit;
use crate::config::clouds::{AWS_IOT, aws_policy};
use crate::config::{Config, Loaded, Problem, points_table};
use crate::field::board::{self, gauges::Fault};
use crate::field::modbus::{forecast, listing};

/// `tidegate check`
#[derive(Debug, clap::Args)]
pub(super) struct CheckArguments {
    /// Configuration file, instead of /etc/tidegate/tidegate.toml
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the merged configuration and the file each value came from; secrets are masked
    #[arg(long)]
    effective: bool,
    /// Print each Modbus request: its bytes, its addresses, and the points it reads
    #[arg(long, conflicts_with_all = ["effective", "points"])]
    wire: bool,
    /// Print the points of a Modbus device, or of all, as CSV; `points = "file.csv"` of that device reads it back
    #[arg(long, value_name = "DEVICE", num_args = 0..=1, default_missing_value = "", conflicts_with = "effective")]
    points: Option<String>,
    /// Print the smallest AWS IoT policy that serves an uplink; it needs a name only where there are several
    #[arg(
        long,
        value_name = "UPLINK",
        num_args = 0..=1,
        default_missing_value = "",
        conflicts_with_all = ["effective", "wire", "points"]
    )]
    aws_policy: Option<String>,
}

pub(super) fn main(arguments: &CheckArguments) -> Exit {
    let loaded = match super::load(arguments.config.clone()) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    if let Some(device) = &arguments.points {
        return points(&loaded.config, device);
    }
    if let Some(uplink) = &arguments.aws_policy {
        return policy(&loaded.config, uplink);
    }
    if arguments.effective {
        print!("{}", loaded.effective);
    } else if arguments.wire {
        print!("{}", listing::requests(&loaded.config));
    } else {
        println!("The configuration is valid.");
        print!("{}{}", super::forecast::text(&loaded.config), board(&loaded.config));
    }
    Exit::Done
}

/// What of `[board]` is there, where this is that board.
fn board(config: &Config) -> String {
    let Some(board) = &config.board else { return String::new() };
    let points = board.all_points();
    let (mut there, mut text) = (Vec::new(), String::new());
    for (point, read) in points.iter().zip(board::look(board, &points)) {
        match read {
            Ok(_) => there.push(&*point.name),
            // What nobody has asked for and is not there is nobody's concern.
            Err(Fault::Absent(_)) if board.points.is_empty() => {}
            Err(fault) => text += &format!("board     no {}: {}\n", point.name, fault.reason()),
        }
    }
    if !there.is_empty() {
        text.insert_str(0, &format!("board     {}\n", there.join(", ")));
    }
    text
}

/// Prints the table of one device, or of all: then each behind its name, which is a comment in CSV.
fn points(config: &Config, wanted: &str) -> Exit {
    if wanted.is_empty() {
        for (name, device) in &config.modbus {
            print!("# {name}\n{}", points_table(device));
        }
        return Exit::Done;
    }
    match config.modbus.get(wanted) {
        Some(device) => {
            print!("{}", points_table(device));
            Exit::Done
        }
        None => {
            let names: Vec<&str> = config.modbus.keys().map(AsRef::as_ref).collect();
            eprintln!("tidegate: there is no Modbus device {wanted:?}; there are: {}", names.join(", "));
            Exit::Usage
        }
    }
}

/// Prints the policy of an uplink, with what AWS calls the account left to whoever has one.
fn policy(config: &Config, wanted: &str) -> Exit {
    let mut uplinks = config
        .uplinks
        .iter()
        .filter(|(name, uplink)| uplink.profile == &AWS_IOT && (wanted.is_empty() || name.as_ref() == wanted));
    match (uplinks.next(), uplinks.next()) {
        (Some((_, uplink)), None) => {
            println!("{:#}", aws_policy::policy(uplink));
            eprintln!("tidegate: write your account's number for {}, twelve digits", aws_policy::ACCOUNT);
            Exit::Done
        }
        (Some((first, _)), Some((second, _))) => {
            eprintln!("tidegate: which uplink? write --aws-policy {first} or --aws-policy {second}");
            Exit::Usage
        }
        (None, _) => {
            let which = if wanted.is_empty() {
                "no uplink has".to_owned()
            } else {
                format!("there is no uplink {wanted:?} with")
            };
            eprintln!("tidegate: {which} profile = \"aws-iot\"");
            Exit::Usage
        }
    }
}

/// The lines that cannot do what is asked of them.
pub(super) fn late_lines(loaded: &Loaded) -> Vec<Problem> {
    let warning = |forecast: forecast::Forecast| {
        let late = forecast.late?;
        let (asked, possible) = (seconds(late.asked), seconds(late.possible));
        Some(Problem {
            place: loaded.line_places.get(&forecast.line).cloned(),
            what: format!(
                "line {}: asked {asked}, possible {possible} (the device `{}`, with devices that take a usual time)",
                forecast.line, late.device
            ),
            help: Some(format!(
                "its {} requests take {:.0} % of the time: a longer `poll`, a higher `baud`, or a second line",
                forecast.requests,
                forecast.load * 100.0
            )),
        })
    };
    forecast::forecasts(&loaded.config).into_iter().filter_map(warning).collect()
}

fn seconds(duration: std::time::Duration) -> String {
    let text = format!("{:.1}", duration.as_secs_f64());
    format!("{} s", text.strip_suffix(".0").unwrap_or(&text))
}
