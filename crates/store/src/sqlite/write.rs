//! The thread that writes.

use super::{
    SqliteOptions,
    flush::Flushes,
    read::get,
    schema::{failed, open_for_writing, revisions},
};
use crate::{Entry, LeaseId, Operation, Outcome, Revision, StoreError, Transaction, clock::Clock};
use rusqlite::Connection;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{
    mpsc, oneshot,
    watch::{Receiver, Sender},
};

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum WriteJob {
    Transact(Transaction, Durability, Reply<Outcome>),
    Grant(Duration, Reply<LeaseId>),
    KeepAlive(LeaseId, Reply<()>),
    Revoke(LeaseId, Reply<()>),
    Compact(Revision, Reply<()>),
    /// A lease may have ended.
    Expire,
}

impl WriteJob {
    /// Whether its answer can be given before the disk has it.
    fn durability(&self) -> Durability {
        match self {
            Self::Transact(_, durability, _) => *durability,
            // Time is kept in memory alone.
            Self::KeepAlive(..) => Durability::Kernel,
            _ => Durability::Disk,
        }
    }

    /// How many bytes of values it writes.
    fn bytes(&self) -> usize {
        let Self::Transact(transaction, ..) = self else {
            return 0;
        };
        let values = transaction.then.iter().map(|operation| match operation {
            Operation::Put { value, .. } => value.len(),
            Operation::Delete { .. } => 0,
        });
        values.sum()
    }
}

/// What an answer says that something survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// The end of this process.
    Kernel,
    /// That of the machine too.
    Disk,
}

/// History is forgotten when nobody waits, if it can: only if it is so many times as long as it
/// should be is it forgotten while somebody does.
const FAR_TOO_LONG: u64 = 3;

/// So many pages of the log are brought into the database together, and never while somebody waits
/// who cannot wait for the disk.
const CHECKPOINT_PAGES: u32 = 4000;
/// Unless so many bytes were written since the disk was waited for last.
const WRITTEN_AT_MOST: usize = 64 << 20;

/// How many requests share one SQLite transaction at most.
const JOBS_AT_ONCE: usize = 64;

/// Answers a request once it is known whether what it did is on disk.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

fn answer<T: Send + 'static>(reply: Reply<T>, result: Result<T, StoreError>) -> Answer {
    Box::new(move |committed| drop(reply.send(committed.and(result))))
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    time_to_live: Duration,
    deadline: Duration,
}

#[derive(Debug, Clone)]
struct State {
    revision: Revision,
    compacted: Revision,
    leases: BTreeMap<LeaseId, Lease>,
}

/// The state of the thread that writes.
pub(super) struct Writer {
    connection: Connection,
    clock: Arc<dyn Clock>,
    history: u64,
    state: State,
    revision: Sender<Revision>,
    deadline: Sender<Option<Duration>>,
    flushes: Flushes,
    /// What the connection is set to.
    durability: Durability,
    /// Bytes of values since the disk was waited for.
    written: usize,
}

impl Writer {
    pub(super) fn open(
        path: &Path,
        options: SqliteOptions,
        flushes: Flushes,
    ) -> Result<Self, StoreError> {
        let connection = open_for_writing(path)?;
        connection
            .pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
            .map_err(failed)?;
        let (revision, compacted) = revisions(&connection)?;
        let now = options.clock.now();
        let mut leases = BTreeMap::new();
        {
            let mut statement = connection
                .prepare("SELECT id, seconds FROM leases")
                .map_err(failed)?;
            let mut rows = statement.query([]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                let time_to_live = Duration::from_secs(row.get(1).map_err(failed)?);
                let deadline = now.saturating_add(time_to_live);
                leases.insert(
                    LeaseId(row.get(0).map_err(failed)?),
                    Lease {
                        time_to_live,
                        deadline,
                    },
                );
            }
        }
        let deadline = leases.values().map(|lease| lease.deadline).min();
        Ok(Self {
            connection,
            clock: options.clock,
            history: options.history,
            state: State {
                revision,
                compacted,
                leases,
            },
            revision: Sender::new(revision),
            deadline: Sender::new(deadline),
            flushes,
            durability: Durability::Disk,
            written: 0,
        })
    }

