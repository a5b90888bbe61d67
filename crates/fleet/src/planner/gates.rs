//! Why a machine cannot go to sleep, whatever that would save.

use super::{
    draft::Draft,
    plan::{Action, Decision},
    reason::{Change, Reason, Would},
    worth,
};
use crate::{
    amount::Resource,
    inventory::{MachineIndex, Moving, Power, Role, WorkloadIndex},
    moment::Span,
};

/// How long a machine sleeps at the latest after it could be done without: the debounce, or the
/// time after which it has idled for as much as a power cycle costs.
pub(crate) fn patience(draft: &Draft<'_>, machine: MachineIndex, moves: usize) -> Span {
    let pays = worth::of(draft, machine, moves, None).pays_from();
    pays.max(draft.policy().debounce)
}

/// What holds a machine that is not asleep, by itself and not by what others do.
pub(crate) fn hold(draft: &mut Draft<'_>, machine: MachineIndex) -> Option<Decision> {
    let inventory = draft.inventory();
    let one = inventory.machine(machine);
    let later = patience(draft, machine, inventory.carried(machine).len());
    let kept = |reason: Reason, change: Change| {
        Some(Decision::keep(reason).unless(Would::if_only(change, later)))
    };
    match one.power {
        Power::Waking => return Some(Decision::keep(Reason::Waking)),
        Power::Stopping => return Some(Decision::keep(Reason::CurrentlyBeingDeleted)),
        Power::On | Power::Off | Power::Suspended => {}
    }
    if one.role == Role::Base {
        return kept(Reason::NotAutoscaled, Change::Auto);
    }
    if one.hold {
        return kept(Reason::ScaleDownDisabledAnnotation, Change::Released);
    }
    if !one.seen {
        return kept(Reason::NoNodeInfo, Change::Ready);
    }
    if !one.ready {
        return Some(unready(draft, machine));
    }
    draft.memory.machines[machine.at()].unready_since = None;
    if !inventory.used(machine).fits(&one.capacity) {
        let excess = inventory.used(machine).minus(one.capacity);
        return kept(Reason::UnexpectedError { excess }, Change::Empty);
    }
    let stays = |moving: Moving| match moving {
        Moving::Never => true,
        Moving::LocalState => !draft.policy().move_local_state,
        Moving::Free | Moving::OnCompletion => false,
    };
    if let Some(workload) = draft.served[machine.at()] {
        // It takes work in right now. The next plan can say more.
        draft.memory.needed(machine);
        return Some(Decision::keep(Reason::PendingWork { workload }));
    }
    for index in inventory.carried(machine) {
        if let Some(workload) = inventory.workload(*index)
            && stays(workload.moving)
        {
            let reason = Reason::BlockedByPod {
                workload: *index,
                because: workload.moving,
            };
            return kept(reason, Change::MayMove { workload: *index });
        }
    }
    None
}

/// A machine that is on and not ready: it is left alone, waited for, or switched off if it carries
/// nothing.
fn unready(draft: &mut Draft<'_>, machine: MachineIndex) -> Decision {
    let (policy, now) = (draft.policy(), draft.situation.now);
    let remembered = &mut draft.memory.machines[machine.at()];
    let since = *remembered.unready_since.get_or_insert(now);
    let (unready, needed) = (now.since(since), policy.unready_after);
    let left = needed.minus(unready);
    if !policy.scale_down_unready {
        return Decision::keep(Reason::ScaleDownUnreadyDisabled)
            .unless(Would::if_only(Change::UnreadyAllowed, left));
    }
    if unready < needed {
        let reason = Reason::NotUnreadyLongEnough { unready, needed };
        let would = match draft.inventory().carried(machine) {
            [] => Would::wait(left),
            _ => Would::if_only(Change::Empty, left),
        };
        return Decision::keep(reason).unless(would);
    }
    // Nobody can tell whether work on it goes on: it is never switched off under work.
    if let Some(workload) = draft.inventory().carried(machine).first() {
        let reason = Reason::BlockedByPod {
            workload: *workload,
            because: draft
                .inventory()
                .workload(*workload)
                .map_or(Moving::Free, |one| one.moving),
        };
        return Decision::keep(reason).unless(Would::if_only(Change::Empty, Span::ZERO));
    }
    draft.count_retired(machine);
    Decision::act(Action::PowerOff, Reason::Unneeded)
}

/// What forbids that one more machine of its group goes to sleep in this plan.
pub(crate) fn limit(draft: &Draft<'_>, machine: MachineIndex) -> Option<Decision> {
    let inventory = draft.inventory();
    let one = inventory.machine(machine);
    let (policy, now, group) = (draft.policy(), draft.situation.now, one.group);
    let later = patience(draft, machine, inventory.carried(machine).len());
    let kept = |reason: Reason, would: Would| Some(Decision::keep(reason).unless(would));
    let minimum = inventory.group(group).min;
    let awake = draft.awake[group.at()];
    if !one.draining && awake <= minimum {
        let machines = awake.saturating_sub(1);
        let would = Would::if_only(Change::Minimum { group, machines }, later);
        return kept(Reason::NodeGroupMinSizeReached { group, minimum }, would);
    }
    if !one.draining {
        let left = draft.capacity.minus(one.capacity);
        let short = Resource::ALL
            .into_iter()
            .find(|resource| left.of(*resource) < policy.minimum.of(*resource));
        if let Some(resource) = short {
            let would = Would::if_only(Change::NoMinimum, later);
            return kept(Reason::MinimalResourceLimitExceeded { resource }, would);
        }
    }
    if let Some(woken) = draft.memory.woken {
        let until = woken.plus(policy.cooldown_after_wake);
        if until > now {
            let would = Would::wait(later.max(until.since(now)));
            return kept(Reason::NotUnneededOtherReason { until }, would);
        }
    }
    let maximum = policy.max_power_offs;
    if draft.retired[group.at()] >= maximum {
        let machines = draft.retired[group.at()] + 1;
        let would = Would::if_only(Change::Deletions { machines }, later);
        return kept(
            Reason::NodeGroupMaxDeletionCountReached { group, maximum },
            would,
        );
    }
    None
}

/// What forbids to move a machine's workloads now: too many members of a set are missing already.
pub(crate) fn budget(draft: &Draft<'_>, machine: MachineIndex) -> Option<Decision> {
    let inventory = draft.inventory();
    for index in inventory.carried(machine) {
        let Some(workload) = inventory.workload(*index) else {
            continue;
        };
        let (Some(set), Some(rules)) = (workload.set, inventory.set_of(workload)) else {
            continue;
        };
        let Some(allowed) = rules.disruptions else {
            continue;
        };
        let is_member = |one: &WorkloadIndex| {
            inventory
                .workload(*one)
                .is_some_and(|other| other.set == Some(set))
        };
        let missing = inventory.waiting().filter(is_member).count();
        let moving = draft.moves.iter().filter(|one| is_member(&one.workload));
        let here = inventory
            .carried(machine)
            .iter()
            .filter(|one| is_member(one));
        let members = (missing + moving.count() + here.count()) as u32;
        if members > allowed {
            let reason = Reason::DisruptionBudget {
                set,
                workload: *index,
            };
            let later = patience(draft, machine, inventory.carried(machine).len());
            let would = Would::if_only(Change::Disruptions { set, members }, later);
            return Some(Decision::keep(reason).unless(would));
        }
    }
    None
}
