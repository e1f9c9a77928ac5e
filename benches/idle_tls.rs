//! What idle TLS clients cost in memory, beside Mosquitto, in turn, in one run.
//!
//! ```text
//! cargo bench --bench idle_tls                    3 rounds of 100 clients, then 1,000 on the gateway alone
//! cargo bench --bench idle_tls -- --rounds 5      more of them
//! cargo bench --bench idle_tls -- --clients 5000  another number at the end
//! ```
//!
//! It needs Debian's mosquitto and nothing else, uses loopback only, and stops by itself. Every client makes a TLS 1.3
//! handshake, sends CONNECT and SUBSCRIBE, hears both answers, and says nothing more: a dashboard in the night. What is
//! counted is what the kernel says is resident (VmRSS) after all have come, less what it was before the first.
#![allow(clippy::disallowed_methods, reason = "a harness of plain threads measures by the system's clock")]

mod program;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use program::{Running, as_f64, find_program, free_address, gateway, loopback, median, mosquitto, other};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Those that are compared.
const CLIENTS: usize = 100;
/// After the last client: what is under way ends.
const SETTLE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match harness() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("idle_tls: {error}");
            ExitCode::FAILURE
        }
    }
}

fn harness() -> io::Result<()> {
    let (rounds, most) = options()?;
    raise_limits();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("idle_tls-{}", std::process::id()));
    let _absent = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let client = certificates(&dir)?;
    let mut systems = vec![System::Gateway];
    match find_program("mosquitto") {
        Some(program) => systems.push(System::Mosquitto(program)),
        None => println!("mosquitto is not installed: the gateway runs alone, and there are no ratios"),
    }
    for system in &systems {
        println!("# Configuration of {}\n{}", system.name(), system.configuration(Path::new("DIRECTORY"), loopback(1)));
    }
    if cfg!(debug_assertions) {
        println!("The gateway was built without optimisation: these figures show that the harness works, no more.");
    }
    println!("           round clients idle MB  with them MB  MB per 100");
    let mut found: Vec<(&str, u32, f64)> = Vec::new();
    for round in 1..=rounds {
        // Who goes first changes, so that what one leaves behind meets both.
        let mut turn: Vec<&System> = systems.iter().collect();
        if round % 2 == 0 {
            turn.reverse();
        }
        for system in turn {
            let (before, after) = measure(system, &dir, &client, CLIENTS)?;
            tell(system.name(), round, CLIENTS, before, after);
            found.push((system.name(), round, after - before));
        }
    }
    let (before, after) = measure(&System::Gateway, &dir, &client, most)?;
    tell(System::Gateway.name(), 1, most, before, after);
    let of = |name: &str, round| found.iter().find(|entry| (entry.0, entry.1) == (name, round)).map(|entry| entry.2);
    let ratios: Vec<f64> =
        (1..=rounds).filter_map(|round| Some(of("tidegate", round)? / of("mosquitto", round)?)).collect();
    if !ratios.is_empty() {
        let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        let median = median(ratios);
        println!(
            "\n{CLIENTS} idle TLS clients: tidegate ÷ mosquitto by round {} → median {median:.2}",
            each.join(", ")
        );
    }
    fs::remove_dir_all(&dir)
}

fn tell(name: &str, round: u32, clients: usize, before: f64, after: f64) {
    let each = (after - before) * 100.0 / as_f64(clients as u64);
    println!("{name:10} {round:>5} {clients:>7} {before:>7.1} {after:>13.1} {each:>11.2}");
}

fn options() -> io::Result<(u32, usize)> {
    let (mut rounds, mut most) = (3, 1000);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = |max: u32| {
            let value = arguments.next().and_then(|text| text.parse().ok()).filter(|value| (1..=max).contains(value));
            value.ok_or_else(|| other(format!("{argument} wants a number from 1 to {max}")))
        };
        match argument.as_str() {
            "--rounds" => rounds = number(20)?,
            "--clients" => most = number(10_000)? as usize,
            // cargo bench says this to every harness.
            "--bench" => {}
            _ => return Err(other(format!("unknown option {argument}; there are --rounds and --clients"))),
        }
    }
    Ok((rounds, most))
}

/// As many descriptors as the system lets us have: the gateway inherits that.
fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // What there is has to do; the first socket too many tells.
    let _less = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// An authority, and a certificate by it for localhost as `server.pem` and `server.key`; and a client that trusts it.
