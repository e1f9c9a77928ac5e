//! A stand-in for the cloud: it keeps one session, remembers what came, and can be put back to what it knew at any
//! moment. By its own bytes, so that nothing is shared with the code under test.

#![allow(dead_code, reason = "each test uses its own part of this")]

use std::collections::BTreeSet;
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use super::common::raw::packet;
use super::common::{PATIENCE, wait_until};

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Its topic.
    pub topic: String,
    /// The sender's own number at the head of the payload; what the gateway itself says has none.
    pub number: Option<u64>,
    /// QoS of the delivery.
    pub qos: u8,
}

/// What the cloud knows.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    has_session: bool,
    /// Packet ids at QoS 2 that were received and not released.
    pending: BTreeSet<u16>,
    /// All messages, in the order in which they came.
    pub arrived: Vec<Arrival>,
}

impl Memory {
    /// What it knew after these of its own events.
    pub fn after<'a>(events: impl Iterator<Item = &'a str>) -> Memory {
        let mut memory = Memory::default();
        for event in events {
            let Some(event) = event.strip_prefix("cloud ") else { continue };
            let words: Vec<&str> = event.split(' ').collect();
            match words[0] {
                "session" => memory.connect(words[1] == "clean"),
                "took" => memory.take(
                    words[1].parse().unwrap(),
                    Arrival {
                        topic: words[4].to_owned(),
                        number: words[3].parse().ok(),
                        qos: words[2].parse().unwrap(),
                    },
                ),
                "released" => memory.release(words[1].parse().unwrap()),
                other => panic!("the cloud never says {other}"),
            }
        }
        memory
    }

    fn connect(&mut self, is_clean: bool) {
        if is_clean {
            self.pending.clear();
        }
        self.has_session = true;
    }

    fn take(&mut self, packet_id: u16, arrival: Arrival) {
        if arrival.qos == 2 {
            self.pending.insert(packet_id);
        }
        self.arrived.push(arrival);
    }

    fn release(&mut self, packet_id: u16) {
        self.pending.remove(&packet_id);
    }

    /// The numbers on one topic, in the order in which they came.
    pub fn numbers_on(&self, topic: &str) -> Vec<u64> {
        self.arrived.iter().filter(|arrival| arrival.topic == topic).filter_map(|arrival| arrival.number).collect()
    }
}

/// What notes the cloud's events.
pub type Witness = Box<dyn Fn(&str) + Send>;

struct Shared {
    memory: Memory,
    /// Connections of an earlier one are not listened to any more.
    generation: u64,
    is_away: bool,
    witness: Option<Witness>,
    connection: Option<TcpStream>,
}

/// The cloud, for the life of the test process.
pub struct StandIn {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Mutex<Shared>>,
}

