//! A store in one SQLite file.
//!
//! One thread owns the connection that writes, another one that reads; callers speak to them
//! through bounded queues, so that no file is touched on an async thread. The writer takes what
//! has queued up into one SQLite transaction, so that concurrent callers share the `fsync`.
//!
//! What is to be there soon is committed to the log without an `fsync`, so it is the kernel's and
//! outlives the process. A third thread brings the log to the disk a moment later. The log is read
//! back as far as it is whole, and every `fsync` of it covers all that was written before, so what
//! is on disk never lacks what came earlier.

mod flush;
mod read;
mod schema;
mod watch;
mod write;

use crate::{
    Entry, LeaseId, Outcome, Page, Range, Revision, Store, StoreError, Transaction, Watch,
    clock::{Clock, SystemClock},
    store::validate_key,
};
use read::{ReadJob, Reader};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch as channel};
use write::{Durability, WriteJob, Writer};

/// How many requests may wait for one of the two threads.
const QUEUE: usize = 1024;

/// How a store is opened.
#[derive(Clone)]
pub struct SqliteOptions {
    /// What leases are timed by.
    pub clock: Arc<dyn Clock>,
    /// How many revisions of history are kept, for watches to resume from.
    pub history: u64,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            history: 10_000,
        }
    }
}

/// A store in one SQLite file. Its threads end when it is dropped.
#[derive(Debug)]
pub struct SqliteStore {
    writes: mpsc::Sender<WriteJob>,
    reads: mpsc::Sender<ReadJob>,
    revision: channel::Receiver<Revision>,
}

impl SqliteStore {
    /// Opens the store at `path`, and makes it (readable by its owner alone) if there is none.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, SqliteOptions::default()).await
    }

    /// Opens the store with options of one's own.
    pub async fn open_with(
        path: impl AsRef<Path>,
        options: SqliteOptions,
    ) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let clock = options.clock.clone();
        let (flushes, flush_jobs) = flush::channel();
        let log = flush::log_of(&path);
        let (mut writer, reader) = tokio::task::spawn_blocking(move || {
            let writer = Writer::open(&path, options, flushes)?;
            Ok::<_, StoreError>((writer, Reader::open(&path)?))
        })
        .await
        .map_err(|_| StoreError::Closed)??;

        let (writes, write_jobs) = mpsc::channel(QUEUE);
        let (reads, read_jobs) = mpsc::channel(QUEUE);
        let revision = writer.revisions();
        let deadlines = writer.deadlines();
        spawn("store-writer", move || writer.run(write_jobs))?;
        spawn("store-reader", move || reader.run(read_jobs))?;
        spawn("store-flusher", move || flush::run(&log, &flush_jobs))?;
        tokio::spawn(expire_leases(clock, deadlines, writes.downgrade()));
        Ok(Self {
            writes,
            reads,
            revision,
        })
    }

    async fn write<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> WriteJob,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writes
            .send(job(reply))
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

/// Brings what is in the log of the store at `path` into its file, so that the log takes no room.
/// The store may be open. Blocks.
pub fn write_back(path: impl AsRef<Path>) -> Result<(), StoreError> {
    let connection = schema::open_for_writing(path.as_ref())?;
    let busy: i64 = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .map_err(schema::failed)?;
    // Somebody reads: the log stays, and loses nothing.
    if busy != 0 {
        tracing::debug!("the store's log is not written back: it is being read");
    }
    Ok(())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder
        .spawn(run)
        .map(drop)
        .map_err(|error| StoreError::Backend(Arc::new(error)))
}

/// Tells the writer whenever a lease may have ended. Ends with the writer.
async fn expire_leases(
    clock: Arc<dyn Clock>,
    mut deadlines: channel::Receiver<Option<Duration>>,
    writes: mpsc::WeakSender<WriteJob>,
) {
    loop {
        let deadline = *deadlines.borrow_and_update();
        let sleep = async {
            match deadline {
                Some(deadline) => clock.sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = deadlines.changed() => if changed.is_err() { return },
            () = sleep => {
                let Some(writes) = writes.upgrade() else { return };
                if writes.send(WriteJob::Expire).await.is_err() {
                    return;
                }
                drop(writes);
                // The writer publishes the next deadline once it has looked.
                if deadlines.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

#[async_trait::async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        validate_key(key)?;
        let key = key.to_owned();
        read::ask(&self.reads, |reply| ReadJob::Get(key, reply)).await
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        if range.limit == 0 {
            return Err(StoreError::Invalid(
                "a range has a limit of at least 1".to_owned(),
            ));
        }
        read::ask(&self.reads, |reply| ReadJob::Range(range, reply)).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        transaction.validate()?;
        self.write(|reply| WriteJob::Transact(transaction, Durability::Disk, reply))
            .await
    }

    async fn transact_soon(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        transaction.validate()?;
        self.write(|reply| WriteJob::Transact(transaction, Durability::Kernel, reply))
            .await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        Ok(watch::watch(
            prefix.to_owned(),
            from,
            self.reads.clone(),
            self.revision.clone(),
        ))
    }

    async fn grant(&self, time_to_live: Duration) -> Result<LeaseId, StoreError> {
        if time_to_live < Duration::from_secs(1) || time_to_live.subsec_nanos() != 0 {
            return Err(StoreError::Invalid(
                "a lease lives for whole seconds, at least one".to_owned(),
            ));
        }
        self.write(|reply| WriteJob::Grant(time_to_live, reply))
            .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.write(|reply| WriteJob::KeepAlive(lease, reply)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.write(|reply| WriteJob::Revoke(lease, reply)).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        read::ask(&self.reads, ReadJob::Revision).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.write(|reply| WriteJob::Compact(revision, reply)).await
    }
}
