//! `tidegate import mosquitto`: one configuration made of another.

use std::path::Path;

use super::acl::People;
use super::bridge::Bridge;
use super::conf::{Line, Note, Notes, beside, read_all};
use super::listeners::{Bind, Listener, not_carried};

/// What came of it.
#[derive(Debug)]
pub(super) struct Imported {
    /// The configuration, its notes as comments above it.
    pub text: String,
    pub notes: Vec<Note>,
}

/// Mosquitto's configuration by its parts.
#[derive(Debug, Default)]
struct Parts {
    general: Vec<Line>,
    listeners: Vec<Listener>,
    bridges: Vec<Bridge>,
}

/// Reads Mosquitto's configuration and all that it names.
///
/// # Errors
/// When it cannot be read, in words for a person.
pub(super) fn import(file: &Path, secrets: Option<&Path>) -> Result<Imported, String> {
    let mut notes = Notes::default();
    let parts = sort(read_all(file, &mut notes)?);
    let mut people = People::default();
    let of_listeners = parts.listeners.iter().flat_map(|listener| &listener.options);
    for line in parts.general.iter().chain(of_listeners) {
        let path = beside(&line.place.file, &line.value);
        match line.key.as_str() {
            "password_file" => people.read_passwords(&path, line, &mut notes),
            "acl_file" => people.read_acl(&path, line, &mut notes),
            _ => {}
        }
    }
    people.by_certificate = parts.listeners.iter().any(|listener| {
        let asks = listener.is_true("require_certificate") && listener.option("cafile").is_some();
        asks && listener.is_true("use_identity_as_username")
    });

    let general = general(&parts, &mut notes);
    let has_anonymous = anonymous(&parts, &mut notes);
    let users = people.tables(has_anonymous, &mut notes);
    let mut tables = String::new();
    for listener in &parts.listeners {
        for line in &listener.options {
            if let Some(why) = not_carried(&line.key) {
                notes.add(line, why);
            }
        }
        tables.push_str(&listener.table(people.has_users(), &mut notes).unwrap_or_default());
    }
    tables.push_str(&general);
    tables.push_str(&users);
    for bridge in &parts.bridges {
        tables.push_str(&bridge.tables(secrets, &mut notes).unwrap_or_default());
    }

    notes.0.sort_by(|one, other| (&one.place.file, one.place.line).cmp(&(&other.place.file, other.place.line)));
    let mut text = format!("# Made of {} by `tidegate import mosquitto`.\n", shown(&file.display().to_string()));
    if !notes.0.is_empty() {
        text.push_str("# Not carried, or not as it was:\n");
        notes.0.iter().for_each(|note| text.push_str(&format!("#   {}\n", shown(&note.to_string()))));
    }
    text.push('\n');
    text.push_str(tables.trim_end());
    text.push('\n');
    Ok(Imported { text, notes: notes.0 })
}

/// A comment must not end its line.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn sort(lines: Vec<Line>) -> Parts {
    let mut parts = Parts::default();
    let mut default = Listener::default();
    // Options of listeners stand behind the line that opens it; before the first they are those of the default one, or of all.
    for line in lines {
        let opened = !parts.listeners.is_empty();
        match line.key.as_str() {
            "listener" => {
                let words = line.words();
                let port = words.first().copied().unwrap_or_default().to_owned();
                let address = words.get(1).map(|address| (*address).to_owned());
                parts.listeners.push(Listener { line: Some(line), port, address, options: Vec::new() });
            }
            "connection" => parts.bridges.push(Bridge { line, options: Vec::new() }),
            "port" => (default.port, default.line) = (line.value.clone(), Some(line)),
            "bind_address" => default.address = Some(line.value),
            key if is_of_bridge(key, !parts.bridges.is_empty()) => match parts.bridges.last_mut() {
                Some(bridge) => bridge.options.push(line),
                None => parts.general.push(line),
            },
            key if is_of_listener(key) => match parts.listeners.last_mut() {
                Some(listener) if opened => listener.options.push(line),
                _ => default.options.push(line),
            },
            _ => parts.general.push(line),
        }
    }
    let has_default = !default.port.is_empty()
        || default.address.is_some()
        || default.options.iter().any(|line| line.key == "certfile");
    if has_default {
        if default.port.is_empty() {
            default.port = "1883".to_owned();
        }
        parts.listeners.insert(0, default);
    } else {
        // `allow_anonymous` and the files of users above the first listener hold for all.
        parts.general.extend(default.options);
    }
    parts
}

fn is_of_listener(key: &str) -> bool {
    matches!(
        key,
        "protocol"
            | "cafile"
            | "capath"
            | "certfile"
            | "keyfile"
            | "require_certificate"
            | "use_identity_as_username"
            | "use_subject_as_username"
            | "use_username_as_clientid"
            | "crlfile"
            | "tls_version"
            | "ciphers"
            | "ciphers_tls1.3"
            | "dhparamfile"
            | "tls_engine"
            | "tls_keyform"
            | "psk_hint"
            | "psk_file"
            | "max_connections"
            | "mount_point"
            | "http_dir"
            | "socket_domain"
            | "bind_interface"
            | "allow_anonymous"
            | "password_file"
            | "acl_file"
    )
}

