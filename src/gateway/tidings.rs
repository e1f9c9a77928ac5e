//! What the gateway tells local clients of itself, beside the states of devices (`field`): whether each uplink is there,
//! retained, and what was lost.
//!
//! Promises: a message for a change, not for an attempt to connect, and at most one a second of each, because what is
//! retained is written to the disk; none of it ever waits for a cloud.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, rfc3339};
use crate::health::{Health, Snapshot};
use crate::intake::Intake;
use crate::message::{Body, Message, Origin, Qos, Topic};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// What was told last.
#[derive(Debug, Default)]
struct Told {
    /// By uplink: whether it is there.
    uplinks: BTreeMap<String, bool>,
    /// By reason; what was lost before this start is not told again.
    losses: Option<BTreeMap<String, u64>>,
}

/// One message: below `tidegate/<id>/`, whether it is retained, and what it says; nothing = it is taken back.
type Tiding = (String, bool, Option<Value>);

impl Told {
    /// What is to be told now.
    fn next(&mut self, now: &Snapshot, ts: &str) -> Vec<Tiding> {
        let mut tidings = Vec::new();
        for (name, uplink) in &now.uplinks {
            let is_there = uplink.is_connected();
            if self.uplinks.insert(name.clone(), is_there) != Some(is_there) {
                let state = if is_there { "connected" } else { "away" };
                let told = json!({ "ts": ts, "state": state, "since": uplink.since, "reason": uplink.reason });
                tidings.push((format!("uplink/{name}"), true, Some(told)));
            }
        }
        let gone: Vec<String> = self.uplinks.keys().filter(|name| !now.uplinks.contains_key(*name)).cloned().collect();
        for name in gone {
            self.uplinks.remove(&name);
            tidings.push((format!("uplink/{name}"), true, None));
        }
        let losses = self.losses.get_or_insert_with(|| now.losses.clone());
        for (reason, total) in &now.losses {
            let before = losses.insert(reason.clone(), *total).unwrap_or(0);
            if *total > before {
                let told = json!({ "ts": ts, "reason": reason, "count": total - before, "total": total });
                tidings.push(("gap".to_owned(), false, Some(told)));
            }
        }
        tidings
    }
}

/// Tells until `stop`.
pub(super) async fn run(
    gateway: String,
    intake: Intake,
    health: Health,
    clock: Clock,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut told = Told::default();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = every.tick() => {}
        }
        let received = clock.now();
        for (path, retain, told) in told.next(&health.snapshot(received), &rfc3339(received.wall_ms)) {
            let Ok(topic) = Topic::new(&format!("tidegate/{gateway}/{path}")) else { continue };
            let message = Message {
                topic,
                qos: Qos::AtLeastOnce,
                retain,
                properties: None,
                body: Body::Bytes(told.map_or_else(Bytes::new, |told| Bytes::from(told.to_string()))),
                origin: Origin::Gateway,
                received,
            };
            let outcome = async { intake.submit(message, None).await?.outcome().await };
            if let Err(error) = outcome.await {
                // The next change is told again; that the store fails is said by the store.
                log::debug!(error:%; "What the gateway says of itself was not taken");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::ClockSource;
    use crate::health::{LossReason, UplinkState};

    #[test]
    fn a_change_is_told_once_and_attempts_to_connect_are_none() {
        let (health, clock) = (Health::default(), Clock::new(ClockSource::Trusted));
        let cloud: Arc<str> = Arc::from("cloud");
        health.restore_losses(LossReason::Expired, 7);
        let mut told = Told::default();
        let mut next = || told.next(&health.snapshot(clock.now()), "T");
        assert_eq!(next(), [], "what was lost before is not told again");
        health.uplink(&cloud).set(UplinkState::Connecting, 0, None);
        let tidings = next();
        assert_eq!((tidings[0].0.as_str(), tidings[0].1, tidings.len()), ("uplink/cloud", true, 1));
        assert_eq!(tidings[0].2.as_ref().unwrap()["state"], "away");
        for state in [UplinkState::Waiting, UplinkState::Connecting, UplinkState::Waiting] {
            health.uplink(&cloud).set(state, 0, Some("refused".to_owned()));
            assert_eq!(next(), []);
        }
        health.uplink(&cloud).set(UplinkState::Connected, 0, None);
        assert_eq!(next()[0].2.as_ref().unwrap()["state"], "connected");
        health.add_losses(LossReason::Expired, 3);
        let lost = next();
        assert_eq!(
            lost,
            [("gap".to_owned(), false, Some(json!({"ts": "T", "reason": "expired", "count": 3, "total": 10})))]
        );
        health.forget_uplink("cloud");
        assert_eq!(next(), [("uplink/cloud".to_owned(), true, None)]);
        assert_eq!(next(), []);
    }
}
