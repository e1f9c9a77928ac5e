//! The drill's last word. Pure.

use super::journal::{Header, Step};
use crate::cli::tally::Count;
use crate::cli::words::grouped;
use crate::mqtt::Version;

/// How a step ended.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub step: Step,
    pub count: Count,
    /// Seconds to the last that came back; `None`: not all came.
    pub catch_up: Option<f64>,
}

impl Step {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Step::Well => "all is well",
            Step::Cable => "the cable is pulled",
            Step::Plug => "the plug is pulled",
        }
    }
}

/// The table, in 80 columns.
pub(super) fn table(header: &Header, outcomes: &[Outcome], version: Version) -> String {
    let rule = "-".repeat(79);
    let mut text = format!(
        "{:31} {:>12} {:>9} {:>6} {:>8}  {:>8}\n{:31} {:>12} {:>9} {:>6} {:>8}  {:>8}\n{rule}\n",
        format!("drill {}", header.drill),
        "acknowledged",
        "received",
        "",
        "",
        "catch-up",
        format!("uplink {}", header.uplink).chars().take(31).collect::<String>(),
        "to sender",
        "by cloud",
        "lost",
        "repeated",
        "seconds",
    );
    for Outcome { step, count, catch_up } in outcomes {
        text.push_str(&format!(
            "{:31} {:>12} {:>9} {:>6} {:>8}  {:>8}\n",
            step.name(),
            grouped(count.acknowledged),
            grouped(count.received),
            grouped(count.lost()),
            grouped(count.repeated),
            catch_up.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1}")),
        ));
    }
    text.push_str(&rule);
    text.push_str(match version {
        Version::V5 => "\nCounted at the cloud by message ids, not by the gateway.\n",
        Version::V311 => "\nCounted at the cloud by the sender's numbers: MQTT 3.1.1 carries no message ids.\n",
    });
    let again: u64 = outcomes.iter().map(|outcome| outcome.count.sent_again).sum();
    if again > 0 {
        text.push_str(&format!(
            "{} more were sent again by the drill, whose acknowledgement was lost with the\n\
             power: to MQTT those are new messages and no repeats (MQTT 5.0, 4.3.2).\n",
            grouped(again)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_a_terminal_and_shows_a_loss_as_it_is() {
        let header = Header {
            drill: "0123456789ab".to_owned(),
            uplink: "an-uplink-with-a-name-that-does-not-end".to_owned(),
            topic: "t".to_owned(),
            steps: vec![Step::Cable],
        };
        let count = Count { acknowledged: 123_456, received: 123_400, repeated: 7, sent_again: 3 };
        for version in [Version::V311, Version::V5] {
            let text = table(&header, &[Outcome { step: Step::Cable, count, catch_up: None }], version);
            for row in text.lines() {
                assert!(row.chars().count() <= 80, "{row}");
            }
            assert!(text.contains("123,456   123,400     56        7     never"), "{text}");
        }
    }
}
