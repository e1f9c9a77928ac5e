//! Random valid packets of every type, version and sender, from a seed that is printed.

use std::num::NonZeroU16;

use bytes::Bytes;
use tidegate::message::{Filter, Properties, Qos, Topic};
use tidegate::mqtt::{
    Ack, Auth, Connack, Connect, Direction, Disconnect, Packet, PacketId, Publish, ReasonCode, Suback, Subscribe,
    Subscription, Unsuback, Unsubscribe, Version, Will,
};

/// A small generator of numbers (splitmix64): no dependency, and the same on every machine for one seed.
pub struct Random(u64);

impl Random {
    /// From `TIDEGATE_SEED`, else from the system; printed, so that a failure can be run again.
    pub fn announced(test: &str) -> Random {
        let seed = match std::env::var("TIDEGATE_SEED") {
            Ok(seed) => seed.parse().expect("TIDEGATE_SEED is a number"),
            Err(_) => getrandom::u64().expect("the system has random bytes"),
        };
        eprintln!("{test}: TIDEGATE_SEED={seed}");
        Random(seed)
    }

    pub fn from_seed(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn flag(&mut self) -> bool {
        self.one_in(2)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
        self.flag().then(|| make(self))
    }

    /// Mostly short, at times empty, now and then as long as a field can be.
    fn length(&mut self) -> usize {
        match self.below(200) {
            0 => 65_535,
            1..20 => self.below(400),
            20..40 => 0,
            _ => 1 + self.below(12),
        }
    }

    pub fn text(&mut self) -> String {
        const LETTERS: [char; 16] =
            ['a', 'b', 'Z', '0', ' ', '/', '+', '#', '$', 'é', '温', '\u{FEFF}', '\u{1}', '\u{7F}', '🙂', '\u{FFFF}'];
        let bytes = self.length();
        let mut text = String::new();
        while text.len() < bytes {
            let letter = self.pick(&LETTERS);
            if text.len() + letter.len_utf8() > bytes {
                text.push('a');
            } else {
                text.push(letter);
            }
        }
        text
    }

    pub fn binary(&mut self) -> Bytes {
        let bytes = self.length();
        (0..bytes).map(|_| self.byte()).collect()
    }

    fn level(&mut self) -> &'static str {
        self.pick(&["", "a", "b", "plant", "温度", "$SYS", "$share", "x y", "\u{1}"])
    }

    pub fn topic(&mut self) -> Topic {
        if self.one_in(300) {
            return Topic::new(&"t".repeat(65_535)).unwrap();
        }
        loop {
            let levels: Vec<&str> = (0..1 + self.below(4)).map(|_| self.level()).collect();
            if let Ok(topic) = Topic::new(&levels.join("/")) {
                return topic;
            }
        }
    }

    pub fn filter(&mut self) -> Filter {
        loop {
            let mut levels: Vec<&str> = (0..1 + self.below(4)).map(|_| self.level()).collect();
            if self.one_in(3) {
                let place = self.below(levels.len());
                levels[place] = "+";
            }
            if self.one_in(3) {
                levels.push("#");
            }
            let share = if self.one_in(4) { "$share/group/" } else { "" };
            if let Ok(filter) = Filter::new(&format!("{share}{}", levels.join("/"))) {
                return filter;
            }
        }
    }

    fn packet_id(&mut self) -> PacketId {
        PacketId::new(self.next() as u16).unwrap_or(PacketId::MAX)
    }

