//! Does rumqttc, the client of most Rust programs, work with the broker? Both versions, every QoS, both ways, retained
//! messages, wills, and sessions that go on after the connection was cut.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod broker_support;

use broker_support::*;
use rumqttc::v5;
use tidegate::mqtt::Version;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What rumqttc tells of either version.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// Session Present.
    Connected(bool),
    /// Granted QoS of the first filter.
    Subscribed(u8),
    /// PUBACK or PUBCOMP.
    Taken,
    Message {
        topic: String,
        qos: u8,
        retain: bool,
        text: String,
    },
}

enum Handle {
    Old(rumqttc::AsyncClient),
    Modern(v5::AsyncClient),
}

/// One client; its event loop is a task, because rumqttc does nothing without it.
struct Peer {
    handle: Handle,
    told: mpsc::UnboundedReceiver<Told>,
    task: JoinSet<()>,
}

/// How a client enters.
#[derive(Default)]
struct Entry<'a> {
    name: &'a str,
    /// The session outlives the connection.
    keeps: bool,
    /// Topic of its will, at QoS 1, retained.
    will: Option<&'a str>,
}

impl Peer {
    async fn connected(gateway: &Gateway, version: Version, entry: Entry<'_>) -> (Peer, bool) {
        let port = gateway.address.port();
        #[expect(clippy::disallowed_methods, reason = "what comes is read at once, and is little")]
        let (tell, told) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        let handle = match version {
            Version::V311 => {
                let mut options = rumqttc::MqttOptions::new(entry.name, "127.0.0.1", port);
                options.set_clean_session(!entry.keeps);
                if let Some(topic) = entry.will {
                    options.set_last_will(rumqttc::LastWill::new(topic, "gone", rumqttc::QoS::AtLeastOnce, true));
                }
                let (client, mut events) = rumqttc::AsyncClient::new(options, 100);
                task.spawn(async move {
                    while let Ok(event) = events.poll().await {
                        if let rumqttc::Event::Incoming(packet) = event {
                            old(packet).map(|told| tell.send(told));
                        }
                    }
                });
                Handle::Old(client)
            }
            Version::V5 => {
                let mut options = v5::MqttOptions::new(entry.name, "127.0.0.1", port);
                options.set_clean_start(!entry.keeps);
                options.set_session_expiry_interval(entry.keeps.then_some(3600));
                if let Some(topic) = entry.will {
                    let qos = v5::mqttbytes::QoS::AtLeastOnce;
                    options.set_last_will(v5::mqttbytes::v5::LastWill::new(topic, "gone", qos, true, None));
                }
                let (client, mut events) = v5::AsyncClient::new(options, 100);
                task.spawn(async move {
                    while let Ok(event) = events.poll().await {
                        if let v5::Event::Incoming(packet) = event {
                            modern(packet).map(|told| tell.send(told));
                        }
                    }
                });
                Handle::Modern(client)
            }
        };
        let mut peer = Peer { handle, told, task };
        match peer.next().await {
            Told::Connected(is_present) => (peer, is_present),
            other => panic!("{other:?} instead of CONNACK"),
        }
    }

    async fn next(&mut self) -> Told {
        timeout(PATIENCE, self.told.recv()).await.expect("rumqttc tells nothing").expect("rumqttc has given up")
    }

    async fn subscribe(&mut self, filter: &str, qos: u8) {
        match &self.handle {
            Handle::Old(client) => client.subscribe(filter, rumqttc::qos(qos).unwrap()).await.unwrap(),
            Handle::Modern(client) => client.subscribe(filter, v5::mqttbytes::qos(qos).unwrap()).await.unwrap(),
        }
        assert_eq!(self.next().await, Told::Subscribed(qos));
    }

    /// Publishes, and waits for the end of the handshake.
    async fn publish(&mut self, topic: &str, qos: u8, retain: bool, text: &str) {
        match &self.handle {
            Handle::Old(client) => client.publish(topic, rumqttc::qos(qos).unwrap(), retain, text).await.unwrap(),
            Handle::Modern(client) => {
                let qos = v5::mqttbytes::qos(qos).unwrap();
                client.publish(topic, qos, retain, text.to_owned()).await.unwrap();
            }
        }
        if qos > 0 {
            assert_eq!(self.next().await, Told::Taken);
        }
    }

    async fn hears(&mut self, topic: &str, qos: u8, retain: bool, text: &str) {
        let message = Told::Message { topic: topic.to_owned(), qos, retain, text: text.to_owned() };
        assert_eq!(self.next().await, message);
    }

    /// Its process is gone: no goodbye.
    async fn dies(mut self) {
        self.task.shutdown().await;
    }

    async fn leaves(mut self) {
        match &self.handle {
            Handle::Old(client) => client.disconnect().await.unwrap(),
            Handle::Modern(client) => client.disconnect().await.unwrap(),
        }
        timeout(PATIENCE, self.task.join_next()).await.expect("rumqttc does not end").unwrap().unwrap();
    }
}

