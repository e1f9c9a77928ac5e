//! `tidegate modbus guess`

use super::super::Exit;
use super::target::{Target, parse_address, parse_unit};
use super::{block, failed, misuse, unopened};
use crate::config::{ModbusPoint, Table};
use crate::field::modbus::advice::sister;
use crate::field::modbus::guess::{Candidate, Shown, WIDTH_MAX, Window, fits, shown_value, table};
use crate::field::modbus::probe::{Ask, OpenError, Probe, Said};

/// Registers that are read from the one before the asked one on: what begins at it or beside it, and a text.
const WINDOW: u16 = 18;
/// Explanations that are printed.
const SHOWN_MAX: usize = 8;

/// `tidegate modbus guess`
#[derive(Debug, clap::Args)]
pub(super) struct GuessArguments {
    #[command(flatten)]
    target: Target,
    /// The register that the manual names: holding:100, input:0x64, 40101
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    address: (Table, u16),
    /// Unit id
    #[arg(long, default_value = "1", value_parser = parse_unit)]
    unit: u8,
    /// What the device's display shows there: 21.5, or a text
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true, conflicts_with = "between")]
    shows: Option<String>,
    /// Or the range that it must be in: 15..30
    #[arg(long, value_name = "LOW..HIGH", allow_hyphen_values = true, value_parser = parse_range)]
    between: Option<(f64, f64)>,
}

fn parse_range(text: &str) -> Result<(f64, f64), String> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    let (low, high) = text.split_once("..").ok_or("write the lowest and the highest: 15..30")?;
    match (number(low), number(high)) {
        (Some(low), Some(high)) if low < high => Ok((low, high)),
        _ => Err("write the lowest and the highest: 15..30".to_owned()),
    }
}

pub(super) async fn run(arguments: &GuessArguments) -> Exit {
    let (asked_table, address) = arguments.address;
    if asked_table.is_bits() {
        return misuse("a coil or a discrete input is a single bit: there is nothing to guess");
    }
    let mut probe = match arguments.target.probe() {
        Ok(probe) => probe,
        Err(exit) => return exit,
    };
    let timeout = arguments.target.timeout();
    let ask = Ask { unit_id: arguments.unit, table: asked_table, address, quantity: 1, timeout };
    let shown = match (&arguments.shows, arguments.between) {
        (Some(text), _) => Some(Shown::parse(text)),
        (None, Some((low, high))) => Some(Shown::Between(low, high)),
        (None, None) => None,
    };
    let windows = match windows(&mut probe, &ask, shown.as_ref()).await {
        Ok(Ok(windows)) => windows,
        Ok(Err(said)) => return failed(&said, &ask, &arguments.target, &mut probe).await,
        Err(error) => return unopened(&error, &arguments.target),
    };
    let Some(shown) = shown else {
        for window in windows.iter().filter(|window| window.table == asked_table) {
            println!("{}:{address} under every type and order:\n\n{}", asked_table.word(), table(window, address));
        }
        eprintln!("With --shows VALUE (as on the device's display) or --between LOW..HIGH, what fits is named.");
        return Exit::Done;
    };
    let found = fits(&windows, arguments.address, &shown);
    let Some(best) = found.first() else {
        eprintln!("tidegate: nothing at {}:{address} or beside it fits", asked_table.word());
        eprintln!(
            "  help: another register: `tidegate modbus read {} {}:{address} --count 20`",
            arguments.target,
            asked_table.word()
        );
        eprintln!("  help: a value that moves: --between LOW..HIGH with what it can be");
        return Exit::Failed;
    };
    tell(&found, arguments.address);
    if matches!(shown, Shown::Number { value: 0.0, .. }) {
        eprintln!("A zero looks the same under every type: look again when the device shows something else.");
    }
    let point = ModbusPoint { name: block::point_name(&best.point).into(), ..best.point.clone() };
    block::print(&arguments.target.line(), &[(arguments.unit, vec![(point, 1)])]);
    Exit::Done
}

fn tell(found: &[Candidate], asked: (Table, u16)) {
    for (place, Candidate { point, value, .. }) in found.iter().take(SHOWN_MAX).enumerate() {
        let scale = if point.meaning.scale == 1.0 { String::new() } else { format!(", scale {}", point.meaning.scale) };
        let remark = match (point.table == asked.0, i32::from(point.address) - i32::from(asked.1)) {
            (false, _) => "   (the other table)",
            (true, -1) => "   (one less: the manual counts from 1; `address_base = 1`)",
            (true, 1) => "   (one more)",
            _ => "",
        };
        let (at, kind, order) =
            (format!("{}:{}", point.table.word(), point.address), point.kind.word(), point.order.word());
        println!(
            "{} {at:<14} {kind} {order}{scale} = {}{remark}",
            if place == 0 { "best:" } else { "also:" },
            shown_value(value)
        );
    }
    if found.len() > SHOWN_MAX {
        println!("and {} more", found.len() - SHOWN_MAX);
    }
    if found.len() > 1 {
        eprintln!("Several fit: look again with another value on the display, and keep what fits both times.");
    }
}

/// Registers around the asked one, of its own table and of the other, as far as the device has them; what it says to the
/// asked one alone where it has none.
async fn windows(probe: &mut Probe, ask: &Ask, shown: Option<&Shown>) -> Result<Result<Vec<Window>, Said>, OpenError> {
    let mut windows = Vec::new();
    let mut refusal = None;
    for table in [ask.table, sister(ask.table)] {
        // Devices refuse a request that reaches beyond what they have: ever smaller ones, the asked register last.
        let before = ask.address.saturating_sub(1);
        let own = match shown {
            Some(Shown::Text(text)) => u16::try_from(text.len().div_ceil(2)).unwrap_or(WINDOW).clamp(1, WINDOW),
            _ => WIDTH_MAX,
        };
        let reaches = [
            (before, WINDOW),
            (before, own + 2),
            (ask.address, own),
            (before, own),
            (ask.address, 2),
            (before, 2),
            (ask.address, 1),
        ];
        for (first, quantity) in reaches {
            if u32::from(first) + u32::from(quantity) > 65_536 {
                continue;
            }
            match probe.ask(&Ask { table, address: first, quantity, ..*ask }).await? {
                Said::Registers(words) => {
                    windows.push(Window { table, first, words });
                    break;
                }
                Said::Refused(code @ 1..=4) => {
                    if table == ask.table {
                        refusal = Some(Said::Refused(code));
                    }
                }
                // Silence is not asked six times more.
                failure if windows.is_empty() => return Ok(Err(failure)),
                _ => break,
            }
        }
    }
    Ok(match refusal {
        Some(refusal) if windows.is_empty() => Err(refusal),
        _ => Ok(windows),
    })
}
