//! What is left on machines while a plan is made, and which workload may go where.

use crate::{
    amount::{Amount, Resource},
    inventory::{Inventory, MachineIndex, Moving, Power, Role, SetIndex, Workload, WorkloadIndex},
    planner::waking::inefficiency,
};
use std::collections::HashMap;

/// How soon a machine takes work. Earlier tiers are filled first, and in each of them machines
/// that draw least for what they can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// On for ever: what is there costs least.
    Base,
    /// On.
    On,
    /// On its way.
    Waking,
}

const TIERS: [Tier; 3] = [Tier::Base, Tier::On, Tier::Waking];
/// Machines are told apart by so many classes of how much they draw.
const CLASSES: usize = 12;

/// Why a workload may not go to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The machine takes no work.
    Closed,
    /// It lacks this much.
    Short(Amount),
    /// Labels or taints do not suit.
    Unsuited,
    /// Where the other members of its set are forbids it.
    Neighbours,
}

/// The room on all machines, with what the plan has already put there.
#[derive(Debug, Clone)]
pub(crate) struct Rooms<'a> {
    inventory: &'a Inventory,
    free: Vec<Amount>,
    tier: Vec<Option<Tier>>,
    /// Open machines of each tier and class, sorted by what they have left of the resource that is
    /// scarcest.
    sorted: Vec<Vec<(u64, MachineIndex)>>,
    /// The class of each machine: 0 draws least for what it can carry.
    class: Vec<usize>,
    classes: usize,
    scarcest: Resource,
    neighbours: Neighbours,
    /// How many workloads of each machine stay until they are done; absent if that does not matter.
    staying: Option<Vec<u32>>,
    /// Where the plan has moved workloads to, and what that brought to machines.
    moved: HashMap<WorkloadIndex, MachineIndex>,
    received: HashMap<MachineIndex, Vec<WorkloadIndex>>,
}

/// The class of each machine by how much it draws, and how many classes there are.
fn classes(inventory: &Inventory) -> (Vec<usize>, usize) {
    // Differences of less than a fiftieth are none.
    let step = |one: f64| (one.max(1e-9).ln() * 50.0).round() as i64;
    let steps: Vec<i64> = inventory
        .machines()
        .iter()
        .map(|machine| step(inefficiency(machine)))
        .collect();
    let mut known = steps.clone();
    known.sort_unstable();
    known.dedup();
    let count = known.len().clamp(1, CLASSES);
    let class = steps
        .iter()
        .map(|one| {
            let rank = known.partition_point(|other| other < one);
            rank * count / known.len().max(1)
        })
        .collect();
    (class, count)
}

/// How many workloads of a machine stay until they are done.
pub(crate) fn staying(inventory: &Inventory, machine: MachineIndex) -> u32 {
    let carried = inventory.carried(machine).iter();
    let staying = carried.filter(|index| {
        inventory
            .workload(**index)
            .is_some_and(|one| one.moving != Moving::Free)
    });
    staying.count() as u32
}

/// Where the members of sets are whose rules look at that.
#[derive(Debug, Clone, Default)]
struct Neighbours {
    members: HashMap<SetIndex, HashMap<MachineIndex, u32>>,
}

impl Neighbours {
    fn of(inventory: &Inventory) -> Self {
        let mut watched: Vec<bool> = Vec::with_capacity(inventory.sets().len());
        watched.extend(inventory.sets().iter().map(|set| set.looks_at_others()));
        for set in inventory.sets() {
            if let Some(near) = set.near
                && let Some(flag) = watched.get_mut(near.at())
            {
                *flag = true;
            }
        }
        let mut members: HashMap<SetIndex, HashMap<MachineIndex, u32>> = HashMap::new();
        for (at, _) in watched.iter().enumerate().filter(|(_, flag)| **flag) {
            members.insert(SetIndex(at as u32), HashMap::new());
        }
        if !members.is_empty() {
            for (_, workload) in inventory.workloads() {
                if let (Some(set), Some(machine)) = (workload.set, workload.machine)
                    && let Some(places) = members.get_mut(&set)
                {
                    *places.entry(machine).or_default() += 1;
                }
            }
        }
        Self { members }
    }

    fn count(&self, set: SetIndex, machine: MachineIndex) -> u32 {
        let places = self.members.get(&set);
        places
            .and_then(|places| places.get(&machine))
            .copied()
            .unwrap_or(0)
    }

