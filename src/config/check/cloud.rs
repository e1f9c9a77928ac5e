//! What a cloud's profile refuses, before the wire does. Pure.

use std::time::Duration;

use super::super::clouds::{Direction, Profile};
use super::super::file::{DeviceDraft, Draft, UplinkDraft};
use super::super::tree::Spot;
use super::super::units::{Wrong, duration_text, size_text};
use super::super::walk::Walk;
use super::super::{ForwardRule, Protocol, ReceiveRule, ScramHash, UplinkConfig, answers};
use crate::message::{Filter, Qos, Topic};

pub(super) fn check(walk: &mut Walk, uplink: &UplinkDraft, draft: &Draft) {
    // Where an uplink has a fault of its own, that is told first.
    let Some(config) = &uplink.config else { return };
    let profile = config.profile;
    way(walk, uplink, config);
    identity(walk, uplink, config);
    session(walk, uplink, config);
    quotas(walk, uplink, config);
    for (rule, spot) in &uplink.forward {
        if let Some(rule) = rule {
            forward(walk, profile, rule, *spot, draft, config);
        }
    }
    if uplink.forward.is_empty()
        && let Some(rule) = config.forward.last()
    {
        forward(walk, profile, rule, uplink.spot, draft, config);
    }
    if let Some(own) = &config.own_topic
        && let Some(fault) = profile.topic_fault(&format!("{own}/status"))
    {
        let help = "write a shorter `own_topic`, or \"\" for none".to_owned();
        walk.findings.problem(uplink.place("own_topic"), format!("`own_topic`: {fault}"), Some(help));
    }
    receive(walk, uplink, profile);
}

/// The way to the cloud: TLS, and a name in it.
fn way(walk: &mut Walk, uplink: &UplinkDraft, config: &UplinkConfig) {
    let profile = config.profile;
    if !profile.wants_server_name {
        return;
    }
    for endpoint in &uplink.endpoints {
        let host = endpoint.value.host.as_str();
        if !endpoint.value.tls {
            let instead = match config.http {
                Some(_) => format!("write \"https://{host}\""),
                None => format!("write \"mqtts://{host}:8883\""),
            };
            let wrong = Wrong::new(format!("{} takes connections with TLS only", profile.title)).help(instead);
            walk.wrong(endpoint.spot, "url", wrong);
        } else if host.parse::<std::net::IpAddr>().is_ok() {
            let wrong =
                Wrong::new(format!("{} finds the account by the host's name, and this is an address", profile.title))
                    .help(match profile.has_authorizers {
                        true => {
                            "write the name of your endpoint: aws iot describe-endpoint --endpoint-type iot:Data-ATS"
                        }
                        false => "write the host's name",
                    });
            walk.wrong(endpoint.spot, "url", wrong);
        }
    }
}

