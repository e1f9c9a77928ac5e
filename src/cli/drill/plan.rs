//! What a drill is made of, from configuration and arguments. Decides; reaches nobody.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use thiserror::Error;

use super::DrillArguments;
use super::journal::{Header, Step};
use crate::cli::publisher::{Login, Sent};
use crate::cli::secret;
use crate::config::clouds::Direction;
use crate::config::{Config, Endpoint, ForwardRule, ListenerAddress, ListenerConfig, ListenerTransport, UplinkConfig};
use crate::message::{Filter, Qos, Topic, TopicError};
use crate::uplink::{provision, registration};

/// The level that stands for what a filter leaves open.
const LEVEL: &str = "tidegate-drill";

/// Everything that is decided before the first message.
#[derive(Debug)]
pub(super) struct Plan {
    pub header: Header,
    pub broker: SocketAddr,
    pub sent: Sent,
    /// What is read back.
    pub filter: Filter,
    pub uplink: UplinkConfig,
    /// Where, if not at the uplink's cloud.
    pub read_back: Option<Endpoint>,
}

/// Why there is nothing to drill.
#[derive(Debug, Error)]
pub(in crate::cli) enum PlanError {
    #[error("no uplink is configured")]
    NoUplink,
    #[error("there are several uplinks: {names}")]
    WhichUplink { names: String },
    #[error("there is no uplink {name}; there are: {names}")]
    UnknownUplink { name: String, names: String },
    #[error("no listener is configured that speaks MQTT over plain TCP")]
    NoListener,
    #[error("{text:?} cannot be a topic")]
    Topic {
        text: String,
        #[source]
        source: TopicError,
    },
    #[error("no forward rule of the uplink {uplink} delivers {topic}")]
    NotForwarded { uplink: String, topic: String },
    #[error("the forward rule {filter} delivers at QoS 0, which promises nothing")]
    Qos0 { filter: String },
    #[error("{title} gives a device nothing of what it has sent, so there is nothing to read back")]
    NothingBack { title: &'static str },
    #[error("the uplink {uplink} goes by HTTP, and by that nothing can be read back")]
    Http { uplink: String },
    #[error("the uplink {uplink} has not registered at its cloud yet")]
    Unregistered { uplink: String },
    #[error("{url:?} is no address to read back from; write mqtt://host:port or mqtts://host:port")]
    Url { url: String },
    #[error("no step is given")]
    NoStep,
    #[error("a drill of the uplink {uplink} on {topic} was broken off")]
    Other { uplink: String, topic: String },
    #[error("cannot read the password")]
    Password(#[source] std::io::Error),
    #[error("cannot draw a name for the drill")]
    Random(#[source] std::io::Error),
}

impl PlanError {
    /// What a person can do about it.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            PlanError::WhichUplink { .. } => Some("say which with --uplink"),
            PlanError::NotForwarded { .. } => Some("choose a topic that a forward rule wants with --topic"),
            PlanError::Qos0 { .. } => Some("choose another topic with --topic, or write qos = 1 in that rule"),
            PlanError::NothingBack { .. } | PlanError::Http { .. } => {
                Some("read back where the messages come out, with --read-back and --read-back-topic")
            }
            PlanError::Unregistered { .. } => Some("let the gateway run until it is connected, and drill then"),
            PlanError::Other { .. } => Some("go on with it by the same --uplink and --topic, or forget it with --anew"),
            _ => None,
        }
    }
}

impl Plan {
    /// `past`: a drill that is to go on keeps its name, topic and steps.
    pub fn make(config: &Config, arguments: &DrillArguments, past: Option<Header>) -> Result<Plan, PlanError> {
        let wanted = arguments.uplink.clone().or_else(|| past.as_ref().map(|past| past.uplink.clone()));
        let (name, uplink) = uplink(config, wanted.as_deref())?;
        let chosen = arguments.topic.clone().or_else(|| past.as_ref().map(|past| past.topic.clone()));
        let text = chosen.unwrap_or_else(|| default_topic(&uplink.forward));
        let topic = Topic::new(&text).map_err(|source| PlanError::Topic { text, source })?;
        if let Some(past) = past.as_ref().filter(|past| past.uplink != name || past.topic != topic.as_str()) {
            return Err(PlanError::Other { uplink: past.uplink.clone(), topic: past.topic.clone() });
        }
        let filter = match &arguments.read_back_topic {
            Some(text) => text.clone(),
            None => cloud_topic(&uplink.forward, &name, &topic)?.as_str().to_owned(),
        };
        let filter = Filter::new(&filter).map_err(|source| PlanError::Topic { text: filter, source })?;
        let header = match past {
            Some(past) => past,
            None => Header { drill: draw()?, uplink: name, topic: topic.as_str().to_owned(), steps: steps(arguments)? },
        };
        let sent = Sent {
            client_id: format!("tidegate-drill-{}", header.drill),
            login: login(arguments)?,
            topic,
            members: format!("\"drill\":\"{}\"", header.drill),
        };
        let broker = match arguments.broker {
            Some(broker) => broker,
            None => listener(config).ok_or(PlanError::NoListener)?,
        };
        let read_back = arguments.read_back.as_deref().map(endpoint).transpose()?;
        let uplink = match read_back {
            None => readable(&header.uplink, uplink, &filter)?,
            Some(_) => own(uplink).unwrap_or_else(|| uplink.clone()),
        };
        Ok(Plan { header, broker, sent, filter, uplink, read_back })
    }
}

fn login(arguments: &DrillArguments) -> Result<Option<Login>, PlanError> {
    let Some(username) = arguments.username.clone() else { return Ok(None) };
    let password = match &arguments.password_file {
        Some(file) => secret::from_file(file).map_err(PlanError::Password)?,
        None => Bytes::new(),
    };
    Ok(Some(Login { username, password }))
}

fn steps(arguments: &DrillArguments) -> Result<Vec<Step>, PlanError> {
    let mut steps: Vec<Step> = Vec::new();
    for step in &arguments.steps {
        if !steps.contains(step) {
            steps.push(*step);
        }
    }
    if steps.is_empty() { Err(PlanError::NoStep) } else { Ok(steps) }
}

fn uplink<'c>(config: &'c Config, wanted: Option<&str>) -> Result<(String, &'c UplinkConfig), PlanError> {
    let names = || config.uplinks.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
    let mut all = config.uplinks.iter();
    match wanted {
        Some(wanted) => match all.find(|(name, _)| &***name == wanted) {
            Some((name, uplink)) => Ok((name.to_string(), uplink)),
            None => Err(PlanError::UnknownUplink { name: wanted.to_owned(), names: names() }),
        },
        None => match (all.next(), all.next()) {
            (None, _) => Err(PlanError::NoUplink),
            (Some((name, uplink)), None) => Ok((name.to_string(), uplink)),
            _ => Err(PlanError::WhichUplink { names: names() }),
        },
    }
}

