//! What each cloud takes and how it refuses, one profile a file: data and small functions. Pure.
//!
//! `check`, the pacing, the session and `doctor` read these same tables, so that what is refused on paper is what would
//! be refused on the wire. At MQTT 3.1.1 a broker announces nothing: there the profile is all that is known. They stand
//! here, below the uplink, because the defaults of keys and the rules of `check` come from them.

use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::time::Duration;

use super::{Pace, Protocol, Reconnect};
use crate::message::{Qos, Topic};

pub use aws_iot::{AWS_IOT, authorizer_username};
pub use azure_event_grid::AZURE_EVENT_GRID;
pub use azure_iot_hub::{AZURE_IOT_HUB, registration as azure_registration, resource as azure_resource};
pub use clearblade::CLEARBLADE;
pub use generic::GENERIC;
pub use influxdb::INFLUXDB;
use services::TwinKind;

mod aws_iot;
pub mod aws_policy;
mod azure_event_grid;
mod azure_iot_hub;
mod clearblade;
mod generic;
mod influxdb;
pub mod services;

/// Every profile, as `profile` names it.
pub static PROFILES: &[&Profile] = &[&GENERIC, &AWS_IOT, &AZURE_EVENT_GRID, &AZURE_IOT_HUB, &CLEARBLADE, &INFLUXDB];

/// One kind of cloud.
#[derive(Debug)]
pub struct Profile {
    /// As `profile` says it.
    pub name: &'static str,
    /// As its maker says it.
    pub title: &'static str,
    /// The one version that it speaks; `None` = either.
    pub protocol: Option<Protocol>,
    /// PUBLISH packets a second of one connection.
    pub publishes_per_s: Option<NonZeroU32>,
    /// Their bytes.
    pub bytes_per_s: Option<NonZeroU64>,
    /// QoS 1 and 2 messages that it has not acknowledged.
    pub in_flight: Option<NonZeroU16>,
    /// Longest packet.
    pub packet_bytes: Option<usize>,
    /// Longest payload.
    pub payload_bytes: Option<usize>,
    /// The same under a topic of the cloud's own, where that takes less.
    pub payload_bytes_under: fn(topic: &str) -> Option<usize>,
    /// Longest topic, of what counts of it.
    pub topic_bytes: Option<usize>,
    /// Most slashes of a topic, of what counts of it.
    pub topic_slashes: Option<usize>,
    /// What of a topic or filter these two count.
    pub counted: fn(&str) -> &str,
    /// Longest client id.
    pub client_id_bytes: Option<usize>,
    /// Filters of one SUBSCRIBE.
    pub filters_per_subscribe: usize,
    /// Filters of one connection.
    pub subscriptions: Option<usize>,
    /// Seconds of keep-alive that it keeps to; what lies outside is moved inside.
    pub keep_alive: Option<(Duration, Duration)>,
    /// How long it keeps a session at most.
    pub session_expiry: Option<Duration>,
    /// From one CONNECT of a client id to the next.
    pub connect_every: Duration,
    /// Highest QoS, either way. What is above is not answered at all by some.
    pub qos_max: Qos,
    /// Says DUP when it sends a message again. Where it does not, a command is a repeat when it bears an id and is the same
    /// to the last byte.
    pub marks_repeats: bool,
    /// Takes a will.
    pub has_wills: bool,
    /// Keeps sessions. Where it does not, each connection begins with a clean one.
    pub has_sessions: bool,
    /// From which age on some of its services refuse readings: told, not kept back.
    pub late: Option<Late>,
    /// Which messages it retains.
    pub retain: Retain,
    /// What a PUBACK that does not come means, when those of later messages do.
    pub missing_puback: MissingPuback,
    /// Pauses between attempts to connect.
    pub reconnect: Reconnect,
    /// Takes TLS only, and the server's name in it.
    pub wants_server_name: bool,
    /// Knows clients by their certificates or by a custom authoriser, and nobody else.
    pub has_authorizers: bool,
    /// Keeps a copy of a device's state, and how.
    pub twin: Option<TwinKind>,
    /// Has jobs for devices.
    pub has_jobs: bool,
    /// Knows devices by shared access signatures.
    pub has_signatures: bool,
    /// Knows devices by tokens in the place of the password, and nobody otherwise: who such a token must be for, by the client id.
    pub audience: Option<fn(client_id: &str) -> Option<&str>>,
    /// What is wrong with a client id, and what it looks like; for a person.
    pub client_id_fault: fn(client_id: &str) -> Option<&'static str>,
    /// Methods of enhanced authentication that it knows; none = nobody knows.
    pub auth_methods: &'static [&'static str],
    /// Protocol name for the TLS handshake, where none is written.
    pub alpn: fn(port: u16, has_certificate: bool) -> Option<&'static str>,
    /// The same by HTTP.
    pub http_alpn: fn(port: u16) -> Option<&'static str>,
    /// The user name of a client at a host, where none is written.
    pub username: Option<fn(host: &str, client_id: &str) -> String>,
    /// The topic that takes the place of a message's own.
    pub envelope: Option<Envelope>,
    /// Where a client may not publish or subscribe, and where it may instead; for a person.
    pub foreign: fn(client_id: &str, topic: &str, way: Direction) -> Option<String>,
}

