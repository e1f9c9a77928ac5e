//! What a message to a `/set` topic asks for, and what the answer says. Pure.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value as Json;

use super::super::modbus::encode::Unwritable;
use crate::config;
use crate::message::Value;

/// A request is one value with little beside it.
const REQUEST_BYTES_MAX: usize = 4096;
/// The longest id that a request may have.
const ID_BYTES_MAX: usize = 256;

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    /// The value to be written; a command may do without.
    pub value: Option<Json>,
    /// To be repeated in the answer.
    pub id: Json,
    /// Not to be begun later than this after it came.
    pub expires: Option<Duration>,
}

/// Reads a bare JSON value, or `{"value", "id", "expires"}`, or nothing at all. With the id, where it could be read, if the rest could not.
pub(super) fn parse(body: &[u8]) -> Result<Request, (Json, Unwritable)> {
    let wrong = |id: Json, reason: String| Err((id, Unwritable { kind: "request", reason }));
    if body.is_empty() {
        return Ok(Request { value: None, id: Json::Null, expires: None });
    }
    if body.len() > REQUEST_BYTES_MAX {
        return wrong(Json::Null, format!("the message has more than {REQUEST_BYTES_MAX} bytes"));
    }
    let Ok(json) = serde_json::from_slice::<Json>(body) else {
        return wrong(Json::Null, "the message is not JSON: a text stands in quotes".to_owned());
    };
    let Json::Object(mut fields) = json else {
        return Ok(Request { value: Some(json), id: Json::Null, expires: None });
    };
    let id = fields.remove("id").unwrap_or_default();
    let is_id = matches!(id, Json::Null | Json::String(_) | Json::Number(_)) && id.to_string().len() <= ID_BYTES_MAX;
    if !is_id {
        return wrong(Json::Null, format!("`id` is not a text or a number of at most {ID_BYTES_MAX} bytes"));
    }
    let expires = match fields.remove("expires") {
        None | Some(Json::Null) => None,
        Some(written) => match expiry(&written) {
            Ok(expires) => Some(expires),
            Err(reason) => return wrong(id, format!("`expires`: {reason}")),
        },
    };
    let value = fields.remove("value");
    if let Some(other) = fields.keys().next() {
        let shown: String = other.chars().take(40).collect();
        return wrong(id, format!("`{shown}` is none of `value`, `id` and `expires`"));
    }
    Ok(Request { value, id, expires })
}

/// `"10s"`, or a number of seconds.
fn expiry(written: &Json) -> Result<Duration, String> {
    match written {
        Json::String(text) => config::parse_duration(text),
        Json::Number(number) => number
            .as_f64()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| format!("{number} is not a number of seconds")),
        _ => Err("write \"10s\", or a number of seconds".to_owned()),
    }
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::field) enum End {
    /// It stands in the device. `None`: that was not read back.
    Written {
        /// What was read back.
        read: Option<Value>,
    },
    /// It was not tried.
    Refused(Unwritable),
    /// Its time was over before it could be begun.
    Expired,
    /// It does not stand in the device.
    Failed {
        /// For the counters.
        kind: &'static str,
        /// For a person.
        reason: String,
        /// What the device says instead.
        read: Option<Value>,
    },
    /// Whether it was carried out cannot be known.
    Unknown {
        /// Why.
        reason: String,
        /// What the device says, if it says anything.
        read: Option<Value>,
    },
}

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Point,
    Command,
}

/// Whom and what an answer is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub device: &'a str,
    pub name: &'a str,
    pub kind: Kind,
    /// The name of the message that asked.
    pub request: &'a str,
    /// What the request called itself.
    pub id: &'a Json,
    /// What was to be written, as it is read back.
    pub asked: Option<&'a Value>,
    /// When it ended.
    pub ts: &'a str,
}

#[derive(Serialize)]
struct Answer<'a> {
    ts: &'a str,
    id: &'a Json,
    ok: bool,
    /// Read back.
    value: Json,
    written: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    device: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    point: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    request: &'a str,
}

/// The answer as JSON.
pub(super) fn answer(about: About<'_>, end: &End) -> Bytes {
    let (reason, error, read, has_written) = match end {
        End::Written { read } => (None, None, read.as_ref(), true),
        End::Refused(why) => (Some("refused"), Some(why.reason.clone()), None, false),
        End::Expired => {
            let error = "it could not be written in time, and was not written".to_owned();
            (Some("expired"), Some(error), None, false)
        }
        End::Failed { reason, read, .. } => (Some("failed"), Some(reason.clone()), read.as_ref(), false),
        End::Unknown { reason, read } => (Some("unknown"), Some(reason.clone()), read.as_ref(), false),
    };
    // What was sent and is in doubt, or differs, is told as well: it is what the other value is to be compared with.
    let was_sent = has_written || matches!(end, End::Unknown { .. }) || read.is_some();
    let answer = Answer {
        ts: about.ts,
        id: about.id,
        ok: has_written,
        value: read.map_or(Json::Null, json),
        written: about.asked.filter(|_| was_sent).map_or(Json::Null, json),
        reason,
        error,
        device: about.device,
        point: (about.kind == Kind::Point).then_some(about.name),
        command: (about.kind == Kind::Command).then_some(about.name),
        request: about.request,
    };
    // Texts, numbers and options only: there is nothing in it that cannot be written.
    Bytes::from(serde_json::to_vec(&answer).unwrap_or_default())
}

