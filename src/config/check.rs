//! The rules that join two keys. Pure: a draft in, problems and warnings out.
//!
//! A rule speaks only when all that it compares is there: what is missing or wrong by itself was noted before.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::LineKind;
use super::file::{DeviceDraft, Draft, ListenerDraft, UplinkDraft};
use super::tree::Spot;
use super::units::Wrong;
use super::walk::{At, Walk, name_fault, nearest};
use super::{Endpoint, ListenerAddress, ModbusPoint, Protocol, ScramHash, WRITES_STREAM};
use crate::message::{Topic, is_reserved};

mod cloud;
mod users;

/// Whose something is, and where that is written.
type Named<'d> = (&'d Arc<str>, Spot);

/// Every rule over two keys.
pub(super) fn check(walk: &mut Walk, draft: &Draft) {
    listeners(walk, draft);
    users::check(walk, draft);
    for uplink in &draft.uplinks {
        credentials(walk, uplink);
        rules(walk, uplink);
        cloud::check(walk, uplink, draft);
    }
    client_ids(walk, draft);
    lines(walk, draft);
    devices(walk, draft);
    ports(walk, draft);
    topics(walk, draft);
    writes(walk, draft);
    unused(walk, draft);
    unforwarded(walk, draft);
}

fn listeners(walk: &mut Walk, draft: &Draft) {
    let mut bound: Vec<(&ListenerAddress, Spot)> = Vec::new();
    for listener in &draft.listeners {
        let Some(bind) = &listener.bind else { continue };
        plaintext(walk, listener, bind);
        match (&bind.value, listener.tls, listener.mode) {
            (ListenerAddress::Unix { .. }, Some(tls), _) => {
                let help = "what is said over a Unix socket does not leave this machine: leave `tls` out".to_owned();
                walk.findings.problem(tls, "`tls` is for listeners on the network", Some(help));
            }
            (ListenerAddress::Network(_), _, Some(mode)) => {
                let help = "leave it out, or write `bind = \"unix:/run/tidegate/mqtt.sock\"`".to_owned();
                walk.findings.problem(mode, "`mode` is for Unix sockets", Some(help));
            }
            _ => {}
        }
        if let Some((_, first)) = bound.iter().find(|(other, _)| is_one_place(other, &bind.value)) {
            let what = format!("two listeners bind {}, here and at {}", bind.value, walk.findings.name(*first));
            let help = match bind.value {
                ListenerAddress::Network(_) => "give each its own port",
                ListenerAddress::Unix { .. } => "give each its own path",
            };
            walk.findings.problem(bind.spot, what, Some(help.to_owned()));
        }
        bound.push((&bind.value, bind.spot));
    }
    if let Some(web) = draft.web.as_ref().and_then(|web| web.bind.as_ref()) {
        let place = ListenerAddress::Network(web.value);
        if let Some((_, other)) = bound.iter().find(|(other, _)| is_one_place(other, &place)) {
            let what = format!("the listener at {} binds {} too", walk.findings.name(*other), web.value);
            walk.findings.problem(web.spot, what, Some("give each its own port".to_owned()));
        }
    }
}

/// What leaves this machine in the clear must have been meant.
fn plaintext(walk: &mut Walk, listener: &ListenerDraft, bind: &At<ListenerAddress>) {
    let Some(plaintext) = &listener.plaintext else { return };
    let address = match &bind.value {
        ListenerAddress::Network(address) if !address.ip().is_loopback() => Some(address),
        _ => None,
    };
    match (address, listener.tls, plaintext.value) {
        (Some(address), None, false) => {
            let what = format!("{} is not on loopback, and this listener has no TLS", address.ip());
            let help = format!(
                "write `tls = {{ cert = \"…\", key = \"…\" }}`; or `plaintext = true`, where passwords may be read on the \
                 way; or \"127.0.0.1:{}\" for this machine only",
                address.port()
            );
            walk.wrong(bind.spot, "bind", Wrong::new(what).help(help));
        }
        (_, Some(_), true) => {
            let help = "leave one of the two out".to_owned();
            walk.findings.problem(plaintext.spot, "a listener with `tls` is not plain", Some(help));
        }
        (None, None, true) => {
            let what = "`plaintext` changes nothing here: what is said does not leave this machine";
            walk.findings.warning(plaintext.spot, what, None);
        }
        _ => {}
    }
}

