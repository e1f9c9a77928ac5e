//! From rows of the queue to a request by HTTP. Pure.
//!
//! Promises: the same rows make the same body under the same idempotency key; a header has nothing in it that came from
//! outside and could end it.

use std::fmt::Write as _;

use bytes::Bytes;
use ring::hmac;

use crate::config::{HttpConfig, HttpKind};
use crate::message::{Body, Message, Origin, Qos};
use crate::queue::Queued;
use crate::uplink::compose::{name, written};
use crate::uplink::waiting::Attempt;

/// A POST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Path and query.
    pub target: String,
    /// Name and value.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// `attempt` as a request to a server whose address has this path; `key` signs the body.
pub fn request(config: &HttpConfig, path: &str, attempt: &Attempt, key: Option<&[u8]>) -> Request {
    let row = &attempt.row;
    let (body, marks) = written(row, &attempt.others);
    let gap = (config.kind == HttpKind::InfluxDb).then(|| gap_line(row)).flatten();
    let content_type = match (&row.message.body, &gap) {
        (Body::Reading(_), _) => row.encoding.payload.content_type().to_owned(),
        (_, Some(_)) => "text/plain; charset=utf-8".to_owned(),
        (Body::Bytes(_), None) => raw_type(&row.message),
    };
    let body = gap.unwrap_or(body);
    let mut headers = vec![
        ("Content-Type".to_owned(), content_type),
        // The batch is what may come again: its name is the same then.
        ("Idempotency-Key".to_owned(), escaped(&name(row, &attempt.others), |_| true)),
    ];
    if let Some(encoding) = marks.content_encoding {
        headers.push(("Content-Encoding".to_owned(), encoding.to_owned()));
    }
    let topic = row.encoding.topic.as_str();
    let target = match config.kind {
        HttpKind::Webhook => {
            headers.push(("Tidegate-Topic".to_owned(), escaped(topic, |byte| byte == b'/')));
            path.to_owned()
        }
        HttpKind::InfluxDb => path.to_owned(),
        HttpKind::AwsTopics => {
            let qos = row.qos.min(Qos::AtLeastOnce).level();
            format!("{}/topics/{}?qos={qos}", path.trim_end_matches('/'), escaped(topic, |_| false))
        }
    };
    if let (Some(hmac), Some(key)) = (&config.hmac, key) {
        headers.push((hmac.header.clone(), format!("sha256={}", signature(key, &body))));
    }
    headers.extend(config.headers.iter().cloned());
    Request { target, headers, body }
}

/// What a client says its message is, if that fits into a header.
fn raw_type(message: &Message) -> String {
    let said = message.properties.as_ref().and_then(|properties| properties.content_type.as_deref());
    let said = said.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
    match (&message.origin, said) {
        (_, Some(said)) => said.to_owned(),
        (Origin::Gateway, None) => "application/json".to_owned(),
        _ => "application/octet-stream".to_owned(),
    }
}

/// HMAC-SHA256 (RFC 2104) in hexadecimal digits.
fn signature(key: &[u8], body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), body);
    tag.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ok = write!(text, "{byte:02x}");
        text
    })
}

/// As in a URL (RFC 3986, 2.3), but for what may stay.
fn escaped(text: &str, may_stay: impl Fn(u8) -> bool) -> String {
    let mut result = String::new();
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if is_plain || (byte.is_ascii_graphic() && may_stay(byte)) {
            result.push(char::from(byte));
        } else {
            let _ok = write!(result, "%{byte:02X}");
        }
    }
    result
}

