//! Starts the stages, sees every end of them, and stops them in order.
//!
//! A stage is `async fn run(self, stop: CancellationToken) -> Result<(), E>`. A stage that ends before it was told
//! to, or panics, ends the process: systemd starts it again, and the queue has all that was acknowledged. A device
//! that fails is its own stage's affair and never comes here.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

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

/// How a stage came to its end, by its name.
type Ending = (&'static str, Result<(), Box<dyn Error + Send + Sync>>);

/// The running stages of one group, which start together and stop together.
#[derive(Debug)]
pub struct Stages {
    stop: CancellationToken,
    running: JoinSet<Ending>,
    names: Vec<(tokio::task::Id, &'static str)>,
}

impl Default for Stages {
    fn default() -> Stages {
        Stages::new()
    }
}

impl Stages {
    /// A group without stages.
    pub fn new() -> Stages {
        Stages { stop: CancellationToken::new(), running: JoinSet::new(), names: Vec::new() }
    }

    /// Starts a stage; `run` gets the group's stop signal.
    pub fn start<F, E>(&mut self, stage: &'static str, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Error + Send + Sync + 'static,
    {
        let work = run(self.stop.clone());
        let task = self.running.spawn(async move { (stage, work.await.map_err(Into::into)) });
        self.names.push((task.id(), stage));
    }

    /// Waits for the first stage that ends, which none should before `stop`. Never returns for an empty group.
    pub async fn first_failure(&mut self) -> StageError {
        match self.running.join_next().await {
            Some(ended) => match self.judge(ended) {
                Err(failure) => failure,
                Ok(stage) => StageError::Ended { stage },
            },
            None => std::future::pending().await,
        }
    }

    /// Tells the stages to stop and waits for them; those that have not ended within `deadline` are given up.
    pub async fn stop(mut self, deadline: Duration) -> Vec<StageError> {
        self.stop.cancel();
        let mut failures = Vec::new();
        let all = async {
            while let Some(ended) = self.running.join_next().await {
                if let Err(failure) = self.judge(ended) {
                    failures.push(failure);
                }
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            for (_, stage) in &self.names {
                log::warn!(stage = *stage; "A stage did not stop in time");
            }
            self.running.abort_all();
        }
        failures
    }

    fn judge(&mut self, ended: Result<Ending, tokio::task::JoinError>) -> Result<&'static str, StageError> {
        match ended {
            Ok((stage, result)) => {
                self.names.retain(|(_, name)| *name != stage);
                result.map(|()| stage).map_err(|source| StageError::Failed { stage, source })
            }
            Err(error) => {
                let place = self.names.iter().position(|(id, _)| *id == error.id());
                let stage = place.map_or("(unknown)", |place| self.names.remove(place).1);
                Err(StageError::Panicked { stage })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::chain;

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
}
