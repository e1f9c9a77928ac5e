//! Registration at Azure's device provisioning service: which hub this gateway belongs to, and as which device.
//!
//! ```text
//!  hub.json? ─no─► register ─► look, until it is decided ─► hub.json ─► the hub
//! ```
//!
//! What was decided is kept on the disk before the hub is first spoken to, and from then on the service is not asked again
//! until the hub has refused often enough to be doubted. A cut anywhere before that file is there costs nothing: one
//! registration id is one device, however often it is asked for.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::{sleep, timeout};

use super::dialogue::{Dialogue, DialogueError};
use super::provision::folder::Folder;
use crate::config::{DpsConfig, Endpoint, UplinkConfig};
use crate::message::{Filter, Stamp, Topic};
use crate::mqtt::{Connect, Version};
use crate::transport::{LoginError, Way, registering};
use exchange::{Answer, AnswerError};

mod exchange;

/// Seconds of the keep-alive: between two questions nothing is said.
const KEEP_ALIVE_S: u16 = 600;

/// A pause between two questions is no longer on one connection; a longer one is that of the next attempt.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// One attempt takes no longer.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(600);

/// Which hub, and as which device there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Its host name.
    pub hub: String,
    /// The device's id.
    pub device: String,
}

/// As it is kept: of another scope or another registration id it is of no use.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    id_scope: String,
    registration_id: String,
    #[serde(flatten)]
    assignment: Assignment,
}

