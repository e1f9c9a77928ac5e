//! Servers with enhanced authentication that know nothing of us: the broker of the crate `mqtt5`, and a strict stand-in on
//! Python's hashlib, which speaks both hashes of SCRAM and cheats when told to.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::peers::{installed, script};
use super::process::Process;
use super::{PATIENCE, port, wait_until};

/// One such broker, which keeps its port and its folder over kills.
pub struct Mqtt5 {
    /// Where it listens. Who comes without enhanced authentication is let in.
    pub port: u16,
    folder: PathBuf,
    door: Vec<String>,
    process: Option<Process>,
    earlier: Vec<String>,
}

impl Mqtt5 {
    /// One that lets `user` in by SCRAM-SHA-256; `iterations` as an owner chooses them.
    pub fn with_scram(folder: &Path, user: &str, password: &str, iterations: u32) -> Mqtt5 {
        let door = ["scram".to_owned(), user.to_owned(), password.to_owned(), iterations.to_string()];
        Mqtt5::prepared(folder, door.to_vec())
    }

    /// One that lets in whoever has a token by this key of P-256, in PEM.
    pub fn with_tokens(folder: &Path, public_pem: &Path) -> Mqtt5 {
        use base64ct::{Base64, Encoding as _};
        let pem = std::fs::read_to_string(public_pem).unwrap();
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = Base64::decode_vec(&body).unwrap();
        // The point stands at the end of what says that it is one (RFC 5480, 2).
        let file = folder.join("public.point");
        std::fs::write(&file, &der[der.len() - 65..]).unwrap();
        Mqtt5::prepared(folder, vec!["jwt".to_owned(), file.display().to_string()])
    }

    fn prepared(folder: &Path, door: Vec<String>) -> Mqtt5 {
        let folder = folder.join("mqtt5");
        std::fs::create_dir_all(&folder).unwrap();
        Mqtt5 { port: port::free(), folder, door, process: None, earlier: Vec::new() }
    }

    /// Starts it and waits until this very process listens.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let mut words = vec![self.port.to_string(), self.folder.display().to_string()];
        words.extend(self.door.iter().cloned());
        let mut process = Process::start("mqtt5-broker", installed("peers/debug/mqtt5-broker"), &words);
        wait_until(PATIENCE, "the broker listens", || {
            if let Some(status) = process.status() {
                panic!("it ended with {status}:\n{}", process.transcript());
            }
            let is_there = port::is_served_by(self.port, process.id());
            if is_there { Ok(()) } else { Err("it does not yet".to_owned()) }
        });
        self.process = Some(process);
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill();
        self.earlier.extend(process.stdout());
    }

    /// What it has told of one kind: who came, by which login, with what outcome, and each message.
    pub fn told(&self, what: &str) -> Vec<Value> {
        let now = self.process.as_ref().map(Process::stdout).unwrap_or_default();
        // The last word of one that was killed may be half a line.
        let told = self.earlier.iter().chain(&now).filter_map(|line| serde_json::from_str::<Value>(line).ok());
        told.filter(|told| told["what"] == what).collect()
    }
}

/// `tests/peers/scram_broker.py`.
pub struct ScramStandIn {
    process: Process,
    /// Where it listens.
    pub port: u16,
}

impl ScramStandIn {
    /// The name that it lets in, with everything that the messages of SCRAM are made of.
    pub const USER: &str = "hall=3,west";

    /// And the password.
    pub const PASSWORD: &str = "correct horse, battery";

    /// `hash` is "sha256" or "sha512"; `mode` is how it cheats, or "honest".
    pub fn started(hash: &str, mode: &str) -> ScramStandIn {
        let mut process = script("scram_broker", &[hash, ScramStandIn::USER, ScramStandIn::PASSWORD, mode]);
        let line = process.wait_for_line(PATIENCE, "its port", |line| line.contains("port"));
        let port = serde_json::from_str::<Value>(&line).unwrap()["port"].as_u64().unwrap();
        ScramStandIn { process, port: u16::try_from(port).unwrap() }
    }

    /// What it has told: packets that came, and clients that were let in or have gone.
    pub fn told(&self) -> Vec<Value> {
        self.process.stdout().iter().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The names of the packets that came.
    pub fn packets(&self) -> Vec<String> {
        self.told().iter().filter_map(|told| told["packet"].as_str().map(str::to_owned)).collect()
    }
}
