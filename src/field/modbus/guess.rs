//! Which type, order, scale and address make the registers say what the device's display shows. Pure.
//!
//! Promises: what is offered is what the gateway would read, because the gateway's own decoder reads it; the plainest
//! explanation comes first; nothing is offered that does not fit.

use std::fmt::Write as _;
use std::num::NonZeroU16;

use super::decode;
use crate::config::{Meaning, ModbusPoint, PointKind, Table, WordOrder};
use crate::message::Value;

/// Types, and how far each is from what most devices have.
const KINDS: [(PointKind, f64); 12] = [
    (PointKind::F32, 0.0),
    (PointKind::U16, 0.0),
    (PointKind::I16, 0.2),
    (PointKind::U32, 0.6),
    (PointKind::I32, 0.7),
    (PointKind::F64, 0.8),
    (PointKind::Bcd16, 0.9),
    (PointKind::Bcd32, 1.4),
    (PointKind::F16, 1.7),
    (PointKind::U64, 2.0),
    (PointKind::I64, 2.1),
    (PointKind::Bcd64, 2.6),
];
/// Orders, and how far each is from what most devices have.
const ORDERS: [(WordOrder, f64); 4] =
    [(WordOrder::Abcd, 0.0), (WordOrder::Cdab, 0.5), (WordOrder::Dcba, 1.5), (WordOrder::Badc, 1.6)];
/// Scales of whole numbers. Real numbers are sent as they are, or in thousands of what the display shows.
const WHOLE_SCALES: [f64; 7] = [1.0, 0.1, 0.01, 0.001, 10.0, 100.0, 1000.0];
const REAL_SCALES: [f64; 3] = [1.0, 0.001, 1000.0];
/// A value that moves between the look at the display and the read may be off by this share of itself.
const DRIFT: f64 = 0.005;
/// The widest number, in registers.
pub const WIDTH_MAX: u16 = 4;
/// The longest text that is looked for.
const TEXT_BYTES_MAX: usize = 32;

/// Registers that were read, from an address on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Which table.
    pub table: Table,
    /// Address of the first.
    pub first: u16,
    /// What stood there.
    pub words: Vec<u16>,
}

impl Window {
    fn at(&self, address: u16, width: u16) -> Option<&[u16]> {
        let start = usize::from(address.checked_sub(self.first)?);
        self.words.get(start..start + usize::from(width))
    }
}

/// What the person sees.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    /// A number as it stands on the display; `step` = one of its last digit.
    Number {
        /// The number.
        value: f64,
        /// One of its last digit.
        step: f64,
    },
    /// Somewhere from here to there.
    Between(f64, f64),
    /// A text.
    Text(String),
}

impl Shown {
    /// Reads `21.5`, `1,234` (a decimal comma), or a text.
    pub fn parse(text: &str) -> Shown {
        let plain = text.trim().replace(',', ".");
        let value = plain.parse::<f64>().ok().filter(|value| value.is_finite());
        let Some(value) = value else { return Shown::Text(text.trim().to_owned()) };
        let digits = plain.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        Shown::Number { value, step: 10_f64.powi(-i32::try_from(digits).unwrap_or(0)) }
    }

    /// How far a value is from what is shown, 0 being on it; `None` where that is too far.
    fn distance(&self, value: f64) -> Option<f64> {
        let distance = match self {
            Shown::Number { value: shown, step } => {
                let off = (value - shown).abs();
                // Displays round, or cut.
                let on_it = step / 2.0 * (1.0 + 1e-9);
                if off <= on_it {
                    return Some(0.0);
                }
                off / step.max(shown.abs() * DRIFT)
            }
            Shown::Between(low, high) => return (*low..=*high).contains(&value).then_some(0.0),
            Shown::Text(_) => return None,
        };
        // What is on it to the last digit is hardly so by chance.
        (distance <= 1.0).then_some(1.0 + distance)
    }

    /// Decimals of the number.
    fn step(&self) -> f64 {
        if let Shown::Number { step, .. } = self { *step } else { 1.0 }
    }
}

/// An explanation.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The point that reads it so.
    pub point: ModbusPoint,
    /// What it reads.
    pub value: Value,
    /// How far it is from the plainest: less is better.
    pub penalty: f64,
}

