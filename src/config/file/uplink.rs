//! `[uplink.<name>]`, with its rules.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::super::answers;
use super::super::clouds::{self, Profile};
use super::super::tree::{Spot, Tree};
use super::super::units::{self, Wrong};
use super::super::walk::{At, Reader, Walk};
use super::super::{
    AuthorizerConfig, DpsConfig, DrainOrder, Endpoint, ForwardRule, HttpKind, JwtConfig, Pace, Payload, Protocol,
    ProvisionConfig, ProvisionFormat, ProxyConfig, ReceiveRule, Reconnect, SasConfig, ScramHash, TopicTemplate,
    UplinkConfig, keys,
};
use super::{UplinkDraft, Words, file, fill, qos, when_full};
use crate::message::{Filter, Qos, Topic, is_reserved};

use payload::METERED_BATCH;

mod http;
mod payload;
mod services;

/// The default window at 3.1.1, where a broker has no word for its limit: Mosquitto in its own defaults closes the
/// connection on the 21st message that waits for its PUBREL.
const WINDOW_V311: i64 = 20;

/// The keep-alive of a metered link: each question and its answer are paid for.
const METERED_KEEP_ALIVE: Duration = Duration::from_secs(1200);

/// Where every reading goes on a metered link without a rule.
const METERED_TOPIC: &str = "field/{gateway}";

/// Where HTTP proxies listen, by Squid's default.
const PROXY_PORT: u16 = 3128;

/// More addresses than this are a mistake: each costs its timeout before the next is tried.
const ENDPOINTS_MAX: usize = 16;

/// More rules than this are a mistake: every message is held against each.
const RULES_MAX: usize = 256;