/// Whether the second listener could not be opened beside the first.
fn is_one_place(one: &ListenerAddress, other: &ListenerAddress) -> bool {
    match (one, other) {
        (ListenerAddress::Network(one), ListenerAddress::Network(other)) => {
            // Port 0 is a free one, each time another; [::] takes the port of IPv4 too.
            let covers = |one: &SocketAddr, other: &SocketAddr| {
                one.ip().is_unspecified() && (one.is_ipv6() || other.is_ipv4()) || one.ip() == other.ip()
            };
            one.port() == other.port() && one.port() != 0 && (covers(one, other) || covers(other, one))
        }
        (ListenerAddress::Unix { path: one, .. }, ListenerAddress::Unix { path: other, .. }) => one == other,
        _ => false,
    }
}

fn credentials(walk: &mut Walk, uplink: &UplinkDraft) {
    let problem = |walk: &mut Walk, spot: Spot, what: &str, help: &str| {
        walk.findings.problem(spot, what, Some(help.to_owned()));
    };
    match (uplink.cert, uplink.key) {
        (Some(cert), None) => {
            problem(walk, cert, "`cert` needs `key`", "write the file of the private key that belongs to it");
        }
        (None, Some(key)) => {
            problem(walk, key, "`key` needs `cert`", "write the file of the certificate that belongs to it");
        }
        _ => {}
    }
    let has_endpoints = !uplink.endpoints.is_empty();
    if has_endpoints && !uplink.endpoints.iter().any(|at| at.value.tls) {
        let help = if is_http(uplink) { "write \"https://…\" in `url`" } else { "write \"mqtts://…\" in `url`" };
        let keys = [("ca", uplink.ca), ("cert", uplink.cert), ("key", uplink.key), ("alpn", uplink.alpn)];
        for (name, spot) in keys {
            if let Some(spot) = spot {
                problem(walk, spot, &format!("`{name}` is for TLS, and no `url` of this uplink uses it"), help);
            }
        }
    }
    let is_old = uplink.config.as_ref().is_some_and(|config| config.protocol == Protocol::V311);
    // Some clouds' profiles have one for it.
    let has_username =
        uplink.username.is_some() || uplink.config.as_ref().is_some_and(|config| config.profile.username.is_some());
    if let (Some(password), false, true) = (uplink.password_file.or(uplink.written("jwt")), has_username, is_old) {
        let what = "MQTT 3.1.1 has no password without a user name";
        problem(walk, password, what, "write `username`, or `protocol = \"5\"`");
    }
    if let (Some(_), Some(jwt)) = (uplink.password_file, uplink.written("jwt")) {
        let what = "a token takes the place of the password: here are both";
        problem(walk, jwt, what, "leave `password_file` or `jwt` out");
    }
    let is_near =
        |host: &str| host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let method = uplink.config.as_ref().and_then(|config| config.auth_method.as_deref());
    let is_scram = method.and_then(ScramHash::of).is_some();
    if uplink.password_file.is_some() || uplink.written("jwt").is_some() {
        for endpoint in uplink.endpoints.iter().filter(|at| !at.value.tls && !is_near(&at.value.host)) {
            let help = if is_http(uplink) { "write \"https://…\"" } else { "write \"mqtts://…\"" };
            let what = match is_scram {
                true => "whoever listens to the network can read everything, and try passwords at leisure",
                false => "the password crosses the network in the clear",
            };
            walk.findings.warning(endpoint.spot, what, Some(help.to_owned()));
        }
    }
}

