//! The stand-in cloud: a small MQTT server, 3.1.1 and 5, that takes messages at QoS 0, 1 and 2 and counts them.
//!
//! It keeps a client's session in memory for as long as the demo lives, so QoS 2 is exactly once over the gateway's
//! restarts. It never delivers anything to anybody: it is a receiver, and the judge of what arrived.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::cli::tally::{ID_PROPERTY, Tally};
use crate::message::Qos;
use crate::mqtt::{
    Ack, Connack, Connect, DecodeError, Decoder, Disconnect, EncodeError, Encoder, Packet, PacketId, Publish,
    ReasonCode, Suback, Unsuback, Version,
};

/// Longest packet taken: readings and numbered messages are some hundred bytes.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Messages in flight towards the cloud, as a cloud's broker would bound them.
const RECEIVE_MAX: u16 = 100;

/// A bridge and a gateway use one session each; the rest is room for the curious.
const SESSIONS_MAX: usize = 16;

/// The same for connections; those a cut line left half open are among them.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection may take to say CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The stand-in cloud. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Cloud(Arc<Mutex<Ground>>);

#[derive(Debug, Default)]
struct Ground {
    tally: Tally,
    sessions: HashMap<String, Session>,
}

/// What the cloud keeps of a client between its connections.
#[derive(Debug, Default)]
struct Session {
    /// QoS 2 packet ids between PUBREC and PUBREL: a PUBLISH that bears one is a repeat, not a message.
    released_later: HashSet<PacketId>,
    /// Ends the connection that has the session now.
    holder: CancellationToken,
    connected: bool,
}

/// Why a connection came to its end.
#[derive(Debug, Error)]
enum ConnectionError {
    #[error("cannot read from or write to the client")]
    Socket(#[source] io::Error),
    #[error("cannot understand the client")]
    Decode(#[source] DecodeError),
    #[error("cannot answer the client")]
    Encode(#[source] EncodeError),
    #[error("the client was silent for too long")]
    Silent,
    #[error("the client sent something that does not belong here")]
    Unexpected,
}

impl Cloud {
    /// Listens on a free loopback port.
    pub(super) async fn listen(&self) -> io::Result<(TcpListener, SocketAddr)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    }

    /// Serves until the listener fails.
    pub(super) async fn run(self, listener: TcpListener) -> io::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            while connections.try_join_next().is_some() {}
            if connections.len() >= CONNECTIONS_MAX {
                continue;
            }
            let cloud = self.clone();
            connections.spawn(async move {
                // How one connection ends is its client's affair: it comes back, and the count goes on.
                let _ended: Result<(), ConnectionError> = cloud.serve(stream).await;
            });
        }
    }

    /// Looks at what arrived.
    pub(super) fn tally<T>(&self, look: impl FnOnce(&mut Tally) -> T) -> T {
        look(&mut self.ground().tally)
    }

    /// Whether some client is connected, as far as the cloud can tell.
    pub(super) fn is_connected(&self) -> bool {
        self.ground().sessions.values().any(|session| session.connected)
    }

    fn ground(&self) -> MutexGuard<'_, Ground> {
        // The tally is whole after every statement, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, stream: TcpStream) -> Result<(), ConnectionError> {
        stream.set_nodelay(true).map_err(ConnectionError::Socket)?;
        let mut connection = Connection::new(stream);
        let first = timeout(CONNECT_TIMEOUT, connection.receive()).await.map_err(|_| ConnectionError::Silent)??;
        let Some(Packet::Connect(connect)) = first else { return Err(ConnectionError::Unexpected) };
        connection.encoder = Encoder::new(connect.version);
        let Some((present, holder)) = self.attach(&connect) else {
            return connection.send(&[Packet::Connack(Box::new(Connack::new(ReasonCode::QUOTA_EXCEEDED)))]).await;
        };
        let mut connack = Connack::new(ReasonCode::SUCCESS);
        connack.session_present = present;
        if connect.version == Version::V5 {
            connack.receive_max = NonZeroU16::new(RECEIVE_MAX);
        }
        connection.send(&[Packet::Connack(Box::new(connack))]).await?;

