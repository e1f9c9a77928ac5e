//! SCRAM (RFC 5802, RFC 7677): a login by a password that is not sent, at a server that must show that it knows it. Pure.
//!
//! Promises: what a server says is bounded before anything is made of it, the work that it can ask for as well; after any
//! fault the login is over; the server has proved itself when `proved` has said so, and never otherwise. Channel binding
//! is not offered ("n"): no broker that is known speaks it.
//!
//! `derive` takes as long as the server wishes within the bounds: its caller keeps it off the threads of the runtime.

use std::fmt;
use std::num::NonZeroU32;

use base64ct::{Base64, Encoding as _};
use bytes::Bytes;
use ring::{digest, hmac, pbkdf2};
use thiserror::Error;

use crate::config::ScramHash;

/// Rounds below this are not worth the name (RFC 7677, 4).
pub const ITERATIONS_MIN: u32 = 4096;

/// As many as OWASP advises to whoever keeps passwords. A hostile server gets no more: on a slow board these are seconds.
pub const ITERATIONS_MAX: u32 = 600_000;

/// The longest message of a server; real ones have a hundred bytes.
const MESSAGE_BYTES_MAX: usize = 2048;

/// The longest salt; real ones have 16 to 64 bytes.
const SALT_BYTES_MAX: usize = 256;

/// Bytes of our nonce, before base64.
const NONCE_BYTES: usize = 24;

/// "n,,": no channel binding, no other identity (RFC 5802, 7); and the same in base64, as the last message repeats it.
const HEADER: &str = "n,,";
const HEADER_BASE64: &str = "biws";

/// Told of a server that says something when nothing, or something else, is due.
pub const OUT_OF_TURN: &str = "it goes on where it is not its turn";

/// Why there is no login.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScramError {
    /// `ScramHash::takes` says no.
    #[error("{what} must be of printable ASCII characters for SCRAM")]
    NotAscii {
        /// "the user name", "the password".
        what: &'static str,
    },
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    NoChance,
    /// What it says is nothing of RFC 5802.
    #[error("the cloud does not speak SCRAM as it should: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// "m=", or rounds out of their bounds.
    #[error("the cloud asks for {count} rounds of SCRAM; {ITERATIONS_MIN} to {ITERATIONS_MAX} are carried out")]
    Iterations {
        /// As it says.
        count: String,
    },
    /// The last message says no.
    #[error("the cloud refused the login by SCRAM: {error:?}")]
    Refused {
        /// In its words: "invalid-proof", "unknown-user", …
        error: String,
    },
    /// It accepts without having been asked for its proof, or shows none.
    #[error("the cloud has let the gateway in without proving that it knows the password")]
    Unproved,
    /// What it shows is wrong.
    #[error("the cloud has not proved that it knows the password: its proof is wrong")]
    WrongProof,
    /// The derivation was not carried out.
    #[error("the password was not worked on")]
    Aborted,
}

/// One login. Good for one connection.
pub struct Scram {
    hash: ScramHash,
    password: Bytes,
    /// Our first message without its header: the later ones are signed with it.
    first_bare: String,
    nonce: String,
    step: Step,
}

enum Step {
    /// Our first message is out.
    Begun,
    /// The server has sent its salt; the keys are being derived.
    Challenged { server_first: String, nonce: String },
    /// Our proof is out.
    Answered { server_key: hmac::Key, signed: String },
    /// The server has proved itself.
    Proved,
    /// Something was wrong.
    Over,
}