fn rules(walk: &mut Walk, uplink: &UplinkDraft) {
    let mut filters: HashMap<&str, Spot> = HashMap::new();
    for (rule, spot) in &uplink.forward {
        let Some(rule) = rule else { continue };
        if let Some(first) = filters.insert(rule.filter.as_str(), *spot) {
            let first = walk.findings.name(first);
            let what = format!("two rules have the filter {:?}, here and at {first}", rule.filter.as_str());
            let help = "the first rule that matches decides: this one never does".to_owned();
            walk.findings.problem(*spot, what, Some(help));
        }
    }
    shadowed(walk, uplink);
    let mut filters: HashMap<&str, Spot> = HashMap::new();
    for (rule, spot) in &uplink.receive {
        let Some(rule) = rule else { continue };
        if let Some(first) = filters.insert(rule.filter.as_str(), *spot) {
            let first = walk.findings.name(first);
            let what = format!("two rules have the filter {:?}, here and at {first}", rule.filter.as_str());
            walk.findings.problem(*spot, what, Some("keep one of the two".to_owned()));
        }
    }
}

/// Rules that never decide, because an earlier one matches all that they match.
fn shadowed(walk: &mut Walk, uplink: &UplinkDraft) {
    let rules = || uplink.forward.iter().filter_map(|(rule, spot)| Some((&rule.as_ref()?.filter, *spot)));
    for (number, (later, spot)) in rules().enumerate() {
        if walk.findings.is_full() {
            return;
        }
        let Some((first, first_spot)) = rules().take(number).find(|(first, _)| first.covers(later)) else { continue };
        // The same filter twice was noted as a problem.
        if first.pattern() == later.pattern() {
            continue;
        }
        let what = format!(
            "the rule for {:?} at {} takes all of {:?}: this one never decides",
            first.pattern(),
            walk.findings.name(first_spot),
            later.pattern()
        );
        let help = "the first rule that matches decides: write the narrower one first".to_owned();
        walk.findings.warning(spot, what, Some(help));
    }
}

fn is_http(uplink: &UplinkDraft) -> bool {
    uplink.config.as_ref().is_some_and(|config| config.http.is_some())
}

/// Two sessions of one client id at one broker throw each other out for ever.
fn client_ids(walk: &mut Walk, draft: &Draft) {
    let mut seen: HashMap<(&Endpoint, &str), Named<'_>> = HashMap::new();
    for uplink in &draft.uplinks {
        let Some(client_id) = &uplink.client_id else { continue };
        // By HTTP nobody says who he is in that way.
        if is_http(uplink) {
            continue;
        }
        for endpoint in &uplink.endpoints {
            let place = (&uplink.name, endpoint.spot);
            let Some((first, spot)) = seen.insert((&endpoint.value, &client_id.value), place) else { continue };
            if first == &uplink.name {
                let what = format!("this address stands twice, here and at {}", walk.findings.name(spot));
                walk.findings.problem(endpoint.spot, what, None);
                continue;
            }
            let what =
                format!("the uplinks `{first}` and `{}` log in at one broker as {:?}", uplink.name, client_id.value);
            let help = "a broker throws the first out when the second comes: give each its own `client_id`".to_owned();
            walk.findings.problem(if client_id.is_default { uplink.spot } else { client_id.spot }, what, Some(help));
        }
    }
}

fn lines(walk: &mut Walk, draft: &Draft) {
    let mut networks: HashMap<(&str, u16), Named<'_>> = HashMap::new();
    for line in &draft.lines {
        let Some(config) = &line.config else { continue };
        let (LineKind::Tcp { host, port } | LineKind::RtuOverTcp { host, port }) = &config.kind else { continue };
        let Some((first, spot)) = networks.insert((host, *port), (&line.name, line.spot)) else { continue };
        let what = format!(
            "the lines `{first}` and `{}` are one connection; the other is at {}",
            line.name,
            walk.findings.name(spot)
        );
        let help = "name the line in each device: one connection has one owner".to_owned();
        walk.findings.problem(line.spot, what, Some(help));
    }
}

