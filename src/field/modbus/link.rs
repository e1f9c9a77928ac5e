//! One open connection to a line, and one exchange on it at a time.
//!
//! Promises: every exchange ends within its deadline; an answer is taken only whole and for its own request
//! (`gate`, `reply`); on a serial bus no request starts before the bus was silent for 3.5 characters, and after a
//! timeout or a broken answer not before it was silent for the unit's timeout, so that a late answer is never taken
//! for the next one. On TCP the caller closes the link after anything but an answer.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_modbus::client::{Client, Context, rtu, tcp};
use tokio_modbus::slave::SlaveContext;
use tokio_modbus::{ExceptionCode, Request, Response, Slave};

use super::ascii::Ascii;
use super::fault::Fault;
use super::gate::{Dropped, Gate, Wire};
use super::reply::{Echo, Framing, crc};
use super::timing;
use crate::config::{LineConfig, LineKind, SerialFraming, Table};
use crate::field::port::{self, PortError};
use crate::field::record::Recorder;

/// How long a TCP connection may take to be made: longer than a request, because switches and ARP wake up first.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(3);
/// A bus that is never silent is given up after this many times the silence asked for, and a second.
const SETTLE_FACTOR: u32 = 4;

/// Why a line cannot be opened.
#[derive(Debug, Error)]
pub(super) enum LinkError {
    /// Its serial port.
    #[error("{0}")]
    Port(PortError),
    /// Its connection.
    #[error("cannot connect to {host}:{port}")]
    Connect {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    /// Its connection, in time.
    #[error("cannot connect to {host}:{port}: no answer")]
    ConnectTimeout { host: String, port: u16 },
}

/// What is asked of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) unit_id: u8,
    pub(super) table: Table,
    pub(super) address: u16,
    pub(super) quantity: u16,
    pub(super) timeout: Duration,
}

/// What is to be written to a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) unit_id: u8,
    pub(super) address: u16,
    pub(super) places: Places,
    /// By function 15 or 16, also where 5 or 6 would do.
    pub(super) by_multiple: bool,
    pub(super) timeout: Duration,
}

/// What stands in the places that are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Places {
    Coil(bool),
    Registers(Vec<u16>),
    /// The same, read back in the same request.
    AndRead(Vec<u16>),
    /// These bits of one register, the others as they are.
    Masked {
        word: u16,
        mask: u16,
    },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Exchange {
    /// Exactly as many registers as asked for.
    Registers(Vec<u16>),
    /// Exactly as many bits as asked for.
    Bits(Vec<bool>),
    /// The unit says that it has written.
    Written,
    /// The unit says no.
    Refused(u8),
    /// Nothing in time; `heard` = some bytes, but no whole answer.
    Silent { heard: bool },
    /// Something else than the answer.
    Broken(Fault),
    /// The connection or the port is gone.
    Lost(io::Error),
}

/// What came of somebody else's request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// The PDU of the answer, an exception included.
    Answer(Vec<u8>),
    /// None that is right, in time.
    None,
    /// The connection or the port is gone.
    Lost,
}

/// An open line.
pub(super) struct Link {
    gate: Gate,
    client: Context,
    framing: Framing,
    character: Duration,
    /// Silence before each request.
    gap: Duration,
    /// Silence that a fault made necessary, in place of the gap.
    quarantine: Duration,
    last_heard: Instant,
    /// No request before this.
    ready_at: Instant,
    is_connection: bool,
    has_answered: bool,
    doubts: Doubts,
}

/// Units that owe an answer, on a line without transaction ids. Clones are one: a converter may give what is late on one
/// connection to the next one.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubts(Arc<Mutex<BTreeSet<u8>>>);

impl Doubts {
    fn units(&self) -> MutexGuard<'_, BTreeSet<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, unit_id: u8) -> bool {
        self.units().contains(&unit_id)
    }

    fn add(&self, unit_id: u8) {
        self.units().insert(unit_id);
    }

    fn remove(&self, unit_id: u8) {
        self.units().remove(&unit_id);
    }
}

impl Link {
    /// Opens the port or connects. Its first exchange waits for the line's `connect_pause`: converters and adapters
    /// that have just been opened lose what is sent at once.
    /// `doubts` is what former links of this line have left.
    pub(super) async fn open(config: &LineConfig, doubts: &Doubts) -> Result<Link, LinkError> {
        let link = Link::opened(config).await?;
        let doubts = doubts.clone();
        Ok(Link { doubts, ready_at: Instant::now() + config.connect_pause, ..link })
    }

