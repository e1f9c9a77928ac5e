//! How long a torture test goes on, and from which seeds.
//!
//! | variable | says |
//! |---|---|
//! | `TIDEGATE_TORTURE_MINUTES` | the long form: each test goes on for its share of these minutes, or until it has done the cases of its long form |
//! | `TIDEGATE_SEED` | one case only, from this seed: what a failure prints |

#![allow(dead_code, reason = "each test uses its own part of this")]

use std::fmt::Display;
use std::str::FromStr;
use std::sync::MutexGuard;
use std::time::Duration;

use tokio::time::Instant;

use super::common::turn;
use super::random::Random;

/// The long form's minutes when all get what they need, by test. Other minutes are shared in the same proportion.
const SHARES: &[(&str, u32)] = &[
    ("kills", 40),
    ("kills_controls", 20),
    ("trace", 10),
    ("trace_spare", 10),
    ("soak", 120),
    ("power_cuts", 45),
    ("failed_writes", 8),
    ("call_faults", 20),
    ("disks", 10),
    ("full_queue", 6),
    ("stores", 20),
    ("network", 20),
    ("models", 15),
    ("clock", 10),
];

/// What one test may spend. It also holds the turn: tests of this program never run beside each other, so that each
/// has the machine, and its minutes, for itself.
pub struct Budget {
    name: &'static str,
    cases: u64,
    seed: Option<u64>,
    share: Option<Duration>,
    until: Option<Instant>,
    begun: u64,
    /// Seeds that have found a fault once: the short form begins with them.
    found: &'static [u64],
    _turn: MutexGuard<'static, ()>,
}

/// How many cases make the short form and the long one.
pub struct Cases {
    /// Without `TIDEGATE_TORTURE_MINUTES`.
    pub short: u64,
    /// With it, should the share of the minutes suffice.
    pub long: u64,
}

/// One case: everything random in it comes from its seed.
pub struct Case {
    name: &'static str,
    /// What repeats it.
    pub seed: u64,
    /// Draws from that seed.
    pub random: Random,
}

impl Budget {
    /// Waits for the test's turn; `name` has a row in `SHARES` and is the module's name.
    pub fn begin(name: &'static str, cases: Cases) -> Budget {
        let turn = turn();
        let (_, own) = SHARES.iter().find(|(of, _)| *of == name).unwrap_or_else(|| panic!("{name} has no share"));
        let all: u32 = SHARES.iter().map(|(_, minutes)| minutes).sum();
        let minutes = variable::<f64>("TIDEGATE_TORTURE_MINUTES");
        let share = minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0 * f64::from(*own) / f64::from(all)));
        let seed = variable("TIDEGATE_SEED");
        let cases = match (seed, share) {
            (Some(_), _) => 1,
            (None, Some(_)) => cases.long,
            (None, None) => cases.short,
        };
        Budget {
            name,
            cases,
            seed,
            share,
            until: share.map(|share| Instant::now() + share),
            begun: 0,
            found: &[],
            _turn: turn,
        }
    }

    /// Begins the short form with these, which have found faults that are mended.
    pub fn with_found(self, found: &'static [u64]) -> Budget {
        Budget { found, ..self }
    }

    /// The test's share of the minutes in the long form; nothing in the short one.
    pub fn share(&self) -> Option<Duration> {
        self.share
    }

    /// A line for the person who watches; `./test.sh --torture` shows it, `cargo test` on failure only.
    pub fn say(&self, line: impl Display) {
        println!("{}: {line}", self.name);
    }
}

impl Iterator for Budget {
    type Item = Case;

    /// The next case. The first always comes, however small the share.
    fn next(&mut self) -> Option<Case> {
        let is_over = self.until.is_some_and(|until| Instant::now() >= until);
        if self.begun >= self.cases || (is_over && self.begun > 0) {
            return None;
        }
        self.begun += 1;
        let seed = match (self.seed, self.share) {
            (Some(seed), _) => seed,
            (None, Some(_)) => Random::fresh_seed(),
            // The same each time: what is new is looked for by the long form, not by somebody's landing.
            (None, None) => match usize::try_from(self.begun - 1).ok().and_then(|place| self.found.get(place)) {
                Some(found) => *found,
                None => usual_seed(self.name, self.begun),
            },
        };
        Some(Case { name: self.name, seed, random: Random::from_seed(seed) })
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let test = thread.name().filter(|name| name.contains("::")).unwrap_or(self.name);
            eprintln!("to repeat it: TIDEGATE_SEED={} cargo test --test torture {test} -- --nocapture", self.seed);
        }
    }
}

/// For a test that has no cases: the same numbers each time, but for the long form or with a seed of one's own.
pub fn random_of(name: &str) -> Random {
    let is_long = variable::<f64>("TIDEGATE_TORTURE_MINUTES").is_some();
    let drawn = || if is_long { Random::fresh_seed() } else { usual_seed(name, 1) };
    let seed = variable("TIDEGATE_SEED").unwrap_or_else(drawn);
    println!("{name}: seed {seed}");
    Random::from_seed(seed)
}

fn usual_seed(name: &str, case: u64) -> u64 {
    let start = name.bytes().fold(case, |seed, byte| seed.rotate_left(8) ^ u64::from(byte));
    start.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
}

fn variable<T: FromStr<Err: Display>>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[test]
fn without_minutes_the_short_form_runs_and_every_case_has_its_own_seed() {
    if variable::<f64>("TIDEGATE_TORTURE_MINUTES").is_some() || variable::<u64>("TIDEGATE_SEED").is_some() {
        return;
    }
    let seeds: Vec<u64> = Budget::begin("kills", Cases { short: 3, long: 1000 }).map(|case| case.seed).collect();
    assert_eq!(seeds.len(), 3);
    assert!(seeds[0] != seeds[1] && seeds[1] != seeds[2] && seeds[0] != seeds[2], "{seeds:?}");
}
