//! Does the codec take what the specification takes, refuse the rest with the right reason, and survive anything?
//!
//! Injected: every fault of facts/codec.md section 2 as literal bytes; random valid packets of every type; a million
//! mutated and random inputs; inputs that arrive byte by byte. Survivable because the codec holds nothing that has not
//! arrived and touches no byte without a check. Random tests print their seed: run one again with TIDEGATE_SEED.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what a test takes for granted fails the test"
)]

use bytes::{BufMut, BytesMut};
use tidegate::mqtt::{DecodeError, Decoder, Direction, Encoder, Packet, Version};

mod answers;
mod cases;
mod random;
mod writing;

use cases::{CASES, EXCEPTIONS, Verdict};
use random::Random;

const PACKET_BYTES_MAX: usize = 16 * 1024 * 1024;
const CONNECT_311: &[u8] = b"\x10\x0D\0\x04MQTT\x04\x02\0<\0\x01c";
const CONNECT_5: &[u8] = b"\x10\x0E\0\x04MQTT\x05\x02\0<\0\0\x01c";

/// Whose bytes a decoder reads, and how far the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// A client's first packet.
    First,
    /// A client's later packets, in 3.1.1.
    Client311,
    /// The same in version 5.
    Client5,
    /// A server's packets, in 3.1.1.
    Server311,
    /// The same in version 5.
    Server5,
}

impl Feed {
    const ALL: [Feed; 5] = [Feed::First, Feed::Client311, Feed::Client5, Feed::Server311, Feed::Server5];

    fn decoder(self) -> Decoder {
        let connect = match self {
            Feed::First => return Decoder::from_client(PACKET_BYTES_MAX),
            Feed::Server311 => return Decoder::from_server(Version::V311, PACKET_BYTES_MAX),
            Feed::Server5 => return Decoder::from_server(Version::V5, PACKET_BYTES_MAX),
            Feed::Client311 => CONNECT_311,
            Feed::Client5 => CONNECT_5,
        };
        let mut decoder = Decoder::from_client(PACKET_BYTES_MAX);
        decoder.decode(&mut BytesMut::from(connect)).unwrap().expect("the CONNECT is whole");
        decoder
    }
}

/// Version and sender of a random packet, with the feed that reads it.
const ENDS: [(Version, Direction); 4] = [
    (Version::V311, Direction::FromClient),
    (Version::V5, Direction::FromClient),
    (Version::V311, Direction::FromServer),
    (Version::V5, Direction::FromServer),
];

fn feed_of(packet: &Packet, version: Version, sender: Direction) -> Feed {
    match (sender, version) {
        (Direction::FromClient, _) if matches!(packet, Packet::Connect(_)) => Feed::First,
        (Direction::FromClient, Version::V311) => Feed::Client311,
        (Direction::FromClient, Version::V5) => Feed::Client5,
        (Direction::FromServer, Version::V311) => Feed::Server311,
        (Direction::FromServer, Version::V5) => Feed::Server5,
    }
}

fn encoded(version: Version, packet: &Packet) -> BytesMut {
    let mut output = BytesMut::new();
    Encoder::new(version).encode(packet, &mut output).unwrap_or_else(|error| panic!("{error}: {packet:?}"));
    output
}

/// Feeds one byte after the other.
fn decode_by_byte(mut decoder: Decoder, bytes: &[u8]) -> Result<Option<Packet>, DecodeError> {
    let mut input = BytesMut::new();
    for byte in bytes {
        input.put_u8(*byte);
        if let Some(packet) = decoder.decode(&mut input)? {
            assert!(input.is_empty());
            return Ok(Some(packet));
        }
    }
    Ok(None)
}

