//! One accepted socket: bytes in, packets out of them, and back.
//!
//! Promises: memory grows with what has arrived, never with what was announced; `turn` loses nothing when it is
//! cancelled; a write without progress is noticed.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{self, Instant, Sleep};

use super::door::Door;
use super::limits::BrokerLimits;
use super::peer::Peer;
use super::places::Place;
use crate::config::Pace;
use crate::mqtt::{DecodeError, Decoder, EncodeError, Encoder, Packet, Version};
use crate::transport::{Pacing, Stream};

/// How much is read at once.
const READ_BYTES: usize = 16 * 1024;
/// Buffers that grew beyond this for one packet are given back.
const KEPT_BYTES: usize = 64 * 1024;
/// What is read of a peer that goes on talking after our last words.
const LINGER_BYTES: usize = 256 * 1024;

/// What a turn brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Bytes came or went.
    Moved,
    /// The peer has closed, in order or not.
    Ended,
}

/// A socket with its buffers.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    peer: Arc<Peer>,
    input: BytesMut,
    output: BytesMut,
    decoder: Decoder,
    encoder: Encoder,
    /// And since when it counts; `None` where the rate is not limited.
    pacing: Option<Box<(Pacing, Instant)>>,
    /// Nothing more is taken until then.
    paced: Option<Pin<Box<Sleep>>>,
    /// The stream has taken bytes that it may not have sent.
    is_unflushed: bool,
    /// Since when the output has not moved.
    stuck_since: Option<Instant>,
    /// Since when the packet at the front of the input is not whole.
    partial_since: Option<Instant>,
    door: Arc<Door>,
    _place: Place,
}

impl Socket {
    pub(super) fn new(stream: Stream, peer: Arc<Peer>, limits: &BrokerLimits, place: Place, door: Arc<Door>) -> Socket {
        Socket {
            stream,
            peer,
            input: BytesMut::new(),
            output: BytesMut::new(),
            decoder: Decoder::from_client(limits.connect_bytes),
            encoder: Encoder::new(Version::V311),
            pacing: (limits.rate != Pace::default()).then(|| Box::new((Pacing::new(limits.rate), Instant::now()))),
            paced: None,
            is_unflushed: false,
            stuck_since: None,
            partial_since: None,
            door,
            _place: place,
        }
    }

    /// Who is at the other end.
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Whether the listener that it came in by is not there any more.
    pub(super) fn is_shut_out(&self) -> bool {
        self.door.is_shut()
    }

    /// CONNECT has come: from here on packets may be longer, and are written in its version.
    pub(super) fn set_up(&mut self, version: Version, packet_bytes: usize, peer_takes: Option<u32>) {
        self.decoder.set_packet_bytes_max(packet_bytes);
        self.encoder = Encoder::new(version);
        if let Some(bytes) = peer_takes {
            self.encoder.set_packet_bytes_max(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
    }

    /// The next whole packet of what has arrived.
    pub(super) fn decode(&mut self) -> Result<Option<Packet>, DecodeError> {
        if self.is_paced() {
            return Ok(None);
        }
        let before = self.input.len();
        let packet = self.decoder.decode(&mut self.input)?;
        if let Some(Packet::Publish(_)) = &packet {
            self.pace(before - self.input.len());
        }
        if packet.is_some() || self.input.is_empty() {
            self.partial_since = None;
        } else if self.partial_since.is_none() {
            self.partial_since = Some(Instant::now());
        }
        if self.input.is_empty() && self.input.capacity() > KEPT_BYTES {
            self.input = BytesMut::new();
        }
        Ok(packet)
    }

    /// Whether what comes from this client is held back, because it came too fast.
    pub(super) fn is_paced(&self) -> bool {
        self.paced.is_some()
    }

    fn pace(&mut self, bytes: usize) {
        let Some((pacing, since)) = self.pacing.as_deref_mut() else { return };
        let now = since.elapsed();
        pacing.spend(now, bytes);
        let ready_at = pacing.ready_at(now);
        if ready_at > now {
            self.paced = Some(Box::pin(time::sleep_until(*since + ready_at)));
        }
    }

    /// Puts a packet behind what waits to be written.
    pub(super) fn send(&mut self, packet: &Packet) -> Result<(), EncodeError> {
        self.encoder.encode(packet, &mut self.output)?;
        if self.stuck_since.is_none() {
            self.stuck_since = Some(Instant::now());
        }
        Ok(())
    }

    /// Puts a packet of another version behind what waits: an answer to a CONNECT that was not understood.
    pub(super) fn send_as(&mut self, version: Version, packet: &Packet) -> Result<(), EncodeError> {
        Encoder::new(version).encode(packet, &mut self.output)
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.output.len()
    }

    /// When a write that does not move, or a packet that does not end, is to be given up.
    pub(super) fn deadline(&self, write_timeout: Duration, packet_timeout: Duration) -> Option<Instant> {
        let write = self.stuck_since.map(|since| since + write_timeout);
        let packet = self.partial_since.map(|since| since + packet_timeout);
        [write, packet].into_iter().flatten().min()
    }

    /// Nothing was read because we would not: the peer is not to be blamed for that time.
    pub(super) fn excuse(&mut self) {
        if self.partial_since.is_some() {
            self.partial_since = Some(Instant::now());
        }
    }

    /// Writes what waits and reads what has come, if it may; waits until either moves. Cancel safe.
    pub(super) async fn turn(&mut self, may_read: bool) -> Turn {
        poll_fn(|context| {
            let mut moved = false;
            if let Some(paced) = &mut self.paced
                && paced.as_mut().poll(context).is_ready()
            {
                self.paced = None;
                moved = true;
            }
            while !self.output.is_empty() {
                match Pin::new(&mut self.stream).poll_write(context, &self.output) {
                    Poll::Ready(Ok(0) | Err(_)) => {
                        // Nothing can be said any more. But what the peer said last is still to be read, and after
                        // it the end: were its DISCONNECT thrown away, its will would be published.
                        if !may_read {
                            return Poll::Ready(Turn::Ended);
                        }
                        self.output.clear();
                    }
                    Poll::Ready(Ok(count)) => {
                        // `poll_write` says at most what it was given.
                        drop(self.output.split_to(count.min(self.output.len())));
                        self.stuck_since = Some(Instant::now());
                        self.is_unflushed = true;
                        moved = true;
                    }
                    Poll::Pending => break,
                }
            }
            if self.output.is_empty() && self.is_unflushed {
                match Pin::new(&mut self.stream).poll_flush(context) {
                    Poll::Ready(Err(_)) if !may_read => return Poll::Ready(Turn::Ended),
                    Poll::Ready(_) => self.is_unflushed = false,
                    Poll::Pending => {}
                }
            }
            if self.output.is_empty() && !self.is_unflushed {
                self.stuck_since = None;
                if self.output.capacity() > KEPT_BYTES {
                    self.output = BytesMut::new();
                }
            }
            if may_read {
                match self.poll_fill(context) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Turn::Ended),
                    Poll::Ready(Ok(_)) => moved = true,
                    Poll::Pending => {}
                }
            }
            if moved { Poll::Ready(Turn::Moved) } else { Poll::Pending }
        })
        .await
    }

