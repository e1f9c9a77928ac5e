//! How long an exchange takes on the wire. Pure.

use std::time::Duration;

use crate::config::Table;

/// Above 19200 baud the gap between frames is fixed (Modbus over Serial Line 1.02, 2.5.1.1).
const GAP_MIN: Duration = Duration::from_micros(1750);
/// Bytes of an RTU request, and of an answer beside its data.
const RTU_FRAME_BYTES: u32 = 8 + 5;

/// The silence before each request on a serial bus: 3.5 characters, or the owner's pause.
pub fn gap(character: Duration, pause: Duration) -> Duration {
    pause.max(GAP_MIN).max(character * 7 / 2)
}

/// The same of a write: its data goes out, and the answer has none.
pub fn wire_of_write(character: Duration, table: Table, quantity: u16) -> Duration {
    wire(character, table, quantity) + character * 4
}

/// How long the bits of request and answer take.
pub fn wire(character: Duration, table: Table, quantity: u16) -> Duration {
    let data = if table.is_bits() { u32::from(quantity).div_ceil(8) } else { u32::from(quantity) * 2 };
    character * (RTU_FRAME_BYTES + data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3.5 characters of 11 bits; above 19,200 baud always 1.75 ms.
    #[test]
    fn the_silence_before_a_request_is_right_at_every_rate() {
        for (baud, expected_us) in [
            (300, 128_333),
            (1200, 32_083),
            (2400, 16_041),
            (4800, 8020),
            (9600, 4010),
            (19_200, 2005),
            (38_400, 1750),
            (57_600, 1750),
            (115_200, 1750),
            (921_600, 1750),
        ] {
            let character = Duration::from_secs(11) / baud;
            assert_eq!(gap(character, Duration::ZERO).as_micros(), expected_us, "{baud}");
            assert_eq!(gap(character, Duration::from_millis(200)), Duration::from_millis(200));
        }
    }
}
