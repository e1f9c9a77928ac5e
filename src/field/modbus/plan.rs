//! Which requests read the points of a device. Pure.
//!
//! Promises: every point stands whole in exactly one request, of its own table and interval; no request is longer than
//! the device's limits or touches a forbidden address; the same points give the same requests.

use std::time::Duration;

use crate::config::{ModbusConfig, RequestLimits, Table};

/// A point as the planner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanPoint {
    /// Which table.
    pub table: Table,
    /// Address on the wire.
    pub address: u16,
    /// Registers or coils; no more than the limits allow in one request. 0 = it is not read.
    pub width: u16,
    /// How often to read it.
    pub interval: Duration,
}

impl PlanPoint {
    /// Behind its last address. Wider than the wire's 16 bits, because the last point may end at 65536.
    fn end(&self) -> u32 {
        u32::from(self.address) + u32::from(self.width)
    }
}

/// One request that answers one or more points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Which table.
    pub table: Table,
    /// First address.
    pub address: u16,
    /// Registers or coils.
    pub quantity: u16,
    /// The points it answers, as numbers in the unit's list, in the order of their addresses.
    pub points: Vec<usize>,
    /// How often.
    pub interval: Duration,
}

impl Block {
    fn of(number: usize, point: &PlanPoint) -> Block {
        Block {
            table: point.table,
            address: point.address,
            quantity: point.width,
            points: vec![number],
            interval: point.interval,
        }
    }

    fn end(&self) -> u32 {
        u32::from(self.address) + u32::from(self.quantity)
    }

    /// Takes in a point that starts no earlier than the block.
    fn take(&mut self, number: usize, point: &PlanPoint) {
        let end = self.end().max(point.end());
        self.quantity = u16::try_from(end - u32::from(self.address)).unwrap_or(u16::MAX);
        self.points.push(number);
    }
}

/// The points of a device for the planner, in the same order.
pub fn points(device: &ModbusConfig) -> Vec<PlanPoint> {
    let planned = device.points.iter().map(|point| PlanPoint {
        table: point.table,
        address: point.address,
        width: if point.is_readable() { point.kind.width() } else { 0 },
        interval: point.poll.unwrap_or(device.poll),
    });
    planned.collect()
}

/// Points of one table and one interval, merged where the gap is small and the request stays legal. Going up the
/// addresses and filling each request as far as it may go needs the fewest.
pub fn requests(points: &[PlanPoint], limits: &RequestLimits) -> Vec<Block> {
    let mut order: Vec<(usize, &PlanPoint)> = points.iter().enumerate().filter(|(_, point)| point.width > 0).collect();
    order.sort_by_key(|(number, point)| (point.table, point.interval, point.address, *number));
    let mut blocks: Vec<Block> = Vec::new();
    for (number, point) in order {
        let joined = blocks.last_mut().filter(|block| {
            let first = u32::from(block.address);
            let end = point.end().max(block.end());
            (block.table, block.interval) == (point.table, point.interval)
                && u32::from(point.address) <= block.end() + u32::from(limits.gap_max(point.table))
                && end - first <= u32::from(limits.quantity_max(point.table))
                && !limits.forbids(point.table, first, end - 1)
        });
        match joined {
            Some(block) => block.take(number, point),
            None => blocks.push(Block::of(number, point)),
        }
    }
    blocks
}

/// Whether a request can be asked in parts.
pub fn is_divisible(block: &Block, points: &[PlanPoint]) -> bool {
    halves(block, points).is_some()
}

/// The two parts of a request that a device refuses as a whole: cut at the gap that is nearest to its middle, because
/// most such devices have no addresses there; without a gap, in the middle, because others take less than the
/// specification allows. `None` when all that it reads is one value, whatever many points make of it.
pub fn halves(block: &Block, points: &[PlanPoint]) -> Option<[Block; 2]> {
    let inside: Vec<(usize, &PlanPoint)> =
        block.points.iter().filter_map(|number| Some((*number, points.get(*number)?))).collect();
    let mut end = 0;
    // (place in `inside`, whether there is a gap before it), wherever another address begins.
    let mut cuts: Vec<(usize, bool)> = Vec::new();
    for (place, pair) in inside.windows(2).enumerate() {
        let [(_, before), (_, after)] = pair else { continue };
        end = before.end().max(end);
        if (before.address, before.width) != (after.address, after.width) {
            cuts.push((place + 1, u32::from(after.address) > end));
        }
    }
    let has_gaps = cuts.iter().any(|(_, is_gap)| *is_gap);
    let middle = inside.len() / 2;
    let fitting = cuts.iter().filter(|(_, is_gap)| *is_gap || !has_gaps);
    let (cut, _) = fitting.min_by_key(|(place, _)| place.abs_diff(middle))?;
    let (left, right) = inside.split_at_checked(*cut)?;
    Some([gathered(left)?, gathered(right)?])
}

