//! The SQL of the ledger's tables; decides nothing.

use rusqlite::params;

use super::line::{Key, Mark};
use crate::queue::store::{Store, unsigned};

/// A time in which nothing was measured, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::queue) struct SilenceRow {
    pub id: i64,
    /// Empty: the gateway itself.
    pub device: String,
    pub from_ms: i64,
    pub to_ms: Option<i64>,
    pub is_sure: bool,
    pub reason: String,
}

impl Store {
    pub fn ledger_line(&self, key: Key) -> rusqlite::Result<Option<Vec<u8>>> {
        let sql = "SELECT body FROM ledger WHERE day = ? AND stream = ? AND source = ?";
        self.one(sql, params![key.day, key.stream, key.source], |row| row.get(0))
    }

    pub fn set_ledger_line(&self, key: Key, body: &[u8]) -> rusqlite::Result<()> {
        let sql = "INSERT OR REPLACE INTO ledger VALUES (?, ?, ?, ?)";
        self.run(sql, params![key.day, key.stream, key.source, body]).map(drop)
    }

    pub fn delete_ledger_line(&self, key: Key) -> rusqlite::Result<()> {
        let sql = "DELETE FROM ledger WHERE day = ? AND stream = ? AND source = ?";
        self.run(sql, params![key.day, key.stream, key.source]).map(drop)
    }

    /// At most `count_max` lines after `after`, up to the day `to`.
    pub fn ledger_lines(&self, after: Key, to: i64, count_max: u64) -> rusqlite::Result<Vec<(Key, Vec<u8>)>> {
        let sql = "SELECT day, stream, source, body FROM ledger WHERE (day, stream, source) > (?, ?, ?) AND day <= ? \
                   ORDER BY day, stream, source LIMIT ?";
        let Key { day, stream, source } = after;
        self.all(sql, params![day, stream, source, to, count_max.cast_signed()], |row| {
            let key = Key { day: row.get(0)?, stream: row.get(1)?, source: row.get(2)? };
            Ok((key, row.get(3)?))
        })
    }

    /// The mark; `None` where there is none, or a damaged one.
    pub fn ledger_mark(&self) -> rusqlite::Result<Option<Mark>> {
        Ok(self.ledger_line(Mark::KEY)?.and_then(|body| Mark::decode(&body)))
    }

    pub fn ledger_sources(&self) -> rusqlite::Result<Vec<(i64, String)>> {
        self.all("SELECT id, name FROM ledger_source", (), |row| Ok((row.get(0)?, row.get(1)?)))
    }

    pub fn insert_ledger_source(&self, id: i64, name: &str) -> rusqlite::Result<()> {
        self.run("INSERT INTO ledger_source VALUES (?, ?)", params![id, name]).map(drop)
    }

    /// Notes that something is silent since then, unless it is noted already.
    pub fn begin_silence(&self, device: &str, from_ms: i64, is_sure: bool, reason: &str) -> rusqlite::Result<()> {
        let sql = "INSERT INTO ledger_gap(device, from_ms, is_sure, reason) SELECT ?1, ?2, ?3, ?4 \
                   WHERE NOT EXISTS (SELECT 1 FROM ledger_gap WHERE device = ?1 AND to_ms IS NULL)";
        self.run(sql, params![device, from_ms, is_sure, reason]).map(drop)
    }

    /// Ends the silence of one device, or of all.
    pub fn end_silence(&self, device: Option<&str>, to_ms: i64, is_sure: bool) -> rusqlite::Result<()> {
        let sql = "UPDATE ledger_gap SET to_ms = ?2, is_sure = is_sure AND ?3 \
                   WHERE to_ms IS NULL AND (?1 IS NULL OR device = ?1)";
        self.run(sql, params![device, to_ms, is_sure]).map(drop)
    }

    pub fn insert_silence(&self, row: &SilenceRow) -> rusqlite::Result<()> {
        let SilenceRow { device, from_ms, to_ms, is_sure, reason, .. } = row;
        let sql = "INSERT INTO ledger_gap(device, from_ms, to_ms, is_sure, reason) VALUES (?, ?, ?, ?, ?)";
        self.run(sql, params![device, from_ms, to_ms, is_sure, reason]).map(drop)
    }

    /// Forgets all but the newest `count_max`, and what ended before `before_ms`.
    pub fn prune_silences(&self, count_max: i64, before_ms: i64) -> rusqlite::Result<()> {
        let sql = "DELETE FROM ledger_gap WHERE id <= (SELECT max(id) FROM ledger_gap) - ? OR to_ms < ?";
        self.run(sql, params![count_max, before_ms]).map(drop)
    }

    /// At most `count_max` after `id` that touch the time from `from_ms` to `to_ms`.
    pub fn silences(&self, id: i64, from_ms: i64, to_ms: i64, count_max: u64) -> rusqlite::Result<Vec<SilenceRow>> {
        let sql = "SELECT id, device, from_ms, to_ms, is_sure, reason FROM ledger_gap \
                   WHERE id > ? AND from_ms < ? AND (to_ms IS NULL OR to_ms >= ?) ORDER BY id LIMIT ?";
        self.all(sql, params![id, to_ms, from_ms, count_max.cast_signed()], |row| {
            Ok(SilenceRow {
                id: row.get(0)?,
                device: row.get(1)?,
                from_ms: row.get(2)?,
                to_ms: row.get(3)?,
                is_sure: row.get(4)?,
                reason: row.get(5)?,
            })
        })
    }

    /// The gateway's id as the last start has it.
    pub fn last_gateway(&self) -> rusqlite::Result<Option<String>> {
        self.one("SELECT gateway FROM start ORDER BY start DESC LIMIT 1", (), |row| row.get(0))
    }

    /// How many lines there are, counted.
    pub fn count_ledger_lines(&self) -> rusqlite::Result<u64> {
        Ok(self.one("SELECT count(*) FROM ledger WHERE day < ?", [Mark::KEY.day], |row| unsigned(row, 0))?.unwrap_or(0))
    }
}
