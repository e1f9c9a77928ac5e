//! Readings as the owner's template has it. Pure.

use std::fmt::Write as _;

use bytes::Bytes;

use super::Outgoing;
use super::json::JsonValue;
use super::time::Time;
use crate::clock::rfc3339;
use crate::config::{Field, Part, PayloadTemplate};
use crate::message::Value;

pub(super) fn encode(template: &PayloadTemplate, readings: &[Outgoing<'_>]) -> Bytes {
    let mut text = String::new();
    let frame = template.frame();
    text.push_str(frame.map_or("", |frame| &frame.begin));
    for (place, one) in readings.iter().enumerate() {
        if place > 0 {
            text.push_str(frame.map_or("", |frame| &frame.between));
        }
        reading(&mut text, template, *one);
    }
    text.push_str(frame.map_or("", |frame| &frame.end));
    Bytes::from(text)
}

fn reading(into: &mut String, template: &PayloadTemplate, one: Outgoing<'_>) {
    let Outgoing { reading, id, timing, topic } = one;
    let time = Time::new(reading.stamp, timing);
    for part in template.parts() {
        let mut word = |text: &str| push(into, text, template.is_json());
        // Writing to a String cannot fail.
        match part {
            Part::Text(text) => into.push_str(text),
            Part::Field(Field::Gateway) => word(&id.gateway),
            Part::Field(Field::Device) => word(&reading.device),
            Part::Field(Field::Point) => word(&reading.point),
            Part::Field(Field::Topic) => word(topic.as_str()),
            Part::Field(Field::Unit) => word(reading.unit.as_deref().unwrap_or_default()),
            Part::Field(Field::Quality) => word(reading.quality.name()),
            Part::Field(Field::Reason) => word(reading.reason.as_deref().unwrap_or_default()),
            Part::Field(Field::Id) => word(&id.to_string()),
            Part::Field(Field::Clock) => word(time.clock.name()),
            Part::Field(Field::Ts) => into.push_str(&rfc3339(time.wall_ms)),
            Part::Field(Field::TsMs) => {
                let _ok = write!(into, "{}", time.wall_ms);
            }
            Part::Field(Field::TsS) => {
                let _ok = write!(into, "{}", time.wall_ms.div_euclid(1000));
            }
            Part::Field(Field::Seq) => {
                let _ok = write!(into, "{}", reading.seq);
            }
            Part::Field(Field::Value) => match (&reading.value, template.is_json()) {
                (Value::Text(text), false) => into.push_str(text),
                (value, _) => into.push_str(&serde_json::to_string(&JsonValue::of(value)).unwrap_or_default()),
            },
        }
    }
}

/// A text within the quotes that the template has around it.
fn push(into: &mut String, text: &str, is_json: bool) {
    if !is_json {
        return into.push_str(text);
    }
    let quoted = serde_json::to_string(text).unwrap_or_default();
    let bare = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    into.push_str(bare.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Frame;
    use crate::payload::samples::{NOON, Sample, bad, outgoing, sample};

    fn made(text: &str, frame: Option<Frame>, samples: &[Sample]) -> String {
        let template = PayloadTemplate::parse(text, frame).unwrap();
        String::from_utf8(encode(&template, &outgoing(samples)).to_vec()).unwrap()
    }

    #[test]
    fn thingsboard_gets_its_own_schema() {
        let samples =
            [sample("Dev A", "supply", Value::Float(6.5), 1, NOON), bad(sample("Dev A", "x", Value::Null, 2, NOON))];
        let frame = Frame { begin: "[".to_owned(), between: ",".to_owned(), end: "]".to_owned() };
        assert_eq!(
            made(r#"{"ts":{ts_ms},"values":{"{point}":{value}}}"#, Some(frame), &samples),
            r#"[{"ts":1795425600123,"values":{"supply":6.5}},{"ts":1795425600123,"values":{"x":null}}]"#
        );
        assert_eq!(
            made(r#"{"{device}":[{"ts":{ts_ms},"values":{"{point}":{value}}}]}"#, None, &samples[..1]),
            r#"{"Dev A":[{"ts":1795425600123,"values":{"supply":6.5}}]}"#
        );
    }

    #[test]
    fn texts_cannot_break_out_of_json_and_stay_as_they_are_elsewhere() {
        let text = || Value::Text("a\"b\\\n".to_owned());
        let samples = [sample("d\"e", "p", text(), 1, NOON)];
        let json = made(r#"{"{device}":{value},"u":"{unit}","t":"{topic}","i":"{id}"}"#, None, &samples);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["d\"e"], "a\"b\\\n");
        assert_eq!((&parsed["u"], &parsed["i"]), (&"°C".into(), &"g7.000000000001.2.1".into()));
        assert_eq!(
            made("{device};{value};{seq};{ts_s};{clock};{quality}{reason}", None, &samples),
            "d\"e;a\"b\\\n;1;1795425600;synced;good"
        );
    }
}
