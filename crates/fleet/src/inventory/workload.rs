//! What runs on machines: workloads, and the rules that their sets have in common.

use super::machine::{MachineIndex, Taint};
use crate::{amount::Amount, moment::Moment};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// A workload's place in its inventory. Places are used again after a workload ended.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct WorkloadIndex(pub u32);

/// A set's place in its inventory.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct SetIndex(pub u32);

impl WorkloadIndex {
    /// As an index of slices.
    pub const fn at(self) -> usize {
        self.0 as usize
    }
}

impl SetIndex {
    /// As an index of slices.
    pub const fn at(self) -> usize {
        self.0 as usize
    }
}

/// Whether a workload may be moved to another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Moving {
    /// It may: it is started elsewhere, or paused and resumed there.
    #[default]
    Free,
    /// It stays until it is done by itself.
    OnCompletion,
    /// It has files on the machine that would be lost.
    LocalState,
    /// Its owner forbids it.
    Never,
}

impl fmt::Display for Moving {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Free => "may move",
            Self::OnCompletion => "stays until it is done",
            Self::LocalState => "has local state",
            Self::Never => "must not be moved",
        })
    }
}

/// A sandbox, pod or replica: it runs on a machine, or waits for one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub request: Amount,
    /// The set that it is one of.
    pub set: Option<SetIndex>,
    /// Whether it may be moved.
    pub moving: Moving,
    /// Since when it waits or runs.
    pub since: Moment,
    /// Where it runs; absent while it waits.
    pub machine: Option<MachineIndex>,
}

impl Workload {
    /// A workload that waits, and may be moved.
    pub fn new(name: impl Into<String>, request: Amount) -> Self {
        Self {
            name: name.into(),
            request,
            set: None,
            moving: Moving::Free,
            since: Moment(0),
            machine: None,
        }
    }
}

/// How the members of a set are spread over the values of a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// The label, such as `zone`.
    pub label: String,
    /// How many more members one value may have than another.
    pub skew: u32,
}

/// Workloads that are replicas of one thing, and the rules that they share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Labels that a machine must have.
    pub labels: BTreeMap<String, String>,
    /// Taints that it tolerates; an empty value tolerates every value of the key.
    pub tolerations: Vec<Taint>,
    /// Whether no two members may share a machine.
    pub apart: bool,
    /// How members are spread.
    pub spread: Option<Spread>,
    /// The set whose members it must share a machine with.
    pub near: Option<SetIndex>,
    /// How many members may be missing at once; absent if any number may.
    pub disruptions: Option<u32>,
}

impl Set {
    /// A set without rules.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Whether where its members are matters to where others go.
    pub fn looks_at_others(&self) -> bool {
        self.apart || self.spread.is_some() || self.near.is_some()
    }

    /// Whether a machine's labels and taints suit it.
    pub fn suits(&self, labels: &BTreeMap<String, String>, taints: &[Taint]) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && taints.iter().all(|taint| self.tolerates(taint))
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations
            .iter()
            .any(|one| one.key == taint.key && (one.value.is_empty() || one.value == taint.value))
    }
}
