//! Which machines go to sleep: those whose work fits elsewhere, or that have none, if it pays.

use super::{
    draft::Draft,
    gates,
    plan::{Action, Blocked, Decision, Placement},
    reason::{Change, Reason, Would},
    reserve::{Reserve, covers},
    rooms::{Tier, staying},
    waking,
    worth::{self, Depth},
};
use crate::{
    amount::Amount,
    inventory::{GroupIndex, Inventory, MachineIndex, Moving, Power, WorkloadIndex},
    moment::Span,
};

/// A machine with more workloads that stay will be on for long: while it is, it may as well take
/// others. One with fewer is soon empty, if nothing is added.
const SOON_EMPTY: usize = 3;

/// In which order machines are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Those that carry least come first.
    Emptiest,
    /// Those that draw most for what they can carry come first.
    Hungriest,
}

/// Decides about every machine that is on, and lets sleeping ones sleep deeper.
pub(crate) fn retire(draft: &mut Draft<'_>, reserve: &Reserve) {
    let open: Vec<MachineIndex> = draft
        .machines()
        .filter(|index| !draft.is_decided(*index))
        .collect();
    let mut candidates = Vec::new();
    let mut spare: Option<Vec<Amount>> = None;
    for machine in open {
        match draft.inventory().machine(machine).power {
            Power::Off => {}
            Power::Suspended => {
                let spare = spare.get_or_insert_with(|| reserve.spare(draft));
                let group = draft.inventory().machine(machine).group;
                let spare = spare[group.at()];
                deepen(draft, reserve, machine, spare);
            }
            Power::On | Power::Waking | Power::Stopping => match gates::hold(draft, machine) {
                Some(decision) => {
                    draft.memory.machines[machine.at()].unneeded_since = None;
                    draft.decide(machine, decision);
                }
                None => candidates.push(machine),
            },
        }
    }
    let atomic = leave_atomic(draft, &mut candidates);
    if differ(draft.inventory(), &candidates) {
        let orders = [Order::Emptiest, Order::Hungriest];
        let [first, second] = orders.map(|order| sorted(draft, &candidates, order));
        let mut other = draft.clone();
        let emptiest = attempt(draft, reserve, first);
        let hungriest = attempt(&mut other, reserve, second);
        if hungriest > emptiest {
            *draft = other;
        }
    } else {
        let order = sorted(draft, &candidates, Order::Emptiest);
        attempt(draft, reserve, order);
    }
    for group in atomic {
        retire_together(draft, reserve, group);
    }
}

/// Takes the machines out that sleep only all together; returns their groups.
fn leave_atomic(draft: &Draft<'_>, candidates: &mut Vec<MachineIndex>) -> Vec<GroupIndex> {
    let inventory = draft.inventory();
    let is_atomic = |machine: &MachineIndex| {
        let group = inventory.machine(*machine).group;
        inventory.group(group).atomic
    };
    let groups = candidates.iter().filter(|one| is_atomic(one));
    let mut groups: Vec<GroupIndex> = groups.map(|one| inventory.machine(*one).group).collect();
    groups.sort_unstable();
    groups.dedup();
    candidates.retain(|machine| !is_atomic(machine));
    groups
}

/// Whether some of the machines are built to need more for what they carry than others.
fn differ(inventory: &Inventory, machines: &[MachineIndex]) -> bool {
    let all = machines
        .iter()
        .map(|one| waking::inefficiency(inventory.machine(*one)));
    let (least, most) = all.fold((f64::MAX, 0.0_f64), |(least, most), one| {
        (least.min(one), most.max(one))
    });
    most > least * 1.02
}

