//! What the planner does not decide: groups that somebody else plans, machines that did not come up,
//! and those that refused to be switched off. Pure.

use super::known::Known;
use crate::{
    inventory::{Inventory, MachineIndex, Power, Role},
    moment::Moment,
    planner::{Action, Decision, Plan, Reason},
    targets::{Wanted, Wish},
};
use std::collections::HashMap;

/// The same inventory for the planner: machines of groups that somebody else plans are off, carry
/// nothing and cannot be woken. Every index stays what it is.
pub(super) fn mask(inventory: &Inventory, foreign: &[bool]) -> Inventory {
    let mut masked = inventory.clone();
    if !foreign.contains(&true) {
        return masked;
    }
    for at in 0..inventory.machines().len() as u32 {
        let index = MachineIndex(at);
        let group = inventory.machine(index).group;
        if !foreign[group.at()] {
            continue;
        }
        for workload in masked.carried(index).to_vec() {
            masked.remove(workload);
        }
        masked.group_mut(group).min = 0;
        let machine = masked.machine_mut(index);
        (machine.power, machine.seen, machine.ready) = (Power::Off, false, false);
        (machine.draining, machine.quarantined_until) = (false, Some(Moment(u64::MAX)));
    }
    masked
}

/// A plan that leaves everything as it is, as what is asked for is not known.
pub(super) fn standstill(inventory: &Inventory, now: Moment) -> Plan {
    let decide = |power: Power| match power {
        Power::Waking => Reason::Waking,
        Power::Stopping => Reason::CurrentlyBeingDeleted,
        Power::On | Power::Off | Power::Suspended => Reason::DemandUnknown,
    };
    let machines = inventory.machines().iter();
    Plan {
        at: now,
        decisions: machines.map(|one| keep(decide(one.power))).collect(),
        placements: Vec::new(),
        promises: Vec::new(),
        moves: Vec::new(),
        unplaced: Vec::new(),
    }
}

/// Puts decisions into a plan that are not the planner's.
pub(super) fn overrule(
    plan: &mut Plan,
    inventory: &Inventory,
    known: &[Known],
    foreign: &[bool],
    wanted: &[Wanted],
    now: Moment,
) {
    let wanted: HashMap<&str, &Wanted> = wanted
        .iter()
        .map(|one| (one.machine.as_str(), one))
        .collect();
    for (index, machine) in inventory.enumerate() {
        let known = &known[index.at()];
        let decision = &mut plan.decisions[index.at()];
        if foreign[machine.group.at()] {
            *decision = promised(
                machine.power,
                machine.role,
                known,
                wanted.get(machine.name.as_str()),
            );
        }
        let later = |until: Option<Moment>| until.filter(|until| *until > now);
        let lost = machine.power == Power::On && !known.answered && machine.role == Role::Auto;
        if lost && let Some(until) = later(known.quarantined_until) {
            // It is on, and of no use to anybody.
            *decision = act(Action::PowerOff, Reason::Quarantined { until });
        }
        if decision.action == Action::Wake
            && let Some(until) = later(known.quarantined_until)
        {
            *decision = keep(Reason::Quarantined { until });
        }
        if matches!(decision.action, Action::PowerOff | Action::Suspend)
            && let Some(until) = later(known.refused_until)
        {
            *decision = keep(Reason::RecentlyUnremovable { until });
        }
    }
}

/// What is done with a machine of which Cluster Autoscaler wants this.
fn promised(power: Power, role: Role, known: &Known, wanted: Option<&&Wanted>) -> Decision {
    let since = wanted.map(|one| one.since).unwrap_or_default();
    match (wanted.map(|one| one.wish), power) {
        (Some(Wish::GivenBack), Power::Stopping) | (None, Power::Stopping) => {
            keep(Reason::CurrentlyBeingDeleted)
        }
        (Some(Wish::GivenBack), Power::On | Power::Waking) if role == Role::Auto => {
            act(Action::PowerOff, Reason::GivenBack { since })
        }
        (Some(Wish::GivenBack), Power::On | Power::Waking) => keep(Reason::NotAutoscaled),
        (Some(Wish::GivenBack), Power::Off | Power::Suspended) => keep(Reason::GivenBack { since }),
        (Some(Wish::On), Power::Off | Power::Suspended) => {
            act(Action::Wake, Reason::Promised { since })
        }
        (Some(Wish::On), Power::On) if known.draining => {
            act(Action::Undrain, Reason::Promised { since })
        }
        (Some(Wish::On), Power::On | Power::Stopping) => keep(Reason::Promised { since }),
        (Some(Wish::On) | None, Power::Waking) => keep(Reason::Waking),
        (None, Power::On) if !known.answered => keep(Reason::NoNodeInfo),
        (None, Power::On | Power::Off | Power::Suspended) => keep(Reason::NotAskedFor),
    }
}

