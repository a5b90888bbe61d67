//! How others decide, so that ours can be compared with them on the same fleet and trace.
//!
//! Each is a model of published behaviour and defaults, not the program itself. All of them place
//! workloads on the fullest machine, and choose machines to wake as we do: where the real ones do
//! worse, the comparison flatters them.

pub(super) mod always_on;
pub(super) mod clock;
pub(super) mod cluster_autoscaler;
pub(super) mod karpenter;
pub(super) mod threshold;

use super::{
    draft::Draft,
    gates,
    plan::{Action, Decision, Placement},
    reason::{Change, Reason, Would},
    waiting, waking,
};
use crate::{
    inventory::{MachineIndex, Moving, WorkloadIndex},
    moment::Span,
};

/// Places what waits, and wakes machines for the rest and for minima.
fn serve(draft: &mut Draft<'_>) {
    let left = waiting::place(draft);
    waking::wake_for(draft, left);
    waking::wake_minimum(draft);
}

/// The machines that nothing holds; the others are decided.
fn candidates(draft: &mut Draft<'_>) -> Vec<MachineIndex> {
    let mut free = Vec::new();
    for machine in draft.machines() {
        if draft.is_decided(machine) || draft.inventory().machine(machine).asleep() {
            continue;
        }
        match gates::hold(draft, machine) {
            Some(decision) => draft.decide(machine, decision),
            None => free.push(machine),
        }
    }
    free
}

/// The first workload that its machine waits for until it is done.
fn lasting(draft: &Draft<'_>, machine: MachineIndex) -> Option<WorkloadIndex> {
    let inventory = draft.inventory();
    let carried = inventory.carried(machine).iter().copied();
    carried.into_iter().find(|index| {
        inventory
            .workload(*index)
            .is_some_and(|one| one.moving == Moving::OnCompletion)
    })
}

/// Share of its processors or memory that a machine has promised.
fn load(draft: &Draft<'_>, machine: MachineIndex) -> f64 {
    let inventory = draft.inventory();
    inventory
        .used(machine)
        .share_of(&inventory.machine(machine).capacity)
}

/// Switches an empty machine off, or empties it by these moves.
fn sleep(draft: &mut Draft<'_>, machine: MachineIndex, moves: &[(WorkloadIndex, MachineIndex)]) {
    draft.rooms.close(machine);
    draft.count_retired(machine);
    let action = if moves.is_empty() {
        Action::PowerOff
    } else {
        Action::Drain
    };
    draft
        .moves
        .extend(moves.iter().map(|(workload, target)| Placement {
            workload: *workload,
            machine: *target,
        }));
    draft.decide(machine, Decision::act(action, Reason::Unneeded));
}

/// Takes moves back and leaves the machine on, for this reason.
fn stay(
    draft: &mut Draft<'_>,
    machine: MachineIndex,
    moves: &[(WorkloadIndex, MachineIndex)],
    reason: Reason,
    would: Option<Would>,
) {
    draft.rooms.undo(machine, moves);
    if !draft.inventory().machine(machine).draining {
        draft.rooms.open(machine, super::rooms::Tier::On);
    }
    let mut decision = Decision::keep(reason);
    decision.would = would;
    draft.decide(machine, decision);
}

/// The reason for a machine whose workload has no place.
fn no_place(
    draft: &Draft<'_>,
    machine: MachineIndex,
    workload: WorkloadIndex,
    after: Span,
) -> (Reason, Would) {
    let inventory = draft.inventory();
    let short = inventory
        .workload(workload)
        .map(|one| {
            draft
                .rooms
                .nearest(one)
                .map_or(one.request, |(_, short)| short)
        })
        .unwrap_or_default();
    let reason = Reason::NoPlaceToMovePods {
        workload: Some(workload),
        short,
    };
    let room = inventory.used(machine);
    (reason, Would::if_only(Change::Room { room }, after))
}
