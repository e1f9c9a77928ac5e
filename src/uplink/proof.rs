//! What a cloud asks between CONNECT and CONNACK (MQTT 5.0, 4.12), and whether it is to be believed that it let us in.
//!
//! Promises: a cloud that has to prove that it knows the password, and has not, is sent nothing more; it gets one piece of
//! work out of the gateway for each connection, and all clouds together one at a time, beside the runtime's own threads.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::mqtt::{Auth, Packet, ReasonCode};
use crate::transport::scram::{Heard, OUT_OF_TURN, Scram, ScramError};

/// However often a hostile cloud asks and hangs up: one core is at work.
static WORKING: Semaphore = Semaphore::const_new(1);

type Answering = Pin<Box<dyn Future<Output = Result<(Box<Scram>, Packet), ScramError>> + Send>>;

/// Whether the cloud has to prove itself on this connection.
pub enum Proof {
    /// The login asks for none, or it has been given.
    NotOwed,
    /// It has.
    Owed {
        /// Of CONNECT.
        method: String,
        /// As far as it has come.
        scram: Box<Scram>,
    },
    /// It has asked, and the answer is being made.
    Answering {
        /// Of CONNECT.
        method: String,
        /// The answer.
        answer: Answering,
    },
    /// It has not proved itself: nothing that it says counts.
    Failed,
}

impl Proof {
    /// For a connection whose CONNECT begins with this.
    pub fn new(scram: Option<Scram>, method: Option<&str>) -> Proof {
        match (scram, method) {
            (Some(scram), Some(method)) => Proof::Owed { method: method.to_owned(), scram: Box::new(scram) },
            _ => Proof::NotOwed,
        }
    }

    /// Looks at a packet of the cloud before anybody else: `None` = it asks, and `answer` will come.
    ///
    /// # Errors
    /// When the cloud does not do what it must; nothing may be sent to it any more.
    pub fn hear(&mut self, packet: Packet) -> Result<Option<Packet>, ScramError> {
        match (std::mem::replace(self, Proof::Failed), packet) {
            (Proof::NotOwed, packet) => {
                *self = Proof::NotOwed;
                Ok(Some(packet))
            }
            (Proof::Owed { mut scram, .. }, Packet::Connack(connack)) if !connack.reason.is_failure() => {
                scram.proved(connack.auth_data.as_deref())?;
                *self = Proof::NotOwed;
                Ok(Some(Packet::Connack(connack)))
            }
            (Proof::Answering { .. }, Packet::Connack(connack)) if !connack.reason.is_failure() => {
                Err(ScramError::Unproved)
            }
            (Proof::Failed, _) => Err(ScramError::Unproved),
            (Proof::Owed { method, scram }, Packet::Auth(auth))
                if auth.reason == ReasonCode::CONTINUE_AUTHENTICATION =>
            {
                if auth.method.as_ref() != Some(&method) {
                    return Err(ScramError::Malformed { what: "it goes on by another method" });
                }
                let answer = Box::pin(answered(scram, method.clone(), auth));
                *self = Proof::Answering { method, answer };
                Ok(None)
            }
            (Proof::Answering { .. }, Packet::Auth(_)) => Err(ScramError::Malformed { what: OUT_OF_TURN }),
            // A refusal, or what no cloud may send now: the session's machine says which.
            (owed, packet) => {
                *self = owed;
                Ok(Some(packet))
            }
        }
    }

    /// The answer to what was asked, once it is made; never where nothing was. Cancel safe.
    ///
    /// # Errors
    /// As those of `hear`.
    pub async fn answer(&mut self) -> Result<Packet, ScramError> {
        let Proof::Answering { method, answer } = self else { return std::future::pending().await };
        let answered = answer.as_mut().await;
        let method = std::mem::take(method);
        let (scram, packet) = answered.inspect_err(|_| *self = Proof::Failed)?;
        *self = Proof::Owed { method, scram };
        Ok(packet)
    }
}

