//! What came in on a port, in a file: one line for each read, `<milliseconds since 1970> <hexadecimal digits>`. Pure.
//!
//! Promises: what was written is read back; a line that is none is named by its number.

use crate::field::record::{self, Event};

/// Lines that are read back.
const LINES_MAX: usize = 4_000_000;

/// Bytes, and when they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) wall_ms: i64,
    pub(super) bytes: Vec<u8>,
}

/// The first line of a recording.
pub(super) const HEADER: &str = "# tidegate serial watch: milliseconds since 1970, bytes\n";

pub(super) fn line(wall_ms: i64, bytes: &[u8]) -> String {
    format!("{wall_ms} {}\n", hex(bytes))
}

/// Two digits for each byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(" ")
}

/// Reads a whole recording, of this program's `serial watch` or of its `run`. The error is for a person.
pub(super) fn read(text: &str) -> Result<Vec<Chunk>, String> {
    if record::is_one(text) {
        let events = record::parse(text).map_err(|error| error.to_string())?.events.into_iter();
        let heard = events.filter_map(|(at, event)| match event {
            Event::Heard(bytes) => Some(Chunk { wall_ms: i64::try_from(at.as_millis()).unwrap_or(i64::MAX), bytes }),
            Event::Opened | Event::Sent(_) => None,
        });
        return Ok(heard.collect());
    }
    let mut chunks = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if chunks.len() >= LINES_MAX {
            return Err(format!("has more than {LINES_MAX} lines"));
        }
        let mut words = line.split_ascii_whitespace();
        let wall_ms = words.next().and_then(|word| word.parse().ok());
        let is_pair = |word: &str| word.len() == 2 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bytes: Option<Vec<u8>> =
            words.map(|word| if is_pair(word) { u8::from_str_radix(word, 16).ok() } else { None }).collect();
        match (wall_ms, bytes) {
            (Some(wall_ms), Some(bytes)) => chunks.push(Chunk { wall_ms, bytes }),
            _ => return Err(format!("line {} is not a time and bytes", number + 1)),
        }
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_has_recorded_is_read_too() {
        let text = "# tidegate record 1 serial\n0.0 open\n0.1 > 53 0D\n0.25 < 41 0D\n";
        assert_eq!(read(text).unwrap(), [Chunk { wall_ms: 250, bytes: vec![0x41, 0x0D] }]);
    }

    #[test]
    fn what_was_written_is_read_back_and_what_is_none_is_named_by_its_line() {
        let chunks =
            [Chunk { wall_ms: 1_700_000_000_123, bytes: vec![0, 0x0d, 0xff] }, Chunk { wall_ms: -5, bytes: vec![] }];
        let text: String = chunks.iter().map(|chunk| line(chunk.wall_ms, &chunk.bytes)).collect();
        assert_eq!(read(&(HEADER.to_owned() + &text)).unwrap(), chunks);
        for bad in ["x", "1 0", "1 000", "1 +1", "1 zz", "1 é"] {
            assert_eq!(read(&format!("\n{bad}\n")), Err("line 2 is not a time and bytes".into()), "{bad:?}");
        }
    }
}
