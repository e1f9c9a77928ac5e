//! What was delivered and is kept for a while all the same (`keep_delivered`), and what of it a person has sent again.
//!
//! Promises: what is kept is nobody's. It gives way before anything that waits does, and before anything new is refused; no
//! count of what waits or was lost has it in it. What is sent again keeps its name, was accounted when it was delivered first,
//! and is accounted as nothing when it is delivered again, refused or called off: the cloud had it. An order is a mark on what
//! is kept, made in the transaction of its job; to repeat it changes nothing. Where these tables say something wrong, nothing
//! that waits goes for it.
//!
//! What is kept lies where it lay: a span of it grows in place as the cloud acknowledges, so that it costs one row in `kept`
//! for each period, and leaves by whole segments.

use std::collections::BTreeMap;

use log::{info, warn};
use serde::{Deserialize, Serialize};

use super::Fetched;
use super::books::{Books, JOB_ROWS_MAX, Stream, gap_topic};
use super::boots;
use super::inspect::{Answer, refused};
use super::row;
use super::rules;
use super::sessions::Cover;
use super::spans::{self, Ranges, Span, cut, runs};
use crate::health::LossReason;
use crate::message::{ClockState, Filter, Message, MessageId, Origin, Qos, Stamp};

mod tables;

pub(super) use tables::span_sum;

/// A period is this share of the time for which things are kept, within these bounds.
const PERIOD_SHARE: u64 = 32;
const PERIOD_MS_MIN: u64 = 1000;
const PERIOD_MS_MAX: u64 = 3_600_000;
/// What a row takes beside its body, about.
const ROW_BYTES: u64 = 14;

/// Sequences that are kept, of one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub span: Span,
    pub period: i64,
    pub bytes: u64,
}

/// When a period began, by the clock of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period {
    pub start: u32,
    pub began: Stamp,
}

/// All that is kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    by_first: BTreeMap<u64, Run>,
    periods: BTreeMap<i64, Period>,
    /// That of this process.
    current: Option<i64>,
    count: u64,
    bytes: u64,
}

impl Kept {
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Of pages, about.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The run that a sequence lies in.
    pub fn at(&self, sequence: u64) -> Option<Run> {
        let (_, run) = self.by_first.range(..=sequence).next_back()?;
        run.span.contains(sequence).then_some(*run)
    }

    /// The run that a sequence lies in, or else the next one.
    pub fn from(&self, sequence: u64) -> Option<Run> {
        self.at(sequence).or_else(|| self.by_first.range(sequence..).next().map(|(_, run)| *run))
    }

    pub fn overlaps(&self, span: Span) -> bool {
        self.from(span.first).is_some_and(|run| run.span.first <= span.last)
    }

    /// Puts in a span that none has, together with those of its period that touch it. Gives back what came of it, and the
    /// beginning of the one that is in it now, if there is any.
    fn add(&mut self, new: Run) -> (Run, Option<u64>) {
        self.count += new.span.count();
        self.bytes += new.bytes;
        let mut whole = new;
        if let Some(before) = new.span.first.checked_sub(1).and_then(|place| self.at(place))
            && before.period == new.period
        {
            whole.span.first = before.span.first;
            whole.bytes += before.bytes;
        }
        let after = self.at(new.span.last.saturating_add(1)).filter(|after| after.period == new.period);
        if let Some(after) = after {
            whole.span.last = after.span.last;
            whole.bytes += after.bytes;
            self.by_first.remove(&after.span.first);
        }
        self.by_first.insert(whole.span.first, whole);
        (whole, after.map(|after| after.span.first))
    }

