//! Closing the account: the publishers end, everything is given time to arrive, and one is weighed against the other.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::common::peers::Subscriber;
use super::common::raw::{Heard, RawClient, Version};
use super::common::{PATIENCE, wait_until};
use super::ledger::{Account, Arrival, Key, Verdict};
use super::publisher::Publisher;

/// The publishers begin nothing new, and have all their answers.
pub fn end_all(publishers: &[Publisher]) {
    publishers.iter().for_each(Publisher::end);
    wait_until(PATIENCE, "every publisher has all its answers", || {
        let late = publishers.iter().filter(|publisher| !publisher.has_ended());
        let late: Vec<_> = late.map(|publisher| (&publisher.habit, publisher.acknowledged_count())).collect();
        if late.is_empty() { Ok(()) } else { Err(format!("{late:?}")) }
    });
}

/// Whatever is still under way, or sent twice, comes before a message that is published now. `port` is the gateway's.
pub fn wait_for_the_last(application: &mut Subscriber, port: u16) {
    let mut last = RawClient::connected(port, Version::V311, "last");
    last.publish(b"plant/last", 2, 1, b"last");
    assert!(matches!(last.hear(PATIENCE), Heard::Packet(0x50, _)));
    last.release(1);
    application.wait_for_count("factory7/plant/last", 1);
}

/// The account of publishers that have ended.
pub fn balance(application: &mut Subscriber, publishers: &[Publisher]) -> Verdict {
    let received = application.received();
    let mut verdict = Verdict::default();
    for publisher in publishers {
        let topic = cloud_topic(publisher);
        let arrived = received.iter().filter(|message| message.topic == topic);
        let account = Account {
            qos: publisher.habit.qos,
            acknowledged: publisher.acknowledged(),
            arrived: arrived
                .map(|message| Arrival { key: Key::of(message.payload.as_bytes()), id: message.id.clone() })
                .collect(),
            what: topic,
        };
        verdict.add(&account.verdict());
    }
    verdict
}

/// Until all that was acknowledged has arrived, or nothing has come for `quiet`.
pub fn wait_for_arrivals(application: &mut Subscriber, publishers: &[Publisher], quiet: Duration) {
    let mut missing: HashSet<(String, Key)> = publishers
        .iter()
        .flat_map(|publisher| publisher.acknowledged().into_iter().map(|key| (cloud_topic(publisher), key)))
        .collect();
    let (mut seen, mut since) = (0, Instant::now());
    while since.elapsed() < quiet && !missing.is_empty() {
        let received = application.received();
        for message in received.iter().skip(seen) {
            // Only what publishers sent: readings of a device never end.
            if let Some(key) = Key::of(message.payload.as_bytes()) {
                missing.remove(&(message.topic.clone(), key));
                since = Instant::now();
            }
        }
        seen = received.len();
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cloud_topic(publisher: &Publisher) -> String {
    format!("factory7/{}", publisher.habit.topic())
}
