//! A plan while it is being made.

use super::{
    plan::{Decision, Memory, Placement, Plan, Situation, Unplaced},
    reason::Reason,
    rooms::Rooms,
};
use crate::{
    amount::Amount,
    inventory::{GroupIndex, Inventory, MachineIndex, Power, WorkloadIndex},
    policy::{Kind, Policy},
};
use std::collections::HashSet;

/// What has been decided so far, and what that leaves.
#[derive(Clone)]
pub(crate) struct Draft<'a> {
    pub(crate) situation: Situation<'a>,
    pub(crate) rooms: Rooms<'a>,
    pub(crate) memory: Memory,
    pub(crate) decisions: Vec<Option<Decision>>,
    pub(crate) placements: Vec<Placement>,
    pub(crate) promises: Vec<Placement>,
    pub(crate) moves: Vec<Placement>,
    pub(crate) unplaced: Vec<Unplaced>,
    /// How many machines of each group are on, or on their way, and stay so.
    pub(crate) awake: Vec<u32>,
    /// How many machines of each group go to sleep in this plan.
    pub(crate) retired: Vec<u32>,
    /// The capacity that is awake and stays so, in the whole fleet.
    pub(crate) capacity: Amount,
    /// The last workload that was put on each machine in this plan.
    pub(crate) served: Vec<Option<WorkloadIndex>>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(situation: Situation<'a>, memory: &Memory) -> Self {
        let inventory = situation.inventory;
        let relied_on = |index: MachineIndex| {
            let machine = inventory.machine(index);
            // Whoever is later than nearly all boots were is not counted on any more.
            let usual = machine.boot.quantile(0.95).0;
            situation.now.since(machine.since).0 <= usual + usual / 4
        };
        let mut rooms = Rooms::new(inventory, relied_on);
        if situation.policy.kind == Kind::Atoll {
            rooms.keep_together();
        }
        let mut draft = Self {
            situation,
            rooms,
            memory: memory.sized(inventory),
            decisions: vec![None; inventory.machines().len()],
            placements: Vec::new(),
            promises: Vec::new(),
            moves: Vec::new(),
            unplaced: Vec::new(),
            awake: vec![0; inventory.groups().len()],
            retired: vec![0; inventory.groups().len()],
            capacity: Amount::ZERO,
            served: vec![None; inventory.machines().len()],
        };
        for machine in inventory.machines() {
            let stays =
                machine.power == Power::Waking || (machine.power == Power::On && !machine.draining);
            if stays {
                draft.awake[machine.group.at()] += 1;
                draft.capacity = draft.capacity.plus(machine.capacity);
            }
        }
        draft
    }

    pub(crate) fn inventory(&self) -> &'a Inventory {
        self.situation.inventory
    }

    pub(crate) fn policy(&self) -> &'a Policy {
        self.situation.policy
    }

    /// The machines, without holding on to the draft.
    pub(crate) fn machines(&self) -> impl Iterator<Item = MachineIndex> + use<> {
        (0..self.decisions.len() as u32).map(MachineIndex)
    }

    pub(crate) fn decide(&mut self, machine: MachineIndex, decision: Decision) {
        self.decisions[machine.at()] = Some(decision);
    }

    pub(crate) fn is_decided(&self, machine: MachineIndex) -> bool {
        self.decisions[machine.at()].is_some()
    }

    /// Counts a machine as awake from now on.
    pub(crate) fn count_awake(&mut self, machine: MachineIndex) {
        let one = self.inventory().machine(machine);
        self.awake[one.group.at()] += 1;
        self.capacity = self.capacity.plus(one.capacity);
    }

    /// Counts a machine as going to sleep from now on.
    pub(crate) fn count_retired(&mut self, machine: MachineIndex) {
        let one = self.inventory().machine(machine);
        self.retired[one.group.at()] += 1;
        if !one.draining {
            self.count_closed(machine);
        }
    }

    /// Counts a machine as taking no work from now on.
    pub(crate) fn count_closed(&mut self, machine: MachineIndex) {
        let one = self.inventory().machine(machine);
        let awake = &mut self.awake[one.group.at()];
        *awake = awake.saturating_sub(1);
        self.capacity = self.capacity.minus(one.capacity);
    }

    /// Whether one more machine of the group may be on.
    pub(crate) fn may_grow(&self, group: GroupIndex) -> bool {
        self.awake[group.at()] < self.inventory().group(group).max
    }

    /// Puts a waiting workload on a machine that is on.
    pub(crate) fn place(&mut self, workload: WorkloadIndex, machine: MachineIndex) {
        if let Some(one) = self.inventory().workload(workload) {
            self.rooms.put(one, machine);
            self.served[machine.at()] = Some(workload);
            self.placements.push(Placement { workload, machine });
        }
    }

    /// Promises a waiting workload a machine that is on its way.
    pub(crate) fn promise(&mut self, workload: WorkloadIndex, machine: MachineIndex) {
        if let Some(one) = self.inventory().workload(workload) {
            self.rooms.put(one, machine);
            self.promises.push(Placement { workload, machine });
        }
    }

    /// The plan. Machines that nothing was decided about are left as they are.
    pub(crate) fn finish(mut self) -> (Plan, Memory) {
        // A machine that took something in may have been emptied in turn: what counts is where each
        // workload ends up.
        let mut seen = HashSet::new();
        self.moves.retain(|one| seen.insert(one.workload));
        for one in &mut self.moves {
            one.machine = self.rooms.moved(one.workload).unwrap_or(one.machine);
        }
        let undecided = Decision::keep(Reason::Unneeded);
        let decisions = self.decisions.into_iter();
        let plan = Plan {
            at: self.situation.now,
            decisions: decisions.map(|one| one.unwrap_or(undecided)).collect(),
            placements: self.placements,
            promises: self.promises,
            moves: self.moves,
            unplaced: self.unplaced,
        };
        (plan, self.memory)
    }
}
