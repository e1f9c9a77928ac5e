//! Words with a unit: durations, sizes, register addresses, urls, serial modes. Pure.
//!
//! Each function reads one text and says in the user's words what is wrong with it. It never guesses a unit: a bare
//! `5` meant as seconds and read as milliseconds would poll a plant to death.

use std::time::Duration;

use super::{AddressRange, BitRange, Parity, SerialMode, Table};

/// What is wrong with a value, and a way to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Follows the name of the key: "must be …".
    pub(super) what: String,
    /// A way to mend it.
    pub(super) help: Option<String>,
}

impl Wrong {
    pub(super) fn new(what: impl Into<String>) -> Wrong {
        Wrong { what: what.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Wrong {
        self.help = Some(help.into());
        self
    }
}

/// The longest duration that any key takes: ten years.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 86_400);

/// Splits `10 min` into its number and its unit.
fn number_and_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end).unwrap_or((text, ""));
    (number, unit.trim())
}

/// Reads `"5s"`, `"500ms"`, `"10 min"`, `"1h"`, `"30 days"`.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    const HELP: &str =
        "write a whole number and ms, s, min, h, days or weeks: \"500ms\", \"5s\", \"10min\", \"30 days\"";
    let (number, unit) = number_and_unit(text);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" | "second" | "seconds" => 1000,
        "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        "week" | "weeks" => 7 * 86_400_000,
        "" if !number.is_empty() => {
            return Err(Wrong::new(format!("{text:?} has no unit")).help(format!("{number:?} of what? {HELP}")));
        }
        "m" => {
            return Err(Wrong::new("the unit `m` could be minutes or months")
                .help(format!("for minutes write \"{number}min\"")));
        }
        _ => return Err(Wrong::new(format!("{text:?} is not a duration")).help(HELP)),
    };
    if number.contains('.') {
        return Err(Wrong::new(format!("{text:?} is not a whole number"))
            .help("take a smaller unit: \"500ms\" instead of \"0.5s\""));
    }
    let number: u64 = number.parse().map_err(|_| Wrong::new(format!("{text:?} is not a duration")).help(HELP))?;
    let duration = number.checked_mul(milliseconds).map(Duration::from_millis).filter(|d| *d <= DURATION_MAX);
    duration.ok_or_else(|| Wrong::new(format!("{text:?} is longer than ten years")))
}

/// A duration as the configuration would write it.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, size) in [(" days", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)] {
        if ms >= size && ms.is_multiple_of(size) {
            return format!("{}{unit}", ms / size);
        }
    }
    format!("{ms}ms")
}

/// Reads `"64 MiB"`, `"512 KiB"`, `"10 MB"`, `"800 B"`.
pub(super) fn size(text: &str) -> Result<u64, Wrong> {
    const HELP: &str = "write a whole number and B, KiB, MiB, GiB, TiB (powers of 1024) or KB, MB, GB, TB (powers of \
                        1000): \"64 MiB\"";
    let (number, unit) = number_and_unit(text);
    let factor: u64 = match unit {
        "B" | "byte" | "bytes" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "" if !number.is_empty() => {
            return Err(Wrong::new(format!("{text:?} has no unit")).help(format!("{number:?} of what? {HELP}")));
        }
        "K" | "k" | "M" | "G" | "T" | "Mb" | "Gb" | "kb" | "Kb" | "mb" | "gb" => {
            let letter = unit.get(..1).unwrap_or_default().to_uppercase();
            return Err(Wrong::new(format!("{unit:?} is not a unit of size")).help(format!(
                "write \"{number} {letter}iB\" (powers of 1024) or \"{number} {letter}B\" (powers of 1000)"
            )));
        }
        _ => return Err(Wrong::new(format!("{text:?} is not a size")).help(HELP)),
    };
    if number.contains('.') {
        return Err(Wrong::new(format!("{text:?} is not a whole number"))
            .help("take a smaller unit: \"512 MiB\" instead of \"0.5 GiB\""));
    }
    let number: u64 = number.parse().map_err(|_| Wrong::new(format!("{text:?} is not a size")).help(HELP))?;
    number
        .checked_mul(factor)
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| Wrong::new(format!("{text:?} is larger than any disk")))
}

