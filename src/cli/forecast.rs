//! What a configuration will come to, as `tidegate check` ends: the load of each line, readings and their volume a month, bytes
//! written a day, and how long an outage the queue holds. Pure.
//!
//! All of it is "at most, about": how often a value changes nobody knows before, nor how the cloud is. What it was is told by
//! `tidegate status` and `tidegate ledger`.

use std::fmt::Write as _;
use std::time::Duration;

use crate::config::{BOARD, BoardConfig, Config, ModbusConfig, Report, UplinkConfig};
use crate::field::modbus::forecast;
use crate::message::Topic;

/// A reading as JSON without its names, with its id beside it, and what MQTT adds.
const MESSAGE_BYTES: usize = 190;
/// A reading in the store, with what SQLite adds.
const ROW_BYTES: f64 = 150.0;
/// What a commit of a few readings writes, and their settlement (DESIGN.md 6.3).
const COMMIT_BYTES: f64 = 9.0 * 1024.0;
/// How much more is written where what was delivered is kept, as measured (queue/tests/kept.rs).
const KEPT_MORE: f64 = 7.0 / 6.0;
/// The share of the ceiling that messages have, beside the log and the reserve.
const ROOM: f64 = 0.75;
const DAY_S: f64 = 86_400.0;
const MONTH_S: f64 = 30.0 * DAY_S;

/// What points come to.
#[derive(Debug, Default, Clone, Copy)]
struct Flow {
    /// Readings a second, at most.
    most: f64,
    /// Of these, those that come though nothing changes.
    least: f64,
    /// Bytes a second at the cloud, at most.
    bytes: f64,
    /// Polls a second, each of which is a commit at most.
    commits: f64,
}

/// Text for a person; empty where no device is read at fixed times.
pub(super) fn text(config: &Config) -> String {
    let mut text = String::new();
    for line in forecast::forecasts(config) {
        let devices = if line.devices == 1 { "device" } else { "devices" };
        // Writing to a String cannot fail.
        let _ok = writeln!(
            text,
            "line      {}: {} {devices}, {} requests, busy {:.0} % of the time",
            line.line,
            line.devices,
            line.requests,
            line.load * 100.0
        );
    }
    let mut flow = Flow::default();
    config.modbus.iter().for_each(|(name, device)| add(&mut flow, config, name, device));
    config.board.iter().for_each(|board| add_board(&mut flow, config, board));
    if flow.most <= 0.0 {
        return text;
    }
    let least =
        if flow.least < flow.most { format!(", {} where nothing changes", rate(flow.least)) } else { String::new() };
    let _ok = writeln!(text, "readings  {} at most{least}; {} a month", rate(flow.most), count(flow.most * MONTH_S));
    if !config.uplinks.is_empty() {
        let bytes = size(flow.bytes * MONTH_S);
        let _ok =
            writeln!(text, "uplink    about {bytes} a month as single JSON messages, for each that takes all of them");
        for (name, uplink) in &config.uplinks {
            text += &billed(config, name, uplink);
        }
        #[expect(clippy::cast_precision_loss, reason = "days are shown with three digits")]
        let room = config.queue.bytes_max.get() as f64 * ROOM;
        let full = room / (flow.most * ROW_BYTES) / DAY_S;
        let _ok = writeln!(text, "queue     holds an outage of about {full:.1} days at that rate");
    }
    if let Some(keep) = config.queue.keep {
        #[expect(clippy::cast_precision_loss, reason = "days are shown with three digits")]
        let room = config.queue.bytes_max.get() as f64 * ROOM;
        let bytes = flow.most * ROW_BYTES * keep.as_secs_f64();
        let days = room.min(bytes) / (flow.most * ROW_BYTES) / DAY_S;
        let _ok = writeln!(text, "kept      delivered readings of about {days:.1} days, {}", size(room.min(bytes)));
    }
    let more = if config.queue.keep.is_some() { KEPT_MORE } else { 1.0 };
    let _ok = match config.queue.hold {
        Some(_) => writeln!(text, "flash     hardly written while the cloud answers (flash = \"spare\")"),
        None => {
            writeln!(text, "flash     about {} written a day at most", size(flow.commits * COMMIT_BYTES * more * DAY_S))
        }
    };
    text
}

/// What a cloud that bills by size saves who lets readings travel together; empty where they do, or where it does not.
fn billed(config: &Config, name: &str, uplink: &UplinkConfig) -> String {
    let Some(unit) = uplink.profile.billed_bytes() else { return String::new() };
    let mut single = Flow::default();
    for (device_name, device) in &config.modbus {
        let is_single = |point: &str| {
            let topic = device.topic.0.replace("{device}", device_name).replace("{point}", point);
            let rule = Topic::new(&topic)
                .ok()
                .and_then(|topic| uplink.forward.iter().find(|rule| rule.filter.matches(&topic)));
            rule.is_some_and(|rule| rule.batch.is_none())
        };
        if device.points.iter().any(|point| is_single(&point.name)) {
            add(&mut single, config, device_name, device);
        }
    }
    if single.most <= 0.0 {
        return String::new();
    }
    #[expect(clippy::cast_precision_loss, reason = "a unit has few bytes")]
    let units = single.bytes / unit as f64;
    // One message a second at least, because none waits longer.
    let together = units.max(single.most.min(1.0));
    let (alone, title) = (count(single.most * MONTH_S), uplink.profile.title);
    let together = count(together * MONTH_S);
    format!(
        "          {title} bills each of them by {} KiB: {alone} a month by {name}; with payload = \"json-batch\" and one topic for all, {together}\n",
        unit / 1024
    )
}

