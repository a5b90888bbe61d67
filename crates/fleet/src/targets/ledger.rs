//! One group's promises, and how each request changes them: pure, so that it can be tried on a copy.

use super::{Catalogue, NodeName, TargetError};
use crate::{
    inventory::{MachineIndex, Power, Role},
    moment::{Moment, Span},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A machine that did not come up, or was given back before it did, is not chosen again before this
/// time is over.
pub const QUARANTINE: Span = Span::minutes(30);

/// Where a machine is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Promised; its node was not seen yet.
    Creating,
    /// Its node was seen.
    Running,
    /// Given back, and not off yet.
    Deleting,
    /// Given back and promised again: it is woken after it went off.
    Returning,
}

/// What kind of failure it is, as Cluster Autoscaler tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// There is no more of it.
    OutOfResources,
    /// Anything else.
    Other,
}

/// Why a machine does not come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind it is.
    pub class: FailureClass,
    /// A word for programs; never empty.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A machine that was promised or given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) phase: Phase,
    pub(super) since: Moment,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<Failure>,
}

/// What a change may look at.
pub(super) struct Around<'a> {
    pub(super) catalogue: &'a Catalogue,
    pub(super) group: usize,
    pub(super) powers: &'a [Option<Power>],
}

impl Around<'_> {
    fn name(&self) -> String {
        self.catalogue.groups()[self.group].name.clone()
    }

    fn power(&self, machine: MachineIndex) -> Option<Power> {
        self.powers.get(machine.at()).copied().flatten()
    }

    fn is_base(&self, machine: &str) -> bool {
        let index = self.catalogue.named(machine);
        index.is_some_and(|one| self.catalogue.machine(one).machine.role == Role::Base)
    }
}

/// One group's promises.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    members: BTreeMap<String, Member>,
    /// When machines that did not come up failed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    failed: BTreeMap<String, Moment>,
}

impl Ledger {
    /// How many machines are promised.
    pub(super) fn target(&self) -> usize {
        let members = self.members.values();
        members.filter(|one| one.phase != Phase::Deleting).count()
    }

