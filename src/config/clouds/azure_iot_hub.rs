//! Azure IoT Hub, by its documents: MQTT 3.1.1 with topics of its own, and what a message is in a bag of properties.

use std::num::NonZeroU16;
use std::time::Duration;

use super::services::TwinKind;
use super::{Direction, MissingPuback, Profile, Retain, percent_encoded};
use crate::config::{Protocol, Reconnect};
use crate::message::Qos;

/// Which of the hub's interfaces is spoken to.
const API_VERSION: &str = "2021-04-12";

/// The same of the provisioning service.
const REGISTRATION_API_VERSION: &str = "2019-03-31";

/// Where answers to direct methods go, with the status of one that went well.
const METHOD_ANSWER: &str = "$iothub/methods/res/200/";
/// The status of one that did not.
const METHOD_REFUSAL: &str = "$iothub/methods/res/400/";

/// `profile = "azure-iot-hub"`
pub static AZURE_IOT_HUB: Profile = Profile {
    name: "azure-iot-hub",
    title: "Azure IoT Hub",
    protocol: Some(Protocol::V311),
    publishes_per_s: None,
    bytes_per_s: None,
    // Nothing is announced and nothing documented; the hub's broker for MQTT 5 had this.
    in_flight: NonZeroU16::new(16),
    packet_bytes: None,
    payload_bytes: Some(256 * 1024),
    payload_bytes_under: |_| None,
    topic_bytes: None,
    topic_slashes: None,
    counted: |topic| topic,
    client_id_bytes: Some(128),
    filters_per_subscribe: 5,
    subscriptions: Some(5),
    keep_alive: Some((Duration::from_secs(1), Duration::from_secs(1177))),
    session_expiry: None,
    connect_every: Duration::from_secs(1),
    qos_max: Qos::AtLeastOnce,
    marks_repeats: true,
    has_wills: true,
    has_sessions: true,
    late: None,
    retain: Retain::Nothing,
    missing_puback: MissingPuback::Fault,
    reconnect: Reconnect { first: Duration::from_secs(10), max: Duration::from_secs(300) },
    wants_server_name: true,
    has_authorizers: false,
    has_signatures: true,
    twin: Some(TwinKind::Device),
    has_jobs: false,
    audience: None,
    client_id_fault: |_| None,
    auth_methods: &[],
    alpn: |_, _| None,
    http_alpn: |_| None,
    username: Some(username),
    envelope: Some(envelope),
    foreign,
};

fn username(host: &str, device: &str) -> String {
    format!("{host}/{device}/?api-version={API_VERSION}")
}

/// What a signature is for: this device of this hub.
pub fn resource(host: &str, device: &str) -> String {
    format!("{host}/devices/{device}")
}

/// As whom a device speaks to the provisioning service: its user name, what its signature is for, and by which right.
pub fn registration(id_scope: &str, registration_id: &str) -> (String, String, &'static str) {
    let resource = format!("{id_scope}/registrations/{registration_id}");
    (format!("{resource}/api-version={REGISTRATION_API_VERSION}"), resource, "registration")
}

/// The topic under which the hub takes a message. What is one of the hub's own stays; everything else is telemetry, and
/// its topic a property, by which the hub can route.
fn envelope(device: &str, topic: &str, payload: &[u8], name: Option<&str>, content_type: Option<&str>) -> String {
    if let Some(request) = topic.strip_prefix(METHOD_ANSWER) {
        return if is_refusal(payload) { format!("{METHOD_REFUSAL}{request}") } else { topic.to_owned() };
    }
    if topic.starts_with("$iothub/") || topic.starts_with(&format!("devices/{device}/messages/events/")) {
        return topic.to_owned();
    }
    let mut pairs = Vec::new();
    pairs.extend(name.map(|name| ("$.mid", name)));
    pairs.extend(content_type.map(|content_type| ("$.ct", content_type)));
    // Without both the hub cannot look into the body.
    if content_type.is_some_and(|kind| kind == "application/json" || kind.starts_with("text/")) {
        pairs.push(("$.ce", "utf-8"));
    }
    pairs.push(("topic", topic));
    let bag: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{}={}", percent_encoded(key), percent_encoded(value))).collect();
    format!("devices/{device}/messages/events/{}", bag.join("&"))
}

