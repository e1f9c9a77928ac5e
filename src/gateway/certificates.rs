//! Watches over the certificates that the configuration names, and says in time that one ends.
//!
//! A renewed file is read at the next connection of an uplink, and at a reload by listeners and page. So nothing is done here
//! but telling: in `status`, within seconds also of a file that was replaced, and in the journal thirty days before, seven, one,
//! and when it is over. By a clock that nobody has confirmed nothing is said.

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::{error, warn};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{Config, ListenerTls};
use crate::health::{CertificateEnd, Health};
use crate::message::ClockState;
use crate::transport::Validity;
use crate::uplink::provision::own_cert;

/// How often it is looked whether a file was replaced.
const GLANCE_EVERY: Duration = Duration::from_secs(5);

/// How often the files are read all the same.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// Days before the end at which it is told; below zero it is over.
const STEPS: [i64; 4] = [30, 7, 1, -1];

/// No file of certificates is longer.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The certificates of uplinks, listeners and page. Clones are one.
#[derive(Debug, Clone)]
pub(super) struct CertificateWatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    watched: Mutex<Vec<Watched>>,
    changed: Notify,
    clock: Clock,
    health: Health,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    /// As it is written in the file: `uplink.cloud`.
    of: String,
    /// The key: `cert`, `ca` …
    key: &'static str,
    path: PathBuf,
    told: Option<i64>,
}

impl CertificateWatch {
    /// Over those that the configuration names.
    pub fn new(config: &Config, clock: Clock, health: Health) -> CertificateWatch {
        let watched = Mutex::new(watched(config));
        CertificateWatch(Arc::new(Shared { watched, changed: Notify::new(), clock, health }))
    }

    /// Over those of another configuration, from now on.
    pub fn watch_over(&self, config: &Config) {
        let mut all = watched(config);
        let mut before = self.0.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for one in &mut all {
            let known =
                before.iter().find(|known| (&known.of, known.key, &known.path) == (&one.of, one.key, &one.path));
            one.told = known.and_then(|known| known.told);
        }
        *before = all;
        drop(before);
        // The files may be others, whatever they are called.
        self.0.changed.notify_one();
    }

    /// Until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        loop {
            // Before the look, so that no change falls between the two.
            let (glance, looked_at) = (self.glance().await, Instant::now());
            self.look().await;
            while looked_at.elapsed() < LOOK_EVERY {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = self.0.changed.notified() => break,
                    () = tokio::time::sleep(GLANCE_EVERY) => {}
                }
                if self.glance().await != glance {
                    break;
                }
            }
        }
    }

    /// By what a change is known: of the files, and of the clock by which they are judged.
    async fn glance(&self) -> (bool, Vec<Option<Mark>>) {
        let all = self.0.watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let marks = tokio::task::spawn_blocking(move || all.iter().map(|one| mark(&one.path)).collect());
        (self.0.clock.state() == ClockState::Unset, marks.await.unwrap_or_default())
    }

    async fn look(&self) {
        let Shared { watched, clock, health, .. } = &*self.0;
        let all = watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let read = tokio::task::spawn_blocking(move || all.into_iter().filter_map(end_of).collect::<Vec<_>>());
        // The task can only be lost with the runtime.
        let Ok(read) = read.await else { return };
        let now = clock.now();
        let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
        for (one, until_ms) in &read {
            let Some(known) = watched.iter_mut().find(|known| *known == one) else { continue };
            if now.clock != ClockState::Unset {
                let days = Validity { from_ms: 0, until_ms: *until_ms }.days_left(now.wall_ms);
                tell(known, days);
            }
        }
        drop(watched);
        let end = |(Watched { of, key, path, .. }, until_ms)| CertificateEnd { of, key, path, until_ms };
        health.set_certificates(read.into_iter().map(end).collect());
    }
}