    /// All machines that are promised or given back, with their names.
    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.members.iter().map(|(name, one)| (name.as_str(), one))
    }

    /// A machine that is promised or given back.
    pub(super) fn member(&self, machine: &str) -> Option<&Member> {
        self.members.get(machine)
    }

    /// Brings a machine into a phase.
    pub(super) fn enter(&mut self, machine: &str, phase: Phase, now: Moment) {
        let member = Member {
            phase,
            since: now,
            failure: None,
        };
        self.members.insert(machine.to_owned(), member);
    }

    /// A machine does not come.
    pub(super) fn failed(&mut self, machine: &str, failure: Failure, now: Moment) {
        self.failed.insert(machine.to_owned(), now);
        if let Some(member) = self.members.get_mut(machine) {
            member.failure = Some(failure);
        }
    }

    /// A machine came after all.
    pub(super) fn recovered(&mut self, machine: &str) {
        self.failed.remove(machine);
    }

    /// A machine that was given back is off: it is forgotten, or woken if it was promised again.
    pub(super) fn went_off(&mut self, machine: &str, now: Moment) {
        match self.members.get(machine).map(|one| one.phase) {
            Some(Phase::Returning) => self.enter(machine, Phase::Creating, now),
            _ => {
                self.members.remove(machine);
            }
        }
    }

    /// Forgets machines that are not in the group any more.
    pub(super) fn forget_strangers(&mut self, catalogue: &Catalogue, group: usize) {
        let ours = |name: &String| {
            let index = catalogue.named(name);
            index.is_some_and(|one| catalogue.machine(one).machine.group.at() == group)
        };
        self.members.retain(|name, _| ours(name));
        self.failed.retain(|name, _| ours(name));
    }

    /// The machines that can be promised, the best first: those that are awake or waking anyway,
    /// then suspended ones, then those that draw least for what they hold and boot soonest. Those
    /// that were just given back come last, as they have to go off first.
    pub(super) fn candidates(&self, around: &Around<'_>, now: Moment) -> Vec<MachineIndex> {
        let members = around.catalogue.members(around.group).iter().copied();
        let free = members.filter(|index| {
            let name = &around.catalogue.machine(*index).machine.name;
            let phase = self.member(name).map(|one| one.phase);
            matches!(phase, None | Some(Phase::Deleting)) && !self.rests(name, now)
        });
        let mut free: Vec<_> = free
            .map(|index| (self.rank(around, index), index))
            .collect();
        free.sort_unstable();
        free.into_iter().map(|(_, index)| index).collect()
    }

    /// A machine's rank among those that can be promised; the least is the best.
    fn rank(&self, around: &Around<'_>, index: MachineIndex) -> (bool, u8, u64, u64) {
        let machine = &around.catalogue.machine(index).machine;
        let awake = match around.power(index) {
            Some(Power::On | Power::Waking) => 0,
            Some(Power::Suspended) => 1,
            Some(Power::Off) | None => 2,
            Some(Power::Stopping) => 3,
        };
        let processors = machine.capacity.cpu_millis.max(1) as f64;
        let micro_watts = (machine.watts.peak * 1e6 / processors) as u64;
        let given_back = self.member(&machine.name).is_some();
        (given_back, awake, micro_watts, machine.boot.median().0)
    }

    fn rests(&self, machine: &str, now: Moment) -> bool {
        let failed = self.failed.get(machine);
        failed.is_some_and(|at| now.since(*at) < QUARANTINE)
    }

    /// Promises so many more machines; returns their names.
    pub(super) fn increase(
        &mut self,
        around: &Around<'_>,
        delta: i32,
        now: Moment,
    ) -> Result<Vec<String>, TargetError> {
        let asked = usize::try_from(delta).ok().filter(|count| *count > 0);
        let asked = asked.ok_or(TargetError::Delta {
            what: "scale-up",
            delta,
            must: "positive",
        })?;
        let (wanted, max) = (self.target().saturating_add(asked), self.most(around));
        if wanted > max {
            return Err(TargetError::AboveMax {
                group: around.name(),
                wanted,
                max,
            });
        }
        if around.catalogue.groups()[around.group].atomic && wanted != max {
            return Err(TargetError::Atomic(around.name()));
        }
        self.failed.retain(|_, at| now.since(*at) < QUARANTINE);
        let candidates = self.candidates(around, now);
        if candidates.len() < asked {
            return Err(TargetError::TooFew {
                group: around.name(),
                asked,
                free: candidates.len(),
                failed: self.failed.len(),
            });
        }
        let chosen = candidates.into_iter().take(asked);
        let names: Vec<String> = chosen
            .map(|index| around.catalogue.machine(index).machine.name.clone())
            .collect();
        for name in &names {
            let phase = match self.member(name) {
                Some(_) => Phase::Returning,
                None => Phase::Creating,
            };
            self.enter(name, phase, now);
        }
        Ok(names)
    }

    fn most(&self, around: &Around<'_>) -> usize {
        around.catalogue.most(around.group)
    }

    /// Gives machines back; returns the names of those that were not before.
    pub(super) fn delete(
        &mut self,
        around: &Around<'_>,
        nodes: &[NodeName],
        now: Moment,
    ) -> Result<Vec<String>, TargetError> {
        let mut chosen = BTreeSet::new();
        for node in nodes {
            let index = self.machine_of(around, node)?;
            let machine = &around.catalogue.machine(index).machine;
            let phase = self.member(&machine.name).map(|one| one.phase);
            if machine.role == Role::Base && phase == Some(Phase::Running) {
                return Err(TargetError::Base(machine.name.clone()));
            }
            match phase {
                Some(Phase::Deleting) => {}
                Some(_) => {
                    chosen.insert(machine.name.clone());
                }
                // It sleeps already, as when the same is asked again after the machine went off.
                None if around.power(index).is_some() => {}
                None => return Err(TargetError::NotSeenYet(machine.name.clone())),
            }
        }
        // What was never there is not missed, and must not be kept: the next try needs its place.
        let failed = |name: &&String| self.member(name).is_some_and(|one| one.failure.is_some());
        let missed = chosen.iter().filter(|name| !failed(name)).count();
        let (target, min) = (self.target(), around.catalogue.least(around.group));
        let left = target - chosen.len();
        let atomic = around.catalogue.groups()[around.group].atomic;
        if atomic && missed > 0 && left > 0 {
            return Err(TargetError::Atomic(around.name()));
        }
        if missed > 0 && left < min {
            return Err(TargetError::BelowMin {
                group: around.name(),
                left,
                min,
            });
        }
        for name in &chosen {
            // Who gives up on a machine must not be given the same one again at once.
            if self.member(name).map(|one| one.phase) == Some(Phase::Creating) {
                self.failed.insert(name.clone(), now);
            }
            self.release(around, name, now);
        }
        Ok(chosen.into_iter().collect())
    }

    fn machine_of(
        &self,
        around: &Around<'_>,
        node: &NodeName,
    ) -> Result<MachineIndex, TargetError> {
        let Some(index) = around.catalogue.find(&node.provider_id, &node.name) else {
            let mut name = node.provider_id.clone();
            if name.is_empty() {
                name.clone_from(&node.name);
            }
            return Err(TargetError::UnknownNode(name));
        };
        let machine = &around.catalogue.machine(index).machine;
        if machine.group.at() != around.group {
            return Err(TargetError::OtherGroup {
                machine: machine.name.clone(),
                group: around.catalogue.groups()[machine.group.at()].name.clone(),
                asked: around.name(),
            });
        }
        Ok(index)
    }

    /// Takes so many promises back that were not fulfilled; returns the machines' names. Those
    /// that failed go first, then those that would take longest.
    pub(super) fn decrease(
        &mut self,
        around: &Around<'_>,
        delta: i32,
        now: Moment,
    ) -> Result<Vec<String>, TargetError> {
        if delta >= 0 {
            return Err(TargetError::Delta {
                what: "decrease of the target size",
                delta,
                must: "negative",
            });
        }
        let asked = delta.unsigned_abs() as usize;
        let mut open: Vec<_> = self
            .members
            .iter()
            .filter(|(_, one)| matches!(one.phase, Phase::Creating | Phase::Returning))
            .map(|(name, one)| {
                let power = around.catalogue.named(name).and_then(|at| around.power(at));
                let begun = matches!(power, Some(Power::On | Power::Waking));
                let order = (one.failure.is_none(), one.phase == Phase::Creating && begun);
                (order, std::cmp::Reverse(one.since), name.clone())
            })
            .collect();
        if open.len() < asked {
            return Err(TargetError::Fulfilled {
                group: around.name(),
                asked,
                open: open.len(),
            });
        }
        open.sort_unstable();
        let names: Vec<String> = open
            .into_iter()
            .take(asked)
            .map(|(_, _, name)| name)
            .collect();
        for name in &names {
            self.release(around, name, now);
        }
        Ok(names)
    }

    /// Takes a promise back. A machine that is never switched off is only promised no longer, until
    /// its node is seen.
    fn release(&mut self, around: &Around<'_>, machine: &str, now: Moment) {
        if around.is_base(machine) {
            self.members.remove(machine);
        } else {
            self.enter(machine, Phase::Deleting, now);
        }
    }
}
