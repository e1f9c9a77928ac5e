//! What waits for the clients of sessions: matched, kept, handed out, settled.
//!
//! Promises: a message that a session wants is in its lane in the transaction that stores it; it leaves the lane when
//! the client has acknowledged it, or by a bound, counted; a QoS 2 packet id is on disk before its message is handed out.
//!
//! Each subscription is a *lane*: spans of sequences, as `delivery` keeps them for uplinks. The span at the end of a lane
//! grows in memory and is written once in a transaction. All that is known of a lane without asking the store are its
//! bounds, so that who looks for somebody who wants a message passes over most lanes at once.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::tables::{FlightRow, LaneKey, LaneRow, SpanRow, Terms};
use super::{Flight, NO_LOCAL, Parcel, Parcels, RETAIN_AS_PUBLISHED, RETAINED, Session, Sessions, Settling};
use crate::health::LossReason;
use crate::message::{Body, COPIES_MAX, Message, MessageId, Ordinal, Origin, Qos, Sequence, Topic};
use crate::payload::json;
use crate::queue::books::{Books, JOB_ROWS_MAX};
use crate::queue::row;
use crate::queue::spans::{self, Span};
use crate::queue::{retention, store};

/// What a row counts for in the bounds of a session beside its bytes.
const ROW_OVERHEAD: u64 = 64;
/// Rows that give way together where a store is full.
const DROP_AT_ONCE: u64 = 16;
/// Rows that are looked at for one that may give way.
const DROP_ROWS_MAX: u64 = 256;

/// What waits in a lane.
#[derive(Debug, Default)]
pub(super) struct Lane {
    count: u64,
    bytes: u64,
    /// Nothing waits before the one and after the other.
    bounds: Option<Span>,
    /// The span that grows.
    tail: Option<SpanRow>,
    is_dirty: bool,
}

impl Lane {
    fn may_have(&self, span: Span) -> bool {
        self.count > 0 && self.bounds.is_some_and(|bounds| bounds.overlap(span).is_some())
    }
}

/// A subscription that wants a message.
#[derive(Debug, Clone, Copy)]
pub(in crate::queue) struct Match {
    pub(super) key: LaneKey,
    pub(super) terms: Terms,
}

/// How far somebody wants what lies at a place.
pub(in crate::queue) enum Cover {
    Until(u64),
    /// Nobody does, nor anything before this place.
    NoneBefore(u64),
}

impl Sessions {
    /// Which subscriptions want a message. With no session this costs a look at an empty tree.
    pub fn matching(&self, message: &Message) -> Vec<Match> {
        if self.tree.is_empty() || message.qos == Qos::AtMostOnce {
            return Vec::new();
        }
        let mut found = Vec::new();
        for entry in self.tree.matching(&message.topic) {
            for key in self.entries.get(&entry).into_iter().flatten() {
                let Some(session) = self.by_number.get(&key.session) else { continue };
                let Some(asked) = session.subscriptions.get(&key.lane) else { continue };
                let is_own = matches!(&message.origin, Origin::Client(client) if *client == session.client);
                if !(asked.no_local && is_own) {
                    let options = super::options(asked) & !NO_LOCAL;
                    found.push(Match {
                        key: *key,
                        terms: Terms { qos: asked.qos, options, identifier: asked.identifier },
                    });
                }
            }
        }
        if found.len() > COPIES_MAX {
            // Of a session the best of them: a few whose filters all match would make thousands of places of each message.
            found.sort_unstable_by_key(|found| (found.key.session, Reverse(found.terms.qos), found.key.lane));
            let (mut of, mut count) = (None, 0);
            found.retain(|found| {
                count = if of == Some(found.key.session) { count + 1 } else { 1 };
                of = Some(found.key.session);
                count <= COPIES_MAX
            });
        }
        found
    }

