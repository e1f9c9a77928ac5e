//! Lists of forward rules: what a stream wants and under which topic it leaves. Pure.
//!
//! A span in the store names the list by which its messages were matched. The list is written down once, as JSON, so
//! that a message keeps its QoS and its topic although the configuration has changed since.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{
    BatchLimits, Compression, Form, ForwardRule, Frame, Payload, PayloadTemplate, TopicTemplate, WhenFull,
};
use crate::message::{Filter, Message, Qos, Topic};

/// A stream's rules at one time.
#[derive(Debug)]
pub(super) struct RuleList {
    /// In the store.
    pub id: i64,
    /// The stream's gap records are matched by a list of their own, which nothing evicts and no configuration moves.
    pub is_own: bool,
    pub rules: Vec<ForwardRule>,
}

#[derive(Serialize, Deserialize)]
struct Definition {
    own: bool,
    gateway: String,
    rules: Vec<Written>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    filter: String,
    topic: String,
    qos: Option<u8>,
    when_full: Option<String>,
    strict: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch: Option<WrittenBatch>,
    /// Not written for the two forms that there were at first: with a batch an array, without one an object each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<WrittenPayload>,
}

#[derive(Serialize, Deserialize)]
struct WrittenPayload {
    form: String,
    gzip: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    template: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frame: Option<Frame>,
}

impl WrittenPayload {
    fn of(rule: &ForwardRule) -> Option<WrittenPayload> {
        if rule.payload == usual(rule.batch.is_some()) {
            return None;
        }
        let (form, template) = match &rule.payload.form {
            Form::Json => ("json", None),
            Form::JsonDevice => ("json-device", None),
            Form::JsonBatch => ("json-batch", None),
            Form::LineProtocol => ("line-protocol", None),
            Form::SenmlCbor => ("senml-cbor", None),
            Form::Template(template) => ("template", Some(template)),
        };
        Some(WrittenPayload {
            form: form.to_owned(),
            gzip: rule.payload.compression == Compression::Gzip,
            template: template.map(|template| template.text().to_owned()),
            frame: template.and_then(|template| template.frame().cloned()),
        })
    }

    /// What a later program has written in a way that is not known here is told in JSON.
    fn read(self) -> Payload {
        let form = match (self.form.as_str(), self.template) {
            ("json-device", _) => Form::JsonDevice,
            ("json-batch", _) => Form::JsonBatch,
            ("line-protocol", _) => Form::LineProtocol,
            ("senml-cbor", _) => Form::SenmlCbor,
            ("template", Some(text)) => match PayloadTemplate::parse(&text, self.frame) {
                Ok(template) => Form::Template(Arc::new(template)),
                Err(_unknown) => Form::Json,
            },
            _ => Form::Json,
        };
        Payload { form, compression: if self.gzip { Compression::Gzip } else { Compression::None } }
    }
}

fn usual(is_batch: bool) -> Payload {
    if is_batch { Payload::JSON_BATCH } else { Payload::JSON }
}

#[derive(Serialize, Deserialize)]
struct WrittenBatch {
    readings: NonZeroU16,
    bytes: NonZeroU32,
    within_ms: u64,
}

/// The rules as the store keeps them.
pub(super) fn write(rules: &[ForwardRule], is_own: bool, gateway: &str) -> String {
    let rules = rules.iter().map(|rule| Written {
        filter: rule.filter.as_str().to_owned(),
        topic: rule.topic.as_str().to_owned(),
        qos: rule.qos.map(Qos::level),
        when_full: rule.when_full.map(|rule| when_full_name(rule).to_owned()),
        strict: rule.strict_order,
        batch: rule.batch.map(|BatchLimits { readings, bytes, within }| WrittenBatch {
            readings,
            bytes,
            within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        }),
        payload: WrittenPayload::of(rule),
    });
    let definition = Definition { own: is_own, gateway: gateway.to_owned(), rules: rules.collect() };
    // Texts and numbers only: nothing in it that cannot be written.
    serde_json::to_string(&definition).unwrap_or_default()
}

