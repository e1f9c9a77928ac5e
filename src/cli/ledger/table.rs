//! The ledger in 80 columns. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cli::status::{loss_words, span};
use crate::cli::words::grouped;
use crate::queue::ledger::{FieldLine, GapLine, Report, ReportLine};

/// Devices and days, one table for each uplink.
pub(super) fn lines_table(report: &Report) -> String {
    let mut text = heading(report);
    let uplinks: BTreeSet<&str> = report.lines.iter().map(|line| line.uplink.as_str()).collect();
    for uplink in &uplinks {
        let lines: Vec<&ReportLine> = report.lines.iter().filter(|line| line.uplink == *uplink).collect();
        text.push_str(&format!("\nuplink {uplink}\n"));
        text.push_str(&one_table(&lines, &report.field));
    }
    if uplinks.is_empty() {
        if report.field.is_empty() {
            text.push_str("\nNothing was read or accepted in these days.\n");
        } else {
            text.push_str("\nno uplink took anything\n");
            text.push_str(&one_table(&[], &report.field));
        }
    }
    if report.damaged_lines > 0 {
        text.push_str(&format!("\n{} lines of the ledger are damaged and left out.\n", report.damaged_lines));
    }
    let gaps = report.gaps.len();
    if gaps > 0 {
        text.push_str(&format!("\ntimes without measuring: {gaps} (tidegate ledger --gaps)\n"));
    }
    text
}

fn heading(report: &Report) -> String {
    let since = report.since.split('T').next().unwrap_or_default();
    format!("ledger of {}, days in UTC by its clock, kept since {since}\n", report.gateway)
}

fn one_table(lines: &[&ReportLine], field: &[FieldLine]) -> String {
    let mut keys: BTreeSet<(&str, &str)> = lines.iter().map(|line| (line.day.as_str(), line.source.as_str())).collect();
    keys.extend(field.iter().map(|line| (line.day.as_str(), line.device.as_str())));
    let mut text = row(["day", "source", "read", "held back", "accepted", "delivered", "dropped", "waiting"]);
    let mut sums = [0_u64; 5];
    let mut waiting_sum = 0;
    for (day, source) in &keys {
        let read = field.iter().find(|line| line.day == *day && line.device == *source);
        let line = lines.iter().find(|line| line.day == *day && line.source == *source);
        let (read, held) = read.map_or((0, 0), |line| (line.read, line.held_back));
        let (accepted, delivered) = line.map_or((0, 0), |line| (line.accepted, line.delivered));
        let dropped = line.map_or(0, |line| line.dropped.values().sum());
        let waiting = line.map_or(0, |line| line.waiting);
        let values = [read, held, accepted, delivered, dropped];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        waiting_sum += waiting;
        text.push_str(&numbers(short_day(day), source, values, waiting));
    }
    if keys.len() > 1 {
        text.push_str(&"-".repeat(79));
        text.push('\n');
        text.push_str(&numbers("sum", "", sums, waiting_sum));
    }
    for line in lines {
        for (reason, count) in &line.dropped {
            text.push_str(&wrapped(&format!(
                "{} {}: {} {}",
                short_day(&line.day),
                line.source,
                grouped(*count),
                loss_words(reason)
            )));
        }
    }
    text
}

/// `2026-11-25` → `11-25`; the year stands above.
fn short_day(day: &str) -> &str {
    day.get(5..).filter(|rest| rest.len() == 5).unwrap_or(day)
}

fn numbers(day: &str, source: &str, [read, held, accepted, delivered, dropped]: [u64; 5], waiting: i64) -> String {
    let waiting = match u64::try_from(waiting) {
        Ok(waiting) => grouped(waiting),
        // Rows that cannot be read any more end under a line of their own.
        Err(_) => format!("-{}", grouped(waiting.unsigned_abs())),
    };
    let [read, held, accepted, delivered, dropped] = [read, held, accepted, delivered, dropped].map(grouped);
    row([day, source, &read, &held, &accepted, &delivered, &dropped, &waiting])
}

fn row([day, source, read, held, accepted, delivered, dropped, waiting]: [&str; 8]) -> String {
    let source =
        if source.chars().count() > 15 { source.chars().take(14).chain(['~']).collect() } else { source.to_owned() };
    let right = format!("{read:>9} {held:>9} {accepted:>9} {delivered:>9} {dropped:>8} {waiting:>8}");
    // A sum that is wider takes its room from the name, which it has none of.
    let name = 79_usize.saturating_sub(7 + right.len());
    format!("{day:5} {source:name$} {right}\n")
}

