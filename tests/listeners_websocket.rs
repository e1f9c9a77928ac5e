//! Is the WebSocket listener what browsers' clients expect, and does it refuse what is none of theirs?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use common::certificates::Certificates;
use common::gateway::{Gateway, folder};
use common::peers::{Publisher, Subscriber, javascript};
use common::{PATIENCE, port, turn, wait_for};
use serde_json::{Value, json};

const CONNECT: &[u8] = b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02ws";
const CONNACK: &[u8] = b"\x20\x02\0\0";
const PINGREQ: &[u8] = b"\xc0\0";
const PINGRESP: &[u8] = b"\xd0\0";

/// Ports and tables of a plain and a TLS WebSocket listener, and of a TLS listener.
struct Ways {
    ws: u16,
    wss: u16,
    tls: u16,
    certificates: Certificates,
}

fn started(folder: &Path, more: &str) -> (Gateway, Ways) {
    let certificates = Certificates::make(&folder.join("pki"), "client");
    let ways = Ways { ws: port::free(), wss: port::free(), tls: port::free(), certificates };
    let (cert, key) = (ways.certificates.server_cert.display(), ways.certificates.server_key.display());
    let tls = format!("tls = {{ cert = \"{cert}\", key = \"{key}\" }}");
    let tables = format!(
        "[broker.listener.ws]\nbind = \"127.0.0.1:{}\"\ntransport = \"websocket\"\n\
         [broker.listener.wss]\nbind = \"127.0.0.1:{}\"\ntransport = \"websocket\"\n{tls}\n\
         [broker.listener.tls]\nbind = \"127.0.0.1:{}\"\n{tls}\n{more}",
        ways.ws, ways.wss, ways.tls
    );
    (Gateway::started(folder, &tables), ways)
}

/// A WebSocket by hand: the handshake, and frames as they are told.
struct Raw {
    stream: TcpStream,
}

impl Raw {
    fn open(port: u16) -> Raw {
        let mut raw = Raw { stream: TcpStream::connect(("127.0.0.1", port)).unwrap() };
        raw.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let answer = raw.ask(
            "GET /anywhere?x=1 HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: mqtt\r\n\r\n",
        );
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        // RFC 6455, 1.3: the key of its own example.
        assert!(answer.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
        assert!(answer.to_lowercase().contains("sec-websocket-protocol: mqtt\r\n"), "{answer}");
        raw
    }

    /// Sends a request; its answer up to the empty line.
    fn ask(&mut self, request: &str) -> String {
        self.stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        String::from_utf8(answer).unwrap()
    }

    fn send(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap()),
            length => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.write_all(&frame).unwrap();
    }

    /// The next frame: its first byte and its payload. `None`: the other end has closed.
    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).ok()?;
        let mut length = usize::from(head[1]);
        if length == 126 {
            let mut long = [0; 2];
            self.stream.read_exact(&mut long).unwrap();
            length = usize::from(u16::from_be_bytes(long));
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).ok()?;
        Some((head[0], payload))
    }

    #[track_caller]
    fn expect(&mut self, expected: &[u8]) {
        let mut came = Vec::new();
        while came.len() < expected.len() {
            let (first, payload) = self.frame().expect("the connection was closed");
            assert_eq!(first, 0x82, "a whole binary frame");
            came.extend(payload);
        }
        assert_eq!(came, expected);
    }

    /// Waits for the end; the code of the close frame, if one came, or 1005 for one without (RFC 6455, 7.1.5).
    fn closed(&mut self) -> Option<u16> {
        let mut code = None;
        while let Some((first, payload)) = self.frame() {
            if first == 0x88 {
                code = Some(payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)));
            }
        }
        code
    }
}