        // One and a half keep-alives of silence end a connection (MQTT 5.0, 3.1.2.10).
        let silence = match connect.keep_alive_s {
            0 => Duration::MAX,
            seconds => Duration::from_millis(u64::from(seconds) * 1500),
        };
        let ended = tokio::select! {
            () = holder.cancelled() => {
                let taken = Disconnect::new(ReasonCode::SESSION_TAKEN_OVER);
                // It may well be gone already: that is why another one has the session.
                let _gone = connection.send(&[Packet::Disconnect(taken)]).await;
                return Ok(());
            }
            ended = self.converse(&mut connection, &connect.client_id, silence) => ended,
        };
        if let Some(session) = self.ground().sessions.get_mut(&connect.client_id)
            && !holder.is_cancelled()
        {
            session.connected = false;
        }
        ended
    }

    /// Gives the session to a new connection and ends the one that had it. `None` = there are too many.
    fn attach(&self, connect: &Connect) -> Option<(bool, CancellationToken)> {
        let mut ground = self.ground();
        let known = ground.sessions.contains_key(&connect.client_id);
        if !known && ground.sessions.len() >= SESSIONS_MAX {
            return None;
        }
        let session = ground.sessions.entry(connect.client_id.clone()).or_default();
        session.holder.cancel();
        session.holder = CancellationToken::new();
        session.connected = true;
        if connect.clean_start {
            session.released_later.clear();
        }
        Some((known && !connect.clean_start, session.holder.clone()))
    }

    async fn converse(
        &self,
        connection: &mut Connection,
        client_id: &str,
        silence: Duration,
    ) -> Result<(), ConnectionError> {
        loop {
            let packet = timeout(silence, connection.receive()).await.map_err(|_| ConnectionError::Silent)??;
            let Some(packet) = packet else { return Ok(()) };
            let mut answers = Vec::new();
            let mut next = Some(packet);
            // Everything that one read brought is answered by one write.
            while let Some(packet) = next {
                if !self.take(packet, client_id, &mut answers)? {
                    return Ok(());
                }
                next = connection.buffered()?;
            }
            connection.send(&answers).await?;
        }
    }

    /// Counts and answers one packet; false = the client has said good-bye.
    fn take(&self, packet: Packet, client_id: &str, answers: &mut Vec<Packet>) -> Result<bool, ConnectionError> {
        match packet {
            Packet::Publish(publish) => answers.extend(self.take_publish(&publish, client_id)),
            Packet::Pubrel(release) => {
                if let Some(session) = self.ground().sessions.get_mut(client_id) {
                    session.released_later.remove(&release.packet_id);
                }
                answers.push(Packet::Pubcomp(Ack::new(release.packet_id, ReasonCode::SUCCESS)));
            }
            Packet::Subscribe(subscribe) => {
                let reasons = subscribe.subscriptions.iter().map(|subscription| ReasonCode(subscription.qos as u8));
                answers.push(Packet::Suback(Suback { packet_id: subscribe.packet_id, reasons: reasons.collect() }));
            }
            Packet::Unsubscribe(unsubscribe) => {
                let reasons = vec![ReasonCode::SUCCESS; unsubscribe.filters.len()];
                answers.push(Packet::Unsuback(Unsuback { packet_id: unsubscribe.packet_id, reasons }));
            }
            Packet::Pingreq => answers.push(Packet::Pingresp),
            Packet::Disconnect(_) => return Ok(false),
            _ => return Err(ConnectionError::Unexpected),
        }
        Ok(true)
    }

    fn take_publish(&self, publish: &Publish, client_id: &str) -> Option<Packet> {
        let mut ground = self.ground();
        let is_repeat = match (publish.qos, publish.packet_id, ground.sessions.get_mut(client_id)) {
            (Qos::ExactlyOnce, Some(id), Some(session)) => !session.released_later.insert(id),
            _ => false,
        };
        if !is_repeat {
            let user = &publish.properties.user;
            let id = user.iter().find(|(name, _)| name == ID_PROPERTY).map(|(_, id)| id.as_str());
            ground.tally.deliver(id, &publish.payload);
        }
        let answer = Ack::new(publish.packet_id?, ReasonCode::SUCCESS);
        Some(if publish.qos == Qos::ExactlyOnce { Packet::Pubrec(answer) } else { Packet::Puback(answer) })
    }
}

/// One socket, seen as packets.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
    output: BytesMut,
}

impl Connection {
    fn new(stream: TcpStream) -> Connection {
        Connection {
            stream,
            decoder: Decoder::from_client(PACKET_BYTES_MAX),
            encoder: Encoder::new(Version::V5),
            input: BytesMut::new(),
            output: BytesMut::new(),
        }
    }

