//! `tidegate drill`: the acceptance test at the customer's site.
//!
//! Numbered messages go the way of every local client: over MQTT to the gateway's own listener, through its queue and its
//! uplink to the customer's cloud. There another client reads them back. What is counted is what the sender was
//! acknowledged against what the cloud gives out; the gateway is not asked.

use std::io::{BufRead as _, IsTerminal as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::journal::{Journal, NUMBERS_MAX, Past, Step};
use self::plan::{Plan, PlanError};
pub(super) use self::plan::{endpoint, listener};
use self::reader::{Reader, Source, forget};
use self::table::{Outcome, table};
use super::publisher::{Order, Publisher};
use super::status::print_out;
use super::tally::{Count, Sender as _};
use super::words::grouped;
use super::{Exit, block_on};
use crate::health::chain;

mod journal;

mod plan;

mod reader;

mod table;

/// What stands under `tidegate drill --help`.
pub(super) const LONG_HELP: &str = "\
The drill sends numbered messages at QoS 1 to the gateway's own listener, as any local client does, and reads \
them back from the cloud with the uplink's own settings under the client id `<client id>-drill`. It asks for the \
cable to the cloud to be pulled, then for the plug of the gateway, and prints for each step how many messages \
were acknowledged to the sender, how many of them the cloud has given out, how many are lost, and how many came \
twice.

The gateway must run, with a forward rule that delivers the drill's topic at QoS 1 or 2; by default the topic is \
made from the uplink's first rule (`plant/#` gives `plant/tidegate-drill`). The cloud must let the other client \
id subscribe; where it does not, or gives nothing back at all (Azure IoT Hub, ClearBlade IoT Core, anything by \
HTTP), read back elsewhere with --read-back and --read-back-topic.

The drill keeps what was acknowledged and what came back in a file, synced. So it may run on the gateway itself: \
when the plug was pulled, start `tidegate drill` again (or `tidegate drill --resume`) and it goes on where it \
was. From another machine on the plant's network, run it with --broker ADDRESS:PORT and a copy of the \
configuration.

Exit status: 0 nothing was lost, 70 something was, 75 the gateway or the cloud could not be reached, 64 wrong \
usage, 78 wrong configuration.";

/// Examples under the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  tidegate drill
  tidegate drill --uplink cloud --steps cable --topic plant/press/drill
  tidegate drill --resume";

/// After the last message, time for a repeat to show itself.
const AFTER: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(50);
/// How often a waiting drill says what it sees.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// `tidegate drill`
#[derive(Debug, clap::Args)]
pub(super) struct DrillArguments {
    /// Configuration file, instead of /etc/tidegate/tidegate.toml
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which uplink, where there are several
    #[arg(long, value_name = "NAME")]
    uplink: Option<String>,
    /// What to do, in this order
    #[arg(long, value_name = "STEPS", value_delimiter = ',', value_enum, default_value = "well,cable,plug")]
    steps: Vec<Step>,
    /// Local topic of the messages; a forward rule must want it
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Messages a second
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// How long to send in each part of a step
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = super::parse_duration)]
    time: Duration,
    /// How long to wait for the cloud, the gateway, and the next message that is missing before it is called lost
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = super::parse_duration)]
    patience: Duration,
    /// Do not wait for the Enter key: each part lasts as long as --time says
    #[arg(long)]
    yes: bool,
    /// The gateway's listener, instead of the configuration's first one
    #[arg(long, value_name = "ADDRESS:PORT")]
    broker: Option<SocketAddr>,
    /// User name at the gateway, where it has users
    #[arg(long, value_name = "NAME", requires = "password_file")]
    username: Option<String>,
    /// File whose first line is the password of that user
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,
    /// Read back there instead of at the uplink's cloud: mqtt://host:port or mqtts://host:port
    #[arg(long, value_name = "URL")]
    read_back: Option<String>,
    /// Filter to read back, instead of the topic that the forward rule makes
    #[arg(long, value_name = "FILTER")]
    read_back_topic: Option<String>,
    /// Where the drill keeps its own state, instead of `drill` in the state directory
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Go on with a drill that was broken off; there must be one
    #[arg(long, conflicts_with = "anew")]
    resume: bool,
    /// Forget a drill that was broken off
    #[arg(long)]
    anew: bool,
}

