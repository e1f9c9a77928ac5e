//! What to do when a device does not say what was asked: in a few sentences, the likeliest first. Pure.

use super::fault::exception_name;
use super::probe::{Ask, Said};
use crate::config::{LineKind, Table};

/// What happened, in one line; `None` where it is the answer.
pub fn verdict(said: &Said, ask: &Ask) -> Option<String> {
    let (unit, ms) = (ask.unit_id, ask.timeout.as_millis());
    Some(match said {
        Said::Registers(_) | Said::Bits(_) | Said::Written => return None,
        Said::Refused(code) => format!("unit {unit} refuses: exception {code}, {}", exception_name(*code)),
        Said::Silent { heard: false } => format!("unit {unit} does not answer: nothing came in {ms} ms"),
        Said::Silent { heard: true } => {
            format!("unit {unit} does not answer: bytes came in {ms} ms, but no whole answer")
        }
        Said::Broken { reason, .. } => (*reason).to_owned(),
        Said::Lost(error) => format!("the line is gone: {error}"),
    })
}

/// What happened, of the reason that the gateway tells of a device or a point (`super::Unit::reason`).
pub fn from_reason(reason: &str) -> Said {
    let code = reason.rsplit_once("(exception ").and_then(|(_, rest)| rest.trim_end_matches(')').parse().ok());
    match (code, reason) {
        (Some(code), _) => Said::Refused(code),
        (None, reason) if reason.starts_with("no answer") => Said::Silent { heard: false },
        (None, reason) if reason.starts_with("no whole answer") => Said::Silent { heard: true },
        (None, reason) if reason.starts_with("the connection was lost") => Said::Lost(reason.to_owned()),
        (None, reason) if reason.starts_with("the answer is from another unit") => {
            Said::Broken { kind: "unit", reason: "the answer is from another unit" }
        }
        _ => Said::Broken { kind: "other", reason: "something else than the answer came" },
    }
}

/// What to do about it; `target` is the line as it was written on the command line.
pub fn advice(said: &Said, ask: &Ask, line: &LineKind, target: &str) -> Vec<String> {
    let unit = ask.unit_id;
    match (said, line) {
        (Said::Registers(_) | Said::Bits(_) | Said::Written, _) => Vec::new(),
        (Said::Refused(code), _) => refused(*code, ask),
        (Said::Silent { heard: false }, LineKind::Rtu(_)) => vec![
            format!("the unit id, or the baud rate and parity: `tidegate modbus scan {target} --try` looks for both"),
            "the wiring: power at the device, A and B the right way round, the common wire, 120 ohm at both ends"
                .to_owned(),
            "a slow device: --timeout 3s".to_owned(),
        ],
        (Said::Silent { heard: true } | Said::Broken { .. }, LineKind::Rtu(_)) => vec![
            format!("baud rate or parity, most of the time: `tidegate modbus scan {target} --try` finds them"),
            "another program or a second client on the bus, or two devices with one unit id".to_owned(),
            "the wiring: missing common wire, no termination, no bias".to_owned(),
        ],
        (Said::Silent { .. }, LineKind::Tcp { .. }) => vec![
            format!(
                "another unit id: devices on TCP are mostly 1 or 255; `tidegate modbus scan {target}` asks for them"
            ),
            "a converter that carries serial frames: write rtu-tcp:// in place of tcp://".to_owned(),
            format!("behind a gateway the unit {unit} itself: its power, its wiring, its unit id; and --timeout 3s"),
        ],
        (Said::Silent { .. }, LineKind::RtuOverTcp { .. }) => vec![
            "a device or gateway that speaks Modbus TCP: write tcp:// in place of rtu-tcp://".to_owned(),
            format!("the unit id: `tidegate modbus scan {target}` asks for them"),
            "baud rate and parity that are set in the converter, and the wiring behind it".to_owned(),
        ],
        (Said::Broken { kind: "unit", .. }, _) => vec![format!(
            "another unit answers than {unit}: some devices on TCP answer as 1 or 255 whatever they are asked; try --unit 255 and --unit 1"
        )],
        (Said::Broken { .. }, LineKind::Tcp { .. }) => vec![
            "a converter that carries serial frames: write rtu-tcp:// in place of tcp://".to_owned(),
            "something that is not Modbus listens there: is it the right port?".to_owned(),
        ],
        (Said::Broken { .. }, LineKind::RtuOverTcp { .. }) => vec![
            "a device that speaks Modbus TCP: write tcp:// in place of rtu-tcp://".to_owned(),
            "baud rate and parity that are set in the converter".to_owned(),
        ],
        (Said::Lost(_), LineKind::Rtu(_)) => vec!["the adapter: was it pulled? `dmesg` tells".to_owned()],
        (Said::Lost(_), _) => vec![
            "a device that serves few connections: end other clients, or try again in a minute".to_owned(),
            "the wrong port: Modbus TCP is 502, converters choose their own".to_owned(),
        ],
    }
}

