//! What is going on, for the screen: the drills write it, the screen reads it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::cli::tally::{Count, DeviceCount};

/// The three drills, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drill {
    /// The line is cut without a word.
    Cut,
    /// The gateway is killed while the line is cut.
    KillInOutage,
    /// The gateway is killed while it is catching up.
    KillInCatchUp,
}

impl Drill {
    /// All of them.
    pub(super) const ALL: [Drill; 3] = [Drill::Cut, Drill::KillInOutage, Drill::KillInCatchUp];

    /// Its announcement, for `subject`.
    pub(super) fn sentence(self, subject: &str) -> String {
        match self {
            Drill::Cut => "The line to the cloud is cut without a word: bytes vanish, nothing closes.".to_owned(),
            Drill::KillInOutage => format!("The {subject} is killed (SIGKILL) while the line is down."),
            Drill::KillInCatchUp => format!("The {subject} is killed (SIGKILL) while it is catching up."),
        }
    }

    /// Its name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Drill::Cut => "1 line cut without a word",
            Drill::KillInOutage => "2 killed while the line is down",
            Drill::KillInCatchUp => "3 killed while catching up",
        }
    }
}

/// How a drill ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outcome {
    /// Which one.
    pub(super) drill: Drill,
    /// What the cloud counted.
    pub(super) count: Count,
    /// From the line's return to the last message that arrived; `None` when nothing arrived.
    pub(super) catch_up: Option<Duration>,
}

/// How the devices did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    /// As the cloud counted them, over the whole demo.
    pub(super) devices: Vec<DeviceCount>,
    /// The intervals while no kill disturbed them.
    pub(super) undisturbed: Vec<DeviceCount>,
}

/// The state of one drill.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Progress {
    /// Not begun.
    Ahead,
    /// Under way: the numbers that belong to it, so far.
    Running(Range<u64>),
    /// Done.
    Done(Outcome),
}

/// The scene. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Scene(Arc<Mutex<View>>);

/// What there is to be seen.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// "gateway" or "bridge".
    pub(super) subject: &'static str,
    /// When the demo began.
    pub(super) began: Instant,
    /// Its process, while it runs.
    pub(super) process: Option<u32>,
    /// One entry for each drill.
    pub(super) drills: [Progress; 3],
    /// Whether there are devices to be read.
    pub(super) has_field: bool,
    /// What happens at the moment.
    pub(super) now: String,
    /// Sentences that a terminal without a screen has not printed yet.
    pub(super) unsaid: Vec<(Duration, String)>,
}

impl Scene {
    /// Before the first drill.
    pub(super) fn new(subject: &'static str, has_field: bool, began: Instant) -> Scene {
        Scene(Arc::new(Mutex::new(View {
            subject,
            began,
            process: None,
            drills: [Progress::Ahead, Progress::Ahead, Progress::Ahead],
            has_field,
            now: String::new(),
            unsaid: Vec::new(),
        })))
    }

    /// Says in one sentence what happens now.
    pub(super) fn say(&self, sentence: impl Into<String>) {
        let mut view = self.view();
        view.now = sentence.into();
        let (when, sentence) = (view.began.elapsed(), view.now.clone());
        view.unsaid.push((when, sentence));
    }

    /// Changes the state of a drill.
    pub(super) fn set(&self, drill: Drill, progress: Progress) {
        let mut view = self.view();
        let place = Drill::ALL.iter().position(|one| *one == drill);
        if let Some(entry) = place.and_then(|place| view.drills.get_mut(place)) {
            *entry = progress;
        }
    }

    /// Says which process is the subject.
    pub(super) fn set_process(&self, process: Option<u32>) {
        self.view().process = process;
    }

    /// What there is to be seen at this moment.
    pub(super) fn snapshot(&self) -> View {
        self.view().clone()
    }

    /// Takes the sentences that were not printed yet.
    pub(super) fn take_unsaid(&self) -> Vec<(Duration, String)> {
        std::mem::take(&mut self.view().unsaid)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
