//! `tidegate queue resend`: what was delivered and is kept (`keep_delivered`) is sent to its uplink once more.

use super::super::Exit;
use super::super::progress::Progress;
use super::super::status::{print_out, size};
use super::super::words::grouped;
use super::orders::Hands;
use super::source::Place;
use super::{confirm, printable, strange};
use crate::clock::{Clock, ClockSource, rfc3339};
use crate::config::Pace;
use crate::queue::inspect::{Answer, Question};
use crate::queue::kept::{ResendAsk, ResendPage};
use crate::queue::upkeep::Order;

/// Examples under the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  tidegate queue resend --uplink cloud --from 2026-11-26T08:00 --to 2026-11-26T09:00
  tidegate queue resend --uplink cloud --from 2026-11-20 --topic 'plant/press/#' --yes

What is sent again keeps its id, so that a receiver can tell that it has it. It goes in its order behind all that was
never delivered, under the topics of today's forward rules, and counts neither as delivered nor as lost. An order that
a kill or a power cut has interrupted may simply be given again. When the store is full it is what gives way first.";

/// Bytes a second of the line that an estimate is made for where no pace is set: 1 Mbit/s.
const LINE_BYTES_PER_S: u64 = 125_000;
/// What a message takes on the line beside its body, about.
const PACKET_BYTES: u64 = 40;

/// `tidegate queue resend`
#[derive(Debug, clap::Args)]
pub(super) struct ResendArguments {
    /// To this uplink
    #[arg(long, value_name = "UPLINK")]
    uplink: String,
    /// Not what came in before this time (UTC): 2026-11-26, 2026-11-26T08:30 or 2026-11-26T08:30:00Z
    #[arg(long, value_name = "TIME", value_parser = super::super::words::parse_time)]
    from: i64,
    /// Nor what came in at this time or later; without it: now
    #[arg(long, value_name = "TIME", value_parser = super::super::words::parse_time)]
    to: Option<i64>,
    /// Only topics that this filter matches, as they are here
    #[arg(long, value_name = "FILTER")]
    topic: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

pub(super) fn main(arguments: &ResendArguments) -> Result<Exit, Exit> {
    // What comes in from now on is not meant.
    let to_ms = arguments.to.unwrap_or_else(|| Clock::new(ClockSource::Trusted).now().wall_ms);
    let (uplink, topic) = (arguments.uplink.clone(), arguments.topic.clone());
    let ask = ResendAsk { uplink, from_ms: arguments.from, to_ms, topic, after: 0 };
    if ask.from_ms >= ask.to_ms {
        eprintln!("tidegate: --to is not after --from");
        return Err(Exit::Usage);
    }
    let hands = Hands::open(&arguments.place)?;
    let done = carry_out(arguments, &hands, &ask);
    // Also after a no: a store that was opened here is closed in order.
    hands.close()?;
    done
}

fn carry_out(arguments: &ResendArguments, hands: &Hands, ask: &ResendAsk) -> Result<Exit, Exit> {
    let found = each_page(ask, "look", |ask| hands.ask(Question::Kept(ask)))?;
    eprint!("{}", left_out(&found));
    if found.count == 0 {
        eprintln!("nothing of the {} messages that are kept is to be sent again", grouped(found.kept));
        return Ok(Exit::Done);
    }
    let loaded = arguments.place.loaded();
    let pace = loaded.and_then(|loaded| Some(loaded.config.uplinks.get(ask.uplink.as_str())?.pace));
    confirm(&what(ask, &found, pace), arguments.yes)?;
    let done = each_page(ask, "resend", |ask| hands.order(Order::Resend(ask)))?;
    let name = printable(&ask.uplink);
    print_out(&format!(
        "{} messages are sent to {name} again; tidegate status shows how many are left\n",
        grouped(done.count)
    ));
    Ok(Exit::Done)
}

/// All pages, added up.
fn each_page(
    ask: &ResendAsk,
    what: &'static str,
    mut page_of: impl FnMut(ResendAsk) -> Result<Answer, Exit>,
) -> Result<ResendPage, Exit> {
    let mut progress = Progress::new(what);
    let (mut ask, mut sum) = (ask.clone(), ResendPage::default());
    loop {
        let Answer::Resend(page) = page_of(ask.clone())? else { return Err(strange()) };
        let ResendPage { count, bytes, marked, too_old, undated, looked, next, kept } = page;
        sum.count += count;
        sum.bytes += bytes;
        sum.marked += marked;
        sum.too_old += too_old;
        sum.undated += undated;
        sum.looked += looked;
        sum.kept = kept;
        progress.show(sum.looked, kept, "messages");
        match next {
            Some(next) => ask.after = next,
            None => return Ok(sum),
        }
    }
}

/// What is not sent although it is of that time.
fn left_out(found: &ResendPage) -> String {
    let mut text = String::new();
    let lines = [
        (found.marked, "are to be sent again already"),
        (found.too_old, "are too old to be sent: older than [queue] max_age or than they themselves allow"),
        (found.undated, "came in while nobody knew the time: they are left out"),
    ];
    for (count, words) in lines.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("{} messages {words}\n", grouped(count));
    }
    text
}

