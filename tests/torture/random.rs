//! Chance that can be repeated: the same seed draws the same numbers on every machine and in every version.

#![allow(dead_code, reason = "each test uses its own part of this")]

use std::ops::Range;

/// A small generator (splitmix64): its whole state is its seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Draws what this seed always draws.
    pub fn from_seed(seed: u64) -> Random {
        Random(seed)
    }

    /// A seed that nobody has chosen.
    pub fn fresh_seed() -> u64 {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
        // Short enough to be copied by hand.
        u64::from(u32::from_ne_bytes(bytes))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of the range, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        let span = range.end.checked_sub(range.start).filter(|span| *span > 0).expect("a range that is not empty");
        range.start + self.number() % span
    }

    /// Yes in so many of a hundred cases.
    pub fn happens(&mut self, percent: u64) -> bool {
        self.within(0..100) < percent
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[usize::try_from(self.within(0..choices.len() as u64)).unwrap()]
    }

    /// A generator of its own, for a part that runs beside the others: how often they draw does not change it.
    pub fn branch(&mut self) -> Random {
        Random(self.number())
    }
}

#[test]
fn a_seed_draws_the_same_numbers_for_ever() {
    let mut random = Random::from_seed(1);
    let drawn: Vec<u64> = (0..5).map(|_| random.within(0..1000)).collect();
    assert_eq!(drawn, [465, 519, 590, 235, 761], "who changes the generator makes every printed seed worthless");
}
