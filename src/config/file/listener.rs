//! `[broker.listener.<name>]`, with its TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::tree::{Spot, Tree};
use super::super::units::Wrong;
use super::super::walk::{Reader, Walk, text};
use super::super::{ClientCertificates, ListenerAddress, ListenerConfig, ListenerTls, ListenerTransport, keys};
use super::{ListenerDraft, file, files};

/// The longest path of a Unix socket on Linux has 107 bytes (unix(7)), and it is made under a longer name first.
const PATH_BYTES_MAX: usize = 100;

pub(super) fn read(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot) -> ListenerDraft {
    let reader = Reader::open(walk, tree, &keys::LISTENER, spot);
    let mode = reader.leaf(walk, "mode", |node| permissions(text(node)?));
    let bind = reader.leaf(walk, "bind", |node| {
        address(text(node)?).map(|address| match (address, &mode) {
            (ListenerAddress::Unix { path, .. }, Some(mode)) => ListenerAddress::Unix { path, mode: mode.value },
            (address, _) => address,
        })
    });
    let transport = reader.choice(
        walk,
        "transport",
        &[("mqtt", ListenerTransport::Mqtt), ("websocket", ListenerTransport::WebSocket)],
        &[],
    );
    let plaintext = reader.truth(walk, "plaintext");
    let mut draft = ListenerDraft {
        name: Arc::from(name),
        bind,
        tls: written(&reader, "tls"),
        cert: None,
        key: None,
        client_ca: None,
        client_crl: None,
        client_auth: None,
        mode: written(&reader, "mode"),
        plaintext,
        config: None,
    };
    let tls = match draft.tls {
        None => Some(None),
        Some(_) => tls(walk, &reader, &mut draft).map(Some),
    };
    draft.config = (|| {
        // What is wrong with these was noted: without them the draft is not whole.
        mode?;
        draft.plaintext.as_ref()?;
        Some(ListenerConfig { bind: draft.bind.as_ref()?.value.clone(), transport: transport?.value, tls: tls? })
    })();
    draft
}

fn written(reader: &Reader<'_>, key: &str) -> Option<Spot> {
    reader.has(key).then(|| reader.spot_of(key))
}

pub(super) fn address(text: &str) -> Result<ListenerAddress, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        let wrong = |what: &str| {
            Err(Wrong::new(format!("{path:?} {what}")).help("write \"unix:/run/tidegate/mqtt.sock\", one slash"))
        };
        return match Path::new(path) {
            _ if path.contains('\0') || path.ends_with('/') || path.starts_with("//") => wrong("is not a path"),
            path if !path.is_absolute() => wrong("does not start with /"),
            _ if path.len() > PATH_BYTES_MAX => wrong("is longer than 100 bytes"),
            path => Ok(ListenerAddress::Unix { path: PathBuf::from(path), mode: 0 }),
        };
    }
    let help = match text.rsplit_once(':') {
        _ if text.bytes().all(|b| b.is_ascii_digit()) => format!("write the address too: \"127.0.0.1:{text}\""),
        Some(("localhost" | "", port)) => format!("write the address in numbers: \"127.0.0.1:{port}\""),
        _ if text.starts_with('/') => format!("write \"unix:{text}\""),
        _ => "write address and port: \"127.0.0.1:1883\" or \"[::1]:1883\"".to_owned(),
    };
    let wrong = |_| Wrong::new(format!("{text:?} is not an address and a port")).help(help);
    text.parse::<SocketAddr>().map(ListenerAddress::Network).map_err(wrong)
}

/// `"0660"`: permissions as chmod(1) writes them.
fn permissions(text: &str) -> Result<u32, Wrong> {
    const HELP: &str = "\"0660\" is for the user and the group tidegate, \"0666\" for every program on this machine";
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= 0o777 && mode & 0o600 == 0o600 => Ok(mode),
        _ => Err(Wrong::new(format!("{text:?} are not permissions of a socket")).help(HELP)),
    }
}

fn tls(walk: &mut Walk, reader: &Reader<'_>, draft: &mut ListenerDraft) -> Option<ListenerTls> {
    let (tree, spot) = reader.table(walk, "tls")?;
    let reader = Reader::open(walk, tree, &keys::LISTENER_TLS, spot);
    draft.cert = written(&reader, "cert");
    draft.key = written(&reader, "key");
    draft.client_ca = written(&reader, "client_ca");
    draft.client_crl = written(&reader, "client_crl");
    draft.client_auth = written(&reader, "client_auth");
    let cert = file(walk, &reader, "cert", false);
    let key = file(walk, &reader, "key", true);
    let client_ca = file(walk, &reader, "client_ca", false);
    let client_crl = if reader.has("client_crl") { files(walk, &reader, "client_crl") } else { Some(Vec::new()) };
    let is_required = reader.choice(walk, "client_auth", &[("required", true), ("optional", false)], &[]);
    let client = if draft.client_ca.is_some() {
        let (ca, revoked, is_required) = (client_ca?.value, client_crl?, is_required?.value);
        Some(ClientCertificates { ca, revoked, is_required })
    } else {
        let alone = [(draft.client_auth, "client_auth"), (draft.client_crl, "client_crl")];
        let mut is_alone = false;
        for (spot, key) in alone {
            let Some(spot) = spot else { continue };
            let help = "write the file of the authority that signs the clients' certificates".to_owned();
            walk.findings.problem(spot, format!("`{key}` needs `client_ca`"), Some(help));
            is_alone = true;
        }
        if is_alone {
            return None;
        }
        None
    };
    Some(ListenerTls { cert: cert?.value, key: key?.value, client })
}
