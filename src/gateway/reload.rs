//! What a new configuration changes, and which of it can come into force while the gateway runs. Pure.
//!
//! Forward rules can, and users with what they may do: they are asked for each message. So can the TLS files of a listener:
//! they are asked for each connection. All else is built at the start. What is not said to be changed
//! is the same to the last key: whole sections are compared as they print themselves, so that no key is forgotten here.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use crate::config::{AccessConfig, BrokerConfig, Config, UplinkConfig};

/// The way from one configuration to another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Uplinks whose forward rules are others.
    pub rules: Vec<Arc<str>>,
    /// Users, or what they may do, are others.
    pub access: bool,
    /// Listeners whose TLS files are to be read again, whether they are others or the same.
    pub certificates: Vec<Arc<str>>,
    /// Sections that wait for a restart, as they are written in the file.
    pub restart: Vec<String>,
}

impl Difference {
    pub fn between(old: &Config, new: &Config) -> Difference {
        let access = old.broker.access != new.broker.access;
        let mut difference = Difference { access, ..Difference::default() };
        let restart = &mut difference.restart;
        note(restart, "gateway", &old.gateway, &new.gateway);
        note(restart, "queue", &old.queue, &new.queue);
        note(restart, "web", &old.web, &new.web);
        let mut broker = old.broker.clone();
        for (name, listener) in &mut broker.listeners {
            let files = new.broker.listeners.get(name).and_then(|listener| listener.tls.as_ref());
            if let (Some(tls), Some(files)) = (&mut listener.tls, files) {
                tls.clone_from(files);
                difference.certificates.push(name.clone());
            }
        }
        note(restart, "broker", &bound(&broker), &bound(&new.broker));
        let names = |one: Vec<&Arc<str>>| one.into_iter().cloned().collect::<BTreeSet<_>>();
        for name in names(old.lines.keys().chain(new.lines.keys()).collect()) {
            // A line that is written in place is named by its url, which its device names.
            if !name.contains("://") {
                note(restart, &format!("line.{name}"), &old.lines.get(&name), &new.lines.get(&name));
            }
        }
        for name in names(old.modbus.keys().chain(new.modbus.keys()).collect()) {
            note(restart, &format!("modbus.{name}"), &old.modbus.get(&name), &new.modbus.get(&name));
        }
        for name in names(old.serial.keys().chain(new.serial.keys()).collect()) {
            note(restart, &format!("serial.{name}"), &old.serial.get(&name), &new.serial.get(&name));
        }
        for name in names(old.uplinks.keys().chain(new.uplinks.keys()).collect()) {
            let (before, after) = (old.uplinks.get(&name), new.uplinks.get(&name));
            note(&mut difference.restart, &format!("uplink.{name}"), &before.map(built), &after.map(built));
            if let (Some(before), Some(after)) = (before, after)
                && print(&before.forward) != print(&after.forward)
            {
                difference.rules.push(name);
            }
        }
        difference
    }
}

/// What of the broker is built at the start: all but who may do what.
fn bound(broker: &BrokerConfig) -> BrokerConfig {
    BrokerConfig { access: AccessConfig::default(), ..broker.clone() }
}

/// What of an uplink is built at the start.
fn built(uplink: &UplinkConfig) -> UplinkConfig {
    UplinkConfig { forward: Vec::new(), ..uplink.clone() }
}

fn note<T: Debug>(restart: &mut Vec<String>, section: &str, old: &T, new: &T) {
    if print(old) != print(new) {
        restart.push(section.to_owned());
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
    fn forward_rules_come_into_force_at_once_and_the_rest_is_named_as_it_is_written() {
        let uplink = "[uplink.cloud]\nurl = \"mqtt://127.0.0.1\"\n";
        let rule = "[[uplink.cloud.forward]]\nfilter = \"a/#\"\n";
        assert_eq!(changes(uplink, uplink), Difference::default());
        let rules = changes(uplink, &format!("{uplink}{rule}"));
        assert_eq!((rules.rules, rules.restart), (vec![Arc::from("cloud")], Vec::new()));
        let both = changes(uplink, &format!("{uplink}keep_alive = \"7s\"\n{rule}[queue]\nmax_bytes = \"32 MiB\"\n"));
        assert_eq!((both.rules.len(), both.restart), (1, vec!["queue".to_owned(), "uplink.cloud".to_owned()]));
        let device = "[modbus.meter]\nline = \"tcp://127.0.0.1:5020\"\nunit_id = 1\n\
                      [modbus.meter.point]\nlevel = { address = \"holding:0\", type = \"u16\" }\n";
        assert_eq!(changes(uplink, &format!("{uplink}{device}")).restart, ["modbus.meter"]);
        assert_eq!(changes(uplink, "").restart, ["uplink.cloud"]);
    }

    #[test]
    fn users_and_what_they_may_do_come_into_force_at_once() {
        let user = |topic: &str| format!("[broker.user.plc7]\ncertificate = \"CN=plc7\"\npublish = [\"{topic}\"]\n");
        assert_eq!(changes(&user("a"), &user("a")), Difference::default());
        for (old, new) in [(String::new(), user("a")), (user("a"), user("b")), (user("a"), String::new())] {
            let changed = changes(&old, &new);
            assert!(changed.access && changed.restart.is_empty(), "{changed:?}");
        }
        let anonymous = changes(&user("a"), &format!("{}[broker.anonymous]\n", user("a")));
        assert!(anonymous.access && anonymous.restart.is_empty());
        assert_eq!(changes("", "[broker.session]\nexpiry = \"1 day\"\n").restart, ["broker"]);
    }

    #[test]
    fn certificates_are_read_again_each_time_and_what_else_a_listener_is_waits_for_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = dir.path().join(name);
            std::fs::write(&path, "x").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        let tls = |cert: &str| format!("tls = {{ cert = \"{}\", key = \"{}\" }}\n", file(cert), file("key"));
        let listener = |more: &str| format!("[broker.listener.plant]\nbind = \"127.0.0.1:8883\"\n{more}");
        for cert in ["old", "new"] {
            let difference = changes(&listener(&tls("old")), &listener(&tls(cert)));
            assert_eq!((difference.certificates, difference.restart), (vec![Arc::from("plant")], Vec::new()));
        }
        for (old, new) in [("", tls("old")), (&tls("old"), String::new())] {
            let difference = changes(&listener(old), &listener(&new));
            assert_eq!((difference.certificates, difference.restart), (Vec::new(), vec!["broker".to_owned()]));
        }
        let difference = changes(&listener(&tls("old")), &listener(&(tls("old") + "transport = \"websocket\"")));
        assert_eq!(difference.restart, ["broker"]);
    }
}
