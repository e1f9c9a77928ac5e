//! What is said to Azure's provisioning service, by its documents: topics, requests, answers. Pure.
//!
//! A registration is asked for once and then looked at until it has come to an end. Asked for again, the service gives the
//! device to the hub that it belongs to: one registration id is one device.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use thiserror::Error;

use super::Assignment;
use crate::config::clouds::percent_encoded;

/// Where answers come.
pub const ANSWERS: &str = "$dps/registrations/res/#";

const ANSWER: &str = "$dps/registrations/res/";

/// Where the service does not say when it wants to be asked again.
pub const ASK_AGAIN: Duration = Duration::from_secs(2);
/// And so late at the latest, whatever it says: a pause without a bound would be the last one.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// Host names are no longer (RFC 1035, 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// Device ids are no longer.
const DEVICE_BYTES_MAX: usize = 128;

/// Why the service gives no hub.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AnswerError {
    /// It says no.
    #[error("the provisioning service says no: {text} ({status})")]
    Refused {
        /// Its status, or the code of a registration that failed.
        status: i64,
        /// What it adds.
        text: String,
    },
    /// It cannot be read.
    #[error("the provisioning service gave an answer that cannot be read: {text}")]
    Unreadable {
        /// What is wrong with it.
        text: &'static str,
    },
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The hub.
    Assigned(Assignment),
    /// It is not decided yet: look again after this time.
    Assigning {
        /// Its name.
        operation: String,
        /// When to look.
        after: Duration,
    },
    /// It has too much to do: the same question again after this time.
    Later(Duration),
}

/// The request for a registration, numbered.
pub fn register(registration_id: &str, number: u32) -> (String, Bytes) {
    let topic = format!("$dps/registrations/PUT/iotdps-register/?$rid={number}");
    (topic, Bytes::from(json!({ "registrationId": registration_id }).to_string()))
}

/// The question how far it is.
pub fn look(operation: &str, number: u32) -> (String, Bytes) {
    let operation = percent_encoded(operation);
    let topic = format!("$dps/registrations/GET/iotdps-get-operationstatus/?$rid={number}&operationId={operation}");
    // As Azure's own library has it: a payload of nothing but a space.
    (topic, Bytes::from_static(b" "))
}

/// What the message is an answer to `number` with; `None` when to another question.
pub fn answer(number: u32, topic: &str, payload: &[u8]) -> Option<Result<Answer, AnswerError>> {
    let (status, query) = topic.strip_prefix(ANSWER)?.split_once("/?")?;
    let value = |key: &str| query.split('&').find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == key));
    if value("$rid").or_else(|| value("rid"))?.1 != number.to_string() {
        return None;
    }
    let after = value("retry-after").and_then(|(_, text)| text.parse().ok()).map_or(ASK_AGAIN, Duration::from_secs);
    let after = after.min(ASK_AGAIN_MAX);
    let Ok(status) = status.parse::<i64>() else {
        return Some(Err(AnswerError::Unreadable { text: "no status" }));
    };
    let body = serde_json::from_slice::<Value>(payload).unwrap_or_default();
    Some(match status {
        // A refusal that says nothing about the device: too many at once, or a fault of the service's own.
        429 | 500.. => Ok(Answer::Later(after)),
        200..300 => judged(&body, after),
        _ => Err(refusal(status, &body)),
    })
}

fn judged(body: &Value, after: Duration) -> Result<Answer, AnswerError> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let state = body.get("registrationState").unwrap_or(&Value::Null);
    match text(body, "status").as_deref() {
        Some("assigning" | "unassigned") => {
            let operation = text(body, "operationId").filter(|operation| !operation.is_empty());
            let operation = operation.ok_or(AnswerError::Unreadable { text: "it names no operation" })?;
            Ok(Answer::Assigning { operation, after })
        }
        Some("assigned") => {
            let (hub, device) = (text(state, "assignedHub"), text(state, "deviceId"));
            let assignment = Assignment { hub: hub.unwrap_or_default(), device: device.unwrap_or_default() };
            match assignment.is_whole() {
                true => Ok(Answer::Assigned(assignment)),
                false => Err(AnswerError::Unreadable { text: "it names no hub, or no device" }),
            }
        }
        Some("failed" | "disabled") => Err(refusal(0, if state.is_object() { state } else { body })),
        _ => Err(AnswerError::Unreadable { text: "it has no status that is known" }),
    }
}

