//! The gateway beside Mosquitto's bridge, in turn, in one run: accept while the cloud is absent, then drain.
//!
//! ```text
//! cargo bench --bench bridge                     3 rounds of 100,000 messages at windows 100 and 1000
//! cargo bench --bench bridge -- --rounds 5       what the README quotes
//! cargo bench --bench bridge -- --messages 20000 a quick look
//! cargo bench --bench bridge -- --window 1       one window instead of the two
//! cargo bench --bench bridge -- --round-trip 50  the cloud acknowledges so many milliseconds later
//! cargo bench --bench bridge -- --backlog 1000000
//!                                                the gateway alone, started again with nothing queued and with so much
//! ```
//!
//! It needs Debian's mosquitto and nothing else, uses loopback only, and stops by itself: every wait has a deadline.
//! The publisher and the cloud are raw sockets with hand-written packets, so that what is measured is the program
//! between them: QoS 1, topic of 20 bytes, payload of 200 bytes with a number, a window of unacknowledged messages,
//! refilled as acknowledgements come. The cloud acknowledges at once and counts numbers.
//!
//! The gateway syncs every message to disk before it acknowledges; the bridge keeps them in memory (persistence is
//! off, which is its fastest). Read ratios, not rates: neighbours in time share the machine's noise.
#![allow(clippy::disallowed_methods, reason = "a harness of plain threads measures by the system's clock")]

mod program;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use program::{Running, Use, as_f64, find_program, free_address, gateway, loopback, median, mosquitto, other};

const TOPIC: &str = "plant/press-3/counts";
const PAYLOAD_BYTES: usize = 200;
const NUMBER_DIGITS: usize = 16;
const WINDOWS: [usize; 2] = [100, 1000];
/// Of the gateway and the bridge towards the cloud.
const UPLINK_WINDOW: usize = 1000;

/// One phase of one program.
const PHASE_TIMEOUT: Duration = Duration::from_secs(180);
/// When nothing has arrived at the cloud for so long, what is missing will not come.
const QUIET: Duration = Duration::from_secs(10);
/// Before a look at memory and CPU.
const SETTLE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match harness() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bridge: {error}");
            ExitCode::FAILURE
        }
    }
}

fn harness() -> io::Result<()> {
    let options = Options::from_arguments()?;
    let mut systems = vec![System::Gateway];
    if options.backlog.is_none() {
        match find_program("mosquitto") {
            Some(program) => systems.push(System::Bridge(program)),
            None => println!("mosquitto is not installed: the gateway runs alone, and there are no ratios"),
        }
    }
    let example = Place { dir: PathBuf::from("DIRECTORY"), broker: loopback(1), cloud: loopback(2) };
    for system in &systems {
        println!("# Configuration of {}\n{}", system.name(), system.configuration(&example));
    }
    let Options { rounds, messages, .. } = options;
    println!("{messages} messages of {PAYLOAD_BYTES} + {} bytes, {rounds} rounds", TOPIC.len());
    if !options.round_trip.is_zero() {
        println!("The cloud acknowledges after {:?}.", options.round_trip);
    }
    if cfg!(debug_assertions) {
        println!("The gateway was built without optimisation: these figures show that the harness works, no more.");
    }
    println!("\n{}", Run::HEADING);
    let mut runs = Vec::new();
    for round in 1..=rounds {
        for window in options.windows.iter().copied() {
            // Who goes first changes, so that what one leaves behind in caches and on the disk meets both.
            let mut turn: Vec<(&System, Option<u64>)> = match options.backlog {
                None => systems.iter().map(|system| (system, None)).collect(),
                Some(backlog) => systems.iter().flat_map(|one| [(one, Some(0)), (one, Some(backlog))]).collect(),
            };
            if round % 2 == 0 {
                turn.reverse();
            }
            for (system, backlog) in turn {
                let run = measure(system, round, window, backlog, &options)?;
                println!("{run}");
                runs.push(run);
            }
        }
    }
    match options.backlog {
        None => print!("\n{}", summary(&runs, &options)),
        Some(backlog) => print!("\n{}", backlog_summary(&runs, backlog, &options)),
    }
    Ok(())
}

// ---- what is asked for ---------------------------------------------------------------------------------------------

struct Options {
    rounds: u32,
    messages: u64,
    windows: Vec<usize>,
    round_trip: Duration,
    backlog: Option<u64>,
}

