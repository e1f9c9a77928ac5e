//! How much of a serial line's time the gateway uses: Modbus RTU on a pty, whose far end keeps the time of a line.
//!
//! ```text
//! cargo bench --bench rtu                      9600, 19200 and 115200 baud, 125 and 10 registers, 5 s each
//! cargo bench --bench rtu -- --seconds 20      longer
//! ```
//!
//! A pty moves bytes at once, whatever rate it is set to. So its far end does what a line and a device on it would: it takes a
//! request for heard when its last bit would have come, answers when 3.5 characters were silent, and writes its answer in
//! pieces of 16 characters, each when its last bit would have come. A character has 11 bits.
//!
//! *share* = what a client would need that loses nothing (request, answer, and 3.5 characters of silence before each of both)
//! ÷ what it took. The far end is late itself where the machine is busy, and tells by how much; *own share* is without that:
//! it takes the median time from the last byte of an answer to the first byte of the next request for the gateway's, and all
//! else as it should be. More than 100 % would mean that the silence between frames is not kept; the shortest is printed.
#![allow(clippy::disallowed_methods, reason = "a harness measures by the system's clock")]

mod program;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use program::{median, other};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tidegate::config::{LineConfig, LineKind, Parity, PortConfig, SerialMode, Table};
use tidegate::field::modbus::probe::{Ask, Probe, Said};

/// Characters of a request that reads registers, and of its answer beside the data.
const REQUEST: u32 = 8;
const ANSWER_HEAD: u32 = 5;
/// Characters that a UART hands on at once.
const PIECE: usize = 16;
/// The gap above 19,200 baud (Modbus over Serial Line 1.02, 2.5.1.1).
const GAP_MIN: Duration = Duration::from_micros(1750);

fn main() -> ExitCode {
    match harness() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rtu: {error}");
            ExitCode::FAILURE
        }
    }
}

fn harness() -> io::Result<()> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let seconds = match (words.next().as_deref(), words.next().and_then(|word| word.parse::<u64>().ok())) {
        (None, _) => 5,
        (Some("--seconds"), Some(seconds)) => seconds.max(1),
        _ => return Err(other("there is only --seconds N".to_owned())),
    };
    if cfg!(debug_assertions) {
        println!("Built without optimisation: these figures show that the harness works, no more.");
    }
    println!("baud   registers  requests  share   own share  silence before a request: least, median, mean (asked)");
    for baud in [9600, 19_200, 115_200] {
        for registers in [125, 10] {
            measure(baud, registers, Duration::from_secs(seconds))?;
        }
    }
    Ok(())
}

fn measure(baud: u32, registers: u16, span: Duration) -> io::Result<()> {
    let line = Line::of(baud);
    let (far, path) = pty()?;
    let served = line.serve(far, registers);
    let timeout = Duration::from_secs(2);
    let mode = SerialMode { data_bits: 8, parity: Parity::Even, stop_bits: 1 };
    let baud = NonZeroU32::new(baud).ok_or_else(|| other("no rate".to_owned()))?;
    let config = LineConfig::new(LineKind::Rtu(PortConfig::new(path, baud, mode)), timeout);
    let ask = Ask { unit_id: 1, table: Table::Holding, address: 0, quantity: registers, timeout };
    let (mut count, mut took) = (0_u32, Duration::ZERO);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut probe = Probe::new(config, None);
        let mut began = None;
        while took < span {
            match probe.ask(&ask).await {
                Ok(Said::Registers(words)) if words.len() == usize::from(registers) => {}
                answer => return Err(other(format!("no answer: {answer:?}"))),
            }
            // The first one opens the line.
            match began {
                None => began = Some(Instant::now()),
                Some(began) => {
                    count += 1;
                    took = began.elapsed();
                }
            }
        }
        Ok(())
    })?;
    let silences = served.join().map_err(|_| other("the far end failed".to_owned()))??;
    let silences: Vec<f64> = silences.iter().skip(2).map(Duration::as_secs_f64).collect();
    let gap = line.gap.as_secs_f64();
    let bits = line.character.as_secs_f64() * f64::from(REQUEST + ANSWER_HEAD + 2 * u32::from(registers));
    let least = bits + 2.0 * gap;
    let share = least * f64::from(count) / took.as_secs_f64();
    let mean = silences.iter().sum::<f64>() / f64::from(u32::try_from(silences.len().max(1)).unwrap_or(u32::MAX));
    let typical = median(silences.clone());
    let own = least / (bits + gap + typical);
    let shortest = silences.iter().copied().fold(f64::INFINITY, f64::min);
    println!(
        "{baud:<6} {registers:>9}  {count:>8}  {:>5.1} %  {:>7.1} %  {:.2}, {:.2}, {:.2} ms ({:.2} ms)",
        share * 100.0,
        own * 100.0,
        shortest * 1e3,
        typical * 1e3,
        mean * 1e3,
        gap * 1e3
    );
    Ok(())
}

