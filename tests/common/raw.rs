//! MQTT by hand, over plain bytes: for what no library would send, and for knowing exactly when an answer came.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// Protocol level in CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1
    V311,
    /// MQTT 5.0
    V5,
}

/// One connection.
pub struct RawClient {
    stream: TcpStream,
    version: Version,
}

/// What a connection said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// First byte and the rest after the length.
    Packet(u8, Vec<u8>),
    /// The other end closed.
    Closed,
    /// Nothing within the time.
    Silence,
}

impl RawClient {
    /// Connects with a clean session and expects to be let in.
    pub fn connected(port: u16, version: Version, client_id: &str) -> RawClient {
        RawClient::connected_with(port, version, client_id, None)
    }

    /// The same with a will at QoS 1 on this topic.
    pub fn connected_with_will(port: u16, version: Version, client_id: &str, topic: &str) -> RawClient {
        RawClient::connected_with(port, version, client_id, Some(topic))
    }

    fn connected_with(port: u16, version: Version, client_id: &str, will: Option<&str>) -> RawClient {
        RawClient::try_connected(port, version, client_id, will)
            .unwrap_or_else(|heard| panic!("CONNECT of {client_id} was answered by {heard:?}"))
    }

    /// The same, where it may be that nobody is there or that the answer is no.
    pub fn try_connected(port: u16, version: Version, client_id: &str, will: Option<&str>) -> Result<RawClient, Heard> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|_| Heard::Closed)?;
        stream.set_nodelay(true).unwrap();
        let mut client = RawClient { stream, version };
        let mut body = vec![0, 4];
        body.extend(b"MQTT");
        body.push(if version == Version::V5 { 5 } else { 4 });
        body.extend([if will.is_some() { 0x0e } else { 0x02 }, 0, 60]);
        let no_properties = if version == Version::V5 { &[0][..] } else { &[] };
        body.extend(no_properties);
        body.extend(text(client_id.as_bytes()));
        if let Some(topic) = will {
            body.extend(no_properties);
            body.extend(text(topic.as_bytes()));
            body.extend(text(b"dead"));
        }
        client.send(&packet(0x10, &body));
        match client.hear(Duration::from_secs(20)) {
            Heard::Packet(0x20, body) if body.get(1) == Some(&0) => Ok(client),
            other => Err(other),
        }
    }

    /// Connects with a session that outlives the socket for so long (version 3.1.1 cannot say how long), or goes on with
    /// it. Says whether it was there.
    pub fn resuming(port: u16, version: Version, client_id: &str, expiry_s: u32) -> (RawClient, bool) {
        RawClient::try_resuming(port, version, client_id, expiry_s)
            .unwrap_or_else(|heard| panic!("CONNECT of {client_id} was answered by {heard:?}"))
    }

    /// The same, where the answer may be no.
    pub fn try_resuming(
        port: u16,
        version: Version,
        client_id: &str,
        expiry_s: u32,
    ) -> Result<(RawClient, bool), Heard> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|_| Heard::Closed)?;
        stream.set_nodelay(true).unwrap();
        let mut client = RawClient { stream, version };
        let mut body = vec![0, 4];
        body.extend(b"MQTT");
        body.extend([if version == Version::V5 { 5 } else { 4 }, 0, 0, 60]);
        if version == Version::V5 {
            body.extend([5, 0x11]);
            body.extend(expiry_s.to_be_bytes());
        }
        body.extend(text(client_id.as_bytes()));
        client.send(&packet(0x10, &body));
        match client.hear(Duration::from_secs(20)) {
            Heard::Packet(0x20, body) if body.get(1) == Some(&0) => Ok((client, body[0] & 1 == 1)),
            other => Err(other),
        }
    }

    /// Takes a filter back and expects to be told so.
    pub fn unsubscribe(&mut self, filter: &str) {
        let mut body = vec![0, 2];
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(text(filter.as_bytes()));
        self.send(&packet(0xa2, &body));
        match self.hear(Duration::from_secs(20)) {
            Heard::Packet(0xb0, _) => {}
            other => panic!("UNSUBSCRIBE {filter} was answered by {other:?}"),
        }
    }

    /// Says goodbye; in version 5 with another life of the session.
    pub fn disconnect(mut self, expiry_s: Option<u32>) {
        match expiry_s {
            Some(expiry_s) => {
                let mut body = vec![0, 5, 0x11];
                body.extend(expiry_s.to_be_bytes());
                self.send(&packet(0xe0, &body));
            }
            None => self.send(&packet(0xe0, &[])),
        }
        // Until the other end has taken note of it.
        while self.hear(Duration::from_secs(20)) != Heard::Closed {}
    }

    /// The port of this end.
    pub fn local_port(&self) -> u16 {
        self.stream.local_addr().unwrap().port()
    }

    /// Sends bytes as they are.
    /// The same socket, for another thread.
    pub fn socket(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // The other end may have closed already: what it said before counts.
        self.stream.write_all(bytes).ok();
    }

    /// Sends a PUBLISH; `topic` may be anything.
    pub fn publish(&mut self, topic: &[u8], qos: u8, packet_id: u16, payload: &[u8]) {
        let bytes = self.publish_bytes(topic, qos, packet_id, payload);
        self.send(&bytes);
    }

    /// The bytes of a PUBLISH.
    pub fn publish_bytes(&self, topic: &[u8], qos: u8, packet_id: u16, payload: &[u8]) -> Vec<u8> {
        let mut body = text(topic);
        if qos > 0 {
            body.extend(packet_id.to_be_bytes());
        }
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(payload);
        packet(0x30 | (qos << 1), &body)
    }

    /// Sends PUBREL.
    pub fn release(&mut self, packet_id: u16) {
        self.send(&packet(0x62, &packet_id.to_be_bytes()));
    }

    /// Subscribes to one filter and expects to be granted it.
    pub fn subscribe(&mut self, filter: &str, qos: u8) {
        let mut body = vec![0, 1];
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(text(filter.as_bytes()));
        body.push(qos);
        self.send(&packet(0x82, &body));
        match self.hear(Duration::from_secs(20)) {
            Heard::Packet(0x90, body) if body.last() == Some(&qos) => {}
            other => panic!("SUBSCRIBE {filter} was answered by {other:?}"),
        }
    }

    /// The next packet, whole.
    pub fn hear(&mut self, patience: Duration) -> Heard {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        let mut first = [0];
        match self.stream.read(&mut first) {
            Ok(0) => return Heard::Closed,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                return Heard::Silence;
            }
            Err(_) => return Heard::Closed,
        }
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let mut byte = [0];
            if self.stream.read_exact(&mut byte).is_err() {
                return Heard::Closed;
            }
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        match self.stream.read_exact(&mut body) {
            Ok(()) => Heard::Packet(first[0], body),
            Err(_) => Heard::Closed,
        }
    }
}

fn text(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

/// A packet with its length in front.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut rest = body.len();
    loop {
        let low = u8::try_from(rest & 0x7f).unwrap();
        rest >>= 7;
        out.push(if rest > 0 { low | 0x80 } else { low });
        if rest == 0 {
            break;
        }
    }
    out.extend(body);
    out
}
