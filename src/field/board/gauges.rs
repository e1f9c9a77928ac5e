//! Reads the board's gauges out of the files of the kernel (sysfs and /proc).
//!
//! Promises: every read and every list is bounded; what is not a value of its kind is no value, with a reason. A gauge
//! that this board does not have is told apart from one that fails. Reads only, and only what the sandbox of the unit
//! lets be read.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::config::{BoardConfig, BoardPoint, Gauge};
use crate::message::Value;

/// Files of the kernel hold a line; /proc/meminfo some fifty.
const FILE_BYTES_MAX: u64 = 8192;
/// Sensors of one kind that are looked at.
const ENTRIES_MAX: usize = 128;
/// Inputs of one hwmon device.
const INPUTS_MAX: usize = 32;
/// What a sensor of a board can be in, in °C: less and more are codes of a fault.
const TEMPERATURES: std::ops::RangeInclusive<f64> = -100.0..=300.0;
/// The zones of a processor bear such names.
const PROCESSORS: [&str; 5] = ["cpu", "soc", "pkg", "coretemp", "k10temp"];
/// The driver that asks the firmware of a Raspberry Pi how its supply is, every two seconds.
const PI_SUPPLY: &str = "rpi_volt";
/// What a Raspberry Pi says when it slows down: capped, throttled, soft limit; now, and since it was asked last.
const PI_THROTTLED: u32 = 0x000e_000e;

/// Why a gauge has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This board has none, or its kernel does not tell it.
    Absent(String),
    /// It is there and says nothing that can be used.
    Failed(String),
}

impl Fault {
    /// In words for a person.
    pub fn reason(&self) -> &str {
        match self {
            Fault::Absent(reason) | Fault::Failed(reason) => reason,
        }
    }
}

type Read = Result<Value, Fault>;

/// Reads one gauge. Blocks for as long as the kernel takes: a sensor behind a slow bus some hundred milliseconds.
pub fn read(board: &BoardConfig, point: &BoardPoint) -> Read {
    let root = &board.root;
    match point.gauge {
        Gauge::Temperature => temperature(root, point.sensor.as_deref()),
        Gauge::UnderVoltage => under_voltage(root),
        // Whoever writes it down takes the warning of the kernel that it costs.
        Gauge::Throttled => throttled(root, !board.points.is_empty()),
        Gauge::FlashLifeUsed => flash_life_used(&flash(board)?),
        Gauge::FlashState => flash_state(&flash(board)?),
        Gauge::Load => load(root),
        Gauge::MemoryAvailable => memory_available(root),
        Gauge::DiskFree => disk_free(&board.state_dir),
    }
}

fn temperature(root: &Path, sensor: Option<&str>) -> Read {
    let zones = numbered(&root.join("sys/class/thermal"), "thermal_zone");
    let devices = numbered(&root.join("sys/class/hwmon"), "hwmon");
    let name = |dir: &Path, file: &str| text(&dir.join(file)).unwrap_or_default();
    let zone = match sensor {
        Some(wanted) => zones.iter().find(|zone| name(zone, "type") == wanted),
        None => {
            let is_processor = |zone: &&PathBuf| is_processor(&name(zone, "type"));
            zones.iter().find(is_processor).or(zones.first())
        }
    };
    if let Some(zone) = zone {
        return degrees(&zone.join("temp"));
    }
    let inputs = devices.iter().flat_map(|device| {
        let own = name(device, "name");
        inputs(device).into_iter().map(move |input| (own.clone(), input))
    });
    let inputs: Vec<(String, Input)> = inputs.take(ENTRIES_MAX).collect();
    let found = match sensor {
        Some(wanted) => inputs.iter().find(|(own, input)| {
            let label = wanted.strip_prefix(own.as_str()).and_then(|rest| rest.strip_prefix('/'));
            own == wanted || label.is_some_and(|label| input.label == label)
        }),
        None => inputs.iter().find(|(own, _)| is_processor(own)).or(inputs.first()),
    };
    if let Some((_, input)) = found {
        return degrees(&input.file);
    }
    Err(Fault::Absent(match sensor {
        None => "this board tells no temperature".to_owned(),
        Some(wanted) => {
            let zones = zones.iter().map(|zone| name(zone, "type"));
            let mut known: Vec<String> = zones.chain(inputs.iter().map(|(own, input)| input.called(own))).collect();
            known.dedup();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            format!("this board has no temperature sensor {wanted:?}; it has {known}")
        }
    }))
}

fn is_processor(name: &str) -> bool {
    PROCESSORS.iter().any(|part| name.contains(part))
}

