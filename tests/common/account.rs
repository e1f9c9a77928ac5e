//! What arrived against what was sent, by the sender's own numbers.

use std::collections::{BTreeMap, BTreeSet};

/// Expects every number of `sent` once and in order.
#[track_caller]
pub fn assert_whole_in_order_and_once(what: &str, arrived: &[u64], sent: impl IntoIterator<Item = u64>) {
    let sent: Vec<u64> = sent.into_iter().collect();
    let (lost, repeated) = (lost(arrived, &sent), repeated(arrived));
    assert!(lost.is_empty() && repeated.is_empty(), "{what}: lost {lost:?}, repeated {repeated:?} of {}", sent.len());
    let disorder = arrived.windows(2).find(|pair| pair[0] > pair[1]);
    assert!(disorder.is_none(), "{what}: out of order at {disorder:?}");
    assert_eq!(arrived.len(), sent.len(), "{what}: more arrived than was sent");
}

/// Expects every number of `acknowledged` at least once.
#[track_caller]
pub fn assert_none_lost(what: &str, arrived: &[u64], acknowledged: &[u64]) {
    let lost = lost(arrived, acknowledged);
    assert!(lost.is_empty(), "{what}: {} of {} acknowledged are lost: {lost:?}", lost.len(), acknowledged.len());
}

/// The numbers of `sent` that did not arrive.
pub fn lost(arrived: &[u64], sent: &[u64]) -> Vec<u64> {
    let arrived: BTreeSet<u64> = arrived.iter().copied().collect();
    sent.iter().copied().filter(|number| !arrived.contains(number)).collect()
}

/// The numbers that arrived more than once.
pub fn repeated(arrived: &[u64]) -> Vec<u64> {
    let mut times = BTreeMap::<u64, usize>::new();
    arrived.iter().for_each(|number| *times.entry(*number).or_default() += 1);
    times.into_iter().filter(|(_, times)| *times > 1).map(|(number, _)| number).collect()
}

/// Each number where it arrived first. At QoS 1 what was under way when a connection ended may come again.
pub fn firsts(arrived: &[u64]) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    arrived.iter().copied().filter(|number| seen.insert(*number)).collect()
}
