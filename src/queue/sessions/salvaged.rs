//! Sessions of local clients out of a damaged store.
//!
//! Promises: a session is taken over with its subscriptions, its packet ids and what waits for it, or it begins anew, as
//! its client is told then: one that went on without a packet id that the client still has would make it swallow the
//! next message that bears it. What is not taken over is counted.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::tables::{FlightRow, LaneKey, SessionRow, SpanRow, SubscriptionRow, Terms, session_sum};
use super::{Away, Match, Session};
use crate::message::Qos;
use crate::queue::books::Books;
use crate::queue::pages::Value;
use crate::queue::remains::{Knowledge, Remains};
use crate::queue::row;
use crate::queue::spans::Span;

/// The step of the schema that brought them.
const STEP: u32 = 5;

/// What a damaged store says of its sessions.
#[derive(Debug, Default)]
pub(in crate::queue) struct OldSessions {
    by_number: BTreeMap<u64, OldSession>,
    /// What any of them wants: in order, apart from each other.
    wanted: Vec<Span>,
    /// Copies that wait, also those for sessions that are not there.
    copies: u64,
    /// Those of them that nobody wants.
    unwanted: u64,
    /// Copies that are on their way at QoS 2.
    flying: HashSet<(LaneKey, u64)>,
}

#[derive(Debug)]
struct OldSession {
    row: SessionRow,
    subscriptions: Vec<SubscriptionRow>,
    /// By lane and first place.
    spans: BTreeMap<(u32, u64), SpanRow>,
    flights: Vec<FlightRow>,
    received: Vec<u16>,
}

impl OldSessions {
    /// `None`: not all that belongs to them can be read. `counted`: how many copies waited at the last stop.
    pub fn read(remains: &Remains, counted: Option<u64>) -> Option<OldSessions> {
        if is_without(remains) {
            return Some(OldSessions::default());
        }
        if remains.knowledge != Knowledge::Whole {
            return None;
        }
        let mut old = OldSessions::default();
        let mut is_sane = true;
        let mut is_whole = remains.table("session", |number, values| match session(number, values) {
            Some(row) => {
                old.by_number.insert(row.number, OldSession::new(row));
            }
            None => is_sane = false,
        });
        is_whole &= remains.table("subscription", |_, values| match subscription(values) {
            Some(row) => old.of(row.session, |session| session.subscriptions.push(row)),
            None => is_sane = false,
        });
        is_whole &= remains.table("session_span", |_, values| match span(values) {
            Some((key, row)) => {
                old.copies = old.copies.saturating_add(row.span.count());
                old.of(key.session, |session| {
                    session.spans.insert((key.lane, row.span.first), row);
                });
            }
            None => is_sane = false,
        });
        is_whole &= remains.table("session_flight", |_, values| match flight(values) {
            Some((number, row)) => old.of(number, |session| session.flights.push(row)),
            None => is_sane = false,
        });
        is_whole &= remains.table("rx", |_, values| {
            let packet_id = values.get(1).and_then(Value::int).and_then(|id| u16::try_from(id).ok());
            match values.first().and_then(Value::unsigned).zip(packet_id) {
                Some((number, packet_id)) => old.of(number, |session| session.received.push(packet_id)),
                None => is_sane = false,
            }
        });
        is_whole &= is_sane;
        // One that was to end with its socket has ended: nobody wants what waited for it.
        let (passing, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut old.by_number).into_iter().partition(|(_, session)| session.row.expiry_s == 0);
        old.by_number = kept;
        old.unwanted = passing.values().map(OldSession::copies).fold(0, u64::saturating_add);
        is_whole &= counted.is_none_or(|counted| counted == old.copies);
        if !is_whole || old.by_number.values().any(|session| !session.is_sane()) {
            return None;
        }
        old.index();
        Some(old)
    }

    /// What belongs to a session that is not there waited for one that has ended, or whose row is lost: it counts as lost.
    fn of(&mut self, number: u64, change: impl FnOnce(&mut OldSession)) {
        if let Some(session) = self.by_number.get_mut(&number) {
            change(session);
        }
    }

    fn index(&mut self) {
        let mut spans: Vec<Span> =
            self.by_number.values().flat_map(|session| session.spans.values().map(|row| row.span)).collect();
        spans.sort_unstable_by_key(|span| span.first);
        for span in spans {
            match self.wanted.last_mut() {
                Some(last) if span.first <= last.last.saturating_add(1) => last.last = last.last.max(span.last),
                _ => self.wanted.push(span),
            }
        }
        for (number, session) in &self.by_number {
            let flying = session.flights.iter().filter(|flight| !flight.released);
            self.flying.extend(flying.map(|flight| (LaneKey { session: *number, lane: flight.lane }, flight.sequence)));
        }
    }

