//! Fleet provisioning by claim at AWS IoT Core: a board that knows nothing but the claim of its lot gets a certificate of
//! its own, for a key that is made on the board and never leaves it.
//!
//! ```text
//!  key.pem ─► CreateCertificateFromCsr ─► pending.json ─► RegisterThing ─► cert.pem
//! ```
//!
//! Each arrow may be cut by a kill, a power cut or the cloud, and the next attempt goes on from the last file. Where it
//! cannot be known whether a thing was registered, it is asked for once more, and if that is refused, the certificate is
//! tried: a cloud that takes it has registered it. So no cut leaves a board without an identity, nor makes it ask for
//! one certificate after the other.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use log::{info, warn};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::dialogue::{Dialogue, DialogueError};
use crate::clock::Clock;
use crate::config::{Endpoint, Protocol, ProvisionConfig, UplinkConfig};
use crate::health::{UplinkHealth, UplinkState, chain};
use crate::message::{ClockState, Topic, TopicError};
use crate::mqtt::{Connect, Version};
use crate::transport::{Way, keys_match};
use exchange::{AnswerError, Certificate, Step, Thing};
use folder::{Folder, Pending};

mod cbor;
mod exchange;
pub(super) mod folder;

/// Seconds of the keep-alive: nothing here takes as long.
const KEEP_ALIVE_S: u16 = 60;

/// Why there is no identity yet.
#[derive(Debug, Error)]
pub enum ProvisionError {
    /// The files.
    #[error("cannot keep an identity in {}", path.display())]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No request can be made.
    #[error("cannot make the request for a certificate")]
    Request(#[source] rcgen::Error),
    /// The connection.
    #[error(transparent)]
    Dialogue(DialogueError),
    /// The answer.
    #[error(transparent)]
    Answer(AnswerError),
    /// The name of the template makes no topic.
    #[error("the template makes no topic")]
    Topic(#[source] TopicError),
    /// The certificate is for another key.
    #[error("the cloud's certificate does not belong to the key of this board")]
    Foreign,
}

/// The uplink's configuration with the identity that the board has got, `None` when it has none yet or needs none.
pub fn provisioned(config: &UplinkConfig) -> Option<UplinkConfig> {
    let folder = Folder::new(&config.provision.as_ref()?.folder);
    folder.is_provisioned().then(|| with(config, folder.cert(), folder.key()))
}

/// Where the certificate is kept that a board has got.
pub fn own_cert(provision: &ProvisionConfig) -> PathBuf {
    Folder::new(&provision.folder).cert()
}

/// The uplink's configuration with the claim of its lot.
pub fn claiming(config: &UplinkConfig) -> Option<UplinkConfig> {
    let provision = config.provision.as_ref()?;
    Some(with(config, provision.claim_cert.clone(), provision.claim_key.clone()))
}

fn with(config: &UplinkConfig, cert: PathBuf, key: PathBuf) -> UplinkConfig {
    UplinkConfig { cert: Some(cert), key: Some(key), ..config.clone() }
}

/// Gets an uplink its identity before its session begins, however long that takes.
#[derive(Debug)]
pub(super) struct Claimant<'a> {
    pub name: &'a Arc<str>,
    pub client_id: &'a str,
    pub clock: &'a Clock,
    pub health: &'a UplinkHealth,
}

impl Claimant<'_> {
    /// Ends with the identity in `config`, or with `stop`. Says when the cloud was last introduced to.
    pub async fn provision(&self, config: &mut UplinkConfig, stop: &CancellationToken) -> Option<Instant> {
        let provision = config.provision.clone()?;
        let mut backoff = Backoff::new(config.reconnect);
        let (mut introduced_at, mut told) = (None, String::new());
        let started = Instant::now();
        for tried in 0.. {
            if let Some(own) = provisioned(config) {
                *config = own;
                return introduced_at;
            }
            let endpoint = config.endpoints.get(tried % config.endpoints.len().max(1))?.clone();
            self.set_state(UplinkState::Connecting, None);
            let Claimant { name, client_id, clock, .. } = *self;
            let is_clock_unset = clock.state() == ClockState::Unset;
            let attempt = Attempt { name, config, provision: &provision, client_id, endpoint: &endpoint, clock };
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return introduced_at,
                outcome = attempt.run() => outcome,
            };
            introduced_at = Some(Instant::now());
            let Err(error) = outcome else { continue };
            let reason = format!("not provisioned yet: {}", chain(&error));
            if reason != told {
                warn!(uplink = name.as_ref(), error = reason.as_str(); "The gateway has no certificate of its own yet");
            }
            self.set_state(UplinkState::Waiting, Some(reason.clone()));
            told = reason;
            let pause = backoff.pause(started.elapsed(), super::link::chance()).max(config.profile.connect_every);
            tokio::select! {
                () = stop.cancelled() => return introduced_at,
                () = sleep(pause) => {}
                // It may have been the time.
                () = clock.wait_until_known(), if is_clock_unset => sleep(config.profile.connect_every).await,
            }
        }
        introduced_at
    }

    fn set_state(&self, state: UplinkState, reason: Option<String>) {
        self.health.set(state, self.clock.now().wall_ms, reason);
    }
}