/// The uplink as it goes to its cloud, where that gives back what it has got.
fn readable(name: &str, uplink: &UplinkConfig, filter: &Filter) -> Result<UplinkConfig, PlanError> {
    if uplink.http.is_some() {
        return Err(PlanError::Http { uplink: name.to_owned() });
    }
    if (uplink.profile.foreign)(&uplink.client_id, filter.as_str(), Direction::Down).is_some() {
        return Err(PlanError::NothingBack { title: uplink.profile.title });
    }
    if uplink.provision.is_none() && uplink.dps.is_none() {
        return Ok(uplink.clone());
    }
    own(uplink).ok_or_else(|| PlanError::Unregistered { uplink: name.to_owned() })
}

/// As the gateway that has registered goes there itself: not to the service that only says where, not with the claim of a lot.
fn own(uplink: &UplinkConfig) -> Option<UplinkConfig> {
    provision::provisioned(uplink).or_else(|| registration::assigned(uplink))
}

/// A topic that the first rule wants.
fn default_topic(rules: &[ForwardRule]) -> String {
    let pattern = rules.first().map_or("field/#", |rule| rule.filter.pattern());
    let levels: Vec<&str> =
        pattern.split('/').map(|level| if matches!(level, "+" | "#") { LEVEL } else { level }).collect();
    levels.join("/")
}

