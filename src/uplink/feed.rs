//! The local side of a twin: what local clients and the gateway say of themselves goes to the machine, and what the cloud
//! desires becomes a retained message.
//!
//! Promises: what is reported is what is retained below `twin/<uplink>/`, read anew whenever something was published there,
//! so that nothing has to be remembered and nothing can be missed for good; what is desired is published once, also over
//! restarts, and again and again until the queue has it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use log::{debug, warn};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

use super::tasks::Report;
use super::twin::{NAMES, OWN, Properties};
use crate::clock::Clock;
use crate::health::{DeviceState, Health, Snapshot};
use crate::intake::Intake;
use crate::message::{Body, Filter, Message, Origin, Qos, Topic};
use crate::queue::Inlet;
use crate::router::Link;

/// What the gateway says of itself is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What is retained is read so often, though nothing was heard.
const READ_EVERY: Duration = Duration::from_secs(60);

/// After a change, further ones are waited for so long.
const GATHER_FOR: Duration = Duration::from_millis(100);

/// Pause before something is tried again that the queue or the router did not do.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Properties of local clients.
const PROPERTIES_MAX: usize = 256;

/// Longest name of one.
const NAME_BYTES_MAX: usize = 64;

/// Devices are named as long as their names have room here.
const DEVICES_BYTES_MAX: usize = 600;

/// A fault of a local client is told at most so often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The local side of one twin.
#[derive(Debug)]
pub(super) struct Feed {
    pub name: Arc<str>,
    pub gateway: Arc<str>,
    pub inlet: Inlet,
    pub intake: Intake,
    pub clock: Clock,
    pub health: Health,
    /// Bytes of JSON that may be reported.
    pub bytes_max: usize,
    /// What is desired.
    pub desired: watch::Receiver<Option<Bytes>>,
    pub reports: mpsc::Sender<Report>,
}

impl Feed {
    /// Until the uplink ends.
    pub(super) async fn run(self) {
        let Feed { name, gateway, inlet, intake, clock, health, bytes_max, desired, reports } = self;
        let Ok(filter) = Filter::new(&format!("twin/{name}/+")) else { return };
        let Ok(topic) = Topic::new(&format!("tidegate/{gateway}/twin/{name}")) else { return };
        let report = async {
            let mut said: Option<Properties> = None;
            let mut told = Told::default();
            let mut of_clients = BTreeMap::new();
            let mut link = None;
            let mut read_at = Instant::now();
            let mut look = interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                if link.is_none() {
                    // Before it is read: what comes meanwhile is heard.
                    link = intake.listen(&filter).await.ok();
                    read_at = Instant::now();
                }
                if link.is_none() || read_at <= Instant::now() {
                    match inlet.retained(&filter, PROPERTIES_MAX + 1).await {
                        Ok(found) => of_clients = properties(&name, &found.messages, bytes_max, &mut told),
                        Err(error) => {
                            debug!(uplink = name.as_ref(), error:%; "What local clients report was not read");
                            sleep(AGAIN_AFTER).await;
                            continue;
                        }
                    }
                    read_at = Instant::now() + READ_EVERY;
                }
                let own = own(&health.snapshot(clock.now()), &of_clients);
                let mut all: Properties = of_clients.clone().into_iter().collect();
                all.insert(OWN.to_owned(), own);
                if said.as_ref() != Some(&all) {
                    said = Some(all.clone());
                    if reports.send(Report::Reported(all)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    _ = look.tick() => {}
                    heard = heard(&mut link) => {
                        match heard {
                            None => link = None,
                            Some((topic, false)) if told.is_due() => {
                                let help = "publish it retained";
                                warn!(uplink = name.as_ref(), topic:%, help; "A property of the twin was not retained, and is not reported");
                            }
                            Some(_) => {}
                        }
                        gather(&mut link).await;
                        read_at = Instant::now();
                    }
                }
            }
        };
        let tell = tell(&name, topic, &inlet, &intake, desired);
        tokio::join!(report, tell);
    }
}

/// Says whether somebody would take a job, as often as that changes.
pub(super) async fn hear_of_takers(topic: Option<Topic>, intake: Intake, reports: mpsc::Sender<Report>) {
    let Some(topic) = topic else { return };
    let mut told = None;
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        // A queue that does not answer takes no job either.
        let is_heard = intake.is_heard(&topic).await.unwrap_or(false);
        if told != Some(is_heard) {
            told = Some(is_heard);
            if reports.send(Report::JobsHeard(is_heard)).await.is_err() {
                return;
            }
        }
    }
}

/// The next publication below the filter: its topic, and whether it is retained. `None` = there is nobody to hear.
async fn heard(link: &mut Option<Link>) -> Option<(Topic, bool)> {
    match link {
        Some(link) => link.next().await.ok().map(|taken| (taken.live.topic, taken.live.retain)),
        None => {
            sleep(AGAIN_AFTER).await;
            None
        }
    }
}