const fn keep(reason: Reason) -> Decision {
    Decision {
        action: Action::Keep,
        reason,
        would: None,
    }
}

const fn act(action: Action, reason: Reason) -> Decision {
    Decision {
        action,
        reason,
        would: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        amount::Amount,
        boot::BootTimes,
        inventory::{Group, Machine, Workload},
        moment::Span,
        planner::{Memory, Situation, plan},
        policy::Policy,
    };

    fn fleet() -> Inventory {
        let mut inventory = Inventory::default();
        let (ours, theirs) = (Group::new("ours"), Group::new("theirs"));
        let (ours, theirs) = (inventory.add_group(ours), inventory.add_group(theirs));
        let capacity = Amount::new(4000, 8 << 30, 0, 10);
        for (name, group) in [("a", ours), ("b", theirs), ("c", theirs)] {
            inventory.add_machine(Machine::new(name, group, capacity));
        }
        inventory
    }

    fn known() -> Vec<Known> {
        let mut one = Known::new(BootTimes::expecting(Span(60)), Moment(0));
        (one.power, one.answered) = (Power::On, true);
        vec![one; 3]
    }

    fn wanted(machine: &str, wish: Wish) -> Wanted {
        Wanted {
            machine: machine.to_owned(),
            group: "theirs".to_owned(),
            wish,
            since: Moment(900),
        }
    }

    fn decide(inventory: &Inventory, known: &[Known], wishes: &[Wanted]) -> Vec<Decision> {
        let (foreign, now, policy) = ([false, true], Moment(1000), Policy::default());
        let masked = mask(inventory, &foreign);
        let situation = Situation {
            inventory: &masked,
            forecast: None,
            policy: &policy,
            now,
        };
        let (mut plan, _) = plan(situation, &Memory::default());
        overrule(&mut plan, inventory, known, &foreign, wishes, now);
        plan.decisions
    }

    #[test]
    fn what_cluster_autoscaler_wants_is_done_to_exactly_these_machines() {
        let mut fleet = fleet();
        let mut known = known();
        fleet.machine_mut(MachineIndex(1)).power = Power::Off;
        known[1].power = Power::Off;
        // Work that waits is the planner's, which must not wake what is not its own.
        fleet.add_workload(Workload::new("w", Amount::workload(90_000, 1)));
        let wishes = [wanted("b", Wish::On), wanted("c", Wish::GivenBack)];
        let decisions = decide(&fleet, &known, &wishes);
        assert_eq!(decisions[1].action, Action::Wake);
        assert_eq!(decisions[1].reason.name(), "Promised");
        assert_eq!(decisions[2].action, Action::PowerOff);
        assert_eq!(decisions[2].reason.name(), "GivenBack");
        let alone = decide(&fleet, &known, &[]);
        assert_eq!(alone[1].reason, Reason::NotAskedFor);
        assert_eq!(alone[2].action, Action::Keep);
    }

    #[test]
    fn a_machine_that_did_not_come_up_is_switched_off_and_one_that_refused_is_left() {
        let (fleet, mut known) = (fleet(), known());
        (known[0].answered, known[0].quarantined_until) = (false, Some(Moment(2000)));
        let decision = decide(&fleet, &known, &[])[0];
        assert_eq!(decision.action, Action::PowerOff);
        assert_eq!(decision.reason.name(), "Quarantined");
        known[0].refused_until = Some(Moment(1500));
        let decision = decide(&fleet, &known, &[])[0];
        assert_eq!(
            decision.reason,
            Reason::RecentlyUnremovable {
                until: Moment(1500)
            }
        );
    }
}