    /// Takes a span out. Gives back the runs that were cut and what is left of them.
    fn remove(&mut self, hole: Span) -> (Vec<Run>, Vec<Run>) {
        let (mut gone, mut left) = (Vec::new(), Vec::new());
        while let Some(run) = self.from(hole.first)
            && let Some(pieces) = cut(run.span, hole)
        {
            self.by_first.remove(&run.span.first);
            self.count -= run.span.count();
            self.bytes = self.bytes.saturating_sub(run.bytes);
            gone.push(run);
            for span in [pieces.left, pieces.right].into_iter().flatten() {
                let bytes = u128::from(run.bytes) * u128::from(span.count()) / u128::from(run.span.count().max(1));
                let run = Run { span, bytes: u64::try_from(bytes).unwrap_or(u64::MAX), ..run };
                left.push(run);
                self.by_first.insert(span.first, run);
                self.count += span.count();
                self.bytes += run.bytes;
            }
        }
        (gone, left)
    }
}

/// What is to be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResendAsk {
    /// To this uplink.
    pub uplink: String,
    /// Not what came in before, in milliseconds since 1970.
    pub from_ms: i64,
    /// Nor what came in at this time or later.
    pub to_ms: i64,
    /// Only topics that this filter matches.
    pub topic: Option<String>,
    /// Behind this place.
    pub after: u64,
}

/// One job's share of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResendPage {
    /// Messages that are to be sent again, or are now about to be.
    pub count: u64,
    /// Bytes that they take in the store.
    pub bytes: u64,
    /// Those that an order before this one has marked already.
    pub marked: u64,
    /// Those that are too old to be sent.
    pub too_old: u64,
    /// Those of which nobody knows when they came in.
    pub undated: u64,
    /// Messages that were looked at.
    pub looked: u64,
    /// Behind which place to go on; `None`: that was all.
    pub next: Option<u64>,
    /// All that is kept, for whomever.
    pub kept: u64,
}

/// What is found of a message that is kept.
enum Finding {
    Other,
    Chosen,
    TooOld,
    Undated,
}

impl Books {
    /// Keeps what was delivered and nobody wants any more.
    pub(super) fn keep(&mut self, bare: Span) -> rusqlite::Result<()> {
        let period = self.period()?;
        let (count, bytes) = self.store.weigh(bare)?;
        let bytes = (bytes + count * ROW_BYTES) * 65 / 64;
        let (run, swallowed) = self.kept.add(Run { span: bare, period, bytes });
        self.store.write()?;
        if let Some(first) = swallowed {
            self.store.delete_kept_run(first)?;
        }
        self.store.set_kept_run(&run)
    }

    /// The same of what others than uplinks were the last to want: as far as an uplink has wanted it too.
    pub(super) fn keep_of_uplinks(&mut self, bare: Span) -> rusqlite::Result<()> {
        let mut theirs = Vec::new();
        self.store.messages(bare, |sequence, body| {
            let known = row::decode(body, sequence, &self.starts, &self.words);
            let is_theirs = known.is_ok_and(|(_, message)| {
                self.streams.iter().any(|stream| !stream.is_writes() && self.is_sent_by(stream, &message))
            });
            theirs.extend(is_theirs.then_some(sequence));
            true
        })?;
        let mut rest = Ranges::default();
        rest.insert(bare);
        for run in runs(&theirs) {
            self.keep(run)?;
            rest.remove(run);
        }
        self.removable.extend(rest);
        Ok(())
    }

    /// Whether an uplink sends such messages, by today's rules.
    fn is_sent_by(&self, stream: &Stream, message: &Message) -> bool {
        stream.is_active
            && !self.is_not_for(stream, message)
            && stream.rules.first(&message.topic).is_some_and(|rule| rules::qos(rule, message) != Qos::AtMostOnce)
    }

    /// The period of now.
    fn period(&mut self) -> rusqlite::Result<i64> {
        let now = self.settings.clock.now();
        let current = self.kept.current.and_then(|number| Some((number, *self.kept.periods.get(&number)?)));
        if let Some((number, period)) = current
            && self.age_ms(period.start, period.began, now) < self.period_ms()
        {
            return Ok(number);
        }
        let number = self.kept.periods.last_key_value().map_or(1, |(number, _)| number + 1);
        let period = Period { start: self.identity.start.number, began: now };
        self.store.write()?;
        self.store.insert_kept_period(number, &period)?;
        self.kept.periods.insert(number, period);
        self.kept.current = Some(number);
        Ok(number)
    }