    /// Whether any session has subscribed to a topic.
    pub fn is_subscribed(&self, topic: &Topic) -> bool {
        let mut entries = self.tree.matching(topic).into_iter();
        entries.any(|entry| self.entries.get(&entry).is_some_and(|keys| !keys.is_empty()))
    }

    /// Whether any subscription wants a message.
    pub fn wants(&self, message: &Message) -> bool {
        !self.tree.is_empty() && !self.matching(message).is_empty()
    }

    /// Messages that wait, each as often as it is to be delivered.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Whether a message is on its way at QoS 2, so that it must stay.
    pub fn is_in_flight(&self, sequence: u64) -> bool {
        self.in_flight.contains_key(&sequence)
    }

    fn lane(&self, key: LaneKey) -> Option<&Lane> {
        self.by_number.get(&key.session)?.lanes.get(&key.lane)
    }

    fn lanes(&self) -> impl Iterator<Item = (LaneKey, &Lane)> {
        self.by_number.iter().flat_map(|(session, known)| {
            known.lanes.iter().map(|(lane, state)| (LaneKey { session: *session, lane: *lane }, state))
        })
    }

    /// Lanes that may have something of a span.
    fn lanes_over(&self, span: Span) -> Vec<LaneKey> {
        if self.waiting == 0 {
            return Vec::new();
        }
        self.lanes().filter(|(_, lane)| lane.may_have(span)).map(|(key, _)| key).collect()
    }

    pub(super) fn note_flight(&mut self, session: u64, flight: FlightRow) {
        if let Some(known) = self.by_number.get_mut(&session) {
            known.order_next = known.order_next.max(flight.order + 1);
            if let Some(before) = known.flights.insert(flight.packet_id, flight) {
                forget_one(&mut self.in_flight, before.sequence);
            }
            if !flight.released {
                *self.in_flight.entry(flight.sequence).or_default() += 1;
            }
        }
    }

    fn forget_flight(&mut self, session: u64, packet_id: u16) -> Option<FlightRow> {
        let flight = self.by_number.get_mut(&session)?.flights.remove(&packet_id)?;
        if !flight.released {
            forget_one(&mut self.in_flight, flight.sequence);
        }
        Some(flight)
    }

    /// A session ends: nothing of it is in flight any more.
    pub(super) fn forget_flights(&mut self, session: u64) {
        let ids: Vec<u16> =
            self.by_number.get(&session).into_iter().flat_map(|known| known.flights.keys().copied()).collect();
        for packet_id in ids {
            self.forget_flight(session, packet_id);
        }
    }

    /// Adds what a lane has lost or got to the sums.
    fn change(&mut self, key: LaneKey, change: impl FnOnce(&mut Lane)) {
        let Some(known) = self.by_number.get_mut(&key.session) else { return };
        let lane = known.lanes.entry(key.lane).or_default();
        let before = (lane.count, lane.bytes);
        change(lane);
        let after = (lane.count, lane.bytes);
        let is_empty = lane.count == 0;
        known.count = (known.count + after.0).saturating_sub(before.0);
        known.bytes = (known.bytes + after.1).saturating_sub(before.1);
        self.waiting = (self.waiting + after.0).saturating_sub(before.0);
        self.bytes = (self.bytes + after.1).saturating_sub(before.1);
        if is_empty {
            known.lanes.remove(&key.lane);
        }
    }

    /// The session with the most bytes.
    fn largest(&self) -> Option<u64> {
        let live = self.by_number.iter().filter(|(_, session)| !session.is_ended);
        live.max_by_key(|(_, session)| session.bytes).map(|(number, _)| *number)
    }
}

fn forget_one(in_flight: &mut HashMap<u64, u32>, sequence: u64) {
    if let Some(count) = in_flight.get_mut(&sequence) {
        *count -= 1;
        if *count == 0 {
            in_flight.remove(&sequence);
        }
    }
}

fn weight(body_bytes: usize) -> u64 {
    body_bytes as u64 + ROW_OVERHEAD
}