impl Options {
    fn from_arguments() -> io::Result<Options> {
        let (windows, round_trip) = (WINDOWS.to_vec(), Duration::ZERO);
        let mut options = Options { rounds: 3, messages: 100_000, windows, round_trip, backlog: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = |range: std::ops::RangeInclusive<u64>| {
                let value = arguments.next().and_then(|text| text.parse().ok()).filter(|value| range.contains(value));
                value.ok_or_else(|| {
                    other(format!("{argument} wants a number from {} to {}", range.start(), range.end()))
                })
            };
            match argument.as_str() {
                "--rounds" => options.rounds = u32::try_from(number(1..=20)?).unwrap_or(3),
                "--messages" => options.messages = number(1_000..=1_000_000)?,
                "--window" => options.windows = vec![usize::try_from(number(1..=10_000)?).unwrap_or(1)],
                "--round-trip" => options.round_trip = Duration::from_millis(number(1..=1_000)?),
                "--backlog" => options.backlog = Some(number(1_000..=10_000_000)?),
                // cargo bench says this to every harness.
                "--bench" => {}
                _ => {
                    let known = "--rounds, --messages, --window, --round-trip and --backlog, each with a number";
                    return Err(other(format!("unknown option {argument}; there are {known}")));
                }
            }
        }
        Ok(options)
    }
}

// ---- the two programs ----------------------------------------------------------------------------------------------

enum System {
    Gateway,
    Bridge(PathBuf),
}

struct Place {
    dir: PathBuf,
    broker: SocketAddr,
    cloud: SocketAddr,
}

impl System {
    fn name(&self) -> &'static str {
        match self {
            System::Gateway => "tidegate",
            System::Bridge(_) => "mosquitto",
        }
    }

    fn configuration(&self, place: &Place) -> String {
        let Place { dir, broker, cloud } = place;
        match self {
            System::Gateway => format!(
                "[gateway]\nid = \"bench\"\nstate_dir = \"{}\"\nclock = \"trust\"\n\n\
                 [broker.listener.local]\nbind = \"{broker}\"\n\n\
                 [uplink.cloud]\nurl = \"mqtt://{cloud}\"\nwindow = {UPLINK_WINDOW}\n\
                 reconnect = {{ first = \"200ms\", max = \"1s\" }}\nown_topic = \"\"\n\
                 [[uplink.cloud.forward]]\nfilter = \"plant/#\"\n",
                dir.display(),
            ),
            System::Bridge(_) => format!(
                "listener {} {}\nallow_anonymous true\npersistence false\n\
                 max_queued_messages 0\nmax_inflight_messages {UPLINK_WINDOW}\n\
                 connection cloud\naddress {cloud}\nremote_clientid bench\ncleansession false\n\
                 restart_timeout 1\nnotifications false\ntry_private false\ntopic plant/# out 1\n",
                broker.port(),
                broker.ip(),
            ),
        }
    }

    fn start(&self, place: &Place) -> io::Result<Running> {
        let command = match self {
            System::Gateway => gateway(),
            System::Bridge(program) => mosquitto(program),
        };
        Running::start(command, &self.configuration(place), &place.dir, place.broker)
    }
}

// ---- one run -------------------------------------------------------------------------------------------------------

struct Run {
    system: &'static str,
    round: u32,
    window: usize,
    backlog: Option<u64>,
    /// From the start of the process until its port listens.
    start_s: f64,
    accept_per_s: f64,
    drain_per_s: f64,
    /// From the moment the cloud listens to its first message.
    first_s: f64,
    accept_cpu: f64,
    drain_cpu: f64,
    accept_written: f64,
    both_written: f64,
    rss_idle: f64,
    rss_queued: f64,
    rss_drained: f64,
    lost: u64,
    repeated: u64,
}

fn measure(system: &System, round: u32, window: usize, backlog: Option<u64>, options: &Options) -> io::Result<Run> {
    let Options { messages, round_trip, .. } = *options;
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bridge-{}", std::process::id()));
    // What an earlier run left would be drained again.
    let _absent = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let place = Place { broker: free_address()?, cloud: free_address()?, dir };
    if let Some(backlog) = backlog {
        let running = system.start(&place)?;
        publish(place.broker, UPLINK_WINDOW, 0..backlog)?;
        running.stop()?;
    }
    let begin = Instant::now();
    let running = system.start(&place)?;
    let start_s = begin.elapsed().as_secs_f64();
    sleep(SETTLE);
    let idle = running.usage()?;

    let before = backlog.unwrap_or(0);
    let total = before + messages;
    let accepting = publish(place.broker, window, before..total)?;
    sleep(SETTLE);
    let queued = running.usage()?;

    let drained = drain(place.cloud, total, round_trip)?;
    sleep(SETTLE);
    let done = running.usage()?;
    drop(running);
    let _gone = fs::remove_dir_all(&place.dir);

    let drain_count = f64::from(u32::try_from(total).unwrap_or(u32::MAX));
    let count = f64::from(u32::try_from(messages).unwrap_or(u32::MAX));
    let payload = count * 200.0;
    let written = |from: Use, to: Use| as_f64(to.written_bytes - from.written_bytes) / payload;
    let mb = |usage: Use| as_f64(usage.rss_bytes) / 1e6;
    Ok(Run {
        system: system.name(),
        round,
        window,
        backlog,
        start_s,
        accept_per_s: count / accepting.as_secs_f64(),
        drain_per_s: as_f64(drained.distinct) / drained.took.as_secs_f64().max(1e-6),
        first_s: drained.first.as_secs_f64(),
        accept_cpu: (queued.cpu_s - idle.cpu_s) * 1e5 / count,
        drain_cpu: (done.cpu_s - queued.cpu_s) * 1e5 / drain_count,
        accept_written: written(idle, queued),
        both_written: written(idle, done),
        rss_idle: mb(idle),
        rss_queued: mb(queued),
        rss_drained: mb(done),
        lost: total - drained.distinct,
        repeated: drained.repeated,
    })
}