/// How the cloud knows who comes.
fn identity(walk: &mut Walk, uplink: &UplinkDraft, config: &UplinkConfig) {
    let title = config.profile.title;
    enhanced(walk, uplink, config);
    tokens(walk, uplink, config);
    if let (Some(only), Some(spot)) = (config.profile.protocol, uplink.written("protocol"))
        && only != config.protocol
    {
        let version = if only == Protocol::V311 { "3.1.1" } else { "5" };
        walk.findings.problem(
            spot,
            format!("{title} speaks MQTT {version} only"),
            Some("leave `protocol` out".to_owned()),
        );
    }
    registration(walk, uplink, config);
    match (config.profile.has_signatures, uplink.written("sas")) {
        (false, Some(spot)) => {
            let help = "write profile = \"azure-iot-hub\"".to_owned();
            walk.findings.problem(spot, "`sas` is one of Azure IoT Hub", Some(help));
        }
        (true, sas) => {
            let logins = [config.cert.is_some(), sas.is_some(), config.password_file.is_some(), config.jwt.is_some()];
            if logins == [false; 4] {
                let what =
                    format!("{title} knows devices by certificates or by signatures, and this uplink has neither");
                let help = "write `cert` and `key`, or `sas = { key = \"…\" }`".to_owned();
                walk.findings.problem(uplink.spot, what, Some(help));
            } else if let (Some(spot), [true, true, ..] | [_, true, true, _] | [_, true, _, true]) = (sas, logins) {
                walk.findings.problem(spot, "`sas` takes the place of any other login, and here is one", None);
            }
        }
        (false, None) => {}
    }
    if !config.profile.has_authorizers {
        if let Some(spot) = uplink.written("provision") {
            let help = "write profile = \"aws-iot\"".to_owned();
            walk.findings.problem(spot, "`provision` is the fleet provisioning of AWS IoT Core", Some(help));
        }
        if let Some(spot) = uplink.written("authorizer") {
            let help = "write profile = \"aws-iot\"".to_owned();
            walk.findings.problem(spot, "`authorizer` is one of AWS IoT Core", Some(help));
        }
        return;
    }
    let has_login = config.authorizer.is_some() || config.username.is_some() || config.password_file.is_some();
    if let Some(spot) = uplink.written("provision") {
        if let Some(cert) = uplink.written("cert") {
            let what = "`provision` gets the board a certificate of its own, and here is another one".to_owned();
            walk.findings.problem(cert, what, Some("leave `cert` and `key` out".to_owned()));
        } else if has_login || config.jwt.is_some() {
            let what = format!("{title} provisions by certificates, and this uplink logs in otherwise");
            walk.findings.problem(spot, what, Some("leave `provision` out, or the login".to_owned()));
        }
    } else if config.cert.is_none() && !has_login && config.jwt.is_none() {
        let what = format!("{title} knows gateways by their certificates, and this uplink has none");
        let help = "write `cert` and `key`, or `authorizer` for a custom authoriser".to_owned();
        walk.findings.problem(uplink.spot, what, Some(help));
    }
    for endpoint in uplink.endpoints.iter().filter(|_| config.http.is_none()) {
        if endpoint.value.path.is_some() && config.cert.is_some() && config.authorizer.is_none() {
            let what = format!("{title} asks for no certificate on a WebSocket");
            let help = format!("write \"mqtts://{}:443\"", endpoint.value.host);
            walk.findings.problem(endpoint.spot, what, Some(help));
        } else if endpoint.value.path.is_none() && config.authorizer.is_some() && endpoint.value.port == 8883 {
            let what = format!("{title} asks a custom authoriser on port 443, and a certificate on this one");
            let help = "write the port 443, unless a domain configuration of yours says otherwise".to_owned();
            walk.findings.warning(endpoint.spot, what, Some(help));
        }
    }
}

/// Where a cloud knows devices by tokens alone.
fn tokens(walk: &mut Walk, uplink: &UplinkDraft, config: &UplinkConfig) {
    let Profile { title, audience: Some(audience), .. } = config.profile else { return };
    if config.jwt.is_none() && config.password_file.is_none() {
        let what = format!("{title} knows devices by tokens, and this uplink has none");
        let help = "write `jwt = { key = \"…\" }`: the key whose public half the cloud has".to_owned();
        walk.findings.problem(uplink.spot, what, Some(help));
    }
    if let (Some(jwt), Some(wanted)) = (&config.jwt, audience(&config.client_id))
        && jwt.audience.as_deref() != Some(wanted)
    {
        let what = format!("{title} takes tokens for {wanted:?} alone, which the client id names");
        walk.findings.problem(uplink.place("jwt"), what, Some("leave `audience` out".to_owned()));
    }
}

