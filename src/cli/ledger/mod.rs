//! `tidegate ledger`: the durable daily account, from the running gateway or from the files of a stopped one.

use std::path::{Path, PathBuf};

use self::table::{gaps_table, lines_table};
use self::verify::{Export, Verdict, verify};
use super::status::{print_out, wall_ms_of};
use super::{Exit, block_on};
use crate::clock::{Clock, ClockSource};
use crate::control::{self, AskError, Request};
use crate::health::chain;
use crate::queue::ledger::{self, DAYS_KEPT, Days, ReadError, Report};

mod table;

mod verify;

const DAY_MS: i64 = 86_400_000;

/// Days that one question asks for: its answer fits the gateway's deadline and the longest answer.
const DAYS_ASKED: i64 = 31;

/// What stands under `tidegate ledger --help`.
pub(super) const LONG_HELP: &str = "\
For each day, uplink and source (a device, or the local clients together) the ledger says how many messages were \
accepted, delivered and dropped, and how many still wait; for each device also how many values were read, and \
how many of them its report rule held back.

accepted = delivered + dropped + waiting, on every line, also over power cuts and full disks. A message stands \
under the day on which it was accepted, whenever it was delivered. Days are UTC by the gateway's clock; what \
came while that was not set stands under `unset`. What was read in the last minute before a power cut may be \
missing from `read` and `held back`; the other columns lack nothing.

The ledger keeps 400 days and 1024 devices (those beyond are accounted together as `(others)`), and 4096 gaps; \
with a small store it keeps fewer days: it takes at most a sixteenth of it. It begins anew with a store that \
replaces a damaged one; `kept since` tells.

With --verify a CSV that was exported from the cloud is compared with what the ledger says is delivered. It has \
a header with a column `id` (message ids as they are in the payload or in the property tidegate-id), or with the \
columns `device` and `seq`, or all three. Where a gateway delivers only some points of a device to an uplink, \
the numbers have too many holes to be kept one by one: then only their sum is compared, and `by count` stands \
there.

Exit status: 0, or with --verify: 0 all that the ledger says is delivered is in the file, 70 something is \
missing; 64 wrong usage, 75 the gateway does not answer.";

/// Examples under the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  tidegate ledger
  tidegate ledger --month 2026-11 --gaps
  tidegate ledger --month 2026-11 --verify export.csv";

