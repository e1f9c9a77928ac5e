//! `tidegate modbus write`: reads first, asks, writes once, and reads back. The device's word decides.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use serde_json::Value as Json;

use super::super::Exit;
use super::target::{Target, parse_address, parse_kind, parse_order, parse_unit};
use super::{block, failed, misuse, unopened};
use crate::config::{Meaning, ModbusPoint, PointKind, Table, WordOrder};
use crate::field::modbus::advice;
use crate::field::modbus::decode;
use crate::field::modbus::encode::{Wire, encode, merged};
use crate::field::modbus::guess::shown_value;
use crate::field::modbus::probe::{Ask, OpenError, Probe, Put, Said, What};
use crate::message::Value;

/// `tidegate modbus write`
#[derive(Debug, clap::Args)]
pub(super) struct WriteArguments {
    #[command(flatten)]
    target: Target,
    /// Where to write: holding:210 or coil:3 (numbers on the wire, from 0), or 40211
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    address: (Table, u16),
    /// What to write: 21.5, true, off, or a text
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: String,
    /// Unit id
    #[arg(long, default_value = "1", value_parser = parse_unit)]
    unit: u8,
    /// Type: u16, i16, u32, i32, u64, i64, f32, f64, u8, i8, bool, string:8 [default: u16; bool for a coil]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_kind)]
    kind: Option<PointKind>,
    /// Order of bytes and words: abcd, cdab, badc, dcba
    #[arg(long, default_value = "abcd", value_parser = parse_order)]
    order: WordOrder,
    /// value = raw × scale
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// By function 16 or 15 also where 6 or 5 would do: some devices know only these
    #[arg(long)]
    multiple: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(arguments: &WriteArguments) -> Exit {
    let (table, address) = arguments.address;
    if !matches!(table, Table::Holding | Table::Coil) {
        return misuse("only holding registers and coils can be written");
    }
    let kind = arguments.kind.unwrap_or(if table.is_bits() { PointKind::Bool } else { PointKind::U16 });
    if table.is_bits() && kind != PointKind::Bool {
        return misuse("a coil is a single bit, and can only be written as bool");
    }
    if !arguments.scale.is_finite() || arguments.scale == 0.0 {
        return misuse("a scale is a number other than 0");
    }
    if u32::from(address) + u32::from(kind.width()) > 65_536 {
        return misuse("the last address of a table is 65535");
    }
    let mut point = ModbusPoint::plain("value", table, address, kind, arguments.order);
    point.meaning = Meaning { scale: arguments.scale, ..Meaning::default() };
    let encoded = match encode(&point, &json(&arguments.value, kind)) {
        Ok(encoded) => encoded,
        Err(unwritable) => return misuse(&format!("{:?} cannot be written: {}", arguments.value, unwritable.reason)),
    };
    let mut probe = match arguments.target.probe() {
        Ok(probe) => probe,
        Err(exit) => return exit,
    };
    match written(arguments, &point, &encoded.wire, &encoded.value, &mut probe).await {
        Ok(exit) => exit,
        Err(error) => unopened(&error, &arguments.target),
    }
}

/// What was typed, as a number, a truth or a text.
fn json(text: &str, kind: PointKind) -> Json {
    if matches!(kind, PointKind::String { .. }) {
        return Json::from(text);
    }
    match text.trim() {
        "true" | "on" => Json::from(true),
        "false" | "off" => Json::from(false),
        number => serde_json::from_str(number).unwrap_or_else(|_| Json::from(text)),
    }
}

async fn written(
    arguments: &WriteArguments,
    point: &ModbusPoint,
    wire: &Wire,
    value: &Value,
    probe: &mut Probe,
) -> Result<Exit, OpenError> {
    let (unit_id, timeout) = (arguments.unit, arguments.target.timeout());
    let (table, address) = (point.table, point.address);
    let ask = Ask { unit_id, table, address, quantity: point.kind.width(), timeout };
    // Read first: it says what is there, whether it is the right place at all, and whether the line echoes.
    let before = probe.ask(&ask).await?;
    let held = match &before {
        Said::Registers(words) => words.clone(),
        Said::Bits(_) => Vec::new(),
        failure => return Ok(failed(failure, &ask, &arguments.target, probe).await),
    };
    let place = format!("{}:{address} of unit {unit_id} on {}", table.word(), arguments.target);
    println!("{place} is {}", read_value(point, &before));
    if !arguments.yes && !is_confirmed(&format!("write {}?", shown_value(value))) {
        eprintln!("tidegate: nothing was written");
        return Ok(Exit::Usage);
    }
    let what = match wire {
        Wire::Coil(is_on) => What::Coil(*is_on),
        Wire::Registers(words) => What::Registers(words.clone()),
        Wire::Part { words, masks } => What::Registers(merged(&held, words, masks)),
    };
    let put = Put { unit_id, address, what, by_multiple: arguments.multiple, timeout };
    let (said, has_sent) = probe.put(&put).await?;
    if said != Said::Written {
        let verdict = advice::verdict(&said, &ask).unwrap_or_default();
        eprintln!("tidegate: {verdict}");
        match said {
            Said::Refused(1) => eprintln!("  help: the device knows another function: --multiple writes by 16 or 15"),
            Said::Refused(2) => eprintln!("  help: it can be read but not written there: its manual names what can"),
            Said::Refused(3) => eprintln!("  help: the device does not take this value: its manual names the range"),
            _ if has_sent => eprintln!("  whether it was carried out is not known: what is read back decides"),
            _ => eprintln!("  nothing was sent"),
        }
        if matches!(said, Said::Refused(_)) || !has_sent {
            return Ok(super::exit(&said));
        }
    }
    let after = probe.ask(&ask).await?;
    let back = read_value(point, &after);
    let is_it = matches!(&after, Said::Registers(_) | Said::Bits(_)) && back == shown_value(value);
    println!("{place} is {back} now");
    if is_it {
        let write = Some(crate::config::Write::default());
        let named = ModbusPoint { name: block::point_name(point).into(), write, ..point.clone() };
        block::print(&arguments.target.line(), &[(unit_id, vec![(named, 1)])]);
        return Ok(Exit::Done);
    }
    eprintln!("tidegate: what is read back is not what was written");
    eprintln!("  help: a device may clamp the value, take a moment, or keep it for a command word: read again");
    Ok(Exit::Failed)
}

fn read_value(point: &ModbusPoint, said: &Said) -> String {
    let decoded = match said {
        Said::Registers(words) => decode::registers(point, words),
        Said::Bits(bits) => match bits.first() {
            Some(bit) => decode::bit(&point.meaning, *bit),
            None => return "-".to_owned(),
        },
        _ => return "not to be read".to_owned(),
    };
    decoded.map_or_else(|refusal| format!("- ({refusal})"), |decoded| shown_value(&decoded.value))
}

/// Asks at a terminal; elsewhere nobody could answer, and the answer is no.
fn is_confirmed(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        eprintln!("tidegate: there is no terminal to ask at: --yes writes without asking");
        return false;
    }
    let mut stderr = std::io::stderr();
    // Where the terminal is gone there is nobody to say yes.
    let _closed = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}