/// Why it is not known which hub.
#[derive(Debug, Error)]
pub enum RegistrationError {
    /// The file.
    #[error("cannot keep the assigned hub in {}", path.display())]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing to log in with.
    #[error(transparent)]
    Login(LoginError),
    /// The connection.
    #[error("not registered at the provisioning service")]
    Dialogue(#[source] DialogueError),
    /// The answer.
    #[error("not registered")]
    Answer(#[source] AnswerError),
    /// It has too much to do.
    #[error("not registered yet: the provisioning service wants to be asked again in {} s", after.as_secs())]
    Busy {
        /// Not before.
        after: Duration,
    },
    /// It does not come to a decision.
    #[error("not registered yet: the provisioning service has not decided within {} s", ATTEMPT_WITHIN.as_secs())]
    Undecided,
}

impl RegistrationError {
    /// When the next attempt may be made at the earliest.
    pub fn not_before(&self) -> Duration {
        match self {
            RegistrationError::Busy { after } => *after,
            _ => Duration::ZERO,
        }
    }
}

/// The uplink's configuration with the hub that it was given to; `None` when there is none yet, or none is needed.
pub fn assigned(config: &UplinkConfig) -> Option<UplinkConfig> {
    let dps = config.dps.as_ref()?;
    let kept = kept(dps, &config.client_id).ok()??;
    let endpoints = config.endpoints.iter().map(|service| at_hub(service, &kept)).take(1).collect();
    Some(UplinkConfig { endpoints, client_id: kept.device, ..config.clone() })
}

/// The hub is reached as the service is: behind the same firewall, by the same port.
fn at_hub(service: &Endpoint, assignment: &Assignment) -> Endpoint {
    Endpoint { host: assignment.hub.clone(), ..service.clone() }
}

fn kept(dps: &DpsConfig, registration_id: &str) -> io::Result<Option<Assignment>> {
    let text = Folder::new(&dps.folder).assignment()?;
    let kept = text.and_then(|text| serde_json::from_str::<Kept>(&text).ok());
    let ours = kept.filter(|kept| kept.id_scope == dps.id_scope && kept.registration_id == registration_id);
    Ok(ours.map(|kept| kept.assignment).filter(Assignment::is_whole))
}

/// Finds out for one connection where it goes.
#[derive(Debug)]
pub(super) struct Registrar {
    pub name: Arc<str>,
    pub config: UplinkConfig,
    /// The service's address to try.
    pub service: Endpoint,
    pub now: Stamp,
    /// The hub that is kept is doubted.
    pub is_doubted: bool,
}

impl Registrar {
    /// The hub and the device: what was kept, or what the service says, kept by then.
    ///
    /// # Errors
    /// When the service or the disk does not let it come to an end; it may be tried again.
    pub async fn assigned(&self, dps: &DpsConfig) -> Result<(Endpoint, String), RegistrationError> {
        self.assigned_within(dps, ATTEMPT_WITHIN).await
    }

    async fn assigned_within(&self, dps: &DpsConfig, limit: Duration) -> Result<(Endpoint, String), RegistrationError> {
        let kept = self.kept(dps).await?;
        let assignment = match kept {
            Some(assignment) if !self.is_doubted => assignment,
            before => {
                // Whatever is heard meanwhile: each word of the service would put off the end of a wait for the right one.
                let registered = timeout(limit, self.registered(dps)).await;
                let assignment = registered.unwrap_or(Err(RegistrationError::Undecided))?;
                self.keep(dps, &assignment, before.as_ref()).await?;
                assignment
            }
        };
        Ok((at_hub(&self.service, &assignment), assignment.device))
    }

    async fn registered(&self, dps: &DpsConfig) -> Result<Assignment, RegistrationError> {
        let mut dialogue = self.open(dps).await?;
        let mut operation: Option<String> = None;
        for number in 1.. {
            let (topic, payload) = match &operation {
                None => exchange::register(&self.config.client_id, number),
                Some(operation) => exchange::look(operation, number),
            };
            let answer = ask(&mut dialogue, topic, payload, number).await?;
            let after = match answer {
                Answer::Assigned(assignment) => {
                    dialogue.close().await;
                    return Ok(assignment);
                }
                Answer::Assigning { operation: named, after } => {
                    operation = Some(named);
                    after
                }
                Answer::Later(after) => after,
            };
            if after > PAUSE_MAX {
                dialogue.close().await;
                return Err(RegistrationError::Busy { after });
            }
            // Whatever it says: no questions without a pause.
            sleep(after.max(Duration::from_secs(1))).await;
        }
        Err(RegistrationError::Undecided)
    }

    async fn open(&self, dps: &DpsConfig) -> Result<Dialogue, RegistrationError> {
        let login = registering(&self.config, dps, self.now).await.map_err(RegistrationError::Login)?;
        let connect = Connect {
            keep_alive_s: KEEP_ALIVE_S,
            clean_start: true,
            username: login.username,
            password: login.password,
            ..Connect::new(Version::V311, self.config.client_id.clone())
        };
        let way = Way::new(&self.config, &self.service);
        let dialogue = Dialogue::open(&self.service, &way, self.now, connect).await;
        let mut dialogue = dialogue.map_err(RegistrationError::Dialogue)?;
        let answers = Filter::new(exchange::ANSWERS).into_iter().collect::<Vec<_>>();
        dialogue.subscribe(&answers).await.map_err(RegistrationError::Dialogue)?;
        Ok(dialogue)
    }

    async fn kept(&self, dps: &DpsConfig) -> Result<Option<Assignment>, RegistrationError> {
        let registration_id = self.config.client_id.clone();
        on_disk(dps, move |dps| kept(dps, &registration_id)).await
    }

    async fn keep(
        &self,
        dps: &DpsConfig,
        assignment: &Assignment,
        before: Option<&Assignment>,
    ) -> Result<(), RegistrationError> {
        let (uplink, hub, device) = (self.name.as_ref(), assignment.hub.as_str(), assignment.device.as_str());
        if before == Some(assignment) {
            warn!(uplink, hub, device; "The provisioning service stays with the hub that refuses the gateway");
            return Ok(());
        }
        let kept = Kept {
            id_scope: dps.id_scope.clone(),
            registration_id: self.config.client_id.clone(),
            assignment: assignment.clone(),
        };
        on_disk(dps, move |dps| Folder::new(&dps.folder).keep_assignment(&serde_json::to_vec(&kept)?)).await?;
        info!(uplink, hub, device; "The provisioning service has given the gateway a hub");
        Ok(())
    }
}

async fn ask(
    dialogue: &mut Dialogue,
    topic: String,
    payload: bytes::Bytes,
    number: u32,
) -> Result<Answer, RegistrationError> {
    let unreadable = |_| RegistrationError::Answer(AnswerError::Unreadable { text: "its operation makes no topic" });
    let topic = Topic::new(&topic).map_err(unreadable)?;
    dialogue.say(topic, payload).await.map_err(RegistrationError::Dialogue)?;
    loop {
        let heard = dialogue.hear("the answer to the registration").await;
        let (topic, payload) = heard.map_err(RegistrationError::Dialogue)?;
        if let Some(answer) = exchange::answer(number, topic.as_str(), &payload) {
            return answer.map_err(RegistrationError::Answer);
        }
    }
}

/// Off the runtime's threads: a sync on a card may take seconds.
async fn on_disk<T: Send + 'static>(
    dps: &DpsConfig,
    act: impl FnOnce(&DpsConfig) -> io::Result<T> + Send + 'static,
) -> Result<T, RegistrationError> {
    let fault = |source| RegistrationError::Folder { path: dps.folder.clone(), source };
    let of = dps.clone();
    let outcome = tokio::task::spawn_blocking(move || act(&of)).await;
    outcome.map_err(|gone| fault(io::Error::other(gone)))?.map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ClockSource};
    use crate::config::{LoadRequest, load};
    use std::os::unix::fs::PermissionsExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    /// A service that lets everybody in, and then speaks of another registration for ever. Gives back how much it has said.
    async fn speak_of_another(listener: TcpListener) -> usize {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = [0; 1024];
        for answer in [&[0x20, 2, 0, 0][..], &[0x90, 3, 0, 1, 1]] {
            assert_ne!(stream.read(&mut heard).await.unwrap(), 0);
            stream.write_all(answer).await.unwrap();
        }
        let topic = "$dps/registrations/res/202/?$rid=77&retry-after=3";
        let length = u8::try_from(topic.len()).unwrap();
        let word = [&[0x30, length + 4, 0, length][..], topic.as_bytes(), b"{}"].concat();
        for said in 0.. {
            if stream.write_all(&word).await.is_err() {
                return said;
            }
            sleep(Duration::from_millis(10)).await;
        }
        0
    }