/// Reads what `write` wrote; `None` for anything else.
pub(super) fn read(id: i64, definition: &str) -> Option<RuleList> {
    let definition: Definition = serde_json::from_str(definition).ok()?;
    let rules = definition.rules.into_iter().map(|rule| {
        let filter = Filter::new(&rule.filter).ok()?;
        let topic = TopicTemplate::parse(&rule.topic, &filter, &definition.gateway).ok()?;
        let qos = match rule.qos {
            Some(level) => Some(Qos::from_level(level)?),
            None => None,
        };
        let when_full = match rule.when_full {
            Some(name) => Some(when_full_from(&name)?),
            None => None,
        };
        let batch = rule.batch.map(|WrittenBatch { readings, bytes, within_ms }| BatchLimits {
            readings,
            bytes,
            within: Duration::from_millis(within_ms),
        });
        let payload = rule.payload.map_or_else(|| usual(batch.is_some()), WrittenPayload::read);
        // A form that is not known here is no batch either.
        let batch = batch.filter(|_| payload.is_batch());
        Some(ForwardRule { filter, topic, qos, when_full, strict_order: rule.strict, payload, batch })
    });
    Some(RuleList { id, is_own: definition.own, rules: rules.collect::<Option<_>>()? })
}

impl RuleList {
    /// The rule that decides about a topic.
    pub fn first(&self, topic: &Topic) -> Option<&ForwardRule> {
        self.rules.iter().find(|rule| rule.filter.matches(topic))
    }

    /// What gives way, if it is the same for whatever these rules match.
    pub fn when_full(&self, default: WhenFull) -> Option<WhenFull> {
        let mut all = self.rules.iter().map(|rule| rule.when_full.unwrap_or(default));
        let first = all.next().unwrap_or(default);
        all.all(|rule| rule == first).then_some(first)
    }
}

/// At which QoS a message leaves by a rule.
pub(super) fn qos(rule: &ForwardRule, message: &Message) -> Qos {
    rule.qos.unwrap_or(message.qos)
}

/// The topic at the cloud; `None` when the rule does not match or would make a topic that is none.
pub(super) fn topic(rule: &ForwardRule, topic: &Topic) -> Option<Topic> {
    rule.topic.apply(&rule.filter, topic)?.ok()
}

fn when_full_name(rule: WhenFull) -> &'static str {
    match rule {
        WhenFull::DropOldest => "drop-oldest",
        WhenFull::DropNewest => "drop-newest",
        WhenFull::Refuse => "refuse",
    }
}

fn when_full_from(name: &str) -> Option<WhenFull> {
    [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Refuse]
        .into_iter()
        .find(|rule| when_full_name(*rule) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_back_as_they_were_written() {
        let filter = Filter::new("plant/+/#").unwrap();
        let topic = TopicTemplate::parse("f/{gateway}/{1}/{rest}", &filter, "g7").unwrap();
        let rule = ForwardRule {
            filter,
            topic,
            qos: Some(Qos::ExactlyOnce),
            when_full: Some(WhenFull::Refuse),
            strict_order: true,
            payload: Payload::JSON_BATCH,
            batch: Some(BatchLimits { within: Duration::from_millis(1500), ..BatchLimits::default() }),
        };
        let list = read(4, &write(&[rule], false, "g7")).unwrap();
        let local = Topic::new("plant/a/b/c").unwrap();
        let read_back = list.first(&local).unwrap();
        assert_eq!(super::topic(read_back, &local).unwrap().as_str(), "f/g7/a/b/c");
        assert_eq!((read_back.qos, read_back.strict_order), (Some(Qos::ExactlyOnce), true));
        assert_eq!(read_back.batch.unwrap().within, Duration::from_millis(1500));
        let older = r#"{"own":false,"gateway":"g7","rules":[{"filter":"a","topic":"b","qos":1,"when_full":null,"strict":false}]}"#;
        assert_eq!(read(4, older).unwrap().rules[0].batch, None);
        assert_eq!(read(4, older).unwrap().rules[0].payload, Payload::JSON);
        let frame = || Some(Frame { begin: "<".to_owned(), between: "\n".to_owned(), end: ">".to_owned() });
        let template = |frame| Form::Template(Arc::new(PayloadTemplate::parse("{device} {value}", frame).unwrap()));
        let batches = [Form::JsonDevice, Form::JsonBatch, Form::LineProtocol, Form::SenmlCbor, template(frame())];
        for form in batches.into_iter().chain([Form::Json, template(None)]) {
            for compression in [Compression::None, Compression::Gzip] {
                let payload = Payload { form: form.clone(), compression };
                let batch = payload.is_batch().then(BatchLimits::default);
                let text = write(&[ForwardRule { payload: payload.clone(), batch, ..read_back.clone() }], false, "g7");
                let again = read(4, &text).unwrap();
                assert_eq!((&again.rules[0].payload, again.rules[0].batch), (&payload, batch));
                let is_usual = payload == Payload::JSON || payload == Payload::JSON_BATCH;
                assert_eq!(text.contains("payload"), !is_usual, "{text}");
            }
        }
        assert_eq!(list.when_full(WhenFull::DropOldest), Some(WhenFull::Refuse));
        assert!(read(4, "{}").is_none());
    }
}
