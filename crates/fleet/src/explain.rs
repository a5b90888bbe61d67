//! What was decided about every machine and why, for as long as it may be asked for.
//!
//! A record is written when a decision or its reason changes, and holds until the next one of the
//! same machine. So a quiet machine costs nothing, and still has an answer for every moment of the
//! last 30 days.

use crate::{
    inventory::{Inventory, MachineIndex},
    moment::{Moment, Span},
    planner::{Action, Decision, Plan},
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc};
use store::{Collection, MAX_OPERATIONS, Operation, Range, Store, StoreError, Transaction};

/// Below this prefix are all records: `PREFIX/MACHINE/MOMENT`.
const PREFIX: &str = "fleet/explain";
/// Records are kept for so long.
pub const KEPT: Span = Span::hours(24 * 30);
/// Keys that are read at once.
const PAGE: usize = 500;
/// The most records that one question returns.
pub const MOST_RECORDS: usize = 10_000;

/// What was decided about a machine from a moment on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The machine's name.
    pub machine: String,
    /// Since when it holds.
    pub from: Moment,
    /// What was done.
    pub action: Action,
    /// The reason's name.
    pub reason: String,
    /// The reason in words, as it was then.
    pub because: String,
    /// What would have changed it, in words.
    pub would: Option<String>,
}

impl Record {
    /// What a plan says about a machine.
    pub fn of(inventory: &Inventory, index: MachineIndex, decision: &Decision, at: Moment) -> Self {
        let machine = inventory.machine(index);
        let would = decision.would;
        Self {
            machine: machine.name.clone(),
            from: at,
            action: decision.action,
            reason: decision.reason.name().to_owned(),
            because: decision.reason.sentence(inventory, at),
            would: would.map(|one| one.sentence(inventory, machine.asleep())),
        }
    }

    fn says_the_same(&self, other: &Self) -> bool {
        self.action == other.action && self.reason == other.reason
    }
}

/// The records of a fleet.
pub struct History {
    store: Arc<dyn Store>,
    records: Collection<Record>,
    last: HashMap<String, Record>,
}

impl History {
    /// The history that the store holds, or an empty one.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            records: Collection::new(store.clone(), PREFIX),
            store,
            last: HashMap::new(),
        }
    }

    /// Notes what a plan says anew; returns about how many machines that is.
    ///
    /// # Errors
    /// When the store cannot be written. What was not written is noted with the next plan.
    pub async fn note(&mut self, inventory: &Inventory, plan: &Plan) -> Result<usize, StoreError> {
        let mut fresh = Vec::new();
        for (index, machine) in inventory.enumerate() {
            let decision = plan.decision(index);
            let known = self.last.get(&machine.name).is_some_and(|last| {
                last.action == decision.action && last.reason == decision.reason.name()
            });
            if known {
                continue;
            }
            let record = Record::of(inventory, index, decision, plan.at);
            let before = match self.last.get(&record.machine) {
                Some(last) => Some(last.clone()),
                // After a restart it is looked up once.
                None => self.at(&record.machine, plan.at).await?,
            };
            if before.is_none_or(|before| !before.says_the_same(&record)) {
                fresh.push(record);
            } else {
                self.last.insert(record.machine.clone(), record);
            }
        }
        for some in fresh.chunks(MAX_OPERATIONS) {
            let operations: Result<Vec<Operation>, StoreError> = some
                .iter()
                .map(|record| self.records.put(&id(&record.machine, record.from), record))
                .collect();
            let transaction = Transaction::always(operations?);
            self.store.transact(transaction).await?;
            for record in some {
                self.last.insert(record.machine.clone(), record.clone());
            }
        }
        Ok(fresh.len())
    }

    /// What was decided about a machine between two moments, the oldest first: the record that held
    /// at `from`, and those that followed. At most [`MOST_RECORDS`], the newest.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn between(
        &self,
        machine: &str,
        from: Moment,
        until: Moment,
    ) -> Result<Vec<Record>, StoreError> {
        let mut found: Vec<Record> = Vec::new();
        for record in self.all_of(machine).await? {
            if record.from > until {
                break;
            }
            if record.from <= from {
                found.clear();
            }
            found.push(record);
        }
        let excess = found.len().saturating_sub(MOST_RECORDS);
        Ok(found.split_off(excess))
    }

    /// What held for a machine at a moment.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn at(&self, machine: &str, at: Moment) -> Result<Option<Record>, StoreError> {
        Ok(self.between(machine, at, at).await?.pop())
    }

    async fn all_of(&self, machine: &str) -> Result<Vec<Record>, StoreError> {
        let prefix = format!("{}{machine}/", self.records.prefix());
        let mut range = Range::new(prefix, PAGE);
        let mut all = Vec::new();
        loop {
            let page = self.store.range(range.clone()).await?;
            for entry in &page.entries {
                all.push(self.records.read(entry)?.record);
            }
            range.after = page.entries.last().map(|entry| entry.key.clone());
            if !page.more || range.after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Forgets what is older than [`KEPT`], but for the record of each machine that still holds;
    /// returns how many went.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn prune(&self, now: Moment) -> Result<usize, StoreError> {
        let oldest = now.minus(KEPT);
        let mut range = Range::new(self.records.prefix(), PAGE);
        let mut before: Option<Record> = None;
        let mut gone = 0;
        loop {
            let page = self.store.range(range.clone()).await?;
            let mut operations = Vec::new();
            for entry in &page.entries {
                let record = self.records.read(entry)?.record;
                // A record goes when the one after it is old enough to hold at the oldest moment.
                if let Some(earlier) = before.replace(record.clone())
                    && earlier.machine == record.machine
                    && record.from <= oldest
                {
                    operations.push(self.records.delete(&id(&earlier.machine, earlier.from)));
                }
            }
            gone += operations.len();
            for some in operations.chunks(MAX_OPERATIONS) {
                self.store
                    .transact(Transaction::always(some.to_vec()))
                    .await?;
            }
            range.after = page.entries.last().map(|entry| entry.key.clone());
            if !page.more || range.after.is_none() {
                return Ok(gone);
            }
        }
    }
}

/// Keys sort by their bytes, so moments have a fixed width.
fn id(machine: &str, from: Moment) -> String {
    format!("{machine}/{:012}", from.0)
}
