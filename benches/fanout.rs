//! The local broker beside Mosquitto, in turn, in one run: one publisher to 50 subscribers, and 50 to one.
//!
//! ```text
//! cargo bench --bench fanout                     3 rounds, QoS 0 and 1, both shapes
//! cargo bench --bench fanout -- --rounds 5       more of them
//! cargo bench --bench fanout -- --messages 2000  a quick look
//! ```
//!
//! It needs Debian's mosquitto and nothing else, uses loopback only, and stops by itself: every wait has a deadline.
//! Clients are raw sockets with hand-written packets, so that what is measured is the program between them. A publisher
//! never runs further ahead of the slowest subscriber than a window, at QoS 0 too: neither program has to drop anything,
//! and both are asked for the same work. At QoS 1 all sides acknowledge. Nothing is kept here: no session that lasts, no
//! rule, no retained message, so neither program touches the disk.
//!
//! Read ratios, not rates: neighbours in time share the machine's noise, and the clients take their part of it.
#![allow(clippy::disallowed_methods, reason = "a harness of plain threads measures by the system's clock")]

mod program;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use program::{Running, Use, as_f64, find_program, free_address, gateway, loopback, median, mosquitto, other};

const MANY: usize = 50;
const PAYLOAD_BYTES: usize = 100;
/// How far all publishers together may be ahead of a subscriber.
const WINDOW: u64 = 500;
/// Of one publisher, before it waits for acknowledgements.
const UNACKNOWLEDGED: usize = 64;
/// One measurement of one program.
const PHASE_TIMEOUT: Duration = Duration::from_secs(180);
fn main() -> ExitCode {
    match harness() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fanout: {error}");
            ExitCode::FAILURE
        }
    }
}

fn harness() -> io::Result<()> {
    let options = Options::from_arguments()?;
    let mut systems = vec![System::Gateway];
    match find_program("mosquitto") {
        Some(program) => systems.push(System::Mosquitto(program)),
        None => println!("mosquitto is not installed: the gateway runs alone, and there are no ratios"),
    }
    for system in &systems {
        println!("# Configuration of {}\n{}", system.name(), system.configuration(Path::new("DIRECTORY"), loopback(1)));
    }
    let Options { rounds, messages } = options;
    println!("{messages} deliveries of {PAYLOAD_BYTES} bytes in each measurement, {rounds} rounds");
    if cfg!(debug_assertions) {
        println!("The gateway was built without optimisation: these figures show that the harness works, no more.");
    }
    println!("\n           round shape    QoS deliveries/s CPU-s/100k  RSS MB");
    let mut runs = Vec::new();
    for round in 1..=rounds {
        for shape in [Shape::OneToMany, Shape::ManyToOne] {
            for qos in [0, 1] {
                // Who goes first changes, so that what one leaves behind meets both.
                let mut turn: Vec<&System> = systems.iter().collect();
                if round % 2 == 0 {
                    turn.reverse();
                }
                for system in turn {
                    let run = measure(system, round, shape, qos, messages)?;
                    println!("{run}");
                    runs.push(run);
                }
            }
        }
    }
    print!("\n{}", summary(&runs, rounds));
    Ok(())
}

struct Options {
    rounds: u32,
    messages: u64,
}

impl Options {
    fn from_arguments() -> io::Result<Options> {
        let mut options = Options { rounds: 3, messages: 500_000 };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = |max: u64| {
                let value =
                    arguments.next().and_then(|text| text.parse().ok()).filter(|value| (1..=max).contains(value));
                value.ok_or_else(|| other(format!("{argument} wants a number from 1 to {max}")))
            };
            match argument.as_str() {
                "--rounds" => options.rounds = u32::try_from(number(20)?).unwrap_or(3),
                "--messages" => options.messages = number(10_000_000)?,
                // cargo bench says this to every harness.
                "--bench" => {}
                _ => return Err(other(format!("unknown option {argument}; there are --rounds and --messages"))),
            }
        }
        Ok(options)
    }
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
        match self {
            System::Gateway => format!(
                "[gateway]\nid = \"bench\"\nstate_dir = \"{}\"\nclock = \"trust\"\n\n[broker.listener.local]\nbind = \"{broker}\"\n",
                dir.display(),
            ),
            // Its queue without a bound, and as many messages on their way as ours: it is not to drop anything either.
            System::Mosquitto(_) => format!(
                "listener {} {}\nallow_anonymous true\npersistence false\nmax_queued_messages 0\nmax_inflight_messages 100\n\
                 set_tcp_nodelay true\n",
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    OneToMany,
    ManyToOne,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Shape::OneToMany => "1 -> 50",
            Shape::ManyToOne => "50 -> 1",
        }
    }

    fn counts(self) -> (usize, usize) {
        match self {
            Shape::OneToMany => (1, MANY),
            Shape::ManyToOne => (MANY, 1),
        }
    }
}

