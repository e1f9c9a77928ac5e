//! The line between gateway and cloud: a TCP relay that is slow like a mobile line, and that can be cut.
//!
//! A cut looks like dropped packets: nothing is closed and nothing is refused, bytes simply stop. Connections that
//! were open at the cut stay dead when the line is back, as when a router on the way has forgotten them; both ends
//! must find that out by themselves.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// One way; a mobile line has about this.
pub(super) const DELAY: Duration = Duration::from_millis(20);

/// Each way: about 3 Mbit/s, so that catching up takes long enough to be seen.
pub(super) const BYTES_PER_S: u32 = 400_000;

/// One read, and with `PIECES_MAX` the bytes that are on the line at once.
const PIECE_BYTES: usize = 2048;
const PIECES_MAX: usize = 64;

/// Connections, the dead ones included.
const RELAYS_MAX: usize = 128;

/// How long a killed client's last bytes may take to show that it is gone.
const SETTLE: Duration = Duration::from_millis(5);

/// The line. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Line {
    is_up: Arc<watch::Sender<bool>>,
}

impl Line {
    /// A line that is up.
    pub(super) fn new() -> Line {
        Line { is_up: Arc::new(watch::Sender::new(true)) }
    }

    /// From now on nothing passes.
    pub(super) fn cut(&self) {
        self.is_up.send_replace(false);
    }

    /// New connections pass again.
    pub(super) fn restore(&self) {
        self.is_up.send_replace(true);
    }

    /// Whether bytes pass.
    pub(super) fn is_up(&self) -> bool {
        *self.is_up.borrow()
    }

    /// Listens on a free loopback port.
    pub(super) async fn listen() -> io::Result<(TcpListener, SocketAddr)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    }

    /// Carries connections to `cloud` until the listener fails.
    pub(super) async fn run(self, listener: TcpListener, cloud: SocketAddr) -> io::Result<()> {
        let mut relays = JoinSet::new();
        let mut is_up = self.is_up.subscribe();
        loop {
            // While the line is cut nothing is accepted: the kernel answers the handshake, and then there is silence.
            if is_up.wait_for(|up| *up).await.is_err() {
                return Ok(());
            }
            let client = tokio::select! {
                accepted = listener.accept() => accepted?.0,
                _ = is_up.wait_for(|up| !*up) => continue,
            };
            while relays.try_join_next().is_some() {}
            if relays.len() < RELAYS_MAX {
                let line = self.clone();
                relays.spawn(async move {
                    // A connection that fails is closed at both ends; whoever wants another one makes it.
                    let _ended: io::Result<()> = line.relay(client, cloud).await;
                });
            }
        }
    }

    async fn relay(&self, client: TcpStream, cloud: SocketAddr) -> io::Result<()> {
        let mut is_up = self.is_up.subscribe();
        client.set_nodelay(true)?;
        let mut first = BytesMut::new();
        if !is_alive(&client, &mut first).await {
            return Ok(());
        }
        let server = TcpStream::connect(cloud).await?;
        server.set_nodelay(true)?;
        let (client_in, mut client_out) = client.into_split();
        let (server_in, mut server_out) = server.into_split();
        let cut = async {
            let _gone = is_up.wait_for(|up| !*up).await;
        };
        tokio::select! {
            // What was on the line at the cut is lost, and both sockets stay open and silent.
            () = cut => std::future::pending().await,
            ended = async {
                tokio::try_join!(
                    carry(client_in, &mut server_out, first.freeze()),
                    carry(server_in, &mut client_out, Bytes::new()),
                )
            } => ended.map(|_| ()),
        }
    }
}

/// Whether `client` is still there. One that gave up while the line was cut has closed behind its CONNECT, which
/// must then not reach the cloud: on a real line it would never have got so far. What it has sent goes to `first`.
async fn is_alive(client: &TcpStream, first: &mut BytesMut) -> bool {
    sleep(SETTLE).await;
    while first.len() < PIECE_BYTES {
        match client.try_read_buf(first) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

/// Carries bytes one way, late and slowly, until their source closes.
async fn carry(mut from: OwnedReadHalf, to: &mut OwnedWriteHalf, first: Bytes) -> io::Result<()> {
    let (enter, mut leave) = mpsc::channel::<(Instant, Bytes)>(PIECES_MAX);
    let entering = async move {
        let mut piece = first;
        loop {
            if !piece.is_empty() {
                let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                sleep(Duration::from_secs(1) * length / BYTES_PER_S).await;
                if enter.send((Instant::now() + DELAY, piece)).await.is_err() {
                    return Ok(());
                }
            }
            let mut next = BytesMut::with_capacity(PIECE_BYTES);
            if from.read_buf(&mut next).await? == 0 {
                return Ok(());
            }
            piece = next.freeze();
        }
    };
    let leaving = async {
        while let Some((due, piece)) = leave.recv().await {
            sleep_until(due).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(entering, leaving).map(|_: ((), ())| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_cut_line_is_silent_and_a_new_connection_passes_when_it_is_back() {
        let cloud = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let cloud_address = cloud.local_addr().unwrap();
        let line = Line::new();
        let (listener, address) = Line::listen().await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(line.clone().run(listener, cloud_address));

        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"one").await.unwrap();
        let (mut far, _) = timeout(DEADLINE, cloud.accept()).await.unwrap().unwrap();
        let mut got = [0; 3];
        timeout(DEADLINE, far.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!(&got, b"one");

        line.cut();
        client.write_all(b"two").await.unwrap();
        let mut given_up = TcpStream::connect(address).await.unwrap();
        given_up.write_all(b"gone").await.unwrap();
        drop(given_up);
        let mut patient = TcpStream::connect(address).await.unwrap();
        patient.write_all(b"six").await.unwrap();
        // Silence cannot be waited for as a state: a short while must do.
        assert!(timeout(Duration::from_millis(200), far.read_u8()).await.is_err());
        assert!(timeout(Duration::from_millis(1), cloud.accept()).await.is_err());

        line.restore();
        let (mut near, _) = timeout(DEADLINE, cloud.accept()).await.unwrap().unwrap();
        timeout(DEADLINE, near.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!(&got, b"six");
        assert!(timeout(Duration::from_millis(200), far.read_u8()).await.is_err(), "a dead connection came back");
        assert!(timeout(Duration::from_millis(1), cloud.accept()).await.is_err(), "a client that gave up got through");
    }
}
