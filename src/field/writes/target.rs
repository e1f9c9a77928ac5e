//! What a `/set` topic stands for, and what a request for it makes a line do. Pure.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;

use super::super::Line;
use super::super::device::{DeviceSpec, point_topic};
use super::super::modbus::UnitSpec;
use super::super::modbus::encode::{self, Encoded, Unwritable};
use super::super::serial::{PortSpec, command};
use super::request::Kind;
use super::set_topic;
use crate::config::{ModbusPoint, SerialCommand};
use crate::health::DeviceHealth;
use crate::message::{Topic, Value};

/// What a line is to do, ready for the wire.
#[derive(Debug, Clone)]
pub(in crate::field) enum Act {
    /// A point of a Modbus unit is to hold this.
    Point {
        /// Which of the unit's.
        number: usize,
        /// What is sent, and what is read back.
        encoded: Encoded,
    },
    /// A serial device is to hear this.
    Command {
        /// Which of the device's.
        number: usize,
        /// What is sent.
        bytes: Vec<u8>,
        /// What was asked for, where the command has a value.
        value: Option<Value>,
    },
}

impl Act {
    /// What the device is to hold, as it is read back.
    pub(super) fn value(&self) -> Option<&Value> {
        match self {
            Act::Point { encoded, .. } => Some(&encoded.value),
            Act::Command { value, .. } => value.as_ref(),
        }
    }
}

/// What every request for a target is held to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub per_minute: NonZeroU16,
    pub expiry: Duration,
    /// To do it twice is no different.
    pub is_idempotent: bool,
}

/// Where the clerk finds what is written.
#[derive(Debug)]
pub(super) struct Target {
    /// The line's number; nothing looks at that of a target that may not be written.
    pub line: usize,
    pub unit: usize,
    pub device: Arc<str>,
    pub name: Arc<str>,
    pub health: Arc<DeviceHealth>,
    /// `None`: it may not be written.
    goal: Option<Goal>,
}

#[derive(Debug)]
enum Goal {
    Point { number: usize, point: Box<ModbusPoint> },
    Command { number: usize, command: Box<SerialCommand>, decimal: u8 },
}

impl Target {
    /// `None`: it may not be written.
    pub fn bounds(&self) -> Option<Bounds> {
        match self.goal.as_ref()? {
            Goal::Point { point, .. } => point.write.map(|write| Bounds {
                per_minute: write.per_minute,
                expiry: write.expiry,
                is_idempotent: write.is_idempotent,
            }),
            Goal::Command { command, .. } => Some(Bounds {
                per_minute: command.per_minute,
                expiry: command.expiry,
                is_idempotent: command.is_idempotent,
            }),
        }
    }

    /// What it is called in an answer.
    pub fn kind(&self) -> Kind {
        match self.goal {
            Some(Goal::Command { .. }) => Kind::Command,
            Some(Goal::Point { .. }) | None => Kind::Point,
        }
    }

    /// What a request makes the line do.
    pub fn act(&self, value: Option<&Json>) -> Result<Act, Unwritable> {
        match &self.goal {
            Some(Goal::Point { number, point }) => {
                let none = || Unwritable { kind: "request", reason: "the request has no value".to_owned() };
                Ok(Act::Point { number: *number, encoded: encode::encode(point, value.ok_or_else(none)?)? })
            }
            Some(Goal::Command { number, command, decimal }) => {
                let (bytes, value) = command::bytes(command, *decimal, value)?;
                Ok(Act::Command { number: *number, bytes, value })
            }
            None => Err(self.not_writable()),
        }
    }

    pub fn not_writable(&self) -> Unwritable {
        let reason = format!("`{}` may not be written: it does not say `write`", self.name);
        Unwritable { kind: "not-writable", reason }
    }
}

/// Everything that is asked for, by topic: also what may not be written, so that it is answered.
#[derive(Debug, Default)]
pub(super) struct Targets(HashMap<Topic, Target>);

impl Targets {
    pub fn get(&self, topic: &Topic) -> Option<&Target> {
        self.0.get(topic)
    }

    /// Adds what is on a line.
    pub fn add_line(&mut self, number: usize, line: &Line) {
        match line {
            Line::Modbus(line) => {
                for (unit, spec) in line.units.iter().enumerate() {
                    self.add_unit(number, unit, spec);
                }
            }
            Line::Serial(port) => {
                self.add_read_only(&port.device);
                self.add_commands(number, port);
            }
            Line::Board(board) => self.add_read_only(&board.device),
        }
    }

    fn add_commands(&mut self, line: usize, port: &PortSpec) {
        for (number, command) in port.config.commands.iter().enumerate() {
            let topic = point_topic(&port.config.topic, &port.device.name, &command.name).ok();
            let Some(topic) = topic.and_then(|topic| set_topic(&topic)) else { continue };
            let decimal = port.config.decimal;
            let goal = Some(Goal::Command { number, command: Box::new(command.clone()), decimal });
            let device = port.device.name.clone();
            let health = port.device.health.clone();
            self.0.insert(topic, Target { line, unit: 0, device, name: command.name.clone(), health, goal });
        }
    }

    /// A device whose points are never written, but answered for.
    fn add_read_only(&mut self, device: &DeviceSpec) {
        for told in &device.points {
            let Some(topic) = set_topic(&told.topic) else { continue };
            self.0.entry(topic).or_insert_with(|| Target {
                line: usize::MAX,
                unit: 0,
                device: device.name.clone(),
                name: told.name.clone(),
                health: device.health.clone(),
                goal: None,
            });
        }
    }

    fn add_unit(&mut self, line: usize, unit: usize, spec: &UnitSpec) {
        let points = spec.device.points.iter().zip(&spec.config.points).enumerate();
        for (number, (told, point)) in points {
            let Some(topic) = set_topic(&told.topic) else { continue };
            let goal = point.write.is_some().then(|| Goal::Point { number, point: Box::new(point.clone()) });
            let device = spec.device.name.clone();
            let health = spec.device.health.clone();
            let target = Target { line, unit, device, name: point.name.clone(), health, goal };
            // Two that share a topic: `check` lets one of them be writable at most.
            if self.get(&topic).is_none_or(|other| other.goal.is_none()) {
                self.0.insert(topic, target);
            }
        }
    }
}
