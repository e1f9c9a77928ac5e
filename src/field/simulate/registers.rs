//! From a value to registers, for simulated devices. Pure.
//!
//! Made without the decoder on purpose: a test that reads what is written here is a test of both.

use crate::config::{ModbusPoint, PointKind, WordOrder};

/// The registers of a point that holds `raw` (before scale and offset) or, for a text, `text`. What the type cannot hold
/// becomes the nearest that it can.
pub(super) fn words(point: &ModbusPoint, raw: f64, text: &str) -> Vec<u16> {
    let meaning = &point.meaning;
    let whole = raw.round();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast from a float takes the nearest"
    )]
    let bytes: Vec<u8> = match point.kind {
        PointKind::Bool => {
            (u16::from(raw != 0.0) << meaning.bits.map_or(0, |bits| bits.low.min(15))).to_be_bytes().into()
        }
        PointKind::U8 => u16::from(whole as u8).to_be_bytes().into(),
        PointKind::I8 => u16::from((whole as i8).cast_unsigned()).to_be_bytes().into(),
        PointKind::U16 => (whole as u16).to_be_bytes().into(),
        PointKind::I16 => (whole as i16).to_be_bytes().into(),
        PointKind::U32 => (whole as u32).to_be_bytes().into(),
        PointKind::I32 => (whole as i32).to_be_bytes().into(),
        PointKind::U64 => (whole as u64).to_be_bytes().into(),
        PointKind::I64 => (whole as i64).to_be_bytes().into(),
        PointKind::Bcd16 => (bcd(whole as u64, 4) as u16).to_be_bytes().into(),
        PointKind::Bcd32 => (bcd(whole as u64, 8) as u32).to_be_bytes().into(),
        PointKind::Bcd64 => bcd(whole as u64, 16).to_be_bytes().into(),
        PointKind::F16 => half(raw).to_be_bytes().into(),
        PointKind::F32 => (raw as f32).to_be_bytes().into(),
        PointKind::F64 => raw.to_be_bytes().into(),
        PointKind::String { registers } => {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(usize::from(registers.get()) * 2, 0);
            bytes
        }
    };
    let bytes = match (meaning.bits, point.kind) {
        (Some(bits), kind) if kind != PointKind::Bool => shifted(&bytes, bits.low, bits.high),
        _ => bytes,
    };
    let is_text = matches!(point.kind, PointKind::String { .. });
    let mut words: Vec<u16> =
        bytes.chunks(2).map(|pair| pair.iter().fold(0, |word, byte| word << 8 | u16::from(*byte))).collect();
    if matches!(point.order, WordOrder::Badc | WordOrder::Dcba) {
        words.iter_mut().for_each(|word| *word = word.swap_bytes());
    }
    if matches!(point.order, WordOrder::Cdab | WordOrder::Dcba) && !is_text {
        words.reverse();
    }
    words
}

/// Digits of four bits, read off the decimal text.
fn bcd(number: u64, digits: usize) -> u64 {
    let text = number.to_string();
    let last = text.get(text.len().saturating_sub(digits)..).unwrap_or_default();
    u64::from_str_radix(last, 16).unwrap_or(0)
}

/// The nearest half float, found among all of them: they rise with their bits.
fn half(number: f64) -> u16 {
    let size = |bits: u16| {
        let (exponent, fraction) = (i32::from(bits >> 10), f64::from(bits & 0x3FF));
        if exponent == 0 { fraction / 2_f64.powi(24) } else { (1.0 + fraction / 1024.0) * 2_f64.powi(exponent - 15) }
    };
    let wanted = number.abs();
    let (mut low, mut high) = (0, 0x7BFF);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if size(middle) <= wanted { low = middle } else { high = middle }
    }
    let bits = if wanted - size(low) <= size(high) - wanted { low } else { high };
    if number < 0.0 { bits | 0x8000 } else { bits }
}

/// Which bits of its registers are the point's own.
pub(super) fn masks(point: &ModbusPoint) -> Vec<u16> {
    let whole = || vec![u16::MAX; usize::from(point.kind.width())];
    match (point.kind, point.meaning.bits) {
        (PointKind::Bool, None) => whole(),
        (PointKind::U8 | PointKind::Bool, _) => words(point, f64::from(u8::MAX), ""),
        (PointKind::I8, None) => words(point, -1.0, ""),
        // Every bit that the type has, moved to where the field stands.
        (_, Some(_)) => {
            let kind = match point.kind {
                PointKind::I8 => PointKind::U8,
                PointKind::I16 => PointKind::U16,
                PointKind::I32 => PointKind::U32,
                PointKind::I64 => PointKind::U64,
                other => other,
            };
            words(&ModbusPoint { kind, ..point.clone() }, f64::MAX, "")
        }
        (_, None) => whole(),
    }
}

/// A number moved to where its bits stand; what does not fit between them is cut off.
fn shifted(bytes: &[u8], low: u8, high: u8) -> Vec<u8> {
    let number = bytes.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    let count = u32::from(high.saturating_sub(low)) + 1;
    let kept = number & ((1_u128 << count.min(64)) - 1);
    let moved = kept << low.min(63);
    moved.to_be_bytes().iter().skip(16 - bytes.len()).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Table;

    fn point(kind: PointKind, order: WordOrder) -> ModbusPoint {
        ModbusPoint::plain("p", Table::Holding, 0, kind, order)
    }

    #[test]
    fn registers_are_those_of_the_order() {
        let float = |order| words(&point(PointKind::F32, order), 123.456, "");
        assert_eq!(float(WordOrder::Abcd), [0x42F6, 0xE979]);
        assert_eq!(float(WordOrder::Cdab), [0xE979, 0x42F6]);
        assert_eq!(float(WordOrder::Badc), [0xF642, 0x79E9]);
        assert_eq!(float(WordOrder::Dcba), [0x79E9, 0xF642]);
        assert_eq!(words(&point(PointKind::I16, WordOrder::Abcd), -200.0, ""), [0xFF38]);
        assert_eq!(words(&point(PointKind::U16, WordOrder::Abcd), -1.0, ""), [0], "the nearest");
        let mut field = point(PointKind::U16, WordOrder::Abcd);
        field.meaning.bits = Some(crate::config::BitRange { low: 4, high: 7 });
        assert_eq!(words(&field, 5.0, ""), [0x50]);
    }
}
