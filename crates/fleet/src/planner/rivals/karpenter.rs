//! As Karpenter's consolidation decides with its defaults: empty machines go at once, then as many
//! of those with the fewest workloads as fit on the others, found by bisection among a hundred; at
//! most a tenth of all machines at a time. It does not look at what moving costs.

use crate::{
    inventory::{MachineIndex, WorkloadIndex},
    moment::Span,
    planner::{
        draft::Draft,
        gates,
        plan::Decision,
        reason::{Change, Reason, Would},
    },
};

const CANDIDATES: usize = 100;
const BUDGET: f64 = 0.1;

type Moves = Vec<(WorkloadIndex, MachineIndex)>;

pub(crate) fn plan(draft: &mut Draft<'_>) {
    super::serve(draft);
    let mut candidates = super::candidates(draft);
    let machines = draft.inventory().machines().iter();
    let on = machines.filter(|one| !one.asleep()).count();
    let budget = ((on as f64 * BUDGET).ceil() as usize).max(1);
    candidates.sort_by_key(|one| (draft.inventory().carried(*one).len(), *one));
    let mut gone = 0;
    let mut loaded = Vec::new();
    for machine in candidates {
        if !draft.inventory().carried(machine).is_empty() {
            loaded.push(machine);
        } else if let Some(decision) = gates::limit(draft, machine) {
            draft.decide(machine, decision);
        } else if gone < budget {
            gone += 1;
            super::sleep(draft, machine, &[]);
        } else {
            keep(draft, machine);
        }
    }
    let mut movable = Vec::new();
    for machine in loaded {
        match super::lasting(draft, machine) {
            Some(workload) => {
                let reason = Reason::BlockedByOnCompletionPod { workload };
                let would = Would::if_only(Change::Empty, Span::ZERO);
                draft.decide(machine, Decision::keep(reason).unless(would));
            }
            None => movable.push(machine),
        }
    }
    let most = movable
        .len()
        .min(CANDIDATES)
        .min(budget.saturating_sub(gone));
    let (chosen, rest) = movable.split_at(most);
    let count = most_that_fit(draft, chosen);
    for machine in &chosen[..count] {
        if let Some(decision) = gates::budget(draft, *machine) {
            draft.decide(*machine, decision);
            continue;
        }
        match draft.rooms.empty(*machine) {
            Ok(moves) => match gates::limit(draft, *machine) {
                None => super::sleep(draft, *machine, &moves),
                Some(decision) => {
                    super::stay(draft, *machine, &moves, decision.reason, decision.would);
                }
            },
            Err(_) => keep(draft, *machine),
        }
    }
    for machine in chosen[count..].iter().chain(rest) {
        keep(draft, *machine);
    }
}

/// The largest number of the first machines that can be emptied together, by bisection.
fn most_that_fit(draft: &mut Draft<'_>, machines: &[MachineIndex]) -> usize {
    let (mut fits, mut fails) = (0, machines.len() + 1);
    while fails - fits > 1 {
        let middle = fits + (fails - fits) / 2;
        if try_emptying(draft, &machines[..middle]) {
            fits = middle;
        } else {
            fails = middle;
        }
    }
    fits
}

/// Whether these machines can be emptied together. Everything is left as it was.
fn try_emptying(draft: &mut Draft<'_>, machines: &[MachineIndex]) -> bool {
    let mut done: Vec<(MachineIndex, Moves)> = Vec::new();
    // Whoever is to go takes in nothing.
    let tiers: Vec<_> = machines.iter().map(|one| draft.rooms.tier(*one)).collect();
    for machine in machines {
        draft.rooms.close(*machine);
    }
    let mut all = true;
    for machine in machines {
        match draft.rooms.empty(*machine) {
            Ok(moves) => done.push((*machine, moves)),
            Err(_) => {
                all = false;
                break;
            }
        }
    }
    for (machine, moves) in done.iter().rev() {
        draft.rooms.undo(*machine, moves);
    }
    for (machine, tier) in machines.iter().zip(tiers) {
        if let Some(tier) = tier {
            draft.rooms.open(*machine, tier);
        }
    }
    all
}

fn keep(draft: &mut Draft<'_>, machine: MachineIndex) {
    let reason = Reason::NotUnderutilized {
        saved_watt_hours: 0.0,
        cost_watt_hours: 0.0,
    };
    let would = Would::if_only(Change::Empty, Span::minutes(1));
    draft.decide(machine, Decision::keep(reason).unless(would));
}
