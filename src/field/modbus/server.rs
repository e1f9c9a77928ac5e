//! What the answering side of Modbus asks of a bank of registers, for simulated devices and tests. Never part of the
//! gateway's own work.

use crate::config::Table;

/// What a bank says to a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Registers.
    Words(Vec<u16>),
    /// Coils or discrete inputs.
    Bits(Vec<bool>),
    /// An exception code.
    Refuse(u8),
    /// Nothing at all: the unit is dead, or another one's.
    Silence,
}

/// The registers of some units.
pub trait Bank: Send + Sync + 'static {
    /// Reads one table of one unit.
    fn read(&self, unit_id: u8, table: Table, address: u16, quantity: u16) -> Reply;
}
