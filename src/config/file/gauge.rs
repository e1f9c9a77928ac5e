//! `[board]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::super::tree::{Spot, Tree};
use super::super::units::Wrong;
use super::super::walk::{self, Reader, Walk};
use super::super::{BOARD, BoardConfig, BoardPoint, Gauge, PointTopic, keys};
use super::modbus::read_report;
use super::{BoardDraft, Words, point_topic, qos};

pub(super) fn read(walk: &mut Walk, tree: &Tree, spot: Spot, words: &Words) -> BoardDraft {
    let reader = Reader::open(walk, tree, &keys::BOARD, spot);
    let poll = reader.duration(walk, "poll", Duration::from_secs(1), Duration::from_secs(7 * 86_400));
    let topic = point_topic(walk, &reader, words);
    let level = qos(walk, &reader);
    let mut points = Some(Vec::new());
    let mut point_names = Vec::new();
    if reader.has("point") {
        match reader.table(walk, "point") {
            None => points = None,
            Some((tree, table_spot)) => {
                for (name, tree, spot) in walk::named(walk, "point", tree) {
                    point_names.push((Arc::from(name), spot));
                    match (point(walk, name, tree, spot), &mut points) {
                        (Some(point), Some(points)) => points.push(point),
                        _ => points = None,
                    }
                }
                if point_names.is_empty() && tree.keys().next().is_none() {
                    let help = "leave the table out: then everything that this board tells is a point";
                    walk.findings.problem(table_spot, "this board has no points", Some(help.to_owned()));
                }
            }
        }
    } else {
        point_names.extend(Gauge::ALL.iter().map(|(name, _)| (Arc::from(*name), spot)));
    }
    let config = (|| {
        Some(BoardConfig {
            root: PathBuf::from("/"),
            state_dir: PathBuf::new(),
            poll: poll?.value,
            topic: PointTopic(topic.as_ref()?.value.clone()),
            qos: level?.value,
            points: points?,
        })
    })();
    BoardDraft { name: Arc::from(BOARD), spot, topic, point_names, config }
}

fn point(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot) -> Option<BoardPoint> {
    let reader = Reader::open(walk, tree, &keys::BOARD_POINT, spot);
    let gauge = match reader.has("reads") {
        true => reader.choice(walk, "reads", &Gauge::ALL, &[]).map(|at| at.value),
        false => by_name(walk, name, spot),
    };
    let sensor = reader.text(walk, "sensor");
    if let Some(at) = sensor.as_ref().filter(|at| at.value.is_empty() || at.value.chars().any(char::is_control)) {
        walk.wrong(at.spot, "sensor", Wrong::new("this is not the name of a sensor"));
        return None;
    }
    if reader.has("sensor") && gauge.is_some_and(|gauge| gauge != Gauge::Temperature) {
        walk.findings.problem(reader.spot_of("sensor"), "`sensor` is for temperatures", None);
    }
    let report = match reader.has("report") {
        true => {
            let (tree, spot) = reader.table(walk, "report")?;
            Some(read_report(walk, tree, spot)?)
        }
        false => None,
    };
    if reader.has("sensor") && sensor.is_none() {
        return None;
    }
    let gauge = gauge?;
    let sensor = sensor.map(|at| at.value);
    Some(BoardPoint { name: Arc::from(name), gauge, sensor, report: report.unwrap_or_else(|| gauge.report()) })
}

/// A point is what its name says.
fn by_name(walk: &mut Walk, name: &str, spot: Spot) -> Option<Gauge> {
    let found = Gauge::ALL.iter().find(|(known, _)| *known == name).map(|(_, gauge)| *gauge);
    if found.is_none() && walk::name_fault(name).is_ok() {
        let help = match walk::nearest(name, Gauge::ALL.iter().map(|(known, _)| *known)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                let names: Vec<&str> = Gauge::ALL.iter().map(|(known, _)| *known).collect();
                format!("there are {}; a name of your own needs `reads`", names.join(", "))
            }
        };
        walk.findings.problem(spot, format!("a board has no `{name}`"), Some(help));
    }
    found
}