impl Books {
    /// Reads what waits, and the packet ids that are on their way. Says whether anything waits.
    pub(super) fn load_lanes(&mut self, last: u64) -> rusqlite::Result<()> {
        let rows = self.store.lanes()?;
        for LaneRow { key, span, count, bytes } in rows {
            // What waits for a session that is gone is cleared by and by.
            self.sessions.by_number.entry(key.session).or_insert_with(Session::ended);
            self.sessions.change(key, |lane| {
                *lane = Lane { count, bytes, bounds: Some(span), tail: None, is_dirty: false };
            });
        }
        let numbers: Vec<u64> = self.sessions.by_number.keys().copied().collect();
        for number in numbers {
            for flight in self.store.flights(number)? {
                self.sessions.note_flight(number, flight);
            }
        }
        if self.sessions.waiting > 0 {
            self.rows = self.store.wanted_places(last)?;
        }
        Ok(())
    }

    /// Puts a message that was just stored into the lanes that want it.
    pub fn extend_lanes(&mut self, matches: &[Match], sequence: u64, body_bytes: usize) -> rusqlite::Result<()> {
        for Match { key, terms } in matches {
            let tail = self.sessions.lane(*key).and_then(|lane| lane.tail);
            let grows = tail.is_some_and(|tail| tail.terms == *terms && tail.span.last + 1 == sequence);
            if !grows {
                self.write_tail(*key)?;
            }
            self.sessions.change(*key, |lane| {
                lane.count += 1;
                lane.bytes += weight(body_bytes);
                let first = lane.bounds.filter(|_| lane.count > 1).map_or(sequence, |bounds| bounds.first);
                lane.bounds = Some(Span::new(first, sequence));
                match &mut lane.tail {
                    Some(tail) if grows => {
                        tail.span.last = sequence;
                        tail.bytes += weight(body_bytes);
                    }
                    tail => {
                        let span = Span::new(sequence, sequence);
                        *tail = Some(SpanRow { span, bytes: weight(body_bytes), terms: *terms });
                    }
                }
                lane.is_dirty = true;
            });
            if self.sessions.dirty.last() != Some(key) {
                self.sessions.dirty.push(*key);
            }
            self.sessions.stirred.push(key.session);
        }
        for Match { key, .. } in matches {
            self.bound_session(key.session)?;
        }
        Ok(())
    }

    /// Writes the spans that have grown.
    pub fn write_tails(&mut self) -> rusqlite::Result<()> {
        while let Some(key) = self.sessions.dirty.pop() {
            self.write_tail(key)?;
        }
        Ok(())
    }

    fn write_tail(&mut self, key: LaneKey) -> rusqlite::Result<()> {
        let Some(session) = self.sessions.by_number.get_mut(&key.session) else { return Ok(()) };
        let Some(lane) = session.lanes.get_mut(&key.lane) else { return Ok(()) };
        if let Some(tail) = lane.tail.filter(|_| std::mem::take(&mut lane.is_dirty)) {
            self.store.write()?;
            self.store.set_session_span(key, &tail)?;
        }
        Ok(())
    }

