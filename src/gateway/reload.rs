//! What is different in a new configuration, and which of it has to wait for a restart. Pure.
//!
//! What is not said to be changed is the same to the last key: whole sections are compared as they print themselves, so that
//! no key is forgotten here. What can change while the gateway runs is named by its table; what is built at the start (the
//! store and its bounds, the sizes of the broker) by its key.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use crate::config::{BrokerConfig, Config, QueueConfig, UplinkConfig};

/// The way from one configuration to another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Uplinks of which only the forward rules are others: their sessions go on.
    pub rules: Vec<Arc<str>>,
    /// Uplinks that are new, gone, or others.
    pub uplinks: Vec<Arc<str>>,
    /// Users of the broker, or what they may do, are others.
    pub access: bool,
    /// Listeners that are new, gone, or others in more than their TLS files.
    pub listeners: Vec<Arc<str>>,
    /// Lines that are new, gone, or others.
    pub lines: Vec<String>,
    /// Devices that are new, gone, or others, by their tables.
    pub devices: Vec<String>,
    /// The status page is served elsewhere, to others, or no more.
    pub web: bool,
    /// What gives way, and what is too old, is another.
    pub bounds: Vec<&'static str>,
    /// What waits for a restart, as it is written in the file.
    pub restart: Vec<String>,
}

impl Difference {
    pub fn between(old: &Config, new: &Config) -> Difference {
        // A section or a key that is added is no key of these patterns: this file has to say what becomes of it.
        let Config { gateway: _, queue, broker, uplinks: _, lines: _, modbus: _, serial: _, board: _, web: _ } = new;
        let QueueConfig { bytes_max: _, age_max: _, keep: _, when_full: _, hold: _ } = queue;
        let BrokerConfig { listeners: _, sessions: _, sys_interval: _, access: _, limits: _ } = broker;
        let mut difference = Difference {
            access: old.broker.access != new.broker.access,
            web: web(old) != web(new),
            ..Difference::default()
        };
        let restart = &mut difference.restart;
        note(restart, "gateway", &old.gateway, &new.gateway);
        note(restart, "queue.max_bytes", &old.queue.bytes_max, &new.queue.bytes_max);
        note(restart, "queue.flash", &old.queue.hold, &new.queue.hold);
        note(restart, "broker.session", &old.broker.sessions, &new.broker.sessions);
        note(restart, "broker.limits", &old.broker.limits, &new.broker.limits);
        note(restart, "broker.sys_interval", &old.broker.sys_interval, &new.broker.sys_interval);
        let bounds = &mut difference.bounds;
        note(bounds, "queue.max_age", &old.queue.age_max, &new.queue.age_max);
        note(bounds, "queue.keep_delivered", &old.queue.keep, &new.queue.keep);
        note(bounds, "queue.when_full", &old.queue.when_full, &new.queue.when_full);
        for name in names(old.broker.listeners.keys().chain(new.broker.listeners.keys())) {
            let (before, after) = (old.broker.listeners.get(&name), new.broker.listeners.get(&name));
            let mut before = before.cloned();
            if let (Some(Some(tls)), Some(Some(files))) =
                (before.as_mut().map(|before| before.tls.as_mut()), after.map(|after| after.tls.as_ref()))
            {
                tls.clone_from(files);
            }
            if before.as_ref() != after {
                difference.listeners.push(name);
            }
        }
        for name in names(old.lines.keys().chain(new.lines.keys())) {
            // A line that is written in place is named by its url, which its device names.
            if !name.contains("://") {
                let (before, after) = (old.lines.get(&name), new.lines.get(&name));
                note(&mut difference.lines, format!("line.{name}"), &before, &after);
            }
        }
        let devices = &mut difference.devices;
        for name in names(old.modbus.keys().chain(new.modbus.keys())) {
            note(devices, format!("modbus.{name}"), &old.modbus.get(&name), &new.modbus.get(&name));
        }
        for name in names(old.serial.keys().chain(new.serial.keys())) {
            note(devices, format!("serial.{name}"), &old.serial.get(&name), &new.serial.get(&name));
        }
        note(devices, "board", &old.board, &new.board);
        for name in names(old.uplinks.keys().chain(new.uplinks.keys())) {
            let (before, after) = (old.uplinks.get(&name), new.uplinks.get(&name));
            if print(&before.map(built)) != print(&after.map(built)) {
                difference.uplinks.push(name);
            } else if let (Some(before), Some(after)) = (before, after)
                && print(&before.forward) != print(&after.forward)
            {
                difference.rules.push(name);
            }
        }
        difference
    }

    /// Whether any line or device is another.
    pub fn is_in_field(&self) -> bool {
        !self.lines.is_empty() || !self.devices.is_empty()
    }

    /// What is in force when all of it is done, as it is written in the file.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.bounds.iter().map(|name| (*name).to_owned()).collect();
        names.extend(self.listeners.iter().map(|name| format!("broker.listener.{name}")));
        names.extend(self.access.then(|| "broker.user".to_owned()));
        names.extend(self.uplinks.iter().map(|name| format!("uplink.{name}")));
        names.extend(self.rules.iter().map(|name| format!("uplink.{name}.forward")));
        names.extend(self.lines.iter().chain(&self.devices).cloned());
        names.extend(self.web.then(|| "web".to_owned()));
        names
    }
}

fn names<'n>(all: impl Iterator<Item = &'n Arc<str>>) -> BTreeSet<Arc<str>> {
    all.cloned().collect()
}

/// The page without the files of its certificate, which are read again anyway.
fn web(config: &Config) -> Option<crate::config::WebConfig> {
    let mut web = config.web.clone()?;
    if let Some(tls) = &mut web.tls {
        (tls.cert, tls.key) = Default::default();
    }
    Some(web)
}

