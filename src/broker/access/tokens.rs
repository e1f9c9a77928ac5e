//! Tokens (JWT, RFC 7519) that local clients show instead of a password: whether somebody whose key is known has signed
//! one, what it says of its bearer, and for how long. Pure.
//!
//! The kind of the key decides the algorithm, never the token; a token without an end is none. All of the cryptography is
//! that of `ring`.
//!
//! Where the clock is not known a token is judged by the time that has certainly passed: one that had ended by then is
//! refused, and one that may be good is taken until the clock says otherwise. (`without_clock = "refuse"` takes none.)

use std::sync::Arc;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;

use crate::config::{PublicKey, TokenConfig, TokenKey};

/// Longer ones are not looked at: a CONNECT has no more room for one.
const TOKEN_BYTES_MAX: usize = 60 * 1024;
/// Of whatever a token says.
const NAME_BYTES_MAX: usize = 256;
const GROUPS_MAX: usize = 64;
const AUDIENCES_MAX: usize = 64;

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::broker) enum TokenFault {
    Malformed,
    Algorithm,
    UnknownKey,
    Signature,
    Endless,
    Ended,
    NotYet,
    Audience,
    Issuer,
    NoUser,
    AnotherName,
    NotByToken,
    NoClock,
}

impl TokenFault {
    pub(super) fn words(self) -> &'static str {
        match self {
            TokenFault::Malformed => "its token cannot be read",
            TokenFault::Algorithm => "its token is signed by an algorithm that is not taken (RS256, ES256)",
            TokenFault::UnknownKey => "its token is signed by a key that is not among `keys` of [broker.jwt]",
            TokenFault::Signature => "the signature of its token is wrong",
            TokenFault::Endless => "its token does not say when it ends (`exp`)",
            TokenFault::Ended => "its token has ended",
            TokenFault::NotYet => "its token is not good yet (`nbf`), or a clock is wrong",
            TokenFault::Audience => "its token is for another service (`aud`; `audience` of [broker.jwt])",
            TokenFault::Issuer => "its token is by another issuer (`iss`; `issuer` of [broker.jwt])",
            TokenFault::NoUser => "its token names no user (`user_claim` of [broker.jwt])",
            TokenFault::AnotherName => "it gave another user name than its token",
            TokenFault::NotByToken => {
                "its token names a user who does not log in by one (`jwt` in [broker.user.<name>])"
            }
            TokenFault::NoClock => "this board does not know the time, and takes no token until then",
        }
    }

    /// Somebody may have made it up: that counts as a guess. A token that is only out of date does not.
    pub(super) fn is_guess(self) -> bool {
        matches!(self, TokenFault::Malformed | TokenFault::Algorithm | TokenFault::UnknownKey | TokenFault::Signature)
    }
}

/// Between which times the moment lies, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// It is not earlier.
    pub(super) earliest_ms: i64,
    /// It is not later; `None` where nobody knows.
    pub(super) latest_ms: Option<i64>,
}

/// What a token says whose signature is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::broker) struct Shown {
    pub(super) user: Arc<str>,
    pub(super) groups: Vec<Arc<str>>,
    key: Arc<TokenKey>,
    audience: Vec<String>,
    issuer: Option<String>,
    begins_s: Option<i64>,
    ends_s: i64,
}

/// Whether a password has the form of a token. Only that: it may be anything.
pub(super) fn is_token(password: &[u8]) -> bool {
    header(password).is_some_and(|header| header.get("alg").is_some())
}

fn header(token: &[u8]) -> Option<Value> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(token).ok()?;
    let (header, rest) = text.split_once('.')?;
    let has_two_more = rest.split('.').count() == 2;
    if has_two_more { json(header) } else { None }
}

fn json(part: &str) -> Option<Value> {
    serde_json::from_slice(&Base64UrlUnpadded::decode_vec(part).ok()?).ok()
}

