//! Tidegate: firmware for IoT gateways. An acknowledged message is never lost.
//!
//! ```text
//!  Modbus RTU/TCP ─┐                                   ┌─► local subscribers (dashboards, PLCs, scripts)
//!  serial lines ───┤                                   │
//!                  ▼                                   │
//!               field ──► intake ──► queue ──► uplink ──► cloud broker(s)
//!                           ▲   │   (SQLite)     │
//!  local MQTT clients ─► broker │                │ commands
//!                           ▲   └──► router ─────┘
//!                           └────── (rumqttd) ◄──┘
//! ```
//!
//! The rooms stand in the order of the flow; one never imports what stands below it (`tests/architecture.rs`).

pub mod message;

pub mod clock;

pub mod config;

pub mod health;

pub mod payload;

pub mod mqtt;

pub mod transport;

pub mod queue;

pub mod router;

pub mod intake;

pub mod field;

pub mod broker;

pub mod uplink;
pub mod web;

pub mod control;

pub mod service;

pub mod supervise;

pub mod gateway;

pub mod cli;
