//! All that a plan is made from: machines, groups, workloads, and where each of them is.

mod machine;
mod workload;

pub use machine::{Group, GroupIndex, Machine, MachineIndex, Power, Role, Taint, Watts};
pub use workload::{Moving, Set, SetIndex, Spread, Workload, WorkloadIndex};

use crate::amount::Amount;
use std::collections::BTreeSet;

/// Machines and workloads of one moment. What every machine carries is kept up to date with each
/// change, so that reading it costs nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    groups: Vec<Group>,
    machines: Vec<Machine>,
    sets: Vec<Set>,
    workloads: Vec<Option<Workload>>,
    free: Vec<WorkloadIndex>,
    carried: Vec<Vec<WorkloadIndex>>,
    used: Vec<Amount>,
    waiting: BTreeSet<WorkloadIndex>,
}

impl Inventory {
    /// Adds a group.
    pub fn add_group(&mut self, group: Group) -> GroupIndex {
        self.groups.push(group);
        GroupIndex(self.groups.len() as u32 - 1)
    }

    /// Adds a machine.
    pub fn add_machine(&mut self, machine: Machine) -> MachineIndex {
        self.machines.push(machine);
        self.carried.push(Vec::new());
        self.used.push(Amount::ZERO);
        MachineIndex(self.machines.len() as u32 - 1)
    }

    /// Adds a set.
    pub fn add_set(&mut self, set: Set) -> SetIndex {
        self.sets.push(set);
        SetIndex(self.sets.len() as u32 - 1)
    }

    /// Adds a workload where it runs, or waiting if it names no machine.
    pub fn add_workload(&mut self, mut workload: Workload) -> WorkloadIndex {
        let machine = workload.machine.take();
        let index = match self.free.pop() {
            Some(index) => {
                self.workloads[index.at()] = Some(workload);
                index
            }
            None => {
                self.workloads.push(Some(workload));
                WorkloadIndex(self.workloads.len() as u32 - 1)
            }
        };
        self.waiting.insert(index);
        if let Some(machine) = machine {
            self.place(index, machine);
        }
        index
    }

    /// Puts a workload on a machine, from where it is. Nothing happens if either does not exist.
    pub fn place(&mut self, index: WorkloadIndex, machine: MachineIndex) {
        if machine.at() >= self.machines.len() {
            return;
        }
        self.unplace(index);
        if let Some(workload) = self.workloads.get_mut(index.at()).and_then(Option::as_mut) {
            workload.machine = Some(machine);
            self.used[machine.at()] = self.used[machine.at()].plus(workload.request);
            self.carried[machine.at()].push(index);
            self.waiting.remove(&index);
        }
    }

    /// Takes a workload off its machine; it waits from then on.
    pub fn unplace(&mut self, index: WorkloadIndex) {
        let Some(workload) = self.workloads.get_mut(index.at()).and_then(Option::as_mut) else {
            return;
        };
        if let Some(machine) = workload.machine.take() {
            let carried = &mut self.carried[machine.at()];
            if let Some(at) = carried.iter().position(|one| *one == index) {
                carried.swap_remove(at);
            }
            self.used[machine.at()] = self.used[machine.at()].minus(workload.request);
        }
        self.waiting.insert(index);
    }

    /// Removes a workload: it ended.
    pub fn remove(&mut self, index: WorkloadIndex) -> Option<Workload> {
        self.unplace(index);
        self.waiting.remove(&index);
        let workload = self.workloads.get_mut(index.at())?.take()?;
        self.free.push(index);
        Some(workload)
    }

    /// All groups.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// A group.
    pub fn group(&self, index: GroupIndex) -> &Group {
        &self.groups[index.at()]
    }

    /// A group, to be changed.
    pub fn group_mut(&mut self, index: GroupIndex) -> &mut Group {
        &mut self.groups[index.at()]
    }

    /// All machines, in the order of their indices.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// Every machine with its index.
    pub fn enumerate(&self) -> impl Iterator<Item = (MachineIndex, &Machine)> {
        let indexed = self.machines.iter().enumerate();
        indexed.map(|(at, machine)| (MachineIndex(at as u32), machine))
    }

