//! `tidegate modbus read`

use super::super::Exit;
use super::target::{Target, parse_address, parse_kind, parse_order, parse_unit};
use super::{block, failed, misuse, unopened};
use crate::config::{Meaning, ModbusPoint, PointKind, Table, WordOrder};
use crate::field::modbus::decode;
use crate::field::modbus::guess::shown_value;
use crate::field::modbus::probe::{Ask, Said};

/// `tidegate modbus read`
#[derive(Debug, clap::Args)]
pub(super) struct ReadArguments {
    #[command(flatten)]
    target: Target,
    /// Where to read: holding:100, input:0x64, coil:3, discrete:7 (numbers on the wire, from 0), or 40101
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    address: (Table, u16),
    /// Unit id
    #[arg(long, default_value = "1", value_parser = parse_unit)]
    unit: u8,
    /// Type: u16, i16, u32, i32, u64, i64, f32, f64, u8, i8, bool, string:8 [default: u16; bool for bits]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_kind)]
    kind: Option<PointKind>,
    /// Order of bytes and words: abcd, cdab, badc, dcba
    #[arg(long, default_value = "abcd", value_parser = parse_order)]
    order: WordOrder,
    /// value = raw × scale
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// How many such values follow each other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=2000))]
    count: u16,
}

pub(super) async fn run(arguments: &ReadArguments) -> Exit {
    let (table, address) = arguments.address;
    let kind = arguments.kind.unwrap_or(if table.is_bits() { PointKind::Bool } else { PointKind::U16 });
    if table.is_bits() && kind != PointKind::Bool {
        return misuse("a coil or a discrete input is a single bit, and can only be read as bool");
    }
    if !arguments.scale.is_finite() || arguments.scale == 0.0 {
        return misuse("a scale is a number other than 0");
    }
    let most = if table.is_bits() { 2000 } else { 125 };
    let quantity = match kind.width().checked_mul(arguments.count) {
        Some(quantity) if quantity <= most => quantity,
        _ => return misuse(&format!("one request reads at most {most}: ask for fewer with --count")),
    };
    if u32::from(address) + u32::from(quantity) > 65_536 {
        return misuse("the last address of a table is 65535");
    }
    let mut probe = match arguments.target.probe() {
        Ok(probe) => probe,
        Err(exit) => return exit,
    };
    let ask = Ask { unit_id: arguments.unit, table, address, quantity, timeout: arguments.target.timeout() };
    let (said, took) = match probe.ask_timed(&ask).await {
        Ok(answer) => answer,
        Err(error) => return unopened(&error, &arguments.target),
    };
    let mut first = ModbusPoint::plain("value", table, address, kind, arguments.order);
    first.meaning = Meaning { scale: arguments.scale, ..Meaning::default() };
    first.name = block::point_name(&first).into();
    let points = (0..arguments.count).map(|number| ModbusPoint {
        address: address.saturating_add(kind.width().saturating_mul(number)),
        ..first.clone()
    });
    match &said {
        Said::Registers(words) => {
            for (point, words) in points.zip(words.chunks(usize::from(kind.width()))) {
                let value = match decode::registers(&point, words) {
                    Ok(decoded) => shown_value(&decoded.value),
                    Err(refusal) => format!("- ({refusal})"),
                };
                let hex = words.iter().map(|word| format!("{word:04X}")).collect::<Vec<_>>().join(" ");
                println!("{:<14} {value:>20}   {hex}", format!("{}:{}", table.word(), point.address));
            }
        }
        Said::Bits(bits) => {
            for (point, bit) in points.zip(bits) {
                println!("{:<14} {bit:>20}", format!("{}:{}", table.word(), point.address));
            }
        }
        failure => return failed(failure, &ask, &arguments.target, &mut probe).await,
    }
    eprintln!("answered in {:.1} ms", took.as_secs_f64() * 1e3);
    block::print(&arguments.target.line(), &[(arguments.unit, vec![(first, arguments.count)])]);
    Exit::Done
}
