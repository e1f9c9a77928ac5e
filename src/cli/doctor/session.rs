//! What the cloud says to CONNECT, to each subscription and to a message, and what it takes.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use super::Visit;
use super::report::{Finding, Report};
use super::way::{self, STEP_WITHIN};
use crate::config::{Endpoint, Protocol, ScramHash};
use crate::health::chain;
use crate::message::{Properties, Qos, Topic};
use crate::mqtt::{
    Connack, Connect, Decoder, Disconnect, Encoder, Packet, PacketId, Publish, ReasonCode, Subscribe, Subscription,
    Version, Will,
};
use crate::transport::scram::ScramError;
use crate::transport::{self, Login, Stream, Way};
use crate::uplink::proof::Proof;
use crate::uplink::reason::{meaning, quoted};
use crate::uplink::twin::{Heard, Twin};

/// The longest packet that is taken from the cloud.
const PACKET_BYTES_MAX: usize = 1 << 20;

/// A connection on which nothing but a few packets goes.
struct Line {
    stream: Stream,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
}

/// How a wait for an answer ended.
enum Ended {
    /// The cloud closed the connection, with these words.
    Closed(Option<String>),
    /// TLS said no after all.
    Refused(transport::Refusal),
    Late,
    Broken(String),
}

impl Line {
    fn new(stream: Stream, version: Version) -> Line {
        let decoder = Decoder::from_server(version, PACKET_BYTES_MAX);
        Line { stream, encoder: Encoder::new(version), decoder, input: BytesMut::new() }
    }

    async fn send(&mut self, packet: &Packet) -> Result<(), Ended> {
        let mut output = BytesMut::new();
        self.encoder.encode(packet, &mut output).map_err(|error| Ended::Broken(chain(&error)))?;
        // A peer that has closed already may have said why: that is found by reading.
        let _unheard = self.stream.write_all_buf(&mut output).await;
        let _unheard = self.stream.flush().await;
        Ok(())
    }

    /// The next packet that `wanted` makes something of; what the session brings besides is left unanswered, so that the
    /// cloud brings it again.
    async fn wait<T>(&mut self, visit: &Visit<'_>, wanted: impl Fn(Packet) -> Option<T>) -> Result<T, Ended> {
        let reading = async {
            loop {
                match self.decoder.decode(&mut self.input) {
                    Ok(Some(Packet::Disconnect(disconnect))) => {
                        let text = quoted(&disconnect.reason_string.unwrap_or_default());
                        let reason = disconnect.reason;
                        return Err(Ended::Closed(Some(format!("{} ({reason}){text}", meaning(reason)))));
                    }
                    Ok(Some(packet)) => {
                        if let Some(found) = wanted(packet) {
                            return Ok(found);
                        }
                    }
                    Ok(None) => match self.stream.read_buf(&mut self.input).await {
                        Ok(0) => return Err(Ended::Closed(None)),
                        Ok(_) => {}
                        Err(error) => return Err(broken(visit, &error)),
                    },
                    Err(error) => return Err(Ended::Broken(chain(&error))),
                }
            }
        };
        timeout(STEP_WITHIN, reading).await.unwrap_or(Err(Ended::Late))
    }
}

fn broken(visit: &Visit<'_>, error: &io::Error) -> Ended {
    match (transport::late_refusal(error, visit.clock.state()), error.kind()) {
        (Some(refusal), _) => Ended::Refused(refusal),
        (None, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
            Ended::Closed(None)
        }
        (None, _) => Ended::Broken(chain(error)),
    }
}

