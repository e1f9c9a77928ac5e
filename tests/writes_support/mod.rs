//! A scripted Modbus TCP device that takes writes, well or badly, and remembers each request; and how to ask for writes.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "test support")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::common::raw::{Heard, RawClient, Version};
use crate::common::{PATIENCE, port, wait_until};

/// What the device makes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It does it and says so.
    Good,
    /// It says no with this exception.
    Refuses(u8),
    /// It says nothing; `true` = it has done it all the same.
    Silent(bool),
    /// It does it, and says so too late.
    Late,
    /// It says that it did, and holds no more than this.
    Clamps(u16),
    /// It closes the connection instead of an answer, having done it.
    Closes,
}

/// How long a late answer is late: longer than the timeout of the tests' lines.
const LATE: Duration = Duration::from_millis(500);

pub struct State {
    pub manner: Manner,
    pub registers: Vec<u16>,
    pub coil: bool,
    /// Before each answer.
    pub pause: Duration,
    /// The PDU of each request, in order.
    pub requests: Vec<Vec<u8>>,
}

/// A device of 200 holding registers, and one coil, on a port of its own.
#[derive(Clone)]
pub struct Device {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Device {
    /// One that does not listen yet.
    pub fn prepared() -> Device {
        let registers = vec![0; 200];
        let state = State { manner: Manner::Good, registers, coil: false, pause: Duration::ZERO, requests: Vec::new() };
        Device { port: port::free(), state: Arc::new(Mutex::new(state)) }
    }

    pub fn started(manner: Manner) -> Device {
        let device = Device::prepared();
        device.set(|state| state.manner = manner);
        device.listen();
        device
    }

    pub fn listen(&self) {
        let listener = wait_until(PATIENCE, "the device's port is free", || {
            TcpListener::bind(("127.0.0.1", self.port)).map_err(|error| error.to_string())
        });
        let device = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let device = device.clone();
                // Ends with its connection, which ends with the gateway.
                thread::spawn(move || device.serve(stream));
            }
        });
    }

    pub fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// The requests to write so far.
    pub fn writes(&self) -> Vec<Vec<u8>> {
        self.set(|state| state.requests.iter().filter(|pdu| is_write(pdu)).cloned().collect())
    }

    pub fn url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    fn serve(&self, mut stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        loop {
            let mut head = [0; 7];
            if stream.read_exact(&mut head).is_err() {
                return;
            }
            let mut pdu = vec![0; usize::from(u16::from_be_bytes([head[4], head[5]])) - 1];
            if stream.read_exact(&mut pdu).is_err() {
                return;
            }
            let (pause, manner) = self.set(|state| {
                state.requests.push(pdu.clone());
                (state.pause, state.manner)
            });
            thread::sleep(pause);
            let answer = self.set(|state| if is_write(&pdu) { write(state, &pdu) } else { Some(read(state, &pdu)) });
            let Some(answer) = answer else {
                if manner == Manner::Closes {
                    return;
                }
                continue;
            };
            if is_write(&pdu) && manner == Manner::Late {
                thread::sleep(LATE);
            }
            let length = u16::try_from(answer.len() + 1).unwrap().to_be_bytes();
            let whole = [&head[..4], &length, &head[6..7], &answer].concat();
            if stream.write_all(&whole).is_err() {
                return;
            }
        }
    }
}

pub fn is_write(pdu: &[u8]) -> bool {
    matches!(pdu[0], 5 | 6 | 15 | 16)
}

fn word(pdu: &[u8], place: usize) -> usize {
    usize::from(u16::from_be_bytes([pdu[place], pdu[place + 1]]))
}

fn read(state: &State, pdu: &[u8]) -> Vec<u8> {
    if pdu[0] == 1 {
        return vec![1, 1, u8::from(state.coil)];
    }
    let (address, count) = (word(pdu, 1), word(pdu, 3));
    let Some(words) = state.registers.get(address..address + count) else { return vec![pdu[0] | 0x80, 2] };
    let data: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    [vec![pdu[0], u8::try_from(data.len()).unwrap()], data].concat()
}

