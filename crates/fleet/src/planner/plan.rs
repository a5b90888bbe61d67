//! What a plan is: for every machine what to do, why, and what would change it.

use super::reason::{Reason, Would};
use crate::{
    amount::Amount,
    forecast::Outlook,
    inventory::{Inventory, MachineIndex, WorkloadIndex},
    moment::{Moment, Span},
    policy::Policy,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// All that a plan depends on, besides what the planner remembers.
#[derive(Clone, Copy)]
pub struct Situation<'a> {
    /// Machines and workloads.
    pub inventory: &'a Inventory,
    /// What demand is expected to do; absent if nothing is known.
    pub forecast: Option<&'a dyn Outlook>,
    /// What the operator wants.
    pub policy: &'a Policy,
    /// The time.
    pub now: Moment,
}

/// What a plan leaves for the next one. An empty one is a good start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub(crate) machines: Vec<Remembered>,
    /// When a machine was woken last.
    pub(crate) woken: Option<Moment>,
    /// Since when a group's load has been above what the policy `threshold` allows.
    pub(crate) loaded_since: Vec<Option<Moment>>,
}

/// What is remembered of one machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    /// Since when it could have been done without.
    pub(crate) unneeded_since: Option<Moment>,
    /// When that was found last.
    pub(crate) confirmed: Option<Moment>,
    /// Since when it has been on and not ready.
    pub(crate) unready_since: Option<Moment>,
    /// It could not be emptied; it is not tried again before then.
    pub(crate) blocked: Option<Blocked>,
}

/// What is remembered of a machine when another process goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lasting {
    /// Since when it could have been done without.
    pub(crate) unneeded_since: Option<Moment>,
    /// Since when it has been on and not ready.
    pub(crate) unready_since: Option<Moment>,
}

/// Why a machine could not be emptied, and until when that is believed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Blocked {
    pub(crate) until: Moment,
    pub(crate) would: Would,
}

impl Memory {
    /// What another process has remembered, machine by machine and group by group, as if it had been
    /// found `now`.
    pub(crate) fn lasting_on(
        machines: impl Iterator<Item = Lasting>,
        now: Moment,
        woken: Option<Moment>,
        loaded_since: Vec<Option<Moment>>,
    ) -> Self {
        let remembered = machines.map(|one| Remembered {
            unneeded_since: one.unneeded_since,
            confirmed: one.unneeded_since.map(|_| now),
            unready_since: one.unready_since,
            blocked: None,
        });
        Self {
            machines: remembered.collect(),
            woken,
            loaded_since,
        }
    }

    /// What is remembered of a machine when another process goes on.
    pub(crate) fn lasting(&self, machine: MachineIndex) -> Lasting {
        let remembered = self.machines.get(machine.at());
        remembered.map_or_else(Lasting::default, |one| Lasting {
            unneeded_since: one.unneeded_since,
            unready_since: one.unready_since,
        })
    }

    /// When a machine was woken last.
    pub(crate) fn woken(&self) -> Option<Moment> {
        self.woken
    }

    /// Since when each group's load has been above what is allowed.
    pub(crate) fn loaded_since(&self) -> &[Option<Moment>] {
        &self.loaded_since
    }

    /// The same with a place for every machine and group.
    pub(crate) fn sized(&self, inventory: &Inventory) -> Self {
        let mut memory = self.clone();
        let machines = inventory.machines().len();
        memory.machines.resize(machines, Remembered::default());
        memory.loaded_since.resize(inventory.groups().len(), None);
        memory
    }

    /// Remembers whether a machine can be done without; returns for how long it could have been.
    pub(crate) fn unneeded(&mut self, machine: MachineIndex, now: Moment) -> Span {
        let one = &mut self.machines[machine.at()];
        one.confirmed = Some(now);
        now.since(*one.unneeded_since.get_or_insert(now))
    }

    /// Remembers that a machine cannot be done without right now: that counts once it has been so
    /// for as long as `patience`.
    pub(crate) fn doubted(&mut self, machine: MachineIndex, now: Moment, patience: Span) {
        let one = &mut self.machines[machine.at()];
        if one.confirmed.is_none_or(|at| now.since(at) > patience) {
            one.unneeded_since = None;
        }
    }

    /// Remembers that a machine is needed.
    pub(crate) fn needed(&mut self, machine: MachineIndex) {
        self.machines[machine.at()].unneeded_since = None;
    }
}

/// What is done with a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing.
    Keep,
    /// It is switched on.
    Wake,
    /// It takes no new workloads, and those that may are moved away.
    Drain,
    /// It takes workloads again.
    Undrain,
    /// It is suspended.
    Suspend,
    /// It is switched off.
    PowerOff,
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Keep => "keep",
            Self::Wake => "wake",
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Suspend => "suspend",
            Self::PowerOff => "power off",
        })
    }
}

/// What is done with a machine, why, and what would change it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What is done.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// For a machine that stays awake, under which change it would go to sleep; for one that
    /// sleeps, under which it would wake. Absent where the machine already is on the way.
    pub would: Option<Would>,
}

impl Decision {
    /// Nothing is done, for this reason.
    pub(crate) const fn keep(reason: Reason) -> Self {
        Self {
            action: Action::Keep,
            reason,
            would: None,
        }
    }

    /// Something is done, for this reason.
    pub(crate) const fn act(action: Action, reason: Reason) -> Self {
        Self {
            action,
            reason,
            would: None,
        }
    }

    /// With what would change it.
    pub(crate) const fn unless(mut self, would: Would) -> Self {
        self.would = Some(would);
        self
    }
}

/// A workload and the machine that it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Placement {
    /// The workload.
    pub workload: WorkloadIndex,
    /// The machine.
    pub machine: MachineIndex,
}

/// A workload for which there is no place, awake or asleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unplaced {
    /// The workload.
    pub workload: WorkloadIndex,
    /// The open machine that lacks least, and what it lacks.
    pub nearest: Option<(MachineIndex, Amount)>,
}

/// What to do with a fleet, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// When it was made.
    pub at: Moment,
    /// A decision for every machine, in the order of their indices.
    pub decisions: Vec<Decision>,
    /// Workloads that waited and find room on machines that are on.
    pub placements: Vec<Placement>,
    /// Workloads that wait for machines which wake.
    pub promises: Vec<Placement>,
    /// Workloads that move, so that their machines can sleep.
    pub moves: Vec<Placement>,
    /// Workloads without any place.
    pub unplaced: Vec<Unplaced>,
}

impl Plan {
    /// The decision for a machine.
    pub fn decision(&self, machine: MachineIndex) -> &Decision {
        &self.decisions[machine.at()]
    }

    /// The machines to which something is done.
    pub fn actions(&self) -> impl Iterator<Item = (MachineIndex, Action)> {
        let indexed = self.decisions.iter().enumerate();
        indexed
            .filter(|(_, decision)| decision.action != Action::Keep)
            .map(|(at, decision)| (MachineIndex(at as u32), decision.action))
    }

    /// The machines to which this is done.
    pub fn with(&self, action: Action) -> Vec<MachineIndex> {
        let all = self.actions().filter(|(_, one)| *one == action);
        all.map(|(machine, _)| machine).collect()
    }
}
