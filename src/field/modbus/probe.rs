//! One request at a person's word: what the commissioning tools ask with.
//!
//! Promises: the line is opened, paced and judged by the same code as in the gateway (`link`, `gate`, `reply`), so that
//! what a tool reads is what the gateway will read; every request ends within its deadline; what fails is told by its
//! kind, for `advice` to say what to do.

use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::link::{Doubts, Exchange, Link, LinkError, Order, Places, Question};
use crate::config::{LineConfig, LineKind, Table};
use crate::field::record::{Recorder, Wire};
use crate::health::chain;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Of which unit.
    pub unit_id: u8,
    /// Of which table.
    pub table: Table,
    /// From which address on the wire.
    pub address: u16,
    /// How many registers or bits.
    pub quantity: u16,
    /// How long to wait.
    pub timeout: Duration,
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// To which unit.
    pub unit_id: u8,
    /// From which address on the wire.
    pub address: u16,
    /// What is to stand there.
    pub what: What,
    /// By function 15 or 16, also where 5 or 6 would do.
    pub by_multiple: bool,
    /// How long to wait.
    pub timeout: Duration,
}

/// What is to stand in the places that are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A coil.
    Coil(bool),
    /// Holding registers.
    Registers(Vec<u16>),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// As many registers as asked for.
    Registers(Vec<u16>),
    /// As many bits as asked for.
    Bits(Vec<bool>),
    /// The unit says that it has written.
    Written,
    /// The unit says no, by this code.
    Refused(u8),
    /// Nothing in time; `heard` = some bytes, but no whole answer.
    Silent {
        /// Whether anything arrived at all.
        heard: bool,
    },
    /// Something else than the answer.
    Broken {
        /// As in `faults` of `status --json`.
        kind: &'static str,
        /// For a person.
        reason: &'static str,
    },
    /// The connection or the port is gone.
    Lost(String),
}

impl Said {
    /// Whether the unit has spoken, if only to say no. A gateway that speaks for a unit which is not there does not count.
    pub fn is_alive(&self) -> bool {
        match self {
            Said::Registers(_) | Said::Bits(_) | Said::Written => true,
            Said::Refused(code) => !matches!(code, 10 | 11),
            Said::Silent { .. } | Said::Broken { .. } | Said::Lost(_) => false,
        }
    }
}

/// Why a line cannot be opened.
#[derive(Debug, Error)]
#[error("{reason}")]
pub struct OpenError {
    reason: String,
    /// Whether it is a serial port.
    pub is_port: bool,
}

impl OpenError {
    fn of(error: &LinkError) -> OpenError {
        OpenError { reason: chain(error), is_port: matches!(error, LinkError::Port(_)) }
    }
}

/// A line in the hands of a person.
pub struct Probe {
    line: LineConfig,
    link: Option<Link>,
    doubts: Doubts,
    recorder: Option<Recorder>,
}

impl Probe {
    /// A line that is opened with the first request.
    pub fn new(line: LineConfig, recorder: Option<Recorder>) -> Probe {
        Probe { line, link: None, doubts: Doubts::default(), recorder }
    }

    /// How frames look on a line.
    pub fn wire(line: &LineConfig) -> Wire {
        match line.kind {
            LineKind::Tcp { .. } => Wire::Tcp,
            LineKind::Rtu(_) | LineKind::RtuOverTcp { .. } => Wire::Rtu,
        }
    }

    /// Asks once, on a line that is opened if it has to be.
    pub async fn ask(&mut self, ask: &Ask) -> Result<Said, OpenError> {
        self.ask_timed(ask).await.map(|(said, _)| said)
    }

    /// The same, with the time from the request to the end of the answer.
    pub async fn ask_timed(&mut self, ask: &Ask) -> Result<(Said, Duration), OpenError> {
        let mut link = self.opened().await?;
        let Ask { unit_id, table, address, quantity, timeout } = *ask;
        let began = Instant::now();
        let exchange = link.exchange(&Question { unit_id, table, address, quantity, timeout }).await;
        let took = began.elapsed();
        if !link.is_spent(&exchange) {
            self.link = Some(link);
        }
        Ok((said(exchange), took))
    }
}

impl Probe {
    /// Writes once. Says as well whether anything has left: if not, nothing was written for sure.
    pub async fn put(&mut self, put: &Put) -> Result<(Said, bool), OpenError> {
        let mut link = self.opened().await?;
        let places = match &put.what {
            What::Coil(is_on) => Places::Coil(*is_on),
            What::Registers(words) => Places::Registers(words.clone()),
        };
        let Put { unit_id, address, by_multiple, timeout, .. } = *put;
        let (exchange, has_sent) = link.write(&Order { unit_id, address, places, by_multiple, timeout }).await;
        if !link.is_spent(&exchange) {
            self.link = Some(link);
        }
        Ok((said(exchange), has_sent))
    }

    async fn opened(&mut self) -> Result<Link, OpenError> {
        if let Some(link) = self.link.take() {
            return Ok(link);
        }
        let link = Link::open(&self.line, &self.doubts).await.map_err(|error| OpenError::of(&error))?;
        if let Some(recorder) = &self.recorder {
            link.record(recorder);
        }
        Ok(link)
    }
}

fn said(exchange: Exchange) -> Said {
    match exchange {
        Exchange::Registers(words) => Said::Registers(words),
        Exchange::Bits(bits) => Said::Bits(bits),
        Exchange::Written => Said::Written,
        Exchange::Refused(code) => Said::Refused(code),
        Exchange::Silent { heard } => Said::Silent { heard },
        Exchange::Broken(fault) => Said::Broken { kind: fault.kind(), reason: fault.reason() },
        Exchange::Lost(error) => Said::Lost(chain(&error)),
    }
}
