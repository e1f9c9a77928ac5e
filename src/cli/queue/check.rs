//! `tidegate queue check`: proves every row of the store. Changes nothing.

use super::super::Exit;
use super::super::progress::Progress;
use super::super::status::{print_out, size};
use super::super::words::grouped;
use super::source::{Place, Source, say_look_error};
use super::{printable, strange};
use crate::queue::inspect::{Answer, CheckPage, CheckPlace, Question};

/// Faults that are told one by one.
const FAULTS_TOLD: usize = 20;

pub(super) fn main(place: &Place) -> Result<Exit, Exit> {
    let source = Source::open(place)?;
    if let Source::Stopped(files) = &source {
        eprintln!("SQLite looks through {} of pages …", size(files.bytes()));
        if let Some(fault) = files.look_through().map_err(|error| say_look_error(&error))? {
            print_out(&format!("the pages do not belong together: {fault}\n"));
            eprintln!("help: tidegate queue repair moves such a store aside and takes over what is whole");
            return Ok(Exit::Failed);
        }
    }
    tell(&whole(&source)?, source.is_live())
}

/// Has every row proven.
pub(super) fn whole(source: &Source) -> Result<CheckPage, Exit> {
    let mut sum = CheckPage::default();
    let mut progress = Progress::new("check");
    let mut next = Some(CheckPlace::default());
    let mut first = None;
    while let Some(place) = next.take() {
        let Answer::Check(page) = source.ask(Question::Check { place })? else { return Err(strange()) };
        if let Some(CheckPlace::Messages(place)) = page.next {
            let first = *first.get_or_insert(place.saturating_sub(page.rows));
            progress.show(place.saturating_sub(first), page.last.saturating_sub(first), "places");
        }
        next.clone_from(&page.next);
        add(&mut sum, page);
    }
    Ok(sum)
}

fn add(sum: &mut CheckPage, page: CheckPage) {
    sum.rows += page.rows;
    sum.bytes += page.bytes;
    sum.damaged += page.damaged;
    sum.missing += page.missing;
    sum.damaged_others += page.damaged_others;
    let room = FAULTS_TOLD.saturating_sub(sum.faults.len());
    sum.faults.extend(page.faults.into_iter().take(room));
}

fn tell(sum: &CheckPage, is_live: bool) -> Result<Exit, Exit> {
    for fault in &sum.faults {
        print_out(&(printable(fault) + "\n"));
    }
    let wrong = sum.damaged + sum.missing + sum.damaged_others;
    let head = format!("{} rows, {} of bodies", grouped(sum.rows), size(sum.bytes));
    if wrong == 0 {
        print_out(&format!("{head}: all of them are whole\n"));
        return Ok(Exit::Done);
    }
    let CheckPage { damaged, missing, damaged_others, .. } = sum;
    print_out(&format!(
        "{head}: {damaged} damaged, {missing} missing, {damaged_others} damaged that wait for nobody\n"
    ));
    if is_live {
        eprintln!("help: a damaged row is given up, counted and told as a gap when its turn comes; look at the disk");
    } else {
        eprintln!("help: tidegate queue repair; and look at the disk");
    }
    Ok(Exit::Failed)
}
