//! The devices of one line of a configuration, with the very points that the gateway will ask for.
//!
//! Promises: every point is there with its type, order and place, and moves; addresses that no request of the gateway's
//! touches are refused, as most devices do; what is written stays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::registers::{masks, words};
use super::units::{Answering, coils, read_table, refusal, registers};
use super::wave::{PERIOD, Wave, mixed};
use crate::config::{Config, ModbusConfig, ModbusPoint, PointKind, Table};
use crate::field::modbus::plan;

/// Whole numbers go from 1 to this, raw.
const WHOLE_MAX: f64 = 1000.0;
const SMALL_WHOLE_MAX: f64 = 100.0;

/// Which wave a point follows: by `device/point`, else the one for all.
#[derive(Debug, Clone, Default)]
pub struct Waves {
    /// For all that are not named.
    pub all: Wave,
    /// `chiller/supply_temperature` → its own.
    pub named: BTreeMap<String, Wave>,
}

/// The devices of a line.
#[derive(Debug)]
pub(super) struct Plant {
    units: HashMap<u8, Unit>,
    start: Instant,
}

#[derive(Debug)]
struct Unit {
    points: Vec<(ModbusPoint, Wave, u64)>,
    legal: BTreeSet<(Table, u32)>,
    written: Mutex<HashMap<(Table, u16), u16>>,
    registers_max: u16,
    bits_max: u16,
}

impl Plant {
    pub(super) fn new(config: &Config, line: &str, waves: &Waves) -> Plant {
        let devices = config.modbus.iter().filter(|(_, device)| &*device.line == line);
        let units = devices.map(|(name, device)| (device.unit_id, Unit::new(name, device, waves)));
        Plant { units: units.collect(), start: Instant::now() }
    }
}

impl Unit {
    fn new(name: &str, device: &ModbusConfig, waves: &Waves) -> Unit {
        let wave =
            |point: &ModbusPoint| waves.named.get(&format!("{name}/{}", point.name)).copied().unwrap_or(waves.all);
        let seed = |number: usize| mixed(u64::try_from(number).unwrap_or(0) ^ u64::from(device.unit_id) << 32);
        let points = device.points.iter().enumerate();
        let blocks = plan::requests(&plan::points(device), &device.limits);
        let addresses = |block: &plan::Block| {
            let (table, first) = (block.table, u32::from(block.address));
            (first..first + u32::from(block.quantity)).map(move |address| (table, address))
        };
        Unit {
            points: points.map(|(number, point)| (point.clone(), wave(point), seed(number))).collect(),
            legal: blocks.iter().flat_map(addresses).collect(),
            written: Mutex::default(),
            registers_max: device.limits.registers_max,
            bits_max: device.limits.bits_max,
        }
    }

    fn has(&self, table: Table, address: u16, quantity: u16) -> bool {
        let first = u32::from(address);
        (first..first + u32::from(quantity)).all(|address| self.legal.contains(&(table, address)))
    }

    /// What stands at these addresses at this moment.
    fn words(&self, table: Table, address: u16, quantity: u16, start: Instant) -> Vec<u16> {
        let mut held = vec![0_u16; usize::from(quantity)];
        let end = u32::from(address) + u32::from(quantity);
        for (point, wave, seed) in self.points.iter().filter(|(point, ..)| point.table == table) {
            let first = u32::from(point.address);
            if first >= end || first + u32::from(point.kind.width()) <= u32::from(address) {
                continue;
            }
            let height = wave.height(start.elapsed(), PERIOD, *seed);
            let own = words(point, raw(point, height), &text(point));
            let masks = if table.is_bits() { vec![u16::MAX] } else { masks(point) };
            let own = if table.is_bits() { vec![u16::from(height >= 0.5)] } else { own };
            for (offset, (word, mask)) in (0_u32..).zip(own.iter().zip(&masks)) {
                let place =
                    (first + offset).checked_sub(u32::from(address)).and_then(|place| usize::try_from(place).ok());
                if let Some(cell) = place.and_then(|place| held.get_mut(place)) {
                    *cell = (*cell & !mask) | (word & mask);
                }
            }
        }
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for (offset, cell) in (0_u16..).zip(&mut held) {
            if let Some(word) = written.get(&(table, address.wrapping_add(offset))) {
                *cell = *word;
            }
        }
        held
    }

    fn write(&self, table: Table, address: u16, words: &[u16]) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.extend((0_u16..).zip(words).map(|(offset, word)| ((table, address.wrapping_add(offset)), *word)));
    }
}

