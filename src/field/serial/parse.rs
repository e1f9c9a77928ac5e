//! A frame into values. Pure.
//!
//! Promises: a text that is not clearly a number is no number: `12,5` under a decimal point is refused, not read as
//! 125. A frame that fits nothing gives nothing.
//!
//! Frames are text. One that is not UTF-8 is read as ISO 8859-1, where every byte is a character: older scales and
//! meters send a degree sign as the one byte 0xB0, and dropping the whole frame for it, or a replacement character
//! that no regular expression expects, would lose the number beside it. JSON must be UTF-8 (RFC 8259, 8.1). Binary
//! fields are read like registers: `modbus/decode` knows their types, orders and meanings.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::config::{BytesField, Parse, SerialPoint, TextKind};
use crate::field::modbus::decode;
use crate::message::Value;

/// Fields that a JSON frame may name by itself, where no points are written.
const JSON_FIELDS_MAX: usize = 256;

/// How a device's frames are read.
#[derive(Debug, Clone)]
pub struct Reader {
    /// How a frame is taken apart.
    pub parse: Parse,
    /// `,` or `.`
    pub decimal: u8,
    /// Fields whose text must be one of these.
    pub good: BTreeMap<String, Vec<String>>,
    /// The points; empty = every field is one.
    pub points: Vec<SerialPoint>,
}

/// What one frame says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parsed {
    /// Value by point name, in the order of the points, else of the fields; `Err` = the reason why there is none.
    pub values: Vec<(String, Result<Value, String>)>,
    /// Why the values are uncertain.
    pub doubt: Option<String>,
    /// Why single values are, by point name.
    pub doubts: Vec<(String, &'static str)>,
}

/// One field of a frame.
#[derive(Debug, Clone, PartialEq)]
enum Field {
    Text(String),
    Json(serde_json::Value),
}

impl Reader {
    /// What `frame` says; `None` when it fits nothing.
    pub fn read(&self, frame: &[u8]) -> Option<Parsed> {
        match &self.parse {
            Parse::Regex(regex) => {
                let text = decoded(frame);
                let captures = regex.captures(&text)?;
                let named = regex.capture_names().flatten();
                let fields = named.filter_map(|name| Some((name.to_owned(), captures.name(name)?.as_str().to_owned())));
                Some(self.fields_read(fields.collect()))
            }
            Parse::Csv { separator, columns } => Some(self.fields_read(columns_of(frame, *separator, columns)?)),
            Parse::Fixed(fields) => Some(self.fields_read(places_of(frame, fields)?)),
            Parse::Json => self.object_read(&serde_json::from_slice(frame).ok()?),
            Parse::Bytes { is_hex: false } => self.bytes_read(frame),
            Parse::Bytes { is_hex: true } => self.bytes_read(&hex_read(frame)?),
            Parse::Nmea(sentences) => self.sentence_read(sentences, &decoded(frame)),
            Parse::Nothing => None,
        }
    }

    /// Each point by its place. A frame that ends before one of them is another kind of frame, and fits nothing: of two
    /// telegrams of different length, both with a right checksum, the shorter one says nothing of the longer one's fields.
    fn bytes_read(&self, frame: &[u8]) -> Option<Parsed> {
        let mut parsed = Parsed::default();
        for point in &self.points {
            let field = point.bytes.as_ref()?;
            let bytes = frame.get(field.at..field.at.checked_add(field.count)?)?;
            let value = match decode::registers(&field.point, &words_of(field, bytes)) {
                Ok(decoded) => {
                    parsed.doubts.extend(decoded.doubt.map(|doubt| (point.name.to_string(), doubt)));
                    Ok(decoded.value)
                }
                Err(reason) => Err(reason.to_owned()),
            };
            parsed.values.push((point.name.to_string(), value));
        }
        Some(parsed)
    }