fn is_of_bridge(key: &str, is_open: bool) -> bool {
    key.starts_with("bridge_")
        || key.starts_with("remote_")
        || key.starts_with("local_")
        || key.starts_with("notification")
        || (is_open
            && matches!(
                key,
                "address"
                    | "addresses"
                    | "topic"
                    | "username"
                    | "password"
                    | "clientid"
                    | "cleansession"
                    | "keepalive_interval"
                    | "restart_timeout"
                    | "try_private"
                    | "start_type"
                    | "idle_timeout"
                    | "threshold"
                    | "round_robin"
            ))
}

/// Whether who gives no name may come in on this machine.
fn anonymous(parts: &Parts, notes: &mut Notes) -> bool {
    let is_said = |line: &&Line| line.key == "allow_anonymous";
    let general = parts.general.iter().rev().find(is_said);
    let (mut allowed, mut refused) = (Vec::new(), false);
    for listener in &parts.listeners {
        let line = listener.options.iter().rev().find(is_said).or(general);
        let is_local = listener.bind().as_ref().is_ok_and(Bind::is_local);
        match line.filter(|line| line.is_true()) {
            Some(line) if is_local => allowed.push(line),
            Some(line) => {
                let place = listener.line.as_ref().map(|line| format!(" of {}", line.place)).unwrap_or_default();
                let why = format!("from other machines everybody needs a name: not at the listener{place}");
                notes.add(line, why);
            }
            // Without a listener of its own Mosquitto listens on this machine only, and lets everybody in.
            None => refused |= is_local,
        }
    }
    if parts.listeners.is_empty() {
        return general.is_none_or(Line::is_true);
    }
    if refused && let Some(line) = allowed.first() {
        notes.add(
            line,
            "another listener on this machine lets nobody in without a name, and here that is the same for all: \
                         write [broker.anonymous] if you want it",
        );
        return false;
    }
    !allowed.is_empty()
}

/// Lines that belong to no listener and no bridge.
fn general(parts: &Parts, notes: &mut Notes) -> String {
    let (mut limits, mut session, mut broker) = (String::new(), String::new(), String::new());
    for line in &parts.general {
        let number = line.value.parse::<u64>().ok().filter(|number| *number > 0);
        match (line.key.as_str(), number) {
            ("allow_anonymous" | "password_file" | "acl_file", _) => {}
            ("max_connections", Some(count @ 1..=100_000)) => limits.push_str(&format!("connections = {count}\n")),
            ("max_inflight_messages", Some(count @ 1..=65_535)) => limits.push_str(&format!("in_flight = {count}\n")),
            ("max_packet_size" | "message_size_limit", Some(bytes)) if (1024..=16 << 20).contains(&bytes) => {
                limits.push_str(&format!("packet_bytes = \"{bytes} B\"\n"));
            }
            ("max_queued_bytes", Some(bytes)) if (64 << 10..1 << 34).contains(&bytes) => {
                session.push_str(&format!("max_bytes = \"{bytes} B\"\n"));
            }
            ("persistent_client_expiration", _) => match expiry(&line.value) {
                Some(expiry) => session.push_str(&format!("expiry = \"{expiry}\"\n")),
                None => notes.add(line, "this is no time"),
            },
            ("sys_interval", _) if line.value.parse::<u32>().is_ok_and(|seconds| seconds <= 86_400) => {
                broker.push_str(&format!("sys_interval = \"{}s\"\n", line.value));
            }
            (key, _) => notes.add(line, reason(key)),
        }
    }
    let table = |title: &str, lines: String| if lines.is_empty() { lines } else { format!("[{title}]\n{lines}\n") };
    table("broker", broker) + &table("broker.limits", limits) + &table("broker.session", session)
}

fn expiry(value: &str) -> Option<String> {
    let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let number: u32 = number.parse().ok().filter(|number| *number > 0)?;
    Some(match unit {
        "h" => format!("{number}h"),
        "d" => format!("{number} days"),
        "w" => format!("{number} weeks"),
        "m" => format!("{} days", number.checked_mul(30)?),
        "y" if number == 1 => "365 days".to_owned(),
        _ => return None,
    })
}

fn reason(key: &str) -> &'static str {
    match key {
        "persistence" | "persistence_location" | "persistence_file" | "autosave_interval" | "autosave_on_changes" => {
            "needs nothing here: sessions and retained messages are always kept, in [gateway] state_dir"
        }
        "pid_file" | "user" => "needs nothing here: the service manager does it",
        "per_listener_settings" => "users and what they may do are the same at each listener",
        "max_queued_messages" => "what waits for a client is bounded in bytes: [broker.session] max_bytes",
        "retain_available" | "set_tcp_nodelay" | "allow_zero_length_clientid" | "memory_limit" => {
            "needs nothing here, or cannot be changed"
        }
        "plugin" | "auth_plugin" | "global_plugin" => "plug-ins are not loaded",
        key if key.starts_with("log_") || key == "connection_messages" => {
            "needs nothing here: the log goes to the journal, or to standard error"
        }
        key if key.starts_with("plugin_opt_") || key.starts_with("auth_opt_") => "plug-ins are not loaded",
        _ => "there is no such setting here",
    }
}