    async fn opened(config: &LineConfig) -> Result<Link, LinkError> {
        match &config.kind {
            LineKind::Rtu(port_config) => {
                let port = port::open(port_config).map_err(LinkError::Port)?;
                let character = port::character_time(port_config);
                let link = match config.framing {
                    SerialFraming::Rtu => Link::new(Box::new(port), Framing::Rtu, character, config.pause),
                    // Two letters for each byte, and a few around them.
                    SerialFraming::Ascii => {
                        Link::new(Box::new(Ascii::new(port)), Framing::Rtu, character * 5 / 2, config.pause)
                    }
                };
                Ok(Link { is_connection: false, ..link })
            }
            LineKind::Tcp { host, port } => {
                let stream = connect(host, *port, config.timeout).await?;
                Ok(Link::new(Box::new(stream), Framing::Tcp, Duration::ZERO, config.pause))
            }
            LineKind::RtuOverTcp { host, port } => {
                let stream = connect(host, *port, config.timeout).await?;
                let wire: Box<dyn Wire> = match config.framing {
                    SerialFraming::Rtu => Box::new(stream),
                    SerialFraming::Ascii => Box::new(Ascii::new(stream)),
                };
                Ok(Link::new(wire, Framing::Rtu, Duration::ZERO, config.pause))
            }
        }
    }

    fn new(wire: Box<dyn Wire>, framing: Framing, character: Duration, pause: Duration) -> Link {
        let gate = Gate::new(wire, framing);
        let gap = match framing {
            Framing::Tcp => pause,
            Framing::Rtu => timing::gap(character, pause),
        };
        let client = match framing {
            Framing::Tcp => tcp::attach(gate.clone()),
            Framing::Rtu => rtu::attach(gate.clone()),
        };
        // The first request, too, waits for a silent bus: another program may just have asked something.
        Link {
            gate,
            client,
            framing,
            character,
            gap,
            quarantine: gap,
            last_heard: Instant::now(),
            ready_at: Instant::now(),
            is_connection: true,
            has_answered: false,
            doubts: Doubts::default(),
        }
    }

    /// From now on, takes down what goes over the line.
    pub(super) fn record(&self, recorder: &Recorder) {
        recorder.opened();
        self.gate.record(recorder.clone());
    }

    /// Whether this link has carried an answer.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// Whether the link must not be used again: a connection is closed after anything but an answer, because what
    /// comes later on it would be in doubt, and because a peer that is gone without a word looks just like that.
    pub(super) fn is_spent(&self, exchange: &Exchange) -> bool {
        match exchange {
            Exchange::Lost(_) => true,
            Exchange::Silent { .. } | Exchange::Broken(_) => self.is_connection,
            Exchange::Registers(_) | Exchange::Bits(_) | Exchange::Written | Exchange::Refused(_) => false,
        }
    }

    /// Whether the line echoes what is sent on it.
    pub(super) fn echo(&self) -> Echo {
        if self.framing == Framing::Rtu { self.gate.echo() } else { Echo::Absent }
    }

    /// Asks and waits for the answer.
    pub(super) async fn exchange(&mut self, question: &Question) -> Exchange {
        if let Err(not_ready) = self.prepare(question.unit_id, question.timeout).await {
            return not_ready;
        }
        let wire = timing::wire(self.character, question.table, question.quantity);
        let deadline = Instant::now() + question.timeout + wire;
        let answer = self.call(request(question), question.timeout, wire).await;
        let exchange = self.concluded(answer, question.timeout, |response| sized(question, response));
        if self.framing == Framing::Tcp { exchange } else { self.confirmed(question, deadline, exchange).await }
    }

