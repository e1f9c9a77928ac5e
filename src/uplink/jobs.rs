//! Jobs that AWS IoT Core has for the gateway: which one is asked for, and what is handed on. Pure.
//!
//! Promises: one job at a time, in the order of the cloud; each execution is handed on once, whatever repeats it; whether
//! and how it is carried out is said by whoever took it.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::commands;
use super::twin::{Request, text};
use crate::config::answers;
use crate::config::clouds::services::{JobTopics, is_aws_name};
use crate::health::ServiceState;

/// An answer must come within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// First and longest pause after a refusal.
const PAUSE_FIRST: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Bytes of the longest id of a job.
const ID_BYTES_MAX: usize = 64;

/// What the cloud's word comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Nothing for anybody.
    Nothing,
    /// A job.
    Job(Job),
    /// The cloud does not do as asked; for a person.
    Refused(String),
}

/// An execution of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// For whoever carries it out.
    pub payload: Bytes,
    /// The local topic at which he says what became of it.
    pub answer: String,
    /// By which it is known when it comes again.
    pub key: u64,
}

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    execution: Option<Execution>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Execution {
    #[serde(default)]
    job_id: Option<String>,
    #[serde(default)]
    execution_number: u64,
    #[serde(default)]
    job_document: Value,
}

/// The jobs of one thing.
#[derive(Debug)]
pub struct Jobs {
    topics: JobTopics,
    /// The next one is to be asked for.
    wants: bool,
    /// Somebody here takes jobs: one that nobody takes is not begun, so that the cloud shows it as what it is.
    is_heard: bool,
    /// Nobody does, and it was told that a job waits.
    is_told: bool,
    asked: Option<(String, Duration)>,
    count: u32,
    not_before: Duration,
    pause: Duration,
}

impl Jobs {
    /// The jobs of `topics`.
    pub fn new(topics: JobTopics) -> Jobs {
        Jobs {
            topics,
            wants: true,
            is_heard: false,
            is_told: false,
            asked: None,
            count: 0,
            not_before: Duration::ZERO,
            pause: Duration::ZERO,
        }
    }

    /// What is heard.
    pub fn filters(&self) -> Vec<String> {
        self.topics.filters()
    }

    /// Whether a topic is one of its own.
    pub fn owns(&self, topic: &str) -> bool {
        self.topics.tail(topic).is_some()
    }

    /// Whether somebody here takes jobs.
    pub fn set_heard(&mut self, is_heard: bool) {
        self.is_heard = is_heard;
        self.is_told &= !is_heard;
    }

    /// How they stand.
    pub fn state(&self) -> ServiceState {
        if self.is_heard { ServiceState::Ready } else { ServiceState::Unheard }
    }

    /// The connection is gone: what there is to do is asked for in the next one.
    pub fn lost(&mut self) {
        self.wants = true;
        self.asked = None;
    }

    /// Whether the cloud owes an answer.
    pub fn is_waiting(&self) -> bool {
        self.asked.is_some()
    }

