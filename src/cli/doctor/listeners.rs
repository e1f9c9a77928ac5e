//! Where local clients connect, as long as no gateway runs: whether its places are free.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};

use super::report::Finding;
use crate::config::{BrokerConfig, ListenerAddress};

pub(super) fn examine(broker: &BrokerConfig) -> Vec<Finding> {
    let network = broker.listeners.iter().filter_map(|(name, listener)| match listener.bind {
        ListenerAddress::Network(address) => Some((name, address)),
        ListenerAddress::Unix { .. } => None,
    });
    network.map(|(name, address)| look(name, address)).collect()
}

fn look(name: &str, address: SocketAddr) -> Finding {
    let Err(error) = TcpListener::bind(address) else {
        return Finding::good("listener", format!("{name}: {address} is free"));
    };
    let at = format!("[broker.listener.{name}]");
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let who = holder(address.port()).unwrap_or_else(|| "another program".to_owned());
            Finding::wrong("listener", format!("{name}: {address} is taken by {who}")).help(format!(
                "stop it (mosquitto: systemctl disable --now mosquitto), or write another `bind` under {at}"
            ))
        }
        io::ErrorKind::AddrNotAvailable => {
            let what = format!("{name}: this board has no address {}", address.ip());
            Finding::wrong("listener", what)
                .help(format!("`ip address` lists those it has; 0.0.0.0 under {at} is all of them"))
        }
        io::ErrorKind::PermissionDenied => Finding::unsure("listener", format!("{name}: {address}: {error}"))
            .help(format!("ports below 1024 are for root: write another `bind` under {at}")),
        _ => Finding::wrong("listener", format!("{name}: {address}: {error}"))
            .help(format!("write another `bind` under {at}")),
    }
}

/// Who listens on a port, where the system tells: mostly it tells root only.
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|table| fs::read_to_string(table).ok());
    let inodes: Vec<String> = tables.flat_map(|table| listening(&table, port)).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
            let target = target.to_string_lossy();
            inodes.iter().any(|inode| target == format!("socket:[{inode}]"))
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_else(|_| "a program".to_owned());
            return Some(format!("{} (process {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

/// Inodes of the sockets that listen on a port, of a table as in proc(5).
fn listening(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = rows.filter(|row| {
        let local = row.get(1).and_then(|local| local.rsplit_once(':'));
        row.get(3) == Some(&LISTEN)
            && local.and_then(|(_, hex)| u16::from_str_radix(hex, 16).ok()).is_some_and(|local| local == port)
    });
    ours.filter_map(|row| row.get(9).map(|inode| (*inode).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_on_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let told = format!("{:?}", look("local", address));
        assert!(told.contains(&format!("(process {})", std::process::id())), "{told}");
        assert!(told.contains("Wrong") && told.contains("[broker.listener.local]"), "{told}");
        drop(listener);
        assert!(format!("{:?}", look("local", address)).contains("is free"));
        let nowhere = format!("{:?}", look("plant", "192.0.2.1:1883".parse().unwrap()));
        assert!(nowhere.contains("no address 192.0.2.1"), "{nowhere}");
    }
}