    fn qos(&mut self) -> Qos {
        self.pick(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce])
    }

    fn number(&mut self) -> u32 {
        let number = self.next() as u32;
        self.pick(&[0, 1, 127, 128, u32::MAX, number])
    }

    fn positive(&mut self) -> NonZeroU16 {
        NonZeroU16::new(self.number() as u16).unwrap_or(NonZeroU16::MIN)
    }

    fn user(&mut self) -> Vec<(String, String)> {
        if self.flag() {
            return Vec::new();
        }
        (0..self.below(5)).map(|_| (self.text(), self.text())).collect()
    }

    fn properties(&mut self) -> Properties {
        Properties {
            is_utf8: self.flag(),
            expiry_s: self.maybe(Random::number),
            content_type: self.maybe(Random::text),
            response_topic: self.maybe(Random::topic),
            correlation_data: self.maybe(Random::binary),
            user: self.user(),
        }
    }

    fn subscription_id(&mut self) -> u32 {
        self.pick(&[1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455])
    }

    /// A valid packet that `sender` may send.
    pub fn packet(&mut self, version: Version, sender: Direction) -> Packet {
        let is_v5 = version == Version::V5;
        let from_client = sender == Direction::FromClient;
        loop {
            return match self.below(24) {
                0..6 => Packet::Publish(self.publish(version, sender)),
                6 => Packet::Puback(self.ack(is_v5, &publish_codes(from_client))),
                7 => Packet::Pubrec(self.ack(is_v5, &publish_codes(from_client))),
                8 => Packet::Pubrel(self.ack(is_v5, &[0x00, 0x92])),
                9 => Packet::Pubcomp(self.ack(is_v5, &[0x00, 0x92])),
                10..13 if from_client => Packet::Subscribe(self.subscribe(is_v5)),
                13 | 14 if from_client => Packet::Unsubscribe(Unsubscribe {
                    packet_id: self.packet_id(),
                    filters: (0..1 + self.below(4)).map(|_| self.filter()).collect(),
                }),
                15 if from_client => Packet::Pingreq,
                10..13 => Packet::Suback(self.suback(is_v5)),
                13 | 14 => Packet::Unsuback(self.unsuback(is_v5)),
                15 => Packet::Pingresp,
                16 | 17 if is_v5 || from_client => Packet::Disconnect(self.disconnect(is_v5, from_client)),
                18 | 19 if is_v5 => Packet::Auth(self.auth(from_client)),
                20..24 if from_client => Packet::Connect(Box::new(self.connect(version))),
                20..24 => Packet::Connack(Box::new(self.connack(is_v5))),
                _ => continue,
            };
        }
    }

    fn publish(&mut self, version: Version, sender: Direction) -> Publish {
        let is_v5 = version == Version::V5;
        let qos = self.qos();
        let has_id = qos != Qos::AtMostOnce;
        let topic_alias = if is_v5 && self.one_in(3) { Some(self.positive()) } else { None };
        let is_alias_alone = topic_alias.is_some() && self.flag();
        let from_server = sender == Direction::FromServer;
        Publish {
            dup: has_id && self.flag(),
            retain: self.flag(),
            qos,
            packet_id: has_id.then(|| self.packet_id()),
            topic: (!is_alias_alone).then(|| self.topic()),
            payload: self.binary(),
            properties: if is_v5 && self.flag() { self.properties() } else { Properties::default() },
            topic_alias,
            subscription_id: if is_v5 && from_server { self.maybe(Random::subscription_id) } else { None },
        }
    }

    fn ack(&mut self, is_v5: bool, codes: &[u8]) -> Ack {
        let mut ack = Ack::new(self.packet_id(), ReasonCode::SUCCESS);
        if is_v5 && self.flag() {
            ack.reason = ReasonCode(self.pick(codes));
            ack.reason_string = self.maybe(Random::text);
        }
        ack
    }

    fn subscribe(&mut self, is_v5: bool) -> Subscribe {
        let subscriptions = (0..1 + self.below(4)).map(|_| {
            let filter = self.filter();
            let is_shared = filter.share_group().is_some();
            Subscription {
                filter,
                qos: self.qos(),
                no_local: is_v5 && !is_shared && self.flag(),
                retain_as_published: is_v5 && self.flag(),
                retain_handling: if is_v5 { self.below(3) as u8 } else { 0 },
            }
        });
        let subscriptions = subscriptions.collect();
        let subscription_id = if is_v5 { self.maybe(Random::subscription_id) } else { None };
        Subscribe { packet_id: self.packet_id(), subscriptions, subscription_id }
    }

    fn suback(&mut self, is_v5: bool) -> Suback {
        const V5: [u8; 12] = [0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2];
        let codes: &[u8] = if is_v5 { &V5 } else { &[0, 1, 2, 0x80] };
        let reasons = (0..1 + self.below(6)).map(|_| ReasonCode(self.pick(codes))).collect();
        Suback { packet_id: self.packet_id(), reasons }
    }

    fn unsuback(&mut self, is_v5: bool) -> Unsuback {
        let count = if is_v5 { 1 + self.below(6) } else { 0 };
        let codes = [0, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91];
        let reasons = (0..count).map(|_| ReasonCode(self.pick(&codes))).collect();
        Unsuback { packet_id: self.packet_id(), reasons }
    }

    fn disconnect(&mut self, is_v5: bool, from_client: bool) -> Disconnect {
        let mut disconnect = Disconnect::new(ReasonCode::SUCCESS);
        if is_v5 && self.flag() {
            let both = [0x00, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99];
            let server = [0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2];
            let client = [0x04];
            let own: &[u8] = if from_client { &client } else { &server };
            disconnect.reason = ReasonCode(if self.flag() { self.pick(&both) } else { self.pick(own) });
            disconnect.reason_string = self.maybe(Random::text);
            if from_client {
                disconnect.session_expiry_s = self.maybe(Random::number);
            } else {
                disconnect.server_reference = self.maybe(Random::text);
            }
        }
        disconnect
    }

    fn auth(&mut self, from_client: bool) -> Auth {
        if !from_client && self.one_in(4) {
            return Auth { reason: ReasonCode::SUCCESS, method: None, data: None, reason_string: None };
        }
        let reason = ReasonCode(self.pick(if from_client { &[0x18, 0x19] } else { &[0x00, 0x18] }));
        let method = Some(self.text());
        Auth { reason, method, data: self.maybe(Random::binary), reason_string: self.maybe(Random::text) }
    }

    fn connect(&mut self, version: Version) -> Connect {
        let is_v5 = version == Version::V5;
        let client_id = self.text();
        let username = self.maybe(Random::text);
        let has_password = (is_v5 || username.is_some()) && self.flag();
        let mut connect = Connect {
            clean_start: (!is_v5 && client_id.is_empty()) || self.flag(),
            keep_alive_s: self.number() as u16,
            will: self.maybe(|random| random.will(is_v5)),
            username,
            password: has_password.then(|| self.binary()),
            ..Connect::new(version, client_id)
        };
        if is_v5 && self.flag() {
            connect.session_expiry_s = self.maybe(Random::number);
            connect.receive_max = self.maybe(Random::positive);
            connect.packet_bytes_max = self.maybe(|random| random.number().max(1));
            connect.topic_alias_max = self.number() as u16;
            connect.request_response_information = self.flag();
            connect.request_problem_information = self.flag();
            connect.user = self.user();
            connect.auth_method = self.maybe(Random::text);
            connect.auth_data = if connect.auth_method.is_some() { self.maybe(Random::binary) } else { None };
        }
        connect
    }

    fn will(&mut self, is_v5: bool) -> Will {
        let mut will = Will {
            topic: self.topic(),
            payload: self.binary(),
            qos: self.qos(),
            retain: self.flag(),
            delay_s: if is_v5 { self.number() } else { 0 },
            properties: if is_v5 && self.flag() { self.properties() } else { Properties::default() },
        };
        if will.properties.is_utf8 {
            will.payload = Bytes::from(self.text());
        }
        will
    }

    fn connack(&mut self, is_v5: bool) -> Connack {
        const V5: [u8; 22] = [
            0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A,
            0x9B, 0x9C, 0x9D, 0x9F,
        ];
        let codes: &[u8] = if is_v5 { &V5 } else { &[0x00, 0x84, 0x85, 0x88, 0x86, 0x87] };
        let reason = ReasonCode(if self.flag() { 0 } else { self.pick(codes) });
        let mut connack = Connack::new(reason);
        connack.session_present = reason == ReasonCode::SUCCESS && self.flag();
        if is_v5 && self.flag() {
            connack.session_expiry_s = self.maybe(Random::number);
            connack.receive_max = self.maybe(Random::positive);
            connack.qos_max = self.maybe(|random| random.pick(&[Qos::AtMostOnce, Qos::AtLeastOnce]));
            connack.retain_available = self.flag();
            connack.packet_bytes_max = self.maybe(|random| random.number().max(1));
            connack.assigned_client_id = self.maybe(Random::text);
            connack.topic_alias_max = self.number() as u16;
            connack.reason_string = self.maybe(Random::text);
            connack.user = self.user();
            connack.wildcard_available = self.flag();
            connack.subscription_ids_available = self.flag();
            connack.shared_available = self.flag();
            connack.server_keep_alive_s = self.maybe(|random| random.number() as u16);
            connack.response_information = self.maybe(Random::text);
            connack.server_reference = self.maybe(Random::text);
            connack.auth_method = self.maybe(Random::text);
            connack.auth_data = if connack.auth_method.is_some() { self.maybe(Random::binary) } else { None };
        }
        connack
    }
}

fn publish_codes(from_client: bool) -> Vec<u8> {
    let mut codes = vec![0x00, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    if !from_client {
        codes.push(0x10);
    }
    codes
}
