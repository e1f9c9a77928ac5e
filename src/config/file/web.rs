//! `[web]`, with its TLS and its users.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::super::access::PasswordHash;
use super::super::tree::{Spot, Tree};
use super::super::units::Wrong;
use super::super::walk::{At, Reader, Walk, text};
use super::super::{ListenerAddress, ListenerTls, WebConfig, keys};
use super::{WebDraft, file, user};

const HELP: &str = "write \"127.0.0.1:9080\"; `ssh -L 9080:127.0.0.1:9080 BOARD` shows the page on another machine";

/// Where the status page is served, and to whom.
pub(super) fn read(walk: &mut Walk, tree: &Tree, spot: Spot) -> WebDraft {
    let reader = Reader::open(walk, tree, &keys::WEB, spot);
    let bind = reader.leaf(walk, "bind", |node| match super::listener::address(text(node)?)? {
        ListenerAddress::Network(address) => Ok(address),
        unix @ ListenerAddress::Unix { .. } => Err(Wrong::new(format!("{unix} is no place for a page")).help(HELP)),
    });
    let mut draft = WebDraft { bind: None, tls: None, cert: None, key: None, config: None };
    let tls = match reader.has("tls") {
        false => Some(None),
        true => {
            draft.tls = Some(reader.spot_of("tls"));
            tls(walk, &reader, &mut draft).map(Some)
        }
    };
    let mut users = Some(BTreeMap::new());
    for (name, tree, spot) in reader.named(walk, "user") {
        match (web_user(walk, name, tree, spot), &mut users) {
            (Some(hash), Some(users)) => drop(users.insert(Arc::from(name), hash)),
            _ => users = None,
        }
    }
    if let Some(bind) = &bind {
        elsewhere(walk, bind, draft.tls.is_some(), users.as_ref().is_none_or(|users| !users.is_empty()));
    }
    draft.config = (|| Some(WebConfig { bind: bind.as_ref()?.value, tls: tls?, users: users? }))();
    draft.bind = bind;
    draft
}

fn tls(walk: &mut Walk, reader: &Reader<'_>, draft: &mut WebDraft) -> Option<ListenerTls> {
    let (tree, spot) = reader.table(walk, "tls")?;
    let reader = Reader::open(walk, tree, &keys::WEB_TLS, spot);
    let written = |key: &str| reader.has(key).then(|| reader.spot_of(key));
    (draft.cert, draft.key) = (written("cert"), written("key"));
    let (cert, key) = (file(walk, &reader, "cert", false), file(walk, &reader, "key", true));
    Some(ListenerTls { cert: cert?.value, key: key?.value, client: None })
}

fn web_user(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot) -> Option<PasswordHash> {
    let reader = Reader::open(walk, tree, &keys::WEB_USER, spot);
    let password = user::password(walk, &reader);
    if !reader.has("password_hash") && !reader.has("password_hash_file") && !walk.is_partial {
        let what = format!("the user `{name}` of the page cannot log in: he has no `password_hash`");
        walk.findings.problem(spot, what, Some(format!("`tidegate passwd --web {name}` prints the line")));
    }
    password
}

/// The page shows what a plant does: who is not on this machine needs a name, and nobody may listen on the way.
fn elsewhere(walk: &mut Walk, bind: &At<SocketAddr>, has_tls: bool, has_users: bool) {
    let address = bind.value;
    let missing = match (has_tls, has_users) {
        _ if address.ip().is_loopback() => return,
        (true, true) => return,
        (false, false) => "TLS and a user",
        (false, true) => "TLS",
        (true, false) => "a user",
    };
    let mut help = Vec::new();
    if !has_tls {
        help.push("write `tls = { cert = \"…\", key = \"…\" }`");
    }
    if !has_users {
        help.push("`tidegate passwd --web anna` prints the lines of a user");
    }
    let help = format!("{}; or {HELP}", help.join(" and "));
    let what = format!("{} is not on loopback: there the page needs {missing}", address.ip());
    walk.wrong(bind.spot, "bind", Wrong::new(what).help(help));
}
