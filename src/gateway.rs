//! The wiring: the one file that knows every stage, and the order in which they start and stop.
//!
//! Start: store → router → intake → listeners bound → stages → READY. Stop, each step with a deadline: field and
//! listeners → intake drained → uplink settles what is in flight → queue committed, checkpointed, closed. A kill at any
//! step loses nothing that was acknowledged.
//!
//! Reload: what is different in a new configuration changes while the rest runs (`reload` says what, `apply` does it); what
//! cannot waits for a restart and is said to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::broker::{BindError, Broker, BrokerLimits};
use crate::clock::Clock;
use crate::config::{Config, UplinkConfig};
use crate::control::{Control, Reloaded};
use crate::field::{self, Field, FieldError};
use crate::health::status::Told;
use crate::health::{Health, chain};
use crate::intake::Intake;
use crate::queue::{self, Inlet, OpenError, Opened, Outlet, QueueSettings, SetTopics, StreamSpec, WorkerError};
use crate::router::{Router, RouterError, RouterLimits};
use crate::service::{self, Watch};
use crate::supervise::{StageError, StageId, Stages};
use crate::uplink::{Uplink, UplinkSettings};
use crate::web::Web;

use apply::{Hands, Reloader};
use certificates::CertificateWatch;

mod apply;
mod certificates;
mod reload;
mod tidings;

/// How long a start may take at most before the service manager may lose patience: a store of a gigabyte that is looked
/// through on a slow card.
const OPENING_LIMIT: Duration = Duration::from_secs(3600);

/// How much longer than usual the service manager is to wait, each time that it is told.
const OPENING_EXTENSION: Duration = Duration::from_secs(60);

/// How long the store has to keep the reason of a stop.
const DECLARE_DEADLINE: Duration = Duration::from_secs(1);

/// How often the ledger is asked whether there is something to write.
const LEDGER_EVERY: Duration = Duration::from_secs(30);

/// How long field and listeners have to stop taking in.
const INTAKE_DEADLINE: Duration = Duration::from_secs(4);

/// How long uplinks have to settle what is in flight (2 s), to say goodbye (1 s) and to commit (2 s).
const UPLINK_DEADLINE: Duration = Duration::from_secs(6);

/// How long the store has to commit, checkpoint and close; an SD card may stall.
const QUEUE_DEADLINE: Duration = Duration::from_secs(5);

