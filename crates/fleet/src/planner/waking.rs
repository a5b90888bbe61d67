//! Which machines wake: the set that carries what waits at the least cost, and some to be safe.

use super::{
    draft::Draft,
    plan::{Action, Decision, Unplaced},
    reason::{Change, Reason, Would},
    reserve::{Reserve, covers},
    rooms::Tier,
    waiting,
};
use crate::{
    amount::{Amount, Resource},
    inventory::{GroupIndex, Machine, MachineIndex, Power, Workload, WorkloadIndex},
    moment::Span,
    policy::Kind,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A woken machine is assumed to be needed for so long when kinds of machines are compared.
const NEEDED_FOR: Span = Span::hours(1);

/// Machines that differ in nothing that matters to what waits.
#[derive(Debug)]
struct Lot {
    machines: Vec<MachineIndex>,
    /// What waking one and having it on for a while counts, in watt-hours.
    cost: f64,
}

/// Wakes machines for what waits. What finds no machine is noted as without a place.
pub(crate) fn wake_for(draft: &mut Draft<'_>, mut left: Vec<WorkloadIndex>) {
    if left.is_empty() {
        return;
    }
    let mut lots = lots(draft);
    let mut needed = Vec::new();
    while !left.is_empty() {
        let Some((at, count)) = cheapest(draft, &lots, &left) else {
            break;
        };
        let opened = open(draft, &mut lots[at], count);
        let before = left.len();
        left.retain(|index| {
            let Some(workload) = draft.inventory().workload(*index) else {
                return false;
            };
            match draft.rooms.best(workload, Tier::Waking) {
                Some(machine) => {
                    // One more machine may change what is even enough, and so let others take it.
                    if draft.rooms.tier(machine) == Some(Tier::Waking) {
                        draft.promise(*index, machine);
                    } else {
                        draft.place(*index, machine);
                    }
                    false
                }
                None => true,
            }
        });
        let promised: HashMap<MachineIndex, WorkloadIndex> = draft
            .promises
            .iter()
            .map(|one| (one.machine, one.workload))
            .collect();
        for machine in opened.iter().rev() {
            match promised.get(machine) {
                Some(workload) => {
                    let reason = Reason::PendingWork {
                        workload: *workload,
                    };
                    wake(draft, *machine, reason);
                    needed.push(*machine);
                }
                None => {
                    draft.rooms.close(*machine);
                    lots[at].machines.push(*machine);
                }
            }
        }
        if left.len() == before {
            // Rules that look at neighbours forbid what the size would allow.
            lots.swap_remove(at);
        }
    }
    note_unplaced(draft, left);
    if draft.policy().kind == Kind::Atoll {
        hedge(draft, &needed);
    }
}

pub(crate) fn note_unplaced(draft: &mut Draft<'_>, left: Vec<WorkloadIndex>) {
    for workload in left {
        let Some(one) = draft.inventory().workload(workload) else {
            continue;
        };
        let nearest = draft.rooms.nearest(one);
        draft.unplaced.push(Unplaced { workload, nearest });
        for machine in draft.machines() {
            let candidate = draft.inventory().machine(machine);
            let full = candidate.asleep()
                && !draft.is_decided(machine)
                && !draft.may_grow(candidate.group)
                && draft.rooms.refuses_if_open(one, machine).is_none();
            if full {
                let group = candidate.group;
                let would = Would::if_only(Change::Maximum { group }, Span::ZERO);
                let kept = Decision::keep(Reason::MaxSizeReached { group });
                draft.decide(machine, kept.unless(would));
            }
        }
    }
}

/// Whether a machine could be woken.
fn wakeable(draft: &Draft<'_>, index: MachineIndex, machine: &Machine) -> bool {
    machine.asleep()
        && !draft.is_decided(index)
        && machine
            .quarantined_until
            .is_none_or(|until| until <= draft.situation.now)
}

/// What having a machine woken and on for a while counts, in watt-hours.
fn cost(draft: &Draft<'_>, machine: &Machine) -> f64 {
    let tariff = &draft.policy().tariff;
    let wake = match machine.power {
        Power::Suspended => machine.resume.median().as_hours() * machine.watts.in_transition(),
        _ => machine.cycle_watt_hours(),
    };
    wake + tariff.weigh(machine.watts.idle, draft.situation.now, NEEDED_FOR)
}

/// How soon a machine would be there.
pub(crate) fn latency(machine: &Machine, quantile: f64) -> Span {
    match machine.power {
        Power::Suspended => machine.resume.quantile(quantile),
        _ => machine.boot.quantile(quantile),
    }
}

fn lots(draft: &Draft<'_>) -> Vec<Lot> {
    let inventory = draft.inventory();
    let mut keys = BTreeSet::new();
    for set in inventory.sets() {
        keys.extend(set.labels.keys().map(String::as_str));
        keys.extend(set.spread.iter().map(|spread| spread.label.as_str()));
    }
    type Key<'a> = (
        GroupIndex,
        [u64; 4],
        bool,
        u64,
        &'a [crate::inventory::Taint],
        Vec<Option<&'a String>>,
    );
    let mut lots: BTreeMap<Key<'_>, Vec<MachineIndex>> = BTreeMap::new();
    for (index, machine) in inventory.enumerate() {
        if wakeable(draft, index, machine) {
            let labels = keys.iter().map(|key| machine.labels.get(*key)).collect();
            let capacity = Resource::ALL.map(|resource| machine.capacity.of(resource));
            let key = (
                machine.group,
                capacity,
                machine.power == Power::Suspended,
                machine.watts.idle.to_bits(),
                machine.taints.as_slice(),
                labels,
            );
            lots.entry(key).or_default().push(index);
        }
    }
    let mut all: Vec<Lot> = Vec::with_capacity(lots.len());
    for mut machines in lots.into_values() {
        // Taken from the end: the quickest, then the first.
        machines.sort_by_key(|index| (latency(inventory.machine(*index), 0.5), *index));
        machines.reverse();
        let Some(last) = machines.last() else {
            continue;
        };
        let cost = cost(draft, inventory.machine(*last));
        all.push(Lot { machines, cost });
    }
    all
}