    /// A sentence by its name; whose talker it is (GP, GN, II …) makes no difference. Of one that is not asked for nothing is
    /// taken, and it is whole all the same. What the device leaves empty is no value.
    fn sentence_read(&self, sentences: &BTreeMap<String, Vec<String>>, text: &str) -> Option<Parsed> {
        let mut fields = text.split(',');
        let address = fields.next()?;
        // NMEA 0183, 5.3.1: two letters of the talker, or P and the maker's own.
        let of_talker = || address.get(2..).filter(|_| !address.starts_with('P'));
        let Some(columns) = sentences.get(address).or_else(|| sentences.get(of_talker()?)) else {
            return (address.len() >= 3).then(Parsed::default);
        };
        let fields: Vec<&str> = fields.collect();
        let named = columns.iter().enumerate().filter(|(_, name)| !name.is_empty());
        let texts: Vec<(String, String)> = named
            .map(|(place, name)| (name.clone(), fields.get(place).map_or("", |field| field.trim()).to_owned()))
            .collect();
        let text_of = |name: &str| texts.iter().find(|(field, _)| field == name).map(|(_, text)| text.as_str());
        let read = |text: &str, read: &dyn Fn(&str) -> Result<Value, String>| {
            if text.is_empty() { Err(EMPTY.to_owned()) } else { read(text) }
        };
        let values = if self.points.is_empty() {
            texts.iter().map(|(name, text)| (name.clone(), read(text, &|text| Ok(self.guessed(text))))).collect()
        } else {
            let known = self.points.iter().filter_map(|point| Some((point, text_of(&point.name)?)));
            known
                .map(|(point, text)| (point.name.to_string(), read(text, &|text| self.text_read(point.kind, text))))
                .collect()
        };
        let told = self.good.iter().filter_map(|(name, allowed)| Some((name, allowed, text_of(name)?)));
        let mut odd = told.filter(|(_, allowed, text)| !allowed.iter().any(|good| good == text));
        let doubt = odd.next().map(|(name, _, text)| format!("{name} is {:?}", shortened(text)));
        Some(Parsed { values, doubt, doubts: Vec::new() })
    }

    fn fields_read(&self, fields: Vec<(String, String)>) -> Parsed {
        let text_of = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, text)| text.clone());
        let values = if self.points.is_empty() {
            let guess = |(name, text): &(String, String)| (name.clone(), Ok(self.guessed(text)));
            fields.iter().map(guess).collect()
        } else {
            let value = |point: &SerialPoint| {
                let field = text_of(&point.name).map(Field::Text);
                (point.name.to_string(), self.value(point.kind, field))
            };
            self.points.iter().map(value).collect()
        };
        Parsed { values, doubt: self.doubt(text_of), doubts: Vec::new() }
    }

    fn object_read(&self, root: &serde_json::Value) -> Option<Parsed> {
        let object = root.as_object()?;
        let values: Vec<_> = if self.points.is_empty() {
            let scalars = object.iter().filter(|(_, value)| !value.is_object() && !value.is_array());
            let value = |(name, value): (&String, &serde_json::Value)| (name.clone(), untyped(value));
            scalars.take(JSON_FIELDS_MAX).map(value).collect()
        } else {
            let value = |point: &SerialPoint| {
                let found = match &point.pointer {
                    Some(pointer) => root.pointer(pointer),
                    None => object.get(&*point.name),
                };
                (point.name.to_string(), self.value(point.kind, found.cloned().map(Field::Json)))
            };
            self.points.iter().map(value).collect()
        };
        // An object without any of the points is about something else.
        if values.iter().all(|(_, value)| value.as_ref().is_err_and(|reason| reason == MISSING)) {
            return None;
        }
        let text_of = |name: &str| {
            let value = if name.starts_with('/') { root.pointer(name) } else { object.get(name) };
            value.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        Some(Parsed { values, doubt: self.doubt(text_of), doubts: Vec::new() })
    }

    fn doubt(&self, text_of: impl Fn(&str) -> Option<String>) -> Option<String> {
        self.good.iter().find_map(|(name, allowed)| match text_of(name) {
            None => Some(format!("{name} is not in the frame")),
            Some(text) if allowed.iter().any(|good| good == text.trim()) => None,
            Some(text) => Some(format!("{name} is {:?}", shortened(text.trim()))),
        })
    }

    fn value(&self, kind: TextKind, field: Option<Field>) -> Result<Value, String> {
        match field {
            None | Some(Field::Json(serde_json::Value::Null)) => Err(MISSING.to_owned()),
            Some(Field::Text(text)) => self.text_read(kind, &text),
            Some(Field::Json(serde_json::Value::String(text))) => self.text_read(kind, &text),
            Some(Field::Json(value)) => scalar_read(kind, &value),
        }
    }

    fn text_read(&self, kind: TextKind, text: &str) -> Result<Value, String> {
        let value = match kind {
            TextKind::F64 => number(text, self.decimal).map(Value::Float),
            TextKind::I64 => whole(text).map(Value::Int),
            TextKind::Hex => digits(text).map(Value::Uint),
            TextKind::Bool => switch(text).map(Value::Bool),
            TextKind::String => Some(Value::Text(text.trim().to_owned())),
        };
        let wanted = match kind {
            TextKind::F64 => "a number",
            TextKind::I64 => "a whole number",
            TextKind::Hex => "a number of hexadecimal digits",
            TextKind::Bool => "true or false",
            TextKind::String => "a text",
        };
        value.ok_or_else(|| format!("{:?} is not {wanted}", shortened(text)))
    }

    /// A number if it is one, else a text.
    pub(super) fn guessed(&self, text: &str) -> Value {
        number(text, self.decimal).map_or_else(|| Value::Text(text.trim().to_owned()), Value::Float)
    }
}

