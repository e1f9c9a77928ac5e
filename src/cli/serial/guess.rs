//! What a device's protocol may be like, from what it said. Pure.
//!
//! Promises: a proposal, never more: it is printed to be looked at, and what it cannot tell it leaves to the manual.

/// Bursts that are kept to guess from, and bytes of each.
pub(super) const SAMPLES_MAX: usize = 64;
pub(super) const SAMPLE_BYTES_MAX: usize = 1024;

/// Proposed values of the keys `frame` and `parse`, as TOML, and the points where some are needed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Guess {
    pub(super) frame: Option<String>,
    pub(super) parse: Option<String>,
    pub(super) points: Vec<String>,
    /// What the owner should look at.
    pub(super) hints: Vec<String>,
}

/// Looks at bursts of bytes between silences, or at frames.
pub(super) fn guess(samples: &[Vec<u8>]) -> Guess {
    let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).filter(|sample| !sample.is_empty()).collect();
    let mut guess = Guess::default();
    let all: Vec<u8> = samples.concat();
    if all.is_empty() {
        return guess;
    }
    if let Some(mode) = seven_bits(&all) {
        guess.hints.push(format!("every byte has this parity in its highest bit: try --mode {mode}"));
        return guess;
    }
    if !is_text(&all) {
        if all.iter().all(|byte| matches!(byte, 0 | 0xff | 0x80 | 0xfe | 0xf8 | 0xe0 | 0xc0 | 0xf0)) {
            guess.hints.push("only bytes like 00, 80 and FF: the rate (--baud) may be wrong".to_owned());
        }
        binary(&samples, &mut guess);
        return guess;
    }
    let ends =
        [("\r\n", r#"{ delimiter = "\r\n" }"#), ("\n", r#"{ delimiter = "\n" }"#), ("\r", r#"{ delimiter = "\r" }"#)];
    let (mark, lines) = if samples.iter().all(|sample| sample.starts_with(b"\x02")) && all.contains(&3) {
        guess.frame = Some("{ start = 0x02, end = 0x03 }".to_owned());
        (&[3_u8][..], samples.clone())
    } else if let Some((end, frame)) = ends.iter().find(|(end, _)| all.ends_with(end.as_bytes())) {
        guess.frame = Some((*frame).to_owned());
        (end.as_bytes(), samples.clone())
    } else {
        (&[][..], samples.clone())
    };
    let texts: Vec<String> = split(&lines.concat(), mark);
    content(&texts, &mut guess);
    guess
}

/// Seven data bits with parity, read as eight: text once the highest bit is gone, and not before.
fn seven_bits(all: &[u8]) -> Option<&'static str> {
    let stripped: Vec<u8> = all.iter().map(|byte| byte & 0x7f).collect();
    if all.iter().all(|byte| *byte < 0x80) || !is_text(&stripped) || all.len() < 8 {
        return None;
    }
    if all.iter().all(|byte| byte.count_ones() % 2 == 0) {
        Some("7E1")
    } else if all.iter().all(|byte| byte.count_ones() % 2 == 1) {
        Some("7O1")
    } else {
        None
    }
}

fn is_text(bytes: &[u8]) -> bool {
    let text = bytes.iter().filter(|byte| matches!(byte, 0x20..=0x7e | b'\r' | b'\n' | b'\t' | 2 | 3)).count();
    text * 20 >= bytes.len() * 19
}

