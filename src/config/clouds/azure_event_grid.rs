//! The MQTT broker of Azure Event Grid, by its documentation.
//!
//! What a table cannot say: CONNECT, SUBSCRIBE, DISCONNECT, AUTH and acknowledgements with user properties are refused, and so
//! is an acknowledgement with a failure (we write neither); a session in which 100 messages or 1 MB wait ends, and is begun
//! anew at the next connection.

use std::time::Duration;

use super::{MissingPuback, Profile, Retain};
use crate::config::Reconnect;
use crate::message::Qos;

/// `profile = "azure-event-grid"`
pub static AZURE_EVENT_GRID: Profile = Profile {
    name: "azure-event-grid",
    title: "Azure Event Grid",
    protocol: None,
    // How much it takes a second depends on the namespace's throughput units: what is too much is refused (0x97).
    publishes_per_s: None,
    bytes_per_s: None,
    in_flight: None,
    packet_bytes: Some(512 * 1024),
    payload_bytes: None,
    payload_bytes_under: |_| None,
    topic_bytes: None,
    topic_slashes: None,
    counted: |topic| topic,
    client_id_bytes: None,
    filters_per_subscribe: 8,
    subscriptions: None,
    keep_alive: Some((Duration::from_secs(1), Duration::from_secs(1160))),
    session_expiry: Some(Duration::from_secs(8 * 3600)),
    connect_every: Duration::ZERO,
    qos_max: Qos::AtLeastOnce,
    marks_repeats: true,
    has_wills: true,
    has_sessions: true,
    late: None,
    retain: Retain::All,
    missing_puback: MissingPuback::Fault,
    reconnect: Reconnect { first: Duration::from_secs(10), max: Duration::from_secs(300) },
    wants_server_name: true,
    has_authorizers: false,
    has_signatures: false,
    twin: None,
    has_jobs: false,
    username: None,
    envelope: None,
    foreign: |_, _, _| None,
    // Any other name is answered by "invalid issuer".
    audience: None,
    client_id_fault: |_| None,
    auth_methods: &["OAUTH2-JWT", "CUSTOM-JWT"],
    alpn: |_, _| None,
    http_alpn: |_| None,
};