/// A topic that the cloud does not know, either way.
fn known(walk: &mut Walk, config: &UplinkConfig, topic: &str, way: Direction, spot: Spot) {
    let Some(help) = (config.profile.foreign)(&config.client_id, topic, way) else { return };
    let what = match way {
        Direction::Up => format!("{} takes no message under {topic:?}", config.profile.title),
        Direction::Down => format!("{} knows no subscription to {topic:?}", config.profile.title),
    };
    match config.dps {
        // Only the provisioning service knows as which device.
        Some(_) => walk.findings.warning(spot, format!("{what}, unless the device is given another id"), Some(help)),
        None => walk.findings.problem(spot, what, Some(help)),
    }
}

/// Where a provisioning service of Azure says which hub it is.
fn registration(walk: &mut Walk, uplink: &UplinkDraft, config: &UplinkConfig) {
    if !config.profile.has_signatures {
        if let Some(spot) = uplink.written("dps") {
            let help = "write profile = \"azure-iot-hub\"".to_owned();
            walk.findings.problem(spot, "`dps` is the device provisioning of Azure IoT Hub", Some(help));
        }
        return;
    }
    for endpoint in &uplink.endpoints {
        let host = endpoint.value.host.to_ascii_lowercase();
        let is_service = host.ends_with(".azure-devices-provisioning.net");
        let is_hub = host.ends_with(".azure-devices.net");
        if config.dps.is_some() && is_hub {
            let wrong = Wrong::new("with `dps` the provisioning service says which hub it is, and this is a hub")
                .help("write \"mqtts://global.azure-devices-provisioning.net:8883\", or leave `dps` out");
            walk.wrong(endpoint.spot, "url", wrong);
        } else if config.dps.is_none() && is_service {
            let wrong = Wrong::new("this is the provisioning service, which takes no messages")
                .help("write dps = { id_scope = \"…\" }, or the hub: \"mqtts://NAME.azure-devices.net:8883\"");
            walk.wrong(endpoint.spot, "url", wrong);
        }
    }
    if config.dps.is_none() {
        return;
    }
    if config.password_file.is_some() || config.jwt.is_some() {
        let what = "a device registers by a certificate or by its key, and this uplink logs in otherwise";
        let help = "write `sas = { key = \"…\" }`, or `cert` and `key`".to_owned();
        walk.findings.problem(uplink.place("dps"), what, Some(help));
    }
    let id = config.client_id.as_str();
    let is_registration_id = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte))
        && !id.ends_with(['.', '_', ':']);
    if !is_registration_id {
        let wrong = Wrong::new(format!("{id:?} is no registration id"))
            .help("it has letters, digits, `-`, `.`, `_` and `:`, and ends with a letter, a digit or `-`");
        walk.wrong(uplink.place("client_id"), "client_id", wrong);
    }
}

/// Enhanced authentication, and a cloud that knows nobody without a name, a certificate or a token.
fn enhanced(walk: &mut Walk, uplink: &UplinkDraft, config: &UplinkConfig) {
    let Profile { title, auth_methods: known, .. } = config.profile;
    let Some(method) = &config.auth_method else {
        if !known.is_empty() && config.cert.is_none() {
            let what = format!("{title} takes nobody without a certificate or a token");
            let help = "write `cert` and `key`, or `auth_method` with a token";
            walk.findings.problem(uplink.spot, what, Some(help.to_owned()));
        }
        return;
    };
    let place = uplink.place("auth_method");
    if !known.is_empty() && !known.contains(&method.as_str()) {
        let wrong = Wrong::new(format!("{title} has no method {method:?}")).help(format!("write one of {known:?}"));
        walk.wrong(place, "auth_method", wrong);
    }
    if config.protocol == Protocol::V311 {
        let help = "write protocol = \"5\"".to_owned();
        walk.findings.problem(place, "MQTT 3.1.1 has no enhanced authentication", Some(help));
    }
    if ScramHash::of(method).is_some() {
        return by_password(walk, uplink, config, method);
    }
    if method.to_ascii_uppercase().starts_with("SCRAM") {
        // As a method of tokens it would send the password as it is.
        let wrong =
            Wrong::new(format!("{method:?} is not spoken here")).help("write \"SCRAM-SHA-256\" or \"SCRAM-SHA-512\"");
        return walk.wrong(place, "auth_method", wrong);
    }
    if config.password_file.is_none() && config.jwt.is_none() {
        let help =
            "write the file of the token (`password_file`), or `jwt = { key = \"…\" }` to sign it here".to_owned();
        walk.findings.problem(place, "`auth_method` needs a token", Some(help));
    }
}

