//! The requests of a configuration as a text, byte by byte: what an owner compares with a manual or a line analyser. Pure.

use std::fmt::Write as _;

use super::forecast::forecasts;
use super::plan::{self, Block};
use super::reply::crc;
use crate::config::{Config, LineKind, ModbusConfig, Table, duration_text};

/// Every request of every line, with what it reads.
pub fn requests(config: &Config) -> String {
    let mut text = String::new();
    for forecast in forecasts(config) {
        let (devices, requests) = (counted(forecast.devices, "device"), counted(forecast.requests, "request"));
        let busy = forecast.load * 100.0;
        let _infallible = writeln!(text, "line {}: {devices}, {requests}, {busy:.0} % busy", forecast.line);
        let Some(line) = config.lines.get(&forecast.line) else { continue };
        for (name, device) in config.modbus.iter().filter(|(_, device)| device.line == forecast.line) {
            let _infallible = writeln!(text, "  {name}, unit {}", device.unit_id);
            for block in plan::requests(&plan::points(device), &device.limits) {
                let _infallible = writeln!(text, "    {}", bytes(&line.kind, device.unit_id, &block));
                let _infallible = writeln!(text, "        {}", words(device, &block));
            }
        }
    }
    text
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The request on the wire; `..` for the transaction id, which is another each time.
fn bytes(kind: &LineKind, unit_id: u8, block: &Block) -> String {
    let mut frame = vec![unit_id, block.table.read_function()];
    frame.extend(block.address.to_be_bytes());
    frame.extend(block.quantity.to_be_bytes());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(" ");
    match kind {
        // Modbus Messaging on TCP/IP 1.0b, 3.1.3: protocol 0, and 6 bytes follow.
        LineKind::Tcp { .. } => format!(".. .. 00 00 00 06 {}", hex(&frame)),
        LineKind::Rtu(_) | LineKind::RtuOverTcp { .. } => {
            let sum = crc(&frame);
            frame.extend(sum.to_le_bytes());
            hex(&frame)
        }
    }
}

/// `input 0-59 (30001-30060) every 30s: voltage_l1, voltage_l2`
fn words(device: &ModbusConfig, block: &Block) -> String {
    let first = u32::from(block.address);
    let last = (first + u32::from(block.quantity)).saturating_sub(1);
    let range = |number: fn(Table, u32) -> String| match (number(block.table, first), number(block.table, last)) {
        (first, last) if first == last => first,
        (first, last) => format!("{first}-{last}"),
    };
    let names = block.points.iter().filter_map(|number| device.points.get(*number)).map(|point| &*point.name);
    let names = names.collect::<Vec<_>>().join(", ");
    let (wire, reference) = (range(|_, address| address.to_string()), range(reference));
    format!("{} {wire} ({reference}) every {}: {names}", block.table.word(), duration_text(block.interval))
}

/// As old manuals count: the first digit names the table, the others count from 1.
fn reference(table: Table, address: u32) -> String {
    let digit = match table {
        Table::Coil => 0,
        Table::Discrete => 1,
        Table::Input => 3,
        Table::Holding => 4,
    };
    let number = address + 1;
    if number <= 9999 { format!("{digit}{number:04}") } else { format!("{digit}{number:05}") }
}