/// Why the gateway did not start, or did not go on.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// The store.
    #[error("the gateway cannot start")]
    Queue(#[source] OpenError),
    /// The router.
    #[error("the gateway cannot start")]
    Router(#[source] RouterError),
    /// A listener.
    #[error("the gateway cannot start")]
    Listener(#[source] BindError),
    /// The field stage.
    #[error("the gateway cannot start")]
    Field(#[source] FieldError),
    /// The queue's thread.
    #[error("the gateway cannot start its queue")]
    Thread(#[source] std::io::Error),
    /// Opening the store panicked: a bug of ours.
    #[error("the gateway cannot start: opening its store failed")]
    Opening(#[source] tokio::task::JoinError),
    /// A stage ended before it was told to.
    #[error("the gateway stops")]
    Stage(#[source] StageError),
}

impl GatewayError {
    /// Whether starting again by and by may help without anybody doing anything: a port or a directory in use.
    pub fn is_transient(&self) -> bool {
        matches!(self, GatewayError::Listener(_) | GatewayError::Queue(OpenError::InUse { .. }))
    }
}

/// The queue's thread as a stage.
#[derive(Debug, Error)]
enum QueueStageError {
    #[error("the queue's thread failed")]
    Worker(#[source] WorkerError),
    #[error("the queue's thread panicked")]
    Panicked,
}

/// What reading the configuration again has come to.
#[derive(Debug)]
pub enum Reload {
    /// Without a problem.
    Good {
        /// The new one.
        config: Box<Config>,
        /// Answered when as much of it is in force as can be.
        done: oneshot::Sender<Reloaded>,
    },
    /// Nothing is to be changed.
    Wrong {
        /// The first problem, for a person.
        problem: String,
        /// Answered when that is told.
        done: oneshot::Sender<Reloaded>,
    },
}

/// Runs the gateway until `stop` comes, then stops it in order. What goes over its Modbus lines is taken down in the
/// directory `record`. Each of `reloads` is applied as far as that is possible; who asks for one by the control socket is
/// handed to `asks`.
pub async fn run(
    config: Config,
    record: Option<PathBuf>,
    mut reloads: mpsc::Receiver<Reload>,
    asks: mpsc::Sender<oneshot::Sender<Reloaded>>,
    stop: impl Future<Output = ()>,
) -> Result<(), GatewayError> {
    let mut clock = Clock::new(config.gateway.clock).kept_in(&config.gateway.state_dir);
    if let Some(mark) = &config.gateway.clock_mark {
        clock = clock.marked_by(mark);
    }
    let health = Health::default();
    let gateway = config.gateway.id.clone();
    log::info!(
        gateway = gateway.as_ref(),
        source = config.gateway.id_source,
        version = env!("CARGO_PKG_VERSION"),
        boot = clock.boot_id();
        "The gateway starts"
    );
    clock.tell();

    let set_topics = field::set_topics(&config);
    let Opened { inlet, mut outlets, worker } =
        open_queue(queue_settings(&config, &set_topics, &clock, &health)).await?;
    let mut queue_stage = Stages::new();
    let (worker_ended, worker_end) = oneshot::channel();
    std::thread::Builder::new()
        .name("queue".to_owned())
        .spawn(move || {
            let ended = worker.run();
            // Nobody listens any more only when the process ends anyway.
            let _unheard = worker_ended.send(ended);
        })
        .map_err(GatewayError::Thread)?;
    queue_stage.start("queue", |_stop| async move {
        match worker_end.await {
            Ok(ended) => ended.map_err(QueueStageError::Worker),
            Err(_) => Err(QueueStageError::Panicked),
        }
    });

    let limits = BrokerLimits::of(&config.broker);
    let usual = RouterLimits::default();
    let links = usual.links.max(limits.sessions);
    let (filters_per_link, bytes) = (limits.subscriptions, limits.live_bytes);
    let router = Router::start(RouterLimits { links, filters_per_link, bytes, ..usual });
    let router = router.map_err(GatewayError::Router)?;
    let rules = config.uplinks.iter().map(|(name, uplink)| (name.clone(), uplink.forward.clone())).collect();
    let intake = Intake::new(inlet.clone(), router.clone(), rules, clock.clone(), health.clone());
    intake.take_writes(set_topics);
    let broker = Broker::bind(&config.broker, limits, intake.clone(), inlet.clone(), router.clone(), health.clone())
        .await
        .map_err(GatewayError::Listener)?;
    let (access, certificates, listeners) = (broker.access(), broker.certificates(), broker.hand());
    let told = Told::new(&gateway, clock.clone(), health.clone());
    let mut page = Web::new(told.clone(), clock.clone());
    if let Err(error) = page.change(config.web.clone()).await {
        // Another program has the port: the plant goes on without the page.
        log::error!(error:% = chain(&error); "The gateway runs, but its status page is not served");
    }
    let web = page.hand();
    let control = Control::bind(&config.gateway.state_dir, told, inlet.clone(), asks);

    let mut taking_in = Stages::new();
    let field = Field::new(&config, intake.clone(), clock.clone(), &health).map_err(GatewayError::Field)?;
    let field = match &record {
        Some(dir) => field.recording(dir).map_err(GatewayError::Field)?,
        None => field,
    };
    let field = match outlets.remove(queue::WRITES) {
        Some(outlet) => field.writing(outlet, intake.clone()),
        None => field,
    };
    let lines = field.hand();
    taking_in.start("field", |stop| field.run(stop));
    taking_in.start("broker", |stop| broker.run(stop));

    let parts = Parts {
        gateway: config.gateway.id.clone(),
        inlet: inlet.clone(),
        intake: intake.clone(),
        clock: clock.clone(),
        health: health.clone(),
    };
    let mut sending = Sending { stages: Stages::new(), by_name: BTreeMap::new(), parts };
    for (name, uplink) in &config.uplinks {
        if let Some(outlet) = outlets.remove(name) {
            sending.start(name, uplink, outlet);
        }
    }

    let mut house = Stages::new();
    match control {
        Ok(control) => drop(house.start("control", |stop| control.run(stop))),
        // On a full or read-only disk the plant goes on without it.
        Err(error) => log::error!(error:% = chain(&error); "The gateway runs, but `tidegate status` cannot ask it"),
    }
    house.start("web", |stop| page.run(stop));
    let telling = (gateway.to_string(), intake.clone(), health.clone(), clock.clone());
    house.start("tidings", |stop| tidings::run(telling.0, telling.1, telling.2, telling.3, stop));
    let ticked = inlet.clone();
    house.start("ledger", |stop| async move { tick(ticked, stop).await });
    let watch = clock.clone();
    house.start("clock", |stop| watch.watch(stop));
    let ends = CertificateWatch::new(&config, clock.clone(), health.clone());
    let watch = ends.clone();
    house.start("certificates", |stop| watch.run(stop));
    let watched = router.clone();
    house.start("router", |stop| async move { watched.watch(stop).await });
    let watch = Watch { inlet: inlet.clone(), health: health.clone(), clock: clock.clone() };
    let teller = watch.clone();
    house.start("watchdog", |stop| watch.feed(stop));
    let pending = Arc::new(Mutex::new(None));
    let told = pending.clone();
    let note = move || told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    house.start("status", |stop| teller.tell(stop, note));
    let hands = Hands { access, certificates, listeners, lines, web, ends };
    let mut reloader = Reloader::new(config, hands, inlet.clone(), intake, health, clock, pending);

    service::ready();
    log::info!("The gateway is ready");
    tokio::pin!(stop);
    let failure = loop {
        tokio::select! {
            () = &mut stop => break None,
            failure = queue_stage.first_failure() => break Some(failure),
            failure = taking_in.first_failure() => break Some(failure),
            failure = sending.stages.first_failure() => break Some(failure),
            failure = house.first_failure() => break Some(failure),
            // It takes some seconds at most, which a stop waits for.
            Some(reload) = reloads.recv() => reloader.take(reload, &mut sending).await,
        }
    };
    if let Some(failure) = &failure {
        log::error!(error:% = chain(failure); "A stage failed: the gateway stops and is to be started again");
        let declared = inlet.declare_stop(format!("because of a failure: {}", chain(failure)));
        // Where the queue is what failed, the next start tells of a crash.
        let _unheard = tokio::time::timeout(DECLARE_DEADLINE, declared).await;
    }

    service::stopping();
    log::info!("The gateway stops");
    let mut failures: Vec<StageError> = failure.into_iter().collect();
    failures.extend(taking_in.stop(INTAKE_DEADLINE).await);
    failures.extend(sending.stages.stop(UPLINK_DEADLINE).await);
    if tokio::time::timeout(QUEUE_DEADLINE, inlet.stop()).await.is_err() {
        log::warn!("The store was not closed in time; what was acknowledged is on disk all the same");
    }
    failures.extend(queue_stage.stop(QUEUE_DEADLINE).await);
    failures.extend(house.stop(INTAKE_DEADLINE).await);
    match failures.into_iter().next() {
        None => {
            log::info!("The gateway has stopped");
            Ok(())
        }
        Some(first) => Err(GatewayError::Stage(first)),
    }
}

/// Opens the store beside the runtime: it may have to be looked through, and the service manager waits.
async fn open_queue(settings: QueueSettings) -> Result<Opened, GatewayError> {
    let opening = tokio::task::spawn_blocking(move || queue::open(settings));
    let say = || {
        service::extend(OPENING_EXTENSION);
        service::status("the store is opened: it has to be looked through");
    };
    let opened = service::with_patience(opening, OPENING_LIMIT, say).await;
    opened.map_err(GatewayError::Opening)?.map_err(GatewayError::Queue)
}

/// What every uplink needs.
struct Parts {
    gateway: Arc<str>,
    inlet: Inlet,
    intake: Intake,
    clock: Clock,
    health: Health,
}

/// The uplinks, each a stage of its own.
struct Sending {
    stages: Stages,
    by_name: BTreeMap<Arc<str>, StageId>,
    parts: Parts,
}

impl Sending {
    fn start(&mut self, name: &Arc<str>, uplink: &UplinkConfig, outlet: Outlet) {
        let Parts { gateway, inlet, intake, clock, health } = &self.parts;
        let settings = UplinkSettings {
            name: name.clone(),
            gateway: gateway.clone(),
            client_id: uplink.client_id.clone(),
            config: uplink.clone(),
            outlet,
            inlet: inlet.clone(),
            intake: intake.clone(),
            clock: clock.clone(),
            health: health.clone(),
        };
        let id = self.stages.start("uplink", |stop| Uplink::new(settings).run(stop));
        self.by_name.insert(name.clone(), id);
    }

    /// Stops these, all at the same time.
    async fn stop_some(&mut self, names: &[Arc<str>]) {
        let ids: Vec<StageId> = names.iter().filter_map(|name| self.by_name.remove(name)).collect();
        self.stages.stop_some(&ids, UPLINK_DEADLINE).await;
    }
}

/// Lets the ledger write down now and then what was read, and that the gateway is alive.
async fn tick(inlet: Inlet, stop: CancellationToken) -> Result<(), Infallible> {
    let mut every = tokio::time::interval(LEDGER_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = every.tick() => {
                if let Err(error) = inlet.tick().await {
                    // The queue itself says what is wrong with it, and goes on trying.
                    log::debug!(error:%; "The ledger was not written");
                }
            }
        }
    }
}

fn stream(name: &Arc<str>, uplink: &UplinkConfig) -> StreamSpec {
    StreamSpec { name: name.clone(), rules: uplink.forward.clone(), own_topic: uplink.own_topic.clone() }
}

/// The store of a gateway of this configuration, for whoever opens it while no gateway runs.
pub fn store_settings(config: &Config, clock: &Clock, health: &Health) -> QueueSettings {
    queue_settings(config, &field::set_topics(config), clock, health)
}

fn queue_settings(config: &Config, set_topics: &SetTopics, clock: &Clock, health: &Health) -> QueueSettings {
    let mut streams: Vec<StreamSpec> = config.uplinks.iter().map(|(name, uplink)| stream(name, uplink)).collect();
    // Also without devices: a write that was acknowledged while there were some is answered all the same.
    streams.push(StreamSpec::writes());
    QueueSettings {
        set_topics: set_topics.clone(),
        dir: config.gateway.state_dir.clone(),
        gateway: config.gateway.id.clone(),
        bytes_max: config.queue.bytes_max,
        age_max: config.queue.age_max,
        keep: config.queue.keep,
        when_full: config.queue.when_full,
        hold: config.queue.hold,
        streams,
        clock: clock.clone(),
        health: health.clone(),
    }
}
