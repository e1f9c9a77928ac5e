//! Mosquitto's bridge beside the gateway: the same drills, the same cloud, the same line.
//!
//! Its configuration is the one that keeps most of what it can keep at this rate: persistence on, saved every second
//! instead of every half hour, no bound on its queue, QoS 2 to the cloud.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::find_program;

/// The program, where it is installed.
pub(super) fn find() -> Option<PathBuf> {
    find_program("mosquitto")
}

/// What it says its version is.
pub(super) fn version(program: &Path) -> String {
    let help = Command::new(program).arg("-h").output().map(|output| output.stdout).unwrap_or_default();
    let help = String::from_utf8_lossy(&help);
    let version = help.lines().next().and_then(|line| line.strip_prefix("mosquitto version "));
    version.unwrap_or("(unknown)").trim().to_owned()
}

/// Its configuration: everything that it keeps goes to `state_dir`.
pub(super) fn configuration(state_dir: &Path, broker: SocketAddr, cloud: SocketAddr) -> String {
    // Started by root it would become another user, who may not write there.
    let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
    format!(
        "listener {port} {address}\n\
         allow_anonymous true\n\
         {user}\
         persistence true\n\
         persistence_location {state_dir}/\n\
         # by default every half hour\n\
         autosave_interval 1\n\
         # by default 1000 messages\n\
         max_queued_messages 0\n\
         connection cloud\n\
         address {cloud}\n\
         remote_clientid demo-bridge\n\
         cleansession false\n\
         # the shortest that it takes\n\
         keepalive_interval 5\n\
         restart_timeout 1\n\
         notifications false\n\
         try_private false\n\
         topic plant/# out 2\n",
        port = broker.port(),
        address = broker.ip(),
        state_dir = state_dir.display(),
    )
}