/// A size as the configuration would write it.
pub(super) fn size_text(bytes: u64) -> String {
    for (unit, size) in [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{} {unit}", bytes / size);
        }
    }
    format!("{bytes} B")
}

/// Reads `holding:100`, `input:0x64`, `40101`; `base` is the number that the first register bears in the first form.
pub(super) fn address(text: &str, base: u16) -> Result<(Table, u16), Wrong> {
    const HELP: &str = "write the table and the number: \"holding:100\", \"input:0x64\", \"coil:3\", \"discrete:7\"; or \
                        a reference number: \"40101\"";
    let text = text.trim();
    let Some((table, number)) = text.split_once(':') else {
        return reference(text).ok_or_else(|| Wrong::new(format!("{text:?} is not an address")).help(HELP));
    };
    let table = match table.trim() {
        "holding" => Table::Holding,
        "input" => Table::Input,
        "coil" => Table::Coil,
        "discrete" => Table::Discrete,
        other => {
            let known = ["holding", "input", "coil", "discrete"];
            let help =
                super::walk::nearest(other, known).map_or(HELP.to_owned(), |near| format!("did you mean `{near}`?"));
            return Err(Wrong::new(format!("there is no table {other:?}")).help(help));
        }
    };
    let number = number.trim();
    let parsed = match number.strip_prefix("0x").or_else(|| number.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        None if number.bytes().all(|b| b.is_ascii_digit()) => number.parse().ok(),
        _ => None,
    };
    let Some(parsed) = parsed else {
        return Err(Wrong::new(format!("{number:?} is not a number of a register")).help(HELP));
    };
    let wire = parsed.checked_sub(u64::from(base)).and_then(|wire| u16::try_from(wire).ok());
    let range = format!("numbers go from {base} to {}, because `address_base` is {base}", 65_535 + u32::from(base));
    Ok((table, wire.ok_or_else(|| Wrong::new(format!("{number} is outside of the table")).help(range))?))
}

/// Reference numbers of old manuals: 5 or 6 digits, the first one names the table, the others count from 1.
fn reference(text: &str) -> Option<(Table, u16)> {
    if !matches!(text.len(), 5 | 6) || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (first, rest) = text.split_at_checked(1)?;
    let table = match first {
        "0" => Table::Coil,
        "1" => Table::Discrete,
        "3" => Table::Input,
        "4" => Table::Holding,
        _ => return None,
    };
    let wire = rest.parse::<u32>().ok()?.checked_sub(1)?;
    Some((table, u16::try_from(wire).ok()?))
}

/// Reads `holding:100`, `holding:100-199`, `40101-40120`.
pub(super) fn address_range(text: &str, base: u16) -> Result<AddressRange, Wrong> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (first.trim(), Some(last.trim())),
        None => (text.trim(), None),
    };
    let (table, start) = address(first, base)?;
    let Some(last) = last else { return Ok(AddressRange { table, first: start, last: start }) };
    // The table is written once: "holding:100-199".
    let whole = match first.split_once(':') {
        Some((table, _)) if !last.contains(':') => format!("{table}:{last}"),
        _ => last.to_owned(),
    };
    let (last_table, end) = address(&whole, base)?;
    if last_table != table || end < start {
        return Err(Wrong::new(format!("{text:?} is no range of addresses"))
            .help("write one table, the first and the last address: \"holding:100-199\""));
    }
    Ok(AddressRange { table, first: start, last: end })
}

/// Reads `4-7`: bits of a number, 0 being the least significant one.
pub(super) fn bit_range(text: &str) -> Result<BitRange, Wrong> {
    let wrong =
        || Wrong::new(format!("{text:?} is no range of bits")).help("write the lowest and the highest: \"4-7\"");
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<u8>().map_err(|_| wrong());
    let (low, high) = (number(low)?, number(high)?);
    if low > high || high > 63 { Err(wrong()) } else { Ok(BitRange { low, high }) }
}

/// Reads a whole number: `65535`, `-1`, `0xFFFF`.
pub(super) fn whole(text: &str) -> Result<i128, Wrong> {
    let text = text.trim();
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok().map(i128::from),
        Some(_) => None,
        None => text.parse::<i128>().ok(),
    };
    let in_range = parsed.filter(|number| i64::try_from(*number).is_ok() || u64::try_from(*number).is_ok());
    in_range.ok_or_else(|| Wrong::new(format!("{text:?} is not a whole number of at most 64 bits")))
}

