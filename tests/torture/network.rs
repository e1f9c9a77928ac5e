//! The uplink, with its real link and the real queue, against a cloud that breaks every rule that can be survived.
//!
//! Injected: `tests/uplink_support/wild.rs` says what and why it is survivable; in a third of the cases with a round trip
//! of 50 ms. Black holes and half-open lines are in `tests/half_open.rs`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate::config::{DrainOrder, Protocol, UplinkConfig};
use tidegate::message::Qos;
use tokio::time::{Instant, sleep};

use crate::budget::{Budget, Case, Cases};
use crate::random::Random;
use crate::uplink_support::delayed::DelayedLine;
use crate::uplink_support::gateway::{Gateway, config};
use crate::uplink_support::wild::{Doings, Mood, WildCloud};

const MESSAGES: usize = 400;

/// The cloud is wild for so long, or until so much is delivered.
const WILD: Duration = Duration::from_secs(4);

/// Pauses after refusals grow to some half a minute in that time.
const DONE_WITHIN: Duration = Duration::from_secs(100);

/// Most vices at once, some of them strongly.
fn mood(random: &mut Random) -> Mood {
    let mut often = |percent: u64| if random.happens(70) { 1 + random.within(0..percent) } else { 0 };
    let mood = Mood {
        refuses_connections: often(50),
        loses_session: often(30),
        delays: often(50),
        withholds: often(3),
        repeats: often(20),
        reorders: often(50),
        forges: often(10),
        refuses_for_now: often(8),
        refuses_for_good: often(3),
        forbids: often(2),
        closes: often(3),
        ends: often(2),
        ..Mood::default()
    };
    Mood {
        lowers_window: random.happens(50),
        lowers_qos: random.happens(25),
        closes_on: random.happens(25).then(|| usize::try_from(random.within(0..100)).unwrap()),
        ..mood
    }
}

/// What was neither taken nor refused for good.
fn lost(doings: &Doings, count: usize) -> Vec<usize> {
    (0..count).filter(|number| !doings.got.contains_key(number) && !doings.condemned.contains(number)).collect()
}

async fn run(case: &mut Case, budget_says: &mut Vec<String>) {
    let random = &mut case.random;
    // In half of the cases the cloud keeps what exactly once asks of it.
    let is_exact = random.happens(50);
    let mut mood = mood(random);
    if is_exact {
        (mood.loses_session, mood.lowers_qos) = (0, false);
    }
    let qos = if is_exact { Qos::ExactlyOnce } else { *random.pick(&[Qos::AtLeastOnce, Qos::ExactlyOnce]) };
    let cloud = WildCloud::start(random.number(), mood).await;
    let line = match random.happens(33) {
        true => Some(DelayedLine::start(cloud.port, Duration::from_millis(25)).await),
        false => None,
    };
    let port = line.as_ref().map_or(cloud.port, |line| line.port);
    let drain = if random.happens(25) { DrainOrder::LiveFirst } else { DrainOrder::OldestFirst };
    let keep_alive = Duration::from_secs(10);
    let gateway = Gateway::start(UplinkConfig { drain, keep_alive, ..config(port, Protocol::V5, Some(qos)) });
    let started = Instant::now();
    let mut published = 0;
    while published < MESSAGES {
        let count = usize::try_from(random.within(1..60)).unwrap().min(MESSAGES - published);
        gateway.publish(published..published + count, Qos::AtLeastOnce).await;
        published += count;
        sleep(Duration::from_millis(random.within(0..100))).await;
    }
    while started.elapsed() < WILD && gateway.delivered() < MESSAGES as u64 {
        sleep(Duration::from_millis(10)).await;
    }
    cloud.calm();
    cloud.hang_up().await;
    let health = gateway.health.uplink(&std::sync::Arc::from("cloud"));
    let calm = Instant::now();
    loop {
        let waiting = gateway.inlet.stats().await.unwrap().streams["cloud"].waiting;
        if waiting == 0 {
            break;
        }
        assert!(calm.elapsed() < DONE_WITHIN, "{waiting} wait for ever: {:?}", cloud.doings.lock().unwrap());
        sleep(Duration::from_millis(20)).await;
    }
    let stats = gateway.inlet.stats().await.unwrap();
    gateway.stop().await;
    let doings = cloud.doings.lock().unwrap();
    assert!(doings.faults.is_empty(), "{:?}", doings.faults);
    let mut lost = lost(&doings, MESSAGES);
    lost.retain(|number| Some(*number) != mood.closes_on);
    assert!(lost.is_empty(), "lost {lost:?}: {mood:?}");
    let missing = MESSAGES - doings.got.len();
    assert!(stats.dead_letters >= missing as u64, "{missing} are missing, {} are kept", stats.dead_letters);
    let repeats: usize = doings.got.values().map(|count| count - 1).sum();
    if is_exact {
        assert_eq!(repeats, 0, "doubled: {:?}", doings.got.iter().filter(|(_, count)| **count > 1).collect::<Vec<_>>());
    }
    let resent = health.resent.load(Ordering::Relaxed);
    assert!(repeats as u64 <= resent, "{repeats} repeats, and {resent} are known");
    budget_says.push(format!(
        "seed {}: QoS {}, {} connections, {} sessions lost, {repeats} repeats, {} dead letters, {:.1} s; {:?}",
        case.seed,
        qos.level(),
        doings.connects,
        doings.sessions_lost,
        missing,
        started.elapsed().as_secs_f64(),
        doings.misdeeds
    ));
}

#[test]
fn network_a_cloud_that_breaks_every_rule_costs_no_message() {
    let mut budget = Budget::begin("network", Cases { short: 4, long: 500 });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut said = Vec::new();
    while let Some(mut case) = budget.next() {
        runtime.block_on(run(&mut case, &mut said));
        said.drain(..).for_each(|line| budget.say(line));
    }
}

/// The control: a cloud that acknowledges what it throws away must be caught by the same account.
#[test]
fn network_a_cloud_that_acknowledges_and_forgets_is_caught() {
    let _turn = crate::common::turn();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let cloud = WildCloud::start(1, Mood { throws_away: 20, ..Mood::default() }).await;
        let gateway = Gateway::start(config(cloud.port, Protocol::V5, Some(Qos::AtLeastOnce)));
        gateway.publish(0..50, Qos::AtLeastOnce).await;
        while gateway.delivered() < 50 {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(!lost(&cloud.doings.lock().unwrap(), 50).is_empty(), "the account sees no loss");
        gateway.stop().await;
    });
}