/// The lot that would carry everything at the least cost if it were alone, and how many of its
/// machines that would take.
fn cheapest(draft: &Draft<'_>, lots: &[Lot], left: &[WorkloadIndex]) -> Option<(usize, usize)> {
    let inventory = draft.inventory();
    let mut best: Option<(f64, usize, usize)> = None;
    for (at, lot) in lots.iter().enumerate() {
        let Some(first) = lot.machines.last() else {
            continue;
        };
        let machine = inventory.machine(*first);
        if !draft.may_grow(machine.group) {
            continue;
        }
        let mut room = machine.capacity;
        let (mut total, mut carried, mut barred) = (0.0, 0.0, 0.0);
        for index in left {
            let Some(workload) = inventory.workload(*index) else {
                continue;
            };
            let size = size_of(workload, machine);
            total += size;
            if draft.rooms.refuses_if_open(workload, *first).is_some() {
                barred += size;
            } else if workload.request.fits(&room) {
                room = room.minus(workload.request);
                carried += size;
            }
        }
        if carried <= 0.0 {
            continue;
        }
        let count = ((total - barred) / carried).ceil().max(1.0);
        // What this lot cannot take at all needs others, at about the same cost.
        let whole = lot.cost * count * total / (total - barred);
        if best.is_none_or(|(least, ..)| whole < least) {
            best = Some((whole, at, count as usize));
        }
    }
    best.map(|(_, at, count)| (at, count))
}

/// How large a workload is for a machine: never nothing.
fn size_of(workload: &Workload, machine: &Machine) -> f64 {
    workload.request.share_of(&machine.capacity).max(1e-6)
}

