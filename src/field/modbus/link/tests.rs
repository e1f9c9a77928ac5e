//! Mutated replies: whatever arrives, an exchange ends, and what it calls an answer is the answer to its own request.
//!
//! 5,000 of them; `TIDEGATE_MUTATIONS=100000` is the long form, `TIDEGATE_SEED` repeats a run.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::sleep;

use super::super::reply::crc;
use super::*;

const QUANTITY: u16 = 3;
const TIMEOUT: Duration = Duration::from_millis(200);

struct Random(u64);

impl Random {
    fn seeded() -> Random {
        let chosen = std::env::var("TIDEGATE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = chosen.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
        println!("TIDEGATE_SEED={seed}");
        Random(seed | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

fn answer(framing: Framing, request: &[u8], words: [u16; 3]) -> Vec<u8> {
    let data: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    match framing {
        Framing::Tcp => [&request[..4], &[0, 9, request[6], 3, 6], &data].concat(),
        Framing::Rtu => {
            let mut frame = [&[request[0], 3, 6], &data[..]].concat();
            frame.extend(crc(&frame).to_le_bytes());
            frame
        }
    }
}

/// Changes a right answer. On TCP only what is no data: nothing guards that, so that other data is another value.
fn mutated(random: &mut Random, framing: Framing, right: &[u8], former: &[u8]) -> (&'static str, Vec<u8>) {
    let mut bytes = right.to_vec();
    let head = if framing == Framing::Tcp { 9 } else { bytes.len() };
    let place = random.below(head);
    let name = match random.below(11) {
        0 => "nothing changed",
        1 => {
            // Up to three bits: the checksum sees each such error.
            for _ in 0..=random.below(3) {
                let place = random.below(head);
                bytes[place] ^= 1 << random.below(8);
            }
            "bits"
        }
        2 => {
            // A burst of at most 16 bits.
            bytes[place] = random.byte();
            if place + 1 < head {
                bytes[place + 1] = random.byte();
            }
            "burst"
        }
        3 => {
            bytes.truncate(random.below(right.len()));
            "cut short"
        }
        4 => {
            bytes.remove(random.below(right.len()));
            "a byte is missing"
        }
        5 => {
            let value = random.byte();
            bytes.insert(random.below(right.len() + 1), value);
            "a byte too many"
        }
        6 => {
            bytes.extend_from_slice(right);
            "twice"
        }
        7 => {
            bytes = former.to_vec();
            // RTU has nothing by which a unit's former answer could be told from this one; another unit's can.
            if framing == Framing::Rtu && bytes.len() > 2 {
                bytes.truncate(bytes.len() - 2);
                bytes[0] ^= 1;
                bytes.extend(crc(&bytes).to_le_bytes());
            }
            "the former answer"
        }
        8 => {
            bytes.splice(0..0, former.iter().copied());
            "the former answer, and this"
        }
        9 => {
            bytes = (0..random.below(300)).map(|_| random.byte()).collect();
            "noise"
        }
        _ => {
            let after: Vec<u8> = (0..=random.below(40)).map(|_| random.byte() | 1).collect();
            bytes.extend(after);
            "noise after it"
        }
    };
    (name, bytes)
}

/// Reads one request and answers it, perhaps too late.
async fn serve(far: &mut DuplexStream, framing: Framing, reply: impl FnOnce(&[u8]) -> Vec<u8>, delay: Duration) {
    let mut request = vec![0; if framing == Framing::Tcp { 12 } else { 8 }];
    far.read_exact(&mut request).await.unwrap();
    let bytes = reply(&request);
    sleep(delay).await;
    // The link may be spent by then.
    let _closed = far.write_all(&bytes).await;
}

#[tokio::test(start_paused = true)]
async fn no_mutated_reply_is_a_panic_or_a_wrong_value_called_good() {
    let rounds: u32 = std::env::var("TIDEGATE_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(5_000);
    let mut random = Random::seeded();
    let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
    for framing in [Framing::Tcp, Framing::Rtu] {
        let opened = || {
            let (near, far) = tokio::io::duplex(4096);
            let link = Link::new(Box::new(near), framing, Duration::from_micros(500), Duration::ZERO);
            (Link { is_connection: framing == Framing::Tcp, ..link }, far)
        };
        let (mut link, mut far) = opened();
        let mut former = Vec::new();
        for round in 0..rounds / 2 {
            // Never the same words twice in a row: a former answer that is taken for this one is seen.
            let words = [round as u16, !(round as u16), random.below(65_536) as u16];
            let question =
                Question { unit_id: 7, table: Table::Holding, address: 100, quantity: QUANTITY, timeout: TIMEOUT };
            let delay = if random.below(20) == 0 { TIMEOUT * 3 / 2 } else { Duration::ZERO };
            let (mut sent, mut right, mut name) = (Vec::new(), Vec::new(), "");
            let reply = |request: &[u8]| {
                right = answer(framing, request, words);
                (name, sent) = mutated(&mut random, framing, &right, &former);
                sent.clone()
            };
            let (exchange, ()) = tokio::join!(link.exchange(&question), serve(&mut far, framing, reply, delay));
            let place = format!("{framing:?} round {round}, {name}: {sent:02x?} for {right:02x?}");
            let word = match &exchange {
                Exchange::Registers(read) => {
                    assert_eq!(read[..], words, "{place}");
                    assert_eq!(delay, Duration::ZERO, "a late answer is none: {place}");
                    "answered"
                }
                Exchange::Refused(_) => {
                    assert!(name == "bits" || name == "burst" && framing == Framing::Tcp, "{place}");
                    "refused"
                }
                Exchange::Bits(_) => panic!("{place}"),
                Exchange::Silent { .. } => "silent",
                Exchange::Broken(fault) => fault.kind(),
                Exchange::Lost(_) => "lost",
                Exchange::Written => "written",
            };
            let is_right = sent == right && delay == Duration::ZERO;
            assert!(!is_right || matches!(exchange, Exchange::Registers(_)), "a right answer is taken: {place}");
            *outcomes.entry(format!("{framing:?} {word}")).or_default() += 1;
            former = right;
            if link.is_spent(&exchange) || matches!(exchange, Exchange::Lost(_)) {
                (link, far) = opened();
                // It was told on another connection, where the ids were others'.
                former.clear();
            }
        }
    }
    println!("{outcomes:?}");
    for expected in ["Tcp answered", "Rtu answered", "Tcp transaction", "Rtu checksum", "Tcp length", "Rtu silent"] {
        assert!(outcomes.contains_key(expected), "{expected} is missing in {outcomes:?}");
    }
}

#[tokio::test]
async fn the_first_request_waits_for_the_connect_pause_and_the_next_does_not() {
    let pause = Duration::from_millis(300);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let kind = LineKind::Tcp { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
    let config = LineConfig { connect_pause: pause, ..LineConfig::new(kind, TIMEOUT) };
    let began = Instant::now();
    let doubts = Doubts::default();
    let (link, accepted) = tokio::join!(Link::open(&config, &doubts), listener.accept());
    let (mut link, (mut far, _)) = (link.unwrap(), accepted.unwrap());
    let question = Question {
        unit_id: 7,
        table: Table::Holding,
        address: 0,
        quantity: QUANTITY,
        timeout: Duration::from_secs(10),
    };
    let mut heard_at = Vec::new();
    for _ in 0..2 {
        let served = async {
            let mut request = [0; 12];
            far.read_exact(&mut request).await.unwrap();
            heard_at.push(began.elapsed());
            far.write_all(&answer(Framing::Tcp, &request, [1, 2, 3])).await.unwrap();
        };
        let (exchange, ()) = tokio::join!(link.exchange(&question), served);
        assert!(matches!(exchange, Exchange::Registers(_)), "{exchange:?}");
    }
    assert!(heard_at[0] >= pause, "{heard_at:?}");
    assert!(heard_at[1] - heard_at[0] < pause, "{heard_at:?}");
}

/// Reads one request to write and answers with what `reply` makes of it.
async fn serve_write(
    far: &mut DuplexStream,
    framing: Framing,
    is_multiple: bool,
    reply: impl FnOnce(&[u8]) -> Vec<u8>,
    delay: Duration,
) {
    let length = match (framing, is_multiple) {
        (Framing::Tcp, false) => 12,
        (Framing::Tcp, true) => 17,
        (Framing::Rtu, false) => 8,
        (Framing::Rtu, true) => 13,
    };
    let mut request = vec![0; length];
    far.read_exact(&mut request).await.unwrap();
    let bytes = reply(&request);
    sleep(delay).await;
    // The link may be spent by then.
    let _closed = far.write_all(&bytes).await;
}

fn answer_to_write(framing: Framing, request: &[u8]) -> Vec<u8> {
    match framing {
        Framing::Tcp => [&request[..4], &[0, 6], &request[6..12]].concat(),
        Framing::Rtu => {
            let mut frame = request[..6].to_vec();
            frame.extend(crc(&frame).to_le_bytes());
            frame
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_mutated_answer_to_a_write_is_taken_for_one() {
    let mut random = Random::seeded();
    let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
    for framing in [Framing::Tcp, Framing::Rtu] {
        let opened = || {
            let (near, far) = tokio::io::duplex(4096);
            let link = Link::new(Box::new(near), framing, Duration::from_micros(500), Duration::ZERO);
            (Link { is_connection: framing == Framing::Tcp, ..link }, far)
        };
        let (mut link, mut far) = opened();
        let mut former = Vec::new();
        for round in 0..1500_u16 {
            let is_multiple = random.below(2) == 1;
            let words = [round, !round];
            let words = if is_multiple { words.to_vec() } else { vec![round] };
            let (places, by_multiple) = (Places::Registers(words), is_multiple);
            let order = Order { unit_id: 7, address: round, places, by_multiple, timeout: TIMEOUT };
            let delay = if random.below(20) == 0 { TIMEOUT * 3 / 2 } else { Duration::ZERO };
            let (mut sent, mut right, mut name) = (Vec::new(), Vec::new(), "");
            let reply = |request: &[u8]| {
                right = answer_to_write(framing, request);
                // Every byte of it is looked at, also on TCP.
                (name, sent) = mutated(&mut random, Framing::Rtu, &right, &former);
                sent.clone()
            };
            let served = serve_write(&mut far, framing, is_multiple, reply, delay);
            let ((exchange, has_sent), ()) = tokio::join!(link.write(&order), served);
            assert!(has_sent);
            let place = format!("{framing:?} round {round}, {name}: {sent:02x?} for {right:02x?}");
            if matches!(exchange, Exchange::Written) {
                let is_in_it = sent.windows(right.len()).any(|window| window == right);
                assert!(is_in_it && delay == Duration::ZERO, "{place}");
            }
            let is_right = sent == right && delay == Duration::ZERO;
            assert!(
                !is_right || matches!(exchange, Exchange::Written),
                "a right answer is taken: {place}: {exchange:?}"
            );
            let word = if matches!(exchange, Exchange::Written) { "written" } else { "not" };
            *outcomes.entry(format!("{framing:?} {word}")).or_default() += 1;
            former = right;
            if link.is_spent(&exchange) {
                (link, far) = opened();
                former.clear();
            }
        }
    }
    println!("{outcomes:?}");
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn on_a_bus_that_echoes_a_device_that_says_nothing_has_not_written() {
    let (near, mut far) = tokio::io::duplex(4096);
    let link = Link::new(Box::new(near), Framing::Rtu, Duration::from_micros(500), Duration::ZERO);
    let mut link = Link { is_connection: false, ..link };
    assert_eq!(link.echo(), Echo::Unknown);
    let question = Question { unit_id: 7, table: Table::Holding, address: 100, quantity: QUANTITY, timeout: TIMEOUT };
    let echoed = |request: &[u8]| [request, &answer(Framing::Rtu, request, [1, 2, 3])].concat();
    let served = serve(&mut far, Framing::Rtu, echoed, Duration::ZERO);
    let (exchange, ()) = tokio::join!(link.exchange(&question), served);
    assert!(matches!(exchange, Exchange::Registers(_)), "{exchange:?}");
    assert_eq!(link.echo(), Echo::Present);
    let order =
        Order { unit_id: 7, address: 1, places: Places::Registers(vec![5]), by_multiple: false, timeout: TIMEOUT };
    let alone = serve_write(&mut far, Framing::Rtu, false, |request| request.to_vec(), Duration::ZERO);
    let ((exchange, _), ()) = tokio::join!(link.write(&order), alone);
    assert!(matches!(exchange, Exchange::Silent { heard: true }), "{exchange:?}");
    let both = |request: &[u8]| [request, &answer_to_write(Framing::Rtu, request)].concat();
    let served = serve_write(&mut far, Framing::Rtu, false, both, Duration::ZERO);
    let ((exchange, _), ()) = tokio::join!(link.write(&order), served);
    assert!(matches!(exchange, Exchange::Written), "{exchange:?}");
}