/// A login by SCRAM: a name, and a password that both sides know.
fn by_password(walk: &mut Walk, uplink: &UplinkDraft, config: &UplinkConfig, method: &str) {
    let place = uplink.place("auth_method");
    match &config.username {
        None => {
            let what = format!("{method} is a login by name and password, and this uplink has no name");
            walk.findings.problem(place, what, Some("write `username`".to_owned()));
        }
        Some(name) if !ScramHash::takes(name.as_bytes()) => {
            let wrong = Wrong::new(format!("{name:?} is no name for {method}: write printable ASCII"));
            walk.wrong(uplink.place("username"), "username", wrong);
        }
        Some(_) => {}
    }
    if let Some(jwt) = uplink.written("jwt") {
        let what = format!("{method} is a login by password, and `jwt` makes a token");
        walk.findings.problem(jwt, what, Some("leave `jwt` or `auth_method` out".to_owned()));
    } else if config.password_file.is_none() {
        let what = format!("{method} is a login by password, and this uplink has none");
        walk.findings.problem(place, what, Some("write the file of the password: `password_file`".to_owned()));
    }
}

fn session(walk: &mut Walk, uplink: &UplinkDraft, config: &UplinkConfig) {
    let profile = config.profile;
    let title = profile.title;
    if let (Some(max), Some(id)) = (profile.client_id_bytes, &uplink.client_id) {
        let place = if id.is_default { uplink.spot } else { id.spot };
        if id.value.len() > max {
            let wrong = Wrong::new(format!("{} bytes are too long: {title} takes {max}", id.value.len()));
            walk.wrong(place, "client_id", wrong);
        } else if id.value.starts_with('$') {
            walk.wrong(place, "client_id", Wrong::new(format!("{title} takes no client id that starts with `$`")));
        }
    }
    if let (Some(fault), Some(id)) = ((profile.client_id_fault)(&config.client_id), &uplink.client_id) {
        let place = if id.is_default { uplink.spot } else { id.spot };
        let wrong = Wrong::new(format!("{:?} is no client id of {title}", config.client_id)).help(fault);
        walk.wrong(place, "client_id", wrong);
    }
    if !profile.has_sessions && uplink.written("session_expiry").is_some() {
        let what = format!("{title} keeps no session: what is in flight when a connection ends may come twice");
        let help = "leave `session_expiry` out; nothing is lost, and each reading bears an id".to_owned();
        walk.findings.warning(uplink.place("session_expiry"), what, Some(help));
    }
    if let Some((min, max)) = profile.keep_alive
        && !(min..=max).contains(&config.keep_alive)
    {
        let wrong = Wrong::new(format!("{title} keeps to nothing but {} to {}", text(min), text(max)))
            .help(format!("it would take this for {}", text(profile.kept_alive(config.keep_alive))));
        walk.wrong(uplink.place("keep_alive"), "keep_alive", wrong);
    }
    if let Some(max) = profile.session_expiry.filter(|max| config.session_expiry > *max)
        && uplink.written("session_expiry").is_some()
    {
        let what = format!("{title} keeps a session for {} at most", text(max));
        walk.findings.warning(uplink.place("session_expiry"), what, None);
    }
}