fn refused(code: u8, ask: &Ask) -> Vec<String> {
    let (table, address) = (ask.table.word(), ask.address);
    let other = sister(ask.table).word();
    match code {
        1 => vec![format!("the device does not know this function: try {other}:{address}")],
        2 => {
            let mut lines = Vec::new();
            if let Some(before) = address.checked_sub(1) {
                lines.push(format!(
                    "the address base: a manual that counts from 1 means {table}:{before} (`address_base = 1`)"
                ));
            }
            lines.push(format!("the other table: {other}:{address}"));
            if ask.quantity > 1 {
                lines.push(format!("{} addresses in one go may reach beyond the table: ask for fewer", ask.quantity));
            }
            lines
        }
        3 => vec![format!(
            "the device takes fewer than {} in one request: `max_registers`, or a smaller --count",
            ask.quantity
        )],
        5 | 6 => vec!["the device is busy: try again in a moment".to_owned()],
        10 => vec!["the gateway has no way to this unit: look at its own settings (unit id, serial port)".to_owned()],
        11 => vec![
            "the device behind the gateway does not answer: its power, its wiring, its unit id, its baud rate"
                .to_owned(),
        ],
        _ => vec!["the device has a fault of its own: its manual or its display says more".to_owned()],
    }
}

/// The table that is taken for this one.
pub fn sister(table: Table) -> Table {
    match table {
        Table::Holding => Table::Input,
        Table::Input => Table::Holding,
        Table::Coil => Table::Discrete,
        Table::Discrete => Table::Coil,
    }
}

/// Another question that shows which mistake was made, and that mistake in words.
#[derive(Debug, Clone, PartialEq)]
pub struct SecondLook {
    /// What to ask.
    pub ask: Ask,
    /// On a line of this kind, where it is not the same.
    pub line: Option<LineKind>,
    /// What it means if it is answered.
    pub meaning: String,
}

