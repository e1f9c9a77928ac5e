//! A cloud that does what no cloud should, from a seed: it delays, withholds, repeats, reorders and forges its
//! acknowledgements, refuses with every reason, closes on a message, loses its session, and grants less than before.
//!
//! Each is survivable: what is not acknowledged is sent again; what is refused for the moment is tried again; a forged or
//! repeated acknowledgement names an id that is not in flight. What it takes it takes for good, so that what arrived
//! twice or not at all is the gateway's fault, but for the session that it has lost.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tidegate::message::Qos;
use tidegate::mqtt::{
    Ack, Connack, Decoder, Disconnect, Encoder, Packet, PacketId, Publish, ReasonCode, Suback, Version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Refusals of a message for the moment, and for good.
const FOR_NOW: [u8; 4] = [0x80, 0x83, 0x91, 0x97];
const FOR_GOOD: [u8; 2] = [0x90, 0x99];
/// Ends of a connection; those that speak of the message among them.
const ENDS: [u8; 9] = [0x80, 0x81, 0x82, 0x89, 0x8B, 0x8D, 0x93, 0x97, 0x98];
/// Refusals of a connection.
const NO: [u8; 8] = [0x80, 0x83, 0x85, 0x87, 0x88, 0x89, 0x97, 0x9F];

/// How often it does what, in hundredths: of the connections, and of the messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mood {
    pub refuses_connections: u64,
    pub loses_session: u64,
    /// Another Receive Maximum with every connection.
    pub lowers_window: bool,
    /// At most QoS 1 on half of the connections.
    pub lowers_qos: bool,
    pub delays: u64,
    pub withholds: u64,
    pub repeats: u64,
    pub reorders: u64,
    pub forges: u64,
    pub refuses_for_now: u64,
    pub refuses_for_good: u64,
    pub forbids: u64,
    pub closes: u64,
    pub ends: u64,
    /// Closes on this message whenever it comes.
    pub closes_on: Option<usize>,
    /// Acknowledges and throws away: not survivable, for the control.
    pub throws_away: u64,
}

/// What it did and what came.
#[derive(Debug, Default)]
pub struct Doings {
    pub mood: Mood,
    /// How often each message was taken.
    pub got: BTreeMap<usize, usize>,
    /// Messages that it refused for good at least once.
    pub condemned: BTreeSet<usize>,
    pub connects: usize,
    pub sessions_lost: usize,
    pub misdeeds: BTreeMap<&'static str, usize>,
    /// What the gateway must never do.
    pub faults: Vec<String>,
    state: u64,
    has_session: bool,
    taken: BTreeMap<u16, usize>,
    out: BTreeSet<u16>,
    out_max: usize,
    qos_max: Qos2,
}

/// Maximum QoS of the connection.
#[derive(Debug, Clone, Copy)]
struct Qos2(Qos);

impl Default for Qos2 {
    fn default() -> Qos2 {
        Qos2(Qos::ExactlyOnce)
    }
}

/// The cloud. Ends with its owner.
pub struct WildCloud {
    pub port: u16,
    pub doings: Arc<Mutex<Doings>>,
    _tasks: JoinSet<()>,
}

enum Answer {
    Say(Vec<Packet>),
    Close,
}

impl WildCloud {
    pub async fn start(seed: u64, mood: Mood) -> WildCloud {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let doings = Arc::new(Mutex::new(Doings { mood, state: seed, ..Doings::default() }));
        let shared = doings.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut next: Option<TcpStream> = None;
            loop {
                let stream = match next.take() {
                    Some(stream) => stream,
                    None => listener.accept().await.unwrap().0,
                };
                stream.set_nodelay(true).unwrap();
                tokio::select! {
                    () = serve(stream, &shared) => {}
                    accepted = listener.accept() => next = Some(accepted.unwrap().0),
                }
            }
        });
        WildCloud { port, doings, _tasks: tasks }
    }

    /// From now on it is a cloud like any other.
    pub fn calm(&self) {
        self.doings.lock().unwrap().mood = Mood::default();
    }

    /// Ends the connection, and with it what it withholds.
    pub async fn hang_up(&self) {
        // A new connection takes over from the old one, and then is none.
        drop(TcpStream::connect(("127.0.0.1", self.port)).await);
    }
}

