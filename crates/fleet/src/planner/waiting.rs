//! Where the workloads go that wait: to machines that are on, then to those on their way.

use super::{
    draft::Draft,
    plan::{Action, Decision},
    reason::Reason,
    rooms::{Tier, staying},
};
use crate::{
    amount::Amount,
    inventory::{MachineIndex, Power, WorkloadIndex},
    moment::Moment,
};

/// Gives every workload that waits a place, as far as there is one; returns the others in the
/// same order.
pub(crate) fn place(draft: &mut Draft<'_>) -> Vec<WorkloadIndex> {
    let mut left = Vec::new();
    for index in in_turn(draft) {
        let Some(workload) = draft.inventory().workload(index) else {
            continue;
        };
        match draft.rooms.best(workload, Tier::Waking) {
            Some(machine) if draft.rooms.tier(machine) == Some(Tier::Waking) => {
                draft.promise(index, machine);
            }
            Some(machine) => draft.place(index, machine),
            None => left.push(index),
        }
    }
    left
}

/// The workloads that wait, those who have waited longest first, so that nobody is passed over for
/// ever; of those who came together, the largest first, as small ones fill what large ones leave.
fn in_turn(draft: &Draft<'_>) -> Vec<WorkloadIndex> {
    let inventory = draft.inventory();
    if inventory.waiting_count() == 0 {
        return Vec::new();
    }
    let machines = inventory.machines().iter();
    let largest = machines.fold(Amount::ZERO, |most, one| most.max(one.capacity));
    let mut sized: Vec<(Moment, f64, WorkloadIndex)> = inventory
        .waiting()
        .filter_map(|index| {
            let workload = inventory.workload(index)?;
            Some((workload.since, workload.request.share_of(&largest), index))
        })
        .collect();
    sized.sort_by(|one, two| {
        one.0
            .cmp(&two.0)
            .then(two.1.total_cmp(&one.1))
            .then(one.2.cmp(&two.2))
    });
    sized.into_iter().map(|(.., index)| index).collect()
}

/// Lets machines that were being emptied take work again, where that gives waiting workloads a
/// place; returns the workloads that it does not help.
pub(crate) fn undrain(draft: &mut Draft<'_>, left: Vec<WorkloadIndex>) -> Vec<WorkloadIndex> {
    if left.is_empty() {
        return left;
    }
    let mut draining: Vec<MachineIndex> = draining(draft);
    let mut still = Vec::new();
    for index in left {
        let Some(workload) = draft.inventory().workload(index) else {
            continue;
        };
        if let Some(machine) = draft.rooms.best(workload, Tier::On) {
            draft.place(index, machine);
            continue;
        }
        let fits =
            |machine: &MachineIndex| draft.rooms.refuses_if_open(workload, *machine).is_none();
        match draining.iter().position(fits) {
            Some(at) => {
                let machine = draining.remove(at);
                reopen(draft, machine, Reason::PendingWork { workload: index });
                draft.place(index, machine);
            }
            None => still.push(index),
        }
    }
    still
}

/// The machines that are on and being emptied, first those that would be on longest anyway: where
/// most stays until it is done; then the fullest.
pub(crate) fn draining(draft: &Draft<'_>) -> Vec<MachineIndex> {
    let inventory = draft.inventory();
    let mut draining: Vec<MachineIndex> = inventory
        .enumerate()
        .filter(|(index, one)| {
            one.draining
                && one.power == Power::On
                && one.ready
                && one.seen
                && !draft.is_decided(*index)
                && draft.may_grow(one.group)
        })
        .map(|(index, _)| index)
        .collect();
    let share = |index: MachineIndex| {
        inventory
            .used(index)
            .share_of(&inventory.machine(index).capacity)
    };
    draining.sort_by(|one, two| {
        staying(inventory, *two)
            .cmp(&staying(inventory, *one))
            .then(share(*two).total_cmp(&share(*one)))
            .then(one.cmp(two))
    });
    draining
}

/// Lets a machine take work again.
pub(crate) fn reopen(draft: &mut Draft<'_>, machine: MachineIndex, reason: Reason) {
    draft.rooms.open(machine, Tier::On);
    draft.count_awake(machine);
    draft.memory.needed(machine);
    draft.decide(machine, Decision::act(Action::Undrain, reason));
}
