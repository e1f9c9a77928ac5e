//! Whatever the frames are like: the same bytes and silences give the same frames, and after garbage whole ones are
//! found again.

use proptest::prelude::*;

use super::*;
use crate::config::{Checksum, ChecksumForm, ChecksumKind, Escape};

/// What a line carries.
#[derive(Debug, Clone)]
enum Said {
    /// A whole frame around this content.
    Frame(Vec<u8>),
    /// Anything.
    Noise(Vec<u8>),
    /// A frame of which one bit, or the end, is missing.
    Damaged(Vec<u8>, usize),
    Silence,
}

fn crc() -> Checksum {
    Checksum::at_end(ChecksumKind::Crc16Modbus, ChecksumForm::Binary)
}

fn field(offset: usize, counts: Counts, plus: i32) -> Ending {
    Ending::Field(LengthField { offset, width: 1, order: ByteOrder::Big, counts, plus })
}

/// One of each kind, by name.
fn kinds() -> Vec<(&'static str, FrameConfig)> {
    let delimited = FrameConfig::delimited(b"\r\n", 64);
    let started = FrameConfig { start: vec![2], ending: Ending::Mark(vec![3]), ..delimited.clone() };
    let silent =
        FrameConfig { ending: Ending::Idle, idle: Some(Duration::from_millis(20)), ..FrameConfig::delimited(b"", 64) };
    let xor = Checksum::at_end(ChecksumKind::Xor, ChecksumForm::Binary);
    let hex = Checksum { from: 1, skip: 1, ..Checksum::at_end(ChecksumKind::Xor, ChecksumForm::Hex) };
    vec![
        ("delimiter", delimited.clone()),
        (
            "delimiter, checksum in hex",
            FrameConfig { checksum: Some(Checksum { from: 0, skip: 0, ..hex }), ..delimited.clone() },
        ),
        ("delimiter, idle", FrameConfig { idle: Some(Duration::from_millis(20)), ..delimited.clone() }),
        ("start and end", started.clone()),
        (
            "start and end, block check behind",
            FrameConfig { tail: 1, checksum: Some(Checksum { from: 1, ..xor }), ..started.clone() },
        ),
        (
            "hdlc",
            FrameConfig {
                ending: Ending::Mark(vec![0x7e]),
                escape: Some(Escape { byte: 0x7d, xor: 0x20 }),
                checksum: Some(Checksum::at_end(ChecksumKind::Crc16X25, ChecksumForm::Binary)),
                ..delimited.clone()
            },
        ),
        (
            "dle",
            FrameConfig {
                start: vec![0x10, 2],
                ending: Ending::Mark(vec![0x10, 3]),
                escape: Some(Escape { byte: 0x10, xor: 0 }),
                ..delimited.clone()
            },
        ),
        ("length, start", FrameConfig { start: vec![0xAA, 0x55], ending: Ending::Length(12), ..delimited.clone() }),
        ("length, checksum", FrameConfig { ending: Ending::Length(12), checksum: Some(crc()), ..delimited.clone() }),
        ("length, weak checksum", FrameConfig { ending: Ending::Length(12), checksum: Some(xor), ..delimited.clone() }),
        ("length, idle", FrameConfig { ending: Ending::Length(12), ..silent.clone() }),
        (
            "length said, start, checksum",
            FrameConfig {
                start: vec![0x68],
                ending: field(1, Counts::Rest, 2),
                checksum: Some(crc()),
                ..delimited.clone()
            },
        ),
        (
            "length said, checksum",
            FrameConfig { ending: field(0, Counts::Frame, 0), checksum: Some(crc()), ..delimited },
        ),
        ("idle", silent.clone()),
        ("idle, checksum", FrameConfig { checksum: Some(crc()), ..silent }),
    ]
}

