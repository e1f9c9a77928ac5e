//! AWS IoT Core, by its developer guide and its quota pages, and by the profile that its own C library carries.

use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::time::Duration;

use super::services::TwinKind;
use super::{Late, MissingPuback, Profile, Retain, percent_encoded};
use crate::config::Reconnect;
use crate::message::Qos;

/// A message is billed as one for each of these that it has begun.
pub(super) const BILLED_BYTES: usize = 5 * 1024;

/// `profile = "aws-iot"`
pub static AWS_IOT: Profile = Profile {
    name: "aws-iot",
    title: "AWS IoT Core",
    protocol: None,
    publishes_per_s: NonZeroU32::new(100),
    bytes_per_s: NonZeroU64::new(512 * 1024),
    in_flight: NonZeroU16::new(100),
    packet_bytes: Some(149_504),
    payload_bytes: Some(128 * 1024),
    payload_bytes_under: |_| None,
    topic_bytes: Some(256),
    topic_slashes: Some(7),
    counted,
    client_id_bytes: Some(128),
    filters_per_subscribe: 8,
    subscriptions: Some(50),
    keep_alive: Some((Duration::from_secs(30), Duration::from_secs(1200))),
    session_expiry: Some(Duration::from_secs(7 * 86_400)),
    connect_every: Duration::from_secs(1),
    qos_max: Qos::AtLeastOnce,
    marks_repeats: false,
    has_wills: true,
    has_sessions: true,
    late: Some(Late { after: Duration::from_secs(7 * 86_400), what: "IoT SiteWise takes no value older than 7 days" }),
    retain: Retain::NotDollar,
    // A publish beyond the quota is thrown away without a word: neither a failure nor an end of the connection.
    missing_puback: MissingPuback::Throttle(Duration::from_secs(10)),
    reconnect: Reconnect { first: Duration::from_secs(10), max: Duration::from_secs(300) },
    wants_server_name: true,
    has_authorizers: true,
    audience: None,
    client_id_fault: |_| None,
    auth_methods: &[],
    alpn,
    http_alpn: |port| (port == 443).then_some("x-amzn-http-ca"),
    has_signatures: false,
    twin: Some(TwinKind::Shadow),
    has_jobs: true,
    username: None,
    envelope: None,
    foreign: |_, _, _| None,
};

/// Basic Ingest (`$aws/rules/<rule>/…`) and the name of a shared subscription do not count.
fn counted(topic: &str) -> &str {
    let rest = topic.strip_prefix("$aws/rules/").or_else(|| topic.strip_prefix("$share/"));
    rest.and_then(|rest| rest.split_once('/')).map_or(topic, |(_, counted)| counted)
}

/// Port 443 is shared by protocols: the name says which one is meant, and how the client logs in.
fn alpn(port: u16, has_certificate: bool) -> Option<&'static str> {
    match (port, has_certificate) {
        (443, true) => Some("x-amzn-mqtt-ca"),
        (443, false) => Some("mqtt"),
        _ => None,
    }
}

/// The user name by which a custom authoriser is asked for: what it may see as the name, then who it is, the token that it
/// checks and the signature of that, which keeps everybody else from calling it.
pub fn authorizer_username(
    username: Option<&str>,
    name: Option<&str>,
    token: Option<(&str, &str)>,
    signature: Option<&str>,
) -> String {
    let mut pairs = Vec::new();
    pairs.extend(name.map(|name| ("x-amz-customauthorizer-name", name)));
    pairs.extend(signature.map(|signature| ("x-amz-customauthorizer-signature", signature)));
    pairs.extend(token);
    let query: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{}={}", percent_encoded(key), percent_encoded(value))).collect();
    let username = username.unwrap_or_default();
    if query.is_empty() { username.to_owned() } else { format!("{username}?{}", query.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_of_seven_slashes_fits_and_the_prefix_of_basic_ingest_does_not_count() {
        for fits in ["a/b/c/d/e/f/g/h", "$aws/rules/store/a/b/c/d/e/f/g/h", "$share/g/a/b/c/d/e/f/g/h", "a"] {
            assert_eq!(AWS_IOT.topic_fault(fits), None, "{fits}");
        }
        for too_deep in ["a/b/c/d/e/f/g/h/i", "$aws/rules/store/a/b/c/d/e/f/g/h/i", "$aws/things/t/a/b/c/d/e/f"] {
            let fault = AWS_IOT.topic_fault(too_deep).unwrap();
            assert!(fault.contains("8 slashes, and AWS IoT Core takes 7"), "{fault}");
        }
        let long = "x".repeat(256);
        assert_eq!(AWS_IOT.topic_fault(&long), None);
        assert_eq!(AWS_IOT.topic_fault(&format!("$aws/rules/r/{long}")), None);
        assert!(AWS_IOT.topic_fault(&format!("{long}x")).unwrap().contains("257 bytes, and AWS IoT Core takes 256"));
    }

    #[test]
    fn nothing_is_retained_at_a_topic_of_the_cloud_itself() {
        assert!(AWS_IOT.may_retain("plant/a") && !AWS_IOT.may_retain("$aws/rules/r/plant/a"));
    }

    #[test]
    fn the_protocol_name_is_chosen_by_port_and_login() {
        assert_eq!((alpn(8883, true), alpn(443, true), alpn(443, false)), (None, Some("x-amzn-mqtt-ca"), Some("mqtt")));
    }

    #[test]
    fn a_custom_authoriser_is_asked_for_in_the_user_name() {
        assert_eq!(
            authorizer_username(Some("hall-3"), Some("plant gate"), Some(("token", "a.b")), Some("k+/=")),
            "hall-3?x-amz-customauthorizer-name=plant%20gate&x-amz-customauthorizer-signature=k%2B%2F%3D&token=a.b"
        );
        assert_eq!(authorizer_username(None, Some("gate"), None, None), "?x-amz-customauthorizer-name=gate");
        assert_eq!(authorizer_username(Some("u"), None, None, None), "u", "the account's default authoriser");
    }

    #[test]
    fn a_keep_alive_outside_the_range_is_what_the_cloud_makes_of_it() {
        for (told, kept) in [(0, 1200), (5, 30), (60, 60), (4000, 1200)] {
            assert_eq!(AWS_IOT.kept_alive(Duration::from_secs(told)), Duration::from_secs(kept), "{told}");
        }
    }
}