impl Run {
    const HEADING: &str = "           round window  accept/s   drain/s first s  CPU-s/100k  written/payload         RSS MB        lost rep.\n\
                           \u{20}                                                   acc. drain   accept   both  idle queued drained";
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:10} {:>5} {:>6} {:>9.0} {:>9.0} {:>7.2} {:>5.2} {:>5.2}   {:>6.2} {:>6.2} {:>5.1} {:>6.1} {:>7.1} {:>5} {:>4}",
            self.system,
            self.round,
            self.window,
            self.accept_per_s,
            self.drain_per_s,
            self.first_s,
            self.accept_cpu,
            self.drain_cpu,
            self.accept_written,
            self.both_written,
            self.rss_idle,
            self.rss_queued,
            self.rss_drained,
            self.lost,
            self.repeated,
        )
    }
}

/// The figures that are compared, and whether more is better.
type Figure = (&'static str, fn(&Run) -> f64);

const FIGURES: [Figure; 6] = [
    ("accept rate", |run| run.accept_per_s),
    ("drain rate", |run| run.drain_per_s),
    ("CPU of accept", |run| run.accept_cpu),
    ("CPU of drain", |run| run.drain_cpu),
    ("CPU of both", |run| run.accept_cpu + run.drain_cpu),
    ("RSS with all queued", |run| run.rss_queued),
];

fn summary(runs: &[Run], options: &Options) -> String {
    let rounds = options.rounds;
    let mut text = String::new();
    let find = |system: &str, window: usize, round: u32| {
        runs.iter().find(|run| run.system == system && run.window == window && run.round == round)
    };
    for window in options.windows.iter().copied() {
        for (name, figure) in FIGURES {
            let pairs = (1..=rounds).filter_map(|round| {
                let (ours, theirs) = (find("tidegate", window, round)?, find("mosquitto", window, round)?);
                Some(figure(ours) / figure(theirs))
            });
            let ratios: Vec<f64> = pairs.collect();
            if ratios.is_empty() {
                continue;
            }
            let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
            let line = writeln!(
                text,
                "window {window:>4}: {name:20} tidegate ÷ mosquitto by round {} → median {:.2}",
                each.join(", "),
                median(ratios),
            );
            // Writing to a String cannot fail.
            line.unwrap_or_default();
        }
        let ours = || runs.iter().filter(move |run| run.system == "tidegate" && run.window == window);
        writeln!(
            text,
            "window {window:>4}: tidegate alone: written/payload accept {:.2}, both {:.2}; CPU-s/100k {:.2}; RSS idle {:.1} \
             MB, queued {:.1} MB; first message after {:.2} s (medians)",
            median(ours().map(|run| run.accept_written).collect()),
            median(ours().map(|run| run.both_written).collect()),
            median(ours().map(|run| run.accept_cpu + run.drain_cpu).collect()),
            median(ours().map(|run| run.rss_idle).collect()),
            median(ours().map(|run| run.rss_queued).collect()),
            median(ours().map(|run| run.first_s).collect()),
        )
        .unwrap_or_default();
        if !options.round_trip.is_zero() {
            let possible = as_f64(UPLINK_WINDOW as u64) / options.round_trip.as_secs_f64();
            let share = median(ours().map(|run| run.drain_per_s).collect()) / possible * 100.0;
            let line =
                writeln!(text, "window {window:>4}: tidegate drains at {share:.0} % of window ÷ round trip (median)");
            line.unwrap_or_default();
        }
    }
    text
}

/// The gateway with a backlog beside itself without one.
fn backlog_summary(runs: &[Run], backlog: u64, options: &Options) -> String {
    let figures: [Figure; 4] = [
        ("start", |run| run.start_s),
        ("CPU of accept", |run| run.accept_cpu),
        ("CPU of drain", |run| run.drain_cpu),
        ("RSS with all queued", |run| run.rss_queued),
    ];
    let mut text = String::new();
    for window in options.windows.iter().copied() {
        for (name, figure) in figures {
            let of = |wanted: u64| {
                median(runs.iter().filter(|r| r.window == window && r.backlog == Some(wanted)).map(figure).collect())
            };
            let (with, without) = (of(backlog), of(0));
            let line = writeln!(
                text,
                "window {window:>4}: {name:20} with {backlog} queued {with:.3}, with none {without:.3}: {:.2} times, {:+.3} (medians)",
                with / without,
                with - without,
            );
            // Writing to a String cannot fail.
            line.unwrap_or_default();
        }
    }
    text
}

// ---- the publisher -------------------------------------------------------------------------------------------------

/// Publishes messages of these numbers with `window` of them unacknowledged; gives back the time to the last
/// acknowledgement.
fn publish(broker: SocketAddr, window: usize, numbers: Range<u64>) -> io::Result<Duration> {
    let messages = numbers.end - numbers.start;
    let mut socket = TcpStream::connect(broker)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(QUIET))?;
    // CONNECT 3.1.1, clean session, keep-alive off, client id "pub" (MQTT 3.1.1, 3.1).
    socket.write_all(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03pub")?;
    let mut connack = [0; 4];
    socket.read_exact(&mut connack)?;
    if connack != [0x20, 2, 0, 0] {
        return Err(other(format!("CONNACK was {connack:?}")));
    }

    let begin = Instant::now();
    let (mut sent, mut acknowledged, mut rest) = (0, 0, 0);
    let mut output = Vec::new();
    let mut input = vec![0; 64 * 1024];
    while acknowledged < messages {
        output.clear();
        while sent < messages && sent - acknowledged < window as u64 {
            write_publish(&mut output, numbers.start + sent);
            sent += 1;
        }
        socket.write_all(&output)?;
        let read = socket.read(&mut input)?;
        if read == 0 {
            return Err(other("the program closed the publisher's connection".to_owned()));
        }
        // PUBACK of 3.1.1 has four bytes and nothing else comes: counting bytes is counting acknowledgements.
        let bytes = rest + read;
        acknowledged += (bytes / 4) as u64;
        rest = bytes % 4;
        if begin.elapsed() > PHASE_TIMEOUT {
            return Err(other(format!("only {acknowledged} messages were accepted in {PHASE_TIMEOUT:?}")));
        }
    }
    Ok(begin.elapsed())
}

/// PUBLISH, QoS 1 (MQTT 3.1.1, 3.3).
fn write_publish(output: &mut Vec<u8>, number: u64) {
    let length = 2 + TOPIC.len() + 2 + PAYLOAD_BYTES;
    output.push(0x32);
    // Between 128 and 16,383: two bytes (MQTT 3.1.1, 2.2.3).
    output.extend([(length % 128) as u8 | 0x80, (length / 128) as u8]);
    output.extend([0, TOPIC.len() as u8]);
    output.extend(TOPIC.as_bytes());
    let packet_id = (number % 65_535) as u16 + 1;
    output.extend(packet_id.to_be_bytes());
    output.extend(format!("{number:0NUMBER_DIGITS$x}").as_bytes());
    // Not compressible, as readings packed by a device would be.
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for _ in 0..(PAYLOAD_BYTES - NUMBER_DIGITS) / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        output.extend(state.to_le_bytes());
    }
}