    /// Whether any of them waits for a message.
    pub fn may_want(&self, sequence: u64) -> bool {
        let after = self.wanted.partition_point(|span| span.first <= sequence);
        after.checked_sub(1).and_then(|at| self.wanted.get(at)).is_some_and(|span| span.contains(sequence))
    }

    /// How many copies wait.
    pub fn copies(&self) -> u64 {
        self.copies
    }

    /// How many of them for sessions that ended with their sockets.
    pub fn unwanted(&self) -> u64 {
        self.unwanted
    }

    /// Who waits for a message, but for those to whom it is on its way.
    fn wanting(&self, sequence: u64) -> Vec<(LaneKey, Terms)> {
        let mut wanting = Vec::new();
        if !self.may_want(sequence) {
            return wanting;
        }
        for (number, session) in &self.by_number {
            let mut lane = 0;
            // From lane to lane that has anything.
            while let Some(((found, _), _)) = session.spans.range((lane, 0)..).next() {
                let found = *found;
                let key = LaneKey { session: *number, lane: found };
                let terms = session.terms(found, sequence).filter(|_| !self.flying.contains(&(key, sequence)));
                wanting.extend(terms.map(|terms| (key, terms)));
                let Some(next) = found.checked_add(1) else { break };
                lane = next;
            }
        }
        wanting
    }
}

impl OldSession {
    fn new(row: SessionRow) -> OldSession {
        let (subscriptions, flights, received) = (Vec::new(), Vec::new(), Vec::new());
        OldSession { row, subscriptions, spans: BTreeMap::new(), flights, received }
    }

    fn copies(&self) -> u64 {
        // Whatever a damaged row says.
        self.spans.values().map(|row| row.span.count()).fold(0, u64::saturating_add)
    }

    fn terms(&self, lane: u32, sequence: u64) -> Option<Terms> {
        let (_, row) = self.spans.range((lane, 0)..=(lane, sequence)).next_back()?;
        row.span.contains(sequence).then_some(row.terms)
    }

    /// It is what was written, and spans of one lane do not overlap.
    fn is_sane(&self) -> bool {
        let SessionRow { number, user, client, sum, .. } = &self.row;
        if *sum != 0 && *sum != session_sum((*number, user, client), self.subscriptions.iter()) {
            return false;
        }
        let pairs = self.spans.iter().zip(self.spans.iter().skip(1));
        let mut overlaps =
            pairs.filter(|(((lane, _), row), ((other, first), _))| lane == other && row.span.last >= *first);
        overlaps.next().is_none()
    }
}

impl Books {
    /// Takes over the sessions, with what is on its way to them, in the first transaction of the new store. Gives back
    /// the numbers that they have now, by those that they had, and how many copies wait again.
    pub fn inherit_local_sessions(&mut self, remains: &Remains) -> rusqlite::Result<(BTreeMap<u64, u64>, u64)> {
        let (mut numbers, mut copies) = (BTreeMap::new(), 0);
        let Some(old) = &remains.local else { return Ok((numbers, copies)) };
        for (old_number, session) in &old.by_number {
            if self.sessions.by_client.contains_key(&session.row.client) {
                continue;
            }
            let number = self.take_session()?;
            numbers.insert(*old_number, number);
            // Where the time stood still for it nobody knows: it begins anew.
            let away = Away { start: self.identity.start.number, stamp: self.settings.clock.now() };
            let SessionRow { user, client, expiry_s, .. } = session.row.clone();
            let kept = Session::new(user, client, expiry_s, Some(away));
            self.store.write()?;
            self.store.set_local_session(&kept.row(number))?;
            self.sessions.insert(number, kept);
            for subscription in &session.subscriptions {
                let Some(asked) = super::asked(subscription) else { continue };
                let key = LaneKey { session: number, lane: subscription.lane };
                self.store.set_subscription(&super::row(number, subscription.lane, &asked))?;
                self.sessions.index(key, &asked, true);
                if let Some(kept) = self.sessions.by_number.get_mut(&number) {
                    kept.subscriptions.insert(subscription.lane, asked);
                }
            }
            self.note_sum(number)?;
            for packet_id in &session.received {
                self.store.insert_received(number, *packet_id)?;
            }
            for flight in &session.flights {
                copies += self.inherit_flight(remains, (number, session), *flight)?;
            }
        }
        Ok((numbers, copies))
    }