fn certificates(dir: &Path) -> io::Result<Arc<ClientConfig>> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |error: rcgen::Error| other(error.to_string());
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let mut authority = rcgen::CertificateParams::new(Vec::new()).map_err(failed)?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = authority.self_signed(&key).map_err(failed)?;
    let issuer = rcgen::Issuer::new(authority, key);
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).map_err(failed)?;
    let server = server.signed_by(&key, &issuer).map_err(failed)?;
    for (name, text) in [("server.pem", server.pem()), ("server.key", key.serialize_pem())] {
        fs::write(dir.join(name), text)?;
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600))?;
    }
    let mut roots = RootCertStore::empty();
    roots.add(root.der().clone()).map_err(|error| other(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = config.map_err(|error| other(error.to_string()))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

// ---- the two programs ----------------------------------------------------------------------------------------------

enum System {
    Gateway,
    Mosquitto(PathBuf),
}

impl System {
    fn name(&self) -> &'static str {
        match self {
            System::Gateway => "tidegate",
            System::Mosquitto(_) => "mosquitto",
        }
    }

    fn configuration(&self, dir: &Path, broker: SocketAddr) -> String {
        let dir = dir.display();
        match self {
            System::Gateway => format!(
                "[gateway]\nid = \"bench\"\nstate_dir = \"{dir}/state\"\nclock = \"trust\"\n\n[broker.limits]\n\
                 connections = 12000\n\n[broker.listener.local]\nbind = \"{broker}\"\n\
                 tls = {{ cert = \"{dir}/server.pem\", key = \"{dir}/server.key\" }}\n",
            ),
            System::Mosquitto(_) => format!(
                "listener {} {}\ncertfile {dir}/server.pem\nkeyfile {dir}/server.key\nallow_anonymous true\n\
                 persistence false\nuser root\n",
                broker.port(),
                broker.ip(),
            ),
        }
    }

    fn start(&self, dir: &Path, broker: SocketAddr) -> io::Result<Running> {
        let command = match self {
            System::Gateway => gateway(),
            System::Mosquitto(program) => mosquitto(program),
        };
        Running::start(command, &self.configuration(dir, broker), dir, broker)
    }
}

// ---- one measurement -----------------------------------------------------------------------------------------------

type Client = StreamOwned<ClientConnection, TcpStream>;

/// What is resident before the first client and with all of them, in MB.
fn measure(system: &System, dir: &Path, config: &Arc<ClientConfig>, clients: usize) -> io::Result<(f64, f64)> {
    let _absent = fs::remove_dir_all(dir.join("state"));
    let broker = free_address()?;
    let running = system.start(dir, broker)?;
    let resident = || Ok::<_, io::Error>(as_f64(running.usage()?.rss_bytes) / 1e6);
    // One comes and goes: what every program loads with its first client is not the clients'.
    drop(enter(broker, config, "first")?);
    sleep(SETTLE);
    let before = resident()?;
    let there: io::Result<Vec<Client>> =
        (0..clients).map(|place| enter(broker, config, &format!("c{place}"))).collect();
    let there = there?;
    sleep(SETTLE);
    let after = resident()?;
    drop(there);
    Ok((before, after))
}

/// CONNECT 3.1.1, clean session, keep-alive off; SUBSCRIBE to a topic of its own and one of all.
fn enter(broker: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> io::Result<Client> {
    let server = ServerName::try_from("localhost").map_err(|error| other(error.to_string()))?;
    let connection = ClientConnection::new(config.clone(), server).map_err(|error| other(error.to_string()))?;
    let socket = TcpStream::connect(broker)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut client = StreamOwned::new(connection, socket);
    let length = |bytes: usize| u8::try_from(bytes).unwrap_or(u8::MAX);
    let mut packet = vec![0x10, 12 + length(name.len()), 0, 4];
    packet.extend_from_slice(b"MQTT\x04\x02\0\0\0");
    packet.push(length(name.len()));
    packet.extend_from_slice(name.as_bytes());
    client.write_all(&packet)?;
    expect(&mut client, &[0x20, 2, 0, 0])?;
    let mut packet = vec![0x82, 2 + 3 + 6 + 3 + length(name.len()), 0, 1];
    packet.extend_from_slice(b"\0\x06status\0\0");
    packet.push(length(name.len()));
    packet.extend_from_slice(name.as_bytes());
    packet.push(0);
    client.write_all(&packet)?;
    expect(&mut client, &[0x90, 4, 0, 1, 0, 0])?;
    Ok(client)
}

fn expect(client: &mut Client, expected: &[u8]) -> io::Result<()> {
    let mut answer = vec![0; expected.len()];
    client.read_exact(&mut answer)?;
    if answer != expected { Err(other(format!("{answer:?} instead of {expected:?}"))) } else { Ok(()) }
}
