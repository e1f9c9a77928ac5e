//! From a value to registers and coils. Pure.
//!
//! Promises: what it makes of a value is read back as that value (`decode`), or it says why not: nothing is rounded to
//! what a register can hold, clamped, cut or wrapped around. Only a real number takes the nearest one of its type.

use serde_json::Value as Json;

use super::decode::{self, Layout, mask};
use super::digits::{half as decode_half, nearest_half, to_bcd};
use crate::config::{BitRange, Meaning, ModbusPoint, PointKind, Table};
use crate::message::Value;

/// Whole numbers up to here stand exactly in a float.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// What is to stand in the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// A coil.
    Coil(bool),
    /// All bits of these registers.
    Registers(Vec<u16>),
    /// Some bits of them; the others stay as they are.
    Part {
        /// With 0 where nothing is to change.
        words: Vec<u16>,
        /// Which bits are to change.
        masks: Vec<u16>,
    },
}

/// A value that can be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// What is sent.
    pub wire: Wire,
    /// As it is read back.
    pub value: Value,
}

/// Why a value cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwritable {
    /// For the counters.
    pub kind: &'static str,
    /// For a person.
    pub reason: String,
}

fn unwritable<T>(kind: &'static str, reason: impl Into<String>) -> Result<T, Unwritable> {
    Err(Unwritable { kind, reason: reason.into() })
}

/// What has to be sent for `value` to stand in the point.
pub fn encode(point: &ModbusPoint, value: &Json) -> Result<Encoded, Unwritable> {
    within(point, value)?;
    if point.table == Table::Coil {
        let is_on = truth(&point.meaning, value)?;
        return sure(point, Wire::Coil(is_on), decode::bit(&point.meaning, is_on));
    }
    let width = usize::from(point.kind.width());
    let bytes = match point.kind {
        PointKind::Bool => whole_bytes(u64::from(truth(&point.meaning, value)?), point, width),
        PointKind::F16 => real_f16(&point.meaning, value)?.to_be_bytes().to_vec(),
        PointKind::F32 => real_f32(&point.meaning, value)?.to_be_bytes().to_vec(),
        PointKind::F64 => real(&point.meaning, value)?.to_be_bytes().to_vec(),
        PointKind::String { .. } => text(value, width * 2)?,
        _ => whole_bytes(whole(point, value)?, point, width),
    };
    let words = Layout::of(point).words(&bytes);
    if point.shares_register() {
        // What the device calls not available is so by all bits, of which these are some.
        let meaning = Meaning { not_available: [].into(), ..point.meaning.clone() };
        let read = decode::registers(&ModbusPoint { meaning, ..point.clone() }, &words);
        let masks = Layout::of(point).words(&mask_bytes(point, width));
        return sure(point, Wire::Part { words, masks }, read);
    }
    let read = decode::registers(point, &words);
    sure(point, Wire::Registers(words), read)
}

/// Puts the bits of a point into what its registers hold at the moment.
pub fn merged(held: &[u16], words: &[u16], masks: &[u16]) -> Vec<u16> {
    held.iter().zip(words.iter().zip(masks)).map(|(held, (word, mask))| (held & !mask) | (word & mask)).collect()
}

/// The last word has the decoder: what it would not tell as a good value is not written.
fn sure(
    point: &ModbusPoint,
    wire: Wire,
    read: Result<decode::Decoded, decode::Refusal>,
) -> Result<Encoded, Unwritable> {
    match read {
        Ok(decode::Decoded { value, doubt: None }) => Ok(Encoded { wire, value }),
        Ok(decode::Decoded { doubt: Some(doubt), .. }) => unwritable("value", doubt),
        Err(_) => {
            let reason = format!("this is how the device says that `{}` has no value (`not_available`)", point.name);
            unwritable("value", reason)
        }
    }
}