/// Opens so many machines of the lot, as far as their group may grow.
fn open(draft: &mut Draft<'_>, lot: &mut Lot, count: usize) -> Vec<MachineIndex> {
    let mut opened: Vec<MachineIndex> = Vec::new();
    while opened.len() < count {
        let Some(machine) = lot.machines.last().copied() else {
            break;
        };
        let group = draft.inventory().machine(machine).group;
        let on = draft.awake[group.at()] as usize + opened.len();
        if on >= draft.inventory().group(group).max as usize {
            break;
        }
        lot.machines.pop();
        draft.rooms.open(machine, Tier::Waking);
        opened.push(machine);
    }
    opened
}

/// Notes that a machine wakes.
pub(crate) fn wake(draft: &mut Draft<'_>, machine: MachineIndex, reason: Reason) {
    if draft.rooms.tier(machine).is_none() {
        draft.rooms.open(machine, Tier::Waking);
    }
    draft.count_awake(machine);
    draft.memory.needed(machine);
    draft.memory.woken = Some(draft.situation.now);
    draft.decide(machine, Decision::act(Action::Wake, reason));
    wake_whole_group(draft, machine);
}

/// A group that is switched all together wakes with its first machine.
fn wake_whole_group(draft: &mut Draft<'_>, first: MachineIndex) {
    let group = draft.inventory().machine(first).group;
    if !draft.inventory().group(group).atomic {
        return;
    }
    for machine in draft.machines() {
        let one = draft.inventory().machine(machine);
        if one.group == group && wakeable(draft, machine, one) && draft.may_grow(group) {
            if draft.rooms.tier(machine).is_none() {
                draft.rooms.open(machine, Tier::Waking);
            }
            draft.count_awake(machine);
            let reason = Reason::AtomicScaleDownFailed { because_of: first };
            draft.decide(machine, Decision::act(Action::Wake, reason));
        }
    }
}

/// Machines that sleep, of one group or all, the best to wake first: the least idle draw for what
/// they carry, then the quickest.
pub(crate) fn preferred(draft: &Draft<'_>, group: Option<GroupIndex>) -> Vec<MachineIndex> {
    let inventory = draft.inventory();
    let mut sleeping: Vec<(f64, Span, MachineIndex)> = inventory
        .enumerate()
        .filter(|(index, one)| {
            group.is_none_or(|group| one.group == group) && wakeable(draft, *index, one)
        })
        .map(|(index, one)| (inefficiency(one), latency(one, 0.5), index))
        .collect();
    sleeping.sort_by(|one, two| {
        one.0
            .total_cmp(&two.0)
            .then(one.1.cmp(&two.1))
            .then(one.2.cmp(&two.2))
    });
    sleeping.into_iter().map(|(.., index)| index).collect()
}

/// Idle watts for what a machine can carry; less is better.
pub(crate) fn inefficiency(machine: &Machine) -> f64 {
    let processors = machine.capacity.cpu_millis as f64 / 1000.0;
    let gibibytes = machine.capacity.memory_bytes as f64 / (1_u64 << 30) as f64;
    // Four gibibytes for a processor is how most machines are built.
    machine.watts.idle / (processors + gibibytes / 4.0).max(1e-6)
}

/// Wakes what must be awake whatever is asked for: groups' and the fleet's minima.
pub(crate) fn wake_minimum(draft: &mut Draft<'_>) {
    for (at, group) in draft.inventory().groups().iter().enumerate() {
        if draft.awake[at] < group.min {
            let missing = (group.min - draft.awake[at]) as usize;
            let group = Some(GroupIndex(at as u32));
            for machine in preferred(draft, group).into_iter().take(missing) {
                wake(draft, machine, Reason::BelowMinimum);
            }
        }
    }
    let minimum = draft.policy().minimum;
    if !minimum.fits(&draft.capacity) {
        for machine in preferred(draft, None) {
            if minimum.fits(&draft.capacity) {
                break;
            }
            if draft.may_grow(draft.inventory().machine(machine).group) {
                wake(draft, machine, Reason::BelowMinimum);
            }
        }
    }
}

