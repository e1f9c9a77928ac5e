//! From registers and bits to a value. Pure.
//!
//! Promises: every type in every order is what the table in `ordered_bytes` says; what is no number, or what the device
//! calls none, is never passed on as one.

use super::digits::{from_bcd, half};
use crate::config::{BitRange, Meaning, ModbusPoint, PointKind, WordOrder};
use crate::message::Value;

/// Why registers are no value of a point's type.
pub type Refusal = &'static str;

const NOT_WHOLE: Refusal = "the answer does not hold the whole point";
const NOT_AVAILABLE: Refusal = "the device says that it has no value";
const NO_DIGIT: Refusal = "four bits of it are no decimal digit (BCD)";
const NO_NAME: &str = "the number has no name in `names`";

/// A value, and why it is not quite certain.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The value.
    pub value: Value,
    /// Something about it that its owner did not foresee.
    pub doubt: Option<&'static str>,
}

/// The value in `words`, which are exactly the point's registers.
pub fn registers(point: &ModbusPoint, words: &[u16]) -> Result<Decoded, Refusal> {
    if words.len() != usize::from(point.kind.width()) {
        return Err(NOT_WHOLE);
    }
    let (bytes, meaning) = (ordered_bytes(point, words), &point.meaning);
    match point.kind {
        PointKind::Bool => truth(meaning, &bytes),
        PointKind::U8 | PointKind::U16 | PointKind::U32 | PointKind::U64 => {
            let (raw, _) = whole(point, &bytes)?;
            unsigned(meaning, raw)
        }
        PointKind::I8 | PointKind::I16 | PointKind::I32 | PointKind::I64 => {
            let (raw, bits) = whole(point, &bytes)?;
            signed(meaning, sign_extended(raw, bits))
        }
        PointKind::Bcd16 | PointKind::Bcd32 | PointKind::Bcd64 => {
            let bits = bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
            if meaning.not_available.contains(&i128::from(bits)) {
                return Err(NOT_AVAILABLE);
            }
            let count = point.kind.bcd_digits().ok_or(NOT_WHOLE)?;
            unsigned(meaning, from_bcd(bits, count).ok_or(NO_DIGIT)?)
        }
        PointKind::F16 => {
            let bytes = fixed(&bytes).ok_or(NOT_WHOLE)?;
            let bits = u16::from_be_bytes(bytes);
            let raw = half(bits);
            available(meaning, u128::from(bits), raw)?;
            scaled(meaning, raw)
        }
        PointKind::F32 => {
            let bytes = fixed(&bytes).ok_or(NOT_WHOLE)?;
            let raw = widened(f32::from_be_bytes(bytes));
            available(meaning, u128::from(u32::from_be_bytes(bytes)), raw)?;
            scaled(meaning, raw)
        }
        PointKind::F64 => {
            let bytes = fixed(&bytes).ok_or(NOT_WHOLE)?;
            let raw = f64::from_be_bytes(bytes);
            available(meaning, u128::from(u64::from_be_bytes(bytes)), raw)?;
            scaled(meaning, raw)
        }
        PointKind::String { .. } => text(&bytes).map(Decoded::sure),
    }
}

/// The value of a coil or a discrete input.
pub fn bit(meaning: &Meaning, bit: bool) -> Result<Decoded, Refusal> {
    named(meaning, i128::from(bit)).unwrap_or(Ok(Decoded::sure(Value::Bool(bit))))
}

impl Decoded {
    fn sure(value: Value) -> Decoded {
        Decoded { value, doubt: None }
    }
}

/// A register as a truth: one bit of it, or whether it is not 0.
fn truth(meaning: &Meaning, bytes: &[u8]) -> Result<Decoded, Refusal> {
    let raw = u16::from_be_bytes(fixed(bytes).ok_or(NOT_WHOLE)?);
    if meaning.not_available.contains(&i128::from(raw)) {
        return Err(NOT_AVAILABLE);
    }
    let is_set = match meaning.bits {
        Some(BitRange { low, .. }) => u32::from(raw).checked_shr(u32::from(low)).unwrap_or(0) & 1 == 1,
        None => raw != 0,
    };
    bit(meaning, is_set)
}