/// A frame as a device of this kind would send it.
fn built(config: &FrameConfig, content: &[u8]) -> Vec<u8> {
    let mut whole = config.start.clone();
    let width = config.checksum.map_or(0, |checksum| checksum.width());
    match &config.ending {
        Ending::Mark(mark) => {
            // Without an escape, content that looks like the ends cannot be sent.
            let content = content.iter().map(|byte| if config.escape.is_none() { 0x20 | byte & 0x5f } else { *byte });
            whole.extend(content);
            if config.tail > 0 {
                whole.extend(mark);
            }
            let from = config.start.len();
            if let Some(checksum) = &config.checksum {
                let covered = whole.get(checksum.from..).unwrap_or_default();
                whole.extend(checksum::written(checksum, covered));
            }
            if config.tail > 0 {
                return whole;
            }
            let mut raw = config.start.clone();
            for byte in &whole[from..] {
                match config.escape {
                    Some(escape) if *byte == escape.byte || mark.first() == Some(byte) => {
                        raw.extend([escape.byte, byte ^ escape.xor]);
                    }
                    _ => raw.push(*byte),
                }
            }
            raw.extend(mark);
            raw
        }
        Ending::Length(length) => {
            whole.extend(content.iter().cycle().take(length - width - whole.len()));
            whole.resize(length - width, b'-');
            if let Some(checksum) = &config.checksum {
                whole.extend(checksum::written(checksum, &whole));
            }
            whole
        }
        Ending::Field(said) => {
            let said_from_start = match said.counts {
                Counts::Rest => content.len() + width - usize::try_from(said.plus).unwrap(),
                Counts::Frame => whole.len() + 1 + content.len() + width,
            };
            whole.push(u8::try_from(said_from_start).unwrap());
            whole.extend(content);
            if let Some(checksum) = &config.checksum {
                whole.extend(checksum::written(checksum, &whole));
            }
            whole
        }
        Ending::Idle => {
            whole.extend(content);
            if let Some(checksum) = &config.checksum {
                whole.extend(checksum::written(checksum, content));
            }
            whole
        }
    }
}

/// What the framer cuts when the bytes come in pieces of these sizes, again and again.
fn cuts(config: &FrameConfig, said: &[Said], sizes: &[usize]) -> Vec<Cut> {
    let mut framer = Framer::new(config.clone());
    let mut sizes = sizes.iter().cycle();
    let mut cuts = Vec::new();
    for said in said {
        let bytes = match said {
            Said::Frame(content) => built(config, content),
            Said::Noise(bytes) => bytes.clone(),
            Said::Damaged(content, at) => {
                let mut frame = built(config, content);
                let at = at % (frame.len() * 9);
                if at < frame.len() {
                    frame.remove(at);
                } else {
                    frame[at / 9] ^= 1 << (at % 8);
                }
                frame
            }
            Said::Silence => {
                // Silence is told only to who waits for it.
                if framer.patience().is_some() {
                    cuts.extend(framer.silence());
                }
                continue;
            }
        };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*sizes.next().unwrap()).clamp(1, rest.len()));
            cuts.extend(framer.push(piece));
            assert!(framer.raw.len() + framer.whole.len() <= 4 * 64 + 64, "{}", framer.raw.len());
            rest = after;
        }
    }
    cuts
}

fn frames(cuts: &[Cut]) -> Vec<Vec<u8>> {
    let frame = |cut: &Cut| match cut {
        Cut::Frame(frame) => Some(frame.whole.clone()),
        Cut::Dropped(_) => None,
    };
    cuts.iter().filter_map(frame).collect()
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..20)
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        4 => content().prop_map(Said::Frame),
        1 => prop::collection::vec(any::<u8>(), 1..100).prop_map(Said::Noise),
        1 => prop::collection::vec(prop::sample::select(vec![2_u8, 3, 0x10, 0x7d, 0x7e, 0xaa, 0x55, 13, 10, 0x68, 12]), 1..40).prop_map(Said::Noise),
        2 => (content(), any::<usize>()).prop_map(|(content, at)| Said::Damaged(content, at)),
        2 => Just(Said::Silence),
    ]
}