impl StandIn {
    /// Listens; away at first: whoever connects is sent away.
    pub fn prepared() -> StandIn {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared =
            Shared { memory: Memory::default(), generation: 0, is_away: true, witness: None, connection: None };
        let shared = Arc::new(Mutex::new(shared));
        let ours = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let shared = ours.clone();
                std::thread::spawn(move || serve(stream, &shared).unwrap_or_default());
            }
        });
        StandIn { port, shared }
    }

    /// Its memory is `memory` from now on, its connections are cut, its next events are told to `witness`.
    pub fn begin(&self, memory: Memory, witness: Option<Witness>) {
        self.change(|shared| {
            shared.memory = memory;
            shared.witness = witness;
            shared.is_away = false;
        });
    }

    /// Goes away: connections are cut and refused.
    pub fn leave(&self) {
        self.change(|shared| {
            shared.is_away = true;
            shared.witness = None;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Shared)) {
        let mut shared = lock(&self.shared);
        shared.generation += 1;
        if let Some(stream) = shared.connection.take() {
            stream.shutdown(Shutdown::Both).ok();
        }
        change(&mut shared);
    }

    /// What it knows now.
    pub fn memory(&self) -> Memory {
        lock(&self.shared).memory.clone()
    }

    /// Waits until `is_enough` of what arrived.
    #[track_caller]
    pub fn wait(&self, what: &str, is_enough: impl Fn(&Memory) -> bool) {
        wait_until(PATIENCE, &format!("the cloud has {what}"), || {
            let shared = lock(&self.shared);
            match is_enough(&shared.memory) {
                true => Ok(()),
                false => {
                    Err(format!("{} came, the last {:?}", shared.memory.arrived.len(), shared.memory.arrived.last()))
                }
            }
        });
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one connection until it ends or is not ours any more; `None` either way.
fn serve(stream: TcpStream, shared: &Mutex<Shared>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (first, connect) = read_packet(&mut reader)?;
    let is_v5 = connect.get(6) == Some(&5);
    let generation = {
        let mut shared = lock(shared);
        if shared.is_away || first != 0x10 {
            return None;
        }
        let is_clean = connect.get(7)? & 0x02 != 0;
        let is_present = shared.memory.has_session && !is_clean;
        note(&shared, &format!("cloud session {}", if is_clean { "clean" } else { "kept" }));
        shared.memory.connect(is_clean);
        if let Some(old) = shared.connection.replace(stream.try_clone().ok()?) {
            old.shutdown(Shutdown::Both).ok();
        }
        shared.generation += 1;
        // Receive Maximum 20.
        let rest: &[u8] = if is_v5 { &[0, 3, 0x21, 0, 20] } else { &[0] };
        (&stream).write_all(&packet(0x20, &[&[u8::from(is_present)], rest].concat())).ok()?;
        shared.generation
    };
    loop {
        let (first, body) = read_packet(&mut reader)?;
        let mut shared = lock(shared);
        if shared.generation != generation {
            return None;
        }
        let packet_id = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
        let answer = match first & 0xf0 {
            0x30 => {
                let qos = (first >> 1) & 3;
                let topic_end = 2 + usize::from(packet_id(0)?);
                let topic = String::from_utf8_lossy(body.get(2..topic_end)?).into_owned();
                let id = if qos > 0 { packet_id(topic_end)? } else { 0 };
                let mut at = topic_end + if qos > 0 { 2 } else { 0 };
                if is_v5 {
                    at += properties_length(body.get(at..)?)?;
                }
                let payload = String::from_utf8_lossy(body.get(at..)?);
                let number = payload.split_whitespace().next().and_then(|word| word.parse().ok());
                if qos < 2 || !shared.memory.pending.contains(&id) {
                    let told = number.map_or("-".to_owned(), |number: u64| number.to_string());
                    note(&shared, &format!("cloud took {id} {qos} {told} {topic}"));
                    shared.memory.take(id, Arrival { topic, number, qos });
                }
                match qos {
                    0 => Vec::new(),
                    1 => packet(0x40, &id.to_be_bytes()),
                    _ => packet(0x50, &id.to_be_bytes()),
                }
            }
            0x60 => {
                let id = packet_id(0)?;
                note(&shared, &format!("cloud released {id}"));
                shared.memory.release(id);
                packet(0x70, &id.to_be_bytes())
            }
            0x80 => {
                let granted: &[u8] = if is_v5 { &[0, 1] } else { &[1] };
                packet(0x90, &[&packet_id(0)?.to_be_bytes(), granted].concat())
            }
            0xc0 => packet(0xd0, &[]),
            _ => return None,
        };
        (&stream).write_all(&answer).ok()?;
    }
}

fn note(shared: &Shared, event: &str) {
    if let Some(witness) = &shared.witness {
        witness(event);
    }
}

/// How long the properties are, with their own length.
fn properties_length(bytes: &[u8]) -> Option<usize> {
    let mut length = 0_usize;
    for (place, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(length + place + 1);
        }
    }
    None
}

fn read_packet(reader: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    reader.read_exact(&mut byte).ok()?;
    let first = byte[0];
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        reader.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first, body))
}
