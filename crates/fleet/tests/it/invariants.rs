//! What holds in every fleet, whatever is asked for: random fleets under every policy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at what it did not expect"
)]

use fleet::{
    amount::Amount,
    counterfactual::{carry_out, holds},
    inventory::{
        Group, GroupIndex, Inventory, Machine, MachineIndex, Moving, Power, Role, Set, SetIndex,
        Spread, Workload,
    },
    moment::{Moment, Span},
    planner::{Action, Memory, Plan, Situation, gap, plan},
    policy::{Kind, Policy},
};
use proptest::prelude::*;

fn machine() -> impl Strategy<Value = Machine> {
    (
        prop_oneof![Just(2_u64), Just(4), Just(8), Just(16)],
        0..10_u8,
        0..6_u8,
        0..3_u8,
        any::<bool>(),
    )
        .prop_map(|(processors, role, power, zone, suspends)| {
            let capacity = Amount::new(processors * 1000, processors << 32, 0, 20);
            let mut machine = Machine::new("m", GroupIndex(u32::from(role % 2)), capacity);
            if role == 0 {
                machine.role = Role::Base;
            } else {
                machine.power = match power {
                    0 | 1 => Power::Off,
                    2 => Power::Waking,
                    3 => Power::Stopping,
                    _ => Power::On,
                };
                machine.ready = power != 5 || role != 5;
                machine.hold = role == 9;
            }
            machine.watts.suspended = suspends.then_some(8.0);
            machine.labels.insert("zone".into(), format!("z{zone}"));
            machine
        })
}

fn workload() -> impl Strategy<Value = (Workload, u32)> {
    (
        100..3000_u64,
        100..6000_u64,
        0..8_u8,
        0..5_u32,
        any::<u32>(),
    )
        .prop_map(|(millis, memory, moving, set, place)| {
            let mut workload = Workload::new("w", Amount::workload(millis, memory));
            workload.moving = match moving {
                0 => Moving::Never,
                1 => Moving::LocalState,
                2 => Moving::OnCompletion,
                _ => Moving::Free,
            };
            workload.set = (set < 3).then_some(SetIndex(set));
            (workload, place)
        })
}

prop_compose! {
    fn fleet()(
        machines in prop::collection::vec(machine(), 1..24),
        workloads in prop::collection::vec(workload(), 0..80),
        kind in prop::sample::select(Kind::ALL.to_vec()),
        min in 0..3_u32,
        max in 3..30_u32,
    ) -> (Inventory, Policy) {
        let mut inventory = Inventory::default();
        inventory.add_group(Group { min, max, ..Group::new("one") });
        inventory.add_group(Group::new("two"));
        inventory.add_set(Set { apart: true, disruptions: Some(1), ..Set::new("apart") });
        let spread = Spread { label: "zone".into(), skew: 1 };
        inventory.add_set(Set { spread: Some(spread), ..Set::new("spread") });
        inventory.add_set(Set { disruptions: Some(2), ..Set::new("budget") });
        for machine in machines {
            inventory.add_machine(machine);
        }
        for (workload, place) in workloads {
            let index = inventory.add_workload(workload);
            let target = MachineIndex(place % (2 * inventory.machines().len() as u32));
            let wanted = inventory.workload(index).unwrap();
            // Two members of the set that must be apart never begin on one machine.
            let takes = target.at() < inventory.machines().len()
                && inventory.machine(target).power == Power::On
                && wanted.request.fits(&inventory.room(target))
                && wanted.set.is_none();
            if takes {
                inventory.place(index, target);
            }
        }
        (inventory, Policy::of(kind))
    }
}

