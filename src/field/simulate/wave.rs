//! How simulated values move. Pure: the same moment gives the same value.

use std::f64::consts::TAU;
use std::time::Duration;

/// One turn of a wave, unless something else is asked for.
pub const PERIOD: Duration = Duration::from_secs(60);
/// Steps of a random walk in a turn.
const WALK_STEPS: u64 = 60;

/// A shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wave {
    /// Up and down in a soft curve.
    #[default]
    Sine,
    /// Up, and down at once.
    Ramp,
    /// Low, then high.
    Square,
    /// Steps here and there.
    Walk,
    /// Halfway, for ever.
    Constant,
}

impl Wave {
    /// Reads its name.
    pub fn parse(text: &str) -> Option<Wave> {
        Some(match text {
            "sine" => Wave::Sine,
            "ramp" => Wave::Ramp,
            "square" => Wave::Square,
            "walk" => Wave::Walk,
            "constant" => Wave::Constant,
            _ => return None,
        })
    }

    /// Where it stands, from 0 to 1, `at` after the start; `seed` shifts it, so that no two points move alike.
    pub fn height(self, at: Duration, period: Duration, seed: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a shift needs no more digits")]
        let shift = (mixed(seed) >> 11) as f64 / (1_u64 << 53) as f64;
        let turns = at.as_secs_f64() / period.as_secs_f64().max(1e-3) + shift;
        let phase = turns - turns.floor();
        match self {
            Wave::Sine => 0.5 + 0.5 * (phase * TAU).sin(),
            Wave::Ramp => phase,
            Wave::Square => f64::from(u8::from(phase >= 0.5)),
            Wave::Walk => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "not negative, and a count"
                )]
                let step = (at.as_secs_f64() / period.as_secs_f64().max(1e-3) * WALK_STEPS as f64) as u64;
                walk(step, seed)
            }
            Wave::Constant => 0.5,
        }
    }
}

/// Where a walk is after so many steps: it is thrown back at 0 and at 1. Only the last steps are counted, from a place
/// that the seed names, so that a long run costs no more than a short one.
fn walk(step: u64, seed: u64) -> f64 {
    let block = step / 256;
    #[expect(clippy::cast_precision_loss, reason = "random digits")]
    let random = |number: u64| (mixed(seed ^ mixed(number)) >> 11) as f64 / (1_u64 << 53) as f64;
    let mut height = random(block.wrapping_mul(0x9E37_79B9));
    for number in block * 256..step {
        height += (random(number) - 0.5) * 0.1;
        height = if height < 0.0 { -height } else { height };
        height = if height > 1.0 { 2.0 - height } else { height };
    }
    height
}

/// Spreads the bits of a number (the finaliser of SplitMix64).
pub fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wave_stays_within_its_range_and_repeats_itself() {
        for wave in ["sine", "ramp", "square", "walk", "constant"].map(|name| Wave::parse(name).unwrap()) {
            let heights: Vec<f64> =
                (0..2000).map(|ms| wave.height(Duration::from_millis(ms * 137), PERIOD, 7)).collect();
            assert!(heights.iter().all(|height| (0.0..=1.0).contains(height)), "{wave:?}");
            let moves = heights.windows(2).any(|pair| pair[0] != pair[1]);
            assert_eq!(moves, wave != Wave::Constant, "{wave:?}");
            let at = Duration::from_secs(12_345);
            assert_eq!(wave.height(at, PERIOD, 3), wave.height(at, PERIOD, 3), "{wave:?}");
        }
        assert_eq!(Wave::parse("triangle"), None);
    }
}