async fn serve(mut stream: TcpStream, doings: &Mutex<Doings>) {
    let mut decoder = Decoder::from_client(1 << 20);
    let mut encoder = Encoder::new(Version::V5);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    // What is delayed, by when it is due; equal times keep their order.
    let mut late: BTreeMap<(Instant, usize), Packet> = BTreeMap::new();
    let mut count = 0;
    loop {
        let due = late.keys().next().map(|(at, _)| *at);
        tokio::select! {
            read = stream.read_buf(&mut input) => {
                if read.unwrap_or(0) == 0 {
                    return;
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        while let Some(packet) = decoder.decode(&mut input).unwrap() {
            if let Packet::Connect(connect) = &packet {
                encoder = Encoder::new(connect.version);
            }
            let is_end = matches!(packet, Packet::Disconnect(_));
            let (answer, delay) = {
                let mut doings = doings.lock().unwrap();
                let delays = doings.mood.delays;
                let answer = doings.answer(packet);
                let delay = if doings.does("delays", delays) { doings.within(30) } else { 0 };
                (answer, delay)
            };
            match answer {
                Answer::Close => return,
                Answer::Say(packets) => {
                    for packet in packets {
                        count += 1;
                        late.insert((Instant::now() + Duration::from_millis(delay), count), packet);
                    }
                }
            }
            if is_end {
                return;
            }
        }
        let mut is_over = false;
        while let Some(entry) = late.first_entry().filter(|entry| entry.key().0 <= Instant::now()) {
            let packet = entry.remove();
            is_over |= matches!(packet, Packet::Disconnect(_))
                || matches!(&packet, Packet::Connack(connack) if connack.reason.is_failure());
            doings.lock().unwrap().says(&packet);
            encoder.encode(&packet, &mut output).unwrap();
        }
        if stream.write_all_buf(&mut output).await.is_err() || is_over {
            return;
        }
    }
}

impl Doings {
    fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn within(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    fn pick(&mut self, codes: &[u8]) -> ReasonCode {
        ReasonCode(codes[usize::try_from(self.within(codes.len() as u64)).unwrap()])
    }

    fn does(&mut self, what: &'static str, percent: u64) -> bool {
        let does = self.within(100) < percent;
        if does {
            *self.misdeeds.entry(what).or_default() += 1;
        }
        does
    }

    fn answer(&mut self, packet: Packet) -> Answer {
        let mood = self.mood;
        let is_flow = matches!(packet, Packet::Publish(_) | Packet::Pubrel(_));
        if is_flow {
            if self.does("closes", mood.closes) {
                return Answer::Close;
            }
            if self.does("ends", mood.ends) {
                let reason = self.pick(&ENDS);
                return Answer::Say(vec![Packet::Disconnect(Disconnect::new(reason))]);
            }
        }
        let answer = match packet {
            Packet::Connect(connect) => self.connect(connect.clean_start),
            Packet::Publish(publish) => match self.publish(&publish) {
                Some(Answer::Say(mut packets)) => packets.remove(0),
                Some(Answer::Close) => return Answer::Close,
                None => return Answer::Say(Vec::new()),
            },
            Packet::Pubrel(ack) => {
                let known = self.taken.remove(&ack.packet_id.get()).is_some();
                let reason = if known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_IDENTIFIER_NOT_FOUND };
                if ack.reason.is_failure() {
                    return Answer::Say(Vec::new());
                }
                Packet::Pubcomp(Ack::new(ack.packet_id, reason))
            }
            Packet::Subscribe(subscribe) => Packet::Suback(Suback {
                packet_id: subscribe.packet_id,
                reasons: subscribe.subscriptions.iter().map(|one| ReasonCode(one.qos.level())).collect(),
            }),
            Packet::Pingreq => Packet::Pingresp,
            _ => return Answer::Say(Vec::new()),
        };
        if !is_flow {
            return Answer::Say(vec![answer]);
        }
        if self.does("withholds", mood.withholds) {
            return Answer::Say(Vec::new());
        }
        let mut answers = vec![answer];
        if self.does("repeats", mood.repeats) {
            answers.push(answers[0].clone());
        }
        if self.does("forges", mood.forges) {
            // No id that a gateway which counts up from 1 has reached in a test.
            let id = PacketId::new(60_000 + u16::try_from(self.within(5000)).unwrap()).unwrap();
            let ack = Ack::new(id, ReasonCode::SUCCESS);
            answers.push(match self.within(5) {
                0 => Packet::Puback(ack),
                1 => Packet::Pubrec(ack),
                2 => Packet::Pubcomp(ack),
                3 => Packet::Pubrel(ack),
                _ => Packet::Suback(Suback { packet_id: id, reasons: vec![ReasonCode::SUCCESS] }),
            });
        }
        if self.does("reorders", mood.reorders) {
            answers.reverse();
        }
        Answer::Say(answers)
    }

    fn connect(&mut self, clean_start: bool) -> Packet {
        let mood = self.mood;
        if self.does("refuses connections", mood.refuses_connections) {
            let reason = self.pick(&NO);
            return Packet::Connack(Box::new(Connack::new(reason)));
        }
        self.connects += 1;
        self.out.clear();
        let loses = self.has_session && self.does("loses sessions", mood.loses_session);
        self.sessions_lost += usize::from(loses);
        if clean_start || loses {
            self.has_session = false;
            self.taken.clear();
        }
        let mut connack = Connack::new(ReasonCode::SUCCESS);
        connack.session_present = self.has_session;
        self.has_session = true;
        self.out_max = usize::MAX;
        if mood.lowers_window {
            let window = 1 + self.within(20);
            self.out_max = usize::try_from(window).unwrap();
            connack.receive_max = NonZeroU16::new(u16::try_from(window).unwrap());
        }
        self.qos_max = Qos2::default();
        if mood.lowers_qos && self.within(2) == 0 {
            self.qos_max = Qos2(Qos::AtLeastOnce);
            connack.qos_max = Some(Qos::AtLeastOnce);
        }
        Packet::Connack(Box::new(connack))
    }

    fn publish(&mut self, publish: &Publish) -> Option<Answer> {
        let say = |packet| Some(Answer::Say(vec![packet]));
        let number = std::str::from_utf8(&publish.payload).ok().and_then(|text| text.parse::<usize>().ok());
        if publish.qos > self.qos_max.0 {
            self.faults.push(format!("{number:?} came at {:?}, beyond Maximum QoS", publish.qos));
        }
        let Some(id) = publish.packet_id else {
            self.take(number);
            return None;
        };
        self.out.insert(id.get());
        if self.out.len() > self.out_max {
            self.faults.push(format!("{} in flight, Receive Maximum is {}", self.out.len(), self.out_max));
        }
        let ack = |reason| {
            let ack = Ack::new(id, reason);
            if publish.qos == Qos::AtLeastOnce { Packet::Puback(ack) } else { Packet::Pubrec(ack) }
        };
        if publish.qos == Qos::ExactlyOnce
            && let Some(known) = self.taken.get(&id.get())
        {
            if Some(*known) != number {
                self.faults.push(format!("id {id:?} of {known} is used for {number:?}"));
            } else if !publish.dup {
                self.faults.push(format!("a repeat of {known} without DUP"));
            }
            return say(ack(ReasonCode::SUCCESS));
        }
        // Only the numbered messages suffer; the gateway's own status goes through.
        let Some(number) = number else { return say(ack(ReasonCode::SUCCESS)) };
        let mood = self.mood;
        if mood.closes_on == Some(number) {
            *self.misdeeds.entry("closes on one").or_default() += 1;
            return Some(Answer::Close);
        }
        let mut reason = ReasonCode::SUCCESS;
        if self.does("has no subscribers", 10) {
            reason = ReasonCode::NO_MATCHING_SUBSCRIBERS;
        }
        if self.does("refuses for now", mood.refuses_for_now) {
            reason = self.pick(&FOR_NOW);
        } else if self.does("refuses for good", mood.refuses_for_good) {
            reason = self.pick(&FOR_GOOD);
            self.condemned.insert(number);
        } else if self.does("forbids", mood.forbids) {
            reason = ReasonCode::NOT_AUTHORIZED;
        }
        if !reason.is_failure() && !self.does("throws away", mood.throws_away) {
            self.take(Some(number));
            if publish.qos == Qos::ExactlyOnce {
                self.taken.insert(id.get(), number);
            }
        }
        say(ack(reason))
    }

    fn take(&mut self, number: Option<usize>) {
        if let Some(number) = number {
            *self.got.entry(number).or_default() += 1;
        }
    }

    /// An answer leaves: its id does not count against the window any more.
    fn says(&mut self, packet: &Packet) {
        match packet {
            Packet::Puback(ack) | Packet::Pubcomp(ack) => self.out.remove(&ack.packet_id.get()),
            Packet::Pubrec(ack) if ack.reason.is_failure() => self.out.remove(&ack.packet_id.get()),
            _ => false,
        };
    }
}