struct Run {
    system: &'static str,
    round: u32,
    shape: Shape,
    qos: u8,
    per_s: f64,
    cpu: f64,
    rss_mb: f64,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Run { system, round, shape, qos, per_s, cpu, rss_mb } = self;
        write!(f, "{system:10} {round:>5} {:8} {qos:>3} {per_s:>12.0} {cpu:>10.2} {rss_mb:>7.1}", shape.name())
    }
}

/// What all clients of a measurement see.
struct Board {
    /// How many messages each subscriber has got.
    got: Vec<AtomicU64>,
    sent: AtomicU64,
    is_over: AtomicBool,
}

impl Board {
    fn slowest(&self) -> u64 {
        self.got.iter().map(|got| got.load(Ordering::Relaxed)).min().unwrap_or(0)
    }
}

fn measure(system: &System, round: u32, shape: Shape, qos: u8, deliveries: u64) -> io::Result<Run> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fanout-{}", std::process::id()));
    let _absent = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let broker = free_address()?;
    let running = system.start(&dir, broker)?;
    let (publishers, subscribers) = shape.counts();
    let messages = deliveries / subscribers as u64;
    let got = (0..subscribers).map(|_| AtomicU64::new(0)).collect();
    let board = Board { got, sent: AtomicU64::new(0), is_over: AtomicBool::new(false) };
    let (elapsed, cpu_s, rss_mb) = thread::scope(|scope| {
        let mut readers = Vec::new();
        for place in 0..subscribers {
            let socket = connect(broker, &format!("s{place}"))?;
            subscribe(&socket, qos)?;
            let board = &board;
            readers.push(scope.spawn(move || read(socket, place, qos, messages, board)));
        }
        let sockets: io::Result<Vec<TcpStream>> =
            (0..publishers).map(|place| connect(broker, &format!("p{place}"))).collect();
        let before_s = running.usage()?.cpu_s;
        let begin = Instant::now();
        let board = &board;
        for socket in sockets? {
            scope.spawn(move || {
                let end = publish(socket, qos, messages, board);
                if end.is_err() {
                    board.is_over.store(true, Ordering::Relaxed);
                }
                end
            });
        }
        let mut end = Ok(());
        for reader in readers {
            let read = reader.join().unwrap_or_else(|_| Err(other("a subscriber failed".to_owned())));
            if read.is_err() {
                board.is_over.store(true, Ordering::Relaxed);
                end = read;
            }
        }
        let elapsed = begin.elapsed();
        board.is_over.store(true, Ordering::Relaxed);
        end?;
        let Use { cpu_s, rss_bytes, .. } = running.usage()?;
        Ok::<_, io::Error>((elapsed, cpu_s - before_s, as_f64(rss_bytes) / 1e6))
    })?;
    drop(running);
    let _gone = fs::remove_dir_all(&dir);
    let count = as_f64(messages * subscribers as u64);
    let per_s = count / elapsed.as_secs_f64();
    Ok(Run { system: system.name(), round, shape, qos, per_s, cpu: cpu_s * 1e5 / count, rss_mb })
}

/// CONNECT 3.1.1, clean session, keep-alive off.
fn connect(broker: SocketAddr, name: &str) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(broker)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut packet = vec![0x10, 12 + u8::try_from(name.len()).unwrap_or(0), 0, 4];
    packet.extend_from_slice(b"MQTT\x04\x02\0\0\0");
    packet.push(u8::try_from(name.len()).unwrap_or(0));
    packet.extend_from_slice(name.as_bytes());
    socket.write_all(&packet)?;
    let mut connack = [0; 4];
    socket.read_exact(&mut connack)?;
    if connack != [0x20, 2, 0, 0] {
        return Err(other(format!("CONNACK was {connack:?}")));
    }
    Ok(socket)
}

const TOPIC: &[u8] = b"fan/out";

fn subscribe(mut socket: &TcpStream, qos: u8) -> io::Result<()> {
    socket.write_all(&[&b"\x82\x0C\0\x01\0\x07"[..], TOPIC, &[qos]].concat())?;
    let mut suback = [0; 5];
    socket.read_exact(&mut suback)?;
    if suback != [0x90, 3, 0, 1, qos] {
        return Err(other(format!("SUBACK was {suback:?}")));
    }
    Ok(())
}

