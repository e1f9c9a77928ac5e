//! The proof of order: in a trace of the real program's system calls, does any acknowledgement leave before the row of
//! what it acknowledges is on disk?
//!
//! Each message bears a mark (`mark`). The proof sees the mark in the PUBLISH that comes in, again in the write to the
//! write-ahead log, sees a sync of that log begin after this write and end well, and only then may the PUBACK or PUBREC
//! begin to leave. With `Watched::cloud` it is enough that the cloud has acknowledged the message (`flash = "spare"`). A
//! PUBCOMP may leave when something was written and synced after its PUBREL had come.

use std::collections::HashMap;
use std::io::BufRead;

use super::frames::{Frames, Published};

/// PUBLISH, whatever its flags.
pub const PUBLISH: u8 = 0x30;
/// The answer at QoS 1.
pub const PUBACK: u8 = 0x40;
/// The first answer at QoS 2.
pub const PUBREC: u8 = 0x50;
/// The publisher's second word at QoS 2.
pub const PUBREL: u8 = 0x60;
/// The second answer at QoS 2.
pub const PUBCOMP: u8 = 0x70;

/// Arguments of strace, up to the program, that write what `Proof` reads to `trace`; `more` are further arguments.
pub fn tracer<'a>(trace: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let calls = "trace=fdatasync,fsync,pwrite64,pwritev,write,writev,sendto,sendmsg,read,readv,recvfrom,recvmsg";
    let mut words = vec!["strace", "-f", "--seccomp-bpf", "-yy", "-xx", "-s", "300000", "-o", trace, "-e", calls];
    words.extend(more);
    words.extend(["setpriv", "--pdeathsig", "KILL", "--"]);
    words
}

/// A payload that is found again in the log.
pub fn mark(name: &str, number: u64) -> String {
    format!("<#{name}-{number}>")
}

/// Which connections count, by the port at the other end.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Of publishers.
    pub clients: Vec<u16>,
    /// Of the cloud, where its acknowledgement is as good as the disk.
    pub cloud: Option<u16>,
}

/// What a trace has shown of one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// Acknowledgements that were due: PUBACK, PUBREC, PUBCOMP.
    pub acknowledgements: usize,
    /// Those that left too early: kind and packet id.
    pub early: Vec<(u8, u16)>,
}

/// One step, in the order of the kernel's answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes came from this port.
    Came(u16, Vec<u8>),
    /// Bytes begin to leave to this port.
    Leaves(u16, Vec<u8>),
    /// A write to the log has ended.
    LogWritten(Vec<u8>),
    /// A thread begins to sync the log.
    SyncBegins(u32),
    /// Its sync has ended well.
    SyncEnds(u32),
    /// A sync, or a write to the log, has failed: what was not synced before may never be, whatever a later sync says.
    Fails,
}

/// Takes events and judges.
#[derive(Debug, Default)]
pub struct Proof {
    watched: Watched,
    writes: u64,
    /// All writes up to this one are on disk.
    durable: u64,
    syncing: HashMap<u32, u64>,
    /// By mark: the write that brought it.
    written: HashMap<Vec<u8>, u64>,
    delivered: std::collections::HashSet<Vec<u8>>,
    ends: HashMap<u16, End>,
}

#[derive(Debug, Default)]
struct End {
    is_v5: bool,
    from: Frames,
    to: Frames,
    /// The mark of the last PUBLISH under each packet id.
    published: HashMap<u16, Vec<u8>>,
    /// How many writes there were when the PUBREL came.
    released: HashMap<u16, u64>,
    shown: Shown,
}

impl Proof {
    /// Nothing seen yet.
    pub fn new(watched: Watched) -> Proof {
        Proof { watched, ..Proof::default() }
    }

    /// Reads a whole trace.
    pub fn of(trace: impl BufRead, watched: Watched) -> Proof {
        let mut proof = Proof::new(watched);
        let mut reader = Reader::default();
        for line in trace.lines() {
            for event in reader.events(&line.unwrap()) {
                proof.note(event);
            }
        }
        proof
    }

