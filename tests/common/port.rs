//! Ports that are free, and who listens on them.

use std::fs;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that the kernel gives to outgoing connections (32768 and up), so that nobody's connection can take
/// a port between this question and the bind of the process that it is meant for.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A loopback port that is free now. A process that finds it taken all the same fails to start; its starter asks again.
pub fn free() -> u16 {
    let span = RANGE.end - RANGE.start;
    // Runs that overlap on one machine begin at different places.
    let offset = u16::try_from(std::process::id().wrapping_mul(2_654_435_761) % u32::from(span)).unwrap();
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % span;
        let port = RANGE.start + (offset + step) % span;
        // Asked of the kernel's table, not by a bind: a child that another thread starts at that moment inherits the
        // probing socket and would hold the port for a while.
        if !is_used(port) {
            return port;
        }
    }
    panic!("no free port between {} and {}", RANGE.start, RANGE.end);
}

/// Whether the process `pid` itself listens on `port`: a stale process on the port would answer for it and make a
/// test pass that should fail.
pub fn is_served_by(port: u16, pid: u32) -> bool {
    let Some(inode) = listener_inode(port) else { return false };
    let wanted = format!("socket:[{inode}]");
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .filter_map(Result::ok)
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|target| target.to_string_lossy() == wanted)
}

fn is_used(port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().filter_map(|table| fs::read_to_string(table).ok()).any(|table| {
        table.lines().skip(1).any(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&wanted)))
    })
}

fn listener_inode(port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port_hex) = fields.get(1)?.split_once(':')?;
        let is_it = u16::from_str_radix(port_hex, 16).ok()? == port && *fields.get(3)? == LISTEN;
        is_it.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}
