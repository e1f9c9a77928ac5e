//! A subscriber at the gateway itself whose session outlives every kill, and who counts as a receiver at QoS 2 must: a
//! message is there once its PUBLISH has come under a packet id that is not open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::common::frames::Published;
use super::common::raw::{Heard, RawClient, Version, packet};
use super::common::{PATIENCE, wait_until};
use super::ledger::Key;
use super::publisher::Publisher;

/// A running subscriber.
pub struct Listener {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By topic, in the order of arrival.
    arrived: Mutex<BTreeMap<String, Vec<Key>>>,
    is_gone: AtomicBool,
}

impl Listener {
    /// Subscribes to `plant/#` at QoS 2, as soon as somebody is there, and comes back whenever it can.
    pub fn started(port: u16, version: Version) -> Listener {
        let shared = Arc::<Shared>::default();
        let work = Arc::clone(&shared);
        let thread = std::thread::spawn(move || run(port, version, &work));
        Listener { shared, thread: Some(thread) }
    }

    fn arrived(&self, topic: &str) -> Vec<Key> {
        let arrived = self.shared.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.get(topic).cloned().unwrap_or_default()
    }

    /// Expects all that was acknowledged since it has subscribed, which is `after` so many messages of each publisher.
    /// What came at QoS 2 must have come once and in order.
    #[track_caller]
    pub fn assert_has_all(&self, publishers: &[Publisher], after: &BTreeMap<String, u64>) {
        for publisher in publishers {
            let topic = publisher.habit.topic();
            let from = after.get(&topic).copied().unwrap_or(0);
            let acknowledged: BTreeSet<Key> =
                publisher.acknowledged().into_iter().filter(|key| key.number >= from).collect();
            wait_until(PATIENCE, &format!("a local subscriber has all of {topic}"), || {
                let arrived: BTreeSet<Key> = self.arrived(&topic).into_iter().collect();
                let missing: Vec<&Key> = acknowledged.iter().filter(|key| !arrived.contains(key)).collect();
                if missing.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{} are missing: {:?}", missing.len(), missing[0]))
                }
            });
            if publisher.habit.qos == 2 {
                let arrived = self.arrived(&topic);
                let disorder = arrived.windows(2).find(|pair| pair[0] >= pair[1]);
                assert!(disorder.is_none(), "{topic}: doubled or out of order at {disorder:?}");
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.is_gone.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the local subscriber failed");
        }
    }
}

fn run(port: u16, version: Version, shared: &Shared) {
    let (mut is_known, mut open) = (false, BTreeSet::<u16>::new());
    while !shared.is_gone.load(Ordering::Relaxed) {
        let Ok((mut client, was_there)) = RawClient::try_resuming(port, version, "local-listener", 3600) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        assert!(was_there || !is_known, "the gateway has forgotten its subscriber");
        if !was_there {
            // Nobody kills the gateway before something has come.
            client.subscribe("plant/#", 2);
        }
        is_known = true;
        while !shared.is_gone.load(Ordering::Relaxed) {
            match client.hear(Duration::from_millis(200)) {
                Heard::Silence => {}
                Heard::Closed => break,
                Heard::Packet(0x62, body) => {
                    open.remove(&u16::from_be_bytes([body[0], body[1]]));
                    client.send(&packet(0x70, &body[..2]));
                }
                Heard::Packet(first, body) if first & 0xf0 == 0x30 => {
                    let published = Published::read(first, &body, version == Version::V5);
                    if published.qos != 2 || open.insert(published.packet_id) {
                        // What is published at the end bears no key.
                        let key = Key::of(&published.payload);
                        let mut arrived = shared.arrived.lock().unwrap_or_else(PoisonError::into_inner);
                        arrived.entry(published.topic).or_default().extend(key);
                    }
                    client.send(&packet(
                        if published.qos == 2 { 0x50 } else { 0x40 },
                        &published.packet_id.to_be_bytes(),
                    ));
                }
                Heard::Packet(..) => {}
            }
        }
    }
}
