//! What is asked for, and where it runs: the interface to whoever schedules work.

use crate::{
    amount::Amount,
    inventory::{Moving, Set},
    moment::Moment,
};
use std::collections::BTreeMap;

/// Reads what is asked for. Every call ends within a deadline of its own.
#[async_trait::async_trait]
pub trait Source: Send + Sync {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// All that is asked for now.
    ///
    /// # Errors
    /// When it cannot be read. Nothing is planned without it.
    async fn read(&self) -> Result<Demand, SourceError>;

    /// Whether a machine carries work, looked at anew. `None` if nobody can tell.
    async fn carries_work(&self, machine: &str) -> Option<bool> {
        let demand = self.read().await.ok()?;
        let carried = |one: &Asked| one.machine.as_deref() == Some(machine);
        Some(demand.workloads.iter().any(carried))
    }

    /// Whether work can be kept away from a machine and moved.
    fn moves_work(&self) -> bool {
        false
    }

    /// Keeps new work away from a machine, or lets it come again. Safe to repeat.
    ///
    /// # Errors
    /// When it could not be done.
    async fn close(&self, _machine: &str, _closed: bool) -> Result<(), SourceError> {
        Ok(())
    }

    /// Forgets the node of a machine that sleeps, so that nobody takes it for a broken one, and what
    /// was said of it when it was given back does not hold when it wakes. Safe to repeat.
    ///
    /// # Errors
    /// When it could not be done.
    async fn forget(&self, _machine: &str) -> Result<(), SourceError> {
        Ok(())
    }

    /// Says of the nodes of machines whether those sleep on purpose, so that nobody takes them for
    /// broken ones. Safe to repeat. Returns what went wrong, by machine.
    async fn mark(&self, _asleep: &[(&str, bool)], _now: Moment) -> Vec<(String, SourceError)> {
        Vec::new()
    }

    /// Asks for a workload to be moved away from where it runs. Safe to repeat.
    ///
    /// # Errors
    /// When it was refused or could not be asked.
    async fn evict(&self, _workload: &str) -> Result<(), SourceError> {
        Err(SourceError(format!("{} cannot move work", self.name())))
    }
}

/// Why a source could not be read, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// All that is asked for at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Demand {
    /// Workloads that run or wait.
    pub workloads: Vec<Asked>,
    /// Rules that several of them share.
    pub sets: Vec<Set>,
    /// What is known of nodes, by the names of their machines. A node that is missing is judged by
    /// whether it answers.
    pub nodes: BTreeMap<String, NodeFacts>,
}

/// A workload that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its name, unique.
    pub name: String,
    /// What it asks for.
    pub request: Amount,
    /// The machine that it runs on; absent while it waits.
    pub machine: Option<String>,
    /// Whether it may be moved.
    pub moving: Moving,
    /// The name of the set whose rules it follows.
    pub set: Option<String>,
}

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeFacts {
    /// Whether it takes work.
    pub ready: bool,
    /// Whether somebody asked for its machine to be left on.
    pub hold: bool,
}

/// Nothing is known of any workload: for fleets whose every group somebody else plans.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDemand;

#[async_trait::async_trait]
impl Source for NoDemand {
    fn name(&self) -> &'static str {
        "nothing"
    }

    async fn read(&self) -> Result<Demand, SourceError> {
        Ok(Demand::default())
    }

    async fn carries_work(&self, _: &str) -> Option<bool> {
        None
    }
}
