//! Whether the bytes that arrived are the whole answer to the request that was sent. Pure.
//!
//! Promises: `Complete` is said only of one answer, to this request, whole, with every field checked against the
//! request: transaction id, protocol id, length, unit, function, byte count, checksum. It stands before the Modbus
//! library, which checks quantities only by `debug_assert`, so that the library never sees anything else: neither a
//! short answer taken for a value nor a panic is possible. Reads (functions 1 to 4) and writes (5, 6, 15, 16,
//! 22, and 23, which does both).

use std::ops::Range;

use super::fault::Fault;

/// How requests and answers are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Modbus Messaging on TCP/IP 1.0b, 3.1.3: a header of seven bytes.
    Tcp,
    /// Modbus over Serial Line 1.02, 2.5.1: unit, PDU, checksum.
    Rtu,
}

/// What is known of the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// They may become the answer.
    Incomplete,
    /// These are the answer, and nothing follows it.
    Complete(Range<usize>),
    /// They never become the answer.
    Broken(Fault),
}

use Progress::{Broken, Complete, Incomplete};

/// Header of Modbus TCP without the unit id: transaction, protocol, length.
const TCP_PREFIX: usize = 6;
/// PDU of the answer to a write.
const WRITTEN_BYTES: usize = 5;
/// The same of function 22.
const MASKED_BYTES: usize = 7;
/// Checksum of an RTU frame.
const CRC_BYTES: usize = 2;
/// Bytes of 0x00 or 0xFF around an RTU frame that are put down to the line driver's turning around.
pub(super) const GLITCH_BYTES_MAX: usize = 4;

/// Whether the line gives back what is sent on it: two-wire adapters without echo suppression do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// Not known yet.
    Unknown,
    /// It does not.
    Absent,
    /// It does.
    Present,
}

/// As `judge`, on a line of which it is known whether it echoes. The answer to a write of one place (functions 5, 6 and 22) is
/// the request itself: on a line that echoes, only the second one is the device's.
pub fn judge_beside_echo(framing: Framing, echo: Echo, request: &[u8], received: &[u8]) -> Progress {
    let is_alike = matches!(request.get(1), Some(5 | 6 | 22));
    if framing != Framing::Rtu || echo != Echo::Present || !is_alike {
        return judge(framing, request, received);
    }
    let glitches = received.iter().take(GLITCH_BYTES_MAX).take_while(|byte| is_glitch(byte)).count();
    let (skipped, heard) = received.split_at(if received.starts_with(request) { 0 } else { glitches });
    if request.starts_with(heard) {
        return Incomplete;
    }
    match heard.strip_prefix(request) {
        None => Broken(Fault::OtherRequest),
        Some(rest) => {
            let before = skipped.len() + request.len();
            match judge(framing, request, rest) {
                Complete(range) => Complete(before + range.start..before + range.end),
                other => other,
            }
        }
    }
}

/// Whether the line has echoed a request to read, which no answer looks like.
pub fn echo_of(request: &[u8], received: &[u8]) -> Echo {
    match request.get(1) {
        Some(1..=4) if received.starts_with(request) => Echo::Present,
        Some(1..=4) => Echo::Absent,
        _ => Echo::Unknown,
    }
}

/// Judges `received` as the answer to `request`, both as they are on the wire.
pub fn judge(framing: Framing, request: &[u8], received: &[u8]) -> Progress {
    match framing {
        Framing::Tcp => judge_tcp(request, received),
        Framing::Rtu => judge_rtu(request, received),
    }
}

fn judge_tcp(request: &[u8], received: &[u8]) -> Progress {
    let Some(asked_pdu) = request.get(TCP_PREFIX + 1..) else { return Broken(Fault::NoRequest) };
    // Each field is judged as soon as it is there: nothing waits for 65,535 bytes that a wrong length announces.
    if !agrees(received, request, 0..2) {
        return Broken(Fault::Transaction);
    }
    if received.get(2..4.min(received.len())).is_some_and(|id| id.iter().any(|byte| *byte != 0)) {
        return Broken(Fault::Protocol);
    }
    let Some(length) = received.get(4..TCP_PREFIX) else { return Incomplete };
    let length = length.iter().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
    if !agrees(received, request, TCP_PREFIX..TCP_PREFIX + 1) {
        return Broken(Fault::Unit);
    }
    let pdu = received.get(TCP_PREFIX + 1..).unwrap_or_default();
    let (progress, pdu_length) = judge_pdu(asked_pdu, pdu);
    if let Broken(reason) = progress {
        return Broken(reason);
    }
    // The length is known as soon as the function is, and what it announces must be that.
    match pdu_length {
        None if !(3..=254).contains(&length) => Broken(Fault::LengthImpossible),
        None => Incomplete,
        Some(expected) if length != expected + 1 => Broken(Fault::Length),
        Some(expected) => ended(TCP_PREFIX + 1 + expected, received.len()),
    }
}

