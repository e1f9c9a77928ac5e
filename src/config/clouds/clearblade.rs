//! ClearBlade IoT Core, which took the place of Google's after that was retired in 2023 and kept its protocol, by their
//! documents: MQTT 3.1.1, a token as the password, topics of its own, no wills, no retained messages, no sessions.
//!
//! Without a session nothing can be delivered exactly once: a message is sent at QoS 1 until it is acknowledged, however many
//! connections that takes, and what was under way when one ended may come twice.

use std::num::NonZeroU64;
use std::time::Duration;

use super::{Direction, MissingPuback, Profile, Retain};
use crate::config::{Protocol, Reconnect};
use crate::message::Qos;

/// `profile = "clearblade"`
pub static CLEARBLADE: Profile = Profile {
    name: "clearblade",
    title: "ClearBlade IoT Core",
    protocol: Some(Protocol::V311),
    publishes_per_s: None,
    bytes_per_s: NonZeroU64::new(512 * 1024),
    in_flight: None,
    packet_bytes: None,
    payload_bytes: Some(256 * 1024),
    payload_bytes_under,
    topic_bytes: None,
    topic_slashes: None,
    counted: |topic| topic,
    client_id_bytes: None,
    filters_per_subscribe: 8,
    subscriptions: None,
    keep_alive: None,
    session_expiry: None,
    connect_every: Duration::from_secs(1),
    qos_max: Qos::AtLeastOnce,
    // The configuration comes again with each subscription, and is no new command then.
    marks_repeats: false,
    has_wills: false,
    has_sessions: false,
    late: None,
    retain: Retain::Nothing,
    // With its buffers full it drops a message and says nothing.
    missing_puback: MissingPuback::Throttle(Duration::from_secs(10)),
    reconnect: Reconnect { first: Duration::from_secs(10), max: Duration::from_secs(300) },
    wants_server_name: true,
    has_authorizers: false,
    has_signatures: false,
    twin: None,
    has_jobs: false,
    audience: Some(project),
    client_id_fault,
    auth_methods: &[],
    alpn: |_, _| None,
    http_alpn: |_| None,
    // It is not looked at, and must be there.
    username: Some(|_, _| "unused".to_owned()),
    envelope: Some(|client_id, topic, _, _, _| envelope(client_id, topic)),
    foreign,
};

/// What a client id is made of.
const FORM: [&str; 4] = ["projects", "locations", "registries", "devices"];

/// The project of a client id.
fn project(client_id: &str) -> Option<&str> {
    client_id.split('/').nth(1)
}

fn client_id_fault(client_id: &str) -> Option<&'static str> {
    let levels: Vec<&str> = client_id.split('/').collect();
    let pairs = levels.chunks(2).zip(FORM);
    let is_whole = levels.len() == 2 * FORM.len()
        && pairs.into_iter().all(|(pair, word)| matches!(pair, [first, second] if *first == word && is_name(second)));
    (!is_whole).then_some("it is \"projects/PROJECT/locations/REGION/registries/REGISTRY/devices/DEVICE\"")
}

/// A name in a client id becomes a level of topics.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"+#/".contains(&byte))
}

/// The state of a device is shorter than its telemetry.
fn payload_bytes_under(topic: &str) -> Option<usize> {
    let of_device = topic.strip_prefix("/devices/")?.split_once('/')?.1;
    (of_device == "state").then_some(64 * 1024)
}

fn device(client_id: &str) -> &str {
    client_id.rsplit('/').next().unwrap_or_default()
}

/// What is no topic of the device is telemetry in a folder of its own.
fn envelope(client_id: &str, topic: &str) -> String {
    match foreign(client_id, topic, Direction::Up) {
        None if topic.starts_with("/devices/") => topic.to_owned(),
        _ => format!("/devices/{}/events/{}", device(client_id), topic.trim_start_matches('/')),
    }
}

/// The cloud ends the connection on any other topic.
fn foreign(client_id: &str, topic: &str, way: Direction) -> Option<String> {
    let own = format!("/devices/{}/", device(client_id));
    let of_own = topic.strip_prefix(&own);
    let (is_known, help) = match way {
        // What is none of the cloud's own becomes telemetry.
        Direction::Up if !topic.starts_with("/devices/") && !topic.starts_with('$') => return None,
        Direction::Up => (
            of_own.is_some_and(|rest| rest == "state" || rest == "events" || rest.starts_with("events/")),
            format!("there are \"{own}state\" and \"{own}events/…\", which any other topic becomes by itself"),
        ),
        Direction::Down => (
            of_own
                .is_some_and(|rest| matches!(rest, "config" | "commands" | "errors") || rest.starts_with("commands/")),
            format!("there are \"{own}commands/#\", \"{own}config\" and \"{own}errors\""),
        ),
    };
    (!is_known).then_some(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "projects/p/locations/us-central1/registries/r/devices/press-7";

    #[test]
    fn a_client_id_says_project_and_device_and_must_be_whole() {
        assert_eq!((project(ID), device(ID), client_id_fault(ID)), (Some("p"), "press-7", None));
        for wrong in [
            "press-7",
            "projects/p/locations/l/registries/r/devices/",
            "projects/p/locations/l/registries/r/devices/d/e",
            "projects/p/locations/l/registries/r/devices/d+",
            "project/p/locations/l/registries/r/devices/d",
            "projects/p/locations/l/registries/r/devices",
            "",
        ] {
            assert!(client_id_fault(wrong).is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_topic_of_the_device_is_telemetry() {
        for (topic, there) in [
            ("plant/a b/1", "/devices/press-7/events/plant/a b/1"),
            ("/plant", "/devices/press-7/events/plant"),
            ("/devices/press-7/state", "/devices/press-7/state"),
            ("/devices/press-7/events/x", "/devices/press-7/events/x"),
            ("/devices/other/state", "/devices/press-7/events/devices/other/state"),
            ("/devices/press-7/config", "/devices/press-7/events/devices/press-7/config"),
        ] {
            assert_eq!(envelope(ID, topic), there);
        }
    }

    #[test]
    fn only_subscriptions_of_the_device_are_known() {
        for filter in ["config", "commands/#", "commands/+", "errors", "commands"] {
            assert_eq!(foreign(ID, &format!("/devices/press-7/{filter}"), Direction::Down), None, "{filter}");
        }
        for filter in ["#", "/devices/other/commands/#", "/devices/press-7/events/#", "commands/#", "/devices/+/config"]
        {
            assert!(foreign(ID, filter, Direction::Down).is_some(), "{filter}");
        }
    }
}
