//! Boards of files, and what is read of each.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::PointTopic;
use crate::message::Qos;

/// A board of files.
struct Board {
    dir: tempfile::TempDir,
    config: BoardConfig,
}

impl Board {
    fn new(files: &[(&str, &str)]) -> Board {
        let dir = tempfile::tempdir().unwrap();
        let config = BoardConfig {
            root: dir.path().to_owned(),
            state_dir: dir.path().to_owned(),
            poll: Duration::from_secs(1),
            topic: PointTopic("field/{device}/{point}".to_owned()),
            qos: Qos::AtLeastOnce,
            points: Vec::new(),
        };
        let board = Board { dir, config };
        files.iter().for_each(|(file, text)| board.write(file, text));
        board
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn read(&self, gauge: Gauge) -> Read {
        self.read_of(gauge, None)
    }

    fn read_of(&self, gauge: Gauge, sensor: Option<&str>) -> Read {
        let point =
            BoardPoint { name: Arc::from("x"), gauge, sensor: sensor.map(str::to_owned), report: gauge.report() };
        read(&self.config, &point)
    }

    /// The same with the points written down.
    fn written(mut self) -> Board {
        self.config.points = self.config.all_points();
        self
    }
}

fn is_absent(read: &Read) -> bool {
    matches!(read, Err(Fault::Absent(_)))
}

fn is_failed(read: &Read) -> bool {
    matches!(read, Err(Fault::Failed(_)))
}

#[test]
fn a_board_that_tells_nothing_has_no_gauges_but_that_of_its_disk() {
    let board = Board::new(&[]);
    for (name, gauge) in Gauge::ALL {
        let read = board.read(gauge);
        match gauge {
            Gauge::DiskFree => assert!(matches!(read, Ok(Value::Uint(1..))), "{read:?}"),
            _ => assert!(is_absent(&read), "{name}: {read:?}"),
        }
    }
}

#[test]
fn the_processor_is_found_among_the_zones_and_any_other_sensor_by_its_name() {
    let board = Board::new(&[
        ("sys/class/thermal/thermal_zone0/type", "gpu-thermal"),
        ("sys/class/thermal/thermal_zone0/temp", "51000"),
        ("sys/class/thermal/thermal_zone10/type", "cpu-thermal"),
        ("sys/class/thermal/thermal_zone10/temp", "99000"),
        ("sys/class/thermal/thermal_zone2/type", "cpu-thermal"),
        ("sys/class/thermal/thermal_zone2/temp", "48312"),
        ("sys/class/hwmon/hwmon1/name", "lm75"),
        ("sys/class/hwmon/hwmon1/temp1_input", "-4500"),
        ("sys/class/hwmon/hwmon0/name", "coretemp"),
        ("sys/class/hwmon/hwmon0/temp2_input", "60000"),
        ("sys/class/hwmon/hwmon0/temp2_label", "Core 0"),
    ]);
    let of = |sensor| board.read_of(Gauge::Temperature, sensor);
    assert_eq!(of(None), Ok(Value::Float(48.312)));
    assert_eq!(of(Some("gpu-thermal")), Ok(Value::Float(51.0)));
    assert_eq!(of(Some("lm75")), Ok(Value::Float(-4.5)));
    assert_eq!(of(Some("coretemp/Core 0")), Ok(Value::Float(60.0)));
    let Err(Fault::Absent(reason)) = of(Some("lm57")) else { panic!("there is none") };
    assert!(reason.ends_with("it has gpu-thermal, cpu-thermal, coretemp/Core 0, lm75"), "{reason}");
}

#[test]
fn without_zones_the_first_device_with_a_temperature_stands_in() {
    let board = Board::new(&[
        ("sys/class/hwmon/hwmon0/name", "rpi_volt"),
        ("sys/class/hwmon/hwmon1/name", "nvme"),
        ("sys/class/hwmon/hwmon1/temp1_input", "33000"),
    ]);
    assert_eq!(board.read(Gauge::Temperature), Ok(Value::Float(33.0)));
    board.write("sys/class/hwmon/hwmon2/name", "k10temp");
    board.write("sys/class/hwmon/hwmon2/temp1_input", "44000");
    assert_eq!(board.read(Gauge::Temperature), Ok(Value::Float(44.0)));
}

#[test]
fn what_is_no_temperature_is_no_value() {
    let board = Board::new(&[("sys/class/thermal/thermal_zone0/type", "cpu-thermal")]);
    assert!(is_failed(&board.read(Gauge::Temperature)), "a zone without a file");
    for text in ["", "48 °C", "-274000", "2147483647", "99999999999999", "48.3", &"7".repeat(100_000)] {
        board.write("sys/class/thermal/thermal_zone0/temp", text);
        assert!(is_failed(&board.read(Gauge::Temperature)), "{:.20}", text);
    }
}

#[test]
fn a_raspberry_pi_tells_of_its_supply_and_of_being_slowed_down_where_it_is_asked() {
    let throttled = "sys/devices/platform/soc/soc:firmware/get_throttled";
    let board = Board::new(&[
        ("sys/class/hwmon/hwmon0/name", "cpu_thermal"),
        ("sys/class/hwmon/hwmon1/name", "rpi_volt"),
        ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0"),
        (throttled, "50005"),
    ]);
    assert_eq!(board.read(Gauge::UnderVoltage), Ok(Value::Bool(false)));
    assert!(is_absent(&board.read(Gauge::Throttled)), "unasked the kernel would print a warning");
    let board = board.written();
    for (text, is_throttled) in [("50005", true), ("0", false), ("10001", false), ("20000", true), ("8", true)] {
        board.write(throttled, text);
        assert_eq!(board.read(Gauge::Throttled), Ok(Value::Bool(is_throttled)), "{text}");
    }
    board.write(throttled, "yes");
    assert!(is_failed(&board.read(Gauge::Throttled)));
    board.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1");
    assert_eq!(board.read(Gauge::UnderVoltage), Ok(Value::Bool(true)));
    board.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "2");
    assert!(is_failed(&board.read(Gauge::UnderVoltage)));
    board.write("sys/class/hwmon/hwmon1/name", "ina219");
    assert!(is_absent(&board.read(Gauge::UnderVoltage)), "not every voltage is the supply");
    assert!(is_absent(&board.read(Gauge::Throttled)), "nobody keeps the file as new as it looks");
}

