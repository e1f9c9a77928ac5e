//! The line to the cloud: it can be cut, fall silent, and it writes down every PUBLISH that goes up.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::common::frames::{Frames, Published};
use super::ledger::Key;

/// What the line does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// It passes them on.
    Fair,
    /// It closes every connection at once.
    Cut,
    /// It keeps connections and passes nothing on.
    Silent,
}

/// A line to a loopback port, for the life of the test process.
pub struct Line {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    target: u16,
}

#[derive(Debug)]
struct State {
    weather: Weather,
    connections: u64,
    open: HashMap<u64, [TcpStream; 2]>,
    wire: Wire,
}

/// What went up.
#[derive(Debug, Clone, Default)]
pub struct Wire {
    /// Different messages.
    pub messages: usize,
    /// QoS 1: messages that had gone up on an earlier connection already, by connection.
    pub repeats: HashMap<u64, usize>,
    /// Repeats whose topic, QoS or `tidegate-id` is not that of the first time, for a person.
    pub changed: Vec<String>,
    /// The same message twice on one connection, for a person.
    pub twice: Vec<String>,
    /// Sessions that the cloud did not know any more although nobody had asked for a clean one.
    pub forgotten_sessions: usize,
    seen: HashMap<(String, Key), (u64, Published)>,
    /// QoS 2: each message's way up.
    cycles: HashMap<(String, Key), Cycle>,
    /// By packet id.
    carried: HashMap<u16, (String, Key)>,
    /// The last CONNECT asked for a clean session.
    is_clean_start: bool,
    /// The connection of that CONNECT: it has taken the session over, and what comes late on an older one is void.
    newest: u64,
    is_brief: bool,
    log: Vec<Entry>,
}

/// From a PUBLISH to its PUBCOMP; sent again under the same packet id before PUBREL it is still the same one.
#[derive(Debug, Clone, Default)]
struct Cycle {
    packet_id: u16,
    is_released: bool,
    /// The cloud has forgotten the session: what is sent again is sent rightly.
    is_forgiven: bool,
    count: usize,
}

/// One packet at QoS 1 or 2 that passed, or something that happened beside the line.
#[derive(Debug, Clone)]
enum Entry {
    Sent(u64, Box<Published>),
    /// Connection, first byte, packet id.
    Answered(u64, u8, u16),
    Released(u64, u16),
    Event(String),
}

impl Line {
    /// Listens on a loopback port, passes on to 127.0.0.1:`target`, and writes down what goes up.
    pub fn laid(target: u16) -> Line {
        Line::with(target, true)
    }

    /// The same for a long time: only that is kept by which one tells who has doubled a message.
    pub fn laid_for_long(target: u16) -> Line {
        Line::with(target, false)
    }

    fn with(target: u16, records: bool) -> Line {
        let wire = Wire { is_brief: !records, ..Wire::default() };
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { weather: Weather::Fair, connections: 0, open: HashMap::new(), wire };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), target });
        let line = Line { port, shared: Arc::clone(&shared) };
        // It ends with the test process: nothing of it outlives that.
        std::thread::spawn(move || {
            for near in listener.incoming().filter_map(Result::ok) {
                shared.connect(near);
            }
        });
        line
    }

    /// Changes the weather. Connections outlive a silence, unless it ends with a cut.
    pub fn set(&self, weather: Weather) {
        let mut state = self.shared.lock();
        state.weather = weather;
        state.wire.write_down(Entry::Event(format!("{weather:?}")));
        if weather == Weather::Cut {
            state.open.drain().for_each(|(_, ends)| hang_up(&ends));
        }
        self.shared.changed.notify_all();
    }

    /// Writes down between the packets that something happened.
    pub fn note(&self, event: impl Into<String>) {
        self.shared.lock().wire.write_down(Entry::Event(event.into()));
    }

    /// The weather now.
    pub fn weather(&self) -> Weather {
        self.shared.lock().weather
    }

    /// What went up so far.
    pub fn wire(&self) -> Wire {
        self.shared.lock().wire.clone()
    }

    /// How many different messages went up so far.
    pub fn messages(&self) -> usize {
        self.shared.lock().wire.messages
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(self: &Arc<Shared>, near: TcpStream) {
        let number = {
            let mut state = self.lock();
            state.connections += 1;
            state.connections
        };
        let far = match self.lock().weather {
            Weather::Cut => None,
            // A cloud that is away refuses.
            Weather::Fair | Weather::Silent => TcpStream::connect(("127.0.0.1", self.target)).ok(),
        };
        let Some(far) = far else { return };
        let copies = || Some([near.try_clone().ok()?, far.try_clone().ok()?]);
        let (Some(kept), Some([near_back, far_back])) = (copies(), copies()) else { return };
        let mut state = self.lock();
        if state.weather == Weather::Cut {
            return;
        }
        state.open.insert(number, kept);
        drop(state);
        let (up, down) = (Arc::clone(self), Arc::clone(self));
        std::thread::spawn(move || up.pass(number, near, far, Tap::new(number, true)));
        std::thread::spawn(move || down.pass(number, far_back, near_back, Tap::new(number, false)));
    }

    fn pass(&self, number: u64, mut from: TcpStream, mut to: TcpStream, mut tap: Tap) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 {
                break;
            }
            let mut state = self.lock();
            while state.weather == Weather::Silent {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !state.open.contains_key(&number) {
                break;
            }
            tap.watch(&buffer[..count], &mut state.wire);
            drop(state);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        hang_up(&[from, to]);
        self.lock().open.remove(&number);
    }
}