pub(super) fn read(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot, words: &Words) -> UplinkDraft {
    let reader = Reader::open(walk, tree, &keys::UPLINK, spot);
    let endpoints = endpoints(walk, &reader);
    let is_http = endpoints.as_ref().is_some_and(|(_, is_http)| *is_http);
    let endpoints = endpoints.map(|(endpoints, _)| endpoints);
    let profiles: Vec<(&str, &Profile)> = clouds::PROFILES.iter().map(|profile| (profile.name, *profile)).collect();
    let profile = reader.choice(walk, "profile", &profiles, &[]);
    // A wrong name was noted; the other keys are looked at all the same.
    let known = profile.as_ref().map_or(&clouds::GENERIC, |at| at.value);
    let http_kind = if is_http { http_kind(walk, &reader, known, spot) } else { None };
    let http = match http_kind {
        Some(kind) => http::read(walk, &reader, kind).map(Some),
        None => not_http(walk, &reader, known, is_http).then_some(None),
    };
    let protocol = protocol(walk, &reader);
    let protocol = match (known.protocol, protocol) {
        (Some(only), Some(at)) if !reader.has("protocol") => Some(At { value: only, ..at }),
        (_, protocol) => protocol,
    };
    let client_id = client_id(walk, &reader, words);
    let ca = file(walk, &reader, "ca", false);
    let cert = file(walk, &reader, "cert", false);
    let key = file(walk, &reader, "key", true);
    let alpn = alpn(walk, &reader);
    let username = reader.text(walk, "username");
    let password_file = file(walk, &reader, "password_file", true);
    let jwt = jwt(walk, &reader, words).map(|jwt| {
        // Where the cloud says whom a token is for, nobody has to write it.
        let of_cloud = || known.audience.and_then(|audience| audience(&client_id.as_ref()?.value).map(str::to_owned));
        jwt.map(|jwt| JwtConfig { audience: jwt.audience.or_else(of_cloud), ..jwt })
    });
    let auth_method = reader.text(walk, "auth_method");
    let is_scram = auth_method.as_ref().is_some_and(|method| ScramHash::of(&method.value).is_some());
    if let (true, Some(password)) = (is_scram, &password_file) {
        scram_password(walk, password);
    }
    let sas = sas(walk, &reader, client_id.as_ref());
    let dps = dps(walk, &reader);
    let authorizer = authorizer(walk, &reader, words);
    let provision = provision(walk, &reader, words);
    let proxy = proxy(walk, &reader);
    let keep_alive = seconds(walk, &reader, "keep_alive", 65_535);
    let session_expiry = seconds(walk, &reader, "session_expiry", 3650 * 86_400);
    let window = reader.integer(walk, "window", 1, 65_535);
    let is_v311 = protocol.as_ref().is_some_and(|protocol| protocol.value == Protocol::V311);
    let window = match reader.has("window") {
        false if is_v311 => window.map(|at| At { value: WINDOW_V311, ..at }),
        _ => window,
    };
    let reconnect = match reader.has("reconnect") {
        true => reconnect(walk, &reader),
        false => Some(known.reconnect),
    };
    let drain = reader.choice(
        walk,
        "drain",
        &[("oldest-first", DrainOrder::OldestFirst), ("live-first", DrainOrder::LiveFirst)],
        &[],
    );
    let pace = pace(walk, &reader, "pace", &keys::PACE).map(|pace| known.pace(pace));
    let link = reader.choice(walk, "link", &[("normal", false), ("metered", true)], &[]);
    let is_metered = link.as_ref().is_some_and(|link| link.value);
    let keep_alive = match reader.has("keep_alive") {
        false if is_metered => Some(known.kept_alive(METERED_KEEP_ALIVE)),
        _ => keep_alive,
    };
    let own_topic = own_topic(walk, &reader, words);
    let services = services::read(walk, &reader, known, client_id.as_ref(), words);
    let usual = Usual { is_metered, http: http_kind };
    let forward = forward(walk, &reader, words, usual);
    let receive = receive(walk, &reader, words);

    let is_missing = |key: &str, is_read: bool| reader.has(key) && !is_read;
    let has_hole = is_missing("ca", ca.is_some())
        || is_missing("cert", cert.is_some())
        || is_missing("key", key.is_some())
        || is_missing("username", username.is_some())
        || is_missing("auth_method", auth_method.is_some())
        || is_missing("password_file", password_file.is_some());
    let config = (|| {
        if has_hole {
            return None;
        }
        link?;
        let (twin, jobs) = services?;
        Some(UplinkConfig {
            profile: profile?.value,
            endpoints: endpoints.as_ref()?.iter().map(|at| at.value.clone()).collect(),
            protocol: protocol?.value,
            client_id: client_id.as_ref()?.value.clone(),
            ca: ca.as_ref().map(|at| at.value.clone()),
            cert: cert.as_ref().map(|at| at.value.clone()),
            key: key.as_ref().map(|at| at.value.clone()),
            alpn: alpn?,
            username: username.as_ref().map(|at| at.value.clone()),
            password_file: password_file.as_ref().map(|at| at.value.clone()),
            jwt: jwt?,
            auth_method: auth_method.map(|at| at.value),
            sas: sas?,
            dps: dps?,
            authorizer: authorizer?,
            provision: provision?,
            http: http?,
            proxy: proxy?,
            keep_alive: keep_alive?,
            session_expiry: session_expiry?,
            window: NonZeroU16::new(u16::try_from(window?.value).ok()?)?,
            reconnect: reconnect?,
            drain: drain?.value,
            pace: pace?,
            own_topic: own_topic?,
            forward: {
                let receive: Vec<ReceiveRule> = receive.iter().filter_map(|(rule, _)| rule.clone()).collect();
                // What becomes of a job is said like an answer to a command.
                let of_jobs = jobs.as_ref().and_then(|jobs| Filter::new(&jobs.update("+")).ok());
                let mut rules = answers::forwards(name, &receive, of_jobs);
                match forward.is_empty() {
                    true => rules.push(default_rule(usual, words)?),
                    false => rules.extend(forward.iter().map(|(rule, _)| rule.clone()).collect::<Option<Vec<_>>>()?),
                }
                rules
            },
            receive: receive.iter().map(|(rule, _)| rule.clone()).collect::<Option<Vec<_>>>()?,
            twin,
            jobs,
        })
    })();
    let written = |key: &str| reader.has(key).then(|| reader.spot_of(key));
    let places = keys::UPLINK.keys.iter().filter_map(|key| Some((key.name, written(key.name)?))).collect();
    UplinkDraft {
        name: Arc::from(name),
        spot,
        places,
        endpoints: endpoints.unwrap_or_default(),
        client_id,
        ca: written("ca"),
        cert: written("cert"),
        key: written("key"),
        alpn: written("alpn"),
        username: written("username"),
        password_file: written("password_file"),
        forward,
        receive,
        config,
    }
}

