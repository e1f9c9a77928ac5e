//! The way out: what a stream gets next, what its session remembers, how its messages end.
//!
//! Promises: a row is proven before it is handed out; what cannot be handed out is counted and declared; a message
//! leaves under the topic of today's configuration, or, once it was admitted, under the recorded one.

use std::time::Duration;

use bytes::Bytes;
use log::warn;

use super::books::{Books, JOB_ROWS_MAX, Stream, gap_topic};
use super::retention;
use super::routes::Route;
use super::row;
use super::rules::RuleList;
use super::spans::{self, Span};
use super::store::{InFlightRow, PAGE_BYTES, missing};
use super::{Change, Encoding, InFlight, Queued, Restored, RetainedPage, SessionNumber, Verdict};
use crate::clock::{Timing, rfc3339};
use crate::config::Payload;
use crate::health::LossReason;
use crate::message::{Body, ClockState, Filter, Message, MessageId, Ordinal, Origin, Qos, Sequence, Stamp, Topic};

/// What one answer carries at most, unless a single message is larger. More rows than other jobs take: a drain fetches
/// once for each commit of acknowledgements, so that 256 rows held it at a quarter of a window of 1000, and what
/// publishers wait for is the sync before it, not the millisecond that these rows take.
const JOB_BYTES_MAX: usize = 256 * 1024;
const ANSWER_ROWS_MAX: u64 = 1024;
/// A gap of one reason is told at most so often.
const GAP_PAUSE_MS: u64 = 1000;
/// Pages that must be free below the hard ceiling before a gap record is written.
const GAP_PAGES: u64 = 16;
/// Dead letters that are kept.
pub(super) const DEAD_LETTERS_MAX: u64 = 1000;
const DEAD_LETTER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Retained messages that one job looks at.
const RETAINED_LOOK_MAX: i64 = 256;

/// An answer to `Outlet::next`.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    pub rows: Vec<Queued>,
    /// The outlet's new place.
    pub place: u64,
    /// Nothing was found so far, but there is more to look through: ask again at once.
    pub is_partial: bool,
    /// When a gap may be told next.
    pub again_ms: Option<u64>,
    /// The newest place in the store.
    pub newest: u64,
    /// There is something to be sent again; the round of its orders.
    pub again: Option<u64>,
}

