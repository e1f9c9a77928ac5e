//! What changes a store: through the gateway while it runs; else the store is opened as a start opens it, without
//! anything that reads or sends, and closed in order.

use std::path::Path;
use std::thread::JoinHandle;

use super::super::Exit;
use super::super::progress::Progress;
use super::super::words::grouped;
use super::source::{Place, Source, say_look_error};
use super::{confirm, printable, strange};
use crate::clock::{Clock, ClockSource};
use crate::config::{Loaded, render};
use crate::control::Request;
use crate::gateway;
use crate::health::{Health, chain};
use crate::queue::inspect::{Answer, Files, LookError, Question};
use crate::queue::upkeep::Order;
use crate::queue::{self, AppendError, Inlet, OpenError, Opened, WorkerError};

/// `tidegate queue drop-stream`
#[derive(Debug, clap::Args)]
pub(super) struct DropStreamArguments {
    /// The uplink's name as it was configured
    name: String,
    #[command(flatten)]
    place: Place,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

/// Whoever takes orders.
pub(super) enum Hands {
    /// The gateway runs.
    Live(Source),
    /// Its store, opened here.
    Own(Own),
}

/// A store that is opened as a start opens it.
pub(super) struct Own {
    inlet: Inlet,
    /// Kept: while an end is there the thread goes on.
    _outlets: Vec<queue::Outlet>,
    thread: JoinHandle<Result<(), WorkerError>>,
    runtime: tokio::runtime::Runtime,
    dir: std::path::PathBuf,
    /// What the store tells of itself.
    pub health: Health,
}

impl Hands {
    /// Takes the store, after it was looked at: a damaged one is not touched here.
    pub(super) fn open(place: &Place) -> Result<Hands, Exit> {
        let dir = place.dir()?;
        match Files::open(&dir, &Clock::new(ClockSource::Trusted)) {
            Err(LookError::InUse { .. }) => return Source::live(&dir).map(Hands::Live),
            Err(error) => return Err(say_look_error(&error)),
            // Given back at once: it is opened anew to be written.
            Ok(files) => drop(files),
        }
        Own::open_as(place, None).map(Hands::Own)
    }

    pub(super) fn ask(&self, question: Question) -> Result<Answer, Exit> {
        match self {
            Hands::Live(source) => source.ask(question),
            Hands::Own(own) => own.ask(question),
        }
    }

    pub(super) fn order(&self, order: Order) -> Result<Answer, Exit> {
        match self {
            Hands::Live(source) => source.request(Request::Order { order }),
            Hands::Own(own) => own.order(order),
        }
    }