    fn change(&mut self, workload: &Workload, machine: MachineIndex, more: bool) {
        let Some(places) = workload.set.and_then(|set| self.members.get_mut(&set)) else {
            return;
        };
        let count = places.entry(machine).or_default();
        *count = if more {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
    }
}

impl<'a> Rooms<'a> {
    /// The room as it is: machines that take work are open, and those that wake if `relied_on`
    /// says that they will come in time.
    pub(crate) fn new(inventory: &'a Inventory, relied_on: impl Fn(MachineIndex) -> bool) -> Self {
        let count = inventory.machines().len();
        let (mut capacity, mut used) = (Amount::ZERO, Amount::ZERO);
        let mut free = Vec::with_capacity(count);
        for (index, machine) in inventory.enumerate() {
            if !machine.asleep() {
                capacity = capacity.plus(machine.capacity);
                used = used.plus(inventory.used(index));
            }
            free.push(inventory.room(index));
        }
        let share =
            |resource: Resource| used.of(resource) as f64 / capacity.of(resource).max(1) as f64;
        let scarcest = Resource::ALL
            .into_iter()
            .filter(|resource| capacity.of(*resource) > 0)
            .max_by(|one, two| share(*one).total_cmp(&share(*two)))
            .unwrap_or(Resource::Cpu);
        let (class, classes) = classes(inventory);
        let mut rooms = Self {
            inventory,
            free,
            tier: vec![None; count],
            sorted: vec![Vec::new(); TIERS.len() * classes],
            class,
            classes,
            scarcest,
            neighbours: Neighbours::of(inventory),
            staying: None,
            moved: HashMap::new(),
            received: HashMap::new(),
        };
        for (index, machine) in inventory.enumerate() {
            let tier = if machine.takes_work() {
                Some(if machine.role == Role::Base {
                    Tier::Base
                } else {
                    Tier::On
                })
            } else {
                (machine.power == Power::Waking && !machine.draining && relied_on(index))
                    .then_some(Tier::Waking)
            };
            if let Some(tier) = tier {
                rooms.tier[index.at()] = Some(tier);
                let key = rooms.key(index);
                let shelf = rooms.shelf(tier, index);
                rooms.sorted[shelf].push(key);
            }
        }
        for sorted in &mut rooms.sorted {
            sorted.sort_unstable();
        }
        rooms
    }

    /// Puts workloads that stay beside others that stay, and not on the fullest machine.
    ///
    /// Nobody knows when they end. If that tells nothing of how long they still run, a machine with
    /// `n` of them is on for the mean times `1 + 1/2 + … + 1/n` more, so that one more adds a share
    /// of `1/(n + 1)` of the mean: least where most are. On the fullest machine there may be one
    /// large one, and the next keeps it on for half as long again.
    pub(crate) fn keep_together(&mut self) {
        let inventory = self.inventory;
        let all = inventory
            .enumerate()
            .map(|(index, _)| staying(inventory, index));
        self.staying = Some(all.collect());
    }

    /// What is left on a machine, open or not.
    pub(crate) fn free(&self, machine: MachineIndex) -> Amount {
        self.free[machine.at()]
    }

    /// All that is left on open machines.
    pub(crate) fn all_free(&self) -> Amount {
        let pairs = self.free.iter().zip(&self.tier);
        pairs
            .filter(|(_, tier)| tier.is_some())
            .map(|(free, _)| *free)
            .sum()
    }

    /// The machine's tier, if it is open.
    pub(crate) fn tier(&self, machine: MachineIndex) -> Option<Tier> {
        self.tier[machine.at()]
    }

    /// Lets a machine take work.
    pub(crate) fn open(&mut self, machine: MachineIndex, tier: Tier) {
        self.close(machine);
        self.tier[machine.at()] = Some(tier);
        self.insert(machine);
    }

    /// Lets a machine take no more work.
    pub(crate) fn close(&mut self, machine: MachineIndex) {
        self.extract(machine);
        self.tier[machine.at()] = None;
    }

    fn key(&self, machine: MachineIndex) -> (u64, MachineIndex) {
        (self.free[machine.at()].of(self.scarcest), machine)
    }

    /// Which of the sorted lists a machine is in.
    fn shelf(&self, tier: Tier, machine: MachineIndex) -> usize {
        tier as usize * self.classes + self.class[machine.at()]
    }

    fn insert(&mut self, machine: MachineIndex) {
        if let Some(tier) = self.tier[machine.at()] {
            let key = self.key(machine);
            let shelf = self.shelf(tier, machine);
            let sorted = &mut self.sorted[shelf];
            if let Err(at) = sorted.binary_search(&key) {
                sorted.insert(at, key);
            }
        }
    }

