//! Hashing of numbers that we have given ourselves: nobody can choose them so that they collide. Pure.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps by packet id, sequence or line of the ledger, which every message passes several times.
pub(crate) type ByNumber = BuildHasherDefault<NumberHasher>;

/// One multiplication (Fibonacci hashing): the high bits that a hash table looks at depend on all of the number.
#[derive(Debug, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ mixed >> 32;
    }
}