impl Books {
    /// The next messages of a stream after `after`.
    pub fn next(&mut self, index: usize, after: u64, count_max: usize, bytes_max: usize) -> rusqlite::Result<Fetched> {
        self.learn_time()?;
        let again_ms = self.tell_gaps(index)?;
        let now = self.settings.clock.now();
        let count_max = count_max.clamp(1, usize::try_from(ANSWER_ROWS_MAX).unwrap_or(usize::MAX));
        let bytes_max = bytes_max.min(JOB_BYTES_MAX);
        let mut fetched = Fetched { place: after, again_ms, ..Fetched::default() };
        let mut lost: Vec<(u64, LossReason)> = Vec::new();
        let (mut bytes, mut looked, mut is_full) = (0, 0, false);
        while !is_full && looked < ANSWER_ROWS_MAX {
            let found = self.span_from(index, fetched.place + 1)?;
            let place = fetched.place + 1;
            let found = found.map(|(span, rule)| (span.first.max(place), span.last.min(self.last_row(index)), rule));
            let Some((first, last, rule)) = found.filter(|(first, last, _)| first <= last) else {
                self.add_held(index, &mut fetched, count_max, bytes, bytes_max);
                break;
            };
            let last = last.min(first + (ANSWER_ROWS_MAX - looked) - 1);
            let list = self.list(rule)?;
            let Some(stream) = self.streams.get(index) else { break };
            let mut expected = first;
            let mut is_missing = false;
            let mut routes = std::mem::take(&mut self.routes);
            fetched.rows.reserve(usize::try_from(last - first + 1).unwrap_or(0).min(count_max));
            let read = self.store.messages(Span::new(first, last), |sequence, body| {
                if expected != sequence {
                    is_missing = true;
                    return false;
                }
                if stream.in_flight.contains(&sequence) {
                    expected += 1;
                    return true;
                }
                if fetched.rows.len() >= count_max || (!fetched.rows.is_empty() && bytes + body.len() > bytes_max) {
                    is_full = true;
                    return false;
                }
                expected += 1;
                match row::decode_with(body, sequence, &self.starts, &self.words, |text| routes.topic(text)) {
                    Err(row::Damaged) => lost.push((sequence, LossReason::Damaged)),
                    Ok((id, message)) => match self.expired(&id, &message, now).filter(|_| !stream.is_writes()) {
                        Some(reason) => lost.push((sequence, reason)),
                        None => {
                            bytes += body.len();
                            let expires = self.expires_mono_ms(id.start, &message, now);
                            let timing = self.timing(id.start, &message);
                            let route = routes.route(&message.topic, &list, &stream.rules);
                            let age_ms = self.age_of_write(stream, &id, &message, now);
                            fetched.rows.push(Queued {
                                age_ms,
                                expires_mono_ms: expires,
                                ..queued(sequence, id, message, route, Way::First(timing))
                            });
                        }
                    },
                }
                true
            });
            self.routes = routes;
            read?;
            if is_missing || (!is_full && expected <= last) {
                return Err(missing(expected));
            }
            looked += expected - first;
            fetched.place = expected - 1;
        }
        fetched.is_partial = fetched.rows.is_empty() && looked >= ANSWER_ROWS_MAX;
        self.settle_lost(index, &lost)?;
        fetched.newest = self.identity.sequence_next - 1;
        let has_again = self.streams.get(index).filter(|stream| stream.again.count() > 0);
        fetched.again = has_again.map(|stream| stream.again_round);
        // What is read ahead of a backlog does not make that one taken: it stays what gives way first.
        if let (Some(stream), Some(last)) = (self.streams.get_mut(index), fetched.rows.last())
            && after <= stream.taken_to
        {
            stream.taken_to = stream.taken_to.max(last.sequence.0);
            for row in fetched.rows.iter().filter(|_| !stream.is_writes()) {
                self.ledger.hand_out(stream.id, row.sequence.0, &row.id, &row.message);
            }
        }
        Ok(fetched)
    }

    /// The last place that a stream's open span has a row for.
    fn last_row(&self, index: usize) -> u64 {
        let open = self.streams.get(index).and_then(|stream| stream.open);
        open.map_or(self.identity.sequence_next, |open| open.next).saturating_sub(1)
    }

    /// Adds what is held in memory to an answer that has all that is on disk.
    fn add_held(&mut self, index: usize, fetched: &mut Fetched, count_max: usize, mut bytes: usize, bytes_max: usize) {
        let now = self.settings.clock.now();
        let Some(stream) = self.streams.get(index) else { return };
        for (sequence, row) in self.held.after(&stream.name, fetched.place) {
            let size = row.message.topic.as_str().len() + 64;
            if fetched.rows.len() >= count_max || (!fetched.rows.is_empty() && bytes + size > bytes_max) {
                break;
            }
            bytes += size;
            let way = Way::First(self.timing(row.id.start, &row.message));
            let expires_mono_ms = self.expires_mono_ms(row.id.start, &row.message, now);
            let (id, message) = (row.id.clone(), row.message.clone());
            let route = Route::new(&message.topic, &stream.rules, &stream.rules);
            let row = queued(sequence, id, message, route, way);
            fetched.rows.push(Queued { expires_mono_ms, ..row });
            fetched.place = sequence;
        }
    }

    /// A message as it is sent again: by today's rules, and as it would be sent for the first time.
    pub fn queued_again(&self, stream: &Stream, sequence: u64, id: MessageId, message: Message, now: Stamp) -> Queued {
        let way = Way::First(self.timing(id.start, &message));
        let expires_mono_ms = self.expires_mono_ms(id.start, &message, now);
        let route = Route::new(&message.topic, &stream.rules, &stream.rules);
        Queued { expires_mono_ms, is_again: true, ..queued(sequence, id, message, route, way) }
    }

