//! Packets of every kind, at the right moment and the wrong one, with bytes turned, put in, taken out: nobody else
//! notices, nothing panics, and memory stays where it was.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::bystander::Bystander;
use crate::common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use crate::common::raw::packet;
use crate::common::{port, turn, wait_until};
use crate::random::Random;
use crate::{is_long, resident_kib};

const THREADS: u64 = 4;
/// What the specification of this product allows, after the first tenth has shown what there is to show.
const GROWTH_KIB_MAX: u64 = 5 * 1024;

#[test]
fn mutated_packets_neither_panic_nor_grow_nor_disturb() {
    let _turn = turn();
    let cases: u64 = if is_long() { 100_000 } else { 5_000 };
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(Random::fresh_seed);
    println!("{cases} mutated sequences; TIDEGATE_SEED={seed} repeats them");
    let folder = folder();
    // Sessions that ask to be kept end soon: what is kept for them is theirs, and no question of this test.
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", port::free()), "") + FORWARD_PLANT;
    let mut gateway = Gateway::started(folder.path(), &(tables + "[broker.session]\nexpiry = \"1s\"\n"));
    let bystander = Bystander::started(gateway.port);
    let mut random = Random::from_seed(seed);
    run(&gateway, cases / 10, &mut random);
    let before = settled_kib(&gateway);
    let mut after = before;
    for _ in 1..10 {
        run(&gateway, cases / 10, &mut random);
        after = settled_kib(&gateway);
        println!("resident {after} KiB");
    }
    bystander.was_well("mutated packets");
    println!("resident before {before} KiB, after {after} KiB");
    assert_eq!(gateway.has_ended(), None);
    let log = gateway.log();
    let panics: Vec<&String> =
        log.iter().filter(|line| line.contains("panicked") || line.contains("has failed")).collect();
    assert!(panics.is_empty(), "seed {seed}: {panics:?}");
    assert!(after <= before + GROWTH_KIB_MAX, "seed {seed}: {before} KiB before, {after} KiB after");
    gateway.stop();
}

/// What it takes when all of these clients are gone.
fn settled_kib(gateway: &Gateway) -> u64 {
    gateway.wait_for_status("only the bystanders are connected, and no other session is left", |status| {
        (status["sessions"]["connected"] == 2 && status["sessions"]["sessions"] == 2).then_some(())
    });
    resident_kib(gateway.id())
}

fn run(gateway: &Gateway, cases: u64, random: &mut Random) {
    let port = gateway.port;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let mut random = random.branch();
            scope.spawn(move || {
                for _ in 0..cases.div_ceil(THREADS) {
                    send(port, &mut random);
                }
            });
        }
    });
}

/// One connection, from its CONNECT to its end, which comes from either side.
fn send(port: u16, random: &mut Random) {
    let mut stream = connected(port, random);
    let mut bytes = sequence(random);
    for _ in 0..random.within(0..4) {
        mutate(random, &mut bytes);
    }
    // In one piece, or in two with an answer awaited between them.
    let cut = if random.happens(30) { usize::try_from(random.within(0..bytes.len() as u64 + 1)).unwrap() } else { 0 };
    let (first, rest) = bytes.split_at(cut);
    // It may have been closed already.
    drop(stream.write_all(first));
    if cut > 0 {
        drop(stream.read(&mut [0; 64]));
    }
    drop(stream.write_all(rest));
    if random.happens(60) {
        drop(stream.read(&mut [0; 256]));
    }
    if random.happens(50) {
        // Reset instead of closed: what was not read yet is thrown away at the other end.
        drop(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
    }
}

/// From one of many loopback addresses: closed connections keep their ports for a minute.
fn connected(port: u16, random: &mut Random) -> TcpStream {
    let from = Ipv4Addr::new(127, 0, 0, u8::try_from(random.within(2..250)).unwrap());
    wait_until(Duration::from_secs(20), "the gateway takes a connection", || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(|error| error.to_string())?;
        let addresses = [SocketAddrV4::new(from, 0), SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)];
        socket.bind(&addresses[0].into()).map_err(|error| error.to_string())?;
        socket.connect(&addresses[1].into()).map_err(|error| error.to_string())?;
        socket.set_read_timeout(Some(Duration::from_millis(20))).map_err(|error| error.to_string())?;
        socket.set_write_timeout(Some(Duration::from_secs(20))).map_err(|error| error.to_string())?;
        Ok(TcpStream::from(socket))
    })
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

const TOPICS: &[&[u8]] = &[
    b"noise/a",
    b"noise/b/c",
    b"plant/x",
    b"noise/\xE6\xB8\xA9",
    b"noise/+/x",
    b"#",
    b"",
    b"$SYS/x",
    b"a\0b",
    b"\xFF",
    b"//",
];
const FILTERS: &[&[u8]] = &[
    b"noise/#",
    b"noise/+",
    b"#",
    b"+/+",
    b"$share/g/noise/#",
    b"$SYS/#",
    b"plant/x",
    b"a/#/b",
    b"$share//x",
    b"",
    b"+",
    b"\xFF",
];

/// A CONNECT and what may follow it, most of it as the specification wants it.
fn sequence(random: &mut Random) -> Vec<u8> {
    let is_v5 = random.happens(50);
    let mut bytes = connect(random, is_v5);
    if random.happens(5) {
        bytes.clear();
    }
    for _ in 0..random.within(0..12) {
        let next = one(random, is_v5);
        bytes.extend(next);
    }
    bytes
}

