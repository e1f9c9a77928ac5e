//! The local publisher: one MQTT 5 client of the gateway that sends numbered messages at QoS 1.
//!
//! It writes down which numbers were acknowledged to it; nothing else in a drill decides that. After a lost
//! connection it sends again what was not acknowledged, as any client with a clean session must.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::tally;
use crate::health::chain;
use crate::message::{Properties, Qos, Topic};
use crate::mqtt::{
    Connect, DecodeError, Decoder, EncodeError, Encoder, Packet, PacketId, Publish, ReasonCode, Version,
};

/// Unacknowledged messages at most.
const WINDOW: usize = 100;

/// How often it looks whether something is to be sent.
const TICK: Duration = Duration::from_millis(10);

/// Pause between attempts to connect.
const RECONNECT: Duration = Duration::from_millis(50);

/// How long the gateway may take to answer CONNECT.
const CONNACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest packet taken from the gateway: acknowledgements only.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// What the publisher is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Send nothing new.
    Rest,
    /// Send this many a second.
    Pace {
        /// Messages a second.
        per_second: u32,
    },
    /// Send as fast as acknowledgements come, up to and without this number.
    Burst {
        /// First number that is not sent.
        end: u64,
    },
}

/// The publisher. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Publisher(Arc<Mutex<Record>>);

/// What shows a local client to be a user of the gateway.
#[derive(Clone)]
pub(super) struct Login {
    /// Its name.
    pub(super) username: String,
    /// Its password.
    pub(super) password: Bytes,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, into: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        into.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What it sends, and as whom.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    /// Client id at the gateway.
    pub(super) client_id: String,
    /// User name and password there, where it wants them.
    pub(super) login: Option<Login>,
    /// Local topic.
    pub(super) topic: Topic,
    /// Members of the JSON object that follow the number.
    pub(super) members: String,
}

/// What was sent and what was acknowledged, by number.
#[derive(Debug)]
pub(super) struct Record {
    order: Order,
    /// Since when `order` holds, and the first number under it.
    since: (Instant, u64),
    entries: Vec<Entry>,
    acknowledged: u64,
    /// Numbers below were forgotten after the drills.
    base: u64,
    connected: bool,
    fault: Option<String>,
    connections: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    sends: u32,
    acknowledged: bool,
}

