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
