//! Passwords and their hashes. Pure: it takes its time, and the caller sees that nobody waits for it.
//!
//! All of the cryptography is that of `argon2` and `ring`; what is compared is compared in constant time.

use argon2::{Algorithm, Argon2, Params, Version};
use ring::{digest, pbkdf2};
use subtle::ConstantTimeEq as _;

use crate::config::PasswordHash;

/// Memory, passes and lanes of new hashes: the second choice of RFC 9106 is too much for a board of 512 MB; these are what
/// OWASP asks for at least. One is worked out at a time, so that 19 MiB is what logging in costs, whoever comes.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Bytes of what comes out.
const HASH_BYTES: usize = 32;
/// Bytes of random salt.
pub(super) const SALT_BYTES: usize = 16;

/// The hash of a new password; `None` only when the library refuses, which it does of passwords over 4 GB.
pub(super) fn make(password: &[u8], salt: [u8; SALT_BYTES]) -> Option<PasswordHash> {
    let hash = argon2id(MEMORY_KIB, PASSES, LANES, password, &salt, HASH_BYTES)?;
    Some(PasswordHash::Argon2id { memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES, salt: salt.to_vec(), hash })
}

/// Whether the password is the one whose hash this is.
pub(super) fn verify(known: &PasswordHash, password: &[u8]) -> bool {
    match known {
        PasswordHash::Argon2id { memory_kib, passes, lanes, salt, hash } => {
            let made = argon2id(*memory_kib, *passes, *lanes, password, salt, hash.len());
            made.is_some_and(|made| made.ct_eq(hash).into())
        }
        PasswordHash::Sha512 { salt, hash } => {
            let mut context = digest::Context::new(&digest::SHA512);
            context.update(password);
            context.update(salt);
            context.finish().as_ref().ct_eq(hash).into()
        }
        PasswordHash::Pbkdf2 { iterations, salt, hash } => {
            pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA512, *iterations, salt, password, hash).is_ok()
        }
    }
}

/// A hash that no password fits, as slow as those of `make`: for names that nobody has, so that the time of the answer
/// does not tell which there are.
pub(super) fn of_nobody() -> PasswordHash {
    let (salt, hash) = (vec![0; SALT_BYTES], vec![0; HASH_BYTES]);
    PasswordHash::Argon2id { memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES, salt, hash }
}

fn argon2id(memory_kib: u32, passes: u32, lanes: u32, password: &[u8], salt: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let params = Params::new(memory_kib, passes, lanes, Some(bytes)).ok()?;
    let mut hash = vec![0; bytes];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(password, salt, &mut hash).ok()?;
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_password_hash;

    /// From Debian's libargon2, and from mosquitto_passwd 2.0.11 with `-H sha512` and `-H sha512-pbkdf2`.
    const HASHES: [(&str, &str); 4] = [
        ("$argon2id$v=19$m=4096,t=2,p=1$c29tZXNhbHQ$jacJHQ+PoBstB/ZoVNk8re3s1yzVABZujceGiwVNJnk", "password"),
        ("$argon2id$v=19$m=256,t=2,p=4$c29tZXNhbHQ$O71Gv0rP/8cqejNQA/lwVH32qlqGxXH5", "password"),
        (
            "$6$sciLdDvkbNzZGyxc$vSCyJWMhfPP5g3OHN9d83RrkQ4MSd8CmlJPWIIgY+nhdDo3X3pHz3KfPuGup4CPqX71AS0Sp131rcl8LF6Ag2w==",
            "password",
        ),
        (
            "$7$101$C3/7/dURtVJ+GKMw$F5QdSGJ6dHaLJNzaY/2NZey+iesEOtghJ/lT4CibARyIoZsTjUvEyz/vKNwryY+vAYp5ccM01qauJqdn0pCRSA==",
            "password",
        ),
    ];

    #[test]
    fn hashes_of_other_programs_are_understood() {
        for (text, password) in HASHES {
            let hash = parse_password_hash(text).unwrap();
            assert!(verify(&hash, password.as_bytes()), "{text}");
            assert!(!verify(&hash, b"Password"), "{text}");
            assert!(!verify(&hash, b""), "{text}");
        }
    }

    #[test]
    fn a_new_hash_fits_its_password_and_no_other() {
        let hash = make(b"secret", [7; SALT_BYTES]).unwrap();
        let text = hash.to_string();
        assert!(text.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
        let read = parse_password_hash(&text).unwrap();
        assert!(verify(&read, b"secret") && !verify(&read, b"secret ") && !verify(&of_nobody(), b"secret"));
        assert_ne!(make(b"secret", [8; SALT_BYTES]).unwrap(), hash, "the salt matters");
    }
}
