//! `tidegate queue export`: all that waits, as NDJSON or CSV. Holds one answer in memory, whatever the store's size.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::super::Exit;
use super::super::progress::Progress;
use super::super::words::grouped;
use super::peek::Which;
use super::source::{Place, Source};
use super::strange;
use crate::queue::inspect::{Answer, Entry, MessagesAsk, Question};

/// Examples under the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  tidegate queue export > waiting.ndjson
  tidegate queue export --stream cloud --format csv --output waiting.csv
  tidegate queue export --from 2026-11-26T08:00 --to 2026-11-26T09:00 | jq .topic
  tidegate queue export --kept --output delivered.ndjson

What comes in after the beginning is not in it, nor is what is delivered meanwhile before its turn. A message that
is damaged stands there with its place only. A reading is written as it is sent; any other body as text, or in
base64 where it is none.";

/// `tidegate queue export`
#[derive(Debug, clap::Args)]
pub(super) struct ExportArguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    which: Which,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Ndjson)]
    format: Format,
    /// Into this new file, which only its owner can read, instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One JSON object a line
    Ndjson,
    /// A header and a line for each message
    Csv,
}

const HEADER: [&str; 16] = [
    "sequence",
    "for",
    "id",
    "received",
    "clock",
    "topic",
    "qos",
    "retain",
    "origin",
    "device",
    "point",
    "value",
    "unit",
    "quality",
    "payload",
    "payload_base64",
];

enum Sheet {
    Ndjson(Box<dyn Write>),
    Csv(Box<csv::Writer<Box<dyn Write>>>),
}

impl Sheet {
    fn new(format: Format, to: Box<dyn Write>) -> io::Result<Sheet> {
        match format {
            Format::Ndjson => Ok(Sheet::Ndjson(to)),
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(to);
                writer.write_record(HEADER)?;
                Ok(Sheet::Csv(Box::new(writer)))
            }
        }
    }

    fn add(&mut self, entry: &Entry) -> io::Result<()> {
        match self {
            Sheet::Ndjson(to) => {
                serde_json::to_writer(&mut *to, entry)?;
                to.write_all(b"\n")
            }
            Sheet::Csv(writer) => Ok(writer.write_record(record(entry))?),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match self {
            Sheet::Ndjson(to) => to.flush(),
            Sheet::Csv(writer) => writer.flush(),
        }
    }
}

fn record(entry: &Entry) -> [String; 16] {
    let mut record: [String; 16] = Default::default();
    let [
        sequence,
        wanted_by,
        id,
        received,
        clock,
        topic,
        qos,
        retain,
        origin,
        device,
        point,
        value,
        unit,
        quality,
        payload,
        base64,
    ] = &mut record;
    *sequence = entry.sequence.to_string();
    *wanted_by = entry.wanted_by.join(" ");
    let Some(told) = &entry.told else { return record };
    id.clone_from(&told.id);
    received.clone_from(&told.received);
    clock.clone_from(&told.clock);
    topic.clone_from(&told.topic);
    *qos = told.qos.to_string();
    *retain = told.retain.to_string();
    origin.clone_from(&told.origin);
    *payload = told.payload.clone().unwrap_or_default();
    *base64 = told.payload_base64.clone().unwrap_or_default();
    if let Some(reading) = &told.reading {
        for (key, cell) in
            [("device", device), ("point", point), ("value", value), ("unit", unit), ("quality", quality)]
        {
            *cell = match reading.get(key) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(value) if !value.is_null() => value.to_string(),
                _ => String::new(),
            };
        }
        *payload = reading.to_string();
    }
    record
}

pub(super) fn main(arguments: &ExportArguments) -> Result<Exit, Exit> {
    let source = Source::open(&arguments.place)?;
    let to: Box<dyn Write> = match &arguments.output {
        Some(path) => Box::new(BufWriter::new(create(path)?)),
        None => Box::new(BufWriter::new(io::stdout())),
    };
    let failed = |error: &io::Error| {
        // A reader that left (`| head`) is no fault of ours.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Exit::Done;
        }
        let place = arguments.output.as_deref().unwrap_or(Path::new("standard output")).display();
        eprintln!("tidegate: cannot write to {place}: {error}");
        Exit::Failed
    };
    let mut sheet = Sheet::new(arguments.format, to).map_err(|error| failed(&error))?;
    let exported = write_all(&source, arguments.which.ask(), &mut sheet, failed)?;
    sheet.end().map_err(|error| failed(&error))?;
    if let Some(path) = &arguments.output {
        eprintln!("{} messages are in {}", grouped(exported.messages), path.display());
    }
    if exported.damaged > 0 {
        eprintln!("tidegate: {} of them are damaged: tidegate queue check", grouped(exported.damaged));
    }
    Ok(Exit::Done)
}

#[derive(Debug, Default)]
struct Exported {
    messages: u64,
    damaged: u64,
}

fn write_all(
    source: &Source,
    mut ask: MessagesAsk,
    sheet: &mut Sheet,
    failed: impl Fn(&io::Error) -> Exit,
) -> Result<Exported, Exit> {
    let mut exported = Exported::default();
    let mut progress = Progress::new("export");
    let mut first = None;
    loop {
        let Answer::Messages(page) = source.ask(Question::Messages(ask.clone()))? else { return Err(strange()) };
        // What comes in from now on is not waited for: else a gateway that takes in faster would never be done with.
        let to = *ask.to.get_or_insert(page.last);
        for entry in &page.rows {
            sheet.add(entry).map_err(|error| failed(&error))?;
            exported.messages += 1;
            exported.damaged += u64::from(entry.told.is_none());
        }
        let Some(next) = page.next else { return Ok(exported) };
        let first = *first.get_or_insert(page.rows.first().map_or(ask.after, |entry| entry.sequence));
        progress.show(next.saturating_sub(first), to.saturating_sub(first), "places");
        ask.after = next;
    }
}

fn create(path: &Path) -> Result<File, Exit> {
    File::options().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        eprintln!("tidegate: cannot make {}: {error}", path.display());
        Exit::Usage
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reading_and_a_text_have_their_columns() {
        let entry = |more: serde_json::Value| {
            let mut entry = json!({"sequence": 7, "for": ["a", "b"], "id": "g.1.1.1", "topic": "plant/a", "qos": 1,
                "received": "T", "clock": "synced", "origin": "field", "bytes": 3});
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value::<Entry>(entry).unwrap()
        };
        let text = record(&entry(json!({"payload": "x,\"y\""})));
        assert_eq!((text[0].as_str(), text[1].as_str(), text[14].as_str()), ("7", "a b", "x,\"y\""));
        let reading = record(&entry(json!({"reading": {"device": "m", "point": "p", "value": 1, "quality": "good"}})));
        assert_eq!(&reading[9..14], ["m", "p", "1", "", "good"]);
        let damaged = record(&serde_json::from_value(json!({"sequence": 9, "for": ["a"]})).unwrap());
        assert_eq!((damaged[0].as_str(), damaged[2].as_str()), ("9", ""));
    }
}