/// What of an uplink is built when it starts.
fn built(uplink: &UplinkConfig) -> UplinkConfig {
    UplinkConfig { forward: Vec::new(), ..uplink.clone() }
}

fn note<T: Debug, N>(names: &mut Vec<N>, name: impl Into<N>, old: &T, new: &T) {
    if print(old) != print(new) {
        names.push(name.into());
    }
}

fn print(part: &impl Debug) -> String {
    format!("{part:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoadRequest, load};

    fn config(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tidegate.toml");
        std::fs::write(&path, format!("[gateway]\nid = \"g\"\n{text}")).unwrap();
        let root = dir.path().join("root");
        load(&LoadRequest { root, config: Some(path), credentials_dir: None, kept_id: None }).unwrap().config
    }

    fn changes(old: &str, new: &str) -> Difference {
        Difference::between(&config(old), &config(new))
    }

    #[test]
    fn what_is_different_is_named_as_it_is_written_and_nothing_else() {
        let uplink = "[uplink.cloud]\nurl = \"mqtt://127.0.0.1\"\n";
        let rule = "[[uplink.cloud.forward]]\nfilter = \"a/#\"\n";
        let device = "[modbus.meter]\nline = \"tcp://127.0.0.1:5020\"\nunit_id = 1\n\
                      [modbus.meter.point]\nlevel = { address = \"holding:0\", type = \"u16\" }\n";
        let all = format!("{uplink}{device}[web]\n");
        assert_eq!(changes(&all, &all), Difference::default());
        for (old, new, expected) in [
            (uplink, &*format!("{uplink}{rule}"), "uplink.cloud.forward"),
            (uplink, &format!("{uplink}keep_alive = \"7s\"\n{rule}"), "uplink.cloud"),
            (uplink, &format!("{uplink}{device}"), "modbus.meter"),
            (uplink, "", "uplink.cloud"),
            ("", "[queue]\nkeep_delivered = \"7 days\"\n", "queue.keep_delivered"),
            ("", "[queue]\nmax_age = \"7 days\"\nwhen_full = \"refuse\"\n", "queue.max_age queue.when_full"),
            ("", "[web]\n", "web"),
            ("[web]\n", "[web]\nbind = \"127.0.0.1:9081\"\n", "web"),
            ("", "[broker.listener.local]\nbind = \"127.0.0.1:1884\"\n", "broker.listener.local"),
        ] {
            let difference = changes(old, new);
            assert_eq!((difference.names().join(" "), difference.restart), (expected.to_owned(), Vec::new()));
        }
    }

    #[test]
    fn the_board_itself_is_a_device_like_others() {
        for (old, new) in [("", "[board]\n"), ("[board]\n", ""), ("[board]\n", "[board]\npoll = \"7s\"\n")] {
            let difference = changes(old, new);
            assert_eq!((difference.names(), difference.is_in_field()), (vec!["board".to_owned()], true));
        }
    }

    #[test]
    fn what_is_built_at_the_start_waits_for_a_restart() {
        for (new, expected) in [
            ("[queue]\nmax_bytes = \"32 MiB\"\n", "queue.max_bytes"),
            ("[queue]\nflash = \"spare\"\n", "queue.flash"),
            ("[broker.session]\nexpiry = \"1 day\"\n", "broker.session"),
            ("[broker.limits]\nconnections = 7\n", "broker.limits"),
            ("[broker]\nsys_interval = \"7s\"\n", "broker.sys_interval"),
        ] {
            let difference = changes("", new);
            assert_eq!((difference.restart.join(" "), difference.names()), (expected.to_owned(), Vec::new()));
        }
        let other = config("");
        let gateway = crate::config::GatewayConfig { state_dir: "/elsewhere".into(), ..other.gateway.clone() };
        let difference = Difference::between(&config(""), &Config { gateway, ..other });
        assert_eq!(difference.restart, ["gateway"]);
    }

    #[test]
    fn users_and_what_they_may_do_are_no_change_of_a_listener() {
        let user = |topic: &str| format!("[broker.user.plc7]\ncertificate = \"CN=plc7\"\npublish = [\"{topic}\"]\n");
        assert_eq!(changes(&user("a"), &user("a")), Difference::default());
        let anonymous = format!("{}[broker.anonymous]\n", user("a"));
        for (old, new) in
            [(String::new(), user("a")), (user("a"), user("b")), (user("a"), String::new()), (user("a"), anonymous)]
        {
            assert_eq!(changes(&old, &new).names(), ["broker.user"]);
        }
    }

    #[test]
    fn other_files_of_certificates_are_no_difference_and_tls_itself_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = dir.path().join(name);
            std::fs::write(&path, "x").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        let tls = |cert: &str| format!("tls = {{ cert = \"{}\", key = \"{}\" }}\n", file(cert), file("key"));
        for table in ["[broker.listener.plant]\nbind = \"127.0.0.1:8883\"\n", "[web]\n"] {
            let with = |more: &str| format!("{table}{more}");
            let name = if table.contains("web") { "web" } else { "broker.listener.plant" };
            assert_eq!(changes(&with(&tls("old")), &with(&tls("new"))), Difference::default());
            assert_eq!(changes(&with(""), &with(&tls("old"))).names(), [name]);
            assert_eq!(changes(&with(&tls("old")), &with("")).names(), [name]);
        }
        let listener = |more: &str| format!("[broker.listener.plant]\nbind = \"127.0.0.1:8883\"\n{}{more}", tls("old"));
        let difference = changes(&listener(""), &listener("transport = \"websocket\""));
        assert_eq!(difference.names(), ["broker.listener.plant"]);
    }
}
