//! For each reason a scenario in which it is given, and its counterfactual is tried out and holds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at what it did not expect"
)]

use crate::support;

use fleet::{
    amount::{Amount, Resource},
    counterfactual::holds,
    inventory::{MachineIndex, Moving, Power, Role, Set},
    moment::Span,
    planner::{Action, Change, Reason},
    policy::{Kind, Policy},
};
use support::{Fixture, Growing, GrowingAfter, machine};

/// Two machines: the first is nearly full of work that stays, the second is the one that is asked
/// about.
fn pair() -> Fixture {
    let mut fixture = Fixture::new(&[4, 4]);
    fixture.workload(3800, Some(0), Moving::Never);
    fixture
}

/// The reason for the second machine has this name, and what would change it does.
fn check(fixture: &mut Fixture, name: &str) -> Reason {
    let decision = fixture.decide(1);
    assert_eq!(decision.reason.name(), name, "{decision:?}");
    assert!(decision.would.is_some(), "{decision:?}");
    let sentence = decision.reason.sentence(&fixture.inventory, fixture.now);
    assert!(!sentence.is_empty());
    decision.reason
}

#[test]
fn scale_down_disabled_annotation() {
    let mut fixture = pair();
    fixture.machine(1).hold = true;
    check(&mut fixture, "ScaleDownDisabledAnnotation");
}

#[test]
fn scale_down_unready_disabled() {
    let mut fixture = pair();
    fixture.machine(1).ready = false;
    fixture.policy.scale_down_unready = false;
    check(&mut fixture, "ScaleDownUnreadyDisabled");
}

#[test]
fn not_autoscaled() {
    let mut fixture = pair();
    fixture.machine(1).role = Role::Base;
    check(&mut fixture, "NotAutoscaled");
}

#[test]
fn not_unneeded_long_enough() {
    let mut fixture = pair();
    let reason = check(&mut fixture, "NotUnneededLongEnough");
    let Reason::NotUnneededLongEnough { unneeded, needed } = reason else {
        panic!("{reason:?}");
    };
    assert_eq!(unneeded, Span::ZERO);
    fixture.now = fixture.now.plus(needed);
    assert_eq!(fixture.plan().with(Action::PowerOff), [MachineIndex(1)]);
}

#[test]
fn not_unready_long_enough() {
    let mut fixture = pair();
    fixture.machine(1).ready = false;
    check(&mut fixture, "NotUnreadyLongEnough");
    fixture.now = fixture.now.plus(fixture.policy.unready_after);
    assert_eq!(fixture.plan().with(Action::PowerOff), [MachineIndex(1)]);
}

#[test]
fn a_lost_machine_that_carries_work_is_not_switched_off() {
    let mut fixture = pair();
    fixture.machine(1).ready = false;
    fixture.workload(100, Some(1), Moving::Free);
    check(&mut fixture, "NotUnreadyLongEnough");
    fixture.now = fixture.now.plus(fixture.policy.unready_after);
    check(&mut fixture, "BlockedByPod");
}

#[test]
fn node_group_min_size_reached() {
    let mut fixture = pair();
    let group = fixture.group;
    fixture.inventory.group_mut(group).min = 2;
    fixture.plan();
    fixture.now = fixture.now.plus(Span::hours(1));
    check(&mut fixture, "NodeGroupMinSizeReached");
}

#[test]
fn node_group_max_deletion_count_reached() {
    let mut fixture = pair();
    fixture
        .inventory
        .add_machine(machine("m2", fixture.group, 4));
    fixture.policy.max_power_offs = 1;
    fixture.plan();
    fixture.now = fixture.now.plus(Span::hours(1));
    let plan = fixture.plan();
    assert_eq!(plan.with(Action::PowerOff), [MachineIndex(1)]);
    let decision = plan.decision(MachineIndex(2));
    assert_eq!(decision.reason.name(), "NodeGroupMaxDeletionCountReached");
    let would = decision.would.unwrap();
    assert!(holds(
        fixture.situation(),
        &fixture.memory,
        MachineIndex(2),
        &would
    ));
}

#[test]
fn atomic_scale_down_failed() {
    let mut fixture = pair();
    let group = fixture.group;
    fixture.inventory.group_mut(group).atomic = true;
    fixture.plan();
    fixture.now = fixture.now.plus(Span::hours(1));
    let reason = check(&mut fixture, "AtomicScaleDownFailed");
    assert_eq!(
        reason,
        Reason::AtomicScaleDownFailed {
            because_of: MachineIndex(0)
        }
    );
}

#[test]
fn a_group_that_sleeps_all_together_does() {
    let mut fixture = Fixture::new(&[4, 4]);
    let group = fixture.group;
    fixture.inventory.group_mut(group).atomic = true;
    fixture.plan();
    fixture.now = fixture.now.plus(Span::hours(1));
    assert_eq!(fixture.plan().with(Action::PowerOff).len(), 2);
}