/// What is forwarded where no rule is written: every reading.
fn default_rule(usual: Usual, words: &Words) -> Option<ForwardRule> {
    let filter = Filter::new("field/#").ok()?;
    let Usual { is_metered, .. } = usual;
    if let Some(kind) = usual.http {
        let topic = TopicTemplate::parse(http::topic(kind), &filter, &words.gateway).ok()?;
        let payload = http::payload(kind);
        let batch = payload.is_batch().then(|| payload::batch(usual));
        let qos = Some(Qos::AtLeastOnce);
        return Some(ForwardRule { filter, topic, qos, when_full: None, strict_order: false, payload, batch });
    }
    let topic = match is_metered {
        false => TopicTemplate::identity(),
        // Only what is of one topic travels together.
        true => TopicTemplate::parse(METERED_TOPIC, &filter, &words.gateway).ok()?,
    };
    let (payload, batch) = if is_metered { (payload::METERED, Some(METERED_BATCH)) } else { (Payload::JSON, None) };
    Some(ForwardRule { filter, topic, qos: None, when_full: None, strict_order: false, payload, batch })
}

/// What the uplink's kind of link makes of keys that its rules leave out.
#[derive(Debug, Clone, Copy)]
struct Usual {
    is_metered: bool,
    http: Option<HttpKind>,
}

/// What is posted; noted where the profile or another key has nothing to do with HTTP.
fn http_kind(walk: &mut Walk, reader: &Reader<'_>, profile: &Profile, spot: Spot) -> Option<HttpKind> {
    let place = if reader.has("profile") { reader.spot_of("profile") } else { spot };
    let kind = http::kind(profile);
    if kind.is_none() {
        let help = "for https:// there are \"generic\" (a webhook), \"influxdb\" and \"aws-iot\"".to_owned();
        walk.findings.problem(place, format!("{} is not reached by HTTP", profile.title), Some(help));
    }
    for key in [
        "client_id",
        "keep_alive",
        "session_expiry",
        "window",
        "protocol",
        "authorizer",
        "auth_method",
        "provision",
        "dps",
        "drain",
        "receive",
        "thing",
        "twin",
        "jobs",
    ] {
        if reader.has(key) {
            let what = format!("`{key}` is for brokers, and this uplink goes by HTTP");
            walk.findings.problem(reader.spot_of(key), what, Some("leave it out".to_owned()));
        }
    }
    kind
}

/// The reverse: whether an uplink that goes to a broker has nothing of HTTP.
fn not_http(walk: &mut Walk, reader: &Reader<'_>, profile: &Profile, is_http: bool) -> bool {
    if is_http || !reader.has("url") {
        return !is_http;
    }
    let what = match (reader.has("http"), *profile == clouds::INFLUXDB) {
        (true, _) => ("http", "`http` is for `url = \"https://…\"`"),
        (_, true) => ("profile", "InfluxDB is reached by HTTP"),
        (false, false) => return true,
    };
    let help = "write url = \"https://host:8086/api/v2/write?org=…&bucket=…\"".to_owned();
    walk.findings.problem(reader.spot_of(what.0), what.1, Some(help));
    false
}

/// The addresses, and whether they are of HTTP.
fn endpoints(walk: &mut Walk, reader: &Reader<'_>) -> Option<(Vec<At<Endpoint>>, bool)> {
    if !reader.has("url") {
        reader.missing(walk, "url");
        return None;
    }
    let urls = reader.texts(walk, "url")?;
    if urls.is_empty() || urls.len() > ENDPOINTS_MAX {
        let wrong = Wrong::new(format!("must be one url, or a list of 1 to {ENDPOINTS_MAX}"));
        walk.wrong(reader.spot_of("url"), "url", wrong);
        return None;
    }
    let mut endpoints = Vec::new();
    let mut is_whole = true;
    let is_http = urls.first().is_some_and(|url| http::is_http(&url.value));
    for url in urls {
        if http::is_http(&url.value) != is_http {
            let wrong = Wrong::new("an uplink speaks MQTT or HTTP, not both").help("write another [uplink.<name>]");
            walk.wrong(url.spot, "url", wrong);
            return None;
        }
        match if is_http { http::endpoint(&url.value) } else { endpoint(&url.value) } {
            Ok(value) => endpoints.push(At { value, spot: url.spot, is_default: false }),
            Err(wrong) => {
                walk.wrong(url.spot, "url", wrong);
                is_whole = false;
            }
        }
    }
    is_whole.then_some((endpoints, is_http))
}