/// Why the drill came to no result.
#[derive(Debug, Error)]
enum DrillError {
    #[error("cannot use the drill's own file")]
    Journal(#[source] std::io::Error),
    #[error("the gateway at {broker} is not reached: {fault}")]
    Gateway { broker: SocketAddr, fault: String },
    #[error("the cloud cannot be read back: {fault}")]
    Cloud { fault: String },
    #[error("a part of the drill failed")]
    Part(#[source] Option<tokio::task::JoinError>),
    #[error("there is nobody to press Enter: use --yes")]
    Nobody,
}

pub(super) fn main(arguments: &DrillArguments) -> Exit {
    let loaded = match super::read(arguments.config.clone()) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let path = arguments.state.clone().unwrap_or_else(|| loaded.config.gateway.state_dir.join("drill"));
    let (journal, past) = match Journal::open(&path) {
        Ok(opened) => opened,
        Err(error) => {
            eprintln!("tidegate: cannot use {}: {error}", path.display());
            eprintln!("help: run as root or as the gateway's user, or write --state FILE");
            return Exit::Usage;
        }
    };
    let is_open = past.header.is_some() && !past.is_over && !arguments.anew;
    if arguments.resume && !is_open {
        eprintln!("tidegate: there is no drill to go on with in {}", path.display());
        return Exit::Usage;
    }
    let past = if is_open { past } else { Past::default() };
    let plan = match Plan::make(&loaded.config, arguments, past.header.clone()) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("tidegate: {}", chain(&error));
            if let Some(help) = error.help() {
                eprintln!("help: {help}");
            }
            return if matches!(error, PlanError::Random(_)) { Exit::Failed } else { Exit::Usage };
        }
    };
    block_on(async {
        match (Drill { plan, arguments, journal: Arc::new(Mutex::new(journal)) }).run(past).await {
            Ok(exit) => exit,
            Err(error) => {
                eprintln!("tidegate: {}", chain(&error));
                match error {
                    DrillError::Gateway { .. } => {
                        eprintln!(
                            "help: is it running, and does it want --username? Then start the drill again: it goes on where it was"
                        );
                        Exit::TryAgain
                    }
                    DrillError::Cloud { .. } => {
                        eprintln!("help: does the cloud let this client id subscribe? Else use --read-back");
                        Exit::TryAgain
                    }
                    DrillError::Nobody => Exit::Usage,
                    _ => Exit::Failed,
                }
            }
        }
    })
}

struct Drill<'a> {
    plan: Plan,
    arguments: &'a DrillArguments,
    journal: Arc<Mutex<Journal>>,
}

/// A drill under way.
struct Rig<'a> {
    arguments: &'a DrillArguments,
    broker: SocketAddr,
    publisher: Publisher,
    reader: Reader,
    journal: Arc<Mutex<Journal>>,
    parts: JoinSet<()>,
    /// For each number, what the journal has of it.
    noted: Vec<(u32, bool)>,
    /// Below this all is noted.
    noted_to: usize,
    said: Instant,
}

