//! Who is put through the faults: the gateway; the gateway behind a front that acknowledges early, which is the control;
//! and Mosquitto's bridge.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::process::Signal;

use super::common::frames::Frames;
use super::common::gateway::{FORWARD_PLANT, Gateway, uplink};
use super::common::process::Process;
use super::common::raw::packet;
use super::common::{PATIENCE, port, wait_until};

/// Which program, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The gateway.
    Tidegate,
    /// The gateway behind `Front`: acknowledged before anything is stored.
    EarlyTidegate,
    /// Mosquitto with persistence and a bridge, otherwise as Debian ships it.
    Bridge,
    /// The same with `autosave_interval 1` and `autosave_on_changes true`.
    BridgeThatSaves,
}

impl Kind {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tidegate => "Tidegate",
            Kind::EarlyTidegate => "the control: Tidegate behind a front that acknowledges early",
            Kind::Bridge => "Mosquitto bridge, persistence on",
            Kind::BridgeThatSaves => "Mosquitto bridge, autosave after every change",
        }
    }
}

/// What the uplink of a subject is told.
#[derive(Debug, Clone)]
pub struct Terms {
    /// `3.1.1` or `5`.
    pub protocol: &'static str,
    /// Messages a second, so that a drain lasts; the bridge has no such thing.
    pub pace: Option<u64>,
    /// Every write to the gateway's files takes a while, so that many kills fall between the writes of a commit.
    pub is_disk_slow: bool,
}

/// A program under fire. It keeps its port and its store over kills.
pub struct Subject {
    kind: Kind,
    inner: Inner,
    front: Option<Front>,
    line: u16,
    terms: Terms,
}

enum Inner {
    Gateway(Box<Gateway>),
    Bridge(Bridge),
}

impl Subject {
    /// Not started yet; its uplink goes to the loopback port `line`.
    pub fn prepared(kind: Kind, folder: &Path, line: u16, terms: &Terms) -> Subject {
        let inner = match kind {
            Kind::Tidegate | Kind::EarlyTidegate => {
                let mut gateway = Gateway::prepared(folder, &tables(line, terms));
                if terms.is_disk_slow {
                    gateway.set_tracer(&SLOW_DISK);
                }
                Inner::Gateway(Box::new(gateway))
            }
            Kind::Bridge | Kind::BridgeThatSaves => {
                Inner::Bridge(Bridge::prepared(folder, line, terms, kind == Kind::BridgeThatSaves))
            }
        };
        let front = (kind == Kind::EarlyTidegate).then(Front::opened);
        Subject { kind, inner, front, line, terms: terms.clone() }
    }

    /// Where publishers connect.
    pub fn port(&self) -> u16 {
        match (&self.front, &self.inner) {
            (Some(front), _) => front.port,
            (None, Inner::Gateway(gateway)) => gateway.port,
            (None, Inner::Bridge(bridge)) => bridge.port,
        }
    }

    /// Starts it and waits until this very process listens.
    pub fn start(&mut self) {
        match &mut self.inner {
            Inner::Gateway(gateway) => gateway.start(),
            Inner::Bridge(bridge) => bridge.start(),
        }
        self.tell_front();
    }

    /// Starts it and does not wait for anything: for a kill while it starts.
    pub fn spawn(&mut self) {
        match &mut self.inner {
            Inner::Gateway(gateway) => gateway.spawn(),
            Inner::Bridge(bridge) => bridge.spawn(),
        }
        self.tell_front();
    }

    /// Waits until a local subscriber has got something.
    pub fn wait_for_a_subscriber(&self) {
        if let Inner::Gateway(gateway) = &self.inner {
            gateway.wait_for_status("the subscriber gets messages", |status| {
                (status["sessions"]["sent"].as_u64()? > 0).then_some(())
            });
        }
    }

    /// Its uplink is no longer paced, from the next start on.
    pub fn hurry(&mut self) {
        self.terms.pace = None;
        if let Inner::Gateway(gateway) = &mut self.inner {
            gateway.set_tables(&tables(self.line, &self.terms));
        }
    }

    /// SIGKILL for this very process, which must not have ended by itself before, and which is the one that listens
    /// when it `was_ready`.
    pub fn kill(&mut self, was_ready: bool) {
        let (id, own_port) = match &self.inner {
            Inner::Gateway(gateway) => (gateway.program_id(), gateway.port),
            Inner::Bridge(bridge) => (bridge.process.as_ref().map(Process::id), bridge.port),
        };
        let is_it = id.is_some_and(|id| port::is_served_by(own_port, id));
        assert!(!was_ready || is_it, "another process than {id:?} listens on {own_port}");
        match &mut self.inner {
            Inner::Gateway(gateway) => {
                if let Some(status) = gateway.has_ended() {
                    panic!("the gateway ended by itself ({status}) before its kill:\n{}", gateway.log().join("\n"));
                }
                gateway.kill();
            }
            Inner::Bridge(bridge) => {
                let mut process = bridge.process.take().expect("it runs");
                if let Some(status) = process.status() {
                    panic!("Mosquitto ended by itself ({status}) before its kill:\n{}", process.transcript());
                }
                process.kill();
            }
        }
    }

    /// Whether it can be killed before it is ready: strace, where it slows the disk, would be in the way.
    pub fn can_be_killed_early(&self) -> bool {
        !self.terms.is_disk_slow || matches!(self.inner, Inner::Bridge(_))
    }