fn write(state: &mut State, pdu: &[u8]) -> Option<Vec<u8>> {
    let most = match state.manner {
        Manner::Refuses(code) => return Some(vec![pdu[0] | 0x80, code]),
        Manner::Silent(false) => return None,
        Manner::Clamps(most) => most,
        _ => u16::MAX,
    };
    let address = word(pdu, 1);
    let mut set = |place: usize, word: usize| state.registers[place] = u16::try_from(word).unwrap().min(most);
    match pdu[0] {
        5 => state.coil = pdu[3] == 0xFF,
        15 => state.coil = pdu[6] & 1 == 1,
        6 => set(address, word(pdu, 3)),
        _ => (0..word(pdu, 3)).for_each(|place| set(address + place, word(pdu, 6 + 2 * place))),
    }
    match state.manner {
        Manner::Silent(_) | Manner::Closes => None,
        _ => Some(pdu[..5].to_vec()),
    }
}

/// A local client that asks for writes and hears the answers.
pub struct Asker {
    client: RawClient,
    packet_id: u16,
    answers: Vec<(String, Value)>,
}

impl Asker {
    pub fn connected(port: u16) -> Asker {
        let mut client = RawClient::connected(port, Version::V311, "asker");
        client.subscribe("field/+/+/result", 1);
        Asker { client, packet_id: 0, answers: Vec::new() }
    }

    /// Asks at QoS 1 and waits for the acknowledgement.
    pub fn ask(&mut self, point: &str, body: &str) {
        self.packet_id += 1;
        let id = self.packet_id;
        self.client.publish(format!("field/{point}/set").as_bytes(), 1, id, body.as_bytes());
        while !self.hear(&format!("the acknowledgement of {body} for {point}"), |first, body| {
            first == 0x40 && body == id.to_be_bytes()
        }) {}
    }

    /// Asks at QoS 0.
    pub fn ask_at_once(&mut self, point: &str, body: &str) {
        self.client.publish(format!("field/{point}/set").as_bytes(), 0, 0, body.as_bytes());
    }

    /// The next answer for a point.
    #[track_caller]
    pub fn answer(&mut self, point: &str) -> Value {
        let topic = format!("field/{point}/result");
        loop {
            if let Some(place) = self.answers.iter().position(|(of, _)| *of == topic) {
                return self.answers.remove(place).1;
            }
            self.hear(&format!("the answer for {point}"), |_, _| false);
        }
    }

    #[track_caller]
    pub fn asked(&mut self, point: &str, body: &str) -> Value {
        self.ask(point, body);
        self.answer(point)
    }

    /// Answers that have come and were not asked for, a moment after the last of them.
    pub fn rest(&mut self) -> usize {
        while let Heard::Packet(first, body) = self.client.hear(Duration::from_millis(700)) {
            self.note(first, &body);
        }
        self.answers.len()
    }

    /// Hears one packet; says whether it is that.
    #[track_caller]
    fn hear(&mut self, what: &str, is_it: impl Fn(u8, &[u8]) -> bool) -> bool {
        match self.client.hear(PATIENCE) {
            Heard::Packet(first, body) => {
                self.note(first, &body);
                is_it(first, &body)
            }
            other => panic!("waited in vain for {what}: {other:?}"),
        }
    }

    fn note(&mut self, first: u8, body: &[u8]) {
        if first & 0xF0 != 0x30 {
            return;
        }
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (topic, mut rest) = body[2..].split_at(length);
        if first & 6 != 0 {
            self.client.send(&[0x40, 2, rest[0], rest[1]]);
            rest = &rest[2..];
        }
        let answer = serde_json::from_slice(rest).unwrap();
        self.answers.push((String::from_utf8(topic.to_vec()).unwrap(), answer));
    }
}