    /// The span that covers `place`, or the next one after it.
    fn span_from(&self, index: usize, place: u64) -> rusqlite::Result<Option<(Span, i64)>> {
        let Some(stream) = self.streams.get(index) else { return Ok(None) };
        match self.store.span_at(stream.id, place)? {
            Some((span, rule)) if span.contains(place) => Ok(Some((span, rule))),
            _ => self.store.span_after(stream.id, place),
        }
    }

    pub fn settle_lost(&mut self, index: usize, lost: &[(u64, LossReason)]) -> rusqlite::Result<()> {
        for reason in LossReason::ALL {
            let of_reason: Vec<u64> = lost.iter().filter(|(_, other)| *other == reason).map(|(s, _)| *s).collect();
            for run in spans::runs(&of_reason) {
                self.settle(index, run, Some(reason))?;
            }
        }
        Ok(())
    }

    pub fn expired(&self, id: &MessageId, message: &Message, now: Stamp) -> Option<LossReason> {
        let own = message.properties.as_ref().and_then(|properties| properties.expiry_s);
        if own.is_none() && self.settings.age_max.is_none() {
            return None;
        }
        let age_ms = self.age_ms(id.start, message.received, now);
        if own.is_some_and(|seconds| age_ms >= u64::from(seconds) * 1000) {
            return Some(LossReason::MessageExpired);
        }
        let age_max = self.settings.age_max?;
        // The gateway's own declarations do not age: who never hears of a loss believes that there was none.
        (u128::from(age_ms) > age_max.as_millis() && message.origin != Origin::Gateway).then_some(LossReason::Expired)
    }

    /// How old a write is, where that is known: one of another boot may have waited for days in a board that was off.
    fn age_of_write(&self, stream: &Stream, id: &MessageId, message: &Message, now: Stamp) -> Option<u64> {
        let is_known = stream.is_writes() && self.is_age_known(id.start, message.received, now);
        is_known.then(|| self.age_ms(id.start, message.received, now))
    }

    /// When a message's own expiry passes, by the time since this boot.
    pub fn expires_mono_ms(&self, start: u32, message: &Message, now: Stamp) -> Option<u64> {
        let expiry_s = message.properties.as_ref().and_then(|properties| properties.expiry_s)?;
        let left_ms = (u64::from(expiry_s) * 1000).saturating_sub(self.age_ms(start, message.received, now));
        Some(now.mono_ms.saturating_add(left_ms))
    }

    /// Drops one job's share of what is too old at the head of each stream, also of those that nobody drains. Says
    /// whether there may be more.
    pub fn expire(&mut self) -> rusqlite::Result<bool> {
        if self.settings.age_max.is_none() {
            return Ok(false);
        }
        let now = self.settings.clock.now();
        let mut is_more = false;
        for index in 0..self.streams.len() {
            if self.streams.get(index).is_some_and(Stream::is_writes) {
                continue;
            }
            let Some((span, _)) = self.span_from(index, 1)? else { continue };
            let last = span.last.min(self.last_row(index)).min(span.first + JOB_ROWS_MAX - 1);
            if last < span.first {
                continue;
            }
            let Some(stream) = self.streams.get(index) else { continue };
            let mut old = Vec::new();
            self.store.messages(Span::new(span.first, last), |sequence, body| {
                let Ok((id, message)) = row::decode(body, sequence, &self.starts, &self.words) else { return false };
                let reason = self.expired(&id, &message, now).filter(|_| !stream.in_flight.contains(&sequence));
                old.extend(reason.map(|reason| (sequence, reason)));
                reason.is_some()
            })?;
            is_more |= old.len() as u64 == JOB_ROWS_MAX;
            self.settle_lost(index, &old)?;
        }
        Ok(is_more)
    }