proptest! {
    #[test]
    fn the_same_bytes_and_silences_give_the_same_frames_however_they_are_split(
        said in prop::collection::vec(said(), 1..12),
        sizes in prop::collection::vec(1_usize..40, 1..6),
    ) {
        for (name, config) in kinds() {
            let at_once = cuts(&config, &said, &[usize::MAX]);
            prop_assert_eq!(&cuts(&config, &said, &sizes), &at_once, "{}", name);
            prop_assert_eq!(&cuts(&config, &said, &[1]), &at_once, "{} byte by byte", name);
        }
    }

    #[test]
    fn whole_frames_are_all_found(contents in prop::collection::vec(content(), 1..8)) {
        for (name, config) in kinds() {
            let said: Vec<Said> = contents.iter().flat_map(|content| [Said::Frame(content.clone()), Said::Silence]).collect();
            let cuts = cuts(&config, &said, &[7]);
            prop_assert_eq!(cuts.len(), contents.len(), "{}: {:?}", name, cuts);
            prop_assert_eq!(frames(&cuts).len(), contents.len(), "{}", name);
        }
    }

    #[test]
    fn after_any_garbage_frames_are_found_again(
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        contents in prop::collection::vec(content(), 6),
    ) {
        for (name, config) in kinds() {
            let mut said = vec![Said::Noise(garbage.clone()), Said::Silence];
            said.extend(contents.iter().flat_map(|content| [Said::Frame(content.clone()), Said::Silence]));
            let found = frames(&cuts(&config, &said, &[16]));
            // A delimiter that is missing costs the frame that ran into the garbage.
            prop_assert!(found.len() >= 5, "{}: {}", name, found.len());
            let whole = frames(&cuts(&config, &[Said::Frame(contents[5].clone()), Said::Silence], &[16]));
            prop_assert_eq!(found.last(), whole.last(), "{}", name);
        }
    }
}

fn text(cuts: Vec<Cut>) -> Vec<String> {
    let text = |cut| match cut {
        Cut::Frame(frame) => String::from_utf8_lossy(frame.body()).into_owned(),
        Cut::Dropped(flaw) => format!("({})", flaw.kind()),
    };
    cuts.into_iter().map(text).collect()
}

fn kind(name: &str) -> FrameConfig {
    kinds().into_iter().find(|(kind, _)| *kind == name).unwrap().1
}

#[test]
fn frames_are_the_same_however_the_bytes_are_split() {
    let stream = b"one\r\ntwo\r\n\r\nth\rree\n\r\nhalf";
    for size in 1..stream.len() {
        let mut framer = Framer::new(FrameConfig::delimited(b"\r\n", 20));
        let cuts = stream.chunks(size).flat_map(|chunk| framer.push(chunk)).collect();
        assert_eq!(text(cuts), ["one", "two", "th\rree\n"], "in chunks of {size}");
    }
}

#[test]
fn an_overlong_frame_is_dropped_to_its_delimiter_and_the_next_is_whole() {
    for size in [1, 3, 64] {
        let mut framer = Framer::new(FrameConfig::delimited(b"\r\n", 5));
        let stream = b"12345\r\n123456\r\nok\r\n12345678901234567890\r\nend\r\n";
        let cuts = stream.chunks(size).flat_map(|chunk| framer.push(chunk)).collect();
        assert_eq!(text(cuts), ["12345", "(overlong)", "ok", "(overlong)", "end"], "in chunks of {size}");
    }
}

#[test]
fn memory_stays_bounded_without_any_end() {
    for (name, config) in kinds() {
        let mut framer = Framer::new(config);
        for number in 0..1_000_u32 {
            framer.push(&[number.to_le_bytes()[0] | 0x80; 100]);
            assert!(framer.raw.len() + framer.whole.len() <= 300, "{name}: {}", framer.raw.len());
        }
    }
}

#[test]
fn the_rest_of_a_frame_that_began_before_is_dropped() {
    let mut framer = Framer::new(FrameConfig::delimited(b"\n", 10));
    framer.push(b"12");
    assert!(framer.is_mid_frame());
    framer.reset(true);
    assert!(!framer.is_mid_frame(), "nothing was heard since");
    assert_eq!(text(framer.push(b"2.5 kg\n12.5 kg\n")), ["12.5 kg"]);
    framer.reset(false);
    assert_eq!(text(framer.push(b"1\n")), ["1"]);
    framer.reset(true);
    assert_eq!(text(framer.push(b"a very long rest of something\nnext\n")), ["next"]);
}