#[test]
fn a_later_raspberry_pi_has_its_file_elsewhere() {
    let board = Board::new(&[
        ("sys/class/hwmon/hwmon1/name", "rpi_volt"),
        ("sys/bus/platform/drivers/raspberrypi-firmware/bind", ""),
        ("sys/bus/platform/drivers/raspberrypi-firmware/soc:firmware/get_throttled", "4"),
    ]);
    assert_eq!(board.written().read(Gauge::Throttled), Ok(Value::Bool(true)));
}

#[test]
fn other_processors_are_slowed_down_by_the_kernel() {
    let board = Board::new(&[
        ("sys/class/thermal/cooling_device0/type", "pwm-fan"),
        ("sys/class/thermal/cooling_device0/cur_state", "3"),
    ]);
    assert!(is_absent(&board.read(Gauge::Throttled)), "a fan slows nothing down");
    board.write("sys/class/thermal/cooling_device1/type", "cpufreq-cpu0");
    board.write("sys/class/thermal/cooling_device1/cur_state", "0");
    assert_eq!(board.read(Gauge::Throttled), Ok(Value::Bool(false)));
    board.write("sys/class/thermal/cooling_device2/type", "thermal-cpufreq-1");
    board.write("sys/class/thermal/cooling_device2/cur_state", "1");
    assert_eq!(board.read(Gauge::Throttled), Ok(Value::Bool(true)));
}

