//! By what a cloud's command is known again, and by what a message that has come back. Pure.

use serde::Deserialize;

use crate::message::{Message, Origin, Properties, Topic};

/// The user property that names the gateways by which a message went from one cloud to another.
pub const VIA_PROPERTY: &str = "tidegate-via";

/// Gateways that are named at most: who has passed more goes in circles.
const VIA_MAX: usize = 16;

/// A command is a small thing: what is longer is not looked into for an id.
const COMMAND_BYTES_MAX: usize = 64 * 1024;

#[derive(Deserialize)]
struct Named {
    id: serde::de::IgnoredAny,
}

/// What a command at QoS 1 is known by when it comes again; `None` when it bears nothing by which two of the same could be
/// told apart, neither correlation data nor a field `id`: then each counts.
pub fn key(uplink: &str, topic: &Topic, payload: &[u8], properties: &Properties) -> Option<u64> {
    let has_id = || {
        payload.len() <= COMMAND_BYTES_MAX
            && serde_json::from_slice::<Named>(payload).is_ok_and(|Named { id: serde::de::IgnoredAny }| true)
    };
    if properties.correlation_data.is_none() && !has_id() {
        return None;
    }
    let correlation = properties.correlation_data.as_deref().unwrap_or_default();
    let response = properties.response_topic.as_ref().map_or("", Topic::as_str);
    let parts = [uplink.as_bytes(), topic.as_str().as_bytes(), correlation, response.as_bytes(), payload];
    Some(hashed(&parts))
}

/// FNV-1a: it is kept on disk and must not change with a library. Each part's length keeps it from running into the next.
pub fn hashed(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.len().to_le_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// Whether a message has gone from this gateway to another cloud before.
pub fn has_passed(gateway: &str, properties: &Properties) -> bool {
    let passed = properties.user.iter().filter(|(name, _)| name == VIA_PROPERTY);
    passed.clone().any(|(_, value)| value == gateway) || passed.count() >= VIA_MAX
}

/// A message that came from one cloud bears on its way to the next by which gateway it went.
pub fn note_passage(gateway: &str, message: &Message, user: &mut Vec<(String, String)>) {
    if matches!(message.origin, Origin::Uplink(_)) {
        user.push((VIA_PROPERTY.to_owned(), gateway.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_data(data: &'static [u8]) -> Properties {
        Properties { correlation_data: Some(data.into()), ..Properties::default() }
    }

    #[test]
    fn a_command_is_known_by_all_that_it_says_and_only_if_it_bears_an_id() {
        let topic = |text: &str| Topic::new(text).unwrap();
        let none = Properties::default();
        assert_eq!(key("hub", &topic("a"), b"7", &none), None);
        assert_eq!(key("hub", &topic("a"), b"{\"value\": 7}", &none), None);
        let first = key("hub", &topic("a"), b"{\"value\": 7, \"id\": 1}", &none).unwrap();
        assert_eq!(key("hub", &topic("a"), b"{\"value\": 7, \"id\": 1}", &none), Some(first));
        for (uplink, at, payload, properties) in [
            ("other", "a", &b"{\"value\": 7, \"id\": 1}"[..], none.clone()),
            ("hub", "b", b"{\"value\": 7, \"id\": 1}", none.clone()),
            ("hub", "a", b"{\"value\": 7, \"id\": 2}", none.clone()),
            ("hub", "a", b"{\"value\": 7, \"id\": 1}", with_data(b"x")),
        ] {
            assert_ne!(key(uplink, &topic(at), payload, &properties), Some(first), "{at}");
        }
        assert!(key("hub", &topic("a"), b"7", &with_data(b"c")).is_some());
        assert_ne!(key("hub", &topic("ab"), b"c", &with_data(b"")), key("hub", &topic("a"), b"bc", &with_data(b"")));
    }

    #[test]
    fn a_message_that_passed_here_is_known_and_one_that_goes_in_circles_too() {
        let via = |names: &[&str]| Properties {
            user: names.iter().map(|name| (VIA_PROPERTY.to_owned(), (*name).to_owned())).collect(),
            ..Properties::default()
        };
        assert!(!has_passed("g", &Properties::default()) && !has_passed("g", &via(&["h"])));
        assert!(has_passed("g", &via(&["h", "g"])) && has_passed("g", &via(&["h"; 16])));
    }
}
