//! Are readings that travel together one message to the cloud, and each a message of its own to the queue?
//!
//! The machine of the uplink with a model store and a model cloud (`uplink_model`), which dies between any two steps. A
//! batch must stay what it is; what the cloud refuses must cost the one message that is at fault and no other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod uplink_model;

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tidegate::config::{BatchLimits, Compression, Form, Frame, Payload, PayloadTemplate};
use tidegate::message::{Body, Qos, Sequence, Value};
use tidegate::mqtt::{Publish, Version};
use tidegate::queue::{Batching, Queued, Verdict};
use uplink_model::{
    Death, Temper, World, assert_first_attempts_in_order, number_of, numbers_of, reading, row, settings,
};

fn limits(readings: u16, bytes: u32, within: Duration) -> BatchLimits {
    BatchLimits { readings: NonZeroU16::new(readings).unwrap(), bytes: NonZeroU32::new(bytes).unwrap(), within }
}

fn name(publish: &Publish) -> &str {
    let mut names = publish.properties.user.iter().filter(|(key, _)| key == "tidegate-id").map(|(_, id)| id.as_str());
    let name = names.next().expect("each has a name");
    assert_eq!(names.next(), None);
    name
}

/// What each message that arrived held, by its name; what holds of every batch is asserted.
fn batches(world: &World) -> Vec<(&str, Vec<u64>)> {
    let mut payloads = BTreeMap::new();
    let got = world.cloud.got.iter().map(|publish| {
        let name = name(publish);
        let same = payloads.entry(name).or_insert(&publish.payload);
        assert_eq!(**same, publish.payload, "two payloads of one name");
        let Some((first, count)) = name.split_once('+') else { return (name, vec![number_of(name)]) };
        let numbers = numbers_of(&publish.payload);
        assert_eq!((number_of(first), count.parse::<usize>().unwrap()), (numbers[0], numbers.len()));
        assert!(numbers.is_sorted());
        let rows: Vec<&Queued> = numbers.iter().map(|number| &world.store.rows[&Sequence(*number)]).collect();
        let first = rows[0];
        for row in &rows {
            assert_eq!(Some(&row.encoding.topic), publish.topic.as_ref(), "topics are mixed");
            assert_eq!((row.qos, row.batching), (first.qos, first.batching), "rules or QoS are mixed");
        }
        let BatchLimits { readings, bytes, .. } = first.batching.unwrap().limits;
        assert!(numbers.len() <= usize::from(readings.get()));
        assert!(numbers.len() == 1 || publish.payload.len() <= bytes.get() as usize, "{} bytes", publish.payload.len());
        (name, numbers)
    });
    got.collect()
}

/// How often each row arrived, and in how many different batches.
fn arrivals(world: &World) -> BTreeMap<u64, (usize, usize)> {
    let mut times: BTreeMap<u64, (usize, BTreeSet<&str>)> = BTreeMap::new();
    for (name, numbers) in batches(world) {
        for number in numbers {
            let (count, names) = times.entry(number).or_default();
            *count += 1;
            names.insert(name);
        }
    }
    times.into_iter().map(|(number, (count, names))| (number, (count, names.len()))).collect()
}

fn run(rows: Vec<Queued>, window: u16, temper: Temper, seed: u64, deaths: &[(usize, Death)]) -> World {
    let mut world = World::new(settings(Version::V5, window), temper, rows);
    world.seed = seed;
    world.run(deaths);
    world
}

#[test]
fn a_backlog_travels_in_full_batches_and_each_reading_is_settled() {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let rows = (1..=95).map(|number| reading(number, qos, "t", limits(10, 5000, Duration::from_secs(1)))).collect();
        let world = run(rows, 3, Temper::default(), 1, &[]);
        let got = batches(&world);
        let sizes: Vec<usize> = got.iter().map(|(_, numbers)| numbers.len()).collect();
        assert_eq!(sizes, [10, 10, 10, 10, 10, 10, 10, 10, 10, 5]);
        assert_eq!(got[0].0, "g.000000000001.1.1+10");
        assert!(world.store.settled.values().all(|verdict| *verdict == Verdict::Delivered));
        assert_eq!((world.store.settled.len(), world.machine.counts().delivered), (95, 95));
    }
}