    /// The next packet; `None` when the client has closed.
    async fn receive(&mut self) -> Result<Option<Packet>, ConnectionError> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(Some(packet));
            }
            if self.stream.read_buf(&mut self.input).await.map_err(ConnectionError::Socket)? == 0 {
                return Ok(None);
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Packet>, ConnectionError> {
        self.decoder.decode(&mut self.input).map_err(ConnectionError::Decode)
    }

    async fn send(&mut self, packets: &[Packet]) -> Result<(), ConnectionError> {
        for packet in packets {
            self.encoder.encode(packet, &mut self.output).map_err(ConnectionError::Encode)?;
        }
        self.stream.write_all_buf(&mut self.output).await.map_err(ConnectionError::Socket)
    }
}

/// Waits until `reached` says so, looking whenever `every` has passed; false when `limit` passes first.
pub(super) async fn wait_until(limit: Duration, every: Duration, mut reached: impl FnMut() -> bool) -> bool {
    let looking = async {
        while !reached() {
            tokio::time::sleep(every).await;
        }
    };
    timeout(limit, looking).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::publisher::{Order, Publisher, Sent};
    use crate::cli::tally::Count;
    use crate::message::{Properties, Topic};
    use bytes::Bytes;

    const DEADLINE: Duration = Duration::from_secs(20);
    const LOOK: Duration = Duration::from_millis(5);

    fn publish(number: u64, packet_id: u16, qos: Qos, dup: bool) -> Packet {
        Packet::Publish(Publish {
            dup,
            retain: false,
            qos,
            packet_id: PacketId::new(packet_id),
            topic: Some(Topic::new("plant/x").unwrap()),
            payload: Bytes::from(format!("{{\"n\":{number}}}")),
            properties: Properties {
                user: vec![(ID_PROPERTY.to_owned(), format!("g.0.1.{number}"))],
                ..Properties::default()
            },
            topic_alias: None,
            subscription_id: None,
        })
    }

    #[tokio::test]
    async fn numbered_messages_are_acknowledged_and_counted() {
        let cloud = Cloud::default();
        let (listener, address) = cloud.listen().await.unwrap();
        let publisher = Publisher::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(cloud.clone().run(listener));
        let publishing = publisher.clone();
        let sent = Sent {
            client_id: "press".to_owned(),
            login: None,
            topic: Topic::new("plant/x").unwrap(),
            members: "\"x\":1".to_owned(),
        };
        tasks.spawn(async move {
            publishing.run(address, sent).await;
            Ok(())
        });

        let first = publisher.order(Order::Burst { end: 500 });
        assert!(wait_until(DEADLINE, LOOK, || publisher.record(|record| record.is_at_rest())).await);
        let next = publisher.order(Order::Pace { per_second: 1000 });
        assert_eq!((first, next), (0, 500));
        assert!(wait_until(DEADLINE, LOOK, || publisher.record(|record| record.next()) > 600).await);
        let end = publisher.order(Order::Rest);
        assert!(wait_until(DEADLINE, LOOK, || publisher.record(|record| record.is_at_rest())).await);
        let count = publisher.record(|record| cloud.tally(|tally| tally.count(0..end, record)));
        assert_eq!(count, Count { acknowledged: end, received: end, repeated: 0, sent_again: 0 });
        publisher.record(|record| record.forget());
        assert_eq!(publisher.record(|record| record.next()), end);
    }

    #[test]
    fn a_qos_2_repeat_is_answered_and_not_counted_until_it_is_released() {
        let cloud = Cloud::default();
        cloud.ground().sessions.insert("g".to_owned(), Session::default());
        let mut answers = Vec::new();
        for dup in [false, true] {
            cloud.take(publish(1, 7, Qos::ExactlyOnce, dup), "g", &mut answers).unwrap();
        }
        assert_eq!(cloud.tally(|tally| tally.received()), 1);
        let ack = || Ack::new(PacketId::new(7).unwrap(), ReasonCode::SUCCESS);
        cloud.take(Packet::Pubrel(ack()), "g", &mut answers).unwrap();
        cloud.take(publish(2, 7, Qos::ExactlyOnce, false), "g", &mut answers).unwrap();
        cloud.take(publish(2, 7, Qos::AtLeastOnce, true), "g", &mut answers).unwrap();
        assert_eq!(cloud.tally(|tally| tally.received()), 3);
        let (rec, comp, back) = (Packet::Pubrec(ack()), Packet::Pubcomp(ack()), Packet::Puback(ack()));
        assert_eq!(answers, [rec.clone(), rec.clone(), comp, rec, back]);
        assert!(!cloud.take(Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS)), "g", &mut answers).unwrap());
    }
}
