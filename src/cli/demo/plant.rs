//! The plant of the demo: three units on one Modbus line, the middle one dead, a scale on a pty; and the gateway's
//! configuration for it, which is one that a person could have written.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use crate::field::simulate::{Bound, Place, SimulateError, modbus, serial};

/// The topic of the local publisher; a forward rule of the configuration wants it.
pub(super) const TOPIC: &str = "plant/press-3";

/// How often each device is read, in milliseconds.
pub(super) const POLL_MS: u32 = 500;

/// The living neighbours of the dead unit, on the same line.
pub(super) const NEIGHBOURS: [&str; 2] = ["meter-1", "meter-3"];

/// The unit that takes requests and never answers.
pub(super) const DEAD_UNIT: &str = "meter-2";

/// The simulated devices, bound and not yet running.
#[derive(Debug)]
pub(super) struct Plant {
    meters: modbus::Server,
    scale: serial::Server,
}

impl Plant {
    /// Puts the devices in their places.
    pub(super) async fn build() -> Result<Plant, SimulateError> {
        let anywhere = Place::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let mut settings = modbus::Settings::at(anywhere);
        settings.units = BTreeSet::from([1, 3]);
        settings.dead = BTreeSet::from([2]);
        let meters = modbus::Server::bind(settings).await?;
        let scale = serial::Server::bind(serial::Settings::at(Place::Pty)).await?;
        Ok(Plant { meters, scale })
    }

    /// The gateway's configuration.
    pub(super) fn configuration(&self, state_dir: &Path, broker: SocketAddr, cloud: SocketAddr) -> String {
        let state_dir = toml_text(&state_dir.display().to_string());
        let scale = toml_text(&self.scale.path().display().to_string());
        let meters = match self.meters.bound() {
            Bound::Tcp(address) => address.to_string(),
            Bound::Path(path) => path.display().to_string(),
        };
        let mut text = format!(
            r#"[gateway]
id = "demo"
state_dir = {state_dir}
clock = "trust"

[broker.listener.local]
bind = "{broker}"

[uplink.cloud]
url = "mqtt://{cloud}"
keep_alive = "3s"                       # short, so that a cut line is noticed soon
reconnect = {{ first = "200ms", max = "1s" }}
own_topic = ""
[[uplink.cloud.forward]]
filter = "plant/#"
qos = 2                                 # exactly once, also over kill -9
[[uplink.cloud.forward]]
filter = "field/#"
qos = 2

[line.meters]
url = "tcp://{meters}"
timeout = "300ms"

[model.meter]
poll = "{POLL_MS}ms"
[model.meter.point]
temperature = {{ address = "holding:2", type = "f32", unit = "°C" }}
energy = {{ address = "holding:4", type = "u32", unit = "Wh" }}

"#
        );
        for unit_id in 1..=3 {
            text.push_str(&format!(
                "[modbus.meter-{unit_id}]\nline = \"meters\"\nunit_id = {unit_id}\nmodel = \"meter\"\n\n"
            ));
        }
        text.push_str(&format!(
            r#"[serial.scale]
port = {scale}
baud = 9600
mode = "8N1"
ask = {{ send = "SI\r\n", every = "{POLL_MS}ms", timeout = "300ms" }}
frame = {{ delimiter = "\r\n" }}
parse = {{ regex = '^S (?<status>[SD])\s+(?<weight>-?\s*[0-9.]+) kg' }}
good = {{ status = ["S", "D"] }}
[serial.scale.point]
weight = {{ type = "f64", unit = "kg" }}
"#
        ));
        text
    }

    /// Lets the devices answer until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<(), SimulateError> {
        tokio::try_join!(self.meters.run(stop.clone()), self.scale.run(stop)).map(|_: ((), ())| ())
    }
}

/// `text` as a TOML string.
fn toml_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
