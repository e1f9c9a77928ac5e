//! The SQL of the tables of local sessions; decides nothing.

use std::sync::Arc;

use rusqlite::{Row, params};

use super::Away;
use crate::message::{ClockState, Qos, Stamp};
use crate::queue::spans::Span;
use crate::queue::store::{Store, unsigned};

/// A session as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::queue) struct SessionRow {
    pub number: u64,
    pub user: Arc<str>,
    pub client: Arc<str>,
    pub expiry_s: u32,
    /// `None`: a client is there, or was when the gateway ended.
    pub away: Option<Away>,
    /// Of its names and subscriptions, which nothing else guards against a flipped bit; 0: of an older program.
    pub sum: u32,
}

/// A subscription as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::queue) struct SubscriptionRow {
    pub session: u64,
    pub lane: u32,
    pub filter: String,
    pub qos: Qos,
    pub options: u8,
    pub identifier: Option<u32>,
}

/// The sum of a session, never 0. Its subscriptions in the order of their lanes.
pub(super) fn session_sum<'s>(
    (number, user, client): (u64, &str, &str),
    subscriptions: impl Iterator<Item = &'s SubscriptionRow>,
) -> u32 {
    let mut sum = crc32c::crc32c(&number.to_le_bytes());
    for text in [user, client] {
        sum = crc32c::crc32c_append(sum, text.as_bytes());
        sum = crc32c::crc32c_append(sum, &[0xff]);
    }
    for SubscriptionRow { lane, filter, qos, options, identifier, .. } in subscriptions {
        sum = crc32c::crc32c_append(sum, filter.as_bytes());
        sum = crc32c::crc32c_append(sum, &[0xff, qos.level(), *options]);
        sum = crc32c::crc32c_append(sum, &lane.to_le_bytes());
        sum = crc32c::crc32c_append(sum, &identifier.unwrap_or(0).to_le_bytes());
    }
    sum.max(1)
}

/// Which subscription of which session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::queue) struct LaneKey {
    pub session: u64,
    pub lane: u32,
}

/// What a subscription asked for when it matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::queue) struct Terms {
    pub qos: Qos,
    pub options: u8,
    pub identifier: Option<u32>,
}

/// A span of what waits in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::queue) struct SpanRow {
    pub span: Span,
    pub bytes: u64,
    pub terms: Terms,
}

/// All that waits in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::queue) struct LaneRow {
    pub key: LaneKey,
    /// From the first to the last, not without holes.
    pub span: Span,
    pub count: u64,
    pub bytes: u64,
}

/// A QoS 2 packet id on its way to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::queue) struct FlightRow {
    pub packet_id: u16,
    pub lane: u32,
    pub sequence: u64,
    pub order: u64,
    /// PUBREC has come.
    pub released: bool,
}

impl Store {
    pub fn local_sessions(&self) -> rusqlite::Result<Vec<SessionRow>> {
        let sql = "SELECT number, user, client, coalesce(expiry_s, 0), start, wall_ms, mono_ms, is_unset, version FROM session \
                   LEFT JOIN session_away ON session_away.session = number ORDER BY number";
        self.all(sql, (), |row| {
            let away = match (row.get(4)?, row.get(5)?, row.get::<_, Option<i64>>(6)?) {
                (Some(start), Some(wall_ms), Some(mono_ms)) => {
                    let clock = if row.get(7)? { ClockState::Unset } else { ClockState::Synced };
                    Some(Away { start, stamp: Stamp { wall_ms, mono_ms: mono_ms.cast_unsigned(), clock } })
                }
                _ => None,
            };
            let (user, client) = (row.get::<_, String>(1)?.into(), row.get::<_, String>(2)?.into());
            Ok(SessionRow { number: unsigned(row, 0)?, user, client, expiry_s: row.get(3)?, away, sum: row.get(8)? })
        })
    }

