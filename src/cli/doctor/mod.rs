//! `tidegate doctor`: the way to the cloud step by step, and what is wrong with it in words that say what to change.
//!
//! It goes the uplink's own way with the uplink's own code: same files, same proxy, same client id, and the session that
//! the cloud keeps is left as it was. Where the running gateway is connected it goes no further than TLS, because a cloud
//! throws the first out when a second comes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use self::report::{Finding, Report};
use super::{Exit, block_on};
use crate::clock::{Clock, ClockSource};
use crate::config::{Config, UplinkConfig};
use crate::control::{self, Request};
use crate::uplink::{provision, registration};

mod board;
mod certificates;
mod devices;
mod disk;
mod listeners;
mod report;
mod session;
mod way;

/// `tidegate doctor`
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArguments {
    /// Configuration file, instead of /etc/tidegate/tidegate.toml
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only this uplink
    #[arg(long, value_name = "NAME")]
    uplink: Option<String>,
}

pub(super) fn main(arguments: &DoctorArguments) -> Exit {
    let loaded = match super::load(arguments.config.clone()) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let config = loaded.config;
    if let Some(wanted) = &arguments.uplink
        && !config.uplinks.contains_key(wanted.as_str())
    {
        let names: Vec<&str> = config.uplinks.keys().map(AsRef::as_ref).collect();
        eprintln!("tidegate: there is no uplink {wanted:?}; there are: {}", names.join(", "));
        return Exit::Usage;
    }
    block_on(async {
        let mut report = Report::default();
        examine(&config, arguments.uplink.as_deref(), &mut report).await;
        report.end()
    })
}

async fn examine(config: &Config, wanted: Option<&str>, report: &mut Report) {
    let gateway = &config.gateway;
    // As the gateway does, but for what was written down: the doctor writes nothing.
    let mut clock = Clock::new(gateway.clock);
    if let Some(mark) = &gateway.clock_mark {
        clock = clock.marked_by(mark);
    }
    report.title(&format!("gateway {}", gateway.id));
    let is_clock_good = report.note(board::clock(&clock, gateway.clock));
    for finding in disk::examine(&gateway.state_dir).await {
        report.note(finding);
    }
    let running = asked(&gateway.state_dir, Request::Status).await;
    // About one uplink alone: nothing is said of the rest.
    if wanted.is_none() {
        if running.is_none() {
            for finding in listeners::examine(&config.broker) {
                report.note(finding);
            }
        }
        let points = asked(&gateway.state_dir, Request::Points).await.unwrap_or_default();
        let known = running.as_ref().map(|status| devices::Known { status, points: &points });
        devices::examine(config, known.as_ref(), report).await;
    }
    if config.uplinks.is_empty() {
        let help = "write [uplink.cloud] with a `url`";
        report.note(Finding::unsure("uplink", "there is none: nothing goes to a cloud").help(help));
    }
    for (name, uplink) in config.uplinks.iter().filter(|(name, _)| wanted.is_none_or(|wanted| wanted == name.as_ref()))
    {
        let is_connected = running.as_ref().is_some_and(|running| is_connected(running, name));
        let own = provision::provisioned(uplink).or_else(|| registration::assigned(uplink));
        let is_claim = uplink.provision.is_some() && own.is_none();
        let is_unassigned = uplink.dps.is_some() && own.is_none();
        let used = own.or_else(|| provision::claiming(uplink));
        let uplink = used.as_ref().unwrap_or(uplink);
        let visit = Visit { name, uplink, clock: &clock, is_clock_good, is_connected, is_claim, is_unassigned };
        visit.examine(report).await;
    }
}

/// What the running gateway says of itself; `None` = none runs.
async fn asked(state_dir: &Path, request: Request) -> Option<Value> {
    let answer = control::ask(state_dir, request).await.ok()?;
    serde_json::from_str(&answer).ok()
}

fn is_connected(status: &Value, uplink: &str) -> bool {
    let state = status.get("uplinks").and_then(|uplinks| uplinks.get(uplink)).and_then(|uplink| uplink.get("state"));
    state.and_then(Value::as_str) == Some("connected")
}

/// One uplink.
struct Visit<'c> {
    name: &'c str,
    uplink: &'c UplinkConfig,
    clock: &'c Clock,
    is_clock_good: bool,
    /// The running gateway is at this cloud now.
    is_connected: bool,
    /// The board has no certificate of its own yet, and shows that of its lot.
    is_claim: bool,
    /// The gateway has no hub yet: the address is that of the service that gives it one.
    is_unassigned: bool,
}

impl Visit<'_> {
    async fn examine(&self, report: &mut Report) {
        report.title(&format!("uplink {}, profile {}", self.name, self.uplink.profile.name));
        for finding in certificates::own(self.uplink, self.clock.now()) {
            report.note(finding);
        }
        for endpoint in &self.uplink.endpoints {
            let scheme = match (endpoint.path.is_some(), endpoint.tls) {
                (false, false) => "mqtt",
                (false, true) => "mqtts",
                (true, false) => "ws",
                (true, true) => "wss",
            };
            let scheme = match (&self.uplink.http, endpoint.tls) {
                (Some(_), true) => "https",
                (Some(_), false) => "http",
                (None, _) => scheme,
            };
            let path = endpoint.path.as_deref().unwrap_or_default();
            report.title(&format!("{}: {scheme}://{}:{}{path}", self.name, endpoint.host, endpoint.port));
            if self.uplink.http.is_some() {
                // Any request would be a message, or say nothing about the way of one.
                if way::go(self, &endpoint.bare(), report).await.is_some() {
                    let what = "nothing is posted on trial: `tidegate status` says what the server answers to messages";
                    report.note(Finding::good("http", what));
                }
                continue;
            }
            let Some(stream) = way::go(self, endpoint, report).await else { continue };
            if self.is_connected {
                let what = "the running gateway is connected with this client id: nothing further is tried beside it";
                report.note(Finding::good("session", what));
                continue;
            }
            if self.is_claim {
                let what = "the board has no certificate of its own yet, and TLS takes the claim of its lot";
                let help = "run the gateway: it gets one; `tidegate status` says what is in the way";
                report.note(Finding::unsure("identity", what).help(help));
                continue;
            }
            if self.is_unassigned {
                session::register(self, stream, report).await;
                continue;
            }
            session::examine(self, endpoint, stream, report).await;
        }
    }
}

/// Whether the owner has said to believe the clock, whatever it shows.
fn is_trusted(source: ClockSource) -> bool {
    source == ClockSource::Trusted
}