/// Hears on for a moment. Publishers wait for whoever does not hear what there is, so a burst is heard whole, and read once.
async fn gather(link: &mut Option<Link>) {
    let Some(link) = link else { return };
    let until = Instant::now() + GATHER_FOR;
    while let Ok(Ok(_taken)) = timeout_at(until, link.next()).await {}
}

/// Publishes what is desired until nobody says it any more.
async fn tell(
    name: &Arc<str>,
    topic: Topic,
    inlet: &Inlet,
    intake: &Intake,
    mut desired: watch::Receiver<Option<Bytes>>,
) {
    while desired.changed().await.is_ok() {
        loop {
            let Some(now) = desired.borrow_and_update().clone() else { break };
            if is_told(inlet, &topic, &now).await {
                break;
            }
            let message = Message {
                topic: topic.clone(),
                qos: Qos::AtLeastOnce,
                retain: true,
                properties: None,
                body: Body::Bytes(now),
                origin: Origin::Uplink(name.clone()),
                received: intake.now(),
            };
            let outcome = async { intake.submit(message, None).await?.outcome().await };
            match outcome.await {
                Ok(_accepted) => break,
                Err(error) => {
                    debug!(uplink = name.as_ref(), error:%; "What is desired was not taken in; again in a moment");
                    sleep(AGAIN_AFTER).await;
                }
            }
        }
    }
}

/// Whether the retained message says the same already, under whatever version.
async fn is_told(inlet: &Inlet, topic: &Topic, desired: &[u8]) -> bool {
    let Ok(filter) = Filter::new(topic.as_str()) else { return false };
    let Ok(found) = inlet.retained(&filter, 1).await else { return false };
    let told = found.messages.first().and_then(|message| match &message.body {
        Body::Bytes(bytes) => desired_of(bytes),
        Body::Reading(_) => None,
    });
    told.is_some() && told == desired_of(desired)
}

fn desired_of(payload: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Value>(payload).ok()?.get_mut("desired").map(Value::take)
}

/// What was told of local clients' faults.
#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
}

impl Told {
    fn is_due(&mut self) -> bool {
        let is_due = self.at.is_none_or(|at| at.elapsed() >= TOLD_EVERY);
        if is_due {
            self.at = Some(Instant::now());
        }
        is_due
    }
}

/// The properties that local clients report, by name: JSON, or text as it is.
fn properties(uplink: &str, retained: &[Message], bytes_max: usize, told: &mut Told) -> BTreeMap<String, Value> {
    let mut result = BTreeMap::new();
    // Room for the gateway's own.
    let mut left = bytes_max.saturating_sub(OWN_BYTES);
    for message in retained {
        let property = property(message).and_then(|(name, value)| {
            let bytes = 2 * name.len() + value.to_string().len() + 8;
            match left.checked_sub(bytes) {
                Some(rest) if result.len() < PROPERTIES_MAX => {
                    left = rest;
                    Ok((name, value))
                }
                _ => Err("there is no room for it"),
            }
        });
        match property {
            Ok((name, value)) => {
                result.insert(name, value);
            }
            Err(reason) if told.is_due() => {
                let topic = &message.topic;
                warn!(uplink, topic:%, reason; "A property of the twin is not reported");
            }
            Err(_told) => {}
        }
    }
    result
}

/// What the gateway says of itself stays below this.
const OWN_BYTES: usize = 2048;

fn property(message: &Message) -> Result<(String, Value), &'static str> {
    let name = message.topic.as_str().rsplit('/').next().unwrap_or_default();
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_known) {
        return Err("its name is not of letters, digits, _ and -");
    }
    if name == OWN {
        return Err("this name is the gateway's own");
    }
    let Body::Bytes(bytes) = &message.body else { return Err("it is a reading") };
    match (serde_json::from_slice(bytes), std::str::from_utf8(bytes)) {
        (Ok(value), _) => Ok((name.to_owned(), value)),
        (Err(_), Ok(text)) => Ok((name.to_owned(), Value::String(text.to_owned()))),
        (Err(_), Err(_)) => Err("it is neither JSON nor text"),
    }
}

/// What the gateway says of itself: what changes seldom, and what somebody should look after.
fn own(now: &Snapshot, of_clients: &BTreeMap<String, Value>) -> Value {
    let named = |state: DeviceState| -> Vec<&String> {
        let mut left = DEVICES_BYTES_MAX;
        let names = now.devices.iter().filter(|(_, device)| device.state == state).map(|(name, _)| name);
        let has_room = |name: &&String| {
            let rest = left.checked_sub(name.len() + 3);
            left = rest.unwrap_or_default();
            rest.is_some()
        };
        names.take_while(has_room).collect()
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "devices": now.devices.len(),
        "degraded": named(DeviceState::Degraded),
        "dead": named(DeviceState::Dead),
        "alarms": now.alarms.keys().collect::<Vec<_>>(),
        NAMES: of_clients.keys().collect::<Vec<_>>(),
    })
}