fn endpoint(text: &str) -> Result<Endpoint, Wrong> {
    const HELP: &str = "write \"mqtts://host:8883\" (TLS), \"mqtt://host:1883\", or \"wss://host/mqtt\" (WebSocket)";
    /// Where most brokers have their WebSocket.
    const PATH: &str = "/mqtt";

    let url = units::url(text).map_err(|wrong| if wrong.help.is_none() { wrong.help(HELP) } else { wrong })?;
    let (tls, is_websocket, usual) = match url.scheme {
        "mqtts" => (true, false, 8883),
        "mqtt" => (false, false, 1883),
        "wss" => (true, true, 443),
        "ws" => (false, true, 80),
        other => return Err(Wrong::new(format!("{other:?} is not a way to a broker")).help(HELP)),
    };
    let path = is_websocket.then(|| match url.path {
        "" => PATH.to_owned(),
        query if query.starts_with('?') => format!("/{query}"),
        path => path.to_owned(),
    });
    Ok(Endpoint { host: url.host.to_owned(), port: url.port.unwrap_or(usual), tls, path })
}

/// A password that could never log in by SCRAM.
fn scram_password(walk: &mut Walk, file: &At<PathBuf>) {
    // That it cannot be read was told; one that changes later is judged when it is used.
    let Ok(bytes) = std::fs::read(&file.value) else { return };
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if !ScramHash::takes(line.strip_suffix(b"\r").unwrap_or(line)) {
        let wrong = Wrong::new(format!("the first line of {} is no password for SCRAM", file.value.display()))
            .help("brokers differ in what they make of characters beyond ASCII: take a password of printable ASCII");
        walk.wrong(file.spot, "password_file", wrong);
    }
}

/// The outer `None` is a fault, the inner one is off.
fn jwt(walk: &mut Walk, reader: &Reader<'_>, words: &Words) -> Option<Option<JwtConfig>> {
    if !reader.has("jwt") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "jwt")?;
    let reader = Reader::open(walk, tree, &keys::JWT, spot);
    let key = file(walk, &reader, "key", true);
    // A claim that was wrong has its problem; then there is no configuration.
    let mut claim = |key: &'static str| match reader.text(walk, key) {
        Some(text) => fill(walk, key, &text, words).map(Some),
        None => (!reader.has(key)).then_some(None),
    };
    let (key_id, audience, issuer, subject) = (claim("key_id"), claim("audience"), claim("issuer"), claim("subject"));
    let lifetime = reader.duration(walk, "lifetime", Duration::from_secs(60), Duration::from_secs(86_400));
    Some(Some(JwtConfig {
        key: key?.value,
        key_id: key_id?,
        audience: audience?,
        issuer: issuer?,
        subject: subject?,
        lifetime: lifetime?.value,
    }))
}

/// The outer `None` is a fault, the inner one is none.
fn sas(walk: &mut Walk, reader: &Reader<'_>, client_id: Option<&At<String>>) -> Option<Option<SasConfig>> {
    if !reader.has("sas") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "sas")?;
    let uplink = reader;
    let reader = Reader::open(walk, tree, &keys::SAS, spot);
    let key = file(walk, &reader, "key", true);
    let group_key = file(walk, &reader, "group_key", true);
    match (reader.has("key"), reader.has("group_key")) {
        (false, false) => reader.missing(walk, "key"),
        (true, true) => {
            let what = "`key` is the device's own, and `group_key` one from which it is derived";
            walk.findings.problem(reader.spot_of("group_key"), what, Some("leave one of them out".to_owned()));
        }
        (false, true) if !uplink.has("dps") => {
            let what = "a hub knows the keys of devices only, and this is that of an enrolment group";
            let help = "write `key`, or `dps = { id_scope = \"…\" }` to register with the group's key".to_owned();
            walk.findings.problem(reader.spot_of("group_key"), what, Some(help));
        }
        _ => {}
    }
    let lifetime = reader.duration(walk, "lifetime", Duration::from_secs(60), Duration::from_secs(365 * 86_400));
    let derived_for = group_key.is_some().then_some(client_id?.value.clone());
    Some(Some(SasConfig { key: group_key.or(key)?.value, derived_for, lifetime: lifetime?.value }))
}

