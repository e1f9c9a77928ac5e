//! A cloud broker for tests: speaks both versions by our own codec, keeps a session, and misbehaves when told to.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use tidegate::message::Qos;
use tidegate::mqtt::{Ack, Auth, Connack, Decoder, Disconnect, Encoder, Packet, Publish, ReasonCode, Suback, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub mod delayed;
pub mod gateway;
pub mod wild;

/// How the cloud behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Temper {
    /// Granted in CONNACK.
    pub receive_max: Option<u16>,
    /// Closes the connection after so many packets, again and again.
    pub closes_after: Option<usize>,
    /// So many PUBACKs are gathered and come in one write.
    pub pubacks_at_once: Option<usize>,
    /// Answers CONNECT with this.
    pub refuses_with: Option<ReasonCode>,
    /// Takes everything and answers nothing but CONNECT.
    pub is_mute: bool,
    /// Answers a token that is shown on the open connection by DISCONNECT with this.
    pub refuses_token_with: Option<ReasonCode>,
    /// Does not answer one at all.
    pub is_deaf_to_tokens: bool,
}

/// What the cloud has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// How it behaves from the next packet on.
    pub temper: Temper,
    /// Every PUBLISH that was taken, repeats of a QoS 2 id not among them.
    pub got: Vec<Publish>,
    /// CONNECT packets that were accepted.
    pub connects: usize,
    /// Filters of SUBSCRIBE.
    pub filters: Vec<String>,
    /// Answers to what the cloud sent.
    pub answers: Vec<Packet>,
    /// Connections that ended with DISCONNECT, reason 0.
    pub farewells: usize,
    /// User names and passwords of CONNECT, in order.
    pub logins: Vec<(String, String)>,
    /// Enhanced authentication: method and data, of CONNECT and of AUTH.
    pub tokens: Vec<(String, String)>,
    /// Those of AUTH.
    pub shown_again: usize,
    /// Wills of CONNECT, by topic.
    pub wills: Vec<String>,
    has_session: bool,
    taken: BTreeSet<u16>,
}

/// The cloud. Ends with its last owner.
pub struct FakeCloud {
    /// Where it listens.
    pub port: u16,
    /// What it has seen.
    pub seen: Arc<Mutex<Seen>>,
    say: mpsc::Sender<Packet>,
    _tasks: JoinSet<()>,
}

impl FakeCloud {
    /// Listens on `port`, 0 for any.
    pub async fn start(port: u16, temper: Temper) -> FakeCloud {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Seen { temper, ..Seen::default() }));
        let (say, mut sayings) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        let shared = seen.clone();
        tasks.spawn(async move {
            let mut next = None;
            loop {
                let stream: TcpStream = match next.take() {
                    Some(stream) => stream,
                    None => listener.accept().await.unwrap().0,
                };
                stream.set_nodelay(true).unwrap();
                tokio::select! {
                    () = serve(stream, &shared, &mut sayings) => {}
                    // The one client came again: its old connection, which may be half open, is void.
                    accepted = listener.accept() => next = Some(accepted.unwrap().0),
                }
            }
        });
        FakeCloud { port, seen, say, _tasks: tasks }
    }

    /// Sends `packet` to the client that is connected.
    pub async fn say(&self, packet: Packet) {
        self.say.send(packet).await.unwrap();
    }
}

async fn serve(mut stream: TcpStream, seen: &Mutex<Seen>, sayings: &mut mpsc::Receiver<Packet>) {
    let mut decoder = Decoder::from_client(1 << 20);
    let mut encoder = Encoder::new(Version::V5);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut count = 0;
    loop {
        tokio::select! {
            read = stream.read_buf(&mut input) => {
                if read.unwrap_or(0) == 0 {
                    return;
                }
            }
            Some(packet) = sayings.recv() => encoder.encode(&packet, &mut output).unwrap(),
        }
        let mut is_over = false;
        while let Some(packet) = decoder.decode(&mut input).unwrap() {
            count += 1;
            let mut seen = seen.lock().unwrap();
            if seen.temper.closes_after.is_some_and(|after| count > after) {
                return;
            }
            if let Packet::Connect(connect) = &packet {
                encoder = Encoder::new(connect.version);
            }
            is_over |= matches!(packet, Packet::Disconnect(_));
            if let Some(answer) = seen.handle(packet) {
                encoder.encode(&answer, &mut output).unwrap();
            }
        }
        // PUBACKs of four bytes.
        let at_once = seen.lock().unwrap().temper.pubacks_at_once.map_or(0, |count| 4 * count);
        if output.first() == Some(&0x40) && output.len() < at_once && !is_over {
            continue;
        }
        if stream.write_all_buf(&mut output).await.is_err() || is_over {
            return;
        }
    }
}