    /// What it has shown of the client at this port.
    pub fn shown(&self, client: u16) -> Shown {
        self.ends.get(&client).map(|end| end.shown.clone()).unwrap_or_default()
    }

    /// How many marks were found in the log.
    pub fn rows(&self) -> usize {
        self.written.len()
    }

    /// The next event.
    pub fn note(&mut self, event: Event) {
        match event {
            Event::LogWritten(bytes) => {
                self.writes += 1;
                for mark in marks(&bytes) {
                    // Its page is written again with every neighbour; the first time counts.
                    self.written.entry(mark.to_vec()).or_insert(self.writes);
                }
            }
            Event::SyncBegins(thread) => {
                self.syncing.insert(thread, self.writes);
            }
            Event::SyncEnds(thread) => {
                let covered = self.syncing.remove(&thread).unwrap_or(0);
                self.durable = self.durable.max(covered);
            }
            Event::Fails => {
                let durable = self.durable;
                self.written.retain(|_, write| *write <= durable);
            }
            Event::Came(port, bytes) if self.concerns(port) => {
                self.ends.entry(port).or_default().from.push(&bytes);
                while let Some((first, body)) = self.ends.entry(port).or_default().from.next() {
                    self.came(port, first, &body);
                }
            }
            Event::Leaves(port, bytes) if self.concerns(port) => {
                self.ends.entry(port).or_default().to.push(&bytes);
                while let Some((first, body)) = self.ends.entry(port).or_default().to.next() {
                    self.leaves(port, first, &body);
                }
            }
            Event::Came(..) | Event::Leaves(..) => {}
        }
    }

    fn concerns(&self, port: u16) -> bool {
        self.watched.clients.contains(&port) || self.watched.cloud == Some(port)
    }

    fn came(&mut self, port: u16, first: u8, body: &[u8]) {
        let writes = self.writes;
        let is_cloud = self.watched.cloud == Some(port);
        let end = self.ends.entry(port).or_default();
        match first & 0xf0 {
            0x10 => end.is_v5 = body[6] == 5,
            PUBLISH => end.remember(first, body),
            PUBREL => {
                end.released.insert(id_of(body), writes);
            }
            PUBACK | PUBREC if is_cloud && body.get(2).is_none_or(|reason| *reason < 0x80) => {
                self.delivered.extend(end.published.get(&id_of(body)).cloned());
            }
            _ => {}
        }
    }

    fn leaves(&mut self, port: u16, first: u8, body: &[u8]) {
        let is_cloud = self.watched.cloud == Some(port);
        let end = self.ends.entry(port).or_default();
        match first & 0xf0 {
            0x10 => end.is_v5 = body[6] == 5,
            PUBLISH if is_cloud => end.remember(first, body),
            kind @ (PUBACK | PUBREC | PUBCOMP) if !is_cloud => {
                let id = id_of(body);
                let is_due = match kind {
                    PUBCOMP => end.released.remove(&id).is_some_and(|before| self.durable > before),
                    _ => end.published.get(&id).is_some_and(|mark| {
                        let is_on_disk = self.written.get(mark).is_some_and(|write| *write <= self.durable);
                        is_on_disk || (self.watched.cloud.is_some() && self.delivered.contains(mark))
                    }),
                };
                end.shown.acknowledgements += 1;
                if !is_due {
                    end.shown.early.push((kind, id));
                }
            }
            _ => {}
        }
    }
}

impl End {
    fn remember(&mut self, first: u8, body: &[u8]) {
        let published = Published::read(first, body, self.is_v5);
        match marks(&published.payload).next() {
            Some(mark) => self.published.insert(published.packet_id, mark.to_vec()),
            None => self.published.remove(&published.packet_id),
        };
    }
}

fn id_of(body: &[u8]) -> u16 {
    u16::from_be_bytes([body[0], body[1]])
}