    fn extract(&mut self, machine: MachineIndex) {
        if let Some(tier) = self.tier[machine.at()] {
            let key = self.key(machine);
            let shelf = self.shelf(tier, machine);
            let sorted = &mut self.sorted[shelf];
            if let Ok(at) = sorted.binary_search(&key) {
                sorted.remove(at);
            }
        }
    }

    /// Puts a workload on a machine, whether it fits or not.
    pub(crate) fn put(&mut self, workload: &Workload, machine: MachineIndex) {
        self.extract(machine);
        self.free[machine.at()] = self.free[machine.at()].minus(workload.request);
        self.insert(machine);
        self.neighbours.change(workload, machine, true);
        if let Some(staying) = self.staying_of(workload, machine) {
            *staying += 1;
        }
    }

    fn staying_of(&mut self, workload: &Workload, machine: MachineIndex) -> Option<&mut u32> {
        let staying = self.staying.as_mut()?.get_mut(machine.at());
        staying.filter(|_| workload.moving != Moving::Free)
    }

    /// Takes a workload off a machine.
    pub(crate) fn take(&mut self, workload: &Workload, machine: MachineIndex) {
        self.extract(machine);
        self.free[machine.at()] = self.free[machine.at()].plus(workload.request);
        self.insert(machine);
        self.neighbours.change(workload, machine, false);
        if let Some(staying) = self.staying_of(workload, machine) {
            *staying = staying.saturating_sub(1);
        }
    }

    /// Why a workload may not go to a machine; `None` if it may.
    pub(crate) fn refuses(&self, workload: &Workload, machine: MachineIndex) -> Option<Refusal> {
        if self.tier[machine.at()].is_none() {
            return Some(Refusal::Closed);
        }
        self.refuses_if_open(workload, machine)
    }

    /// The same for a machine that is about to be opened.
    pub(crate) fn refuses_if_open(
        &self,
        workload: &Workload,
        machine: MachineIndex,
    ) -> Option<Refusal> {
        let room = self.free[machine.at()];
        if !workload.request.fits(&room) {
            return Some(Refusal::Short(workload.request.minus(room)));
        }
        let one = self.inventory.machine(machine);
        let (Some(index), Some(set)) = (workload.set, self.inventory.set_of(workload)) else {
            return (!one.taints.is_empty()).then_some(Refusal::Unsuited);
        };
        if !set.suits(&one.labels, &one.taints) {
            return Some(Refusal::Unsuited);
        }
        if set.apart && self.neighbours.count(index, machine) > 0 {
            return Some(Refusal::Neighbours);
        }
        if let Some(near) = set.near
            && near != index
            && self.neighbours.count(near, machine) == 0
        {
            return Some(Refusal::Neighbours);
        }
        if let Some(spread) = &set.spread
            && !self.keeps_spread(index, &spread.label, spread.skew, machine)
        {
            return Some(Refusal::Neighbours);
        }
        None
    }

    /// Whether one more member on this machine leaves the set's members spread evenly enough over
    /// the values of the label that machines in use have.
    fn keeps_spread(&self, set: SetIndex, label: &str, skew: u32, machine: MachineIndex) -> bool {
        let mut counts: HashMap<&str, u32> = HashMap::new();
        for (index, one) in self.inventory.enumerate() {
            let counted = self.tier[index.at()].is_some() || index == machine;
            if let Some(value) = one.labels.get(label).filter(|_| counted) {
                *counts.entry(value).or_default() += self.neighbours.count(set, index);
            }
        }
        let Some(value) = self.inventory.machine(machine).labels.get(label) else {
            return false;
        };
        let here = counts.get(value.as_str()).copied().unwrap_or(0) + 1;
        let least = counts
            .iter()
            .map(|(other, count)| if *other == value { here } else { *count })
            .min()
            .unwrap_or(here);
        here - least.min(here) <= skew
    }