/// What to ask next after a failure, few and cheap, so that the mistake is named and not only guessed at.
pub fn second_looks(said: &Said, ask: &Ask, line: &LineKind) -> Vec<SecondLook> {
    let same_line = |ask, meaning| SecondLook { ask, line: None, meaning };
    let table = ask.table.word();
    let mut looks = Vec::new();
    match said {
        Said::Refused(1..=3) => {
            if let Some(before) = ask.address.checked_sub(1) {
                let meaning = format!(
                    "{table}:{before} is there: the manual counts from 1, so `address_base = 1`, or one less in the address"
                );
                looks.push(same_line(Ask { address: before, ..*ask }, meaning));
            }
            let other = sister(ask.table);
            let meaning = format!("{}:{} is there: it is the other table", other.word(), ask.address);
            looks.push(same_line(Ask { table: other, ..*ask }, meaning));
            if ask.quantity > 1 {
                let meaning = format!("{table}:{} alone is there: the device takes fewer in one request", ask.address);
                looks.push(same_line(Ask { quantity: 1, ..*ask }, meaning));
            }
        }
        Said::Silent { .. } | Said::Broken { .. } | Said::Lost(_) => {
            let other_framing = match line {
                LineKind::Tcp { host, port } => {
                    Some((LineKind::RtuOverTcp { host: host.clone(), port: *port }, "rtu-tcp"))
                }
                LineKind::RtuOverTcp { host, port } => Some((LineKind::Tcp { host: host.clone(), port: *port }, "tcp")),
                LineKind::Rtu(_) => None,
            };
            if let Some((kind, scheme)) = other_framing {
                let meaning = format!("unit {} answers on {scheme}://: the frames are of the other kind", ask.unit_id);
                looks.push(SecondLook { ask: *ask, line: Some(kind), meaning });
                for unit_id in [1, 255].into_iter().filter(|unit| *unit != ask.unit_id) {
                    let meaning = format!("unit {unit_id} answers: the unit id is another one, and may be this");
                    looks.push(same_line(Ask { unit_id, ..*ask }, meaning));
                }
            }
        }
        Said::Registers(_) | Said::Bits(_) | Said::Written | Said::Refused(_) => {}
    }
    looks
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ask(address: u16) -> Ask {
        Ask { unit_id: 7, table: Table::Holding, address, quantity: 2, timeout: Duration::from_secs(1) }
    }

    fn port() -> LineKind {
        LineKind::Rtu(crate::config::PortConfig::new(
            "/dev/ttyUSB0",
            std::num::NonZeroU32::MIN,
            crate::config::parse_serial_mode("8E1").unwrap(),
        ))
    }

    #[test]
    fn every_failure_is_told_with_something_to_do() {
        let tcp = LineKind::Tcp { host: "h".into(), port: 502 };
        let over = LineKind::RtuOverTcp { host: "h".into(), port: 4001 };
        let broken = |kind| Said::Broken { kind, reason: "r" };
        let mut failures = vec![Said::Silent { heard: false }, Said::Silent { heard: true }, Said::Lost("x".into())];
        failures.extend([broken("unit"), broken("checksum"), broken("transaction")]);
        failures.extend((1..=11).chain([255]).map(Said::Refused));
        for said in failures {
            for line in [&tcp, &over, &port()] {
                assert!(!advice(&said, &ask(0), line, "L").is_empty(), "{said:?} on {line:?}");
                assert!(verdict(&said, &ask(0)).is_some(), "{said:?}");
            }
        }
    }

    #[test]
    fn silence_points_to_wiring_settings_and_unit_and_exception_two_to_the_address_base() {
        let silent = advice(&Said::Silent { heard: false }, &ask(100), &port(), "/dev/ttyUSB0").join("\n");
        for word in ["wiring", "baud rate and parity", "unit id", "scan /dev/ttyUSB0 --try"] {
            assert!(silent.contains(word), "{word}: {silent}");
        }
        let refused = advice(&Said::Refused(2), &ask(100), &port(), "x").join("\n");
        assert!(refused.contains("address base") && refused.contains("holding:99"), "{refused}");
        assert!(!advice(&Said::Refused(2), &ask(0), &port(), "x").join("\n").contains("address base"));
    }

    #[test]
    fn what_the_gateway_says_of_a_device_is_understood() {
        for (reason, said) in [
            ("no answer within 300 ms", Said::Silent { heard: false }),
            ("no whole answer within 1000 ms", Said::Silent { heard: true }),
            ("the device refuses: illegal data address (exception 2)", Said::Refused(2)),
        ] {
            assert_eq!(from_reason(reason), said);
        }
        assert!(matches!(from_reason("the checksum of the answer is wrong"), Said::Broken { kind: "other", .. }));
        assert!(matches!(from_reason("the answer is from another unit, or noise"), Said::Broken { kind: "unit", .. }));
    }

    #[test]
    fn a_second_look_asks_for_the_likely_mistake() {
        let looks = second_looks(&Said::Refused(2), &ask(100), &port());
        let asked: Vec<(Table, u16, u16)> =
            looks.iter().map(|look| (look.ask.table, look.ask.address, look.ask.quantity)).collect();
        assert_eq!(asked, [(Table::Holding, 99, 2), (Table::Input, 100, 2), (Table::Holding, 100, 1)]);
        assert!(second_looks(&Said::Silent { heard: false }, &ask(100), &port()).is_empty());
        let tcp = LineKind::Tcp { host: "h".into(), port: 502 };
        let looks = second_looks(&Said::Silent { heard: false }, &ask(100), &tcp);
        assert_eq!(looks.iter().map(|look| look.ask.unit_id).collect::<Vec<_>>(), [7, 1, 255]);
        assert!(matches!(looks[0].line, Some(LineKind::RtuOverTcp { .. })));
    }
}