fn devices(walk: &mut Walk, draft: &Draft) {
    let mut units: HashMap<(&Arc<str>, u8), Named<'_>> = HashMap::new();
    for device in &draft.modbus {
        if walk.findings.is_full() {
            break;
        }
        if let Some(At { value, spot, .. }) = &device.line
            && !draft.lines.iter().any(|line| line.name == *value)
            && !walk.is_partial
        {
            let names = draft.lines.iter().filter(|line| !line.is_in_place).map(|line| line.name.as_ref());
            let help = match nearest(value, names) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("write [line.{value}], or a url such as \"tcp://host:502\" here"),
            };
            walk.wrong(*spot, "line", Wrong::new(format!("there is no line {value:?}")).help(help));
        }
        if let Some(At { value, spot, .. }) = &device.model
            && !draft.models.iter().any(|(name, _)| name == value)
            && !walk.is_partial
        {
            let help = match nearest(value, draft.models.iter().map(|(name, _)| name.as_str())) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("write [model.{value}]"),
            };
            walk.wrong(*spot, "model", Wrong::new(format!("there is no model {value:?}")).help(help));
        }
        if let (Some(line), Some(unit)) = (&device.line, &device.unit_id)
            && let Some((first, spot)) = units.insert((&line.value, unit.value), (&device.name, unit.spot))
        {
            let what = format!(
                "`{first}` and `{}` are both unit {} on the line `{}`; the other is at {}",
                device.name,
                unit.value,
                line.value,
                walk.findings.name(spot)
            );
            let help = "two devices with one number answer at once; for more points of one device write one table";
            walk.findings.problem(unit.spot, what, Some(help.to_owned()));
        }
        if let (Some(unit), Some(line)) = (&device.unit_id, &device.line)
            && unit.value > 247
            && is_serial(draft, &line.value)
        {
            let wrong = Wrong::new(format!("unit {} is reserved on a serial line", unit.value)).help("from 1 to 247");
            walk.wrong(unit.spot, "unit_id", wrong);
        }
        if let Some(serial) = draft.serial.iter().find(|serial| serial.name == device.name) {
            let what = format!(
                "`{}` is the name of two devices; the other is at {}",
                device.name,
                walk.findings.name(device.spot)
            );
            walk.findings.problem(serial.spot, what, Some("a name is one device: rename one".to_owned()));
        }
    }
    let Some(board) = &draft.board else { return };
    let others = draft.devices().filter(|device| device.spot != board.spot);
    for device in others.filter(|device| *device.name == board.name) {
        let what = format!("`{}` is what this board itself is called among the devices", board.name);
        walk.findings.problem(device.spot, what, Some("rename the device".to_owned()));
    }
}

fn is_serial(draft: &Draft, name: &str) -> bool {
    let line = draft.lines.iter().find(|line| line.name.as_ref() == name);
    line.and_then(|line| line.config.as_ref()).is_some_and(|config| matches!(config.kind, LineKind::Rtu(_)))
}

fn ports(walk: &mut Walk, draft: &Draft) {
    let mut seen: HashMap<&Path, (String, Spot)> = HashMap::new();
    let on_lines = draft.lines.iter().filter_map(|line| match &line.config.as_ref()?.kind {
        LineKind::Rtu(port) => Some((port.path.as_path(), format!("the line `{}`", line.name), line.spot)),
        _ => None,
    });
    let by_themselves = draft.serial.iter().filter_map(|device| {
        let port = device.port.as_ref()?;
        Some((port.value.as_path(), format!("the device `{}`", device.name), port.spot))
    });
    for (path, user, spot) in on_lines.chain(by_themselves) {
        let shown = path.display();
        if let Some((first, first_spot)) = seen.get(path) {
            let place = walk.findings.name(*first_spot);
            let what = format!("{user} and {first} use one port, {shown}; the other is at {place}");
            let help = "a port has one owner: devices on one bus name one line".to_owned();
            walk.findings.problem(spot, what, Some(help));
        } else {
            seen.insert(path, (user, spot));
        }
    }
}