/// The bits of a whole number, and how many they are. What the device calls not available is so before any bit of it is
/// looked at.
fn whole(point: &ModbusPoint, bytes: &[u8]) -> Result<(u64, u32), Refusal> {
    let kind_bits = u32::from(point.kind.whole_bits().ok_or(NOT_WHOLE)?);
    let all = bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)) & mask(kind_bits);
    let as_signed = i128::from(sign_extended(all, kind_bits));
    if point.meaning.not_available.iter().any(|code| *code == i128::from(all) || (*code < 0 && *code == as_signed)) {
        return Err(NOT_AVAILABLE);
    }
    Ok(match point.meaning.bits {
        None => (all, kind_bits),
        Some(BitRange { low, high }) => {
            let count = u32::from(high.saturating_sub(low)) + 1;
            (all.checked_shr(u32::from(low)).unwrap_or(0) & mask(count), count)
        }
    })
}

pub(super) fn mask(bits: u32) -> u64 {
    u64::MAX.checked_shr(64_u32.saturating_sub(bits)).unwrap_or(0)
}

fn sign_extended(raw: u64, bits: u32) -> i64 {
    let unused = 64_u32.saturating_sub(bits).min(63);
    raw.cast_signed().wrapping_shl(unused).wrapping_shr(unused)
}

/// A float is not available by its bits (`0x7FC00000`) or by its value (`-9999`).
fn available(meaning: &Meaning, bits: u128, value: f64) -> Result<(), Refusal> {
    #[expect(clippy::cast_precision_loss, reason = "compared with a float, which has no more digits")]
    let is_code = |code: &i128| u128::try_from(*code).is_ok_and(|code| code == bits) || *code as f64 == value;
    if meaning.not_available.iter().any(is_code) { Err(NOT_AVAILABLE) } else { Ok(()) }
}

/// The name of a whole number; `None` where the point has no names.
fn named(meaning: &Meaning, raw: i128) -> Option<Result<Decoded, Refusal>> {
    if meaning.names.is_empty() {
        return None;
    }
    let name = meaning.names.iter().find(|(number, _)| *number == raw).map(|(_, name)| name);
    // A number that nobody foresaw is told as it is: it may be the one that matters.
    let decoded = match name {
        Some(name) => Decoded::sure(Value::Text(name.to_string())),
        None => Decoded { value: Value::Text(raw.to_string()), doubt: Some(NO_NAME) },
    };
    Some(Ok(decoded))
}

/// The bytes of a value, most significant first. With the letters as they arrive:
///
/// | order | 16 bits | 32 bits | 64 bits | text |
/// |---|---|---|---|---|
/// | `abcd` | AB | ABCD | ABCDEFGH | as it arrives |
/// | `cdab` | AB | words swapped | four words in reverse | as it arrives |
/// | `badc` | bytes swapped | bytes swapped in each word | bytes swapped in each word | bytes swapped in each word |
/// | `dcba` | bytes swapped | all bytes in reverse | all bytes in reverse | bytes swapped in each word |
///
/// Text runs forward in every order: devices that swap the words of numbers do not turn their names around.
fn ordered_bytes(point: &ModbusPoint, words: &[u16]) -> Vec<u8> {
    let Layout { swaps_bytes, turns_words } = Layout::of(point);
    let pair = |word: &u16| if swaps_bytes { word.to_le_bytes() } else { word.to_be_bytes() };
    if turns_words { words.iter().rev().flat_map(pair).collect() } else { words.iter().flat_map(pair).collect() }
}

/// How the bytes of a value stand in its registers.
pub(super) struct Layout {
    swaps_bytes: bool,
    turns_words: bool,
}

impl Layout {
    pub(super) fn of(point: &ModbusPoint) -> Layout {
        let is_text = matches!(point.kind, PointKind::String { .. });
        Layout {
            swaps_bytes: matches!(point.order, WordOrder::Badc | WordOrder::Dcba),
            turns_words: matches!(point.order, WordOrder::Cdab | WordOrder::Dcba) && !is_text,
        }
    }

