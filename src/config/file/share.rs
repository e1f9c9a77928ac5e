//! `share` of a line: where another master reaches it.

use std::net::SocketAddr;

use super::super::tree::Written;
use super::super::units::Wrong;
use super::super::walk::{self, Reader, Walk, text};
use super::super::{ListenerAddress, ShareConfig, keys};

/// `share = "127.0.0.1:1502"`, or a table. The outer `None` is a fault.
#[expect(clippy::option_option, reason = "wrong, not written, and written are three answers")]
pub(super) fn read(walk: &mut Walk, reader: &Reader<'_>) -> Option<Option<ShareConfig>> {
    if !reader.has("share") {
        return Some(None);
    }
    let short = reader.leaf(walk, "share", |node| match &node.value {
        Written::Text(written) => place(written).map(Some),
        Written::Table(_) => Ok(None),
        other => Err(walk::wrong_kind("an address such as \"127.0.0.1:1502\", or a table", other)),
    })?;
    if let Some(bind) = short.value {
        if !bind.ip().is_loopback() {
            walk.wrong(short.spot, "share", off_loopback(&bind));
            return None;
        }
        return Some(Some(ShareConfig { bind, is_writable: false }));
    }
    let (tree, spot) = reader.table(walk, "share")?;
    let own = Reader::open(walk, tree, &keys::SHARE, spot);
    let bind = own.leaf(walk, "bind", |node| place(text(node)?));
    let write = own.truth(walk, "write");
    let plaintext = own.truth(walk, "plaintext");
    let (bind, plaintext) = (bind?, plaintext?);
    if !bind.value.ip().is_loopback() && !plaintext.value {
        walk.wrong(bind.spot, "bind", off_loopback(&bind.value));
        return None;
    }
    Some(Some(ShareConfig { bind: bind.value, is_writable: write?.value }))
}

fn off_loopback(bind: &SocketAddr) -> Wrong {
    Wrong::new(format!("{} is not on loopback, and Modbus asks nobody who he is", bind.ip()))
        .help("where only the right ones reach it: share = { bind = \"…\", plaintext = true }")
}

fn place(written: &str) -> Result<SocketAddr, Wrong> {
    match super::listener::address(written)? {
        ListenerAddress::Network(address) if address.port() != 0 => Ok(address),
        other => Err(Wrong::new(format!("{other} is no place for Modbus TCP")).help("write \"127.0.0.1:1502\"")),
    }
}