    /// Writes the last words and waits until the peer has read them, for a bounded time: a socket that is closed with
    /// bytes unread takes what was written last with it.
    pub(super) async fn part(mut self, patience: Duration) {
        let farewell = async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await?;
            self.stream.shutdown().await?;
            let mut read = 0;
            while read < LINGER_BYTES {
                self.input.clear();
                match poll_fn(|context| self.poll_fill(context)).await? {
                    0 => break,
                    count => read += count,
                }
            }
            Ok::<(), io::Error>(())
        };
        // Whether the peer took it does not matter any more.
        let _ended = time::timeout(patience, farewell).await;
    }

    fn poll_fill(&mut self, context: &mut std::task::Context<'_>) -> Poll<io::Result<usize>> {
        let mut chunk = [0; READ_BYTES];
        let mut buffer = ReadBuf::new(&mut chunk);
        match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) => {
                self.input.extend_from_slice(buffer.filled());
                Poll::Ready(Ok(buffer.filled().len()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use crate::broker::peer::PeerAddress;
    use crate::broker::places::Places;
    use crate::message::{Properties, Qos, Topic};
    use crate::mqtt::Publish;
    use crate::transport::accept_websocket;

    /// Bytes of each message: with its frame it goes at once.
    const BODY_BYTES: usize = 15_000;

    fn publish() -> Packet {
        Packet::Publish(Publish {
            dup: false,
            retain: false,
            qos: Qos::AtMostOnce,
            packet_id: None,
            topic: Some(Topic::new("t").unwrap()),
            payload: Bytes::from(vec![b'x'; BODY_BYTES]),
            properties: Properties::default(),
            topic_alias: None,
            subscription_id: None,
        })
    }

    #[tokio::test]
    async fn what_a_websocket_has_taken_is_sent_also_when_nothing_comes_after_it() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Protocol: mqtt\r\n\r\n";
        far.write_all(request).await.unwrap();
        let stream = accept_websocket(Stream::Unix(near), 1 << 20).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(far.read_u8().await.unwrap());
        }
        let address = PeerAddress::Unix { uid: None };
        let peer = Peer { address, listener: Arc::from("web"), is_encrypted: false, certificate: None };
        let place = Places::new(1, 1).take(None).unwrap();
        let mut socket = Socket::new(stream, Arc::new(peer), &BrokerLimits::default(), place, Door::plain("web"));
        // Nobody reads, so at some message the system takes no more: part of the one before it is in the stream then.
        let mut taken = 0;
        loop {
            socket.send(&publish()).unwrap();
            while !socket.output.is_empty() && time::timeout(Duration::ZERO, socket.turn(false)).await.is_ok() {}
            if !socket.output.is_empty() {
                break;
            }
            taken += 1;
        }
        assert!(taken > 1, "{taken}");
        socket.output.clear();
        // A header of three bytes and the topic; a frame has a header of four.
        let (packet, frame) = (3 + 3 + BODY_BYTES, 4);
        let mut rest = vec![0; taken * (packet + frame)];
        let reading = far.read_exact(&mut rest);
        let writing = async {
            loop {
                socket.turn(true).await;
            }
        };
        let read = time::timeout(Duration::from_secs(20), async {
            tokio::select! {
                read = reading => read.map(drop),
                () = writing => Ok(()),
            }
        });
        assert!(matches!(read.await, Ok(Ok(()))), "the end of the last message stays behind");
    }
}