fn split(bytes: &[u8], mark: &[u8]) -> Vec<String> {
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let mark: String = mark.iter().map(|byte| char::from(*byte)).collect();
    let parts: Vec<&str> = if mark.is_empty() { vec![text.as_str()] } else { text.split(&mark).collect() };
    let trimmed = parts.iter().map(|part| part.trim_matches(|c: char| c.is_ascii_whitespace() || c.is_control()));
    trimmed.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// How the text between the ends may be taken apart.
fn content(texts: &[String], guess: &mut Guess) {
    let objects: Option<Vec<serde_json::Value>> = texts.iter().map(|text| serde_json::from_str(text).ok()).collect();
    if let Some(serde_json::Value::Object(object)) = objects.as_ref().and_then(|objects| objects.first()) {
        guess.parse = Some("{ json = true }".to_owned());
        let numbers = object.iter().filter(|(_, value)| value.is_number()).take(16);
        guess.points = numbers.map(|(name, _)| format!("{} = {{}}", crate::config::toml_key(name))).collect();
        return;
    }
    for separator in [';', '\t', ','] {
        let count = |text: &String| text.matches(separator).count();
        let Some(columns) = texts.first().map(count).filter(|count| *count > 0) else { continue };
        if texts.iter().all(|text| count(text) == columns) {
            // Two numbers with a decimal comma are no two columns.
            if separator == ',' && columns == 1 {
                continue;
            }
            let names: Vec<String> = (1..=columns + 1).map(|number| format!("\"c{number}\"")).collect();
            let names = names.join(", ");
            let separator = if separator == '\t' { "\\t".to_owned() } else { separator.to_string() };
            let decimal =
                if texts.iter().any(|text| text.contains(',')) && separator != "," { ", decimal = \",\"" } else { "" };
            guess.parse = Some(format!("{{ csv = [{names}], separator = \"{separator}\"{decimal} }}"));
            return;
        }
    }
    if texts.iter().any(|text| text.bytes().any(|byte| byte.is_ascii_digit())) {
        let has_comma = texts.iter().any(|text| text.contains(',') && !text.contains('.'));
        let decimal = if has_comma { ", decimal = \",\"" } else { "" };
        guess.parse = Some(format!("{{ regex = '(?<value>[-+]?\\s*[0-9][0-9.,]*)'{decimal} }}"));
        guess.hints.push("narrow the pattern: begin it with ^ and what stands before the value".to_owned());
    }
}

fn binary(samples: &[&[u8]], guess: &mut Guess) {
    let Some(first) = samples.first() else { return };
    guess.parse = Some("{ bytes = true }".to_owned());
    guess.points.push("value = { at = 0, type = \"u16\" }".to_owned());
    guess
        .hints
        .push("binary frames: the manual says where each value stands (`at`) and what it is (`type`)".to_owned());
    if samples.len() > 1 && samples.iter().all(|sample| sample.len() == first.len()) {
        guess.frame = Some(format!("{{ length = {}, idle = \"50ms\" }}", first.len()));
    } else {
        guess.frame = Some("{ idle = \"50ms\" }".to_owned());
    }
    guess.hints.push("add `checksum` to `frame`: without it a bit that is lost on the way is a wrong value".to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples: &[&[u8]]) -> Guess {
        guess(&samples.iter().map(|sample| sample.to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn lines_columns_objects_and_telegrams_are_told_apart() {
        let scale = of(&[b"S S   12.50 kg\r\n", b"S D   12.51 kg\r\n"]);
        assert_eq!(scale.frame.as_deref(), Some(r#"{ delimiter = "\r\n" }"#));
        assert!(scale.parse.unwrap().starts_with("{ regex ="));
        let columns = of(&[b"12,5;x;3\n", b"1,5;y;4\n"]);
        let expected = "{ csv = [\"c1\", \"c2\", \"c3\"], separator = \";\", decimal = \",\" }";
        assert_eq!(columns.parse.as_deref(), Some(expected));
        let json = of(&[b"{\"t\": 21.5, \"n\": \"x\"}\r"]);
        assert_eq!((json.parse.as_deref(), json.points), (Some("{ json = true }"), vec!["t = {}".to_owned()]));
        assert_eq!(json.frame.as_deref(), Some(r#"{ delimiter = "\r" }"#));
        let telegrams = of(&[b"\x0212.5\x03", b"\x0212.6\x03"]);
        assert_eq!(telegrams.frame.as_deref(), Some("{ start = 0x02, end = 0x03 }"));
        let binary = of(&[&[0xAA, 1, 2, 0x99], &[0xAA, 1, 3, 0x98]]);
        assert_eq!(binary.frame.as_deref(), Some("{ length = 4, idle = \"50ms\" }"));
        assert_eq!(of(&[]), Guess::default());
    }

    #[test]
    fn seven_bits_with_parity_are_seen_in_eight() {
        let even: Vec<u8> = b"S S   12.50 kg\r\n".iter().map(|b| b | u8::from(b.count_ones() % 2 == 1) << 7).collect();
        assert!(of(&[&even]).hints[0].contains("7E1"));
        let odd: Vec<u8> = even.iter().map(|byte| byte ^ 0x80).collect();
        assert!(of(&[&odd]).hints[0].contains("7O1"));
    }
}
