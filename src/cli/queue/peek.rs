//! `tidegate queue peek`: what waits, the oldest first, a line each.

use super::super::Exit;
use super::super::status::print_out;
use super::source::{Place, Source};
use super::{printable, strange};
use crate::queue::inspect::{Answer, Entry, MessagesAsk, Question, Told};

/// Of each body so much is shown.
const BODY_BYTES: u32 = 200;

/// `tidegate queue peek`
#[derive(Debug, clap::Args)]
pub(super) struct PeekArguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    which: Which,
    /// How many
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    count: u32,
    /// Print as NDJSON
    #[arg(long)]
    json: bool,
}

/// Which messages.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Which {
    /// Only what waits for this uplink, or for `field`
    #[arg(long, value_name = "UPLINK")]
    stream: Option<String>,
    /// What waits for this local client, whose session is kept
    #[arg(long, value_name = "CLIENT", conflicts_with = "stream")]
    client: Option<String>,
    /// What was delivered and is kept all the same (`keep_delivered`), instead of what waits
    #[arg(long, conflicts_with_all = ["stream", "client"])]
    kept: bool,
    /// Only topics that this filter matches
    #[arg(long, value_name = "FILTER")]
    topic: Option<String>,
    /// Not what came in before this time (UTC): 2026-11-26, 2026-11-26T08:30 or 2026-11-26T08:30:00Z
    #[arg(long, value_name = "TIME", value_parser = super::super::words::parse_time)]
    from: Option<i64>,
    /// Nor what came in at this time or later
    #[arg(long, value_name = "TIME", value_parser = super::super::words::parse_time)]
    to: Option<i64>,
    /// Only what has a place in the queue behind this one
    #[arg(long, value_name = "PLACE", default_value_t = 0)]
    after: u64,
}

impl Which {
    pub(super) fn ask(&self) -> MessagesAsk {
        let Which { stream, client, kept, topic, from, to, after } = self.clone();
        MessagesAsk { after, stream, client, kept, topic, from_ms: from, to_ms: to, ..MessagesAsk::default() }
    }
}

pub(super) fn main(arguments: &PeekArguments) -> Result<Exit, Exit> {
    let source = Source::open(&arguments.place)?;
    let mut left = arguments.count;
    let mut ask = MessagesAsk { body_bytes: BODY_BYTES, ..arguments.which.ask() };
    while left > 0 {
        ask.count = left;
        let Answer::Messages(page) = source.ask(Question::Messages(ask.clone()))? else { return Err(strange()) };
        left = left.saturating_sub(u32::try_from(page.rows.len()).unwrap_or(u32::MAX));
        for entry in &page.rows {
            let line = if arguments.json { serde_json::to_string(entry).unwrap_or_default() } else { readable(entry) };
            print_out(&(line + "\n"));
        }
        let Some(next) = page.next else { break };
        ask.after = next;
    }
    if left == arguments.count && !arguments.json {
        eprintln!("nothing {}", if ask.kept { "is kept" } else { "waits" });
    }
    Ok(Exit::Done)
}

fn readable(entry: &Entry) -> String {
    let wanted_by = printable(&entry.wanted_by.join(", "));
    let Some(told) = &entry.told else { return format!("{}  damaged, for {wanted_by}", entry.sequence) };
    let Told { topic, qos, received, bytes, .. } = told;
    let unset = if told.clock == "unset" { " (clock not set)" } else { "" };
    let head = format!("{}  {received}{unset}  {}  QoS {qos}", entry.sequence, printable(topic));
    format!("{head}  {bytes} bytes  for {wanted_by}  {}", body_words(told))
}

/// The body in one line.
pub(super) fn body_words(told: &Told) -> String {
    let more = if told.is_cut { " …" } else { "" };
    match (&told.reading, &told.payload, &told.payload_base64) {
        (Some(reading), _, _) => {
            let text = |key: &str| match reading.get(key) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(value) if !value.is_null() => value.to_string(),
                _ => "-".to_owned(),
            };
            let unit = reading.get("unit").and_then(serde_json::Value::as_str).map(|unit| format!(" {unit}"));
            let words = format!("{}/{} = {}", text("device"), text("point"), text("value"));
            printable(&format!("{words}{} ({})", unit.unwrap_or_default(), text("quality")))
        }
        (None, Some(payload), _) => printable(payload) + more,
        (None, None, Some(base64)) => format!("base64 {base64}{more}"),
        (None, None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_says_what_waits_for_whom() {
        let entry = json!({"sequence": 7, "for": ["cloud"], "id": "g.1.1.1", "topic": "plant/a", "qos": 1,
            "received": "T", "clock": "synced", "origin": "client c", "bytes": 3, "payload": "a\nb"});
        let mut entry: Entry = serde_json::from_value(entry).unwrap();
        assert_eq!(readable(&entry), "7  T  plant/a  QoS 1  3 bytes  for cloud  a\\nb");
        let told = entry.told.as_mut().unwrap();
        told.payload = None;
        told.reading = Some(json!({"device": "m", "point": "p", "value": 1.5, "unit": "°C", "quality": "good"}));
        assert!(readable(&entry).ends_with("m/p = 1.5 °C (good)"), "{}", readable(&entry));
        entry.told = None;
        assert_eq!(readable(&entry), "7  damaged, for cloud");
    }
}
