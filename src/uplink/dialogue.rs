//! A short connection beside the session's own: connect, subscribe, ask, hear the answer, go. For what a gateway has to
//! settle with a cloud before it has a session there.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::reason::{meaning, quoted};
use crate::config::Endpoint;
use crate::message::{ClockState, Filter, Properties, Qos, Stamp, Topic};
use crate::mqtt::{
    Ack, Connect, DecodeError, Decoder, Disconnect, EncodeError, Encoder, Packet, PacketId, Publish, ReasonCode,
    Subscribe, Subscription,
};
use crate::transport::{self, ConnectError, Refusal, Stream, Way};

/// Each step may take this.
const STEP_WITHIN: Duration = Duration::from_secs(10);

/// The longest packet that is taken: certificates, and a configuration for the device.
const PACKET_BYTES_MAX: usize = 256 * 1024;

/// Why it came to nothing.
#[derive(Debug, Error)]
pub enum DialogueError {
    /// No connection.
    #[error(transparent)]
    Connect(ConnectError),
    /// CONNACK said no.
    #[error("the cloud refused the connection: {} ({reason}){}", meaning(*.reason), quoted(text))]
    Refused {
        /// The code.
        reason: ReasonCode,
        /// What it added.
        text: String,
    },
    /// A subscription was refused.
    #[error("the cloud does not allow the subscription to {filter}")]
    Subscription {
        /// To what.
        filter: String,
    },
    /// It ended the connection.
    #[error("the cloud closed the connection while {step} was waited for{why}")]
    Closed {
        /// What was waited for.
        step: &'static str,
        /// What it said to that.
        why: String,
    },
    /// TLS said no after its handshake.
    #[error("{0}")]
    Tls(Refusal),
    /// Nothing came.
    #[error("{step} did not come within {} s", STEP_WITHIN.as_secs())]
    Late {
        /// What was waited for.
        step: &'static str,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// It speaks something else.
    #[error("the cloud broke the protocol")]
    Decode(#[source] DecodeError),
    /// What was to be said cannot be.
    #[error("a packet cannot be written")]
    Encode(#[source] EncodeError),
}

/// The connection.
pub(super) struct Dialogue {
    stream: Stream,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
    clock: ClockState,
    last_id: u16,
}

impl Dialogue {
    /// Connects and waits for a CONNACK that says yes.
    pub async fn open(endpoint: &Endpoint, way: &Way, now: Stamp, connect: Connect) -> Result<Dialogue, DialogueError> {
        let version = connect.version;
        let stream = transport::connect_by(endpoint, way, now, STEP_WITHIN).await.map_err(DialogueError::Connect)?;
        let mut dialogue = Dialogue {
            stream,
            encoder: Encoder::new(version),
            decoder: Decoder::from_server(version, PACKET_BYTES_MAX),
            input: BytesMut::new(),
            clock: now.clock,
            last_id: 0,
        };
        dialogue.send(&Packet::Connect(Box::new(connect))).await?;
        let connack = dialogue
            .wait("the answer to CONNECT", |packet| match packet {
                Packet::Connack(connack) => Some(connack),
                _ => None,
            })
            .await?;
        match connack.reason.is_failure() {
            true => {
                let text = connack.reason_string.unwrap_or_default();
                Err(DialogueError::Refused { reason: connack.reason, text })
            }
            false => Ok(dialogue),
        }
    }

    /// Subscribes to all of these at QoS 1, and waits until that is in force.
    pub async fn subscribe(&mut self, filters: &[Filter]) -> Result<(), DialogueError> {
        let packet_id = self.id();
        let subscriptions = filters.iter().map(|filter| Subscription {
            filter: filter.clone(),
            qos: Qos::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
        });
        let subscriptions = subscriptions.collect();
        self.send(&Packet::Subscribe(Subscribe { packet_id, subscriptions, subscription_id: None })).await?;
        let suback = self
            .wait("the answer to SUBSCRIBE", |packet| match packet {
                Packet::Suback(suback) if suback.packet_id == packet_id => Some(suback),
                _ => None,
            })
            .await?;
        let refused = filters.iter().zip(&suback.reasons).find(|(_, reason)| reason.is_failure());
        match refused {
            Some((filter, _)) => Err(DialogueError::Subscription { filter: filter.as_str().to_owned() }),
            None => Ok(()),
        }
    }

    /// Says something at QoS 1.
    pub async fn say(&mut self, topic: Topic, payload: Bytes) -> Result<(), DialogueError> {
        let packet_id = Some(self.id());
        self.send(&Packet::Publish(Publish {
            dup: false,
            retain: false,
            qos: Qos::AtLeastOnce,
            packet_id,
            topic: Some(topic),
            payload,
            properties: Properties::default(),
            topic_alias: None,
            subscription_id: None,
        }))
        .await
    }

    /// The next message, acknowledged.
    pub async fn hear(&mut self, step: &'static str) -> Result<(Topic, Bytes), DialogueError> {
        loop {
            let publish = self
                .wait(step, |packet| match packet {
                    Packet::Publish(publish) => Some(publish),
                    _ => None,
                })
                .await?;
            if let Some(id) = publish.packet_id {
                self.send(&Packet::Puback(Ack::new(id, ReasonCode::SUCCESS))).await?;
            }
            if let Some(topic) = publish.topic {
                return Ok((topic, publish.payload));
            }
        }
    }

    /// Says farewell. Heard or not, the connection ends.
    pub async fn close(mut self) {
        let farewell = async {
            self.send(&Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS))).await.ok();
            self.stream.shutdown().await.ok();
        };
        timeout(Duration::from_secs(1), farewell).await.ok();
    }

    fn id(&mut self) -> PacketId {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        PacketId::new(self.last_id).unwrap_or(PacketId::MIN)
    }

    async fn send(&mut self, packet: &Packet) -> Result<(), DialogueError> {
        let mut output = BytesMut::new();
        self.encoder.encode(packet, &mut output).map_err(DialogueError::Encode)?;
        // A peer that has closed already may have said why: that is found by reading.
        let writing = async {
            self.stream.write_all_buf(&mut output).await?;
            self.stream.flush().await
        };
        timeout(STEP_WITHIN, writing).await.ok();
        Ok(())
    }

    /// The next packet that `wanted` makes something of. Others are of no account here.
    async fn wait<T>(&mut self, step: &'static str, wanted: impl Fn(Packet) -> Option<T>) -> Result<T, DialogueError> {
        let reading = async {
            loop {
                match self.decoder.decode(&mut self.input).map_err(DialogueError::Decode)? {
                    Some(Packet::Disconnect(disconnect)) => {
                        let text = quoted(&disconnect.reason_string.unwrap_or_default());
                        let why = format!(": {} ({}){text}", meaning(disconnect.reason), disconnect.reason);
                        return Err(DialogueError::Closed { step, why });
                    }
                    Some(packet) => {
                        if let Some(found) = wanted(packet) {
                            return Ok(found);
                        }
                    }
                    None => match self.stream.read_buf(&mut self.input).await {
                        Ok(0) => return Err(DialogueError::Closed { step, why: String::new() }),
                        Ok(_) => {}
                        Err(error) => return Err(self.broken(step, error)),
                    },
                }
            }
        };
        timeout(STEP_WITHIN, reading).await.unwrap_or(Err(DialogueError::Late { step }))
    }

    fn broken(&self, step: &'static str, error: io::Error) -> DialogueError {
        match (transport::late_refusal(&error, self.clock), error.kind()) {
            (Some(refusal), _) => DialogueError::Tls(refusal),
            (None, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
                DialogueError::Closed { step, why: String::new() }
            }
            (None, _) => DialogueError::Broken(error),
        }
    }
}
