//! Who is at the other end of a socket: what the way in says about it, before it has said anything itself.
//!
//! Promises: nothing here was claimed by the peer. The names of a certificate are there only when the listener has
//! verified it against the authorities that its owner trusts.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use crate::transport::CertificateNames;

/// The other end of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it comes from.
    pub address: PeerAddress,
    /// The listener that it came through, as the configuration names it.
    pub listener: Arc<str>,
    /// Nobody on the way can read or change what it says: TLS.
    pub is_encrypted: bool,
    /// The names in its certificate, if it showed one and the listener's `client_ca` vouches for it.
    pub certificate: Option<Arc<CertificateNames>>,
}

/// Where a peer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    /// Over the network, or over loopback.
    Network(SocketAddr),
    /// Over a Unix socket; the kernel's word for who opened it.
    Unix {
        /// User id of the process; `None` where the kernel did not say.
        uid: Option<u32>,
    },
}

impl Peer {
    /// Whether it runs on this machine: over loopback or a Unix socket.
    pub fn is_local(&self) -> bool {
        self.ip().is_none_or(|address| address.is_loopback())
    }

    /// Its network address; `None` over a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.ip()
    }
}

impl PeerAddress {
    /// The network address.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            // An IPv4 client of an IPv6 listener is the same machine as over IPv4 (RFC 4291, 2.5.5.2).
            PeerAddress::Network(address) => Some(address.ip().to_canonical()),
            PeerAddress::Unix { .. } => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(into)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddress::Network(address) => write!(into, "{address}"),
            PeerAddress::Unix { uid: Some(uid) } => write!(into, "user {uid} on this machine"),
            PeerAddress::Unix { uid: None } => write!(into, "somebody on this machine"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_unix_sockets_are_this_machine_and_an_address_mapped_to_ipv6_is_the_same_address() {
        let from = |address| Peer { address, listener: Arc::from("local"), is_encrypted: false, certificate: None };
        let network = |text: &str| from(PeerAddress::Network(text.parse().unwrap()));
        for (text, is_local) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("192.0.2.1:1", false),
            ("[::ffff:192.0.2.1]:1", false),
        ] {
            assert_eq!(network(text).is_local(), is_local, "{text}");
        }
        assert_eq!(network("[::ffff:192.0.2.1]:1").ip(), Some("192.0.2.1".parse().unwrap()));
        let unix = from(PeerAddress::Unix { uid: Some(1000) });
        assert!(unix.is_local() && unix.ip().is_none());
        assert_eq!(unix.to_string(), "user 1000 on this machine");
    }
}
