//! One subject with everything around it: its cloud, its line, its sender, its devices, its process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::cloud::{Cloud, wait_until};
use super::drill::{DrillError, Rig};
use super::line::Line;
use super::plant::{Plant, TOPIC};
use super::process::{ProcessError, Program, TemporaryDirectory, free_address};
use super::scene::{Drill, Field, Outcome, Scene};
use super::screen::{REDRAW, Screen, Watched, result};
use super::{mosquitto, table};
use crate::cli::publisher::{Order, Publisher, Sent};
use crate::field::simulate::SimulateError;
use crate::message::Topic;

/// Readings of the last moments are on their way when the last drill ends.
const LAST_READINGS: Duration = Duration::from_secs(3);

/// Messages a second from the local sender after the drills.
const AFTERWARDS_PER_SECOND: u32 = 2;

/// What goes through the drills.
#[derive(Debug, Clone)]
pub(super) enum Subject {
    /// The gateway: this very program.
    Gateway,
    /// Mosquitto's bridge, by the path of the program.
    Mosquitto(PathBuf),
}

/// A subject on its stand.
#[derive(Debug)]
pub(super) struct Stand {
    subject: Subject,
    title: String,
    configuration: String,
    state_dir: PathBuf,
    broker: SocketAddr,
    rig: Rig,
    parts: JoinSet<Result<(), StandError>>,
    stop: CancellationToken,
}

/// What came out.
#[derive(Debug)]
pub(super) struct Report {
    title: String,
    outcomes: Vec<Outcome>,
    field: Option<Field>,
}

