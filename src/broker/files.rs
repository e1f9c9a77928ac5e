//! As many sockets as there may be open files: one too many would take the next from the store.

use log::warn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::limits::BrokerLimits;

/// What everything else in the gateway has open at most: store, uplinks, lines, callers of the control socket, and sockets
/// that are only told that there is no place (`SPARE_PLACES`).
const OTHER_FILES: usize = 200;

/// Fits the limits to what the system lets us open, after asking it for what they need.
pub(super) fn fit(limits: BrokerLimits) -> BrokerLimits {
    let wanted = limits.connections + OTHER_FILES;
    let allowed = getrlimit(Resource::Nofile);
    let mut current = allowed.current;
    if let Some(now) = current
        && now < wanted as u64
    {
        let asked = allowed.maximum.map_or(wanted as u64, |most| most.min(wanted as u64)).max(now);
        // Where a sandbox forbids it, what there is has to do.
        if setrlimit(Resource::Nofile, Rlimit { current: Some(asked), ..allowed }).is_ok() {
            current = Some(asked);
        }
    }
    let files = current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let fitted = within(limits, files);
    if files < wanted {
        warn!(
            files = files, connections = fitted.connections, needed = wanted;
            "The process may open too few files for the connections that broker.limits allows: there will be fewer"
        );
    }
    fitted
}

/// The limits under which everything together has at most `files` open.
fn within(limits: BrokerLimits, files: usize) -> BrokerLimits {
    let connections = limits.connections.min(files.saturating_sub(OTHER_FILES).max(files / 4).max(2));
    // Silent ones must leave room for those that speak.
    let handshakes = limits.handshakes.min(connections.div_ceil(2));
    BrokerLimits { handshakes, connections, ..limits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_never_take_the_files_of_the_store() {
        for (files, connections, handshakes) in
            [(0, 2, 1), (64, 16, 8), (300, 100, 50), (1024, 824, 200), (1200, 1000, 200), (usize::MAX, 1000, 200)]
        {
            let fitted = within(BrokerLimits::default(), files);
            assert_eq!((fitted.connections, fitted.handshakes), (connections, handshakes), "{files}");
        }
    }
}
