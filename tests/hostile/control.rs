//! The control socket, asked by somebody who does not mean it well or has another version: nothing panics, nobody waits,
//! and whoever asks properly is answered all the same.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::bystander::Bystander;
use crate::common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use crate::common::peers::Publisher;
use crate::common::{PATIENCE, port, turn, wait_until};
use crate::random::Random;
use crate::{is_long, resident_kib};

const THREADS: u64 = 4;
/// What is longer is not read to its end.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
const GROWTH_KIB_MAX: u64 = 5 * 1024;

/// One of each kind, as the program asks.
const REQUESTS: &[&str] = &[
    r#"{"ask":"status"}"#,
    r#"{"ask":"ledger","days":{"from":20000,"to":20030}}"#,
    r#"{"ask":"queue","question":{"about":"stats"}}"#,
    r#"{"ask":"queue","question":{"about":"messages","after":0,"to":null,"stream":"cloud","client":null,"topic":"plant/#","from_ms":0,"to_ms":4000000000000,"count":10,"body_bytes":200}}"#,
    r#"{"ask":"queue","question":{"about":"messages","after":17,"client":"panel"}}"#,
    r#"{"ask":"queue","question":{"about":"check","place":{"messages":3}}}"#,
    r#"{"ask":"queue","question":{"about":"check","place":{"retained":"plant"}}}"#,
    r#"{"ask":"queue","question":{"about":"check","place":{"dead-letters":1}}}"#,
    r#"{"ask":"queue","question":{"about":"dead-letters","after":0,"count":16,"body_bytes":0}}"#,
    r#"{"ask":"order","order":{"order":"retry-dead-letter","number":1}}"#,
    r#"{"ask":"order","order":{"order":"drop-dead-letter","number":2}}"#,
    r#"{"ask":"order","order":{"order":"drop-stream","name":"old"}}"#,
    r#"{"ask":"order","order":{"order":"scrub"}}"#,
    r#"{"ask":"queue","question":{"about":"kept","uplink":"cloud","from_ms":0,"to_ms":4000000000000,"topic":"plant/#","after":0}}"#,
    r#"{"ask":"order","order":{"order":"resend","uplink":"cloud","from_ms":0,"to_ms":4000000000000,"topic":null,"after":17}}"#,
];

/// What is put into a request: bounds of numbers, words of other kinds, what ends or opens something.
const PIECES: &[&str] = &[
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-1",
    "1e400",
    "null",
    "[]",
    "{}",
    "\"",
    "\\ud800",
    "\0",
    "\"messages\"",
    "\"order\"",
    "#",
    "+/",
    "\u{1}",
    "𝄞",
];

#[test]
fn mutated_requests_at_the_control_socket_neither_panic_nor_grow_nor_disturb() {
    let _turn = turn();
    let cases: u64 = if is_long() { 10_000 } else { 2_000 };
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(Random::fresh_seed);
    println!("{cases} mutated requests; TIDEGATE_SEED={seed} repeats them");
    let folder = folder();
    let keeping = "[queue]\nkeep_delivered = \"1h\"\n".to_owned();
    let tables = keeping + &uplink(&format!("mqtt://127.0.0.1:{}", port::free()), "") + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &tables);
    Publisher::started(gateway.port, "client", "plant/one", 600, &[]).wait_until_done();
    let socket = gateway.state_dir().join("control.sock");
    let bystander = Bystander::started(gateway.port);
    let mut random = Random::from_seed(seed);
    run(&socket, cases / 4, &mut random);
    let before = resident_kib(gateway.id());
    run(&socket, cases - cases / 4, &mut random);
    let after = resident_kib(gateway.id());
    bystander.was_well("mutated requests");
    println!("resident before {before} KiB, after {after} KiB");
    assert_eq!(gateway.has_ended(), None);
    let log = gateway.log();
    let panics: Vec<&String> =
        log.iter().filter(|line| line.contains("panicked") || line.contains("has failed")).collect();
    assert!(panics.is_empty(), "seed {seed}: {panics:?}");
    assert!(after <= before + GROWTH_KIB_MAX, "seed {seed}: {before} KiB before, {after} KiB after");
    assert_eq!(gateway.status().unwrap()["queue"]["messages"], 600, "nobody has dropped anything");
    gateway.stop();
}

