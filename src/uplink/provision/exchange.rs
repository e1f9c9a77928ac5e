//! What is said at fleet provisioning, by the developer guide of AWS IoT: topics, requests, answers. Pure.
//!
//! First a certificate for a key that stays on the board, then the thing that it stands for. The same in JSON and CBOR.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::cbor;
use crate::config::{ProvisionConfig, ProvisionFormat};
use crate::message::{Filter, Topic};

/// The two things that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A certificate for our key.
    Certificate,
    /// The thing.
    Thing,
}

/// A certificate that is not registered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its name at the cloud.
    pub id: String,
    /// Itself.
    pub pem: String,
    /// What proves that it is ours, for an hour.
    pub token: String,
}

/// What the certificate stands for from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct Thing {
    /// Its name.
    pub name: String,
    /// What the template says to the device.
    pub configuration: Value,
}

/// Why an answer is no good.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AnswerError {
    /// The cloud says no.
    #[error("the cloud rejects {what}: {code} ({status}){}", said(message))]
    Rejected {
        /// What was asked for.
        what: &'static str,
        /// As HTTP has it.
        status: i64,
        /// A word for it.
        code: String,
        /// A sentence.
        message: String,
    },
    /// It lacks something.
    #[error("the cloud's answer about {what} cannot be read")]
    Unreadable {
        /// What was asked for.
        what: &'static str,
    },
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message:?}") }
}

impl Step {
    fn what(self) -> &'static str {
        match self {
            Step::Certificate => "the certificate",
            Step::Thing => "the thing",
        }
    }

    /// Where it is asked for.
    pub fn topic(self, config: &ProvisionConfig) -> String {
        let format = match config.format {
            ProvisionFormat::Json => "json",
            ProvisionFormat::Cbor => "cbor",
        };
        match self {
            Step::Certificate => format!("$aws/certificates/create-from-csr/{format}"),
            Step::Thing => format!("$aws/provisioning-templates/{}/provision/{format}", config.template),
        }
    }
}

/// Where the answers come: subscribed to before anything is asked.
pub fn filters(config: &ProvisionConfig) -> Vec<Filter> {
    let topics = [Step::Certificate, Step::Thing].map(|step| step.topic(config));
    let answers = topics.iter().flat_map(|topic| ["accepted", "rejected"].map(|end| format!("{topic}/{end}")));
    answers.filter_map(|text| Filter::new(&text).ok()).collect()
}

/// Asks for a certificate.
pub fn certificate_request(config: &ProvisionConfig, csr: &str) -> Bytes {
    written(config, &json!({"certificateSigningRequest": csr}))
}

/// Asks for the thing.
pub fn thing_request(config: &ProvisionConfig, token: &str, parameters: &BTreeMap<String, String>) -> Bytes {
    let parameters: Map<String, Value> =
        parameters.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str()))).collect();
    let mut request = Map::new();
    request.insert("certificateOwnershipToken".to_owned(), token.into());
    if !parameters.is_empty() {
        request.insert("parameters".to_owned(), Value::Object(parameters));
    }
    written(config, &Value::Object(request))
}

/// What a message says to `step`; `None` when it is about something else.
pub fn answer(
    config: &ProvisionConfig,
    step: Step,
    topic: &Topic,
    payload: &[u8],
) -> Option<Result<Value, AnswerError>> {
    let end = topic.as_str().strip_prefix(&step.topic(config))?;
    let what = step.what();
    let value = match config.format {
        ProvisionFormat::Json => serde_json::from_slice(payload).ok(),
        ProvisionFormat::Cbor => cbor::decode(payload),
    };
    match (end, value) {
        ("/accepted", Some(value)) => Some(Ok(value)),
        ("/rejected", Some(value)) => {
            let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
            Some(Err(AnswerError::Rejected {
                what,
                status: value.get("statusCode").and_then(Value::as_i64).unwrap_or_default(),
                code: shown(text("errorCode")),
                message: shown(text("errorMessage")),
            }))
        }
        ("/accepted" | "/rejected", None) => Some(Err(AnswerError::Unreadable { what })),
        _ => None,
    }
}