#[test]
fn the_bound_of_bytes_is_kept_to_the_byte() {
    let one = |bytes| {
        let rows = (1..=40).map(|n| reading(n, Qos::AtLeastOnce, "t", limits(1000, bytes, Duration::from_secs(1))));
        run(rows.collect(), 3, Temper::default(), 1, &[]).cloud.got.iter().map(|one| one.payload.len()).collect()
    };
    let all: Vec<usize> = one(100_000);
    assert_eq!(all.len(), 1);
    let whole = u32::try_from(all[0]).unwrap();
    let exact: Vec<usize> = one(whole);
    assert_eq!(exact, all);
    let short: Vec<usize> = one(whole - 1);
    assert_eq!(short.len(), 2, "one byte too many");
    let single: Vec<usize> = one(256);
    assert!(single.len() > 10);
}

/// A plant of 6 devices with 12 points, polled over and over; the values become noisy in the middle, so that what was
/// compressed well so far is not any more.
fn plant(count: u64, payload: &Payload, limits: BatchLimits) -> Vec<Queued> {
    let mut noise = 1_u64;
    let mut next = || {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise >> 11
    };
    let one = |number: u64| {
        let (poll, place) = ((number - 1) / 72, (number - 1) % 72);
        let mut row = reading(number, Qos::AtLeastOnce, "t", limits);
        row.encoding.payload = payload.clone();
        if let Body::Reading(reading) = &mut row.message.body {
            reading.device = Arc::from(format!("meter-{:02}", place / 12));
            reading.point = Arc::from(format!("point_{}", place % 12));
            reading.value = match number % 1500 {
                0..1000 => Value::Float(f64::from(u32::try_from(number % 40).unwrap()) / 8.0),
                _ => Value::Text(format!("{:x}{:x}", next(), next())),
            };
            reading.unit = Some(Arc::from("V"));
            reading.seq = number;
            reading.stamp.wall_ms = i64::try_from(1_795_425_600_000 + poll * 1000).unwrap();
        }
        row
    };
    (1..=count).map(one).collect()
}

#[test]
fn every_form_fills_its_messages_and_none_is_longer_than_it_may_be() {
    let frame = Some(Frame { begin: "[".to_owned(), between: ",".to_owned(), end: "]".to_owned() });
    let template = r#"{"ts":{ts_ms},"values":{"{device}.{point}":{value}}}"#;
    let template = Form::Template(Arc::new(PayloadTemplate::parse(template, frame).unwrap()));
    for form in [Form::JsonBatch, Form::LineProtocol, Form::SenmlCbor, template, Form::JsonDevice] {
        for compression in [Compression::None, Compression::Gzip] {
            let payload = Payload { form: form.clone(), compression };
            let rows = plant(3000, &payload, limits(1000, 5 * 1024, Duration::from_secs(1)));
            let world = run(rows, 4, Temper::default(), 1, &[]);
            let mut counts = Vec::new();
            for publish in &world.cloud.got {
                let (first, count) = name(publish).split_once('+').unwrap();
                assert_eq!(number_of(first), counts.iter().sum::<u64>() + 1, "{payload:?}: in order, none left out");
                counts.push(count.parse::<u64>().unwrap());
                assert!(publish.payload.len() <= 5 * 1024, "{payload:?}: {} bytes", publish.payload.len());
                let is_named = publish.properties.user.contains(&("content-encoding".to_owned(), "gzip".to_owned()));
                assert_eq!(is_named, compression == Compression::Gzip);
                let is_usual = payload == Payload::JSON_BATCH;
                assert_eq!(publish.properties.content_type.is_none(), is_usual, "{payload:?}");
            }
            assert_eq!(counts.iter().sum::<u64>(), 3000, "{payload:?}");
            assert_eq!(world.store.settled.len(), 3000);
            if form == Form::JsonDevice {
                assert!(counts.iter().all(|count| *count == 12), "a message for each device and poll: {counts:?}");
                continue;
            }
            let lengths: Vec<usize> = world.cloud.got.iter().map(|publish| publish.payload.len()).collect();
            let full = lengths.iter().zip(&counts).filter(|(length, count)| **length > 4 * 1024 || **count == 1000);
            assert!(full.count() + 2 > lengths.len(), "{payload:?} leaves its messages half empty: {lengths:?}");
        }
    }
}

