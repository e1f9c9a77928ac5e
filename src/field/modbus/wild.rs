//! Values that no plant has, and the order of bytes under which they make sense: a wrong `order` looks like that. Pure.

use crate::config::{ModbusPoint, PointKind, WordOrder};

/// What measured values are between, zero apart; far narrower than what a float can hold.
const SMALLEST: f64 = 1e-10;
const LARGEST: f64 = 1e12;

/// A value under another order has to be this likely to be worth a word.
const LIKELY: std::ops::RangeInclusive<f64> = 1e-4..=1e7;

/// The other orders under which a value of this point would make sense, and that value; none where it makes sense as it is.
/// Only floats show it: of whole numbers every pattern is one that could be meant.
pub fn other_orders(point: &ModbusPoint, value: f64) -> Vec<(WordOrder, f64)> {
    let meaning = &point.meaning;
    let raw = (value - meaning.offset) / meaning.scale;
    if raw == 0.0 || !raw.is_finite() || (SMALLEST..=LARGEST).contains(&raw.abs()) {
        return Vec::new();
    }
    let bytes: Vec<u8> = match point.kind {
        #[expect(clippy::cast_possible_truncation, reason = "it came out of a float of this width")]
        PointKind::F32 => (raw as f32).to_be_bytes().to_vec(),
        PointKind::F64 => raw.to_be_bytes().to_vec(),
        _ => return Vec::new(),
    };
    let on_wire = arranged(&bytes, point.order);
    let orders = [WordOrder::Abcd, WordOrder::Cdab, WordOrder::Badc, WordOrder::Dcba];
    let others = orders.into_iter().filter(|order| *order != point.order);
    let read = others.filter_map(|order| {
        // Each order is its own inverse.
        let bytes = arranged(&on_wire, order);
        let raw = match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(four) => f32::from_be_bytes(four).to_string().parse().ok()?,
            Err(_longer) => f64::from_be_bytes(bytes.try_into().ok()?),
        };
        LIKELY.contains(&f64::abs(raw)).then_some((order, raw * meaning.scale + meaning.offset))
    });
    read.collect()
}

/// Bytes of a value in another order: words turned, bytes of each word swapped, or both.
fn arranged(bytes: &[u8], order: WordOrder) -> Vec<u8> {
    let (turns, swaps) = match order {
        WordOrder::Abcd => (false, false),
        WordOrder::Cdab => (true, false),
        WordOrder::Badc => (false, true),
        WordOrder::Dcba => (true, true),
    };
    let mut words: Vec<Vec<u8>> = bytes.chunks(2).map(<[u8]>::to_vec).collect();
    if turns {
        words.reverse();
    }
    if swaps {
        words.iter_mut().for_each(|word| word.reverse());
    }
    words.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Table;
    use crate::field::modbus::decode;
    use crate::message::Value;

    #[test]
    fn a_value_that_no_plant_has_is_found_under_the_order_that_was_meant() {
        let orders = [WordOrder::Abcd, WordOrder::Cdab, WordOrder::Badc, WordOrder::Dcba];
        let (mut noticed, mut tried) = (0, 0);
        for single in [21.5_f32, 50.0, 230.25, -40.0, 0.1, 1013.25, 3600.0] {
            let real: f64 = single.to_string().parse().unwrap();
            for (meant, written) in orders.into_iter().flat_map(|meant| orders.map(|written| (meant, written))) {
                for kind in [PointKind::F32, PointKind::F64] {
                    let mut point = ModbusPoint::plain("p", Table::Holding, 0, kind, written);
                    point.meaning.scale = 2.0;
                    let raw = match kind {
                        PointKind::F32 => single.to_be_bytes().to_vec(),
                        _ => real.to_be_bytes().to_vec(),
                    };
                    let wire = arranged(&raw, meant);
                    let words: Vec<u16> = wire.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
                    let Ok(decoded) = decode::registers(&point, &words) else { continue };
                    let Value::Float(shown) = decoded.value else { panic!("{decoded:?}") };
                    let others = other_orders(&point, shown);
                    if meant == written {
                        assert_eq!(others, [], "{real} is right as it is");
                        continue;
                    }
                    tried += 1;
                    let is_meant = |(order, value): &(WordOrder, f64)| {
                        *order == meant && (value - real * 2.0).abs() < 1e-9 * real.abs()
                    };
                    noticed += usize::from(others.iter().any(is_meant));
                }
            }
        }
        println!("{noticed} of {tried} wrong orders are noticed and named");
        assert!(noticed * 10 >= tried * 6, "{noticed} of {tried} wrong orders are noticed and named");
    }

    #[test]
    fn what_makes_sense_as_it_is_is_left_alone() {
        let point = ModbusPoint::plain("p", Table::Holding, 0, PointKind::F32, WordOrder::Abcd);
        for value in [0.0, 21.5, -40.0, 1e-9, 4e9, f64::NAN] {
            assert_eq!(other_orders(&point, value), [], "{value}");
        }
        let whole = ModbusPoint::plain("p", Table::Holding, 0, PointKind::U32, WordOrder::Abcd);
        assert_eq!(other_orders(&whole, 1e18), []);
    }
}