    /// RTU has no transaction ids: an answer that comes late enough looks like that to the next request of the same kind.
    /// So the first answer of a unit after a fault is taken only if it stays the only one: the unit's own would follow.
    async fn confirmed(&mut self, question: &Question, deadline: Instant, exchange: Exchange) -> Exchange {
        match &exchange {
            Exchange::Silent { .. } | Exchange::Broken(_) => self.doubts.add(question.unit_id),
            Exchange::Registers(_) | Exchange::Bits(_) | Exchange::Refused(_) if self.doubts.has(question.unit_id) => {
                let heard = timeout_at(deadline, async {
                    loop {
                        match self.gate.discard().await {
                            Ok(Dropped::Glitch) => {}
                            other => return other,
                        }
                    }
                });
                match heard.await {
                    Err(_) => self.doubts.remove(question.unit_id),
                    Ok(Ok(Dropped::End)) => return Exchange::Lost(io::ErrorKind::UnexpectedEof.into()),
                    Ok(Ok(Dropped::Glitch | Dropped::Speech)) => {
                        self.last_heard = Instant::now();
                        self.quarantine = self.gap.max(question.timeout);
                        return Exchange::Broken(Fault::Surplus);
                    }
                    Ok(Err(error)) => return Exchange::Lost(error),
                }
            }
            _ => {}
        }
        exchange
    }

    /// Writes and waits for the answer. Says as well whether anything has left: if not, nothing was written for sure.
    pub(super) async fn write(&mut self, order: &Order) -> (Exchange, bool) {
        if let Err(not_ready) = self.prepare(order.unit_id, order.timeout).await {
            return (not_ready, false);
        }
        let (table, quantity) = match &order.places {
            Places::Coil(_) => (Table::Coil, 1),
            Places::Masked { .. } => (Table::Holding, 1),
            Places::Registers(words) | Places::AndRead(words) => {
                (Table::Holding, u16::try_from(words.len()).unwrap_or(u16::MAX))
            }
        };
        let mut wire = timing::wire_of_write(self.character, table, quantity);
        if matches!(order.places, Places::AndRead(_)) {
            wire += timing::wire(self.character, table, quantity);
        }
        let answer = self.call(write_request(order), order.timeout, wire).await;
        let has_sent = self.gate.has_sent();
        (self.concluded(answer, order.timeout, |response| written(order, response)), has_sent)
    }

    /// Passes somebody else's request on, and gives the PDU of its answer.
    pub(super) async fn pass(&mut self, unit_id: u8, pdu: &[u8], limit: Duration) -> Passed {
        match self.prepare(unit_id, limit).await {
            Ok(()) => {}
            Err(Exchange::Lost(_)) => return Passed::Lost,
            Err(_) => return Passed::None,
        }
        let mut frame = Vec::with_capacity(pdu.len() + 9);
        if self.framing == Framing::Tcp {
            // The gate gives it an id of its own.
            frame.extend([0; 4]);
            frame.extend(u16::try_from(pdu.len() + 1).unwrap_or(u16::MAX).to_be_bytes());
        }
        frame.push(unit_id);
        frame.extend(pdu);
        if self.framing == Framing::Rtu {
            frame.extend(crc(&frame).to_le_bytes());
        }
        // Of both directions together, at most.
        let wire = self.character * 2 * 256;
        let mut answer = vec![0; 300];
        let deadline = Instant::now() + limit + wire;
        let heard = timeout_at(deadline, async {
            self.gate.write_all(&frame).await?;
            self.gate.read(&mut answer).await
        })
        .await;
        self.last_heard = Instant::now();
        let passed = match heard {
            Ok(Ok(count)) => {
                let head = if self.framing == Framing::Tcp { 7..count } else { 1..count.saturating_sub(2) };
                answer.get(head).filter(|pdu| !pdu.is_empty()).map_or(Passed::None, |pdu| Passed::Answer(pdu.to_vec()))
            }
            Ok(Err(_)) if self.gate.fault().is_none() => Passed::Lost,
            Ok(Err(_)) | Err(_) => Passed::None,
        };
        let is_answer = matches!(passed, Passed::Answer(_));
        self.has_answered |= is_answer;
        self.quarantine = if is_answer { self.gap } else { self.gap.max(limit) };
        if !is_answer && self.framing == Framing::Rtu {
            self.doubts.add(unit_id);
        }
        passed
    }

    /// The same for what was passed on.
    pub(super) fn is_spent_by(&self, passed: &Passed) -> bool {
        match passed {
            Passed::Answer(_) => false,
            Passed::None => self.is_connection,
            Passed::Lost => true,
        }
    }