#[test]
fn callers_who_dawdle_or_say_too_much_are_cut_off_and_others_are_answered() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = Gateway::started(folder.path(), "");
    let socket = gateway.state_dir().join("control.sock");
    // More than are served at a time; none of them says a whole line.
    let mut silent: Vec<UnixStream> = (0..40).map(|_| connected(&socket)).collect();
    for one in &mut silent {
        one.write_all(b"{\"ask\":").unwrap();
    }
    assert_eq!(gateway.status().unwrap()["gateway"], crate::common::gateway::ID, "it is only late");
    for one in &mut silent {
        let mut rest = Vec::new();
        // Cut off or told, but not left hanging.
        drop(one.read_to_end(&mut rest));
    }
    let mut long = connected(&socket);
    let (mut sent, block) = (0, vec![b' '; 64 * 1024]);
    while sent < 1 << 30 && long.write_all(&block).is_ok() {
        sent += block.len();
    }
    assert!(sent < 1 << 20, "{sent} bytes were taken");
    assert!(gateway.status().is_ok());
    gateway.stop();
}

fn connected(socket: &Path) -> UnixStream {
    let stream = wait_until(PATIENCE, "the control socket takes a connection", || {
        UnixStream::connect(socket).map_err(|error| error.to_string())
    });
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn run(socket: &Path, cases: u64, random: &mut Random) {
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (mut random, socket) = (random.branch(), PathBuf::from(socket));
            scope.spawn(move || {
                for _ in 0..cases.div_ceil(THREADS) {
                    ask(&socket, &mut random);
                }
            });
        }
    });
}

/// One request. Whatever it is, it is answered in one line, unless its caller has gone.
fn ask(socket: &Path, random: &mut Random) {
    let mut request = (*random.pick(REQUESTS)).as_bytes().to_vec();
    for _ in 0..random.within(0..4) {
        mutate(random, &mut request);
    }
    request.retain(|byte| *byte != b'\n');
    request.push(b'\n');
    let mut stream = connected(socket);
    if random.happens(10) {
        let cut = usize::try_from(random.within(0..request.len() as u64)).unwrap();
        drop(stream.write_all(&request[..cut]));
        return;
    }
    drop(stream.write_all(&request));
    if random.happens(10) {
        return;
    }
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let read = stream.read_to_end(&mut answer);
    if request.len() > REQUEST_BYTES_MAX {
        // Refused, and closed with a part of it unread, which the system may tell before the refusal.
        return;
    }
    read.unwrap();
    let shown = String::from_utf8_lossy(&request).into_owned();
    assert!(answer.ends_with(b"\n"), "{shown:?} got {:?}", String::from_utf8_lossy(&answer));
    let told: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{error}: {shown:?}"));
    assert!(told.is_object(), "{shown:?} got {told}");
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    let place =
        |random: &mut Random, bytes: &Vec<u8>| usize::try_from(random.within(0..bytes.len().max(1) as u64)).unwrap();
    let at = place(random, bytes);
    match random.within(0..6) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.within(0..8),
        1 => bytes.truncate(at),
        2 => {
            let piece = random.pick(PIECES).as_bytes();
            bytes.splice(at..at, piece.iter().copied());
        }
        3 => {
            // A number becomes another one.
            let Some(first) = bytes.iter().skip(at).position(u8::is_ascii_digit).map(|place| at + place) else {
                return;
            };
            let end =
                bytes[first..].iter().position(|byte| !byte.is_ascii_digit()).map_or(bytes.len(), |end| first + end);
            bytes.splice(first..end, random.pick(PIECES).bytes());
        }
        4 => {
            let end = (at + 20).min(bytes.len());
            let copied = bytes[at.min(end)..end].to_vec();
            let to = place(random, bytes).min(bytes.len());
            bytes.splice(to..to, copied);
        }
        _ => {
            let depth = usize::try_from(random.within(1..30_000)).unwrap();
            bytes.splice(at.min(bytes.len())..at.min(bytes.len()), std::iter::repeat_n(b'[', depth));
        }
    }
}
