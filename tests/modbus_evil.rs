//! What does the gateway make of devices that answer nonsense? Bad readings with a reason, never a wrong value, and
//! nothing that a neighbour on another line would notice.
//!
//! The register that is asked for holds 4242. Every lie says 666 somewhere, so that a wrong value is recognised.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use field_support::{DEADLINE, Running, add_line, add_unit, empty, point, port, tcp};
use tidegate::config::{Config, LineKind, PointKind, Table};
use tidegate::message::{Quality, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_serial::{SerialPort as _, SerialStream};

mod field_support;

const TRUTH: u16 = 4242;
const LIE: u16 = 666;
/// Bytes of a request to read, with the header of Modbus TCP.
const TCP_REQUEST_BYTES: usize = 12;
/// Bytes of an RTU request to read.
const RTU_REQUEST_BYTES: usize = 8;

#[derive(Debug, Clone)]
enum Act {
    Send(Vec<u8>),
    OneByteAtATime(Vec<u8>),
    Reset,
    Close,
}

type Answer = fn(&[u8]) -> Vec<Act>;

/// Answers of Modbus TCP by kind of evil; `true` = the right value may come of it.
fn evils() -> Vec<(&'static str, bool, Answer)> {
    fn reply(request: &[u8], pdu: &[u8]) -> Vec<u8> {
        let length = u16::try_from(pdu.len() + 1).unwrap().to_be_bytes();
        [&request[..4], &length, &request[6..7], pdu].concat()
    }
    fn words(request: &[u8], words: &[u16]) -> Vec<u8> {
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let pdu = [&[request[7], u8::try_from(data.len()).unwrap()], &data[..]].concat();
        reply(request, &pdu)
    }
    fn changed(request: &[u8], place: usize, value: u8) -> Vec<Act> {
        let mut reply = words(request, &[LIE]);
        reply[place] = value;
        vec![Act::Send(reply)]
    }
    vec![
        ("wrong_transaction", false, |r| changed(r, 1, r[1].wrapping_add(1))),
        ("last_transaction", false, |r| changed(r, 1, r[1].wrapping_sub(1))),
        ("wrong_protocol", false, |r| changed(r, 3, 1)),
        ("wrong_unit", false, |r| changed(r, 6, r[6].wrapping_add(1))),
        ("wrong_function", false, |r| changed(r, 7, 4)),
        ("custom_function", false, |r| changed(r, 7, 0x65)),
        ("write_echo", false, |r| vec![Act::Send(reply(r, &[6, 0, 0, 0x02, 0x9A]))]),
        ("byte_count_too_small", false, |r| vec![Act::Send(reply(r, &[3, 1, 0x9A]))]),
        ("byte_count_zero", false, |r| vec![Act::Send(reply(r, &[3, 0]))]),
        ("byte_count_lies", false, |r| changed(r, 8, 250)),
        ("byte_count_odd", false, |r| vec![Act::Send(reply(r, &[3, 3, 0x02, 0x9A, 0]))]),
        ("too_many_registers", false, |r| vec![Act::Send(words(r, &[LIE, LIE]))]),
        ("far_too_many_registers", false, |r| vec![Act::Send(words(r, &[LIE; 125]))]),
        ("bytes_after_the_answer", false, |r| vec![Act::Send([words(r, &[LIE]), vec![0]].concat())]),
        ("two_replies_at_once", false, |r| vec![Act::Send([words(r, &[LIE]), words(r, &[LIE])].concat())]),
        ("length_zero", false, |r| changed(r, 5, 0)),
        ("length_one", false, |r| changed(r, 5, 1)),
        ("length_65535", false, |r| {
            let mut reply = words(r, &[LIE]);
            (reply[4], reply[5]) = (0xFF, 0xFF);
            vec![Act::Send(reply), Act::Send(vec![0; 65_535])]
        }),
        ("truncated", false, |r| vec![Act::Send(words(r, &[LIE])[..10].to_vec())]),
        ("truncated_and_closed", false, |r| vec![Act::Send(words(r, &[LIE])[..10].to_vec()), Act::Close]),
        ("reset", false, |_| vec![Act::Reset]),
        ("closed", false, |_| vec![Act::Close]),
        ("silence", false, |_| vec![]),
        ("http", false, |_| vec![Act::Send(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Act::Close]),
        ("a_flood", false, |_| vec![Act::Send(vec![0xFF; 1_000_000])]),
        ("exception_zero", false, |r| vec![Act::Send(reply(r, &[0x83, 0]))]),
        ("exception_of_another_function", false, |r| vec![Act::Send(reply(r, &[0x84, 2]))]),
        ("exception_without_code", false, |r| vec![Act::Send(reply(r, &[0x83]))]),
        ("illegal_address", false, |r| vec![Act::Send(reply(r, &[0x83, 2]))]),
        ("busy", false, |r| vec![Act::Send(reply(r, &[0x83, 6]))]),
        ("gateway_target_failed", false, |r| vec![Act::Send(reply(r, &[0x83, 11]))]),
        ("exception_255", false, |r| vec![Act::Send(reply(r, &[0x83, 255]))]),
        ("one_byte_at_a_time", true, |r| vec![Act::OneByteAtATime(words(r, &[TRUTH]))]),
        ("closed_after_each_answer", true, |r| vec![Act::Send(words(r, &[TRUTH])), Act::Close]),
        ("honest", true, |r| vec![Act::Send(words(r, &[TRUTH]))]),
    ]
}

async fn serve(listener: TcpListener, answer: Answer) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        connections.spawn(answer_all(stream, answer));
    }
}

