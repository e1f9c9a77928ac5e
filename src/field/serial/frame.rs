//! Bytes into frames: by delimiter, start and end, length, or silence. Pure.
//!
//! Promises: the same bytes and silences give the same frames, however they are split; the memory of a frame is
//! bounded; what is no whole frame is dropped, counted once for each time that the thread is lost, and the next whole
//! frame is found: half a number is still a number.
//!
//! How the thread is found again after it was lost depends on what the frames prove of themselves:
//!
//! | frames have | they begin again |
//! |---|---|
//! | a delimiter only | behind the next delimiter |
//! | a start | at the next start; where it turns out to be none, at the one after it, though it be inside |
//! | a length, with a start or a checksum | at the next byte from where all fits; where that proves less than 32 bits, a second frame or silence must follow at once |
//! | a length only, or nothing | after the next silence |
//!
//! Empty frames are nothing.

use std::ops::Range;
use std::time::Duration;

use crate::config::{ByteOrder, Counts, Ending, FrameConfig, LengthField};

use super::checksum;

/// Bytes that are taken in before they are looked at: what bounds the memory of a push.
const PIECE_BYTES: usize = 4096;

/// Proof of this many bits is believed at once after the thread was lost: where every byte may be a frame's first, a
/// checksum of 16 bits would call one garbage of 65,536 a frame.
const PROOF_BITS: usize = 32;

/// A frame that has a start or a length and that stays unfinished for so long was none, where `idle` says nothing.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// What came out of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// A whole frame.
    Frame(Frame),
    /// Something that is none, dropped.
    Dropped(Flaw),
}

/// A frame, with escapes undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// From its first byte to its last; the delimiter or end only where something stands behind it.
    pub whole: Vec<u8>,
    body: Range<usize>,
}

impl Frame {
    /// What is to be read: with a start and an end what stands between them, with a delimiter what stands before it, else
    /// all; in each case without a checksum that is the last of it,
    /// and what that skips.
    pub fn body(&self) -> &[u8] {
        self.whole.get(self.body.clone()).unwrap_or_default()
    }
}

/// So many times the longest frame are dropped in silence while nobody knows what they belong to; more are no rest of one.
const LOST_FACTOR: usize = 3;

/// Why bytes were no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flaw {
    /// Longer than allowed.
    Overlong,
    /// Its checksum is not that of its bytes.
    Checksum,
    /// Its end is missing: another frame began, or silence did.
    Incomplete,
    /// Bytes between frames, or a length that cannot be.
    Garbage,
}

impl Flaw {
    /// As it is counted.
    pub fn kind(self) -> &'static str {
        match self {
            Flaw::Overlong => "overlong",
            Flaw::Checksum => "checksum",
            Flaw::Incomplete => "incomplete",
            Flaw::Garbage => "garbage",
        }
    }

    /// As it is told.
    pub fn reason(self) -> &'static str {
        match self {
            Flaw::Overlong => "a frame is too long",
            Flaw::Checksum => "the checksum of a frame is wrong",
            Flaw::Incomplete => "a frame is not whole",
            Flaw::Garbage => "bytes belong to no frame",
        }
    }
}

/// Cuts frames out of a stream.
#[derive(Debug, Clone)]
pub struct Framer {
    config: FrameConfig,
    /// Bytes that are not yet cut; a frame's first byte is the first of them.
    raw: Vec<u8>,
    /// How many of them were looked at.
    seen: usize,
    /// What they say without escapes.
    whole: Vec<u8>,
    state: State,
    /// Bytes that were dropped without knowing what they belong to, since a frame was whole.
    unknown: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// What comes next is a frame, or goes on with one.
    Whole,
    /// The thread is lost, or was never found: what comes next may be the rest of a frame. Not counted again.
    Lost,
    /// Dropping the rest of a frame that is too long, up to silence, which is told then.
    Overlong,
    /// Dropping the rest of one up to its delimiter, which was told already: where another delimiter was configured than
    /// the device sends, that never comes.
    Told,
}

/// What stands at a place of the stream, by length.
enum Measured {
    /// So many bytes of a frame.
    Frame(usize),
    /// More is to come.
    Unfinished,
    /// No frame.
    None(Flaw),
}

/// What comes next in a frame that ends with a mark.
enum Next {
    /// Nothing yet, or what may become several things.
    Unfinished,
    /// Its end: so many bytes in all.
    End(usize),
    /// The start of another one.
    Start,
    /// A byte of it, which took so many.
    Byte { meant: u8, width: usize },
}

impl Framer {
    /// Frames as configured.
    pub fn new(config: FrameConfig) -> Framer {
        Framer { config, raw: Vec::new(), seen: 0, whole: Vec::new(), state: State::Whole, unknown: 0 }
    }

