//! `tidegate queue dead-letters`: what a cloud has refused for good, listed, shown, sent again or dropped.

use clap::Subcommand;

use super::super::Exit;
use super::super::status::print_out;
use super::super::words::grouped;
use super::orders::Hands;
use super::peek::body_words;
use super::source::{Place, Source};
use super::{confirm, printable, strange};
use crate::queue::inspect::{Answer, DeadLetter, Question};
use crate::queue::upkeep::Order;

/// Of each body so much is shown in a list.
const BODY_BYTES: u32 = 80;

/// Examples under the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  tidegate queue dead-letters list
  tidegate queue dead-letters show 3
  tidegate queue dead-letters retry 3 4 --yes
  tidegate queue dead-letters drop --all --yes

A dead letter that is sent again keeps its id, and waits behind all that waits. It leaves under the topic that
today's forward rules give it, and is accounted again in the ledger.";

/// `tidegate queue dead-letters`
#[derive(Debug, clap::Args)]
pub(super) struct LettersArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List them, the oldest first
    #[command(after_help = "Example: tidegate queue dead-letters list")]
    List {
        #[command(flatten)]
        place: Place,
        /// Print as NDJSON, whole
        #[arg(long)]
        json: bool,
    },
    /// Show one, whole, as JSON
    #[command(after_help = "Example: tidegate queue dead-letters show 7")]
    Show {
        /// Its number in the list
        number: i64,
        #[command(flatten)]
        place: Place,
    },
    /// Let them wait for their uplink again, under the same ids
    #[command(after_help = "Example: tidegate queue dead-letters retry 7 8")]
    Retry(Chosen),
    /// Forget them
    #[command(after_help = "Example: tidegate queue dead-letters drop --all")]
    Drop(Chosen),
}

#[derive(Debug, clap::Args)]
struct Chosen {
    /// Their numbers in the list
    #[arg(required_unless_present = "all")]
    numbers: Vec<i64>,
    /// All of them
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
    #[command(flatten)]
    place: Place,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

pub(super) fn main(arguments: &LettersArguments) -> Result<Exit, Exit> {
    match &arguments.command {
        Command::List { place, json } => list(place, *json),
        Command::Show { number, place } => show(*number, place),
        Command::Retry(chosen) => {
            let what = |count| {
                format!(
                    "This lets {} dead letters wait for their uplinks again, under the same ids. Where the reason has \
                     not gone they are refused again.",
                    grouped(count)
                )
            };
            change(chosen, what, |number| Order::RetryDeadLetter { number }, "wait again")
        }
        Command::Drop(chosen) => {
            let what = |count| {
                format!(
                    "This forgets {} dead letters for good; they are counted as lost (dead-letter-dropped).",
                    grouped(count)
                )
            };
            change(chosen, what, |number| Order::DropDeadLetter { number }, "are forgotten")
        }
    }
}

/// Every dead letter in turn, one answer in memory at a time.
fn each(
    ask: impl Fn(Question) -> Result<Answer, Exit>,
    body_bytes: u32,
    mut see: impl FnMut(DeadLetter),
) -> Result<(), Exit> {
    let mut after = 0;
    loop {
        let Answer::DeadLetters(page) = ask(Question::DeadLetters { after, count: u32::MAX, body_bytes })? else {
            return Err(strange());
        };
        page.rows.into_iter().for_each(&mut see);
        match page.next {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

fn list(place: &Place, json: bool) -> Result<Exit, Exit> {
    let source = Source::open(place)?;
    let mut count = 0_u64;
    each(
        |question| source.ask(question),
        if json { 0 } else { BODY_BYTES },
        |letter| {
            count += 1;
            let line = if json { serde_json::to_string(&letter).unwrap_or_default() } else { readable(&letter) };
            print_out(&(line + "\n"));
        },
    )?;
    if count == 0 && !json {
        eprintln!("there are no dead letters");
    }
    Ok(Exit::Done)
}

fn readable(letter: &DeadLetter) -> String {
    let DeadLetter { number, stream, time, reason, told } = letter;
    let stream = printable(stream.as_deref().unwrap_or("?"));
    let what = match told {
        Some(told) => format!("{}  {}", printable(&told.topic), body_words(told)),
        None => "damaged".to_owned(),
    };
    format!("{number}  {time}  {stream}  {}  {what}", printable(reason))
}

fn show(number: i64, place: &Place) -> Result<Exit, Exit> {
    let source = Source::open(place)?;
    let question = Question::DeadLetters { after: number.saturating_sub(1), count: 1, body_bytes: 0 };
    let Answer::DeadLetters(page) = source.ask(question)? else { return Err(strange()) };
    let Some(letter) = page.rows.first().filter(|letter| letter.number == number) else {
        eprintln!("tidegate: there is no dead letter {number}");
        return Err(Exit::Usage);
    };
    print_out(&(serde_json::to_string_pretty(letter).unwrap_or_default() + "\n"));
    Ok(Exit::Done)
}

fn change(
    chosen: &Chosen,
    what: impl Fn(u64) -> String,
    order: impl Fn(i64) -> Order,
    done: &str,
) -> Result<Exit, Exit> {
    let mut numbers = chosen.numbers.clone();
    if chosen.all {
        let source = Source::open(&chosen.place)?;
        // There are 1000 at most.
        each(|question| source.ask(question), 1, |letter| numbers.push(letter.number))?;
    }
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.is_empty() {
        eprintln!("there are no dead letters");
        return Ok(Exit::Done);
    }
    confirm(&what(numbers.len() as u64), chosen.yes)?;
    let hands = Hands::open(&chosen.place)?;
    let mut count = 0_u64;
    let mut failure = None;
    for number in numbers {
        match hands.order(order(number)) {
            Ok(_) => count += 1,
            // The others may do.
            Err(Exit::Usage) => failure = Some(Exit::Usage),
            Err(exit) => {
                failure = Some(exit);
                break;
            }
        }
    }
    hands.close()?;
    eprintln!("{} dead letters {done}", grouped(count));
    Ok(failure.unwrap_or(Exit::Done))
}