#[test]
fn minimal_resource_limit_exceeded() {
    let mut fixture = pair();
    fixture.policy.minimum = Amount::new(5000, 0, 0, 0);
    fixture.plan();
    fixture.now = fixture.now.plus(Span::hours(1));
    let reason = check(&mut fixture, "MinimalResourceLimitExceeded");
    assert_eq!(
        reason,
        Reason::MinimalResourceLimitExceeded {
            resource: Resource::Cpu
        }
    );
}

#[test]
fn currently_being_deleted() {
    let mut fixture = pair();
    fixture.machine(1).power = Power::Stopping;
    let decision = fixture.decide(1);
    assert_eq!(decision.reason, Reason::CurrentlyBeingDeleted);
}

#[test]
fn not_underutilized() {
    let mut fixture = Fixture::new(&[4, 4]);
    for _ in 0..8 {
        fixture.workload(100, Some(0), Moving::Never);
        fixture.workload(100, Some(1), Moving::Free);
    }
    fixture.policy.move_watt_hours = 100.0;
    check(&mut fixture, "NotUnderutilized");
}

#[test]
fn not_unneeded_other_reason() {
    let mut fixture = pair();
    fixture
        .inventory
        .add_machine(machine("m2", fixture.group, 4));
    fixture.machine(2).power = Power::Off;
    fixture.policy.cooldown_after_wake = Span::hours(1);
    fixture.plan();
    fixture.workload(3900, None, Moving::Free);
    fixture.workload(3900, None, Moving::Free);
    assert_eq!(fixture.plan().with(Action::Wake), [MachineIndex(2)]);
    for index in fixture.inventory.waiting().collect::<Vec<_>>() {
        fixture.inventory.remove(index);
    }
    fixture.now = fixture.now.plus(Span(10));
    fixture.plan();
    fixture.now = fixture.now.plus(Span::minutes(30));
    check(&mut fixture, "NotUnneededOtherReason");
}

#[test]
fn no_place_to_move_pods() {
    let mut fixture = pair();
    fixture.workload(1000, Some(1), Moving::Free);
    check(&mut fixture, "NoPlaceToMovePods");
}

/// Room enough in all, but nowhere for the largest.
fn fragmented() -> Fixture {
    let mut fixture = Fixture::new(&[4, 4, 4, 4]);
    for at in [0, 2, 3].repeat(30) {
        fixture.workload(100, Some(at), Moving::Never);
    }
    fixture.workload(1500, Some(1), Moving::Free);
    fixture
}

#[test]
fn no_place_names_the_workload_that_has_none() {
    let mut fixture = fragmented();
    let reason = check(&mut fixture, "NoPlaceToMovePods");
    let Reason::NoPlaceToMovePods { workload, short } = reason else {
        panic!("{reason:?}");
    };
    assert!(workload.is_some());
    assert_eq!(short.cpu_millis, 500);
}

#[test]
fn recently_unremovable() {
    let mut fixture = fragmented();
    fixture.plan();
    fixture.now = fixture.now.plus(Span(30));
    check(&mut fixture, "RecentlyUnremovable");
}

#[test]
fn blocked_by_pod() {
    for moving in [Moving::Never, Moving::LocalState] {
        let mut fixture = pair();
        fixture
            .inventory
            .add_machine(machine("m2", fixture.group, 4));
        fixture.machine(2).role = Role::Base;
        fixture.workload(1000, Some(1), moving);
        check(&mut fixture, "BlockedByPod");
    }
}

#[test]
fn blocked_by_on_completion_pod() {
    let mut fixture = pair();
    fixture.workload(1000, Some(1), Moving::OnCompletion);
    let decision = fixture.plan().decisions[1];
    assert_eq!(decision.reason.name(), "BlockedByOnCompletionPod");
    assert_eq!(
        decision.action,
        Action::Drain,
        "it takes no new work meanwhile"
    );
    fixture.machine(1).draining = true;
    check(&mut fixture, "BlockedByOnCompletionPod");
}

#[test]
fn no_node_info() {
    let mut fixture = pair();
    fixture.machine(1).seen = false;
    check(&mut fixture, "NoNodeInfo");
}

#[test]
fn unexpected_error() {
    let mut fixture = pair();
    fixture.workload(5000, Some(1), Moving::Free);
    check(&mut fixture, "UnexpectedError");
}

#[test]
fn disruption_budget() {
    let mut fixture = Fixture::new(&[8, 4]);
    fixture.workload(100, Some(0), Moving::Never);
    let set = fixture.inventory.add_set(Set {
        disruptions: Some(1),
        ..Set::new("web")
    });
    for _ in 0..2 {
        let index = fixture.workload(500, Some(1), Moving::Free);
        fixture.inventory.workload_mut(index).unwrap().set = Some(set);
    }
    check(&mut fixture, "DisruptionBudget");
}

