//! What arrived at the stand-in cloud, counted by message ids and by the publisher's own numbers. Pure.
//!
//! A *repeat* is a delivery whose message id was there before. A number that arrives twice under two ids is not one:
//! its publisher sent it again because a kill took the acknowledgement (MQTT 5.0, 4.3.2).

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use serde::Deserialize;

/// More numbers than any drill sends; what lies above is not counted.
const NUMBERS_MAX: u64 = 1_000_000;

/// Readings kept for each device; the drills make some hundred.
const READINGS_MAX: usize = 20_000;

/// The user property that names a message (DESIGN.md 6.8).
pub(super) const ID_PROPERTY: &str = "tidegate-id";

/// Fewer intervals say nothing of their median.
const INTERVALS_MIN: usize = 3;

/// Devices that are told apart; the demo has four.
const DEVICES_MAX: usize = 64;

const DAY_MS: u64 = 86_400_000;

/// Everything that arrived.
#[derive(Debug, Default)]
pub(super) struct Tally {
    numbers: Vec<Arrivals>,
    ids: HashSet<Box<str>>,
    devices: BTreeMap<String, DeviceTally>,
    received: u64,
    closed: bool,
}

/// What arrived of one number.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrivals {
    /// Deliveries.
    pub(super) copies: u32,
    /// Those among them whose id was there before.
    pub(super) repeats: u32,
    /// Whether it came with an id at all: a bridge gives none.
    pub(super) has_id: bool,
}

/// What arrived of one device.
#[derive(Debug, Default)]
pub(super) struct DeviceTally {
    seqs: HashSet<u64>,
    seq_max: u64,
    repeats: u64,
    good: u64,
    bad: u64,
    /// Time of day of the good readings of its first point, in milliseconds.
    times: Vec<u32>,
    first_point: Option<String>,
}

/// What the drills have sent, as its sender knows it.
pub(super) trait Sender {
    /// Whether `number` was acknowledged.
    fn is_acknowledged(&self, number: u64) -> bool;
    /// How often `number` was sent.
    fn sends(&self, number: u64) -> u32;
}

/// One line of the result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    /// Distinct numbers whose sender has the acknowledgement.
    pub(super) acknowledged: u64,
    /// Those of them that arrived.
    pub(super) received: u64,
    /// Deliveries beyond the first of the same message.
    pub(super) repeated: u64,
    /// Messages that the publisher itself sent again and that arrived under ids of their own.
    pub(super) sent_again: u64,
}

impl Count {
    /// Acknowledged, and not at the cloud.
    pub(super) fn lost(self) -> u64 {
        self.acknowledged - self.received
    }
}

/// What is known of a device's readings.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DeviceCount {
    /// The device.
    pub(super) name: String,
    /// Distinct readings that arrived.
    pub(super) received: u64,
    /// Holes in its `seq`.
    pub(super) missing: u64,
    /// Readings that arrived again.
    pub(super) repeated: u64,
    /// Arrived with quality good.
    pub(super) good: u64,
    /// Arrived with quality bad.
    pub(super) bad: u64,
    /// Median of the times between good readings, in milliseconds.
    pub(super) interval_ms: Option<u32>,
    /// The longest of them.
    pub(super) longest_ms: Option<u32>,
}

/// The fields of a payload that are counted; all others are left alone.
#[derive(Debug, Deserialize)]
struct Payload {
    n: Option<u64>,
    id: Option<String>,
    device: Option<String>,
    point: Option<String>,
    seq: Option<u64>,
    ts: Option<String>,
    quality: Option<String>,
}

impl Tally {
    /// Counts one delivery; `id` is its user property, where it has one.
    pub(super) fn deliver(&mut self, id: Option<&str>, payload: &[u8]) {
        self.received += 1;
        if self.closed {
            return;
        }
        let Ok(payload) = serde_json::from_slice::<Payload>(payload) else { return };
        let id = id.or(payload.id.as_deref());
        let repeated = id.is_some_and(|id| !self.ids.insert(Box::from(id)));
        if let Some(number) = payload.n {
            self.deliver_number(number, id.is_some(), repeated);
        }
        if payload.device.is_some() {
            self.deliver_reading(&payload, repeated);
        }
    }

