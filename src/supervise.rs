//! Starts the stages, sees every end of them, and stops them in order.
//!
//! A stage is `async fn run(self, stop: CancellationToken) -> Result<(), E>`. A stage that ends before it was told
//! to, or panics, ends the process: systemd starts it again, and the queue has all that was acknowledged. A device
//! that fails is its own stage's affair and never comes here.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::time::Duration;

use thiserror::Error;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::health::chain;

#[cfg(panic = "abort")]
compile_error!("a panic must end a task, not the process: build with panic = \"unwind\"");

/// How a stage failed.
#[derive(Debug, Error)]
pub enum StageError {
    /// It said so.
    #[error("the stage {stage} failed")]
    Failed {
        /// Which one.
        stage: &'static str,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It panicked: a bug of ours.
    #[error("the stage {stage} panicked")]
    Panicked {
        /// Which one.
        stage: &'static str,
    },
    /// It came to an end although nobody had asked it to.
    #[error("the stage {stage} ended by itself")]
    Ended {
        /// Which one.
        stage: &'static str,
    },
}

/// Names one stage of a group while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageId(Id);

type Ending = Result<(), Box<dyn Error + Send + Sync>>;

/// The running stages of one group, which start together and stop together, or one by one.
#[derive(Debug)]
pub struct Stages {
    stop: CancellationToken,
    running: JoinSet<Ending>,
    stages: HashMap<Id, (&'static str, CancellationToken, AbortHandle)>,
    /// What ended by itself while another one was stopped.
    ended: Vec<StageError>,
}

impl Default for Stages {
    fn default() -> Stages {
        Stages::new()
    }
}

impl Stages {
    /// An empty group.
    pub fn new() -> Stages {
        let stop = CancellationToken::new();
        Stages { stop, running: JoinSet::new(), stages: HashMap::new(), ended: Vec::new() }
    }

    /// Starts a stage; `run` gets its stop signal, which is also the group's.
    pub fn start<F, E>(&mut self, stage: &'static str, run: impl FnOnce(CancellationToken) -> F) -> StageId
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        let stop = self.stop.child_token();
        let work = run(stop.clone());
        let task = self.running.spawn(async move { work.await.map_err(Into::into) });
        let id = task.id();
        self.stages.insert(id, (stage, stop, task));
        StageId(id)
    }

    /// Waits for the first stage that ends, which none should before `stop`. Never returns for an empty group.
    pub async fn first_failure(&mut self) -> StageError {
        if let Some(ended) = self.ended.pop() {
            return ended;
        }
        match self.running.join_next_with_id().await {
            Some(ended) => match self.judge(ended) {
                (_, Err(failure)) => failure,
                (stage, Ok(())) => StageError::Ended { stage },
            },
            None => std::future::pending().await,
        }
    }

    /// Tells the stages to stop and waits for them; those that have not ended within `deadline` are given up.
    pub async fn stop(mut self, deadline: Duration) -> Vec<StageError> {
        self.stop.cancel();
        let mut failures = std::mem::take(&mut self.ended);
        let all = async {
            while let Some(ended) = self.running.join_next_with_id().await {
                failures.extend(self.judge(ended).1.err());
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            for (stage, ..) in self.stages.values() {
                log::warn!(stage = *stage; "A stage did not stop in time");
            }
            self.running.abort_all();
        }
        failures
    }

    /// Stops these stages and no others, all at the same time. Comes back when they have ended, or were given up after
    /// `deadline` and are gone.
    pub async fn stop_some(&mut self, some: &[StageId], deadline: Duration) {
        for StageId(id) in some {
            if let Some((_, stop, _)) = self.stages.get(id) {
                stop.cancel();
            }
        }
        if tokio::time::timeout(deadline, self.end_of(some)).await.is_err() {
            for StageId(id) in some {
                if let Some((stage, _, task)) = self.stages.get(id) {
                    log::warn!(stage = *stage; "A stage did not stop in time");
                    task.abort();
                }
            }
            // What a task holds is given back at its end only.
            self.end_of(some).await;
        }
    }

    async fn end_of(&mut self, some: &[StageId]) {
        while some.iter().any(|StageId(id)| self.stages.contains_key(id)) {
            let Some(ended) = self.running.join_next_with_id().await else { return };
            let id = match &ended {
                Ok((id, _)) => *id,
                Err(error) => error.id(),
            };
            let is_wanted = some.contains(&StageId(id));
            match self.judge(ended) {
                (stage, Err(failure)) if is_wanted => {
                    log::warn!(stage = stage, error:% = chain(&failure); "A stage failed while it was stopped");
                }
                (_, Err(failure)) => self.ended.push(failure),
                (_, Ok(())) if is_wanted => {}
                (stage, Ok(())) => self.ended.push(StageError::Ended { stage }),
            }
        }
    }

    fn judge(&mut self, ended: Result<(Id, Ending), JoinError>) -> (&'static str, Result<(), StageError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, Some(outcome)),
            Err(error) => (error.id(), None),
        };
        let stage = self.stages.remove(&id).map_or("(unknown)", |(stage, ..)| stage);
        let outcome = match outcome {
            Some(outcome) => outcome.map_err(|source| StageError::Failed { stage, source }),
            None => Err(StageError::Panicked { stage }),
        };
        (stage, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Error)]
    #[error("the disk is gone")]
    struct Gone(#[source] std::io::Error);

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_fails_is_named_with_its_causes() {
        let mut stages = Stages::new();
        stages.start("queue", |_| async { Err(Gone(std::io::Error::other("unplugged"))) });
        let failure = stages.first_failure().await;
        assert_eq!(chain(&failure), "the stage queue failed: the disk is gone: unplugged");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_panics_or_ends_by_itself_is_a_failure() {
        let mut stages = Stages::new();
        stages.start::<_, Gone>("field", |_| async { panic!("a bug") });
        assert!(matches!(stages.first_failure().await, StageError::Panicked { stage: "field" }));
        stages.start::<_, Gone>("field", |_| async { Ok(()) });
        assert!(matches!(stages.first_failure().await, StageError::Ended { stage: "field" }));
    }

    #[tokio::test(start_paused = true)]
    async fn stages_are_stopped_and_the_stubborn_are_given_up() {
        let mut stages = Stages::new();
        stages.start::<_, Gone>("tidy", |stop| async move {
            stop.cancelled().await;
            Ok(())
        });
        stages.start::<_, Gone>("stubborn", |_| std::future::pending());
        let failures = stages.stop(Duration::from_secs(5)).await;
        assert!(failures.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_stage_is_stopped_alone_and_a_failure_of_another_meanwhile_is_not_forgotten() {
        let mut stages = Stages::new();
        let tidy = |stop: CancellationToken| async move {
            stop.cancelled().await;
            Ok::<(), Gone>(())
        };
        let one = stages.start("uplink", tidy);
        stages.start("uplink", tidy);
        let stubborn = stages.start::<_, Gone>("uplink", |_| std::future::pending());
        stages.start("field", |_| async { Err(Gone(std::io::Error::other("unplugged"))) });
        stages.stop_some(&[one, stubborn], Duration::from_secs(5)).await;
        assert_eq!(stages.running.len(), 1, "its neighbour goes on");
        assert_eq!(chain(&stages.first_failure().await), "the stage field failed: the disk is gone: unplugged");
        let rest = tokio::time::timeout(Duration::from_secs(60), stages.first_failure()).await;
        assert!(rest.is_err(), "nobody else ends");
    }
}