/// A sentence in lines of at most 74 columns, so that there is room to move it in.
fn wrapped(sentence: &str) -> String {
    let mut text = String::new();
    let mut width = 0;
    for word in sentence.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > 74 {
            text.push_str("\n     ");
            width = 5;
        }
        if width > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += length;
    }
    text.push('\n');
    text
}

/// When nothing was measured.
pub(super) fn gaps_table(report: &Report) -> String {
    let mut text = heading(report);
    if report.gaps.is_empty() {
        text.push_str("\nNo time without measuring in these days.\n");
        return text;
    }
    text.push_str(&format!("\n{:20} {:20} {:>7}  nothing was measured\n", "from", "to", "for"));
    for gap in &report.gaps {
        text.push_str(&gap_lines(gap));
    }
    if report.gaps.iter().any(|gap| !gap.is_sure) {
        text.push_str("~ taken by a clock that was not set: how long it was is not known\n");
    }
    text
}

fn gap_lines(GapLine { device, from, to, seconds, is_sure, reason }: &GapLine) -> String {
    let time = |time: &str| format!("{}Z", time.get(..19).unwrap_or(time));
    let until = to.as_deref().map_or_else(|| "still".to_owned(), time);
    let length = match seconds {
        _ if !is_sure => "~".to_owned(),
        Some(seconds) => span(Duration::from_secs(seconds.unsigned_abs())),
        None => String::new(),
    };
    let who = device.as_deref().map_or_else(|| reason.clone(), |device| format!("{device}: {reason}"));
    let first = format!("{:20} {until:20} {length:>7}  ", time(from));
    if first.chars().count() + who.chars().count() <= 79 {
        format!("{first}{who}\n")
    } else {
        format!("{}\n     {}", first.trim_end(), wrapped(&who))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(source: &str) -> ReportLine {
        ReportLine {
            day: "2026-11-25".to_owned(),
            uplink: "cloud".to_owned(),
            source: source.to_owned(),
            is_device: true,
            accepted: 1_345_678,
            delivered: 1_345_000,
            dropped: [("dropped-oldest".to_owned(), 600)].into(),
            waiting: 78,
            ..ReportLine::default()
        }
    }

    #[test]
    fn the_ledger_fits_80_columns_and_its_sums_stand_there() {
        let field = |day: &str, device: &str| FieldLine {
            day: day.to_owned(),
            device: device.to_owned(),
            read: 9_999_999,
            held_back: 8_654_321,
        };
        let gap = GapLine {
            device: Some("press-hall-3-chiller".to_owned()),
            from: "2026-11-25T09:20:00.123Z".to_owned(),
            to: Some("2026-11-25T09:26:00.123Z".to_owned()),
            seconds: Some(360),
            is_sure: true,
            reason: "no answer within 500 ms; the line /dev/serial/by-id/usb is there".to_owned(),
        };
        let report = Report {
            gateway: "press-hall-3".to_owned(),
            since: "2026-11-01T00:00:00.000Z".to_owned(),
            lines: vec![line("m01"), line("press-hall-3-chiller")],
            field: vec![field("2026-11-25", "m01"), field("unset", "m02")],
            gaps: vec![gap.clone(), GapLine { to: None, seconds: None, is_sure: false, device: None, ..gap }],
            ..Report::default()
        };
        let text = lines_table(&report) + &gaps_table(&report);
        for row in text.lines() {
            assert!(row.chars().count() < 80, "{row}");
        }
        let expected = "11-25 m01             9,999,999 8,654,321 1,345,678 1,345,000      600       78\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("11-25 press-hall-3-c~         0         0 1,345,678"), "{text}");
        assert!(text.contains("unset m02             9,999,999 8,654,321         0"), "{text}");
        assert!(text.contains("sum                 19,999,998"), "{text}");
        assert!(text.contains("11-25 m01: 600 dropped: the store was full"), "{text}");
        assert!(text.contains("2026-11-25T09:20:00Z 2026-11-25T09:26:00Z   6 min\n"), "{text}");
        assert!(text.contains("2026-11-25T09:20:00Z still"), "{text}");
    }
}