    /// Forgets what was gathered. `mid_frame` = what comes next may be the rest of a frame.
    pub fn reset(&mut self, mid_frame: bool) {
        self.drop_raw(self.raw.len());
        self.state = if mid_frame { State::Lost } else { State::Whole };
        self.unknown = 0;
    }

    /// Whether a frame has begun whose rest could be taken for one. With a start or a proof of their own it could not.
    pub fn is_mid_frame(&self) -> bool {
        let begins_anywhere = self.config.start.is_empty() && matches!(self.config.ending, Ending::Mark(_));
        begins_anywhere && (!self.raw.is_empty() || matches!(self.state, State::Overlong | State::Told))
    }

    /// After how much silence `silence` is to be called; `None` = silence says nothing now.
    pub fn patience(&self) -> Option<Duration> {
        let is_by_mark = self.config.start.is_empty() && matches!(self.config.ending, Ending::Mark(_));
        let waits = !self.raw.is_empty() || self.state != State::Whole;
        let patience = if is_by_mark { self.config.idle } else { Some(self.config.idle.unwrap_or(PATIENCE)) };
        patience.filter(|_| waits)
    }

    /// Takes bytes in and gives back what they complete, in order.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for piece in bytes.chunks(PIECE_BYTES) {
            self.raw.extend_from_slice(piece);
            while self.step(&mut cuts) {}
        }
        cuts
    }

    /// The line was silent for as long as `patience` said.
    pub fn silence(&mut self) -> Vec<Cut> {
        let mut cuts = Vec::new();
        if self.is_by_silence() {
            match self.state {
                State::Whole => self.end_by_silence(&mut cuts),
                State::Lost | State::Told => {}
                State::Overlong => cuts.push(Cut::Dropped(Flaw::Overlong)),
            }
        } else if self.config.start.is_empty() && matches!(self.config.ending, Ending::Mark(_)) {
            match self.state {
                State::Whole if self.raw.is_empty() => {}
                State::Whole => cuts.push(Cut::Dropped(Flaw::Incomplete)),
                State::Lost | State::Overlong | State::Told => {}
            }
        } else {
            // A frame may hide in what was taken for the beginning of a longer one.
            while !self.raw.is_empty() {
                if matches!(self.measured(0), Measured::Frame(length) if length == self.raw.len()) {
                    let whole = std::mem::take(&mut self.raw);
                    cuts.push(self.judged(whole, 0));
                    break;
                }
                self.lose(Flaw::Incomplete, 1, &mut cuts);
                while self.step(&mut cuts) {}
            }
        }
        self.reset(false);
        cuts
    }

    /// Takes one step; whether there may be another one.
    fn step(&mut self, cuts: &mut Vec<Cut>) -> bool {
        if self.is_by_silence() {
            self.gather();
            return false;
        }
        match self.config.ending {
            Ending::Mark(_) => self.step_to_mark(cuts),
            Ending::Length(_) | Ending::Field(_) | Ending::Idle => self.step_by_length(cuts),
        }
    }

    /// Frames of which nothing but silence shows where they begin.
    fn is_by_silence(&self) -> bool {
        match self.config.ending {
            Ending::Idle => true,
            Ending::Length(_) | Ending::Field(_) => self.proof_bits() == 0,
            Ending::Mark(_) => false,
        }
    }

    /// How many bits of a frame must be right for it to be one, by length.
    fn proof_bits(&self) -> usize {
        self.config.start.len() * 8 + self.config.checksum.map_or(0, |checksum| checksum.kind.bytes() * 8)
    }

    // By silence.

    fn gather(&mut self) {
        if self.state != State::Whole {
            self.drop_raw(self.raw.len());
        } else if self.raw.len() > self.config.bytes_max {
            self.state = State::Overlong;
            self.drop_raw(self.raw.len());
        }
    }

    fn end_by_silence(&mut self, cuts: &mut Vec<Cut>) {
        if self.raw.is_empty() {
            return;
        }
        let starts = self.raw.starts_with(&self.config.start);
        let is_length_right = match self.config.ending {
            Ending::Length(length) => self.raw.len() == length,
            Ending::Field(field) => length_said(&field, &self.raw) == Some(self.raw.len()),
            Ending::Idle | Ending::Mark(_) => true,
        };
        let whole = std::mem::take(&mut self.raw);
        let cut = match (starts, is_length_right) {
            (false, _) => Cut::Dropped(Flaw::Garbage),
            (true, false) => Cut::Dropped(Flaw::Incomplete),
            (true, true) => self.judged(whole, 0),
        };
        cuts.push(cut);
    }

    // By what stands at the end.

    fn step_to_mark(&mut self, cuts: &mut Vec<Cut>) -> bool {
        if !self.has_begun(cuts) {
            return false;
        }
        loop {
            let (meant, width) = match self.next() {
                Next::Unfinished => return false,
                Next::End(end) => {
                    self.end_at_mark(end, cuts);
                    return true;
                }
                Next::Start => {
                    self.lose(Flaw::Incomplete, self.seen, cuts);
                    return true;
                }
                Next::Byte { meant, width } => (meant, width),
            };
            self.seen += width;
            let begins_anywhere = self.config.start.is_empty();
            if begins_anywhere && self.state != State::Whole {
                self.unknown += self.seen;
                self.drop_raw(self.seen);
                if self.state == State::Lost && self.unknown > self.config.bytes_max.saturating_mul(LOST_FACTOR) {
                    self.state = State::Told;
                    cuts.push(Cut::Dropped(Flaw::Overlong));
                }
                continue;
            }
            self.whole.push(meant);
            if self.whole.len() <= self.config.start.len() + self.config.bytes_max {
                continue;
            }
            if begins_anywhere {
                self.state = State::Told;
                cuts.push(Cut::Dropped(Flaw::Overlong));
                self.drop_raw(self.seen);
            } else {
                self.lose(Flaw::Overlong, 1, cuts);
                return true;
            }
        }
    }

    /// What comes next in a frame that has begun.
    fn next(&self) -> Next {
        let FrameConfig { start, ending: Ending::Mark(mark), tail, escape, checksum, .. } = &self.config else {
            return Next::Unfinished;
        };
        // Where a start cannot stand inside of a frame, one that does is the next frame's, whose forerunner has no end.
        let is_start_rare = !start.is_empty() && (checksum.is_none() || escape.is_some());
        let rest = self.raw.get(self.seen..).unwrap_or_default();
        let Some(&byte) = rest.first() else { return Next::Unfinished };
        if rest.starts_with(mark) {
            let end = self.seen + mark.len() + tail;
            return if self.raw.len() < end { Next::Unfinished } else { Next::End(end) };
        }
        if mark.starts_with(rest) {
            return Next::Unfinished;
        }
        if is_start_rare && rest.starts_with(start) {
            return Next::Start;
        }
        if is_start_rare && start.starts_with(rest) {
            return Next::Unfinished;
        }
        match escape {
            Some(escape) if escape.byte == byte => match rest.get(1) {
                Some(escaped) => Next::Byte { meant: escaped ^ escape.xor, width: 2 },
                None => Next::Unfinished,
            },
            _ => Next::Byte { meant: byte, width: 1 },
        }
    }

    /// Whether the bytes begin with a start; drops what stands before one.
    fn has_begun(&mut self, cuts: &mut Vec<Cut>) -> bool {
        let start = &self.config.start;
        if start.is_empty() || self.seen >= start.len() {
            return true;
        }
        let is_here = |at: &usize| {
            let rest = self.raw.get(*at..).unwrap_or_default();
            rest.starts_with(start) || start.starts_with(rest)
        };
        let at = (0..self.raw.len()).find(is_here).unwrap_or(self.raw.len());
        // Devices end their lines behind the end, for the eye of whoever looks at them in a terminal.
        let is_blank = |byte: &u8| matches!(byte, b'\r' | b'\n' | b' ' | 0);
        if self.raw.iter().take(at).all(is_blank) {
            self.drop_raw(at);
        } else {
            self.lose(Flaw::Garbage, at, cuts);
        }
        if !self.raw.starts_with(&self.config.start) {
            return false;
        }
        self.whole.clone_from(&self.config.start);
        self.seen = self.config.start.len();
        true
    }

    fn end_at_mark(&mut self, end: usize, cuts: &mut Vec<Cut>) {
        let mut whole = std::mem::take(&mut self.whole);
        let is_empty = whole.len() == self.config.start.len();
        let behind = if self.config.tail > 0 { end - self.seen } else { 0 };
        whole.extend(self.raw.iter().skip(self.seen).take(behind));
        if is_empty && self.state == State::Whole {
            self.drop_raw(end);
            return;
        }
        match (self.state, self.config.start.is_empty()) {
            // Nobody knows what stood before.
            (State::Lost | State::Overlong | State::Told, true) => {}
            (State::Whole, true) => cuts.push(self.judged(whole, behind)),
            (_, false) => match self.judged(whole, behind) {
                // This start may have been none, or its end; a whole frame may begin inside.
                Cut::Dropped(flaw) => return self.lose(flaw, 1, cuts),
                frame if !is_empty => cuts.push(frame),
                _ => {}
            },
        }
        self.state = State::Whole;
        self.unknown = 0;
        self.drop_raw(end);
    }

    // By length.

    fn step_by_length(&mut self, cuts: &mut Vec<Cut>) -> bool {
        let length = match self.measured(0) {
            Measured::Unfinished => return false,
            Measured::None(flaw) => {
                self.lose(flaw, 1, cuts);
                return true;
            }
            Measured::Frame(length) => length,
        };
        if self.state == State::Lost && self.proof_bits() < PROOF_BITS {
            match self.measured(length) {
                Measured::Unfinished => return false,
                Measured::None(flaw) => {
                    self.lose(flaw, 1, cuts);
                    return true;
                }
                Measured::Frame(_) => {}
            }
        }
        let whole = self.raw.get(..length).unwrap_or_default().to_vec();
        cuts.push(self.judged(whole, 0));
        self.state = State::Whole;
        self.drop_raw(length);
        true
    }

    /// What stands from byte `from` on.
    fn measured(&self, from: usize) -> Measured {
        let rest = self.raw.get(from..).unwrap_or_default();
        if !rest.starts_with(&self.config.start) {
            let may_be = self.config.start.starts_with(rest);
            return if may_be { Measured::Unfinished } else { Measured::None(Flaw::Garbage) };
        }
        let length = match self.config.ending {
            Ending::Length(length) => length,
            Ending::Field(field) if rest.len() < field.offset.saturating_add(usize::from(field.width)) => {
                return Measured::Unfinished;
            }
            Ending::Field(field) => match length_said(&field, rest) {
                Some(length) if length > self.config.bytes_max => return Measured::None(Flaw::Overlong),
                Some(length) if length >= self.least() => length,
                _ => return Measured::None(Flaw::Garbage),
            },
            Ending::Mark(_) | Ending::Idle => return Measured::None(Flaw::Garbage),
        };
        let Some(frame) = rest.get(..length) else { return Measured::Unfinished };
        match self.config.checksum {
            Some(checksum) if checksum::confirmed(&checksum, frame).is_none() => Measured::None(Flaw::Checksum),
            _ => Measured::Frame(length),
        }
    }

    /// The fewest bytes that a frame with a length field can have.
    fn least(&self) -> usize {
        let field = match self.config.ending {
            Ending::Field(field) => field.offset + usize::from(field.width),
            _ => 1,
        };
        field.max(self.config.start.len())
    }

    // What all of them do.

    /// A frame if its checksum is right. `behind` = how many of its bytes are the end and what follows it.
    fn judged(&self, whole: Vec<u8>, behind: usize) -> Cut {
        // With a length the start is a byte like others: fields are counted from it.
        let first = match self.config.ending {
            Ending::Mark(_) => self.config.start.len(),
            Ending::Length(_) | Ending::Field(_) | Ending::Idle => 0,
        };
        let mut last = whole.len() - behind;
        if let Some(checksum) = &self.config.checksum {
            match checksum::confirmed(checksum, &whole) {
                None => return Cut::Dropped(Flaw::Checksum),
                Some(place) if place.end == last => last = place.start.saturating_sub(checksum.skip),
                Some(_) => {}
            }
        }
        Cut::Frame(Frame { whole, body: first.min(last)..last })
    }

    /// These bytes are no frame; what lies behind the first `count` of them may be one.
    fn lose(&mut self, flaw: Flaw, count: usize, cuts: &mut Vec<Cut>) {
        if self.state != State::Lost {
            cuts.push(Cut::Dropped(flaw));
        }
        self.state = State::Lost;
        self.drop_raw(count);
    }

    fn drop_raw(&mut self, count: usize) {
        self.raw.drain(..count.min(self.raw.len()));
        self.seen = 0;
        self.whole.clear();
    }
}

/// How long the frame says that it is; `None` when that is nonsense.
fn length_said(field: &LengthField, frame: &[u8]) -> Option<usize> {
    let end = field.offset.checked_add(usize::from(field.width))?;
    let bytes = frame.get(field.offset..end)?;
    let add = |number: i64, byte: &u8| number << 8 | i64::from(*byte);
    let said = match field.order {
        ByteOrder::Big => bytes.iter().fold(0, add),
        ByteOrder::Little => bytes.iter().rev().fold(0, add),
    };
    let before = match field.counts {
        Counts::Rest => i64::try_from(end).ok()?,
        Counts::Frame => 0,
    };
    usize::try_from(said + before + i64::from(field.plus)).ok()
}

#[cfg(test)]
mod tests;
