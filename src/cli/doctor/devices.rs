//! The field devices: what the running gateway says of them, what they answer when they are asked here, and what to change.
//!
//! A serial port that the gateway holds is not touched; a device on TCP that does not answer is asked once more beside it,
//! in the ways that show the likely mistake (`field/modbus/advice`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::report::{Finding, Report};
use crate::config::{BOARD, BoardConfig, Config, LineConfig, LineKind, ModbusConfig, ModbusPoint, SerialConfig};
use crate::field::board::{self, gauges::Fault};
use crate::field::modbus::probe::{Ask, Probe, Said};
use crate::field::modbus::{advice, decode, wild};
use crate::message;

/// Points of one device that are told; the others fail for the same reasons, mostly.
const POINTS_TOLD_MAX: usize = 4;
/// Points of one device that are asked where no gateway runs.
const POINTS_ASKED_MAX: usize = 32;

/// What the running gateway knows.
pub(super) struct Known<'r> {
    pub(super) status: &'r Value,
    /// By device, by point.
    pub(super) points: &'r Value,
}

pub(super) async fn examine(config: &Config, known: Option<&Known<'_>>, report: &mut Report) {
    if config.modbus.is_empty() && config.serial.is_empty() && config.board.is_none() {
        return;
    }
    report.title("devices");
    let mut probes: BTreeMap<Arc<str>, Probe> = BTreeMap::new();
    for (name, device) in &config.modbus {
        let Some(line) = config.lines.get(&device.line) else { continue };
        let visit = Visit { name, device, line };
        match known {
            Some(known) => visit.by_word(known, report).await,
            None => {
                let probe = probes.entry(device.line.clone()).or_insert_with(|| Probe::new(line.clone(), None));
                visit.by_asking(probe, report).await;
            }
        }
    }
    for (name, device) in &config.serial {
        report.note(serial(name, device, known));
    }
    if let Some(board) = &config.board {
        this_board(board, known, report);
    }
}

/// A Modbus device.
struct Visit<'c> {
    name: &'c str,
    device: &'c ModbusConfig,
    line: &'c LineConfig,
}