fn old(packet: rumqttc::Packet) -> Option<Told> {
    use rumqttc::{Packet, SubscribeReasonCode};
    Some(match packet {
        Packet::ConnAck(connack) => Told::Connected(connack.session_present),
        Packet::SubAck(suback) => match suback.return_codes[0] {
            SubscribeReasonCode::Success(qos) => Told::Subscribed(qos as u8),
            SubscribeReasonCode::Failure => panic!("SUBSCRIBE was refused"),
        },
        Packet::PubAck(_) | Packet::PubComp(_) => Told::Taken,
        Packet::Publish(publish) => Told::Message {
            topic: publish.topic,
            qos: publish.qos as u8,
            retain: publish.retain,
            text: String::from_utf8(publish.payload.to_vec()).unwrap(),
        },
        _ => return None,
    })
}

fn modern(packet: v5::mqttbytes::v5::Packet) -> Option<Told> {
    use v5::mqttbytes::v5::{Packet, SubscribeReasonCode};
    Some(match packet {
        Packet::ConnAck(connack) => Told::Connected(connack.session_present),
        Packet::SubAck(suback) => match suback.return_codes[0] {
            SubscribeReasonCode::Success(qos) => Told::Subscribed(qos as u8),
            other => panic!("SUBSCRIBE was refused: {other:?}"),
        },
        Packet::PubAck(_) | Packet::PubComp(_) => Told::Taken,
        Packet::Publish(publish) => Told::Message {
            topic: String::from_utf8(publish.topic.to_vec()).unwrap(),
            qos: publish.qos as u8,
            retain: publish.retain,
            text: String::from_utf8(publish.payload.to_vec()).unwrap(),
        },
        _ => return None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rumqttc_exchanges_messages_at_every_qos_and_in_both_versions() {
    let gateway = Gateway::start_with(Options { forward: vec![rule("plant/#", None)], ..Options::default() }).await;
    for reading in VERSIONS {
        for granted in 0..=2 {
            let (mut reader, _) =
                Peer::connected(&gateway, reading, Entry { name: "reader", ..Entry::default() }).await;
            reader.subscribe("plant/+", granted).await;
            for writing in VERSIONS {
                let (mut writer, _) =
                    Peer::connected(&gateway, writing, Entry { name: "writer", ..Entry::default() }).await;
                for qos in 0..=2 {
                    writer.publish("plant/温度", qos, false, "21.5").await;
                    reader.hears("plant/温度", qos.min(granted), false, "21.5").await;
                }
                writer.leaves().await;
            }
            reader.leaves().await;
        }
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rumqttc_gets_retained_messages_and_wills() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        let (mut writer, _) = Peer::connected(&gateway, version, Entry { name: "writer", ..Entry::default() }).await;
        writer.publish("state/a", 1, true, "on").await;
        let (mut reader, _) = Peer::connected(&gateway, version, Entry { name: "reader", ..Entry::default() }).await;
        reader.subscribe("state/#", 1).await;
        reader.hears("state/a", 1, true, "on").await;
        let with_will = |name| Entry { name, will: Some("state/will"), ..Entry::default() };
        let (polite, _) = Peer::connected(&gateway, version, with_will("polite")).await;
        polite.leaves().await;
        let (doomed, _) = Peer::connected(&gateway, version, with_will("doomed")).await;
        doomed.dies().await;
        reader.hears("state/will", 1, false, "gone").await;
        let (mut late, _) = Peer::connected(&gateway, version, Entry { name: "late", ..Entry::default() }).await;
        late.subscribe("state/will", 1).await;
        late.hears("state/will", 1, true, "gone").await;
        for topic in ["state/a", "state/will"] {
            writer.publish(topic, 1, true, "").await;
        }
        late.leaves().await;
        reader.leaves().await;
        writer.leaves().await;
    }
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rumqttc_goes_on_with_its_session_after_its_process_died() {
    let gateway = Gateway::start().await;
    for version in VERSIONS {
        let name = format!("kept-{version:?}");
        let entry = || Entry { name: &name, keeps: true, ..Entry::default() };
        let (mut reader, is_present) = Peer::connected(&gateway, version, entry()).await;
        assert!(!is_present);
        reader.subscribe(&format!("{name}/#"), 2).await;
        let (mut writer, _) = Peer::connected(&gateway, version, Entry { name: "writer", ..Entry::default() }).await;
        writer.publish(&format!("{name}/1"), 1, false, "heard").await;
        reader.hears(&format!("{name}/1"), 1, false, "heard").await;
        // rumqttc tells of a message before its PUBACK is written.
        until("it was not acknowledged", || gateway.session_counter("waiting") == 0).await;
        reader.dies().await;
        until("not noticed", || gateway.session_counter("connected") == 1).await;
        for qos in 0..=2 {
            writer.publish(&format!("{name}/2"), qos, false, &format!("missed {qos}")).await;
        }
        let (mut reader, is_present) = Peer::connected(&gateway, version, entry()).await;
        assert!(is_present);
        for qos in 1..=2 {
            reader.hears(&format!("{name}/2"), qos, false, &format!("missed {qos}")).await;
        }
        writer.publish(&format!("{name}/3"), 1, false, "again").await;
        reader.hears(&format!("{name}/3"), 1, false, "again").await;
        reader.leaves().await;
        writer.leaves().await;
    }
    gateway.ended().await;
}