fn what(ask: &ResendAsk, found: &ResendPage, pace: Option<Pace>) -> String {
    let topic =
        ask.topic.as_ref().map(|topic| format!(" of topics that {} matches", printable(topic))).unwrap_or_default();
    format!(
        "This sends {} messages{topic} to {} once more, {} that came in from {} to {}. They keep their ids and go behind \
         what was never delivered; {}.",
        grouped(found.count),
        printable(&ask.uplink),
        size(found.bytes),
        rfc3339(ask.from_ms),
        rfc3339(ask.to_ms),
        time_words(found, pace)
    )
}

fn time_words(found: &ResendPage, pace: Option<Pace>) -> String {
    let bytes = found.bytes + found.count * PACKET_BYTES;
    let by_count = pace.and_then(|pace| pace.messages_per_s).map(|rate| found.count / u64::from(rate.get()));
    let by_bytes = pace.and_then(|pace| pace.bytes_per_s).map(|rate| bytes / rate.get());
    match by_count.max(by_bytes) {
        Some(seconds) => format!("at the uplink's pace that takes about {}", duration(seconds)),
        None => format!("over a line of 1 Mbit/s that takes about {}", duration(bytes / LINE_BYTES_PER_S)),
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{} s", seconds.max(1)),
        120..=7199 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_person_reads_how_many_how_large_and_how_long_before_anything_is_done() {
        let ask = ResendAsk {
            uplink: "cloud\x07".to_owned(),
            from_ms: 1_795_651_200_000,
            to_ms: 1_795_654_800_000,
            topic: Some("plant/#".to_owned()),
            after: 0,
        };
        let found = ResendPage { count: 120_000, bytes: 24 << 20, marked: 3, undated: 1, ..ResendPage::default() };
        let text = what(&ask, &found, None);
        assert!(text.contains("120,000 messages of topics that plant/# matches to cloud\\u{7}"), "{text}");
        assert!(text.contains("from 2026-11-26T00:00:00.000Z to 2026-11-26T01:00:00.000Z"), "{text}");
        assert!(text.contains("over a line of 1 Mbit/s that takes about 4 min"), "{text}");
        let pace = Pace { messages_per_s: NonZeroU32::new(10), bytes_per_s: None };
        assert!(what(&ask, &found, Some(pace)).contains("at the uplink's pace that takes about 4 h"));
        let left = left_out(&found);
        assert!(
            left.contains("3 messages are to be sent again already\n") && left.contains("1 messages came in"),
            "{left}"
        );
        assert_eq!((duration(0).as_str(), duration(119).as_str()), ("1 s", "119 s"));
    }
}