    /// Takes what `hole` covers out of a lane, `bytes` in all where that is known. Gives back what was there; the rows
    /// stay for now.
    fn take_out(&mut self, key: LaneKey, hole: Span, bytes: Option<u64>) -> rusqlite::Result<Vec<Span>> {
        self.write_tail(key)?;
        let mut removed = Vec::new();
        let mut from = hole.last;
        while let Some(row) = self.store.session_span_at(key, from)? {
            let Some(cut) = spans::cut(row.span, hole) else { break };
            self.store.write()?;
            let count = cut.removed.count();
            // Of a span the sum is known only: each row is taken for its share of it.
            let share = row.bytes.saturating_mul(count) / row.span.count().max(1);
            let gone = bytes.filter(|_| hole.first == hole.last).unwrap_or(share).min(row.bytes);
            let left_count = cut.left.map_or(0, Span::count);
            let rest_count = left_count + cut.right.map_or(0, Span::count);
            let rest = row.bytes - gone;
            let left_bytes = rest.saturating_mul(left_count) / rest_count.max(1);
            if cut.left.is_none() {
                self.store.delete_session_span(key, row.span.first)?;
            }
            let left = cut.left.map(|span| SpanRow { span, bytes: left_bytes, ..row });
            let right = cut.right.map(|span| SpanRow { span, bytes: rest - left_bytes, ..row });
            for part in [&left, &right].into_iter().flatten() {
                self.store.set_session_span(key, part)?;
            }
            self.sessions.change(key, |lane| {
                lane.count = lane.count.saturating_sub(count);
                lane.bytes = if lane.count == 0 { 0 } else { lane.bytes.saturating_sub(gone) };
                if lane.tail.is_some_and(|tail| tail.span.last == row.span.last) {
                    // What is cut off at its end ends it: the next message begins another span.
                    lane.tail = right;
                }
                if let Some(bounds) = &mut lane.bounds
                    && cut.removed.contains(bounds.first)
                {
                    bounds.first = cut.removed.last + 1;
                }
            });
            removed.push(cut.removed);
            if cut.removed.first <= hole.first {
                break;
            }
            from = cut.removed.first - 1;
        }
        Ok(removed)
    }

    /// Settles a place of a lane, and the row with it if nobody else wants it.
    fn settle_lane(
        &mut self,
        key: LaneKey,
        hole: Span,
        bytes: Option<u64>,
        lost: Option<LossReason>,
    ) -> rusqlite::Result<u64> {
        let all_gone = self.take_out(key, hole, bytes)?;
        let count = all_gone.iter().map(|gone| gone.count()).sum();
        for gone in all_gone.iter().copied() {
            self.leave_bare(gone, lost, true)?;
        }
        for gone in all_gone {
            self.end_segments(gone)?;
        }
        if let Some(reason) = lost.filter(|_| count > 0) {
            self.turn_losses.push((reason, count));
        }
        Ok(count)
    }

    /// How far lanes cover `place`, or where the next one begins.
    pub fn cover_by_lanes(&self, place: u64) -> rusqlite::Result<Cover> {
        let mut next = spans::OPEN;
        if self.sessions.waiting == 0 {
            return Ok(Cover::NoneBefore(next));
        }
        for (key, lane) in self.sessions.lanes() {
            let Some(bounds) = lane.bounds.filter(|bounds| lane.count > 0 && place <= bounds.last) else { continue };
            if place < bounds.first {
                next = next.min(bounds.first);
                continue;
            }
            if let Some(tail) = lane.tail {
                if tail.span.contains(place) {
                    return Ok(Cover::Until(tail.span.last));
                }
                if place < tail.span.first {
                    next = next.min(tail.span.first);
                }
            }
            match self.store.session_span_at(key, place)? {
                Some(row) if row.span.contains(place) => return Ok(Cover::Until(row.span.last)),
                _ => {
                    let after = self.store.session_span_after(key, place)?;
                    next = next.min(after.map_or(spans::OPEN, |row| row.span.first));
                }
            }
        }
        Ok(Cover::NoneBefore(next))
    }

    /// Messages give way at the ceiling of the store: also in the lanes that want them.
    pub fn evict_from_lanes(&mut self, run: Span) -> rusqlite::Result<()> {
        for key in self.sessions.lanes_over(run) {
            let count: u64 = self.take_out(key, run, None)?.into_iter().map(Span::count).sum();
            if count > 0 {
                self.turn_losses.push((LossReason::SessionFull, count));
            }
        }
        Ok(())
    }

    // Bounds