/// Reads a token by somebody whose key is known, whatever its time.
pub(super) fn read(config: &TokenConfig, token: &[u8]) -> Result<Shown, TokenFault> {
    let header = header(token).ok_or(TokenFault::Malformed)?;
    if header.get("crit").is_some() {
        // What must be understood, and is not (RFC 7515, 4.1.11).
        return Err(TokenFault::Malformed);
    }
    let text = std::str::from_utf8(token).map_err(|_| TokenFault::Malformed)?;
    let (signed, signature) = text.rsplit_once('.').ok_or(TokenFault::Malformed)?;
    let signature = Base64UrlUnpadded::decode_vec(signature).map_err(|_| TokenFault::Malformed)?;
    let key = signer(config, &header, signed.as_bytes(), &signature)?;
    let claims = signed.split_once('.').and_then(|(_, claims)| json(claims)).ok_or(TokenFault::Malformed)?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
    let user = claim(&claims, &config.user_claim).and_then(Value::as_str);
    let user = user.filter(|user| !user.is_empty() && user.len() <= NAME_BYTES_MAX).ok_or(TokenFault::NoUser)?;
    let begins_s = match claims.get("nbf") {
        Some(begin) => Some(seconds(begin).ok_or(TokenFault::Malformed)?),
        None => None,
    };
    let shown = Shown {
        user: Arc::from(user),
        groups: names(claim(&claims, &config.groups_claim), GROUPS_MAX).into_iter().map(Arc::from).collect(),
        key,
        audience: names_of_one_or_many(claims.get("aud")),
        issuer: text("iss"),
        begins_s,
        ends_s: claims.get("exp").and_then(seconds).ok_or(TokenFault::Endless)?,
    };
    shown.is_vouched_for(config)?;
    Ok(shown)
}

impl Shown {
    /// Whether one that says this is taken, as the configuration is.
    pub(super) fn is_vouched_for(&self, config: &TokenConfig) -> Result<(), TokenFault> {
        if !config.keys.contains(&self.key) {
            return Err(TokenFault::UnknownKey);
        }
        if !self.audience.iter().any(|one| config.audience.contains(one)) {
            return Err(TokenFault::Audience);
        }
        if config.issuer.is_some() && config.issuer != self.issuer {
            return Err(TokenFault::Issuer);
        }
        Ok(())
    }

    /// Whether it is good at a moment; then, how many milliseconds are left of it, where that is known.
    pub(super) fn left_ms(&self, config: &TokenConfig, now: Moment) -> Result<Option<u64>, TokenFault> {
        let leeway_ms = i64::try_from(config.leeway.as_millis()).unwrap_or(i64::MAX);
        let end_ms = self.ends_s.saturating_mul(1000).saturating_add(leeway_ms);
        if now.earliest_ms >= end_ms {
            return Err(TokenFault::Ended);
        }
        let Some(latest_ms) = now.latest_ms else {
            return if config.without_clock { Ok(None) } else { Err(TokenFault::NoClock) };
        };
        match self.begins_s {
            Some(begin_s) if begin_s.saturating_mul(1000).saturating_sub(leeway_ms) > latest_ms => {
                Err(TokenFault::NotYet)
            }
            _ => Ok(Some(end_ms.abs_diff(now.earliest_ms))),
        }
    }
}

fn signer(config: &TokenConfig, header: &Value, signed: &[u8], signature: &[u8]) -> Result<Arc<TokenKey>, TokenFault> {
    let algorithm = header.get("alg").and_then(Value::as_str);
    if !matches!(algorithm, Some("RS256" | "ES256")) {
        return Err(TokenFault::Algorithm);
    }
    let id = header.get("kid").and_then(Value::as_str);
    let is_fit = |key: &&Arc<TokenKey>| {
        let is_kind = matches!(
            (&key.key, algorithm),
            (PublicKey::Rsa { .. }, Some("RS256")) | (PublicKey::P256 { .. }, Some("ES256"))
        );
        // A key of PEM has no name, and a token may bear none.
        is_kind && (id.is_none() || key.id.is_none() || key.id.as_deref() == id)
    };
    let mut fit = config.keys.iter().filter(is_fit).peekable();
    if fit.peek().is_none() {
        return Err(TokenFault::UnknownKey);
    }
    fit.find(|key| has_signed(&key.key, signed, signature)).cloned().ok_or(TokenFault::Signature)
}

fn has_signed(key: &PublicKey, signed: &[u8], signature: &[u8]) -> bool {
    match key {
        PublicKey::Rsa { modulus: n, exponent: e } => {
            RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature).is_ok()
        }
        PublicKey::P256 { point } => {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature).is_ok()
        }
    }
}

/// A claim by its name, or by a path as Keycloak has it: `realm_access.roles`.
fn claim<'c>(claims: &'c Value, path: &str) -> Option<&'c Value> {
    claims.get(path).or_else(|| path.split('.').try_fold(claims, |claims, name| claims.get(name)))
}