/// The outer `None` is a fault, the inner one is none. Its folder is known once the state directory is.
fn dps(walk: &mut Walk, reader: &Reader<'_>) -> Option<Option<DpsConfig>> {
    if !reader.has("dps") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "dps")?;
    let reader = Reader::open(walk, tree, &keys::DPS, spot);
    let id_scope = reader.text(walk, "id_scope");
    if !reader.has("id_scope") {
        reader.missing(walk, "id_scope");
    }
    let id_scope = id_scope?;
    if !(1..=64).contains(&id_scope.value.len()) || !id_scope.value.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let wrong = Wrong::new(format!("{:?} is not the id scope of a provisioning service", id_scope.value))
            .help("it stands in the service's overview, and looks like 0ne00123ABC");
        walk.wrong(id_scope.spot, "id_scope", wrong);
        return None;
    }
    Some(Some(DpsConfig { id_scope: id_scope.value, folder: std::path::PathBuf::new() }))
}

/// The outer `None` is a fault, the inner one is none.
fn authorizer(walk: &mut Walk, reader: &Reader<'_>, words: &Words) -> Option<Option<AuthorizerConfig>> {
    if !reader.has("authorizer") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "authorizer")?;
    let reader = Reader::open(walk, tree, &keys::AUTHORIZER, spot);
    let mut word = |key: &'static str| match reader.text(walk, key) {
        Some(text) => fill(walk, key, &text, words).map(Some),
        None => (!reader.has(key)).then_some(None),
    };
    let (name, token_key) = (word("name"), word("token_key"));
    let token_file = file(walk, &reader, "token_file", true);
    let signature_file = file(walk, &reader, "signature_file", true);
    for (key, needed, help) in [
        ("token_file", "token_key", "write the name under which the authoriser wants the token"),
        ("token_key", "token_file", "write the file of the token"),
        ("signature_file", "token_file", "write the file of the token that is signed"),
    ] {
        if reader.has(key) && !reader.has(needed) {
            walk.findings.problem(reader.spot_of(key), format!("`{key}` needs `{needed}`"), Some(help.to_owned()));
        }
    }
    let is_missing = |key: &str, is_read: bool| reader.has(key) && !is_read;
    if is_missing("token_file", token_file.is_some()) || is_missing("signature_file", signature_file.is_some()) {
        return None;
    }
    Some(Some(AuthorizerConfig {
        name: name?,
        token_key: token_key?,
        token_file: token_file.map(|at| at.value),
        signature_file: signature_file.map(|at| at.value),
    }))
}

/// The outer `None` is a fault, the inner one is none. Its folder is known once the state directory is.
fn provision(walk: &mut Walk, reader: &Reader<'_>, words: &Words) -> Option<Option<ProvisionConfig>> {
    if !reader.has("provision") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "provision")?;
    let reader = Reader::open(walk, tree, &keys::PROVISION, spot);
    let template = reader.text(walk, "template");
    if !reader.has("template") {
        reader.missing(walk, "template");
    }
    // By the cloud's own rule for these names; they are a level of a topic.
    let is_name = |name: &str| {
        (1..=36).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    if let Some(name) = template.as_ref().filter(|name| !is_name(&name.value)) {
        walk.wrong(name.spot, "template", Wrong::new("a template's name has 1 to 36 letters, digits, `_` and `-`"));
        return None;
    }
    let claim_cert = file(walk, &reader, "claim_cert", false);
    let claim_key = file(walk, &reader, "claim_key", true);
    for (key, is_read) in [("claim_cert", claim_cert.is_some()), ("claim_key", claim_key.is_some())] {
        if !is_read && !reader.has(key) {
            reader.missing(walk, key);
        }
    }
    let formats = [("json", ProvisionFormat::Json), ("cbor", ProvisionFormat::Cbor)];
    let format = reader.choice(walk, "format", &formats, &[]);
    let mut parameters = BTreeMap::new();
    let mut is_whole = true;
    if reader.has("parameters") {
        let (tree, _) = reader.table(walk, "parameters")?;
        for (name, entry) in tree.in_order() {
            let text = super::super::walk::text(&entry.node).map(str::to_owned);
            let text = text.map(|value| At { value, spot: entry.node.spot, is_default: false });
            match text.map_err(|wrong| walk.wrong(entry.node.spot, name, wrong)) {
                Ok(text) => match fill(walk, name, &text, words) {
                    Some(text) => drop(parameters.insert(name.to_owned(), text)),
                    None => is_whole = false,
                },
                Err(()) => is_whole = false,
            }
        }
    }
    if !is_whole {
        return None;
    }
    Some(Some(ProvisionConfig {
        template: template?.value,
        claim_cert: claim_cert?.value,
        claim_key: claim_key?.value,
        parameters,
        format: format?.value,
        folder: std::path::PathBuf::new(),
    }))
}

