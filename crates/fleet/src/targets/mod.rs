//! What the Kubernetes Cluster Autoscaler was promised: crash-safe, and answered from memory.
//!
//! ```text
//!             increase                     its node is seen
//!  (asleep) ──────────▶ creating ─────────────────────────▶ running ◀── (asleep), seen to be on
//!     ▲                   │   ▲      it went off by itself    │
//!     │                   │   └───────────────────────────────┤
//!     │  delete, decrease │                                   │ delete
//!     │                   ▼                                   │
//!     └────────────── deleting ◀──────────────────────────────┘
//!       it is off
//! ```
//!
//! - *creating*: the machine was chosen to be woken. If it cannot be, that is said with it, so that
//!   Cluster Autoscaler tries elsewhere at once.
//! - *running*: its node was seen.
//! - *deleting*: it was given back, and is listed until it is off. If machines are short it may be
//!   promised again meanwhile: it is then woken after it went off.
//!
//! The target size of a group is how many of its machines are creating or running. It has no number
//! of its own, so the two can never disagree. One record for each group is in the store, written
//! under the leader's fence before any call returns, and read back by [`Targets::open`].
//!
//! What a call was answered survives the end of this process, `kill -9` included. It is on disk a
//! fraction of a second later, and in any case before a power action that follows from it is sent,
//! as that is written down in the same store and waits for the disk. If the host loses its power in
//! between, what is read back is a moment before the call: nothing was switched for it yet, and
//! Cluster Autoscaler, which asks for the target size in every loop, asks again for what it needs.
//!
//! What is absent: nothing here switches a machine. Whoever serves the fleet looks at
//! [`Targets::wanted`], carries it out, and tells what it saw by [`Targets::observe`].

mod catalogue;
mod error;
mod ledger;
mod observation;
mod snapshot;

pub use catalogue::{Catalogue, Listed};
pub use error::TargetError;
pub use ledger::{Failure, FailureClass, Phase, QUARANTINE};
pub use observation::{Observed, Seen};
pub use snapshot::{GroupView, Instance, Snapshot, Wanted, Wish};

use crate::{inventory::Power, moment::Moment, power::journal::Leadership};
use ledger::Ledger;
use std::sync::{Arc, PoisonError, RwLock};
use store::{Collection, Revision, Store, StoreError, Stored, Transaction};
use tokio::sync::{Mutex, watch};

/// Below this prefix is one record for each group.
const PREFIX: &str = "fleet/targets";
/// Groups whose records are written in one transaction: below what a store takes, with the
/// leader's condition.
const AT_ONCE: usize = 60;
/// Bytes that are written in one transaction: below what etcd takes.
const BYTES_AT_ONCE: usize = 1 << 20;

/// A node as Cluster Autoscaler names it: also one that never registered, by its instance's id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeName {
    /// `spec.providerID`.
    pub provider_id: String,
    /// `metadata.name`.
    pub name: String,
}

/// The promises of a fleet. Clones share them.
#[derive(Clone)]
pub struct Targets(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    records: Collection<Ledger>,
    leadership: Leadership,
    /// What is written, one change after the other.
    book: Mutex<Book>,
    /// What is answered: as the book was after its last change.
    snapshot: RwLock<Arc<Snapshot>>,
    changes: watch::Sender<u64>,
}

struct Book {
    catalogue: Arc<Catalogue>,
    groups: Vec<Page>,
    /// What each machine's power was when it was seen last.
    powers: Arc<Vec<Option<Power>>>,
    observed: bool,
}

/// A group's record, as it is in the store and in memory.
#[derive(Clone)]
struct Page {
    ledger: Arc<Ledger>,
    modified: Option<Revision>,
    /// Nobody knows whether the last write took effect: it is read anew before the next.
    doubtful: bool,
}

