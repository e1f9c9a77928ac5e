//! How the readings of a rule are written at their way out: form, compression, and templates of the owner's own. Pure.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// `payload` and `compress` of a forward rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Payload {
    /// What a message of readings looks like.
    pub form: Form,
    /// What is done to it then.
    pub compression: Compression,
}

/// What a message of readings looks like; `payload/` writes them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Form {
    /// One reading, one JSON object.
    #[default]
    Json,
    /// One JSON object for each device and poll.
    JsonDevice,
    /// An array of the objects of `Json`.
    JsonBatch,
    /// Lines as InfluxDB and Telegraf take them.
    LineProtocol,
    /// SenML in CBOR (RFC 8428).
    SenmlCbor,
    /// As the owner wrote it.
    Template(Arc<PayloadTemplate>),
}

/// `compress` of a forward rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// As it is.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
}

/// In the code that the store keeps: compressed.
const GZIP: i64 = 16;

/// And from this bit on the checksum of a template, by which it is found again.
const CHECKSUM_SHIFT: u32 = 8;

impl Payload {
    /// One JSON object for each reading, as it is.
    pub const JSON: Payload = Payload { form: Form::Json, compression: Compression::None };

    /// An array of such objects.
    pub const JSON_BATCH: Payload = Payload { form: Form::JsonBatch, compression: Compression::None };

    /// Whether a message may hold more than one reading.
    pub fn is_batch(&self) -> bool {
        match &self.form {
            Form::Json => false,
            Form::Template(template) => template.is_batch(),
            Form::JsonDevice | Form::JsonBatch | Form::LineProtocol | Form::SenmlCbor => true,
        }
    }

    /// MIME type of what the form writes, before it is compressed.
    pub fn content_type(&self) -> &'static str {
        match &self.form {
            Form::Json | Form::JsonDevice | Form::JsonBatch => "application/json",
            Form::LineProtocol => "text/plain; charset=utf-8",
            Form::SenmlCbor => "application/senml+cbor",
            Form::Template(template) if template.is_json => "application/json",
            Form::Template(_) => "text/plain; charset=utf-8",
        }
    }

    /// As the store keeps it with a message in flight.
    pub fn code(&self) -> i64 {
        let form = match &self.form {
            Form::Json => 0,
            Form::JsonBatch => 1,
            Form::JsonDevice => 2,
            Form::LineProtocol => 3,
            Form::SenmlCbor => 4,
            Form::Template(template) => 5 | i64::from(template.checksum()) << CHECKSUM_SHIFT,
        };
        form | if self.compression == Compression::Gzip { GZIP } else { 0 }
    }

    /// What a store says; a template is one of `known` with the same checksum. Each reading can be told in JSON, also one
    /// that a newer program knew a better way for, or an owner whose template is gone.
    pub fn from_code<'p>(code: i64, known: impl IntoIterator<Item = &'p Payload>) -> Payload {
        let compression = if code & GZIP == 0 { Compression::None } else { Compression::Gzip };
        let form = match code & 15 {
            1 => Form::JsonBatch,
            2 => Form::JsonDevice,
            3 => Form::LineProtocol,
            4 => Form::SenmlCbor,
            5 => return known.into_iter().find(|payload| payload.code() == code).cloned().unwrap_or_default(),
            _ => Form::Json,
        };
        Payload { form, compression }
    }
}