    // Gaps

    /// Turns gaps of a stream into messages of it. Says in how many milliseconds the next one may follow, if any waits.
    fn tell_gaps(&mut self, index: usize) -> rusqlite::Result<Option<u64>> {
        let now = self.settings.clock.now();
        let mut again = None;
        for reason in LossReason::ALL {
            let Some(stream) = self.streams.get(index) else { continue };
            if stream.own.is_none() || !stream.gaps.contains_key(&reason) {
                continue;
            }
            let since = stream.told.get(&reason).map(|told| now.mono_ms.saturating_sub(*told));
            if let Some(left) = since.and_then(|since| GAP_PAUSE_MS.checked_sub(since)).filter(|left| *left > 0) {
                again = Some(again.map_or(left, |other: u64| other.min(left)));
                continue;
            }
            if self.store.pages_used()? + GAP_PAGES > self.ceilings.hard_pages {
                again = Some(again.unwrap_or(GAP_PAUSE_MS));
                continue;
            }
            self.tell_gap(index, reason, now)?;
        }
        Ok(again)
    }

    fn tell_gap(&mut self, index: usize, reason: LossReason, now: Stamp) -> rusqlite::Result<()> {
        let id = self.take_id();
        let Some(topic) = gap_topic(&self.settings.gateway) else { return Ok(()) };
        let sequence = self.sequence()?;
        let Some(stream) = self.streams.get_mut(index) else { return Ok(()) };
        let Some(gap) = stream.gaps.remove(&reason) else { return Ok(()) };
        stream.told.insert(reason, now.mono_ms);
        let stream_id = stream.id;
        let mut told = serde_json::json!({
            "id": id.to_string(),
            "stream": &*stream.name,
            "first": gap.span.first,
            "last": gap.span.last,
            "count": gap.count,
            "reason": reason.name(),
            "from": rfc3339(gap.from_ms),
            "to": rfc3339(gap.to_ms),
        });
        if let Some(told) = told.as_object_mut().filter(|_| gap.is_unset) {
            told.insert("clock".to_owned(), ClockState::Unset.name().into());
        }
        let message = Message {
            topic,
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: None,
            body: Body::Bytes(Bytes::from(told.to_string())),
            origin: Origin::Gateway,
            received: now,
        };
        let mut body = Vec::new();
        row::encode(&mut body, sequence, &self.identity.start, id.counter, &message, &self.words);
        self.store.write()?;
        self.store.delete_gap(stream_id, reason.name())?;
        self.place(sequence, &body, |other| other == index, true)
    }

    // The session

    /// What a stream's session remembers. Rows that were handed out and are not in flight come again.
    pub fn restore(&mut self, index: usize) -> rusqlite::Result<Restored> {
        let Some(stream) = self.streams.get_mut(index) else { return Err(rusqlite::Error::QueryReturnedNoRows) };
        stream.taken_to = 0;
        let (id, session, session_key) = (stream.id, SessionNumber(stream.session), stream.session_key);
        let mut in_flight = Vec::new();
        for entry in self.store.in_flight(id)? {
            let now = self.settings.clock.now();
            let mut rows = Vec::new();
            let mut damaged = Vec::new();
            for sequence in entry.rows.iter().copied() {
                let Some(rule) = self.covering(index, sequence)? else { continue };
                let list = self.list(rule)?;
                match (self.read(sequence)?, self.streams.get(index)) {
                    (Some((id, message)), Some(stream)) => {
                        if !stream.is_writes() && stream.again.at(sequence).is_none() {
                            self.ledger.hand_out(stream.id, sequence, &id, &message);
                        }
                        let way = match recorded(&entry, &list, &stream.rules) {
                            Some(encoding) => Way::Again(encoding),
                            None => Way::First(entry.timing),
                        };
                        let expires_mono_ms = self.expires_mono_ms(id.start, &message, now);
                        let age_ms = self.age_of_write(stream, &id, &message, now);
                        let route = Route::new(&message.topic, &list, &stream.rules);
                        let row = queued(sequence, id, message, route, way);
                        let is_again = stream.again.at(sequence).is_some();
                        rows.push(Queued { expires_mono_ms, age_ms, is_again, ..row });
                    }
                    _ => damaged.push((sequence, LossReason::Damaged)),
                }
            }
            self.settle_lost(index, &damaged)?;
            if rows.is_empty() && !entry.released {
                // Nothing is left to send under this id.
                self.store.write()?;
                self.forget(index, entry.packet_id)?;
                continue;
            }
            let InFlightRow { packet_id, released, order, .. } = entry;
            in_flight.push(InFlight { packet_id, released, order, rows });
        }
        let is_writes = self.streams.get(index).is_some_and(Stream::is_writes);
        let paced = if is_writes { self.paced()? } else { Vec::new() };
        Ok(Restored { session_key, session, in_flight, paced })
    }

