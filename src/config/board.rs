//! What this board is called: its serial number, its network card, its machine id. Reads a few small files, no more.
//!
//! Never fails: a board that tells nothing has no id, and the configuration must name one.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use super::walk::name_fault;

/// What was found on the board.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The id to take when the configuration names none; `None` on a board that tells nothing.
    pub id: Option<String>,
    /// Where `id` comes from, in words for the log.
    pub source: &'static str,
    /// The serial number of the board.
    pub board_serial: Option<String>,
    /// The name of the machine.
    pub hostname: Option<String>,
}

/// Looks below `root`, which is `/` but in tests.
pub fn find(root: &Path) -> Found {
    let board_serial = ["proc/device-tree/serial-number", "sys/firmware/devicetree/base/serial-number"]
        .iter()
        .find_map(|file| read_word(&root.join(file)))
        .filter(|serial| is_telling(serial));
    let hostname = ["proc/sys/kernel/hostname", "etc/hostname"].iter().find_map(|file| read_word(&root.join(file)));
    let (id, source) = if let Some(serial) = &board_serial {
        (Some(serial.clone()), "the board's serial number")
    } else if let Some(mac) = permanent_mac(root) {
        (Some(mac), "the first permanent network address")
    } else if let Some(machine) = read_word(&root.join("etc/machine-id")).filter(|id| is_telling(id)) {
        (Some(machine), "the machine id")
    } else {
        (None, "nowhere: the board tells nothing")
    };
    Found { id, source, board_serial, hostname }
}

/// A short file's text without the NUL or newline at its end, when it is fit for a name.
fn read_word(path: &Path) -> Option<String> {
    let mut text = String::new();
    // The device tree ends its strings with NUL. Nothing here is longer than a line.
    fs::File::open(path).ok()?.take(256).read_to_string(&mut text).ok()?;
    let word = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    name_fault(word).is_ok().then(|| word.to_owned())
}

/// Boards that were never given a number bear one all the same: every one of them the same.
fn is_telling(serial: &str) -> bool {
    const FILLERS: &[&str] =
        &["unknown", "none", "default", "uninitialized", "to be filled", "not specified", "serial"];
    let lower = serial.to_lowercase();
    let mut characters = serial.chars().filter(char::is_ascii_alphanumeric);
    let first = characters.next();
    let is_one_digit = first.is_none() || characters.all(|c| Some(c) == first);
    !is_one_digit && !FILLERS.iter().any(|filler| lower.contains(filler))
}

/// The lowest interface by name that has an address of its own: no bridge, no tunnel, no random address.
fn permanent_mac(root: &Path) -> Option<String> {
    let net = root.join("sys/class/net");
    let mut names: Vec<_> = fs::read_dir(&net).ok()?.take(256).flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names.iter().find_map(|name| {
        let card = net.join(name);
        // 0 is a permanent address (NET_ADDR_PERM); type 1 is Ethernet, Wi-Fi included (ARPHRD_ETHER). Only a card
        // that is a device has a `device` beside it.
        let is_permanent = read_word(&card.join("addr_assign_type")).as_deref() == Some("0");
        let is_ethernet = read_word(&card.join("type")).as_deref() == Some("1");
        if !is_permanent || !is_ethernet || !card.join("device").exists() {
            return None;
        }
        let mac: String = read_word(&card.join("address"))?.chars().filter(|c| *c != ':').collect();
        (mac.len() == 12 && mac.bytes().all(|b| b.is_ascii_hexdigit()) && is_telling(&mac)).then_some(mac)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_serial_number_comes_first_then_the_card_then_the_machine() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(find(root).id, None);

        write(root, "etc/machine-id", "3f9ac0ffee3f9ac0ffee3f9ac0ffee12\n");
        assert_eq!(find(root).id.as_deref(), Some("3f9ac0ffee3f9ac0ffee3f9ac0ffee12"));

        for (card, assign, device) in
            [("br0", "0", false), ("eth0", "3", true), ("eth1", "0", true), ("wlan0", "0", true)]
        {
            write(root, &format!("sys/class/net/{card}/addr_assign_type"), &format!("{assign}\n"));
            write(root, &format!("sys/class/net/{card}/type"), "1\n");
            write(root, &format!("sys/class/net/{card}/address"), &format!("dc:a6:32:01:02:0{}\n", card.len()));
            if device {
                write(root, &format!("sys/class/net/{card}/device/uevent"), "");
            }
        }
        assert_eq!(find(root).id.as_deref(), Some("dca632010204"));
        assert_eq!(find(root).source, "the first permanent network address");

        write(root, "proc/device-tree/serial-number", "10000000abcdef01\0");
        write(root, "etc/hostname", "press-hall\n");
        let found = find(root);
        assert_eq!(found.id.as_deref(), Some("10000000abcdef01"));
        assert_eq!(found.board_serial.as_deref(), Some("10000000abcdef01"));
        assert_eq!(found.hostname.as_deref(), Some("press-hall"));
    }

    #[test]
    fn a_number_that_every_board_bears_is_none() {
        for serial in ["0000000000000000", "Unknown", "To be filled by O.E.M.", "ffffffff", "", "  ", "a/b"] {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), "proc/device-tree/serial-number", serial);
            assert_eq!(find(root.path()).id, None, "{serial:?}");
        }
    }
}
