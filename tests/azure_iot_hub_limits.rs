//! Does the gateway keep to what Azure IoT Hub takes, and lose nothing when the hub takes less, refuses, or ends a signature?
//!
//! One uplink with a real queue in this process; the other side is a stand-in that goes by the hub's documents
//! (`azure_support`). Injected: an outage, throttling, a quota that is used up, refusals of each kind, signatures of two
//! seconds, a message that is longer than the hub takes. Survivable, because a message stays in the queue until its PUBACK.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod azure_support;
mod scripted;
mod uplink_support;

use std::collections::BTreeSet;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use azure_support::Azure;
use bytes::Bytes;
use scripted::Scripted;
use tidegate::config::clouds::AZURE_IOT_HUB;
use tidegate::config::{
    BatchLimits, ForwardRule, Payload, Protocol, ReceiveRule, SasConfig, TopicTemplate, UplinkConfig,
};
use tidegate::health::UplinkState;
use tidegate::message::{Body, Filter, Message, Origin, Qos, Quality, Reading, Topic, Value};
use tidegate::mqtt::ReasonCode;
use tidegate::queue::Submission;
use tidegate::queue::inspect::{Answer, Question};
use uplink_support::gateway::{Gateway, config, forward, until};

const KEY: &str = "c2VjcmV0IG9mIHRoZSBkZXZpY2U=";

fn hub() -> Scripted<Azure> {
    let mut azure = Azure::default();
    azure.keys = [("g7".to_owned(), KEY.to_owned())].into();
    Scripted::started(azure, None)
}

