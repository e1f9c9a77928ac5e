//! The vocabulary: what a device said, what travels, and the names both have.
//!
//! Pure: no I/O, no clock, no runtime. Every room speaks these types, so they are checked once, here, and are
//! valid wherever they appear.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

pub mod tree;

mod reach;

/// The longest topic or filter that MQTT can carry, in bytes (MQTT 5.0, 1.5.4).
pub const TOPIC_BYTES_MAX: usize = 65_535;

/// How many of a session's overlapping subscriptions one message is delivered for, those of the highest QoS first. More
/// copies may be left out (MQTT 5.0, 3.3.4); without a bound a few clients make thousands of each message.
pub const COPIES_MAX: usize = 16;

/// Why a text is not a topic or not a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TopicError {
    /// Topics and filters have at least one character (MQTT 5.0, 4.7.3).
    #[error("a topic must not be empty")]
    Empty,
    /// Longer than a length of two bytes can say.
    #[error("a topic must not be longer than 65535 bytes")]
    TooLong,
    /// U+0000 is forbidden in every string (MQTT 5.0, 1.5.4).
    #[error("a topic must not contain the character U+0000")]
    Null,
    /// `+` and `#` belong to filters only (MQTT 5.0, 3.3.2.1).
    #[error("a topic to publish to must not contain the wildcards + or #")]
    Wildcard,
    /// `+` must fill its level, `#` must be the whole last level (MQTT 5.0, 4.7.1).
    #[error("the wildcard + must fill a whole level, and # must be the whole last level")]
    MisplacedWildcard,
    /// `$share/<group>/<filter>` (MQTT 5.0, 4.8.2).
    #[error("a shared subscription is written $share/<group>/<filter>, the group without / + #")]
    BadShare,
}

fn check_common(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(TopicError::TooLong);
    }
    if text.contains('\0') {
        return Err(TopicError::Null);
    }
    Ok(())
}

/// Whether clients may not publish to a topic, nor any rule or device: it is the gateway's own, or a server's.
pub fn is_reserved(topic: &str) -> bool {
    topic.starts_with('$') || topic == "tidegate" || topic.starts_with("tidegate/")
}

/// A topic that may be published to: not empty, no wildcard, no U+0000, at most 65,535 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks `text` (MQTT 5.0, 4.7).
    pub fn new(text: &str) -> Result<Topic, TopicError> {
        check_common(text)?;
        if text.contains(['+', '#']) {
            return Err(TopicError::Wildcard);
        }
        Ok(Topic(Arc::from(text)))
    }

    /// The text, as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the topic starts with `$`, so that wildcards in the first level must not reach it (MQTT 5.0, 4.7.2).
    pub fn is_dollar(&self) -> bool {
        self.0.starts_with('$')
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A filter that may be subscribed to, with its share group where it has one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter {
    text: Arc<str>,
    /// Bytes of `$share/<group>/` before the filter proper; 0 when it is not shared.
    share_prefix: usize,
}

impl Filter {
    /// Checks `text` (MQTT 5.0, 4.7 and 4.8.2).
    pub fn new(text: &str) -> Result<Filter, TopicError> {
        check_common(text)?;
        let share_prefix = match text.strip_prefix("$share/") {
            None => 0,
            Some(rest) => {
                let (group, filter) = rest.split_once('/').ok_or(TopicError::BadShare)?;
                if group.is_empty() || group.contains(['+', '#']) || filter.is_empty() {
                    return Err(TopicError::BadShare);
                }
                text.len() - filter.len()
            }
        };
        let filter = text.get(share_prefix..).unwrap_or_default();
        let levels = filter.split('/').count();
        for (place, level) in filter.split('/').enumerate() {
            let misplaced_hash = level.contains('#') && (level != "#" || place + 1 != levels);
            if misplaced_hash || (level.contains('+') && level != "+") {
                return Err(TopicError::MisplacedWildcard);
            }
        }
        Ok(Filter { text: Arc::from(text), share_prefix })
    }

    /// The whole text, with `$share/<group>/` where it has that.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The filter proper, without its share prefix.
    pub fn pattern(&self) -> &str {
        self.text.get(self.share_prefix..).unwrap_or_default()
    }

    /// The share group, for a shared subscription.
    pub fn share_group(&self) -> Option<&str> {
        self.text.get(..self.share_prefix)?.strip_prefix("$share/")?.strip_suffix('/')
    }

    /// Whether `topic` is what this filter asks for (MQTT 5.0, 4.7).
    pub fn matches(&self, topic: &Topic) -> bool {
        self.captures(topic).is_some()
    }

    /// What each wildcard of this filter stood for in `topic`, or `None` when the filter does not match.
    pub fn captures<'t>(&self, topic: &'t Topic) -> Option<Captures<'t>> {
        let pattern = self.pattern();
        if topic.is_dollar() && pattern.starts_with(['+', '#']) {
            return None;
        }
        let mut captures = Captures { plus: Vec::new(), rest: None };
        let mut rest: Option<&'t str> = Some(topic.as_str());
        for level in pattern.split('/') {
            if level == "#" {
                // `a/#` also matches `a` itself: the parent level is included (MQTT 5.0, 4.7.1.2).
                captures.rest = Some(rest.unwrap_or_default());
                return Some(captures);
            }
            let here = rest?;
            let (name, after) = match here.split_once('/') {
                Some((name, after)) => (name, Some(after)),
                None => (here, None),
            };
            match level {
                "+" => captures.plus.push(name),
                _ if level == name => {}
                _ => return None,
            }
            rest = after;
        }
        rest.is_none().then_some(captures)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the wildcards of a filter stood for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captures<'t> {
    /// One entry for each `+`, in order.
    pub plus: Vec<&'t str>,
    /// What `#` stood for, without the slash before it; empty when it stood for the parent level itself.
    pub rest: Option<&'t str>,
}