impl Targets {
    /// Reads what was promised before. Promises about machines that are no longer in the
    /// catalogue are forgotten with the next change of their group.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open(
        store: Arc<dyn Store>,
        leadership: Leadership,
        catalogue: Catalogue,
    ) -> Result<Self, TargetError> {
        let records: Collection<Ledger> = Collection::new(store.clone(), PREFIX);
        let (stored, _) = records.list().await?;
        let catalogue = Arc::new(catalogue);
        let mut found: std::collections::HashMap<String, Stored<Ledger>> = stored
            .into_iter()
            .map(|one| (one.id.clone(), one))
            .collect();
        let groups: Vec<Page> = (0..catalogue.groups().len())
            .map(|at| Page::new(found.remove(&catalogue.groups()[at].name), &catalogue, at))
            .collect();
        let powers = Arc::new(vec![None; catalogue.machines().len()]);
        let book = Book {
            catalogue,
            groups,
            powers,
            observed: false,
        };
        let snapshot = RwLock::new(Arc::new(book.snapshot()));
        Ok(Self(Arc::new(Shared {
            store,
            records,
            leadership,
            book: Mutex::new(book),
            snapshot,
            changes: watch::Sender::new(0),
        })))
    }

    /// All of it as it is now. Never waits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let snapshot = self.0.snapshot.read();
        snapshot.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which machines Cluster Autoscaler wants on, and which it gave back.
    pub fn wanted(&self) -> Vec<Wanted> {
        self.snapshot().wanted()
    }

    /// Tells of every change of what is wanted.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Promises so many more machines of a group: all or none. Returns their names, once they are
    /// written down.
    ///
    /// # Errors
    /// When there are not so many, or it could not be written down.
    pub async fn increase(
        &self,
        group: &str,
        delta: i32,
        now: Moment,
    ) -> Result<Vec<String>, TargetError> {
        self.change(group, move |around, ledger| {
            ledger.increase(around, delta, now)
        })
        .await
    }

    /// Gives machines back: all or none. Returns the names of those that were not given back
    /// before. Nodes that never registered, or could not be created, are found by their instance's
    /// id.
    ///
    /// # Errors
    /// When one is not of this group, is never given back, or too few would be left.
    pub async fn delete(
        &self,
        group: &str,
        nodes: Vec<NodeName>,
        now: Moment,
    ) -> Result<Vec<String>, TargetError> {
        self.change(group, move |around, ledger| {
            ledger.delete(around, &nodes, now)
        })
        .await
    }

    /// Takes back so many promises (a negative number) that were not fulfilled yet: all or none.
    /// Returns the machines' names.
    ///
    /// # Errors
    /// When there are not so many: no machine whose node is there is ever touched.
    pub async fn decrease(
        &self,
        group: &str,
        delta: i32,
        now: Moment,
    ) -> Result<Vec<String>, TargetError> {
        self.change(group, move |around, ledger| {
            ledger.decrease(around, delta, now)
        })
        .await
    }

    /// Notes what was seen of machines; those that are not named stay as they are. Call it once
    /// before anything is served, and after every look.
    ///
    /// # Errors
    /// When it could not be written down. It is noted with the next call then.
    pub async fn observe(&self, seen: Vec<Seen>, now: Moment) -> Result<Observed, TargetError> {
        let targets = self.clone();
        detached(async move {
            let mut book = targets.0.book.lock().await;
            let (changed, observed) = observation::observe(&mut book, &seen, now);
            book.observed = true;
            let written = targets.write(&mut book, changed).await;
            targets.find_out(&mut book).await;
            targets.publish(&book, observed.any());
            written.map(|()| observed)
        })
        .await
    }

    /// Takes another catalogue, as after the configuration changed. Promises about machines that
    /// it still has in the same group are kept.
    ///
    /// # Errors
    /// When the store fails; the old catalogue stays then.
    pub async fn replace(&self, catalogue: Catalogue) -> Result<(), TargetError> {
        let targets = self.clone();
        detached(async move {
            let mut book = targets.0.book.lock().await;
            let (stored, _) = targets.0.records.list().await?;
            let mut found: std::collections::HashMap<String, Stored<Ledger>> = stored
                .into_iter()
                .map(|one| (one.id.clone(), one))
                .collect();
            let catalogue = Arc::new(catalogue);
            book.groups = (0..catalogue.groups().len())
                .map(|at| Page::new(found.remove(&catalogue.groups()[at].name), &catalogue, at))
                .collect();
            let before = std::mem::replace(&mut book.catalogue, catalogue);
            let powers = book.catalogue.machines().iter().map(|one| {
                let at = before.named(&one.machine.name)?;
                book.powers.get(at.at()).copied().flatten()
            });
            book.powers = Arc::new(powers.collect());
            targets.publish(&book, true);
            Ok(())
        })
        .await
    }

    /// Changes one group's ledger. It goes on when the caller is gone, so that memory and store
    /// never part.
    async fn change(
        &self,
        group: &str,
        change: impl FnOnce(&ledger::Around<'_>, &mut Ledger) -> Result<Vec<String>, TargetError>
        + Send
        + 'static,
    ) -> Result<Vec<String>, TargetError> {
        let targets = self.clone();
        let group = group.to_owned();
        detached(async move {
            let mut book = targets.0.book.lock().await;
            let Some(at) = book.catalogue.group_named(&group) else {
                return Err(TargetError::UnknownGroup(group));
            };
            targets.make_sure(&mut book, at).await?;
            let mut ledger = Ledger::clone(&book.groups[at].ledger);
            let names = change(&book.around(at), &mut ledger)?;
            if names.is_empty() {
                return Ok(names);
            }
            let written = targets.write(&mut book, vec![(at, ledger)]).await;
            targets.find_out(&mut book).await;
            targets.publish(&book, true);
            written.map(|()| names)
        })
        .await
    }

    /// Writes ledgers, and keeps them in memory once they are written.
    async fn write(
        &self,
        book: &mut Book,
        changed: Vec<(usize, Ledger)>,
    ) -> Result<(), TargetError> {
        let mut rest = changed.into_iter().peekable();
        while rest.peek().is_some() {
            let mut transaction = Transaction {
                conditions: vec![self.0.leadership.held()],
                then: Vec::new(),
            };
            let (mut some, mut bytes) = (Vec::new(), 0);
            while let Some((at, ledger)) = rest
                .next_if(|_| some.is_empty() || some.len() < AT_ONCE && bytes < BYTES_AT_ONCE / 2)
            {
                self.make_sure(book, at).await?;
                let name = book.catalogue.groups()[at].name.clone();
                let put = self.0.records.put(&name, &ledger)?;
                if let store::Operation::Put { value, .. } = &put {
                    bytes += value.len();
                }
                transaction.then.push(put);
                transaction.conditions.push(match book.groups[at].modified {
                    Some(modified) => {
                        store::Condition::Unchanged(self.0.records.key(&name), modified)
                    }
                    None => self.0.records.absent(&name),
                });
                some.push((at, ledger));
            }
            for (at, _) in &some {
                book.groups[*at].doubtful = true;
            }
            // Cluster Autoscaler does not wait for the disk. Power actions do, and what they wrote
            // down is on disk only together with this.
            let outcome = self.0.store.transact_soon(transaction).await?;
            if !outcome.committed() {
                return Err(TargetError::NotLeader);
            }
            for (at, ledger) in some {
                book.groups[at] = Page {
                    ledger: Arc::new(ledger),
                    modified: Some(outcome.revision()),
                    doubtful: false,
                };
            }
        }
        Ok(())
    }

    /// After a write that failed and may have taken effect all the same: what is answered must be
    /// true. If the store cannot be asked now, it is before the next write.
    async fn find_out(&self, book: &mut Book) {
        for at in 0..book.groups.len() {
            if self.make_sure(book, at).await.is_err() {
                break;
            }
        }
    }

    /// Reads a record anew if the last write may or may not have taken effect.
    async fn make_sure(&self, book: &mut Book, at: usize) -> Result<(), StoreError> {
        if book.groups[at].doubtful {
            let name = book.catalogue.groups()[at].name.clone();
            let stored = self.0.records.get(&name).await?;
            book.groups[at] = Page::new(stored, &book.catalogue, at);
        }
        Ok(())
    }

    fn publish(&self, book: &Book, changed: bool) {
        let fresh = Arc::new(book.snapshot());
        let mut snapshot = self
            .0
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *snapshot = fresh;
        drop(snapshot);
        if changed {
            self.0.changes.send_modify(|count| *count += 1);
        }
    }
}

impl Page {
    fn new(stored: Option<Stored<Ledger>>, catalogue: &Catalogue, at: usize) -> Self {
        let modified = stored.as_ref().map(|one| one.modified);
        let mut ledger = stored.map(|one| one.record).unwrap_or_default();
        ledger.forget_strangers(catalogue, at);
        Self {
            ledger: Arc::new(ledger),
            modified,
            doubtful: false,
        }
    }
}

impl Book {
    fn around(&self, at: usize) -> ledger::Around<'_> {
        ledger::Around {
            catalogue: &self.catalogue,
            group: at,
            powers: &self.powers,
        }
    }

    fn snapshot(&self) -> Snapshot {
        let ledgers = self.groups.iter().map(|page| page.ledger.clone());
        Snapshot::new(
            self.catalogue.clone(),
            ledgers.collect(),
            self.powers.clone(),
            self.observed,
        )
    }
}

/// Carries something out even if nobody waits for it any more.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, TargetError>> + Send + 'static,
) -> Result<T, TargetError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(_) => Err(TargetError::Stopping),
    }
}
