//! Numbers for people, as more than one subcommand prints them. Pure.

/// `1234567` → `1,234,567`
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds since 1970 of a time on the command line, in UTC: `2026-11-26`, `2026-11-26T08:30`, `2026-11-26T08:30:00Z`.
pub(super) fn parse_time(text: &str) -> Result<i64, String> {
    let bare = text.strip_suffix('Z').unwrap_or(text);
    let (date, clock) = bare.split_once(['T', ' ']).unwrap_or((bare, "00:00"));
    let mut clock = clock.to_owned();
    if clock.len() == 5 {
        clock += ":00";
    }
    if !clock.contains('.') {
        clock += ".000";
    }
    let is_of_digits = clock.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b'.'));
    let parts: Vec<u32> = clock.split([':', '.']).filter_map(|part| part.parse().ok()).collect();
    let is_clock = matches!(parts.as_slice(), [hour, minute, second, milli] if *hour < 24 && *minute < 60 && *second < 60 && *milli < 1000);
    super::status::wall_ms_of(&format!("{date}T{clock}Z"))
        .filter(|_| is_of_digits && is_clock && clock.len() == 12 && date.len() == 10)
        .ok_or_else(|| format!("{text:?} is not a time; write it as 2026-11-26T08:30 (UTC)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn times_are_read_and_nonsense_is_not() {
        let day = 1_795_651_200_000;
        assert_eq!(parse_time("2026-11-26"), Ok(day));
        for (text, ms) in
            [("T08:30", 30_600_000), ("T08:30:01", 30_601_000), ("T08:30:01.250Z", 30_601_250), (" 23:59Z", 86_340_000)]
        {
            assert_eq!(parse_time(&format!("2026-11-26{text}")), Ok(day + ms), "{text}");
        }
        for nonsense in [
            "",
            "Z",
            "26-11-26",
            "2026-11-26T",
            "2026-11-26T8:30",
            "2026-11-26T24:00",
            "2026-13-01",
            "2026-11-26T-1:00",
            "x",
        ] {
            assert!(parse_time(nonsense).is_err(), "{nonsense}");
        }
    }
}