/// Reads `0=off; 1=auto`.
pub(super) fn names(text: &str) -> Result<Vec<(i128, String)>, Wrong> {
    let entry = |entry: &str| {
        let (number, name) = entry.split_once('=').ok_or_else(|| {
            Wrong::new(format!("{:?} names no number", entry.trim())).help("write \"0=off; 1=auto; 2=hand\"")
        })?;
        Ok((whole(number)?, name.trim().to_owned()))
    };
    text.split(';').filter(|part| !part.trim().is_empty()).map(entry).collect()
}

/// Reads `8E1`.
pub(super) fn serial_mode(text: &str) -> Result<SerialMode, Wrong> {
    let wrong = || {
        Wrong::new(format!("{text:?} is not a serial mode"))
            .help("write data bits (7 or 8), parity (N, E or O) and stop bits (1 or 2): \"8E1\", \"8N1\", \"7E1\"")
    };
    let &[data, parity, stop] = text.as_bytes() else { return Err(wrong()) };
    let parity = match parity.to_ascii_uppercase() {
        b'N' => Parity::None,
        b'E' => Parity::Even,
        b'O' => Parity::Odd,
        _ => return Err(wrong()),
    };
    if !matches!(data, b'7' | b'8') || !matches!(stop, b'1' | b'2') {
        return Err(wrong());
    }
    Ok(SerialMode { data_bits: data - b'0', parity, stop_bits: stop - b'0' })
}

/// Scheme, host and port of `scheme://host[:port]`; a path may follow for WebSockets only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url<'t> {
    pub(super) scheme: &'t str,
    pub(super) host: &'t str,
    pub(super) port: Option<u16>,
    /// With its slash, and what follows; empty where there is none.
    pub(super) path: &'t str,
}

