//! An uplink by HTTP: its address, its `http` table, and the defaults that differ.

use std::time::Duration;

use super::super::super::clouds::{AWS_IOT, GENERIC, INFLUXDB, Profile};
use super::super::super::units::{self, Wrong};
use super::super::super::walk::{Reader, Walk};
use super::super::super::{Compression, Endpoint, Form, HmacConfig, HttpConfig, HttpKind, Payload, keys};
use super::super::file;

/// Whether an address is one of HTTP.
pub(super) fn is_http(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

/// `https://host/path?query`; the path is where messages are posted to.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, Wrong> {
    let url = units::url(text)
        .map_err(|wrong| if wrong.help.is_none() { wrong.help("write \"https://host/path\"") } else { wrong })?;
    let tls = url.scheme == "https";
    let path = match url.path {
        "" => "/".to_owned(),
        query if query.starts_with('?') => format!("/{query}"),
        path => path.to_owned(),
    };
    Ok(Endpoint {
        host: url.host.to_owned(),
        port: url.port.unwrap_or(if tls { 443 } else { 80 }),
        tls,
        path: Some(path),
    })
}

/// What the profile makes of HTTP; `None` = it has none.
pub(super) fn kind(profile: &Profile) -> Option<HttpKind> {
    [(&GENERIC, HttpKind::Webhook), (&INFLUXDB, HttpKind::InfluxDb), (&AWS_IOT, HttpKind::AwsTopics)]
        .into_iter()
        .find(|(known, _)| **known == *profile)
        .map(|(_, kind)| kind)
}

/// How readings are written where a rule does not say.
pub(super) fn payload(kind: HttpKind) -> Payload {
    match kind {
        HttpKind::Webhook => Payload::JSON_BATCH,
        HttpKind::InfluxDb => Payload { form: Form::LineProtocol, compression: Compression::Gzip },
        HttpKind::AwsTopics => Payload::JSON,
    }
}

/// The topic of a rule that has none: where it is no part of the address, all readings travel together.
pub(super) fn topic(kind: HttpKind) -> &'static str {
    match kind {
        HttpKind::Webhook | HttpKind::InfluxDb => "readings",
        HttpKind::AwsTopics => "{topic}",
    }
}

/// Reads `http`. The outer `None` is a fault.
pub(super) fn read(walk: &mut Walk, reader: &Reader<'_>, kind: HttpKind) -> Option<HttpConfig> {
    let empty = super::super::super::tree::Tree::default();
    let (tree, spot) = match reader.has("http") {
        true => reader.table(walk, "http")?,
        false => (&empty, reader.spot),
    };
    let reader = Reader::open(walk, tree, &keys::HTTP, spot);
    let key_file = file(walk, &reader, "hmac_key_file", true);
    let header = reader.text(walk, "hmac_header").filter(|name| {
        let is_name = is_header_name(&name.value);
        if !is_name {
            walk.wrong(name.spot, "hmac_header", Wrong::new("is not a name of a header"));
        }
        is_name
    });
    if reader.has("hmac_header") && !reader.has("hmac_key_file") {
        let help = "write the file of the key".to_owned();
        walk.findings.problem(reader.spot_of("hmac_header"), "`hmac_header` needs `hmac_key_file`", Some(help));
    }
    let timeout = reader.duration(walk, "timeout", Duration::from_secs(1), Duration::from_secs(300));
    let mut headers = Vec::new();
    for line in reader.texts(walk, "headers")? {
        match line.value.split_once(':').map(|(name, value)| (name, value.trim())) {
            Some((name, value))
                if is_header_name(name) && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) =>
            {
                headers.push((name.to_owned(), value.to_owned()));
            }
            _ => {
                let wrong = Wrong::new(format!("{:?} is not a header", line.value)).help("write \"Name: value\"");
                walk.wrong(line.spot, "headers", wrong);
                return None;
            }
        }
    }
    let hmac = match reader.has("hmac_key_file") {
        true => Some(HmacConfig { key_file: key_file?.value, header: header?.value }),
        false => None,
    };
    Some(HttpConfig { kind, hmac, headers, timeout: timeout?.value })
}

/// RFC 9110, 5.6.2.
fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