impl Drill<'_> {
    async fn run(self, past: Past) -> Result<Exit, DrillError> {
        let Drill { plan, arguments, journal } = self;
        let Plan { header, broker, sent, filter, uplink, read_back } = plan;
        if past.header.is_none() {
            lock(&journal).begin(&header).map_err(DrillError::Journal)?;
        } else {
            say(&format!("The drill {} goes on: {} numbers were sent before.", header.drill, past.numbers.len()));
        }
        let mut source = Source::new(&uplink, filter, &header.drill);
        if let Some(endpoint) = read_back {
            source.endpoints = vec![endpoint];
        }
        let publisher = Publisher::resumed(past.numbers.iter().copied());
        let reader = Reader::new(&past.received);
        let mut parts = JoinSet::new();
        parts.spawn(reader.clone().run(source.clone(), journal.clone()));
        let mut rig = Rig {
            arguments,
            broker,
            publisher: publisher.clone(),
            reader,
            journal,
            parts,
            noted_to: 0,
            noted: past.numbers.clone(),
            said: Instant::now(),
        };
        // First the way back: what is not read back proves nothing.
        rig.reach("the cloud", |rig| rig.reader.is_connected()).await.map_err(|late| match late {
            DrillError::Part(None) => DrillError::Cloud { fault: rig.reader.fault() },
            other => other,
        })?;
        rig.parts.spawn(publisher.run(broker, sent));
        rig.reach("the gateway", |rig| rig.publisher.record(|record| record.is_connected())).await.map_err(|late| {
            match late {
                DrillError::Part(None) => DrillError::Gateway { broker, fault: rig.sender_state() },
                other => other,
            }
        })?;
        say(&format!("Messages go to {} on {}; they are read back from {}.", header.topic, broker, source.filter));
        let mut outcomes = Vec::new();
        for (place, step) in header.steps.iter().enumerate() {
            let begun = past.steps.get(place).map(|(_, first)| *first);
            let end = past.steps.get(place + 1).map(|(_, first)| *first);
            if let (Some(first), Some(end), Some(seconds)) = (begun, end, past.done.get(step)) {
                outcomes.push((*step, first..end, *seconds));
                continue;
            }
            let first = begun.unwrap_or_else(|| rig.next());
            let seconds = match past.done.get(step) {
                Some(seconds) if begun.is_some() => *seconds,
                _ => rig.step(*step, first, begun.is_some()).await?,
            };
            outcomes.push((*step, first..rig.next(), seconds));
        }
        sleep(AFTER).await;
        rig.note()?;
        let outcomes: Vec<Outcome> = outcomes
            .into_iter()
            .map(|(step, numbers, catch_up)| Outcome { step, count: rig.count(numbers), catch_up })
            .collect();
        print_out(&format!("\n{}", table(&header, &outcomes, source.version)));
        let lost: u64 = outcomes.iter().map(|outcome| outcome.count.lost()).sum();
        let unread = lost > 0 && !rig.reader.is_connected();
        if unread {
            // What is missing may lie there: the drill can go on when the cloud is back.
            return Err(DrillError::Cloud { fault: rig.reader.fault() });
        }
        lock(&rig.journal).end().map_err(DrillError::Journal)?;
        rig.parts.shutdown().await;
        forget(&source).await;
        if lost == 0 {
            print_out("Nothing that was acknowledged is lost.\n");
            return Ok(Exit::Done);
        }
        print_out(&format!("LOST: {}. This breaks the promise; please report it.\n", grouped(lost)));
        print_out(&format!("tidegate {}\n", env!("CARGO_PKG_VERSION")));
        Ok(Exit::Failed)
    }
}

