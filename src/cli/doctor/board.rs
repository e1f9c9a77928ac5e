//! The board's own clock, by which every certificate and token is judged.

use super::is_trusted;
use super::report::Finding;
use crate::clock::{Clock, ClockSource, rfc3339, was_never_set};
use crate::message::ClockState;

pub(super) fn clock(clock: &Clock, source: ClockSource) -> Finding {
    const HELP: &str =
        "certificates and tokens are judged by it: let systemd-timesyncd or chrony set it, or set it by hand";
    let now = clock.now();
    let shown = rfc3339(now.wall_ms);
    if was_never_set(now) {
        let what = format!("this board's clock was never set: it says {shown}, or something before that");
        return Finding::wrong("clock", what).help(HELP);
    }
    match now.clock {
        ClockState::Unset if is_trusted(source) => Finding::good("clock", shown),
        ClockState::Unset => {
            let what = format!("it shows {shown}, and no time service has confirmed that since the boot");
            Finding::unsure("clock", what)
                .help("where no time service is to be had, write `clock = \"trust\"` in [gateway]")
        }
        ClockState::Synced | ClockState::Holdover { .. } => Finding::good("clock", shown),
    }
}