async fn answer_all(mut stream: TcpStream, answer: Answer) {
    let mut request = [0; TCP_REQUEST_BYTES];
    while stream.read_exact(&mut request).await.is_ok() {
        for act in answer(&request) {
            let sent = match act {
                Act::Send(bytes) => stream.write_all(&bytes).await,
                Act::OneByteAtATime(bytes) => {
                    let mut sent = Ok(());
                    for byte in bytes {
                        tokio::task::yield_now().await;
                        sent = stream.write_all(&[byte]).await;
                    }
                    sent
                }
                Act::Reset => {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    return;
                }
                Act::Close => return,
            };
            // The gateway may have hung up already: that is what it should do.
            if sent.is_err() {
                return;
            }
        }
    }
}

fn register() -> Vec<tidegate::config::ModbusPoint> {
    vec![point("p", Table::Holding, 7, PointKind::U16)]
}

#[tokio::test]
async fn whatever_a_tcp_device_answers_gives_the_right_value_or_a_bad_reading() {
    let mut servers = JoinSet::new();
    let mut config = empty();
    for (name, _, answer) in evils() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        add_line(&mut config, name, tcp(listener.local_addr().unwrap()));
        add_unit(&mut config, name, name, 1, 40, register());
        servers.spawn(serve(listener, answer));
    }
    let running = Running::start(&config);
    for (name, is_right, _) in evils() {
        let quality = if is_right { Quality::Good } else { Quality::Bad };
        running.until_told(name, "p", quality, 1).await;
    }
    // Long enough for every evil to be asked several times.
    running.until_told("honest", "p", Quality::Good, 60).await;
    for (name, is_right, _) in evils().into_iter().filter(|(name, ..)| *name != "honest") {
        let exchanges = serde_json::to_value(running.device(name)).unwrap()["exchanges"].as_u64().unwrap();
        assert!(exchanges >= 2, "{name} was asked {exchanges} times");
        let told = running.of(name, "p");
        for reading in &told {
            let expected = if is_right { Value::Uint(u64::from(TRUTH)) } else { Value::Null };
            assert_eq!(reading.value, expected, "{name}: {reading:?}");
        }
        assert!(is_right || told.len() == 1, "{name} is told once: {told:?}");
    }
    for (name, kind) in [
        ("wrong_transaction", "transaction"),
        ("wrong_protocol", "protocol"),
        ("wrong_unit", "unit"),
        ("wrong_function", "function"),
        ("byte_count_lies", "byte-count"),
        ("length_one", "length"),
        ("bytes_after_the_answer", "surplus"),
        ("truncated", "incomplete"),
        ("silence", "timeout"),
        ("closed", "lost"),
        ("exception_zero", "exception-code"),
        ("illegal_address", "exception-2"),
        ("gateway_target_failed", "exception-11"),
    ] {
        let device = running.device(name);
        assert!(device.faults.contains_key(kind), "{name}: {:?}", device.faults);
        assert_eq!(device.faults.values().sum::<u64>(), device.failures, "{name}: {:?}", device.faults);
    }
    let everything = running.stop().await;
    let honest: Vec<_> = everything.iter().filter(|r| &*r.device == "honest").collect();
    assert!(honest.iter().all(|r| r.value == Value::Uint(u64::from(TRUTH))), "{honest:?}");
}