pub(super) async fn examine(visit: &Visit<'_>, endpoint: &Endpoint, stream: Stream, report: &mut Report) {
    let login = match Login::read(visit.uplink, endpoint, visit.clock.now()).await {
        Ok(login) => login,
        Err(error) => {
            report.note(Finding::wrong("login", chain(&error)));
            return;
        }
    };
    let Some((mut line, connack)) = introduced(visit, endpoint, stream, login, report).await else { return };
    for finding in limits(visit, &connack) {
        report.note(finding);
    }
    let mut id = 65_000;
    for rule in &visit.uplink.receive {
        id += 1;
        let subscription = Subscription {
            filter: rule.filter.clone(),
            qos: rule.qos.min(visit.uplink.profile.qos_max),
            no_local: false,
            retain_as_published: false,
            // Retained commands are not asked for: nobody would answer them.
            retain_handling: if version(visit) == Version::V5 { 2 } else { 0 },
        };
        if !subscribed(visit, &mut line, id, subscription, report).await {
            return;
        }
    }
    for filter in visit.uplink.service_filters() {
        id += 1;
        let qos = Qos::AtLeastOnce.min(visit.uplink.profile.qos_max);
        let subscription =
            Subscription { filter, qos, no_local: false, retain_as_published: false, retain_handling: 0 };
        if !subscribed(visit, &mut line, id, subscription, report).await {
            return;
        }
    }
    if published(visit, &mut line, &connack, report).await && shown(visit, &mut line, report).await {
        // Said or not, the connection ends; the session stays for the gateway.
        let _unheard = line.send(&Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS))).await;
    }
}

/// Asks for the twin. Whether the connection is still there.
async fn shown(visit: &Visit<'_>, line: &mut Line, report: &mut Report) -> bool {
    let Some(topics) = &visit.uplink.twin else { return true };
    let help = match visit.uplink.profile.has_authorizers {
        true => "the policy must allow its topics: tidegate check --aws-policy",
        false => "is the device enabled, and is the hub of a tier that has twins (not Basic)?",
    };
    let mut twin = Twin::new(topics.clone());
    let Some((topic, payload)) = twin.next(Duration::ZERO, visit.clock.now().wall_ms) else { return true };
    let Ok(topic) = Topic::new(&topic) else { return true };
    let publish = Packet::Publish(Publish {
        dup: false,
        retain: false,
        qos: Qos::AtLeastOnce,
        packet_id: PacketId::new(64_999),
        topic: Some(topic),
        payload,
        properties: Properties::default(),
        topic_alias: None,
        subscription_id: None,
    });
    let sent = line.send(&publish).await;
    let twin = std::cell::RefCell::new(twin);
    let wanted = |packet| match packet {
        Packet::Publish(Publish { topic: Some(topic), payload, .. }) => {
            match twin.borrow_mut().hear(Duration::ZERO, topic.as_str(), &payload) {
                Heard::Nothing => None,
                Heard::Desired(_) => Some(Ok(())),
                Heard::Refused(reason) => Some(Err(reason)),
            }
        }
        Packet::Puback(ack) if ack.packet_id.get() == 64_999 && ack.reason.is_failure() => {
            Some(Err(format!("{} ({})", meaning(ack.reason), ack.reason)))
        }
        _ => None,
    };
    let answer = match sent {
        Ok(()) => line.wait(visit, wanted).await,
        Err(ended) => Err(ended),
    };
    match answer {
        Ok(Ok(())) => report.note(Finding::good("twin", "the cloud shows it")),
        Ok(Err(reason)) => report.note(Finding::wrong("twin", reason).help(help)),
        Err(Ended::Late) => report.note(Finding::wrong("twin", "the cloud does not answer for it").help(help)),
        Err(ended) => {
            let what = format!("the cloud closed the connection on the question for it{}", said(ended));
            report.note(Finding::wrong("twin", what).help(help));
            return false;
        }
    };
    true
}