#[test]
fn held_in_reserve() {
    let mut fixture = pair();
    fixture.forecast = Some(Box::new(Growing(Amount::new(1000, 0, 0, 0))));
    check(&mut fixture, "HeldInReserve");
}

#[test]
fn break_even() {
    let mut fixture = pair();
    let more = Amount::new(1000, 0, 0, 0);
    fixture.forecast = Some(Box::new(GrowingAfter(Span::minutes(11), more)));
    let reason = check(&mut fixture, "BreakEven");
    let Reason::BreakEven { idle, needed } = reason else {
        panic!("{reason:?}");
    };
    assert!(idle < needed, "{reason:?}");
}

#[test]
fn waking() {
    let mut fixture = pair();
    fixture.machine(1).power = Power::Waking;
    fixture.machine(1).since = fixture.now;
    assert_eq!(fixture.decide(1).reason, Reason::Waking);
}

#[test]
fn pending_work() {
    let mut fixture = pair();
    fixture.machine(1).power = Power::Off;
    fixture.workload(1000, None, Moving::Free);
    let decision = fixture.decide(1);
    assert_eq!(decision.action, Action::Wake);
    assert_eq!(decision.reason.name(), "PendingWork");
}

#[test]
fn hedge() {
    let mut fixture = Fixture::new(&[4, 4]);
    for at in 0..2 {
        let one = fixture.machine(at);
        one.power = Power::Off;
        for _ in 0..100 {
            one.boot.learn(Span(300));
        }
        for _ in 0..20 {
            one.boot.learn_failure();
        }
    }
    fixture.workload(1000, None, Moving::Free);
    let plan = fixture.plan();
    let names: Vec<&str> = plan.decisions.iter().map(|one| one.reason.name()).collect();
    assert_eq!(names, ["PendingWork", "Hedge"]);
}

#[test]
fn below_minimum() {
    let mut fixture = pair();
    fixture.machine(1).power = Power::Off;
    let group = fixture.group;
    fixture.inventory.group_mut(group).min = 2;
    let decision = fixture.decide(1);
    assert_eq!(
        (decision.action, decision.reason),
        (Action::Wake, Reason::BelowMinimum)
    );
}

#[test]
fn unneeded() {
    let mut fixture = pair();
    fixture.machine(1).power = Power::Off;
    check(&mut fixture, "Unneeded");
}

#[test]
fn unneeded_behind_others() {
    let mut fixture = pair();
    for at in 2..5 {
        let other = machine(&format!("m{at}"), fixture.group, 4);
        fixture.inventory.add_machine(other);
        fixture.machine(at).power = Power::Off;
    }
    fixture.machine(1).power = Power::Off;
    for at in 1..5 {
        let decision = fixture.decide(at);
        assert_eq!(decision.reason, Reason::Unneeded);
    }
}

#[test]
fn deeper_sleep() {
    let mut fixture = pair();
    let now = fixture.now;
    let one = fixture.machine(1);
    one.watts.suspended = Some(9.0);
    (one.power, one.since) = (Power::Suspended, now);
    check(&mut fixture, "Unneeded");
    fixture.now = fixture.now.plus(Span::hours(24));
    let decision = fixture.decide(1);
    assert_eq!(
        (decision.action, decision.reason),
        (Action::PowerOff, Reason::DeeperSleep)
    );
}

#[test]
fn quarantined() {
    let mut fixture = pair();
    let until = fixture.now.plus(Span::minutes(10));
    let one = fixture.machine(1);
    (one.power, one.quarantined_until) = (Power::Off, Some(until));
    check(&mut fixture, "Quarantined");
    fixture.workload(1000, None, Moving::Free);
    assert!(fixture.plan().with(Action::Wake).is_empty());
}

#[test]
fn max_size_reached() {
    let mut fixture = pair();
    fixture.machine(1).power = Power::Off;
    let group = fixture.group;
    fixture.inventory.group_mut(group).max = 1;
    fixture.workload(1000, None, Moving::Free);
    check(&mut fixture, "MaxSizeReached");
}

#[test]
fn schedule_and_always_on() {
    let mut fixture = pair();
    fixture.policy = Policy::of(Kind::AlwaysOn);
    let reason = fixture.decide(1).reason;
    assert_eq!(reason, Reason::AlwaysOn);
    fixture.policy = Policy::of(Kind::Clock);
    assert!(matches!(
        fixture.plan().decision(MachineIndex(1)).reason,
        Reason::Schedule | Reason::Unneeded
    ));
}

#[test]
fn what_would_change_a_decision_is_said_in_words() {
    let mut fixture = fragmented();
    let decision = fixture.decide(1);
    let would = decision.would.unwrap();
    assert!(matches!(would.change, Some(Change::Room { .. })));
    let sentence = would.sentence(&fixture.inventory, false);
    assert!(sentence.starts_with("would sleep in "), "{sentence}");
    assert!(sentence.contains("more room elsewhere"), "{sentence}");
}
