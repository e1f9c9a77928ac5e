//! How often a line can read its devices, from its baud rate, its requests and a usual device. Pure.
//!
//! The planner itself is asked: it runs here against devices that answer after a usual time, so that what is foretold is
//! what it would do.

use std::sync::Arc;
use std::time::Duration;

use super::plan::{self, Block};
use super::timing;
use crate::config::{Config, LineConfig, LineKind, ModbusConfig, SerialFraming};
use crate::field::poll::{Outcome, Plan, PlanUnit, Turn};
use crate::field::port::character_time;

/// How long a usual device on a serial bus thinks.
const SERIAL_TURNAROUND: Duration = Duration::from_millis(25);
/// How long a usual device on a network thinks.
const NETWORK_TURNAROUND: Duration = Duration::from_millis(10);
/// One character behind a converter whose baud rate nobody says: 9600 bits a second, 11 bits.
const CONVERTER_CHARACTER: Duration = Duration::from_micros(1_146);
/// What is foretold is the mean of this many polls of each device.
const POLLS: u32 = 5;
/// A line with more exchanges than this is foretold by what came of these.
const EXCHANGES_MAX: u32 = 20_000;

/// What is to be expected of a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Its name.
    pub line: Arc<str>,
    /// Its devices.
    pub devices: usize,
    /// Requests of all of them.
    pub requests: usize,
    /// The share of the time that the line is busy; more than 1 is more than it can do.
    pub load: f64,
    /// The device whose polls come latest, by how much they are late; `None` where none is.
    pub late: Option<Late>,
}

/// A device that is asked less often than its owner wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Late {
    /// Its name.
    pub device: Arc<str>,
    /// Its shortest interval as written.
    pub asked: Duration,
    /// What it will be.
    pub possible: Duration,
}

/// What is to be expected of each line that has devices.
pub fn forecasts(config: &Config) -> Vec<Forecast> {
    let forecast = |(name, line): (&Arc<str>, &LineConfig)| {
        let of_line = config.modbus.iter().filter(|(_, device)| device.line == *name);
        let devices: Vec<(&Arc<str>, &ModbusConfig)> = of_line.collect();
        (!devices.is_empty()).then(|| forecast(name, line, &devices))
    };
    config.lines.iter().filter_map(forecast).collect()
}

fn forecast(name: &Arc<str>, line: &LineConfig, devices: &[(&Arc<str>, &ModbusConfig)]) -> Forecast {
    let requests = |(_, device): &(&Arc<str>, &ModbusConfig)| plan::requests(&plan::points(device), &device.limits);
    let blocks: Vec<Block> = devices.iter().flat_map(requests).collect();
    let share = |block: &Block| exchange(line, block).as_secs_f64() / block.interval.as_secs_f64().max(1e-3);
    let load = blocks.iter().map(share).sum();
    let late = if load > 1.0 { latest(line, devices) } else { None };
    Forecast { line: name.clone(), devices: devices.len(), requests: blocks.len(), load, late }
}

/// How long one exchange keeps the line busy.
pub fn exchange(line: &LineConfig, block: &Block) -> Duration {
    let letters = if line.framing == SerialFraming::Ascii { 2 } else { 1 };
    let on_bus = |character: Duration| {
        let character = character * letters;
        timing::wire(character, block.table, block.quantity) + timing::gap(character, line.pause) + SERIAL_TURNAROUND
    };
    match &line.kind {
        LineKind::Rtu(port) => on_bus(character_time(port)),
        LineKind::RtuOverTcp { .. } => on_bus(CONVERTER_CHARACTER),
        LineKind::Tcp { .. } => line.pause + NETWORK_TURNAROUND,
    }
}