/// Quality of service (MQTT 5.0, 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Qos {
    /// QoS 0, at most once.
    #[default]
    AtMostOnce,
    /// QoS 1, at least once.
    AtLeastOnce,
    /// QoS 2, exactly once.
    ExactlyOnce,
}

impl Qos {
    /// The level on the wire: 0, 1 or 2.
    pub fn level(self) -> u8 {
        match self {
            Qos::AtMostOnce => 0,
            Qos::AtLeastOnce => 1,
            Qos::ExactlyOnce => 2,
        }
    }

    /// The QoS of a level on the wire; 3 and above are malformed (MQTT 5.0, 3.3.1.2).
    pub fn from_level(level: u8) -> Option<Qos> {
        match level {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

/// A message's place in the queue: only grows, survives restart and quarantine. A hole proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A message's name in the world, given once, at the door: `<gateway>.<store>.<start>.<counter>`.
///
/// It is the receiver's duplicate key: two deliveries with one id are one message. Cloned cards, restored backups
/// and quarantined stores never repeat one, because `store` is drawn anew at each start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// The gateway's id, as configured or found.
    pub gateway: Arc<str>,
    /// 48 random bits, drawn at each start: nothing on a cloned card can tell it from its twin.
    pub store: u64,
    /// How often this store was opened, from 1.
    pub start: u32,
    /// Counts messages since that start, from 1.
    pub counter: u64,
}

impl MessageId {
    /// Its ordinal among the messages of its start.
    pub fn ordinal(&self) -> Ordinal {
        Ordinal { store: self.store, start: self.start, counter: self.counter }
    }
}

/// When a message came in at the door, as far as that can be told from its name: of two of the same start, which was first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ordinal {
    /// As in `MessageId`.
    pub store: u64,
    /// As in `MessageId`.
    pub start: u32,
    /// As in `MessageId`.
    pub counter: u64,
}

impl Ordinal {
    /// Whether it is certain that `self` came after `other`.
    pub fn is_after(self, other: Ordinal) -> bool {
        self.is_of_the_start_of(other) && self.counter > other.counter
    }

    /// Whether it is certain that `self` came before `other`, or is it.
    pub fn is_up_to(self, other: Ordinal) -> bool {
        self.is_of_the_start_of(other) && self.counter <= other.counter
    }