/// Whether Azure's provisioning service lets the gateway in. Nothing is registered.
pub(super) async fn register(visit: &Visit<'_>, stream: Stream, report: &mut Report) {
    let Some(dps) = &visit.uplink.dps else { return };
    let login = match transport::registering(visit.uplink, dps, visit.clock.now()).await {
        Ok(login) => login,
        Err(error) => {
            report.note(Finding::wrong("login", chain(&error)));
            return;
        }
    };
    let mut line = Line::new(stream, version(visit));
    let connect = Connect {
        clean_start: true,
        keep_alive_s: 60,
        username: login.username,
        password: login.password,
        ..Connect::new(version(visit), visit.uplink.client_id.clone())
    };
    let finding = match answer(visit, &mut line, Packet::Connect(Box::new(connect)), Proof::NotOwed).await {
        Ok(_) => {
            let _unheard = line.send(&Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS))).await;
            let what = "there is no hub yet, and the provisioning service lets this gateway register";
            Finding::unsure("registration", what)
                .help("run the gateway: it gets one; `tidegate status` says what is in the way")
        }
        Err(Fault::Refused(reason, _)) => {
            let what = format!("the provisioning service refused the connection: {} ({reason})", meaning(reason));
            let help = match visit.uplink.sas {
                Some(_) => {
                    "look at `id_scope`, at the key, and at `client_id`: it is the registration id of the enrolment"
                }
                None => {
                    "look at `id_scope` and `client_id`: it is the registration id, and must be the certificate's common name"
                }
            };
            Finding::wrong("registration", what).help(help)
        }
        Err(Fault::Unproved(error)) => Finding::wrong("registration", chain(&error)),
        Err(Fault::Ended(Ended::Late)) => {
            Finding::away("registration", "the provisioning service does not answer CONNECT")
        }
        Err(Fault::Ended(ended)) => {
            let what = format!("the provisioning service closed the connection on CONNECT{}", said(ended));
            Finding::wrong("registration", what).help("look at `id_scope`, and at the key or the certificate")
        }
    };
    report.note(finding);
}

fn version(visit: &Visit<'_>) -> Version {
    match visit.uplink.protocol {
        Protocol::V311 => Version::V311,
        Protocol::V5 => Version::V5,
    }
}

/// As the cloud takes what the gateway says of itself.
fn enveloped(visit: &Visit<'_>, topic: &Topic) -> Topic {
    let Visit { uplink, .. } = visit;
    uplink.profile.enveloped(&uplink.client_id, topic, b"", None, Some("application/json"))
}