/// The outer `None` is a fault, the inner one is none.
fn proxy(walk: &mut Walk, reader: &Reader<'_>) -> Option<Option<ProxyConfig>> {
    if !reader.has("proxy") {
        return Some(None);
    }
    let (tree, spot) = reader.table(walk, "proxy")?;
    let reader = Reader::open(walk, tree, &keys::PROXY, spot);
    let url = reader.leaf(walk, "url", |node| {
        const HELP: &str = "write \"http://host:3128\"; user name and password are keys of their own";
        let url = units::url(super::super::walk::text(node)?).map_err(|wrong| wrong.help(HELP))?;
        if url.scheme != "http" {
            return Err(Wrong::new(format!("{:?} is not a way to an HTTP proxy", url.scheme)).help(HELP));
        }
        Ok((url.host.to_owned(), url.port.unwrap_or(PROXY_PORT)))
    });
    let username = reader.text(walk, "username");
    let password_file = file(walk, &reader, "password_file", true);
    if reader.has("password_file") && !reader.has("username") {
        let help = "write the user name that belongs to it".to_owned();
        walk.findings.problem(reader.spot_of("password_file"), "`password_file` needs `username`", Some(help));
    }
    if let Some(name) = username.as_ref().filter(|name| name.value.contains(':')) {
        walk.wrong(name.spot, "username", Wrong::new("must not contain a colon: it stands before the password"));
    }
    if (reader.has("username") && username.is_none()) || (reader.has("password_file") && password_file.is_none()) {
        return None;
    }
    let (host, port) = url?.value;
    let (username, password_file) = (username.map(|at| at.value), password_file.map(|at| at.value));
    Some(Some(ProxyConfig { host, port, username, password_file }))
}

fn protocol(walk: &mut Walk, reader: &Reader<'_>) -> Option<At<Protocol>> {
    reader.leaf(walk, "protocol", |node| {
        use super::super::tree::Written;
        let text = match &node.value {
            Written::Text(text) => text.as_str(),
            // `protocol = 5` means one thing only.
            Written::Integer(Some(5)) => "5",
            other => return Err(super::super::walk::wrong_kind("\"5\" or \"3.1.1\", in quotes", other)),
        };
        match text {
            "5" | "5.0" => Ok(Protocol::V5),
            "3.1.1" => Ok(Protocol::V311),
            _ => Err(Wrong::new(format!("{text:?} is not a version of MQTT")).help("write \"5\" or \"3.1.1\"")),
        }
    })
}

fn client_id(walk: &mut Walk, reader: &Reader<'_>, words: &Words) -> Option<At<String>> {
    let text = reader.text(walk, "client_id")?;
    let value = fill(walk, "client_id", &text, words)?;
    if value.is_empty() || value.len() > 65_535 || value.chars().any(char::is_control) {
        let wrong = Wrong::new("must not be empty, nor contain control characters")
            .help("a session is found again by its client id: without one nothing can be delivered exactly once");
        walk.wrong(text.spot, "client_id", wrong);
        return None;
    }
    Some(At { value, spot: text.spot, is_default: text.is_default })
}

fn alpn(walk: &mut Walk, reader: &Reader<'_>) -> Option<Vec<String>> {
    let names = reader.texts(walk, "alpn")?;
    let mut is_whole = true;
    for name in &names {
        // RFC 7301, 3.1: 1 to 255 bytes.
        if name.value.is_empty() || name.value.len() > 255 {
            walk.wrong(name.spot, "alpn", Wrong::new("a protocol name has 1 to 255 bytes"));
            is_whole = false;
        }
    }
    is_whole.then(|| names.into_iter().map(|name| name.value).collect())
}

/// A duration that travels as whole seconds.
fn seconds(walk: &mut Walk, reader: &Reader<'_>, key: &'static str, max: u64) -> Option<Duration> {
    let at = reader.duration(walk, key, Duration::ZERO, Duration::from_secs(max))?;
    if at.value.subsec_nanos() != 0 {
        walk.wrong(at.spot, key, Wrong::new("must be whole seconds: MQTT counts in seconds"));
        return None;
    }
    Some(at.value)
}

