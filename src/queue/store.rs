//! The SQL of the store: one connection, its pragmas, one function for each statement. Synchronous; decides nothing.
//!
//! Promises: what `commit` returned from is synced (WAL with `synchronous=FULL`; NORMAL lost acknowledged rows in 88 of
//! 100 power cuts); no other process opens the files meanwhile (EXCLUSIVE, which also spares the -shm file).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Params, Row, params};
use thiserror::Error;

use super::boots::{Boot, Boots};
use super::identity::{SESSIONS, Waiting};
use super::mark::MARK;
use super::retention::{CHECKPOINT_PAGES_MIN, Ceilings, WAL_FRAME};
use super::row::{Start, Starts, Words};
use super::segments::{Segment, Segments};
use super::spans::{OPEN, Span};
use crate::clock::{Reference, Timing};
use crate::message::{ClockState, Stamp};

/// The file, in the state directory and in a quarantine.
pub(super) const DATABASE: &str = "queue.db";
/// Its write-ahead log.
pub(super) const LOG: &str = "queue.db-wal";
/// Bytes of a page: small ones spare the flash (facts: 3.1 bytes written per byte, against 4.6 with 4096).
pub(super) const PAGE_BYTES: u64 = 1024;
/// What the WAL is never cut below when it begins anew, and so the least that it has once it is marked (mark.rs).
pub(super) const LOG_BYTES: u64 = CHECKPOINT_PAGES_MIN as u64 * (PAGE_BYTES + WAL_FRAME);
/// `TIDG`: what a file that is ours says of itself.
const APPLICATION_ID: i32 = 0x5449_4447;
/// The steps of the schema. Each only adds, so that an older program can drain what a newer one stored; a step that it
/// could not live with names the oldest program that can, in `meta`.
const SCHEMA: [&str; 7] = [
    include_str!("schema.sql"),
    include_str!("schema_2.sql"),
    include_str!("ledger/schema.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
    include_str!("schema_6.sql"),
    include_str!("schema_7.sql"),
];
/// The step that this program writes.
pub(super) const SCHEMA_STEP: i64 = SCHEMA.len() as i64;
/// The oldest program that may open what this one writes, by its step. That of step 1, which was never released, named
/// no columns when it inserted, so that it cannot live with new ones.
const OLDEST_PROGRAM: u64 = 2;
/// How long it matters what was written to a field device: bounds are by the minute.
const PACE_MS: u64 = 60_000;
/// Before 3.51.3 two connections on one WAL could spoil the database ("WAL-reset").
const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// A store of so many pages is looked through at a start after a crash.
const CHECKED_PAGES_MAX: u64 = 8192;
/// Problems that are kept.
const PROBLEMS_MAX: i64 = 200;

/// Why a store cannot be opened.
#[derive(Debug, Error)]
pub(super) enum StoreError {
    /// It is not what we wrote: to be moved aside.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// A newer program wrote it, and names this step as the oldest that may open it.
    #[error("a newer program wrote the store: step {0} of the schema is the oldest that may open it")]
    Newer(u64),
    /// Another one would not open either.
    #[error("the store does not open")]
    Unusable(#[source] rusqlite::Error),
}

/// Whether an error says that the file is not what we wrote, rather than that the disk or the system failed. Nothing
/// else may move a running store aside. A constraint that is broken is among it: an index says another thing than its
/// table, and the same statement would fail for ever.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::ConstraintViolation))
}

/// Whether the disk could not read a page that is there. Once, that is trouble of the disk; again and again, while the
/// rest can be read, the page is gone.
pub(super) fn is_unreadable(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(rusqlite::ffi::SQLITE_IOERR_READ | rusqlite::ffi::SQLITE_IOERR_SHORT_READ))
}

/// A row that a span has and the table has not: the way to it is damaged, and not only to it. Elsewhere in the file it
/// may be whole.
pub(super) fn missing(sequence: u64) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(format!("message {sequence} is missing")))
}

/// An orderly stop counted what waited, and the store has another number of it.
pub(super) fn miscounted() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some("there are not as many messages as at the last stop".to_owned()))
}

/// As `is_damage`, while a store is opened: then a missing table or a text where a number belongs says it as well.
pub(super) fn opening(error: rusqlite::Error) -> StoreError {
    let is_ours = match &error {
        // SQLITE_ERROR: "no such table", "no such column". Our statements are right, so the schema is not ours.
        rusqlite::Error::SqliteFailure(code, _) => {
            !is_damage(&error) && !matches!(code.code, ErrorCode::Unknown | ErrorCode::TypeMismatch)
        }
        rusqlite::Error::InvalidParameterName(_) | rusqlite::Error::InvalidPath(_) => true,
        _ => false,
    };
    if is_ours { StoreError::Unusable(error) } else { StoreError::Damaged(error.to_string()) }
}

/// A stream's row.
#[derive(Debug)]
pub(super) struct StreamRow {
    pub id: i64,
    pub name: Arc<str>,
    pub session_key: Option<u64>,
    pub session: u64,
}

/// A gap that was not told yet.
#[derive(Debug)]
pub(super) struct GapRow {
    pub stream: i64,
    pub reason: String,
    pub span: Span,
    /// 0 = nobody knows: no other gap has it.
    pub count: u64,
    pub from_ms: i64,
    pub to_ms: i64,
    /// One of them is of a clock that was not set.
    pub is_unset: bool,
}

/// A packet id in flight.
#[derive(Debug)]
pub(super) struct InFlightRow {
    pub packet_id: u16,
    pub rows: Vec<u64>,
    pub released: bool,
    pub order: u64,
    pub topic: String,
    pub format: i64,
    pub timing: Timing,
}

/// A message that was refused for good.
#[derive(Debug)]
pub(super) struct DeadLetterRow {
    pub number: i64,
    pub stream: i64,
    pub sequence: u64,
    pub reason: String,
    pub wall_ms: i64,
    pub body: Vec<u8>,
}

/// A column of a table: what it holds, and whether each row has something in it.
#[derive(Debug)]
pub(super) struct Column {
    pub kind: String,
    pub is_needed: bool,
}

/// The open database.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    is_writing: bool,
    segments: Segments,
    /// Puts a message into the newest segment.
    insert_sql: String,
}

