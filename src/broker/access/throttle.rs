//! How often a wrong password may be given: at first freely, then about as often as a person would. Pure; the time is given
//! to it.
//!
//! Counted for each address with each name, so that one wrong setting does not lock out its neighbours behind the same
//! address; and for each address as a whole, so that guessing with many names is slow too. All that comes from this machine
//! is one address and would lock out itself: there the second does not apply.

use std::collections::HashMap;
use std::net::IpAddr;

/// Wrong passwords for one name, and the time that each is remembered.
const NAME: Bucket = Bucket { size: 10, forget_ms: 10_000 };
/// The same for all names of one address.
const ADDRESS: Bucket = Bucket { size: 100, forget_ms: 1_000 };
/// Entries at most: some 200 KB. Of too many the one that is forgotten first goes.
const ENTRIES_MAX: usize = 2048;

struct Bucket {
    size: u64,
    forget_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// `None` over a Unix socket. Of IPv6 the network of 64 bits, which one customer has as a whole.
    address: Option<IpAddr>,
    /// `None`: all names.
    name: Option<Box<str>>,
}

/// The wrong passwords of the last minutes.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// When all of an entry is forgotten: each wrong password moves it by its share.
    until_ms: HashMap<Key, u64>,
}

impl Throttle {
    /// Whether another attempt has to wait.
    pub(super) fn is_blocked(&self, address: Option<IpAddr>, name: &str, now_ms: u64) -> bool {
        keys(address, name).into_iter().flatten().any(|(key, bucket)| {
            let until_ms = self.until_ms.get(&key).copied().unwrap_or(0);
            until_ms.saturating_sub(now_ms) > (bucket.size - 1) * bucket.forget_ms
        })
    }

    /// Counts a wrong password.
    pub(super) fn count(&mut self, address: Option<IpAddr>, name: &str, now_ms: u64) {
        for (key, bucket) in keys(address, name).into_iter().flatten() {
            if self.until_ms.len() >= ENTRIES_MAX && !self.until_ms.contains_key(&key) {
                self.until_ms.retain(|_, until_ms| *until_ms > now_ms);
                if self.until_ms.len() >= ENTRIES_MAX
                    && let Some(first) = self.until_ms.iter().min_by_key(|(_, until_ms)| **until_ms)
                {
                    let first = first.0.clone();
                    self.until_ms.remove(&first);
                }
            }
            let until_ms = self.until_ms.entry(key).or_default();
            let full_ms = now_ms + bucket.size * bucket.forget_ms;
            *until_ms = ((*until_ms).max(now_ms) + bucket.forget_ms).min(full_ms);
        }
    }
}

fn keys(address: Option<IpAddr>, name: &str) -> [Option<(Key, Bucket)>; 2] {
    let is_local = address.is_none_or(|address| address.is_loopback());
    let address = address.map(|address| match address {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    });
    let named = Key { address, name: Some(Box::from(name)) };
    let whole = Key { address, name: None };
    [Some((named, NAME)), (!is_local).then_some((whole, ADDRESS))]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: &str = "192.0.2.1";

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    /// How many of `attempts`, all wrong, are let through, one each `every_ms`.
    fn tried(throttle: &mut Throttle, from: &str, names: usize, attempts: u64, every_ms: u64) -> u64 {
        (0..attempts)
            .filter(|attempt| {
                let name = format!("user{}", attempt % names as u64);
                let now_ms = 1_000_000 + attempt * every_ms;
                let is_tried = !throttle.is_blocked(address(from), &name, now_ms);
                if is_tried {
                    throttle.count(address(from), &name, now_ms);
                }
                is_tried
            })
            .count() as u64
    }

    #[test]
    fn guessing_is_slow_for_one_name_and_for_many() {
        let one = tried(&mut Throttle::default(), FAR, 1, 36_000, 100);
        assert!((360..=372).contains(&one), "{one} in an hour");
        let many = tried(&mut Throttle::default(), FAR, 100_000, 36_000, 100);
        assert!((3600..=3701).contains(&many), "{many} in an hour");
        let mut network = Throttle::default();
        let near = tried(&mut network, "2001:db8::1", 1, 100, 1) + tried(&mut network, "2001:db8::2", 1, 100, 1);
        assert!(near <= 11, "{near} from one network");
    }

    #[test]
    fn one_wrong_setting_locks_out_neither_its_neighbours_nor_this_machine() {
        let mut throttle = Throttle::default();
        tried(&mut throttle, FAR, 1, 1000, 1);
        assert!(throttle.is_blocked(address(FAR), "user0", 1_001_000));
        assert!(!throttle.is_blocked(address(FAR), "other", 1_001_000));
        assert!(!throttle.is_blocked(address("192.0.2.2"), "user0", 1_001_000));
        assert!(!throttle.is_blocked(address(FAR), "user0", 1_000_000 + 200_000), "it is forgotten");
        tried(&mut throttle, "127.0.0.1", 1000, 100_000, 0);
        assert!(!throttle.is_blocked(address("127.0.0.1"), "other", 1_000_000));
    }

    #[test]
    fn addresses_without_number_take_no_memory_without_bound() {
        let mut throttle = Throttle::default();
        for number in 0..20_000_u32 {
            throttle.count(Some(IpAddr::V4(number.into())), "user", 0);
        }
        assert!(throttle.until_ms.len() <= ENTRIES_MAX);
    }
}