    fn keep_ms(&self) -> u64 {
        self.settings.keep.map_or(0, |keep| u64::try_from(keep.as_millis()).unwrap_or(u64::MAX))
    }

    fn period_ms(&self) -> u64 {
        (self.keep_ms() / PERIOD_SHARE).clamp(PERIOD_MS_MIN, PERIOD_MS_MAX)
    }

    /// Reads what is kept and what of it is to be sent again.
    pub(super) fn load_kept(&mut self) -> rusqlite::Result<()> {
        self.kept = Kept { periods: self.store.kept_periods()?.into_iter().collect(), ..Kept::default() };
        for run in self.store.kept_runs()? {
            self.kept.count += run.span.count();
            self.kept.bytes = self.kept.bytes.saturating_add(run.bytes);
            self.kept.by_first.insert(run.span.first, run);
        }
        for (stream, span) in self.store.again_spans()? {
            if let Some(stream) = self.streams.iter_mut().find(|other| other.id == stream && span.last < spans::OPEN) {
                stream.again.insert(span);
            }
        }
        Ok(())
    }

    // What goes

    /// Lets go of one segment's share of what has been kept for long enough. Says whether there may be more.
    pub(super) fn expire_kept(&mut self) -> rusqlite::Result<bool> {
        if self.kept.periods.is_empty() {
            return Ok(false);
        }
        let now = self.settings.clock.now();
        // The last ones of a period came when it was nearly over.
        let most = self.settings.keep.map_or(0, |_| self.keep_ms().saturating_add(self.period_ms()));
        let is_over = |period: &Period| self.age_ms(period.start, period.began, now) >= most;
        let over: Vec<i64> =
            self.kept.periods.iter().filter(|(_, period)| is_over(period)).map(|(number, _)| *number).collect();
        if over.is_empty() {
            return Ok(false);
        }
        let old = self.kept.by_first.values().filter(|run| over.contains(&run.period) || !self.is_of_period(run));
        let free = old.filter_map(|run| self.unmarked(run.span)).next();
        if let Some(free) = free {
            self.let_go(free)?;
            return Ok(true);
        }
        let is_used = |number: &i64| self.kept.by_first.values().any(|run| run.period == *number);
        for number in over.into_iter().filter(|number| !is_used(number)).collect::<Vec<_>>() {
            self.store.write()?;
            self.store.delete_kept_period(number)?;
            self.kept.periods.remove(&number);
        }
        Ok(false)
    }

    fn is_of_period(&self, run: &Run) -> bool {
        self.kept.periods.contains_key(&run.period)
    }

    /// Lets go of one segment's share of what is kept, because its room is needed: the oldest, and what is to be sent again
    /// after all else. False: nothing is kept any more that may go.
    pub(super) fn give_way(&mut self) -> rusqlite::Result<bool> {
        let free = self.kept.by_first.values().filter_map(|run| self.unmarked(run.span)).next();
        match free {
            Some(free) => self.let_go(free).map(|()| true),
            None => self.call_off(),
        }
    }

    /// The first part of a span that nobody has ordered. What is ordered for an uplink that is gone holds nothing.
    fn unmarked(&self, span: Span) -> Option<Span> {
        let ordered = || self.streams.iter().filter(|stream| stream.is_active).map(|stream| &stream.again);
        let mut place = span.first;
        while place <= span.last {
            match ordered().filter_map(|again| again.at(place)).map(|marked| marked.last).max() {
                Some(last) => place = last.saturating_add(1),
                None => {
                    let next = ordered().filter_map(|again| again.after(place)).map(|next| next.first).min();
                    let last = next.map_or(span.last, |next| span.last.min(next - 1));
                    return Some(Span::new(place, last));
                }
            }
        }
        None
    }