fn uplink(hub: &Scripted<Azure>, folder: &tempfile::TempDir, lifetime: Duration) -> UplinkConfig {
    let key = folder.path().join("device.key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    let filter = Filter::new("$iothub/methods/POST/+/+").unwrap();
    UplinkConfig {
        profile: &AZURE_IOT_HUB,
        sas: Some(SasConfig { key, derived_for: None, lifetime }),
        forward: vec![forward("plant/#", "{topic}", Some(Qos::AtLeastOnce))],
        receive: vec![ReceiveRule {
            topic: TopicTemplate::parse("local/{1}", &filter, "g7").unwrap(),
            filter,
            qos: Qos::AtLeastOnce,
            answer: None,
            answers: Vec::new(),
        }],
        own_topic: None,
        ..config(hub.port, Protocol::V311, None)
    }
}

const HOUR: Duration = Duration::from_secs(3600);

fn distinct(hub: &Scripted<Azure>) -> usize {
    let numbers: BTreeSet<u64> = hub.script().numbers().into_iter().collect();
    numbers.len()
}

/// Everything is there, and what came more than once bears one id.
#[track_caller]
fn assert_whole(hub: &Scripted<Azure>, count: usize) {
    assert_eq!(distinct(hub), count);
    let script = hub.script();
    assert_eq!(script.violations, Vec::<String>::new());
    let mut once = BTreeSet::new();
    for number in script.numbers() {
        let ids = script.ids_of(number);
        assert_eq!(ids.len(), 1, "repeats of {number} bear one id");
        once.extend(ids);
    }
    assert_eq!(once.len(), count, "and no two messages the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_the_backlog_goes_up_in_order_and_within_the_hubs_window() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    {
        let mut script = hub.script();
        (script.is_away, script.acks_per_s, script.waiting_max) = (true, Some(300.0), 16);
    }
    let gateway = Gateway::start(uplink(&hub, &folder, HOUR));
    gateway.publish(0..300, Qos::ExactlyOnce).await;
    assert_eq!(distinct(&hub), 0);
    hub.script().is_away = false;
    until("all settled", || gateway.delivered() >= 300).await;
    assert_whole(&hub, 300);
    let unacked_max = hub.script().unacked_max;
    let throttled = hub.script().throttled;
    assert!((2..=16).contains(&unacked_max), "{unacked_max} in flight");
    assert_eq!(throttled, 0);
    let ordered: Vec<u64> = hub.script().numbers().into_iter().filter(|number| number % 3 == 1).collect();
    assert!(ordered.is_sorted(), "each topic in its order: {ordered:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_throttles_by_ending_connections_gets_everything_and_makes_no_dead_letter() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    {
        let mut script = hub.script();
        (script.acks_per_s, script.waiting_max) = (Some(400.0), 6);
    }
    let gateway = Gateway::start(uplink(&hub, &folder, HOUR));
    gateway.publish(0..200, Qos::AtLeastOnce).await;
    until("all settled", || gateway.delivered() >= 200).await;
    assert_whole(&hub, 200);
    assert!(hub.script().throttled > 0, "it never throttled: the test shows nothing");
    // It learns how much the hub takes, and does not run against it again and again.
    assert!(hub.script().throttled < 20, "{} connections ended", hub.script().throttled);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_is_used_up_stops_everything_for_a_while_and_loses_nothing() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    hub.script().is_quota_used = true;
    let gateway = Gateway::start(uplink(&hub, &folder, HOUR));
    gateway.publish(0..50, Qos::AtLeastOnce).await;
    until("the hub has ended some connections", || hub.script().throttled >= 6).await;
    assert_eq!((distinct(&hub), gateway.delivered()), (0, 0));
    hub.script().is_quota_used = false;
    until("all settled", || gateway.delivered() >= 50).await;
    assert_whole(&hub, 50);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_256_kib_goes_up_one_byte_more_is_a_dead_letter_by_name_and_a_batch_stays_below() {
    const MAX: usize = 256 * 1024;
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let limits = BatchLimits {
        readings: NonZeroU16::new(1000).unwrap(),
        bytes: NonZeroU32::new(u32::try_from(MAX).unwrap()).unwrap(),
        within: Duration::from_secs(1),
    };
    let batched =
        ForwardRule { payload: Payload::JSON_BATCH, batch: Some(limits), ..forward("field/#", "batches", None) };
    let mut uplink = uplink(&hub, &folder, HOUR);
    uplink.forward.push(batched);
    let gateway = Gateway::start(uplink);
    // The stand-in reads the number at the end of the padding.
    for (number, length) in [(1, MAX), (2, MAX + 1), (3, 1)] {
        let body = Body::Bytes(Bytes::from(" ".repeat(length - 1) + &number.to_string()));
        let message = Message { body, ..gateway.message(number, Qos::AtLeastOnce) };
        gateway.inlet.append(Submission { message, once: None }).await.unwrap();
    }
    let mut pending = Vec::new();
    for _ in 0..600 {
        let received = gateway.clock.now();
        let reading = Reading {
            device: Arc::from("press"),
            point: Arc::from("curve"),
            value: Value::Text("~".repeat(1000)),
            unit: None,
            quality: Quality::Good,
            reason: None,
            seq: 0,
            stamp: received,
        };
        let message = Message {
            topic: Topic::new("field/press/curve").unwrap(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: None,
            body: Body::Reading(reading),
            origin: Origin::Field,
            received,
        };
        pending.push(gateway.inlet.begin_append(Submission { message, once: None }).await.unwrap());
    }
    for one in pending {
        one.outcome().await.unwrap();
    }
    until("all settled", || gateway.delivered() >= 602).await;
    {
        let script = hub.script();
        assert_eq!(script.violations, Vec::<String>::new());
        assert_eq!(script.numbers(), [1, 3], "what is too long is not tried, and holds nobody up");
        let is_batch = |topic: &str| topic.ends_with("topic=batches");
        let batches = script.got.iter().filter(|publish| is_batch(publish.topic.as_ref().unwrap().as_str()));
        let lengths: Vec<usize> = batches.map(|publish| publish.payload.len()).collect();
        assert!(lengths.iter().all(|length| *length <= MAX), "{lengths:?}");
        assert!(lengths.iter().any(|length| *length > MAX - 3000), "none is full, and that shows nothing: {lengths:?}");
    }
    let asked = Question::DeadLetters { after: 0, count: 10, body_bytes: 8 };
    let Answer::DeadLetters(letters) = gateway.inlet.ask(asked).await.unwrap() else { panic!("another answer") };
    let told: Vec<(&str, &str)> =
        letters.rows.iter().map(|letter| (letter.told.as_ref().unwrap().topic.as_str(), &*letter.reason)).collect();
    assert_eq!(told, [("plant/2", "the payload has 262145 bytes, and Azure IoT Hub takes 262144")]);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_is_told_in_words_and_ends_when_the_hub_thinks_better_of_it() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let refusals = [
        (ReasonCode::UNSUPPORTED_PROTOCOL_VERSION, "this protocol version is not supported"),
        (ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, "the client id is not allowed"),
        (ReasonCode::SERVER_UNAVAILABLE, "cannot serve now"),
        (ReasonCode::BAD_USER_NAME_OR_PASSWORD, "bad user name or password"),
        (ReasonCode::NOT_AUTHORIZED, "not authorised"),
    ];
    let refuse = |reason| hub.script().refuses = [("127.0.0.1".to_owned(), reason)].into();
    refuse(refusals[0].0);
    let gateway = Gateway::start(uplink(&hub, &folder, HOUR));
    gateway.publish(0..20, Qos::AtLeastOnce).await;
    for (reason, words) in refusals {
        refuse(reason);
        until(words, || gateway.reason().contains(words)).await;
    }
    assert_eq!(gateway.state(), UplinkState::Waiting);
    hub.script().refuses.clear();
    until("all settled", || gateway.delivered() >= 20).await;
    assert_whole(&hub, 20);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_end_in_the_middle_of_traffic_and_nothing_is_lost_and_methods_still_come() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let gateway = Gateway::start(uplink(&hub, &folder, Duration::from_secs(4)));
    let mut sent = 0;
    while hub.script().connects.len() < 3 {
        gateway.publish(sent..sent + 5, Qos::AtLeastOnce).await;
        sent += 5;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(sent < 20_000, "it never came back");
    }
    until("all settled", || gateway.delivered() >= u64::try_from(sent).unwrap()).await;
    assert_whole(&hub, sent);
    let expired = hub.script().expired;
    let connects = hub.script().connects.len();
    // On a busy machine one may be late; that none is waited for shows that it comes by itself.
    assert!(expired + 1 < connects, "the hub ended {expired} of {connects} connections");
    // A method comes to whichever connection there is.
    hub.script().say.push(("$iothub/methods/POST/level/?$rid=7".to_owned(), "5".to_owned()));
    until("the method is taken in", || {
        gateway.health.uplink(&std::sync::Arc::from("cloud")).received.load(std::sync::atomic::Ordering::Relaxed) == 1
    })
    .await;
    assert_eq!(hub.script().subscribed[0], ("$iothub/methods/POST/+/+".to_owned(), Qos::AtLeastOnce));
    gateway.stop().await;
}
