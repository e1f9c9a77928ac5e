//! Does a new subscription get a retained message once, and before what is newer, however the publish and the
//! subscription fall together?
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod broker_support;

use std::sync::Arc;

use broker_support::*;
use bytes::Bytes;
use tidegate::message::{Body, Filter, Message, Origin, Qos, Topic};
use tidegate::mqtt::{Connect, Packet, Publish, Version};

const QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];

fn retained(gateway: &Gateway, topic: &str, qos: Qos, payload: &str) -> Message {
    Message {
        topic: Topic::new(topic).unwrap(),
        qos,
        retain: true,
        properties: None,
        body: Body::Bytes(Bytes::from(payload.to_owned())),
        origin: Origin::Client(Arc::from("writer")),
        received: gateway.intake.now(),
    }
}

/// A session that ends with its connection, and one that is kept.
fn connects(version: Version, qos: Qos) -> [Connect; 2] {
    let session_expiry_s = (version == Version::V5).then_some(3600);
    let name = format!("{version:?} {qos:?}");
    let passing = connect(version, &format!("{name} passing"));
    [passing, Connect { clean_start: false, session_expiry_s, ..connect(version, &format!("{name} kept")) }]
}

async fn expect(client: &mut Client, expected: &[(&str, bool)], what: &str) {
    for (payload, retain) in expected {
        let taken = client.take().await;
        assert_eq!((text(&taken), taken.retain), (*payload, *retain), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_stored_before_a_subscription_and_is_handed_on_after_it_comes_once() {
    let gateway = Gateway::start().await;
    let mut writer = Client::new(&gateway, Version::V5, "writer").await;
    for version in VERSIONS {
        for qos in QOS {
            for connect in connects(version, qos) {
                let what = connect.client_id.clone();
                let topic = format!("t/{what}");
                let (mut reader, _) = Client::with(&gateway, connect).await;
                // Somebody else keeps the way open.
                let mut other = Client::new(&gateway, version, "other").await;
                other.subscribe(&topic, qos).await;
                let ticket = gateway.intake.submit(retained(&gateway, &topic, qos, "state"), None).await.unwrap();
                // Behind the commit, because the queue does one after the other.
                let filter = Filter::new(&topic).unwrap();
                assert_eq!(gateway.inlet.retained(&filter, 9).await.unwrap().messages.len(), 1, "{what}");
                reader.subscribe(&topic, qos).await;
                ticket.outcome().await.unwrap();
                let id = if qos == Qos::AtMostOnce { 0 } else { writer.id() };
                writer.publish_packet(Publish { retain: true, ..publish(&topic, qos, id, "newer") }).await;
                expect(&mut reader, &[("state", true), ("newer", false)], &what).await;
                reader.hears_nothing().await;
                expect(&mut other, &[("state", false), ("newer", false)], &what).await;
            }
        }
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_stored_while_a_subscription_waits_for_the_queue_comes_once() {
    for version in VERSIONS {
        for qos in QOS {
            let mut gateway = Gateway::start_with(Options { starts_worker: false, ..Options::default() }).await;
            let (mut reader, _) = Client::with(&gateway, connects(version, qos)[0].clone()).await;
            // The queue has it before the subscription, and tells of it when that is there.
            let ticket = gateway.intake.submit(retained(&gateway, "t", qos, "state"), None).await.unwrap();
            let subscribing = async {
                reader.subscribe("t", qos).await;
                expect(&mut reader, &[("state", true)], &format!("{version:?} {qos:?}")).await;
                reader.hears_nothing().await;
                reader
            };
            let handing_on = async {
                until("no subscription came", || gateway.router.is_wanted(&Topic::new("t").unwrap())).await;
                gateway.start_worker();
                ticket.outcome().await.unwrap();
            };
            let (mut reader, ()) = tokio::join!(subscribing, handing_on);
            reader.hears_nothing().await;
            gateway.ended().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_newer_does_not_overtake_the_retained_message_of_a_new_subscription() {
    for version in VERSIONS {
        let mut gateway = Gateway::start_with(Options { starts_worker: false, ..Options::default() }).await;
        let mut reader = Client::new(&gateway, version, "reader").await;
        let mut writer = Client::new(&gateway, version, "writer").await;
        let old = retained(&gateway, "t", Qos::AtMostOnce, "old");
        let ticket = gateway.intake.submit(old, None).await.unwrap();
        let packet_id = tidegate::mqtt::PacketId::new(1).unwrap();
        let subscriptions = vec![subscription("t", Qos::AtMostOnce), subscription("$SYS/#", Qos::AtMostOnce)];
        let subscribe = tidegate::mqtt::Subscribe { packet_id, subscriptions, subscription_id: None };
        reader.send(Packet::Subscribe(subscribe)).await;
        until("no subscription came", || gateway.router.is_wanted(&Topic::new("t").unwrap())).await;
        // Takes no turn through the queue, which does nothing yet.
        writer.publish("t", Qos::AtMostOnce, "new").await;
        writer.hears_nothing().await;
        until("it was not handed on", || gateway.session_counter("received") == 1).await;
        gateway.start_worker();
        ticket.outcome().await.unwrap();
        assert!(matches!(reader.next().await, Packet::Suback(_)));
        expect(&mut reader, &[("old", true), ("new", false)], &format!("{version:?}")).await;
        reader.hears_nothing().await;
        gateway.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_is_made_again_gets_what_was_published_to_the_first_and_what_is_retained() {
    let gateway = Gateway::start().await;
    for qos in QOS {
        for connect in connects(Version::V5, qos) {
            let what = connect.client_id.clone();
            let topic = format!("t/{what}");
            let (mut reader, _) = Client::with(&gateway, connect).await;
            reader.subscribe(&topic, qos).await;
            let ticket = gateway.intake.submit(retained(&gateway, &topic, qos, "state"), None).await.unwrap();
            let filter = Filter::new(&topic).unwrap();
            assert_eq!(gateway.inlet.retained(&filter, 9).await.unwrap().messages.len(), 1, "{what}");
            reader.subscribe(&topic, qos).await;
            ticket.outcome().await.unwrap();
            let mut flags = [reader.take().await.retain, reader.take().await.retain];
            flags.sort_unstable();
            assert_eq!(flags, [false, true], "{what}");
            reader.hears_nothing().await;
        }
    }
    gateway.ended().await;
}
