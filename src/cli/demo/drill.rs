//! The three drills: what is done to the line and to the process, and when it counts as over.

use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::cloud::{Cloud, wait_until};
use super::line::Line;
use super::process::{ProcessError, Program};
use super::scene::{Drill, Outcome, Progress, Scene};
use crate::cli::publisher::{Order, Publisher};
use crate::cli::tally::Count;

/// Messages a second from the local publisher.
const PER_SECOND: u32 = 200;

/// Messages that are piled up for the third drill.
const BURST: u64 = 4000;

/// How long all is well before something is broken.
const BEFORE: Duration = Duration::from_secs(1);

/// How long the line is down in the first drill: longer than the keep-alive takes to notice.
const OUTAGE: Duration = Duration::from_secs(6);

/// Parts of the second drill: down before the kill, dead, down after the restart.
const OUTAGE_BEFORE_KILL: Duration = Duration::from_secs(2);
const DEAD: Duration = Duration::from_millis(700);
const OUTAGE_AFTER_KILL: Duration = Duration::from_millis(2500);

/// How long the line is down in the third drill; both ends know by then.
const OUTAGE_WITH_BURST: Duration = Duration::from_secs(4);

/// Share of the backlog, in percent, that has arrived when the third drill kills.
const KILL_AT_PERCENT: u64 = 30;

/// A start, a backlog or an acknowledgement that takes longer is a failure, not a slow machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// When nothing has arrived for so long, what is missing will not come.
const QUIET: Duration = Duration::from_secs(15);

/// After the last message, time for a repeat to show itself.
const AFTER: Duration = Duration::from_millis(500);

const LOOK: Duration = Duration::from_millis(20);

/// Everything that a drill needs.
#[derive(Debug)]
pub(super) struct Rig {
    /// The judge.
    pub(super) cloud: Cloud,
    /// What is cut.
    pub(super) line: Line,
    /// Whose acknowledgements count.
    pub(super) publisher: Publisher,
    /// What is killed.
    pub(super) program: Program,
    /// Where all is told.
    pub(super) scene: Scene,
}

/// Why the drills could not go on. A loss is not among them: it is a result.
#[derive(Debug, Error)]
pub(super) enum DrillError {
    /// A process did not do as told.
    #[error("the drills cannot go on")]
    Process(#[source] ProcessError),
    /// The gateway, or the bridge, ended by itself.
    #[error("the {name} ended by itself ({status})")]
    Ended {
        /// Which one.
        name: &'static str,
        /// How.
        status: String,
    },
    /// Something did not happen in time.
    #[error("{what} (waited {} s)", DEADLINE.as_secs())]
    Late {
        /// What.
        what: String,
    },
}

impl Rig {
    /// Starts the program and waits until it serves the publisher and has reached the cloud.
    pub(super) async fn start(&mut self) -> Result<(), DrillError> {
        self.start_program()?;
        let what = format!("the {} did not reach the cloud", self.program.name());
        self.await_state(what, |rig| rig.cloud.is_connected() && rig.publisher.record(|record| record.is_connected()))
            .await
    }

