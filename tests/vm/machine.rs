//! The cabinet: a virtual machine whose plug can be pulled.
//!
//! Killing QEMU takes with it what its disk had not been told to flush: writes go past the host's page cache
//! (`cache=none`), and the tables of a qcow2 file that name newly written clusters are in QEMU's memory until then. What
//! it cannot do is tear a sector or reorder what one flush covers; `tests/torture/power_cuts.rs` does.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;

use super::common::process::Process;
use super::common::{port, wait_until};

/// Until the machine answers: a boot takes a minute where nobody else wants the processors.
const BOOT_PATIENCE: Duration = Duration::from_secs(900);

/// The machine, its disk, and the line to whoever works in it.
pub struct Machine {
    made: PathBuf,
    folder: PathBuf,
    /// The host's loopback port that leads to the gateway's listener.
    pub port: u16,
    qemu: Option<Process>,
    agent: Option<UnixStream>,
    boots: u32,
}

impl Machine {
    /// A machine with a fresh disk, switched off. `made` holds kernel, initrd and root file system; `packages` are the
    /// files that it finds in /root/debs.
    pub fn prepared(made: &Path, folder: &Path, packages: &[PathBuf]) -> Machine {
        let debs = folder.join("debs");
        fs::create_dir_all(&debs).unwrap();
        for package in packages {
            fs::copy(package, debs.join(package.file_name().unwrap())).unwrap();
        }
        run("mke2fs", &["-q", "-t", "ext4", "-d", &text(&debs), &text(&folder.join("debs.img")), "96M"]);
        let disk = text(&folder.join("disk.qcow2"));
        let base = text(&made.join("root.img"));
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &disk]);
        let (made, folder) = (made.to_owned(), folder.to_owned());
        Machine { made, folder, port: port::free(), qemu: None, agent: None, boots: 0 }
    }

    /// Switches it on; waits until somebody answers in it, and tells how long that took.
    pub fn boot(&mut self) -> Duration {
        assert!(self.qemu.is_none(), "the machine is on");
        let started = Instant::now();
        self.boots += 1;
        let socket = self.folder.join("agent");
        fs::remove_file(&socket).ok();
        let disk = self.folder.join("disk.qcow2");
        let arguments = [
            "-M".to_owned(),
            "q35,accel=tcg".to_owned(),
            "-cpu".to_owned(),
            "max".to_owned(),
            "-smp".to_owned(),
            "2".to_owned(),
            "-m".to_owned(),
            "512".to_owned(),
            "-nodefaults".to_owned(),
            "-display".to_owned(),
            "none".to_owned(),
            "-no-reboot".to_owned(),
            "-kernel".to_owned(),
            text(&self.made.join("vmlinuz")),
            "-initrd".to_owned(),
            text(&self.made.join("initrd")),
            "-append".to_owned(),
            "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1 mitigations=off quiet systemd.show_status=1"
                .to_owned(),
            "-drive".to_owned(),
            format!("file={},format=qcow2,if=virtio,cache={}", text(&disk), cache()),
            "-drive".to_owned(),
            format!("file={},format=raw,if=virtio,read-only=on", text(&self.folder.join("debs.img"))),
            "-netdev".to_owned(),
            format!("user,id=plant,hostfwd=tcp:127.0.0.1:{}-10.0.2.15:1884", self.port),
            "-device".to_owned(),
            "virtio-net-pci,netdev=plant,romfile=".to_owned(),
            "-chardev".to_owned(),
            format!("file,id=console,append=on,path={}", text(&self.console_path())),
            "-serial".to_owned(),
            "chardev:console".to_owned(),
            "-chardev".to_owned(),
            format!("socket,id=agent,server=on,wait=off,path={}", text(&socket)),
            "-serial".to_owned(),
            "chardev:agent".to_owned(),
        ];
        let qemu = self.qemu.insert(Process::start("qemu", "qemu-system-x86_64", &arguments));
        let stream = wait_until(Duration::from_secs(60), "QEMU opens the line to the machine", || {
            if let Some(status) = qemu.status() {
                panic!("QEMU ended ({status}): {:?}", qemu.stderr());
            }
            UnixStream::connect(&socket).map_err(|error| error.to_string())
        });
        self.agent = Some(stream);
        loop {
            // Whatever else a serial port hears at power-on ends with a line of its own.
            let line = self.hear(BOOT_PATIENCE.saturating_sub(started.elapsed()), "the machine is up");
            if line.trim() == "ready" {
                return started.elapsed();
            }
        }
    }

    /// Switches it off in order.
    pub fn power_off(&mut self) {
        // Whether the answer still comes does not matter; but a line that is hung up at once brings nothing.
        let line: String = b"systemctl poweroff".iter().map(|byte| format!("\\x{byte:02x}")).collect();
        let mut agent = self.agent.take().expect("the machine is on");
        agent.write_all(format!("{line}\n").as_bytes()).unwrap();
        let status = self.qemu.take().expect("the machine is on").wait(BOOT_PATIENCE);
        assert!(status.success(), "QEMU ended with {status}\n{}", self.console_tail());
    }

    /// Pulls the plug.
    pub fn pull_the_plug(&mut self) {
        let mut qemu = self.qemu.take().expect("the machine is on");
        if let Some(status) = qemu.status() {
            panic!("QEMU ended by itself ({status}): {:?}\n{}", qemu.stderr(), self.console_tail());
        }
        qemu.kill();
        self.agent = None;
    }

    /// Runs a script as root; its status and what it said.
    pub fn run(&mut self, patience: Duration, script: &str) -> (i32, String) {
        let mut line: String = script.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        line.push('\n');
        self.agent.as_mut().expect("the machine is on").write_all(line.as_bytes()).unwrap();
        let answer = self.hear(patience, script);
        let (status, output) = answer.trim().split_once(' ').unwrap_or((answer.trim(), ""));
        let status = status.parse().unwrap_or_else(|_| panic!("{answer:?} is no answer to {script}"));
        (status, unhex(output))
    }

    /// The same, and it must succeed.
    #[track_caller]
    pub fn must(&mut self, script: &str) -> String {
        let (status, said) = self.run(Duration::from_secs(300), script);
        assert_eq!(status, 0, "{script}\n{said}\n{}", self.console_tail());
        said
    }

    /// Asks until the output of a script is what `is_it` wants.
    #[track_caller]
    pub fn wait(
        &mut self,
        patience: Duration,
        what: &str,
        script: &str,
        mut is_it: impl FnMut(&str) -> bool,
    ) -> String {
        let until = Instant::now() + patience;
        loop {
            let (_, said) = self.run(Duration::from_secs(300), script);
            if is_it(&said) {
                return said;
            }
            assert!(Instant::now() < until, "waited in vain until {what}; at last: {said}\n{}", self.console_tail());
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Where all that the console said stands, over all boots.
    pub fn console_path(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    fn console_tail(&self) -> String {
        let console = fs::read(self.console_path()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        let first = lines.len().saturating_sub(60);
        format!("--- {} (boot {}) ---\n{}", text(&self.console_path()), self.boots, lines[first..].join("\n"))
    }

    fn hear(&mut self, patience: Duration, what: &str) -> String {
        let until = Instant::now() + patience;
        let mut line = Vec::new();
        loop {
            let stream = self.agent.as_mut().expect("the machine is on");
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => return String::from_utf8_lossy(&line).into_owned(),
                Ok(1) => line.push(byte[0]),
                Ok(_) => panic!("the machine has gone while {what}\n{}", self.console_tail()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("{error} while {what}\n{}", self.console_tail()),
            }
            assert!(Instant::now() < until, "waited {patience:?} in vain: {what}\n{}", self.console_tail());
        }
    }
}

/// `none`; the control that must fail takes `unsafe`, where flushes do nothing.
fn cache() -> String {
    std::env::var("TIDEGATE_VM_CACHE").unwrap_or_else(|_| "none".to_owned())
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn unhex(digits: &str) -> String {
    let digits: Vec<u8> = digits.chars().filter_map(|digit| digit.to_digit(16)?.try_into().ok()).collect();
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}
