//! The answering side of Modbus, for simulated devices and tests.
//!
//! Promises: answers reads from a `Bank`; a unit that the bank does not have stays silent. Never part of the gateway's
//! own work.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio_modbus::server::{Service, rtu, tcp};
use tokio_modbus::{ExceptionCode, Request, Response, SlaveRequest};
use tokio_serial::SerialStream;
use tokio_util::sync::CancellationToken;

use crate::config::Table;

/// What a bank says to a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Registers.
    Words(Vec<u16>),
    /// Coils or discrete inputs.
    Bits(Vec<bool>),
    /// An exception code.
    Refuse(u8),
    /// Nothing at all: the unit is dead, or another one's.
    Silence,
}

/// The registers of some units.
pub trait Bank: Send + Sync + 'static {
    /// Reads one table of one unit.
    fn read(&self, unit_id: u8, table: Table, address: u16, quantity: u16) -> Reply;
}

struct Answering<B>(Arc<B>);

impl<B: Bank> Service for Answering<B> {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Option<Response>, ExceptionCode>>;

    fn call(&self, request: SlaveRequest<'static>) -> Self::Future {
        let SlaveRequest { slave, request } = request;
        let (table, address, quantity) = match request {
            Request::ReadCoils(address, quantity) => (Table::Coil, address, quantity),
            Request::ReadDiscreteInputs(address, quantity) => (Table::Discrete, address, quantity),
            Request::ReadHoldingRegisters(address, quantity) => (Table::Holding, address, quantity),
            Request::ReadInputRegisters(address, quantity) => (Table::Input, address, quantity),
            _ => return ready(Err(ExceptionCode::IllegalFunction)),
        };
        ready(match (self.0.read(slave, table, address, quantity), table) {
            (Reply::Words(words), Table::Holding) => Ok(Some(Response::ReadHoldingRegisters(words))),
            (Reply::Words(words), Table::Input) => Ok(Some(Response::ReadInputRegisters(words))),
            (Reply::Bits(bits), Table::Coil) => Ok(Some(Response::ReadCoils(bits))),
            (Reply::Bits(bits), Table::Discrete) => Ok(Some(Response::ReadDiscreteInputs(bits))),
            (Reply::Refuse(code), _) => Err(ExceptionCode::new(code)),
            (Reply::Silence, _) => Ok(None),
            (Reply::Words(_) | Reply::Bits(_), _) => Err(ExceptionCode::ServerDeviceFailure),
        })
    }
}

/// Answers Modbus TCP on `listener` until `stop`.
pub async fn serve_tcp<B: Bank>(listener: TcpListener, bank: Arc<B>, stop: CancellationToken) -> io::Result<()> {
    let on_connected = |stream: TcpStream, _| {
        let service = Answering(bank.clone());
        let prepared = stream.set_nodelay(true).map(|()| Some((service, stream)));
        async { prepared }
    };
    let on_error = |error: io::Error| log::debug!(error:%; "A simulated connection ended");
    tcp::Server::new(listener).serve_until(&on_connected, on_error, stop.cancelled_owned()).await.map(|_| ())
}

/// Answers Modbus RTU on `port` until `stop`.
pub async fn serve_rtu<B: Bank>(port: SerialStream, bank: Arc<B>, stop: CancellationToken) -> io::Result<()> {
    let service = Answering(bank);
    rtu::Server::new(port).serve_until(service, stop.cancelled_owned()).await.map(|_| ())
}