/// What fits, the plainest first. `asked` is where the person looked; `windows` are the registers around it.
pub fn fits(windows: &[Window], asked: (Table, u16), shown: &Shown) -> Vec<Candidate> {
    let mut found = Vec::new();
    for window in windows {
        let table_penalty = if window.table == asked.0 { 0.0 } else { 2.5 };
        let end = window.first.saturating_add(u16::try_from(window.words.len()).unwrap_or(u16::MAX));
        // The register itself, and one to each side: manuals count from 0 or from 1.
        for address in asked.1.saturating_sub(1)..=asked.1.saturating_add(1) {
            let place_penalty = match i32::from(address) - i32::from(asked.1) {
                0 => 0.0,
                // A manual that counts from 1 is the usual mistake.
                -1 => 1.0,
                _ => 1.8,
            };
            if address < window.first || address >= end {
                continue;
            }
            found.extend(at(window, address, shown).map(|candidate| Candidate {
                penalty: candidate.penalty + table_penalty + place_penalty,
                ..candidate
            }));
        }
    }
    found.sort_by(|one, other| one.penalty.total_cmp(&other.penalty));
    found
}

fn at<'w>(window: &'w Window, address: u16, shown: &'w Shown) -> Box<dyn Iterator<Item = Candidate> + 'w> {
    if let Shown::Text(text) = shown {
        return Box::new(text_at(window, address, text).into_iter());
    }
    let readings = KINDS.iter().flat_map(move |(kind, kind_penalty)| {
        orders(*kind).filter_map(move |(order, order_penalty)| {
            let words = window.at(address, kind.width())?;
            Some((plain(window.table, address, *kind, order), words, kind_penalty + order_penalty))
        })
    });
    Box::new(readings.flat_map(move |(point, words, penalty)| {
        let is_real = matches!(point.kind, PointKind::F16 | PointKind::F32 | PointKind::F64);
        let scales = if is_real { REAL_SCALES.as_slice() } else { WHOLE_SCALES.as_slice() };
        scales.iter().filter_map(move |scale| {
            let point = ModbusPoint { meaning: Meaning { scale: *scale, ..Meaning::default() }, ..point.clone() };
            let value = decode::registers(&point, words).ok()?.value;
            let number = as_f64(&value)?;
            let distance = shown.distance(number)?;
            // A number without any weight fits a wide range by chance.
            let chance = if number != 0.0 && number.abs() < 1e-6 { 5.0 } else { 0.0 };
            let penalty = penalty + distance + chance + scale_penalty(*scale, is_real, shown);
            Some(Candidate { point, value, penalty })
        })
    }))
}

fn text_at(window: &Window, address: u16, text: &str) -> Vec<Candidate> {
    let registers = u16::try_from(text.len().min(TEXT_BYTES_MAX).div_ceil(2)).ok().and_then(NonZeroU16::new);
    let Some(registers) = registers else { return Vec::new() };
    let kind = PointKind::String { registers };
    let reads = [(WordOrder::Abcd, 0.0), (WordOrder::Badc, 1.0)].into_iter().filter_map(|(order, penalty)| {
        let point = plain(window.table, address, kind, order);
        let value = decode::registers(&point, window.at(address, registers.get())?).ok()?.value;
        let Value::Text(read) = &value else { return None };
        let is_it = read.trim().eq_ignore_ascii_case(text) || read.trim().starts_with(text);
        is_it.then_some(Candidate { point, value, penalty })
    });
    reads.collect()
}

/// The orders that make a difference for a type.
fn orders(kind: PointKind) -> impl Iterator<Item = (WordOrder, f64)> {
    let is_single = kind.width() == 1;
    ORDERS.into_iter().filter(move |(order, _)| !is_single || matches!(order, WordOrder::Abcd | WordOrder::Badc))
}

fn scale_penalty(scale: f64, is_real: bool, shown: &Shown) -> f64 {
    if is_real {
        return if scale == 1.0 { 0.0 } else { 2.0 };
    }
    // Whole numbers count the last digit of the display, most of the time: 215 for 21.5.
    let digits = (scale / shown.step()).log10().abs();
    let is_larger = if scale > 1.0 { 1.0 } else { 0.0 };
    digits * 0.6 + is_larger
}