/// What a cloud says may be long.
fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Reads an accepted answer about the certificate.
pub fn certificate(value: &Value) -> Result<Certificate, AnswerError> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let read = || {
        Some(Certificate {
            id: text("certificateId")?,
            pem: text("certificatePem")?,
            token: text("certificateOwnershipToken")?,
        })
    };
    read().ok_or(AnswerError::Unreadable { what: Step::Certificate.what() })
}

/// Reads an accepted answer about the thing.
pub fn thing(value: &Value) -> Result<Thing, AnswerError> {
    let name = value.get("thingName").and_then(Value::as_str);
    let name = name.ok_or(AnswerError::Unreadable { what: Step::Thing.what() })?.to_owned();
    Ok(Thing { name, configuration: value.get("deviceConfiguration").cloned().unwrap_or_else(|| json!({})) })
}

fn written(config: &ProvisionConfig, value: &Value) -> Bytes {
    match config.format {
        ProvisionFormat::Json => Bytes::from(value.to_string()),
        ProvisionFormat::Cbor => Bytes::from(cbor::encode(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(format: ProvisionFormat) -> ProvisionConfig {
        ProvisionConfig {
            template: "fleet".to_owned(),
            claim_cert: "c".into(),
            claim_key: "k".into(),
            parameters: BTreeMap::new(),
            format,
            folder: "f".into(),
        }
    }

    #[test]
    fn topics_are_those_of_the_developer_guide() {
        let filters: Vec<String> =
            filters(&config(ProvisionFormat::Cbor)).iter().map(|filter| filter.as_str().to_owned()).collect();
        assert_eq!(
            filters,
            [
                "$aws/certificates/create-from-csr/cbor/accepted",
                "$aws/certificates/create-from-csr/cbor/rejected",
                "$aws/provisioning-templates/fleet/provision/cbor/accepted",
                "$aws/provisioning-templates/fleet/provision/cbor/rejected",
            ]
        );
        assert_eq!(Step::Certificate.topic(&config(ProvisionFormat::Json)), "$aws/certificates/create-from-csr/json");
    }

    #[test]
    fn an_answer_is_told_from_a_refusal_and_from_anything_else_in_both_formats() {
        for format in [ProvisionFormat::Json, ProvisionFormat::Cbor] {
            let config = config(format);
            let at = |step: Step, end: &str| Topic::new(&format!("{}/{end}", step.topic(&config))).unwrap();
            let accepted = json!({"certificateId": "i", "certificatePem": "p", "certificateOwnershipToken": "t"});
            let body = written(&config, &accepted);
            let got = answer(&config, Step::Certificate, &at(Step::Certificate, "accepted"), &body).unwrap().unwrap();
            let expected = Certificate { id: "i".to_owned(), pem: "p".to_owned(), token: "t".to_owned() };
            assert_eq!(certificate(&got), Ok(expected));
            let no = written(&config, &json!({"statusCode": 429, "errorCode": "Throttled", "errorMessage": "slow"}));
            let got = answer(&config, Step::Thing, &at(Step::Thing, "rejected"), &no).unwrap().unwrap_err();
            assert_eq!(got.to_string(), "the cloud rejects the thing: Throttled (429): \"slow\"");
            assert_eq!(answer(&config, Step::Thing, &at(Step::Certificate, "accepted"), &body), None);
            let torn = answer(&config, Step::Thing, &at(Step::Thing, "accepted"), b"\xff").unwrap();
            assert_eq!(torn, Err(AnswerError::Unreadable { what: "the thing" }));
            assert!(thing(&json!({})).is_err() && certificate(&json!({"certificateId": "i"})).is_err());
        }
    }
}