/// The machines in the order in which they are tried: what is under way first, so that plans do
/// not change their mind from one to the next.
fn sorted(draft: &Draft<'_>, machines: &[MachineIndex], order: Order) -> Vec<MachineIndex> {
    let inventory = draft.inventory();
    let most = machines.iter().map(|one| staying(inventory, *one)).max();
    let most = f64::from(most.unwrap_or(0).max(1));
    let mut keyed: Vec<(u8, f64, f64, MachineIndex)> = machines
        .iter()
        .map(|index| {
            let machine = inventory.machine(*index);
            // What stays until it is done decides when the machine is empty, however small it is.
            let share = match staying(inventory, *index) {
                0 => inventory.used(*index).share_of(&machine.capacity),
                count => f64::from(count) / most,
            };
            let hunger = match order {
                Order::Emptiest => 0.0,
                Order::Hungriest => -waking::inefficiency(machine),
            };
            let remembered = &draft.memory.machines[index.at()];
            let turn = match (machine.draining, remembered.unneeded_since) {
                (true, _) => 0,
                (false, Some(_)) => 1,
                (false, None) => 2,
            };
            (turn, hunger, share, *index)
        })
        .collect();
    keyed.sort_by(|one, two| {
        one.0
            .cmp(&two.0)
            .then(one.1.total_cmp(&two.1))
            .then(one.2.total_cmp(&two.2))
            .then(one.3.cmp(&two.3))
    });
    keyed.into_iter().map(|(.., index)| index).collect()
}

/// What the attempt still may do and has done.
struct Attempt {
    spare: Vec<Amount>,
    /// All room on open machines, whether it is of use or not.
    free: Amount,
    tries: u32,
    /// What machines that could not be emptied would have needed, group by group: whoever comes
    /// later needs that and its own.
    ahead: Vec<Amount>,
    saved: f64,
}

/// Decides about the machines one after the other; returns what is saved, in watt-hours over the
/// policy's horizon.
fn attempt(draft: &mut Draft<'_>, reserve: &Reserve, machines: Vec<MachineIndex>) -> f64 {
    let groups = draft.inventory().groups().len();
    let mut attempt = Attempt {
        spare: reserve.spare(draft),
        free: draft.rooms.all_free(),
        tries: draft.policy().tries,
        ahead: vec![Amount::ZERO; groups],
        saved: 0.0,
    };
    for machine in machines {
        let decision = consider(draft, reserve, &mut attempt, machine);
        draft.decide(machine, decision);
    }
    attempt.saved
}

/// Whether, and how, a machine that nothing holds goes to sleep.
fn consider(
    draft: &mut Draft<'_>,
    reserve: &Reserve,
    attempt: &mut Attempt,
    machine: MachineIndex,
) -> Decision {
    let inventory = draft.inventory();
    let group = inventory.machine(machine).group;
    let wanted = reserve.wanted[group.at()];
    let share = reserve.share(draft, machine);
    let left = attempt.spare[group.at()].minus(share);
    let used = inventory.used(machine);
    let carried = inventory.carried(machine).len();
    if !covers(left, wanted) {
        let (now, recheck) = (draft.situation.now, draft.policy().recheck);
        draft.memory.doubted(machine, now, recheck);
        if carried == 0 {
            let later = gates::patience(draft, machine, 0);
            let would = Would::if_only(Change::NoGrowth, later);
            return Decision::keep(Reason::HeldInReserve { reserve: wanted }).unless(would);
        }
        let missing = wanted.plus(used).minus(left);
        return no_place(draft, reserve, attempt, machine, None, missing);
    }
    if carried == 0 && !draft.rooms.has_received(machine) {
        let expected = reserve.lasts(draft, group, left);
        attempt.spare[group.at()] = left;
        return settle(draft, reserve, attempt, machine, Vec::new(), expected);
    }
    if let Some(decision) = wait_for_completion(draft, machine) {
        if draft.rooms.tier(machine).is_none() {
            attempt.spare[group.at()] = left;
        }
        return decision;
    }
    empty(draft, reserve, attempt, machine, left)
}