/// Takes a url apart.
pub(super) fn url(text: &str) -> Result<Url<'_>, Wrong> {
    if text.contains('@') {
        return Err(Wrong::new("a url must not carry a user name or a password")
            .help("write `username` and `password_file`: a configuration is copied, mailed and backed up"));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Wrong::new(format!("{text:?} is not a url")).help("write scheme://host:port"));
    };
    let path = rest.find(['/', '?']).and_then(|start| rest.get(start..)).unwrap_or_default();
    if !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(Wrong::new(format!("{path:?} is not a path")));
    }
    // A slash at the end says nothing; a path would be ignored in silence.
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?']) && !matches!(scheme, "ws" | "wss" | "http" | "https") {
        return Err(Wrong::new("nothing may follow the port"));
    }
    let rest = rest.split(['/', '?']).next().unwrap_or_default();
    let (host, port) = match rest.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']').ok_or_else(|| Wrong::new("the bracket [ is not closed"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(Wrong::new(format!("{host:?} is not an IPv6 address")));
            }
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(Wrong::new(format!("{after:?} cannot follow the address"))),
            }
        }
        None => match rest.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(Wrong::new("an IPv6 address stands in brackets").help("write scheme://[fe80::1]:port"));
            }
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    if host.is_empty() {
        return Err(Wrong::new("the host is missing").help(format!("write {scheme}://host:port")));
    }
    if host.len() > 253 || !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':')) {
        return Err(Wrong::new(format!("{host:?} is not a host name or an address")));
    }
    let port = match port {
        None => None,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Some(port),
            _ => return Err(Wrong::new(format!("{text:?} is not a port")).help("ports go from 1 to 65535")),
        },
    };
    Ok(Url { scheme, host, port, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit_only() {
        for (text, ms) in [
            ("500ms", 500),
            ("5s", 5000),
            ("10min", 600_000),
            ("10 min", 600_000),
            ("1h", 3_600_000),
            ("30 days", 2_592_000_000),
            ("1 day", 86_400_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration(&duration_text(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)));
        }
        for bad in ["", "5", "s", "5 m", "0.5s", "-1s", "5 s s", "5 fortnights", "99999999999999999999s", "4000 days"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_unit_only() {
        for (text, bytes) in
            [("64 MiB", 64 << 20), ("512 KiB", 512 << 10), ("1 GiB", 1 << 30), ("10 MB", 10_000_000), ("7B", 7)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(size(&size_text(bytes)), Ok(bytes));
        }
        for bad in ["", "64", "64 M", "1.5 GiB", "MiB", "64 Mib", "9999999999 GiB", "-1 B"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_become_wire_addresses() {
        for (text, base, expected) in [
            ("holding:100", 0, (Table::Holding, 100)),
            ("holding:100", 1, (Table::Holding, 99)),
            ("input:0x64", 0, (Table::Input, 100)),
            ("coil:3", 0, (Table::Coil, 3)),
            ("discrete:7", 0, (Table::Discrete, 7)),
            ("holding:65536", 1, (Table::Holding, 65_535)),
            ("40101", 0, (Table::Holding, 100)),
            ("40101", 1, (Table::Holding, 100)),
            ("400101", 0, (Table::Holding, 100)),
            ("465536", 0, (Table::Holding, 65_535)),
            ("30001", 0, (Table::Input, 0)),
            ("10001", 0, (Table::Discrete, 0)),
            ("00001", 0, (Table::Coil, 0)),
        ] {
            assert_eq!(address(text, base), Ok(expected), "{text}");
        }
        for bad in ["", "holding", "holding:", "holding:-1", "holding:0x", "holding:65536", "hold:1", "40000", "465537"]
        {
            assert!(address(bad, 0).is_err(), "{bad}");
        }
        assert!(address("20001", 0).is_err());
        assert!(address("holding:0", 1).is_err());
    }

    #[test]
    fn ranges_names_and_codes_are_read_strictly() {
        let range = |table, first, last| Ok(AddressRange { table, first, last });
        assert_eq!(address_range("holding:100-199", 0), range(Table::Holding, 100, 199));
        assert_eq!(address_range("holding:100 - 0xFF", 1), range(Table::Holding, 99, 254));
        assert_eq!(address_range("input:7", 0), range(Table::Input, 7, 7));
        assert_eq!(address_range("40101-40120", 0), range(Table::Holding, 100, 119));
        for bad in ["", "holding:9-5", "holding:1-input:5", "holding:1-", "holding:-5", "40101-30120", "1-2"] {
            assert!(address_range(bad, 0).is_err(), "{bad}");
        }
        assert_eq!(bit_range("4-7"), Ok(BitRange { low: 4, high: 7 }));
        assert_eq!(bit_range("3"), Ok(BitRange { low: 3, high: 3 }));
        for bad in ["", "7-4", "0-64", "a", "-1"] {
            assert!(bit_range(bad).is_err(), "{bad}");
        }
        assert_eq!(whole("0xFFFF"), Ok(65_535));
        assert_eq!(whole(" -1 "), Ok(-1));
        assert_eq!(whole("18446744073709551615"), Ok(i128::from(u64::MAX)));
        for bad in ["", "0x", "1.5", "18446744073709551616", "0xFFFFFFFFFFFFFFFFF", "-9223372036854775809", "+ 1"] {
            assert!(whole(bad).is_err(), "{bad}");
        }
        assert_eq!(names("0=off; 0x1 = auto;"), Ok(vec![(0, "off".to_owned()), (1, "auto".to_owned())]));
        assert!(names("off").is_err() && names("x=off").is_err());
    }

    #[test]
    fn urls_and_modes_are_taken_apart_strictly() {
        assert_eq!(url("tcp://h:502"), Ok(Url { scheme: "tcp", host: "h", port: Some(502), path: "" }));
        assert_eq!(url("mqtts://[::1]:8883/"), Ok(Url { scheme: "mqtts", host: "::1", port: Some(8883), path: "/" }));
        for bad in [
            "",
            "h:1",
            "tcp://",
            "tcp://h:0",
            "tcp://h:65536",
            "tcp://h:+5",
            "tcp://u:p@h",
            "tcp://h/x",
            "tcp://::1:5",
            "tcp://a b",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
        assert_eq!(serial_mode("7e2"), Ok(SerialMode { data_bits: 7, parity: Parity::Even, stop_bits: 2 }));
        for bad in ["", "8E", "9N1", "8X1", "8N3", "8N1 "] {
            assert!(serial_mode(bad).is_err(), "{bad}");
        }
    }
}