/// What a point holds, before scale and offset, at a height of its wave.
fn raw(point: &ModbusPoint, height: f64) -> f64 {
    let meaning = &point.meaning;
    let codes = || meaning.not_available.iter();
    if !meaning.names.is_empty() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a short list")]
        #[expect(clippy::cast_precision_loss, reason = "names have small numbers")]
        return {
            let place = ((height * meaning.names.len() as f64) as usize).min(meaning.names.len() - 1);
            meaning.names.get(place).map_or(0.0, |(number, _)| *number as f64)
        };
    }
    let bits = meaning.bits.map(|bits| i32::from(bits.high.saturating_sub(bits.low)) + 1);
    let most = match (point.kind, bits) {
        (PointKind::Bool, _) => return f64::from(u8::from(height >= 0.5)),
        (PointKind::F16 | PointKind::F32 | PointKind::F64, _) => return height * SMALL_WHOLE_MAX,
        (_, Some(bits)) => (2_f64.powi(bits.min(10)) - 1.0).min(WHOLE_MAX),
        (PointKind::U8 | PointKind::I8, None) => SMALL_WHOLE_MAX,
        _ => WHOLE_MAX,
    };
    let whole = (height * most).round().max(if bits.is_some() { 0.0 } else { 1.0 });
    #[expect(clippy::cast_precision_loss, reason = "compared with a number of three digits")]
    let is_code = codes().any(|code| *code as f64 == whole);
    if is_code { whole + 1.0 } else { whole }
}

fn text(point: &ModbusPoint) -> String {
    let PointKind::String { registers } = point.kind else { return String::new() };
    let name = point.name.chars().filter(char::is_ascii);
    name.take(usize::from(registers.get()) * 2).collect()
}

impl Plant {
    /// Modbus Application Protocol 1.1b3, 6.16: address, AND mask, OR mask.
    fn masked(&self, unit: &Unit, pdu: &[u8]) -> Vec<u8> {
        let [address, and, or] = halves(pdu.get(1..).unwrap_or_default())[..] else { return refusal(pdu, 3) };
        if !unit.has(Table::Holding, address, 1) {
            return refusal(pdu, 2);
        }
        let held = unit.words(Table::Holding, address, 1, self.start).first().copied().unwrap_or_default();
        unit.write(Table::Holding, address, &[(held & and) | (or & !and)]);
        pdu.to_vec()
    }

    /// 6.17: where and how much to read, where and what to write before that.
    fn written_and_read(&self, unit: &Unit, pdu: &[u8]) -> Vec<u8> {
        let head = halves(pdu.get(1..9).unwrap_or_default());
        let [read_at, read_count, write_at, write_count] = head[..] else { return refusal(pdu, 3) };
        let bytes = pdu.get(10..).unwrap_or_default();
        let words = halves(bytes);
        let is_whole = pdu.get(9).is_some_and(|count| usize::from(*count) == bytes.len())
            && words.len() == usize::from(write_count)
            && (1..=121).contains(&write_count);
        if !is_whole || read_count == 0 || read_count > unit.registers_max {
            return refusal(pdu, 3);
        }
        let holding = Table::Holding;
        if !unit.has(holding, read_at, read_count) || !unit.has(holding, write_at, write_count) {
            return refusal(pdu, 2);
        }
        unit.write(holding, write_at, &words);
        registers(23, &unit.words(holding, read_at, read_count, self.start))
    }
}

/// Numbers of two bytes; none where a byte is left over.
fn halves(bytes: &[u8]) -> Vec<u16> {
    if !bytes.len().is_multiple_of(2) {
        return Vec::new();
    }
    bytes.chunks(2).map(|pair| pair.iter().fold(0, |word, byte| word << 8 | u16::from(*byte))).collect()
}