    pub fn set_local_session(&self, session: &SessionRow) -> rusqlite::Result<()> {
        let SessionRow { number, user, client, expiry_s, away, sum } = session;
        let number = number.cast_signed();
        let sql = "INSERT OR REPLACE INTO session(stream, number, user, client, expiry_s, version) \
                   VALUES (?1, ?1, ?2, ?3, ?4, ?5)";
        self.run(sql, params![number, &**user, &**client, expiry_s, sum])?;
        let Some(Away { start, stamp: Stamp { wall_ms, mono_ms, clock } }) = away else {
            return self.run("DELETE FROM session_away WHERE session = ?", [number]).map(drop);
        };
        let is_unset = *clock == ClockState::Unset;
        let sql =
            "INSERT OR REPLACE INTO session_away(session, start, wall_ms, mono_ms, is_unset) VALUES (?, ?, ?, ?, ?)";
        self.run(sql, params![number, start, wall_ms, mono_ms.cast_signed(), is_unset]).map(drop)
    }

    pub fn set_session_sum(&self, number: u64, sum: u32) -> rusqlite::Result<()> {
        self.run("UPDATE session SET version = ? WHERE number = ?", params![sum, number.cast_signed()]).map(drop)
    }

    /// Forgets a session, its subscriptions and its received ids. What waits for it is not touched.
    pub fn delete_local_session(&self, number: u64) -> rusqlite::Result<()> {
        self.run("DELETE FROM session WHERE number = ?", [number.cast_signed()])?;
        self.run("DELETE FROM session_away WHERE session = ?", [number.cast_signed()])?;
        self.run("DELETE FROM subscription WHERE stream = ?", [number.cast_signed()])?;
        self.run("DELETE FROM session_flight WHERE session = ?", [number.cast_signed()])?;
        self.delete_session(number).map(drop)
    }

    pub fn received(&self, session: u64) -> rusqlite::Result<Vec<u16>> {
        self.all("SELECT pid FROM rx WHERE session = ?", [session.cast_signed()], |row| row.get(0))
    }

    pub fn subscriptions(&self) -> rusqlite::Result<Vec<SubscriptionRow>> {
        let sql = "SELECT stream, lane, filter, qos, options, identifier FROM subscription ORDER BY stream, lane";
        self.all(sql, (), |row| {
            let (session, lane, filter) = (unsigned(row, 0)?, row.get(1)?, row.get(2)?);
            Ok(SubscriptionRow {
                session,
                lane,
                filter,
                qos: qos(row, 3)?,
                options: row.get(4)?,
                identifier: row.get(5)?,
            })
        })
    }

    pub fn set_subscription(&self, row: &SubscriptionRow) -> rusqlite::Result<()> {
        let SubscriptionRow { session, lane, filter, qos, options, identifier } = row;
        let sql = "INSERT OR REPLACE INTO subscription(stream, lane, filter, qos, options, identifier) \
                   VALUES (?, ?, ?, ?, ?, ?)";
        self.run(sql, params![session.cast_signed(), lane, filter, qos.level(), options, identifier]).map(drop)
    }

    // session_span

    /// The span of a lane that begins at or before `sequence`.
    pub fn session_span_at(&self, lane: LaneKey, sequence: u64) -> rusqlite::Result<Option<SpanRow>> {
        let sql = "SELECT first, last, bytes, qos, options, identifier FROM session_span \
                   WHERE session = ? AND lane = ? AND first <= ? ORDER BY first DESC LIMIT 1";
        self.one(sql, params![lane.session.cast_signed(), lane.lane, sequence.cast_signed()], span_row)
    }

    /// The first span of a lane that begins after `sequence`.
    pub fn session_span_after(&self, lane: LaneKey, sequence: u64) -> rusqlite::Result<Option<SpanRow>> {
        let sql = "SELECT first, last, bytes, qos, options, identifier FROM session_span \
                   WHERE session = ? AND lane = ? AND first > ? ORDER BY first LIMIT 1";
        self.one(sql, params![lane.session.cast_signed(), lane.lane, sequence.cast_signed()], span_row)
    }

    pub fn set_session_span(&self, lane: LaneKey, row: &SpanRow) -> rusqlite::Result<()> {
        let SpanRow { span, bytes, terms: Terms { qos, options, identifier } } = row;
        let sql = "INSERT OR REPLACE INTO session_span(session, lane, first, last, bytes, qos, options, identifier) \
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        let (first, last, bytes) = (span.first.cast_signed(), span.last.cast_signed(), bytes.cast_signed());
        let values =
            params![lane.session.cast_signed(), lane.lane, first, last, bytes, qos.level(), options, identifier];
        self.run(sql, values).map(drop)
    }