fn add(flow: &mut Flow, config: &Config, name: &str, device: &ModbusConfig) {
    let mut polls: Vec<Duration> = Vec::new();
    for point in device.points.iter().filter(|point| point.is_readable()) {
        let poll = point.poll.unwrap_or(device.poll);
        let unit = point.unit.as_ref().map_or(0, |unit| unit.len());
        let names = config.gateway.id.len() + unit + 2 * (name.len() + point.name.len());
        add_point(flow, poll, point.report, names);
        polls.push(poll);
    }
    polls.sort();
    polls.dedup();
    flow.commits += polls.into_iter().map(per_second).sum::<f64>();
}

/// What a board without points of its choice has, nobody knows here: it is not more than all there are.
fn add_board(flow: &mut Flow, config: &Config, board: &BoardConfig) {
    for point in board.all_points() {
        let unit = point.gauge.unit().map_or(0, str::len);
        let names = config.gateway.id.len() + unit + 2 * (BOARD.len() + point.name.len());
        add_point(flow, board.poll, point.report, names);
    }
    flow.commits += per_second(board.poll);
}

/// `names`: bytes of the names in its message; device and point stand in the topic too.
fn add_point(flow: &mut Flow, poll: Duration, report: Report, names: usize) {
    let Report { deadband, min_interval, heartbeat } = report;
    let most = per_second(poll.max(min_interval.unwrap_or_default()));
    flow.most += most;
    flow.least += match (deadband, heartbeat) {
        (None, _) => most,
        (Some(_), Some(heartbeat)) => per_second(heartbeat.max(poll)),
        (Some(_), None) => 0.0,
    };
    #[expect(clippy::cast_precision_loss, reason = "a message has fewer than 2^53 bytes")]
    let bytes = (MESSAGE_BYTES + names) as f64;
    flow.bytes += most * bytes;
}

fn per_second(every: Duration) -> f64 {
    1.0 / every.as_secs_f64().max(1e-3)
}

fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "none".to_owned(),
        _ if per_second >= 0.1 => format!("{per_second:.1} a second"),
        _ => format!("{:.1} an hour", per_second * 3600.0),
    }
}

fn count(many: f64) -> String {
    match many {
        1e6.. => format!("{:.1} million", many / 1e6),
        1e3.. => format!("{:.0} thousand", many / 1e3),
        _ => format!("{many:.0}"),
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        1e9.. => format!("{:.1} GB", bytes / 1e9),
        1e6.. => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.0} KB", bytes / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoadRequest, load};

    fn told(tables: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, format!("[gateway]\nid = \"hall-3\"\n{tables}")).unwrap();
        let root = folder.path().to_owned();
        text(&load(&LoadRequest { root, config: Some(file), credentials_dir: None, kept_id: None }).unwrap().config)
    }

    #[test]
    fn a_line_its_readings_and_what_they_cost_are_foretold() {
        let device = "[modbus.meter]\nline = \"tcp://127.0.0.1:502\"\nunit_id = 1\npoll = \"1s\"\n[modbus.meter.point]\n\
             a = { address = \"holding:0\", type = \"u16\" }\n\
             b = { address = \"holding:1\", type = \"u16\", report = { deadband = 1, heartbeat = \"60s\" } }\n";
        let uplink = "[uplink.cloud]\nurl = \"mqtt://h\"\n";
        let text = told(&format!("{device}{uplink}"));
        for line in [
            "line      tcp://127.0.0.1:502: 1 device, 1 requests, busy 1 % of the time\n",
            "readings  2.0 a second at most, 1.0 a second where nothing changes; 5.2 million a month\n",
            "uplink    about 1.1 GB a month as single JSON messages, for each that takes all of them\n",
            "queue     holds an outage of about 31.1 days at that rate\n",
            "flash     about 796.3 MB written a day at most\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(told(&format!("{device}{uplink}[queue]\nflash = \"spare\"\n")).contains("flash     hardly written"));
        let kept = told(&format!("{device}{uplink}[queue]\nkeep_delivered = \"2 days\"\nmax_bytes = \"16 TiB\"\n"));
        assert!(kept.contains("kept      delivered readings of about 2.0 days, "), "{kept}");
        assert!(kept.contains("flash     about 929.0 MB written a day at most"), "{kept}");
        assert!(!told(device).contains("uplink"));
        let board = told("[board]\npoll = \"8s\"\n[board.point]\nload = {}\ntemperature = {}\n");
        assert!(board.starts_with("readings  0.2 a second at most, 12.0 an hour where nothing changes"), "{board}");

        let aws = "[uplink.aws]\nprofile = \"aws-iot\"\nurl = \"mqtts://h\"\nauthorizer = { name = \"gate\" }\n\
                   [[uplink.aws.forward]]\nfilter = \"field/#\"\ntopic = \"readings\"\n";
        let said = "          AWS IoT Core bills each of them by 5 KiB: 5.2 million a month by aws; with payload = \"json-batch\" and one \
                    topic for all, 2.6 million\n";
        let text = told(&format!("{device}{aws}"));
        assert!(text.contains(said), "{text}");
        // Where they travel together, or where nobody bills by size, there is nothing to say.
        for other in [format!("{device}{aws}payload = \"json-batch\"\n"), format!("{device}{uplink}")] {
            assert!(!told(&other).contains("bills"), "{}", told(&other));
        }
        assert_eq!(told(uplink), "", "of what local clients do nothing is known");
    }
}
