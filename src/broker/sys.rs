//! The `$SYS` tree: what the broker says of itself, under Mosquitto's names, so that dashboards made for that find it.
//!
//! Promises: nothing of it touches the disk, not even its retained values, which live as long as the process; it goes to
//! subscribers only, never to an uplink; a filter finds it only when it begins with `$SYS` itself.
//!
//! Every value that has changed is published each `sys_interval`; whether an uplink is connected, as soon as that changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::Services;
use crate::health::Health;
use crate::message::{Body, Filter, Message, Origin, Qos, Stamp, Topic};
use crate::router::Live;

/// Between two looks at the uplinks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The values that were published last, by topic.
#[derive(Debug, Default)]
pub(super) struct SysTree(Mutex<BTreeMap<String, String>>);

impl SysTree {
    /// Takes in what is so now; gives back what of it is new.
    fn change(&self, now: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new =
            |(topic, value): &(String, String)| known.insert(topic.clone(), value.clone()).as_ref() != Some(value);
        now.into_iter().filter(is_new).collect()
    }

    /// What a new subscription gets of it.
    pub(super) fn retained(&self, filter: &Filter, now: Stamp) -> Vec<Message> {
        if !filter.pattern().starts_with('$') {
            return Vec::new();
        }
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let topics = known.iter().filter_map(|(topic, value)| Some((Topic::new(topic).ok()?, value)));
        let message = |(topic, value): (Topic, &String)| Message {
            topic,
            qos: Qos::AtMostOnce,
            retain: true,
            properties: None,
            body: Body::Bytes(Bytes::copy_from_slice(value.as_bytes())),
            origin: Origin::Gateway,
            received: now,
        };
        topics.filter(|(topic, _)| filter.matches(topic)).map(message).collect()
    }
}

/// Publishes the tree until `stop`.
pub(super) async fn run(services: Arc<Services>, interval: Duration, stop: CancellationToken) {
    let started = Instant::now();
    let mut looks = time::interval(LOOK_EVERY.min(interval));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due = started;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            now = looks.tick() => {
                let mut changed = services.sys.change(uplinks(&services.health));
                if now >= due {
                    due += interval * (1 + u32::try_from((now - due).as_millis() / interval.as_millis().max(1)).unwrap_or(0));
                    changed.extend(services.sys.change(values(&services.health, started.elapsed())));
                }
                for (topic, value) in changed {
                    let Ok(topic) = Topic::new(&topic) else { continue };
                    let payload = Bytes::from(value);
                    let (qos, retain) = (Qos::AtMostOnce, true);
                    let live = Live { topic, qos, retain, payload, properties: None, publisher: None, ordinal: None };
                    if let Err(error) = services.router.publish(live).await {
                        return services.fail(error);
                    }
                }
            }
        }
    }
}

/// Whether each uplink is connected, as Mosquitto tells it of its bridges.
fn uplinks(health: &Health) -> Vec<(String, String)> {
    let state = |connected: bool| if connected { "1" } else { "0" };
    let entry = |(name, uplink): (Arc<str>, Arc<crate::health::UplinkHealth>)| {
        let is_connected = uplink.connected.load(Ordering::Relaxed);
        (format!("$SYS/broker/connection/{name}/state"), state(is_connected).to_owned())
    };
    health.uplinks().into_iter().map(entry).collect()
}

fn values(health: &Health, uptime: Duration) -> Vec<(String, String)> {
    let sessions = health.sessions();
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let connected = get(&sessions.connected);
    // Sessions that end with their sockets, and those that are kept, whether their client is there or not.
    let total = (get(&sessions.passing) + get(&sessions.kept)).max(connected);
    let numbers = [
        ("clients/connected", connected),
        ("clients/disconnected", total - connected),
        ("clients/total", total),
        ("messages/received", get(&sessions.packets_received)),
        ("messages/sent", get(&sessions.packets_sent)),
        ("publish/messages/received", get(&sessions.received)),
        ("publish/messages/sent", get(&sessions.sent)),
        ("publish/messages/dropped", get(&sessions.dropped)),
        ("subscriptions/count", get(&sessions.passing_subscriptions) + get(&sessions.kept_subscriptions)),
        ("retained messages/count", get(&sessions.retained)),
    ];
    let texts = [
        ("version", format!("tidegate version {}", env!("CARGO_PKG_VERSION"))),
        ("uptime", format!("{} seconds", uptime.as_secs())),
    ];
    let numbers = numbers.into_iter().map(|(name, number)| (name, number.to_string()));
    texts.into_iter().chain(numbers).map(|(name, value)| (format!("$SYS/broker/{name}"), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_published_again_and_only_filters_of_servers_find_it() {
        let tree = SysTree::default();
        let entry = |value: &str| vec![("$SYS/broker/uptime".to_owned(), value.to_owned())];
        assert_eq!(tree.change(entry("1 seconds")), entry("1 seconds"));
        assert_eq!(tree.change(entry("1 seconds")), []);
        assert_eq!(tree.change(entry("2 seconds")), entry("2 seconds"));
        let found = |filter: &str| tree.retained(&Filter::new(filter).unwrap(), Stamp::default()).len();
        assert_eq!(["$SYS/#", "$SYS/broker/+", "$SYS/broker/uptime"].map(found), [1, 1, 1]);
        assert_eq!(["#", "+/broker/uptime", "+/#", "$SYS/broker/version"].map(found), [0, 0, 0, 0]);
    }
}