const EMPTY: &str = "the device leaves it empty";
const MISSING: &str = "it is not in the frame";

/// UTF-8, else ISO 8859-1.
pub(super) fn decoded(frame: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(frame) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(frame.iter().map(|byte| char::from(*byte)).collect()),
    }
}

/// The named columns; `None` when the frame has another number of columns: two frames that ran together because a
/// delimiter was lost would else look like one.
fn columns_of(frame: &[u8], separator: u8, columns: &[String]) -> Option<Vec<(String, String)>> {
    let text = decoded(frame);
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).delimiter(separator).from_reader(text.as_bytes());
    let mut records = reader.records();
    let record = records.next()?.ok()?;
    if record.len() != columns.len() || records.next().is_some() {
        return None;
    }
    let named = columns.iter().zip(&record).filter(|(name, _)| !name.is_empty());
    Some(named.map(|(name, text)| (name.clone(), text.trim().to_owned())).collect())
}

/// The characters at the named places; `None` when the frame is too short for one of them.
fn places_of(frame: &[u8], fields: &[(String, usize, usize)]) -> Option<Vec<(String, String)>> {
    let characters: Vec<char> = decoded(frame).chars().collect();
    let field = |(name, first, last): &(String, usize, usize)| {
        let text: String = characters.get(first.checked_sub(1)?..*last)?.iter().collect();
        Some((name.clone(), text.trim().to_owned()))
    };
    fields.iter().map(field).collect()
}

/// The bytes that a frame of hexadecimal digits means; blanks between them say nothing.
fn hex_read(frame: &[u8]) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> =
        frame.iter().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| char::from(*byte).to_digit(16)).collect();
    let digits = digits?;
    let pair = |pair: &[u32]| match pair {
        [high, low] => u8::try_from(high << 4 | low).ok(),
        _ => None,
    };
    digits.chunks(2).map(pair).collect()
}

/// The registers whose bytes these are. A field of one byte is a register of its own: whatever the order.
fn words_of(field: &BytesField, bytes: &[u8]) -> Vec<u16> {
    use crate::config::{PointKind, WordOrder};
    let swaps = matches!(field.point.order, WordOrder::Badc | WordOrder::Dcba);
    if let ([byte], false) = (bytes, matches!(field.point.kind, PointKind::String { .. })) {
        return vec![if swaps { u16::from(*byte) << 8 } else { u16::from(*byte) }];
    }
    let word = |pair: &[u8]| match pair {
        [high, low] => u16::from_be_bytes([*high, *low]),
        // The last character of a text of odd length; with swapped bytes it comes second.
        [last] if swaps => u16::from_be_bytes([0, *last]),
        [last] => u16::from_be_bytes([*last, 0]),
        _ => 0,
    };
    bytes.chunks(2).map(word).collect()
}

