//! Watches over the certificates by which uplinks log in, and says in time that one ends.
//!
//! A renewed file needs no restart: it is read at the next connection. So nothing is done here but telling, thirty days
//! before, seven, one, and when it is over. By a clock that nobody has confirmed nothing is said.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use log::{error, warn};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::provision::own_cert;
use crate::clock::Clock;
use crate::config::Config;
use crate::message::ClockState;
use crate::transport::Validity;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// Days before the end at which it is told; below zero it is over.
const STEPS: [i64; 4] = [30, 7, 1, -1];

/// Why the watch ended before it was told to: there is no such reason.
#[derive(Debug, Error)]
pub enum WatchError {}

/// The certificates of all uplinks.
#[derive(Debug)]
pub struct CertificateWatch {
    watched: Vec<Watched>,
    clock: Clock,
}

#[derive(Debug)]
struct Watched {
    uplink: Arc<str>,
    path: PathBuf,
    told: Option<i64>,
}

impl CertificateWatch {
    /// Over those that the configuration names.
    pub fn new(config: &Config, clock: Clock) -> CertificateWatch {
        let watched = config.uplinks.iter().filter_map(|(name, uplink)| {
            // One that the board has still to get is looked for each time.
            let path = match &uplink.provision {
                Some(provision) => own_cert(provision),
                None => uplink.cert.clone()?,
            };
            Some(Watched { uplink: name.clone(), path, told: None })
        });
        let watched = watched.collect();
        CertificateWatch { watched, clock }
    }

    /// Until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), WatchError> {
        loop {
            self.look().await;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn look(&mut self) {
        let now = self.clock.now();
        if now.clock == ClockState::Unset {
            return;
        }
        for one in &mut self.watched {
            // A file that cannot be read is told by the uplink that needs it.
            let Ok(text) = tokio::fs::read(&one.path).await else { continue };
            let Ok(first) = CertificateDer::from_pem_slice(&text) else { continue };
            let Some(validity) = Validity::of(&first) else { continue };
            let days = validity.days_left(now.wall_ms);
            let Some(step) = due(days, &mut one.told) else { continue };
            let (uplink, file) = (one.uplink.as_ref(), one.path.display());
            match step {
                ..0 => error!(uplink, file:%; "The certificate of the uplink has expired"),
                0..=1 => error!(uplink, file:%, days; "The certificate of the uplink ends within a day or two"),
                _ => warn!(uplink, file:%, days; "The certificate of the uplink ends soon"),
            }
        }
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
}
