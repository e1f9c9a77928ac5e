//! Who may connect and what he may do, valid by type: users, hashes of passwords, patterns of topics. Pure.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use base64ct::{Base64, Base64Unpadded, Encoding as _};

use super::units::Wrong;
use crate::message::Filter;

/// The most memory that a hash may ask for: more than this at once is too much for a small board.
const MEMORY_KIB_MAX: u32 = 128 * 1024;
/// More than that takes longer than clients wait.
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 16;
const ITERATIONS_MAX: u32 = 10_000_000;

/// `[broker.user.<name>]`, with its groups merged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserConfig {
    /// What his password is compared with; `None` = he has none.
    pub password: Option<PasswordHash>,
    /// The name in the certificate that he shows instead.
    pub certificate: Option<CertificateName>,
    /// A token (`[broker.jwt]`) that bears his name is his.
    pub by_token: bool,
    /// What he may do.
    pub rights: TopicRights,
}

/// Lists of topics: what is in none of them is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicRights {
    /// May be published to.
    pub publish: Vec<TopicPattern>,
    /// May be subscribed to and heard.
    pub subscribe: Vec<TopicPattern>,
    /// Neither, whatever the others say.
    pub deny: Vec<TopicPattern>,
}

impl TopicRights {
    /// Adds those of a group.
    pub fn extend(&mut self, more: &TopicRights) {
        self.publish.extend(more.publish.iter().cloned());
        self.subscribe.extend(more.subscribe.iter().cloned());
        self.deny.extend(more.deny.iter().cloned());
    }
}

/// What a password is compared with. It prints nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordHash {
    /// `$argon2id$…` (RFC 9106), as `tidegate passwd` prints it.
    Argon2id {
        /// KiB of memory.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
        /// Random bytes.
        salt: Vec<u8>,
        /// What must come out.
        hash: Vec<u8>,
    },
    /// `$6$…` of mosquitto_passwd: one round of SHA-512 over password and salt.
    Sha512 {
        /// Random bytes.
        salt: Vec<u8>,
        /// What must come out.
        hash: Vec<u8>,
    },
    /// `$7$…` of mosquitto_passwd: PBKDF2 with HMAC-SHA-512.
    Pbkdf2 {
        /// Rounds.
        iterations: NonZeroU32,
        /// Random bytes.
        salt: Vec<u8>,
        /// What must come out.
        hash: Vec<u8>,
    },
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        into.write_str("PasswordHash")
    }
}