/// Counts messages until all are there; acknowledges what asks for it.
fn read(mut socket: TcpStream, place: usize, qos: u8, messages: u64, board: &Board) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let begin = Instant::now();
    let mut input = vec![0; 64 * 1024];
    let (mut filled, mut count) = (0, 0);
    let mut output = Vec::new();
    let id_bytes = if qos > 0 { 2 } else { 0 };
    // One byte of length suffices for what is sent here.
    let packet_bytes = 2 + 2 + TOPIC.len() + id_bytes + PAYLOAD_BYTES;
    while count < messages {
        if board.is_over.load(Ordering::Relaxed) || begin.elapsed() > PHASE_TIMEOUT {
            return Err(other(format!("a subscriber has {count} of {messages} messages")));
        }
        let room = input.get_mut(filled..).unwrap_or_default();
        filled += match socket.read(room) {
            Ok(0) => return Err(other(format!("a subscriber was cut off after {count} of {messages} messages"))),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error),
        };
        output.clear();
        let whole = input.get(..filled).unwrap_or_default().chunks_exact(packet_bytes);
        let kept = whole.remainder().len();
        for packet in whole {
            if packet.first() != Some(&(0x30 | qos << 1)) {
                return Err(other(format!("{:?} is no message", packet.get(..4))));
            }
            if let Some(id) = packet.get(4 + TOPIC.len()..6 + TOPIC.len()).filter(|_| qos > 0) {
                output.extend_from_slice(&[0x40, 2]);
                output.extend_from_slice(id);
            }
            count += 1;
        }
        input.copy_within(filled - kept..filled, 0);
        filled = kept;
        if let Some(got) = board.got.get(place) {
            got.store(count, Ordering::Relaxed);
        }
        socket.write_all(&output)?;
    }
    Ok(())
}

/// Publishes its share, not further ahead than the window.
fn publish(mut socket: TcpStream, qos: u8, messages: u64, board: &Board) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut acks = vec![0; 16 * 1024];
    let (mut id, mut open_bytes) = (0_u16, 0_usize);
    loop {
        let mut output = Vec::new();
        while output.len() < 4096 {
            let ahead = board.sent.load(Ordering::Relaxed);
            if ahead >= messages || ahead >= board.slowest() + WINDOW {
                break;
            }
            if board.sent.compare_exchange(ahead, ahead + 1, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                continue;
            }
            let id_bytes = if qos > 0 { 2 } else { 0 };
            let length = 2 + TOPIC.len() + id_bytes + PAYLOAD_BYTES;
            output.extend_from_slice(&[0x30 | qos << 1, u8::try_from(length).unwrap_or(0), 0]);
            output.push(u8::try_from(TOPIC.len()).unwrap_or(0));
            output.extend_from_slice(TOPIC);
            if qos > 0 {
                id = id.checked_add(1).unwrap_or(1);
                output.extend_from_slice(&id.to_be_bytes());
                open_bytes += 4;
            }
            output.resize(output.len() + PAYLOAD_BYTES, b'x');
        }
        let is_last = board.sent.load(Ordering::Relaxed) >= messages || board.is_over.load(Ordering::Relaxed);
        if output.is_empty() && !is_last {
            sleep(Duration::from_micros(200));
            continue;
        }
        socket.write_all(&output)?;
        // All of them at the end: a socket that is closed with bytes unread takes with it what was written last.
        let tolerated = if is_last { 0 } else { 4 * UNACKNOWLEDGED };
        // PUBACK of 3.1.1 has four bytes and nothing else comes: counting bytes is counting acknowledgements.
        while open_bytes > tolerated {
            let read = socket.read(&mut acks)?;
            if read == 0 {
                return Err(other("a publisher was cut off".to_owned()));
            }
            open_bytes = open_bytes.saturating_sub(read);
        }
        if is_last {
            return Ok(());
        }
    }
}

// ---- what comes of it ----------------------------------------------------------------------------------------------

/// The figures that are compared.
type Figure = (&'static str, fn(&Run) -> f64);

const FIGURES: [Figure; 3] = [("deliveries/s", |run| run.per_s), ("CPU", |run| run.cpu), ("RSS", |run| run.rss_mb)];

fn summary(runs: &[Run], rounds: u32) -> String {
    let mut text = String::new();
    for shape in [Shape::OneToMany, Shape::ManyToOne] {
        for qos in [0, 1] {
            let find = |system: &str, round: u32| {
                runs.iter()
                    .find(|run| run.system == system && run.shape == shape && run.qos == qos && run.round == round)
            };
            for (name, figure) in FIGURES {
                let pair = |round| Some(figure(find("tidegate", round)?) / figure(find("mosquitto", round)?));
                let ratios: Vec<f64> = (1..=rounds).filter_map(pair).collect();
                if ratios.is_empty() {
                    continue;
                }
                let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
                writeln!(
                    text,
                    "{} QoS {qos}: {name:12} tidegate ÷ mosquitto by round {} → median {:.2}",
                    shape.name(),
                    each.join(", "),
                    median(ratios),
                )
                // Writing to a String cannot fail.
                .unwrap_or_default();
            }
        }
    }
    text
}
