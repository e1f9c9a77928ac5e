//! In which order a line is searched for its units, and when to give up. Pure.
//!
//! Promises: no unit is asked twice with the same settings; the likely comes first; the whole search ends within the time
//! that it was given.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::{Parity, SerialMode};

/// Bauds, the usual first.
const BAUDS: [u32; 7] = [9600, 19_200, 38_400, 115_200, 57_600, 4800, 2400];
/// Modes, the specification's first (Modbus over Serial Line 1.02, 2.5.1).
const MODES: [(Parity, u8); 4] = [(Parity::Even, 1), (Parity::None, 1), (Parity::None, 2), (Parity::Odd, 1)];
/// Units that are asked with each settings before all the others are.
pub const FIRST_UNITS: std::ops::RangeInclusive<u8> = 1..=5;

/// Settings of a serial line.
pub type Settings = (NonZeroU32, SerialMode);

/// All usual settings, beginning with those that the person believes in; the usual bauds and modes of each before the
/// rare ones.
pub fn settings(own: Settings) -> Vec<Settings> {
    let bauds = BAUDS.iter().filter_map(|baud| NonZeroU32::new(*baud));
    let mut all: Vec<(usize, Settings)> = Vec::new();
    for (baud_rank, baud) in bauds.enumerate() {
        for (mode_rank, (parity, stop_bits)) in MODES.into_iter().enumerate() {
            let mode = SerialMode { data_bits: 8, parity, stop_bits };
            all.push((baud_rank + mode_rank, (baud, mode)));
        }
    }
    all.sort_by_key(|(rank, _)| *rank);
    let others = all.into_iter().map(|(_, settings)| settings).filter(|settings| *settings != own);
    std::iter::once(own).chain(others).collect()
}

/// The units in the order in which they are asked: the first ones, 247 and 246 (which many makers choose), then all.
pub fn units(is_tcp: bool) -> Vec<u8> {
    let mut order: Vec<u8> = FIRST_UNITS.collect();
    order.extend(if is_tcp { [255, 247] } else { [247, 246] });
    let rest: Vec<u8> = (1..=247).filter(|unit| !order.contains(unit)).collect();
    order.extend(rest);
    order
}

/// How long a search would take if nobody answered.
pub fn longest(units: usize, settings: usize, each: Duration) -> Duration {
    let count = u32::try_from(units.saturating_mul(settings)).unwrap_or(u32::MAX);
    each.saturating_mul(count)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_is_asked_twice_and_what_the_person_believes_comes_first() {
        let own = (NonZeroU32::new(19_200).unwrap(), crate::config::parse_serial_mode("8O1").unwrap());
        let all = settings(own);
        let distinct: BTreeSet<String> = all.iter().map(|settings| format!("{settings:?}")).collect();
        assert_eq!((all.first(), all.len(), distinct.len()), (Some(&own), 28, 28));
        let rare = (NonZeroU32::new(1200).unwrap(), own.1);
        assert_eq!(settings(rare).len(), 29);
    }

    #[test]
    fn every_unit_is_asked_once() {
        for (is_tcp, count) in [(false, 247), (true, 248)] {
            let order = units(is_tcp);
            assert_eq!((order.len(), order.iter().collect::<BTreeSet<_>>().len()), (count, count));
            assert_eq!(order.first(), Some(&1));
        }
    }

    #[test]
    fn the_longest_time_never_overflows() {
        assert_eq!(longest(247, 28, Duration::from_millis(300)), Duration::from_millis(2_074_800));
        assert_eq!(longest(usize::MAX, 2, Duration::MAX), Duration::MAX);
    }
}
