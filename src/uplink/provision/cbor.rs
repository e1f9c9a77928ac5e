//! Just enough CBOR (RFC 8949) for the messages of fleet provisioning: maps with texts, and whatever a device
//! configuration holds. Pure. What it does not know it does not read.

use serde_json::{Map, Number, Value};

/// Deeper than this nothing is read.
const DEPTH_MAX: usize = 16;

/// `value`, with definite lengths.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(value, &mut bytes);
    bytes
}

/// The one value that `bytes` are; `None` for anything else.
pub fn decode(bytes: &[u8]) -> Option<Value> {
    let mut rest = bytes;
    let value = read(&mut rest, DEPTH_MAX)?;
    rest.is_empty().then_some(value)
}

fn write(value: &Value, into: &mut Vec<u8>) {
    match value {
        Value::Null => into.push(0xF6),
        Value::Bool(value) => into.push(if *value { 0xF5 } else { 0xF4 }),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => head(0, number, into),
            (None, Some(number)) => head(1, number.unsigned_abs() - 1, into),
            (None, None) => {
                into.push(0xFB);
                into.extend(number.as_f64().unwrap_or_default().to_be_bytes());
            }
        },
        Value::String(text) => {
            head(3, length(text.len()), into);
            into.extend(text.as_bytes());
        }
        Value::Array(list) => {
            head(4, length(list.len()), into);
            list.iter().for_each(|value| write(value, into));
        }
        Value::Object(map) => {
            head(5, length(map.len()), into);
            for (key, value) in map {
                head(3, length(key.len()), into);
                into.extend(key.as_bytes());
                write(value, into);
            }
        }
    }
}

fn length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// A major type with its argument, as short as it can be.
fn head(major: u8, argument: u64, into: &mut Vec<u8>) {
    let major = major << 5;
    match (u8::try_from(argument), u16::try_from(argument), u32::try_from(argument)) {
        (Ok(small), ..) if small < 24 => into.push(major | small),
        (Ok(byte), ..) => into.extend([major | 24, byte]),
        (_, Ok(word), _) => {
            into.push(major | 25);
            into.extend(word.to_be_bytes());
        }
        (_, _, Ok(word)) => {
            into.push(major | 26);
            into.extend(word.to_be_bytes());
        }
        _ => {
            into.push(major | 27);
            into.extend(argument.to_be_bytes());
        }
    }
}

fn take<'b>(rest: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

fn number(rest: &mut &[u8], count: usize) -> Option<u64> {
    Some(take(rest, count)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn read(rest: &mut &[u8], depth: usize) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    let first = *take(rest, 1)?.first()?;
    let (major, low) = (first >> 5, first & 0x1F);
    if major == 7 {
        return match low {
            20 => Some(Value::Bool(false)),
            21 => Some(Value::Bool(true)),
            22 | 23 => Some(Value::Null),
            26 => {
                let bits = u32::try_from(number(rest, 4)?).ok()?;
                Number::from_f64(f64::from(f32::from_bits(bits))).map(Value::Number)
            }
            27 => Number::from_f64(f64::from_bits(number(rest, 8)?)).map(Value::Number),
            _ => None,
        };
    }
    let argument = match low {
        0..24 => Some(u64::from(low)),
        24..28 => Some(number(rest, 1 << (low - 24))?),
        // An indefinite length, which ends with a byte of its own.
        31 if (3..6).contains(&major) => None,
        _ => return None,
    };
    match (major, argument) {
        (0, Some(argument)) => Some(Value::from(argument)),
        (1, Some(argument)) => Some(Value::from(-1 - i64::try_from(argument).ok()?)),
        (3, Some(argument)) => text(rest, argument).map(Value::String),
        (3, None) => {
            let mut whole = String::new();
            while !ends(rest) {
                whole.push_str(read(rest, depth)?.as_str()?);
            }
            Some(Value::String(whole))
        }
        (4, argument) => {
            let mut list = Vec::new();
            while wants_more(argument, list.len(), rest) {
                list.push(read(rest, depth)?);
            }
            Some(Value::Array(list))
        }
        (5, argument) => {
            let (mut map, mut count) = (Map::new(), 0);
            while wants_more(argument, count, rest) {
                let Value::String(key) = read(rest, depth)? else { return None };
                map.insert(key, read(rest, depth)?);
                count += 1;
            }
            Some(Value::Object(map))
        }
        // A tag says how a value is meant: here it is the value that counts.
        (6, Some(_)) => read(rest, depth),
        _ => None,
    }
}

fn text(rest: &mut &[u8], length: u64) -> Option<String> {
    let bytes = take(rest, usize::try_from(length).ok()?)?;
    Some(std::str::from_utf8(bytes).ok()?.to_owned())
}

fn wants_more(argument: Option<u64>, count: usize, rest: &mut &[u8]) -> bool {
    match argument {
        Some(argument) => length(count) < argument,
        None => !ends(rest),
    }
}

/// Whether the end of an indefinite length is here; takes it.
fn ends(rest: &mut &[u8]) -> bool {
    let is_end = rest.first() == Some(&0xFF);
    if is_end {
        take(rest, 1);
    }
    is_end
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples_of_the_standard_read_and_write_as_it_says() {
        // RFC 8949, appendix A.
        for (bytes, value) in [
            (&b"\x00"[..], json!(0)),
            (b"\x18\x64", json!(100)),
            (b"\x1a\x00\x0f\x42\x40", json!(1_000_000)),
            (b"\x29", json!(-10)),
            (b"\x39\x03\xe7", json!(-1000)),
            (b"\xfb\x3f\xf1\x99\x99\x99\x99\x99\x9a", json!(1.1)),
            (b"\xf5", json!(true)),
            (b"\xf6", json!(null)),
            (b"\x64IETF", json!("IETF")),
            (b"\x83\x01\x02\x03", json!([1, 2, 3])),
            (b"\xa2\x61a\x01\x61b\x82\x02\x03", json!({"a": 1, "b": [2, 3]})),
        ] {
            assert_eq!(decode(bytes), Some(value.clone()), "{value}");
            assert_eq!(encode(&value), bytes, "{value}");
        }
        for (bytes, value) in [
            (&b"\x7f\x65strea\x64ming\xff"[..], json!("streaming")),
            (b"\x9f\x01\x82\x02\x03\xff", json!([1, [2, 3]])),
            (b"\xbf\x61a\x01\xff", json!({"a": 1})),
            (b"\xfa\x47\xc3\x50\x00", json!(100_000.0)),
            (b"\xc1\x1a\x51\x4b\x67\xb0", json!(1_363_896_240)),
        ] {
            assert_eq!(decode(bytes), Some(value), "{bytes:x?}");
        }
    }

    #[test]
    fn what_is_torn_or_deep_or_too_much_is_not_read_and_harms_nothing() {
        let whole = encode(&json!({"a": ["b", {"c": -7, "d": 1.5}], "e": "x".repeat(300)}));
        for end in 0..whole.len() {
            assert_eq!(decode(&whole[..end]), None, "{end}");
        }
        assert_eq!(decode(&[whole.clone(), vec![0]].concat()), None);
        assert_eq!(decode(&[0x81; 1000]), None);
        assert_eq!(decode(b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(decode(b"\xa1\x01\x02"), None, "a key that is no text");
        for first in 0..=255 {
            for second in 0..=255 {
                decode(&[first, second, 0x61, 0x62, 0xFF]);
            }
        }
    }
}
