//! `tidegate import retained`: the retained messages of another broker, published into the running gateway.
//!
//! Promises: what it says was taken over has been acknowledged by the gateway, and so is on its disk; of both brokers it reads
//! no faster than the gateway takes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use crate::cli::secret;
use crate::cli::{Exit, block_on, drill};
use crate::clock::{Clock, ClockSource};
use crate::config::Endpoint;
use crate::health::chain;
use crate::message::{Filter, Qos, is_reserved};
use crate::mqtt::{
    Connect, DecodeError, Decoder, Disconnect, EncodeError, Encoder, Packet, PacketId, Publish, ReasonCode, Subscribe,
    Subscription, Version,
};
use crate::transport::{self, ConnectError, Stream, TlsFiles};

/// How long either side may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is listened after the answer to a PINGREQ, which follows what was said before it, for brokers that keep no
/// such order. What is live goes on for ever.
const LATE: Duration = Duration::from_secs(1);
/// Longest packet that is taken from the other broker.
const PACKET_BYTES_MAX: usize = 16 << 20;
/// Messages at the gateway that it has not acknowledged.
const WINDOW: usize = 50;
/// Refusals that are named one by one.
const NAMED_MAX: u64 = 20;

/// `tidegate import retained`
#[derive(Debug, clap::Args)]
pub(super) struct RetainedArguments {
    /// The broker that has them: mqtt://host:port or mqtts://host:port
    url: String,
    /// User name there
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// File whose first line is the password there
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,
    /// PEM file of the authorities that are trusted there, instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Which of them
    #[arg(long, value_name = "FILTER", default_value = "#")]
    filter: String,
    /// The gateway's configuration file, instead of /etc/tidegate/tidegate.toml
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The gateway's listener, instead of the configuration's first plain one
    #[arg(long, value_name = "ADDRESS:PORT")]
    broker: Option<SocketAddr>,
    /// User name at the gateway, where it has users
    #[arg(long, value_name = "NAME")]
    gateway_username: Option<String>,
    /// File whose first line is the password of that user
    #[arg(long, value_name = "FILE", requires = "gateway_username")]
    gateway_password_file: Option<PathBuf>,
}