#[test]
fn a_reading_waits_for_others_no_longer_than_it_is_told_to() {
    let within = Duration::from_millis(700);
    let mut world = World::new(settings(Version::V5, 3), Temper::default(), Vec::new());
    world.run_for(Duration::from_secs(1));
    for number in 1..=3 {
        world.store.rows.insert(Sequence(number), reading(number, Qos::AtLeastOnce, "t", limits(10, 5000, within)));
    }
    let begin = world.now;
    while world.cloud.got.is_empty() {
        world.run_for(Duration::from_millis(10));
    }
    let waited = world.now - begin;
    assert!((within..within + Duration::from_millis(50)).contains(&waited), "{waited:?}");
    assert_eq!(batches(&world), [("g.000000000001.1.1+3", vec![1, 2, 3])]);
}

#[test]
fn topics_rules_and_qos_are_not_mixed_and_a_message_of_its_own_keeps_its_place() {
    let wide = limits(10, 5000, Duration::from_secs(1));
    let mut rows: Vec<Queued> = (1..=60)
        .map(|number| {
            let qos = if number % 5 == 0 { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
            let mut row = reading(number, qos, &format!("t/{}", number % 3), wide);
            row.batching = Some(Batching { rule: usize::from(number % 7 == 0), limits: wide });
            row
        })
        .collect();
    rows[30] = row(31, Qos::AtLeastOnce, "t/1", b"31");
    for seed in 1..20 {
        let world = run(rows.clone(), 4, Temper::default(), seed, &[]);
        assert_first_attempts_in_order(&world);
        assert!(arrivals(&world).values().all(|times| *times == (1, 1)));
        assert_eq!(arrivals(&world).len(), 60);
    }
}

#[test]
fn a_batch_at_qos_2_comes_once_and_stays_what_it_is_whatever_dies_between_any_two_steps() {
    for seed in 1..=4 {
        for forgets_sessions in [false, true] {
            for first in 0..70 {
                for death in [Death::Process, Death::Link, Death::Commit] {
                    // They come one by one, so that what was cut once would be cut in another way later.
                    let row = |number| reading(number, Qos::ExactlyOnce, "t", limits(4, 5000, Duration::ZERO));
                    let temper = Temper { forgets_sessions, ..Temper::default() };
                    let mut world = World::new(settings(Version::V5, 2), temper, (1..=3).map(row).collect());
                    world.seed = seed;
                    world.later = (4..=11).map(|number| (usize::try_from(number).unwrap() * 7, row(number))).collect();
                    world.run(&[(first, death), (first + 9, Death::Process)]);
                    let arrivals = arrivals(&world);
                    assert_eq!(arrivals.len(), 11);
                    for (number, (times, names)) in arrivals {
                        let case = format!("row {number}, seed {seed}, step {first}, {death:?}, {forgets_sessions}");
                        assert_eq!(names, 1, "it came in another batch: {case}");
                        assert!(times == 1 || forgets_sessions, "doubled: {case}");
                    }
                    assert_eq!(world.cloud.dups_without_flag, 0);
                }
            }
        }
    }
}

#[test]
fn a_batch_that_is_refused_as_a_message_is_halved_until_the_one_at_fault_is_a_dead_letter() {
    for code in [0x90, 0x95, 0x99] {
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            for strict_order in [false, true] {
                let rows = (1..=50).map(|number| Queued {
                    strict_order,
                    ..reading(number, qos, "t", limits(10, 5000, Duration::from_secs(1)))
                });
                let temper = Temper { refuses_reading: Some((23, code)), ..Temper::default() };
                let world = run(rows.collect(), 4, temper, 3, &[]);
                for (sequence, verdict) in &world.store.settled {
                    match verdict {
                        Verdict::Delivered => assert_ne!(sequence.0, 23),
                        Verdict::Rejected { .. } => assert_eq!(sequence.0, 23, "0x{code:02X}"),
                        Verdict::Lost(reason) => panic!("{reason:?}"),
                    }
                }
                let arrivals = arrivals(&world);
                assert_eq!(arrivals.len(), 49);
                assert!(arrivals.values().all(|times| *times == (1, 1)));
            }
        }
    }
}