    fn paced(&self) -> rusqlite::Result<Vec<(Topic, Duration)>> {
        let clock = &self.settings.clock;
        let paces = self.store.paces(clock.boot_id(), clock.now().mono_ms)?;
        let known = |(topic, age_ms): (String, u64)| Some((Topic::new(&topic).ok()?, Duration::from_millis(age_ms)));
        Ok(paces.into_iter().filter_map(known).collect())
    }

    /// Applies the changes of one transaction of an uplink.
    pub fn change(&mut self, index: usize, changes: Vec<Change>) -> rusqlite::Result<()> {
        let Some(stream_id) = self.streams.get(index).map(|stream| stream.id) else { return Ok(()) };
        let mut delivered = Vec::new();
        for change in changes {
            match &change {
                Change::Settle { sequence, verdict: Verdict::Delivered } if self.settle_held(index, sequence.0)? => {
                    continue;
                }
                // Anything else that becomes of what is held becomes of it on disk.
                Change::Settle { sequence, .. } if self.held.contains(sequence.0) => self.write_held(u64::MAX)?,
                Change::Admit { rows, .. } if rows.iter().any(|row| self.held.contains(row.0)) => {
                    self.write_held(u64::MAX)?;
                }
                _ => {}
            }
            self.store.write()?;
            match change {
                Change::Admit { packet_id, rows, order, encoding } => {
                    self.forget(index, packet_id)?;
                    let rows: Vec<u64> = rows.into_iter().map(|sequence| sequence.0).collect();
                    if let Some(stream) = self.streams.get_mut(index) {
                        stream.in_flight.extend(rows.iter().copied());
                    }
                    let Encoding { topic, payload, timing } = encoding;
                    let topic = topic.as_str().to_owned();
                    let row =
                        InFlightRow { packet_id, rows, released: false, order, topic, format: payload.code(), timing };
                    self.store.insert_in_flight(stream_id, &row)?;
                }
                Change::Release { packet_id } => self.store.set_released(stream_id, packet_id)?,
                Change::Forget { packet_id } => self.forget(index, packet_id)?,
                Change::Settle { sequence, verdict: Verdict::Delivered } => delivered.push(sequence.0),
                Change::Settle { sequence, verdict: Verdict::Rejected { reason } } => {
                    self.reject(index, sequence.0, &reason)?;
                }
                Change::Settle { sequence, verdict: Verdict::Lost(reason) } => {
                    self.settle(index, Span::new(sequence.0, sequence.0), Some(reason))?;
                }
                Change::SessionKey(key) => {
                    self.store.set_session_key(stream_id, key)?;
                    if let Some(stream) = self.streams.get_mut(index) {
                        stream.session_key = Some(key);
                    }
                }
                Change::NewSession => self.renew_session(index)?,
                Change::Pace(topic) => {
                    let clock = &self.settings.clock;
                    self.store.note_pace(topic.as_str(), clock.boot_id(), clock.now().mono_ms)?;
                }
            }
        }
        delivered.sort_unstable();
        for run in spans::runs(&delivered) {
            self.settle(index, run, None)?;
        }
        self.remove_due()
    }

