//! Which serial ports this machine has, under which names, and who holds them. Reads `/sys`, `/dev` and `/proc` only;
//! opens no port.
//!
//! Promises: bounded work whatever stands there; what cannot be read is left out, never guessed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Ports that are listed.
const PORTS_MAX: usize = 256;
/// Processes that are asked what they hold open.
const PROCESSES_MAX: usize = 32_768;
/// Open files of one process that are looked at.
const FILES_MAX: usize = 4096;
/// Programs that are named for one port.
const HOLDERS_MAX: usize = 4;

/// A serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialPortFound {
    /// Its device file.
    pub path: PathBuf,
    /// Its name by what the adapter says of itself, the same wherever it is plugged in.
    pub by_id: Option<PathBuf>,
    /// Its name by the socket that it is plugged into: the only one that tells equal adapters apart.
    pub by_path: Option<PathBuf>,
    /// The kernel's driver.
    pub driver: Option<String>,
    /// What a USB adapter says of itself.
    pub usb: Option<Usb>,
    /// Programs that have it open.
    pub holders: Vec<String>,
}

/// What a USB adapter says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usb {
    /// Four hexadecimal digits.
    pub vendor_id: String,
    /// Four hexadecimal digits.
    pub product_id: String,
    /// Many cheap ones have none.
    pub serial: Option<String>,
    /// In words.
    pub product: Option<String>,
}

/// Every port with hardware behind it, in the order of their names, below this root directory.
pub fn list(root: &Path) -> Vec<SerialPortFound> {
    let by_id = links(&root.join("dev/serial/by-id"));
    let by_path = links(&root.join("dev/serial/by-path"));
    let mut names: Vec<String> = entries(&root.join("sys/class/tty"), 4096)
        .into_iter()
        .filter(|name| is_hardware(&root.join("sys/class/tty").join(name)))
        .collect();
    // ttyUSB10 stands behind ttyUSB9.
    names.sort_by_key(|name| {
        let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (word, number) = name.split_at_checked(digits).unwrap_or((name, ""));
        (word.to_owned(), number.parse::<u64>().unwrap_or(0))
    });
    names.truncate(PORTS_MAX);
    let found = names.iter().map(|name| {
        let path = root.join("dev").join(name);
        let device = root.join("sys/class/tty").join(name).join("device");
        let named =
            |links: &[(PathBuf, String)]| links.iter().find(|(_, target)| target == name).map(|(link, _)| link.clone());
        SerialPortFound {
            by_id: named(&by_id),
            by_path: named(&by_path),
            driver: driver(&device),
            usb: usb(&device),
            holders: holders_below(root, &path),
            path,
        }
    });
    found.collect()
}

/// Programs that hold a port open, as "minicom (process 812)". Those of other users are seen by root only.
pub fn holders(path: &Path) -> Vec<String> {
    holders_below(Path::new("/"), path)
}

fn holders_below(root: &Path, path: &Path) -> Vec<String> {
    let Ok(wanted) = fs::metadata(path) else { return Vec::new() };
    let mut holders = Vec::new();
    for process in entries(&root.join("proc"), PROCESSES_MAX) {
        if holders.len() >= HOLDERS_MAX || !process.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let directory = root.join("proc").join(&process);
        let holds = entries(&directory.join("fd"), FILES_MAX).iter().any(|fd| {
            let open = fs::metadata(directory.join("fd").join(fd));
            open.is_ok_and(|open| open.rdev() != 0 && open.rdev() == wanted.rdev() && open.dev() == wanted.dev())
        });
        if holds {
            let name = line(&directory.join("comm")).unwrap_or_else(|| "a program".to_owned());
            holders.push(format!("{name} (process {process})"));
        }
    }
    holders
}

/// Whether something is behind the name: the kernel makes names for virtual consoles, and for 8250 ports that are not
/// there (their type is 0).
fn is_hardware(tty: &Path) -> bool {
    let is_behind = tty.join("device").exists();
    let is_absent = line(&tty.join("type")).is_some_and(|kind| kind == "0");
    is_behind && !is_absent
}

