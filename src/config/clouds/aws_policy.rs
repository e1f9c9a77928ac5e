//! The smallest IoT policy that lets a gateway do what its configuration says. Pure.
//!
//! AWS closes the connection over whatever is missing in it, so that a policy by hand is the commonest reason of a gateway
//! that never stays connected.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::config::{ForwardRule, UplinkConfig};
use crate::message::{Filter, Topic};

/// What stands for the account, which no configuration knows.
pub const ACCOUNT: &str = "ACCOUNT";

/// What stands for the region where the endpoint does not say it.
const REGION: &str = "REGION";

/// Readings stand below this, and nobody retains them.
const READINGS: &str = "field";

/// The policy of an uplink as the document that `aws iot create-policy` takes.
pub fn policy(config: &UplinkConfig) -> Value {
    let region = config.endpoints.iter().find_map(|endpoint| region(&endpoint.host)).unwrap_or(REGION);
    let arn = |kind: &str, name: &str| format!("arn:aws:iot:{region}:{ACCOUNT}:{kind}/{name}");
    let mut published = BTreeSet::new();
    let mut retained = BTreeSet::new();
    for rule in &config.forward {
        let is_of_readings = rule.filter.pattern().split('/').next() == Some(READINGS);
        for topic in patterns(rule, is_of_readings) {
            if !is_of_readings && config.profile.may_retain(&topic) {
                retained.insert(arn("topic", &topic));
            }
            published.insert(arn("topic", &topic));
        }
    }
    if let Some(own) = &config.own_topic {
        published.insert(arn("topic", &format!("{own}/gap")));
        published.insert(arn("topic", &format!("{own}/status")));
        retained.insert(arn("topic", &format!("{own}/status")));
    }
    let services = config.service_filters();
    if let Some(twin) = &config.twin {
        published.extend([twin.get(""), twin.update("")].map(|topic| arn("topic", &topic)));
    }
    if let Some(jobs) = &config.jobs {
        published.insert(arn("topic", &jobs.start_next()));
    }
    let filters: Vec<&Filter> = config.receive.iter().map(|rule| &rule.filter).chain(&services).collect();
    let subscribed: BTreeSet<String> = filters.iter().map(|filter| arn("topicfilter", filter.as_str())).collect();
    let received = filters.iter().flat_map(|filter| with_parent(filter.pattern(), true));
    let received: BTreeSet<String> = received.map(|topic| arn("topic", &topic)).collect();
    let mut statements = vec![statement("iot:Connect", [arn("client", &config.client_id)].into())];
    let lists = [
        ("iot:Publish", published),
        ("iot:RetainPublish", retained),
        ("iot:Subscribe", subscribed),
        ("iot:Receive", received),
    ];
    statements
        .extend(lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(action, list)| statement(action, list)));
    json!({ "Version": "2012-10-17", "Statement": statements })
}

fn statement(action: &str, resources: BTreeSet<String>) -> Value {
    json!({ "Effect": "Allow", "Action": action, "Resource": resources })
}

/// The topics that a rule can make, where `*` is anything, also slashes.
fn patterns(rule: &ForwardRule, is_of_readings: bool) -> Vec<String> {
    let locals = with_parent(rule.filter.pattern(), !is_of_readings);
    let topics = locals.iter().filter_map(|local| Topic::new(local).ok());
    topics.filter_map(|topic| Some(rule.topic.apply(&rule.filter, &topic)?.ok()?.as_str().to_owned())).collect()
}

/// What a filter matches, with `*` for each wildcard; `a/#` matches `a` as well.
fn with_parent(pattern: &str, wants_parent: bool) -> Vec<String> {
    let starred = pattern.split('/').map(|level| if matches!(level, "+" | "#") { "*" } else { level });
    let starred: Vec<&str> = starred.collect();
    let mut topics = vec![starred.join("/")];
    if wants_parent
        && pattern.ends_with("/#")
        && let Some((_, parent)) = starred.split_last()
    {
        topics.push(parent.join("/"));
    }
    topics
}

/// `eu-central-1` of `a1b2-ats.iot.eu-central-1.amazonaws.com`.
fn region(host: &str) -> Option<&str> {
    let mut labels = host.split('.').skip_while(|label| *label != "iot").skip(1);
    let region = labels.next()?;
    (labels.next() == Some("amazonaws")).then_some(region)
}

/// Whether the policy allows an action on a resource, as AWS would judge it: for tests and for whoever edits one.
pub fn allows(policy: &Value, action: &str, resource: &str) -> bool {
    let list = |value: &Value| match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    let statements = policy.get("Statement").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let matching = statements.iter().filter(|statement| {
        let has = |key: &str, wanted: &str| {
            statement.get(key).is_some_and(|value| list(value).iter().any(|pattern| is_like(pattern, wanted)))
        };
        has("Action", action) && has("Resource", resource)
    });
    let mut is_allowed = false;
    for statement in matching {
        match statement.get("Effect").and_then(Value::as_str) {
            Some("Deny") => return false,
            Some("Allow") => is_allowed = true,
            _ => {}
        }
    }
    is_allowed
}

/// `*` is any text, also none.
fn is_like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part).and_then(|place| rest.get(place + part.len()..)) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text_and_nothing_else_is() {
        for (pattern, text, expected) in [
            ("a/*", "a/b/c", true),
            ("a/*", "a/", true),
            ("a/*", "a", false),
            ("*", "", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxc", false),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(is_like(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn the_region_is_read_off_the_endpoint() {
        assert_eq!(region("a1b2-ats.iot.eu-central-1.amazonaws.com"), Some("eu-central-1"));
        assert_eq!(region("a1b2.ats.iot.cn-north-1.amazonaws.com.cn"), Some("cn-north-1"));
        assert_eq!(region("iot.example.com"), None);
    }

    #[test]
    fn what_a_policy_denies_is_denied_whatever_it_allows() {
        let policy = json!({"Statement": [
            {"Effect": "Allow", "Action": ["iot:Publish", "iot:Connect"], "Resource": "*"},
            {"Effect": "Deny", "Action": "iot:Publish", "Resource": "arn:aws:iot:r:a:topic/secret/*"},
        ]});
        assert!(allows(&policy, "iot:Publish", "arn:aws:iot:r:a:topic/open"));
        assert!(!allows(&policy, "iot:Publish", "arn:aws:iot:r:a:topic/secret/x"));
        assert!(!allows(&policy, "iot:Subscribe", "arn:aws:iot:r:a:topicfilter/open"));
    }
}