    /// Lets the oldest of the largest session give way until `needed` bytes of pages are free, as long as the sessions
    /// hold more than is theirs. Says whether they are.
    pub fn evict_sessions(&mut self, needed: u64) -> rusqlite::Result<bool> {
        for _ in 0..DROP_ROWS_MAX {
            if self.measure()? >= needed || self.sessions.bytes <= self.session_room() {
                break;
            }
            let largest = self.sessions.largest().and_then(|number| Some((number, self.sessions.live(number)?.count)));
            let Some((number, count)) = largest.filter(|(_, count)| *count > 0) else { break };
            let target = count.saturating_sub(DROP_AT_ONCE);
            self.drop_oldest(number, |session, _| session.count <= target)?;
            if self.sessions.live(number).is_none_or(|session| session.count == count) {
                break;
            }
            while self.removable.count() > 0 {
                self.remove_bodies()?;
            }
        }
        Ok(self.measure()? >= needed)
    }

    /// Lets the oldest of a session give way until it is within its bounds, and all of them within theirs.
    fn bound_session(&mut self, number: u64) -> rusqlite::Result<()> {
        let limits = self.sessions.limits();
        let Some(session) = self.sessions.by_number.get(&number) else { return Ok(()) };
        if session.bytes > limits.bytes || session.count > limits.messages {
            self.drop_oldest(number, |session, _| session.bytes <= limits.bytes && session.count <= limits.messages)?;
        }
        let total_max = self.ceilings.share_pages * store::PAGE_BYTES / limits.store_share.max(1);
        if self.sessions.bytes > total_max
            && let Some(largest) = self.sessions.largest()
        {
            self.drop_oldest(largest, |_, total| total <= total_max)?;
        }
        Ok(())
    }

    fn drop_oldest(&mut self, number: u64, is_enough: impl Fn(&Session, u64) -> bool) -> rusqlite::Result<()> {
        self.write_tails()?;
        let mut looked = 0;
        // Those on their way stay: the window bounds them.
        let mut after: HashMap<u32, u64> = HashMap::new();
        while looked < DROP_ROWS_MAX {
            let Some(session) = self.sessions.by_number.get(&number) else { break };
            if is_enough(session, self.sessions.bytes) {
                break;
            }
            let lanes: Vec<u32> = session.lanes.keys().copied().collect();
            let mut oldest: Option<(u64, u32)> = None;
            for lane in lanes {
                let key = LaneKey { session: number, lane };
                let from = after.get(&lane).copied().unwrap_or(0);
                let found = self.lane_from(key, from + 1)?.map(|row| (row.span.first.max(from + 1), lane));
                oldest = [oldest, found].into_iter().flatten().min();
            }
            let Some((sequence, lane)) = oldest else { break };
            looked += 1;
            let is_on_its_way = self.sessions.by_number.get(&number).is_some_and(|session| {
                session.flights.values().any(|flight| (flight.lane, flight.sequence) == (lane, sequence))
            });
            if is_on_its_way {
                after.insert(lane, sequence);
                continue;
            }
            let key = LaneKey { session: number, lane };
            let bytes = self.store.lengths_from(sequence, 1)?.first().map(|(_, bytes)| bytes + ROW_OVERHEAD);
            self.settle_lane(key, Span::new(sequence, sequence), bytes, Some(LossReason::SessionFull))?;
        }
        Ok(())
    }

    /// How far the messages from `place` on wait for a session that has no more than its part of the sessions' room: those
    /// do not give way to what uplinks want.
    pub fn spared_until(&self, place: u64) -> rusqlite::Result<Option<u64>> {
        let part = self.session_room() / (self.sessions.by_client.len() as u64).max(1);
        let span = Span::new(place, place);
        for (number, session) in &self.sessions.by_number {
            if session.is_ended || session.bytes > part {
                continue;
            }
            for (lane, state) in session.lanes.iter().filter(|(_, lane)| lane.may_have(span)) {
                let key = LaneKey { session: *number, lane: *lane };
                // A tail may be longer than what the store says of it yet.
                let found = match state.tail {
                    Some(tail) if tail.span.contains(place) => Some(tail),
                    _ => self.lane_from(key, place)?,
                };
                if let Some(row) = found.filter(|row| row.span.contains(place)) {
                    return Ok(Some(row.span.last));
                }
            }
        }
        Ok(None)
    }