    pub fn forget(&mut self, index: usize, packet_id: u16) -> rusqlite::Result<()> {
        let Some(stream) = self.streams.get_mut(index) else { return Ok(()) };
        for sequence in self.store.delete_in_flight(stream.id, packet_id)? {
            stream.in_flight.remove(&sequence);
        }
        Ok(())
    }

    fn renew_session(&mut self, index: usize) -> rusqlite::Result<()> {
        let session = self.take_session()?;
        let Some(stream) = self.streams.get_mut(index) else { return Ok(()) };
        self.store.delete_session(stream.session)?;
        self.store.set_session(stream.id, session)?;
        stream.session = session;
        Ok(())
    }

    fn reject(&mut self, index: usize, sequence: u64, reason: &str) -> rusqlite::Result<()> {
        if self.covering(index, sequence)?.is_none() {
            return Ok(());
        }
        if self.is_again(index, sequence) {
            return self.refuse_again(index, sequence, reason);
        }
        let stream_id = self.streams.get(index).map_or(0, |stream| stream.id);
        let found = self.read(sequence)?;
        self.settle(index, Span::new(sequence, sequence), Some(LossReason::Rejected))?;
        if let Some((id, message)) = found {
            let mut body = Vec::new();
            row::encode_absolute(&mut body, sequence, &id, &message);
            let bytes = body.len() as u64;
            let bytes_max = DEAD_LETTER_BYTES_MAX.min(self.ceilings.share_pages * PAGE_BYTES / 8);
            // The other half of the reserve is for what the session must write. The originals go before dead letters do:
            // both together may be more than the reserve holds, and then nothing drains any more.
            let reserve = self.ceilings.hard_pages.saturating_sub(self.ceilings.soft_pages);
            let pages = retention::row_bytes(body.len(), PAGE_BYTES).div_ceil(PAGE_BYTES);
            let pages_max = (self.ceilings.hard_pages - reserve / 2).saturating_sub(pages);
            while self.store.pages_used()? > pages_max && (self.removable.count() > 0 || self.give_way()?) {
                self.remove_bodies()?;
            }
            let (mut count, mut total) = self.dead_letters;
            while count > 0
                && (count >= DEAD_LETTERS_MAX || total + bytes > bytes_max || self.store.pages_used()? > pages_max)
            {
                let Some(dropped) = self.store.delete_dead_letter()? else { break };
                (count, total) = (count - 1, total.saturating_sub(dropped));
                self.turn_losses.push((LossReason::DeadLetterDropped, 1));
            }
            if total + bytes <= bytes_max && self.store.pages_used()? <= pages_max {
                let wall_ms = self.settings.clock.now().wall_ms;
                self.store.insert_dead_letter(stream_id, sequence, reason, wall_ms, &body)?;
                (count, total) = (count + 1, total + bytes);
            } else {
                self.turn_losses.push((LossReason::DeadLetterDropped, 1));
            }
            self.dead_letters = (count, total);
            let stream = self.streams.get(index).map_or("", |stream| &*stream.name);
            warn!(uplink = stream, topic = message.topic.as_str(), sequence, reason; "A message was refused for good");
        }
        Ok(())
    }

    // Retained messages