    #[tokio::test]
    async fn an_attempt_ends_in_its_time_though_the_service_goes_on_saying_what_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let (file, key) = (dir.path().join("tidegate.toml"), dir.path().join("key"));
        let text = format!(
            "[gateway]\nid = \"g7\"\nstate_dir = \"{}\"\n[uplink.hub]\nprofile = \"azure-iot-hub\"\n\
             url = \"mqtts://global.azure-devices-provisioning.net\"\nsas = {{ key = \"{}\" }}\n\
             dps = {{ id_scope = \"0ne00000001\" }}\n",
            dir.path().display(),
            key.display()
        );
        std::fs::write(&file, text).unwrap();
        std::fs::write(&key, "c2VjcmV0\n").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let root = dir.path().to_owned();
        let loaded = load(&LoadRequest { root, config: Some(file), credentials_dir: None, kept_id: None }).unwrap();
        let config = loaded.config.uplinks["hub"].clone();
        let dps = config.dps.clone().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut service = JoinSet::new();
        service.spawn(speak_of_another(listener));
        let registrar = Registrar {
            name: Arc::from("hub"),
            config,
            service: Endpoint { host: "127.0.0.1".to_owned(), port, tls: false, path: None },
            now: Clock::new(ClockSource::Trusted).now(),
            is_doubted: false,
        };
        // The service goes on for as long as it is heard.
        let attempt = registrar.assigned_within(&dps, Duration::from_secs(1));
        let ended = timeout(Duration::from_secs(30), attempt).await.expect("it listens for ever");
        assert!(matches!(ended, Err(RegistrationError::Undecided)), "{ended:?}");
        assert!(
            service.join_next().await.unwrap().unwrap() > 10,
            "it has said so little that the wait for an answer may have ended by itself"
        );
    }
}