fn quotas(walk: &mut Walk, uplink: &UplinkDraft, config: &UplinkConfig) {
    let profile = config.profile;
    let title = profile.title;
    if let (Some(max), true) =
        (profile.in_flight.filter(|max| config.window > *max), uplink.written("window").is_some())
    {
        let what = format!("{title} takes {max} unacknowledged messages: the window is {max}");
        walk.findings.warning(uplink.place("window"), what, None);
    }
    let is_above = profile.publishes_per_s.zip(config.pace.messages_per_s).is_some_and(|(max, pace)| pace > max)
        || profile.bytes_per_s.zip(config.pace.bytes_per_s).is_some_and(|(max, pace)| pace > max);
    if is_above {
        let messages = profile.publishes_per_s.map_or_else(String::new, |max| format!("{max} messages"));
        let bytes = profile.bytes_per_s.map_or_else(String::new, |max| size_text(max.get()));
        let what = format!("`pace` is above what {title} takes of one connection: {messages} and {bytes} a second");
        let help = "it throws away what is more, and it is sent again; unless your quota was raised, leave `pace` out";
        walk.findings.warning(uplink.place("pace"), what, Some(help.to_owned()));
    }
}

fn forward(walk: &mut Walk, profile: &Profile, rule: &ForwardRule, spot: Spot, draft: &Draft, config: &UplinkConfig) {
    let title = profile.title;
    if rule.qos.is_some_and(|qos| qos > profile.qos_max) && config.http.is_none() {
        let what = format!("{title} has no QoS 2: these messages go at QoS {}", profile.qos_max.level());
        walk.findings.warning(spot, what, Some("each bears an id, so that the receiver can tell repeats".to_owned()));
    }
    if let (Some(max), Some(batch)) = (profile.payload_bytes_at(rule.topic.as_str()), &rule.batch)
        && usize::try_from(batch.bytes.get()).is_ok_and(|bytes| bytes > max)
    {
        let most = size_text(u64::try_from(max).unwrap_or(u64::MAX));
        let what = format!(
            "`batch` may grow to {}, and {title} takes messages of {most}",
            size_text(batch.bytes.get().into())
        );
        walk.findings.problem(spot, what, Some(format!("write bytes = \"{most}\" or less")));
    }
    basic_ingest(walk, profile, rule, spot);
    known(walk, config, rule.topic.as_str(), Direction::Up, spot);
    let least = shortest(&rule.filter).and_then(|topic| rule.topic.apply(&rule.filter, &topic));
    if let Some(Ok(least)) = least
        && let Some(fault) = profile.topic_fault(least.as_str())
    {
        let what = format!("no message of this rule can fit: {fault}");
        walk.findings.problem(spot, what, Some("write a shorter `topic`".to_owned()));
        return;
    }
    if let Some((device, point, fault)) = too_long(profile, rule, draft, config) {
        let what = format!("the point `{point}` of `{device}` cannot go there: {fault}");
        walk.findings.problem(spot, what, Some("write a shorter `topic`, here or for the device".to_owned()));
    }
}

/// `$aws/rules/<rule>/…`: a name that is no rule's is thrown away by the cloud without a word.
fn basic_ingest(walk: &mut Walk, profile: &Profile, rule: &ForwardRule, spot: Spot) {
    let Some(rest) = rule.topic.as_str().strip_prefix("$aws/rules/") else { return };
    if !profile.wants_server_name {
        return;
    }
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !rest.split_once('/').is_some_and(|(name, below)| is_name(name) && !below.is_empty()) {
        let what = "Basic Ingest wants \"$aws/rules/<rule>/<topic>\", and a rule's name has letters, digits and `_`";
        let help =
            "write topic = \"$aws/rules/my_rule/{topic}\"; a rule that is not there loses the messages in silence";
        walk.findings.problem(spot, what, Some(help.to_owned()));
    }
}

