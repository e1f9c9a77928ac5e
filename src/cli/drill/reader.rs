//! Reads the drill's messages back from the cloud: an MQTT client of its own with a session that the cloud keeps.
//!
//! Promises: a message is in the journal, synced, before the cloud hears that it was taken; while the line is down the
//! cloud keeps for this session what it gets. It never tells the gateway anything.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::journal::Journal;
use crate::cli::tally::{ID_PROPERTY, Tally};
use crate::clock::{Clock, ClockSource};
use crate::config::{Endpoint, UplinkConfig};
use crate::health::chain;
use crate::message::{Filter, Qos};
use crate::mqtt::{
    Ack, Connect, DecodeError, Decoder, Disconnect, EncodeError, Encoder, Packet, PacketId, ReasonCode, Subscribe,
    Subscription, Version,
};
use crate::transport::scram::ScramError;
use crate::transport::{self, ConnectError, Login, LoginError, Stream, Way};
use crate::uplink::proof::Proof;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const RECONNECT: Duration = Duration::from_secs(1);
const PING_EVERY: Duration = Duration::from_secs(5);
/// Without a word for so long the line is down.
const SILENCE_MAX: Duration = Duration::from_secs(12);
const KEEP_ALIVE_S: u16 = 15;
/// How long the cloud keeps the session of a drill that was broken off.
const SESSION_S: u32 = 7 * 86_400;
/// Longest packet that is taken: the drill's own messages are short.
const PACKET_BYTES_MAX: usize = 1024 * 1024;

/// Where and as whom.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub endpoints: Vec<Endpoint>,
    /// How it is reached, and as whom.
    pub uplink: UplinkConfig,
    pub version: Version,
    pub client_id: String,
    pub filter: Filter,
    /// Of this drill.
    pub drill: String,
}

impl Source {
    /// With the uplink's own settings under another client id.
    pub fn new(uplink: &UplinkConfig, filter: Filter, drill: &str) -> Source {
        let version = match uplink.protocol {
            crate::config::Protocol::V311 => Version::V311,
            crate::config::Protocol::V5 => Version::V5,
        };
        Source {
            endpoints: uplink.endpoints.clone(),
            uplink: uplink.clone(),
            version,
            client_id: format!("{}-drill", uplink.client_id),
            filter,
            drill: drill.to_owned(),
        }
    }
}

/// What came back. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Reader(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    tally: Tally,
    is_connected: bool,
    fault: Option<String>,
}

