//! Asks chronyd when it last synchronised, without its program: its `tracking` report over UDP on loopback, which every
//! local user may have where `cmdport` is at its default (chrony.conf(5)). Its socket file is for root only.
//!
//! Promises: never waits; an answer that is not to our question, or is not whole, is no answer.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};

/// chronyd's port for questions.
const PORT: u16 = 323;

/// How often it is asked, and how often where nobody listens.
const ASK_EVERY_MS: u64 = 16_000;
const ASK_AGAIN_MS: u64 = 128_000;

/// What is taken in one look at most.
const ANSWERS_MAX: usize = 4;

/// Request and reply of protocol 6 (chrony's candm.h): `tracking` is command 33, its report is reply 5. A request is as
/// long as its reply, so that nobody can be flooded by means of it.
const VERSION: u8 = 6;
const TRACKING: u16 = 33;
const TRACKING_REPLY: u16 = 5;
const REPLY_BYTES: usize = 104;

/// Not synchronised at all.
const LEAP_UNSYNCHRONISED: u16 = 3;
/// chronyd's own clock, when `local` lets it pretend to be synchronised.
const LOCAL_REFERENCE: u32 = 0x7f7f_0101;

/// Asks now and then.
#[derive(Debug, Default)]
pub struct Asker {
    socket: Option<UdpSocket>,
    sequence: u32,
    next_ms: u64,
    said: Option<(i64, u32)>,
}

impl Asker {
    /// When chronyd last synchronised, by the wall clock of then, and how far off that was: as far as it has said so.
    pub fn look(&mut self, mono_ms: u64) -> Option<(i64, u32)> {
        self.look_at(mono_ms, PORT)
    }

    fn look_at(&mut self, mono_ms: u64, port: u16) -> Option<(i64, u32)> {
        if let Some(socket) = &self.socket {
            let mut answer = [0; 512];
            for _ in 0..ANSWERS_MAX {
                match socket.recv(&mut answer) {
                    Ok(length) => {
                        let answer = answer.get(..length).unwrap_or_default();
                        self.said = tracking(answer, self.sequence).or(self.said);
                    }
                    Err(error) => {
                        if error.kind() == ErrorKind::ConnectionRefused {
                            self.next_ms = mono_ms.saturating_add(ASK_AGAIN_MS);
                        }
                        break;
                    }
                }
            }
        }
        if mono_ms >= self.next_ms {
            self.next_ms = mono_ms.saturating_add(ASK_EVERY_MS);
            self.sequence = self.sequence.wrapping_add(1);
            if self.ask(port).is_none() {
                self.socket = None;
                self.next_ms = mono_ms.saturating_add(ASK_AGAIN_MS);
            }
        }
        self.said
    }

    fn ask(&mut self, port: u16) -> Option<()> {
        if self.socket.is_none() {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
            socket.set_nonblocking(true).ok()?;
            // From here on the kernel drops what comes from anywhere else.
            socket.connect((Ipv4Addr::LOCALHOST, port)).ok()?;
            self.socket = Some(socket);
        }
        let mut request = [0; REPLY_BYTES];
        request.get_mut(..4)?.copy_from_slice(&[VERSION, 1, 0, 0]);
        request.get_mut(4..6)?.copy_from_slice(&TRACKING.to_be_bytes());
        request.get_mut(8..12)?.copy_from_slice(&self.sequence.to_be_bytes());
        match self.socket.as_ref()?.send(&request) {
            // The refusal of an earlier question; this one was not sent, and the next one will be.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
            sent => sent.ok().map(drop),
        }
    }
}