fn refusal(status: i64, body: &Value) -> AnswerError {
    let text = |key: &str| body.get(key).and_then(Value::as_str);
    // What a stranger says may be long, and may end up in a terminal.
    let said = text("errorMessage").or_else(|| text("message")).or_else(|| text("status")).unwrap_or("without a word");
    let said = said.chars().filter(|character| !character.is_control()).take(200).collect();
    let code = body.get("errorCode").and_then(Value::as_i64).unwrap_or(status);
    AnswerError::Refused { status: code, text: said }
}

impl Assignment {
    /// Whether there can be such a hub and such a device.
    pub fn is_whole(&self) -> bool {
        let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        let is_of_device = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
        (1..=HOST_BYTES_MAX).contains(&self.hub.len())
            && self.hub.bytes().all(is_of_name)
            && (1..=DEVICE_BYTES_MAX).contains(&self.device.len())
            && self.device.bytes().all(is_of_device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(topic: &str, body: &str) -> Option<Result<Answer, AnswerError>> {
        answer(7, &format!("$dps/registrations/res/{topic}"), body.as_bytes())
    }

    #[test]
    fn an_answer_is_read_by_its_number_its_status_and_what_it_says() {
        let assigning = r#"{"operationId": "4.x y", "status": "assigning"}"#;
        let looking = |after| Answer::Assigning { operation: "4.x y".to_owned(), after };
        let seconds = Duration::from_secs;
        assert_eq!(read("202/?$rid=7&retry-after=3", assigning), Some(Ok(looking(seconds(3)))));
        assert_eq!(read("202/?$rid=7", assigning), Some(Ok(looking(ASK_AGAIN))));
        assert_eq!(read("202/?$rid=8&retry-after=3", assigning), None, "of another question");
        assert_eq!(read("429/?$rid=7&retry-after=20", "{}"), Some(Ok(Answer::Later(seconds(20)))));
        let for_ever = format!("429/?$rid=7&retry-after={}", u64::MAX);
        assert_eq!(read(&for_ever, "{}"), Some(Ok(Answer::Later(ASK_AGAIN_MAX))));
        assert_eq!(read("500/?$rid=7", "not json"), Some(Ok(Answer::Later(ASK_AGAIN))));
        let assigned = |hub: &str, device: &str| {
            let state = json!({"assignedHub": hub, "deviceId": device});
            read("200/?$rid=7", &json!({"status": "assigned", "registrationState": state}).to_string()).unwrap()
        };
        let given = Assignment { hub: "h.azure-devices.net".to_owned(), device: "d-1".to_owned() };
        assert_eq!(assigned("h.azure-devices.net", "d-1"), Ok(Answer::Assigned(given)));
        for (hub, device) in [("", "d"), ("h", ""), ("h/../x", "d"), ("h", "a/b"), ("h", "a\nb"), ("h:1", "d")] {
            assert!(matches!(assigned(hub, device), Err(AnswerError::Unreadable { .. })), "{hub:?} {device:?}");
        }
    }

    #[test]
    fn a_refusal_is_told_with_its_code_and_its_words() {
        let refused = |status, text: &str| Some(Err(AnswerError::Refused { status, text: text.to_owned() }));
        let body = r#"{"errorCode": 401002, "message": "Unauthorized", "trackingId": "x"}"#;
        assert_eq!(read("401/?$rid=7", body), refused(401_002, "Unauthorized"));
        assert_eq!(read("404/?$rid=7", ""), refused(404, "without a word"));
        let failed =
            r#"{"status": "failed", "registrationState": {"errorCode": 400207, "errorMessage": "Custom\u001b[2J"}}"#;
        assert_eq!(read("200/?$rid=7", failed), refused(400_207, "Custom[2J"));
        let disabled = r#"{"status": "disabled", "registrationState": {"status": "disabled"}}"#;
        assert_eq!(read("200/?$rid=7", disabled), refused(0, "disabled"));
        for odd in ["[]", "", "{\"status\": 7}", "{\"status\": \"assigning\"}", "\u{fffd}"] {
            assert!(matches!(read("200/?$rid=7", odd), Some(Err(AnswerError::Unreadable { .. }))), "{odd}");
        }
        assert_eq!(answer(7, "devices/d/messages/devicebound/", b""), None);
    }

    #[test]
    fn the_name_of_an_operation_stays_one_value_of_the_topic() {
        assert_eq!(
            look("4.a&b=c/#", 2).0,
            "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=4.a%26b%3Dc%2F%23"
        );
    }
}
