//! `tidegate modbus scan`

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::time::Instant;

use super::super::simulate::{Units, parse_units};
use super::super::{Exit, parse_duration};
use super::target::Target;
use super::{block, unopened};
use crate::config::{LineConfig, LineKind, ModbusPoint, PointKind, PortConfig, Table, WordOrder};
use crate::field::modbus::advice;
use crate::field::modbus::probe::{Ask, OpenError, Probe, Said};
use crate::field::modbus::scan::{FIRST_UNITS, settings, units};
use crate::field::record::Recorder;

/// What is told of the progress where nobody looks at a terminal.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// `tidegate modbus scan`
#[derive(Debug, clap::Args)]
pub(super) struct ScanArguments {
    #[command(flatten)]
    target: Target,
    /// Units to ask, such as 1,3,7-9 [default: all]
    #[arg(long, value_name = "UNITS", value_parser = parse_units)]
    units: Option<Units>,
    /// Try the usual baud rates and parities of a serial port, until somebody answers
    #[arg(long = "try")]
    tries: bool,
    /// Stop after this time
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = parse_duration)]
    within: Duration,
}

/// A search under way.
struct Search<'a> {
    arguments: &'a ScanArguments,
    recorder: Option<Recorder>,
    deadline: Instant,
    told: Instant,
    asked: usize,
    found: BTreeMap<u8, Said>,
    /// Something was heard that was no answer, at these settings.
    noise: Option<String>,
}

pub(super) async fn run(arguments: &ScanArguments) -> Exit {
    let recorder = match arguments.target.recorder() {
        Ok(recorder) => recorder,
        Err(exit) => return exit,
    };
    if arguments.tries && !arguments.target.is_port() {
        return super::misuse("--try is for serial ports: a connection has no baud rate");
    }
    let now = Instant::now();
    let deadline = now + arguments.within.min(Duration::from_secs(24 * 3600));
    let mut search = Search { arguments, recorder, deadline, told: now, asked: 0, found: BTreeMap::new(), noise: None };
    match search.run().await {
        Ok(line) => search.tell(&line),
        Err(error) => unopened(&error, &arguments.target),
    }
}

impl Search<'_> {
    /// Searches, and gives back the line with the settings at which somebody answered.
    async fn run(&mut self) -> Result<LineConfig, OpenError> {
        let own = self.arguments.target.line();
        let wanted: Vec<u8> = match &self.arguments.units {
            Some(units) => units.0.iter().copied().collect(),
            None => units(!self.arguments.target.is_port()),
        };
        let LineKind::Rtu(port) = &own.kind else {
            self.ask_all(&own, &wanted).await?;
            return Ok(own);
        };
        if !self.arguments.tries {
            self.ask_all(&own, &wanted).await?;
            return Ok(own);
        }
        // The likely units with every settings first: 247 units with the wrong ones would take all the time there is.
        let (first, rest): (Vec<u8>, Vec<u8>) = match &self.arguments.units {
            Some(_) => (wanted, Vec::new()),
            None => wanted.into_iter().partition(|unit| FIRST_UNITS.contains(unit)),
        };
        let all = settings((port.baud, port.mode));
        for (units, others) in [(&first, rest.as_slice()), (&rest, &[])] {
            for (baud, mode) in &all {
                let kind = LineKind::Rtu(PortConfig { baud: *baud, mode: *mode, ..port.clone() });
                let line = LineConfig { kind, ..own.clone() };
                self.ask_all(&line, units).await?;
                if !self.found.is_empty() {
                    // The others on this bus have the same settings.
                    self.ask_all(&line, others).await?;
                    return Ok(line);
                }
            }
        }
        Ok(own)
    }

    async fn ask_all(&mut self, line: &LineConfig, units: &[u8]) -> Result<(), OpenError> {
        let timeout = self.arguments.target.scan_timeout();
        let mut probe = Probe::new(LineConfig { timeout, ..line.clone() }, self.recorder.clone());
        for unit_id in units {
            if Instant::now() >= self.deadline {
                return Ok(());
            }
            let ask = Ask { unit_id: *unit_id, table: Table::Holding, address: 0, quantity: 1, timeout };
            let said = probe.ask(&ask).await?;
            self.asked += 1;
            if said.is_alive() {
                println!("unit {unit_id} answers{}{}", at(line), remark(&said));
                self.found.insert(*unit_id, said);
            } else if matches!(said, Said::Silent { heard: true } | Said::Broken { .. }) && self.noise.is_none() {
                self.noise = advice::verdict(&said, &ask).map(|verdict| format!("{verdict}{}", at(line)));
            }
            self.progress(line);
        }
        Ok(())
    }

    /// One line that is written over on a terminal, else one now and then.
    fn progress(&mut self, line: &LineConfig) {
        let left = self.deadline.saturating_duration_since(Instant::now()).as_secs();
        let text = format!("{} asked, {} found{}, at most {left} s left", self.asked, self.found.len(), at(line));
        let mut stderr = std::io::stderr();
        if stderr.is_terminal() {
            // Where the terminal is gone there is nobody to tell.
            let _closed = write!(stderr, "\r{text}\x1b[K").and_then(|()| stderr.flush());
        } else if self.told.elapsed() >= TOLD_EVERY {
            self.told = Instant::now();
            eprintln!("{text}");
        }
    }

    fn tell(&self, line: &LineConfig) -> Exit {
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
        let is_cut = Instant::now() >= self.deadline;
        if is_cut {
            eprintln!("The time that --within gives was over: not everything was asked.");
        }
        if self.found.is_empty() {
            eprintln!("tidegate: nobody answers on {} ({} asked)", self.arguments.target, self.asked);
            if let Some(noise) = &self.noise {
                eprintln!("  but: {noise}: somebody is there, at another baud rate or parity");
            }
            let target = &self.arguments.target;
            let (said, ask) = (
                Said::Silent { heard: false },
                Ask { unit_id: 1, table: Table::Holding, address: 0, quantity: 1, timeout: target.scan_timeout() },
            );
            for help in advice::advice(&said, &ask, &line.kind, &target.to_string()) {
                // What was done already is no advice.
                if !(self.arguments.tries && help.contains("--try")) {
                    eprintln!("  help: {help}");
                }
            }
            return Exit::TryAgain;
        }
        let point = || {
            let mut point = ModbusPoint::plain("", Table::Holding, 0, PointKind::U16, WordOrder::Abcd);
            point.name = block::point_name(&point).into();
            (point, 1)
        };
        let devices = self.found.iter().map(|(unit, said)| {
            let has_register = matches!(said, Said::Registers(_));
            (*unit, if has_register { vec![point()] } else { Vec::new() })
        });
        block::print(line, &devices.collect::<Vec<_>>());
        Exit::Done
    }
}

/// ` at 9600 8E1` on a serial line.
fn at(line: &LineConfig) -> String {
    match &line.kind {
        LineKind::Rtu(port) => format!(" at {} {}", port.baud, port.mode),
        LineKind::Tcp { .. } | LineKind::RtuOverTcp { .. } => String::new(),
    }
}

fn remark(said: &Said) -> String {
    match said {
        Said::Refused(code) => format!(" (without holding:0: exception {code})"),
        Said::Registers(words) => format!(" (holding:0 = {})", words.first().copied().unwrap_or_default()),
        _ => String::new(),
    }
}
