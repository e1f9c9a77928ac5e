//! `tidegate serial list`: ports, and which of their names stays.

use std::io::Write as _;
use std::path::Path;

use super::Exit;
use crate::field::ports::{self, SerialPortFound};

pub(super) fn main() -> Exit {
    let found = ports::list(Path::new("/"));
    // A reader that has gone has seen enough.
    let _gone = std::io::stdout().write_all(text(&found).as_bytes());
    Exit::Done
}

/// The name that stays: a port of the board has only one; of equal adapters only their sockets tell them apart.
fn name_to_write<'p>(port: &'p SerialPortFound, all: &[SerialPortFound]) -> (&'p Path, &'static str) {
    let Some(usb) = &port.usb else { return (&port.path, "this port is part of the board: its name stays") };
    let is_twin = |other: &SerialPortFound| {
        other.path != port.path
            && other.usb.as_ref().is_some_and(|other| {
                (&other.vendor_id, &other.product_id, &other.serial) == (&usb.vendor_id, &usb.product_id, &usb.serial)
            })
    };
    match (&port.by_id, &port.by_path) {
        (_, Some(by_path)) if all.iter().any(is_twin) => {
            (by_path, "another adapter is its equal: this name stays with the socket, so mark the cable")
        }
        (Some(by_id), _) => (by_id, "this name stays wherever the adapter is plugged in"),
        (None, Some(by_path)) => (by_path, "this name stays with the socket"),
        (None, None) => (&port.path, "udev gives it no other name: after a start it may be another adapter"),
    }
}

fn text(found: &[SerialPortFound]) -> String {
    if found.is_empty() {
        return "No serial port was found. An adapter shows up in `dmesg` when it is plugged in.\n".to_owned();
    }
    let mut text = String::new();
    for port in found {
        let mut facts: Vec<String> = port.driver.iter().cloned().collect();
        if let Some(usb) = &port.usb {
            facts.push(format!("USB {}:{}", usb.vendor_id, usb.product_id));
            facts.extend(usb.product.clone());
            facts.push(usb.serial.as_ref().map_or("no serial number".to_owned(), |serial| format!("serial {serial}")));
        }
        let (name, why) = name_to_write(port, found);
        text += &format!("{}  {}\n", port.path.display(), facts.join(", "));
        text += &format!("  port = {}\n  # {why}\n", crate::config::toml_text(&name.to_string_lossy()));
        for holder in &port.holders {
            text += &format!("  in use by {holder}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::ports::Usb;

    fn stick(number: u8, serial: Option<&str>) -> SerialPortFound {
        SerialPortFound {
            path: format!("/dev/ttyUSB{number}").into(),
            by_id: serial.map(|serial| format!("/dev/serial/by-id/usb-FTDI_{serial}").into()),
            by_path: Some(format!("/dev/serial/by-path/usb-{number}").into()),
            driver: Some("ftdi_sio".into()),
            usb: Some(Usb {
                vendor_id: "0403".into(),
                product_id: "6001".into(),
                serial: serial.map(str::to_owned),
                product: None,
            }),
            holders: vec![],
        }
    }

    #[test]
    fn of_two_equal_sticks_each_is_named_by_its_socket() {
        let told_apart = [stick(0, Some("A1")), stick(1, Some("A2"))];
        assert_eq!(name_to_write(&told_apart[0], &told_apart).0, Path::new("/dev/serial/by-id/usb-FTDI_A1"));
        let equal = [stick(0, None), stick(1, None)];
        assert_eq!(name_to_write(&equal[0], &equal).0, Path::new("/dev/serial/by-path/usb-0"));
        assert_eq!(name_to_write(&equal[1], &equal).0, Path::new("/dev/serial/by-path/usb-1"));
        // Clones with one serial number for all of them.
        let clones = [stick(0, Some("0001")), stick(1, Some("0001"))];
        assert_eq!(name_to_write(&clones[1], &clones).0, Path::new("/dev/serial/by-path/usb-1"));
    }

    #[test]
    fn a_port_is_listed_with_what_it_is_and_who_holds_it() {
        let mut port = stick(0, Some("A1"));
        port.holders.push("minicom (process 812)".into());
        let shown = text(&[port]);
        assert!(shown.contains("/dev/ttyUSB0  ftdi_sio, USB 0403:6001, serial A1"), "{shown}");
        assert!(shown.contains("in use by minicom (process 812)"), "{shown}");
        assert!(text(&[]).contains("No serial port was found"));
    }
}
