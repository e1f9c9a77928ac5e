//! Does a fleet that has lost its broker come back without knocking it over? 500 uplinks with the real code of the pauses, in
//! simulated time: the broker is gone for ten minutes, and of the CONNECTs that it gets none of any ten seconds' are more than
//! 15 %.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tidegate::config::Reconnect;
use tidegate::config::clouds::{PROFILES, Profile};
use tidegate::uplink::backoff::Backoff;

const UPLINKS: usize = 500;
const GONE: Duration = Duration::from_secs(600);
const WINDOW: Duration = Duration::from_secs(10);
const SHARE_MAX: f64 = 0.15;

/// SplitMix64: the same numbers for the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        u32::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap()
    }
}

/// How the broker is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// Nothing answers: no CONNECT reaches it until it is back.
    Silent,
    /// It takes connections and refuses every CONNECT.
    Refusing,
}

/// When CONNECTs reach the broker, from the moment at which all have lost it.
fn connects(reconnect: Reconnect, outage: Outage, chance: &mut Chance) -> Vec<Duration> {
    let mut uplinks = Vec::new();
    let mut next = BinaryHeap::new();
    // They have been connected for an hour.
    let lost = Duration::from_secs(3600);
    for index in 0..UPLINKS {
        let mut backoff = Backoff::new(reconnect);
        backoff.connected(Duration::ZERO);
        next.push(Reverse((lost + backoff.pause(lost, chance.next()), index)));
        uplinks.push(backoff);
    }
    let mut seen = Vec::new();
    while let Some(Reverse((now, index))) = next.pop() {
        let is_back = now >= lost + GONE;
        if is_back || outage == Outage::Refusing {
            seen.push(now - lost);
        }
        if !is_back {
            let pause = uplinks.get_mut(index).unwrap().pause(now, chance.next());
            next.push(Reverse((now + pause, index)));
        }
    }
    seen
}

/// The most of them in any ten seconds.
fn most(connects: &[Duration]) -> usize {
    let within = |from: usize| {
        let until = connects.get(from).unwrap().saturating_add(WINDOW);
        connects.iter().skip(from).take_while(|at| **at < until).count()
    };
    (0..connects.len()).map(within).max().unwrap_or(0)
}

/// Their largest share.
fn share(connects: &[Duration]) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap());
    number(most(connects)) / number(connects.len())
}

/// Those with a service in the cloud. A broker or an InfluxDB may as well be one's own, at the site, and is tried sooner: the
/// README says what a fleet writes there.
fn clouds() -> impl Iterator<Item = &'static &'static Profile> {
    PROFILES.iter().filter(|profile| !["generic", "influxdb"].contains(&profile.name))
}

#[test]
fn of_a_fleet_that_comes_back_to_a_cloud_no_ten_seconds_see_more_than_15_percent() {
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("seed {seed}");
    let mut chance = Chance(seed);
    for profile in clouds() {
        for round in 0..20 {
            for outage in [Outage::Silent, Outage::Refusing] {
                let all = connects(profile.reconnect, outage, &mut chance);
                let back: Vec<Duration> = all.iter().copied().filter(|at| *at >= GONE).collect();
                let (name, share) = (profile.name, share(&back));
                println!(
                    "{name} {outage:?} {round}: {} CONNECTs, {share:.3} of those at the return in 10 s",
                    all.len()
                );
                assert_eq!(back.len(), UPLINKS, "each comes back once");
                assert!(share <= SHARE_MAX, "{name} {outage:?}: {share}");
                // One that refuses hears each of them about once in the first ten seconds, and then less and less.
                assert!(most(&all) < UPLINKS * 3 / 2, "{name} {outage:?}: {}", most(&all));
                let late: Vec<Duration> = all.iter().copied().filter(|at| *at >= GONE / 2).collect();
                assert!(most(&late) <= UPLINKS / 5, "{name} {outage:?}: {}", most(&late));
            }
        }
    }
}

#[test]
fn pauses_of_seconds_would_break_that_which_shows_that_it_is_measured() {
    let mut chance = Chance(7);
    let short = Reconnect { first: Duration::from_secs(1), max: Duration::from_secs(30) };
    assert!(share(&connects(short, Outage::Silent, &mut chance)) > 2.0 * SHARE_MAX);
}
