//! A publisher of numbers that knows exactly when each of them was acknowledged.

#![allow(dead_code, reason = "each test uses its own part of this")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::common::order::mark;
use super::common::raw::{Heard, RawClient, Version};
use super::random::Random;

/// What it publishes.
#[derive(Debug, Clone)]
pub struct Numbers {
    /// Of MQTT.
    pub version: Version,
    /// 1 or 2.
    pub qos: u8,
    /// Where to.
    pub topic: &'static str,
    /// The first number.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// How many are under way at once.
    pub window: usize,
    /// How many of a hundred fill some pages.
    pub large_percent: u64,
    /// How long it waits for an answer before it gives up.
    pub patience: Duration,
}

/// How it ended.
#[derive(Debug, Default, Clone)]
pub struct Said {
    /// Its port, 0 where nobody let it in.
    pub port: u16,
    /// The numbers that were acknowledged.
    pub acknowledged: Vec<u64>,
    /// The numbers that were refused, each with its reason code.
    pub refused: Vec<(u64, u8)>,
    /// The connection ended, or nothing was heard any more, before all were answered.
    pub was_cut: bool,
}

const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBCOMP: u8 = 0x70;
/// PUBREC "no matching subscribers" and the like are fine; from here on it is a refusal.
const FAILURE: u8 = 0x80;

impl Numbers {
    /// Publishes on one connection until all are answered or it is cut. `note` hears of each acknowledgement before
    /// anything else comes of it; `so_far` counts them.
    pub fn publish(&self, port: u16, random: &mut Random, so_far: &AtomicU64, note: impl Fn(u64)) -> Said {
        let client_id = format!("numbers-{}-{}", self.qos, self.first);
        let Ok(mut client) = RawClient::try_connected(port, self.version, &client_id, None) else {
            return Said { was_cut: true, ..Said::default() };
        };
        let mut said = Said { port: client.local_port(), ..Said::default() };
        let mut under_way = BTreeMap::<u16, u64>::new();
        let mut next = self.first;
        let end = self.first + self.count;
        loop {
            while under_way.len() < self.window && next < end {
                let packet_id = u16::try_from(next % 60_000).unwrap() + 1;
                // Mostly small; some fill a few pages.
                let size =
                    if random.happens(self.large_percent) { random.within(1000..8000) } else { random.within(10..400) };
                let mark = mark(self.topic, next);
                let payload = format!("{next} {mark} {}", "x".repeat(usize::try_from(size).unwrap()));
                client.publish(self.topic.as_bytes(), self.qos, packet_id, payload.as_bytes());
                under_way.insert(packet_id, next);
                next += 1;
            }
            if under_way.is_empty() {
                return said;
            }
            let Heard::Packet(kind, body) = client.hear(self.patience) else {
                said.was_cut = true;
                return said;
            };
            if !matches!(kind, PUBACK | PUBREC | PUBCOMP) {
                continue;
            }
            let packet_id = u16::from_be_bytes([body[0], body[1]]);
            let number = under_way[&packet_id];
            let reason = body.get(2).copied().unwrap_or(0);
            match kind {
                PUBCOMP => {
                    under_way.remove(&packet_id);
                }
                _ if reason >= FAILURE => {
                    under_way.remove(&packet_id);
                    said.refused.push((number, reason));
                }
                _ => {
                    note(number);
                    said.acknowledged.push(number);
                    so_far.fetch_add(1, Ordering::Relaxed);
                    match kind {
                        PUBREC => client.release(packet_id),
                        _ => drop(under_way.remove(&packet_id)),
                    }
                }
            }
        }
    }
}