/// A list of names, or as many as OAuth writes in one text.
fn names(claim: Option<&Value>, max: usize) -> Vec<&str> {
    match claim {
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).take(max).collect(),
        Some(Value::String(one)) => one.split_whitespace().take(max).collect(),
        _ => Vec::new(),
    }
}

/// `aud` is one or many (RFC 7519, 4.1.3); one may have spaces in it.
fn names_of_one_or_many(claim: Option<&Value>) -> Vec<String> {
    match claim {
        Some(Value::String(one)) => vec![one.clone()],
        other => names(other, AUDIENCES_MAX).into_iter().map(str::to_owned).collect(),
    }
}

/// NumericDate may have a fraction (RFC 7519, 2).
#[expect(clippy::cast_possible_truncation, reason = "whole seconds are wanted, and the cast keeps to the range")]
fn seconds(date: &Value) -> Option<i64> {
    date.as_i64().or_else(|| date.as_f64().map(|seconds| seconds as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use proptest::prelude::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::json;

    struct Issuer {
        pair: EcdsaKeyPair,
        random: SystemRandom,
    }

    impl Issuer {
        fn new() -> Issuer {
            let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
            let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            Issuer { pair: EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap(), random }
        }

        fn key(&self, id: Option<&str>) -> Arc<TokenKey> {
            let point = self.pair.public_key().as_ref().to_vec();
            Arc::new(TokenKey { id: id.map(str::to_owned), key: PublicKey::P256 { point } })
        }

        fn sign(&self, header: &Value, claims: &Value) -> Vec<u8> {
            let part = |value: &Value| Base64UrlUnpadded::encode_string(value.to_string().as_bytes());
            let signed = format!("{}.{}", part(header), part(claims));
            let signature = self.pair.sign(&self.random, signed.as_bytes()).unwrap();
            format!("{signed}.{}", Base64UrlUnpadded::encode_string(signature.as_ref())).into_bytes()
        }
    }

    fn config(keys: Vec<Arc<TokenKey>>) -> TokenConfig {
        TokenConfig {
            keys,
            audience: vec!["tidegate".to_owned()],
            issuer: None,
            user_claim: "sub".to_owned(),
            groups_claim: "realm_access.roles".to_owned(),
            leeway: Duration::from_secs(5),
            without_clock: true,
            rights: crate::config::TopicRights::default(),
            groups: std::collections::BTreeMap::new(),
        }
    }

    fn es256() -> Value {
        json!({"alg": "ES256", "kid": "k1"})
    }

    fn claims() -> Value {
        json!({"sub": "hmi", "aud": ["x", "tidegate"], "exp": 1000, "nbf": 500, "realm_access": {"roles": ["a", "b"]}})
    }

    fn with(name: &str, value: Value) -> Value {
        let mut changed = claims();
        changed.as_object_mut().unwrap().insert(name.to_owned(), value);
        changed
    }

    fn without(name: &str) -> Value {
        let mut changed = claims();
        changed.as_object_mut().unwrap().remove(name);
        changed
    }

    #[test]
    fn a_token_of_a_known_key_names_its_user_and_his_groups() {
        let issuer = Issuer::new();
        for id in [None, Some("k1")] {
            let config = config(vec![Issuer::new().key(None), issuer.key(id)]);
            let token = issuer.sign(&es256(), &claims());
            assert!(is_token(&token));
            let shown = read(&config, &token).unwrap();
            assert_eq!((&*shown.user, shown.ends_s), ("hmi", 1000));
            assert_eq!(shown.groups, [Arc::from("a"), Arc::from("b")]);
        }
        let config = TokenConfig { groups_claim: "scope".to_owned(), ..config(vec![issuer.key(None)]) };
        let shown = read(&config, &issuer.sign(&es256(), &with("scope", json!("read write")))).unwrap();
        assert_eq!(shown.groups, [Arc::from("read"), Arc::from("write")]);
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_token_is_told_apart() {
        let issuer = Issuer::new();
        let config = TokenConfig { issuer: Some("plant".to_owned()), ..config(vec![issuer.key(Some("k1"))]) };
        let good = with("iss", json!("plant"));
        let fault = |header: &Value, claims: &Value| read(&config, &issuer.sign(header, claims)).unwrap_err();
        assert!(read(&config, &issuer.sign(&es256(), &good)).is_ok());
        assert_eq!(fault(&json!({"alg": "none"}), &good), TokenFault::Algorithm);
        assert_eq!(fault(&json!({"alg": "HS256"}), &good), TokenFault::Algorithm);
        assert_eq!(fault(&json!({"alg": "RS256"}), &good), TokenFault::UnknownKey, "the key decides");
        assert_eq!(fault(&json!({"alg": "ES256", "kid": "k2"}), &good), TokenFault::UnknownKey);
        assert_eq!(fault(&json!({"alg": "ES256", "crit": ["x"]}), &good), TokenFault::Malformed);
        assert_eq!(fault(&es256(), &claims()), TokenFault::Issuer);
        for (name, value, expected) in [
            ("aud", json!("other"), TokenFault::Audience),
            ("aud", json!([]), TokenFault::Audience),
            ("sub", json!(7), TokenFault::NoUser),
            ("sub", json!(""), TokenFault::NoUser),
            ("exp", json!("soon"), TokenFault::Endless),
            ("nbf", json!("now"), TokenFault::Malformed),
        ] {
            let mut changed = good.clone();
            changed.as_object_mut().unwrap().insert(name.to_owned(), value);
            assert_eq!(fault(&es256(), &changed), expected, "{changed}");
        }
        assert_eq!(fault(&es256(), &without("exp")), TokenFault::Endless);
        let stranger = Issuer::new().sign(&es256(), &good);
        assert_eq!(read(&config, &stranger).unwrap_err(), TokenFault::Signature);
        let mut bent = String::from_utf8(issuer.sign(&es256(), &good)).unwrap();
        bent.push('A');
        assert!(read(&config, bent.as_bytes()).is_err());
    }

    #[test]
    fn a_token_is_judged_by_what_the_clock_is_known_to_be() {
        let issuer = Issuer::new();
        let config = config(vec![issuer.key(None)]);
        let shown = read(&config, &issuer.sign(&es256(), &claims())).unwrap();
        let between = |earliest_s: i64, latest_s: Option<i64>| Moment {
            earliest_ms: earliest_s * 1000,
            latest_ms: latest_s.map(|s| s * 1000),
        };
        for (now, expected) in [
            (between(494, Some(494)), Err(TokenFault::NotYet)),
            (between(495, Some(495)), Ok(Some(510_000))),
            (between(0, Some(495)), Ok(Some(1_005_000))),
            (between(1004, Some(1004)), Ok(Some(1000))),
            (between(1005, Some(1005)), Err(TokenFault::Ended)),
            (between(1004, Some(9000)), Ok(Some(1000))),
            (between(0, None), Ok(None)),
            (between(1005, None), Err(TokenFault::Ended)),
        ] {
            assert_eq!(shown.left_ms(&config, now), expected, "{now:?}");
        }
        let strict = TokenConfig { without_clock: false, ..config };
        assert_eq!(shown.left_ms(&strict, between(0, None)), Err(TokenFault::NoClock));
    }

    #[test]
    fn what_was_shown_is_good_for_as_long_as_its_key_and_audience_are() {
        let issuer = Issuer::new();
        let config = config(vec![issuer.key(None)]);
        let shown = read(&config, &issuer.sign(&es256(), &claims())).unwrap();
        assert_eq!(shown.is_vouched_for(&config), Ok(()));
        let rotated = TokenConfig { keys: vec![Issuer::new().key(None)], ..config.clone() };
        assert_eq!(shown.is_vouched_for(&rotated), Err(TokenFault::UnknownKey));
        let elsewhere = TokenConfig { audience: vec!["y".to_owned()], ..config };
        assert_eq!(shown.is_vouched_for(&elsewhere), Err(TokenFault::Audience));
    }

    #[test]
    fn passwords_are_no_tokens() {
        for password in ["", "secret", "a.b.c", "..", "e30.e30.", "e30.e30", "eyJhbGciOiJFUzI1NiJ9.e30"] {
            assert!(!is_token(password.as_bytes()), "{password}");
        }
        assert!(is_token(b"eyJhbGciOiJFUzI1NiJ9.e30."));
        assert!(!is_token(&vec![b'.'; TOKEN_BYTES_MAX + 1]));
    }

    proptest! {
        #[test]
        fn a_token_of_which_one_byte_is_another_is_never_taken(at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
            let issuer = Issuer::new();
            let config = config(vec![issuer.key(None)]);
            let mut token = issuer.sign(&es256(), &claims());
            let at = at.index(token.len());
            token[at] ^= flip;
            prop_assert!(read(&config, &token).is_err());
        }
    }
}