    /// Deliveries of every kind so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Keeps nothing from now on but the number of deliveries, so that a demo without end stays small.
    pub(super) fn close(&mut self) {
        *self = Tally { received: self.received, closed: true, ..Tally::default() };
    }

    /// The result for `numbers`.
    pub(super) fn count(&self, numbers: Range<u64>, sender: &impl Sender) -> Count {
        let mut count = Count::default();
        for number in numbers {
            let arrived = self.arrivals(number);
            let acknowledged = sender.is_acknowledged(number);
            count.acknowledged += u64::from(acknowledged);
            count.received += u64::from(acknowledged && arrived.copies > 0);
            let extra = arrived.copies.saturating_sub(1);
            // Without ids a copy too many can only be told by how often the publisher itself sent the number.
            let repeats = if arrived.has_id {
                arrived.repeats
            } else {
                arrived.copies.saturating_sub(sender.sends(number).max(1))
            };
            count.repeated += u64::from(repeats);
            count.sent_again += u64::from(extra.saturating_sub(repeats));
        }
        count
    }

    /// What arrived of each device, by name.
    pub(super) fn devices(&self) -> Vec<DeviceCount> {
        self.devices.iter().map(|(name, device)| device.count(name)).collect()
    }

    fn arrivals(&self, number: u64) -> Arrivals {
        usize::try_from(number).ok().and_then(|number| self.numbers.get(number)).copied().unwrap_or_default()
    }

    fn deliver_number(&mut self, number: u64, has_id: bool, repeated: bool) {
        let Some(place) = usize::try_from(number).ok().filter(|_| number < NUMBERS_MAX) else { return };
        if self.numbers.len() <= place {
            self.numbers.resize(place + 1, Arrivals::default());
        }
        if let Some(arrivals) = self.numbers.get_mut(place) {
            arrivals.copies += 1;
            arrivals.repeats += u32::from(repeated);
            arrivals.has_id = has_id;
        }
    }

    fn deliver_reading(&mut self, payload: &Payload, repeated: bool) {
        let name = payload.device.clone().unwrap_or_default();
        if self.devices.len() >= DEVICES_MAX && !self.devices.contains_key(&name) {
            return;
        }
        let device = self.devices.entry(name).or_default();
        if repeated {
            device.repeats += 1;
            return;
        }
        if device.seqs.len() >= READINGS_MAX {
            return;
        }
        if let Some(seq) = payload.seq {
            device.seqs.insert(seq);
            device.seq_max = device.seq_max.max(seq);
        }
        if payload.quality.as_deref() != Some("good") {
            device.bad += 1;
            return;
        }
        device.good += 1;
        if device.first_point.is_none() {
            device.first_point.clone_from(&payload.point);
        }
        if device.first_point == payload.point {
            device.times.extend(payload.ts.as_deref().and_then(time_of_day_ms));
        }
    }
}

impl DeviceTally {
    fn count(&self, name: &str) -> DeviceCount {
        let received = self.seqs.len() as u64;
        let mut times = self.times.clone();
        // A message that was sent again may come after later ones; the day does not end within a demo that counts.
        times.sort_unstable();
        let mut intervals: Vec<u32> = times.windows(2).filter_map(|pair| Some(pair.get(1)? - pair.first()?)).collect();
        intervals.sort_unstable();
        DeviceCount {
            name: name.to_owned(),
            received,
            // `seq` counts from 1 in a new store.
            missing: self.seq_max.saturating_sub(received),
            repeated: self.repeats,
            good: self.good,
            bad: self.bad,
            interval_ms: intervals.get(intervals.len() / 2).copied().filter(|_| intervals.len() >= INTERVALS_MIN),
            longest_ms: intervals.last().copied(),
        }
    }
}