/// The marks in some bytes.
fn marks(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    const LONGEST: usize = 60;
    let starts = bytes.windows(2).enumerate().filter(|(_, pair)| *pair == b"<#").map(|(start, _)| start);
    starts.filter_map(|start| {
        let rest = &bytes[start..bytes.len().min(start + LONGEST)];
        let end = rest.iter().position(|byte| *byte == b'>')?;
        Some(&rest[..=end])
    })
}

/// Makes events of strace's lines.
#[derive(Debug, Default)]
pub struct Reader {
    unfinished: HashMap<u32, String>,
}

impl Reader {
    /// The events of the next line.
    pub fn events(&mut self, line: &str) -> Vec<Event> {
        let Some((thread, call)) = line.split_once(' ') else { return Vec::new() };
        let thread = thread.parse().unwrap_or_else(|_| panic!("no thread id in {line:?}"));
        let call = call.trim_start();
        if let Some(head) = call.strip_suffix("<unfinished ...>") {
            self.unfinished.insert(thread, head.to_owned());
            return beginning(thread, head);
        }
        if let Some(rest) = call.strip_prefix("<... ") {
            let Some((_, tail)) = rest.split_once("resumed>") else { return Vec::new() };
            let whole = self.unfinished.remove(&thread).unwrap_or_default() + tail;
            return ending(thread, &whole);
        }
        [beginning(thread, call), ending(thread, call)].concat()
    }
}

/// What counts from a call's beginning: bytes that leave may be on their way at once, and a sync covers no write that
/// ends after it has begun.
fn beginning(thread: u32, call: &str) -> Vec<Event> {
    let Some((name, arguments)) = call.split_once('(') else { return Vec::new() };
    let event = match name {
        "fdatasync" | "fsync" if is_log(arguments) => Some(Event::SyncBegins(thread)),
        "sendto" | "write" | "writev" | "sendmsg" => {
            other_port(arguments).map(|port| Event::Leaves(port, bytes_of(arguments)))
        }
        _ => None,
    };
    event.into_iter().collect()
}

/// What counts from a call's end.
fn ending(thread: u32, call: &str) -> Vec<Event> {
    let Some((name, arguments)) = call.split_once('(') else { return Vec::new() };
    let event = match name {
        "pwrite64" | "write" | "writev" | "pwritev" | "fdatasync" | "fsync"
            if is_log(arguments) && arguments.contains(" = -1 ") =>
        {
            Some(Event::Fails)
        }
        "pwrite64" | "write" | "writev" | "pwritev" if is_log(arguments) => {
            Some(Event::LogWritten(bytes_of(arguments)))
        }
        "fdatasync" | "fsync" if is_log(arguments) && arguments.contains(" = 0") => Some(Event::SyncEnds(thread)),
        "recvfrom" | "read" | "readv" | "recvmsg" => {
            other_port(arguments).map(|port| Event::Came(port, bytes_of(arguments)))
        }
        _ => None,
    };
    event.into_iter().collect()
}

fn is_log(arguments: &str) -> bool {
    let path = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| unescaped(path));
    path.is_some_and(|path| path.ends_with(b"-wal"))
}

/// The port at the other end of a loopback connection.
fn other_port(arguments: &str) -> Option<u16> {
    let (descriptor, _) = arguments.split_once(">,").or_else(|| arguments.split_once(">)"))?;
    let (_, port) = descriptor.split_once("->127.0.0.1:")?;
    port.trim_end_matches(']').parse().ok()
}

/// The quoted strings of a call, one behind the other.
fn bytes_of(arguments: &str) -> Vec<u8> {
    assert!(!arguments.contains("\"..."), "strace has cut this short: {arguments:.200}");
    arguments.split('"').skip(1).step_by(2).flat_map(unescaped).collect()
}

/// `\x41\x42` as bytes; other characters stand for themselves.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4);
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let hex = rest.strip_prefix(b"\\x").and_then(|hex| hex.get(..2));
        match hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    bytes
}