fn hang_up(ends: &[TcpStream; 2]) {
    for end in ends {
        // It may be closed already.
        end.shutdown(Shutdown::Both).ok();
    }
}

/// One connection's way up or down, read along.
struct Tap {
    connection: u64,
    is_up: bool,
    frames: Frames,
    is_v5: bool,
}

/// CONNECT asks for a clean session (MQTT 5.0, 3.1.2.4).
const CLEAN: u8 = 2;

impl Tap {
    fn new(connection: u64, is_up: bool) -> Tap {
        Tap { connection, is_up, frames: Frames::default(), is_v5: false }
    }

    fn watch(&mut self, bytes: &[u8], wire: &mut Wire) {
        self.frames.push(bytes);
        while let Some((first, body)) = self.frames.next() {
            let id = || u16::from_be_bytes([body[0], body[1]]);
            match (self.is_up, first & 0xf0) {
                // The protocol level stands behind the name.
                (true, 0x10) => {
                    self.is_v5 = body.get(6) == Some(&5);
                    wire.newest = self.connection;
                    wire.is_clean_start = body.get(7).is_none_or(|flags| flags & CLEAN != 0);
                }
                (true, 0x30) => wire.note(self.connection, Published::read(first, &body, self.is_v5)),
                (true, 0x60) => wire.release(self.connection, id()),
                (false, 0x20) => {
                    wire.session(body[0] & 1 == 1);
                    wire.write_down(Entry::Event(format!("connection {} has {body:?} as CONNACK", self.connection)));
                }
                (false, 0x40 | 0x50 | 0x70) => wire.write_down(Entry::Answered(self.connection, first, id())),
                _ => {}
            }
        }
    }
}

impl Wire {
    /// All that passed about one message, with what happened meanwhile.
    pub fn story(&self, topic: &str, key: Key) -> String {
        let mut carriers = HashSet::new();
        let mut story = vec![format!("{topic}, {key:?}:")];
        for entry in &self.log {
            match entry {
                Entry::Sent(connection, published) => {
                    let Published { dup, packet_id, .. } = **published;
                    if published.topic == topic && Key::of(&published.payload) == Some(key) {
                        carriers.insert(packet_id);
                        story.push(format!("  {connection}: PUBLISH {packet_id}, DUP {dup}"));
                    } else if carriers.remove(&packet_id) {
                        story.push(format!("  {connection}: {packet_id} now carries another message"));
                    }
                }
                Entry::Answered(connection, first, id) if carriers.contains(id) => {
                    story.push(format!("  {connection}: {id} is answered by {first:#x}"));
                }
                Entry::Released(connection, id) if carriers.contains(id) => {
                    story.push(format!("  {connection}: PUBREL {id}"));
                }
                Entry::Event(what) => story.push(format!("  ({what})")),
                Entry::Answered(..) | Entry::Released(..) => {}
            }
        }
        story.join("\n")
    }

