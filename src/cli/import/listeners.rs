//! Mosquitto's listeners.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::conf::{Line, Notes, beside};
use crate::config::toml_text;

/// One `listener`, or the default one.
#[derive(Debug, Default)]
pub(super) struct Listener {
    /// The line that opens it; `None`: the default one, which no line opens.
    pub line: Option<Line>,
    pub port: String,
    pub address: Option<String>,
    pub options: Vec<Line>,
}

/// Where a listener is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bind {
    Network(SocketAddr),
    Unix(String),
}

impl Bind {
    pub fn is_local(&self) -> bool {
        match self {
            Bind::Network(address) => address.ip().is_loopback(),
            Bind::Unix(_) => true,
        }
    }
}

impl Listener {
    pub fn option(&self, key: &str) -> Option<&Line> {
        self.options.iter().rev().find(|line| line.key == key)
    }

    pub fn is_true(&self, key: &str) -> bool {
        self.option(key).is_some_and(Line::is_true)
    }

    /// Where it is; the fault is for a person.
    pub fn bind(&self) -> Result<Bind, String> {
        if let (Some(path), "0") = (&self.address, self.port.as_str()) {
            return Ok(Bind::Unix(path.clone()));
        }
        let port: u16 = self.port.parse().map_err(|_| "this is no port".to_owned())?;
        let ip = match self.address.as_deref() {
            None | Some("*") => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(text) => text.parse().map_err(|_| format!("write the address of {text:?} in numbers"))?,
        };
        Ok(Bind::Network(SocketAddr::new(ip, port)))
    }

    /// As a table; `None` with a note when it cannot be one.
    pub fn table(&self, has_users: bool, notes: &mut Notes) -> Option<String> {
        let mut add = |why: String| {
            if let Some(line) = self.line.as_ref().or(self.options.first()) {
                notes.add(line, why);
            }
        };
        let bind = match self.bind() {
            Ok(bind) => bind,
            Err(why) => {
                add(why);
                return None;
            }
        };
        if !bind.is_local() && !has_users {
            add("is reached from other machines, and there is no user who could log in here: make one with `tidegate passwd`, \
                 and write this listener then"
                .to_owned());
            return None;
        }
        let (name, shown) = match &bind {
            Bind::Network(address) => (format!("port-{}", address.port()), address.to_string()),
            Bind::Unix(path) => ("socket".to_owned(), format!("unix:{path}")),
        };
        if matches!(bind, Bind::Network(address) if address.ip().is_unspecified() && self.address.is_none()) {
            add("is carried for IPv4; for both write bind = \"[::]:…\"".to_owned());
        }
        let mut text = format!("[broker.listener.{name}]\nbind = {}\n", toml_text(&shown));
        match self.option("protocol").map(|line| (line, line.value.as_str())) {
            Some((_, "websockets")) => text.push_str("transport = \"websocket\"\n"),
            Some((_, "mqtt")) | None => {}
            Some((line, _)) => notes.add(line, "there are \"mqtt\" and \"websockets\""),
        }
        text.push_str(&self.tls(&bind, notes));
        Some(text + "\n")
    }

    fn tls(&self, bind: &Bind, notes: &mut Notes) -> String {
        let path = |line: &Line| toml_text(&beside(&line.place.file, &line.value).display().to_string());
        let (Some(cert), Some(key)) = (self.option("certfile"), self.option("keyfile")) else {
            let is_plain = matches!(bind, Bind::Network(_)) && !bind.is_local();
            return if is_plain { "plaintext = true\n".to_owned() } else { String::new() };
        };
        let mut parts = format!("cert = {}, key = {}", path(cert), path(key));
        if self.is_true("require_certificate") {
            match self.option("cafile") {
                Some(ca) => {
                    parts.push_str(&format!(", client_ca = {}", path(ca)));
                    if let Some(list) = self.option("crlfile") {
                        parts.push_str(&format!(", client_crl = {}", path(list)));
                    }
                }
                None => {
                    if let Some(line) = self.option("require_certificate") {
                        notes.add(line, "needs cafile here: the authorities of clients stand in one file");
                    }
                }
            }
        }
        format!("tls = {{ {parts} }}\n")
    }
}

/// Why an option of a listener is not carried; `None`: it is, or is looked at elsewhere.
pub(super) fn not_carried(key: &str) -> Option<&'static str> {
    Some(match key {
        "protocol"
        | "cafile"
        | "certfile"
        | "keyfile"
        | "crlfile"
        | "require_certificate"
        | "use_identity_as_username"
        | "allow_anonymous"
        | "password_file"
        | "acl_file" => return None,
        "capath" => "authorities of clients stand in one file: write its name as `client_ca`",
        "use_subject_as_username" | "use_username_as_clientid" => {
            "a user is found by his user name or by the name in his certificate (CN or SAN)"
        }
        "tls_version" | "ciphers" | "ciphers_tls1.3" | "dhparamfile" | "tls_engine" | "tls_keyform" => {
            "needs nothing here: TLS is 1.2 or 1.3 with rustls' choice of ciphers"
        }
        "psk_hint" | "psk_file" => "keys that are shared beforehand are not served: use certificates or passwords",
        "max_connections" => "connections are limited for all listeners together: [broker.limits] connections",
        "mount_point" => "topics are the same at each listener",
        "http_dir" => "files are not served",
        "socket_domain" | "bind_interface" => "write the address itself in `bind`",
        _ => "there is no such setting here",
    })
}