/// A temperature of a hwmon device.
struct Input {
    file: PathBuf,
    /// What the device calls it; may be empty.
    label: String,
}

impl Input {
    fn called(&self, device: &str) -> String {
        if self.label.is_empty() { device.to_owned() } else { format!("{device}/{}", self.label) }
    }
}

fn inputs(device: &Path) -> Vec<Input> {
    let file = |number: usize, what: &str| device.join(format!("temp{number}_{what}"));
    let there = (1..=INPUTS_MAX).filter(|number| file(*number, "input").exists());
    let input = |number| Input { file: file(number, "input"), label: text(&file(number, "label")).unwrap_or_default() };
    there.map(input).collect()
}

/// Thousandths of a degree, as the kernel writes them.
fn degrees(file: &Path) -> Read {
    let text = failing(file)?;
    let degrees = text.parse::<i32>().ok().map(|thousandths| f64::from(thousandths) / 1000.0);
    match degrees.filter(|degrees| TEMPERATURES.contains(degrees)) {
        Some(degrees) => Ok(Value::Float(degrees)),
        None => Err(Fault::Failed(format!("{} says {}, which is no temperature", file.display(), quoted(&text)))),
    }
}

fn pi_supply(root: &Path) -> Option<PathBuf> {
    let mut devices = numbered(&root.join("sys/class/hwmon"), "hwmon").into_iter();
    devices.find(|device| text(&device.join("name")).is_ok_and(|name| name == PI_SUPPLY))
}

fn under_voltage(root: &Path) -> Read {
    let none = "this board does not tell how its supply is; a Raspberry Pi does by the driver raspberrypi-hwmon";
    let device = pi_supply(root).ok_or_else(|| Fault::Absent(none.to_owned()))?;
    let file = device.join("in0_lcrit_alarm");
    match failing(&file)?.as_str() {
        "0" => Ok(Value::Bool(false)),
        "1" => Ok(Value::Bool(true)),
        other => Err(Fault::Failed(format!("{} says {}", file.display(), quoted(other)))),
    }
}

/// The kernel itself slows a processor down by its cooling devices; a Raspberry Pi does it by its firmware, which tells it by
/// a file that makes the kernel print a warning when it is first read: so only where that is `asked_for`. It is as new as the
/// driver of the supply keeps it, and stands still without.
fn throttled(root: &Path, asked_for: bool) -> Read {
    if asked_for && let Some(file) = pi_throttled(root).filter(|_| pi_supply(root).is_some()) {
        let text = failing(&file)?;
        return match u32::from_str_radix(text.trim_start_matches("0x"), 16) {
            Ok(bits) => Ok(Value::Bool(bits & PI_THROTTLED != 0)),
            Err(_) => Err(Fault::Failed(format!("{} says {}", file.display(), quoted(&text)))),
        };
    }
    let devices = numbered(&root.join("sys/class/thermal"), "cooling_device");
    let is_processor =
        |device: &PathBuf| text(&device.join("type")).is_ok_and(|kind| kind.contains("cpufreq") || kind == "Processor");
    let mut states = Vec::new();
    for device in devices.into_iter().filter(is_processor) {
        let file = device.join("cur_state");
        let text = failing(&file)?;
        let state = text.parse::<u64>();
        states.push(state.map_err(|_| Fault::Failed(format!("{} says {}", file.display(), quoted(&text))))?);
    }
    if states.is_empty() {
        return Err(Fault::Absent("this board does not tell whether its processor is slowed down".to_owned()));
    }
    Ok(Value::Bool(states.iter().any(|state| *state > 0)))
}

fn pi_throttled(root: &Path) -> Option<PathBuf> {
    let usual = root.join("sys/devices/platform/soc/soc:firmware/get_throttled");
    if usual.exists() {
        return Some(usual);
    }
    // Where later boards have it.
    let driver = root.join("sys/bus/platform/drivers/raspberrypi-firmware");
    let entries = fs::read_dir(driver).ok()?.take(ENTRIES_MAX).flatten();
    entries.map(|entry| entry.path().join("get_throttled")).find(|file| file.exists())
}

/// Where the kernel tells of the eMMC that the state directory is on, or else of the board's first one.
fn flash(board: &BoardConfig) -> Result<PathBuf, Fault> {
    let is_telling = |device: &PathBuf| device.join("life_time").exists() || device.join("pre_eol_info").exists();
    let under = fs::metadata(&board.state_dir).ok().map(|found| found.dev());
    let own = under.map(|number| {
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        board.root.join(format!("sys/dev/block/{major}:{minor}"))
    });
    // A partition stands below its disk.
    let own = own.into_iter().flat_map(|block| [block.join("device"), block.join("../device")]);
    let others = numbered(&board.root.join("sys/block"), "mmcblk").into_iter().map(|block| block.join("device"));
    own.chain(others).find(is_telling).ok_or_else(|| {
        Fault::Absent("the flash of this board does not tell how worn it is: an eMMC does, a card does not".to_owned())
    })
}