/// The longest template. A reading is a few numbers and names.
pub const TEMPLATE_BYTES_MAX: usize = 4096;

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PayloadTemplateError {
    /// A name in braces that nobody knows.
    #[error("the placeholder {{{name}}} is not known here")]
    Unknown {
        /// What stood in the braces.
        name: String,
    },
    /// Longer than is sensible.
    #[error("a template has at most {TEMPLATE_BYTES_MAX} bytes")]
    TooLong,
    /// The same message for every reading.
    #[error("a template without any placeholder says nothing about the reading")]
    Constant,
    /// It begins like JSON and is none.
    #[error("what this template makes begins like JSON and is none: {fault}")]
    Json {
        /// Where and why, of the sample.
        fault: String,
    },
}

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `{gateway}`
    Gateway,
    /// `{device}`
    Device,
    /// `{point}`
    Point,
    /// `{topic}`: the local one.
    Topic,
    /// `{value}`: a JSON value, so that a text has its quotes; elsewhere as it is.
    Value,
    /// `{unit}`
    Unit,
    /// `{quality}`
    Quality,
    /// `{reason}`
    Reason,
    /// `{ts}`: RFC 3339.
    Ts,
    /// `{ts_ms}`: milliseconds since 1970.
    TsMs,
    /// `{ts_s}`: whole seconds since 1970.
    TsS,
    /// `{seq}`
    Seq,
    /// `{id}`
    Id,
    /// `{clock}`
    Clock,
}

impl Field {
    /// Each with its name and a sample, which a JSON template must make JSON of.
    pub const ALL: [(&'static str, Field, &'static str); 14] = [
        ("gateway", Field::Gateway, "hall-3"),
        ("device", Field::Device, "chiller"),
        ("point", Field::Point, "supply"),
        ("topic", Field::Topic, "field/chiller/supply"),
        ("value", Field::Value, "6.5"),
        ("unit", Field::Unit, "V"),
        ("quality", Field::Quality, "good"),
        ("reason", Field::Reason, ""),
        ("ts", Field::Ts, "2026-11-23T09:20:00.123Z"),
        ("ts_ms", Field::TsMs, "1795425600123"),
        ("ts_s", Field::TsS, "1795425600"),
        ("seq", Field::Seq, "7"),
        ("id", Field::Id, "hall-3.000000000001.2.3"),
        ("clock", Field::Clock, "synced"),
    ];
}

/// Text as it is, or a placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As written.
    Text(String),
    /// Filled in for each reading.
    Field(Field),
}

/// What stands around and between the readings of one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Before the first.
    pub begin: String,
    /// Between two.
    pub between: String,
    /// After the last.
    pub end: String,
}

/// `template` of a forward rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadTemplate {
    text: String,
    frame: Option<Frame>,
    parts: Vec<Part>,
    is_json: bool,
}

impl PayloadTemplate {
    /// Reads `text`: `{name}` is a placeholder where `name` is of small letters and `_`; every other brace is itself, so that
    /// JSON needs no escapes. With a frame several readings may travel together.
    pub fn parse(text: &str, frame: Option<Frame>) -> Result<PayloadTemplate, PayloadTemplateError> {
        let longest = frame.as_ref().map_or(0, |frame| frame.begin.len() + frame.between.len() + frame.end.len());
        if text.len() + longest > TEMPLATE_BYTES_MAX {
            return Err(PayloadTemplateError::TooLong);
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            literal.push_str(before);
            rest = after;
            let name = after.split_once('}').map(|(name, _)| name).filter(|name| is_name(name));
            let Some(name) = name else {
                literal.push('{');
                continue;
            };
            let known = Field::ALL.iter().find(|(known, _, _)| *known == name);
            let Some((_, field, _)) = known else {
                return Err(PayloadTemplateError::Unknown { name: name.to_owned() });
            };
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Field(*field));
            rest = after.get(name.len() + 1..).unwrap_or_default();
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        if !parts.iter().any(|part| matches!(part, Part::Field(_))) {
            return Err(PayloadTemplateError::Constant);
        }
        let mut template = PayloadTemplate { text: text.to_owned(), frame, parts, is_json: false };
        template.is_json = template.sample_is_json()?;
        Ok(template)
    }

