//! Debian's Mosquitto as the cloud: plain, with a password, with TLS, with client certificates; with persistence.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::certificates::Certificates;
use super::process::Process;
use super::{PATIENCE, port, wait_until};

/// One Mosquitto on a loopback port that stays its own over stops and kills.
pub struct Mosquitto {
    folder: PathBuf,
    /// The plain port, for whoever counts what arrived.
    pub port: u16,
    /// The port with TLS, where there is one.
    pub tls_port: Option<u16>,
    access: Access,
    more: String,
    tls_more: String,
    process: Option<Process>,
}

/// Who may connect.
pub enum Access {
    /// Everybody.
    Open,
    /// One user with one password.
    Password { user: &'static str, password: &'static str },
    /// Everybody on the plain port; the port with TLS shows this certificate, and asks for one if so told.
    Tls { certificates: Certificates, asks_for_client: bool },
}

impl Mosquitto {
    /// One that everybody may use, running.
    pub fn started(folder: &Path) -> Mosquitto {
        let mut cloud = Mosquitto::prepared(folder, Access::Open);
        cloud.start();
        cloud
    }

    /// One that is not started yet: its port refuses connections.
    pub fn prepared(folder: &Path, access: Access) -> Mosquitto {
        let folder = folder.join("mosquitto");
        fs::create_dir_all(&folder).unwrap();
        let tls_port = matches!(access, Access::Tls { .. }).then(port::free);
        Mosquitto {
            folder,
            port: port::free(),
            tls_port,
            access,
            more: String::new(),
            tls_more: String::new(),
            process: None,
        }
    }

    /// Adds a line to its configuration from the next start on.
    pub fn configure(&mut self, line: &str) {
        self.more += line;
        self.more.push('\n');
    }

    /// The same for the port with TLS alone.
    pub fn configure_tls(&mut self, line: &str) {
        self.tls_more += line;
        self.tls_more.push('\n');
    }

    /// Starts it with what it has kept, and waits until this very process listens.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "Mosquitto runs already");
        let config = self.write_config();
        let process = Process::start("mosquitto", "mosquitto", &["-c".as_ref(), config.as_os_str()]);
        let process = self.process.insert(process);
        let ports: Vec<u16> = std::iter::once(self.port).chain(self.tls_port).collect();
        wait_until(PATIENCE, "Mosquitto listens", || {
            if let Some(status) = process.status() {
                panic!("Mosquitto ended ({status}): {:?}", process.stderr());
            }
            let id = process.id();
            ports.iter().all(|port| port::is_served_by(*port, id)).then_some(()).ok_or("it does not yet".to_owned())
        });
    }

    /// Stops it in order: it keeps sessions and messages in its file.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("Mosquitto runs");
        process.signal(Signal::TERM);
        let status = process.wait(PATIENCE);
        assert!(status.success() || status.signal() == Some(Signal::TERM.as_raw()), "Mosquitto stopped with {status}");
    }

    /// Stops answering without closing anything, as a line that is cut.
    pub fn freeze(&mut self) {
        self.process.as_mut().expect("Mosquitto runs").signal(Signal::STOP);
    }

    /// Answers again.
    pub fn thaw(&mut self) {
        self.process.as_mut().expect("Mosquitto runs").signal(Signal::CONT);
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::transcript).unwrap_or_default()
    }

    fn write_config(&self) -> PathBuf {
        let folder = self.folder.display();
        let me = Command::new("id").arg("-un").output().unwrap().stdout;
        let me = String::from_utf8(me).unwrap();
        // As root Mosquitto would become another user and could not read the test's folder.
        let mut text = format!(
            "user {}\npersistence true\npersistence_location {folder}/\nmax_queued_messages 0\nconnection_messages true\n",
            me.trim()
        );
        text += "log_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\nlog_type information\n";
        match &self.access {
            Access::Open | Access::Tls { .. } => text += "allow_anonymous true\n",
            Access::Password { user, password } => {
                let file = self.folder.join("passwords");
                fs::write(&file, format!("{user}:{password}\n")).unwrap();
                let made = Command::new("mosquitto_passwd").arg("-U").arg(&file).status().unwrap();
                assert!(made.success(), "mosquitto_passwd failed");
                text += &format!("allow_anonymous false\npassword_file {}\n", file.display());
            }
        }
        text += &self.more;
        text += &format!("listener {} 127.0.0.1\n", self.port);
        if let (Access::Tls { certificates, asks_for_client }, Some(tls_port)) = (&self.access, self.tls_port) {
            let Certificates { ca, server_cert, server_key, .. } = certificates;
            text += &format!(
                "listener {tls_port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n",
                ca.display(),
                server_cert.display(),
                server_key.display()
            );
            text += &self.tls_more;
            text += &format!("require_certificate {asks_for_client}\nuse_identity_as_username {asks_for_client}\n");
        }
        let path = self.folder.join("mosquitto.conf");
        fs::write(&path, text).unwrap();
        path
    }
}
