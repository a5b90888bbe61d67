//! As Kubernetes' Cluster Autoscaler decides with its defaults: machines whose requests are below
//! half of what they have, and whose workloads fit elsewhere, go after ten minutes; ten empty ones
//! at a time, others one by one; nothing within ten minutes after a machine was added.

use crate::{
    inventory::MachineIndex,
    moment::Span,
    planner::{
        draft::Draft,
        gates,
        plan::Decision,
        reason::{Change, Reason, Would},
    },
};

const UTILISATION: f64 = 0.5;
const UNNEEDED: Span = Span::minutes(10);
const DELAY_AFTER_ADD: Span = Span::minutes(10);
const EMPTY_AT_ONCE: usize = 10;

pub(crate) fn plan(draft: &mut Draft<'_>) {
    super::serve(draft);
    let mut candidates = super::candidates(draft);
    // Whoever was unneeded before is looked at first.
    candidates.sort_by_key(|one| draft.memory.machines[one.at()].unneeded_since.is_none());
    let (mut empty, mut drained) = (0, 0);
    for machine in candidates {
        consider(draft, machine, &mut empty, &mut drained);
    }
}

fn consider(draft: &mut Draft<'_>, machine: MachineIndex, empty: &mut usize, drained: &mut usize) {
    let now = draft.situation.now;
    if super::load(draft, machine) >= UTILISATION {
        draft.memory.needed(machine);
        let reason = Reason::NotUnderutilized {
            saved_watt_hours: 0.0,
            cost_watt_hours: 0.0,
        };
        let would = Would::if_only(Change::Empty, UNNEEDED);
        draft.decide(machine, Decision::keep(reason).unless(would));
        return;
    }
    if let Some(workload) = super::lasting(draft, machine) {
        draft.memory.needed(machine);
        let reason = Reason::BlockedByOnCompletionPod { workload };
        let would = Would::if_only(Change::Empty, UNNEEDED);
        draft.decide(machine, Decision::keep(reason).unless(would));
        return;
    }
    if let Some(decision) = gates::budget(draft, machine) {
        draft.decide(machine, decision);
        return;
    }
    let moves = match draft.rooms.empty(machine) {
        Ok(moves) => moves,
        Err(workload) => {
            draft.memory.needed(machine);
            let (reason, would) = super::no_place(draft, machine, workload, UNNEEDED);
            draft.decide(machine, Decision::keep(reason).unless(would));
            return;
        }
    };
    let unneeded = draft.memory.unneeded(machine, now);
    let under_way = draft.inventory().machine(machine).draining;
    let cooled = draft.memory.woken.map(|woken| woken.plus(DELAY_AFTER_ADD));
    if let Some(until) = cooled.filter(|until| *until > now && !under_way) {
        let would = Would::wait(until.since(now).max(UNNEEDED.minus(unneeded)));
        let reason = Reason::NotUnneededOtherReason { until };
        hold_room(draft, machine, reason, Some(would));
        return;
    }
    if unneeded < UNNEEDED && !under_way {
        let reason = Reason::NotUnneededLongEnough {
            unneeded,
            needed: UNNEEDED,
        };
        let would = Would::wait(UNNEEDED.minus(unneeded));
        hold_room(draft, machine, reason, Some(would));
        return;
    }
    if let Some(decision) = gates::limit(draft, machine) {
        super::stay(draft, machine, &moves, decision.reason, decision.would);
        return;
    }
    let count = if moves.is_empty() { empty } else { drained };
    let most = if moves.is_empty() { EMPTY_AT_ONCE } else { 1 };
    if *count >= most {
        let group = draft.inventory().machine(machine).group;
        let reason = Reason::NodeGroupMaxDeletionCountReached {
            group,
            maximum: most as u32,
        };
        super::stay(draft, machine, &moves, reason, Some(Would::wait(Span(60))));
        return;
    }
    *count += 1;
    super::sleep(draft, machine, &moves);
}

/// The machine stays for now, but its room counts as gone, as its workloads' new places do.
fn hold_room(draft: &mut Draft<'_>, machine: MachineIndex, reason: Reason, would: Option<Would>) {
    let mut decision = Decision::keep(reason);
    decision.would = would;
    draft.decide(machine, decision);
}
