//! A copy of the open store, page by page, by somebody who only reads the database file: `tidegate backup`.
//!
//! Promises: the copy is the store as it was at one moment, after a commit; the queue's thread never copies anything, and
//! no snapshot is held: the log is emptied into the database and begun anew as ever while the pages are copied. Only for
//! the last pages the log is not emptied, for at most ten seconds or four times its usual length, whichever is less.
//!
//! The database file changes only when the log is emptied into it, and then by the pages that are in the log. So whoever
//! copies is told which pages have changed since: first all, then those that the log has brought while he copied these,
//! until only few are left. Then the log is emptied, and from then on the file stands still until they are copied too.
//! A page that was read while it was being written is among those that have changed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

use super::books::Books;
use super::inspect::{Answer, refused};
use super::spans::{Ranges, Span};
use super::store::{LOG, PAGE_BYTES};

/// Pages that one answer names.
const PAGES_MAX: u64 = 64 * 1024;
const SPANS_MAX: usize = 4096;
/// So few may be left for the time in which the file stands still.
const LAST_PAGES_MAX: u64 = 4096;
/// How long it does.
const STILL_MS_MAX: u64 = 10_000;
/// And at which length of the log, in its usual ones, it does no more.
const STILL_LOGS_MAX: u64 = 4;
/// Who has asked nothing for so long does not copy any more.
const ABANDONED_MS: u64 = 60_000;

const LOG_HEAD: u64 = 32;
const FRAME_HEAD: usize = 24;

/// What whoever copies asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum CopyAsk {
    /// Begins.
    Begin,
    /// Which pages are next.
    Take {
        /// As `Begin` was answered.
        copy: u64,
    },
    /// The last pages, after which the file stands still.
    Last {
        /// As `Begin` was answered.
        copy: u64,
    },
    /// They are copied; the answer says whether the file has stood still.
    End {
        /// As `Begin` was answered.
        copy: u64,
    },
}

/// Pages to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyPages {
    /// Names this copy.
    pub copy: u64,
    /// From which page to which, both included; the first page is 1.
    pub spans: Vec<(u64, u64)>,
    /// How many pages have changed beside these.
    pub left: u64,
    /// Pages of the database.
    pub pages: u64,
    /// The database file stands still until `End`; or, answering that, has done so.
    pub is_still: bool,
}

/// A copy under way.
#[derive(Debug)]
pub(super) struct Copying {
    number: u64,
    log: File,
    /// What is to be copied.
    changed: Ranges,
    /// What the log has, and the file perhaps not yet.
    in_log: Ranges,
    /// The salt of the log and how many of its frames are known.
    salt: [u8; 8],
    frames: u64,
    asked_ms: u64,
    /// Since when the file stands still.
    still_ms: Option<u64>,
}

impl Copying {
    /// Learns what was written to the log since.
    fn read_log(&mut self) -> std::io::Result<()> {
        let mut head = [0; LOG_HEAD as usize];
        self.log.read_exact_at(&mut head, 0)?;
        let salt = head.get(16..24).and_then(|salt| <[u8; 8]>::try_from(salt).ok()).unwrap_or_default();
        if salt != self.salt {
            // It was emptied and has begun anew.
            let in_log = std::mem::take(&mut self.in_log);
            self.changed.extend(in_log);
            (self.salt, self.frames) = (salt, 0);
        }
        let mut frame = [0; FRAME_HEAD];
        loop {
            let place = LOG_HEAD + self.frames * (PAGE_BYTES + FRAME_HEAD as u64);
            match self.log.read_exact_at(&mut frame, place) {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            }
            let page = frame.first_chunk().map_or(0, |page| u64::from(u32::from_be_bytes(*page)));
            if frame.get(8..16) != Some(&salt[..]) || page == 0 {
                return Ok(());
            }
            self.in_log.insert(Span::new(page, page));
            self.frames += 1;
        }
    }
}

impl Books {
    pub(super) fn copy(&mut self, ask: &CopyAsk) -> rusqlite::Result<Answer> {
        match ask {
            CopyAsk::Begin => self.begin_copy(),
            CopyAsk::Take { copy } => Ok(self.take_pages(*copy)),
            CopyAsk::Last { copy } => self.last_pages(*copy),
            CopyAsk::End { copy } => self.end_copy(*copy),
        }
    }

    fn begin_copy(&mut self) -> rusqlite::Result<Answer> {
        let now_ms = self.settings.clock.now().mono_ms;
        if self.copying.as_ref().is_some_and(|copying| now_ms.saturating_sub(copying.asked_ms) < ABANDONED_MS) {
            return Ok(refused("another backup is under way"));
        }
        self.stop_copying()?;
        self.store.checkpoint()?;
        let Ok(log) = File::open(self.settings.dir.join(LOG)) else { return Ok(refused("the log cannot be read")) };
        let pages = self.store.bytes()? / PAGE_BYTES;
        let mut changed = Ranges::default();
        changed.insert(Span::new(1, pages.max(1)));
        let mut copying = Copying {
            number: self.copy_next,
            log,
            changed,
            in_log: Ranges::default(),
            salt: [0; 8],
            frames: 0,
            asked_ms: now_ms,
            still_ms: None,
        };
        self.copy_next += 1;
        if let Err(error) = copying.read_log() {
            return Ok(refused(&format!("the log cannot be read: {error}")));
        }
        let answer = CopyPages { copy: copying.number, spans: Vec::new(), left: pages, pages, is_still: false };
        self.copying = Some(copying);
        Ok(Answer::Copy(answer))
    }