#[test]
fn the_life_of_the_flash_is_that_of_the_more_worn_memory_and_of_the_disk_of_the_state_directory() {
    let board = Board::new(&[
        ("sys/block/mmcblk1/device/life_time", "0x09 0x09"),
        ("sys/block/mmcblk0boot0/device/life_time", "0x0b 0x0b"),
        ("sys/block/mmcblk0/device/type", "SD"),
    ]);
    assert_eq!(board.read(Gauge::FlashLifeUsed), Ok(Value::Uint(90)), "the first that tells");
    let number = fs::metadata(board.dir.path()).unwrap().dev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    board.write("sys/devices/mmc2/block/mmcblk2/mmcblk2p3/partition", "3");
    board.write("sys/devices/mmc2/block/mmcblk2/device/life_time", "0x02 0x01");
    board.write("sys/devices/mmc2/block/mmcblk2/device/pre_eol_info", "0x02");
    let link = board.dir.path().join("sys/dev/block");
    fs::create_dir_all(&link).unwrap();
    symlink("../../devices/mmc2/block/mmcblk2/mmcblk2p3", link.join(format!("{major}:{minor}"))).unwrap();
    assert_eq!(board.read(Gauge::FlashLifeUsed), Ok(Value::Uint(20)));
    assert_eq!(board.read(Gauge::FlashState), Ok(Value::Text("warning".to_owned())));
    let file = "sys/devices/mmc2/block/mmcblk2/device/life_time";
    for (text, used) in [("0x01 0x00", Some(10)), ("0x00 0x0b", Some(110)), ("0x0c 0x01", None), ("x", None)] {
        board.write(file, text);
        let read = board.read(Gauge::FlashLifeUsed);
        assert_eq!(read.clone().ok(), used.map(Value::Uint), "{text}");
        assert!(used.is_some() || is_failed(&read), "{text}");
    }
    board.write(file, "0x00 0x00");
    assert!(is_absent(&board.read(Gauge::FlashLifeUsed)), "an old one that does not say it");
    for (text, state) in [("0x01", Some("normal")), ("0x03", Some("urgent")), ("0x04", None), ("", None)] {
        board.write("sys/devices/mmc2/block/mmcblk2/device/pre_eol_info", text);
        let read = board.read(Gauge::FlashState);
        assert_eq!(read.clone().ok(), state.map(|state| Value::Text(state.to_owned())), "{text}");
        assert!(state.is_some() || is_failed(&read), "{text}");
    }
}

#[test]
fn load_and_memory_are_what_the_kernel_says() {
    let board = Board::new(&[
        ("proc/loadavg", "0.25 0.18 0.12 1/149 19140"),
        ("proc/meminfo", "MemTotal:         948152 kB\nMemFree: 1 kB\nMemAvailable:     634116 kB"),
    ]);
    assert_eq!(board.read(Gauge::Load), Ok(Value::Float(0.25)));
    assert_eq!(board.read(Gauge::MemoryAvailable), Ok(Value::Uint(634_116 * 1024)));
    for (file, gauge, text) in [
        ("proc/loadavg", Gauge::Load, "NaN 1 1"),
        ("proc/loadavg", Gauge::Load, "-1"),
        ("proc/loadavg", Gauge::Load, ""),
        ("proc/meminfo", Gauge::MemoryAvailable, "MemAvailable: lots kB"),
        ("proc/meminfo", Gauge::MemoryAvailable, "MemAvailable: 18446744073709551615 kB"),
        ("proc/meminfo", Gauge::MemoryAvailable, "MemFree: 1 kB"),
    ] {
        board.write(file, text);
        assert!(is_failed(&board.read(gauge)), "{text}");
    }
}

#[test]
fn a_pipe_or_a_directory_in_the_place_of_a_file_is_not_waited_for() {
    let board = Board::new(&[("sys/class/thermal/thermal_zone0/type", "cpu-thermal"), ("proc/loadavg/x", "")]);
    let pipe = board.dir.path().join("sys/class/thermal/thermal_zone0/temp");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(is_failed(&board.read(Gauge::Temperature)));
    assert!(is_failed(&board.read(Gauge::Load)));
}

#[test]
fn the_board_that_this_test_runs_on_tells_what_every_linux_has() {
    let mut board = Board::new(&[]);
    board.config.root = PathBuf::from("/");
    for gauge in [Gauge::Load, Gauge::MemoryAvailable, Gauge::DiskFree] {
        let read = board.read(gauge);
        assert!(read.is_ok(), "{read:?}");
    }
}