    /// Looks at one job's share of the retained messages behind `after`.
    pub fn retained_page(&mut self, filter: &Filter, after: Option<&str>) -> rusqlite::Result<RetainedPage> {
        let pattern = filter.pattern();
        let literal = pattern.split(['+', '#']).next().unwrap_or_default();
        let is_exact = literal.len() == pattern.len();
        // `a/#` matches `a` too.
        let prefix = if is_exact { literal } else { literal.strip_suffix('/').unwrap_or(literal) };
        let end = end_of_prefix(prefix);
        // Not from the beginning of the table, whatever was asked for.
        let after = after.filter(|after| *after >= prefix);
        let from = after.unwrap_or(prefix);
        let end = if is_exact { Some(format!("{prefix}\u{1}")) } else { end };
        let found = self.store.retained(from, after.is_some(), end.as_deref(), RETAINED_LOOK_MAX)?;
        let now = self.settings.clock.now();
        let is_last = i64::try_from(found.len()).unwrap_or(i64::MAX) < RETAINED_LOOK_MAX;
        let next = if is_last { None } else { found.last().map(|(topic, _)| topic.clone()) };
        let mut rows = Vec::new();
        for (topic, body) in found {
            let Ok((id, mut message)) = row::decode(&body, 0, &self.starts, &self.words) else {
                warn!(topic = topic.as_str(); "A retained message is damaged and was removed");
                self.store.write()?;
                self.store.delete_retained(&topic)?;
                self.turn_losses.push((LossReason::Damaged, 1));
                continue;
            };
            if !filter.matches(&message.topic) {
                continue;
            }
            if let Some(expiry_s) = message.properties.as_mut().and_then(|properties| properties.expiry_s.as_mut()) {
                let age_ms = self.age_ms(id.start, message.received, now);
                let left_ms = (u64::from(*expiry_s) * 1000).saturating_sub(age_ms);
                if left_ms == 0 {
                    continue;
                }
                // What is left of it counts from now: whoever gets it need not know how old it is.
                *expiry_s = u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX);
                message.received = now;
            }
            rows.push((id.ordinal(), message));
        }
        Ok(RetainedPage { rows, next, as_of: self.ordinal() })
    }

    /// Whether the message of this place in the order is still what is retained under its topic.
    pub fn is_retained(&self, message: &Message, ordinal: Ordinal) -> rusqlite::Result<bool> {
        let topic = message.topic.as_str();
        let found = self.store.retained(topic, false, Some(&format!("{topic}\u{1}")), 1)?;
        let is_it = |(_, body): &(String, Vec<u8>)| {
            row::decode(body, 0, &self.starts, &self.words).is_ok_and(|(id, _)| id.ordinal() == ordinal)
        };
        Ok(found.first().is_some_and(is_it))
    }
}

/// The least text that is greater than all that begin with `prefix`.
fn end_of_prefix(prefix: &str) -> Option<String> {
    let last = prefix.chars().next_back()?;
    let cut = prefix.len() - last.len_utf8();
    let next = char::from_u32(u32::from(last) + 1)?;
    Some(format!("{}{next}", prefix.get(..cut)?))
}

/// A template is found again among those of the day that the message came and of today.
fn recorded(entry: &InFlightRow, then: &RuleList, now: &RuleList) -> Option<Encoding> {
    let topic = Topic::new(&entry.topic).ok()?;
    let known = now.rules.iter().chain(&then.rules).map(|rule| &rule.payload);
    Some(Encoding { topic, payload: Payload::from_code(entry.format, known), timing: entry.timing })
}

/// Whether a message was sent before.
enum Way {
    First(Timing),
    Again(Encoding),
}

/// A message as it leaves: by the recorded encoding, else by its route.
fn queued(sequence: u64, id: MessageId, message: Message, route: Route, way: Way) -> Queued {
    let qos = route.qos(&message);
    let Route { topic, strict_order, payload, batching, .. } = route;
    let is_reading = matches!(message.body, Body::Reading(_));
    let batching = batching.filter(|_| is_reading);
    let encoding = match way {
        Way::Again(encoding) => encoding,
        Way::First(timing) => {
            let payload = if is_reading { payload } else { Payload::JSON };
            Encoding { topic, payload, timing }
        }
    };
    // What belongs to one reading only, no batch can bear.
    let batching = batching.filter(|_| !message.retain && message.properties.is_none());
    Queued {
        sequence: Sequence(sequence),
        id,
        qos,
        encoding,
        strict_order,
        batching,
        message,
        expires_mono_ms: None,
        age_ms: None,
        is_again: false,
    }
}