fn digits(text: &str) -> Option<u64> {
    let text = text.trim();
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_plain { u64::from_str_radix(text, 16).ok() } else { None }
}

/// A real number as scales and meters write it: blanks around it and after its sign, leading zeros, one decimal mark.
fn number(text: &str, decimal: u8) -> Option<f64> {
    let (sign, digits) = signed(text);
    let mark = char::from(decimal);
    let is_number_like = |c: char| c.is_ascii_digit() || c == mark || matches!(c, 'e' | 'E' | '+' | '-');
    // `inf`, `nan` and hexadecimal are words here, and a second mark would be a group of thousands or a mistake.
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == mark) || !digits.chars().all(is_number_like) {
        return None;
    }
    let plain = digits.replace(mark, ".");
    let value: f64 = plain.parse().ok()?;
    value.is_finite().then_some(sign * value)
}

fn whole(text: &str) -> Option<i64> {
    let (sign, digits) = signed(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // With its sign, because the least i64 has no positive twin.
    if sign < 0.0 { format!("-{digits}").parse().ok() } else { digits.parse().ok() }
}

/// The sign and what follows it, without the blanks between: `-  12,5` is how a scale right-aligns.
fn signed(text: &str) -> (f64, &str) {
    let text = text.trim();
    match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest.trim_start()),
        None => (1.0, text.strip_prefix('+').unwrap_or(text).trim_start()),
    }
}

fn switch(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "on" => Some(true),
        "false" | "0" | "off" => Some(false),
        _ => None,
    }
}

fn scalar_read(kind: TextKind, value: &serde_json::Value) -> Result<Value, String> {
    use serde_json::Value as Json;
    let found = match (kind, value) {
        (TextKind::F64, Json::Number(number)) => number.as_f64().filter(|value| value.is_finite()).map(Value::Float),
        (TextKind::I64, Json::Number(number)) => number.as_i64().map(Value::Int),
        (TextKind::Bool, Json::Bool(value)) => Some(Value::Bool(*value)),
        (TextKind::Bool, Json::Number(number)) => match number.as_u64() {
            Some(0) => Some(Value::Bool(false)),
            Some(1) => Some(Value::Bool(true)),
            _ => None,
        },
        (TextKind::String, Json::Number(_) | Json::Bool(_)) => Some(Value::Text(value.to_string())),
        _ => None,
    };
    found.ok_or_else(|| format!("{} has the wrong type", shortened(&value.to_string())))
}

fn untyped(value: &serde_json::Value) -> Result<Value, String> {
    use serde_json::Value as Json;
    match value {
        Json::Bool(value) => Ok(Value::Bool(*value)),
        Json::Number(number) => match number.as_f64().filter(|value| value.is_finite()) {
            Some(value) => Ok(Value::Float(value)),
            None => Err("the number is too large".to_owned()),
        },
        Json::String(text) => Ok(Value::Text(text.clone())),
        Json::Null | Json::Array(_) | Json::Object(_) => Err(MISSING.to_owned()),
    }
}