/// Why it did not come to its end.
#[derive(Debug, Error)]
enum RetainedError {
    #[error("cannot reach {side}")]
    Connect {
        side: &'static str,
        #[source]
        source: ConnectError,
    },
    #[error("the connection to {side} broke")]
    Socket {
        side: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot understand {side}")]
    Decode {
        side: &'static str,
        #[source]
        source: DecodeError,
    },
    #[error("cannot write a packet to {side}")]
    Encode {
        side: &'static str,
        #[source]
        source: EncodeError,
    },
    #[error("{side} closed the connection")]
    Closed { side: &'static str },
    #[error("{side} does not answer")]
    Silent { side: &'static str },
    #[error("{side} refused the connection: {reason}")]
    Refused { side: &'static str, reason: ReasonCode },
    #[error("{side} refused the subscription: {reason}")]
    NotSubscribed { side: &'static str, reason: ReasonCode },
}

const THERE: &str = "the other broker";
const HERE: &str = "the gateway";

/// What came of it.
#[derive(Debug, Default)]
struct Count {
    taken: u64,
    refused: u64,
}

/// One end of the way.
struct End {
    side: &'static str,
    stream: Stream,
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
    next_id: u16,
}

pub(super) fn main(arguments: &RetainedArguments) -> Exit {
    let (from, filter) = match (drill::endpoint(&arguments.url), Filter::new(&arguments.filter)) {
        (Ok(from), Ok(filter)) => (from, filter),
        (Err(error), _) => return wrong(&chain(&error)),
        (_, Err(error)) => return wrong(&chain(&error)),
    };
    let to = match arguments.broker {
        Some(broker) => broker,
        None => match crate::cli::read(arguments.config.clone()) {
            Ok(loaded) => match drill::listener(&loaded.config) {
                Some(broker) => broker,
                None => return wrong("the gateway has no plain listener: say where with --broker ADDRESS:PORT"),
            },
            Err(exit) => return exit,
        },
    };
    let there = login("tidegate-import-read", &arguments.username, &arguments.password_file);
    let here = login("tidegate-import-write", &arguments.gateway_username, &arguments.gateway_password_file);
    let (there, here) = match (there, here) {
        (Ok(there), Ok(here)) => (there, here),
        (Err(error), _) | (_, Err(error)) => return wrong(&format!("cannot read the password: {error}")),
    };
    let files = TlsFiles { ca: arguments.ca.clone(), ..TlsFiles::default() };
    block_on(async move {
        match carry(&from, &files, there, to, here, filter).await {
            Ok(Count { taken, refused: 0 }) => {
                println!("{taken} retained messages were taken over; the gateway has acknowledged each of them.");
                Exit::Done
            }
            Ok(Count { taken, refused }) => {
                println!("{taken} retained messages were taken over, {refused} were not.");
                Exit::Failed
            }
            Err(error) => {
                eprintln!("tidegate: {}", chain(&error));
                eprintln!("help: nothing is lost by doing it again: what is there already is written over with itself");
                Exit::TryAgain
            }
        }
    })
}

fn wrong(what: &str) -> Exit {
    eprintln!("tidegate: {what}");
    Exit::Usage
}

fn login(client_id: &str, username: &Option<String>, password_file: &Option<PathBuf>) -> std::io::Result<Connect> {
    let mut connect = Connect::new(Version::V5, client_id);
    connect.username.clone_from(username);
    connect.password = password_file.as_deref().map(secret::from_file).transpose()?;
    Ok(connect)
}

async fn carry(
    from: &Endpoint,
    files: &TlsFiles,
    there: Connect,
    to: SocketAddr,
    here: Connect,
    filter: Filter,
) -> Result<Count, RetainedError> {
    let gateway = Endpoint { host: to.ip().to_string(), port: to.port(), tls: false, path: None };
    let mut sink = End::open(HERE, &gateway, &TlsFiles::default(), here, Version::V5).await?;
    let mut source = match End::open(THERE, from, files, there.clone(), Version::V5).await {
        // Older brokers know 3.1.1 only, and some close the connection without a word.
        Err(RetainedError::Closed { .. } | RetainedError::Refused { reason: ReasonCode(0x01 | 0x84), .. }) => {
            End::open(THERE, from, files, there, Version::V311).await?
        }
        opened => opened?,
    };
    source.subscribe(filter).await?;
    source.send(&Packet::Pingreq).await?;

    let mut count = Count::default();
    let mut waiting: Vec<(PacketId, String)> = Vec::new();
    let mut end: Option<Instant> = None;
    // Also where there is always something more to read.
    while end.is_none_or(|end| Instant::now() < end) {
        match timeout_at(end.unwrap_or_else(|| Instant::now() + PATIENCE), source.next()).await {
            Ok(packet) => match packet? {
                Packet::Publish(publish) if publish.retain => {
                    let Some(topic) = publish.topic.as_ref().map(|topic| topic.as_str().to_owned()) else { continue };
                    if is_reserved(&topic) {
                        continue;
                    }
                    while waiting.len() >= WINDOW {
                        sink.acknowledged(&mut waiting, &mut count).await?;
                    }
                    let packet_id = sink.id();
                    match sink.send(&Packet::Publish(again(publish, packet_id))).await {
                        Ok(()) => waiting.push((packet_id, topic)),
                        Err(RetainedError::Encode { source, .. }) => count.refuse(&topic, &source.to_string()),
                        Err(error) => return Err(error),
                    }
                }
                Packet::Pingresp => end = Some(Instant::now() + LATE),
                _ => {}
            },
            Err(_) if end.is_some() => {}
            Err(_) => return Err(RetainedError::Silent { side: THERE }),
        }
    }
    while !waiting.is_empty() {
        sink.acknowledged(&mut waiting, &mut count).await?;
    }
    for end in [&mut source, &mut sink] {
        end.send(&Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS))).await?;
    }
    Ok(count)
}

/// The same message, at QoS 1.
fn again(publish: Publish, packet_id: PacketId) -> Publish {
    Publish {
        dup: false,
        retain: true,
        qos: Qos::AtLeastOnce,
        packet_id: Some(packet_id),
        topic_alias: None,
        subscription_id: None,
        ..publish
    }
}

impl Count {
    fn refuse(&mut self, topic: &str, why: &str) {
        self.refused += 1;
        if self.refused <= NAMED_MAX {
            eprintln!("not taken over: {}: {why}", topic.escape_debug());
        }
    }
}

impl End {
    async fn open(
        side: &'static str,
        endpoint: &Endpoint,
        files: &TlsFiles,
        mut connect: Connect,
        version: Version,
    ) -> Result<End, RetainedError> {
        let now = Clock::new(ClockSource::TimeService).now();
        let opened = transport::connect(endpoint, files, now, PATIENCE).await;
        let stream = opened.map_err(|source| RetainedError::Connect { side, source })?;
        connect.version = version;
        let mut end = End {
            side,
            stream,
            decoder: Decoder::from_server(version, PACKET_BYTES_MAX),
            encoder: Encoder::new(version),
            input: BytesMut::new(),
            next_id: 0,
        };
        end.send(&Packet::Connect(Box::new(connect))).await?;
        match end.answer().await? {
            Packet::Connack(connack) if !connack.reason.is_failure() => {
                if let Some(bytes) = connack.packet_bytes_max.and_then(|bytes| usize::try_from(bytes).ok()) {
                    end.encoder.set_packet_bytes_max(bytes);
                }
                Ok(end)
            }
            Packet::Connack(connack) => Err(RetainedError::Refused { side, reason: connack.reason }),
            _ => Err(RetainedError::Closed { side }),
        }
    }

    fn id(&mut self) -> PacketId {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        PacketId::new(self.next_id).unwrap_or(PacketId::MIN)
    }

    async fn send(&mut self, packet: &Packet) -> Result<(), RetainedError> {
        let side = self.side;
        let mut output = BytesMut::new();
        self.encoder.encode(packet, &mut output).map_err(|source| RetainedError::Encode { side, source })?;
        let written = async {
            self.stream.write_all_buf(&mut output).await?;
            self.stream.flush().await
        };
        let written = timeout(PATIENCE, written).await.map_err(|_| RetainedError::Silent { side })?;
        written.map_err(|source| RetainedError::Socket { side, source })
    }

    /// The next packet. Cancel safe.
    async fn next(&mut self) -> Result<Packet, RetainedError> {
        let side = self.side;
        loop {
            let decoded = self.decoder.decode(&mut self.input);
            if let Some(packet) = decoded.map_err(|source| RetainedError::Decode { side, source })? {
                return Ok(packet);
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return Err(RetainedError::Closed { side }),
                Ok(_) => {}
                Err(source) => return Err(RetainedError::Socket { side, source }),
            }
        }
    }

    async fn answer(&mut self) -> Result<Packet, RetainedError> {
        let side = self.side;
        timeout(PATIENCE, self.next()).await.map_err(|_| RetainedError::Silent { side })?
    }

    async fn subscribe(&mut self, filter: Filter) -> Result<(), RetainedError> {
        let side = self.side;
        // At QoS 0: the order holds then, so that the answer to a PINGREQ comes behind the last of them.
        let subscription = Subscription {
            filter,
            qos: Qos::AtMostOnce,
            no_local: false,
            retain_as_published: true,
            retain_handling: 0,
        };
        let packet_id = self.id();
        let subscribe = Subscribe { packet_id, subscriptions: vec![subscription], subscription_id: None };
        self.send(&Packet::Subscribe(subscribe)).await?;
        match self.answer().await? {
            Packet::Suback(suback) => match suback.reasons.first() {
                Some(reason) if reason.is_failure() => Err(RetainedError::NotSubscribed { side, reason: *reason }),
                _ => Ok(()),
            },
            _ => Err(RetainedError::Closed { side }),
        }
    }

    /// Waits for one answer of the gateway.
    async fn acknowledged(
        &mut self,
        waiting: &mut Vec<(PacketId, String)>,
        count: &mut Count,
    ) -> Result<(), RetainedError> {
        match self.answer().await? {
            Packet::Puback(ack) => {
                if let Some(place) = waiting.iter().position(|(packet_id, _)| *packet_id == ack.packet_id) {
                    let (_, topic) = waiting.swap_remove(place);
                    match ack.reason.is_failure() {
                        true => count.refuse(&topic, &ack.reason.to_string()),
                        false => count.taken += 1,
                    }
                }
                Ok(())
            }
            Packet::Disconnect(disconnect) => {
                Err(RetainedError::Refused { side: self.side, reason: disconnect.reason })
            }
            _ => Ok(()),
        }
    }
}