fn cloud_topic(rules: &[ForwardRule], uplink: &str, topic: &Topic) -> Result<Topic, PlanError> {
    let not_forwarded = || PlanError::NotForwarded { uplink: uplink.to_owned(), topic: topic.as_str().to_owned() };
    let rule = rules.iter().find(|rule| rule.filter.matches(topic)).ok_or_else(not_forwarded)?;
    if rule.qos == Some(Qos::AtMostOnce) {
        return Err(PlanError::Qos0 { filter: rule.filter.as_str().to_owned() });
    }
    match rule.topic.apply(&rule.filter, topic) {
        Some(Ok(topic)) => Ok(topic),
        Some(Err(source)) => Err(PlanError::Topic { text: topic.as_str().to_owned(), source }),
        None => Err(not_forwarded()),
    }
}

/// Where the gateway can be reached with nothing but TCP.
pub(in crate::cli) fn listener(config: &Config) -> Option<SocketAddr> {
    config.broker.listeners.values().find_map(plain)
}

fn plain(listener: &ListenerConfig) -> Option<SocketAddr> {
    match (&listener.bind, listener.transport, &listener.tls) {
        (ListenerAddress::Network(bind), ListenerTransport::Mqtt, None) => Some(reachable(*bind)),
        _ => None,
    }
}

/// Where a listener on all addresses is reached from here.
fn reachable(bind: SocketAddr) -> SocketAddr {
    match bind {
        SocketAddr::V4(bind) if bind.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, bind.port()).into(),
        SocketAddr::V6(bind) if bind.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, bind.port()).into(),
        bind => bind,
    }
}

/// Reads `mqtt://host:port` or `mqtts://host:port`.
pub(in crate::cli) fn endpoint(url: &str) -> Result<Endpoint, PlanError> {
    let wrong = || PlanError::Url { url: url.to_owned() };
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let (tls, usual) = match scheme {
        "mqtt" => (false, 1883),
        "mqtts" => (true, 8883),
        _ => return Err(wrong()),
    };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (rest, usual),
    };
    if host.is_empty() || host.contains(['/', '@', ' ']) {
        return Err(wrong());
    }
    Ok(Endpoint { host: host.to_owned(), port, tls, path: None })
}

fn draw() -> Result<String, PlanError> {
    let mut bytes = [0_u8; 4];
    getrandom::fill(&mut bytes).map_err(|error| PlanError::Random(std::io::Error::other(error)))?;
    Ok(format!("{:08x}", u32::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TopicTemplate;

    fn rule(filter: &str, topic: &str, qos: Option<Qos>) -> ForwardRule {
        let filter = Filter::new(filter).unwrap();
        let topic = TopicTemplate::parse(topic, &filter, "g7").unwrap();
        ForwardRule {
            filter,
            topic,
            qos,
            when_full: None,
            strict_order: false,
            payload: crate::config::Payload::JSON,
            batch: None,
        }
    }

    #[test]
    fn the_topic_is_one_that_the_first_rule_wants() {
        for (filter, cloud) in
            [("plant/#", "x/plant/tidegate-drill"), ("+/a/+", "x/tidegate-drill/a/tidegate-drill"), ("a", "x/a")]
        {
            let rules = [rule(filter, "x/{topic}", None)];
            let topic = Topic::new(&default_topic(&rules)).unwrap();
            assert_eq!(cloud_topic(&rules, "cloud", &topic).unwrap().as_str(), cloud);
        }
    }

    #[test]
    fn a_topic_that_nobody_promised_anything_is_refused() {
        let rules = [rule("low/#", "{topic}", Some(Qos::AtMostOnce)), rule("plant/#", "{topic}", None)];
        let refused = |topic: &str| cloud_topic(&rules, "cloud", &Topic::new(topic).unwrap()).unwrap_err();
        assert!(matches!(refused("low/x"), PlanError::Qos0 { .. }));
        assert!(matches!(refused("other"), PlanError::NotForwarded { .. }));
    }

    #[test]
    fn addresses_to_read_back_from_are_read() {
        let read = |url: &str| endpoint(url).map(|endpoint| (endpoint.host, endpoint.port, endpoint.tls)).ok();
        assert_eq!(read("mqtt://h:1884"), Some(("h".to_owned(), 1884, false)));
        assert_eq!(read("mqtts://h"), Some(("h".to_owned(), 8883, true)));
        assert_eq!(read("mqtt://[::1]"), Some(("[::1]".to_owned(), 1883, false)));
        for wrong in ["h:1", "http://h", "mqtt://", "mqtt://h:x", "mqtt://u@h", "mqtt://h/x"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