fn properties(random: &mut Random, is_v5: bool, known: &[&[u8]]) -> Vec<u8> {
    if !is_v5 {
        return Vec::new();
    }
    let mut all = Vec::new();
    for _ in 0..random.within(0..4) {
        all.extend_from_slice(random.pick::<&[u8]>(known));
    }
    [&[u8::try_from(all.len()).unwrap()][..], &all].concat()
}

fn connect(random: &mut Random, is_v5: bool) -> Vec<u8> {
    let has_will = random.happens(30);
    let is_clean = random.happens(60);
    let mut flags = if is_clean { 2 } else { 0 };
    if has_will {
        flags |= 4 | (u8::try_from(random.within(0..3)).unwrap() << 3) | if random.happens(20) { 0x20 } else { 0 };
    }
    let mut body = text(b"MQTT");
    body.extend([if is_v5 { 5 } else { 4 }, flags, 0, u8::try_from(random.within(0..60)).unwrap()]);
    let of_connect: &[&[u8]] = &[
        b"\x11\0\0\0\x3C",
        b"\x21\0\x02",
        b"\x27\0\0\0\x40",
        b"\x22\0\x05",
        b"\x17\0",
        b"\x19\x01",
        b"\x26\0\x01a\0\x01b",
        b"\x15\0\x01m",
    ];
    body.extend(properties(random, is_v5, of_connect));
    body.extend(text(format!("mutant-{}", random.within(0..40)).as_bytes()));
    if has_will {
        body.extend(properties(
            random,
            is_v5,
            &[b"\x18\0\0\0\x01", b"\x01\x01", b"\x02\0\0\0\x09", b"\x26\0\x01a\0\x01b"],
        ));
        body.extend(text(random.pick::<&[u8]>(TOPICS)));
        body.extend(text(b"dead"));
    }
    packet(0x10, &body)
}

fn one(random: &mut Random, is_v5: bool) -> Vec<u8> {
    // Few ids, so that they meet again.
    let id = u16::try_from(random.within(0..6)).unwrap().to_be_bytes();
    let of_ack: &[&[u8]] = &[b"\x1F\0\x01r", b"\x26\0\x01a\0\x01b"];
    match random.within(0..13) {
        0..=3 => {
            let qos = u8::try_from(random.within(0..3)).unwrap();
            let flags = qos << 1 | if random.happens(20) { 1 } else { 0 } | if random.happens(20) { 8 } else { 0 };
            let mut body = text(random.pick::<&[u8]>(TOPICS));
            if qos > 0 {
                body.extend(id);
            }
            let of_publish: &[&[u8]] = &[
                b"\x01\x01",
                b"\x02\0\0\0\x01",
                b"\x23\0\x01",
                b"\x23\0\x11",
                b"\x08\0\x01r",
                b"\x09\0\x02\0\xFF",
                b"\x26\0\x01a\0\x01b",
                b"\x0B\x05",
            ];
            body.extend(properties(random, is_v5, of_publish));
            body.resize(body.len() + usize::try_from(random.within(0..300)).unwrap(), b'x');
            packet(0x30 | flags, &body)
        }
        4 | 5 => {
            let mut body = id.to_vec();
            body.extend(properties(random, is_v5, &[b"\x0B\x07", b"\x26\0\x01a\0\x01b"]));
            for _ in 0..random.within(1..4) {
                body.extend(text(random.pick::<&[u8]>(FILTERS)));
                body.push(u8::try_from(random.within(0..64)).unwrap());
            }
            packet(0x82, &body)
        }
        6 => {
            let mut body = id.to_vec();
            body.extend(properties(random, is_v5, &[b"\x26\0\x01a\0\x01b"]));
            body.extend(text(random.pick::<&[u8]>(FILTERS)));
            packet(0xA2, &body)
        }
        7..=9 => {
            let first = *random.pick(&[0x40, 0x50, 0x62, 0x70]);
            let mut body = id.to_vec();
            if is_v5 && random.happens(40) {
                body.push(*random.pick(&[0, 0x10, 0x80, 0x92, 0x97]));
                body.extend(properties(random, true, of_ack));
            }
            packet(first, &body)
        }
        10 => packet(0xC0, b""),
        11 => match random.within(0..4) {
            0 => packet(0xE0, b""),
            1 => packet(0xE0, b"\x04\x05\x11\0\0\0\x09"),
            2 => packet(0xF0, b"\x19\x04\x15\0\x01m"),
            _ => connect(random, is_v5),
        },
        _ => b"\x30\xFF\xFF\xFF\x7F\0\x01a".to_vec(),
    }
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let place = usize::try_from(random.within(0..bytes.len() as u64)).unwrap();
    let any = u8::try_from(random.within(0..256)).unwrap();
    match random.within(0..6) {
        0 => bytes[place] ^= 1 << (any & 7),
        1 => bytes[place] = any,
        2 => bytes.insert(place, any),
        3 => drop(bytes.remove(place)),
        4 => bytes.truncate(place),
        _ => {
            let again = bytes[place..].to_vec();
            bytes.extend(again);
        }
    }
}