/// Every local topic of a point: valid, not the gateway's own, and that of one point only.
fn topics(walk: &mut Walk, draft: &Draft) {
    let mut seen: HashMap<String, (Arc<str>, Spot)> = HashMap::new();
    for DeviceDraft { name: device, spot, topic, point_names: points } in draft.devices() {
        let Some(topic) = topic else { continue };
        if name_fault(device).is_err() {
            continue;
        }
        let place = if topic.is_default { spot } else { topic.spot };
        if points.len() > 1 && !topic.value.contains("{point}") {
            let wrong = Wrong::new(format!("has no {{point}}, and `{device}` has {} points", points.len()))
                .help("their readings could not be told apart: add \"/{point}\"");
            walk.wrong(place, "topic", wrong);
            continue;
        }
        for (point, point_spot) in points.iter().filter(|(point, _)| name_fault(point).is_ok()) {
            let filled = topic.value.replace("{device}", device).replace("{point}", point);
            if is_reserved(&filled) {
                let what = format!("the topic {filled:?} is the gateway's own");
                walk.findings.problem(*point_spot, what, Some("choose another `topic` or another name".to_owned()));
                continue;
            }
            if let Err(error) = Topic::new(&filled) {
                walk.wrong(place, "topic", Wrong::new(error.to_string()));
                break;
            }
            let Some((first, first_spot)) = seen.insert(filled, (device.clone(), place)) else { continue };
            let what = format!(
                "`{first}` and `{device}` publish `{point}` to one topic; the other is at {}",
                walk.findings.name(first_spot)
            );
            walk.findings.warning(place, what, Some("add {device} to the topic".to_owned()));
            break;
        }
    }
}

/// What is asked of a point and what is answered have topics of their own.
fn writes(walk: &mut Walk, draft: &Draft) {
    // The stream of writes in the store bears this name.
    if let Some(uplink) = draft.uplinks.iter().find(|uplink| *uplink.name == *WRITES_STREAM) {
        let what = format!("an uplink cannot be called `{WRITES_STREAM}`: that is the way of writes to field devices");
        walk.findings.problem(uplink.spot, what, Some("call it `cloud`, for example".to_owned()));
    }
    let modbus = || draft.modbus.iter().filter_map(|device| Some((device, device.config.as_ref()?)));
    let written = written(draft);
    if written.is_empty() {
        return;
    }
    for (device, config) in modbus().filter(|(_, config)| !config.points.iter().any(ModbusPoint::is_readable)) {
        if !config.points.is_empty() {
            let what = format!("nothing of `{}` can be read: whether it is there shows only in a write", device.name);
            let help = "until one fails, `status` calls it good as long as its line is open".to_owned();
            walk.findings.warning(device.spot, what, Some(help));
        }
    }
    let mut read: HashMap<String, &Arc<str>> = HashMap::new();
    for (device, config) in modbus() {
        let topic = |point: &ModbusPoint| filled(&config.topic.0, &device.name, &point.name);
        read.extend(config.points.iter().map(|point| (topic(point), &device.name)));
    }
    for device in &draft.serial {
        let Some(config) = &device.config else { continue };
        let topic = |point: &Arc<str>| filled(&config.topic.0, &device.name, point);
        read.extend(device.point_names.iter().map(|(point, _)| (topic(point), &device.name)));
    }
    if let Some((board, config)) = draft.board.as_ref().and_then(|board| Some((board, board.config.as_ref()?))) {
        let topic = |point: &Arc<str>| filled(&config.topic.0, &board.name, point);
        read.extend(board.point_names.iter().map(|(point, _)| (topic(point), &board.name)));
    }
    let mut seen: HashMap<String, (&Arc<str>, Spot)> = HashMap::new();
    for Written { device, name, topic, spot } in written {
        if walk.findings.is_full() {
            return;
        }
        for (suffix, word) in [("set", "is written"), ("result", "is answered for")] {
            if let Some(other) = read.get(&format!("{topic}/{suffix}")) {
                let what = format!("`{name}` {word} on \"{topic}/{suffix}\", where `{other}` has a point");
                walk.findings.problem(spot, what, Some("choose another `topic` or another name".to_owned()));
            }
        }
        if is_reserved(&topic) || Topic::new(&format!("{topic}/result")).is_err() {
            let what = format!("`{name}` cannot be written on \"{topic}/set\": that is no topic for a client");
            walk.findings.problem(spot, what, Some("choose another `topic` or another name".to_owned()));
        }
        if let Some((other, first)) = seen.insert(topic.clone(), (device, spot)) {
            let place = walk.findings.name(first);
            let what = format!("`{other}` and `{device}` are both written on \"{topic}/set\"; the other is at {place}");
            walk.findings.problem(spot, what, Some("add {device} to the topic".to_owned()));
        }
    }
}

