//! The thread that reads.

use super::schema::{failed, open_for_reading, revisions};
use crate::{Batch, Change, Entry, LeaseId, Page, Range, Revision, StoreError};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};
use std::path::Path;
use tokio::sync::{mpsc, oneshot};

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the thread is asked.
#[derive(Debug)]
pub(super) enum ReadJob {
    Get(String, Reply<Option<Entry>>),
    Range(Range, Reply<Page>),
    Revision(Reply<Revision>),
    /// Changes below a prefix from a revision on.
    Changes(String, Revision, Reply<Changes>),
}

/// A bounded part of the history.
#[derive(Debug)]
pub(super) struct Changes {
    /// What changed below the prefix.
    pub(super) batches: Vec<Batch>,
    /// Where to go on.
    pub(super) next: Revision,
}

/// How many changes are read at once, at least, if there are so many.
const CHANGES_AT_ONCE: usize = 512;

/// How many bytes of values are read at once, at most, but for the last revision.
const BYTES_AT_ONCE: usize = 4 << 20;

/// Puts a question and waits for the answer.
pub(super) async fn ask<T>(
    jobs: &mpsc::Sender<ReadJob>,
    job: impl FnOnce(Reply<T>) -> ReadJob,
) -> Result<T, StoreError> {
    let (reply, answer) = oneshot::channel();
    jobs.send(job(reply))
        .await
        .map_err(|_| StoreError::Closed)?;
    answer.await.map_err(|_| StoreError::Closed)?
}

/// The state of the thread that reads.
pub(super) struct Reader {
    connection: Connection,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            connection: open_for_reading(path)?,
        })
    }

    /// Answers until nobody can ask any more. Whoever asked may have gone: that is fine.
    pub(super) fn run(self, mut jobs: mpsc::Receiver<ReadJob>) {
        while let Some(job) = jobs.blocking_recv() {
            match job {
                ReadJob::Get(key, reply) => drop(reply.send(get(&self.connection, &key))),
                ReadJob::Range(range, reply) => drop(reply.send(self.range(&range))),
                ReadJob::Revision(reply) => {
                    drop(reply.send(revisions(&self.connection).map(|(revision, _)| revision)));
                }
                ReadJob::Changes(prefix, from, reply) => {
                    drop(reply.send(self.changes(&prefix, from)));
                }
            }
        }
    }

    fn range(&self, range: &Range) -> Result<Page, StoreError> {
        // One transaction, so that revision and rows are of one moment.
        let moment = self.connection.unchecked_transaction().map_err(failed)?;
        let (current, compacted) = revisions(&moment)?;
        let at = range.at.unwrap_or(current);
        if at > current {
            return Err(StoreError::Future {
                requested: at,
                current,
            });
        }
        if at < compacted {
            return Err(StoreError::Compacted {
                requested: at,
                compacted,
            });
        }
        let sql = if at == current {
            "SELECT key, value, created, modified, lease FROM entries
             WHERE key >= ?1 AND key > ?2 AND ?3 ORDER BY key"
        } else {
            "SELECT key, value, created, revision, lease FROM changes AS change
             WHERE key >= ?1 AND key > ?2 AND value IS NOT NULL AND revision = (
                 SELECT max(revision) FROM changes WHERE key = change.key AND revision <= ?3
             ) ORDER BY key"
        };
        let after = range.after.as_deref().unwrap_or("");
        let mut statement = moment.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement
            .query((range.prefix.as_str(), after, at.0))
            .map_err(failed)?;
        let mut page = Page {
            entries: Vec::new(),
            revision: at,
            more: false,
        };
        while let Some(row) = rows.next().map_err(failed)? {
            let entry = entry(row).map_err(failed)?;
            if !entry.key.starts_with(&range.prefix) {
                break;
            }
            if page.entries.len() == range.limit {
                page.more = true;
                break;
            }
            page.entries.push(entry);
        }
        Ok(page)
    }

    fn changes(&self, prefix: &str, from: Revision) -> Result<Changes, StoreError> {
        let moment = self.connection.unchecked_transaction().map_err(failed)?;
        let (current, compacted) = revisions(&moment)?;
        if from <= compacted {
            return Err(StoreError::Compacted {
                requested: from,
                compacted,
            });
        }
        let mut statement = moment
            .prepare_cached(
                "SELECT key, value, created, revision, lease FROM changes
                 WHERE revision >= ?1 ORDER BY revision, key",
            )
            .map_err(failed)?;
        let mut rows = statement.query([from.0]).map_err(failed)?;
        let mut batches: Vec<Batch> = Vec::new();
        let (mut seen, mut size, mut last) = (0, 0, Revision(0));
        while let Some(row) = rows.next().map_err(failed)? {
            let revision = Revision(row.get(3).map_err(failed)?);
            if revision != last && (seen >= CHANGES_AT_ONCE || size >= BYTES_AT_ONCE) {
                return Ok(Changes {
                    batches,
                    next: revision,
                });
            }
            last = revision;
            seen += 1;
            let key: &str = row
                .get_ref(0)
                .and_then(|key| Ok(key.as_str()?))
                .map_err(failed)?;
            if !key.starts_with(prefix) {
                continue;
            }
            let deleted = matches!(
                row.get_ref(1).map_err(failed)?,
                rusqlite::types::ValueRef::Null
            );
            let change = if deleted {
                Change::Deleted {
                    key: key.to_owned(),
                }
            } else {
                let entry = entry(row).map_err(failed)?;
                size += entry.value.len();
                Change::Put(entry)
            };
            match batches.last_mut() {
                Some(batch) if batch.revision == revision => batch.changes.push(change),
                _ => batches.push(Batch {
                    revision,
                    changes: vec![change],
                }),
            }
        }
        Ok(Changes {
            batches,
            next: current.next().max(from),
        })
    }
}

/// Reads one key.
pub(super) fn get(connection: &Connection, key: &str) -> Result<Option<Entry>, StoreError> {
    connection
        .prepare_cached("SELECT key, value, created, modified, lease FROM entries WHERE key = ?1")
        .and_then(|mut statement| statement.query_row([key], entry).optional())
        .map_err(failed)
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
        created: Revision(row.get(2)?),
        modified: Revision(row.get(3)?),
        lease: row.get::<_, Option<i64>>(4)?.map(LeaseId),
    })
}
