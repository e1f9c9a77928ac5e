//! The plug is pulled at random moments while publishers never stop; in every other life the cloud is away.

use std::time::Duration;

use tokio::time::Instant;

use super::balance::{balance, end_all, wait_for_arrivals, wait_for_the_last};
use super::common::relay::Relay;
use super::common::wait_until;
use super::publisher::{Habit, Publisher};
use super::random::Random;
use super::{Site, ok};

const PATIENCE: Duration = Duration::from_secs(600);
/// When nothing has arrived for so long, what is missing will not come.
const QUIET: Duration = Duration::from_secs(60);
/// TimeoutStartSec of the unit.
const START_LIMIT_MS: u64 = 90_000;

pub fn nothing_acknowledged_is_lost(site: &mut Site, cuts: u32) {
    let seed = std::env::var("TIDEGATE_VM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(Random::fresh_seed);
    println!("power cuts: {cuts}, seed {seed}");
    let mut random = Random::from_seed(seed);
    // Usual is a boot after an ordered end, with everything else that starts then; a restart alone is much quicker.
    site.machine.power_off();
    site.machine.boot();
    site.machine.wait(PATIENCE, "it is active", "systemctl is-active tidegate", |said| said == "active");
    let usual_ms = site.start_ms();
    // The machine shares its processors with others, which may want them more than before.
    let late_ms = (usual_ms * 3 + 10_000).min(START_LIMIT_MS);

    // While the machine boots, QEMU takes every connection and has nobody to pass it on to: hundreds would pile up in it.
    let line = Relay::started("127.0.0.1", site.machine.port);
    let mut habits = random.branch();
    let publishers: Vec<Publisher> = Habit::of_each_kind(|_| {
        let window = habits.within(1..16);
        (window, Duration::from_millis(habits.within(20..100)), habits.within(20..2000))
    })
    .into_iter()
    .map(|habit| Publisher::started(line.port, habit, random.branch()))
    .collect();
    let count = |publishers: &[Publisher]| publishers.iter().map(Publisher::acknowledged_count).sum::<u64>();

    let (mut is_cloud_there, mut slowest_ms) = (true, 0);
    for cut in 1..=cuts {
        let before = count(&publishers);
        // Some cuts come with the first acknowledgements after a start, others later, and nothing waits for them.
        let wanted = if random.happens(25) { 1 } else { random.within(20..800) };
        let what = format!("{wanted} more are acknowledged before cut {cut}");
        wait_until(PATIENCE, &what, || {
            let more = count(&publishers) - before;
            if more >= wanted { Ok(()) } else { Err(format!("{more} are")) }
        });
        std::thread::sleep(Duration::from_millis(random.within(0..3000)));
        site.machine.pull_the_plug();
        line.cut();
        let acknowledged = count(&publishers) - before;
        if random.happens(50) {
            match is_cloud_there {
                true => site.cloud.stop(),
                false => site.cloud.start(),
            }
            is_cloud_there = !is_cloud_there;
        }
        let switched_on = Instant::now();
        let boot = site.machine.boot();
        site.machine.wait(PATIENCE, "it is active", "systemctl is-active tidegate", |said| said == "active");
        line.restore();
        let (active, start_ms) = (switched_on.elapsed(), site.start_ms());
        slowest_ms = slowest_ms.max(start_ms);
        println!(
            "cut {cut}: after {acknowledged} acknowledged; up after {} s, active after {} s, ready {start_ms} ms after its \
             start; cloud {}",
            boot.as_secs(),
            active.as_secs(),
            if is_cloud_there { "there" } else { "away" }
        );
        assert!(start_ms <= late_ms, "ready after {start_ms} ms, where {usual_ms} ms are usual");
        let restarts = site.number("NRestarts");
        assert_eq!(restarts, 0, "it did not start at once after cut {cut}");
        let aside =
            site.machine.must("find /var/lib/tidegate/quarantine /var/lib/tidegate/newer -type f 2>/dev/null; true");
        assert!(aside.is_empty(), "a store was moved aside after cut {cut}: {aside}");
    }
    if !is_cloud_there {
        site.cloud.start();
    }
    end_all(&publishers);
    wait_for_arrivals(&mut site.application, &publishers, QUIET);
    wait_for_the_last(&mut site.application, site.machine.port);
    let verdict = balance(&mut site.application, &publishers);
    println!("figure: {cuts} power cuts: {verdict}");
    println!(
        "figure: ready at most {slowest_ms} ms after its start following a cut, {usual_ms} ms at a boot without one"
    );
    ok("nothing acknowledged is lost, doubled at QoS 2 or out of order", verdict.is_clean(), &verdict.examples);
    ok("enough was acknowledged for that to mean something", verdict.acknowledged > 20, verdict.acknowledged);
}
