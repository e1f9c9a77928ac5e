//! `payload`, `template`, `compress` and `batch` of a forward rule.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use super::super::super::tree::{Tree, Written};
use super::super::super::units::Wrong;
use super::super::super::walk::{self, Reader, Walk};
use super::super::super::{
    BatchLimits, Compression, Field, Form, Frame, Payload, PayloadTemplate, PayloadTemplateError, keys,
};

/// What a metered link sends where a rule does not say.
pub(super) const METERED: Payload = Payload { form: Form::JsonBatch, compression: Compression::Gzip };

/// And how many together: a longer wait makes fewer packets, each with its headers and its answer.
pub(super) const METERED_BATCH: BatchLimits = BatchLimits {
    readings: NonZeroU16::MIN.saturating_add(999),
    bytes: NonZeroU32::MIN.saturating_add(5 * 1024 - 1),
    within: Duration::from_secs(10),
};

#[derive(Clone, Copy, PartialEq)]
enum Word {
    Json,
    JsonDevice,
    JsonBatch,
    LineProtocol,
    SenmlCbor,
    Template,
}

/// How readings are written, and how they travel together: `None` = each alone. The outer `None` is a fault.
pub(super) fn read(walk: &mut Walk, reader: &Reader<'_>, is_metered: bool) -> Option<(Payload, Option<BatchLimits>)> {
    let words = [
        ("json", Word::Json),
        ("json-device", Word::JsonDevice),
        ("json-batch", Word::JsonBatch),
        ("line-protocol", Word::LineProtocol),
        ("senml-cbor", Word::SenmlCbor),
        ("template", Word::Template),
    ];
    let word = reader.choice(walk, "payload", &words, &[]);
    let compression =
        reader.choice(walk, "compress", &[("none", Compression::None), ("gzip", Compression::Gzip)], &["zstd"]);
    let limits = limits(walk, reader, is_metered);
    let is_of_template = word.as_ref().is_some_and(|word| word.value == Word::Template);
    let template = template(walk, reader, is_of_template);
    let (word, compression, limits) = (word?, compression?, limits?);
    let form = match word.value {
        Word::Json if is_metered && word.is_default && !reader.has("compress") => {
            return Some((METERED, Some(limits)));
        }
        Word::Json => Form::Json,
        Word::JsonDevice => Form::JsonDevice,
        Word::JsonBatch => Form::JsonBatch,
        Word::LineProtocol => Form::LineProtocol,
        Word::SenmlCbor => Form::SenmlCbor,
        Word::Template => Form::Template(template?),
    };
    let payload = Payload { form, compression: compression.value };
    if !payload.is_batch() && reader.has("batch") {
        let what = "`batch` is for readings that travel together, and these do not".to_owned();
        walk.findings.warning(reader.spot_of("batch"), what, Some("write payload = \"json-batch\"".to_owned()));
    }
    let batch = payload.is_batch().then_some(limits);
    Some((payload, batch))
}

fn limits(walk: &mut Walk, reader: &Reader<'_>, is_metered: bool) -> Option<BatchLimits> {
    let empty = Tree::default();
    let (tree, spot) = match reader.has("batch") {
        true => reader.table(walk, "batch")?,
        false => (&empty, reader.spot),
    };
    let reader = Reader::open(walk, tree, &keys::BATCH, spot);
    let readings = reader.integer(walk, "readings", 1, 1000);
    let bytes = reader.size(walk, "bytes", 256, 256 * 1024);
    let within = reader.duration(walk, "within", Duration::ZERO, Duration::from_secs(60));
    let within = match reader.has("within") {
        false if is_metered => METERED_BATCH.within,
        _ => within?.value,
    };
    Some(BatchLimits {
        readings: NonZeroU16::new(u16::try_from(readings?.value).ok()?)?,
        bytes: NonZeroU32::new(u32::try_from(bytes?.value).ok()?)?,
        within,
    })
}

/// `template`, as a text or with what stands around the readings; wanted where `payload` says so, and only there.
fn template(walk: &mut Walk, reader: &Reader<'_>, is_wanted: bool) -> Option<Arc<PayloadTemplate>> {
    if !reader.has("template") {
        if is_wanted {
            let help = "write template = '{\"ts\":{ts_ms},\"values\":{\"{point}\":{value}}}'".to_owned();
            walk.findings.problem(reader.spot_of("payload"), "`payload = \"template\"` needs `template`", Some(help));
        }
        return None;
    }
    if !is_wanted {
        let help = "write payload = \"template\"".to_owned();
        walk.findings.warning(reader.spot_of("template"), "`template` is not used here".to_owned(), Some(help));
    }
    let is_table = reader.is_table("template");
    let array = || Frame { begin: "[".to_owned(), between: ",".to_owned(), end: "]".to_owned() };
    let (text, frame) = if is_table {
        let (tree, spot) = reader.table(walk, "template")?;
        let reader = Reader::open(walk, tree, &keys::TEMPLATE, spot);
        let text = reader.text(walk, "reading");
        let (begin, between, end) =
            (reader.text(walk, "begin"), reader.text(walk, "between"), reader.text(walk, "end"));
        let frame = Frame { begin: begin?.value, between: between?.value, end: end?.value };
        (text?, frame)
    } else {
        let text = reader.leaf(walk, "template", |node| match &node.value {
            Written::Text(text) => Ok(text.clone()),
            other => Err(walk::wrong_kind("text in quotes, or a table with `reading`", other)),
        });
        (text?, array())
    };
    // Without a batch each reading is a message, and what stands around many has no place.
    let frame = reader.has("batch").then_some(frame);
    match PayloadTemplate::parse(&text.value, frame) {
        Ok(template) => Some(Arc::new(template)),
        Err(error) => {
            walk.wrong(text.spot, "template", wrong(&error));
            None
        }
    }
}

fn wrong(error: &PayloadTemplateError) -> Wrong {
    let wrong = Wrong::new(error.to_string());
    match error {
        PayloadTemplateError::Unknown { name } => {
            let names = Field::ALL.map(|(name, _, _)| name);
            match walk::nearest(name, names) {
                Some(near) => wrong.help(format!("did you mean {{{near}}}?")),
                None => wrong.help(format!("there are {}", names.map(|name| format!("{{{name}}}")).join(" "))),
            }
        }
        PayloadTemplateError::Json { .. } => {
            wrong.help("texts stand in quotes, \"{device}\"; a value brings its own: {value}")
        }
        PayloadTemplateError::TooLong | PayloadTemplateError::Constant => wrong,
    }
}
