//! Brings new configurations into force: what is different changes, and nothing else is touched.
//!
//! Promises: where anything that can be refused is refused (a port in use, a certificate that cannot be read), nothing is
//! changed, and that is told. The queue stays open, whatever changes; what waits for an uplink that is gone is kept. What came
//! in force is remembered as such, so that what did not is tried again at the next reload.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::certificates::CertificateWatch;
use super::reload::Difference;
use super::{Reload, Sending, field, stream};
use crate::broker::{Access, BrokerHand, Certificates};
use crate::clock::Clock;
use crate::config::{BOARD, Config, UplinkConfig};
use crate::control::Reloaded;
use crate::field::{FieldHand, Lines};
use crate::health::{Alarm, Health, chain};
use crate::intake::Intake;
use crate::queue::{AppendError, Bounds, Inlet, Outlet, StreamSpec};
use crate::service::Watch;
use crate::web::WebHand;

/// How often, and after which pause each time, a stream is opened once more when the store fails in that moment.
const OPEN_ATTEMPTS: u32 = 20;
const OPEN_PAUSE: Duration = Duration::from_millis(500);
/// How long the store has to write down a problem.
const NOTE_DEADLINE: Duration = Duration::from_secs(2);

/// What the stages can be changed by.
pub(super) struct Hands {
    pub access: Access,
    pub certificates: Certificates,
    pub listeners: BrokerHand,
    pub lines: FieldHand,
    pub web: WebHand,
    pub ends: CertificateWatch,
}

/// Brings new configurations into force.
pub(super) struct Reloader {
    /// What is in force.
    running: Config,
    hands: Hands,
    inlet: Inlet,
    intake: Intake,
    health: Health,
    clock: Clock,
    /// What the line of the service manager says of it.
    pending: Arc<Mutex<Option<String>>>,
}

impl Reloader {
    pub fn new(
        running: Config,
        hands: Hands,
        inlet: Inlet,
        intake: Intake,
        health: Health,
        clock: Clock,
        pending: Arc<Mutex<Option<String>>>,
    ) -> Reloader {
        Reloader { running, hands, inlet, intake, health, clock, pending }
    }

    /// Does what is to be done about a configuration that was read again.
    pub async fn take(&mut self, reload: Reload, sending: &mut Sending) {
        let (done, reloaded): (oneshot::Sender<Reloaded>, _) = match reload {
            Reload::Wrong { problem, done } => (done, self.refuse(problem).await),
            Reload::Good { config, done } => match self.apply(*config, sending).await {
                Ok(reloaded) => (done, reloaded),
                Err(refusal) => (done, self.refuse(refusal).await),
            },
        };
        let note = self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Reloader { inlet, health, clock, .. } = self;
        Watch { inlet: inlet.clone(), health: health.clone(), clock: clock.clone() }.tell_now(note);
        // Whoever asked may be gone.
        let _unheard = done.send(reloaded);
    }

    /// Nothing was changed: that is told where somebody looks.
    async fn refuse(&self, why: String) -> Reloaded {
        log::error!(problem = why.as_str(); "The new configuration is refused: nothing was changed");
        let text = format!("the new configuration is refused, and the former one goes on: {why}");
        let is_new = self.health.raise(Alarm::ConfigurationRefused, self.clock.now().wall_ms, &text);
        if is_new {
            // For after a restart; now it is among the alarms whatever the store does.
            drop(tokio::time::timeout(NOTE_DEADLINE, self.inlet.note_problem(text)).await);
        }
        Reloaded { refused: Some(why), ..Reloaded::default() }
    }

    /// Gives back what came in force and what waits for a restart; the reason, where nothing was changed.
    async fn apply(&mut self, new: Config, sending: &mut Sending) -> Result<Reloaded, String> {
        let mut difference = Difference::between(&self.running, &new);
        let lines = Lines::new(&new, &self.health).map_err(|error| chain(&error))?;
        // A store that fails would let half of it be done.
        self.inlet.tick().await.map_err(|error| format!("the store fails at the moment: {}", chain(&error)))?;
        self.hands.web.change(new.web.clone()).await.map_err(|error| chain(&error))?;
        if let Err(error) = self.hands.listeners.change(new.broker.listeners.clone()).await {
            if let Err(error) = self.hands.web.change(self.running.web.clone()).await {
                log::error!(error:% = chain(&error); "The status page is not served as before");
            }
            return Err(chain(&error));
        }
        self.running.web.clone_from(&new.web);
        self.running.broker.listeners.clone_from(&new.broker.listeners);
        let mut failed = Vec::new();
        self.renew_certificates(&mut failed).await;
        if difference.access {
            self.hands.access.change(&new.broker.access);
            self.running.broker.access.clone_from(&new.broker.access);
        }
        if !difference.bounds.is_empty() {
            let (running, queue) = (&mut self.running.queue, &new.queue);
            let bounds = Bounds { age_max: queue.age_max, keep: queue.keep, when_full: queue.when_full };
            match self.inlet.set_bounds(bounds).await {
                Ok(()) => {
                    (running.age_max, running.keep, running.when_full) =
                        (bounds.age_max, bounds.keep, bounds.when_full);
                }
                Err(_stopped) => failed.append(&mut difference.bounds.drain(..).map(str::to_owned).collect()),
            }
        }
        self.change_rules(&mut difference, &new, &mut failed).await;
        self.change_uplinks(&mut difference, &new, sending, &mut failed).await;
        if difference.is_in_field() {
            self.change_lines(&mut difference, &new, lines, &mut failed).await;
        }
        self.hands.ends.watch_over(&self.running);
        Ok(self.told(&difference, failed))
    }

