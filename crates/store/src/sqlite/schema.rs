//! The file: how it is made, recognised and brought up to date.

use crate::{Revision, StoreError};
use rusqlite::{Connection, OpenFlags};
use std::{fs, io, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc, time::Duration};

/// `atol` in ASCII, SQLite's mark of who owns a file.
const APPLICATION: i32 = i32::from_be_bytes(*b"atol");

/// Each brings the schema from the version of its index to the next. Never change one that was
/// released: add another.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE state (
        name TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO state VALUES ('revision', 1), ('compacted', 0);

    -- What is now.
    CREATE TABLE entries (
        key TEXT PRIMARY KEY,
        value BLOB NOT NULL,
        created INTEGER NOT NULL,
        modified INTEGER NOT NULL,
        lease INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX entries_by_lease ON entries (lease) WHERE lease IS NOT NULL;

    -- What happened; no value means that the key was deleted.
    CREATE TABLE changes (
        revision INTEGER NOT NULL,
        key TEXT NOT NULL,
        value BLOB,
        created INTEGER NOT NULL,
        lease INTEGER,
        PRIMARY KEY (revision, key)
    ) WITHOUT ROWID;
    CREATE INDEX changes_by_key ON changes (key, revision);

    CREATE TABLE leases (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        seconds INTEGER NOT NULL
    );
"];

/// A failure of SQLite as callers see it.
pub(super) fn failed(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full,
        _ => StoreError::Backend(Arc::new(error)),
    }
}

/// Opens the file for writing, makes it if there is none, and brings its schema up to date.
pub(super) fn open_for_writing(path: &Path) -> Result<Connection, StoreError> {
    // SQLite gives its companion files the mode of the main one, so that must be right from the
    // start.
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StoreError::Unusable {
                path: path.to_owned(),
                reason: error.to_string(),
            });
        }
        _ => {}
    }
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let unusable = |reason: String| StoreError::Unusable {
        path: path.to_owned(),
        reason,
    };
    let damaged = |error: rusqlite::Error| match failed(error) {
        StoreError::Backend(error) => unusable(error.to_string()),
        other => other,
    };

    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(damaged)?;
    let application: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(damaged)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(damaged)?;
    let empty = version == 0 && tables == 0 && application == 0;
    if !empty && application != APPLICATION {
        return Err(unusable("it belongs to another program".to_owned()));
    }
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > MIGRATIONS.len() {
        return Err(unusable(format!(
            "it was written by a newer Atoll (schema {version}; this one knows {})",
            MIGRATIONS.len()
        )));
    }
    if !empty {
        let check: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(damaged)?;
        if check != "ok" {
            return Err(unusable(format!("it is damaged: {check}")));
        }
    }

    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(damaged)?;
    // Full: what was acknowledged survives a power cut.
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(failed)?;
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let step = connection.transaction().map_err(failed)?;
        step.execute_batch(migration).map_err(failed)?;
        step.pragma_update(None, "application_id", APPLICATION)
            .map_err(failed)?;
        step.pragma_update(None, "user_version", (index + 1) as i64)
            .map_err(failed)?;
        step.commit().map_err(failed)?;
    }
    Ok(connection)
}

/// Opens the file for reading. The writer must have opened it before.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection
        .pragma_update(None, "query_only", true)
        .map_err(failed)?;
    Ok(connection)
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|error| StoreError::Unusable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    connection
        .busy_timeout(Duration::from_secs(5))
        .map_err(failed)?;
    Ok(connection)
}

/// The store's revision, and the last one that was forgotten.
pub(super) fn revisions(connection: &Connection) -> Result<(Revision, Revision), StoreError> {
    let read = |name: &str| {
        connection
            .prepare_cached("SELECT value FROM state WHERE name = ?1")?
            .query_row([name], |row| row.get::<_, u64>(0).map(Revision))
    };
    let revision = read("revision").map_err(failed)?;
    Ok((revision, read("compacted").map_err(failed)?))
}
