//! Which damaged stores are kept, and which go. Pure.

use std::path::{Path, PathBuf};

/// Damaged stores that are kept, for a look.
const KEPT_MAX: usize = 3;
/// How many of them may wait for their salvage, however small they are: each start reads all of them.
const UNSALVAGED_MAX: usize = 100;

/// A damaged store that was moved aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quarantine {
    pub place: PathBuf,
    pub bytes: u64,
    /// Not everything was taken over from it.
    pub is_wanting: bool,
}

/// Those that have to go, in that order. `kept` has them oldest first; the last one is the store that is just being
/// moved aside, which never goes. `available` is what the disk has free beside them.
///
/// What was salvaged is there for a look only. What was not has acknowledged messages in it: it stays for as long as all
/// together take less than a quarter of the disk's room, or are few. The room of the disk is what counts, and not the
/// ceiling of the store: one full store is more than a quarter of that already.
pub(super) fn excess(kept: &[Quarantine], available: u64) -> Vec<&Path> {
    let mut bytes = kept.iter().map(|one| one.bytes).fold(0, u64::saturating_add);
    let mut count = kept.len();
    let room = available.saturating_add(bytes);
    let Some((_, before)) = kept.split_last() else { return Vec::new() };
    let mut going = Vec::new();
    for is_wanting in [false, true] {
        for one in before.iter().filter(|one| one.is_wanting == is_wanting) {
            let (is_many, is_much) = (count > KEPT_MAX, bytes.saturating_mul(4) >= room);
            let goes = if is_wanting { (is_many && is_much) || count > UNSALVAGED_MAX } else { is_many || is_much };
            if goes {
                going.push(one.place.as_path());
                count -= 1;
                bytes = bytes.saturating_sub(one.bytes);
            }
        }
    }
    going
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `s` = salvaged, `w` = wanting, each with its bytes; the newest is last.
    fn going(kept: &[(char, u64)], available: u64) -> Vec<usize> {
        let kept: Vec<Quarantine> = kept
            .iter()
            .enumerate()
            .map(|(number, (kind, bytes))| Quarantine {
                place: PathBuf::from(number.to_string()),
                bytes: *bytes,
                is_wanting: *kind == 'w',
            })
            .collect();
        excess(&kept, available).into_iter().map(|place| place.to_str().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn what_is_not_salvaged_stays_while_all_take_less_than_a_quarter_of_the_disks_room() {
        assert_eq!(going(&[('w', 10); 9], 271), [0_usize; 0], "90 of 361");
        assert_eq!(going(&[('w', 10); 9], 270), [0], "90 of 360 are a quarter; 80 are less");
        assert_eq!(going(&[('w', 10); 9], 210), [0, 1], "70 of 300 may be");
        assert_eq!(going(&[('w', 10); 9], 0), [0, 1, 2, 3, 4, 5], "three stay on any disk");
    }

    #[test]
    fn what_is_salvaged_goes_first_and_the_oldest_of_it_first() {
        assert_eq!(going(&[('w', 10), ('s', 10), ('s', 10), ('w', 10)], 1000), [1]);
        assert_eq!(
            going(&[('w', 10), ('s', 10), ('s', 10), ('w', 10)], 0),
            [1, 2],
            "three are too many, two may be much"
        );
        assert_eq!(going(&[('s', 10), ('w', 10), ('w', 10), ('w', 10), ('w', 10)], 0), [0, 1]);
        assert_eq!(going(&[('s', 10), ('s', 10), ('w', 10)], 1000), [0_usize; 0], "three are kept for a look");
        assert_eq!(going(&[('s', 10), ('s', 10), ('w', 10)], 60), [0], "30 of 90 are too much; 20 may be");
    }

    #[test]
    fn the_store_that_is_being_moved_aside_never_goes() {
        assert_eq!(going(&[('w', 1000)], 0), [0_usize; 0]);
        assert_eq!(going(&[('s', 1000)], 0), [0_usize; 0]);
        assert_eq!(going(&[], 0), [0_usize; 0]);
    }

    #[test]
    fn tiny_ones_are_bounded_as_well() {
        assert_eq!(going(&[('w', 1); 100], u64::MAX), [0_usize; 0]);
        assert_eq!(going(&[('w', 1); 102], u64::MAX), [0, 1]);
    }
}