#[tokio::test]
async fn an_evil_neighbour_on_another_line_is_not_noticed() {
    let mut servers = JoinSet::new();
    let mut config = empty();
    for name in ["a_flood", "silence", "length_65535", "honest", "reset"] {
        let (_, _, answer) = evils().into_iter().find(|(evil, ..)| *evil == name).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        add_line(&mut config, name, tcp(listener.local_addr().unwrap()));
        add_unit(&mut config, name, name, 1, 20, register());
        servers.spawn(serve(listener, answer));
    }
    let running = Running::start(&config);
    running.until_told("honest", "p", Quality::Good, 100).await;
    let honest = serde_json::to_value(running.device("honest")).unwrap();
    assert_eq!((&honest["failures"], &honest["state"]), (&0.into(), &"good".into()), "{honest}");
    running.stop().await;
}

/// Each answer is sent when the next request has come: always one late, as a gateway does that has lost count.
#[tokio::test]
async fn an_answer_to_the_last_request_is_never_taken_for_one_to_this() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut request = [0; TCP_REQUEST_BYTES];
            while stream.read_exact(&mut request).await.is_ok() {
                let lie = [&request[..5], &[5, request[6], 3, 2], &LIE.to_be_bytes()].concat();
                if let Some(reply) = last.replace(lie)
                    && stream.write_all(&reply).await.is_err()
                {
                    break;
                }
            }
        }
    });
    let mut config = empty();
    add_line(&mut config, "line", tcp(address));
    add_unit(&mut config, "a", "line", 1, 20, register());
    add_unit(&mut config, "b", "line", 2, 20, register());
    let running = Running::start(&config);
    for device in ["a", "b"] {
        running.until_told(device, "p", Quality::Bad, 1).await;
    }
    running
        .until("several exchanges of both", |_| {
            let snapshot = running.health.snapshot(tidegate::message::Stamp::default());
            ["a", "b"].iter().all(|device| snapshot.devices[*device].exchanges >= 2).then_some(())
        })
        .await;
    let told = running.stop().await;
    assert!(told.iter().all(|reading| reading.value == Value::Null), "{told:?}");
}

/// A proxy that reconnects: what a device said too late on one connection comes on the next one, before that one's own
/// answer, with the transaction id that it was asked with.
#[tokio::test]
async fn a_late_answer_of_an_earlier_connection_is_never_taken_for_one_to_this() {
    const LATE: u32 = 6;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        let mut owed: Option<Vec<u8>> = None;
        for number in 0.. {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut request = [0; TCP_REQUEST_BYTES];
            while stream.read_exact(&mut request).await.is_ok() {
                let answer = |value: u16| [&request[..5], &[5, request[6], 3, 2], &value.to_be_bytes()].concat();
                let reply = if number < LATE { owed.replace(answer(LIE)) } else { Some(answer(TRUTH)) };
                if let Some(reply) = reply
                    && stream.write_all(&reply).await.is_err()
                {
                    break;
                }
            }
        }
    });
    let mut config = empty();
    add_line(&mut config, "line", tcp(address));
    add_unit(&mut config, "d", "line", 1, 20, register());
    let running = Running::start(&config);
    running.until_told("d", "p", Quality::Bad, 1).await;
    let good = running.until_told("d", "p", Quality::Good, 5).await;
    assert!(good.iter().all(|reading| reading.value == Value::Uint(u64::from(TRUTH))), "{good:?}");
    let faults = running.device("d").faults;
    assert!(faults.contains_key("transaction"), "it was the id by which the late ones were known: {faults:?}");
    running.stop().await;
}

/// A converter gives what comes from the bus to whoever is connected. RTU has no transaction ids: what is late by less than
/// the unit's rest comes into nobody's turn, or into that of another unit, which is known by its id.
#[tokio::test]
async fn a_late_answer_that_a_converter_gives_to_the_next_connection_is_never_taken() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        let mut late: VecDeque<Instant> = VecDeque::new();
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut request = [0; RTU_REQUEST_BYTES];
            loop {
                let due = late.front().copied();
                tokio::select! {
                    read = stream.read_exact(&mut request) => match read {
                        // Unit 1 is always late by half a timeout.
                        Ok(_) if request[0] == 1 => late.push_back(Instant::now() + TIMEOUT * 3 / 2),
                        Ok(_) => stream.write_all(&rtu(request[0], TRUTH)).await.unwrap_or_default(),
                        Err(_) => break,
                    },
                    () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                        late.pop_front();
                        stream.write_all(&rtu(1, LIE)).await.unwrap_or_default();
                    }
                }
            }
        }
    });
    let mut config = empty();
    add_line(&mut config, "line", LineKind::RtuOverTcp { host: "localhost".into(), port: address.port() });
    for unit in [1, 2] {
        add_unit(&mut config, &format!("u{unit}"), "line", unit, 30, register());
    }
    let running = Running::start(&config);
    running.until_told("u2", "p", Quality::Good, 60).await;
    running.until("several probes of unit 1", |_| (running.device("u1").exchanges >= 3).then_some(())).await;
    for reading in running.stop().await {
        let expected = if &*reading.device == "u2" { Value::Uint(u64::from(TRUTH)) } else { Value::Null };
        assert!(reading.quality == Quality::Bad || reading.value == expected, "{reading:?}");
    }
}