// ---- the cloud -----------------------------------------------------------------------------------------------------

struct Drained {
    distinct: u64,
    repeated: u64,
    /// From the first message to the last.
    took: Duration,
    /// From the moment the cloud listens to the first message.
    first: Duration,
}

/// Listens, acknowledges everything after `round_trip`, and counts numbers until all have come or nothing comes any
/// more.
fn drain(address: SocketAddr, messages: u64, round_trip: Duration) -> io::Result<Drained> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let begin = Instant::now();
    let mut seen = vec![false; usize::try_from(messages).unwrap_or(0)];
    let mut drained = Drained { distinct: 0, repeated: 0, took: Duration::ZERO, first: Duration::ZERO };
    let mut first: Option<Instant> = None;
    let mut last = begin;
    while drained.distinct < messages && last.elapsed() < QUIET && begin.elapsed() < PHASE_TIMEOUT {
        let mut socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(Duration::from_millis(1));
                continue;
            }
            Err(error) => return Err(error),
        };
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(QUIET))?;
        let mut wire = Wire::default();
        let (mut input, mut output) = (vec![0; 256 * 1024], Vec::new());
        let late = if round_trip.is_zero() { None } else { Some(answer_late(socket.try_clone()?, round_trip)) };
        // A connection that fails is followed by the next one, until nothing comes any more.
        while let Ok(read @ 1..) = socket.read(&mut input) {
            wire.pending.extend_from_slice(input.get(..read).unwrap_or_default());
            output.clear();
            wire.take(&mut output, |number| {
                let now = Instant::now();
                first.get_or_insert(now);
                last = now;
                match usize::try_from(number).ok().and_then(|place| seen.get_mut(place)) {
                    Some(slot @ false) => {
                        *slot = true;
                        drained.distinct += 1;
                    }
                    _ => drained.repeated += 1,
                }
            })?;
            let is_answered = match &late {
                Some(late) => late.send((Instant::now(), output.clone())).is_ok(),
                None => socket.write_all(&output).is_ok(),
            };
            if !is_answered || drained.distinct >= messages {
                break;
            }
        }
    }
    if let Some(first) = first {
        drained.took = last - first;
        drained.first = first - begin;
    }
    Ok(drained)
}