/// Enough of a text to recognise it in a reason.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Meaning, ModbusPoint, PointKind, Report, Table, WordOrder};
    use regex::Regex;
    use std::sync::Arc;

    fn point(name: &str, kind: TextKind) -> SerialPoint {
        SerialPoint { name: Arc::from(name), pointer: None, bytes: None, kind, unit: None, report: Report::default() }
    }

    fn reader(parse: Parse, decimal: u8, points: Vec<SerialPoint>) -> Reader {
        Reader { parse, decimal, good: BTreeMap::new(), points }
    }

    fn scale() -> Reader {
        let regex = Regex::new(r"^S (?<status>[SD])\s+(?<weight>-?\s*[0-9.,]+)\s*kg").unwrap();
        let mut reader = reader(Parse::Regex(regex), b',', vec![point("weight", TextKind::F64)]);
        reader.good.insert("status".into(), vec!["S".into()]);
        reader
    }

    #[test]
    fn numbers_are_read_as_scales_write_them() {
        let comma = [
            ("12,5", Some(12.5)),
            ("-  12,5", Some(-12.5)),
            ("  + 0012,50 ", Some(12.5)),
            (",5", Some(0.5)),
            ("5,", Some(5.0)),
            ("1,5e3", Some(1500.0)),
            ("12.5", None),
            ("1.234,5", None),
            ("1,2,3", None),
            ("", None),
            ("-", None),
            (",", None),
            ("--5", None),
            ("5-", None),
            ("inf", None),
            ("nan", None),
            ("0x10", None),
            ("1e999", None),
            ("12 5", None),
            ("١٢", None),
        ];
        for (text, expected) in comma {
            assert_eq!(number(text, b','), expected, "{text:?}");
        }
        assert_eq!(number("- 1234.5", b'.'), Some(-1234.5));
        assert_eq!(number("1,234.5", b'.'), None, "thousands are not guessed at");
    }

    #[test]
    fn whole_numbers_and_switches_are_strict() {
        for (text, expected) in [
            ("42", Some(42)),
            ("-  7", Some(-7)),
            ("+007", Some(7)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("4.0", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(whole(text), expected, "{text:?}");
        }
        for (text, expected) in
            [("TRUE", Some(true)), (" on ", Some(true)), ("1", Some(true)), ("Off", Some(false)), ("2", None)]
        {
            assert_eq!(switch(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_scale_is_good_when_it_stands_still_and_uncertain_when_it_moves() {
        let still = scale().read(b"S S    -  12,50 kg").unwrap();
        assert_eq!(still, Parsed { values: vec![("weight".into(), Ok(Value::Float(-12.5)))], ..Parsed::default() });
        let moving = scale().read(b"S D       12,51 kg").unwrap();
        assert_eq!(moving.doubt.as_deref(), Some("status is \"D\""));
        assert_eq!(scale().read(b"S I"), None);
        let odd = scale().read(b"S S 1.2,3 kg").unwrap();
        assert_eq!(odd.values[0].1, Err("\"1.2,3\" is not a number".into()));
    }

    #[test]
    fn without_points_every_named_group_is_one() {
        let mut reader = scale();
        reader.points.clear();
        let parsed = reader.read(b"S S 1,5 kg").unwrap();
        let expected = vec![("status".into(), Ok(Value::Text("S".into()))), ("weight".into(), Ok(Value::Float(1.5)))];
        assert_eq!(parsed.values, expected);
    }

    #[test]
    fn a_degree_sign_of_one_byte_does_not_cost_the_number_beside_it() {
        let regex = Regex::new(r"^T=(?<t>[-0-9.]+)°C").unwrap();
        let reader = reader(Parse::Regex(regex), b'.', vec![point("t", TextKind::F64)]);
        for frame in [&b"T=21.5\xB0C"[..], "T=21.5°C".as_bytes()] {
            assert_eq!(reader.read(frame).unwrap().values, [("t".into(), Ok(Value::Float(21.5)))]);
        }
    }

    #[test]
    fn columns_are_named_and_counted() {
        let columns = ["t", "", "label"].map(str::to_owned).to_vec();
        let reader = reader(Parse::Csv { separator: b';', columns }, b',', vec![]);
        let values = |frame: &str| reader.read(frame.as_bytes()).map(|parsed| parsed.values);
        let expected = vec![("t".into(), Ok(Value::Float(21.5))), ("label".into(), Ok(Value::Text("a;b".into())))];
        assert_eq!(values(" 21,5;x;\"a;b\""), Some(expected));
        for bad in ["21,5;x", "1;2;3;4", "", "1;2;3\n4;5;6"] {
            assert_eq!(values(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn fixed_columns_are_counted_from_one_and_a_frame_too_short_fits_nothing() {
        let fields = vec![("status".to_owned(), 3, 3), ("weight".to_owned(), 5, 13)];
        let reader = reader(Parse::Fixed(fields), b',', vec![]);
        let values = |frame: &str| reader.read(frame.as_bytes()).map(|parsed| parsed.values);
        let expected = vec![("status".into(), Ok(Value::Text("S".into()))), ("weight".into(), Ok(Value::Float(-12.5)))];
        assert_eq!(values("S S -   12,50 kg"), Some(expected.clone()));
        assert_eq!(values("S S -   12,50"), Some(expected));
        assert_eq!(values("S S -   12,5"), None);
        assert_eq!(values(""), None);
    }

    fn binary(name: &str, at: usize, count: usize, kind: PointKind, order: WordOrder) -> SerialPoint {
        let point = ModbusPoint {
            name: Arc::from(name),
            table: Table::Holding,
            address: 0,
            kind,
            order,
            meaning: Meaning::default(),
            unit: None,
            poll: None,
            report: Report::default(),
            write: None,
        };
        SerialPoint { bytes: Some(BytesField { at, count, point }), ..self::point(name, TextKind::F64) }
    }

    #[test]
    fn binary_fields_stand_at_their_bytes_in_every_order() {
        use PointKind::{Bool, F32, I8, I16, String as Text, U8, U16, U32};
        use WordOrder::{Abcd, Badc, Cdab, Dcba};
        let frame = [0x68, 0xFE, 0x12, 0x34, 0x56, 0x78, 0x41, 0x48, 0x00, 0x00, b'a', b'b', b'c'];
        let text = |chars: u16| Text { registers: std::num::NonZeroU16::new(chars.div_ceil(2)).unwrap() };
        for (at, count, kind, order, expected) in [
            (0, 1, U8, Abcd, Value::Uint(0x68)),
            (0, 1, U8, Dcba, Value::Uint(0x68)),
            (1, 1, I8, Abcd, Value::Int(-2)),
            (1, 1, I8, Badc, Value::Int(-2)),
            (1, 2, I16, Abcd, Value::Int(-494)),
            (2, 2, U16, Abcd, Value::Uint(0x1234)),
            (3, 2, U16, Dcba, Value::Uint(0x5634)),
            (2, 4, U32, Abcd, Value::Uint(0x1234_5678)),
            (2, 4, U32, Dcba, Value::Uint(0x7856_3412)),
            (2, 4, U32, Cdab, Value::Uint(0x5678_1234)),
            (2, 4, U32, Badc, Value::Uint(0x3412_7856)),
            (6, 4, F32, Abcd, Value::Float(12.5)),
            (9, 1, Bool, Abcd, Value::Bool(false)),
            (0, 1, Bool, Dcba, Value::Bool(true)),
            (10, 3, text(3), Abcd, Value::Text("abc".into())),
            (10, 1, text(1), Abcd, Value::Text("a".into())),
        ] {
            let reader = reader(Parse::Bytes { is_hex: false }, b'.', vec![binary("x", at, count, kind, order)]);
            assert_eq!(reader.read(&frame).unwrap().values, [("x".into(), Ok(expected))], "{at} {kind:?} {order:?}");
            assert_eq!(reader.read(&frame[..at + count - 1]), None, "a frame that is too short fits nothing");
        }
    }

    #[test]
    fn frames_of_hexadecimal_digits_are_bytes() {
        let point = binary("x", 1, 2, PointKind::U16, WordOrder::Abcd);
        let reader = reader(Parse::Bytes { is_hex: true }, b'.', vec![point]);
        assert_eq!(reader.read(b"01 04d2").unwrap().values, [("x".into(), Ok(Value::Uint(1234)))]);
        for bad in [&b"0104d"[..], b"0104dg", b"", b"\xff\xff\xff", b"0104"] {
            assert_eq!(reader.read(bad), None, "{bad:?}");
        }
        assert_eq!(digits(" 04d2 "), Some(1234));
        for bad in ["", "+1", "-1", "0x10", "1 2", "10000000000000000"] {
            assert_eq!(digits(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn json_is_read_by_key_and_by_pointer() {
        let mut deep = point("pressure", TextKind::F64);
        deep.pointer = Some("/a/1/p".into());
        let points = vec![point("t", TextKind::F64), deep, point("n", TextKind::I64), point("on", TextKind::Bool)];
        let reader = reader(Parse::Json, b'.', points);
        let parsed = reader.read(br#"{"t": "21.5", "a": [0, {"p": 1.2}], "n": 3.5, "on": 1}"#).unwrap();
        let expected = vec![
            ("t".into(), Ok(Value::Float(21.5))),
            ("pressure".into(), Ok(Value::Float(1.2))),
            ("n".into(), Err("3.5 has the wrong type".into())),
            ("on".into(), Ok(Value::Bool(true))),
        ];
        assert_eq!(parsed.values, expected);
        for bad in [&br#"{"other": 1}"#[..], b"[1]", b"3", b"{", b"\xff", b"{}"] {
            assert_eq!(reader.read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn json_without_points_gives_every_scalar() {
        let mut reader = reader(Parse::Json, b'.', vec![]);
        reader.good.insert("ok".into(), vec!["true".into()]);
        let parsed = reader.read(br#"{"t": 1, "s": "x", "ok": true, "deep": {"a": 1}, "list": [1]}"#).unwrap();
        let names: Vec<&str> = parsed.values.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ok", "s", "t"]);
        assert_eq!(parsed.doubt, None);
        assert!(reader.read(br#"{"t": 1, "ok": false}"#).unwrap().doubt.is_some());
        assert!(reader.read(br#"{"t": 1}"#).unwrap().doubt.is_some());
    }

    #[test]
    fn a_sentence_is_known_by_its_name_whoever_talks_and_only_whole() {
        use crate::config::FrameConfig;
        use crate::field::serial::frame::{Cut, Flaw, Framer};

        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let sentences = BTreeMap::from([
            ("GGA".to_owned(), names(&["", "latitude", "", "longitude", "", "fix"])),
            ("RMC".to_owned(), names(&["utc", "status"])),
            ("PGRME".to_owned(), names(&["error"])),
        ]);
        let mut reader = reader(Parse::Nmea(sentences), b'.', vec![]);
        reader.good.insert("status".into(), vec!["A".into()]);
        let mut framer = Framer::new(FrameConfig::nmea());
        let mut read = |sentence: &str| match framer.push(sentence.as_bytes()).pop() {
            Some(Cut::Frame(frame)) => Ok(reader.read(frame.body()).unwrap()),
            Some(Cut::Dropped(flaw)) => Err(flaw),
            None => panic!("no frame"),
        };
        let gga = read("$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n").unwrap();
        let value =
            |parsed: &Parsed, name: &str| parsed.values.iter().find(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!(value(&gga, "latitude"), Ok(Value::Float(4807.038)));
        assert_eq!((gga.values.len(), gga.doubt), (3, None), "the status is of another sentence");
        let damaged = read("$GPGGA,123519,4807.038,N,01131.001,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n");
        assert_eq!(damaged, Err(Flaw::Checksum));
        let rmc = read("$GNRMC,,V,,,,,,,,,,N*4D\r\n").unwrap();
        assert_eq!((value(&rmc, "utc"), rmc.doubt.unwrap()), (Err(EMPTY.to_owned()), "status is \"V\"".to_owned()));
        assert_eq!(value(&read("$PGRME,15.0,M,45.0,M,25.0,M*1C\r\n").unwrap(), "error"), Ok(Value::Float(15.0)));
        assert_eq!(read("$GPGSV,1,1,00*79\r\n"), Ok(Parsed::default()), "nobody asked for it");
    }
}