// ---- a serial line ------------------------------------------------------------------------------------------------

fn crc(bytes: &[u8]) -> u16 {
    let mut crc = 0xFFFF_u16;
    for byte in bytes {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xA001 } else { crc >> 1 };
        }
    }
    crc
}

fn rtu(unit: u8, value: u16) -> Vec<u8> {
    let mut frame = vec![unit, 3, 2];
    frame.extend(value.to_be_bytes());
    let crc = crc(&frame);
    frame.extend(crc.to_le_bytes());
    frame
}

/// A pty: our end, the kept far end, and a configuration with a unit 1 (and 2) on it.
fn pty(units: &[u8]) -> (SerialStream, SerialStream, Config) {
    let (ours, far_end) = SerialStream::pair().unwrap();
    let mut config = empty();
    add_line(&mut config, "line", LineKind::Rtu(port(far_end.name().unwrap().as_ref())));
    for unit in units {
        add_unit(&mut config, &format!("u{unit}"), "line", *unit, 30, register());
    }
    (ours, far_end, config)
}

async fn serve_rtu(mut port: SerialStream, mut answer: impl FnMut(&[u8], u32) -> Vec<u8>) {
    let mut request = [0; RTU_REQUEST_BYTES];
    let mut number = 0;
    while port.read_exact(&mut request).await.is_ok() {
        assert_eq!(crc(&request), 0, "requests are whole: no rest of one is sent before another");
        port.write_all(&answer(&request, number)).await.unwrap();
        number += 1;
    }
}

/// Every second answer is spoilt in another way; the others are right.
#[tokio::test]
async fn noise_on_a_serial_line_gives_bad_readings_and_never_a_wrong_value() {
    let (ours, _far_end, config) = pty(&[1]);
    let mut servers = JoinSet::new();
    servers.spawn(serve_rtu(ours, |_, number| {
        let lie = rtu(1, LIE);
        let mut flipped = lie.clone();
        flipped[3] ^= 0x40;
        let spoilt: [Vec<u8>; 8] = [
            flipped,
            lie[..5].to_vec(),
            [&lie[..], &lie[..]].concat(),
            vec![0x55; 300],
            rtu(9, LIE),
            [vec![1, 3, 250], vec![0; 20]].concat(),
            vec![1, 0x83],
            [vec![1, 0x65], lie.clone()].concat(),
        ];
        if number % 2 == 0 { rtu(1, TRUTH) } else { spoilt[(number / 2) as usize % spoilt.len()].clone() }
    }));
    let running = Running::start(&config);
    let told = running.until_told("u1", "p", Quality::Good, 9).await;
    assert!(told.iter().all(|reading| reading.value == Value::Uint(u64::from(TRUTH))), "{told:?}");
    let everything = running.stop().await;
    assert!(everything.iter().filter(|r| r.quality == Quality::Bad).count() >= 8, "{everything:?}");
    assert!(servers.try_join_next().is_none(), "the device saw whole requests only");
}

/// The answers to the first requests come after the timeout, each with the number of its request as its value.
#[tokio::test]
async fn a_late_answer_on_a_serial_line_is_never_taken_for_the_next_one() {
    const LATE: u32 = 4;
    let (ours, _far_end, config) = pty(&[1]);
    let (mut input, mut output) = tokio::io::split(ours);
    let requests = Arc::new(AtomicU32::new(0));
    let counted = requests.clone();
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        let mut request = [0; RTU_REQUEST_BYTES];
        let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        loop {
            let due = waiting.front().map(|(at, _)| *at);
            tokio::select! {
                read = input.read_exact(&mut request) => {
                    if read.is_err() {
                        return;
                    }
                    let number = counted.fetch_add(1, Ordering::SeqCst);
                    let delay = if number < LATE { Duration::from_millis(450) } else { Duration::ZERO };
                    waiting.push_back((Instant::now() + delay, rtu(1, u16::try_from(number).unwrap())));
                }
                () = sleep_until(due.unwrap_or_else(|| Instant::now() + DEADLINE)), if due.is_some() => {
                    let (_, reply) = waiting.pop_front().unwrap();
                    output.write_all(&reply).await.unwrap();
                }
            }
        }
    });
    let running = Running::start(&config);
    let good = running.until_told("u1", "p", Quality::Good, 10).await;
    let values: Vec<u64> = good
        .iter()
        .map(|reading| if let Value::Uint(value) = reading.value { value } else { panic!("{reading:?}") })
        .collect();
    let expected: Vec<u64> = (u64::from(LATE)..).take(values.len()).collect();
    assert_eq!(values, expected, "each reading is the answer to its own request");
    running.stop().await;
}