/// A loss that the gateway declares, as a line: `tidegate_gap,gateway=g,reason=r,stream=s count=7i,first=1i,last=9i …`.
fn gap_line(row: &Queued) -> Option<Bytes> {
    let Body::Bytes(bytes) = &row.message.body else { return None };
    if row.message.origin != Origin::Gateway {
        return None;
    }
    let gap: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let tag = |text: &str| {
        text.chars().flat_map(|c| [Some('\\').filter(|_| ", =".contains(c)), Some(c)]).flatten().collect::<String>()
    };
    let word = |key: &str| gap.get(key)?.as_str().filter(|text| !text.is_empty()).map(tag);
    let number = |key: &str| gap.get(key)?.as_i64();
    let line = format!(
        "tidegate_gap,gateway={},reason={},stream={} count={}i,first={}i,last={}i {}\n",
        tag(&row.id.gateway),
        word("reason")?,
        word("stream")?,
        number("count")?,
        number("first")?,
        number("last")?,
        row.message.received.wall_ms.saturating_mul(1_000_000)
    );
    Some(Bytes::from(line))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock::Timing;
    use crate::config::{Compression, Form, HmacConfig, Payload};
    use crate::message::{MessageId, Properties, Quality, Reading, Sequence, Stamp, Topic, Value};
    use crate::queue::Encoding;

    fn row(number: u64, body: Body, topic: &str, payload: Payload) -> Queued {
        let topic = Topic::new(topic).unwrap();
        Queued {
            sequence: Sequence(number),
            id: MessageId { gateway: Arc::from("hall 3"), store: 1, start: 1, counter: number },
            message: Message {
                topic: topic.clone(),
                qos: Qos::AtLeastOnce,
                retain: false,
                properties: None,
                body,
                origin: Origin::Field,
                received: Stamp { wall_ms: 1000, ..Stamp::default() },
            },
            qos: Qos::AtLeastOnce,
            encoding: Encoding { topic, payload, timing: Timing::Stamped },
            strict_order: false,
            batching: None,
            expires_mono_ms: None,
            age_ms: None,
            is_again: false,
        }
    }

    fn reading(number: u64) -> Body {
        Body::Reading(Reading {
            device: Arc::from("d"),
            point: Arc::from("p"),
            value: Value::Uint(number),
            unit: None,
            quality: Quality::Good,
            reason: None,
            seq: number,
            stamp: Stamp::default(),
        })
    }

    fn config(kind: HttpKind) -> HttpConfig {
        HttpConfig { kind, hmac: None, headers: Vec::new(), timeout: Duration::from_secs(1) }
    }

    fn header<'r>(request: &'r Request, name: &str) -> Option<&'r str> {
        request.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn a_batch_bears_its_name_as_its_idempotency_key_and_may_be_signed() {
        let rows = (1..=3).map(|number| row(number, reading(number), "a/b ü", Payload::JSON_BATCH)).collect();
        let attempt = Attempt::batch(rows).unwrap();
        let mut config = config(HttpKind::Webhook);
        config.hmac = Some(HmacConfig { key_file: "/k".into(), header: "X-Sig".to_owned() });
        config.headers.push(("X-Tenant".to_owned(), "7".to_owned()));
        let sent = request(&config, "/in?x=1", &attempt, Some(b"key"));
        assert_eq!(sent.target, "/in?x=1");
        assert_eq!(header(&sent, "Idempotency-Key"), Some("hall%203.000000000001.1.1+3"));
        assert_eq!(header(&sent, "Content-Type"), Some("application/json"));
        assert_eq!(header(&sent, "Tidegate-Topic"), Some("a/b%20%C3%BC"));
        assert_eq!(header(&sent, "X-Tenant"), Some("7"));
        assert!(header(&sent, "X-Sig").unwrap().starts_with("sha256="));
        let json: serde_json::Value = serde_json::from_slice(&sent.body).unwrap();
        assert_eq!(json.as_array().map(Vec::len), Some(3));
        assert_eq!(request(&config, "/in?x=1", &attempt, Some(b"key")), sent, "a repeat is the same");
    }

    #[test]
    fn the_signature_is_that_of_the_specification() {
        // RFC 4231, 4.3.
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature(b"Jefe", b"what do ya want for nothing?"), expected);
    }

    #[test]
    fn a_topic_of_aws_is_part_of_the_address() {
        let attempt = Attempt::first(row(1, reading(1), "a/b c", Payload::JSON));
        assert_eq!(request(&config(HttpKind::AwsTopics), "/", &attempt, None).target, "/topics/a%2Fb%20c?qos=1");
    }

    #[test]
    fn lines_are_compressed_and_a_gap_is_a_line_too() {
        let payload = Payload { form: Form::LineProtocol, compression: Compression::Gzip };
        let sent = request(
            &config(HttpKind::InfluxDb),
            "/write?db=x",
            &Attempt::first(row(1, reading(1), "t", payload)),
            None,
        );
        assert_eq!(header(&sent, "Content-Encoding"), Some("gzip"));
        let told = r#"{"id":"x","stream":"cloud","first":1,"last":9,"count":7,"reason":"expired"}"#;
        let mut gap = row(2, Body::Bytes(Bytes::from(told)), "tidegate/g/gap", Payload::JSON);
        gap.message.origin = Origin::Gateway;
        let sent = request(&config(HttpKind::InfluxDb), "/write?db=x", &Attempt::first(gap), None);
        assert_eq!(
            std::str::from_utf8(&sent.body).unwrap(),
            "tidegate_gap,gateway=hall\\ 3,reason=expired,stream=cloud count=7i,first=1i,last=9i 1000000000\n"
        );
    }

    #[test]
    fn what_a_client_calls_its_message_cannot_end_a_header() {
        let mut raw = row(1, Body::Bytes(Bytes::from_static(b"x")), "t", Payload::JSON);
        let mut typed = |content_type: &str| {
            raw.message.properties =
                Some(Box::new(Properties { content_type: Some(content_type.to_owned()), ..Properties::default() }));
            let sent = request(&config(HttpKind::Webhook), "/", &Attempt::first(raw.clone()), None);
            header(&sent, "Content-Type").unwrap().to_owned()
        };
        assert_eq!(typed("text/csv; header=present"), "text/csv; header=present");
        assert_eq!(typed("text/csv\r\nX: y"), "application/octet-stream");
    }
}