/// The driver of the device, or of what it hangs on: `ftdi_sio`, `serial8250`, `cdc_acm`.
fn driver(device: &Path) -> Option<String> {
    let name = |path: PathBuf| Some(fs::canonicalize(path).ok()?.file_name()?.to_string_lossy().into_owned());
    name(device.join("driver"))
}

/// The nearest USB device above.
fn usb(device: &Path) -> Option<Usb> {
    let mut place = fs::canonicalize(device).ok()?;
    for _ in 0..8 {
        if let (Some(vendor_id), Some(product_id)) = (line(&place.join("idVendor")), line(&place.join("idProduct"))) {
            let (serial, product) = (line(&place.join("serial")), line(&place.join("product")));
            return Some(Usb { vendor_id, product_id, serial, product });
        }
        place = place.parent()?.to_path_buf();
    }
    None
}

/// Links of a directory with the name of what they lead to.
fn links(directory: &Path) -> Vec<(PathBuf, String)> {
    let link = |name: String| {
        let link = directory.join(name);
        let target = fs::read_link(&link).ok()?.file_name()?.to_string_lossy().into_owned();
        Some((link, target))
    };
    let mut links: Vec<_> = entries(directory, 1024).into_iter().filter_map(link).collect();
    links.sort();
    links
}

fn entries(directory: &Path, count_max: usize) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.take(count_max).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// The first line of a small file, without what a terminal would obey.
fn line(path: &Path) -> Option<String> {
    let text = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(text.get(..text.len().min(256))?).into_owned();
    let line: String = text.lines().next()?.trim().chars().filter(|c| !c.is_control()).collect();
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn put(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn ports_are_listed_with_their_stable_names_and_what_they_hang_on() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for (name, socket) in [("ttyUSB10", "1-2"), ("ttyUSB9", "1-1")] {
            let adapter = root.join("sys/devices/usb1").join(socket);
            put(adapter.join("idVendor"), "0403\n");
            put(adapter.join("idProduct"), "6001\n");
            put(adapter.join("product"), "FT232R\x1b[31m USB UART\n");
            let device = adapter.join("1.0").join(name);
            fs::create_dir_all(&device).unwrap();
            fs::create_dir_all(root.join("sys/drivers/ftdi_sio")).unwrap();
            symlink(root.join("sys/drivers/ftdi_sio"), device.join("driver")).unwrap();
            fs::create_dir_all(root.join("sys/class/tty").join(name)).unwrap();
            symlink(&device, root.join("sys/class/tty").join(name).join("device")).unwrap();
            put(root.join("dev").join(name), "");
            fs::create_dir_all(root.join("dev/serial/by-path")).unwrap();
            symlink(format!("../../{name}"), root.join("dev/serial/by-path").join(format!("pci-usb-{socket}")))
                .unwrap();
        }
        // Equal adapters without a serial number have one name by id between them: the last one takes it.
        fs::create_dir_all(root.join("dev/serial/by-id")).unwrap();
        symlink("../../ttyUSB10", root.join("dev/serial/by-id/usb-FTDI")).unwrap();
        // A console, and a port that the kernel made a name for though it is not there.
        fs::create_dir_all(root.join("sys/class/tty/tty0")).unwrap();
        fs::create_dir_all(root.join("sys/class/tty/ttyS3/device")).unwrap();
        put(root.join("sys/class/tty/ttyS3/type"), "0\n");
        let found = list(root);
        let names: Vec<_> = found.iter().map(|port| port.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["ttyUSB9", "ttyUSB10"]);
        assert_eq!((&found[0].by_id, &found[1].by_id), (&None, &Some(root.join("dev/serial/by-id/usb-FTDI"))));
        assert_eq!(found[0].by_path, Some(root.join("dev/serial/by-path/pci-usb-1-1")));
        assert_eq!(found[0].driver.as_deref(), Some("ftdi_sio"));
        let usb = found[0].usb.clone().unwrap();
        assert_eq!((usb.vendor_id.as_str(), usb.product_id.as_str(), usb.serial), ("0403", "6001", None));
        assert_eq!(usb.product.as_deref(), Some("FT232R[31m USB UART"), "what a terminal would obey is left out");
        assert_eq!(list(Path::new("/nonexistent")), []);
    }
}