/// A machine that carries work which ends by itself waits for that, and if it is not much takes no
/// more of it.
fn wait_for_completion(draft: &mut Draft<'_>, machine: MachineIndex) -> Option<Decision> {
    let inventory = draft.inventory();
    let mut staying = inventory.carried(machine).iter().filter(|index| {
        inventory
            .workload(**index)
            .is_some_and(|one| one.moving == Moving::OnCompletion)
    });
    let workload = *staying.next()?;
    let change = match staying.next() {
        None => Change::Gone { workload },
        Some(_) => Change::Empty,
    };
    let moves = inventory.carried(machine).len();
    let later = gates::patience(draft, machine, moves);
    let draining = inventory.machine(machine).draining;
    if !draining && let Some(decision) = gates::limit(draft, machine) {
        return Some(decision);
    }
    let reason = Reason::BlockedByOnCompletionPod { workload };
    let would = Would::if_only(change, later);
    if !draining && 2 + staying.count() > SOON_EMPTY {
        draft.memory.needed(machine);
        return Some(Decision::keep(reason).unless(would));
    }
    draft.memory.unneeded(machine, draft.situation.now);
    if draft.rooms.has_received(machine) {
        // It takes in what others give up; it is emptied another time.
        return Some(Decision::keep(reason).unless(would));
    }
    if !draining {
        draft.count_closed(machine);
    }
    draft.rooms.close(machine);
    let action = if draining {
        Action::Keep
    } else {
        Action::Drain
    };
    Some(Decision::act(action, reason).unless(would))
}

/// Tries to move away what a machine carries.
fn empty(
    draft: &mut Draft<'_>,
    reserve: &Reserve,
    attempt: &mut Attempt,
    machine: MachineIndex,
    left: Amount,
) -> Decision {
    let inventory = draft.inventory();
    let group = inventory.machine(machine).group;
    let carried = inventory.carried(machine).len();
    let worth = worth::of(draft, machine, carried, None);
    let horizon = draft.policy().horizon;
    if worth.pays_from() > horizon {
        draft.memory.needed(machine);
        return not_worth_it(draft, machine, carried, worth, horizon);
    }
    if let Some(decision) = gates::budget(draft, machine) {
        draft.memory.needed(machine);
        return decision;
    }
    let wanted = reserve.wanted[group.at()];
    let used = inventory.used(machine);
    let open = draft.rooms.tier(machine).map(|_| draft.rooms.free(machine));
    let elsewhere = attempt.free.minus(open.unwrap_or_default());
    if !covers(elsewhere, used) {
        let missing = wanted.plus(used).minus(left);
        let (now, recheck) = (draft.situation.now, draft.policy().recheck);
        draft.memory.doubted(machine, now, recheck);
        return no_place(draft, reserve, attempt, machine, None, missing);
    }
    if let Some(blocked) = draft.memory.machines[machine.at()].blocked {
        if blocked.until > draft.situation.now {
            let until = blocked.until;
            let after = Span(blocked.would.after.0 + until.since(draft.situation.now).0);
            let would = Would {
                after,
                ..blocked.would
            };
            attempt.ahead[group.at()] = attempt.ahead[group.at()].plus(used);
            return Decision::keep(Reason::RecentlyUnremovable { until }).unless(would);
        }
        draft.memory.machines[machine.at()].blocked = None;
    }
    if attempt.tries == 0 {
        let until = draft.situation.now.plus(Span::minutes(1));
        let later = gates::patience(draft, machine, 0);
        let would = Would::if_only(Change::Empty, Span(later.0 + 60));
        return Decision::keep(Reason::RecentlyUnremovable { until }).unless(would);
    }
    attempt.tries -= 1;
    let tier = draft.rooms.tier(machine);
    match draft.rooms.empty(machine) {
        Err(workload) => {
            let missing = draft.inventory().workload(workload).map_or(used, |one| {
                let nearest = draft.rooms.nearest(one);
                nearest.map_or(one.request, |(_, short)| short)
            });
            let (now, recheck) = (draft.situation.now, draft.policy().recheck);
            draft.memory.doubted(machine, now, recheck);
            let decision = no_place(draft, reserve, attempt, machine, Some(workload), missing);
            block(draft, machine, &decision);
            decision
        }
        Ok(moves) => {
            let spare = reserve.after(draft, attempt.spare.clone(), group, left, &moves);
            if !covers(spare[group.at()], wanted) {
                draft.rooms.undo(machine, &moves);
                reopen(draft, machine, tier);
                draft
                    .memory
                    .doubted(machine, draft.situation.now, draft.policy().recheck);
                let missing = wanted.minus(spare[group.at()]);
                let decision = no_place(draft, reserve, attempt, machine, None, missing);
                block(draft, machine, &decision);
                return decision;
            }
            let expected = reserve.lasts(draft, group, spare[group.at()]);
            attempt.spare = spare;
            attempt.free = elsewhere.minus(used);
            settle(draft, reserve, attempt, machine, moves, expected)
        }
    }
}

