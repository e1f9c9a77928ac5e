//! A publisher that knows exactly what it was promised.
//!
//! It connects again whenever it can and resumes its session: what has no answer it repeats under the same packet id, what
//! was taken it releases. Where the broker has no session any more it does what MQTT leaves to it: a message that was
//! acknowledged is done with; one that may or may not have been taken is sent again as a new message, which its payload
//! says. At QoS 1 every repeat is one.

use std::collections::{BTreeSet, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use super::common::frames::Frames;
use super::common::raw::{Version, packet};
use super::ledger::Key;
use super::random::Random;

/// How one publisher publishes.
#[derive(Debug, Clone)]
pub struct Habit {
    /// Client id, and the end of its topic `plant/…`.
    pub name: String,
    /// Of the protocol.
    pub version: Version,
    /// 1 or 2.
    pub qos: u8,
    /// Messages without their last acknowledgement at one time.
    pub window: usize,
    /// Between two messages.
    pub pause: Duration,
    /// Bytes of a payload, at most.
    pub bytes: u64,
}

impl Habit {
    /// One for each version and QoS; `of` gives window, pause and bytes.
    pub fn of_each_kind(mut of: impl FnMut(Version) -> (u64, Duration, u64)) -> Vec<Habit> {
        let kinds = [(Version::V311, 1), (Version::V311, 2), (Version::V5, 1), (Version::V5, 2)];
        kinds
            .into_iter()
            .map(|(version, qos)| {
                let (window, pause, bytes) = of(version);
                let name = format!("{version:?}-qos{qos}").to_lowercase();
                Habit { name, version, qos, window: usize::try_from(window).unwrap(), pause, bytes }
            })
            .collect()
    }

    /// Its topic.
    pub fn topic(&self) -> String {
        format!("plant/{}", self.name)
    }
}

/// What the thread and its owner share.
#[derive(Debug, Default)]
struct Shared {
    acknowledged: Mutex<BTreeSet<Key>>,
    count: AtomicU64,
    refused: AtomicU64,
    begun: AtomicU64,
    forgotten: AtomicU64,
    is_ending: AtomicBool,
    is_gone: AtomicBool,
}

/// A running publisher.
pub struct Publisher {
    /// How it publishes.
    pub habit: Habit,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Starts publishing to this loopback port.
    pub fn started(port: u16, habit: Habit, random: Random) -> Publisher {
        let shared = Arc::<Shared>::default();
        let work = Work {
            port,
            habit: habit.clone(),
            random,
            shared: Arc::clone(&shared),
            outstanding: VecDeque::new(),
            next_number: 0,
            next_id: 0,
            has_session: false,
        };
        let thread = std::thread::spawn(move || work.run());
        Publisher { habit, shared, thread: Some(thread) }
    }

    /// How many were acknowledged so far.
    pub fn acknowledged_count(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// How many messages were answered by a failure: nothing is promised for those.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// How many messages it has begun so far.
    pub fn begun_count(&self) -> u64 {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// How often its session was gone, which the broker had said that it has.
    pub fn forgotten_sessions(&self) -> u64 {
        self.shared.forgotten.load(Ordering::Relaxed)
    }

    /// What was acknowledged so far.
    pub fn acknowledged(&self) -> BTreeSet<Key> {
        self.shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins nothing new from now on.
    pub fn end(&self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
    }

    /// Whether all that it had begun is answered, after `end`.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.is_gone.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the publisher {} failed", self.habit.name);
        }
    }
}

/// A message without its last acknowledgement.
#[derive(Debug)]
struct Outstanding {
    key: Key,
    id: u16,
    payload_bytes: usize,
    /// PUBREC has come: it is acknowledged, and waits for PUBCOMP.
    is_received: bool,
}

struct Work {
    port: u16,
    habit: Habit,
    random: Random,
    shared: Arc<Shared>,
    outstanding: VecDeque<Outstanding>,
    next_number: u64,
    next_id: u16,
    /// It was let in once.
    has_session: bool,
}

/// The connection is gone.
struct Gone;

const READ_PATIENCE: Duration = Duration::from_millis(2);
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

impl Work {
    fn run(mut self) {
        while !self.is_over() {
            // Whatever ended it, the next connection goes on.
            if self.connection().is_err() {
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }

    fn is_over(&self) -> bool {
        let is_done = self.shared.is_ending.load(Ordering::Relaxed) && self.outstanding.is_empty();
        is_done || self.shared.is_gone.load(Ordering::Relaxed)
    }

    fn connection(&mut self) -> Result<(), Gone> {
        let mut wire = Wire::connected(self.port)?;
        wire.write(&self.connect_bytes())?;
        let session_present = self.wait_for_connack(&mut wire)?;
        if std::mem::replace(&mut self.has_session, true) && !session_present {
            self.shared.forgotten.fetch_add(1, Ordering::Relaxed);
        }
        let again = self.resumption(session_present);
        wire.write(&again)?;
        let mut next_at = Instant::now();
        while !self.is_over() {
            let is_ending = self.shared.is_ending.load(Ordering::Relaxed);
            let mut bytes = Vec::new();
            while !is_ending && self.outstanding.len() < self.habit.window && Instant::now() >= next_at {
                bytes.extend(self.next_message());
                next_at += self.habit.pause;
            }
            wire.write(&bytes)?;
            // Held up for long, it does not make up for all that it has not sent meanwhile.
            next_at = next_at.max(Instant::now().checked_sub(Duration::from_millis(100)).unwrap_or(next_at));
            wire.read()?;
            while let Some((first, body)) = wire.frames.next() {
                let answer = self.heard(first, &body);
                wire.write(&answer)?;
            }
        }
        Ok(())
    }

    fn connect_bytes(&self) -> Vec<u8> {
        let is_v5 = self.habit.version == Version::V5;
        let mut body = vec![0, 4];
        body.extend(b"MQTT");
        // The session is to outlive the connection; no keep-alive.
        body.extend([if is_v5 { 5 } else { 4 }, 0, 0, 0]);
        if is_v5 {
            body.extend([5, 0x11, 0, 0, 0x0e, 0x10]);
        }
        body.extend(u16::try_from(self.habit.name.len()).unwrap().to_be_bytes());
        body.extend(self.habit.name.as_bytes());
        packet(0x10, &body)
    }

    fn wait_for_connack(&self, wire: &mut Wire) -> Result<bool, Gone> {
        let until = Instant::now() + CONNECT_PATIENCE;
        while Instant::now() < until && !self.is_over() {
            wire.read()?;
            if let Some((first, body)) = wire.frames.next() {
                let is_in = first == 0x20 && body.get(1) == Some(&0);
                return if is_in { Ok(body[0] & 1 == 1) } else { Err(Gone) };
            }
        }
        Err(Gone)
    }

    /// What is sent first on a new connection (MQTT 5.0, 4.4).
    fn resumption(&mut self, session_present: bool) -> Vec<u8> {
        if !session_present {
            self.outstanding.retain(|message| !message.is_received);
        }
        // At QoS 1 a repeat is another message also in a session that goes on (MQTT 5.0, 4.3.2): nothing tells it apart.
        if !session_present || self.habit.qos == 1 {
            for message in &mut self.outstanding {
                message.key.attempt += 1;
            }
        }
        let mut bytes = Vec::new();
        for message in &self.outstanding {
            bytes.extend(match message.is_received {
                true => packet(0x62, &message.id.to_be_bytes()),
                false => self.publish_bytes(message, session_present),
            });
        }
        bytes
    }

    fn next_message(&mut self) -> Vec<u8> {
        loop {
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
            if self.outstanding.iter().all(|message| message.id != self.next_id) {
                break;
            }
        }
        let payload_bytes = usize::try_from(self.random.within(0..self.habit.bytes + 1)).unwrap();
        let key = Key { number: self.next_number, attempt: 1 };
        self.next_number += 1;
        self.shared.begun.store(self.next_number, Ordering::Relaxed);
        let message = Outstanding { key, id: self.next_id, payload_bytes, is_received: false };
        let bytes = self.publish_bytes(&message, false);
        self.outstanding.push_back(message);
        bytes
    }

    fn publish_bytes(&self, message: &Outstanding, dup: bool) -> Vec<u8> {
        let topic = self.habit.topic();
        let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
        body.extend(topic.as_bytes());
        body.extend(message.id.to_be_bytes());
        if self.habit.version == Version::V5 {
            body.push(0);
        }
        body.extend(message.key.payload(message.payload_bytes));
        packet(0x30 | (self.habit.qos << 1) | if dup { 8 } else { 0 }, &body)
    }

    fn heard(&mut self, first: u8, body: &[u8]) -> Vec<u8> {
        let id = body.get(..2).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
        let is_refused = body.get(2).is_some_and(|reason| *reason >= 0x80);
        let Some(place) = self.outstanding.iter().position(|message| message.id == id) else { return Vec::new() };
        match first & 0xf0 {
            0x40 | 0x50 if is_refused => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                self.outstanding.remove(place);
                Vec::new()
            }
            0x40 => {
                self.acknowledge(place);
                self.outstanding.remove(place);
                Vec::new()
            }
            0x50 => {
                self.acknowledge(place);
                self.outstanding[place].is_received = true;
                packet(0x62, &id.to_be_bytes())
            }
            0x70 => {
                self.outstanding.remove(place);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn acknowledge(&self, place: usize) {
        let message = &self.outstanding[place];
        if !message.is_received {
            self.shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(message.key);
            self.shared.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Wire {
    stream: TcpStream,
    frames: Frames,
}

impl Wire {
    fn connected(port: u16) -> Result<Wire, Gone> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|_| Gone)?;
        stream.set_nodelay(true).map_err(|_| Gone)?;
        stream.set_read_timeout(Some(READ_PATIENCE)).map_err(|_| Gone)?;
        // Half a packet may be out when this is over: the connection is of no use then.
        stream.set_write_timeout(Some(Duration::from_secs(5))).map_err(|_| Gone)?;
        Ok(Wire { stream, frames: Frames::default() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        if bytes.is_empty() {
            return Ok(());
        }
        // An acknowledgement that nobody reads any more was not given: the message is sent again.
        if self.stream.write_all(bytes).is_err() { Err(Gone) } else { Ok(()) }
    }

    fn read(&mut self) -> Result<(), Gone> {
        let mut buffer = [0; 8192];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(Gone),
            Ok(count) => {
                self.frames.push(&buffer[..count]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
            Err(_) => Err(Gone),
        }
    }
}
