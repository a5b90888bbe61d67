//! By load alone: a group above 70 per cent gets a machine, a machine below 18 per cent goes, each
//! after ten minutes and one at a time.

use crate::{
    amount::Amount,
    inventory::{GroupIndex, MachineIndex},
    moment::Span,
    planner::{
        draft::Draft,
        gates,
        plan::Decision,
        reason::{Change, Reason, Would},
        waking,
    },
};

pub(crate) fn plan(draft: &mut Draft<'_>) {
    super::serve(draft);
    for at in 0..draft.inventory().groups().len() {
        let group = GroupIndex(at as u32);
        let (used, capacity) = awake(draft, group);
        let high = capacity.is_zero() || used.share_of(&capacity) > limits(draft).max_load;
        let now = draft.situation.now;
        if !high || used.is_zero() {
            draft.memory.loaded_since[at] = None;
            continue;
        }
        let since = *draft.memory.loaded_since[at].get_or_insert(now);
        if now.since(since) >= limits(draft).debounce
            && draft.may_grow(group)
            && let Some(machine) = waking::preferred(draft, Some(group)).first()
        {
            let reason = Reason::HeldInReserve { reserve: used };
            waking::wake(draft, *machine, reason);
            draft.memory.loaded_since[at] = Some(now);
        }
    }
    let mut candidates = super::candidates(draft);
    candidates.sort_by(|one, two| super::load(draft, *one).total_cmp(&super::load(draft, *two)));
    let mut gone = false;
    for machine in candidates {
        gone |= consider(draft, machine, gone);
    }
}

fn limits<'a>(draft: &Draft<'a>) -> &'a crate::policy::Threshold {
    &draft.policy().threshold
}

/// What is used and what there is on machines of a group that are on or on their way.
fn awake(draft: &Draft<'_>, group: GroupIndex) -> (Amount, Amount) {
    let inventory = draft.inventory();
    let mut sums = (Amount::ZERO, Amount::ZERO);
    for (index, machine) in inventory.enumerate() {
        if machine.group == group && draft.rooms.tier(index).is_some() {
            sums.0 = sums.0.plus(machine.capacity.minus(draft.rooms.free(index)));
            sums.1 = sums.1.plus(machine.capacity);
        }
    }
    sums
}

/// Lets a machine go if its load is low; returns whether it does.
fn consider(draft: &mut Draft<'_>, machine: MachineIndex, gone: bool) -> bool {
    let (minimum, debounce) = (limits(draft).min_load, limits(draft).debounce);
    let load = super::load(draft, machine);
    if load >= minimum {
        draft.memory.needed(machine);
        let reason = Reason::NotUnderutilized {
            saved_watt_hours: 0.0,
            cost_watt_hours: 0.0,
        };
        let would = Would::if_only(Change::Empty, debounce);
        draft.decide(machine, Decision::keep(reason).unless(would));
        return false;
    }
    if let Some(workload) = super::lasting(draft, machine) {
        let reason = Reason::BlockedByOnCompletionPod { workload };
        let would = Would::if_only(Change::Empty, debounce);
        draft.decide(machine, Decision::keep(reason).unless(would));
        return false;
    }
    if let Some(decision) = gates::budget(draft, machine) {
        draft.decide(machine, decision);
        return false;
    }
    let group = draft.inventory().machine(machine).group;
    let (used, capacity) = awake(draft, group);
    let left = capacity.minus(draft.inventory().machine(machine).capacity);
    let crowded = used.share_of(&left) > limits(draft).max_load || left.is_zero();
    let moves = match draft.rooms.empty(machine) {
        Ok(moves) if !crowded || used.is_zero() => moves,
        Ok(moves) => {
            draft.memory.needed(machine);
            let reason = Reason::HeldInReserve { reserve: used };
            super::stay(draft, machine, &moves, reason, None);
            return false;
        }
        Err(workload) => {
            draft.memory.needed(machine);
            let (reason, would) = super::no_place(draft, machine, workload, debounce);
            draft.decide(machine, Decision::keep(reason).unless(would));
            return false;
        }
    };
    let unneeded = draft.memory.unneeded(machine, draft.situation.now);
    if let Some(decision) = gates::limit(draft, machine) {
        super::stay(draft, machine, &moves, decision.reason, decision.would);
        return false;
    }
    if unneeded < debounce || gone {
        let reason = Reason::NotUnneededLongEnough {
            unneeded,
            needed: debounce,
        };
        let left = debounce.minus(unneeded).max(Span(60));
        super::stay(draft, machine, &moves, reason, Some(Would::wait(left)));
        return false;
    }
    super::sleep(draft, machine, &moves);
    true
}