/// Reads a `tracking` report.
fn tracking(answer: &[u8], sequence: u32) -> Option<(i64, u32)> {
    let word = |at: usize| Some(u32::from_be_bytes(*answer.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_be_bytes(*answer.get(at..)?.first_chunk()?));
    let is_reply = answer.first_chunk() == Some(&[VERSION, 2, 0, 0]) && half(4)? == TRACKING;
    if !is_reply || half(6)? != TRACKING_REPLY || half(8)? != 0 || word(16)? != sequence || answer.len() < REPLY_BYTES {
        return None;
    }
    let (reference_id, leap) = (word(28)?, half(54)?);
    if leap >= LEAP_UNSYNCHRONISED || reference_id == 0 || reference_id == LOCAL_REFERENCE {
        return None;
    }
    let seconds = (u64::from(word(56)?) << 32 | u64::from(word(60)?)).cast_signed();
    let synced_ms = seconds.checked_mul(1000)?.checked_add(i64::from(word(64)? / 1_000_000))?;
    let (delay_s, dispersion_s) = (float(word(92)?), float(word(96)?));
    let error_ms = (delay_s.abs() / 2.0 + dispersion_s.abs()) * 1000.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` keeps it in the range of u32")]
    let error_ms = error_ms.ceil() as u32;
    Some((synced_ms, error_ms))
}

/// chrony's own float: seven bits of exponent, 25 of coefficient, both signed.
fn float(bits: u32) -> f64 {
    let exponent = (bits.cast_signed() >> 25) - 25;
    let coefficient = bits.cast_signed().wrapping_shl(7) >> 7;
    f64::from(coefficient) * f64::from(exponent).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What chronyd 4.3 answered that was synchronised to another one on 2026-11-25 at 20:56:36.9 UTC: stratum 4, root
    /// delay 6.113 µs, root dispersion 1.265 µs.
    const SYNCED: &str = "060200000021000500000000000000001234567800000000000000007f0000017f000001000000000000000000\
         0000000001000000040000000000006b074b8437de5aeddd3053ebd4d87d67daf340b0f579a1f9f0f88b6efed0be4ce0cd1e45dca7f40a\
         0482346f";
    /// What it answered that had only its own clock (`local stratum 8`).
    const LOCAL: &str = "060200000021000500000000000000001234567800000000000000007f7f010100000000000000000000000000000\
         0000000000000080000000000006b074b6b304b1683000000000000000000000000000000000000000000000000000000000000000000000000";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn a_report_says_when_the_clock_was_synchronised_and_how_well() {
        assert_eq!(tracking(&bytes(SYNCED), 0x1234_5678), Some((1_795_640_196_937, 1)));
        let mut far = bytes(SYNCED);
        // 2 = 2^-23 × 2^24: exponent 2, coefficient 2^23.
        far[92..96].copy_from_slice(&((2_u32 << 25) | (1 << 23)).to_be_bytes());
        assert_eq!(tracking(&far, 0x1234_5678).unwrap().1, 501);
    }

    #[test]
    fn a_clock_that_is_its_own_reference_or_none_is_not_synchronised() {
        assert_eq!(tracking(&bytes(LOCAL), 0x1234_5678), None);
        let mut unsynchronised = bytes(SYNCED);
        unsynchronised[55] = 3;
        assert_eq!(tracking(&unsynchronised, 0x1234_5678), None);
    }

    #[test]
    fn what_is_not_the_answer_to_our_question_is_none() {
        let good = bytes(SYNCED);
        assert_eq!(tracking(&good, 0x1234_5679), None, "another question's");
        for length in 0..good.len() {
            assert_eq!(tracking(&good[..length], 0x1234_5678), None, "cut at {length}");
        }
        for (at, what) in [(0, "version"), (1, "kind"), (5, "command"), (7, "reply"), (9, "status")] {
            let mut other = good.clone();
            other[at] ^= 1;
            assert_eq!(tracking(&other, 0x1234_5678), None, "{what}");
        }
    }

    #[test]
    fn the_question_is_as_long_as_its_answer_and_nobody_is_waited_for() {
        let chronyd = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = chronyd.local_addr().unwrap().port();
        let mut asker = Asker::default();
        assert_eq!(asker.look_at(0, port), None);
        let mut question = [0; 512];
        let (length, from) = chronyd.recv_from(&mut question).unwrap();
        assert_eq!((length, &question[..12]), (REPLY_BYTES, &[6, 1, 0, 0, 0, 33, 0, 0, 0, 0, 0, 1][..]));
        let mut answer = bytes(SYNCED);
        answer[16..20].copy_from_slice(&question[8..12]);
        chronyd.send_to(&answer, from).unwrap();
        // Loopback delivers before `send_to` returns.
        assert_eq!(asker.look_at(1000, port), Some((1_795_640_196_937, 1)));
        drop(chronyd);
        for second in 2..40 {
            assert_eq!(asker.look_at(second * 1000, port), Some((1_795_640_196_937, 1)), "the last word stands");
        }
    }
}