/// Sends a request and reads the whole answer.
fn answer(port: u16, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn mqtt_js_speaks_over_tcp_websocket_tls_and_both_in_both_versions() {
    let _turn = turn();
    let folder = folder();
    let (gateway, ways) = started(folder.path(), "");
    let ca = ways.certificates.ca.display().to_string();
    let urls = [
        (format!("mqtt://127.0.0.1:{}", gateway.port), Value::Null),
        (format!("ws://127.0.0.1:{}/mqtt", ways.ws), Value::Null),
        (format!("mqtts://localhost:{}", ways.tls), json!(ca)),
        (format!("wss://localhost:{}/any/path", ways.wss), json!(ca)),
    ];
    let count = 90;
    let wanted = urls.iter().flat_map(|(url, ca)| {
        [4, 5].map(|version| json!({ "url": url, "version": version, "ca": ca, "count": count }))
    });
    let said = javascript("exchange", &wanted.collect());
    assert_eq!(said.len(), 8);
    for way in said {
        assert_eq!(way["error"], Value::Null, "{way}");
        let mut received: Vec<(u64, u64)> = serde_json::from_value(way["received"].clone()).unwrap();
        received.sort_unstable();
        assert_eq!(received, (0..count).map(|number| (number, number % 3)).collect::<Vec<_>>(), "{way}");
    }
}

#[test]
fn paho_keeps_its_session_over_a_websocket_with_tls_and_a_killed_gateway() {
    let _turn = turn();
    let folder = folder();
    let (mut gateway, ways) = started(folder.path(), "");
    let ca = ways.certificates.ca.display().to_string();
    let (plain, secure) = (["--websocket"], ["--websocket", "--cafile", &ca]);
    let mut subscriber = Subscriber::started_with(ways.ws, "dashboard", &["plant/#"], &plain);
    let more = [&secure[..], &["--qos", "2", "--persistent", "--pause", "0.002"]].concat();
    let mut publisher = Publisher::started(ways.wss, "machine", "plant/press", 400, &more);
    publisher.wait_for_acknowledged(50);
    gateway.kill();
    gateway.start();
    publisher.wait_until_done();
    subscriber.wait_for_count("plant/press", 400);
    let mut numbers = subscriber.numbers_on("plant/press");
    // paho may send what is new before it repeats what is old.
    numbers.sort_unstable();
    assert_eq!(numbers, (0..400).collect::<Vec<_>>(), "each once");
    // A packet longer than any frame that we send.
    let more = [&plain[..], &["--size", "100000"]].concat();
    Publisher::started(ways.ws, "camera", "plant/picture", 5, &more).wait_until_done();
    subscriber.wait_for_count("plant/picture", 5);
    assert!(subscriber.received_on("plant/picture").iter().all(|message| message.payload.len() == 100_000));
}

#[test]
fn packets_may_span_frames_and_frames_hold_several_packets() {
    let _turn = turn();
    let folder = folder();
    let (_gateway, ways) = started(folder.path(), "");
    let mut raw = Raw::open(ways.ws);
    for byte in CONNECT {
        raw.send(0x82, &[*byte]);
    }
    raw.expect(CONNACK);
    raw.send(0x82, &[PINGREQ, PINGREQ, &PINGREQ[..1]].concat());
    raw.send(0x82, &PINGREQ[1..]);
    raw.expect(&PINGRESP.repeat(3));
    // One message in three frames, with a ping between them (RFC 6455, 5.4), and an empty one.
    raw.send(0x02, &PINGREQ[..1]);
    raw.send(0x89, b"there?");
    assert_eq!(raw.frame(), Some((0x8a, b"there?".to_vec())));
    raw.send(0x00, b"");
    raw.send(0x80, &PINGREQ[1..]);
    raw.send(0x82, b"");
    raw.expect(PINGRESP);
    // What comes with the handshake in one segment is not lost.
    let mut eager = TcpStream::connect(("127.0.0.1", ways.ws)).unwrap();
    let mut hasty =
        b"GET / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqttv3.1\r\n\r\n"
            .to_vec();
    hasty.extend([0x82, 0x80 | u8::try_from(CONNECT.len()).unwrap(), 0, 0, 0, 0]);
    hasty.extend(CONNECT);
    eager.write_all(&hasty).unwrap();
    let mut raw = Raw { stream: eager };
    assert!(raw.ask("").contains("mqttv3.1"));
    raw.expect(CONNACK);
    raw.send(0x82, b"\xe0\0");
    assert_eq!(raw.closed(), Some(1005), "a WebSocket is closed as such, too");
}

#[test]
fn what_is_no_websocket_of_mqtt_is_told_what_this_is() {
    let _turn = turn();
    let folder = folder();
    let (gateway, ways) = started(folder.path(), "");
    let page = answer(ways.ws, b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 426 ") && page.contains("\r\nUpgrade: websocket\r\n"), "{page}");
    assert!(page.contains("this is an MQTT broker"), "{page}");
    let stranger = "GET /chat HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
    let page = answer(ways.ws, stranger.as_bytes());
    assert!(page.starts_with("HTTP/1.1 400 ") && page.contains("must offer \"mqtt\" or \"mqttv3.1\""), "{page}");
    assert!(answer(ways.ws, CONNECT).starts_with("HTTP/1.1 400 "), "MQTT without a WebSocket");
    let long = format!("GET / HTTP/1.1\r\nCookie: {}", "x".repeat(20_000));
    assert!(answer(ways.ws, long.as_bytes()).starts_with("HTTP/1.1 431 "));
    assert_eq!(answer(gateway.port, stranger.as_bytes()), "", "HTTP on the port of plain MQTT");
    let refused = |status: &Value| (status["sessions"]["refused"] == 4).then_some(());
    gateway.wait_for_status("the four were counted", refused);
    for reason in ["asks for no WebSocket", "offers neither the subprotocol mqtt", "does not speak HTTP"] {
        wait_for(PATIENCE, &format!("the log tells {reason:?}"), || gateway.log().join("\n").contains(reason));
    }
}

#[test]
fn a_client_that_breaks_the_rules_of_websockets_ends_its_own_connection_only() {
    let _turn = turn();
    let folder = folder();
    let (_gateway, ways) = started(folder.path(), "[broker.limits]\npacket_bytes = \"4 KiB\"\n");
    let mut neighbour = Raw::open(ways.ws);
    neighbour.send(0x82, CONNECT);
    neighbour.expect(CONNACK);
    // Not the neighbour's client id, which would be taken over.
    let another = CONNECT.to_ascii_uppercase();
    type Break<'b> = (&'b str, &'b dyn Fn(&mut Raw), Option<u16>);
    let breaks: [Break<'_>; 6] = [
        ("text", &|raw| raw.send(0x81, b"hello"), Some(1003)),
        ("text after CONNECT", &|raw| (raw.send(0x82, &another), raw.send(0x81, b"x")).1, Some(1003)),
        ("an announced gigabyte", &|raw| raw.stream.write_all(b"\x82\xff\0\0\0\0\x40\0\0\0abcd").unwrap(), None),
        ("an unmasked frame", &|raw| raw.stream.write_all(b"\x82\x02\xc0\0").unwrap(), None),
        ("a reserved opcode", &|raw| raw.send(0x83, b"x"), None),
        ("a continuation of nothing", &|raw| raw.send(0x80, b"x"), None),
    ];
    for (what, break_it, code) in breaks {
        let mut raw = Raw::open(ways.ws);
        break_it(&mut raw);
        let closed = raw.closed();
        assert!(code.is_none() || closed == code, "{what}: {closed:?}");
        neighbour.send(0x82, PINGREQ);
        neighbour.expect(PINGRESP);
    }
    // One that vanishes in the middle of its handshake or of a frame.
    for part in [&b"GET / HT"[..], b"GET / HTTP/1.1\r\nUpgr"] {
        let mut stream = TcpStream::connect(("127.0.0.1", ways.ws)).unwrap();
        stream.write_all(part).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    }
    neighbour.send(0x82, PINGREQ);
    neighbour.expect(PINGRESP);
}

#[test]
fn silence_before_during_and_after_the_handshake_ends_in_time_and_holds_up_nobody() {
    let _turn = turn();
    let folder = folder();
    let limits = "[broker.limits]\nhandshake_time = \"500ms\"\nconnect_time = \"500ms\"\nhandshakes = 60\n";
    let (gateway, ways) = started(folder.path(), limits);
    let silent = |port: u16, said: &'static [u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(said).unwrap();
        stream
    };
    let ports = [gateway.port, ways.ws, ways.wss, ways.tls];
    let mut streams: Vec<TcpStream> = (0..200).map(|number| silent(ports[number % 4], b"")).collect();
    streams.push(silent(ways.ws, b"GET / HTTP/1.1\r\n"));
    streams.push(silent(ways.tls, b"\x16\x03\x01\x02\0\x01"));
    streams.push(silent(gateway.port, &CONNECT[..5]));
    let mut slow = Raw::open(ways.ws);
    let mut honest = Raw::open(ways.ws);
    honest.send(0x82, CONNECT);
    honest.expect(CONNACK);
    assert_eq!(slow.closed(), None, "its CONNECT did not come in time");
    for mut stream in streams {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _end = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"\x20"), "nobody said who it is");
    }
    honest.send(0x82, PINGREQ);
    honest.expect(PINGRESP);
    wait_for(Duration::from_secs(10), "the log tells of it", || {
        let log = gateway.log().join("\n");
        ["did not finish the handshake in time", "have not sent their CONNECT"].iter().all(|line| log.contains(line))
    });
    let told = gateway.log().iter().filter(|line| line.contains("A client was not let in")).count();
    assert!(told <= 4, "200 clients are not 200 lines: {told}");
}
