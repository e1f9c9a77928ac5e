//! Passwords that were right, so that nobody's hash is worked out at each of his connections. Pure.
//!
//! What is kept is no password and no hash of one, but its HMAC under a random key that lives and dies with the process. The
//! hash of the configuration goes into it: where that changes, nothing is known any more.

use std::collections::HashMap;
use std::sync::Arc;

use ring::hmac;
use ring::rand::SystemRandom;

use crate::config::PasswordHash;

/// Of each user the last password that was right.
#[derive(Debug)]
pub(super) struct Known {
    /// `None`: there are no random numbers, and nothing is remembered.
    key: Option<hmac::Key>,
    tags: HashMap<Arc<str>, hmac::Tag>,
}

impl Known {
    pub(super) fn new() -> Known {
        Known { key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok(), tags: HashMap::new() }
    }

    pub(super) fn is_right(&self, user: &str, hash: &PasswordHash, password: &[u8]) -> bool {
        match (&self.key, self.tags.get(user)) {
            (Some(key), Some(tag)) => hmac::verify(key, &said(user, hash, password), tag.as_ref()).is_ok(),
            _ => false,
        }
    }

    pub(super) fn remember(&mut self, user: &Arc<str>, hash: &PasswordHash, password: &[u8]) {
        if let Some(key) = &self.key {
            self.tags.insert(user.clone(), hmac::sign(key, &said(user, hash, password)));
        }
    }

    /// Forgets users that are no more.
    pub(super) fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.tags.retain(|user, _| is_there(user));
    }
}

/// The three with their lengths, so that no two of them can be taken for others.
fn said(user: &str, hash: &PasswordHash, password: &[u8]) -> Vec<u8> {
    let hash = hash.to_string();
    let mut bytes = Vec::with_capacity(16 + user.len() + hash.len() + password.len());
    for part in [user.as_bytes(), hash.as_bytes()] {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes.extend_from_slice(password);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_password_hash;

    #[test]
    fn a_password_is_known_for_its_user_and_hash_only_and_for_as_long_as_he_is_there() {
        let hash = |of| parse_password_hash(&super::super::hashes_for_tests(of)).unwrap();
        let user: Arc<str> = Arc::from("hmi");
        let mut known = Known::new();
        assert!(!known.is_right("hmi", &hash("a"), b"secret"));
        known.remember(&user, &hash("a"), b"secret");
        assert!(known.is_right("hmi", &hash("a"), b"secret"));
        assert!(!known.is_right("hmi", &hash("a"), b"secret2"));
        assert!(!known.is_right("hmi", &hash("b"), b"secret"), "the configuration says another");
        assert!(!known.is_right("plc", &hash("a"), b"secret"));
        known.keep(|name| name != "hmi");
        assert!(!known.is_right("hmi", &hash("a"), b"secret"));
    }
}
