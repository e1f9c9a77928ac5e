//! The few kinds of CBOR items (RFC 8949) that SenML needs, each in its shortest form. Pure.

/// Unsigned and negative numbers, byte strings … (RFC 8949, 3.1).
fn head(into: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    match argument {
        0..=23 => into.push(major | argument.to_le_bytes()[0]),
        24..=0xff => into.extend([major | 24, argument.to_le_bytes()[0]]),
        0x100..=0xffff => {
            into.push(major | 25);
            into.extend(argument.to_be_bytes().into_iter().skip(6));
        }
        0x1_0000..=0xffff_ffff => {
            into.push(major | 26);
            into.extend(argument.to_be_bytes().into_iter().skip(4));
        }
        _ => {
            into.push(major | 27);
            into.extend(argument.to_be_bytes());
        }
    }
}

pub fn unsigned(into: &mut Vec<u8>, value: u64) {
    head(into, 0, value);
}

pub fn integer(into: &mut Vec<u8>, value: i64) {
    match u64::try_from(value) {
        Ok(value) => head(into, 0, value),
        // −1 − n (RFC 8949, 3.1).
        Err(_negative) => head(into, 1, value.unsigned_abs() - 1),
    }
}

pub fn text(into: &mut Vec<u8>, text: &str) {
    head(into, 3, text.len() as u64);
    into.extend_from_slice(text.as_bytes());
}

pub fn array(into: &mut Vec<u8>, count: usize) {
    head(into, 4, count as u64);
}

pub fn map(into: &mut Vec<u8>, count: usize) {
    head(into, 5, count as u64);
}

pub fn truth(into: &mut Vec<u8>, value: bool) {
    into.push(if value { 0xf5 } else { 0xf4 });
}

/// A number, in the shortest form that is the same number as a double: an integer, a single, a decimal fraction (RFC 8949,
/// 3.4.4; 6.123 is 6123 × 10⁻³) or a double. It must be finite.
pub fn number(into: &mut Vec<u8>, value: f64) {
    #[expect(clippy::cast_possible_truncation, reason = "looked at: it is whole and within ±2^53")]
    if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
        return integer(into, value as i64);
    }
    let mut best = vec![0xfb];
    best.extend(value.to_be_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "looked at: taken only where nothing is lost")]
    let single = value as f32;
    if f64::from(single).to_bits() == value.to_bits() {
        best = vec![0xfa];
        best.extend(single.to_be_bytes());
    }
    if let Some(decimal) = decimal(value).filter(|decimal| decimal.len() < best.len()) {
        best = decimal;
    }
    into.extend(best);
}

/// By the shortest digits that name this double and no other.
fn decimal(value: f64) -> Option<Vec<u8>> {
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e')?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mantissa: i64 = format!("{whole}{fraction}").parse().ok()?;
    let exponent: i64 = exponent.parse::<i64>().ok()? - i64::try_from(fraction.len()).ok()?;
    let mut item = vec![0xc4, 0x82];
    integer(&mut item, exponent);
    integer(&mut item, mantissa);
    Some(item)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut bytes = Vec::new();
        write(&mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn items_are_those_of_the_specification() {
        // RFC 8949, appendix A.
        for (value, expected) in [
            (0, "00"),
            (23, "17"),
            (24, "1818"),
            (100, "1864"),
            (1000, "1903e8"),
            (1_000_000, "1a000f4240"),
            (1_000_000_000_000, "1b000000e8d4a51000"),
            (-1, "20"),
            (-100, "3863"),
            (-1000, "3903e7"),
            (i64::MIN, "3b7fffffffffffffff"),
        ] {
            assert_eq!(item(|into| integer(into, value)), expected, "{value}");
        }
        assert_eq!(item(|into| unsigned(into, u64::MAX)), "1bffffffffffffffff");
        assert_eq!(item(|into| text(into, "ü")), "62c3bc");
        assert_eq!(item(|into| array(into, 25)), "9819");
        assert_eq!(item(|into| map(into, 2)), "a2");
        assert_eq!(item(|into| truth(into, true)), "f5");
    }

    #[test]
    fn a_number_is_as_short_as_it_can_be() {
        for (value, expected) in [
            (5.0, "05"),
            (-7.0, "26"),
            (0.1, "c4822001"),
            (273.15, "c48221196ab3"),
            (-4.1, "c482203828"),
            (100_000.5, "fa47c35040"),
            (1.1e300, "c482190 12b0b"),
            (1.0 / 3.0, "fb3fd5555555555555"),
            (0.333_333_343_267_440_8, "fa3eaaaaab"),
        ] {
            assert_eq!(item(|into| number(into, value)), expected.replace(' ', ""), "{value}");
        }
    }
}
