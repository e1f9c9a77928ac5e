//! `[web]`

use std::net::SocketAddr;

use super::super::tree::{Spot, Tree};
use super::super::units::Wrong;
use super::super::walk::{At, Reader, Walk, text};
use super::super::{ListenerAddress, keys};

/// Where the status page is served.
pub(super) fn read(walk: &mut Walk, tree: &Tree, spot: Spot) -> Option<At<SocketAddr>> {
    let reader = Reader::open(walk, tree, &keys::WEB, spot);
    reader.leaf(walk, "bind", |node| {
        let wrong = |address: &str, what: &str| {
            Wrong::new(format!("{address} {what}"))
                .help("write \"127.0.0.1:9080\"; `ssh -L 9080:127.0.0.1:9080 BOARD` shows the page on another machine")
        };
        match super::listener::address(text(node)?)? {
            ListenerAddress::Network(address) if address.ip().is_loopback() => Ok(address),
            ListenerAddress::Network(address) => {
                Err(wrong(&address.ip().to_string(), "is not on loopback, and the page asks nobody who he is"))
            }
            unix @ ListenerAddress::Unix { .. } => Err(wrong(&unix.to_string(), "is no place for a page")),
        }
    })
}
