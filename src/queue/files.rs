//! What the store's files say before SQLite opens them, and what it would pass over.
//!
//! Promises: after a power cut there is no fault here, wherever the cut falls: it tears what was being written, by whole
//! sectors, and takes nothing back that was synced. All else that makes SQLite go on without acknowledged messages is
//! damage, as far as it can be told from that.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use thiserror::Error;

use super::mark;
use super::pages::{Pages, Value, Walk};
use super::remains;
use super::store::{Column, DATABASE, LOG, LOG_BYTES, SCHEMA_STEP, Store, StoreError};

/// Steps of a walk over a table, so many at most: of the large ones the beginning is looked at.
const WALK_PAGES: usize = 256;
/// What is wrong with the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum LogFault {
    #[error("its write-ahead log is gone or empty")]
    Gone,
    #[error("its write-ahead log was cut short")]
    Short,
    #[error("its write-ahead log is damaged")]
    Damaged,
    #[error("its write-ahead log is another store's")]
    Foreign,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    /// There is no store yet.
    pub is_new: bool,
    pub fault: Option<LogFault>,
}

pub(super) fn has_log(dir: &Path) -> bool {
    fs::metadata(dir.join(LOG)).is_ok_and(|log| log.len() > 0)
}

/// Looks at the files: an empty file is a fine database to SQLite, a log without its database would be deleted, and one
/// that ends early is believed. `was_there`: a store has been here, and was not moved. `is_counted`: its
/// last stop was in order to the end, and it was not opened since.
pub(super) fn look(dir: &Path, was_there: bool, is_counted: bool) -> Result<Found, StoreError> {
    let damaged = |reason: &str| Err(StoreError::Damaged(reason.to_owned()));
    match fs::symlink_metadata(dir.join(DATABASE)) {
        Ok(metadata) if metadata.is_dir() => return damaged("there is a directory in its place"),
        Ok(metadata) if metadata.len() == 0 && was_there => return damaged("it is empty"),
        Ok(_) => {}
        Err(_) if has_log(dir) => return damaged("there is a write-ahead log without its database"),
        Err(_) if was_there => return damaged("it is gone"),
        Err(_) => return Ok(Found { is_new: true, fault: None }),
    }
    let pages = Pages::open(dir, true);
    if !pages.is_writable() {
        return damaged("its head says that it is of another version");
    }
    if !pages.has_tables() {
        // Its making was interrupted before its first commit; a store that has been in use has tables.
        return if was_there { damaged("it is empty") } else { Ok(Found { is_new: true, fault: None }) };
    }
    let said = mark::read(dir);
    // What was closed in order has no log but what its closing could not cut. An older program's store gets its new
    // tables before that counts.
    let is_strange = said.is_closed
        && is_counted
        && pages.has_commits()
        && !is_upgraded(dir, &pages)
        && !mark::is_of_closing(dir, &pages);
    let fault = if is_strange { Some(LogFault::Foreign) } else { log_fault(&pages, said.salt) };
    // After an orderly stop the counts say whether all messages are there; of sessions they say nothing. One whose making
    // was interrupted is SQLite's to mend.
    if fault.is_none() && (has_log(dir) || said.is_closed) {
        look_at_tables(&pages)?;
    }
    Ok(Found { is_new: false, fault })
}

fn is_upgraded(dir: &Path, pages: &Pages) -> bool {
    pages.schema_step() > Pages::open(dir, false).schema_step()
}

fn log_fault(pages: &Pages, marked: Option<u32>) -> Option<LogFault> {
    let fault = match (marked, pages.log_salt) {
        (None, _) => None,
        (Some(_), _) if pages.log_bytes == 0 => Some(LogFault::Gone),
        (Some(_), None) => Some(LogFault::Damaged),
        (Some(marked), Some(salt)) if !mark::is_own(salt, marked) => Some(LogFault::Foreign),
        (Some(_), Some(_)) if pages.log_bytes < LOG_BYTES => Some(LogFault::Short),
        (Some(_), Some(_)) => None,
    };
    fault.or(pages.is_log_damaged.then_some(LogFault::Damaged))
}

/// Pages in each other's place are fine pages to SQLite: it would take an earlier page of messages for the last one.
fn look_at_tables(pages: &Pages) -> Result<(), StoreError> {
    let roots = remains::roots(pages);
    let elsewhere = |name: &str| StoreError::Damaged(format!("a page of table {name} belongs elsewhere"));
    for (name, root) in roots.iter().filter(|(name, _)| name.starts_with("message_")) {
        if pages.last_rowid(*root).is_none() {
            return Err(elsewhere(name));
        }
    }
    misplaced(pages, &roots).map_or(Ok(()), |name| Err(elsewhere(&name)))
}

/// A table with rows that are not its own, or whose root is of another kind of tree: SQLite would take an empty table for
/// the one that says who waits for what. What is swapped with an empty one shows in that.
pub(super) fn misplaced(pages: &Pages, roots: &BTreeMap<String, u32>) -> Option<String> {
    let columns = Store::columns().unwrap_or_default();
    let without_rowid = Store::without_rowid().unwrap_or_default();
    let is_newer = pages.schema_step().is_none_or(|step| i64::from(step) > SCHEMA_STEP);
    let found = roots.iter().find(|(name, root)| {
        let Some(columns) = columns.get(*name) else { return false };
        if pages.is_of_rows(**root) == Some(without_rowid.contains(*name)) {
            return true;
        }
        let mut walk = Walk::new(**root);
        let mut is_its = true;
        for _ in 0..WALK_PAGES {
            if !pages.step(&mut walk, |_, values| is_its &= fits(columns, values, is_newer)) {
                break;
            }
        }
        !is_its
    });
    found.map(|(name, _)| name.clone())
}

/// Whether a row can be one of a table with these columns. An older program wrote fewer, a newer one more.
fn fits(columns: &[Column], values: &[Value], is_newer: bool) -> bool {
    let needed = columns.iter().rposition(|column| column.is_needed).map_or(0, |last| last + 1);
    let is_long_enough = values.len() >= needed && (is_newer || values.len() <= columns.len());
    let has_types = columns.iter().zip(values).all(|(column, value)| match value {
        // The column that is the rowid lies as NULL.
        Value::Null => !column.is_needed,
        Value::Int(_) => column.kind == "INTEGER",
        Value::Text(_) => column.kind == "TEXT",
        Value::Blob(_) => column.kind == "BLOB",
    });
    is_long_enough && has_types
}