/// Why there is no result.
#[derive(Debug, Error)]
pub(super) enum StandError {
    /// A process or a file.
    #[error("cannot set up the demo")]
    Process(#[source] ProcessError),
    /// Our own program cannot be found.
    #[error("cannot find this program to start it as the gateway")]
    OwnProgram(#[source] std::io::Error),
    /// A loopback listener.
    #[error("cannot listen on a loopback port")]
    Listen(#[source] std::io::Error),
    /// A simulated device.
    #[error("a simulated device failed")]
    Simulate(#[source] SimulateError),
    /// A part of the demo that should have gone on.
    #[error("a part of the demo ended: {part}")]
    Part {
        /// Which one.
        part: &'static str,
    },
    /// A part of the demo that panicked.
    #[error("a part of the demo panicked")]
    Panicked(#[source] JoinError),
    /// A drill could not go on.
    #[error("a drill failed; the local sender: {sender}")]
    Drill {
        /// Why.
        #[source]
        source: DrillError,
        /// What the program printed last.
        last_words: String,
        /// How the local sender's connection is.
        sender: String,
    },
}

impl StandError {
    /// What the program that failed printed last.
    pub(super) fn last_words(&self) -> Option<&str> {
        match self {
            StandError::Drill { last_words, .. } => Some(last_words),
            _ => None,
        }
    }
}

impl Stand {
    /// Puts everything in its place; the subject itself does not run yet.
    pub(super) async fn build(
        subject: Subject,
        directory: &TemporaryDirectory,
        began: Instant,
    ) -> Result<Stand, StandError> {
        let (cloud, line, publisher) = (Cloud::default(), Line::new(), Publisher::default());
        let (mut parts, stop) = (JoinSet::new(), CancellationToken::new());
        let (cloud_listener, cloud_address) = cloud.listen().await.map_err(StandError::Listen)?;
        let (line_listener, line_address) = Line::listen().await.map_err(StandError::Listen)?;
        let broker = free_address().map_err(StandError::Process)?;

        let name = match subject {
            Subject::Gateway => "gateway",
            Subject::Mosquitto(_) => "bridge",
        };
        let state_dir = directory.path().join(name);
        std::fs::create_dir(&state_dir)
            .map_err(|source| StandError::Process(ProcessError::Directory { path: state_dir.clone(), source }))?;
        let log = directory.path().join(format!("{name}.log"));
        let (title, configuration, program) = match &subject {
            Subject::Gateway => {
                let plant = Plant::build().await.map_err(StandError::Simulate)?;
                let configuration = plant.configuration(&state_dir, broker, line_address);
                let stop = stop.clone();
                parts.spawn(async move { plant.run(stop).await.map_err(StandError::Simulate) });
                let file = directory.write("tidegate.toml", &configuration).map_err(StandError::Process)?;
                let path = std::env::current_exe().map_err(StandError::OwnProgram)?;
                let arguments = vec!["run".to_owned(), "--config".to_owned(), file.display().to_string()];
                ("tidegate".to_owned(), configuration, Program::new(name, path, arguments, log))
            }
            Subject::Mosquitto(path) => {
                let configuration = mosquitto::configuration(&state_dir, broker, line_address);
                let file = directory.write("mosquitto.conf", &configuration).map_err(StandError::Process)?;
                let arguments = vec!["-c".to_owned(), file.display().to_string()];
                let title = format!("mosquitto {}, bridge", mosquitto::version(path));
                (title, configuration, Program::new(name, path.clone(), arguments, log))
            }
        };

        let (ground, way, sender) = (cloud.clone(), line.clone(), publisher.clone());
        parts.spawn(async move { ground.run(cloud_listener).await.map_err(StandError::Listen) });
        parts.spawn(async move { way.run(line_listener, cloud_address).await.map_err(StandError::Listen) });
        let sent = Sent {
            client_id: "demo-press".to_owned(),
            login: None,
            topic: Topic::new(TOPIC).map_err(|_| StandError::Part { part: "the local sender" })?,
            members: r#""machine":"press-3","force_kn":412.5"#.to_owned(),
        };
        parts.spawn(async move {
            sender.run(broker, sent).await;
            Ok(())
        });
        let scene = Scene::new(name, matches!(subject, Subject::Gateway), began);
        let rig = Rig { cloud, line, publisher, program, scene };
        Ok(Stand { subject, title, configuration, state_dir, broker, rig, parts, stop })
    }

    /// What it is called in the table.
    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// The subject's configuration file.
    pub(super) fn configuration(&self) -> &str {
        &self.configuration
    }

    /// Where the subject listens for local clients.
    pub(super) fn broker(&self) -> SocketAddr {
        self.broker
    }

    /// Where the subject keeps its things.
    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Runs the drills.
    pub(super) async fn run(&mut self, screen: &Screen) -> Result<Report, StandError> {
        let watched = Watched {
            scene: self.rig.scene.clone(),
            cloud: self.rig.cloud.clone(),
            line: self.rig.line.clone(),
            publisher: self.rig.publisher.clone(),
        };
        let has_field = matches!(self.subject, Subject::Gateway);
        let drawing = async {
            let mut redraw = interval(REDRAW);
            loop {
                redraw.tick().await;
                screen.draw(&watched);
            }
        };
        let drilled = tokio::select! {
            drilled = drills(&mut self.rig, has_field) => drilled,
            () = drawing => Err(DrillError::Late { what: "the screen ended".to_owned() }),
            ended = self.parts.join_next() => return Err(part_ended(ended)),
        };
        screen.draw(&watched);
        match drilled {
            Ok((outcomes, field)) => Ok(Report { title: self.title.clone(), outcomes, field }),
            Err(source) => Err(StandError::Drill {
                source,
                last_words: self.rig.program.last_words(),
                sender: self.rig.publisher.record(|record| record.state().to_owned()),
            }),
        }
    }

    /// Stays as it is after the drills; tells `say` how many messages the cloud has, every now and then.
    pub(super) async fn stay(&mut self, every: Duration, say: impl Fn(u64)) -> Result<(), StandError> {
        let Rig { cloud, publisher, .. } = &self.rig;
        cloud.tally(|tally| tally.close());
        publisher.order(Order::Pace { per_second: AFTERWARDS_PER_SECOND });
        let mut saying = interval(every);
        loop {
            tokio::select! {
                ended = self.parts.join_next() => return Err(part_ended(ended)),
                _ = saying.tick() => {
                    publisher.record(|record| record.forget());
                    say(cloud.tally(|tally| tally.received()));
                }
            }
        }
    }

    /// Stops the subject in order, and then what is around it.
    pub(super) async fn end(&mut self) -> Result<(), StandError> {
        self.rig.program.stop().await.map_err(StandError::Process)?;
        self.stop.cancel();
        self.parts.shutdown().await;
        Ok(())
    }
}

impl Report {
    /// As the last screen shows it.
    pub(super) fn table(&self) -> String {
        table::table(&self.title, &self.outcomes, self.field.as_ref())
    }

    /// With that of another subject, a column for each.
    pub(super) fn side_by_side(&self, other: &Report) -> String {
        table::side_by_side([&self.title, &other.title], [&self.outcomes, &other.outcomes])
    }

    /// What was acknowledged, or read, and did not arrive.
    pub(super) fn losses(&self) -> u64 {
        table::losses(&self.outcomes, self.field.as_ref())
    }
}

async fn drills(rig: &mut Rig, has_field: bool) -> Result<(Vec<Outcome>, Option<Field>), DrillError> {
    rig.scene.say(format!("The {} is started on an empty directory.", rig.program.name()));
    rig.start().await?;
    let mut outcomes = Vec::new();
    let mut undisturbed = Vec::new();
    for drill in Drill::ALL {
        let outcome = rig.run(drill).await?;
        rig.scene.say(result(&outcome));
        outcomes.push(outcome);
        if drill == Drill::Cut {
            // Later intervals contain the time in which the gateway was dead.
            undisturbed = rig.cloud.tally(|tally| tally.devices());
        }
    }
    if !has_field {
        return Ok((outcomes, None));
    }
    let look = Duration::from_millis(50);
    let cloud = rig.cloud.clone();
    let is_whole = || cloud.tally(|tally| tally.devices().iter().all(|device| device.missing == 0));
    // A hole may be a reading on its way; what is still missing then is lost, and shown as that.
    let _whole: bool = wait_until(LAST_READINGS, look, is_whole).await;
    let field = Field { devices: cloud.tally(|tally| tally.devices()), undisturbed };
    rig.scene.say(table::neighbours(&field));
    sleep(REDRAW).await;
    Ok((outcomes, Some(field)))
}

fn part_ended(ended: Option<Result<Result<(), StandError>, JoinError>>) -> StandError {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(panic)) => StandError::Panicked(panic),
        Some(Ok(Ok(()))) | None => StandError::Part { part: "a server" },
    }
}