/// What no plan may do.
fn check(inventory: &Inventory, policy: &Policy, plan: &Plan) -> Result<(), TestCaseError> {
    let mut after = inventory.clone();
    for one in plan.placements.iter().chain(&plan.moves) {
        let target = inventory.machine(one.machine);
        prop_assert_eq!(
            target.power,
            Power::On,
            "work goes only to machines that are on"
        );
        prop_assert!(target.ready && target.seen);
        after.place(one.workload, one.machine);
    }
    for one in &plan.moves {
        let workload = inventory.workload(one.workload).unwrap();
        prop_assert_eq!(workload.moving, Moving::Free, "what must stay is not moved");
    }
    for one in &plan.promises {
        let waking = inventory.machine(one.machine).power == Power::Waking;
        prop_assert!(waking || plan.decision(one.machine).action == Action::Wake);
    }
    for (index, machine) in after.enumerate() {
        let used = after.used(index);
        prop_assert!(used.fits(&machine.capacity), "no machine is promised twice");
        let action = plan.decision(index).action;
        let sleeps = matches!(action, Action::PowerOff | Action::Suspend | Action::Drain);
        if sleeps {
            prop_assert_eq!(machine.role, Role::Auto);
            prop_assert!(!machine.hold);
        }
        if matches!(action, Action::PowerOff | Action::Suspend) {
            prop_assert!(after.carried(index).is_empty(), "no work is lost");
        }
        if action == Action::Wake {
            prop_assert!(machine.asleep());
        }
    }
    for (at, set) in after.sets().iter().enumerate() {
        let members = |machine: MachineIndex| {
            let carried = after.carried(machine).iter();
            carried
                .filter(|one| after.workload(**one).unwrap().set == Some(SetIndex(at as u32)))
                .count()
        };
        for (index, _) in after.enumerate() {
            prop_assert!(!set.apart || members(index) <= 1, "apart means apart");
        }
        if let Some(allowed) = set.disruptions {
            let moved = plan.moves.iter().filter(|one| {
                inventory.workload(one.workload).unwrap().set == Some(SetIndex(at as u32))
            });
            prop_assert!(moved.count() <= allowed as usize);
        }
    }
    for (at, group) in inventory.groups().iter().enumerate() {
        let all = plan
            .with(Action::Wake)
            .into_iter()
            .chain(plan.with(Action::Undrain));
        let here = all.filter(|index| inventory.machine(*index).group.at() == at);
        let woken = here.count();
        let on = inventory.enumerate().filter(|(index, one)| {
            let sleeps = matches!(
                plan.decision(*index).action,
                Action::Drain | Action::Suspend | Action::PowerOff
            );
            let stays = match plan.decision(*index).action {
                Action::Wake | Action::Undrain => true,
                _ => matches!(one.power, Power::On | Power::Waking) && !one.draining,
            };
            one.group.at() == at && stays && !sleeps
        });
        prop_assert!(woken == 0 || on.count() <= group.max as usize || policy.kind == Kind::Clock);
    }
    let gap = gap(inventory, plan);
    prop_assert!(gap.bound_watts.is_finite());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn nothing_is_lost_over_an_hour((mut inventory, policy) in fleet()) {
        let mut memory = Memory::default();
        for step in 0..40 {
            let now = Moment(1_000_000 + step * 120);
            let situation = Situation { inventory: &inventory, forecast: None, policy: &policy, now };
            let (decided, remembered) = plan(situation, &memory);
            check(&inventory, &policy, &decided)?;
            memory = remembered;
            carry_out(&mut inventory, &decided, now);
            // Those that were woken come up at once, and some work is done.
            let waking: Vec<MachineIndex> = inventory
                .enumerate()
                .filter(|(_, one)| one.power == Power::Waking)
                .map(|(index, _)| index)
                .collect();
            for index in waking {
                let one = inventory.machine_mut(index);
                (one.power, one.ready, one.seen) = (Power::On, true, true);
            }
            let done = inventory.workloads().nth(step as usize % 7).map(|(index, _)| index);
            if let Some(index) = done.filter(|_| step % 3 == 0) {
                inventory.remove(index);
            }
        }
    }

    /// What is said about time alone holds: without any other change the machine goes to sleep.
    #[test]
    fn what_only_time_changes_it_does((inventory, mut policy) in fleet()) {
        policy.kind = Kind::Atoll;
        let now = Moment(1_000_000);
        let situation = Situation { inventory: &inventory, forecast: None, policy: &policy, now };
        let (decided, memory) = plan(situation, &Memory::default());
        let first = decided.decisions.iter().position(|one| {
            one.reason.name() == "NotUnneededLongEnough"
        });
        if let Some(at) = first {
            let would = decided.decisions[at].would.unwrap();
            prop_assert!(would.after >= Span(60));
            // What waits is served first and may need the machine after all.
            if inventory.waiting_count() == 0 {
                let machine = MachineIndex(at as u32);
                let own = inventory.carried(machine).is_empty();
                prop_assert!(!own || holds(situation, &memory, machine, &would));
            }
        }
    }
}