fn plain(table: Table, address: u16, kind: PointKind, order: WordOrder) -> ModbusPoint {
    ModbusPoint::plain("value", table, address, kind, order)
}

fn as_f64(value: &Value) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "compared with what stands on a display, which has fewer digits")]
    match value {
        Value::Int(number) => Some(*number as f64),
        Value::Uint(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::Null | Value::Bool(_) | Value::Text(_) => None,
    }
}

/// The registers at an address under every type and order, as a table for a person.
pub fn table(window: &Window, address: u16) -> String {
    let mut text = format!("{:<5}", "");
    for (order, _) in ORDERS {
        let _infallible = write!(text, " {:>24}", order.word());
    }
    text.push('\n');
    for (kind, _) in KINDS {
        let cells: Vec<String> = ORDERS
            .iter()
            .map(|(order, _)| {
                if orders(kind).all(|(known, _)| known != *order) {
                    return String::new();
                }
                let point = plain(window.table, address, kind, *order);
                let read = window.at(address, kind.width()).map(|words| decode::registers(&point, words));
                match read {
                    None => "-".to_owned(),
                    Some(Ok(decoded)) => shown_value(&decoded.value),
                    Some(Err(_)) => "no number".to_owned(),
                }
            })
            .collect();
        let _infallible = write!(text, "{:<5}", kind.word());
        for cell in cells {
            let _infallible = write!(text, " {cell:>24}");
        }
        text.push('\n');
    }
    text
}