fn reconnect(walk: &mut Walk, reader: &Reader<'_>) -> Option<Reconnect> {
    let (tree, spot) = reader.table(walk, "reconnect")?;
    let reader = Reader::open(walk, tree, &keys::RECONNECT, spot);
    let range = (Duration::from_millis(10), Duration::from_secs(86_400));
    let first = reader.duration(walk, "first", range.0, range.1);
    let max = reader.duration(walk, "max", range.0, range.1);
    let (first, max) = (first?, max?);
    if first.value > max.value {
        walk.wrong(first.spot, "first", Wrong::new("must not be longer than `max`"));
        return None;
    }
    Some(Reconnect { first: first.value, max: max.value })
}

/// A rate, under whatever name; none where it is not written.
pub(super) fn pace(
    walk: &mut Walk,
    reader: &Reader<'_>,
    key: &'static str,
    table: &'static keys::KeyTable,
) -> Option<Pace> {
    if !reader.has(key) {
        return Some(Pace::default());
    }
    let (tree, spot) = reader.table(walk, key)?;
    let reader = Reader::open(walk, tree, table, spot);
    let messages = reader.integer(walk, "messages_per_s", 1, 1_000_000);
    let bytes = reader.size(walk, "bytes_per_s", 1, 1 << 40);
    let messages_per_s = match reader.has("messages_per_s") {
        true => Some(NonZeroU32::new(u32::try_from(messages?.value).ok()?)?),
        false => None,
    };
    let bytes_per_s = match reader.has("bytes_per_s") {
        true => Some(NonZeroU64::new(bytes?.value)?),
        false => None,
    };
    Some(Pace { messages_per_s, bytes_per_s })
}

/// The outer `None` is a fault, the inner one is off.
fn own_topic(walk: &mut Walk, reader: &Reader<'_>, words: &Words) -> Option<Option<String>> {
    let text = reader.text(walk, "own_topic")?;
    if text.value.is_empty() {
        return Some(None);
    }
    let filled = fill(walk, "own_topic", &text, words)?;
    match Topic::new(&filled) {
        // The gateway's topics stand below it: `<own_topic>/gap`.
        Ok(_) if filled.ends_with('/') => {
            walk.wrong(text.spot, "own_topic", Wrong::new("must not end with a slash"));
            None
        }
        Ok(_) => Some(Some(filled)),
        Err(error) => {
            walk.wrong(text.spot, "own_topic", Wrong::new(error.to_string()));
            None
        }
    }
}

fn filter(walk: &mut Walk, reader: &Reader<'_>, is_local: bool) -> Option<At<Filter>> {
    reader.leaf(walk, "filter", |node| {
        let text = super::super::walk::text(node)?;
        let filter = Filter::new(text).map_err(|error| Wrong::new(error.to_string()))?;
        if is_local && filter.share_group().is_some() {
            return Err(Wrong::new("a rule of the gateway itself shares with nobody")
                .help(format!("write {:?}", filter.pattern())));
        }
        Ok(filter)
    })
}

fn template(
    walk: &mut Walk,
    reader: &Reader<'_>,
    filter: Option<&At<Filter>>,
    words: &Words,
) -> Option<At<TopicTemplate>> {
    let text = reader.text(walk, "topic")?;
    // Without a filter nobody can say what it could fill; the fault of the filter was noted.
    let filter = filter?;
    match TopicTemplate::parse(&text.value, &filter.value, &words.gateway) {
        Ok(value) => Some(At { value, spot: text.spot, is_default: text.is_default }),
        Err(error) => {
            let help = format!("the filter is {:?}", filter.value.as_str());
            walk.wrong(text.spot, "topic", Wrong::new(error.to_string()).help(help));
            None
        }
    }
}

fn rules<'t>(walk: &mut Walk, reader: &Reader<'t>, key: &'static str) -> Vec<(&'t Tree, Spot)> {
    let mut tables = reader.tables(walk, key);
    if tables.len() > RULES_MAX {
        let wrong = Wrong::new(format!("{} rules are too many; {RULES_MAX} are the most", tables.len()));
        walk.wrong(reader.spot_of(key), key, wrong);
        tables.truncate(RULES_MAX);
    }
    tables
}