#[test]
fn an_end_that_never_comes_is_told_once() {
    for is_mid_frame in [false, true] {
        let mut framer = Framer::new(FrameConfig::delimited(b";", 10));
        framer.reset(is_mid_frame);
        let told: Vec<String> = (0..100).flat_map(|_| text(framer.push(b"12.5 kg\r\n"))).collect();
        assert_eq!(told, ["(overlong)"], "{is_mid_frame}");
        assert_eq!(text(framer.push(b";7;")), ["7"], "and what comes after an end is read");
    }
}

#[test]
fn a_frame_without_its_end_gives_way_to_the_next_start() {
    let mut framer = Framer::new(kind("start and end"));
    assert_eq!(text(framer.push(b"\x0212\x0212.5\x03\r\n\x023\x03")), ["(incomplete)", "12.5", "3"]);
    assert_eq!(text(framer.push(b"5.0\x03\x021\x03")), ["(garbage)", "1"]);
}

#[test]
fn a_block_check_that_looks_like_an_end_or_a_start_is_a_block_check() {
    let mut framer = Framer::new(kind("start and end, block check behind"));
    // 0x31 ^ 0x33 ^ 0x03 = 0x01; 0x31 ^ 0x31 ^ 0x03 = 0x03; and one that is wrong, with a whole frame behind it.
    let stream = [&b"\x0213\x03\x01"[..], b"\x0211\x03\x03", b"\x0211\x03\x04", b"\x0213\x03\x01"].concat();
    for size in 1..stream.len() {
        framer.reset(false);
        let cuts = stream.chunks(size).flat_map(|chunk| framer.push(chunk)).collect();
        assert_eq!(text(cuts), ["13", "11", "(checksum)", "13"], "in chunks of {size}");
    }
}

/// Nothing else shows that the first one has no end: its start could stand inside of a frame.
#[test]
fn a_frame_that_ran_into_one_without_an_end_is_found_inside_of_it() {
    let mut framer = Framer::new(kind("start and end, block check behind"));
    assert_eq!(text(framer.push(b"\x0299\x0211\x03\x03\x0213\x03\x01")), ["(checksum)", "11", "13"]);
}

#[test]
fn escaped_bytes_are_meant_as_they_are() {
    let mut framer = Framer::new(kind("dle"));
    let cuts = framer.push(b"\x10\x02a\x10\x10\x03b\x10\x03");
    assert_eq!(text(cuts), ["a\u{10}\u{3}b"]);
}

#[test]
fn a_frame_inside_of_what_was_taken_for_a_longer_one_is_found() {
    let config = kind("length said, start, checksum");
    let mut framer = Framer::new(config.clone());
    let frame = built(&config, b"whole");
    // A start and a length of 60 by chance: the frame behind them is found at the latest when the line is silent.
    let cuts = framer.push(&[&[0x68, 60][..], &frame].concat());
    assert_eq!(cuts, []);
    let cuts = framer.silence();
    assert_eq!(frames(&cuts).as_slice(), std::slice::from_ref(&frame));
    assert_eq!(framer.push(&frame).len(), 1, "after a silence the next is believed at once");
}

#[test]
fn with_one_byte_of_proof_a_second_frame_must_follow_before_the_first_is_believed() {
    let config = kind("length, weak checksum");
    let (first, second) = (built(&config, b"first"), built(&config, b"second"));
    let mut framer = Framer::new(config);
    framer.reset(true);
    assert_eq!(framer.push(&first), []);
    assert_eq!(frames(&framer.push(&second)), [first, second]);
}

#[test]
fn a_length_is_exact_where_only_silence_shows_the_beginning() {
    let mut framer = Framer::new(kind("length, idle"));
    for (bytes, expected) in
        [(&b"123456789012"[..], "123456789012"), (b"1234", "(incomplete)"), (b"1234567890123", "(incomplete)")]
    {
        assert_eq!(framer.push(bytes), []);
        assert_eq!(text(framer.silence()), [expected]);
    }
}
