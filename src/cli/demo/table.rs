//! The last screen: what was acknowledged, what arrived, what was lost. Pure.

use std::time::Duration;

use super::plant::{DEAD_UNIT, NEIGHBOURS, POLL_MS};
use super::scene::{Drill, Field, Outcome};
use crate::cli::tally::DeviceCount;
use crate::cli::words::grouped;

/// A neighbour keeps its interval when its median is at most this many percent of what was asked.
const KEPT_PERCENT: u32 = 120;

/// Under the table and on the screen.
pub(super) const COUNTED_BY: &str = "Counted by the cloud from message ids, not by the gateway.";

/// The same for a bridge, which gives its messages no ids.
const COUNTED_BY_NUMBERS: &str = "The bridge's are counted from the sender's numbers: it gives no message ids.";

/// One subject beside another, a column for each.
pub(super) fn side_by_side(titles: [&str; 2], outcomes: [&[Outcome]; 2]) -> String {
    let rule = "-".repeat(79);
    let [left, right] = titles;
    let mut text = format!("{:31} {left:>20} {right:>26}\n{rule}\n", "");
    for drill in Drill::ALL {
        let [left, right] = outcomes.map(|outcomes| outcomes.iter().find(|outcome| outcome.drill == drill));
        text.push_str(&format!("{}\n", drill.name()));
        let mut row = |what: &str, value: fn(&Outcome) -> String| {
            let [left, right] = [left, right].map(|outcome| outcome.map_or_else(|| "-".to_owned(), value));
            text.push_str(&format!("  {what:29} {left:>20} {right:>26}\n"));
        };
        row("acknowledged to the sender", |outcome| grouped(outcome.count.acknowledged));
        row("received by the cloud", |outcome| grouped(outcome.count.received));
        row("lost", |outcome| grouped(outcome.count.lost()));
        row("repeated", |outcome| grouped(outcome.count.repeated));
        row("seconds to catch up", |outcome| seconds(outcome.catch_up));
    }
    text.push_str(&format!("{rule}\n{COUNTED_BY}\n{COUNTED_BY_NUMBERS}\n"));
    text
}

/// The table of one subject, with its heading.
pub(super) fn table(subject: &str, outcomes: &[Outcome], field: Option<&Field>) -> String {
    let mut text = String::new();
    let rule = "-".repeat(79);
    text.push_str(&format!(
        "{:31} {:>12} {:>9} {:>6} {:>8}  {:>8}\n{:31} {:>12} {:>9} {:>6} {:>8}  {:>8}\n{rule}\n",
        "",
        "acknowledged",
        "received",
        "",
        "",
        "catch-up",
        subject,
        "to sender",
        "by cloud",
        "lost",
        "repeated",
        "seconds",
    ));
    for Outcome { drill, count, catch_up } in outcomes {
        text.push_str(&format!(
            "{:31} {:>12} {:>9} {:>6} {:>8}  {:>8}\n",
            drill.name(),
            grouped(count.acknowledged),
            grouped(count.received),
            grouped(count.lost()),
            grouped(count.repeated),
            seconds(*catch_up),
        ));
    }
    if let Some(field) = field {
        let sum = |value: fn(&DeviceCount) -> u64| field.devices.iter().map(value).sum::<u64>();
        text.push_str(&format!(
            "{:31} {:>12} {:>9} {:>6} {:>8}  {:>8}\n",
            "4 readings, with one unit dead",
            "-",
            grouped(sum(|device| device.received)),
            grouped(sum(|device| device.missing)),
            grouped(sum(|device| device.repeated)),
            "-",
        ));
    }
    text.push_str(&format!("{rule}\n{COUNTED_BY}\n"));
    let again: u64 = outcomes.iter().map(|outcome| outcome.count.sent_again).sum();
    if again > 0 {
        text.push_str(&format!(
            "{} more were sent again by their sender, whose acknowledgement a kill took:\n\
             to MQTT those are new messages and no repeats (MQTT 5.0, 4.3.2).\n",
            grouped(again)
        ));
    }
    if let Some(field) = field {
        text.push_str(&neighbours(field));
        text.push('\n');
        let theirs = field.undisturbed.iter().filter(|device| NEIGHBOURS.contains(&device.name.as_str()));
        if let Some(longest) = theirs.filter_map(|device| device.longest_ms).max() {
            let seconds = f64::from(longest) / 1000.0;
            text.push_str(&format!("The longest pause between two readings of one of them was {seconds:.2} s.\n"));
        }
    }
    text
}

