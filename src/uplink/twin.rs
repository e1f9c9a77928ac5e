//! The cloud's copy of what the gateway is: Azure's device twin, AWS's shadow. Pure.
//!
//! Promises: after each connection the whole is asked for, so that what was desired meanwhile is known whatever was missed;
//! what is reported is what is wanted last, once it differs from what the cloud has; a property that the cloud does not
//! take holds up no other; a cloud that refuses is asked again after a pause that grows.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::asking::Asking;
use crate::config::clouds::services::{TwinKind, TwinTopics};
use crate::health::ServiceState;

/// Properties by name.
pub type Properties = Map<String, Value>;

/// The gateway's own property.
pub const OWN: &str = "tidegate";

/// Of that, the list of what local clients report: one that nobody reports any more is known as such also after a restart.
pub const NAMES: &str = "names";

/// What was refused is tried again after this: there may be room now.
const REFUSED_FOR: Duration = Duration::from_secs(3600);

/// From one report to the next.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// What is to be published: topic and payload.
pub type Request = (String, Bytes);

/// What the cloud's word comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Nothing for anybody.
    Nothing,
    /// What is desired, all of it.
    Desired(Bytes),
    /// The cloud does not do as asked; for a person.
    Refused(String),
}

#[derive(Debug, PartialEq)]
enum Said {
    /// The whole, as an answer to this request.
    Whole { token: String, version: u64, desired: Properties, reported: Properties },
    /// What is desired now, all of it.
    Desired { version: u64, desired: Properties },
    /// What has changed of it.
    Changed { version: u64, patch: Properties },
    /// A report was taken.
    Taken { token: String },
    /// There is none any more.
    Gone,
    /// A request was refused.
    Refused { token: String, code: u64, text: String },
    /// Nothing that we know.
    Odd,
}

#[derive(Debug)]
enum Asked {
    Whole,
    /// The change, and what the properties are with it.
    Report {
        change: Properties,
        values: Properties,
    },
}

/// One twin.
#[derive(Debug)]
pub struct Twin {
    topics: TwinTopics,
    /// What is to be reported; `None` = not known yet.
    wanted: Option<Properties>,
    /// What the cloud has of it; `None` = not known on this connection.
    known: Option<Properties>,
    /// What it lacks, as far as that is known: kept, because it is looked at in each turn.
    lacks: Properties,
    /// What is desired, with its version.
    desired: Option<(u64, Properties)>,
    /// The newest version that is known to be, though not what it says.
    seen: u64,
    asking: Asking<Asked>,
    /// Properties that the cloud does not take, as they were, and when the last of them was refused.
    refused: BTreeMap<String, Value>,
    refused_at: Duration,
    /// After a refusal: which property it is about is found out.
    one_by_one: bool,
}