#[test]
fn a_batch_that_is_longer_than_the_cloud_takes_is_halved_before_it_is_sent() {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let rows = (1..=30).map(|number| reading(number, qos, "t", limits(30, 100_000, Duration::from_secs(1))));
        let temper = Temper { packet_bytes_max: Some(1000), ..Temper::default() };
        let world = run(rows.collect(), 4, temper, 3, &[]);
        assert!(world.store.settled.values().all(|verdict| *verdict == Verdict::Delivered));
        assert_eq!(arrivals(&world).len(), 30);
        assert!(world.cloud.got.len() >= 4);
    }
}

#[test]
fn a_poisonous_reading_is_found_in_its_batch_and_no_other_is_given_up() {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut rows: Vec<Queued> =
            (1..=40).map(|number| reading(number, qos, "t/0", limits(8, 5000, Duration::from_secs(1)))).collect();
        // Others flow, or nothing would prove that it is at fault.
        rows.extend((41..=120).map(|number| reading(number, qos, "t/1", limits(1, 5000, Duration::ZERO))));
        let temper = Temper { closes_on_reading: Some(14), ..Temper::default() };
        let mut world = World::new(settings(Version::V5, 4), temper, rows);
        while !world.store.settled.contains_key(&Sequence(14)) {
            world.run_for(Duration::from_secs(10));
            // More of both topics now and then.
            let next = world.store.rows.len() as u64 + 1;
            let row = reading(next, qos, &format!("t/{}", next % 2), limits(1, 5000, Duration::ZERO));
            world.store.rows.insert(Sequence(next), row);
            assert!(world.now < Duration::from_secs(50_000), "{:?}", world.store.settled.len());
        }
        let rejected: Vec<u64> = world
            .store
            .settled
            .iter()
            .filter(|(_, verdict)| matches!(verdict, Verdict::Rejected { .. }))
            .map(|(sequence, _)| sequence.0)
            .collect();
        assert_eq!(rejected, [14], "{:?}", world.now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_batches_and_deaths_loses_nothing_and_doubles_no_qos_2(
        seed in 1u64..u64::MAX,
        window in 1u16..6,
        readings in 1u16..7,
        within_ms in 0u64..300,
        rows in proptest::collection::vec((1u8..3, 0u8..4), 1..30),
        mut deaths in proptest::collection::vec((0usize..300, 0usize..3), 0..6),
    ) {
        let limits = limits(readings, 700, Duration::from_millis(within_ms));
        let queued: Vec<Queued> = (1..).zip(&rows).map(|(number, (qos, topic))| {
            let (qos, name) = (Qos::from_level(*qos).unwrap(), format!("t/{}", topic % 2));
            // A quarter travels alone.
            match topic {
                3 => row(number, qos, &name, number.to_string().as_bytes()),
                _ => reading(number, qos, &name, limits),
            }
        }).collect();
        deaths.sort_unstable();
        let kinds = [Death::Process, Death::Link, Death::Commit];
        let deaths: Vec<_> = deaths.into_iter().map(|(step, kind)| (step, kinds[kind])).collect();
        let world = run(queued, window, Temper::default(), seed, &deaths);
        let arrivals = arrivals(&world);
        prop_assert_eq!(arrivals.len(), rows.len(), "lost");
        for (number, (times, names)) in arrivals {
            let is_once = rows[usize::try_from(number).unwrap() - 1].0 == 2;
            prop_assert!(!is_once || (times, names) == (1, 1), "row {} was doubled", number);
        }
        assert_first_attempts_in_order(&world);
        prop_assert!(world.cloud.out_max <= usize::from(window));
    }
}