/// `2026-11-23T09:20:00.123Z` → milliseconds since midnight.
fn time_of_day_ms(text: &str) -> Option<u32> {
    let (_, time) = text.split_once('T')?;
    let (clock, fraction) = time.strip_suffix('Z')?.split_once('.')?;
    let mut parts = clock.split(':').map(|part| part.parse::<u16>().ok().map(u64::from));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    let ms = ((hour * 60 + minute) * 60 + second) * 1000 + u64::from(fraction.parse::<u16>().ok()?);
    u32::try_from(ms).ok().filter(|_| ms < DAY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sent(Vec<(bool, u32)>);

    impl Sender for Sent {
        fn is_acknowledged(&self, number: u64) -> bool {
            self.0[usize::try_from(number).unwrap()].0
        }
        fn sends(&self, number: u64) -> u32 {
            self.0[usize::try_from(number).unwrap()].1
        }
    }

    #[test]
    fn a_loss_is_an_acknowledged_number_that_did_not_arrive() {
        let mut tally = Tally::default();
        tally.deliver(Some("g.1.1.1"), br#"{"n":0}"#);
        tally.deliver(Some("g.1.1.2"), br#"{"n":2}"#);
        let sent = Sent(vec![(true, 1), (true, 1), (false, 1), (false, 1)]);
        let count = tally.count(0..4, &sent);
        assert_eq!((count.acknowledged, count.received, count.lost()), (2, 1, 1));
    }

    #[test]
    fn one_id_twice_is_a_repeat_and_two_ids_are_the_publishers_own() {
        let mut tally = Tally::default();
        tally.deliver(Some("g.1.1.1"), br#"{"n":0}"#);
        tally.deliver(Some("g.1.1.1"), br#"{"n":0}"#);
        tally.deliver(Some("g.1.1.2"), br#"{"n":1}"#);
        tally.deliver(Some("g.1.2.1"), br#"{"n":1}"#);
        let count = tally.count(0..2, &Sent(vec![(true, 1), (true, 2)]));
        assert_eq!((count.repeated, count.sent_again, count.lost()), (1, 1, 0));
    }

    #[test]
    fn without_ids_repeats_are_told_by_how_often_the_publisher_sent() {
        let mut tally = Tally::default();
        for number in [0, 0, 0, 1, 1] {
            tally.deliver(None, format!("{{\"n\":{number}}}").as_bytes());
        }
        let count = tally.count(0..2, &Sent(vec![(true, 2), (true, 1)]));
        assert_eq!((count.repeated, count.sent_again), (2, 1));
    }

    #[test]
    fn holes_and_intervals_of_a_device_are_seen() {
        let mut tally = Tally::default();
        for (seq, ms) in [(1, "000"), (2, "100"), (3, "400"), (5, "900")] {
            let payload = format!(
                r#"{{"ts":"2026-11-23T09:20:00.{ms}Z","quality":"good","device":"m","point":"p","seq":{seq},"id":"i{seq}"}}"#
            );
            tally.deliver(None, payload.as_bytes());
            tally.deliver(None, br#"{"n":"not a number"}"#);
        }
        let devices = tally.devices();
        assert_eq!(devices.len(), 1);
        assert_eq!((devices[0].received, devices[0].missing, devices[0].good), (4, 1, 4));
        assert_eq!((devices[0].interval_ms, devices[0].longest_ms), (Some(300), Some(500)));
        assert_eq!(tally.received(), 8);
        tally.close();
        tally.deliver(None, br#"{"n":1}"#);
        assert_eq!((tally.received(), tally.devices().len()), (9, 0));
    }

    #[test]
    fn times_of_day_are_read_and_nonsense_is_not() {
        assert_eq!(time_of_day_ms("2026-11-23T09:20:00.123Z"), Some(33_600_123));
        for bad in ["", "T", "2026-11-23T99:99:99.999Z", "2026-11-23T09:20Z", "x9:20:00.1Z"] {
            assert_eq!(time_of_day_ms(bad), None, "{bad}");
        }
    }
}
