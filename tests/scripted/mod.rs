//! A cloud that answers each packet as a script says: TLS or plain, one task a connection, and what it decides in one place.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::CertificateDer;
use tidegate::mqtt::{Decoder, Encoder, Packet, Version};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// How often a connection looks at what the script wants of it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its number, from 1.
    pub number: usize,
    /// The certificate that it came with.
    pub certificate: Option<CertificateDer<'static>>,
}

/// What is done about it.
#[derive(Debug)]
pub enum Act {
    Say(Packet),
    /// What the codec does not write.
    Bytes(Vec<u8>),
    /// The same later.
    Later(Instant, Packet),
    /// The connection ends, after what was said.
    Close,
}

/// What a cloud decides.
pub trait Script: Send + 'static {
    /// What it makes of a packet.
    fn handle(&mut self, peer: &Peer, packet: Packet) -> Vec<Act>;

    /// What it does by itself; asked often.
    fn look(&mut self, _peer: &Peer) -> Vec<Act> {
        Vec::new()
    }

    /// A connection has ended.
    fn ended(&mut self, _peer: &Peer) {}
}

/// The cloud. Ends with its owner.
pub struct Scripted<S> {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    script: Arc<Mutex<S>>,
    runtime: Option<Runtime>,
}

impl<S: Script> Scripted<S> {
    pub fn started(script: S, acceptor: Option<TlsAcceptor>) -> Scripted<S> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Arc::new(Mutex::new(script));
        let shared = script.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut connections = tokio::task::JoinSet::new();
            for number in 1.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                stream.set_nodelay(true).unwrap();
                let (acceptor, script) = (acceptor.clone(), shared.clone());
                connections.spawn(async move {
                    let mut peer = Peer { number, certificate: None };
                    let Some(acceptor) = acceptor else { return serve(stream, &peer, &script).await };
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let first = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                    peer.certificate = first.map(|one| one.clone().into_owned());
                    serve(stream, &peer, &script).await;
                });
            }
        });
        Scripted { port, script, runtime: Some(runtime) }
    }

    /// What it goes by, and what it has seen.
    pub fn script(&self) -> MutexGuard<'_, S> {
        self.script.lock().unwrap()
    }
}

impl<S> Drop for Scripted<S> {
    fn drop(&mut self) {
        // Also from within another runtime.
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn serve<S: Script>(mut stream: impl AsyncRead + AsyncWrite + Unpin, peer: &Peer, script: &Mutex<S>) {
    let mut decoder = Decoder::from_client(1 << 20);
    let mut encoder = Encoder::new(Version::V311);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut late: Vec<(Instant, Packet)> = Vec::new();
    let mut is_over = false;
    while !is_over {
        let mut acts = Vec::new();
        tokio::select! {
            read = stream.read_buf(&mut input) => {
                if read.unwrap_or(0) == 0 {
                    break;
                }
            }
            () = tokio::time::sleep(LOOK_EVERY) => acts = script.lock().unwrap().look(peer),
        }
        loop {
            for act in acts.drain(..) {
                match act {
                    Act::Say(packet) => encoder.encode(&packet, &mut output).unwrap(),
                    Act::Bytes(bytes) => output.extend_from_slice(&bytes),
                    Act::Later(when, packet) => late.push((when, packet)),
                    Act::Close => is_over = true,
                }
            }
            let Ok(Some(packet)) = decoder.decode(&mut input) else { break };
            if is_over {
                break;
            }
            if let Packet::Connect(connect) = &packet {
                encoder = Encoder::new(connect.version);
            }
            acts = script.lock().unwrap().handle(peer, packet);
        }
        let now = Instant::now();
        while late.first().is_some_and(|(when, _)| *when <= now) {
            encoder.encode(&late.remove(0).1, &mut output).unwrap();
        }
        if stream.write_all_buf(&mut output).await.is_err() || stream.flush().await.is_err() {
            break;
        }
    }
    stream.shutdown().await.ok();
    script.lock().unwrap().ended(peer);
}