    pub fn delete_session_span(&self, lane: LaneKey, first: u64) -> rusqlite::Result<()> {
        let sql = "DELETE FROM session_span WHERE session = ? AND lane = ? AND first = ?";
        self.run(sql, params![lane.session.cast_signed(), lane.lane, first.cast_signed()]).map(drop)
    }

    /// What waits in each lane.
    pub fn lanes(&self) -> rusqlite::Result<Vec<LaneRow>> {
        let sql = "SELECT session, lane, min(first), max(last), sum(last - first + 1), sum(bytes) FROM session_span \
                   GROUP BY session, lane";
        self.all(sql, (), |row| {
            Ok(LaneRow {
                key: LaneKey { session: unsigned(row, 0)?, lane: row.get(1)? },
                span: Span::new(unsigned(row, 2)?, unsigned(row, 3)?),
                count: unsigned(row, 4)?,
                bytes: unsigned(row, 5)?,
            })
        })
    }

    /// The lanes of a session with something in them, at most so many.
    pub fn lanes_of(&self, session: u64, count_max: usize) -> rusqlite::Result<Vec<u32>> {
        let sql = "SELECT DISTINCT lane FROM session_span WHERE session = ? LIMIT ?";
        self.all(sql, params![session.cast_signed(), i64::try_from(count_max).unwrap_or(i64::MAX)], |row| row.get(0))
    }

    /// How many places up to `last` somebody wants, an uplink or a session.
    pub fn wanted_places(&self, last: u64) -> rusqlite::Result<u64> {
        let sql = "SELECT first, last FROM delivery UNION ALL SELECT first, last FROM session_span ORDER BY first";
        let spans = self.all(sql, (), |row| Ok(Span::new(unsigned(row, 0)?, unsigned(row, 1)?)))?;
        let (mut count, mut covered_to) = (0, 0);
        for span in spans {
            let end = span.last.min(last);
            count += Span::new(span.first.max(covered_to + 1), end).count();
            covered_to = covered_to.max(end);
        }
        Ok(count)
    }

    // session_flight

    pub fn flights(&self, session: u64) -> rusqlite::Result<Vec<FlightRow>> {
        let sql = "SELECT pid, lane, sequence, ord, released FROM session_flight WHERE session = ? ORDER BY ord";
        self.all(sql, [session.cast_signed()], |row| {
            Ok(FlightRow {
                packet_id: row.get(0)?,
                lane: row.get(1)?,
                sequence: unsigned(row, 2)?,
                order: unsigned(row, 3)?,
                released: row.get(4)?,
            })
        })
    }

    pub fn set_flight(&self, session: u64, flight: &FlightRow) -> rusqlite::Result<()> {
        let FlightRow { packet_id, lane, sequence, order, released } = flight;
        let sql = "INSERT OR REPLACE INTO session_flight(session, pid, lane, sequence, ord, released) \
                   VALUES (?, ?, ?, ?, ?, ?)";
        let (session, sequence, order) = (session.cast_signed(), sequence.cast_signed(), order.cast_signed());
        self.run(sql, params![session, packet_id, lane, sequence, order, released]).map(drop)
    }

    pub fn delete_flight(&self, session: u64, packet_id: u16) -> rusqlite::Result<()> {
        let sql = "DELETE FROM session_flight WHERE session = ? AND pid = ?";
        self.run(sql, params![session.cast_signed(), packet_id]).map(drop)
    }

    pub fn delete_subscription(&self, session: u64, lane: u32) -> rusqlite::Result<()> {
        self.run("DELETE FROM subscription WHERE stream = ? AND lane = ?", params![session.cast_signed(), lane])
            .map(drop)
    }
}

fn span_row(row: &Row<'_>) -> rusqlite::Result<SpanRow> {
    let terms = Terms { qos: qos(row, 3)?, options: row.get(4)?, identifier: row.get(5)? };
    Ok(SpanRow { span: Span::new(unsigned(row, 0)?, unsigned(row, 1)?), bytes: unsigned(row, 2)?, terms })
}

fn qos(row: &Row<'_>, index: usize) -> rusqlite::Result<Qos> {
    let level = row.get(index)?;
    Qos::from_level(level).ok_or(rusqlite::Error::IntegralValueOutOfRange(index, i64::from(level)))
}