/// Unit 1 answers, but always into the turn of unit 2.
#[tokio::test]
async fn a_late_unit_does_not_spoil_the_turn_of_its_neighbour() {
    let (ours, _far_end, config) = pty(&[1, 2]);
    let mut servers = JoinSet::new();
    let mut owed = 0;
    servers.spawn(serve_rtu(ours, move |request, _| {
        if request[0] == 1 {
            owed += 1;
            return Vec::new();
        }
        let late = if owed > 0 { rtu(1, LIE) } else { Vec::new() };
        owed = 0;
        [late, rtu(2, TRUTH)].concat()
    }));
    let running = Running::start(&config);
    running.until_told("u2", "p", Quality::Good, 40).await;
    running.until_told("u1", "p", Quality::Bad, 1).await;
    let everything = running.stop().await;
    for reading in everything {
        let expected = if &*reading.device == "u2" { Value::Uint(u64::from(TRUTH)) } else { Value::Null };
        assert_eq!(reading.value, expected, "{reading:?}");
    }
}

#[tokio::test]
async fn an_adapter_that_echoes_is_understood() {
    let (ours, _far_end, config) = pty(&[1]);
    let mut servers = JoinSet::new();
    servers.spawn(serve_rtu(ours, |request, _| [request, &rtu(1, TRUTH)].concat()));
    let running = Running::start(&config);
    let good = running.until_told("u1", "p", Quality::Good, 10).await;
    assert!(good.iter().all(|reading| reading.value == Value::Uint(u64::from(TRUTH))));
    assert_eq!(running.stop().await.len(), good.len(), "nothing was bad");
}

/// RTU frames over a TCP connection; the first connection goes quiet after its first answer.
#[tokio::test]
async fn rtu_over_tcp_is_read_and_a_quiet_connection_is_made_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        let mut connections = Vec::new();
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut request = [0; RTU_REQUEST_BYTES];
            while stream.read_exact(&mut request).await.is_ok() {
                stream.write_all(&rtu(request[0], TRUTH)).await.unwrap();
                if connections.is_empty() {
                    break;
                }
            }
            connections.push(stream);
        }
    });
    let mut config = empty();
    add_line(&mut config, "line", LineKind::RtuOverTcp { host: "localhost".into(), port: address.port() });
    add_unit(&mut config, "d", "line", 5, 30, register());
    let running = Running::start(&config);
    let good = running.until_told("d", "p", Quality::Good, 10).await;
    assert!(good.iter().all(|reading| reading.value == Value::Uint(u64::from(TRUTH))));
    assert_eq!(running.of("d", "p").len(), good.len() + 1, "one of them was bad");
    running.stop().await;
}

/// Something on the bus talks without being asked, and stops after a while.
#[tokio::test]
async fn a_bus_that_is_never_silent_is_told_and_read_again_when_it_is_quiet() {
    let (ours, _far_end, config) = pty(&[1]);
    let (mut input, mut output) = tokio::io::split(ours);
    let (quiet, mut is_quiet) = tokio::sync::watch::channel(false);
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        while !*is_quiet.borrow() {
            output.write_all(&rtu(1, LIE)).await.unwrap();
            sleep(Duration::from_micros(500)).await;
        }
        is_quiet.mark_unchanged();
        let mut request = [0; RTU_REQUEST_BYTES];
        while input.read_exact(&mut request).await.is_ok() {
            output.write_all(&rtu(1, TRUTH)).await.unwrap();
        }
    });
    let running = Running::start(&config);
    running.until_told("u1", "p", Quality::Bad, 1).await;
    quiet.send(true).unwrap();
    let good = running.until_told("u1", "p", Quality::Good, 5).await;
    assert!(good.iter().all(|reading| reading.value == Value::Uint(u64::from(TRUTH))), "{good:?}");
    running.stop().await;
}