/// What can be written: a point of a unit, or a command of a serial device.
struct Written<'d> {
    device: &'d Arc<str>,
    name: &'d Arc<str>,
    topic: String,
    spot: Spot,
}

fn written(draft: &Draft) -> Vec<Written<'_>> {
    let mut written = Vec::new();
    for device in &draft.modbus {
        let Some(config) = &device.config else { continue };
        let spots: HashMap<&Arc<str>, Spot> = device.point_names.iter().map(|(name, spot)| (name, *spot)).collect();
        written.extend(config.points.iter().filter(|point| point.write.is_some()).map(|point| Written {
            device: &device.name,
            name: &point.name,
            topic: filled(&config.topic.0, &device.name, &point.name),
            spot: spots.get(&point.name).copied().unwrap_or(device.spot),
        }));
    }
    for device in &draft.serial {
        let Some(config) = &device.config else { continue };
        written.extend(device.command_names.iter().map(|(name, spot)| Written {
            device: &device.name,
            name,
            topic: filled(&config.topic.0, &device.name, name),
            spot: *spot,
        }));
    }
    written
}

fn filled(topic: &str, device: &str, point: &str) -> String {
    topic.replace("{device}", device).replace("{point}", point)
}

fn unused(walk: &mut Walk, draft: &Draft) {
    if walk.is_partial {
        return;
    }
    for line in &draft.lines {
        let is_used = draft.modbus.iter().any(|device| device.line.as_ref().is_some_and(|at| at.value == line.name));
        if !is_used {
            walk.findings.warning(line.spot, format!("no device is on the line `{}`", line.name), None);
        }
    }
    for (name, spot) in &draft.models {
        let is_used = draft.modbus.iter().any(|device| device.model.as_ref().is_some_and(|at| at.value == *name));
        if !is_used {
            walk.findings.warning(*spot, format!("no device is of the model `{name}`"), None);
        }
    }
}

/// Devices whose readings go nowhere.
fn unforwarded(walk: &mut Walk, draft: &Draft) {
    if walk.is_partial || draft.devices().next().is_none() {
        return;
    }
    let Some(first) = draft.uplinks.first() else {
        let help = "write [uplink.cloud] with a `url`; without one, readings are for local clients only";
        walk.findings.general_warning("there is no [uplink]: nothing goes to a cloud", Some(help.to_owned()));
        return;
    };
    // Where an uplink has a fault, its rules are not known.
    let Some(uplinks) = draft.uplinks.iter().map(|uplink| uplink.config.as_ref()).collect::<Option<Vec<_>>>() else {
        return;
    };
    for DeviceDraft { name: device, spot, topic, point_names: points } in draft.devices() {
        let (Some(template), false) = (topic, walk.findings.is_full()) else { continue };
        let topic_of = |point: &str| Topic::new(&template.value.replace("{device}", device).replace("{point}", point));
        let mut topics = points.iter().filter_map(|(point, _)| topic_of(point).ok());
        let is_forwarded =
            |topic: &Topic| uplinks.iter().flat_map(|uplink| &uplink.forward).any(|rule| rule.filter.matches(topic));
        // Some points may be for this machine only; a device of which nothing goes out was forgotten.
        let Some(shown) = topics.next().filter(|topic| !is_forwarded(topic)) else { continue };
        if topics.any(|topic| is_forwarded(&topic)) {
            continue;
        }
        let what = format!(
            "the readings of {:?} ({}) match no forward rule: they stay on this machine",
            device.as_ref(),
            shown.as_str()
        );
        let level = shown.as_str().split('/').next().unwrap_or_default();
        let mut help = format!("write [[uplink.{}.forward]] with filter = \"{level}/#\"", first.name);
        if first.forward.is_empty() {
            help.push_str("; \"field/#\" then needs its own: it is there only where no rule is written");
        }
        walk.findings.warning(if template.is_default { spot } else { template.spot }, what, Some(help));
    }
}