impl fmt::Debug for Scram {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        into.debug_struct("Scram").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// What the server's salt makes of the password.
pub struct Derivation {
    hash: ScramHash,
    password: Bytes,
    salt: Vec<u8>,
    iterations: NonZeroU32,
}

impl fmt::Debug for Derivation {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        into.debug_struct("Derivation").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// The keys of client and server (RFC 5802, 3).
pub struct Keys {
    client: Vec<u8>,
    server: Vec<u8>,
}

/// What came of a message of the server.
#[derive(Debug)]
pub enum Heard {
    /// To be carried out; the keys go to `answer`.
    Derive(Derivation),
    /// It was its proof, and it is right.
    Proof,
}

impl Scram {
    /// A login with a nonce of its own.
    ///
    /// # Errors
    /// When name or password are not plain, or there are no random numbers.
    pub fn new(hash: ScramHash, username: &str, password: Bytes) -> Result<Scram, ScramError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| ScramError::NoChance)?;
        Scram::with_nonce(hash, username, password, Base64::encode_string(&nonce))
    }

    fn with_nonce(hash: ScramHash, username: &str, password: Bytes, nonce: String) -> Result<Scram, ScramError> {
        for (what, text) in [("the user name", username.as_bytes()), ("the password", &password)] {
            if !ScramHash::takes(text) {
                return Err(ScramError::NotAscii { what });
            }
        }
        // RFC 5802, 5.1: the two characters that the messages are made of.
        let name = username.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={name},r={nonce}");
        Ok(Scram { hash, password, first_bare, nonce, step: Step::Begun })
    }

    /// The first message, which goes with CONNECT.
    pub fn first(&self) -> Bytes {
        Bytes::from(format!("{HEADER}{}", self.first_bare))
    }

    /// Takes a message of the server that is not its last word.
    ///
    /// # Errors
    /// When it is none, or its turn has not come. The login is over then.
    pub fn hear(&mut self, message: &[u8]) -> Result<Heard, ScramError> {
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Begun => {
                let Challenge { text, nonce, salt, iterations } = challenge(message, &self.nonce)?;
                self.step = Step::Challenged { server_first: text.to_owned(), nonce: nonce.to_owned() };
                Ok(Heard::Derive(Derivation { hash: self.hash, password: self.password.clone(), salt, iterations }))
            }
            Step::Answered { server_key, signed } => {
                // It has let nobody in yet: what is no proof here is only out of its turn.
                verify(message, &server_key, &signed).map_err(|error| match error {
                    ScramError::Unproved => ScramError::Malformed { what: OUT_OF_TURN },
                    other => other,
                })?;
                self.step = Step::Proved;
                Ok(Heard::Proof)
            }
            Step::Challenged { .. } | Step::Proved | Step::Over => Err(ScramError::Malformed { what: OUT_OF_TURN }),
        }
    }

    /// The second message: our proof.
    ///
    /// # Errors
    /// When no challenge was heard before.
    pub fn answer(&mut self, keys: &Keys) -> Result<Bytes, ScramError> {
        let Step::Challenged { server_first, nonce } = std::mem::replace(&mut self.step, Step::Over) else {
            return Err(ScramError::Aborted);
        };
        let without_proof = format!("c={HEADER_BASE64},r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.first_bare);
        let stored = digest::digest(digest_of(self.hash), &keys.client);
        let signature = hmac::sign(&hmac::Key::new(hmac_of(self.hash), stored.as_ref()), signed.as_bytes());
        let proof: Vec<u8> = keys.client.iter().zip(signature.as_ref()).map(|(key, byte)| key ^ byte).collect();
        let answer = format!("{without_proof},p={}", Base64::encode_string(&proof));
        let server_key = hmac::Key::new(hmac_of(self.hash), &keys.server);
        self.step = Step::Answered { server_key, signed };
        Ok(Bytes::from(answer))
    }

    /// Whether the server, which lets us in with this as its last word, is the one that knows the password.
    ///
    /// # Errors
    /// When it has not proved that.
    pub fn proved(&mut self, last: Option<&[u8]>) -> Result<(), ScramError> {
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Proved => Ok(()),
            Step::Answered { server_key, signed } => verify(last.ok_or(ScramError::Unproved)?, &server_key, &signed),
            Step::Begun | Step::Challenged { .. } | Step::Over => Err(ScramError::Unproved),
        }
    }
}