/// The hub ends the connection on any other topic.
fn foreign(device: &str, topic: &str, way: Direction) -> Option<String> {
    let (events, messages) =
        (format!("devices/{device}/messages/events/"), format!("devices/{device}/messages/devicebound/#"));
    let (is_known, help) = match way {
        // What is none of the hub's own becomes telemetry.
        Direction::Up if !topic.starts_with('$') && !topic.starts_with("devices/") => return None,
        Direction::Up => (
            topic.starts_with(&events)
                || topic.starts_with("$iothub/methods/res/")
                || topic.starts_with("$iothub/twin/GET/")
                || topic.starts_with("$iothub/twin/PATCH/properties/reported/"),
            format!(
                "any topic becomes telemetry of its own ({events}…); answers to methods go to \"$iothub/methods/res/200/{{2}}\""
            ),
        ),
        Direction::Down => (
            topic == messages
                || topic.starts_with("$iothub/methods/POST/")
                || topic.starts_with("$iothub/twin/res/")
                || topic.starts_with("$iothub/twin/PATCH/properties/desired/"),
            format!("there are \"$iothub/methods/POST/+/+\" and {messages:?}"),
        ),
    };
    (!is_known).then_some(help)
}

/// An answer of ours that says no.
fn is_refusal(payload: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(payload).is_ok_and(|answer| answer.get("ok") == Some(&false.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_telemetry_with_its_name_and_kind_in_the_bag() {
        assert_eq!(
            envelope("hall-3", "plant/a b/1", b"{}", Some("g.1.1.9+2"), Some("application/json")),
            "devices/hall-3/messages/events/%24.mid=g.1.1.9%2B2&%24.ct=application%2Fjson&%24.ce=utf-8&topic=plant%2Fa%20b%2F1"
        );
        assert_eq!(envelope("d", "a", b"x", None, None), "devices/d/messages/events/topic=a");
        assert_eq!(username("h.azure-devices.net", "d"), "h.azure-devices.net/d/?api-version=2021-04-12");
    }

    #[test]
    fn only_topics_of_the_hub_and_of_this_device_are_taken() {
        use Direction::{Down, Up};
        for (topic, way) in [
            ("plant/a", Up),
            ("devices/d/messages/events/x=1", Up),
            ("$iothub/methods/res/200/{2}", Up),
            ("$iothub/methods/POST/+/+", Down),
            ("devices/d/messages/devicebound/#", Down),
            ("$iothub/twin/res/#", Down),
        ] {
            assert_eq!(foreign("d", topic, way), None, "{topic}");
        }
        for (topic, way) in [
            ("devices/e/messages/events/", Up),
            ("$iothub/methods/POST/x", Up),
            ("$aws/rules/r/x", Up),
            ("devices/e/messages/devicebound/#", Down),
            ("commands/#", Down),
            ("#", Down),
        ] {
            assert!(foreign("d", topic, way).is_some(), "{topic}");
        }
        // A local topic that only looks like the hub's is telemetry like any other.
        assert_eq!(envelope("d", "devices/e/x", b"", None, None), "devices/d/messages/events/topic=devices%2Fe%2Fx");
    }

    #[test]
    fn an_answer_to_a_method_bears_the_status_of_what_it_says() {
        let answered = |body: &str| envelope("d", "$iothub/methods/res/200/?$rid=1", body.as_bytes(), Some("i"), None);
        assert_eq!(answered("{\"ok\": true}"), "$iothub/methods/res/200/?$rid=1");
        assert_eq!(answered("{\"ok\": false}"), "$iothub/methods/res/400/?$rid=1");
        assert_eq!(answered("done"), "$iothub/methods/res/200/?$rid=1");
    }
}