/// A value for a person.
pub fn shown_value(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(is_on) => is_on.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Float(number) if *number != 0.0 && !(1e-4..1e15).contains(&number.abs()) => format!("{number:e}"),
        Value::Float(number) => number.to_string(),
        Value::Text(text) => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(words: &[u16], first: u16, asked: u16, shown: &str) -> (u16, PointKind, WordOrder, f64) {
        let windows = [Window { table: Table::Holding, first, words: words.to_vec() }];
        let found = fits(&windows, (Table::Holding, asked), &Shown::parse(shown));
        let point = &found.first().unwrap_or_else(|| panic!("nothing fits {shown}")).point;
        (point.address, point.kind, point.order, point.meaning.scale)
    }

    fn around(words: &[u16]) -> Vec<u16> {
        [&[0x1234][..], words, &[0x4321, 0x9999, 0x2222, 0x7777, 0x5555]].concat()
    }

    #[test]
    fn every_order_of_a_real_number_is_found() {
        use WordOrder::{Abcd, Badc, Cdab, Dcba};
        // 21.5 is 0x41AC0000, 123.456 is 0x42F6E979.
        for (order, words) in
            [(Abcd, [0x42F6, 0xE979]), (Cdab, [0xE979, 0x42F6]), (Badc, [0xF642, 0x79E9]), (Dcba, [0x79E9, 0xF642])]
        {
            assert_eq!(best(&around(&words), 99, 100, "123.5"), (100, PointKind::F32, order, 1.0), "{order:?}");
        }
        assert_eq!(best(&around(&[0x41AC, 0]), 99, 100, "21,5"), (100, PointKind::F32, Abcd, 1.0));
    }

    #[test]
    fn scales_signs_and_widths_are_found() {
        use PointKind::{I16, U16, U32};
        assert_eq!(best(&around(&[215, 0x1111]), 99, 100, "21.5"), (100, U16, WordOrder::Abcd, 0.1));
        assert_eq!(best(&around(&[2301, 0x1111]), 99, 100, "230.1"), (100, U16, WordOrder::Abcd, 0.1));
        assert_eq!(best(&around(&[0xFF38, 0x1111]), 99, 100, "-20.0"), (100, I16, WordOrder::Abcd, 0.1));
        let (address, kind, order, scale) = best(&around(&[0x0001, 0xE240]), 99, 100, "123456");
        assert_eq!((address, kind, order, scale), (100, U32, WordOrder::Abcd, 1.0));
        assert_eq!(best(&around(&[0xE240, 0x0001]), 99, 100, "123456").2, WordOrder::Cdab);
        assert_eq!(best(&around(&[0xD700, 0x1111]), 99, 100, "215").2, WordOrder::Badc);
    }

    #[test]
    fn decimal_digits_and_half_floats_are_found_where_nothing_plainer_fits() {
        use PointKind::{Bcd16, Bcd32, Bcd64, F16, U16};
        use WordOrder::{Abcd, Badc, Cdab};
        assert_eq!(best(&around(&[0x1234, 0xBBBB]), 99, 100, "1234"), (100, Bcd16, Abcd, 1.0));
        assert_eq!(best(&around(&[0x7856, 0xBBBB]), 99, 100, "56.78"), (100, Bcd16, Badc, 0.01));
        assert_eq!(best(&around(&[0x0012, 0x3456]), 99, 100, "123456"), (100, Bcd32, Abcd, 1.0));
        assert_eq!(best(&around(&[0x3456, 0x0012]), 99, 100, "123456"), (100, Bcd32, Cdab, 1.0));
        let long = around(&[0x1234, 0x5678, 0x9012, 0x3456]);
        assert_eq!(best(&long, 99, 100, "1234567890123456"), (100, Bcd64, Abcd, 1.0));
        assert_eq!(best(&around(&[0x4D53, 0xBBBB]), 99, 100, "21.3"), (100, F16, Abcd, 1.0));
        // One digit is the same in both: what most devices have comes first. So it does where both fit otherwise.
        assert_eq!(best(&around(&[7, 0xBBBB]), 99, 100, "7").1, U16);
        assert_eq!(best(&around(&[0x2150, 0x0D66]), 99, 100, "215.0").1, Bcd16);
        let windows = [Window { table: Table::Holding, first: 100, words: vec![0x0ABC, 0x7E00, 0x7C00] }];
        let found = fits(&windows, (Table::Holding, 100), &Shown::Between(0.5, 5000.0));
        assert!(found.iter().all(|candidate| !matches!(candidate.point.kind, Bcd16 | Bcd32)), "A is no digit");
        let of_half = found.iter().filter(|candidate| candidate.point.kind == F16 && candidate.point.address > 100);
        assert_eq!(of_half.count(), 0, "neither NaN nor infinity is a number");
    }

    #[test]
    fn a_register_that_is_one_off_is_found() {
        let words = [0x42F6, 0xE979, 0x3333, 0x8888, 0x7777, 0x6666, 0x5555];
        assert_eq!(best(&words, 99, 100, "123.456").0, 99, "a manual that counts from 1");
        let words = [0x1234, 0x2345, 0x42F6, 0xE979, 0x3333, 0x8888, 0x7777];
        assert_eq!(best(&words, 99, 100, "123.456").0, 101);
    }

    #[test]
    fn a_display_that_rounds_and_a_value_that_moves_fit_and_others_do_not() {
        let shown = Shown::parse("21.5");
        assert_eq!(shown.distance(21.54), Some(0.0));
        assert!(shown.distance(21.6).is_some_and(|distance| distance > 0.0));
        assert_eq!(shown.distance(21.7), None);
        assert_eq!(Shown::Between(10.0, 30.0).distance(31.0), None);
    }

    #[test]
    fn texts_are_found() {
        let windows = [Window { table: Table::Input, first: 9, words: vec![0, 0x4D45, 0x5445, 0x5220, 0] }];
        let found = fits(&windows, (Table::Input, 10), &Shown::parse("METER"));
        assert_eq!(found[0].value, Value::Text("METER ".into()));
        assert!(fits(&windows, (Table::Input, 10), &Shown::parse("PUMP")).is_empty());
    }

    #[test]
    fn at_the_ends_of_the_table_nothing_overflows() {
        for (first, asked) in [(0, 0), (65_530, 65_535), (65_535, 65_535)] {
            let windows = [Window { table: Table::Holding, first, words: vec![7; 6] }];
            let found = fits(&windows, (Table::Holding, asked), &Shown::parse("7"));
            assert!(found.iter().all(|candidate| candidate.point.address >= first));
            assert!(table(&windows[0], asked).lines().count() > 8);
        }
    }
}