impl Answering for Plant {
    fn answer(&self, unit_id: u8, pdu: &[u8]) -> Option<Vec<u8>> {
        let unit = self.units.get(&unit_id)?;
        let [function, high, low, more_high, more_low, ..] = pdu else { return Some(refusal(pdu, 3)) };
        let (address, more) = (u16::from_be_bytes([*high, *low]), u16::from_be_bytes([*more_high, *more_low]));
        let (table, quantity, words) = match function {
            1..=4 => {
                let table = read_table(*function)?;
                let most = if table.is_bits() { unit.bits_max } else { unit.registers_max };
                if more == 0 || more > most {
                    return Some(refusal(pdu, 3));
                }
                if !unit.has(table, address, more) {
                    return Some(refusal(pdu, 2));
                }
                let words = unit.words(table, address, more, self.start);
                return Some(match table.is_bits() {
                    true => coils(*function, &words.iter().map(|word| *word != 0).collect::<Vec<_>>()),
                    false => registers(*function, &words),
                });
            }
            // Modbus Application Protocol 1.1b3, 6.5: on is 0xFF00.
            5 if matches!(more, 0 | 0xFF00) => (Table::Coil, 1, vec![u16::from(more != 0)]),
            6 => (Table::Holding, 1, vec![more]),
            15 => (Table::Coil, more, written_bits(pdu, more)),
            16 => (Table::Holding, more, written_words(pdu)),
            22 => return Some(self.masked(unit, pdu)),
            23 => return Some(self.written_and_read(unit, pdu)),
            5 => return Some(refusal(pdu, 3)),
            _ => return Some(refusal(pdu, 1)),
        };
        if quantity == 0 || words.len() != usize::from(quantity) {
            return Some(refusal(pdu, 3));
        }
        if !unit.has(table, address, quantity) {
            return Some(refusal(pdu, 2));
        }
        unit.write(table, address, &words);
        // Each of these functions answers with the head of its request.
        pdu.get(..5).map(<[u8]>::to_vec)
    }
}

fn written_bits(pdu: &[u8], quantity: u16) -> Vec<u16> {
    let bytes = pdu.get(6..).unwrap_or_default();
    if pdu.get(5).is_none_or(|count| usize::from(*count) != bytes.len()) {
        return Vec::new();
    }
    let bits = bytes.iter().flat_map(|byte| (0..8).map(move |bit| u16::from(byte >> bit & 1)));
    bits.take(usize::from(quantity)).collect()
}

fn written_words(pdu: &[u8]) -> Vec<u16> {
    let bytes = pdu.get(6..).unwrap_or_default();
    if pdu.get(5).is_none_or(|count| usize::from(*count) != bytes.len()) {
        return Vec::new();
    }
    halves(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoadRequest, load};

    const DEVICE: &str = "[gateway]\nid = \"g\"\n[line.l]\nurl = \"tcp://h\"\n[modbus.press]\nline = \"l\"\nunit_id = 1\ngap = 0\n\
         [modbus.press.point]\nlow = { address = \"holding:12\", type = \"u16\" }\n\
         high = { address = \"holding:13\", type = \"u16\" }\n";

    fn plant() -> Plant {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, DEVICE).unwrap();
        let root = folder.path().to_owned();
        let config = load(&LoadRequest { root, config: Some(file), credentials_dir: None, kept_id: None }).unwrap();
        Plant::new(&config.config, "l", &Waves::default())
    }

    fn answer(plant: &Plant, pdu: &[u8]) -> Vec<u8> {
        plant.answer(1, pdu).unwrap()
    }

    #[test]
    fn functions_22_and_23_do_what_the_specification_says() {
        let plant = plant();
        // 6.16: 0x12 under the masks 0xF2 and 0x25 is 0x17.
        answer(&plant, &[6, 0, 12, 0, 0x12]);
        let masked = [22, 0, 12, 0, 0xF2, 0, 0x25];
        assert_eq!(answer(&plant, &masked), masked);
        assert_eq!(answer(&plant, &[3, 0, 12, 0, 1]), [3, 2, 0, 0x17]);
        let both = [23, 0, 12, 0, 2, 0, 13, 0, 1, 2, 0xAB, 0xCD];
        assert_eq!(answer(&plant, &both), [23, 4, 0, 0x17, 0xAB, 0xCD], "written before it is read");
        for (pdu, code) in [
            (&[22, 0, 14, 0, 0xF2, 0, 0x25][..], 2),
            (&[22, 0, 12, 0, 0xF2, 0], 3),
            (&[23, 0, 12, 0, 3, 0, 13, 0, 1, 2, 0xAB, 0xCD], 2),
            (&[23, 0, 12, 0, 2, 0, 13, 0, 1, 2, 0xAB], 3),
            (&[23, 0, 12, 0, 2, 0, 13, 0, 2, 2, 0xAB, 0xCD], 3),
            (&[23, 0, 12, 0, 0, 0, 13, 0, 1, 2, 0xAB, 0xCD], 3),
            (&[23, 0, 12, 0, 2, 0, 13], 3),
        ] {
            assert_eq!(answer(&plant, pdu), [pdu[0] | 0x80, code], "{pdu:?}");
        }
        assert_eq!(answer(&plant, &[3, 0, 12, 0, 2]), [3, 4, 0, 0x17, 0xAB, 0xCD], "what was refused changed nothing");
    }
}