    /// What is to be said now.
    pub fn next(&mut self, now: Duration, wall_ms: i64) -> Option<Request> {
        if self.asked.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.asked = None;
            self.put_off(now);
        }
        if !self.wants || !self.is_heard || self.asked.is_some() || now < self.not_before {
            return None;
        }
        // What is told from here on may be newer than the answer, whichever comes first.
        self.wants = false;
        self.count = self.count.wrapping_add(1);
        let token = format!("{wall_ms:x}-{}", self.count);
        let request = (self.topics.start_next(), json!({ "clientToken": token }).to_string().into());
        self.asked = Some((token, now + ANSWER_WITHIN));
        Some(request)
    }

    /// When `next` may have something, though nothing happens.
    pub fn deadline(&self) -> Option<Duration> {
        let asked_until = self.asked.as_ref().map(|(_, until)| *until);
        asked_until.or_else(|| (self.wants && self.is_heard).then_some(self.not_before))
    }

    /// The cloud has said something at one of the topics.
    pub fn hear(&mut self, now: Duration, uplink: &str, topic: &str, payload: &[u8]) -> Heard {
        #[derive(Deserialize)]
        struct Answered {
            #[serde(default, rename = "clientToken")]
            token: Option<String>,
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let Some(tail) = self.topics.tail(topic) else { return Heard::Nothing };
        let answered = || serde_json::from_slice::<Answered>(payload).ok();
        match tail {
            "notify-next" => {
                let told = serde_json::from_slice::<Told>(payload).ok();
                if told.and_then(|told| told.execution?.job_id).is_some() {
                    self.wants = true;
                    if !self.is_heard && !std::mem::replace(&mut self.is_told, true) {
                        return Heard::Refused("a job waits, and nobody here has subscribed to jobs".to_owned());
                    }
                }
                Heard::Nothing
            }
            "start-next/accepted" => {
                let token = answered().and_then(|answered| answered.token);
                if self.asked.take_if(|(asked, _)| token.as_ref() == Some(asked)).is_none() {
                    return Heard::Nothing;
                }
                self.pause = Duration::ZERO;
                match serde_json::from_slice::<Told>(payload) {
                    Ok(Told { execution: Some(execution) }) => self.job(uplink, execution),
                    _ => Heard::Nothing,
                }
            }
            "start-next/rejected" => {
                let Some(answered) = answered() else { return Heard::Nothing };
                if self.asked.take_if(|(asked, _)| answered.token.as_ref() == Some(asked)).is_none() {
                    return Heard::Nothing;
                }
                self.put_off(now);
                match answered.code.as_str() {
                    "RequestThrottled" | "InternalError" => Heard::Nothing,
                    code => Heard::Refused(format!(
                        "no job is shown: {} {}",
                        text(code.as_bytes()),
                        text(answered.message.as_bytes())
                    )),
                }
            }
            update => match (update.strip_suffix("/update/rejected"), answered()) {
                (Some(job), Some(Answered { code, message, .. })) => {
                    let (code, message) = (text(code.as_bytes()), text(message.as_bytes()));
                    Heard::Refused(format!(
                        "what became of the job {:?} is not taken: {code} {message}",
                        text(job.as_bytes())
                    ))
                }
                _ => Heard::Nothing,
            },
        }
    }

    fn job(&self, uplink: &str, execution: Execution) -> Heard {
        let Execution { job_id, execution_number: number, job_document: document } = execution;
        let Some(id) = job_id else { return Heard::Nothing };
        if !is_aws_name(&id, ID_BYTES_MAX) {
            return Heard::Refused(format!("the job {:?} has a name that no topic can bear", text(id.as_bytes())));
        }
        let answer = answers::local(uplink, &self.topics.update(&id));
        let payload = json!({ "id": id, "execution": number, "document": document, "answer": answer }).to_string();
        let key = commands::hashed(&[uplink.as_bytes(), b"job", id.as_bytes(), &number.to_le_bytes()]);
        Heard::Job(Job { payload: payload.into(), answer, key })
    }

    fn put_off(&mut self, now: Duration) {
        self.wants = true;
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_MAX);
        self.not_before = now + self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const BASE: &str = "$aws/things/g/jobs";

    fn jobs() -> Jobs {
        let mut jobs = Jobs::new(JobTopics::new("g"));
        jobs.set_heard(true);
        jobs
    }

    fn token((_, payload): &Request) -> Value {
        serde_json::from_slice::<Value>(payload).unwrap()["clientToken"].clone()
    }

    fn started(token: &Value, execution: &Value) -> String {
        json!({"execution": execution, "timestamp": 1, "clientToken": token}).to_string()
    }

    fn hear(jobs: &mut Jobs, tail: &str, payload: &str) -> Heard {
        jobs.hear(NOW, "hub", &format!("{BASE}/{tail}"), payload.as_bytes())
    }

    #[test]
    fn a_job_is_asked_for_handed_on_and_known_again() {
        let mut jobs = jobs();
        let execution = json!({"jobId": "reboot-7", "executionNumber": 2, "status": "IN_PROGRESS", "versionNumber": 2,
                               "jobDocument": {"operation": "reboot"}});
        let question = jobs.next(NOW, 0).unwrap();
        assert_eq!(question.0, "$aws/things/g/jobs/start-next");
        assert_eq!(jobs.next(NOW, 0), None);
        let said = started(&token(&question), &execution);
        let Heard::Job(job) = hear(&mut jobs, "start-next/accepted", &said) else { panic!("a job") };
        let payload: Value = serde_json::from_slice(&job.payload).unwrap();
        let answer = "answer/hub/$aws/things/g/jobs/reboot-7/update";
        assert_eq!(
            payload,
            json!({"id": "reboot-7", "execution": 2, "document": {"operation": "reboot"}, "answer": answer})
        );
        assert_eq!(hear(&mut jobs, "start-next/accepted", &said), Heard::Nothing, "a repeat");
        assert_eq!(jobs.deadline(), None);
        // In the next connection it is begun still: the queue knows it by its key. Another execution is another one.
        jobs.lost();
        let question = jobs.next(NOW, 1).unwrap();
        let Heard::Job(again) = hear(&mut jobs, "start-next/accepted", &started(&token(&question), &execution)) else {
            panic!("a job")
        };
        assert_eq!(again, job);
        let mut other = execution;
        other["executionNumber"] = json!(3);
        jobs.lost();
        let question = jobs.next(NOW, 1).unwrap();
        let Heard::Job(third) = hear(&mut jobs, "start-next/accepted", &started(&token(&question), &other)) else {
            panic!("a job")
        };
        assert_ne!(third.key, job.key);
    }

    #[test]
    fn without_a_job_nothing_is_asked_until_there_is_one() {
        let mut jobs = jobs();
        let question = jobs.next(NOW, 0).unwrap();
        assert_eq!(hear(&mut jobs, "start-next/accepted", &started(&token(&question), &json!({}))), Heard::Nothing);
        assert_eq!((jobs.next(NOW, 0), jobs.deadline()), (None, None));
        assert_eq!(hear(&mut jobs, "notify-next", r#"{"timestamp": 2}"#), Heard::Nothing);
        assert_eq!(jobs.next(NOW, 0), None, "it says that there is none");
        hear(&mut jobs, "notify-next", r#"{"timestamp": 3, "execution": {"jobId": "a", "status": "QUEUED"}}"#);
        assert!(jobs.next(NOW, 0).is_some());
    }

    #[test]
    fn a_job_that_is_told_of_before_the_answer_to_the_question_is_asked_for() {
        let mut jobs = jobs();
        let question = jobs.next(NOW, 0).unwrap();
        hear(&mut jobs, "notify-next", r#"{"timestamp": 3, "execution": {"jobId": "a", "status": "QUEUED"}}"#);
        assert_eq!(jobs.next(NOW, 0), None, "one question at a time");
        hear(&mut jobs, "start-next/accepted", &started(&token(&question), &json!({})));
        assert!(jobs.next(NOW, 0).is_some());
    }

    #[test]
    fn no_job_is_begun_that_nobody_here_would_take_and_that_one_waits_is_told_once() {
        let mut jobs = Jobs::new(JobTopics::new("g"));
        assert_eq!((jobs.next(NOW, 0), jobs.deadline()), (None, None));
        let told = r#"{"timestamp": 3, "execution": {"jobId": "a", "status": "QUEUED"}}"#;
        assert!(matches!(hear(&mut jobs, "notify-next", told), Heard::Refused(_)));
        assert_eq!(hear(&mut jobs, "notify-next", told), Heard::Nothing);
        assert_eq!((jobs.next(NOW, 0), jobs.state()), (None, ServiceState::Unheard));
        jobs.set_heard(true);
        assert!(jobs.next(NOW, 0).is_some());
    }

    #[test]
    fn a_refusal_is_told_and_too_much_is_only_asked_again_later() {
        let mut jobs = jobs();
        let question = jobs.next(NOW, 0).unwrap();
        let refusal = |token: &Value, code: &str| {
            json!({"code": code, "message": "no", "clientToken": token, "timestamp": 1}).to_string()
        };
        let throttled = refusal(&token(&question), "RequestThrottled");
        assert_eq!(hear(&mut jobs, "start-next/rejected", &throttled), Heard::Nothing);
        assert_eq!(jobs.next(NOW, 0), None);
        let question = jobs.next(NOW + PAUSE_FIRST, 0).unwrap();
        let heard = hear(&mut jobs, "start-next/rejected", &refusal(&token(&question), "ResourceNotFound"));
        assert_eq!(heard, Heard::Refused("no job is shown: ResourceNotFound no".to_owned()));
        let heard = hear(&mut jobs, "a-1/update/rejected", &refusal(&Value::Null, "InvalidStateTransition"));
        let told = "what became of the job \"a-1\" is not taken: InvalidStateTransition no";
        assert_eq!(heard, Heard::Refused(told.to_owned()));
    }

    #[test]
    fn a_job_whose_name_would_be_a_wildcard_is_refused() {
        let mut jobs = jobs();
        for name in ["+", "a/b", "#", ""] {
            jobs.lost();
            let question = jobs.next(NOW, 0).unwrap();
            let said = started(&token(&question), &json!({"jobId": name}));
            assert!(matches!(hear(&mut jobs, "start-next/accepted", &said), Heard::Refused(_)), "{name}");
        }
    }
}