fn gathered(points: &[(usize, &PlanPoint)]) -> Option<Block> {
    let ((number, first), rest) = points.split_first()?;
    let mut block = Block::of(*number, first);
    for (number, point) in rest {
        block.take(*number, point);
    }
    Some(block)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::config::AddressRange;
    use Table::{Coil, Discrete, Holding, Input};

    const SECOND: Duration = Duration::from_secs(1);

    fn point(table: Table, address: u16, width: u16) -> PlanPoint {
        PlanPoint { table, address, width, interval: SECOND }
    }

    fn limits(registers_max: u16, gap: u16, forbidden: &[(Table, u16, u16)]) -> RequestLimits {
        let range =
            |(table, first, last): &(Table, u16, u16)| AddressRange { table: *table, first: *first, last: *last };
        RequestLimits {
            registers_max,
            gap,
            forbidden: forbidden.iter().map(range).collect(),
            ..RequestLimits::default()
        }
    }

    /// The plan as a text: `holding 100+13 every 1s: 0 1 2`.
    fn shown(points: &[PlanPoint], limits: &RequestLimits) -> String {
        let line = |block: &Block| {
            let numbers: Vec<String> = block.points.iter().map(usize::to_string).collect();
            let (table, every) = (block.table.word(), crate::config::duration_text(block.interval));
            format!("{table} {}+{} every {every}: {}\n", block.address, block.quantity, numbers.join(" "))
        };
        requests(points, limits).iter().map(line).collect()
    }

    #[test]
    fn neighbours_and_small_gaps_become_one_request() {
        let points = [point(Holding, 100, 2), point(Holding, 102, 1), point(Holding, 119, 2)];
        assert_eq!(shown(&points, &RequestLimits::default()), "holding 100+21 every 1s: 0 1 2\n");
        let points = [point(Holding, 0, 1), point(Holding, 18, 1)];
        assert_eq!(shown(&points, &RequestLimits::default()), "holding 0+1 every 1s: 0\nholding 18+1 every 1s: 1\n");
        let points = [point(Holding, 9, 1), point(Holding, 0, 1)];
        assert_eq!(shown(&points, &RequestLimits::default()), "holding 0+10 every 1s: 1 0\n");
        assert_eq!(shown(&points, &limits(125, 7, &[])), "holding 0+1 every 1s: 1\nholding 9+1 every 1s: 0\n");
        let points = [point(Holding, 5, 4), point(Holding, 5, 2), point(Holding, 6, 1)];
        assert_eq!(shown(&points, &limits(125, 0, &[])), "holding 5+4 every 1s: 0 1 2\n");
    }

    #[test]
    fn a_request_is_never_longer_than_the_specification_or_the_device_allows() {
        let registers: Vec<_> = (0..200).map(|address| point(Holding, address, 1)).collect();
        let quantities = |points: &[PlanPoint], limits: &RequestLimits| -> Vec<u16> {
            requests(points, limits).iter().map(|block| block.quantity).collect()
        };
        assert_eq!(quantities(&registers, &RequestLimits::default()), [125, 75]);
        assert_eq!(quantities(&registers, &limits(64, 16, &[])), [64, 64, 64, 8]);
        let pairs: Vec<_> = (0..100).map(|n| point(Holding, n * 2, 2)).collect();
        assert_eq!(quantities(&pairs, &RequestLimits::default()), [124, 76]);
        let coils: Vec<_> = (0..2001).map(|address| point(Coil, address, 1)).collect();
        assert_eq!(quantities(&coils, &RequestLimits::default()), [2000, 1]);
        let few_bits = RequestLimits { bits_max: 800, ..RequestLimits::default() };
        assert_eq!(quantities(&coils, &few_bits), [800, 800, 401]);
        let last = [point(Holding, 65_535, 1), point(Holding, 65_530, 4)];
        assert_eq!(shown(&last, &RequestLimits::default()), "holding 65530+6 every 1s: 1 0\n");
    }

    #[test]
    fn tables_and_intervals_are_not_mixed() {
        let slow = PlanPoint { interval: SECOND * 10, ..point(Holding, 1, 1) };
        let points = [point(Holding, 0, 1), slow, point(Input, 1, 1), point(Coil, 1, 1), point(Discrete, 1, 1)];
        assert_eq!(
            shown(&points, &RequestLimits::default()),
            "coil 1+1 every 1s: 3\ndiscrete 1+1 every 1s: 4\ninput 1+1 every 1s: 2\nholding 0+1 every 1s: 0\n\
             holding 1+1 every 10s: 1\n"
        );
    }

    #[test]
    fn a_gap_with_a_forbidden_address_is_asked_around() {
        let points =
            [point(Holding, 0, 2), point(Holding, 4, 2), point(Holding, 10, 2), point(Input, 4, 1), point(Input, 6, 1)];
        assert_eq!(
            shown(&points, &limits(125, 16, &[(Holding, 6, 7)])),
            "input 4+3 every 1s: 3 4\nholding 0+6 every 1s: 0 1\nholding 10+2 every 1s: 2\n"
        );
    }

    /// What an inverter's manual looks like: runs of values with holes between them, in both tables, and flags.
    #[test]
    fn a_map_of_four_hundred_points_needs_at_most_eight_requests() {
        let mut points = Vec::new();
        points.extend((0..150).map(|n| point(Holding, n * 2 + n / 10 * 4, 2)));
        points.extend((0..150).map(|n| point(Input, 1000 + n + n / 25 * 10, 1)));
        points.extend((0..100).map(|n| point(Coil, n * 7, 1)));
        assert_eq!(points.len(), 400);
        let plan = requests(&points, &RequestLimits::default());
        let golden: Vec<(&str, u16, u16, usize)> =
            plan.iter().map(|b| (b.table.word(), b.address, b.quantity, b.points.len())).collect();
        assert_eq!(
            golden,
            [
                ("coil", 0, 694, 100),
                ("input", 1000, 125, 95),
                ("input", 1125, 75, 55),
                ("holding", 0, 124, 52),
                ("holding", 124, 124, 52),
                ("holding", 248, 108, 46),
            ]
        );
    }

    #[test]
    fn a_refused_request_is_cut_at_its_gaps_and_then_in_the_middle() {
        let points = [
            point(Holding, 0, 2),
            point(Holding, 2, 1),
            point(Holding, 8, 1),
            point(Holding, 9, 1),
            point(Holding, 9, 1),
        ];
        let [whole] = requests(&points, &RequestLimits::default()).try_into().unwrap();
        let [left, right] = halves(&whole, &points).unwrap();
        assert_eq!((left.address, left.quantity, &*left.points), (0, 3, &[0, 1][..]));
        assert_eq!((right.address, right.quantity, &*right.points), (8, 2, &[2, 3, 4][..]));
        let [first, second] = halves(&right, &points).unwrap();
        assert_eq!((first.address, &*first.points), (8, &[2][..]));
        assert_eq!((second.address, &*second.points), (9, &[3, 4][..]));
        assert!(!is_divisible(&second, &points), "two points of one register are refused together");
        let [first, second] = halves(&left, &points).unwrap();
        assert_eq!((first.quantity, second.quantity), (2, 1));
    }

    fn any_points() -> impl Strategy<Value = Vec<PlanPoint>> {
        let table = prop_oneof![Just(Coil), Just(Discrete), Just(Input), Just(Holding)];
        // Some crowd together, so that requests fill up; some stand anywhere.
        let address = prop_oneof![0u16..400, 65_000u16..=65_535, any::<u16>()];
        let interval = prop_oneof![Just(SECOND), Just(SECOND * 10)];
        let one = (table, address, 1u16..=8, interval).prop_map(|(table, address, width, interval)| {
            let width = if table.is_bits() { 1 } else { width.min((65_536 - u32::from(address)).min(8) as u16) };
            PlanPoint { table, address, width, interval }
        });
        prop::collection::vec(one, 0..120)
    }

    fn any_limits() -> impl Strategy<Value = RequestLimits> {
        let forbidden = (prop_oneof![Just(Coil), Just(Input), Just(Holding)], 0u16..400, 0u16..20)
            .prop_map(|(table, first, more)| AddressRange { table, first, last: first + more });
        (8u16..=125, 8u16..=2000, 0u16..=124, prop::collection::vec(forbidden, 0..12)).prop_map(
            |(registers_max, bits_max, gap, forbidden)| RequestLimits { registers_max, bits_max, gap, forbidden },
        )
    }

    fn expect_legal(blocks: &[Block], points: &[PlanPoint], limits: &RequestLimits) {
        let mut seen = BTreeSet::new();
        for block in blocks {
            assert!(block.quantity >= 1 && block.quantity <= limits.quantity_max(block.table), "{block:?}");
            assert!(block.end() <= 65_536, "{block:?}");
            assert!(!limits.forbids(block.table, u32::from(block.address), block.end() - 1), "{block:?}");
            for number in &block.points {
                let point = &points[*number];
                assert!(seen.insert(*number), "point {number} is read twice");
                assert_eq!((point.table, point.interval), (block.table, block.interval));
                assert!(block.address <= point.address && point.end() <= block.end(), "{block:?} {point:?}");
            }
            // Nothing is read for nobody at either end.
            let first = block.points.iter().map(|number| points[*number].address).min();
            let end = block.points.iter().map(|number| points[*number].end()).max();
            assert_eq!((first, end), (Some(block.address), Some(block.end())), "{block:?}");
        }
        assert_eq!(seen.len(), points.len(), "every point is read");
    }

    proptest! {
        #[test]
        fn every_point_is_read_once_and_no_request_is_illegal(points in any_points(), limits in any_limits()) {
            // The configuration refuses a point on a forbidden address.
            let points: Vec<PlanPoint> = points
                .into_iter()
                .filter(|point| !limits.forbids(point.table, u32::from(point.address), point.end() - 1))
                .collect();
            let mut blocks = requests(&points, &limits);
            expect_legal(&blocks, &points, &limits);
            // The same holds after any number of refusals, which come to an end.
            for _ in 0..300 {
                let Some(place) = blocks.iter().position(|block| is_divisible(block, &points)) else { break };
                let parts = halves(&blocks[place], &points).unwrap();
                blocks.splice(place..=place, parts);
                expect_legal(&blocks, &points, &limits);
            }
            prop_assert!(!blocks.iter().any(|block| is_divisible(block, &points)));
        }
    }
}