/// Lets a machine take work as it did before.
fn reopen(draft: &mut Draft<'_>, machine: MachineIndex, tier: Option<Tier>) {
    if let Some(tier) = tier {
        draft.rooms.open(machine, tier);
    }
}

fn block(draft: &mut Draft<'_>, machine: MachineIndex, decision: &Decision) {
    if let Some(would) = decision.would {
        let until = draft.situation.now.plus(draft.policy().recheck);
        draft.memory.machines[machine.at()].blocked = Some(Blocked { until, would });
    }
}

fn not_worth_it(
    draft: &Draft<'_>,
    machine: MachineIndex,
    carried: usize,
    worth: worth::Worth,
    horizon: Span,
) -> Decision {
    let saved = worth.saved(horizon);
    let fixed = worth.cost - draft.policy().move_watt_hours * carried as f64;
    let reason = Reason::NotUnderutilized {
        saved_watt_hours: saved,
        cost_watt_hours: worth.cost,
    };
    // A little less than what would just pay, against rounding.
    let watt_hours = (saved - fixed) / carried.max(1) as f64 * 0.95;
    let would = if watt_hours > 0.0 {
        Would::if_only(Change::MoveCost { watt_hours }, horizon)
    } else {
        Would::if_only(Change::Empty, gates::patience(draft, machine, 0))
    };
    Decision::keep(reason).unless(would)
}

fn no_place(
    draft: &mut Draft<'_>,
    reserve: &Reserve,
    attempt: &mut Attempt,
    machine: MachineIndex,
    workload: Option<WorkloadIndex>,
    missing: Amount,
) -> Decision {
    let inventory = draft.inventory();
    let group = inventory.machine(machine).group;
    attempt.ahead[group.at()] = attempt.ahead[group.at()].plus(inventory.used(machine));
    let room = attempt.ahead[group.at()]
        .plus(reserve.wanted[group.at()])
        .plus(reserve.unit(group));
    let later = gates::patience(draft, machine, inventory.carried(machine).len());
    let reason = Reason::NoPlaceToMovePods {
        workload,
        short: Amount {
            places: 0,
            ..missing
        },
    };
    Decision::keep(reason).unless(Would::if_only(Change::Room { room }, later))
}