    /// What is kept no more is removable from now on: of a span as much as lies in one segment.
    fn let_go(&mut self, free: Span) -> rusqlite::Result<()> {
        let segment = self.store.segments().over(Span::new(free.first, free.first)).next();
        let last = segment.map_or(free.last, |segment| free.last.min(segment.span.last));
        let free = Span::new(free.first, last);
        self.store.write()?;
        let (gone, left) = self.kept.remove(free);
        for run in gone {
            self.store.delete_kept_run(run.span.first)?;
        }
        for run in left {
            self.store.set_kept_run(&run)?;
        }
        for index in 0..self.streams.len() {
            self.end_again(index, free)?;
        }
        // Whatever the table said: what somebody wants stays.
        let mut place = free.first;
        while place <= free.last {
            match self.cover(place)? {
                Cover::Until(last) => place = last.saturating_add(1),
                Cover::NoneBefore(next) => {
                    let bare = Span::new(place, free.last.min(next - 1));
                    self.removable.insert(bare);
                    place = bare.last + 1;
                }
            }
        }
        self.end_segments(free)
    }

    /// The store is full: what was to be sent again to one uplink is not, but for what is under way. False: there is none.
    fn call_off(&mut self) -> rusqlite::Result<bool> {
        for index in 0..self.streams.len() {
            let Some(stream) = self.streams.get(index) else { continue };
            let mut rest = Ranges::default();
            let mut place = 0;
            while let Some(span) = stream.again.after(place) {
                rest.insert(span);
                place = span.last;
            }
            for sequence in stream.in_flight.iter().copied() {
                rest.remove(Span::new(sequence, sequence));
            }
            let (name, count) = (stream.name.clone(), rest.count());
            if count == 0 {
                continue;
            }
            while let Some(span) = rest.take_first(u64::MAX) {
                self.end_again(index, span)?;
            }
            self.add_problem(&format!(
                "the store is full: {count} messages that were to be sent again to {name} are not; it had them"
            ))?;
            warn!(uplink = &*name, count; "The store is full: what was to be sent again is not");
            return Ok(true);
        }
        Ok(false)
    }

    // What is sent again

