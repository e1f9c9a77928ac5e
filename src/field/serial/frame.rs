//! Bytes into frames, by delimiter. Pure.
//!
//! Promises: the memory of a frame is bounded; a longer one is dropped to its delimiter and counted; after a start in
//! the middle of a frame its rest is dropped too, since half a number is still a number. Empty frames are nothing.

/// What came out of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// A frame, without its delimiter.
    Frame(Vec<u8>),
    /// A frame that was longer than allowed, dropped.
    Overlong,
}

/// Cuts frames out of a stream.
#[derive(Debug, Clone)]
pub struct Framer {
    delimiter: Vec<u8>,
    frame_bytes_max: usize,
    pending: Vec<u8>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Gathering a frame.
    Whole,
    /// Dropping the rest of a frame whose beginning was missed.
    Joining,
    /// Dropping the rest of a frame that is too long.
    Overlong,
}

impl Framer {
    /// Frames end at `delimiter`, which is not empty (an empty one makes each byte a frame's end), and have at most
    /// `frame_bytes_max` bytes.
    pub fn new(delimiter: &[u8], frame_bytes_max: usize) -> Framer {
        Framer { delimiter: delimiter.to_vec(), frame_bytes_max, pending: Vec::new(), state: State::Whole }
    }

    /// Forgets what was gathered. `mid_frame` = what comes next may be the rest of a frame.
    pub fn reset(&mut self, mid_frame: bool) {
        self.pending.clear();
        self.state = if mid_frame { State::Joining } else { State::Whole };
    }

    /// Whether a frame has begun and not ended.
    pub fn is_mid_frame(&self) -> bool {
        !self.pending.is_empty() || self.state == State::Overlong
    }

    /// Takes bytes in and gives back what they complete, in order.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for byte in bytes {
            self.pending.push(*byte);
            if self.pending.ends_with(&self.delimiter) {
                self.cut(&mut cuts);
            } else if self.pending.len() >= self.frame_bytes_max + self.delimiter.len() {
                if self.state == State::Whole {
                    self.state = State::Overlong;
                }
                // As much is kept as could be the beginning of the delimiter.
                let surplus = self.pending.len() - self.delimiter.len().saturating_sub(1);
                self.pending.drain(..surplus);
            }
        }
        cuts
    }

    fn cut(&mut self, cuts: &mut Vec<Cut>) {
        let mut frame = std::mem::take(&mut self.pending);
        frame.truncate(frame.len() - self.delimiter.len());
        match std::mem::replace(&mut self.state, State::Whole) {
            State::Whole if frame.is_empty() => {}
            State::Whole => cuts.push(Cut::Frame(frame)),
            State::Overlong => cuts.push(Cut::Overlong),
            State::Joining => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(cuts: Vec<Cut>) -> Vec<String> {
        let text = |cut| match cut {
            Cut::Frame(bytes) => String::from_utf8(bytes).unwrap(),
            Cut::Overlong => "(overlong)".to_owned(),
        };
        cuts.into_iter().map(text).collect()
    }

    #[test]
    fn frames_are_the_same_however_the_bytes_are_split() {
        let stream = b"one\r\ntwo\r\n\r\nth\rree\n\r\nhalf";
        for size in 1..stream.len() {
            let mut framer = Framer::new(b"\r\n", 20);
            let cuts = stream.chunks(size).flat_map(|chunk| framer.push(chunk)).collect();
            assert_eq!(frames(cuts), ["one", "two", "th\rree\n"], "in chunks of {size}");
        }
    }

    #[test]
    fn an_overlong_frame_is_dropped_to_its_delimiter_and_the_next_is_whole() {
        for size in [1, 3, 64] {
            let mut framer = Framer::new(b"\r\n", 5);
            let stream = b"12345\r\n123456\r\nok\r\n12345678901234567890\r\nend\r\n";
            let cuts = stream.chunks(size).flat_map(|chunk| framer.push(chunk)).collect();
            assert_eq!(frames(cuts), ["12345", "(overlong)", "ok", "(overlong)", "end"], "in chunks of {size}");
        }
    }

    #[test]
    fn memory_stays_bounded_without_any_delimiter() {
        let mut framer = Framer::new(b"\r\n", 100);
        for _ in 0..10_000 {
            assert!(framer.push(&[b'x'; 100]).is_empty());
            assert!(framer.pending.len() <= 102);
        }
        assert_eq!(frames(framer.push(b"\r\nok\r\n")), ["(overlong)", "ok"]);
    }

    #[test]
    fn the_rest_of_a_frame_that_began_before_is_dropped() {
        let mut framer = Framer::new(b"\n", 10);
        framer.push(b"12");
        assert!(framer.is_mid_frame());
        framer.reset(true);
        assert!(!framer.is_mid_frame(), "nothing was heard since");
        assert_eq!(frames(framer.push(b"2.5 kg\n12.5 kg\n")), ["12.5 kg"]);
        framer.reset(false);
        assert_eq!(frames(framer.push(b"1\n")), ["1"]);
        framer.reset(true);
        assert_eq!(frames(framer.push(b"a very long rest of something\nnext\n")), ["next"]);
    }
}
