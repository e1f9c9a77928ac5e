//! `tidegate queue repair`: what a start does about a damaged store, on a stopped gateway and before its plant waits for
//! it: the store is moved aside, what is whole is taken over, what is not is declared. Then every row is proven once, and
//! what has rotted is given up and declared as well.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::super::Exit;
use super::super::progress::Progress;
use super::super::status::size;
use super::super::words::grouped;
use super::orders::Own;
use super::source::{Place, Source, say_look_error};
use super::{check, confirm, printable, strange};
use crate::clock::{Clock, ClockSource};
use crate::queue::inspect::{Answer, Files, LookError, Question, quarantines};
use crate::queue::upkeep::Order;

/// How often it is looked how far the work is.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A salvage that waits for room has none soon: nothing drains here.
const PATIENCE_FOR_ROOM: Duration = Duration::from_secs(3);

/// `tidegate queue repair`
#[derive(Debug, clap::Args)]
pub(super) struct RepairArguments {
    #[command(flatten)]
    place: Place,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

/// What there is to do.
struct Work {
    /// What is wrong, in words for a person.
    why: String,
    /// Pages that SQLite cannot put together, which a start does not look for in a large store.
    damage: Option<String>,
    /// Rows that have rotted: the scrub of the opened store may be quicker than we are to give them up.
    rotted: u64,
}

pub(super) fn main(arguments: &RepairArguments) -> Result<Exit, Exit> {
    let dir = arguments.place.dir()?;
    let Some(Work { why, damage, rotted }) = look(&dir)? else {
        eprintln!("the store is whole: there is nothing to repair");
        return Ok(Exit::Done);
    };
    let what = format!(
        "{why}\nThis does what a start of the gateway does about it: a damaged store is moved to {}, what is whole in it \
         is taken over into a new one under the same ids, and what is lost is counted and told to the clouds as a gap. \
         Rows that have rotted are given up and declared.",
        dir.join("quarantine").display()
    );
    confirm(&what, arguments.yes)?;
    let clock = Clock::new(ClockSource::Trusted);
    let begun = crate::clock::rfc3339(clock.now().wall_ms);
    let own = Own::open_as(&arguments.place, damage)?;
    let mended = mend(&own, &clock);
    let told = own.health.snapshot(clock.now());
    own.close()?;
    for problem in told.problems.iter().filter(|problem| problem.time >= begun && problem.text.starts_with("salvaged"))
    {
        eprintln!("{}", printable(&problem.text));
    }
    let given_up = mended?.max(rotted);
    if given_up > 0 {
        eprintln!("{} rows had rotted; they are given up and declared", grouped(given_up));
    }
    eprintln!("the store is in order");
    Ok(Exit::Done)
}

/// Looks for what there is to do, and changes nothing.
fn look(dir: &Path) -> Result<Option<Work>, Exit> {
    let files = match Files::open(dir, &Clock::new(ClockSource::Trusted)) {
        Ok(files) => files,
        Err(LookError::InUse { .. }) => {
            eprintln!("tidegate: the gateway runs, and mends its store beside its work: tidegate status tells of it");
            return Err(Exit::TryAgain);
        }
        Err(LookError::Damaged { reason, .. }) => {
            return Ok(Some(Work { why: format!("The store is damaged: {reason}."), damage: None, rotted: 0 }));
        }
        Err(error) => return Err(say_look_error(&error)),
    };
    eprintln!("SQLite looks through {} of pages …", size(files.bytes()));
    if let Some(fault) = files.look_through().map_err(|error| say_look_error(&error))? {
        let why = format!("The pages of the store do not belong together: {}.", printable(&fault));
        return Ok(Some(Work { why, damage: Some(fault), rotted: 0 }));
    }
    let found = check::whole(&Source::Stopped(Box::new(files)))?;
    if found.missing > 0 {
        let damage = format!("{} messages are missing in it", found.missing);
        return Ok(Some(Work { why: format!("The store is damaged: {damage}."), damage: Some(damage), rotted: 0 }));
    }
    let rotted = found.damaged + found.damaged_others;
    if rotted > 0 {
        let why = format!("{} rows of the store have rotted.", grouped(rotted));
        return Ok(Some(Work { why, damage: None, rotted }));
    }
    let wanting = quarantines(dir).into_iter().find(|(_, is_wanting)| *is_wanting);
    Ok(wanting.map(|(place, _)| Work { why: format!("{place} is still to be taken over."), damage: None, rotted: 0 }))
}

/// Waits for the salvage, then has every row proven. Gives back how many were given up.
fn mend(own: &Own, clock: &Clock) -> Result<u64, Exit> {
    let mut progress = Progress::new("repair");
    let mut waits_since = None;
    loop {
        let Answer::Stats(stats) = own.ask(Question::Stats)? else { return Err(strange()) };
        if stats.quarantines.values().all(|is_wanting| !is_wanting) {
            break;
        }
        let salvage = own.health.snapshot(clock.now()).salvage;
        let waits = salvage.as_ref().is_some_and(|salvage| salvage.waits_for_room);
        let since = *waits_since.get_or_insert_with(Instant::now);
        if !waits {
            waits_since = None;
        } else if since.elapsed() > PATIENCE_FOR_ROOM {
            progress.end();
            eprintln!("tidegate: the store has no room for the rest, which goes on while the gateway drains it");
            return Err(Exit::TryAgain);
        }
        if let Some(salvage) = salvage {
            progress.show(salvage.salvaged, salvage.waiting.unwrap_or(stats.messages.max(1)), "messages");
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let mut given_up = 0;
    loop {
        let Answer::Done { count, left } = own.order(Order::Scrub)? else { return Err(strange()) };
        given_up += count;
        if left == 0 {
            return Ok(given_up);
        }
    }
}