    /// How often a QoS 2 message was given to the cloud as a new one: more than once is the sender's fault.
    pub fn cycles(&self, topic: &str, key: Key) -> usize {
        self.cycles.get(&(topic.to_owned(), key)).map_or(0, |cycle| cycle.count)
    }

    /// The QoS 2 messages that were given to the cloud as new ones more than once.
    pub fn doubled(&self) -> Vec<&(String, Key)> {
        self.cycles.iter().filter(|(_, cycle)| cycle.count > 1).map(|(place, _)| place).collect()
    }

    fn write_down(&mut self, entry: Entry) {
        if !self.is_brief {
            self.log.push(entry);
        }
    }

    fn session(&mut self, is_present: bool) {
        if is_present || self.is_clean_start || self.cycles.is_empty() {
            return;
        }
        self.forgotten_sessions += 1;
        self.cycles.values_mut().for_each(|cycle| cycle.is_forgiven = true);
    }

    fn release(&mut self, connection: u64, packet_id: u16) {
        self.write_down(Entry::Released(connection, packet_id));
        if connection < self.newest {
            return;
        }
        if let Some(cycle) = self.carried.get(&packet_id).and_then(|place| self.cycles.get_mut(place)) {
            cycle.is_released = true;
        }
    }

    fn cycle(&mut self, place: (String, Key), packet_id: u16) {
        let cycle = self.cycles.entry(place.clone()).or_default();
        let goes_on = cycle.packet_id == packet_id && !cycle.is_released;
        if !goes_on && !cycle.is_forgiven {
            cycle.count += 1;
        }
        *cycle = Cycle { packet_id, is_released: false, is_forgiven: false, count: cycle.count };
        self.carried.insert(packet_id, place);
    }

    fn note(&mut self, connection: u64, published: Published) {
        // What is not a publisher's (the gateway's own status) is no part of the account.
        let Some(key) = Key::of(&published.payload) else { return };
        self.write_down(Entry::Sent(connection, Box::new(published.clone())));
        if connection < self.newest {
            return;
        }
        let place = (published.topic.clone(), key);
        if published.qos == 2 {
            self.cycle(place.clone(), published.packet_id);
        }
        if self.is_brief {
            return;
        }
        let Some((seen_on, first)) = self.seen.get_mut(&place) else {
            self.messages += 1;
            self.seen.insert(place, (connection, published));
            return;
        };
        if *seen_on == connection {
            self.twice.push(format!("{published:?}"));
        }
        *seen_on = connection;
        if published.qos == 1 {
            *self.repeats.entry(connection).or_default() += 1;
        }
        let as_before = Published { dup: first.dup, packet_id: first.packet_id, ..published.clone() };
        if *first != as_before {
            self.changed.push(format!("{first:?} became {published:?}"));
        }
    }
}

#[test]
fn the_line_tells_a_double_of_the_sender_from_a_repeat() {
    let key = Key { number: 1, attempt: 1 };
    let publish =
        |packet_id, dup| Published { dup, qos: 2, packet_id, topic: "t".to_owned(), id: None, payload: key.payload(9) };
    let cycles = |steps: &dyn Fn(&mut Wire)| {
        let mut wire = Wire::default();
        wire.note(1, publish(5, false));
        steps(&mut wire);
        wire.cycles("t", key)
    };
    assert_eq!(cycles(&|wire| wire.note(2, publish(5, true))), 1, "resumed before PUBREL");
    assert_eq!(cycles(&|wire| wire.note(2, publish(6, false))), 2, "under another id");
    let after_its_release = |wire: &mut Wire| {
        wire.release(1, 5);
        wire.note(2, publish(5, true));
    };
    assert_eq!(cycles(&after_its_release), 2);
    let late_on_the_old_connection = |wire: &mut Wire| {
        wire.newest = 2;
        wire.note(2, publish(5, true));
        wire.release(2, 5);
        wire.note(1, publish(5, false));
    };
    assert_eq!(cycles(&late_on_the_old_connection), 1);
    let after_the_cloud_forgot = |wire: &mut Wire| {
        wire.session(false);
        wire.note(2, publish(6, false));
    };
    assert_eq!(cycles(&after_the_cloud_forgot), 1);
    let after_a_clean_start = |wire: &mut Wire| {
        wire.is_clean_start = true;
        wire.session(false);
        wire.note(2, publish(6, false));
    };
    assert_eq!(cycles(&after_a_clean_start), 2);
}