    fn is_of_the_start_of(self, other: Ordinal) -> bool {
        self.store == other.store && self.start == other.start
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MessageId { gateway, store, start, counter } = self;
        write!(f, "{gateway}.{store:012x}.{start}.{counter}")
    }
}

/// A text that is not a message id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a message id of the form <gateway>.<store>.<start>.<counter>")]
pub struct MessageIdError {
    text: String,
}

impl FromStr for MessageId {
    type Err = MessageIdError;

    fn from_str(text: &str) -> Result<MessageId, MessageIdError> {
        // From the right, because a gateway id may contain dots.
        let mut parts = text.rsplitn(4, '.');
        let mut next = || parts.next();
        let id = (|| {
            let counter = next()?.parse().ok()?;
            let start = next()?.parse().ok()?;
            let store = u64::from_str_radix(next()?, 16).ok().filter(|store| *store < 1 << 48)?;
            let gateway = next().filter(|gateway| !gateway.is_empty())?;
            Some(MessageId { gateway: Arc::from(gateway), store, start, counter })
        })();
        id.ok_or_else(|| MessageIdError { text: text.to_owned() })
    }
}

/// How far the wall clock of a stamp can be trusted (DESIGN.md 6.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockState {
    /// Set from a time source and kept by it.
    Synced,
    /// Set once, not kept since: right but for what the board's crystal may have drifted.
    Holdover {
        /// How far off the wall time may be.
        error_ms: u32,
    },
    /// Never set since this boot: the wall time may be years off.
    #[default]
    Unset,
}

impl ClockState {
    /// The word in payloads, status and configuration.
    pub fn name(self) -> &'static str {
        match self {
            ClockState::Synced => "synced",
            ClockState::Holdover { .. } => "holdover",
            ClockState::Unset => "unset",
        }
    }
}

/// When something happened, by both clocks of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Milliseconds since 1970-01-01T00:00:00Z by the wall clock.
    pub wall_ms: i64,
    /// Milliseconds since boot, suspended time included.
    pub mono_ms: u64,
    /// Whether `wall_ms` can be trusted.
    pub clock: ClockState,
}

/// What a point's value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing: the read failed, or the device said "not a number".
    Null,
    /// A coil, a discrete input, a bit.
    Bool(bool),
    /// A signed whole number.
    Int(i64),
    /// An unsigned whole number.
    Uint(u64),
    /// A real number, never NaN or infinite: those are `Null` with quality bad.
    Float(f64),
    /// A text.
    Text(String),
}

/// Whether a reading may be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// The device answered, and the answer was whole.
    Good,
    /// The device answered, and said itself that the value is not settled.
    Uncertain,
    /// No usable answer; the reading's `reason` says why.
    Bad,
}

impl Quality {
    /// The word in payloads.
    pub fn name(self) -> &'static str {
        match self {
            Quality::Good => "good",
            Quality::Uncertain => "uncertain",
            Quality::Bad => "bad",
        }
    }
}

/// What a device said: one point, once.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The device's name in the configuration.
    pub device: Arc<str>,
    /// The point's name.
    pub point: Arc<str>,
    /// The value, scaled.
    pub value: Value,
    /// Unit of measure, as configured.
    pub unit: Option<Arc<str>>,
    /// Whether to rely on it.
    pub quality: Quality,
    /// Why the quality is not good.
    pub reason: Option<Arc<str>>,
    /// Counts the device's readings without holes; given by the queue, 0 before that.
    pub seq: u64,
    /// When the value was on the wire.
    pub stamp: Stamp,
}

/// MQTT 5 properties that travel with a publish from end to end (MQTT 5.0, 3.3.2.3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    /// The body is UTF-8 text (payload format indicator 1).
    pub is_utf8: bool,
    /// Seconds after which nobody wants the message.
    pub expiry_s: Option<u32>,
    /// MIME type, as the publisher gave it.
    pub content_type: Option<String>,
    /// Where an answer is expected.
    pub response_topic: Option<Topic>,
    /// What an answer must repeat.
    pub correlation_data: Option<Bytes>,
    /// Name and value pairs, in order; names may repeat.
    pub user: Vec<(String, String)>,
}

impl Properties {
    /// Whether there is nothing to carry.
    pub fn is_empty(&self) -> bool {
        *self == Properties::default()
    }
}

