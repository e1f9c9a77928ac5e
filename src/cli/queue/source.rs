//! Where the answers come from: the gateway while it runs, since it owns the files, else the files themselves
//! (DESIGN.md 6.1).

use std::path::{Path, PathBuf};

use super::super::{Exit, state_dir, tried};
use crate::clock::{Clock, ClockSource};
use crate::config::Loaded;
use crate::control::{self, Request};
use crate::health::chain;
use crate::queue::inspect::{Answer, Files, LookError, Question};

/// Which store.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Place {
    /// Configuration file, for where the state directory is
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory, instead of the configuration's
    #[arg(long, value_name = "DIRECTORY")]
    pub state_dir: Option<PathBuf>,
}

impl Place {
    /// The directory.
    pub(super) fn dir(&self) -> Result<PathBuf, Exit> {
        match &self.state_dir {
            Some(dir) => Ok(dir.clone()),
            None => state_dir(self.config.clone()),
        }
    }

    /// The configuration, where there is a good one and it is of this store.
    pub(super) fn loaded(&self) -> Option<Loaded> {
        let loaded = tried(self.config.clone()).ok()?;
        let is_its = self.state_dir.as_ref().is_none_or(|dir| *dir == loaded.config.gateway.state_dir);
        is_its.then_some(loaded)
    }
}

/// Who answers.
pub(super) enum Source {
    /// The gateway runs.
    Live { dir: PathBuf, runtime: tokio::runtime::Runtime },
    /// It does not.
    Stopped(Box<Files>),
}

impl Source {
    /// The store of `place`; what stands in the way is said.
    pub(super) fn open(place: &Place) -> Result<Source, Exit> {
        let dir = place.dir()?;
        match Files::open(&dir, &Clock::new(ClockSource::Trusted)) {
            Ok(files) => Ok(Source::Stopped(Box::new(files))),
            Err(LookError::InUse { .. }) => Source::live(&dir),
            Err(error) => Err(say_look_error(&error)),
        }
    }

    /// The gateway that has the state directory.
    pub(super) fn live(dir: &Path) -> Result<Source, Exit> {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => Ok(Source::Live { dir: dir.to_owned(), runtime }),
            Err(error) => {
                eprintln!("tidegate: cannot start: {error}");
                Err(Exit::Failed)
            }
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self, Source::Live { .. })
    }

    /// Asks; a refusal and a failure are said.
    pub(super) fn ask(&self, question: Question) -> Result<Answer, Exit> {
        match self {
            Source::Live { .. } => self.request(Request::Queue { question }),
            Source::Stopped(files) => {
                files.ask(&question).map_err(|error| say_look_error(&error)).and_then(|answer| taken(answer, None))
            }
        }
    }

    /// Asks the running gateway for anything that it answers in this form.
    pub(super) fn request(&self, request: Request) -> Result<Answer, Exit> {
        let Source::Live { dir, runtime } = self else {
            eprintln!("tidegate: the gateway does not run");
            return Err(Exit::TryAgain);
        };
        let text = runtime.block_on(control::ask(dir, request)).map_err(|error| {
            eprintln!("tidegate: {}", chain(&error));
            eprintln!("help: is it starting or stopping? then try again; else: are you root or its user?");
            Exit::TryAgain
        })?;
        let told: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let error = told.get("error").and_then(serde_json::Value::as_str).map(str::to_owned);
        let answer = serde_json::from_value(told).unwrap_or(Answer::Refused { reason: String::new() });
        taken(answer, error)
    }
}

/// What stands in the way of a look at the files.
pub(super) fn say_look_error(error: &LookError) -> Exit {
    eprintln!("tidegate: {}", chain(error));
    match error {
        LookError::Damaged { dir, .. } => {
            let dir = dir.display();
            eprintln!("help: the next start moves it aside and takes over what is whole; so does:");
            eprintln!("      tidegate queue repair --state-dir {dir}");
            Exit::Failed
        }
        LookError::NoStore { dir, .. } => {
            eprintln!("help: are you root or the gateway's user, and is {} its state directory?", dir.display());
            Exit::TryAgain
        }
        LookError::InUse { .. } => Exit::TryAgain,
        LookError::Store { .. } => Exit::Failed,
    }
}

/// An answer that is one; `error` is what the gateway said instead.
fn taken(answer: Answer, error: Option<String>) -> Result<Answer, Exit> {
    match (answer, error) {
        (_, Some(error)) => {
            eprintln!("tidegate: the gateway cannot answer: {error}");
            Err(Exit::TryAgain)
        }
        (Answer::Refused { reason }, None) => {
            let reason = if reason.is_empty() { "the answer is of another version" } else { reason.as_str() };
            eprintln!("tidegate: {}", super::printable(reason));
            Err(Exit::Usage)
        }
        (answer, None) => Ok(answer),
    }
}