fn seconds(catch_up: Option<Duration>) -> String {
    catch_up.map_or_else(|| "never".to_owned(), |time| format!("{:.1}", time.as_secs_f64()))
}

/// Messages that were acknowledged and did not arrive, and readings that are missing.
pub(super) fn losses(outcomes: &[Outcome], field: Option<&Field>) -> u64 {
    let missing = field.map_or(0, |field| field.devices.iter().map(|device| device.missing).sum());
    outcomes.iter().map(|outcome| outcome.count.lost()).sum::<u64>() + missing
}

/// How the neighbours of the dead unit did, in one sentence.
pub(super) fn neighbours(field: &Field) -> String {
    let interval = |name: &str| field.undisturbed.iter().find(|device| device.name == name)?.interval_ms;
    let seconds = |ms: Option<u32>| ms.map_or_else(|| "?".to_owned(), |ms| format!("{:.2} s", f64::from(ms) / 1000.0));
    let kept = NEIGHBOURS.iter().all(|name| interval(name).is_some_and(|ms| ms * 100 <= POLL_MS * KEPT_PERCENT));
    let each: Vec<String> =
        NEIGHBOURS.iter().map(|name| format!("{name}: every {}", seconds(interval(name)))).collect();
    format!(
        "{DEAD_UNIT} is dead; {} (asked: {}){}",
        each.join(", "),
        seconds(Some(POLL_MS)),
        if kept { "." } else { ": NOT kept." },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tally::Count;

    fn field(interval_ms: u32) -> Field {
        let device = |name: &str| DeviceCount {
            name: name.to_owned(),
            received: 100,
            missing: 0,
            repeated: 2,
            good: 100,
            bad: 0,
            interval_ms: Some(interval_ms),
            longest_ms: Some(interval_ms),
        };
        let devices: Vec<DeviceCount> = NEIGHBOURS.into_iter().map(device).collect();
        Field { devices: devices.clone(), undisturbed: devices }
    }

    #[test]
    fn the_table_fits_a_terminal_and_shows_a_loss_as_it_is() {
        let count = Count { acknowledged: 123_456, received: 123_400, repeated: 7, sent_again: 3 };
        let outcomes: Vec<Outcome> = Drill::ALL
            .into_iter()
            .map(|drill| Outcome { drill, count, catch_up: Some(Duration::from_millis(1234)) })
            .collect();
        let text = table("tidegate", &outcomes, Some(&field(510)));
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(text.contains("123,456   123,400     56        7       1.2"), "{text}");
        assert!(text.contains(COUNTED_BY), "{text}");
        assert!(text.contains("meter-1: every 0.51 s, meter-3: every 0.51 s (asked: 0.50 s)."), "{text}");
        assert_eq!(losses(&outcomes, Some(&field(510))), 168);
        assert!(neighbours(&field(900)).ends_with("NOT kept."));
    }

    #[test]
    fn two_subjects_stand_in_a_column_each_and_what_never_came_is_shown() {
        let outcome = |drill, received, catch_up| Outcome {
            drill,
            count: Count { acknowledged: 2000, received, repeated: 0, sent_again: 0 },
            catch_up,
        };
        let ours = Drill::ALL.map(|drill| outcome(drill, 2000, Some(Duration::from_millis(900))));
        let theirs = [outcome(Drill::Cut, 1000, Some(Duration::from_secs(4))), outcome(Drill::KillInOutage, 0, None)];
        let text = side_by_side(["tidegate", "mosquitto"], [&ours, &theirs]);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let lost: Vec<_> = rows.iter().filter(|row| row[0] == "lost").map(|row| (row[1], row[2])).collect();
        assert_eq!(lost, [("0", "1,000"), ("0", "2,000"), ("0", "-")], "{text}");
        assert!(rows.iter().any(|row| row.ends_with(&["0.9", "never"])), "{text}");
    }
}