    /// The registers of bytes, most significant first: what `ordered_bytes` makes these bytes of.
    pub(super) fn words(&self, bytes: &[u8]) -> Vec<u16> {
        let word = |pair: &[u8]| match pair {
            [high, low] if self.swaps_bytes => u16::from_le_bytes([*high, *low]),
            [high, low] => u16::from_be_bytes([*high, *low]),
            _ => 0,
        };
        let words = bytes.chunks(2).map(word);
        if self.turns_words { words.rev().collect() } else { words.collect() }
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn unsigned(meaning: &Meaning, raw: u64) -> Result<Decoded, Refusal> {
    if let Some(named) = named(meaning, i128::from(raw)) {
        return named;
    }
    #[expect(clippy::cast_precision_loss, reason = "the owner asked for a real number by giving a scale")]
    if is_plain(meaning) { Ok(Decoded::sure(Value::Uint(raw))) } else { scaled(meaning, raw as f64) }
}

fn signed(meaning: &Meaning, raw: i64) -> Result<Decoded, Refusal> {
    if let Some(named) = named(meaning, i128::from(raw)) {
        return named;
    }
    #[expect(clippy::cast_precision_loss, reason = "the owner asked for a real number by giving a scale")]
    if is_plain(meaning) { Ok(Decoded::sure(Value::Int(raw))) } else { scaled(meaning, raw as f64) }
}

/// Whether the raw number is the value.
pub(super) fn is_plain(meaning: &Meaning) -> bool {
    let Meaning { scale, offset, clamp_min, clamp_max, .. } = meaning;
    *scale == 1.0 && *offset == 0.0 && clamp_min.is_none() && clamp_max.is_none()
}

pub(super) fn scaled(meaning: &Meaning, raw: f64) -> Result<Decoded, Refusal> {
    if raw.is_nan() {
        return Err("the device says that this is not a number");
    }
    if raw.is_infinite() {
        return Err("the device says that this is infinite");
    }
    let value =
        if meaning.scale == 1.0 && meaning.offset == 0.0 { raw } else { times(raw, meaning.scale) + meaning.offset };
    if !value.is_finite() {
        return Err("the scaled value is too large for a number");
    }
    let value = meaning.clamp_min.map_or(value, |least| value.max(least));
    let value = meaning.clamp_max.map_or(value, |most| value.min(most));
    Ok(Decoded::sure(Value::Float(value)))
}

/// `raw × scale`; a scale such as 0.1 or 0.001 divides by 10 or 1000 instead, so that 3 × 0.1 is 0.3 and not
/// 0.30000000000000004: 0.1 has no exact binary form, 10 has.
fn times(raw: f64, scale: f64) -> f64 {
    let inverse = (1.0 / scale).round();
    if (2.0..=1e15).contains(&inverse.abs()) && 1.0 / inverse == scale { raw / inverse } else { raw * scale }
}

/// The `f64` that is written like the `f32`: a device that says 21.3 is not made to say 21.299999237060547.
/// It becomes the same `f32` again.
fn widened(raw: f32) -> f64 {
    if raw.is_finite() { raw.to_string().parse().unwrap_or(f64::from(raw)) } else { f64::from(raw) }
}

fn text(bytes: &[u8]) -> Result<Value, Refusal> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = bytes.get(..end).unwrap_or_default();
    match std::str::from_utf8(text) {
        Ok(text) => Ok(Value::Text(text.to_owned())),
        Err(_) => Err("the text is not UTF-8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WordOrder::{Abcd, Badc, Cdab, Dcba};
    use std::num::NonZeroU16;
    use std::sync::Arc;

    use crate::config::{Report, Table};

    const ORDERS: [WordOrder; 4] = [Abcd, Cdab, Badc, Dcba];

    fn point(kind: PointKind, order: WordOrder, meaning: Meaning) -> ModbusPoint {
        ModbusPoint {
            name: Arc::from("p"),
            table: Table::Holding,
            address: 0,
            kind,
            order,
            meaning,
            unit: None,
            poll: None,
            report: Report::default(),
            write: None,
        }
    }

    fn plain(kind: PointKind, order: WordOrder) -> ModbusPoint {
        point(kind, order, Meaning::default())
    }

    fn read(kind: PointKind, order: WordOrder, words: &[u16]) -> Value {
        registers(&plain(kind, order), words).unwrap().value
    }

    fn string(registers: u16) -> PointKind {
        PointKind::String { registers: NonZeroU16::new(registers).unwrap() }
    }

    #[test]
    fn sixteen_bits_in_every_order() {
        for (order, word) in [(Abcd, 0xFF38), (Cdab, 0xFF38), (Badc, 0x38FF), (Dcba, 0x38FF)] {
            assert_eq!(read(PointKind::U16, order, &[word]), Value::Uint(0xFF38), "{order:?}");
            assert_eq!(read(PointKind::I16, order, &[word]), Value::Int(-200), "{order:?}");
        }
        for order in ORDERS {
            assert_eq!(read(PointKind::Bool, order, &[0]), Value::Bool(false));
            assert_eq!(read(PointKind::Bool, order, &[0x0100]), Value::Bool(true));
        }
    }

    #[test]
    fn thirty_two_bits_in_every_order() {
        // 0x12345678 = 305419896; 123456.789 as a float is 0x47F12065.
        let cases = [
            (Abcd, [0x1234, 0x5678], [0x47F1, 0x2065]),
            (Cdab, [0x5678, 0x1234], [0x2065, 0x47F1]),
            (Badc, [0x3412, 0x7856], [0xF147, 0x6520]),
            (Dcba, [0x7856, 0x3412], [0x6520, 0xF147]),
        ];
        for (order, whole, float) in cases {
            assert_eq!(read(PointKind::U32, order, &whole), Value::Uint(305_419_896), "{order:?}");
            assert_eq!(read(PointKind::I32, order, &whole), Value::Int(305_419_896), "{order:?}");
            assert_eq!(read(PointKind::F32, order, &float), Value::Float(123_456.79), "{order:?}");
            assert_eq!(read(PointKind::I32, order, &[0xFFFF, 0xFFFF]), Value::Int(-1), "{order:?}");
        }
        assert_eq!(read(PointKind::I32, Cdab, &[0xFF38, 0xFFFF]), Value::Int(-200));
    }

    #[test]
    fn sixty_four_bits_in_every_order() {
        // 0x0102030405060708; -2.5 as a double is 0xC004000000000000, 1.1 is 0x3FF199999999999A.
        let cases = [
            (Abcd, [0x0102, 0x0304, 0x0506, 0x0708], [0x3FF1, 0x9999, 0x9999, 0x999A]),
            (Cdab, [0x0708, 0x0506, 0x0304, 0x0102], [0x999A, 0x9999, 0x9999, 0x3FF1]),
            (Badc, [0x0201, 0x0403, 0x0605, 0x0807], [0xF13F, 0x9999, 0x9999, 0x9A99]),
            (Dcba, [0x0807, 0x0605, 0x0403, 0x0201], [0x9A99, 0x9999, 0x9999, 0xF13F]),
        ];
        for (order, whole, float) in cases {
            assert_eq!(read(PointKind::U64, order, &whole), Value::Uint(0x0102_0304_0506_0708), "{order:?}");
            assert_eq!(read(PointKind::I64, order, &whole), Value::Int(0x0102_0304_0506_0708), "{order:?}");
            assert_eq!(read(PointKind::F64, order, &float), Value::Float(1.1), "{order:?}");
            assert_eq!(read(PointKind::U64, order, &[0xFFFF; 4]), Value::Uint(u64::MAX), "{order:?}");
            assert_eq!(read(PointKind::I64, order, &[0xFFFF; 4]), Value::Int(-1), "{order:?}");
        }
        assert_eq!(read(PointKind::F64, Abcd, &[0xC004, 0, 0, 0]), Value::Float(-2.5));
    }

    #[test]
    fn text_ends_at_its_first_nul_and_never_runs_backwards() {
        for (order, words) in [
            (Abcd, [0x4142, 0x4300, 0x5858]),
            (Cdab, [0x4142, 0x4300, 0x5858]),
            (Badc, [0x4241, 0x0043, 0x5858]),
            (Dcba, [0x4241, 0x0043, 0x5858]),
        ] {
            assert_eq!(read(string(3), order, &words), Value::Text("ABC".into()), "{order:?}");
        }
        assert_eq!(read(string(1), Abcd, &[0xC2B0]), Value::Text("°".into()));
        assert_eq!(read(string(1), Abcd, &[0]), Value::Text(String::new()));
        assert_eq!(registers(&plain(string(1), Abcd), &[0xB041]), Err("the text is not UTF-8"));
    }

    #[test]
    fn scale_and_offset_give_the_number_that_a_person_expects() {
        let scaled = |kind, scale, offset, words: &[u16]| {
            registers(&point(kind, Abcd, Meaning { scale, offset, ..Meaning::default() }), words).unwrap().value
        };
        assert_eq!(scaled(PointKind::U16, 0.1, 0.0, &[3]), Value::Float(0.3));
        assert_eq!(scaled(PointKind::U16, 0.001, 0.0, &[2301]), Value::Float(2.301));
        assert_eq!(scaled(PointKind::I16, 0.1, 0.0, &[0xFF38]), Value::Float(-20.0));
        assert_eq!(scaled(PointKind::I16, -0.1, 0.0, &[3]), Value::Float(-0.3));
        assert_eq!(scaled(PointKind::U16, 2.5, -40.0, &[100]), Value::Float(210.0));
        assert_eq!(scaled(PointKind::U16, 1.0, 0.5, &[1]), Value::Float(1.5));
        assert_eq!(scaled(PointKind::U16, 0.0, 7.0, &[1]), Value::Float(7.0));
        assert_eq!(scaled(PointKind::U64, 1.0, 0.0, &[0xFFFF; 4]), Value::Uint(u64::MAX), "no digits lost unasked");
        assert_eq!(scaled(PointKind::F32, 1.0, 0.0, &[0x41AA, 0x6666]), Value::Float(21.3));
    }

    #[test]
    fn what_is_no_number_is_refused_in_every_order() {
        let cases = [
            (PointKind::F32, vec![0x7FC0, 0]),
            (PointKind::F32, vec![0x7F80, 0]),
            (PointKind::F32, vec![0xFF80, 0]),
            (PointKind::F64, vec![0x7FF8, 0, 0, 0]),
            (PointKind::F64, vec![0x7FF0, 0, 0, 0]),
            (PointKind::F64, vec![0xFFF0, 0, 0, 1]),
        ];
        for (kind, words) in cases {
            for order in ORDERS {
                let mut arranged: Vec<u16> = words.clone();
                if matches!(order, Cdab | Dcba) {
                    arranged.reverse();
                }
                if matches!(order, Badc | Dcba) {
                    arranged.iter_mut().for_each(|word| *word = word.swap_bytes());
                }
                assert!(registers(&plain(kind, order), &arranged).is_err(), "{kind:?} {order:?}");
            }
        }
        let huge = point(PointKind::F64, Abcd, Meaning { scale: 1e300, ..Meaning::default() });
        assert!(registers(&huge, &[0x7FE0, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_point_whose_registers_are_missing_is_refused() {
        for kind in [PointKind::Bool, PointKind::U16, PointKind::U32, PointKind::F64, string(3)] {
            for count in 0..6 {
                let outcome = registers(&plain(kind, Abcd), &vec![0x4141; count]);
                assert_eq!(outcome.is_ok(), count == usize::from(kind.width()), "{kind:?} of {count}");
            }
        }
    }

    #[test]
    fn a_byte_of_a_register_is_a_number_in_either_half() {
        for (order, low) in [(Abcd, true), (Cdab, true), (Badc, false), (Dcba, false)] {
            let words: &[u16] = if low { &[0x12FE] } else { &[0xFE12] };
            assert_eq!(read(PointKind::U8, order, words), Value::Uint(0xFE), "{order:?}");
            assert_eq!(read(PointKind::I8, order, words), Value::Int(-2), "{order:?}");
        }
    }

    #[test]
    fn bits_and_bit_fields_are_taken_out_of_the_ordered_number() {
        let field = |kind, order, low, high, words: &[u16]| {
            registers(&point(kind, order, Meaning { bits: Some(BitRange { low, high }), ..Meaning::default() }), words)
                .unwrap()
                .value
        };
        for bit in 0..16 {
            assert_eq!(field(PointKind::Bool, Abcd, bit, bit, &[0xA5F0]), Value::Bool(0xA5F0_u16 >> bit & 1 == 1));
            assert_eq!(field(PointKind::Bool, Badc, bit, bit, &[0xF0A5]), Value::Bool(0xA5F0_u16 >> bit & 1 == 1));
        }
        assert_eq!(field(PointKind::U16, Abcd, 4, 7, &[0xA5F0]), Value::Uint(0xF));
        assert_eq!(field(PointKind::I16, Abcd, 4, 7, &[0xA5F0]), Value::Int(-1));
        assert_eq!(field(PointKind::I16, Abcd, 8, 11, &[0xA5F0]), Value::Int(5));
        assert_eq!(field(PointKind::U32, Cdab, 12, 19, &[0x5678, 0x1234]), Value::Uint(0x45));
        assert_eq!(field(PointKind::U64, Abcd, 0, 63, &[0xFFFF; 4]), Value::Uint(u64::MAX));
        assert_eq!(field(PointKind::I64, Abcd, 63, 63, &[0x8000, 0, 0, 0]), Value::Int(-1));
        let scaled = point(
            PointKind::U16,
            Abcd,
            Meaning { bits: Some(BitRange { low: 8, high: 15 }), scale: 0.1, ..Meaning::default() },
        );
        assert_eq!(registers(&scaled, &[0x0C00]).unwrap().value, Value::Float(1.2));
    }

    #[test]
    fn a_value_outside_of_the_clamp_becomes_its_edge() {
        let clamped = point(
            PointKind::I16,
            Abcd,
            Meaning { clamp_min: Some(0.0), clamp_max: Some(100.0), scale: 0.1, ..Meaning::default() },
        );
        for (word, expected) in [(0xFFFF, 0.0), (0, 0.0), (500, 50.0), (1000, 100.0), (1001, 100.0)] {
            assert_eq!(registers(&clamped, &[word]).unwrap().value, Value::Float(expected), "{word}");
        }
        let above = point(PointKind::F32, Abcd, Meaning { clamp_min: Some(0.0), ..Meaning::default() });
        assert_eq!(registers(&above, &[0xC120, 0]).unwrap().value, Value::Float(0.0));
        assert!(registers(&above, &[0x7FC0, 0]).is_err(), "what is no number is not clamped to one");
    }

    #[test]
    fn a_number_with_a_name_is_told_by_it_and_one_without_is_uncertain() {
        let names = [(0, "off".into()), (1, "auto".into()), (-1, "fault".into())];
        let meaning = Meaning { names: Arc::new(names), ..Meaning::default() };
        let of = |kind| point(kind, Abcd, meaning.clone());
        let text = |name: &str| Ok(Decoded::sure(Value::Text(name.to_owned())));
        assert_eq!(registers(&of(PointKind::U16), &[1]), text("auto"));
        assert_eq!(registers(&of(PointKind::I16), &[0xFFFF]), text("fault"));
        assert_eq!(registers(&of(PointKind::Bool), &[9]), text("auto"));
        assert_eq!(bit(&meaning, false), text("off"));
        let unknown = registers(&of(PointKind::U16), &[7]).unwrap();
        assert_eq!((unknown.value, unknown.doubt), (Value::Text("7".into()), Some(NO_NAME)));
        let part = Meaning { bits: Some(BitRange { low: 12, high: 13 }), ..meaning.clone() };
        let mode = point(PointKind::U16, Abcd, part);
        assert_eq!(registers(&mode, &[0x1FFF]), text("auto"));
    }

    #[test]
    fn what_the_device_calls_not_available_is_no_value() {
        let cases: [(PointKind, i128, &[u16]); 9] = [
            (PointKind::U16, 0xFFFF, &[0xFFFF]),
            (PointKind::I16, 0x8000, &[0x8000]),
            (PointKind::I16, -32_768, &[0x8000]),
            (PointKind::U8, 0xFF, &[0x00FF]),
            (PointKind::U32, 0xFFFF_FFFF, &[0xFFFF, 0xFFFF]),
            (PointKind::I32, 0x8000_0000, &[0x8000, 0]),
            (PointKind::U64, i128::from(u64::MAX), &[0xFFFF; 4]),
            (PointKind::F32, -9999, &[0xC61C, 0x3C00]),
            (PointKind::F32, 0x7F7F_FFFF, &[0x7F7F, 0xFFFF]),
        ];
        for (kind, code, words) in cases {
            let meaning = Meaning { not_available: Arc::new([code]), scale: 0.1, ..Meaning::default() };
            let none = point(kind, Abcd, meaning);
            assert_eq!(registers(&none, words), Err(NOT_AVAILABLE), "{kind:?} {code}");
            let mut other = words.to_vec();
            other[0] ^= 1;
            assert!(registers(&none, &other).is_ok() || kind == PointKind::F32, "{kind:?} {code}");
        }
        let flag = point(
            PointKind::Bool,
            Abcd,
            Meaning {
                bits: Some(BitRange { low: 0, high: 0 }),
                not_available: Arc::new([0xFFFF]),
                ..Meaning::default()
            },
        );
        assert_eq!(registers(&flag, &[0xFFFF]), Err(NOT_AVAILABLE));
        assert_eq!(registers(&flag, &[0xFFFE]).unwrap().value, Value::Bool(false));
    }
}