fn ended(end: usize, received: usize) -> Progress {
    match received {
        _ if received < end => Incomplete,
        _ if received == end => Complete(0..end),
        _ => Broken(Fault::Surplus),
    }
}

fn judge_rtu(request: &[u8], received: &[u8]) -> Progress {
    let unit = request.first().copied();
    let plain = judge_rtu_frames(request, skip_glitches(unit, received, 0));
    if let Complete(_) = plain {
        return shifted(plain, received, request, 0);
    }
    // Two-wire adapters without echo suppression hear their own request first.
    if received.starts_with(request) {
        let after = judge_rtu_frames(request, skip_glitches(unit, received, request.len()));
        return shifted(after, received, request, request.len());
    }
    if request.starts_with(received) { Incomplete } else { shifted(plain, received, request, 0) }
}

/// A range within what follows `offset` and glitches, as a range of `received`.
fn shifted(progress: Progress, received: &[u8], request: &[u8], offset: usize) -> Progress {
    match progress {
        Complete(range) => {
            let rest = skip_glitches(request.first().copied(), received, offset);
            let base = received.len() - rest.len();
            Complete(base + range.start..base + range.end)
        }
        other => other,
    }
}

/// Drops a few bytes that are no unit's id and that line drivers make when they turn around.
fn skip_glitches(unit: Option<u8>, received: &[u8], offset: usize) -> &[u8] {
    let rest = received.get(offset..).unwrap_or_default();
    let is_no_unit = |byte: &&u8| is_glitch(byte) && Some(**byte) != unit;
    let count = rest.iter().take(GLITCH_BYTES_MAX).take_while(is_no_unit).count();
    rest.get(count..).unwrap_or_default()
}

/// Whether a byte is what a line driver makes when it turns around.
pub(super) fn is_glitch(byte: &u8) -> bool {
    matches!(byte, 0x00 | 0xFF)
}

/// The answer, perhaps after a whole late answer of another unit: that one is heard out and passed over, so that a
/// unit which is late does not spoil its neighbour's turn.
fn judge_rtu_frames(request: &[u8], received: &[u8]) -> Progress {
    let (Some(unit), Some(asked_pdu)) = (request.first(), request.get(1..request.len().saturating_sub(CRC_BYTES)))
    else {
        return Broken(Fault::NoRequest);
    };
    let Some(from) = received.first() else { return Incomplete };
    if from != unit {
        return match foreign_frame(received) {
            Foreign::Incomplete => Incomplete,
            Foreign::Noise => Broken(Fault::UnitOrNoise),
            Foreign::Whole(length) => {
                match judge_rtu_frame(unit, asked_pdu, received.get(length..).unwrap_or_default()) {
                    Complete(range) => Complete(length + range.start..length + range.end),
                    other => other,
                }
            }
        };
    }
    judge_rtu_frame(unit, asked_pdu, received)
}

fn judge_rtu_frame(unit: &u8, asked_pdu: &[u8], received: &[u8]) -> Progress {
    let Some(from) = received.first() else { return Incomplete };
    if from != unit {
        return Broken(Fault::UnitOrNoise);
    }
    let (progress, pdu_length) = judge_pdu(asked_pdu, received.get(1..).unwrap_or_default());
    if let Broken(reason) = progress {
        return Broken(reason);
    }
    let Some(pdu_length) = pdu_length else { return Incomplete };
    let end = 1 + pdu_length + CRC_BYTES;
    let Some(frame) = received.get(..end) else { return Incomplete };
    if !crc_fits(frame) {
        return Broken(Fault::Checksum);
    }
    let rest = received.get(end..).unwrap_or_default();
    if rest.len() > GLITCH_BYTES_MAX || !rest.iter().all(is_glitch) {
        return Broken(Fault::Surplus);
    }
    Complete(0..end)
}