/// Writes each answer so long after what it answers has come. The thread ends with the channel or the connection.
fn answer_late(mut socket: TcpStream, round_trip: Duration) -> mpsc::Sender<(Instant, Vec<u8>)> {
    let (sender, answers) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        for (came, answer) in answers {
            sleep((came + round_trip).saturating_duration_since(Instant::now()));
            if socket.write_all(&answer).is_err() {
                break;
            }
        }
    });
    sender
}

/// The cloud's side of one connection: just enough of MQTT 3.1.1 and 5 to be a receiver.
#[derive(Default)]
struct Wire {
    pending: Vec<u8>,
    is_v5: bool,
}

impl Wire {
    /// Takes all whole packets, writes the answers, and gives the number of each message.
    fn take(&mut self, output: &mut Vec<u8>, mut deliver: impl FnMut(u64)) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        while let Some((kind, body, after)) = packet(rest) {
            rest = after;
            match kind >> 4 {
                1 => {
                    // Level 5 is in byte 6, after the name MQTT (MQTT 5.0, 3.1.2.2).
                    self.is_v5 = body.get(6) == Some(&5);
                    output.extend_from_slice(if self.is_v5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] });
                }
                3 => {
                    let (packet_id, payload) =
                        self.publish(kind, body).ok_or_else(|| other("bad PUBLISH".to_owned()))?;
                    let digits = payload.get(..NUMBER_DIGITS).and_then(|digits| std::str::from_utf8(digits).ok());
                    // What bears no number is the program's own, and acknowledged like the rest.
                    if let Some(number) = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
                        deliver(number);
                    }
                    if let Some([high, low]) = packet_id {
                        output.extend([0x40, 2, high, low]);
                    }
                }
                8 | 10 => {
                    let (high, low) = (body.first().copied().unwrap_or(0), body.get(1).copied().unwrap_or(0));
                    let answer = if kind >> 4 == 8 { 0x90 } else { 0xB0 };
                    match (self.is_v5, answer) {
                        (true, _) => output.extend([answer, 4, high, low, 0, 0]),
                        (false, 0x90) => output.extend([answer, 3, high, low, 1]),
                        (false, _) => output.extend([answer, 2, high, low]),
                    }
                }
                12 => output.extend([0xD0, 0]),
                _ => {}
            }
        }
        self.pending = rest.to_vec();
        Ok(())
    }

    /// Packet id and payload of a PUBLISH.
    fn publish<'a>(&self, kind: u8, body: &'a [u8]) -> Option<(Option<[u8; 2]>, &'a [u8])> {
        let topic = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
        let mut rest = body.get(2 + topic..)?;
        let mut packet_id = None;
        if kind & 0b110 != 0 {
            packet_id = Some([*rest.first()?, *rest.get(1)?]);
            rest = rest.get(2..)?;
        }
        if self.is_v5 {
            let (length, after) = variable(rest)?;
            rest = after.get(length..)?;
        }
        Some((packet_id, rest))
    }
}

/// First byte, body, and what comes after; `None` when the packet is not whole yet.
fn packet(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (length, rest) = variable(rest)?;
    let (body, after) = rest.split_at_checked(length)?;
    Some((*kind, body, after))
}

/// A variable byte integer (MQTT 5.0, 1.5.5).
fn variable(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(place + 1..)?));
        }
    }
    None
}
