//! The SQL of the tables of local sessions; decides nothing.

use std::sync::Arc;

use rusqlite::{Row, params};

use super::Away;
use crate::message::{ClockState, Qos, Stamp};
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

impl Store {
    pub fn local_sessions(&self) -> rusqlite::Result<Vec<SessionRow>> {
        let sql = "SELECT number, user, client, coalesce(expiry_s, 0), away_start, away_wall_ms, away_mono_ms, \
                   away_is_unset FROM session ORDER BY number";
        self.all(sql, (), |row| {
            let away = match (row.get(4)?, row.get(5)?, row.get::<_, Option<i64>>(6)?) {
                (Some(start), Some(wall_ms), Some(mono_ms)) => {
                    let clock = if row.get(7)? { ClockState::Unset } else { ClockState::Synced };
                    Some(Away { start, stamp: Stamp { wall_ms, mono_ms: mono_ms.cast_unsigned(), clock } })
                }
                _ => None,
            };
            let (user, client) = (row.get::<_, String>(1)?.into(), row.get::<_, String>(2)?.into());
            Ok(SessionRow { number: unsigned(row, 0)?, user, client, expiry_s: row.get(3)?, away })
        })
    }

    pub fn set_local_session(&self, session: &SessionRow) -> rusqlite::Result<()> {
        let SessionRow { number, user, client, expiry_s, away } = session;
        let number = number.cast_signed();
        let (start, stamp) = away.map(|away| (away.start, away.stamp)).unzip();
        let (wall_ms, mono_ms) = stamp.map(|stamp| (stamp.wall_ms, stamp.mono_ms.cast_signed())).unzip();
        let is_unset = stamp.is_some_and(|stamp| stamp.clock == ClockState::Unset);
        let sql = "INSERT OR REPLACE INTO session(stream, number, user, client, expiry_s, version, away_start, \
                   away_wall_ms, away_mono_ms, away_is_unset) VALUES (?1, ?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8)";
        self.run(sql, params![number, &**user, &**client, expiry_s, start, wall_ms, mono_ms, is_unset]).map(drop)
    }

    /// Forgets a session, its subscriptions and its received ids. What waits for it is not touched.
    pub fn delete_local_session(&self, number: u64) -> rusqlite::Result<()> {
        self.run("DELETE FROM session WHERE number = ?", [number.cast_signed()])?;
        self.run("DELETE FROM subscription WHERE stream = ?", [number.cast_signed()])?;
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

    pub fn delete_subscription(&self, session: u64, lane: u32) -> rusqlite::Result<()> {
        self.run("DELETE FROM subscription WHERE stream = ? AND lane = ?", params![session.cast_signed(), lane])
            .map(drop)
    }
}

pub(super) fn qos(row: &Row<'_>, index: usize) -> rusqlite::Result<Qos> {
    let level = row.get(index)?;
    Qos::from_level(level).ok_or(rusqlite::Error::IntegralValueOutOfRange(index, i64::from(level)))
}