fn watched(config: &Config) -> Vec<Watched> {
    let mut watched = Vec::new();
    let mut add = |of: String, key, path: Option<&PathBuf>| {
        watched.extend(path.map(|path| Watched { of, key, path: path.clone(), told: None }));
    };
    for (name, uplink) in &config.uplinks {
        // One that the board has still to get is looked for each time.
        let own = uplink.provision.as_ref().map(own_cert);
        add(format!("uplink.{name}"), "cert", own.as_ref().or(uplink.cert.as_ref()));
        add(format!("uplink.{name}"), "ca", uplink.ca.as_ref());
    }
    let listeners = config.broker.listeners.iter();
    let listeners =
        listeners.filter_map(|(name, listener)| Some((format!("broker.listener.{name}"), listener.tls.as_ref()?)));
    let page = config.web.as_ref().and_then(|web| Some(("web".to_owned(), web.tls.as_ref()?)));
    for (of, ListenerTls { cert, client, .. }) in listeners.chain(page) {
        add(of.clone(), "cert", Some(cert));
        add(of, "client_ca", client.as_ref().map(|client| &client.ca));
    }
    watched
}

/// Tells a file from the one that takes its place: number, length and time of the last change.
type Mark = (u64, u64, i64, i64);

fn mark(path: &Path) -> Option<Mark> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

/// When the first certificate of a file ends; of authorities, when the last of them does: one is enough. A file that cannot be
/// read is told by whoever needs it.
fn end_of(one: Watched) -> Option<(Watched, i64)> {
    if std::fs::metadata(&one.path).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    let text = std::fs::read(&one.path).ok()?;
    let all = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok);
    let mut ends = all.filter_map(|certificate| Some(Validity::of(&certificate)?.until_ms));
    let until_ms = if one.key == "cert" { ends.next() } else { ends.max() }?;
    Some((one, until_ms))
}

fn tell(one: &mut Watched, days: i64) {
    let Some(step) = due(days, &mut one.told) else { return };
    let (of, key, file) = (one.of.as_str(), one.key, one.path.display());
    match step {
        ..0 => error!(of, key, file:%; "A certificate has expired"),
        0..=1 => error!(of, key, file:%, days; "A certificate ends within a day or two"),
        _ => warn!(of, key, file:%, days; "A certificate ends soon"),
    }
}

/// The step that is to be told now; `told` is the last one that was, none after a renewal.
fn due(days: i64, told: &mut Option<i64>) -> Option<i64> {
    let reached = STEPS.into_iter().filter(|step| days <= *step).min();
    let is_new = reached.is_some_and(|reached| told.is_none_or(|told| reached < told));
    *told = reached;
    reached.filter(|_| is_new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_told_once_and_again_after_a_renewal() {
        let mut told = None;
        let said: Vec<Option<i64>> =
            [90, 31, 30, 29, 8, 7, 6, 2, 1, 0, -1, -2].map(|days| due(days, &mut told)).to_vec();
        let expected = [None, None, Some(30), None, None, Some(7), None, None, Some(1), None, Some(-1), None];
        assert_eq!(said, expected);
        assert_eq!(due(365, &mut told), None, "renewed");
        assert_eq!(due(20, &mut told), Some(30));
        // A board that was off for long says the last step only.
        assert_eq!(due(-5, &mut told), Some(-1));
        assert_eq!(due(-6, &mut None), Some(-1));
    }

    #[test]
    fn of_authorities_the_last_to_end_counts_and_of_a_chain_its_first() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = |year| {
            let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
            parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
            parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        let path = folder.path().join("both.pem");
        std::fs::write(&path, certificate(2030) + &certificate(2040)).unwrap();
        let end = |key| {
            let one = Watched { of: "uplink.cloud".to_owned(), key, path: path.clone(), told: None };
            crate::clock::rfc3339(end_of(one).unwrap().1)
        };
        assert_eq!((&end("cert")[..4], &end("ca")[..4], &end("client_ca")[..4]), ("2030", "2040", "2040"));
        let gone = Watched { of: String::new(), key: "ca", path: folder.path().join("gone"), told: None };
        assert_eq!(end_of(gone), None);
    }
}