    /// Looks at one job's share of what is kept, and marks what is chosen where it is an order.
    pub(super) fn resend(&mut self, ask: &ResendAsk, is_order: bool) -> rusqlite::Result<Answer> {
        let index = self.streams.iter().position(|stream| *stream.name == *ask.uplink && stream.is_active);
        let Some((index, stream)) =
            index.and_then(|index| Some((index, self.streams.get(index)?))).filter(|(_, stream)| !stream.is_writes())
        else {
            let known = self.streams.iter().filter(|stream| stream.is_active && !stream.is_writes());
            let known: Vec<&str> = known.map(|stream| &*stream.name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Ok(refused(&format!("no uplink {:?} is configured; there are: {known}", ask.uplink)));
        };
        let filter = match ask.topic.as_deref().map(Filter::new).transpose() {
            Ok(filter) => filter,
            Err(error) => return Ok(refused(&error.to_string())),
        };
        if self.settings.keep.is_none() && self.kept.count() == 0 {
            return Ok(refused("nothing is kept: [queue] keep_delivered says for how long what was delivered is"));
        }
        let mut page = ResendPage { kept: self.kept.count(), next: Some(ask.after), ..ResendPage::default() };
        let now = self.settings.clock.now();
        let mut chosen = Vec::new();
        while page.looked < JOB_ROWS_MAX {
            let place = page.next.unwrap_or(0).saturating_add(1);
            let Some(run) = self.kept.from(place) else {
                page.next = None;
                break;
            };
            let first = run.span.first.max(place);
            let last = run.span.last.min(first.saturating_add(JOB_ROWS_MAX - page.looked - 1));
            // Also where there are no rows this ends.
            page.looked += last - first + 1;
            page.next = Some(last);
            self.store.messages(Span::new(first, last), |sequence, body| {
                let Ok((id, message)) = row::decode(body, sequence, &self.starts, &self.words) else { return true };
                match self.find(stream, ask, filter.as_ref(), now, &id, &message) {
                    Finding::Other => {}
                    Finding::TooOld => page.too_old += 1,
                    Finding::Undated => page.undated += 1,
                    Finding::Chosen if stream.again.at(sequence).is_some() => page.marked += 1,
                    Finding::Chosen => {
                        page.count += 1;
                        page.bytes += body.len() as u64;
                        chosen.push(sequence);
                    }
                }
                true
            })?;
        }
        if is_order {
            for run in runs(&chosen) {
                self.mark_again(index, run)?;
            }
            if page.count > 0 && ask.after == 0 {
                info!(uplink = ask.uplink.as_str(); "Messages that were delivered are sent again, as a person has ordered");
            }
        }
        Ok(Answer::Resend(page))
    }

    fn find(
        &self,
        stream: &Stream,
        ask: &ResendAsk,
        filter: Option<&Filter>,
        now: Stamp,
        id: &MessageId,
        message: &Message,
    ) -> Finding {
        if filter.is_some_and(|filter| !filter.matches(&message.topic)) || !self.is_sent_by(stream, message) {
            return Finding::Other;
        }
        // What was told of a loss is told.
        if message.origin == Origin::Gateway && gap_topic(&self.settings.gateway).as_ref() == Some(&message.topic) {
            return Finding::Other;
        }
        let received = boots::mended(&self.boots, &self.starts, id.start, message.received);
        if received.clock == ClockState::Unset {
            return Finding::Undated;
        }
        if received.wall_ms < ask.from_ms || received.wall_ms >= ask.to_ms {
            return Finding::Other;
        }
        if self.expired(id, message, now).is_some() { Finding::TooOld } else { Finding::Chosen }
    }

    fn mark_again(&mut self, index: usize, run: Span) -> rusqlite::Result<()> {
        let Some(stream) = self.streams.get_mut(index) else { return Ok(()) };
        stream.again.insert(run);
        stream.again_round += 1;
        stream.is_stirred = true;
        let (id, whole) = (stream.id, stream.again.at(run.first).unwrap_or(run));
        self.store.write()?;
        self.store.delete_again(id, whole)?;
        self.store.insert_again(id, whole)
    }

    /// What was to be sent again is delivered, or is not to be any more.
    pub(super) fn end_again(&mut self, index: usize, hole: Span) -> rusqlite::Result<()> {
        let Some(stream) = self.streams.get_mut(index) else { return Ok(()) };
        let reaches = |span: &Span| span.first <= hole.last;
        let mut found: Vec<Span> = stream.again.at(hole.first).into_iter().collect();
        while let Some(span) = stream.again.after(found.last().map_or(hole.first, |span| span.last)).filter(reaches) {
            found.push(span);
        }
        if found.is_empty() {
            return Ok(());
        }
        stream.again.remove(hole);
        let id = stream.id;
        self.store.write()?;
        for span in found {
            self.store.delete_again(id, Span::new(span.first, span.first))?;
            let pieces = cut(span, hole).map_or([None, None], |pieces| [pieces.left, pieces.right]);
            for rest in pieces.into_iter().flatten() {
                self.store.insert_again(id, rest)?;
            }
        }
        Ok(())
    }

    /// What a stream is to send again after `after`, in order.
    pub(super) fn next_again(
        &mut self,
        index: usize,
        after: u64,
        count_max: usize,
        bytes_max: usize,
    ) -> rusqlite::Result<Fetched> {
        let now = self.settings.clock.now();
        let mut fetched = Fetched { place: after, ..Fetched::default() };
        let mut gone = Vec::new();
        let mut bytes = 0;
        let mut is_full = false;
        let Some(stream) = self.streams.get(index) else { return Ok(fetched) };
        let mut looked = 0;
        while !is_full && looked < JOB_ROWS_MAX {
            let place = fetched.place.saturating_add(1);
            let Some(span) = stream.again.at(place).or_else(|| stream.again.after(place)) else { break };
            let first = span.first.max(place);
            let last = span.last.min(first + (JOB_ROWS_MAX - looked) - 1);
            looked += last - first + 1;
            let mut expected = first;
            self.store.messages(Span::new(first, last), |sequence, body| {
                if fetched.rows.len() >= count_max || (!fetched.rows.is_empty() && bytes + body.len() > bytes_max) {
                    (is_full, fetched.place) = (true, sequence - 1);
                    return false;
                }
                // An older program has taken away what nobody wanted.
                gone.extend(expected..sequence);
                expected = sequence + 1;
                if stream.in_flight.contains(&sequence) {
                    return true;
                }
                let known = row::decode(body, sequence, &self.starts, &self.words).ok();
                match known.filter(|(id, message)| self.expired(id, message, now).is_none()) {
                    Some((id, message)) => {
                        bytes += body.len();
                        fetched.rows.push(self.queued_again(stream, sequence, id, message, now));
                    }
                    None => gone.push(sequence),
                }
                true
            })?;
            if !is_full {
                gone.extend(expected..=last);
                fetched.place = last;
            }
        }
        fetched.is_partial = fetched.rows.is_empty() && looked >= JOB_ROWS_MAX;
        for run in runs(&gone) {
            self.end_again(index, run)?;
        }
        Ok(fetched)
    }

    /// Whether a refusal, or another end, is of what was sent again: then the cloud had it before.
    pub(super) fn is_again(&self, index: usize, sequence: u64) -> bool {
        self.streams.get(index).is_some_and(|stream| stream.again.at(sequence).is_some())
    }

    /// What was sent again and was not taken this time.
    pub(super) fn refuse_again(&mut self, index: usize, sequence: u64, reason: &str) -> rusqlite::Result<()> {
        self.end_again(index, Span::new(sequence, sequence))?;
        let uplink = self.streams.get(index).map_or("", |stream| &*stream.name);
        warn!(uplink, sequence, reason; "A message that was sent again was refused; it had been delivered before");
        Ok(())
    }

    /// Why a message is dropped does not matter where it was delivered before.
    pub(super) fn is_kept_for(&self, lost: Option<LossReason>) -> bool {
        lost.is_none() && self.settings.keep.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, last: u64, period: i64) -> Run {
        Run { span: Span::new(first, last), period, bytes: 10 * (last - first + 1) }
    }

    fn all(kept: &Kept) -> Vec<Run> {
        kept.by_first.values().copied().collect()
    }

    #[test]
    fn spans_of_one_period_that_touch_are_one() {
        let mut kept = Kept::default();
        assert_eq!(kept.add(run(1, 4, 1)), (run(1, 4, 1), None));
        assert_eq!(kept.add(run(6, 9, 1)), (run(6, 9, 1), None));
        assert_eq!(kept.add(run(10, 10, 2)), (run(10, 10, 2), None), "another period");
        assert_eq!(kept.add(run(5, 5, 1)), (run(1, 9, 1), Some(6)), "what was between them joins them");
        assert_eq!(all(&kept), [run(1, 9, 1), run(10, 10, 2)]);
        assert_eq!((kept.count(), kept.bytes()), (10, 100));
    }

    #[test]
    fn what_is_let_go_leaves_the_rest_of_its_span() {
        let mut kept = Kept::default();
        kept.add(run(1, 9, 1));
        kept.add(run(10, 20, 2));
        let (gone, left) = kept.remove(Span::new(4, 12));
        assert_eq!((gone, left), (vec![run(1, 9, 1), run(10, 20, 2)], vec![run(1, 3, 1), run(13, 20, 2)]));
        assert_eq!((kept.count(), kept.bytes()), (11, 110));
        assert!(
            kept.overlaps(Span::new(3, 5)) && !kept.overlaps(Span::new(4, 12)) && !kept.overlaps(Span::new(21, 99))
        );
    }
}
