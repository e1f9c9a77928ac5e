//! Does the router stay alive and fair, whatever topics, bursts and idle readers come to it?
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::message::{Filter, Properties, Qos, Topic};
use tidegate::router::{Link, Live, Router, RouterError, RouterLimits, Taken};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

fn live(topic: &str, payload: impl Into<Bytes>) -> Live {
    Live {
        topic: Topic::new(topic).unwrap(),
        qos: Qos::AtLeastOnce,
        retain: false,
        payload: payload.into(),
        properties: None,
        publisher: None,
        ordinal: None,
    }
}

fn filter(text: &str) -> Filter {
    Filter::new(text).unwrap()
}

async fn link(router: &Router, filters: &[&str]) -> Link {
    let mut link = router.attach().await.unwrap();
    for text in filters {
        link.subscribe(&filter(text), Qos::AtMostOnce).await.unwrap();
    }
    link
}

async fn next(link: &mut Link) -> Taken {
    timeout(PATIENCE, link.next()).await.expect("nothing came").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_stop_a_bare_rumqttd_reach_their_subscribers() {
    let router = Router::start(RouterLimits::default()).unwrap();
    let mut all = link(&router, &["#", "$SYS/#", "温度/+"]).await;
    for topic in ["温度/1", "$SYS/x", "/", "é", "a//b", " ", "\u{10FFFF}", "$", "plant/1"] {
        let sent = Live { publisher: Some(Arc::from("c/+/#$")), ..live(topic, "x") };
        router.publish(sent.clone()).await.unwrap();
        if topic == "$" {
            continue;
        }
        let copies = if topic == "温度/1" { 2 } else { 1 };
        for _ in 0..copies {
            let taken = next(&mut all).await;
            assert_eq!((taken.live, taken.lost), (sent.clone(), 0));
            assert!(taken.filter.matches(&sent.topic));
        }
    }
    assert!(!router.is_wanted(&Topic::new("$").unwrap()));
    all.detach().await;
    assert!(!router.is_wanted(&Topic::new("plant/1").unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_travel_and_filters_that_were_given_up_do_not_come_back() {
    let router = Router::start(RouterLimits::default()).unwrap();
    let mut reader = link(&router, &["a", "b"]).await;
    let properties = Properties { content_type: Some("text/plain".to_owned()), ..Properties::default() };
    let sent = Live { properties: Some(Box::new(properties)), retain: true, ..live("a", "1") };
    router.publish(sent.clone()).await.unwrap();
    assert!(reader.unsubscribe(&filter("a")).await.unwrap());
    assert!(!reader.unsubscribe(&filter("a")).await.unwrap());
    router.publish(live("a", "2")).await.unwrap();
    router.publish(live("b", "3")).await.unwrap();
    assert_eq!(next(&mut reader).await.live.payload, "3");
    reader.subscribe(&filter("a"), Qos::AtMostOnce).await.unwrap();
    router.publish(sent.clone()).await.unwrap();
    assert_eq!(next(&mut reader).await, Taken { filter: filter("a"), live: sent, lost: 0 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_a_hundred_thousand_reaches_a_reading_subscriber_whole_and_in_order() {
    const COUNT: u32 = 100_000;
    let limits = RouterLimits { hold: PATIENCE, ..RouterLimits::default() };
    let router = Router::start(limits).unwrap();
    let mut reader = link(&router, &["burst/#"]).await;
    let mut tasks = JoinSet::new();
    let publisher = router.clone();
    tasks.spawn(async move {
        for number in 0..COUNT {
            publisher.publish(live("burst/a", number.to_be_bytes().to_vec())).await.unwrap();
        }
    });
    for number in 0..COUNT {
        let taken = next(&mut reader).await;
        assert_eq!(taken.lost, 0);
        assert_eq!(&taken.live.payload[..], number.to_be_bytes());
    }
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_are_held_back_instead_of_rotating_away() {
    let limits = RouterLimits { hold: PATIENCE, ..RouterLimits::default() };
    let router = Router::start(limits).unwrap();
    let mut reader = link(&router, &["#"]).await;
    let mut tasks = JoinSet::new();
    for publisher in 0..8_u8 {
        let router = router.clone();
        tasks.spawn(async move {
            for _ in 0..20 {
                router.publish(live("large", vec![publisher; 200_000])).await.unwrap();
            }
        });
    }
    for _ in 0..160 {
        assert_eq!(next(&mut reader).await.lost, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stopped_is_told_and_then_nobody_waits_for_it() {
    let router = Router::start(RouterLimits::default()).unwrap();
    let mut idle = link(&router, &["#"]).await;
    let mut reader = link(&router, &["plant/#"]).await;
    let mut tasks = JoinSet::new();
    let publisher = router.clone();
    tasks.spawn(async move {
        for number in 0..20_000_u32 {
            publisher.publish(live("plant/a", [number.to_be_bytes(); 25].concat())).await.unwrap();
        }
    });
    for number in 0..20_000_u32 {
        let taken = next(&mut reader).await;
        assert_eq!((&taken.live.payload[..4], taken.lost), (&number.to_be_bytes()[..], 0));
    }
    timeout(PATIENCE, idle.slowed()).await.expect("the idle reader was not told");
    let mut lost = 0;
    let mut seen = 0;
    while lost + seen < 20_000 {
        let taken = next(&mut idle).await;
        lost += taken.lost;
        seen += 1;
    }
    assert!(lost > 0, "the ring cannot have kept all of it");
    assert_eq!(lost + seen, 20_000, "every loss is counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_after_a_subscription_was_answered_comes_under_load_too() {
    let router = Router::start(RouterLimits { hold: PATIENCE, ..RouterLimits::default() }).unwrap();
    let stop = CancellationToken::new();
    let mut load = JoinSet::new();
    for _ in 0..2 {
        let (router, stop) = (router.clone(), stop.clone());
        load.spawn(async move {
            while !stop.is_cancelled() {
                router.publish(live("noise", "x")).await.unwrap();
            }
        });
    }
    let mut noise = link(&router, &["noise"]).await;
    let drain = stop.clone();
    load.spawn(async move {
        while !drain.is_cancelled() {
            if let Ok(taken) = timeout(Duration::from_millis(20), noise.next()).await {
                assert_eq!(taken.unwrap().lost, 0);
            }
        }
    });
    for round in 0..300_u32 {
        let topic = format!("call/{}", round % 7);
        let mut caller = link(&router, &[&topic]).await;
        router.publish(live(&topic, round.to_be_bytes().to_vec())).await.unwrap();
        let taken = next(&mut caller).await;
        assert_eq!((&taken.live.payload[..], taken.lost), (&round.to_be_bytes()[..], 0));
        if round % 2 == 0 { caller.detach().await } else { drop(caller) }
    }
    stop.cancel();
    while let Some(end) = load.join_next().await {
        end.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_and_filters_are_bounded_and_given_back() {
    let limits = RouterLimits { links: 3, filters: 5, filters_per_link: 4, ..RouterLimits::default() };
    let router = Router::start(limits).unwrap();
    let mut first = link(&router, &["1", "2", "3", "4"]).await;
    assert_eq!(first.subscribe(&filter("5"), Qos::AtMostOnce).await, Err(RouterError::TooManyFilters));
    let mut second = link(&router, &["1", "2", "5"]).await;
    assert_eq!(second.subscribe(&filter("6"), Qos::AtMostOnce).await, Err(RouterError::TooManyFilters));
    assert_eq!(second.subscribe(&filter(&"+/".repeat(200)), Qos::AtMostOnce).await, Err(RouterError::TooManyFilters));
    assert!(first.unsubscribe(&filter("4")).await.unwrap());
    second.subscribe(&filter("6"), Qos::AtMostOnce).await.unwrap();
    let mut more = Vec::new();
    let refused = loop {
        match router.attach().await {
            Ok(link) => more.push(link),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, RouterError::Full);
    drop(more);
    timeout(PATIENCE, async { while router.attach().await.is_err() {} }).await.expect("no link was given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_echo_comes_back_until_it_is_told_to_stop() {
    let router = Router::start(RouterLimits::default()).unwrap();
    let stop = CancellationToken::new();
    let watched = router.watch(stop.clone());
    assert!(timeout(Duration::from_secs(3), watched).await.is_err(), "the watch ended by itself");
    stop.cancel();
    assert_eq!(router.watch(stop).await, Ok(()));
}