async fn answered(mut scram: Box<Scram>, method: String, auth: Auth) -> Result<(Box<Scram>, Packet), ScramError> {
    let data = match scram.hear(auth.data.as_deref().unwrap_or_default())? {
        Heard::Derive(derivation) => {
            let turn = WORKING.acquire().await.map_err(|_| ScramError::Aborted)?;
            let working = spawn_blocking(move || {
                let keys = derivation.derive();
                drop(turn);
                keys
            });
            Some(scram.answer(&working.await.map_err(|_| ScramError::Aborted)?)?)
        }
        // Its proof came before its CONNACK: it is told to go on.
        Heard::Proof => None,
    };
    let auth = Auth { reason: ReasonCode::CONTINUE_AUTHENTICATION, method: Some(method), data, reason_string: None };
    Ok((scram, Packet::Auth(auth)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::ScramHash;
    use crate::mqtt::Connack;

    const METHOD: &str = "SCRAM-SHA-256";

    fn owed() -> (Proof, String) {
        let scram = Scram::new(ScramHash::Sha256, "user", Bytes::from("pencil")).unwrap();
        let first = String::from_utf8(scram.first().to_vec()).unwrap();
        let nonce = first.split_once("r=").unwrap().1.to_owned();
        (Proof::new(Some(scram), Some(METHOD)), format!("r={nonce}server,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"))
    }

    fn auth(method: &str, data: &str) -> Packet {
        let (reason, data) = (ReasonCode::CONTINUE_AUTHENTICATION, Some(Bytes::from(data.to_owned())));
        Packet::Auth(Auth { reason, method: Some(method.to_owned()), data, reason_string: None })
    }

    fn connack(reason: ReasonCode) -> Packet {
        Packet::Connack(Box::new(Connack::new(reason)))
    }

    #[tokio::test]
    async fn nothing_that_is_said_out_of_turn_counts_and_after_a_fault_nothing_at_all() {
        let (mut asked, challenge) = owed();
        assert_eq!(asked.hear(auth(METHOD, &challenge)).unwrap(), None);
        let Packet::Auth(answer) = asked.answer().await.unwrap() else { panic!("no AUTH") };
        assert_eq!((answer.reason, answer.method.as_deref()), (ReasonCode::CONTINUE_AUTHENTICATION, Some(METHOD)));
        assert!(answer.data.unwrap().starts_with(b"c=biws,r="));
        assert!(asked.hear(connack(ReasonCode::SUCCESS)).is_err(), "its proof has not come");

        for (told, says) in [
            (connack(ReasonCode::SUCCESS), "before it has answered"),
            (auth(METHOD, &challenge), "it asks while it is answered"),
        ] {
            let (mut proof, challenge) = owed();
            proof.hear(auth(METHOD, &challenge)).unwrap();
            assert!(proof.hear(told).is_err(), "{says}");
            for packet in [connack(ReasonCode::SUCCESS), auth(METHOD, &challenge), Packet::Pingresp] {
                assert!(proof.hear(packet).is_err(), "{says}");
            }
        }
        let (mut proof, challenge) = owed();
        assert!(proof.hear(auth("SCRAM-SHA-512", &challenge)).is_err(), "another method");
    }

    #[test]
    fn what_is_not_of_the_login_and_what_owes_no_proof_is_handed_on() {
        let (mut proof, _) = owed();
        for packet in [connack(ReasonCode::NOT_AUTHORIZED), Packet::Pingresp] {
            assert_eq!(proof.hear(packet.clone()).unwrap(), Some(packet));
        }
        assert!(matches!(proof, Proof::Owed { .. }));
        let mut none = Proof::new(None, Some("JWT"));
        for packet in [auth("JWT", "x"), connack(ReasonCode::SUCCESS), Packet::Pingresp] {
            assert_eq!(none.hear(packet.clone()).unwrap(), Some(packet));
        }
    }
}
