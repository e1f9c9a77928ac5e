//! Tokens (RFC 7519): signed here with RS256 or ES256 (RFC 7518, 3), and the end of those that somebody else has signed. Pure.
//!
//! The kind of the key decides the algorithm. What is signed here is read by nobody here: it is the broker that judges it.

use base64ct::{Base64UrlUnpadded, Encoding as _};
use ring::rand::SystemRandom;
use ring::rsa::KeyPair as RsaKeyPair;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject as _};
use serde_json::{Map, Value};
use thiserror::Error;

/// Longest token whose end is looked for; a password of another kind may be as long.
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// Why there is no token.
#[derive(Debug, Error)]
pub enum JwtError {
    /// No key in the file.
    #[error("it holds no private key")]
    Pem(#[source] pem::Error),
    /// A key of another kind.
    #[error("the key is neither RSA (2048 to 4096 bits) nor ECDSA on P-256")]
    Kind,
    /// A P-256 key in the form that openssl's ecparam writes.
    #[error(
        "the key stands in the form of SEC 1; turn it into PKCS #8: openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW"
    )]
    Sec1,
    /// The system has no random numbers.
    #[error("it cannot be signed")]
    Sign,
}

/// A private key that signs tokens.
pub struct Signer {
    key: Key,
    random: SystemRandom,
}

enum Key {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(Box<EcdsaKeyPair>),
}

/// What a token says.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    /// `aud`
    pub audience: Option<String>,
    /// `iss`
    pub issuer: Option<String>,
    /// `sub`
    pub subject: Option<String>,
    /// `iat`, seconds since 1970.
    pub issued_at_s: i64,
    /// `exp`
    pub expires_at_s: i64,
}

impl Signer {
    /// Reads the key out of a PEM file's text.
    pub fn from_pem(text: &[u8]) -> Result<Signer, JwtError> {
        let random = SystemRandom::new();
        let key = match PrivateKeyDer::from_pem_slice(text).map_err(JwtError::Pem)? {
            PrivateKeyDer::Pkcs1(key) => {
                Key::Rsa(Box::new(RsaKeyPair::from_der(key.secret_pkcs1_der()).map_err(|_| JwtError::Kind)?))
            }
            PrivateKeyDer::Sec1(_) => return Err(JwtError::Sec1),
            PrivateKeyDer::Pkcs8(key) => {
                let der = key.secret_pkcs8_der();
                match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random) {
                    Ok(key) => Key::Ecdsa(Box::new(key)),
                    Err(_) => Key::Rsa(Box::new(RsaKeyPair::from_pkcs8(der).map_err(|_| JwtError::Kind)?)),
                }
            }
            _ => return Err(JwtError::Kind),
        };
        Ok(Signer { key, random })
    }

    /// The algorithm's name in the token's header.
    pub fn algorithm(&self) -> &'static str {
        match self.key {
            Key::Rsa(_) => "RS256",
            Key::Ecdsa(_) => "ES256",
        }
    }

    /// The token, as it travels.
    pub fn sign(&self, claims: &Claims, key_id: Option<&str>) -> Result<String, JwtError> {
        let mut header = Map::new();
        header.insert("alg".to_owned(), self.algorithm().into());
        header.insert("typ".to_owned(), "JWT".into());
        if let Some(key_id) = key_id {
            header.insert("kid".to_owned(), key_id.into());
        }
        let mut body = Map::new();
        let texts = [("aud", &claims.audience), ("iss", &claims.issuer), ("sub", &claims.subject)];
        for (name, text) in texts {
            if let Some(text) = text {
                body.insert(name.to_owned(), text.as_str().into());
            }
        }
        body.insert("iat".to_owned(), claims.issued_at_s.into());
        body.insert("exp".to_owned(), claims.expires_at_s.into());
        let part =
            |map: Map<String, Value>| Base64UrlUnpadded::encode_string(Value::Object(map).to_string().as_bytes());
        let signed = format!("{}.{}", part(header), part(body));
        let signature = match &self.key {
            Key::Ecdsa(key) => key.sign(&self.random, signed.as_bytes()).map_err(|_| JwtError::Sign)?.as_ref().to_vec(),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &self.random, signed.as_bytes(), &mut signature)
                    .map_err(|_| JwtError::Sign)?;
                signature
            }
        };
        Ok(format!("{signed}.{}", Base64UrlUnpadded::encode_string(&signature)))
    }
}

/// When a password ends, in seconds since 1970, where it is a token that says so. Who has signed it is not looked at: it
/// only decides when to come back with the next one.
pub fn expiry_s(password: &[u8]) -> Option<i64> {
    if password.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let mut parts = std::str::from_utf8(password).ok()?.split('.');
    let (_header, body, _signature, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let body: Value = serde_json::from_slice(&Base64UrlUnpadded::decode_vec(body).ok()?).ok()?;
    let expiry = body.get("exp")?;
    // NumericDate may have a fraction (RFC 7519, 2).
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds are wanted, and the cast keeps to the range")]
    expiry.as_i64().or_else(|| expiry.as_f64().map(|seconds| seconds as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ECDSA_P256_SHA256_FIXED, KeyPair as _, UnparsedPublicKey};

    fn claims() -> Claims {
        Claims {
            audience: Some("p".to_owned()),
            subject: Some("g7".to_owned()),
            issued_at_s: 100,
            expires_at_s: 3700,
            ..Claims::default()
        }
    }

    #[test]
    fn a_token_of_a_p256_key_is_es256_and_can_be_verified() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let signer = Signer::from_pem(pair.serialize_pem().as_bytes()).unwrap();
        assert_eq!(signer.algorithm(), "ES256");
        let token = signer.sign(&claims(), Some("key-1")).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let Key::Ecdsa(key) = &signer.key else { panic!("not ECDSA") };
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key().as_ref());
        public.verify(signed.as_bytes(), &Base64UrlUnpadded::decode_vec(signature).unwrap()).unwrap();
        let (header, body) = signed.split_once('.').unwrap();
        let json = |part: &str| serde_json::from_slice::<Value>(&Base64UrlUnpadded::decode_vec(part).unwrap()).unwrap();
        assert_eq!(json(header), serde_json::json!({"alg": "ES256", "typ": "JWT", "kid": "key-1"}));
        assert_eq!(json(body), serde_json::json!({"aud": "p", "sub": "g7", "iat": 100, "exp": 3700}));
        assert_eq!(expiry_s(token.as_bytes()), Some(3700));
    }

    #[test]
    fn keys_that_cannot_sign_are_told_apart() {
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
        for key in [ed25519, p384] {
            assert!(matches!(Signer::from_pem(key.as_bytes()), Err(JwtError::Kind)));
        }
        let sec1 = "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\n";
        assert!(matches!(Signer::from_pem(sec1.as_bytes()), Err(JwtError::Sec1)));
        assert!(matches!(Signer::from_pem(b"secret"), Err(JwtError::Pem(_))));
    }

    #[test]
    fn a_password_that_is_no_token_has_no_end() {
        for password in ["secret", "a.b", "a.b.c", "a.e30.c", "..", "a.eyJleHAiOiJ4In0.c", "a.eyJleHAiOjF9.c.d"] {
            assert_eq!(expiry_s(password.as_bytes()), None, "{password}");
        }
        assert_eq!(expiry_s(b"a.eyJleHAiOjE3MDAwMDAwMDAuNX0.c"), Some(1_700_000_000));
        assert_eq!(expiry_s(&vec![b'.'; 1 << 20]), None);
    }
}