    /// A machine.
    pub fn machine(&self, index: MachineIndex) -> &Machine {
        &self.machines[index.at()]
    }

    /// A machine, to be changed.
    pub fn machine_mut(&mut self, index: MachineIndex) -> &mut Machine {
        &mut self.machines[index.at()]
    }

    /// The machine of this name.
    pub fn find(&self, name: &str) -> Option<MachineIndex> {
        let at = self.machines.iter().position(|one| one.name == name)?;
        Some(MachineIndex(at as u32))
    }

    /// All sets.
    pub fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// A set, to be changed.
    pub fn set_mut(&mut self, index: SetIndex) -> &mut Set {
        &mut self.sets[index.at()]
    }

    /// The set that a workload is one of.
    pub fn set_of(&self, workload: &Workload) -> Option<&Set> {
        self.sets.get(workload.set?.at())
    }

    /// A workload, if there is one at this place.
    pub fn workload(&self, index: WorkloadIndex) -> Option<&Workload> {
        self.workloads.get(index.at())?.as_ref()
    }

    /// A workload, to be changed in all but its machine and its request.
    pub fn workload_mut(&mut self, index: WorkloadIndex) -> Option<&mut Workload> {
        self.workloads.get_mut(index.at())?.as_mut()
    }

    /// Every workload with its index.
    pub fn workloads(&self) -> impl Iterator<Item = (WorkloadIndex, &Workload)> {
        let indexed = self.workloads.iter().enumerate();
        indexed.filter_map(|(at, one)| Some((WorkloadIndex(at as u32), one.as_ref()?)))
    }

    /// The workloads that wait, in the order of their indices.
    pub fn waiting(&self) -> impl Iterator<Item = WorkloadIndex> {
        self.waiting.iter().copied()
    }

    /// How many workloads wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// The workloads that a machine carries, in no order.
    pub fn carried(&self, index: MachineIndex) -> &[WorkloadIndex] {
        &self.carried[index.at()]
    }

    /// What a machine's workloads ask for together.
    pub fn used(&self, index: MachineIndex) -> Amount {
        self.used[index.at()]
    }

    /// What is left on a machine.
    pub fn room(&self, index: MachineIndex) -> Amount {
        self.machine(index).capacity.minus(self.used(index))
    }

    /// What all workloads of a group's machines ask for.
    pub fn demand_of(&self, group: GroupIndex) -> Amount {
        let machines = self.enumerate().filter(|(_, one)| one.group == group);
        machines.map(|(index, _)| self.used(index)).sum()
    }

    /// What a machine draws at this moment, in watts.
    pub fn watts(&self, index: MachineIndex) -> f64 {
        let machine = self.machine(index);
        match machine.power {
            Power::Off => machine.watts.off,
            Power::Suspended => machine.watts.suspended.unwrap_or(machine.watts.off),
            Power::Waking | Power::Stopping => machine.watts.in_transition(),
            Power::On => {
                let capacity = machine.capacity.cpu_millis.max(1) as f64;
                let share = self.used(index).cpu_millis as f64 / capacity;
                machine.watts.loaded(share)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_carries_is_always_known() {
        let mut inventory = Inventory::default();
        let group = inventory.add_group(Group::new("g"));
        let capacity = Amount::new(4000, 8 << 30, 0, 110);
        let one = inventory.add_machine(Machine::new("one", group, capacity));
        let two = inventory.add_machine(Machine::new("two", group, capacity));
        let request = Amount::workload(1000, 1024);
        let workload = inventory.add_workload(Workload::new("w", request));
        assert_eq!(inventory.waiting().collect::<Vec<_>>(), [workload]);
        inventory.place(workload, one);
        inventory.place(workload, two);
        assert_eq!(inventory.used(one), Amount::ZERO);
        assert_eq!(inventory.used(two), request);
        assert_eq!(inventory.carried(two), [workload]);
        assert_eq!(inventory.waiting_count(), 0);
        assert_eq!(inventory.remove(workload).unwrap().name, "w");
        assert_eq!(inventory.used(two), Amount::ZERO);
        assert!(inventory.remove(workload).is_none());
        let again = inventory.add_workload(Workload::new("v", request));
        assert_eq!(again, workload, "places are used again");
    }
}