fn json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::from(*value),
        Value::Int(value) => Json::from(*value),
        Value::Uint(value) => Json::from(*value),
        Value::Float(value) => Json::from(*value),
        Value::Text(value) => Json::from(value.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reason(body: &str) -> String {
        parse(body.as_bytes()).unwrap_err().1.reason
    }

    #[test]
    fn a_request_is_a_bare_value_or_an_object_with_one() {
        let bare = |value: Json| Ok(Request { value: Some(value), id: Json::Null, expires: None });
        assert_eq!(parse(b"21.5"), bare(json!(21.5)));
        assert_eq!(parse(b" true\n"), bare(json!(true)));
        assert_eq!(parse(b"\"auto\""), bare(json!("auto")));
        assert_eq!(parse(b"[1]"), bare(json!([1])), "the point says what it makes of it");
        let whole = parse(br#"{"value": 5, "id": "a7", "expires": "10s"}"#).unwrap();
        let expires = Some(Duration::from_secs(10));
        assert_eq!(whole, Request { value: Some(json!(5)), id: json!("a7"), expires });
        assert_eq!(parse(br#"{"value": 5, "expires": 2.5}"#).unwrap().expires, Some(Duration::from_millis(2500)));
        assert_eq!(parse(br#"{"value": null, "id": 7}"#).unwrap().id, json!(7));
    }

    #[test]
    fn a_request_without_a_value_is_one_as_well() {
        let none = |id: Json| Ok(Request { value: None, id, expires: None });
        assert_eq!([parse(b""), parse(b"{}")], [none(Json::Null), none(Json::Null)]);
        assert_eq!(parse(br#"{"id": "a7"}"#), none(json!("a7")));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_reason_and_with_its_id() {
        assert!(reason("auto").contains("quotes"));
        assert!(reason(r#"{"value": 1, "vlaue": 2}"#).contains("`vlaue`"));
        assert!(reason(r#"{"value": 1, "expires": -1}"#).contains("`expires`"));
        assert!(reason(r#"{"value": 1, "expires": "soon"}"#).contains("`expires`"));
        assert!(reason(r#"{"value": 1, "id": [1]}"#).contains("`id`"));
        assert!(reason(&format!("\"{}\"", "x".repeat(5000))).contains("4096"));
        assert!(reason(&"[".repeat(4000)).contains("not JSON"));
        assert_eq!(parse(br#"{"id": "a7", "at": 1}"#).unwrap_err().0, json!("a7"));
    }

    #[test]
    fn an_answer_says_what_was_read_back_and_what_was_to_be_written() {
        let (id, asked) = (json!("a7"), Value::Float(21.5));
        let about = About {
            device: "d",
            name: "p",
            kind: Kind::Point,
            request: "g.1.1.1",
            id: &id,
            asked: Some(&asked),
            ts: "2026-11-26T08:00:00Z",
        };
        let told = |end: End| serde_json::from_slice::<Json>(&answer(about, &end)).unwrap();
        let good = told(End::Written { read: Some(Value::Float(21.5)) });
        assert_eq!((&good["ok"], &good["value"], &good["written"]), (&json!(true), &json!(21.5), &json!(21.5)));
        assert_eq!((&good["id"], good.get("error")), (&json!("a7"), None));
        let blind = told(End::Written { read: None });
        assert_eq!((&blind["ok"], &blind["value"], &blind["written"]), (&json!(true), &Json::Null, &json!(21.5)));
        let reason = "the device reads 20".to_owned();
        let other = told(End::Failed { kind: "differs", reason, read: Some(Value::Float(20.0)) });
        assert_eq!((&other["ok"], &other["value"], &other["written"]), (&json!(false), &json!(20.0), &json!(21.5)));
        let expired = told(End::Expired);
        assert_eq!((&expired["reason"], &expired["written"]), (&json!("expired"), &Json::Null));
        let refused = told(End::Refused(Unwritable { kind: "range", reason: "too much".to_owned() }));
        assert_eq!((&refused["reason"], &refused["error"]), (&json!("refused"), &json!("too much")));
    }
}
