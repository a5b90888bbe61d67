//! What is answered: all groups as they were after the last change.

use super::{
    Catalogue,
    ledger::{Around, Failure, Ledger, Phase},
};
use crate::{
    inventory::{Group, MachineIndex, Power},
    moment::Moment,
};
use std::sync::Arc;

/// What Cluster Autoscaler wants of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wish {
    /// It is on, and stays on.
    On,
    /// It is no longer needed: it may be switched off as soon as it carries nothing.
    GivenBack,
}

/// A machine of which Cluster Autoscaler wants something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub machine: String,
    /// Its group's name.
    pub group: String,
    /// What is wanted.
    pub wish: Wish,
    /// Since when.
    pub since: Moment,
}

/// All groups at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    catalogue: Arc<Catalogue>,
    ledgers: Vec<Arc<Ledger>>,
    powers: Arc<Vec<Option<Power>>>,
    observed: bool,
}

/// A machine that is there, comes or goes. One that sleeps is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance<'a> {
    /// Its name.
    pub machine: &'a str,
    /// Its node's `spec.providerID`.
    pub provider_id: &'a str,
    /// Where it is on its way.
    pub phase: Phase,
    /// Since when.
    pub since: Moment,
    /// Why it does not come.
    pub failure: Option<&'a Failure>,
}

/// One group of a snapshot.
#[derive(Clone, Copy)]
pub struct GroupView<'a> {
    snapshot: &'a Snapshot,
    at: usize,
}

impl Snapshot {
    pub(super) fn new(
        catalogue: Arc<Catalogue>,
        ledgers: Vec<Arc<Ledger>>,
        powers: Arc<Vec<Option<Power>>>,
        observed: bool,
    ) -> Self {
        Self {
            catalogue,
            ledgers,
            powers,
            observed,
        }
    }

    /// The machines and groups that there are.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Whether anybody has looked at the machines since this process was started.
    pub fn observed(&self) -> bool {
        self.observed
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = GroupView<'_>> {
        (0..self.ledgers.len()).map(|at| GroupView { snapshot: self, at })
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<GroupView<'_>> {
        let at = self.catalogue.group_named(name)?;
        Some(GroupView { snapshot: self, at })
    }

    /// The group that a machine belongs to.
    pub fn group_of(&self, machine: MachineIndex) -> GroupView<'_> {
        let at = self.catalogue.machine(machine).machine.group.at();
        GroupView { snapshot: self, at }
    }

    /// What is wanted of machines. Those of which nothing is wanted are not named.
    pub fn wanted(&self) -> Vec<Wanted> {
        let mut all = Vec::new();
        for group in self.groups() {
            for one in group.instances() {
                all.push(Wanted {
                    machine: one.machine.to_owned(),
                    group: group.name().to_owned(),
                    wish: match one.phase {
                        Phase::Creating | Phase::Running => Wish::On,
                        Phase::Deleting | Phase::Returning => Wish::GivenBack,
                    },
                    since: one.since,
                });
            }
        }
        all
    }
}

impl<'a> GroupView<'a> {
    fn group(&self) -> &'a Group {
        &self.snapshot.catalogue.groups()[self.at]
    }

    fn ledger(&self) -> &'a Ledger {
        &self.snapshot.ledgers[self.at]
    }

    /// Its name.
    pub fn name(&self) -> &'a str {
        &self.group().name
    }

    /// How few machines it can be left with.
    pub fn least(&self) -> usize {
        self.snapshot.catalogue.least(self.at)
    }

    /// How many machines it can have on.
    pub fn most(&self) -> usize {
        self.snapshot.catalogue.most(self.at)
    }

    /// Whether it is switched as a whole.
    pub fn atomic(&self) -> bool {
        self.group().atomic
    }

    /// How many machines are promised: creating or running.
    pub fn target(&self) -> usize {
        self.ledger().target()
    }

    /// How many machines there are, asleep or not.
    pub fn machines(&self) -> usize {
        self.snapshot.catalogue.members(self.at).len()
    }

    /// The machines that are there, come or go.
    pub fn instances(&self) -> impl Iterator<Item = Instance<'a>> {
        let catalogue = &self.snapshot.catalogue;
        self.ledger().members().filter_map(move |(name, member)| {
            let index = catalogue.named(name)?;
            Some(Instance {
                machine: name,
                provider_id: &catalogue.machine(index).provider_id,
                phase: member.phase,
                since: member.since,
                failure: member.failure.as_ref(),
            })
        })
    }

    /// The machine that would be woken next, or else one like it: what a template is made from.
    /// Absent if the group is empty.
    pub fn next(&self, now: Moment) -> Option<MachineIndex> {
        let around = Around {
            catalogue: &self.snapshot.catalogue,
            group: self.at,
            powers: &self.snapshot.powers,
        };
        let candidates = self.ledger().candidates(&around, now);
        let members = self.snapshot.catalogue.members(self.at);
        candidates.first().or_else(|| members.first()).copied()
    }
}