    /// The copy of this number.
    fn copying_of(&mut self, copy: u64) -> Option<&mut Copying> {
        let now_ms = self.settings.clock.now().mono_ms;
        let copying = self.copying.as_mut().filter(|copying| copying.number == copy)?;
        copying.asked_ms = now_ms;
        Some(copying)
    }

    fn take_pages(&mut self, copy: u64) -> Answer {
        let pages = self.store.bytes().unwrap_or(0) / PAGE_BYTES;
        let Some(copying) = self.copying_of(copy) else { return gone() };
        let spans = take(&mut copying.changed, PAGES_MAX);
        Answer::Copy(CopyPages { copy, spans, left: copying.changed.count(), pages, is_still: false })
    }

    fn last_pages(&mut self, copy: u64) -> rusqlite::Result<Answer> {
        if self.copying_of(copy).is_none() {
            return Ok(gone());
        }
        self.store.checkpoint_at(0)?;
        // Half emptied it would leave the file between two moments.
        let is_emptied = self.store.checkpoint_whole()?;
        let now_ms = self.settings.clock.now().mono_ms;
        let pages = self.store.bytes()? / PAGE_BYTES;
        let Some(copying) = self.copying_of(copy) else { return Ok(gone()) };
        let read = copying.read_log();
        let in_log = std::mem::take(&mut copying.in_log);
        copying.changed.extend(in_log);
        let left = copying.changed.count();
        if left > LAST_PAGES_MAX || read.is_err() || !is_emptied {
            // More have come meanwhile: they are taken as the others were.
            self.store.checkpoint_at(self.ceilings.checkpoint_pages)?;
            return Ok(Answer::Copy(CopyPages { copy, spans: Vec::new(), left, pages, is_still: false }));
        }
        copying.still_ms = Some(now_ms);
        let spans = take(&mut copying.changed, LAST_PAGES_MAX);
        Ok(Answer::Copy(CopyPages { copy, spans, left: 0, pages, is_still: true }))
    }

    fn end_copy(&mut self, copy: u64) -> rusqlite::Result<Answer> {
        let pages = self.store.bytes()? / PAGE_BYTES;
        let Some(copying) = self.copying_of(copy) else { return Ok(gone()) };
        let is_still = copying.still_ms.is_some();
        if is_still {
            self.stop_copying()?;
            return Ok(Answer::Copy(CopyPages { copy, spans: Vec::new(), left: 0, pages, is_still }));
        }
        // What was copied last may be of several moments.
        let left = copying.changed.count();
        Ok(Answer::Copy(CopyPages { copy, spans: Vec::new(), left, pages, is_still }))
    }

    /// The log is emptied again as ever.
    fn stop_copying(&mut self) -> rusqlite::Result<()> {
        if self.copying.take().is_some_and(|copying| copying.still_ms.is_some()) {
            self.store.checkpoint_at(self.ceilings.checkpoint_pages)?;
        }
        Ok(())
    }

    /// After each commit.
    pub(super) fn note_copying(&mut self) -> rusqlite::Result<()> {
        let now_ms = self.settings.clock.now().mono_ms;
        let Some(copying) = &mut self.copying else { return Ok(()) };
        let is_abandoned = now_ms.saturating_sub(copying.asked_ms) >= ABANDONED_MS;
        if is_abandoned || copying.read_log().is_err() {
            return self.stop_copying();
        }
        let frames_max = STILL_LOGS_MAX * u64::from(self.ceilings.checkpoint_pages);
        let is_over = |since: u64| now_ms.saturating_sub(since) >= STILL_MS_MAX || copying.frames >= frames_max;
        if copying.still_ms.is_some_and(is_over) {
            self.end_stillness()?;
        }
        Ok(())
    }

    /// The log may be emptied from now on, so that the last pages were not the last ones.
    pub(super) fn end_stillness(&mut self) -> rusqlite::Result<()> {
        let Some(copying) = &mut self.copying else { return Ok(()) };
        if copying.still_ms.take().is_some() {
            self.store.checkpoint_at(self.ceilings.checkpoint_pages)?;
        }
        Ok(())
    }
}

/// The first pages of what has changed.
fn take(changed: &mut Ranges, mut count: u64) -> Vec<(u64, u64)> {
    let mut spans = Vec::new();
    while count > 0
        && spans.len() < SPANS_MAX
        && let Some(span) = changed.take_first(count)
    {
        count -= span.count().min(count);
        spans.push((span.first, span.last));
    }
    spans
}

fn gone() -> Answer {
    refused("the backup was interrupted: the store was opened anew, or nobody has asked for a minute")
}