/// A machine can be done without: it sleeps if it has been so for long enough, and if it is
/// expected to stay so for long enough.
fn settle(
    draft: &mut Draft<'_>,
    reserve: &Reserve,
    attempt: &mut Attempt,
    machine: MachineIndex,
    moves: Vec<(WorkloadIndex, MachineIndex)>,
    expected: Option<Span>,
) -> Decision {
    let unneeded = draft.memory.unneeded(machine, draft.situation.now);
    // Whatever was expected: what nobody needed for so long, nobody needs.
    let idle = expected.map_or(unneeded, |span| span.max(unneeded));
    let group = draft.inventory().machine(machine).group;
    let foreseen = reserve.foreseen(draft, group, expected).map(|_| idle);
    let worth = worth::of(draft, machine, moves.len(), foreseen);
    let draining = draft.inventory().machine(machine).draining;
    let tier = (!draining).then_some(Tier::On);
    let debounce = draft.policy().debounce;
    let pays = worth.pays_from();
    if let Some(decision) = gates::limit(draft, machine) {
        draft.rooms.undo(machine, &moves);
        reopen(draft, machine, tier);
        attempt.spare = reserve.spare(draft);
        return decision;
    }
    attempt.saved += worth.saved(draft.policy().horizon) - worth.cost;
    draft.rooms.close(machine);
    if (idle < pays || unneeded < debounce) && !draining {
        // It will go: those that are looked at later may have to stay instead.
        draft.count_closed(machine);
    }
    if idle < pays {
        let would = Would::wait(pays.max(debounce).minus(unneeded));
        let reason = match expected {
            Some(idle) => Reason::BreakEven { idle, needed: pays },
            None => Reason::NotUnneededLongEnough {
                unneeded,
                needed: pays.max(debounce),
            },
        };
        return Decision::keep(reason).unless(would);
    }
    if unneeded < debounce {
        let reason = Reason::NotUnneededLongEnough {
            unneeded,
            needed: debounce,
        };
        return Decision::keep(reason).unless(Would::wait(debounce.minus(unneeded)));
    }
    draft.count_retired(machine);
    if moves.is_empty() {
        let action = match worth.depth {
            Depth::Light => Action::Suspend,
            Depth::Deep => Action::PowerOff,
        };
        return Decision::act(action, Reason::Unneeded);
    }
    draft
        .moves
        .extend(moves.into_iter().map(|(workload, target)| Placement {
            workload,
            machine: target,
        }));
    Decision::act(Action::Drain, Reason::Unneeded)
}

/// A suspended machine is switched off once that pays.
fn deepen(draft: &mut Draft<'_>, reserve: &Reserve, machine: MachineIndex, spare: Amount) {
    let one = draft.inventory().machine(machine);
    let Some(needed) = worth::deeper_pays_from(one, draft.policy().wear_watt_hours) else {
        return;
    };
    let slept = draft.situation.now.since(one.since);
    let lasts = reserve.lasts(draft, one.group, spare);
    let expected = reserve.foreseen(draft, one.group, lasts);
    if expected.map_or(slept, |span| slept.max(span)) >= needed {
        let decision = Decision::act(Action::PowerOff, Reason::DeeperSleep);
        draft.decide(machine, decision);
    }
}

/// A group that sleeps all together does so if each of its machines may.
fn retire_together(draft: &mut Draft<'_>, reserve: &Reserve, group: GroupIndex) {
    let inventory = draft.inventory();
    let members: Vec<MachineIndex> = inventory
        .enumerate()
        .filter(|(_, one)| one.group == group && !one.asleep())
        .map(|(index, _)| index)
        .collect();
    let mut trial = draft.clone();
    let open: Vec<MachineIndex> = members
        .iter()
        .copied()
        .filter(|index| !draft.is_decided(*index))
        .collect();
    attempt(&mut trial, reserve, open.clone());
    let goes = |decision: &Decision| {
        matches!(
            decision.action,
            Action::Drain | Action::PowerOff | Action::Suspend
        ) || is_emptying(decision)
    };
    let stays = members.iter().copied().find(|index| {
        trial.decisions[index.at()]
            .as_ref()
            .is_some_and(|decision| !goes(decision))
    });
    match stays {
        None => *draft = trial,
        Some(because_of) => {
            // What each has been unneeded for is remembered; nothing else of the trial is.
            draft.memory = trial.memory;
            for machine in open {
                let own = trial.decisions[machine.at()];
                let decision = match own {
                    Some(decision) if machine == because_of => decision,
                    _ => {
                        let later = gates::patience(
                            draft,
                            machine,
                            draft.inventory().carried(machine).len(),
                        );
                        Decision::keep(Reason::AtomicScaleDownFailed { because_of })
                            .unless(Would::if_only(Change::NotAtomic { group }, later))
                    }
                };
                draft.decide(machine, decision);
            }
        }
    }
}

/// Whether the decision is to go on emptying the machine.
fn is_emptying(decision: &Decision) -> bool {
    matches!(decision.reason, Reason::BlockedByOnCompletionPod { .. })
}
