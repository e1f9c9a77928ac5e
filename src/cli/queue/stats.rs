//! `tidegate queue stats`: how much is in the store, and for whom.

use std::fmt::Write as _;

use super::super::Exit;
use super::super::status::{loss_words, print_out, size};
use super::super::words::grouped;
use super::source::{Place, Source};
use super::{printable, strange};
use crate::queue::WRITES;
use crate::queue::inspect::{Answer, Question, StoreStats};

/// `tidegate queue stats`
#[derive(Debug, clap::Args)]
pub(super) struct StatsArguments {
    #[command(flatten)]
    place: Place,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn main(arguments: &StatsArguments) -> Result<Exit, Exit> {
    let source = Source::open(&arguments.place)?;
    let Answer::Stats(mut stats) = source.ask(Question::Stats)? else { return Err(strange()) };
    if !source.is_live()
        && let Some(loaded) = arguments.place.loaded()
    {
        for (name, line) in &mut stats.streams {
            line.is_configured = Some(loaded.config.uplinks.contains_key(name.as_str()) || name == WRITES);
        }
    }
    if arguments.json {
        // Texts and numbers only: there is nothing in it that cannot be written.
        print_out(&(serde_json::to_string(&stats).unwrap_or_default() + "\n"));
    } else {
        print_out(&readable(&stats, source.is_live()));
    }
    Ok(Exit::Done)
}

fn readable(stats: &StoreStats, is_live: bool) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _written = write_readable(&mut out, stats, is_live);
    out
}

fn write_readable(out: &mut String, stats: &StoreStats, is_live: bool) -> std::fmt::Result {
    let of = stats.max_bytes.map(|most| format!(" of {}", size(most))).unwrap_or_default();
    let how = if is_live { "" } else { "; the gateway is stopped" };
    writeln!(out, "store    {} messages, {}{of}{how}", grouped(stats.messages), size(stats.bytes))?;
    if stats.kept > 0 {
        let (kept, bytes) = (grouped(stats.kept), size(stats.kept_bytes));
        writeln!(out, "kept     {kept} delivered messages, {bytes} of these; they give way to what comes")?;
    }
    for (name, line) in &stats.streams {
        if line.waiting + line.again == 0 && line.is_configured == Some(false) {
            continue;
        }
        write!(out, "{:<8} {}: {} waiting", "stream", printable(name), grouped(line.waiting))?;
        if line.in_flight > 0 {
            write!(out, ", {} under way at QoS 2", grouped(line.in_flight))?;
        }
        if line.again > 0 {
            write!(out, ", {} to be sent again", grouped(line.again))?;
        }
        if let Some(oldest) = &line.oldest {
            write!(out, ", the oldest since {oldest}")?;
        }
        writeln!(out)?;
        if line.is_configured == Some(false) {
            writeln!(out, "         no uplink of this name is configured: they wait for one, or for")?;
            writeln!(out, "         tidegate queue drop-stream {}", printable(name))?;
        }
    }
    let sessions = &stats.sessions;
    if sessions.count > 0 {
        writeln!(out, "sessions {} kept, {} waiting", grouped(sessions.count), grouped(sessions.waiting))?;
    }
    for (client, count) in sessions.clients.iter().take(5) {
        writeln!(out, "         {}: {}", printable(client), grouped(*count))?;
    }
    writeln!(out, "retained {}", grouped(stats.retained))?;
    write!(out, "refused  {} dead letters", grouped(stats.dead_letters))?;
    writeln!(out, "{}", if stats.dead_letters > 0 { ": tidegate queue dead-letters list" } else { "" })?;
    for (reason, count) in &stats.losses {
        writeln!(out, "losses   {} {}", grouped(*count), loss_words(reason))?;
    }
    for (place, is_wanting) in &stats.quarantines {
        let how = if *is_wanting { "is still to be taken over" } else { "all that is whole was taken over" };
        writeln!(out, "aside    {}: {how}", printable(place))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::inspect::{SessionsLine, StreamLine};

    #[test]
    fn a_person_sees_for_whom_messages_wait_and_what_to_do_about_an_orphan() {
        let line = |waiting, is_configured| StreamLine { is_configured, waiting, ..StreamLine::default() };
        let stats = StoreStats {
            messages: 1204,
            bytes: 3 << 20,
            max_bytes: Some(1 << 30),
            streams: [("cloud", line(1200, Some(true))), ("old", line(4, Some(false))), ("gone", line(0, Some(false)))]
                .map(|(name, line)| (name.to_owned(), line))
                .into(),
            sessions: SessionsLine { count: 2, waiting: 12, clients: vec![("panel\x07".to_owned(), 12)] },
            dead_letters: 1,
            kept: 12_000,
            kept_bytes: 2 << 20,
            ..StoreStats::default()
        };
        let text = readable(&stats, true);
        assert!(text.contains("store    1,204 messages, 3072 KiB of 1 GiB\n"), "{text}");
        assert!(text.contains("kept     12,000 delivered messages, 2048 KiB of these;"), "{text}");
        assert!(text.contains("stream   cloud: 1,200 waiting\n"), "{text}");
        assert!(text.contains("tidegate queue drop-stream old\n") && !text.contains("gone"), "{text}");
        assert!(text.contains("panel\\u{7}: 12"), "{text}");
        assert!(text.contains("1 dead letters: tidegate queue dead-letters list"), "{text}");
        assert!(readable(&stats, false).contains("the gateway is stopped"));
    }
}
