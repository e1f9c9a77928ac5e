//! `[broker.limits]`

use std::time::Duration;

use super::super::tree::{Spot, Tree};
use super::super::walk::{Reader, Walk};
use super::super::{LimitsConfig, keys};
use super::uplink::pace;
use crate::message::TOPIC_BYTES_MAX;

pub(super) fn read(walk: &mut Walk, tree: &Tree, spot: Spot) -> Option<LimitsConfig> {
    let reader = Reader::open(walk, tree, &keys::LIMITS, spot);
    let mut count = |key, min, max| {
        let count = reader.integer(walk, key, min, max)?;
        usize::try_from(count.value).ok()
    };
    let connections = count("connections", 1, 50_000);
    let connections_per_address = count("connections_per_address", 1, 50_000);
    let handshakes = count("handshakes", 1, 10_000);
    let topic_bytes = count("topic_bytes", 1, i64::try_from(TOPIC_BYTES_MAX).unwrap_or(i64::MAX));
    let topic_levels = count("topic_levels", 1, 1000);
    let subscriptions = count("subscriptions", 1, 10_000);
    let receive_maximum = count("receive_maximum", 1, 16_384);
    let in_flight = count("in_flight", 1, 10_000);
    let mut time = |key| reader.duration(walk, key, Duration::from_millis(100), Duration::from_secs(300));
    let handshake_time = time("handshake_time");
    let connect_time = time("connect_time");
    let packet_bytes = reader.size(walk, "packet_bytes", 1 << 10, 16 << 20);
    let live_bytes = reader.size(walk, "live_bytes", 1 << 20, 1 << 30);
    let rate = pace(walk, &reader, "rate", &keys::RATE);
    Some(LimitsConfig {
        connections: connections?,
        connections_per_address: connections_per_address?,
        handshakes: handshakes?,
        handshake_time: handshake_time?.value,
        connect_time: connect_time?.value,
        packet_bytes: usize::try_from(packet_bytes?.value).ok()?,
        topic_bytes: topic_bytes?,
        topic_levels: topic_levels?,
        subscriptions: subscriptions?,
        receive_maximum: u16::try_from(receive_maximum?).ok()?,
        in_flight: u16::try_from(in_flight?).ok()?,
        rate: rate?,
        live_bytes: usize::try_from(live_bytes?.value).ok()?,
    })
}