impl Twin {
    /// One of which nothing is known.
    pub fn new(topics: TwinTopics) -> Twin {
        Twin {
            topics,
            wanted: None,
            known: None,
            lacks: Properties::new(),
            desired: None,
            seen: 0,
            asking: Asking::new(),
            refused: BTreeMap::new(),
            refused_at: Duration::ZERO,
            one_by_one: false,
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

    /// What is to be reported from now on.
    pub fn want(&mut self, wanted: Properties) {
        let wanted = plain(wanted);
        // What is not taken back is as few as the cloud has of them.
        self.refused.retain(|name, value| wanted.contains_key(name) || value.is_null());
        self.wanted = Some(wanted);
        self.weigh();
    }

    /// How it stands.
    pub fn state(&self) -> ServiceState {
        match &self.known {
            None => ServiceState::Asking,
            Some(_) if !self.lacks.is_empty() => ServiceState::Behind,
            Some(_) if self.is_refused() => ServiceState::Refused,
            Some(_) => ServiceState::Ready,
        }
    }

    /// Whether a property as it is now is not taken.
    fn is_refused(&self) -> bool {
        let wanted = self.wanted.as_ref();
        self.refused.iter().any(|(name, value)| wanted.and_then(|wanted| wanted.get(name)) == Some(value))
    }

    /// The connection is gone. What is not answered is asked again.
    pub fn lost(&mut self) {
        self.known = None;
        self.desired = None;
        self.seen = 0;
        self.asking.forget();
        self.weigh();
    }

    /// Whether the cloud owes an answer.
    pub fn is_waiting(&self) -> bool {
        self.asking.pending().is_some()
    }

    /// What is to be said now.
    pub fn next(&mut self, now: Duration, wall_ms: i64) -> Option<Request> {
        self.asking.give_up(now);
        if !self.asking.may_ask(now) {
            return None;
        }
        if !self.refused.is_empty() && now >= self.refused_at + REFUSED_FOR {
            self.refused.clear();
            self.weigh();
        }
        let (what, body) = match &self.known {
            None => (Asked::Whole, None),
            Some(_) if self.lacks.is_empty() => return None,
            Some(_) => {
                let change = self.lacks.clone();
                let values = self.wanted.iter().flatten().filter(|(name, _)| change.contains_key(*name));
                let values = values.map(|(name, value)| (name.clone(), value.clone())).collect();
                (Asked::Report { change: change.clone(), values }, Some(change))
            }
        };
        let token = self.asking.ask(now, wall_ms, what);
        let request = match (body, self.topics.kind()) {
            (None, TwinKind::Device) => (self.topics.get(&token), Bytes::new()),
            (None, TwinKind::Shadow) => (self.topics.get(&token), json!({ "clientToken": token }).to_string().into()),
            (Some(report), TwinKind::Device) => (self.topics.update(&token), Value::Object(report).to_string().into()),
            (Some(report), TwinKind::Shadow) => {
                let update = json!({ "state": { "reported": report }, "clientToken": token });
                (self.topics.update(&token), update.to_string().into())
            }
        };
        Some(request)
    }

    /// When `next` may have something, though nothing happens.
    pub fn deadline(&self) -> Option<Duration> {
        let again_at = (!self.refused.is_empty()).then_some(self.refused_at + REFUSED_FOR);
        self.asking.deadline(self.known.is_none() || !self.lacks.is_empty()).or(again_at)
    }

    /// Finds out what the cloud lacks.
    fn weigh(&mut self) {
        self.lacks = match (&self.known, &self.wanted) {
            (Some(known), Some(wanted)) => self.change(known, wanted),
            _ => Properties::new(),
        };
        self.one_by_one &= !self.lacks.is_empty();
    }

    /// What makes of the known properties the wanted ones.
    fn change(&self, known: &Properties, wanted: &Properties) -> Properties {
        let mut report = Properties::new();
        for (name, value) in wanted {
            if known.get(name) != Some(value) && self.refused.get(name) != Some(value) {
                report.insert(name.clone(), change(known.get(name), value));
            }
        }
        let reported = known.get(OWN).and_then(|own| own.get(NAMES)).and_then(Value::as_array);
        for name in reported.into_iter().flatten().filter_map(Value::as_str) {
            let is_gone = !wanted.contains_key(name) && self.refused.get(name) != Some(&Value::Null);
            if is_gone && known.contains_key(name) {
                report.insert(name.to_owned(), Value::Null);
            }
        }
        if self.one_by_one {
            // No property stands in the cloud without its name in the list, or nobody would take it back after a restart.
            let rank = |name: &str, value: &Value| match (value, name) {
                (Value::Null, _) => 0,
                (_, OWN) => 1,
                _ => 2,
            };
            return report.into_iter().min_by_key(|(name, value)| rank(name, value)).into_iter().collect();
        }
        report
    }

    /// The cloud has said something at a topic of this twin.
    pub fn hear(&mut self, now: Duration, topic: &str, payload: &[u8]) -> Heard {
        let heard = self.take_in(now, topic, payload);
        self.weigh();
        heard
    }

    fn take_in(&mut self, now: Duration, topic: &str, payload: &[u8]) -> Heard {
        let said = match (self.topics.tail(topic), self.topics.kind()) {
            (Some(tail), TwinKind::Device) => device(tail, payload),
            (Some(tail), TwinKind::Shadow) => shadow(tail, payload),
            (None, _) => Said::Odd,
        };
        match said {
            Said::Whole { token, version, desired, reported } => {
                let was_asked = matches!(self.asking.pending(), Some(Asked::Whole));
                if !was_asked || self.asking.answered(&token).is_none() {
                    return Heard::Nothing;
                }
                self.asking.was_well();
                if version < self.seen {
                    // It was on its way when that came.
                    self.asking.wait_until(now + REPORT_EVERY);
                    return Heard::Nothing;
                }
                self.known = Some(reported);
                match &self.desired {
                    Some((newer, _)) if *newer > version => Heard::Nothing,
                    _ => self.desire(version, desired),
                }
            }
            Said::Desired { version, desired } => match &mut self.desired {
                // A report is a new version of a shadow too.
                Some((before, of_now)) if *before <= version && *of_now == desired => {
                    *before = version;
                    Heard::Nothing
                }
                // Late, or the shadow was removed and made anew.
                Some((before, _)) if *before > version => {
                    self.lost();
                    Heard::Nothing
                }
                _ => self.desire(version, desired),
            },
            Said::Changed { version, patch } => match self.desired.take() {
                Some((newer, of_now)) if newer >= version => {
                    self.desired = Some((newer, of_now));
                    Heard::Nothing
                }
                Some((before, mut of_now)) if version - before == 1 => {
                    merge(&mut of_now, patch);
                    self.desire(version, of_now)
                }
                // One was missed, or nothing is known yet.
                _ => {
                    self.seen = self.seen.max(version);
                    if !matches!(self.asking.pending(), Some(Asked::Whole)) {
                        self.known = None;
                        self.asking.forget();
                    }
                    Heard::Nothing
                }
            },
            Said::Taken { token } => {
                if let Some(Asked::Report { change, .. }) = self.asking.answered(&token) {
                    self.asking.was_well();
                    self.asking.wait_until(now + REPORT_EVERY);
                    merge(self.known.get_or_insert_default(), change);
                }
                Heard::Nothing
            }
            Said::Refused { token, code, text } => {
                let Some(what) = self.asking.answered(&token) else { return Heard::Nothing };
                self.asking.put_off(now);
                self.refuse(now, what, code, &text)
            }
            Said::Gone => {
                self.lost();
                Heard::Nothing
            }
            Said::Odd => Heard::Nothing,
        }
    }

    fn refuse(&mut self, now: Duration, what: Asked, code: u64, text: &str) -> Heard {
        // Too much, or a fault of the cloud's own: again, later.
        if code == 429 || code >= 500 {
            return Heard::Nothing;
        }
        let Asked::Report { change, mut values } = what else {
            return Heard::Refused(format!("it is not shown: {code} {text}"));
        };
        self.asking.wait_until(now + REPORT_EVERY);
        let mut names = change.keys();
        let (Some(name), None) = (names.next(), names.next()) else {
            self.one_by_one = true;
            return Heard::Nothing;
        };
        self.refused_at = now;
        self.refused.insert(name.clone(), values.remove(name).unwrap_or_default());
        Heard::Refused(format!("the property {name:?} is not taken: {code} {text}"))
    }

    fn desire(&mut self, version: u64, desired: Properties) -> Heard {
        let told = json!({ "version": version, "desired": desired }).to_string();
        self.desired = Some((version, desired));
        Heard::Desired(told.into())
    }
}

/// Without nulls, which mean that there is nothing, and objects without anything, which AWS forgets.
fn plain(properties: Properties) -> Properties {
    let plain = properties.into_iter().filter_map(|(name, value)| match value {
        Value::Null => None,
        Value::Object(inner) => {
            let inner = plain(inner);
            (!inner.is_empty()).then_some((name, Value::Object(inner)))
        }
        other => Some((name, other)),
    });
    plain.collect()
}

/// What makes `value` of what is known (RFC 7396, JSON Merge Patch).
fn change(known: Option<&Value>, value: &Value) -> Value {
    let (Some(Value::Object(known)), Value::Object(wanted)) = (known, value) else { return value.clone() };
    let mut patch = Properties::new();
    for (name, value) in wanted {
        if known.get(name) != Some(value) {
            patch.insert(name.clone(), change(known.get(name), value));
        }
    }
    for name in known.keys().filter(|name| !wanted.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// Carries a patch out (RFC 7396).
fn merge(target: &mut Properties, patch: Properties) {
    for (name, value) in patch {
        match (value, target.get_mut(&name)) {
            (Value::Null, _) => {
                target.remove(&name);
            }
            (Value::Object(patch), Some(Value::Object(inner))) => merge(inner, patch),
            (Value::Object(patch), _) => {
                let mut inner = Properties::new();
                merge(&mut inner, patch);
                target.insert(name, Value::Object(inner));
            }
            (value, _) => {
                target.insert(name, value);
            }
        }
    }
}

// --- Azure --------------------------------------------------------------------------------------------------------

fn device(tail: &str, payload: &[u8]) -> Said {
    if let Some(query) = tail.strip_prefix("PATCH/properties/desired/") {
        let Ok(mut patch) = serde_json::from_slice::<Properties>(payload) else { return Said::Odd };
        let version = patch.remove("$version").as_ref().and_then(Value::as_u64);
        let Some(version) = version.or_else(|| parameter(query, "$version")?.parse().ok()) else { return Said::Odd };
        return Said::Changed { version, patch: without_dollars(patch) };
    }
    let Some((code, query)) = tail.strip_prefix("res/").and_then(|rest| rest.split_once('/')) else {
        return Said::Odd;
    };
    let (Ok(code), Some(token)) = (code.parse::<u64>(), parameter(query, "$rid")) else { return Said::Odd };
    let token = token.to_owned();
    match code {
        200 => {
            #[derive(Deserialize)]
            struct Whole {
                desired: Properties,
                reported: Properties,
            }
            let Ok(Whole { desired, reported }) = serde_json::from_slice(payload) else { return Said::Odd };
            let version = desired.get("$version").and_then(Value::as_u64).unwrap_or_default();
            let (desired, reported) = (without_dollars(desired), without_dollars(reported));
            Said::Whole { token, version, desired, reported }
        }
        204 => Said::Taken { token },
        code => Said::Refused { token, code, text: text(payload) },
    }
}

/// `$version` and `$metadata` are the hub's.
fn without_dollars(properties: Properties) -> Properties {
    properties.into_iter().filter(|(name, _)| !name.starts_with('$')).collect()
}

/// Of `?$rid=7&$version=3`.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let query = query.strip_prefix('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

// --- AWS ----------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct State {
    #[serde(default)]
    desired: Option<Properties>,
    #[serde(default)]
    reported: Option<Properties>,
}

#[derive(Deserialize)]
struct Document {
    state: State,
    version: u64,
}

fn shadow(tail: &str, payload: &[u8]) -> Said {
    #[derive(Deserialize)]
    struct Answered {
        #[serde(default, rename = "clientToken")]
        token: Option<String>,
        #[serde(default)]
        code: u64,
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct Documents {
        current: Document,
    }
    if tail == "delete/accepted" {
        return Said::Gone;
    }
    if tail == "update/documents" {
        let Ok(Documents { current }) = serde_json::from_slice(payload) else { return Said::Odd };
        return Said::Desired { version: current.version, desired: current.state.desired.unwrap_or_default() };
    }
    let Ok(Answered { token: Some(token), code, message }) = serde_json::from_slice(payload) else { return Said::Odd };
    match tail {
        "get/accepted" => {
            let Ok(Document { state, version }) = serde_json::from_slice(payload) else { return Said::Odd };
            let (desired, reported) = (state.desired.unwrap_or_default(), state.reported.unwrap_or_default());
            Said::Whole { token, version, desired, reported }
        }
        // There is none yet: the first report makes it.
        "get/rejected" if code == 404 => {
            Said::Whole { token, version: 0, desired: Properties::new(), reported: Properties::new() }
        }
        "update/accepted" => Said::Taken { token },
        "get/rejected" | "update/rejected" => Said::Refused { token, code, text: text(message.as_bytes()) },
        _ => Said::Odd,
    }
}

/// What a cloud gives as its reason, for a line of the journal.
pub(super) fn text(payload: &[u8]) -> String {
    const LENGTH_MAX: usize = 200;
    let text = String::from_utf8_lossy(payload);
    text.chars().filter(|one| !one.is_control()).take(LENGTH_MAX).collect()
}
#[cfg(test)]
mod tests {
    use super::super::asking::{ANSWER_WITHIN, PAUSE_MAX};
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn device() -> Twin {
        Twin::new(TwinTopics::new(TwinKind::Device, "g", None))
    }

    fn shadow() -> Twin {
        Twin::new(TwinTopics::new(TwinKind::Shadow, "g", None))
    }

    fn map(value: Value) -> Properties {
        value.as_object().unwrap().clone()
    }

    /// A cloud that keeps what it is told, by its own documents.
    struct Cloud {
        kind: TwinKind,
        desired: Properties,
        reported: Properties,
        version: u64,
    }

    impl Cloud {
        fn new(kind: TwinKind) -> Cloud {
            Cloud { kind, desired: map(json!({"rate": 5})), reported: Properties::new(), version: 1 }
        }

        /// Answers one request.
        fn answer(&mut self, (topic, payload): Request) -> (String, String) {
            let body: Value = serde_json::from_slice(&payload).unwrap_or_default();
            match self.kind {
                TwinKind::Device => {
                    let token = topic.split_once("$rid=").unwrap().1;
                    if topic.contains("/GET/") {
                        let (mut desired, mut reported) = (self.desired.clone(), self.reported.clone());
                        desired.insert("$version".to_owned(), self.version.into());
                        reported.insert("$version".to_owned(), 9.into());
                        let whole = json!({"desired": desired, "reported": reported});
                        return (format!("$iothub/twin/res/200/?$rid={token}"), whole.to_string());
                    }
                    merge(&mut self.reported, map(body));
                    (format!("$iothub/twin/res/204/?$rid={token}&$version=10"), String::new())
                }
                TwinKind::Shadow => {
                    let token = body["clientToken"].clone();
                    if topic.ends_with("/get") {
                        let state = json!({"desired": self.desired, "reported": self.reported});
                        let whole = json!({"state": state, "version": self.version, "clientToken": token});
                        return (format!("{topic}/accepted"), whole.to_string());
                    }
                    merge(&mut self.reported, map(body["state"]["reported"].clone()));
                    self.version += 1;
                    let accepted = json!({"state": body["state"], "version": self.version, "clientToken": token});
                    (format!("{topic}/accepted"), accepted.to_string())
                }
            }
        }

        /// What is heard until nothing more is asked.
        fn settle(&mut self, twin: &mut Twin, from: Duration) -> (Vec<Heard>, usize) {
            let (mut heard, mut requests, mut now) = (Vec::new(), 0, from);
            for _ in 0..50 {
                now += Duration::from_secs(2);
                let Some(request) = twin.next(now, 0) else { break };
                requests += 1;
                let (topic, said) = self.answer(request);
                heard.push(twin.hear(now, &topic, said.as_bytes()));
            }
            (heard, requests)
        }
    }

    fn desired(version: u64, desired: Value) -> Heard {
        Heard::Desired(json!({"version": version, "desired": desired}).to_string().into())
    }

    #[test]
    fn what_is_desired_is_asked_for_and_what_the_cloud_lacks_is_reported_once() {
        for (kind, mut twin) in [(TwinKind::Device, device()), (TwinKind::Shadow, shadow())] {
            let mut cloud = Cloud::new(kind);
            let wanted = json!({"tidegate": {"version": "1", "names": ["a"]}, "a": {"x": 1, "none": null}});
            twin.want(map(wanted));
            let (heard, requests) = cloud.settle(&mut twin, NOW);
            assert_eq!((heard[0].clone(), requests), (desired(1, json!({"rate": 5})), 2), "{kind:?}");
            assert_eq!(cloud.reported["a"], json!({"x": 1}));
            // The next connection finds it in step; only the question is asked.
            twin.lost();
            assert_eq!(cloud.settle(&mut twin, NOW * 2).1, 1);
            // What has changed goes alone, and what nobody says any more is taken back, also by the next process.
            twin.want(map(json!({"tidegate": {"version": "1", "names": ["b"]}, "b": "on"})));
            let change = twin.next(NOW * 3, 0).unwrap();
            let said: Value = serde_json::from_slice(&change.1).unwrap();
            let said = if kind == TwinKind::Shadow { said["state"]["reported"].clone() } else { said };
            assert_eq!(said, json!({"tidegate": {"names": ["b"]}, "a": null, "b": "on"}));
            cloud.answer(change);
            assert_eq!(Value::Object(cloud.reported), json!({"tidegate": {"version": "1", "names": ["b"]}, "b": "on"}));
        }
    }

    #[test]
    fn a_change_that_was_missed_or_came_before_the_whole_leads_to_the_whole() {
        let patch = "$iothub/twin/PATCH/properties/desired/?$version=";
        let mut twin = device();
        let mut cloud = Cloud::new(TwinKind::Device);
        let question = twin.next(NOW, 0).unwrap();
        // The answer is on its way, and is older than this change.
        assert_eq!(twin.hear(NOW, &format!("{patch}2"), br#"{"rate": 6, "$version": 2}"#), Heard::Nothing);
        let (topic, old) = cloud.answer(question);
        assert_eq!(twin.hear(NOW, &topic, old.as_bytes()), Heard::Nothing);
        assert_eq!(twin.next(NOW, 0), None, "not at once");
        (cloud.desired, cloud.version) = (map(json!({"rate": 6})), 2);
        assert_eq!(cloud.settle(&mut twin, NOW).0, [desired(2, json!({"rate": 6}))]);
        // In order it is enough.
        let change = br#"{"rate": null, "mode": {"fast": true}, "$version": 3}"#;
        assert_eq!(twin.hear(NOW, &format!("{patch}3"), change), desired(3, json!({"mode": {"fast": true}})));
        assert_eq!(twin.hear(NOW, &format!("{patch}3"), change), Heard::Nothing, "a repeat");
        assert_eq!(twin.deadline(), None);
        assert_eq!(twin.hear(NOW, &format!("{patch}5"), br#"{"mode": 1, "$version": 5}"#), Heard::Nothing);
        (cloud.desired, cloud.version) = (map(json!({"mode": 1})), 5);
        assert_eq!(cloud.settle(&mut twin, NOW * 2).0, [desired(5, json!({"mode": 1}))]);
    }

    #[test]
    fn a_shadow_that_is_told_in_whole_is_heard_when_what_is_desired_changes() {
        let documents = |version: u64, desired: Value| {
            json!({"previous": {"state": {}, "version": version - 1, "metadata": {}},
                   "current": {"state": {"desired": desired}, "version": version, "metadata": {}}, "timestamp": 1})
            .to_string()
        };
        let mut twin = shadow();
        let mut cloud = Cloud::new(TwinKind::Shadow);
        cloud.settle(&mut twin, NOW);
        let topic = "$aws/things/g/shadow/update/documents";
        // A report of its own is a version too, and no news.
        assert_eq!(twin.hear(NOW, topic, documents(2, json!({"rate": 5})).as_bytes()), Heard::Nothing);
        assert_eq!(twin.hear(NOW, topic, documents(3, json!({"rate": 7})).as_bytes()), desired(3, json!({"rate": 7})));
        assert_eq!(twin.deadline(), None);
        assert_eq!(twin.hear(NOW, "$aws/things/g/shadow/delete/accepted", b"{}"), Heard::Nothing);
        (cloud.desired, cloud.version) = (Properties::new(), 4);
        assert_eq!(cloud.settle(&mut twin, NOW).0, [desired(4, json!({}))], "it was removed");
        // Removed and made anew, and nobody has said so.
        assert_eq!(twin.hear(NOW, topic, documents(1, json!({"rate": 8})).as_bytes()), Heard::Nothing);
        (cloud.desired, cloud.version) = (map(json!({"rate": 8})), 1);
        assert_eq!(cloud.settle(&mut twin, NOW).0, [desired(1, json!({"rate": 8}))]);
    }

    #[test]
    fn a_shadow_that_does_not_exist_is_made_by_the_first_report() {
        let mut twin = shadow();
        twin.want(map(json!({"a": 1})));
        let (topic, question) = twin.next(NOW, 0).unwrap();
        let token = serde_json::from_slice::<Value>(&question).unwrap()["clientToken"].clone();
        let refusal = json!({"code": 404, "message": "No shadow exists with name: 'g'", "clientToken": token});
        let heard = twin.hear(NOW, &format!("{topic}/rejected"), refusal.to_string().as_bytes());
        assert_eq!(heard, desired(0, json!({})));
        assert_eq!(twin.next(NOW, 0).unwrap().0, "$aws/things/g/shadow/update");
    }

    #[test]
    fn a_property_that_is_not_taken_is_named_and_holds_up_no_other() {
        let mut twin = device();
        let mut cloud = Cloud::new(TwinKind::Device);
        twin.want(map(json!({"a": 1, "bad": 2, "c": 3})));
        let question = twin.next(NOW, 0).unwrap();
        let (topic, whole) = cloud.answer(question);
        twin.hear(NOW, &topic, whole.as_bytes());
        let (mut told, mut now) = (Vec::new(), NOW);
        for _ in 0..20 {
            now += Duration::from_secs(2);
            let Some(request) = twin.next(now, 0) else { break };
            let token = request.0.split_once("$rid=").unwrap().1.to_owned();
            let (topic, said) = match String::from_utf8_lossy(&request.1).contains("bad") {
                true => (format!("$iothub/twin/res/400/?$rid={token}"), r#"{"errorCode":400004}"#.to_owned()),
                false => cloud.answer(request),
            };
            told.extend(Some(twin.hear(now, &topic, said.as_bytes())).filter(|heard| *heard != Heard::Nothing));
        }
        let reason = r#"the property "bad" is not taken: 400 {"errorCode":400004}"#;
        assert_eq!(told, [Heard::Refused(reason.to_owned())]);
        assert_eq!(Value::Object(cloud.reported.clone()), json!({"a": 1, "c": 3}));
        assert!(twin.deadline().unwrap() > now + REFUSED_FOR / 2, "it is left alone");
        assert_eq!(twin.state(), ServiceState::Refused);
        // Another value is tried, and the same one after a while.
        twin.want(map(json!({"a": 1, "bad": 4, "c": 3})));
        assert_eq!((twin.state(), twin.deadline().unwrap() <= now + REPORT_EVERY), (ServiceState::Behind, true));
        twin.want(map(json!({"a": 1, "bad": 2, "c": 3})));
        assert_eq!(twin.next(now + REFUSED_FOR / 2, 0), None);
        assert!(twin.next(now + REFUSED_FOR, 0).is_some());
    }

    #[test]
    fn one_by_one_what_is_gone_is_taken_back_first_and_a_removal_that_is_refused_is_told_once() {
        let names = |names: Value| json!({"names": names});
        let mut twin = device();
        let mut cloud = Cloud::new(TwinKind::Device);
        cloud.reported = map(json!({"tidegate": names(json!(["z", "stays"])), "z": 1, "stays": 1}));
        twin.want(map(json!({"tidegate": names(json!(["a", "bad"])), "a": 1, "bad": 2})));
        let (topic, whole) = cloud.answer(twin.next(NOW, 0).unwrap());
        twin.hear(NOW, &topic, whole.as_bytes());
        let (mut said, mut told, mut now) = (Vec::new(), 0, NOW);
        for _ in 0..20 {
            now += Duration::from_secs(2);
            let Some(request) = twin.next(now, 0) else { break };
            let change: Value = serde_json::from_slice(&request.1).unwrap();
            let token = request.0.split_once("$rid=").unwrap().1.to_owned();
            let is_bad = ["bad", "stays"].iter().any(|name| change.get(*name).is_some());
            said.push(change.as_object().unwrap().keys().cloned().collect::<Vec<_>>());
            let (topic, text) = match is_bad {
                true => (format!("$iothub/twin/res/400/?$rid={token}"), String::new()),
                false => cloud.answer(request),
            };
            told += usize::from(twin.hear(now, &topic, text.as_bytes()) != Heard::Nothing);
        }
        assert_eq!(said[1..], [["stays"], ["z"], ["tidegate"], ["a"], ["bad"]]);
        assert_eq!((told, twin.deadline().unwrap() > now + REFUSED_FOR / 2), (2, true), "left alone for a while");
        let left = json!({"tidegate": names(json!(["a", "bad"])), "stays": 1, "a": 1});
        assert_eq!(Value::Object(cloud.reported), left);
    }

    #[test]
    fn a_cloud_that_has_too_much_to_do_or_does_not_answer_is_asked_again_after_a_pause_that_grows() {
        let mut twin = device();
        let mut now = NOW;
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            let (topic, _) = twin.next(now, 0).unwrap();
            let token = topic.split_once("$rid=").unwrap().1.to_owned();
            assert_eq!(twin.hear(now, &format!("$iothub/twin/res/429/?$rid={token}"), b""), Heard::Nothing);
            assert_eq!(twin.deadline(), Some(now + Duration::from_secs(pause)));
            now += Duration::from_secs(pause);
        }
        twin.next(now, 0).unwrap();
        assert_eq!(twin.next(now + ANSWER_WITHIN, 0), None);
        assert!(twin.deadline().unwrap() >= now + ANSWER_WITHIN + PAUSE_MAX);
    }

    #[test]
    fn an_answer_to_a_request_of_before_counts_for_nothing() {
        let mut twin = device();
        let (topic, _) = twin.next(NOW, 1).unwrap();
        let token = topic.split_once("$rid=").unwrap().1.to_owned();
        let mut next = device();
        next.next(NOW, 2).unwrap();
        let whole = br#"{"desired": {"$version": 1}, "reported": {}}"#;
        assert_eq!(next.hear(NOW, &format!("$iothub/twin/res/200/?$rid={token}"), whole), Heard::Nothing);
        assert!(next.is_waiting());
    }

    const TAILS: &[&str] = &[
        "res/200/?$rid=0-1",
        "res/204/?$rid=0-1",
        "res/429/?$rid=0-1",
        "res//?$rid",
        "res/99999999999999999999/?$rid=0-1",
        "PATCH/properties/desired/?$version=1",
        "PATCH/properties/desired/",
        "get/accepted",
        "get/rejected",
        "update/accepted",
        "update/rejected",
        "update/documents",
        "delete/accepted",
        "",
    ];

    const SAID: &[&str] = &[
        r#"{"desired": {"a": {"b": 1}, "$version": 18446744073709551615}, "reported": {"$version": 0}}"#,
        r#"{"a": null, "$version": 1}"#,
        r#"{"state": {"desired": {"a": 1}, "reported": null}, "version": 0, "clientToken": "0-1"}"#,
        r#"{"current": {"state": {"desired": {"a": []}}, "version": 2}}"#,
        r#"{"code": 404, "message": "no", "clientToken": "0-1"}"#,
        r#"{"code": -1, "clientToken": null}"#,
        "",
    ];

    proptest::proptest! {
        #[test]
        fn nothing_that_a_cloud_says_is_a_panic(
            tail in proptest::sample::select(TAILS),
            said in proptest::sample::select(SAID),
            faults in proptest::collection::vec((0_usize..90, proptest::prelude::any::<u8>()), 0..4),
        ) {
            let mut payload = said.as_bytes().to_vec();
            for (at, byte) in faults {
                if let Some(place) = payload.get_mut(at) {
                    *place = byte;
                }
            }
            for (mut twin, base) in [(device(), "$iothub/twin"), (shadow(), "$aws/things/g/shadow")] {
                for _ in 0..2 {
                    twin.next(NOW, 0);
                    twin.hear(NOW, &format!("{base}/{tail}"), &payload);
                }
            }
        }

        #[test]
        fn a_change_makes_of_what_is_known_what_is_wanted(seed in proptest::collection::vec(0_u8..6, 8)) {
            let value = |kind: u8| match kind {
                0 => json!(1),
                1 => json!("x"),
                2 => json!({"p": 1}),
                3 => json!({"p": 1, "q": {"r": 2}}),
                4 => json!([1, {"p": 2}]),
                _ => json!({"q": {"s": true}}),
            };
            let of = |seed: &[u8]| plain(seed.iter().enumerate().map(|(n, kind)| (format!("n{n}"), value(*kind))).collect());
            let (known, wanted) = (of(&seed[..4]), of(&seed[4..]));
            let Value::Object(patch) = change(Some(&Value::Object(known.clone())), &Value::Object(wanted.clone())) else {
                panic!("an object")
            };
            let mut result = known;
            merge(&mut result, patch);
            proptest::prop_assert_eq!(result, wanted);
        }
    }
}
