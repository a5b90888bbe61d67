//! How far a plan is from the best that can be: a lower bound that is proven, and the gap to it.
//!
//! Whatever set of machines carries the demand, it has at least the demanded amount of each
//! resource, and so of every weighted sum of resources with weights of at least zero. The cheapest
//! way to have so much of one such sum, with machines that may be bought in parts, is found by
//! taking them in the order of cost for what they have (Dantzig, *Discrete-variable extremum
//! problems*, 1957). No real set is cheaper. The best weights are those of the dual of the linear
//! relaxation; they are searched for, and any of them gives a valid bound.
//!
//! Beside it stands a bound by number: so many machines as the largest would be needed at the
//! least, at the price of the cheapest.

use super::plan::{Action, Plan};
use crate::{
    amount::{Amount, Resource},
    inventory::{Inventory, Machine, MachineIndex, Moving, Role},
};
use serde::{Deserialize, Serialize};

/// Resources over which weights are searched for; places are left out, as they seldom bind.
const WEIGHED: [Resource; 3] = [Resource::Cpu, Resource::Memory, Resource::Gpu];
/// How finely weights are searched for.
const STEPS: u32 = 20;

/// What the machines that stay awake draw, and the least that any plan could reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Idle watts of the machines that are awake when the plan is carried out.
    pub watts: f64,
    /// No plan that carries the demand keeps less than these awake.
    pub bound_watts: f64,
}

impl Gap {
    /// How much more the plan keeps awake than the bound, as a share of it.
    pub fn share(&self) -> f64 {
        if self.bound_watts > 0.0 {
            self.watts / self.bound_watts - 1.0
        } else {
            0.0
        }
    }
}

/// The gap of a plan to the lower bound. Workloads without a place do not count.
pub fn gap(inventory: &Inventory, plan: &Plan) -> Gap {
    let stays = |index: MachineIndex, machine: &Machine| match plan.decision(index).action {
        Action::Wake | Action::Undrain => true,
        Action::Drain | Action::Suspend | Action::PowerOff => false,
        Action::Keep => !machine.asleep() && !machine.draining,
    };
    let awake = inventory
        .enumerate()
        .filter(|(index, machine)| stays(*index, machine));
    let watts = awake.map(|(_, machine)| machine.watts.idle).sum();
    let without_place = |index| plan.unplaced.iter().any(|one| one.workload == index);
    let all = inventory.workloads();
    let requests: Vec<Amount> = all
        .filter(|(index, _)| plan.unplaced.is_empty() || !without_place(*index))
        .map(|(_, workload)| workload.request)
        .collect();
    Gap {
        watts,
        bound_watts: lower_bound(inventory, &requests),
    }
}

/// Idle watts that any set of machines has at the least which carries workloads with these
/// requests. Machines that cannot sleep are in every such set.
pub fn lower_bound(inventory: &Inventory, requests: &[Amount]) -> f64 {
    let mut pinned_watts = 0.0;
    let mut demand: Amount = requests.iter().copied().sum();
    let mut free: Vec<&Machine> = Vec::new();
    for (index, machine) in inventory.enumerate() {
        if is_pinned(inventory, index, machine) {
            pinned_watts += machine.watts.idle;
            demand = demand.minus(machine.capacity);
        } else {
            free.push(machine);
        }
    }
    let mut bound = by_number(&free, demand, requests, inventory, free.len());
    for weights in weights(demand) {
        bound = bound.max(by_weight(&free, demand, weights));
    }
    pinned_watts + bound
}

fn is_pinned(inventory: &Inventory, index: MachineIndex, machine: &Machine) -> bool {
    let stays = || {
        let mut carried = inventory.carried(index).iter();
        carried.any(|one| {
            inventory
                .workload(*one)
                .is_some_and(|workload| workload.moving == Moving::Never)
        })
    };
    !machine.asleep() && (machine.role == Role::Base || machine.hold || stays())
}