    /// Follows the store's revision.
    pub(super) fn revisions(&mut self) -> Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Follows the moment when the next lease may end.
    pub(super) fn deadlines(&mut self) -> Receiver<Option<Duration>> {
        self.deadline.subscribe()
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<WriteJob>) {
        let mut next = None;
        while let Some(first) = next.take().or_else(|| jobs.blocking_recv()) {
            let durability = first.durability();
            let mut batch = vec![first];
            while batch.len() < JOBS_AT_ONCE
                && let Ok(job) = jobs.try_recv()
            {
                if durability == Durability::Kernel && job.durability() == Durability::Disk {
                    // Who waits for the disk keeps nobody waiting who came before.
                    next = Some(job);
                    break;
                }
                batch.push(job);
            }
            self.carry_out(batch, durability);
        }
    }

    /// Says whether commits wait for the disk.
    fn set(&mut self, durability: Durability) -> Result<(), StoreError> {
        if self.durability == durability {
            return Ok(());
        }
        let (synchronous, pages) = match durability {
            Durability::Disk => ("FULL", CHECKPOINT_PAGES),
            Durability::Kernel => ("NORMAL", 0),
        };
        let set = |name, value: &dyn rusqlite::ToSql| {
            self.connection
                .pragma_update(None, name, value)
                .map_err(failed)
        };
        set("synchronous", &synchronous)?;
        set("wal_autocheckpoint", &pages)?;
        self.durability = durability;
        Ok(())
    }

    fn carry_out(&mut self, batch: Vec<WriteJob>, mut durability: Durability) {
        self.written += batch.iter().map(WriteJob::bytes).sum::<usize>();
        if self.written > WRITTEN_AT_MOST || durability == Durability::Disk {
            (durability, self.written) = (Durability::Disk, 0);
        }
        let concerns_leases = batch
            .iter()
            .any(|job| !matches!(job, WriteJob::Transact(..) | WriteJob::Compact(..)));
        let before = self.state.clone();
        let mut answers = Vec::with_capacity(batch.len());
        let set = self.set(durability);
        // If it cannot be set nothing is attempted, and everybody is told.
        let result = match set {
            Ok(()) => self.commit(batch, &mut answers),
            Err(error) => {
                answers.extend(batch.into_iter().filter_map(unanswered));
                Err(error)
            }
        };
        match &result {
            Ok(()) if self.state.revision != before.revision => {
                self.revision.send_replace(self.state.revision);
                if durability == Durability::Kernel {
                    self.flushes.ask();
                }
            }
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%error, "the store could not write");
                self.state = before;
            }
        }
        if concerns_leases {
            let next = self.state.leases.values().map(|lease| lease.deadline).min();
            self.deadline.send_replace(next);
        }
        for answer in answers {
            answer(result.as_ref().copied().map_err(repeat));
        }
    }

    fn commit(
        &mut self,
        batch: Vec<WriteJob>,
        answers: &mut Vec<Answer>,
    ) -> Result<(), StoreError> {
        let Self {
            connection,
            clock,
            history,
            state,
            durability,
            ..
        } = self;
        let step = connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(failed);
        let mut result = Ok(());
        let mut work = match &step {
            Ok(step) => Ok(Work {
                connection: step,
                state,
                now: clock.now(),
            }),
            Err(error) => Err(repeat(error)),
        };
        for job in batch {
            // After a failure the rest is not attempted, but everybody is told.
            let done = match &mut work {
                Ok(work) if result.is_ok() => work.carry_out(job, answers),
                _ => {
                    answers.extend(unanswered(job));
                    Ok(())
                }
            };
            result = result.and(done);
        }
        let mut work = work?;
        result?;
        let length = work.state.revision.0 - work.state.compacted.0;
        let too_long = *history + *history / 4 + 64;
        let waits = *durability == Durability::Kernel;
        if length > too_long && !(waits && length < too_long * FAR_TOO_LONG) {
            work.compact(Revision(work.state.revision.0 - *history))?;
        }
        step?.commit().map_err(failed)
    }
}

/// The same failure once more, for the next of those whom it concerns.
fn repeat(error: &StoreError) -> StoreError {
    match error {
        StoreError::Full => StoreError::Full,
        StoreError::Backend(error) => StoreError::Backend(error.clone()),
        _ => StoreError::Closed,
    }
}

