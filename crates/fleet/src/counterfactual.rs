//! Trying out what a decision says would change it: the change is made, time passes, and the
//! planner is asked again.

use crate::{
    amount::Amount,
    inventory::{Inventory, Machine, MachineIndex, Moving, Power, Role, Workload},
    moment::{Moment, Span},
    planner::{Action, Change, Memory, Plan, Situation, Would, plan},
    policy::Policy,
};

/// The planner is asked so often while time passes.
const STEP: Span = Span(30);

/// Whether what was said holds: after the change, and within the time that was named, a machine
/// that is awake starts to go to sleep, and one that sleeps wakes.
///
/// Nothing else changes meanwhile, but for what the plans themselves do.
pub fn holds(
    situation: Situation<'_>,
    memory: &Memory,
    machine: MachineIndex,
    would: &Would,
) -> bool {
    let mut inventory = situation.inventory.clone();
    let mut policy = situation.policy.clone();
    let mut forecast = situation.forecast;
    let asleep = inventory.machine(machine).asleep();
    if let Some(change) = would.change {
        if change == Change::NoGrowth {
            forecast = None;
            policy.reserve_share = 0.0;
        } else {
            apply(change, machine, &mut inventory, &mut policy);
        }
    }
    let mut memory = memory.clone();
    let deadline = situation.now.plus(would.after).plus(STEP);
    let mut now = situation.now;
    while now <= deadline {
        let later = Situation {
            inventory: &inventory,
            forecast,
            policy: &policy,
            now,
        };
        let (next, remembered) = plan(later, &memory);
        let done = match next.decision(machine).action {
            Action::Wake => asleep,
            Action::Drain | Action::Suspend | Action::PowerOff => !asleep,
            Action::Keep | Action::Undrain => false,
        };
        if done {
            return true;
        }
        memory = remembered;
        carry_out(&mut inventory, &next, now);
        now = now.plus(STEP);
    }
    false
}

/// Does at once what a plan says. Machines that wake stay on their way.
pub fn carry_out(inventory: &mut Inventory, plan: &Plan, now: Moment) {
    for one in plan.placements.iter().chain(&plan.moves) {
        inventory.place(one.workload, one.machine);
    }
    for (index, action) in plan.actions() {
        let idle = inventory.carried(index).is_empty();
        let machine = inventory.machine_mut(index);
        let power = match action {
            Action::Wake => Power::Waking,
            Action::PowerOff if idle => Power::Off,
            Action::Suspend if idle => Power::Suspended,
            Action::Drain | Action::Undrain => {
                machine.draining = action == Action::Drain;
                continue;
            }
            Action::Keep | Action::PowerOff | Action::Suspend => continue,
        };
        (machine.power, machine.since, machine.draining) = (power, now, false);
    }
}

/// Makes the change.
fn apply(change: Change, machine: MachineIndex, inventory: &mut Inventory, policy: &mut Policy) {
    match change {
        Change::Room { room } => {
            let group = inventory.machine(machine).group;
            let mut other = Machine::new("more room", group, room);
            other.role = Role::Base;
            other.labels = inventory.machine(machine).labels.clone();
            inventory.add_machine(other);
        }
        Change::Gone { workload } => {
            inventory.remove(workload);
        }
        Change::MayMove { workload } => {
            if let Some(one) = inventory.workload_mut(workload) {
                one.moving = Moving::Free;
            }
        }
        Change::Empty => {
            for workload in inventory.carried(machine).to_vec() {
                inventory.remove(workload);
            }
        }
        Change::Ready => {
            let one = inventory.machine_mut(machine);
            (one.ready, one.seen) = (true, true);
        }
        Change::Released => inventory.machine_mut(machine).hold = false,
        Change::Auto => inventory.machine_mut(machine).role = Role::Auto,
        Change::Minimum { group, machines } => inventory.group_mut(group).min = machines,
        Change::Maximum { group } => {
            let one = inventory.group_mut(group);
            one.max = one.max.saturating_add(1);
        }
        Change::NoMinimum => policy.minimum = Amount::ZERO,
        Change::Deletions { machines } => policy.max_power_offs = machines,
        Change::NotAtomic { group } => inventory.group_mut(group).atomic = false,
        Change::UnreadyAllowed => policy.scale_down_unready = true,
        Change::MoveCost { watt_hours } => policy.move_watt_hours = watt_hours,
        Change::Disruptions { set, members } => {
            inventory.set_mut(set).disruptions = Some(members);
        }
        Change::NoGrowth => {}
        Change::Demand { amount } => ask_for(inventory, amount),
        Change::OtherPolicy => policy.kind = crate::policy::Kind::Atoll,
    }
}

/// Adds waiting workloads that ask for so much together, each as large as those there are.
fn ask_for(inventory: &mut Inventory, amount: Amount) {
    let mut all = (Amount::ZERO, 0_u64);
    for (_, workload) in inventory.workloads() {
        all = (all.0.plus(workload.request), all.1 + 1);
    }
    let unit = match all.1 {
        0 => amount,
        count => all.0.scaled(1.0 / count as f64),
    };
    let unit = Amount { places: 1, ..unit };
    let wanted = Amount {
        places: 0,
        ..amount
    };
    let count = (1..10_000).find(|count| wanted.fits(&unit.times(*count)));
    for _ in 0..count.unwrap_or(0) {
        inventory.add_workload(Workload::new("more", unit));
    }
}