impl Seen {
    fn handle(&mut self, packet: Packet) -> Option<Packet> {
        if self.temper.is_mute && !matches!(packet, Packet::Connect(_)) {
            return None;
        }
        match packet {
            Packet::Connect(connect) => {
                let mut connack = Connack::new(self.temper.refuses_with.unwrap_or(ReasonCode::SUCCESS));
                if let Some(method) = &connect.auth_method {
                    let data = connect.auth_data.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                    self.tokens.push((method.clone(), data.into_owned()));
                    connack.auth_method = Some(method.clone());
                }
                if !connack.reason.is_failure() {
                    self.connects += 1;
                    let password = connect.password.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                    self.logins.push((connect.username.clone().unwrap_or_default(), password.into_owned()));
                    self.wills.extend(connect.will.iter().map(|will| will.topic.to_string()));
                    if connect.clean_start {
                        self.has_session = false;
                        self.taken.clear();
                    }
                    connack.session_present = self.has_session;
                    connack.receive_max = self.temper.receive_max.and_then(NonZeroU16::new);
                    self.has_session = connect.version == Version::V5 || !connect.clean_start;
                }
                Some(Packet::Connack(Box::new(connack)))
            }
            Packet::Publish(publish) => {
                let Some(id) = publish.packet_id else {
                    self.got.push(publish);
                    return None;
                };
                if publish.qos == Qos::AtLeastOnce {
                    self.got.push(publish);
                    return Some(Packet::Puback(Ack::new(id, ReasonCode::SUCCESS)));
                }
                if self.taken.insert(id.get()) {
                    self.got.push(publish);
                }
                Some(Packet::Pubrec(Ack::new(id, ReasonCode::SUCCESS)))
            }
            Packet::Pubrel(ack) => {
                let known = self.taken.remove(&ack.packet_id.get());
                let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_IDENTIFIER_NOT_FOUND };
                Some(Packet::Pubcomp(Ack::new(ack.packet_id, reason)))
            }
            Packet::Subscribe(subscribe) => {
                let filters = subscribe.subscriptions.iter();
                self.filters.extend(filters.map(|one| one.filter.as_str().to_owned()));
                let reasons = subscribe.subscriptions.iter().map(|one| ReasonCode(one.qos.level())).collect();
                Some(Packet::Suback(Suback { packet_id: subscribe.packet_id, reasons }))
            }
            Packet::Auth(auth) => {
                assert_eq!(auth.reason, ReasonCode::RE_AUTHENTICATE);
                let data = auth.data.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                self.tokens.push((auth.method.clone().unwrap(), data.into_owned()));
                self.shown_again += 1;
                if let Some(reason) = self.temper.refuses_token_with {
                    return Some(Packet::Disconnect(Disconnect::new(reason)));
                }
                let answer = Auth { reason: ReasonCode::SUCCESS, data: None, ..auth };
                (!self.temper.is_deaf_to_tokens).then_some(Packet::Auth(answer))
            }
            Packet::Pingreq => Some(Packet::Pingresp),
            Packet::Disconnect(disconnect) => {
                self.farewells += usize::from(disconnect.reason == ReasonCode::SUCCESS);
                None
            }
            answer => {
                // A QoS 2 message of ours goes on with PUBREL.
                let release = match &answer {
                    Packet::Pubrec(ack) => Some(Packet::Pubrel(Ack::new(ack.packet_id, ReasonCode::SUCCESS))),
                    _ => None,
                };
                self.answers.push(answer);
                release
            }
        }
    }
}