impl PasswordHash {
    /// Reads one of the three forms.
    pub(super) fn parse(text: &str) -> Result<PasswordHash, Wrong> {
        const HELP: &str = "`tidegate passwd USER` prints one; of mosquitto_passwd take what follows the colon";
        let wrong = || Wrong::new("is not the hash of a password").help(HELP);
        let mut parts = text.split('$');
        let (Some(""), Some(kind)) = (parts.next(), parts.next()) else { return Err(wrong()) };
        let parts: Vec<&str> = parts.collect();
        let is_mosquitto = matches!(kind, "6" | "7");
        let decode = |text: &str| match is_mosquitto {
            true => Base64::decode_vec(text),
            false => Base64Unpadded::decode_vec(text),
        };
        let decoded = |text: &str, min: usize, max: usize| {
            decode(text).ok().filter(|bytes| (min..=max).contains(&bytes.len())).ok_or_else(wrong)
        };
        match (kind, parts.as_slice()) {
            ("argon2id", ["v=19", parameters, salt, hash]) => {
                let number = |name: &str, text: Option<&str>| {
                    text.and_then(|text| text.strip_prefix(name)).and_then(|text| text.parse::<u32>().ok())
                };
                let mut fields = parameters.split(',');
                let memory_kib = number("m=", fields.next()).ok_or_else(wrong)?;
                let passes = number("t=", fields.next()).ok_or_else(wrong)?;
                let lanes = number("p=", fields.next()).ok_or_else(wrong)?;
                let is_fit = (1..=PASSES_MAX).contains(&passes)
                    && (1..=LANES_MAX).contains(&lanes)
                    && (8 * lanes..=MEMORY_KIB_MAX).contains(&memory_kib);
                if fields.next().is_some() || !is_fit {
                    let what =
                        format!("a hash may ask for {} MiB and {PASSES_MAX} passes at most", MEMORY_KIB_MAX / 1024);
                    return Err(Wrong::new(what).help(HELP));
                }
                let (salt, hash) = (decoded(salt, 8, 64)?, decoded(hash, 16, 64)?);
                Ok(PasswordHash::Argon2id { memory_kib, passes, lanes, salt, hash })
            }
            ("6", [salt, hash]) => {
                Ok(PasswordHash::Sha512 { salt: decoded(salt, 1, 64)?, hash: decoded(hash, 64, 64)? })
            }
            ("7", [iterations, salt, hash]) => {
                let iterations = iterations.parse().ok().filter(|count: &NonZeroU32| count.get() <= ITERATIONS_MAX);
                let (salt, hash) = (decoded(salt, 1, 64)?, decoded(hash, 64, 64)?);
                Ok(PasswordHash::Pbkdf2 { iterations: iterations.ok_or_else(wrong)?, salt, hash })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for PasswordHash {
    /// As it is written in the configuration.
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PasswordHash::Argon2id { memory_kib, passes, lanes, salt, hash } => {
                let (salt, hash) = (Base64Unpadded::encode_string(salt), Base64Unpadded::encode_string(hash));
                write!(into, "$argon2id$v=19$m={memory_kib},t={passes},p={lanes}${salt}${hash}")
            }
            PasswordHash::Sha512 { salt, hash } => {
                write!(into, "$6${}${}", Base64::encode_string(salt), Base64::encode_string(hash))
            }
            PasswordHash::Pbkdf2 { iterations, salt, hash } => {
                write!(into, "$7${iterations}${}${}", Base64::encode_string(salt), Base64::encode_string(hash))
            }
        }
    }
}

/// `certificate = "CN=plc7"`
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// Common name of the subject.
    Common(Arc<str>),
    /// A subject alternative name that is text: a DNS name, a mail address, a URI; or an address.
    Alternative(Arc<str>),
}

impl CertificateName {
    /// Reads `CN=…` or `SAN=…`.
    pub(super) fn parse(text: &str) -> Result<CertificateName, Wrong> {
        let name = |name: &str| (!name.is_empty() && !name.chars().any(char::is_control)).then(|| Arc::from(name));
        let read = match text.split_once('=') {
            Some(("CN", common)) => name(common).map(CertificateName::Common),
            Some(("SAN", alternative)) => name(alternative).map(CertificateName::Alternative),
            _ => None,
        };
        read.ok_or_else(|| {
            Wrong::new(format!("{text:?} is not a name in a certificate"))
                .help("write \"CN=plc7\" for the common name, \"SAN=plc7.example.com\" for an alternative name")
        })
    }
}

/// A filter in which `{client_id}` and `{username}` stand for those of whoever asks.
#[derive(Clone, PartialEq, Eq)]
pub struct TopicPattern(Arc<str>);

impl fmt::Debug for TopicPattern {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, into)
    }
}

const PLACEHOLDERS: [&str; 2] = ["{client_id}", "{username}"];

impl TopicPattern {
    /// Reads a filter with placeholders.
    pub(super) fn parse(text: &str) -> Result<TopicPattern, Wrong> {
        if text.starts_with("$share/") {
            return Err(Wrong::new(format!("{text:?} is a shared subscription"))
                .help("write the filter without `$share/<group>/`: it holds for both"));
        }
        let [client_id, username] = PLACEHOLDERS;
        let plain = text.replace(client_id, "x").replace(username, "x");
        if plain.contains(['{', '}']) {
            return Err(Wrong::new(format!("{text:?} has a placeholder that is not known"))
                .help("the placeholders are {client_id} and {username}"));
        }
        if let Err(error) = Filter::new(&plain) {
            return Err(Wrong::new(format!("{text:?} cannot be a filter: {error}")));
        }
        Ok(TopicPattern(Arc::from(text)))
    }

    /// The text, as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it asks who the user is.
    pub(super) fn names_user(&self) -> bool {
        let [_, username] = PLACEHOLDERS;
        self.0.contains(username)
    }