    /// Two readings in their frame, or one where there is none.
    fn sample_is_json(&self) -> Result<bool, PayloadTemplateError> {
        let mut one = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => one.push_str(text),
                Part::Field(field) => {
                    let sample = Field::ALL.iter().find(|(_, known, _)| known == field).map(|(_, _, sample)| *sample);
                    one.push_str(sample.unwrap_or_default());
                }
            }
        }
        let sample = match &self.frame {
            None => one,
            Some(Frame { begin, between, end }) => format!("{begin}{one}{between}{one}{end}"),
        };
        match serde_json::from_str::<serde_json::Value>(&sample) {
            Ok(_) => Ok(true),
            Err(error) if sample.trim_start().starts_with(['{', '[']) => {
                let mut fault = error.to_string();
                let around = sample.chars().skip(error.column().saturating_sub(12)).take(16).collect::<String>();
                // Writing to a String cannot fail.
                let _ok = write!(fault, ", near {around:?}");
                Err(PayloadTemplateError::Json { fault })
            }
            Err(_) => Ok(false),
        }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What stands around the readings of a batch; `None` = each is a message of its own.
    pub fn frame(&self) -> Option<&Frame> {
        self.frame.as_ref()
    }

    /// In order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether it makes JSON, so that texts need their escapes.
    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// Whether several readings may travel together.
    pub fn is_batch(&self) -> bool {
        self.frame.is_some()
    }

    fn checksum(&self) -> u32 {
        let mut whole = self.text.clone();
        if let Some(Frame { begin, between, end }) = &self.frame {
            let _ok = write!(whole, "\0{begin}\0{between}\0{end}");
        }
        crc32c::crc32c(whole.as_bytes())
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const THINGSBOARD: &str = r#"{"ts":{ts_ms},"values":{"{point}":{value}}}"#;

    fn array() -> Option<Frame> {
        Some(Frame { begin: "[".to_owned(), between: ",".to_owned(), end: "]".to_owned() })
    }

    #[test]
    fn braces_of_json_are_no_placeholders() {
        let template = PayloadTemplate::parse(THINGSBOARD, None).unwrap();
        assert!(template.is_json());
        let fields: Vec<&Part> = template.parts().iter().filter(|part| matches!(part, Part::Field(_))).collect();
        assert_eq!(fields, [&Part::Field(Field::TsMs), &Part::Field(Field::Point), &Part::Field(Field::Value)]);
        assert!(PayloadTemplate::parse(THINGSBOARD, array()).unwrap().is_json());
        assert!(PayloadTemplate::parse("{}{value}{", None).is_err(), "begins like JSON");
        assert!(!PayloadTemplate::parse("{device};{point};{value}", None).unwrap().is_json());
    }

    #[test]
    fn templates_that_cannot_serve_are_refused() {
        let fault = |text: &str| PayloadTemplate::parse(text, None).unwrap_err().to_string();
        assert_eq!(fault("{device} {valeu}"), "the placeholder {valeu} is not known here");
        assert!(fault("[1,2]").contains("without any placeholder"));
        assert!(fault(&"{value}".repeat(1000)).contains("at most 4096 bytes"));
        assert!(fault(r#"{"v":{value}"#).contains("is none"), "{}", fault(r#"{"v":{value}"#));
        assert!(fault(r#"{"v":{device}}"#).contains("near"), "a text without its quotes");
    }

    #[test]
    fn a_code_says_the_form_the_compression_and_which_template() {
        let template = |text: &str| Form::Template(Arc::new(PayloadTemplate::parse(text, None).unwrap()));
        let forms = [
            Form::Json,
            Form::JsonDevice,
            Form::JsonBatch,
            Form::LineProtocol,
            Form::SenmlCbor,
            template("a {value}"),
            template("b {value}"),
        ];
        let all: Vec<Payload> = forms
            .into_iter()
            .flat_map(|form| [Compression::None, Compression::Gzip].map(|compression| (form.clone(), compression)))
            .map(|(form, compression)| Payload { form, compression })
            .collect();
        for payload in &all {
            assert_eq!(Payload::from_code(payload.code(), &all), *payload);
        }
        let gone = Payload { form: template("gone {value}"), compression: Compression::None };
        assert_eq!(Payload::from_code(gone.code(), &all), Payload::JSON);
        assert_eq!((Payload::JSON.code(), Payload::JSON_BATCH.code()), (0, 1), "as earlier programs wrote them");
        assert_eq!(Payload::from_code(15, &all), Payload::JSON, "of a later program");
    }
}
