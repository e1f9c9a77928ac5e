//! What goes into the configuration. Pure.

use std::fmt::Write as _;

use crate::config::{LineConfig, LineKind, ModbusPoint, PointKind, SerialFraming, toml_key, toml_text};

/// The name of a serial line in what is printed.
const BUS: &str = "bus";

/// The line with its settings, and by what its devices name it.
pub(super) fn line(config: &LineConfig) -> (String, String) {
    let authority =
        |host: &str, port: u16| if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match &config.kind {
        LineKind::Tcp { host, port } => (String::new(), format!("tcp://{}", authority(host, *port))),
        LineKind::RtuOverTcp { host, port } => (String::new(), format!("rtu-tcp://{}", authority(host, *port))),
        LineKind::Rtu(port) => {
            let path = toml_text(&port.path.display().to_string());
            let framing = if config.framing == SerialFraming::Ascii { "framing = \"ascii\"\n" } else { "" };
            let text =
                format!("[line.{BUS}]\nport = {path}\nbaud = {}\nmode = \"{}\"\n{framing}\n", port.baud, port.mode);
            (text, BUS.to_owned())
        }
    }
}

/// One device with its points; `count` = how many such values follow each other.
pub(super) fn device(name: &str, line: &str, unit_id: u8, points: &[(ModbusPoint, u16)]) -> String {
    let name = toml_key(name);
    let mut text = format!("[modbus.{name}]\nline = {}\nunit_id = {unit_id}\n", toml_text(line));
    let _infallible = writeln!(text, "[modbus.{name}.point]");
    if points.is_empty() {
        text.push_str(
            "# which registers it has is in its manual: value = { address = \"holding:100\", type = \"u16\" }\n",
        );
    }
    for (written, count) in points {
        let _infallible = writeln!(text, "{} = {}", toml_key(&written.name), point(written, *count));
    }
    text
}

/// `{ address = "holding:100", type = "f32", order = "cdab" }`
fn point(point: &ModbusPoint, count: u16) -> String {
    let mut text =
        format!("{{ address = \"{}:{}\", type = \"{}\"", point.table.word(), point.address, point.kind.word());
    if let PointKind::String { registers } = point.kind {
        let _infallible = write!(text, ", registers = {registers}");
    }
    if !point.table.is_bits() && point.order != crate::config::WordOrder::Abcd {
        let _infallible = write!(text, ", order = \"{}\"", point.order.word());
    }
    if point.meaning.scale != 1.0 {
        let _infallible = write!(text, ", scale = {}", point.meaning.scale);
    }
    if count > 1 {
        let _infallible = write!(text, ", count = {count}");
    }
    if point.write.is_some() {
        text.push_str(", write = true");
    }
    text.push_str(" }");
    text
}

/// The name that a device has until somebody gives it a better one.
pub(super) fn device_name(unit_id: u8) -> String {
    format!("unit_{unit_id}")
}

/// The name that a point has until somebody gives it a better one.
pub(super) fn point_name(point: &ModbusPoint) -> String {
    format!("{}_{}", point.table.word(), point.address)
}

/// Prints what goes into the configuration.
pub(super) fn print(config: &LineConfig, devices: &[(u8, Vec<(ModbusPoint, u16)>)]) {
    let (head, reference) = line(config);
    println!("\nFor the configuration:\n\n{head}{}", {
        let blocks =
            devices.iter().map(|(unit_id, points)| device(&device_name(*unit_id), &reference, *unit_id, points));
        blocks.collect::<Vec<_>>().join("\n")
    });
}