/// Makes the topic under which a cloud takes a message: of the client id, the topic by the rules, the payload, the message's
/// name and its content type.
pub type Envelope = fn(&str, &str, &[u8], Option<&str>, Option<&str>) -> String;

/// Which way a topic is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A message goes there.
    Up,
    /// The filter of a subscription.
    Down,
}

/// What a cloud's services say to old readings.
#[derive(Debug, Clone, Copy)]
pub struct Late {
    /// Older than this.
    pub after: Duration,
    /// Who refuses them; for a person.
    pub what: &'static str,
}

/// Which messages a cloud retains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retain {
    /// As the standard says.
    All,
    /// None.
    Nothing,
    /// Not those of topics that start with `$`; and a subscription with a wildcard gets none.
    NotDollar,
}

/// What a PUBACK that does not come means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingPuback {
    /// The connection is at fault: the session is taken up again in a new one.
    Fault,
    /// The cloud has thrown the message away, because it was too much: it is sent again, slower, after this time.
    Throttle(Duration),
}

impl PartialEq for Profile {
    fn eq(&self, other: &Profile) -> bool {
        self.name == other.name
    }
}

impl Eq for Profile {}

impl Profile {
    /// Bytes of a payload that cost as much as one message, where it is known.
    pub fn billed_bytes(&self) -> Option<usize> {
        (*self == AWS_IOT).then_some(aws_iot::BILLED_BYTES)
    }

    /// The longest payload under this topic.
    pub fn payload_bytes_at(&self, topic: &str) -> Option<usize> {
        (self.payload_bytes_under)(topic).or(self.payload_bytes)
    }

    /// Why the cloud will not take a message under this topic; for a person.
    pub fn topic_fault(&self, topic: &str) -> Option<String> {
        let counted = (self.counted)(topic);
        let title = self.title;
        if let Some(max) = self.topic_slashes {
            let slashes = counted.bytes().filter(|byte| *byte == b'/').count();
            if slashes > max {
                return Some(format!("{topic:?} has {slashes} slashes, and {title} takes {max}"));
            }
        }
        let bytes = counted.len();
        self.topic_bytes
            .filter(|max| bytes > *max)
            .map(|max| format!("{topic:?} has {bytes} bytes, and {title} takes {max}"))
    }

    /// Whether a message under this topic may bear RETAIN.
    pub fn may_retain(&self, topic: &str) -> bool {
        match self.retain {
            Retain::All => true,
            Retain::Nothing => false,
            Retain::NotDollar => !topic.starts_with('$'),
        }
    }

    /// The topic under which the cloud takes a message of this client.
    pub fn enveloped(
        &self,
        client_id: &str,
        topic: &Topic,
        payload: &[u8],
        name: Option<&str>,
        content_type: Option<&str>,
    ) -> Topic {
        let Some(envelope) = self.envelope else { return topic.clone() };
        // Encoded, so that only its length can be at fault: then the cloud says so.
        Topic::new(&envelope(client_id, topic.as_str(), payload, name, content_type)).unwrap_or_else(|_| topic.clone())
    }

    /// The keep-alive that the cloud goes by when it is told this one.
    pub fn kept_alive(&self, keep_alive: Duration) -> Duration {
        match self.keep_alive {
            None => keep_alive,
            // "Off" becomes the longest.
            Some((_, max)) if keep_alive.is_zero() => max,
            Some((min, max)) => keep_alive.clamp(min, max),
        }
    }

    /// Messages in flight where the owner wants `window`.
    pub fn window(&self, window: NonZeroU16) -> NonZeroU16 {
        self.in_flight.map_or(window, |max| window.min(max))
    }

    /// The pace where the owner has written `pace`: what he does not say, the cloud does.
    pub fn pace(&self, pace: Pace) -> Pace {
        Pace {
            messages_per_s: pace.messages_per_s.or(self.publishes_per_s),
            bytes_per_s: pace.bytes_per_s.or(self.bytes_per_s),
        }
    }
}

/// As in a URL (RFC 3986, 2.3).
pub fn percent_encoded(text: &str) -> String {
    let mut result = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            result.push(char::from(byte));
        } else {
            result.push_str(&format!("%{byte:02X}"));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_of_a_profile_agrees_with_its_others() {
        for profile in PROFILES {
            let name = profile.name;
            assert!(profile.filters_per_subscribe > 0, "{name}");
            assert!(profile.reconnect.first <= profile.reconnect.max, "{name}");
            if let (Some(payload), Some(packet)) = (profile.payload_bytes, profile.packet_bytes) {
                assert!(payload < packet, "{name}: a packet holds its payload and its topic");
            }
            if let Some((min, max)) = profile.keep_alive {
                assert!(min <= max, "{name}");
                assert_eq!(profile.kept_alive(Duration::ZERO), max, "{name}");
            }
            assert_eq!(PROFILES.iter().filter(|other| **other == *profile).count(), 1, "{name} is one");
        }
    }

    #[test]
    fn what_the_owner_does_not_say_about_the_pace_the_cloud_does() {
        let pace = AWS_IOT.pace(Pace { messages_per_s: NonZeroU32::new(5), bytes_per_s: None });
        assert_eq!((pace.messages_per_s, pace.bytes_per_s), (NonZeroU32::new(5), NonZeroU64::new(512 * 1024)));
        assert_eq!(GENERIC.pace(Pace::default()), Pace::default());
    }
}
