//! A simulated Modbus server with several units, some of them dead. Its values, on every living unit:
//!
//! | address | holding and input registers |
//! |---|---|
//! | 0 | u16: seconds since the start |
//! | 1 | i16: sine of one minute × 100 |
//! | 2–3 | f32: 20 + unit + 5 × the sine |
//! | 4–5 | u32: milliseconds since the start |
//! | 6–9 | f64: the sine |
//! | 10–13 | u64: 10^15 + milliseconds |
//! | 14–17 | i64: −10^15 − milliseconds |
//! | 18–25 | text: `tidegate unit <n>` |
//! | 100–129 | constants, see `CONSTANTS` |
//! | others below `registers` | their own address |
//!
//! Words and bytes stand in the order `abcd`. Coils and discrete inputs 0 to 1999: 0 to 7 blink with a period of 2, 4,
//! 8 … seconds, the others are on where their address is odd.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, PortConfig, SerialFraming, Table};
use crate::field::modbus::server::{Bank, Reply};
use crate::field::record::{Recording, Wire};

use super::fault::Fault;
use super::plant::{Plant, Waves};
use super::replay::Replay;
use super::units::{Banked, Units};
use super::wire::{Counterpart, Request, serve, serve_listener};
use super::{Bound, Place, Seat, SimulateError, sit};

/// Coils and discrete inputs of each unit.
const BITS: usize = 2000;
/// First register of the constants.
const CONSTANTS_ADDRESS: usize = 100;

/// Registers 100 to 129: u16 54321 · i16 −12345 · u32 3000000000 (2) · i32 −2000000000 (2) · f32 21.5 (2) · f32 NaN (2) ·
/// u64 2^63 (4) · i64 −2^62 (4) · f64 1.1 (4) · the text "Tide gate 7" (6) · 0 · 1.
const CONSTANTS: [u16; 30] = [
    54321, 0xCFC7, 0xB2D0, 0x5E00, 0x88CA, 0x6C00, 0x41AC, 0x0000, 0x7FC0, 0x0000, //
    0x8000, 0x0000, 0x0000, 0x0000, 0xC000, 0x0000, 0x0000, 0x0000, 0x3FF1, 0x9999, 0x9999, 0x999A, //
    0x5469, 0x6465, 0x2067, 0x6174, 0x6520, 0x3700, 0, 1,
];

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where.
    pub place: Place,
    /// Units that answer.
    pub units: BTreeSet<u8>,
    /// Units that take requests and never answer; any other unit is silent too.
    pub dead: BTreeSet<u8>,
    /// How many registers each table has; more is an illegal data address.
    pub registers: u16,
    /// What is wrong with their answers.
    pub faults: Vec<Fault>,
    /// On a pty: answer only who has opened it with these settings, as on a real line.
    pub heeds: Option<PortConfig>,
}

impl Settings {
    /// One living unit, 1, with 1000 registers.
    pub fn at(place: Place) -> Settings {
        Settings {
            place,
            units: BTreeSet::from([1]),
            dead: BTreeSet::new(),
            registers: 1000,
            faults: Vec::new(),
            heeds: None,
        }
    }
}

/// Who answers.
pub enum Devices<'c> {
    /// Those of one line of a configuration.
    Line {
        /// The configuration.
        config: &'c Config,
        /// The name of the line.
        line: &'c str,
        /// How their values move.
        waves: &'c Waves,
        /// What is wrong with their answers.
        faults: Vec<Fault>,
    },
    /// What was recorded.
    Recorded(&'c Recording),
}

/// A bound server.
#[derive(Debug)]
pub struct Server {
    bound: Bound,
    line: Line,
    wire: Wire,
    framing: SerialFraming,
    counterpart: Arc<Boxed>,
    heeds: Option<PortConfig>,
}

#[derive(Debug)]
enum Line {
    Tcp(TcpListener),
    Rtu(Seat),
}

struct Boxed(Box<dyn Counterpart>);

impl std::fmt::Debug for Boxed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Boxed")
    }
}

impl Counterpart for Boxed {
    fn replies(&self, request: &Request<'_>) -> Vec<(Duration, Vec<u8>)> {
        self.0.replies(request)
    }
}

#[derive(Debug)]
struct Simulated {
    units: BTreeSet<u8>,
    dead: BTreeSet<u8>,
    registers: u16,
    start: Instant,
}

impl Server {
    /// Listens, or sits down on the line.
    pub async fn bind(settings: Settings) -> Result<Server, SimulateError> {
        let Settings { place, units, dead, registers, faults, heeds } = settings;
        let wire = if matches!(place, Place::Tcp(_)) { Wire::Tcp } else { Wire::Rtu };
        let bank = Banked(Simulated { units, dead, registers, start: Instant::now() });
        Server::sit(&place, wire, Box::new(Units::new(Box::new(bank), faults)), heeds).await
    }

    /// The same for the devices of a configuration, or for recorded ones; `wire` = how frames look on TCP.
    pub async fn bind_devices(
        place: &Place,
        wire: Wire,
        devices: Devices<'_>,
        heeds: Option<PortConfig>,
    ) -> Result<Server, SimulateError> {
        let (counterpart, wire): (Box<dyn Counterpart>, Wire) = match devices {
            Devices::Line { config, line, waves, faults } => {
                (Box::new(Units::new(Box::new(Plant::new(config, line, waves)), faults)), wire)
            }
            Devices::Recorded(recording) => (Box::new(Replay::new(recording)), recording.wire),
        };
        Server::sit(place, wire, counterpart, heeds).await
    }