enum Foreign {
    Incomplete,
    Whole(usize),
    Noise,
}

/// How long the answer of some other unit at the front of `received` is.
fn foreign_frame(received: &[u8]) -> Foreign {
    let Some(function) = received.get(1) else { return Foreign::Incomplete };
    let length = match function {
        1..=4 | 23 => match received.get(2) {
            None => return Foreign::Incomplete,
            Some(count) => 3 + usize::from(*count) + CRC_BYTES,
        },
        // What was written is told again: address, and value or quantity.
        5 | 6 | 15 | 16 => 6 + CRC_BYTES,
        22 => 8 + CRC_BYTES,
        0x81..=0x86 | 0x8F | 0x90 | 0x96 | 0x97 => 3 + CRC_BYTES,
        _ => return Foreign::Noise,
    };
    match received.get(..length) {
        None => Foreign::Incomplete,
        Some(frame) if crc_fits(frame) => Foreign::Whole(length),
        Some(_) => Foreign::Noise,
    }
}

/// Judges function, byte count and exception of an answer; its whole length once that is known.
fn judge_pdu(asked: &[u8], pdu: &[u8]) -> (Progress, Option<usize>) {
    let [function, _, _, quantity_high, quantity_low, written @ ..] = asked else {
        return (Broken(Fault::NoRequest), None);
    };
    let is_write = matches!(function, 5 | 6 | 15 | 16 | 22);
    if !is_write && *function != 23 && !written.is_empty() {
        return (Broken(Fault::NoRequest), None);
    }
    let quantity = usize::from(u16::from_be_bytes([*quantity_high, *quantity_low]));
    let data = match function {
        1 | 2 => quantity.div_ceil(8),
        _ => quantity * 2,
    };
    let Some(answered) = pdu.first() else { return (Incomplete, None) };
    if *answered == function | 0x80 {
        // Exception codes start at 1 (Modbus Application Protocol 1.1b3, 7).
        let is_code = pdu.get(1).is_none_or(|code| *code != 0);
        return if is_code { (Incomplete, Some(2)) } else { (Broken(Fault::NoExceptionCode), None) };
    }
    if answered != function {
        return (Broken(Fault::Function), None);
    }
    if is_write {
        // Modbus Application Protocol 1.1b3, 6.5, 6.6, 6.11, 6.12: the answer repeats the first five bytes; 6.16: all seven.
        let count = if *function == 22 { MASKED_BYTES } else { WRITTEN_BYTES };
        let repeats = agrees(pdu, asked, 1..count);
        return if repeats { (Incomplete, Some(count)) } else { (Broken(Fault::OtherRequest), None) };
    }
    if pdu.get(1).is_some_and(|count| usize::from(*count) != data) {
        return (Broken(Fault::ByteCount), None);
    }
    (Incomplete, Some(2 + data))
}

/// Whether what has arrived of `range` is what the request has there.
fn agrees(received: &[u8], request: &[u8], range: Range<usize>) -> bool {
    range.into_iter().all(|place| match (received.get(place), request.get(place)) {
        (None, _) => true,
        (Some(got), asked) => Some(got) == asked,
    })
}

/// Modbus over Serial Line 1.02, 2.5.1.2: the checksum follows low byte first, so that over all of it it is 0.
fn crc_fits(frame: &[u8]) -> bool {
    crc(frame) == 0
}