/// Why the connection to the gateway ended.
#[derive(Debug, Error)]
enum ConnectionError {
    #[error("cannot reach the gateway")]
    Connect(#[source] io::Error),
    #[error("cannot read from or write to the gateway")]
    Socket(#[source] io::Error),
    #[error("cannot understand the gateway")]
    Decode(#[source] DecodeError),
    #[error("cannot write a packet")]
    Encode(#[source] EncodeError),
    #[error("the gateway did not answer CONNECT in time")]
    Silent,
    #[error("the gateway refused the connection: {0}")]
    Refused(ReasonCode),
    #[error("the gateway closed the connection")]
    Closed,
    #[error("the gateway answered with something that does not belong here")]
    Unexpected,
}

impl Default for Publisher {
    fn default() -> Publisher {
        Publisher(Arc::new(Mutex::new(Record {
            order: Order::Rest,
            since: (Instant::now(), 0),
            entries: Vec::new(),
            acknowledged: 0,
            base: 0,
            connected: false,
            fault: None,
            connections: 0,
        })))
    }
}

impl Publisher {
    /// Changes what it does; gives back the first number that is sent under the new order.
    pub(super) fn order(&self, order: Order) -> u64 {
        let mut record = self.lock();
        let next = record.next();
        record.order = order;
        record.since = (Instant::now(), next);
        next
    }

    /// Looks at the record.
    pub(super) fn record<T>(&self, look: impl FnOnce(&mut Record) -> T) -> T {
        look(&mut self.lock())
    }

    /// One that goes on from an earlier process: for each number how often it was sent, and whether it was acknowledged.
    pub(super) fn resumed(known: impl Iterator<Item = (u32, bool)>) -> Publisher {
        let publisher = Publisher::default();
        publisher.record(|record| {
            record.entries.extend(known.map(|(sends, acknowledged)| Entry { sends, acknowledged }));
            record.acknowledged = record.entries.iter().filter(|entry| entry.acknowledged).count() as u64;
        });
        publisher
    }

    /// Publishes what `sent` says at `gateway` until it is dropped.
    pub(super) async fn run(self, gateway: SocketAddr, sent: Sent) {
        loop {
            let fault = match self.connection(gateway, &sent).await {
                Err(error) => chain(&error),
                Ok(()) => ConnectionError::Closed.to_string(),
            };
            self.record(|record| {
                record.connected = false;
                record.fault = Some(fault);
            });
            sleep(RECONNECT).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        // The record is whole after every statement, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(&self, gateway: SocketAddr, sent: &Sent) -> Result<(), ConnectionError> {
        let mut stream = TcpStream::connect(gateway).await.map_err(ConnectionError::Connect)?;
        stream.set_nodelay(true).map_err(ConnectionError::Socket)?;
        let mut decoder = Decoder::from_server(Version::V5, PACKET_BYTES_MAX);
        let mut encoder = Encoder::new(Version::V5);
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());

        let mut connect = Connect::new(Version::V5, sent.client_id.clone());
        if let Some(Login { username, password }) = &sent.login {
            connect.username = Some(username.clone());
            connect.password = Some(password.clone());
        }
        encoder.encode(&Packet::Connect(Box::new(connect)), &mut output).map_err(ConnectionError::Encode)?;
        stream.write_all_buf(&mut output).await.map_err(ConnectionError::Socket)?;
        let answer = async {
            loop {
                if let Some(packet) = decoder.decode(&mut input).map_err(ConnectionError::Decode)? {
                    return Ok(packet);
                }
                if stream.read_buf(&mut input).await.map_err(ConnectionError::Socket)? == 0 {
                    return Err(ConnectionError::Closed);
                }
            }
        };
        let window = match timeout(CONNACK_TIMEOUT, answer).await.map_err(|_| ConnectionError::Silent)?? {
            Packet::Connack(connack) if !connack.reason.is_failure() => {
                if let Some(bytes) = connack.packet_bytes_max.and_then(|bytes| usize::try_from(bytes).ok()) {
                    encoder.set_packet_bytes_max(bytes);
                }
                connack.receive_max.map_or(WINDOW, |most| usize::from(most.get()).min(WINDOW))
            }
            Packet::Connack(connack) => return Err(ConnectionError::Refused(connack.reason)),
            _ => return Err(ConnectionError::Unexpected),
        };

        let mut flight = Flight::new(window, self.record(Record::connected_again));
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                read = stream.read_buf(&mut input) => {
                    if read.map_err(ConnectionError::Socket)? == 0 {
                        return Err(ConnectionError::Closed);
                    }
                    while let Some(packet) = decoder.decode(&mut input).map_err(ConnectionError::Decode)? {
                        match packet {
                            Packet::Puback(ack) => {
                                let number = flight.answered(ack.packet_id);
                                self.record(|record| record.answered(number, ack.reason.is_failure(), &mut flight));
                            }
                            Packet::Pingresp => {}
                            _ => return Err(ConnectionError::Unexpected),
                        }
                    }
                }
                _ = ticks.tick() => {}
            }
            while let Some((id, number)) = self.record(|record| flight.admit(record)) {
                let packet = Packet::Publish(numbered(sent, id, number));
                encoder.encode(&packet, &mut output).map_err(ConnectionError::Encode)?;
            }
            stream.write_all_buf(&mut output).await.map_err(ConnectionError::Socket)?;
        }
    }
}

impl Record {
    /// The first number that was never sent.
    pub(super) fn next(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Whether everything that was ordered is sent and acknowledged.
    pub(super) fn is_at_rest(&self) -> bool {
        let ordered = match self.order {
            Order::Rest => true,
            Order::Pace { .. } => false,
            Order::Burst { end } => self.next() >= end,
        };
        ordered && self.acknowledged == self.next()
    }

    /// Numbers acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether it has a connection to the gateway.
    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// How often it has connected.
    pub(super) fn connections(&self) -> u64 {
        self.connections
    }

    /// How its connection is, in words.
    pub(super) fn state(&self) -> &str {
        match &self.fault {
            _ if self.connected => "connected",
            Some(fault) => fault,
            None => "not connected yet",
        }
    }

    /// Forgets the numbers that are settled, so that a demo without end stays small.
    pub(super) fn forget(&mut self) {
        let settled = self.entries.iter().take_while(|entry| entry.acknowledged).count();
        self.entries.drain(..settled);
        self.base += settled as u64;
    }

    /// Numbers that were sent and not acknowledged, in order: they are sent again first.
    fn connected_again(&mut self) -> VecDeque<u64> {
        self.connected = true;
        self.connections += 1;
        let open = self.entries.iter().enumerate().filter(|(_, entry)| !entry.acknowledged);
        open.map(|(place, _)| self.base + place as u64).collect()
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let place = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.entries.get_mut(place)
    }

    fn answered(&mut self, number: Option<u64>, is_refused: bool, flight: &mut Flight) {
        let Some(number) = number else { return };
        if is_refused {
            flight.again.push_back(number);
            return;
        }
        if let Some(entry) = self.entry(number)
            && !entry.acknowledged
        {
            entry.acknowledged = true;
            self.acknowledged += 1;
        }
    }

    /// Takes the next new number, when the order says that one is due.
    fn take_new(&mut self) -> Option<u64> {
        let next = self.next();
        let (since, first) = self.since;
        let is_due = match self.order {
            Order::Rest => false,
            Order::Pace { per_second } => {
                let due = since.elapsed().as_millis().saturating_mul(u128::from(per_second)) / 1000;
                u128::from(next - first) < due
            }
            Order::Burst { end } => next < end,
        };
        if !is_due {
            return None;
        }
        self.entries.push(Entry::default());
        Some(next)
    }
}

impl tally::Sender for Record {
    fn is_acknowledged(&self, number: u64) -> bool {
        let place = number.checked_sub(self.base).and_then(|place| usize::try_from(place).ok());
        place.and_then(|place| self.entries.get(place)).is_some_and(|entry| entry.acknowledged)
    }

    fn sends(&self, number: u64) -> u32 {
        let place = number.checked_sub(self.base).and_then(|place| usize::try_from(place).ok());
        place.and_then(|place| self.entries.get(place)).map_or(0, |entry| entry.sends)
    }
}

/// What is on its way over one connection.
#[derive(Debug)]
struct Flight {
    free: Vec<PacketId>,
    open: HashMap<PacketId, u64>,
    again: VecDeque<u64>,
}

impl Flight {
    fn new(window: usize, again: VecDeque<u64>) -> Flight {
        let free = (1..=u16::MAX).filter_map(PacketId::new).take(window).collect();
        Flight { free, open: HashMap::new(), again }
    }

    fn answered(&mut self, id: PacketId) -> Option<u64> {
        let number = self.open.remove(&id)?;
        self.free.push(id);
        Some(number)
    }

    /// The next message to write: packet id and number.
    fn admit(&mut self, record: &mut Record) -> Option<(PacketId, u64)> {
        let id = self.free.pop()?;
        let Some(number) = self.again.pop_front().or_else(|| record.take_new()) else {
            self.free.push(id);
            return None;
        };
        self.open.insert(id, number);
        if let Some(entry) = record.entry(number) {
            entry.sends += 1;
        }
        Some((id, number))
    }
}

fn numbered(sent: &Sent, id: PacketId, number: u64) -> Publish {
    let Sent { topic, members, .. } = sent;
    let payload = format!(r#"{{"n":{number},{members}}}"#);
    Publish {
        // A clean session knows no earlier attempt: the flag would be wrong over a new connection (MQTT 5.0, 3.3.1.1).
        dup: false,
        retain: false,
        qos: Qos::AtLeastOnce,
        packet_id: Some(id),
        topic: Some(topic.clone()),
        payload: Bytes::from(payload),
        properties: Properties::default(),
        topic_alias: None,
        subscription_id: None,
    }
}