    /// The span of a lane that covers `place`, or the next one after it.
    fn lane_from(&self, key: LaneKey, place: u64) -> rusqlite::Result<Option<SpanRow>> {
        match self.store.session_span_at(key, place)? {
            Some(row) if row.span.contains(place) => Ok(Some(row)),
            _ => self.store.session_span_after(key, place),
        }
    }

    /// One job's share of what waits for sessions that have ended, and of what is too old for all. Says whether there is
    /// more.
    pub fn clear_ended(&mut self) -> rusqlite::Result<bool> {
        let ended = self.sessions.by_number.iter().find(|(_, session)| session.is_ended);
        let Some((number, session)) = ended else { return Ok(false) };
        let (number, lane) = (*number, session.lanes.keys().next().copied());
        let Some(lane) = lane else {
            self.sessions.by_number.remove(&number);
            return Ok(self.sessions.by_number.values().any(|session| session.is_ended));
        };
        let key = LaneKey { session: number, lane };
        self.write_tail(key)?;
        for _ in 0..JOB_ROWS_MAX {
            let Some(row) = self.store.session_span_after(key, 0)? else {
                self.sessions.change(key, |lane| *lane = Lane::default());
                break;
            };
            self.settle_lane(key, row.span, Some(row.bytes), None)?;
        }
        Ok(true)
    }

    /// Drops what is older than the owner lets anything become.
    pub fn expire_lanes(&mut self) -> rusqlite::Result<()> {
        if self.settings.age_max.is_none() || self.sessions.waiting == 0 {
            return Ok(());
        }
        self.write_tails()?;
        let now = self.settings.clock.now();
        let keys: Vec<LaneKey> = self.sessions.lanes().map(|(key, _)| key).collect();
        let mut left = JOB_ROWS_MAX;
        for key in keys {
            while left > 0
                && let Some(row) = self.store.session_span_after(key, 0)?
            {
                left -= 1;
                let sequence = row.span.first;
                let reason = match self.read(sequence)? {
                    Some((id, message)) => self.expired(&id, &message, now),
                    None => Some(LossReason::Damaged),
                };
                if reason.is_none() || self.sessions.is_in_flight(sequence) {
                    break;
                }
                self.settle_lane(key, Span::new(sequence, sequence), None, reason)?;
            }
        }
        Ok(())
    }

    // The way out