/// A number between the edges that the owner has set.
fn within(point: &ModbusPoint, value: &Json) -> Result<(), Unwritable> {
    let Some(number) = value.as_f64() else { return Ok(()) };
    let write = point.write.unwrap_or_default();
    let meaning = &point.meaning;
    let least = [("min", write.min), ("clamp_min", meaning.clamp_min)];
    let most = [("max", write.max), ("clamp_max", meaning.clamp_max)];
    let is_below = |edge: &(&str, Option<f64>)| edge.1.is_some_and(|edge| number < edge);
    let is_above = |edge: &(&str, Option<f64>)| edge.1.is_some_and(|edge| number > edge);
    if let Some((key, Some(edge))) = least.into_iter().find(is_below) {
        return unwritable("range", format!("{value} is less than {edge} (`{key}`)"));
    }
    if let Some((key, Some(edge))) = most.into_iter().find(is_above) {
        return unwritable("range", format!("{value} is more than {edge} (`{key}`)"));
    }
    Ok(())
}

fn truth(meaning: &Meaning, value: &Json) -> Result<bool, Unwritable> {
    if !meaning.names.is_empty() {
        return match named(meaning, value)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => unwritable("value", "a single bit is 0 or 1"),
        };
    }
    match value {
        Json::Bool(is_on) => Ok(*is_on),
        other => unwritable("value", format!("{} is not true or false", shown(other))),
    }
}

/// The number of a name.
fn named(meaning: &Meaning, value: &Json) -> Result<i128, Unwritable> {
    let found = value.as_str().and_then(|text| meaning.names.iter().find(|(_, name)| **name == *text));
    match found {
        Some((number, _)) => Ok(*number),
        None => {
            let names: Vec<&str> = meaning.names.iter().map(|(_, name)| &**name).collect();
            unwritable("value", format!("{} is none of the names {}", shown(value), names.join(", ")))
        }
    }
}

/// The bits of a whole number, as they stand in the point.
fn whole(point: &ModbusPoint, value: &Json) -> Result<u64, Unwritable> {
    let meaning = &point.meaning;
    let raw = if !meaning.names.is_empty() {
        named(meaning, value)?
    } else if decode::is_plain(meaning) {
        whole_number(value)?
    } else {
        unscaled(meaning, value)?
    };
    if let Some(digits) = point.kind.bcd_digits() {
        let bits = u64::try_from(raw).ok().and_then(|raw| to_bcd(raw, digits));
        let wrong = || format!("{} is {raw} in the device, and {digits} decimal digits hold no more", shown(value));
        return bits.map_or_else(|| unwritable("range", wrong()), Ok);
    }
    let bits = bits_of(point);
    let is_signed = matches!(point.kind, PointKind::I8 | PointKind::I16 | PointKind::I32 | PointKind::I64);
    let (least, most) =
        if is_signed { (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1) } else { (0, (1_i128 << bits) - 1) };
    if raw < least || raw > most {
        let what = match point.meaning.bits {
            Some(_) => format!("{bits} bits of it"),
            None => format!("a {}", point.kind.word()),
        };
        return unwritable(
            "range",
            format!("{} is {raw} in the device, and {what} hold {least} to {most}", shown(value)),
        );
    }
    // Two's complement, cut to the bits of the point: what is cut off only repeats the sign.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was looked at")]
    Ok(raw as u64 & mask(bits))
}

fn bits_of(point: &ModbusPoint) -> u32 {
    match point.meaning.bits {
        Some(BitRange { low, high }) => u32::from(high.saturating_sub(low)) + 1,
        None => point.kind.whole_bits().map_or(1, u32::from),
    }
}

/// A whole number that is written as one, or as 5.0.
fn whole_number(value: &Json) -> Result<i128, Unwritable> {
    if let Some(number) = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)) {
        return Ok(number);
    }
    match number(value)? {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and small enough")]
        real if real.fract() == 0.0 && real.abs() <= EXACT_MAX => Ok(real as i128),
        real if real.fract() == 0.0 => unwritable("range", format!("{value} is out of range")),
        _ => unwritable("value", format!("{value} is not a whole number")),
    }
}