/// In tenths of the life that its maker promises, of both its kinds of memory: the more worn one counts, and of its tenth
/// the end (JESD84-B51, DEVICE_LIFE_TIME_EST_TYP_A and _B).
fn flash_life_used(device: &Path) -> Read {
    let file = device.join("life_time");
    let text = failing(&file)?;
    let tenths: Result<Vec<u8>, Fault> = text.split_whitespace().map(|word| code(&file, word)).collect();
    match tenths?.into_iter().filter(|tenth| *tenth != 0).max() {
        Some(tenth @ 1..=11) => Ok(Value::Uint(u64::from(tenth) * 10)),
        Some(_) => Err(Fault::Failed(format!("{} says {}", file.display(), quoted(&text)))),
        None => Err(Fault::Absent("this eMMC does not say how worn it is".to_owned())),
    }
}

/// Of its spare blocks (JESD84-B51, PRE_EOL_INFO).
fn flash_state(device: &Path) -> Read {
    let file = device.join("pre_eol_info");
    let text = failing(&file)?;
    let state = match code(&file, &text)? {
        1 => "normal",
        2 => "warning",
        3 => "urgent",
        0 => return Err(Fault::Absent("this eMMC does not say what is left of its spare blocks".to_owned())),
        _ => return Err(Fault::Failed(format!("{} says {}", file.display(), quoted(&text)))),
    };
    Ok(Value::Text(state.to_owned()))
}

fn code(file: &Path, word: &str) -> Result<u8, Fault> {
    let digits = word.trim_start_matches("0x");
    u8::from_str_radix(digits, 16).map_err(|_| Fault::Failed(format!("{} says {}", file.display(), quoted(word))))
}

fn load(root: &Path) -> Read {
    let file = root.join("proc/loadavg");
    let text = absent(&file)?;
    let load = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    match load.filter(|load| load.is_finite() && *load >= 0.0) {
        Some(load) => Ok(Value::Float(load)),
        None => Err(Fault::Failed(format!("{} says {}", file.display(), quoted(&text)))),
    }
}

fn memory_available(root: &Path) -> Read {
    let file = root.join("proc/meminfo");
    let text = absent(&file)?;
    let kib = text.lines().find_map(|line| {
        let words: Vec<&str> = line.strip_prefix("MemAvailable:")?.split_whitespace().collect();
        match words.as_slice() {
            [number, "kB"] => number.parse::<u64>().ok(),
            _ => None,
        }
    });
    match kib.and_then(|kib| kib.checked_mul(1024)) {
        Some(bytes) => Ok(Value::Uint(bytes)),
        None => Err(Fault::Failed(format!("{} does not say what is available", file.display()))),
    }
}

fn disk_free(dir: &Path) -> Read {
    match rustix::fs::statvfs(dir) {
        Ok(disk) => Ok(Value::Uint(disk.f_bavail.saturating_mul(disk.f_frsize))),
        Err(error) => Err(Fault::Failed(format!("the disk of {} does not answer: {error}", dir.display()))),
    }
}

/// What a gauge says that is there.
fn failing(file: &Path) -> Result<String, Fault> {
    text(file).map_err(|error| Fault::Failed(format!("cannot read {}: {error}", file.display())))
}

/// What the file of a gauge says: without a file there is none.
fn absent(file: &Path) -> Result<String, Fault> {
    text(file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Fault::Absent(format!("there is no {}", file.display())),
        _ => Fault::Failed(format!("cannot read {}: {error}", file.display())),
    })
}

/// A short file, without the newline at its end. What is no file is not opened: a pipe would be waited for.
fn text(file: &Path) -> io::Result<String> {
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut bytes = Vec::new();
    fs::File::open(file)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

fn quoted(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    format!("{short:?}")
}

/// The entries of a directory that are called so and a number, by their numbers.
fn numbered(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let numbered = entries.take(8 * ENTRIES_MAX).flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse::<u32>().ok()?;
        Some((number, entry.path()))
    });
    let mut numbered: Vec<(u32, PathBuf)> = numbered.take(ENTRIES_MAX).collect();
    numbered.sort();
    numbered.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests;