    /// Waits until the line is ready for a request to this unit.
    async fn prepare(&mut self, unit_id: u8, answer_timeout: Duration) -> Result<(), Exchange> {
        rest_until(self.ready_at).await;
        self.settle(answer_timeout).await?;
        self.gate.begin();
        if self.framing == Framing::Rtu {
            // A request that a timeout cut short would leave its rest in the library's buffer.
            self.client = rtu::attach(self.gate.clone());
        }
        self.client.set_slave(Slave(unit_id));
        Ok(())
    }

    async fn call(&mut self, request: Request<'_>, answer_timeout: Duration, wire: Duration) -> Answer {
        let deadline = Instant::now() + answer_timeout + wire;
        let answer = timeout_at(deadline, self.client.call(request)).await;
        if self.gate.has_heard() || self.framing == Framing::Tcp {
            self.last_heard = Instant::now();
        } else {
            // The bus was silent since the request was out: that is the silence that a fault asks for.
            self.last_heard = Instant::now().checked_sub(answer_timeout).unwrap_or_else(Instant::now);
        }
        answer
    }

    fn concluded(&mut self, answer: Answer, timeout: Duration, read: impl FnOnce(Response) -> Exchange) -> Exchange {
        let exchange = match answer {
            Err(_) => Exchange::Silent { heard: self.gate.has_heard() },
            Ok(Ok(Ok(response))) => read(response),
            Ok(Ok(Err(exception))) => Exchange::Refused(code(exception)),
            Ok(Err(error)) => match (self.gate.fault(), error) {
                (Some(fault), _) => Exchange::Broken(fault),
                (None, tokio_modbus::Error::Transport(error)) => Exchange::Lost(error),
                (None, tokio_modbus::Error::Protocol(_)) => Exchange::Broken(Fault::OtherRequest),
            },
        };
        let is_fault = matches!(exchange, Exchange::Silent { .. } | Exchange::Broken(_));
        self.has_answered |= !is_fault && !matches!(exchange, Exchange::Lost(_));
        self.quarantine = if is_fault { self.gap.max(timeout) } else { self.gap };
        exchange
    }

    /// Waits for silence and drops what is heard until then.
    async fn settle(&mut self, answer_timeout: Duration) -> Result<(), Exchange> {
        match self.framing {
            Framing::Tcp => {
                rest_until(self.last_heard + self.gap).await;
                // Nothing may wait here before the request: it would be an answer to nobody. A look and no timer, which
                // would cost a millisecond of every exchange; the runtime asks the system anew before it comes back.
                tokio::task::yield_now().await;
                match self.gate.glance().await {
                    None => Ok(()),
                    Some(Ok(Dropped::End)) => Err(Exchange::Lost(io::ErrorKind::ConnectionReset.into())),
                    Some(Ok(Dropped::Glitch | Dropped::Speech)) => Err(Exchange::Broken(Fault::Unasked)),
                    Some(Err(error)) => Err(Exchange::Lost(error)),
                }
            }
            Framing::Rtu => {
                let mut silence = self.quarantine;
                let limit = Instant::now() + answer_timeout * SETTLE_FACTOR + Duration::from_secs(1);
                loop {
                    // A read first, even when the silence seems long enough: bytes may wait in the driver.
                    let until = (self.last_heard + silence).max(Instant::now());
                    match timeout_at(until, self.gate.discard()).await {
                        Err(_) => return Ok(()),
                        Ok(Ok(Dropped::End)) => return Err(Exchange::Lost(io::ErrorKind::UnexpectedEof.into())),
                        Ok(Ok(Dropped::Glitch)) => self.last_heard = Instant::now(),
                        Ok(Ok(Dropped::Speech)) => {
                            // A late answer, or a second client on the bus: its next answer would look like ours.
                            self.last_heard = Instant::now();
                            silence = silence.max(answer_timeout);
                        }
                        Ok(Err(error)) => return Err(Exchange::Lost(error)),
                    }
                    if Instant::now() > limit {
                        return Err(Exchange::Broken(Fault::NeverSilent));
                    }
                }
            }
        }
    }
}

/// Sleeps until then; a time that is over costs nothing, where the runtime's timer would take a millisecond.
async fn rest_until(at: Instant) {
    if at > Instant::now() {
        sleep_until(at).await;
    }
}

