//! Shared access signatures of Azure: the right to a resource until a time, signed with a key that both sides know. Pure.

use base64ct::{Base64, Encoding as _};
use ring::hmac;
use thiserror::Error;

use crate::config::clouds::percent_encoded;

/// The key is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it holds no key in base64")]
pub struct KeyError;

/// The token for `resource` until `expires_s`, seconds since 1970, with the key as the portal shows it.
///
/// # Errors
/// When the key is no base64.
pub fn token(resource: &str, key: &[u8], expires_s: i64) -> Result<String, KeyError> {
    let key = decoded(key)?;
    let resource = percent_encoded(resource);
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), format!("{resource}\n{expires_s}").as_bytes());
    let signature = percent_encoded(&Base64::encode_string(signature.as_ref()));
    Ok(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires_s}"))
}

/// The key of the device with this registration id, in base64, from that of its enrolment group.
///
/// # Errors
/// When the key is no base64.
pub fn derived(group_key: &[u8], registration_id: &str) -> Result<String, KeyError> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &decoded(group_key)?);
    Ok(Base64::encode_string(hmac::sign(&key, registration_id.as_bytes()).as_ref()))
}

/// When a password ends, in seconds since 1970, where it is a signature that somebody else has made.
pub fn expiry_s(password: &[u8]) -> Option<i64> {
    let pairs = std::str::from_utf8(password).ok()?.strip_prefix("SharedAccessSignature ")?.trim();
    pairs.split('&').find_map(|pair| pair.strip_prefix("se=")?.parse().ok())
}

fn decoded(key: &[u8]) -> Result<Vec<u8>, KeyError> {
    let key = std::str::from_utf8(key).map_err(|_| KeyError)?.trim();
    Base64::decode_vec(key).ok().filter(|key| !key.is_empty()).ok_or(KeyError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_device_follows_from_that_of_its_group() {
        // The example of Microsoft's page "How to use symmetric key attestation", made there with openssl.
        let group = b"8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
        let device = "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=";
        assert_eq!(derived(group, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6").unwrap(), device);
        assert_eq!(derived(b"no key!", "d"), Err(KeyError));
    }

    #[test]
    fn a_signature_says_when_it_ends_and_other_passwords_do_not() {
        let signature = token("h/devices/d", b"c2VjcmV0", 1_700_000_000).unwrap();
        assert_eq!(expiry_s(signature.as_bytes()), Some(1_700_000_000));
        assert_eq!(expiry_s(format!("{signature}&skn=device\r").as_bytes()), Some(1_700_000_000));
        for other in
            [&b"secret"[..], b"SharedAccessSignature ", b"SharedAccessSignature sr=h&se=soon", b"se=1", b"\xff"]
        {
            assert_eq!(expiry_s(other), None);
        }
    }

    #[test]
    fn a_key_that_is_none_signs_nothing() {
        for key in [&b""[..], b"not base64!", b"\xff\xfe"] {
            assert_eq!(token("h/devices/d", key, 1), Err(KeyError));
        }
        assert!(
            token("h/devices/d", b"c2VjcmV0\n", 1)
                .unwrap()
                .starts_with("SharedAccessSignature sr=h%2Fdevices%2Fd&sig=")
        );
    }
}