/// Modbus over Serial Line 1.02, 6.2.2.
pub(in crate::field) fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc: u16, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xA001 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit 1, holding registers 107 to 109 (Modbus Application Protocol 1.1b3, 6.3).
    const ASKED: [u8; 5] = [0x03, 0x00, 0x6B, 0x00, 0x03];
    const ANSWER: [u8; 8] = [0x03, 0x06, 0x02, 0x2B, 0x00, 0x00, 0x00, 0x64];

    fn rtu(unit: u8, pdu: &[u8]) -> Vec<u8> {
        let mut frame = vec![unit];
        frame.extend(pdu);
        let crc = crc(&frame);
        frame.extend(crc.to_le_bytes());
        frame
    }

    fn tcp(transaction: u16, unit: u8, pdu: &[u8]) -> Vec<u8> {
        let mut frame = transaction.to_be_bytes().to_vec();
        frame.extend([0, 0]);
        frame.extend(u16::try_from(pdu.len() + 1).unwrap().to_be_bytes());
        frame.push(unit);
        frame.extend(pdu);
        frame
    }

    fn is_broken(progress: &Progress) -> bool {
        matches!(progress, Broken(_))
    }

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        // Modbus over Serial Line 1.02, appendix B: 02 07 gives 41 12 on the wire.
        assert_eq!(rtu(2, &[7]), [0x02, 0x07, 0x41, 0x12]);
        assert_eq!(rtu(1, &ASKED), [0x01, 0x03, 0x00, 0x6B, 0x00, 0x03, 0x74, 0x17]);
    }

    #[test]
    fn a_right_answer_is_complete_at_its_last_byte_and_not_before() {
        for framing in [Framing::Tcp, Framing::Rtu] {
            let (request, answer) = match framing {
                Framing::Tcp => (tcp(7, 1, &ASKED), tcp(7, 1, &ANSWER)),
                Framing::Rtu => (rtu(1, &ASKED), rtu(1, &ANSWER)),
            };
            for end in 0..answer.len() {
                assert_eq!(judge(framing, &request, &answer[..end]), Incomplete, "{framing:?} {end}");
            }
            assert_eq!(judge(framing, &request, &answer), Complete(0..answer.len()));
        }
    }

    #[test]
    fn bits_are_counted_in_whole_bytes() {
        let request = tcp(1, 9, &[1, 0, 0, 0, 19]);
        assert_eq!(judge(Framing::Tcp, &request, &tcp(1, 9, &[1, 3, 0xCD, 0x6B, 0x05])), Complete(0..12));
        assert!(is_broken(&judge(Framing::Tcp, &request, &tcp(1, 9, &[1, 2, 0xCD, 0x6B]))));
        assert!(is_broken(&judge(Framing::Tcp, &request, &tcp(1, 9, &[1, 4, 0, 0, 0, 0]))));
    }

    #[test]
    fn an_exception_is_an_answer() {
        assert_eq!(judge(Framing::Tcp, &tcp(7, 1, &ASKED), &tcp(7, 1, &[0x83, 2])), Complete(0..9));
        assert_eq!(judge(Framing::Rtu, &rtu(1, &ASKED), &rtu(1, &[0x83, 2])), Complete(0..5));
        assert!(is_broken(&judge(Framing::Tcp, &tcp(7, 1, &ASKED), &tcp(7, 1, &[0x83, 0]))));
        assert!(is_broken(&judge(Framing::Tcp, &tcp(7, 1, &ASKED), &tcp(7, 1, &[0x84, 2]))));
    }

    #[test]
    fn every_wrong_field_of_a_tcp_answer_is_seen() {
        let request = tcp(7, 1, &ASKED);
        let right = tcp(7, 1, &ANSWER);
        for place in 0..9 {
            for flip in 1..=255u8 {
                let mut wrong = right.clone();
                wrong[place] ^= flip;
                // 0x83 makes it an exception of the wrong length.
                let progress = judge(Framing::Tcp, &request, &wrong);
                assert!(is_broken(&progress), "byte {place} as {:#04x}: {progress:?}", wrong[place]);
            }
        }
        assert!(is_broken(&judge(Framing::Tcp, &request, &[right.clone(), right.clone()].concat())));
        assert!(is_broken(&judge(Framing::Tcp, &request, &[right, vec![0]].concat())));
        for length in [0u16, 1, 2, 255, 65_535] {
            let header = [vec![0, 7, 0, 0], length.to_be_bytes().to_vec()].concat();
            assert!(is_broken(&judge(Framing::Tcp, &request, &header)), "length {length}");
        }
    }

    #[test]
    fn every_wrong_bit_of_an_rtu_answer_is_never_complete() {
        let request = rtu(1, &ASKED);
        let right = rtu(1, &ANSWER);
        for place in 0..right.len() {
            for bit in 0..8 {
                let mut wrong = right.clone();
                wrong[place] ^= 1 << bit;
                assert!(!matches!(judge(Framing::Rtu, &request, &wrong), Complete(_)), "byte {place} bit {bit}");
            }
        }
        assert!(is_broken(&judge(Framing::Rtu, &request, &[right.clone(), right].concat())));
    }

    #[test]
    fn an_echo_of_the_request_is_passed_over() {
        let (request, answer) = (rtu(1, &ASKED), rtu(1, &ANSWER));
        let both = [request.clone(), answer.clone()].concat();
        for end in 0..both.len() {
            assert_eq!(judge(Framing::Rtu, &request, &both[..end]), Incomplete, "{end}");
        }
        assert_eq!(judge(Framing::Rtu, &request, &both), Complete(request.len()..both.len()));
    }

    #[test]
    fn glitches_around_an_answer_are_passed_over_and_noise_is_not() {
        let (request, answer) = (rtu(1, &ASKED), rtu(1, &ANSWER));
        let glitched = [vec![0, 0xFF], answer.clone(), vec![0]].concat();
        assert_eq!(judge(Framing::Rtu, &request, &glitched), Complete(2..2 + answer.len()));
        assert!(is_broken(&judge(Framing::Rtu, &request, &[vec![0x55], answer.clone()].concat())));
        assert!(is_broken(&judge(Framing::Rtu, &request, &[vec![0; 5], answer.clone()].concat())));
        assert!(is_broken(&judge(Framing::Rtu, &request, &[answer, vec![0x55]].concat())));
    }

    #[test]
    fn a_late_answer_of_another_unit_is_heard_out_and_passed_over() {
        let (request, answer) = (rtu(1, &ASKED), rtu(1, &ANSWER));
        let late = rtu(2, &ANSWER);
        let both = [late.clone(), answer.clone()].concat();
        assert_eq!(judge(Framing::Rtu, &request, &late), Incomplete);
        assert_eq!(judge(Framing::Rtu, &request, &both), Complete(late.len()..both.len()));
        let mut damaged = both;
        damaged[4] ^= 1;
        assert!(is_broken(&judge(Framing::Rtu, &request, &damaged)));
    }

    #[test]
    fn an_answer_of_the_same_unit_to_another_request_does_not_fit() {
        let request = rtu(1, &ASKED);
        assert!(is_broken(&judge(Framing::Rtu, &request, &rtu(1, &[3, 2, 0, 1]))));
        assert!(is_broken(&judge(Framing::Rtu, &request, &rtu(1, &[4, 6, 0, 1, 0, 2, 0, 3]))));
    }

    /// Register 1 is 3 (Modbus Application Protocol 1.1b3, 6.6); registers 1 and 2 are 10 and 258 (6.12).
    const WRITES: [(&[u8], &[u8]); 4] = [
        (&[6, 0, 1, 0, 3], &[6, 0, 1, 0, 3]),
        (&[5, 0, 0xAC, 0xFF, 0], &[5, 0, 0xAC, 0xFF, 0]),
        (&[16, 0, 1, 0, 2, 4, 0, 10, 1, 2], &[16, 0, 1, 0, 2]),
        (&[15, 0, 0x13, 0, 10, 2, 0xCD, 1], &[15, 0, 0x13, 0, 10]),
    ];

    #[test]
    fn the_answer_to_a_write_repeats_what_was_asked_for_and_nothing_else_is_one() {
        for (asked, answer) in WRITES {
            let (request, right) = (tcp(7, 1, asked), tcp(7, 1, answer));
            for end in 0..right.len() {
                assert_eq!(judge(Framing::Tcp, &request, &right[..end]), Incomplete, "{asked:?} {end}");
            }
            assert_eq!(judge(Framing::Tcp, &request, &right), Complete(0..right.len()));
            let (rtu_request, rtu_right) = (rtu(1, asked), rtu(1, answer));
            assert_eq!(judge(Framing::Rtu, &rtu_request, &rtu_right), Complete(0..rtu_right.len()));
            for place in 0..right.len() {
                for flip in 1..=255u8 {
                    let mut wrong = right.clone();
                    wrong[place] ^= flip;
                    let progress = judge(Framing::Tcp, &request, &wrong);
                    assert!(is_broken(&progress), "{asked:?} byte {place} as {:#04x}: {progress:?}", wrong[place]);
                }
            }
            for place in 0..rtu_right.len() {
                for bit in 0..8 {
                    let mut wrong = rtu_right.clone();
                    wrong[place] ^= 1 << bit;
                    let progress = judge(Framing::Rtu, &rtu_request, &wrong);
                    assert!(!matches!(progress, Complete(_)), "{asked:?} byte {place} bit {bit}");
                }
            }
            let function = asked[0] | 0x80;
            assert_eq!(judge(Framing::Rtu, &rtu_request, &rtu(1, &[function, 3])), Complete(0..5));
            assert!(is_broken(&judge(Framing::Tcp, &request, &tcp(7, 1, &[3, 2, 0, 3]))));
        }
    }

    #[test]
    fn on_a_line_that_echoes_the_echo_of_a_write_is_not_taken_for_its_answer() {
        for (asked, answer) in WRITES {
            let (request, answer) = (rtu(1, asked), rtu(1, answer));
            let both = [request.clone(), answer.clone()].concat();
            for end in 0..both.len() {
                let progress = judge_beside_echo(Framing::Rtu, Echo::Present, &request, &both[..end]);
                assert_eq!(progress, Incomplete, "{asked:?} {end}");
            }
            let progress = judge_beside_echo(Framing::Rtu, Echo::Present, &request, &both);
            assert_eq!(progress, Complete(request.len()..both.len()), "{asked:?}");
            let progress = judge_beside_echo(Framing::Rtu, Echo::Absent, &request, &answer);
            assert_eq!(progress, Complete(0..answer.len()), "{asked:?}");
        }
        assert_eq!(echo_of(&rtu(1, &ASKED), &[rtu(1, &ASKED), rtu(1, &ANSWER)].concat()), Echo::Present);
        assert_eq!(echo_of(&rtu(1, &ASKED), &rtu(1, &ANSWER)), Echo::Absent);
        assert_eq!(echo_of(&rtu(1, &[6, 0, 1, 0, 3]), &rtu(1, &[6, 0, 1, 0, 3])), Echo::Unknown);
    }

    #[test]
    fn a_late_answer_to_a_write_of_another_unit_is_passed_over() {
        let (request, answer) = (rtu(1, &ASKED), rtu(1, &ANSWER));
        for (_, late) in WRITES {
            let late = rtu(2, late);
            let both = [late.clone(), answer.clone()].concat();
            assert_eq!(judge(Framing::Rtu, &request, &late), Incomplete);
            assert_eq!(judge(Framing::Rtu, &request, &both), Complete(late.len()..both.len()));
        }
    }

    #[test]
    fn random_bytes_are_never_complete_and_never_a_panic() {
        let mut seed = 0x2545_F491_4F6C_DD1D_u64;
        let mut byte = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 32) as u8
        };
        for _ in 0..50_000 {
            let length = usize::from(byte()) % 40;
            let noise: Vec<u8> = (0..length).map(|_| byte()).collect();
            for (framing, request) in [(Framing::Tcp, tcp(7, 1, &ASKED)), (Framing::Rtu, rtu(1, &ASKED))] {
                assert!(!matches!(judge(framing, &request, &noise), Complete(_)), "{framing:?} {noise:02x?}");
            }
        }
    }

    #[test]
    fn a_mutated_answer_is_complete_only_when_nothing_but_its_data_differs() {
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 33) as usize % below
        };
        let (tcp_request, rtu_request) = (tcp(7, 1, &ASKED), rtu(1, &ASKED));
        let (tcp_answer, rtu_answer) = (tcp(7, 1, &ANSWER), rtu(1, &ANSWER));
        for _ in 0..100_000 {
            let is_tcp = random(2) == 0;
            let mut bytes = if is_tcp { tcp_answer.clone() } else { rtu_answer.clone() };
            for _ in 0..=random(3) {
                match (random(4), random(bytes.len().max(1))) {
                    (0, place) => bytes.truncate(place),
                    (1, place) => bytes.insert(place, random(256) as u8),
                    (_, place) => bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte = random(256) as u8),
                }
            }
            if is_tcp {
                let data = tcp_answer.len() - 6;
                if let Complete(range) = judge(Framing::Tcp, &tcp_request, &bytes) {
                    let is_exception = bytes[7] == 0x83;
                    assert!(is_exception || (range == (0..bytes.len()) && bytes[..data] == tcp_answer[..data]));
                }
            } else if let Complete(range) = judge(Framing::Rtu, &rtu_request, &bytes) {
                assert_eq!(bytes[range], rtu_answer, "the checksum lets nothing else through here");
            }
        }
    }
}