    /// Whether it promises that nothing is lost.
    pub fn promises(&self) -> bool {
        self.kind == Kind::Tidegate
    }

    /// It may have moved to another port at its start.
    fn tell_front(&self) {
        if let (Some(front), Inner::Gateway(gateway)) = (&self.front, &self.inner) {
            front.target.store(gateway.port, Ordering::Relaxed);
        }
    }
}

const SLOW_DISK: [&str; 11] = [
    "strace",
    "-f",
    "--seccomp-bpf",
    "-o",
    "/dev/null",
    "-e",
    "trace=pwrite64",
    "-e",
    "inject=pwrite64:delay_enter=3000",
    "setpriv",
    "--pdeathsig=KILL",
];

fn tables(line: u16, terms: &Terms) -> String {
    let mut more = format!("protocol = \"{}\"", terms.protocol);
    if let Some(pace) = terms.pace {
        more += &format!("\npace = {{ messages_per_s = {pace} }}");
    }
    uplink(&format!("mqtt://127.0.0.1:{line}"), &more) + FORWARD_PLANT
}

/// Mosquitto as the gateway: a local broker with persistence, and a bridge to the cloud.
struct Bridge {
    port: u16,
    config: PathBuf,
    process: Option<Process>,
}

impl Bridge {
    fn prepared(folder: &Path, line: u16, terms: &Terms, saves: bool) -> Bridge {
        let folder = folder.join("bridge");
        fs::create_dir_all(&folder).unwrap();
        let port = port::free();
        let me = std::process::Command::new("id").arg("-un").output().unwrap().stdout;
        let me = String::from_utf8(me).unwrap();
        let version = if terms.protocol == "5" { "mqttv50" } else { "mqttv311" };
        // No bound of its queue is to blame for what a kill loses.
        let mut text = format!(
            "user {}\nlistener {port} 127.0.0.1\nallow_anonymous true\n\
             persistence true\npersistence_location {}/\nmax_queued_messages 0\n",
            me.trim(),
            folder.display()
        );
        if saves {
            text += "autosave_interval 1\nautosave_on_changes true\n";
        }
        text += &format!(
            "connection cloud\naddress 127.0.0.1:{line}\nbridge_protocol_version {version}\ncleansession false\n\
             topic plant/# out 2 \"\" factory7/\nrestart_timeout 1 1\nnotifications false\n"
        );
        let config = folder.join("mosquitto.conf");
        fs::write(&config, text).unwrap();
        Bridge { port, config, process: None }
    }

    fn spawn(&mut self) {
        assert!(self.process.is_none(), "Mosquitto runs already");
        self.process = Some(Process::start("bridge", "mosquitto", &["-c".as_ref(), self.config.as_os_str()]));
    }

    fn start(&mut self) {
        self.spawn();
        let process = self.process.as_mut().expect("it was just started");
        let port = self.port;
        wait_until(PATIENCE, "the bridge listens", || {
            if let Some(status) = process.status() {
                panic!("Mosquitto ended ({status}): {:?}", process.stderr());
            }
            port::is_served_by(port, process.id()).then_some(()).ok_or_else(|| "it does not yet".to_owned())
        });
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            process.signal(Signal::TERM);
        }
    }
}

/// Stands before a gateway and says PUBACK, PUBREC and PUBCOMP by itself as soon as it has read what they answer: what
/// a broker does that acknowledges before it stores. Everything else passes.
struct Front {
    port: u16,
    target: Arc<AtomicU16>,
}

impl Front {
    fn opened() -> Front {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Arc::new(AtomicU16::new(0));
        let front = Front { port, target: Arc::clone(&target) };
        // It ends with the test process.
        std::thread::spawn(move || {
            for near in listener.incoming().filter_map(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", target.load(Ordering::Relaxed))) else { continue };
                let (near_back, far_back) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || Front::up(near, far));
                std::thread::spawn(move || Front::down(far_back, near_back));
            }
        });
        front
    }

    fn up(mut near: TcpStream, mut far: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        let mut frames = Frames::default();
        while let Ok(count) = near.read(&mut buffer) {
            frames.push(&buffer[..count]);
            let mut answers = Vec::new();
            while let Some((first, body)) = frames.next() {
                let id_at = match first & 0xf0 {
                    0x30 => 2 + usize::from(u16::from_be_bytes([body[0], body[1]])),
                    0x60 => 0,
                    _ => continue,
                };
                let answer = match first & 0xf6 {
                    0x32 => 0x40,
                    0x34 => 0x50,
                    0x62 => 0x70,
                    _ => continue,
                };
                answers.extend(packet(answer, &body[id_at..id_at + 2]));
            }
            if count == 0 || near.write_all(&answers).is_err() || far.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        near.shutdown(Shutdown::Both).ok();
        far.shutdown(Shutdown::Both).ok();
    }

    fn down(mut far: TcpStream, mut near: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        let mut frames = Frames::default();
        while let Ok(count) = far.read(&mut buffer) {
            frames.push(&buffer[..count]);
            let mut passed = Vec::new();
            while let Some((first, body)) = frames.next() {
                if !matches!(first & 0xf0, 0x40 | 0x50 | 0x70) {
                    passed.extend(packet(first, &body));
                }
            }
            if count == 0 || near.write_all(&passed).is_err() {
                break;
            }
        }
        near.shutdown(Shutdown::Both).ok();
        far.shutdown(Shutdown::Both).ok();
    }
}