    /// Closes a store that was opened here.
    pub(super) fn close(self) -> Result<(), Exit> {
        match self {
            Hands::Live(_) => Ok(()),
            Hands::Own(own) => own.close(),
        }
    }
}

fn taken(answer: Result<Answer, AppendError>) -> Result<Answer, Exit> {
    match answer {
        Ok(Answer::Refused { reason }) => {
            eprintln!("tidegate: {}", printable(&reason));
            Err(Exit::Usage)
        }
        Ok(answer) => Ok(answer),
        Err(error) => {
            eprintln!("tidegate: {}", chain(&error));
            Err(Exit::Failed)
        }
    }
}

impl Own {
    /// Opens the store with the configuration that the gateway would have: who is to get what depends on it.
    /// With `damage` it is moved aside.
    pub(super) fn open_as(place: &Place, damage: Option<String>) -> Result<Own, Exit> {
        let dir = place.dir()?;
        let loaded = configuration(place, &dir)?;
        let (clock, health) = (Clock::new(loaded.config.gateway.clock), Health::default());
        let settings = gateway::store_settings(&loaded.config, &clock, &health);
        let opened = match damage {
            Some(reason) => queue::open_as_damaged(settings, reason),
            None => queue::open(settings),
        };
        let opened = opened.map_err(|error| {
            eprintln!("tidegate: {}", chain(&error));
            if matches!(error, OpenError::InUse { .. }) { Exit::TryAgain } else { Exit::Failed }
        })?;
        let Opened { inlet, outlets, worker } = opened;
        let failed = |error: std::io::Error| {
            eprintln!("tidegate: cannot start: {error}");
            Exit::Failed
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let thread = std::thread::Builder::new().name("queue".to_owned()).spawn(|| worker.run()).map_err(failed)?;
        Ok(Own { inlet, _outlets: outlets.into_values().collect(), thread, runtime, dir, health })
    }

    pub(super) fn ask(&self, question: Question) -> Result<Answer, Exit> {
        taken(self.runtime.block_on(self.inlet.ask(question)))
    }

    pub(super) fn order(&self, order: Order) -> Result<Answer, Exit> {
        taken(self.runtime.block_on(self.inlet.order(order)))
    }

    /// Commits, closes, and leaves all files to whose the state directory is.
    pub(super) fn close(self) -> Result<(), Exit> {
        self.runtime.block_on(self.inlet.stop());
        let ended = self.thread.join().is_ok_and(|ended| ended.is_ok());
        give_to_owner(&self.dir);
        if ended {
            return Ok(());
        }
        eprintln!("tidegate: the store was not closed in order; what was done is on disk all the same");
        Err(Exit::Failed)
    }
}

fn configuration(place: &Place, dir: &Path) -> Result<Loaded, Exit> {
    let loaded = super::super::tried(place.config.clone()).map_err(|problems| {
        eprint!("{}", render(&problems, &[]));
        eprintln!("help: the store is opened as a start would open it: its configuration has to be right for that");
        Exit::Config
    })?;
    if loaded.config.gateway.state_dir != dir {
        eprintln!(
            "tidegate: the configuration is of another store, {}: say with --config which one is meant",
            loaded.config.gateway.state_dir.display()
        );
        return Err(Exit::Usage);
    }
    Ok(loaded)
}

/// Files that root has made here would keep the gateway from starting: they go to the directory's owner.
pub(in crate::cli) fn give_to_owner(dir: &Path) {
    use std::os::unix::fs::{MetadataExt as _, lchown};
    let Ok(owner) = std::fs::metadata(dir) else { return };
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return;
    }
    let mut pending = vec![dir.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            if found.uid() == 0
                && let Err(error) = lchown(entry.path(), Some(owner.uid()), Some(owner.gid()))
            {
                eprintln!("tidegate: {} stays root's: {error}", entry.path().display());
            }
            if found.is_dir() {
                pending.push(entry.path());
            }
        }
    }
}

pub(super) fn drop_stream(arguments: &DropStreamArguments) -> Result<Exit, Exit> {
    let name = &arguments.name;
    let Answer::Stats(stats) = Source::open(&arguments.place)?.ask(Question::Stats)? else { return Err(strange()) };
    let Some(stream) = stats.streams.get(name) else {
        let known: Vec<String> = stats.streams.keys().map(|name| printable(name)).collect();
        eprintln!("tidegate: the store has no stream {name:?}; there are: {}", known.join(", "));
        return Err(Exit::Usage);
    };
    if stream.is_configured == Some(true) {
        eprintln!("tidegate: {name:?} is configured: take it out of the configuration and restart first");
        return Err(Exit::Usage);
    }
    let what = format!(
        "This drops {} messages that wait for {:?}, for good. They are counted as lost (stream-dropped) in status and \
         in the ledger. To keep them: tidegate queue export --stream {name} --output FILE",
        grouped(stream.waiting),
        printable(name)
    );
    confirm(&what, arguments.yes)?;
    let hands = Hands::open(&arguments.place)?;
    let mut progress = Progress::new("drop");
    let mut dropped = 0;
    let done = loop {
        match hands.order(Order::DropStream { name: name.clone() }) {
            Ok(Answer::Done { count, left }) => {
                dropped += count;
                progress.show(dropped, dropped + left, "messages");
                if left == 0 {
                    break Ok(());
                }
            }
            Ok(_) => break Err(strange()),
            Err(exit) => break Err(exit),
        }
    };
    progress.end();
    hands.close()?;
    done?;
    eprintln!("{} messages of {} were dropped", grouped(dropped), printable(name));
    Ok(Exit::Done)
}