#[test]
fn every_case_of_the_specification_is_judged_as_it_says() {
    assert!(CASES.len() >= 160);
    let mut wrong = Vec::new();
    for case in CASES {
        let mut input = BytesMut::from(case.bytes);
        let result = case.feed.decoder().decode(&mut input);
        let exception = EXCEPTIONS.iter().find(|(name, ..)| *name == case.name);
        if exception.is_some_and(|(_, verdict, _)| *verdict == case.verdict) {
            wrong.push(format!("{}: is no exception any more", case.name));
        }
        let expected = exception.map_or(case.verdict, |(_, verdict, _)| *verdict);
        let is_right = match (&result, expected) {
            (Ok(Some(_)), Verdict::Taken) => input.is_empty(),
            (Err(error), Verdict::Refused(reason)) => error.reason.0 == reason,
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{} ({}): {expected:?} expected, got {result:?}", case.name, case.clause));
        }
        // Byte by byte the verdict must be the same, or a peer could choose it by how it writes.
        if decode_by_byte(case.feed.decoder(), case.bytes) != result {
            wrong.push(format!("{}: another verdict byte by byte", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
    for (name, _, why) in EXCEPTIONS {
        assert!(CASES.iter().any(|case| case.name == *name) && !why.is_empty(), "no case has the name {name}");
    }
}

#[test]
fn random_packets_read_back_as_they_were_written() {
    let mut random = Random::announced("read back");
    for turn in 0..24_000 {
        let (version, sender) = ENDS[turn % ENDS.len()];
        let packet = random.packet(version, sender);
        let mut bytes = encoded(version, &packet);
        let length = bytes.len();
        let mut decoder = feed_of(&packet, version, sender).decoder();
        let back = decoder.decode(&mut bytes).unwrap_or_else(|error| panic!("{error}: {length} bytes of {packet:?}"));
        assert_eq!(back.as_ref(), Some(&packet));
        assert!(bytes.is_empty());
        assert_eq!(decoder.version(), Some(version));
    }
}

#[test]
fn packets_that_arrive_byte_by_byte_are_the_same_packets() {
    let mut random = Random::announced("byte by byte");
    for turn in 0..400 {
        let (version, sender) = ENDS[turn % ENDS.len()];
        // A whole conversation, in pieces that end anywhere.
        let mut packets = Vec::new();
        let mut stream = BytesMut::new();
        while packets.len() < 8 {
            let packet = random.packet(version, sender);
            let is_connect = matches!(packet, Packet::Connect(_));
            let must_connect = packets.is_empty() && sender == Direction::FromClient;
            if is_connect == must_connect {
                let bytes = encoded(version, &packet);
                if bytes.len() < 3000 {
                    stream.extend_from_slice(&bytes);
                    packets.push(packet);
                }
            }
        }
        for piece in [1, 1 + random.below(50)] {
            let mut decoder = match sender {
                Direction::FromClient => Decoder::from_client(PACKET_BYTES_MAX),
                Direction::FromServer => Decoder::from_server(version, PACKET_BYTES_MAX),
            };
            let mut input = BytesMut::new();
            let mut read = Vec::new();
            for bytes in stream.chunks(piece) {
                input.extend_from_slice(bytes);
                while let Some(packet) = decoder.decode(&mut input).unwrap() {
                    read.push(packet);
                }
            }
            assert_eq!(read, packets);
            assert!(input.is_empty());
        }
    }
}

/// One input, as bad as it may be. Returns whether it was a packet.
fn decode_and_check(feed: Feed, bytes: &[u8]) -> bool {
    let mut input = BytesMut::from(bytes);
    let mut decoder = feed.decoder();
    let mut result = Ok(None);
    let used = allocation_counter::measure(|| result = decoder.decode(&mut input));
    let bound = 8 * bytes.len() as u64 + 4096;
    assert!(used.bytes_max <= bound, "{} bytes held for {} of {feed:?}: {bytes:02X?}", used.bytes_max, bytes.len());
    let Ok(Some(packet)) = result else {
        return false;
    };
    let version = decoder.version().expect("a packet was read");
    let mut again = encoded(version, &packet);
    let mut second = feed.decoder();
    let back = second.decode(&mut again);
    assert_eq!(back, Ok(Some(packet)), "{feed:?}: {bytes:02X?}");
    true
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    const TELLING: [u8; 12] = [0, 1, 2, 3, 0x0B, 0x1F, 0x26, 0x7F, 0x80, 0xC0, 0xED, 0xFF];
    for _ in 0..1 + random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let place = random.below(bytes.len());
        match random.below(7) {
            0 => bytes[place] = random.byte(),
            1 => bytes[place] ^= 1 << random.below(8),
            2 => bytes[place] = TELLING[random.below(TELLING.len())],
            3 => bytes.insert(place, TELLING[random.below(TELLING.len())]),
            4 => {
                bytes.remove(place);
            }
            5 => bytes.truncate(place + 1),
            _ => {
                let end = place + random.below(bytes.len() - place);
                let piece = bytes[place..end].to_vec();
                bytes.splice(place..place, piece);
            }
        }
    }
    // Mostly with a right length, or nothing behind the header would ever be reached.
    if bytes.len() < 130 && bytes.len() >= 2 && !random.one_in(8) {
        bytes[1] = (bytes.len() - 2) as u8;
    }
}

#[test]
fn a_million_mutated_inputs_neither_panic_nor_cost_memory_nor_change_when_written_again() {
    let mut random = Random::announced("mutation");
    let mut pool = Vec::new();
    for turn in 0..4000 {
        let (version, sender) = ENDS[turn % ENDS.len()];
        let packet = random.packet(version, sender);
        let bytes = encoded(version, &packet);
        if bytes.len() < 600 {
            pool.push((feed_of(&packet, version, sender), bytes.to_vec()));
        }
    }
    pool.extend(CASES.iter().map(|case| (case.feed, case.bytes.to_vec())));
    let seeds = [random.next(), random.next()];
    let run = |seed| {
        let mut random = Random::from_seed(seed);
        let mut taken = 0;
        let mut bytes = Vec::new();
        for turn in 0..500_000 {
            bytes.clear();
            let (mut feed, ref valid) = pool[random.below(pool.len())];
            if turn % 16 == 0 {
                bytes.extend((0..random.below(64)).map(|_| random.byte()));
                feed = Feed::ALL[random.below(Feed::ALL.len())];
            } else {
                bytes.extend_from_slice(valid);
                mutate(&mut random, &mut bytes);
            }
            taken += usize::from(decode_and_check(feed, &bytes));
        }
        taken
    };
    let started = tokio::time::Instant::now();
    let taken: usize = std::thread::scope(|scope| {
        let threads = seeds.map(|seed| scope.spawn(move || run(seed)));
        threads.into_iter().map(|thread| thread.join().expect("no input panics")).sum()
    });
    eprintln!("1,000,000 inputs, {taken} of them packets, {:.1} s", started.elapsed().as_secs_f64());
    assert!(taken > 50_000, "the mutations reach nothing: {taken}");
}