impl Visit<'_> {
    /// What the running gateway says of it.
    async fn by_word(&self, known: &Known<'_>, report: &mut Report) {
        let Some(entry) = known.status.get("devices").and_then(|devices| devices.get(self.name)) else {
            let what = format!("{}: the running gateway does not know it", self.name);
            report.note(Finding::unsure("device", what).help("a new device waits for `tidegate reload`"));
            return;
        };
        let reason = entry.get("reason").and_then(Value::as_str).unwrap_or_default();
        let points = known.points.get(self.name);
        match entry.get("state").and_then(Value::as_str).unwrap_or_default() {
            "dead" => self.dead(reason, report).await,
            "starting" => {
                report.note(Finding::unsure("device", format!("{} was not asked yet", self.name)));
            }
            state => {
                let bad = |point: &ModbusPoint| {
                    let seen = points.and_then(|points| points.get(&*point.name))?;
                    let is_bad = seen.get("quality").and_then(Value::as_str) == Some("bad");
                    is_bad.then(|| seen.get("reason").and_then(Value::as_str).unwrap_or("it has no value").to_owned())
                };
                let bad: Vec<(&ModbusPoint, String)> =
                    self.device.points.iter().filter_map(|point| Some((point, bad(point)?))).collect();
                if bad.is_empty() {
                    let interval = entry.get("interval_s").and_then(Value::as_f64);
                    let every = interval.map_or_else(String::new, |interval| format!(", every {interval:.1} s"));
                    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
                    report.note(Finding::good("device", format!("{} is {state}{every}{reason}", self.name)));
                }
                for (point, reason) in bad.iter().take(POINTS_TOLD_MAX) {
                    self.failing(point, reason, report).await;
                }
                self.more(bad.len(), report);
            }
        }
        for point in &self.device.points {
            let value = points.and_then(|points| points.get(&*point.name)).and_then(|seen| seen.get("value"));
            if let Some(value) = value.and_then(Value::as_f64) {
                self.judge(point, value, report);
            }
        }
    }

    /// The gateway gets nothing from it. A port is the gateway's own; a connection can be made beside it.
    async fn dead(&self, reason: &str, report: &mut Report) {
        let what = format!("{} (unit {} on {}): {reason}", self.name, self.device.unit_id, self.device.line);
        // What keeps a line from being opened says itself what to do.
        if reason.starts_with("cannot open") || reason.starts_with("the serial port") {
            report.note(Finding::away("device", what).help("`tidegate serial list` shows each port, and who has it"));
            return;
        }
        if reason.starts_with("cannot connect") {
            report.note(Finding::away("device", what).helps(&unreachable(self.line)));
            return;
        }
        let said = advice::from_reason(reason);
        let Some(point) = self.device.points.iter().find(|point| point.is_readable()) else { return };
        let ask = self.ask(point);
        let mut probe = Probe::new(self.line.clone(), None);
        let found = if self.is_port() { Vec::new() } else { looks(&said, &ask, self.line, &mut probe).await };
        report.note(self.told(Finding::away("device", what), &said, &ask, found));
    }

    /// One of its points has no value.
    async fn failing(&self, point: &ModbusPoint, reason: &str, report: &mut Report) {
        let what = format!("{}/{}: {reason}", self.name, point.name);
        let said = advice::from_reason(reason);
        if matches!(said, Said::Broken { .. }) {
            report.note(Finding::wrong("point", what));
            return;
        }
        let ask = self.ask(point);
        let mut probe = Probe::new(self.line.clone(), None);
        let found = if self.is_port() { Vec::new() } else { looks(&said, &ask, self.line, &mut probe).await };
        report.note(self.told(Finding::wrong("point", what), &said, &ask, found));
    }

    /// No gateway runs: it is asked.
    async fn by_asking(&self, probe: &mut Probe, report: &mut Report) {
        let mut failed = 0;
        let mut answered = 0;
        let readable = || self.device.points.iter().filter(|point| point.is_readable());
        for point in readable().take(POINTS_ASKED_MAX) {
            let ask = self.ask(point);
            let said = match probe.ask(&ask).await {
                Ok(said) => said,
                Err(error) => {
                    let what = format!("{}: {error}", self.name);
                    let helps = if error.is_port {
                        vec!["`tidegate serial list` shows each port, and who has it".to_owned()]
                    } else {
                        unreachable(self.line)
                    };
                    report.note(Finding::away("device", what).helps(&helps));
                    return;
                }
            };
            let Some(verdict) = advice::verdict(&said, &ask) else {
                answered += 1;
                if let Some(value) = value(point, &said) {
                    self.judge(point, value, report);
                }
                continue;
            };
            failed += 1;
            let is_alive = said.is_alive();
            if failed <= POINTS_TOLD_MAX {
                let found = looks(&said, &ask, self.line, probe).await;
                let (step, what) = if is_alive {
                    ("point", format!("{}/{}: {verdict}", self.name, point.name))
                } else {
                    ("device", format!("{}: {verdict}", self.name))
                };
                let finding = if is_alive { Finding::wrong(step, what) } else { Finding::away(step, what) };
                report.note(self.told(finding, &said, &ask, found));
            }
            // The others would wait as long, and say the same.
            if !is_alive {
                return;
            }
        }
        self.more(failed, report);
        if failed == 0 && answered > 0 {
            report.note(Finding::good("device", format!("{} answers", self.name)));
        }
    }

    fn more(&self, failing: usize, report: &mut Report) {
        if let Some(more @ 1..) = failing.checked_sub(POINTS_TOLD_MAX) {
            report.note(Finding::unsure("point", format!("{}: {more} more like that", self.name)));
        }
    }

    fn told(&self, finding: Finding, said: &Said, ask: &Ask, found: Vec<String>) -> Finding {
        let helps = if found.is_empty() { advice::advice(said, ask, &self.line.kind, &self.target()) } else { found };
        finding.helps(&helps)
    }

    /// A value that no plant has.
    fn judge(&self, point: &ModbusPoint, value: f64, report: &mut Report) {
        let others = wild::other_orders(point, value);
        if others.is_empty() {
            return;
        }
        let what = format!("{}/{} reads {value:e}, which no plant has", self.name, point.name);
        let tried = others.iter().map(|(order, better)| format!("`order = \"{}\"` makes it {better}", order.word()));
        let help = format!("its bytes come in another order: {}", tried.collect::<Vec<_>>().join(", "));
        report.note(Finding::wrong("point", what).help(help));
    }

    fn ask(&self, point: &ModbusPoint) -> Ask {
        Ask {
            unit_id: self.device.unit_id,
            table: point.table,
            address: point.address,
            quantity: point.kind.width(),
            timeout: self.device.timeout,
        }
    }

    fn is_port(&self) -> bool {
        matches!(self.line.kind, LineKind::Rtu(_))
    }

    /// The line as `tidegate modbus` takes it.
    fn target(&self) -> String {
        match &self.line.kind {
            LineKind::Rtu(port) => port.path.display().to_string(),
            LineKind::Tcp { host, port } => format!("tcp://{host}:{port}"),
            LineKind::RtuOverTcp { host, port } => format!("rtu-tcp://{host}:{port}"),
        }
    }
}

/// What else would be answered, which shows the mistake.
async fn looks(said: &Said, ask: &Ask, line: &LineConfig, probe: &mut Probe) -> Vec<String> {
    let mut found = Vec::new();
    for look in advice::second_looks(said, ask, &line.kind) {
        let answer = match look.line {
            None => probe.ask(&look.ask).await,
            Some(kind) => Probe::new(LineConfig { kind, ..line.clone() }, None).ask(&look.ask).await,
        };
        if let Ok(Said::Registers(_) | Said::Bits(_)) = answer {
            found.push(look.meaning);
        }
    }
    found
}