#[derive(Debug, Error)]
enum ReadError {
    #[error("cannot reach the cloud")]
    Connect(#[source] ConnectError),
    #[error(transparent)]
    Login(LoginError),
    #[error("the line to the cloud broke")]
    Socket(#[source] io::Error),
    #[error("cannot understand the cloud")]
    Decode(#[source] DecodeError),
    #[error("cannot write a packet")]
    Encode(#[source] EncodeError),
    #[error("the cloud does not answer")]
    Silent,
    #[error("the cloud closed the connection")]
    Closed,
    #[error("the cloud refused the connection (reason {0:#04x})")]
    Refused(u8),
    #[error(transparent)]
    Unproved(ScramError),
    #[error("the cloud refused the subscription (reason {0:#04x})")]
    NotSubscribed(u8),
    #[error("cannot write the drill's own file")]
    Journal(#[source] io::Error),
}

/// The members of the drill's payload.
#[derive(Debug, Deserialize)]
struct Payload {
    n: u64,
    drill: String,
}

impl Reader {
    /// One that knows what came back before.
    pub fn new(received: &[(u64, Option<String>)]) -> Reader {
        let mut tally = Tally::default();
        for (number, id) in received {
            tally.deliver(id.as_deref(), format!("{{\"n\":{number}}}").as_bytes());
        }
        Reader(Arc::new(Mutex::new(State { tally, is_connected: false, fault: None })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what came.
    pub fn tally<T>(&self, look: impl FnOnce(&Tally) -> T) -> T {
        look(&self.state().tally)
    }

    /// Whether it is subscribed at the moment.
    pub fn is_connected(&self) -> bool {
        self.state().is_connected
    }

    /// Why not.
    pub fn fault(&self) -> String {
        self.state().fault.clone().unwrap_or_else(|| "not connected yet".to_owned())
    }

    /// Reads until it is dropped.
    pub async fn run(self, source: Source, journal: Arc<Mutex<Journal>>) {
        for endpoint in source.endpoints.iter().cycle() {
            let ended = self.connection(&source, endpoint, &journal).await;
            {
                let mut state = self.state();
                state.is_connected = false;
                state.fault = ended.err().map(|error| chain(&error));
            }
            sleep(RECONNECT).await;
        }
    }

    async fn connection(
        &self,
        source: &Source,
        endpoint: &Endpoint,
        journal: &Mutex<Journal>,
    ) -> Result<(), ReadError> {
        let mut line = Line::open(source, endpoint, false).await?;
        let mut ping = interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = tokio::time::Instant::now();
        loop {
            tokio::select! {
                read = line.stream.read_buf(&mut line.input) => {
                    if read.map_err(ReadError::Socket)? == 0 {
                        return Err(ReadError::Closed);
                    }
                    heard = tokio::time::Instant::now();
                    let mut answers = Vec::new();
                    while let Some(packet) = line.decoder.decode(&mut line.input).map_err(ReadError::Decode)? {
                        self.take(packet, source, journal, &mut answers)?;
                    }
                    // Before the cloud hears of it.
                    journal.lock().unwrap_or_else(PoisonError::into_inner).sync().map_err(ReadError::Journal)?;
                    line.send(&answers).await?;
                }
                _ = ping.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        return Err(ReadError::Silent);
                    }
                    line.send(&[Packet::Pingreq]).await?;
                }
            }
        }
    }

    fn take(
        &self,
        packet: Packet,
        source: &Source,
        journal: &Mutex<Journal>,
        answers: &mut Vec<Packet>,
    ) -> Result<(), ReadError> {
        match packet {
            Packet::Suback(suback) => {
                if let Some(refused) = suback.reasons.iter().find(|reason| reason.0 >= 0x80) {
                    return Err(ReadError::NotSubscribed(refused.0));
                }
                self.state().is_connected = true;
            }
            Packet::Publish(publish) => {
                let is_ours = |payload: &Payload| payload.drill == source.drill;
                if let Some(payload) = serde_json::from_slice::<Payload>(&publish.payload).ok().filter(is_ours) {
                    let user = &publish.properties.user;
                    let id = user.iter().find(|(name, _)| name == ID_PROPERTY).map(|(_, id)| id.as_str());
                    journal.lock().unwrap_or_else(PoisonError::into_inner).received(payload.n, id);
                    self.state().tally.deliver(id, &publish.payload);
                }
                if let Some(id) = publish.packet_id {
                    answers.push(Packet::Puback(Ack::new(id, ReasonCode::SUCCESS)));
                }
            }
            Packet::Disconnect(_) => return Err(ReadError::Closed),
            _ => {}
        }
        Ok(())
    }
}

/// Ends the session, so that the cloud keeps nothing for a drill that is over. Where it cannot, the session expires.
pub(super) async fn forget(source: &Source) {
    for endpoint in &source.endpoints {
        if let Ok(Ok(mut line)) = timeout(CONNECT_WITHIN, Line::open(source, endpoint, true)).await {
            // The goodbye is a courtesy: the clean start has ended the session.
            let _unheard = line.send(&[Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS))]).await;
            return;
        }
    }
}

#[derive(Debug)]
struct Line {
    stream: Stream,
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
}

impl Line {
    /// Connects and, unless the session is to be ended, subscribes.
    async fn open(source: &Source, endpoint: &Endpoint, is_clean: bool) -> Result<Line, ReadError> {
        let now = Clock::new(ClockSource::Trusted).now();
        let login = Login::read(&source.uplink, endpoint, now).await.map_err(ReadError::Login)?;
        let way = Way::new(&source.uplink, endpoint);
        let connecting = transport::connect_by(endpoint, &way, now, CONNECT_WITHIN);
        let stream = connecting.await.map_err(ReadError::Connect)?;
        let mut line = Line {
            stream,
            decoder: Decoder::from_server(source.version, PACKET_BYTES_MAX),
            encoder: Encoder::new(source.version),
            input: BytesMut::new(),
        };
        let is_v5 = source.version == Version::V5;
        let mut proof = Proof::new(login.scram, source.uplink.auth_method.as_deref());
        let (auth_method, auth_data) = login.auth.unzip();
        let connect = Connect {
            clean_start: is_clean,
            keep_alive_s: KEEP_ALIVE_S,
            username: login.username,
            password: login.password,
            auth_method,
            auth_data,
            session_expiry_s: (is_v5 && !is_clean).then_some(SESSION_S),
            ..Connect::new(source.version, source.client_id.clone())
        };
        line.send(&[Packet::Connect(Box::new(connect))]).await?;
        loop {
            let packet = timeout(CONNECT_WITHIN, line.receive()).await.map_err(|_| ReadError::Silent)??;
            match proof.hear(packet).map_err(ReadError::Unproved)? {
                Some(Packet::Connack(connack)) if !connack.reason.is_failure() => break,
                Some(Packet::Connack(connack)) => return Err(ReadError::Refused(connack.reason.0)),
                Some(_) => return Err(ReadError::Closed),
                None => {
                    let answer = proof.answer().await.map_err(ReadError::Unproved)?;
                    line.send(&[answer]).await?;
                }
            }
        }
        if !is_clean && let Some(packet_id) = PacketId::new(1) {
            let subscription = Subscription {
                filter: source.filter.clone(),
                qos: Qos::AtLeastOnce,
                no_local: false,
                retain_as_published: false,
                retain_handling: 2,
            };
            let subscribe = Subscribe { packet_id, subscriptions: vec![subscription], subscription_id: None };
            line.send(&[Packet::Subscribe(subscribe)]).await?;
        }
        Ok(line)
    }

    async fn receive(&mut self) -> Result<Packet, ReadError> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).map_err(ReadError::Decode)? {
                return Ok(packet);
            }
            if self.stream.read_buf(&mut self.input).await.map_err(ReadError::Socket)? == 0 {
                return Err(ReadError::Closed);
            }
        }
    }

    async fn send(&mut self, packets: &[Packet]) -> Result<(), ReadError> {
        let mut output = BytesMut::new();
        for packet in packets {
            self.encoder.encode(packet, &mut output).map_err(ReadError::Encode)?;
        }
        timeout(CONNECT_WITHIN, async {
            self.stream.write_all_buf(&mut output).await?;
            self.stream.flush().await
        })
        .await
        .map_err(|_| ReadError::Silent)?
        .map_err(ReadError::Socket)
    }
}
