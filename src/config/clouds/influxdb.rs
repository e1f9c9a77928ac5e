//! InfluxDB, which is reached by HTTP: what matters of it is in `uplink/http/`, and nothing of a broker applies.

use std::time::Duration;

use super::{GENERIC, Profile};
use crate::config::Reconnect;

/// `profile = "influxdb"`
pub static INFLUXDB: Profile = Profile {
    name: "influxdb",
    title: "InfluxDB",
    reconnect: Reconnect { first: Duration::from_secs(1), max: Duration::from_secs(60) },
    ..GENERIC
};