fn latest(line: &LineConfig, devices: &[(&Arc<str>, &ModbusConfig)]) -> Option<Late> {
    let unit = |(_, device): &(&Arc<str>, &ModbusConfig)| PlanUnit {
        points: plan::points(device),
        limits: device.limits.clone(),
        pause_min: Duration::ZERO,
    };
    let mut plan = Plan::new(devices.iter().map(unit).collect());
    let mut polls = vec![(Duration::ZERO, 0_u32); devices.len()];
    let mut now = Duration::ZERO;
    for _ in 0..EXCHANGES_MAX {
        let (unit, block) = match plan.next(now) {
            Turn::Ask { unit, block } => (unit, block),
            Turn::Wait(Duration::MAX) => break,
            Turn::Wait(until) => {
                now = until;
                continue;
            }
        };
        let began = now;
        now += plan.block(unit, block).map_or(NETWORK_TURNAROUND, |block| exchange(line, block));
        if let Some(achieved) = plan.done(unit, block, Outcome::Answered, began, now)
            && let Some((sum, count)) = polls.get_mut(unit)
        {
            *sum += achieved;
            *count += 1;
        }
        if polls.iter().all(|(_, count)| *count >= POLLS) {
            break;
        }
    }
    let lates = devices.iter().zip(&polls).filter_map(|((name, device), (sum, count))| {
        let asked = plan::points(device).iter().map(|point| point.interval).min()?;
        let possible = sum.checked_div(*count)?;
        (possible > asked).then(|| Late { device: (*name).clone(), asked, possible })
    });
    let lateness = |late: &Late| late.possible.as_secs_f64() / late.asked.as_secs_f64().max(1e-3);
    lates.max_by(|one, other| lateness(one).total_cmp(&lateness(other)))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::config::{
        Meaning, ModbusPoint, Parity, PointKind, PointTopic, PortConfig, Report, RequestLimits, SerialMode, Table,
        WordOrder,
    };
    use crate::message::Qos;

    fn serial_line(baud: u32) -> LineConfig {
        let mode = SerialMode { data_bits: 8, parity: Parity::Even, stop_bits: 1 };
        let port = PortConfig::new("/dev/ttyS1", NonZeroU32::new(baud).unwrap(), mode);
        LineConfig::new(LineKind::Rtu(port), Duration::from_secs(1))
    }

    fn device(poll_ms: u64, registers: u16) -> ModbusConfig {
        let point = |address| ModbusPoint {
            name: Arc::from(format!("p{address}")),
            table: Table::Holding,
            address,
            kind: PointKind::U16,
            order: WordOrder::Abcd,
            meaning: Meaning::default(),
            unit: None,
            poll: None,
            report: Report::default(),
            write: None,
        };
        ModbusConfig {
            line: Arc::from("meters"),
            unit_id: 1,
            poll: Duration::from_millis(poll_ms),
            timeout: Duration::from_secs(1),
            topic: PointTopic("field/{device}/{point}".to_owned()),
            qos: Qos::AtLeastOnce,
            address_base: 0,
            limits: RequestLimits::default(),
            points: (0..registers).map(point).collect(),
        }
    }

    fn of(line: &LineConfig, devices: &[ModbusConfig]) -> Forecast {
        let names: Vec<Arc<str>> = (0..devices.len()).map(|number| Arc::from(format!("m{number}"))).collect();
        let named: Vec<_> = names.iter().zip(devices).collect();
        forecast(&Arc::from("meters"), line, &named)
    }

    #[test]
    fn twelve_meters_at_9600_baud_cannot_be_read_each_second() {
        let line = serial_line(9600);
        // 13 bytes and 2 × 60 of data at 11 bits each, 3.5 characters of silence, and the device's own 25 ms.
        let block = plan::requests(&plan::points(&device(1000, 60)), &RequestLimits::default()).remove(0);
        let expected = (133.0 + 3.5) * 11.0 / 9600.0 + 0.025;
        assert!((exchange(&line, &block).as_secs_f64() - expected).abs() < 1e-4);
        let slow = of(&line, &vec![device(1000, 60); 12]);
        assert_eq!((slow.devices, slow.requests), (12, 12));
        let late = slow.late.unwrap();
        assert_eq!(late.asked, Duration::from_secs(1));
        assert!((late.possible.as_secs_f64() - 12.0 * expected).abs() < 0.05, "{late:?}");
        assert!((slow.load - 12.0 * expected).abs() < 0.01);
        assert_eq!(of(&line, &vec![device(2500, 60); 12]).late, None, "every 2.5 s is possible");
        assert_eq!(of(&serial_line(115_200), &vec![device(1000, 60); 12]).late, None);
    }

    #[test]
    fn the_device_that_suffers_most_is_named() {
        let mut devices = vec![device(1000, 60); 8];
        devices.push(device(200, 1));
        let late = of(&serial_line(9600), &devices).late.unwrap();
        assert_eq!((&*late.device, late.asked), ("m8", Duration::from_millis(200)));
    }
}