/// A pty in raw mode: the end of the line and the device, and the name of the gateway's end.
fn pty() -> io::Result<(File, PathBuf)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let path = PathBuf::from(name.to_string_lossy().into_owned());
    fcntl_setfl(&master, OFlags::NONBLOCK)?;
    Ok((File::from(master), path))
}

/// The time of a line.
#[derive(Clone, Copy)]
struct Line {
    character: Duration,
    gap: Duration,
}

impl Line {
    fn of(baud: u32) -> Line {
        let character = Duration::from_secs(11) / baud;
        Line { character, gap: GAP_MIN.max(character * 7 / 2) }
    }

    /// Answers until the gateway's end is closed. Gives the silences between the end of an answer and the next request.
    fn serve(self, mut far: File, registers: u16) -> JoinHandle<io::Result<Vec<Duration>>> {
        spawn(move || {
            let mut silences = Vec::new();
            let mut answered: Option<Instant> = None;
            let Some(mut request) = next(&mut far, None)? else { return Ok(silences) };
            loop {
                silences.extend(answered.map(|at| request.came.saturating_duration_since(at)));
                // Heard when its last bit would have come; answered after the silence that ends it.
                let mut due = request.came + self.character * REQUEST + self.gap;
                for piece in answer(&request.bytes, registers).chunks(PIECE) {
                    due += self.character * u32::try_from(piece.len()).unwrap_or(0);
                    wait_until(due);
                    // Before it is written: afterwards this thread may be the one that waits, and the gateway be on its way.
                    answered = Some(Instant::now());
                    far.write_all(piece)?;
                }
                match next(&mut far, answered)? {
                    Some(following) => request = following,
                    None => return Ok(silences),
                }
            }
        })
    }
}

struct Request {
    bytes: Vec<u8>,
    came: Instant,
}

/// The next request; `None` once the gateway has closed its end, after it was there.
fn next(far: &mut File, since: Option<Instant>) -> io::Result<Option<Request>> {
    let began = Instant::now();
    let (mut bytes, mut came) = (Vec::new(), None);
    let mut piece = [0; 64];
    loop {
        match far.read(&mut piece) {
            Ok(count) => {
                came.get_or_insert_with(Instant::now);
                bytes.extend(piece.iter().take(count));
                if bytes.len() >= 8 {
                    return Ok(came.map(|came| Request { bytes, came }));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(Duration::from_micros(50)),
            // Nobody has it open: not yet, or not any more.
            Err(_) if since.is_none() && began.elapsed() < Duration::from_secs(5) => sleep(Duration::from_millis(1)),
            Err(_) => return Ok(None),
        }
    }
}

/// Sleeps the most of it, and looks the rest: a sleep alone is late by what the scheduler takes.
fn wait_until(due: Instant) {
    let rest = due.saturating_duration_since(Instant::now());
    if let Some(rest) = rest.checked_sub(Duration::from_micros(200)) {
        sleep(rest);
    }
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}

fn answer(request: &[u8], registers: u16) -> Vec<u8> {
    let data = usize::from(registers) * 2;
    let mut frame = request.get(..2).unwrap_or_default().to_vec();
    frame.push(u8::try_from(data).unwrap_or(u8::MAX));
    frame.resize(3 + data, 0x5A);
    let mut sum = 0xFFFF_u16;
    for byte in &frame {
        sum ^= u16::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xA001 } else { sum >> 1 };
        }
    }
    frame.extend(sum.to_le_bytes());
    frame
}