impl Store {
    /// Opens the database at `path`, or makes one.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        Store::open_as(path, true)
    }

    /// Opens the database at `path`, which is there, and leaves it as it is.
    pub fn open_to_look(path: &Path) -> Result<Store, StoreError> {
        Store::open_as(path, false)
    }

    fn open_as(path: &Path, may_write: bool) -> Result<Store, StoreError> {
        if rusqlite::version_number() < SQLITE_VERSION_MIN {
            let reason = format!("SQLite {} is older than 3.51.3", rusqlite::version());
            return Err(StoreError::Unusable(rusqlite::Error::InvalidParameterName(reason)));
        }
        let connection = Connection::open(path).map_err(opening)?;
        connection.set_prepared_statement_cache_capacity(96);
        // Closing a connection deletes a log that SQLite could not read, and with it what is still in it; and it empties
        // one whose last write has failed into the database, with what the disk may not have. `close` empties it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(opening)?;
        let mut store =
            Store { connection, is_writing: false, segments: Segments::default(), insert_sql: String::new() };
        store.set_up().map_err(opening)?;
        let application_id: i32 = store.pragma("application_id").map_err(opening)?;
        let tables: i64 =
            store.one("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0)).map_err(opening)?.unwrap_or(0);
        // By now the file was read, which opens the log. Without one SQLite would go on with a rollback journal, whose
        // commits a power cut may take back.
        if !path.with_file_name(LOG).exists() {
            let reason = "SQLite works without a write-ahead log".to_owned();
            return Err(StoreError::Unusable(rusqlite::Error::InvalidParameterName(reason)));
        }
        match (application_id, tables) {
            // A new file, or one whose making was interrupted before its first commit.
            (0, 0) if may_write => store.make().map_err(opening)?,
            (APPLICATION_ID, _) => {}
            _ => return Err(StoreError::Damaged(format!("its application id is {application_id:#x}, not ours"))),
        }
        let oldest = store.meta("oldest_program").map_err(opening)?;
        match oldest {
            Some(step) if step.cast_signed() <= SCHEMA_STEP => {
                if may_write {
                    store.add_steps().map_err(opening)?;
                } else if store.pragma::<i64>("user_version").map_err(opening)? < SCHEMA_STEP {
                    let reason = "an older program wrote it: start the gateway once".to_owned();
                    return Err(StoreError::Unusable(rusqlite::Error::InvalidParameterName(reason)));
                }
                if !store.has_all_columns().map_err(opening)? {
                    return Err(StoreError::Damaged("its list of tables is not the one that was made".to_owned()));
                }
                store.load_segments().map_err(opening)?;
                Ok(store)
            }
            // No program makes a store that it may not open itself: a bit is flipped.
            Some(step) if step > u64::try_from(store.pragma::<i64>("user_version").map_err(opening)?).unwrap_or(0) => {
                Err(StoreError::Damaged("it says that only a program newer than its own may open it".to_owned()))
            }
            Some(step) => {
                if may_write {
                    // All of it into the one file, so that it can be put aside whole.
                    store.close().map_err(opening)?;
                }
                Err(StoreError::Newer(step))
            }
            None => Err(StoreError::Damaged("it does not say which program may open it".to_owned())),
        }
    }

    /// Nothing of the file is written before the first transaction, except that a new file gets its page size.
    fn set_up(&self) -> rusqlite::Result<()> {
        let connection = &self.connection;
        // Before all that reads the file, which opens its WAL: so there is no -shm file and nobody else gets in.
        connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
        connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
        connection.pragma_update(None, "auto_vacuum", "NONE")?;
        // To its end: the row with "wal" comes before the commit of it, and who stops there never hears that it failed.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Otherwise each new value of a range makes SQLite compile the statement again, to look for a better plan.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.pragma_update_and_check(None, "mmap_size", 0, |_| Ok(())).or_else(no_rows_is_fine)?;
        // Negative: KiB rather than pages.
        connection.pragma_update(None, "cache_size", -2048)?;
        Ok(())
    }

    fn make(&mut self) -> rusqlite::Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        for step in SCHEMA {
            self.connection.execute_batch(step)?;
        }
        self.make_tables(1)?;
        self.connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        self.connection.pragma_update(None, "user_version", SCHEMA_STEP)?;
        self.set_meta("oldest_program", OLDEST_PROGRAM)?;
        self.connection.execute_batch("COMMIT")
    }

    /// Brings the store of an older program to today's step, in one transaction. That of a newer one keeps its step.
    fn add_steps(&self) -> rusqlite::Result<()> {
        let step: i64 = self.pragma("user_version")?;
        let missing = SCHEMA.get(usize::try_from(step).unwrap_or(0)..).unwrap_or_default();
        if missing.is_empty() {
            return Ok(());
        }
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        for step in missing {
            self.connection.execute_batch(step)?;
        }
        self.connection.pragma_update(None, "user_version", SCHEMA_STEP)?;
        self.set_meta("oldest_program", OLDEST_PROGRAM)?;
        self.connection.execute_batch("COMMIT")
    }

    /// Whether each table has the columns that it was made with: SQLite does not miss one whose name a flipped bit has
    /// changed, before it is asked for.
    fn has_all_columns(&self) -> rusqlite::Result<bool> {
        type Column = (String, String, String, bool, i64);
        let columns = |connection: &Connection| -> rusqlite::Result<BTreeSet<Column>> {
            let sql = "SELECT tables.name, columns.name, columns.type, columns.\"notnull\", columns.pk \
                       FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns \
                       WHERE tables.type = 'table'";
            let mut statement = connection.prepare(sql)?;
            let rows =
                statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
            rows.collect()
        };
        Ok(columns(&as_made()?)?.is_subset(&columns(&self.connection)?))
    }

    /// Where the tables and indexes of a new store begin: a damaged one has them in the same places, even if its own list of them
    /// cannot be read.
    pub fn usual_roots() -> rusqlite::Result<BTreeMap<String, u32>> {
        let connection = Connection::open_in_memory()?;
        connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
        for step in SCHEMA {
            connection.execute_batch(step)?;
        }
        connection.execute_batch(&message_table(0))?;
        let mut statement =
            connection.prepare("SELECT name, rootpage FROM sqlite_schema WHERE type IN ('table', 'index')")?;
        statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    /// The tables whose rows have no rowid, and the indexes: they lie in trees of another kind.
    pub fn without_rowid() -> rusqlite::Result<BTreeSet<String>> {
        let connection = as_made()?;
        let mut statement = connection.prepare(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND wr = 1 \
                 UNION SELECT name FROM sqlite_schema WHERE type = 'index'",
        )?;
        statement.query_map((), |row| row.get(0))?.collect()
    }

    /// The columns of each table and of each index, in the order in which they lie in a row.
    pub fn columns() -> rusqlite::Result<BTreeMap<String, Vec<Column>>> {
        let connection = as_made()?;
        let sql = "SELECT tables.name, columns.type, columns.\"notnull\" = 1 AND columns.dflt_value IS NULL \
                   FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns \
                   WHERE tables.type = 'table' ORDER BY tables.name, columns.cid";
        // The last one of an index is the rowid.
        let of_indexes = "SELECT indexes.name, coalesce(columns.type, 'INTEGER'), 1 \
                          FROM sqlite_schema AS indexes JOIN pragma_index_xinfo(indexes.name) AS parts \
                          LEFT JOIN pragma_table_info(indexes.tbl_name) AS columns ON columns.cid = parts.cid \
                          WHERE indexes.type = 'index' ORDER BY indexes.name, parts.seqno";
        let mut found: BTreeMap<String, Vec<Column>> = BTreeMap::new();
        for sql in [sql, of_indexes] {
            let mut statement = connection.prepare(sql)?;
            let mut rows = statement.query(())?;
            while let Some(row) = rows.next()? {
                let column = Column { kind: row.get(1)?, is_needed: row.get(2)? };
                found.entry(row.get(0)?).or_default().push(column);
            }
        }
        Ok(found)
    }

    /// No page beyond these is ever made, because a full disk would fail deletions as well; and how long the WAL gets.
    pub fn keep_within(&self, ceilings: Ceilings) -> rusqlite::Result<()> {
        let pages_max = ceilings.hard_pages.min(u64::from(u32::MAX - 2)).cast_signed();
        self.connection.pragma_update_and_check(None, "max_page_count", pages_max, |_| Ok(()))?;
        let checkpoint = ceilings.checkpoint_pages;
        self.connection.pragma_update_and_check(None, "wal_autocheckpoint", checkpoint, |_| Ok(()))?;
        let bytes = i64::from(checkpoint) * (PAGE_BYTES + WAL_FRAME).cast_signed();
        self.connection.pragma_update_and_check(None, "journal_size_limit", bytes, |_| Ok(()))
    }

    /// After how many pages the log is emptied into the database; 0: it is not.
    pub fn checkpoint_at(&self, pages: u32) -> rusqlite::Result<()> {
        self.connection.pragma_update_and_check(None, "wal_autocheckpoint", pages, |_| Ok(()))
    }

    /// The length of the database, with what is in the log only.
    pub fn bytes(&self) -> rusqlite::Result<u64> {
        let pages: i64 = self.pragma("page_count")?;
        Ok(pages.max(0).cast_unsigned() * PAGE_BYTES)
    }

    /// Pages that are in use.
    pub fn pages_used(&self) -> rusqlite::Result<u64> {
        let pages: i64 = self.pragma("page_count")?;
        let free: i64 = self.pragma("freelist_count")?;
        Ok(pages.saturating_sub(free).max(0).cast_unsigned())
    }

    // Transactions

    /// Begins a transaction where none is open.
    pub fn write(&mut self) -> rusqlite::Result<()> {
        if !self.is_writing {
            self.run("BEGIN IMMEDIATE", ())?;
            self.is_writing = true;
        }
        Ok(())
    }

    /// Whether there is something to commit.
    pub fn is_writing(&self) -> bool {
        self.is_writing
    }

    /// Makes everything since `write` durable.
    pub fn commit(&mut self) -> rusqlite::Result<()> {
        self.run("COMMIT", ())?;
        self.is_writing = false;
        Ok(())
    }

    /// Whether each page has its one place, as SQLite sees it. Of a store with more than `CHECKED_PAGES_MAX` pages in
    /// use nothing is said: a start takes the same time whatever waits.
    pub fn is_in_order(&self) -> rusqlite::Result<bool> {
        Ok(self.pages_used()? > CHECKED_PAGES_MAX || self.fault()?.is_none())
    }

    /// The first thing that SQLite finds wrong with the pages. Looks at all of them.
    pub fn fault(&self) -> rusqlite::Result<Option<String>> {
        let said: String = self.connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
        Ok((!said.eq_ignore_ascii_case("ok")).then_some(said))
    }

    /// Puts what is in the WAL into the database, as far as the disk has room.
    pub fn checkpoint(&self) -> rusqlite::Result<()> {
        match self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(())) {
            // It stays in the WAL.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => Ok(()),
            done => done,
        }
    }

    /// The same. Says whether all of it is there now.
    pub fn checkpoint_whole(&self) -> rusqlite::Result<bool> {
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        let (busy, frames, done) = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), read)?;
        Ok(busy == 0 && frames == done)
    }

    /// What of a store belongs to one moment of the world around it, and is wrong at any later one: packet ids that peers
    /// have used on since. Nothing that waits goes with it.
    pub fn forget_peers(&mut self, writes: &str) -> rusqlite::Result<()> {
        self.write()?;
        // A write to a device that was begun stays so: it may have been done.
        let others = "stream NOT IN (SELECT id FROM stream WHERE name = ?)";
        self.run(
            &format!("DELETE FROM batch_row WHERE batch IN (SELECT batch FROM inflight WHERE {others})"),
            [writes],
        )?;
        self.run(&format!("DELETE FROM inflight WHERE {others}"), [writes])?;
        self.run("UPDATE stream SET session_key = NULL", ())?;
        self.run("DELETE FROM rx", ())?;
        self.run("DELETE FROM session_flight", ())?;
        self.commit()
    }

    /// Empties the WAL into the database and closes both. From then on the database does without a WAL.
    pub fn close(mut self) -> rusqlite::Result<()> {
        if self.meta(MARK)?.is_some() {
            self.write()?;
            self.run("DELETE FROM meta WHERE key = ?", [MARK])?;
            self.commit()?;
        }
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))?;
        // All is in the database: the log may go.
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        self.connection.close().map_err(|(_, error)| error)
    }

    pub(super) fn run(&self, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
        let mut statement = self.connection.prepare_cached(sql)?;
        if statement.column_count() > 0 {
            statement.query(params)?.next()?;
            return Ok(0);
        }
        statement.execute(params)
    }

    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        self.connection.prepare_cached(sql)?.query_row(params, read).optional()
    }

    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.connection.prepare_cached(sql)?.query_map(params, read)?.collect()
    }

    fn pragma<T: rusqlite::types::FromSql>(&self, name: &str) -> rusqlite::Result<T> {
        let sql = match name {
            "page_count" => "PRAGMA page_count",
            "freelist_count" => "PRAGMA freelist_count",
            "user_version" => "PRAGMA user_version",
            _ => "PRAGMA application_id",
        };
        self.connection.prepare_cached(sql)?.query_row((), |row| row.get(0))
    }

    // meta, start, word, rule, problem

    pub fn meta(&self, key: &str) -> rusqlite::Result<Option<u64>> {
        self.one("SELECT value FROM meta WHERE key = ?", [key], |row| unsigned(row, 0))
    }

    pub fn set_meta(&self, key: &str, value: u64) -> rusqlite::Result<()> {
        let sql = "INSERT INTO meta(key, value) VALUES (?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2";
        self.run(sql, params![key, value.cast_signed()]).map(drop)
    }

    /// Notes that something was written to a field device on this topic, and forgets what was longer ago than `PACE_MS`.
    pub fn note_pace(&self, topic: &str, boot_id: &str, mono_ms: u64) -> rusqlite::Result<()> {
        // What another boot did was before this one began.
        let sql = "DELETE FROM pace WHERE CASE boot_id WHEN ?1 THEN mono_ms ELSE 0 END <= ?2";
        if let Some(past) = mono_ms.checked_sub(PACE_MS) {
            self.run(sql, params![boot_id, past.cast_signed()])?;
        }
        let sql = "INSERT INTO pace(topic, boot_id, mono_ms) VALUES (?1, ?2, ?3)";
        self.run(sql, params![topic, boot_id, mono_ms.cast_signed()]).map(drop)
    }

    /// What was written within the last `PACE_MS`, oldest first: topic and age. What another boot did is as old as this
    /// one, or older.
    pub fn paces(&self, boot_id: &str, mono_ms: u64) -> rusqlite::Result<Vec<(String, u64)>> {
        let sql = "SELECT topic, boot_id, mono_ms FROM pace ORDER BY id";
        let rows = self.all(sql, (), |row| {
            let is_this = row.get_ref(1)?.as_str().is_ok_and(|boot| boot == boot_id);
            let at = if is_this { unsigned(row, 2)? } else { 0 };
            Ok((row.get::<_, String>(0)?, mono_ms.saturating_sub(at)))
        })?;
        Ok(rows.into_iter().filter(|(_, age_ms)| *age_ms < PACE_MS).collect())
    }

    pub fn starts(&self) -> rusqlite::Result<Starts> {
        let sql = "SELECT start, store, gateway, boot_id, wall_ms, mono_ms, clock FROM start";
        let starts = self.all(sql, (), |row| {
            let clock = match row.get(6)? {
                0_i64 => ClockState::Synced,
                // Not kept: what counts from this stamp has a clock of its own.
                1 => ClockState::Holdover { error_ms: u32::MAX },
                _ => ClockState::Unset,
            };
            let stamp = Stamp { wall_ms: row.get(4)?, mono_ms: unsigned(row, 5)?, clock };
            let (gateway, boot_id) = (text(row, 2)?, text(row, 3)?);
            Ok(Start { number: row.get(0)?, store: unsigned(row, 1)?, gateway, boot_id, stamp })
        })?;
        Ok(starts.into_iter().map(|start| (start.number, start)).collect())
    }

    pub fn insert_start(&self, start: &Start) -> rusqlite::Result<()> {
        let clock = match start.stamp.clock {
            ClockState::Synced => 0,
            ClockState::Holdover { .. } => 1,
            ClockState::Unset => 2,
        };
        let Stamp { wall_ms, mono_ms, .. } = start.stamp;
        let (store, mono_ms) = (start.store.cast_signed(), mono_ms.cast_signed());
        self.run(
            "INSERT OR REPLACE INTO start(start, store, gateway, boot_id, wall_ms, mono_ms, clock) \
             VALUES (?, ?, ?, ?, ?, ?, ?)",
            params![start.number, store, &*start.gateway, &*start.boot_id, wall_ms, mono_ms, clock],
        )
        .map(drop)
    }

    pub fn delete_starts_before(&self, number: u32) -> rusqlite::Result<()> {
        self.run("DELETE FROM start WHERE start < ?", [number]).map(drop)
    }

    pub fn boots(&self) -> rusqlite::Result<Boots> {
        let sql = "SELECT boot_id, boot_ms_min, known_wall_ms, known_mono_ms, known_error_ms FROM boot";
        let boots = self.all(sql, (), |row| {
            let known = match (row.get(2)?, row.get::<_, Option<i64>>(3)?, row.get(4)?) {
                (Some(wall_ms), Some(mono_ms), Some(error_ms)) => {
                    Some(Reference { wall_ms, mono_ms: mono_ms.cast_unsigned(), error_ms })
                }
                _ => None,
            };
            Ok((text(row, 0)?, Boot { boot_ms_min: row.get(1)?, known }))
        })?;
        Ok(boots.into_iter().collect())
    }

    pub fn set_boot(&self, boot_id: &str, boot: &Boot) -> rusqlite::Result<()> {
        let sql = "INSERT OR REPLACE INTO boot(boot_id, boot_ms_min, known_wall_ms, known_mono_ms, known_error_ms) \
                   VALUES (?, ?, ?, ?, ?)";
        let known = boot.known.as_ref();
        let (wall_ms, error_ms) = (known.map(|known| known.wall_ms), known.map(|known| known.error_ms));
        let mono_ms = known.map(|known| known.mono_ms.cast_signed());
        self.run(sql, params![boot_id, boot.boot_ms_min, wall_ms, mono_ms, error_ms]).map(drop)
    }

    pub fn delete_boots_without_starts(&self) -> rusqlite::Result<()> {
        self.run("DELETE FROM boot WHERE boot_id NOT IN (SELECT boot_id FROM start)", ()).map(drop)
    }

    pub fn words(&self) -> rusqlite::Result<Words> {
        let mut words = Words::default();
        for (number, text) in self.all("SELECT id, text FROM word", (), |row| Ok((row.get(0)?, text(row, 1)?)))? {
            words.insert(number, text);
        }
        Ok(words)
    }

    pub fn insert_word(&self, number: u32, text: &str) -> rusqlite::Result<()> {
        self.run("INSERT INTO word(id, text) VALUES (?, ?)", params![number, text]).map(drop)
    }

    pub fn rule(&self, id: i64) -> rusqlite::Result<Option<String>> {
        self.one("SELECT definition FROM rule WHERE id = ?", [id], |row| row.get(0))
    }

    /// The number of a definition, which is given one where it has none.
    pub fn rule_id(&self, definition: &str) -> rusqlite::Result<i64> {
        let known = self.one("SELECT id FROM rule WHERE definition = ?", [definition], |row| row.get(0))?;
        match known {
            Some(id) => Ok(id),
            None => {
                self.run("INSERT INTO rule(definition) VALUES (?)", [definition])?;
                Ok(self.connection.last_insert_rowid())
            }
        }
    }

    pub fn insert_problem(&self, wall_ms: i64, text: &str) -> rusqlite::Result<()> {
        self.run("INSERT INTO problem(wall_ms, text) VALUES (?, ?)", params![wall_ms, text])?;
        self.run("DELETE FROM problem WHERE id <= (SELECT max(id) FROM problem) - ?", [PROBLEMS_MAX]).map(drop)
    }

    /// The problems that are kept, oldest first.
    pub fn problems(&self) -> rusqlite::Result<Vec<(i64, String)>> {
        self.all("SELECT wall_ms, text FROM problem ORDER BY id", (), |row| Ok((row.get(0)?, row.get(1)?)))
    }

    // note, salvage

    pub fn note(&self, key: &str) -> rusqlite::Result<Option<String>> {
        self.one("SELECT text FROM note WHERE key = ?", [key], |row| row.get(0))
    }

    pub fn set_note(&self, key: &str, text: &str) -> rusqlite::Result<()> {
        self.run("INSERT OR REPLACE INTO note VALUES (?, ?)", params![key, text]).map(drop)
    }

    /// How far the salvage of a quarantine has come.
    pub fn salvage(&self, place: &str) -> rusqlite::Result<Option<String>> {
        self.one("SELECT progress FROM salvage WHERE place = ?", [place], |row| row.get(0))
    }

    pub fn set_salvage(&self, place: &str, progress: &str) -> rusqlite::Result<()> {
        self.run("INSERT OR REPLACE INTO salvage VALUES (?, ?)", params![place, progress]).map(drop)
    }

    // stream

    pub fn streams(&self) -> rusqlite::Result<Vec<StreamRow>> {
        self.all("SELECT id, name, session_key, session FROM stream WHERE kind = 0", (), |row| {
            let session_key = row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned);
            Ok(StreamRow { id: row.get(0)?, name: text(row, 1)?, session_key, session: unsigned(row, 3)? })
        })
    }

    pub fn insert_stream(&self, name: &str, session: u64) -> rusqlite::Result<i64> {
        let sql = "INSERT INTO stream(name, kind, session, rejected) VALUES (?, 0, ?, ?)";
        self.run(sql, params![name, session.cast_signed(), name_sum(name)])?;
        Ok(self.connection.last_insert_rowid())
    }

    pub fn set_session(&self, stream: i64, session: u64) -> rusqlite::Result<()> {
        self.run("UPDATE stream SET session = ? WHERE id = ?", params![session.cast_signed(), stream]).map(drop)
    }

    pub fn set_session_key(&self, stream: i64, key: u64) -> rusqlite::Result<()> {
        self.run("UPDATE stream SET session_key = ? WHERE id = ?", params![key.cast_signed(), stream]).map(drop)
    }

    // message_<n>, segment

    fn load_segments(&mut self) -> rusqlite::Result<()> {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name GLOB 'message_[0-9]*'";
        let tables = self.one(sql, (), |row| row.get(0))?.unwrap_or(0);
        let begins = self.all("SELECT first, tab FROM segment", (), |row| Ok((unsigned(row, 0)?, row.get(1)?)))?;
        let nonsense = rusqlite::Error::IntegralValueOutOfRange(1, i64::from(tables));
        self.segments = Segments::new(tables, begins).ok_or(nonsense)?;
        self.set_insert();
        Ok(())
    }

    /// Where the messages are.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Makes tables for so many more segments.
    pub fn make_tables(&mut self, count: u32) -> rusqlite::Result<()> {
        for table in self.segments.tables()..self.segments.tables().saturating_add(count) {
            self.connection.execute(&message_table(table), ())?;
        }
        self.segments.add_tables(count);
        Ok(())
    }

    /// What comes from `first` on goes to a table that is empty now. Says whether there was one.
    pub fn begin_segment(&mut self, first: u64) -> rusqlite::Result<bool> {
        let Some(table) = self.segments.free_table() else {
            self.segments.go_on();
            return Ok(false);
        };
        self.run("INSERT INTO segment(first, tab) VALUES (?, ?)", params![first.cast_signed(), table])?;
        self.segments.begin(first, table);
        self.set_insert();
        Ok(true)
    }

    /// Empties the table of a segment, without writing the pages that were in it. Gives back how many messages there
    /// were.
    pub fn clear_segment(&mut self, segment: Segment) -> rusqlite::Result<u64> {
        let Segment { table, span } = segment;
        // Without WHERE: that is what makes SQLite drop the pages unseen.
        let count = self.run(&format!("DELETE FROM message_{table}"), ())? as u64;
        if span.last != OPEN {
            self.run("DELETE FROM segment WHERE first = ?", [span.first.cast_signed()])?;
        }
        self.segments.end(segment);
        Ok(count)
    }

    fn set_insert(&mut self) {
        self.insert_sql = self.segments.newest().map_or_else(String::new, |newest| {
            format!("INSERT INTO message_{}(sequence, body) VALUES (?, ?)", newest.table)
        });
    }

    /// Puts a message into the newest segment, which there must be.
    pub fn insert_message(&mut self, sequence: u64, body: &[u8]) -> rusqlite::Result<()> {
        self.run(&self.insert_sql, params![sequence.cast_signed(), body])?;
        self.segments.add(body.len());
        Ok(())
    }

    /// Removes messages one by one.
    pub fn delete_messages(&self, span: Span) -> rusqlite::Result<u64> {
        let mut count = 0;
        for segment in self.segments.over(span) {
            let sql = format!("DELETE FROM message_{} WHERE sequence BETWEEN ? AND ?", segment.table);
            count += self.run(&sql, params![span.first.cast_signed(), span.last.cast_signed()])? as u64;
        }
        Ok(count)
    }

    pub fn last_sequence(&self) -> rusqlite::Result<u64> {
        for segment in self.segments.newest_first() {
            let sql = format!("SELECT max(sequence) FROM message_{}", segment.table);
            if let Some(last) = self.one(&sql, (), |row| row.get::<_, Option<i64>>(0))?.flatten() {
                return Ok(last.cast_unsigned());
            }
        }
        Ok(0)
    }

    /// The first message at or after `sequence`.
    pub fn message_from(&self, sequence: u64) -> rusqlite::Result<Option<u64>> {
        for segment in self.segments.over(Span::new(sequence, OPEN)) {
            let sql =
                format!("SELECT sequence FROM message_{} WHERE sequence >= ? ORDER BY sequence LIMIT 1", segment.table);
            let found = self.one(&sql, [sequence.cast_signed()], |row| unsigned(row, 0))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Places and lengths of at most `count_max` messages from `sequence` on, none only if there is none.
    pub fn lengths_from(&self, sequence: u64, count_max: u64) -> rusqlite::Result<Vec<(u64, u64)>> {
        for segment in self.segments.over(Span::new(sequence, OPEN)) {
            let sql = format!(
                "SELECT sequence, coalesce(length(body), 0) FROM message_{} WHERE sequence >= ? ORDER BY sequence LIMIT ?",
                segment.table
            );
            let found = self.all(&sql, params![sequence.cast_signed(), count_max.cast_signed()], |row| {
                Ok((unsigned(row, 0)?, unsigned(row, 1)?))
            })?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    /// Shows the messages of a span in order until `take` says that it has enough.
    pub fn messages(&self, span: Span, mut take: impl FnMut(u64, &[u8]) -> bool) -> rusqlite::Result<()> {
        for segment in self.segments.over(span) {
            let sql = format!(
                "SELECT sequence, body FROM message_{} WHERE sequence BETWEEN ? AND ? ORDER BY sequence",
                segment.table
            );
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params![span.first.cast_signed(), span.last.cast_signed()])?;
            while let Some(row) = rows.next()? {
                let body = row.get_ref(1)?.as_blob().unwrap_or_default();
                if !take(unsigned(row, 0)?, body) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    // delivery

    /// The span that begins at or before `sequence`.
    pub fn span_at(&self, stream: i64, sequence: u64) -> rusqlite::Result<Option<(Span, i64)>> {
        let sql = "SELECT first, last, rule FROM delivery WHERE stream = ? AND lane = 0 AND first <= ? \
                   ORDER BY first DESC LIMIT 1";
        self.one(sql, params![stream, sequence.cast_signed()], span)
    }

    /// The first span that begins after `sequence`.
    pub fn span_after(&self, stream: i64, sequence: u64) -> rusqlite::Result<Option<(Span, i64)>> {
        let sql = "SELECT first, last, rule FROM delivery WHERE stream = ? AND lane = 0 AND first > ? \
                   ORDER BY first LIMIT 1";
        self.one(sql, params![stream, sequence.cast_signed()], span)
    }

    /// Shows every span of every stream, by its beginning.
    pub fn spans(&self, mut see: impl FnMut(i64, Span, i64)) -> rusqlite::Result<()> {
        let mut statement =
            self.connection.prepare_cached("SELECT first, last, rule, stream FROM delivery ORDER BY first")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let (found, rule) = span(row)?;
            see(row.get(3)?, found, rule);
        }
        Ok(())
    }

    pub fn insert_span(&self, stream: i64, span: Span, rule: i64) -> rusqlite::Result<()> {
        let sql = "INSERT INTO delivery(stream, lane, first, last, rule) VALUES (?, 0, ?, ?, ?)";
        self.run(sql, params![stream, span.first.cast_signed(), span.last.cast_signed(), rule]).map(drop)
    }

    pub fn set_span_last(&self, stream: i64, span: Span) -> rusqlite::Result<()> {
        let sql = "UPDATE delivery SET last = ? WHERE stream = ? AND lane = 0 AND first = ?";
        self.run(sql, params![span.last.cast_signed(), stream, span.first.cast_signed()]).map(drop)
    }

    pub fn set_span_first(&self, stream: i64, from: u64, to: u64) -> rusqlite::Result<()> {
        let sql = "UPDATE delivery SET first = ? WHERE stream = ? AND lane = 0 AND first = ?";
        self.run(sql, params![to.cast_signed(), stream, from.cast_signed()]).map(drop)
    }

    pub fn delete_span(&self, stream: i64, first: u64) -> rusqlite::Result<()> {
        let sql = "DELETE FROM delivery WHERE stream = ? AND lane = 0 AND first = ?";
        self.run(sql, params![stream, first.cast_signed()]).map(drop)
    }

    // inflight, batch_row

    pub fn insert_in_flight(&self, stream: i64, row: &InFlightRow) -> rusqlite::Result<()> {
        self.delete_in_flight(stream, row.packet_id)?;
        let (mut single, mut batch) = (None, None);
        match row.rows.as_slice() {
            [sequence] => single = Some(sequence.cast_signed()),
            rows => {
                let last = self.one("SELECT max(batch) FROM batch_row", (), |row| row.get::<_, Option<i64>>(0))?;
                let number = last.flatten().unwrap_or(0) + 1;
                batch = Some(number);
                for (place, sequence) in rows.iter().enumerate() {
                    let place = i64::try_from(place).unwrap_or(i64::MAX);
                    let sql = "INSERT INTO batch_row(batch, place, sequence) VALUES (?, ?, ?)";
                    self.run(sql, params![number, place, sequence.cast_signed()])?;
                }
            }
        }
        let InFlightRow { packet_id, released, order, topic, format, timing, .. } = row;
        let order = order.cast_signed();
        let TimingRow(code, offset_ms, error_ms, after_ms, before_ms) = timing_row(*timing);
        self.run(
            "INSERT INTO inflight(stream, pid, sequence, batch, released, ord, topic, format, clock_offset_ms, timing, \
             error_ms, after_ms, before_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                stream, packet_id, single, batch, released, order, topic, format, offset_ms, code, error_ms, after_ms,
                before_ms
            ],
        )
        .map(drop)
    }

    pub fn set_released(&self, stream: i64, packet_id: u16) -> rusqlite::Result<()> {
        self.run("UPDATE inflight SET released = 1 WHERE stream = ? AND pid = ?", params![stream, packet_id]).map(drop)
    }

    /// Forgets a packet id; gives back what it carried.
    pub fn delete_in_flight(&self, stream: i64, packet_id: u16) -> rusqlite::Result<Vec<u64>> {
        let sql = "SELECT sequence, batch FROM inflight WHERE stream = ? AND pid = ?";
        let found = self.one(sql, params![stream, packet_id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let Some((single, batch)) = found else { return Ok(Vec::new()) };
        let rows = self.carried(single, batch)?;
        if let Some(batch) = batch {
            self.run("DELETE FROM batch_row WHERE batch = ?", [batch])?;
        }
        self.run("DELETE FROM inflight WHERE stream = ? AND pid = ?", params![stream, packet_id])?;
        Ok(rows)
    }

    /// All packet ids of a stream, by order of admission.
    pub fn in_flight(&self, stream: i64) -> rusqlite::Result<Vec<InFlightRow>> {
        let sql = "SELECT pid, released, ord, topic, format, sequence, batch, timing, clock_offset_ms, error_ms, \
                   after_ms, before_ms FROM inflight WHERE stream = ? ORDER BY ord, pid";
        let found = self.all(sql, [stream], |row| {
            let entry = InFlightRow {
                packet_id: row.get(0)?,
                rows: Vec::new(),
                released: row.get(1)?,
                order: unsigned(row, 2)?,
                topic: row.get(3)?,
                format: row.get(4)?,
                timing: timing(&TimingRow(row.get(7)?, row.get(8)?, row.get(9)?, row.get(10)?, row.get(11)?)),
            };
            Ok((entry, row.get(5)?, row.get(6)?))
        })?;
        let filled = found.into_iter().map(|(entry, single, batch)| {
            let rows = self.carried(single, batch)?;
            Ok(InFlightRow { rows, ..entry })
        });
        filled.collect()
    }

    fn carried(&self, single: Option<i64>, batch: Option<i64>) -> rusqlite::Result<Vec<u64>> {
        let sql = "SELECT sequence FROM batch_row WHERE batch = ? ORDER BY place";
        let mut rows: Vec<u64> = single.into_iter().map(i64::cast_unsigned).collect();
        if let Some(batch) = batch {
            rows.extend(self.all(sql, [batch], |row| unsigned(row, 0))?);
        }
        Ok(rows)
    }

    // rx

    pub fn is_received(&self, session: u64, packet_id: u16) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM rx WHERE session = ? AND pid = ?";
        Ok(self.one(sql, params![session.cast_signed(), packet_id], |_| Ok(()))?.is_some())
    }

    pub fn insert_received(&self, session: u64, packet_id: u16) -> rusqlite::Result<()> {
        self.run("INSERT OR IGNORE INTO rx(session, pid) VALUES (?, ?)", params![session.cast_signed(), packet_id])
            .map(drop)
    }

    pub fn delete_received(&self, session: u64, packet_id: u16) -> rusqlite::Result<()> {
        self.run("DELETE FROM rx WHERE session = ? AND pid = ?", params![session.cast_signed(), packet_id]).map(drop)
    }

    pub fn delete_session(&self, session: u64) -> rusqlite::Result<usize> {
        self.run("DELETE FROM rx WHERE session = ?", [session.cast_signed()])
    }

    /// Forgets the received ids of all sessions that were in memory only.
    pub fn delete_passing_sessions(&self) -> rusqlite::Result<()> {
        let sql = "DELETE FROM rx WHERE session NOT IN (SELECT session FROM stream) \
                   AND session NOT IN (SELECT number FROM session)";
        self.run(sql, ()).map(drop)
    }

    // retained

    pub fn set_retained(&self, topic: &str, body: &[u8]) -> rusqlite::Result<()> {
        let sql = "INSERT INTO retained(topic, body) VALUES (?1, ?2) ON CONFLICT(topic) DO UPDATE SET body = ?2";
        self.run(sql, params![topic, body]).map(drop)
    }

    pub fn delete_retained(&self, topic: &str) -> rusqlite::Result<()> {
        self.run("DELETE FROM retained WHERE topic = ?", [topic]).map(drop)
    }

    pub fn retained_bytes(&self, topic: &str) -> rusqlite::Result<Option<u64>> {
        self.one("SELECT coalesce(length(body), 0) FROM retained WHERE topic = ?", [topic], |row| unsigned(row, 0))
    }

    /// Number and bytes of all retained messages.
    pub fn retained_total(&self) -> rusqlite::Result<(u64, u64)> {
        self.total("SELECT count(*), sum(length(body)) FROM retained")
    }

    /// At most `count_max` retained messages with topics from `from` (left out where `is_after`) to below `to`.
    pub fn retained(
        &self,
        from: &str,
        is_after: bool,
        to: Option<&str>,
        count_max: i64,
    ) -> rusqlite::Result<Vec<(String, Vec<u8>)>> {
        let sql = "SELECT topic, body FROM retained WHERE topic >= ?1 AND (?2 = 0 OR topic > ?1) \
                   AND (?3 IS NULL OR topic < ?3) ORDER BY topic LIMIT ?4";
        self.all(sql, params![from, is_after, to, count_max], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    // dead_letter

    pub fn insert_dead_letter(
        &self,
        stream: i64,
        sequence: u64,
        reason: &str,
        wall_ms: i64,
        body: &[u8],
    ) -> rusqlite::Result<()> {
        let sql = "INSERT INTO dead_letter(stream, sequence, reason, wall_ms, body) VALUES (?, ?, ?, ?, ?)";
        self.run(sql, params![stream, sequence.cast_signed(), reason, wall_ms, body]).map(drop)
    }

    /// Whether this dead letter is there already.
    pub fn has_dead_letter(&self, sequence: u64, wall_ms: i64) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM dead_letter WHERE sequence = ? AND wall_ms = ?";
        Ok(self.one(sql, params![sequence.cast_signed(), wall_ms], |_| Ok(()))?.is_some())
    }

    /// Ids, sequences and bodies of at most `count_max` dead letters after an id.
    pub fn dead_letters(&self, after: i64, count_max: i64) -> rusqlite::Result<Vec<(i64, u64, Vec<u8>)>> {
        let sql = "SELECT id, sequence, body FROM dead_letter WHERE id > ? ORDER BY id LIMIT ?";
        self.all(sql, params![after, count_max], |row| Ok((row.get(0)?, unsigned(row, 1)?, row.get(2)?)))
    }

    /// At most `count_max` dead letters after a number, with all that is known of them.
    pub fn dead_letter_rows(&self, after: i64, count_max: i64) -> rusqlite::Result<Vec<DeadLetterRow>> {
        let sql =
            "SELECT id, stream, sequence, reason, wall_ms, body FROM dead_letter WHERE id > ? ORDER BY id LIMIT ?";
        self.all(sql, params![after, count_max], |row| {
            let (number, stream, sequence) = (row.get(0)?, row.get(1)?, unsigned(row, 2)?);
            Ok(DeadLetterRow { number, stream, sequence, reason: row.get(3)?, wall_ms: row.get(4)?, body: row.get(5)? })
        })
    }

    pub fn remove_dead_letter(&self, id: i64) -> rusqlite::Result<()> {
        self.run("DELETE FROM dead_letter WHERE id = ?", [id]).map(drop)
    }

    /// Drops the oldest dead letter; gives back its bytes.
    pub fn delete_dead_letter(&self) -> rusqlite::Result<Option<u64>> {
        let sql = "SELECT id, coalesce(length(body), 0) FROM dead_letter ORDER BY id LIMIT 1";
        let Some((id, bytes)) = self.one(sql, (), |row| Ok((row.get::<_, i64>(0)?, unsigned(row, 1)?)))? else {
            return Ok(None);
        };
        self.run("DELETE FROM dead_letter WHERE id = ?", [id])?;
        Ok(Some(bytes))
    }

    /// Number and bytes of all dead letters.
    pub fn dead_letter_total(&self) -> rusqlite::Result<(u64, u64)> {
        self.total("SELECT count(*), sum(length(body)) FROM dead_letter")
    }

    fn total(&self, sql: &str) -> rusqlite::Result<(u64, u64)> {
        let total = self.one(sql, (), |row| Ok((unsigned(row, 0)?, row.get::<_, Option<i64>>(1)?)))?;
        let (count, bytes) = total.unwrap_or_default();
        Ok((count, bytes.unwrap_or(0).max(0).cast_unsigned()))
    }

    // gap, loss, device

    pub fn gaps(&self) -> rusqlite::Result<Vec<GapRow>> {
        self.all("SELECT first, last, count, from_ms, to_ms, stream, reason, is_unset FROM gap", (), |row| {
            let span = Span::new(unsigned(row, 0)?, unsigned(row, 1)?);
            let (count, from_ms, to_ms) = (unsigned(row, 2)?, row.get(3)?, row.get(4)?);
            let (stream, reason, is_unset) = (row.get(5)?, row.get(6)?, row.get(7)?);
            Ok(GapRow { stream, reason, span, count, from_ms, to_ms, is_unset })
        })
    }

    pub fn set_gap(&self, gap: &GapRow) -> rusqlite::Result<()> {
        let GapRow { stream, reason, span, count, from_ms, to_ms, is_unset } = gap;
        let (first, last, count) = (span.first.cast_signed(), span.last.cast_signed(), count.cast_signed());
        let sql = "INSERT OR REPLACE INTO gap(stream, reason, first, last, count, from_ms, to_ms, is_unset) \
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        self.run(sql, params![stream, reason, first, last, count, from_ms, to_ms, is_unset]).map(drop)
    }

    pub fn delete_gap(&self, stream: i64, reason: &str) -> rusqlite::Result<()> {
        self.run("DELETE FROM gap WHERE stream = ? AND reason = ?", params![stream, reason]).map(drop)
    }

    pub fn losses(&self) -> rusqlite::Result<Vec<(String, u64)>> {
        self.all("SELECT reason, count FROM loss", (), |row| Ok((row.get(0)?, unsigned(row, 1)?)))
    }

    pub fn set_loss(&self, reason: &str, count: u64) -> rusqlite::Result<()> {
        self.run("INSERT OR REPLACE INTO loss(reason, count) VALUES (?, ?)", params![reason, count.cast_signed()])
            .map(drop)
    }

    pub fn device(&self, name: &str) -> rusqlite::Result<Option<u64>> {
        self.one("SELECT seq FROM device WHERE name = ?", [name], |row| unsigned(row, 0))
    }

    pub fn set_device(&self, name: &str, seq: u64) -> rusqlite::Result<()> {
        self.run("INSERT OR REPLACE INTO device(name, seq) VALUES (?, ?)", params![name, seq.cast_signed()]).map(drop)
    }

    /// How much waits in each stream, as far as a damaged store still says.
    pub fn deliveries(&self) -> Option<Waiting> {
        let last = self.last_sequence().ok()?;
        let names: HashMap<i64, Arc<str>> = self.streams().ok()?.into_iter().map(|row| (row.id, row.name)).collect();
        let mut waiting = Waiting::new();
        let mut is_whole = true;
        self.spans(|stream, span, _| match names.get(&stream) {
            Some(name) => {
                let count = waiting.entry(name.clone()).or_default();
                *count = count.saturating_add(Span::new(span.first, span.last.min(last)).count());
            }
            None => is_whole = false,
        })
        .ok()?;
        let copies: u64 = self.lanes().ok()?.iter().map(|lane| lane.count).sum();
        waiting.extend((copies > 0).then(|| (Arc::from(SESSIONS), copies)));
        is_whole.then_some(waiting)
    }
}

/// An empty store of this program, in memory: what its tables are to be like.
fn as_made() -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    for step in SCHEMA {
        connection.execute_batch(step)?;
    }
    Ok(connection)
}

/// The sum of a stream's name, never 0: nothing else guards it against a flipped bit.
pub(super) fn name_sum(name: &str) -> u32 {
    crc32c::crc32c(name.as_bytes()).max(1)
}

/// How a timing lies in a row of `inflight`: code, offset, error, after, before.
pub(super) struct TimingRow(pub i64, pub i64, pub Option<u32>, pub Option<i64>, pub Option<i64>);

fn timing_row(timing: Timing) -> TimingRow {
    match timing {
        Timing::Stamped => TimingRow(0, 0, None, None, None),
        Timing::Corrected { offset_ms, clock: ClockState::Holdover { error_ms } } => {
            TimingRow(2, offset_ms, Some(error_ms), None, None)
        }
        Timing::Corrected { offset_ms, .. } => TimingRow(1, offset_ms, None, None, None),
        Timing::Between { after_ms, before_ms } => TimingRow(3, 0, None, Some(after_ms), before_ms),
        Timing::Open { after_ms } => TimingRow(3, 0, None, Some(after_ms), None),
    }
}

pub(super) fn timing(row: &TimingRow) -> Timing {
    let TimingRow(code, offset_ms, error_ms, after_ms, before_ms) = *row;
    match code {
        1 => Timing::Corrected { offset_ms, clock: ClockState::Synced },
        2 => Timing::Corrected { offset_ms, clock: ClockState::Holdover { error_ms: error_ms.unwrap_or(u32::MAX) } },
        3 => Timing::Between { after_ms: after_ms.unwrap_or(0), before_ms },
        _ => Timing::Stamped,
    }
}

fn message_table(number: u32) -> String {
    format!("CREATE TABLE message_{number}(sequence INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")
}

fn no_rows_is_fine(error: rusqlite::Error) -> rusqlite::Result<()> {
    // mmap may be compiled out, and then answers nothing.
    if matches!(error, rusqlite::Error::QueryReturnedNoRows) { Ok(()) } else { Err(error) }
}

pub(super) fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(index).map(i64::cast_unsigned)
}

fn text(row: &Row<'_>, index: usize) -> rusqlite::Result<Arc<str>> {
    row.get_ref(index)?.as_str().map(Arc::from).map_err(Into::into)
}

fn span(row: &Row<'_>) -> rusqlite::Result<(Span, i64)> {
    let (first, last) = (unsigned(row, 0)?, unsigned(row, 1)?);
    if first > OPEN || last > OPEN {
        return Err(rusqlite::Error::IntegralValueOutOfRange(0, row.get(0)?));
    }
    Ok((Span::new(first, last), row.get(2)?))
}