/// The answer to a request that was not attempted because the one before it failed.
fn unanswered(job: WriteJob) -> Option<Answer> {
    let closed = StoreError::Closed;
    match job {
        WriteJob::Transact(_, _, reply) => Some(answer(reply, Err(closed))),
        WriteJob::Grant(_, reply) => Some(answer(reply, Err(closed))),
        WriteJob::KeepAlive(_, reply)
        | WriteJob::Revoke(_, reply)
        | WriteJob::Compact(_, reply) => Some(answer(reply, Err(closed))),
        WriteJob::Expire => None,
    }
}

/// One SQLite transaction under way.
struct Work<'a> {
    connection: &'a Connection,
    state: &'a mut State,
    now: Duration,
}

impl Work<'_> {
    /// Does what a request asks. A request that is refused is answered and no failure; a failure
    /// of SQLite undoes the whole batch.
    fn carry_out(&mut self, job: WriteJob, answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        match job {
            WriteJob::Transact(transaction, _, reply) => {
                let result = self.transact(&transaction);
                settle(result, reply, answers)
            }
            WriteJob::Grant(time_to_live, reply) => {
                let result = self.grant(time_to_live);
                settle(result, reply, answers)
            }
            WriteJob::KeepAlive(lease, reply) => {
                let now = self.now;
                let result = match self.state.leases.get_mut(&lease) {
                    Some(lease) if lease.deadline > now => {
                        lease.deadline = now.saturating_add(lease.time_to_live);
                        Ok(())
                    }
                    _ => Err(StoreError::LeaseNotFound(lease)),
                };
                settle(result, reply, answers)
            }
            WriteJob::Revoke(lease, reply) => {
                let result = match self.state.leases.contains_key(&lease) {
                    true => self.end([lease].into()),
                    false => Err(StoreError::LeaseNotFound(lease)),
                };
                settle(result, reply, answers)
            }
            WriteJob::Compact(revision, reply) => {
                let result = if revision > self.state.revision {
                    Err(StoreError::Future {
                        requested: revision,
                        current: self.state.revision,
                    })
                } else if revision <= self.state.compacted {
                    Err(StoreError::Compacted {
                        requested: revision,
                        compacted: self.state.compacted,
                    })
                } else {
                    self.compact(revision)
                };
                settle(result, reply, answers)
            }
            WriteJob::Expire => {
                let now = self.now;
                let due = self
                    .state
                    .leases
                    .iter()
                    .filter(|(_, lease)| lease.deadline <= now);
                let due: Vec<LeaseId> = due.map(|(id, _)| *id).collect();
                due.into_iter()
                    .try_for_each(|lease| self.end([lease].into()))
            }
        }
    }

    fn transact(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let mut current: Vec<Option<Entry>> = Vec::with_capacity(transaction.conditions.len());
        for condition in &transaction.conditions {
            current.push(get(self.connection, condition.key())?);
        }
        let mut pairs = transaction.conditions.iter().zip(&current);
        if !pairs.all(|(condition, entry)| condition.holds(entry.as_ref())) {
            return Ok(Outcome::Refused {
                revision: self.state.revision,
                current,
            });
        }
        // Before the first write: a refusal must leave nothing behind.
        for operation in &transaction.then {
            if let Operation::Put {
                lease: Some(lease), ..
            } = operation
                && self
                    .state
                    .leases
                    .get(lease)
                    .is_none_or(|lease| lease.deadline <= self.now)
            {
                return Err(StoreError::LeaseNotFound(*lease));
            }
        }
        let next = self.state.revision.next();
        let mut changed = false;
        for operation in &transaction.then {
            changed |= match operation {
                Operation::Put { key, value, lease } => {
                    self.put(next, key, value, *lease)?;
                    true
                }
                Operation::Delete { key } => self.delete(next, key)?,
            };
        }
        if changed {
            self.advance(next)?;
        }
        Ok(Outcome::Committed {
            revision: self.state.revision,
        })
    }

    fn put(
        &self,
        revision: Revision,
        key: &str,
        value: &[u8],
        lease: Option<LeaseId>,
    ) -> Result<(), StoreError> {
        let lease = lease.map(|lease| lease.0);
        let created = get(self.connection, key)?.map_or(revision, |entry| entry.created);
        let run = |sql: &str| {
            self.connection
                .prepare_cached(sql)?
                .execute((key, value, created.0, revision.0, lease))
        };
        run(
            "INSERT OR REPLACE INTO entries (key, value, created, modified, lease)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )
        .and_then(|_| {
            run("INSERT INTO changes (key, value, created, revision, lease)
                 VALUES (?1, ?2, ?3, ?4, ?5)")
        })
        .map(drop)
        .map_err(failed)
    }

    fn delete(&self, revision: Revision, key: &str) -> Result<bool, StoreError> {
        let removed = self
            .connection
            .prepare_cached("DELETE FROM entries WHERE key = ?1")
            .and_then(|mut statement| statement.execute([key]))
            .map_err(failed)?;
        if removed == 0 {
            return Ok(false);
        }
        self.connection
            .prepare_cached("INSERT INTO changes (key, created, revision) VALUES (?1, 0, ?2)")
            .and_then(|mut statement| statement.execute((key, revision.0)))
            .map_err(failed)?;
        Ok(true)
    }

    fn advance(&mut self, revision: Revision) -> Result<(), StoreError> {
        self.set("revision", revision)?;
        self.state.revision = revision;
        Ok(())
    }

    fn set(&self, name: &str, revision: Revision) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE state SET value = ?2 WHERE name = ?1")
            .and_then(|mut statement| statement.execute((name, revision.0)))
            .map(drop)
            .map_err(failed)
    }

    fn grant(&mut self, time_to_live: Duration) -> Result<LeaseId, StoreError> {
        self.connection
            .prepare_cached("INSERT INTO leases (seconds) VALUES (?1)")
            .and_then(|mut statement| {
                statement.insert([i64::try_from(time_to_live.as_secs()).unwrap_or(i64::MAX)])
            })
            .map(|id| {
                let deadline = self.now.saturating_add(time_to_live);
                self.state.leases.insert(
                    LeaseId(id),
                    Lease {
                        time_to_live,
                        deadline,
                    },
                );
                LeaseId(id)
            })
            .map_err(failed)
    }

    /// Ends leases and deletes their keys.
    fn end(&mut self, leases: BTreeSet<LeaseId>) -> Result<(), StoreError> {
        let next = self.state.revision.next();
        let mut changed = false;
        for lease in leases {
            let keys: Vec<String> = self
                .connection
                .prepare_cached("SELECT key FROM entries WHERE lease = ?1")
                .and_then(|mut statement| {
                    statement.query_map([lease.0], |row| row.get(0))?.collect()
                })
                .map_err(failed)?;
            for key in keys {
                changed |= self.delete(next, &key)?;
            }
            self.connection
                .prepare_cached("DELETE FROM leases WHERE id = ?1")
                .and_then(|mut statement| statement.execute([lease.0]))
                .map_err(failed)?;
            self.state.leases.remove(&lease);
        }
        if changed { self.advance(next) } else { Ok(()) }
    }

    /// Forgets the history up to `revision`, but for what is needed to read at it.
    fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        // Two steps: were deletions forgotten together with what they superseded, that could
        // come back to life.
        for sql in [
            "DELETE FROM changes WHERE revision <= ?1 AND EXISTS (
                 SELECT 1 FROM changes AS later WHERE later.key = changes.key
                 AND later.revision > changes.revision AND later.revision <= ?1)",
            "DELETE FROM changes WHERE revision <= ?1 AND value IS NULL",
        ] {
            self.connection
                .prepare_cached(sql)
                .and_then(|mut statement| statement.execute([revision.0]))
                .map_err(failed)?;
        }
        self.set("compacted", revision)?;
        self.state.compacted = revision;
        Ok(())
    }
}

/// Queues the answer to a request that was carried out or refused; passes a failure on.
fn settle<T: Send + 'static>(
    result: Result<T, StoreError>,
    reply: Reply<T>,
    answers: &mut Vec<Answer>,
) -> Result<(), StoreError> {
    let failure = match &result {
        Err(error @ (StoreError::Full | StoreError::Backend(_))) => Err(repeat(error)),
        _ => Ok(()),
    };
    answers.push(answer(reply, result));
    failure
}