    async fn renew_certificates(&self, failed: &mut Vec<String>) {
        for (name, listener) in &self.running.broker.listeners {
            let Some(files) = &listener.tls else { continue };
            if let Err(error) = self.hands.certificates.renew(name, files).await {
                log::error!(
                    listener = name.as_ref(), error:% = chain(&error);
                    "The certificate of a listener cannot be used: it goes on with the one that it had"
                );
                failed.push(format!("broker.listener.{name}.tls"));
            }
        }
    }

    /// Of uplinks that stay as they are otherwise.
    async fn change_rules(&mut self, difference: &mut Difference, new: &Config, failed: &mut Vec<String>) {
        for name in std::mem::take(&mut difference.rules) {
            let (Some(old), Some(new)) = (self.running.uplinks.get_mut(&name), new.uplinks.get(&name)) else {
                continue;
            };
            if let Err(error) = self.inlet.set_rules(stream(&name, new)).await {
                log::error!(uplink = name.as_ref(), error:% = chain(&error); "New forward rules are not in force");
                failed.push(format!("uplink.{name}.forward"));
                continue;
            }
            self.intake.set_rules(&name, &new.forward);
            old.forward.clone_from(&new.forward);
            difference.rules.push(name);
        }
    }

    /// Those that are new, gone, or others. What waits for them stays in the store all the while.
    async fn change_uplinks(
        &mut self,
        difference: &mut Difference,
        new: &Config,
        sending: &mut Sending,
        failed: &mut Vec<String>,
    ) {
        sending.stop_some(&difference.uplinks).await;
        for name in std::mem::take(&mut difference.uplinks) {
            self.running.uplinks.remove(&name);
            let changed = match new.uplinks.get(&name) {
                None => {
                    self.intake.close_lane(&name);
                    let closed = self.inlet.close_stream(&name).await;
                    self.health.forget_uplink(&name);
                    closed
                }
                Some(uplink) => match self.open_stream(stream(&name, uplink)).await {
                    Ok(outlet) => {
                        self.start(&name, uplink, outlet, sending);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            match changed {
                Ok(()) => difference.uplinks.push(name),
                Err(error) => {
                    log::error!(uplink = name.as_ref(), error:% = chain(&error); "An uplink could not be changed");
                    failed.push(format!("uplink.{name}"));
                }
            }
        }
    }

    fn start(&mut self, name: &Arc<str>, uplink: &UplinkConfig, outlet: Outlet, sending: &mut Sending) {
        self.intake.open_lane(name, &uplink.forward);
        sending.start(name, uplink, outlet);
        self.running.uplinks.insert(name.clone(), uplink.clone());
    }

    /// Tries for a while: the uplink of before is gone already.
    async fn open_stream(&self, spec: StreamSpec) -> Result<Outlet, AppendError> {
        for _ in 1..OPEN_ATTEMPTS {
            match self.inlet.open_stream(spec.clone()).await {
                Err(AppendError::Failed { .. }) => tokio::time::sleep(OPEN_PAUSE).await,
                ended => return ended,
            }
        }
        self.inlet.open_stream(spec).await
    }

    async fn change_lines(
        &mut self,
        difference: &mut Difference,
        new: &Config,
        lines: Lines,
        failed: &mut Vec<String>,
    ) {
        let topics = field::set_topics(new);
        if let Err(error) = self.inlet.set_writes(topics.clone()).await {
            log::error!(error:% = chain(&error); "Other devices are not in force");
            failed.extend(difference.lines.drain(..).chain(difference.devices.drain(..)));
            return;
        }
        self.intake.take_writes(topics);
        self.hands.lines.change(lines).await;
        let devices = |config: &Config| {
            let board = config.board.as_ref().map(|_| Arc::from(BOARD));
            config.modbus.keys().chain(config.serial.keys()).cloned().chain(board).collect()
        };
        let (before, after): (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>) = (devices(&self.running), devices(new));
        // With what was read of them until now.
        if let Err(error) = self.inlet.tick().await {
            log::debug!(error:%; "The ledger was not written");
        }
        before.difference(&after).for_each(|name| self.health.forget_device(name));
        self.running.lines.clone_from(&new.lines);
        self.running.modbus.clone_from(&new.modbus);
        self.running.serial.clone_from(&new.serial);
        self.running.board.clone_from(&new.board);
    }

    /// Says what came of it, in the journal and in `status`.
    fn told(&self, difference: &Difference, failed: Vec<String>) -> Reloaded {
        let (changed, restart) = (difference.names(), difference.restart.clone());
        if self.health.clear(Alarm::ConfigurationRefused) {
            log::info!("The new configuration is not refused any more");
        }
        let line = (!restart.is_empty()).then(|| format!("a restart is needed for {}", restart.join(", ")));
        match &line {
            Some(line) => drop(self.health.raise(Alarm::RestartNeeded, self.clock.now().wall_ms, line)),
            None => drop(self.health.clear(Alarm::RestartNeeded)),
        }
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = line;
        let sections = changed.join(", ");
        log::info!(changed = sections.as_str(); "The configuration was read again and is in force");
        if !restart.is_empty() {
            let sections = restart.join(", ");
            log::warn!(sections = sections.as_str(); "Some of the configuration waits for a restart");
        }
        Reloaded { changed, restart, failed, ..Reloaded::default() }
    }
}