    /// A packet id that the client may know. Where its message is lost, PUBREL comes next: the client forgets the id.
    /// Gives back how many copies wait again.
    fn inherit_flight(
        &mut self,
        remains: &Remains,
        (number, session): (u64, &OldSession),
        flight: FlightRow,
    ) -> rusqlite::Result<u64> {
        let terms = session.terms(flight.lane, flight.sequence);
        let found = terms.filter(|_| !flight.released).zip(remains.find(flight.sequence));
        let mut flight = FlightRow { released: found.is_none(), sequence: 0, ..flight };
        if let Some((terms, (id, message))) = found {
            let mut body = Vec::new();
            flight.sequence = self.sequence()?;
            row::encode_absolute(&mut body, flight.sequence, &id, &message);
            self.place_as(flight.sequence, &body, &[])?;
            let key = LaneKey { session: number, lane: flight.lane };
            self.extend_lanes(&[Match { key, terms }], flight.sequence, body.len())?;
        }
        self.store.set_flight(number, &flight)?;
        self.sessions.note_flight(number, flight);
        Ok(u64::from(!flight.released))
    }

    /// Which lanes of today are to get a message of the damaged store, and how many copies nobody wants any more.
    pub fn lanes_of_salvaged(
        &self,
        remains: &Remains,
        numbers: &BTreeMap<u64, u64>,
        sequence: u64,
    ) -> (Vec<Match>, u64) {
        let (mut lanes, mut gone) = (Vec::new(), 0);
        for (LaneKey { session, lane }, terms) in
            remains.local.as_ref().map(|old| old.wanting(sequence)).unwrap_or_default()
        {
            match numbers.get(&session) {
                Some(number) if self.sessions.is_live(*number) => {
                    lanes.push(Match { key: LaneKey { session: *number, lane }, terms });
                }
                // It has ended since.
                Some(_) => gone += 1,
                // It was not taken over, because another of this client was there: its copies are lost.
                None => {}
            }
        }
        (lanes, gone)
    }
}

/// Whether it is of a program that kept no sessions.
fn is_without(remains: &Remains) -> bool {
    let mut names = HashSet::new();
    let is_whole =
        remains.pages.walk(1, |_, values| names.extend(values.get(1).and_then(Value::text).map(str::to_owned)));
    let is_older = remains.pages.schema_step().is_some_and(|step| step < STEP);
    is_older && is_whole && names.contains("meta") && !names.contains("session_span")
}

fn session(number: Option<u64>, values: &[Value]) -> Option<SessionRow> {
    let text = |index: usize| values.get(index).and_then(Value::text).map(Arc::from);
    let expiry_s = values.get(4).and_then(Value::unsigned).and_then(|expiry| u32::try_from(expiry).ok());
    // The column that is the rowid lies as NULL.
    number?;
    let number = values.get(1)?.unsigned()?;
    let sum = values.get(5)?.unsigned().and_then(|sum| u32::try_from(sum).ok())?;
    Some(SessionRow { number, user: text(2)?, client: text(3)?, expiry_s: expiry_s.unwrap_or(0), away: None, sum })
}

fn small(values: &[Value], index: usize) -> Option<u32> {
    u32::try_from(values.get(index)?.int()?).ok()
}

/// QoS, options and identifier, which lie one after the other.
fn terms(values: &[Value], from: usize) -> Option<Terms> {
    let level = u8::try_from(values.get(from)?.int()?).ok()?;
    let options = u8::try_from(values.get(from + 1)?.int()?).ok()?;
    Some(Terms { qos: Qos::from_level(level)?, options, identifier: small(values, from + 2) })
}

fn subscription(values: &[Value]) -> Option<SubscriptionRow> {
    let Terms { qos, options, identifier } = terms(values, 3)?;
    let (session, lane) = (values.first()?.unsigned()?, small(values, 1)?);
    Some(SubscriptionRow { session, lane, filter: values.get(2)?.text()?.to_owned(), qos, options, identifier })
}

fn span(values: &[Value]) -> Option<(LaneKey, SpanRow)> {
    let key = LaneKey { session: values.first()?.unsigned()?, lane: small(values, 1)? };
    let first = values.get(2)?.int().filter(|first| *first > 0)?;
    let last = values.get(3)?.int().filter(|last| *last >= first)?;
    let span = Span::new(first.cast_unsigned(), last.cast_unsigned());
    Some((key, SpanRow { span, bytes: values.get(4)?.unsigned()?, terms: terms(values, 5)? }))
}

fn flight(values: &[Value]) -> Option<(u64, FlightRow)> {
    let packet_id = u16::try_from(values.get(1)?.int()?).ok()?;
    let (sequence, order) = (values.get(3)?.unsigned()?, values.get(4)?.unsigned()?);
    let released = values.get(5)?.int()? != 0;
    Some((values.first()?.unsigned()?, FlightRow { packet_id, lane: small(values, 2)?, sequence, order, released }))
}
