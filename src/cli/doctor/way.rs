//! From this board to the server's ear: name, address, proxy, TLS, WebSocket.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use super::Visit;
use super::certificates::judge;
use super::report::{Finding, Report};
use crate::config::Endpoint;
use crate::health::chain;
use crate::transport::{self, ConnectError, ProxyError, Refusal, Stream, Validity, Way};

/// Each step may take this long.
pub(super) const STEP_WITHIN: Duration = Duration::from_secs(10);

/// Goes the way, and tells each step. The connection, if there is one.
pub(super) async fn go(visit: &Visit<'_>, endpoint: &Endpoint, report: &mut Report) -> Option<Stream> {
    let (host, port) = match &visit.uplink.proxy {
        Some(proxy) => (proxy.host.as_str(), proxy.port),
        None => (endpoint.host.as_str(), endpoint.port),
    };
    if !report.note(name(host, port).await) {
        return None;
    }
    let way = Way::new(visit.uplink, endpoint);
    let begun = Instant::now();
    match transport::connect_by(endpoint, &way, visit.clock.now(), STEP_WITHIN).await {
        Ok(stream) => {
            let by = match &visit.uplink.proxy {
                Some(proxy) => format!(" by the proxy {}:{}", proxy.host, proxy.port),
                None => String::new(),
            };
            report.note(Finding::good("connection", format!("within {:.0?}{by}", begun.elapsed())));
            for finding in secured(visit, &stream, &way) {
                report.note(finding);
            }
            Some(stream)
        }
        Err(error) => {
            report.note(failure(visit, endpoint, &error));
            None
        }
    }
}

async fn name(host: &str, port: u16) -> Finding {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = match timeout(STEP_WITHIN, lookup_host((bare, port))).await {
        Err(_elapsed) => {
            return Finding::away("name", format!("the name server does not answer about {host}")).help(NAMES);
        }
        Ok(Err(error)) => {
            return Finding::away("name", format!("cannot find the address of {host}: {error}")).help(NAMES);
        }
        Ok(Ok(addresses)) => addresses.map(|address: SocketAddr| address.ip().to_string()).collect::<Vec<_>>(),
    };
    if addresses.is_empty() {
        return Finding::away("name", format!("{host} has no address")).help(NAMES);
    }
    Finding::good("name", format!("{host} is {}", addresses.join(", ")))
}

const NAMES: &str =
    "is the name in `url` right? Has this board a name server, and a route to it (resolvectl query NAME)?";

/// What TLS has agreed on, and until when.
fn secured(visit: &Visit<'_>, stream: &Stream, way: &Way) -> Vec<Finding> {
    let Some(facts) = stream.tls_facts() else { return Vec::new() };
    let mut findings = Vec::new();
    let alpn = facts.alpn.as_deref().map_or_else(String::new, |name| format!(", protocol {name:?}"));
    findings.push(Finding::good("tls", format!("{}{alpn}", facts.version)));
    if let (None, Some(offered)) = (&facts.alpn, way.tls.alpn.first()) {
        let what =
            format!("the server did not choose {offered:?}: it may not know it, and take this for another protocol");
        findings.push(Finding::unsure("alpn", what));
    }
    let validity = facts.chain.first().and_then(|der| Validity::of(der));
    findings.extend(validity.map(|validity| judge("server", "the server's certificate", validity, visit.clock.now())));
    findings
}

/// What a failed connection means, and what to change.
fn failure(visit: &Visit<'_>, endpoint: &Endpoint, error: &ConnectError) -> Finding {
    let what = chain(error);
    match error {
        ConnectError::Dns { .. } => Finding::away("name", what).help(NAMES),
        ConnectError::Tcp { .. } => Finding::away("connection", what)
            .help(format!("is the port right, and the server up? A firewall may refuse it; {}", other_port(endpoint))),
        ConnectError::Timeout { step, .. } if *step == "TCP handshake" => Finding::away("connection", what)
            .help(format!("nobody answers: a firewall swallows it, or the address is wrong; {}", other_port(endpoint))),
        ConnectError::Timeout { .. } => Finding::away("connection", what)
            .help("something answers and does not go on: is it the right port, and the right kind of server?"),
        ConnectError::Proxy { source, .. } => {
            let help = match source {
                ProxyError::Login => "write `username` and `password_file` in `proxy`, and see that they are right",
                ProxyError::Refused { .. } => {
                    "whoever runs the proxy must let CONNECT to this host and port pass; port 443 often may"
                }
                ProxyError::NotProxy => "is `proxy` an HTTP proxy, and its port right?",
                ProxyError::Broken(_) => "does the proxy let CONNECT pass?",
            };
            Finding::wrong("proxy", what).help(help)
        }
        ConnectError::ProxyLogin(_) => Finding::wrong("proxy", what).help("the file must be there and readable"),
        ConnectError::WebSocket { .. } => {
            Finding::wrong("websocket", what).help("is the path in `url` right? Most brokers have theirs at /mqtt")
        }
        ConnectError::Setup(_) => Finding::wrong("tls", what),
        ConnectError::Tls { refusal, .. } => tls(visit, endpoint, *refusal, what),
    }
}

fn other_port(endpoint: &Endpoint) -> &'static str {
    match endpoint.port {
        443 => "a proxy may be the only way out (`proxy`)",
        _ => "port 443 is often open where others are not",
    }
}

/// TLS said no, now or later.
pub(super) fn tls(visit: &Visit<'_>, endpoint: &Endpoint, refusal: Refusal, what: String) -> Finding {
    let help = match refusal {
        Refusal::UnknownRoot => {
            "`ca` must be the file of the authority that signs the server's certificate; without `ca`, those of the system are"
        }
        Refusal::Expired if visit.is_clock_good => "whoever runs the server must renew it",
        Refusal::NotYetValid if visit.is_clock_good => "is this board's clock behind?",
        Refusal::Expired | Refusal::NotYetValid | Refusal::Clock => {
            "this board's clock is wrong, and certificates are judged by it: set it, or let a time service"
        }
        Refusal::WrongName => "`url` must have the name that stands in the certificate; an address hardly ever does",
        Refusal::ClientCertificateMissing => "write `cert` and `key`",
        Refusal::ClientCertificateRefused => {
            "the server knows another authority, or has revoked or never registered this certificate (`cert`)"
        }
        Refusal::ClientCertificateExpired => {
            "renew `cert`; a renewed file is used by the next connection, without a restart"
        }
        Refusal::NoCommonProtocol => "`alpn` must be a name that the server knows; leave it out for the profile's",
        Refusal::Certificate => "whoever runs the server must look at its certificate",
        Refusal::Handshake if endpoint.tls => "is that the port for TLS? For a plain one write mqtt:// in `url`",
        Refusal::Handshake => "is that the port for plain connections? For TLS write mqtts:// in `url`",
    };
    Finding::wrong("tls", what).help(help)
}