/// Lets every group have what it must hold ready, first by machines that are being emptied, then
/// by waking others.
pub(crate) fn fill_reserve(draft: &mut Draft<'_>, reserve: &Reserve) {
    let mut spare = reserve.spare(draft);
    for (at, spare) in spare.iter_mut().enumerate() {
        let wanted = reserve.wanted[at];
        if covers(*spare, wanted) {
            continue;
        }
        let group = GroupIndex(at as u32);
        let reason = Reason::HeldInReserve { reserve: wanted };
        for machine in waiting::draining(draft) {
            if covers(*spare, wanted) {
                break;
            }
            if draft.inventory().machine(machine).group == group {
                waiting::reopen(draft, machine, reason);
                *spare = spare.plus(reserve.share(draft, machine));
            }
        }
        for machine in preferred(draft, Some(group)) {
            if covers(*spare, wanted) || !draft.may_grow(group) {
                break;
            }
            if draft.is_decided(machine) {
                continue;
            }
            wake(draft, machine, reason);
            *spare = spare.plus(reserve.share(draft, machine));
        }
    }
}

/// Wakes a few more machines than are needed if it is likely that some of them come too late.
fn hedge(draft: &mut Draft<'_>, needed: &[MachineIndex]) {
    let inventory = draft.inventory();
    let Some(first) = needed.first() else {
        return;
    };
    let machine = inventory.machine(*first);
    let deadline = latency(machine, 0.95);
    let group = machine.group;
    let chance = |index: MachineIndex| {
        let one = inventory.machine(index);
        match one.power {
            Power::Suspended => one.resume.chance_within(deadline),
            _ => one.boot.chance_within(deadline),
        }
    };
    // How likely it is that exactly so many are there in time.
    let mut in_time = vec![1.0];
    for machine in needed {
        add(&mut in_time, chance(*machine));
    }
    let most = needed.len().div_ceil(4) + 1;
    for machine in preferred(draft, Some(group)).into_iter().take(most) {
        let late: f64 = in_time[..needed.len()].iter().sum();
        if late <= draft.policy().late_chance || !draft.may_grow(group) {
            return;
        }
        if chance(machine) <= 0.5 {
            continue;
        }
        add(&mut in_time, chance(machine));
        wake(draft, machine, Reason::Hedge);
    }
}

/// Adds one more machine, there in time with this chance, to the distribution of how many are.
fn add(in_time: &mut Vec<f64>, chance: f64) {
    in_time.push(0.0);
    for at in (0..in_time.len()).rev() {
        let less = if at > 0 { in_time[at - 1] } else { 0.0 };
        in_time[at] = in_time[at] * (1.0 - chance) + less * chance;
    }
}

/// Says of every machine that goes on sleeping why it does, and how much more would have to be
/// asked for until it woke.
pub(crate) fn explain_sleepers(draft: &mut Draft<'_>, reserve: &Reserve) {
    let now = draft.situation.now;
    for machine in draft.machines() {
        let one = draft.inventory().machine(machine);
        if let Some(until) = one.quarantined_until.filter(|until| *until > now)
            && one.asleep()
            && !draft.is_decided(machine)
        {
            let amount = reserve.unit(one.group).max(one.capacity);
            let would = Would::if_only(Change::Demand { amount }, until.since(now));
            let kept = Decision::keep(Reason::Quarantined { until });
            draft.decide(machine, kept.unless(would));
        }
    }
    let spare = reserve.spare(draft);
    let mut ahead: Vec<Amount> = spare;
    for machine in preferred(draft, None) {
        let one = draft.inventory().machine(machine);
        let group = one.group.at();
        let amount = ahead[group].plus(reserve.unit(one.group));
        ahead[group] = ahead[group].plus(one.capacity);
        let amount = Amount {
            places: 1,
            ..amount
        };
        let would = Would::if_only(Change::Demand { amount }, Span::ZERO);
        draft.decide(machine, Decision::keep(Reason::Unneeded).unless(would));
    }
}
