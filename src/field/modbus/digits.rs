//! Numbers of sixteen bits that few devices have: half floats (IEEE 754 binary16), and decimal digits of four bits each
//! (BCD). Pure.

/// The least exponent of a half that is not subnormal, and its digits behind the point.
const EXPONENT_MIN: i32 = -14;
const FRACTION_BITS: i32 = 10;
/// From here on the nearest half is infinite: half a step above the largest, 65504.
const HALF_END: f64 = 65_520.0;

/// What a half says, exactly.
fn exactly(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> FRACTION_BITS & 0x1F), f64::from(bits & 0x3FF));
    let size = match exponent {
        0 => fraction * 2_f64.powi(EXPONENT_MIN - FRACTION_BITS),
        0x1F if fraction == 0.0 => f64::INFINITY,
        0x1F => f64::NAN,
        _ => (fraction + 1024.0) * 2_f64.powi(exponent - 15 - FRACTION_BITS),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// The number with the fewest digits that becomes this half again: a device that says 21.3 is not made to say 21.296875.
pub(super) fn half(bits: u16) -> f64 {
    let exact = exactly(bits);
    if !exact.is_finite() {
        return exact;
    }
    let with = |digits: usize| format!("{exact:.digits$e}").parse::<f64>().ok();
    (0..6).filter_map(with).find(|short| nearest_half(*short) == Some(bits)).unwrap_or(exact)
}

/// The half that is nearest to a number, of two the even one; `None` where it would be infinite.
pub(super) fn nearest_half(number: f64) -> Option<u16> {
    let size = number.abs();
    // NaN is not less than anything.
    let is_finite = size < HALF_END;
    if !is_finite {
        return None;
    }
    let exponent = (i32::try_from(size.to_bits() >> 52).unwrap_or(0) - 1023).max(EXPONENT_MIN);
    let steps = (size / 2_f64.powi(exponent - FRACTION_BITS)).round_ties_even();
    #[expect(clippy::cast_possible_truncation, reason = "from 0 to 2048")]
    let steps = steps as i32;
    // Each power of two has 1024 steps; a subnormal has none before it. What rounds up to the next one carries into it.
    let before = (exponent - EXPONENT_MIN) << FRACTION_BITS;
    let bits = u16::try_from(before + steps).ok()?;
    Some(if number.is_sign_negative() { bits | 0x8000 } else { bits })
}

/// The number that `count` digits of four bits write; `None` where one of them is none.
pub(super) fn from_bcd(bits: u64, count: u32) -> Option<u64> {
    (0..count).rev().try_fold(0_u64, |number, place| {
        let digit = bits >> (4 * place) & 0xF;
        (digit <= 9).then(|| number * 10 + digit)
    })
}

/// The same backwards; `None` where the number has more digits.
pub(super) fn to_bcd(number: u64, count: u32) -> Option<u64> {
    let bits = (0..count).fold((number, 0_u64), |(rest, bits), place| (rest / 10, bits | (rest % 10) << (4 * place)));
    (bits.0 == 0).then_some(bits.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_becomes_itself_again_and_is_told_with_few_digits() {
        for bits in 0..=u16::MAX {
            let number = half(bits);
            let exact = exactly(bits);
            if exact.is_finite() {
                assert_eq!(nearest_half(number), Some(bits), "{bits:#06x} {number}");
                assert_eq!(nearest_half(exact), Some(bits), "{bits:#06x} {exact}");
            } else {
                assert_eq!((number.is_nan(), nearest_half(number)), (exact.is_nan(), None));
            }
        }
        // IEEE 754: one, the largest, the smallest normal and subnormal, a third, two and a bit.
        for (bits, number) in [(0x3C00, 1.0), (0x7BFF, 65_500.0), (0x4D53, 21.3), (0xC000, -2.0), (0x0000, 0.0)] {
            assert_eq!(half(bits), number, "{bits:#06x}");
        }
        assert_eq!(
            (exactly(0x0400), exactly(0x0001), exactly(0x3555)),
            (6.103_515_625e-5, 5.960_464_477_539_063e-8, 0.333_251_953_125)
        );
        assert_eq!(half(0x8000).to_bits(), (-0.0_f64).to_bits());
    }

    #[test]
    fn a_number_takes_the_nearest_half_and_of_two_the_even_one() {
        assert_eq!(
            [2049.0, 2051.0, 65_519.9, 65_520.0].map(nearest_half),
            [Some(0x6800), Some(0x6802), Some(0x7BFF), None]
        );
        assert_eq!([2.9e-8, 3.0e-8, f64::NAN].map(nearest_half), [Some(0), Some(1), None]);
    }

    #[test]
    fn decimal_digits_are_read_and_written_and_other_bits_are_none() {
        assert_eq!((from_bcd(0x1234, 4), from_bcd(0x9999_9999, 8)), (Some(1234), Some(99_999_999)));
        assert_eq!((from_bcd(0x12A4, 4), from_bcd(0xFFFF, 4)), (None, None));
        for number in [0, 7, 10, 9999] {
            assert_eq!(from_bcd(to_bcd(number, 4).unwrap(), 4), Some(number));
        }
        assert_eq!((to_bcd(10_000, 4), to_bcd(9_999_999_999_999_999, 16)), (None, Some(0x9999_9999_9999_9999)));
        assert_eq!((to_bcd(10_000_000_000_000_000, 16), from_bcd(u64::MAX, 16)), (None, None));
    }
}
