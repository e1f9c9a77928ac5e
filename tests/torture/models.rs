//! The uplink's machine against a model store and a model cloud, with a crash between any two steps.
//!
//! Injected: the process dies, the link dies, a commit fails, at any step and again in what follows from that. Survivable
//! because what matters was committed before it was said, and the cloud keeps its session. In a quarter of the cases it
//! does not: then nothing is lost all the same, but some arrives twice.
//!
//! The queue has a model of its own, a `VecDeque` for each stream with crashes among its steps: `src/queue/tests.rs`,
//! where `PROPTEST_CASES` makes it longer.

use std::num::NonZeroU16;
use std::time::Duration;

use tidegate::config::{BatchLimits, DrainOrder};
use tidegate::message::Qos;
use tidegate::mqtt::Version;
use tidegate::queue::Verdict;
use tidegate::uplink::machine::Settings;

use crate::budget::{Budget, Cases};
use crate::random::Random;
use crate::uplink_model::{
    Death, Temper, World, assert_first_attempts_in_order, assert_order, numbers_of, reading, row, settings,
};

/// Crashes of the long form.
const CRASHES: usize = 100_000;

/// Of one case on average.
const CRASHES_EACH: usize = 5;

struct Outcome {
    crashes: usize,
    repeats: usize,
}

fn run(random: &mut Random) -> Outcome {
    let version = *random.pick(&[Version::V5, Version::V5, Version::V311]);
    let window = u16::try_from(random.within(1..8)).unwrap();
    let receive_max =
        (version == Version::V5 && random.happens(50)).then(|| u16::try_from(random.within(1..8)).unwrap());
    let is_live_first = random.happens(25);
    let temper = Temper {
        version_311: version == Version::V311,
        receive_max,
        reverses: random.happens(25),
        sends_strays: random.happens(25),
        says_no_subscribers: version == Version::V5 && random.happens(25),
        forgets_sessions: random.happens(25),
        ..Temper::default()
    };
    let count = random.within(1..30);
    let levels: Vec<Qos> = (0..count).map(|_| *random.pick(&[Qos::AtLeastOnce, Qos::ExactlyOnce])).collect();
    let batch = random.happens(40).then(|| BatchLimits {
        readings: NonZeroU16::new(u16::try_from(random.within(1..6)).unwrap()).unwrap(),
        within: Duration::from_millis(random.within(0..200)),
        ..BatchLimits::default()
    });
    let row = |number: u64, qos: Qos| {
        let topic = format!("t/{}", number % 3);
        match batch {
            Some(limits) if !number.is_multiple_of(4) => reading(number, qos, &topic, limits),
            _ => row(number, qos, &topic, number.to_string().as_bytes()),
        }
    };
    let drain = if is_live_first { DrainOrder::LiveFirst } else { DrainOrder::OldestFirst };
    let mut world = World::new(Settings { drain, ..settings(version, window) }, temper, Vec::new());
    world.seed = random.number() | 1;
    let mut steps: Vec<usize> =
        (0..count).map(|_| usize::try_from(random.within(0..300)).unwrap().saturating_sub(100)).collect();
    steps.sort_unstable();
    world.later = steps.into_iter().zip((1..).zip(&levels).map(|(number, qos)| row(number, *qos))).collect();
    let mut deaths: Vec<(usize, Death)> = (0..random.within(1..10))
        .map(|_| {
            let death = *random.pick(&[Death::Process, Death::Process, Death::Link, Death::Commit]);
            (usize::try_from(random.within(0..600)).unwrap(), death)
        })
        .collect();
    deaths.sort_by_key(|(step, _)| *step);
    world.run(&deaths);

    assert!(world.store.settled.values().all(|verdict| *verdict == Verdict::Delivered), "{:?}", world.store.settled);
    let mut arrivals = vec![0_usize; levels.len()];
    for publish in &world.cloud.got {
        let numbers = match publish.payload.first() {
            Some(b'[') => numbers_of(&publish.payload),
            _ => vec![std::str::from_utf8(&publish.payload).unwrap().parse().unwrap()],
        };
        for number in numbers {
            arrivals[usize::try_from(number).unwrap() - 1] += 1;
        }
    }
    for (place, (arrived, qos)) in arrivals.iter().zip(&levels).enumerate() {
        assert!(*arrived > 0, "row {} was lost", place + 1);
        let is_once = *qos == Qos::ExactlyOnce && !temper.forgets_sessions;
        assert!(!is_once || *arrived == 1, "row {} came {arrived} times", place + 1);
    }
    // Those that came after its end have killed nobody.
    let crashes = deaths.iter().filter(|(step, _)| *step <= world.steps).count();
    if !temper.forgets_sessions && batch.is_none() {
        let repeats: usize = arrivals.iter().map(|count| count - 1).sum();
        let most = crashes * usize::from(window);
        assert!(repeats <= most, "{repeats} repeats after {crashes} crashes at window {window}");
    }
    let window = usize::from(window.min(receive_max.unwrap_or(window)));
    assert!(world.cloud.out_max <= window, "beyond Receive Maximum");
    if !is_live_first && !temper.forgets_sessions && version == Version::V5 {
        assert_first_attempts_in_order(&world);
    }
    if !is_live_first && !temper.forgets_sessions && batch.is_none() {
        assert_order(&world.cloud);
    }
    let repeats = arrivals.iter().map(|count| count - 1).sum();
    Outcome { crashes, repeats }
}

#[test]
fn models_the_uplink_loses_nothing_and_doubles_no_qos_2_over_any_number_of_crashes() {
    let mut budget = Budget::begin("models", Cases { short: 400, long: 1_000_000 })
        .with_found(&[1449241658, 3313636655, 3708026621]);
    let (mut cases, mut crashes, mut repeats) = (0_u64, 0, 0);
    while crashes < CRASHES
        && let Some(mut case) = budget.next()
    {
        let outcome = run(&mut case.random);
        cases += 1;
        crashes += outcome.crashes;
        repeats += outcome.repeats;
    }
    budget.say(format!(
        "{crashes} crashes in {cases} cases, nothing lost; {repeats} repeats at QoS 1 or of lost sessions"
    ));
    assert!(cases < 100 || crashes > usize::try_from(cases).unwrap() * CRASHES_EACH / 4, "the crashes come too late");
}

/// The control: were a packet id forgotten by the store, a row would come twice, and the model would see it.
#[test]
fn models_a_store_that_forgets_what_is_in_flight_is_caught() {
    let caught = (0..40).any(|seed| {
        let rows = (1..=6).map(|number| row(number, Qos::ExactlyOnce, "t", number.to_string().as_bytes())).collect();
        let mut world = World::new(settings(Version::V5, 3), Temper::default(), rows);
        world.seed = seed + 1;
        for _ in 0..30 + seed {
            world.step();
        }
        world.store.in_flight.clear();
        world.die(Death::Process);
        world.run(&[]);
        world.cloud.arrivals().values().any(|count| *count > 1)
    });
    assert!(caught, "the model sees no repeat");
}