/// The first point of which this rule makes a topic that the cloud does not take.
fn too_long(
    profile: &Profile,
    rule: &ForwardRule,
    draft: &Draft,
    config: &UplinkConfig,
) -> Option<(String, String, String)> {
    for DeviceDraft { name: device, topic, point_names: points, .. } in draft.devices() {
        let Some(topic) = topic else { continue };
        for (point, _) in points {
            let local = topic.value.replace("{device}", device).replace("{point}", point);
            let Ok(local) = Topic::new(&local) else { continue };
            // The first rule that matches decides.
            let decides = config.forward.iter().find(|other| other.filter.matches(&local));
            if decides.is_none_or(|other| other.filter != rule.filter) {
                continue;
            }
            if let Some(Ok(cloud)) = rule.topic.apply(&rule.filter, &local)
                && let Some(fault) = profile.topic_fault(cloud.as_str())
            {
                return Some((device.to_string(), point.to_string(), fault));
            }
        }
    }
    None
}

/// The shortest topic with the fewest levels that `filter` matches.
fn shortest(filter: &Filter) -> Option<Topic> {
    let levels: Vec<&str> = filter
        .pattern()
        .split('/')
        .filter(|level| *level != "#")
        .map(|level| if level == "+" { "x" } else { level })
        .collect();
    let text = levels.join("/");
    Topic::new(if text.is_empty() { "x" } else { &text }).ok()
}

fn receive(walk: &mut Walk, uplink: &UplinkDraft, profile: &Profile) {
    let services = uplink.config.as_ref().map(UplinkConfig::service_filters).unwrap_or_default();
    let count = uplink.receive.len() + services.len();
    if let Some(max) = profile.subscriptions.filter(|max| count > *max) {
        let what = format!("{} takes {max} subscriptions of one connection, and these are {count}", profile.title);
        walk.findings.problem(uplink.place("receive"), what, Some("join some with `+` or `#`".to_owned()));
    }
    for (rule, spot) in &uplink.receive {
        let Some(rule) = rule else { continue };
        answer(walk, uplink, rule, *spot, profile);
        if let Some(of_service) = services.iter().find(|of_service| of_service.meets(&rule.filter)) {
            let what = format!("`twin` and `jobs` take what comes on {:?} themselves", of_service.as_str());
            walk.findings.problem(*spot, what, Some("leave this rule out, or them".to_owned()));
        }
        if let Some(config) = &uplink.config {
            known(walk, config, rule.filter.as_str(), Direction::Down, *spot);
            if let Some(answer) = &rule.answer {
                known(walk, config, answer.as_str(), Direction::Up, *spot);
            }
        }
        if let Some(fault) = profile.topic_fault(rule.filter.as_str()) {
            walk.findings.problem(*spot, format!("this subscription cannot fit: {fault}"), None);
        }
        if rule.qos > profile.qos_max && rule.qos == Qos::ExactlyOnce {
            let what = format!("{} has no QoS 2: this is subscribed at QoS {}", profile.title, profile.qos_max.level());
            walk.findings.warning(*spot, what, None);
        }
    }
}

/// An answer that comes back as a command would be answered, and so on.
fn answer(walk: &mut Walk, uplink: &UplinkDraft, rule: &ReceiveRule, spot: Spot, profile: &Profile) {
    let others = || uplink.receive.iter().filter_map(|(other, _)| other.as_ref());
    let own = ReceiveRule { answers: Vec::new(), ..rule.clone() };
    if let Some(other) = others().find(|other| answers::allowed(&own).iter().any(|filter| filter.meets(&other.filter)))
    {
        let what = format!("`answer` goes where commands come from: {:?}", other.filter.as_str());
        let help = "write an `answer` that no `filter` under `receive` matches".to_owned();
        walk.findings.problem(spot, what, Some(help));
    }
    if let Some(answer) = &rule.answer
        && let Some(fault) = profile.topic_fault(answer.as_str())
    {
        walk.findings.problem(spot, format!("`answer`: {fault}"), Some("write a shorter `answer`".to_owned()));
    }
}

fn text(duration: Duration) -> String {
    duration_text(duration)
}