/// The raw number that scale and offset make the value of.
fn unscaled(meaning: &Meaning, value: &Json) -> Result<i128, Unwritable> {
    let wanted = number(value)?;
    let raw = raw_of(meaning, wanted).round();
    if !raw.is_finite() || raw.abs() > EXACT_MAX {
        return unwritable("range", format!("{value} is out of range"));
    }
    let back = |raw: f64| match decode::scaled(&Meaning { clamp_min: None, clamp_max: None, ..meaning.clone() }, raw) {
        Ok(decode::Decoded { value: Value::Float(value), .. }) => value,
        _ => f64::NAN,
    };
    let told = back(raw);
    // What sums in binary leave behind is no other value: 0.1 + 0.2 is meant as 0.3.
    let noise = meaning.scale.abs() * 1e-6 + (wanted.abs() + meaning.offset.abs()) * 1e-15;
    if (told - wanted).abs() > noise {
        let other = back(if (told < wanted) == (meaning.scale > 0.0) { raw + 1.0 } else { raw - 1.0 });
        let (below, above) = if told < other { (told, other) } else { (other, told) };
        return unwritable(
            "value",
            format!("the device holds {below} or {above}, and nothing between: {value} cannot be written"),
        );
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole, and small enough")]
    Ok(raw as i128)
}

fn raw_of(meaning: &Meaning, wanted: f64) -> f64 {
    let without = wanted - meaning.offset;
    let inverse = (1.0 / meaning.scale).round();
    // As the decoder does it: 10 has an exact binary form, 0.1 has none.
    if (2.0..=1e15).contains(&inverse.abs()) && 1.0 / inverse == meaning.scale {
        without * inverse
    } else {
        without / meaning.scale
    }
}

fn number(value: &Json) -> Result<f64, Unwritable> {
    match value.as_f64().filter(|number| number.is_finite()) {
        Some(number) => Ok(number),
        None => unwritable("value", format!("{} is not a number", shown(value))),
    }
}

fn real(meaning: &Meaning, value: &Json) -> Result<f64, Unwritable> {
    let wanted = number(value)?;
    let raw = if meaning.scale == 1.0 && meaning.offset == 0.0 { wanted } else { raw_of(meaning, wanted) };
    if raw.is_finite() { Ok(raw) } else { unwritable("range", format!("{value} is out of range")) }
}

fn real_f16(meaning: &Meaning, value: &Json) -> Result<u16, Unwritable> {
    let raw = real(meaning, value)?;
    // The type has 11 binary digits; less of them is another number: too large, or too small.
    let is_near = |bits: &u16| (decode_half(*bits) - raw).abs() <= raw.abs() / 1024.0;
    match nearest_half(raw).filter(is_near) {
        Some(bits) => Ok(bits),
        None => unwritable("range", format!("{value} is out of the range of an f16")),
    }
}

fn real_f32(meaning: &Meaning, value: &Json) -> Result<f32, Unwritable> {
    let raw = real(meaning, value)?;
    #[expect(clippy::cast_possible_truncation, reason = "the nearest one is asked for, and how near it is")]
    let near = raw as f32;
    // The type has 24 binary digits; less of them is another number: too large, or too small.
    if !near.is_finite() || (f64::from(near) - raw).abs() > raw.abs() * f64::from(f32::EPSILON) {
        return unwritable("range", format!("{value} is out of the range of an f32"));
    }
    Ok(near)
}

fn text(value: &Json, bytes_max: usize) -> Result<Vec<u8>, Unwritable> {
    let Some(text) = value.as_str() else {
        return unwritable("value", format!("{} is not a text in quotes", shown(value)));
    };
    if text.len() > bytes_max {
        return unwritable("range", format!("the text has {} bytes, and the device holds {bytes_max}", text.len()));
    }
    if text.contains('\0') {
        return unwritable("value", "the text has a NUL, which is where the device ends a text");
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(bytes_max, 0);
    Ok(bytes)
}

/// Bits in the place where the point has them, most significant byte first.
fn whole_bytes(bits: u64, point: &ModbusPoint, width: usize) -> Vec<u8> {
    let low = point.meaning.bits.map_or(0, |range| u32::from(range.low));
    let placed = bits.checked_shl(low).unwrap_or(0).to_be_bytes();
    placed.get(8usize.saturating_sub(width * 2)..).unwrap_or_default().to_vec()
}

/// The bits that are the point's.
fn mask_bytes(point: &ModbusPoint, width: usize) -> Vec<u8> {
    whole_bytes(mask(bits_of(point)), point, width)
}

/// A value in a sentence, not too long.
fn shown(value: &Json) -> String {
    const CHARACTERS_MAX: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((cut, _)) => format!("{}…", text.get(..cut).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::WordOrder::{self, Abcd, Badc, Cdab, Dcba};
    use crate::config::{Report, Write};

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
            write: Some(Write::default()),
        }
    }

    fn plain(kind: PointKind) -> ModbusPoint {
        point(kind, Abcd, Meaning::default())
    }

    fn scaled(kind: PointKind, scale: f64, offset: f64) -> ModbusPoint {
        point(kind, Abcd, Meaning { scale, offset, ..Meaning::default() })
    }

    fn registers(point: &ModbusPoint, value: Json) -> Vec<u16> {
        match encode(point, &value) {
            Ok(Encoded { wire: Wire::Registers(words), .. }) => words,
            other => panic!("{value}: {other:?}"),
        }
    }

    fn refused(point: &ModbusPoint, value: Json) -> String {
        match encode(point, &value) {
            Err(Unwritable { reason, .. }) => reason,
            other => panic!("{value}: {other:?}"),
        }
    }

    #[test]
    fn numbers_stand_in_the_registers_in_every_order() {
        for (order, words) in
            [(Abcd, [0x1234, 0x5678]), (Cdab, [0x5678, 0x1234]), (Badc, [0x3412, 0x7856]), (Dcba, [0x7856, 0x3412])]
        {
            assert_eq!(registers(&point(PointKind::U32, order, Meaning::default()), json!(0x1234_5678)), words);
        }
        assert_eq!(registers(&point(PointKind::F32, Cdab, Meaning::default()), json!(123_456.789)), [0x2065, 0x47F1]);
        assert_eq!(registers(&plain(PointKind::I16), json!(-200)), [0xFF38]);
        assert_eq!(registers(&plain(PointKind::U16), json!(5.0)), [5], "5.0 is a whole number");
        assert_eq!(registers(&plain(PointKind::Bool), json!(true)), [1]);
        assert_eq!(registers(&plain(PointKind::U64), json!(u64::MAX)), [0xFFFF; 4]);
        assert_eq!(registers(&plain(PointKind::I64), json!(i64::MIN)), [0x8000, 0, 0, 0]);
    }

    #[test]
    fn what_a_type_cannot_hold_is_refused_and_never_wrapped_rounded_or_cut() {
        for (kind, value) in [
            (PointKind::U16, json!(65_536)),
            (PointKind::U16, json!(-1)),
            (PointKind::I16, json!(32_768)),
            (PointKind::U32, json!(4_294_967_296_u64)),
            (PointKind::I64, json!(u64::MAX)),
            (PointKind::U64, json!(18_446_744_073_709_551_616.0)),
            (PointKind::F32, json!(1e39)),
            (PointKind::F32, json!(1e-50)),
        ] {
            let encoded = encode(&plain(kind), &value);
            assert_eq!(encoded.as_ref().map_err(|error| error.kind), Err("range"), "{kind:?} {value}: {encoded:?}");
        }
        assert_eq!(refused(&plain(PointKind::U16), json!(1.5)), "1.5 is not a whole number");
        for value in [json!(null), json!("5"), json!(true), json!([5]), json!({"a": 1})] {
            assert!(refused(&plain(PointKind::U16), value).ends_with("is not a number"));
        }
        assert_eq!(refused(&plain(PointKind::Bool), json!(1)), "1 is not true or false");
    }

    #[test]
    fn a_scale_is_reversed_and_what_lies_between_two_steps_is_refused() {
        let tenths = scaled(PointKind::I16, 0.1, 0.0);
        for (value, raw) in [(21.5, 215u16), (0.3, 3), (-0.1, 0xFFFF), (0.1 + 0.2, 3), (3276.7, 32_767)] {
            assert_eq!(registers(&tenths, json!(value)), [raw], "{value}");
        }
        let why = refused(&tenths, json!(21.55));
        assert_eq!(why, "the device holds 21.5 or 21.6, and nothing between: 21.55 cannot be written");
        assert!(refused(&tenths, json!(3276.8)).contains("32768 in the device"));
        assert_eq!(registers(&scaled(PointKind::U16, 0.1, -40.0), json!(-39.9)), [1]);
        assert_eq!(registers(&scaled(PointKind::U16, -1.0, 100.0), json!(99)), [1]);
        assert_eq!(registers(&scaled(PointKind::U16, 1000.0, 0.0), json!(5000)), [5]);
        assert!(refused(&scaled(PointKind::U16, 1000.0, 0.0), json!(5001)).contains("5000 or 6000"));
        assert_eq!(registers(&scaled(PointKind::F32, 2.0, 1.0), json!(44)), [0x41AC, 0]);
    }

    #[test]
    fn edges_refuse_and_do_not_clamp() {
        let mut edged = scaled(PointKind::U16, 0.1, 0.0);
        edged.write = Some(Write { min: Some(5.0), max: Some(30.0), ..Write::default() });
        assert_eq!(refused(&edged, json!(4.9)), "4.9 is less than 5 (`min`)");
        assert_eq!(refused(&edged, json!(30.1)), "30.1 is more than 30 (`max`)");
        assert_eq!((registers(&edged, json!(5)), registers(&edged, json!(30))), (vec![50], vec![300]));
        edged.meaning.clamp_max = Some(20.0);
        assert_eq!(refused(&edged, json!(25)), "25 is more than 20 (`clamp_max`)");
    }

    #[test]
    fn names_stand_for_their_numbers_and_nothing_else_does() {
        let names = Meaning { names: Arc::new([(0, "off".into()), (2, "auto".into())]), ..Meaning::default() };
        let mode = point(PointKind::U16, Abcd, names);
        assert_eq!(registers(&mode, json!("auto")), [2]);
        assert_eq!(refused(&mode, json!("on")), "\"on\" is none of the names off, auto");
        assert!(refused(&mode, json!(2)).contains("none of the names"));
        let coil = ModbusPoint { table: Table::Coil, kind: PointKind::Bool, ..mode };
        assert_eq!(encode(&coil, &json!("off")).unwrap().wire, Wire::Coil(false));
        assert_eq!(refused(&coil, json!("auto")), "a single bit is 0 or 1");
    }

    #[test]
    fn what_the_device_takes_for_no_value_is_refused() {
        let none = point(PointKind::U16, Abcd, Meaning { not_available: Arc::new([0xFFFF]), ..Meaning::default() });
        assert!(refused(&none, json!(65_535)).contains("not_available"));
        assert_eq!(registers(&none, json!(65_534)), [65_534]);
    }

    #[test]
    fn a_part_of_a_register_leaves_the_other_bits_alone() {
        let part = |kind, order, low, high, value: Json| {
            let meaning = Meaning { bits: Some(BitRange { low, high }), ..Meaning::default() };
            match encode(&point(kind, order, meaning), &value).unwrap().wire {
                Wire::Part { words, masks } => merged(&[0xA5A5, 0x5A5A][..words.len()], &words, &masks),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(part(PointKind::Bool, Abcd, 3, 3, json!(true)), [0xA5AD]);
        assert_eq!(part(PointKind::Bool, Abcd, 0, 0, json!(false)), [0xA5A4]);
        assert_eq!(part(PointKind::Bool, Badc, 0, 0, json!(false)), [0xA4A5]);
        assert_eq!(part(PointKind::U16, Abcd, 4, 7, json!(0)), [0xA505]);
        assert_eq!(part(PointKind::I16, Abcd, 4, 7, json!(-1)), [0xA5F5]);
        assert_eq!(part(PointKind::U32, Cdab, 0, 15, json!(0x1234)), [0x1234, 0x5A5A]);
        let low = |order| match encode(&point(PointKind::U8, order, Meaning::default()), &json!(0x12)).unwrap().wire {
            Wire::Part { words, masks } => merged(&[0xABCD], &words, &masks),
            other => panic!("{other:?}"),
        };
        assert_eq!((low(Abcd), low(Badc)), (vec![0xAB12], vec![0x12CD]));
        let field =
            point(PointKind::U16, Abcd, Meaning { bits: Some(BitRange { low: 4, high: 7 }), ..Meaning::default() });
        assert!(refused(&field, json!(16)).contains("0 to 15"));
    }

    #[test]
    fn a_text_is_filled_up_and_one_that_is_too_long_is_refused() {
        let kind = PointKind::String { registers: NonZeroU16::new(3).unwrap() };
        assert_eq!(registers(&plain(kind), json!("Tide")), [0x5469, 0x6465, 0]);
        assert_eq!(registers(&point(kind, Dcba, Meaning::default()), json!("Tide")), [0x6954, 0x6564, 0]);
        assert!(refused(&plain(kind), json!("Tide ga")).contains("7 bytes"));
        assert!(refused(&plain(kind), json!("a\u{0}b")).contains("NUL"));
        assert!(refused(&plain(kind), json!(7)).contains("not a text"));
    }

    fn any_kind() -> impl Strategy<Value = PointKind> {
        use PointKind::{F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        prop::sample::select(vec![U8, I8, U16, I16, U32, I32, U64, I64, F32, F64])
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_as_what_was_asked_for(
            kind in any_kind(),
            order in prop::sample::select(vec![Abcd, Cdab, Badc, Dcba]),
            scale in prop::sample::select(vec![1.0, 0.1, 0.01, 10.0, -1.0, 0.25, 0.003]),
            offset in prop::sample::select(vec![0.0, -40.0, 0.5, 1e6]),
            asked in prop_oneof![
                any::<i64>().prop_map(|number| json!(number)), any::<u64>().prop_map(|number| json!(number)),
                any::<i16>().prop_map(|number| json!(number)), (-1e6..1e6f64).prop_map(|number| json!(number)),
                (-20_000..20_000i32).prop_map(|number| json!(f64::from(number) / 10.0)),
            ],
        ) {
            let point = point(kind, order, Meaning { scale, offset, ..Meaning::default() });
            let Ok(Encoded { wire, value }) = encode(&point, &asked) else { return Ok(()) };
            let words = match &wire {
                Wire::Registers(words) => words.clone(),
                Wire::Part { words, masks } => merged(&vec![0x9696; words.len()], words, masks),
                Wire::Coil(_) => unreachable!(),
            };
            let read = decode::registers(&point, &words).unwrap().value;
            prop_assert_eq!(&read, &value);
            let wanted = asked.as_f64().unwrap();
            let told = match read {
                Value::Int(number) => { prop_assert_eq!(Some(i128::from(number)), whole_of(&asked)); return Ok(()) }
                Value::Uint(number) => { prop_assert_eq!(Some(i128::from(number)), whole_of(&asked)); return Ok(()) }
                Value::Float(number) => number,
                other => panic!("{other:?}"),
            };
            // A whole register holds the value itself; a real one the nearest of its type.
            let digits = if kind == PointKind::F32 { f64::from(f32::EPSILON) } else { 1e-14 };
            let size = wanted.abs().max(offset.abs()).max((wanted - offset).abs());
            let step = if matches!(kind, PointKind::F32 | PointKind::F64) { 0.0 } else { scale.abs() * 1e-6 };
            prop_assert!((told - wanted).abs() <= size * digits * 2.0 + step, "{told} for {wanted}");
        }
    }

    fn whole_of(value: &Json) -> Option<i128> {
        whole_number(value).ok()
    }
}