    async fn sit(
        place: &Place,
        wire: Wire,
        counterpart: Box<dyn Counterpart>,
        heeds: Option<PortConfig>,
    ) -> Result<Server, SimulateError> {
        let (bound, line) = match place {
            Place::Tcp(address) => {
                let (bound, listener) = listen(*address).await?;
                (Bound::Tcp(bound), Line::Tcp(listener))
            }
            Place::Pty | Place::Port(_) => {
                let seat = sit(place)?;
                (Bound::Path(seat.path.clone()), Line::Rtu(seat))
            }
        };
        let counterpart = Arc::new(Boxed(counterpart));
        Ok(Server { bound, line, wire, framing: SerialFraming::Rtu, counterpart, heeds })
    }

    /// The same with its frames in this form, where they are not those of Modbus TCP.
    pub fn framed(self, framing: SerialFraming) -> Server {
        Server { framing, ..self }
    }

    /// Where it is.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Its TCP address, if it has one.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.bound {
            Bound::Tcp(address) => Some(*address),
            Bound::Path(_) => None,
        }
    }

    /// Its device file, if it has one.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.bound {
            Bound::Tcp(_) => None,
            Bound::Path(path) => Some(path.clone()),
        }
    }

    /// Answers until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SimulateError> {
        let place = self.bound.to_string();
        let ended = match self.line {
            Line::Tcp(listener) => serve_listener(listener, self.wire, self.framing, self.counterpart, stop).await,
            Line::Rtu(Seat { stream, far_end, settings, .. }) => {
                let hears = || match (&self.heeds, &settings) {
                    (Some(own), Some(theirs)) => theirs.are(own),
                    _ => true,
                };
                let ended = tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    ended = serve(stream, self.wire, self.framing, &*self.counterpart, hears) => ended,
                };
                drop(far_end);
                ended
            }
        };
        ended.map_err(|source| SimulateError::Line { place, source })
    }
}

async fn listen(address: SocketAddr) -> Result<(SocketAddr, TcpListener), SimulateError> {
    let listen_error = |source| SimulateError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen_error)?;
    Ok((listener.local_addr().map_err(listen_error)?, listener))
}

impl Bank for Simulated {
    fn read(&self, unit_id: u8, table: Table, address: u16, quantity: u16) -> Reply {
        if self.dead.contains(&unit_id) || !self.units.contains(&unit_id) {
            return Reply::Silence;
        }
        let range = usize::from(address)..usize::from(address) + usize::from(quantity);
        let (limit, quantity_max) = match table {
            Table::Coil | Table::Discrete => (BITS, 2000),
            Table::Holding | Table::Input => (usize::from(self.registers), 125),
        };
        if quantity == 0 || quantity > quantity_max {
            return Reply::Refuse(3);
        }
        if range.end > limit {
            return Reply::Refuse(2);
        }
        match table {
            Table::Coil | Table::Discrete => Reply::Bits(range.map(|place| self.bit(place)).collect()),
            Table::Holding | Table::Input => {
                let moving = self.moving(unit_id);
                let word = |place: usize| match place.checked_sub(CONSTANTS_ADDRESS).and_then(|at| CONSTANTS.get(at)) {
                    Some(constant) => *constant,
                    None => moving.get(place).copied().unwrap_or_else(|| u16::try_from(place).unwrap_or(u16::MAX)),
                };
                Reply::Words(range.map(word).collect())
            }
        }
    }
}

impl Simulated {
    fn bit(&self, place: usize) -> bool {
        let seconds = self.start.elapsed().as_secs();
        if place < 8 { (seconds >> place) & 1 == 1 } else { place % 2 == 1 }
    }

    /// Registers 0 to 25 at this moment.
    fn moving(&self, unit_id: u8) -> Vec<u16> {
        let elapsed = self.start.elapsed();
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let sine = (elapsed.as_secs_f64() * std::f64::consts::TAU / 60.0).sin();
        let whole = i64::try_from(ms).unwrap_or(i64::MAX);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a counter wraps, a sine × 100 fits, an f32 has its digits"
        )]
        let (seconds, hundredths, temperature, low_ms) = (
            elapsed.as_secs() as u16,
            (sine * 100.0).round() as i16,
            (20.0 + f64::from(unit_id) + 5.0 * sine) as f32,
            ms as u32,
        );
        let mut bytes = Vec::with_capacity(52);
        bytes.extend(seconds.to_be_bytes());
        bytes.extend(hundredths.to_be_bytes());
        bytes.extend(temperature.to_be_bytes());
        bytes.extend(low_ms.to_be_bytes());
        bytes.extend(sine.to_be_bytes());
        bytes.extend(1_000_000_000_000_000u64.saturating_add(ms).to_be_bytes());
        bytes.extend((-1_000_000_000_000_000i64).saturating_sub(whole).to_be_bytes());
        let mut text = format!("tidegate unit {unit_id}").into_bytes();
        text.resize(16, 0);
        bytes.extend(text);
        bytes.chunks(2).map(|pair| pair.iter().fold(0u16, |word, byte| word << 8 | u16::from(*byte))).collect()
    }
}