/// What a message carries: a client's bytes as they came, or a reading that each way out encodes.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Bytes, never looked into.
    Bytes(Bytes),
    /// A reading: the way out chooses its format (`payload`).
    Reading(Reading),
}

/// Where a message entered the gateway; decides where it must not go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A field adapter read it.
    Field,
    /// A local MQTT client published it; the client id.
    Client(Arc<str>),
    /// It came from this uplink's cloud, and is never forwarded there again.
    Uplink(Arc<str>),
    /// The gateway's own: states, gaps, results.
    Gateway,
}

/// What travels. The queue gives it its `Sequence` and `MessageId`.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The local topic.
    pub topic: Topic,
    /// As its publisher asked.
    pub qos: Qos,
    /// Whether it becomes the topic's retained message; an empty body then deletes that.
    pub retain: bool,
    /// MQTT 5 properties; boxed since most messages have none.
    pub properties: Option<Box<Properties>>,
    /// What it carries.
    pub body: Body,
    /// Where it came from.
    pub origin: Origin,
    /// When it entered.
    pub received: Stamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captures(filter: &str, topic: &str) -> Option<(Vec<String>, Option<String>)> {
        let filter = Filter::new(filter).unwrap();
        let topic = Topic::new(topic).unwrap();
        let found = filter.captures(&topic)?;
        Some((found.plus.iter().map(|s| s.to_string()).collect(), found.rest.map(str::to_owned)))
    }

    #[test]
    fn filters_match_as_the_specification_says() {
        // The examples of MQTT 5.0, 4.7.1 and 4.7.2.
        let cases = [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "sport", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/monitor/clients", false),
            ("+/monitor/clients", "$SYS/monitor/clients", false),
            ("$SYS/#", "$SYS/monitor/clients", true),
            ("$SYS/monitor/+", "$SYS/monitor/clients", true),
            ("$share/g/sport/+", "sport/x", true),
            ("温度/+", "温度/1", true),
        ];
        for (filter, topic, expected) in cases {
            let matched = Filter::new(filter).unwrap().matches(&Topic::new(topic).unwrap());
            assert_eq!(matched, expected, "{filter} against {topic}");
        }
    }

    #[test]
    fn captures_say_what_the_wildcards_stood_for() {
        assert_eq!(captures("plant/#", "plant/a/b"), Some((vec![], Some("a/b".into()))));
        assert_eq!(captures("plant/#", "plant"), Some((vec![], Some(String::new()))));
        assert_eq!(captures("+/x/+/#", "1/x/2/3/4"), Some((vec!["1".into(), "2".into()], Some("3/4".into()))));
    }

    #[test]
    fn misplaced_wildcards_and_forbidden_characters_are_refused() {
        for bad in ["", "a#", "a/#/b", "a+/b", "a/b#", "a\0b", "$share/g", "$share//t", "$share/g+/t", "$share/g/"] {
            assert!(Filter::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a/+/b", "a/#", "a\0b"] {
            assert!(Topic::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Topic::new(&"x".repeat(65_536)), Err(TopicError::TooLong));
        assert_eq!(Filter::new("$share/g/a/b").unwrap().share_group(), Some("g"));
        assert_eq!(Filter::new("$share/g/a/b").unwrap().pattern(), "a/b");
    }

    #[test]
    fn a_message_id_reads_back_as_it_was_written() {
        let id = MessageId { gateway: Arc::from("press.hall-3"), store: 0xab_cdef, start: 7, counter: 99 };
        assert_eq!(id.to_string(), "press.hall-3.000000abcdef.7.99");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "a.b", "a.zz.1.1", "a.1000000000000.1.1", ".0.1.1"] {
            assert!(bad.parse::<MessageId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_gateways_own_topics_and_servers_topics_are_reserved() {
        for (text, expected) in [
            ("tidegate", true),
            ("tidegate/gw/gap", true),
            ("$SYS/x", true),
            ("$", true),
            ("tidegates", false),
            ("plant/tidegate/x", false),
            ("/tidegate", false),
        ] {
            assert_eq!(is_reserved(text), expected, "{text}");
        }
    }
}
