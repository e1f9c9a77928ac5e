//! From registers and bits to a value. Pure.
//!
//! Promises: every type in every order is what the table in `ordered_bytes` says; what is no number is never passed
//! on as one.

use crate::config::{PointKind, WordOrder};
use crate::message::Value;

/// Why registers are no value of a point's type.
pub type Refusal = &'static str;

/// What one point is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Form {
    /// How the bits are read.
    pub kind: PointKind,
    /// Order of bytes and words.
    pub order: WordOrder,
    /// `value = raw × scale + offset`
    pub scale: f64,
    /// Added after scaling.
    pub offset: f64,
}

/// The value in `words`, which are exactly the point's registers.
pub fn registers(form: &Form, words: &[u16]) -> Result<Value, Refusal> {
    if words.len() != usize::from(form.kind.width()) {
        return Err("the answer does not hold the whole point");
    }
    let bytes = ordered_bytes(form, words);
    let whole = "the answer does not hold the whole point";
    match form.kind {
        PointKind::Bool => Ok(Value::Bool(words.iter().any(|word| *word != 0))),
        PointKind::U16 => scaled_uint(form, u64::from(u16::from_be_bytes(fixed(&bytes).ok_or(whole)?))),
        PointKind::I16 => scaled_int(form, i64::from(i16::from_be_bytes(fixed(&bytes).ok_or(whole)?))),
        PointKind::U32 => scaled_uint(form, u64::from(u32::from_be_bytes(fixed(&bytes).ok_or(whole)?))),
        PointKind::I32 => scaled_int(form, i64::from(i32::from_be_bytes(fixed(&bytes).ok_or(whole)?))),
        PointKind::U64 => scaled_uint(form, u64::from_be_bytes(fixed(&bytes).ok_or(whole)?)),
        PointKind::I64 => scaled_int(form, i64::from_be_bytes(fixed(&bytes).ok_or(whole)?)),
        PointKind::F32 => scaled_float(form, widened(f32::from_be_bytes(fixed(&bytes).ok_or(whole)?))),
        PointKind::F64 => scaled_float(form, f64::from_be_bytes(fixed(&bytes).ok_or(whole)?)),
        PointKind::String { .. } => text(&bytes),
    }
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
fn ordered_bytes(form: &Form, words: &[u16]) -> Vec<u8> {
    let swaps_bytes = matches!(form.order, WordOrder::Badc | WordOrder::Dcba);
    let is_text = matches!(form.kind, PointKind::String { .. });
    let turns_words = matches!(form.order, WordOrder::Cdab | WordOrder::Dcba) && !is_text;
    let pair = |word: &u16| if swaps_bytes { word.to_le_bytes() } else { word.to_be_bytes() };
    if turns_words { words.iter().rev().flat_map(pair).collect() } else { words.iter().flat_map(pair).collect() }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn is_plain(form: &Form) -> bool {
    form.scale == 1.0 && form.offset == 0.0
}

fn scaled_uint(form: &Form, raw: u64) -> Result<Value, Refusal> {
    #[expect(clippy::cast_precision_loss, reason = "the owner asked for a real number by giving a scale")]
    if is_plain(form) { Ok(Value::Uint(raw)) } else { scaled_float(form, raw as f64) }
}

fn scaled_int(form: &Form, raw: i64) -> Result<Value, Refusal> {
    #[expect(clippy::cast_precision_loss, reason = "the owner asked for a real number by giving a scale")]
    if is_plain(form) { Ok(Value::Int(raw)) } else { scaled_float(form, raw as f64) }
}

fn scaled_float(form: &Form, raw: f64) -> Result<Value, Refusal> {
    if raw.is_nan() {
        return Err("the device says that this is not a number");
    }
    if raw.is_infinite() {
        return Err("the device says that this is infinite");
    }
    let value = if is_plain(form) { raw } else { times(raw, form.scale) + form.offset };
    if value.is_finite() { Ok(Value::Float(value)) } else { Err("the scaled value is too large for a number") }
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

    const ORDERS: [WordOrder; 4] = [Abcd, Cdab, Badc, Dcba];

    fn form(kind: PointKind, order: WordOrder) -> Form {
        Form { kind, order, scale: 1.0, offset: 0.0 }
    }

    fn read(kind: PointKind, order: WordOrder, words: &[u16]) -> Value {
        registers(&form(kind, order), words).unwrap()
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
        assert_eq!(registers(&form(string(1), Abcd), &[0xB041]), Err("the text is not UTF-8"));
    }

    #[test]
    fn scale_and_offset_give_the_number_that_a_person_expects() {
        let scaled =
            |kind, scale, offset, words: &[u16]| registers(&Form { kind, order: Abcd, scale, offset }, words).unwrap();
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
                assert!(registers(&form(kind, order), &arranged).is_err(), "{kind:?} {order:?}");
            }
        }
        let huge = Form { kind: PointKind::F64, order: Abcd, scale: 1e300, offset: 0.0 };
        assert!(registers(&huge, &[0x7FE0, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_point_whose_registers_are_missing_is_refused() {
        for kind in [PointKind::Bool, PointKind::U16, PointKind::U32, PointKind::F64, string(3)] {
            for count in 0..6 {
                let outcome = registers(&form(kind, Abcd), &vec![0x4141; count]);
                assert_eq!(outcome.is_ok(), count == usize::from(kind.width()), "{kind:?} of {count}");
            }
        }
    }
}
