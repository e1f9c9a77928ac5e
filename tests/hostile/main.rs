//! What no library would send: the gateway answers with the right reason, and nobody else is disturbed.
//!
//! `./test.sh --torture` runs the long form: 100,000 mutated sequences and serial streams for 5,000, 5,000 silent sockets
//! for 500, 10,000 mutated requests at the control socket for 2,000, floods of twenty times the length.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../torture/random.rs"]
mod random;

mod bystander;
mod control;
mod floods;
mod log;
mod mutants;
mod streams;

use common::gateway::{FORWARD_PLANT, Gateway, folder, uplink};
use common::raw::{Heard, RawClient, Version, packet};
use common::{PATIENCE, port, turn};

/// A subscriber to everything, and a publisher: both must go on.
struct Bystanders {
    listener: RawClient,
    speaker: RawClient,
    count: u16,
}

impl Bystanders {
    fn of(gateway: &Gateway) -> Bystanders {
        let mut listener = RawClient::connected(gateway.port, Version::V5, "listener");
        listener.subscribe("#", 1);
        Bystanders { listener, speaker: RawClient::connected(gateway.port, Version::V311, "speaker"), count: 0 }
    }

    /// Says one thing and expects it to be acknowledged and heard; gives back what else was heard before it.
    #[track_caller]
    fn are_well_after(&mut self, what: &str) -> Vec<String> {
        self.count += 1;
        let payload = self.count.to_string();
        self.speaker.publish(b"plant/alive", 1, self.count, payload.as_bytes());
        assert_eq!(
            self.speaker.hear(PATIENCE),
            Heard::Packet(0x40, self.count.to_be_bytes().to_vec()),
            "the speaker after {what}"
        );
        let mut heard = Vec::new();
        loop {
            let Heard::Packet(first, body) = self.listener.hear(PATIENCE) else {
                panic!("the listener hears nothing after {what}")
            };
            assert_eq!(first & 0xf0, 0x30);
            let topic_end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
            let topic = String::from_utf8_lossy(&body[2..topic_end]).into_owned();
            if first & 0x06 != 0 {
                let id = u16::from_be_bytes([body[topic_end], body[topic_end + 1]]);
                self.listener.send(&packet(0x40, &id.to_be_bytes()));
            }
            if topic == "plant/alive" {
                return heard;
            }
            // What the gateway says of itself comes when it likes.
            if !topic.starts_with("tidegate/") {
                heard.push(topic);
            }
        }
    }
}

fn gateway(folder: &std::path::Path) -> Gateway {
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", port::free()), "") + FORWARD_PLANT;
    Gateway::started(folder, &tables)
}

#[test]
fn the_router_is_alive_after_hostile_topics() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = gateway(folder.path());
    let mut bystanders = Bystanders::of(&gateway);
    let topics: [&[u8]; 9] = [b"a/+/b", b"a/#", b"#", b"+", b"", b"a\0b", b"\0", b"$SYS/x", b"\xff\xfe/broken"];
    for version in [Version::V311, Version::V5] {
        for qos in [0, 1, 2] {
            for topic in topics {
                let what = format!("{version:?} QoS {qos} {:?}", String::from_utf8_lossy(topic));
                let mut hostile = RawClient::connected(gateway.port, version, "hostile");
                hostile.publish(topic, qos, 7, b"boo");
                let heard = bystanders.are_well_after(&what);
                assert_eq!(heard, Vec::<String>::new(), "{what}");
                if qos > 0 {
                    expect_refusal(&mut hostile, version, topic, &what);
                }
            }
        }
    }
    // Other writings than ASCII are nothing hostile at all, nor is U+FEFF (MQTT 5.0, 1.5.4).
    for version in [Version::V311, Version::V5] {
        for topic in ["温度/1", "\u{feff}/Größe"] {
            let mut client = RawClient::connected(gateway.port, version, "polyglot");
            client.publish(topic.as_bytes(), 1, 7, "21 °C".as_bytes());
            assert!(matches!(client.hear(PATIENCE), Heard::Packet(0x40, _)));
            assert_eq!(bystanders.are_well_after(topic), [topic]);
        }
    }
    assert_eq!(gateway.has_ended(), None);
}

/// A topic that must not be is never acknowledged as if it were: the connection ends, or version 5 names a reason.
#[track_caller]
fn expect_refusal(hostile: &mut RawClient, version: Version, topic: &[u8], what: &str) {
    match hostile.hear(PATIENCE) {
        Heard::Closed => {}
        // Version 3.1.1 has no word for "not authorised" here, and allows this or closing (MQTT 3.1.1, 3.3.5).
        Heard::Packet(0x40 | 0x50, _) if version == Version::V311 && topic.starts_with(b"$") => {}
        Heard::Packet(0xe0, body) if version == Version::V5 => {
            let reason = *body.first().unwrap_or(&0);
            assert!(reason >= 0x80, "{what}: DISCONNECT {reason:#x}");
            assert_eq!(hostile.hear(PATIENCE), Heard::Closed, "{what}");
        }
        Heard::Packet(0x40 | 0x50, body) if version == Version::V5 => {
            let reason = *body.get(2).unwrap_or(&0);
            assert!(reason >= 0x80, "{what}: acknowledged with {reason:#x}");
        }
        other => panic!("{what} was answered by {other:?}"),
    }
}

#[test]
fn a_client_that_breaks_the_protocol_is_disconnected_and_disturbs_nobody() {
    let _turn = turn();
    let folder = folder();
    let mut gateway = gateway(folder.path());
    let mut bystanders = Bystanders::of(&gateway);
    let cases: [(&str, Vec<u8>); 9] = [
        ("a second CONNECT", packet(0x10, b"\0\x04MQTT\x04\x02\0\x3c\0\x01x")),
        ("a packet of type 0", packet(0x00, b"")),
        ("QoS 3", packet(0x36, b"\0\x01a\0\x01x")),
        ("SUBSCRIBE without a filter", packet(0x82, b"\0\x01")),
        ("SUBSCRIBE with wrong flags", packet(0x80, b"\0\x01\0\x01a\0")),
        ("packet id 0", packet(0x32, b"\0\x01a\0\0x")),
        ("a topic longer than the packet", packet(0x30, b"\xff\xffa")),
        ("a length of five bytes", b"\x30\xff\xff\xff\xff\x01".to_vec()),
        ("CONNACK from a client", packet(0x20, b"\0\0")),
    ];
    for (what, bytes) in cases {
        let mut hostile = RawClient::connected(gateway.port, Version::V311, "hostile");
        hostile.send(&bytes);
        assert_eq!(bystanders.are_well_after(what), Vec::<String>::new(), "{what}");
        assert_eq!(hostile.hear(PATIENCE), Heard::Closed, "{what}");
    }
    // A length of 256 MB that never comes must not be taken at its word.
    let mut liars: Vec<RawClient> =
        (0..20).map(|number| RawClient::connected(gateway.port, Version::V5, &format!("liar-{number}"))).collect();
    for liar in &mut liars {
        liar.send(b"\x30\xff\xff\xff\x7f\0\x01a");
    }
    bystanders.are_well_after("20 lengths of 256 MB");
    let resident = resident_kib(gateway.id());
    assert!(resident < 200 * 1024, "{resident} KiB after 20 lengths of 256 MB");
    assert_eq!(gateway.has_ended(), None);
}

/// Whether `./test.sh --torture` asks: the same with more of it, and with figures that a person reads.
fn is_long() -> bool {
    std::env::var_os("TIDEGATE_TORTURE_MINUTES").is_some()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