fn value(point: &ModbusPoint, said: &Said) -> Option<f64> {
    let Said::Registers(words) = said else { return None };
    match decode::registers(point, words).ok()?.value {
        message::Value::Float(value) => Some(value),
        _ => None,
    }
}

fn unreachable(line: &LineConfig) -> Vec<String> {
    let port = match &line.kind {
        LineKind::Tcp { port, .. } if *port != 502 => "is it switched on, and is the port right? Modbus TCP is 502",
        LineKind::RtuOverTcp { .. } => "is it switched on, and is the port right? Converters choose their own",
        _ => {
            "is it switched on, and is the address right? Its display or its page shows it; `ping` tells whether it is there"
        }
    };
    vec![port.to_owned(), "a device that serves few connections: end other clients".to_owned()]
}

/// The board itself, which can be read beside a gateway that runs.
fn this_board(board: &BoardConfig, known: Option<&Known<'_>>, report: &mut Report) {
    if let Some(known) = known
        && known.status.get("devices").and_then(|devices| devices.get(BOARD)).is_none()
    {
        let what = format!("{BOARD}: the running gateway does not know it");
        report.note(Finding::unsure("device", what).help("it waits for `tidegate reload`"));
        return;
    }
    let points = board.all_points();
    let mut is_well = true;
    for (point, read) in points.iter().zip(board::look(board, &points)) {
        let is_wanted = |fault: &Fault| !board.points.is_empty() || matches!(fault, Fault::Failed(_));
        if let Some(fault) = read.err().filter(is_wanted) {
            is_well = false;
            let what = format!("{BOARD}/{}: {}", point.name, fault.reason());
            report.note(Finding::wrong("point", what).help("`tidegate check` says what this board has"));
        }
    }
    if is_well {
        report.note(Finding::good("device", format!("{BOARD} is read")));
    }
}

/// A device with a protocol of its own: only the running gateway can say something.
fn serial(name: &str, device: &SerialConfig, known: Option<&Known<'_>>) -> Finding {
    let port = device.port.path.display();
    let watch =
        format!("`tidegate serial watch {port}` shows what comes (stop the gateway first: one program holds a port)");
    let Some(known) = known else {
        return match device.port.path.exists() {
            true => {
                Finding::unsure("device", format!("{name}: the port {port} is there; what it says is not looked at"))
                    .help(watch)
            }
            false => {
                Finding::away("device", format!("{name}: the port {port} is not there; is the adapter plugged in?"))
                    .help("`tidegate serial list` shows each port")
            }
        };
    };
    let Some(entry) = known.status.get("devices").and_then(|devices| devices.get(name)) else {
        return Finding::unsure("device", format!("{name}: the running gateway does not know it"))
            .help("a new device waits for `tidegate reload`");
    };
    let reason = entry.get("reason").and_then(Value::as_str).unwrap_or_default();
    let state = entry.get("state").and_then(Value::as_str).unwrap_or_default();
    if state == "good" {
        return Finding::good("device", format!("{name} is good"));
    }
    if reason.starts_with("cannot open") || reason.starts_with("the serial port") {
        return Finding::away("device", format!("{name}: {reason}"))
            .help("`tidegate serial list` shows each port, and who has it");
    }
    let faults = entry.get("faults").and_then(Value::as_object);
    let mut counted: Vec<(&str, u64)> =
        faults.into_iter().flatten().map(|(kind, count)| (kind.as_str(), count.as_u64().unwrap_or(0))).collect();
    counted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mostly = counted.first().map_or("silent", |(kind, _)| *kind);
    let help = match mostly {
        "overlong" => {
            "the end of a frame never comes: `delimiter` or `end` in `frame` is another one, or baud rate and parity are"
        }
        "checksum" => {
            "`checksum` in `frame`: its kind, what it covers, or where it stands; or parity, or a disturbed wire"
        }
        "incomplete" => "frames break off: `start`, `end` or `length` in `frame`, or a wire that loses bytes",
        "garbage" => "bytes that belong to no frame: `start` in `frame`, or baud rate and parity",
        "frame" => "frames come whole, and `parse` does not fit what stands in them",
        _ if device.ask.is_some() => {
            "nothing comes back: TX and RX crossed, baud rate and parity, or `send` in `ask` is not what it understands"
        }
        _ => {
            "it has said nothing: TX and RX crossed, baud rate and parity, or a device that speaks only when asked (`ask`)"
        }
    };
    let reason = if reason.is_empty() { "nothing was heard" } else { reason };
    Finding::away("device", format!("{name}: {reason}")).helps(&[help.to_owned(), watch])
}