/// One attempt to get an identity, from where the last one came to.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub name: &'a Arc<str>,
    pub config: &'a UplinkConfig,
    pub provision: &'a ProvisionConfig,
    pub client_id: &'a str,
    pub endpoint: &'a Endpoint,
    pub clock: &'a Clock,
}

impl Attempt<'_> {
    /// # Errors
    /// When the cloud or the disk does not let it come to an end; it may be tried again.
    pub async fn run(&self) -> Result<(), ProvisionError> {
        let folder = Folder::new(&self.provision.folder);
        let key = self.key(&folder).await?;
        let claim = claiming(self.config).unwrap_or_else(|| self.config.clone());
        let mut dialogue = self.open(&claim).await?;
        let filters = exchange::filters(self.provision);
        dialogue.subscribe(&filters).await.map_err(ProvisionError::Dialogue)?;
        let kept = self.on_disk(&folder, |folder| folder.pending()).await?;
        // Of another key it is of no use.
        let kept = kept.filter(|pending| belongs(&pending.certificate_pem, &key));
        let pending = match kept {
            Some(pending) => pending,
            None => self.certificate(&folder, &key, &mut dialogue).await?,
        };
        let was_asked = pending.is_asked;
        let outcome = self.thing(&folder, pending.clone(), &mut dialogue).await;
        dialogue.close().await;
        match outcome {
            Ok(thing) => self.finish(&folder, &pending, &thing).await,
            Err(ProvisionError::Answer(AnswerError::Rejected { status, .. }))
                if was_asked && !is_passing(status) && self.is_taken(&folder, &pending).await? =>
            {
                // Nobody heard the answer, and a token serves once.
                let thing = Thing { name: self.client_id.to_owned(), configuration: serde_json::Value::Null };
                self.finish(&folder, &pending, &thing).await
            }
            Err(error) => {
                if matches!(&error, ProvisionError::Answer(AnswerError::Rejected { status, .. }) if !is_passing(*status))
                {
                    // Its token has ended, or the template wants something else: with the next attempt from the start.
                    self.on_disk(&folder, |folder| folder.forget_pending()).await?;
                }
                Err(error)
            }
        }
    }

    async fn open(&self, config: &UplinkConfig) -> Result<Dialogue, ProvisionError> {
        let version = match config.protocol {
            Protocol::V311 => Version::V311,
            Protocol::V5 => Version::V5,
        };
        let way = Way::new(config, self.endpoint);
        let connect = Connect {
            keep_alive_s: KEEP_ALIVE_S,
            clean_start: true,
            ..Connect::new(version, self.client_id.to_owned())
        };
        Dialogue::open(self.endpoint, &way, self.clock.now(), connect).await.map_err(ProvisionError::Dialogue)
    }

    /// The board's key, as it is or made now.
    async fn key(&self, folder: &Folder) -> Result<String, ProvisionError> {
        let make = || KeyPair::generate().map(|pair| pair.serialize_pem()).map_err(io::Error::other);
        self.on_disk(folder, move |folder| folder.key_pem(make, |pem| KeyPair::from_pem(pem).is_ok())).await
    }

    async fn certificate(
        &self,
        folder: &Folder,
        key: &str,
        dialogue: &mut Dialogue,
    ) -> Result<Pending, ProvisionError> {
        let csr = request(key, self.client_id).map_err(ProvisionError::Request)?;
        let body = exchange::certificate_request(self.provision, &csr);
        let answer = self.ask(dialogue, Step::Certificate, body, "the answer about the certificate").await?;
        let Certificate { id, pem, token } = exchange::certificate(&answer).map_err(ProvisionError::Answer)?;
        if !belongs(&pem, key) {
            return Err(ProvisionError::Foreign);
        }
        let pending = Pending { certificate_id: id, certificate_pem: pem, token, is_asked: false };
        let kept = pending.clone();
        self.on_disk(folder, move |folder| folder.keep_pending(&kept)).await?;
        Ok(pending)
    }

    async fn thing(&self, folder: &Folder, pending: Pending, dialogue: &mut Dialogue) -> Result<Thing, ProvisionError> {
        let body = exchange::thing_request(self.provision, &pending.token, &self.provision.parameters);
        // Before it is asked: from then on nobody here can say that it was not registered.
        let asked = Pending { is_asked: true, ..pending };
        self.on_disk(folder, move |folder| folder.keep_pending(&asked)).await?;
        let answer = self.ask(dialogue, Step::Thing, body, "the answer about the thing").await?;
        exchange::thing(&answer).map_err(ProvisionError::Answer)
    }

    async fn ask(
        &self,
        dialogue: &mut Dialogue,
        step: Step,
        body: bytes::Bytes,
        waiting_for: &'static str,
    ) -> Result<serde_json::Value, ProvisionError> {
        let topic = Topic::new(&step.topic(self.provision)).map_err(ProvisionError::Topic)?;
        dialogue.say(topic, body).await.map_err(ProvisionError::Dialogue)?;
        loop {
            let (topic, payload) = dialogue.hear(waiting_for).await.map_err(ProvisionError::Dialogue)?;
            if let Some(answer) = exchange::answer(self.provision, step, &topic, &payload) {
                return answer.map_err(ProvisionError::Answer);
            }
        }
    }

    /// Whether the cloud lets in whoever has this certificate.
    async fn is_taken(&self, folder: &Folder, pending: &Pending) -> Result<bool, ProvisionError> {
        tokio::time::sleep(self.config.profile.connect_every).await;
        let trial = folder.trial();
        let pem = pending.certificate_pem.clone();
        self.on_disk(folder, move |folder| folder.keep_trial(&pem)).await?;
        match self.open(&with(self.config, trial, folder.key())).await {
            Ok(dialogue) => {
                dialogue.close().await;
                Ok(true)
            }
            // It says no to this certificate; a cloud that is away says nothing about it.
            Err(ProvisionError::Dialogue(
                DialogueError::Refused { .. } | DialogueError::Tls(_) | DialogueError::Closed { .. },
            )) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn finish(&self, folder: &Folder, pending: &Pending, thing: &Thing) -> Result<(), ProvisionError> {
        let told = serde_json::json!({
            "thingName": thing.name, "deviceConfiguration": thing.configuration, "certificateId": pending.certificate_id,
        });
        let kept = pending.clone();
        self.on_disk(folder, move |folder| folder.keep_identity(&kept, told.to_string().as_bytes())).await?;
        let (uplink, certificate) = (self.name.as_ref(), pending.certificate_id.as_str());
        info!(uplink, thing = thing.name.as_str(), certificate; "The gateway has got a certificate of its own");
        if thing.name != self.client_id {
            let (thing, client_id) = (thing.name.as_str(), self.client_id);
            warn!(uplink, thing, client_id; "The thing has another name than the client id; a policy that names things does not fit");
        }
        Ok(())
    }

    /// Off the runtime's threads: a sync on a card may take seconds.
    async fn on_disk<T: Send + 'static>(
        &self,
        folder: &Folder,
        act: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ProvisionError> {
        let fault = |source| ProvisionError::Folder { path: self.provision.folder.clone(), source };
        let folder = folder.clone();
        let outcome = tokio::task::spawn_blocking(move || act(&folder)).await;
        outcome.map_err(|gone| fault(io::Error::other(gone)))?.map_err(fault)
    }
}

/// A refusal that says nothing about what was asked for: too many at once, or a fault of the cloud's own.
fn is_passing(status: i64) -> bool {
    status == 429 || status >= 500
}

/// The request for a certificate, signed with the key that it is for.
fn request(key: &str, name: &str) -> Result<String, rcgen::Error> {
    let key = KeyPair::from_pem(key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serialize_request(&key)?.pem()
}

/// Whether a certificate is for this key.
fn belongs(certificate: &str, key: &str) -> bool {
    CertificateDer::from_pem_slice(certificate.as_bytes()).is_ok_and(|der| keys_match(&der, key))
}
