//! Any MQTT broker: Mosquitto, EMQX, HiveMQ, RabbitMQ, NanoMQ. What it takes it says in CONNACK; at 3.1.1 nobody knows.

use std::time::Duration;

use super::{MissingPuback, Profile, Retain};
use crate::config::Reconnect;
use crate::message::Qos;

/// `profile = "generic"`
pub static GENERIC: Profile = Profile {
    name: "generic",
    title: "the broker",
    protocol: None,
    publishes_per_s: None,
    bytes_per_s: None,
    in_flight: None,
    packet_bytes: None,
    payload_bytes: None,
    payload_bytes_under: |_| None,
    topic_bytes: None,
    topic_slashes: None,
    counted: |topic| topic,
    client_id_bytes: None,
    // Some brokers take no more, and nobody needs more at once.
    filters_per_subscribe: 8,
    subscriptions: None,
    keep_alive: None,
    session_expiry: None,
    connect_every: Duration::ZERO,
    qos_max: Qos::ExactlyOnce,
    marks_repeats: true,
    has_wills: true,
    has_sessions: true,
    late: None,
    retain: Retain::All,
    missing_puback: MissingPuback::Fault,
    reconnect: Reconnect { first: Duration::from_secs(1), max: Duration::from_secs(30) },
    wants_server_name: false,
    has_authorizers: false,
    audience: None,
    client_id_fault: |_| None,
    auth_methods: &[],
    alpn: |_, _| None,
    http_alpn: |_| None,
    has_signatures: false,
    twin: None,
    has_jobs: false,
    username: None,
    envelope: None,
    foreign: |_, _, _| None,
};