/// `tidegate ledger`
#[derive(Debug, clap::Args)]
pub(super) struct LedgerArguments {
    /// Configuration file, for where the state directory is
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State directory, instead of the configuration's
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// Which month, as 2026-11; the present one where nothing is written, with --verify all that is kept
    #[arg(long, value_name = "MONTH", value_parser = parse_month)]
    month: Option<Days>,
    /// Only this uplink
    #[arg(long, value_name = "NAME")]
    uplink: Option<String>,
    /// Show when nothing was measured: a device did not answer, or the gateway was off
    #[arg(long)]
    gaps: bool,
    /// Compare with what the cloud has: its export as CSV with the column `id`, or `device` and `seq`
    #[arg(long, value_name = "FILE.csv")]
    verify: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// `2026-11` as days.
fn parse_month(text: &str) -> Result<Days, String> {
    let wrong = || format!("{text:?} is not a month; write it as 2026-11");
    let (year, month) = text.split_once('-').ok_or_else(wrong)?;
    let (year, month): (u32, u32) = (year.parse().map_err(|_| wrong())?, month.parse().map_err(|_| wrong())?);
    let first_of = |year: u32, month: u32| {
        let ms = wall_ms_of(&format!("{year:04}-{month:02}-01T00:00:00.000Z")).ok_or_else(wrong)?;
        Ok::<i64, String>(ms.div_euclid(DAY_MS))
    };
    let next =
        if month == 12 { first_of(year.saturating_add(1), 1)? } else { first_of(year, month.saturating_add(1))? };
    Ok(Days { from: first_of(year, month)?, to: next - 1 })
}

pub(super) fn main(arguments: &LedgerArguments) -> Exit {
    let state_dir = match &arguments.state_dir {
        Some(state_dir) => state_dir.clone(),
        None => match super::state_dir(arguments.config.clone()) {
            Ok(state_dir) => state_dir,
            Err(exit) => return exit,
        },
    };
    let clock = Clock::new(ClockSource::Trusted);
    let today = ledger::today(&clock);
    let this_month = crate::clock::rfc3339(today.saturating_mul(DAY_MS));
    let this_month = parse_month(this_month.get(..7).unwrap_or_default()).unwrap_or(Days { from: today, to: today });
    let days = match (arguments.month, &arguments.verify) {
        (Some(month), _) => month,
        (None, None) => this_month,
        (None, Some(_)) => Days { from: today - DAYS_KEPT, to: today + 1 },
    };
    let report = match fetch(&state_dir, days, &clock) {
        Ok(report) => report,
        Err(reason) => {
            eprintln!("tidegate: {reason}");
            eprintln!("help: are you root or the gateway's user, and is {} its state directory?", state_dir.display());
            return Exit::TryAgain;
        }
    };
    let report = of_uplink(report, arguments.uplink.as_deref());
    if let Some(path) = &arguments.verify {
        return compare(&report, path, arguments);
    }
    if arguments.json {
        print_json(&report);
    } else if arguments.gaps {
        print_out(&gaps_table(&report));
    } else {
        print_out(&lines_table(&report));
    }
    Exit::Done
}

fn of_uplink(mut report: Report, uplink: Option<&str>) -> Report {
    if let Some(uplink) = uplink {
        report.lines.retain(|line| line.uplink == uplink);
        report.ids.retain(|line| line.uplink == uplink);
    }
    report
}

fn print_json(value: &impl serde::Serialize) {
    // Texts and numbers only: there is nothing in it that cannot be written.
    print_out(&(serde_json::to_string(value).unwrap_or_default() + "\n"));
}

/// From the files where nobody uses them, else from the gateway that does (DESIGN.md 6.1).
fn fetch(state_dir: &Path, days: Days, clock: &Clock) -> Result<Report, String> {
    match ledger::read(state_dir, days, clock) {
        Ok(report) => return Ok(report),
        Err(ReadError::InUse { .. }) => {}
        Err(error) => return Err(chain(&error)),
    }
    let mut whole = Report::default();
    let mut from = days.from;
    while from <= days.to {
        let to = days.to.min(from + DAYS_ASKED - 1);
        let asked = ask(state_dir, Days { from, to }).map_err(|error| chain(&error))?;
        let piece: Report = serde_json::from_str(&asked).map_err(|_| refusal(&asked))?;
        add(&mut whole, piece, from == days.from);
        from = to + 1;
    }
    Ok(whole)
}

fn ask(state_dir: &Path, days: Days) -> Result<String, AskError> {
    let mut answer = Err(AskError::Late);
    block_on(async {
        answer = control::ask(state_dir, Request::Ledger { days }).await;
        Exit::Done
    });
    answer
}

fn refusal(answer: &str) -> String {
    let told: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
    let reason = told.get("error").and_then(serde_json::Value::as_str).unwrap_or("it is of another version");
    format!("the gateway gives no ledger: {reason}")
}

/// What has no day, and gaps that reach over several pieces, are taken once.
fn add(whole: &mut Report, piece: Report, is_first: bool) {
    let Report { gateway, since, lines, field, ids, gaps, damaged_lines } = piece;
    (whole.gateway, whole.since) = (gateway, since);
    whole.damaged_lines = damaged_lines;
    whole.lines.extend(lines.into_iter().filter(|line| is_first || line.day != "unset"));
    whole.field.extend(field.into_iter().filter(|line| is_first || line.day != "unset"));
    whole.ids.extend(ids.into_iter().filter(|line| is_first || line.day != "unset"));
    for gap in gaps {
        if !whole.gaps.contains(&gap) {
            whole.gaps.push(gap);
        }
    }
}

fn compare(report: &Report, path: &Path, arguments: &LedgerArguments) -> Exit {
    let uplinks: std::collections::BTreeSet<&str> = report.lines.iter().map(|line| line.uplink.as_str()).collect();
    if uplinks.len() > 1 {
        let names: Vec<&str> = uplinks.into_iter().collect();
        eprintln!("tidegate: there are several uplinks: say with --uplink whose export it is ({})", names.join(", "));
        return Exit::Usage;
    }
    let export = match std::fs::File::open(path).map_err(|error| error.to_string()).and_then(Export::read) {
        Ok(export) => export,
        Err(error) => {
            eprintln!("tidegate: cannot read {}: {error}", path.display());
            return Exit::Usage;
        }
    };
    let verdict: Verdict = verify(report, &export);
    if arguments.json {
        print_json(&verdict);
    } else {
        print_out(&verdict.readable(report));
    }
    if verdict.missing == 0 { Exit::Done } else { Exit::Failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_read_and_nonsense_is_not() {
        assert_eq!(parse_month("2026-11"), Ok(Days { from: 20_758, to: 20_787 }));
        assert_eq!(parse_month("2024-02").map(|days| days.to - days.from), Ok(28));
        assert_eq!(parse_month("2026-12").map(|days| days.to - days.from), Ok(30));
        for nonsense in ["", "2026", "2026-13", "2026-0", "26-11-1", "1969-01", "x-y", "99999-01", "4294967295-12"] {
            assert!(parse_month(nonsense).is_err(), "{nonsense}");
        }
    }
}