    /// What waits for a session after a place, in order; copies at QoS 2 get packet ids out of `ids`, on disk with this
    /// transaction.
    pub(super) fn fetch(
        &mut self,
        number: u64,
        after: (u64, u32),
        ids: &[u16],
        count_max: usize,
        bytes_max: usize,
    ) -> rusqlite::Result<Parcels> {
        self.write_tails()?;
        let mut parcels = Parcels { place: after, ..Parcels::default() };
        let Some(session) = self.sessions.live(number) else { return Ok(Parcels { is_gone: true, ..parcels }) };
        let count_max = count_max.clamp(1, usize::try_from(JOB_ROWS_MAX).unwrap_or(usize::MAX));
        let flying: std::collections::HashSet<(u64, u32)> =
            session.flights.values().map(|flight| (flight.sequence, flight.lane)).collect();
        let lanes: Vec<u32> = session.lanes.keys().copied().collect();
        let mut found: Vec<(u64, u32, Terms)> = Vec::new();
        for lane in lanes {
            let key = LaneKey { session: number, lane };
            let mut from = if lane > after.1 { after.0 } else { after.0 + 1 };
            let mut count = 0;
            while count < count_max
                && let Some(SpanRow { span, terms, .. }) = self.lane_from(key, from)?
            {
                let wanted = (span.first.max(from)..=span.last).filter(|place| !flying.contains(&(*place, lane)));
                let before = found.len();
                found.extend(wanted.take(count_max - count).map(|place| (place, lane, terms)));
                count += found.len() - before;
                from = span.last + 1;
            }
            // There may be more of it behind those.
            parcels.is_more |= count >= count_max;
        }
        found.sort_unstable_by_key(|(place, lane, _)| (*place, *lane));
        parcels.is_more |= found.len() > count_max;
        found.truncate(count_max);
        let now = self.settings.clock.now();
        let (mut ids, mut bytes) = (ids.iter().copied(), 0);
        let mut lost = Vec::new();
        for (sequence, lane, terms) in found {
            let key = LaneKey { session: number, lane };
            let mut row_bytes = 0;
            let mut read = None;
            self.store.messages(Span::new(sequence, sequence), |sequence, body| {
                row_bytes = body.len();
                read = row::decode(body, sequence, &self.starts, &self.words).ok();
                false
            })?;
            // A program of an earlier step, which knows no sessions, may have removed what it took for unwanted.
            let Some((id, message)) = read else {
                lost.push((key, sequence, LossReason::Damaged));
                parcels.place = (sequence, lane);
                continue;
            };
            if let Some(reason) = self.expired(&id, &message, now) {
                lost.push((key, sequence, reason));
                parcels.place = (sequence, lane);
                continue;
            }
            if !parcels.rows.is_empty() && bytes + row_bytes > bytes_max {
                parcels.is_more = true;
                break;
            }
            let qos = message.qos.min(terms.qos);
            let mut packet_id = None;
            if qos == Qos::ExactlyOnce {
                packet_id = ids.next();
                let Some(packet_id) = packet_id else {
                    parcels.is_more = true;
                    break;
                };
                let order = self.sessions.by_number.get(&number).map_or(0, |session| session.order_next);
                let flight = FlightRow { packet_id, lane, sequence, order, released: false };
                self.store.write()?;
                self.store.set_flight(number, &flight)?;
                self.sessions.note_flight(number, flight);
            }
            bytes += row_bytes;
            parcels.place = (sequence, lane);
            parcels.rows.push(self.parcel(sequence, lane, terms, row_bytes, (id, message), packet_id));
        }
        parcels.is_more |= parcels.rows.is_empty() && !lost.is_empty();
        for (key, sequence, reason) in lost {
            self.settle_lane(key, Span::new(sequence, sequence), None, Some(reason))?;
        }
        Ok(parcels)
    }

    /// What is on its way to a client at QoS 2.
    pub(super) fn restore_flights(&mut self, number: u64) -> rusqlite::Result<Vec<Flight>> {
        self.write_tails()?;
        let mut rows: Vec<FlightRow> = match self.sessions.live(number) {
            Some(session) => session.flights.values().copied().collect(),
            None => Vec::new(),
        };
        rows.sort_unstable_by_key(|row| row.order);
        let mut flights = Vec::new();
        for row in rows {
            let key = LaneKey { session: number, lane: row.lane };
            let span = self.store.session_span_at(key, row.sequence)?.filter(|span| span.span.contains(row.sequence));
            let mut parcel = None;
            if let Some(span) = span.filter(|_| !row.released) {
                let mut bytes = 0;
                self.store.messages(Span::new(row.sequence, row.sequence), |_, body| {
                    bytes = body.len();
                    false
                })?;
                if let Some(found) = self.read(row.sequence)? {
                    let packet_id = Some(row.packet_id);
                    parcel = Some(self.parcel(row.sequence, row.lane, span.terms, bytes, found, packet_id));
                }
            }
            flights.push(Flight { packet_id: row.packet_id, parcel });
        }
        Ok(flights)
    }