impl Rig<'_> {
    fn next(&self) -> u64 {
        self.publisher.record(|record| record.next())
    }

    fn count(&self, numbers: std::ops::Range<u64>) -> Count {
        self.publisher.record(|record| self.reader.tally(|tally| tally.count(numbers, record)))
    }

    fn sender_state(&self) -> String {
        self.publisher.record(|record| record.state().to_owned())
    }

    /// One step: gives back the seconds from its last number to the last that came back; `None`: not all came.
    async fn step(&mut self, step: Step, first: u64, was_begun: bool) -> Result<Option<f64>, DrillError> {
        if !was_begun {
            lock(&self.journal).step(step, first).map_err(DrillError::Journal)?;
        }
        let (time, is_plug_back) = (self.arguments.time, was_begun && step == Step::Plug);
        say(&format!("\n{}", step.name()));
        self.publisher.order(Order::Pace { per_second: self.arguments.rate });
        match step {
            Step::Well => self.pass(time).await?,
            Step::Cable => {
                self.ask("Pull the cable to the cloud now").await?;
                self.pass(time).await?;
                self.ask("Plug the cable in again").await?;
            }
            Step::Plug if is_plug_back => self.pass(time).await?,
            Step::Plug => {
                let connections = self.publisher.record(|record| record.connections());
                say("Pull the plug of the gateway now, wait a moment, and plug it in again.");
                say("If this program ends with it, start `tidegate drill --resume` afterwards.");
                self.come_back(connections).await?;
                self.pass(time).await?;
            }
        }
        let end = self.publisher.order(Order::Rest);
        let resting = Instant::now();
        let last = self.catch_up(first, end).await?;
        let seconds = last.map(|last| last.saturating_duration_since(resting).as_secs_f64());
        lock(&self.journal).done(step, seconds).map_err(DrillError::Journal)?;
        let count = self.count(first..end);
        say(&format!(
            "acknowledged {}, received {}, lost {}, repeated {}",
            grouped(count.acknowledged),
            grouped(count.received),
            grouped(count.lost()),
            grouped(count.repeated),
        ));
        Ok(seconds)
    }

    /// Waits for the Enter key, while messages go on; or for as long as --time says.
    async fn ask(&mut self, what: &str) -> Result<(), DrillError> {
        if self.arguments.yes {
            say(&format!("{what}: {} s.", self.arguments.time.as_secs()));
            return self.pass(self.arguments.time).await;
        }
        say(&format!("{what}, then press Enter."));
        let mut key = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).is_ok_and(|count| count > 0)
        });
        loop {
            tokio::select! {
                pressed = &mut key => {
                    return if pressed.unwrap_or(false) { Ok(()) } else { Err(DrillError::Nobody) };
                }
                () = sleep(LOOK) => self.note()?,
            }
        }
    }

    /// Lets time pass.
    async fn pass(&mut self, time: Duration) -> Result<(), DrillError> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.look().await?;
        }
        Ok(())
    }

    /// Waits until the gateway was away and is back; with --yes for as long as --time says that it goes away.
    async fn come_back(&mut self, connections: u64) -> Result<(), DrillError> {
        let began = Instant::now();
        loop {
            let (now, is_connected) = self.publisher.record(|record| (record.connections(), record.is_connected()));
            if now > connections && is_connected {
                say("The gateway is back.");
                return Ok(());
            }
            if self.arguments.yes && is_connected && began.elapsed() > self.arguments.time {
                say("The gateway did not go away.");
                return Ok(());
            }
            self.look().await?;
        }
    }

    /// Waits until all has come back, or nothing comes any more; gives back when the last one came.
    async fn catch_up(&mut self, first: u64, end: u64) -> Result<Option<Instant>, DrillError> {
        let mut quiet_since = Instant::now();
        let mut last = Instant::now();
        let mut seen = (0, 0);
        loop {
            self.look().await?;
            let count = self.count(first..end);
            if (count.acknowledged, count.received) != seen {
                seen = (count.acknowledged, count.received);
                last = Instant::now();
                quiet_since = last;
            }
            let is_at_rest = self.publisher.record(|record| record.is_at_rest());
            if is_at_rest && count.lost() == 0 {
                return Ok(Some(last));
            }
            if quiet_since.elapsed() > self.arguments.patience {
                if !self.reader.is_connected() {
                    return Err(DrillError::Cloud { fault: self.reader.fault() });
                }
                if !self.publisher.record(|record| record.is_connected()) {
                    return Err(DrillError::Gateway { broker: self.broker, fault: self.sender_state() });
                }
                return Ok(None);
            }
        }
    }

    async fn reach(&mut self, what: &str, is_reached: impl Fn(&Self) -> bool) -> Result<(), DrillError> {
        let end = Instant::now() + self.arguments.patience;
        while !is_reached(self) {
            if Instant::now() > end {
                log::debug!(what; "Not reached in time");
                return Err(DrillError::Part(None));
            }
            self.look().await?;
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), DrillError> {
        if let Some(ended) = self.parts.try_join_next() {
            return Err(DrillError::Part(ended.err()));
        }
        self.note()?;
        if self.next() >= NUMBERS_MAX {
            self.publisher.order(Order::Rest);
        }
        if self.said.elapsed() > SAY_EVERY && std::io::stdout().is_terminal() {
            self.said = Instant::now();
            let count = self.count(0..self.next());
            let cloud = if self.reader.is_connected() { "" } else { "; the cloud is not reached from here" };
            say(&format!(
                "  acknowledged {}, read back {}{cloud}",
                grouped(count.acknowledged),
                grouped(count.received)
            ));
        }
        sleep(LOOK).await;
        Ok(())
    }

    /// Writes down what was sent and acknowledged since.
    fn note(&mut self) -> Result<(), DrillError> {
        let mut journal = lock(&self.journal);
        let (noted, noted_to) = (&mut self.noted, &mut self.noted_to);
        self.publisher.record(|record| {
            let next = usize::try_from(record.next()).unwrap_or(usize::MAX);
            noted.resize(next.max(noted.len()), (0, false));
            let mut is_whole = true;
            for (place, entry) in noted.iter_mut().enumerate().skip(*noted_to) {
                let number = place as u64;
                let now = (record.sends(number), record.is_acknowledged(number));
                if now.0 != entry.0 {
                    journal.sent(number, now.0);
                }
                if now.1 && !entry.1 {
                    journal.acknowledged(number);
                }
                *entry = now;
                if is_whole && now.1 {
                    *noted_to = place + 1;
                } else {
                    is_whole = false;
                }
            }
        });
        journal.sync().map_err(DrillError::Journal)
    }
}

fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    // What is pending in it is whole lines after every statement.
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(sentence: &str) {
    print_out(&format!("{sentence}\n"));
}