fn forward(walk: &mut Walk, reader: &Reader<'_>, words: &Words, usual: Usual) -> Vec<(Option<ForwardRule>, Spot)> {
    let mut result = Vec::new();
    for (tree, spot) in rules(walk, reader, "forward") {
        let reader = Reader::open(walk, tree, &keys::FORWARD, spot);
        let filter = filter(walk, &reader, true);
        let topic = match usual.http.filter(|_| !reader.has("topic")) {
            Some(kind) => http_topic(&reader, kind, filter.as_ref(), words),
            None => template(walk, &reader, filter.as_ref(), words),
        };
        let level = qos(walk, &reader);
        let full = when_full(walk, &reader);
        let order = reader.choice(walk, "order", &[("normal", false), ("strict", true)], &[]);
        let payload = payload::read(walk, &reader, usual);
        let place = filter.as_ref().map_or(spot, |filter| filter.spot);
        let rule = (|| {
            let (payload, batch) = payload?;
            Some(ForwardRule {
                filter: filter?.value,
                topic: topic?.value,
                // What goes by HTTP goes out of the store: nothing else would know of it when the answer comes.
                qos: match reader.has("qos") {
                    true => Some(level?.value),
                    false => usual.http.map(|_| Qos::AtLeastOnce),
                },
                when_full: if reader.has("when_full") { Some(full?.value) } else { None },
                strict_order: order?.value,
                payload,
                batch,
            })
        })();
        result.push((rule, place));
    }
    result
}

/// Where answers go. Not into the place where commands come from: each would be the next command.
fn answer_topic(
    walk: &mut Walk,
    reader: &Reader<'_>,
    filter: Option<&At<Filter>>,
    words: &Words,
) -> Option<TopicTemplate> {
    let text = reader.text(walk, "answer")?;
    let filter = filter?;
    match TopicTemplate::parse(&text.value, &filter.value, &words.gateway) {
        Ok(value) => Some(value),
        Err(error) => {
            let help = format!("the filter is {:?}", filter.value.as_str());
            walk.wrong(text.spot, "answer", Wrong::new(error.to_string()).help(help));
            None
        }
    }
}

fn answer_filters(walk: &mut Walk, reader: &Reader<'_>) -> Option<Vec<Filter>> {
    let mut result = Vec::new();
    let mut is_whole = true;
    for text in reader.texts(walk, "answers")? {
        let wrong = match Filter::new(&text.value) {
            Ok(filter) if filter.share_group().is_none() && !text.value.contains(['{', '}']) => {
                result.push(filter);
                continue;
            }
            Ok(_) => Wrong::new("must be a filter of topics, without a share and without braces"),
            Err(error) => Wrong::new(error.to_string()),
        };
        walk.wrong(text.spot, "answers", wrong);
        is_whole = false;
    }
    is_whole.then_some(result)
}

fn http_topic(
    reader: &Reader<'_>,
    kind: HttpKind,
    filter: Option<&At<Filter>>,
    words: &Words,
) -> Option<At<TopicTemplate>> {
    let value = TopicTemplate::parse(http::topic(kind), &filter?.value, &words.gateway).ok()?;
    Some(At { value, spot: reader.spot, is_default: true })
}

fn receive(walk: &mut Walk, reader: &Reader<'_>, words: &Words) -> Vec<(Option<ReceiveRule>, Spot)> {
    let mut result = Vec::new();
    for (tree, spot) in rules(walk, reader, "receive") {
        let reader = Reader::open(walk, tree, &keys::RECEIVE, spot);
        let filter = filter(walk, &reader, false);
        let topic = template(walk, &reader, filter.as_ref(), words);
        let level = qos(walk, &reader);
        if let Some(topic) = topic.as_ref().filter(|topic| is_reserved(topic.value.as_str())) {
            let wrong = Wrong::new("topics that start with `tidegate/` or `$` are the gateway's own");
            walk.wrong(topic.spot, "topic", wrong);
        }
        if let (Some(filter), Some(topic)) = (&filter, &topic)
            && filter.value.pattern().starts_with('$')
            && topic.value.as_str().starts_with("{topic}")
        {
            let wrong = Wrong::new("a topic that starts with `$` cannot be taken over as it is")
                .help("write the local topic: topic = \"cloud/{rest}\"");
            walk.wrong(filter.spot, "filter", wrong);
        }
        let answer = match reader.has("answer") {
            true => answer_topic(walk, &reader, filter.as_ref(), words).map(Some),
            false => Some(None),
        };
        let answers = answer_filters(walk, &reader);
        let place = filter.as_ref().map_or(spot, |filter| filter.spot);
        let rule = (|| {
            let (filter, topic) = (filter?.value, topic?.value);
            Some(ReceiveRule { filter, topic, qos: level?.value, answer: answer?, answers: answers? })
        })();
        result.push((rule, place));
    }
    result
}