async fn connect(host: &str, port: u16, answer_timeout: Duration) -> Result<TcpStream, LinkError> {
    let connecting = TcpStream::connect((host, port));
    let stream = match timeout(answer_timeout.max(CONNECT_TIMEOUT_MIN), connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => return Err(LinkError::Connect { host: host.to_owned(), port, source }),
        Err(_) => return Err(LinkError::ConnectTimeout { host: host.to_owned(), port }),
    };
    // Requests are one small packet each: waiting for more to send only delays them.
    stream.set_nodelay(true).map_err(|source| LinkError::Connect { host: host.to_owned(), port, source })?;
    Ok(stream)
}

/// What the library says of a call, in time or not.
type Answer = Result<tokio_modbus::Result<Response>, tokio::time::error::Elapsed>;

fn write_request(order: &Order) -> Request<'_> {
    match (&order.places, order.by_multiple) {
        (Places::Coil(is_on), false) => Request::WriteSingleCoil(order.address, *is_on),
        (Places::Coil(is_on), true) => Request::WriteMultipleCoils(order.address, vec![*is_on].into()),
        (Places::Registers(words), is_multiple) => match words.as_slice() {
            [word] if !is_multiple => Request::WriteSingleRegister(order.address, *word),
            words => Request::WriteMultipleRegisters(order.address, words.into()),
        },
        (Places::AndRead(words), _) => {
            let quantity = u16::try_from(words.len()).unwrap_or(u16::MAX);
            Request::ReadWriteMultipleRegisters(order.address, quantity, order.address, words.as_slice().into())
        }
        // Modbus Application Protocol 1.1b3, 6.16: what is kept, and what is set of the rest.
        (Places::Masked { word, mask }, _) => Request::MaskWriteRegister(order.address, !mask, word & mask),
    }
}

/// The answer to a write, once more held against the order.
fn written(order: &Order, response: Response) -> Exchange {
    let is_it = match (&order.places, response) {
        (Places::Coil(is_on), Response::WriteSingleCoil(address, told)) => (order.address, *is_on) == (address, told),
        (Places::Coil(_), Response::WriteMultipleCoils(address, 1)) => order.address == address,
        (Places::Registers(words), Response::WriteSingleRegister(address, told)) => {
            (order.address, words.as_slice()) == (address, &[told])
        }
        (Places::Registers(words), Response::WriteMultipleRegisters(address, quantity)) => {
            (order.address, words.len()) == (address, usize::from(quantity))
        }
        (Places::AndRead(words), Response::ReadWriteMultipleRegisters(read)) if read.len() == words.len() => {
            return Exchange::Registers(read);
        }
        (Places::Masked { word, mask }, Response::MaskWriteRegister(address, kept, set)) => {
            (order.address, !mask, word & mask) == (address, kept, set)
        }
        _ => false,
    };
    if is_it { Exchange::Written } else { Exchange::Broken(Fault::OtherRequest) }
}

fn request(question: &Question) -> Request<'static> {
    match question.table {
        Table::Coil => Request::ReadCoils(question.address, question.quantity),
        Table::Discrete => Request::ReadDiscreteInputs(question.address, question.quantity),
        Table::Holding => Request::ReadHoldingRegisters(question.address, question.quantity),
        Table::Input => Request::ReadInputRegisters(question.address, question.quantity),
    }
}

/// The answer's content, once more held against the question: the gate has checked the bytes, this checks what the
/// library made of them.
fn sized(question: &Question, response: Response) -> Exchange {
    let quantity = usize::from(question.quantity);
    match (question.table, response) {
        (Table::Holding, Response::ReadHoldingRegisters(words))
        | (Table::Input, Response::ReadInputRegisters(words))
            if words.len() == quantity =>
        {
            Exchange::Registers(words)
        }
        // Bits come in whole bytes; what fills the last one is nobody's.
        (Table::Coil, Response::ReadCoils(mut bits)) | (Table::Discrete, Response::ReadDiscreteInputs(mut bits))
            if bits.len() == quantity.next_multiple_of(8) || bits.len() == quantity =>
        {
            bits.truncate(quantity);
            Exchange::Bits(bits)
        }
        _ => Exchange::Broken(Fault::OtherRequest),
    }
}

fn code(exception: ExceptionCode) -> u8 {
    exception.into()
}

#[cfg(test)]
mod tests;