    /// The open machine that the workload leaves fullest, or that it keeps on the least longer, in
    /// the earliest tier up to `last`, and the best class of it, that has one.
    pub(crate) fn best(&self, workload: &Workload, last: Tier) -> Option<MachineIndex> {
        let needed = workload.request.of(self.scarcest);
        // What is on for ever is not kept on longer by anything.
        let matters = |shelf: usize| shelf >= (Tier::Base as usize + 1) * self.classes;
        let shelves = &self.sorted[..(last as usize + 1) * self.classes];
        for (shelf, sorted) in shelves.iter().enumerate() {
            let from = sorted.partition_point(|(left, _)| *left < needed);
            let found = match &self.staying {
                Some(staying) if workload.moving != Moving::Free && matters(shelf) => {
                    self.least_longer(workload, &sorted[from..], staying)
                }
                _ => sorted[from..]
                    .iter()
                    .map(|(_, machine)| *machine)
                    .find(|machine| self.refuses_if_open(workload, *machine).is_none()),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The machine with the most workloads that stay; the fullest of these.
    fn least_longer(
        &self,
        workload: &Workload,
        sorted: &[(u64, MachineIndex)],
        staying: &[u32],
    ) -> Option<MachineIndex> {
        let mut best: Option<(u32, MachineIndex)> = None;
        for (_, machine) in sorted {
            let count = staying[machine.at()];
            let better = best.is_none_or(|(most, _)| count > most);
            if better && self.refuses_if_open(workload, *machine).is_none() {
                best = Some((count, *machine));
            }
        }
        best.map(|(_, machine)| machine)
    }

    /// The open machine that lacks least for a workload that fits nowhere, and what it lacks.
    pub(crate) fn nearest(&self, workload: &Workload) -> Option<(MachineIndex, Amount)> {
        let lacking = self.inventory.enumerate().filter_map(|(index, machine)| {
            match self.refuses(workload, index)? {
                Refusal::Short(short) => Some((short.share_of(&machine.capacity), index, short)),
                _ => None,
            }
        });
        lacking
            .min_by(|one, two| one.0.total_cmp(&two.0))
            .map(|(_, index, short)| (index, short))
    }

    /// Where the plan has moved a workload to.
    pub(crate) fn moved(&self, workload: WorkloadIndex) -> Option<MachineIndex> {
        self.moved.get(&workload).copied()
    }

    /// Whether the plan moves something to a machine.
    pub(crate) fn has_received(&self, machine: MachineIndex) -> bool {
        let received = self.received.get(&machine);
        received.is_some_and(|all| !all.is_empty())
    }

    /// Moves all workloads of a machine to others that are on, and closes it; also those that this
    /// plan moved there before. Leaves everything as it was, and names the workload that has no
    /// place, if that does not work.
    pub(crate) fn empty(
        &mut self,
        machine: MachineIndex,
    ) -> Result<Vec<(WorkloadIndex, MachineIndex)>, WorkloadIndex> {
        let tier = self.tier[machine.at()];
        self.close(machine);
        let inventory = self.inventory;
        let received = self.received.remove(&machine).unwrap_or_default();
        let own = inventory.carried(machine).iter();
        let mut carried: Vec<(WorkloadIndex, &Workload)> = own
            .filter(|index| !self.moved.contains_key(index))
            .chain(&received)
            .filter_map(|index| Some((*index, inventory.workload(*index)?)))
            .collect();
        let capacity = inventory.machine(machine).capacity;
        carried.sort_by(|one, two| {
            let (first, second) = (
                one.1.request.share_of(&capacity),
                two.1.request.share_of(&capacity),
            );
            second.total_cmp(&first).then(one.0.cmp(&two.0))
        });
        let mut moves = Vec::with_capacity(carried.len());
        let mut without_place = None;
        for (index, workload) in &carried {
            self.take(workload, machine);
            let Some(target) = self.best(workload, Tier::On) else {
                self.put(workload, machine);
                without_place = Some(*index);
                break;
            };
            self.put(workload, target);
            self.moved.insert(*index, target);
            self.received.entry(target).or_default().push(*index);
            moves.push((*index, target));
        }
        let Some(index) = without_place else {
            return Ok(moves);
        };
        self.undo(machine, &moves);
        if !received.is_empty() {
            self.received.insert(machine, received);
        }
        if let Some(tier) = tier {
            self.open(machine, tier);
        }
        Err(index)
    }

    /// Takes moves back that emptied a machine.
    pub(crate) fn undo(&mut self, machine: MachineIndex, moves: &[(WorkloadIndex, MachineIndex)]) {
        let inventory = self.inventory;
        for (index, target) in moves {
            let Some(workload) = inventory.workload(*index) else {
                continue;
            };
            self.take(workload, *target);
            self.put(workload, machine);
            if let Some(received) = self.received.get_mut(target) {
                received.retain(|one| one != index);
            }
            if workload.machine == Some(machine) {
                self.moved.remove(index);
            } else {
                self.moved.insert(*index, machine);
                let received = self.received.entry(machine).or_default();
                if !received.contains(index) {
                    received.push(*index);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Group, Machine, Set, Spread};

    fn machines(zones: &[&str]) -> Inventory {
        let mut inventory = Inventory::default();
        let group = inventory.add_group(Group::new("g"));
        for (at, zone) in zones.iter().enumerate() {
            let mut machine =
                Machine::new(format!("m{at}"), group, Amount::new(4000, 8 << 30, 0, 110));
            machine.labels.insert("zone".into(), (*zone).into());
            inventory.add_machine(machine);
        }
        inventory
    }

    #[test]
    fn the_fullest_machine_that_has_room_is_taken() {
        let mut inventory = machines(&["a", "a", "a"]);
        for (cpu, machine) in [(3500, 0), (1000, 1)] {
            let mut workload = Workload::new("w", Amount::workload(cpu, 16));
            workload.machine = Some(MachineIndex(machine));
            inventory.add_workload(workload);
        }
        let rooms = Rooms::new(&inventory, |_| false);
        let workload = Workload::new("n", Amount::workload(1000, 16));
        assert_eq!(rooms.best(&workload, Tier::On), Some(MachineIndex(1)));
        let large = Workload::new("n", Amount::workload(5000, 16));
        assert_eq!(rooms.best(&large, Tier::On), None);
        let (machine, short) = rooms.nearest(&large).unwrap();
        assert_eq!((machine, short.cpu_millis), (MachineIndex(2), 1000));
    }

    #[test]
    fn what_stays_goes_where_most_stays() {
        let mut inventory = machines(&["a", "a", "a"]);
        let stays = |cpu| Workload {
            moving: Moving::OnCompletion,
            ..Workload::new("w", Amount::workload(cpu, 16))
        };
        for (workload, machine) in [
            (stays(3000), 0),
            (stays(500), 1),
            (stays(500), 1),
            (Workload::new("f", Amount::workload(2000, 16)), 2),
        ] {
            let machine = Some(MachineIndex(machine));
            inventory.add_workload(Workload {
                machine,
                ..workload
            });
        }
        let mut rooms = Rooms::new(&inventory, |_| false);
        assert_eq!(rooms.best(&stays(500), Tier::On), Some(MachineIndex(0)));
        rooms.keep_together();
        assert_eq!(rooms.best(&stays(500), Tier::On), Some(MachineIndex(1)));
        let free = Workload::new("n", Amount::workload(500, 16));
        assert_eq!(rooms.best(&free, Tier::On), Some(MachineIndex(0)));
        // What the plan puts somewhere counts as well.
        for _ in 0..3 {
            rooms.put(&stays(100), MachineIndex(2));
        }
        assert_eq!(rooms.best(&stays(500), Tier::On), Some(MachineIndex(2)));
        rooms.take(&stays(100), MachineIndex(2));
        rooms.take(&stays(100), MachineIndex(2));
        assert_eq!(rooms.best(&stays(500), Tier::On), Some(MachineIndex(1)));
    }

    #[test]
    fn rules_of_sets_are_kept() {
        let mut inventory = machines(&["a", "a", "b"]);
        let set = inventory.add_set(Set {
            apart: true,
            spread: Some(Spread {
                label: "zone".into(),
                skew: 1,
            }),
            ..Set::new("s")
        });
        let member = |machine: Option<u32>| Workload {
            set: Some(set),
            machine: machine.map(MachineIndex),
            ..Workload::new("w", Amount::workload(100, 16))
        };
        inventory.add_workload(member(Some(0)));
        let rooms = Rooms::new(&inventory, |_| false);
        let refusals: Vec<_> = (0..3)
            .map(|at| rooms.refuses(&member(None), MachineIndex(at)))
            .collect();
        assert_eq!(
            refusals,
            [Some(Refusal::Neighbours), Some(Refusal::Neighbours), None]
        );
    }

    #[test]
    fn a_machine_that_cannot_be_emptied_is_left_as_it_was() {
        let mut inventory = machines(&["a", "a"]);
        for cpu in [1000, 2000] {
            let mut workload = Workload::new("w", Amount::workload(cpu, 16));
            workload.machine = Some(MachineIndex(0));
            inventory.add_workload(workload);
        }
        let mut blocker = Workload::new("b", Amount::workload(1600, 16));
        blocker.machine = Some(MachineIndex(1));
        inventory.add_workload(blocker);
        let mut rooms = Rooms::new(&inventory, |_| false);
        let before = rooms.clone();
        assert!(rooms.empty(MachineIndex(0)).is_err());
        assert_eq!(rooms.free, before.free);
        assert_eq!(rooms.sorted, before.sorted);
    }
}