    /// Applies what a client has acknowledged.
    pub(super) fn settle_parcels(&mut self, number: u64, changes: Vec<Settling>) -> rusqlite::Result<()> {
        self.write_tails()?;
        for change in changes {
            if self.sessions.live(number).is_none() {
                return Ok(());
            }
            self.store.write()?;
            match change {
                Settling::Delivered { lane, sequence, bytes } => {
                    self.settle_parcel(number, lane, sequence, Some(bytes), None)?;
                }
                Settling::Lost { lane, sequence, bytes, reason } => {
                    self.settle_parcel(number, lane, sequence, Some(bytes), Some(reason))?;
                }
                Settling::Received { packet_id } => {
                    let Some(flight) = self.sessions.forget_flight(number, packet_id) else { continue };
                    let released = FlightRow { released: true, ..flight };
                    self.store.set_flight(number, &released)?;
                    self.sessions.note_flight(number, released);
                    self.settle_parcel(number, flight.lane, Sequence(flight.sequence), None, None)?;
                }
                Settling::Completed { packet_id } => {
                    self.sessions.forget_flight(number, packet_id);
                    self.store.delete_flight(number, packet_id)?;
                }
            }
        }
        self.remove_due()
    }

    fn settle_parcel(
        &mut self,
        session: u64,
        lane: u32,
        sequence: Sequence,
        bytes: Option<u64>,
        lost: Option<LossReason>,
    ) -> rusqlite::Result<()> {
        let hole = Span::new(sequence.0, sequence.0);
        self.settle_lane(LaneKey { session, lane }, hole, bytes, lost).map(drop)
    }

    /// Puts retained messages that are to be delivered at QoS 2 into a lane, as messages of it alone: such a delivery
    /// must outlive the process.
    pub(super) fn keep_retained(
        &mut self,
        number: u64,
        filter: &crate::message::Filter,
        rows: Vec<(Ordinal, Message)>,
    ) -> rusqlite::Result<()> {
        let lane = self.sessions.live(number).and_then(|session| session.lane_of(filter));
        let Some(lane) = lane else { return Ok(()) };
        let terms =
            self.sessions.live(number).and_then(|session| session.subscriptions.get(&lane)).map(|asked| Terms {
                qos: asked.qos,
                options: super::options(asked) & !NO_LOCAL | RETAINED,
                identifier: asked.identifier,
            });
        let Some(terms) = terms else { return Ok(()) };
        let key = LaneKey { session: number, lane };
        for (ordinal, message) in rows {
            if !self.is_retained(&message, ordinal)? {
                // The lane has what came after it, and must not end with what was before.
                continue;
            }
            let sequence = self.sequence()?;
            let id = self.take_id();
            let mut body = Vec::new();
            self.learn_word(&message.origin)?;
            row::encode(&mut body, sequence, &self.identity.start, id.counter, &message, &self.words);
            let bytes = retention::row_bytes(body.len(), store::PAGE_BYTES);
            let way = [(usize::MAX, crate::config::WhenFull::DropOldest)];
            if self.find_room(bytes, &way)?.is_some() {
                self.turn_losses.push((LossReason::SessionFull, 1));
                continue;
            }
            self.place(sequence, &body, |_| false, false)?;
            self.extend_lanes(&[Match { key, terms }], sequence, body.len())?;
        }
        Ok(())
    }

    fn parcel(
        &self,
        sequence: u64,
        lane: u32,
        terms: Terms,
        row_bytes: usize,
        (id, mut message): (MessageId, Message),
        packet_id: Option<u16>,
    ) -> Parcel {
        let expires_mono_ms = self.expires_mono_ms(id.start, &message, self.settings.clock.now());
        if let Body::Reading(reading) = &message.body {
            let timing = self.timing(id.start, &message);
            message.body = Body::Bytes(json::encode(reading, &id, timing));
        }
        let retain = terms.options & RETAINED != 0 || (message.retain && terms.options & RETAIN_AS_PUBLISHED != 0);
        Parcel {
            lane,
            sequence: Sequence(sequence),
            bytes: weight(row_bytes),
            qos: message.qos.min(terms.qos),
            retain,
            identifier: terms.identifier,
            message,
            packet_id,
            expires_mono_ms,
        }
    }
}
