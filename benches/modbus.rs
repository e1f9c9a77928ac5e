//! The gateway's Modbus TCP beside libmodbus and pymodbus, in turn, in one run: each asks as fast as it can, one request
//! after the other, and one server by libmodbus answers all of them.
//!
//! ```text
//! cargo bench --bench modbus                   5 rounds of 2 seconds, 125 registers
//! cargo bench --bench modbus -- --rounds 9     more rounds
//! cargo bench --bench modbus -- --registers 10 shorter requests
//! ```
//!
//! It needs Debian's libmodbus-dev and a C compiler, and pymodbus where `./test.sh` has installed it; it uses loopback
//! only and stops by itself. What is measured of the gateway is a line's link, as the gateway and its tools use it: the
//! library, our gate before it with every check of an answer, and the deadlines. Read ratios, not rates: neighbours in
//! time share the machine's noise.
#![allow(clippy::disallowed_methods, reason = "a harness measures by the system's clock")]

mod program;

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use program::{as_f64, free_address, median, other};
use rustix::time::{ClockId, clock_gettime};
use tidegate::config::{LineConfig, LineKind, Table};
use tidegate::field::modbus::probe::{Ask, Probe, Said};

fn main() -> ExitCode {
    match harness() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("modbus: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    rounds: u32,
    registers: u16,
    seconds: u64,
}

impl Options {
    fn from_arguments() -> io::Result<Options> {
        let mut options = Options { rounds: 5, registers: 125, seconds: 2 };
        let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            let value = words.next().and_then(|value| value.parse::<u16>().ok()).filter(|value| *value > 0);
            let value = value.ok_or_else(|| other(format!("{word} needs a number")))?;
            match word.as_str() {
                "--rounds" => options.rounds = u32::from(value),
                "--registers" if value <= 125 => options.registers = value,
                "--seconds" => options.seconds = u64::from(value),
                _ => return Err(other(format!("there is no {word} {value}"))),
            }
        }
        Ok(options)
    }
}

/// What one client did.
#[derive(Clone, Copy)]
struct Done {
    /// Answers a second.
    rate: f64,
    /// Processor time of an answer, in microseconds.
    cpu_us: f64,
}

impl Done {
    fn of(count: u64, seconds: f64, cpu_s: f64) -> Done {
        let count = as_f64(count.max(1));
        Done { rate: count / seconds.max(1e-9), cpu_us: cpu_s * 1e6 / count }
    }
}

fn harness() -> io::Result<()> {
    let options = Options::from_arguments()?;
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let server = compiled(&folder, "libmodbus_server")?;
    let client = compiled(&folder, "libmodbus_client")?;
    let port = free_address()?.port();
    let _server = Server::start(&server, port)?;
    let python = python();
    let mut names = vec!["tidegate", "libmodbus"];
    match &python {
        Some(_) => names.push("pymodbus"),
        None => println!("pymodbus is not installed (./test.sh does it): the others run alone"),
    }
    println!("{} registers a request, {} rounds of {} s", options.registers, options.rounds, options.seconds);
    if cfg!(debug_assertions) {
        println!("Built without optimisation: these figures show that the harness works, no more.");
    }
    let arguments = [port.to_string(), options.registers.to_string(), options.seconds.to_string()];
    let mut rounds: Vec<Vec<Done>> = vec![Vec::new(); names.len()];
    for round in 1..=options.rounds {
        let mut done = vec![gateway(port, &options)?, told(Command::new(&client).args(&arguments))?];
        if let Some(python) = &python {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/modbus_client.py");
            done.push(told(Command::new(python).arg("-B").arg(script).args(&arguments))?);
        }
        let line =
            names.iter().zip(&done).map(|(name, Done { rate, cpu_us })| format!("{name} {rate:.0}/s {cpu_us:.1} µs"));
        println!("round {round}: {}", line.collect::<Vec<_>>().join(", "));
        rounds.iter_mut().zip(done).for_each(|(all, done)| all.push(done));
    }
    let Some((own, peers)) = rounds.split_first() else { return Ok(()) };
    let of = |all: &[Done], what: fn(&Done) -> f64| median(all.iter().map(what).collect());
    for (name, all) in names.iter().zip(&rounds) {
        let (rate, cpu_us) = (of(all, |done| done.rate), of(all, |done| done.cpu_us));
        let per_point = cpu_us / f64::from(options.registers);
        println!("{name}: {rate:.0} requests/s, {cpu_us:.1} µs of CPU a request, {per_point:.3} µs a register");
    }
    for (name, peer) in names.iter().skip(1).zip(peers) {
        for (what, value) in
            [("rate", (|done| done.rate) as fn(&Done) -> f64), ("CPU of a request", |done| done.cpu_us)]
        {
            let ratios: Vec<f64> = own.iter().zip(peer).map(|(own, peer)| value(own) / value(peer)).collect();
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let most = ratios.iter().copied().fold(0.0, f64::max);
            println!("{what}, tidegate ÷ {name}: {:.2} ({least:.2}–{most:.2})", median(ratios));
        }
    }
    Ok(())
}

/// Asks by the gateway's own link, on one thread.
fn gateway(port: u16, options: &Options) -> io::Result<Done> {
    let timeout = Duration::from_secs(5);
    let line = LineConfig::new(LineKind::Tcp { host: "127.0.0.1".to_owned(), port }, timeout);
    let ask = Ask { unit_id: 1, table: Table::Holding, address: 0, quantity: options.registers, timeout };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut probe = Probe::new(line, None);
        let (cpu, began, mut count) = (cpu_s(), Instant::now(), 0_u64);
        while began.elapsed() < Duration::from_secs(options.seconds) {
            match probe.ask(&ask).await {
                Ok(Said::Registers(words)) if words.len() == usize::from(options.registers) => count += 1,
                answer => return Err(other(format!("no answer: {answer:?}"))),
            }
        }
        Ok(Done::of(count, began.elapsed().as_secs_f64(), cpu_s() - cpu))
    })
}

fn cpu_s() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)).as_secs_f64()
}

/// Runs a client that prints its count, its seconds and its processor time.
fn told(command: &mut Command) -> io::Result<Done> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match words.as_slice() {
        [count, seconds, cpu] if output.status.success() => {
            Ok(Done { rate: count / seconds, cpu_us: cpu * 1e6 / count.max(1.0) })
        }
        _ => Err(other(format!("{command:?} said {text:?}"))),
    }
}

fn python() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"));
    Some(target.join("venv/bin/python")).filter(|path| path.exists())
}

fn compiled(folder: &Path, name: &str) -> io::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/peers/{name}.c"));
    let program = folder.join(format!("{name}_bench"));
    let built = Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(source).arg("-lmodbus").status()?;
    if built.success() { Ok(program) } else { Err(other("libmodbus-dev is needed: ./test.sh installs it".to_owned())) }
}

/// The server; it ends when its input does.
struct Server(Child);

impl Server {
    fn start(program: &Path, port: u16) -> io::Result<Server> {
        let mut child = Command::new(program)
            .args(["tcp", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(stdin) = child.stdin.as_mut() {
            stdin.write_all(b"\n")?;
        }
        let mut line = String::new();
        if let Some(stdout) = child.stdout.as_mut() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() == "ready" { Ok(Server(child)) } else { Err(other("the server does not start".to_owned())) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Dead already is as good.
        let _dead = self.0.kill().and_then(|()| self.0.wait());
    }
}