/// Weights to try: each resource alone, and mixtures of two. They are given for the share of the
/// demand, so that bytes and processors compare.
fn weights(demand: Amount) -> Vec<[f64; WEIGHED.len()]> {
    let unit = |resource: usize| 1.0 / demand.of(WEIGHED[resource]).max(1) as f64;
    let mut all = Vec::new();
    for one in 0..WEIGHED.len() {
        for two in one + 1..WEIGHED.len() {
            for step in 0..=STEPS {
                let share = f64::from(step) / f64::from(STEPS);
                let mut weights = [0.0; WEIGHED.len()];
                weights[one] = share * unit(one);
                weights[two] = (1.0 - share) * unit(two);
                all.push(weights);
            }
        }
    }
    all
}

fn weighted(amount: &Amount, weights: [f64; WEIGHED.len()]) -> f64 {
    let pairs = WEIGHED.iter().zip(weights);
    pairs
        .map(|(resource, weight)| amount.of(*resource) as f64 * weight)
        .sum()
}

/// The least cost of machines in parts that have the weighted demand together.
fn by_weight(machines: &[&Machine], demand: Amount, weights: [f64; WEIGHED.len()]) -> f64 {
    let mut left = weighted(&demand, weights);
    let mut offers: Vec<(f64, f64)> = machines
        .iter()
        .map(|machine| (machine.watts.idle, weighted(&machine.capacity, weights)))
        .filter(|(_, value)| *value > 0.0)
        .collect();
    offers.sort_by(|one, two| (one.0 / one.1).total_cmp(&(two.0 / two.1)));
    let mut cost = 0.0;
    for (watts, value) in offers {
        if left <= value {
            return cost + watts * left / value;
        }
        left -= value;
        cost += watts;
    }
    // There is not enough: whoever carries what can be carried has them all.
    cost
}

/// The cost of so many of the cheapest machines as are needed at the least: by each resource, and
/// by the workloads of which no two fit on one machine.
fn by_number(
    machines: &[&Machine],
    demand: Amount,
    requests: &[Amount],
    inventory: &Inventory,
    most: usize,
) -> f64 {
    let mut count = 0;
    for resource in Resource::ALL {
        let mut sizes: Vec<u64> = machines
            .iter()
            .map(|one| one.capacity.of(resource))
            .collect();
        sizes.sort_unstable_by(|one, two| two.cmp(one));
        let mut left = demand.of(resource);
        let mut needed = 0;
        for size in sizes {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(size);
            needed += 1;
        }
        count = count.max(needed);
        // Only where all machines can be chosen freely: on those that are pinned there may be room
        // for large ones.
        if machines.len() == inventory.machines().len() {
            let largest = machines.iter().map(|one| one.capacity.of(resource)).max();
            let half = largest.unwrap_or(0) / 2;
            let large = requests.iter().filter(|one| one.of(resource) > half);
            count = count.max(large.count());
        }
    }
    let mut costs: Vec<f64> = machines.iter().map(|one| one.watts.idle).collect();
    costs.sort_by(f64::total_cmp);
    costs.into_iter().take(count.min(most)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Group, Workload};

    #[test]
    fn one_machine_of_nine_is_the_best_for_six() {
        let mut inventory = Inventory::default();
        let group = inventory.add_group(Group::new("g"));
        for processors in [1, 1, 4, 4, 4, 9] {
            let capacity = Amount::new(processors * 1000, processors << 32, 0, 110);
            inventory.add_machine(Machine::new("m", group, capacity));
        }
        let request = Amount::workload(1000, 1024);
        for _ in 0..6 {
            inventory.add_workload(Workload::new("w", request));
        }
        let nine = Machine::new("m", group, Amount::new(9000, 9 << 32, 0, 110));
        let bound = lower_bound(&inventory, &[request; 6]);
        assert!(
            bound <= nine.watts.idle && bound > nine.watts.idle * 0.5,
            "{bound}"
        );
    }

    #[test]
    fn machines_that_cannot_sleep_are_counted_whole() {
        let mut inventory = Inventory::default();
        let group = inventory.add_group(Group::new("g"));
        let capacity = Amount::new(4000, 1 << 34, 0, 110);
        let mut base = Machine::new("base", group, capacity);
        base.role = Role::Base;
        let watts = base.watts.idle;
        inventory.add_machine(base);
        inventory.add_machine(Machine::new("auto", group, capacity));
        let requests = [Amount::workload(1000, 16)];
        assert!((lower_bound(&inventory, &requests) - watts).abs() < 1e-9);
    }
}