impl Derivation {
    /// Works; on a slow board for seconds.
    pub fn derive(self) -> Keys {
        let algorithm = match self.hash {
            ScramHash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            ScramHash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        };
        let mut salted = vec![0; digest_of(self.hash).output_len()];
        pbkdf2::derive(algorithm, self.iterations, &self.salt, &self.password, &mut salted);
        let key = hmac::Key::new(hmac_of(self.hash), &salted);
        let of = |name: &[u8]| hmac::sign(&key, name).as_ref().to_vec();
        Keys { client: of(b"Client Key"), server: of(b"Server Key") }
    }
}

struct Challenge<'a> {
    text: &'a str,
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: NonZeroU32,
}

/// `r=…,s=…,i=…` (RFC 5802, 7). Extensions behind that are optional, and are left alone.
fn challenge<'a>(message: &'a [u8], own_nonce: &str) -> Result<Challenge<'a>, ScramError> {
    let malformed = |what| ScramError::Malformed { what };
    let text = text_of(message)?;
    let mut parts = text.split(',');
    let mut part = |name: &str| parts.next().and_then(|part| part.strip_prefix(name));
    let nonce = part("r=").ok_or(malformed("its nonce is missing"))?;
    let salt = part("s=").ok_or(malformed("its salt is missing"))?;
    let count = part("i=").ok_or(malformed("its number of rounds is missing"))?;
    let is_ours = nonce.strip_prefix(own_nonce).is_some_and(|theirs| !theirs.is_empty());
    if !is_ours || !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(malformed("it answers another login than this one"));
    }
    let salt = Base64::decode_vec(salt).ok().filter(|salt| (1..=SALT_BYTES_MAX).contains(&salt.len()));
    let salt = salt.ok_or(malformed("its salt is none"))?;
    // "+5000" is a number to the library, and none here.
    let is_number = count.bytes().all(|byte| byte.is_ascii_digit()) && !count.starts_with('0');
    let iterations = count.parse().ok().filter(|count| is_number && (ITERATIONS_MIN..=ITERATIONS_MAX).contains(count));
    let told = || ScramError::Iterations { count: count.chars().take(20).collect() };
    let iterations = iterations.and_then(NonZeroU32::new).ok_or_else(told)?;
    Ok(Challenge { text, nonce, salt, iterations })
}

/// `v=…`, or `e=…` where it says no.
fn verify(message: &[u8], server_key: &hmac::Key, signed: &str) -> Result<(), ScramError> {
    let first = text_of(message)?.split(',').next().unwrap_or_default();
    if let Some(error) = first.strip_prefix("e=") {
        return Err(ScramError::Refused { error: error.chars().take(100).collect() });
    }
    let signature = first.strip_prefix("v=").ok_or(ScramError::Unproved)?;
    let signature = Base64::decode_vec(signature).map_err(|_| ScramError::WrongProof)?;
    hmac::verify(server_key, signed.as_bytes(), &signature).map_err(|_| ScramError::WrongProof)
}

/// A message within its bounds that wants no extension: one that must be understood has this name (RFC 5802, 5.1).
fn text_of(message: &[u8]) -> Result<&str, ScramError> {
    let malformed = |what| ScramError::Malformed { what };
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(malformed("its message is too long"));
    }
    let text = std::str::from_utf8(message).map_err(|_| malformed("its message is no text"))?;
    if text.split(',').any(|part| part.starts_with("m=")) {
        return Err(malformed("it wants an extension that is not known here"));
    }
    Ok(text)
}

fn hmac_of(hash: ScramHash) -> hmac::Algorithm {
    match hash {
        ScramHash::Sha256 => hmac::HMAC_SHA256,
        ScramHash::Sha512 => hmac::HMAC_SHA512,
    }
}

fn digest_of(hash: ScramHash) -> &'static digest::Algorithm {
    match hash {
        ScramHash::Sha256 => &digest::SHA256,
        ScramHash::Sha512 => &digest::SHA512,
    }
}

#[cfg(test)]
mod tests;