fn connect(visit: &Visit<'_>, login: &Login, has_will: bool) -> Packet {
    let uplink = visit.uplink;
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let own = uplink.own_topic.as_deref().filter(|_| has_will && uplink.profile.has_wills);
    let topic = own.and_then(|own| Topic::new(&format!("{own}/status")).ok());
    // As the gateway's own, so that what it needs is asked for; it is never sent, because the connection ends in order.
    let will = topic.map(|topic| Will {
        topic: enveloped(visit, &topic),
        payload: Bytes::from_static(br#"{"state":"offline"}"#),
        qos: Qos::AtLeastOnce,
        retain: uplink.profile.may_retain(""),
        delay_s: 0,
        properties: Properties::default(),
    });
    Packet::Connect(Box::new(Connect {
        clean_start: !uplink.profile.has_sessions,
        keep_alive_s: u16::try_from(uplink.keep_alive.as_secs()).unwrap_or(u16::MAX),
        will,
        username: login.username.clone(),
        password: login.password.clone(),
        auth_method: login.auth.as_ref().map(|(method, _)| method.clone()),
        auth_data: login.auth.as_ref().map(|(_, data)| data.clone()),
        session_expiry_s: (version(visit) == Version::V5).then(|| seconds(uplink.session_expiry)),
        ..Connect::new(version(visit), uplink.client_id.clone())
    }))
}

/// CONNECT with the will, and where that fails without: which of the two is at fault is the question.
async fn introduced(
    visit: &Visit<'_>,
    endpoint: &Endpoint,
    stream: Stream,
    mut login: Login,
    report: &mut Report,
) -> Option<(Line, Connack)> {
    let mut line = Line::new(stream, version(visit));
    let proof = owed(visit, &mut login);
    let first = answer(visit, &mut line, connect(visit, &login, true), proof).await;
    let first = match first {
        Ok(connack) => {
            let kept = if connack.session_present { "the cloud has kept the session" } else { "a new session" };
            report.note(Finding::good("connect", format!("as {:?}; {kept}", visit.uplink.client_id)));
            return Some((line, connack));
        }
        Err(fault) => fault,
    };
    let may_be_will = matches!(
        first,
        Fault::Refused(
            ReasonCode::NOT_AUTHORIZED
                | ReasonCode::RETAIN_NOT_SUPPORTED
                | ReasonCode::QOS_NOT_SUPPORTED
                | ReasonCode::TOPIC_NAME_INVALID,
            _
        ) | Fault::Ended(Ended::Closed(_))
    );
    if visit.uplink.own_topic.is_some() && visit.uplink.profile.has_wills && may_be_will {
        sleep(visit.uplink.profile.connect_every).await;
        let way = Way::new(visit.uplink, endpoint);
        let now = visit.clock.now();
        // Read anew: what a login by steps begins with is good for one connection.
        if let (Ok(stream), Ok(mut login)) = (
            transport::connect_by(endpoint, &way, now, STEP_WITHIN).await,
            Login::read(visit.uplink, endpoint, now).await,
        ) {
            let mut line = Line::new(stream, version(visit));
            let proof = owed(visit, &mut login);
            if let Ok(connack) = answer(visit, &mut line, connect(visit, &login, false), proof).await {
                report.note(Finding::good("connect", format!("as {:?}, without a will", visit.uplink.client_id)));
                let own = visit.uplink.own_topic.as_deref().unwrap_or_default();
                let what = format!("the cloud does not take the will for {own}/status");
                report.note(Finding::wrong("own topic", what).help(rights(visit, "publish, also retained,", own)));
                return Some((line, connack));
            }
        }
    }
    report.note(fault(visit, endpoint, first));
    None
}

enum Fault {
    Refused(ReasonCode, String),
    Unproved(ScramError),
    Ended(Ended),
}

/// What the cloud has to prove to this login.
fn owed(visit: &Visit<'_>, login: &mut Login) -> Proof {
    Proof::new(login.scram.take(), visit.uplink.auth_method.as_deref())
}

async fn answer(visit: &Visit<'_>, line: &mut Line, connect: Packet, mut proof: Proof) -> Result<Connack, Fault> {
    line.send(&connect).await.map_err(Fault::Ended)?;
    let wanted = |packet| matches!(packet, Packet::Connack(_) | Packet::Auth(_)).then_some(packet);
    loop {
        let packet = line.wait(visit, wanted).await.map_err(Fault::Ended)?;
        match proof.hear(packet).map_err(Fault::Unproved)? {
            Some(Packet::Connack(connack)) if connack.reason.is_failure() => {
                return Err(Fault::Refused(connack.reason, connack.reason_string.unwrap_or_default()));
            }
            Some(Packet::Connack(connack)) => return Ok(*connack),
            Some(_) => {}
            None => {
                let answer = proof.answer().await.map_err(Fault::Unproved)?;
                line.send(&answer).await.map_err(Fault::Ended)?;
            }
        }
    }
}

fn fault(visit: &Visit<'_>, endpoint: &Endpoint, fault: Fault) -> Finding {
    let is_aws = visit.uplink.profile.has_authorizers;
    let by_token = visit.uplink.profile.audience.is_some();
    let by_scram = visit.uplink.auth_method.as_deref().and_then(ScramHash::of).is_some();
    match fault {
        Fault::Unproved(error @ (ScramError::Unproved | ScramError::WrongProof)) => {
            let help = "whoever answers there may be another than your broker: look at `url` and `ca`, and give the password to \
                        nobody; a broker whose users were taken over from elsewhere may hold half of a login";
            Finding::wrong("connect", chain(&error)).help(help)
        }
        Fault::Unproved(error @ ScramError::Refused { .. }) => {
            Finding::wrong("connect", chain(&error)).help("look at `username` and the first line of `password_file`")
        }
        Fault::Unproved(error) => {
            let help = "look at how the server keeps its users for SCRAM, or log in otherwise";
            Finding::wrong("connect", chain(&error)).help(help)
        }
        Fault::Refused(reason, text) => {
            let what = format!("the cloud refused the connection: {} ({reason}){}", meaning(reason), quoted(&text));
            let help = match reason {
                ReasonCode::CLIENT_IDENTIFIER_NOT_VALID if by_token => {
                    "`client_id` must be a device of that registry, with project, location and registry as the cloud has them"
                }
                ReasonCode::BAD_USER_NAME_OR_PASSWORD | ReasonCode::NOT_AUTHORIZED | ReasonCode::UNSPECIFIED_ERROR
                    if by_token =>
                {
                    "the cloud must have the public half of the key of `jwt`, and the device must not be blocked; a token has its \
                     time, so this board's clock must be right"
                }
                ReasonCode::BAD_USER_NAME_OR_PASSWORD | ReasonCode::NOT_AUTHORIZED | ReasonCode::UNSPECIFIED_ERROR
                    if by_scram =>
                {
                    "look at `username` and the first line of `password_file`: the server must have this user for SCRAM, by the \
                     same hash"
                }
                ReasonCode::BAD_AUTHENTICATION_METHOD if by_scram => {
                    "the server does not know what `auth_method` says: write another one, or leave it out for a plain password"
                }
                ReasonCode::NOT_AUTHORIZED if visit.uplink.profile.has_signatures => {
                    "the hub must know the device (`client_id`) and have it enabled, and the key or the certificate must be its own; a \
                     signature has its time, so this board's clock must be right"
                }
                ReasonCode::BAD_USER_NAME_OR_PASSWORD
                | ReasonCode::NOT_AUTHORIZED
                | ReasonCode::BAD_AUTHENTICATION_METHOD
                    if visit.uplink.auth_method.is_some() =>
                {
                    "look at `auth_method` and at the token: who has signed it, for whom, and until when; and whether the server knows \
                     this client"
                }
                ReasonCode::BAD_USER_NAME_OR_PASSWORD => {
                    "look at `username` and the first line of `password_file`; a token may have ended"
                }
                ReasonCode::NOT_AUTHORIZED if is_aws => {
                    "the certificate's policy must allow it: tidegate check --aws-policy"
                }
                ReasonCode::NOT_AUTHORIZED => {
                    "the server knows this client and does not let it in: look at its access rules"
                }
                ReasonCode::CLIENT_IDENTIFIER_NOT_VALID => "`client_id` must be one that the server allows",
                ReasonCode::UNSUPPORTED_PROTOCOL_VERSION => "write the other `protocol`: \"5\" or \"3.1.1\"",
                ReasonCode::RETAIN_NOT_SUPPORTED | ReasonCode::QOS_NOT_SUPPORTED => {
                    "the gateway goes on with what the server has; nothing to change"
                }
                ReasonCode::SERVER_UNAVAILABLE | ReasonCode::SERVER_BUSY | ReasonCode::CONNECTION_RATE_EXCEEDED => {
                    return Finding::away("connect", what);
                }
                _ => "ask whoever runs the server what it has against this client",
            };
            Finding::wrong("connect", what).help(help)
        }
        Fault::Ended(Ended::Refused(refusal)) => way::tls(visit, endpoint, refusal, format!("TLS ended: {refusal}")),
        Fault::Ended(Ended::Closed(said)) => {
            let said = said.map_or_else(|| "without a word".to_owned(), |said| format!("and said: {said}"));
            let help = if is_aws {
                "the certificate must be active, and its policy must allow iot:Connect for this client id: tidegate check \
                 --aws-policy"
            } else if endpoint.tls {
                "does it want a client certificate (`cert`, `key`), or another `protocol`, user or `client_id`?"
            } else {
                "if this is its port for TLS, write mqtts:// in `url`; else look at `protocol`, user and `client_id`"
            };
            Finding::wrong("connect", format!("the cloud closed the connection on CONNECT {said}")).help(help)
        }
        Fault::Ended(Ended::Late) => Finding::away("connect", "the cloud does not answer CONNECT").help(
            "is there an MQTT broker at that port? In front of one a balancer may wait for a server that is down",
        ),
        Fault::Ended(Ended::Broken(what)) => {
            Finding::wrong("connect", format!("what answers is not MQTT: {what}")).help("is the port right?")
        }
    }
}

/// Who may do what: at AWS a policy says so.
fn rights(visit: &Visit<'_>, what: &str, topic: &str) -> String {
    if visit.uplink.profile.has_authorizers {
        format!("the policy must allow {what} for it: tidegate check --aws-policy prints one; or own_topic = \"\"")
    } else {
        format!("the server's access rules must allow this client to {what} below {topic}; or write own_topic = \"\"")
    }
}

/// What the cloud takes beside what the configuration wants.
fn limits(visit: &Visit<'_>, connack: &Connack) -> Vec<Finding> {
    let uplink = visit.uplink;
    let mut told = Vec::new();
    let mut findings = Vec::new();
    told.extend(connack.receive_max.map(|max| format!("{max} in flight")));
    told.extend(connack.packet_bytes_max.map(|max| format!("packets of {max} bytes")));
    told.extend(connack.qos_max.map(|max| format!("QoS {}", max.level())));
    told.extend(connack.server_keep_alive_s.map(|seconds| format!("keep-alive {seconds} s")));
    told.extend(connack.session_expiry_s.map(|seconds| format!("sessions for {seconds} s")));
    let what = match (told.is_empty(), uplink.protocol) {
        (false, _) => format!("it announces {}", told.join(", ")),
        (true, Protocol::V5) => "it announces none".to_owned(),
        (true, Protocol::V311) => "MQTT 3.1.1 announces none; the profile's hold".to_owned(),
    };
    findings.push(Finding::good("limits", what));
    let wanted = uplink.forward.iter().filter_map(|rule| rule.qos).max();
    if let (Some(max), Some(wanted)) = (connack.qos_max, wanted)
        && wanted > max
    {
        let what = format!("a rule wants QoS {}, and the cloud takes {}: it goes at that", wanted.level(), max.level());
        findings.push(Finding::unsure("limits", what));
    }
    let batch = uplink.forward.iter().filter_map(|rule| rule.batch).map(|batch| batch.bytes.get()).max();
    if let (Some(max), Some(batch)) = (connack.packet_bytes_max, batch)
        && batch > max
    {
        let what = format!("`batch` may grow to {batch} bytes, and the cloud takes packets of {max}");
        findings.push(
            Finding::wrong("limits", what).help(format!("write bytes = \"{} B\" or less", max.saturating_sub(512))),
        );
    }
    if !connack.retain_available {
        let what = "the cloud retains nothing: whoever subscribes later does not see the gateway's state";
        findings.push(Finding::unsure("limits", what));
    }
    let expiry_s = u32::try_from(uplink.session_expiry.as_secs()).unwrap_or(u32::MAX);
    if connack.session_expiry_s.is_some_and(|seconds| seconds < expiry_s.min(3600)) {
        let what = "the cloud keeps the session for less than an hour: after a longer outage QoS 2 may double";
        findings.push(Finding::unsure("limits", what));
    }
    findings
}

/// Whether the connection is still there.
async fn subscribed(
    visit: &Visit<'_>,
    line: &mut Line,
    id: u16,
    subscription: Subscription,
    report: &mut Report,
) -> bool {
    let filter = subscription.filter.as_str().to_owned();
    let Some(packet_id) = PacketId::new(id) else { return true };
    let help = match visit.uplink.profile.has_authorizers {
        true => "the policy must allow iot:Subscribe and iot:Receive for it: tidegate check --aws-policy",
        false => "the server's access rules must allow this client to subscribe to it",
    };
    let subscribe =
        Packet::Subscribe(Subscribe { packet_id, subscriptions: vec![subscription], subscription_id: None });
    let sent = line.send(&subscribe).await;
    let wanted = |packet| match packet {
        Packet::Suback(suback) if suback.packet_id == packet_id => suback.reasons.first().copied(),
        _ => None,
    };
    let answer = match sent {
        Ok(()) => line.wait(visit, wanted).await,
        Err(ended) => Err(ended),
    };
    match answer {
        Ok(reason) if reason.is_failure() => {
            let what = format!("the cloud does not allow {filter:?}: {} ({reason})", meaning(reason));
            report.note(Finding::wrong("subscribe", what).help(help));
            true
        }
        Ok(_) => {
            report.note(Finding::good("subscribe", filter));
            true
        }
        Err(Ended::Late) => {
            report.note(Finding::wrong("subscribe", format!("the cloud does not answer to {filter:?}")).help(help));
            true
        }
        Err(ended) => {
            let what = format!("the cloud closed the connection on {filter:?}{}", said(ended));
            report.note(Finding::wrong("subscribe", what).help(help));
            false
        }
    }
}

fn said(ended: Ended) -> String {
    match ended {
        Ended::Closed(Some(said)) | Ended::Broken(said) => format!(" and said: {said}"),
        Ended::Refused(refusal) => format!(": {refusal}"),
        Ended::Closed(None) | Ended::Late => String::new(),
    }
}

/// A message of no consequence below the own topic. Whether the connection is still there.
async fn published(visit: &Visit<'_>, line: &mut Line, connack: &Connack, report: &mut Report) -> bool {
    let Some(own) = &visit.uplink.own_topic else {
        report.note(Finding::good("publish", "own_topic is off: no test message is sent"));
        return true;
    };
    let qos = connack.qos_max.unwrap_or(Qos::AtLeastOnce).min(Qos::AtLeastOnce);
    // The topic of the losses: what is not allowed there is noticed when something is lost, and that is late.
    let (Ok(topic), Some(packet_id)) = (Topic::new(&format!("{own}/gap")), PacketId::new(65_000)) else { return true };
    let publish = Packet::Publish(Publish {
        dup: false,
        retain: false,
        qos,
        packet_id: (qos == Qos::AtLeastOnce).then_some(packet_id),
        topic: Some(enveloped(visit, &topic)),
        payload: Bytes::from_static(br#"{"reason":"test of tidegate doctor","count":0}"#),
        properties: Properties::default(),
        topic_alias: None,
        subscription_id: None,
    });
    let help = rights(visit, "publish", own);
    let sent = line.send(&publish).await;
    let wanted = |packet| match packet {
        Packet::Puback(ack) if ack.packet_id == packet_id => Some(ack.reason),
        Packet::Pingresp if qos == Qos::AtMostOnce => Some(ReasonCode::SUCCESS),
        _ => None,
    };
    if qos == Qos::AtMostOnce {
        // Nothing answers at QoS 0; what follows it shows that it was read.
        let _late = line.send(&Packet::Pingreq).await;
    }
    let answer = match sent {
        Ok(()) => line.wait(visit, wanted).await,
        Err(ended) => Err(ended),
    };
    match answer {
        Ok(reason) if reason.is_failure() => {
            let what = format!("the cloud does not take {topic}: {} ({reason})", meaning(reason));
            report.note(Finding::wrong("publish", what).help(help));
            true
        }
        Ok(_) => {
            report.note(Finding::good("publish", format!("{topic} at QoS {}", qos.level())));
            true
        }
        Err(Ended::Late) => {
            let what = format!("{topic} is not acknowledged");
            report.note(Finding::wrong("publish", what).help("is it allowed there? Is a quota of the cloud used up?"));
            true
        }
        Err(ended) => {
            let what = format!("the cloud closed the connection on {topic}{}", said(ended));
            report.note(Finding::wrong("publish", what).help(help));
            false
        }
    }
}