    /// Runs one drill and counts.
    pub(super) async fn run(&mut self, drill: Drill) -> Result<Outcome, DrillError> {
        let from = self.publisher.order(Order::Pace { per_second: PER_SECOND });
        self.scene.set(drill, Progress::Running(from..u64::MAX));
        self.scene.say(drill.sentence(self.program.name()));
        self.watch(BEFORE).await?;

        self.line.cut();
        if drill != Drill::KillInCatchUp {
            self.scene.say("The line is cut; the sender goes on and is acknowledged all the same.");
        }
        match drill {
            Drill::Cut => self.watch(OUTAGE).await?,
            Drill::KillInOutage => {
                self.watch(OUTAGE_BEFORE_KILL).await?;
                self.kill_and_start().await?;
                self.watch(OUTAGE_AFTER_KILL).await?;
            }
            Drill::KillInCatchUp => self.pile_up().await?,
        }
        let end = self.publisher.order(Order::Rest);
        self.scene.set(drill, Progress::Running(from..end));
        let what = "messages of the local sender were not acknowledged".to_owned();
        self.await_state(what, |rig| rig.publisher.record(|record| record.is_at_rest())).await?;

        let before = self.count(from, end);
        let back = Instant::now();
        self.line.restore();
        self.scene.say("The line is back.");
        if drill == Drill::KillInCatchUp {
            let waiting = before.lost();
            let enough = before.received + waiting * KILL_AT_PERCENT / 100;
            let reached = wait_until(DEADLINE, LOOK, || self.count(from, end).received >= enough).await;
            if reached {
                self.kill_and_start().await?;
            }
        }
        let last = self.catch_up(from, end).await?;
        sleep(AFTER).await;
        let count = self.count(from, end);
        let outcome = Outcome { drill, count, catch_up: last.map(|last| last.duration_since(back)) };
        self.scene.set(drill, Progress::Done(outcome));
        Ok(outcome)
    }

    fn count(&self, from: u64, end: u64) -> Count {
        self.publisher.record(|record| self.cloud.tally(|tally| tally.count(from..end, record)))
    }

    /// Sends as fast as the acknowledgements come, so that a backlog lies there when the line is back.
    async fn pile_up(&mut self) -> Result<(), DrillError> {
        let next = self.publisher.record(|record| record.next());
        self.publisher.order(Order::Burst { end: next + BURST });
        let end = Instant::now() + OUTAGE_WITH_BURST;
        self.scene.say(format!("The line is cut; {BURST} messages are piled up behind it."));
        let what = "the backlog was not acknowledged".to_owned();
        self.await_state(what, |rig| rig.publisher.record(|record| record.is_at_rest())).await?;
        self.watch(end.saturating_duration_since(Instant::now())).await
    }

    async fn kill_and_start(&mut self) -> Result<(), DrillError> {
        self.program.kill().await.map_err(DrillError::Process)?;
        self.scene.set_process(None);
        self.scene.say(format!("kill -9: the {} is dead.", self.program.name()));
        sleep(DEAD).await;
        self.start_program()?;
        self.scene.say(format!("The {} is started again on what it left behind.", self.program.name()));
        Ok(())
    }

    fn start_program(&mut self) -> Result<(), DrillError> {
        self.program.start().map_err(DrillError::Process)?;
        self.scene.set_process(self.program.id());
        Ok(())
    }

    /// Waits until all has arrived, or nothing comes any more; gives back when the last one came.
    async fn catch_up(&mut self, from: u64, end: u64) -> Result<Option<Instant>, DrillError> {
        let mut received = self.count(from, end).received;
        let mut last = None;
        let mut quiet_since = Instant::now();
        loop {
            let count = self.count(from, end);
            if count.received > received {
                received = count.received;
                quiet_since = Instant::now();
                last = Some(quiet_since);
            }
            if count.lost() == 0 {
                return Ok(last.or(Some(quiet_since)));
            }
            if quiet_since.elapsed() > QUIET {
                return Ok(last);
            }
            self.check_alive()?;
            sleep(LOOK).await;
        }
    }

    /// Lets time pass, and sees it when the program ends by itself.
    async fn watch(&mut self, time: Duration) -> Result<(), DrillError> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check_alive()?;
            sleep(LOOK).await;
        }
        Ok(())
    }

    async fn await_state(&mut self, what: String, reached: impl Fn(&Rig) -> bool) -> Result<(), DrillError> {
        let end = Instant::now() + DEADLINE;
        while !reached(self) {
            self.check_alive()?;
            if Instant::now() > end {
                return Err(DrillError::Late { what });
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    fn check_alive(&mut self) -> Result<(), DrillError> {
        match self.program.ended() {
            Some(status) => Err(DrillError::Ended { name: self.program.name(), status }),
            None => Ok(()),
        }
    }
}
