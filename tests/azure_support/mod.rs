//! A stand-in for Azure IoT Hub and its provisioning service, by their documents: fixed topics, signatures and certificates,
//! one connection a device, no QoS 2, no retained messages, throttling by late acknowledgements and by ended connections. It
//! notes whatever a client does that the hub would not take.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tidegate::clock::{Clock, ClockSource};
use tidegate::message::{Properties, Qos, Topic};
use tidegate::mqtt::{Ack, Connack, Connect, Packet, PacketId, Publish, ReasonCode, Suback};
use tidegate::transport::sas;
use tokio::time::Instant;

use super::scripted::{Act, Peer, Script};

/// The service's id scope.
pub const ID_SCOPE: &str = "0ne00123ABC";

/// What the provisioning service makes of a question; when the list is empty it assigns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Not decided; look again after so many seconds.
    Assigning(u64),
    /// A status, an error code and words.
    Status(u16, i64, &'static str),
    /// 429, and again after so many seconds.
    Throttled(u64),
    /// A registration that fails.
    Failed(i64, &'static str),
    /// It does it, and the connection ends before it has said so.
    AssignsAndCloses,
    /// It does nothing and says nothing.
    Silent,
    Closes,
    Nonsense,
}

/// What it goes by, and what it has seen.
#[derive(Default)]
pub struct Azure {
    /// Keys of devices, in base64; of none, certificates decide.
    pub keys: BTreeMap<String, String>,
    /// The certificate of the one device that has one.
    pub certificate: Option<CertificateDer<'static>>,
    pub turns: Vec<Turn>,
    /// Hub and device that are given.
    pub assigns: (String, String),
    /// CONNECT to a hub of this name is refused so.
    pub refuses: BTreeMap<String, ReasonCode>,
    /// Nobody is let in, and who is in is thrown out.
    pub is_away: bool,
    /// Acknowledgements a second, and so many messages may wait for theirs; one more ends the connection.
    pub acks_per_s: Option<f64>,
    pub waiting_max: usize,
    /// Every PUBLISH ends the connection: the day's quota is used up.
    pub is_quota_used: bool,
    /// Said to the devices that are connected.
    pub say: Vec<(String, String)>,

    pub connects: Vec<Connect>,
    pub subscribed: Vec<(String, Qos)>,
    /// Topic, payload and QoS of what the service was asked.
    pub asked: Vec<(String, String, Qos)>,
    /// Registration ids that were given a device.
    pub registered: BTreeSet<String>,
    pub got: Vec<Publish>,
    pub violations: Vec<String>,
    /// Connections that ended because their signature did.
    pub expired: usize,
    pub throttled: usize,
    pub unacked_max: usize,
    devices: BTreeMap<usize, Device>,
    introduced: BTreeSet<usize>,
    /// Devices with a session, and how many subscriptions it has.
    sessions: BTreeMap<String, usize>,
    next_ack: Option<Instant>,
    next_id: u16,
}

#[derive(Debug, Clone)]
struct Device {
    name: String,
    is_service: bool,
    expires_s: Option<i64>,
    /// When each of its messages is acknowledged.
    due: Vec<Instant>,
    filters: usize,
}

fn now_s() -> i64 {
    Clock::new(ClockSource::Trusted).now().wall_ms / 1000
}

fn connack(reason: ReasonCode, session_present: bool) -> Act {
    let mut connack = Connack::new(reason);
    connack.session_present = session_present;
    Act::Say(Packet::Connack(Box::new(connack)))
}

impl Azure {
    /// The numbers that came as telemetry, in order.
    pub fn numbers(&self) -> Vec<u64> {
        let ours = self.got.iter().filter(|publish| publish.topic.as_ref().unwrap().as_str().contains("topic=plant"));
        ours.filter_map(|publish| std::str::from_utf8(&publish.payload).ok()?.trim().parse().ok()).collect()
    }

    /// The ids that messages of a number bore.
    pub fn ids_of(&self, number: u64) -> BTreeSet<String> {
        let ours = self.got.iter().filter(|publish| *publish.payload == *number.to_string().as_bytes());
        let id = |publish: &Publish| {
            let topic = publish.topic.as_ref().unwrap().as_str();
            topic.split("%24.mid=").nth(1).unwrap().split('&').next().unwrap().to_owned()
        };
        ours.map(id).collect()
    }

    fn connect(&mut self, peer: &Peer, connect: Connect) -> Vec<Act> {
        self.connects.push(connect.clone());
        self.introduced.insert(peer.number);
        if self.is_away {
            return vec![Act::Close];
        }
        let username = connect.username.clone().unwrap_or_default();
        if connect.keep_alive_s > 1177 || connect.keep_alive_s == 0 {
            self.violations.push(format!("a keep-alive of {} s", connect.keep_alive_s));
        }
        let is_service = username.starts_with(&format!("{ID_SCOPE}/registrations/"));
        let (wanted, resource) = match is_service {
            true => {
                let resource = format!("{ID_SCOPE}/registrations/{}", connect.client_id);
                (format!("{resource}/api-version=2019-03-31"), resource)
            }
            false => {
                let host = username.split('/').next().unwrap_or_default();
                if let Some(reason) = self.refuses.get(host) {
                    return vec![connack(*reason, false), Act::Close];
                }
                let resource = format!("{host}/devices/{}", connect.client_id);
                (format!("{host}/{}/?api-version=2021-04-12", connect.client_id), resource)
            }
        };
        // Azure's own library adds what it is to the user name.
        let is_named = username == wanted || username.starts_with(&format!("{wanted}&"));
        let (is_known, expires_s) = self.is_known(peer, &connect, &resource, is_service);
        if !is_named || !is_known {
            return vec![connack(ReasonCode::NOT_AUTHORIZED, false), Act::Close];
        }
        if let Some(will) = &connect.will
            && (!will.topic.as_str().starts_with(&format!("devices/{}/messages/events/", connect.client_id))
                || will.retain
                || will.qos == Qos::ExactlyOnce)
        {
            self.violations.push(format!("the will {will:?}"));
        }
        // One connection a device: the newer one throws the older out.
        self.devices.retain(|_, other| other.name != connect.client_id || other.is_service != is_service);
        if connect.clean_start {
            self.sessions.remove(&connect.client_id);
        }
        let kept = self.sessions.get(&connect.client_id).copied();
        if !connect.clean_start && kept.is_none() {
            self.sessions.insert(connect.client_id.clone(), 0);
        }
        let (name, due, filters) = (connect.client_id.clone(), Vec::new(), kept.unwrap_or(0));
        self.devices.insert(peer.number, Device { name, is_service, expires_s, due, filters });
        vec![connack(ReasonCode::SUCCESS, kept.is_some())]
    }

    fn is_known(&self, peer: &Peer, connect: &Connect, resource: &str, is_service: bool) -> (bool, Option<i64>) {
        let Some(key) = self.keys.get(&connect.client_id) else {
            let is_known = self.certificate.is_some() && peer.certificate == self.certificate;
            return (is_known && connect.password.is_none(), None);
        };
        let token = String::from_utf8(connect.password.clone().unwrap_or_default().to_vec()).unwrap();
        let expires = token.split("&se=").nth(1).and_then(|rest| rest.split('&').next()?.parse::<i64>().ok());
        let Some(expires_s) = expires else { return (false, None) };
        // The service's page asks for the policy's name, and Azure's own library for Python leaves it out.
        let bare = if is_service { token.trim_end_matches("&skn=registration") } else { &token };
        let ours = sas::token(resource, key.as_bytes(), expires_s).unwrap();
        (ours == bare && expires_s > now_s(), Some(expires_s))
    }

    fn publish(&mut self, peer: &Peer, publish: Publish) -> Vec<Act> {
        let Some(device) = self.devices.get(&peer.number).cloned() else { return vec![Act::Close] };
        let topic = publish.topic.as_ref().unwrap().as_str().to_owned();
        let puback = publish.packet_id.map(|id| Packet::Puback(Ack::new(id, ReasonCode::SUCCESS)));
        if device.is_service {
            let text = String::from_utf8(publish.payload.to_vec()).unwrap();
            self.asked.push((topic.clone(), text.clone(), publish.qos));
            return self.service(&device.name, &topic, &text, puback);
        }
        let own = format!("devices/{}/messages/events/", device.name);
        let is_known =
            topic.starts_with(&own) || topic.starts_with("$iothub/methods/res/") || topic.starts_with("$iothub/twin/");
        if !is_known || publish.qos == Qos::ExactlyOnce || publish.retain || publish.payload.len() > 256 * 1024 {
            self.violations.push(format!("{topic} at {:?}, retain {}", publish.qos, publish.retain));
            return vec![Act::Close];
        }
        if self.is_quota_used && topic.starts_with(&own) {
            self.throttled += 1;
            return vec![Act::Close];
        }
        let Some(puback) = puback else {
            self.got.push(publish);
            return Vec::new();
        };
        let now = Instant::now();
        let when = match self.acks_per_s {
            None => now,
            Some(rate) => self.next_ack.unwrap_or(now).max(now) + Duration::from_secs_f64(1.0 / rate),
        };
        let due = &mut self.devices.get_mut(&peer.number).unwrap().due;
        due.retain(|when| *when > now);
        due.push(when);
        let waiting = due.len();
        self.unacked_max = self.unacked_max.max(waiting);
        if self.acks_per_s.is_some() && waiting > self.waiting_max {
            self.throttled += 1;
            return vec![Act::Close];
        }
        self.next_ack = Some(when);
        self.got.push(publish);
        vec![Act::Later(when, puback)]
    }

    fn service(&mut self, name: &str, topic: &str, text: &str, puback: Option<Packet>) -> Vec<Act> {
        let (path, query) = topic.split_once("/?").unwrap();
        let rid = query.split('&').find_map(|pair| pair.strip_prefix("$rid=")).unwrap();
        let is_register = path == "$dps/registrations/PUT/iotdps-register";
        if is_register {
            let body: Value = serde_json::from_str(text).unwrap();
            assert_eq!(body["registrationId"], name, "as whom it has logged in");
        } else {
            assert_eq!(path, "$dps/registrations/GET/iotdps-get-operationstatus");
            assert!(query.ends_with("&operationId=4.op"), "{query}");
        }
        let mut acts: Vec<Act> = puback.into_iter().map(Act::Say).collect();
        let (hub, device) = self.assigns.clone();
        let turn = if self.turns.is_empty() { None } else { Some(self.turns.remove(0)) };
        let (status, query, body) = match turn {
            Some(Turn::Silent) => return acts,
            Some(Turn::Closes) => return vec![Act::Close],
            Some(Turn::AssignsAndCloses) => {
                self.registered.insert(name.to_owned());
                return vec![Act::Close];
            }
            Some(Turn::Assigning(after)) => {
                (202, format!("&retry-after={after}"), json!({"operationId": "4.op", "status": "assigning"}))
            }
            Some(Turn::Throttled(after)) => (429, format!("&retry-after={after}"), json!({"errorCode": 429_001})),
            Some(Turn::Status(status, code, text)) => {
                (status, String::new(), json!({"errorCode": code, "message": text, "trackingId": "t"}))
            }
            Some(Turn::Failed(code, text)) => {
                let state = json!({"status": "failed", "errorCode": code, "errorMessage": text});
                (200, String::new(), json!({"operationId": "4.op", "status": "failed", "registrationState": state}))
            }
            Some(Turn::Nonsense) => (200, String::new(), json!({"status": "assigned", "registrationState": {}})),
            None => {
                self.registered.insert(name.to_owned());
                let state = json!({
                    "registrationId": name, "assignedHub": hub, "deviceId": device, "status": "assigned",
                    "substatus": "initialAssignment",
                });
                (200, String::new(), json!({"operationId": "4.op", "status": "assigned", "registrationState": state}))
            }
        };
        let topic = format!("$dps/registrations/res/{status}/?$rid={rid}{query}");
        acts.push(self.message(&topic, body.to_string()));
        acts
    }

    fn message(&mut self, topic: &str, payload: String) -> Act {
        self.next_id = self.next_id % 1000 + 1;
        Act::Say(Packet::Publish(Publish {
            dup: false,
            retain: false,
            qos: Qos::AtLeastOnce,
            packet_id: PacketId::new(self.next_id),
            topic: Some(Topic::new(topic).unwrap()),
            payload: payload.into(),
            properties: Properties::default(),
            topic_alias: None,
            subscription_id: None,
        }))
    }
}

impl Script for Azure {
    fn handle(&mut self, peer: &Peer, packet: Packet) -> Vec<Act> {
        match packet {
            Packet::Connect(connect) => self.connect(peer, *connect),
            Packet::Subscribe(subscribe) => {
                let Some(device) = self.devices.get_mut(&peer.number) else { return vec![Act::Close] };
                let is_known = |filter: &str| match device.is_service {
                    true => filter == "$dps/registrations/res/#",
                    false => {
                        filter.starts_with("$iothub/methods/POST/")
                            || filter.starts_with("$iothub/twin/")
                            || filter == format!("devices/{}/messages/devicebound/#", device.name)
                    }
                };
                let filters: Vec<_> = subscribe.subscriptions.iter().map(|one| one.filter.as_str()).collect();
                device.filters += filters.len();
                if let Some(kept) = self.sessions.get_mut(&device.name) {
                    *kept = device.filters;
                }
                if device.filters > 5 || filters.iter().any(|filter| !is_known(filter)) {
                    self.violations.push(format!("the subscriptions {filters:?}"));
                    return vec![Act::Close];
                }
                let filters = subscribe.subscriptions.iter();
                self.subscribed.extend(filters.clone().map(|one| (one.filter.as_str().to_owned(), one.qos)));
                let reasons = filters.map(|one| ReasonCode(one.qos.min(Qos::AtLeastOnce).level())).collect();
                vec![Act::Say(Packet::Suback(Suback { packet_id: subscribe.packet_id, reasons }))]
            }
            Packet::Publish(publish) => self.publish(peer, publish),
            Packet::Pingreq => vec![Act::Say(Packet::Pingresp)],
            Packet::Disconnect(_) => vec![Act::Close],
            _ => Vec::new(),
        }
    }

    fn look(&mut self, peer: &Peer) -> Vec<Act> {
        let Some(device) = self.devices.get(&peer.number).cloned() else {
            // Thrown out by a newer one; one that has not introduced itself yet has time.
            return if self.introduced.contains(&peer.number) { vec![Act::Close] } else { Vec::new() };
        };
        if self.is_away {
            return vec![Act::Close];
        }
        if device.expires_s.is_some_and(|expires_s| expires_s <= now_s()) {
            self.expired += 1;
            return vec![Act::Close];
        }
        if !device.is_service && device.filters > 0 {
            let said = std::mem::take(&mut self.say);
            return said.into_iter().map(|(topic, payload)| self.message(&topic, payload)).collect();
        }
        Vec::new()
    }

    fn ended(&mut self, peer: &Peer) {
        self.devices.remove(&peer.number);
    }
}