    /// The filter for this client; `None` when one of its names is not fit for a topic: it must not be able to widen
    /// what was meant for it.
    pub fn filter(&self, client_id: &str, username: &str) -> Option<Filter> {
        let mut text = self.0.to_string();
        let names: [(&str, &str); 2] = [("{client_id}", client_id), ("{username}", username)];
        // From one reading of the pattern: a name that looks like a placeholder stays a name.
        let mut filled = String::with_capacity(text.len());
        while let Some((at, placeholder, name)) = names
            .iter()
            .filter_map(|(placeholder, name)| text.find(placeholder).map(|at| (at, *placeholder, *name)))
            .min_by_key(|(at, ..)| *at)
        {
            let is_fit = !name.is_empty() && !name.contains(['/', '+', '#', '\0']);
            // In the first place a $ would reach what wildcards do not.
            if !is_fit || (at == 0 && filled.is_empty() && name.starts_with('$')) {
                return None;
            }
            let (before, rest) = text.split_at_checked(at)?;
            filled.push_str(before);
            filled.push_str(name);
            text = rest.get(placeholder.len()..)?.to_owned();
        }
        filled.push_str(&text);
        Filter::new(&filled).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hashes_of_all_three_kinds_are_read_and_written_as_they_were() {
        let sha512 = Base64::encode_string(&[7; 64]);
        for text in [
            "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
                .to_owned(),
            format!("$6$AAAAAAAAAAAAAAAA${sha512}"),
            format!("$7$101$AAAAAAAAAAAAAAAA${sha512}"),
        ] {
            let hash = PasswordHash::parse(&text).unwrap();
            assert_eq!(hash.to_string(), text);
            assert_eq!(format!("{hash:?}"), "PasswordHash", "a hash must not reach a log");
        }
    }

    #[test]
    fn what_is_no_hash_or_asks_for_too_much_is_refused() {
        let sha512 = Base64::encode_string(&[7; 64]);
        for text in [
            String::new(),
            "secret".to_owned(),
            "$argon2i$v=19$m=4096,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
            "$argon2id$v=19$m=4194304,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
            "$argon2id$v=19$m=4096,t=2000,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
            "$argon2id$v=19$m=4096,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
            "$argon2id$v=19$m=4096,t=2,p=1$$".to_owned(),
            format!("$6$AAAA${}", Base64::encode_string(&[7; 63])),
            format!("$7$0$AAAA${sha512}"),
            format!("$7$4000000000$AAAA${sha512}"),
            format!("$5$AAAA${sha512}"),
        ] {
            assert!(PasswordHash::parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_certificates_say_which_they_are() {
        assert_eq!(CertificateName::parse("CN=plc7"), Ok(CertificateName::Common(Arc::from("plc7"))));
        assert_eq!(CertificateName::parse("SAN=urn:a=b"), Ok(CertificateName::Alternative(Arc::from("urn:a=b"))));
        for text in ["plc7", "CN=", "cn=plc7", "O=plant", "CN=a\nb"] {
            assert!(CertificateName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_cannot_widen_the_pattern_that_it_fills() {
        let filled = |pattern: &str, client: &str, user: &str| {
            TopicPattern::parse(pattern).unwrap().filter(client, user).map(|filter| filter.as_str().to_owned())
        };
        assert_eq!(filled("plant/{client_id}/{username}/#", "c", "u").as_deref(), Some("plant/c/u/#"));
        assert_eq!(filled("a-{client_id}", "{username}", "u").as_deref(), Some("a-{username}"));
        assert_eq!(filled("plant/#", "#", "").as_deref(), Some("plant/#"), "who is not asked for does not matter");
        for name in ["#", "+", "a/b", "", "a\0", "a+"] {
            assert_eq!(filled("plant/{client_id}/set", name, "u"), None, "{name:?}");
        }
        for name in ["$SYS", "$share"] {
            assert_eq!(filled("{client_id}/g/#", name, "u"), None, "{name}");
            assert!(filled("plant/{client_id}", name, "u").is_some());
        }
        for text in ["", "a/#/b", "{client}", "a}", "$share/g/a", "a+"] {
            assert!(TopicPattern::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_filled_pattern_has_the_levels_and_wildcards_of_the_pattern(client in ".{0,8}", user in ".{0,8}") {
            let pattern = TopicPattern::parse("{client_id}/+/{username}-{client_id}/#").unwrap();
            if let Some(filter) = pattern.filter(&client, &user) {
                let levels: Vec<&str> = filter.as_str().split('/').collect();
                prop_assert_eq!(levels.len(), 4);
                prop_assert_eq!((levels[1], levels[3]), ("+", "#"));
                prop_assert!(!levels[2].contains(['+', '#']) && !levels[0].starts_with('$'));
            }
        }
    }
}
